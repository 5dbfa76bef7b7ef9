"""Pure: events by day, put together to as many columns as a chart can show: days, weeks, months, years, centuries."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

from etl.reporting.numbers import MONTHS, format_date

MOST = 120
"""Columns at the most."""

_EPOCH = date(1970, 1, 1).toordinal()
_STRAY = 0.0005
"""The share of events at either end that may be left out of the chart, where the rest would be crowded together for them."""


@dataclass(frozen=True)
class TimeBins:
    """Columns of a chart: how many events each has, the first day of each, what it is one of, labels by column.

    `first` and `last` are the days of the events that are shown; `stray` counts those before and after.
    """

    unit: str
    values: list[int]
    starts: list[date]
    labels: dict[int, str]
    first: date
    last: date
    outliers: int

    @property
    def busiest(self) -> tuple[str, int]:
        """The column with most events, and how many."""
        most = max(range(len(self.values)), key=self.values.__getitem__)
        return self._named(self.starts[most]), self.values[most]

    def _named(self, start: date) -> str:
        return f"week of {format_date(start)}" if self.unit == "week" else _label(start, self.unit)


def bin_by_time(counts: Mapping[int, int]) -> TimeBins | None:
    """Columns of events by day since 1970; None where there is no event."""
    if not counts:
        return None
    ordered = sorted((number + _EPOCH, events) for number, events in counts.items())
    shown = _without_strays(ordered)
    first, last = (date.fromordinal(shown[end][0]) for end in (0, -1))
    unit, starts = next(each for each in _units(first, last) if len(each[1]) <= MOST)
    values = [0] * len(starts)
    edges = [start.toordinal() for start in starts]
    for number, events in shown:
        values[bisect_right(edges, number) - 1] += events
    stray = sum(events for _, events in ordered) - sum(values)
    return TimeBins(unit, values, starts, _labels(starts, unit), first, last, stray)


def _without_strays(ordered: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without the few at either end, where nearly all events fall into less than a third of the time."""
    allowed = int(sum(events for _, events in ordered) * _STRAY)
    start, end = _cut(ordered, allowed), len(ordered) - _cut(ordered[::-1], allowed)
    inner = ordered[start:end]
    if not inner or (inner[-1][0] - inner[0][0]) * 3 > ordered[-1][0] - ordered[0][0]:
        return ordered
    return inner


def _cut(ordered: list[tuple[int, int]], allowed: int) -> int:
    """How many days can go before more than `allowed` events would."""
    gone = 0
    for place, (_, events) in enumerate(ordered):
        gone += events
        if gone > allowed:
            return place
    return len(ordered)


def _units(first: date, last: date) -> Iterator[tuple[str, list[date]]]:
    """The units of time, finest first, each with the first days of its columns from the first to the last event."""
    low, high = first.toordinal(), last.toordinal()
    yield "day", [date.fromordinal(low + place) for place in range(min(high - low, MOST) + 1)]
    monday = max(1, low - first.weekday())
    yield "week", [date.fromordinal(monday + 7 * place) for place in range(min((high - monday) // 7, MOST) + 1)]
    months = range(first.year * 12 + first.month - 1, last.year * 12 + last.month)
    yield "month", [date(month // 12, month % 12 + 1, 1) for month in months[: MOST + 1]]
    for unit, years in (("year", 1), ("decade", 10), ("century", 100)):
        starts = range(first.year - first.year % years, last.year + 1, years)
        yield unit, [date(max(1, year), 1, 1) for year in starts[: MOST + 1]]


def _labels(starts: list[date], unit: str) -> dict[int, str]:
    """About four labels, evenly; none twice."""
    step = max(1, -(-len(starts) // 4))
    places = range(step // 2 if len(starts) > 1 else 0, len(starts), step)
    labels = {place: _label(starts[place], unit) for place in places}
    same = {later for earlier, later in pairwise(labels) if labels[earlier] == labels[later]}
    return {place: label for place, label in labels.items() if place not in same}


def _label(start: date, unit: str) -> str:
    if unit in ("day", "week"):
        return format_date(start)
    return f"{MONTHS[start.month - 1]} {start.year}" if unit == "month" else str(start.year)
