"""Times `expand` at scales that no test database holds, up to fifteen million events; memory must stay flat.

The events are made without a database (about a quarter of an hour at scale 1000) and published as a snapshot whose cities are
all excluded from its triples. Then the whole command expands them in a process of its own.

    python -m benchmarks.triples.expand_scale [--scales 10 100 1000] [--keep FOLDER] [--save]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.harness.command import command_parser
from benchmarks.harness.measure import call_in_process, run_command
from benchmarks.harness.results import environment, save_results, table_row, target_entry, targets_table, variant_entry
from benchmarks.harness.worlds import SourceTables, chunks, ranking_events
from etl.extract.reader import LOGGED_EVENTS
from etl.pipeline.context import new_result, open_context, utc_now
from etl.pipeline.publication import open_publication
from etl.runtime.cancellation import CancelToken
from etl.settings.sources import load_settings
from etl.snapshots.reading.snapshot import LATEST, find_snapshot
from etl.transform.buckets import bucket_count, bucket_expr, open_spill
from etl.transform.ranking_events import sort_for_files
from etl.transform.schemas import DIMENSIONS
from etl.triples.dataset import ENCODED_EVENTS, LISTS, DatasetBuilder
from etl.triples.vocabulary import Vocabulary

EVENTS = 15_500
"""About how many events the world has for each unit of scale."""

MAX_MIB = 2048
_SHOWN = LOGGED_EVENTS.with_columns(pl.lit([], dtype=pl.List(pl.UInt32)).alias("shown_ids"))


def make_snapshot(folder: str, scale: float, seed: int = 0) -> str:
    """Publish the events of the synthetic world of that scale, without triples. Returns the snapshot's folder."""
    settings = load_settings({"out": folder, "seed": seed, "min_catalog": 1_000_000, "allow_empty": True}, {})
    stop = CancelToken()
    result = new_result(utc_now, stop, None)
    buckets = bucket_count(round(scale * EVENTS))
    with (
        open_context(settings, utc_now, stop) as context,
        open_publication(context, result) as publication,
        ExitStack() as spills,
    ):
        compaction = DatasetBuilder(spills.enter_context(open_spill(publication.scratch, buckets, ENCODED_EVENTS)))
        waiting = spills.enter_context(open_spill(publication.scratch, buckets, _SHOWN))
        users, personas = [], []
        for source in chunks(scale, seed):
            events = _coded(source, compaction, seed)
            waiting.append(events, events.select(bucket_expr(pl.col("user_id"), buckets)).to_series())
            users.append(source.users)
            personas.append(_personas(source))
            nodes = source.nodes
        for bucket in range(buckets):
            compaction.add(bucket, sort_for_files(waiting.read_bucket(bucket)))
        dataset = compaction.dataset(pl.concat(users), pl.concat(personas), nodes, Vocabulary())
        publication.publish(dataset)
    return str(result.snapshot)


def _coded(source: SourceTables, compaction: DatasetBuilder, seed: int) -> pl.DataFrame:
    events = ranking_events(source, seed).select(_SHOWN.columns)
    return events.with_columns(compaction.encode(events[name]) for name in LISTS)


def _personas(source: SourceTables) -> pl.DataFrame:
    """Return eight rows per user of realistic size: they determine the size of users.parquet, and so the memory of expand."""
    vectors = source.affinities.group_by("user_id", maintain_order=True).agg(
        value=pl.format('"{}": {}', "category", "affinity")
    )
    written = vectors.select(
        "user_id", dimension=pl.lit("category_affinities"), value="{" + pl.col("value").list.join(", ") + "}"
    )
    labels = [name for name in DIMENSIONS if name != "category_affinities"]
    rng = np.random.default_rng(0)
    others = source.users.select("user_id").join(pl.DataFrame({"dimension": labels}), how="cross")
    others = others.with_columns(value=pl.Series(rng.integers(1, 5, others.height)).cast(pl.String))
    return pl.concat([written, others]).with_columns(confidence=pl.lit(1.0), source=pl.lit("onboarding"))


