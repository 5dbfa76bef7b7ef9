"""A night at the design's size, beside every other way to do its work: pure SQL, row by row, and what the server alone takes.

On one database with the synthetic world, each variant's rows compared with ours before any time is taken. Then, side by
side: nights with nothing to backfill, and first nights, each of which has every signal to backfill. Ours is `run` inside
this process, from connect to published: checks, fsync and manifest included; the others publish nothing. Last, the whole
command in a process of its own, as cron calls it. All of our nights must publish the very same bytes.

Between rounds, untimed: VACUUM and a checkpoint, so that each variant finds what a night finds a day after the last one.

    python -m benchmarks.night [--database-url URL] [--rounds 7] [--scale 1] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import etl
from benchmarks import floors, pure_sql, row_by_row
from benchmarks.measure import ratio, side_by_side, timed, watched
from benchmarks.surroundings import (
    circumstances,
    fresh_database,
    keep,
    line,
    reset_signals,
    server,
    target,
    targets_table,
    tidy,
    variant,
    variants_table,
)
from etl.commands import database
from etl.errors import EtlError
from etl.settings.model import load_settings

OURS, SQL, FLOORS = "ours", "pure SQL", "UPDATE + COPY floors"
FIRST = "first night: "
COMMAND, STARTING, HELP = "the whole command", "start-up: the command until its work begins", "cli.py --help"

Seconds = dict[str, list[float]]


@dataclass
class Nights:
    """Our nights on one database: seconds and rows per step of each, and what all of them published."""

    url: str
    out: str
    steps: list[dict[str, float]] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    contents: set[str] = field(default_factory=set)

    def run(self) -> float:
        """One night in this process; gives its seconds. Raises RuntimeError when it publishes other bytes."""
        reports: list[Any] = []
        settings = load_settings({"database_url": self.url, "out": self.out}, {})
        seconds = timed(lambda: reports.append(etl.run(settings)))
        self.published(str(reports[0].snapshot))
        self.steps.append({name: took for name, took, _ in reports[0].steps})
        self.rows |= {name: rows for name, _, rows in reports[0].steps if rows is not None}
        return seconds

    def published(self, snapshot: str) -> None:
        """Take note of what a night published, and make room: its folder is the only one that stays."""
        self.contents.add(Path(snapshot).name.split("-")[1])
        if len(self.contents) != 1:
            raise RuntimeError("Two nights on the same source published different bytes.")
        for folder in Path(snapshot).parent.iterdir():
            if folder != Path(snapshot):
                shutil.rmtree(folder)

    def medians(self, since: int = 0) -> dict[str, float]:
        """Seconds per step, medians of the nights since one."""
        nights = self.steps[since:]
        return {name: round(statistics.median(night[name] for night in nights), 4) for name in nights[0]}


def compare_rows(nights: Nights) -> None:
    """Every variant must write what ours writes. Raises RuntimeError where one does not."""
    nights.run()
    exact, comparable = row_by_row.written(nights.url), pure_sql.comparable(nights.url)
    for name, play in row_by_row.drivers().items():
        play(nights.url)
        row_by_row.require_equal(exact, row_by_row.written(nights.url), name)
    pure_sql.night(nights.url)
    row_by_row.require_equal(comparable, pure_sql.comparable(nights.url), SQL)


def further_nights(nights: Nights, rounds: int, slow_rounds: int) -> tuple[Seconds, Seconds]:
    """Nights with nothing to backfill: ours beside pure SQL, and ours beside row by row, which is slow, in fewer rounds."""
    url = nights.url

    def after(prepare: Callable[[str], None], work: Callable[[], float]) -> float:
        prepare(url)
        return work()

    ours = partial(after, tidy, nights.run)
    sql = partial(after, tidy, lambda: timed(lambda: pure_sql.night(url)))
    slow = {
        name: partial(after, tidy, partial(timed, partial(play, url))) for name, play in row_by_row.drivers().items()
    }
    return side_by_side({OURS: ours, SQL: sql}, rounds), side_by_side({OURS: ours, **slow}, slow_rounds)


def first_nights(nights: Nights, rounds: int) -> Seconds:
    """Nights with everything to backfill: ours, the server's floors, row by row."""
    url = nights.url
    events = floors.ready_events(url)

    def after_reset(work: Callable[[], float]) -> float:
        reset_signals(url)
        return work()

    def floor() -> float:
        return floors.backfill(url) + floors.copy(url, events)

    slow = {
        name: partial(after_reset, partial(timed, partial(play, url))) for name, play in row_by_row.drivers().items()
    }
    return side_by_side({OURS: partial(after_reset, nights.run), FLOORS: floor, **slow}, rounds)


