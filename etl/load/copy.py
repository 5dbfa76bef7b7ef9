"""Writes to the database: COPY into a table's columns, the two rows of the registry, and the backfill.

The registry and the backfill are verified within the transaction (docs/contract.md). No other users' rows are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import dataframely as dy
import polars as pl
import pyarrow as pa

from etl.errors import DataError, SchemaError, SettingsError
from etl.postgres.connection import Connection
from etl.postgres.naming import MODELS, Naming, quote_identifier, quote_literal
from etl.postgres.scope import Scope
from etl.transform.hashing import stable_id
from etl.transform.ranking_events import MODEL_NAME, MODEL_VERSION
from etl.transform.schemas import PersonaRows

REGISTRY = (
    (MODEL_NAME, MODEL_VERSION, "production", "llm_ranking", "Claude Sonnet-based ranking, bootstrap phase"),
    ("bpr", "0.0.0", "staging", "collaborative_filtering", "BPR placeholder, awaiting first training run"),
)
"""The rows that the design registers (docs/design.md): name, version, stage, type, description."""

COPY_BATCH = 1_000
"""Rows per batch that the driver serializes."""

_TEMPORARY = "bpr_etl_rows"

BACKFILL_VERSION = f"{MODEL_NAME}:{MODEL_VERSION}"

NULL_TEXT = "\x02"
"""Represents a null in the text of a row that is hashed."""

OURS = "xmin = (SELECT pg_current_xact_id_if_assigned()::xid)"
"""SQL: true for rows that the open transaction wrote, except those that triggers wrote in a subtransaction."""

# COPY stores a value of a wrong type and the right width without an error (docs/pitfalls.md, 1). These pairs are right.
_ARROW_OF = {
    "text": pa.large_string(),
    "varchar": pa.large_string(),
    "enum": pa.large_string(),
    "int4": pa.int32(),
    "float8": pa.float64(),
    "timestamp": pa.timestamp("us"),
    "_text": pa.large_list(pa.large_string()),
}


def to_persona_rows(rows: dy.DataFrame[PersonaRows]) -> pl.DataFrame:
    """Convert persona rows to the columns of PersonaDimension. `updatedAt` is `createdAt`."""
    created = pl.from_epoch("created_us", time_unit="us")
    return rows.select(
        "id",
        pl.col("user_id").alias("userId"),
        pl.col("dimension").cast(pl.String),
        "value",
        "confidence",
        pl.col("source").cast(pl.String),
        created.alias("updatedAt"),
        created.alias("createdAt"),
    )


def to_event_rows(events: pl.DataFrame) -> pl.DataFrame:
    """Convert ranking events (`RankingEvents.events`) to the columns of RankingEvent. Session and shadow model are null.

    Lists stay lists of an Enum: only rows that are written need their texts.
    """
    return events.select(
        pl.col("event_id").alias("id"),
        pl.col("user_id").alias("userId"),
        pl.col("trip_id").alias("tripId"),
        pl.lit(None, dtype=pl.String).alias("sessionId"),
        pl.col("day_number").alias("dayNumber"),
        pl.col("model_name").alias("modelName"),
        pl.col("model_version").alias("modelVersion"),
        pl.col("candidate_ids").alias("candidateIds"),
        pl.col("ranked_ids").alias("rankedIds"),
        pl.col("selected_ids").alias("selectedIds"),
        "surface",
        pl.lit(None, dtype=pl.String).alias("shadowModelName"),
        pl.lit(None, dtype=pl.String).alias("shadowModelVersion"),
        pl.lit(None, dtype=pl.List(pl.String)).alias("shadowRankedIds"),
        pl.col("latency_ms").alias("latencyMs"),
        pl.from_epoch("created_us", time_unit="us").alias("createdAt"),
    )


def copy_rows(connection: Connection, scope: Scope, model: str, rows: pl.DataFrame) -> None:
    """COPY a frame into the model's columns. Raises SchemaError if a column's type does not match.

    If a column has another type than the contract's, or the table is under row security, which COPY does not support,
    the rows are copied into a temporary table and inserted from there.
    """
    if not rows.height:
        return
    relation = scope.naming.relation(model)
    columns = {name: scope.naming.mapped_column(model, name) for name in rows.columns}
    if not relation.secured and all(column.exact for column in columns.values()):
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        table = table.rename_columns([scope.naming.column_name(model, name) for name in columns])
        _check_types(table, _column_types(connection, scope, model), relation.sql)
        # In small batches, so that the server works on one while the driver serializes the next.
        sent = connection.copy(relation.schema, relation.name, table.to_reader(max_chunksize=COPY_BATCH))
    else:
        names = {
            name: (scope.naming.column(model, name), column.write.replace("{}", quote_identifier(name)))
            for name, column in columns.items()
        }
        sent = insert_through_temporary(connection, relation.sql, rows, names)
    if sent != rows.height:
        raise DataError(f"COPY into {relation.sql} took {sent} of {rows.height} rows. Nothing was written; run again.")


def insert_through_temporary(
    connection: Connection, table: str, rows: pl.DataFrame, names: Mapping[str, tuple[str, str]]
) -> int:
    """Insert rows from a temporary table. Returns their number. `names` maps fields to (column, SQL of the value)."""
    connection.copy_temporary(_TEMPORARY, rows.to_arrow(compat_level=pl.CompatLevel.oldest()))
    columns, values = (", ".join(each) for each in zip(*(names[name] for name in rows.columns), strict=True))
    inserted = connection.execute(f"INSERT INTO {table} ({columns}) SELECT {values} FROM pg_temp.{_TEMPORARY}")
    connection.execute(f"DROP TABLE pg_temp.{_TEMPORARY}")
    return inserted


def require_empty(connection: Connection, naming: Naming) -> None:
    """Raise SettingsError with the counts if a table that the synthetic world fills is not empty."""
    there = (model for model in MODELS if model != "ModelRegistry" and _exists(connection, naming.table(model)))
    counts = {model: connection.fetch_int(f"SELECT count(*) FROM {naming.table(model)}") for model in there}
    filled = ", ".join(f"{count:,} in {naming.table(model)}" for model, count in counts.items() if count)
    if filled:
        database = connection.fetch_rows("SELECT current_database()::text")[0][0]
        raise SettingsError(
            f"The database {quote_identifier(database)} already holds rows: {filled}. The synthetic world is for an empty "
            "database; name another one, or say --into-existing to add its synthetic users and nodes to these."
        )


def _exists(connection: Connection, table: str) -> bool:
    return bool(connection.fetch_int(f"SELECT (to_regclass({quote_literal(table)}) IS NOT NULL)::int"))


def register_models(connection: Connection, scope: Scope, seed: int) -> int:
    """Insert the rows of `REGISTRY` whose (modelName, modelVersion) is missing. Returns how many were inserted.

    Their dates are the createdAt of the shadow users' first trip, so that they depend on the source rows and not on the
    clock. Raises DataError if the table does not hold them as they were sent.
    """
    table, source = scope.naming.table("ModelRegistry"), scope.naming.source("ModelRegistry")
    first = connection.fetch_rows(
        f"SELECT COALESCE(pg_catalog.min(t.\"createdAt\"), timestamp '1970-01-01')::text FROM {scope.naming.source('Trip')} t "
        f'WHERE pg_catalog.isfinite(t."createdAt") AND t."userId" OPERATOR(pg_catalog.=) ANY ({scope.shadow_ids()})'
    )[0][0]
    since = f"timestamp {quote_literal(str(first))}"
    keys = pl.DataFrame([(name, version) for name, version, *_ in REGISTRY], schema=["name", "version"], orient="row")
    ids = keys.select(stable_id("model_registry", seed, "name", "version")).to_series().to_list()
    values = ", ".join(
        f"({', '.join(quote_literal(text) for text in (key, *row))}, {since}, {since})"
        for key, row in zip(ids, REGISTRY, strict=True)
    )
    names = ("id", "modelName", "modelVersion", "stage", "modelType", "description", "createdAt", "updatedAt")
    columns, own = (
        ", ".join(map(quoted, names)) for quoted in (quote_identifier, partial(scope.naming.column, "ModelRegistry"))
    )
    key = ", ".join(scope.naming.column("ModelRegistry", name) for name in ("modelName", "modelVersion"))
    added = connection.execute(f"INSERT INTO {table} ({own}) VALUES {values} ON CONFLICT ({key}) DO NOTHING")
    same = " AND ".join(
        # A column of another precision rounds.
        f"abs(extract(epoch FROM m.{name} - v.{name})) < 1" if name.endswith('At"') else f"m.{name}::text = v.{name}"
        for name in map(quote_identifier, names)
    )
    found = connection.fetch_rows(
        f"SELECT count(*), count(*) FILTER (WHERE m.{OURS} AND {same}) FROM {source} m JOIN (VALUES {values}) v({columns}) "
        'USING ("modelName", "modelVersion")'
    )[0]
    if found != (len(REGISTRY), added):
        raise DataError(
            f"{table} holds {found[0]} of the {len(REGISTRY)} models that it needs, and {found[1]} of {added} inserted ones "
            "are as they were sent. Nothing was kept. A trigger on the table changes them: fix or disable it, then run again."
        )
    return added


@dataclass(frozen=True)
class PendingSignals:
    """The signals without a model version: their number, and for each of `columns` a sum of hashes of its values."""

    columns: list[str]
    fingerprint: tuple[Any, ...]


def has_pending_signals(connection: Connection, scope: Scope) -> bool:
    """Return whether the backfill is to change any signal, by counting them."""
    return bool(_pending(connection, scope, [])[0])


def pending_signals(connection: Connection, scope: Scope) -> PendingSignals:
    """Look up the shadow users' signals that the backfill is to change. Locks no rows."""
    columns = _kept_columns(connection, scope)
    return PendingSignals(columns, _pending(connection, scope, columns))


