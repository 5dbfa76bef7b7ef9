"""One attempt to publish a snapshot: data files staged and checked, probed if asked for, named, and made the newest.

Used by run, export and expand. The database's transaction ends between `write_manifest` and `make_latest`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path

from etl.errors import ConnectError, EtlError
from etl.pipeline.context import RunContext, RunResult
from etl.pipeline.guards import (
    bias_warnings,
    check_auc,
    check_max_change,
    check_rows,
    comparison_skipped_note,
    unknown_city_warnings,
)
from etl.pipeline.published import probe_afterwards, run_probe
from etl.reporting.card import build_card, build_croissant
from etl.reporting.event_stats import BackgroundCount, EventStats, count_events
from etl.reporting.history import compare, compare_with_history, misdated, previous_runs, prune, published, run_metrics
from etl.reporting.page import build_report, load_template
from etl.reporting.wording import format_bytes
from etl.runtime.workers import OrderedWorker, ordered_worker
from etl.snapshots.manifest import DataSummary, build_manifest
from etl.snapshots.publish import snapshot_name, write_manifest, write_probe, write_sidecar
from etl.snapshots.reading.snapshot import CARD, CROISSANT, REPORT, Snapshot, open_snapshot
from etl.snapshots.stores.locations import open_store
from etl.snapshots.stores.store import UnlistableError, translate_os_errors
from etl.snapshots.unchanged import inputs_sha256, link_data_files
from etl.snapshots.writer import StageOptions, write_data_files
from etl.transform.personas import affinity_model
from etl.triples.dataset import Dataset
from etl.triples.partitions import TripleOptions

log = logging.getLogger(__name__)


@contextmanager
def open_publication(context: RunContext, result: RunResult) -> Iterator[Publication]:
    """Yields a publication with folders for staged and for temporary files, which are deleted after the block."""
    with (
        translate_os_errors(context.settings.out),
        context.store.staging(result.run_id) as (staged, scratch),
        ordered_worker() as worker,
    ):
        threading.Thread(target=_prepare, daemon=True, name="preparing").start()
        _load_history(context, result)
        yield Publication(context, result, staged, scratch, worker)


def _prepare() -> None:
    """Import libraries and compile the page's template, while the database is read.

    Failures are ignored: the step that needs them reports them.
    """
    with suppress(Exception):
        for name in ("pyarrow.compute", "numpy.ma"):
            import_module(name)
        load_template()


def _load_history(context: RunContext, result: RunResult) -> None:
    """Add the previous runs to the result, and a warning of snapshots with a date in the future."""
    settings, store, now = context.settings, context.store, context.clock()
    try:  # a failure here does not stop the run: if the store can't be written either, publishing fails
        if settings.dry_run:  # its own store is an empty folder
            store = open_store(settings.out, settings.environ)
        result.previous_runs = previous_runs(store, published(store, now))
        if names := misdated(store, now):
            result.warnings.append(
                f"Snapshots are {names}. This machine's clock is wrong, or another's was. No run is compared with them once "
                "another is the newest, and --keep deletes them first. Delete them when no reader uses them."
            )
    except UnlistableError as error:
        result.warnings.append(str(error))
        with suppress(ConnectError):
            result.previous_runs = previous_runs(store, [name for name in [store.latest_name()] if name])
    except ConnectError:
        log.debug("Earlier runs could not be read.", exc_info=True)


@dataclass(frozen=True)
class Publication:
    """One snapshot that is being published. Data files go to `staged`, temporary ones to `scratch`; `worker` counts."""

    context: RunContext
    result: RunResult
    staged: Path
    scratch: Path
    worker: OrderedWorker

    def publish(self, dataset: Dataset) -> None:
        """Stage the snapshot and make it the newest: for commands without a transaction to commit in between."""
        self.make_latest(self.write_manifest(self.stage(dataset)))

    def stage(self, dataset: Dataset) -> DataSummary:
        """Write and check the snapshot's data files and its report. Adds their counts and warnings to the result.

        Raises DataError if a footer does not count the rows that were written, if there are no triples to train on, if
        a metric changed too much (`fail_on_change`), or if the probe's AUC is below `fail_below`.
        """
        settings, result = self.context.settings, self.result
        triple_options = TripleOptions(**{each.name: getattr(settings, each.name) for each in fields(TripleOptions)})
        options = StageOptions(triple_options, settings.ids, settings.rows_per_file)
        with result.step("stage files") as rows:
            summary, count = self._stage_files(dataset, options)
            result.counts["published"] = summary.counts(dataset)
            rows(sum(sum(result.counts["published"][task].values()) for task in settings.task))
        for task in settings.task:
            made = summary.rows_of(task, settings.split.parts)
            result.warnings += check_rows(
                task, made, settings.split, result.counts["published"], allowed=settings.may_be_empty
            )
        result.warnings += [*unknown_city_warnings(settings, summary), *bias_warnings(settings, summary)]
        self._compare()
        if settings.fail_below is not None:  # else the probe waits until no transaction is open: it may take a minute
            self._probe(summary)
        self._finalize(summary, count, dataset.trips.height)
        return summary

    def _stage_files(self, dataset: Dataset, options: StageOptions) -> tuple[DataSummary, Callable[[], EventStats]]:
        """Link or write the data files. Returns their summary, and what returns the counts of the events for the report."""
        progress, affinity = self.result.progress, affinity_model().default_affinity
        inputs = inputs_sha256(dataset, options)
        summary = link_data_files(self.context.store, inputs, self.staged)
        count: Callable[[], EventStats] = partial(count_events, dataset, affinity, progress)
        if summary is None:
            # Writing reads the events anyway: they are counted on the way.
            counted = BackgroundCount(dataset, affinity, self.worker)
            folders, count = (self.staged, self.scratch), counted.result
            summary = write_data_files(dataset, options, *folders, progress, self.context.executor, counted.add)
        summary.inputs_sha256 = inputs
        return summary, count

    def _compare(self) -> None:
        """Compare the metrics with previous runs. Raises DataError if one changed too much and `fail_on_change` is set."""
        settings, result = self.context.settings, self.result
        used = settings.manifest_settings()
        result.metrics = compare_with_history(
            result.previous_runs, used, run_metrics(result.counts), self.context.clock()
        )
        if settings.max_change is not None:
            compared = compare(result.previous_runs, used, result.metrics, settings.max_change)
            result.warnings += check_max_change(compared, settings.max_change, stops=settings.fail_on_change)
            result.notes += comparison_skipped_note(compared)

    def _probe(self, summary: DataSummary) -> None:
        settings = self.context.settings
        with self.result.step("probe"):
            files = [asdict(entry) for entry in summary.files]
            manifest = {"settings": settings.manifest_settings(), "cities": summary.folders, "files": files}
            found = run_probe(Snapshot(self.staged, manifest), settings, self.result.progress)
        check_auc(found, settings, "Nothing was committed or published.")
        summary.sidecars.append(write_probe(self.staged, found.facts))
        self.result.counts["probe"] = found.manifest_entry()
        self.result.warnings += found.warnings()

    def _finalize(self, summary: DataSummary, count: Callable[[], EventStats], trips: int) -> None:
        """Name the snapshot, make its card and report, and persist its files. Its name stays None if nothing has changed."""
        store, result = self.context.store, self.result
        latest = store.latest() if self.context.settings.skip_unchanged else None
        if latest and latest.get("content_sha256") == summary.content_sha256:
            return
        now = self.context.clock()
        summary.name = snapshot_name(summary, now)
        with result.step("report"):
            facts = result.manifest_facts(self.context.settings, now)
            for name, build in (
                (CARD, lambda manifest: build_card(manifest, self.staged)),
                (CROISSANT, lambda manifest: build_croissant(manifest, self.staged)),
                (REPORT, lambda manifest: build_report(manifest, self.staged, count(), trips, result.previous_runs)),
            ):
                manifest = build_manifest(summary.name, facts, summary)  # the report counts the cards
                content = self._description(name, partial(build, manifest))
                if content is not None:
                    summary.sidecars.append(write_sidecar(self.staged, name, content.encode()))
        # Before the backfill, which locks rows that the application may want: on an object store this is the upload.
        with result.step("secure files"):
            store.persist(self.staged, summary.name)

    def _description(self, name: str, build: Callable[[], str]) -> str | None:
        """Return a card or the report, or None with a warning: a bug in one must not fail the run.

        Raises EtlError and OSError: a signal or a failing disk is not a bug in them.
        """
        try:
            return build()
        except (EtlError, OSError):
            raise
        except Exception as error:
            log.debug("%s failed.", name, exc_info=error)
            again = " `bpr-etl report SNAPSHOT` tries again." if name == REPORT else ""
            self.result.warnings.append(
                f"{name} could not be made ({type(error).__name__}, a bug); all else is complete.{again}"
            )
            return None

    def write_manifest(self, summary: DataSummary) -> str | None:
        """Write the manifest, the last file. Returns the snapshot's name, None if nothing has changed."""
        if summary.name is not None:
            facts = self.result.manifest_facts(self.context.settings, self.context.clock())
            write_manifest(self.staged, summary.name, facts, summary)
        return summary.name

    def make_latest(self, name: str | None) -> None:
        """Make the staged snapshot the newest, after the database's COMMIT. From here on, a run can't be cancelled."""
        settings, store, result = self.context.settings, self.context.store, self.result
        if settings.dry_run:
            if name is not None:
                probe_afterwards(settings, result, partial(run_probe, open_snapshot(self.staged), settings))
            return
        result.stop.begin_critical()
        if name is None:
            result.notes.append("The data are those of the newest snapshot, byte by byte: nothing was published.")
            return
        try:
            with result.step("switch"):
                store.publish(self.staged, name)
            result.snapshot = store.location_of(name)
        except (OSError, ConnectError) as error:
            advice = "The database has been written, and the next run publishes what it holds."
            why = (error.strerror if isinstance(error, OSError) else None) or str(error).rstrip(".")
            raise ConnectError(
                f"The snapshot could not be put in place in {settings.out}: {why}. "
                f"{advice if result.committed else 'Run again.'}"
            ) from error
        if settings.keep is not None:
            self._prune(settings.keep)

    def _prune(self, keep: int) -> None:
        """Delete the oldest snapshots. A failure is a warning: the run's own work is done."""
        try:
            with self.result.step("prune") as rows:
                removed = prune(self.context.store, keep, self.context.clock())
                rows(len(removed.removed))
            if removed.removed:
                what = ", ".join(removed.removed)
                self.result.notes.append(f"Snapshots removed (--keep {keep}): {what}; {format_bytes(removed.bytes)}.")
        except (OSError, EtlError) as error:
            self.result.warnings.append(f"Old snapshots could not be removed: {error} The next run tries again.")
