"""Write the data files of a snapshot into a staging folder, and verify them on disk.

Every bucket of events is expanded into batches, and every batch goes to the parts of its partition: files that are encoded and
written row group by row group (`etl.snapshots.parquet`). This process expands the buckets and its threads write the parts, or
the workers of an executor do both. Which rows share a part or a row group follows from the counts alone, so the bytes are
the same.
"""

from __future__ import annotations

import hashlib
import io
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
import polars as pl
import pyarrow as pa

from etl.errors import DataError
from etl.runtime.executor import LOCAL_EXECUTOR, Executor, ObjectRef, Task, map_ordered
from etl.runtime.files import FileInfo
from etl.runtime.run_record import Progress
from etl.runtime.workers import prefetch
from etl.settings.model import Ids
from etl.settings.values import SPLITS, TASKS
from etl.snapshots.encoding import encoder_of, table_schemas
from etl.snapshots.manifest import DataSummary, FileEntry, PartitionEntry
from etl.snapshots.parquet import (
    PartCopier,
    PartWriter,
    RowGroup,
    ThreadPart,
    WriterPool,
    encode_group,
    file_info,
    group_rows,
    open_writer,
    write_file,
    writer_pool,
)
from etl.snapshots.reading.snapshot import ITEM_COUNTS, USER_COUNTS, folded
from etl.transform.arrays import I64
from etl.triples.dataset import Dataset, ReusableEventFiles
from etl.triples.generate import SOURCES, EventRows
from etl.triples.partitions import (
    BucketExpansion,
    BucketStats,
    Key,
    Kind,
    PartitionStats,
    TrainingSet,
    TripleOptions,
    VocabularyCounts,
    build_training_set,
    count_selected,
    popularity_correlation,
)
from etl.triples.shuffle import ExternalShuffle
from etl.triples.vocabulary import Vocabulary

_FOLDER_BYTES, _PREFIX_BYTES = 255, 200
_HASHED = re.compile(r"~[0-9a-f]{16}\.*\Z", re.IGNORECASE)
_RESERVED = frozenset({"", "__HIVE_DEFAULT_PARTITION__"})


@dataclass(frozen=True)
class StageOptions:
    """The options that decide the published bytes, together with the dataset."""

    training: TripleOptions = field(default_factory=TripleOptions)
    ids: Ids = "string"
    rows_per_file: int = 1_000_000

    @property
    def schemas(self) -> dict[Kind, pa.Schema]:
        """The columns of each table."""
        return table_schemas(self.ids, history=self.training.history)


def write_data_files(
    dataset: Dataset,
    options: StageOptions,
    folder: Path,
    scratch: Path,
    progress: Progress,
    executor: Executor = LOCAL_EXECUTOR,
    observe: Callable[[pl.DataFrame], None] = lambda _: None,
) -> DataSummary:
    """Write and verify the data files of a snapshot in an empty folder, bucket by bucket. `scratch` is for temporary files.

    `executor` does not affect the bytes. `observe` is called with the events of each bucket. Raises DataError if a footer
    doesn't count the rows that were written, or if two cities would share a folder.
    """
    reused = dataset.events.published
    if options.training.split != "none" or reused is None or reused.rows_per_file != options.rows_per_file:
        reused = None
    else:
        # The files of events are copied. Only the columns that triples are made from are read; all others are empty.
        needed = ["candidate_idx", "selected_idx", *(["shown_idx"] if "shown" in options.training.negatives else [])]
        dataset = replace(dataset, events=dataset.events.select(needed))
    buckets = dataset.events.buckets
    with writer_pool() as pool:
        training = build_training_set(dataset, options.training)
        writer = _SnapshotWriter(training, options, (folder, scratch), reused, pool, executor)
        progress("stage files", 0, buckets)
        for number, stats in enumerate(writer.expand(observe), start=1):
            writer.add_stats(stats)
            progress("stage files", number, buckets)
        progress("stage files", buckets, buckets)
        return writer.finish()


# ------------------------------------------------------------------------------------------ what an executor's workers do


@dataclass(frozen=True)
class ExpansionPlan:
    """What the expansion of any bucket needs. `outputs` are the possible (table, partition) whose rows are returned."""

    training: TrainingSet
    outputs: tuple[tuple[Kind, Key], ...]


