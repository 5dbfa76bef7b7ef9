"""How a database stores the models: its naming, and each model's relation, columns and types (docs/mapping.md).

Columns are found in camelCase or in snake case, or as the settings' `[map.Model]` tables say. A type that converts without loss
is read through a cast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from etl.errors import SchemaError, SettingsError
from etl.postgres.connection import Connection
from etl.postgres.naming import (
    LEGS,
    MODELS,
    SOURCE_MODELS,
    WRITTEN_MODELS,
    MappedColumn,
    Naming,
    Relation,
    quote_identifier,
    quote_literal,
)
from etl.postgres.schema.catalog import READABLE, Attribute, Catalog, literals, read_catalog
from etl.postgres.schema.ddl import Column, columns_used
from etl.postgres.schema.side_effects import Finding
from etl.settings.model import Naming as Wanted
from etl.settings.values import TableName, suggestion

_INT4 = "{} BETWEEN -2147483648 AND 2147483647"
_TO_TEXT = "{}::pg_catalog.text"
_TO_INT = "{}::pg_catalog.int4"
_TO_FLOAT = "{}::pg_catalog.float8"

_READ: Mapping[str, Mapping[str, str]] = {
    "text": {
        "text": "{}",
        "varchar": "{}",
        **dict.fromkeys(("bpchar", "name", "uuid", "citext", "enum"), _TO_TEXT),
    },
    "enum": {"enum": "{}", **dict.fromkeys(("text", "varchar", "bpchar", "name", "citext"), _TO_TEXT)},
    # What no int4 holds is read as NULL, which the frame's schema rejects and counts.
    "int4": {
        "int4": "{}",
        "int2": _TO_INT,
        "int8": f"CASE WHEN {_INT4} THEN {_TO_INT} END",
        "numeric": f"CASE WHEN {_INT4} AND {{}} = pg_catalog.trunc({{}}) THEN {_TO_INT} END",
    },
    "float8": {"float8": "{}", **dict.fromkeys(("float4", "numeric", "int2", "int4", "int8"), _TO_FLOAT)},
    "timestamp": {
        "timestamp": "{}",
        "timestamptz": "{} AT TIME ZONE 'UTC'",
        "date": "CASE WHEN {} < pg_catalog.date '294000-01-01' THEN {}::pg_catalog.timestamp "
        "ELSE pg_catalog.timestamp 'infinity' END",
    },
    "jsonb": {"jsonb": "{}", "json": "{}::pg_catalog.jsonb"},
    "_text": {
        "_text": "{}",
        **dict.fromkeys(("_varchar", "_bpchar", "_uuid", "_citext", "_enum"), "{}::pg_catalog.text[]"),
    },
}
"""By type of the contract and type in pg_type: SQL that reads a column without loss."""

_WRITE: Mapping[str, Mapping[str, str]] = {
    # An explicit cast to varchar(n) would cut a text in silence. An assignment is refused if it does not fit.
    "text": {**dict.fromkeys(("text", "varchar", "citext"), "{}"), **dict.fromkeys(("uuid", "enum"), "{}::{type}")},
    "enum": {"enum": "{}::{type}", **dict.fromkeys(("text", "varchar", "citext"), "{}")},
    "int4": dict.fromkeys(("int4", "int8", "numeric"), "{}"),
    "float8": dict.fromkeys(("float8", "numeric"), "{}"),
    "timestamp": {"timestamp": "{}", "timestamptz": "{} AT TIME ZONE 'UTC'"},
    "jsonb": {},
    "_text": {
        **dict.fromkeys(("_text", "_varchar"), "{}"),
        **dict.fromkeys(("_uuid", "_enum", "_citext"), "{}::{type}"),
    },
}
"""By type of the contract and type in pg_type: SQL that converts a value for a column which is written."""

_EXACT = {"text": ("text", "varchar"), "enum": ("enum",)}
"""Types that COPY accepts without conversion, if there are more than the contract's own."""

_MODEL_KEYS = ("table", "where")
"""The keys of `[map.Model]` that are not columns."""

CITY_OF_LEGS = ("Trip", "city")
"""The column that a database with legs may lack: each leg has its own."""

_DELETED = re.compile(r"(?:is_?)?(?:soft_?)?(?:deleted|removed|trashed)(?:_?at)?", re.IGNORECASE)

_NAME = re.compile(r'[^\W\d][\w$]*|"(?:[^"]|"")+"')


