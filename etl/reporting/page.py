"""report.html: one page that shows a published snapshot to a person. It opens offline, and asks nobody for anything.

The same snapshot and the same nights before it give the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from etl.errors import escape_control_characters
from etl.reporting import charts, numbers
from etl.reporting.event_stats import AFFINITY_STEPS, OFFERED, TAKEN, TAKEN_OUTSIDE, EventStats
from etl.reporting.history import PreviousRun, published_at
from etl.reporting.page_data import City, changed_settings, cities_of, figures_of, funnel, setting, split_of, trends
from etl.reporting.page_headlines import KEY, headlines
from etl.reporting.page_tables import ItemStats, UserStats, nodes_of, people_of
from etl.reporting.time_bins import TimeBins, bin_by_time
from etl.reporting.wording import RANKER_TEXT, exclusions
from etl.runtime.resources import resource
from etl.snapshots.manifest import parse_probe
from etl.snapshots.reader import PROBE, REPORT, read_small

ROWS = 30
"""How many rows of a table or a chart are shown where there can be thousands; the rest is added up."""

NIGHTS = 30
"""How many snapshots the trend shows, this one among them."""

_CHARTED, _BINS = 15, 25
_NAMELESS = "(no name)"
_TRENDS = ("triples", "ranking events", "positives", "users", "left out: positives", "set aside rows", "AUC")
_BESIDE = "AUC of popularity"

Manifest = Mapping[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Affinity:
    """Whose affinities: how many (event, place), their mean, and the share of them in each of the bins."""

    name: str
    number: int
    mean: float
    shares: list[float]


@dataclass(frozen=True)
class ReportData:
    """What the page shows besides its manifest: what files and events say."""

    tally: EventStats
    nodes: ItemStats
    people: UserStats
    trips: int
    days: TimeBins | None
    affinities: list[Affinity]
    probe: Mapping[str, Any] | None
    nights: list[PreviousRun]


def render(
    manifest: Manifest,
    folder: Path,
    tally: EventStats,
    trips: int,
    nights: Sequence[PreviousRun],
    probe: Mapping[str, Any] | None = None,
) -> str:
    """The page of a snapshot, as HTML, from its files in a folder, the tally of its events, and the nights before it.

    `probe` is what one found, if that does not lie in the folder. `manifest` is the snapshot's; what it says of the page itself
    is not looked at, nor when the run ended.
    """
    if probe is None and manifest.get("probe"):
        probe = parse_probe(read_small(folder / PROBE) or b"", str(folder / PROBE))
    shown = ReportData(
        tally,
        nodes_of(folder, tally),
        people_of(folder),
        trips,
        bin_by_time(tally.days),
        _affinities(tally),
        probe,
        list(nights)[-(NIGHTS - 1) :],
    )
    drawn: dict[str, str] = {}
    try:
        with charts.chart_style(folder):
            drawn = _drawn(manifest, shown) | _drawn_probe(probe) | _drawn_trends(manifest, shown.nights)
    except OSError as error:
        log.warning("The report has no charts: %s. Set MPLCONFIGDIR to a folder that can be written.", error)
    return str(_environment().get_template("page.html").render(_context(manifest, shown, drawn)))


def _affinities(tally: EventStats) -> list[Affinity]:
    found = []
    for name in (OFFERED, TAKEN, TAKEN_OUTSIDE):
        times = tally.affinities[name]
        if number := int(times.sum()):
            places = np.minimum(np.arange(AFFINITY_STEPS + 1) * _BINS // AFFINITY_STEPS, _BINS - 1)
            shares = np.bincount(places, times, _BINS) / number
            mean = float((times * np.arange(AFFINITY_STEPS + 1)).sum() / number / AFFINITY_STEPS)
            found.append(Affinity(name, number, mean, shares.tolist()))
    return found


def _drawn(manifest: Manifest, shown: ReportData) -> dict[str, str]:
    """The charts of the snapshot's data, SVG by name; none where there is nothing to draw."""
    drawn = {}
    cities = [city for city in cities_of(manifest, shown.tally) if city.all_triples][:_CHARTED]
    if cities:
        rows = [(_display_name(city.name), city.triples) for city in cities]
        drawn["cities"] = charts.stacked_bars(
            "cities", rows, split_of(manifest), "Triples per city and part of the split"
        )
    if any(map(len, shown.nodes.counts.values())):
        times = list(shown.nodes.counts.values())
        drawn["ranks"] = charts.rank_frequency("ranks", times, "How often places are what, by rank")
    if shown.affinities:
        series = [(each.shares, each.mean) for each in shown.affinities]
        drawn["affinity"] = charts.distributions("affinity", series, "Affinity of candidates and of what was selected")
    if days := shown.days:
        drawn["days"] = charts.column_chart("days", days.values, days.labels, f"Ranking events per {days.unit}")
    return drawn


