"""What the users of a bucket selected, and what may be known before each selection.

"Before" is in time (the events' file order) or in trip order (start, trip, day, position). In both, a selection of a
later part of the split never counts as before one of an earlier part: with overlapping trips, or a cut within a trip,
it would leak the future.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.settings.values import SPLITS
from etl.transform.arrays import I64, Flags
from etl.triples.generate import I32, U32, ListColumn

F32 = npt.NDArray[np.float32]

_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Selections:
    """One element per (event, selected item) of a bucket, in file order, then in visiting order.

    `events` are the bucket's with the column `split`; `users` has a number for each event's user; this number plus an
    item's index is a unique key of (user, item). By element: `event` is a row of `events`, `items` the item's index,
    `parts` the number of its part of the split. `nodes` is the number of all items.
    """

    events: pl.DataFrame
    users: I64
    lists: ListColumn
    event: I64
    parts: I64
    nodes: int
    _pasts: dict[int, Past] = field(default_factory=dict)

    @classmethod
    def of(cls, events: pl.DataFrame, nodes: int) -> Selections:
        """Flatten the selected items of a bucket's events; `nodes` is the number of all items."""
        lists = ListColumn.of(events["selected_idx"])
        event = np.repeat(np.arange(events.height), lists.lengths)
        # The users of a bucket are adjacent: numbered one by one, the keys of many items fit into 64 bits.
        index = events["user_idx"].to_numpy()
        users = np.cumsum(np.diff(index, prepend=index[:1]) != 0) * nodes
        parts = events["split"].to_physical().to_numpy().astype(np.int64)
        return cls(events, users, lists, event, parts[event], nodes)

    @property
    def items(self) -> U32:
        """The item's index."""
        return self.lists.codes

    @cached_property
    def keys(self) -> I64:
        """(user, item) as one number."""
        return self.users[self.event] + self.items

    @cached_property
    def positions(self) -> I32:
        """The place in the event's `selected_ids`, from 1."""
        return (np.arange(len(self.event)) - self.lists.ends[self.event] + 1).astype(np.int32)

    @property
    def used_parts(self) -> Iterable[int]:
        """The parts of the split that have selections, ascending."""
        return [part for part in range(len(SPLITS)) if (self.parts == part).any()]

    def in_time(self, part: int) -> Past:
        """The selections that a part of the split may know, in file order."""
        if part not in self._pasts:
            self._pasts[part] = Past(self, np.flatnonzero(self.parts <= part))
        return self._pasts[part]

    @cached_property
    def new(self) -> Flags:
        """Whether it is, in time, the first selection of the item by the user."""
        new = np.zeros(len(self.event), np.bool_)
        for part in self.used_parts:
            past = self.in_time(part)
            own = self.parts[past.order] == part
            new[past.order[own]] = past.new[own]
        return new


@dataclass(frozen=True)
class Past:
    """The elements that a part of the split may know, in order: `order[r]` is the element of rank r."""

    selections: Selections
    order: I64

    @cached_property
    def new(self) -> Flags:
        """By rank: whether it is the first element with its user and item."""
        return pl.Series(self.selections.keys[self.order]).is_first_distinct().to_numpy()

    @cached_property
    def ranks(self) -> I64:
        """The rank of each element of the bucket; 0 for one that is not known."""
        ranks = np.zeros(len(self.selections.event), np.int64)
        ranks[self.order] = np.arange(len(self.order))
        return ranks

    @cached_property
    def _table(self) -> tuple[I64, I64]:
        """Two arrays, sorted by (key, rank): key and rank as one number, and the latest timestamp of the key so far."""
        keys = self.selections.keys[self.order]
        sorted_ = np.argsort(keys, kind="stable")
        timestamps = self.selections.events["timestamp"].to_numpy()[self.selections.event[self.order[sorted_]]]
        frame = pl.DataFrame({"key": keys[sorted_], "timestamp": timestamps})
        latest = frame.select(pl.col("timestamp").cum_max().over("key")).to_series().to_numpy()
        return self._numbers(keys[sorted_], sorted_), latest

    def _numbers(self, keys: I64, ranks: I64) -> I64:
        return keys * (len(self.order) + 1) + ranks

    def history(
        self, users: I64, ranks: I64, timestamps: I64, positive: U32, negative: U32
    ) -> dict[str, npt.NDArray[Any]]:
        """The columns of `--history`: what each row's user selected before a rank; `users` as in `Selections`."""
        count, days = {}, {}
        for side, items in (("pos", positive), ("neg", negative)):
            count[f"{side}_n_before"], days[f"{side}_days_since"] = self._before(users + items, ranks, timestamps)
        return count | days

    def _before(self, keys: I64, ranks: I64, timestamps: I64) -> tuple[I32, F32]:
        """How often each key was selected before a rank, and the days since it last was: NaN if never, at least 0."""
        table, latest = self._table
        found = np.searchsorted(table, self._numbers(keys, ranks))
        count = (found - np.searchsorted(table, self._numbers(keys, np.zeros(1, np.int64)))).astype(np.int32)
        if not len(latest):
            return count, np.full(len(keys), np.nan, np.float32)
        # Trips overlap: the latest selection of an earlier trip may be later in time than the row.
        days = np.maximum(timestamps - latest[found - 1], 0) / _SECONDS_PER_DAY
        return count, np.where(count > 0, days, np.nan).astype(np.float32)
