"""Write what a snapshot holds in the formats of other programs."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import polars.selectors as cs

from etl.errors import DataError, SettingsError
from etl.snapshots.reading.snapshot import Snapshot, damaged, read_file
from etl.snapshots.stores.store import translate_os_errors

REQUIRED_FILES = ("interactions/", "users.parquet", "items.parquet")
"""What is read of a snapshot."""

_INTERACTIONS = ["user_id", "item_id", "timestamp", "weight", "trip_id", "day_number", "position"]
_MISSING = [
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
]
"""What pandas, by which RecBole reads, takes for a missing value."""


def to_recbole(snapshot: Snapshot, folder: Path, check: Callable[[], None]) -> dict[str, int]:
    """Write RecBole's atomic files into a new folder, whose name is the data set's. Returns the rows of each file.

    Each part of a split has a file of interactions, as `benchmark_filename` reads them. `check` is called between files and
    raises to cancel. What is not finished is removed.

    Raises SettingsError if the folder exists, ConnectError if it can't be written, DataError if the snapshot has no
    interactions or is damaged, or if an id is a word that RecBole takes for a missing value.
    """
    folder = folder.absolute()
    if folder.exists() or not folder.name:
        raise SettingsError(f"{folder} is there already, and is left as it is. Name another folder.")
    if not snapshot.data_files("interactions"):
        raise DataError(
            f"{snapshot.url or snapshot.folder} has no interactions: an earlier release published it. Convert what "
            "`bpr-etl expand` makes of it."
        )
    staged = folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")
    with translate_os_errors(str(folder)):
        try:
            staged.mkdir(parents=True)
            rows = _write_atomic_files(snapshot, staged / folder.name, check)
            staged.rename(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return rows


def _write_atomic_files(snapshot: Snapshot, stem: Path, check: Callable[[], None]) -> dict[str, int]:
    files: list[tuple[str, Path, list[str] | None]] = [
        (kind, snapshot.folder / f"{kind}s.parquet", None) for kind in ("user", "item")
    ]
    for split, _, path in snapshot.data_files("interactions"):
        files.append((f"{split}.inter" if split else "inter", path, _INTERACTIONS))
    counts: dict[str, int] = {}
    for kind, path, columns in files:
        check()
        rows = read_file(path.parent, path.name, columns)
        try:
            if columns is None:
                _require_readable(rows[f"{kind}_id"])
                rows = rows.drop(f"{kind}_idx")
            _append(rows, Path(f"{stem}.{kind}"), counts)
        except pl.exceptions.PolarsError as error:  # a column that is not there, or a list
            raise damaged(path, error) from None
    return counts


def _require_readable(ids: pl.Series) -> None:
    if unreadable := ids.is_in(_MISSING).sum():
        raise DataError(
            f"{unreadable:,} values of {ids.name} are words that RecBole takes for a missing value, such as NA or null, so it "
            "would drop their rows. Train with another library, or change the ids."
        )


def _append(rows: pl.DataFrame, path: Path, counts: dict[str, int]) -> None:
    """Append rows to an atomic file, whose first line has the columns' types: `name:token_seq` is words, a number a float."""
    types = {name: "token" if dtype == pl.String else "float" for name, dtype in rows.schema.items()} | {
        "name": "token_seq"
    }
    plain = rows.with_columns(cs.float().fill_nan(None)).rename(lambda name: f"{name}:{types[name]}")
    with path.open("ab") as file:
        plain.write_csv(file, separator="\t", include_header=path.name not in counts)
    counts[path.name] = counts.get(path.name, 0) + rows.height
