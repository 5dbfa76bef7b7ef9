"""A snapshot's files where an engine's workers make them: a bucket's triples in one task, each part of a partition in another.

What a worker makes of a bucket stays with the engine until the parts that hold its rows are full; which rows share a part
follows from the counts alone, as where this process writes (`etl.snapshots.parquet.PartWriter`), so the bytes are the same.
"""

from __future__ import annotations

import io
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from etl.errors import DataError
from etl.runtime.executor import Executor, ObjectRef, Task, map_ordered
from etl.runtime.files import FileInfo
from etl.settings.values import SPLITS
from etl.snapshots.encoding import EVENT_SCHEMA, Ids, IdTables, event_columns, triple_columns, triple_schema
from etl.snapshots.parquet import file_info, write_batches
from etl.transform.arrays import I64
from etl.triples.expansion import BucketStats, Key, expand_bucket
from etl.triples.generate import NO_LISTS, EventArrays, EventBatch, TripleBatch, TripleBlock
from etl.triples.partitions import Partition, TrainingSet, count_selected

Kind = Literal["events", "triples"]


@dataclass(frozen=True)
class ExpansionPlan:
    """What all buckets are expanded with: `keys` are the partitions that there may be, `events` whether theirs are kept."""

    training: TrainingSet
    keys: tuple[Key, ...]
    events: bool


def plan_expansion(engine: Executor, training: TrainingSet, *, events: bool) -> ExpansionPlan:
    """The plan for a dataset; counts the nodes' popularity before, where draws ask for it."""
    popular = None
    if training.needs_popularity:
        counts: I64 = np.zeros(training.dataset.items.height, np.int64)
        calls = ((bucket,) for bucket in training.dataset.events)
        for task in map_ordered(engine, count_selected, engine.broadcast(training.portable()), calls):
            counts += task.result()
        popular = counts
    splits = (None,) if training.options.split == "none" else SPLITS
    return ExpansionPlan(training.portable(popular), tuple(product(splits, training.dataset.events.cities)), events)


def expand_bucket_task(
    plan: ExpansionPlan, events: pl.DataFrame
) -> tuple[BucketStats, list[EventBatch | TripleBatch | None]]:
    """A step for an engine: a bucket's account, and what is kept of it: for each key the events, then for each the triples."""
    made = _CollectingSink()
    tally = expand_bucket(plan.training, plan.training.with_split(events), made)
    kept = made.events if plan.events else {}
    return tally, [*(kept.get(key) for key in plan.keys), *(made.triples(key) for key in plan.keys)]


class _CollectingSink:
    """All pieces of a bucket, by partition."""

    def __init__(self) -> None:
        self.events: dict[Key, EventBatch] = {}
        self._coded: dict[Key, EventArrays] = {}
        self._blocks: dict[Key, list[TripleBlock]] = {}

    def start_partition(self, partition: Partition) -> None:
        """See Sink."""
        self.events[partition.split, partition.city] = EventBatch(partition.events)

    def write(self, partition: Partition, piece: TripleBatch) -> None:
        """See Sink."""
        key = (partition.split, partition.city)
        self._coded[key] = piece.events
        self._blocks.setdefault(key, []).append(piece.block)

    def triples(self, key: Key) -> TripleBatch | None:
        """A partition's, as one piece without what only making them needs."""
        blocks = self._blocks.get(key, [])
        if not sum(map(len, blocks)):
            return None
        names = [
            "event",
            "positive",
            "negative",
            "source",
            "in_candidates",
            *(["order"] if blocks[0].order is not None else []),
        ]
        columns = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
        own = self._coded[key]
        bare = EventArrays(own.ids, own.users, own.trips, own.timestamps, own.days, NO_LISTS, NO_LISTS, NO_LISTS)
        return TripleBatch(bare, TripleBlock(**columns))  # type: ignore[arg-type]


@dataclass(frozen=True)
class PartContext:
    """What all parts are written with. `mark` is a file of the driver's that holds `word`: who reads that shares its disk."""

    texts: IdTables
    ids: Ids
    probe_file: Path
    token: str

    def sees_driver_disk(self) -> bool:
        """Whether files that are written here are there for the driver."""
        with suppress(OSError):
            return self.probe_file.read_text(encoding="utf-8") == self.token
        return False


@dataclass(frozen=True)
class PartSpec:
    """One file to write: the rows of each piece that it is given, and where it is to lie."""

    kind: Kind
    path: Path
    rows: tuple[slice, ...]
    weight: float


