"""The contract's sections 2 and 3 once more, as slow and obvious Python: the judge of the real pipeline.

What becomes of the exported events (splits, negatives, triples, and what is counted of them) is in `oracle_training`.
Written from the contract's text and not from the code, with the standard library alone. A `WorldChunk` is what the
database holds, in the Python values that a driver would give; each function's docstring quotes the sentence it implements.
Sequences in a world are bags: no function here depends on their order.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Any

# ------------------------------------------------------------------------------------------------ the world


class NoSeed(Enum):
    """SQL NULL in `Trip.personaSeed`; JSON's null is None."""

    NO_SEED = "NO_SEED"


NO_SEED = NoSeed.NO_SEED

# A text is a moment outside the years 1 to 9999, as PostgreSQL writes it ("infinity", "10000-01-01 00:00:00").
Moment = datetime | str


@dataclass(frozen=True)
class User:
    id: str
    email: str | None


@dataclass(frozen=True)
class Trip:
    id: str
    user_id: str
    city: str
    start_date: Moment
    created_at: datetime
    persona_seed: Any


@dataclass(frozen=True)
class Slot:
    id: str
    trip_id: str
    node_id: str | None
    day_number: int
    sort_order: int
    status: str


@dataclass(frozen=True)
class Node:
    id: str
    city: str
    category: str
    status: str
    name: str
    latitude: float
    longitude: float


@dataclass(frozen=True)
class Signal:
    id: str
    user_id: str
    trip_id: str | None
    slot_id: str | None
    node_id: str | None
    signal_type: str
    model_version: str | None


@dataclass(frozen=True)
class PersonaRow:
    id: str
    user_id: str
    dimension: str
    value: str
    confidence: float
    source: str
    created_at: datetime
    updated_at: datetime


Ids = tuple[str | None, ...] | None  # a nullable text[] of nullable elements


@dataclass(frozen=True)
class EventRow:
    id: str
    user_id: str
    trip_id: str
    day_number: int
    model_name: str
    model_version: str
    candidate_ids: Ids
    ranked_ids: Ids
    selected_ids: Ids
    surface: str
    latency_ms: int | None
    created_at: Moment
    session_id: str | None = None
    shadow_model_name: str | None = None
    shadow_model_version: str | None = None
    shadow_ranked_ids: Ids = None


