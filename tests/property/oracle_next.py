"""The contract's `interactions` and `next`, and the columns of `--history`: from the exported events on.

Slow and obvious like `oracle_training`, on which it builds: written from the contract's text, not from the code. Docstrings
quote the sentences they implement. Where the contract is silent they say what is meant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.property.oracle import Exported, ExportedEvent, Node, Settings, Triple, World, by_bytes, mix64
from tests.property.oracle_training import (
    SPLITS,
    Partition,
    catalog_size,
    catalogue,
    city_weight,
    even_draw,
    float32,
    h,
    shuffle_key,
    splits,
    start_us,
)

EARTH_RADIUS_KM = 6371.0088
"""The mean radius of the International Union of Geodesy and Geophysics."""

SAMPLES = 16
"""Negatives of a choice where no `catalog:N` is asked for."""


@dataclass(frozen=True)
class Past:
    """Events of a user with their parts of the split: what a row of one of them may know.

    No row of a later split informs an earlier one: events of a later part are not known.
    """

    world: World
    exported: Exported
    split_of: dict[str, str]

    def known(self, event: ExportedEvent) -> list[ExportedEvent]:
        """The user's events of the same or an earlier part, of every city, by (createdAt, trip, day, event)."""
        until = SPLITS.index(self.split_of[event.event_id])
        own = [
            other
            for rows in self.exported.cities.values()
            for other in rows
            if other.user_id == event.user_id and SPLITS.index(self.split_of[other.event_id]) <= until
        ]
        return sorted(own, key=in_time)

    def start(self, trip_id: str) -> tuple[bool, int, bytes]:
        """Trips are in the order of (startDate, id); an infinite startDate comes first."""
        (moment,) = (start_us(trip.start_date) for trip in self.world.trips if trip.id == trip_id)
        return moment is not None, moment or 0, by_bytes(trip_id)

    def earlier(self, event: ExportedEvent) -> list[ExportedEvent]:
        """The known events before an event in (createdAt, trip, day, event) order."""
        return [other for other in self.known(event) if in_time(other) < in_time(event)]


def in_time(event: ExportedEvent) -> tuple[Any, ...]:
    """(createdAt, trip, day, event) order."""
    return event.created_at, by_bytes(event.trip_id), event.day_number, by_bytes(event.event_id)


def days_since(event: ExportedEvent, before: Iterable[ExportedEvent]) -> float | None:
    """Days from the latest of these events to an event, by their timestamps: null if there is none, at least 0."""
    latest = max((other.timestamp for other in before), default=None)
    return None if latest is None else float32(max(0, event.timestamp - latest) / 86_400)


# -------------------------------------------------------------------------------------------------------- interactions


@dataclass(frozen=True)
class Interaction:
    """One row of `interactions/`, without the two indexes at its end."""

    user_id: str
    item_id: str
    timestamp: int
    event_id: str
    trip_id: str
    day_number: int
    position: int
    is_new: bool
    weight: float


def interactions(world: World, exported: Exported, settings: Settings) -> dict[Partition, list[Interaction]]:
    """Every event's city, also those left out of the triples: one row per (event, selected item).

    In file order, then in visiting order. position: 1-based place among the day's selected items. is_new: no earlier event of
    this user, in (createdAt, trip, day, event) order, and no earlier position has this item. (A city that is left out of the
    triples has the weight of one that is kept.)
    """
    past = Past(world, exported, splits(world, exported, settings))
    made: dict[Partition, list[Interaction]] = {}
    for city, events in exported.cities.items():
        weight = city_weight(world, city, settings)
        if weight is None:
            weight = city_weight(world, city, replace(settings, small_catalog="keep"))
        for event in events:
            seen = {item for other in past.earlier(event) for item in other.selected_ids}
            for position, item in enumerate(event.selected_ids, 1):
                new = item not in seen and item not in event.selected_ids[: position - 1]
                row = Interaction(
                    *(event.user_id, item, event.timestamp, event.event_id, event.trip_id, event.day_number),
                    *(position, new, weight),
                )
                made.setdefault((past.split_of[event.event_id], city), []).append(row)
    return made


def n_users(made: dict[Partition, list[Interaction]], item_id: str) -> int:
    """Distinct users who selected it, in train."""
    rows = [row for (split, _), of_part in made.items() if split == "train" for row in of_part]
    return len({row.user_id for row in rows if row.item_id == item_id})


# ---------------------------------------------------------------------------------------------------------------- next


@dataclass(frozen=True)
class History:
    """The columns of `--history`: earlier selections of the item by the user, and days since the last; null if never."""

    pos_n_before: int
    neg_n_before: int
    pos_days_since: float | None
    neg_days_since: float | None


@dataclass(frozen=True)
class NextRow:
    """One row of `next/`."""

    user_id: str
    trip_id: str
    event_id: str
    day_number: int
    step: int
    prev_item: str
    same_day: bool
    pos_item: str
    neg_item: str
    pos_km: float | None
    neg_km: float | None
    is_new: bool
    timestamp: int
    weight: float


@dataclass(frozen=True)
class Made:
    """The rows of `next/`, the history of each, and the account: choices with rows, choices left out by reason."""

    rows: dict[Partition, list[NextRow]] = field(default_factory=dict)
    history: dict[Partition, list[History]] = field(default_factory=dict)
    choices: Counter[Partition] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


Visit = tuple[ExportedEvent, str]
"""A selected item of an event."""


