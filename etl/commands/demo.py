"""The parts of `demo`: an embedded PostgreSQL with a new synthetic world, the comparison of negatives, and their removal."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from etl.commands.terminal.console import TextTable
from etl.pipeline import database
from etl.postgres import embedded
from etl.postgres.connection import connect
from etl.postgres.naming import quote_identifier
from etl.postgres.url import parse_url
from etl.reporting.wording import format_interval
from etl.runtime.cancellation import CancelToken
from etl.settings.model import Settings
from etl.settings.values import RECOMMENDED
from etl.snapshots.stores.locations import is_url

DATABASE = "bpr_etl_demo"
_MARK = ".bpr-etl-demo"
"""A file in an --out folder that `demo` made. Only such a folder is removed."""

_USED = f"""
SELECT (EXISTS (SELECT FROM pg_database WHERE NOT datistemplate AND datname NOT IN ('postgres', '{DATABASE}'))
    OR EXISTS (SELECT FROM pg_class WHERE relnamespace NOT IN
        (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_' OR nspname = 'information_schema')))::int
"""
"""Whether a server holds anything besides the demo's database."""


@dataclass(frozen=True)
class DemoDatabase:
    """The running server with the synthetic world: settings for it, its URL and its data folder."""

    settings: Settings
    url: str
    data_dir: Path

    def next_steps(self, command: str) -> list[str]:
        """Return the lines that say what is left and what to try next. `command` is how bpr-etl was called."""
        out, folder = self.settings.out, f" --data-dir {self.data_dir}" if self.settings.data_dir else ""
        return [
            "Left on disk:",
            f"  {out} and {recommended_out(out)}: the snapshots, each with a report.html",
            f"  {self.data_dir}: PostgreSQL, stopped",
            f"  {command} demo --out {out}{folder} --remove",
            "Where to look:",
            f"  {command} probe {recommended_out(out)} --verbose",
            f"  {command} diff {out} {recommended_out(out)}",
            f"  {command} validate --snapshot {out}",
            f"  {command} db start{folder}",
            f"  psql '{self.url}'",
        ]


def recommended_out(out: str) -> str:
    """Return where `demo` publishes the triples with recommended negatives."""
    return f"{out.rstrip('/')}-{RECOMMENDED}"


def mark_new(out: str) -> None:
    """Create an --out folder with the demo's mark, unless there is a folder with something in it."""
    folder = Path(out)
    if not is_url(out) and not (folder.exists() and any(folder.iterdir())):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).touch()


def comparison(design: Mapping[str, Any], recommended: Mapping[str, Any]) -> list[RenderableType | str]:
    """Return two probes of the same events side by side, and what follows from them."""
    rows = {
        "negatives: ranking, the design's": design["rankings"]["model"]["all"],
        "popularity by users, untrained": design["rankings"]["popularity_by_users"]["all"],
        f"negatives: {RECOMMENDED}": recommended["rankings"]["model"]["all"],
    }
    table = TextTable("\nThe same events with two kinds of negatives: the probe's models", "ranking", "AUC", "NDCG@10")
    for name, found in rows.items():
        table.add_row(name, format_interval(found["auc"]), format_interval(found["ndcg_at_10"]))
    default, popular, better = ([found[key]["mean"] for key in ("auc", "ndcg_at_10")] for found in rows.values())
    lines: list[RenderableType | str] = [table]
    if default < popular:
        lines.append(
            "With the design's negatives, the model ranks held-out items worse than popularity, which needs no "
            "training: that is why a run warns."
        )
    if better > max(default, popular):
        lines.append(f"Take --negatives {RECOMMENDED}: from the same events, it trains the better model.")
    return lines


def remove(settings: Settings) -> tuple[list[str], list[str]]:
    """Remove what demos left: the folders that they made, their database, and the server's data if it holds nothing else.

    Returns what was removed and what stays, a line each.
    """
    removed, kept = [], []
    for out in (settings.out, recommended_out(settings.out)):
        if not is_url(out) and (Path(out) / _MARK).exists():
            shutil.rmtree(out)
            removed.append(out)
        elif is_url(out) or Path(out).exists():
            kept.append(f"{out}: it was not made by demo")
    data_dir = embedded.data_dir_of(settings)
    if not data_dir.exists():
        return removed, kept
    runs = embedded.find_running(data_dir) is not None
    with embedded.shared_server(data_dir) as server, connect(parse_url(server.url(), {})) as connection:
        used = connection.fetch_int(_USED)
        connection.execute(f"DROP DATABASE IF EXISTS {quote_identifier(DATABASE)} WITH (FORCE)")
    if runs or used:
        kept.append(f"{data_dir}: {'PostgreSQL runs there' if runs else 'it holds other tables or databases'}")
        removed.append(f"the database {DATABASE}")
    else:
        shutil.rmtree(data_dir)
        removed.append(str(data_dir))
    return removed, kept


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
