"""What `list`, `inspect`, `diff` and `doctor` print: tables and lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from etl.commands.terminal.console import STATES, TextTable, state_lines
from etl.errors import escape_control_characters
from etl.reporting.compare import MODERATE, MOVED_MUCH, MUCH, STEADY, CityChange, Comparison, Drift
from etl.reporting.history import Metric, SnapshotInfo, run_metrics
from etl.reporting.page_data import files_by_kind
from etl.reporting.wording import (
    NONE,
    format_bytes,
    format_change,
    format_count,
    format_metric,
    format_number,
    format_percent,
    format_setting,
)
from etl.settings.values import format_option

if TYPE_CHECKING:
    from etl.commands.doctor_checks import Check

_MAX_CITIES = 12
"""How many cities are shown. The others are counted."""


def _moment(iso: str | None) -> str:
    return (iso or "")[:19].replace("T", " ")


# --- list ------------------------------------------------------------------------------------------------------------


def list_table(location: str, snapshots: Sequence[SnapshotInfo]) -> RenderableType:
    """Return one line per snapshot, the newest first."""
    legend = "AUC: of the probe, on held-out items" if any(each.auc is not None for each in snapshots) else ""
    columns = ("snapshot", "???published (UTC)", ">?events", ">triples", ">??users", ">?AUC", ">size", "")
    table = TextTable(f"Snapshots in {escape_control_characters(location)}", *columns, legend=legend)
    table.columns[0].no_wrap = True  # it is there to be copied
    for each in reversed(snapshots):
        table.add_row(
            each.name,
            _moment(each.published_at),
            *map(format_number, (each.events, each.triples, each.users, each.auc)),
            NONE if each.bytes is None else format_bytes(each.bytes),
            Text(escape_control_characters(each.trouble), style="red")
            if each.trouble
            else "LATEST"
            if each.latest
            else "",
        )
    return table


# --- inspect ---------------------------------------------------------------------------------------------------------


def inspect_tables(manifest: Mapping[str, Any]) -> RenderableType:
    """Return a manifest as tables."""
    tool = manifest["tool"]
    head = (
        f"Snapshot {manifest['snapshot']}\n"
        f"published {_moment(manifest['ended_at'])} UTC by {tool['name']} {tool['version']}, "
        f"after {manifest['profile']['seconds']:,.1f} s; run {manifest['run_id']}\n"
        f"content {manifest['content_sha256']}\n"
    )
    settings = TextTable("Settings", "option", "value")
    for name, value in manifest["settings"].items():
        if value not in (None, [], False):
            settings.add_row(format_option(name), format_setting(value))
    metrics = TextTable("\nMetrics", "metric", ">")
    for name, value in run_metrics(manifest).items():
        metrics.add_row(format_metric(name), format_number(value))
    published = manifest.get("published", {})
    columns = ["events", "positives", "triples", *(["choices", "next"] if "next" in published else [])]
    partitions = TextTable("\nPartitions", "city", "split", *(f">{name}" for name in columns), ">weight")
    for each in published.get("partitions", []):
        numbers = (format_number(each.get(name, 0)) for name in columns)
        partitions.add_row(each["city"], each["split"] or "", *numbers, f"{each['weight']:g}")
    lines = map(escape_control_characters, head.split("\n"))
    return Group(Text("\n".join(lines)), settings, metrics, partitions, _files(manifest["files"]))


def _files(files: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = TextTable("\nFiles", "kind", ">files", ">rows", ">size")
    for kind, found in files_by_kind(files).items():
        rows = format_number(found["rows"]) if found["rows"] else ""
        table.add_row(kind, format_number(found["files"]), rows, format_bytes(found["bytes"]))
    return table


def columns_text(columns: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[RenderableType]:
    """Yield the columns, as (name, type), of each kind of file."""
    for kind, pairs in columns.items():
        named = ", ".join(f"{name} {type_}" for name, type_ in pairs)
        yield Text(f"\n{escape_control_characters(f'Columns of {kind}: {named}')}")


# --- diff ------------------------------------------------------------------------------------------------------------


def diff_tables(found: Comparison) -> RenderableType:
    """Return the differences of two snapshots, the most telling first."""
    head = f"{escape_control_characters(found.before)} → {escape_control_characters(found.after)}"
    if found.same_data:
        head += "\nThe same data, byte by byte."
    parts: list[RenderableType] = [Text(head)]
    if found.settings:
        parts.append(settings := TextTable("\nSettings that differ", "option", "before", "after"))
        for name, pair in found.settings.items():
            settings.add_row(format_option(name), *map(format_setting, pair.values()))
    if not found.same_data:
        parts += [_changes(found.figures), _members(found), _cities(found.cities), _drifts(found.drifts)]
    return Group(*parts)


def _changes(metrics: Iterable[Metric]) -> RenderableType:
    table = TextTable("\nMetrics", "metric", ">before", ">after", ">change")
    for each in metrics:
        table.add_row(
            format_metric(each.name), *map(format_number, (each.before, each.value)), format_change(each.change)
        )
    return table


def _members(found: Comparison) -> RenderableType:
    table = TextTable("\nUsers and items", "", ">before", ">after", ">added", ">removed")
    for name, each in (("users", found.users), ("items", found.items)):
        table.add_row(name, *map(format_number, (each.before, each.after, each.added, each.gone)))
    lines = [f"{each['items']:,} items changed from {each['before']} to {each['after']}" for each in found.statuses]
    lines += [f"{found.moved_items:,} items have another city or category"] if found.moved_items else []
    text = "; ".join(lines) + "." if lines else "No item's status changed."
    return Group(table, Text(escape_control_characters(text)))


def _cities(cities: Sequence[CityChange]) -> RenderableType:
    table = TextTable("\nCities", "city", *("?>events before", "?>after", ">triples before", ">after", ">change", "?"))
    for each in cities[:_MAX_CITIES]:
        name, *numbers = astuple(each)
        old, new = each.triples_before, each.triples_after
        change = None if not old or new is None else (new - old) / old
        table.add_row(name, *map(format_number, numbers), format_change(change), _city_status(each))
    more = len(cities) - _MAX_CITIES
    if more <= 0:
        return table
    return Group(table, Text(f"and {format_count(more, 'more city', 'more cities')} whose triples changed less"))


def _city_status(city: CityChange) -> str:
    if None in {city.events_before, city.events_after}:
        return "new" if city.events_before is None else "gone"
    old, new = city.triples_before is None, city.triples_after is None
    return "" if old == new else "excluded now" if new else "excluded before"


def _drifts(drifts: Sequence[Drift]) -> RenderableType:
    legend = (
        f"PSI: population stability index; moved: {MODERATE:.2f} or more, much: {MUCH:.2f}, and above that by chance"
    )
    table = TextTable("\nDrift", "distribution", ">PSI", ">by chance", "", "?what moved most", legend=legend)
    for each in sorted(drifts, key=lambda found: found.chance - found.psi):
        moved = ""
        if each.mover and each.verdict != STEADY:
            old, new = (format_percent(each.mover[when]) for when in ("before", "after"))
            moved = f"{each.mover['group']}: {old} → {new}"
        style = {STEADY: "", MOVED_MUCH: "bold red"}.get(each.verdict, "yellow")
        table.add_row(each.name, f"{each.psi:.3f}", f"{each.chance:.3f}", Text(each.verdict, style=style), moved)
    return table


# --- doctor ----------------------------------------------------------------------------------------------------------


def checks_table(checks: Sequence[Check], *, verbose: bool) -> RenderableType:
    """Return how many checks failed, then those that did, with hints. `verbose`: a line for each of the others, too."""
    failures, warnings = (sum(check.state == state for check in checks) for state in ("failed", "warning"))
    if failures:
        first = "it" if failures == 1 else "the first that failed"
        failed = format_count(failures, "check")
        verdict = f"{failed} failed, {format_count(warnings, 'warning')}: fix {first}, and check again."
    else:
        verdict = "A run can start" + (f"; {format_count(warnings, 'warning')}." if warnings else ".")
    good = [check for check in checks if check.state == "ok"]
    lines = [check for check in checks if check.state != "ok"] + (good if verbose else [])
    parts: list[RenderableType] = [
        Text(verdict, style=STATES["failed" if failures else "warning" if warnings else "ok"])
    ]
    if lines:
        parts.append(state_lines((check.state, _check_text(check)) for check in lines))
    if not verbose and good:
        names = ", ".join(dict.fromkeys(check.name for check in good))
        parts.append(Text(f"ok: {escape_control_characters(names)} (--verbose: what was found)"))
    return Group(*parts)


def _check_text(check: Check) -> str:
    """Return one paragraph: a line break would be escaped."""
    found = f"{check.name}: {check.found}"
    return f"{found.removesuffix('.')}. {check.remedy}" if check.remedy else found