def plan_expansion(executor: Executor, training: TrainingSet, kinds: Iterable[Kind]) -> ExpansionPlan:
    """Plan the expansion of a dataset into some tables. Counts the items' popularity first if sampling needs it."""
    popularity = None
    if training.needs_popularity:
        popularity = np.zeros(training.dataset.items.height, np.int64)
        calls = ((bucket,) for bucket in training.dataset.events)
        for task in map_ordered(executor, count_selected, executor.broadcast(training.portable()), calls):
            popularity += task.result()
    keys = product(training.options.split.parts or (None,), training.dataset.events.cities)
    return ExpansionPlan(training.portable(popularity), tuple(product(kinds, keys)))


def expand_bucket_task(plan: ExpansionPlan, events: pl.DataFrame) -> tuple[BucketStats, list[Any]]:
    """An executor task: expand a bucket. Returns its counts, then the rows of each output of the plan."""
    expansion = BucketExpansion(plan.training, events)
    found: dict[tuple[Kind, Key], list[Any]] = {}
    for own, kind, batch in expansion:
        if len(batch):
            found.setdefault((kind, own.info.key), []).append(batch)
    joined = {each: rows[0] if each[0] == "events" else EventRows.concat(rows) for each, rows in found.items()}
    return expansion.stats, [joined.get(each) for each in plan.outputs]


@dataclass(frozen=True)
class PartContext:
    """Shared context for writing parts.

    The driver writes `token` to `probe_file`; a worker that can read it shares the driver's disk.
    """

    vocabulary: Vocabulary
    schemas: Mapping[Kind, pa.Schema]
    probe_file: Path
    token: str

    def sees_driver_disk(self) -> bool:
        """Whether the driver can read files that are written here."""
        with suppress(OSError):
            return self.probe_file.read_text(encoding="utf-8") == self.token
        return False


@dataclass(frozen=True)
class PartSpec:
    """One part to write: its path, and its row groups as (number of a batch, slice)."""

    kind: Kind
    weight: float
    path: Path
    groups: tuple[RowGroup, ...]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(map(group_rows, self.groups))


def write_part(context: PartContext, part: PartSpec, *batches: Any) -> FileInfo | bytes:
    """An executor task: write a part under a temporary name and rename it. Returns bytes if it can't see the driver's disk."""
    schema = context.schemas[part.kind]
    encode = encoder_of(part.kind, context.vocabulary, schema, part.weight)

    def write(sink: Path | io.BytesIO) -> None:
        with open_writer(sink, schema) as writer:
            for group in part.groups:
                writer.write_table(encode_group(encode, [(batches[number], rows) for number, rows in group]))

    if not context.sees_driver_disk():
        content = io.BytesIO()
        write(content)
        return content.getvalue()
    staged = context.probe_file.parent / f"{uuid.uuid4().hex}.parquet"
    write(staged)
    staged.replace(part.path)  # Fails if the folder is gone: then the run has ended.
    return file_info(part.path, part.rows)


# ------------------------------------------------------------------------------------------------------- in this process


class _Workers:
    """The workers of an executor as writers of parts, of which a bounded number is pending."""

    def __init__(
        self, executor: Executor, vocabulary: Vocabulary, schemas: Mapping[Kind, pa.Schema], scratch: Path
    ) -> None:
        self.executor, self.scratch = executor, scratch
        probe_file, token = scratch / "probe", uuid.uuid4().hex
        probe_file.write_text(token, encoding="utf-8")
        self.context = executor.broadcast(PartContext(vocabulary, schemas, probe_file, token))
        self._pending: deque[WorkerPart] = deque()

    def add_pending(self, part: WorkerPart) -> None:
        """Wait for the oldest part while too many are pending."""
        self._pending.append(part)
        while len(self._pending) > self.executor.max_pending:
            self._pending.popleft().written()


