"""Parquet files whose bytes depend on their rows alone.

The bytes of Polars' own writer vary with the number of threads beyond about a million rows (docs/pitfalls.md). Here pyarrow
writes rows in the order given, in row groups of a fixed size, each with its own dictionaries. The rows of a partition arrive
in batches of any size, and several files are written at a time: neither affects the bytes.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any, Protocol, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import ConnectError, DataError
from etl.runtime.files import FileInfo, file_sha256
from etl.snapshots.descriptions import described_schema
from etl.transform.arrays import ARROW_TYPES, to_arrow

ROW_GROUP = 131_072
"""Rows of a row group: large enough to scan fast, small enough that a reader with several workers finds several."""

T = TypeVar("T")
RowGroup = list[tuple[Any, slice]]
"""The rows of one row group: slices of batches. In a task's arguments, a batch may be a reference to one."""

Encoder = Callable[[Sequence[Any]], pa.Table]
"""Encodes the batches of one row group as an Arrow table."""

WRITER_OPTIONS = {
    "compression": "zstd",
    "compression_level": 1,
    # Without Arrow's own schema in the footer, readers see a dictionary as the strings that it stands for.
    "store_schema": False,
    # Readers can't skip by minimum and maximum of ids that are spread over all files.
    "write_statistics": ["timestamp", "day_number"],
    # One page for each column of a row group.
    "max_rows_per_page": ROW_GROUP,
    # More values at a time than by default: the same bytes, written faster.
    "write_batch_size": 4096,
}
"""How all files are written. `python -m benchmarks triples` measures what each of these saves."""

_RUNS = frozenset({"timestamp", "day_number", "weight"})
"""Numbers in long runs: written as they are, they compress as well as with a dictionary."""


class RowGroups:
    """Cuts batches of any size into row groups. A file ends after `rows_per_file` rows, if that is given."""

    def __init__(self, rows_per_file: int | None = None) -> None:
        self._rows_per_file = rows_per_file
        self._waiting: RowGroup = []
        self._have = self._in_file = 0

    def add(self, batch: Any, rows: int) -> Iterator[tuple[RowGroup, bool]]:
        """Add a batch of `rows` rows. Yields the row groups that are full now, and whether each is the last of its file."""
        start = 0
        while start < rows:
            room = ROW_GROUP - self._have
            if self._rows_per_file is not None:
                room = min(room, self._rows_per_file - self._in_file)
            end = min(rows, start + room)
            self._waiting.append((batch, slice(start, end)))
            self._have += end - start
            self._in_file += end - start
            start = end
            last = self._in_file == self._rows_per_file
            if last or self._have == ROW_GROUP:
                yield self.rest(), last
                if last:
                    self._in_file = 0

    def rest(self) -> RowGroup:
        """Return the rows that do not fill a row group yet, and forget them."""
        group, self._waiting, self._have = self._waiting, [], 0
        return group


def group_rows(group: RowGroup) -> int:
    """The number of rows of a row group."""
    return sum(rows.stop - rows.start for _, rows in group)


def encode_group(encode: Encoder, group: RowGroup) -> pa.Table:
    """Encode the rows of a row group."""
    return encode([batch[rows] for batch, rows in group])


