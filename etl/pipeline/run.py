"""`bpr-etl run`: the nightly job, in one transaction. This module orders the steps; the packages below implement them.

read ─► personas ─► write ─► read back ─► rankings ─┬─► write, check ─┬─► backfill ─► COMMIT ─► switch LATEST
                                                    └─► stage, check ─┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import dataframely as dy
import polars as pl

from etl.extract import queries
from etl.extract.reader import (
    RejectedRows,
    SourceData,
    count_filtered,
    extract_source,
    read_personas,
    seed_affinities,
    source_queries,
    source_schemas,
)
from etl.load import copy as load
from etl.load.audit import RowCounts, WriteAudit
from etl.load.changes import TableWriter, held_rows, standing_query
from etl.pipeline.context import Clock, RunResult, new_result, open_context, prepare, previous_vocabulary, utc_now
from etl.pipeline.export import dataset_from_logged_events
from etl.pipeline.guards import (
    check_rejected_share,
    check_scope,
    clipped_affinities_warning,
    count_foreign_rows,
    rejected_shares,
    unused_seed_warnings,
)
from etl.pipeline.lineage import with_lineage
from etl.pipeline.publication import Publication, open_publication
from etl.pipeline.published import probe_published
from etl.pipeline.writes import Writes
from etl.postgres.bulk_read import BackgroundReads, read_in_background
from etl.postgres.connection import Connection, connect
from etl.postgres.naming import MODELS
from etl.postgres.scope import Scope, resolve_scope
from etl.postgres.transaction import (
    advisory_lock,
    check_not_rewritten,
    ensure_tables_not_rewritten,
    require_lock,
    retry_on_conflict,
    transaction,
)
from etl.postgres.url import schema_of, target_of
from etl.runtime.cancellation import CancelToken
from etl.runtime.executor import map_ordered
from etl.runtime.run_record import Progress, RunObserver
from etl.runtime.workers import ordered_worker
from etl.settings.model import Settings
from etl.transform.buckets import BucketSpill, bucket_count, open_spill, partition_by_bucket
from etl.transform.personas import PersonaStats, affinity_model, build_personas
from etl.transform.ranking_events import MADE_ROWS, RankingInputs, RankingStats, rank_bucket
from etl.transform.schemas import Personas, Seeds
from etl.triples.dataset import ENCODED_EVENTS, DatasetBuilder
from etl.triples.vocabulary import Vocabulary

EVENTS_PER_TRIP = 6
"""Assumed days per trip: estimates the number of events before they are computed."""

USERS_PER_BATCH = 20_000
"""Users whose personas are built at a time."""


@with_lineage
def run(
    settings: Settings | None = None,
    clock: Clock = utc_now,
    progress: Progress | RunObserver | None = None,
    stop: CancelToken | None = None,
    **options: Any,
) -> RunResult:
    """Run the nightly job: write personas and ranking events, and publish a snapshot, all or nothing.

    `options` are settings by name. Without `settings`, the environment decides the others. `progress` is called with
    (step, done, total), by several threads. If `skip_unchanged` is set and the data equal those of the newest snapshot,
    nothing is published, and the result's `snapshot` is None.

    Raises an `EtlError`; one with exit code 130 if `stop` was cancelled before COMMIT.
    """
    settings, stop = prepare(settings, options, stop)
    earlier, target = previous_vocabulary(settings), target_of(settings)
    with connect(target, stop) as connection:
        scope, notes = resolve_scope(connection, settings, schema_of(settings, target), writes=True, made=MADE_ROWS)
        with (
            open_context(settings, clock, stop) as context,
            advisory_lock(connection, scope.naming.schema, settings.lock_timeout) as lock,
        ):
            tables = [scope.naming.table(model) for model in MODELS]

            def attempt() -> RunResult:
                result = new_result(clock, stop, progress, notes)
                result.relations = scope.naming.relations
                with open_publication(context, result) as publication:
                    with transaction(connection, commit=not settings.dry_run), check_not_rewritten(connection, tables):
                        require_lock(connection, lock)
                        name = _run_in_transaction(connection, scope, earlier, publication)
                    result.committed = not settings.dry_run
                    publication.make_latest(name)
                return result

            result, retries = retry_on_conflict(attempt, stop.sleep)
    result.retries = retries
    probe_published(settings, result)
    return result


def _run_in_transaction(
    connection: Connection, scope: Scope, earlier: Vocabulary, publication: Publication
) -> str | None:
    """Run the steps inside the transaction. Returns the staged snapshot's name, None if nothing has changed."""
    settings, result = publication.context.settings, publication.result
    rejected = RejectedRows()
    with ExitStack() as stack:
        # Begun before all else: while these are read, the connection itself does the checks, and then reads the slots.
        compares = settings.write != "replace"
        first = source_queries(scope) | _standing(scope, "PersonaDimension", when=compares)
        reads = stack.enter_context(read_in_background(connection, first))
        check_scope(connection, scope, settings, result)
        count_foreign_rows(connection, scope, result)
        audit = WriteAudit(connection, scope, settings.allow_side_effects)
        source = _read(connection, scope, reads, publication, rejected, stack)
        reads.begin(_standing(scope, "RankingEvent", when=compares))  # now: the slots are needed earlier
        hashing = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="hashing"))
        worker = stack.enter_context(ordered_worker())
        writes = Writes(result, worker, hashing, reads if compares else None)
        personas, events = (
            TableWriter(connection, scope, model, _held_rows(publication, model, parts, stack))
            for model, parts in (("PersonaDimension", _batches(source)), ("RankingEvent", source.slots.buckets))
        )
        persona_stats = _write_personas(source, rejected, settings.seed, writes, personas)
        # The database is the source of truth: events are made of the affinities that it holds now.
        stored = writes.submit("read back", partial(_read_back, connection, scope, rejected)).result()
        writes.submit("registry", lambda rows: rows(load.register_models(connection, scope, settings.seed)))
        builder = None
        if settings.audience == "shadow":
            spill = open_spill(publication.scratch, source.slots.buckets, ENCODED_EVENTS)
            builder = DatasetBuilder(stack.enter_context(spill))
        writes.begin(events, personas)
        # Where there is nothing to backfill, that is found out while events are ranked; else the signals are looked up while
        # files are written. The backfill itself comes last, because it locks rows.
        pending = worker.submit(partial(load.has_pending_signals, connection, scope))
        ranking_stats = _write_events(publication, source, stored, writes, events, builder)
        signals = worker.submit(lambda: load.pending_signals(connection, scope) if pending.result() else None)
        result.counts |= {
            "source_rows": source.rows_read,
            "set_aside": rejected.counts,
            "shadow_users": source.users.height,
            "shadow_users_without_persona": source.users.height - stored["user_id"].n_unique(),
            **asdict(persona_stats),
            **asdict(ranking_stats),
        }
        result.warnings += unused_seed_warnings(stored)
        check_rejected_share(settings, rejected_shares(result.counts, rejected.shares))
        if builder is not None:
            with result.step("compact"):
                dataset = builder.dataset(source.users, stored, source.nodes, earlier)
            result.counts["events_left_out"] = {}
        else:  # other users' events are in the database only
            worker.wait()
            dataset, _ = dataset_from_logged_events(
                connection, scope, earlier, publication, rejected, stack, step="read events"
            )
        summary = publication.stage(dataset)
        worker.wait()
    _backfill_and_verify(connection, scope, result, audit, signals.result(), personas, events)
    return publication.write_manifest(summary)


