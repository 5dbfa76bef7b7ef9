"""Parquet files whose bytes depend on their rows alone.

Polars' own writer varies with the number of threads beyond about a million rows (DESIGN, trap 10). Here: rows in the
order given, row groups of a fixed size, each with a dictionary of its own, written by pyarrow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 131_072
"""Rows of a row group: large enough to scan fast, small enough that a reader with several workers finds several."""


class PartWriter:
    """Writes one Parquet file. Texts and Enums become plain strings, dictionary-encoded: any reader sees a string."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, frame: pl.DataFrame) -> dict[str, int]:
        """Write the frame, and give {path: rows}."""
        schema = _schema(frame)
        # Without Arrow's own schema in the footer, a dictionary is read back as the string that it stands for.
        with pq.ParquetWriter(self.path, schema, compression="zstd", compression_level=1, store_schema=False) as writer:
            for start in range(0, frame.height, ROW_GROUP):
                rows = frame.slice(start, ROW_GROUP)
                arrays = [_array(rows[name], field.type) for name, field in zip(rows.columns, schema, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=ROW_GROUP)
        return {str(self.path): frame.height}


def _schema(frame: pl.DataFrame) -> pa.Schema:
    return pa.schema([pa.field(name, _type(dtype)) for name, dtype in frame.schema.items()])


def _type(dtype: pl.DataType) -> pa.DataType:
    if isinstance(dtype, pl.Enum):
        return pa.dictionary(pa.int32(), pa.string())
    if isinstance(dtype, pl.List):
        return pa.list_(pa.string())
    return {
        pl.String(): pa.string(),
        pl.Int64(): pa.int64(),
        pl.Int32(): pa.int32(),
        pl.UInt32(): pa.uint32(),
        pl.Float32(): pa.float32(),
        pl.Float64(): pa.float64(),
        pl.Boolean(): pa.bool_(),
    }[dtype]


def _array(column: pl.Series, wanted: pa.DataType) -> pa.Array:
    if isinstance(column.dtype, pl.Enum):
        return _dictionary(column, column.dtype)
    if isinstance(column.dtype, pl.List):
        column = column.cast(pl.List(pl.String))
    return column.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(wanted)


def _dictionary(column: pl.Series, dtype: pl.Enum) -> pa.DictionaryArray:
    """The column with a dictionary of only the values that occur in it, in the Enum's order; no nulls."""
    codes = column.to_physical().to_numpy()
    values = dtype.categories
    used = np.zeros(len(values), dtype=bool)
    used[codes] = True
    places = np.cumsum(used, dtype=np.int32) - 1
    texts = values.filter(pl.Series(used)).to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(places[codes], pa.int32()), texts)
