"""The question "which new item comes next, given the trip so far?": its choices, features, rankings and training rows.

A choice is an item of a trip, from the second on, that the user had not selected before. Its candidates are the city's eligible
items that the user has selected neither earlier in the trip nor in an earlier trip. They are ranked by distance from the
previous item, among others. A choice in a part of the split knows nothing of later parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.evaluation import bpr
from etl.evaluation.metrics import GroupMetrics, ranking_metrics
from etl.transform.arrays import I64
from etl.triples.dataset import Dataset
from etl.triples.next_choices import Coordinates

MAX_CELLS = 6_000_000
"""Maximum number of ranked (choice, item) pairs; if there are more, only a random sample of users is ranked."""
_CHUNK_CELLS = 500_000
"""Maximum number of them in memory at a time."""
_NEAR_KM = 0.1
"""Added to distances before the logarithm: the length of a block."""
NEGATIVES = 16
"""Negatives sampled per choice if rows are generated here, not read from `next/`."""
_NEVER = np.iinfo(np.int32).max

CONFIG = bpr.BprConfig(
    factors=4, spread=0.1, user_penalty=300, item_penalty=300, bias_penalty=100, slope_penalty=1, epochs=10
)
"""How the model of a next item is trained. Penalties on ids are high: they gain little here."""

FEATURES = ("log_users", "log_km", "log_km_same_day")
"""The features of a candidate, in the order of the model's slopes."""

Features = npt.NDArray[np.float32]
Scores = npt.NDArray[np.floating]


# --- choices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choices:
    """Some choices in one city, one row each.

    `users` and `previous` are indexes of users and items; `chosen` is a column of `items`, the indexes of the city's catalogue.
    `same_day` says whether the previous item is of the same day. `candidates` is of shape (choices, items).
    """

    city: str
    items: I64
    users: I64
    previous: I64
    chosen: I64
    same_day: npt.NDArray[np.bool_]
    candidates: npt.NDArray[np.bool_]


def order_selections(
    events: pl.DataFrame, trips: pl.DataFrame, shuffle: np.random.Generator | None = None
) -> pl.DataFrame:
    """Return one row per selected item, in each user's order, with its place in it (`seq`) and the trip's previous item.

    `events` has `split`. Trips are in the order of (start, id), items of a trip in that of (day, position). `shuffle` puts the
    items of each day in random order: the control that shows what the order within a day is worth.
    """
    long = (
        events.select(
            "user_idx", "trip_idx", "day_number", "city", pl.col("split").cast(pl.String), item="selected_idx"
        )
        .explode("item", empty_as_null=False)
        .with_columns(pl.col("user_idx", "item").cast(pl.Int64))
        .pipe(lambda rows: rows.with_columns(start=trips["start_us"].gather(rows["trip_idx"])))
    )
    within = np.arange(long.height) if shuffle is None else shuffle.permutation(long.height)
    return (
        long.with_columns(within=within)
        .sort("user_idx", "start", "trip_idx", "day_number", "within", nulls_last=False)
        .with_columns(
            seq=pl.int_range(pl.len()).over("user_idx"),
            previous=pl.col("item").shift().over("user_idx", "trip_idx"),
            same_day=pl.col("day_number") == pl.col("day_number").shift().over("user_idx", "trip_idx"),
        )
    )


