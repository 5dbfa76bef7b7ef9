"""Charts of the report: inline SVG in the page's colours and fonts. The same data give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from itertools import groupby, pairwise
from unicodedata import east_asian_width

import numpy as np
import polars as pl

from etl.reporting.history import Metric
from etl.reporting.wording import MONTHS, format_date, format_si
from etl.transform.arrays import I64

WIDTH = 440
"""Width of a chart in its own units: about CSS pixels on a desktop; a phone shows it a fifth smaller."""

_NARROW = 300
"""Width of a chart in a row of three."""

_INK, _MUTED, _RULE, _BAD, _BAND = "--ink", "--muted", "--rule", "--bad", "--band"
SERIES = ("--series-1", "--series-2", "--series-3", "--series-4")
"""Colours are CSS variables of the page, which have a light and a dark value."""

_DOTTED = ";stroke-dasharray:2 3"
_CURVE_POINTS = 90

MAX_BINS = 120
"""The largest number of columns of a chart over time."""

_MAX_OUTLIERS = 0.0005
"""The share of events at either end that may be cut off where they would squeeze the others together."""

Point = tuple[float, float]


def _line(colour: str, width: float = 1.8) -> str:
    return f"fill:none;stroke:var({colour});stroke-width:{width}"


def _area(colour: str, opacity: float = 1) -> str:
    return f"fill:var({colour});fill-opacity:{opacity}"


class Chart:
    """An SVG with one plot area.

    `margins` are left, bottom, right and top. `x_range` and `y_range` are the values at the ends of the axes. Shapes are given
    in values; of a logarithmic chart these are exponents.
    """

    def __init__(
        self,
        height: float,
        margins: tuple[float, float, float, float],
        x_range: Point,
        y_range: Point,
        width: float = WIDTH,
    ) -> None:
        left, bottom, right, top = margins
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = left, width - right, top, height - bottom
        self.x_range, self.y_range = x_range, y_range
        self._parts: list[str] = []

    def x(self, value: float) -> float:
        """Return the position of a value on the x axis."""
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Return the position of a value on the y axis."""
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def path(self, points: Iterable[Point | None], style: str) -> None:
        """Draw a line, or an area, through points. None is a gap."""
        steps, pen = [], "M"
        for point in points:
            if point is not None:
                steps.append(f"{pen}{_short(self.x(point[0]))} {_short(self.y(point[1]))}")
            pen = "M" if point is None else "L"
        if steps:
            self._parts.append(f'<path d="{"".join(steps)}" style="{style}"/>')

    def dot(self, point: Point, radius: float, style: str) -> None:
        """Draw a circle."""
        x, y = self.x(point[0]), self.y(point[1])
        self._parts.append(f'<circle cx="{_short(x)}" cy="{_short(y)}" r="{radius}" style="{style}"/>')

    def dots(self, points: Iterable[Point], style: str) -> None:
        """Draw dots, as wide as the stroke: lines without length that have round ends, in one element."""
        if steps := "".join(f"M{_short(self.x(x))} {_short(self.y(y))}h0" for x, y in points):
            self._parts.append(f'<path d="{steps}" style="{style}"/>')

    def text(self, x: float, y: float, text: str, anchor: str = "middle", colour: str = _MUTED) -> None:
        """Write a text at a position of the SVG."""
        where = f'x="{_short(x)}" y="{_short(y)}" text-anchor="{anchor}"'
        self._parts.append(f'<text {where} style="fill:var({colour})">{escape(text)}</text>')

    def x_axis(self, ticks: Mapping[float, str], *, grid: bool = False) -> None:
        """Label the x axis; draw vertical grid lines, or else the axis."""
        for value, label in ticks.items():
            self.text(self.x(value), self.bottom + 17, label)
            if grid:
                self.path([(value, self.y_range[0]), (value, self.y_range[1])], _line(_RULE, 0.8))
        if not grid:
            self.path([(end, self.y_range[0]) for end in self.x_range], _line(_RULE, 0.8))

    def y_axis(self, ticks: Mapping[float, str]) -> None:
        """Label the y axis, with horizontal grid lines."""
        for value, label in ticks.items():
            self.text(self.left - 5, self.y(value) + 4.5, label, "end")
            self.path([(end, value) for end in self.x_range], _line(_RULE, 0.8))

    def not_from_zero(self, start: float) -> None:
        """Say where the axis of the values starts, unless it has 0."""
        if start > 0:
            self.text(self.left, 12, f"axis starts at {format_si(start)}, not at 0", "start")

    def rows(self, labels: Iterable[str], width: int) -> None:
        """Label the rows of a chart whose y values are row numbers."""
        for row, label in enumerate(labels):
            self.text(self.left - 5, self.y(row) + 4.5, _truncate(label, width), "end", _INK)

    def svg(self, alt_text: str) -> str:
        """Return the chart as an HTML element."""
        box = f"0 0 {self.width:g} {self.height:g}"
        parts = "".join(self._parts)
        return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(alt_text)}">{parts}</svg>'


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _truncate(text: str, width: int) -> str:
    """Cut a text to about `width` characters. East Asian ones count twice."""
    used = 0
    for number, letter in enumerate(text):
        used += 2 if east_asian_width(letter) in "WF" else 1
        if used > width and number < len(text) - 1:
            return text[:number].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return text


