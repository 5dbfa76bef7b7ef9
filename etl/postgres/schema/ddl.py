"""The tables as a Prisma project has them: columns, enums, indexes and foreign keys, and their DDL as SQL and as Prisma text.

Pure: no server is contacted. The SQL is what Prisma generates from `data/schema.prisma`; a test compares it with
Prisma's own engine.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from etl.postgres.naming import LEGS, MODELS, WRITTEN_MODELS, Naming, quote_identifier, quote_literal
from etl.runtime.resources import resource

StatementKind = Literal["enum", "table", "index", "foreign_key"]


@dataclass(frozen=True)
class Column:
    """A column that bpr-etl uses.

    `type` is its name in `pg_type.typname`, `enum` for any enum; `etl.postgres.schema.mapping` says which others are accepted.
    `enum` is the enum that is created, and `labels` are those of its values that bpr-etl relies on. `default` is SQL.
    `nullable` says that NULL is allowed in the column, `writes_null` that bpr-etl writes NULL to it. `longest` is the length of
    the longest text that bpr-etl writes there of its own, 0 where it copies ids.
    """

    name: str
    type: str
    nullable: bool = False
    default: str = ""
    writes_null: bool = False
    enum: str = ""
    labels: tuple[str, ...] = ()
    longest: int = 0


def _columns(
    type_: str, *names: str, nullable: bool = False, default: str = "", writes_null: bool = False
) -> tuple[Column, ...]:
    return tuple(Column(name, type_, nullable, default, writes_null) for name in names)


def _text(name: str, longest: int, *, nullable: bool = False, default: str = "") -> Column:
    return Column(name, _TEXT, nullable, default, longest=longest)


def _enum(name: str, enum: str, default: str = "", labels: tuple[str, ...] = ()) -> Column:
    return Column(name, "enum", default=default, enum=enum, labels=labels)


_TEXT, _TEXTS, _INT, _FLOAT, _TIME = "text", "_text", "int4", "float8", "timestamp"
_NOW = "CURRENT_TIMESTAMP"

COLUMNS: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {
        "User": _columns(_TEXT, "id", "email"),
        "Trip": (
            *_columns(_TEXT, "id", "userId", "city"),
            *_columns(_TIME, "startDate"),
            *_columns(_TIME, "createdAt", default=_NOW),
            *_columns("jsonb", "personaSeed", nullable=True),
        ),
        "ItinerarySlot": (
            *_columns(_TEXT, "id", "tripId"),
            *_columns(_TEXT, "activityNodeId", nullable=True),
            *_columns(_INT, "dayNumber", "sortOrder"),
            _enum("status", "SlotStatus", "'proposed'", labels=("confirmed", "active", "completed")),
        ),
        "ActivityNode": (
            *_columns(_TEXT, "id", "city"),
            _enum("category", "ActivityCategory"),
            _enum("status", "NodeStatus", "'pending'", labels=("archived",)),
            *_columns(_TEXT, "name"),
            *_columns(_FLOAT, "latitude", "longitude"),
        ),
        "BehavioralSignal": (
            *_columns(_TEXT, "id", "userId"),
            *_columns(_TEXT, "tripId", "slotId", "activityNodeId", nullable=True),
            _enum("signalType", "SignalType"),
            _text("modelVersion", 16, nullable=True),
        ),
        "PersonaDimension": (
            _text("id", 36),
            *_columns(_TEXT, "userId"),
            _text("dimension", 19),
            *_columns(_TEXT, "value"),
            *_columns(_FLOAT, "confidence", default="1.0"),
            _text("source", 13, default="'onboarding'"),
            *_columns(_TIME, "updatedAt"),
            *_columns(_TIME, "createdAt", default=_NOW),
        ),
        "RankingEvent": (
            _text("id", 36),
            *_columns(_TEXT, "userId", "tripId"),
            *_columns(_TEXT, "sessionId", nullable=True, writes_null=True),
            *_columns(_INT, "dayNumber"),
            _text("modelName", 10),
            _text("modelVersion", 5),
            *_columns(_TEXTS, "candidateIds", "rankedIds", "selectedIds", nullable=True),
            _text("surface", 9),
            *_columns(_TEXT, "shadowModelName", "shadowModelVersion", nullable=True, writes_null=True),
            *_columns(_TEXTS, "shadowRankedIds", nullable=True, writes_null=True),
            *_columns(_INT, "latencyMs", nullable=True),
            *_columns(_TIME, "createdAt", default=_NOW),
        ),
        "ModelRegistry": (
            _text("id", 36),
            _text("modelName", 10),
            _text("modelVersion", 5),
            _enum("stage", "ModelStage", "'staging'", labels=("production", "staging")),
            _text("modelType", 23),
            _text("description", 44, nullable=True),
            *_columns(_TIME, "createdAt", default=_NOW),
            *_columns(_TIME, "updatedAt"),
        ),
    }
)
"""The columns that bpr-etl uses of each model, in the order in which they are created. A table may have more."""

_LEG_COLUMNS: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {
        LEGS: (*_columns(_TEXT, "id"), *_columns(_TEXT, "city", nullable=True)),
        "ItinerarySlot": _columns(_TEXT, "tripLegId", nullable=True),
    }
)
"""The additional columns that are used if trips have legs."""


def columns_used(model: str, *, legs: bool) -> tuple[Column, ...]:
    """Return the columns that bpr-etl uses of a model. If trips have `legs`, a slot refers to its leg."""
    return (*COLUMNS.get(model, ()), *(_LEG_COLUMNS.get(model, ()) if legs else ()))


_SQL_TYPES = {
    "text": "TEXT",
    "_text": "TEXT[]",
    "int4": "INTEGER",
    "float8": "DOUBLE PRECISION",
    "timestamp": "TIMESTAMP(3)",
    "jsonb": "JSONB",
}

_ENUMS = {
    "SlotStatus": "proposed voted confirmed active completed skipped",
    "ActivityCategory": (
        "dining drinks culture outdoors active entertainment shopping experience nightlife group_activity wellness"
    ),
    "NodeStatus": "pending approved flagged archived",
    "SignalType": "view confirm complete dwell skip loved disliked",
    "ModelStage": "staging shadow production archived",
}

_INDEXED = "ItinerarySlot"
"""The application's model that gets an index."""

