"""Compares what a run costs when nothing, little or everything has changed since the run before.

Three pairs take turns, each variant on a database of its own with the same synthetic world, so that each finds the rows of its
own earlier run:

- nothing changed, and 1% of the trips changed: a run against the same work in pure SQL, which deletes and inserts all rows;
- everything changed (another seed, so that every id differs): `--write changes` against `--write replace`.

Before that, the rows are compared: pure SQL's, and those of `changes` after each kind of change with those of `replace`.
WAL and dead rows are counted after VACUUM and a checkpoint, the state of a day later, by the server.

    python -m benchmarks.run.steady [--database-url URL] [--rounds 7] [--scale 1] [--save]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg

from benchmarks.harness.command import command_parser, present, with_exit_codes
from benchmarks.harness.database import SHADOW, fresh_database, server, vacuum
from benchmarks.harness.measure import interleave, median_ratio, seconds_of
from benchmarks.harness.results import environment, target_entry, targets_table, variant_entry, variants_table
from benchmarks.run import pure_sql, row_by_row
from etl.pipeline import database
from etl.pipeline import run as pipeline
from etl.pipeline.context import RunResult
from etl.settings.sources import load_settings

NOTHING, LITTLE, EVERYTHING = "nothing changed: ", "1% of the trips changed: ", "everything changed: "
OURS, SQL, CHANGES, REPLACE = "a run", "pure SQL", "--write changes", "--write replace"
TABLES = ("PersonaDimension", "RankingEvent")
PROCESSOR = "processor time of the process, all of its threads"

_CHANGE = f"""
UPDATE "ItinerarySlot" s SET "status" = (CASE WHEN s."status" = 'confirmed' THEN 'skipped' ELSE 'confirmed' END)::"SlotStatus"
FROM (SELECT t."id", row_number() OVER (ORDER BY t."id" COLLATE "C") AS n FROM "Trip" t WHERE t."userId" IN ({SHADOW})) t
WHERE t."id" = s."tripId" AND t.n %% 100 = %s AND s."sortOrder" = 0
"""
"""The first slot of each day of one in a hundred trips: every event of these trips changes."""


@dataclass(frozen=True)
class World:
    """A database with the synthetic world, and a folder to publish to."""

    url: str
    out: str

    def run(self, write: str = CHANGES, seed: int = 0) -> RunResult:
        """Run once, in this process."""
        given = {
            "database_url": self.url,
            "out": self.out,
            "keep": 1,
            "seed": seed,
            "write": write.removeprefix("--write "),
        }
        return pipeline.run(load_settings(given, {}))

    def change_trips(self, which: int) -> None:
        """Change one in a hundred trips, those of a number from 0 to 99."""
        with psycopg.connect(self.url) as connection:
            connection.execute(_CHANGE.encode(), (which,))


def compare_rows(ours: World, other: World) -> None:
    """Raise RuntimeError if pure SQL writes other rows than a run, or `changes` others than `replace`."""
    ours.run()
    pure_sql.run(other.url)
    row_by_row.require_equal(pure_sql.comparable(ours.url), pure_sql.comparable(other.url), SQL)
    for change in (World.run, partial(World.change_trips, which=7), partial(World.run, seed=1)):
        for world, write in ((ours, CHANGES), (other, REPLACE)):
            change(world)
            world.run(write)
        row_by_row.require_equal(row_by_row.written(ours.url), row_by_row.written(other.url), CHANGES)


def written_to_log(world: World, work: Callable[[], object]) -> int:
    """Return the bytes of WAL that are written meanwhile, after VACUUM and a checkpoint."""
    vacuum(world.url)
    with psycopg.connect(world.url, autocommit=True) as connection:
        before = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        work()
        found = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s::pg_lsn)", before).fetchone()
    return int(found[0]) if found else 0


def dead_rows(world: World) -> int:
    """Return how many versions of rows of the two tables have died so far, by the server's statistics."""
    with psycopg.connect(world.url) as connection:
        found = connection.execute(
            "SELECT sum(n_tup_upd + n_tup_del)::int FROM pg_stat_user_tables WHERE relname = ANY(%s)", (list(TABLES),)
        ).fetchone()
    return int(found[0]) if found else 0


