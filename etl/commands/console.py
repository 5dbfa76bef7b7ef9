"""What commands print: the table helper, and the summary of a run, a probe, a validation, the settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from etl.errors import escape_control_characters
from etl.reporting.history import Metric
from etl.reporting.wording import (
    MAX_CITIES,
    exclusions,
    format_change,
    format_count,
    format_interval,
    format_metric,
    format_number,
    format_range,
    format_range_note,
    volumes_verdict,
)
from etl.settings.values import TASKS, format_option
from etl.snapshots.manifest import RANKER_TEXT

if TYPE_CHECKING:
    from etl.load.constraints import Finding
    from etl.pipeline.context import RunResult

_STYLES = {"Done": "green", "Dry": "green", "Nothing": "green", "Warning": "yellow"}


class TextTable(Table):
    """The table of all commands. Control characters in cells, which may come from data, are escaped.

    Columns whose names begin with `>` hold numbers and are right-aligned. `foot` is a last row.
    """

    def __init__(self, title: str | None, *columns: str, foot: Iterable[str] = ()) -> None:
        feet = list(foot)
        super().__init__(show_edge=False, pad_edge=False, show_footer=bool(feet))
        self._heading = title
        feet += [""] * (len(columns) - len(feet))
        for column, last in zip(columns, feet, strict=True):
            right = column.startswith(">")
            name = column.removeprefix(">")
            self.add_column(name, last, justify="right" if right else "left", overflow="ellipsis" if right else "fold")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Rich would wrap a title to the table's width.
        if self._heading is not None:
            yield Text(self._heading, style="bold")
        yield from super().__rich_console__(console, options)

    def add_row(self, *cells: RenderableType | None, **more: Any) -> None:
        """Add a row of texts or renderables."""
        super().add_row(*(escape_control_characters(each) if isinstance(each, str) else each for each in cells), **more)


def status_lines(title: str, report: RunResult, *, dry_run: bool = False) -> list[str]:
    """Return the first lines of a run's summary: its status, the snapshot, warnings and notes."""
    if dry_run:
        status = "Dry run: everything was done and rolled back, nothing was published"
    elif report.snapshot is None:
        database = "was written anyway" if report.committed else "was only read"
        status = f"Nothing to do: the newest snapshot has the same data; the database {database}"
    else:
        database = "was written and committed" if report.committed else "was not written to"
        status = f"Done: a snapshot was published, the database {database}"
    counts = [(report.retries, "retry", "retries")] if report.retries else []
    counts += [(len(report.warnings), "warning", "warnings"), (len(report.notes), "note", "notes")]
    numbers = [format_count(*each) for each in counts if each[0]]
    return [
        f"{title}: status",
        f"{status}; {', '.join([f'{report.seconds:.1f} s', *numbers])}.",
        *([f"Snapshot: {report.snapshot}"] if report.snapshot else []),
        *([f"Database: {_format_written(report.counts['written'])}."] if "written" in report.counts else []),
        *(f"Warning: {warning}" for warning in report.warnings),
        *(f"Note: {note}" for note in report.notes),
    ]


def _format_written(written: Mapping[str, Mapping[str, int]]) -> str:
    """Return how many rows of each table were inserted, deleted and left unchanged."""
    return "; ".join(
        f"{table} {', '.join(f'{number:,} {what}' for what, number in counts.items())}"
        for table, counts in written.items()
    )


def styled(lines: Iterable[str]) -> list[Text]:
    """Return the lines of `status_lines` with the styles of a terminal."""
    first, *others = lines
    return [
        Text(first, style="bold"),
        *(Text(line, style=_STYLES.get(line.split(maxsplit=1)[0].rstrip(":,"), "")) for line in others),
    ]


