"""What commands print: the table helper, and the summary of a run, a probe, a validation, the settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Column, Table
from rich.text import Text

from etl.errors import escape_control_characters
from etl.reporting.history import Metric
from etl.reporting.wording import (
    MAX_CITIES,
    NONE,
    Exclusion,
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
from etl.settings.model import OPTIONS
from etl.settings.values import TASKS, format_option
from etl.snapshots.manifest import RANKER_TEXT
from etl.triples.partitions import MIN_CORRELATION

if TYPE_CHECKING:
    from etl.load.constraints import Finding
    from etl.pipeline.context import RunResult

_STYLES = {"Done": "green", "Dry": "green", "Nothing": "green", "Warning": "yellow"}


class TextTable(Table):
    """The table of all commands. Control characters in cells, which may come from data, are escaped.

    Columns whose names begin with `>` hold numbers and are right-aligned. Those that begin with `?` are left out where all
    their cells are empty, and where the width does not hold every column: those with most `?` first. `foot` is a last row,
    `legend` a line that explains signs.
    """

    def __init__(self, title: str | None, *columns: str, foot: Iterable[str] = (), legend: str = "") -> None:
        feet = list(foot)
        super().__init__(show_edge=False, pad_edge=False, show_footer=bool(feet))
        self._heading, self._legend = title, legend
        self._spare: list[tuple[int, Column]] = []
        feet += [""] * (len(columns) - len(feet))
        for column, last in zip(columns, feet, strict=True):
            name = column.lstrip("?>")
            marks, right = column[: len(column) - len(name)], ">" in column[: len(column) - len(name)]
            self.add_column(name, last, justify="right" if right else "left", overflow="ellipsis" if right else "fold")
            if spare := marks.count("?"):
                self._spare.append((spare, self.columns[-1]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Rich would wrap a title to the table's width.
        if self._heading is not None:
            yield Text(self._heading, style="bold")
        self._choose_columns(console, options)
        yield from super().__rich_console__(console, options)
        if self._legend:
            yield Text(self._legend, style="dim")

    def _choose_columns(self, console: Console, options: ConsoleOptions) -> None:
        wide = options.update(max_width=10_000)
        for _, column in self._spare:
            if all(str(cell) in ("", NONE) for cell in column.cells):
                self._leave_out(column)
        for _, column in sorted(self._spare, key=lambda each: -each[0]):
            if self.__rich_measure__(console, wide).maximum > options.max_width:
                self._leave_out(column)

    def _leave_out(self, column: Column) -> None:
        self.columns = [each for each in self.columns if each is not column]
        for place, each in enumerate(self.columns):
            each._index = place  # noqa: SLF001 - rich pads the last column by it

    def add_row(self, *cells: RenderableType | None, **more: Any) -> None:
        """Add a row of texts or renderables."""
        super().add_row(*(escape_control_characters(each) if isinstance(each, str) else each for each in cells), **more)


def status_lines(report: RunResult, *, dry_run: bool = False, verbose: bool = False) -> list[str]:
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
        f"{status}; {', '.join([f'{report.seconds:.1f} s', *numbers])}.",
        *([f"Snapshot: {report.snapshot}"] if report.snapshot else []),
        *(
            [f"Database: {_format_written(report.counts['written'])}."]
            if verbose and "written" in report.counts
            else []
        ),
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
    return [Text(line, style=_STYLES.get(line.split(maxsplit=1)[0].rstrip(":,"), "")) for line in lines]


def run_summary(
    report: RunResult, *, profile: bool = False, dry_run: bool = False, verbose: bool = False
) -> RenderableType:
    """Return the tables of a run's summary.

    Volumes compared with earlier runs, what was published by city, the probe, excluded rows. `verbose` adds metrics that are
    0 and remarks on published rows; `profile` adds the steps.
    """
    counts = report.counts
    parts = [
        _metrics_table(report.metrics, verbose=verbose) if report.metrics else None,
        _published_table(counts["published"], dry_run=dry_run) if "published" in counts else None,
        _probe_line(counts["probe"]) if "probe" in counts else None,
        exclusions_tables(counts, verbose=verbose),
        _steps_table(report) if profile else None,
    ]
    return Group(*(part for part in parts if part is not None))


def _metrics_table(metrics: list[Metric], *, verbose: bool) -> Table:
    """Return each metric with the last run's value and the expected range."""
    title = f"\nVolumes compared with earlier runs: {volumes_verdict(metrics)[1]}"
    table = TextTable(title, "", ">this run", "?>last run", "?>change", "?>expected range", "?")
    for each in metrics:
        if verbose or each.value or each.before or each.out_of_range:
            table.add_row(
                format_metric(each.name),
                *map(format_number, (each.value, each.before)),
                format_change(0.0 if each.value == each.before else each.change),
                format_range(each.expected, whole=each.is_count),
                Text(format_range_note(each).partition(" ")[0], style="bold yellow"),
            )
    return table


