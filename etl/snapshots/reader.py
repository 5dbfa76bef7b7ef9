"""Published snapshots, read back: where one is, its manifest, its dataset, its vocabulary. Nothing here writes."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import ConnectError, DataError, escape_control_characters
from etl.runtime.files import FileInfo
from etl.runtime.resources import __version__
from etl.snapshots.event_reader import Vocabularies, read_events
from etl.snapshots.manifest import parse_manifest
from etl.transform.buckets import bucket_count
from etl.transform.schemas import DIMENSIONS
from etl.triples.dataset import LISTS, BucketedEvents, Dataset, ReusableEventFiles, Vocabulary

MANIFEST, LATEST, SNAPSHOTS, PROBE = "manifest.json", "LATEST", "snapshots", "probe.json"
REPORT = "report.html"
STAGING = ".staging-"
"""How what is not finished begins. Nobody reads it, and who holds the folder may take it away."""

_NAME_BYTES = 255
_LARGEST = 1 << 30
"""Bytes of a manifest of some millions of files."""

_TRIP_COLUMNS = ["trip_id", "city", "start_us"]
_US_PER_DAY = 86_400_000_000
_NO_EVENTS = pl.DataFrame(
    schema={"trip_id": pl.String, "day_number": pl.Int32, "timestamp": pl.Int64, "city": pl.String}
)
_TEXTS = ("surface", "model_name", "model_version", "city", "category", "name", "status", "neg_source")
_TYPES: dict[str, pl.DataType] = {
    **dict.fromkeys(("user_id", "item_id", "event_id", "trip_id", "pos_item", "neg_item", *_TEXTS), pl.String()),
    **dict.fromkeys(("user_idx", "item_idx", "pos_idx", "neg_idx"), pl.UInt32()),
    **dict.fromkeys((*LISTS,), pl.List(pl.String())),
    **dict.fromkeys(DIMENSIONS, pl.String()),
    "cuisine_openness": pl.Float64(),
    "day_number": pl.Int32(),
    "timestamp": pl.Int64(),
    "start_us": pl.Int64(),
    "latitude": pl.Float64(),
    "longitude": pl.Float64(),
    "weight": pl.Float32(),
    "pos_in_candidates": pl.Boolean(),
}
"""The types of published columns: a name means the same in every file. An `affinity_...` is a Float64."""
_NEVER_NULL = frozenset(
    {
        *(
            "user_id",
            "user_idx",
            "item_id",
            "item_idx",
            "event_id",
            "trip_id",
            "pos_item",
            "neg_item",
            "pos_idx",
            "neg_idx",
        ),
        *("day_number", "timestamp", "weight"),
    }
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

    def data_files(self, kind: str) -> list[tuple[str | None, str, Path]]:
        """The files of `events` or `triples`, in the manifest's order: (split, city, path)."""
        found = []
        for entry in self.manifest["files"]:
            place = entry["path"].split("/")
            if place[0] == kind:
                split = place[1].removeprefix("split=") if place[1].startswith("split=") else None
                found.append((split, str(self.manifest["cities"][place[-2]]), self.folder / entry["path"]))
        return found


def find_snapshot(path: Path) -> Path:
    """The snapshot's folder: the path itself, or the one that LATEST names in it.

    Raises ConnectError where there is none or it can't be read, DataError where LATEST holds no name.
    """
    try:
        if (path / MANIFEST).is_file():
            return path
        name = named_by(read_small(path / LATEST), str(path))
        if name and (path / SNAPSHOTS / name / MANIFEST).is_file():
            return path / SNAPSHOTS / name
    except OSError as error:
        raise unreadable(path, error) from None
    raise ConnectError(
        f"{path} is no snapshot: it has no {MANIFEST}. Give a folder under snapshots/, or an --out folder."
    )


