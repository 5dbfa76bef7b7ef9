"""A PostgreSQL that lets nobody in without TLS and a password, or a client's certificate: the distribution's own server.

The embedded one is built without OpenSSL. It listens on 127.0.0.1 alone, on a port that was free, for as long as a block.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.faults.calling import call, said

ROLE, PASSWORD, DATABASE = "planner", "p/l@n:n%e?r #1", "planner db"
CERTIFIED = "certified"
_VERSIONS = Path("/usr/lib/postgresql")
_WAIT = "60"


@dataclass(frozen=True)
class TlsServer:
    """A server that runs, and the files of those who may trust it or be trusted."""

    port: int
    folder: Path

    def url(
        self, host: str = "localhost", *, password: str | None = PASSWORD, role: str = ROLE, **parameters: str
    ) -> str:
        """URL of the database by this name of the host; a parameter's `_` stands as it is."""
        secret = "" if password is None else f":{quote(password, safe='')}"
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters.items())
        return f"postgresql://{role}{secret}@{host}:{self.port}/{quote(DATABASE)}?{query}"

    def file(self, name: str) -> str:
        """Path of a certificate or key: ca.crt, other-ca.crt, client.crt, client.key."""
        return str(self.folder / name)

    def admin(self, sql: str) -> str:
        """What the superuser's query gives, asked over the unix socket."""
        command = [
            "psql",
            "-X",
            "-h",
            str(self.folder),
            "-p",
            str(self.port),
            "-U",
            "postgres",
            "-d",
            DATABASE,
            "-Atc",
            sql,
        ]
        return _run(_programs() / "psql", *command[1:]).strip()


@contextmanager
def tls_server() -> Iterator[TlsServer]:
    """The newest server that the distribution has here. Skips the test where it has none, or no openssl."""
    if not _programs().is_dir() or shutil.which("openssl") is None:
        pytest.skip(f"no PostgreSQL with TLS here: needs the distribution's in {_VERSIONS}, and openssl")
    # Not pytest's tmp_path: as root, the server's own OS user can't enter it. Short, for the socket in it.
    folder = Path(tempfile.mkdtemp(prefix="bpr-tls-"))
    try:
        if os.geteuid() == 0:
            os.chown(folder, _account().pw_uid, _account().pw_gid)
        _certificates(folder)
        server = TlsServer(_free_port(), folder)
        _initialise(server)
        _run(_programs() / "pg_ctl", "start", "-D", folder / "pg", "-w", "-t", _WAIT, "-l", folder / "log")
        try:
            server_databases(server)
            # who trusts and is trusted are our own processes, as whoever runs the tests
            folder.chmod(0o755)
            yield server
        finally:
            _run(_programs() / "pg_ctl", "stop", "-D", folder / "pg", "-w", "-t", _WAIT, "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    found = sorted(_VERSIONS.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else _VERSIONS / "none"


def _account() -> pwd.struct_passwd:
    """As whom it runs where we are root, as whom PostgreSQL refuses to run."""
    return pwd.getpwnam("postgres" if "postgres" in {user.pw_name for user in pwd.getpwall()} else "nobody")


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    user = {"user": _account().pw_uid, "group": _account().pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd or "/",
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
        **user,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _certificates(folder: Path) -> None:
    """Two authorities, of whom the server's is one; a certificate for `localhost`, and one for a client's role."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

    def openssl(*words: str) -> None:
        _run("openssl", *words, cwd=folder)

    for authority in ("ca", "other-ca"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.crt", "-subj", f"/CN={authority}"
        )

    def signed(name: str, subject: str, extensions: Sequence[str] = ()) -> None:
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}", *extensions)
        by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-copy_extensions", "copy"]
        openssl("x509", "-req", "-in", f"{name}.csr", *by, "-out", f"{name}.crt")
        (folder / f"{name}.key").chmod(0o600)

    signed("server", "localhost", ["-addext", "subjectAltName=DNS:localhost"])
    signed("client", CERTIFIED)
    if os.geteuid() == 0:  # libpq takes a key for its own user alone
        os.chown(folder / "client.key", 0, 0)


def _initialise(server: TlsServer) -> None:
    data = server.folder / "pg"
    fast = ["--no-sync", "--auth=peer", "--username=postgres", "--encoding=UTF8", "--locale=C"]
    _run(_programs() / "initdb", "-D", data, *fast)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(server.port),
        "unix_socket_directories": str(server.folder),
        "ssl": "on",
        "ssl_cert_file": server.file("server.crt"),
        "ssl_key_file": server.file("server.key"),
        "ssl_ca_file": server.file("ca.crt"),
        "password_encryption": "scram-sha-256",
        "fsync": "off",
        "log_connections": "on",
    }
    rules = [
        "local all postgres peer map=ours",
        f"hostssl all {CERTIFIED} 127.0.0.1/32 cert",
        "hostssl all all 127.0.0.1/32 scram-sha-256",
    ]
    owner = _account().pw_name if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with (data / "postgresql.conf").open("a") as file:
        file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
    (data / "pg_hba.conf").write_text("\n".join(rules) + "\n")
    (data / "pg_ident.conf").write_text(f'ours "{owner}" postgres\n')


def server_databases(server: TlsServer) -> None:
    """Two roles and a database of theirs."""
    psql = [
        _programs() / "psql",
        "-X",
        "-q",
        "-h",
        server.folder,
        "-p",
        str(server.port),
        "-U",
        "postgres",
        "-d",
        "postgres",
    ]
    secret = PASSWORD.replace("'", "''")
    _run(
        *psql,
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        f"CREATE ROLE {ROLE} LOGIN PASSWORD '{secret}'",
        "-c",
        f"CREATE ROLE {CERTIFIED} LOGIN IN ROLE {ROLE}",
        "-c",
        f'CREATE DATABASE "{DATABASE}" OWNER {ROLE}',
    )


@contextmanager
def tls_world() -> Iterator[TlsServer]:
    """A server with a small synthetic world in it."""
    with tls_server() as started:
        done = call("synth", "--scale", "0.01", "--database-url", started.url(sslmode="require"))
        assert done.returncode == 0, said(done)
        yield started
