"""The embedded server is nobody else's, and nobody's litter: whoever borrowed it, however they went."""

from __future__ import annotations

import pwd
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from etl.postgres import embedded
from tests.integration.postgres.test_embedded import FAST, as_root, as_user, clean_away, make_place, owner

REPOSITORY = Path(__file__).parents[2]
BORROW = """
import sys
from pathlib import Path
from etl.postgres import embedded

with embedded.shared_server(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data folder that is there, its server stopped, in a folder that everybody can enter."""
    folder = make_place()
    try:
        with embedded.shared_server(folder / "pg"):
            pass
        yield folder / "pg"
    finally:
        clean_away(folder)


@pytest.fixture
def borrow(data_dir: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Processes that borrow the server until they read a line or are killed; those left at the end go."""
    there: list[subprocess.Popen[str]] = []

    def process() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BORROW, str(data_dir)]
        there.append(
            subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        return there[-1]

    yield process
    for each in there:
        each.kill()
        each.communicate()
    embedded.stop(data_dir)


def served(borrower: subprocess.Popen[str]) -> int:
    """Wait until it has the server, and give the server's process id."""
    assert borrower.stdout is not None
    return int(borrower.stdout.readline())


def leave(borrower: subprocess.Popen[str]) -> None:
    borrower.communicate("\n", timeout=60)
    assert borrower.returncode == 0


def kill(borrower: subprocess.Popen[str]) -> None:
    borrower.kill()
    borrower.communicate()
    assert borrower.returncode == -signal.SIGKILL


# --- litter ---------------------------------------------------------------------------------------------------------


def test_what_a_killed_borrower_left_running_ends_with_the_next(data_dir, borrow, tally):
    first = borrow()
    server = served(first)
    kill(first)
    assert embedded.find_running(data_dir).pid == server  # nobody was left to stop it
    second = borrow()
    assert served(second) == server
    leave(second)
    assert embedded.find_running(data_dir) is None
    tally("borrowers of the embedded server killed")


def test_borrowers_take_turns_and_each_stops_what_it_used(data_dir, borrow, tally):
    """Two demonstrations at once: the second waits for the first, also for one that is killed."""
    first, second, third = borrow(), borrow(), borrow()
    for each in (first, second, third):
        assert each.stdout is not None
    waiting = {each.stdout: each for each in (first, second, third)}
    for end in (leave, kill, leave):
        ready, _, _ = select.select(list(waiting), [], [], 60)
        (turn,) = ready  # one at a time
        assert int(turn.readline()) == embedded.find_running(data_dir).pid
        end(waiting.pop(turn))
    assert embedded.find_running(data_dir) is None
    tally("borrowers of the embedded server killed")


def test_a_server_that_somebody_wants_stays_when_its_borrowers_go(data_dir, borrow):
    """`bpr-etl db start` while a demonstration is at work waits for its end, and then has a server that stays."""
    borrower = borrow()
    served(borrower)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(embedded.start, data_dir)
        time.sleep(0.5)
        assert not started.done()
        leave(borrower)
        server = started.result()
    later = borrow()
    assert served(later) == server.pid
    leave(later)
    assert embedded.find_running(data_dir) == server


def test_what_a_killed_borrower_left_running_can_be_kept(data_dir, borrow):
    killed = borrow()
    served(killed)
    kill(killed)
    server = embedded.start(data_dir)
    later = borrow()
    assert served(later) == server.pid
    leave(later)
    assert embedded.find_running(data_dir) == server


def test_stop_does_not_wait_for_a_borrower(data_dir, borrow):
    borrower = borrow()
    served(borrower)
    assert embedded.stop(data_dir)
    assert embedded.find_running(data_dir) is None
    leave(borrower)
    assert embedded.find_running(data_dir) is None


def test_a_start_that_fails_holds_nothing(data_dir, monkeypatch):
    def refused(*_: object) -> None:
        raise embedded.ConnectError("no")

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_launch", refused)
        with pytest.raises(embedded.ConnectError, match="no"), embedded.shared_server(data_dir):
            pass
    server = embedded.start(data_dir, parameters=FAST)
    with embedded.shared_server(data_dir) as found:
        assert found.pid == server.pid
    assert embedded.find_running(data_dir) is not None
    embedded.stop(data_dir)


def test_a_demonstration_that_is_killed_leaves_nothing_once_the_next_has_run(data_dir, tmp_path, tally, effort):
    if not effort(0, 1):
        pytest.skip("two demonstrations: tried by make test-faults")
    command = [sys.executable, "cli.py", "demo", "--scale", "0.03", "--data-dir", str(data_dir)]
    first = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    assert first.stderr is not None
    assert "Starting PostgreSQL" in first.stderr.readline()
    deadline = time.monotonic() + 60
    while embedded.find_running(data_dir) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.communicate()
    assert embedded.find_running(data_dir) is not None
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert embedded.find_running(data_dir) is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".bpr-etl-demo", "LATEST", "snapshots"]
    tally("borrowers of the embedded server killed")


# --- closed ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(data_dir: Path) -> Iterator[embedded.Server]:
    with embedded.shared_server(data_dir) as found:
        yield found


def processes_of(server: embedded.Server) -> set[int]:
    """The server's process and its children."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return {server.pid, *map(int, children)}


def sockets_of(pid: int) -> set[str]:
    """The numbers of the sockets that a process holds."""
    # by the server's own user: a container's root may not look at others' open files
    said = embedded._run(["ls", "-l", f"/proc/{pid}/fd"], owner()).stdout
    return {line.split("socket:[")[1].rstrip("]") for line in said.splitlines() if "socket:[" in line}


def listening_on_tcp() -> set[str]:
    """The numbers of all TCP sockets of this machine that wait for connections."""
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        rows = [row.split() for row in table.read_text().splitlines()[1:]] if table.exists() else []
        found |= {row[9] for row in rows if row[3] == "0A"}
    return found


def test_no_process_of_the_server_listens_on_tcp(server):
    with socket.create_server(("127.0.0.1", 0)) as ours, psycopg.connect(server.url()):
        seen = listening_on_tcp()
        assert str(Path(f"/proc/self/fd/{ours.fileno()}").readlink()).removeprefix("socket:[").rstrip("]") in seen
        held = {pid: sockets_of(pid) for pid in processes_of(server)}
        assert len(held) > 2
        assert held[server.pid]
        assert not set().union(*held.values()) & seen


@as_root
def test_another_user_can_reach_neither_socket_nor_data_nor_log(server, tally):
    nobody = pwd.getpwnam("nobody")
    assert owner().pw_uid != nobody.pw_uid
    looked_at = [
        server.socket_dir,
        server.socket_dir.parent,
        server.data_dir,
        server.data_dir / embedded._LOG_NAME,
        server.data_dir / "pg_hba.conf",
        server.socket_dir / embedded._SOCKET_NAME,
    ]
    for path in looked_at:
        command = ["ls", str(path)] if path.is_dir() else ["cat", str(path)]
        assert as_user("nobody", *command).returncode != 0, path
    knock = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    done = as_user("nobody", python, "-c", knock, str(server.socket_dir / embedded._SOCKET_NAME))
    assert "Permission denied" in done.stderr
    tally("doors of the embedded server tried as another user", len(looked_at) + 1)
