"""Full runs at the design's size, ten times and a hundred times that: whether time grows with the data, and memory not.

For each scale a fresh database with the synthetic world, then the whole command in a process of its own: the first night,
with everything to backfill, and one further night. Results are saved after each scale, since the largest takes long.

    python -m benchmarks.scale [--database-url URL] [--scales 1 10 100] [--save]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measure import Watched, watched
from benchmarks.surroundings import circumstances, fresh_database, keep, line, server, target, targets_table, variant
from etl.errors import EtlError
from etl.postgres.connection import connect
from etl.postgres.url import parse_url

NIGHTS = ("first night", "further night")
MOST_EXPONENT, MOST_MIB = 1.05, 2048


def one_scale(url: str, scale: float, folder: Path) -> dict[str, Any]:
    """Fill the database, run two nights, and give an account of them."""
    environment = os.environ | {"BPR_ETL_DATABASE_URL": url}
    filled = watched([sys.executable, "cli.py", "synth", "--scale", f"{scale:g}", "--json"], environment)
    account: dict[str, Any] = {"scale": scale, "synth": _used(filled)}
    contents = set()
    for night in NIGHTS:
        with connect(parse_url(url, {})) as connection:
            connection.execute("CHECKPOINT")
        out = folder / night.replace(" ", "-")
        done = watched([sys.executable, "cli.py", "run", "--json", "--out", str(out)], environment)
        answer = json.loads(done.answer)
        snapshot = Path(answer["snapshot"])
        contents.add(snapshot.name.split("-")[1])
        account[night] = _used(done) | {"steps": {step["step"]: step["seconds"] for step in answer["steps"]}}
        account.setdefault("rows", _rows(answer))  # the first night's: later ones have nothing to backfill
        account["snapshot_bytes"] = sum(file.stat().st_size for file in snapshot.rglob("*") if file.is_file())
    if len(contents) != 1:
        raise RuntimeError(f"Two nights at scale {scale:g} published different bytes.")
    with connect(parse_url(url, {})) as connection:
        account["database_bytes"] = connection.fetch_rows("SELECT pg_database_size(current_database())")[0][0]
    return account


def _used(done: Watched) -> dict[str, float]:
    used = {"seconds": done.seconds, "user": done.user, "system": done.system, "peak_mib": done.peak_mib}
    return {name: round(value, 3) for name, value in used.items()}


def _rows(answer: dict[str, Any]) -> dict[str, int]:
    return {
        **answer["source_rows"],
        "signals_backfilled": max(answer["signals_backfilled"], 0),
        "ranking_events": answer["ranking_events"],
        "triples": sum(answer["published"]["triples"].values()),
    }


def exponent(smaller: dict[str, Any], larger: dict[str, Any], night: str) -> float:
    """What power of the size the seconds grow with, between two scales."""
    times = larger[night]["seconds"] / smaller[night]["seconds"]
    return math.log(times) / math.log(larger["scale"] / smaller["scale"])


def results_of(accounts: Sequence[dict[str, Any]], made_with: dict[str, Any]) -> dict[str, Any]:
    """The accounts in the shape that all results share."""
    targets = []
    for night in NIGHTS:
        for smaller, larger in pairwise(accounts):
            what = f"{night}s, scale {smaller['scale']:g} to {larger['scale']:g}: exponent of time"
            targets.append(target(what, exponent(smaller, larger, night), at_most=MOST_EXPONENT))
    for each in accounts:
        peak = max(each[night]["peak_mib"] for night in NIGHTS)
        targets.append(target(f"peak memory at scale {each['scale']:g}, MiB", peak, at_most=MOST_MIB))
    return {
        "made_with": made_with,
        "rows": {
            f"{name} at scale {each['scale']:g}": count for each in accounts for name, count in each["rows"].items()
        },
        "variants": {
            f"{night}, scale {each['scale']:g}": variant([each[night]["seconds"]], each[night]["peak_mib"])
            for each in accounts
            for night in NIGHTS
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
            results = results_of(accounts, circumstances(url))
        after(results)
    return results


def markdown(results: dict[str, Any]) -> str:
    """Targets; then time, processor time, memory and disk per scale and night."""
    head = ("scale", "night", "s", "process, CPU s", "peak, MiB", "slots", "triples", "database, GB", "snapshot, MB")
    lines = [line(head), line(("---:", "---", *("---:" for _ in head[2:])))]
    for each in results["scales"]:
        for night in NIGHTS:
            used, rows = each[night], each["rows"]
            cells = (f"{used['seconds']:,.1f}", f"{used['user'] + used['system']:,.1f}", f"{used['peak_mib']:,.0f}")
            sizes = (f"{each['database_bytes'] / 1e9:.2f}", f"{each['snapshot_bytes'] / 1e6:,.1f}")
            lines.append(
                line((f"{each['scale']:g}", night, *cells, f"{rows['slots']:,}", f"{rows['triples']:,}", *sizes))
            )
    return f"{targets_table(results['targets'])}\n" + "\n".join(lines) + "\n"


def save(results: dict[str, Any]) -> None:
    """Write `results/scale.json` and `scale.md`."""
    head = (
        "# Full runs at growing scale\n\n`python -m benchmarks.scale --save`: the whole command; the server's own time is in "
        "the seconds, its memory and processor time are not in the process's."
    )
    keep("scale", results, head, markdown(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="Full runs at growing scale.")
    parser.add_argument("--database-url", help="a server where databases may be created (default: the embedded one)")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[1.0, 10.0, 100.0], help="sizes of the synthetic world"
    )
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/scale.json and .md, after each scale"
    )
    given = parser.parse_args(arguments)
    try:
        with server(given.database_url) as url_of:
            results = measure(url_of, sorted(given.scales), save if given.save else lambda _: None)
    except EtlError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(markdown(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