def commands(nights: Nights, rounds: int) -> tuple[Seconds, float]:
    """The command in a process of its own: seconds in all, until its work begins, and of `--help`; its peak memory in MiB.

    The work begins where the manifest says so: after imports, options, connect, a look at the schema, and the lock. Steps
    may run at the same time, so the whole less their sum would say nothing.
    """
    seconds: Seconds = {COMMAND: [], STARTING: [], HELP: []}
    environment = os.environ | {"BPR_ETL_DATABASE_URL": nights.url}
    peaks = []
    for _ in range(rounds):
        tidy(nights.url)
        done = watched([sys.executable, "cli.py", "run", "--json", "--out", nights.out], environment)
        answer = json.loads(done.answer)
        nights.published(answer["snapshot"])
        seconds[COMMAND].append(done.seconds)
        manifest = json.loads((Path(answer["snapshot"]) / "manifest.json").read_text(encoding="utf-8"))
        seconds[STARTING].append(datetime.fromisoformat(manifest["started_at"]).timestamp() - done.began)
        seconds[HELP].append(watched([sys.executable, "cli.py", "--help"]).seconds)
        peaks.append(done.peak_mib)
    return seconds, statistics.median(peaks)


def measure(url: str, out: str, rounds: int, slow_rounds: int) -> dict[str, Any]:
    """All of it. The database holds a synthetic world."""
    nights = Nights(url, out)
    compare_rows(nights)
    began = len(nights.steps)
    fast, slow = further_nights(nights, rounds, slow_rounds)
    steps = {"further nights": nights.medians(began)}
    began = len(nights.steps)
    first = first_nights(nights, slow_rounds)
    steps["first nights"] = nights.medians(began)
    processes, peak = commands(nights, 5)
    together = {**slow, **fast, OURS: fast[OURS] + slow[OURS]}
    names = (OURS, SQL, *(name for name in together if name not in {OURS, SQL}))
    return {
        "made_with": circumstances(url),
        "rows": nights.rows,
        "variants": {
            **{name: variant(together[name]) for name in names},
            **{FIRST + name: variant(each) for name, each in first.items()},
            **{name: variant(each, peak if name == COMMAND else None) for name, each in processes.items()},
        },
        "targets": _targets(fast, slow, first, processes),
        "steps": steps,
        "content": nights.contents.pop(),
    }


def _targets(fast: Seconds, slow: Seconds, first: Seconds, processes: Seconds) -> list[dict[str, Any]]:
    median = statistics.median
    return [
        target("a night with nothing to backfill / pure SQL", ratio(fast[OURS], fast[SQL]), at_most=1.5),
        *(
            target(f"{name} / a night with nothing to backfill", ratio(each, slow[OURS]), at_least=4)
            for name, each in slow.items()
            if name != OURS
        ),
        target("a first night / UPDATE + COPY floors", ratio(first[OURS], first[FLOORS]), at_most=1.25),
        target("start-up of the command, s", median(processes[STARTING]), at_most=0.7),
        target("`--help`, s", median(processes[HELP]), at_most=0.3),
    ]


def markdown(results: dict[str, Any]) -> str:
    """Targets, variants, and the steps of our nights."""
    first, further = results["steps"]["first nights"], results["steps"]["further nights"]
    lines = [line(("step", "rows", "first nights, s", "further nights, s")), line(("---", "---:", "---:", "---:"))]
    for name in first:
        rows = f"{results['rows'][name]:,}" if name in results["rows"] else ""
        lines.append(line((name, rows, f"{first[name]:.2f}", f"{further.get(name, 0.0):.2f}")))
    lines.append(line(("all steps", "", f"{sum(first.values()):.2f}", f"{sum(further.values()):.2f}")))
    table = "\n".join(lines) + "\n"
    return f"{targets_table(results['targets'])}\n{variants_table(results['variants'])}\nOur steps, medians:\n\n{table}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and give the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.night", description="A night beside other ways to do it."
    )
    parser.add_argument("--database-url", help="a server where databases may be created (default: the embedded one)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds beside pure SQL")
    parser.add_argument("--slow-rounds", type=int, default=3, help="rounds beside row by row, and of first nights")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the synthetic world")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/night.json and .md")
    given = parser.parse_args(arguments)
    try:
        with (
            server(given.database_url) as url_of,
            fresh_database(url_of, "night") as url,
            tempfile.TemporaryDirectory(prefix="bpr-night-") as out,
        ):
            database.synth(load_settings({"database_url": url, "scale": given.scale}, {}))
            results = measure(url, out, given.rounds, given.slow_rounds) | {"scale": given.scale}
    except EtlError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(markdown(results), end="")
    if given.save:
        head = (
            f"# A night at scale {given.scale:g}\n\n`python -m benchmarks.night --save`: nights with nothing to backfill, "
            "first nights (every signal to backfill), and the whole command. Ratios are medians of paired rounds."
        )
        keep("night", results, head, markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
