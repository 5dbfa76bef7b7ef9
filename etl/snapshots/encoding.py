"""Encode batches of rows as Arrow tables: indexes become ids, each row group with its own dictionaries.

A dictionary holds the values of its row group alone: users and items in the order of their indexes, events and trips in the
order of the events. Nothing outside the row group affects its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from etl.settings.model import Ids
from etl.snapshots.parquet import Encoder
from etl.transform.arrays import to_arrow
from etl.triples.dataset import LISTS
from etl.triples.generate import I32, SOURCES, EventRows, ListColumn
from etl.triples.partitions import Kind
from etl.triples.vocabulary import Vocabulary

Codes = npt.NDArray[Any]

INDEXES = {"user_id": "user_idx", "pos_item": "pos_idx", "neg_item": "neg_idx"}
"""The id columns of triples, and the names of their indexes (`--ids`; docs/contract.md, "What is published")."""

_ID = pa.dictionary(pa.int32(), pa.string())
_TRIPLES = {
    **dict.fromkeys(INDEXES, _ID),
    "timestamp": pa.int64(),
    "event_id": _ID,
    "trip_id": _ID,
    "day_number": pa.int32(),
    "neg_source": _ID,
    "pos_in_candidates": pa.bool_(),
    "weight": pa.float32(),
}
_NEXT_INDEXES = {"user_id": "user_idx", "prev_item": "prev_idx", "pos_item": "pos_idx", "neg_item": "neg_idx"}
_NEXT = {
    **dict.fromkeys(("user_id", "trip_id", "event_id"), _ID),
    "day_number": pa.int32(),
    "step": pa.int32(),
    "prev_item": _ID,
    "same_day": pa.bool_(),
    "pos_item": _ID,
    "neg_item": _ID,
    "pos_km": pa.float32(),
    "neg_km": pa.float32(),
    "is_new": pa.bool_(),
    "timestamp": pa.int64(),
    "weight": pa.float32(),
}
HISTORY = {
    "pos_n_before": pa.int32(),
    "neg_n_before": pa.int32(),
    "pos_days_since": pa.float32(),
    "neg_days_since": pa.float32(),
}
"""The columns that `--history` adds to triples and next."""

EVENT_SCHEMA = pa.schema(
    {
        "event_id": pa.string(),
        "user_id": _ID,
        "trip_id": pa.string(),
        "day_number": pa.int32(),
        "timestamp": pa.int64(),
        "surface": pa.string(),
        "model_name": pa.string(),
        "model_version": pa.string(),
        **dict.fromkeys(LISTS, pa.list_(_ID)),
    }
)
"""The columns of `events`."""

INTERACTION_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("user_id", "item_id"), _ID),
        "timestamp": pa.int64(),
        **dict.fromkeys(("event_id", "trip_id"), _ID),
        **dict.fromkeys(("day_number", "position"), pa.int32()),
        "is_new": pa.bool_(),
        "weight": pa.float32(),
        **dict.fromkeys(("user_idx", "item_idx"), pa.uint32()),
    }
)
"""The columns of `interactions`."""


def table_schemas(ids: Ids, *, history: bool) -> dict[Kind, pa.Schema]:
    """The columns of each table."""
    more = HISTORY if history else {}
    return {
        "events": EVENT_SCHEMA,
        "interactions": INTERACTION_SCHEMA,
        "triples": pa.schema(_with_ids(_TRIPLES, INDEXES, ids) | more),
        "next": pa.schema(_with_ids(_NEXT, _NEXT_INDEXES, ids) | more),
    }


def _with_ids(columns: Mapping[str, pa.DataType], indexes: Mapping[str, str], ids: Ids) -> dict[str, pa.DataType]:
    """Columns with ids as strings, with indexes instead of these, or with indexes after all columns."""
    if ids == "index":
        return {indexes.get(name, name): pa.uint32() if name in indexes else kind for name, kind in columns.items()}
    return dict(columns) | (dict.fromkeys(indexes.values(), pa.uint32()) if ids == "both" else {})


def encoder_of(kind: Kind, vocabulary: Vocabulary, schema: pa.Schema, weight: float) -> Encoder:
    """Return the encoder for a table's rows of one partition. All these rows have the same weight."""
    if kind == "events":
        return partial(_encode_events, vocabulary=vocabulary)
    return partial(_encode_rows, vocabulary=vocabulary, schema=schema, weight=weight)


