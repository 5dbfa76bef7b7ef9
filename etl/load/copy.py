"""Writes to the database, each verified within the transaction (docs/contract.md).

DELETE + COPY of the shadow users' rows of two tables, the two rows of the registry, and the backfill. Nothing else is
written, and no other users' rows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dataframely as dy
import polars as pl
import pyarrow as pa

from etl.errors import DataError, SchemaError, SettingsError
from etl.load.audit import RowCounts
from etl.postgres.connection import Connection
from etl.postgres.naming import MODELS, Naming, quote_identifier, quote_literal
from etl.postgres.scope import Scope
from etl.transform.hashing import format_float, md5_32, stable_id
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

# Separators of fields and of list elements, and the text of a null, in the text of a row that is hashed.
_FIELD, _ELEMENT, _NULL = "\x1f", "\x1e", "\x02"

_OURS = "xmin = (SELECT pg_current_xact_id_if_assigned()::xid)"
"""SQL that is true for a row that a statement of the open transaction wrote, except triggers in subtransactions."""

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
    """Convert ranking events (`RankingEvents.events`) to the columns of RankingEvent. Session and shadow model are null."""
    texts = pl.List(pl.String)
    return events.select(
        pl.col("event_id").alias("id"),
        pl.col("user_id").alias("userId"),
        pl.col("trip_id").alias("tripId"),
        pl.lit(None, dtype=pl.String).alias("sessionId"),
        pl.col("day_number").alias("dayNumber"),
        pl.col("model_name").alias("modelName"),
        pl.col("model_version").alias("modelVersion"),
        pl.col("candidate_ids").cast(texts).alias("candidateIds"),
        pl.col("ranked_ids").cast(texts).alias("rankedIds"),
        pl.col("selected_ids").cast(texts).alias("selectedIds"),
        "surface",
        pl.lit(None, dtype=pl.String).alias("shadowModelName"),
        pl.lit(None, dtype=pl.String).alias("shadowModelVersion"),
        pl.lit(None, dtype=texts).alias("shadowRankedIds"),
        pl.col("latency_ms").alias("latencyMs"),
        pl.from_epoch("created_us", time_unit="us").alias("createdAt"),
    )


class TableReplacement:
    """Replaces the shadow users' rows of a table: DELETE, COPY in batches, and a check of what the table holds then.

    Raises SchemaError if a column's type does not match what is sent, DataError if the server refuses a row or if the table
    does not hold what was sent.
    """

    def __init__(self, connection: Connection, scope: Scope, model: str) -> None:
        self._connection, self._scope, self._model = connection, scope, model
        self._rows = self._checksum = self._deleted = 0
        self._columns: dict[str, pl.DataType] = {}

    def delete(self) -> int:
        """Delete the old rows. Returns their number.

        They are counted before, because the server's count of a DELETE includes what a rule deletes instead.
        """
        rows = f"FROM {self._scope.naming.table(self._model)} x WHERE {self._scope.replaces(self._model, 'x')}"
        self._deleted = self._connection.fetch_int(f"SELECT count(*) {rows}")
        self._connection.execute(f"DELETE {rows}")
        return self._deleted

    @property
    def written(self) -> RowCounts:
        """The rows inserted and deleted so far."""
        return RowCounts(inserted=self._rows, deleted=self._deleted)

    def copy(self, rows: pl.DataFrame) -> None:
        """COPY a batch of rows. Their checksum is computed while the server works on the COPY."""
        with ThreadPoolExecutor(1, thread_name_prefix="checksum") as pool:
            # A clone: Polars deadlocks if two threads use one frame object and one of them converts it to Arrow.
            checksum = pool.submit(_checksum, rows.clone())
            copy_rows(self._connection, self._scope, self._model, rows)
            self._checksum += checksum.result()
        self._rows += rows.height
        self._columns = dict(rows.schema)

    def check(self) -> None:
        """Compare count and checksum of the table's rows, over all columns, with those of the rows that were sent."""
        name = self._scope.naming.table(self._model)
        # If nothing was copied, the table must hold nothing, and the count is enough.
        texts = "".join(f", {_sql_text(column, dtype)}" for column, dtype in self._columns.items()) or ", ''"
        found = self._connection.fetch_rows(
            f"SELECT count(*), COALESCE(sum(('x' || substr(md5(concat_ws({quote_literal(_FIELD)}{texts})), 1, 8))"
            f"::bit(32)::int8), 0)::int8, count(*) FILTER (WHERE {_OURS}) "
            f"FROM {name} x WHERE {self._scope.replaces(self._model, 'x')}"
        )[0]
        # All rows must be new. Else an old row that a trigger kept could stand in for a new one that it gave to another user.
        sent = (self._rows, self._checksum, self._rows)
        if found != sent:
            raise DataError(
                f"What {name} holds is not what was sent: {found[0]} rows of {sent[0]}, of them {found[2]} new, checksum "
                f"{found[1]} for {sent[1]}. Nothing was kept. A trigger or a rule on the table may have changed the rows."
            )


