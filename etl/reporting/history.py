"""Pure: what a night came to, by figures in plain words, and how it stands against the nights before.

A night here is a published snapshot's manifest, or what is about to become one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from math import isfinite, nan, sqrt
from statistics import median
from typing import Any

from etl.settings.model import ROW_SETTINGS, TRIPLE_SETTINGS

HISTORY_LENGTH = 29
"""How many earlier runs are looked at, four of each weekday: with this one they are the 30 that the report shows."""

MIN_RUNS = 5
"""From so many earlier runs on there is an expected range: with fewer, one odd run would be a quarter of them."""

_WEEK, _TWO_WEEKS, _FEW = 7, 14, 3
_LEAST, _MOST, _SPREADS, _DEVIATIONS = 0.05, 0.30, 12.0, 3.0

MONITORED = ("shadow users", "trips read", "ranking events", "triples", "positives", "users", "items")
"""The figures whose moves `--max-change` limits. Losses and AUC are none: from 0 to 3 is no share of anything."""

_DECIDE: tuple[tuple[str, ...], ...] = (ROW_SETTINGS, TRIPLE_SETTINGS)
_TRIPLE_METRICS = frozenset({"triples", "positives", "cities", "left out: positives", "AUC", "AUC of popularity"})
"""Figures that the triples' own settings decide, too: the others are compared whatever these say."""


@dataclass(frozen=True)
class PreviousRun:
    """An earlier snapshot: its name, the settings that it was made with, and its figures."""

    name: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]

    @cached_property
    def published_at(self) -> datetime | None:
        """When it was published."""
        return published_at(self.name)


def published_at(name: str) -> datetime | None:
    """When a snapshot of this name was published; None where the name does not say."""
    try:
        return datetime.strptime(name.partition("-")[0], "%Y%m%dT%H%M%S%fZ").replace(tzinfo=UTC)
    except ValueError:
        return None


@dataclass(frozen=True)
class Change:
    """A figure of two nights. `share` is the change as a part of `before` (-0.5: half of it is gone); None where that was 0."""

    name: str
    before: float
    after: float
    share: float | None


def run_metrics(manifest: Mapping[str, Any]) -> dict[str, float]:
    """What a night came to, by name, in this order: those figures that its manifest (or a run's counts) has.

    `ranking events`, `users`, `items` and `cities` are those published (cities: those with triples); losses are rows.
    """
    return dict(_run_metrics(manifest))


