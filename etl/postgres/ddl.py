"""What a Prisma project calls things in PostgreSQL: tables, columns, indexes, and the DDL that makes them.

Pure: texts in, texts out. `data/schema.prisma` and `data/schema.sql` (what Prisma makes of it) are the one source; both
are kept in model naming and rendered from there. A test holds them against Prisma's own engine.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Literal

from etl.errors import EtlError, SettingsError
from etl.runtime.resources import resource

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "User": "users",
        "Trip": "trips",
        "ItinerarySlot": "itinerary_slots",
        "ActivityNode": "activity_nodes",
        "BehavioralSignal": "behavioral_signals",
        "PersonaDimension": "persona_dimensions",
        "RankingEvent": "ranking_events",
        "ModelRegistry": "model_registry",
    }
)
"""Each model and the table that `@@map` gives it, in the order in which everything is listed."""

SOURCE_MODELS = ("User", "Trip", "ItinerarySlot", "ActivityNode", "BehavioralSignal")
"""The application's own: the naming is told by them."""

WRITTEN_MODELS = ("PersonaDimension", "RankingEvent", "ModelRegistry")
"""Those that bpr-etl inserts rows into."""

_INDEXED = "ItinerarySlot"
"""The application's model that gets an index."""

_BLOCK = re.compile(r"^(?://[^\n]*\n)*(?:model|enum) (?P<name>\w+) \{\n.*?^\}", re.MULTILINE | re.DOTALL)

_MAX_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1, where Prisma cuts, too

StatementKind = Literal["enum", "table", "index", "foreign_key"]


@dataclass(frozen=True)
class Column:
    """A column that bpr-etl uses.

    `types` are the accepted names in `pg_type.typname`; `enum` stands for any enum type. `labels` are the values of the
    enum that bpr-etl knows by name. `written_null` says that NULL is put into it, `nullable` that NULL is allowed there.
    """

    name: str
    types: tuple[str, ...]
    nullable: bool = False
    labels: tuple[str, ...] = ()
    writes_null: bool = False


def _columns(
    types: tuple[str, ...], *names: str, nullable: bool = False, written_null: bool = False
) -> tuple[Column, ...]:
    return tuple(Column(name, types, nullable=nullable, writes_null=written_null) for name in names)


_TEXT, _TEXTS, _INT, _FLOAT, _TIME = ("text", "varchar"), ("_text",), ("int4",), ("float8",), ("timestamp",)

COLUMNS: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {
        "User": _columns(_TEXT, "id", "email"),
        "Trip": (
            *_columns(_TEXT, "id", "userId", "city"),
            *_columns(_TIME, "startDate", "createdAt"),
            Column("personaSeed", ("jsonb",), nullable=True),
        ),
        "ItinerarySlot": (
            *_columns(_TEXT, "id", "tripId"),
            *_columns(_TEXT, "activityNodeId", nullable=True),
            *_columns(_INT, "dayNumber", "sortOrder"),
            Column("status", ("enum",), labels=("confirmed", "active", "completed")),
        ),
        "ActivityNode": (
            *_columns(_TEXT, "id", "city", "name"),
            Column("category", ("enum",)),
            Column("status", ("enum",), labels=("archived",)),
            *_columns(_FLOAT, "latitude", "longitude"),
        ),
        "BehavioralSignal": (
            *_columns(_TEXT, "id", "userId"),
            *_columns(_TEXT, "tripId", "slotId", "activityNodeId", "modelVersion", nullable=True),
            Column("signalType", ("enum",)),
        ),
        "PersonaDimension": (
            *_columns(_TEXT, "id", "userId", "dimension", "value", "source"),
            *_columns(_FLOAT, "confidence"),
            *_columns(_TIME, "updatedAt", "createdAt"),
        ),
        "RankingEvent": (
            *_columns(_TEXT, "id", "userId", "tripId", "modelName", "modelVersion", "surface"),
            *_columns(_TEXT, "sessionId", "shadowModelName", "shadowModelVersion", nullable=True, written_null=True),
            *_columns(_TEXTS, "candidateIds", "rankedIds", "selectedIds", nullable=True),
            *_columns(_TEXTS, "shadowRankedIds", nullable=True, written_null=True),
            *_columns(_INT, "dayNumber"),
            *_columns(_INT, "latencyMs", nullable=True),
            *_columns(_TIME, "createdAt"),
        ),
        "ModelRegistry": (
            *_columns(_TEXT, "id", "modelName", "modelVersion", "modelType"),
            *_columns(_TEXT, "description", nullable=True),
            Column("stage", ("enum",), labels=("production", "staging")),
            *_columns(_TIME, "createdAt", "updatedAt"),
        ),
    }
)
"""The columns that bpr-etl uses of each model; a table may have more."""


