"""`next`: which place comes next, given the trip so far: one row per (choice, negative) (docs/contract.md, "next").

A trip's choices are its selected items in (day, position) order, from the second on. Everything is computed for each
part of the split from what that part may know (`etl.triples.selections`), so no later part informs an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.settings.model import Reject
from etl.transform.arrays import I64, U64, Flags, Positions
from etl.transform.hashing import mix64
from etl.triples.generate import NO_NEGATIVES, WHOLE_CATALOGUE_SEEN, EventArrays, EventRows, HashKeys
from etl.triples.sampling import MATERIALIZE_RATIO, build_pools, sample, sample_ranks
from etl.triples.selections import F32, Past, Selections

F64 = npt.NDArray[np.float64]

EARTH_RADIUS_KM = 6371.0088
"""The mean radius (IUGG)."""

_BATCH = 1 << 19
"""About how many rows and items of their pools there are at a time."""

_BEFORE_ALL = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Coordinates:
    """Where the items are, by index, in radians; NaN where a coordinate is missing or out of range."""

    latitude: F64
    longitude: F64
    cosine: F64

    @classmethod
    def of(cls, items: pl.DataFrame) -> Coordinates:
        """From `latitude` and `longitude` in degrees."""
        degrees = [items[name].fill_null(float("nan")).to_numpy() for name in ("latitude", "longitude")]
        good = (np.abs(degrees[0]) <= 90) & (np.abs(degrees[1]) <= 180)
        latitude, longitude = (np.radians(np.where(good, each, np.nan)) for each in degrees)
        return cls(latitude, longitude, np.cos(latitude))

    def km(self, here: npt.NDArray[Any], there: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The great-circle distance between items by haversine; NaN where one has no coordinates."""
        up, across = (each[there] - each[here] for each in (self.latitude, self.longitude))
        squared = np.sin(up / 2) ** 2 + self.cosine[here] * self.cosine[there] * np.sin(across / 2) ** 2
        # Of antipodes, rounding may make it more than 1.
        km: F64 = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(squared, 1.0)))
        return km.astype(np.float32)


@dataclass(frozen=True)
class Distances:
    """The distances between some items, by place among these; from a table of all pairs, unless it is None."""

    coordinates: Coordinates
    items: I64
    table: F32 | None

    @classmethod
    def of(cls, coordinates: Coordinates, items: I64, wanted: int) -> Distances:
        """Compute the table, unless fewer distances are `wanted` than it has."""
        count, table = len(items), None
        if count**2 <= wanted:
            table = coordinates.km(items.repeat(count), np.tile(items, count))
        return cls(coordinates, items, table)

    def km(self, here: I64, there: I64) -> F32:
        """The distance between items; the places may have any shapes that fit together."""
        if self.table is None:
            return self.coordinates.km(self.items[here], self.items[there])
        return self.table.take(here * len(self.items) + there)


class TripOrder:
    """A bucket's selections by trip: users one after the other, by (start, trip, day, position); ties in file order.

    A trip is a (user, trip): if another user has events on the same trip, these count as another trip.
    """

    def __init__(self, selections: Selections, start_us: pl.Series) -> None:
        events = selections.events
        columns = [selections.users, start_us.gather(events["trip_idx"]).fill_null(_BEFORE_ALL).to_numpy()]
        columns += [events[name].to_numpy().astype(np.int64) for name in ("trip_idx", "day_number")]
        by_day = np.lexsort(columns[::-1])
        self.trip, day = (_numbered(by_day, columns[:length]) for length in (3, 4))
        self.user = columns[0]
        longest = int(selections.lists.lengths.max(initial=0)) + 1
        keys = day[selections.event] * longest + selections.positions
        self._order = np.argsort(keys, kind="stable")
        self._selections = selections
        self._parts: dict[int, TripsOfPart] = {}

    def of_part(self, part: int) -> TripsOfPart:
        """The selections that a part of the split may know, by trip."""
        if part not in self._parts:
            known = self._order[self._selections.parts[self._order] <= part]
            event = self._selections.event[known]
            self._parts[part] = TripsOfPart(
                Past(self._selections, known), _starts(self.trip[event]), _starts(self.user[event])
            )
        return self._parts[part]


@dataclass(frozen=True)
class TripsOfPart:
    """The selections that a part of the split may know, by trip. Per rank: the first rank of its trip and of its user."""

    past: Past
    trip_starts: I64
    user_starts: I64