def next_rows(world: World, exported: Exported, settings: Settings) -> Made:
    """The choices of the next place, one row per (choice, negative), in the order of events, positions, draws."""
    past, made = Past(world, exported, splits(world, exported, settings)), Made()
    places = {node.id: node for node in world.nodes}
    for city, events in exported.cities.items():
        weight, offered = city_weight(world, city, settings), catalogue(world, city)
        for event in events:
            partition = past.split_of[event.event_id], city
            for item in event.selected_ids:
                before, visits = _before_choice(past, event, item)
                if not visits:
                    continue  # the first place of a trip is no choice
                pool = _pool(offered, event, item, before, settings)
                if weight is None:
                    made.left_out["small_catalog"] += 1
                elif not pool:
                    made.left_out["whole_catalog_seen" if offered else "no_negatives"] += 1
                else:
                    made.choices[partition] += 1
                    for negative in _drawn(pool, event, item, settings):
                        row = _row(event, visits, item, negative, places, before, weight)
                        made.rows.setdefault(partition, []).append(row)
                        made.history.setdefault(partition, []).append(history(event, before, item, negative))
    if settings.shuffle:
        for partition, rows in made.rows.items():
            order = sorted(range(len(rows)), key=lambda place: _shuffle_key(settings.seed, rows[place]))
            made.history[partition] = [made.history[partition][place] for place in order]
            made.rows[partition] = [rows[place] for place in order]
    return made


def _before_choice(past: Past, event: ExportedEvent, item: str) -> tuple[list[Visit], list[Visit]]:
    """What the user selected before this choice (earlier trips in (startDate, id) order, and this trip so far); this trip so far.

    A trip's choices are its selected items in (day, position) order, over all of its events; of two events of one day, that
    of the earlier event comes first at equal position. The trip of a user is that user's alone, also where an event of another
    user names it.
    """
    known = past.known(event)
    of_trips = [(other, each) for other in known for each in other.selected_ids if _is_earlier_trip(past, other, event)]
    of_this = [(other, each) for other in known for each in other.selected_ids if other.trip_id == event.trip_id]
    of_this.sort(key=lambda visit: (visit[0].day_number, visit[0].selected_ids.index(visit[1])))
    so_far = of_this[: of_this.index((event, item))]
    return [*of_trips, *so_far], so_far


def _is_earlier_trip(past: Past, other: ExportedEvent, event: ExportedEvent) -> bool:
    return past.start(other.trip_id) < past.start(event.trip_id)


def _pool(
    offered: tuple[str, ...], event: ExportedEvent, item: str, before: list[Visit], settings: Settings
) -> tuple[str, ...]:
    """The city's eligible items, minus those the user selected before this choice and the positive.

    (`--reject event`: minus those of the same event before this choice and the positive, so that places seen before are
    among the negatives.)
    """
    counted = [visit for visit in before if settings.reject == "seen" or visit[0] == event]
    rejected = {each for _, each in counted} | {item}
    return tuple(each for each in offered if each not in rejected)


def _drawn(pool: tuple[str, ...], event: ExportedEvent, item: str, settings: Settings) -> tuple[str, ...]:
    """As `catalog:N` says (16 where it is not asked for), evenly without repeats, by a key of its own."""
    key = mix64(h("\x00".join(("next", str(settings.seed), event.user_id, event.event_id))) ^ h(item))
    return even_draw(pool, catalog_size(settings.negatives) or SAMPLES, key)


def _row(
    event: ExportedEvent,
    visits: list[Visit],
    item: str,
    negative: str,
    places: dict[str, Node],
    before: list[Visit],
    weight: float,
) -> NextRow:
    """step: 1-based among the trip's choices; same_day: prev_item is of the same day; is_new: no earlier selection."""
    previous_event, previous = visits[-1]
    return NextRow(
        user_id=event.user_id,
        trip_id=event.trip_id,
        event_id=event.event_id,
        day_number=event.day_number,
        step=len(visits),
        prev_item=previous,
        same_day=previous_event.day_number == event.day_number,
        pos_item=item,
        neg_item=negative,
        pos_km=km(places.get(previous), places.get(item)),
        neg_km=km(places.get(previous), places.get(negative)),
        is_new=item not in {each for _, each in before},
        timestamp=event.timestamp,
        weight=weight,
    )


def km(one: Node | None, other: Node | None) -> float | None:
    """Great-circle km, by haversine; null where a coordinate is missing or out of range (|lat| > 90, |lon| > 180, NaN)."""
    points = []
    for node in (one, other):
        if node is None or node.latitude is None or node.longitude is None:
            return None
        if not (abs(node.latitude) <= 90 and abs(node.longitude) <= 180):
            return None
        points.append((math.radians(node.latitude), math.radians(node.longitude)))
    (up, across), (up_, across_) = points
    squared = math.sin((up_ - up) / 2) ** 2 + math.cos(up) * math.cos(up_) * math.sin((across_ - across) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(squared)))


def history(event: ExportedEvent, before: list[Visit], positive: str, negative: str) -> History:
    """Earlier selections of that item by that user, strictly before the choice."""
    of_both = [[other for other, each in before if each == item] for item in (positive, negative)]
    return History(*map(len, of_both), *(days_since(event, events) for events in of_both))


def _shuffle_key(seed: int, row: NextRow) -> int:
    """`--shuffle`: as triples are shuffled."""
    return shuffle_key(seed, row)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- history of triples


def history_of_triples(
    world: World, exported: Exported, settings: Settings, triples: dict[Partition, list[Triple]]
) -> dict[Partition, list[History]]:
    """Earlier selections of that item by that user, strictly before the event, in (createdAt, trip, day, event) order."""
    past = Past(world, exported, splits(world, exported, settings))
    events = {event.event_id: event for rows in exported.cities.values() for event in rows}
    earlier = {
        event_id: [(other, each) for other in past.earlier(event) for each in other.selected_ids]
        for event_id, event in events.items()
    }
    return {
        partition: [history(events[row.event_id], earlier[row.event_id], row.pos_item, row.neg_item) for row in rows]
        for partition, rows in triples.items()
    }
