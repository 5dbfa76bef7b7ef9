"""Names in PostgreSQL: quoting, and what a Prisma project calls tables, indexes and constraints. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
"""Each model and the table that `@@map` gives it, in the order in which everything is listed."""

SOURCE_MODELS = ("User", "Trip", "ItinerarySlot", "ActivityNode", "BehavioralSignal")
"""The application's own: the naming is told by them."""

WRITTEN_MODELS = ("PersonaDimension", "RankingEvent", "ModelRegistry")
"""Those that bpr-etl inserts rows into."""

_MAX_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1. Prisma cuts there, too.


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