class WorkerPart:
    """A part that a worker writes once all its rows are known. The batches are references."""

    def __init__(self, path: Path, kind: Kind, weight: float, workers: _Workers) -> None:
        self._path, self._kind, self._weight, self._workers = path, kind, weight, workers
        self._batches: list[ObjectRef] = []
        self._groups: list[RowGroup] = []
        self._task: Task | None = None
        self._written: FileInfo | None = None

    def write(self, group: RowGroup) -> None:
        """Add a row group."""
        numbered: RowGroup = []
        for batch, rows in group:
            if not self._batches or self._batches[-1] is not batch:
                self._batches.append(batch)
            numbered.append((len(self._batches) - 1, rows))
        self._groups.append(numbered)

    def close(self) -> None:
        """Submit the task that writes the part."""
        spec = PartSpec(self._kind, self._weight, self._path, tuple(self._groups))
        self._task = self._workers.executor.submit(write_part, self._workers.context, spec, *self._batches)
        self._rows, self._batches = spec.rows, []
        self._workers.add_pending(self)

    def written(self) -> FileInfo:
        """Wait for the part. Raises DataError if the file is not what the worker wrote."""
        if self._written is None:
            assert self._task is not None  # noqa: S101 - for the type checker: parts are closed first
            answer = self._task.result()
            if isinstance(answer, bytes):
                staged = self._workers.scratch / f"{uuid.uuid4().hex}.parquet"
                staged.write_bytes(answer)
                staged.replace(self._path)
                answer = file_info(self._path, self._rows)
            if answer.rows != self._rows or not self._path.is_file() or self._path.stat().st_size != answer.bytes:
                raise DataError(f"{self._path.name} is not what a worker wrote. Run again.")
            self._written = answer
        return self._written


class _Parts(Protocol):
    """Writes the rows of one table in one partition."""

    def add(self, batch: Any, rows: int) -> None:
        """Add a batch, or a reference to one, of `rows` rows."""

    def end(self) -> None:
        """Write the remaining rows."""

    def written(self) -> list[FileInfo]:
        """Wait for the files. Raises the error of writing them."""


class _ShuffledParts:
    """Sorts all rows of a partition before they are written. They are all collected in this process."""

    def __init__(self, parts: PartWriter, executor: Executor, scratch: Path) -> None:
        self._parts, self._executor = parts, executor
        self._shuffle = ExternalShuffle(scratch)
        self.written = parts.written

    def add(self, batch: Any, rows: int) -> None:
        """Add a batch, or a reference to one."""
        if rows:
            self._shuffle.add(self._executor.get(batch))

    def end(self) -> None:
        """Write all rows, sorted."""
        for batch in self._shuffle.batches():
            self._parts.add(batch, len(batch))
        self._parts.end()


class _Output:
    """The files and the counts of one (split, city)."""

    def __init__(self, writer: _SnapshotWriter, stats: PartitionStats) -> None:
        self.stats = PartitionStats.of(stats.info)
        self.split, self.city = stats.info.key
        self.folder = partition_folder(self.split, writer.places[self.city])
        self.parts: dict[Kind, _Parts] = {kind: writer.parts(kind, self) for kind in writer.kinds}

    @property
    def order(self) -> tuple[int, bytes]:
        """The sort key of partitions: train before valid before test, then the bytes of the city."""
        return SPLITS.index(self.split or "train"), self.city.encode()

    def entry(self) -> PartitionEntry:
        """The partition's entry in the manifest."""
        stats, info = self.stats, self.stats.info
        weight = info.weight if info.kept else 0.0
        return PartitionEntry(
            self.folder,
            self.split,
            self.city,
            stats.events,
            stats.positives,
            stats.triples,
            weight,
            stats.interactions,
            stats.choices,
            stats.next,
        )


