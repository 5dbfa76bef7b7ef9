"""Charts of the report as inline SVG, drawn by matplotlib in the page's colours and fonts. The same data give the same bytes.

A label that comes from data never reaches matplotlib, which would read `$` as mathematics and lack glyphs. Matplotlib draws a
placeholder, and the escaped label replaces it in the SVG.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date
from html import escape
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from etl.errors import SettingsError
from etl.reporting.wording import MONTHS, format_date, format_si
from etl.runtime.temporary import temporary_folder
from etl.transform.arrays import I64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 440
"""Width of a chart in its own units: about CSS pixels on a desktop; a phone shows it a fifth smaller."""

_NARROW = 300
"""Width of a chart in a row of three."""

_INK, _MUTED, _RULE, _BAD = "#0101a1", "#0101a2", "#0101a3", "#0101a4"
SERIES = ("#0101b1", "#0101b2", "#0101b3", "#0101b4")
"""Placeholder colours, replaced by the page's CSS variables, which have a light and a dark value."""
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _RULE: "--rule", _BAD: "--bad"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)
}
_LETTERS = 13
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bpr-etl",
    "font.size": _LETTERS,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _RULE,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.8,
    "path.simplify": True,
}
_CACHE = "MPLCONFIGDIR"
_CURVE_POINTS = 90

MAX_BINS = 120
"""The largest number of columns of a chart over time."""

_MAX_OUTLIERS = 0.0005
"""The share of events at either end that may be cut off where they would squeeze the others together."""

_NUMBER = re.compile(r"(?<![\w#.])-?\d+\.\d+")


class Chart:
    """A figure with one pair of axes, and the labels that replace its placeholders."""

    def __init__(
        self, name: str, height: float, margins: tuple[float, float, float, float], width: float = WIDTH
    ) -> None:
        from matplotlib.figure import Figure  # noqa: PLC0415 - takes a third of a second

        left, bottom, right, top = margins
        self.name, self.width, self.height = name, width, height
        self.figure: Figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        self.axes: Axes = self.figure.add_axes(box, facecolor="none")
        self._labels: list[str] = []

    def label(self, text: str) -> str:
        """Return the placeholder of a label."""
        self._labels.append(text)
        return f"LABEL{len(self._labels) - 1}X"

    def rows(self, labels: Sequence[str], width: int) -> None:
        """Lay the chart out as horizontal rows, labelled from the top down."""
        shown = [self.label(_truncate(label, width)) for label in labels]
        self.axes.set_yticks(range(len(shown)), shown, color=_INK)
        self.axes.set_ylim(len(shown) - 0.4, -0.6)
        self.axes.grid(visible=False, axis="y")
        self.axes.grid(visible=True, axis="x")
        self.axes.spines["bottom"].set_visible(False)

    def svg(self, alt_text: str) -> str:
        """Return the chart as an HTML element."""
        text = io.StringIO()
        self.figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        drawn = _minify_svg(text.getvalue(), self.name)
        drawn = re.sub(r"LABEL(\d+)X", lambda found: escape(self._labels[int(found[1])]), drawn)
        box = f"0 0 {self.width:g} {self.height:g}"
        return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(alt_text)}">{drawn}</svg>'


