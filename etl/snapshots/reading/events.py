"""Read the events of a snapshot by user bucket: memory depends on the bucket's size, not on the number of events.

Every file of `events/` is sorted by the user's hash first, so the rows of a bucket are adjacent in each. All partitions
are read in parallel, each up to the end of the bucket.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import DataError
from etl.snapshots.parquet import missing_file
from etl.transform.arrays import list_series
from etl.transform.buckets import bucket_expr
from etl.transform.hashing import sha256_hex
from etl.triples.dataset import ENCODED_EVENTS, LISTS
from etl.triples.vocabulary import IdIndex, UnknownIdError, Vocabulary

_BATCH = 32_768
_TEXTS = {"user_idx": "user_id", "trip_idx": "trip_id"} | {index: text for text, index in LISTS.items()}
_ALWAYS = frozenset({"event_id", "user_idx", "trip_idx", "day_number", "timestamp"})
_MOMENTS = (-62_135_596_800, 253_402_300_799)
"""The first and last second of the years 1 to 9999."""
_DICTIONARIES = ["user_id", "trip_id", *(f"{name}.list.element" for name in LISTS)]

Part = tuple[str | None, str, Path]
"""A file of events: split, city, path."""

Indexes = Mapping[str, IdIndex]
"""By column of ids, what finds their indexes."""


def read_events(
    parts: Sequence[Part], vocabulary: Vocabulary, buckets: int, columns: Collection[str]
) -> Iterator[pl.DataFrame]:
    """Yield the events of all parts as `Dataset.events` has them, bucket by bucket; columns not in `columns` are empty.

    The files have whole seconds. Events of a user's same second are sorted by trip, day and id; without a split, those of a
    city keep the order of their file. Raises ConnectError if a file is missing, DataError if it can't be read or names an id
    that the vocabulary doesn't have.
    """
    indexes = id_indexes(vocabulary)
    users = vocabulary.users.alias("user_id").to_frame().with_row_index("user_idx")
    bucket = users.select(bucket_expr(pl.col("user_id"), buckets)).to_series().to_numpy()
    rank = np.empty(users.height, np.uint32)
    in_order = users.with_columns(hash=sha256_hex(pl.col("user_id"))).sort("hash", "user_id")["user_idx"]
    rank[in_order.to_numpy()] = np.arange(users.height, dtype=np.uint32)
    split = any(split is not None for split, _, _ in parts)
    none = ENCODED_EVENTS.select(name for name in ENCODED_EVENTS.columns if name in {*columns, "city"} | _ALWAYS)
    # Added last, as columns of one value: nothing is copied for them.
    unread = [
        pl.lit([] if isinstance(dtype, pl.List) else "", dtype).alias(name)
        for name, dtype in ENCODED_EVENTS.drop(none.columns).schema.items()
    ]
    # The parts of a partition are read one after the other.
    folders = {path.parent: city for _, city, path in parts}
    cursors = [
        _PartitionReader([path for _, _, path in parts if path.parent == folder], city, indexes, bucket, none)
        for folder, city in folders.items()
    ]
    for number in range(buckets):
        rows = pl.concat([none, *(cursor.read_bucket(number) for cursor in cursors)])
        place = pl.Series("place", rank[rows["user_idx"].to_numpy()])
        merged = _merged(rows.with_columns(place), keep_order=not split)
        yield merged.with_columns(unread).select(ENCODED_EVENTS.columns)


def _merged(rows: pl.DataFrame, *, keep_order: bool) -> pl.DataFrame:
    """Sort events by place and time, then by trip, day and id; `keep_order` keeps the order of those of one city."""
    second, within = ["place", "timestamp"], ["trip_idx", "day_number", "event_id"]
    if not keep_order:
        return rows.sort(*second, *within, maintain_order=True)
    rows = rows.sort(*second, maintain_order=True)
    same = [pl.col(name) == pl.col(name).shift() for name in second]
    if not rows.select((pl.all_horizontal(same) & (pl.col("city") != pl.col("city").shift())).any()).item():
        return rows
    tied = rows.lazy().with_row_index("row").filter(pl.col("city").n_unique().over(second) > 1)
    # In each city, an event is as late as the latest one before it.
    late = (
        tied.sort(within)
        .with_row_index("late")
        .sort("row")
        .with_columns(pl.col("late").cum_max().over(*second, "city"))
    )
    found = late.sort(*second, "late", maintain_order=True).select("row").collect()["row"]
    if not len(found):
        return rows
    order = np.arange(rows.height)
    order[found.sort().to_numpy()] = found.to_numpy()
    return rows[order]


def id_indexes(vocabulary: Vocabulary) -> Indexes:
    """Index the ids of a vocabulary, for every column of ids in `events/`."""
    users, trips, items = map(IdIndex, (vocabulary.users, vocabulary.trips, vocabulary.items))
    return {"user_id": users, "trip_id": trips, **dict.fromkeys(LISTS, items)}


class _PartitionReader:
    """Reads a partition's events in order, up to the end of the requested bucket."""

    def __init__(
        self,
        paths: Sequence[Path],
        city: str,
        indexes: Indexes,
        bucket: npt.NDArray[np.uint32],
        none: pl.DataFrame,
    ) -> None:
        self._batches = _batches(paths, city, indexes, none.schema)
        self._bucket = bucket
        self._paths = paths
        self._waiting = self._none = none

    def read_bucket(self, bucket: int) -> pl.DataFrame:
        """Read the rows of a bucket. Those before it must have been read already."""
        rows = [self._none]
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


