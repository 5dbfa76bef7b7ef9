"""Full runs at the design's size, 10 and 100 times that: growth of time and memory.

Each scale gets a new database with the synthetic world. The whole command runs in a process of its own: the first run, with
everything to backfill, and one further run. Results are saved after each scale, because the largest takes long.

    python -m benchmarks.run.scale [--database-url URL] [--scales 1 10 100] [--save]
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.harness.command import command_parser, with_exit_codes
from benchmarks.harness.database import fresh_database, server
from benchmarks.harness.measure import CommandResult, run_command
from benchmarks.harness.results import environment, save_results, table_row, target_entry, targets_table, variant_entry
from etl.postgres.connection import connect
from etl.postgres.url import parse_url

RUNS = ("first run", "further run")
MOST_EXPONENT, MOST_MIB, MOST_PER_ROW = 1.05, 2048, 1.1


def one_scale(url: str, scale: float, folder: Path) -> dict[str, Any]:
    """Fill the database, run twice, and return the measurements."""
    environment = os.environ | {"BPR_ETL_DATABASE_URL": url}
    filled = run_command([sys.executable, "cli.py", "synth", "--scale", f"{scale:g}", "--json"], environment)
    account: dict[str, Any] = {"scale": scale, "synth": _resources(filled)}
    contents = set()
    for run in RUNS:
        with connect(parse_url(url, {})) as connection:
            connection.execute("CHECKPOINT")
            log = connection.fetch_rows("SELECT pg_current_wal_insert_lsn()::text")[0][0]
        out = folder / run.replace(" ", "-")
        done = run_command([sys.executable, "cli.py", "run", "--json", "--out", str(out)], environment)
        answer = json.loads(done.answer)
        snapshot = Path(answer["snapshot"])
        contents.add(snapshot.name.split("-")[1])
        with connect(parse_url(url, {})) as connection:
            written = connection.fetch_int(
                f"SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{log}'::pg_lsn)::int8"
            )
        account[run] = _resources(done) | {
            "log_bytes": written,
            "steps": {step["step"]: step["seconds"] for step in answer["steps"]},
        }
        account.setdefault("rows", _rows(answer))  # the first run's: later ones have nothing to backfill
        account["snapshot_bytes"] = sum(file.stat().st_size for file in snapshot.rglob("*") if file.is_file())
    if len(contents) != 1:
        raise RuntimeError(f"Two runs at scale {scale:g} published different bytes.")
    with connect(parse_url(url, {})) as connection:
        account["database_bytes"] = connection.fetch_rows("SELECT pg_database_size(current_database())")[0][0]
    return account


def _resources(done: CommandResult) -> dict[str, float]:
    used = {"seconds": done.seconds, "user": done.user, "system": done.system, "peak_mib": done.peak_mib}
    return {name: round(value, 3) for name, value in used.items()}


def _rows(answer: dict[str, Any]) -> dict[str, int]:
    return {
        **answer["source_rows"],
        "signals_backfilled": max(answer["signals_backfilled"], 0),
        "ranking_events": answer["ranking_events"],
        "triples": sum(answer["published"]["triples"].values()),
    }


def exponent(smaller: dict[str, Any], larger: dict[str, Any], run: str) -> float:
    """Return the exponent of time as a power of size, between two scales."""
    times = larger[run]["seconds"] / smaller[run]["seconds"]
    return math.log(times) / math.log(larger["scale"] / smaller["scale"])


def results_of(accounts: Sequence[dict[str, Any]], made_with: dict[str, Any]) -> dict[str, Any]:
    """Return the measurements in the common shape of results."""
    targets = []
    for run in RUNS:
        for smaller, larger in pairwise(accounts):
            what = f"{run}s, scale {smaller['scale']:g} to {larger['scale']:g}: exponent of time"
            targets.append(target_entry(what, exponent(smaller, larger, run), at_most=MOST_EXPONENT))
    first, last = accounts[0], accounts[-1]
    if last is not first:
        times, run = last["scale"] / first["scale"], RUNS[-1]
        what = f"a further run at scale {last['scale']:g} / ({times:g} x one at scale {first['scale']:g})"
        targets.append(target_entry(what, last[run]["seconds"] / (times * first[run]["seconds"]), at_most=MOST_PER_ROW))
    for each in accounts:
        peak = max(each[run]["peak_mib"] for run in RUNS)
        targets.append(target_entry(f"peak memory at scale {each['scale']:g}, MiB", peak, at_most=MOST_MIB))
    return {
        "made_with": made_with,
        "rows": {
            f"{name} at scale {each['scale']:g}": count for each in accounts for name, count in each["rows"].items()
        },
        "variants": {
            f"{run}, scale {each['scale']:g}": variant_entry([each[run]["seconds"]], each[run]["peak_mib"])
            for each in accounts
            for run in RUNS
        },
        "targets": targets,
        "scales": list(accounts),
    }


def measure(
    url_of: Callable[[str], str], scales: Sequence[float], after: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """All scales, one after the other; `after` is called with the results so far after each."""
    accounts: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for scale in scales:
        with (
            fresh_database(url_of, "scale") as url,
            tempfile.TemporaryDirectory(prefix="bpr-scale-", dir=os.environ.get("BPR_ETL_BENCH_DIR")) as folder,
        ):
            accounts.append(one_scale(url, scale, Path(folder)))
            results = results_of(accounts, environment(url))
        after(results)
    return results


def markdown(results: dict[str, Any]) -> str:
    """Targets; then time, processor time, memory and disk per scale and run."""
    head = (
        "scale",
        "run",
        "s",
        "process, CPU s",
        "peak, MiB",
        "slots",
        "triples",
        "WAL, MB",
        "database, GB",
        "snapshot, MB",
    )
    lines = [table_row(head), table_row(("---:", "---", *("---:" for _ in head[2:])))]
    for each in results["scales"]:
        for run in RUNS:
            used, rows = each[run], each["rows"]
            cells = (f"{used['seconds']:,.1f}", f"{used['user'] + used['system']:,.1f}", f"{used['peak_mib']:,.0f}")
            log = f"{used['log_bytes'] / 1e6:,.1f}" if "log_bytes" in used else ""
            sizes = (log, f"{each['database_bytes'] / 1e9:.2f}", f"{each['snapshot_bytes'] / 1e6:,.1f}")
            lines.append(
                table_row((f"{each['scale']:g}", run, *cells, f"{rows['slots']:,}", f"{rows['triples']:,}", *sizes))
            )
    return f"{targets_table(results['targets'])}\n" + "\n".join(lines) + "\n"


def save(results: dict[str, Any]) -> None:
    """Write `results/scale.json` and `scale.md`."""
    head = (
        "# Full runs at growing scale\n\n`python -m benchmarks scale --save`: the whole command; the server's own time is in "
        "the seconds, its memory and processor time are not in the process's."
    )
    save_results("scale", results, head, markdown(results))


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = command_parser(
        "run.scale", "Full runs at growing scale.", database=True, saves=".json and .md, after each scale"
    )
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0, 10.0, 100.0], help="sizes of the synthetic world"
    )
    given = parser.parse_args(arguments)
    with server(given.database_url) as url_of:
        results = measure(url_of, sorted(given.scales), save if given.save else lambda _: None)
    print(markdown(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
