"""Parquet files whose bytes depend on their rows alone.

Polars' own writer varies with the number of threads beyond about a million rows (DESIGN, trap 10). Here: rows in the
order given, row groups of a fixed size, each with a dictionary of its own, written by pyarrow. Several files are written at
a time, and the rows of a partition arrive in pieces of any size: neither shows in the bytes.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore
from typing import IO, Any, Generic, Protocol, Self, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import ConnectError, DataError
from etl.runtime.files import FileInfo, file_sha256
from etl.transform.arrays import ARROW_TYPES, to_arrow

ROW_GROUP = 131_072
"""Rows of a row group: large enough to scan fast, small enough that a reader with several workers finds several."""

_OPTIONS = {
    "compression": "zstd",
    "compression_level": 1,
    # Without Arrow's own schema in the footer, a dictionary is read back as the string that it stands for.
    "store_schema": False,
    # No reader skips by the least and greatest of ids that are spread over all files; finding them took a third of the time.
    "write_statistics": ["timestamp", "day_number"],
}


class Batch(Protocol):
    """Some rows on their way into a file."""

    def __len__(self) -> int:
        """How many."""

    def slice(self, which: slice) -> Self:
        """Some of them."""


P = TypeVar("P", bound=Batch)


class WriterPool:
    """Threads that write, and a bound on what waits for them. See `crew`."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="parquet")
        self._room = BoundedSemaphore(2 * threads)

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Have it done; waits while too much is waiting already."""
        self._room.acquire()
        future = self._pool.submit(work)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def stop(self) -> None:
        """Wait for what is being done, and leave what has not begun."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def writer_pool(threads: int | None = None) -> Iterator[WriterPool]:
    """Writing threads for the length of a block: as many as there are cores."""
    threads_ = WriterPool(threads or len(os.sched_getaffinity(0)))
    try:
        yield threads_
    finally:
        threads_.stop()


class PartWriter(Generic[P]):
    """The parts of one partition, each full (`rows_per_file`) but for the last: their number depends on rows alone.

    Pieces are collected to whole row groups; `columns` makes Arrow columns of a row group's pieces. Row groups are built by
    several threads at a time, and written one after the other.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        rows_per_file: int,
        columns: Callable[[Sequence[P]], list[pa.Array]],
        crew: WriterPool,
    ) -> None:
        self.rows = 0
        self._folder, self._schema, self._rows_per_file = folder, schema, rows_per_file
        self._columns, self._crew = columns, crew
        self._waiting: list[P] = []
        self._have = 0
        self._part: _OpenPart | None = None
        self._done: list[_OpenPart] = []

    def add(self, piece: P) -> None:
        """Take in the next rows."""
        while len(piece):
            room = min(ROW_GROUP, self._rows_per_file - self.rows % self._rows_per_file) - self._have
            taken = piece.slice(slice(0, room)) if len(piece) > room else piece
            piece = piece.slice(slice(len(taken), len(piece)))
            self._waiting.append(taken)
            self._have += len(taken)
            if len(taken) == room:
                self._flush()

    def end(self) -> None:
        """Write what is left."""
        if self._have:
            self._flush()
        self._end_part()

    def written(self) -> list[FileInfo]:
        """The files, when they have ended. Raises what went wrong on the way."""
        return [part.written() for part in self._done]

    def _flush(self) -> None:
        if self._part is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._part = _OpenPart(self._folder / f"part-{len(self._done):05}.parquet", self._schema, self._crew)
        pieces, columns = self._waiting, self._columns
        self._part.write(lambda: columns(pieces), self._have)
        self.rows += self._have
        self._waiting, self._have = [], 0
        if self.rows % self._rows_per_file == 0:
            self._end_part()

    def _end_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._done.append(self._part)
            self._part = None


class PartCopier:
    """The parts of a partition where there are files already that hold just that: copied, and looked at as they lie then."""

    def __init__(self, folder: Path, files: Sequence[FileInfo], crew: WriterPool) -> None:
        self.rows = sum(file.rows for file in files)
        folder.mkdir(parents=True)
        self._files = [(file, folder / f"part-{number:05}.parquet") for number, file in enumerate(files)]
        self._done = [crew.submit(partial(_copy, file, path)) for file, path in self._files]

    def add(self, piece: Batch) -> None:
        """Nothing: the rows are in the files."""

    def end(self) -> None:
        """Nothing: the copying has begun."""

    def written(self) -> list[FileInfo]:
        """The files. Raises DataError where one is not what its manifest says, ConnectError where one is not there."""
        for future in self._done:
            future.result()
        return [replace(file, path=path) for file, path in self._files]


def _copy(file: FileInfo, path: Path) -> None:
    try:
        shutil.copyfile(file.path, path)
    except FileNotFoundError:
        raise ConnectError(f"{file.path} is not there. `bpr-etl validate --snapshot` says what else is.") from None
    if file_sha256(path) != file.sha256:
        raise DataError(f"{file.path} is not what its manifest says. Publish the snapshot again.")


class _Tail(io.RawIOBase):
    """What a writer adds to a file, until it is put there: between two row groups the file is closed.

    There are as many files on their way as partitions, which can be more than a process may have open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = io.BytesIO()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, content: Any) -> int:
        """Take in the next bytes."""
        return self._waiting.write(content)

    def put(self) -> None:
        """Put them into the file."""
        with self._path.open("ab") as file:
            file.write(self._waiting.getbuffer())
        self._waiting = io.BytesIO()


