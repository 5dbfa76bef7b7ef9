"""Pure: how far a distribution has moved, by the population stability index (PSI).

PSI = sum over groups of (after - before) * ln(after / before), in shares; its rule of thumb is old and has no better source
than use: below 0.10 little has changed, from 0.25 on much (N. Siddiqi, "Credit Risk Scorecards", Wiley 2006). Of few rows or of
many groups it is high by chance alone: about a chi-square of groups - 1 degrees of freedom, times 1/n + 1/m (Yurdakul and
Naranjo, "Statistical properties of the population stability index", J. Risk Model Validation 14(4), 2020). So what chance may
come to is added to either threshold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MODERATE, MUCH = 0.10, 0.25
STEADY, MOVED, MOVED_MUCH = "steady", "moved", "moved much"
OTHERS = "(all that are rare)"

_RARE = 5.0
"""Groups with fewer rows, in the mean of both nights, are pooled, as for a chi-square test (Cochran, Biometrics 10, 1954)."""

_UNSEEN = 0.5
"""Rows that a group without any counts as: a share of 0 has no logarithm."""

_DEVIATIONS = 2.0


@dataclass(frozen=True)
class Drift:
    """How far a distribution has moved: its PSI over so many groups, what chance alone may come to, and a word for it.

    `mover` is the group that contributes most, with its shares before and after; None where there is none.
    """

    name: str
    psi: float
    groups: int
    chance: float
    verdict: str
    mover: tuple[str, float, float] | None


def drift(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> Drift | None:
    """The drift between two distributions, {group: rows}; None where either has no rows."""
    counts = _pooled(before, after)
    n, m = (sum(pair[side] for pair in counts.values()) for side in (0, 1))
    if not n or not m:
        return None
    parts = {}
    for group, (old, new) in counts.items():
        share, now = max(old, _UNSEEN) / n, max(new, _UNSEEN) / m
        parts[group] = (now - share) * math.log(now / share)
    psi = sum(parts.values())
    chance = _by_chance(len(counts), n, m)
    most = max(parts, key=lambda group: (parts[group], group))
    old, new = counts[most]
    mover = (most, old / n, new / m) if parts[most] > 0 else None
    return Drift(name, psi, len(counts), chance, _verdict(psi, chance), mover)


def _pooled(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """{group: (rows before, rows after)}, rare groups put together."""
    counts: dict[str, tuple[float, float]] = {}
    for group in sorted({*before, *after}):
        pair = (before.get(group, 0.0), after.get(group, 0.0))
        place = group if sum(pair) >= 2 * _RARE else OTHERS
        held = counts.get(place, (0.0, 0.0))
        counts[place] = (held[0] + pair[0], held[1] + pair[1])
    return {group: pair for group, pair in counts.items() if sum(pair)}


def _by_chance(groups: int, n: float, m: float) -> float:
    """What PSI is at most, nearly always, of two samples of one distribution: mean and two deviations of its chi-square."""
    freedom = groups - 1
    return (freedom + _DEVIATIONS * math.sqrt(2 * freedom)) * (1 / n + 1 / m)


def _verdict(psi: float, chance: float) -> str:
    return MOVED_MUCH if psi >= MUCH + chance else MOVED if psi >= MODERATE + chance else STEADY
