"""An oracle's world in a real database, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from etl.pipeline import database
from etl.settings.sources import load_settings
from tests.property.oracle import NO_SEED, EventRow, Moment, PersonaRow, RegistryRow, Signal, World

TABLES = (
    *("RankingEvent", "PersonaDimension", "ModelRegistry", "BehavioralSignal", "ItinerarySlot", "Trip"),
    *("ActivityNode", "User"),
)


@dataclass(frozen=True)
class Raw:
    """A persona seed as the JSON text that it is sent as: what no Python value says (a key twice, 1e999, escapes)."""

    text: str


class Databases:
    """One database per set of category labels, with legs and without, emptied between worlds.

    An enum's values can't be taken away.
    """

    def __init__(self, make: Callable[..., str]) -> None:
        self._make = make
        self._urls: dict[tuple[tuple[str, ...], bool], str] = {}

    def holding(self, world: World) -> str:
        """The URL of a database that holds this world and nothing else."""
        legs = world.legs is not None
        if (world.categories, legs) not in self._urls:
            self._urls[world.categories, legs] = self._fresh(world.categories)
            if legs:
                _add_legs(self._urls[world.categories, legs])
        url = self._urls[world.categories, legs]
        tables = (*TABLES, "TripLeg") if legs else TABLES
        with psycopg.connect(url) as connection:
            connection.execute(f"TRUNCATE {', '.join(_quoted(table) for table in tables)}")
            store(connection, world)
        return url

    def _fresh(self, categories: tuple[str, ...]) -> str:
        url = self._make()
        database.apply_schema(load_settings({"database_url": url}, {}))
        labels = ", ".join("'" + label.replace("'", "''") + "'" for label in categories)
        with psycopg.connect(url) as connection:
            connection.execute('ALTER TABLE "ActivityNode" ALTER COLUMN "category" TYPE text')
            connection.execute('DROP TYPE "ActivityCategory"')
            connection.execute(f'CREATE TYPE "ActivityCategory" AS ENUM ({labels})')
            connection.execute(
                'ALTER TABLE "ActivityNode" ALTER COLUMN "category" TYPE "ActivityCategory" USING "category"::"ActivityCategory"'
            )
        return url


def _add_legs(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute('CREATE TABLE "TripLeg" ("id" text PRIMARY KEY, "tripId" text NOT NULL, "city" text)')
        connection.execute('ALTER TABLE "ItinerarySlot" ADD COLUMN "tripLegId" text')
        connection.execute('ALTER TABLE "Trip" ALTER COLUMN "city" DROP NOT NULL')


def _quoted(name: str) -> str:
    return f'"{name}"'


def store(connection: psycopg.Connection, world: World) -> None:
    """Put a world's rows beside those that are there."""
    _copy(connection, "User", "id email", ((u.id, u.email) for u in world.users))
    _copy(
        connection,
        "Trip",
        "id userId city startDate createdAt personaSeed",
        ((t.id, t.user_id, t.city, t.start_date, t.created_at, _seed(t.persona_seed)) for t in world.trips),
    )
    _copy(
        connection,
        "ActivityNode",
        "id city category status name latitude longitude",
        ((n.id, n.city, n.category, n.status, n.name, n.latitude, n.longitude) for n in world.nodes),
    )
    _copy(
        connection,
        "ItinerarySlot",
        "id tripId activityNodeId dayNumber sortOrder status",
        ((s.id, s.trip_id, s.node_id, s.day_number, s.sort_order, s.status) for s in world.slots),
    )
    if world.legs is not None:
        _copy(connection, "TripLeg", "id tripId city", ((leg.id, leg.trip_id, leg.city) for leg in world.legs))
        for slot in world.slots:
            connection.execute('UPDATE "ItinerarySlot" SET "tripLegId" = %s WHERE "id" = %s', (slot.leg_id, slot.id))
    _copy(
        connection,
        "BehavioralSignal",
        "id userId tripId slotId activityNodeId signalType modelVersion",
        ((s.id, s.user_id, s.trip_id, s.slot_id, s.node_id, s.signal_type, s.model_version) for s in world.signals),
    )
    _copy(
        connection,
        "PersonaDimension",
        "id userId dimension value confidence source createdAt updatedAt",
        (
            (p.id, p.user_id, p.dimension, p.value, p.confidence, p.source, p.created_at, p.updated_at)
            for p in world.personas
        ),
    )
    _copy(connection, "RankingEvent", EVENT_COLUMNS, map(_event_cells, world.events))


EVENT_COLUMNS = (
    "id userId tripId dayNumber modelName modelVersion candidateIds rankedIds selectedIds surface latencyMs createdAt "
    "sessionId shadowModelName shadowModelVersion shadowRankedIds"
)


def _event_cells(e: EventRow) -> tuple[Any, ...]:
    lists = [None if ids is None else list(ids) for ids in (e.candidate_ids, e.ranked_ids, e.selected_ids)]
    shadow = None if e.shadow_ranked_ids is None else list(e.shadow_ranked_ids)
    return (
        *(e.id, e.user_id, e.trip_id, e.day_number, e.model_name, e.model_version, *lists, e.surface, e.latency_ms),
        *(e.created_at, e.session_id, e.shadow_model_name, e.shadow_model_version, shadow),
    )


def _copy(connection: psycopg.Connection, table: str, columns: str, rows: Iterable[tuple[Any, ...]]) -> None:
    names = ", ".join(_quoted(name) for name in columns.split())
    with connection.cursor().copy(f"COPY {_quoted(table)} ({names}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _seed(value: Any) -> str | None:
    if isinstance(value, Raw):
        return value.text
    return None if value is NO_SEED else json.dumps(value)


def written(url: str) -> tuple[list[PersonaRow], list[EventRow], list[RegistryRow], list[Signal]]:
    """What a run may write: the rows of the four tables, ordered by id."""
    with psycopg.connect(url) as connection:
        personas = [
            PersonaRow(*cells)
            for cells in _rows(
                connection, "PersonaDimension", "id userId dimension value confidence source createdAt updatedAt"
            )
        ]
        events = [_event(cells) for cells in _rows(connection, "RankingEvent", EVENT_COLUMNS)]
        registry = [
            RegistryRow(*cells)
            for cells in _rows(connection, "ModelRegistry", "id modelName modelVersion stage modelType description")
        ]
        signals = [
            Signal(*cells)
            for cells in _rows(
                connection, "BehavioralSignal", "id userId tripId slotId activityNodeId signalType modelVersion"
            )
        ]
    return personas, events, registry, signals


def _rows(connection: psycopg.Connection, table: str, columns: str) -> list[tuple[Any, ...]]:
    # Dates as text: Python has none for infinity or for the year 10000.
    names = ", ".join(f'"{name}"::text' if name.endswith("At") else f'"{name}"' for name in columns.split())
    rows = connection.execute(f'SELECT {names} FROM "{table}" ORDER BY "id" COLLATE "C"').fetchall()
    dates = [place for place, name in enumerate(columns.split()) if name.endswith("At")]
    return [tuple(moment(cell) if place in dates else cell for place, cell in enumerate(row)) for row in rows]


def moment(text: str) -> Moment:
    """A date that Python has; else the text as it is."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


def _event(cells: tuple[Any, ...]) -> EventRow:
    return EventRow(*(tuple(cell) if isinstance(cell, list) else cell for cell in cells))
