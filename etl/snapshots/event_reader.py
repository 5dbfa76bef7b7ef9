"""The events of a snapshot, read back by user bucket: memory follows the bucket, however many events there are.

Every file of `events/` is in one order, which begins with the user's hash: a bucket's rows stand together in each, and all
files are read side by side, as far as the bucket reaches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import ConnectError, DataError
from etl.transform.arrays import list_series
from etl.transform.buckets import bucket_expr
from etl.transform.hashing import sha256_hex
from etl.triples.dataset import ENCODED_EVENTS, LISTS

_BATCH = 65_536
_TEXTS = {"user_idx": "user_id", "trip_idx": "trip_id"} | {index: text for text, index in LISTS.items()}
_ALWAYS = frozenset({"event_id", "user_idx", "trip_idx", "day_number", "timestamp"})
_MOMENTS = (-62_135_596_800, 253_402_300_799)
"""The seconds of the years 1 to 9999."""
_DICTIONARIES = ["user_id", "trip_id", *(f"{name}.list.element" for name in LISTS)]

Part = tuple[str | None, str, Path]
"""A file of events: its split, its city, where it is."""


@dataclass(frozen=True)
class Vocabularies:
    """The ids that events name, in the order of their codes."""

    users: pl.Series
    items: pl.Series
    trips: pl.Series

    @cached_property
    def lookups(self) -> dict[str, _IdIndex]:
        """By column of ids what finds their codes."""
        items = _IdIndex(self.items)
        return {"user_id": _IdIndex(self.users), "trip_id": _IdIndex(self.trips), **dict.fromkeys(LISTS, items)}


class _UnknownIdError(Exception):
    """An id that the vocabulary doesn't have."""


class _IdIndex:
    """Finds ids in a vocabulary by halving: nothing is built anew for each batch, however many ids there are."""

    def __init__(self, ids: pl.Series) -> None:
        self._order = None if ids.is_sorted() else ids.arg_sort()
        self._ids = ids if self._order is None else ids.gather(self._order)

    def rows(self, ids: pl.Series) -> pl.Series:
        """The row of each (UInt32). Raises _UnknownIdError where one isn't there."""
        places = self._ids.search_sorted(ids).clip(0, max(0, len(self._ids) - 1))
        if len(ids) and (not len(self._ids) or not self._ids.gather(places).equals(ids)):
            raise _UnknownIdError
        return (places if self._order is None else self._order.gather(places)).cast(pl.UInt32)


def read_events(
    parts: Sequence[Part], vocabularies: Vocabularies, buckets: int, columns: Collection[str]
) -> Iterator[pl.DataFrame]:
    """The events of all parts as `Dataset.events` has them, bucket by bucket; columns that nobody wants are empty.

    The files have whole seconds. Without a split, events of a user's same second keep the order of their file; with one they
    come from several, and are put in order by trip, day and id. Raises ConnectError where a file is not there, DataError where
    it can't be read, or names what the vocabularies don't have.
    """
    users = vocabularies.users.alias("user_id").to_frame().with_row_index("user_idx")
    bucket = users.select(bucket_expr(pl.col("user_id"), buckets)).to_series().to_numpy()
    rank = np.empty(users.height, np.uint32)
    in_order = users.with_columns(hash=sha256_hex(pl.col("user_id"))).sort("hash", "user_id")["user_idx"]
    rank[in_order.to_numpy()] = np.arange(users.height, dtype=np.uint32)
    within = ["timestamp"]
    if any(split is not None for split, _, _ in parts):
        within += ["trip_idx", "day_number", "event_id"]
    # The parts of a partition are one file after the other.
    folders = {path.parent: city for _, city, path in parts}
    cursors = [
        _PartitionReader(
            [path for _, _, path in parts if path.parent == folder], city, vocabularies, bucket, frozenset(columns)
        )
        for folder, city in folders.items()
    ]
    for number in range(buckets):
        rows = pl.concat([ENCODED_EVENTS, *(cursor.read_bucket(number) for cursor in cursors)])
        place = pl.Series("place", rank[rows["user_idx"].to_numpy()])
        yield rows.with_columns(place).sort("place", *within, maintain_order=True).drop("place")


