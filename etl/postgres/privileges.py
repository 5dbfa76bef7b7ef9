"""What the job's role must be allowed to do, and no more: the GRANTs, and what is missing of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from etl.errors import ConnectError
from etl.postgres.ddl import COLUMNS
from etl.postgres.naming import MODELS, WRITTEN_MODELS, Naming, quote_identifier, quote_literal

XMIN = "xmin"
"""The system column that tells which transaction wrote a row."""


class Queries(Protocol):
    """The one thing asked of a connection."""

    def fetch_rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        ...


@dataclass(frozen=True)
class Privilege:
    """One thing that the role may do to a table: to all of it, or where `columns` are named to these."""

    model: str
    verb: str
    columns: tuple[str, ...] = ()


def required(*, writes: bool) -> list[Privilege]:
    """What a command needs; `writes` for `run`, which is all of it.

    Of the application's tables only the columns that are read (so not, say, a password's hash in User); the rows of the
    three tables that are ours; and one column of BehavioralSignal, for the backfill.
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
    """The SQL that gives a role all that `run`, `export` and `validate` need, and nothing else."""
    to = f"TO {quote_identifier(role)};"
    lines = [f"GRANT USAGE ON SCHEMA {quote_identifier(naming.schema)} {to}"]
    for model in MODELS:
        of_model = [privilege for privilege in required(writes=True) if privilege.model == model]
        if of_model:
            lines.append(f"GRANT {', '.join(map(_verb_sql, of_model))} ON {naming.table(model)} {to}")
    return "\n".join(lines) + "\n"


def require_privileges(connection: Queries, naming: Naming, *, writes: bool) -> None:
    """Raise ConnectError, which names the missing privilege and the GRANT, unless the role may do what is needed.

    Raises it also where row security would hide rows from the role: what it reads would be less than what is there.
    """
    schema = quote_literal(naming.schema)
    role, usable = connection.fetch_rows(f"SELECT current_user::text, has_schema_privilege({schema}, 'USAGE')")[0]
    if not usable:
        raise ConnectError(_missing(role, [f"USAGE on schema {quote_identifier(naming.schema)}"], naming))
    tables = ", ".join(f"({quote_literal(naming.table(model))})" for model in MODELS)
    hidden = connection.fetch_rows(f"SELECT t.n FROM (VALUES {tables}) t(n) WHERE row_security_active(t.n) ORDER BY 1")
    if hidden:
        raise ConnectError(
            f"Row security hides rows of {', '.join(name for (name,) in hidden)} from the role {role}, so what it reads would "
            f"not be all. Give it BYPASSRLS (ALTER ROLE {quote_identifier(role)} BYPASSRLS), or connect as another role."
        )
    asked = list(_by_column(required(writes=writes)))
    questions = ", ".join(_check_sql(naming, *each) for each in asked)
    allowed = connection.fetch_rows(f"SELECT {questions}")[0]
    lacking = [_describe(naming, *each) for each, may in zip(asked, allowed, strict=True) if not may]
    if lacking:
        raise ConnectError(_missing(role, lacking, naming))


def _verb_sql(privilege: Privilege) -> str:
    columns = f" ({', '.join(quote_identifier(name) for name in privilege.columns)})" if privilege.columns else ""
    return privilege.verb + columns


def _by_column(privileges: Iterable[Privilege]) -> Iterator[tuple[str, str, str | None]]:
    """(model, verb, column), the column None for all of a table."""
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
