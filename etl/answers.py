"""What each command does, and what it has to say: settings in, an `Answer` out. Libraries are imported when they are needed."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.config import Settings
from etl.errors import ConnectError, DataError, NothingToDo, SchemaError, visible
from etl.stopping import Stop
from etl.terminal import Answer, progress

if TYPE_CHECKING:
    from rich.console import RenderableType

log = logging.getLogger("bpr-etl")


def validate(settings: Settings, stop: Stop) -> Answer:
    """Check a database, or a published snapshot where one is named."""
    return _validate_snapshot(settings.snapshot) if settings.snapshot else _validate_database(settings, stop)


def run(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    return _publishing("bpr-etl run", pipeline.run, settings, stop)


def export(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    return _publishing("bpr-etl export", pipeline.export, settings, stop)


def expand(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    return _publishing("bpr-etl expand", pipeline.expand, settings, stop)


def _publishing(title: str, publish: Callable[..., Any], settings: Settings, stop: Stop) -> Answer:
    with progress() as told:
        report = publish(settings, progress=told, stop=stop)
    from etl import summary  # what is shown at the end need not be waited for at the beginning

    shown: list[RenderableType | str] = [summary.run_summary(title, report, profile=settings.profile), ""]
    shown += [f"Warning: {visible(warning)}" for warning in report.warnings]
    shown += [f"Note: {visible(note)}" for note in report.notes]
    if report.snapshot:
        shown.append(f"Snapshot: {report.snapshot}")
    nothing = report.snapshot is None and not settings.dry_run
    return Answer(report.facts_for_json(), shown, NothingToDo.exit_code if nothing else 0)


def probe(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline, summary

    with progress() as told:
        found = pipeline.probe(settings, told, stop)
    warnings = list(found.warnings())
    shown: list[RenderableType | str] = [summary.probe_tables(found.facts), ""]
    return Answer({**found.facts, "warnings": warnings}, [*shown, *(f"Warning: {each}" for each in warnings)])


def _validate_database(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline, summary

    found = pipeline.validate(settings, stop)
    facts = {"findings": [asdict(finding) for finding in found.findings], "rows": found.rows.to_dicts()}
    shown: list[RenderableType | str] = [
        summary.rows_table("The design's validation query", found.rows),
        "",
        *_findings(summary, found.findings),
    ]
    return Answer(facts, shown, DataError.exit_code if found.broken else 0)


def _validate_snapshot(path: str) -> Answer:
    from etl import summary, validate

    findings = validate.validate_snapshot(Path(path))
    broken = any(finding.broken for finding in findings)
    facts = {"findings": [asdict(finding) for finding in findings]}
    return Answer(facts, _findings(summary, findings), DataError.exit_code if broken else 0)


def _findings(summary: Any, findings: list[Any]) -> list[RenderableType | str]:
    return [summary.findings_table("Laws", ((f.law, f.broken, f.detail) for f in findings))]


def synth(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    rows = pipeline.synth(settings, stop)
    return Answer({"rows": rows}, [f"{name}: {number:,} rows" for name, number in rows.items()])


def demo(settings: Settings, stop: Stop) -> Answer:
    from etl import demo as demonstration

    with demonstration.server(settings, stop) as prepared:
        log.info("PostgreSQL runs in %s, filled with the synthetic world.", prepared.data_dir)
        ran, validated = run(prepared.settings, stop), _validate_database(prepared.settings, stop)
    return Answer(
        {"run": ran.facts, "validate": validated.facts, "database": prepared.url},
        [*ran.shown, "", *validated.shown, "", *prepared.where_to_look(_command())],
        ran.exit_code or validated.exit_code,
    )


def _command() -> str:
    """How this program was called, so that what is printed can be pasted."""
    called = Path(sys.argv[0])
    return called.name if shutil.which(called.name) else f"{'python ' if called.suffix == '.py' else ''}{sys.argv[0]}"


def schema_print(settings: Settings, _stop: Stop) -> Answer:
    from etl import prisma, privileges

    naming = prisma.Naming("mapped" if settings.naming == "mapped" else "model", settings.schema or "public")
    if settings.role is not None:
        text = privileges.grants(naming, settings.role)
    else:
        text = prisma.schema_sql(naming) if settings.format == "sql" else prisma.schema_prisma(naming)
    return Answer({"format": settings.format, "text": text}, [text])


def schema_check(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    findings = pipeline.schema_check(settings, stop)
    facts = {"findings": [asdict(finding) for finding in findings]}
    shown: list[RenderableType | str] = [finding.detail for finding in findings] or ["Nothing is missing."]
    return Answer(facts, shown, SchemaError.exit_code if findings else 0)


def schema_apply(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    created = pipeline.schema_apply(settings, stop)
    return Answer({"created": created}, [f"created {name}" for name in created] or ["Nothing was missing."])


def _data_dir(settings: Settings) -> Path:
    from etl import embedded

    return Path(settings.data_dir) if settings.data_dir else embedded.default_data_dir(settings.environ)


def db_start(settings: Settings, _stop: Stop) -> Answer:
    from etl import embedded

    server = embedded.start(_data_dir(settings))
    return Answer({"url": server.url(), "data_dir": str(server.data_dir)}, [server.url()])


def db_stop(settings: Settings, _stop: Stop) -> Answer:
    from etl import embedded

    stopped = embedded.stop(_data_dir(settings))
    said = "Stopped." if stopped else "It was not running."
    return Answer({"stopped": stopped}, [said], 0 if stopped else NothingToDo.exit_code)


def db_url(settings: Settings, _stop: Stop) -> Answer:
    from etl import embedded

    server = embedded.running(_data_dir(settings))
    if server is None:
        raise ConnectError("The embedded PostgreSQL does not run. Start it with `bpr-etl db start`.")
    return Answer({"url": server.url()}, [server.url()])
