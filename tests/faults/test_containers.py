"""What a container does not have: a home, a name for its user, a folder for temporary files, locks, many open files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from tests.faults.calling import ROOT, call, environment, said
from tests.faults.tls_server import TlsServer, tls_world
from tests.integration.postgres.test_embedded import clean_away, make_place

NOBODY = ("unshare", "--user", "--map-user=54321")
READ_ONLY = """
mount --make-rprivate /
for place in / /tmp /var/tmp /usr/tmp /dev/shm /root /run "$HOME"; do
    if [ -d "$place" ]; then mount --bind "$place" "$place" && mount -o remount,ro,bind "$place"; fi
done
mount --bind "$VOLUME" "$VOLUME" && mount -o remount,rw,bind "$VOLUME"
cd / && ! touch /tmp/written 2>/dev/null && touch "$VOLUME/written" && rm "$VOLUME/written" || exit 77
HOME=/ exec "$@"
"""
NO_LOCKS = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
int flock(int file, int how) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""
NO_TEMPORARY = "Set TMPDIR"


@pytest.fixture(scope="module")
def server() -> Iterator[TlsServer]:
    """A server that is reached by TCP and TLS, with a small synthetic world in it."""
    with tls_world() as started:
        yield started


def within(
    prefix: tuple[str, ...], *words: str, env: Mapping[str, str], cwd: Path = Path("/")
) -> subprocess.CompletedProcess[str]:
    """`PREFIX bpr-etl WORDS` with these variables and a PATH, and no others."""
    return subprocess.run(
        [*prefix, sys.executable, str(ROOT / "cli.py"), *words],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "BPR_ETL_CONFIG": "", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def require(*command: str) -> None:
    """Skip where this machine does not let us do that."""
    try:
        possible = subprocess.run([*command, "true"], check=False, capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip(f"not allowed or not there on this machine: {' '.join(command)}")


def drawn(out: Path) -> bool:
    """Whether the newest snapshot's report has charts."""
    return '<svg class="chart"' in (out / "snapshots" / (out / "LATEST").read_text() / "report.html").read_text()


