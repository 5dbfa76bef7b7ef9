"""`bpr-etl export`: a snapshot of the ranking events that the database holds. Writes nothing to the database."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from etl.extract.reader import CODED_SLOTS, LOGGED_EVENTS, RejectedRows, count_filtered, extract_logged
from etl.pipeline.context import Clock, RunResult, new_result, open_context, prepare, previous_vocabulary, utc_now
from etl.pipeline.guards import (
    check_confirmed,
    check_rejected_share,
    check_scope,
    count_surfaces,
    rejected_shares,
)
from etl.pipeline.lineage import with_lineage
from etl.pipeline.publication import Publication, open_publication
from etl.pipeline.published import probe_published
from etl.postgres.connection import Connection, connect
from etl.postgres.naming import MODELS
from etl.postgres.scope import Scope, resolve_scope
from etl.postgres.transaction import ensure_tables_not_rewritten, is_open, retry_on_conflict, transaction
from etl.postgres.url import schema_of, target_of
from etl.runtime.cancellation import CancelToken
from etl.runtime.run_record import Progress, RunObserver
from etl.settings.model import Settings
from etl.transform.buckets import bucket_count, open_spill
from etl.transform.ranking_events import MADE_ROWS, add_shown, count_confirmed, sort_for_files, sort_slots
from etl.triples.dataset import ENCODED_EVENTS, Dataset, DatasetBuilder
from etl.triples.vocabulary import Vocabulary


@with_lineage
def export(
    settings: Settings | None = None,
    clock: Clock = utc_now,
    progress: Progress | RunObserver | None = None,
    stop: CancelToken | None = None,
    **options: Any,
) -> RunResult:
    """Publish the RankingEvent rows that are in the database. Writes nothing to it.

    Arguments and errors as in `run`.
    """
    settings, stop = prepare(settings, options, stop)
    earlier, target = previous_vocabulary(settings), target_of(settings)
    with ExitStack() as sessions:
        connection = sessions.enter_context(connect(target, stop))
        scope, _ = resolve_scope(connection, settings, schema_of(settings, target), writes=False, made=MADE_ROWS)
        with open_context(settings, clock, stop) as context:

            def attempt() -> RunResult:
                nonlocal connection
                if not is_open(connection):  # a standby may have ended the session of the attempt before
                    connection = sessions.enter_context(connect(target, stop))
                result, rejected = new_result(clock, stop, progress), RejectedRows()
                result.relations = scope.naming.relations
                with open_publication(context, result) as publication, ExitStack() as spills:
                    with transaction(connection, read_only=True):
                        check_scope(connection, scope, settings, result)
                        dataset, rows_read = dataset_from_logged_events(
                            connection, scope, earlier, publication, rejected, spills, step="read"
                        )
                        ensure_tables_not_rewritten(connection, map(scope.naming.table, MODELS))
                        result.counts |= count_filtered(connection, scope)
                    result.counts["source_rows"] = rows_read
                    check_rejected_share(settings, rejected_shares(result.counts, rejected.shares))
                    publication.publish(dataset)
                return result

            result, retries = retry_on_conflict(attempt, stop.sleep)
    result.retries = retries
    probe_published(settings, result)
    return result


def dataset_from_logged_events(
    connection: Connection,
    scope: Scope,
    earlier: Vocabulary,
    publication: Publication,
    rejected: RejectedRows,
    spills: ExitStack,
    *,
    step: str,
) -> tuple[Dataset, dict[str, int]]:
    """Read the audience's ranking events, including those that other programs logged. `step` names the step.

    Returns the dataset, and the rows read by table. The dataset reads from files that `spills` deletes when it closes.
    """
    settings, result = publication.context.settings, publication.result
    with result.step(step) as rows:
        count = count_surfaces(connection, scope, settings, result)
        buckets = settings.buckets or bucket_count(count)
        events, slots, encoded = (
            spills.enter_context(open_spill(publication.scratch, buckets, empty))
            for empty in (LOGGED_EVENTS, CODED_SLOTS, ENCODED_EVENTS)
        )
        builder = DatasetBuilder(encoded)
        logged = extract_logged(connection, scope, settings.audience, rejected, (events, slots), builder.encode, rows)
    result.counts |= {"set_aside": rejected.counts, "events_left_out": logged.excluded}
    confirmed = []
    with result.step("compact"):
        for bucket in range(buckets):
            of_bucket = logged.events.read_bucket(bucket)
            if of_bucket.height:
                ordered = sort_slots(logged.slots.read_bucket(bucket))
                confirmed.append(count_confirmed(of_bucket, ordered))
                builder.add(bucket, add_shown(sort_for_files(of_bucket), ordered))
        dataset = builder.dataset(logged.users, logged.personas, logged.nodes, earlier)
    result.warnings += check_confirmed(confirmed, result)
    return dataset, logged.rows_read