def _pending(connection: Connection, scope: Scope, columns: list[str]) -> tuple[Any, ...]:
    version = scope.naming.column("BehavioralSignal", "modelVersion")
    return _fingerprint(connection, scope, columns, f"x.{version} IS NULL")


def backfill(connection: Connection, scope: Scope, pending: PendingSignals | None) -> int:
    """Set the model version of the shadow users' signals that have none, by the single UPDATE of docs/design.md.

    Nothing is done if `pending` is None. Returns the number of updated rows. It comes last before COMMIT, because it locks rows
    that the application may want. Raises DataError if these rows changed in any other column that the role may read.
    """
    if pending is None:
        return 0
    table, version = scope.naming.table("BehavioralSignal"), quote_literal(BACKFILL_VERSION)
    column = scope.naming.column("BehavioralSignal", "modelVersion")
    columns, before = pending.columns, pending.fingerprint
    updated = connection.execute(
        f"UPDATE {table} x SET {column} = {version} WHERE {scope.owns('BehavioralSignal', 'x')} "
        f"AND {_half(f'x.{column} IS NULL')}"
    )
    after = _fingerprint(connection, scope, columns, f"x.{column} = {version} AND x.{OURS}")
    if not before[0] == updated == after[0]:
        raise DataError(
            f"{before[0]:,} rows of {table} were to be given a modelVersion, {updated:,} were changed and {after[0]:,} have "
            "it now, so nothing was kept. A trigger or a rule on the table skips rows, writes another version, or gives them "
            "to another user: fix or disable it, then run again."
        )
    if changed := [name for name, was, now in zip(columns, before[1:], after[1:], strict=True) if was != now]:
        raise DataError(
            f"With the modelVersion of {updated:,} rows of {table} something else was changed, so nothing was kept: column "
            f"{', '.join(map(quote_identifier, changed))}. A trigger on the table does it: fix or disable it, then run again."
        )
    return updated


