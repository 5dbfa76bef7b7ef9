"""Words and numbers that terminal and report share: formats, labels of metrics, exclusions, the comparison in one sentence.

Formats do not depend on the machine's locale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Literal, NamedTuple

from etl.reporting.history import MIN_RUNS, Metric
from etl.triples.partitions import SMALL_CATALOG

NONE = "\N{EN DASH}"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

METRIC_TEXT = {
    "left out: positives": "excluded positives",
    "choices": "choices of a next place",
    "left out: choices": "excluded choices",
    "left out: trip-days": "excluded trip-days",
    "left out: events": "excluded events",
    "set aside rows": "rejected rows",
}
"""Labels of the metrics of `etl.reporting.history.run_metrics` whose published name is not the label."""

REASON_TEXT = {
    "user_without_persona": "user has no usable persona seed",
    "city_without_nodes": "city has no eligible node",
    "day_without_city": "neither the trip nor a leg of the day has a city",
    "date_out_of_range": "date outside the years 1 to 9999",
    "trip_gone": "trip no longer exists",
    SMALL_CATALOG: "city's catalogue is too small",
    "no_negatives": "event has no negative to stand against",
    "whole_catalog_seen": "user has selected the city's whole catalogue",
    "unknown_category": "category that the enum does not have",
    "not_a_finite_number": "value is not a finite JSON number",
}
"""Texts of the reasons in a manifest."""

NO_SEED = "no trip with a usable persona seed"

MAX_CITIES = 40
"""How many cities are listed one by one. The manifest has all of them."""

Verdict = Literal["good", "odd", "plain"]


# --- formats ---------------------------------------------------------------------------------------------------------


def format_number(value: float | None) -> str:
    """Format a number: `680,207`, with three decimals where it is not whole."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def format_count(number: int, one: str, many: str | None = None) -> str:
    """Format a number with its noun: `1 check`, `3 checks`. `many` is the plural where it is not `one` + "s"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def format_range(bounds: tuple[float, float] | None, *, whole: bool) -> str:
    """Format a range: `9,114 to 9,454`. The bounds of counts (`whole`) are rounded; no bound is below 0."""
    if bounds is None:
        return NONE
    low, high = (round(max(0.0, bound), 0 if whole else 3) for bound in bounds)
    return f"{format_number(low)} to {format_number(high)}"


def format_interval(found: Mapping[str, float | None]) -> str:
    """Format a mean with its 95% interval: `0.700 (0.690-0.710)`."""
    if found["mean"] is None:
        return NONE
    return f"{found['mean']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def format_si(value: float) -> str:
    """Format a number for an axis: `680k`, `1.2M`, `0.65`."""
    for unit, letter in _SI:
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def format_percent(part: float, whole: float | None = 1.0) -> str:
    """Format a percentage: `20.3%`. Values that would round to 0% or 100% become "< 0.1%" or "> 99.9%"."""
    if not whole:
        return NONE
    percent = part / whole * 100
    if 0 < percent < 0.05:
        return "< 0.1%"
    if 99.95 <= percent < 100:
        return "> 99.9%"
    return f"{percent:.1f}%" if percent % 100 else f"{percent:.0f}%"


def format_change(value: float | None) -> str:
    """Format a relative change: `+1.2%`, `-53%` (with a minus sign), `±0%`."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "±0%"
    percent = abs(value) * 100
    sign = "+" if value > 0 else "\N{MINUS SIGN}"
    if percent < 0.1:
        return f"{sign}{percent:.2f}%"
    return f"{sign}{percent:.1f}%" if percent < 10 else f"{sign}{percent:,.0f}%"


def format_bytes(number: float) -> str:
    """Format bytes in powers of 1,000: `395.8 kB`."""
    for unit, letter in _SI:
        if number >= unit:
            return f"{number / unit:.1f} {letter}B"
    return f"{number:,.0f} B"


def format_duration(value: float) -> str:
    """Format seconds: `3.3 s`, `12 min`, `2.5 h`."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def format_date(moment: date) -> str:
    """Format a date: `25 Nov 2026`."""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}"


def format_datetime(moment: datetime) -> str:
    """Format a moment in UTC: `25 Nov 2026, 19:59 UTC`."""
    return f"{format_date(moment)}, {moment:%H:%M} UTC"


def format_setting(value: Any) -> str:
    """Format a setting's value; a list of (name, weight) becomes `Rome=2, Paris=0.5`."""
    if value is None or value in ([], ()):
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join("=".join(map(str, each)) if isinstance(each, list | tuple) else str(each) for each in value)
    return str(value)


def format_metric(name: str) -> str:
    """Return the label of a metric of `run_metrics`."""
    return METRIC_TEXT.get(name, name)


# --- comparison with earlier runs ------------------------------------------------------------------------------------


def format_range_note(metric: Metric) -> str:
    """Say on which side of its expected range a metric is; empty where it is inside, or where there is no range."""
    if metric.expected is None or not metric.out_of_range:
        return ""
    return "below expected range" if metric.value < metric.expected[0] else "above expected range"