def exclusions_tables(counts: Mapping[str, Any], *, verbose: bool = False) -> RenderableType:
    """Return what a run's counts, or a manifest, say was excluded, with the reasons; `verbose`: also remarks."""
    found = [each for each in exclusions(counts) if each.rows]
    excluded, remarks = (
        _reasons_table(title, [each for each in found if each.informational is informational])
        for title, informational in (("\nExcluded rows", False), ("\nRemarks on published rows", True))
    )
    nothing = Text("\nNothing was excluded.")
    number = remarks.row_count
    if verbose or not number:
        return Group(excluded if excluded.row_count else nothing, *[remarks] * bool(number))
    more = f"{format_count(number, 'remark')} on published rows: --verbose shows {'it' if number == 1 else 'them'}."
    return Group(excluded if excluded.row_count else nothing, Text(f"\n{more}"))


def _reasons_table(title: str, rows: Iterable[Exclusion]) -> Table:
    table = TextTable(title, "what", "why", ">rows")
    for each in rows:
        table.add_row(each.what, each.why, format_number(each.rows))
    return table


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
    legend = f"corr.: popularity correlation of positives over negatives, expected at least {MIN_CORRELATION:g}"
    columns = (">?events", *(f">{task}" for task in tasks), ">?corr.")
    table = TextTable(title, "city", *columns, foot=foot, legend=legend if published["signs"] else "")
    shown = set(sorted(events, key=lambda city: -events[city])[:MAX_CITIES])
    for city, number in events.items():
        if city in shown:
            correlation = published["signs"].get(city)
            rows = [format_number(published[task][city]) if city in published[task] else "excluded" for task in tasks]
            table.add_row(city, format_number(number), *rows, "" if correlation is None else f"{correlation:.2f}")
    if len(events) > len(shown):
        table.add_row(f"({len(events) - len(shown):,} cities with fewer events)")
    return table


def _steps_table(report: RunResult) -> Table:
    """Return the steps. The last line is the run's time: less than the sum, since some steps run in parallel."""
    columns = (">rows", ">seconds", "?>rows/s", "??>peak MiB")
    table = TextTable("\nSteps", "step", *columns, foot=["all, some in parallel", "", f"{report.seconds:.2f}"])
    for step in report.steps:
        rate = f"{step.rows / step.seconds:,.0f}" if step.rows and step.seconds else ""
        rows = "" if step.rows is None else f"{step.rows:,}"
        table.add_row(step.name, rows, f"{step.seconds:.2f}", rate, f"{step.peak_mib:,.0f}")
    return table


def probe_tables(facts: Mapping[str, Any], *, verbose: bool = False) -> RenderableType:
    """Return how models and untrained rankings rank held-out items: a trip's and the next new one.

    `verbose` adds a trip's items that are new to the user, and the cities.
    """
    sample = ""
    if facts["users_passed_over"]:
        sample = f" (of a random {facts['users_sampled']:,} of {facts['users_in_all']:,} users)"
    trip = facts["rankings"]
    titles = {"all": f"\nHeld out by {facts['split']}: {facts['users']:,} users{sample}, mean and 95% interval"}
    if verbose:
        titles["new"] = f"\nItems new to the user: {facts['users_with_new_places']:,} users"
    tables = [
        _ranking_table(title, {name: found[scope] for name, found in trip.items()}) for scope, title in titles.items()
    ]
    follows = facts["next"]
    if follows["users"]:
        title = f"\nThe next item, where it is new: {follows['choices']:,} choices of {follows['users']:,} users"
        tables.append(_ranking_table(title, follows["rankings"]))
    for name, found in follows.get("controls", {}).items():
        title = f"\nControl, {name.replace('_', ' ')}: {found['choices']:,} choices of {found['users']:,} users"
        tables.append(_ranking_table(title, found["rankings"]))
    if verbose and len(facts["cities"]) > 1:
        tables += _probe_cities_tables(facts)
    return Group(*tables)


