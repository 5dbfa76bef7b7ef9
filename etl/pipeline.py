"""The composition root: names the steps in order. No data logic lives here.

read ─► personas ─► COPY ─► read back ─► rankings ─► COPY ─► stage, check ─► backfill ─► COMMIT ─► switch LATEST
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl

from etl import load, schema
from etl.affinity import affinity_model
from etl.compact import Vocabulary, compact
from etl.config import Settings
from etl.contracts import Events, Personas
from etl.database import Connection, connect, locked, require_lock, transaction, with_retries
from etl.extract import SetAside, Source, extract_events, extract_logged, extract_source, read_personas
from etl.journal import Report
from etl.personas import Materialised, materialise, read_affinities
from etl.probe import Probed, Progress
from etl.publish import add_probe, writing
from etl.queries import Scope
from etl.rankings import Ranked, rank
from etl.release import Clock, Release, output, probed, require_auc, silently
from etl.snapshot import LATEST, open_snapshot, read_dataset, read_vocabulary
from etl.synthetic import generate
from etl.validate import Validated, validate_database

_OF_THE_EVENTS = ("schema", "naming", "shadow_prefix", "audience", "vocab_from")


def utc_now() -> datetime:
    """The clock of a run that is not told another."""
    return datetime.now(UTC)


def validate(settings: Settings) -> Validated:
    """Check a database against the laws of section 2, in one snapshot of it; nothing is written."""
    address = settings.address()
    with connect(address) as connection:
        scope, _ = _scope(connection, settings, settings.schema_in(address))
        with transaction(connection, read_only=True, keep=False):
            return validate_database(connection, scope)


def synth(settings: Settings) -> dict[str, int]:
    """Fill a database with the synthetic world, in one transaction; gives the rows per table. Makes missing tables."""
    address = settings.address()
    name = settings.schema_in(address)
    with connect(address) as connection, locked(connection, name), transaction(connection):
        naming = schema.naming_for_apply(connection, name, settings.naming)
        schema.apply(connection, naming)
        worlds = generate(scale=settings.scale, seed=settings.seed)
        return load.copy_world(connection, Scope(naming, settings.shadow_prefix), worlds)


def schema_check(settings: Settings) -> list[schema.Finding]:
    """What is missing in the database, or does not fit."""
    address = settings.address()
    with connect(address) as connection:
        naming = schema.detect_naming(connection, settings.schema_in(address), settings.naming)
        return schema.check(connection, naming)


def schema_apply(settings: Settings) -> list[str]:
    """Create what is missing, in one transaction; gives the names of what was created."""
    address = settings.address()
    name = settings.schema_in(address)
    with connect(address) as connection, locked(connection, name), transaction(connection):
        return schema.apply(connection, schema.naming_for_apply(connection, name, settings.naming))


def run(
    settings: Settings,
    clock: Clock = utc_now,
    progress: Progress = silently,
) -> Report:
    """The nightly job: sections 2 and 3 of the contract. All of it, or nothing.

    Raises a kind of EtlError. With `skip_unchanged` and the newest snapshot's data, `snapshot` stays None.
    """
    earlier = _earlier_vocabulary(settings)
    address = settings.address()
    with connect(address) as connection, ExitStack() as stack:
        scope, advice = _scope(connection, settings, settings.schema_in(address))
        out = stack.enter_context(output(settings))
        lock = stack.enter_context(locked(connection, scope.naming.schema))

        def attempt() -> Report:
            report = Report(uuid.uuid4().hex, clock(), notes=list(advice))
            with writing(settings.out), out.staging(report.run_id) as staged:
                release = Release(settings, report, out, staged, clock, progress)
                with transaction(connection, keep=not settings.dry_run):
                    require_lock(connection, lock)
                    name = _night(connection, scope, earlier, release)
                report.committed = not settings.dry_run
                release.switch(name)
            return report

        done, retries = with_retries(attempt)
    done.retries = retries
    return done


def export(
    settings: Settings,
    clock: Clock = utc_now,
    progress: Progress = silently,
) -> Report:
    """Publish the RankingEvent rows that are there: section 3 alone. Writes nothing to the database."""
    earlier = _earlier_vocabulary(settings)
    address = settings.address()
    report = Report(uuid.uuid4().hex, clock())
    with connect(address) as connection, output(settings) as out, writing(settings.out):
        scope, _ = _scope(connection, settings, settings.schema_in(address))
        with out.staging(report.run_id) as staged:
            aside = SetAside()
            with transaction(connection, read_only=True, keep=False), report.step("read") as rows:
                logged = extract_logged(connection, scope, settings.audience, aside)
                rows(sum(logged.rows_read.values()))
            report.counts |= {
                "source_rows": logged.rows_read,
                "set_aside": aside.counts,
                "events_left_out": logged.left_out,
            }
            with report.step("compact"):
                dataset = compact(logged.events, logged.users, logged.slots, logged.nodes, logged.personas, earlier)
            Release(settings, report, out, staged, clock, progress).publish(dataset)
    return report


def expand(
    settings: Settings,
    clock: Clock = utc_now,
    progress: Progress = silently,
) -> Report:
    """Publish other triples of an old snapshot's events, with other options: no database is needed.

    Raises ConnectError or DataError where it can't be read.
    """
    report = Report(uuid.uuid4().hex, clock())
    old = open_snapshot(Path(settings.snapshot or settings.out))
    with report.step("read") as rows:
        dataset = read_dataset(old)
        rows(dataset.events.height)
    report.counts["expanded_from"] = old.manifest["snapshot"]
    # What decided the events stays what it was: only the triples' own options are ours.
    settings = replace(settings, **{name: old.settings[name] for name in _OF_THE_EVENTS if name in old.settings})
    with output(settings) as out, writing(settings.out), out.staging(report.run_id) as staged:
        Release(settings, report, out, staged, clock, progress).publish(dataset)
    return report


def probe(settings: Settings, progress: Progress = silently) -> Probed:
    """Train a small model on a published snapshot's triples, and write what was found beside them.

    Raises ConnectError or DataError where the snapshot can't be read, DataError where nothing is held out, or where the AUC
    is below `fail_below`; then what was found is written all the same.
    """
    snapshot = open_snapshot(Path(settings.snapshot or settings.out))
    found = probed(snapshot, settings, progress)
    add_probe(snapshot, found.facts, found.line())
    require_auc(found, settings, "It was published all the same.")
    return found


def _night(connection: Connection, scope: Scope, earlier: Vocabulary, release: Release) -> str | None:
    """All that happens inside the transaction; gives the staged snapshot's name, None when it is the newest one's twin."""
    settings, report = release.settings, release.report
    aside = SetAside()
    with report.step("read") as rows:
        source = extract_source(connection, scope, settings.audience, aside)
        rows(sum(source.rows_read.values()))
    shadow = source if settings.audience == "shadow" else source.shadow()
    with report.step("registry") as rows:
        rows(load.register_models(connection, scope, settings.seed))
    made, personas = _write_personas(connection, scope, settings, report, shadow, aside)
    ranked = _write_events(connection, scope, settings, report, shadow, personas)
    report.counts |= _counts(source, shadow, made, ranked, personas, aside)
    with report.step("compact"):
        events, left_out = _audience_events(connection, scope, settings, ranked, aside)
        if settings.audience != "shadow":
            personas = read_personas(connection, scope, settings.audience, aside)
        users = source.users_of(settings.audience)
        report.counts["events_left_out"] = left_out
        dataset = compact(events, users, source.slots, source.nodes, personas, earlier)
    account = release.stage(dataset)
    with report.step("backfill") as rows:
        report.counts["signals_backfilled"] = load.backfill(connection, scope)
        rows(report.counts["signals_backfilled"])
    return release.finish(account)


def _earlier_vocabulary(settings: Settings) -> Vocabulary:
    """The vocabulary whose indexes are kept. An --out folder's first night has none yet."""
    if settings.vocab_from is None:
        return Vocabulary()
    path = Path(settings.vocab_from)
    if path == Path(settings.out) and not (path / LATEST).exists():
        return Vocabulary()
    return read_vocabulary(path)


