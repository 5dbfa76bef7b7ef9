"""The composition root: names the steps in order. No data logic lives here.

read ─► personas ─► COPY ─► read back ─► rankings ─┬─► COPY, check ──┬─► backfill ─► COMMIT ─► switch LATEST
                                                   └─► stage, check ─┘
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dataframely as dy
import polars as pl

from etl.errors import DataError, SettingsError
from etl.extract import queries
from etl.extract.reader import (
    CODED_SLOTS,
    LOGGED_EVENTS,
    RejectedRows,
    SourceData,
    extract_logged,
    extract_source,
    read_personas,
    seed_affinities,
)
from etl.load import copy as load
from etl.load.audit import RowCounts, WriteAudit
from etl.load.constraints import ValidationReport, validate_database
from etl.pipeline.guards import check_scope, limits, rejected_shares
from etl.pipeline.publication import Clock, Publication, check_auc, no_progress, open_output, run_probe
from etl.postgres import catalog as schema
from etl.postgres.connection import Connection, connect
from etl.postgres.naming import MODELS, Naming
from etl.postgres.scope import Scope, resolve_scope
from etl.postgres.side_effects import Finding
from etl.postgres.transaction import (
    advisory_lock,
    check_not_rewritten,
    ensure_tables_not_rewritten,
    require_lock,
    retry_on_conflict,
    transaction,
)
from etl.postgres.url import schema_of, target_of
from etl.reporting.history import previous_runs
from etl.reporting.page import REQUIRED_FILES, build_report
from etl.runtime.cancellation import CancelToken
from etl.runtime.executor import map_ordered
from etl.runtime.ray_executor import open_executor
from etl.runtime.run_record import Progress, RunObserver, RunResult
from etl.runtime.workers import OrderedWorker, ordered_worker
from etl.settings.model import Settings
from etl.settings.sources import with_options
from etl.snapshots.locations import local_snapshot, open_store
from etl.snapshots.publish import add_probe, add_sidecars, split_location
from etl.snapshots.reader import REPORT, Snapshot, read_dataset, read_vocabulary
from etl.snapshots.store import translate_os_errors
from etl.synthetic.world import copy_world
from etl.transform.affinity import affinity_model
from etl.transform.buckets import bucket_count, open_spill, partition_by_bucket
from etl.transform.personas import PersonaResult, PersonaStats, build_personas
from etl.transform.ranking_events import RankingInputs, RankingStats, add_shown, rank_bucket, sort_for_files, sort_slots
from etl.transform.schemas import Personas, Seeds, Slots, Trips
from etl.triples.dataset import ENCODED_EVENTS, Dataset, DatasetBuilder
from etl.triples.vocabulary import Vocabulary

EVENTS_PER_TRIP = 6
"""About how many days a trip has: how many events are to come, before they are there."""

USERS_AT_A_TIME = 20_000
"""How many users' personas are worked out at a time."""

if TYPE_CHECKING:
    from etl.evaluation.probe import ProbeResult

_FOR_OTHER_TRIPLES = ("events/", "users.parquet", "items.parquet", "trips.parquet")
_INHERITED_SETTINGS = ("schema", "naming", "shadow_prefix", "shadow_domain", "audience", "vocab_from")


def utc_now() -> datetime:
    """The clock of a run that is not told another."""
    return datetime.now(UTC)


def validate(settings: Settings, stop: CancelToken | None = None, progress: Progress = no_progress) -> ValidationReport:
    """Check a database against the laws of section 2, in one snapshot of it; nothing is written."""
    address = target_of(settings)
    with connect(address, stop) as connection:
        scope, _ = resolve_scope(connection, settings, schema_of(settings, address), writes=False)
        with transaction(connection, read_only=True, commit=False):
            return validate_database(connection, scope, progress)


