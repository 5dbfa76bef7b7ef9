"""The contract's section 3 from the exported events on: splits, negatives, weights, and what is counted of them.

Slow and obvious like `oracle`, whose worlds and rows it takes: written from the contract's text and from the reading of it
that docs/internals.md gives, not from the code, with the standard library alone. Docstrings quote the sentences they implement.
"""

from __future__ import annotations

import hashlib
import math
import re
import statistics
import struct
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction

from tests.property.oracle import (
    Exported,
    ExportedEvent,
    Moment,
    Settings,
    Triple,
    World,
    by_bytes,
    eligible,
    mix64,
    row_order,
)

SPLITS = ("train", "valid", "test")  # No row of a later split informs an earlier one.
SOURCES = ("ranking", "shown", "catalog")
REASONS = ("small_catalog", "no_negatives", "whole_catalog_seen")

# A split and a city: what makes a folder of `triples/` and `events/`. With `--split none` all events are train's.
Partition = tuple[str, str]

# ------------------------------------------------------------------------------------------- catalogues and weights


def catalogue(world: World, city: str) -> tuple[str, ...]:
    """The city's eligible nodes (status not archived, not gone), ascending by node id bytes."""
    return tuple(sorted((node.id for node in eligible(world, city)), key=by_bytes))


def float32(number: float) -> float:
    """The float32 nearest to a number."""
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


def city_weight(world: World, city: str, settings: Settings) -> float | None:
    """**Small catalogues**: a city with fewer than `--min-catalog` (50) eligible nodes is left out of the triples.

    (`exclude`, here None), or kept with weight nodes / min-catalog (`weight`), or kept (`keep`). `--city-weight` is a factor
    upon that. `weight`: float32, 1.0 unless a weighting is asked for.
    """
    nodes = len(eligible(world, city))
    share = 1.0
    if nodes < settings.min_catalog:
        if settings.small_catalog == "exclude":
            return None
        if settings.small_catalog == "weight":
            share = nodes / settings.min_catalog
    return float32(share * dict(settings.city_weight).get(city, 1.0))


# ------------------------------------------------------------------------------------------------------------ splits

_GREGORIAN_CYCLE = 400, timedelta(days=146_097)  # so many years have so many days, whichever they are
_TOO_LATE = 294_000
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - timestamps without zone are UTC


