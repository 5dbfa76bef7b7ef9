"""The schema of a database: which naming it has, what does not fit, and how to create what is missing.

Reads PostgreSQL's catalogues, one query per aspect, and compares them with `etl.postgres.ddl`. Creates, never alters or drops:
the application's tables are the Prisma project's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

from etl.errors import SchemaError
from etl.postgres.ddl import COLUMNS, Column, Statement, schema_statements
from etl.postgres.naming import (
    MODELS,
    SOURCE_MODELS,
    WRITTEN_MODELS,
    Naming,
    quote_identifier,
    quote_literal,
)

Wanted = Literal["auto", "model", "mapped"]

_INDEXED_MODELS = ("ItinerarySlot", "PersonaDimension", "RankingEvent")
"""Those whose plain indexes come with the design; the other ones are the application's to have or not."""

_UNIQUE: tuple[tuple[str, tuple[str, ...], Literal["blocking", "advice"]], ...] = (
    ("ModelRegistry", ("modelName", "modelVersion"), "blocking"),  # ON CONFLICT needs it
    ("PersonaDimension", ("userId", "dimension"), "advice"),  # only the application's own rows could break it
)
SIDE_EFFECTS = ("foreign_key", "trigger", "rule")
"""Kinds of findings that say what else happens when a run writes."""

_FIRED_BY = {"PersonaDimension": 4 | 8, "RankingEvent": 4 | 8, "ModelRegistry": 4, "BehavioralSignal": 16}
"""What a run does to a table, in the bits of `pg_trigger.tgtype`: INSERT 4, DELETE 8, UPDATE 16."""

_REWRITTEN = {"PersonaDimension": "4", "RankingEvent": "4", "ModelRegistry": "23", "BehavioralSignal": "2"}
"""Which rules a run meets, by `pg_rewrite.ev_type`: UPDATE 2, INSERT 3, DELETE 4. COPY meets none."""

_ALLOWING = "unless --allow-side-effects names that table"
_ON_DELETE = {
    "c": ("CASCADE", "deletes these rows, too, and ends with exit 5 " + _ALLOWING),
    "n": ("SET NULL", "sets these to NULL, and ends with exit 5 " + _ALLOWING),
    "d": ("SET DEFAULT", "sets these to their default, and ends with exit 5 " + _ALLOWING),
    "r": ("RESTRICT", "is refused by the server and ends with exit 5"),
    "a": ("NO ACTION", "is refused by the server and ends with exit 5"),
}
"""By `pg_constraint.confdeltype`: the action, and what becomes of a run that deletes rows which others refer to."""

_CHANGED: dict[str, Literal["delete", "update"]] = {
    "PersonaDimension": "delete",
    "RankingEvent": "delete",
    "BehavioralSignal": "update",
}
"""What a run does to rows that stand there, and a publication may forbid."""

_TABLES = ("r", "p")  # ordinary and partitioned
_KINDS = {"r": "a table", "v": "a view", "m": "a materialized view", "f": "a foreign table", "i": "an index"}
_SHOWN = 5


class Queries(Protocol):
    """The two things asked of a connection."""

    def fetch_rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        ...

    def execute(self, sql: str) -> int:
        """Run a statement that returns no rows."""
        ...


@dataclass(frozen=True)
class Finding:
    """One thing that is missing or does not fit.

    `detail` is a sentence for people. A run can't go ahead with a `blocking` one; an `advice` it only passes on.
    """

    kind: Literal[
        "table",
        "column",
        "type",
        "not_null",
        "unique",
        "enum_value",
        "index",
        "publication",
        "foreign_key",
        "trigger",
        "rule",
    ]
    model: str
    detail: str
    severity: Literal["blocking", "advice"] = "blocking"


@dataclass(frozen=True)
class _Attribute:
    """A column as the database has it."""

    type: str
    is_enum: bool
    not_null: bool
    has_default: bool


@dataclass(frozen=True)
class _Index:
    """A valid, complete B-tree index; an expression in it counts as a column without a name."""

    table: str
    unique: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class _Catalogue:
    """What the catalogues say about the names that matter here."""

    relations: Mapping[str, str]
    types: frozenset[str]
    attributes: Mapping[tuple[str, str], _Attribute]
    labels: Mapping[tuple[str, str], frozenset[str]]
    indexes: Sequence[_Index]

    def has(self, table: str) -> bool:
        return self.relations.get(table) in _TABLES


