"""What a snapshot is made of: events in their compact form, users, items. With these, triples need no database.

Users and items are `pl.Enum` columns here whose physical value is the index (`user_idx`, `item_idx`) of `users.parquet`
and `items.parquet`: an id is carried as four bytes, and an index costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import dataframely as dy
import polars as pl

from etl.contracts import Events, Nodes, Personas, Slots, Users
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


@dataclass(frozen=True)
class Dataset:
    """What is published, before it is cut by city.

    `events` has one row per event: EVENT_COLUMNS and `city`, in file order. `users` and `items` are the vocabularies,
    one row per id, sorted by it. `eligible` counts the nodes that each city can offer.
    """

    events: pl.DataFrame
    users: pl.DataFrame
    items: pl.DataFrame
    eligible: dict[str, int]


def compact(
    events: dy.DataFrame[Events],
    users: dy.DataFrame[Users],
    slots: dy.DataFrame[Slots],
    nodes: dy.DataFrame[Nodes],
    personas: dy.DataFrame[Personas],
) -> Dataset:
    """Put together what is published from an audience's events, users and personas, and the catalogue."""
    offer = eligible(nodes)
    full = with_shown(events, slots).with_columns(timestamp=pl.col("created_us").floordiv(1_000_000))
    items = _items(full, nodes, offer)
    vocabulary = _users(users, personas)
    item, user = pl.Enum(items["item_id"]), pl.Enum(vocabulary["user_id"])
    ordered = in_file_order(full).with_columns(
        *(pl.col(name).cast(pl.List(item)) for name in _LISTS), pl.col("user_id").cast(user)
    )
    sizes = dict(offer.group_by("city").len().sort("city").iter_rows())
    return Dataset(ordered.select(*EVENT_COLUMNS, "city"), vocabulary, items, sizes)


def _users(users: pl.DataFrame, personas: pl.DataFrame) -> pl.DataFrame:
    """One row per user of the audience, sorted by id: index and the eight dimensions, null where there is no such row."""
    wide = users.select("user_id").sort("user_id").with_row_index("user_idx").select("user_id", "user_idx")
    for dimension in _DIMENSIONS:
        values = personas.filter(pl.col("dimension") == dimension).select("user_id", pl.col("value").alias(dimension))
        wide = wide.join(values, on="user_id", how="left", maintain_order="left")
    return wide.with_columns(pl.col("cuisine_openness").cast(pl.Float64, strict=False))


def _items(events: pl.DataFrame, nodes: pl.DataFrame, offer: pl.DataFrame) -> pl.DataFrame:
    """One row per eligible node of any city and per node that an event names, sorted by id.

    A node that an event names and the catalogue no longer has: status `gone`, the rest null.
    """
    named = pl.concat([events.select(node_id=pl.col(name).explode(empty_as_null=False)) for name in _LISTS])
    ids = pl.concat([named, offer.select("node_id")]).drop_nulls().unique().sort("node_id")
    return (
        ids.join(nodes, on="node_id", how="left", maintain_order="left")
        .with_columns(pl.col("status").fill_null("gone"))
        .with_row_index("item_idx")
        .select(
            pl.col("node_id").alias("item_id"),
            "item_idx",
            "city",
            "category",
            "name",
            "latitude",
            "longitude",
            "status",
        )
    )
