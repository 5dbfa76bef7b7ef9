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

MOSTLY_NEW, FEW = 0.9, 5_000
"""If more than this share of more than FEW rows are new, all remaining rows are replaced, and those of the next table.

Holding new rows back until the end would then cost more than copying some equal rows again.
"""

_TIDS_PER_DELETE, _TEXTS_PER_QUERY = 10_000, 5_000
_HASH = "hash"

_FIELD = "\x1f"
"""Separates fields in the text of a row that is hashed."""

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


def row_hashes(model: str, rows: pl.DataFrame, texts: TextHashes) -> npt.NDArray[np.int64]:
    """Return 64 bits of the MD5 of each row's text. `_sql_hash` is the same in the database.

    `rows` have the model's columns; lists may be of an Enum. `texts` must know their elements.
    """
    line = pl.concat_str(
        [_text(rows[name], dtype, texts) for name, dtype in columns_of(model).items()], separator=_FIELD
    )
    return rows.select(md5_64(line)).to_series().to_numpy().view(np.int64)


def _text(values: pl.Series, dtype: pl.DataType, texts: TextHashes) -> pl.Expr:
    value = pl.col(values.name)
    if dtype == pl.Float64:
        text = format_float(value)
    elif isinstance(dtype, pl.Datetime):
        text = value.dt.epoch("us").cast(pl.String)
    elif isinstance(dtype, pl.List):
        length = value.list.len()
        dims = pl.when(length > 0).then("[1:" + length.cast(pl.String) + "]").otherwise(pl.lit(""))
        text = dims + pl.lit(texts.of_lists(values)).cast(pl.String)
    else:
        text = value.cast(pl.String)
    return text.fill_null(NULL_TEXT)


class TextHashes:
    """The server's 64-bit hashes of texts, each asked for once, and of lists of them, which follow from these.

    The server's hash of a text depends on its byte order, so it is not computed here.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[str, int] = {}

    def learn(self, rows: pl.DataFrame) -> None:
        """Ask the server for the hashes of the elements of all lists. It uses the connection if some are not known yet."""
        lists = [_elements(rows[name]) for name, dtype in rows.schema.items() if isinstance(dtype, pl.List)]
        new = sorted({text for codes, texts in lists for text in texts.gather(np.unique(codes))} - self._known.keys())
        for start in range(0, len(new), _TEXTS_PER_QUERY):
            part = new[start : start + _TEXTS_PER_QUERY]
            values = ", ".join(f"({number}, {quote_literal(text)})" for number, text in enumerate(part))
            hashes = self._connection.fetch_rows(
                f'SELECT hashtextextended(v.text COLLATE "C", 0) FROM (VALUES {values}) v(number, text) ORDER BY v.number'
            )
            self._known.update(zip(part, (number for (number,) in hashes), strict=True))

    def of_lists(self, lists: pl.Series) -> pl.Series:
        """Return the server's `hash_array_extended(list, 0)` of each list (Int64). Null stays null.

        From h = 1, each element makes 31 h + its own hash of it, modulo 2**64. Servers place rows in hash partitions by it,
        so it is the same in all versions.
        """
        codes, texts = _elements(lists)
        hashes = np.array([self._known.get(text, 0) for text in texts], np.int64).view(np.uint64)
        lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
        ends = np.cumsum(lengths)
        ones = np.full(int(lengths.max(initial=0)) + 1, 31, np.uint64)
        ones[0] = 1
        powers = np.multiply.accumulate(ones)
        after = np.repeat(ends, lengths) - 1 - np.arange(len(codes))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes[codes] * powers[after], dtype=np.uint64)])
        found = pl.Series((powers[lengths] + sums[ends] - sums[ends - lengths]).view(np.int64))
        return found if not lists.null_count() else found.zip_with(lists.is_not_null(), _NO_HASH)


_NO_HASH = pl.Series([None], dtype=pl.Int64)


def _elements(lists: pl.Series) -> tuple[npt.NDArray[np.integer], pl.Series]:
    """Return the elements of all lists, one after the other, as positions in the texts that are returned with them."""
    flat = lists.explode(empty_as_null=False, keep_nulls=False)
    dtype = flat.dtype
    if not isinstance(dtype, pl.Enum):
        dtype = pl.Enum(flat.unique())
        flat = flat.cast(dtype)
    return flat.to_physical().to_numpy(), dtype.categories


def _sql_hash(naming: Naming, model: str) -> str:
    """Return SQL of the hash of a row `x` of the model's table."""
    columns = ((naming.mapped_column(model, name).sql("x"), dtype) for name, dtype in columns_of(model).items())
    texts = ", ".join(_sql_text(value, dtype) for value, dtype in columns)
    return f"('x' || substr(md5(concat_ws({quote_literal(_FIELD)}, {texts})), 1, 16))::bit(64)::int8"


