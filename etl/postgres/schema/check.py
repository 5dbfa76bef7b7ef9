"""Check what does not fit in a database's schema, and create what is missing.

Compares PostgreSQL's catalogs with `etl.postgres.schema.ddl`. Creates, but never alters or drops: the application's tables
belong to the Prisma project.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

from etl.errors import SchemaError
from etl.postgres.connection import Connection
from etl.postgres.naming import (
    LEGS,
    MODELS,
    SOURCE_MODELS,
    WRITTEN_MODELS,
    Naming,
    quote_identifier,
)
from etl.postgres.schema.catalog import Attribute, Catalog, kind_name, read_catalog
from etl.postgres.schema.ddl import Column, Statement, columns_used, schema_statements
from etl.postgres.schema.mapping import (
    CITY_OF_LEGS,
    conventions,
    deletion_condition,
    elsewhere,
    map_column,
    named_tables,
    other_naming,
    resolve_relations,
    unambiguous,
)
from etl.postgres.schema.side_effects import Finding, publication_findings, side_effects
from etl.settings.model import Naming as Wanted

_INDEXED_MODELS = ("ItinerarySlot", "PersonaDimension", "RankingEvent")
"""Models whose plain indexes belong to the design. Those of the other models are the application's choice."""

_UNIQUE: tuple[tuple[str, tuple[str, ...], Literal["blocking", "advice"]], ...] = (
    ("User", ("id",), "blocking"),  # an id of two users would make a real user's rows a shadow user's
    ("ModelRegistry", ("modelName", "modelVersion"), "blocking"),  # ON CONFLICT needs it
    ("PersonaDimension", ("userId", "dimension"), "advice"),  # only the application's own rows could break it
)
_SHOWN = 5


def require_no_application_elsewhere(connection: Connection, schema: str) -> None:
    """Raise SchemaError if another schema holds the source tables and `schema` holds none of them.

    A forgotten --schema would otherwise add a second, empty set of the application's tables.
    """
    found = named_tables(connection, schema, SOURCE_MODELS)
    if not any((found or {}).values()) and (hint := elsewhere(connection, schema)):
        raise SchemaError(
            f"Schema {quote_identifier(schema)} holds none of the source tables. {hint} Nothing was created; to create a "
            f"second set of tables, say --schema {schema}."
        )


def naming_for_apply(
    connection: Connection, schema: str, wanted: Wanted, given: Mapping[str, Mapping[str, str]] | None = None
) -> Naming:
    """Return the naming in which `apply` creates tables: the one asked for, else the one found, else by model.

    Raises SchemaError if tables of both namings are found, or if the one asked for would add a second set of tables
    next to a complete set of the other naming.
    """
    found = named_tables(connection, schema, SOURCE_MODELS) or {"model": [], "mapped": []}
    if wanted == "auto":
        naming = unambiguous(found, schema)
    else:
        other = other_naming(wanted)
        if not found[wanted] and len(found[other]) == len(SOURCE_MODELS):
            raise SchemaError(
                f"The tables of schema {quote_identifier(schema)} have {other} names, and --naming {wanted} would create a "
                f"second set of them. Say --naming {other}, or another --schema."
            )
        naming = Naming(wanted, schema)
    return resolve_relations(connection, replace(naming, map=given or {}))[0]


def check(connection: Connection, naming: Naming) -> list[Finding]:
    """Return everything that is missing, does not fit or has side effects, the application's models first."""
    catalog = read_catalog(connection, naming)
    findings = list(_findings(catalog, naming))
    if not _blocking(findings):
        findings += _data_findings(connection, catalog, naming)
    return [
        *findings,
        *publication_findings(connection, naming),
        *side_effects(connection, naming),
    ]


def require(connection: Connection, naming: Naming, catalog: Catalog, *, writes: bool) -> list[Finding]:
    """Return the advice on a schema that fits. Side effects are not included: they are audited when they happen.

    Raises SchemaError with the first few findings if it does not fit. Publications that forbid a change, and rules that
    keep a statement from working, count only if the command `writes`.
    """
    findings = list(_findings(catalog, naming, writes=writes))
    if not _blocking(findings):
        findings += _data_findings(connection, catalog, naming)
    if writes and not _blocking(findings):
        _raise_if_blocking(publication_findings(connection, naming), naming, "The tables' owner can do that.")
        findings += (each for each in side_effects(connection, naming) if each.severity == "blocking")
    can_create = _creatable(catalog, naming)
    _raise_if_blocking(
        findings,
        naming,
        "`bpr-etl schema apply` creates what is missing."
        if all(finding.kind == "table" and finding.model in can_create for finding in _blocking(findings))
        else "Say where the models are: --schema, --naming, or [map.Model] in the settings file (`bpr-etl schema map` proposes "
        "it). Or migrate the Prisma project to what `bpr-etl schema print --all` shows.",
    )
    return findings