def _ticks(
    low: float, high: float, count: int, label: Callable[[float], str] = format_si, *, whole: bool = False
) -> dict[float, str]:
    """Return the round values from low to high, at steps that give at most about `count`, with their labels."""
    rough = max((high - low) / count, 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(factor * power for factor in factors if factor * power >= rough * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return {number * step: label(number * step) for number in range(first, last + 1)}


def stacked_bars(rows: Sequence[tuple[str, Mapping[str, int]]], parts: Sequence[str], alt_text: str) -> str:
    """Draw horizontal bars of stacked parts: `rows` are (label, {part: length}); parts are coloured in the order of SERIES."""
    most = max((sum(values.get(part, 0) for part in parts) for _, values in rows), default=0) or 1
    chart = Chart(34 + 24 * max(1, len(rows)), (134, 28, 22, 6), (0, most * 1.03), (len(rows) - 0.4, -0.6))
    chart.rows((label for label, _ in rows), 17)
    chart.x_axis(_ticks(0, most, 4), grid=True)
    for row, (_, values) in enumerate(rows):
        start = 0
        for part, colour in zip(parts, SERIES, strict=False):
            end = start + values.get(part, 0)
            if end > start:
                low, high = row - 0.31, row + 0.31
                chart.path([(start, low), (end, low), (end, high), (start, high)], _area(colour))
            start = end
    return chart.svg(alt_text)


def rank_frequency(series: Sequence[I64], alt_text: str) -> str:
    """Draw counts against their rank, both axes logarithmic: a curve for each series of counts, each sorted descending."""
    curves = [counts for counts in series if len(counts)]
    most, longest = (max((each(counts) for counts in curves), default=1) for each in (lambda c: int(c[0]), len))
    least = min((int(counts[-1]) for counts in curves), default=1)
    floor = math.floor(math.log10(least))
    x_range = math.log10(0.9), math.log10(longest * 1.25)
    chart = Chart(290, (48, 44, 18, 24), x_range, (floor + math.log10(0.8), math.log10(most * 1.6)))
    chart.x_axis({power: format_si(10.0**power) for power in range(int(x_range[1]) + 1)})
    chart.y_axis({power: format_si(10.0**power) for power in range(floor, int(chart.y_range[1]) + 1)})
    for counts, colour in zip(series, SERIES, strict=False):
        if len(counts) == 1:
            chart.dot((0, math.log10(counts[0])), 1.5, _area(colour))
        elif len(counts):
            ranks = np.unique(np.geomspace(1, len(counts), _CURVE_POINTS).round().astype(int))
            points = zip(np.log10(ranks).tolist(), np.log10(counts[ranks - 1]).tolist(), strict=True)
            chart.path(points, _line(colour))
    chart.text((chart.left + chart.right) / 2, chart.height - 8, "rank of the item")
    chart.text(chart.left - 5, chart.top - 8, "times", "end")
    return chart.svg(alt_text)


def _steps(values: Sequence[float], width: float = 1.0) -> list[Point]:
    """Return the outline of adjoining columns."""
    tops = [(end * width, value) for start, value in enumerate(values) for end in (start, start + 1)]
    return [(0.0, 0.0), *tops, (len(values) * width, 0.0)]


def distributions(series: Sequence[tuple[Sequence[float], float]], alt_text: str) -> str:
    """Draw distributions over 0 to 1 as steps. Each is (share in every bin, mean); the mean is a dotted line."""
    top = max((max(shares) for shares, _ in series), default=0) * 1.12 or 1
    chart = Chart(260, (44, 44, 14, 12), (0, 1), (0, top))
    chart.y_axis({value: label for value, label in _ticks(0, top, 6, lambda v: f"{v * 100:.3g}%").items() if value})
    chart.x_axis(_ticks(0, 1, 5, "{:.1f}".format))
    for (shares, mean), colour in zip(series, SERIES, strict=False):
        outline = _steps(shares, 1 / len(shares))
        chart.path(outline, _area(colour, 0.1))
        chart.path(outline, _line(colour))
        chart.path([(mean, 0), (mean, top)], _line(colour, 1.2) + _DOTTED)
    chart.text((chart.left + chart.right) / 2, chart.height - 8, "affinity")
    return chart.svg(alt_text)


def column_chart(values: Sequence[int], labels: Mapping[int, str], alt_text: str) -> str:
    """Draw adjoining columns; `labels` are by column."""
    most = max(values, default=0) or 1
    chart = Chart(230, (48, 30, 20, 12), (0, max(1, len(values))), (0, most * 1.08))
    chart.y_axis(_ticks(0, most, 4))
    chart.path(_steps(values), _area(SERIES[0], 0.22))
    chart.path(_steps(values), _line(SERIES[0], 1.3))
    chart.x_axis({column + 0.5: label for column, label in labels.items()})
    return chart.svg(alt_text)


def item_map(side: float, places: Sequence[Point], times: I64, alt_text: str) -> str:
    """Draw items as dots on a square of `side` km, with a scale; `places` are km from its middle.

    The area of a dot is about in proportion to `times`: each of four sizes has four times the area of the one before it.
    """
    chart = Chart(_NARROW, (0, 0, 0, 0), (-side / 2, side / 2), (-side / 2, side / 2), _NARROW)
    with np.errstate(divide="ignore"):
        steps = np.ceil(np.log(times / max(1, int(times.max()))) / math.log(4)).clip(-4, 0)
    steps[(times > 0) & (steps < -3)] = -3
    for step in range(-4, 1):  # the largest last, on top
        colour, width = (_MUTED, 2) if step == -4 else (SERIES[0], 16 * 2.0**step)
        style = f"{_line(colour, width)};stroke-opacity:.6;stroke-linecap:round"
        chart.dots([places[row] for row in np.flatnonzero(steps == step).tolist()], style)
    length = max(_ticks(0, side / 3, 2))
    start, bottom = side * -0.47, side * -0.47
    chart.path([(start, bottom), (start + length, bottom)], _line(_INK, 1.5))
    chart.text(
        chart.x(start), chart.y(bottom) - 6, f"{length:g} km" if length >= 1 else f"{length * 1000:g} m", "start", _INK
    )
    return chart.svg(alt_text)


def interval_plot(rows: Sequence[tuple[str, float, float, float, bool]], mark: float, alt_text: str) -> str:
    """Draw means with intervals, and a line at `mark`. Rows are (label, mean, low, high, highlighted)."""
    low, high = min(row[2] for row in rows), max(row[3] for row in rows)
    margin = max(0.02, (high - low) * 0.08)
    x_range = min(low, mark) - margin, max(high, mark) + margin
    chart = Chart(60 + 30 * len(rows), (216, 28, 56, 22), x_range, (len(rows) - 0.4, -0.6))
    chart.rows((label for label, *_ in rows), 34)
    chart.x_axis(_ticks(*x_range, 4, "{:.2f}".format), grid=True)
    chart.path([(mark, end) for end in chart.y_range], _line(_MUTED, 1) + _DOTTED)
    chart.not_from_zero(x_range[0])
    for row, (_, mean, least, most, highlighted) in enumerate(rows):
        colour = SERIES[0] if highlighted else _MUTED
        chart.path([(least, row), (most, row)], _line(colour, 2.4))
        chart.dot((mean, row), 3.25, _area(colour))
        chart.text(chart.right + 6, chart.y(row) + 4.5, f"{mean:.3f}", "start", _INK)
    return chart.svg(alt_text)


def trend(
    runs: Sequence[Metric | None], ends: tuple[str, str], alt_text: str, reference: Sequence[Metric | None] = ()
) -> str:
    """Draw a metric over runs as a line, with the expected range as a band, and rings at values out of it.

    `ends` are the labels of the first and the last run. `reference` is a grey line.
    """
    values, grey = ([None if each is None else each.value for each in line] for line in (runs, reference))
    expected = [None if each is None else each.expected for each in runs]
    known = [value for value in (*values, *grey) if value is not None and math.isfinite(value)]
    ends_of_bands = [min(max(0.0, end), 1.5 * max(known)) for bounds in expected if bounds for end in bounds]
    last, y_range = max(1, len(values) - 1), _padded(min(known + ends_of_bands), max(known + ends_of_bands))
    chart = Chart(172, (48, 26, 8, 24), (-0.6, last + 0.6), y_range, _NARROW)
    chart.not_from_zero(y_range[0])
    chart.y_axis(_ticks(*y_range, 3, whole=all(float(value).is_integer() for value in known)))
    for has_range, group in groupby(enumerate(expected), key=lambda each: each[1] is not None):
        if has_range:
            band = [(run, bounds) for run, bounds in group if bounds is not None]
            clipped = [(run, *(min(max(end, y_range[0]), y_range[1]) for end in bounds)) for run, bounds in band]
            upper = [(run, high) for run, _, high in reversed(clipped)]
            chart.path([*((run, low) for run, low, _ in clipped), *upper], _area(_BAND))
    for line, style in ((grey, _line(_MUTED, 1.2)), (values, _line(SERIES[0]))):
        chart.path((None if value is None else (run, value) for run, value in enumerate(line)), style)
    for run, metric in enumerate(runs):
        if metric is not None:
            chart.dot((run, metric.value), 1.7, _area(SERIES[0]))
            if metric.out_of_range:
                chart.dot((run, metric.value), 4.5, _line(_BAD, 1))
    chart.x_axis({})
    chart.text(chart.x(0), chart.bottom + 17, ends[0], "start")
    if len(values) > 1:
        chart.text(chart.x(last), chart.bottom + 17, ends[1], "end")
    return chart.svg(alt_text)


def _padded(low: float, high: float) -> Point:
    """Return the range of an axis with a margin; a constant is in the middle. It has 0 where that takes half of it at most."""
    room = (high - low) * 0.2 or abs(high) * 0.05 or 1
    return low - room if low < 0 or low - room > high / 2 else -room * 0.2, high + room


# --- events over time ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimeBins:
    """Columns of a chart over time: the events and the first day of each, and labels by column.

    `first` and `last` are the days of the first and last event that is shown. `outliers` counts the events that are not.
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
        """The column with most events, and their number."""
        most = max(range(len(self.values)), key=self.values.__getitem__)
        label = _time_label(self.starts[most], self.unit)
        return f"week of {label}" if self.unit == "week" else label, self.values[most]


_UNITS = {"day": "1d", "week": "1w", "month": "1mo", "year": "1y", "decade": "10y", "span of 100 years": "100y"}
"""Units of time, finest first, as polars has them. Weeks begin on Monday."""


def bin_by_time(counts: Mapping[int, int]) -> TimeBins | None:
    """Bin events by day since 1970 into the finest unit of time that needs at most MAX_BINS columns; None without events."""
    if not counts:
        return None
    schema = {"day": pl.Int32, "events": pl.Int64}
    every = pl.DataFrame({"day": list(counts), "events": list(counts.values())}, schema).sort("day")
    shown = every[_without_outliers(every["day"].to_numpy(), every["events"].to_numpy())].cast({"day": pl.Date})
    for unit, step in _UNITS.items():  # noqa: B007 - the last ones are used below
        start = pl.col("day").dt.truncate(step)
        columns = shown.select(day=pl.date_range(start.min(), pl.col("day").max(), step))
        if columns.height <= MAX_BINS:
            break
    binned = columns.join(shown.group_by(day=start).agg(pl.col("events").sum()), "day", "left", maintain_order="left")
    values, starts = binned["events"].fill_null(0).to_list(), binned["day"].clip(date.min).to_list()
    first, last = shown["day"].gather([0, -1]).to_list()
    outliers = sum(counts.values()) - sum(values)
    return TimeBins(unit, values, starts, _time_labels(starts, unit), first, last, outliers)


def _without_outliers(days: I64, events: I64) -> slice:
    """Return the days to show: without the few at either end, if the others then take up less than a third of the time."""
    allowed = int(events.sum() * _MAX_OUTLIERS)
    start, end = (int(np.searchsorted(part.cumsum(), allowed, side="right")) for part in (events, events[::-1]))
    inner = days[start : len(days) - end]
    if not len(inner) or (inner[-1] - inner[0]) * 3 > days[-1] - days[0]:
        return slice(None)
    return slice(start, len(days) - end)


def _time_labels(starts: list[date], unit: str) -> dict[int, str]:
    """Return about four labels, evenly spaced and distinct, by column."""
    step = max(1, -(-len(starts) // 4))
    columns = range(step // 2 if len(starts) > 1 else 0, len(starts), step)
    labels = {column: _time_label(starts[column], unit) for column in columns}
    same = {later for earlier, later in pairwise(labels) if labels[earlier] == labels[later]}
    return {column: label for column, label in labels.items() if column not in same}


def _time_label(start: date, unit: str) -> str:
    if unit in ("day", "week"):
        return format_date(start)
    return f"{MONTHS[start.month - 1]} {start.year}" if unit == "month" else str(start.year)
