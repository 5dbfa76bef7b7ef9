"""Plots of the results as SVG files without fonts or scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

mpl.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "bpr-etl",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)
_MODEL, _POPULARITY, _HISTORY = "#2b6cb0", "#c05621", "#718096"
_OURS, _FLOOR, _OTHER = "#2b6cb0", "#718096", "#dd9a6a"
_MAX_MIB = 2048


def dots(accounts: Sequence[Mapping[str, Any]], strategies: Sequence[str], path: Path) -> None:
    """One panel per world: a dot per strategy with its interval, lines for popularity and for own history."""
    worlds = list(dict.fromkeys(each["world"] for each in accounts))
    columns = 4
    rows = -(-len(worlds) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(12, 2.9 * rows), sharey=True, squeeze=False)
    for panel in panels.flat[len(worlds) :]:
        panel.set_visible(False)
    for panel, world in zip(panels.flat, worlds, strict=False):
        _panel(panel, [each for each in accounts if each["world"] == world], strategies)
        panel.set_title(world, loc="left", fontweight="bold")
    panels[0][0].set_yticks(range(len(strategies)), strategies)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", frameon=False)
    figure.supxlabel("AUC of the held-out items, mean over users, interval of 95%")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _panel(panel: Any, accounts: Sequence[Mapping[str, Any]], strategies: Sequence[str]) -> None:
    found = {each["strategy"]: each["rankings"]["model"]["all"]["auc"] for each in accounts}
    places = [place for place, name in enumerate(strategies) if name in found]
    values = [found[strategies[place]] for place in places]
    middle = [value["mean"] for value in values]
    apart = [[value["mean"] - value["low"] for value in values], [value["high"] - value["mean"] for value in values]]
    panel.errorbar(middle, places, xerr=apart, fmt="o", color=_MODEL, markersize=4, label="BPR on the triples")
    for ranking, color, label in (("popularity", _POPULARITY, "popularity"), ("own_history", _HISTORY, "own history")):
        level = accounts[0]["rankings"][ranking]["all"]["auc"]["mean"]
        panel.axvline(level, color=color, linestyle="--", linewidth=1, label=label)
    panel.axvline(0.5, color="#a0aec0", linewidth=0.8)
    panel.grid(axis="x", alpha=0.25)


def gains(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], metrics: Mapping[str, str], path: Path) -> None:
    """One panel per metric: for each row a dot with its interval per difference, `{row: {difference: {metric: interval}}}`."""
    figure, panels = plt.subplots(1, len(metrics), figsize=(10, 0.9 + 0.42 * len(rows)), sharey=True, squeeze=False)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    for panel, (metric, title) in zip(panels.flat, metrics.items(), strict=True):
        for number, (name, color) in enumerate(zip(names, (_MODEL, _POPULARITY), strict=True)):
            found = [(place, row[name][metric]) for place, row in enumerate(rows.values()) if name in row]
            middle = [each["mean"] for _, each in found]
            apart = [
                [each["mean"] - each["low"] for _, each in found],
                [each["high"] - each["mean"] for _, each in found],
            ]
            places = [place + 0.24 * number - 0.12 for place, _ in found]
            panel.errorbar(middle, places, xerr=apart, fmt="o", color=color, markersize=4, label=name)
        panel.axvline(0, color=_HISTORY, linewidth=0.8)
        panel.grid(axis="x", alpha=0.25)
        panel.set_title(title, loc="left", fontweight="bold")
    panels[0][0].set_yticks(range(len(rows)), list(rows))
    panels[0][0].invert_yaxis()
    panels[0][-1].legend(loc="lower right", frameon=False)
    figure.supxlabel("difference from popularity by users, with its interval of 95%")
    figure.tight_layout()
    _save(figure, path)


def bars(panels: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """One panel per comparison: a bar of seconds per variant, on a logarithmic axis; ours first, in its own colour."""
    heights = [len(seconds) for seconds in panels.values()]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 1.1 * len(panels) + 0.27 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for panel, (title, seconds) in zip(axes.flat, panels.items(), strict=True):
        names, values = list(seconds), list(seconds.values())
        drawn = panel.barh(range(len(names)), values, color=[_color(name) for name in names], height=0.7)
        panel.bar_label(drawn, [f"{value:.3g} s" for value in values], padding=3)
        panel.set_yticks(range(len(names)), names)
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_xlim(min(values) / 3, max(values) * 2.5)  # a bar from nowhere: there is no zero on this axis
        panel.grid(axis="x", alpha=0.25)
        panel.set_axisbelow(True)
        panel.set_title(title, loc="left", fontweight="bold")
    axes.flat[-1].set_xlabel("seconds, median, logarithmic")
    _save(figure, path)


def _color(name: str) -> str:
    if name.startswith(("ours", "first run: ours", "the whole command")):
        return _OURS
    return _FLOOR if "floor" in name.lower() else _OTHER


def curves(measured: Mapping[str, Sequence[tuple[float, float, float]]], path: Path) -> None:
    """Seconds and peak memory (MiB) against scale, (scale, seconds, MiB) per point, both axes logarithmic."""
    figure, (time, memory) = plt.subplots(1, 2, figsize=(10, 4))
    for number, (name, points) in enumerate(measured.items()):
        scales, seconds, peaks = zip(*points, strict=True)
        for panel, values in ((time, seconds), (memory, peaks)):
            panel.plot(scales, values, marker="o", markersize=4, color=f"C{number}", label=name)
    for panel, title in ((time, "seconds"), (memory, "peak memory of the process, MiB")):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("scale (1: the design's size)")
        panel.set_title(title, loc="left", fontweight="bold")
        panel.grid(alpha=0.25)
    first = min((point for points in measured.values() for point in points), default=(1.0, 1.0, 1.0))
    ends = [point[0] for points in measured.values() for point in points]
    straight = [first[1] * end / first[0] for end in (min(ends), max(ends))]
    time.plot([min(ends), max(ends)], straight, color=_FLOOR, linestyle=":", label="in proportion")
    least = min(point[2] for points in measured.values() for point in points)
    memory.set_yticks([2**power for power in range(6, 13) if 2**power > least / 2], minor=False)
    memory.yaxis.set_minor_formatter("")
    memory.axhline(_MAX_MIB, color=_POPULARITY, linestyle="--", linewidth=1, label="2 GiB")
    time.legend(frameon=False)
    memory.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """Save on white, whatever the background of the page: black text is readable on both."""
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white", transparent=False)
    plt.close(figure)
