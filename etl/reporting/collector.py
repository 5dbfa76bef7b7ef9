"""A snapshot's report: made while a night is under way, or anew for a snapshot that is published."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from etl.errors import EtlError
from etl.reporting.event_stats import EventStats
from etl.reporting.history import PreviousRun
from etl.runtime.run_record import Progress
from etl.snapshots.reader import Snapshot, read_dataset
from etl.triples.dataset import Dataset

log = logging.getLogger(__name__)

REQUIRED_FILES = ("events/", "users.parquet", "items.parquet", "trips.parquet", "probe.json")
"""What of a snapshot a report is made from."""

_WANTED = ("candidate_idx", "selected_idx")


class ReportCollector:
    """Looks at a night's events as they pass by, and makes the report of them in the end.

    A report is for people: where it can't be made, the night goes on without, and `failure` says what happened.
    """

    def __init__(self, dataset: Dataset, unknown: float) -> None:
        self.failure: Exception | None = None
        self._trips = dataset.trips.height
        try:
            self._tally = EventStats.of(dataset, unknown)
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def observe(self, events: pl.DataFrame) -> None:
        """Count a bucket's events."""
        if self.failure is None:
            try:
                self._tally.add(events)
            except Exception as error:  # noqa: BLE001
                self._fail(error)

    def render(self, manifest: Mapping[str, Any], folder: Path, nights: Sequence[PreviousRun]) -> str | None:
        """The page; None where it could not be made. Raises EtlError and OSError: a disk that fails is no fault of a report."""
        if self.failure is not None:
            return None
        from etl.reporting.page import render  # noqa: PLC0415 - charts take a third of a second to load

        try:
            return render(manifest, folder, self._tally, self._trips, nights)
        except (EtlError, OSError):
            raise
        except Exception as error:  # noqa: BLE001
            self._fail(error)
            return None

    def _fail(self, error: Exception) -> None:
        self.failure = error
        log.debug("The report failed.", exc_info=error)


def rebuild(
    snapshot: Snapshot,
    nights: Sequence[PreviousRun],
    unknown: float,
    progress: Progress,
    probe: Mapping[str, Any] | None = None,
) -> str:
    """The page of a published snapshot, from its files, with the nights before it, and what a probe found if that is given.

    Raises ConnectError or DataError where they can't be read.
    """
    from etl.reporting.page import render  # noqa: PLC0415

    dataset = read_dataset(snapshot)
    tally = EventStats.of(dataset, unknown)
    for number, events in enumerate(dataset.events.select(_WANTED)):
        progress("read events", number, dataset.events.buckets)
        tally.add(events)
    return render(snapshot.manifest, snapshot.folder, tally, dataset.trips.height, nights, probe)
