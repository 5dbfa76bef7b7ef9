"""Pure: what the report says of a night by its manifest, by its events' tally, and by the nights before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.reporting.event_stats import CityStats, EventStats
from etl.reporting.history import Metric, PreviousRun, compare_with_history, published_at, run_metrics
from etl.reporting.wording import NO_SEED, Exclusion, by_reason
from etl.settings.values import SPLITS

NO_SPLIT = "all"
"""The one part of a snapshot that was not split."""

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Trend:
    """A figure over the nights, oldest first, this one last: its value and its usual range then; None where there is none."""

    name: str
    values: list[float | None]
    usual: list[tuple[float, float] | None]

    @property
    def odd(self) -> list[bool]:
        """Which nights were out of the usual range."""
        return [
            value is not None and bounds is not None and not bounds[0] <= value <= bounds[1]
            for value, bounds in zip(self.values, self.usual, strict=True)
        ]


@dataclass(frozen=True)
class FunnelStep:
    """A step of the funnel: of so many, so many were kept, and the rest was lost for these reasons. They add up."""

    what: str
    incoming: int
    retained: int
    excluded: list[Exclusion]
    how: str


@dataclass(frozen=True)
class City:
    """What became of a city. `sign` as in `etl.triples.partitions`; `left_out` says why it has no triples."""

    name: str
    triples: dict[str, int]
    positives: int
    tally: CityStats
    weight: float
    sign: float | None
    left_out: str | None

    @property
    def all_triples(self) -> int:
        """Of all parts of the split."""
        return sum(self.triples.values())


def figures_of(manifest: Manifest, nights: Sequence[PreviousRun]) -> list[Metric]:
    """The figures of a night beside the nights of the same settings, in the order of `etl.reporting.history.figures`."""
    return compare_with_history(
        nights, manifest["settings"], run_metrics(manifest), published_at(str(manifest.get("snapshot")))
    )


def trends(manifest: Manifest, nights: Sequence[PreviousRun]) -> list[Trend]:
    """The figures of this night over all nights; what was usual then, among the nights before it of the same settings."""
    shown = run_metrics(manifest)
    own = PreviousRun(str(manifest.get("snapshot")), manifest["settings"], shown)
    then = [
        {
            each.name: each.expected
            for each in compare_with_history(nights[:place], night.settings, shown, night.published_at)
        }
        for place, night in enumerate([*nights, own])
    ]
    return [
        Trend(name, [*(night.metrics.get(name) for night in nights), value], [usual[name] for usual in then])
        for name, value in shown.items()
    ]


def changed_settings(manifest: Manifest, nights: Sequence[PreviousRun]) -> list[tuple[str, str, str]]:
    """The settings that are not those of the last night: (name, before, now)."""
    if not nights:
        return []
    before, now = nights[-1].settings, manifest["settings"]
    return [
        (name, setting(before.get(name)), setting(value)) for name, value in now.items() if before.get(name) != value
    ]


def setting(value: Any) -> str:
    """A setting's value in words."""
    if value is None or value == []:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join("=".join(map(str, each)) if isinstance(each, list | tuple) else str(each) for each in value)
    return str(value)


def funnel(manifest: Manifest, tally: EventStats, trips: int, users: int) -> list[FunnelStep]:
    """From users to triples, every loss named. `trips` are those published, `users` those of the audience."""
    published = manifest["published"]
    seeded = "ranking_events" in manifest and manifest["settings"]["audience"] == "shadow"
    events = sum(published["events"].values())
    return [
        _of_users(manifest, tally, manifest["shadow_users"] if seeded else users),
        _of_trips(manifest["source_rows"]["trips"] if seeded else trips, trips),
        _of_days(manifest, events, seeded=seeded),
        _of_events(tally, events),
        FunnelStep(
            "positives",
            sum(city.selected for city in tally.cities.values()),
            published["positives"],
            _some(by_reason("positives", published.get("positives_left_out", {}))),
            "stand in the triples",
        ),
    ]


def _of_users(manifest: Manifest, tally: EventStats, came: int) -> FunnelStep:
    kept = int(tally.has_events.sum())
    without = min(manifest.get("shadow_users_without_persona", 0), came - kept)
    other = Exclusion("users", "no ranking event of theirs", came - kept - without)
    return FunnelStep("users", came, kept, _some([Exclusion("users", NO_SEED, without), other]), "have a ranking event")


def _of_trips(came: int, kept: int) -> FunnelStep:
    why = "none of its days has a ranking event"
    return FunnelStep("trips", came, kept, _some([Exclusion("trips", why, came - kept)]), "have a ranking event")


def _of_days(manifest: Manifest, events: int, *, seeded: bool) -> FunnelStep:
    lost = list(by_reason("trip-days", manifest.get("days_without_event" if seeded else "events_left_out", {})))
    if not seeded:
        aside = manifest.get("set_aside", {}).get("events", {})
        lost += [Exclusion("events", f"broke the rule {rule}", rows) for rule, rows in aside.items()]
    came = events + sum(loss.rows for loss in lost)
    return FunnelStep(
        "trip-days" if seeded else "events",
        came,
        events,
        _some(lost),
        "are ranking events" if seeded else "are published",
    )


def _of_events(tally: EventStats, events: int) -> FunnelStep:
    idle = sum(city.without_selection for city in tally.cities.values())
    lost = _some([Exclusion("ranking events", "nothing was selected on that day", idle)])
    return FunnelStep("ranking events", events, events - idle, lost, "have a selected place")


def _some(found: Sequence[Exclusion] | Iterator[Exclusion]) -> list[Exclusion]:
    return [loss for loss in found if loss.rows]


def split_of(manifest: Manifest) -> list[str]:
    """The parts of the snapshot's split that it has, earliest first; NO_SPLIT alone where it was not split."""
    parts = {entry["split"] for entry in manifest["published"]["partitions"]}
    return [name for name in SPLITS if name in parts] or [NO_SPLIT]


def cities_of(manifest: Manifest, tally: EventStats) -> list[City]:
    """Every city that an event is in, those with most triples first."""
    published = manifest["published"]
    partitions: dict[str, list[Mapping[str, Any]]] = {}
    for entry in published["partitions"]:
        partitions.setdefault(entry["city"], []).append(entry)
    cities = [
        City(
            name,
            {entry["split"] or NO_SPLIT: entry["triples"] for entry in entries},
            sum(entry["positives"] for entry in entries),
            tally.cities.get(name, CityStats()),
            max(entry["weight"] for entry in entries),
            published["signs"].get(name),
            published["cities_left_out"].get(name),
        )
        for name, entries in partitions.items()
    ]
    return sorted(cities, key=lambda city: (-city.all_triples, -city.tally.events, city.name.encode()))