@dataclass(frozen=True)
class ChoiceBatch:
    """Some choices with their rows. `choices` counts those that have any, `left_out` the others, by reason."""

    rows: EventRows
    choices: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class Choices:
    """The choices of one partition, in file order, then in visiting order.

    `rows` are the bucket's rows of `events`, `codes` the city's eligible items, ascending by id. `history` adds the
    columns of `--history`.
    """

    selections: Selections
    trips: TripsOfPart
    rows: I64
    events: EventArrays
    codes: I64
    wanted: int
    reject: Reject
    history: bool

    @cached_property
    def elements(self) -> I64:
        """The element of each choice among the bucket's selections."""
        every = self.selections.lists.positions(self.rows)
        ranks = self.trips.past.ranks[every]
        return every[ranks > self.trips.trip_starts[ranks]]

    def generate(self, keys: HashKeys, places: Coordinates, *, shuffle: bool) -> Iterator[ChoiceBatch]:
        """Generate the rows, batch by batch: all choices of some events, whose rows depend on no other event."""
        to_sample = keys.of_events("next", self.events, with_user=True)
        to_shuffle = keys.of_events("shuffle", self.events, with_user=False) if shuffle else None
        distances = Distances.of(places, self._named, len(self.elements) * self.wanted)
        cells = len(self.codes) if self._laid_out else self._rejections.lengths(self._now)
        sizes = np.cumsum(np.full(len(self.elements), self.wanted) + cells)
        event = self.selections.event[self.elements]
        bounds = np.searchsorted(sizes, np.arange(_BATCH, sizes[-1:].sum(), _BATCH), side="right")
        bounds = np.searchsorted(event, event[bounds])  # where that event begins
        for first, end in pairwise(np.unique([0, *bounds, len(sizes)])):
            yield self._batch(slice(first, end), keys, to_sample, to_shuffle, distances)

    def _batch(
        self, which: slice, keys: HashKeys, to_sample: U64, to_shuffle: U64 | None, distances: Distances
    ) -> ChoiceBatch:
        past, chosen = self.trips.past, self.elements[which]
        ranks, items = past.ranks[chosen], self.selections.items
        event = np.searchsorted(self.rows, self.selections.event[chosen]).astype(np.int32)
        positive, earlier = items[chosen], past.order[ranks - 1]
        previous = items[earlier]
        here = self._places[previous]
        sizes, position = self._sampled(self._now[which], mix64(to_sample[event] ^ keys.nodes[positive]))
        lengths = np.minimum(sizes, self.wanted)
        if lengths.min(initial=self.wanted) == self.wanted:  # the usual case
            neg_km = distances.km(here[:, None], position).ravel()
            position = position.ravel()
        else:
            position = position[np.arange(self.wanted) < lengths[:, None]]
            neg_km = distances.km(here.repeat(lengths), position)
        negative = self.codes.astype(np.uint32).take(position)
        days = self.selections.events["day_number"].to_numpy()
        runs = {
            "event": event,
            "step": (ranks - self.trips.trip_starts[ranks]).astype(np.int32),
            "previous": previous,
            "same_day": days[self.selections.event[earlier]] == days[self.selections.event[chosen]],
            "positive": positive,
            "pos_km": distances.km(here, self._places[positive]),
            "is_new": past.new[ranks],
        }
        values = {"negative": negative, "neg_km": neg_km}
        if self.history:
            users = self.selections.users[self.selections.event[chosen]]
            users, before, now = (each.repeat(lengths) for each in (users, ranks, self.events.timestamps[event]))
            values |= past.history(users, before, now, positive.repeat(lengths), negative)
        order = None
        if to_shuffle is not None:
            of_choice = mix64(to_shuffle[event] ^ keys.nodes[positive])
            order = mix64(of_choice.repeat(lengths) ^ keys.nodes[negative])
        empty = int(np.count_nonzero(sizes == 0))
        reason = WHOLE_CATALOGUE_SEEN if len(self.codes) else NO_NEGATIVES
        rows = EventRows.of_runs(self.events, runs, lengths, values, order)
        return ChoiceBatch(rows, len(chosen) - empty, {reason: empty})

    def _sampled(self, now: I64, keys: U64) -> tuple[I64, I64]:
        """The size of each choice's pool, and what is sampled: positions in the catalogue, of shape (choices, wanted)."""
        items = len(self.codes)
        if not self._laid_out:
            pools = build_pools(items, *self._rejections.pairs(now), len(now))
            drawn, _ = sample(keys, np.arange(len(now)), self.wanted, pools)
            return pools.sizes, drawn.T.astype(np.int64, order="C")
        sizes = items - self._rejections.counts(now)
        ranks, _ = sample_ranks(keys, sizes, self.wanted)
        position = ranks.T.astype(np.int64, order="C")
        position += (np.cumsum(sizes) - sizes)[:, None]
        position = np.flatnonzero(self._rejections.others(now, items)).take(position)
        position -= (np.arange(len(now)) * items)[:, None]
        return sizes, position

    @property
    def _laid_out(self) -> bool:
        """Whether the items of every pool are laid out: not if these are many more than are sampled."""
        return len(self.codes) <= MATERIALIZE_RATIO * self.wanted

    @cached_property
    def _named(self) -> I64:
        """The items that rows name: the city's eligible items, in their order, then the others."""
        past = self.trips.past
        of_choices = np.concatenate([self.elements, past.order[past.ranks[self.elements] - 1]])
        others = np.zeros(self.selections.nodes, np.bool_)
        others[self.selections.items[of_choices]] = True
        others[self.codes] = False
        return np.concatenate([self.codes, np.flatnonzero(others)])

    @cached_property
    def _places(self) -> I64:
        """The place of each item in `_named`, -1 for items that are not in it."""
        places = np.full(self.selections.nodes, -1)
        places[self._named] = np.arange(len(self._named))
        return places

    @cached_property
    def _rejections(self) -> Rejections:
        """What choices may reject: what their user selected, by rank, or with `--reject event` their event, by element."""
        if self.reject == "event":
            starts, items = self.selections.lists.ends[self.selections.event], self.selections.items
            known = np.ones(len(items), np.bool_)
        else:
            starts, items = self.trips.user_starts, self.selections.items[self.trips.past.order]
            known = self.trips.past.new
        positions = self._places[items]
        return Rejections(starts, positions, known & (positions >= 0) & (positions < len(self.codes)))

    @cached_property
    def _now(self) -> I64:
        """Where the choices are among what may be rejected."""
        return self.elements if self.reject == "event" else self.trips.past.ranks[self.elements]