def detect_naming(connection: Queries, schema: str, wanted: Wanted) -> Naming:
    """The naming of a schema, told by its source tables, unless one is asked for.

    Raises SchemaError when there is no such schema and, for `auto`, when it holds tables of both namings or of neither.
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
                f"those of --naming {wanted}. Say --naming {other}, or leave it out: it is found out."
            )
        return Naming(wanted, schema)
    if not any(found.values()):
        raise SchemaError(
            f"Schema {quote_identifier(schema)} holds none of the source tables, neither by model ({', '.join(SOURCE_MODELS)}) "
            f"nor mapped ({', '.join(MODELS[model] for model in SOURCE_MODELS)}). "
            "Say --schema, or create them with `bpr-etl schema apply`."
        )
    return _unambiguous(found, schema)


def naming_for_apply(connection: Queries, schema: str, wanted: Wanted) -> Naming:
    """The naming in which `apply` creates: the one asked for, else the one found, else by model.

    Raises SchemaError where tables of both namings are found, and where the one asked for would put a second set of
    tables beside the complete set of the other.
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


def check(connection: Queries, naming: Naming) -> list[Finding]:
    """What is missing or does not fit, the application's models first; what publications forbid; what else a write does."""
    return [
        *_findings(_read(connection, naming), naming),
        *_collation_findings(connection, naming),
        *_publication_findings(connection, naming),
        *_side_effects(connection, naming),
    ]


def require(connection: Queries, naming: Naming, *, writes: bool) -> list[Finding]:
    """The advice on a schema that fits, side effects aside: these are audited when they happen.

    Raises SchemaError, with the first few findings, when it does not fit. What publications forbid, and rules that keep a
    statement from working, matter to who `writes`.
    """
    catalogue = _read(connection, naming)
    findings = [*_findings(catalogue, naming), *_collation_findings(connection, naming)]
    if writes and not _blocking(findings):
        _raise_if_blocking(_publication_findings(connection, naming), naming, "The tables' owner can do that.")
        findings += (each for each in _side_effects(connection, naming) if each.severity == "blocking")
    can_create = _creatable(catalogue, naming)
    _raise_if_blocking(
        findings,
        naming,
        "`bpr-etl schema apply` creates what is missing."
        if all(finding.kind == "table" and finding.model in can_create for finding in _blocking(findings))
        else "Migrate the Prisma project to what `bpr-etl schema print --all` shows, or say --schema or --naming.",
    )
    return findings


def apply(connection: Queries, naming: Naming) -> list[str]:
    """Create what is missing, in the caller's transaction; gives the names of what was created.

    The application's own tables are created only where there are none of them; of those that exist nothing but the index
    of the design is added. Raises SchemaError when what exists does not fit, or stands in the way.
    """
    created = _create_schema(connection, naming)
    catalogue = _read(connection, naming)
    can_create = _creatable(catalogue, naming)
    left = [each for each in _findings(catalogue, naming) if each.kind != "table" or each.model not in can_create]
    _raise_if_blocking(
        left, naming, "Migrate the Prisma project to what `bpr-etl schema print --all` shows; nothing was created."
    )
    for statement in _missing_statements(catalogue, naming, can_create):
        if statement.kind in {"table", "index"} and statement.name in catalogue.relations:
            raise SchemaError(
                f"{naming.qualified(statement.name)} can't be created: {_kind_of(catalogue, statement.name)} of that name "
                "exists, but is not what is needed. Rename or drop it; nothing was created."
            )
        connection.execute(statement.sql)
        created.append(statement.name)
    # A type that was there before may lack what a table made just now needs of it.
    left = list(_findings(_read(connection, naming), naming))
    _raise_if_blocking(left, naming, "Migrate the Prisma project first; nothing was created.")
    return created


def _source_tables(connection: Queries, schema: str) -> dict[str, list[str]] | None:
    """The source tables that exist, by naming; None where the schema itself does not."""
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


def _create_schema(connection: Queries, naming: Naming) -> list[str]:
    if _source_tables(connection, naming.schema) is not None:
        return []
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(naming.schema)}")
    return [naming.schema]


def _creatable(catalogue: _Catalogue, naming: Naming) -> list[str]:
    """The models whose missing tables we may create: our own, and the application's where it has none at all."""
    missing = [model for model in MODELS if naming.table_name(model) not in catalogue.relations]
    source_too = set(SOURCE_MODELS) <= set(missing)
    return [model for model in missing if source_too or model in WRITTEN_MODELS]


