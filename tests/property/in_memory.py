"""An oracle's world as the frames that the pure rooms take: what `extract` would read of it, without a database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl

from etl.transform.buckets import BucketSpill
from etl.transform.ranking_events import sort_for_files
from etl.transform.schemas import Events, Nodes, Personas, SeedAffinities, Seeds, Slots, Trips, Users
from etl.triples.dataset import ENCODED_EVENTS, Dataset, DatasetBuilder
from etl.triples.partitions import TripleOptions
from etl.triples.vocabulary import Vocabulary
from tests.property import oracle
from tests.property.dense import dense_world
from tests.property.oracle import DIMENSION_OF_LABEL, World
from tests.property.oracle_training import start_us
from tests.property.worlds import WILD

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - timestamps without zone are UTC


def loose_world(number: int) -> World:
    """The dense world of a number, in a database that promises nothing: starts that no date has, nodes that are gone."""
    # The last of WILD is a moment that 64 bits don't hold: `queries.trips` reads none there.
    world = dense_world(number)
    trips = [
        replace(trip, start_date=WILD[(place + number) // 3 % 4]) if (place + number) % 3 == 0 else trip
        for place, trip in enumerate(world.trips)
    ]
    nodes = [node for place, node in enumerate(world.nodes) if place % 7 != number % 7]
    return replace(world, trips=tuple(trips), nodes=tuple(nodes))


WORLDS = [*((dense_world, number) for number in range(8)), *((loose_world, number) for number in range(8, 16))]
"""What the pure rooms are judged on: makers of worlds, and a number for each."""


def us(moment: datetime) -> int:
    """Microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def seeds_of(world: World, options: oracle.Settings) -> tuple[dy.DataFrame[Seeds], dy.DataFrame[SeedAffinities]]:
    """The shadow users' seeds and their vectors, as `queries.seeds` reads them."""
    rows, vectors = [], []
    for user_id in oracle.shadow_users(world, options):
        trips = [trip for trip in world.trips if trip.user_id == user_id]
        first = oracle.seed_trip(trips)
        if first is None:
            continue
        seed = first.persona_seed
        labels = {name: seed.get(name) if isinstance(seed.get(name), str) else None for name in DIMENSION_OF_LABEL}
        row = {"user_id": user_id, "created_us": us(first.created_at), "trips": len(trips)}
        rows.append({**row, **labels, "cuisine_openness": _number(seed.get("cuisine_openness"))})
        vector = seed.get("category_affinities")
        for category, number in (vector if isinstance(vector, dict) else {}).items():
            vectors.append({"user_id": user_id, "category": category, "number": _number(number)})
    return frame(Seeds, rows), frame(SeedAffinities, vectors)


def _number(value: Any) -> str | None:
    """A JSON number's text as jsonb writes it, without an exponent; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return format(Decimal(repr(value)), "f")


def frame(schema: type[dy.Schema], rows: Sequence[dict[str, Any]]) -> dy.DataFrame[Any]:
    """Rows as a contract's frame; the contract is checked."""
    return schema.validate(pl.DataFrame(rows, schema=schema.create_empty().schema))


def trips_of(world: World, options: oracle.Settings) -> dy.DataFrame[Trips]:
    """The shadow users' trips."""
    who = oracle.shadow_users(world, options)
    names = ("trip_id", "user_id", "city", "start_us")
    rows = [
        (trip.id, trip.user_id, trip.city, start_us(trip.start_date)) for trip in world.trips if trip.user_id in who
    ]
    return frame(Trips, [dict(zip(names, row, strict=True)) for row in rows])


def slots_of(world: World, options: oracle.Settings) -> dy.DataFrame[Slots]:
    """The slots of those trips."""
    own = {*trips_of(world, options)["trip_id"]}
    names = ("slot_id", "trip_id", "node_id", "day_number", "sort_order", "status")
    rows = [(s.id, s.trip_id, s.node_id, s.day_number, s.sort_order, s.status) for s in world.slots if s.trip_id in own]
    return frame(Slots, [dict(zip(names, row, strict=True)) for row in rows])


def nodes_of(world: World) -> dy.DataFrame[Nodes]:
    """The whole catalogue."""
    names = ("node_id", "city", "category", "status", "name", "latitude", "longitude")
    rows = [(n.id, n.city, n.category, n.status, n.name, n.latitude, n.longitude) for n in world.nodes]
    return frame(Nodes, [dict(zip(names, row, strict=True)) for row in rows])


def personas_of(rows: Iterable[oracle.PersonaRow]) -> dy.DataFrame[Personas]:
    """Persona rows, as they are read back."""
    names = ("user_id", "dimension", "value", "confidence", "source")
    return frame(Personas, [{name: getattr(row, name) for name in names} for row in rows])


def dataset_of(after: World, exported: oracle.Exported, options: oracle.Settings) -> Dataset:
    """What is published of a world that a run has left behind: these events, and what explains them."""
    start = {trip.id: start_us(trip.start_date) for trip in after.trips}
    lists = ("candidate_ids", "ranked_ids", "selected_ids", "shown_ids")
    plain = ("event_id", "user_id", "trip_id", "day_number", "surface", "model_name", "model_version")
    rows = [
        {name: getattr(event, name) for name in plain}
        | {name: list(getattr(event, name)) for name in lists}
        | {"city": city, "start_us": start[event.trip_id], "created_us": us(event.created_at)}
        for city, events in exported.cities.items()
        for event in events
    ]
    schema = {**Events.create_empty().schema, "shown_ids": pl.List(pl.String)}
    compaction = DatasetBuilder(BucketSpill(Path(), 1, ENCODED_EVENTS))
    compaction.add(0, sort_for_files(pl.DataFrame(rows, schema=schema)))
    who = oracle.audience(after, options)
    shadow = oracle.shadow_users(after, options)
    users = frame(Users, [{"user_id": user_id, "is_shadow": user_id in shadow} for user_id in sorted(who)])
    personas = personas_of(row for row in after.personas if row.user_id in who and row.dimension in oracle.DIMENSIONS)
    return compaction.dataset(users, personas, nodes_of(after), Vocabulary())


def training_options(options: oracle.Settings) -> TripleOptions:
    """The oracle's settings as those of the triples."""
    names = ("min_catalog", "small_catalog", "negatives", "reject", "catalog_alpha", "split", "city_weight", "shuffle")
    return TripleOptions(**{name: getattr(options, name) for name in (*names, "task", "history", "seed")})