def _drawn_probe(probe: Mapping[str, Any] | None) -> dict[str, str]:
    """The AUC of the rankings of a probe, over all places and over new ones."""
    drawn: dict[str, str] = {}
    if probe is None:
        return drawn
    for scope in ("all", "new"):
        found = {name: probe["rankings"][name][scope]["auc"] for name in RANKER_TEXT if name in probe["rankings"]}
        rows = [
            (RANKER_TEXT[name], auc["mean"], auc["low"], auc["high"], name == "model")
            for name, auc in found.items()
            if auc["mean"] is not None
        ]
        if rows:
            drawn[f"probe {scope}"] = charts.interval_plot(f"probe-{scope}", rows, 0.5, "AUC of each ranking")
    return drawn


def _drawn_trends(manifest: Manifest, nights: Sequence[PreviousRun]) -> dict[str, str]:
    """The figures over the nights; nothing where there is no night before."""
    if not nights:
        return {}
    found = {trend.name: trend for trend in trends(manifest, nights)}
    moment = published_at(nights[0].name)
    now = _published_at(manifest)
    same = moment is not None and moment.date() == now.date()
    ends = (_moment(moment or now, same=same), _moment(now, same=same))
    return {
        f"trend {name}": charts.trend(
            f"trend-{place}",
            found[name].values,
            found[name].usual,
            found[name].odd,
            ends,
            f"{name} over {len(nights) + 1} nights",
            found[_BESIDE].values if name == "AUC" and _BESIDE in found else None,
        )
        for place, name in enumerate(_TRENDS)
        if name in found and any(found[name].values)
    }


def _moment(moment: datetime, *, same: bool) -> str:
    """The end of an axis: the day, or the time of it where both ends are of the same."""
    return f"{moment:%H:%M} UTC" if same else numbers.format_date(moment)


def _published_at(manifest: Manifest) -> datetime:
    """When the snapshot got its name, the last that is known when its page is made."""
    return published_at(manifest["snapshot"]) or datetime.fromisoformat(manifest["ended_at"])


def _context(manifest: Manifest, shown: ReportData, drawn: Mapping[str, str]) -> dict[str, Any]:
    """What the template reads."""
    from markupsafe import Markup  # noqa: PLC0415

    figures = figures_of(manifest, shown.nights)
    cities = cities_of(manifest, shown.tally)
    return {
        "manifest": manifest,
        **{field.name: getattr(shown, field.name) for field in fields(shown)},
        "figures": figures,
        "key": [each for name in KEY for each in figures if each.name == name],
        "answers": headlines(manifest, figures),
        "funnel": funnel(manifest, shown.tally, shown.trips, shown.people.users),
        "losses": [loss for loss in exclusions(manifest) if loss.rows],
        "splits": split_of(manifest),
        "of_splits": {part: sum(city.triples.get(part, 0) for city in cities) for part in split_of(manifest)},
        "with_triples": sum(city.all_triples > 0 for city in cities),
        "cities": cities[:ROWS],
        "more_cities": cities[ROWS:],
        "outside": sorted(cities, key=_outside)[:ROWS],
        "changed": changed_settings(manifest, shown.nights),
        "settings": {name: setting(value) for name, value in manifest["settings"].items()},
        "files": _files(manifest),
        "started": datetime.fromisoformat(manifest["started_at"]),
        "published_at": _published_at(manifest),
        "trends": [name for name in _TRENDS if f"trend {name}" in drawn],
        "rankings": RANKER_TEXT,
        "rows_shown": ROWS,
        "charts": {name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704 - ours, labels escaped
    }


def _display_name(name: str | None) -> str:
    """A name that somebody gave, as it can be shown."""
    return escape_control_characters(name or "") or _NAMELESS


def _outside(city: City) -> tuple[float, bytes]:
    """The cities with most positives that were no candidates first."""
    return -city.tally.outside, city.name.encode()


def _files(manifest: Manifest) -> dict[str, Any]:
    """The snapshot's files: the largest of them, and the sums by kind. The page itself is none of them."""
    files = sorted(
        (each for each in manifest["files"] if each["path"] != REPORT),
        key=lambda each: (-each["bytes"], each["path"]),
    )
    kinds: dict[str, dict[str, int]] = {}
    for each in files:
        kind = kinds.setdefault(each["path"].split("/")[0], {"files": 0, "rows": 0, "bytes": 0})
        kind["files"] += 1
        kind["rows"] += each["rows"]
        kind["bytes"] += each["bytes"]
    return {"largest": files[:ROWS], "more": len(files[ROWS:]), "kinds": kinds}


@cache
def _environment() -> Any:
    """The template's environment, made once: everything that is put into the page is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(resource("report")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    written = [name for name in dir(numbers) if name.startswith("format_")]
    environment.filters |= {name: getattr(numbers, name) for name in written} | {
        "named": _display_name,
        "visible": escape_control_characters,
    }
    return environment