def synth(
    settings: Settings, stop: CancelToken | None = None, rows: Callable[[int], object] = lambda _rows: None
) -> dict[str, int]:
    """Fill a database with the synthetic world, in one transaction; gives the rows per table. Makes missing tables.

    Raises SettingsError where its tables hold rows, unless `into_existing` says that they may.
    `rows` is called with so many more as they are written.
    """
    from etl.synthetic.world import generate  # noqa: PLC0415 - the job does not need it

    address = target_of(settings)
    name = schema_of(settings, address)
    with (
        connect(address, stop) as connection,
        advisory_lock(connection, name, settings.lock_timeout) as lock,
        transaction(connection),
    ):
        require_lock(connection, lock)
        naming = schema.naming_for_apply(connection, name, settings.naming)
        if not settings.into_existing:
            load.require_empty(connection, naming)
        schema.apply(connection, naming)
        worlds = generate(scale=settings.scale, seed=settings.seed)
        return copy_world(connection, Scope(naming, settings.shadow_prefix), worlds, rows)


def schema_check(settings: Settings, stop: CancelToken | None = None) -> list[Finding]:
    """What is missing in the database, or does not fit."""
    address = target_of(settings)
    with connect(address, stop) as connection, transaction(connection, read_only=True, commit=False):
        naming = schema.detect_naming(connection, schema_of(settings, address), settings.naming)
        return schema.check(connection, naming)


def naming_to_print(settings: Settings, stop: CancelToken | None = None) -> tuple[Naming, bool]:
    """The naming for `schema print`, and whether it is known: asked for, or found in the database that is named.

    Where no database is named either, it is the naming by model.
    """
    address = target_of(settings) if settings.database_url else None
    name = schema_of(settings, address) if address else settings.schema or "public"
    if settings.naming != "auto" or address is None:
        return Naming("mapped" if settings.naming == "mapped" else "model", name), settings.naming != "auto"
    with connect(address, stop) as connection:
        return schema.naming_for_apply(connection, name, settings.naming), True


def schema_apply(settings: Settings, stop: CancelToken | None = None) -> list[str]:
    """Create what is missing, in one transaction; gives the names of what was created."""
    address = target_of(settings)
    name = schema_of(settings, address)
    with (
        connect(address, stop) as connection,
        advisory_lock(connection, name, settings.lock_timeout) as lock,
        transaction(connection),
    ):
        require_lock(connection, lock)
        return schema.apply(connection, schema.naming_for_apply(connection, name, settings.naming))


def run(
    settings: Settings | None = None,
    clock: Clock = utc_now,
    progress: Progress = no_progress,
    stop: CancelToken | None = None,
    watcher: RunObserver | None = None,
    **options: Any,
) -> RunResult:
    """The nightly job: sections 2 and 3 of the contract. All of it, or nothing.

    `options` are settings by name; without `settings`, what they do not say the environment says. Raises a kind of EtlError;
    StoppedError where `stop` asks for an end in time. With `skip_unchanged` and the newest snapshot's data, `snapshot` stays
    None.
    """
    settings = with_options(settings, options)
    stop, watcher = stop or CancelToken(), watcher or RunObserver()
    progress = _with_cancellation(progress, stop)
    earlier = _previous_vocabulary(settings)
    address = target_of(settings)
    with connect(address, stop) as connection, ExitStack() as stack:
        scope, advice = resolve_scope(connection, settings, schema_of(settings, address), writes=True)
        engine = stack.enter_context(open_executor(settings.engine, settings.environ, stop))
        out = stack.enter_context(open_output(settings, stop))
        lock = stack.enter_context(advisory_lock(connection, scope.naming.schema, settings.lock_timeout))
        tables = [scope.naming.table(model) for model in MODELS]

        def attempt() -> RunResult:
            report = RunResult(uuid.uuid4().hex, clock(), notes=list(advice), stop=stop, observer=watcher)
            with translate_os_errors(settings.out), out.staging(report.run_id) as (staged, scratch):
                release = Publication(settings, report, out, staged, scratch, clock, progress, engine)
                with transaction(connection, commit=not settings.dry_run), check_not_rewritten(connection, tables):
                    require_lock(connection, lock)
                    name = _run_in_transaction(connection, scope, earlier, release)
                report.committed = not settings.dry_run
                release.make_latest(name)
            return report

        done, retries = retry_on_conflict(attempt, stop.sleep)
    done.retries = retries
    return done


