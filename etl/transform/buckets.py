"""User buckets: how work is cut so that memory follows the bucket and not the data.

A bucket is a range of the users' SHA-256, the first thing that rows in files are ordered by: the buckets one after the other
give every file's rows in their order, however many buckets there are. What waits for its bucket lies on a shelf: in memory
while there is one bucket, in a file for each when there are more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa

from etl.transform.hashing import sha256_hex

EVENTS_PER_BUCKET = 50_000
"""About how many events a bucket has, where nobody said how many buckets there are to be."""

_WRITE = pa.ipc.IpcWriteOptions(compression="lz4")


def bucket_count(events: int) -> int:
    """How many buckets so many events are cut into."""
    return max(1, -(-events // EVENTS_PER_BUCKET))


def bucket_expr(users: pl.Expr, buckets: int) -> pl.Expr:
    """The bucket of each user id, 0 to `buckets` - 1 (UInt32): its place in the range of the hashes."""
    if buckets == 1:
        return pl.repeat(0, pl.len(), dtype=pl.UInt32)
    leading = sha256_hex(users).str.slice(0, 8).str.to_integer(base=16, dtype=pl.UInt64)
    return (leading * buckets).floordiv(1 << 32).cast(pl.UInt32)


def partition_by_bucket(frame: pl.DataFrame, buckets: int) -> dict[int, pl.DataFrame]:
    """Rows with a `user_id` by bucket, in their order; a bucket without rows is left out."""
    if buckets == 1:
        return {0: frame}
    return _partitioned(frame, frame.select(bucket_expr(pl.col("user_id"), buckets)).to_series())


def _partitioned(frame: pl.DataFrame, bucket: pl.Series) -> dict[int, pl.DataFrame]:
    parts = frame.with_columns(_bucket=bucket).partition_by(
        "_bucket", as_dict=True, include_key=False, maintain_order=True
    )
    return {int(str(number)): rows for (number,), rows in parts.items()}


class BucketSpill:
    """Frames of one schema, put down in any order and taken up by bucket. See `shelf`."""

    def __init__(self, folder: Path, buckets: int, empty: pl.DataFrame) -> None:
        self.buckets = buckets
        self._folder = folder
        self._empty = empty
        self._held: list[pl.DataFrame] = []

    def append(self, frame: pl.DataFrame, bucket: pl.Series) -> None:
        """Put rows down, each in the bucket that `bucket` says; within a bucket they keep their order."""
        if self.buckets == 1:
            self._held.append(frame)
            return
        for number, rows in _partitioned(frame, bucket).items():
            self.append_bucket(rows, number)

    def append_bucket(self, frame: pl.DataFrame, bucket: int) -> None:
        """Put rows down that all belong to one bucket."""
        if self.buckets == 1:
            self._held.append(frame)
            return
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        # A stream of its own each time: a file that stayed open for every bucket could be more than a process may have.
        with self._path(bucket).open("ab") as file, pa.ipc.new_stream(file, table.schema, options=_WRITE) as stream:
            stream.write_table(table)

    def read_bucket(self, bucket: int) -> pl.DataFrame:
        """All rows of a bucket, in the order in which they were put down."""
        if self.buckets == 1:
            self._held = [pl.concat([self._empty, *self._held], rechunk=True)]
            return self._held[0]
        path = self._path(bucket)
        if not path.exists():
            return self._empty
        frames = [self._empty]
        with pa.OSFile(str(path)) as file:
            while file.tell() < file.size():
                frames.append(pl.DataFrame(pa.ipc.open_stream(file).read_all()))
        return pl.concat(frames, rechunk=True)

    def delete(self) -> None:
        """Give back the memory and the disk."""
        self._held = []
        for bucket in range(self.buckets):
            self._path(bucket).unlink(missing_ok=True)

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{id(self):x}-{bucket}.arrows"


@contextmanager
def open_spill(folder: Path, buckets: int, empty: pl.DataFrame) -> Iterator[BucketSpill]:
    """A shelf for the length of a block, its files in `folder`; `empty` has the columns and types of its rows."""
    held = BucketSpill(folder, buckets, empty)
    try:
        yield held
    finally:
        held.delete()