def _ranking_table(title: str, rankings: Mapping[str, Any]) -> Table:
    legend = "\N{DIVISION SIGN} distance: divided by the distance from the previous item."
    table = TextTable(
        title, "ranking", "AUC", "NDCG@10", "?Recall@10", legend=legend if "users_by_distance" in rankings else ""
    )
    for name, text in RANKER_TEXT.items():
        if found := rankings.get(name):
            table.add_row(text, *(format_interval(found[key]) for key in ("auc", "ndcg_at_10", "recall_at_10")))
    return table


def _probe_cities_tables(facts: Mapping[str, Any]) -> Iterator[Table]:
    """Yield each city's AUC / NDCG@10 of the model and of untrained rankings: for a trip's items, and for the next one."""
    trips = {
        city: {name: each["all"] for name, each in found["rankings"].items()} for city, found in facts["cities"].items()
    }
    following = {city: facts["next"]["cities"].get(city, {}).get("rankings", {}) for city in facts["cities"]}
    names = ("model", "popularity_by_users", "users_by_distance")
    for question, rankings in (("the trip's items", trips), ("the next new item", following)):
        heads = ("BPR", "?popularity by users", "??users \N{DIVISION SIGN} distance")
        table = TextTable(f"\nBy city, {question}: AUC / NDCG@10", "city", ">?users", *heads)
        for city, found in facts["cities"].items():
            table.add_row(city, f"{found['users']:,}", *(_pair(rankings[city].get(name)) for name in names))
        yield table


def _pair(found: Mapping[str, Any] | None) -> str:
    if not found or found["auc"]["mean"] is None:
        return ""
    return f"{found['auc']['mean']:.3f} / {found['ndcg_at_10']['mean']:.3f}"


def findings_lines(findings: Sequence[Finding]) -> RenderableType:
    """Return how many checks failed, and one line per check: ok, or how many rows of which table, or files, break it."""
    failed = sum(bool(each.broken) for each in findings)
    verdict = (
        f"{failed} of {format_count(len(findings), 'check')} failed."
        if failed
        else f"All {len(findings)} checks passed."
    )
    lines = (
        ("failed" if each.broken else "ok", _finding_text(each))
        for each in sorted(findings, key=lambda each: not each.broken)
    )
    return Group(Text(verdict, style=STATES["failed" if failed else "ok"]), state_lines(lines))


def _finding_text(finding: Finding) -> str:
    text = finding.law + (f": {finding.detail}" if finding.detail else "")
    if not finding.broken:
        return text
    what, of, whose = finding.unit.partition(" of ")
    count = format_count(finding.broken, {"queries": "query"}.get(what, what.removesuffix("s")), what)
    return f"{text}: {count}{of}{whose} broken"


STATES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def state_lines(lines: Iterable[tuple[str, str]]) -> RenderableType:
    """Return lines of a state (one of STATES) and a text."""
    table = Table.grid(padding=(0, 2))
    for state, text in lines:
        table.add_row(
            Text("FAILED" if state == "failed" else state, style=STATES[state]), Text(escape_control_characters(text))
        )
    return table


def rows_table(title: str, rows: pl.DataFrame) -> Table:
    """Return a small frame as it is; null is empty."""
    table = TextTable(title, *rows.columns)
    for row in rows.iter_rows():
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    return table


def settings_table(settings: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return every setting, by panel: its value, and where that came from."""
    table = TextTable(None, "setting", "value", "from")
    panel = None
    for name, each in settings.items():
        if OPTIONS[name].panel != panel:
            panel = OPTIONS[name].panel
            table.add_section()
        value = "" if each["value"] is None else json.dumps(each["value"], ensure_ascii=False)
        style = None if each["from"] == "default" else "bold"
        table.add_row(format_option(name).removeprefix("--"), value, each["from"], style=style)
    return table
