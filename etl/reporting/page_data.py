"""Pure: what the report derives from a manifest, from the counts of its events, and from earlier runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.reporting.event_stats import CityStats, EventStats
from etl.reporting.history import MIN_RUNS, Metric, PreviousRun, compare_with_history, run_metrics
from etl.reporting.wording import (
    NO_SEED,
    Exclusion,
    Verdict,
    by_reason,
    exclusions,
    format_change,
    format_metric,
    format_number,
    format_percent,
    format_range,
    format_setting,
    rejected,
    volumes_verdict,
)
from etl.settings.values import SPLITS, TASKS

NO_SPLIT = "all"
"""The one part of a snapshot that was not split."""

KEY_METRICS = ("triples", "choices", "ranking events", "positives", "users", "AUC")
KEY_METRICS_OF_NEXT = ("choices", "ranking events", "users", "AUC")
"""The metrics at the top of the page, besides those out of their expected range; of a snapshot without triples."""

_LISTED = 3
"""How many sentences a headline has of one kind."""

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class FunnelStep:
    """A step of the funnel: `retained` and the rows of `excluded` add up to `incoming`."""

    what: str
    incoming: int
    retained: int
    excluded: list[Exclusion]
    how: str


@dataclass(frozen=True)
class City:
    """Counts of a city. `excluded` says why it has no triples; `popularity_correlation`: `etl.triples.partitions`.

    `rows` counts those of the first of `tables_of` by part of the split, `choices` those of a next place that have rows.
    """

    name: str
    rows: dict[str, int]
    positives: int
    choices: int
    stats: CityStats
    weight: float
    popularity_correlation: float | None
    excluded: str | None

    @property
    def all_rows(self) -> int:
        """The rows of all parts of the split."""
        return sum(self.rows.values())


@dataclass(frozen=True)
class Headline:
    """A block at the top of the page: its title, the verdict in a few words, further sentences, and a link.

    `link` is the id of the part of the page that has more, and its text.
    """

    title: str
    verdict: Verdict
    short: str
    more: list[str]
    link: tuple[str, str]


# --- earlier runs ----------------------------------------------------------------------------------------------------


def trends(manifest: Manifest, runs: Sequence[PreviousRun]) -> dict[str, list[Metric | None]]:
    """Return this run's metrics over all runs, oldest first, this one last. Each run is compared with those before it."""
    own = PreviousRun(str(manifest.get("snapshot")), manifest["settings"], run_metrics(manifest))
    compared = [
        compare_with_history(runs[:number], run.settings, run.metrics, run.published_at)
        for number, run in enumerate([*runs, own])
    ]
    by_name = [{each.name: each for each in metrics} for metrics in compared]
    return {name: [metrics.get(name) for metrics in by_name] for name in own.metrics}


def changed_settings(manifest: Manifest, runs: Sequence[PreviousRun]) -> list[tuple[str, str, str]]:
    """Return the settings that differ from the last run's: (name, before, now)."""
    if not runs:
        return []
    before, now = runs[-1].settings, manifest["settings"]
    return [
        (name, format_setting(before.get(name)), format_setting(value))
        for name, value in now.items()
        if before.get(name) != value
    ]


# --- the funnel and the cities ---------------------------------------------------------------------------------------


