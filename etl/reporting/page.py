"""report.html: one page that shows a published snapshot. It works offline and loads nothing from elsewhere.

The same snapshot and the same earlier runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from etl.errors import escape_control_characters
from etl.reporting import charts, wording
from etl.reporting.event_stats import AFFINITY_STEPS, CANDIDATE, SELECTED_IN, SELECTED_OUTSIDE, EventStats
from etl.reporting.history import Metric, PreviousRun, published_at
from etl.reporting.page_data import (
    KEY_METRICS,
    KEY_METRICS_OF_NEXT,
    City,
    Manifest,
    changed_settings,
    cities_of,
    files_by_kind,
    funnel,
    headlines,
    split_of,
    tables_of,
    trends,
)
from etl.reporting.page_stats import ItemStats, item_stats, user_stats
from etl.reporting.wording import exclusions, format_setting
from etl.runtime.resources import resource
from etl.snapshots.manifest import RANKER_TEXT, parse_probe
from etl.snapshots.reading.snapshot import PROBE, REPORT, read_small

REQUIRED_FILES = ("events/", "users.parquet", "items.parquet", "trips.parquet", "probe.json")
"""The files of a snapshot that its report is made from."""

MAX_ROWS = 30
"""How many rows of a table that can have thousands are shown; the others are summed up."""

MAX_RUNS = 30
"""How many snapshots the trend shows, this one included."""

_CHARTED_CITIES, _AFFINITY_BINS = 15, 25
_NAMELESS = "(no name)"
_REFERENCE = "AUC of popularity"


@dataclass(frozen=True)
class Affinity:
    """The affinities of a group of (event, item): how many, their mean, and the share of them in each bin."""

    name: str
    number: int
    mean: float
    shares: list[float]


def build_report(
    manifest: Manifest,
    folder: Path,
    stats: EventStats,
    trips: int,
    runs: Sequence[PreviousRun],
    probe: Mapping[str, Any] | None = None,
) -> str:
    """Return the HTML page of a snapshot, published or staged.

    Args:
        manifest: The snapshot's. Its entry of the page itself, and the end of the run, are not used.
        folder: Where the snapshot's files are.
        stats: The counts of the snapshot's events.
        trips: How many trips have an event.
        runs: The earlier runs, oldest first.
        probe: What a probe found, if that is not in the folder.

    Raises ConnectError or DataError where files can't be read.
    """
    if probe is None and manifest.get("probe"):
        probe = parse_probe(read_small(folder / PROBE) or b"", str(folder / PROBE))
    runs, split = list(runs)[-(MAX_RUNS - 1) :], split_of(manifest)
    cities, over_runs = cities_of(manifest, stats), trends(manifest, runs)
    metrics = [each for *_, each in over_runs.values() if each]
    with_rows = [city.name for city in cities if city.all_rows or city.choices]
    items, users = item_stats(folder, stats, with_rows), user_stats(folder)
    outside = [each for each in metrics if each.out_of_range]
    names = KEY_METRICS if "triples" in tables_of(manifest) else KEY_METRICS_OF_NEXT
    key = [*outside, *(each for name in names for each in metrics if each.name == name and each not in outside)]
    affinities, days = _affinities(stats), charts.bin_by_time(stats.days)
    drawn = _draw_data(split, cities, items, affinities, days) | _draw_probe(probe)
    if runs:
        drawn |= _draw_trends(manifest, runs, over_runs, [each.name for each in key])
    page = load_template().render(
        manifest=manifest,
        stats=stats,
        items=items,
        users=users,
        affinities=affinities,
        days=days,
        probe=probe,
        runs=runs,
        metrics=metrics,
        key=key,
        headlines=headlines(manifest, metrics),
        funnel=funnel(manifest, stats, trips, users.users),
        changed=changed_settings(manifest, runs),
        exclusions=[each for each in exclusions(manifest) if each.rows],
        splits=split,
        tables={name: sum(manifest["published"].get(name, {}).values()) for name in tables_of(manifest)},
        of_splits={part: sum(city.rows.get(part, 0) for city in cities) for part in split},
        with_rows=len(with_rows),
        cities=cities[:MAX_ROWS],
        more_cities=cities[MAX_ROWS:],
        settings={name: format_setting(value) for name, value in manifest["settings"].items()},
        files=files_by_kind(each for each in manifest["files"] if each["path"] != REPORT),
        started=datetime.fromisoformat(manifest["started_at"]),
        published_at=_published_at(manifest),
        rankings=RANKER_TEXT,
        max_rows=MAX_ROWS,
        charts=drawn,
    )
    return str(page)


def _affinities(stats: EventStats) -> list[Affinity]:
    found = []
    steps = np.arange(AFFINITY_STEPS + 1)
    bins = np.minimum(steps * _AFFINITY_BINS // AFFINITY_STEPS, _AFFINITY_BINS - 1)
    for name in (CANDIDATE, SELECTED_IN, SELECTED_OUTSIDE):
        times = stats.affinities[name]
        if number := int(times.sum()):
            shares = np.bincount(bins, times, _AFFINITY_BINS) / number
            mean = float((times * steps).sum() / number / AFFINITY_STEPS)
            found.append(Affinity(name, number, mean, shares.tolist()))
    return found


def _draw_data(
    split: list[str],
    cities: Sequence[City],
    items: ItemStats,
    affinities: Sequence[Affinity],
    days: charts.TimeBins | None,
) -> dict[str, str]:
    """Draw the snapshot's data: SVG by name, without those that would be empty."""
    drawn = {}
    rows = [(_display_name(city.name), city.rows) for city in cities if city.all_rows][:_CHARTED_CITIES]
    if rows:
        drawn["cities"] = charts.stacked_bars(rows, split, "Rows per city and part of the split")
    if any(map(len, items.counts.values())):
        drawn["ranks"] = charts.rank_frequency(list(items.counts.values()), "Counts of items by rank")
    if affinities:
        series = [(each.shares, each.mean) for each in affinities]
        drawn["affinity"] = charts.distributions(series, "Affinity of candidates and of selected items")
    if days:
        drawn["days"] = charts.column_chart(days.values, days.labels, f"Ranking events per {days.unit}")
    for each in items.maps:
        alt_text = f"Map of {len(each.places)} items"
        drawn[f"map {each.city}"] = charts.item_map(each.side, each.places, each.selected, alt_text)
    return drawn