@pytest.mark.parametrize("home", [None, "/", "/nonexistent", "closed"])
def test_a_user_without_a_name_and_a_home(server, tmp_path, home):
    """The user id is one that /etc/passwd does not know. TLS, because libpq then looks for a certificate in the home folder."""
    require(*NOBODY)
    out, closed = tmp_path / "out", tmp_path / "closed"
    closed.mkdir(mode=0)
    env = {"DATABASE_URL": server.url(sslmode="require"), "BPR_ETL_OUT": str(out)}
    if home is not None:
        env["HOME"] = str(closed) if home == "closed" else home
    # A working folder may be closed, too; only root gets into one.
    working = closed if home == "closed" and os.geteuid() == 0 else tmp_path
    enter = ("sh", "-c", 'cd "$0" && exec "$@"', str(working), *NOBODY)
    done = within(enter, "run", "--json", env=env)
    assert done.returncode == 0, said(done)
    assert json.loads(done.stdout)["committed"]
    assert drawn(out)
    others = (("schema", "check"), ("list",), ("expand", str(out), "--out", str(tmp_path / "other")))
    for words in (("doctor",), *(others if home is None else ())):
        done = within(enter, *words, env=env)
        assert done.returncode == 0, said(done)
    for words, says in (
        (("run", "--database-url", f"postgresql://localhost:{server.port}/x"), "URL names no user"),
        (("db", "start", "--data-dir", str(tmp_path / "pg")), "user id 54321 has no name"),
        (("db", "url"), "HOME is not set"),
    )[: 0 if home else None]:
        done = within(enter, *words, env=env)
        assert done.returncode == 2, said(done)
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_nothing_can_be_written_but_out(server, tmp_path):
    require("unshare", "--mount")
    out = tmp_path / "out"
    out.mkdir()
    env = {
        "DATABASE_URL": server.url(sslmode="require"),
        "BPR_ETL_OUT": str(out),
        "VOLUME": str(out),
        "HOME": str(Path.home()),
    }
    inside = ("unshare", "--mount", "sh", "-c", READ_ONLY, "sh")

    done = within(inside, "doctor", "--json", env=env)
    if done.returncode == 77:
        pytest.skip("file systems can't be made read-only here")
    assert done.returncode == 0, said(done)
    (check,) = [each for each in json.loads(done.stdout)["checks"] if each["name"] == "temporary files"]
    assert (check["state"], NO_TEMPORARY in check["found"]) == ("warning", True)
    for words in (("run",), ("report", str(out)), ("validate", "--snapshot", str(out))):
        done = within(inside, *words, env=env)
        assert done.returncode == 0, said(done)
        assert "no charts" not in done.stderr
        assert drawn(out)
    assert {each.name for each in out.iterdir()} == {"LATEST", "snapshots"}

    store = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    for words in (("run", "--dry-run"), ("run", "--out", "s3://bucket/x")):
        done = within(inside, *words, env=env | store)
        assert (done.returncode, done.stderr.count("\n"), NO_TEMPORARY in done.stderr) == (2, 1, True), said(done)
    done = within(inside, "doctor", "--out", "s3://bucket/x", "--json", env=env | store)
    (check,) = [each for each in json.loads(done.stdout)["checks"] if each["name"] == "temporary files"]
    assert check["state"] == "failed"
    (out / "tmp").mkdir()
    done = within(inside, "run", "--dry-run", env=env | {"TMPDIR": str(out / "tmp")})  # the remedy is one
    assert done.returncode == 0, said(done)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_before_anything_is_read(small_world, tmp_path, number):
    """The fault is laid below Python, where the C library would ask the file system."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    (tmp_path / "shim.c").write_text(NO_LOCKS)
    shim = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(shim), str(tmp_path / "shim.c")], check=True)
    env = {"LD_PRELOAD": str(shim), "FLOCK_ERRNO": str(number), "DATABASE_URL": small_world}
    done = call("run", "--out", "out", cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), said(done)
    assert f"out can't be locked ({os.strerror(number)})" in done.stderr
    with psycopg.connect(small_world) as connection:
        assert connection.execute('SELECT count(*) FROM "ModelRegistry"').fetchone() == (0,)
    done = call("doctor", "--out", "out", "--json", cwd=tmp_path, env=env)
    assert done.returncode == 3, said(done)
    (check,) = [each for each in json.loads(done.stdout)["checks"] if each["name"] == "store's lock"]
    assert "can't be locked" in check["found"]
    assert [each.name for each in (tmp_path / "out").iterdir()] == []
    place = make_place()
    try:
        done = call("db", "start", "--data-dir", str(place / "pg"), env=env)
        assert (done.returncode, os.strerror(number) in done.stderr) == (2, True), said(done)
    finally:
        clean_away(place)


def test_a_thousand_cities_need_few_open_files(small_world, tmp_path):
    with psycopg.connect(small_world) as connection:
        connection.execute('DELETE FROM "BehavioralSignal"')
        connection.execute("""INSERT INTO "ActivityNode" (id, city, category, status, name, latitude, longitude)
            SELECT 'node' || city || '-' || number, 'City ' || city, one.category, 'approved', 'x', 0, 0
            FROM (SELECT category FROM "ActivityNode" LIMIT 1) one, generate_series(1, 1000) city, generate_series(1, 4) number""")
        connection.execute("""INSERT INTO "Trip" (id, "userId", city, "startDate", "createdAt", "personaSeed")
            SELECT 'trip' || city, users.id, 'City ' || city, '2026-01-01', '2026-01-01', '{}'
            FROM generate_series(1, 1000) city, LATERAL (SELECT id FROM "User" WHERE email LIKE 'shadow-%'
                ORDER BY md5(id || city) LIMIT 1) users""")
        connection.execute("""INSERT INTO "ItinerarySlot" (id, "tripId", "activityNodeId", "dayNumber", "sortOrder", status)
            SELECT 'slot' || city || '-' || number, 'trip' || city, 'node' || city || '-' || number, 1, number, 'confirmed'
            FROM generate_series(1, 1000) city, generate_series(1, 2) number""")
    words = ["run", "--out", "out", "--small-catalog", "keep", "--buckets", "200", "--quiet"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 64 && exec "$@"', "sh", sys.executable, str(ROOT / "cli.py"), *words],
        cwd=tmp_path,
        env=environment(DATABASE_URL=small_world),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, said(done)
    name = (tmp_path / "out" / "LATEST").read_text()
    manifest = json.loads((tmp_path / "out" / "snapshots" / name / "manifest.json").read_text())
    assert sum(city.startswith("City ") for city in manifest["published"]["triples"]) == 1000