class _SnapshotWriter:
    """Writes the files of all partitions and the vocabularies, and sums up the counts."""

    def __init__(
        self,
        training: TrainingSet,
        options: StageOptions,
        folders: tuple[Path, Path],
        reused: ReusableEventFiles | None,
        pool: WriterPool,
        executor: Executor,
    ) -> None:
        self.training, self.dataset, self.options = training, training.dataset, options
        self.folder, self.scratch = folders
        self.reused, self.pool, self.executor = reused, pool, executor
        self.vocabulary, self.schemas, self.kinds = self.dataset.vocabulary, options.schemas, options.training.kinds
        self.workers = _Workers(executor, self.vocabulary, self.schemas, self.scratch) if executor.apart else None
        self.places = city_folders(self.dataset.events.cities)
        rule = options.training.split
        self.summary = DataSummary(
            folders={folder: city for city, folder in self.places.items()},
            split={"rule": rule, "lets_in": rule.leakage_note},
            tasks=options.training.task,
        )
        self.totals = VocabularyCounts(self.dataset.users.height, self.dataset.items.height)
        self.outputs: dict[Key, _Output] = {}
        self.exhausted_users: set[int] = set()
        self.sources = np.zeros(len(SOURCES), np.int64)

    def expand(self, observe: Callable[[pl.DataFrame], None]) -> Iterator[BucketStats]:
        """Expand all buckets, and send each batch to the parts of its partition. Yields the counts of each bucket."""
        buckets = self._buckets(observe)
        return self._expand(buckets) if self.workers is None else self._expand_apart(buckets)

    def _buckets(self, observe: Callable[[pl.DataFrame], None]) -> Iterator[pl.DataFrame]:
        for events in prefetch(iter(self.dataset.events)):
            if events.height:
                observe(events)
                yield events

    def _expand(self, buckets: Iterator[pl.DataFrame]) -> Iterator[BucketStats]:
        for events in buckets:
            expansion = BucketExpansion(self.training, events)
            for own, kind, batch in expansion:
                self._output(own).parts[kind].add(batch, len(batch))
            yield expansion.stats

    def _expand_apart(self, buckets: Iterator[pl.DataFrame]) -> Iterator[BucketStats]:
        """As `_expand`, on the workers of the executor. Their rows stay there and are passed on by reference."""
        made = [kind for kind in self.kinds if kind != "events" or self.reused is None]
        plan = plan_expansion(self.executor, self.training, made)
        shared, calls = self.executor.broadcast(plan), ((events,) for events in buckets)
        for task in map_ordered(self.executor, expand_bucket_task, shared, calls, num_outputs=len(plan.outputs)):
            stats: BucketStats = task.result()
            refs = dict(zip(plan.outputs, task.outputs, strict=True))
            for own in stats.partitions:
                parts = self._output(own).parts
                for kind in made:
                    parts[kind].add(refs[kind, own.info.key], getattr(own, kind))
            yield stats

    def parts(self, kind: Kind, output: _Output) -> _Parts:
        """Return the writer of a table's rows in a partition."""
        folder, weight = self.folder / kind / output.folder, output.stats.info.weight
        if kind == "events" and self.reused is not None:
            return PartCopier(folder, self.reused.files[output.city], self.pool)
        shuffled = kind in TASKS and self.options.training.shuffle
        start: Callable[[Path], ThreadPart | WorkerPart]
        if self.workers is None or shuffled:
            encode = encoder_of(kind, self.vocabulary, self.schemas[kind], weight)
            start = partial(ThreadPart, encode=encode, pool=self.pool)
        else:
            start = partial(WorkerPart, kind=kind, weight=weight, workers=self.workers)
        parts = PartWriter(folder, self.options.rows_per_file, start)
        return _ShuffledParts(parts, self.executor, self.scratch) if shuffled else parts

    def _output(self, stats: PartitionStats) -> _Output:
        key = stats.info.key
        if key not in self.outputs:
            self.outputs[key] = _Output(self, stats)
        return self.outputs[key]

    def add_stats(self, stats: BucketStats) -> None:
        """Add the counts of a bucket."""
        for own in stats.partitions:
            self.outputs[own.info.key].stats.add(own)
            self.summary.positives_in_another_city += own.in_another_city
        for reason, positives in stats.left_out.items():
            self.summary.positives_left_out[reason] += positives
        for reason, choices in stats.choices_left_out.items():
            self.summary.choices_left_out[reason] += choices
        self.exhausted_users |= stats.exhausted_users
        self.sources += stats.sources
        self.totals.add(stats)

    def finish(self) -> DataSummary:
        """End all files, write the vocabularies, and summarize."""
        outputs = sorted(self.outputs.values(), key=lambda output: output.order)
        for output in outputs:
            for parts in output.parts.values():
                parts.end()
        # While the last parts are being written.
        written = [write_file(self.folder / f"{name}.parquet", frames) for name, frames in self._vocabularies().items()]
        written += [file for output in outputs for parts in output.parts.values() for file in parts.written()]
        summary = self.summary
        splits = self.options.training.split.parts or (None,)
        for kind in self.kinds[1:]:
            full = {output.split for output in outputs if getattr(output.stats, kind)}
            written += [self._without_rows(kind, split) for split in splits if split not in full]
        summary.partitions = [output.entry() for output in outputs]
        summary.exhausted_users = len(self.exhausted_users)
        summary.neg_sources = {name: int(n) for name, n in zip(SOURCES, self.sources, strict=True) if n}
        for output in outputs:
            self._summarize_city(output.stats)
        summary.files = sorted((_entry(self.folder, file) for file in written), key=lambda entry: entry.path)
        return summary

    def _without_rows(self, kind: Kind, split: str | None) -> FileInfo:
        """Write a table's file without rows for a part of the split that has none, so that readers find the columns."""
        city = next(iter(self.dataset.events.cities), "")
        of_city = self.places.get(city) or city_folder(city)
        self.summary.folders.setdefault(of_city, city)
        path = self.folder / kind / partition_folder(split, of_city) / "part-00000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        open_writer(path, self.schemas[kind]).close()
        return file_info(path, 0)

    def _summarize_city(self, stats: PartitionStats) -> None:
        """Add a partition to the counts by city. Train comes before valid and test."""
        info, summary = stats.info, self.summary
        if not info.kept:
            summary.cities_left_out[info.city] = (
                f"{info.nodes} eligible nodes, fewer than {self.options.training.min_catalog}"
            )
            return
        summary.negatives[info.city] = info.negatives.as_dict()
        summary.popularity_correlation.setdefault(info.city, None)
        if info.is_train:
            popularity = self.totals.items["selected"][info.codes]
            summary.popularity_correlation[info.city] = popularity_correlation(
                stats.positive, stats.negative, popularity
            )

    def _vocabularies(self) -> dict[str, Iterator[pl.DataFrame]]:
        """The frames of users, items and trips, with how often each id occurs in train."""
        of_items, of_users = self.totals.items.values(), self.totals.users.values()
        return {
            "users": _with_counts(self.dataset.user_features(), USER_COUNTS, tuple(of_users)),
            "items": _with_counts(iter([self.dataset.items]), ITEM_COUNTS, tuple(of_items)),
            "trips": iter([self.dataset.trips]),
        }


