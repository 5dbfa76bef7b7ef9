"""The same rows in another schema: names, types, kinds of relations and schemas that a Prisma project may have instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from etl.postgres.naming import MODELS

SOURCES = ("User", "Trip", "ItinerarySlot", "ActivityNode")

_TEXT = ("text", "varchar", "varchar(191)", "words")
_ID = (*_TEXT, "uuid", "varchar(36)")
_ENUM = ("text", "varchar(32)")
_INT = ("int8", "numeric", "numeric(12,0)")
_TIME = ("timestamp(6)", "timestamptz(3)", "timestamp")

READ_TYPES: dict[str, dict[str, tuple[str, ...]]] = {
    "User": {"id": _ID, "email": _TEXT},
    "Trip": {
        **dict.fromkeys(("id", "userId"), _ID),
        "city": _TEXT,
        **dict.fromkeys(("startDate", "createdAt"), _TIME),
        "personaSeed": ("json",),
    },
    "ItinerarySlot": {
        **dict.fromkeys(("id", "tripId", "activityNodeId"), _ID),
        **dict.fromkeys(("dayNumber", "sortOrder"), (*_INT, "int2")),
        "status": _ENUM,
    },
    "ActivityNode": {
        "id": _ID,
        **dict.fromkeys(("city", "name"), _TEXT),
        **dict.fromkeys(("category", "status"), _ENUM),
        **dict.fromkeys(("latitude", "longitude"), ("numeric", "numeric(9,6)")),
    },
    "BehavioralSignal": {
        **dict.fromkeys(("id", "userId", "tripId", "slotId", "activityNodeId"), _ID),
        "signalType": _ENUM,
        "modelVersion": ("varchar(16)", "varchar", "words"),
    },
}
"""By model and column: types to which the rows convert without loss and from which they are read."""

WRITTEN_TYPES: dict[str, dict[str, tuple[str, ...]]] = {
    "PersonaDimension": {
        **dict.fromkeys(("id", "userId"), _ID),
        "dimension": ("varchar(32)", "words"),
        "value": ("varchar(1000)", "words"),
        "confidence": ("numeric", "numeric(4,3)"),
        "source": ("varchar(13)",),
        **dict.fromkeys(("createdAt", "updatedAt"), _TIME),
    },
    "RankingEvent": {
        **dict.fromkeys(("id", "userId", "tripId"), _ID),
        **dict.fromkeys(("dayNumber", "latencyMs"), _INT),
        **dict.fromkeys(("modelName", "modelVersion", "surface"), ("varchar(10)", "words")),
        **dict.fromkeys(("candidateIds", "rankedIds", "selectedIds"), ("varchar[]", "varchar(36)[]", "uuid[]")),
        "createdAt": _TIME,
    },
    "ModelRegistry": {
        "id": _ID,
        "stage": _ENUM,
        "modelType": _TEXT,
        **dict.fromkeys(("createdAt", "updatedAt"), _TIME),
    },
}
"""By model and column: types that a run can also write."""

_CONVERT = {"timestamptz(3)": "{} AT TIME ZONE 'UTC'", "json": "{}::text::json"}


def snake(name: str) -> str:
    """A column's name with `@map` in snake case."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True)
class Table:
    """How one model is stored. `types` are the columns that have another type, `kind` what the relation is."""

    types: dict[str, str]
    snake: bool
    schema: str
    kind: str
    deleted: bool = False
    own_names: bool = False
    nullable: bool = False


@dataclass(frozen=True)
class Shape:
    """How all models are stored. `legs` says where a trip's city is: in the trip, in its legs, or in both."""

    mapped: bool
    tables: dict[str, Table]
    legs: str
    city_by_id: bool
    settings: dict[str, Any] = field(default_factory=dict)