def _run_metrics(manifest: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    published, probe = manifest.get("published", {}), manifest.get("probe", {})
    yield from _given("shadow users", manifest.get("shadow_users"))
    yield from _given("trips read", manifest.get("source_rows", {}).get("trips"))
    yield from _given("ranking events", _total(published.get("events")))
    yield from _given("triples", _total(published.get("triples")))
    for name in ("positives", "users", "items"):
        yield from _given(name, published.get(name))
    if "triples" in published:
        yield "cities", sum(number > 0 for number in published["triples"].values())
    yield from _given("left out: positives", _total(published.get("positives_left_out")))
    yield from _given("left out: trip-days", _total(manifest.get("days_without_event")))
    yield from _given("left out: events", _total(manifest.get("events_left_out")))
    if "set_aside" in manifest:
        yield "set aside rows", sum(sum(rules.values()) for rules in manifest["set_aside"].values())
    yield from _given("AUC", probe.get("auc", {}).get("mean"))
    yield from _given("AUC of popularity", probe.get("auc_of_popularity", {}).get("mean"))


def _given(name: str, value: float | None) -> Iterator[tuple[str, float]]:
    if value is not None:
        yield name, value


def _total(parts: Mapping[str, float] | None) -> float | None:
    return None if parts is None else sum(parts.values())


def expected_range(
    earlier: Sequence[tuple[datetime | None, float]], now: datetime | None, *, counts: bool = True
) -> tuple[float, float] | None:
    """The range that a figure is expected in, from what it was in earlier runs; None where these are fewer than 5.

    The middle is the median of the last seven runs, times what the same weekday usually is of it: the median of at least three
    such days; with fewer, the range reaches from the least to the greatest of what it may be. From the middle the range goes
    down by 12 times the median deviation of the earlier runs from theirs, at least 5 % and at most 30 % (in the first two
    weeks 30 %, since most weekdays are not known), and up by the same factor. A count's range is at least three of its
    standard deviations (the root of it) either way. A single bad run moves none of these medians.
    """
    known = [(_day(moment), value) for moment, value in earlier if isfinite(value)]
    if len(known) < MIN_RUNS:
        return None
    shares = list(_shares_of_level(known))
    typical = _typical(_day(now), shares)
    share = _MOST if len(known) < _TWO_WEEKS else _tolerance(shares)
    level = _level(known)
    low, high = level * min(typical), level * max(typical)
    slack = [_DEVIATIONS * sqrt(max(each, 1.0)) if counts else 0.0 for each in (low, high)]
    return min(low * (1 - share), low - slack[0]), max(high / (1 - share), high + slack[1])


_Series = Sequence[tuple[float, float]]
"""Values of runs, oldest first, each with its day since 1970; of a moment that is not known, nan."""


def _day(moment: datetime | None) -> float:
    return nan if moment is None else moment.timestamp() / 86_400


def _level(earlier: _Series) -> float:
    return median(value for _, value in earlier[-_WEEK:])


def _shares_of_level(earlier: _Series) -> Iterator[tuple[float, float]]:
    """What each run came to as a share of the level before it, where three runs at least tell that."""
    for place in range(_FEW, len(earlier)):
        if level := _level(earlier[:place]):
            yield earlier[place][0], earlier[place][1] / level


def _typical(day: float, shares: _Series) -> list[float]:
    """What a day's weekday is of the level: its median; with fewer than three such days, all that it may be.

    Days of one weekday are whole weeks apart, give or take half a day: a job at midnight is now before it, now after.
    """
    same = [share for other, share in shares if abs((day - other + 0.5) % _WEEK - 0.5) <= 0.5]  # never of nan
    return [median(same)] if len(same) >= _FEW else [1.0, *same]


def _tolerance(shares: _Series) -> float:
    """How far, as a share of what is expected, is not yet unusual: by how far each run was from what the others say."""
    moves = []
    for place, (day, share) in enumerate(shares):
        typical = _typical(day, [*shares[:place], *shares[place + 1 :]])
        moves.append(min(abs(share / each - 1) if each else 0.0 for each in typical))
    return min(_MOST, max(_LEAST, _SPREADS * median(moves))) if moves else _LEAST


@dataclass(frozen=True)
class Metric:
    """One figure of a run beside the `runs` before it that are comparable.

    `before` is the last one's, which is snapshot `since`; `usual` is the expected range, None where there are too few runs.
    """

    name: str
    value: float
    before: float | None = None
    since: str | None = None
    runs: int = 0
    expected: tuple[float, float] | None = None

    @property
    def change(self) -> float | None:
        """The change since the last run, as a part of what it was then (-0.5: half of it is gone)."""
        return (self.value - self.before) / self.before if self.before else None

    @property
    def is_count(self) -> bool:
        """Whether it counts something."""
        return not self.name.startswith("AUC")

    @property
    def monitored(self) -> bool:
        """Whether `--max-change` limits its moves."""
        return self.name in MONITORED

    @property
    def out_of_range(self) -> bool:
        """Whether it is out of its expected range."""
        return self.expected is not None and not self.expected[0] <= self.value <= self.expected[1]

    @property
    def stays(self) -> bool:
        """Whether it is out of its range as the last run's is, and no further: that was published, and is no new change."""
        if self.expected is None or self.before is None:
            return False
        (low, high), width = self.expected, (self.expected[1] - self.expected[0]) / 2
        less = self.value < low and self.before < low and self.value >= self.before - width
        return less or (self.value > high and self.before > high and self.value <= self.before + width)


def compare_with_history(
    nights: Sequence[PreviousRun], settings: Mapping[str, Any], after: Mapping[str, float], now: datetime | None
) -> list[Metric]:
    """The figures of a run beside the comparable runs before it (oldest first): the one rule of what is usual.

    Comparable are those with the same settings, of all that decide the figure. `now` is when the run is published.
    """
    alike = {names: [night for night in nights if not _differing(night.settings, settings, names)] for names in _DECIDE}
    return [_compare_metric(name, value, alike[_deciding(name)], now) for name, value in after.items()]


def _compare_metric(name: str, value: float, alike: Sequence[PreviousRun], now: datetime | None) -> Metric:
    had = [night for night in alike if name in night.metrics]
    if not had:
        return Metric(name, value)
    series = [(night.published_at, night.metrics[name]) for night in had]
    range_ = expected_range(series, now, counts=not name.startswith("AUC"))
    return Metric(name, value, series[-1][1], had[-1].name, len(had), range_)


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[Change]:
    """The figures that both nights have, in the order of `after`, those that did not change among them."""
    return [
        Change(name, before[name], value, (value - before[name]) / before[name] if before[name] else None)
        for name, value in after.items()
        if name in before
    ]


@dataclass(frozen=True)
class Compared:
    """What became of a run's comparison with those before: the watched figures that moved too far.

    `differs` names the settings that decide and are no longer those of the last run, where no earlier run has the same:
    then what they decide was not compared.
    """

    moved: list[Metric]
    changed_settings: list[str]


def compare(
    nights: Sequence[PreviousRun], settings: Mapping[str, Any], found: Sequence[Metric], allowed: float
) -> Compared:
    """Which of a run's figures (`beside`) moved too far since the runs before it (oldest first).

    Out of the expected range; where there is none yet, further than `allowed`, a share of what the last one came to. Where
    nothing was there, whatever comes is allowed.
    """
    moved = [
        each
        for each in found
        if each.monitored
        and (each.out_of_range if each.expected else each.change is not None and abs(each.change) > allowed)
    ]
    differs = [
        name
        for names in _DECIDE
        if nights and all(_differing(night.settings, settings, names) for night in nights)
        for name in _differing(nights[-1].settings, settings, names)
    ]
    moved.sort(key=lambda each: MONITORED.index(each.name))
    return Compared(moved, list(dict.fromkeys(differs)))


def _deciding(name: str) -> tuple[str, ...]:
    """The settings that decide a figure."""
    return TRIPLE_SETTINGS if name in _TRIPLE_METRICS else ROW_SETTINGS


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [name for name in names if before.get(name) != now.get(name)]
