"""The tables as a Prisma project has them: columns, enums, indexes and foreign keys, and their DDL as SQL and as Prisma text.

Pure: no server is contacted. All is read from `data/schema.prisma`, whose SQL is what Prisma generates from it; a test compares
it with Prisma's own engine.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
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


_BLOCK = re.compile(r"^(?://[^\n]*\n)*(model|enum) (?P<name>\w+) \{\n(?P<lines>.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^  (?P<name>\w+) +(?P<type>\w+)(?P<mark>\?|\[\])?(?P<attributes>.*)$", re.MULTILINE)
_DEFAULT = re.compile(r'@default\((?P<quote>"?)(?P<value>[\w.]+(?:\(\))?)"?\)')
_RELATION = re.compile(r"@relation\(fields: \[(\w+)\], references: \[id\](?:, onDelete: (\w+))?\)")
_INDEX = re.compile(r"^  @@(index|unique)\(\[(.*)\]\)$", re.MULTILINE)

_PRISMA = resource("schema.prisma").read_text(encoding="utf-8")
_BLOCKS: Mapping[str, re.Match[str]] = {block["name"]: block for block in _BLOCK.finditer(_PRISMA)}

_TYPES = {"String": "text", "Int": "int4", "Float": "float8", "DateTime": "timestamp", "Json": "jsonb"}
"""The types of `data/schema.prisma` that are no enums, and their names in pg_type."""

_ENUMS = {
    name: tuple(re.findall(r"^  (\w+)$", block["lines"], re.MULTILINE))
    for name, block in _BLOCKS.items()
    if name not in MODELS
}

_LABELS = {
    ("ItinerarySlot", "status"): ("confirmed", "active", "completed"),
    ("ActivityNode", "status"): ("archived",),
    ("ModelRegistry", "stage"): ("production", "staging"),
}
"""The labels of enums that bpr-etl relies on, by model and column."""

_WRITTEN_NULL = ("sessionId", "shadowModelName", "shadowModelVersion", "shadowRankedIds")
"""The columns that bpr-etl writes NULL to."""

_LONGEST = {
    "BehavioralSignal": {"modelVersion": 16},
    "PersonaDimension": {"id": 36, "dimension": 19, "source": 13},
    "RankingEvent": {"id": 36, "modelName": 10, "modelVersion": 5, "surface": 9},
    "ModelRegistry": {"id": 36, "modelName": 10, "modelVersion": 5, "modelType": 23, "description": 44},
}
"""The length of the longest text of its own that bpr-etl writes, by model and column."""


def _column(model: str, field: re.Match[str]) -> Column:
    """Read a field of a model in `data/schema.prisma`."""
    name, enum = field["name"], field["type"] if field["type"] in _ENUMS else ""
    default, value = _DEFAULT.search(field["attributes"]), ""
    if default and default["value"] == "now()":
        value = "CURRENT_TIMESTAMP"
    elif default and default["value"] != "uuid()":  # Prisma makes UUIDs itself
        value = quote_literal(default["value"]) if enum or default["quote"] else default["value"]
    return Column(
        name,
        "enum" if enum else f"{'_' if field['mark'] == '[]' else ''}{_TYPES[field['type']]}",
        nullable=field["mark"] is not None,  # Prisma's arrays are nullable in the database and never null in Prisma
        default=value,
        writes_null=name in _WRITTEN_NULL,
        enum=enum,
        labels=_LABELS.get((model, name), ()),
        longest=_LONGEST.get(model, {}).get(name, 0),
    )


COLUMNS: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {
        model: tuple(
            _column(model, field) for field in _FIELD.finditer(_BLOCKS[model]["lines"]) if field["type"] not in MODELS
        )
        for model in MODELS
    }
)
"""The columns that bpr-etl uses of each model, in the order in which they are created. A table may have more."""

_LEG_COLUMNS: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {
        LEGS: (Column("id", "text"), Column("city", "text", nullable=True)),
        "ItinerarySlot": (Column("tripLegId", "text", nullable=True),),
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

_INDEXED = "ItinerarySlot"
"""The application's model that gets an index."""

_ON_DELETE = {None: "RESTRICT", "Cascade": "CASCADE", "SetNull": "SET NULL"}

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
        *(index for model in MODELS for index in _create_indexes(naming, model)),
        *(key for model in MODELS for key in _add_foreign_keys(naming, model)),
    ]
    needs = {"foreign_key": all}
    return [each for each in statements if needs.get(each.kind, any)(model in models for model in each.models)]


def _create_enum(naming: Naming, enum: str) -> Statement:
    users = tuple(model for model, columns in COLUMNS.items() if any(column.enum == enum for column in columns))
    labels = ", ".join(map(quote_literal, _ENUMS[enum]))
    return Statement("enum", enum, users, f"CREATE TYPE {naming.qualified(enum)} AS ENUM ({labels})")


def _create_table(naming: Naming, model: str) -> Statement:
    lines = [
        f"    {quote_identifier(column.name)} {naming.qualified(column.enum) if column.enum else _SQL_TYPES[column.type]}"
        f"{'' if column.nullable else ' NOT NULL'}{f' DEFAULT {column.default}' if column.default else ''},\n"
        for column in COLUMNS[model]
    ]
    key = quote_identifier(naming.constraint(model, "", "pkey"))
    body = f'{"".join(lines)}\n    CONSTRAINT {key} PRIMARY KEY ("id")\n'
    return Statement("table", naming.table_name(model), (model,), f"CREATE TABLE {naming.table(model)} (\n{body})")


def _create_indexes(naming: Naming, model: str) -> Iterator[Statement]:
    """Yield a model's indexes as Prisma orders them: the unique ones last. Their names have the suffixes `idx` and `key`."""
    fields = (
        (field["name"],) for field in _FIELD.finditer(_BLOCKS[model]["lines"]) if "@unique" in field["attributes"]
    )
    blocks = [(kind == "unique", tuple(names.split(", "))) for kind, names in _INDEX.findall(_BLOCKS[model]["lines"])]
    for unique, fields_ in sorted([*((True, each) for each in fields), *blocks], key=itemgetter(0)):
        columns = tuple(naming.columns(model, fields_))
        name = naming.constraint(model, "_".join(columns), "key" if unique else "idx")
        on = f"{naming.table(model)}({', '.join(map(quote_identifier, columns))})"
        sql = f"CREATE {'UNIQUE ' if unique else ''}INDEX {quote_identifier(name)} ON {on}"
        yield Statement("index", name, (model,), sql, columns, unique)


def _add_foreign_keys(naming: Naming, model: str) -> Iterator[Statement]:
    for field in _FIELD.finditer(_BLOCKS[model]["lines"]):
        if relation := _RELATION.search(field["attributes"]):
            column, to = relation[1], field["type"]
            name = naming.constraint(model, column, "fkey")
            sql = (
                f"ALTER TABLE {naming.table(model)} ADD CONSTRAINT {quote_identifier(name)} FOREIGN KEY "
                f'({quote_identifier(column)}) REFERENCES {naming.table(to)}("id") ON DELETE {_ON_DELETE[relation[2]]} '
                "ON UPDATE CASCADE"
            )
            yield Statement("foreign_key", name, (model, to), sql)


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


def schema_prisma(naming: Naming, *, added: bool = False) -> str:
    """Return the Prisma models, in the mapped naming with their `@@map` lines.

    With `added` only what the design adds to an application's: three models, their enum, and the index as a comment.
    """
    text = _BLOCK.sub(_add_map, _PRISMA) if naming.kind == "mapped" else _PRISMA
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
