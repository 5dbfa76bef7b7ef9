"""The schema of a database: its naming, what does not fit, and the creation of what is missing.

Reads PostgreSQL's catalogs and compares them with `etl.postgres.ddl`. Creates, but never alters or drops: the application's
tables belong to the Prisma project.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from etl.errors import SchemaError
from etl.postgres.connection import Connection
from etl.postgres.ddl import COLUMNS, Column, Statement, schema_statements
from etl.postgres.naming import (
    MODELS,
    SOURCE_MODELS,
    WRITTEN_MODELS,
    Naming,
    quote_identifier,
    quote_literal,
)
from etl.postgres.side_effects import Finding, collation_findings, publication_findings, side_effects
from etl.settings.model import Naming as Wanted

_INDEXED_MODELS = ("ItinerarySlot", "PersonaDimension", "RankingEvent")
"""Models whose plain indexes belong to the design. Those of the other models are the application's choice."""

_UNIQUE: tuple[tuple[str, tuple[str, ...], Literal["blocking", "advice"]], ...] = (
    ("User", ("id",), "blocking"),  # an id of two users would make a real user's rows a shadow user's
    ("ModelRegistry", ("modelName", "modelVersion"), "blocking"),  # ON CONFLICT needs it
    ("PersonaDimension", ("userId", "dimension"), "advice"),  # only the application's own rows could break it
)
_TABLES = ("r", "p")  # ordinary and partitioned
_KINDS = {"r": "a table", "v": "a view", "m": "a materialized view", "f": "a foreign table", "i": "an index"}
_SHOWN = 5


@dataclass(frozen=True)
class _Attribute:
    """A column as it is in the database. `labels` are its enum's values."""

    type: str
    is_enum: bool
    not_null: bool
    has_default: bool
    labels: Sequence[str]


@dataclass(frozen=True)
class _Index:
    """A valid, complete B-tree index. An expression counts as a column without a name."""

    table: str
    unique: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class _Catalog:
    """What the catalogs say about the names that matter here."""

    relations: Mapping[str, str]
    types: frozenset[str]
    attributes: Mapping[tuple[str, str], _Attribute]
    indexes: Sequence[_Index]

    def has(self, table: str) -> bool:
        return self.relations.get(table) in _TABLES

    def kind_of(self, name: str) -> str:
        return _KINDS.get(self.relations[name], "a relation")


def detect_naming(connection: Connection, schema: str, wanted: Wanted) -> Naming:
    """Return the naming of a schema: the one asked for, for `auto` that of its source tables.

    Raises SchemaError if there is no such schema, if it only has tables of the other naming, and for `auto` if it has tables
    of both namings or of neither.
    """
    found = _source_tables(connection, schema)
    if found is None:
        raise SchemaError(
            f"There is no schema {quote_identifier(schema)} in this database. "
            "Say --schema, or create it and its tables with `bpr-etl schema apply`."
        )
    if wanted != "auto":
        other: Literal["model", "mapped"] = "mapped" if wanted == "model" else "model"
        if found[other] and not found[wanted]:
            raise SchemaError(
                f"The tables of schema {quote_identifier(schema)} have {other} names ({', '.join(found[other])}), and none has "
                f"those of --naming {wanted}. Say --naming {other}, or drop the option: the naming is detected."
            )
        return Naming(wanted, schema)
    if not any(found.values()):
        raise SchemaError(
            f"Schema {quote_identifier(schema)} holds none of the source tables, neither by model ({', '.join(SOURCE_MODELS)}) "
            f"nor mapped ({', '.join(MODELS[model] for model in SOURCE_MODELS)}). "
            f"{_elsewhere(connection, schema) or 'Say --schema, or create them with `bpr-etl schema apply`.'}"
        )
    return _unambiguous(found, schema)


def require_no_application_elsewhere(connection: Connection, schema: str) -> None:
    """Raise SchemaError if another schema holds the source tables and `schema` holds none of them.

    A forgotten --schema would otherwise add a second, empty set of the application's tables.
    """
    found = _source_tables(connection, schema)
    if not any((found or {}).values()) and (hint := _elsewhere(connection, schema)):
        raise SchemaError(
            f"Schema {quote_identifier(schema)} holds none of the source tables. {hint} Nothing was created; to create a "
            f"second set of tables, say --schema {schema}."
        )