def quote_identifier(name: str) -> str:
    """A name as PostgreSQL reads it back unchanged, in double quotes.

    Raises SettingsError for what can't be a name: empty, with a NUL, or longer than PostgreSQL keeps (it would cut the
    name off without an error, and mean another).
    """
    encoded = _encoded(name)
    if not encoded or len(encoded) > _MAX_BYTES:
        raise SettingsError(f"A database name has 1 to {_MAX_BYTES} bytes, {name[:80]!r} has {len(encoded)}.")
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def quote_literal(text: str) -> str:
    """A text as an SQL literal, whatever `standard_conforming_strings` is. Raises SettingsError for a NUL in it."""
    _encoded(text)
    doubled = text.replace("'", "''")
    if "\\" not in text:
        return f"'{doubled}'"
    escaped = doubled.replace("\\", "\\\\")
    return f"E'{escaped}'"


def _encoded(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise SettingsError("A text for the database is not valid Unicode: it holds a lone surrogate.") from None
    if b"\0" in encoded:
        raise SettingsError("A text for the database holds a NUL character, which PostgreSQL can't store.")
    return encoded


@dataclass(frozen=True)
class Naming:
    """How the tables of one PostgreSQL schema are named: by model, or by `@@map` in snake case."""

    kind: Literal["model", "mapped"]
    schema: str = "public"

    def table_name(self, model: str) -> str:
        """The table's name alone, unquoted."""
        return model if self.kind == "model" else MODELS[model]

    def qualified(self, name: str) -> str:
        """A table's or type's name, quoted and with its schema."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(name)}"

    def table(self, model: str) -> str:
        """The table as SQL names it: quoted and with its schema."""
        return self.qualified(self.table_name(model))

    def index(self, model: str, *columns: str) -> str:
        """The name that Prisma gives to an `@@index` on these columns, unquoted."""
        return self.constraint(model, "_".join(columns), "idx")

    def constraint(self, model: str, columns: str, suffix: str) -> str:
        """The name that Prisma gives to a constraint or an index, unquoted.

        Table and columns are cut, at a character's border, so that the suffix has room within PostgreSQL's 63 bytes.
        """
        stem = "_".join(part for part in (self.table_name(model), columns) if part)
        kept = stem.encode()[: _MAX_BYTES - len(suffix) - 1].decode(errors="ignore")
        return f"{kept}_{suffix}"


@dataclass(frozen=True)
class Statement:
    """One statement of the DDL, without the semicolon; its tables and types carry their schema.

    `models` are those it belongs to: the users of an enum, the owner of a table or index, both ends of a foreign key.
    `columns` and `unique` tell what an index is on.
    """

    kind: StatementKind
    name: str
    models: tuple[str, ...]
    sql: str
    columns: tuple[str, ...] = ()
    unique: bool = False


_HEADINGS: Mapping[StatementKind, str] = {
    "enum": "CreateEnum",
    "table": "CreateTable",
    "index": "CreateIndex",
    "foreign_key": "AddForeignKey",
}
_KINDS: tuple[tuple[StatementKind, re.Pattern[str]], ...] = (
    ("enum", re.compile(r'CREATE TYPE "(?P<name>\w+)" AS ENUM')),
    ("table", re.compile(r'CREATE TABLE "(?P<name>\w+)"')),
    ("index", re.compile(r'CREATE (?P<unique>UNIQUE )?INDEX "(?P<name>\w+)" ON "(?P<model>\w+)"\((?P<columns>.*)\)')),
    (
        "foreign_key",
        re.compile(r'ALTER TABLE "(?P<model>\w+)" ADD CONSTRAINT "(?P<name>\w+)".* REFERENCES "(?P<to>\w+)"'),
    ),
)
_QUOTED = re.compile(r'"(\w+)"')
_CONSTRAINT = re.compile(rf"(?P<model>{'|'.join(MODELS)})(?:_(?P<columns>\w+))?_(?P<suffix>pkey|key|idx|fkey)")


def schema_statements(naming: Naming, models: Collection[str] | None = None) -> list[Statement]:
    """The statements that make these models (all of them, unless told), in an order in which they run.

    An enum is there when one of its users is asked for, a foreign key when both of its ends are. Table, constraint and
    index names are those Prisma gives for the naming; enum types keep theirs.
    """
    wanted = set(MODELS if models is None else models)
    chosen = []
    for statement in _source():
        ends = wanted.intersection(statement.models)
        if ends and (statement.kind != "foreign_key" or ends == set(statement.models)):
            chosen.append(_render(statement, naming))
    return chosen


def schema_sql(naming: Naming, *, added: bool = False) -> str:
    """The DDL as a script, in Prisma's own form; in another schema than `public`, the schema comes first.

    All of it, or what the design adds to an application's tables: three tables, their enum, and the index on slots.
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
    """The Prisma models; for the mapped naming with their `@@map` lines.

    All of them, or what the design adds to an application's: three models, their enum, and the index as a comment.
    """
    text = _schema_prisma(naming)
    if not added:
        return text
    blocks = {found["name"]: found[0] for found in _BLOCK.finditer(text)}
    new = [each.name for each in schema_statements(Naming("model"), WRITTEN_MODELS) if each.kind in {"enum", "table"}]
    index = "\n".join(f"//{line}" for line in blocks[_INDEXED].splitlines() if line.startswith("  @@index"))
    return "\n\n".join([f"// Add this to the model {_INDEXED}:\n{index}", *map(blocks.__getitem__, new)]) + "\n"


def _schema_prisma(naming: Naming) -> str:
    source = _read("schema.prisma")
    if naming.kind == "model":
        return source
    mapped = re.sub(
        r"^model (\w+) \{\n(.*?)^\}",
        lambda found: f"model {found[1]} {{\n{_with_map(found[2], MODELS[found[1]])}}}",
        source,
        flags=re.MULTILINE | re.DOTALL,
    )
    if mapped.count("@@map(") != len(MODELS):
        raise EtlError(
            "data/schema.prisma does not hold the models that etl.postgres.ddl names: the installation is damaged."
        )
    return mapped


def _with_map(body: str, table: str) -> str:
    gap = "" if "\n  @@" in body else "\n"
    return f'{body}{gap}  @@map("{table}")\n'


def _render(statement: Statement, naming: Naming) -> Statement:
    sql = _QUOTED.sub(lambda found: _rendered_name(found[1], naming), statement.sql)
    name = statement.name if statement.kind == "enum" else _renamed(statement.name, naming)
    return replace(statement, name=name, sql=sql)


def _rendered_name(name: str, naming: Naming) -> str:
    """A quoted name of the DDL: tables and enums get their schema, PostgreSQL takes none for constraints and indexes."""
    if name in MODELS:
        return naming.table(name)
    return naming.qualified(name) if name in _enums() else quote_identifier(_renamed(name, naming))


def _renamed(name: str, naming: Naming) -> str:
    if name in MODELS:
        return naming.table_name(name)
    found = _CONSTRAINT.fullmatch(name)
    return naming.constraint(found["model"], found["columns"] or "", found["suffix"]) if found else name


@cache
def _enums() -> frozenset[str]:
    return frozenset(statement.name for statement in _source() if statement.kind == "enum")


@cache
def _source() -> tuple[Statement, ...]:
    """The statements of data/schema.sql as they stand: in model naming, without a schema."""
    script = re.sub(r"^--.*\n", "", _read("schema.sql"), flags=re.MULTILINE)
    texts = [text.strip() for text in script.split(";\n") if text.strip()]
    return tuple(_parsed(text, texts) for text in texts)


def _parsed(text: str, texts: list[str]) -> Statement:
    for kind, pattern in _KINDS:
        if found := pattern.match(text):
            groups = found.groupdict()
            models = tuple(groups[key] for key in ("model", "to") if key in groups) or (found["name"],)
            if kind == "enum":
                models = _users_of(found["name"], texts)
            columns = tuple(_QUOTED.findall(groups.get("columns", "")))
            return Statement(kind, found["name"], models, text, columns, unique=bool(groups.get("unique")))
    raise EtlError(f"data/schema.sql holds a statement that etl.postgres.ddl can't read: {text[:60]!r}.")


def _users_of(enum: str, texts: list[str]) -> tuple[str, ...]:
    tables = (re.match(r'CREATE TABLE "(\w+)"', text) for text in texts)
    return tuple(found[1] for found in tables if found and f' "{enum}"' in found.string)


def _read(name: str) -> str:
    return resource(name).read_text(encoding="utf-8")