def copy_rows(connection: Connection, scope: Scope, model: str, rows: pl.DataFrame) -> None:
    """COPY a frame into the columns of the same names. Raises SchemaError if a column's type does not match."""
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    _check_types(table, _column_types(connection, scope, model), scope.naming.table(model))
    if not rows.height:
        return
    name = quote_literal(scope.naming.table(model))
    if connection.fetch_rows(f"SELECT row_security_active({name}::text)") == [(True,)]:
        sent = _insert(connection, scope.naming.table(model), table)
    else:
        # In small batches, so that the server works on one while the driver serializes the next.
        batches = table.to_reader(max_chunksize=COPY_BATCH)
        sent = connection.copy(scope.naming.schema, scope.naming.table_name(model), batches)
    if sent != rows.height:
        raise DataError(
            f"COPY into {scope.naming.table(model)} took {sent} of {rows.height} rows. Nothing was written; run again."
        )


def _insert(connection: Connection, name: str, rows: pa.Table) -> int:
    """Insert rows by way of a temporary table: PostgreSQL has no COPY into a table with row security. Returns their number."""
    columns = ", ".join(map(quote_identifier, rows.column_names))
    connection.copy_temporary(_TEMPORARY, rows)
    sent = connection.execute(f"INSERT INTO {name} ({columns}) SELECT {columns} FROM pg_temp.{_TEMPORARY}")
    connection.execute(f"DROP TABLE pg_temp.{_TEMPORARY}")
    return sent


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
    table = scope.naming.table("ModelRegistry")
    since = (
        f"(SELECT COALESCE(pg_catalog.min(t.\"createdAt\"), timestamp '1970-01-01') FROM {scope.naming.table('Trip')} t "
        f'WHERE pg_catalog.isfinite(t."createdAt") AND {scope.owns("t")})'
    )
    keys = pl.DataFrame([(name, version) for name, version, *_ in REGISTRY], schema=["name", "version"], orient="row")
    ids = keys.select(stable_id("model_registry", seed, "name", "version")).to_series().to_list()
    values = ", ".join(
        f"({', '.join(quote_literal(text) for text in (key, *row))}, {since}, {since})"
        for key, row in zip(ids, REGISTRY, strict=True)
    )
    names = ("id", "modelName", "modelVersion", "stage", "modelType", "description", "createdAt", "updatedAt")
    columns = ", ".join(map(quote_identifier, names))
    added = connection.execute(
        f'INSERT INTO {table} ({columns}) VALUES {values} ON CONFLICT ("modelName", "modelVersion") DO NOTHING'
    )
    same = " AND ".join(
        # A column of another precision rounds.
        f"abs(extract(epoch FROM m.{name} - v.{name})) < 1" if name.endswith('At"') else f"m.{name}::text = v.{name}"
        for name in map(quote_identifier, names)
    )
    found = connection.fetch_rows(
        f"SELECT count(*), count(*) FILTER (WHERE m.{_OURS} AND {same}) FROM {table} m JOIN (VALUES {values}) v({columns}) "
        'USING ("modelName", "modelVersion")'
    )[0]
    if found != (len(REGISTRY), added):
        raise DataError(
            f"{table} holds {found[0]} of the {len(REGISTRY)} models that it needs, and {found[1]} of {added} inserted ones "
            "are as they were sent. Nothing was kept. A trigger on the table changes them: fix or disable it, then run again."
        )
    return added


