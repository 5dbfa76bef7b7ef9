"""The numbers that the report counts itself of items.parquet and users.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from etl.reporting.event_stats import AFFINITY_PREFIX, EventStats
from etl.snapshots.reading.snapshot import read_file, require_columns
from etl.transform.arrays import I64
from etl.transform.schemas import ARCHIVED, DIMENSIONS
from etl.triples.dataset import GONE

MAX_LABELS = 12
"""How many values of a dimension are shown, the most frequent first."""

MAX_UNUSED, MAX_TOP = 50, 10
"""How many of the items that were never shown, and of those selected most often, are listed."""

MAX_MAPS, MAX_POINTS = 6, 1_000
"""How many cities have a map, and how many of their items are on it."""

_COORDINATES = {"latitude": 90, "longitude": 180}
_KM_PER_DEGREE, _MIDDLE = 111.195, (0.02, 0.98)
_ITEM = ("name", "city", "category", "status")
_ROLES = {role: f"n_{role}" for role in ("candidate", "selected", "positive", "negative")}
_NUMBER, _VECTOR = "cuisine_openness", "category_affinities"


@dataclass(frozen=True)
class ItemStats:
    """Counts of items by role (candidate, selected, positive, negative), among the cities with triples if there are any.

    `counts` has for each role the counts of all items that have it, highest first. `tenth` is the share that the tenth of the
    eligible items with the highest counts has. `offered` items are eligible; `never_offered` of these were neither candidate
    nor selected in any event, the first of which are listed.
    """

    offered: int
    counts: dict[str, I64]
    tenth: dict[str, float]
    never_offered: int
    never_listed: list[dict[str, Any]]
    top: list[dict[str, Any]]
    maps: list[ItemMap]


@dataclass(frozen=True)
class ItemMap:
    """The items of a city on a map of `side` km: km east and north of its middle, and how often each was selected.

    `others` counts the city's items that are not there: without coordinates, far from the others, or beyond MAX_POINTS.
    """

    city: str
    side: float
    places: list[tuple[float, float]]
    selected: I64
    others: int


@dataclass(frozen=True)
class Dimension:
    """Users by value of a persona dimension, the most frequent first, and by source of the value.

    `more` has the number of further values and of the users that have one of them. `without` counts users without a value.
    """

    name: str
    values: list[tuple[str, int]]
    more: tuple[int, int]
    sources: dict[str, int]
    without: int


_SMALL_FILE = 16 << 20


@dataclass(frozen=True)
class UserStats:
    """The users of the audience, the dimensions of their personas, and their mean affinity for each category."""

    users: int
    dimensions: list[Dimension]
    affinities: list[tuple[str, float]]


def item_stats(folder: Path, stats: EventStats, cities: Sequence[str]) -> ItemStats:
    """Count the items of a snapshot, in these cities if there are any; the first of them have a map.

    Positives and negatives are those of train; the other roles are of all events.
    """
    columns = ["item_id", *_ITEM, "n_positive", "n_negative", *_COORDINATES]
    there = pl.read_parquet_schema(_file(folder, "items"))
    items = read_file(folder, "items.parquet", [name for name in columns if name in there])
    zeros = [pl.lit(0, pl.Int64).alias(name) for name in columns if name not in there]  # a snapshot of release 0.1
    items = items.with_columns(
        *zeros, pl.Series("n_candidate", stats.candidate), pl.Series("n_selected", stats.selected)
    )
    if cities:
        items = items.filter(pl.col("city").is_in(cities))
    offered = items.filter(~pl.col("status").is_in([ARCHIVED, GONE]))
    counts = {role: np.sort(items[column].to_numpy())[::-1] for role, column in _ROLES.items()}
    never = offered.filter(n_candidate=0, n_selected=0).sort("city", "name", "item_id", nulls_last=True)
    most = items.filter(pl.col("n_selected") > 0).sort("n_selected", "item_id", descending=[True, False])
    return ItemStats(
        offered.height,
        {role: times[times > 0] for role, times in counts.items()},
        {role: _top_decile_share(times, offered.height) for role, times in counts.items()},
        never.height,
        never.head(MAX_UNUSED).select(*_ITEM).to_dicts(),
        most.head(MAX_TOP).select(*_ITEM, *_ROLES.values()).to_dicts(),
        [found for city in cities[:MAX_MAPS] if (found := _item_map(city, items.filter(city=city)))],
    )


def _item_map(city: str, items: pl.DataFrame) -> ItemMap | None:
    """Return the map of a city's items, those selected most often first; None where fewer than two have coordinates."""
    usable = [pl.col(name).is_between(-end, end) for name, end in _COORDINATES.items()]
    there = items.filter(*usable).sort("n_selected", "item_id", descending=[True, False])
    if there.height < 2:
        return None
    latitude, longitude = there["latitude"].to_numpy(), there["longitude"].to_numpy()
    middle = float(np.median(latitude))
    north = (latitude - middle) * _KM_PER_DEGREE
    # The mean of directions: also right where 180 degrees east is within the city.
    meridian = np.degrees(np.angle(np.exp(1j * np.radians(longitude)).mean()))
    east = (longitude - meridian + 180) % 360 - 180
    east *= _KM_PER_DEGREE * np.cos(np.radians(middle))
    low, high = np.quantile([east, north], _MIDDLE, axis=1)
    side = float(max((high - low).max() * 1.3, 0.2))
    east, north = east - (low + high)[0] / 2, north - (low + high)[1] / 2
    inside = np.flatnonzero(np.maximum(abs(east), abs(north)) <= side / 2)[:MAX_POINTS]
    selected = there["n_selected"].to_numpy()[inside]
    places = list(zip(east[inside].tolist(), north[inside].tolist(), strict=True))
    return ItemMap(city, side, places, selected, items.height - len(inside))