def _sql_text(value: str, dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Datetime):
        text = f"trunc(extract(epoch FROM {value}) * 1000000)::text"  # numeric has infinity, int8 has not
    elif isinstance(dtype, pl.List):
        # With its dimensions: an array that begins at 0 is another than the one we send. A hash, because writing and hashing
        # the text of 20 ids costs several times as much.
        text = f"COALESCE(array_dims({value}), '') || hash_array_extended({value} COLLATE \"C\", 0)::text"
    else:
        text = f"{value}::text"
    return f"COALESCE({text}, {quote_literal(NULL_TEXT)})"


def held_rows(model: str) -> pl.DataFrame:
    """Return an empty frame with the columns of the rows that a `TableWriter` holds."""
    return pl.DataFrame(schema=columns_of(model) | {_HASH: pl.Int64()})


def standing_query(scope: Scope, model: str) -> str:
    """SQL of the hash and the location of each existing row, for any connection that has the transaction's snapshot."""
    return (
        f'SELECT {_sql_hash(scope.naming, model)} AS "hash", x.tableoid::int8 AS "table", x.ctid::text AS "place" '
        f"{_existing(scope, model)}"
    )


def _existing(scope: Scope, model: str) -> str:
    """SQL from FROM on: the existing rows `x` of a model's table that a run keeps or replaces."""
    return f"FROM {scope.naming.table(model)} x WHERE {scope.replaces(model, 'x')}"


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

    Call `compare` with the rows of `standing_query` to keep equal rows, or `delete` to replace all. Then call `learn` and
    `add` for each batch of rows, and finally `delete`, `copy_held` and `check`. New rows are collected in `held`, because all
    rows that must go are deleted before the first new one is inserted. After `delete`, rows are copied at once.

    Raises SchemaError if a column's type does not match what is sent, DataError if the server refuses a row or if the table
    does not hold what it should.
    """

    def __init__(self, connection: Connection, scope: Scope, model: str, held: BucketSpill) -> None:
        self.model = model
        self._connection, self._scope, self._held = connection, scope, held
        self._name, self._hash = scope.naming.table(model), _sql_hash(scope.naming, model)
        self._rows = _existing(scope, model)
        self._standing: _StandingRows | None = None
        self._batches = self._seen = self._deleted = 0
        self._copies = False
        self._sent = _Sent()
        self._texts = TextHashes(connection)

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
        """Whether many rows were compared so far, and nearly all of them are new."""
        return self._seen > FEW and self._seen - self.unchanged > MOSTLY_NEW * self._seen

    @property
    def should_replace(self) -> bool:
        """Whether so many of the rows added so far are new that all should be replaced (call `delete`)."""
        return not self._copies and self.is_mostly_new

    def compare(self, standing: pl.DataFrame) -> int:
        """Take the rows of `standing_query`. Returns their number."""
        self._standing = _StandingRows(standing)
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
            self._deleted = self._connection.fetch_int(f"SELECT count(*) {self._rows}")
            self._connection.execute(f"DELETE {self._rows}")
        return self._deleted

    def _require_gone(self, places: str) -> None:
        """Raise DataError if one of the rows is still there. It could otherwise be counted as a row to keep."""
        if left := self._connection.fetch_int(f"SELECT count(*) FROM {self._name} x WHERE {places}"):
            raise DataError(
                f"{left:,} rows of {self._name} were to be deleted and are still there. Nothing was kept. A trigger or a rule "
                "on the table keeps them: fix or disable it, then run again."
            )

    def learn(self, rows: pl.DataFrame) -> None:
        """Ask the server for what `hash` needs to know of these rows."""
        self._texts.learn(rows)

    def hash(self, rows: pl.DataFrame) -> npt.NDArray[np.int64]:
        """Return the hashes of rows that were learnt. Can be called from any thread."""
        return row_hashes(self.model, rows, self._texts)

    def add(self, rows: pl.DataFrame, hashed: Future[npt.NDArray[np.int64]]) -> int:
        """Add a batch of rows and their hashes. Returns how many were copied: after `delete` all, before it none.

        A COPY does not wait for the hashes.
        """
        columns = columns_of(self.model)
        rows = rows.select(*columns)
        if self._copies:
            return self._copy(rows.cast(columns), hashed.result)  # type: ignore[arg-type]  # a column's type by its name
        hashes = hashed.result()
        new = rows.with_columns(pl.Series(_HASH, hashes)).filter(~pl.Series(self._keep(hashes)))
        if new.height:
            self._held.append_bucket(new.cast(columns), self._batches % self._held.buckets)  # type: ignore[arg-type]
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
        copy_rows(self._connection, self._scope, self.model, rows)
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
            f"::text, count(*) FILTER (WHERE ({OURS}) IS NOT TRUE) {self._rows}"
        )[0]
        wanted = (self._sent.rows, str(self._sent.checksum), self.unchanged)
        if found != wanted:
            raise DataError(
                f"What {self._name} holds is not what was sent: {found[0]} new rows of {wanted[0]}, checksum {found[1]} for "
                f"{wanted[1]}, and {found[2]} unchanged rows of {wanted[2]}. Nothing was kept. A trigger or a rule on the "
                "table may have changed the rows."
            )
