"""A real object store's protocol on loopback, signatures checked: moto's server with authentication switched on."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import boto3
import requests
from moto.server import ThreadedMotoServer

ALLOWED = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}


@dataclass
class Bucket:
    """A bucket of its own, and the environment in which its credentials are found."""

    name: str
    environ: dict[str, str]
    client: Any = field(repr=False)

    @property
    def out(self) -> str:
        return f"s3://{self.name}/nights/out"

    def objects(self) -> dict[str, bytes]:
        """Every object below `out`, by its path there."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix="nights/out/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key.removeprefix("nights/out/"): self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
            for key in keys
        }

    def state(self) -> dict[str, str]:
        """A digest of every object below `out`."""
        return {path: hashlib.sha256(content).hexdigest() for path, content in self.objects().items()}

    def unfinished(self) -> list[str]:
        """The keys of multipart uploads that were neither completed nor abandoned."""
        return [each["Key"] for each in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]


class ObjectServer:
    """The server, and the one key that it lets in."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        options = {"endpoint_url": self.endpoint, "region_name": "us-east-1"}
        iam = boto3.client("iam", aws_access_key_id="first", aws_secret_access_key="first", **options)  # noqa: S106
        iam.create_user(UserName="bpr")
        key = iam.create_access_key(UserName="bpr")["AccessKey"]
        iam.put_user_policy(UserName="bpr", PolicyName="s3", PolicyDocument=json.dumps(ALLOWED))
        self.environ = {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }
        self.client = boto3.client(
            "s3",
            aws_access_key_id=key["AccessKeyId"],
            aws_secret_access_key=key["SecretAccessKey"],
            **options,
        )
        # From now on every signature and every right is checked.
        requests.post(f"{self.endpoint}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()

    def bucket(self) -> Bucket:
        """A fresh bucket."""
        name = f"bpr-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return Bucket(name, self.environ, self.client)

    def stop(self) -> None:
        self._server.stop()


class Flaky:
    """A TCP forwarder on loopback that drops connections: those whose number `drops` names, after so many bytes of the reply."""

    def __init__(self, endpoint: str, drops: Callable[[int], bool], after: int = 0) -> None:
        parts = urlsplit(endpoint)
        self._target, self.drops, self._after = (parts.hostname, parts.port), drops, after
        self.connections = self.dropped = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self) -> None:
        """Take no more connections, and drop those that are open."""
        self._listener.close()
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(self._target)
            self._open += client, server
            drop = self.drops(self.connections)
            self.dropped += drop
            threading.Thread(target=_pump, args=(client, server, None), daemon=True).start()
            threading.Thread(target=_pump, args=(server, client, self._after if drop else None), daemon=True).start()


class Forgetful(ThreadingHTTPServer):
    """An HTTP forwarder on loopback that takes conditions (`if-none-match`, `if-match`) out of every PUT: a store that ignores them."""

    daemon_threads = True

    def __init__(self, endpoint: str, *conditions: str) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.target, self.conditions = urlsplit(endpoint).netloc, conditions
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        self.shutdown()
        self.server_close()


class _Forward(BaseHTTPRequestHandler):
    server: Forgetful
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is said of each request."""

    def _forward(self) -> None:
        ignored = self.server.conditions if self.command == "PUT" else ()
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ignored}
        there = http.client.HTTPConnection(self.server.target)
        there.request(self.command, self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))), headers)
        reply = there.getresponse()
        content = reply.read()
        self.send_response_only(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                self.send_header(name, value)
        self.send_header("Content-Length", reply.getheader("Content-Length") or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815 - the names that the base class looks for


def _pump(source: socket.socket, sink: socket.socket, room: int | None) -> None:
    """Pass on what comes, `room` bytes of it at most; then close both."""
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data if room is None else data[:room])
            if room is not None:
                break
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