def iter_choices(
    dataset: Dataset, selections: pl.DataFrame, parts: Iterable[str], seed: int, max_cells: int = MAX_CELLS
) -> Iterator[Choices]:
    """Yield the choices of new items in these parts of the split, by city in the order of its bytes.

    `selections` are those that the choices may know of. If there are more than `max_cells`, users are sampled with the
    seed.
    """
    catalog = dataset.eligible_items().sort("item_id").select("city", item=pl.col("item_idx").cast(pl.Int64))
    catalog = catalog.with_columns(column=pl.int_range(pl.len()).over("city"), size=pl.len().over("city"))
    first = selections.group_by("user_idx", "item").agg(pl.col("seq").min().alias("first"))
    rows = (
        selections.filter(pl.col("split").is_in(list(parts)), pl.col("previous").is_not_null())
        .join(catalog, on=["city", "item"], maintain_order="left")
        .join(first, on=["user_idx", "item"], maintain_order="left")
        .filter(pl.col("seq") == pl.col("first"))
        .pipe(_sampled, seed, max_cells)
    )
    for city in sorted(rows["city"].unique(), key=str.encode):
        items, here = catalog.filter(pl.col("city") == city)["item"].to_numpy(), rows.filter(pl.col("city") == city)
        known = first.join(catalog.filter(pl.col("city") == city), on="item")
        for part in here.iter_slices(max(1, _CHUNK_CELLS // len(items))):
            users, row = np.unique(part["user_idx"].to_numpy(), return_inverse=True)
            since = np.full((len(users), len(items)), _NEVER)
            theirs = known.join(pl.DataFrame({"user_idx": users}).with_row_index("row"), on="user_idx")
            since[theirs["row"].to_numpy(), theirs["column"].to_numpy()] = theirs["first"].to_numpy()
            yield Choices(
                city,
                items,
                part["user_idx"].to_numpy(),
                part["previous"].to_numpy(),
                part["column"].to_numpy(),
                part["same_day"].to_numpy(),
                since[row] >= part["seq"].to_numpy()[:, None],
            )


def _sampled(rows: pl.DataFrame, seed: int, max_cells: int) -> pl.DataFrame:
    """Keep the choices of users, in random order, up to `max_cells` cells in all; of one user at least."""
    cost = rows.group_by("user_idx").agg(pl.col("size").sum()).sort("user_idx")
    cost = cost[np.random.default_rng(seed).permutation(cost.height)]
    kept = cost.filter((pl.col("size").cum_sum() <= max_cells) | (pl.int_range(pl.len()) == 0))
    return rows.join(kept, on="user_idx", how="semi", maintain_order="left")


# --- features --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemFeatures:
    """What is known of items, by index: `people`, the distinct users that selected each before test, and where it is."""

    people: I64
    places: Coordinates

    def log_people(self, items: I64, without: npt.NDArray[np.bool_] | int = 0) -> npt.NDArray[np.float64]:
        """Return the logarithm of each item's users, `without` the user whose choice it is; 0 users count as 0.5."""
        found: npt.NDArray[np.float64] = np.log(np.maximum(self.people[items] - without, 0.5))
        return found

    def of_choices(self, choices: Choices) -> Features:
        """Return the features of every candidate: (choices, items, 3), log users, log distance, the same within a day.

        An unknown distance counts as the mean of the choice's known ones: it neither helps nor harms.
        """
        distance = np.log(_NEAR_KM + self.places.km(choices.previous[:, None], choices.items))
        known = ~np.isnan(distance) & choices.candidates
        total = np.where(known, distance, 0).sum(axis=1, keepdims=True)
        distance = np.where(np.isnan(distance), total / np.maximum(known.sum(axis=1, keepdims=True), 1), distance)
        people = np.broadcast_to(self.log_people(choices.items), distance.shape)
        return np.stack([people, distance, distance * choices.same_day[:, None]], axis=-1).astype(np.float32)


def distance_difference(
    pos_km: npt.NDArray[np.floating], neg_km: npt.NDArray[np.floating], same_day: npt.NDArray[np.bool_]
) -> Features:
    """Return the features of distance, positive minus negative: (rows, 2); 0 where either distance is nan."""
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(np.log(_NEAR_KM + pos_km) - np.log(_NEAR_KM + neg_km))
    return np.stack([apart, apart * same_day], axis=1).astype(np.float32)


# --- training rows ---------------------------------------------------------------------------------------------------


_NO_ROWS = pl.DataFrame(
    schema={
        **dict.fromkeys(("user_idx", "pos_idx", "neg_idx"), pl.Int64),
        **dict.fromkeys(("weight", "pos_km", "neg_km"), pl.Float32),
        "same_day": pl.Boolean,
    }
)
"""Rows to train on: indexes, weights, km from the previous item (nan: unknown), and whether that is of the same day."""


def new_rows(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Take the rows of the published table whose positive is new to the user."""
    new = (each.filter("is_new").select(_NO_ROWS.columns).cast(_NO_ROWS.schema) for each in frames)
    return pl.concat([_NO_ROWS, *new]).with_columns(pl.col("pos_km", "neg_km").fill_null(np.nan))


def draw_rows(choices: Iterable[Choices], features: ItemFeatures, rng: np.random.Generator) -> pl.DataFrame:
    """Sample up to NEGATIVES candidates for each choice, uniformly without replacement."""
    drawn = [_NO_ROWS]
    for each in choices:
        row = np.arange(len(each.users))
        pool = each.candidates.copy()
        pool[row, each.chosen] = False
        order = np.argsort(np.where(pool, rng.random(pool.shape), 2.0), axis=1)[:, :NEGATIVES]
        row, place = np.nonzero(np.take_along_axis(pool, order, axis=1))
        positives, negatives = each.items[each.chosen[row]], each.items[order[row, place]]
        pos_km, neg_km = (features.places.km(each.previous[row], items) for items in (positives, negatives))
        columns = each.users[row], positives, negatives, np.ones(len(row)), pos_km, neg_km, each.same_day[row]
        drawn.append(pl.DataFrame(dict(zip(_NO_ROWS.columns, columns, strict=True))))
    return pl.concat(drawn, how="vertical_relaxed")


def train(
    rows: pl.DataFrame,
    features: ItemFeatures,
    selected: pl.DataFrame,
    config: bpr.BprConfig,
    after_epoch: Callable[[int], object] = lambda _number: None,
) -> bpr.Model:
    """Train a model on rows. Its slopes are the weights of FEATURES.

    `selected` has the (user, item) pairs before test, `user_idx` and `item`. A user's own selections do not count in the
    popularity that the model sees: in a choice to come, the item is new to the user.
    """
    items = len(features.people)
    own = np.unique(selected["user_idx"].to_numpy() * items + selected["item"].to_numpy())
    users, positives, negatives, _, pos_km, neg_km, same_day = (column.to_numpy() for column in rows)
    positive, negative = (
        features.log_people(codes, np.isin(users * items + codes, own)) for codes in (positives, negatives)
    )
    apart = distance_difference(pos_km, neg_km, same_day)
    columns = np.column_stack([(positive - negative).astype(np.float32), apart])
    return bpr.train(rows, config, features=columns, after_epoch=after_epoch)


# --- rankings --------------------------------------------------------------------------------------------------------

Scorer = Callable[[Choices, Features], Scores]
"""Returns scores of shape (choices, items), higher is better."""


def by_model(model: bpr.Model) -> Scorer:
    """Score by a model."""
    return lambda choices, features: model.scores(choices.users, choices.items) + features @ model.parameters.slopes


def by_people(_choices: Choices, features: Features) -> Scores:
    """Score by the number of users."""
    return features[..., 0]


def by_people_and_distance(_choices: Choices, features: Features) -> Scores:
    """Score by the number of users over the distance: log(users) - log(0.1 km + distance)."""
    return features[..., 0] - features[..., 1]


def evaluate(
    choices: Iterable[Choices], features: ItemFeatures, scorers: Mapping[str, Scorer]
) -> dict[str, GroupMetrics]:
    """Rank the candidates of every choice by each scorer. A choice with the chosen item alone has no metrics (nan)."""
    found: dict[str, list[GroupMetrics]] = {name: [] for name in scorers}
    for each in choices:
        chosen = np.arange(len(each.items)) == each.chosen[:, None]
        known = features.of_choices(each)
        for name, score in scorers.items():
            figures = ranking_metrics(score(each, known), each.candidates, chosen)
            found[name].append(GroupMetrics.of(each.users, each.city, figures))
    return {name: GroupMetrics.concat(parts) for name, parts in found.items()}


def with_random_previous(choices: Iterable[Choices], rng: np.random.Generator) -> Iterator[Choices]:
    """Yield the choices with a random item of the city as the previous one: the control that shows what distance is worth."""
    for each in choices:
        yield replace(each, previous=rng.choice(each.items, len(each.users)))