class _PartitionReader:
    """A partition's events, read as far as the buckets that were asked for reach."""

    def __init__(
        self,
        paths: Sequence[Path],
        city: str,
        vocabularies: Vocabularies,
        bucket: npt.NDArray[np.uint32],
        wanted: frozenset[str],
    ) -> None:
        self._batches = _batches(paths, city, vocabularies, wanted)
        self._bucket = bucket
        self._paths = paths
        self._waiting = ENCODED_EVENTS

    def read_bucket(self, bucket: int) -> pl.DataFrame:
        """The rows of this bucket, those before it being read already."""
        rows = [ENCODED_EVENTS]
        while True:
            of_rows = self._bucket[self._waiting["user_idx"].to_numpy()]
            if len(of_rows) and (of_rows[0] < bucket or (np.diff(of_rows.astype(np.int64)) < 0).any()):
                raise DataError(
                    f"The events in {self._paths[0].parent} are not in the order of their users' hashes. Publish them again."
                )
            here = int(np.searchsorted(of_rows, bucket, side="right"))
            rows.append(self._waiting[:here])
            self._waiting = self._waiting[here:]
            if self._waiting.height:
                break
            following = next(self._batches, None)
            if following is None:
                break
            self._waiting = following
        return pl.concat(rows)


def _batches(
    paths: Sequence[Path], city: str, vocabularies: Vocabularies, wanted: frozenset[str]
) -> Iterator[pl.DataFrame]:
    names = {name: _TEXTS.get(name, name) for name in ENCODED_EVENTS.columns[:-1] if name in wanted | _ALWAYS}
    for path in paths:
        try:
            with pq.ParquetFile(path.absolute(), read_dictionary=_DICTIONARIES) as file:
                for batch in file.iter_batches(_BATCH, columns=list(names.values())):
                    rows = _coded(batch, names, city, vocabularies)
                    if (
                        any(rows[name].has_nulls() for name in _ALWAYS)
                        or not rows["timestamp"].is_between(*_MOMENTS).all()
                    ):
                        raise DataError(f"{path} has a null, or a timestamp out of range. Publish the snapshot again.")
                    yield rows
        except FileNotFoundError:
            raise ConnectError(f"{path} is not there. `bpr-etl validate --snapshot` says what else is.") from None
        except _UnknownIdError:
            raise DataError(
                f"{path} names an id that users, items or trips don't have. Publish the snapshot again."
            ) from None
        except PermissionError:  # no fault of the file's
            raise
        except (pa.ArrowException, OSError, KeyError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path} can't be read ({error}). Publish the snapshot again.") from None


def _coded(batch: pa.RecordBatch, names: Mapping[str, str], city: str, vocabularies: Vocabularies) -> pl.DataFrame:
    lookups = vocabularies.lookups
    columns = {}
    for name, text in names.items():
        column = batch.column(text)
        if text in LISTS:
            columns[name] = list_series(column.value_lengths().to_numpy(), _codes(column.flatten(), lookups[text]))
        else:
            columns[name] = _codes(column, lookups[text]) if text in lookups else pl.Series(column)
    unread = {
        name: pl.lit([], dtype=dtype) if isinstance(dtype, pl.List) else pl.lit("")
        for name, dtype in ENCODED_EVENTS.schema.items()
        if name not in names
    }
    whole = pl.DataFrame(columns).with_columns(**unread | {"city": pl.lit(city)})
    return whole.select(ENCODED_EVENTS.columns).cast(ENCODED_EVENTS.schema)


def _codes(column: pa.DictionaryArray, lookup: _IdIndex) -> pl.Series:
    """The codes of a column of texts: each text of its dictionary is looked up once."""
    return lookup.rows(pl.Series(column.dictionary, dtype=pl.String)).gather(pl.Series(column.indices))
