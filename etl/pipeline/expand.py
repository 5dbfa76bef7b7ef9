"""`bpr-etl expand`: publish other triples from the events of an older snapshot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from etl.errors import DataError, SettingsError
from etl.pipeline.context import Clock, RunResult, new_result, open_context, prepare, utc_now
from etl.pipeline.lineage import with_lineage
from etl.pipeline.publication import open_publication
from etl.pipeline.published import probe_published
from etl.runtime.cancellation import CancelToken
from etl.runtime.run_record import Progress, RunObserver
from etl.settings.model import Settings
from etl.snapshots.reading.snapshot import Snapshot, read_dataset
from etl.snapshots.stores.locations import local_snapshot

_REQUIRED_FILES = ("events/", "users.parquet", "items.parquet", "trips.parquet")
_INHERITED_SETTINGS = ("schema", "naming", "shadow_prefix", "shadow_domain", "audience", "vocab_from")
"""Settings that decided the old snapshot's events: taken from its manifest, not from the options."""


@with_lineage
def expand(
    settings: Settings | None = None,
    clock: Clock = utc_now,
    progress: Progress | RunObserver | None = None,
    stop: CancelToken | None = None,
    **options: Any,
) -> RunResult:
    """Publish other triples of an old snapshot's events, with other options. Needs no database.

    Arguments as in `run`. Raises an `EtlError`: ConnectError or DataError if the old snapshot can't be read.
    """
    settings, stop = prepare(settings, options, stop)
    result = new_result(clock, stop, progress)
    with local_snapshot(settings.snapshot or settings.out, settings.environ, _REQUIRED_FILES, stop) as old:
        with result.step("read") as rows:
            dataset = read_dataset(old, settings.buckets)
            rows(dataset.events.height)
        result.counts["expanded_from"] = old.manifest["snapshot"]
        with (
            open_context(_inherit_settings(settings, old), clock, stop) as context,
            open_publication(context, result) as publication,
        ):
            publication.publish(dataset)
    probe_published(settings, result)
    return result


def _inherit_settings(settings: Settings, old: Snapshot) -> Settings:
    """Returns the settings with those that decided the snapshot's events. Raises DataError if these are invalid."""
    inherited = {name: old.settings[name] for name in _INHERITED_SETTINGS if name in old.settings}
    try:
        return replace(settings, **inherited)
    except SettingsError as error:
        raise DataError(f"The manifest of {old.url or old.folder} has invalid settings: {error}") from None