def measure(ours: World, sql: World, rounds: int) -> dict[str, Any]:
    """Run all measurements."""
    compare_rows(ours, sql)

    def timed(world: World, prepare: Callable[[], object], work: Callable[[], object]) -> float:
        prepare()
        vacuum(world.url)
        return seconds_of(work)

    numbers = {id(world): iter(range(100)) for world in (ours, sql)}

    def next_trips(world: World) -> None:
        world.change_trips(next(numbers[id(world)]))

    pure = partial(pure_sql.run, sql.url)
    steady: list[dict[str, float]] = []

    def run() -> None:
        processor = time.process_time()
        steps = {step.name: step.seconds for step in ours.run().steps}
        steady.append(steps | {PROCESSOR: time.process_time() - processor})

    seconds: dict[str, list[float]] = {}
    pure()
    for what, prepare in ((NOTHING, lambda _: None), (LITTLE, next_trips)):
        seconds |= interleave(
            {
                what + OURS: partial(timed, ours, partial(prepare, ours), run),
                what + SQL: partial(timed, sql, partial(prepare, sql), pure),
            },
            rounds,
        )
    nothing = ours.run().counts["written"]
    dead = dead_rows(ours)
    # The log is the whole server's: autovacuum may write to it, too.
    log = {OURS: min(written_to_log(ours, ours.run) for _ in range(3))}
    dead = dead_rows(ours) - dead
    ours.change_trips(99)
    log["1% changed"] = written_to_log(ours, ours.run)
    log[REPLACE] = written_to_log(ours, partial(ours.run, REPLACE))
    seconds |= interleave(
        {
            EVERYTHING + write: partial(timed, ours, partial(ours.run, seed=1), partial(ours.run, write))
            for write in (CHANGES, REPLACE)
        },
        rounds,
    )
    return {
        "made_with": environment(ours.url),
        "rows": {table: counts["unchanged"] for table, counts in nothing.items()},
        "variants": {name: variant_entry(each) for name, each in seconds.items()},
        "targets": _targets(seconds, log, dead),
        "steps": {name: round(statistics.median(each[name] for each in steady[:rounds]), 4) for name in steady[0]},
        "log_bytes": log,
    }


def _targets(seconds: dict[str, list[float]], log: dict[str, int], dead: int) -> list[dict[str, Any]]:
    def ratio(what: str, above: str, below: str) -> float:
        return median_ratio(seconds[what + above], seconds[what + below])

    return [
        target_entry(f"{NOTHING}{OURS} / {SQL}", ratio(NOTHING, OURS, SQL), at_most=1.0),
        target_entry(f"{LITTLE}{OURS} / {SQL}", ratio(LITTLE, OURS, SQL), at_most=1.1),
        target_entry(f"{EVERYTHING}{CHANGES} / {REPLACE}", ratio(EVERYTHING, CHANGES, REPLACE), at_most=1.1),
        target_entry(f"{NOTHING}WAL / WAL of {REPLACE}", log[OURS] / log[REPLACE], at_most=0.01),
        target_entry(f"{NOTHING}dead rows left", dead, at_most=0),
    ]


def markdown(results: dict[str, Any]) -> str:
    """Format targets, variants, and the WAL written."""
    log = "".join(f"- {name}: {number:,} bytes\n" for name, number in results["log_bytes"].items())
    steps = "".join(f"- {name}: {seconds:.3f} s\n" for name, seconds in results["steps"].items())
    return (
        f"{targets_table(results['targets'])}\n{variants_table(results['variants'])}\nWAL written:\n\n{log}\n"
        f"Steps of a run when nothing has changed, medians; some run at the same time:\n\n{steps}"
    )


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    parser = command_parser("run.steady", "What a run costs when nothing, little or everything changed.", database=True)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each pair")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the synthetic world")
    given = parser.parse_args(arguments)
    with server(given.database_url) as url_of, ExitStack() as stack:
        worlds = []
        for label in ("steady", "steady_sql"):
            url = stack.enter_context(fresh_database(url_of, label))
            database.synth(load_settings({"database_url": url, "scale": given.scale}, {}))
            worlds.append(World(url, stack.enter_context(tempfile.TemporaryDirectory(prefix="bpr-steady-"))))
        results = measure(worlds[0], worlds[1], given.rounds) | {"scale": given.scale}
    head = (
        f"# What changed is written, at scale {given.scale:g}\n\n`python -m benchmarks steady --save`: a run after a run, in "
        "this process, from connecting to published. Ratios are medians of paired rounds."
    )
    return present("steady", results, head, markdown(results), save=given.save)


if __name__ == "__main__":
    sys.exit(main())
