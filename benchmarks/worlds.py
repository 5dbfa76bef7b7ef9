"""Worlds to measure on that need no database: a published snapshot's events at any scale, made in memory.

Users, trips, slots and the catalogue are the synthetic world's; affinities are drawn per (user, category) instead of going
through PersonaDimension and back, since what is measured here begins with the events.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl

from etl.pipeline.expand import expand
from etl.settings.model import load_settings
from etl.synthetic.world import generate
from etl.transform.personas import affinity_model
from etl.transform.ranking_events import build_events
from etl.transform.schemas import Affinities, Nodes, Slots, Trips

PREFIX = "shadow-"
_DECIMALS = 2
_LISTS = ("candidate_ids", "ranked_ids", "selected_ids", "shown_ids")
EVENT_COLUMNS = (
    *("event_id", "user_id", "trip_id", "day_number", "timestamp", "surface", "model_name", "model_version"),
    *_LISTS,
)
ITEM_COLUMNS = ("item_id", "item_idx", "city", "category", "name", "latitude", "longitude", "status")
"""The columns of `events/` and of `items.parquet` (CONTRACT, section 3)."""


@dataclass(frozen=True)
class Source:
    """The frames that a night reads, for the shadow users alone; `affinities` are drawn."""

    users: pl.DataFrame
    trips: pl.DataFrame
    slots: pl.DataFrame
    nodes: pl.DataFrame
    affinities: pl.DataFrame


def events_snapshot(folder: Path, scale: float, seed: int = 0) -> Path:
    """Publish the events, triples and vocabularies of the synthetic world of that scale below `folder`; gives the snapshot.

    About 15,000 events and, with negatives `ranking`, 900,000 triples for each unit of scale. All of it is in memory: some
    2 GiB at scale 20.
    """
    return _publish(source(scale, seed), folder, seed)


def source(scale: float, seed: int = 0) -> Source:
    """The synthetic world as a night reads it."""
    parts = list(chunks(scale, seed))
    return Source(
        users=pl.concat([part.users for part in parts]),
        trips=pl.concat([part.trips for part in parts]),
        slots=pl.concat([part.slots for part in parts]),
        nodes=parts[0].nodes,
        affinities=pl.concat([part.affinities for part in parts]),
    )


def chunks(scale: float, seed: int = 0) -> Iterator[Source]:
    """The same, some thousand users at a time, each with all that is theirs and with the whole catalogue."""
    nodes = pl.DataFrame()
    for number, world in enumerate(generate(scale=scale, seed=seed)):
        if world.activity_nodes.height:
            nodes = world.activity_nodes.rename({"id": "node_id"})
        users = world.users.filter(pl.col("email").str.starts_with(PREFIX)).select(user_id="id", is_shadow=pl.lit(True))
        trips = world.trips.filter(pl.col("userId").is_in(users["user_id"].implode())).select(
            trip_id="id", user_id="userId", city="city", start_us=pl.col("startDate").dt.epoch("us")
        )
        slots = world.itinerary_slots.filter(pl.col("tripId").is_in(trips["trip_id"].implode())).select(
            slot_id="id",
            trip_id="tripId",
            node_id="activityNodeId",
            day_number="dayNumber",
            sort_order="sortOrder",
            status="status",
        )
        yield Source(users, trips, slots, nodes, affinities(users, nodes, (seed, number)))


def affinities(users: pl.DataFrame, nodes: pl.DataFrame, seed: tuple[int, ...]) -> pl.DataFrame:
    """A number in [0, 1] for each user and category, evenly drawn, with as few decimals as a persona's have."""
    rng = np.random.default_rng(seed)
    pairs = users.select("user_id").join(nodes.select(pl.col("category").unique().sort()), how="cross")
    return pairs.with_columns(affinity=pl.Series(rng.random(pairs.height).round(_DECIMALS)))


def ranked(world: Source, seed: int) -> pl.DataFrame:
    """The ranking events of a world (`rankings.Ranked.events`): what is known here of the insides."""
    return build_events(
        Trips.cast(world.trips),
        Slots.cast(world.slots),
        Nodes.cast(world.nodes),
        world.users["user_id"],
        Affinities.cast(world.affinities),
        affinity_model().default_affinity,
        seed,
    ).events


def _publish(world: Source, folder: Path, seed: int) -> Path:
    """Write the ranked events in the published format, and have `expand` make a whole snapshot of that."""
    with tempfile.TemporaryDirectory(prefix="bpr-events-") as source:
        _bare_snapshot(world, ranked(world, seed), Path(source))
        options = {"snapshot": source, "out": str(folder), "seed": seed, "negatives": ["ranking"], "min_catalog": 50}
        report = expand(load_settings(options, {}))
    if report.snapshot is None:
        raise RuntimeError("Nothing was published.")
    return Path(report.snapshot)


def _bare_snapshot(world: Source, events: pl.DataFrame, folder: Path) -> None:
    """What `expand` reads of a snapshot: events by city, the vocabularies, and as much of a manifest."""
    texts = events.with_columns(pl.col(name).cast(pl.List(pl.String)) for name in _LISTS)
    parts = texts.with_columns(timestamp=pl.col("created_us").floordiv(1_000_000)).partition_by("city", as_dict=True)
    files, cities = [], {}
    for (city,), part in parts.items():
        place = f"city={quote(str(city), safe='')}"
        cities[place] = city
        path = folder / "events" / place / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        part.select(*EVENT_COLUMNS).write_parquet(path)
        files.append({"path": path.relative_to(folder).as_posix(), "rows": part.height})
    users = world.users.select(pl.col("user_id").sort()).with_row_index("user_idx").select("user_id", "user_idx")
    offered = world.nodes.filter(pl.col("status") != "archived").rename({"node_id": "item_id"}).sort("item_id")
    items = offered.with_row_index("item_idx").select(*ITEM_COLUMNS)
    trips = events.select("trip_id", "city", "start_us").unique("trip_id").sort("trip_id")
    for name, frame in (("users", users), ("items", items), ("trips", trips)):
        frame.write_parquet(folder / f"{name}.parquet")
    manifest = {"snapshot": "drawn", "settings": {}, "cities": cities, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
