"""Measures what the tables other than the triples cost a steady run: `interactions`, `--task next`, `--history`.

Further runs (nothing to backfill) at the design's size, in paired rounds. "Without interactions" is the same run with that
table taken out. `next` is compared with triples of `catalog:16`, which draw as many negatives: per row, above a run that
publishes neither. Besides seconds, the processor time of this process is compared: other work on the machine, and what the
server does, are not in it.

    python -m benchmarks.run.tables [--database-url URL] [--scale 1] [--rounds 9] [--save]
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import etl
from benchmarks.harness.command import command_parser, present, with_exit_codes
from benchmarks.harness.database import fresh_database, server, vacuum
from benchmarks.harness.measure import interleave, seconds_of
from benchmarks.harness.results import environment, target_entry, targets_table, variant_entry, variants_table
from etl.pipeline import database
from etl.settings.sources import load_settings
from etl.triples.partitions import TripleOptions
from etl.triples.selections import Selections

PLAIN, BARE = "a run", "without interactions"
NEITHER, NEXT, CATALOG = "neither triples nor next", "--task next", "--negatives catalog:16"
BOTH, HISTORY = "--task triples --task next", "--negatives catalog:16 --history"

VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...] | None]] = {
    PLAIN: ({}, None),
    BARE: ({}, ("events", "triples")),
    NEITHER: ({"allow_empty": True}, ("events", "interactions")),
    NEXT: ({"task": ["next"]}, None),
    CATALOG: ({"negatives": ["catalog:16"]}, None),
    BOTH: ({"task": ["triples", "next"]}, None),
    HISTORY: ({"negatives": ["catalog:16"], "history": True}, None),
}
"""The options of each variant, and the tables that it publishes, where these are not what the options say."""


@contextmanager
def publishing(kinds: tuple[str, ...] | None) -> Iterator[None]:
    """Publish only some tables for the length of a block."""
    if kinds is None:
        yield
        return
    with mock.patch.object(TripleOptions, "kinds", kinds):
        if "interactions" in kinds:
            yield
            return
        with mock.patch.object(Selections, "new", property(lambda self: np.zeros(len(self.event), np.bool_))):
            yield


class Runs:
    """Runs on one database: the rows of each variant, and what each published."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.rows: dict[str, int] = {}
        self.contents: dict[str, set[str]] = {}
        self.processor: dict[str, list[float]] = {}

    def run(self, name: str) -> float:
        """Run once. Returns its seconds. Raises RuntimeError if it publishes other bytes than the same variant before."""
        vacuum(self.url)
        options, kinds = VARIANTS[name]
        out = self.folder / "out"
        settings = load_settings({"database_url": self.url, "out": str(out), **options}, {})
        reports: list[Any] = []
        began = time.process_time()
        with publishing(kinds):
            seconds = seconds_of(lambda: reports.append(etl.run(settings)))
        self.processor.setdefault(name, []).append(time.process_time() - began)
        self.rows[name] = sum(each["triples"] + each["next"] for each in reports[0].counts["published"]["partitions"])
        contents = self.contents.setdefault(name, set())
        contents.add(Path(str(reports[0].snapshot)).name.split("-")[1])
        if len(contents) != 1:
            raise RuntimeError(f"{name}: two runs on the same source published different bytes.")
        shutil.rmtree(out)
        return seconds


def ratios(seconds: dict[str, list[float]], rows: dict[str, int]) -> dict[str, float]:
    """Medians over the paired rounds."""

    def per_row(name: str) -> float:
        more = statistics.median(a - b for a, b in zip(seconds[name], seconds[NEITHER], strict=True))
        return more / rows[name]

    def ratio(above: Sequence[float], below: Sequence[float]) -> float:
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    return {
        "a run with interactions / without": ratio(seconds[PLAIN], seconds[BARE]),
        "a row of next / a triple of catalog:16": per_row(NEXT) / per_row(CATALOG),
        "a run with --task next / with --negatives catalog:16": ratio(seconds[NEXT], seconds[CATALOG]),
        "a run with --history / without": ratio(seconds[HISTORY], seconds[CATALOG]),
    }


def measure(url_of: Callable[[str], str], scale: float, rounds: int, folder: Path) -> dict[str, Any]:
    """Run all variants."""
    with fresh_database(url_of, "tables") as url:
        database.synth(load_settings({"database_url": url, "scale": scale}, {}))
        runs = Runs(url, folder)
        for name in VARIANTS:  # the first of each warms up
            runs.run(name)
        seconds = interleave({name: partial(runs.run, name) for name in VARIANTS}, rounds)
        wall = ratios(seconds, runs.rows)
        found = ratios({name: each[1:] for name, each in runs.processor.items()}, runs.rows)
        bounds = (1.05, 1.0)
        return {
            "made_with": environment(url),
            "scale": scale,
            "rows": runs.rows,
            "variants": {name: variant_entry(each) for name, each in seconds.items()},
            "ratios": {name: round(each, 3) for name, each in wall.items()},
            "processor": {name: round(each, 3) for name, each in found.items()},
            "processor_seconds": {name: variant_entry(each[1:]) for name, each in runs.processor.items()},
            "targets": [
                target_entry(name, found[name], at_most=bound) for name, bound in zip(found, bounds, strict=False)
            ],
        }


def markdown(results: dict[str, Any]) -> str:
    """Format the ratios and the variants."""
    rows = ", ".join(f"{name}: {count:,}" for name, count in results["rows"].items())
    said = "\n".join(
        f"- {name}: {each:.2f} of processor time, {results['ratios'][name]:.2f} of seconds"
        for name, each in results["processor"].items()
    )
    tables = [variants_table(results[name]) for name in ("processor_seconds", "variants")]
    return (
        f"Targets, of processor time:\n\n{targets_table(results['targets'])}\nMedian ratios of paired rounds:\n\n{said}\n\n"
        f"Processor time:\n\n{tables[0]}\nSeconds:\n\n{tables[1]}\nRows of triples and next: {rows}.\n"
    )


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    parser = command_parser("run.tables", "Measure what interactions, next and history cost a run.", database=True)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the synthetic world")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args(arguments)
    with (
        server(given.database_url) as url_of,
        tempfile.TemporaryDirectory(prefix="bpr-tables-", dir=os.environ.get("BPR_ETL_BENCH_DIR")) as folder,
    ):
        results = measure(url_of, given.scale, given.rounds, Path(folder))
    head = (
        "# What each table costs a run\n\n`python -m benchmarks tables --save`: further runs, in paired rounds. Where other "
        "programs use the machine, the processor time says more than the seconds."
    )
    return present("tables", results, head, markdown(results), save=given.save)


if __name__ == "__main__":
    sys.exit(main())
