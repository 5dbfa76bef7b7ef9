"""Connection poolers before the tests' server: the real PgBouncer, and a small one of our own that runs everywhere.

Ours pools by transaction alone, last in first out, as PgBouncer does; it speaks plain text and needs no password.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg

from tests.faults.proxy import _SSL, _exactly, _messages

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@dataclass
class TransactionPool:
    """Gives each transaction of a client a server connection that is free, and takes it back when the transaction ends."""

    target: str
    ignores_options: bool
    port: int = 0
    free: list[socket.socket] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._client, args=(client,), daemon=True).start()

    def _client(self, client: socket.socket) -> None:
        server = None
        try:
            with client:
                messages = _messages("client", client)
                names = self._welcome(client, messages)
                while names is not None:
                    message = next(messages)
                    if message[:1] == b"X":
                        return
                    server = server or self._server(names)
                    server.sendall(message)
                    # What follows a Query, a Sync or the end of a COPY is the server's turn.
                    if message[:1] in b"QScf" and _answer(server, client) == b"I":
                        with self.lock:
                            self.free.append(server)
                        server = None
        except (OSError, StopIteration):
            pass
        finally:
            if server is not None:  # in the middle of a transaction: it ends with its session
                server.close()

    def _welcome(self, client: socket.socket, messages: Iterator[bytes]) -> dict[str, str] | None:
        for message in messages:
            code, body = int.from_bytes(message[5:9]), message[9:]
            if code != 196608:
                if code != _SSL:
                    return None
                client.sendall(b"N")
                continue
            words = body.rstrip(b"\0").decode().split("\0")
            names = dict(zip(words[::2], words[1::2], strict=True))
            if "options" in names and not self.ignores_options:
                text = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
                client.sendall(b"E" + struct.pack("!I", len(text) + 4) + text)
                return None
            client.sendall(b"R" + struct.pack("!II", 8, 0))
            for name, value in (("server_version", "18.0"), ("client_encoding", "UTF8"), ("integer_datetimes", "on")):
                text = f"{name}\0{value}\0".encode()
                client.sendall(b"S" + struct.pack("!I", len(text) + 4) + text)
            client.sendall(b"K" + struct.pack("!III", 12, 1, 1) + b"Z" + struct.pack("!I", 5) + b"I")
            return names
        return None

    def _server(self, names: dict[str, str]) -> socket.socket:
        with self.lock:
            if self.free:
                return self.free.pop()
        parts = urlsplit(self.target)
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.{parts.port or 5432}")
        body = struct.pack("!I", 196608) + f"user\0{names['user']}\0database\0{names['database']}\0\0".encode()
        server.sendall(struct.pack("!I", len(body) + 4) + body)
        while _message(server)[:1] != b"Z":
            pass
        return server


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    return head + _exactly(source, int.from_bytes(head[1:]) - 4)


def _answer(server: socket.socket, client: socket.socket) -> bytes:
    """Pass on what the server says until it is the client's turn; gives the transaction's state, empty within a COPY."""
    while True:
        message = _message(server)
        client.sendall(message)
        if message[:1] == b"Z":
            return message[5:6]
        if message[:1] == b"G":
            return b""


@contextmanager
def transaction_pool(url: str, *, ignores_options: bool) -> Iterator[str]:
    """The URL of a transaction pool before the server of a URL on a unix socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = TransactionPool(url, ignores_options, listener.getsockname()[1])
        threading.Thread(target=pool.serve, args=(listener,), daemon=True).start()
        try:
            yield _through(url, pool.port)
        finally:
            for server in pool.free:
                server.close()


@contextmanager
def pgbouncer(url: str, folder: Path, **settings: object) -> Iterator[str]:
    """The URL of a PgBouncer before the server of a URL on a unix socket, which it enters as the socket's owner."""
    socket_folder = Path(parse_qs(urlsplit(url).query)["host"][0])
    database = urlsplit(url).path[1:]
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    lines = {"listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "any"} | settings
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n{database} = host={socket_folder} dbname={database} user=postgres\n[pgbouncer]\n"
        + "".join(f"{name} = {value}\n" for name, value in lines.items())
    )
    # It refuses to run as root; `-u` has it give that up once it has read its file.
    more = ["-u", socket_folder.owner()] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [str(PGBOUNCER), *more, str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _until_it_answers(_through(url, port), process)
        yield _through(url, port)
    finally:
        process.terminate()
        process.communicate()


def _until_it_answers(url: str, process: subprocess.Popen[str]) -> None:
    for _ in range(100):
        with suppress(psycopg.OperationalError), psycopg.connect(url, prepare_threshold=None):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(process)


def _through(url: str, port: int) -> str:
    return f"postgresql://postgres@127.0.0.1:{port}{urlsplit(url).path}"
