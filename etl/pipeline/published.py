"""Work on a published snapshot: probe its triples, rebuild its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.errors import DataError, EtlError
from etl.pipeline.guards import check_auc
from etl.reporting.event_stats import count_events
from etl.reporting.history import previous_runs
from etl.reporting.page import REQUIRED_FILES, build_report
from etl.runtime.cancellation import CancelToken
from etl.runtime.run_record import Progress, no_progress
from etl.settings.model import Settings
from etl.snapshots.publish import add_probe, add_sidecars, split_location
from etl.snapshots.reading.snapshot import REPORT, Snapshot, read_dataset
from etl.snapshots.stores.locations import local_snapshot, open_store
from etl.snapshots.stores.store import UnlistableError
from etl.transform.personas import affinity_model

if TYPE_CHECKING:
    from etl.evaluation.probe import ProbeResult
    from etl.pipeline.context import RunResult


def probe(settings: Settings, progress: Progress = no_progress, stop: CancelToken | None = None) -> ProbeResult:
    """Train a small model on a published snapshot's triples, and write the result into the snapshot and its report.

    Raises ConnectError or DataError if the snapshot can't be read; DataError if nothing is held out, or, after the
    result was written, if the AUC is below `fail_below`.
    """
    with local_snapshot(settings.snapshot or settings.out, settings.environ, stop=stop or CancelToken()) as snapshot:
        found = run_probe(snapshot, settings, progress)
        probed = add_probe(snapshot, found.facts, found.manifest_entry(), settings.environ)
        _add_report(probed, settings, progress, found.facts)
    check_auc(found, settings, "It was published all the same.")
    return found


def probe_published(settings: Settings, result: RunResult) -> None:
    """Probe the snapshot that a run, an export or an expansion has just published, if that was requested."""
    if result.snapshot is not None:
        result.stop.end_critical()  # the run's own work is done
        # Absolute, since the name of a folder may look like a URL.
        location = result.snapshot if "://" in result.snapshot else str(Path(result.snapshot).absolute())
        measure = partial(probe, replace(settings, snapshot=location), stop=result.stop)
        probe_afterwards(settings, result, measure)


def probe_afterwards(settings: Settings, result: RunResult, measure: Callable[..., ProbeResult]) -> None:
    """Probe after the run's own work, unless `fail_below` already did. A failure or a signal becomes a warning."""
    if not settings.probe or settings.fail_below is not None:
        return
    try:
        with result.step("probe"):
            found = measure(progress=result.progress)
    except EtlError as error:
        result.warnings.append(f"The probe was not made: {error}")
        return
    result.counts["probe"] = found.manifest_entry()
    result.warnings += found.warnings()


def report(settings: Settings, progress: Progress = no_progress, stop: CancelToken | None = None) -> str:
    """Rebuild the report of a published snapshot, compared with earlier runs as they are now. Returns its location.

    Raises ConnectError or DataError if the snapshot can't be read, LockedError if a run writes to its location.
    """
    stop = stop or CancelToken()
    with local_snapshot(settings.snapshot or settings.out, settings.environ, REQUIRED_FILES, stop) as snapshot:
        _add_report(snapshot, settings, progress)
        return f"{snapshot.url or snapshot.folder}/{REPORT}"


def run_probe(snapshot: Snapshot, settings: Settings, progress: Progress) -> ProbeResult:
    """Train and measure on a snapshot. Raises DataError if its split holds nothing out, or has nothing to train on."""
    from etl.evaluation.holdout import build_task  # noqa: PLC0415
    from etl.evaluation.probe import probe  # noqa: PLC0415 - slow to import, and most runs have no probe

    task = build_task(snapshot, settings.seed)
    if not task.test:
        raise DataError(
            f"The split {task.split} holds no item out: no user has a trip in it that can be ranked, so the triples "
            "can't be probed. Choose another --split, or omit the probe."
        )
    if not task.train.height and not task.has_next:
        raise DataError(
            f"Before the test part of the split {task.split} there are no triples, so there is nothing to probe. Choose "
            "another --split, or omit the probe."
        )
    return probe(task, affinity_model().default_affinity, settings.seed, progress, controls=settings.controls)


def _add_report(
    snapshot: Snapshot, settings: Settings, progress: Progress, probe: Mapping[str, Any] | None = None
) -> None:
    """Write a snapshot's report into it; `probe` is a new result, by default the one that the snapshot holds."""
    location = split_location(snapshot)
    earlier = []
    if location is not None:
        store = open_store(location[0], settings.environ)
        with suppress(UnlistableError):
            earlier = previous_runs(store, [name for name in store.folders() if name < location[1]])
    dataset, affinity = read_dataset(snapshot), affinity_model().default_affinity
    stats = count_events(dataset, affinity, progress)
    page = build_report(snapshot.manifest, snapshot.folder, stats, dataset.trips.height, earlier, probe)
    add_sidecars(snapshot, {REPORT: page.encode()}, {}, settings.environ)
