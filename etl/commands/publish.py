"""What each command does: settings in, a `CommandResult` out. Libraries are imported where they are needed."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.commands.runner import CommandResult, observe_run
from etl.errors import ConnectError, DataError, NothingToDo, SchemaError, escape_control_characters
from etl.runtime.cancellation import CancelToken
from etl.settings.model import DEFAULT_FILE, Settings, default_settings_file, explicit_settings_file

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etl.pipeline.context import RunResult
    from etl.runtime.run_record import Progress

log = logging.getLogger("bpr-etl")


@contextmanager
def _timed_step(settings: Settings, stop: CancelToken, name: str) -> Iterator[tuple[Progress, Callable[[int], None]]]:
    """A command's only step. Yields what is called with its progress, and what counts its rows."""
    from etl.pipeline.context import utc_now
    from etl.runtime.run_record import RunRecord

    with observe_run(settings) as observer:
        record = RunRecord("", utc_now(), stop=stop, observer=observer)  # not a run, so without an id
        with record.step(name) as rows:
            yield record.progress, rows


def validate(settings: Settings, stop: CancelToken) -> CommandResult:
    """Check a database, or a published snapshot where one is named."""
    return _validate_snapshot(settings, stop) if settings.snapshot else _validate_database(settings, stop)


def run(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.pipeline import run as pipeline

    return _run_publish_command("bpr-etl run", pipeline.run, settings, stop)


def export(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.pipeline import export as pipeline

    return _run_publish_command("bpr-etl export", pipeline.export, settings, stop)


def expand(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.pipeline import expand as pipeline

    return _run_publish_command("bpr-etl expand", pipeline.expand, settings, stop)


def _run_publish_command(
    title: str, publish: Callable[..., Any], settings: Settings, stop: CancelToken
) -> CommandResult:
    with observe_run(settings) as observer:
        report = publish(settings, progress=observer, stop=stop)
    from etl.commands import console as summary  # what is shown at the end need not be waited for at the beginning

    _log_outcome(settings, report)
    lines = summary.styled(
        map(escape_control_characters, summary.status_lines(title, report, dry_run=settings.dry_run))
    )
    nothing = report.snapshot is None and not settings.dry_run
    return CommandResult(
        report.facts_for_json(),
        [*lines, summary.run_summary(report, profile=settings.profile)],
        NothingToDo.exit_code if nothing else 0,
    )


def _log_outcome(settings: Settings, report: RunResult) -> None:
    """What a person reads at the end stands in the log, too, where a person may not read it."""
    if not (settings.json or settings.quiet or settings.log_format == "json"):
        return
    for warning in report.warnings:
        log.warning("%s", warning)
    for note in report.notes:
        log.info("%s", note)
    facts = {"snapshot": report.snapshot, "committed": report.committed, "retries": report.retries}
    log.info("Done.", extra={**facts, "seconds": round(report.seconds, 3)})


def probe(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.commands import console as summary
    from etl.pipeline import published

    with _timed_step(settings, stop, "probe") as (progress, _):
        found = published.probe(settings, progress, stop)
    warnings = list(found.warnings())
    shown: list[RenderableType | str] = [summary.probe_tables(found.facts), ""]
    return CommandResult({**found.facts, "warnings": warnings}, [*shown, *(f"Warning: {each}" for each in warnings)])


def report(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.pipeline import published

    with _timed_step(settings, stop, "report") as (progress, _):
        place = published.report(settings, progress, stop)
    return CommandResult({"report": place}, [f"Report: {escape_control_characters(place)}"])


def _validate_database(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.commands import console as summary
    from etl.commands import database

    with _timed_step(settings, stop, "laws") as (progress, _):
        found = database.validate_database(settings, stop, progress)
    facts = {"findings": [asdict(finding) for finding in found.findings], "rows": found.rows.to_dicts()}
    shown: list[RenderableType | str] = [
        summary.rows_table("The design's validation query", found.rows),
        "",
        *_findings(summary, found.findings),
    ]
    return CommandResult(facts, shown, DataError.exit_code if found.broken else 0)


def _validate_snapshot(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.commands import console as summary
    from etl.snapshots import validation as validate

    with _timed_step(settings, stop, "files and their laws"):
        findings = validate.validate_snapshot(settings.snapshot or settings.out, settings.environ, stop)
    broken = any(finding.broken for finding in findings)
    facts = {"findings": [asdict(finding) for finding in findings]}
    return CommandResult(facts, _findings(summary, findings), DataError.exit_code if broken else 0)


def _findings(summary: Any, findings: list[Any]) -> list[RenderableType | str]:
    return [summary.findings_table("Laws", ((f.law, f.broken, f.detail) for f in findings))]


def synth(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.commands import database

    with _timed_step(settings, stop, "synthetic world") as (_, count):
        rows = database.synth(settings, stop, count)
    return CommandResult({"rows": rows}, [f"{name}: {number:,} rows" for name, number in rows.items()])


def demo(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.commands import demo as demonstration

    with ExitStack() as stack:
        with _timed_step(settings, stop, "PostgreSQL with the synthetic world") as (_, count):
            prepared = stack.enter_context(demonstration.demo_database(settings, stop, count))
        log.info("PostgreSQL runs in %s, filled with the synthetic world.", prepared.data_dir)
        ran, validated = run(prepared.settings, stop), _validate_database(prepared.settings, stop)
    return CommandResult(
        {"run": ran.facts, "validate": validated.facts, "database": prepared.url},
        [*ran.output, "", *validated.output, "", *prepared.next_steps(_program_name())],
        ran.exit_code or validated.exit_code,
    )


def _program_name() -> str:
    """How this program was called, so that what is printed can be pasted."""
    called = Path(sys.argv[0])
    return called.name if shutil.which(called.name) else f"{'python ' if called.suffix == '.py' else ''}{sys.argv[0]}"


def init(_settings: Settings, _stop: CancelToken, *, path: str) -> CommandResult:
    from etl.commands import settings as settings_file

    settings_file.write_template(Path(path))
    read = "it is read where no other is named" if path == DEFAULT_FILE else f"name it with --config {path}"
    return CommandResult(
        {"path": path},
        [
            f"Wrote {escape_control_characters(path)}: every setting, at its default ({escape_control_characters(read)})."
        ],
    )


def config_show(settings: Settings, _stop: CancelToken, *, given: Mapping[str, Any]) -> CommandResult:
    from etl.commands import console as summary
    from etl.commands import settings as settings_file

    named = given.get("config")
    at_hand = default_settings_file(given, settings.environ)
    rows = list(settings_file.settings_with_origin(settings, {**given, "config": at_hand or named}, settings.environ))
    file = explicit_settings_file({"config": at_hand or named}, settings.environ)
    facts = {each.name: {"value": each.value, "from": each.origin} for each in rows}
    shown: list[RenderableType | str] = [summary.settings_table(rows), "", f"Settings file: {file or 'none'}"]
    return CommandResult({"settings": facts, "file": file}, shown, primary=True)


def schema_print(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.commands import database
    from etl.postgres import ddl as prisma
    from etl.postgres import privileges

    try:
        naming, known = database.naming_to_print(settings, stop)
    except ConnectError as error:
        raise ConnectError(
            f"{error} With --naming model or --naming mapped it is not asked how tables are named."
        ) from None
    as_sql = settings.role is not None or settings.format == "sql"
    if settings.role is not None:
        text = privileges.grants(naming, settings.role)
    else:
        text = (prisma.schema_sql if as_sql else prisma.schema_prisma)(naming, added=not settings.all)
    if not known:
        hint = (
            'For tables named by model ("User"). For mapped ones ("users"), name the database, or say --naming mapped.'
        )
        text = f"{'--' if as_sql else '//'} {hint}\n{text}"
    return CommandResult({"format": settings.format, "text": text}, [text], primary=True)


def schema_check(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.commands import database

    findings = database.check_schema(settings, stop)
    facts = {"findings": [asdict(finding) for finding in findings]}
    shown: list[RenderableType | str] = [finding.detail for finding in findings] or ["Nothing is missing."]
    return CommandResult(
        facts, shown, SchemaError.exit_code if any(each.severity == "blocking" for each in findings) else 0
    )


def schema_apply(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.commands import database

    created = database.apply_schema(settings, stop)
    return CommandResult({"created": created}, [f"created {name}" for name in created] or ["Nothing was missing."])


def _data_dir(settings: Settings) -> Path:
    from etl.postgres import embedded

    return Path(settings.data_dir) if settings.data_dir else embedded.default_data_dir(settings.environ)


def db_start(settings: Settings, stop: CancelToken) -> CommandResult:
    from etl.postgres import embedded

    with _timed_step(settings, stop, "PostgreSQL"):
        server = embedded.start(_data_dir(settings))
    return CommandResult({"url": server.url(), "data_dir": str(server.data_dir)}, [server.url()], primary=True)


def db_stop(settings: Settings, _stop: CancelToken) -> CommandResult:
    from etl.postgres import embedded

    stopped = embedded.stop(_data_dir(settings))
    said = "Stopped." if stopped else "It was not running."
    return CommandResult({"stopped": stopped}, [said], 0 if stopped else NothingToDo.exit_code)


def db_url(settings: Settings, _stop: CancelToken) -> CommandResult:
    from etl.postgres import embedded

    server = embedded.find_running(_data_dir(settings))
    if server is None:
        raise ConnectError("The embedded PostgreSQL does not run. Start it with `bpr-etl db start`.")
    return CommandResult({"url": server.url()}, [server.url()], primary=True)
