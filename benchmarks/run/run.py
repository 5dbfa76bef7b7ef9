"""Compares a run at the design's size with other ways to do its work: pure SQL, row by row, and the server's writes alone.

All variants use one database with the synthetic world. The rows that each variant writes are compared with the rows of `run`
before anything is timed. Three things are timed, in paired rounds:

- further runs, with nothing to backfill;
- first runs, with every signal to backfill;
- the whole command in a process of its own, as cron calls it.

`run` includes connecting, checks, fsync and the manifest; the other variants publish nothing. All runs must publish the same
bytes. Pure SQL has ids of its own, so it works on a second database with the same world: a further run of ours finds its own
rows unchanged. Between rounds, untimed: VACUUM and a checkpoint, so that each variant starts from the state of a day later.

    python -m benchmarks.run.run [--database-url URL] [--rounds 7] [--scale 1] [--save]
"""

from __future__ import annotations

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

from benchmarks.harness.command import command_parser, present, with_exit_codes
from benchmarks.harness.database import fresh_database, reset_signals, server, vacuum
from benchmarks.harness.measure import interleave, median_ratio, run_command, seconds_of
from benchmarks.harness.results import (
    environment,
    table_row,
    target_entry,
    targets_table,
    variant_entry,
    variants_table,
)
from benchmarks.run import pure_sql, row_by_row, server_writes
from etl.pipeline import database
from etl.pipeline import run as pipeline
from etl.settings.sources import load_settings

OURS, SQL, FLOORS = "ours", "pure SQL", "UPDATE + COPY floors"
FIRST = "first run: "
WORK = "its work: steps of a run in a process of its own"
COMMAND, STARTING, HELP = "the whole command", "start-up: the command until its work begins", "cli.py --help"

SLOWER = {"row by row, psycopg": 6, "row by row, asyncpg": 5}
"""How many times as long the other ways are to take at least."""

Seconds = dict[str, list[float]]


@dataclass
class Runs:
    """Our runs on one database: seconds and rows per step of each, and what all of them published."""

    url: str
    out: str
    steps: list[dict[str, float]] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    contents: set[str] = field(default_factory=set)

    def run(self) -> float:
        """Run once in this process. Returns its seconds. Raises RuntimeError if it publishes other bytes."""
        reports: list[Any] = []
        settings = load_settings({"database_url": self.url, "out": self.out}, {})
        seconds = seconds_of(lambda: reports.append(pipeline.run(settings)))
        self.published(str(reports[0].snapshot))
        self.steps.append({name: took for name, took, _ in reports[0].steps})
        self.rows |= {name: rows for name, _, rows in reports[0].steps if rows is not None}
        return seconds

    def published(self, snapshot: str) -> None:
        """Record what a run published, and delete older folders."""
        self.contents.add(Path(snapshot).name.split("-")[1])
        if len(self.contents) != 1:
            raise RuntimeError("Two runs on the same source published different bytes.")
        for folder in Path(snapshot).parent.iterdir():
            if folder != Path(snapshot):
                shutil.rmtree(folder)

    def medians(self, since: int = 0) -> dict[str, float]:
        """Return seconds per step: medians of the runs from `since` on."""
        runs = self.steps[since:]
        return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}


def compare_rows(runs: Runs, sql_url: str) -> None:
    """Raise RuntimeError if a variant writes other rows than `run`."""
    runs.run()
    exact, comparable = row_by_row.written(runs.url), pure_sql.comparable(runs.url)
    for name, play in row_by_row.drivers().items():
        play(runs.url)
        row_by_row.require_equal(exact, row_by_row.written(runs.url), name)
    pure_sql.run(sql_url)
    row_by_row.require_equal(comparable, pure_sql.comparable(sql_url), SQL)


def time_further_runs(runs: Runs, sql_url: str, rounds: int, slow_rounds: int) -> tuple[Seconds, Seconds]:
    """Time runs with nothing to backfill: ours and pure SQL; in fewer rounds, ours and row by row, which is slow."""
    url = runs.url

    def after_vacuum(of: str, work: Callable[[], float]) -> float:
        vacuum(of)
        return work()

    ours = partial(after_vacuum, url, runs.run)
    sql = partial(after_vacuum, sql_url, lambda: seconds_of(lambda: pure_sql.run(sql_url)))
    slow = {
        name: partial(after_vacuum, url, partial(seconds_of, partial(play, url)))
        for name, play in row_by_row.drivers().items()
    }
    return interleave({OURS: ours, SQL: sql}, rounds), interleave({OURS: ours, **slow}, slow_rounds)


def time_first_runs(runs: Runs, rounds: int) -> Seconds:
    """Time runs with everything to backfill: ours, the server's lower bound, row by row."""
    url = runs.url
    events = server_writes.ready_events(url)

    def after_reset(work: Callable[[], float]) -> float:
        reset_signals(url)
        return work()

    def floor() -> float:
        return server_writes.backfill(url) + server_writes.copy(url, events)

    slow = {
        name: partial(after_reset, partial(seconds_of, partial(play, url)))
        for name, play in row_by_row.drivers().items()
    }
    return interleave({OURS: partial(after_reset, runs.run), FLOORS: floor, **slow}, rounds)


