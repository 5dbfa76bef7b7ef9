"""An object store for every test that asks for one: one server, because its authentication is the process's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest

from tests.object_store import Bucket, ObjectServer


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    yield server
    server.stop()


@pytest.fixture
def bucket(object_server, monkeypatch, tmp_path) -> Bucket:
    """A fresh bucket, and its credentials in the environment."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where a snapshot is staged on its way
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bucket = object_server.bucket()
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    return bucket