def _missing_statements(catalogue: _Catalogue, naming: Naming, models: Sequence[str]) -> list[Statement]:
    """The statements that `apply` runs, in order: the tables of these models with all of theirs, then lone indexes."""
    statements = schema_statements(naming, models)
    new = [each for each in statements if each.kind != "enum" or each.name not in catalogue.types]
    return [*new, *_missing_indexes(catalogue, naming)]


def _missing_indexes(catalogue: _Catalogue, naming: Naming) -> Iterator[Statement]:
    """The design's plain indexes that no index of an existing table stands in for, whatever its name."""
    for statement in schema_statements(naming, _INDEXED_MODELS):
        table = naming.table_name(statement.models[0])
        if statement.kind != "index" or statement.unique or not catalogue.has(table):
            continue
        length = len(statement.columns)
        if not any(index.table == table and index.columns[:length] == statement.columns for index in catalogue.indexes):
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


def _findings(catalogue: _Catalogue, naming: Naming) -> Iterator[Finding]:
    for model in MODELS:
        table = naming.table_name(model)
        if table not in catalogue.relations:
            yield Finding("table", model, f"Table {naming.table(model)} is missing.")
        elif not catalogue.has(table):
            yield Finding("table", model, f"{naming.table(model)} is {_kind_of(catalogue, table)}, needed is a table.")
        else:
            yield from _column_findings(catalogue, naming, model)
            yield from _unique_findings(catalogue, naming, model)
    for statement in _missing_indexes(catalogue, naming):
        model = statement.models[0]
        yield Finding(
            "index",
            model,
            f"{naming.table(model)} has no index on ({', '.join(statement.columns)}): `bpr-etl schema apply` creates "
            f"{quote_identifier(statement.name)}.",
            "advice",
        )


def _column_findings(catalogue: _Catalogue, naming: Naming, model: str) -> Iterator[Finding]:
    table = naming.table_name(model)
    for column in COLUMNS[model]:
        attribute = catalogue.attributes.get((table, column.name))
        if attribute is None:
            yield Finding("column", model, f"{naming.table(model)} has no column {quote_identifier(column.name)}.")
        else:
            labels = catalogue.labels.get((table, column.name), frozenset())
            yield from _column_problems(column, attribute, labels, model, naming)
    if model in WRITTEN_MODELS:
        ours = {column.name for column in COLUMNS[model]}
        for (owner, name), attribute in catalogue.attributes.items():
            if owner == table and name not in ours and attribute.not_null and not attribute.has_default:
                where = f"{quote_identifier(name)} of {naming.table(model)}"
                yield Finding(
                    "not_null", model, f"Column {where} is NOT NULL without a default, and bpr-etl does not fill it."
                )


def _column_problems(
    column: Column, found: _Attribute, labels: frozenset[str], model: str, naming: Naming
) -> Iterator[Finding]:
    """What does not fit of one column that is there."""
    where = f"Column {quote_identifier(column.name)} of {naming.table(model)}"
    if not (found.is_enum if "enum" in column.types else found.type in column.types):
        needed = " or ".join("an enum" if name == "enum" else _type_name(name) for name in column.types)
        yield Finding("type", model, f"{where} has type {_type_name(found.type)}, needed is {needed}.")
    elif lacking := [label for label in column.labels if label not in labels]:
        yield Finding("enum_value", model, f"{where} has an enum without {', '.join(map(repr, lacking))}.")
    if column.writes_null and found.not_null:
        yield Finding("not_null", model, f"{where} is NOT NULL, and bpr-etl writes NULL there.")
    if model in SOURCE_MODELS and not column.nullable and not found.not_null:
        yield Finding("not_null", model, f"{where} may be NULL, which bpr-etl does not expect.", "advice")


def _unique_findings(catalogue: _Catalogue, naming: Naming, model: str) -> Iterator[Finding]:
    table = naming.table_name(model)
    for owner, columns, severity in _UNIQUE:
        if owner == model and not any(
            index.unique and index.table == table and sorted(index.columns) == sorted(columns)
            for index in catalogue.indexes
        ):
            detail = f"{naming.table(model)} has no unique index on ({', '.join(columns)})."
            yield Finding("unique", model, detail, severity)


