"""Schemas of the frames that packages pass to each other.

`filter` separates valid from invalid rows that come from outside (extract). `validate` raises where an invalid row would be
a bug of ours. Ids are texts, as in the database.
"""

from __future__ import annotations

import dataframely as dy
import polars as pl

DIMENSIONS = (
    "budget_sensitivity",
    "category_affinities",
    "cuisine_openness",
    "pace_preference",
    "primary_interest",
    "social_mode",
    "time_orientation",
    "trip_count",
)
"""The persona dimensions of the design (docs/design.md), in the order of their bytes."""

SELECTED_STATUSES = ("confirmed", "active", "completed")
"""Statuses of a slot whose node the user selected."""

ARCHIVED = "archived"
"""Status of a node that can't be offered: it is not eligible."""


CONFIDENCE = {"onboarding": 1.0, "default": 0.0, "reconstructed": 0.95}
"""How reliable a value is, by its source. A rebuilt vector lacks the user's own jitter."""


class Users(dy.Schema):
    """One row per user of the scope (shadow users, or the audience)."""

    user_id = dy.String(primary_key=True)
    is_shadow = dy.Bool(nullable=False)


class Trips(dy.Schema):
    """One row per trip of the scope's users. `start_us` in microseconds since 1970, null when infinite."""

    trip_id = dy.String(primary_key=True)
    user_id = dy.String(nullable=False)
    city = dy.String(nullable=False)
    start_us = dy.Int64(nullable=True)


class Slots(dy.Schema):
    """One row per itinerary slot of those trips. `node_id` is null while no node is chosen."""

    slot_id = dy.String(primary_key=True)
    trip_id = dy.String(nullable=False)
    node_id = dy.String(nullable=True)
    day_number = dy.Int32(nullable=False)
    sort_order = dy.Int32(nullable=False)
    status = dy.String(nullable=False)


class LegTrips(Trips):
    """`Trips` of a schema with legs: `city` is null where only the legs have one."""

    city = dy.String(nullable=True)


class LegSlots(Slots):
    """`Slots` of a schema with legs: `leg_city` is null where the slot has no leg, or its leg no city."""

    leg_city = dy.String(nullable=True)


class Nodes(dy.Schema):
    """One row per activity node of any city and status."""

    node_id = dy.String(primary_key=True)
    city = dy.String(nullable=False)
    category = dy.String(nullable=False)
    status = dy.String(nullable=False)
    name = dy.String(nullable=True)
    latitude = dy.Float64(nullable=True)
    longitude = dy.Float64(nullable=True)


class Seeds(dy.Schema):
    """One row per shadow user with a usable seed: the labels of the first trip whose seed is a JSON object.

    A label is null where the seed has no JSON string for it. `cuisine_openness` is the text of a JSON number, else null.
    `trips` counts all trips of the user, with a seed or without.
    """

    user_id = dy.String(primary_key=True)
    created_us = dy.Int64(nullable=False)
    trips = dy.Int64(nullable=False, min=1)
    pace = dy.String(nullable=True)
    budget_tier = dy.String(nullable=True)
    cuisine_openness = dy.String(nullable=True)
    social_mode = dy.String(nullable=True)
    time_orientation = dy.String(nullable=True)
    primary_interest = dy.String(nullable=True)


class SeedAffinities(dy.Schema):
    """One row per (seed, key of its `category_affinities`). `number` is the text of a JSON number, null for other types."""

    user_id = dy.String(primary_key=True)
    category = dy.String(primary_key=True)
    number = dy.String(nullable=True)


class PersonaRows(dy.Schema):
    """One row per (shadow user with a usable seed, dimension): what PersonaDimension gets."""

    id = dy.String(nullable=False)
    user_id = dy.String(primary_key=True)
    dimension = dy.Enum(DIMENSIONS, primary_key=True)
    value = dy.String(nullable=False)
    confidence = dy.Float64(nullable=False)
    source = dy.Enum(list(CONFIDENCE), nullable=False)
    created_us = dy.Int64(nullable=False)

    @dy.rule()
    def confidence_matches_source(cls) -> pl.Expr:  # noqa: N805, D102 - dataframely's form of a rule
        return pl.col("confidence") == pl.col("source").cast(pl.String).replace_strict(CONFIDENCE)


class Personas(dy.Schema):
    """One row per (user of the scope, dimension) of PersonaDimension, read back after the COPY.

    `confidence` and `source` are null only where a looser schema allows that.
    """

    user_id = dy.String(primary_key=True)
    dimension = dy.String(primary_key=True)
    value = dy.String(nullable=False)
    confidence = dy.Float64(nullable=True)
    source = dy.String(nullable=True)


class Affinities(dy.Schema):
    """One row per (user, category) with the affinity in PersonaDimension, in [0, 1]."""

    user_id = dy.String(primary_key=True)
    category = dy.String(primary_key=True)
    affinity = dy.Float64(nullable=False, min=0, max=1)


class Events(dy.Schema):
    """One row per ranking event, ours or another's. Lists and their elements are never null; no element repeats.

    `created_us` in microseconds since 1970. `city` and `start_us` are the trip's; the latter is null when infinite.
    """

    event_id = dy.String(primary_key=True)
    user_id = dy.String(nullable=False)
    trip_id = dy.String(nullable=False)
    city = dy.String(nullable=False)
    start_us = dy.Int64(nullable=True)
    day_number = dy.Int32(nullable=False)
    created_us = dy.Int64(nullable=False)
    surface = dy.String(nullable=False)
    model_name = dy.String(nullable=False)
    model_version = dy.String(nullable=False)
    candidate_ids = dy.List(dy.String(), nullable=False)
    ranked_ids = dy.List(dy.String(), nullable=False)
    selected_ids = dy.List(dy.String(), nullable=False)
