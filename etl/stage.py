"""Stage a snapshot: its data files in a folder of their own, checked as they lie there (CONTRACT, section 3).

This room and `publish` alone write files.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from etl.choices import parse_split
from etl.compact import EVENT_COLUMNS, Dataset
from etl.draws import I64
from etl.errors import DataError
from etl.parquet import PartWriter
from etl.sign import sign
from etl.snapshot import ITEM_COUNTS, USER_COUNTS, file_sha256
from etl.training import Partition, Training, TrainingOptions, prepare, times_named
from etl.triples import INDEXES, NO_NEGATIVES, SOURCES, WHOLE_CATALOGUE_SEEN, Expanded, indexes

Ids = Literal["string", "index", "both"]

SMALL_CATALOGUE = "small_catalog"

_FOLDER_BYTES = 255
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
    is kept whether they teach what people like (`etl.sign`); `negatives` what the strategies came to.
    """

    files: list[FileEntry] = field(default_factory=list)
    beside: list[FileEntry] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    partitions: list[PartitionEntry] = field(default_factory=list)
    positives_left_out: dict[str, int] = field(
        default_factory=lambda: {SMALL_CATALOGUE: 0, NO_NEGATIVES: 0, WHOLE_CATALOGUE_SEEN: 0}
    )
    users_through: set[str] = field(default_factory=set)
    cities_left_out: dict[str, str] = field(default_factory=dict)
    neg_sources: dict[str, int] = field(default_factory=dict)
    negatives: dict[str, dict[str, Any]] = field(default_factory=dict)
    signs: dict[str, float | None] = field(default_factory=dict)
    split: dict[str, str | None] = field(default_factory=dict)

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
            "users_with_whole_catalog_seen": len(self.users_through),
            "cities_left_out": self.cities_left_out,
            "negatives": self.negatives,
            "signs": self.signs,
            "split": self.split,
            "partitions": [asdict(entry) for entry in self.partitions],
            "users": dataset.users.height,
            "items": dataset.items.height,
        }

    def _per_city(self, what: str) -> dict[str, int]:
        cities = sorted({entry.city for entry in self.partitions}, key=str.encode)
        return {city: sum(getattr(entry, what) for entry in self.partitions if entry.city == city) for city in cities}


class _Counts:
    """How often each node and each user stands in train's triples, by code; and each city's nodes for its sign."""

    def __init__(self, users: int, items: int) -> None:
        self.positive = np.zeros(items, np.int64)
        self.negative = np.zeros(items, np.int64)
        self.triples = np.zeros(users, np.int64)

    def add(self, triples: pl.DataFrame) -> tuple[I64, I64]:
        """Count a partition's triples; gives its own counts per node, positive and negative."""
        items, users = len(self.positive), len(self.triples)
        positive, negative = (_count(triples[name], items) for name in ("pos_item", "neg_item"))
        self.positive += positive
        self.negative += negative
        self.triples += _count(triples["user_id"], users)
        return positive, negative


def _count(codes: pl.Series, size: int) -> I64:
    return np.bincount(codes.to_physical().to_numpy(), minlength=size)


def stage(dataset: Dataset, options: StageOptions, folder: Path) -> Staged:
    """Write all data files of a snapshot into an empty folder, and check them as they lie there.

    Raises DataError when what lies on disk is not what was meant, or when two cities would share a folder.
    """
    account = Staged()
    account.folders = _folders(dataset)
    account.split = {"rule": options.training.split, "lets_in": parse_split(options.training.split).lets_in}
    training = prepare(dataset, options.training)
    popularity = times_named(training.train, "selected_ids", dataset.items.height)
    counts = _Counts(dataset.users.height, dataset.items.height)
    written: dict[str, int] = {}
    for partition in training.partitions():
        place = _place(partition)
        written |= _write(partition.events.select(EVENT_COLUMNS), folder / "events" / place, options)
        if not partition.kept:
            _leave_out(partition, place, options.training, account)
            continue
        expanded = partition.expand(options.training)
        _account(partition, place, expanded, account)
        account.signs.setdefault(partition.city, None)
        if partition.informs:
            own = counts.add(expanded.triples)
            codes = partition.catalogue.codes
            account.signs[partition.city] = sign(own[0][codes], own[1][codes], popularity[codes])
        if expanded.triples.height:
            written |= _write(_published_columns(expanded.triples, options.ids), folder / "triples" / place, options)
    for name, frame in _vocabularies(training, counts, popularity).items():
        written |= PartWriter(folder / f"{name}.parquet").write(frame)
    account.files = [_entry(folder, Path(path), rows) for path, rows in sorted(written.items())]
    return account