def export(
    settings: Settings | None = None,
    clock: Clock = utc_now,
    progress: Progress = no_progress,
    stop: CancelToken | None = None,
    watcher: RunObserver | None = None,
    **options: Any,
) -> RunResult:
    """Publish the RankingEvent rows that are there: section 3 alone. Writes nothing to the database.

    `options` as in `run`. Raises a kind of EtlError, StoppedError.
    """
    settings = with_options(settings, options)
    stop, watcher = stop or CancelToken(), watcher or RunObserver()
    progress = _with_cancellation(progress, stop)
    earlier = _previous_vocabulary(settings)
    address = target_of(settings)
    with (
        open_executor(settings.engine, settings.environ, stop) as engine,
        connect(address, stop) as connection,
        open_output(settings, stop) as out,
        translate_os_errors(settings.out),
    ):
        scope, _ = resolve_scope(connection, settings, schema_of(settings, address), writes=False)

        def attempt() -> RunResult:
            report, aside = RunResult(uuid.uuid4().hex, clock(), stop=stop, observer=watcher), RejectedRows()
            with out.staging(report.run_id) as (staged, scratch), ExitStack() as shelves:
                release = Publication(settings, report, out, staged, scratch, clock, progress, engine)
                with transaction(connection, read_only=True, commit=False):
                    check_scope(connection, scope, settings, report)
                    dataset, rows_read = _dataset_from_logged_events(
                        connection, scope, earlier, release, aside, shelves
                    )
                    ensure_tables_not_rewritten(connection, map(scope.naming.table, MODELS))
                report.counts["source_rows"] = rows_read
                limits(settings).check_rejected_share(rejected_shares(report.counts, aside.shares))
                release.publish(dataset)
            return report

        done, retries = retry_on_conflict(attempt, stop.sleep)
    done.retries = retries
    return done


def expand(
    settings: Settings | None = None,
    clock: Clock = utc_now,
    progress: Progress = no_progress,
    stop: CancelToken | None = None,
    watcher: RunObserver | None = None,
    **options: Any,
) -> RunResult:
    """Publish other triples of an old snapshot's events, with other options: no database is needed.

    `options` as in `run`. Raises ConnectError or DataError where it can't be read, StoppedError.
    """
    settings = with_options(settings, options)
    stop, watcher = stop or CancelToken(), watcher or RunObserver()
    progress = _with_cancellation(progress, stop)
    report = RunResult(uuid.uuid4().hex, clock(), stop=stop, observer=watcher)
    with local_snapshot(settings.snapshot or settings.out, settings.environ, _FOR_OTHER_TRIPLES, stop) as old:
        with report.step("read") as rows:
            dataset = read_dataset(old, settings.buckets)
            rows(dataset.events.height)
        report.counts["expanded_from"] = old.manifest["snapshot"]
        # What decided the events stays what it was: only the triples' own options are ours.
        settings = _of_the_events(settings, old)
        with (
            open_executor(settings.engine, settings.environ, stop) as engine,
            open_output(settings, stop) as out,
            translate_os_errors(settings.out),
            out.staging(report.run_id) as (staged, scratch),
        ):
            Publication(settings, report, out, staged, scratch, clock, progress, engine).publish(dataset)
    return report


def _of_the_events(settings: Settings, old: Snapshot) -> Settings:
    """The settings with those of a snapshot that decided its events. Raises DataError where they are none."""
    try:
        return replace(settings, **{name: old.settings[name] for name in _INHERITED_SETTINGS if name in old.settings})
    except SettingsError as error:
        raise DataError(f"The manifest of {old.url or old.folder} has settings that are none: {error}") from None


