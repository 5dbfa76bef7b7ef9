"""Columns of lists, put together from what lies in them one after the other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa


def lists_of(lengths: npt.NDArray[np.integer], values: pl.Series) -> pl.Series:
    """The lists of these lengths whose elements are `values`, one after the other."""
    if isinstance(values.dtype, pl.Enum):  # Arrow has no such type, and Polars no cast to it inside a list
        if not (lengths > 0).all():
            raise ValueError("An empty list of an Enum can't be made this way.")
        owner = np.repeat(np.arange(len(lengths)), lengths)
        frame = pl.DataFrame({"owner": owner, "value": values})
        return frame.group_by("owner", maintain_order=True).agg("value")["value"]
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    array = pa.LargeListArray.from_arrays(pa.array(ends), values.to_arrow())
    return pl.Series(values=array, dtype=pl.List(values.dtype))
