"""Before COMMIT: that this transaction has written what it meant to write, and not one row of anybody else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from etl.database import Connection
from etl.errors import DataError
from etl.prisma import MODELS, Naming
from etl.queries import Scope

_OWNED = ("PersonaDimension", "RankingEvent", "BehavioralSignal")
"""Written tables whose rows belong to a user."""


@dataclass(frozen=True)
class Written:
    """Rows of a table that were inserted, updated and deleted."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    def __str__(self) -> str:
        return f"{self.inserted:,} inserted, {self.updated:,} updated, {self.deleted:,} deleted"


class Ledger:
    """PostgreSQL's own count of the rows that the open transaction has written since this was made, table by table.

    The counts come from pg_stat_xact_user_tables, and cost no look at a row; triggers, rules and cascades are in them.
    """

    def __init__(self, connection: Connection, scope: Scope) -> None:
        self._connection, self._scope = connection, scope
        # Counts of transactions before this one may not have been handed over by the session yet.
        self._before = self._counts()

    def require(self, meant: Mapping[str, Written]) -> list[str]:
        """Raise DataError unless the models' tables were written as `meant`, and no row of who is no shadow user was.

        Models that `meant` does not name are meant to stay as they are. Gives warnings: other tables that were written by
        somebody's trigger.
        """
        if self._connection.rows("SELECT current_setting('track_counts')") == [("on",)]:
            warnings = self._require_counts(meant)
            # Inserted rows are those that `load` has found in the scope and compared: as many of them, so the same. A row
            # that was changed may have changed its owner, too.
            self._require_owners(model for model in _OWNED if meant.get(model, Written()).updated)
            return warnings
        self._require_owners(_OWNED)
        return ["The server does not count rows (track_counts is off), so only the rows themselves were looked at."]

    def _require_counts(self, meant: Mapping[str, Written]) -> list[str]:
        found = {name: self._since(name, count) for name, count in self._counts().items()}
        naming = self._scope.naming
        wrong = []
        for model in MODELS:
            written, wanted = found.pop(naming.table(model), Written()), meant.get(model, Written())
            if written != wanted:
                wrong.append(f"{naming.table(model)}: {written}; meant were {wanted}")
        if wrong:
            raise DataError(
                f"This run has written rows that it did not mean to write ({'. '.join(wrong)}), so nothing was kept. "
                "A trigger, a rule or a cascade on these tables does it: see to it first."
            )
        return [
            f"A trigger or a cascade has written to {name} in this run's transaction: {written}."
            for name, written in sorted(found.items())
            if written != Written()
        ]

    def _require_owners(self, models: Iterable[str]) -> None:
        """Nobody else's row bears this transaction's number: a look at every row of these tables."""
        naming = self._scope.naming
        for model in models:
            foreign = self._connection.number(
                f"SELECT count(*) FROM {naming.table(model)} x WHERE x.xmin = (SELECT pg_current_xact_id()::xid) "
                f"AND {self._scope.is_nobody_s('x')}"
            )
            if foreign:
                raise DataError(
                    f"{foreign:,} rows of {naming.table(model)} that belong to no shadow user were about to be written, so "
                    "nothing was kept. A trigger or a rule on the table does it: see to it first."
                )

    def _since(self, name: str, count: Written) -> Written:
        before = self._before.get(name, Written())
        return Written(count.inserted - before.inserted, count.updated - before.updated, count.deleted - before.deleted)

    def _counts(self) -> dict[str, Written]:
        """By quoted name; a partition's rows are its table's."""
        rows = self._connection.rows(
            "SELECT n.nspname::text, c.relname::text, sum(s.n_tup_ins)::int8, sum(s.n_tup_upd)::int8, "
            "sum(s.n_tup_del)::int8 FROM pg_stat_xact_user_tables s "
            "JOIN pg_class c ON c.oid = COALESCE(pg_partition_root(s.relid), s.relid) "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE s.n_tup_ins + s.n_tup_upd + s.n_tup_del > 0 GROUP BY 1, 2"
        )
        return {Naming("model", schema).qualified(table): Written(*counts) for schema, table, *counts in rows}
