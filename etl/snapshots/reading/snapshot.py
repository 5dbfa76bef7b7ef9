"""Read published snapshots: find one, parse its manifest, and read its dataset or its vocabulary. Nothing here writes."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import polars as pl
import polars.selectors as cs
import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import ConnectError, DataError, SettingsError, escape_control_characters
from etl.runtime.files import FileInfo
from etl.runtime.resources import __version__
from etl.snapshots.manifest import NAME_BYTES, FileEntry, file_entries, parse_manifest
from etl.snapshots.parquet import missing_file
from etl.snapshots.reading.batches import Batches, Plan, numeric_columns, scan_files
from etl.snapshots.reading.events import read_events
from etl.transform.buckets import bucket_count
from etl.transform.schemas import DIMENSIONS
from etl.triples.dataset import LISTS, BucketedEvents, Dataset, ReusableEventFiles
from etl.triples.partitions import Kind
from etl.triples.vocabulary import Vocabulary

if TYPE_CHECKING:
    from etl.snapshots.reading.torch_batches import TorchBatches

MANIFEST, LATEST, SNAPSHOTS, PROBE = "manifest.json", "LATEST", "snapshots", "probe.json"
REPORT, CARD, CROISSANT = "report.html", "README.md", "croissant.json"
STAGING = ".staging-"
"""Name prefix of staging folders. Readers ignore them; the lock holder may delete them."""

_LARGEST = 1 << 30
"""Bytes. The manifest of some millions of files is smaller."""

USER_COUNTS = ("n_trips", "n_events", "n_selected", "n_triples")
ITEM_COUNTS = ("n_candidate", "n_selected", "n_positive", "n_negative", "n_users")
"""The columns of the vocabularies that count what is in train."""

_TRIP_COLUMNS = ["trip_id", "city", "start_us"]
_TEXTS = ("surface", "model_name", "model_version", "city", "category", "name", "status", "neg_source")
_TYPES: dict[str, pl.DataType] = {
    **dict.fromkeys(
        ("user_id", "item_id", "event_id", "trip_id", "prev_item", "pos_item", "neg_item", *_TEXTS), pl.String()
    ),
    **dict.fromkeys(("user_idx", "item_idx", "prev_idx", "pos_idx", "neg_idx"), pl.UInt32()),
    **dict.fromkeys((*LISTS,), pl.List(pl.String())),
    **dict.fromkeys((*DIMENSIONS, *(f"{name}_source" for name in DIMENSIONS)), pl.String()),
    **dict.fromkeys(("cuisine_openness", *(f"{name}_confidence" for name in DIMENSIONS)), pl.Float64()),
    **dict.fromkeys(("day_number", "position", "step", "pos_n_before", "neg_n_before"), pl.Int32()),
    **dict.fromkeys(("timestamp", "start_us", *USER_COUNTS, *ITEM_COUNTS), pl.Int64()),
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
        *(USER_COUNTS + ITEM_COUNTS),
    }
)
_ITEM_COLUMNS = ("item_id", "item_idx", "city", "category", "name", "latitude", "longitude", "status")


@dataclass(frozen=True)
class Snapshot:
    """A published snapshot: its folder and its manifest. `url` is its location in an object store.

    With a `url`, `folder` is a local copy. If `remote` is true there is no copy: then only `scan`, `users`, `items`,
    `interactions`, `batches` and `torch` read the snapshot, directly from the store.
    """

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    url: str | None = None
    remote: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it was made with."""
        return dict(self.manifest["settings"])

    @cached_property
    def files(self) -> dict[str, FileEntry]:
        """The files of the manifest, by path."""
        return {entry.path: entry for entry in file_entries(self.manifest)}

    def data_files(self, kind: str) -> list[tuple[str | None, str, Path]]:
        """The files of a partitioned table, like `events`, in the manifest's order: (split, city, path).

        Raises SettingsError if they are in an object store.
        """
        if self.remote:
            raise SettingsError(f"{self.url} has no local files. Read it with `scan`, or copy it.")
        return [(split, city, self.folder / entry.path) for split, city, entry in self._entries(kind)]

    parts = data_files
    """The name of `data_files` in earlier releases."""

    def scan(self, table: Kind, split: str | None = None, cities: Sequence[str] | None = None) -> pl.LazyFrame:
        """Scan `triples`, `next`, `interactions` or `events`: the columns of its files, and `split` and `city` (strings).

        Without a split in the snapshot, the column `split` is null, and `split="train"` means all rows. Rows are in the
        manifest's order of files. Collecting the frame reads only the files of the chosen split and cities. Errors in
        reading are then those of Polars.

        Raises SettingsError if the snapshot has no such table, split or city.
        """
        entries, chosen = self._entries(table), self._chosen(table, split, cities)
        if not chosen:  # nothing of these cities is in this split: the columns without rows
            first_split, first_city, first = entries[0]
            return self._scan_partition(first_split, first_city, [first]).head(0)
        partitions: dict[tuple[str | None, str], list[FileEntry]] = {}
        for part, city, entry in chosen:
            partitions.setdefault((part, city), []).append(entry)
        return pl.concat([self._scan_partition(*key, found) for key, found in partitions.items()])

    @cached_property
    def users(self) -> pl.DataFrame:
        """The table `users`, in the order of `user_idx`."""
        return self._read_whole("users.parquet")

    @cached_property
    def items(self) -> pl.DataFrame:
        """The table `items`, in the order of `item_idx`."""
        return self._read_whole("items.parquet")

    def interactions(self, split: str | None = None, cities: Sequence[str] | None = None) -> pl.LazyFrame:
        """Scan the table `interactions`: see `scan`."""
        return self.scan("interactions", split, cities)

    def batches(
        self,
        table: Kind = "triples",
        split: str | None = "train",
        cities: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        **plan: Unpack[Plan],
    ) -> Batches:
        """Iterate over a table in batches of numpy arrays, as one of several ranks: `plan` is described under `Batches`.

        `columns` are by default all numbers. Ids are always given as indexes (`user_idx`, `pos_idx`, `neg_idx`,
        `prev_idx`, `item_idx`; int64), even if the files hold strings. An unknown distance is NaN.

        Raises SettingsError for a table, split, city or column that does not exist, or a plan that is not possible.
        """
        files = [(self.source(entry.path), entry.rows) for _, _, entry in self._chosen(table, split, cities)]
        schema = self.scan(table).drop("split", "city").collect_schema()
        ids = self.users["user_id"], self.items["item_id"]
        return Batches(files, numeric_columns(schema, columns, *ids), **plan)

    def torch(
        self,
        table: Kind = "triples",
        split: str | None = "train",
        cities: Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        **plan: Unpack[Plan],
    ) -> TorchBatches:
        """Iterate over a table as `batches` does, in tensors: a PyTorch `IterableDataset`, with `len` and `set_epoch`.

        Give it to a `DataLoader` with `batch_size=None`. The workers of a rank share its batches, whose number stays the same.
        Raises SettingsError also if PyTorch is not installed.
        """
        from etl.snapshots.reading.torch_batches import TorchBatches  # noqa: PLC0415 - only this needs PyTorch

        return TorchBatches(self.batches(table, split, cities, columns, **plan))

    def _chosen(
        self, table: Kind, split: str | None, cities: Sequence[str] | None
    ) -> list[tuple[str | None, str, FileEntry]]:
        """The files of a table in a split and some cities, by default all, as (split, city, entry). Raises as `scan`."""
        entries = self._entries(table)
        if not entries:
            there = [kind for kind in get_args(Kind) if self._entries(kind)]
            raise SettingsError(f"This snapshot has no table {table!r}, but {', '.join(there)}.")
        splits = {part for part, _, _ in entries}
        if splits == {None} and split == "train":
            split = None
        if split is not None and split not in splits:
            names = ", ".join(sorted(part for part in splits if part)) or "none: it was published without --split"
            raise SettingsError(f"This snapshot has no split {split!r}. It has {names}.")
        unknown = sorted({*(cities or ())} - {*self.manifest["cities"].values()})
        if unknown:
            raise SettingsError(
                f"This snapshot has no city {escape_control_characters(unknown[0])!r}. The manifest's `cities` lists them."
            )
        return [each for each in entries if split in {None, each[0]} and (cities is None or each[1] in cities)]

    def source(self, path: str) -> str:
        """Where Polars reads a file of the snapshot: its absolute path or its URL."""
        return f"{self.url}/{path}" if self.remote else str((self.folder / path).absolute())

    def _entries(self, kind: str) -> list[tuple[str | None, str, FileEntry]]:
        """The files of a partitioned table in the manifest's order: (split, city, entry)."""
        found = []
        for path, entry in self.files.items():
            first, *folders = path.split("/")
            if first == kind:
                split = folders[0].removeprefix("split=") if folders[0].startswith("split=") else None
                found.append((split, str(self.manifest["cities"][folders[-2]]), entry))
        return found

    def _scan_partition(self, split: str | None, city: str, files: Sequence[FileEntry]) -> pl.LazyFrame:
        rows = scan_files([self.source(entry.path) for entry in files])
        return rows.with_columns(split=pl.lit(split, pl.String), city=pl.lit(city, pl.String))

    def _read_whole(self, name: str) -> pl.DataFrame:
        return scan_files([self.source(name)]).collect() if self.remote else read_file(self.folder, name)


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

    Raises ConnectError if there is none or it can't be read, DataError if its manifest is damaged or lists something
    that is not a file.
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
    """Fold a path as the least strict file system does: without case, and without dots at the end of a name."""
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
