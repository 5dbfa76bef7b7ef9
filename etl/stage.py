"""Stage a snapshot: its data files in a folder of their own, checked as they lie there (CONTRACT, section 3).

This room and `publish` alone write files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl

from etl.buckets import ahead
from etl.choices import SPLITS, parse_split
from etl.columns import (
    EVENT_SCHEMA,
    EventPiece,
    Ids,
    Texts,
    TriplePiece,
    event_columns,
    triple_columns,
    triple_schema,
)
from etl.compact import GONE, Dataset, Published
from etl.draws import I64
from etl.errors import DataError
from etl.journal import Progress
from etl.parquet import Copies, Crew, Parts, Written, crew, write_file
from etl.shuffle import Shuffle
from etl.sign import sign
from etl.snapshot import ITEM_COUNTS, USER_COUNTS
from etl.training import Partition, Training, TrainingOptions, in_train, prepare, times_named
from etl.triples import NO_NEGATIVES, SOURCES, WHOLE_CATALOGUE_SEEN

SMALL_CATALOGUE = "small_catalog"

_FOLDER_BYTES, _PREFIX_BYTES = 255, 200
_HASHED = re.compile(r"~[0-9a-f]{16}\Z")
_RESERVED = frozenset({"", "__HIVE_DEFAULT_PARTITION__"})


@dataclass(frozen=True)
class StageOptions:
    """What decides the published bytes, besides the dataset."""

    training: TrainingOptions = field(default_factory=TrainingOptions)
    ids: Ids = "string"
    rows_per_file: int = 1_000_000


@dataclass(frozen=True)
class FileEntry:
    """One published file, as the manifest lists it: path inside the snapshot, rows, bytes, SHA-256."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PartitionEntry:
    """What a partition holds. `positives` are those that have a triple; `split` is None where there is none."""

    folder: str
    split: str | None
    city: str
    events: int
    positives: int
    triples: int
    weight: float


