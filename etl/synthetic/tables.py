"""The synthetic world's tables: the numbers of `etl.synthetic.population` as frames with the database's columns.

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

from etl.synthetic.behaviour import SIGNALS, STATUSES
from etl.synthetic.population import MS_PER_DAY, NODE_STATUSES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from etl.synthetic.behaviour import Signals, Slots
    from etl.synthetic.population import Bools, Ints, Nodes, Profile, Scene

_TEXT = pl.String()
_TIME = pl.Datetime("ms")


def _columns(names: str, dtype: pl.DataType) -> dict[str, pl.DataType]:
    """Give several columns one type."""
    return dict.fromkeys(names.split(), dtype)


SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    "users": _columns("id email", _TEXT),
    "trips": _columns("id userId city", _TEXT)
    | _columns("startDate createdAt", _TIME)
    | _columns("personaSeed", _TEXT),
    "itinerary_slots": _columns("id tripId activityNodeId", _TEXT)
    | _columns("dayNumber sortOrder", pl.Int32())
    | _columns("status", _TEXT),
    "activity_nodes": _columns("id city category status name", _TEXT) | _columns("latitude longitude", pl.Float64()),
    "behavioral_signals": _columns("id userId tripId slotId activityNodeId signalType modelVersion", _TEXT),
    "persona_dimensions": _columns("id userId dimension value", _TEXT)
    | _columns("confidence", pl.Float64())
    | _columns("source", _TEXT)
    | _columns("updatedAt createdAt", _TIME),
    "ranking_events": _columns("id userId tripId sessionId", _TEXT)
    | _columns("dayNumber", pl.Int32())
    | _columns("modelName modelVersion", _TEXT)
    | _columns("candidateIds rankedIds selectedIds", pl.List(_TEXT))
    | _columns("surface shadowModelName shadowModelVersion", _TEXT)
    | _columns("shadowRankedIds", pl.List(_TEXT))
    | _columns("latencyMs", pl.Int32())
    | _columns("createdAt", _TIME),
}

# What a personaSeed of today holds; a seed found in the wild may hold fewer.
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
ORDINARY_SEED, SEED_WITHOUT_AFFINITIES, FIRST_WILD_SEED = range(3)
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

    `seed_kind` says what each user's personaSeed looks like: ordinary, without affinities, or a kind of the profile's
    `wild_seeds`. `node_ids` has the catalogue's ids in row order.
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


def table(name: str, columns: dict[str, Any]) -> pl.DataFrame:
    """Make the frame of a table: its columns, in their order, with their types."""
    return pl.DataFrame(columns).select(pl.col(name).cast(dtype) for name, dtype in SCHEMAS[name].items())


def named(names: Sequence[str], codes: Ints) -> pl.Series:
    """Look up the texts of numbers."""
    return pl.Series(names, dtype=pl.String).gather(codes)


def unless(lost: Bools, values: pl.Series) -> pl.Series:
    """Return `values`, null where lost."""
    return values.set(pl.Series(lost), None)


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
    return table("activity_nodes", columns)


def users(block: Block) -> pl.DataFrame:
    """Make the users. Grain: a user, by running number."""
    return table("users", {"id": uuids(block.rng, len(block.emails)), "email": block.emails})


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
    return table("trips", columns)


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


def itinerary_slots(block: Block, trip_ids: pl.Series, lost: Bools) -> pl.DataFrame:
    """Make the slots. Grain: a slot, by (trip, day, order). A `lost` one has no node: a note of the user's own."""
    slots = block.slots
    columns = {
        "id": uuids(block.rng, len(slots.trip)),
        "tripId": trip_ids.gather(slots.trip),
        "activityNodeId": unless(lost, block.node_ids.gather(slots.node)),
        "dayNumber": slots.day,
        "sortOrder": slots.order,
        "status": named(STATUSES, slots.status),
    }
    return table("itinerary_slots", columns)


def behavioral_signals(block: Block, trip_frame: pl.DataFrame, slot_ids: pl.Series, lost: Bools) -> pl.DataFrame:
    """Make the signals. Grain: a signal, by slot. modelVersion is null, as the application leaves it."""
    slot = block.signals.slot
    trip = block.slots.trip[slot]
    columns = {
        "id": uuids(block.rng, len(slot)),
        "userId": trip_frame["userId"].gather(trip),
        "tripId": trip_frame["id"].gather(trip),
        "slotId": slot_ids.gather(slot),
        "activityNodeId": unless(lost[slot], block.node_ids.gather(block.signals.node)),
        "signalType": named(SIGNALS, block.signals.kind),
        "modelVersion": pl.repeat(None, len(slot), dtype=pl.String, eager=True),
    }
    return table("behavioral_signals", columns)
