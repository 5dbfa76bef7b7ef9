"""What a run says at its end: did it work, how much was it, what was left out and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from etl.errors import escape_control_characters
from etl.reporting.history import MIN_RUNS, Metric
from etl.reporting.wording import MAX_CITIES, RANKER_TEXT, exclusions

if TYPE_CHECKING:
    from etl.pipeline.context import RunResult


def status_lines(title: str, report: RunResult, *, dry_run: bool = False) -> list[str]:
    """The first question of the morning, did it work, in lines that say all that a person has to know."""
    if dry_run:
        yes = "Yes, as a dry run: all of it was done and rolled back, nothing was published"
    elif report.snapshot is None:
        kept = "the database was written all the same" if report.committed else "the database was only read"
        yes = f"Nothing to do: the newest snapshot has these data already; {kept}"
    else:
        kept = "the database was written and committed" if report.committed else "the database was not written to"
        yes = f"Yes: a snapshot was published, {kept}"
    said = {"retry": ("retries", report.retries)} if report.retries else {}
    said |= {"warning": ("warnings", len(report.warnings)), "note": ("notes", len(report.notes))}
    numbers = [f"{number:,} {one if number == 1 else many}" for one, (many, number) in said.items() if number]
    return [
        f"{title}: did it work?",
        f"{yes}; {', '.join([f'{report.seconds:.1f} s', *numbers])}.",
        *([f"Snapshot: {report.snapshot}"] if report.snapshot else []),
        *(f"Warning: {warning}" for warning in report.warnings),
        *(f"Note: {note}" for note in report.notes),
    ]


_STYLES = {"Yes": "green", "Nothing": "green", "Warning": "yellow"}


def styled(lines: Iterable[str]) -> list[Text]:
    """The lines of `outcome` as a terminal shows them; elsewhere there are no colours."""
    first, *others = lines
    return [
        Text(first, style="bold"),
        *(Text(line, style=_STYLES.get(line.split(maxsplit=1)[0].rstrip(":,"), "")) for line in others),
    ]


def run_summary(report: RunResult, *, profile: bool) -> RenderableType:
    """The other two questions of the morning: is it the usual amount, what was left out.

    Then the probe's figures, the triples per city, and the steps. `profile` adds rows a second and the process's peak memory
    until the end of each step.
    """
    counts = report.counts
    return Group(
        _metrics_table(report),
        exclusions_table(counts),
        _probe_line(counts),
        _published(counts),
        _steps(report, profile=profile),
    )


def _metrics_table(report: RunResult) -> RenderableType:
    """Is it the usual amount? Each figure beside the last snapshot's, and the usual range of the nights before."""
    if not report.metrics:
        return Text("")
    unusual = any(each.out_of_range for each in report.metrics)
    title = f"\nIs it the usual amount? {_verdict(report.metrics)}"
    table = _table(title, "", "tonight", "last time", "change", "usual range", *[""] * unusual)
    for each in report.metrics:
        name, found = each.name, each.expected
        range_ = "-" if found is None else f"{_number(name, max(found[0], 0))} to {_number(name, found[1])}"
        words = [Text(_range_note(each), style="bold yellow")] if unusual else []
        change = _change(each.before, each.value)
        table.add_row(name, _number(name, each.value), _number(name, each.before), change, range_, *words)
    return table


def _range_note(figure: Metric) -> str:
    if not figure.out_of_range or figure.expected is None:
        return ""
    return "less than usual" if figure.value < figure.expected[0] else "more than usual"


def _verdict(found: Sequence[Metric]) -> str:
    """The answer in a few words: "No" is said of what `--max-change` watches, so that there is a warning, too."""
    if not any(each.expected for each in found):
        return f"Not known yet: {max(each.runs for each in found)} of {MIN_RUNS} nights."
    odd = [each for each in found if each.out_of_range]
    if not odd:
        return "Yes, in every figure."
    answer = "No:" if any(each.monitored for each in odd) else "Yes, but"
    return f"{answer} {len(odd)} of {len(found)} figures left their range."


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if name.startswith("AUC") else f"{value:,.0f}"


def _change(before: float | None, now: float) -> str:
    if before is None or (before == 0 and now != 0):
        return "-"
    share = (now - before) / before if before else 0.0
    return "none" if now == before else f"{share:+.1%}"


