"""Does sampling by popularity help in large catalogues? A simulation, because the real cities here have 24 to 242 items.

One city, whose items differ in popularity (shifted Zipf distribution) and in category; every user prefers some categories. The
items of a trip are drawn by popularity and preference together. Everything else is as in
`benchmarks/training_value/negatives.py`: last trip held out, the probe's tuning, mean per user over seeds.

    python -m benchmarks.training_value.large_catalogue [--seeds 2] [--save]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from benchmarks.harness.command import command_parser
from benchmarks.harness.results import RESULTS, table_row
from benchmarks.training_value.negatives import Row, row_entry, train
from etl.evaluation.holdout import build_task_from, regenerate
from etl.evaluation.metrics import RankingMetrics
from etl.evaluation.verdict import BY_USERS, HISTORY_BY_USERS, MODEL, POPULARITY
from etl.settings.values import LARGE_CATALOGUE, NegativeStrategies, SplitSpec
from etl.triples.dataset import ENCODED_EVENTS, BucketedEvents, Dataset
from etl.triples.partitions import TripleOptions, build_training_set

SIZES = (300, 1_000, 3_000, 5_000)
ALPHAS = (0.0, 0.5)
UNTRAINED = {
    POPULARITY: "popularity by events",
    BY_USERS: "popularity by users",
    HISTORY_BY_USERS: "own history, popularity by users",
}
USERS, TRIPS, DAYS, PLACES, CATEGORIES = 1_500, 4, 5, 3, 11
AFFINITY_WEIGHT = 2.5
"""How much a category's liking, a number from 0 to 1, counts: a place of the best-liked is chosen e**2.5 times as often."""


def simulate(nodes: int, seed: int = 0) -> Dataset:
    """Simulate a city of that many items, and `USERS` users with `TRIPS` trips each, none with a candidate."""
    rng = np.random.default_rng(seed)
    category = rng.integers(CATEGORIES, size=nodes)
    popularity = -np.log(np.arange(nodes) + 10.0)[rng.permutation(nodes)]
    liking = rng.beta(1.0, 1.5, (USERS, CATEGORIES))
    # Gumbel's trick: the items of a day are drawn without repeats, in proportion to exp(score).
    days: list[dict[str, Any]] = []
    for user in range(USERS):
        score = popularity + AFFINITY_WEIGHT * liking[user, category]
        for trip in range(TRIPS):
            drawn = np.argsort(-(score + rng.gumbel(size=(DAYS, nodes))), axis=1)[:, :PLACES]
            days += [
                {
                    "user_idx": user,
                    "trip_idx": user * TRIPS + trip,
                    "day_number": day + 1,
                    "selected_idx": codes.tolist(),
                }
                for day, codes in enumerate(drawn)
            ]
    trip_ids = [f"u{user:05}-{trip}" for user in range(USERS) for trip in range(TRIPS)]
    constants = {"surface": "itinerary", "model_name": "simulated", "model_version": "0", "city": "Simulated"}
    events = (
        pl.DataFrame(days)
        .with_columns(
            *(pl.lit(value).alias(name) for name, value in constants.items()),
            *(
                pl.lit([], dtype=pl.List(pl.UInt32)).alias(name)
                for name in ("candidate_idx", "ranked_idx", "shown_idx")
            ),
            event_id=pl.format("u{}-{}", pl.col("trip_idx").cast(pl.String).str.zfill(6), "day_number"),
            timestamp=pl.col("trip_idx") % TRIPS * 8_640_000 + pl.col("day_number") * 86_400,
        )
        .select(ENCODED_EVENTS.columns)
        .cast(ENCODED_EVENTS.schema)
    )
    users = pl.DataFrame({"user_id": [f"u{user:05}" for user in range(USERS)]}).with_row_index("user_idx")
    items = pl.DataFrame({"item_id": [f"n{node:05}" for node in range(nodes)]}).with_row_index("item_idx")
    items = items.with_columns(
        pl.Series("category", category.astype(str)),
        city=pl.lit("Simulated"),
        status=pl.lit("approved"),
        latitude=pl.lit(None, dtype=pl.Float64),
        longitude=pl.lit(None, dtype=pl.Float64),
    )
    trips = events.group_by("trip_idx").agg(pl.col("city").first(), start_us=pl.col("timestamp").min() * 1_000_000)
    trips = trips.sort("trip_idx").select("city", "start_us", trip_id=pl.Series(trip_ids))
    return Dataset(BucketedEvents.of(in_user_order(events)), users, items, trips)


def in_user_order(events: pl.DataFrame) -> pl.DataFrame:
    """Order the events by user."""
    return events.sort("user_idx", "timestamp")


def measure(nodes: int, alpha: float, seeds: int) -> dict[tuple[str, str], RankingMetrics]:
    """Return the metrics of catalog:16 sampled in proportion to popularity to the power alpha."""
    options = TripleOptions(
        split=SplitSpec("last-trip"), negatives=NegativeStrategies("catalog:16"), catalog_alpha=alpha
    )
    training = build_training_set(simulate(nodes), options)
    return train(build_task_from(training, lambda part: regenerate(training, part), "last-trip"), seeds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = command_parser("training_value.large_catalogue", __doc__)
    parser.add_argument("--seeds", type=int, default=2, help="how many times a model is trained")
    given = parser.parse_args(arguments)
    head = ("items", *UNTRAINED.values(), *(f"alpha {alpha:g}" for alpha in ALPHAS))
    lines, kept = [table_row(head), table_row("---:" for _ in head)], []
    for nodes in SIZES:
        cells = []
        for alpha in ALPHAS:
            found = measure(nodes, alpha, given.seeds)
            cells.append(_cell(found[MODEL, "all"]))
            kept.append({"nodes": nodes, "alpha": alpha, **_account(found)})
            print(nodes, alpha, cells[-1], file=sys.stderr, flush=True)
        untrained = (_cell(found[name, "all"]) for name in UNTRAINED)
        lines.append(table_row((f"{nodes:,}", *untrained, *cells)))
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if given.save:
        about_it = (
            "# Large catalogues, simulated\n\n`python -m benchmarks large_catalogue --save`: AUC / NDCG@10 of `catalog:16` "
            f"with `--catalog-alpha`; `recommended` takes 0.5 from {LARGE_CATALOGUE:,} items on.\n\n"
        )
        (RESULTS / "large_catalogue.md").write_text(about_it + table, encoding="utf-8")
        (RESULTS / "large_catalogue.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


def _cell(figures: RankingMetrics) -> str:
    return f"{np.nanmean(figures.auc):.3f} / {np.nanmean(figures.ndcg):.3f}"


def _account(figures: dict[tuple[str, str], RankingMetrics]) -> dict[str, Any]:
    found = row_entry(Row("simulated", "catalog:16", figures, 0, 0.0, {}))
    return {name: found[name] for name in ("rankings", "model_against")}


if __name__ == "__main__":
    sys.exit(main())
