"""The server restarts, is killed, fills its disk, has no connection left, loses patience; the output folder takes no more."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest

import etl
from etl.errors import ConnectError
from etl.pipeline import database
from etl.postgres import embedded
from etl.postgres.naming import Naming
from etl.postgres.schema import privileges
from etl.runtime.run_record import RunRecord
from etl.settings.model import Settings
from etl.settings.sources import load_settings
from tests.conftest import FAST
from tests.faults.nights import SEEDS, Nights
from tests.states import database_state, folder_state


@contextmanager
def tmpfs(megabytes: int) -> Iterator[Path]:
    """A small file system of its own; only root may mount one."""
    folder = Path(tempfile.mkdtemp(prefix="bpr-small-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("Only root can mount a small file system to fill.")
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture
def own_server() -> Iterator[Callable[[Path | None], embedded.Server]]:
    """A server that a test may do anything to."""
    started: list[Path] = []

    def start(folder: Path | None = None) -> embedded.Server:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="bpr-own-"))
            folder.chmod(0o755)
        started.append(folder)
        return embedded.start(folder / "pg", parameters=FAST | {"fsync": "on"})

    yield start
    for folder in started:
        embedded.stop(folder / "pg")
        shutil.rmtree(folder, ignore_errors=True)


def settings(url: str, out: Path, **more: object) -> Settings:
    return load_settings({"database_url": url, "out": str(out), **more}, {})


@contextmanager
def at_step(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> Iterator[list[bool]]:
    """Do something once, as the named step begins."""
    original, done = RunRecord.step, []

    def step(self, step_name):
        if step_name == name and not done:
            done.append(True)
            act()
        return original(self, step_name)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "step", step)
        yield done


GOING = (("killed", "write events"), ("restarted", "backfill"), ("restarted", "write events"), ("killed", "backfill"))


def test_the_server_goes_in_mid_run(own_server, monkeypatch, tmp_path, tally, effort):
    """A restart ends our session in order; SIGKILL of every server process is a power cut that recovery mends."""
    server = own_server()
    database.synth(settings(server.url(), tmp_path / "out", scale=0.02))
    nights = Nights.prepared(server.url(), tmp_path / "out")

    def gone(how: str) -> None:
        if how == "restarted":
            embedded.stop(server.data_dir)
        else:
            cut_power(server.data_dir)
        embedded.start(server.data_dir, parameters=FAST | {"fsync": "on"})

    for how, step in GOING[: effort(1, len(GOING))]:
        nights.forget_versions()
        before = nights.state()
        with at_step(monkeypatch, step, partial(gone, how)) as done, pytest.raises(ConnectError) as lost:
            etl.run(settings(nights.url, nights.out, seed=SEEDS[0]))
        assert done
        assert "\n" not in str(lost.value)
        assert nights.require_before_or_after(before, SEEDS[0]) == "before"
        nights.require_mended(SEEDS[1])
        tally("servers that went in mid-run")


def cut_power(data_dir: Path) -> None:
    """SIGKILL the server, first, so that it starts no further process, and its children, of which some may end meanwhile."""
    server = embedded.find_running(data_dir)
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="ascii")
    os.kill(server.pid, signal.SIGKILL)
    for pid in map(int, children.split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_server_s_disk_is_full(own_server, tmp_path, tally):
    with tmpfs(160) as small:
        server = own_server(small)
        database.synth(settings(server.url(), tmp_path / "out", scale=0.02))
        nights = Nights.prepared(server.url(), tmp_path / "out")
        before = nights.state()
        ballast = small / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(small).free - (256 << 10)))
        with pytest.raises(ConnectError) as full:
            etl.run(settings(nights.url, nights.out, seed=SEEDS[0]))
        ballast.unlink()
        # A server that can't write its journal goes down; it comes back by itself, or by whoever looks after it.
        embedded.stop(server.data_dir)
        embedded.start(server.data_dir, parameters=FAST | {"fsync": "on"})
        assert "\n" not in str(full.value)
        assert nights.require_before_or_after(before, SEEDS[0]) == "before"
        nights.require_mended(SEEDS[0])
        embedded.stop(server.data_dir)
    tally("full disks")


def test_the_output_folder_s_disk_is_full(small_world, tally):
    """However much room there is: as before or as after, and an error that says so."""
    with tmpfs(3) as small:
        out = small / "out"
        nights = Nights.prepared(small_world, out)
        nights.keep_few()
        left = shutil.disk_usage(small).free
        refused = 0
        for room in (0, 4 << 10, 200 << 10, left // 3, left // 2):
            free = shutil.disk_usage(small).free
            (small / "ballast").write_bytes(bytes(max(0, free - room)))
            seed, before = nights.other_seed(), nights.state()
            error = nights.night(seed)
            (small / "ballast").unlink()
            state = nights.require_before_or_after(before, seed)
            if error is not None:
                refused += 1
                assert isinstance(error, ConnectError)
                assert "No space left" in str(error)
                assert state == "before"
            nights.keep_few()
            tally("full disks")
        assert refused >= 2
        nights.require_mended(SEEDS[0])


def test_a_folder_that_may_only_be_read(small_world, tally):
    with tmpfs(8) as small:
        nights = Nights.prepared(small_world, small / "out")
        before = nights.state()
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(ConnectError, match="Read-only file system"):
            etl.run(settings(small_world, nights.out, seed=SEEDS[0]))
        assert nights.state() == before
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        nights.require_mended(SEEDS[0])
    tally("folders that may only be read")


@pytest.fixture
def limited(small_world, role) -> Callable[[str], str]:
    """A role of one's own that may do what the job needs, and is changed as one says; gives the URL."""
    made, url = role
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(privileges.grants(Naming("model", "public"), made))

    def change(how: str) -> str:
        with psycopg.connect(small_world, autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {made} {how}")
        return url

    return change


def test_no_connection_is_left(limited, tmp_path, small_world):
    rows = database_state(small_world)
    with pytest.raises(ConnectError, match="too many connections"):
        etl.run(settings(limited("CONNECTION LIMIT 0"), tmp_path / "out"))
    assert database_state(small_world) == rows


def test_one_connection_is_enough(limited, tmp_path, small_world, caplog):
    """Those of connectorx are refused: then the same queries go through the one that there is, and a line says so."""
    caplog.set_level("INFO")
    report = etl.run(settings(limited("CONNECTION LIMIT 1"), tmp_path / "out"))
    assert report.committed
    assert "Reading through ADBC" in caplog.text
    assert database.validate_database(settings(small_world, tmp_path / "out")).broken == []


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("statement_timeout = '2s'", "Raise statement_timeout"),
        ("lock_timeout = '100ms'", "Run again at a quieter time"),
    ],
)
def test_a_timeout_is_told(limited, tmp_path, small_world, limit, said):
    """The application holds a signal that the backfill wants for longer than the role may wait."""
    rows = database_state(small_world)
    with psycopg.connect(small_world) as holder:
        holder.execute('SELECT FROM "BehavioralSignal" FOR UPDATE')
        with pytest.raises(ConnectError, match=said):
            etl.run(settings(limited(f"SET {limit}"), tmp_path / "out"))
    assert database_state(small_world) == rows
    assert folder_state(tmp_path / "out") == {}


def test_idle_in_transaction_timeout_is_told(limited, tmp_path, small_world, monkeypatch):
    """A night's own work between two statements takes longer than the role may idle."""
    rows = database_state(small_world)
    url = limited("SET idle_in_transaction_session_timeout = '100ms'")

    def idle() -> None:
        with psycopg.connect(small_world, autocommit=True) as connection:
            connection.execute("SELECT pg_sleep(0.5)")

    with at_step(monkeypatch, "check", idle), pytest.raises(ConnectError, match="idle"):
        etl.run(settings(url, tmp_path / "out"))
    assert database_state(small_world) == rows