def probe(settings: Settings, progress: Progress = no_progress, stop: CancelToken | None = None) -> ProbeResult:
    """Train a small model on a published snapshot's triples, and write what was found beside them.

    Raises ConnectError or DataError where the snapshot can't be read, DataError where nothing is held out, or where the AUC
    is below `fail_below`; then what was found is written all the same.
    """
    stop = stop or CancelToken()
    with local_snapshot(settings.snapshot or settings.out, settings.environ, stop=stop) as snapshot:
        found = run_probe(snapshot, settings, _with_cancellation(progress, stop))
        _add_report(
            add_probe(snapshot, found.facts, found.manifest_entry(), settings.environ),
            settings,
            _with_cancellation(progress, stop),
            found.facts,
        )
    check_auc(found, settings, "It was published all the same.")
    return found


def report(settings: Settings, progress: Progress = no_progress, stop: CancelToken | None = None) -> str:
    """Make the report of a published snapshot anew, with the nights before it as they are now; gives where it is.

    Raises ConnectError or DataError where the snapshot can't be read, LockedError where a run writes to its place.
    """
    stop = stop or CancelToken()
    with local_snapshot(settings.snapshot or settings.out, settings.environ, REQUIRED_FILES, stop) as snapshot:
        _add_report(snapshot, settings, _with_cancellation(progress, stop))
        return f"{snapshot.url or snapshot.folder}/{REPORT}"


def _add_report(
    snapshot: Snapshot, settings: Settings, progress: Progress, probe: Mapping[str, Any] | None = None
) -> None:
    """Make a snapshot's report anew, and write it beside its data; `probe` is what one found, if not what lies there."""
    place = split_location(snapshot)
    runs = []
    if place is not None:
        store = open_store(place[0], settings.environ)
        runs = previous_runs(store, [name for name in store.folders() if name < place[1]])
    dataset, affinity = read_dataset(snapshot), affinity_model().default_affinity
    page = build_report(snapshot.manifest, snapshot.folder, dataset, runs, affinity, progress, probe)
    add_sidecars(snapshot, {REPORT: page.encode()}, {}, settings.environ)


def _run_in_transaction(connection: Connection, scope: Scope, earlier: Vocabulary, release: Publication) -> str | None:
    """All that happens inside the transaction; gives the staged snapshot's name, None when it is the newest one's twin."""
    settings, report = release.settings, release.report
    aside = RejectedRows()
    with ExitStack() as stack:
        check_scope(connection, scope, settings, report)
        ledger = WriteAudit(connection, scope, settings.allow_side_effects)
        buckets = settings.buckets or bucket_count(EVENTS_PER_TRIP * connection.fetch_int(queries.trip_count(scope)))
        slots = stack.enter_context(open_spill(release.scratch, buckets, Slots.create_empty()))
        with report.step("read") as rows:
            source = extract_source(connection, scope, slots, aside, rows)
        writer = stack.enter_context(ordered_worker())
        personas = load.TableReplacement(connection, scope, "PersonaDimension")
        events = load.TableReplacement(connection, scope, "RankingEvent")
        _register_and_delete(release, connection, scope, writer, personas)
        made, persona_rows = _write_personas(connection, scope, release, source, aside, writer, personas)
        compaction = None
        if settings.audience == "shadow":
            compaction = DatasetBuilder(stack.enter_context(open_spill(release.scratch, buckets, ENCODED_EVENTS)))
        ranked = _write_events(release, source, persona_rows, writer, events, compaction)
        report.counts |= _counts(source, made, ranked, persona_rows, aside)
        limits(settings).check_rejected_share(rejected_shares(report.counts, aside.shares))
        if compaction is not None:
            with report.step("compact"):
                dataset = compaction.dataset(source.users, persona_rows, source.nodes, earlier)
            report.counts["events_left_out"] = {}
        else:
            writer.wait()
            dataset, _ = _dataset_from_logged_events(connection, scope, earlier, release, aside, stack)
        staged = release.stage(dataset)
        writer.wait()
    with report.step("backfill") as rows:
        report.counts["signals_backfilled"] = load.backfill(connection, scope)
        rows(report.counts["signals_backfilled"])
    with report.step("check"):
        meant = {
            "ModelRegistry": RowCounts(inserted=report.get_step("registry").rows or 0),
            "PersonaDimension": personas.written,
            "RankingEvent": events.written,
            "BehavioralSignal": RowCounts(updated=report.counts["signals_backfilled"]),
        }
        report.warnings += ledger.verify(meant)
        ensure_tables_not_rewritten(connection, map(scope.naming.table, MODELS))
    return release.write_manifest(staged)