def apply(connection: Connection, naming: Naming) -> list[str]:
    """Create what is missing in the caller's transaction. Returns the names of what was created.

    The application's own tables are created only if none of them exists. Existing ones only get the index of the design.
    Raises SchemaError if what exists does not fit, or is in the way.
    """
    created = []
    if named_tables(connection, naming.schema, SOURCE_MODELS) is None:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(naming.schema)}")
        created.append(naming.schema)
    catalog = read_catalog(connection, naming)
    can_create = _creatable(catalog, naming)
    left = [each for each in _findings(catalog, naming) if each.kind != "table" or each.model not in can_create]
    _raise_if_blocking(
        left, naming, "Migrate the Prisma project to what `bpr-etl schema print --all` shows; nothing was created."
    )
    statements = schema_statements(naming, can_create)
    new = [each for each in statements if each.kind != "enum" or each.name not in catalog.types]
    for statement in (*new, *_missing_indexes(catalog, naming)):
        if statement.kind in {"table", "index"} and statement.name in catalog.names:
            raise SchemaError(
                f"{naming.qualified(statement.name)} can't be created: {kind_name(catalog.names[statement.name])} of that name "
                "exists, but is not what is needed. Rename or drop it; nothing was created."
            )
        connection.execute(statement.sql)
        created.append(statement.name)
    # A type that existed before may lack labels that a table created just now needs.
    left = list(_findings(read_catalog(connection, naming), naming))
    _raise_if_blocking(left, naming, "Migrate the Prisma project first; nothing was created.")
    return created


def _creatable(catalog: Catalog, naming: Naming) -> list[str]:
    """Return the models whose missing tables may be created: our own, and the application's if it has none at all."""
    missing = [
        model
        for model in MODELS
        if model not in catalog.kinds
        and naming.table_name(model) not in catalog.names
        and "table" not in naming.map.get(model, {})
    ]
    source_too = set(SOURCE_MODELS) <= set(missing)
    return [model for model in missing if source_too or model in WRITTEN_MODELS]


def _missing_indexes(catalog: Catalog, naming: Naming) -> Iterator[Statement]:
    """Yield the design's plain indexes for which an existing table has no equivalent, under any name."""
    for statement in schema_statements(naming, _INDEXED_MODELS):
        model = statement.models[0]
        by_sql = any(column.name is None for column in naming.relation(model).columns.values())
        if statement.kind != "index" or statement.unique or by_sql or not catalog.is_table(model):
            continue
        length = len(statement.columns)
        if not any(index.model == model and index.columns[:length] == statement.columns for index in catalog.indexes):
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


def _findings(catalog: Catalog, naming: Naming, *, writes: bool = True) -> Iterator[Finding]:
    for model in (*MODELS, *((LEGS,) if naming.has_legs else ())):
        kind = catalog.kinds.get(model) or catalog.names.get(naming.table_name(model), "")
        if not kind:
            yield Finding("table", model, f"Table {naming.table(model)} is missing.")
        elif writes and not catalog.is_table(model) and (model in WRITTEN_MODELS or model == "BehavioralSignal"):
            yield Finding(
                "table",
                model,
                f"{naming.table(model)} is {kind_name(kind)}, and a run writes there: needed is a table. "
                f'Name it with table = "schema.table" in [map.{model}]',
            )
        elif model not in catalog.kinds:
            yield Finding("table", model, f"{naming.table(model)} is {kind_name(kind)}, needed is a table or a view.")
        else:
            yield from _column_findings(catalog, naming, model)
            yield from _unique_findings(catalog, naming, model)
    yield from _deleted_rows(catalog, naming)
    for statement in _missing_indexes(catalog, naming):
        model = statement.models[0]
        yield Finding(
            "index",
            model,
            f"{naming.table(model)} has no index on ({', '.join(statement.columns)}): `bpr-etl schema apply` creates "
            f"{quote_identifier(statement.name)}.",
            "advice",
        )


def _column_findings(catalog: Catalog, naming: Naming, model: str) -> Iterator[Finding]:
    used: set[str] = set()
    for column in columns_used(model, legs=naming.has_legs):
        mapped = map_column(catalog, naming, model, column)
        if isinstance(mapped, Finding):
            used.update(conventions(column.name))
            if not (naming.has_legs and (model, column.name) == CITY_OF_LEGS):
                yield mapped
        elif mapped.name is not None:
            used.add(mapped.name)
            found = catalog.attributes[model, mapped.name]
            where = f"Column {quote_identifier(mapped.name)} of {naming.table(model)}"
            yield from _column_problems(column, found, model, where, is_table=catalog.is_table(model))
            longest = _longest_value(catalog, naming) if column.name == "value" else column.longest
            if found.length is not None and found.length < longest:
                what = f"{where} takes {found.length} characters, and bpr-etl writes up to {longest} there"
                yield Finding("type", model, f"{what}. Widen it: ALTER TABLE ... ALTER COLUMN ... TYPE text.")
    if model in WRITTEN_MODELS:
        for name, attribute in catalog.columns(model):
            if name not in used and attribute.not_null and not attribute.has_default:
                where = f"{quote_identifier(name)} of {naming.table(model)}"
                yield Finding(
                    "not_null", model, f"Column {where} is NOT NULL without a default, and bpr-etl does not fill it."
                )