def _publication_findings(connection: Queries, naming: Naming) -> Iterator[Finding]:
    """Tables whose rows PostgreSQL won't let a run change, since a publication sends the change and can't tell the row."""
    told = set()
    for each in _published(connection, naming):
        verb = _CHANGED[each.model]
        why = each.unidentified() if each.sends[verb] and each.table not in told else None
        if why:
            told.add(each.table)
            yield Finding(
                "publication",
                each.model,
                f"The publication {quote_identifier(each.publication)} sends {verb}s of {each.table}, {why[0]}: "
                f"PostgreSQL refuses every {verb.upper()} of it. {why[1]}.",
            )


@dataclass(frozen=True)
class _Published:
    """A table that holds rows of a model, and a publication of it, as PostgreSQL expands it: of all, of a schema, of a root.

    `key` are the columns of the replica identity (all of them for a full one), none where there is none; `sent` those that
    the publication sends, None for all; `rows` is its row filter.
    """

    model: str
    table: str
    key: list[str]
    columns: list[str]
    publication: str
    sends: Mapping[Literal["update", "delete"], bool]
    sent: list[str] | None
    rows: str

    def unidentified(self) -> tuple[str, str] | None:
        """Why the publication can't tell a changed row, and what to do; None where it can."""
        full = f"ALTER TABLE {self.table} REPLICA IDENTITY FULL"
        if not self.key:
            return "which has no replica identity", f"{full}, or give it a primary key"
        if self.sent is not None and not set(self.key) <= set(self.sent):
            return (
                "but not all columns of its replica identity",
                "Drop the column list from the publication, or extend it",
            )
        named = _names_in(self.rows) - set(self.key)
        if more := [quote_identifier(name) for name in self.columns if name in named]:
            return f"filtered by {', '.join(more)}, which its replica identity does not have", full
        return None


def _names_in(expression: str) -> set[str]:
    """The names in an expression as PostgreSQL prints it, functions' among them; not what is in its texts."""
    bare = re.sub(r"'(?:[^']|'')*'", "", expression)
    quoted = {name.replace('""', '"') for name in re.findall(r'"((?:[^"]|"")*)"', bare)}
    return quoted | set(re.findall(r"\w+", re.sub(r'"(?:[^"]|"")*"', " ", bare)))


def _published(connection: Queries, naming: Naming) -> Iterator[_Published]:
    identity = (  # as the server has it: an index that is not valid, or that may be broken until COMMIT, is none
        "SELECT i.indkey::int2[] FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate "
        "AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END"
    )
    columns = (
        "SELECT COALESCE(json_agg(a.attname ORDER BY a.attnum), '[]')::text FROM pg_catalog.pg_attribute a "
        "WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
    )
    rows = connection.fetch_rows(
        "WITH RECURSIVE part(model, oid) AS ("
        f"SELECT ours.model, ours.oid FROM {_tables_of(naming, _CHANGED)} UNION "
        "SELECT part.model, i.inhrelid FROM part JOIN pg_catalog.pg_inherits i ON i.inhparent = part.oid), "
        "up(oid, above) AS (SELECT oid, oid FROM part UNION "
        "SELECT up.oid, i.inhparent FROM up JOIN pg_catalog.pg_class c ON c.oid = up.above AND c.relispartition "
        "JOIN pg_catalog.pg_inherits i ON i.inhrelid = up.above) "
        "SELECT part.model, n.nspname::text, c.relname::text, "
        f"({columns} AND (c.relreplident = 'f' OR a.attnum = ANY (({identity})::int2[]))), ({columns}), p.pubname::text, "
        # The columns and the row filter are there since PostgreSQL 15.
        "p.pubupdate, p.pubdelete, (to_jsonb(t)->'attnames')::text, COALESCE(to_jsonb(t)->>'rowfilter', '') "
        "FROM part JOIN pg_catalog.pg_class c ON c.oid = part.oid AND c.relkind = 'r' "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN up ON up.oid = c.oid "
        "JOIN pg_catalog.pg_class o ON o.oid = up.above JOIN pg_catalog.pg_namespace s ON s.oid = o.relnamespace "
        "JOIN pg_catalog.pg_publication_tables t ON t.schemaname = s.nspname AND t.tablename = o.relname "
        "JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname ORDER BY 1, 2, 3, 6"
    )
    for model, schema, table, key, every, publication, updates, deletes, sent, condition in rows:
        yield _Published(
            model,
            f"{quote_identifier(schema)}.{quote_identifier(table)}",
            json.loads(key),
            json.loads(every),
            publication,
            {"update": updates, "delete": deletes},
            json.loads(sent or "null"),
            condition,
        )


