"""Charts as SVG that stands in a page: drawn by matplotlib, in the page's own colours and letters, the same bytes every time.

A label that comes from data never reaches matplotlib: it would read `$` as mathematics, and miss glyphs. It draws a mark,
and the escaped label takes the mark's place in the SVG.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from etl.errors import SettingsError
from etl.reporting.numbers import format_si
from etl.runtime.files import temporary_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 440
"""Of a chart, in units of its own: about the CSS pixels that it takes on a desk; a phone shows it a fifth smaller."""

_NARROW = 300
"""Of a chart that stands beside two others."""

_INK, _MUTED, _RULE, _BAD = "#0101a1", "#0101a2", "#0101a3", "#0101a4"
SERIES = ("#0101b1", "#0101b2", "#0101b3", "#0101b4")
"""Colours stand for the page's variables, which know light and dark."""
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
_POINTS = 90  # of a curve over ranks
_NUMBER = re.compile(r"(?<![\w#.])-?\d+\.\d+")


class Chart:
    """A figure with one pair of axes, and the labels whose places matplotlib keeps with marks. See `chart`."""

    def __init__(
        self, name: str, height: float, margins: tuple[float, float, float, float], width: float = WIDTH
    ) -> None:
        from matplotlib.figure import Figure  # noqa: PLC0415 - a third of a second that only who draws need wait for

        left, bottom, right, top = margins
        self.name, self.width, self.height = name, width, height
        self.figure: Figure = Figure(figsize=(width / 72, height / 72), facecolor="none")
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        self.axes: Axes = self.figure.add_axes(box, facecolor="none")
        self._labels: list[str] = []

    def label(self, text: str) -> str:
        """The mark that stands for a text until the SVG is there."""
        self._labels.append(text)
        return f"LABEL{len(self._labels) - 1}X"

    def svg(self, says: str) -> str:
        """The chart as an element of a page; `says` is for those who can't see it."""
        text = io.StringIO()
        self.figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        drawn = _minify_svg(text.getvalue(), self.name)
        drawn = re.sub(r"LABEL(\d+)X", lambda found: escape(self._labels[int(found[1])]), drawn)
        box = f"0 0 {self.width:g} {self.height:g}"
        return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(says)}">{drawn}</svg>'


@contextmanager
def chart_style(folder: Path) -> Iterator[None]:
    """The look of all charts, for the length of a block; nobody else's matplotlib is touched.

    Matplotlib needs a folder for its cache, and takes a temporary one where HOME can't be written. Where the machine has no
    place for temporary files, it gets one in `folder` for the length of the block. Raises OSError where that can't be made.
    """
    # Where it keeps its fonts' cache, and that it builds one, is nothing that a night need tell.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with ExitStack() as stack:
        try:
            temporary_folder()
        except SettingsError:
            stack.enter_context(_cache_in(folder))
        import matplotlib as mpl  # noqa: PLC0415

        stack.enter_context(mpl.rc_context())
        mpl.rcdefaults()  # whatever a matplotlibrc says
        stack.enter_context(mpl.rc_context(_STYLE))
        yield


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """A folder for matplotlib's cache for the length of a block; it can be told by the environment alone."""
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
    """What stands inside matplotlib's <svg>, shorter: no font, no comment, numbers to a tenth, ids of the chart's own."""
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
    """A text cut to about so many letters; letters of East Asia are twice as wide."""
    from unicodedata import east_asian_width  # noqa: PLC0415

    used = 0
    for place, letter in enumerate(text):
        used += 2 if east_asian_width(letter) in "WF" else 1
        if used > width and place < len(text) - 1:
            return text[:place].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return text