def _batches(paths: Sequence[Path], city: str, indexes: Indexes, schema: pl.Schema) -> Iterator[pl.DataFrame]:
    names = {name: _TEXTS.get(name, name) for name in schema if name != "city"}
    for path in paths:
        try:
            with pq.ParquetFile(path.absolute(), read_dictionary=_DICTIONARIES) as file:
                if not all(_holds_ids(file.schema_arrow.field(name)) for name in names.values() if name in indexes):
                    raise DataError(f"{path} has a column of ids that are not strings. Publish the snapshot again.")
                lookups: dict[str, tuple[pa.Array, pl.Series]] = {}
                for batch in file.iter_batches(_BATCH, columns=list(names.values())):
                    rows = _encoded(batch, names, indexes, lookups).with_columns(city=pl.lit(city)).cast(schema)
                    if (
                        any(rows[name].has_nulls() for name in _ALWAYS)
                        or not rows["timestamp"].is_between(*_MOMENTS).all()
                    ):
                        raise DataError(f"{path} has a null, or a timestamp out of range. Publish the snapshot again.")
                    yield rows
        except FileNotFoundError:
            raise missing_file(path) from None
        except UnknownIdError:
            raise DataError(
                f"{path} names an id that users, items or trips don't have. Publish the snapshot again."
            ) from None
        except PermissionError:  # says nothing about the file's content
            raise
        except (pa.ArrowException, OSError, KeyError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path} can't be read ({error}). Publish the snapshot again.") from None


def _holds_ids(column: pa.Field) -> bool:
    """Whether a column of ids, or of lists of ids in LISTS, has strings: only these are read as dictionaries."""
    kind = column.type
    if column.name in LISTS and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        kind = kind.value_type
    return bool(pa.types.is_dictionary(kind))


def _encoded(
    batch: pa.RecordBatch, names: Mapping[str, str], indexes: Indexes, lookups: dict[str, tuple[pa.Array, pl.Series]]
) -> pl.DataFrame:
    """Encode a batch. `lookups` has the last dictionary of each column of ids, and the indexes of its ids."""

    def encode(text: str, column: pa.DictionaryArray) -> pl.Series:
        # The batches of a row group have the same dictionary: each of its ids is looked up once.
        if text not in lookups or not lookups[text][0].equals(column.dictionary):
            lookups[text] = column.dictionary, indexes[text].encode(pl.Series(column.dictionary, dtype=pl.String))
        return lookups[text][1].gather(pl.Series(column.indices))

    columns = {}
    for name, text in names.items():
        column = batch.column(text)
        if text in LISTS:
            columns[name] = list_series(column.value_lengths().to_numpy(), encode(text, column.flatten()))
        else:
            columns[name] = encode(text, column) if text in indexes else pl.Series(column)
    return pl.DataFrame(columns)
