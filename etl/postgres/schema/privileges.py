"""The privileges that a run's role needs, and no more: the GRANTs, and which of them are missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from etl.errors import ConnectError, SchemaError
from etl.postgres.connection import Connection
from etl.postgres.naming import LEGS, MODELS, WRITTEN_MODELS, XMIN, Naming, quote_identifier, quote_literal
from etl.postgres.schema.ddl import columns_used
from etl.postgres.schema.row_security import hiding_tables


@dataclass(frozen=True)
class Privilege:
    """A privilege on a table, or on some of its columns."""

    model: str
    verb: str
    columns: tuple[str, ...] = ()


def required(naming: Naming, *, writes: bool) -> list[Privilege]:
    """Return the privileges that a command needs; with `writes` those of `run`, which needs all.

    Privileges for what the settings' SQL reads are unknown and not included.

    They are: SELECT on the columns of the application's tables that are read (not, say, a password's hash in User) and
    on our three tables. With `writes`, also INSERT on these three, DELETE on PersonaDimension and RankingEvent, and
    UPDATE of one column of BehavioralSignal for the backfill.
    """
    updated = naming.relation("BehavioralSignal")
    read = [
        *(
            Privilege(model, "SELECT", _names(naming, model))
            for model in (*_READ, *((LEGS,) if naming.has_legs else ()))
        ),
        Privilege(
            "BehavioralSignal", "SELECT", (*_names(naming, "BehavioralSignal"), *((XMIN,) if updated.is_table else ()))
        ),
        *(Privilege(model, "SELECT") for model in WRITTEN_MODELS),
    ]
    if not writes:
        return read
    return [
        *read,
        Privilege("BehavioralSignal", "UPDATE", tuple(naming.columns("BehavioralSignal", ["modelVersion"]))),
        *(Privilege(model, "INSERT") for model in WRITTEN_MODELS),
        *(Privilege(model, "DELETE") for model in ("PersonaDimension", "RankingEvent")),
    ]


_READ = ("User", "Trip", "ItinerarySlot", "ActivityNode")


def _names(naming: Naming, model: str) -> tuple[str, ...]:
    return tuple(naming.columns(model, (column.name for column in columns_used(model, legs=naming.has_legs))))


def _schemas(naming: Naming) -> list[str]:
    """Return the schemas that hold relations of the models, the naming's own first."""
    return list(dict.fromkeys([naming.schema, *(naming.relation(model).schema for model in MODELS)]))


def grants(naming: Naming, role: str) -> str:
    """Return the SQL that grants a role all that `run`, `export` and `validate` need, and nothing else."""
    to = f"TO {quote_identifier(role)};"
    lines = [f"GRANT USAGE ON SCHEMA {quote_identifier(schema)} {to}" for schema in _schemas(naming)]
    for model in (*MODELS, LEGS):
        of_model = [privilege for privilege in required(naming, writes=True) if privilege.model == model]
        if of_model:
            lines.append(f"GRANT {', '.join(map(_verb_sql, of_model))} ON {naming.table(model)} {to}")
    return "\n".join(lines) + "\n"


def require_privileges(connection: Connection, naming: Naming, *, writes: bool) -> None:
    """Raise ConnectError with the missing privileges and how to grant them, unless the role has all that are needed.

    Raises SchemaError if row security may hide or refuse rows for the role, because the run would then miss them.
    """
    schemas = _schemas(naming)
    usable = ", ".join(f"has_schema_privilege({quote_literal(schema)}, 'USAGE')" for schema in schemas)
    role, *may_use = connection.fetch_rows(f"SELECT current_user::text, {usable}")[0]
    if unusable := [schema for schema, may in zip(schemas, may_use, strict=True) if not may]:
        raise ConnectError(
            _missing(role, [f"USAGE on schema {quote_identifier(schema)}" for schema in unusable], naming)
        )
    if hiding := hiding_tables(connection, naming, writes=writes):
        to = quote_identifier(role)
        raise SchemaError(
            f"Row security may hide or refuse rows of {', '.join(hiding)} for the role {role}, so what it reads would "
            f"not be all. Give it BYPASSRLS (ALTER ROLE {to} BYPASSRLS), or each table a policy that shows it all rows: CREATE "
            f"POLICY bpr_etl ON {hiding[0]} TO {to} USING (true) WITH CHECK (true)."
        )
    needed = list(_by_column(required(naming, writes=writes)))
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
