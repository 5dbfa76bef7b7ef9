"""From a snapshot's events to partitioned triples on disk: ours beside DuckDB, pandas, PySpark, and the writing alone.

On the synthetic world at scale 20 (310,525 events, 14 million triples in two cities), negatives `ranking`, all ten columns.
Rows per city and a checksum over all columns are compared before any time counts. Ours does more than the others: it
publishes the events and the vocabularies too, checks every file, hashes it, writes the manifest and waits for the disk.

    python -m benchmarks.triples [--scale 20] [--rounds 5] [--pyspark PYTHON] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import etl
from benchmarks import rivals
from benchmarks.measure import ROOT, Alone, alone, ratio, side_by_side
from benchmarks.surroundings import circumstances, keep, line, target, targets_table, variant, variants_table
from benchmarks.worlds import events_snapshot
from etl.settings.model import load_settings

OURS, PANDAS, SPARK = "ours", "pandas", "PySpark, local[2]"
POLARS_FLOOR, PYARROW_FLOOR = "floor: Polars writes the expanded frame", "floor: pyarrow writes it, a thread per city"
USUAL = "DuckDB, ENUM, unnest then filter"
"""How it is usually written, and the best of those with PARTITION_BY that were seen before."""

_WITHOUT_DISK = ("read", "switch")

Answer = dict[str, list[Any]]


def expand(snapshot: str, out: str) -> dict[str, Any]:
    """Ours: its seconds, and those of its steps. Leaves `out/snapshots/…`."""
    settings = load_settings({"snapshot": snapshot, "out": out}, {})
    start = time.perf_counter()
    report = etl.expand(settings)
    return {"seconds": time.perf_counter() - start, "steps": {name: seconds for name, seconds, _ in report.steps}}


class _Contest:
    """The variants over one snapshot, each into a folder of its own that goes when it has been looked at."""

    def __init__(self, snapshot: Path, work: Path) -> None:
        self.snapshot, self.work = snapshot, work
        self.expected = rivals.answer(f"{snapshot}/triples/**/*.parquet")
        self.frames = rivals.expanded(snapshot)
        self.tables = rivals.tables(self.frames)
        self.steps: dict[str, list[float]] = {}
        self.rounds: dict[str, int] = {}
        self.wrong: dict[str, int] = {}

    def turns(self) -> dict[str, Callable[[], float]]:
        """What takes turns, each giving its own seconds."""
        ways = {name: self._timed(way) for name, way in rivals.WAYS.items()}
        floors = {
            POLARS_FLOOR: self._timed(lambda _, out: rivals.floor_polars(self.frames, out)),
            PYARROW_FLOOR: self._timed(lambda _, out: rivals.floor_pyarrow(self.tables, out)),
        }
        every = {OURS: self._ours, **ways, **floors}
        return {name: partial(self._turn, name, each) for name, each in every.items()}

    def _turn(self, name: str, way: Callable[[Path], float]) -> float:
        """One turn into a fresh folder. Its answer is compared when the clock has stopped, then it is deleted."""
        os.sync()  # what the one before has still to write is not this one's
        out = self.work / "out"
        try:
            seconds = way(out)
            found = rivals.answer(f"{out}/{'snapshots/*/triples/' if name == OURS else ''}**/*.parquet")
        finally:
            shutil.rmtree(out, ignore_errors=True)
        self.rounds[name] = self.rounds.get(name, 0) + 1
        if found != self.expected:
            self.wrong[name] = self.wrong.get(name, 0) + 1
            # DuckDB 2.0.0 now and then loses an ENUM's text, in a handful of rows. That is said, and the others' times hold.
            if name not in rivals.WAYS or self.wrong[name] == self.rounds[name] > 2:
                raise _other_triples(name, found, self.expected)
        return seconds

    def notes(self) -> list[str]:
        """The rounds in which a variant's answer was wrong."""
        return [
            f"{name}: other triples than everybody else in {wrong} of {self.rounds[name]} rounds."
            for name, wrong in self.wrong.items()
        ]

    def _ours(self, out: Path) -> float:
        found = expand(str(self.snapshot), str(out))
        for step, seconds in found["steps"].items():
            self.steps.setdefault(step, []).append(seconds)
        return float(found["seconds"])

    def _timed(self, way: rivals.Way) -> Callable[[Path], float]:
        def variant_(out: Path) -> float:
            start = time.perf_counter()
            way(self.snapshot, out)
            return time.perf_counter() - start

        return variant_


def measure(scale: float, rounds: int, pyspark: str | None) -> dict[str, Any]:
    """All of it. Raises RuntimeError when two variants don't have the same triples."""
    with tempfile.TemporaryDirectory(prefix="bpr-triples-") as folder:
        work = Path(folder)
        # In a process of its own, so that nothing of making the world is left in the memory of this one.
        snapshot = Path(alone("benchmarks.triples:made", folder=str(work / "source"), scale=scale).answer)
        contest = _Contest(snapshot, work)
        turns = contest.turns()
        side_by_side(turns, 1)  # so that no time counts what happens once
        contest.steps.clear()
        seconds = side_by_side(turns, rounds)
        peaks = {name: _memory(snapshot, work, name).peak_mib for name in (OURS, *rivals.WAYS)}
        apart, notes = _apart(contest, rounds, pyspark)
        events = json.loads((snapshot / "manifest.json").read_text(encoding="utf-8"))["published"]["events"]
    return {
        "made_with": circumstances(None),
        "scale": scale,
        "rows": {"events": sum(events.values()), "triples": sum(rows for rows, _ in contest.expected.values())},
        "variants": {name: variant(each, peaks.get(name)) for name, each in seconds.items()} | apart,
        "steps": {name: round(statistics.median(each), 4) for name, each in contest.steps.items()},
        "targets": _targets(seconds, contest.steps),
        "notes": [*contest.notes(), *notes],
    }