def _set_count_ticks(axis: Any, most: float, ticks: int = 4) -> None:
    """Ticks of a linear axis from 0, written short."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    places = MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(0, most or 1)
    axis.set_ticks(places, [format_si(place) for place in places])


def stacked_bars(name: str, rows: Sequence[tuple[str, Mapping[str, int]]], parts: Sequence[str], says: str) -> str:
    """Rows of bars that lie, each put together from parts, in the order of SERIES; labels of rows come from data."""
    chart = Chart(name, 34 + 24 * max(1, len(rows)), (134, 28, 22, 6))
    axes, places = chart.axes, np.arange(len(rows))
    start = np.zeros(len(rows))
    for part, colour in zip(parts, SERIES, strict=False):
        lengths = np.array([values.get(part, 0) for _, values in rows], float)
        axes.barh(places, lengths, 0.62, start, color=colour, linewidth=0)
        start += lengths
    axes.set_yticks(places, [chart.label(_truncate(label, 17)) for label, _ in rows], color=_INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _set_count_ticks(axes.xaxis, start.max(initial=0))
    axes.set_xlim(0, start.max(initial=0) * 1.03 or 1)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["bottom"].set_visible(False)
    return chart.svg(says)


def rank_frequency(name: str, series: Sequence[np.ndarray[Any, Any]], says: str) -> str:
    """How often, against the rank of who is so often, both logarithmic: a curve for each series, highest first."""
    chart = Chart(name, 290, (48, 44, 18, 24))
    axes = chart.axes
    most, longest = 1, 1
    least = min((int(times[-1]) for times in series if len(times)), default=1)
    for times, colour in zip(series, SERIES, strict=False):
        if len(times):
            places = np.unique(np.geomspace(1, len(times), _POINTS).round().astype(int))
            axes.plot(places, times[places - 1], color=colour, marker="o" if len(times) == 1 else None, markersize=3)
            most, longest = max(most, int(times[0])), max(longest, len(times))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    for axis, start, end in ((axes.xaxis, 1, longest), (axes.yaxis, least, most)):
        powers = 10.0 ** np.arange(math.floor(math.log10(start)), math.ceil(math.log10(end * 1.001)) + 1)
        axis.set_ticks(powers, [format_si(power) for power in powers])
    axes.set_xlim(0.9, longest * 1.25)
    axes.set_ylim(10 ** math.floor(math.log10(least)) * 0.8, most * 1.6)
    axes.set_xlabel("rank of the place", color=_MUTED)
    axes.text(-0.09, 1.02, "times", transform=axes.transAxes, color=_MUTED, va="bottom")
    return chart.svg(says)


def distributions(name: str, series: Sequence[tuple[Sequence[float], float]], says: str) -> str:
    """Distributions over 0 to 1 as steps: for each the share in every bin, and the mean, a line of dots."""
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
    axes.set_xticks(np.linspace(0, 1, 6), [f"{place:.1f}" for place in np.linspace(0, 1, 6)])
    places = axes.get_yticks()[1 :: 2 if len(axes.get_yticks()) > 6 else 1]  # 0 is the floor
    axes.set_yticks(places, [f"{place * 100:.3g}%" for place in places])
    axes.set_ylim(0, top)
    axes.set_xlabel("affinity", color=_MUTED)
    return chart.svg(says)


def column_chart(name: str, values: Sequence[int], labels: Mapping[int, str], says: str) -> str:
    """Columns side by side, labelled here and there."""
    chart = Chart(name, 230, (48, 30, 20, 12))
    axes = chart.axes
    edges = np.arange(len(values) + 1)
    axes.stairs(values, edges, fill=True, color=SERIES[0], alpha=0.22, linewidth=0)
    axes.stairs(values, edges, color=SERIES[0], linewidth=1.3)
    axes.set_xlim(0, max(1, len(values)))
    axes.set_ylim(0, max(values, default=0) * 1.08 or 1)
    _set_count_ticks(axes.yaxis, max(values, default=0))
    axes.set_ylim(0, max(values, default=0) * 1.08 or 1)
    axes.set_xticks([place + 0.5 for place in labels], list(labels.values()))
    return chart.svg(says)


def interval_plot(name: str, rows: Sequence[tuple[str, float, float, float, bool]], mark: float, says: str) -> str:
    """Means with their intervals, (label, mean, low, high, whether it stands out) each, and a line at `mark`."""
    chart = Chart(name, 44 + 30 * len(rows), (188, 28, 56, 6))
    axes = chart.axes
    axes.axvline(mark, color=_MUTED, linewidth=1, linestyle=(0, (2, 3)))
    for place, (_, mean, low, high, stands_out) in enumerate(rows):
        colour = SERIES[0] if stands_out else _MUTED
        axes.plot([low, high], [place, place], color=colour, linewidth=2.4)
        axes.plot([mean], [place], color=colour, marker="o", markersize=6.5, linestyle="")
        axes.text(1.03, place, f"{mean:.3f}", transform=axes.get_yaxis_transform(), va="center", color=_INK)
    axes.set_yticks(range(len(rows)), [chart.label(_truncate(label, 29)) for label, *_ in rows], color=_INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    low, high = min(row[2] for row in rows), max(row[3] for row in rows)
    margin = max(0.02, (high - low) * 0.08)
    axes.set_xlim(min(low, mark) - margin, max(high, mark) + margin)
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    axes.xaxis.set_major_locator(MaxNLocator(4))
    places = [place for place in axes.get_xticks() if axes.get_xlim()[0] <= place <= axes.get_xlim()[1]]
    axes.set_xticks(places, [f"{place:.2f}" for place in places])
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.spines["bottom"].set_visible(False)
    return chart.svg(says)


def trend(
    name: str,
    values: Sequence[float | None],
    usual: Sequence[tuple[float, float] | None],
    odd: Sequence[bool],
    ends: tuple[str, str],
    says: str,
    beside: Sequence[float | None] | None = None,
) -> str:
    """A figure over the nights: a line, the usual range behind it, a ring where it was left; `beside` is a fainter line."""
    chart = Chart(name, 160, (48, 26, 8, 12), _NARROW)
    axes, nights = chart.axes, np.arange(len(values))
    numbers = np.array([math.nan if value is None else value for value in values])
    lows, highs = (np.array([math.nan if each is None else each[end] for each in usual]) for end in (0, 1))
    axes.fill_between(nights, lows, highs, color=SERIES[0], alpha=0.13, linewidth=0)
    if beside is not None:
        axes.plot(nights, [math.nan if value is None else value for value in beside], color=_MUTED, linewidth=1.2)
    axes.plot(nights, numbers, color=SERIES[0], marker="o", markersize=3.4)
    rings = np.flatnonzero(odd)
    axes.plot(nights[rings], numbers[rings], color=_BAD, marker="o", markersize=9, linestyle="", fillstyle="none")
    _set_y_limits(axes, [*numbers, *(beside or [])])
    axes.set_xlim(-0.6, max(1, len(values) - 1) + 0.6)
    shown = {0: ends[0], len(values) - 1: ends[1]}
    axes.set_xticks(list(shown), list(shown.values()))
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[-1].set_horizontalalignment("right")
    return chart.svg(says)


def _set_y_limits(axes: Axes, numbers: Sequence[float | None]) -> None:
    """From the least to the most, with room; a figure that never moves stands in the middle."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    known = [number for number in numbers if number is not None and math.isfinite(number)]
    low, high = min(known), max(known)
    room = (high - low) * 0.2 or abs(high) * 0.05 or 1
    axes.set_ylim(low - room if low - room > 0 or low < 0 else -room * 0.2, high + room)
    whole = all(float(number).is_integer() for number in known)
    low, high = axes.get_ylim()
    places = [place for place in MaxNLocator(3, integer=whole).tick_values(low, high) if low <= place <= high]
    axes.set_yticks(places, [format_si(place) for place in places])