def write_part(writing: PartContext, part: PartSpec, *pieces: Any) -> FileInfo | bytes:
    """A step for an engine: write a part under another name, and rename it; gives its bytes where the disk is another."""
    columns: Callable[[Sequence[Any]], list[pa.Array]]
    if part.kind == "events":
        schema, columns = EVENT_SCHEMA, partial(event_columns, texts=writing.texts)
    else:
        schema = triple_schema(writing.ids)
        columns = partial(triple_columns, texts=writing.texts, schema=schema, weight=part.weight)
    own = (piece.rows(rows) for piece, rows in zip(pieces, part.rows, strict=True))
    if not writing.sees_driver_disk():
        content = io.BytesIO()
        write_batches(content, schema, own, columns)
        return content.getvalue()
    staged = writing.probe_file.parent / f"{uuid.uuid4().hex}.parquet"
    rows = write_batches(staged, schema, own, columns)
    staged.replace(part.path)  # its folder is there, or nobody wants it any more
    return file_info(part.path, rows)


@dataclass
class PendingParts:
    """The parts that are being written, of all partitions, a bounded number at a time."""

    engine: Executor
    writing: Any
    scratch: Path
    under_way: deque[tuple[Task, PartSpec, list[FileInfo]]] = field(default_factory=deque)

    @classmethod
    def of(cls, engine: Executor, texts: IdTables, ids: Ids, scratch: Path) -> PendingParts:
        """None yet; what isn't finished lies in `scratch`."""
        mark, word = scratch / "mark", uuid.uuid4().hex
        mark.write_text(word, encoding="utf-8")
        return cls(engine, engine.broadcast(PartContext(texts, ids, mark, word)), scratch)

    def begin(self, part: PartSpec, pieces: Sequence[ObjectRef], done: list[FileInfo]) -> None:
        """Have a part written; it is added to `done` in its turn."""
        task = self.engine.submit(write_part, self.writing, part, *pieces)
        self.under_way.append((task, part, done))
        while len(self.under_way) > self.engine.max_pending:
            self._end_first()

    def end(self) -> None:
        """Until all are written."""
        while self.under_way:
            self._end_first()

    def _end_first(self) -> None:
        task, part, done = self.under_way.popleft()
        answer = task.result()
        rows = sum(each.stop - each.start for each in part.rows)
        if isinstance(answer, bytes):
            staged = self.scratch / f"{uuid.uuid4().hex}.parquet"
            staged.write_bytes(answer)
            staged.replace(part.path)
            answer = file_info(part.path, rows)
        if answer.rows != rows or not part.path.is_file() or part.path.stat().st_size != answer.bytes:
            raise DataError(f"{part.path.name} is not what a worker wrote. Run again.")
        done.append(answer)


class RemotePartWriter:
    """The parts of one partition, as `etl.snapshots.parquet.PartWriter`, each begun when its rows are there."""

    def __init__(
        self, kind: Kind, folder: Path, rows_per_file: int, writers: PendingParts, weight: float = 1.0
    ) -> None:
        self.rows = 0
        self._kind, self._folder, self._rows_per_file, self._weight = kind, folder, rows_per_file, weight
        self._writers = writers
        self._waiting: list[tuple[ObjectRef, slice]] = []
        self._have = self._parts = 0
        self._done: list[FileInfo] = []

    def add(self, held: ObjectRef, rows: int) -> None:
        """Take in the next piece, of so many rows."""
        start = 0
        while start < rows:
            taken = slice(start, min(rows, start + self._rows_per_file - self._have))
            self._waiting.append((held, taken))
            self._have += taken.stop - start
            start = taken.stop
            if self._have == self._rows_per_file:
                self._begin()
        self.rows += rows

    def end(self) -> None:
        """Have written what is left."""
        if self._have:
            self._begin()

    def written(self) -> list[FileInfo]:
        """The files, when the writers have ended."""
        return self._done

    def _begin(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"part-{self._parts:05}.parquet"
        part = PartSpec(self._kind, path, tuple(rows for _, rows in self._waiting), self._weight)
        self._writers.begin(part, [held for held, _ in self._waiting], self._done)
        self._waiting, self._have, self._parts = [], 0, self._parts + 1


def iter_expanded_buckets(
    engine: Executor, plan: ExpansionPlan, events: Iterator[pl.DataFrame]
) -> Iterator[tuple[BucketStats, dict[Key, tuple[ObjectRef, ObjectRef]]]]:
    """Each bucket's account, in order, and for each of its partitions the handles of its events and its triples."""
    count = len(plan.keys)
    calls = ((bucket,) for bucket in events if bucket.height)
    for task in map_ordered(engine, expand_bucket_task, engine.broadcast(plan), calls, num_outputs=2 * count):
        tally: BucketStats = task.result()
        yield tally, dict(zip(plan.keys, zip(task.outputs[:count], task.outputs[count:], strict=True), strict=True))