def _elsewhere(connection: Connection, schema: str) -> str | None:
    """Return a sentence that names the other schemas which hold all source tables; None if there are none."""
    names = _literals((*SOURCE_MODELS, *(MODELS[model] for model in SOURCE_MODELS)))
    rows = connection.fetch_rows(
        "SELECT n.nspname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE c.relkind IN ('r', 'p') AND c.relname IN ({names}) AND n.nspname <> {quote_literal(schema)} "
        f"GROUP BY 1 HAVING count(*) >= {len(SOURCE_MODELS)} ORDER BY 1"
    )
    if not rows:
        return None
    return f"They are in schema {' or '.join(quote_identifier(name) for (name,) in rows)}: say --schema."


def naming_for_apply(connection: Connection, schema: str, wanted: Wanted) -> Naming:
    """Return the naming in which `apply` creates tables: the one asked for, else the one found, else by model.

    Raises SchemaError if tables of both namings are found, and if the one asked for would add a second set of tables to a
    complete set of the other.
    """
    found = _source_tables(connection, schema) or {"model": [], "mapped": []}
    if wanted == "auto":
        return _unambiguous(found, schema) if any(found.values()) else Naming("model", schema)
    other: Literal["model", "mapped"] = "mapped" if wanted == "model" else "model"
    if not found[wanted] and len(found[other]) == len(SOURCE_MODELS):
        raise SchemaError(
            f"The tables of schema {quote_identifier(schema)} have {other} names, and --naming {wanted} would create a "
            f"second set of them. Say --naming {other}, or another --schema."
        )
    return Naming(wanted, schema)


def check(connection: Connection, naming: Naming) -> list[Finding]:
    """Return everything that is missing, does not fit or has side effects, the application's models first."""
    return [
        *_findings(_read(connection, naming), naming),
        *collation_findings(connection, naming),
        *publication_findings(connection, naming),
        *side_effects(connection, naming),
    ]


def require(connection: Connection, naming: Naming, *, writes: bool) -> list[Finding]:
    """Return the advice on a schema that fits, without side effects: these are audited when they happen.

    Raises SchemaError with the first few findings if it does not fit. What publications forbid, and rules that keep a
    statement from working, matter only to a command that `writes`.
    """
    catalog = _read(connection, naming)
    findings = [*_findings(catalog, naming), *collation_findings(connection, naming)]
    if writes and not _blocking(findings):
        _raise_if_blocking(publication_findings(connection, naming), naming, "The tables' owner can do that.")
        findings += (each for each in side_effects(connection, naming) if each.severity == "blocking")
    can_create = _creatable(catalog, naming)
    _raise_if_blocking(
        findings,
        naming,
        "`bpr-etl schema apply` creates what is missing."
        if all(finding.kind == "table" and finding.model in can_create for finding in _blocking(findings))
        else "Migrate the Prisma project to what `bpr-etl schema print --all` shows, or say --schema or --naming.",
    )
    return findings


def apply(connection: Connection, naming: Naming) -> list[str]:
    """Create what is missing in the caller's transaction. Returns the names of what was created.

    The application's own tables are created only if none of them exists. Existing ones only get the index of the design.
    Raises SchemaError if what exists does not fit, or is in the way.
    """
    created = _create_schema(connection, naming)
    catalog = _read(connection, naming)
    can_create = _creatable(catalog, naming)
    left = [each for each in _findings(catalog, naming) if each.kind != "table" or each.model not in can_create]
    _raise_if_blocking(
        left, naming, "Migrate the Prisma project to what `bpr-etl schema print --all` shows; nothing was created."
    )
    for statement in _missing_statements(catalog, naming, can_create):
        if statement.kind in {"table", "index"} and statement.name in catalog.relations:
            raise SchemaError(
                f"{naming.qualified(statement.name)} can't be created: {catalog.kind_of(statement.name)} of that name "
                "exists, but is not what is needed. Rename or drop it; nothing was created."
            )
        connection.execute(statement.sql)
        created.append(statement.name)
    # A type that existed before may lack labels that a table created just now needs.
    left = list(_findings(_read(connection, naming), naming))
    _raise_if_blocking(left, naming, "Migrate the Prisma project first; nothing was created.")
    return created