def find_relations(
    connection: Connection, schema: str, wanted: Wanted, given: Mapping[str, Mapping[str, str]] | None = None
) -> tuple[Naming, Catalog]:
    """Return the naming asked for (for `auto`, that of the source tables), with every model's relation, and the catalog.

    `given` are the `[map.Model]` tables of the settings. Raises SchemaError if there is no such schema, if it only has tables
    of the other naming, and for `auto` if it has tables of both namings or of neither. Raises SettingsError if `given`
    has a name that is not in the contract.
    """
    given = given or {}
    _require_known(given)
    if any(_is_sql(key, text) for entries in given.values() for key, text in entries.items()):
        connection.search_last(schema)
    models = [model for model in SOURCE_MODELS if "table" not in given.get(model, {})]
    found = named_tables(connection, schema, models)
    if found is None:
        raise SchemaError(
            f"There is no schema {quote_identifier(schema)} in this database. "
            "Say --schema, or create it and its tables with `bpr-etl schema apply`."
        )
    if wanted != "auto":
        other = other_naming(wanted)
        if found[other] and not found[wanted]:
            raise SchemaError(
                f"The tables of schema {quote_identifier(schema)} have {other} names ({', '.join(found[other])}), and none has "
                f"those of --naming {wanted}. Say --naming {other}, or drop the option: the naming is detected."
            )
        return resolve_relations(connection, Naming(wanted, schema, map=given))
    if not any(found.values()):
        if len(models) == len(SOURCE_MODELS):
            raise SchemaError(
                f"Schema {quote_identifier(schema)} holds none of the source tables, neither by model "
                f"({', '.join(SOURCE_MODELS)}) nor mapped ({', '.join(MODELS[model] for model in SOURCE_MODELS)}). "
                f"{elsewhere(connection, schema) or 'Say --schema, create them with `bpr-etl schema apply`, or map others'}"
                " (`bpr-etl schema map`)."
            )
        found = named_tables(connection, schema, WRITTEN_MODELS) or found
    return resolve_relations(connection, replace(unambiguous(found, schema), map=given))


def _require_known(given: Mapping[str, Mapping[str, str]]) -> None:
    models = (*MODELS, LEGS)
    for model, entries in given.items():
        if model not in models:
            raise SettingsError(f"[map.{model}] names a model that there is not{suggestion(model, models) or '.'}")
        known = [column.name for column in columns_used(model, legs=True)]
        for key, text in entries.items():
            if key not in (*known, *_MODEL_KEYS):
                raise SettingsError(
                    f"[map.{model}] has an unknown key {key!r}{suggestion(key, (*known, *_MODEL_KEYS)) or '.'}"
                )
            if model in WRITTEN_MODELS and _is_sql(key, text):
                raise SettingsError(
                    f"[map.{model}] has SQL for {key}, but a run writes there: only table and names of columns can be mapped."
                )


def _is_sql(key: str, text: str) -> bool:
    return key == "where" or (key != "table" and not _NAME.fullmatch(text))


def resolve_relations(connection: Connection, naming: Naming) -> tuple[Naming, Catalog]:
    """Return the naming with each model's relation as it is in the database, and the catalog.

    A missing relation has no kind and no columns.
    """
    tables = {
        model: _named_relation(connection, naming.schema, TableName(entries["table"]))
        for model, entries in naming.map.items()
        if "table" in entries
    }
    named = replace(naming, relations=tables)
    catalog = read_catalog(connection, named)
    leg = map_column(catalog, naming, "ItinerarySlot", columns_used("ItinerarySlot", legs=True)[-1])
    legs = LEGS in catalog.kinds and isinstance(leg, MappedColumn)
    relations = {model: _resolved(catalog, named, model, legs=legs) for model in (*MODELS, *((LEGS,) if legs else ()))}
    return replace(named, relations=relations), catalog


def _named_relation(connection: Connection, schema: str, table: TableName) -> Relation:
    """Return the relation that the settings name, in the spelling that exists; if none does, the first."""
    rows = connection.fetch_rows(
        "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n "
        f"ON n.oid = c.relnamespace WHERE n.nspname IN ({literals(table.schema or (schema,))}) "
        f"AND c.relname IN ({literals(table.table)}) AND c.relkind IN ({literals(READABLE)}) "
        f"ORDER BY c.relname = {quote_literal(table.table[0])} DESC LIMIT 1"
    )
    return Relation(*(rows[0] if rows else ((table.schema or (schema,))[0], table.table[0])))


def _resolved(catalog: Catalog, naming: Naming, model: str, *, legs: bool) -> Relation:
    columns = {}
    for column in columns_used(model, legs=legs):
        found = map_column(catalog, naming, model, column)
        if isinstance(found, MappedColumn):
            columns[column.name] = found
        elif legs and (model, column.name) == CITY_OF_LEGS:
            columns[column.name] = MappedColumn(None, "NULL::pg_catalog.text")
    where = naming.map.get(model, {}).get("where", "")
    return replace(
        naming.relation(model),
        kind=catalog.kinds.get(model, ""),
        columns=columns,
        where=where,
        secured=model in catalog.secured,
    )


def map_column(catalog: Catalog, naming: Naming, model: str, column: Column) -> MappedColumn | Finding:
    """Return how a column is read and written, or why it can't be."""
    text = naming.map.get(model, {}).get(column.name)
    if text is not None and not _NAME.fullmatch(text):
        return MappedColumn(None, text if column.type == "enum" else f"({text}\n)::{_sql_type(column)}")
    # In quotes a name is looked for as it stands, else also in lower case.
    spellings = TableName(text).table if text is not None else conventions(column.name)
    names = [name for name in spellings if (model, name) in catalog.attributes]
    table = naming.table(model)
    if not names:
        mapped = f" (named by [map.{model}] {column.name})" if text is not None else ""
        return Finding("column", model, f"{table} has no column {quote_identifier(spellings[0])}{mapped}.")
    if text is None and len(names) > 1:
        both = " and ".join(map(quote_identifier, names))
        return Finding(
            "column", model, f"{table} has the columns {both}: say which with {column.name} in [map.{model}]."
        )
    return _converted(names[0], catalog.attributes[model, names[0]], model, column, table)


