"""The audit before COMMIT: the transaction has written exactly the intended rows, and none of other tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from etl.errors import ConnectError, DataError, SchemaError, SettingsError
from etl.postgres.connection import Connection
from etl.postgres.naming import quote_literal
from etl.postgres.scope import Scope
from etl.settings.values import TableName

_WRITING = ("RowExclusiveLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")
"""The locks that a transaction holds until its end on each table that it has written to."""

_RUN_WRITES = ("ModelRegistry", "PersonaDimension", "RankingEvent", "BehavioralSignal")
_ROUNDS = 10
"""How many times deferred triggers may cause others to fire."""

_UNCOUNTED = "a foreign table, whose rows are not counted"
_ALTERED = "emptied, altered or locked exclusively"


@dataclass(frozen=True)
class RowCounts:
    """Numbers of inserted, updated and deleted rows of a table."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    def __str__(self) -> str:
        return f"{self.inserted:,} inserted, {self.updated:,} updated, {self.deleted:,} deleted"

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(self.inserted + other.inserted, self.updated + other.updated, self.deleted + other.deleted)

    def __sub__(self, other: RowCounts) -> RowCounts:
        return RowCounts(self.inserted - other.inserted, self.updated - other.updated, self.deleted - other.deleted)

    def with_moves_as_updates(self) -> RowCounts:
        """Count a row that moved to another partition, which the server counts as deleted and inserted, as updated."""
        moved = min(self.inserted, self.deleted)
        return RowCounts(self.inserted - moved, self.updated + moved, self.deleted - moved)


@dataclass(frozen=True)
class _TableWrites:
    """What the transaction did to a table: rows written, and `more`: effects that counts of rows do not show."""

    name: str
    written: RowCounts = RowCounts()
    more: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in (f"{self.name}: {self.written}", self.more) if part)

    def __bool__(self) -> bool:
        return self.written != RowCounts() or bool(self.more)