def _source_tables(connection: Connection, schema: str) -> dict[str, list[str]] | None:
    """Return the existing source tables by naming, None if the schema does not exist."""
    names = [*SOURCE_MODELS, *(MODELS[model] for model in SOURCE_MODELS)]
    rows = connection.fetch_rows(
        "SELECT c.relname::text FROM pg_catalog.pg_namespace n LEFT JOIN pg_catalog.pg_class c "
        f"ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') AND c.relname IN ({_literals(names)}) "
        f"WHERE n.nspname = {quote_literal(schema)}"
    )
    found = {name for (name,) in rows}
    return (
        {
            "model": [model for model in SOURCE_MODELS if model in found],
            "mapped": [MODELS[model] for model in SOURCE_MODELS if MODELS[model] in found],
        }
        if rows
        else None
    )


def _unambiguous(found: Mapping[str, list[str]], schema: str) -> Naming:
    if found["model"] and found["mapped"]:
        raise SchemaError(
            f"Schema {quote_identifier(schema)} holds tables of both namings: by model {', '.join(found['model'])}; "
            f"mapped {', '.join(found['mapped'])}. Say --naming model or --naming mapped, or another --schema."
        )
    return Naming("model" if found["model"] else "mapped", schema)


def _create_schema(connection: Connection, naming: Naming) -> list[str]:
    if _source_tables(connection, naming.schema) is not None:
        return []
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(naming.schema)}")
    return [naming.schema]


def _creatable(catalog: _Catalog, naming: Naming) -> list[str]:
    """Return the models whose missing tables may be created: our own, and the application's if it has none at all."""
    missing = [model for model in MODELS if naming.table_name(model) not in catalog.relations]
    source_too = set(SOURCE_MODELS) <= set(missing)
    return [model for model in missing if source_too or model in WRITTEN_MODELS]


def _missing_statements(catalog: _Catalog, naming: Naming, models: Sequence[str]) -> list[Statement]:
    """Return the statements that `apply` runs in order: all of these models, then missing indexes of existing tables."""
    statements = schema_statements(naming, models)
    new = [each for each in statements if each.kind != "enum" or each.name not in catalog.types]
    return [*new, *_missing_indexes(catalog, naming)]


def _missing_indexes(catalog: _Catalog, naming: Naming) -> Iterator[Statement]:
    """Yield the design's plain indexes for which an existing table has no equivalent, under any name."""
    for statement in schema_statements(naming, _INDEXED_MODELS):
        table = naming.table_name(statement.models[0])
        if statement.kind != "index" or statement.unique or not catalog.has(table):
            continue
        length = len(statement.columns)
        if not any(index.table == table and index.columns[:length] == statement.columns for index in catalog.indexes):
            yield statement


def _raise_if_blocking(findings: Iterable[Finding], naming: Naming, remedy: str) -> None:
    details = [finding.detail.rstrip(".") for finding in _blocking(findings)]
    if not details:
        return
    more = f"; and {len(details) - _SHOWN} more" if len(details) > _SHOWN else ""
    raise SchemaError(
        f"Schema {quote_identifier(naming.schema)} ({naming.kind} names) does not fit: "
        f"{'; '.join(details[:_SHOWN])}{more}. {remedy}"
    )


def _blocking(findings: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "blocking"]


def _findings(catalog: _Catalog, naming: Naming) -> Iterator[Finding]:
    for model in MODELS:
        table = naming.table_name(model)
        if table not in catalog.relations:
            yield Finding("table", model, f"Table {naming.table(model)} is missing.")
        elif not catalog.has(table):
            yield Finding("table", model, f"{naming.table(model)} is {catalog.kind_of(table)}, needed is a table.")
        else:
            yield from _column_findings(catalog, naming, model)
            yield from _unique_findings(catalog, naming, model)
    for statement in _missing_indexes(catalog, naming):
        model = statement.models[0]
        yield Finding(
            "index",
            model,
            f"{naming.table(model)} has no index on ({', '.join(statement.columns)}): `bpr-etl schema apply` creates "
            f"{quote_identifier(statement.name)}.",
            "advice",
        )


def _column_findings(catalog: _Catalog, naming: Naming, model: str) -> Iterator[Finding]:
    table = naming.table_name(model)
    for column in COLUMNS[model]:
        attribute = catalog.attributes.get((table, column.name))
        if attribute is None:
            yield Finding("column", model, f"{naming.table(model)} has no column {quote_identifier(column.name)}.")
        else:
            yield from _column_problems(column, attribute, model, naming)
    if model in WRITTEN_MODELS:
        ours = {column.name for column in COLUMNS[model]}
        for (owner, name), attribute in catalog.attributes.items():
            if owner == table and name not in ours and attribute.not_null and not attribute.has_default:
                where = f"{quote_identifier(name)} of {naming.table(model)}"
                yield Finding(
                    "not_null", model, f"Column {where} is NOT NULL without a default, and bpr-etl does not fill it."
                )


