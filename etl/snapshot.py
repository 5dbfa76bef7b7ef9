"""Published snapshots, read back: where one is, its manifest, its dataset, its vocabulary. Nothing here writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl import __version__
from etl.buckets import buckets_for
from etl.compact import Dataset, EventBuckets, Published, Vocabulary
from etl.errors import ConnectError, DataError
from etl.event_files import Vocabularies, read_events
from etl.parquet import Written

MANIFEST, LATEST, SNAPSHOTS, PROBE = "manifest.json", "LATEST", "snapshots", "probe.json"
REPORT = "report.html"
STAGING = ".staging-"
"""How what is not finished begins. Nobody reads it, and who holds the folder may take it away."""

_US_PER_DAY = 86_400_000_000
_NO_EVENTS = pl.DataFrame(
    schema={"trip_id": pl.String, "day_number": pl.Int32, "timestamp": pl.Int64, "city": pl.String}
)
_ITEM_COLUMNS = ("item_id", "item_idx", "city", "category", "name", "latitude", "longitude", "status")
USER_COUNTS = ("n_trips", "n_events", "n_selected", "n_triples")
ITEM_COUNTS = ("n_candidate", "n_selected", "n_positive", "n_negative")
"""Columns of the vocabularies that count what is in train: every snapshot has its own."""


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot: its folder, and what its manifest says. `url` is where it lies, if the folder is a copy of that."""

    folder: Path
    manifest: dict[str, Any]
    url: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it was made with."""
        return dict(self.manifest["settings"])

    def parts(self, kind: str) -> list[tuple[str | None, str, Path]]:
        """The files of `events` or `triples`, in the manifest's order: (split, city, path)."""
        found = []
        for entry in self.manifest["files"]:
            place = entry["path"].split("/")
            if place[0] == kind:
                split = place[1].removeprefix("split=") if place[1].startswith("split=") else None
                found.append((split, str(self.manifest["cities"][place[-2]]), self.folder / entry["path"]))
        return found


def find_snapshot(path: Path) -> Path:
    """The snapshot's folder: the path itself, or the one that LATEST names in it. Raises ConnectError when there is none."""
    if (path / MANIFEST).is_file():
        return path
    if (path / LATEST).is_file():
        return find_snapshot(path / SNAPSHOTS / (path / LATEST).read_text(encoding="utf-8").strip())
    raise ConnectError(
        f"{path} is no snapshot: it has no {MANIFEST}. Give a folder under snapshots/, or an --out folder."
    )


def open_snapshot(path: str | Path) -> Snapshot:
    """The snapshot in a local folder, or an `--out` folder's newest.

    Raises ConnectError when there is none, DataError when its manifest can't be read.
    """
    folder = find_snapshot(Path(path))
    return Snapshot(folder, manifest_of((folder / MANIFEST).read_bytes(), str(folder / MANIFEST)))


def manifest_of(content: bytes, where: str) -> dict[str, Any]:
    """A manifest that can be gone by. Raises DataError when it can't be read as one."""
    try:
        manifest: dict[str, Any] = json.loads(content)
        if outside := [entry["path"] for entry in manifest["files"] if not _inside(entry["path"])]:
            raise DataError(f"{where} can't be read as a manifest: {outside[0]!r} is outside of its folder.")
        snapshot = Snapshot(Path(), manifest)
        snapshot.parts("events")
        dict(snapshot.settings)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{where} can't be read as a manifest ({error}). Publish again.") from None
    return manifest


