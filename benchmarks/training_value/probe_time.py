"""How long the probe takes, and how much memory, on worlds that are too large to train on all of: it samples users.

Worlds are simulated in memory: users with a home city, three trips of two days, three items a day, drawn in proportion to a
skewed popularity. Each is probed in its own process, from the events on: what comes before is the reading of files.

    python -m benchmarks.training_value.probe_time [--save]
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from benchmarks.harness.command import command_parser
from benchmarks.harness.results import environment, save_results, table_row
from etl.evaluation.holdout import build_task_from, regenerate
from etl.evaluation.probe import probe
from etl.evaluation.sample import count_selections, restrict, sample_users
from etl.runtime.run_record import no_progress, peak_mib
from etl.settings.values import NegativeStrategies, SplitSpec
from etl.triples.dataset import ENCODED_EVENTS, BucketedEvents, Dataset
from etl.triples.partitions import TripleOptions, build_training_set

TRIPS, DAYS, PLACES, AT_HOME, NEGATIVES = 3, 2, 3, 0.85, 16


@dataclass(frozen=True)
class World:
    """The size of a simulated world: cities, items of each, and users."""

    cities: int
    items: int
    users: int


WORLDS = (World(1, 4_800, 50_000), World(1_300, 50, 200_000))


def simulate(world: World, seed: int = 0) -> Dataset:
    """Simulate a world's events, users, items and trips."""
    rng = np.random.default_rng(seed)
    home = rng.integers(world.cities, size=(world.users, 1))
    away = rng.random((world.users, TRIPS)) >= AT_HOME
    cities = np.where(away, rng.integers(world.cities, size=away.shape), home).ravel()
    trip = np.arange(world.users * TRIPS * DAYS) // DAYS
    chosen = (rng.random((len(trip), PLACES)) ** 3 * world.items).astype(np.int64)
    empty = dict.fromkeys(("candidate_idx", "ranked_idx", "shown_idx"), pl.lit([], dtype=pl.List(pl.UInt32)))
    texts = {"surface": "itinerary", "model_name": "simulated", "model_version": "0"}
    events = pl.DataFrame({"trip_idx": trip, "selected_idx": cities[trip, None] * world.items + chosen}).with_columns(
        pl.col("selected_idx").arr.to_list().list.unique(maintain_order=True),
        **{name: pl.lit(text) for name, text in texts.items()},
        **empty,
        event_id=pl.format("e{}", pl.int_range(pl.len())),
        user_idx=pl.col("trip_idx") // TRIPS,
        day_number=pl.int_range(pl.len()) % DAYS + 1,
        timestamp=pl.col("trip_idx") % TRIPS * 8_640_000,
        city=pl.format("c{}", pl.Series(cities[trip])),
    )
    n_items = world.cities * world.items
    items = pl.DataFrame({"item_id": [f"n{number:07}" for number in range(n_items)]}).with_row_index("item_idx")
    items = items.with_columns(
        category=pl.lit("any"),
        city=pl.format("c{}", pl.col("item_idx") // world.items),
        status=pl.lit("approved"),
        latitude=pl.Series(rng.normal(45, 0.05, n_items)),
        longitude=pl.Series(rng.normal(9, 0.05, n_items)),
    )
    users = pl.DataFrame({"user_id": [f"u{user:07}" for user in range(world.users)]}).with_row_index("user_idx")
    trips = pl.DataFrame({"trip_id": [f"t{number:08}" for number in range(len(cities))], "city": cities})
    trips = trips.with_columns(pl.format("c{}", "city").alias("city"), start_us=pl.int_range(pl.len()) % TRIPS)
    ordered = events.select(ENCODED_EVENTS.columns).cast(ENCODED_EVENTS.schema)
    return Dataset(BucketedEvents.of(ordered), users, items, trips)


def measure(world: World) -> dict[str, Any]:
    """Probe a world. Returns seconds, CPU seconds, peak memory in MiB, and what was sampled."""
    options = TripleOptions(split=SplitSpec("last-trip"), negatives=NegativeStrategies(f"catalog:{NEGATIVES}"))
    training = build_training_set(simulate(world), options)
    start, cpu = time.perf_counter(), time.process_time()
    counts = count_selections(training)
    users = sample_users(counts, int(counts.events.sum()) * NEGATIVES, 0)
    sampled = restrict(training, users)
    task = build_task_from(sampled, lambda part: regenerate(sampled, part, counts.cities), "last-trip", counts)
    facts = probe(replace(task, has_next=True), 0.3, 0, no_progress).facts
    names = "users_sampled", "cities_sampled", "triples"
    return {
        **asdict(world),
        **{name: facts[name] for name in names},
        "users_evaluated": facts["users"],
        "choices": facts["next"]["choices"],
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mib": round(peak_mib()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    given = command_parser("training_value.probe_time", __doc__).parse_args(arguments)
    context = multiprocessing.get_context("spawn")
    found = []
    for world in WORLDS:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            found.append(pool.submit(measure, world).result())
    head = list(found[0])
    lines = [table_row(name.replace("_", " ") for name in head), table_row("---:" for _ in head)]
    lines += [table_row(f"{each[name]:,}" for name in head) for each in found]
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if given.save:
        about = "# Time and memory of the probe\n\n`python -m benchmarks probe_time --save`: simulated worlds, users sampled."
        save_results("probe_time", {"made_with": environment(), "worlds": found}, about, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