def _top_decile_share(counts: I64, items: int) -> float:
    """Return the share of the tenth of the items with the highest counts; nan where all are 0."""
    return float(counts[: max(1, round(items / 10))].sum() / counts.sum()) if counts.sum() else float("nan")


def user_stats(folder: Path) -> UserStats:
    """Count the users of a snapshot that still exist: each column by itself."""
    path = _file(folder, "users")
    schema = require_columns(pl.DataFrame(schema=pl.read_parquet_schema(path)), path).schema
    users = pl.scan_parquet(path, glob=False).drop(_VECTOR, strict=False)
    if "status" in schema:
        users = users.filter(pl.col("status") != GONE)
    if path.stat().st_size <= _SMALL_FILE:
        users = users.collect().lazy()  # a scan per column takes longer than all that is counted
    height = int(users.select(pl.len()).collect().item())
    affinities = [name for name in schema if name.startswith(AFFINITY_PREFIX)]
    means = users.select(pl.col(affinities).mean()).collect().row(0) if affinities else ()
    named = [
        (name.removeprefix(AFFINITY_PREFIX), mean)
        for name, mean in zip(affinities, means, strict=True)
        if mean is not None
    ]
    values = {name: pl.col(name).cast(pl.String) for name in DIMENSIONS if name in schema and name != _VECTOR}
    values |= {_NUMBER: _tenths()} if _NUMBER in values else {}
    sources = {name: pl.col(name) for name in (f"{each}_source" for each in DIMENSIONS) if name in schema}
    counts = _value_counts(users, values | sources)
    dimensions = [_dimension(name, counts) for name in DIMENSIONS if name in schema]
    return UserStats(height, dimensions, sorted(named, key=lambda each: (-each[1], each[0].encode())))


def _dimension(name: str, counts: Mapping[str, list[tuple[str | None, int]]]) -> Dimension:
    by_source = counts.get(f"{name}_source", [])
    sources = {value: number for value, number in by_source if value is not None}
    if name == _VECTOR:  # differs from user to user: only its sources can be counted
        return Dimension(name, [], (0, 0), sources, sum(n for value, n in by_source if value is None))
    values = [(value, number) for value, number in counts[name] if value is not None]
    if name == _NUMBER:
        values.sort()
    rest = values[MAX_LABELS:]
    without = sum(number for value, number in counts[name] if value is None)
    return Dimension(name, values[:MAX_LABELS], (len(rest), sum(number for _, number in rest)), sources, without)


def _tenths() -> pl.Expr:
    """Bin a number from 0 to 1 by tenths; values outside go to the nearest bin."""
    tenth = (pl.col(_NUMBER) * 10 + 1e-9).floor().clip(0, 9)
    names = {number: f"{number / 10:.1f} to {(number + 1) / 10:.1f}" for number in range(10)}
    return tenth.cast(pl.Int64).replace_strict(names, return_dtype=pl.String, default=None)


def _value_counts(users: pl.LazyFrame, columns: Mapping[str, pl.Expr]) -> dict[str, list[tuple[str | None, int]]]:
    """Return (value, users) by column, the most frequent first."""
    counts = pl.collect_all([users.select(value=value).group_by("value").len() for value in columns.values()])
    return {
        name: list(found.sort("len", "value", descending=[True, False]).iter_rows())
        for name, found in zip(columns, counts, strict=True)
    }


def _file(folder: Path, name: str) -> Path:
    return (folder / f"{name}.parquet").absolute()
