"""Read published snapshots: find one, parse its manifest, and read its dataset or its vocabulary. Nothing here writes."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import ConnectError, DataError, escape_control_characters
from etl.runtime.files import FileInfo
from etl.runtime.resources import __version__
from etl.snapshots.event_reader import read_events
from etl.snapshots.manifest import NAME_BYTES, FileEntry, file_entries, parse_manifest
from etl.snapshots.parquet import missing_file
from etl.transform.buckets import bucket_count
from etl.transform.schemas import DIMENSIONS
from etl.triples.dataset import LISTS, BucketedEvents, Dataset, ReusableEventFiles
from etl.triples.vocabulary import Vocabulary

MANIFEST, LATEST, SNAPSHOTS, PROBE = "manifest.json", "LATEST", "snapshots", "probe.json"
REPORT = "report.html"
STAGING = ".staging-"
"""Name prefix of staging folders. Readers ignore them; the lock holder may delete them."""

_LARGEST = 1 << 30
"""Bytes. The manifest of some millions of files is smaller."""

_TRIP_COLUMNS = ["trip_id", "city", "start_us"]
_TEXTS = ("surface", "model_name", "model_version", "city", "category", "name", "status", "neg_source")
_TYPES: dict[str, pl.DataType] = {
    **dict.fromkeys(
        ("user_id", "item_id", "event_id", "trip_id", "prev_item", "pos_item", "neg_item", *_TEXTS), pl.String()
    ),
    **dict.fromkeys(("user_idx", "item_idx", "prev_idx", "pos_idx", "neg_idx"), pl.UInt32()),
    **dict.fromkeys((*LISTS,), pl.List(pl.String())),
    **dict.fromkeys(DIMENSIONS, pl.String()),
    "cuisine_openness": pl.Float64(),
    **dict.fromkeys(("day_number", "position", "step", "pos_n_before", "neg_n_before"), pl.Int32()),
    "timestamp": pl.Int64(),
    "start_us": pl.Int64(),
    "latitude": pl.Float64(),
    "longitude": pl.Float64(),
    **dict.fromkeys(("weight", "pos_km", "neg_km", "pos_days_since", "neg_days_since"), pl.Float32()),
    **dict.fromkeys(("pos_in_candidates", "is_new", "same_day"), pl.Boolean()),
}
"""The types of published columns, the same in every file. Columns `affinity_...` are Float64."""
_NEVER_NULL = frozenset(
    {
        *(
            "user_id",
            "user_idx",
            "item_id",
            "item_idx",
            "event_id",
            "trip_id",
            "prev_item",
            "pos_item",
            "neg_item",
            "prev_idx",
            "pos_idx",
            "neg_idx",
        ),
        *("day_number", "position", "step", "same_day", "is_new", "timestamp", "weight"),
    }
)
_ITEM_COLUMNS = ("item_id", "item_idx", "city", "category", "name", "latitude", "longitude", "status")
USER_COUNTS = ("n_trips", "n_events", "n_selected", "n_triples")
ITEM_COUNTS = ("n_candidate", "n_selected", "n_positive", "n_negative", "n_users")
"""The columns of the vocabularies that count what is in train."""


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot: its folder and its manifest. `url` is its location if the folder is a copy."""

    folder: Path
    manifest: dict[str, Any]
    url: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it was made with."""
        return dict(self.manifest["settings"])

    @cached_property
    def files(self) -> dict[str, FileEntry]:
        """The files of the manifest, by path."""
        return {entry.path: entry for entry in file_entries(self.manifest)}

    def data_files(self, kind: str) -> list[tuple[str | None, str, Path]]:
        """The files of a partitioned table, like `events`, in the manifest's order: (split, city, path)."""
        found = []
        for path in self.files:
            first, *folders = path.split("/")
            if first == kind:
                split = folders[0].removeprefix("split=") if folders[0].startswith("split=") else None
                found.append((split, str(self.manifest["cities"][folders[-2]]), self.folder / path))
        return found

    parts = data_files
    """The name of `data_files` in earlier releases."""


def find_snapshot(path: Path) -> Path:
    """Return a snapshot's folder: the path itself, or the one that LATEST in it names.

    Raises ConnectError if there is none or it can't be read, DataError if LATEST holds no name.
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
    """Open the snapshot in a local folder, or the newest of an `--out` folder.

    Raises ConnectError if there is none or it can't be read, DataError if its manifest is damaged, or lists what is no file.
    """
    folder = find_snapshot(Path(path))
    where = folder / MANIFEST
    snapshot = Snapshot(folder, parse_manifest(read_small(where) or b"", str(where)))
    for listed in snapshot.files:
        require_regular(folder / listed)
    return snapshot


def named_by(latest: bytes | None, out: str) -> str | None:
    """The name in LATEST; None without LATEST. Raises DataError if it is no name of a folder."""
    if latest is None:
        return None
    name = latest.decode("utf-8", "replace").strip()
    if not name or "/" in name or name.startswith(".") or not name.isprintable() or len(name.encode()) > NAME_BYTES:
        raise DataError(
            f"{LATEST} in {out} does not hold the name of a snapshot ({escape_control_characters(name[:60])!r}). "
            "Write the name of a folder "
            f"in {SNAPSHOTS}/ into it, or delete it."
        )
    return name


def read_small(path: Path) -> bytes | None:
    """Read a small file; None if it doesn't exist. Raises DataError if it is no file, ConnectError if it can't be read."""
    try:
        require_regular(path)
        if path.stat().st_size > _LARGEST:
            raise DataError(
                f"{escape_control_characters(str(path))} has more than {_LARGEST >> 30} GiB, which is more than bpr-etl writes."
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from None


def require_regular(path: Path) -> None:
    """Raise DataError if a path is no regular file: reading a pipe or a device may never end."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # reading it raises a better error
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{escape_control_characters(str(path))} is not a file. Take it away, or publish to another folder."
        )