@st.composite
def shapes(draw: Any) -> Shape:
    """Any schema that holds the same rows."""
    tables = {}
    for model in MODELS:
        types = {**READ_TYPES, **WRITTEN_TYPES}[model]
        changed = draw(st.lists(st.sampled_from(sorted(types)), unique=True, max_size=3))
        kinds = ("table", "partitioned", "view", "materialized view") if model in SOURCES else ("table", "partitioned")
        tables[model] = Table(
            types={column: draw(st.sampled_from(types[column])) for column in changed},
            snake=draw(st.booleans()),
            schema=draw(st.sampled_from(("public", "public", "auth", "Planner s"))),
            kind="table" if model == "ModelRegistry" else draw(st.sampled_from(("table", *kinds))),
            deleted=model in SOURCES and draw(st.booleans()),
            own_names=draw(st.integers(0, 11)) == 0,
            nullable=model in SOURCES and draw(st.booleans()),
        )
    return Shape(
        draw(st.booleans()),
        tables,
        draw(st.sampled_from(("trip", "trip", "legs", "both"))),
        draw(st.integers(0, 3)) == 0,
    )


def statements(shape: Shape) -> Iterator[str]:
    """The SQL that turns the tables of `schema apply`, by model, into this shape. Rows stay the same."""
    yield "CREATE SCHEMA auth"
    yield 'CREATE SCHEMA "Planner s"'
    yield "CREATE DOMAIN public.words AS text"
    yield from DROP_KEYS
    if shape.legs != "trip":
        yield from _legs(shape)
    for model, table in shape.tables.items():
        if table.deleted:
            yield from _deleted_rows(model)
        for column, type_ in table.types.items():
            if (model, column) == ("Trip", "city") and shape.legs == "legs":
                continue
            yield from _converted(model, column, type_)
    if shape.city_by_id:
        yield 'CREATE TABLE public.towns AS SELECT row_number() OVER () AS no, city::text FROM "ActivityNode" GROUP BY city'
        yield 'ALTER TABLE "ActivityNode" ADD "townNo" int8'
        yield 'UPDATE "ActivityNode" n SET "townNo" = t.no FROM public.towns t WHERE t.city = n.city::text'
        yield 'ALTER TABLE "ActivityNode" DROP COLUMN city'
    for model, table in shape.tables.items():
        yield from _stored(shape, model, table)


DROP_KEYS = tuple(
    f'ALTER TABLE "{table}" DROP CONSTRAINT "{table}_{column}_fkey"'
    for table, column in (
        ("Trip", "userId"),
        ("ItinerarySlot", "tripId"),
        ("ItinerarySlot", "activityNodeId"),
        ("BehavioralSignal", "userId"),
    )
)
"""Foreign keys stand in the way of changing one side's type."""


def _legs(shape: Shape) -> Iterator[str]:
    name = "trip_legs" if shape.mapped else '"TripLeg"'
    yield f'CREATE TABLE {name} (id text PRIMARY KEY, "tripId" text NOT NULL, position int4, city text, "startDate" date)'
    yield f"""INSERT INTO {name} SELECT 'leg-' || id, id, 0, city, "startDate" FROM "Trip" """
    yield 'ALTER TABLE "ItinerarySlot" ADD "tripLegId" text'
    yield """UPDATE "ItinerarySlot" SET "tripLegId" = 'leg-' || "tripId" """
    if shape.legs == "legs":
        yield 'ALTER TABLE "Trip" DROP COLUMN city'


def _deleted_rows(model: str) -> Iterator[str]:
    """Rows that the application has deleted softly: copies of others with ids of their own, which must not count."""
    yield f'ALTER TABLE "{model}" ADD "deletedAt" timestamp(3)'
    yield f'CREATE TEMP TABLE gone ON COMMIT DROP AS SELECT * FROM "{model}" ORDER BY id LIMIT 40'
    yield "UPDATE gone SET id = gen_random_uuid()::text, \"deletedAt\" = timestamp '2024-01-01'"
    if model == "User":
        yield "UPDATE gone SET email = 'shadow-gone-' || id || '@overplanned.test'"
    yield f'INSERT INTO "{model}" SELECT * FROM gone'
    yield "DROP TABLE gone"