@dataclass
class Staged:
    """The account of what was staged: the data `files`, and those `beside` them that are about the data.

    Events x selected = `positives` in the triples + `positives_left_out`, by reason. `signs` says for each city that
    is kept whether they teach what people like (`etl.sign`); `negatives` what the strategies came to. `name` is the
    snapshot's; None as long as it has none, and where it is not to be published.
    """

    files: list[FileEntry] = field(default_factory=list)
    beside: list[FileEntry] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    partitions: list[PartitionEntry] = field(default_factory=list)
    positives_left_out: dict[str, int] = field(
        default_factory=lambda: {SMALL_CATALOGUE: 0, NO_NEGATIVES: 0, WHOLE_CATALOGUE_SEEN: 0}
    )
    users_through: int = 0
    cities_left_out: dict[str, str] = field(default_factory=dict)
    neg_sources: dict[str, int] = field(default_factory=dict)
    negatives: dict[str, dict[str, Any]] = field(default_factory=dict)
    signs: dict[str, float | None] = field(default_factory=dict)
    split: dict[str, str | None] = field(default_factory=dict)
    name: str | None = None

    @property
    def content_sha256(self) -> str:
        """What the data files hold: equal for two snapshots whose data are equal, byte by byte."""
        lines = sorted(f"{entry.path}\x00{entry.sha256}\n" for entry in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def counts(self, dataset: Dataset) -> dict[str, Any]:
        """What the manifest and the summary say of it."""
        return {
            "events": self._per_city("events"),
            "triples": {city: n for city, n in self._per_city("triples").items() if city not in self.cities_left_out},
            "triples_by_neg_source": self.neg_sources,
            "positives": sum(entry.positives for entry in self.partitions),
            "positives_left_out": self.positives_left_out,
            "users_with_whole_catalog_seen": self.users_through,
            "cities_left_out": self.cities_left_out,
            "negatives": self.negatives,
            "signs": self.signs,
            "split": self.split,
            "partitions": [asdict(entry) for entry in self.partitions],
            "users": dataset.users.height,
            "items": dataset.items.height,
            "items_gone": dataset.items.filter(status=GONE).height,
        }

    def _per_city(self, what: str) -> dict[str, int]:
        cities = sorted({entry.city for entry in self.partitions}, key=str.encode)
        return {city: sum(getattr(entry, what) for entry in self.partitions if entry.city == city) for city in cities}


def stage(
    dataset: Dataset,
    options: StageOptions,
    folder: Path,
    scratch: Path,
    progress: Progress,
    see: Callable[[pl.DataFrame], object] = lambda _: None,
) -> Staged:
    """Write and check a snapshot's data files in an empty folder, bucket by bucket; what has to wait lies in `scratch`.

    `see` is shown every bucket's events on their way: of their lists, candidates and selected are there for sure.

    Raises DataError where a footer doesn't count the rows that were written, or two cities would share a folder.
    """
    published = dataset.events.published
    if options.training.split != "none" or published is None or published.rows_per_file != options.rows_per_file:
        published = None
    else:  # the events' own files are copied: what only stands there need not be read
        needed = ["candidate_idx", "selected_idx", *(["shown_idx"] if "shown" in options.training.negatives else [])]
        dataset = replace(dataset, events=dataset.events.only(needed))
    training = prepare(dataset, options.training)
    with _Staging(training, options, folder, scratch, published) as staging:
        for number, events in enumerate(ahead(training.buckets())):
            progress("stage files", number, dataset.events.buckets)
            if events.height:
                staging.add(events)
                see(events)
        progress("stage files", dataset.events.buckets, dataset.events.buckets)
        return staging.end()


class _Counts:
    """How often each user and each node stands in train, by code: in its events, and in its triples."""

    def __init__(self, users: int, items: int) -> None:
        self.positive, self.negative, self.candidate, self.selected = (np.zeros(items, np.int64) for _ in range(4))
        self.triples, self.trips, self.events, self.selections = (np.zeros(users, np.int64) for _ in range(4))

    def add_events(self, events: pl.DataFrame) -> None:
        """Count a bucket's train events."""
        self.candidate += times_named(events, "candidate_idx", len(self.candidate))
        self.selected += times_named(events, "selected_idx", len(self.selected))
        per_user = events.group_by("user_idx").agg(
            trips=pl.col("trip_idx").n_unique(), events=pl.len(), selections=pl.col("selected_idx").list.len().sum()
        )
        users = per_user["user_idx"].to_numpy()
        for name in ("trips", "events", "selections"):
            getattr(self, name)[users] += per_user[name].cast(pl.Int64).to_numpy()


class _Output:
    """What a (split, city) has come to so far: its files, its account, and how often each of its nodes is on either side."""

    def __init__(self, staging: _Staging, partition: Partition) -> None:
        self.split, self.city, self.kept = partition.split, partition.city, partition.kept
        self.nodes, self.weight, self.informs = partition.nodes, partition.weight, partition.informs
        self.words, self.codes = partition.negatives.words(), partition.catalogue.codes
        self.positives = 0
        self.positive, self.negative = (np.zeros(len(self.codes), np.int64) for _ in range(2))
        place = city_folder(self.city)
        self.place = place if self.split is None else f"split={self.split}/{place}"
        rows, texts, ids = staging.options.rows_per_file, staging.texts, triple_schema(staging.options.ids)
        self.events = _event_parts(staging, self.city, self.place)
        self.files = Parts[TriplePiece](
            staging.folder / "triples" / self.place,
            ids,
            rows,
            partial(triple_columns, texts=texts, schema=ids, weight=self.weight),
            staging.crew,
        )
        self.shuffle = Shuffle(staging.scratch) if partition.shuffle else None

    def end(self) -> None:
        """Write what waits."""
        if self.shuffle is not None:
            for piece in self.shuffle.pieces():
                self.files.add(piece)
        self.events.end()
        self.files.end()

    def entry(self) -> PartitionEntry:
        """The manifest's line."""
        weight = self.weight if self.kept else 0.0
        return PartitionEntry(
            self.place, self.split, self.city, self.events.rows, self.positives, self.files.rows, weight
        )


def _event_parts(staging: _Staging, city: str, place: str) -> Parts[EventPiece] | Copies:
    folder = staging.folder / "events" / place
    if staging.published is not None:
        return Copies(folder, staging.published.files[city], staging.crew)
    columns = partial(event_columns, texts=staging.texts)
    return Parts[EventPiece](folder, EVENT_SCHEMA, staging.options.rows_per_file, columns, staging.crew)


class _Staging(AbstractContextManager["_Staging"]):
    """A snapshot's data files on their way, and the account of them."""

    def __init__(
        self, training: Training, options: StageOptions, folder: Path, scratch: Path, published: Published | None
    ) -> None:
        self.training, self.dataset = training, training.dataset
        self.options, self.folder, self.scratch, self.published = options, folder, scratch, published
        self.texts = Texts.of(self.dataset)
        rule = options.training.split
        self.account = Staged(
            folders=_folders(self.dataset), split={"rule": rule, "lets_in": parse_split(rule).lets_in}
        )
        self.counts = _Counts(self.dataset.users.height, self.dataset.items.height)
        self.outputs: dict[tuple[str | None, str], _Output] = {}
        self.through: set[int] = set()
        self.sources = np.zeros(len(SOURCES), np.int64)
        self._crew = crew()
        self.crew: Crew = self._crew.__enter__()

    def __exit__(self, *failure: object) -> None:
        self._crew.__exit__(None, None, None)

    def add(self, events: pl.DataFrame) -> None:
        """Write a bucket's events and triples."""
        self.counts.add_events(in_train(events))
        for partition in self.training.partitions(events):
            key = (partition.split, partition.city)
            output = self.outputs.get(key) or self.outputs.setdefault(key, _Output(self, partition))
            output.events.add(EventPiece(partition.events.clone()))  # a frame object belongs to one thread
            if partition.kept:
                self._expand(output, partition)
            else:
                left_out = int(partition.events["selected_idx"].list.len().sum())
                self.account.positives_left_out[SMALL_CATALOGUE] += left_out

    def _expand(self, output: _Output, partition: Partition) -> None:
        """Make a partition's triples, count them, and send them on their way."""
        events = partition.coded
        positive, negative = (np.zeros(self.dataset.items.height, np.int64) for _ in range(2))
        per_event = np.zeros(len(events), np.int64)
        for block in partition.expand():
            output.positives += block.positives
            for reason, positives in block.left_out.items():
                self.account.positives_left_out[reason] += positives
            self.through.update(block.users_through.tolist())
            self.sources += [np.count_nonzero(block.source == place) for place in range(len(SOURCES))]
            if output.informs:
                positive += np.bincount(block.pairs.code, block.per_pair, len(positive)).astype(np.int64)
                negative += np.bincount(block.negative, minlength=len(negative))
                per_event += np.bincount(block.pairs.event, block.per_pair, len(events)).astype(np.int64)
            piece = TriplePiece(events, block)
            output.files.add(piece) if output.shuffle is None else output.shuffle.add(piece)
        output.positive += positive[output.codes]
        output.negative += negative[output.codes]
        self.counts.positive += positive
        self.counts.negative += negative
        np.add.at(self.counts.triples, events.users, per_event)

    def end(self) -> Staged:
        """End all files, write the vocabularies, and give the account."""
        outputs = sorted(self.outputs.values(), key=_order)
        for output in outputs:
            output.end()
        written = [file for output in outputs for parts in (output.events, output.files) for file in parts.written()]
        account = self.account
        account.partitions = [output.entry() for output in outputs]
        account.users_through = len(self.through)
        account.neg_sources = {name: int(n) for name, n in zip(SOURCES, self.sources, strict=True) if n}
        self._by_city(outputs)
        written += [
            write_file(self.folder / f"{name}.parquet", frames) for name, frames in self._vocabularies().items()
        ]
        account.files = sorted((_entry(self.folder, file) for file in written), key=lambda entry: entry.path)
        return account

    def _by_city(self, outputs: list[_Output]) -> None:
        """What the account says of each city, train before valid before test."""
        for output in outputs:
            if not output.kept:
                reason = f"{output.nodes} eligible nodes, fewer than {self.options.training.min_catalog}"
                self.account.cities_left_out[output.city] = reason
                continue
            self.account.negatives[output.city] = output.words
            self.account.signs.setdefault(output.city, None)
            if output.informs:
                popularity = self.counts.selected[output.codes]
                self.account.signs[output.city] = sign(output.positive, output.negative, popularity)

    def _vocabularies(self) -> dict[str, Iterator[pl.DataFrame]]:
        """users, items and trips as they are published: the vocabularies with how often each id stands in train."""
        counts = self.counts
        of_items = (counts.candidate, counts.selected, counts.positive, counts.negative)
        of_users = (counts.trips, counts.events, counts.selections, counts.triples)
        return {
            "users": _with_counts(self.dataset.profiles(), USER_COUNTS, of_users),
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


def city_folder(city: str) -> str:
    """The folder of a city's partition: `city=` and the percent-encoded name.

    Nothing in it can leave the folder. A name too long for a folder, reserved (empty, Hive's name for null), or made to look
    like another's hash, becomes a prefix and a hash; the manifest maps folders to cities.
    """
    folder = f"city={quote(city, safe='')}"
    if len(folder) <= _FOLDER_BYTES and city not in _RESERVED and not _HASHED.search(city):
        return folder
    digest = hashlib.sha256(city.encode()).hexdigest()[:16]
    prefix = ""
    for character in city:  # never half of one: readers decode the name, and pyarrow refuses the whole folder then
        if len(prefix + quote(character, safe="")) > _PREFIX_BYTES:
            break
        prefix += quote(character, safe="")
    return f"city={prefix.strip('_')}~{digest}"


def _folders(dataset: Dataset) -> dict[str, str]:
    """{folder: city} of the cities that events are in. Raises DataError when two would share a folder."""
    folders: dict[str, str] = {}
    for city in dataset.events.cities:
        other = folders.setdefault(city_folder(city), city)
        if other != city:
            raise DataError(f"Two cities would share the folder {city_folder(city)}. Rename one of them.")
    return folders


def _entry(folder: Path, file: Written) -> FileEntry:
    return FileEntry(file.path.relative_to(folder).as_posix(), file.rows, file.bytes, file.sha256)