class WriteAudit:
    """Compares what the open transaction has written, by PostgreSQL's own counters, with the intended writes.

    The transaction's locks show which tables it may have written to; the server's counters show how many rows. No row
    is read. Rows written by triggers, rules and cascades are included, in subtransactions too. Rows of a subtransaction
    that was rolled back are not, unless the table was written to outside of it as well.

    `allowed` are tables that may be written to by side effects, as the user names them. Raises SchemaError if the server does
    not count and can't be made to, SettingsError if a name in `allowed` is no table, or a table that a run itself writes.
    """

    def __init__(self, connection: Connection, scope: Scope, allowed: Iterable[TableName] = ()) -> None:
        require_counted(connection)
        self._connection = connection
        models = ", ".join(
            f"to_regclass({quote_literal(scope.naming.table(model))})::oid::int8" for model in _RUN_WRITES
        )
        self._own = dict(zip(_RUN_WRITES, connection.fetch_rows(f"SELECT {models}")[0], strict=True))
        self._names = {model: scope.naming.table(model) for model in _RUN_WRITES}
        self._moving = self._moved_by_update(scope)
        self._allowed = {self._named(name, scope.naming.schema) for name in allowed}
        # The session may not have reported the counts of its earlier transactions yet.
        self._before = {
            oid: _TableWrites(name, RowCounts(*counts))
            for oid, name, *counts in connection.fetch_rows(
                f"SELECT c.oid::int8, format('%I.%I', n.nspname, c.relname), {_counts_of('c.oid')} FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm', 'f') "
                r"AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
            )
        }

    def _moved_by_update(self, scope: Scope) -> set[int]:
        """Return the oid of BehavioralSignal if the backfill's UPDATE moves rows: a partition key has the model version."""
        signals, version = self._own["BehavioralSignal"], scope.naming.column_name("BehavioralSignal", "modelVersion")
        rows = self._connection.fetch_rows(
            f"WITH RECURSIVE part(oid) AS (SELECT {signals}::oid UNION ALL "
            "SELECT i.inhrelid FROM part JOIN pg_inherits i ON i.inhparent = part.oid) "
            "SELECT 1 FROM part JOIN pg_partitioned_table p ON p.partrelid = part.oid JOIN pg_attribute a "
            f"ON a.attrelid = part.oid AND a.attnum = ANY (p.partattrs::int2[]) WHERE a.attname = {quote_literal(version)}"
        )
        return {signals} if rows else set()

    def verify(self, meant: Mapping[str, RowCounts]) -> list[str]:
        """Raise DataError unless exactly the rows of `meant` were written, and no other tables but those allowed.

        Models missing in `meant` must be unchanged. Returns warnings: what was written to allowed tables.
        """
        touched = self._settled()
        if self._connection.fetch_rows("SELECT current_setting('track_counts')") != [("on",)]:
            raise DataError(
                "A trigger has switched track_counts off in this run's transaction, so what it wrote was not counted, and "
                "nothing was kept. Fix or disable that trigger, then run again."
            )
        self._require_meant(touched, meant)
        others = {oid: each for oid, each in sorted(touched.items(), key=lambda item: item[1].name) if each}
        unmeant = [each for oid, each in others.items() if oid not in self._own.values() and oid not in self._allowed]
        if unmeant:
            options = " ".join(f"--allow-side-effects '{each.name}'" for each in unmeant)
            raise DataError(
                "A foreign key, a trigger or a rule has made this run write to tables that are not its own "
                f"({'; '.join(map(str, unmeant))}), so nothing was kept. `bpr-etl schema check` lists them. "
                f"Where that is meant, allow it: {options}."
            )
        return [
            f"A foreign key, a trigger or a rule has made this run write to {each}."
            for oid, each in others.items()
            if oid in self._allowed
        ]

    def _settled(self) -> dict[int, _TableWrites]:
        """Fire all deferred triggers, which would otherwise fire in COMMIT, and return what was written by table.

        A trigger may defer others again. Raises DataError if they do not stop writing.
        """
        touched: dict[int, _TableWrites] | None = None
        for _ in range(_ROUNDS):
            self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            before, touched = touched, self._touched()
            if touched == before:
                return touched
        raise DataError(
            f"Deferred triggers still write after {_ROUNDS} rounds, so nothing was kept: they keep deferring others. Fix or "
            "disable the triggers that `bpr-etl schema check` lists."
        )

    def _require_meant(self, touched: Mapping[int, _TableWrites], meant: Mapping[str, RowCounts]) -> None:
        wrong = []
        for model, oid in self._own.items():
            found, wanted = touched.get(oid, _TableWrites("")), meant.get(model, RowCounts())
            if oid in self._moving:
                found = replace(found, written=found.written.with_moves_as_updates())
            if found.written != wanted or found.more:
                wrong.append(f"{_TableWrites(self._names[model], found.written, found.more)}; expected {wanted}")
        if wrong:
            raise DataError(
                f"This run wrote other rows than expected ({'. '.join(wrong)}), so nothing was kept. The cause is a trigger, a "
                "rule or a foreign key on these tables (`bpr-etl schema check` lists them), or rows that move to another "
                "partition. Fix it, then run again."
            )

    def _touched(self) -> dict[int, _TableWrites]:
        """Return what was written by table. Partitions count as their table, and temporary tables are ignored.

        The tables are those that are locked. They are looked up without the snapshot, because the transaction may also write
        to tables that were created after it.
        """
        rows = self._connection.fetch_rows(
            "SELECT l.oid::int8, COALESCE(pg_partition_root(l.oid), l.oid)::oid::int8, i.identity, i.type, i.schema, "
            f"l.altered, {_counts_of('l.oid')} FROM (SELECT relation AS oid, bool_or(mode IN ('AccessExclusiveLock', "
            "'ShareRowExclusiveLock')) AS altered "
            "FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'relation' "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            f"AND mode IN ({', '.join(map(quote_literal, _WRITING))}) GROUP BY 1) l CROSS JOIN LATERAL pg_identify_object("
            "'pg_class'::regclass, COALESCE(pg_partition_root(l.oid), l.oid), 0) i"
        )
        found: dict[int, _TableWrites] = {}
        for oid, root, name, kind, schema, altered, *counts in rows:
            before = self._before.get(oid)
            if name is None:  # dropped; of no interest if it was also created since
                if before is not None:
                    found[oid] = _TableWrites(before.name, more="dropped")
            elif kind in {"table", "materialized view", "foreign table"} and not _is_system(schema):
                written = RowCounts(*counts) - (before.written if before else RowCounts())
                more = _UNCOUNTED if kind == "foreign table" else _ALTERED if altered else ""
                old = found.get(root, _TableWrites(name))
                found[root] = _TableWrites(name, old.written + written, old.more or more)
        return found

    def _named(self, name: TableName, schema: str) -> int:
        """Return the oid of the table that the user names: in the run's schema unless the name has another one."""
        tables, schemas = name.table, name.schema or (schema,)
        rows = self._connection.fetch_rows(
            "SELECT COALESCE(pg_partition_root(c.oid), c.oid)::oid::int8 FROM pg_class c "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm', 'f') "
            f"AND c.relname IN ({', '.join(map(quote_literal, tables))}) "
            f"AND n.nspname IN ({', '.join(map(quote_literal, schemas))}) "
            f"ORDER BY n.nspname = {quote_literal(schemas[0])} DESC, c.relname = {quote_literal(tables[0])} DESC LIMIT 1"
        )
        if not rows:
            where = "" if name.schema else f" in schema {schema!r}; one of another schema is named schema.table"
            raise SettingsError(f"--allow-side-effects names {name!r}, and there is no such table{where}.")
        if rows[0][0] in self._own.values():
            raise SettingsError(
                f"--allow-side-effects names {name!r}, which a run itself writes and checks. Remove it."
            )
        return int(rows[0][0])


def require_counted(connection: Connection) -> None:
    """Have the server count what the open transaction writes. Raises SchemaError if it can't, for this role or at all.

    Without the counts, a row that a trigger deletes would go unnoticed.
    """
    counts, hiding, role = connection.fetch_rows(
        "SELECT current_setting('track_counts'), (SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc p "
        "WHERE EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c ILIKE 'track_counts=%')), format('%I', current_user)"
    )[0]
    if hiding:
        raise SchemaError(
            f"Functions of this database set track_counts, so that what they write is not counted: {hiding}. A run could not "
            "see whether a trigger wrote to other users' rows. Have them changed: ALTER FUNCTION ... RESET track_counts."
        )
    if counts == "on":
        return
    try:
        connection.fetch_rows("SELECT set_config('track_counts', 'on', true)")
    except ConnectError:
        raise SchemaError(
            "The server does not count the rows that a transaction writes (track_counts is off), so a run could not see "
            "whether a trigger wrote to other users' rows, and this role may not switch it on. Have a superuser do so: "
            f"ALTER ROLE {role} SET track_counts = on."
        ) from None


def _counts_of(oid: str) -> str:
    """Return SQL of the numbers of rows that the open transaction inserted, updated and deleted in a table."""
    return ", ".join(f"pg_stat_get_xact_tuples_{verb}({oid})" for verb in ("inserted", "updated", "deleted"))


def _is_system(schema: str | None) -> bool:
    return schema is None or schema.startswith("pg_") or schema == "information_schema"