class SafeTable(Table):
    """A table whose cells hold names that anybody may have given: no terminal obeys them."""

    def add_row(self, *cells: RenderableType | None, **more: Any) -> None:
        """Add a row; what would not be printed as it stands is escaped."""
        super().add_row(*(escape_control_characters(each) if isinstance(each, str) else each for each in cells), **more)


def _table(title: str, first: str, *others: str, footer: bool = False) -> Table:
    """A table whose first column holds words, and whose others hold numbers."""
    table = SafeTable(
        title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False, show_footer=footer
    )
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _probe_line(counts: Mapping[str, Any]) -> Text:
    if "probe" not in counts:
        return Text("")
    found = counts["probe"]
    return Text(
        f"\nProbe ({found['split']}, {found['users']:,} users): AUC {_interval(found['auc'])}, "
        f"popularity {_interval(found['auc_of_popularity'])}, NDCG@10 {_interval(found['ndcg_at_10'])}"
    )


def probe_tables(facts: Mapping[str, Any]) -> RenderableType:
    """How the model and what needs no training rank the held-out places: all of them, and those new to the user."""
    title = f"Held out by {facts['split']}: {facts['users']:,} users, mean and interval of 95%"
    new = f"\nPlaces new to the user: {facts['users_with_new_places']:,} users"
    return Group(_figures(title, facts["rankings"], "all"), _figures(new, facts["rankings"], "new"))


def _figures(title: str, rankings: Mapping[str, Any], scope: str) -> Table:
    table = SafeTable(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("ranking")
    for column in ("AUC", "NDCG@10", "Recall@10"):
        table.add_column(column)
    for name, words in RANKER_TEXT.items():
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
    table = SafeTable(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("law")
    table.add_column("", justify="right")
    for law, broken, detail in findings:
        verdict = Text("ok", style="green") if not broken else Text(f"{broken:,} broken", style="bold red")
        table.add_row(law + (f": {detail}" if detail else ""), verdict)
    return table


def rows_table(title: str, rows: pl.DataFrame) -> Table:
    """A small frame as it is."""
    table = SafeTable(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in rows.columns:
        table.add_column(name)
    for row in rows.iter_rows():
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    return table


def settings_table(settings: Iterable[Any]) -> Table:
    """Every setting (`etl.commands.settings.Shown`), by panel: its value, and where that came from."""
    table = SafeTable(show_edge=False, pad_edge=False)
    for column in ("setting", "value", "from"):
        table.add_column(column, overflow="fold")
    panel = None
    for each in settings:
        if each.panel != panel:
            panel = each.panel
            table.add_section()
        value = "" if each.value is None else json.dumps(each.value, ensure_ascii=False)
        said = each.origin != "default"
        table.add_row(each.name.replace("_", "-"), value, each.origin, style="bold" if said else None)
    return table


def _steps(report: RunResult, *, profile: bool) -> Table:
    """The last line is the time that all of it took, which is less than the sum: some steps go on beside others."""
    columns = ["rows", "seconds", *(["rows/s", "peak MiB"] if profile else [])]
    table = _table("\nSteps", "step", *columns, footer=True)
    table.columns[0].footer, table.columns[2].footer = "all, some side by side", f"{report.seconds:.2f}"
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
    events, triples = published["events"], published["triples"]
    table = _table("\nWhat was published, by city", "city", "events", "triples", "teaches", footer=True)
    table.columns[0].footer = "all"
    table.columns[1].footer, table.columns[2].footer = (f"{sum(each.values()):,}" for each in (events, triples))
    shown = set(sorted(events, key=lambda city: -events[city])[:MAX_CITIES])
    for city, number in events.items():
        teaches = published["signs"].get(city)
        if city in shown:
            table.add_row(
                city,
                f"{number:,}",
                f"{triples[city]:,}" if city in triples else "left out",
                "" if teaches is None else f"{teaches:.2f}",
            )
    if len(events) > len(shown):
        table.add_row(f"({len(events) - len(shown):,} cities with fewer events)")
    return table


def exclusions_table(counts: Mapping[str, Any]) -> RenderableType:
    """What a run, or a snapshot by its manifest, left out and why."""
    table = _table("\nWhat was left out, or is worth knowing?", "what", "why", "rows")
    table.columns[1].justify = "left"
    for loss in exclusions(counts):
        if loss.rows:
            table.add_row(loss.what, loss.why, f"{loss.rows:,}")
    return table if table.row_count else Text("\nNothing was left out.")