def backfill(connection: Connection, scope: Scope) -> int:
    """Set the model version of the shadow users' signals that have none, by the single UPDATE of docs/design.md.

    Returns the number of updated rows. It comes last before COMMIT, because it locks rows that the application may want.
    Raises DataError if these rows changed in any other column that the role may read.
    """
    table, version = scope.naming.table("BehavioralSignal"), quote_literal(BACKFILL_VERSION)
    columns = _kept_columns(connection, table)
    before = _fingerprint(connection, table, columns, f'{scope.owns("x")} AND x."modelVersion" IS NULL')
    if not before[0]:
        return 0
    updated = connection.execute(
        f'UPDATE {table} x SET "modelVersion" = {version} WHERE {scope.owns("x")} AND x."modelVersion" IS NULL'
    )
    after = _fingerprint(
        connection, table, columns, f'{scope.owns("x")} AND x."modelVersion" = {version} AND x.{_OURS}'
    )
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


def _kept_columns(connection: Connection, table: str) -> list[str]:
    """Return the columns of BehavioralSignal that a run does not change and may read, without generated ones."""
    rows = connection.fetch_rows(
        f"SELECT attname::text FROM pg_attribute WHERE attrelid = {quote_literal(table)}::regclass AND attnum > 0 "
        "AND NOT attisdropped AND attgenerated = '' AND attname <> 'modelVersion' "
        "AND has_column_privilege(attrelid, attnum, 'SELECT') ORDER BY attnum"
    )
    return [name for (name,) in rows]


def _fingerprint(connection: Connection, table: str, columns: list[str], where: str) -> tuple[Any, ...]:
    """Return the number of rows, and for each column a sum of hashes of its values and their rows' ids."""
    sums = ", ".join(
        f'COALESCE(sum(hashtextextended(COALESCE({quote_identifier(name)}::text, {quote_literal(_NULL)}) COLLATE "C", '
        f'hashtext("id"::text COLLATE "C"))), 0)::text'
        for name in columns
    )
    return connection.fetch_rows(f"SELECT count(*), {sums} FROM {table} x WHERE {where}")[0]


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


def _checksum(rows: pl.DataFrame) -> int:
    """Return the sum of 32 bits of each row's MD5. The text of a row is that of `_sql_text`."""
    line = pl.concat_str([_text(column, dtype) for column, dtype in rows.schema.items()], separator=_FIELD)
    return int(rows.select(md5_32(line).sum()).item() or 0)


def _text(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column's values as the same text as `_sql_text` in the database."""
    value = pl.col(column)
    if dtype == pl.Float64:
        text = format_float(value)
    elif isinstance(dtype, pl.Datetime):
        text = value.dt.epoch("us").cast(pl.String)
    elif isinstance(dtype, pl.List):
        text = value.list.join(_ELEMENT)
    else:
        text = value.cast(pl.String)
    return text.fill_null(_NULL)


def _sql_text(column: str, dtype: pl.DataType) -> str:
    name = quote_identifier(column)
    if isinstance(dtype, pl.Datetime):
        text = f"(extract(epoch FROM {name}) * 1000000)::int8::text"
    elif isinstance(dtype, pl.List):
        text = f"array_to_string({name}, {quote_literal(_ELEMENT)})"
    else:
        text = f"{name}::text"
    return f"COALESCE({text}, {quote_literal(_NULL)})"
