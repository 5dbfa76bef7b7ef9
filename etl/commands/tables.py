"""What `list`, `inspect`, `diff`, `prune` and `doctor` show a person: tables and lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from etl.commands.console import SafeTable
from etl.errors import escape_control_characters
from etl.reporting.compare import City, Comparison, SetChange
from etl.reporting.drift import MODERATE, MOVED_MUCH, MUCH, STEADY, Drift
from etl.reporting.history import Change, run_metrics
from etl.reporting.listing import SnapshotInfo
from etl.reporting.numbers import counted, format_bytes, format_change

if TYPE_CHECKING:
    from etl.commands.doctor_checks import Check

_CITIES = 12
"""So many cities are shown; the others are counted."""


def share(value: float | None) -> str:
    """A change as a share, signed; empty for none, or from nothing."""
    return "" if not value else format_change(value)


def _table(title: str, *columns: str) -> SafeTable:
    """Columns whose names begin with `>` are numbers, on the right."""
    table = SafeTable(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def render_uncut(what: RenderableType) -> str:
    """A table as text in which no cell is cut: a snapshot's name is there to be pasted."""
    console = Console(width=500, color_system=None)
    with console.capture() as captured:
        console.print(what)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _figure(name: str, value: float) -> str:
    return f"{value:.3f}" if name.startswith("AUC") else f"{value:,.0f}"


# --- list ------------------------------------------------------------------------------------------------------------


def list_table(location: str, lines: Sequence[SnapshotInfo]) -> RenderableType:
    """One line per snapshot, the newest first."""
    table = _table(
        f"Snapshots in {escape_control_characters(location)}",
        *("snapshot", "published (UTC)", ">events", ">triples", ">users", ">AUC", ">size", ""),
    )
    for line in reversed(lines):
        table.add_row(
            line.name,
            (line.published_at or "")[:19].replace("T", " "),
            *map(_number, (line.events, line.triples, line.users)),
            "" if line.auc is None else f"{line.auc:.3f}",
            "" if line.bytes is None else format_bytes(line.bytes),
            Text(escape_control_characters(line.trouble), style="red")
            if line.trouble
            else "LATEST"
            if line.latest
            else "",
        )
    return table


# --- inspect ---------------------------------------------------------------------------------------------------------


def inspect_tables(manifest: Mapping[str, Any]) -> RenderableType:
    """A manifest in words."""
    tool = manifest["tool"]
    head = (
        f"Snapshot {escape_control_characters(manifest['snapshot'])}\n"
        f"published {manifest['ended_at'][:19].replace('T', ' ')} UTC by "
        f"{escape_control_characters(tool['name'])} {escape_control_characters(tool['version'])}, "
        f"after {manifest['profile']['seconds']:,.1f} s; run {escape_control_characters(manifest['run_id'])}\n"
        f"content {manifest['content_sha256']}\n"
    )
    return Group(
        Text(head),
        _settings(manifest["settings"]),
        _figures(manifest),
        _partitions(manifest.get("published", {}).get("partitions", [])),
        _files(manifest["files"]),
    )


def _settings(settings: Mapping[str, Any]) -> RenderableType:
    table = _table("Settings", "option", "value")
    for name, value in settings.items():
        if value not in (None, [], False):
            table.add_row(f"--{name.replace('_', '-')}", _words(value))
    return table


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(f"{each[0]}={each[1]:g}" if isinstance(each, list) else str(each) for each in value)
    return "none" if value is None else str(value)


def _figures(manifest: Mapping[str, Any]) -> RenderableType:
    table = _table("\nWhat it came to", "figure", ">")
    for name, value in run_metrics(manifest).items():
        table.add_row(name, _figure(name, value))
    return table


