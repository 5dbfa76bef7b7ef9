"""OpenLineage events of run, export and expand: START, then COMPLETE, ABORT (cancelled) or FAIL.

They are sent where the extra `lineage` is installed and the environment says where to: OPENLINEAGE_URL, OPENLINEAGE_CONFIG or
OPENLINEAGE__..., which the OpenLineage client reads itself. A thread of its own makes and sends them, so that a server that
refuses or hangs is a warning, and delays the end of a run by PATIENCE_SECONDS at most.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from importlib.util import find_spec
from queue import SimpleQueue
from typing import Any, ParamSpec, cast

from etl.errors import EtlError
from etl.pipeline.context import Clock, RunResult, prepare, utc_now
from etl.postgres.naming import Relation
from etl.postgres.url import target_of
from etl.runtime.cancellation import CancelledError, CancelToken
from etl.runtime.resources import __version__
from etl.runtime.run_record import Progress, RunObserver
from etl.settings.model import Settings
from etl.snapshots.publish import split_location
from etl.snapshots.reading.batches import scan_files
from etl.snapshots.reading.snapshot import SNAPSHOTS, Snapshot
from etl.snapshots.stores.locations import open_snapshot

log = logging.getLogger(__name__)
P = ParamSpec("P")
_Datasets = dict[str, list[Any]]
"""The arguments `inputs` and `outputs` of an event."""

PATIENCE_SECONDS = 2.0
"""For how long the end of a run waits for its events to be sent."""

PRODUCER = f"urn:bpr-etl:{__version__}"
_VARIABLES = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG", "OPENLINEAGE__TRANSPORT")
_MODELS = {
    "users": "User",
    "trips": "Trip",
    "slots": "ItinerarySlot",
    "nodes": "ActivityNode",
    "events": "RankingEvent",
    "personas": "PersonaDimension",
}
"""The models of the manifest's `source_rows`."""
_READ_BY_EXPAND = ("events", "users", "items", "trips")


def with_lineage(work: Callable[P, RunResult]) -> Callable[P, RunResult]:
    """Decorate `run`, `export` or `expand` so that its calls send events. A dry run sends none."""

    @wraps(work)
    def reported(
        settings: Settings | None = None,
        clock: Clock = utc_now,
        progress: Progress | RunObserver | None = None,
        stop: CancelToken | None = None,
        **options: Any,
    ) -> RunResult:
        settings, stop = prepare(settings, options, stop)
        call = partial(cast(Callable[..., RunResult], work), settings, clock, progress, stop)
        if settings.dry_run or not _is_on(settings.environ):
            return call()
        with _sender(work.__name__, settings.environ) as send:
            send("START", dict)
            try:
                result = call()
            except BaseException as error:
                send("ABORT" if isinstance(error, CancelledError) else "FAIL", partial(_failure, error))
                raise
            send("COMPLETE", partial(_datasets, settings, result))
            return result

    return cast(Callable[P, RunResult], reported)


def _is_on(environ: Mapping[str, str]) -> bool:
    named = [name for name in environ if name.startswith(_VARIABLES)]
    if not named or environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    if find_spec("openlineage") is None:
        log.info("%s is set, but OpenLineage is not installed: pip install 'bpr-etl[lineage]'.", named[0])
        return False
    return True


@contextmanager
def _sender(job: str, environ: Mapping[str, str]) -> Iterator[Callable[[str, Callable[[], dict[str, Any]]], None]]:
    """Yield a function that queues an event: its type, and what makes its `inputs`, `outputs` and `facets` of the run."""
    queue: SimpleQueue[Callable[[Any], None] | None] = SimpleQueue()
    run_id, namespace = str(uuid.uuid4()), environ.get("OPENLINEAGE_NAMESPACE", "default")

    def send(state: str, make: Callable[[], dict[str, Any]]) -> None:
        queue.put(partial(_emit, state, utc_now().isoformat(), run_id, (namespace, f"bpr-etl.{job}"), make))

    thread = threading.Thread(target=_deliver, args=(queue,), daemon=True, name="lineage")
    thread.start()
    try:
        yield send
    finally:
        queue.put(None)
        thread.join(PATIENCE_SECONDS)
        if thread.is_alive():
            log.warning("Events for OpenLineage were not sent within %g s. The run is not affected.", PATIENCE_SECONDS)


def _deliver(queue: SimpleQueue[Callable[[Any], None] | None]) -> None:
    """Send what is queued, until None. A failure is a warning without the error's text, which may hold a URL's password."""
    client, failed = None, ""
    while (emit := queue.get()) is not None:
        try:
            if client is None:
                from openlineage.client import OpenLineageClient  # noqa: PLC0415 - an extra, and slow to import

                client = OpenLineageClient()
            emit(client)
        except Exception as error:  # noqa: BLE001 - no failure of OpenLineage is the run's
            failed = type(error).__name__
    if failed:
        log.warning("Events for OpenLineage could not be sent (%s). The run is not affected.", failed)


def _emit(
    state: str, time: str, run_id: str, job: tuple[str, str], make: Callable[[], dict[str, Any]], client: Any
) -> None:
    from openlineage.client import event_v2, facet_v2  # noqa: PLC0415

    facets = {
        "jobType": facet_v2.job_type_job.JobTypeJobFacet("BATCH", "BPR-ETL", "COMMAND", producer=PRODUCER),
    }
    engine = facet_v2.processing_engine_run.ProcessingEngineRunFacet(__version__, "bpr-etl", producer=PRODUCER)
    made = make()
    run = event_v2.Run(run_id, {"processing_engine": engine, **made.pop("facets", {})})
    event = event_v2.RunEvent(
        eventType=event_v2.RunState(state),
        eventTime=time,
        run=run,
        job=event_v2.Job(*job, facets),
        producer=PRODUCER,
        **made,
    )
    client.emit(event)