def _encode_rows(batches: Sequence[EventRows], vocabulary: Vocabulary, schema: pa.Schema, weight: float) -> pa.Table:
    used, local = zip(*map(_events_of, batches), strict=True)
    starts = np.cumsum([0, *(len(each) for each in used)])
    row = np.concatenate([each + start for each, start in zip(local, starts[:-1], strict=True)])

    def of_events(name: str) -> Codes:
        return np.concatenate([getattr(batch.events, name)[own] for batch, own in zip(batches, used, strict=True)])

    def of_rows(name: str) -> Codes:
        return np.concatenate([batch.values[name] for batch in batches])

    def item(name: str) -> pa.DictionaryArray:
        return _dictionary_by_code(of_rows(name), ids_of["items"])

    def event_ids() -> pa.DictionaryArray:
        ids = pa.concat_arrays(batch.events.ids.take(pa.array(own)) for batch, own in zip(batches, used, strict=True))
        return pa.DictionaryArray.from_arrays(pa.array(row.astype(np.int32)), ids)

    ids_of, users = vocabulary.arrow, of_events("users")
    made: dict[str, Callable[[], pa.Array]] = {
        "user_id": lambda: _dictionary_by_code(users, ids_of["users"], row),
        "timestamp": lambda: pa.array(of_events("timestamps")[row]),
        "event_id": event_ids,
        "trip_id": lambda: _dictionary_by_first_use(of_events("trips"), ids_of["trips"], row),
        "day_number": lambda: pa.array(of_events("days")[row]),
        "neg_source": lambda: _dictionary_by_code(of_rows("source"), pa.array(SOURCES)),
        "pos_in_candidates": lambda: pa.array(of_rows("in_candidates")),
        "weight": lambda: pa.array(np.full(len(row), weight, np.float32)),
        "user_idx": lambda: pa.array(users[row]),
    }
    for name, values in _ITEMS.items():
        made[f"{name}_item"] = made[f"{name}_id"] = partial(item, values)
        made[f"{name}_idx"] = lambda values=values: pa.array(of_rows(values))  # type: ignore[misc]

    def column(name: str) -> pa.Array:
        return made[name]() if name in made else pa.array(of_rows(name), from_pandas=True)  # NaN is null

    return pa.Table.from_arrays([column(name) for name in schema.names], schema=schema)


_ITEMS = {"item": "item", "prev": "previous", "pos": "positive", "neg": "negative"}
"""Prefix of an item's columns: its name in `EventRows`."""


def _encode_events(batches: Sequence[pl.DataFrame], vocabulary: Vocabulary) -> pa.Table:
    events, ids_of = pl.concat(batches), vocabulary.arrow
    columns = [
        to_arrow(events["event_id"]),
        _dictionary_by_code(events["user_idx"].to_numpy(), ids_of["users"]),
        ids_of["trips"].take(pa.array(events["trip_idx"].to_numpy())),
        *(to_arrow(events[name]) for name in ("day_number", "timestamp", "surface", "model_name", "model_version")),
        *(_lists(events[index], ids_of["items"]) for index in LISTS.values()),
    ]
    return pa.Table.from_arrays(columns, schema=EVENT_SCHEMA)


def _events_of(batch: EventRows) -> tuple[Codes, Codes]:
    """The rows of the events that a batch names, ascending, and for each of its rows the position among them."""
    event = batch.values["event"]
    if "order" in batch.values:
        return np.unique(event, return_inverse=True)
    starts = np.flatnonzero(np.diff(event, prepend=-1))  # unless shuffled, the rows of an event are adjacent
    return event[starts], np.repeat(np.arange(len(starts)), np.diff(starts, append=len(event)))


def _dictionary_by_code(codes: Codes, vocabulary: pa.StringArray, row: Codes | None = None) -> pa.DictionaryArray:
    """Decode indexes, with a dictionary in index order. `row` has the position in `codes` of each row, by default its own."""
    used = np.zeros(len(vocabulary), np.bool_)
    used[codes] = True
    positions = (np.cumsum(used, dtype=np.int32) - 1)[codes]
    return _dictionary(positions if row is None else positions[row], np.flatnonzero(used), vocabulary)


def _dictionary_by_first_use(codes: Codes, vocabulary: pa.StringArray, row: Codes | None = None) -> pa.DictionaryArray:
    """Decode indexes as `_dictionary_by_code`, with a dictionary in the order of first occurrence."""
    if len(vocabulary) > len(codes):  # a table of all indexes would be larger than what is sorted
        distinct, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    else:
        every = np.full(len(vocabulary), -1, np.int64)
        # Written backwards, so the first occurrence of each stays.
        every[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
        distinct = np.flatnonzero(every >= 0)
        first, inverse = every[distinct], (np.cumsum(every >= 0) - 1)[codes]
    order = np.argsort(first)
    position = np.empty(len(order), np.int32)
    position[order] = np.arange(len(order), dtype=np.int32)
    positions = position[inverse]
    return _dictionary(positions if row is None else positions[row], distinct[order], vocabulary)


def _dictionary(positions: I32, codes: Codes, vocabulary: pa.StringArray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(positions, pa.int32()), vocabulary.take(pa.array(codes)))


def _lists(lists: pl.Series, vocabulary: pa.StringArray) -> pa.ListArray:
    """Decode a column of lists of indexes."""
    held = ListColumn.of(lists)
    return pa.ListArray.from_arrays(
        pa.array(held.ends.astype(np.int32)), _dictionary_by_first_use(held.codes, vocabulary)
    )
