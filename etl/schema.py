"""A database's catalogue against what bpr-etl needs: find the naming, say what is missing, create it.

What is there already is never altered or dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from etl.errors import SchemaError
from etl.prisma import (
    COLUMNS,
    MODELS,
    SOURCE_MODELS,
    WRITTEN_MODELS,
    Column,
    Naming,
    Statement,
    quote_identifier,
    quote_literal,
    schema_statements,
)

Wanted = Literal["auto", "model", "mapped"]
Severity = Literal["blocking", "advice"]

_SHOWN = 5


class Queries(Protocol):
    """The part of a connection that is used here."""

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""

    def execute(self, sql: str) -> int:
        """Run a statement."""


@dataclass(frozen=True)
class Finding:
    """What is missing or does not fit: one sentence. `advice` is worth mending, `blocking` stops a run."""

    kind: str
    model: str
    detail: str
    severity: Severity = "blocking"


@dataclass(frozen=True)
class _Found:
    """A column as the catalogue has it: `type` is `enum` for any enum, whose values are in `labels`."""

    type: str
    not_null: bool
    has_default: bool
    labels: tuple[str, ...]


def detect_naming(connection: Queries, schema: str, wanted: Wanted) -> Naming:
    """The naming of a schema's tables, by which of the application's own tables are there.

    Raises SchemaError when the schema is not there, and, unless a naming is asked for, when tables of both namings are
    there, or of none.
    """
    if not _schema_exists(connection, schema):
        raise SchemaError(f"The database has no schema {schema!r}. Give the right one with --schema, or in the URL.")
    if wanted != "auto":
        return Naming(wanted, schema)
    there = _tables(connection, schema)
    model = [name for name in SOURCE_MODELS if name in there]
    mapped = [MODELS[name] for name in SOURCE_MODELS if MODELS[name] in there]
    if model and mapped:
        raise SchemaError(
            f"Schema {schema!r} has tables of both namings ({', '.join(model)}; {', '.join(mapped)}). "
            "Say which ones are the application's: --naming model or --naming mapped."
        )
    if not model and not mapped:
        raise SchemaError(
            f"Schema {schema!r} has none of the application's tables, neither {', '.join(SOURCE_MODELS)} nor "
            f"{', '.join(MODELS[name] for name in SOURCE_MODELS)}. Give the right --schema, "
            "or create them with `bpr-etl schema apply`."
        )
    return Naming("model" if model else "mapped", schema)


def naming_for_apply(connection: Queries, schema: str, wanted: Wanted) -> Naming:
    """The naming to create tables in: as `detect_naming`, and model naming where nothing is there yet."""
    if not _schema_exists(connection, schema):
        return Naming("model" if wanted == "auto" else wanted, schema)
    there = _tables(connection, schema)
    nothing = not any(name in there or MODELS[name] in there for name in SOURCE_MODELS)
    return Naming("model", schema) if wanted == "auto" and nothing else detect_naming(connection, schema, wanted)


def check(connection: Queries, naming: Naming) -> list[Finding]:
    """What is missing in the database or does not fit, the application's tables first."""
    columns = _columns(connection, naming)
    findings = [finding for model in MODELS for finding in _check_table(naming, model, columns.get(naming.bare(model)))]
    indexes = _indexes(connection, naming)
    if naming.bare("ModelRegistry") in columns and not _has_unique(indexes, naming, "ModelRegistry", _REGISTRY_KEY):
        table = naming.table("ModelRegistry")
        findings.append(
            Finding("unique", "ModelRegistry", f"Table {table} is not unique on {', '.join(_REGISTRY_KEY)}.")
        )
    if naming.bare("ItinerarySlot") in columns and not _has_leading(indexes, naming, "ItinerarySlot", _DAY_INDEX):
        findings.append(
            Finding(
                "index",
                "ItinerarySlot",
                f"Table {naming.table('ItinerarySlot')} has no index on {', '.join(_DAY_INDEX)}, which the validation "
                "query wants; `bpr-etl schema apply` creates it.",
                "advice",
            )
        )
    return findings


def require(connection: Queries, naming: Naming) -> list[Finding]:
    """Raise SchemaError when something is missing that a run needs; give what is merely advised."""
    findings = check(connection, naming)
    blocking = [finding.detail for finding in findings if finding.severity == "blocking"]
    if blocking:
        more = f" And {len(blocking) - _SHOWN} more: see `bpr-etl schema check`." if len(blocking) > _SHOWN else ""
        raise SchemaError(
            f"The schema does not fit. {' '.join(blocking[:_SHOWN])}{more} `bpr-etl schema apply` creates missing tables."
        )
    return [finding for finding in findings if finding.severity == "advice"]


