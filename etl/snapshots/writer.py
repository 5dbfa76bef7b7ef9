"""Stage a snapshot: its data files in a folder of their own, checked as they lie there (CONTRACT, section 3).

This room and `publish` alone write files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl

from etl.errors import DataError
from etl.runtime.executor import LOCAL_EXECUTOR, Executor, ObjectRef
from etl.runtime.files import FileInfo
from etl.runtime.run_record import Progress
from etl.settings.values import SPLITS
from etl.snapshots.apart import PendingParts, RemotePartWriter, iter_expanded_buckets, plan_expansion
from etl.snapshots.encoding import EVENT_SCHEMA, Ids, IdTables, event_columns, triple_columns, triple_schema
from etl.snapshots.parquet import PartCopier, PartWriter, WriterPool, file_info, write_batches, write_file, writer_pool
from etl.snapshots.reader import ITEM_COUNTS, USER_COUNTS, folded
from etl.snapshots.staged import DataSummary, FileEntry, PartitionEntry
from etl.transform.arrays import I64
from etl.transform.buckets import prefetch
from etl.triples.bias import popularity_correlation
from etl.triples.dataset import Dataset, ReusableEventFiles
from etl.triples.expansion import BucketStats, Key, PartitionStats, VocabularyCounts, expand_bucket
from etl.triples.generate import SOURCES, EventBatch, TripleBatch
from etl.triples.partitions import Partition, TrainingSet, TripleOptions, build_training_set
from etl.triples.shuffle import ExternalShuffle

_FOLDER_BYTES, _PREFIX_BYTES = 255, 200
_HASHED = re.compile(r"~[0-9a-f]{16}\.*\Z", re.IGNORECASE)
_RESERVED = frozenset({"", "__HIVE_DEFAULT_PARTITION__"})


@dataclass(frozen=True)
class StageOptions:
    """What decides the published bytes, besides the dataset."""

    training: TripleOptions = field(default_factory=TripleOptions)
    ids: Ids = "string"
    rows_per_file: int = 1_000_000


def write_data_files(
    dataset: Dataset,
    options: StageOptions,
    folder: Path,
    scratch: Path,
    progress: Progress,
    see: Callable[[pl.DataFrame], object] = lambda _: None,
    engine: Executor = LOCAL_EXECUTOR,
) -> DataSummary:
    """Write and check a snapshot's data files in an empty folder, bucket by bucket; what has to wait lies in `scratch`.

    `engine` says who does it, which shows in no byte. `see` is shown every bucket's events on their way: of their lists,
    candidates and selected are there for sure.

    Raises DataError where a footer doesn't count the rows that were written, or two cities would share a folder.
    """
    published = dataset.events.published
    if options.training.split != "none" or published is None or published.rows_per_file != options.rows_per_file:
        published = None
    else:  # the events' own files are copied: what only stands there need not be read
        needed = ["candidate_idx", "selected_idx", *(["shown_idx"] if "shown" in options.training.negatives else [])]
        dataset = replace(dataset, events=dataset.events.select(needed))
    training = build_training_set(dataset, options.training)
    with _SnapshotWriter(training, options, (folder, scratch), published, engine) as staging:
        (staging.write_remote if engine.apart else staging.write_local)(progress, see)
        progress("stage files", dataset.events.buckets, dataset.events.buckets)
        return staging.finish()


class _Output:
    """What a (split, city) has come to so far: its files and its account."""

    def __init__(self, staging: _SnapshotWriter, tally: PartitionStats) -> None:
        self.tally = tally
        self.split, self.city = tally.key
        self.place = partition_folder(self.split, staging.places[self.city])
        self.events = _event_parts(staging, self.city, self.place)
        self.files = _triple_parts(staging, self.place, tally.weight)
        self.shuffle = ExternalShuffle(staging.scratch) if staging.options.training.shuffle else None

    def add(self, piece: TripleBatch) -> None:
        """Take in the next triples."""
        if self.shuffle is not None:
            self.shuffle.add(piece)
        elif isinstance(self.files, PartWriter):
            self.files.add(piece)

    def add_remote(self, engine: Executor, tally: PartitionStats, events: ObjectRef, triples: ObjectRef) -> None:
        """Take in what an engine keeps of the next bucket."""
        if isinstance(self.events, RemotePartWriter):
            self.events.add(events, tally.events)
        if isinstance(self.files, RemotePartWriter):
            self.files.add(triples, tally.triples)
        elif tally.triples:  # to be shuffled, which needs all of them in one place
            self.add(engine.get(triples))

    def end(self) -> None:
        """Write what waits."""
        if self.shuffle is not None and isinstance(self.files, PartWriter):
            for piece in self.shuffle.batches():
                self.files.add(piece)
        self.events.end()
        self.files.end()

    def entry(self) -> PartitionEntry:
        """The manifest's line."""
        weight, events = self.tally.weight if self.tally.kept else 0.0, self.tally.events
        return PartitionEntry(
            self.place, self.split, self.city, events, self.tally.positives, self.tally.triples, weight
        )


