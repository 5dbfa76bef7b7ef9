"""The synthetic world's tables: the numbers of `population` and `behaviour` as frames with the database's columns.

Column names are the database's, types those that COPY needs: enum and jsonb columns are text (the writer casts), int4
is Int32, timestamp(3) is Datetime("ms") in UTC. Ids are UUIDs, version 4 in shape, made from the generator's bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from etl.postgres.schema.ddl import COLUMNS
from etl.synthetic.behaviour import ACTIVE, COMPLETED, CONFIRMED, SIGNALS, STATUSES
from etl.synthetic.population import MS_PER_DAY, NODE_STATUSES, normalised, pick
from etl.transform.candidates import TOP_K
from etl.transform.personas import SEED_LABELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from etl.synthetic.behaviour import Signals, Slots
    from etl.synthetic.population import Bools, Ints, Nodes, Profile, Scene

_DTYPES: dict[str, pl.DataType] = {
    **dict.fromkeys(("text", "enum", "jsonb"), pl.String()),
    "int4": pl.Int32(),
    "float8": pl.Float64(),
    "timestamp": pl.Datetime("ms"),
    "_text": pl.List(pl.String),
}
"""The frames' types, by the contract's types of columns."""

_MODELS = ("User", "Trip", "ActivityNode", "ItinerarySlot", "BehavioralSignal", "PersonaDimension", "RankingEvent")

SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    model: {column.name: _DTYPES[column.type] for column in COLUMNS[model]} for model in _MODELS
}
"""The columns of each model that has rows in the world; parents come first."""

# The keys of a complete personaSeed; an irregular seed may have fewer.
_SEED_KEYS = (
    "pace",
    "budget_tier",
    "cuisine_openness",
    "social_mode",
    "time_orientation",
    "primary_interest",
    "exploration_radius",
    "category_affinities",
)
# The persona dimension that is a seed's value as it stands, by the value's key.
_DIMENSION_OF = {key: name for name, key in SEED_LABELS.items()} | {"cuisine_openness": "cuisine_openness"}
ORDINARY_SEED, SEED_WITHOUT_AFFINITIES, FIRST_IRREGULAR_SEED = range(3)
_HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype=np.uint16)


def uuids(rng: np.random.Generator, count: int) -> pl.Series:
    """Draw UUIDs (RFC 9562, version 4) as text: 122 bits of the generator's each."""
    raw = np.frombuffer(rng.bytes(16 * count), dtype=np.uint8).reshape(count, 16).copy()
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    digits = _HEX[raw].view(np.uint8).reshape(count, 32)
    text = np.full((count, 36), ord("-"), dtype=np.uint8)
    for start, end, shift in ((0, 8, 0), (8, 12, 1), (12, 16, 2), (16, 20, 3), (20, 32, 4)):
        text[:, start + shift : end + shift] = digits[:, start:end]
    # One buffer of characters and one of offsets are a string column already: no text is made one by one.
    offsets = np.arange(count + 1, dtype=np.int64) * 36
    column = pa.LargeStringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))
    return pl.Series("id", column, dtype=pl.String)


@dataclass(frozen=True)
class Block:
    """A block of users and all that they did, as numbers, with what is needed to name it.

    `seed_kind` is the form of each user's personaSeed: ordinary, without affinities, or one of the profile's `wild_seeds`.
    `node_ids` has the catalogue's ids in row order.
    """

    rng: np.random.Generator
    scene: Scene
    node_ids: pl.Series
    seed_kind: Ints
    emails: pl.Series
    slots: Slots
    signals: Signals

    @property
    def epoch(self) -> int:
        """The reference date in milliseconds since 1970-01-01, UTC."""
        date = datetime.fromisoformat(self.scene.profile.world["reference_date"]).replace(tzinfo=UTC)
        return int(date.timestamp()) * 1000

    @property
    def categories(self) -> list[str]:
        """The categories in the order of the affinities' columns."""
        return list(self.scene.profile.model["categories"])