def _scope(connection: Connection, settings: Settings, schema_name: str) -> tuple[Scope, list[str]]:
    """Whose rows, in which tables; and what is missing but not needed, in sentences."""
    naming = schema.detect_naming(connection, schema_name, settings.naming)
    advice = [finding.detail for finding in schema.require(connection, naming)]
    return Scope(naming, settings.shadow_prefix), advice


def _write_personas(
    connection: Connection, scope: Scope, settings: Settings, report: Report, shadow: Source, aside: SetAside
) -> tuple[Materialised, dy.DataFrame[Personas]]:
    """Personas: decide, write, and read back what the database now holds: the one look back of the design."""
    with report.step("personas") as rows:
        made = materialise(shadow.seeds, shadow.seed_affinities, shadow.categories, affinity_model(), settings.seed)
        rows(made.rows.height)
    with report.step("write personas") as rows:
        load.replace_shadow_rows(connection, scope, "PersonaDimension", load.persona_table(made.rows))
        rows(made.rows.height)
    with report.step("read back") as rows:
        personas = read_personas(connection, scope, "shadow", aside)
        rows(personas.height)
    return made, personas


def _write_events(
    connection: Connection,
    scope: Scope,
    settings: Settings,
    report: Report,
    shadow: Source,
    personas: dy.DataFrame[Personas],
) -> Ranked:
    """Ranking events: candidates by the affinities read back, and what each day's slots hold."""
    with report.step("rankings") as rows:
        ranked = rank(
            shadow.trips,
            shadow.slots,
            shadow.nodes,
            personas["user_id"].unique(),
            read_affinities(personas, shadow.categories),
            affinity_model().unknown,
            settings.seed,
        )
        rows(ranked.events.height)
    with report.step("write events") as rows:
        load.replace_shadow_rows(connection, scope, "RankingEvent", load.event_table(ranked.events))
        rows(ranked.events.height)
    return ranked


def _audience_events(
    connection: Connection, scope: Scope, settings: Settings, ranked: Ranked, aside: SetAside
) -> tuple[dy.DataFrame[Events], dict[str, int]]:
    """The events to publish: the shadow users' as they were just written, the others' as the database has them."""
    if settings.audience != "shadow":
        return extract_events(connection, scope, settings.audience, aside)
    return Events.validate(ranked.events.select(Events.column_names()), cast=True), {}


def _counts(
    source: Source, shadow: Source, made: Materialised, ranked: Ranked, personas: pl.DataFrame, aside: SetAside
) -> dict[str, Any]:
    shadow_users = shadow.users.height
    with_persona = personas["user_id"].n_unique()
    return {
        "source_rows": source.rows_read,
        "set_aside": aside.counts,
        "shadow_users": shadow_users,
        "shadow_users_without_persona": shadow_users - with_persona,
        "persona_rows": made.rows.height,
        "persona_values_by_source": made.values_by_source,
        "affinities_dropped": made.affinities_dropped,
        "ranking_events": ranked.events.height,
        "days_without_event": ranked.skipped,
        "positives": ranked.positives,
        "positives_outside_candidates": ranked.positives_outside_candidates,
    }