def _inside(path: str) -> bool:
    """Whether a path of a manifest stays in its snapshot's folder."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def folded(path: str) -> str:
    """A path in letters that every file system tells apart: some see no case, and no points at the end of a name."""
    return "/".join(name.rstrip(".") for name in path.lower().split("/"))


def read_vocabulary(path: Path) -> Vocabulary:
    """The ids of an earlier night, in the order of their indexes. Raises ConnectError when there is no snapshot."""
    folder = find_snapshot(path)
    users = read_file(folder, "users.parquet", ["user_id", "user_idx"]).sort("user_idx")
    items = read_file(folder, "items.parquet", ["item_id", "item_idx"]).sort("item_idx")
    return Vocabulary(users["user_id"], items["item_id"])


def read_dataset(snapshot: Snapshot, buckets: int | None = None) -> Dataset:
    """What the snapshot was made from, as its files have it: enough for other triples, without a database.

    Events are read when they are gone through, a bucket at a time. A snapshot of release 0.1 has no trips.parquet: a trip then
    starts where its first event says that day 1 was.
    """
    users = read_file(snapshot.folder, "users.parquet", ["user_id"])
    items = read_file(snapshot.folder, "items.parquet").select(_ITEM_COLUMNS)
    has_trips = (snapshot.folder / "trips.parquet").is_file()
    trips = read_file(snapshot.folder, "trips.parquet") if has_trips else _trips(snapshot)
    parts = snapshot.parts("events")
    height = sum(entry["rows"] for entry in snapshot.manifest["files"] if entry["path"].startswith("events/"))
    cities = tuple(sorted({city for _, city, _ in parts}, key=str.encode))
    count = buckets or buckets_for(height)
    vocabularies = Vocabularies(users["user_id"], items["item_id"], trips["trip_id"])
    read = partial(read_events, parts, vocabularies, count)
    profiles = partial(_profiles, snapshot.folder / "users.parquet")
    return Dataset(EventBuckets(count, cities, height, read, _published(snapshot)), users, items, trips, profiles)


def _profiles(path: Path) -> Iterator[pl.DataFrame]:
    """users.parquet without what each snapshot counts anew, some rows at a time; one frame at least."""
    with pq.ParquetFile(path.absolute()) as file:
        yield _uncounted(file.schema_arrow.empty_table())
        for batch in file.iter_batches():
            yield _uncounted(batch)


def _uncounted(rows: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    frame = pl.DataFrame(rows)
    return frame.drop(USER_COUNTS, strict=False)


def _published(snapshot: Snapshot) -> Published | None:
    """The snapshot's files of events, where this release with these libraries would write the same bytes again."""
    manifest = snapshot.manifest
    made_with = (manifest.get("tool", {}).get("version"), manifest.get("libraries", {}).get("pyarrow"))
    if made_with != (__version__, version("pyarrow")) or snapshot.settings.get("split") != "none":
        return None
    files: dict[str, list[Written]] = {}
    entries = {entry["path"]: entry for entry in manifest["files"]}
    for _, city, path in snapshot.parts("events"):
        entry = entries[path.relative_to(snapshot.folder).as_posix()]
        files.setdefault(city, []).append(Written(path, entry["rows"], entry["bytes"], entry["sha256"]))
    return Published(files, snapshot.settings["rows_per_file"])


def read_file(folder: Path, name: str, columns: list[str] | None = None) -> pl.DataFrame:
    """A Parquet file of a snapshot. Raises DataError where it can't be read as one, ConnectError where it is not there."""
    try:
        # Absolute and no pattern: a folder may be called out[1] or file:x.
        return pl.read_parquet((folder / name).absolute(), columns=columns, hive_partitioning=False, glob=False)
    except FileNotFoundError:
        raise ConnectError(f"{folder / name} is not there. `bpr-etl validate --snapshot` says what else is.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{folder / name} can't be read ({error}). Publish the snapshot again.") from None


def _trips(snapshot: Snapshot) -> pl.DataFrame:
    columns = ["trip_id", "day_number", "timestamp"]
    parts = [
        read_file(snapshot.folder, path.relative_to(snapshot.folder).as_posix(), columns).with_columns(
            city=pl.lit(city)
        )
        for _, city, path in snapshot.parts("events")
    ]
    events = pl.concat([_NO_EVENTS.select(*columns, "city"), *parts])
    day_one = pl.col("timestamp") * 1_000_000 - (pl.col("day_number").cast(pl.Int64) - 1) * _US_PER_DAY
    return events.group_by("trip_id").agg(pl.col("city").first(), start_us=day_one.min()).sort("trip_id")