@contextmanager
def chart_style(folder: Path) -> Iterator[None]:
    """Apply the style of all charts within a block. Settings of matplotlib outside of the block are not changed.

    Matplotlib needs a cache folder, and takes a temporary one where HOME is not writable. On a machine without a folder for
    temporary files it gets one in `folder`. Raises OSError where that can't be made.
    """
    # It would log where its font cache is, and that it builds one.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with ExitStack() as stack:
        try:
            temporary_folder()
        except SettingsError:
            stack.enter_context(_cache_in(folder))
        import matplotlib as mpl  # noqa: PLC0415

        stack.enter_context(mpl.rc_context())
        mpl.rcdefaults()  # ignores a matplotlibrc
        stack.enter_context(mpl.rc_context(_STYLE))
        yield


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Give matplotlib a temporary cache folder; only an environment variable can name it."""
    with TemporaryDirectory(prefix=".staging-", dir=folder) as cache:
        before = os.environ.get(_CACHE)
        os.environ[_CACHE] = cache
        try:
            yield
        finally:
            del os.environ[_CACHE]
            if before is not None:
                os.environ[_CACHE] = before


def _minify_svg(svg: str, name: str) -> str:
    """Return the content of matplotlib's <svg>: without fonts and comments, numbers to a tenth, ids prefixed with the name."""
    inside = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    inside = re.sub(r"<defs>\s*<style.*?</defs>", "", inside, count=1, flags=re.DOTALL)
    inside = re.sub(r"<!--.*?-->", "", inside, flags=re.DOTALL)
    inside = re.sub(r"font-size: [\d.]+px; |font-family: [^;\"]*;? ?|font: [^;\"]*;? ?", "", inside)
    inside = re.sub(r' transform="rotate\(-0 [^"]*"', "", inside)
    inside = re.sub(r"stroke-(linecap|linejoin|miterlimit): \w+;? ?", "", inside)
    inside = re.sub(r"<[^>]+>", lambda tag: _NUMBER.sub(_rounded, tag[0]), inside)
    inside = re.sub(r'(?<= )id="(?![mp][0-9a-f]{10}")[^"]*"', "", inside)
    inside = re.sub(r"(id=\"|url\(#|href=\"#)([mp][0-9a-f]{10})", rf"\g<1>{name}-\2", inside).replace(
        "xlink:href", "href"
    )
    for colour, variable in _VARIABLES.items():
        inside = inside.replace(colour, f"var({variable})")
    inside = re.sub(r"<g\s*>", "<g>", inside)
    return re.sub(r"\s*\n\s*", " ", inside.replace(' style=""', "")).replace("> <", "><").strip()


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}".removesuffix(".0")


def _truncate(text: str, width: int) -> str:
    """Cut a text to about `width` characters. East Asian ones count twice."""
    from unicodedata import east_asian_width  # noqa: PLC0415

    used = 0
    for number, letter in enumerate(text):
        used += 2 if east_asian_width(letter) in "WF" else 1
        if used > width and number < len(text) - 1:
            return text[:number].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return text