def funnel(manifest: Manifest, stats: EventStats, trips: int, users: int) -> list[FunnelStep]:
    """Return the steps from users to positives. `trips` are those published, `users` those of the audience."""
    published = manifest["published"]
    seeded = "ranking_events" in manifest and manifest["settings"]["audience"] == "shadow"
    events, active = sum(published["events"].values()), int(stats.has_events.sum())
    all_users = manifest.get("shadow_users", users) if seeded else users
    all_trips = manifest.get("source_rows", {}).get("trips", trips) if seeded else trips
    no_seed = min(manifest.get("shadow_users_without_persona", 0), all_users - active)
    no_event = [
        Exclusion("users", NO_SEED, no_seed),
        Exclusion("users", "no ranking event", all_users - active - no_seed),
    ]
    if seeded:
        what, how = "trip-days", "are ranking events"
        days = list(by_reason(what, manifest.get("days_without_event", {})))
    else:
        what, how = "events", "are published"
        days = [*by_reason(what, manifest.get("events_left_out", {})), *rejected(manifest, what)]
    without = sum(city.without_selection for city in stats.cities.values())
    selected = sum(city.selected for city in stats.cities.values())
    unused = list(by_reason("positives", published.get("positives_left_out", {})))
    no_trip = [Exclusion("trips", "none of its days has a ranking event", all_trips - trips)]
    no_selection = [Exclusion("ranking events", "nothing was selected on that day", without)]
    steps = [
        ("users", all_users, active, no_event, "have a ranking event"),
        ("trips", all_trips, trips, no_trip, "have a ranking event"),
        (what, events + sum(each.rows for each in days), events, days, how),
        ("ranking events", events, events - without, no_selection, "have a selected item"),
    ]
    if "triples" in tables_of(manifest):
        steps.append(("positives", selected, published["positives"], unused, "are in the triples"))
    if (choices := published.get("choices")) is not None:
        unused = list(by_reason("choices", published.get("choices_left_out", {})))
        all_choices = choices + sum(each.rows for each in unused)
        steps.append(("choices", all_choices, choices, unused, "of a next place are in next"))
    return [
        FunnelStep(what, incoming, retained, [each for each in excluded if each.rows], how)
        for what, incoming, retained, excluded, how in steps
    ]


def tables_of(manifest: Manifest) -> list[str]:
    """Return the tables to train on, triples first. The first one's rows are counted by city and part of the split."""
    return [task for task in TASKS if task in manifest["settings"].get("task", TASKS[:1])]


def split_of(manifest: Manifest) -> list[str]:
    """Return the parts of the split that the snapshot has, earliest first; [NO_SPLIT] where it was not split."""
    parts = {entry["split"] for entry in manifest["published"]["partitions"]}
    return [name for name in SPLITS if name in parts] or [NO_SPLIT]


def cities_of(manifest: Manifest, stats: EventStats) -> list[City]:
    """Return every city that has an event, those with most rows of the first table first."""
    published, table = manifest["published"], tables_of(manifest)[0]
    partitions: dict[str, list[Mapping[str, Any]]] = {}
    for entry in published["partitions"]:
        partitions.setdefault(entry["city"], []).append(entry)
    cities = [
        City(
            name,
            {entry["split"] or NO_SPLIT: entry.get(table, 0) for entry in entries},
            sum(entry["positives"] for entry in entries),
            sum(entry.get("choices", 0) for entry in entries),
            stats.cities.get(name, CityStats()),
            max(entry["weight"] for entry in entries),
            published["signs"].get(name),
            published["cities_left_out"].get(name),
        )
        for name, entries in partitions.items()
    ]
    return sorted(cities, key=lambda city: (-city.all_rows, -city.stats.events, city.name.encode()))


