"""Runs benchmarks one after the other, then collects all results.

    python -m benchmarks [NAME...] [--save] [--full] [--pyspark PYTHON] [--database-url URL]

Without names, the benchmarks that take minutes run; `--full` adds those that take up to an hour. Each runs in its own process,
so memory and threads of one don't affect another. If one fails, the others still run.

    harness/          timing, databases, result files, plots, synthetic inputs
    run/              whole runs, and other ways to do their work
    triples/          from candidates to triples on disk
    reading/          reading the source tables
    training_value/   what models learn from the triples
    results/          what was measured: one .json and one .md per benchmark
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.harness import collect
from benchmarks.harness.measure import ROOT

MINUTES = {
    "run.run": "a run at the design's size, compared with pure SQL and row by row",
    "run.steady": "a run when nothing, 1% or everything changed, compared with pure SQL and with replacing all rows",
    "run.server_writes": "what the server alone takes: UPDATE and COPY",
    "reading.readers": "reading: connectorx and ADBC",
    "triples.triples": "events to partitioned triples: DuckDB, pandas, PySpark, the writing alone",
    "triples.candidates": "the top 20, at 100 to 10,000 nodes a city",
    "triples.sampling": "negatives sampled per second",
    "run.realdata": "the job on real visits",
    "run.tables": "what interactions, next and history cost a run",
    "run.executors": "a run on Ray compared with a local one (needs the extra ray)",
    "training_value.row_order": "effect of the order of rows on SGD",
}
HOUR = {
    "run.scale": "full runs at scales 1, 10 and 100",
    "triples.expand_scale": "expand alone, up to scale 1000",
}
BY_NAME = {
    "training_value.negatives": "training value of every negative-sampling strategy",
    "training_value.next_place": "what the table next/ is worth on real visits",
    "training_value.recipes": "what the models of docs/consumers.md are worth",
    "training_value.probe_time": "time and memory of the probe in large worlds",
    "training_value.large_catalogue": "negative sampling by popularity in large catalogues, simulated",
}
"""Benchmarks that run only when they are named: about ten minutes each."""

DESCRIPTIONS = MINUTES | HOUR | BY_NAME
MODULES = {module.rpartition(".")[2]: module for module in DESCRIPTIONS}
"""Module of each benchmark below `benchmarks`, by its name on the command line."""

WITHOUT_SERVER = ("triples", "candidates", "sampling", "expand_scale", "large_catalogue", "probe_time")
"""Benchmarks that take no --database-url."""


def command(name: str, given: argparse.Namespace) -> list[str]:
    """Return the command line of one benchmark."""
    options = ["--save"] if given.save else []
    if given.pyspark and name == "triples":
        options += ["--pyspark", given.pyspark]
    if given.database_url and name not in WITHOUT_SERVER:
        options += ["--database-url", given.database_url]
    return [sys.executable, "-m", f"benchmarks.{MODULES[name]}", *options]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks. Returns 1 if one of them failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks and collect the results.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(MODULES)}")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/, and the section of docs/performance.md"
    )
    parser.add_argument("--full", action="store_true", help="also the benchmarks that take up to an hour")
    parser.add_argument("--pyspark", metavar="PYTHON", help="interpreter that has PySpark")
    parser.add_argument("--database-url", help="a server where databases may be created (default: the embedded one)")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in MODULES]:
        parser.error(f"no such benchmark: {', '.join(unknown)} (choose from {', '.join(MODULES)})")
    names = given.names or [
        name for name, module in MODULES.items() if module in MINUTES or (given.full and module in HOUR)
    ]
    failed = [name for name in names if not _run(name, command(name, given))]
    if given.save and collect.main([]) != 0:
        failed.append("collect")
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, call: Sequence[str]) -> bool:
    """Run one benchmark. Returns whether it succeeded."""
    print(f"== {name}: {DESCRIPTIONS[MODULES[name]]}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    code = subprocess.run(call, cwd=ROOT, check=False).returncode
    ended = "" if code == 0 else f", exit code {code}"
    print(f"== {name}: {time.perf_counter() - start:.0f} s{ended}", file=sys.stderr, flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