_INDEXES = (
    ("User", ("email",), "key"),
    ("Trip", ("userId",), "idx"),
    (_INDEXED, ("tripId", "dayNumber"), "idx"),
    ("ActivityNode", ("city",), "idx"),
    ("BehavioralSignal", ("userId",), "idx"),
    ("BehavioralSignal", ("tripId",), "idx"),
    ("BehavioralSignal", ("activityNodeId",), "idx"),
    ("PersonaDimension", ("userId",), "idx"),
    ("PersonaDimension", ("dimension", "value"), "idx"),
    ("PersonaDimension", ("userId", "dimension"), "key"),
    ("RankingEvent", ("userId", "createdAt"), "idx"),
    ("RankingEvent", ("tripId", "dayNumber"), "idx"),
    ("RankingEvent", ("modelName", "modelVersion"), "idx"),
    ("ModelRegistry", ("modelName", "modelVersion"), "key"),
)
"""Model, columns, and the suffix of the name: `key` for a unique index."""

_FOREIGN_KEYS = (
    ("Trip", "userId", "User", "RESTRICT"),
    ("ItinerarySlot", "tripId", "Trip", "CASCADE"),
    ("ItinerarySlot", "activityNodeId", "ActivityNode", "SET NULL"),
    ("BehavioralSignal", "userId", "User", "RESTRICT"),
)
"""Model, column, the model that it refers to, ON DELETE."""

_HEADINGS: Mapping[StatementKind, str] = {
    "enum": "CreateEnum",
    "table": "CreateTable",
    "index": "CreateIndex",
    "foreign_key": "AddForeignKey",
}


@dataclass(frozen=True)
class Statement:
    """One statement of the DDL, without the semicolon. Its tables and types carry their schema.

    `models` are those it belongs to: the users of an enum, the owner of a table or index, both ends of a foreign key.
    `columns` and `unique` describe an index.
    """

    kind: StatementKind
    name: str
    models: tuple[str, ...]
    sql: str
    columns: tuple[str, ...] = ()
    unique: bool = False


def schema_statements(naming: Naming, models: Collection[str] = tuple(MODELS)) -> list[Statement]:
    """Return the statements that create these models, in an order in which they run.

    An enum is included if one of its users is asked for, a foreign key if both of its ends are. Tables, constraints and
    indexes have the names that Prisma gives them in this naming; enum types are named alike in both.
    """
    statements = [
        *(_create_enum(naming, enum) for enum in _ENUMS),
        *(_create_table(naming, model) for model in MODELS),
        *(_create_index(naming, *index) for index in _INDEXES),
        *(_add_foreign_key(naming, *key) for key in _FOREIGN_KEYS),
    ]
    needs = {"foreign_key": all}
    return [each for each in statements if needs.get(each.kind, any)(model in models for model in each.models)]


