"""Triples in a seeded random order, without all of them in memory: sorted by range of their keys (`--shuffle`).

The keys are hashes, spread evenly, so ranges of them are of about equal size. A partition that is small is sorted as it is;
a large one is laid down by range, in files, and sorted range by range: the order is the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.triples.generate import NO_LISTS, EventArrays, TripleBatch, TripleBlock

MAX_ROWS_IN_MEMORY = 4_000_000
"""Rows that are held in memory at the most."""

_RANGES = 64
_SHIFT = np.uint64(58)  # the leading bits of a key say its range
_ROW = np.dtype(
    [("order", "u8"), ("event", "i4"), ("positive", "u4"), ("negative", "u4"), ("source", "i1"), ("in_candidates", "?")]
)


class ExternalShuffle:
    """The triples of one partition on their way into their shuffled order."""

    def __init__(self, scratch: Path, held: int = MAX_ROWS_IN_MEMORY) -> None:
        self._folder = scratch / f"shuffle-{uuid.uuid4().hex}"
        self._most = held
        self._rows: list[npt.NDArray[np.void]] = []
        self._held = 0
        self._events: list[EventArrays] = []
        self._known = 0

    def add(self, piece: TripleBatch) -> None:
        """Take in the next rows, in file order."""
        if not self._events or self._events[-1] is not piece.events:
            self._known += len(self._events[-1]) if self._events else 0
            self._events.append(piece.events)
        block = piece.block
        rows = np.empty(len(block), _ROW)
        for name in ("order", "positive", "negative", "source", "in_candidates"):
            rows[name] = getattr(block, name)
        rows["event"] = block.event + self._known
        self._rows.append(rows)
        self._held += len(rows)
        if self._held > self._most:
            self._spill()

    def batches(self) -> Iterator[TripleBatch]:
        """All of them, in order."""
        events = _concat(self._events)
        if not self._folder.exists():
            yield from _sorted(self._rows, events)
            return
        if self._rows:
            self._spill()
        for number in range(_RANGES):
            path = self._folder / str(number)
            if path.exists():
                yield from _sorted([np.fromfile(path, _ROW)], events)
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


def _sorted(rows: list[npt.NDArray[np.void]], events: EventArrays) -> Iterator[TripleBatch]:
    """Rows by their keys; equal ones keep their order."""
    if not rows:
        return
    every = np.concatenate(rows)
    every = every[np.argsort(every["order"], kind="stable")]
    columns = {name: np.ascontiguousarray(every[name]) for name in _ROW.names or ()}
    yield TripleBatch(events, TripleBlock(**columns))  # type: ignore[arg-type]


def _concat(events: list[EventArrays]) -> EventArrays:
    """The events of several buckets, one after the other; their lists are not needed any more."""
    kinds = {"users": np.uint32, "trips": np.uint32, "timestamps": np.int64, "days": np.int32}
    columns = {
        name: np.concatenate([np.zeros(0, kind), *(getattr(each, name) for each in events)])
        for name, kind in kinds.items()
    }
    ids = pa.concat_arrays([pa.array([], pa.string()), *(each.ids for each in events)])
    return EventArrays(ids=ids, **columns, candidates=NO_LISTS, selected=NO_LISTS, shown=NO_LISTS)
