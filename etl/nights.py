"""Pure: what a night came to, by figures in plain words, and how it stands against the nights before.

A night here is a published snapshot's manifest, or what is about to become one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

REMEMBERED = 29
"""How many earlier nights are looked at: with this one they are the 30 that the report shows."""

FEWEST = 4
"""From so many nights on there is something usual: with fewer, one odd night would be a third of them."""

_SPREADS, _NORMAL, _FLOOR = 5.0, 1.4826, 0.01

WATCHED = ("shadow users", "trips read", "ranking events", "triples", "positives", "users", "items")
"""The figures whose moves `--max-change` limits. Losses and AUC are none: from 0 to 3 is no share of anything."""

OF_ROWS = ("schema", "shadow_prefix", "shadow_domain", "audience")
"""Settings that decide which rows are read."""

_OF_TRIPLES = (*OF_ROWS, "negatives", "reject", "catalog_alpha", "split", "min_catalog", "small_catalog")
_BY_TRIPLES = frozenset({"triples", "positives"})
"""Figures that the triples' own settings decide, too: the others are compared whatever these say."""


@dataclass(frozen=True)
class Night:
    """An earlier snapshot: its name, the settings that it was made with, and its figures."""

    name: str
    settings: Mapping[str, Any]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Change:
    """A figure of two nights. `share` is the change as a part of `before` (-0.5: half of it is gone); None where that was 0."""

    name: str
    before: float
    after: float
    share: float | None


def figures(manifest: Mapping[str, Any]) -> dict[str, float]:
    """What a night came to, by name, in this order: those figures that its manifest (or a run's counts) has.

    `ranking events`, `users`, `items` and `cities` are those published (cities: those with triples); losses are rows.
    """
    return dict(_figures(manifest))


def _figures(manifest: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
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


def usual(values: Sequence[float]) -> tuple[float, float] | None:
    """The usual range of a figure, from the nights before; None where there are fewer than 4.

    Median ± 5 robust standard deviations, at least ± 1 % of the median. A robust standard deviation is 1.4826 times the
    median absolute deviation (MAD), the standard deviation where figures are normally distributed; half the nights could be odd
    and not move it (Rousseeuw and Croux, "Alternatives to the Median Absolute Deviation", JASA 88, 1993). The floor of 1 %
    is there because nights without a change have a deviation of 0.
    """
    known = [value for value in values if not math.isnan(value)]
    if len(known) < FEWEST:
        return None
    middle = median(known)
    spread = median(abs(value - middle) for value in known)
    around = max(_SPREADS * _NORMAL * spread, _FLOOR * abs(middle))
    return middle - around, middle + around


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[Change]:
    """The figures that both nights have, in the order of `after`, those that did not change among them."""
    return [
        Change(name, before[name], value, (value - before[name]) / before[name] if before[name] else None)
        for name, value in after.items()
        if name in before
    ]


@dataclass(frozen=True)
class Compared:
    """What became of a night's comparison: the watched figures that moved too far, each with the snapshot it is compared with.

    `differs` names the settings that decide and are no longer those of the last night, where no earlier night has the same:
    then what they decide was not compared.
    """

    moved: list[tuple[str, Change]]
    differs: list[str]


def compare(
    nights: Sequence[Night], settings: Mapping[str, Any], after: Mapping[str, float], allowed: float
) -> Compared:
    """A night against those before it (oldest first): each watched figure with the last night of the same settings.

    `allowed` is a share of what was there. Where nothing was there before, whatever comes is allowed.
    """
    moved: list[tuple[str, Change]] = []
    differs: list[str] = []
    for names, group in ((OF_ROWS, set(WATCHED) - _BY_TRIPLES), (_OF_TRIPLES, _BY_TRIPLES)):
        same = next((night for night in reversed(nights) if not _differing(night.settings, settings, names)), None)
        if same is None:
            differs += _differing(nights[-1].settings, settings, names) if nights else []
            continue
        found = [each for each in changes(same.figures, after) if each.name in group]
        moved += [(same.name, each) for each in found if each.share is not None and abs(each.share) > allowed]
    moved.sort(key=lambda each: WATCHED.index(each[1].name))
    return Compared(moved, list(dict.fromkeys(differs)))


def alike(nights: Sequence[Night], settings: Mapping[str, Any]) -> list[Night]:
    """The nights whose settings decide what tonight's do: only among these is there something usual."""
    return [night for night in nights if not _differing(night.settings, settings, _OF_TRIPLES)]


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [name for name in names if before.get(name) != now.get(name)]
