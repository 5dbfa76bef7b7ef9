"""What every measurement needs: a server, a database of its own on it, an account of the circumstances, and results kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from etl.errors import SettingsError
from etl.postgres import embedded
from etl.postgres.connection import connect, transaction
from etl.postgres.ddl import quote_identifier
from etl.postgres.url import parse_url
from etl.runtime.resources import __version__
from etl.runtime.run_record import LIBRARIES

RESULTS = Path(__file__).resolve().parent / "results"


@contextmanager
def server(database_url: str | None) -> Iterator[Callable[[str], str]]:
    """A function from a database's name (empty: the one to connect to first) to its URL, on the server to use.

    That is the one of `database_url`, or the embedded one, which is stopped at the end if it was not running before.
    """
    if database_url is not None:
        yield lambda name: _with_database(database_url, name)
        return
    with embedded.shared_server(embedded.default_data_dir(os.environ)) as started:
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
    address = parse_url(url_of(""), {})
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


def circumstances(url: str | None = None) -> dict[str, Any]:
    """What a measurement depends on besides the code: versions, the server's (None without one), the machine."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {
        "tool": __version__,
        "libraries": libraries | {"python": platform.python_version()},
        "server": _server_version(url) if url is not None else None,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
    }


def _server_version(url: str) -> str:
    with connect(parse_url(url, {})) as connection:
        return str(connection.fetch_rows("SELECT current_setting('server_version')")[0][0])


def _field(path: str, name: str) -> str | None:
    """The first value of a field in one of the kernel's files; None where there is no such file or field."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return None
    values = (
        value.strip() for key, _, value in (row.partition(":") for row in text.splitlines()) if key.strip() == name
    )
    return next(values, None)


def said(made_with: Mapping[str, Any]) -> str:
    """The circumstances as a sentence."""
    libraries = ", ".join(f"{name} {number}" for name, number in made_with["libraries"].items())
    server = f", PostgreSQL {made_with['server']}" if made_with.get("server") else ""
    memory = f", {made_with['memory_mib'] / 1024:.0f} GiB" if "memory_mib" in made_with else ""
    cpu = f" ({made_with['cpu']})" if "cpu" in made_with else ""
    return f"bpr-etl {made_with['tool']}{server}, {made_with['cores']} cores{cpu}{memory}; {libraries}."


def variant(seconds: Sequence[float], peak_mib: float | None = None) -> dict[str, Any]:
    """One contestant's account, in the shape that all results share."""
    account: dict[str, Any] = {
        "seconds": [round(each, 4) for each in seconds],
        "median": round(statistics.median(seconds), 4),
    }
    return account | ({} if peak_mib is None else {"peak_mib": round(peak_mib, 1)})


def target(
    what: str, measured: float, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """Something to be reached, what was measured, and whether it is met. Exactly one bound is given."""
    if (at_most is None) == (at_least is None):
        raise ValueError("Give one bound, `at_most` or `at_least`.")
    met = measured <= at_most if at_most is not None else at_least is not None and measured >= at_least
    said_so = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"
    return {"what": what, "target": said_so, "measured": round(measured, 3), "met": met}


def targets_table(targets: Iterable[Mapping[str, Any]]) -> str:
    """The targets as a Markdown table."""
    lines = [line(("what", "target", "measured", "")), line(("---", "---:", "---:", "---"))]
    lines += [
        line((each["what"], each["target"], f"{each['measured']:,.2f}", "met" if each["met"] else "**missed**"))
        for each in targets
    ]
    return "\n".join(lines) + "\n"


def variants_table(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """The variants as a Markdown table: median, fastest and slowest round, and peak memory where it was measured."""
    lines = [line(("variant", "median, s", "rounds, s", "peak, MiB")), line(("---", "---:", "---:", "---:"))]
    for name, each in variants.items():
        rounds = f"{min(each['seconds']):.2f} to {max(each['seconds']):.2f} ({len(each['seconds'])})"
        peak = f"{each['peak_mib']:,.0f}" if "peak_mib" in each else ""
        lines.append(line((name, f"{each['median']:.2f}", rounds, peak)))
    return "\n".join(lines) + "\n"


def keep(name: str, results: Mapping[str, Any], head: str, text: str) -> None:
    """Write `results/<name>.json` and `<name>.md`: the head, the circumstances, the tables."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(f"{head}\n\n{said(results['made_with'])}\n\n{text}", encoding="utf-8")


PREFIX, SEED = "shadow-", 0
"""The prefix and the seed of every night that is measured: the defaults."""

SHADOW = f'SELECT u."id" FROM "User" u WHERE starts_with(u."email", \'{PREFIX}\')'
"""The shadow users' ids, in the databases that are made here (tables named by model)."""


def tidy(url: str) -> None:
    """What autovacuum does between two nights, and a checkpoint: so that each round finds what the one before it found."""
    with connect(parse_url(url, {})) as connection:
        connection.execute('VACUUM (ANALYZE) "PersonaDimension", "RankingEvent"')
        connection.execute("CHECKPOINT")


def reset_signals(url: str) -> None:
    """Everything to backfill again, in a table and indexes that grew row by row: what a first night finds.

    Neither after VACUUM, which leaves room for new versions on their own page, nor after VACUUM FULL, which packs the
    indexes so tightly that every page splits, does the UPDATE cost what it costs the first time.
    """
    names = '"id", "userId", "tripId", "slotId", "activityNodeId", "signalType"'
    with connect(parse_url(url, {})) as connection, transaction(connection):
        connection.execute(
            f'CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT {names}, CASE WHEN "userId" NOT IN ({SHADOW}) '
            'THEN "modelVersion" END AS "modelVersion" FROM "BehavioralSignal" ORDER BY ctid'
        )
        connection.execute('TRUNCATE "BehavioralSignal"')
        connection.execute(f'INSERT INTO "BehavioralSignal" ({names}, "modelVersion") SELECT * FROM kept')
    with connect(parse_url(url, {})) as connection:
        connection.execute('VACUUM (ANALYZE) "BehavioralSignal"')
    tidy(url)