def _type_name(name: str) -> str:
    """A type as people write it: `_text` is text[]."""
    return f"{name[1:]}[]" if name.startswith("_") else name


def _kind_of(catalogue: _Catalogue, name: str) -> str:
    return _KINDS.get(catalogue.relations[name], "a relation")


def _read(connection: Queries, naming: Naming) -> _Catalogue:
    """What the catalogues say: one query for the names, one each for types, columns, enum values and indexes."""
    statements = schema_statements(naming)
    tables = _literals(naming.table_name(model) for model in MODELS)
    names = _literals(each.name for each in statements if each.kind in {"table", "index"})
    enums = _literals(each.name for each in statements if each.kind == "enum")
    schema = f"(SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = {quote_literal(naming.schema)})"
    of_columns = (
        f"WHERE c.relnamespace = {schema} AND c.relname IN ({tables}) AND a.attnum > 0 AND NOT a.attisdropped "
        "ORDER BY c.oid, a.attnum"
    )
    relations = connection.fetch_rows(
        "SELECT c.relname::text, c.relkind::text FROM pg_catalog.pg_class c "
        f"WHERE c.relnamespace = {schema} AND c.relname IN ({names})"
    )
    types = connection.fetch_rows(
        f"SELECT t.typname::text FROM pg_catalog.pg_type t WHERE t.typnamespace = {schema} AND t.typname IN ({enums})"
    )
    attributes = connection.fetch_rows(
        "SELECT c.relname::text, a.attname::text, t.typname::text, t.typtype = 'e', a.attnotnull, "
        "a.atthasdef OR a.attidentity <> '' FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a "
        f"ON a.attrelid = c.oid JOIN pg_catalog.pg_type t ON t.oid = a.atttypid {of_columns}"
    )
    labels = connection.fetch_rows(
        "SELECT c.relname::text, a.attname::text, e.enumlabel::text FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid "
        f"JOIN pg_catalog.pg_enum e ON e.enumtypid = a.atttypid {of_columns}"
    )
    return _Catalogue(
        relations=dict(relations),
        types=frozenset(name for (name,) in types),
        attributes={(table, name): _Attribute(*rest) for table, name, *rest in attributes},
        labels={
            key: frozenset(label for _, _, label in group)
            for key, group in groupby(labels, key=lambda row: (row[0], row[1]))
        },
        indexes=_read_indexes(connection, schema, tables),
    )


def _read_indexes(connection: Queries, schema: str, tables: str) -> list[_Index]:
    rows = connection.fetch_rows(
        "SELECT i.indexrelid::int8, c.relname::text, i.indisunique AND i.indimmediate, COALESCE(a.attname::text, '') "
        "FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid "
        "JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = x.relam "
        "CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) "
        "LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum AND k.attnum <> 0 "
        f"WHERE c.relnamespace = {schema} AND c.relname IN ({tables}) AND m.amname = 'btree' "
        "AND i.indisvalid AND i.indpred IS NULL AND k.place <= i.indnkeyatts ORDER BY 1, k.place"
    )
    return [
        _Index(table, unique, tuple(name for *_, name in group))
        for (_, table, unique), group in groupby(rows, key=lambda row: row[:3])
    ]


def _collation_findings(connection: Queries, naming: Naming) -> Iterator[Finding]:
    """Ids of users that are compared by a nondeterministic collation: another user's id may equal a shadow user's there."""
    rows = connection.fetch_rows(
        f"SELECT ours.model, a.attname::text, l.collname::text FROM {_tables_of(naming, (*_CHANGED, 'User'))} "
        "JOIN pg_catalog.pg_attribute a ON a.attrelid = ours.oid JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation "
        "WHERE NOT l.collisdeterministic AND a.attname = CASE ours.model WHEN 'User' THEN 'id' ELSE 'userId' END ORDER BY 1"
    )
    for model, column, collation in rows:
        yield Finding(
            "type",
            model,
            f"Column {quote_identifier(column)} of {naming.table(model)} has the nondeterministic collation "
            f"{quote_identifier(collation)}, by which two users' ids may be equal: give it a deterministic one.",
        )


def _side_effects(connection: Queries, naming: Naming) -> Iterator[Finding]:
    """Foreign keys that point at the tables that a run writes, and what fires on its writes. Those of partitions come once."""
    ours = _tables_of(naming, _FIRED_BY)
    yield from _foreign_keys(connection, naming, ours)
    yield from _triggers(connection, ours)
    yield from _rules(connection, naming, ours)