def _set_count_ticks(axis: Any, most: float, ticks: int = 4) -> None:
    """Set the ticks of a linear axis that begins at 0."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    values = MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(0, most or 1)
    axis.set_ticks(values, [format_si(value) for value in values])


def stacked_bars(name: str, rows: Sequence[tuple[str, Mapping[str, int]]], parts: Sequence[str], alt_text: str) -> str:
    """Draw horizontal bars of stacked parts: `rows` are (label, {part: length}); parts are coloured in the order of SERIES."""
    chart = Chart(name, 34 + 24 * max(1, len(rows)), (134, 28, 22, 6))
    axes = chart.axes
    start = np.zeros(len(rows))
    for part, colour in zip(parts, SERIES, strict=False):
        lengths = np.array([values.get(part, 0) for _, values in rows], float)
        axes.barh(range(len(rows)), lengths, 0.62, start, color=colour, linewidth=0)
        start += lengths
    chart.rows([label for label, _ in rows], 17)
    _set_count_ticks(axes.xaxis, start.max(initial=0))
    axes.set_xlim(0, start.max(initial=0) * 1.03 or 1)
    return chart.svg(alt_text)


def rank_frequency(name: str, series: Sequence[np.ndarray[Any, Any]], alt_text: str) -> str:
    """Draw counts against their rank, both axes logarithmic: a curve for each series of counts, each sorted descending."""
    chart = Chart(name, 290, (48, 44, 18, 24))
    axes = chart.axes
    most, longest = 1, 1
    least = min((int(times[-1]) for times in series if len(times)), default=1)
    for times, colour in zip(series, SERIES, strict=False):
        if len(times):
            ranks = np.unique(np.geomspace(1, len(times), _CURVE_POINTS).round().astype(int))
            axes.plot(ranks, times[ranks - 1], color=colour, marker="o" if len(times) == 1 else None, markersize=3)
            most, longest = max(most, int(times[0])), max(longest, len(times))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    for axis, start, end in ((axes.xaxis, 1, longest), (axes.yaxis, least, most)):
        powers = 10.0 ** np.arange(math.floor(math.log10(start)), math.ceil(math.log10(end * 1.001)) + 1)
        axis.set_ticks(powers, [format_si(power) for power in powers])
    axes.set_xlim(0.9, longest * 1.25)
    axes.set_ylim(10 ** math.floor(math.log10(least)) * 0.8, most * 1.6)
    axes.set_xlabel("rank of the item", color=_MUTED)
    axes.text(-0.09, 1.02, "times", transform=axes.transAxes, color=_MUTED, va="bottom")
    return chart.svg(alt_text)


def distributions(name: str, series: Sequence[tuple[Sequence[float], float]], alt_text: str) -> str:
    """Draw distributions over 0 to 1 as steps. Each is (share in every bin, mean); the mean is a dotted line."""
    chart = Chart(name, 260, (44, 44, 14, 12))
    axes = chart.axes
    top = max((max(shares) for shares, _ in series), default=0) * 1.12 or 1
    for (shares, mean), colour in zip(series, SERIES, strict=False):
        edges = np.linspace(0, 1, len(shares) + 1)
        axes.stairs(shares, edges, color=colour, linewidth=1.8)
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.1, linewidth=0)
        axes.plot([mean, mean], [0, top], color=colour, linewidth=1.2, linestyle=(0, (2, 3)))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, top)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{value:.1f}" for value in np.linspace(0, 1, 6)])
    ticks = axes.get_yticks()[1 :: 2 if len(axes.get_yticks()) > 6 else 1]  # without 0
    axes.set_yticks(ticks, [f"{value * 100:.3g}%" for value in ticks])
    axes.set_ylim(0, top)
    axes.set_xlabel("affinity", color=_MUTED)
    return chart.svg(alt_text)


def column_chart(name: str, values: Sequence[int], labels: Mapping[int, str], alt_text: str) -> str:
    """Draw adjoining columns; `labels` are by column."""
    chart = Chart(name, 230, (48, 30, 20, 12))
    axes = chart.axes
    edges = np.arange(len(values) + 1)
    axes.stairs(values, edges, fill=True, color=SERIES[0], alpha=0.22, linewidth=0)
    axes.stairs(values, edges, color=SERIES[0], linewidth=1.3)
    axes.set_xlim(0, max(1, len(values)))
    axes.set_ylim(0, max(values, default=0) * 1.08 or 1)
    _set_count_ticks(axes.yaxis, max(values, default=0))
    axes.set_ylim(0, max(values, default=0) * 1.08 or 1)
    axes.set_xticks([column + 0.5 for column in labels], list(labels.values()))
    return chart.svg(alt_text)


def interval_plot(name: str, rows: Sequence[tuple[str, float, float, float, bool]], mark: float, alt_text: str) -> str:
    """Draw means with intervals, and a line at `mark`. Rows are (label, mean, low, high, highlighted)."""
    chart = Chart(name, 44 + 30 * len(rows), (188, 28, 56, 6))
    axes = chart.axes
    axes.axvline(mark, color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
    for row, (_, mean, low, high, highlighted) in enumerate(rows):
        colour = SERIES[0] if highlighted else _MUTED
        axes.plot([low, high], [row, row], color=colour, linewidth=2.4)
        axes.plot([mean], [row], color=colour, marker="o", markersize=6.5, linestyle="")
        axes.text(1.03, row, f"{mean:.3f}", transform=axes.get_yaxis_transform(), va="center", color=_INK)
    chart.rows([label for label, *_ in rows], 29)
    low, high = min(row[2] for row in rows), max(row[3] for row in rows)
    margin = max(0.02, (high - low) * 0.08)
    axes.set_xlim(min(low, mark) - margin, max(high, mark) + margin)
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    axes.xaxis.set_major_locator(MaxNLocator(4))
    ticks = [value for value in axes.get_xticks() if axes.get_xlim()[0] <= value <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{value:.2f}" for value in ticks])
    return chart.svg(alt_text)


def trend(
    name: str,
    values: Sequence[float | None],
    expected: Sequence[tuple[float, float] | None],
    outside: Sequence[bool],
    ends: tuple[str, str],
    alt_text: str,
    reference: Sequence[float | None] | None = None,
) -> str:
    """Draw a metric over runs as a line, with the expected range as a band, and rings at values `outside` of it.

    `reference` is a grey line.
    """
    chart = Chart(name, 160, (48, 26, 8, 12), _NARROW)
    axes, runs = chart.axes, np.arange(len(values))
    numbers = np.array([math.nan if value is None else value for value in values])
    lows, highs = (np.array([math.nan if each is None else each[end] for each in expected]) for end in (0, 1))
    axes.fill_between(runs, lows, highs, color=SERIES[0], alpha=0.13, linewidth=0)
    if reference is not None:
        axes.plot(runs, [math.nan if value is None else value for value in reference], color=_MUTED, linewidth=1.2)
    axes.plot(runs, numbers, color=SERIES[0], marker="o", markersize=3.4)
    rings = np.flatnonzero(outside)
    axes.plot(runs[rings], numbers[rings], color=_BAD, marker="o", markersize=9, linestyle="", fillstyle="none")
    _set_y_limits(axes, [*numbers, *(reference or [])])
    axes.set_xlim(-0.6, max(1, len(values) - 1) + 0.6)
    shown = {0: ends[0], len(values) - 1: ends[1]}
    axes.set_xticks(list(shown), list(shown.values()))
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right")
    return chart.svg(alt_text)


def _set_y_limits(axes: Axes, numbers: Sequence[float | None]) -> None:
    """Fit the y axis to the values, with a margin; a constant is in the middle."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    known = [number for number in numbers if number is not None and math.isfinite(number)]
    low, high = min(known), max(known)
    room = (high - low) * 0.2 or abs(high) * 0.05 or 1
    axes.set_ylim(low - room if low - room > 0 or low < 0 else -room * 0.2, high + room)
    whole = all(float(number).is_integer() for number in known)
    low, high = axes.get_ylim()
    ticks = [value for value in MaxNLocator(3, integer=whole).tick_values(low, high) if low <= value <= high]
    axes.set_yticks(ticks, [format_si(value) for value in ticks])


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