class Rejections:
    """The items that choices reject: those of their group that are known and not later than the choice, its positive included.

    By place in some order, `starts` has the first place of the group, `positions` the position in the catalogue, and
    `known` whether it can be rejected. Groups are adjacent, and know a position once.
    """

    def __init__(self, starts: I64, positions: I64, known: Flags) -> None:
        self._starts = starts
        self._group = np.cumsum(starts == np.arange(len(starts)), dtype=np.int32)
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(known)])
        self._known = np.flatnonzero(known).astype(np.int32)
        self._positions = positions[self._known]

    def counts(self, now: I64) -> I64:
        """How many each choice rejects."""
        counts: I64 = self._before[now + 1] - self._before[self._starts[now]]
        return counts

    def others(self, now: I64, items: int) -> Flags:
        """Whether a choice does not reject an item: of all choices, by item. What comes last is true, so there is always one.

        The choices are in the order of their groups.
        """
        others = np.ones(len(now) * items + 1, np.bool_)
        if len(now):
            group = self._group[now]
            known = slice(self._before[self._starts[now[0]]], self._before[now.max() + 1])
            since = np.full((group[-1] - group[0] + 1, items), np.iinfo(np.int32).max, np.int32)
            since[self._group[self._known[known]] - group[0], self._positions[known]] = self._known[known]
            cells = since.take(group - group[0], axis=0)
            np.greater(cells, now.astype(np.int32)[:, None], out=others[:-1].reshape(cells.shape))
        return others

    @cached_property
    def _sorted(self) -> I64:
        """What is known, by group and position."""
        return np.argsort((self._group[self._known].astype(np.int64) << 32) | self._positions)

    @cached_property
    def _of_group(self) -> I64:
        """How much each group knows."""
        return np.bincount(self._group[self._known], minlength=int(self._group.max(initial=0)) + 1)

    def lengths(self, now: I64) -> I64:
        """How much each choice's group knows."""
        return self._of_group[self._group[now]]

    def pairs(self, now: I64) -> tuple[I64, Positions]:
        """What choices reject, in the form of `build_pools`: the choice, and the position in the catalogue."""
        lengths = self.lengths(now)
        choice = np.arange(len(now), dtype=np.int32).repeat(lengths)
        inside = (self._before[self._starts[now]] - (np.cumsum(lengths) - lengths)).take(choice)
        inside += np.arange(len(choice))
        which = self._sorted.take(inside)
        kept = np.flatnonzero(self._known.take(which) <= now.astype(np.int32).take(choice))
        return choice.take(kept).astype(np.int64), self._positions.take(which.take(kept)).astype(np.int32)


def _numbered(order: I64, columns: list[I64]) -> I64:
    """Number the distinct rows of some columns; `order` sorts them."""
    changed = np.zeros(len(order), np.bool_)
    for column in columns:
        changed |= np.diff(column[order], prepend=column[order[:1]]) != 0
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(changed)
    return numbers


def _starts(groups: I64) -> I64:
    """Where each element's run of equal numbers begins."""
    begins = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.repeat(begins, np.diff(begins, append=len(groups)))
