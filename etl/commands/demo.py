"""The database of `demo`: an embedded PostgreSQL with a new synthetic world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from etl.pipeline import database
from etl.postgres import embedded
from etl.postgres.connection import connect
from etl.postgres.naming import quote_identifier
from etl.postgres.url import parse_url
from etl.runtime.cancellation import CancelToken
from etl.settings.model import Settings

DATABASE = "bpr_etl_demo"


@dataclass(frozen=True)
class DemoDatabase:
    """The running server with the synthetic world: settings for it, its URL and its data folder."""

    settings: Settings
    url: str
    data_dir: Path

    def next_steps(self, command: str) -> list[str]:
        """Return the lines that say what to try next. `command` is how bpr-etl was called."""
        newest = f"{self.settings.out}/snapshots/$(cat {self.settings.out}/LATEST)"
        return [
            "Where to look:",
            f"  the newest snapshot   {newest}",
            f"  a browser             {newest}/report.html",
            f"  check its files       {command} validate --snapshot {self.settings.out}",
            f"  training value        {command} probe {self.settings.out}",
            f"  the database          {command} db start --data-dir {self.data_dir}",
            f"                        psql '{self.url}'",
        ]


@contextmanager
def demo_database(
    settings: Settings, stop: CancelToken | None = None, rows: Callable[[int], object] = lambda _rows: None
) -> Iterator[DemoDatabase]:
    """Provide the embedded PostgreSQL with a new synthetic world. Stopped at the end unless `db start` started it.

    Demos on the same data folder run one after the other. `rows` is called with the number of rows of each batch written.
    """
    data_dir = embedded.data_dir_of(settings)
    with embedded.shared_server(data_dir) as started:
        with connect(parse_url(started.url(), {}), stop) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(DATABASE)} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {quote_identifier(DATABASE)}")
        url = started.url(DATABASE)
        own = replace(settings, database_url=url, password_command=None, schema=None, naming="auto", environ={})
        database.synth(own, stop, rows)
        yield DemoDatabase(own, url, data_dir)
