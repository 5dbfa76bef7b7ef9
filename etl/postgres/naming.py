"""Names in PostgreSQL: quoting, what a Prisma project calls tables, indexes and constraints, and where models are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from etl.errors import SettingsError

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
"""Each model and its table with `@@map`, in the order of all listings."""

SOURCE_MODELS = ("User", "Trip", "ItinerarySlot", "ActivityNode", "BehavioralSignal")
"""The application's own models. The naming is detected by their tables."""

WRITTEN_MODELS = ("PersonaDimension", "RankingEvent", "ModelRegistry")
"""The models that bpr-etl inserts rows into."""

LEGS = "TripLeg"
"""The model of a trip's legs, one city each. A schema need not have it."""

_TABLES = MappingProxyType({**MODELS, LEGS: "trip_legs"})

XMIN = "xmin"
"""The system column with the id of the transaction that wrote a row."""

_MAX_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1. Prisma cuts there, too.


def quote_identifier(name: str) -> str:
    """Return a name in double quotes, which PostgreSQL reads unchanged.

    Raises SettingsError for what can't be a name: empty, with a NUL, or too long (PostgreSQL would silently cut it).
    """
    encoded = _encoded(name)
    if not encoded or len(encoded) > _MAX_BYTES:
        raise SettingsError(f"A database name has 1 to {_MAX_BYTES} bytes, {name[:80]!r} has {len(encoded)}.")
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def quote_literal(text: str) -> str:
    """Return a text as an SQL literal for any `standard_conforming_strings`. Raises SettingsError for a NUL."""
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
class MappedColumn:
    """A column of a model as this database has it.

    `name` is its name here, None where the settings give SQL instead. `read` is SQL of its value in the contract's type, and
    `write` SQL that converts such a value to the column's own type; `{}` in them stands for the column and for the value.
    `exact` says that COPY can write the column. `precision` is that of a timestamp in decimals, None for all six.
    """

    name: str | None
    read: str = "{}"
    write: str = "{}"
    exact: bool = field(default=True, compare=False)
    precision: int | None = field(default=None, compare=False)

    def sql(self, row: str = "") -> str:
        """Return SQL of the value. `row` is the alias of the relation."""
        if self.name is None:
            return f"({self.read}\n)"
        column = quote_identifier(self.name)
        return self.read.replace("{}", f"{row}.{column}" if row else column)


@dataclass(frozen=True)
class Relation:
    """The table or view that holds a model's rows, and its columns by their names in the contract.

    `where` is SQL that is true for the rows that count, empty for all. `kind` is `pg_class.relkind`, empty where there is no
    such relation. `secured` says that row security applies to this role: PostgreSQL then refuses COPY.
    """

    schema: str
    name: str
    kind: str = ""
    columns: Mapping[str, MappedColumn] = field(default_factory=dict)
    where: str = ""
    secured: bool = False

    @property
    def is_table(self) -> bool:
        """Whether rows can be written: an ordinary or a partitioned table, which is assumed where no database was asked."""
        return self.kind in {"", "r", "p"}

    @property
    def sql(self) -> str:
        """The relation's name, quoted and with its schema."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"

    def source(self) -> str:
        """Return what stands in FROM so that columns have the contract's names and types.

        That is the relation itself if it has them. The planner merges a subquery into the statement around it.
        """
        same = all((column.name, column.read) == (name, "{}") for name, column in self.columns.items())
        if same and not self.where:
            return self.sql
        values = [f"{column.sql()} AS {quote_identifier(name)}" for name, column in self.columns.items()]
        if self.is_table:
            values.append(XMIN)
        # A line break, since the condition may end with a comment.
        condition = f" WHERE ({self.where}\n)" if self.where else ""
        return f"(SELECT {', '.join(values)} FROM {self.sql}{condition})"


@dataclass(frozen=True)
class Naming:
    """How the models are found in a database: tables named by model or in snake case by `@@map`, in one schema.

    `relations` say it of each model once a database was asked; without it, a model's table has the naming's own name and the
    contract's columns. `map` holds the settings' `[map.Model]` tables.
    """

    kind: Literal["model", "mapped"]
    schema: str = "public"
    relations: Mapping[str, Relation] = field(default_factory=dict)
    map: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def relation(self, model: str) -> Relation:
        """Return the model's relation."""
        if model in self.relations:
            return self.relations[model]
        return Relation(self.schema, model if self.kind == "model" else _TABLES[model])

    @property
    def has_legs(self) -> bool:
        """Whether trips have legs with a city each."""
        return LEGS in self.relations

    def table_name(self, model: str) -> str:
        """Return the table's name, unquoted and without its schema."""
        return self.relation(model).name

    def qualified(self, name: str) -> str:
        """Return the name of a table or type, quoted and with its schema."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(name)}"

    def table(self, model: str) -> str:
        """Return the model's table, quoted and with its schema."""
        return self.relation(model).sql

    def source(self, model: str) -> str:
        """Return what stands in FROM to read the model: columns have the contract's names and types."""
        return self.relation(model).source()

    def columns(self, model: str, names: Iterable[str]) -> list[str]:
        """Return the names of columns in the model's table, unquoted. Those that the settings replace by SQL are left out."""
        found = (self.mapped_column(model, name).name for name in names)
        return [name for name in found if name is not None]

    def mapped_column(self, model: str, name: str) -> MappedColumn:
        """Return a column of the model as this database has it."""
        return self.relation(model).columns.get(name) or MappedColumn(name)

    def trip_start(self, trip: str) -> str:
        """Return SQL of the startDate of a row of `source("Trip")`, from which the dates of its events are counted."""
        return self.rounded("Trip", "startDate", trip, [("RankingEvent", "createdAt")])

    def rounded(self, model: str, column: str, row: str, targets: Iterable[tuple[str, str]]) -> str:
        """Return SQL of a timestamp of `source(model)`, rounded as the columns round it that it is written to."""
        value = f"{row}.{quote_identifier(column)}"
        own = self.mapped_column(model, column).precision
        limits = [limit for each in targets if (limit := self.mapped_column(*each).precision) is not None]
        if not limits or (own is not None and own <= min(limits)):
            return value
        return f"{value}::pg_catalog.timestamp({min(limits)})"

    def column_name(self, model: str, name: str) -> str:
        """Return the name of a column in the model's table, unquoted."""
        return self.mapped_column(model, name).name or name

    def column(self, model: str, name: str) -> str:
        """Return the quoted name of a column in the model's table."""
        return quote_identifier(self.column_name(model, name))

    def constraint(self, model: str, columns: str, suffix: str) -> str:
        """Return the name that Prisma gives to a constraint or an index, unquoted.

        Table and columns are cut between characters so that the name with its suffix has at most 63 bytes.
        """
        stem = "_".join(part for part in (self.table_name(model), columns) if part)
        kept = stem.encode()[: _MAX_BYTES - len(suffix) - 1].decode(errors="ignore")
        return f"{kept}_{suffix}"
