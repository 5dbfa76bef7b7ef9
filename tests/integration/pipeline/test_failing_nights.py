"""What a night that fails says: one sentence or two, what happened and what to do, at seven in the morning.

Every way of failing is the real one, and the command is called as cron calls it.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from etl.snapshots.publish import locked_store
from tests.faults.calling import call
from tests.faults.test_server import tmpfs


@contextmanager
def wrong_password(url, _tmp_path):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS morning")
        connection.execute("CREATE ROLE morning LOGIN PASSWORD 'right'")
        host = connection.info.host
    parts = urlsplit(url)
    folder = parse_qs(parts.query).get("host", [host])[0]
    yield {"url": f"postgresql://morning:wr0ng-word@localhost{parts.path}?host={folder}"}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE morning")


@contextmanager
def server_down(_url, _tmp_path):
    yield {"url": "postgresql://app:wr0ng-word@127.0.0.1:9/app"}


@contextmanager
def no_shadow_users(url, tmp_path):
    assert call("run", "--database-url", url, "--out", str(tmp_path / "out")).returncode == 0
    yield {"url": url, "more": ["--shadow-prefix", "shade-"]}


@contextmanager
def schema_missing(url, _tmp_path):
    yield {"url": url, "more": ["--schema", "nowhere"]}


@contextmanager
def wrong_naming(url, _tmp_path):
    yield {"url": url, "more": ["--naming", "mapped"]}


@contextmanager
def no_rights(url, _tmp_path):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'wr0ng-word'")
        connection.execute("GRANT USAGE ON SCHEMA public TO reader")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader")
    parts = urlsplit(url)
    yield {"url": f"postgresql://reader:wr0ng-word@localhost{parts.path}?{parts.query}"}
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP OWNED BY reader")
        connection.execute("DROP ROLE reader")


@contextmanager
def disk_full(url, _tmp_path):
    with tmpfs(1) as small:
        (small / "others").write_bytes(bytes(1_000_000))
        yield {"url": url, "out": str(small / "out")}


@contextmanager
def store_unreachable(url, _tmp_path):
    environ = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "AWS_REGION": "us-east-1",
    }
    yield {"url": url, "out": "s3://nights/out", "env": environ}


@contextmanager
def lock_held(url, tmp_path):
    with locked_store(str(tmp_path / "out")):
        yield {"url": url}


@contextmanager
def half_the_trips_gone(url, tmp_path):
    assert call("run", "--database-url", url, "--out", str(tmp_path / "out")).returncode == 0
    with psycopg.connect(url) as connection:
        connection.execute("""DELETE FROM "Trip" WHERE "id" IN (SELECT "id" FROM "Trip" ORDER BY md5("id")
            LIMIT (SELECT count(*) / 2 FROM "Trip"))""")
    yield {"url": url, "more": ["--fail-on-change"]}


NIGHTS = {
    "wrong password": (wrong_password, 3, r"refuses the login.*Check user, password"),
    "server down": (server_down, 3, r"Cannot reach .*refused.*Check that the server runs"),
    "schema missing": (schema_missing, 4, r'no schema "nowhere".*--schema'),
    "wrong naming": (wrong_naming, 4, r"--naming"),
    "no shadow users": (no_shadow_users, 5, r"begins with 'shade-'.*--shadow-prefix"),
    "no rights": (no_rights, 3, r"INSERT.*schema print --role"),
    "disk full": (disk_full, 3, r"Cannot write to .*No space left on device.*Check"),
    "store unreachable": (store_unreachable, 3, r"cannot be reached .Connection refused.*Check"),
    "lock held": (lock_held, 6, r"Another run is publishing.*--wait-lock"),
    "half the trips gone": (half_the_trips_gone, 5, r"-5\d\s?%.*--max-change"),
}


@pytest.mark.parametrize("night", NIGHTS)
def test_a_night_that_fails_says_what_to_do(small_world, tmp_path, night):
    harm, exit_code, said = NIGHTS[night]
    with harm(small_world, tmp_path) as given:
        arguments = ["run", "--out", given.get("out", str(tmp_path / "out")), *given.get("more", [])]
        done = call(*arguments, env={"DATABASE_URL": given["url"], **given.get("env", {})})
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.returncode == exit_code
    assert len(errors) == 1
    assert re.search(said, errors[0])
    assert len(re.findall(r"[.!?](?:\s|$)", errors[0])) <= 4
    assert "Traceback" not in done.stderr
    assert "wr0ng-word" not in done.stderr + done.stdout