class _OpenPart:
    """One file on its way: each step waits for the one before, whichever thread does it."""

    def __init__(self, path: Path, schema: pa.Schema, crew: WriterPool) -> None:
        self._path, self._schema, self._crew = path, schema, crew
        self._tail = _Tail(path)
        self._writer: pq.ParquetWriter | None = None
        self._last: Future[None] | None = None
        self._rows = 0
        self._written: FileInfo | None = None

    def write(self, columns: Callable[[], list[pa.Array]], rows: int) -> None:
        """Write a row group, in time."""
        before, self._rows = self._last, self._rows + rows

        def work() -> None:
            table = pa.Table.from_arrays(columns(), schema=self._schema)
            if before is not None:
                before.result()
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._tail, self._schema, **_OPTIONS)
            self._writer.write_table(table, row_group_size=ROW_GROUP)
            self._tail.put()

        self._last = self._crew.submit(work)

    def close(self) -> None:
        """End the file, in time, and look at it as it lies on disk."""
        before = self._last

        def work() -> None:
            if before is not None:
                before.result()
            if self._writer is not None:
                self._writer.close()
                self._tail.put()
            self._written = file_info(self._path, self._rows)

        self._last = self._crew.submit(work)

    def written(self) -> FileInfo:
        """What lies on disk. Raises what went wrong on the way."""
        assert self._last is not None  # noqa: S101 - a part is closed before it is asked
        self._last.result()
        assert self._written is not None  # noqa: S101 - a step that failed has raised
        return self._written


def write_batches(
    sink: Path | IO[bytes], schema: pa.Schema, pieces: Iterable[P], columns: Callable[[Sequence[P]], list[pa.Array]]
) -> int:
    """Write pieces one after the other as one file, with the bytes that `PartWriter` gives it; gives how many rows."""
    waiting: list[P] = []
    rows = have = 0
    with pq.ParquetWriter(sink.absolute() if isinstance(sink, Path) else sink, schema, **_OPTIONS) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_arrays(columns(waiting), schema=schema), row_group_size=ROW_GROUP)

        for piece in pieces:
            left = piece
            while len(left):
                taken = left.slice(slice(0, ROW_GROUP - have))
                left = left.slice(slice(len(taken), len(left)))
                waiting.append(taken)
                have, rows = have + len(taken), rows + len(taken)
                if have == ROW_GROUP:
                    flush()
                    waiting, have = [], 0
        if have:
            flush()
    return rows


def write_file(path: Path, frames: Iterable[pl.DataFrame]) -> FileInfo:
    """Write frames of texts and numbers, of which there must be one, one after the other as one file."""
    waiting = pl.DataFrame()
    rows, writer, schema = 0, None, None
    try:
        for frame in frames:
            if writer is None:
                schema = pa.schema([pa.field(name, ARROW_TYPES[dtype]) for name, dtype in frame.schema.items()])
                writer, waiting = pq.ParquetWriter(path.absolute(), schema, **_OPTIONS), frame.clear()
            waiting = pl.concat([waiting, frame])
            while waiting.height >= ROW_GROUP:
                _write_group(writer, schema, waiting[:ROW_GROUP])
                rows, waiting = rows + ROW_GROUP, waiting[ROW_GROUP:]
        if waiting.height:
            _write_group(writer, schema, waiting)
    finally:
        if writer is not None:
            writer.close()
    return file_info(path, rows + waiting.height)


def _write_group(writer: pq.ParquetWriter, schema: pa.Schema, rows: pl.DataFrame) -> None:
    table = pa.Table.from_arrays([to_arrow(rows[name]) for name in rows.columns], schema=schema)
    writer.write_table(table, row_group_size=ROW_GROUP)


def file_info(path: Path, rows: int) -> FileInfo:
    """A file as it lies on disk. Raises DataError when its footer doesn't count the rows that were written."""
    found = pq.read_metadata(path.absolute()).num_rows
    if found != rows:
        raise DataError(f"{path.name} has {found} rows on disk, and {rows} were written. Run again.")
    return FileInfo(path, rows, path.stat().st_size, file_sha256(path))