def _standing(scope: Scope, model: str, *, when: bool) -> dict[str, str]:
    """Return the query of the hashes of a model's existing rows, by its name; none if they are not compared."""
    return {model: standing_query(scope, model)} if when else {}


def _read(
    connection: Connection,
    scope: Scope,
    reads: BackgroundReads,
    publication: Publication,
    rejected: RejectedRows,
    stack: ExitStack,
) -> SourceData:
    """Read the source tables. Slots are spilled by user bucket into files that `stack` deletes."""
    trips = connection.fetch_int(queries.trip_count(scope))
    buckets = publication.context.settings.buckets or bucket_count(EVENTS_PER_TRIP * trips)
    slots = stack.enter_context(open_spill(publication.scratch, buckets, source_schemas(scope)[1].create_empty()))
    with publication.result.step("read") as rows:
        publication.result.counts |= count_filtered(connection, scope)
        return extract_source(connection, scope, reads, slots, rejected, rows)


def _batches(source: SourceData) -> int:
    """Return the number of batches in which the personas are built."""
    return max(1, -(-source.seeds.height // USERS_PER_BATCH))


def _held_rows(publication: Publication, model: str, parts: int, stack: ExitStack) -> BucketSpill:
    """Return a spill for rows that are written after all rows are known."""
    return stack.enter_context(open_spill(publication.scratch, parts, held_rows(model)))


def _read_back(
    connection: Connection, scope: Scope, rejected: RejectedRows, rows: Callable[[int], None]
) -> dy.DataFrame[Personas]:
    personas = read_personas(connection, scope, "shadow", rejected)
    rows(personas.height)
    return personas


def _backfill_and_verify(
    connection: Connection,
    scope: Scope,
    result: RunResult,
    audit: WriteAudit,
    signals: load.PendingSignals | None,
    personas: TableWriter,
    events: TableWriter,
) -> None:
    """Do the backfill, and check that nothing but the intended rows was written. Raises DataError."""
    with result.step("backfill") as rows:
        result.counts["signals_backfilled"] = load.backfill(connection, scope, signals)
        rows(result.counts["signals_backfilled"])
    with result.step("check"):
        intended = {
            "ModelRegistry": RowCounts(inserted=result.get_step("registry").rows or 0),
            "PersonaDimension": personas.written,
            "RankingEvent": events.written,
            "BehavioralSignal": RowCounts(updated=result.counts["signals_backfilled"]),
        }
        result.warnings += audit.verify(intended)
        result.counts["written"] = {
            model: {"inserted": table.written.inserted, "deleted": table.written.deleted, "unchanged": table.unchanged}
            for model, table in (("PersonaDimension", personas), ("RankingEvent", events))
        }
        ensure_tables_not_rewritten(connection, map(scope.naming.table, MODELS))


def _write_personas(
    source: SourceData, rejected: RejectedRows, seed: int, writes: Writes, table: TableWriter
) -> PersonaStats:
    """Build and write the persona rows. The server receives one batch of users while the next is computed."""
    writes.begin(table)
    stats, affinities, clipped = PersonaStats(), 0, 0
    for seeds in source.seeds.iter_slices(USERS_PER_BATCH):
        with writes.result.step("personas") as rows:
            vectors = source.vectors.join(seeds, on="user_id", how="semi")
            numbers = seed_affinities(vectors, rejected)
            built = build_personas(Seeds.cast(seeds), numbers, source.categories, affinity_model(), seed)
            rows(built.rows.height)
        stats += built.stats
        affinities, clipped = affinities + built.affinities, clipped + built.clipped
        writes.add("write personas", table, load.to_persona_rows, built.rows)
    writes.end("write personas", table)
    writes.result.warnings += clipped_affinities_warning(clipped, affinities)
    return stats


def _write_events(
    publication: Publication,
    source: SourceData,
    personas: dy.DataFrame[Personas],
    writes: Writes,
    table: TableWriter,
    builder: DatasetBuilder | None,
) -> RankingStats:
    """Build and write the ranking events by bucket. The server receives one bucket while the next is computed.

    The events are also added to `builder`, unless it is None.
    """
    result, executor = publication.result, publication.context.executor
    inputs = RankingInputs(
        source.nodes, source.categories, affinity_model().default_affinity, publication.context.settings.seed
    )
    calls = _bucket_calls(source, personas, result.progress)
    tasks = map_ordered(executor, rank_bucket, executor.broadcast(inputs), calls)
    stats, pending = RankingStats(), None
    while True:
        with result.step("rankings") as rows:
            task = next(tasks, None)
            if task is None:
                break
            bucket, ranked = task.result()
            rows(ranked.events.height)
        if pending is not None:
            pending.result()  # at most one bucket waits for the server
        pending = writes.add("write events", table, load.to_event_rows, ranked.events.clone())
        if builder is not None:
            with result.step("compact"):
                builder.add(bucket, ranked.events)
        stats += ranked.stats
    writes.end("write events", table)
    result.progress("rankings", source.slots.buckets, source.slots.buckets)
    return stats


def _bucket_calls(
    source: SourceData, personas: dy.DataFrame[Personas], progress: Progress
) -> Iterator[tuple[int, pl.DataFrame, pl.DataFrame, dy.DataFrame[Personas]]]:
    """Yields the arguments of `rank_bucket`, bucket by bucket. Empty buckets are skipped, except for the last one."""
    buckets = source.slots.buckets
    of_buckets = partition_by_bucket(personas, buckets)
    for bucket in range(buckets):
        progress("rankings", bucket, buckets)
        slots = source.slots_of(bucket)
        if slots.is_empty() and bucket < buckets - 1:  # one call is needed, for the empty table's columns
            continue
        yield bucket, source.trips_of(bucket), slots, Personas.cast(of_buckets.get(bucket, Personas.create_empty()))