def volumes_verdict(metrics: Sequence[Metric]) -> tuple[Verdict, str]:
    """Summarize the comparison with earlier runs.

    The verdict is "odd" only where a metric that `--max-change` limits is out of its range, so that there is a warning, too.
    """
    runs = max((each.runs for each in metrics), default=0)
    odd = [each for each in metrics if each.out_of_range]
    if odd:
        verdict: Verdict = "odd" if any(each.monitored for each in odd) else "good"
        return verdict, f"{len(odd)} of {len(metrics)} metrics out of the expected range"
    if any(each.expected for each in metrics):
        return "good", "all within the expected range"
    return "plain", f"no expected range yet ({runs} of {MIN_RUNS} runs)" if runs else "no earlier run"


def describe_kind(kind: Mapping[str, Any]) -> str:
    """Describe a kind of rows that a run does not make: `surface discovery, model llm_ranker 0.1.0`, `dimension mood`."""
    if "dimension" in kind:
        return f"dimension {kind['dimension']}"
    surface, model, version = map(kind.get, ("surface", "modelName", "modelVersion"))
    return f"surface {surface}, model {model} {version}"


# --- exclusions ------------------------------------------------------------------------------------------------------


class Exclusion(NamedTuple):
    """Rows that were excluded or rejected, with the reason. `informational` ones were published all the same.

    `labels` are those of the metrics file (what, reason); None where it has no such sample.
    """

    what: str
    why: str
    rows: int
    informational: bool = False
    labels: tuple[str, str] | None = None


# Key of the manifest, label in the metrics file, text.
_BY_REASON = (
    ("affinities_dropped", "affinities", "affinities of a seed"),
    ("openness_dropped", "openness", "openness of a seed"),
    ("days_without_event", "trip_days", "trip-days"),
    ("events_left_out", "events", "events"),
)


def by_reason(what: str, reasons: Mapping[str, int], label: str = "") -> Iterator[Exclusion]:
    """Yield the exclusions of one group of a manifest, `{reason: rows}`."""
    for reason, rows in reasons.items():
        yield Exclusion(what, REASON_TEXT.get(reason, reason), rows, labels=(label, reason) if label else None)


def rejected(counts: Mapping[str, Any], *frames: str) -> Iterator[Exclusion]:
    """Yield the rejected rows of these frames (default: all) by the rule that they broke."""
    for frame, rules in counts.get("set_aside", {}).items():
        if not frames or frame in frames:
            for rule, rows in rules.items():
                why = f"rejected by the rule {rule}"
                yield Exclusion(f"rows of {frame}", why, rows, labels=(f"rows_of_{frame}", rule))


def exclusions(counts: Mapping[str, Any]) -> Iterator[Exclusion]:
    """Yield everything that a run's counts, or a manifest, say was excluded. `rows` may be 0."""
    published = counts.get("published", {})
    if "shadow_users_without_persona" in counts:
        labels = "shadow_users", "without_persona"
        yield Exclusion("shadow users", NO_SEED, counts["shadow_users_without_persona"], labels=labels)
    sources = counts.get("persona_values_by_source", {})
    for source, why in (
        ("default", "missing in the seed: default used"),
        ("reconstructed", "affinities rebuilt from labels"),
    ):
        yield Exclusion("persona values", why, sources.get(source, 0), informational=True)
    for key, label, what in _BY_REASON:
        yield from by_reason(what, counts.get(key, {}), label)
    for model, rows in counts.get("filtered", {}).items():
        yield Exclusion(f"rows of {model}", f"excluded by where of [map.{model}]", rows, informational=True)
    several = "with slots in several cities: the first slot's is taken (published)"
    yield Exclusion("trip-days", several, counts.get("days_in_several_cities", 0), informational=True)
    yield from rejected(counts)
    foreign = counts.get("foreign_rows", {})
    for kind in foreign.get("kinds", []):
        why = f"not made by a run ({describe_kind(kind)}): {'left' if foreign['kept'] else 'deleted'}"
        yield Exclusion(f"rows of {kind['model']}", why, kind["rows"], informational=True)
    for surface, rows in counts.get("surfaces_excluded", {}).items():
        yield Exclusion("events", f"surface {surface} is not exported", rows)
    yield from _small_cities(published)
    gone = "named by events, but no longer in the catalogue"
    yield Exclusion("items", gone, published.get("items_gone", 0), informational=True)
    yield from by_reason("positives", published.get("positives_left_out", {}), "positives")
    logged = counts.get("confirmed_positives", {"positives": 0, "confirmed": 0})
    unconfirmed = "not confirmed by a slot (published)"
    yield Exclusion("positives", unconfirmed, logged["positives"] - logged["confirmed"], informational=True)
    yield from by_reason("choices", published.get("choices_left_out", {}), "choices")
    elsewhere = "in another city than their event (published)"
    yield Exclusion("positives", elsewhere, published.get("positives_in_another_city", 0), informational=True)
    outside = "not among the event's candidates (published)"
    yield Exclusion("positives", outside, counts.get("positives_outside_candidates", 0), informational=True)


def _small_cities(published: Mapping[str, Any]) -> Iterator[Exclusion]:
    small, labels = published.get("cities_left_out"), ("events", SMALL_CATALOG)
    if small is None:
        return
    for city in list(small)[:MAX_CITIES]:
        why = f"no triples: {small[city]}"
        yield Exclusion(f"events of {city}", why, published["events"].get(city, 0), informational=True, labels=labels)
    rest = [published["events"].get(city, 0) for city in list(small)[MAX_CITIES:]]
    what, why = f"events of {len(rest):,} more cities", "no triples, for such reasons"
    yield Exclusion(what, why, sum(rest), informational=True, labels=labels)