def _column_problems(column: Column, found: _Attribute, model: str, naming: Naming) -> Iterator[Finding]:
    """Yield what does not fit about an existing column."""
    where = f"Column {quote_identifier(column.name)} of {naming.table(model)}"
    if not (found.is_enum if "enum" in column.types else found.type in column.types):
        needed = " or ".join("an enum" if name == "enum" else _type_name(name) for name in column.types)
        yield Finding("type", model, f"{where} has type {_type_name(found.type)}, needed is {needed}.")
    elif lacking := [label for label in column.labels if label not in found.labels]:
        yield Finding("enum_value", model, f"{where} has an enum without {', '.join(map(repr, lacking))}.")
    if column.writes_null and found.not_null:
        yield Finding("not_null", model, f"{where} is NOT NULL, and bpr-etl writes NULL there.")
    if model in SOURCE_MODELS and not column.nullable and not found.not_null:
        yield Finding("not_null", model, f"{where} may be NULL, which bpr-etl does not expect.", "advice")


def _unique_findings(catalog: _Catalog, naming: Naming, model: str) -> Iterator[Finding]:
    table = naming.table_name(model)
    for owner, columns, severity in _UNIQUE:
        if owner == model and not any(
            index.unique and index.table == table and sorted(index.columns) == sorted(columns)
            for index in catalog.indexes
        ):
            detail = f"{naming.table(model)} has no unique index on ({', '.join(columns)})."
            yield Finding("unique", model, detail, severity)


def _type_name(name: str) -> str:
    """Return a type as SQL spells it: `_text` is text[]."""
    return f"{name[1:]}[]" if name.startswith("_") else name


def _read(connection: Connection, naming: Naming) -> _Catalog:
    """Read the catalogs: one query each for relations, types, columns and indexes."""
    statements = schema_statements(naming)
    tables = _literals(naming.table_name(model) for model in MODELS)
    names = _literals(each.name for each in statements if each.kind in {"table", "index"})
    enums = _literals(each.name for each in statements if each.kind == "enum")
    schema = f"(SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = {quote_literal(naming.schema)})"
    relations = connection.fetch_rows(
        "SELECT c.relname::text, c.relkind::text FROM pg_catalog.pg_class c "
        f"WHERE c.relnamespace = {schema} AND c.relname IN ({names})"
    )
    types = connection.fetch_rows(
        f"SELECT t.typname::text FROM pg_catalog.pg_type t WHERE t.typnamespace = {schema} AND t.typname IN ({enums})"
    )
    attributes = connection.fetch_rows(
        "SELECT c.relname::text, a.attname::text, t.typname::text, t.typtype = 'e', a.attnotnull, "
        "a.atthasdef OR a.attidentity <> '', "
        "ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = a.atttypid) "
        "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid "
        "JOIN pg_catalog.pg_type t ON t.oid = a.atttypid "
        f"WHERE c.relnamespace = {schema} AND c.relname IN ({tables}) AND a.attnum > 0 AND NOT a.attisdropped "
        "ORDER BY c.oid, a.attnum"
    )
    indexes = connection.fetch_rows(
        "SELECT c.relname::text, i.indisunique AND i.indimmediate, "
        "ARRAY(SELECT COALESCE(a.attname::text, '') FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) "
        "LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum AND k.attnum <> 0 "
        "WHERE k.place <= i.indnkeyatts ORDER BY k.place) "
        "FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid "
        "JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = x.relam "
        f"WHERE c.relnamespace = {schema} AND c.relname IN ({tables}) AND m.amname = 'btree' "
        "AND i.indisvalid AND i.indpred IS NULL"
    )
    return _Catalog(
        relations=dict(relations),
        types=frozenset(name for (name,) in types),
        attributes={(table, name): _Attribute(*rest) for table, name, *rest in attributes},
        indexes=[_Index(table, unique, tuple(columns)) for table, unique, columns in indexes],
    )


def _literals(names: Iterable[str]) -> str:
    return ", ".join(quote_literal(name) for name in names)
