"""The results' pictures, as SVG files that need no font and no script."""

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
    figure.supxlabel("AUC of the held-out places, mean over users, interval of 95%")
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
