"""A sign, without any training, of whether triples teach what users like (docs/negatives.md, "A sign without training").

Spearman's correlation, over a city's nodes, between how much more often a node is a positive than a negative and how
popular it is. A model that learns from the triples pushes up what is oftener a positive: where that is not what people
choose, it learns to rank badly. Below `MIN_CORRELATION` the triples were nearly always at least 0.02 of AUC worse.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from etl.transform.arrays import I64

MIN_CORRELATION = 0.85


def popularity_correlation(positive: I64, negative: I64, popularity: I64) -> float | None:
    """The correlation over nodes, ties at their average rank; None for fewer than three nodes, or where a side is constant.

    `positive` and `negative` count a node's triples on either side, `popularity` the events that selected it.
    """
    # The ratio, of which the logarithm has the same order: whole numbers over whole numbers, so equal ones tie exactly.
    ratio = (positive + 1) / (negative + 1)
    if len(ratio) < 3 or len(np.unique(ratio)) == 1 or len(np.unique(popularity)) == 1:
        return None
    ranks = pl.DataFrame({"ratio": ratio, "popularity": popularity}).select(pl.all().rank("average"))
    return float(ranks.select(pl.corr("ratio", "popularity")).item())