_EPOCH = date(1970, 1, 1).toordinal()


def _years(days: I64, count: int) -> I64:
    return (days.astype("M8[D]").astype("M8[Y]").astype(np.int64) + 1970) // count


# Units, finest first: the number of the unit that a day since 1970 is in, and the first day of a unit by its number.
_UNITS: dict[str, tuple[Callable[[I64], I64], Callable[[int], date]]] = {
    "day": (lambda days: days, lambda number: date.fromordinal(_EPOCH + number)),
    "week": (lambda days: (days + 3) // 7, lambda number: date.fromordinal(_EPOCH + number * 7 - 3)),  # from Monday on
    "month": (
        lambda days: days.astype("M8[D]").astype("M8[M]").astype(np.int64) + 1970 * 12,
        lambda number: date(number // 12, number % 12 + 1, 1),
    ),
    "year": (lambda days: _years(days, 1), lambda number: date(number, 1, 1)),
    "decade": (lambda days: _years(days, 10), lambda number: date(max(1, number * 10), 1, 1)),
    "century": (lambda days: _years(days, 100), lambda number: date(max(1, number * 100), 1, 1)),
}


def bin_by_time(counts: Mapping[int, int]) -> TimeBins | None:
    """Bin events by day since 1970 into the finest unit of time that needs at most MAX_BINS columns; None without events."""
    if not counts:
        return None
    days = np.array(sorted(counts), np.int64)
    events = np.array([counts[day] for day in days.tolist()], np.int64)
    shown = _without_outliers(days, events)
    outliers = int(events.sum() - events[shown].sum())
    days, events = days[shown], events[shown]
    for unit, (number_of, start_of) in _UNITS.items():  # noqa: B007 - the last ones are used below
        numbers = number_of(days)
        if numbers[-1] - numbers[0] < MAX_BINS:
            break
    values = np.bincount(numbers - numbers[0], events).astype(np.int64).tolist()
    starts = [start_of(number) for number in range(int(numbers[0]), int(numbers[-1]) + 1)]
    first, last = (date.fromordinal(_EPOCH + int(days[end])) for end in (0, -1))
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
