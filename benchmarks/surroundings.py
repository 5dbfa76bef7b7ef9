"""What every measurement needs: a server, a database of its own on it, and an account of the circumstances."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from etl import __version__, embedded
from etl.address import parse_address
from etl.database import connect
from etl.errors import SettingsError
from etl.journal import LIBRARIES
from etl.prisma import quote_identifier

RESULTS = Path(__file__).resolve().parent / "results"


@contextmanager
def server(database_url: str | None) -> Iterator[Callable[[str], str]]:
    """A function from a database's name (empty: the one to connect to first) to its URL, on the server to use.

    That is the one of `database_url`, or the embedded one, which is stopped at the end if it was not running before.
    """
    if database_url is not None:
        yield lambda name: _with_database(database_url, name)
        return
    with embedded.borrowed(embedded.default_data_dir(os.environ)) as started:
        yield lambda name: started.url(name) if name else started.url()


def _with_database(url: str, name: str) -> str:
    """The URL with another database in it."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise SettingsError("--database-url must look like postgresql://user:password@host:5432/database.")
    address, question, query = rest.partition("?")
    return f"{scheme}://{address.partition('/')[0]}/{name}{question}{query}" if name else url


@contextmanager
def fresh_database(url_of: Callable[[str], str], label: str) -> Iterator[str]:
    """URL of a new database, which goes at the end of the block. Its name is new, so nobody's database is dropped."""
    name = f"rd_bpr_etl_{label}_{uuid.uuid4().hex[:8]}"
    address = parse_address(url_of(""), {})
    with connect(address) as connection:
        connection.execute(f"CREATE DATABASE {quote_identifier(name)}")
    try:
        yield url_of(name)
    finally:
        with connect(address) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(name)} WITH (FORCE)")


def line(cells: Iterable[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def circumstances(url: str) -> dict[str, Any]:
    """What a measurement depends on besides the code: versions, the server's, cores."""
    with connect(parse_address(url, {})) as connection:
        server_version = str(connection.rows("SELECT current_setting('server_version')")[0][0])
    libraries = {name: version(name) for name in LIBRARIES}
    return {
        "tool": __version__,
        "libraries": libraries | {"python": platform.python_version()},
        "server": server_version,
        "cores": len(os.sched_getaffinity(0)),
    }


def said(made_with: Mapping[str, Any]) -> str:
    """The circumstances as a sentence."""
    libraries = ", ".join(f"{name} {number}" for name, number in made_with["libraries"].items())
    return f"bpr-etl {made_with['tool']}, PostgreSQL {made_with['server']}, {made_with['cores']} cores; {libraries}."