def _converted(model: str, column: str, type_: str) -> Iterator[str]:
    default = f'ALTER TABLE "{model}" ALTER "{column}" DROP DEFAULT'
    using = _CONVERT.get(type_, f"{{}}::{type_}").format(f'"{column}"')
    yield default
    yield f'ALTER TABLE "{model}" ALTER "{column}" TYPE {type_} USING {using}'


def _stored(shape: Shape, model: str, table: Table) -> Iterator[str]:
    """Rename the columns, and make the relation what it is to be, where it is to be."""
    columns = [column for column in {**READ_TYPES, **WRITTEN_TYPES}[model] if _has(shape, model, column)]
    columns += _MORE.get(model, ())
    for column in columns:
        if table.nullable and model in SOURCES and column != "id":
            yield f'ALTER TABLE "{model}" ALTER "{column}" DROP NOT NULL'
        if (name := column_name(shape, model, column)) != column:
            yield f'ALTER TABLE "{model}" RENAME "{column}" TO "{name}"'
    if table.kind == "partitioned":
        key = column_name(shape, model, "id")
        parted = f"{model}_parted"
        yield f'CREATE TABLE "{parted}" (LIKE "{model}" INCLUDING DEFAULTS) PARTITION BY HASH ("{key}")'
        for part in (0, 1):
            of = f'PARTITION OF "{parted}" FOR VALUES WITH (MODULUS 2, REMAINDER {part})'
            yield f'CREATE TABLE "{parted}_{part}" {of}'
        yield f'INSERT INTO "{parted}" SELECT * FROM "{model}"'
        yield f'DROP TABLE "{model}"'
        yield f'ALTER TABLE "{parted}" ADD PRIMARY KEY ("{key}")'
        yield f'ALTER TABLE "{parted}" RENAME TO "{model}"'
    schema, name = table.schema, relation_name(shape, model)
    if table.kind in {"view", "materialized view"}:
        yield f'ALTER TABLE "{model}" RENAME TO "{model}_rows"'
        yield f'CREATE {table.kind.upper()} "{schema}"."{name}" AS SELECT * FROM "{model}_rows"'
        return
    if name != model:
        yield f'ALTER TABLE "{model}" RENAME TO "{name}"'
    if schema != "public":
        yield f'ALTER TABLE "{name}" SET SCHEMA "{schema}"'


_MORE = {
    "RankingEvent": ("sessionId", "shadowModelName", "shadowModelVersion", "shadowRankedIds"),
    "ModelRegistry": ("modelName", "modelVersion", "description"),
}
"""Columns whose types are not drawn."""


def _has(shape: Shape, model: str, column: str) -> bool:
    if column != "city":
        return True
    return not (model == "Trip" and shape.legs == "legs") and not (model == "ActivityNode" and shape.city_by_id)


def column_name(shape: Shape, model: str, column: str) -> str:
    """The column's name in this shape."""
    table = shape.tables[model]
    if table.own_names and column == "userId":
        return "Owner of it"
    return snake(column) if table.snake else column


def relation_name(shape: Shape, model: str) -> str:
    """The relation's name in this shape."""
    if shape.tables[model].own_names:
        return f"my {model}"
    return MODELS[model] if shape.mapped else model


def mapping(shape: Shape) -> dict[str, dict[str, str]]:
    """What the settings must say of this shape: all that is not found out."""
    said: dict[str, dict[str, str]] = {}
    for model, table in shape.tables.items():
        entries = said.setdefault(model, {})
        if table.schema != "public" or table.own_names:
            entries["table"] = f'"{table.schema}"."{relation_name(shape, model)}"'
        if table.own_names and "userId" in {**READ_TYPES, **WRITTEN_TYPES}[model]:
            entries["userId"] = '"Owner of it"'
        if table.deleted:
            entries["where"] = '"deletedAt" IS NULL -- soft deletes'
        if model == "ActivityNode" and shape.city_by_id:
            entries["city"] = f'(SELECT t.city FROM towns t WHERE t.no = "{relation_name(shape, model)}"."townNo")'
    return {model: entries for model, entries in said.items() if entries}
