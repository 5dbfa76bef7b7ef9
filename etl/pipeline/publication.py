"""From a dataset to a published snapshot: staged, checked, probed if that is asked for, named, and made the newest.

What every command that publishes has in common; the database has no part in it but that its transaction ends between
`finish` and `switch`.
"""

from __future__ import annotations

import difflib
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.errors import ConnectError, DataError, EtlError
from etl.pipeline.guards import check_max_change, check_triples, comparison_skipped_note
from etl.reporting.history import (
    compare,
    compare_with_history,
    misdated,
    previous_runs,
    prune,
    published,
    run_metrics,
)
from etl.reporting.page import build_report
from etl.runtime.cancellation import CancelToken
from etl.runtime.executor import LOCAL_EXECUTOR, Executor
from etl.runtime.run_record import Progress, RunResult
from etl.runtime.temporary import temporary_folder
from etl.settings.model import Settings
from etl.settings.values import advice
from etl.snapshots.locations import open_store
from etl.snapshots.manifest import DataSummary, build_manifest
from etl.snapshots.publish import (
    locked_store,
    snapshot_name,
    write_manifest,
    write_probe,
    write_sidecar,
)
from etl.snapshots.reader import REPORT, Snapshot
from etl.snapshots.store import Store
from etl.snapshots.writer import StageOptions, write_data_files
from etl.transform.affinity import affinity_model
from etl.triples.dataset import Dataset
from etl.triples.partitions import MIN_CORRELATION, TripleOptions

if TYPE_CHECKING:
    from etl.evaluation.probe import ProbeResult

Clock = Callable[[], datetime]

log = logging.getLogger(__name__)

_MISDATED = (
    "This machine's clock is wrong, or another's was. No run is compared with them once another is "
    "the newest, and --keep takes them away first; remove them when nobody reads them any more."
)