def open_writer(sink: Path | io.IOBase, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file for writing; the caller closes it. Each table that is written must be one row group."""
    writer = pq.ParquetWriter(
        sink.absolute() if isinstance(sink, Path) else sink,
        schema,
        use_dictionary=with_dictionary(schema),
        **WRITER_OPTIONS,
    )
    writer.add_key_value_metadata(_descriptions(schema))
    return writer


def with_dictionary(schema: pa.Schema) -> list[str]:
    """Return the paths of the columns that are written with a dictionary."""
    names = (f"{column.name}.list.element" if pa.types.is_list(column.type) else column.name for column in schema)
    return [name for name in names if name not in _RUNS]


def _descriptions(schema: pa.Schema) -> dict[str, str]:
    """Return the descriptions of a schema as key-value metadata: the table's, the columns' as JSON, and both for Arrow."""
    texts = {field.name: field.metadata[b"description"].decode() for field in schema if field.metadata}
    plain = pa.schema([field.with_type(_plain(field.type)) for field in schema], metadata=schema.metadata)
    return {
        "description": (schema.metadata or {}).get(b"description", b"").decode(),
        "columns": json.dumps(texts, ensure_ascii=False),
        # What Arrow itself would store has dictionaries: readers would return them.
        "ARROW:schema": base64.b64encode(plain.serialize()).decode(),
    }


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return a type without its dictionaries."""
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return kind.value_type if pa.types.is_dictionary(kind) else kind


class WriterPool:
    """Threads that write, with a bound on the pending work."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="parquet")
        self._room = BoundedSemaphore(2 * threads)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Schedule work; blocks while too much work is pending. Call `release` when it is done."""
        self._room.acquire()
        return self._pool.submit(work)

    def release(self) -> None:
        """Make room for more work."""
        self._room.release()

    def stop(self) -> None:
        """Wait for work that has begun, and drop the rest."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def writer_pool(threads: int | None = None) -> Iterator[WriterPool]:
    """Start writing threads for the length of a block, by default one per core."""
    pool = WriterPool(threads or len(os.sched_getaffinity(0)))
    try:
        yield pool
    finally:
        pool.stop()


class Part(Protocol):
    """One file that is being written."""

    def write(self, group: RowGroup) -> None:
        """Add a row group."""

    def close(self) -> None:
        """End the file, without waiting until it is written."""

    def written(self) -> FileInfo:
        """Wait for the file, and describe what is on disk. Raises the error of writing it."""


class PartWriter:
    """Writes the rows of one partition into numbered parts of `rows_per_file` rows; `start` begins the part at a path.

    The number of parts depends on the number of rows alone, and so does the cut into row groups.
    """

    def __init__(self, folder: Path, rows_per_file: int, start: Callable[[Path], Part]) -> None:
        self._folder, self._start = folder, start
        self._groups = RowGroups(rows_per_file)
        self._part: Part | None = None
        self._parts: list[Part] = []

    def add(self, batch: Any, rows: int) -> None:
        """Add a batch, or a reference to one, of `rows` rows."""
        for group, last in self._groups.add(batch, rows):
            self._write(group)
            if last:
                self._close()

    def end(self) -> None:
        """Write the remaining rows, and end the last part."""
        if rest := self._groups.rest():
            self._write(rest)
        self._close()

    def written(self) -> list[FileInfo]:
        """Wait for all parts. Raises the error of writing them."""
        return [part.written() for part in self._parts]

    def _write(self, group: RowGroup) -> None:
        if self._part is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._part = self._start(self._folder / f"part-{len(self._parts):05}.parquet")
            self._parts.append(self._part)
        self._part.write(group)

    def _close(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None


class PartCopier:
    """Copies the parts of a partition from files that have the same bytes, and verifies the copies."""

    def __init__(self, folder: Path, files: Sequence[FileInfo], pool: WriterPool) -> None:
        folder.mkdir(parents=True)
        self._files = [(file, folder / f"part-{number:05}.parquet") for number, file in enumerate(files)]
        self._done = []
        for file, path in self._files:
            future = pool.submit(partial(_copy, file, path))
            future.add_done_callback(lambda _: pool.release())  # before the next is submitted, which may wait for room
            self._done.append(future)

    def add(self, batch: Any, rows: int) -> None:
        """Ignore the rows: they are in the files."""

    def end(self) -> None:
        """Do nothing: the copying has begun."""

    def written(self) -> list[FileInfo]:
        """Wait for the copies. Raises DataError if one differs from its manifest entry, ConnectError if one is missing."""
        for future in self._done:
            future.result()
        return [replace(file, path=path) for file, path in self._files]


def missing_file(path: Path) -> ConnectError:
    """The error for a file of a snapshot that is not there."""
    return ConnectError(f"{path} is not there. `bpr-etl validate --snapshot` lists all missing files.")


def _copy(file: FileInfo, path: Path) -> None:
    try:
        shutil.copyfile(file.path, path)
    except FileNotFoundError:
        raise missing_file(file.path) from None
    if file_sha256(path) != file.sha256:
        raise DataError(f"{file.path} is not what its manifest says. Publish the snapshot again.")


class _Tail(io.RawIOBase):
    """Buffers what a writer adds to a file and appends it on `put`: between two row groups the file is closed.

    There is one unfinished part per partition: if all stayed open, they could exceed the limit of open files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = io.BytesIO()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, content: Any) -> int:
        """Buffer the next bytes."""
        return self._waiting.write(content)

    def put(self) -> None:
        """Append the buffered bytes to the file."""
        with self._path.open("ab") as file:
            file.write(self._waiting.getbuffer())
        self._waiting = io.BytesIO()


