"""Ids and their indexes: assigning indexes, and translating between ids and indexes in both directions.

An index is a row of `users.parquet`, `items.parquet` or `trips.parquet`. While a run reads its source, the final order of ids
is not known yet: `IdEncoder` numbers ids in the order in which they occur, and `remap_codes` replaces these numbers later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa

from etl.transform.arrays import list_series, to_arrow


def _no_ids() -> pl.Series:
    return pl.Series(dtype=pl.String)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a snapshot, in index order. Empty by default."""

    users: pl.Series = field(default_factory=_no_ids)
    items: pl.Series = field(default_factory=_no_ids)
    trips: pl.Series = field(default_factory=_no_ids)

    @cached_property
    def arrow(self) -> dict[str, pa.StringArray]:
        """The ids as Arrow arrays, by `users`, `items` and `trips`. Several threads may read these."""
        return {name: to_arrow(getattr(self, name)) for name in ("users", "items", "trips")}


class UnknownIdError(Exception):
    """An id that is not in the vocabulary."""


class IdIndex:
    """Finds the indexes of ids by binary search: nothing is built per batch, however many ids there are."""

    def __init__(self, ids: pl.Series) -> None:
        self._order = None if ids.is_sorted() else ids.arg_sort()
        self._ids = ids if self._order is None else ids.gather(self._order)

    def encode(self, ids: pl.Series) -> pl.Series:
        """The index of each id (UInt32). Raises UnknownIdError if one is not in the vocabulary."""
        positions = self._ids.search_sorted(ids).clip(0, max(0, len(self._ids) - 1))
        if len(ids) and (not len(self._ids) or not self._ids.gather(positions).equals(ids)):
            raise UnknownIdError
        return (positions if self._order is None else self._order.gather(positions)).cast(pl.UInt32)


class IdEncoder:
    """Numbers ids in the order in which they first occur."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def encode(self, ids: pl.Series) -> pl.Series:
        """Encode a column of ids, as String or Enum, or of lists of them (UInt32). Each distinct id is looked up once.

        Null stays null; lists have no nulls.
        """
        if isinstance(ids.dtype, pl.List):
            values = self.encode(ids.explode(empty_as_null=False))
            return list_series(ids.list.len().to_numpy(), values).alias(ids.name)
        if not isinstance(ids.dtype, pl.Enum):
            ids = ids.cast(pl.Enum(ids.drop_nulls().unique(maintain_order=True)))
            return self._encode(ids.dtype.categories).gather(ids.to_physical()).alias(ids.name)  # type: ignore[attr-defined]
        # Not every category need occur: only those that do get a number.
        physical = ids.to_physical()
        used = physical.unique(maintain_order=True).drop_nulls()
        numbers = np.zeros(len(ids.dtype.categories), np.uint32)
        numbers[used.to_numpy()] = self._encode(ids.dtype.categories.gather(used)).to_numpy()
        return pl.Series(ids.name, numbers).gather(physical)

    def positions_in(self, vocabulary: pl.Series) -> pl.Series:
        """The index in a vocabulary of each id, by number (UInt32); null if it is not there."""
        rows = vocabulary.alias("id").to_frame().with_row_index("row")
        return self.ids.alias("id").to_frame().join(rows, on="id", how="left", maintain_order="left")["row"]

    @property
    def ids(self) -> pl.Series:
        """The ids by number."""
        return pl.Series(list(self._numbers), dtype=pl.String)

    def _encode(self, ids: Iterable[str]) -> pl.Series:
        numbers = self._numbers
        return pl.Series([numbers.setdefault(each, len(numbers)) for each in ids], dtype=pl.UInt32)


def remap_codes(events: pl.DataFrame, new_codes: Mapping[str, pl.Series]) -> pl.DataFrame:
    """Replace the codes in some columns, also in lists: `new_codes` has, by column, the new code of each old one."""

    def remapped(old: pl.Series, new: pl.Series) -> pl.Series:
        if not isinstance(old.dtype, pl.List):
            return new.gather(old).alias(old.name)
        flat = new.gather(old.explode(empty_as_null=False).cast(pl.UInt32))
        return list_series(old.list.len().to_numpy(), flat).alias(old.name)

    return events.with_columns(remapped(events[name], new) for name, new in new_codes.items())


def assign_indexes(earlier: pl.Series, ids: pl.Series, index: str) -> pl.DataFrame:
    """Number the distinct ids: those of an earlier vocabulary keep their index, new ones follow in the order of their bytes."""
    new = ids.unique().sort()
    new = new.filter(~new.is_in(earlier.implode()))
    return pl.concat([earlier.alias(ids.name), new]).to_frame().with_row_index(index).select(ids.name, index)