def _create_enum(naming: Naming, enum: str) -> Statement:
    users = tuple(model for model, columns in COLUMNS.items() if any(column.enum == enum for column in columns))
    labels = ", ".join(map(quote_literal, _ENUMS[enum].split()))
    return Statement("enum", enum, users, f"CREATE TYPE {naming.qualified(enum)} AS ENUM ({labels})")


def _create_table(naming: Naming, model: str) -> Statement:
    lines = [
        f"    {quote_identifier(column.name)} {naming.qualified(column.enum) if column.enum else _SQL_TYPES[column.type]}"
        # Prisma's arrays are nullable in the database and never null in Prisma.
        f"{'' if column.nullable else ' NOT NULL'}{f' DEFAULT {column.default}' if column.default else ''},\n"
        for column in COLUMNS[model]
    ]
    key = quote_identifier(naming.constraint(model, "", "pkey"))
    body = f'{"".join(lines)}\n    CONSTRAINT {key} PRIMARY KEY ("id")\n'
    return Statement("table", naming.table_name(model), (model,), f"CREATE TABLE {naming.table(model)} (\n{body})")


def _create_index(naming: Naming, model: str, columns: tuple[str, ...], suffix: str) -> Statement:
    columns = tuple(naming.columns(model, columns))
    name, unique = naming.constraint(model, "_".join(columns), suffix), suffix == "key"
    on = f"{naming.table(model)}({', '.join(map(quote_identifier, columns))})"
    sql = f"CREATE {'UNIQUE ' if unique else ''}INDEX {quote_identifier(name)} ON {on}"
    return Statement("index", name, (model,), sql, columns, unique)


def _add_foreign_key(naming: Naming, model: str, column: str, to: str, on_delete: str) -> Statement:
    name = naming.constraint(model, column, "fkey")
    sql = (
        f"ALTER TABLE {naming.table(model)} ADD CONSTRAINT {quote_identifier(name)} FOREIGN KEY ({quote_identifier(column)}) "
        f'REFERENCES {naming.table(to)}("id") ON DELETE {on_delete} ON UPDATE CASCADE'
    )
    return Statement("foreign_key", name, (model, to), sql)


def schema_sql(naming: Naming, *, added: bool = False) -> str:
    """Return the DDL as a script in Prisma's own form. A schema other than `public` is created first.

    With `added` only what the design adds to an application's tables: three tables, their enum, and the index on slots.
    """
    statements = schema_statements(naming)
    if added:
        index = [each for each in schema_statements(naming, [_INDEXED]) if each.kind == "index"]
        statements = [*schema_statements(naming, WRITTEN_MODELS), *index]
    parts = [f"-- {_HEADINGS[each.kind]}\n{each.sql};\n" for each in statements]
    if naming.schema != "public" and not added:
        parts.insert(0, f"-- CreateSchema\nCREATE SCHEMA IF NOT EXISTS {quote_identifier(naming.schema)};\n")
    return "\n".join(parts)


_BLOCK = re.compile(r"^(?://[^\n]*\n)*(?:model|enum) (?P<name>\w+) \{\n.*?^\}", re.MULTILINE | re.DOTALL)


def schema_prisma(naming: Naming, *, added: bool = False) -> str:
    """Return the Prisma models, in the mapped naming with their `@@map` lines.

    With `added` only what the design adds to an application's: three models, their enum, and the index as a comment.
    """
    text = resource("schema.prisma").read_text(encoding="utf-8")
    if naming.kind == "mapped":
        text = _BLOCK.sub(_add_map, text)
    if not added:
        return text
    blocks = {found["name"]: found[0] for found in _BLOCK.finditer(text)}
    new = [each.name for each in schema_statements(Naming("model"), WRITTEN_MODELS) if each.kind in {"enum", "table"}]
    index = "\n".join(f"//{line}" for line in blocks[_INDEXED].splitlines() if line.startswith("  @@index"))
    return "\n\n".join([f"// Add this to the model {_INDEXED}:\n{index}", *map(blocks.__getitem__, new)]) + "\n"


def _add_map(block: re.Match[str]) -> str:
    """Add the `@@map` line to a model's block; an enum's stays as it is."""
    if block["name"] not in MODELS:
        return block[0]
    gap = "" if "\n  @@" in block[0] else "\n"  # Prisma's formatting: an empty line before the first block attribute
    return f'{block[0].removesuffix("}")}{gap}  @@map("{MODELS[block["name"]]}")\n}}'
