"""Array types, columns made from arrays, sums of counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


def list_series(lengths: npt.NDArray[np.integer], values: pl.Series) -> pl.Series:
    """Returns lists of the given lengths; their elements are `values`, one after the other."""
    if isinstance(values.dtype, pl.Enum):  # Arrow has no such type, and Polars no cast to it inside a list
        if not (lengths > 0).all():
            raise ValueError("An empty list of an Enum can't be made this way.")
        owner = np.repeat(np.arange(len(lengths)), lengths)
        frame = pl.DataFrame({"owner": owner, "value": values})
        return frame.group_by("owner", maintain_order=True).agg("value")["value"]
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    array = pa.LargeListArray.from_arrays(pa.array(ends), values.to_arrow())
    return pl.Series(values=array, dtype=pl.List(values.dtype))


ARROW_TYPES = {
    pl.String(): pa.string(),
    pl.Int64(): pa.int64(),
    pl.Int32(): pa.int32(),
    pl.UInt32(): pa.uint32(),
    pl.Float32(): pa.float32(),
    pl.Float64(): pa.float64(),
    pl.Boolean(): pa.bool_(),
}
"""The Arrow type that each type of column is written as."""


def to_arrow(column: pl.Series) -> pa.Array:
    """Returns a column of texts or numbers as the Arrow array that is written."""
    return column.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(ARROW_TYPES[column.dtype])


def sum_counts(some: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Returns the sums by name; names in the order in which they first occur."""
    return {name: some.get(name, 0) + more.get(name, 0) for name in {**some, **more}}


@dataclass(frozen=True)
class Counts:
    """Base of records of counts: `+` adds them field by field, dicts by key."""

    def __add__(self, other: Self) -> Self:
        pairs = [(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)]
        return type(self)(*(sum_counts(a, b) if isinstance(a, dict) else a + b for a, b in pairs))