def run_summary(report: RunResult, *, profile: bool, dry_run: bool = False) -> RenderableType:
    """Return the tables of a run's summary.

    Volumes compared with earlier runs, excluded rows, the probe, the triples per city, the steps. `profile` adds rows per
    second and the process's peak memory until the end of each step.
    """
    counts = report.counts
    parts = [
        _metrics_table(report.metrics) if report.metrics else None,
        exclusions_table(counts),
        _probe_line(counts["probe"]) if "probe" in counts else None,
        _published_table(counts["published"], dry_run=dry_run) if "published" in counts else None,
        _steps_table(report, profile=profile),
    ]
    return Group(*(part for part in parts if part is not None))


def _metrics_table(metrics: list[Metric]) -> Table:
    """Return each metric with the last run's value and the expected range."""
    notes = any(each.out_of_range for each in metrics)
    title = f"\nVolumes compared with earlier runs: {volumes_verdict(metrics)[1]}"
    table = TextTable(title, "", ">this run", ">last run", ">change", ">expected range", *[""] * notes)
    for each in metrics:
        table.add_row(
            format_metric(each.name),
            *map(format_number, (each.value, each.before)),
            format_change(0.0 if each.value == each.before else each.change),
            format_range(each.expected, whole=each.is_count),
            *[Text(format_range_note(each), style="bold yellow")] * notes,
        )
    return table


def exclusions_table(counts: Mapping[str, Any]) -> RenderableType:
    """Return what a run's counts, or a manifest, say was excluded, with the reasons."""
    table = TextTable("\nExcluded rows, and notes on published ones", "what", "why", ">rows")
    for each in exclusions(counts):
        if each.rows:
            table.add_row(each.what, each.why, format_number(each.rows))
    return table if table.row_count else Text("\nNothing was excluded.")


def _probe_line(found: Mapping[str, Any]) -> Text:
    return Text(
        f"\nProbe ({found['split']}, {found['users']:,} users): AUC {format_interval(found['auc'])}, "
        f"popularity {format_interval(found['auc_of_popularity'])}, NDCG@10 {format_interval(found['ndcg_at_10'])}"
        + "".join(f"\n{each}" for each in found.get("verdicts", []))
    )


def _published_table(published: Mapping[str, Any], *, dry_run: bool) -> Table:
    events, tasks = published["events"], [task for task in TASKS if published.get(task)] or TASKS[:1]
    title = f"\n{'What would be published' if dry_run else 'What was published'}, by city"
    foot = ["all", *(format_number(sum(each.values())) for each in (events, *(published[task] for task in tasks)))]
    table = TextTable(title, "city", ">events", *(f">{task}" for task in tasks), ">corr.", foot=foot)
    shown = set(sorted(events, key=lambda city: -events[city])[:MAX_CITIES])
    for city, number in events.items():
        if city in shown:
            correlation = published["signs"].get(city)
            rows = [format_number(published[task][city]) if city in published[task] else "excluded" for task in tasks]
            table.add_row(city, format_number(number), *rows, "" if correlation is None else f"{correlation:.2f}")
    if len(events) > len(shown):
        table.add_row(f"({len(events) - len(shown):,} cities with fewer events)")
    return table


def _steps_table(report: RunResult, *, profile: bool) -> Table:
    """Return the steps. The last line is the run's time: less than the sum, since some steps run in parallel."""
    columns = [">rows", ">seconds", *([">rows/s", ">peak MiB"] if profile else [])]
    table = TextTable("\nSteps", "step", *columns, foot=["all, some in parallel", "", f"{report.seconds:.2f}"])
    for step in report.steps:
        cells = [step.name, "" if step.rows is None else f"{step.rows:,}", f"{step.seconds:.2f}"]
        if profile:
            rate = f"{step.rows / step.seconds:,.0f}" if step.rows and step.seconds else ""
            cells += [rate, f"{step.peak_mib:,.0f}"]
        table.add_row(*cells)
    return table