def no_progress(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody watches."""


@contextmanager
def open_output(settings: Settings, stop: CancelToken | None = None) -> Iterator[Store]:
    """The output folder, held; for a dry run a folder of its own, which goes with the run."""
    if not settings.dry_run:
        with locked_store(settings.out, settings.lock_timeout, stop, settings.environ) as store:
            yield store
        return
    place = temporary_folder()
    with tempfile.TemporaryDirectory(prefix="bpr-etl-dry-run-", dir=place) as folder, locked_store(folder) as store:
        yield store


@dataclass(frozen=True)
class Publication:
    """One snapshot on its way: what it is made with, where it is staged, and the account that is kept of it."""

    settings: Settings
    report: RunResult
    out: Store
    staged: Path
    scratch: Path
    clock: Clock
    progress: Progress
    engine: Executor = LOCAL_EXECUTOR

    def __post_init__(self) -> None:
        now = self.clock()
        with suppress(ConnectError):  # no reason not to publish, and where there is one, that will be said
            # A dry run looks at those where it would publish.
            store = open_store(self.settings.out, self.settings.environ) if self.settings.dry_run else self.out
            self.report.previous_runs = previous_runs(store, published(store, now))
            if odd := misdated(store, now):
                self.report.warnings.append(f"Snapshots are {odd}. {_MISDATED}")

    def publish(self, dataset: Dataset) -> None:
        """All of it, where no database has to agree first."""
        self.make_latest(self.write_manifest(self.stage(dataset)))

    def stage(self, dataset: Dataset) -> DataSummary:
        """Write and check the snapshot's data files, take over their account, and probe them if that is asked for.

        Raises DataError where they are not what was meant, where there are no triples to train on, or where the probe's AUC is
        below `fail_below`.
        """
        settings, report = self.settings, self.report
        options = StageOptions(training_options(settings), settings.ids, settings.rows_per_file)
        with report.step("stage files") as rows:
            account = write_data_files(dataset, options, self.staged, self.scratch, self.progress, executor=self.engine)
            report.counts["published"] = account.counts(dataset)
            rows(sum(report.counts["published"]["triples"].values()))
        published = report.counts["published"]
        triples = account.triples_of(settings.split.parts)
        report.warnings += check_triples(triples, settings.split, published, allowed=settings.may_be_empty)
        report.warnings += [*_unknown_cities(settings, account), *_bias_warnings(settings, account)]
        self._compare()
        if settings.probe or settings.fail_below is not None:
            self._probe(account)
        self._finalize(account, dataset)
        return account

    def _compare(self) -> None:
        """Say what moved too far since the nights before. Raises DataError where that is to stop the night."""
        settings, report = self.settings, self.report
        report.metrics = compare_with_history(
            report.previous_runs, settings.manifest_settings(), run_metrics(report.counts), self.clock()
        )
        if settings.max_change is None:
            return
        compared = compare(report.previous_runs, settings.manifest_settings(), report.metrics, settings.max_change)
        report.warnings += check_max_change(compared, settings.max_change, stops=settings.fail_on_change)
        report.notes += comparison_skipped_note(compared)

    def _probe(self, account: DataSummary) -> None:
        with self.report.step("probe"):
            files = [asdict(entry) for entry in account.files]
            manifest = {"settings": self.settings.manifest_settings(), "cities": account.folders, "files": files}
            found = run_probe(Snapshot(self.staged, manifest), self.settings, self.progress)
        check_auc(found, self.settings, "Nothing was committed or published.")
        account.sidecars.append(write_probe(self.staged, found.facts))
        self.report.counts["probe"] = found.manifest_entry()
        self.report.warnings += found.warnings()

    def _finalize(self, account: DataSummary, dataset: Dataset) -> None:
        """Name the snapshot, make its report, and have its files where they can't be lost; no name where nothing has changed.

        Before the backfill locks rows that the application may want: to an object store, this is the upload.
        """
        latest = self.out.latest() if self.settings.skip_unchanged else None
        if latest and latest.get("content_sha256") == account.content_sha256:
            return
        now = self.clock()
        account.name = snapshot_name(account, now)
        with self.report.step("report"):
            manifest = build_manifest(account.name, self.report.manifest_facts(self.settings, now), account)
            page = self._build_report(manifest, dataset)
            if page is not None:
                account.sidecars.append(write_sidecar(self.staged, REPORT, page.encode()))
        with self.report.step("secure files"):
            self.out.persist(self.staged, account.name)

    def _build_report(self, manifest: dict[str, Any], dataset: Dataset) -> str | None:
        """Return the report, or None with a warning: the report is for people, and a bug in it must not fail the run.

        Raises EtlError and OSError: a signal or a failing disk is no fault of the report.
        """
        runs, affinity = self.report.previous_runs, affinity_model().default_affinity
        try:
            return build_report(manifest, self.staged, dataset, runs, affinity, self.progress)
        except (EtlError, OSError):
            raise
        except Exception as error:
            log.debug("The report failed.", exc_info=error)
            self.report.warnings.append(
                f"{REPORT} could not be made ({type(error).__name__}, a bug); all else is complete. "
                "`bpr-etl report SNAPSHOT` tries again."
            )
            return None

    def write_manifest(self, account: DataSummary) -> str | None:
        """Write the manifest, last; gives the snapshot's name, None where nothing has changed and that is not published."""
        if account.name is not None:
            write_manifest(self.staged, account.name, self.report.manifest_facts(self.settings, self.clock()), account)
        return account.name

    def make_latest(self, name: str | None) -> None:
        """Make the staged snapshot the newest, now that the database has what it says. Nothing stops it from here on."""
        self.report.stop.begin_critical()
        if self.settings.dry_run:
            self.report.notes.append("Dry run: all of it was done and rolled back; nothing was published.")
        elif name is None:
            self.report.notes.append("The data are those of the newest snapshot, byte by byte: nothing was published.")
        else:
            try:
                with self.report.step("switch"):
                    self.out.publish(self.staged, name)
                self.report.snapshot = self.out.location_of(name)
            except (OSError, ConnectError) as error:
                written = "The database has been written, and the next run publishes what it holds."
                why = (error.strerror if isinstance(error, OSError) else None) or str(error).rstrip(".")
                raise ConnectError(
                    f"The snapshot could not be put in place in {self.settings.out}: {why}. "
                    f"{written if self.report.committed else 'Run again.'}"
                ) from error
            if self.settings.keep is not None:
                self._prune(self.settings.keep)

    def _prune(self, keep: int) -> None:
        """Take the oldest snapshots away. That fails no night: what was to be done is done."""
        try:
            with self.report.step("prune") as rows:
                rows(len(prune(self.out, keep, self.clock()).removed))
        except (OSError, EtlError) as error:
            self.report.warnings.append(f"Old snapshots could not be removed: {error} The next run tries again.")


def run_probe(snapshot: Snapshot, settings: Settings, progress: Progress) -> ProbeResult:
    """What a probe of a snapshot finds. Raises DataError where its split holds nothing out, or has nothing to train on."""
    from etl.evaluation.holdout import build_task  # noqa: PLC0415
    from etl.evaluation.probe import probe  # noqa: PLC0415 - a night without a probe need not wait for it

    asked = build_task(snapshot)
    if not asked.test:
        raise DataError(
            f"The split {asked.split} holds no place out: no user has a trip in it that can be ranked, so the triples "
            "can't be probed. Say another --split, or leave the probe out."
        )
    if not len(asked.train.users):
        raise DataError(
            f"Before the test part of the split {asked.split} there are no triples, so there is nothing to probe. Say another "
            "--split, or leave the probe out."
        )
    return probe(asked, affinity_model().default_affinity, settings.seed, progress)


def check_auc(found: ProbeResult, settings: Settings, after: str) -> None:
    """Raise DataError where the model's AUC is below `fail_below`; `after` says what has become of the snapshot."""
    ours, popularity = found.auc
    if settings.fail_below is not None and not ours >= settings.fail_below:
        raise DataError(
            f"A model trained on these triples has AUC {ours:.3f}, and --fail-below asks for "
            f"{settings.fail_below:g} (popularity has {popularity:.3f}). {after} {found.advice}"
        )


def training_options(settings: Settings) -> TripleOptions:
    """What decides the triples, of all the settings."""
    return TripleOptions(**{f.name: getattr(settings, f.name) for f in fields(TripleOptions)})


def _unknown_cities(settings: Settings, account: DataSummary) -> Iterator[str]:
    """A weight for a city without events does nothing: said, since it may be a slip of the pen."""
    cities = sorted(account.folders.values())
    for city, _ in settings.city_weight:
        if city not in cities:
            near = difflib.get_close_matches(city, cities, 1)
            yield f"--city-weight names {city!r}, where no event is" + (f"; did you mean {near[0]!r}?" if near else ".")


def _bias_warnings(settings: Settings, account: DataSummary) -> Iterator[str]:
    """The cities whose triples are likely to teach badly, by the sign that needs no training."""
    low = {
        city: value
        for city, value in account.popularity_correlation.items()
        if value is not None and value < MIN_CORRELATION
    }
    if low:
        named = ", ".join(f"{city} {value:.2f}" for city, value in low.items())
        yield (
            f"These triples may teach the opposite of what people like: places that are chosen often are not oftener positives "
            f"than negatives (rank correlation {named}; it should be {MIN_CORRELATION} or more). {advice(settings.negatives)} "
            "`bpr-etl probe` measures it; docs/negatives.md explains."
        )
