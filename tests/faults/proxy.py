"""A TCP proxy before a PostgreSQL that knows where a message begins, and cuts, stalls or delays where it is told to.

One thread a direction, messages are passed on whole. Plain text only, which is what the tests' own server speaks.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

_SSL, _GSS, _CANCEL = 80877103, 80877104, 80877102

Message = tuple[str, bytes]
"""Who sends it (`client` or `server`), and its bytes, the type's letter first; a startup packet has the letter 0."""

Verdict = str | None
"""What happens to a message: None goes on, `cut` is lost with its connection, `pass and cut` is the last one that arrives."""


@dataclass
class Proxy:
    """Between a client and the server that a URL names; `evaluate` says for each message what becomes of it."""

    target: str
    judge: Callable[[Message], Verdict] = lambda _: None
    delay: float = 0.0
    port: int = 0
    open: threading.Event = field(default_factory=threading.Event)
    seen: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    messages: int = 0
    cuts: int = 0
    refusing: bool = False
    _sockets: list[socket.socket] = field(default_factory=list)

    def url(self, url: str) -> str:
        """A URL of the server as one through the proxy."""
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        return f"postgresql://{user}@127.0.0.1:{self.port}{parts.path}"

    def stall(self) -> None:
        """Nothing passes until `open` is set again."""
        self.open.clear()

    def _connect(self) -> socket.socket:
        parts = urlsplit(self.target)
        folder = parse_qs(parts.query).get("host", [""])[0]
        if folder:
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{folder}/.s.PGSQL.{parts.port or 5432}")
        else:
            server = socket.create_connection((parts.hostname, parts.port or 5432))
        return server

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if self.refusing:
                client.close()
                continue
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            # Messages are sent one by one: without this each waits for the one before to be acknowledged, 40 ms.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = client, server
            self._sockets += pair
            for name, source, sink in (("client", client, server), ("server", server, client)):
                threading.Thread(target=self._pump, args=(name, source, sink, pair), daemon=True).start()

    def _pump(
        self, name: str, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        try:
            for message in _messages(name, source):
                self.open.wait()
                if self.delay:
                    time.sleep(self.delay)
                self.messages = next(self.seen)
                verdict = self.judge((name, message))
                if verdict != "cut":
                    sink.sendall(message.removeprefix(b"\0"))
                if verdict is not None:
                    self.cuts += 1
                    break
        except OSError:
            pass
        finally:
            _close(*pair)

    def cut_all(self) -> None:
        """Cut every connection that there is."""
        _close(*self._sockets)


def _messages(name: str, source: socket.socket) -> Iterator[bytes]:
    """Messages as they arrive: the client's first ones have no letter, nor have the server's answers to SSLRequest."""
    if name == "client":
        while True:
            size = _exactly(source, 4)
            body = _exactly(source, int.from_bytes(size) - 4)
            yield b"\0" + size + body
            if int.from_bytes(body[:4]) not in (_SSL, _GSS):
                break
    else:
        first = _exactly(source, 1)
        while first == b"N":  # no TLS here; a notice can't be the first thing that a server says
            yield first
            first = _exactly(source, 1)
        size = _exactly(source, 4)
        yield first + size + _exactly(source, int.from_bytes(size) - 4)
    while True:
        letter = _exactly(source, 1)
        size = _exactly(source, 4)
        yield letter + size + _exactly(source, int.from_bytes(size) - 4)


def _exactly(source: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        some = source.recv(min(size - len(found), 1 << 20))
        if not some:
            raise ConnectionResetError
        found += some
    return bytes(found)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            each.close()


@contextmanager
def proxy(url: str, **options: object) -> Iterator[Proxy]:
    """A proxy before the server of a URL, on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Proxy(url, port=listener.getsockname()[1], **options)
        made.open.set()
        threading.Thread(target=made.serve, args=(listener,), daemon=True).start()
        try:
            yield made
        finally:
            made.open.set()
            made.cut_all()


def is_commit(message: Message) -> bool:
    """Whether a client asks for COMMIT."""
    name, content = message
    return name == "client" and content[:1] == b"Q" and content[5:].upper().startswith(b"COMMIT")


def is_commit_reply(message: Message) -> bool:
    """Whether the server says that a COMMIT is done."""
    name, content = message
    return name == "server" and content[:1] == b"C" and content[5:].startswith(b"COMMIT")


def is_copy_data(message: Message) -> bool:
    """Whether a client sends rows of a COPY."""
    name, content = message
    return name == "client" and content[:1] == b"d"