def made(folder: str, scale: float) -> str:
    """The snapshot to begin with, for `measure.alone`."""
    return str(events_snapshot(Path(folder), scale))


def _other_triples(name: str, found: Answer, expected: Answer) -> RuntimeError:
    return RuntimeError(f"{name} has other triples than the snapshot: {found}, not {expected}.")


def _memory(snapshot: Path, work: Path, name: str) -> Alone:
    """One variant in a process of its own; its files stay where it is not one of those that take turns."""
    out = work / "alone"
    shutil.rmtree(out, ignore_errors=True)
    if name == OURS:
        return alone("benchmarks.triples:expand", snapshot=str(snapshot), out=str(out))
    return alone("benchmarks.rivals:alone", None, way=name, snapshot=str(snapshot), out=str(out))


def _apart(contest: _Contest, rounds: int, pyspark: str | None) -> tuple[dict[str, Any], list[str]]:
    """The variants that are too slow or too large to take turns: pandas once, PySpark in a session of its own."""
    snapshot, work = contest.snapshot, contest.work
    found = _memory(snapshot, work, PANDAS)
    _require(PANDAS, work / "alone", contest.expected)
    accounts = {PANDAS: variant([found.seconds], found.peak_mib)}
    if pyspark is None:
        return accounts, ["PySpark is left out: --pyspark names no interpreter that has it."]
    command = [pyspark, str(ROOT / "benchmarks" / "spark_triples.py")]
    command += [str(snapshot), str(work / "spark"), str(rounds), *rivals.folders(snapshot)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    _require(SPARK, work / "spark", contest.expected)
    accounts[SPARK] = variant(answer["seconds"], answer["peak_mib"])
    note = f"PySpark {answer['version']}: starting the session and a first round that warms the JVM up are not counted."
    return accounts, [note]


def _require(name: str, out: Path, expected: Answer) -> None:
    """Raise RuntimeError where the files below `out` hold other triples."""
    found = rivals.answer(f"{out}/**/*.parquet")
    if found != expected:
        raise _other_triples(name, found, expected)


def _targets(seconds: Mapping[str, list[float]], steps: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """What ours must reach: against the fastest of each kind, by its whole time; and once more by its staging alone."""
    ours = seconds[OURS]
    rest = [sum(each) for each in zip(*(steps[name] for name in _WITHOUT_DISK if name in steps), strict=True)]
    staging = [whole - other for whole, other in zip(ours, rest, strict=True)] if rest else ours
    floor = seconds[POLARS_FLOOR]
    texts = _fastest({name: each for name, each in seconds.items() if "texts" in name})
    best = _fastest({name: each for name, each in seconds.items() if "ENUM" in name})
    return [
        target("triples: times faster than DuckDB on texts", ratio(texts, ours), at_least=6),
        target("triples: times faster than DuckDB's best", ratio(best, ours), at_least=2),
        target(f"triples: times faster than {USUAL}", ratio(seconds[USUAL], ours), at_least=2),
        target("triples: seconds, of those that writing the expanded frame takes", ratio(ours, floor), at_most=1.5),
        target("the same without reading and the switch", ratio(staging, floor), at_most=1.5),
    ]


def _fastest(seconds: Mapping[str, list[float]]) -> list[float]:
    return min(seconds.values(), key=statistics.median)


def markdown(results: Mapping[str, Any]) -> str:
    """Targets, variants, and where ours spends its time."""
    steps = [line(("step of ours", "median, s")), line(("---", "---:"))]
    steps += [line((name, f"{seconds:.2f}")) for name, seconds in results["steps"].items()]
    rows = results["rows"]
    counted = f"{rows['events']:,} events, {rows['triples']:,} triples."
    parts = [counted, targets_table(results["targets"]), variants_table(results["variants"]), "\n".join(steps) + "\n"]
    return "\n\n".join(part.rstrip("\n") for part in [*parts, *results["notes"]]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.triples", description="Time the expansion of events.")
    parser.add_argument("--scale", type=float, default=20.0, help="size of the synthetic world")
    parser.add_argument("--rounds", type=int, default=5, help="how many turns each variant takes")
    parser.add_argument("--pyspark", metavar="PYTHON", help="an interpreter that has PySpark (and java on the PATH)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/triples.json and .md")
    given = parser.parse_args(arguments)
    if given.pyspark is None:
        print("PySpark is left out: --pyspark names no interpreter that has it.", file=sys.stderr)
    results = measure(given.scale, given.rounds, given.pyspark)
    text = markdown(results)
    print(text, end="")
    if given.save:
        head = (
            "# From events to partitioned triples on disk\n\n`python -m benchmarks.triples --save`: all ten columns, negatives "
            f"`ranking`, the synthetic world at scale {given.scale:g}; {given.rounds} rounds in turns. The others write "
            "triples alone; ours also publishes events and vocabularies, checks and hashes every file, and waits for the disk."
        )
        keep("triples", results, head, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
