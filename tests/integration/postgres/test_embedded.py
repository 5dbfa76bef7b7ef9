"""The embedded PostgreSQL: real servers, started, killed and stopped; closed to everybody else at every moment."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from etl.errors import ConnectError, SettingsError
from etl.postgres import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parents[3]
FAST = {"fsync": "off", "shared_buffers": "16MB", "max_connections": "10"}
IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can act as another OS user")
START = "import sys; from pathlib import Path; from etl.postgres import embedded; print(embedded.start(Path(sys.argv[1])).pid)"


def make_place() -> Path:
    # Not pytest's tmp_path: as root, the server's own OS user can't enter it.
    folder = Path(tempfile.mkdtemp(prefix="bpr-embedded-"))
    folder.chmod(0o755)
    return folder


def clean_away(folder: Path) -> None:
    """Stop the server of each data folder below, then remove all of it."""
    for pid_file in folder.rglob("postmaster.pid"):
        embedded.stop(pid_file.parent)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can enter; what runs below it is stopped at the end."""
    folder = make_place()
    try:
        yield folder
    finally:
        clean_away(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[embedded.Server]:
    """One running server for the tests that only look; its path has a space in it and is long."""
    folder = make_place()
    try:
        yield embedded.start(folder / "a folder" / ("long" * 40) / "pg", parameters=FAST)
    finally:
        clean_away(folder)


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    """A data folder that was started and stopped once, to copy from: faster than making one for every test."""
    folder = make_place()
    try:
        embedded.start(folder / "pg", parameters=FAST)
        embedded.stop(folder / "pg")
        yield folder / "pg"
    finally:
        clean_away(folder)


@pytest.fixture
def data_dir(initialised: Path, place: Path) -> Path:
    """A data folder of one's own that is there already."""
    subprocess.run(["cp", "-a", initialised, place / "pg"], check=True)
    return place / "pg"


@pytest.fixture
def sockets(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all socket folders, for this test one of its own."""
    folder = place / "sockets"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(embedded, "_SOCKETS", folder)
    return folder


def ask(server: embedded.Server, query: str, database: str = "postgres") -> object:
    with psycopg.connect(server.url(database)) as connection:
        row = connection.execute(query).fetchone()  # type: ignore[call-overload, unused-ignore]
    return row[0] if row else None


def owner() -> embedded._Account:
    return embedded._account()


def as_user(name: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as another OS user, with a clean environment."""
    user = pwd.getpwnam(name)
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env={"PATH": os.defpath, **variables},
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        timeout=60,
    )


# --- start, stop, start again ---------------------------------------------------------------------------------------


def test_the_url_leads_to_a_superuser_and_to_any_database_name(server: embedded.Server) -> None:
    name = "a b/c?d=ü%"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    assert ask(server, "SELECT current_setting('is_superuser')") == "on"
    assert ask(server, "SELECT current_database()", name) == name


def test_it_is_utf8_ordered_by_bytes_and_lives_in_utc(server: embedded.Server) -> None:
    assert ask(server, "SHOW server_encoding") == "UTF8"
    assert ask(server, "SELECT array_agg(x ORDER BY x) FROM unnest(ARRAY['ä', 'b', 'B', 'a']) x") == [
        "B",
        "a",
        "b",
        "ä",
    ]
    assert ask(server, "SELECT upper('ä')") == "Ä"
    assert ask(server, "SHOW TimeZone") == "UTC"


def test_a_running_server_is_returned_as_it_is(server: embedded.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGHOST": "elsewhere.invalid", "PGPORT": "1", "PGDATA": "/nowhere", "PGUSER": "x"}.items():
        monkeypatch.setenv(name, value)  # the caller's variables are for the caller's own database
    assert embedded.start(server.data_dir, parameters={"work_mem": "1MB"}) == server
    assert embedded.find_running(server.data_dir) == server


def test_a_restart_keeps_the_data_and_stop_says_whether_it_ran(place: Path) -> None:
    data_dir = place / "pg"
    assert embedded.find_running(data_dir) is None
    assert embedded.stop(data_dir) is False
    first = embedded.start(data_dir, parameters={**FAST, "cluster_name": 'it\'s "$HOME" \\ here'})
    assert ask(first, "SHOW cluster_name") == 'it\'s "$HOME" \\ here'
    with psycopg.connect(first.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with psycopg.connect(first.url()):  # it does not wait for those who are connected
        assert embedded.stop(data_dir) is True
    assert embedded.stop(data_dir) is False
    assert embedded.find_running(data_dir) is None
    assert not first.socket_dir.exists()
    second = embedded.start(data_dir)
    assert second.pid != first.pid
    assert ask(second, "SELECT answer FROM kept") == 42
    assert ask(second, "SHOW cluster_name") == ""


def test_processes_that_start_at_once_get_one_server_that_outlives_them(place: Path) -> None:
    command = [sys.executable, "-c", START, str(place / "pg")]
    starters = [
        subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(3)
    ]
    # communicate() would wait for ever if the server held their pipes open
    pids = {int(starter.communicate(timeout=60)[0]) for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0]
    found = embedded.find_running(place / "pg")
    assert found is not None
    assert pids == {found.pid}
    assert os.getsid(found.pid) not in {starter.pid for starter in starters}  # so their terminal's Ctrl-C misses it
    assert ask(found, "SELECT 1") == 1


# --- closed to everybody else ---------------------------------------------------------------------------------------


def test_nothing_listens_on_tcp(server: embedded.Server) -> None:
    assert ask(server, "SHOW listen_addresses") == ""
    held = embedded._run(["ls", "-l", f"/proc/{server.pid}/fd"], owner()).stdout
    assert "socket:[" in held  # its unix socket, that is: we can see
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = Path(table).read_text().splitlines()[1:] if Path(table).exists() else []
        assert not [row for row in rows if f"socket:[{row.split()[9]}]" in held]


def test_every_connection_has_to_prove_who_it_is(server: embedded.Server) -> None:
    rules = "SELECT array_agg(concat_ws(' ', type, database, user_name, auth_method, options)) FROM pg_hba_file_rules"
    assert ask(server, rules) == ["local {all} {postgres} peer {map=bpr_etl}", "local {all} {all} scram-sha-256"]
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE ROLE other LOGIN SUPERUSER")
    with pytest.raises(psycopg.OperationalError, match="no password"):
        psycopg.connect(server.url(), user="other")


def test_who_may_connect_is_said_anew_at_every_start(data_dir: Path) -> None:
    """What an older version of ours wrote, or somebody added, does not stay."""
    rules = data_dir / "pg_hba.conf"
    rules.write_text("# Written by bpr-etl, some other version.\nlocal all all trust\n")
    started = embedded.start(data_dir, parameters=FAST)
    assert ask(started, "SELECT array_agg(auth_method) FROM pg_hba_file_rules") == ["peer", "scram-sha-256"]


def test_the_socket_lies_in_a_short_folder_that_only_its_owner_can_enter(server: embedded.Server) -> None:
    assert len(os.fsencode(server.socket_dir / f"{embedded._SOCKET_NAME}.lock")) < 100
    for folder in (server.socket_dir, server.socket_dir.parent):
        assert stat.S_IMODE(folder.lstat().st_mode) == 0o700
        assert folder.lstat().st_uid == owner().pw_uid
    assert stat.S_IMODE((server.socket_dir / embedded._SOCKET_NAME).stat().st_mode) == 0o700


@as_root
def test_another_user_of_the_machine_can_not_connect(server: embedded.Server) -> None:
    psql = embedded._programs(owner()).path("psql")
    mine = as_user(owner().pw_name, psql, server.url(), "-Atc", "SELECT 'in'")
    theirs = as_user("nobody", psql, server.url(), "-Atc", "SELECT 'in'")
    assert mine.stdout == "in\n"
    assert theirs.returncode != 0
    assert "Permission denied" in theirs.stderr


def a_symbolic_link(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    os.chown(folder.parent / "elsewhere", owner().pw_uid, owner().pw_gid)
    folder.symlink_to(folder.parent / "elsewhere")


def open_to_the_group(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, owner().pw_uid, owner().pw_gid)
    folder.chmod(0o710)


def somebody_elses(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    if not IS_ROOT:
        pytest.skip("only root can make a folder for somebody else")
    os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)


def a_file(folder: Path) -> None:
    folder.touch(mode=0o600)
    os.chown(folder, owner().pw_uid, owner().pw_gid)


@pytest.mark.parametrize("lay", [a_symbolic_link, open_to_the_group, somebody_elses, a_file])
def test_a_socket_folder_that_is_not_ours_alone_is_refused(
    lay: Callable[[Path], None], place: Path, sockets: Path
) -> None:
    lay(sockets / f"bpr-etl-{owner().pw_uid}")
    with pytest.raises(ConnectError, match="alone"):
        embedded.start(place / "pg")
    assert not (place / "pg").exists()


def test_parameters_can_not_open_it(data_dir: Path) -> None:
    opening = {"listen_addresses": "*", "unix_socket_permissions": "0777", "unix_socket_group": "nogroup"}
    started = embedded.start(data_dir, parameters=FAST | opening)
    shown = {name: ask(started, f"SHOW {name}") for name in opening}
    assert shown == {"listen_addresses": "", "unix_socket_permissions": "0700", "unix_socket_group": ""}


# --- after a crash --------------------------------------------------------------------------------------------------


def test_after_a_kill_it_starts_again_with_all_that_was_committed(data_dir: Path) -> None:
    killed = embedded.start(data_dir, parameters={"shared_buffers": "16MB"})
    with psycopg.connect(killed.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(killed.pid, signal.SIGKILL)
    while embedded._is_postmaster_of(killed.pid, killed.data_dir):
        time.sleep(0.01)
    assert embedded.find_running(killed.data_dir) is None
    assert (killed.data_dir / "postmaster.pid").exists()
    assert ask(embedded.start(killed.data_dir, parameters=FAST), "SELECT answer FROM kept") == 42


def test_children_of_a_killed_server_are_waited_for(data_dir: Path) -> None:
    """They write on for a moment: a second server beside them would spoil the data."""
    killed = embedded.start(data_dir, parameters=FAST)
    child = ask(killed, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    assert isinstance(child, int)
    os.kill(child, signal.SIGSTOP)
    ends = threading.Event()

    def resume() -> None:
        ends.set()
        os.kill(child, signal.SIGCONT)

    alarm = threading.Timer(1.0, resume)
    alarm.start()
    try:
        os.kill(killed.pid, signal.SIGKILL)
        while embedded._is_postmaster_of(killed.pid, data_dir):
            time.sleep(0.01)
        started = embedded.start(data_dir, parameters=FAST)
        assert ends.is_set()
        assert ask(started, "SELECT 1") == 1
    finally:
        alarm.join()


def test_a_process_id_that_is_somebody_elses_by_now_does_not_hinder(data_dir: Path) -> None:
    """In a container the ids begin anew with every start: the old server's belongs to anything of the same user."""
    killed = embedded.start(data_dir, parameters=FAST)
    lock_files = [killed.data_dir / "postmaster.pid", killed.socket_dir / f"{embedded._SOCKET_NAME}.lock"]
    texts = [file.read_text() for file in lock_files]
    embedded.stop(killed.data_dir)
    embedded._socket_dir(killed.data_dir, owner())
    sleeper = subprocess.Popen(["sleep", "60"], user=owner().pw_uid if IS_ROOT else None)
    try:
        for file, text in zip(lock_files, texts, strict=True):
            file.write_text(text.replace(str(killed.pid), str(sleeper.pid), 1))
        assert embedded.find_running(killed.data_dir) is None
        assert embedded.stop(killed.data_dir) is False
        assert ask(embedded.start(killed.data_dir, parameters=FAST), "SELECT 1") == 1
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_server_whose_data_folder_was_deleted_makes_room_for_a_new_one(data_dir: Path) -> None:
    lost = embedded.start(data_dir, parameters=FAST)
    shutil.rmtree(data_dir)
    found = embedded.start(data_dir, parameters=FAST)
    assert found.pid != lost.pid
    assert not embedded._is_postmaster_of(lost.pid, lost.data_dir)
    assert ask(found, "SELECT 1") == 1


def test_an_interrupted_first_start_leaves_nothing_that_passes_for_data(place: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", START, str(place / "pg")], cwd=REPOSITORY)
    deadline = time.monotonic() + 120
    while not list(place.glob(".pg.init-*/PG_VERSION")) and time.monotonic() < deadline:
        time.sleep(0.002)
    starter.kill()
    starter.wait()
    (left,) = place.glob(".pg.init-*")
    assert not (place / "pg").exists()
    assert ask(embedded.start(place / "pg", parameters=FAST), "SELECT 1") == 1
    assert not left.exists() or not (left / "postmaster.pid").exists()


# --- folders that can't be used -------------------------------------------------------------------------------------


def test_a_folder_with_other_things_in_it_is_left_alone(place: Path) -> None:
    (place / "pg").mkdir()
    (place / "pg" / "letter.txt").write_text("dear")
    with pytest.raises(SettingsError, match="not empty"):
        embedded.start(place / "pg")
    assert [each.name for each in (place / "pg").iterdir()] == ["letter.txt"]


def test_the_data_of_another_major_version_is_named(place: Path) -> None:
    (place / "pg").mkdir()
    (place / "pg" / "PG_VERSION").write_text("15\n")
    with pytest.raises(SettingsError, match="by PostgreSQL 15, and this is 18"):
        embedded.start(place / "pg")


def test_the_data_of_another_postgresql_is_left_alone(place: Path) -> None:
    """Somebody names the machine's own production database by mistake: we must not rewrite who may connect there."""
    data_dir = place / "pg"
    data_dir.mkdir()
    (data_dir / "PG_VERSION").write_text(f"{embedded._wheel_programs().version[0]}\n")
    (data_dir / "pg_hba.conf").write_text("local all all peer\n")
    os.chown(data_dir, owner().pw_uid, owner().pw_gid)
    with pytest.raises(SettingsError, match="not made by bpr-etl"):
        embedded.start(data_dir)
    assert (data_dir / "pg_hba.conf").read_text() == "local all all peer\n"


@as_root
def test_the_data_of_another_user_is_left_alone(place: Path) -> None:
    data_dir = place / "pg"
    data_dir.mkdir(mode=0o700)
    (data_dir / "PG_VERSION").write_text(f"{embedded._wheel_programs().version[0]}\n")
    with pytest.raises(SettingsError, match=f"does not belong to {owner().pw_name}"):
        embedded.start(data_dir)


def test_a_parent_that_the_server_can_not_enter_is_named_and_stays_closed(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir()
    closed.chmod(0o700 if IS_ROOT else 0o600)
    with pytest.raises(SettingsError, match=rf"can't enter {closed}: .*--data-dir"):
        embedded.start(closed / "deeper" / "pg")
    assert stat.S_IMODE(closed.stat().st_mode) == (0o700 if IS_ROOT else 0o600)
    closed.chmod(0o700)
    assert not list(closed.iterdir())


@pytest.mark.parametrize("below", ["file/pg", "file"])
def test_a_file_in_the_way_is_named(below: str, place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(SettingsError, match=f"{place / 'file'}"):
        embedded.start(place / below)


@pytest.mark.parametrize("name", ["$HOME", "a`b`", 'say "x"', "back\\slash", "two\nlines"])
def test_a_path_that_pg_ctl_would_give_to_a_shell_unquoted_is_refused(name: str, place: Path) -> None:
    with pytest.raises(SettingsError, match="choose another"):
        embedded.start(place / name)


def test_a_start_that_fails_says_why_and_where_to_read_on(data_dir: Path) -> None:
    with pytest.raises(ConnectError, match=r"shared_buffers.*server\.log"):
        embedded.start(data_dir, parameters={"shared_buffers": "plenty"})
    assert embedded.find_running(data_dir) is None


# --- who runs it, and from where ------------------------------------------------------------------------------------


@as_root
def test_programs_that_others_can_not_reach_run_from_a_copy(
    place: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = embedded._wheel_folder()
    closed = place / "venv"
    closed.mkdir(mode=0o700)
    programs = embedded._wheel_programs().folder
    shutil.copytree(programs, closed / wheel.name / programs.name, symlinks=True)
    shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), closed / f"{wheel.name}.libs")
    monkeypatch.setattr(embedded, "_wheel_folder", lambda: closed / wheel.name)
    monkeypatch.setattr(embedded, "_STATE", place / "state")
    started = embedded.start(data_dir, parameters=FAST)
    (copy,) = (place / "state").iterdir()
    assert Path(f"/proc/{started.pid}/cmdline").read_text().startswith(f"{copy}/")
    assert copy.stat().st_uid == 0
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    embedded.stop(data_dir)
    made = copy.stat().st_ctime_ns
    embedded.start(data_dir, parameters=FAST)
    assert [(each, each.stat().st_ctime_ns) for each in (place / "state").iterdir()] == [(copy, made)]


@as_root
def test_an_ordinary_user_has_a_server_of_their_own(place: Path) -> None:
    wheel = embedded._wheel_folder()
    needed = [str(wheel), str(REPOSITORY / "etl" / "postgres" / "embedded.py")]
    if any(as_user("nobody", "test", "-r", path).returncode for path in needed):
        pytest.skip("the repository or the wheel lies where an ordinary user can't read it")
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    python = next((each for each in (sys.executable, "/usr/bin/python3") if can_run("nobody", each, "-c", check)), None)
    if python is None:
        pytest.skip("no Python 3.11 here that an ordinary user can run")
    home = place / "home"
    home.mkdir(mode=0o700)
    os.chown(home, pwd.getpwnam("nobody").pw_uid, -1)
    program = """
import os, subprocess
from etl.postgres import embedded
folder = embedded.default_data_dir(os.environ)
server = embedded.start(folder, parameters={"fsync": "off"})
try:
    assert embedded.start(folder) == server
    psql = embedded._wheel_programs().path("psql")
    subprocess.run([psql, server.url(), "-Atc", "SELECT current_user, 1 + 1"], check=True)
    print(folder, os.stat(f"/proc/{server.pid}").st_uid, flush=True)
finally:
    assert embedded.stop(folder)
"""
    path = os.pathsep.join([str(REPOSITORY), str(wheel.parent)])
    done = as_user("nobody", python, "-c", program, PYTHONPATH=path, HOME=str(home), PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    expected = home / ".local" / "share" / "bpr-etl" / "postgres"
    assert done.stdout.split() == ["postgres|2", str(expected), str(pwd.getpwnam("nobody").pw_uid)]


def can_run(user: str, *command: str) -> bool:
    try:
        return as_user(user, *command).returncode == 0
    except PermissionError:
        return False


def test_the_default_folder_is_the_users_own_or_the_systems_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert embedded.default_data_dir({"HOME": "/root"}) == Path("/var/lib/bpr-etl/postgres")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert embedded.default_data_dir({"HOME": "/h"}) == Path("/h/.local/share/bpr-etl/postgres")
    assert embedded.default_data_dir({"HOME": "/h", "XDG_DATA_HOME": "/x"}) == Path("/x/bpr-etl/postgres")
    assert embedded.default_data_dir({"HOME": "/h", "XDG_DATA_HOME": "x"}) == Path("/h/.local/share/bpr-etl/postgres")
    with pytest.raises(SettingsError, match="--data-dir"):
        embedded.default_data_dir({})


def test_a_user_id_without_a_name_is_refused_in_plain_words(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000_123)
    with pytest.raises(SettingsError, match="4000000123 has no name"):
        embedded.start(place / "pg")


def test_root_without_a_user_to_run_as_creates_one_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    entries: dict[str, pwd.struct_passwd] = {}
    calls: list[list[str]] = []

    def refused(command: list[str]) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "useradd: cannot lock /etc/passwd\n")

    def creating(command: list[str]) -> subprocess.CompletedProcess[str]:
        entries["bpr-etl"] = pwd.struct_passwd(("bpr-etl", "x", 990, 991, "", "/", "/usr/sbin/nologin"))
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(embedded, "_user_by_name", entries.get)
    monkeypatch.setattr(embedded, "_run", refused)
    with pytest.raises(SettingsError, match="cannot lock /etc/passwd"):
        embedded._account()
    assert calls[0][0] == "useradd"
    monkeypatch.setattr(embedded, "_run", creating)
    assert embedded._account() == entries["bpr-etl"]


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr(embedded, "_WHEEL", "a_package_that_is_not_there")
    monkeypatch.setattr(embedded, "_account", lambda: pytest.fail("a user is looked for, and may be created"))
    with pytest.raises(SettingsError, match=re.escape("pip install 'bpr-etl[demo]'")):
        embedded.start(place / "pg")
