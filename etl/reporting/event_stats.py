"""Pure: what the report needs to know of every event, counted while the events pass by, bucket by bucket.

Nothing is kept of a single event. Of users the affinity for each category is held, two bytes each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.transform.arrays import I64
from etl.triples.dataset import Dataset
from etl.triples.generate import ListColumn

AFFINITY_STEPS = 10_000
"""Affinities are counted in ten-thousandths, from 0 to 1."""

OFFERED, TAKEN, TAKEN_OUTSIDE = "candidates", "selected, of the candidates", "selected, no candidate"
"""Whose affinities are told apart: of (event, node), what was offered, what of it was taken, what was taken besides."""

_PREFIX, _DAY = "affinity_", 86_400


@dataclass
class CityStats:
    """A city's events, those of them in which nothing was selected, what was selected, and what of that was no candidate."""

    events: int = 0
    without_selection: int = 0
    selected: int = 0
    outside: int = 0


@dataclass
class EventStats:
    """All events so far. `candidate` and `selected` say of each node, by code, how many events offer it and select it.

    `met` says of each user, by code, whether any event is theirs.
    `days` counts events by day since 1970; `affinities` has for each of OFFERED, TAKEN and TAKEN_OUTSIDE how many (event, node)
    have an affinity of 0, 1, 2 ... UNIT. Events of users of whom no affinity is known are in no affinity.
    """

    candidate: I64
    selected: I64
    has_events: npt.NDArray[np.bool_]
    affinity: npt.NDArray[np.uint16]
    category: npt.NDArray[np.intp]
    known: npt.NDArray[np.bool_]
    days: Counter[int] = field(default_factory=Counter)
    cities: dict[str, CityStats] = field(default_factory=dict)
    affinities: dict[str, I64] = field(
        default_factory=lambda: {
            name: np.zeros(AFFINITY_STEPS + 1, np.int64) for name in (OFFERED, TAKEN, TAKEN_OUTSIDE)
        }
    )

    @classmethod
    def of(cls, dataset: Dataset, unknown: float) -> EventStats:
        """No events yet, of a dataset. `unknown` is the affinity for a category that the user has none for."""
        items = dataset.items.height
        tables = [_table(rows, unknown) for rows in dataset.user_features()]
        names = next((names for names, _, _ in tables), [])
        places = dataset.items["category"].replace_strict(
            names, range(len(names)), default=len(names), return_dtype=pl.Int64
        )
        return cls(
            np.zeros(items, np.int64),
            np.zeros(items, np.int64),
            np.zeros(dataset.users.height, np.bool_),
            np.concatenate([affinity for _, affinity, _ in tables]),
            places.fill_null(len(names)).to_numpy().astype(np.intp),
            np.concatenate([known for _, _, known in tables]),
        )

    def add(self, events: pl.DataFrame) -> None:
        """Count a bucket's events: a frame with the columns of `Dataset.events`."""
        offered, taken = ListColumn.of(events["candidate_idx"]), ListColumn.of(events["selected_idx"])
        self.candidate += np.bincount(offered.codes, minlength=len(self.candidate))
        self.selected += np.bincount(taken.codes, minlength=len(self.selected))
        rows, codes = (np.repeat(np.arange(events.height), taken.lengths), taken.codes)
        among = _among(offered, rows, codes, len(self.candidate))
        users = events["user_idx"].to_numpy()
        self.has_events[users] = True
        self._add_affinities(OFFERED, users[np.repeat(np.arange(events.height), offered.lengths)], offered.codes)
        self._add_affinities(TAKEN, users[rows[among]], codes[among])
        self._add_affinities(TAKEN_OUTSIDE, users[rows[~among]], codes[~among])
        for day, number in events.group_by(pl.col("timestamp").floordiv(_DAY)).len().iter_rows():
            self.days[day] += number
        self._add_cities(events["city"], taken.lengths, np.bincount(rows[~among], minlength=events.height))

    def _add_affinities(self, name: str, users: npt.NDArray[np.uint32], codes: npt.NDArray[np.uint32]) -> None:
        found = self.affinity[users, self.category[codes]][self.known[users]]
        self.affinities[name] += np.bincount(found, minlength=AFFINITY_STEPS + 1)

    def _add_cities(self, cities: pl.Series, selected: I64, outside: npt.NDArray[np.intp]) -> None:
        of_events = pl.DataFrame({"city": cities, "selected": selected, "outside": outside})
        per_city = of_events.group_by("city").agg(
            pl.len(), (pl.col("selected") == 0).sum().alias("idle"), pl.col("selected", "outside").sum()
        )
        for city, *numbers in per_city.iter_rows():
            total = self.cities.setdefault(city, CityStats())
            total.events, total.without_selection, total.selected, total.outside = (
                before + number
                for before, number in zip(
                    (total.events, total.without_selection, total.selected, total.outside), numbers, strict=True
                )
            )


def _table(users: pl.DataFrame, unknown: float) -> tuple[list[str], npt.NDArray[np.uint16], npt.NDArray[np.bool_]]:
    """The categories; each user's affinity for them and, last, for one that is none of them; who has any at all."""
    columns = [name for name in users.columns if name.startswith(_PREFIX)]
    table = np.full((users.height, len(columns) + 1), round(unknown * AFFINITY_STEPS), np.uint16)
    known = np.zeros(users.height, np.bool_)
    for place, name in enumerate(columns):
        known |= users[name].is_not_null().to_numpy()
        table[:, place] = (
            (users[name].fill_null(unknown).clip(0, 1) * AFFINITY_STEPS).round().cast(pl.UInt16).to_numpy()
        )
    return [name.removeprefix(_PREFIX) for name in columns], table, known


def _among(
    offered: ListColumn, rows: npt.NDArray[np.intp], codes: npt.NDArray[np.uint32], nodes: int
) -> npt.NDArray[np.bool_]:
    """Whether each (event's row, node) is among the event's candidates."""
    keys = np.repeat(np.arange(len(offered.lengths)), offered.lengths) * nodes + offered.codes
    if not len(keys):
        return np.zeros(len(rows), np.bool_)
    keys.sort()  # candidates stand in the order of their ids, which nearly always is that of their codes
    wanted = rows * nodes + codes
    found: npt.NDArray[np.bool_] = keys[np.searchsorted(keys, wanted).clip(max=len(keys) - 1)] == wanted
    return found
