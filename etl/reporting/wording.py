"""What a night left out, and why, and other words that terminal and page share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etl.triples.partitions import SMALL_CATALOG

REASON_TEXT = {
    "user_without_persona": "user has no usable persona seed",
    "city_without_nodes": "city has no eligible node",
    "date_out_of_range": "date outside the years 1 to 9999",
    "trip_gone": "trip is gone",
    SMALL_CATALOG: "city's catalogue is too small",
    "no_negatives": "event has no negative to stand against",
    "whole_catalog_seen": "user has selected the city's whole catalogue",
    "unknown_category": "category that the enum does not have",
    "not_a_finite_number": "value is no finite JSON number",
}
"""The reasons of a manifest, in plain words."""

RANKER_TEXT = {
    "model": "BPR on these triples",
    "popularity": "popularity",
    "own_history": "own history, then popularity",
    "affinity": "affinity",
    "random": "chance",
}
"""The rankings of a probe, in plain words."""

MAX_CITIES = 40
"""Of how many cities a person is shown the figures; the manifest has them all."""

NO_SEED = "no trip with a usable persona seed"


class Exclusion(NamedTuple):
    """What was left out, why, and how many of it; `kept` is what stayed, and is only worth knowing."""

    what: str
    why: str
    rows: int
    informational: bool = False


def by_reason(what: str, reasons: Mapping[str, int]) -> Iterator[Exclusion]:
    """A group of a manifest, `{reason: number}`, in plain words."""
    return (Exclusion(what, REASON_TEXT.get(reason, reason), number) for reason, number in reasons.items())


def exclusions(counts: Mapping[str, Any]) -> Iterator[Exclusion]:
    """All that a run's counts, or a manifest, say was left out; also what was nought."""
    published = counts.get("published", {})
    yield Exclusion("shadow users", NO_SEED, counts.get("shadow_users_without_persona", 0))
    sources = counts.get("persona_values_by_source", {})
    yield Exclusion(
        "persona values", "missing in the seed: the default stands in", sources.get("default", 0), informational=True
    )
    yield Exclusion(
        "persona values", "affinities rebuilt from labels", sources.get("reconstructed", 0), informational=True
    )
    yield from by_reason("affinities of a seed", counts.get("affinities_dropped", {}))
    yield from by_reason("openness of a seed", counts.get("openness_dropped", {}))
    yield from by_reason("trip-days", counts.get("days_without_event", {}))
    yield from by_reason("events", counts.get("events_left_out", {}))
    for frame, rules in counts.get("set_aside", {}).items():
        for rule, number in rules.items():
            yield Exclusion(f"rows of {frame}", f"broke the rule {rule}", number)
    small = published.get("cities_left_out", {})
    for city in list(small)[:MAX_CITIES]:
        yield Exclusion(
            f"events of {city}", f"no triples: {small[city]}", published["events"][city], informational=True
        )
    rest = [published["events"][city] for city in list(small)[MAX_CITIES:]]
    yield Exclusion(
        f"events of {len(rest):,} more cities", "no triples, for such reasons", sum(rest), informational=True
    )
    yield Exclusion(
        "items", "named by events, but no longer in the catalogue", published.get("items_gone", 0), informational=True
    )
    yield from by_reason("positives", published.get("positives_left_out", {}))
    outside = "not among the event's candidates (published all the same)"
    yield Exclusion("positives", outside, counts.get("positives_outside_candidates", 0), informational=True)
