"""The demonstration: an embedded PostgreSQL with the synthetic world in it, for as long as it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from etl.commands import database
from etl.postgres import embedded
from etl.postgres.connection import connect
from etl.postgres.ddl import quote_identifier
from etl.postgres.url import parse_url
from etl.runtime.cancellation import CancelToken
from etl.settings.model import Settings

DATABASE = "bpr_etl_demo"


@dataclass(frozen=True)
class DemoDatabase:
    """The server with the synthetic world: its settings, its URL, and where a person looks next."""

    settings: Settings
    url: str
    data_dir: Path

    def next_steps(self, command: str) -> list[str]:
        """What to try next, one command a line; `command` is how bpr-etl was called."""
        return [
            "Where to look:",
            f"  the newest snapshot   {self.settings.out}/$(cat {self.settings.out}/LATEST)".replace(
                "/$(", "/snapshots/$("
            ),
            f"  a browser             {self.settings.out}/snapshots/$(cat {self.settings.out}/LATEST)/report.html",
            f"  check its files       {command} validate --snapshot {self.settings.out}",
            f"  do they teach?        {command} probe {self.settings.out}",
            f"  the database          {command} db start --data-dir {self.data_dir}",
            f"                        psql '{self.url}'",
        ]


@contextmanager
def demo_database(
    settings: Settings, stop: CancelToken | None = None, rows: Callable[[int], object] = lambda _rows: None
) -> Iterator[DemoDatabase]:
    """The embedded PostgreSQL with a fresh synthetic world. Stopped at the end if it was not running before.

    `rows` is called with so many more as they are written.
    """
    data_dir = Path(settings.data_dir) if settings.data_dir else embedded.default_data_dir(settings.environ)
    with embedded.shared_server(data_dir) as started:
        with connect(parse_url(started.url(), {}), stop) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(DATABASE)} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {quote_identifier(DATABASE)}")
        url = started.url(DATABASE)
        own = replace(settings, database_url=url, schema=None, naming="auto", environ={})
        database.synth(own, stop, rows)
        yield DemoDatabase(own, url, data_dir)
