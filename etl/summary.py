"""What a run says at its end: did it work, how much was it, what was left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from etl.errors import visible
from etl.journal import Report

_WORDS = {
    "user_without_persona": "user has no usable persona seed",
    "city_without_nodes": "city has no eligible node",
    "date_out_of_range": "date outside the years 1 to 9999",
    "trip_gone": "trip is gone",
    "small_catalog": "city's catalogue is too small",
    "no_negatives": "event has no negative to stand against",
    "whole_catalog_seen": "user has selected the city's whole catalogue",
    "unknown_category": "category that the enum does not have",
    "not_a_finite_number": "value is no finite JSON number",
}


def run_summary(title: str, report: Report, *, profile: bool) -> RenderableType:
    """Steps with rows and seconds, then the triples per city, then what was left out, then the probe's figures.

    `profile` adds rows a second and the process's peak memory until the end of each step.
    """
    counts = report.counts
    return Group(_steps(title, report, profile=profile), _published(counts), _left_out(counts), _probe_line(counts))


def _probe_line(counts: Mapping[str, Any]) -> Text:
    if "probe" not in counts:
        return Text("")
    found = counts["probe"]
    return Text(
        f"\nProbe ({found['split']}, {found['users']:,} users): AUC {_interval(found['auc'])}, "
        f"popularity {_interval(found['auc_of_popularity'])}, NDCG@10 {_interval(found['ndcg_at_10'])}"
    )


_RANKINGS = {
    "model": "BPR on these triples",
    "popularity": "popularity",
    "own_history": "own history, then popularity",
    "affinity": "affinity",
    "random": "chance",
}


def probe_tables(facts: Mapping[str, Any]) -> RenderableType:
    """How the model and what needs no training rank the held-out places: all of them, and those new to the user."""
    title = f"Held out by {facts['split']}: {facts['users']:,} users, mean and interval of 95%"
    new = f"\nPlaces new to the user: {facts['users_with_new_places']:,} users"
    return Group(_figures(title, facts["rankings"], "all"), _figures(new, facts["rankings"], "new"))


def _figures(title: str, rankings: Mapping[str, Any], scope: str) -> Table:
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("ranking")
    for column in ("AUC", "NDCG@10", "Recall@10"):
        table.add_column(column)
    for name, words in _RANKINGS.items():
        if name in rankings:
            found = rankings[name][scope]
            table.add_row(words, *(_interval(found[figure]) for figure in ("auc", "ndcg_at_10", "recall_at_10")))
    return table


def _interval(found: Mapping[str, float | None]) -> str:
    if found["mean"] is None:
        return "-"
    return f"{found['mean']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


def findings_table(title: str, findings: Iterable[tuple[str, int, str]]) -> Table:
    """One row per law: ok, or how many rows break it."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("law")
    table.add_column("", justify="right")
    for law, broken, detail in findings:
        verdict = Text("ok", style="green") if not broken else Text(f"{broken:,} broken", style="bold red")
        table.add_row(visible(law + (f": {detail}" if detail else "")), verdict)
    return table


def rows_table(title: str, rows: pl.DataFrame) -> Table:
    """A small frame as it is."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in rows.columns:
        table.add_column(name)
    for row in rows.iter_rows():
        table.add_row(*("" if cell is None else visible(str(cell)) for cell in row))
    return table


def _steps(title: str, report: Report, *, profile: bool) -> Table:
    """The last line is the time that all of it took, which is less than the sum: some steps go on beside others."""
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False, show_footer=True)
    table.add_column("step", footer="all, some side by side")
    table.add_column("rows", justify="right")
    table.add_column("seconds", justify="right", footer=f"{report.seconds:.2f}")
    if profile:
        table.add_column("rows/s", justify="right")
        table.add_column("peak MiB", justify="right")
    for step in report.steps:
        cells = [step.name, "" if step.rows is None else f"{step.rows:,}", f"{step.seconds:.2f}"]
        if profile:
            rate = f"{step.rows / step.seconds:,.0f}" if step.rows and step.seconds else ""
            cells += [rate, f"{step.peak_mib:,.0f}"]
        table.add_row(*cells)
    return table


def _published(counts: Mapping[str, Any]) -> RenderableType:
    published = counts.get("published")
    if not published:
        return Text("")
    table = Table(title="\nPublished", title_justify="left", show_edge=False, pad_edge=False, show_footer=True)
    events, triples = published["events"], published["triples"]
    table.add_column("city", footer="all")
    table.add_column("events", justify="right", footer=f"{sum(events.values()):,}")
    table.add_column("triples", justify="right", footer=f"{sum(triples.values()):,}")
    table.add_column("teaches", justify="right")
    for city, number in events.items():
        teaches = published["signs"].get(city)
        table.add_row(
            visible(city),
            f"{number:,}",
            f"{triples[city]:,}" if city in triples else "left out",
            "" if teaches is None else f"{teaches:.2f}",
        )
    return table


def _left_out(counts: Mapping[str, Any]) -> RenderableType:
    table = Table(title="\nLeft out, and worth knowing", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("what")
    table.add_column("why")
    table.add_column("rows", justify="right")
    for what, why, number in _losses(counts):
        if number:
            table.add_row(visible(what), visible(why), f"{number:,}")
    return table if table.row_count else Text("\nNothing was left out.")


def _losses(counts: Mapping[str, Any]) -> Iterable[tuple[str, str, int]]:
    published = counts.get("published", {})
    yield "shadow users", "no trip with a usable persona seed", counts.get("shadow_users_without_persona", 0)
    sources = counts.get("persona_values_by_source", {})
    yield "persona values", "missing in the seed: the default stands in", sources.get("default", 0)
    yield "persona values", "affinities rebuilt from labels", sources.get("reconstructed", 0)
    for what, group in (
        ("affinities of a seed", "affinities_dropped"),
        ("trip-days", "days_without_event"),
        ("events", "events_left_out"),
    ):
        for reason, number in counts.get(group, {}).items():
            yield what, _WORDS.get(reason, reason), number
    for frame, rules in counts.get("set_aside", {}).items():
        for rule, number in rules.items():
            yield f"rows of {frame}", f"broke the rule {rule}", number
    for city, why in published.get("cities_left_out", {}).items():
        yield f"triples of {city}", why, published["events"][city]
    yield "items", "named by events, but no longer in the catalogue", published.get("items_gone", 0)
    for reason, number in published.get("positives_left_out", {}).items():
        yield "positives", _WORDS.get(reason, reason), number
    yield (
        "positives",
        "not among the event's candidates (published all the same)",
        counts.get("positives_outside_candidates", 0),
    )