def _with_counts(
    vocabulary: Iterator[pl.DataFrame], names: tuple[str, ...], counts: tuple[I64, ...]
) -> Iterator[pl.DataFrame]:
    start = 0
    for rows in vocabulary:
        end = start + rows.height
        yield rows.with_columns(pl.Series(n, values[start:end]) for n, values in zip(names, counts, strict=True))
        start = end


def partition_folder(split: str | None, folder: str) -> str:
    """The folder of a (split, city) below that of a table; `folder` is that of the city."""
    return folder if split is None else f"split={split}/{folder}"


def city_folders(cities: Iterable[str]) -> dict[str, str]:
    """Return the folder of each city, distinct also on file systems that ignore case: {city: folder}.

    If folders differ only in case, the first in byte order keeps its name, and the others get a hash. Raises
    DataError if two cities would share a folder nevertheless.
    """
    folders: dict[str, str] = {}
    taken: set[str] = set()
    for city in sorted(cities, key=str.encode):
        folder = city_folder(city)
        if folded(folder) in taken:
            folder = _hashed_folder(city)
        if folded(folder) in taken:
            raise DataError(f"Two cities would share the folder {folder}. Rename one of them.")
        taken.add(folded(folder))
        folders[city] = folder
    return folders


def city_folder(city: str) -> str:
    """Return the folder of a city: `city=` and the percent-encoded name, so that no name is a path.

    A name that is too long for a folder, reserved (empty, Hive's name for null), or ends like a hash becomes a prefix and a
    hash. The manifest maps folders to cities.
    """
    folder = f"city={quote(city, safe='')}"
    if len(folder) <= _FOLDER_BYTES and city not in _RESERVED and not _HASHED.search(city):
        return folder
    return _hashed_folder(city)


def _hashed_folder(city: str) -> str:
    digest = hashlib.sha256(city.encode()).hexdigest()[:16]
    prefix = ""
    for character in city:  # A cut within a character can't be decoded, and pyarrow refuses the whole folder then.
        if len(prefix + quote(character, safe="")) > _PREFIX_BYTES:
            break
        prefix += quote(character, safe="")
    return f"city={prefix.strip('_')}~{digest}"


def _entry(folder: Path, file: FileInfo) -> FileEntry:
    return FileEntry(file.path.relative_to(folder).as_posix(), file.rows, file.bytes, file.sha256)
