"""Ranking events: what a model would have offered on a day, and what the user selected (docs/design.md, docs/contract.md).

Pure functions from frame to frame. Nodes are `pl.Enum` columns whose values are in the order of their UTF-8 bytes, so that
sorting by node compares integers, not texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import dataframely as dy
import polars as pl

from etl.transform.arrays import Counts
from etl.transform.candidates import candidates
from etl.transform.hashing import sha256_hex, stable_id
from etl.transform.personas import read_affinities
from etl.transform.schemas import ARCHIVED, DIMENSIONS, SELECTED_STATUSES, Affinities, Nodes, Personas

MODEL_NAME = "llm_ranker"
MODEL_VERSION = "0.1.0"
SURFACE = "itinerary"

MADE_ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "PersonaDimension": {"dimension": DIMENSIONS},
    "RankingEvent": {"surface": (SURFACE,), "modelName": (MODEL_NAME,), "modelVersion": (MODEL_VERSION,)},
}
"""The values that distinguish a row that a run makes from a row of the application: {model: {column: values}}."""

_US_PER_DAY = 86_400_000_000
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31, in days since 1970

SKIP_REASONS = ("user_without_persona", "city_without_nodes", "date_out_of_range")
"""Why a (trip, day) has no event. Where several reasons hold, the first one is counted."""

WITHOUT_CITY = "day_without_city"
"""The reason of a day without a city, which only a schema with legs has. It comes after `user_without_persona`."""


@dataclass(frozen=True)
class RankingStats(Counts):
    """Counts: ranking events; (trip, day) pairs without one, by reason; positives. Named as in the manifest.

    `days_in_several_cities` counts the events whose day has slots in legs of several cities.
    """

    ranking_events: int = 0
    days_without_event: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SKIP_REASONS, 0))
    positives: int = 0
    positives_outside_candidates: int = 0
    days_in_several_cities: int = 0


@dataclass(frozen=True)
class RankingEvents:
    """Ranking events of shadow users, and their counts.

    `events` has one row per (trip, day), ordered by (user's hash, user, created, trip, day). Its columns are those of
    `Events`, with nodes as Enum, and `shown_ids` and `latency_ms`.
    """

    events: pl.DataFrame
    stats: RankingStats


def node_type(*ids: pl.Series) -> pl.Enum:
    """Returns the Enum of all the node ids given, in the order of their bytes, without nulls."""
    every = pl.concat([series.cast(pl.String) for series in ids]) if ids else pl.Series(dtype=pl.String)
    return pl.Enum(every.drop_nulls().unique().sort())


def eligible(nodes: pl.DataFrame) -> pl.DataFrame:
    """Returns the nodes that can be offered: all but the archived ones."""
    return nodes.filter(pl.col("status") != ARCHIVED)


def sort_slots(slots: pl.DataFrame) -> pl.DataFrame:
    """Returns the slots that hold a node, by trip and day, then by (sortOrder, id)."""
    return slots.filter(pl.col("node_id").is_not_null()).sort("trip_id", "day_number", "sort_order", "slot_id")


def day_nodes(ordered: pl.DataFrame) -> pl.DataFrame:
    """Returns the distinct nodes of each day, each at its first slot. `ordered` are slots in slot order."""
    return ordered.unique(["trip_id", "day_number", "node_id"], keep="first", maintain_order=True)


def selected(ordered: pl.DataFrame) -> pl.DataFrame:
    """Returns what the user selected: one row per (trip, day) with any; `selected_ids` are distinct, in slot order."""
    taken = day_nodes(ordered.filter(pl.col("status").is_in(SELECTED_STATUSES)))
    return taken.group_by("trip_id", "day_number", maintain_order=True).agg(selected_ids="node_id")


def add_shown(events: pl.DataFrame, ordered: pl.DataFrame) -> pl.DataFrame:
    """Returns events with `shown_ids`: the day's distinct nodes that were not selected, in slot order; never null.

    `ordered` are the slots of the events' trips, in slot order.
    """
    keys = ["trip_id", "day_number"]
    day = events.select("event_id", *keys).join(day_nodes(ordered), on=keys, maintain_order="left_right")
    taken = events.select("event_id", node_id="selected_ids").explode("node_id", empty_as_null=False, keep_nulls=False)
    shown = (
        day.join(taken, on=["event_id", "node_id"], how="anti", maintain_order="left")
        .group_by("event_id", maintain_order=True)
        .agg(shown_ids="node_id")
    )
    return events.join(shown, on="event_id", how="left", maintain_order="left").with_columns(
        pl.col("shown_ids").fill_null(pl.lit([], dtype=events.schema["selected_ids"]))
    )


def count_confirmed(events: pl.DataFrame, ordered: pl.DataFrame) -> pl.DataFrame:
    """Counts the positives of logged events that a slot confirms: one that holds the node that day, in a selected status.

    Returns one row per (surface, model_name, model_version): `events`, `positives`, `confirmed`. `ordered` are the slots of
    the events' trips that hold a node.
    """
    model, place = ["surface", "model_name", "model_version"], ["trip_id", "day_number", "node_id"]
    held = ordered.filter(pl.col("status").is_in(SELECTED_STATUSES)).select(*place, confirmed=True).unique()
    taken = events.select(*model, "trip_id", "day_number", node_id="selected_ids")
    positives = taken.explode("node_id", empty_as_null=False, keep_nulls=False).join(held, on=place, how="left")
    return (
        events.group_by(model)
        .agg(events=pl.len())
        .join(
            positives.group_by(model).agg(positives=pl.len(), confirmed=pl.col("confirmed").sum()), on=model, how="left"
        )
        .with_columns(pl.col("positives", "confirmed").fill_null(0).cast(pl.Int64), pl.col("events").cast(pl.Int64))
    )


def build_events(
    trips: pl.DataFrame,
    slots: pl.DataFrame,
    nodes: dy.DataFrame[Nodes],
    persona_users: pl.Series,
    affinities: dy.DataFrame[Affinities],
    unknown: float,
    seed: int,
) -> RankingEvents:
    """Returns one ranking event per (trip, day) that has a slot, for the users of `persona_users`.

    `trips` and `slots` are `Trips` and `Slots`, or `LegTrips` and `LegSlots`: then the city of a day is that of its first slot,
    in slot order, whose leg has one, and of the trip without such a slot. Excluded, by reason: users without persona rows, days
    without a city, cities without eligible nodes, days outside of the years 1 to 9999. `selected_ids` may be empty, and may
    hold nodes that are not candidates; the latter are counted.
    """
    ids = node_type(nodes["node_id"], slots["node_id"])
    slots_ = slots.with_columns(pl.col("node_id").cast(ids))
    offer = eligible(nodes).with_columns(pl.col("node_id").cast(ids))
    days = _classify_days(trips, slots_, persona_users, offer["city"].unique())
    good = days.filter(pl.col("skipped").is_null())
    top = candidates(good.select("user_id", "city").unique(), affinities, offer, unknown, seed)
    keys, ordered = ["trip_id", "day_number"], sort_slots(slots_)
    events = (
        good.join(top, on=["user_id", "city"])
        .join(selected(ordered), on=keys, how="left")
        .with_columns(pl.col("selected_ids").fill_null(pl.lit([], dtype=pl.List(ids))))
    )
    events = add_shown(sort_for_files(_with_constants(events, seed)), ordered)
    taken = events.select("candidate_ids", "selected_ids").explode("selected_ids", empty_as_null=False)
    outside = taken.filter(~pl.col("selected_ids").is_in(pl.col("candidate_ids"))).height
    counts = dict(days.drop_nulls("skipped").group_by("skipped").len().iter_rows())
    skipped = dict.fromkeys(SKIP_REASONS, 0) | counts
    several = int(good["several_cities"].sum()) if "several_cities" in good.columns else 0
    return RankingEvents(events, RankingStats(events.height, skipped, taken.height, outside, several))


@dataclass(frozen=True)
class RankingInputs:
    """What all buckets share: the catalogue, the database's categories, the affinity of an unknown one, the seed."""

    nodes: dy.DataFrame[Nodes]
    categories: Sequence[str]
    unknown: float
    seed: int


def rank_bucket(
    ranking: RankingInputs,
    bucket: int,
    trips: pl.DataFrame,
    slots: pl.DataFrame,
    personas: dy.DataFrame[Personas],
) -> tuple[int, RankingEvents]:
    """The task function of a bucket: its trips, slots and personas to its ranking events. Returns the bucket, too."""
    affinities = read_affinities(personas, ranking.categories)
    users = personas["user_id"].unique()
    return bucket, build_events(trips, slots, ranking.nodes, users, affinities, ranking.unknown, ranking.seed)


def sort_for_files(
    events: pl.DataFrame, within: Sequence[str] = ("created_us", "trip_id", "day_number", "event_id")
) -> pl.DataFrame:
    """Returns events in the order of files: (SHA-256 of the user, user, created, trip, day, event). The sort is stable.

    The hash comes first so that a bucket, a range of hashes, is a range of rows, whatever the number of buckets. PostgreSQL
    can compute it too. It also spreads users who registered together over the file, as stochastic gradient descent needs.
    """
    users = events.select("user_id").unique().with_columns(user_hash=sha256_hex(pl.col("user_id")))
    joined = events.join(users, on="user_id", how="left", maintain_order="left")
    return joined.sort("user_hash", "user_id", *within, maintain_order=True).drop("user_hash")


def _classify_days(
    trips: pl.DataFrame, slots: pl.DataFrame, persona_users: pl.Series, cities: pl.Series
) -> pl.DataFrame:
    """Returns one row per (trip, day) with a slot: `created_us`, and in `skipped` why it has no event (null: it has one)."""
    days = (_days_with_legs if "leg_city" in slots.columns else _days)(slots, trips)
    # In days, not in microseconds: 2**31 days in microseconds overflow 64 bits, and wrap silently.
    start_day = pl.col("start_us").floordiv(_US_PER_DAY)
    day = start_day + pl.col("day_number").cast(pl.Int64) - 1
    in_years = start_day.is_between(_FIRST_DAY, _LAST_DAY) & day.is_between(_FIRST_DAY, _LAST_DAY)
    return days.with_columns(
        created_us=pl.when(in_years).then(day * _US_PER_DAY + pl.col("start_us") - start_day * _US_PER_DAY),
        skipped=pl.when(~pl.col("user_id").is_in(persona_users.implode()))
        .then(pl.lit("user_without_persona"))
        .when(pl.col("city").is_null())
        .then(pl.lit(WITHOUT_CITY))
        .when(~pl.col("city").is_in(cities.implode()))
        .then(pl.lit("city_without_nodes"))
        .when(~in_years.fill_null(value=False))
        .then(pl.lit("date_out_of_range")),
    )


def _days(slots: pl.DataFrame, trips: pl.DataFrame) -> pl.DataFrame:
    return slots.select("trip_id", "day_number").unique().join(trips, on="trip_id")


def _days_with_legs(slots: pl.DataFrame, trips: pl.DataFrame) -> pl.DataFrame:
    """As `_days`, with the city of the day's first leg, and whether its slots lie in `several_cities`."""
    days = (
        slots.sort("sort_order", "slot_id")
        .group_by("trip_id", "day_number")
        .agg(
            leg_city=pl.col("leg_city").drop_nulls().first(),
            several_cities=pl.col("leg_city").drop_nulls().n_unique() > 1,
        )
    )
    joined = days.join(trips, on="trip_id")
    return joined.with_columns(city=pl.coalesce("leg_city", "city")).drop("leg_city")


def _with_constants(events: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Returns events with an id, the model's name, and a latency of 200 to 800 ms."""
    return events.with_columns(event_id=stable_id("ranking_event", seed, "trip_id", "day_number")).with_columns(
        surface=pl.lit(SURFACE),
        model_name=pl.lit(MODEL_NAME),
        model_version=pl.lit(MODEL_VERSION),
        # From the id, so that it depends on the row's key and the seed alone.
        latency_ms=(200 + pl.col("event_id").str.slice(-8).str.to_integer(base=16, dtype=pl.Int64) % 601).cast(
            pl.Int32
        ),
    )