def city_folder(city: str) -> str:
    """The folder of a city's partition: `city=` and the percent-encoded name.

    Nothing in it can leave the folder. A name too long for a folder, or reserved (empty, Hive's name for null), becomes a
    prefix and a hash; the manifest maps folders to cities.
    """
    folder = f"city={quote(city, safe='')}"
    if len(folder) <= _FOLDER_BYTES and city not in _RESERVED:
        return folder
    digest = hashlib.sha256(city.encode()).hexdigest()[:16]
    prefix = quote(city, safe="")[:200].strip("_")
    cut = prefix.rfind("%", len(prefix) - 2)  # never half of a %XX
    return f"city={prefix[:cut] if cut >= 0 else prefix}~{digest}"


def _folders(dataset: Dataset) -> dict[str, str]:
    """{folder: city} of the cities that events are in. Raises DataError when two would share a folder."""
    folders: dict[str, str] = {}
    for city in dataset.events["city"].unique().sort():
        other = folders.setdefault(city_folder(city), city)
        if other != city:
            raise DataError(f"Two cities would share the folder {city_folder(city)}. Rename one of them.")
    return folders


def _place(partition: Partition) -> str:
    """The partition's folder below `events/` and `triples/`."""
    folder = city_folder(partition.city)
    return folder if partition.split is None else f"split={partition.split}/{folder}"


def _leave_out(partition: Partition, place: str, options: TrainingOptions, account: Staged) -> None:
    city = partition.city
    account.cities_left_out[city] = f"{partition.nodes} eligible nodes, fewer than {options.min_catalog}"
    account.positives_left_out[SMALL_CATALOGUE] += int(partition.events["selected_ids"].list.len().sum())
    account.partitions.append(PartitionEntry(place, partition.split, city, partition.events.height, 0, 0, 0.0))


def _account(partition: Partition, place: str, expanded: Expanded, account: Staged) -> None:
    for reason, positives in expanded.left_out.items():
        account.positives_left_out[reason] += positives
    account.users_through |= expanded.users_through
    account.negatives[partition.city] = partition.negatives.words()
    rows = dict(expanded.triples["neg_source"].value_counts().iter_rows())
    for source in SOURCES:
        if rows.get(source):
            account.neg_sources[source] = account.neg_sources.get(source, 0) + rows[source]
    account.partitions.append(
        PartitionEntry(
            place,
            partition.split,
            partition.city,
            partition.events.height,
            expanded.positives,
            expanded.triples.height,
            partition.weight,
        )
    )


def _vocabularies(training: Training, counts: _Counts, popularity: I64) -> dict[str, pl.DataFrame]:
    """users, items and trips as they are published: the vocabularies with how often each id stands in train."""
    dataset, train = training.dataset, training.train
    candidates = times_named(train, "candidate_ids", dataset.items.height)
    items = dataset.items.with_columns(
        pl.Series(name, values, dtype=pl.Int64)
        for name, values in zip(ITEM_COUNTS, (candidates, popularity, counts.positive, counts.negative), strict=True)
    )
    per_user = train.group_by(pl.col("user_id").cast(pl.String)).agg(
        pl.col("trip_id").n_unique().cast(pl.Int64).alias("n_trips"),
        pl.len().cast(pl.Int64).alias("n_events"),
        pl.col("selected_ids").list.len().sum().cast(pl.Int64).alias("n_selected"),
    )
    users = dataset.users.join(per_user, on="user_id", how="left", maintain_order="left").with_columns(
        pl.col(*USER_COUNTS[:3]).fill_null(0), pl.Series("n_triples", counts.triples, dtype=pl.Int64)
    )
    return {"users": users, "items": items, "trips": dataset.trips}


def _published_columns(triples: pl.DataFrame, ids: Ids) -> pl.DataFrame:
    """Ids as they are asked for: texts, indexes or both."""
    if ids == "string":
        return triples
    rest = [name for name in triples.columns if name not in INDEXES]
    return triples.select(*indexes(), *rest) if ids == "index" else triples.with_columns(indexes())


def _write(frame: pl.DataFrame, folder: Path, options: StageOptions) -> dict[str, int]:
    """A partition's parts, each full but the last: {path: rows}. Their number depends on rows and --rows-per-file alone."""
    folder.mkdir(parents=True)
    written: dict[str, int] = {}
    for number, start in enumerate(range(0, frame.height, options.rows_per_file)):
        part = PartWriter(folder / f"part-{number:05}.parquet")
        written |= part.write(frame.slice(start, options.rows_per_file))
    return written


def _entry(folder: Path, path: Path, rows: int) -> FileEntry:
    """A file as it lies on disk. Raises DataError when its footer doesn't count the rows that were written."""
    found = pq.read_metadata(path).num_rows
    if found != rows:
        raise DataError(f"{path.relative_to(folder)} has {found} rows on disk, and {rows} were written. Run again.")
    return FileEntry(path.relative_to(folder).as_posix(), rows, path.stat().st_size, file_sha256(path))
