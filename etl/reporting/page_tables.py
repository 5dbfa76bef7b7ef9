"""What the report says of nodes and people: from a snapshot's items.parquet and users.parquet, columns at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from etl.reporting.event_stats import EventStats
from etl.transform.arrays import I64
from etl.transform.schemas import ARCHIVED
from etl.triples.dataset import GONE

LABELS = 12
"""How many values of a dimension are shown, the most frequent first."""

LISTED, TOP = 50, 10
"""How many of the nodes that were never shown are listed, and of those that were selected most often."""

_PLACE = ("name", "city", "category", "status")
_DIMENSIONS = (
    "primary_interest",
    "pace_preference",
    "budget_sensitivity",
    "social_mode",
    "time_orientation",
    "trip_count",
    "cuisine_openness",
)
_NUMBER = "cuisine_openness"
_VECTOR = "category_affinities"


@dataclass(frozen=True)
class ItemStats:
    """How often nodes are what. `counts` has for each role the times of every node that has it, highest first.

    `offered` nodes can be offered; `never` of them were neither candidate nor selected in any event, the first of which
    are listed. `tenth` is, for each role, the share of the tenth of the offered nodes that has most of it.
    """

    offered: int
    counts: dict[str, I64]
    tenth: dict[str, float]
    never_offered: int
    never_listed: list[dict[str, Any]]
    top: list[dict[str, Any]]


@dataclass(frozen=True)
class Dimension:
    """A dimension of the personas: how many users have which value, the most frequent first, and where values come from.

    `more` is how many further values there are, and how many users have one of them; `without` counts those who have none.
    """

    name: str
    values: list[tuple[str, int]]
    more: tuple[int, int]
    sources: dict[str, int]
    without: int


@dataclass(frozen=True)
class UserStats:
    """The users of the audience, the dimensions of their personas, and their mean affinity for each category."""

    users: int
    dimensions: list[Dimension]
    affinities: list[tuple[str, float]]


def nodes_of(folder: Path, tally: EventStats) -> ItemStats:
    """The nodes of a snapshot. Positives and negatives are those of train, candidates and selected those of all events."""
    columns = ["item_id", *_PLACE, "n_positive", "n_negative"]
    there = pl.read_parquet_schema(_file(folder, "items"))
    items = pl.read_parquet(_file(folder, "items"), columns=[name for name in columns if name in there], glob=False)
    nought = [pl.lit(0, pl.Int64).alias(name) for name in columns if name not in there]  # a snapshot of release 0.1
    items = items.with_columns(
        *nought, pl.Series("n_candidate", tally.candidate), pl.Series("n_selected", tally.selected)
    )
    offered = items.filter(~pl.col("status").is_in([ARCHIVED, GONE]))
    roles = {
        "candidate": "n_candidate",
        "selected": "n_selected",
        "positive": "n_positive",
        "negative": "n_negative",
    }
    counts = {role: np.sort(items[column].to_numpy())[::-1] for role, column in roles.items()}
    never = offered.filter(n_candidate=0, n_selected=0).sort("city", "name", "item_id", nulls_last=True)
    most = items.filter(pl.col("n_selected") > 0).sort("n_selected", "item_id", descending=[True, False])
    return ItemStats(
        offered.height,
        {role: times[times > 0] for role, times in counts.items()},
        {role: _top_decile_share(times, offered.height) for role, times in counts.items()},
        never.height,
        never.head(LISTED).select(*_PLACE).to_dicts(),
        most.head(TOP).select(*_PLACE, *roles.values()).to_dicts(),
    )


def _top_decile_share(times: I64, nodes: int) -> float:
    """The share of the tenth with most, of all; nan where there is nothing."""
    return float(times[: max(1, round(nodes / 10))].sum() / times.sum()) if times.sum() else float("nan")


def people_of(folder: Path) -> UserStats:
    """The users of a snapshot that are still there, column by column."""
    path = _file(folder, "users")
    schema = pl.read_parquet_schema(path)
    users = pl.scan_parquet(path, glob=False)
    if "status" in schema:
        users = users.filter(pl.col("status") != GONE)
    height = int(users.select(pl.len()).collect().item())
    affinities = [name for name in schema if name.startswith("affinity_")]
    means = users.select(pl.col(affinities).mean()).collect().row(0) if affinities else ()
    named = [
        (name.removeprefix("affinity_"), mean) for name, mean in zip(affinities, means, strict=True) if mean is not None
    ]
    dimensions = [_dimension(users, name, schema) for name in (*_DIMENSIONS, _VECTOR) if name in schema]
    return UserStats(height, dimensions, sorted(named, key=lambda each: (-each[1], each[0].encode())))


def _dimension(users: pl.LazyFrame, name: str, schema: Mapping[str, pl.DataType]) -> Dimension:
    source = f"{name}_source"
    from_where = _counted(users, pl.col(source)) if source in schema else []
    sources = {value: number for value, number in from_where if value is not None}
    if name == _VECTOR:  # each user's own: only where it comes from can be counted
        return Dimension(name, [], (0, 0), sources, sum(n for value, n in from_where if value is None))
    counted = _counted(users, _binned() if name == _NUMBER else pl.col(name).cast(pl.String))
    values = [(value, number) for value, number in counted if value is not None]
    if name == _NUMBER:
        values.sort()
    rest = values[LABELS:]
    without = sum(number for value, number in counted if value is None)
    return Dimension(name, values[:LABELS], (len(rest), sum(number for _, number in rest)), sources, without)


def _binned() -> pl.Expr:
    """A number from 0 to 1 as the tenth that it is in; what is outside, at the end that it is nearer to."""
    tenth = (pl.col(_NUMBER) * 10 + 1e-9).floor().clip(0, 9)
    names = {place: f"{place / 10:.1f} to {(place + 1) / 10:.1f}" for place in range(10)}
    return tenth.cast(pl.Int64).replace_strict(names, return_dtype=pl.String, default=None)


def _counted(users: pl.LazyFrame, value: pl.Expr) -> list[tuple[str | None, int]]:
    """How many users have each value, the most frequent first."""
    counted = users.select(value=value).group_by("value").len().collect()
    return list(counted.sort("len", "value", descending=[True, False]).iter_rows())


def _file(folder: Path, name: str) -> Path:
    return (folder / f"{name}.parquet").absolute()
