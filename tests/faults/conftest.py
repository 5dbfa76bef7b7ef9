"""What several of the fault suites start from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest


@pytest.fixture
def role(small_world) -> Iterator[tuple[str, str]]:
    """A role of one's own, and the URL to connect as it."""
    made = f"etl_{os.getpid()}"
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {made} LOGIN PASSWORD 'secret'")
    parts = urlsplit(small_world)
    host = parts.netloc.rpartition("@")[2]
    yield made, urlunsplit(parts._replace(netloc=f"{made}:secret@{host}"))
    with psycopg.connect(small_world, autocommit=True) as connection:
        for left in reversed(range(5)):  # a session of the role that is just ending may hold locks, too
            try:
                connection.execute(f"DROP OWNED BY {made}")
                break
            except psycopg.errors.DeadlockDetected:
                if not left:
                    raise
        connection.execute(f"DROP ROLE {made}")