def _kept_columns(connection: Connection, scope: Scope) -> list[str]:
    """Return the columns of BehavioralSignal that a run does not change and may read, without generated ones."""
    rows = connection.fetch_rows(
        f"SELECT attname::text FROM pg_attribute WHERE attrelid = {quote_literal(scope.naming.table('BehavioralSignal'))}"
        "::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' "
        "AND has_column_privilege(attrelid, attnum, 'SELECT') ORDER BY attnum"
    )
    changed = scope.naming.column_name("BehavioralSignal", "modelVersion")
    return [name for (name,) in rows if name != changed]


def _fingerprint(connection: Connection, scope: Scope, columns: list[str], where: str) -> tuple[Any, ...]:
    """Return the number of the shadow users' signals, and for each column a sum of hashes of its values and their rows' ids."""
    id_ = scope.naming.column("BehavioralSignal", "id")
    sums = [
        f'COALESCE(sum(hashtextextended(COALESCE({quote_identifier(name)}::text, {quote_literal(NULL_TEXT)}) COLLATE "C", '
        f'hashtext({id_}::text COLLATE "C"))), 0)::text'
        for name in columns
    ]
    return connection.fetch_rows(
        f"SELECT {', '.join(['count(*)', *sums])} FROM {scope.naming.table('BehavioralSignal')} x "
        f"WHERE {scope.owns('BehavioralSignal', 'x')} AND {_half(where)}"
    )[0]


def _half(condition: str) -> str:
    """Return SQL of the same condition, of which the server assumes that half of the rows fulfil it.

    Its statistics may be of a state in which no signal has the version, or none lacks it. Expecting one row, it would read
    all users again for each signal.
    """
    return f"COALESCE({condition}, false)"


def _column_types(connection: Connection, scope: Scope, model: str) -> dict[str, str]:
    """Return the table's columns and the names of their types in pg_type, `enum` for any enum."""
    return dict(
        connection.fetch_rows(
            "SELECT a.attname::text, CASE t.typtype WHEN 'e' THEN 'enum' ELSE t.typname::text END FROM pg_attribute a "
            f"JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = {quote_literal(scope.naming.table(model))}::regclass "
            "AND a.attnum > 0 AND NOT a.attisdropped"
        )
    )


def _check_types(table: pa.Table, columns: dict[str, str], name: str) -> None:
    for field in table.schema:
        if field.name not in columns:
            raise SchemaError(f"Table {name} has no column {field.name!r}. See `bpr-etl schema check`.")
        wanted = _ARROW_OF.get(columns[field.name])
        if wanted != field.type and not (pa.types.is_timestamp(field.type) and columns[field.name] == "timestamp"):
            raise SchemaError(
                f"Column {field.name!r} of table {name} has type {columns[field.name]}, which can't take {field.type}. "
                "See `bpr-etl schema check`."
            )