def one_scale(scale: float, folder: Path, kept: Path, negatives: str) -> dict[str, Any]:
    """Make the events if they don't exist yet, expand them in a process of its own, and return the measurements."""
    events = kept / f"scale-{scale:g}"
    if not (events / LATEST).exists():
        call_in_process("benchmarks.triples.expand_scale:make_snapshot", folder=str(events), scale=scale)
    source = find_snapshot(events)
    command = [sys.executable, "cli.py", "expand", str(source), "--json", "--out", str(folder / "out")]
    done = run_command([*command, "--min-catalog", "50", "--negatives", negatives])
    answer = json.loads(done.answer)
    return {
        "scale": scale,
        "negatives": negatives,
        "seconds": round(done.seconds, 2),
        "processor": round(done.user + done.system, 2),
        "peak_mib": round(done.peak_mib),
        "events": sum(answer["published"]["events"].values()),
        "triples": sum(answer["published"]["triples"].values()),
        "users": answer["published"]["users"],
        "events_bytes": _bytes(source / "events"),
        "snapshot_bytes": _bytes(Path(answer["snapshot"])),
        "steps": {step["step"]: step["seconds"] for step in answer["steps"]},
    }


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measure(
    scales: Sequence[float],
    negatives: str,
    kept: Path | None = None,
    after: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """All scales, one after the other; `after` is called with the results so far after each.

    The events are made in `kept`, where they stay and are found again, or in a folder that goes.
    """
    accounts: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    for scale in sorted(scales):
        with tempfile.TemporaryDirectory(prefix="bpr-expand-", dir=os.environ.get("BPR_ETL_BENCH_DIR")) as folder:
            accounts.append(one_scale(scale, Path(folder), kept or Path(folder), negatives))
        results = {
            "made_with": environment(None),
            "rows": {f"triples at scale {each['scale']:g}": each["triples"] for each in accounts},
            "variants": {
                f"scale {each['scale']:g}": variant_entry([each["seconds"]], each["peak_mib"]) for each in accounts
            },
            "targets": [
                target_entry(f"expand at scale {each['scale']:g}: peak memory, MiB", each["peak_mib"], at_most=MAX_MIB)
                for each in accounts
            ],
            "scales": list(accounts),
        }
        after(results)
    return results


def markdown(results: dict[str, Any]) -> str:
    """Targets; then rows, time, memory and disk per scale."""
    head = ("scale", "events", "triples", "s", "triples a second", "CPU s", "peak, MiB", "events/, GB", "snapshot, GB")
    lines = [table_row(head), table_row("---:" for _ in head)]
    for each in results["scales"]:
        numbers = (f"{each['events']:,}", f"{each['triples']:,}", f"{each['seconds']:,.1f}")
        rate = f"{each['triples'] / each['seconds']:,.0f}"
        used = (f"{each['processor']:,.1f}", f"{each['peak_mib']:,}")
        disk = (f"{each['events_bytes'] / 1e9:.2f}", f"{each['snapshot_bytes'] / 1e9:.2f}")
        lines.append(table_row((f"{each['scale']:g}", *numbers, rate, *used, *disk)))
    return f"{targets_table(results['targets'])}\n" + "\n".join(lines) + "\n"


def save(results: dict[str, Any]) -> None:
    """Write `results/expand_scale.json` and `expand_scale.md`."""
    head = "# `expand` at growing scale\n\n`python -m benchmarks expand_scale --save`: the whole command, without a database."
    save_results("expand_scale", results, head, markdown(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and give the exit code."""
    parser = command_parser("triples.expand_scale", "`expand` at growing scale.")
    parser.add_argument("--scales", type=float, nargs="+", default=[10.0, 100.0, 1000.0])
    parser.add_argument("--negatives", default="ranking")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="make the events here, and use what is there already"
    )
    given = parser.parse_args(arguments)
    print(markdown(measure(given.scales, given.negatives, given.keep, save if given.save else lambda _: None)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
