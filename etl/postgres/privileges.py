"""The privileges that a run's role needs, and no more: the GRANTs, and which of them are missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from etl.errors import ConnectError, SchemaError
from etl.postgres.connection import Connection
from etl.postgres.ddl import COLUMNS
from etl.postgres.naming import MODELS, WRITTEN_MODELS, Naming, quote_identifier, quote_literal
from etl.postgres.row_security import hiding_tables

XMIN = "xmin"
"""The system column with the id of the transaction that wrote a row."""


@dataclass(frozen=True)
class Privilege:
    """A privilege on a table, or on some of its columns."""

    model: str
    verb: str
    columns: tuple[str, ...] = ()


def required(*, writes: bool) -> list[Privilege]:
    """Return the privileges that a command needs; with `writes` those of `run`, which needs all.

    SELECT on the columns of the application's tables that are read (not, say, a password's hash in User), the rows of our
    three tables, and UPDATE of one column of BehavioralSignal for the backfill.
    """
    read = [
        *(Privilege(model, "SELECT", tuple(column.name for column in COLUMNS[model])) for model in _READ),
        Privilege("BehavioralSignal", "SELECT", (*(c.name for c in COLUMNS["BehavioralSignal"]), XMIN)),
        *(Privilege(model, "SELECT") for model in WRITTEN_MODELS),
    ]
    if not writes:
        return read
    return [
        *read,
        Privilege("BehavioralSignal", "UPDATE", ("modelVersion",)),
        *(Privilege(model, "INSERT") for model in WRITTEN_MODELS),
        *(Privilege(model, "DELETE") for model in ("PersonaDimension", "RankingEvent")),
    ]


_READ = ("User", "Trip", "ItinerarySlot", "ActivityNode")


def grants(naming: Naming, role: str) -> str:
    """Return the SQL that grants a role all that `run`, `export` and `validate` need, and nothing else."""
    to = f"TO {quote_identifier(role)};"
    lines = [f"GRANT USAGE ON SCHEMA {quote_identifier(naming.schema)} {to}"]
    for model in MODELS:
        of_model = [privilege for privilege in required(writes=True) if privilege.model == model]
        if of_model:
            lines.append(f"GRANT {', '.join(map(_verb_sql, of_model))} ON {naming.table(model)} {to}")
    return "\n".join(lines) + "\n"


def require_privileges(connection: Connection, naming: Naming, *, writes: bool) -> None:
    """Raise ConnectError with the missing privileges and how to grant them, unless the role has all that are needed.

    Raises SchemaError if row security may hide or refuse rows for the role, because the run would then miss them.
    """
    schema = quote_literal(naming.schema)
    role, usable = connection.fetch_rows(f"SELECT current_user::text, has_schema_privilege({schema}, 'USAGE')")[0]
    if not usable:
        raise ConnectError(_missing(role, [f"USAGE on schema {quote_identifier(naming.schema)}"], naming))
    if hiding := hiding_tables(connection, naming, writes=writes):
        to = quote_identifier(role)
        raise SchemaError(
            f"Row security may hide or refuse rows of {', '.join(hiding)} for the role {role}, so what it reads would "
            f"not be all. Give it BYPASSRLS (ALTER ROLE {to} BYPASSRLS), or each table a policy that shows it all rows: CREATE "
            f"POLICY bpr_etl ON {hiding[0]} TO {to} USING (true) WITH CHECK (true)."
        )
    needed = list(_by_column(required(writes=writes)))
    checks = ", ".join(_check_sql(naming, *each) for each in needed)
    allowed = connection.fetch_rows(f"SELECT {checks}")[0]
    lacking = [_describe(naming, *each) for each, may in zip(needed, allowed, strict=True) if not may]
    if lacking:
        raise ConnectError(_missing(role, lacking, naming))


def _verb_sql(privilege: Privilege) -> str:
    columns = f" ({', '.join(quote_identifier(name) for name in privilege.columns)})" if privilege.columns else ""
    return privilege.verb + columns


def _by_column(privileges: Iterable[Privilege]) -> Iterator[tuple[str, str, str | None]]:
    """Yield (model, verb, column). The column is None for a privilege on the table."""
    for privilege in privileges:
        for column in privilege.columns or (None,):
            yield privilege.model, privilege.verb, column


def _check_sql(naming: Naming, model: str, verb: str, column: str | None) -> str:
    table = quote_literal(naming.table(model))
    if column is None:
        return f"has_table_privilege({table}, '{verb}')"
    return f"has_column_privilege({table}, {quote_literal(column)}, '{verb}')"


def _describe(naming: Naming, model: str, verb: str, column: str | None) -> str:
    of_column = "" if column is None else f" of column {quote_identifier(column)}"
    return f"{verb}{of_column} on {naming.table(model)}"


def _missing(role: str, lacking: list[str], naming: Naming) -> str:
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    schema = "" if naming.schema == "public" else f" --schema {naming.schema}"
    named = "" if naming.kind == "model" else f" --naming {naming.kind}"
    return (
        f"The role {role} lacks {'privileges' if len(lacking) > 1 else 'a privilege'}: {', '.join(lacking[:3])}{more}. "
        f"`bpr-etl schema print --role {role}{schema}{named}` prints the GRANTs that it needs; have the tables' owner run them."
    )