def _tables_of(naming: Naming, models: Iterable[str]) -> str:
    """SQL of `ours(model, oid)`: not by `to_regclass`, which a role that may not use the schema is refused."""
    tables = ", ".join(f"({quote_literal(model)}, {quote_literal(naming.table_name(model))})" for model in models)
    return (
        "(SELECT v.model, c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"JOIN (VALUES {tables}) v(model, name) ON v.name = c.relname WHERE n.nspname = {quote_literal(naming.schema)}) ours"
    )


def _foreign_keys(connection: Queries, naming: Naming, ours: str) -> Iterator[Finding]:
    rows = connection.fetch_rows(
        "SELECT ours.model, f.conname::text, format('%I.%I', n.nspname, c.relname), f.confdeltype::text, f.condeferrable, "
        f"f.condeferred FROM {ours} JOIN pg_catalog.pg_constraint f ON COALESCE(pg_partition_root(f.confrelid), f.confrelid) "
        "= ours.oid JOIN pg_catalog.pg_class c ON c.oid = f.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE f.contype = 'f' AND f.conparentid = 0 AND ours.model <> 'BehavioralSignal' ORDER BY 1, 3, 2"
    )
    for model, name, table, deletion, deferrable, deferred in rows:
        action, then = _ON_DELETE[deletion]
        when = " DEFERRABLE INITIALLY DEFERRED" if deferred else " DEFERRABLE" if deferrable else ""
        if model == "ModelRegistry":
            what = "a run deletes nothing there"
        elif deferred and deletion == "a":
            what = f"a run that leaves such a row out {then}, before COMMIT"
        else:
            what = f"a run that deletes such a row {then}"
        yield Finding(
            "foreign_key",
            model,
            f"Rows of {table} refer to {naming.table(model)} by {quote_identifier(name)} (ON DELETE {action}{when}): {what}.",
            "advice",
        )


def _triggers(connection: Queries, ours: str) -> Iterator[Finding]:
    fired = " ".join(f"WHEN {quote_literal(model)} THEN {bits}" for model, bits in _FIRED_BY.items())
    rows = connection.fetch_rows(
        "SELECT ours.model, t.tgname::text, format('%I.%I', n.nspname, c.relname), p.oid::regprocedure::text "
        f"FROM {ours} JOIN pg_catalog.pg_trigger t ON COALESCE(pg_partition_root(t.tgrelid), t.tgrelid) = ours.oid "
        "JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid "
        "WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled IN ('O', 'A') "
        f"AND t.tgtype & CASE ours.model {fired} END <> 0 AND (ours.model <> 'BehavioralSignal' OR t.tgattr::text = '' "
        "OR EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.tgrelid AND a.attname = 'modelVersion' "
        "AND a.attnum = ANY (t.tgattr::int2[]))) ORDER BY 1, 3, 2"
    )
    for model, name, table, function in rows:
        yield Finding(
            "trigger",
            model,
            f"Trigger {quote_identifier(name)} on {table} ({function}) fires when a run writes there: a run ends with exit 5 "
            f"where it writes to another table, {_ALLOWING}, and where it changes what the run writes.",
            "advice",
        )


def _rules(connection: Queries, naming: Naming, ours: str) -> Iterator[Finding]:
    met = " ".join(f"WHEN {quote_literal(model)} THEN {quote_literal(types)}" for model, types in _REWRITTEN.items())
    rows = connection.fetch_rows(
        f"SELECT ours.model, r.rulename::text FROM {ours} JOIN pg_catalog.pg_rewrite r ON r.ev_class = ours.oid "
        f"WHERE r.ev_enabled IN ('O', 'A') AND strpos(CASE ours.model {met} END, r.ev_type::text) > 0 ORDER BY 1, 2"
    )
    for model, name in rows:
        rule = f"Rule {quote_identifier(name)} on {naming.table(model)}"
        if model == "ModelRegistry":
            yield Finding(
                "rule", model, f"{rule} keeps INSERT ... ON CONFLICT, which a run needs, from working: drop it."
            )
        else:
            yield Finding(
                "rule",
                model,
                f"{rule} rewrites what a run does there: a run ends with exit 5 where that writes to another table, "
                f"{_ALLOWING}, and where it changes what the run writes.",
                "advice",
            )


def _literals(names: Iterable[str]) -> str:
    return ", ".join(quote_literal(name) for name in names)