def files_by_kind(files: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return the number of a manifest's files, their rows and bytes by top folder or name, the largest first."""
    kinds: dict[str, dict[str, int]] = {}
    for each in files:
        kind = kinds.setdefault(each["path"].partition("/")[0], {"files": 0, "rows": 0, "bytes": 0})
        kind["files"] += 1
        kind["rows"] += each["rows"]
        kind["bytes"] += each["bytes"]
    return dict(sorted(kinds.items(), key=lambda kind: -kind[1]["bytes"]))


# --- headlines -------------------------------------------------------------------------------------------------------


def headlines(manifest: Manifest, metrics: Sequence[Metric]) -> list[Headline]:
    """Return the three blocks at the top of the page."""
    return [_status(manifest), _volumes(metrics), _excluded(manifest)]


def _status(manifest: Manifest) -> Headline:
    table = tables_of(manifest)[0]
    rows = sum(manifest["published"][table].values())
    files = sum(entry["path"].endswith(".parquet") for entry in manifest["files"])
    more = [f"{format_number(files)} data files were written and checked; the manifest has their SHA-256."]
    if found := manifest.get("probe"):
        ours, theirs = found["auc"]["mean"], found["auc_of_popularity"]["mean"]
        more.append(f"A model trained on them has AUC {format_number(ours)}, popularity {format_number(theirs)}.")
    else:
        more.append("Training value was not measured.")
    warnings = manifest.get("warnings", [])
    short = "Done" if rows else f"Done, but there are no {'triples' if table == 'triples' else 'choices'}"
    if rows and warnings:
        short = f"Done, with {'a warning' if len(warnings) == 1 else f'{len(warnings)} warnings'}"
    verdict: Verdict = "good" if short == "Done" else "odd"
    if warnings:  # the first sentence of a warning says what to do
        more = [f"{each.partition('. ')[0].rstrip('.')}." for each in warnings[:_LISTED]]
        link = ("warnings", "Read the warning" if len(warnings) == 1 else "Read the warnings")
        return Headline("Status", verdict, short, more, link)
    return Headline("Status", verdict, short, more, ("probe", "Training value"))


def _volumes(metrics: Sequence[Metric]) -> Headline:
    verdict, short = volumes_verdict(metrics)
    runs = max((each.runs for each in metrics), default=0)
    changed = sorted(
        (each for each in metrics if each.change is not None and each.before != each.value),
        key=lambda each: -abs(each.change or 0),
    )
    since = [f"{_label(each)} {format_change(each.change)} since the last run." for each in changed[:_LISTED]]
    since = since or ["Every metric equals the last run's."]
    outside = [each for each in metrics if each.out_of_range]
    if outside:
        more = [_out_of_range(each) for each in outside[:_LISTED]]
        more += [f"And {len(outside) - _LISTED} more: see the trend."] if len(outside) > _LISTED else []
    elif not runs:
        more = ["The next run will be compared with this one."]
    elif verdict == "good":
        more = [f"Compared with {runs} runs.", *since]
    else:
        more = [*since, f"There is an expected range from {MIN_RUNS} earlier runs on."]
    link = ("trend", "Figures over the last runs" if runs else "Figures of this run")
    return Headline("Volumes compared with earlier runs", verdict, short[:1].upper() + short[1:], more, link)


def _out_of_range(metric: Metric) -> str:
    expected = format_range(metric.expected, whole=metric.is_count)
    return f"{_label(metric)}: {format_number(metric.value)}, expected {expected}."


def _label(metric: Metric) -> str:
    label = format_metric(metric.name)
    return label[:1].upper() + label[1:]


def _excluded(manifest: Manifest) -> Headline:
    title, published, link = "Excluded rows", manifest["published"], ("excluded", "All excluded rows and notes")
    found = sorted(
        (each for each in exclusions(manifest) if each.rows and not each.informational), key=lambda each: -each.rows
    )
    if not found:
        return Headline(title, "good", "None", [], link)
    what = "positives" if "triples" in tables_of(manifest) else "choices"
    excluded = sum(published.get(f"{what}_left_out", {}).values())
    share = format_percent(excluded, excluded + published.get(what, 0))
    more = [f"{format_number(each.rows)} {each.what}: {each.why}." for each in found[:_LISTED]]
    if others := len(found[_LISTED:]):
        more.append(f"And {'one more reason' if others == 1 else f'{others} more reasons'}.")
    if cities := list(published["cities_left_out"]):
        of = cities[0] if len(cities) == 1 else f"{format_number(len(cities))} cities"
        more.append(f"No triples of {of}: the catalogue is too small.")
    return Headline(title, "plain", f"{share} of the {what}" if excluded else f"None of the {what}", more, link)