def _event_parts(
    staging: _SnapshotWriter, city: str, place: str
) -> PartWriter[EventBatch] | RemotePartWriter | PartCopier:
    folder, rows = staging.folder / "events" / place, staging.options.rows_per_file
    if staging.published is not None:
        return PartCopier(folder, staging.published.files[city], staging.crew)
    if staging.writers is not None:
        return RemotePartWriter("events", folder, rows, staging.writers)
    return PartWriter[EventBatch](folder, EVENT_SCHEMA, rows, partial(event_columns, texts=staging.texts), staging.crew)


def _triple_parts(staging: _SnapshotWriter, place: str, weight: float) -> PartWriter[TripleBatch] | RemotePartWriter:
    folder, rows = staging.folder / "triples" / place, staging.options.rows_per_file
    if staging.writers is not None and not staging.options.training.shuffle:
        return RemotePartWriter("triples", folder, rows, staging.writers, weight)
    schema = triple_schema(staging.options.ids)
    columns = partial(triple_columns, texts=staging.texts, schema=schema, weight=weight)
    return PartWriter[TripleBatch](folder, schema, rows, columns, staging.crew)


class _SnapshotWriter(AbstractContextManager["_SnapshotWriter"]):
    """A snapshot's data files on their way, and the account of them."""

    def __init__(
        self,
        training: TrainingSet,
        options: StageOptions,
        folders: tuple[Path, Path],
        published: ReusableEventFiles | None,
        engine: Executor,
    ) -> None:
        self.training, self.dataset = training, training.dataset
        self.options, self.published, self.engine = options, published, engine
        self.folder, self.scratch = folders
        self.texts = IdTables.of(self.dataset)
        rule = options.training.split
        self.places = city_folders(self.dataset.events.cities)
        self.account = DataSummary(
            folders={folder: city for city, folder in self.places.items()},
            split={"rule": rule, "lets_in": rule.leakage_note},
        )
        self.totals = VocabularyCounts(self.dataset.users.height, self.dataset.items.height)
        self.outputs: dict[Key, _Output] = {}
        self.through: set[int] = set()
        self.sources = np.zeros(len(SOURCES), np.int64)
        self.writers = PendingParts.of(engine, self.texts, options.ids, self.scratch) if engine.apart else None
        self._crew = writer_pool()
        self.crew: WriterPool = self._crew.__enter__()

    def __exit__(self, *failure: object) -> None:
        self._crew.__exit__(None, None, None)

    def write_local(self, progress: Progress, see: Callable[[pl.DataFrame], object]) -> None:
        """Write the events and triples of all buckets in this process, as they come."""
        for number, events in enumerate(prefetch(self.training.buckets())):
            progress("stage files", number, self.dataset.events.buckets)
            if events.height:
                self._add_stats(expand_bucket(self.training, events, self))
                see(events)

    def write_remote(self, progress: Progress, see: Callable[[pl.DataFrame], object]) -> None:
        """Have them written by an engine's workers."""

        def seen() -> Iterator[pl.DataFrame]:
            for events in prefetch(iter(self.dataset.events)):
                if events.height:
                    see(events)
                yield events

        whole = plan_expansion(self.engine, self.training, events=self.published is None)
        for number, (tally, kept) in enumerate(iter_expanded_buckets(self.engine, whole, seen())):
            progress("stage files", number, self.dataset.events.buckets)
            for own in tally.partitions:
                self._output(own).add_remote(self.engine, own, *kept[own.key])
            self._add_stats(tally)

    def start_partition(self, partition: Partition) -> None:
        """See Sink."""
        output = self._output(PartitionStats.of(partition))
        if isinstance(output.events, PartWriter):
            output.events.add(EventBatch(partition.events.clone()))  # a frame object belongs to one thread

    def write(self, partition: Partition, piece: TripleBatch) -> None:
        """See Sink."""
        self.outputs[partition.split, partition.city].add(piece)

    def _output(self, tally: PartitionStats) -> _Output:
        if tally.key not in self.outputs:
            self.outputs[tally.key] = _Output(self, tally.zeroed())
        return self.outputs[tally.key]

    def _add_stats(self, tally: BucketStats) -> None:
        """Add a bucket's account to that of all."""
        for own in tally.partitions:
            self.outputs[own.key].tally.add(own)
        for reason, positives in tally.left_out.items():
            self.account.positives_left_out[reason] += positives
        self.through |= tally.exhausted_users
        self.sources += tally.sources
        self.totals.add(tally)

    def finish(self) -> DataSummary:
        """End all files, write the vocabularies, and give the account."""
        outputs = sorted(self.outputs.values(), key=_order)
        for output in outputs:
            output.end()
        if self.writers is not None:
            self.writers.end()
        written = [file for output in outputs for own in (output.events, output.files) for file in own.written()]
        account = self.account
        full = {output.split for output in outputs if output.tally.triples}
        parts = self.options.training.split.parts or (None,)
        written += [self._without_rows(part) for part in parts if part not in full]
        account.partitions = [output.entry() for output in outputs]
        account.exhausted_users = len(self.through)
        account.neg_sources = {name: int(n) for name, n in zip(SOURCES, self.sources, strict=True) if n}
        self._by_city(outputs)
        written += [
            write_file(self.folder / f"{name}.parquet", frames) for name, frames in self._vocabularies().items()
        ]
        account.files = sorted((_entry(self.folder, file) for file in written), key=lambda entry: entry.path)
        return account

    def _without_rows(self, split: str | None) -> FileInfo:
        """The file of a part of the split without triples, in its first city's folder: readers find the columns and no row."""
        city = next(iter(self.dataset.events.cities), "")
        of_city = self.places.get(city) or city_folder(city)
        self.account.folders.setdefault(of_city, city)
        folder = self.folder / "triples" / partition_folder(split, of_city)
        folder.mkdir(parents=True, exist_ok=True)
        no_pieces: list[TripleBatch] = []
        path = folder / "part-00000.parquet"
        return file_info(path, write_batches(path, triple_schema(self.options.ids), no_pieces, lambda _: []))

    def _by_city(self, outputs: list[_Output]) -> None:
        """What the account says of each city, train before valid before test."""
        for output in outputs:
            tally = output.tally
            if not tally.kept:
                reason = f"{tally.nodes} eligible nodes, fewer than {self.options.training.min_catalog}"
                self.account.cities_left_out[output.city] = reason
                continue
            self.account.negatives[output.city] = tally.negatives_spec
            self.account.popularity_correlation.setdefault(output.city, None)
            if tally.is_train:
                popularity = self.totals.items["selected"][tally.codes]
                self.account.popularity_correlation[output.city] = popularity_correlation(
                    tally.positive, tally.negative, popularity
                )

    def _vocabularies(self) -> dict[str, Iterator[pl.DataFrame]]:
        """users, items and trips as they are published: the vocabularies with how often each id stands in train."""
        totals = self.totals
        of_items = tuple(totals.items[name] for name in ("candidate", "selected", "positive", "negative"))
        of_users = tuple(totals.users[name] for name in ("trips", "events", "selections", "triples"))
        return {
            "users": _with_counts(self.dataset.user_features(), USER_COUNTS, of_users),
            "items": _with_counts(iter([self.dataset.items]), ITEM_COUNTS, of_items),
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


def _order(output: _Output) -> tuple[int, bytes]:
    return SPLITS.index(output.split or "train"), output.city.encode()


def partition_folder(split: str | None, folder: str) -> str:
    """The folder of a (split, city), inside of its kind's; `folder` is the city's."""
    return folder if split is None else f"split={split}/{folder}"


def city_folders(cities: Iterable[str]) -> dict[str, str]:
    """The folder of each city's partition, also where the file system sees no case: {city: folder}.

    Of cities whose folders differ in case alone, the first in the order of their bytes has its own, and the others have a hash.
    Raises DataError when two would share a folder all the same.
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
    """The folder of a city that no other is like: `city=` and the percent-encoded name.

    Nothing in it can leave the folder. A name too long for a folder, reserved (empty, Hive's name for null), or made to look
    like another's hash, becomes a prefix and a hash; the manifest maps folders to cities.
    """
    folder = f"city={quote(city, safe='')}"
    if len(folder) <= _FOLDER_BYTES and city not in _RESERVED and not _HASHED.search(city):
        return folder
    return _hashed_folder(city)


def _hashed_folder(city: str) -> str:
    digest = hashlib.sha256(city.encode()).hexdigest()[:16]
    prefix = ""
    for character in city:  # never half of one: readers decode the name, and pyarrow refuses the whole folder then
        if len(prefix + quote(character, safe="")) > _PREFIX_BYTES:
            break
        prefix += quote(character, safe="")
    return f"city={prefix.strip('_')}~{digest}"


def _entry(folder: Path, file: FileInfo) -> FileEntry:
    return FileEntry(file.path.relative_to(folder).as_posix(), file.rows, file.bytes, file.sha256)
