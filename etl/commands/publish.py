"""The commands that publish, and those that look into what is published: `run`, `export`, `expand`, `demo`, `probe`, `report`.

A command's docstring is its help. Libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from etl.commands.database import validate_database
from etl.commands.runner import CommandResult, observe_run, observe_step, uncollected
from etl.errors import NothingToDo, escape_control_characters
from etl.runtime.cancellation import CancelToken
from etl.settings.model import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etl.pipeline.context import RunResult

log = logging.getLogger("bpr-etl")


def run(settings: Settings, stop: CancelToken) -> CommandResult:
    """The nightly job: personas, ranking events, backfill and triples, all of it or nothing."""
    with uncollected():
        from etl.pipeline.run import run as action

    return _publish(action, settings, stop)


def export(settings: Settings, stop: CancelToken) -> CommandResult:
    """Publish triples from the ranking events in the database, and write nothing to it."""
    with uncollected():
        from etl.pipeline.export import export as action

    return _publish(action, settings, stop)


def expand(settings: Settings, stop: CancelToken) -> CommandResult:
    """Publish other triples of a snapshot's events, with other options; needs no database."""
    with uncollected():
        from etl.pipeline.expand import expand as action

    return _publish(action, settings, stop)


def _publish(action: Callable[..., RunResult], settings: Settings, stop: CancelToken) -> CommandResult:
    with observe_run(settings) as observer:
        record = action(settings, progress=observer, stop=stop)
    _log_outcome(settings, record)
    nothing = record.snapshot is None and not settings.dry_run
    return CommandResult(
        record.facts_for_json(),
        [] if settings.json else _summary(settings, record),
        NothingToDo.exit_code if nothing and settings.skip_unchanged != "ok" else 0,
    )


def _summary(settings: Settings, record: RunResult) -> list[RenderableType]:
    """Return what a person is shown."""
    from etl.commands.terminal import console  # only now: the run need not wait for it

    lines = console.status_lines(record, dry_run=settings.dry_run, verbose=settings.verbose)
    return [
        *console.styled(map(escape_control_characters, lines)),
        console.run_summary(record, profile=settings.profile, dry_run=settings.dry_run, verbose=settings.verbose),
    ]


def _log_outcome(settings: Settings, record: RunResult) -> None:
    """Log the outcome where the summary is not printed, or where logs are read by a program."""
    if not (settings.json or settings.quiet or settings.log_format == "json"):
        return
    for warning in record.warnings:
        log.warning("%s", warning)
    for note in record.notes:
        log.info("%s", note)
    facts = {"snapshot": record.snapshot, "committed": record.committed, "retries": record.retries}
    log.info("Done.", extra={**facts, "seconds": round(record.seconds, 3)})


def demo(settings: Settings, stop: CancelToken) -> CommandResult:
    """Start the embedded PostgreSQL, fill it with the synthetic world, run, validate, and compare two kinds of negatives."""
    from etl.commands import demo as parts
    from etl.settings.values import RECOMMENDED, NegativeStrategies

    if settings.remove:
        return _remove_demo(settings)
    began = time.perf_counter()
    out, other = settings.out, parts.recommended_out(settings.out)
    log.info("Starting PostgreSQL, and filling it with the synthetic world.")
    with ExitStack() as stack:
        with observe_step(settings, stop, "synthetic world") as (_, count):
            prepared = stack.enter_context(parts.demo_database(settings, stop, count))
        for each in (out, other):
            parts.mark_new(each)
        own = prepared.settings
        ran, validated = run(own, stop), validate_database(own, stop)
    log.info("Publishing the same events with --negatives %s, and training on both.", RECOMMENDED)
    expanded = expand(replace(own, snapshot=out, out=other, negatives=NegativeStrategies(RECOMMENDED)), stop)
    probes = [probe(replace(own, snapshot=each), stop).facts for each in (out, other)]
    code = ran.exit_code or validated.exit_code
    rows = sum(ran.facts["published"]["triples"].values())
    result = f"{'FAILED' if code else 'OK'}: {rows:,} triples in {time.perf_counter() - began:.0f} s, {ran.facts['snapshot']}"
    facts = {"run": ran.facts, "validate": validated.facts, "database": prepared.url}
    output = list(ran.output if settings.verbose else ran.output[:-1])  # the last are the summary's tables
    if code or settings.verbose:
        output += validated.output
    output += [*parts.comparison(*probes), "", *prepared.next_steps(_program()), "", result]
    return CommandResult(facts | {"expand": expanded.facts, "probes": probes}, output, code)


def _remove_demo(settings: Settings) -> CommandResult:
    from etl.commands import demo as parts

    removed, kept = parts.remove(settings)
    lines = [*(f"Removed: {each}" for each in removed), *(f"Left: {each}" for each in kept)]
    code = 0 if removed else NothingToDo.exit_code
    return CommandResult({"removed": removed, "left": kept}, lines or ["No demo left anything here."], code)


def _program() -> str:
    """Return the name that this program was called by, so that the next steps can be pasted."""
    called = Path(sys.argv[0])
    python = "python " if called.suffix == ".py" else ""
    return called.name if shutil.which(called.name) else f"{python}{sys.argv[0]}"


def probe(settings: Settings, stop: CancelToken) -> CommandResult:
    """Train small models on a snapshot, and say what its data are worth compared with rankings that need no training."""
    from etl.commands.terminal.console import probe_tables
    from etl.pipeline import published

    with observe_step(settings, stop, "probe") as (progress, _):
        found = published.probe(settings, progress, stop)
    warnings = list(found.warnings())
    output = [
        *found.verdicts,
        *(f"Warning: {each}" for each in warnings),
        probe_tables(found.facts, verbose=settings.verbose),
    ]
    return CommandResult({**found.facts, "warnings": warnings}, output)


def report(settings: Settings, stop: CancelToken) -> CommandResult:
    """Rebuild a snapshot's report.html, with the earlier runs as they are now."""
    from etl.pipeline import published

    with observe_step(settings, stop, "report") as (progress, _):
        location = published.report(settings, progress, stop)
    return CommandResult({"report": location}, [f"Report: {escape_control_characters(location)}"])
