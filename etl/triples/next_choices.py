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
from etl.transform.arrays import I64, U64, Positions
from etl.transform.hashing import mix64
from etl.triples.generate import I32, NO_NEGATIVES, U32, WHOLE_CATALOGUE_SEEN, EventArrays, EventRows, HashKeys
from etl.triples.sampling import build_pools, sample
from etl.triples.selections import Past, Selections

F64 = npt.NDArray[np.float64]

EARTH_RADIUS_KM = 6371.0088
"""The mean radius (IUGG)."""

_BATCH = 1 << 18
"""About how many rows and rejected items there are at a time."""

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

    def km_to(self, here: U32, row: I32, codes: I64, position: Positions) -> npt.NDArray[np.float32]:
        """The distance from `here[row]` to `codes[position]`; from a table of all pairs where these are fewer."""
        used = np.zeros(len(self.latitude), np.bool_)
        used[here] = True
        distinct, place = np.flatnonzero(used), (np.cumsum(used) - 1)[here]
        if len(distinct) * len(codes) > len(row):
            return self.km(here[row], codes[position])
        table = self.km(np.repeat(distinct, len(codes)), np.tile(codes, len(distinct)))
        return table.take((place * len(codes))[row] + position)


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

    @cached_property
    def firsts(self) -> I64:
        """The ranks of elements whose user selected the item for the first time."""
        return np.flatnonzero(self.past.new)


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
        low, high, _ = self._of_group
        sizes = np.cumsum(high - low + self.wanted)
        event = self.selections.event[self.elements]
        bounds = np.searchsorted(sizes, np.arange(_BATCH, sizes[-1:].sum(), _BATCH), side="right")
        bounds = np.searchsorted(event, event[bounds])  # where that event begins
        for first, end in pairwise(np.unique([0, *bounds, len(sizes)])):
            yield self._batch(slice(first, end), keys, to_sample, to_shuffle, places)

    def _batch(
        self, which: slice, keys: HashKeys, to_sample: U64, to_shuffle: U64 | None, places: Coordinates
    ) -> ChoiceBatch:
        past, chosen = self.trips.past, self.elements[which]
        ranks, items = past.ranks[chosen], self.selections.items
        event = np.searchsorted(self.rows, self.selections.event[chosen]).astype(np.int32)
        positive, earlier = items[chosen], past.order[ranks - 1]
        groups, rejected = self._rejected(which)
        pools = build_pools(len(self.codes), groups, rejected, len(chosen))
        drawn, counts = sample(
            mix64(to_sample[event] ^ keys.nodes[positive]), np.arange(len(chosen)), self.wanted, pools
        )
        lengths = counts.sum(axis=0)
        choice = np.arange(len(chosen), dtype=np.int32).repeat(lengths)
        position = drawn.T.ravel() if counts.all() else drawn.T[counts.T]
        negative = self.codes.astype(np.uint32)[position]
        days, previous = self.selections.events["day_number"].to_numpy(), items[earlier]
        runs = {
            "event": event,
            "step": (ranks - self.trips.trip_starts[ranks]).astype(np.int32),
            "previous": previous,
            "same_day": days[self.selections.event[earlier]] == days[self.selections.event[chosen]],
            "positive": positive,
            "pos_km": places.km(previous, positive),
            "is_new": past.new[ranks],
        }
        values = {"negative": negative, "neg_km": places.km_to(previous, choice, self.codes, position)}
        if self.history:
            users = self.selections.users[self.selections.event[chosen]]
            users, before, now = (each[choice] for each in (users, ranks, self.events.timestamps[event]))
            values |= past.history(users, before, now, positive[choice], negative)
        order = None
        if to_shuffle is not None:
            of_choices = mix64(to_shuffle[event] ^ keys.nodes[positive])
            order = mix64(of_choices[choice] ^ keys.nodes[negative])
        empty = int(np.count_nonzero(pools.sizes == 0))
        reason = WHOLE_CATALOGUE_SEEN if len(self.codes) else NO_NEGATIVES
        rows = EventRows.of_runs(self.events, runs, lengths, values, order)
        return ChoiceBatch(rows, len(chosen) - empty, {reason: empty})

    @cached_property
    def _offered(self) -> Positions:
        """The position of each item in the city's catalogue, -1 for items that are not in it."""
        offered = np.full(self.selections.nodes, -1, np.int32)
        offered[self.codes] = np.arange(len(self.codes), dtype=np.int32)
        return offered

    @cached_property
    def _known(self) -> tuple[I64, Positions, I32]:
        """What may be rejected, by group and position: the groups, the positions, and from which index on each is.

        A group is the rank where its user begins, and the index a rank; with `--reject event` the same of elements and events.
        """
        if self.reject == "event":
            index, items = np.arange(len(self.selections.event)), self.selections.items
            groups = self.selections.lists.ends[self.selections.event]
        else:
            index = self.trips.firsts
            items, groups = self.selections.items[self.trips.past.order[index]], self.trips.user_starts[index]
        positions = self._offered[items]
        known = np.flatnonzero(positions >= 0)
        known = known[np.argsort((groups[known] << 32) | positions[known])]
        return groups[known], positions[known], index[known].astype(np.int32)

    @cached_property
    def _of_group(self) -> tuple[I64, I64, I32]:
        """The range in `_known` that each choice's group has, and the choice's own index: what is not later is rejected.

        That is all that was selected before, and the positive.
        """
        if self.reject == "event":
            group, now = self.selections.lists.ends[self.selections.event[self.elements]], self.elements
        else:
            now = self.trips.past.ranks[self.elements]
            group = self.trips.user_starts[now]
        low, high = (np.searchsorted(self._known[0], group, side) for side in ("left", "right"))
        return low, high, now.astype(np.int32)

    def _rejected(self, which: slice) -> tuple[I64, Positions]:
        """What some choices reject, in the form of `build_pools`: the choice, and the position in the catalogue."""
        _, positions, index = self._known
        low, high, now = (each[which] for each in self._of_group)
        lengths = high - low
        choice = np.arange(len(now), dtype=np.int32).repeat(lengths)
        inside = (low - (np.cumsum(lengths) - lengths)).astype(np.int32).take(choice)
        inside += np.arange(len(choice), dtype=np.int32)
        kept = np.flatnonzero(index.take(inside) <= now.take(choice))
        return choice.take(kept).astype(np.int64), positions.take(inside.take(kept))


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
