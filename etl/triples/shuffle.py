"""Sort the rows of a partition by hash without holding all of them in memory (`--shuffle`).

The sort keys are hashes, so ranges of keys have about equal size. A small partition is sorted in memory. A large one is
written to one file per range and sorted range by range, with the same result.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.triples.generate import EventArrays, EventRows, ListColumn

MAX_ROWS_IN_MEMORY = 4_000_000
"""The most rows that are held in memory."""

_RANGES = 64
_SHIFT = np.uint64(58)  # the leading bits of a key are its range


class ExternalShuffle:
    """Collects the rows of one partition and yields them sorted by `order`."""

    def __init__(self, scratch: Path, held: int = MAX_ROWS_IN_MEMORY) -> None:
        self._folder = scratch / f"shuffle-{uuid.uuid4().hex}"
        self._most = held
        self._rows: list[npt.NDArray[np.void]] = []
        self._dtype = np.dtype([])
        self._held = 0
        self._events: list[EventArrays] = []
        self._known = 0

    def add(self, batch: EventRows) -> None:
        """Add the next rows, in file order."""
        if not self._events or self._events[-1] is not batch.events:
            self._known += len(self._events[-1]) if self._events else 0
            self._events.append(batch.events)
        self._dtype = np.dtype([(name, column.dtype) for name, column in batch.values.items()])
        rows = np.empty(len(batch), self._dtype)
        for name, column in batch.values.items():
            rows[name] = column
        rows["event"] += self._known
        self._rows.append(rows)
        self._held += len(rows)
        if self._held > self._most:
            self._spill()

    def batches(self) -> Iterator[EventRows]:
        """Yield all rows, sorted; then nothing is left on disk."""
        if not self._events:
            return
        events = _concat(self._events)
        if not self._folder.exists():
            yield from _sorted(self._rows, events)
            return
        if self._rows:
            self._spill()
        for number in range(_RANGES):
            path = self._folder / str(number)
            if path.exists():
                yield from _sorted([np.fromfile(path, self._dtype)], events)
                path.unlink()
        self._folder.rmdir()

    def _spill(self) -> None:
        self._folder.mkdir(exist_ok=True)
        rows = np.concatenate(self._rows)
        ranges = (rows["order"] >> _SHIFT).astype(np.int64)
        rows = rows[np.argsort(ranges, kind="stable")]
        ends = np.cumsum(np.bincount(ranges, minlength=_RANGES))
        for number, (first, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > first:
                with (self._folder / str(number)).open("ab") as file:
                    rows[first:end].tofile(file)
        self._rows, self._held = [], 0


def _sorted(rows: list[npt.NDArray[np.void]], events: EventArrays) -> Iterator[EventRows]:
    """Sort rows by key; rows with equal keys keep their order."""
    every = np.concatenate(rows)
    every = every[np.argsort(every["order"], kind="stable")]
    yield EventRows(events, {name: np.ascontiguousarray(every[name]) for name in every.dtype.names or ()})


def _concat(events: list[EventArrays]) -> EventArrays:
    """Join the events of several buckets, at least one, without their lists."""
    ids = pa.concat_arrays([each.ids for each in events])
    columns: dict[str, Any] = {
        each.name: np.concatenate([getattr(one, each.name) for one in events])
        for each in fields(EventArrays)
        if each.name != "ids" and not isinstance(getattr(events[0], each.name), ListColumn)
    }
    return replace(events[0].without_lists(), ids=ids, **columns)
