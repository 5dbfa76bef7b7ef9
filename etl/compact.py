"""What a snapshot is made of: events in their compact form, trips, users, items. With these, triples need no database.

Users and items are `pl.Enum` columns here whose physical value is the index (`user_idx`, `item_idx`) of `users.parquet`
and `items.parquet`: an id is carried as four bytes, and an index costs nothing.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass, field

import dataframely as dy
import polars as pl

from etl.contracts import ARCHIVED, Events, Nodes, Personas, Slots, Users
from etl.rankings import eligible, in_file_order, with_shown

_DIMENSIONS = (
    "pace_preference",
    "budget_sensitivity",
    "cuisine_openness",
    "social_mode",
    "time_orientation",
    "primary_interest",
    "trip_count",
    "category_affinities",
)
_LISTS = ("candidate_ids", "ranked_ids", "selected_ids", "shown_ids")

EVENT_COLUMNS = (
    "event_id",
    "user_id",
    "trip_id",
    "day_number",
    "timestamp",
    "surface",
    "model_name",
    "model_version",
    *_LISTS,
)
"""The columns of `events/`, in their order (CONTRACT, section 3)."""


PRESENT, GONE = "present", "gone"
"""What `status` says of a user, and of a user or an item that only an earlier vocabulary, or an event, still names."""


@dataclass(frozen=True)
class Vocabulary:
    """The ids of an earlier night, in the order of their indexes: they keep them. Empty by default."""

    users: pl.Series = field(default_factory=lambda: pl.Series("user_id", dtype=pl.String))
    items: pl.Series = field(default_factory=lambda: pl.Series("item_id", dtype=pl.String))


@dataclass(frozen=True)
class Dataset:
    """What is published, before it is cut by split and city.

    `events` has one row per event: EVENT_COLUMNS and `city`, in file order. `users` and `items` are the vocabularies,
    one row per id in the order of the indexes: by id, behind those of an earlier vocabulary. `trips` has one row per trip
    that has an event, sorted by id: `trip_id`, `city`, `start_us` (null when infinite).
    """

    events: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame
    trips: pl.DataFrame

    def offered(self) -> pl.DataFrame:
        """The items that can be offered: eligible nodes, one row each."""
        return self.items.filter(~pl.col("status").is_in([ARCHIVED, GONE]))

    @property
    def eligible(self) -> dict[str, int]:
        """How many nodes each city can offer."""
        return dict(self.offered().group_by("city").len().sort("city").iter_rows())


def compact(
    events: dy.DataFrame[Events],
    users: dy.DataFrame[Users],
    slots: dy.DataFrame[Slots],
    nodes: dy.DataFrame[Nodes],
    personas: dy.DataFrame[Personas],
    earlier: Vocabulary,
) -> Dataset:
    """Put together what is published from an audience's events, users and personas, and the catalogue."""
    full = with_shown(events, slots).with_columns(timestamp=pl.col("created_us").floordiv(1_000_000))
    items = _items(full, nodes, earlier.items)
    vocabulary = _users(users, personas, nodes["category"].unique().sort(), earlier.users)
    trips = events.select("trip_id", "city", "start_us").unique("trip_id").sort("trip_id")
    return Dataset(
        coded(in_file_order(full), vocabulary, items).select(*EVENT_COLUMNS, "city"), vocabulary, items, trips
    )


def coded(events: pl.DataFrame, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Events with their ids as Enums over the vocabularies: the physical value is the index."""
    item, user = pl.Enum(items["item_id"]), pl.Enum(users["user_id"])
    return events.with_columns(*(pl.col(name).cast(pl.List(item)) for name in _LISTS), pl.col("user_id").cast(user))


def _indexed(earlier: pl.Series, ids: pl.Series, index: str) -> pl.DataFrame:
    """The ids with their indexes: earlier ones keep theirs, new ones follow in the order of their bytes."""
    new = ids.unique().sort()
    new = new.filter(~new.is_in(earlier.implode()))
    return pl.concat([earlier.alias(ids.name), new]).to_frame().with_row_index(index).select(ids.name, index)


def _users(users: pl.DataFrame, personas: pl.DataFrame, categories: pl.Series, earlier: pl.Series) -> pl.DataFrame:
    """One row per user of the audience, or of the earlier vocabulary: what PersonaDimension says of each.

    The eight dimensions, then the confidence and the source of each, then the affinity for each category that a node has;
    null where there is no such row. `cuisine_openness` is a number, and so are the affinities that `category_affinities`
    holds as JSON.
    """
    wide = _indexed(earlier, users["user_id"], "user_idx")
    for column in ("value", "confidence", "source"):
        suffix = "" if column == "value" else f"_{column}"
        for dimension in _DIMENSIONS:
            rows = personas.filter(pl.col("dimension") == dimension)
            values = rows.select("user_id", pl.col(column).alias(dimension + suffix))
            wide = wide.join(values, on="user_id", how="left", maintain_order="left")
    here = pl.col("user_id").is_in(users["user_id"].implode())
    return wide.with_columns(
        pl.col("cuisine_openness").cast(pl.Float64, strict=False),
        *_affinities(wide["category_affinities"], categories),
        status=pl.when(here).then(pl.lit(PRESENT)).otherwise(pl.lit(GONE)),
    )


def _affinities(values: pl.Series, categories: pl.Series) -> list[pl.Series]:
    """The number that each `category_affinities` has for each category; null where there is none, or no JSON at all.

    By Python's own reader: a category may be called anything, and other producers may write anything.
    """
    vectors = [_numbers(value) for value in values]
    return [
        pl.Series(f"affinity_{category}", [vector.get(category) for vector in vectors], dtype=pl.Float64)
        for category in categories
    ]


def _numbers(value: str | None) -> dict[str, float]:
    try:
        found = json.loads(value or "null")
    except (ValueError, RecursionError):
        return {}
    numbers = {}
    for category, number in found.items() if isinstance(found, dict) else ():
        if isinstance(number, int | float) and not isinstance(number, bool):
            with suppress(OverflowError):  # a whole number that no float64 holds
                numbers[category] = float(number)
    return {category: number for category, number in numbers.items() if math.isfinite(number)}


def _items(events: pl.DataFrame, nodes: pl.DataFrame, earlier: pl.Series) -> pl.DataFrame:
    """One row per eligible node of any city, per node that an event names, and per node of the earlier vocabulary.

    A node that the catalogue no longer has: status `gone`, the rest null.
    """
    named = pl.concat([events.select(item_id=pl.col(name).explode(empty_as_null=False)) for name in _LISTS])
    ids = pl.concat([named, eligible(nodes).select(item_id="node_id")]).drop_nulls()["item_id"]
    return (
        _indexed(earlier, ids, "item_idx")
        .join(nodes.rename({"node_id": "item_id"}), on="item_id", how="left", maintain_order="left")
        .with_columns(pl.col("status").fill_null(GONE))
        .select("item_id", "item_idx", "city", "category", "name", "latitude", "longitude", "status")
    )