def start_us(start: Moment) -> int | None:
    """`start_us` (int64 microseconds, null when infinite), also of the years that Python has no date for.

    Null also from the year 294000 on: the last ones are more microseconds than int64 holds.
    """
    if isinstance(start, datetime):
        return (start - _EPOCH) // timedelta(microseconds=1)
    parts = re.fullmatch(r"(\d+)(-.*?)( BC)?", start)
    if parts is None:
        return None
    # The year before 1 is 1 BC. A year with the same calendar that Python has, and the days that lie between.
    year = 1 - int(parts[1]) if parts[3] else int(parts[1])
    if year >= _TOO_LATE:
        return None
    years, days = _GREGORIAN_CYCLE
    same = datetime.fromisoformat(f"{year % years + years:04}{parts[2]}")
    return (same - _EPOCH + days * (year // years - 1)) // timedelta(microseconds=1)


def splits(world: World, exported: Exported, settings: Settings) -> dict[str, str]:
    """The split of each exported event, by its id. `--split none` (default): all events count as train."""
    events = [event for rows in exported.cities.values() for event in rows]
    if settings.split == "none":
        return {event.event_id: "train" for event in events}
    if settings.split == "last-trip":
        of_trip = last_trip_splits(world, exported, settings)
        return {event.event_id: of_trip[event.user_id, event.trip_id] for event in events}
    cuts = [datetime.fromisoformat(text) for text in settings.split.removeprefix("time:").split(",")]
    return {event.event_id: time_split(event.created_at, cuts) for event in events}


def time_split(created_at: datetime, cuts: list[datetime]) -> str:
    """`time:<ISO date>[,<ISO date>]`, a global cut of the event's createdAt, start inclusive.

    train | test, or train | valid | test.
    """
    passed = sum(created_at >= cut for cut in cuts)
    return {1: ("train", "test"), 2: SPLITS}[len(cuts)][passed]


def last_trip_splits(world: World, exported: Exported, settings: Settings) -> dict[tuple[str, str], str]:
    """`last-trip`: the split of each (user, trip) that has an exported event.

    Of a user's trips that have events in exported cities, by (startDate, id), the latest is `test`, with three or more the
    one before it `valid`, the rest, and all of a user with one, `train`. An infinite startDate comes first.

    (A trip whose city is left out takes the split of the same user's nearest kept trip before it in that order, train
    where there is none: so no later split precedes an earlier one of the same user.)
    """
    start = {trip.id: start_us(trip.start_date) for trip in world.trips}

    def in_time(trip_id: str) -> tuple[bool, int, bytes]:
        moment = start[trip_id]
        return moment is not None, moment or 0, by_bytes(trip_id)

    kept_trips = {
        event.trip_id
        for city, rows in exported.cities.items()
        if city_weight(world, city, settings) is not None
        for event in rows
    }
    keys = {(event.user_id, event.trip_id) for rows in exported.cities.values() for event in rows}
    found = {}
    for user_id in {user_id for user_id, _ in keys}:
        trips = sorted((trip_id for user, trip_id in keys if user == user_id), key=in_time)
        kept = [trip_id for trip_id in trips if trip_id in kept_trips]
        later = dict.fromkeys(kept, "train")
        if len(kept) >= 2:
            later[kept[-1]] = "test"
        if len(kept) >= 3:
            later[kept[-2]] = "valid"
        split = "train"
        for trip_id in trips:
            split = later.get(trip_id, split)
            found[user_id, trip_id] = split
    return found


# ------------------------------------------------------------------------------------------------------------- draws

_GOLDEN = 0x9E3779B97F4A7C15  # the step of splitmix64


def h(text: str) -> int:
    """The first 8 bytes of SHA-256 of a text's UTF-8 bytes, big-endian unsigned."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def draw_key(seed: int, user_id: str, event_id: str, positive: str) -> int:
    """Draws are seeded per (user, event, positive), so that any number of workers gives the same.

    key = mix64( h("negative" NUL seed NUL user_id NUL event_id) XOR h(p) )
    """
    return mix64(h("\x00".join(("negative", str(seed), user_id, event_id))) ^ h(positive))


def u(key: int, i: int) -> int:
    """32 bits for the draw number i: mix64( (key + (i + 1) * 0x9E3779B97F4A7C15) mod 2**64 ) >> 32."""
    return mix64((key + (i + 1) * _GOLDEN) % 2**64) >> 32


def even_draw(pool: tuple[str, ...], count: int, key: int) -> tuple[str, ...]:
    """`catalog:N`: N nodes per positive, drawn without repeats (all, where there are fewer), evenly (Floyd 1987).

    for i in 0..N-1: j = m - N + i; t = u(i) * (j + 1) >> 32; take pool[t], unless it is taken already: then pool[j].
    """
    if len(pool) <= count:
        return pool
    taken: list[str] = []
    for i in range(count):
        j = len(pool) - count + i
        t = (u(key, i) * (j + 1)) >> 32
        taken.append(pool[t] if pool[t] not in taken else pool[j])
    return tuple(taken)


def integer_weights(times: dict[str, int], alpha: float) -> dict[str, int]:
    """With `--catalog-alpha A` in proportion to a node's number of positives in train to the power A (one is added to each).

    `times` is that number, for each node of the city's whole catalogue, n of them:
    x = (count + 1) ** alpha; scale = (2**32 - 1 - n) / math.fsum(x over the catalogue); w = floor(x * scale) + 1.
    """
    x = {node_id: (count + 1) ** float(alpha) for node_id, count in times.items()}
    scale = (2**32 - 1 - len(x)) / math.fsum(x.values())
    return {node_id: math.floor(each * scale) + 1 for node_id, each in x.items()}


def weighted_draw(pool: tuple[str, ...], count: int, key: int, weights: dict[str, int]) -> tuple[str, ...]:
    """N nodes of the pool without repeats (all, where there are fewer), in proportion to these weights.

    For i = 0 .. 4N-1, until N are taken: W = sum of w over the pool; r = u(i) * W >> 32; take the pool node at which the
    cumulative weight (pool order) first exceeds r, unless taken already.
    If fewer than N are taken after these: for i = 4N, 4N+1, ...: the same over the pool minus the taken ones.
    """
    if len(pool) <= count:
        return pool
    taken: list[str] = []
    i = 0
    while len(taken) < count:
        among = pool if i < 4 * count else tuple(node_id for node_id in pool if node_id not in taken)
        r = (u(key, i) * sum(weights[node_id] for node_id in among)) >> 32
        drawn = _at_weight(among, weights, r)
        if drawn not in taken:
            taken.append(drawn)
        i += 1
    return tuple(taken)


def _at_weight(pool: tuple[str, ...], weights: dict[str, int], r: int) -> str:
    """The pool node at which the cumulative weight (pool order) first exceeds r."""
    cumulative = 0
    for node_id in pool:
        cumulative += weights[node_id]
        if cumulative > r:
            return node_id
    raise ValueError("r is below the sum of the weights")


# --------------------------------------------------------------------------------------------------------- negatives


def catalog_size(negatives: tuple[str, ...]) -> int | None:
    """The N of `catalog:N`, where that is among the strategies (at most once)."""
    sizes = [int(name.removeprefix("catalog:")) for name in negatives if name.startswith("catalog:")]
    if len(sizes) > 1:
        raise ValueError("at most one catalog")
    return sizes[0] if sizes else None


def times_selected(exported: Exported, split_of: dict[str, str]) -> Counter[str]:
    """A node's number of positives in train: the train events (of every city) whose selected_ids hold it."""
    times: Counter[str] = Counter()
    for rows in exported.cities.values():
        for event in rows:
            if split_of[event.event_id] == "train":
                times.update({*event.selected_ids})
    return times


def rejected(event: ExportedEvent, exported: Exported, split_of: dict[str, str], settings: Settings) -> set[str]:
    """[The city's eligible nodes], minus all that this user ever selected in the same or an earlier split.

    (`--reject seen`, the default: in any exported event, of any city, also of one that is left out; `--reject event` takes
    away only what was selected in the same event.)
    """
    if settings.reject == "event":
        return {*event.selected_ids}
    until = SPLITS.index(split_of[event.event_id])
    seen: set[str] = set()
    for rows in exported.cities.values():
        for other in rows:
            if other.user_id == event.user_id and SPLITS.index(split_of[other.event_id]) <= until:
                seen.update(other.selected_ids)
    return seen


@dataclass(frozen=True)
class Drawing:
    """What an event's catalogue negatives are drawn from. `weights` where they are not drawn evenly."""

    pool: tuple[str, ...]
    count: int
    seed: int
    weights: dict[str, int] | None = None

    def for_positive(self, event: ExportedEvent, positive: str) -> tuple[str, ...]:
        """The draw for one positive, in draw order; the whole pool comes in ascending order."""
        key = draw_key(self.seed, event.user_id, event.event_id, positive)
        if self.weights is None:
            return even_draw(self.pool, self.count, key)
        return weighted_draw(self.pool, self.count, key, self.weights)


def negatives_of(event: ExportedEvent, negatives: tuple[str, ...], drawn: tuple[str, ...] = ()) -> dict[str, str]:
    """Each negative of a positive, and its neg_source; `drawn` are those of `catalog`, for this positive.

    `ranking`: `candidateIds - selectedIds`, in candidate_ids order; `shown`: `shown_ids`; `catalog`, in draw order.
    Where several give the same negative, one row, the first of this order. A negative is never a positive of the same event.
    """
    ids_of = {"ranking": event.candidate_ids, "shown": event.shown_ids, "catalog": drawn}
    asked_for = {name.split(":")[0] for name in negatives}
    found: dict[str, str] = {}
    for source in SOURCES:
        for node_id in ids_of[source] if source in asked_for else ():
            if node_id not in event.selected_ids:
                found.setdefault(node_id, source)
    return found


def event_triples(event: ExportedEvent, positive: str, negatives: dict[str, str], weight: float) -> list[Triple]:
    """One row per (event, positive, negative). `pos_in_candidates`: whether the positive was among the candidates."""
    return [
        Triple(
            user_id=event.user_id,
            pos_item=positive,
            neg_item=negative,
            timestamp=event.timestamp,
            event_id=event.event_id,
            trip_id=event.trip_id,
            day_number=event.day_number,
            neg_source=source,
            pos_in_candidates=positive in event.candidate_ids,
            weight=weight,
        )
        for negative, source in negatives.items()
    ]


def shuffle_key(seed: int, row: Triple) -> int:
    """`--shuffle` gives rows in a seeded random order.

    Sorted by mix64( mix64( h("shuffle" NUL seed NUL event_id) XOR h(pos) ) XOR h(neg) ).
    """
    return mix64(mix64(h("\x00".join(("shuffle", str(seed), row.event_id))) ^ h(row.pos_item)) ^ h(row.neg_item))


# ----------------------------------------------------------------------------------------------- the whole of section 3


@dataclass(frozen=True)
class Training:
    """What is published for training, and the account of it.

    `triples` has the partitions that have any, `events` and `positives` (those in the triples) all that have events. `weights`
    has the cities that have events, None where they are left out of the triples. `signs` has those that are not.
    """

    split_of: dict[str, str] = field(default_factory=dict)
    events: dict[Partition, list[ExportedEvent]] = field(default_factory=dict)
    triples: dict[Partition, list[Triple]] = field(default_factory=dict)
    positives: Counter[Partition] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    users_with_whole_catalog_seen: set[str] = field(default_factory=set)
    weights: dict[str, float | None] = field(default_factory=dict)
    signs: dict[str, float | None] = field(default_factory=dict)

    @property
    def by_source(self) -> Counter[str]:
        """The triples per neg_source."""
        return Counter(row.neg_source for rows in self.triples.values() for row in rows)


def training(world: World, exported: Exported, settings: Settings) -> Training:
    """`triples/[split=train/]city=.../`, in row order, and the account.

    The manifest accounts for every positive: events x selected = triples' positives + left out, by reason. Rows are in the
    order of the events, then of `selectedIds`, then of the negatives, unless `--shuffle` is asked for.
    """
    split_of = splits(world, exported, settings)
    times = times_selected(exported, split_of)
    result = Training(split_of)
    for city, city_events in exported.cities.items():
        weight = result.weights[city] = city_weight(world, city, settings)
        places = catalogue(world, city)
        for split in SPLITS:
            events = [event for event in city_events if split_of[event.event_id] == split]
            if events:
                result.events[split, city] = events
                result.positives[split, city] = 0
            rows: list[Triple] = []
            for event in events if "triples" in settings.task else ():
                if weight is None:
                    result.left_out["small_catalog"] += len(event.selected_ids)
                    continue
                drawing = _drawing(places, rejected(event, exported, split_of, settings), times, settings)
                rows += _rows_of(event, drawing, places, weight, settings, result, (split, city))
            if settings.shuffle:
                rows.sort(key=lambda row: shuffle_key(settings.seed, row))
            if rows:
                result.triples[split, city] = rows
        if weight is not None:
            result.signs[city] = sign(places, result.triples.get(("train", city), []), times)
    return result


def _drawing(places: tuple[str, ...], taken_away: set[str], times: Counter[str], settings: Settings) -> Drawing:
    """The pool: the catalogue minus what is rejected (the event's own positives are, one way or the other), ascending."""
    pool = tuple(node_id for node_id in places if node_id not in taken_away)
    alpha = settings.catalog_alpha or 0.0
    weights = integer_weights({node_id: times[node_id] for node_id in places}, alpha) if alpha and places else None
    return Drawing(pool, catalog_size(settings.negatives) or 0, settings.seed, weights)


def _rows_of(
    event: ExportedEvent,
    drawing: Drawing,
    places: tuple[str, ...],
    weight: float,
    settings: Settings,
    result: Training,
    partition: Partition,
) -> list[Triple]:
    """**Positives** of an event: its `selectedIds`.

    A positive without any negative gives no row and is counted: "whole_catalog_seen" when catalog is among the strategies
    and the city's catalogue is not empty but the pool is; else "no_negatives".
    """
    with_catalog = catalog_size(settings.negatives) is not None
    rows: list[Triple] = []
    for positive in event.selected_ids:
        drawn = drawing.for_positive(event, positive) if with_catalog else ()
        negatives = negatives_of(event, settings.negatives, drawn)
        rows += event_triples(event, positive, negatives, weight)
        if negatives:
            result.positives[partition] += 1
        elif with_catalog and places and not drawing.pool:
            result.left_out["whole_catalog_seen"] += 1
            result.users_with_whole_catalog_seen.add(event.user_id)
        else:
            result.left_out["no_negatives"] += 1
    return rows


# ----------------------------------------------------------------------------------- the sign that needs no training


def average_ranks(values: list[Fraction]) -> list[float]:
    """Each value's place from 1 on, equal values sharing the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def spearman(one: list[Fraction], other: list[Fraction]) -> float | None:
    """Spearman's correlation; None where fewer than 3 items or one side is constant."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return statistics.correlation(average_ranks(one), average_ranks(other))


def sign(places: tuple[str, ...], train: list[Triple], times: Counter[str]) -> float | None:
    """A sign that needs no training: per city, Spearman's correlation between an item's log-ratio and its popularity.

    log((times positive + 1) / (times negative + 1)) in the city's train triples, over the city's catalogue. The popularity
    is the number of train events that selected it. (A logarithm changes no rank, and without it equals are equal.)
    """
    positive = Counter(row.pos_item for row in train)
    negative = Counter(row.neg_item for row in train)
    ratios = [Fraction(positive[node_id] + 1, negative[node_id] + 1) for node_id in places]
    return spearman(ratios, [Fraction(times[node_id]) for node_id in places])


# ------------------------------------------------------------------------------------------- features beside the ids


@dataclass(frozen=True)
class ItemCounts:
    """How often candidate, selected, positive, negative, and by how many users. Counts are of train alone (all without a split)."""

    n_candidate: int
    n_selected: int
    n_positive: int
    n_negative: int
    n_users: int


@dataclass(frozen=True)
class UserCounts:
    """A user's trips, events, selected nodes and triples. Counts are of train alone (everything with split none)."""

    n_trips: int
    n_events: int
    n_selected: int
    n_triples: int


def _of_train(made: Training) -> tuple[list[ExportedEvent], list[Triple]]:
    events = [event for (split, _), rows in made.events.items() if split == "train" for event in rows]
    return events, [row for (split, _), rows in made.triples.items() if split == "train" for row in rows]


def item_counts(made: Training, item_id: str) -> ItemCounts:
    """n_candidate, n_selected (train events that name it), n_positive, n_negative (train triples with it).

    n_users: distinct users who selected it.
    """
    events, rows = _of_train(made)
    return ItemCounts(
        n_candidate=sum(item_id in event.candidate_ids for event in events),
        n_selected=sum(item_id in event.selected_ids for event in events),
        n_positive=sum(item_id == row.pos_item for row in rows),
        n_negative=sum(item_id == row.neg_item for row in rows),
        n_users=len({event.user_id for event in events if item_id in event.selected_ids}),
    )


def user_counts(made: Training, user_id: str) -> UserCounts:
    """n_trips, n_events, n_selected, n_triples (of train)."""
    events, rows = _of_train(made)
    own = [event for event in events if event.user_id == user_id]
    return UserCounts(
        n_trips=len({event.trip_id for event in own}),
        n_events=len(own),
        n_selected=sum(len(event.selected_ids) for event in own),
        n_triples=sum(row.user_id == user_id for row in rows),
    )


def trips_rows(world: World, exported: Exported) -> list[tuple[str, str, int | None]]:
    """trips.parquet: one row per trip that has an exported event, sorted by trip_id: trip_id, city, start_us.

    The city is that of the trip's first event in file order, where its events lie in several.
    """
    start = {trip.id: start_us(trip.start_date) for trip in world.trips}
    events = [(event, city) for city, rows in exported.cities.items() for event in rows]
    events.sort(key=lambda each: row_order(each[0]), reverse=True)
    city_of = {event.trip_id: city for event, city in events}
    return [(trip_id, city_of[trip_id], start[trip_id]) for trip_id in sorted(city_of, key=by_bytes)]
