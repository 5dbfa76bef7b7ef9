"""The privileges that a run's role needs, and no more: the GRANTs, which of them are missing, what row security may hide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from etl.errors import ConnectError, SchemaError
from etl.postgres.connection import Connection
from etl.postgres.naming import LEGS, MODELS, WRITTEN_MODELS, XMIN, Naming, quote_identifier, quote_literal
from etl.postgres.schema.ddl import columns_used


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

_COMMANDS = {"SELECT": "r", "INSERT": "a", "UPDATE": "w", "DELETE": "d"}
"""The letters of `pg_policy.polcmd`."""


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
    privileges = required(naming, writes=writes)
    if hiding := _hiding_tables(connection, naming, privileges):
        to = quote_identifier(role)
        raise SchemaError(
            f"Row security may hide or refuse rows of {', '.join(hiding)} for the role {role}, so what it reads would "
            f"not be all. Give it BYPASSRLS (ALTER ROLE {to} BYPASSRLS), or each table a policy that shows it all rows: CREATE "
            f"POLICY bpr_etl ON {hiding[0]} TO {to} USING (true) WITH CHECK (true)."
        )
    checks: dict[str, str] = {}
    for each in privileges:
        table = naming.table(each.model)
        for column in each.columns:
            checks[f"{each.verb} of column {quote_identifier(column)} on {table}"] = (
                f"has_column_privilege({quote_literal(table)}, {quote_literal(column)}, '{each.verb}')"
            )
        if not each.columns:
            checks[f"{each.verb} on {table}"] = f"has_table_privilege({quote_literal(table)}, '{each.verb}')"
    allowed = connection.fetch_rows(f"SELECT {', '.join(checks.values())}")[0]
    if lacking := [what for what, may in zip(checks, allowed, strict=True) if not may]:
        raise ConnectError(_missing(role, lacking, naming))


def _hiding_tables(connection: Connection, naming: Naming, privileges: Iterable[Privilege]) -> list[str]:
    """Return the tables, sorted, whose policies may hide rows, keep rows from being replaced, or refuse new rows.

    Policies show everything if at least one permissive policy of the command is `true`, and all restrictive ones are.
    What an expression other than `true` hides can't be known. For INSERT any permissive policy is enough: it hides
    nothing, and what it refuses is an error.
    """
    needed = ", ".join(
        f'({quote_literal(naming.table(each.model))}::regclass::oid, {quote_literal(_COMMANDS[each.verb])}::"char")'
        for each in privileges
    )
    rows = connection.fetch_rows(
        f"SELECT DISTINCT t.oid::regclass::text FROM (VALUES {needed}) t(oid, command) "
        "CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE p.polpermissive AND shows) AS showing, "
        "count(*) FILTER (WHERE NOT p.polpermissive AND NOT shows) AS narrowing FROM pg_policy p "
        "CROSS JOIN LATERAL (SELECT t.command = 'a' OR COALESCE(pg_get_expr(p.polqual, p.polrelid) = 'true', false)) e(shows) "
        "WHERE p.polrelid = t.oid AND p.polcmd IN ('*', t.command) AND EXISTS "
        "(SELECT FROM unnest(p.polroles) r(oid) WHERE r.oid = 0 OR pg_has_role(r.oid, 'USAGE'))) found "
        "WHERE row_security_active(t.oid) AND (showing = 0 OR narrowing > 0) ORDER BY 1"
    )
    return [name for (name,) in rows]


def _verb_sql(privilege: Privilege) -> str:
    columns = f" ({', '.join(quote_identifier(name) for name in privilege.columns)})" if privilege.columns else ""
    return privilege.verb + columns


def _missing(role: str, lacking: list[str], naming: Naming) -> str:
    more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    schema = "" if naming.schema == "public" else f" --schema {naming.schema}"
    named = "" if naming.kind == "model" else f" --naming {naming.kind}"
    return (
        f"The role {role} lacks {'privileges' if len(lacking) > 1 else 'a privilege'}: {', '.join(lacking[:3])}{more}. "
        f"`bpr-etl schema print --role {role}{schema}{named}` prints the GRANTs that it needs; have the tables' owner run them."
    )