@dataclass(frozen=True)
class RegistryRow:
    """A row of ModelRegistry; None for the two moments that the contract leaves open in the rows of a run."""

    id: str
    model_name: str
    model_version: str
    stage: str
    model_type: str
    description: str | None
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True)
class World:
    """What the database holds. `categories` are the values of the ActivityCategory enum."""

    users: tuple[User, ...] = ()
    trips: tuple[Trip, ...] = ()
    slots: tuple[Slot, ...] = ()
    nodes: tuple[Node, ...] = ()
    signals: tuple[Signal, ...] = ()
    categories: tuple[str, ...] = ()
    personas: tuple[PersonaRow, ...] = ()
    events: tuple[EventRow, ...] = ()
    registry: tuple[RegistryRow, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The settings of a run that change what comes out."""

    shadow_prefix: str = "shadow-"
    seed: int = 0
    min_catalog: int = 50
    small_catalog: str = "exclude"  # or weight, keep
    audience: str = "shadow"  # or real, all
    ids: str = "string"  # or index, both
    split: str = "none"  # or last-trip, time:<ISO>, time:<ISO>,<ISO>
    negatives: tuple[str, ...] = ("ranking",)  # and shown, catalog:N
    reject: str = "seen"  # or event
    catalog_alpha: float | None = None
    city_weight: tuple[tuple[str, float], ...] = ()
    shuffle: bool = False
    task: tuple[str, ...] = ("triples",)  # and next
    history: bool = False


def by_bytes(text: str) -> bytes:
    """Every order of texts is the order of their UTF-8 bytes (never a locale's)."""
    return text.encode()


def shadow_users(world: World, settings: Settings) -> set[str]:
    """**Shadow users** are the users whose email starts with the prefix.

    (`shadow-` by default; `%`, `_` and backslash in it are plain characters; an empty prefix is refused.)
    """
    if not settings.shadow_prefix:
        raise ValueError("an empty prefix is refused")
    return {user.id for user in world.users if user.email is not None and user.email.startswith(settings.shadow_prefix)}


# ------------------------------------------------------------------------- ids, latency, ties: functions of the key

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "bpr-etl")
_64_BITS = 2**64 - 1


def row_id(kind: str, seed: int, *key: str) -> str:
    """Every `id` is a UUID (RFC 9562) that depends only on the row's key and the seed."""
    return str(uuid.uuid5(NAMESPACE, "\x00".join([kind, str(seed), *key])))


def latency_ms(event_id: str) -> int:
    """`latencyMs` 200..800; [every id] depends only on the row's key and the seed; so do `latencyMs` and the ties."""
    return 200 + int(event_id.replace("-", "")[-8:], 16) % 601


def mix64(z: int) -> int:
    """The finalizer of splitmix64."""
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 & _64_BITS
    z ^= z >> 27
    z = z * 0x94D049BB133111EB & _64_BITS
    return z ^ z >> 31


def tie(seed: int, user_id: str, node_id: str) -> int:
    """Ties are broken by a documented, stable hash of (seed, user id, node id): the smaller comes first."""
    user = hashlib.sha256(f"{seed}\x00{user_id}".encode()).digest()[:8]
    node = hashlib.sha256(node_id.encode()).digest()[:8]
    return mix64(int.from_bytes(user, "big") ^ int.from_bytes(node, "big"))


# ------------------------------------------------------------------------------------------------------- personas

DIMENSION_OF_LABEL = {
    "pace": "pace_preference",
    "budget_tier": "budget_sensitivity",
    "social_mode": "social_mode",
    "time_orientation": "time_orientation",
    "primary_interest": "primary_interest",
}
DIMENSIONS = (*DIMENSION_OF_LABEL.values(), "cuisine_openness", "trip_count", "category_affinities")

# What a value is worth, by where it comes from.
CONFIDENCE = {"onboarding": 1.0, "default": 0.0, "reconstructed": 0.95}


@dataclass(frozen=True)
class Found:
    """A dimension's value and where it comes from."""

    value: str
    source: str


def finite_number(value: Any) -> float | None:
    """[A finite JSON number], as float64; None for anything else. JSON's true and false are not numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shortest(number: float) -> str:
    """The shortest decimal that gives the same float64, an integral one without point (`0.85`, `1`)."""
    return repr(number).removesuffix(".0")


def label(seed: dict[str, Any], source_field: str, model: dict[str, Any]) -> Found:
    """`value` keeps the label as found; missing or of the wrong type: the default, source `default`."""
    value = seed.get(source_field)
    if isinstance(value, str):
        return Found(value, "onboarding")
    return Found(model["defaults"][source_field], "default")


def openness(seed: dict[str, Any], model: dict[str, Any]) -> Found:
    """`cuisine_openness` is the shortest decimal; missing or of the wrong type: the default, source `default`."""
    number = finite_number(seed.get("cuisine_openness"))
    if number is None:
        return Found(shortest(float(model["defaults"]["cuisine_openness"])), "default")
    return Found(shortest(number), "onboarding")


def trip_count(trips: int) -> Found:
    """`trip_count` counts all the user's trips: `first_trip` 1, `returning` 2-3, `frequent` 4+.

    Its source is `onboarding`, confidence 1.0 (as `trip_count`, which is counted).
    """
    if trips == 1:
        return Found("first_trip", "onboarding")
    return Found("returning" if trips <= 3 else "frequent", "onboarding")


def affinities_text(affinities: dict[str, float]) -> str:
    """[A vector] is a JSON object, keys sorted, one space after each `:` and `,`.

    values clipped to [0, 1] and rounded to 6 decimals [half-even on the float64]
    """
    rounded = {}
    for category in sorted(affinities, key=by_bytes):
        clipped = min(max(affinities[category], 0.0), 1.0)
        rounded[category] = round(clipped, 6) + 0.0  # + 0.0: no negative zero
    return json.dumps(rounded, ensure_ascii=False)


def usable_affinities(seed: dict[str, Any], categories: tuple[str, ...]) -> tuple[dict[str, float], Counter[str]]:
    """Keys that the enum doesn't have, and values that aren't finite JSON numbers, are dropped and counted.

    A key that the enum doesn't have counts as that alone, whatever its value.
    """
    found = seed.get("category_affinities")
    usable: dict[str, float] = {}
    dropped: Counter[str] = Counter()
    for category, value in (found if isinstance(found, dict) else {}).items():
        number = finite_number(value)
        if category not in categories:
            dropped["affinities_unknown_category"] += 1
        elif number is None:
            dropped["affinities_not_a_number"] += 1
        else:
            usable[category] = number
    return usable, dropped


def rebuilt_affinities(labels: dict[str, str], categories: tuple[str, ...], model: dict[str, Any]) -> dict[str, float]:
    """Rebuilt from the labels by the additive model of that file (base vector + deltas, then clamp).

    A missing label counts as its default, synonyms are resolved first, an unknown label adds no delta, an unknown
    interest takes the default interest's vector. (Of the vector, what the enum has is kept.)
    """
    plain = {name: model["label_synonyms"][name].get(text, text) for name, text in labels.items()}
    bases = model["base_by_primary_interest"]
    base = bases.get(plain["primary_interest"], bases[model["defaults"]["primary_interest"]])
    deltas = [
        model["delta_by_pace"].get(plain["pace"], {}),
        model["delta_by_budget"].get(plain["budget_tier"], {}),
        model["delta_by_social_mode"].get(plain["social_mode"], {}),
        model["delta_by_time_orientation"].get(plain["time_orientation"], {}),
    ]
    low, high = model["clamp"]
    rebuilt = {}
    for category in base:
        if category in categories:
            value = base[category] + sum(delta.get(category, 0.0) for delta in deltas)
            rebuilt[category] = min(max(value, low), high)
    return rebuilt


def seed_trip(trips: list[Trip]) -> Trip | None:
    """The seed is `personaSeed` of the first trip by (createdAt, id) among those where it is a JSON object."""
    with_object = [trip for trip in trips if isinstance(trip.persona_seed, dict)]
    return min(with_object, key=lambda trip: (trip.created_at, by_bytes(trip.id)), default=None)


def persona_of(
    seed: dict[str, Any], trips: int, categories: tuple[str, ...], model: dict[str, Any]
) -> tuple[dict[str, Found], Counter[str]]:
    """[The eight dimensions.] Found in the seed: source `onboarding`. Missing or of the wrong type: source `default`.

    `category_affinities` absent or without one usable number: rebuilt, source `reconstructed`.
    """
    labels = {name: label(seed, name, model) for name in DIMENSION_OF_LABEL}
    persona = {DIMENSION_OF_LABEL[name]: found for name, found in labels.items()}
    persona["cuisine_openness"] = openness(seed, model)
    persona["trip_count"] = trip_count(trips)
    usable, dropped = usable_affinities(seed, categories)
    if _is_number(seed.get("cuisine_openness")) and finite_number(seed["cuisine_openness"]) is None:
        dropped["openness_not_a_number"] += 1
    if usable:
        persona["category_affinities"] = Found(affinities_text(usable), "onboarding")
    else:
        rebuilt = rebuilt_affinities({name: found.value for name, found in labels.items()}, categories, model)
        persona["category_affinities"] = Found(affinities_text(rebuilt), "reconstructed")
    return persona, dropped


def personas(world: World, settings: Settings, model: dict[str, Any]) -> tuple[list[PersonaRow], dict[str, int]]:
    """For each shadow user with a usable seed, eight rows.

    `createdAt` and `updatedAt` are the createdAt of the trip that gave the seed.

    Counts: shadow_users, users_without_persona, source_onboarding, source_default, source_reconstructed (rows by
    source), affinities_unknown_category, affinities_not_a_number (entries dropped from the seeds that were used),
    openness_not_a_number (numbers beyond float64, dropped from them likewise).
    """
    names = ("shadow_users", "users_without_persona", *(f"source_{source}" for source in CONFIDENCE))
    dropped_names = ("affinities_unknown_category", "affinities_not_a_number", "openness_not_a_number")
    counts = Counter(dict.fromkeys((*names, *dropped_names), 0))
    rows = []
    for user_id in sorted(shadow_users(world, settings), key=by_bytes):
        counts["shadow_users"] += 1
        trips = [trip for trip in world.trips if trip.user_id == user_id]
        first = seed_trip(trips)
        if first is None:
            counts["users_without_persona"] += 1
            continue
        persona, dropped = persona_of(first.persona_seed, len(trips), world.categories, model)
        counts.update(dropped)
        for dimension in sorted(persona, key=by_bytes):
            found = persona[dimension]
            counts[f"source_{found.source}"] += 1
            rows.append(_persona_row(user_id, dimension, found, first.created_at, settings))
    return rows, dict(counts)


def _persona_row(user_id: str, dimension: str, found: Found, moment: datetime, settings: Settings) -> PersonaRow:
    return PersonaRow(
        id=row_id("persona_dimension", settings.seed, user_id, dimension),
        user_id=user_id,
        dimension=dimension,
        value=found.value,
        confidence=CONFIDENCE[found.source],
        source=found.source,
        created_at=moment,
        updated_at=moment,
    )


# --------------------------------------------------------------------------------------------------------- events

CANDIDATES = 20
UNKNOWN_CATEGORY_AFFINITY = 0.3
SELECTED_STATUSES = ("confirmed", "active", "completed")
SKIP_REASONS = ("user_without_persona", "city_without_nodes", "date_out_of_range")


def eligible(world: World, city: str) -> list[Node]:
    """Eligible nodes: those of the trip's city whose status is not `archived` (an archived place can't be offered)."""
    return [node for node in world.nodes if node.city == city and node.status != "archived"]


def ranked_ids(nodes: list[Node], affinities: dict[str, float], user_id: str, seed: int) -> tuple[str, ...]:
    """The top 20 by affinity (all, where the city has fewer), highest first.

    Affinity of a node: the user's value for its category, 0.3 where the user has none. Ties [...] are broken by a
    documented, stable hash of (seed, user id, node id).
    """

    def rank(node: Node) -> tuple[float, int, bytes]:
        affinity = affinities.get(node.category, UNKNOWN_CATEGORY_AFFINITY)
        return -affinity, tie(seed, user_id, node.id), by_bytes(node.id)

    return tuple(node.id for node in sorted(nodes, key=rank)[:CANDIDATES])


def day_slots(world: World, trip_id: str, day_number: int) -> list[Slot]:
    """[That day's slots] in slot order (sortOrder, id)."""
    slots = [slot for slot in world.slots if slot.trip_id == trip_id and slot.day_number == day_number]
    return sorted(slots, key=lambda slot: (slot.sort_order, by_bytes(slot.id)))


def distinct(ids: Ids) -> tuple[str, ...]:
    """The ids without NULLs, each where it is first; a NULL array has none."""
    return tuple(dict.fromkeys(each for each in ids or () if each is not None))


def selected_ids(slots: list[Slot]) -> tuple[str, ...]:
    """`selectedIds`: the distinct nodes of that day's slots with status confirmed, active or completed, in slot order."""
    return distinct(tuple(slot.node_id for slot in slots if slot.status in SELECTED_STATUSES))


def day_moment(start: Moment, day_number: int) -> datetime | None:
    """`createdAt` = trip.startDate + (dayNumber - 1) days; None where the start or this day leaves the years 1 to 9999."""
    if isinstance(start, str):
        return None
    ordinal = start.toordinal() + day_number - 1
    if not date.min.toordinal() <= ordinal <= date.max.toordinal():
        return None
    return datetime.combine(date.fromordinal(ordinal), start.time())


def skip_reason(has_persona: bool, nodes: list[Node], moment: datetime | None) -> str | None:  # noqa: FBT001 - plain
    """No row for a user without persona rows, a city without eligible nodes, a [day] that leaves the years 1 to 9999."""
    if not has_persona:
        return "user_without_persona"
    if not nodes:
        return "city_without_nodes"
    return "date_out_of_range" if moment is None else None


def events(world: World, persona_rows: list[PersonaRow], settings: Settings) -> tuple[list[EventRow], dict[str, int]]:
    """**RankingEvent** [...] for shadow users, one row per (trip, dayNumber) that has at least one slot.

    Affinities are those read back from the PersonaDimension rows just written, never the JSON. Skipped (trip, day)
    pairs are counted, with the reason; [nodes selected] outside `candidateIds` are counted. Others' persona rows may be
    among those given.

    Rows are in the order (user, trip, day). Counts: events, one per skip reason, positives, positives_outside_candidates.
    """
    counts = dict.fromkeys(("events", *SKIP_REASONS, "positives", "positives_outside_candidates"), 0)
    shadow = shadow_users(world, settings)
    own = [row for row in persona_rows if row.user_id in shadow]
    with_persona = {row.user_id for row in own}
    affinities = {row.user_id: json.loads(row.value) for row in own if row.dimension == "category_affinities"}
    rows = []
    for trip in sorted(world.trips, key=lambda trip: (by_bytes(trip.user_id), by_bytes(trip.id))):
        if trip.user_id not in shadow:
            continue
        nodes = eligible(world, trip.city)
        for day in sorted({slot.day_number for slot in world.slots if slot.trip_id == trip.id}):
            moment = day_moment(trip.start_date, day)
            reason = skip_reason(trip.user_id in with_persona, nodes, moment)
            if reason is not None or moment is None:
                counts[str(reason)] += 1
                continue
            ranked = ranked_ids(nodes, affinities[trip.user_id], trip.user_id, settings.seed)
            selected = selected_ids(day_slots(world, trip.id, day))
            rows.append(_event_row(trip, day, moment, ranked, selected, settings))
            counts["events"] += 1
            counts["positives"] += len(selected)
            counts["positives_outside_candidates"] += len(set(selected) - set(ranked))
    return rows, counts


def _event_row(
    trip: Trip, day: int, moment: datetime, ranked: tuple[str, ...], selected: tuple[str, ...], settings: Settings
) -> EventRow:
    """`candidateIds`: stored in ascending id order: a set, with no hint of rank. `rankedIds`: the same ids by affinity.

    `modelName` llm_ranker, `modelVersion` 0.1.0, `surface` itinerary, `sessionId` and the three shadow fields NULL.
    """
    event_id = row_id("ranking_event", settings.seed, trip.id, str(day))
    return EventRow(
        id=event_id,
        user_id=trip.user_id,
        trip_id=trip.id,
        day_number=day,
        model_name="llm_ranker",
        model_version="0.1.0",
        candidate_ids=tuple(sorted(ranked, key=by_bytes)),
        ranked_ids=ranked,
        selected_ids=selected,
        surface="itinerary",
        latency_ms=latency_ms(event_id),
        created_at=moment,
    )


# ------------------------------------------------------------------------------------------------- the whole state


def registry(world: World, settings: Settings) -> tuple[RegistryRow, ...]:
    """The two rows of the design; an existing (modelName, modelVersion) is left as it is."""
    ranker = ("llm_ranker", "0.1.0", "production", "llm_ranking", "Claude Sonnet-based ranking, bootstrap phase")
    bpr = ("bpr", "0.0.0", "staging", "collaborative_filtering", "BPR placeholder, awaiting first training run")
    there = {(row.model_name, row.model_version) for row in world.registry}
    new = [row for row in (ranker, bpr) if row[:2] not in there]
    return world.registry + tuple(RegistryRow(row_id("model_registry", settings.seed, *row[:2]), *row) for row in new)


def backfilled(world: World, settings: Settings) -> tuple[Signal, ...]:
    """**Backfill** of `BehavioralSignal.modelVersion`: the single UPDATE of the design."""
    shadow = shadow_users(world, settings)
    return tuple(
        replace(signal, model_version="llm_ranker:0.1.0")
        if signal.user_id in shadow and signal.model_version is None
        else signal
        for signal in world.signals
    )


def after_run(world: World, settings: Settings, model: dict[str, Any]) -> World:
    """DELETE + COPY for shadow users. Nothing that belongs to anyone else is ever written or deleted.

    Rows that stay come first, in the world's order; new ones after them.
    """
    shadow = shadow_users(world, settings)
    persona_rows, _ = personas(world, settings, model)
    event_rows, _ = events(world, persona_rows, settings)
    return replace(
        world,
        personas=(*(row for row in world.personas if row.user_id not in shadow), *persona_rows),
        events=(*(row for row in world.events if row.user_id not in shadow), *event_rows),
        registry=registry(world, settings),
        signals=backfilled(world, settings),
    )


# --------------------------------------------------------------------------------------------------- the published


@dataclass(frozen=True)
class ExportedEvent:
    """One row of `events/`: the compact form. `created_at` is not published, it decides the order."""

    event_id: str
    user_id: str
    trip_id: str
    day_number: int
    timestamp: int
    surface: str
    model_name: str
    model_version: str
    candidate_ids: tuple[str, ...]
    ranked_ids: tuple[str, ...]
    selected_ids: tuple[str, ...]
    shown_ids: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True)
