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
"""Each model and its table with `@@map`, in the order of all listings."""

SOURCE_MODELS = ("User", "Trip", "ItinerarySlot", "ActivityNode", "BehavioralSignal")
"""The application's own models. The naming is detected by their tables."""

WRITTEN_MODELS = ("PersonaDimension", "RankingEvent", "ModelRegistry")
"""The models that bpr-etl inserts rows into."""

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
class Naming:
    """How the tables of a PostgreSQL schema are named: by model, or by `@@map` in snake case."""

    kind: Literal["model", "mapped"]
    schema: str = "public"

    def table_name(self, model: str) -> str:
        """Return the table's name, unquoted and without its schema."""
        return model if self.kind == "model" else MODELS[model]

    def qualified(self, name: str) -> str:
        """Return the name of a table or type, quoted and with its schema."""
        return f"{quote_identifier(self.schema)}.{quote_identifier(name)}"

    def table(self, model: str) -> str:
        """Return the model's table, quoted and with its schema."""
        return self.qualified(self.table_name(model))

    def constraint(self, model: str, columns: str, suffix: str) -> str:
        """Return the name that Prisma gives to a constraint or an index, unquoted.

        Table and columns are cut between characters so that the name with its suffix has at most 63 bytes.
        """
        stem = "_".join(part for part in (self.table_name(model), columns) if part)
        kept = stem.encode()[: _MAX_BYTES - len(suffix) - 1].decode(errors="ignore")
        return f"{kept}_{suffix}"