def apply(connection: Queries, naming: Naming) -> list[str]:
    """Create what is missing, inside the caller's transaction; gives the names of what was created, in order.

    The application's own tables too, where there is none of them. Raises SchemaError when what is there does not fit:
    a table that exists is the application's to alter.
    """
    if not _schema_exists(connection, naming.schema):
        connection.execute(f"CREATE SCHEMA {quote_identifier(naming.schema)}")
    there = {model for model in MODELS if naming.bare(model) in _tables(connection, naming.schema)}
    missing = set(MODELS) - there
    if there.intersection(SOURCE_MODELS) and missing.intersection(SOURCE_MODELS):
        lost = ", ".join(naming.table(model) for model in MODELS if model in missing.intersection(SOURCE_MODELS))
        raise SchemaError(f"Some of the application's tables are there, and {lost} not: migrate the application first.")
    enums = {name for (name,) in connection.rows(_ENUMS.format(schema=quote_literal(naming.schema)))}
    created = [_create(connection, each) for each in schema_statements(naming, missing) if each.name not in enums]
    if any(finding.kind == "index" for finding in check(connection, naming)):
        created += [_create(connection, each) for each in _day_index(naming)]
    require(connection, naming)
    return created


_REGISTRY_KEY = ("modelName", "modelVersion")
_DAY_INDEX = ("tripId", "dayNumber")

_ENUMS = """SELECT t.typname::text FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.typtype = 'e' AND n.nspname = {schema}"""

_COLUMNS = """SELECT c.relname::text, a.attname::text, CASE t.typtype WHEN 'e' THEN 'enum' ELSE t.typname::text END,
  a.attnotnull, a.atthasdef OR a.attidentity <> '',
  ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
WHERE n.nspname = {schema} AND c.relkind IN ('r', 'p') AND c.relname IN ({tables})"""

_INDEXES = """SELECT c.relname::text, i.indisunique AND i.indpred IS NULL,
  ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(number, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.place)
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = {schema} AND i.indisvalid AND c.relname IN ({tables})"""


def _schema_exists(connection: Queries, schema: str) -> bool:
    return bool(connection.rows(f"SELECT 1 FROM pg_namespace WHERE nspname = {quote_literal(schema)}"))


def _tables(connection: Queries, schema: str) -> set[str]:
    sql = (
        "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE n.nspname = {quote_literal(schema)} AND c.relkind IN ('r', 'p')"
    )
    return {name for (name,) in connection.rows(sql)}


def _in_scope(sql: str, naming: Naming) -> str:
    tables = ", ".join(quote_literal(naming.bare(model)) for model in MODELS)
    return sql.format(schema=quote_literal(naming.schema), tables=tables)


def _columns(connection: Queries, naming: Naming) -> dict[str, dict[str, _Found]]:
    """The columns of our tables, by table and name."""
    found: dict[str, dict[str, _Found]] = {}
    for table, column, type_, not_null, has_default, labels in connection.rows(_in_scope(_COLUMNS, naming)):
        found.setdefault(table, {})[column] = _Found(type_, not_null, has_default, tuple(labels))
    return found


def _indexes(connection: Queries, naming: Naming) -> list[tuple[str, bool, list[str]]]:
    """The valid indexes of our tables: (table, unique without a condition, columns in order)."""
    return [(table, unique, list(columns)) for table, unique, columns in connection.rows(_in_scope(_INDEXES, naming))]


def _has_unique(
    indexes: Iterable[tuple[str, bool, list[str]]], naming: Naming, model: str, key: tuple[str, ...]
) -> bool:
    return any(table == naming.bare(model) and unique and set(on) == set(key) for table, unique, on in indexes)


def _has_leading(
    indexes: Iterable[tuple[str, bool, list[str]]], naming: Naming, model: str, key: tuple[str, ...]
) -> bool:
    return any(table == naming.bare(model) and tuple(on[: len(key)]) == key for table, _, on in indexes)


def _check_table(naming: Naming, model: str, found: dict[str, _Found] | None) -> Iterable[Finding]:
    table = naming.table(model)
    if found is None:
        yield Finding("table", model, f"Table {table} is missing.")
        return
    for column in COLUMNS[model]:
        yield from _check_column(table, model, column, found.get(column.name))
    if model in WRITTEN_MODELS:
        ours = {column.name for column in COLUMNS[model]}
        for name in sorted(set(found) - ours):
            if found[name].not_null and not found[name].has_default:
                yield Finding(
                    "not_null",
                    model,
                    f"Column {name!r} of table {table} must have a value, and bpr-etl does not know it.",
                )


def _check_column(table: str, model: str, column: Column, found: _Found | None) -> Iterable[Finding]:
    if found is None:
        yield Finding("column", model, f"Table {table} has no column {column.name!r}.")
        return
    if found.type not in column.types:
        yield Finding(
            "type", model, f"Column {column.name!r} of table {table} is {found.type}, and should be {column.types[0]}."
        )
    if column.written_null and found.not_null:
        yield Finding("not_null", model, f"Column {column.name!r} of table {table} must allow NULL.")
    for label in column.labels:
        if found.type == "enum" and label not in found.labels:
            yield Finding("enum_value", model, f"The enum of column {column.name!r} of table {table} lacks {label!r}.")


def _day_index(naming: Naming) -> list[Statement]:
    statements = schema_statements(naming, ["ItinerarySlot"])
    return [each for each in statements if each.kind == "index" and each.columns == _DAY_INDEX]


def _create(connection: Queries, statement: Statement) -> str:
    connection.execute(statement.sql)
    return statement.name