def probe_tables(facts: Mapping[str, Any]) -> RenderableType:
    """Return how models and untrained rankings rank held-out items: a trip's, its new ones, and the next new one."""
    sample = ""
    if facts["users_passed_over"]:
        sample = f" (of a random {facts['users_sampled']:,} of {facts['users_in_all']:,} users)"
    everything = f"Held out by {facts['split']}: {facts['users']:,} users{sample}, mean and 95% interval"
    new = f"\nItems new to the user: {facts['users_with_new_places']:,} users"
    trip = facts["rankings"]
    tables = [
        _ranking_table(title, {name: found[scope] for name, found in trip.items()})
        for title, scope in ((everything, "all"), (new, "new"))
    ]
    follows = facts["next"]
    if follows["users"]:
        title = f"\nThe next item, where it is new: {follows['choices']:,} choices of {follows['users']:,} users"
        tables.append(_ranking_table(title, follows["rankings"]))
    for name, found in follows.get("controls", {}).items():
        title = f"\nControl, {name.replace('_', ' ')}: {found['choices']:,} choices of {found['users']:,} users"
        tables.append(_ranking_table(title, found["rankings"]))
    if len(facts["cities"]) > 1:
        tables.append(_probe_cities_table(facts))
    return Group(*tables)


def _ranking_table(title: str, rankings: Mapping[str, Any]) -> Table:
    table = TextTable(title, "ranking", "AUC", "NDCG@10", "Recall@10")
    for name, text in RANKER_TEXT.items():
        if found := rankings.get(name):
            table.add_row(text, *(format_interval(found[key]) for key in ("auc", "ndcg_at_10", "recall_at_10")))
    return table


def _probe_cities_table(facts: Mapping[str, Any]) -> Table:
    """Return each city's AUC / NDCG@10: of the model and of popularity by users, for a trip's items and for the next one."""
    names = ("model", "popularity_by_users"), ("model", "popularity_by_users", "users_by_distance")
    heads = ("trip: BPR", "by users", "next: BPR", "by users", "\N{DIVISION SIGN} distance")
    table = TextTable("\nBy city, AUC / NDCG@10: the trip's items, and the next new one", "city", ">users", *heads)
    for city, found in facts["cities"].items():
        trip = {name: each["all"] for name, each in found["rankings"].items()}
        following = facts["next"]["cities"].get(city, {}).get("rankings", {})
        cells = [
            _pair(rankings.get(name))
            for rankings, shown in zip((trip, following), names, strict=True)
            for name in shown
        ]
        table.add_row(city, f"{found['users']:,}", *cells)
    return table


def _pair(found: Mapping[str, Any] | None) -> str:
    if not found or found["auc"]["mean"] is None:
        return ""
    return f"{found['auc']['mean']:.3f} / {found['ndcg_at_10']['mean']:.3f}"


def findings_table(title: str, findings: Iterable[Finding]) -> Table:
    """Return one row per check: ok, or how many rows of which table, or files, break it."""
    table = TextTable(title, "check", ">")
    for each in findings:
        what, of, whose = each.unit.partition(" of ")
        count = format_count(each.broken, {"queries": "query"}.get(what, what.removesuffix("s")), what) + of + whose
        verdict = Text("ok", style="green") if not each.broken else Text(f"{count} broken", style="bold red")
        table.add_row(each.law + (f": {each.detail}" if each.detail else ""), verdict)
    return table


def rows_table(title: str, rows: pl.DataFrame) -> Table:
    """Return a small frame as it is; null is empty."""
    table = TextTable(title, *rows.columns)
    for row in rows.iter_rows():
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    return table


def settings_table(settings: Iterable[Any]) -> Table:
    """Return every setting (`etl.commands.settings.SettingValue`), by panel: its value, and where that came from."""
    table = TextTable(None, "setting", "value", "from")
    panel = None
    for each in settings:
        if each.panel != panel:
            panel = each.panel
            table.add_section()
        value = "" if each.value is None else json.dumps(each.value, ensure_ascii=False)
        style = None if each.origin == "default" else "bold"
        table.add_row(format_option(each.name).removeprefix("--"), value, each.origin, style=style)
    return table
