"""Writes the shadow users' rows of a table: what changed, or all of them. Verified within the transaction (docs/contract.md).

A row is identified by a hash of its columns, including its id. The server computes the hashes of the existing rows. An
existing row with the hash of a row to write is kept as it is. All others are deleted before anything is inserted,
because an id or another unique key may move from one row to another.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.errors import DataError
from etl.load.audit import RowCounts
from etl.load.copy import NULL_TEXT, OURS, copy_rows
from etl.postgres.connection import Connection
from etl.postgres.naming import Naming, quote_literal
from etl.postgres.schema.ddl import COLUMNS
from etl.postgres.scope import Scope
from etl.transform.buckets import BucketSpill
from etl.transform.hashing import format_float, md5_64

MOSTLY_NEW, FEW = 0.9, 20_000
"""If more than this share of more than FEW rows are new, all remaining rows are replaced.

Holding new rows back until the end would then cost more than copying some equal rows again.
"""

_TIDS_PER_DELETE = 10_000
_HASH = "hash"

# Separators of fields and of list elements in the text of a row that is hashed.
_FIELD, _ELEMENT = "\x1f", "\x1e"

_DTYPES: dict[str, pl.DataType] = {
    "text": pl.String(),
    "int4": pl.Int32(),
    "float8": pl.Float64(),
    "timestamp": pl.Datetime("us"),
    "_text": pl.List(pl.String),
}


def columns_of(model: str) -> dict[str, pl.DataType]:
    """Return the columns that a run writes to a model's table, with their types in a frame."""
    return {column.name: _DTYPES[column.type] for column in COLUMNS[model]}