def _with_cancellation(progress: Progress, stop: CancelToken) -> Progress:
    """Progress that also listens: whoever tells it hears that an end was asked for."""

    def tell(what: str, done: int, of: int) -> None:
        stop.raise_if_cancelled()
        progress(what, done, of)

    return tell


def _previous_vocabulary(settings: Settings) -> Vocabulary:
    """The vocabulary whose indexes are kept. An --out folder's first night has none yet."""
    if settings.vocab_from is None:
        return Vocabulary()
    here = Path(settings.vocab_from) == Path(settings.out)
    if here and open_store(settings.out, settings.environ).latest_name() is None:
        return Vocabulary()
    with local_snapshot(settings.vocab_from, settings.environ, ("users.parquet", "items.parquet")) as snapshot:
        return read_vocabulary(snapshot.folder)


def _register_and_delete(
    release: Publication, connection: Connection, scope: Scope, writer: OrderedWorker, personas: load.TableReplacement
) -> None:
    """Register the models, and delete the persona rows that are to be replaced."""
    report, seed = release.report, release.settings.seed

    def register() -> None:
        with report.step("registry") as rows:
            rows(load.register_models(connection, scope, seed))

    report.get_step("registry")
    writer.submit(register)
    _delete(report, writer, personas)


def _delete(report: RunResult, writer: OrderedWorker, replacement: load.TableReplacement) -> None:
    """Delete what is to be replaced."""

    def work() -> None:
        with report.step("delete") as rows:
            rows(replacement.delete())

    report.get_step("delete")
    writer.submit(work)


def _write_personas(
    connection: Connection,
    scope: Scope,
    release: Publication,
    source: SourceData,
    aside: RejectedRows,
    writer: OrderedWorker,
    replacement: load.TableReplacement,
) -> tuple[PersonaStats, dy.DataFrame[Personas]]:
    """Personas: decide, write, and read back what the database now holds: the one look back of the design."""
    report, seed = release.report, release.settings.seed

    def write(made: PersonaResult) -> None:
        with report.step("write personas") as rows:
            replacement.copy(load.to_persona_rows(made.rows))
            rows(made.rows.height)

    def read_back() -> dy.DataFrame[Personas]:
        with report.step("write personas"):
            replacement.check()
        with report.step("read back") as rows:
            personas = read_personas(connection, scope, "shadow", aside)
            rows(personas.height)
        return personas

    total = PersonaStats()
    for seeds in source.seeds.iter_slices(USERS_AT_A_TIME):
        with report.step("personas") as rows:
            vectors = source.vectors.join(seeds, on="user_id", how="semi")
            of_seeds = seed_affinities(vectors, aside)
            made = build_personas(Seeds.cast(seeds), of_seeds, source.categories, affinity_model(), seed)
            rows(made.rows.height)
        total += made.tally
        report.get_step("write personas")
        writer.submit(partial(write, made))
    return total, writer.submit(read_back).result()


