"""Describe the published tables and columns: in the footers of Parquet files, in the card, in croissant.json."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

TABLES = {
    "triples": "One row per (event, positive, negative): the user preferred the positive.",
    "next": "One row per (choice of the next place, negative), with the place before and distances.",
    "interactions": "One row per selected item of an event, in visiting order.",
    "events": "One row per ranking event, with its lists of items.",
    "users": "One row per user, in the order of `user_idx`, with persona features and counts in train.",
    "items": "One row per item, in the order of `item_idx`, with counts in train.",
    "trips": "One row per trip that has a published event.",
}
"""The tables in the order of the card, and their rows."""

_HISTORY = {
    "n_before": "how often the user selected it before",
    "days_since": "days since the user last selected it; null if never",
}
COLUMNS = {
    **dict.fromkeys(("user_id", "item_id", "event_id", "trip_id"), "id in the source database"),
    **dict.fromkeys(("user_idx",), "row number in users.parquet"),
    **dict.fromkeys(("item_idx", "prev_idx", "pos_idx", "neg_idx"), "row number in items.parquet"),
    "pos_item": "item that was selected",
    "neg_item": "item that was not selected",
    "prev_item": "item selected before it in the trip",
    "timestamp": "time of the event, seconds since 1970, UTC",
    "day_number": "day of the trip",
    "neg_source": "where the negative comes from: ranking, shown or catalog",
    "pos_in_candidates": "whether the positive was one of the event's candidates",
    "weight": "weight of the row in the loss",
    "step": "number of the choice in its trip, from 1",
    "same_day": "whether `prev_item` is of the same day",
    "pos_km": "distance from `prev_item` to the positive in km; null if unknown",
    "neg_km": "distance from `prev_item` to the negative in km; null if unknown",
    "is_new": "whether the user selects the item for the first time",
    "position": "place among the day's selected items, from 1",
    **{f"pos_{name}": f"positive: {text}" for name, text in _HISTORY.items()},
    **{f"neg_{name}": f"negative: {text}" for name, text in _HISTORY.items()},
    "surface": "where in the application the ranking was made",
    "model_name": "model that made the ranking",
    "model_version": "version of that model",
    "candidate_ids": "items that could be ranked",
    "ranked_ids": "items in the order of the ranking",
    "selected_ids": "items that were selected, in visiting order",
    "shown_ids": "other items of the day, in visiting order",
    "city": "city",
    "category": "category",
    "name": "name",
    "latitude": "degrees north",
    "longitude": "degrees east",
    "status": "state of the row in the source database, or `gone`",
    "start_us": "start of the trip, microseconds since 1970; null if out of range",
    "n_trips": "trips in train",
    "n_events": "events in train",
    "n_selected": "selections in train",
    "n_triples": "triples in train",
    "n_candidate": "events in train that had it as a candidate",
    "n_positive": "triples in train that have it as the positive",
    "n_negative": "triples in train that have it as the negative",
    "n_users": "users who selected it in train",
}
"""The meaning of each column. Persona features are described by `describe_column`."""


def describe_column(column: str) -> str:
    """The meaning of a column; of one of the persona features if it is no other."""
    if column in COLUMNS:
        return COLUMNS[column]
    for end, text in (("_confidence", "confidence in the value, 0 to 1"), ("_source", "where the value comes from")):
        if column.endswith(end):
            return f"`{column.removesuffix(end)}`: {text}"
    return "affinity to the category" if column.startswith("affinity_") else "persona dimension"


def described_schema(table: str, columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the Arrow schema of a table whose metadata, and its fields', have their `description`."""
    previous = "prev_item" if "prev_item" in columns else "prev_idx"  # with `--ids index`
    texts = {name: describe_column(name).replace("prev_item", previous) for name in columns}
    fields = [pa.field(name, kind, metadata={"description": texts[name]}) for name, kind in columns.items()]
    return pa.schema(fields, metadata={"description": TABLES.get(table, "")})