def open_snapshot(path: str | Path) -> Snapshot:
    """The snapshot in a local folder, or an `--out` folder's newest.

    Raises ConnectError when there is none or it can't be read, DataError when its manifest is none, or lists what is no file.
    """
    folder = find_snapshot(Path(path))
    where = folder / MANIFEST
    snapshot = Snapshot(folder, parse_manifest(read_small(where) or b"", str(where)))
    for entry in snapshot.manifest["files"]:
        require_regular(folder / entry["path"])
    return snapshot


def named_by(latest: bytes | None, out: str) -> str | None:
    """The name that LATEST holds; None where there is no LATEST. Raises DataError where it is no name of a folder."""
    if latest is None:
        return None
    name = latest.decode("utf-8", "replace").strip()
    if not name or "/" in name or name.startswith(".") or not name.isprintable() or len(name.encode()) > _NAME_BYTES:
        raise DataError(
            f"{LATEST} in {out} does not hold the name of a snapshot ({escape_control_characters(name[:60])!r}). "
            "Write the name of a folder "
            f"in {SNAPSHOTS}/ into it, or delete it."
        )
    return name


def read_small(path: Path) -> bytes | None:
    """The content of a small file; None where there is none. Raises DataError where it is no file, ConnectError."""
    try:
        require_regular(path)
        if path.stat().st_size > _LARGEST:
            raise DataError(
                f"{escape_control_characters(str(path))} has more than {_LARGEST >> 30} GiB: no file of bpr-etl has so many."
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from None


def require_regular(path: Path) -> None:
    """Raise DataError where something else than a file is at a path: to read a pipe or a device may never end."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever reads it says so
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{escape_control_characters(str(path))} is not a file. Take it away, or publish to another folder."
        )


def unreadable(path: Path, error: OSError) -> ConnectError:
    """The error of a path that can't be read."""
    return ConnectError(
        f"{escape_control_characters(str(path))} can't be read: {error.strerror or error}. Check its rights."
    )


def folded(path: str) -> str:
    """A path in letters that every file system tells apart: some see no case, and no points at the end of a name."""
    return "/".join(name.rstrip(".") for name in path.lower().split("/"))


def read_vocabulary(path: Path) -> Vocabulary:
    """The ids of an earlier run, in the order of their indexes.

    Raises ConnectError where there is no snapshot, DataError where its files are not as published ones are.
    """
    folder = find_snapshot(path)
    users, items = (_read_vocabulary(folder, kind, ()) for kind in ("user", "item"))
    return Vocabulary(users["user_id"], items["item_id"])


def _read_vocabulary(folder: Path, kind: Literal["user", "item"], columns: Sequence[str]) -> pl.DataFrame:
    """The ids and further columns of users.parquet or items.parquet. Raises DataError unless the index is the row's number."""
    key, index, name = f"{kind}_id", f"{kind}_idx", f"{kind}s.parquet"
    frame = read_file(folder, name, list(dict.fromkeys([key, index, *columns])))
    if (
        not frame[index].equals(pl.int_range(frame.height, dtype=pl.UInt32, eager=True))
        or not frame[key].is_unique().all()
    ):
        raise DataError(
            f"{folder / name} is not in the order of its {index}, or has an id twice. Publish the snapshot again."
        )
    return frame


def read_dataset(snapshot: Snapshot, buckets: int | None = None) -> Dataset:
    """What the snapshot was made from, as its files have it: enough for other triples, without a database.

    Events are read when they are gone through, a bucket at a time. A snapshot of release 0.1 has no trips.parquet: a trip then
    starts where its first event says that day 1 was.
    """
    users = _read_vocabulary(snapshot.folder, "user", ()).select("user_id")
    items = _read_vocabulary(snapshot.folder, "item", _ITEM_COLUMNS).select(_ITEM_COLUMNS)
    has_trips = (snapshot.folder / "trips.parquet").is_file()
    trips = read_file(snapshot.folder, "trips.parquet", _TRIP_COLUMNS) if has_trips else _trips(snapshot)
    parts = snapshot.data_files("events")
    height = sum(entry["rows"] for entry in snapshot.manifest["files"] if entry["path"].startswith("events/"))
    cities = tuple(sorted({city for _, city, _ in parts}, key=str.encode))
    count = buckets or bucket_count(height)
    vocabularies = Vocabularies(users["user_id"], items["item_id"], trips["trip_id"])
    read = partial(read_events, parts, vocabularies, count)
    profiles = partial(_profiles, snapshot.folder / "users.parquet")
    return Dataset(
        BucketedEvents(count, cities, height, read, _reusable_event_files(snapshot)), users, items, trips, profiles
    )


def _profiles(path: Path) -> Iterator[pl.DataFrame]:
    """users.parquet without what each snapshot counts anew, some rows at a time; one frame at least."""
    try:
        with pq.ParquetFile(path.absolute()) as file:
            empty = _drop_counts(file.schema_arrow.empty_table())
            yield require_columns(empty, path)
            for batch in file.iter_batches():
                yield _drop_counts(batch)
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError) as error:
        raise damaged(path, error) from None