def _write_events(
    release: Publication,
    source: SourceData,
    personas: dy.DataFrame[Personas],
    writer: OrderedWorker,
    replacement: load.TableReplacement,
    compaction: DatasetBuilder | None,
) -> RankingStats:
    """Ranking events, bucket by bucket: candidates by the affinities read back, and what each day's slots hold.

    The server takes one bucket's rows while the next is worked out. What is to be published goes into `compaction`, too.
    """
    report, progress, buckets = release.report, release.progress, source.slots.buckets

    def write(events: pl.DataFrame) -> None:
        with report.step("write events") as rows:
            replacement.copy(load.to_event_rows(events))
            rows(events.height)

    def check() -> None:
        with report.step("write events"):
            replacement.check()

    _delete(report, writer, replacement)
    ranking = RankingInputs(source.nodes, source.categories, affinity_model().default_affinity, release.settings.seed)
    calls = _bucket_by_bucket(source, personas, progress)
    tasks = map_ordered(release.engine, rank_bucket, release.engine.broadcast(ranking), calls)
    total, before = RankingStats(), None
    while True:
        with report.step("rankings") as rows:
            task = next(tasks, None)
            if task is None:
                break
            bucket, ranked = task.result()
            rows(ranked.events.height)
        if before is not None:
            before.result()  # one bucket waits for the server at the most
        report.get_step("write events")
        before = writer.submit(partial(write, ranked.events.clone()))  # a frame object belongs to one thread
        if compaction is not None:
            with report.step("compact"):
                compaction.add(bucket, ranked.events)
        total += ranked.tally
    writer.submit(check)
    progress("rankings", buckets, buckets)
    return total


def _bucket_by_bucket(
    source: SourceData, personas: dy.DataFrame[Personas], progress: Progress
) -> Iterator[tuple[int, dy.DataFrame[Trips], dy.DataFrame[Slots], dy.DataFrame[Personas]]]:
    """What each bucket is ranked from, one bucket after the other."""
    buckets = source.slots.buckets
    of_buckets = partition_by_bucket(personas, buckets)
    for bucket in range(buckets):
        progress("rankings", bucket, buckets)
        slots = source.slots_of(bucket)
        if slots.is_empty() and bucket < buckets - 1:  # nobody's days; the last one stands for all where there are none
            continue
        yield bucket, source.trips_of(bucket), slots, Personas.cast(of_buckets.get(bucket, Personas.create_empty()))


def _dataset_from_logged_events(
    connection: Connection,
    scope: Scope,
    earlier: Vocabulary,
    release: Publication,
    aside: RejectedRows,
    shelves: ExitStack,
) -> tuple[Dataset, dict[str, int]]:
    """The dataset of the ranking events that the database has of an audience, and how many rows were read."""
    settings, report = release.settings, release.report
    with report.step("read events" if "read" in {step.name for step in report.steps} else "read") as rows:
        count = connection.fetch_int(queries.event_count(scope, settings.audience))
        buckets = settings.buckets or bucket_count(count)
        events, slots, compacted = (
            shelves.enter_context(open_spill(release.scratch, buckets, empty))
            for empty in (LOGGED_EVENTS, CODED_SLOTS, ENCODED_EVENTS)
        )
        compaction = DatasetBuilder(compacted)
        logged = extract_logged(connection, scope, settings.audience, aside, (events, slots), compaction.encode, rows)
    report.counts |= {"set_aside": aside.counts, "events_left_out": logged.excluded}
    with report.step("compact"):
        for bucket in range(buckets):
            of_bucket = logged.events.read_bucket(bucket)
            if of_bucket.height:
                ordered = sort_slots(logged.slots.read_bucket(bucket))
                compaction.add(bucket, add_shown(sort_for_files(of_bucket), ordered))
        dataset = compaction.dataset(logged.users, logged.personas, logged.nodes, earlier)
    return dataset, logged.rows_read


def _counts(
    source: SourceData, made: PersonaStats, ranked: RankingStats, personas: pl.DataFrame, aside: RejectedRows
) -> dict[str, Any]:
    shadow_users = source.users.height
    with_persona = personas["user_id"].n_unique()
    return {
        "source_rows": source.rows_read,
        "set_aside": aside.counts,
        "shadow_users": shadow_users,
        "shadow_users_without_persona": shadow_users - with_persona,
        "persona_rows": made.rows,
        "persona_values_by_source": made.values_by_source,
        "affinities_dropped": made.affinities_dropped,
        "openness_dropped": made.openness_dropped,
        "ranking_events": ranked.events,
        "days_without_event": ranked.skipped,
        "positives": ranked.positives,
        "positives_outside_candidates": ranked.positives_outside_candidates,
    }
