"""Publish a dataset as a snapshot: Parquet, manifest, and the switch of LATEST (CONTRACT, section 3).

Staged in a folder of its own, checked as it lies on disk, then renamed and named in LATEST: a reader sees the snapshot
before or the one after. This room alone writes files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import polars as pl
import pyarrow.parquet as pq

from etl.compact import EVENT_COLUMNS, Dataset
from etl.errors import ConnectError, DataError, LockedError, SettingsError
from etl.parquet import PartWriter
from etl.triples import expand

FORMAT = 1
MANIFEST, LATEST, SNAPSHOTS, STAGING = "manifest.json", "LATEST", "snapshots", ".staging-"

Ids = Literal["string", "index", "both"]
SmallCatalog = Literal["exclude", "weight", "keep"]

_FOLDER_BYTES = 255
_RESERVED = frozenset({"", "__HIVE_DEFAULT_PARTITION__"})


@dataclass(frozen=True)
class PublishOptions:
    """What decides the published bytes, besides the dataset."""

    min_catalog: int = 50
    small_catalog: SmallCatalog = "exclude"
    ids: Ids = "string"
    rows_per_file: int = 1_000_000


@dataclass(frozen=True)
class FileEntry:
    """One published file, as the manifest lists it: path inside the snapshot, rows, bytes, SHA-256."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass
class Published:
    """The account of what was published, per city folder and in all.

    Events x selected = `positives` in the triples + `positives_left_out`, by reason.
    """

    files: list[FileEntry] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    triples: dict[str, int] = field(default_factory=dict)
    positives: int = 0
    positives_left_out: dict[str, int] = field(default_factory=lambda: {"small_catalog": 0, "no_negatives": 0})
    cities_left_out: dict[str, str] = field(default_factory=dict)
    neg_sources: dict[str, int] = field(default_factory=dict)

    @property
    def content_sha256(self) -> str:
        """What the data files hold: equal for two snapshots whose data are equal, byte by byte."""
        lines = sorted(f"{entry.path}\x00{entry.sha256}\n" for entry in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


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


class Store:
    """A local folder that snapshots are published to, held by one writer at a time. See `open_store`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def latest(self) -> dict[str, Any] | None:
        """The manifest of the snapshot that LATEST names; None where there is none, or none that is whole."""
        try:
            name = (self.root / LATEST).read_text(encoding="utf-8").strip()
            manifest: dict[str, Any] = json.loads((self.root / SNAPSHOTS / name / MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        return manifest

    @contextmanager
    def staging(self, run_id: str) -> Iterator[Path]:
        """A fresh folder to stage a snapshot in; gone at the end of the block unless it was published."""
        folder = self.root / f"{STAGING}{run_id}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, name: str) -> Path:
        """Make a staged snapshot the newest: rename it, then name it in LATEST. Each step is atomic and on disk."""
        snapshots = self.root / SNAPSHOTS
        snapshots.mkdir(exist_ok=True)
        _sync_tree(staged)
        final = snapshots / name
        staged.rename(final)
        _sync(snapshots)
        _write_synced(self.root / f"{STAGING}{LATEST}", name)
        (self.root / f"{STAGING}{LATEST}").replace(self.root / LATEST)
        _sync(self.root)
        return final


@contextmanager
def open_store(out: str) -> Iterator[Store]:
    """Hold `out` for writing: made when it isn't there, cleared of what a killed run left.

    Raises SettingsError for what is not a local folder, LockedError when another run writes there.
    """
    if "://" in out:
        raise SettingsError(f"--out {out.split('://', maxsplit=1)[0]}://... is not supported yet; give a local folder.")
    root = Path(out)
    with writing(out):
        root.mkdir(parents=True, exist_ok=True)
        # The lock is on the folder itself, so that no lock file stays behind; it ends with the process.
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"Another run is publishing to {root}. Wait for it to end, or give another --out."
            ) from None
        for litter in root.glob(f"{STAGING}*"):
            shutil.rmtree(litter) if litter.is_dir() else litter.unlink()
        yield Store(root)
    finally:
        os.close(handle)


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Turns an OSError into ConnectError: the output folder can't be reached, or takes no more."""
    try:
        yield
    except OSError as error:
        raise ConnectError(
            f"Cannot write to {out}: {error.strerror or error}. Check the path, its rights and the disk."
        ) from error


def stage(dataset: Dataset, options: PublishOptions, folder: Path) -> Published:
    """Write all data files of a snapshot into an empty folder, and check them as they lie there.

    Raises DataError when what lies on disk is not what was meant, or when two cities would share a folder.
    """
    account = Published()
    written: dict[str, int] = {}
    for city in _cities(dataset):
        events = dataset.events.filter(pl.col("city") == city).drop("city")
        partition = city_folder(city)
        account.folders[partition] = city
        account.events[city] = events.height
        written |= _write(events.select(EVENT_COLUMNS), folder / "events" / partition, options)
        written |= _stage_triples(dataset, city, events, options, folder / "triples" / partition, account)
    for name, frame in (("users", dataset.users), ("items", dataset.items)):
        written |= PartWriter(folder / f"{name}.parquet").write(frame)
    account.files = [_entry(folder, Path(path), rows) for path, rows in sorted(written.items())]
    return account


def _cities(dataset: Dataset) -> list[str]:
    """The cities that events are in, in the order of their bytes. Raises DataError when two would share a folder."""
    cities: list[str] = dataset.events["city"].unique().sort().to_list()
    folders: dict[str, list[str]] = {}
    for city in cities:
        folders.setdefault(city_folder(city), []).append(city)
    for folder, same in folders.items():
        if len(same) > 1:
            raise DataError(f"{len(same)} cities would share the folder {folder}. Rename one of them.")
    return cities


def _stage_triples(
    dataset: Dataset, city: str, events: pl.DataFrame, options: PublishOptions, folder: Path, account: Published
) -> dict[str, int]:
    size = dataset.eligible.get(city, 0)
    small = size < options.min_catalog
    if small and options.small_catalog == "exclude":
        account.cities_left_out[city] = f"{size} eligible nodes, fewer than {options.min_catalog}"
        account.positives_left_out["small_catalog"] += int(events["selected_ids"].list.len().sum())
        return {}
    weight = size / options.min_catalog if small and options.small_catalog == "weight" else 1.0
    expanded = expand(_own_dictionaries(events), weight)
    account.positives += expanded.positives
    account.positives_left_out["no_negatives"] += expanded.without_negatives
    account.triples[city] = expanded.triples.height
    if not expanded.triples.height:
        return {}
    for source, rows in expanded.triples["neg_source"].value_counts().iter_rows():
        account.neg_sources[source] = account.neg_sources.get(source, 0) + rows
    return _write(_with_ids(expanded.triples, options.ids), folder, options)


def _own_dictionaries(events: pl.DataFrame) -> pl.DataFrame:
    """Texts that repeat in every triple of an event as Enum: exploded as four bytes, written as dictionary codes."""
    return events.with_columns(
        pl.col(name).cast(pl.Enum(events[name].unique(maintain_order=True))) for name in ("event_id", "trip_id")
    )


def _with_ids(triples: pl.DataFrame, ids: Ids) -> pl.DataFrame:
    if ids == "string":
        return triples
    texts = {"user_id": "user_idx", "pos_item": "pos_idx", "neg_item": "neg_idx"}
    # The physical value of an Enum is the row of its id in users.parquet or items.parquet.
    indexes = [pl.col(text).to_physical().cast(pl.UInt32).alias(index) for text, index in texts.items()]
    rest = [name for name in triples.columns if name not in texts]
    return triples.select(*indexes, *rest) if ids == "index" else triples.with_columns(indexes)


def _write(frame: pl.DataFrame, folder: Path, options: PublishOptions) -> dict[str, int]:
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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as it lies on disk, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(staged: Path, facts: Mapping[str, Any], account: Published, now: datetime) -> str:
    """Write the manifest, last in the snapshot, and give the snapshot's name: `<UTC time>-<short content hash>`."""
    content = account.content_sha256
    name = f"{now:%Y%m%dT%H%M%S%f}Z-{content[:12]}"
    manifest = {
        "format": FORMAT,
        "snapshot": name,
        "content_sha256": content,
        **facts,
        "cities": account.folders,
        "files": [asdict(entry) for entry in account.files],
    }
    _write_synced(staged / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return name


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    """Files first, then the folders that name them, the innermost first: power may go at any time."""
    for base, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(base) / name)
        _sync(Path(base))
