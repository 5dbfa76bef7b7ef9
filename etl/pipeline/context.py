"""What run, export and expand share: the settings, the clock, the executor, the locked output location, the result."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from etl.postgres.naming import Relation
from etl.reporting.history import Metric, PreviousRun
from etl.runtime.cancellation import CancelToken
from etl.runtime.executor import Executor
from etl.runtime.files import require_open_files, temporary_folder
from etl.runtime.ray_executor import open_executor
from etl.runtime.run_record import Progress, ProgressObserver, RunObserver, RunRecord
from etl.settings.model import Settings
from etl.settings.sources import with_options
from etl.snapshots.publish import locked_store
from etl.snapshots.reading.snapshot import read_vocabulary
from etl.snapshots.stores.locations import local_snapshot, open_store
from etl.snapshots.stores.store import Store
from etl.triples.vocabulary import Vocabulary

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Returns the time now, in UTC: the clock of a run that is given no other."""
    return datetime.now(UTC)


def prepare(
    settings: Settings | None, options: Mapping[str, Any], stop: CancelToken | None
) -> tuple[Settings, CancelToken]:
    """Resolve the settings of a run. Raises SettingsError, and ConnectError if the process may open too few files."""
    resolved = with_options(settings, options)
    require_open_files()
    return resolved, stop or CancelToken()


@dataclass
class RunResult(RunRecord):
    """What a run did: seconds and rows per step, counts, notes, warnings, and where the snapshot is.

    `snapshot` is None if nothing was published (a dry run, or `skip_unchanged` with the newest snapshot's data).
    `committed` says whether the database was written. `counts` are those of the manifest. `previous_runs` are the last
    snapshots before this one in the same --out, oldest first; `metrics` are this run's figures compared with theirs.
    `relations` are the models' tables, none without a database.

    Steps are in the order in which they began. Some run at the same time (the server receives the COPY while files are
    written), so their seconds add up to more than the `seconds` of the run.
    """

    previous_runs: list[PreviousRun] = field(default_factory=list)
    metrics: list[Metric] = field(default_factory=list)
    relations: Mapping[str, Relation] = field(default_factory=dict, repr=False, compare=False)


def new_result(
    clock: Clock, stop: CancelToken, progress: Progress | RunObserver | None, notes: Sequence[str] = ()
) -> RunResult:
    """Begin a run, or a new attempt of one. Returns a result with a new id. `progress` may be a function or an observer."""
    if not isinstance(progress, RunObserver):
        progress = RunObserver() if progress is None else ProgressObserver(progress)
    return RunResult(uuid.uuid4().hex, clock(), notes=list(notes), stop=stop, observer=progress)


@dataclass(frozen=True)
class RunContext:
    """What stays the same in all attempts of a run. `store` is the output location, locked."""

    settings: Settings
    clock: Clock
    executor: Executor
    store: Store


@contextmanager
def open_context(settings: Settings, clock: Clock, stop: CancelToken) -> Iterator[RunContext]:
    """Start the executor and lock the output location for the length of a block."""
    with open_executor(settings.engine, settings.environ, stop) as executor, _open_output(settings, stop) as store:
        yield RunContext(settings, clock, executor, store)


@contextmanager
def _open_output(settings: Settings, stop: CancelToken) -> Iterator[Store]:
    """Lock the output location; a dry run gets a temporary folder instead."""
    if not settings.dry_run:
        with locked_store(settings.out, settings.lock_timeout, stop, settings.environ) as store:
            yield store
        return
    parent = temporary_folder()
    with tempfile.TemporaryDirectory(prefix="bpr-etl-dry-run-", dir=parent) as folder, locked_store(folder) as store:
        yield store


def previous_vocabulary(settings: Settings) -> Vocabulary:
    """Returns the vocabulary whose indexes are kept; empty without `vocab_from`, or if that is an `out` without snapshots."""
    if settings.vocab_from is None:
        return Vocabulary()
    own = Path(settings.vocab_from) == Path(settings.out)
    if own and open_store(settings.out, settings.environ).latest_name() is None:
        return Vocabulary()
    with local_snapshot(settings.vocab_from, settings.environ, ("users.parquet", "items.parquet")) as snapshot:
        return read_vocabulary(snapshot.folder)