def _draw_probe(probe: Mapping[str, Any] | None) -> dict[str, str]:
    """Draw the AUC of the rankings of a probe, over all items, over new ones, and over the next new one."""
    drawn: dict[str, str] = {}
    if probe is None:
        return drawn
    rankings = {scope: {name: each[scope] for name, each in probe["rankings"].items()} for scope in ("all", "new")}
    rankings["next"] = (probe["next"] or {}).get("rankings", {})
    for scope, found in rankings.items():
        rows = [
            (text, auc["mean"], auc["low"], auc["high"], name == "model")
            for name, text in RANKER_TEXT.items()
            if name in found and None not in (auc := found[name]["auc"]).values()
        ]
        if rows:
            drawn[f"probe {scope}"] = charts.interval_plot(rows, 0.5, "AUC of each ranking")
    return drawn


def _draw_trends(
    manifest: Manifest,
    runs: Sequence[PreviousRun],
    metrics: Mapping[str, Sequence[Metric | None]],
    names: Sequence[str],
) -> dict[str, str]:
    """Draw metrics of these names over the runs, of which there is at least one earlier one."""
    now = _published_at(manifest)
    first = published_at(runs[0].name) or now
    # The ends of the axis: days, or times where both are on the same day.
    same = first.date() == now.date()
    start, end = (f"{moment:%H:%M} UTC" if same else wording.format_date(moment) for moment in (first, now))
    return {
        f"trend {name}": charts.trend(
            metrics[name],
            (start, end),
            f"{wording.format_metric(name)} over {len(runs) + 1} runs",
            metrics.get(_REFERENCE, ()) if name == "AUC" else (),
        )
        for name in names
        if any(each and each.value for each in metrics[name])
    }


def _published_at(manifest: Manifest) -> datetime:
    """Return when the snapshot got its name, the last moment that is known when its page is made."""
    return published_at(manifest["snapshot"]) or datetime.fromisoformat(manifest["ended_at"])


def _display_name(name: str | None) -> str:
    """Return a name from the data as it can be shown."""
    return escape_control_characters(name or "") or _NAMELESS


@cache
def load_template(name: str = "page.html") -> Any:
    """Import Jinja and compile a template of `data/report/`. HTML escapes everything that is inserted into it.

    That takes a tenth of a second, which may be spent beforehand.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(resource("report")),
        autoescape=select_autoescape(),
        keep_trailing_newline=name.endswith(".md"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(wording, name) for name in dir(wording) if name.startswith("format_")}
    environment.filters |= {"named": _display_name, "visible": escape_control_characters}
    for part in ("style.css", "sort.js") if name == "page.html" else ():
        environment.get_template(part)
    return environment.get_template(name)