def unreadable(path: Path, error: OSError) -> ConnectError:
    """The error if a path can't be read."""
    return ConnectError(
        f"{escape_control_characters(str(path))} can't be read: {error.strerror or error}. Check its rights."
    )


def folded(path: str) -> str:
    """Fold a path as the least discerning file system does: without case, and without dots at the end of a name."""
    return "/".join(name.rstrip(".") for name in path.lower().split("/"))


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the ids of users and items of a snapshot, in index order.

    Raises ConnectError if there is no snapshot, DataError if its files are damaged.
    """
    folder = find_snapshot(path)
    users, items = (_read_vocabulary(folder, kind, ()) for kind in ("user", "item"))
    return Vocabulary(users["user_id"], items["item_id"])


def _read_vocabulary(folder: Path, kind: Literal["user", "item"], columns: Sequence[str]) -> pl.DataFrame:
    """Read ids and further columns of users.parquet or items.parquet. Raises DataError unless indexes are row numbers."""
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
    """Read what the snapshot was made from: enough to generate other triples without a database.

    Iterating the events reads them, a bucket at a time. `buckets` is by default what a run would choose.
    """
    users = _read_vocabulary(snapshot.folder, "user", ()).select("user_id")
    items = _read_vocabulary(snapshot.folder, "item", _ITEM_COLUMNS).select(_ITEM_COLUMNS)
    trips = read_file(snapshot.folder, "trips.parquet", _TRIP_COLUMNS)
    parts = snapshot.data_files("events")
    height = sum(entry.rows for path, entry in snapshot.files.items() if path.startswith("events/"))
    cities = tuple(sorted({city for _, city, _ in parts}, key=str.encode))
    count = buckets or bucket_count(height)
    vocabulary = Vocabulary(users["user_id"], items["item_id"], trips["trip_id"])
    events = BucketedEvents(
        count, cities, height, partial(read_events, parts, vocabulary, count), _reusable_event_files(snapshot)
    )
    return Dataset(events, users, items, trips, partial(_user_features, snapshot.folder / "users.parquet"))


def _user_features(path: Path) -> Iterator[pl.DataFrame]:
    """Read users.parquet without the counts of train, some rows at a time; at least one frame."""
    try:
        with pq.ParquetFile(path.absolute()) as file:
            empty = _drop_counts(file.schema_arrow.empty_table())
            yield require_columns(empty, path)
            for batch in file.iter_batches():
                yield _drop_counts(batch)
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError) as error:
        raise damaged(path, error) from None


def _drop_counts(rows: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """Return the rows without the counts. A number that is NaN, which a run never publishes, is unknown."""
    return pl.DataFrame(rows).drop(USER_COUNTS, strict=False).with_columns(cs.float().fill_nan(None))


def _reusable_event_files(snapshot: Snapshot) -> ReusableEventFiles | None:
    """The snapshot's files of events, if this release with these libraries would write the same bytes again."""
    manifest = snapshot.manifest
    made_with = (manifest.get("tool", {}).get("version"), manifest.get("libraries", {}).get("pyarrow"))
    if made_with != (__version__, version("pyarrow")) or snapshot.settings.get("split") != "none":
        return None
    files: dict[str, list[FileInfo]] = {}
    for _, city, path in snapshot.data_files("events"):
        entry = snapshot.files[path.relative_to(snapshot.folder).as_posix()]
        files.setdefault(city, []).append(FileInfo(path, entry.rows, entry.bytes, entry.sha256))
    return ReusableEventFiles(files, snapshot.settings["rows_per_file"])


def read_file(folder: Path, name: str, columns: list[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file of a snapshot.

    Raises ConnectError if it is missing, DataError if it can't be read or its columns are not those of published files.
    """
    path = folder / name
    try:
        # Absolute and no pattern: a folder may be called out[1] or file:x.
        frame = pl.read_parquet(path.absolute(), columns=columns, hive_partitioning=False, glob=False)
    except FileNotFoundError:
        raise missing_file(path) from None
    except PermissionError as error:
        raise unreadable(path, error) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise damaged(path, error) from None
    return require_columns(frame, path)


def require_columns(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Return the frame. Raises DataError if a column has another type than in published files, or a null it can't have."""
    for name, found in frame.schema.items():
        wanted = pl.Float64() if name.startswith("affinity_") else _TYPES.get(name, found)
        if found != wanted:
            raise damaged(path, f"{name} is {found}, and not {wanted}")
        if name in _NEVER_NULL and frame[name].has_nulls():
            raise damaged(path, f"{name} has nulls")
    return frame


def damaged(path: Path, why: object) -> DataError:
    """The error if a file of a snapshot is damaged."""
    return DataError(escape_control_characters(f"{path} can't be read ({why}). Publish the snapshot again."))
