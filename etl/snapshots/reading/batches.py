"""Read files in batches of numbers, shared out evenly over the processes that train one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.errors import SettingsError
from etl.snapshots.parquet import ROW_GROUP

Batch = dict[str, npt.NDArray[Any]]

_IDS = {
    "user_idx": "user_id",
    "item_idx": "item_id",
    "prev_idx": "prev_item",
    "pos_idx": "pos_item",
    "neg_idx": "neg_item",
}
"""The indexes that a table may have, and the columns of their ids."""


class Plan(TypedDict, total=False):
    """How rows become batches; `Batches` has the defaults."""

    batch_size: int
    rank: int
    world_size: int
    seed: int
    shuffle: bool
    buffer_rows: int


@dataclass
class Batches:
    """The batches of one rank: dicts of numpy arrays by column, of at most `batch_size` rows.

    Each of `world_size` ranks has the same number of batches (`len`), and every row is in exactly one batch of one rank.
    `rank` may be left out if there is one. Nothing is dropped or repeated: instead, the sizes of batches differ by one.

    `set_epoch` chooses the order: row groups in random order, rows shuffled within a buffer of `buffer_rows`. Seed,
    epoch, rank and `world_size` decide it. `shuffle=False` keeps the order of the files. Memory holds the buffer, twice
    while it is shuffled, and one row group of the columns. `files` are (path or URL, rows); `columns` make the arrays.
    """

    files: Sequence[tuple[str, int]]
    columns: Sequence[pl.Expr]
    batch_size: int = 4096
    rank: int | None = None
    world_size: int = 1
    seed: int = 0
    shuffle: bool = True
    buffer_rows: int = 1_000_000
    epoch: int = 0

    def __post_init__(self) -> None:
        """Raise SettingsError if the rows can't be shared out."""
        if self.rank is None and self.world_size > 1:
            raise SettingsError(
                f"world_size is {self.world_size}, and rank is not given. Give each process its own, from 0 to "
                f"{self.world_size - 1}."
            )
        self._rank = self.rank or 0
        if not 0 <= self._rank < self.world_size:
            raise SettingsError(
                f"rank is {self._rank}. With world_size {self.world_size} it must be from 0 to {self.world_size - 1}."
            )
        if min(self.batch_size, self.buffer_rows) < 2:  # with 1, a rank could be a row short
            raise SettingsError("batch_size and buffer_rows must be at least 2.")
        self._chunks = [
            (source, start, min(ROW_GROUP, rows - start))
            for source, rows in self.files
            for start in range(0, rows, ROW_GROUP)
        ]
        self._rows = sum(rows for _, rows in self.files)
        if 0 < self._rows < self.world_size:
            raise SettingsError(f"There are {self._rows} rows, fewer than world_size, {self.world_size}.")

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has."""
        self.epoch = epoch

    def __len__(self) -> int:
        """The number of batches of this rank, the same for every rank."""
        return ceil(ceil(self._rows / self.world_size) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches of this rank in the chosen epoch."""
        return self.share(0, 1)

    def share(self, worker: int, workers: int) -> Iterator[Batch]:
        """Iterate over the batches of this rank that one of its `workers` makes: a contiguous share of its rows."""
        first, last = (rank * self._rows // self.world_size for rank in (self._rank, self._rank + 1))
        ends = [first + number * (last - first) // max(1, len(self)) for number in range(len(self) + 1)]
        mine = ends[worker * len(self) // workers : (worker + 1) * len(self) // workers + 1]
        return self._cut(mine)

    def _cut(self, ends: list[int]) -> Iterator[Batch]:
        """Yield the batches between consecutive `ends`, which are row numbers in the order of this epoch."""
        random = np.random.default_rng([self.seed, self.epoch, ends[0]])
        waiting: list[pl.DataFrame] = []
        done, number = ends[0], 1
        for piece in self._pieces(ends[0], ends[-1]):
            waiting.append(piece)
            have = sum(frame.height for frame in waiting)
            if have < self.buffer_rows and done + have < ends[-1]:
                continue
            rows = pl.concat(waiting)
            if self.shuffle:
                rows = rows[random.permutation(have)]
            start = 0
            while number < len(ends) and ends[number] <= done + have:
                end = start + ends[number] - ends[number - 1]
                yield {column.name: column.to_numpy(writable=True) for column in rows[start:end]}
                start, number = end, number + 1
            waiting, done = [rows[start:]], done + start

    def _pieces(self, first: int, last: int) -> Iterator[pl.DataFrame]:
        """Read the rows from `first` to `last` in the order of this epoch, at most a row group at a time."""
        order = np.arange(len(self._chunks))
        if self.shuffle:  # the same in every rank and worker
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        passed = 0
        for source, start, rows in (self._chunks[number] for number in order):
            begin, end = max(first - passed, 0), min(last - passed, rows)
            if begin < end:
                yield scan_files([source]).slice(start + begin, end - begin).select(self.columns).collect()
            passed += rows


def scan_files(sources: Sequence[str]) -> pl.LazyFrame:
    """Scan files at absolute paths or URLs as they are: a name is no pattern, and a folder no partition key."""
    return pl.scan_parquet(list(sources), hive_partitioning=False, glob=False)


def numeric_columns(
    schema: Mapping[str, pl.DataType], columns: Sequence[str] | None, users: pl.Series, items: pl.Series
) -> list[pl.Expr]:
    """What makes `columns` of a table, by default all indexes and numbers. `users` and `items` are ids in index order.

    Indexes are int64, whether the table has them or the ids. Raises SettingsError if a column is not there, or no number.
    """

    def index(name: str, text: str) -> pl.Expr:
        if name in schema:
            return pl.col(name).cast(pl.Int64)
        ids = pl.Enum(users if text == "user_id" else items)
        return pl.col(text).cast(ids).to_physical().cast(pl.Int64).alias(name)

    made = {name: index(name, text) for name, text in _IDS.items() if name in schema or text in schema}
    made |= {
        name: pl.col(name)
        for name, dtype in schema.items()
        if name not in made and (dtype.is_numeric() or dtype == pl.Boolean())
    }
    if missing := [name for name in columns or () if name not in made]:
        raise SettingsError(f"There is no column {missing[0]!r} of numbers, but {', '.join(made)}.")
    return [made[name] for name in columns or made]
