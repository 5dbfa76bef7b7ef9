"""The numbers that the report counts itself: of the events, bucket by bucket, and of items.parquet and users.parquet.

No event is kept in memory. For each user the affinity for each category is, two bytes each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.runtime.run_record import Progress
from etl.runtime.workers import OrderedWorker
from etl.transform.arrays import I64
from etl.transform.schemas import ARCHIVED, DIMENSIONS
from etl.triples.dataset import GONE, Dataset
from etl.triples.generate import I32, MARKS, U32, ListColumn, MembershipTable

AFFINITY_STEPS = 10_000
"""Affinities, from 0 to 1, are counted in ten-thousandths."""

CANDIDATE, SELECTED_IN, SELECTED_OUTSIDE = "candidates", "selected, of the candidates", "selected, no candidate"
"""The groups of (event, item) whose affinities are counted."""

MAX_LABELS = 12
"""How many values of a dimension are shown, the most frequent first."""

MAX_UNUSED, MAX_TOP = 50, 10
"""How many of the items that were never shown, and of those selected most often, are listed."""

MAX_MAPS, MAX_POINTS = 6, 1_000
"""How many cities have a map, and how many of their items are on it."""

_BLOCK = 4_096  # events that are counted at a time: their items fit into the cache

_COORDINATES = {"latitude": 90, "longitude": 180}
_KM_PER_DEGREE, _MIDDLE = 111.195, (0.02, 0.98)
_COLUMNS = ("candidate_idx", "selected_idx")
_PREFIX, _SECONDS_PER_DAY = "affinity_", 86_400
_ITEM = ("name", "city", "category", "status")
_ROLES = {role: f"n_{role}" for role in ("candidate", "selected", "positive", "negative")}
_NUMBER, _VECTOR = "cuisine_openness", "category_affinities"


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass
class CityStats:
    """Counts of a city: events, those of them without a selection, selected items, those of them that are no candidate."""

    events: int = 0
    without_selection: int = 0
    selected: int = 0
    outside: int = 0


@dataclass
class EventStats:
    """Counts of events.

    - `candidate`, `selected`: for each item, by index, the events that offer it and that select it.
    - `has_events`: for each user, by index, whether there is an event.
    - `days`: events by day since 1970.
    - `affinities`: for each of CANDIDATE, SELECTED_IN and SELECTED_OUTSIDE, the number of (event, item) with an affinity of 0,
      1, 2 ... AFFINITY_STEPS. Users without any affinity are not counted.

    The other fields are each user's affinity for each category (last: for any other; more than AFFINITY_STEPS for a user who
    has none at all), and each item's category as a column of that.
    """

    candidate: I64
    selected: I64
    has_events: npt.NDArray[np.bool_]
    affinity: npt.NDArray[np.uint16]
    category: npt.NDArray[np.intp]
    days: Counter[int] = field(default_factory=Counter)
    cities: dict[str, CityStats] = field(default_factory=dict)
    affinities: dict[str, I64] = field(
        default_factory=lambda: {
            name: np.zeros(AFFINITY_STEPS + 1, np.int64) for name in (CANDIDATE, SELECTED_IN, SELECTED_OUTSIDE)
        }
    )

    @classmethod
    def of(cls, dataset: Dataset, default_affinity: float) -> EventStats:
        """Return the counts of no events of a dataset."""
        items = dataset.items.height
        tables = [_affinity_matrix(rows, default_affinity) for rows in dataset.user_features()]
        names = next((names for names, _ in tables), [])
        columns = dataset.items["category"].replace_strict(
            names, range(len(names)), default=len(names), return_dtype=pl.Int64
        )
        return cls(
            np.zeros(items, np.int64),
            np.zeros(items, np.int64),
            np.zeros(dataset.users.height, np.bool_),
            np.concatenate([affinity for _, affinity in tables]),
            columns.fill_null(len(names)).to_numpy().astype(np.intp),
        )

    def add(self, events: pl.DataFrame) -> None:
        """Count a bucket's events: a frame with the columns of `Dataset.events`."""
        offered, selected = ListColumn.of(events["candidate_idx"]), ListColumn.of(events["selected_idx"])
        self.candidate += np.bincount(offered.codes, minlength=len(self.candidate))
        self.selected += np.bincount(selected.codes, minlength=len(self.selected))
        users, outside = events["user_idx"].to_numpy(), np.zeros(events.height, np.int64)
        self.has_events[users] = True
        marks = MembershipTable(len(self.candidate))
        block = max(1, min(_BLOCK, MARKS // max(1, len(self.candidate))))
        for first in range(0, events.height, block):
            end = min(first + block, events.height)
            candidates, chosen = offered.long(first, end), selected.long(first, end)
            inside = marks.among(chosen, candidates)
            affinity = self.affinity[users[first:end]]
            self._add_affinities(CANDIDATE, affinity, candidates.event, candidates.code)
            self._add_affinities(SELECTED_IN, affinity, chosen.event[inside], chosen.code[inside])
            self._add_affinities(SELECTED_OUTSIDE, affinity, chosen.event[~inside], chosen.code[~inside])
            outside[first:end] = np.bincount(chosen.event[~inside], minlength=end - first)
        for day, number in events.group_by(pl.col("timestamp").floordiv(_SECONDS_PER_DAY)).len().iter_rows():
            self.days[day] += number
        self._add_cities(events["city"], selected.lengths, outside)

    def _add_affinities(self, name: str, affinity: npt.NDArray[np.uint16], events: I32, codes: U32) -> None:
        """Count the affinities of items, by event. `affinity` has a row for each event."""
        cells = events.astype(np.intp) * affinity.shape[1]
        cells += self.category.take(codes.astype(np.intp))
        self.affinities[name] += np.bincount(affinity.take(cells), minlength=AFFINITY_STEPS + 2)[:-1]

    def _add_cities(self, cities: pl.Series, selected: I64, outside: I64) -> None:
        frame = pl.DataFrame({"city": cities, "selected": selected, "outside": outside})
        per_city = frame.group_by("city").agg(
            pl.len(), (pl.col("selected") == 0).sum().alias("without"), pl.col("selected", "outside").sum()
        )
        for city, events, without, selections, beyond in per_city.iter_rows():
            total = self.cities.setdefault(city, CityStats())
            total.events += events
            total.without_selection += without
            total.selected += selections
            total.outside += beyond


def count_events(dataset: Dataset, default_affinity: float, progress: Progress) -> EventStats:
    """Count all events of a dataset, a bucket at a time. `default_affinity` is that for a category that a user has none for."""
    stats = EventStats.of(dataset, default_affinity)
    for number, events in enumerate(dataset.events.select(_COLUMNS)):
        progress("report", number, dataset.events.buckets)
        if events.height:
            stats.add(events)
    return stats


class BackgroundCount:
    """Counts events on a worker, bucket by bucket, while they are used for something else."""

    def __init__(self, dataset: Dataset, default_affinity: float, worker: OrderedWorker) -> None:
        # A frame object must not be shared by threads.
        own = replace(dataset, users=dataset.users.clone(), items=dataset.items.clone())
        self._stats = worker.submit(lambda: EventStats.of(own, default_affinity))
        self._worker = worker

    def add(self, events: pl.DataFrame) -> None:
        """Count a bucket's events later. A failure is raised by `result`."""
        own = events.clone()
        self._worker.submit(lambda: self._stats.result().add(own))

    def result(self) -> EventStats:
        """Wait for the counts. Raises the first failure of counting."""
        self._worker.wait()
        return self._stats.result()


def _affinity_matrix(users: pl.DataFrame, default_affinity: float) -> tuple[list[str], npt.NDArray[np.uint16]]:
    """Return the categories, and `EventStats.affinity` of some users."""
    columns = [name for name in users.columns if name.startswith(_PREFIX)]
    matrix = np.full((users.height, len(columns) + 1), round(default_affinity * AFFINITY_STEPS), np.uint16)
    known = np.zeros(users.height, np.bool_)
    for number, name in enumerate(columns):
        known |= users[name].is_not_null().to_numpy()
        values = users[name].fill_null(default_affinity).clip(0, 1) * AFFINITY_STEPS
        matrix[:, number] = values.round().cast(pl.UInt16).to_numpy()
    matrix[~known] = AFFINITY_STEPS + 1
    return [name.removeprefix(_PREFIX) for name in columns], matrix


# --- items and users -------------------------------------------------------------------------------------------------


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
    items = pl.read_parquet(_file(folder, "items"), columns=[name for name in columns if name in there], glob=False)
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
    """Count the users of a snapshot that still exist: of a large file, column by column."""
    path = _file(folder, "users")
    schema = pl.read_parquet_schema(path)
    users = pl.scan_parquet(path, glob=False).drop(_VECTOR, strict=False)
    if path.stat().st_size <= _SMALL_FILE:
        users = users.collect().lazy()  # a scan per column takes longer than all that is counted
    if "status" in schema:
        users = users.filter(pl.col("status") != GONE)
    height = int(users.select(pl.len()).collect().item())
    affinities = [name for name in schema if name.startswith(_PREFIX)]
    means = users.select(pl.col(affinities).mean()).collect().row(0) if affinities else ()
    named = [
        (name.removeprefix(_PREFIX), mean) for name, mean in zip(affinities, means, strict=True) if mean is not None
    ]
    dimensions = [_dimension(users, name, schema) for name in DIMENSIONS if name in schema]
    return UserStats(height, dimensions, sorted(named, key=lambda each: (-each[1], each[0].encode())))


def _dimension(users: pl.LazyFrame, name: str, schema: Mapping[str, pl.DataType]) -> Dimension:
    source = f"{name}_source"
    by_source = _value_counts(users, pl.col(source)) if source in schema else []
    sources = {value: number for value, number in by_source if value is not None}
    if name == _VECTOR:  # differs from user to user: only its sources can be counted
        return Dimension(name, [], (0, 0), sources, sum(n for value, n in by_source if value is None))
    counts = _value_counts(users, _tenths() if name == _NUMBER else pl.col(name).cast(pl.String))
    values = [(value, number) for value, number in counts if value is not None]
    if name == _NUMBER:
        values.sort()
    rest = values[MAX_LABELS:]
    without = sum(number for value, number in counts if value is None)
    return Dimension(name, values[:MAX_LABELS], (len(rest), sum(number for _, number in rest)), sources, without)


def _tenths() -> pl.Expr:
    """Bin a number from 0 to 1 by tenths; values outside go to the nearest bin."""
    tenth = (pl.col(_NUMBER) * 10 + 1e-9).floor().clip(0, 9)
    names = {number: f"{number / 10:.1f} to {(number + 1) / 10:.1f}" for number in range(10)}
    return tenth.cast(pl.Int64).replace_strict(names, return_dtype=pl.String, default=None)


def _value_counts(users: pl.LazyFrame, value: pl.Expr) -> list[tuple[str | None, int]]:
    """Return (value, users), the most frequent first."""
    counts = users.select(value=value).group_by("value").len().collect()
    return list(counts.sort("len", "value", descending=[True, False]).iter_rows())


def _file(folder: Path, name: str) -> Path:
    return (folder / f"{name}.parquet").absolute()