def _partitions(partitions: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("\nPartitions", "city", "split", ">events", ">positives", ">triples", ">weight")
    for each in partitions:
        numbers = (_number(each[name]) for name in ("events", "positives", "triples"))
        table.add_row(each["city"], each["split"] or "", *numbers, f"{each['weight']:g}")
    return table


def _files(files: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("\nFiles", "kind", ">files", ">rows", ">size")
    for kind in dict.fromkeys(kind_of(each["path"]) for each in files):
        of_kind = [each for each in files if kind_of(each["path"]) == kind]
        rows, total = (sum(each[name] for each in of_kind) for name in ("rows", "bytes"))
        table.add_row(kind, _number(len(of_kind)), _number(rows) if rows else "", format_bytes(total))
    return table


def kind_of(path: str) -> str:
    """The kind of a file of a snapshot: the folder that it is in, or its own name."""
    return path.split("/", maxsplit=1)[0]


def columns_text(columns: Mapping[str, Sequence[tuple[str, str]]]) -> Iterator[RenderableType]:
    """The columns of each kind of file, as (name, type)."""
    for kind, pairs in columns.items():
        named = ", ".join(f"{name} {type_}" for name, type_ in pairs)
        yield Text(f"\n{escape_control_characters(f'Columns of {kind}: {named}')}")


# --- diff ------------------------------------------------------------------------------------------------------------


def diff_tables(found: Comparison) -> RenderableType:
    """Two snapshots: whether they are the same, and what differs, the most telling first."""
    head = f"{escape_control_characters(found.before)} → {escape_control_characters(found.after)}"
    if found.same_data:
        head += "\nThe same data, byte by byte."
    settings = _table("\nSettings that differ", "option", "before", "after")
    for name, (old, new) in found.settings.items():
        settings.add_row(f"--{name.replace('_', '-')}", *(_words(value) for value in (old, new)))
    parts: list[RenderableType] = [Text(head)]
    parts += [settings] if settings.row_count else []
    if found.same_data:
        return Group(*parts)
    return Group(
        *parts, _changes(found.figures), _membership_table(found), _cities(found.cities), _drifts(found.drifts)
    )


def _changes(figures_: Iterable[Change]) -> RenderableType:
    table = _table("\nFigures", "figure", ">before", ">after", ">change")
    for each in figures_:
        values = (_figure(each.name, value) for value in (each.before, each.after))
        table.add_row(each.name, *values, share(each.share))
    return table


def _membership_table(found: Comparison) -> RenderableType:
    table = _table("\nUsers and items", "", ">before", ">after", ">came", ">went")
    for name, members in (("users", found.users), ("items", found.items)):
        table.add_row(name, *map(_number, _of(members)))
    lines = [f"{n:,} items went from {old} to {new}" for (old, new), n in found.statuses.items()]
    lines += [f"{found.moved_items:,} items have another city or category"] if found.moved_items else []
    return Group(
        table, Text(escape_control_characters("; ".join(lines)) + "." if lines else "No item's status changed.")
    )


def _of(members: SetChange) -> tuple[int, int, int, int]:
    return members.before, members.after, members.added, members.gone


def _cities(cities: Sequence[City]) -> RenderableType:
    table = _table("\nCities", "city", *(">events before", ">after", ">triples before", ">after", ">change", ""))
    for city in cities[:_CITIES]:
        numbers = (_number(value) for pair in (city.events, city.triples) for value in pair)
        table.add_row(city.name, *numbers, share(_share(*city.triples)), _city_status(city))
    more = len(cities) - _CITIES
    return (
        Group(table, Text(f"and {counted(more, 'more city', 'more cities')} whose triples moved less"))
        if more > 0
        else table
    )


def _share(before: int | None, after: int | None) -> float | None:
    return None if not before or after is None else (after - before) / before


def _city_status(city: City) -> str:
    """What became of a city, where it is not what it was."""
    if None in city.events:
        return "new" if city.events[0] is None else "gone"
    old, new = (value is None for value in city.triples)
    return "" if old == new else "left out now" if new else "left out before"


def _drifts(drifts: Sequence[Drift]) -> RenderableType:
    rule = f"(population stability index: from {MODERATE:.2f} on moved, from {MUCH:.2f} much, above what chance does)"
    table = _table(f"\nDrift {rule}", "distribution", ">PSI", ">by chance", "", "what moved most")
    for each in sorted(drifts, key=lambda found: found.chance - found.psi):
        moved = ""
        if each.mover and each.verdict != STEADY:
            name, old, new = each.mover
            moved = f"{name}: {old:.1%} → {new:.1%}"
        style = {STEADY: "", MOVED_MUCH: "bold red"}.get(each.verdict, "yellow")
        table.add_row(each.name, f"{each.psi:.3f}", f"{each.chance:.3f}", Text(each.verdict, style=style), moved)
    return table


# --- doctor ----------------------------------------------------------------------------------------------------------

_STATES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def checks_table(checks: Sequence[Check]) -> RenderableType:
    """A line for each check, what to do below it; then how many failed."""
    table = Table.grid(padding=(0, 2))
    for check in checks:
        state = "FAILED" if check.state == "failed" else check.state
        said = Text(escape_control_characters(check.found))
        if check.remedy:
            said.append(f"\n→ {escape_control_characters(check.remedy)}", style=_STATES[check.state])
        table.add_row(Text(state, style=_STATES[check.state]), check.name, said)
    failures, warnings = (sum(check.state == state for check in checks) for state in ("failed", "warning"))
    if not failures:
        verdict = "A night can run" + (f"; {counted(warnings, 'warning')}." if warnings else ".")
    else:
        first = "it" if failures == 1 else "the first that failed"
        verdict = f"{counted(failures, 'check')} failed, {counted(warnings, 'warning')}: mend {first}, and look again."
    return Group(table, Text(f"\n{verdict}"))
