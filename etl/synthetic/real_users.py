"""What only real users have in the synthetic world: loose ends, and persona and ranking rows of their own.

No run of the job may write or delete any of it: that is what it is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from etl.synthetic.behaviour import ACTIVE, COMPLETED, CONFIRMED
from etl.synthetic.population import MS_PER_DAY, normalised, pick
from etl.synthetic.tables import named, persona, table, unless, uuids

if TYPE_CHECKING:
    from etl.synthetic.population import Bools, Ints
    from etl.synthetic.tables import Block

# The dimensions of PersonaDimension that are a seed's value as it stands, and its key there.
_DIMENSIONS = {
    "pace_preference": "pace",
    "budget_sensitivity": "budget_tier",
    "cuisine_openness": "cuisine_openness",
    "social_mode": "social_mode",
    "time_orientation": "time_orientation",
    "primary_interest": "primary_interest",
}
_CANDIDATES = 20


def real_signals(block: Block, signals: pl.DataFrame) -> pl.DataFrame:
    """Loosen real users' signals: some have a modelVersion, and some views belong to no slot and no trip."""
    rules = block.scene.profile.world["real_users"]
    apart = (signals["signalType"] == "view") & pl.Series(block.rng.random(len(signals)) < rules["view_without_slot"])
    versioned = pl.Series(block.rng.random(len(signals)) < rules["signal_with_model"])
    loose = pl.when(~apart).then(pl.col("tripId", "slotId"))
    version = pl.when(versioned).then(pl.lit("llm_ranker:0.0.9"))
    return signals.with_columns(loose, version.alias("modelVersion"))


def persona_dimensions(block: Block, trip_frame: pl.DataFrame, chosen: Bools) -> pl.DataFrame:
    """Make persona rows of the users chosen. Grain: (user, dimension), by user, dimensions in the design's order."""
    first = trip_frame.group_by("userId", maintain_order=True).agg(pl.len().alias("trips"), pl.col("createdAt").min())
    returning = pl.when(pl.col("trips") <= 3).then(pl.lit("returning")).otherwise(pl.lit("frequent"))
    values = {name: pl.col(key).cast(pl.String) for name, key in _DIMENSIONS.items()} | {
        "trip_count": pl.when(pl.col("trips") == 1).then(pl.lit("first_trip")).otherwise(returning),
        "category_affinities": pl.col("category_affinities").struct.json_encode(),
    }
    pairs = pl.concat_list(pl.struct(dimension=pl.lit(name), value=text) for name, text in values.items())
    rows = pl.concat([persona(block), first], how="horizontal").filter(chosen)
    rows = rows.select("userId", "createdAt", pairs.alias("pair")).explode("pair").unnest("pair")
    columns = {
        "id": uuids(block.rng, len(rows)),
        **rows.to_dict(),
        "confidence": 0.9,
        "source": "onboarding",
        "updatedAt": rows["createdAt"],
    }
    return table("persona_dimensions", columns)


def _selected(block: Block, slots: pl.DataFrame, chosen: Bools) -> pl.DataFrame:
    """List what was taken on each day of the trips chosen. Grain: (trip, dayNumber), in this order."""
    taken = pl.Series(np.isin(block.slots.status, (CONFIRMED, ACTIVE, COMPLETED)))
    rows = slots.select("dayNumber", "activityNodeId", trip=block.slots.trip, taken=taken)
    node = pl.col("activityNodeId").filter(pl.col("taken") & pl.col("activityNodeId").is_not_null())
    rows = rows.filter(chosen[block.slots.trip])
    return rows.group_by("trip", "dayNumber", maintain_order=True).agg(node.alias("selectedIds"))


def ranking_events(block: Block, trip_frame: pl.DataFrame, slots: pl.DataFrame, chosen: Bools) -> pl.DataFrame:
    """Make an older model's events for the trips chosen. Grain: (trip, day). Shadow columns are null for most."""
    rng, scene, rules = block.rng, block.scene, block.scene.profile.world["real_users"]
    days = _selected(block, slots, chosen)
    trip, count = days["trip"].to_numpy(), len(days)
    ranked = _ranked(block, trip)
    surfaces = rules["surfaces"]
    alone = rng.random(count) >= rules["event_with_shadow_model"]
    unmeasured = rng.random(count) < rules["event_without_latency"]
    late = (days["dayNumber"].to_numpy() - 1 + rng.random(count)) * MS_PER_DAY
    columns = {
        "id": uuids(rng, count),
        "userId": trip_frame["userId"].gather(trip),
        "tripId": trip_frame["id"].gather(trip),
        "sessionId": uuids(rng, count),
        "dayNumber": days["dayNumber"],
        "modelName": "llm_ranker",
        "modelVersion": "0.0.9",
        "candidateIds": ranked.list.sort(),
        "rankedIds": ranked,
        "selectedIds": days["selectedIds"],
        "surface": named(list(surfaces), pick(rng, normalised(surfaces.values()), count)),
        "shadowModelName": unless(alone, pl.repeat("bpr", count, eager=True)),
        "shadowModelVersion": unless(alone, pl.repeat("0.0.0", count, eager=True)),
        "shadowRankedIds": unless(alone, ranked.list.reverse()),
        "latencyMs": unless(unmeasured, pl.Series(rng.integers(200, 801, count))),
        "createdAt": block.epoch + scene.trips.start[trip] * MS_PER_DAY + np.floor(late).astype(np.int64),
    }
    return table("ranking_events", columns)


def _ranked(block: Block, trip: Ints) -> pl.Series:
    """Return the ids of each event's 20 best nodes of the trip's city, best first, ties by chance."""
    scene = block.scene
    width = min(_CANDIDATES, *(len(eligible) for eligible in scene.nodes.eligible))
    ranked = np.empty((len(trip), width), dtype=np.int64)
    for number, eligible in enumerate(scene.nodes.eligible):
        rows = np.flatnonzero(scene.trips.city[trip] == number)
        liking = scene.affinity(trip[rows])[:, scene.nodes.category[eligible]]
        order = np.argsort(block.rng.random(liking.shape) * 1e-6 - liking, axis=1)
        ranked[rows] = eligible[order[:, :width]]
    return block.node_ids.gather(ranked.ravel()).reshape((len(trip), width)).cast(pl.List(pl.String))
