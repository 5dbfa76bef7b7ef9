"""Inputs without a database: a published snapshot's events at any scale, made in memory.

Users, trips, slots and the catalogue are the synthetic world's. Affinities are drawn per (user, category) and don't pass
through PersonaDimension, because what is measured here begins with the events.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl

from etl.pipeline.expand import expand
from etl.settings.sources import load_settings
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
"""The columns of `events/` and of `items.parquet` (docs/contract.md)."""


@dataclass(frozen=True)
class SourceTables:
    """The frames that a run reads, for shadow users only; `affinities` are random."""

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


def source(scale: float, seed: int = 0) -> SourceTables:
    """Return the synthetic world as a run reads it."""
    parts = list(chunks(scale, seed))
    return SourceTables(
        users=pl.concat([part.users for part in parts]),
        trips=pl.concat([part.trips for part in parts]),
        slots=pl.concat([part.slots for part in parts]),
        nodes=parts[0].nodes,
        affinities=pl.concat([part.affinities for part in parts]),
    )


def chunks(scale: float, seed: int = 0) -> Iterator[SourceTables]:
    """Yield the world in chunks of some thousand users, each with their rows and the whole catalogue."""
    nodes = pl.DataFrame()
    for number, world in enumerate(generate(scale=scale, seed=seed)):
        if world["ActivityNode"].height:
            nodes = world["ActivityNode"].rename({"id": "node_id"})
        users = (
            world["User"].filter(pl.col("email").str.starts_with(PREFIX)).select(user_id="id", is_shadow=pl.lit(True))
        )
        trips = (
            world["Trip"]
            .filter(pl.col("userId").is_in(users["user_id"].implode()))
            .select(trip_id="id", user_id="userId", city="city", start_us=pl.col("startDate").dt.epoch("us"))
        )
        slots = (
            world["ItinerarySlot"]
            .filter(pl.col("tripId").is_in(trips["trip_id"].implode()))
            .select(
                slot_id="id",
                trip_id="tripId",
                node_id="activityNodeId",
                day_number="dayNumber",
                sort_order="sortOrder",
                status="status",
            )
        )
        yield SourceTables(users, trips, slots, nodes, affinities(users, nodes, (seed, number)))


def affinities(users: pl.DataFrame, nodes: pl.DataFrame, seed: tuple[int, ...]) -> pl.DataFrame:
    """Return a uniform number in [0, 1] for each user and category, with as few decimals as those of a persona."""
    rng = np.random.default_rng(seed)
    pairs = users.select("user_id").join(nodes.select(pl.col("category").unique().sort()), how="cross")
    return pairs.with_columns(affinity=pl.Series(rng.random(pairs.height).round(_DECIMALS)))


def ranking_events(world: SourceTables, seed: int) -> pl.DataFrame:
    """Return the ranking events of a world. Calls internal functions of `etl.transform`."""
    return build_events(
        Trips.cast(world.trips),
        Slots.cast(world.slots),
        Nodes.cast(world.nodes),
        world.users["user_id"],
        Affinities.cast(world.affinities),
        affinity_model().default_affinity,
        seed,
    ).events


def _publish(world: SourceTables, folder: Path, seed: int) -> Path:
    """Write the ranked events in the published format, and have `expand` make a whole snapshot of that."""
    with tempfile.TemporaryDirectory(prefix="bpr-events-") as source:
        _write_minimal_snapshot(world, ranking_events(world, seed), Path(source))
        options = {"snapshot": source, "out": str(folder), "seed": seed, "negatives": ["ranking"], "min_catalog": 50}
        report = expand(load_settings(options, {}))
    if report.snapshot is None:
        raise RuntimeError("Nothing was published.")
    return Path(report.snapshot)


def _write_minimal_snapshot(world: SourceTables, events: pl.DataFrame, folder: Path) -> None:
    """Write what `expand` reads of a snapshot: events by city, the vocabularies, and a manifest that passes its checks."""
    texts = events.with_columns(pl.col(name).cast(pl.List(pl.String)) for name in _LISTS)
    parts = texts.with_columns(timestamp=pl.col("created_us").floordiv(1_000_000)).partition_by("city", as_dict=True)
    files, cities = [], {}
    for (city,), part in parts.items():
        place = f"city={quote(str(city), safe='')}"
        cities[place] = city
        path = folder / "events" / place / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        part.select(*EVENT_COLUMNS).write_parquet(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        name = path.relative_to(folder).as_posix()
        files.append({"path": name, "rows": part.height, "bytes": path.stat().st_size, "sha256": digest})
    users = world.users.select(pl.col("user_id").sort()).with_row_index("user_idx").select("user_id", "user_idx")
    offered = world.nodes.filter(pl.col("status") != "archived").rename({"node_id": "item_id"}).sort("item_id")
    items = offered.with_row_index("item_idx").select(*ITEM_COLUMNS)
    trips = events.select("trip_id", "city", "start_us").unique("trip_id").sort("trip_id")
    for name, frame in (("users", users), ("items", items), ("trips", trips)):
        frame.write_parquet(folder / f"{name}.parquet")
    (folder / "manifest.json").write_text(json.dumps(_minimal_manifest(cities, files)), encoding="utf-8")


def _minimal_manifest(cities: dict[str, str], files: list[dict[str, Any]]) -> dict[str, Any]:
    """A manifest of events alone: every required key, with no counts."""
    moment = "2026-01-01T00:00:00+00:00"
    no_counts = (
        "events",
        "triples",
        "triples_by_neg_source",
        "positives_left_out",
        "cities_left_out",
        "negatives",
        "signs",
    )
    published: dict[str, Any] = {name: {} for name in no_counts}
    published |= dict.fromkeys(("positives", "users", "items", "users_with_whole_catalog_seen", "items_gone"), 0)
    return {
        "format": 1,
        "snapshot": "20260101T000000000000Z-000000000000",
        "content_sha256": "0" * 64,
        "run_id": "0" * 32,
        "started_at": moment,
        "ended_at": moment,
        "tool": {"name": "bpr-etl", "version": "benchmark"},
        "libraries": {},
        "settings": {"negatives": ["ranking"], "split": "none", "audience": "shadow", "rows_per_file": 1_000_000},
        "profile": {"steps": [], "seconds": 0.0, "peak_mib": 0.0},
        "warnings": [],
        "published": published | {"split": {"rule": "none", "lets_in": None}, "partitions": []},
        "cities": cities,
        "files": files,
    }