def table(model: str, columns: dict[str, Any]) -> pl.DataFrame:
    """Make the frame of a model's table: its columns, in their order, with their types."""
    return pl.DataFrame(columns).select(pl.col(name).cast(dtype) for name, dtype in SCHEMAS[model].items())


def named(names: Sequence[str], codes: Ints) -> pl.Series:
    """Look up the texts of numbers."""
    return pl.Series(names, dtype=pl.String).gather(codes)


def unless(condition: Bools, values: pl.Series) -> pl.Series:
    """Returns `values`, null where the condition holds."""
    return values.set(pl.Series(condition), None)


def shadow_emails(index: Ints) -> pl.Series:
    """Make emails with the prefix, by the users' running numbers."""
    return _emails(pl.repeat("shadow-{}@overplanned.test", len(index), eager=True), index)


def real_emails(profile: Profile, index: Ints) -> pl.Series:
    """Make emails without the prefix; every second one, the first included, is one that almost has it."""
    rules = profile.world["real_users"]
    plain, almost = rules["emails"], rules["emails_that_almost_match"]
    which = np.where(index % 2 == 0, index // 2 % len(almost), len(almost) + index // 2 % len(plain))
    return _emails(named([*almost, *plain], which), index)


def _emails(templates: pl.Series, index: Ints) -> pl.Series:
    """Put each running number into its template."""
    number = pl.col("number").cast(pl.String).str.zfill(6)
    filled = pl.col("template").str.replace("{}", number, literal=True)
    return pl.DataFrame({"template": templates, "number": index}).select(filled).to_series()


def activity_nodes(rng: np.random.Generator, profile: Profile, nodes: Nodes) -> pl.DataFrame:
    """Name and place the catalogue. Grain: a node, by (city, category). Coordinates are degrees."""
    cities, categories = profile.cities, list(profile.model["categories"])
    centre = np.array([city["center"] for city in cities.values()])[nodes.city]
    spot = np.round(centre + rng.normal(0.0, 0.05, centre.shape), 6)
    places = [profile.world["place_names"][category] for category in categories]
    # A kind of place and a quarter, both by the running number: their counts share no factor, so no name comes twice.
    kind = nodes.place % np.array([len(of) for of in places])[nodes.category]
    area = (nodes.place + nodes.category) % np.array([len(city["areas"]) for city in cities.values()])[nodes.city]
    first_kind = np.cumsum([0, *(len(of) for of in places)])[nodes.category]
    first_area = np.cumsum([0, *(len(city["areas"]) for city in cities.values())])[nodes.city]
    kinds = named([name for of in places for name in of], first_kind + kind)
    areas = named([name for city in cities.values() for name in city["areas"]], first_area + area)
    columns = {
        "id": uuids(rng, len(nodes.city)),
        "city": named(list(cities), nodes.city),
        "category": named(categories, nodes.category),
        "status": named(NODE_STATUSES, nodes.status),
        "name": areas + " " + kinds,
        "latitude": spot[:, 0],
        "longitude": spot[:, 1],
    }
    return table("ActivityNode", columns)


def users(block: Block) -> pl.DataFrame:
    """Make the users. Grain: a user, by running number."""
    return table("User", {"id": uuids(block.rng, len(block.emails)), "email": block.emails})


def trips(block: Block, user_ids: pl.Series) -> pl.DataFrame:
    """Make the trips. Grain: a trip, by (user, start).

    All trips of a user carry the same personaSeed, as JSON text; null is SQL NULL, the text "null" is JSON's.
    """
    start = block.epoch + block.scene.trips.start * MS_PER_DAY
    columns = {
        "id": uuids(block.rng, len(start)),
        "userId": user_ids.gather(block.scene.trips.user),
        "city": named(list(block.scene.profile.cities), block.scene.trips.city),
        "startDate": start,
        "createdAt": block.epoch + block.scene.trips.created,
        "personaSeed": _seeds(block).gather(block.scene.trips.user),
    }
    return table("Trip", columns)


def persona(block: Block) -> pl.DataFrame:
    """Return what a complete seed holds. Grain: a user. `category_affinities` is a struct by category."""
    people, axes = block.scene.people, block.scene.profile.axes
    labels = {name: named(axis.labels, people.labels[name]) for name, axis in axes.items()}
    affinities = pl.DataFrame(people.affinity, schema=block.categories).to_struct("category_affinities")
    radius = [block.scene.profile.world["exploration_radius"][label] for label in axes["pace"].labels]
    return pl.DataFrame(
        {
            **labels,
            "cuisine_openness": people.openness,
            "exploration_radius": named(radius, people.labels["pace"]),
            "category_affinities": affinities,
        }
    )


def _seeds(block: Block) -> pl.Series:
    """Write each user's personaSeed as JSON text, of the user's kind."""
    wild = block.scene.profile.world["wild_seeds"]
    kinds = [_json(_SEED_KEYS), _json([key for key in _SEED_KEYS if key != "category_affinities"])]
    kinds += [_json(seed["keys"]) if "keys" in seed else pl.lit(seed.get("text"), dtype=pl.String) for seed in wild]
    chosen = pl.coalesce(pl.when(pl.col("kind") == kind).then(text) for kind, text in enumerate(kinds))
    return persona(block).with_columns(kind=pl.Series(block.seed_kind)).select(chosen).to_series()


def _json(keys: Iterable[str]) -> pl.Expr:
    """Make a JSON object of these columns."""
    return pl.struct(*keys).struct.json_encode()


def itinerary_slots(block: Block, trip_ids: pl.Series, missing_node: Bools) -> pl.DataFrame:
    """Make the slots. Grain: a slot, by (trip, day, order). A slot with `missing_node` has none, like a user's own note."""
    slots = block.slots
    columns = {
        "id": uuids(block.rng, len(slots.trip)),
        "tripId": trip_ids.gather(slots.trip),
        "activityNodeId": unless(missing_node, block.node_ids.gather(slots.node)),
        "dayNumber": slots.day,
        "sortOrder": slots.order,
        "status": named(STATUSES, slots.status),
    }
    return table("ItinerarySlot", columns)


def behavioral_signals(
    block: Block, trip_frame: pl.DataFrame, slot_ids: pl.Series, missing_node: Bools
) -> pl.DataFrame:
    """Make the signals. Grain: a signal, by slot. modelVersion is null, as the application leaves it."""
    slot = block.signals.slot
    trip = block.slots.trip[slot]
    columns = {
        "id": uuids(block.rng, len(slot)),
        "userId": trip_frame["userId"].gather(trip),
        "tripId": trip_frame["id"].gather(trip),
        "slotId": slot_ids.gather(slot),
        "activityNodeId": unless(missing_node[slot], block.node_ids.gather(block.signals.node)),
        "signalType": named(SIGNALS, block.signals.kind),
        "modelVersion": pl.repeat(None, len(slot), dtype=pl.String, eager=True),
    }
    return table("BehavioralSignal", columns)


# What only real users have: loose ends, and persona and ranking rows. No run may write or delete any of it.


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
    values = {_DIMENSION_OF[key]: pl.col(key).cast(pl.String) for key in _SEED_KEYS if key in _DIMENSION_OF} | {
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
    return table("PersonaDimension", columns)


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
    return table("RankingEvent", columns)


def _ranked(block: Block, trip: Ints) -> pl.Series:
    """Return the ids of each event's 20 best nodes of the trip's city, best first, ties by chance."""
    scene = block.scene
    width = min(TOP_K, *(len(eligible) for eligible in scene.nodes.eligible))
    ranked = np.empty((len(trip), width), dtype=np.int64)
    for number, eligible in enumerate(scene.nodes.eligible):
        rows = np.flatnonzero(scene.trips.city[trip] == number)
        affinity = scene.affinity(trip[rows])[:, scene.nodes.category[eligible]]
        order = np.argsort(block.rng.random(affinity.shape) * 1e-6 - affinity, axis=1)
        ranked[rows] = eligible[order[:, :width]]
    return block.node_ids.gather(ranked.ravel()).reshape((len(trip), width)).cast(pl.List(pl.String))
