"""What the commands about a database do: check it, fill it, check and create its schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from etl.load import constraints as checks
from etl.load.copy import require_empty
from etl.postgres.connection import Connection, connect
from etl.postgres.naming import Naming
from etl.postgres.schema import check as schema_check
from etl.postgres.schema.mapping import find_relations
from etl.postgres.schema.proposal import propose
from etl.postgres.schema.side_effects import Finding
from etl.postgres.scope import Scope, resolve_scope
from etl.postgres.transaction import advisory_lock, require_lock, transaction
from etl.postgres.url import schema_of, target_of
from etl.runtime.cancellation import CancelToken
from etl.runtime.run_record import Progress, no_progress
from etl.settings.model import Settings
from etl.transform.ranking_events import MADE_ROWS


def validate_database(
    settings: Settings, stop: CancelToken | None = None, progress: Progress = no_progress
) -> checks.ValidationReport:
    """Run the checks on a database, in one snapshot of it. Writes nothing."""
    target = target_of(settings)
    with connect(target, stop) as connection:
        scope, _ = resolve_scope(connection, settings, schema_of(settings, target), writes=False, made=MADE_ROWS)
        with transaction(connection, read_only=True):
            return checks.validate_database(connection, scope, progress)


def synth(
    settings: Settings, stop: CancelToken | None = None, on_rows: Callable[[int], object] = lambda _rows: None
) -> dict[str, int]:
    """Fill a database with the synthetic world, in one transaction. Creates missing tables. Returns the rows by model.

    `on_rows` is called with the number of rows of each chunk that was written. Raises SettingsError if the tables hold
    rows and `into_existing` is not set.
    """
    from etl.synthetic.world import copy_world, generate  # noqa: PLC0415 - no other command needs it

    with _locked_transaction(settings, stop) as (connection, schema, _):
        naming = schema_check.naming_for_apply(connection, schema, settings.naming, settings.map)
        if not settings.into_existing:
            require_empty(connection, naming)
        schema_check.apply(connection, naming)
        chunks = generate(scale=settings.scale, seed=settings.seed)
        return copy_world(connection, Scope(naming, settings.shadow_prefix), chunks, on_rows)


def check_schema(settings: Settings, stop: CancelToken | None = None) -> list[Finding]:
    """Returns what is missing in the database, or does not fit."""
    target = target_of(settings)
    with connect(target, stop) as connection, transaction(connection, read_only=True):
        naming, _ = find_relations(connection, schema_of(settings, target), settings.naming, settings.map)
        return schema_check.check(connection, naming)


def propose_map(settings: Settings, stop: CancelToken | None = None) -> str:
    """Propose a mapping for a database: its tables, views and columns whose names are not the contract's."""
    target = target_of(settings)
    with connect(target, stop) as connection, transaction(connection, read_only=True):
        return propose(connection, schema_of(settings, target))


def apply_schema(settings: Settings, stop: CancelToken | None = None) -> list[str]:
    """Create what is missing, in one transaction. Returns the names of what was created."""
    with _locked_transaction(settings, stop) as (connection, schema, named):
        if not named:
            schema_check.require_no_application_elsewhere(connection, schema)
        return schema_check.apply(
            connection, schema_check.naming_for_apply(connection, schema, settings.naming, settings.map)
        )


@contextmanager
def _locked_transaction(settings: Settings, stop: CancelToken | None) -> Iterator[tuple[Connection, str, bool]]:
    """Open a transaction under the lock of the schema. Yields the connection, the schema, and whether it was named."""
    target = target_of(settings)
    schema = schema_of(settings, target)
    with (
        connect(target, stop) as connection,
        advisory_lock(connection, schema, settings.lock_timeout) as lock,
        transaction(connection),
    ):
        require_lock(connection, lock)
        yield connection, schema, bool(settings.schema or target.schema)


def naming_to_print(settings: Settings, stop: CancelToken | None = None) -> tuple[Naming, bool]:
    """Returns the naming for `schema print`, and whether it is certain: asked for, or found in the database.

    Without a database it is the naming by model.
    """
    target = target_of(settings) if settings.database_url else None
    schema = schema_of(settings, target) if target else settings.schema or "public"
    if target is None or (settings.naming != "auto" and not settings.map):
        return Naming("mapped" if settings.naming == "mapped" else "model", schema), settings.naming != "auto"
    with connect(target, stop) as connection:
        return schema_check.naming_for_apply(connection, schema, settings.naming, settings.map), True