def _deleted_rows(catalog: Catalog, naming: Naming) -> Iterator[Finding]:
    """Yield the columns by which an application marks rows as deleted, unless a condition is set for the model."""
    for model in SOURCE_MODELS[:-1]:
        for name, attribute in catalog.columns(model) if not naming.relation(model).where else ():
            if (condition := deletion_condition(name, attribute)) is not None:
                yield Finding(
                    "deleted_rows",
                    model,
                    f"{naming.table(model)} has the column {quote_identifier(name)}, and rows that it marks as deleted count "
                    f"like any others. To exclude them, set where = {json.dumps(condition)} in [map.{model}].",
                    "advice",
                )


def _column_problems(column: Column, found: Attribute, model: str, where: str, *, is_table: bool) -> Iterator[Finding]:
    """Yield what does not fit about an existing column of an accepted type."""
    if found.type == "enum" and (lacking := [label for label in column.labels if label not in found.labels]):
        yield Finding("enum_value", model, f"{where} has an enum without {', '.join(map(repr, lacking))}.")
    if model in WRITTEN_MODELS and found.always:
        yield Finding("type", model, f"{where} is generated by the server, and bpr-etl writes values there.")
    if column.writes_null and found.not_null:
        yield Finding("not_null", model, f"{where} is NOT NULL, and bpr-etl writes NULL there.")
    if is_table and model in SOURCE_MODELS and not column.nullable and not found.not_null:
        yield Finding("not_null", model, f"{where} may be NULL, which bpr-etl does not expect.", "advice")


def _longest_value(catalog: Catalog, naming: Naming) -> int:
    """Return the length of the longest `category_affinities` that a run can write: a number of 8 characters per category."""
    category = naming.mapped_column("ActivityNode", "category").name
    found = catalog.attributes.get(("ActivityNode", category or ""))
    return 2 + sum(len(json.dumps(label, ensure_ascii=False)) + 12 for label in (found.labels if found else ()))


def _unique_findings(catalog: Catalog, naming: Naming, model: str) -> Iterator[Finding]:
    if not catalog.is_table(model):
        return
    for owner, columns, severity in _UNIQUE:
        names = naming.columns(model, columns)
        if owner == model and not any(
            index.unique and index.model == model and sorted(index.columns) == sorted(names)
            for index in catalog.indexes
        ):
            detail = f"{naming.table(model)} has no unique index on ({', '.join(names)})."
            yield Finding("unique", model, detail, severity)


def _try_sql(connection: Connection, naming: Naming) -> None:
    for model in naming.map:
        try:
            connection.fetch_rows(f"SELECT * FROM {naming.source(model)} x LIMIT 0")
        except SchemaError as error:
            raise SchemaError(f"[map.{model}] of the settings does not work. {error}") from None


_COPIED = (
    ("PersonaDimension", "userId", "User"),
    ("RankingEvent", "userId", "User"),
    ("RankingEvent", "tripId", "Trip"),
    *(("RankingEvent", name, "ActivityNode") for name in ("candidateIds", "rankedIds", "selectedIds")),
)
"""The columns that a run writes ids of other models to: model, column, model of the id."""


def _data_findings(connection: Connection, catalog: Catalog, naming: Naming) -> Iterator[Finding]:
    """Yield findings that need rows: duplicate users if no unique index prevents them, ids that are too long.

    Raises SchemaError if SQL of the settings does not work.
    """
    _try_sql(connection, naming)
    users = naming.relation("User")
    if not users.is_table or naming.mapped_column("User", "id").name is None:
        repeated = connection.fetch_int(
            f'SELECT count(*) FROM (SELECT FROM {users.source()} u GROUP BY u."id" HAVING count(*) > 1) ids'
        )
        if repeated:
            detail = f"{repeated:,} ids occur more than once in {users.sql}, where a user must have one row."
            yield Finding("unique", "User", detail)
    for model, name, source in _COPIED:
        column = naming.mapped_column(model, name).name or name
        length = catalog.attributes[model, column].length
        own = catalog.attributes.get((source, naming.mapped_column(source, "id").name or ""))
        if length is None or (own is not None and own.length is not None and own.length <= length):
            continue
        long = connection.fetch_int(
            f'SELECT count(*) FROM {naming.source(source)} x WHERE pg_catalog.length(x."id") > {length}'
        )
        if long:
            yield Finding(
                "type",
                model,
                f"Column {quote_identifier(column)} of {naming.table(model)} takes {length} characters, and {long:,} ids of "
                f"{naming.table(source)} are longer. Widen it: ALTER TABLE ... ALTER COLUMN ... TYPE text.",
            )