class Exported:
    """The exported events of each city that has any, in row order, and the counts of what was read."""

    cities: dict[str, list[ExportedEvent]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Triple:
    """One row of `triples/`, with the columns in their order."""

    user_id: str
    pos_item: str
    neg_item: str
    timestamp: int
    event_id: str
    trip_id: str
    day_number: int
    neg_source: str
    pos_in_candidates: bool
    weight: float


@dataclass(frozen=True)
class UserOut:
    user_id: str
    user_idx: int
    dimensions: dict[str, str | None]  # all eight, and so the next two
    confidences: dict[str, float | None]
    sources: dict[str, str | None]
    affinities: dict[str, float]
    status: str  # present, or gone


@dataclass(frozen=True)
class ItemOut:
    item_id: str
    item_idx: int
    city: str | None
    category: str | None
    name: str | None
    latitude: float | None
    longitude: float | None
    status: str


def audience(world: World, settings: Settings) -> set[str]:
    """`--audience shadow` (default), `real` or `all`: whose RankingEvent rows are exported."""
    everyone = {user.id for user in world.users}
    shadow = shadow_users(world, settings)
    return {"shadow": shadow, "real": everyone - shadow, "all": everyone}[settings.audience]


def timestamp(moment: datetime) -> int:
    """The floor of the event's createdAt in seconds since the epoch, UTC."""
    return (moment - datetime(1970, 1, 1)) // timedelta(seconds=1)  # noqa: DTZ001 - timestamps without zone are UTC


def shown_ids(world: World, event: EventRow) -> tuple[str, ...]:
    """`shown_ids` (the day's distinct nodes that were not selected, in slot order)."""
    of_day = distinct(tuple(slot.node_id for slot in day_slots(world, event.trip_id, event.day_number)))
    selected = distinct(event.selected_ids)
    return tuple(node_id for node_id in of_day if node_id not in selected)


def exported(world: World, settings: Settings) -> Exported:
    """`events/`: one row per ranking event, whatever its model; its partition is the city of its trip.

    An event whose trip is gone has no city and is counted, not exported; so is one whose createdAt leaves the years
    1 to 9999 (which is looked at first). Counts: events (exported), trip_gone, date_out_of_range.
    """
    result = Exported(counts=dict.fromkeys(("events", "trip_gone", "date_out_of_range"), 0))
    who = audience(world, settings)
    city_of_trip = {trip.id: trip.city for trip in world.trips}
    for event in world.events:
        if event.user_id not in who:
            continue
        if isinstance(event.created_at, str):
            result.counts["date_out_of_range"] += 1
        elif event.trip_id not in city_of_trip:
            result.counts["trip_gone"] += 1
        else:
            result.counts["events"] += 1
            result.cities.setdefault(city_of_trip[event.trip_id], []).append(_exported_event(world, event))
    for rows in result.cities.values():
        rows.sort(key=_row_order)
    return result


def _exported_event(world: World, event: EventRow) -> ExportedEvent:
    if isinstance(event.created_at, str):
        raise TypeError("such an event is not exported")
    return ExportedEvent(
        event_id=event.id,
        user_id=event.user_id,
        trip_id=event.trip_id,
        day_number=event.day_number,
        timestamp=timestamp(event.created_at),
        surface=event.surface,
        model_name=event.model_name,
        model_version=event.model_version,
        candidate_ids=distinct(event.candidate_ids),
        ranked_ids=distinct(event.ranked_ids),
        selected_ids=distinct(event.selected_ids),
        shown_ids=shown_ids(world, event),
        created_at=event.created_at,
    )


def _row_order(event: ExportedEvent) -> tuple[Any, ...]:
    """Rows of a city: by (sha256 of the user, user, createdAt, trip, day, event)."""
    user = by_bytes(event.user_id)
    digest = hashlib.sha256(user).hexdigest()
    return digest, user, event.created_at, by_bytes(event.trip_id), event.day_number, by_bytes(event.event_id)


def users_rows(world: World, settings: Settings, earlier: tuple[str, ...] = ()) -> list[UserOut]:
    """`users.parquet`: every user of the audience, sorted by id; `user_id`, `user_idx` (the row number), the eight dimensions.

    As the database has them after the run, a confidence that is no finite number as null; a user without persona has none.
    `earlier` are the ids of `--vocab-from`, in their order: old ids keep their row, gone ones with status `gone`, new ids
    are appended in id order.
    """
    rows = {(row.user_id, row.dimension): row for row in world.personas}
    who = audience(world, settings)
    made = []
    for number, user_id in enumerate(_with_new_ids(earlier, who)):
        # A user who is no longer in the audience has null dimensions, whatever the database still has.
        own = {dimension: rows.get((user_id, dimension)) if user_id in who else None for dimension in DIMENSIONS}
        vector = own["category_affinities"]
        made.append(
            UserOut(
                user_id=user_id,
                user_idx=number,
                dimensions={dimension: None if row is None else row.value for dimension, row in own.items()},
                confidences={
                    dimension: None if row is None else finite_number(row.confidence) for dimension, row in own.items()
                },
                sources={dimension: None if row is None else row.source for dimension, row in own.items()},
                affinities={} if vector is None else numbers_in(vector.value),
                status="present" if user_id in who else "gone",
            )
        )
    return made


def numbers_in(text: str) -> dict[str, float]:
    """The finite numbers of a JSON object, by key; none in a text that is no such object (others' rows may be anything)."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    numbers = {key: finite_number(value) for key, value in found.items()} if isinstance(found, dict) else {}
    return {key: number for key, number in numbers.items() if number is not None}


def _with_new_ids(earlier: tuple[str, ...], now: set[str]) -> list[str]:
    """Old ids keep their row, new ids are appended in id order."""
    return [*earlier, *sorted(now - {*earlier}, key=by_bytes)]


def items_rows(world: World, exported_events: Exported, earlier: tuple[str, ...] = ()) -> list[ItemOut]:
    """`items.parquet`: every eligible node of every city and every node that an event names, sorted by id.

    A named node that the database no longer has is `gone`, and nothing else is known of it. A coordinate that is no finite
    number is null. `earlier` are the ids of `--vocab-from`, as in `users_rows`; one that is neither eligible nor named is
    listed with what ActivityNode says of it.
    """
    nodes = {node.id: node for node in world.nodes}
    ids = {node.id for node in world.nodes if node.status != "archived"}
    for city_events in exported_events.cities.values():
        for event in city_events:
            ids.update(event.candidate_ids, event.ranked_ids, event.selected_ids, event.shown_ids)
    return [_item(node_id, number, nodes.get(node_id)) for number, node_id in enumerate(_with_new_ids(earlier, ids))]


def _item(node_id: str, number: int, node: Node | None) -> ItemOut:
    if node is None:
        return ItemOut(node_id, number, None, None, None, None, None, "gone")
    place = finite_number(node.latitude), finite_number(node.longitude)
    return ItemOut(node_id, number, node.city, node.category, node.name, *place, node.status)


def indexes(rows: list[Triple], users: list[UserOut], items: list[ItemOut]) -> list[tuple[int, int, int]]:
    """`--ids index` writes `user_idx, pos_idx, neg_idx` instead of the three strings."""
    user_idx = {row.user_id: row.user_idx for row in users}
    item_idx = {row.item_id: row.item_idx for row in items}
    return [(user_idx[row.user_id], item_idx[row.pos_item], item_idx[row.neg_item]) for row in rows]
