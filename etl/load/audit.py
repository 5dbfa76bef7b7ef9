"""Before COMMIT: that this transaction has written what it meant to write, and not one row of anybody else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from etl.errors import ConnectError, DataError, SchemaError, SettingsError
from etl.postgres.connection import Connection
from etl.postgres.ddl import quote_literal
from etl.postgres.scope import Scope
from etl.settings.values import TableName

_WRITING = ("RowExclusiveLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock")
"""The locks that a transaction holds until its end on whatever it has written to."""

_RUN_WRITES = ("ModelRegistry", "PersonaDimension", "RankingEvent", "BehavioralSignal")
_ROUNDS = 10
"""How often deferred triggers may make others fire."""

_UNCOUNTED = "a foreign table, whose rows are not counted"
_ALTERED = "emptied, altered or locked exclusively"


@dataclass(frozen=True)
class RowCounts:
    """Rows of a table that were inserted, updated and deleted."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    def __str__(self) -> str:
        return f"{self.inserted:,} inserted, {self.updated:,} updated, {self.deleted:,} deleted"

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(self.inserted + other.inserted, self.updated + other.updated, self.deleted + other.deleted)

    def __sub__(self, other: RowCounts) -> RowCounts:
        return RowCounts(self.inserted - other.inserted, self.updated - other.updated, self.deleted - other.deleted)


@dataclass(frozen=True)
class _TableWrites:
    """What the transaction did to a table: the rows it wrote, and what is not seen in a count of rows."""

    name: str
    written: RowCounts = RowCounts()
    more: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in (f"{self.name}: {self.written}", self.more) if part)

    def __bool__(self) -> bool:
        return self.written != RowCounts() or bool(self.more)


class WriteAudit:
    """PostgreSQL's own account of what the open transaction has written since this was made, table by table.

    Which tables it may have written to is told by the locks that it holds, and how many rows by the server's counters, so no
    row is looked at. Rows that triggers, rules and cascades write are in it, in subtransactions too; those of a
    subtransaction that was rolled back are not, unless the table was written to outside of it as well.

    Raises SchemaError where the server does not count and can't be made to, SettingsError where `allowed`, tables as a person
    names them, has a name that is no table's, or that of a table which a run itself writes.
    """

    def __init__(self, connection: Connection, scope: Scope, allowed: Iterable[TableName] = ()) -> None:
        require_counted(connection)
        self._connection = connection
        models = ", ".join(
            f"to_regclass({quote_literal(scope.naming.table(model))})::oid::int8" for model in _RUN_WRITES
        )
        self._own = dict(zip(_RUN_WRITES, connection.fetch_rows(f"SELECT {models}")[0], strict=True))
        self._names = {model: scope.naming.table(model) for model in _RUN_WRITES}
        self._allowed = {self._named(name, scope.naming.schema) for name in allowed}
        # Counts of transactions before this one may not have been handed over by the session yet.
        self._before = {
            oid: _TableWrites(name, RowCounts(*counts))
            for oid, name, *counts in connection.fetch_rows(
                f"SELECT c.oid::int8, format('%I.%I', n.nspname, c.relname), {_counts_of('c.oid')} FROM pg_class c "
                "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm', 'f') "
                r"AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
            )
        }

    def verify(self, meant: Mapping[str, RowCounts]) -> list[str]:
        """Raise DataError unless the tables that a run writes were written as `meant`, and no other was but those allowed.

        Models that `meant` does not name are meant to stay as they are. Gives warnings: what was written to allowed tables.
        """
        touched = self._settled()
        if self._connection.fetch_rows("SELECT current_setting('track_counts')") != [("on",)]:
            raise DataError(
                "A trigger has switched track_counts off in this run's transaction, so what it wrote was not counted, and "
                "nothing was kept. See to it first."
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
        """What was written, once all deferred triggers have fired, which would else fire in COMMIT.

        A trigger may defer others again. Raises DataError where they go on writing.
        """
        touched: dict[int, _TableWrites] | None = None
        for _ in range(_ROUNDS):
            self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            before, touched = touched, self._touched()
            if touched == before:
                return touched
        raise DataError(
            f"Deferred triggers have gone on writing for {_ROUNDS} rounds, so nothing was kept: each defers another. See to "
            "the triggers that `bpr-etl schema check` lists."
        )

    def _require_meant(self, touched: Mapping[int, _TableWrites], meant: Mapping[str, RowCounts]) -> None:
        wrong = []
        for model, oid in self._own.items():
            found, wanted = touched.get(oid, _TableWrites("")), meant.get(model, RowCounts())
            if found.written != wanted or found.more:
                wrong.append(f"{_TableWrites(self._names[model], found.written, found.more)}; meant were {wanted}")
        if wrong:
            raise DataError(
                f"This run has written rows that it did not mean to write ({'. '.join(wrong)}), so nothing was kept. "
                "A trigger, a rule or a foreign key on these tables does it, or rows that move to another partition: see to it "
                "first."
            )

    def _touched(self) -> dict[int, _TableWrites]:
        """By table. A partition's rows are its table's, and the session's temporary tables are nobody's.

        Asked of the locks, and named without the snapshot, since the transaction may also write to tables made after it.
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
            if name is None:  # dropped: if it was made meanwhile, too, nobody misses it
                if before is not None:
                    found[oid] = _TableWrites(before.name, more="dropped")
            elif kind in {"table", "materialized view", "foreign table"} and not _is_system(schema):
                written = RowCounts(*counts) - (before.written if before else RowCounts())
                more = _UNCOUNTED if kind == "foreign table" else _ALTERED if altered else ""
                old = found.get(root, _TableWrites(name))
                found[root] = _TableWrites(name, old.written + written, old.more or more)
        return found

    def _named(self, name: TableName, schema: str) -> int:
        """The table that a person's name for it means: one of the run's schema, unless the name says another."""
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
                f"--allow-side-effects names {name!r}, which a run itself writes: there it must be as meant. Leave it out."
            )
        return int(rows[0][0])


def require_counted(connection: Connection) -> None:
    """Have the server count what the open transaction writes. Raises SchemaError where it does not, for this role or at all.

    Without its counts nobody could see that a trigger deleted a row.
    """
    counts, hiding, role = connection.fetch_rows(
        "SELECT current_setting('track_counts'), (SELECT string_agg(p.oid::regprocedure::text, ', ') FROM pg_proc p "
        "WHERE EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c ILIKE 'track_counts=%')), format('%I', current_user)"
    )[0]
    if hiding:
        raise SchemaError(
            f"What a function writes that sets track_counts is not counted, and this database has some: {hiding}. A run could "
            "not see whether a trigger wrote to somebody else's rows. Have it changed: ALTER FUNCTION ... RESET track_counts."
        )
    if counts == "on":
        return
    try:
        connection.fetch_rows("SELECT set_config('track_counts', 'on', true)")
    except ConnectError:
        raise SchemaError(
            "The server does not count the rows that a transaction writes (track_counts is off), so a run could not see "
            "whether a trigger wrote to somebody else's rows, and this role may not switch it on. Have a superuser do so: "
            f"ALTER ROLE {role} SET track_counts = on."
        ) from None


def _counts_of(oid: str) -> str:
    """SQL of the rows that the open transaction has inserted into a table, updated and deleted."""
    return ", ".join(f"pg_stat_get_xact_tuples_{verb}({oid})" for verb in ("inserted", "updated", "deleted"))


def _is_system(schema: str | None) -> bool:
    return schema is None or schema.startswith("pg_") or schema == "information_schema"
