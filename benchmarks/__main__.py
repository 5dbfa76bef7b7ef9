"""One entry for all measurements: each named one (default: those that take minutes) in its turn, then all results together.

    python -m benchmarks [names...] [--save] [--full] [--pyspark PYTHON] [--database-url URL]

Each runs in a process of its own, so that none has another's memory or threads. When one fails the others run all the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec

from benchmarks import collect
from benchmarks.measure import ROOT

MINUTES = {
    "night": "a night at the design's size, beside pure SQL and row by row",
    "floors": "what the server alone takes: UPDATE and COPY",
    "readers": "reading: connectorx and ADBC",
    "triples": "events to partitioned triples: DuckDB, pandas, PySpark, the writing alone",
    "candidates": "the top 20, at 100 to 10,000 nodes a city",
    "draws": "negatives drawn per second",
    "realdata": "the job on real visits",
    "engines": "a night on Ray beside a night here (needs the extra ray)",
    "order": "what the order of the rows does to SGD",
}
HOUR = {
    "scale": "full runs at scales 1, 10 and 100",
    "expand_scale": "expand alone, up to scale 1000",
}
WITHOUT_SERVER = ("triples", "candidates", "draws", "expand_scale")
"""Those that take no --database-url."""


def command(name: str, given: argparse.Namespace) -> list[str]:
    """How one measurement is called."""
    options = ["--save"] if given.save else []
    if given.pyspark and name == "triples":
        options += ["--pyspark", given.pyspark]
    if given.database_url and name not in WITHOUT_SERVER:
        options += ["--database-url", given.database_url]
    return [sys.executable, "-m", f"benchmarks.{name}", *options]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; gives 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and put the results together.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join([*MINUTES, *HOUR])}")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/, and the section of docs/performance.md"
    )
    parser.add_argument("--full", action="store_true", help="those that take up to an hour as well")
    parser.add_argument("--pyspark", metavar="PYTHON", help="an interpreter that has PySpark")
    parser.add_argument("--database-url", help="a server where databases may be created (default: the embedded one)")
    given = parser.parse_args(arguments)
    every = MINUTES | HOUR
    if unknown := [name for name in given.names if name not in every]:
        parser.error(f"no such measurement: {', '.join(unknown)} (there are {', '.join(every)})")
    names = given.names or list(every if given.full else MINUTES)
    failed = [name for name in names if not _run(name, every[name], command(name, given))]
    if given.save and collect.main([]) != 0:
        failed.append("collect")
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, what: str, call: Sequence[str]) -> bool:
    """One measurement; whether it went well. One that is not part of this checkout is left out with a word."""
    if find_spec(f"benchmarks.{name}") is None:
        print(f"{name} is left out: there is no benchmarks/{name}.py.", file=sys.stderr, flush=True)
        return True
    print(f"== {name}: {what}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    code = subprocess.run(call, cwd=ROOT, check=False).returncode
    ended = "" if code == 0 else f", exit code {code}"
    print(f"== {name}: {time.perf_counter() - start:.0f} s{ended}", file=sys.stderr, flush=True)
    return code == 0


if __name__ == "__main__":
    sys.exit(main())
