"""What the embedded PostgreSQL says when the machine refuses: a folder, a program, a wheel. Programs that fail are scripts."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.errors import ConnectError
from etl.postgres import embedded
from tests.integration.postgres.test_embedded import owner

NOBODY_S_PID = 2**22 + 1  # above Linux's largest


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can enter and write to: the server's user does, too."""
    folder = Path(tempfile.mkdtemp(prefix="bpr-embedded-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def programs(wheel: Path, **scripts: str) -> embedded._Programs:
    """An installation of scripts in place of PostgreSQL's programs, as it lies in a wheel."""
    folder = wheel / "pginstall"
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    for name, script in scripts.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return embedded._Programs(folder, (99, 1))


def test_a_program_that_takes_too_long_or_is_not_there_is_a_failure_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_SECONDS", 0.05)
    began = time.monotonic()
    slow = embedded._run(["sleep", "600"])
    assert time.monotonic() - began < 300
    assert (slow.returncode, slow.stdout) == (124, "sleep took longer than 0.1 s")
    missing = embedded._run(["/no/such/program"])
    assert (missing.returncode, missing.stdout) == (126, "/no/such/program: No such file or directory")


def test_a_wheel_whose_programs_do_not_run_is_named_and_one_that_runs_is_chosen(place: Path) -> None:
    broken = programs(place / "broken", postgres="echo 'wrong ELF class'; exit 1")
    with pytest.raises(ConnectError, match=re.escape(f"No PostgreSQL that runs on this machine in {place}/broken")):
        embedded._newest(place / "broken")
    broken.folder.rename(place / "broken" / "pginstall_a")
    programs(place / "broken", postgres="echo 'postgres (PostgreSQL) 16.2'").folder.rename(
        place / "broken" / "pginstall_b"
    )
    programs(place / "broken", postgres="echo 'postgres (PostgreSQL) 9.6.1'").folder.rename(
        place / "broken" / "pginstall_c"
    )
    programs(place / "broken", postgres="echo 'some other program'")
    embedded._newest.cache_clear()
    assert embedded._newest(place / "broken") == embedded._Programs(place / "broken" / "pginstall_b", (16, 2))
    embedded._newest.cache_clear()


def test_programs_that_the_server_s_user_can_not_run_from_a_copy_either_are_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = programs(place / "wheel", postgres="exit 0", initdb="echo 'cannot execute'; exit 1")
    monkeypatch.setattr(embedded, "_wheel_programs", lambda: fake)
    monkeypatch.setattr(embedded, "_STATE", place / "state")
    with pytest.raises(
        ConnectError, match="reinstall the wheel"
    ):  # a wheel without its libraries: half a copy is no copy
        embedded._programs(owner())
    assert list((place / "state").iterdir()) == []
    (place / "wheel.libs").mkdir()
    with pytest.raises(ConnectError, match=rf"{owner().pw_name} can't run the embedded PostgreSQL: cannot execute."):
        embedded._programs(owner())


def test_a_data_folder_that_can_not_be_made_leaves_nothing_and_what_lay_there_stays(place: Path) -> None:
    (place / "somebody's").write_text("own")
    (place / ".pg.init-killed").mkdir()
    fake = programs(place / "wheel", initdb="echo 'initdb: error: no space left'; exit 1")
    as_ourselves = pwd.getpwuid(os.geteuid())
    for account in (owner(), as_ourselves):
        with pytest.raises(ConnectError, match=r"/pg could not be made: initdb: error: no space left."):
            embedded._initialise(place / "pg", account, fake)
    assert {each.name for each in place.iterdir()} == {"somebody's", "wheel"}


def test_files_of_a_folder_that_is_not_there_can_not_be_written(place: Path) -> None:
    with pytest.raises(ConnectError, match=r"none/pg_hba.conf could not be written: .*No such file|cannot create"):
        embedded._write_access(place / "none", owner())


def test_a_socket_folder_that_can_not_be_made_is_named(place: Path) -> None:
    with pytest.raises(ConnectError, match=r"The socket's folder .*/none/sockets can't be made: mkdir:"):
        embedded._private_folder(place / "none" / "sockets", owner())


def test_a_server_that_will_not_stop_is_named_with_its_log_and_one_that_is_gone_is_not_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = programs(place / "wheel", pg_ctl="echo 'pg_ctl: server does not shut down'; exit 1")
    monkeypatch.setattr(embedded, "_programs", lambda _: fake)
    assert embedded._stop(place / "pg", owner()) is False  # nothing serves there: somebody else was faster
    monkeypatch.setattr(embedded, "_postmaster", lambda _: 7)
    with pytest.raises(
        ConnectError, match=r"did not stop: pg_ctl: server does not shut down. Its log is .*/server.log"
    ):
        embedded._stop(place / "pg", owner())


def test_a_server_that_takes_no_connection_is_waited_for_only_so_long(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_SECONDS", 0.1)
    with pytest.raises(ConnectError, match=r"took no connection for 0.1 s: see its log .*server.log"):
        embedded._wait_until_ready(place / "pg")


def test_a_process_that_is_gone_serves_nothing(place: Path) -> None:
    assert not embedded._is_postmaster_of(NOBODY_S_PID, place)
    (place / "postmaster.pid").write_text(f"{NOBODY_S_PID}\n{place}\n")
    assert embedded._postmaster(place) is None
    assert embedded.find_running(place) is None
