"""`interactions`: one row per (event, selected item), what recommender libraries start from (docs/contract.md)."""

from __future__ import annotations

from etl.transform.arrays import I64
from etl.triples.generate import EventArrays, EventRows
from etl.triples.selections import Selections


def interactions(selections: Selections, rows: I64, events: EventArrays) -> EventRows:
    """The interactions of a partition. `rows` are the row numbers of `events` among the bucket's events."""
    elements = selections.lists.positions(rows)
    return EventRows(
        events,
        {
            "event": events.selected.long(0, len(events)).event,
            "item": selections.items[elements],
            "position": selections.positions[elements],
            "is_new": selections.new[elements],
        },
    )