def row_hashes(model: str, rows: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Return 64 bits of the MD5 of each row's text. `_sql_hash` is the same in the database."""
    line = pl.concat_str([_text(name, dtype) for name, dtype in columns_of(model).items()], separator=_FIELD)
    return rows.select(md5_64(line)).to_series().to_numpy().view(np.int64)


def _text(column: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(column)
    if dtype == pl.Float64:
        text = format_float(value)
    elif isinstance(dtype, pl.Datetime):
        text = value.dt.epoch("us").cast(pl.String)
    elif isinstance(dtype, pl.List):
        length = value.list.len().cast(pl.String)
        dims = pl.when(value.list.len() > 0).then("[1:" + length + "]").otherwise(pl.lit(""))
        text = dims + value.list.join(_ELEMENT)
    else:
        text = value.cast(pl.String)
    return text.fill_null(NULL_TEXT)


def _sql_hash(naming: Naming, model: str) -> str:
    """Return SQL of the hash of a row `x` of the model's table."""
    columns = ((naming.mapped_column(model, name).sql("x"), dtype) for name, dtype in columns_of(model).items())
    texts = ", ".join(_sql_text(value, dtype) for value, dtype in columns)
    return f"('x' || substr(md5(concat_ws({quote_literal(_FIELD)}, {texts})), 1, 16))::bit(64)::int8"


def _sql_text(value: str, dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Datetime):
        text = f"trunc(extract(epoch FROM {value}) * 1000000)::text"  # numeric has infinity, int8 has not
    elif isinstance(dtype, pl.List):
        # With its dimensions: an array of one empty text, or one that begins at 0, is another than the one we send.
        text = f"concat(array_dims({value}), array_to_string({value}, {quote_literal(_ELEMENT)}, {quote_literal(NULL_TEXT)}))"
        text = f"CASE WHEN {value} IS NOT NULL THEN {text} END"
    else:
        text = f"{value}::text"
    return f"COALESCE({text}, {quote_literal(NULL_TEXT)})"


def held_rows(model: str) -> pl.DataFrame:
    """Return an empty frame with the columns of the rows that a `TableWriter` holds."""
    return pl.DataFrame(schema=columns_of(model) | {_HASH: pl.Int64()})


class _StandingRows:
    """The rows of the table in the transaction's snapshot: per row 8 bytes of hash and about 20 of location."""

    def __init__(self, rows: pl.DataFrame) -> None:
        rows = rows.sort("hash")
        self._hashes = rows["hash"].to_numpy()
        self._places = rows.select("table", "place")
        self._kept = np.zeros(rows.height, np.bool_)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def kept(self) -> int:
        """Number of rows that stay."""
        return int(self._kept.sum())

    def keep(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Keep the rows with these hashes. Returns for each hash whether the table has such a row."""
        if not len(self):
            return np.zeros(len(hashes), np.bool_)
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self) - 1)
        found: npt.NDArray[np.bool_] = self._hashes[at] == hashes
        self._kept[at[found]] = True  # one of several equal rows, in a table whose ids are not unique
        return found

    def places_to_delete(self) -> list[str]:
        """Return SQL conditions on the system columns, each true for some of the rows that are not kept."""
        gone = self._places.filter(~pl.Series(self._kept)).with_columns(literal=pl.format('"{}"', "place"))
        return [
            f"x.tableoid OPERATOR(pg_catalog.=) {oid} AND "
            f"x.ctid OPERATOR(pg_catalog.=) ANY ('{{{','.join(part['literal'])}}}'::pg_catalog.tid[])"
            for (oid,), rows in gone.partition_by("table", as_dict=True).items()
            for part in rows.iter_slices(_TIDS_PER_DELETE)
        ]


@dataclass
class _Sent:
    rows: int = 0
    checksum: int = 0

    def add(self, hashes: npt.NDArray[np.int64]) -> None:
        self.rows += len(hashes)
        self.checksum += int(hashes.sum(dtype=object) or 0)


class TableWriter:
    """Writes the shadow users' rows of a table, and checks what the table holds afterwards.

    Call `compare` to keep equal rows, or `delete` to replace all. Then call `add` for each batch of rows, and finally
    `delete`, `copy_held` and `check`. New rows are collected in `held`, because all rows that must go are deleted
    before the first new one is inserted. After `delete`, rows are copied at once.

    Raises SchemaError if a column's type does not match what is sent, DataError if the server refuses a row or if the table
    does not hold what it should.
    """

    def __init__(self, connection: Connection, scope: Scope, model: str, held: BucketSpill) -> None:
        self._connection, self._scope, self._model, self._held = connection, scope, model, held
        self._name, self._hash = scope.naming.table(model), _sql_hash(scope.naming, model)
        self._standing: _StandingRows | None = None
        self._batches = self._seen = self._deleted = 0
        self._copies = False
        self._sent = _Sent()

    @property
    def written(self) -> RowCounts:
        """The rows inserted and deleted so far."""
        return RowCounts(inserted=self._sent.rows, deleted=self._deleted)

    @property
    def unchanged(self) -> int:
        """The number of existing rows that are kept."""
        return 0 if self._standing is None else self._standing.kept

    @property
    def is_mostly_new(self) -> bool:
        """Whether nearly all rows added so far are new, so that all should be replaced (call `delete`)."""
        return not self._copies and self._seen > FEW and self._seen - self.unchanged > MOSTLY_NEW * self._seen

    def compare(self) -> int:
        """Read the hashes of the existing rows. Returns their number."""
        empty = pl.DataFrame(schema={"hash": pl.Int64, "table": pl.Int64, "place": pl.String})
        batches = self._connection.iter_frames(
            f'SELECT {self._hash} AS "hash", x.tableoid::int8 AS "table", x.ctid::text AS "place" '
            f"FROM {self._name} x WHERE {self._scope.replaces(self._model, 'x')}"
        )
        self._standing = _StandingRows(pl.concat([empty, *batches]))
        self._copies = not len(self._standing)
        return len(self._standing)

    def delete(self) -> int:
        """Delete the rows that are not kept; without `compare`, all. Returns their number. Later calls do nothing.

        They are counted before the DELETE, whose own count includes what a rule deletes instead.
        """
        if self._copies:
            return 0
        self._copies = True
        if self._standing is not None and self._standing.kept:
            self._deleted = len(self._standing) - self._standing.kept
            for places in self._standing.places_to_delete():
                self._connection.execute(f"DELETE FROM {self._name} x WHERE {places}")
                self._require_gone(places)
        else:
            rows = f"FROM {self._name} x WHERE {self._scope.replaces(self._model, 'x')}"
            self._deleted = self._connection.fetch_int(f"SELECT count(*) {rows}")
            self._connection.execute(f"DELETE {rows}")
        return self._deleted

    def _require_gone(self, places: str) -> None:
        """Raise DataError if one of the rows is still there. It could otherwise be counted as a row to keep."""
        if left := self._connection.fetch_int(f"SELECT count(*) FROM {self._name} x WHERE {places}"):
            raise DataError(
                f"{left:,} rows of {self._name} were to be deleted and are still there. Nothing was kept. A trigger or a rule "
                "on the table keeps them: fix or disable it, then run again."
            )

    def hash(self, rows: pl.DataFrame) -> npt.NDArray[np.int64]:
        """Return the hashes of rows. Can be called from any thread."""
        return row_hashes(self._model, rows)

    def add(self, rows: pl.DataFrame, hashed: Future[npt.NDArray[np.int64]]) -> int:
        """Add a batch of rows and their hashes. Returns how many were copied: after `delete` all, before it none.

        A COPY does not wait for the hashes.
        """
        rows = rows.select(*columns_of(self._model))
        if self._copies:
            return self._copy(rows, hashed.result)
        hashes = hashed.result()
        new = rows.with_columns(pl.Series(_HASH, hashes)).filter(~pl.Series(self._keep(hashes)))
        if new.height:
            self._held.append_bucket(new, self._batches % self._held.buckets)
        self._batches, self._seen = self._batches + 1, self._seen + rows.height
        return 0

    def _keep(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.zeros(len(hashes), np.bool_) if self._standing is None else self._standing.keep(hashes)

    def copy_held(self) -> int:
        """Copy the rows that were held. Returns their number."""
        held = (self._held.read_bucket(number) for number in range(self._held.buckets))
        copied = sum(self._copy(rows.drop(_HASH), rows[_HASH].to_numpy) for rows in held if rows.height)
        self._held.delete()
        return copied

    def _copy(self, rows: pl.DataFrame, hashes: Callable[[], npt.NDArray[np.int64]]) -> int:
        copy_rows(self._connection, self._scope, self._model, rows)
        self._sent.add(hashes())
        return rows.height

    def check(self) -> None:
        """Compare the table's rows with those that should be there. Raises DataError.

        The rows that this transaction wrote must have the number and the checksum (over all columns) of the rows that
        were sent. The number of all others must be that of the rows to keep: these are row versions that were compared,
        and a version never changes. A row that was to be deleted can't be counted among them (`_require_gone`), and an
        old row can't replace a new one.
        """
        found = self._connection.fetch_rows(
            f"SELECT count(*) FILTER (WHERE {OURS}), COALESCE(sum(CASE WHEN {OURS} THEN {self._hash} END), 0)"
            f"::text, count(*) FILTER (WHERE ({OURS}) IS NOT TRUE) "
            f"FROM {self._name} x WHERE {self._scope.replaces(self._model, 'x')}"
        )[0]
        wanted = (self._sent.rows, str(self._sent.checksum), self.unchanged)
        if found != wanted:
            raise DataError(
                f"What {self._name} holds is not what was sent: {found[0]} new rows of {wanted[0]}, checksum {found[1]} for "
                f"{wanted[1]}, and {found[2]} unchanged rows of {wanted[2]}. Nothing was kept. A trigger or a rule on the "
                "table may have changed the rows."
            )