def time_commands(runs: Runs, rounds: int) -> tuple[Seconds, float]:
    """Time the command in a process of its own: seconds in all, until its work begins, and of `--help`; peak memory in MiB.

    The work begins where the manifest says so: after imports, options, connect, a look at the schema, and the lock. Steps
    may run at the same time, so the whole less their sum would say nothing. As in cron's second night, byte code is there:
    in a folder of its own, which a first, untimed round fills.
    """
    seconds: Seconds = {COMMAND: [], WORK: [], STARTING: [], HELP: []}
    environment = os.environ | {"BPR_ETL_DATABASE_URL": runs.url, "PYTHONPYCACHEPREFIX": f"{runs.out}-bytecode"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    peaks = []
    for _ in range(rounds + 1):
        vacuum(runs.url)
        done = run_command([sys.executable, "cli.py", "run", "--json", "--out", runs.out], environment)
        answer = json.loads(done.answer)
        runs.published(answer["snapshot"])
        seconds[COMMAND].append(done.seconds)
        seconds[WORK].append(answer["seconds"])
        manifest = json.loads((Path(answer["snapshot"]) / "manifest.json").read_text(encoding="utf-8"))
        seconds[STARTING].append(datetime.fromisoformat(manifest["started_at"]).timestamp() - done.started_at)
        seconds[HELP].append(run_command([sys.executable, "cli.py", "--help"], environment).seconds)
        peaks.append(done.peak_mib)
    return {name: each[1:] for name, each in seconds.items()}, statistics.median(peaks)


def measure(url: str, sql_url: str, out: str, rounds: int, slow_rounds: int) -> dict[str, Any]:
    """Run all measurements. Each of the databases holds the same synthetic world."""
    runs = Runs(url, out)
    compare_rows(runs, sql_url)
    began = len(runs.steps)
    fast, slow = time_further_runs(runs, sql_url, rounds, slow_rounds)
    steps = {"further runs": runs.medians(began)}
    began = len(runs.steps)
    first = time_first_runs(runs, slow_rounds)
    steps["first runs"] = runs.medians(began)
    processes, peak = time_commands(runs, 9)
    together = {**slow, **fast, OURS: fast[OURS] + slow[OURS]}
    names = (OURS, SQL, *(name for name in together if name not in {OURS, SQL}))
    return {
        "made_with": environment(url),
        "rows": runs.rows,
        "variants": {
            **{name: variant_entry(together[name]) for name in names},
            **{FIRST + name: variant_entry(each) for name, each in first.items()},
            **{name: variant_entry(each, peak if name == COMMAND else None) for name, each in processes.items()},
        },
        "targets": _targets(fast, slow, first, processes),
        "steps": steps,
        "content": runs.contents.pop(),
    }


def _targets(fast: Seconds, slow: Seconds, first: Seconds, processes: Seconds) -> list[dict[str, Any]]:
    median = statistics.median
    return [
        target_entry("a run with nothing to backfill / pure SQL", median_ratio(fast[OURS], fast[SQL]), at_most=1.0),
        *(
            target_entry(
                f"{name} / a run with nothing to backfill", median_ratio(slow[name], slow[OURS]), at_least=least
            )
            for name, least in SLOWER.items()
            if name in slow
        ),
        target_entry("a first run / UPDATE + COPY floors", median_ratio(first[OURS], first[FLOORS]), at_most=1.25),
        target_entry("the whole command / its work", median_ratio(processes[COMMAND], processes[WORK]), at_most=1.6),
        target_entry("start-up of the command, s", median(processes[STARTING]), at_most=0.7),
        target_entry("`--help`, s", median(processes[HELP]), at_most=0.3),
    ]


def markdown(results: dict[str, Any]) -> str:
    """Format targets, variants, and the steps of our runs."""
    first, further = results["steps"]["first runs"], results["steps"]["further runs"]
    lines = [
        table_row(("step", "rows", "first runs, s", "further runs, s")),
        table_row(("---", "---:", "---:", "---:")),
    ]
    for name in first:
        rows = f"{results['rows'][name]:,}" if name in results["rows"] else ""
        lines.append(table_row((name, rows, f"{first[name]:.2f}", f"{further.get(name, 0.0):.2f}")))
    lines.append(table_row(("all steps", "", f"{sum(first.values()):.2f}", f"{sum(further.values()):.2f}")))
    table = "\n".join(lines) + "\n"
    return f"{targets_table(results['targets'])}\n{variants_table(results['variants'])}\nOur steps, medians:\n\n{table}"


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    parser = command_parser("run.run", "Compare a run with other ways to do its work.", database=True)
    parser.add_argument("--rounds", type=int, default=7, help="rounds with pure SQL")
    parser.add_argument("--slow-rounds", type=int, default=3, help="rounds with row by row, and of first runs")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the synthetic world")
    given = parser.parse_args(arguments)
    with (
        server(given.database_url) as url_of,
        fresh_database(url_of, "run") as url,
        fresh_database(url_of, "run_sql") as sql_url,
        tempfile.TemporaryDirectory(prefix="bpr-run-") as folder,
    ):
        for each in (url, sql_url):
            database.synth(load_settings({"database_url": each, "scale": given.scale}, {}))
        results = measure(url, sql_url, f"{folder}/out", given.rounds, given.slow_rounds) | {"scale": given.scale}
    head = (
        f"# A run at scale {given.scale:g}\n\n`python -m benchmarks run --save`: runs with nothing to backfill, "
        "first runs (every signal to backfill), and the whole command. Ratios are medians of paired rounds."
    )
    return present("run", results, head, markdown(results), save=given.save)


if __name__ == "__main__":
    sys.exit(main())