def _drop_counts(rows: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    frame = pl.DataFrame(rows)
    return frame.drop(USER_COUNTS, strict=False)


def _reusable_event_files(snapshot: Snapshot) -> ReusableEventFiles | None:
    """The snapshot's files of events, where this release with these libraries would write the same bytes again."""
    manifest = snapshot.manifest
    made_with = (manifest.get("tool", {}).get("version"), manifest.get("libraries", {}).get("pyarrow"))
    if made_with != (__version__, version("pyarrow")) or snapshot.settings.get("split") != "none":
        return None
    files: dict[str, list[FileInfo]] = {}
    entries = {entry["path"]: entry for entry in manifest["files"]}
    for _, city, path in snapshot.data_files("events"):
        entry = entries[path.relative_to(snapshot.folder).as_posix()]
        files.setdefault(city, []).append(FileInfo(path, entry["rows"], entry["bytes"], entry["sha256"]))
    return ReusableEventFiles(files, snapshot.settings["rows_per_file"])


def read_file(folder: Path, name: str, columns: list[str] | None = None) -> pl.DataFrame:
    """A Parquet file of a snapshot.

    Raises ConnectError where it is not there, DataError where it can't be read or is not as published ones are.
    """
    path = folder / name
    try:
        # Absolute and no pattern: a folder may be called out[1] or file:x.
        frame = pl.read_parquet(path.absolute(), columns=columns, hive_partitioning=False, glob=False)
    except FileNotFoundError:
        raise ConnectError(f"{path} is not there. `bpr-etl validate --snapshot` says what else is.") from None
    except PermissionError as error:
        raise unreadable(path, error) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise damaged(path, error) from None
    return require_columns(frame, path)


def require_columns(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The frame itself. Raises DataError where a column has another type than published ones have, or a null it can't have."""
    for name, found in frame.schema.items():
        wanted = pl.Float64() if name.startswith("affinity_") else _TYPES.get(name, found)
        if found != wanted:
            raise damaged(path, f"{name} is {found}, and not {wanted}")
        if name in _NEVER_NULL and frame[name].has_nulls():
            raise damaged(path, f"{name} has nulls")
    return frame


def damaged(path: Path, why: object) -> DataError:
    """The error of a file of a snapshot that can't be read as one."""
    return DataError(escape_control_characters(f"{path} can't be read ({why}). Publish the snapshot again."))


def _trips(snapshot: Snapshot) -> pl.DataFrame:
    columns = ["trip_id", "day_number", "timestamp"]
    parts = [
        read_file(snapshot.folder, path.relative_to(snapshot.folder).as_posix(), columns).with_columns(
            city=pl.lit(city)
        )
        for _, city, path in snapshot.data_files("events")
    ]
    events = pl.concat([_NO_EVENTS.select(*columns, "city"), *parts])
    day_one = pl.col("timestamp") * 1_000_000 - (pl.col("day_number").cast(pl.Int64) - 1) * _US_PER_DAY
    return events.group_by("trip_id").agg(pl.col("city").first(), start_us=day_one.min()).sort("trip_id")