class ThreadPart:
    """A part that the threads of a pool write, row group by row group as they come.

    Several threads may encode row groups of the same part, and one at a time writes those whose turn it is. A thread never
    waits for another: what it has encoded too early, or while another thread is writing, it leaves to that one.
    """

    def __init__(self, path: Path, encode: Encoder, pool: WriterPool) -> None:
        self._path, self._encode, self._pool = path, encode, pool
        self._tail = _Tail(path)
        self._writer: pq.ParquetWriter | None = None
        self._rows = self._scheduled = self._next = 0
        self._encoded: dict[int, pa.Table | None] = {}
        self._turn = Lock()
        self._info: Future[FileInfo] = Future()

    def write(self, group: RowGroup) -> None:
        """Schedule a row group."""
        self._rows += group_rows(group)
        self._schedule(partial(encode_group, self._encode, group))

    def close(self) -> None:
        """Schedule the end of the file."""
        self._schedule(lambda: None)

    def written(self) -> FileInfo:
        """Wait for the file. Raises the error of writing it, DataError if its footer counts other rows."""
        return self._info.result()

    def _schedule(self, encode: Callable[[], pa.Table | None]) -> None:
        number, self._scheduled = self._scheduled, self._scheduled + 1

        def work() -> None:
            self._encoded[number] = self._unless_failed(encode)
            # Looks again after each turn: meanwhile another thread may have left something.
            while self._next in self._encoded and self._turn.acquire(blocking=False):
                while self._next in self._encoded:
                    self._unless_failed(partial(self._write, self._encoded.pop(self._next)))
                    self._next += 1
                    self._pool.release()
                self._turn.release()

        self._pool.submit(work)

    def _unless_failed(self, step: Callable[[], T]) -> T | None:
        """Do one step. After the first error of any step there is nothing more to do."""
        if not self._info.done():
            try:
                return step()
            except BaseException as error:  # noqa: BLE001 - `written` raises it
                with suppress(InvalidStateError):
                    self._info.set_exception(error)
        return None

    def _write(self, table: pa.Table | None) -> None:
        """Write a row group; None ends the file."""
        if table is not None:
            if self._writer is None:
                self._writer = open_writer(self._tail, table.schema)
            self._writer.write_table(table)
            self._tail.put()
            return
        if self._writer is not None:
            self._writer.close()
            self._tail.put()
        self._info.set_result(file_info(self._path, self._rows))


def write_file(path: Path, frames: Iterable[pl.DataFrame]) -> FileInfo:
    """Write frames of strings and numbers, one after the other, as one file. There must be at least one frame."""
    following = iter(frames)
    first = next(following)
    schema = described_schema(path.stem, {name: ARROW_TYPES[dtype] for name, dtype in first.schema.items()})
    groups, rows = RowGroups(), 0

    def encode(parts: Sequence[pl.DataFrame]) -> pa.Table:
        frame = pl.concat(parts)
        return pa.Table.from_arrays([to_arrow(frame[name]) for name in frame.columns], schema=schema)

    with open_writer(path, schema) as writer:
        for frame in chain([first], following):
            for group, _ in groups.add(frame, frame.height):
                writer.write_table(encode_group(encode, group))
            rows += frame.height
        if rest := groups.rest():
            writer.write_table(encode_group(encode, rest))
    return file_info(path, rows)


def file_info(path: Path, rows: int) -> FileInfo:
    """Describe a file on disk. Raises DataError if its footer doesn't count the rows that were written."""
    found = pq.read_metadata(path.absolute()).num_rows
    if found != rows:
        raise DataError(f"{path.name} has {found} rows on disk, and {rows} were written. Run again.")
    return FileInfo(path, rows, path.stat().st_size, file_sha256(path))