def _converted(name: str, found: Attribute, model: str, column: Column, table: str) -> MappedColumn | Finding:
    wanted = column.type
    known = accepted_types(model, wanted)
    if found.type not in known:
        needed = ", ".join("an enum" if each == "enum" else type_name(each) for each in known)
        return Finding(
            "type",
            model,
            f"Column {quote_identifier(name)} of {table} has type {found.sql_type}, needed is one of: {needed}.",
        )
    read, write = _READ[wanted][found.type], _WRITE[wanted][found.type] if model in WRITTEN_MODELS else "{}"
    if found.is_domain and read == "{}":
        read = f"{{}}::{_sql_type(column)}" if wanted != "enum" else _TO_TEXT
    if not found.deterministic:
        # Two texts may be equal by such a collation and differ in their bytes.
        read = f'({_TO_TEXT} COLLATE pg_catalog."C")' if wanted in {"text", "enum"} else read
    # COPY stores a value of another type of the same width without an error.
    exact = not found.is_domain and found.type in _EXACT.get(wanted, (wanted,))
    return MappedColumn(name, read, write.replace("{type}", found.sql_type), exact, found.precision)


def accepted_types(model: str, type_: str) -> list[str]:
    """Return the types in pg_type that convert to a type of the contract without loss, and back where a run writes."""
    return [each for each in _READ[type_] if model not in WRITTEN_MODELS or each in _WRITE[type_]]


def _sql_type(column: Column) -> str:
    """Return the contract's type of a column as SQL that needs no search_path."""
    return {"_text": "pg_catalog.text[]", "enum": "pg_catalog.text"}.get(column.type, f"pg_catalog.{column.type}")


def conventions(name: str) -> tuple[str, ...]:
    """Return a column's name by model and by `@map` in snake case."""
    return tuple(dict.fromkeys((name, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())))


def type_name(name: str) -> str:
    """Return a type as SQL spells it: `_text` is text[]."""
    return f"{type_name(name[1:])}[]" if name.startswith("_") else {"bpchar": "char"}.get(name, name)


# --- the naming --------------------------------------------------------------------------------------------------------


def other_naming(naming: Literal["model", "mapped"]) -> Literal["model", "mapped"]:
    """Return the naming that is not this one."""
    return "mapped" if naming == "model" else "model"


def named_tables(connection: Connection, schema: str, models: Iterable[str]) -> dict[str, list[str]] | None:
    """Return the existing relations of these models by naming, None if the schema does not exist."""
    models = list(models)
    names = ["", *models, *(MODELS[model] for model in models)]
    rows = connection.fetch_rows(
        "SELECT c.relname::text FROM pg_catalog.pg_namespace n LEFT JOIN pg_catalog.pg_class c "
        f"ON c.relnamespace = n.oid AND c.relkind IN ({literals(READABLE)}) AND c.relname IN ({literals(names)}) "
        f"WHERE n.nspname = {quote_literal(schema)}"
    )
    found = {name for (name,) in rows}
    return (
        {
            "model": [model for model in models if model in found],
            "mapped": [MODELS[model] for model in models if MODELS[model] in found],
        }
        if rows
        else None
    )


def unambiguous(found: Mapping[str, list[str]], schema: str) -> Naming:
    """Return the one naming of what was found. Raises SchemaError for both."""
    if found["model"] and found["mapped"]:
        raise SchemaError(
            f"Schema {quote_identifier(schema)} holds tables of both namings: by model {', '.join(found['model'])}; "
            f"mapped {', '.join(found['mapped'])}. Say --naming model or --naming mapped, or another --schema."
        )
    return Naming("mapped" if found["mapped"] else "model", schema)


def elsewhere(connection: Connection, schema: str) -> str | None:
    """Return a sentence that names the other schemas which hold all source tables; None if there are none."""
    names = literals((*SOURCE_MODELS, *(MODELS[model] for model in SOURCE_MODELS)))
    rows = connection.fetch_rows(
        "SELECT n.nspname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE c.relkind IN ({literals(READABLE)}) AND c.relname IN ({names}) AND n.nspname <> {quote_literal(schema)} "
        f"GROUP BY 1 HAVING count(*) >= {len(SOURCE_MODELS)} ORDER BY 1"
    )
    if not rows:
        return None
    return f"They are in schema {' or '.join(quote_identifier(name) for (name,) in rows)}: say --schema."


def deletion_condition(name: str, found: Attribute) -> str | None:
    """Return SQL that is true for rows that are not deleted, if the column marks soft deletes; else None."""
    if not _DELETED.fullmatch(name):
        return None
    return f"NOT {quote_identifier(name)}" if found.type == "bool" else f"{quote_identifier(name)} IS NULL"
