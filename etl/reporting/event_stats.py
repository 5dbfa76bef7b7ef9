"""The numbers that the report counts itself of the events, bucket by bucket.

No event is kept in memory. For each user the affinity for each category is, two bytes each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.runtime.run_record import Progress
from etl.runtime.workers import OrderedWorker
from etl.transform.arrays import I64
from etl.triples.dataset import Dataset
from etl.triples.generate import I32, MARKS, U32, ListColumn, MembershipTable

AFFINITY_STEPS = 10_000
"""Affinities, from 0 to 1, are counted in ten-thousandths."""

CANDIDATE, SELECTED_IN, SELECTED_OUTSIDE = "candidates", "selected, of the candidates", "selected, no candidate"
"""The groups of (event, item) whose affinities are counted."""

AFFINITY_PREFIX = "affinity_"
"""How the names of the affinities' columns begin in users.parquet."""

_BLOCK = 4_096  # events that are counted at a time: their items fit into the cache

_COLUMNS = ("candidate_idx", "selected_idx")
_SECONDS_PER_DAY = 86_400


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
        self.candidate += offered.counts(len(self.candidate))
        self.selected += selected.counts(len(self.selected))
        users, outside = events["user_idx"].to_numpy(), np.zeros(events.height, np.int64)
        self.has_events[users] = True
        marks = MembershipTable(len(self.candidate))
        block = max(1, min(_BLOCK, MARKS // max(1, len(self.candidate))))
        for first in range(0, events.height, block):
            end = min(first + block, events.height)
            candidates, chosen = offered.long(first, end), selected.long(first, end)
            _, inside = marks.common(candidates, chosen)
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
    columns = [name for name in users.columns if name.startswith(AFFINITY_PREFIX)]
    matrix = np.full((users.height, len(columns) + 1), round(default_affinity * AFFINITY_STEPS), np.uint16)
    known = np.zeros(users.height, np.bool_)
    for number, name in enumerate(columns):
        known |= users[name].is_not_null().to_numpy()
        values = users[name].fill_null(default_affinity).clip(0, 1) * AFFINITY_STEPS
        matrix[:, number] = values.round().cast(pl.UInt16).to_numpy()
    matrix[~known] = AFFINITY_STEPS + 1
    return [name.removeprefix(AFFINITY_PREFIX) for name in columns], matrix
