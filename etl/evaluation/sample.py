"""The counts of a probe over all events, and its sample of users: at any size, as many as take about a minute.

Popularity is counted over all users. Everything else uses a random sample of users, which widens the intervals but adds
no bias. The sample depends only on the seed and the users' order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from etl.transform.arrays import I64
from etl.triples.dataset import ENCODED_EVENTS, BucketedEvents
from etl.triples.generate import ListColumn
from etl.triples.partitions import TrainingSet

MAX_USERS = 5_000
"""Maximum number of sampled users: enough for a narrow interval."""
MAX_CELLS = 5_000_000
"""Maximum number of ranked pairs: (user, item of a city that the user visited)."""
MAX_ITEMS = 15_000
"""Maximum number of items in the catalogues: a model has parameters for each."""
MAX_ROWS = 1_000_000
"""Approximate maximum of training rows, of triples or of `next/`: users have different numbers of them."""


@dataclass(frozen=True)
class Counts:
    """Counts of a dataset's events before test, and its users.

    `events` and `people` have for each item, by index, the events and the distinct users that selected it. `n_users` counts the
    users with events in cities that have triples. `cities` are those that are evaluated. `users` are the indexes of the
    users with events in them, ascending. `cells` is the number of (user, item of a city with events of the user) pairs.
    """

    events: I64
    people: I64
    n_users: int
    cities: frozenset[str]
    users: I64
    cells: int


def count_selections(training: TrainingSet, seed: int = 0) -> Counts:
    """Count the events of a dataset with a split, one bucket at a time. Of too many cities, some are sampled."""
    items, chosen = training.dataset.items.height, _sample_cities(training, seed)
    events, people, n_users, cells = np.zeros(items, np.int64), np.zeros(items, np.int64), 0, 0
    users = [np.zeros(0, np.int64)]
    light = replace(training.dataset, events=training.dataset.events.select(["selected_idx"]))
    for bucket in replace(training, dataset=light).buckets():
        before = bucket.filter(pl.col("split") != "test")
        events += ListColumn.of(before["selected_idx"]).counts(items)
        # A bucket has all events of its users.
        pairs = before.select("user_idx", "selected_idx").explode("selected_idx", empty_as_null=False).unique()
        people += np.bincount(pairs["selected_idx"].to_numpy(), minlength=items)
        own = bucket.filter(pl.col("city").is_in(training.kept)).select("user_idx", "city").unique()
        n_users += own["user_idx"].n_unique()
        here = own.filter(pl.col("city").is_in(chosen))
        cells += int(here["city"].replace_strict(training.eligible, default=0, return_dtype=pl.Int64).sum())
        users.append(here["user_idx"].unique().to_numpy().astype(np.int64))
    return Counts(events, people, n_users, frozenset(chosen), np.sort(np.concatenate(users)), cells)


def _sample_cities(training: TrainingSet, seed: int) -> list[str]:
    """Return the cities with triples, in random order, as many as have at most MAX_ITEMS items together; one at least."""
    cities = [training.kept[place] for place in np.random.default_rng(seed).permutation(len(training.kept))]
    sizes = np.cumsum([training.eligible.get(city, 0) for city in cities])
    return cities[: max(1, int(np.searchsorted(sizes, MAX_ITEMS, side="right")))]


def sample_users(counts: Counts, rows: int, seed: int) -> I64:
    """Return the sampled users, ascending; all users if there are few enough. `rows` are those of the cities."""
    n = max(len(counts.users), 1)
    share = min(1.0, MAX_USERS / n, MAX_CELLS / max(counts.cells, 1), MAX_ROWS / max(rows, 1))
    sampled: I64 = np.random.default_rng(seed).permutation(counts.users)[: max(1, int(n * share))]
    return np.sort(sampled)


def restrict(training: TrainingSet, users: I64) -> TrainingSet:
    """Return the training set with the events of these users alone, as one bucket; popularity stays that of all."""
    popularity = training.popularity if training.needs_popularity else None
    own = pl.Series(users, dtype=pl.UInt32).implode()
    events = pl.concat(
        [ENCODED_EVENTS, *(each.filter(pl.col("user_idx").is_in(own)) for each in training.dataset.events)]
    )
    dataset = replace(training.dataset, events=BucketedEvents.of(events))
    return replace(training, dataset=dataset, popularity_counts=popularity)