def _failure(error: BaseException) -> dict[str, Any]:
    """Return the facet of a failure. Only the messages of `EtlError` are known to hold no secret."""
    from openlineage.client.facet_v2 import error_message_run  # noqa: PLC0415

    text = f"{error} (exit code {error.exit_code})" if isinstance(error, EtlError) else type(error).__name__
    return {"facets": {"errorMessage": error_message_run.ErrorMessageRunFacet(text, "Python", producer=PRODUCER)}}


def _datasets(settings: Settings, result: RunResult) -> _Datasets:
    """Return the tables that were read and written, and the tables of the old and of the new snapshot."""
    inputs, outputs = [], []
    if result.relations:
        database = partial(_database_table, settings, result.relations)
        for name, rows in result.counts["source_rows"].items():
            inputs.append(_dataset("Input", *database(_MODELS[name]), rows=rows))
        if result.committed:
            written = {model: count["inserted"] for model, count in result.counts["written"].items()}
            written["BehavioralSignal"] = result.counts["signals_backfilled"]
            outputs += [_dataset("Output", *database(model), rows=rows) for model, rows in written.items()]
    if name := result.counts.get("expanded_from"):
        inputs += _snapshot_tables("Input", _expanded(settings.snapshot or settings.out, name), _READ_BY_EXPAND)
    if result.snapshot:
        outputs += _snapshot_tables("Output", open_snapshot(result.snapshot))
    return {"inputs": inputs, "outputs": outputs}


def _database_table(
    settings: Settings, relations: Mapping[str, Relation], model: str
) -> tuple[str, str, dict[str, str | None]]:
    """Return namespace, name and columns of a model's table, as OpenLineage names those of PostgreSQL."""
    parts, relation = target_of(settings).parts, relations[model]
    # Several hosts are one database; a socket's folder is no host.
    host, port = (parts.get(key, "").split(",")[0] for key in ("host", "port"))
    namespace = f"postgres://{'localhost' if host.startswith('/') or not host else host}:{port or 5432}"
    columns = {column.name: None for column in relation.columns.values() if column.name is not None}
    return namespace, f"{parts.get('dbname', '')}.{relation.schema}.{relation.name}", dict(columns)


def _expanded(location: str, name: str) -> Snapshot:
    """Open the snapshot that `expand` read, by its --out, whose newest is another one by now, or by its own location."""
    try:
        return open_snapshot(f"{location.rstrip('/')}/{SNAPSHOTS}/{name}")
    except EtlError:
        return open_snapshot(location)


def _snapshot_tables(side: str, snapshot: Snapshot, names: tuple[str, ...] = ()) -> list[Any]:
    """Return the tables of a snapshot, by default all. A dataset's name is the same in every snapshot of an --out."""
    out, _ = split_location(snapshot) or (snapshot.url or str(snapshot.folder.resolve()), "")
    scheme, separator, rest = out.partition("://")
    bucket, _, prefix = rest.partition("/")
    namespace, root = (f"{scheme}://{bucket}", prefix) if separator else ("file", out)
    tables: dict[str, list[Any]] = {}
    for path, entry in snapshot.files.items():
        if path.endswith(".parquet"):
            tables.setdefault(path.partition("/")[0].removesuffix(".parquet"), []).append(entry)
    return [
        _dataset(
            side,
            namespace,
            f"{root}/{name}".lstrip("/" if separator else ""),
            _columns(snapshot, name, files[0].path),
            rows=sum(each.rows for each in files),
            size=sum(each.bytes for each in files),
            version=snapshot.manifest["snapshot"],
        )
        for name, files in sorted(tables.items())
        if not names or name in names
    ]


def _columns(snapshot: Snapshot, name: str, path: str) -> dict[str, str | None]:
    """Return the columns of a table and their types, those of its partitions included."""
    whole = path == f"{name}.parquet"
    rows = scan_files([snapshot.source(path)]) if whole else snapshot.scan(cast(Any, name))
    return {column: str(kind) for column, kind in rows.collect_schema().items()}


def _dataset(
    side: str,
    namespace: str,
    name: str,
    columns: Mapping[str, str | None],
    *,
    rows: int,
    size: int | None = None,
    version: str | None = None,
) -> Any:
    from openlineage.client import event_v2, facet_v2  # noqa: PLC0415

    fields = [facet_v2.schema_dataset.SchemaDatasetFacetFields(column, kind) for column, kind in columns.items()]
    facets = {"schema": facet_v2.schema_dataset.SchemaDatasetFacet(fields, producer=PRODUCER)}
    if version is not None:
        of_version = facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet
        facets["version"] = of_version(version, producer=PRODUCER)
    if side == "Input":
        read = facet_v2.input_statistics_input_dataset.InputStatisticsInputDatasetFacet
        counted = {"inputStatistics": read(rows, size, producer=PRODUCER)}
        return event_v2.InputDataset(namespace, name, counted, facets=facets)
    wrote = facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
    counted = {"outputStatistics": wrote(rows, size, producer=PRODUCER)}
    return event_v2.OutputDataset(namespace, name, counted, facets=facets)
