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
from etl.snapshots.descriptions import described_schema
from etl.snapshots.parquet import Encoder
from etl.transform.arrays import to_arrow
from etl.triples.dataset import LISTS
from etl.triples.generate import I32, SOURCES, EventRows, ListColumn
from etl.triples.partitions import Kind
from etl.triples.vocabulary import Vocabulary

Codes = npt.NDArray[Any]
Spread = Callable[[Codes], Codes]
"""Makes an array with one value per row of one with a value per event or per run of rows."""

_NULLABLE = frozenset({"pos_km", "neg_km", "pos_days_since", "neg_days_since"})
"""The columns of generated rows that may be null. All others are required."""


def _required_schema(table: str, columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return a schema whose columns have no nulls, unless they may be unknown: these are written faster."""
    schema = described_schema(table, columns)
    return pa.schema([each.with_nullable(each.name in _NULLABLE) for each in schema], metadata=schema.metadata)


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

EVENT_SCHEMA = described_schema(
    "events",
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
    },
)
"""The columns of `events`."""

INTERACTION_SCHEMA = _required_schema(
    "interactions",
    {
        **dict.fromkeys(("user_id", "item_id"), _ID),
        "timestamp": pa.int64(),
        **dict.fromkeys(("event_id", "trip_id"), _ID),
        **dict.fromkeys(("day_number", "position"), pa.int32()),
        "is_new": pa.bool_(),
        "weight": pa.float32(),
        **dict.fromkeys(("user_idx", "item_idx"), pa.uint32()),
    },
)
"""The columns of `interactions`."""


def table_schemas(ids: Ids, *, history: bool) -> dict[Kind, pa.Schema]:
    """The columns of each table."""
    more = HISTORY if history else {}
    return {
        "events": EVENT_SCHEMA,
        "interactions": INTERACTION_SCHEMA,
        "triples": _required_schema("triples", _with_ids(_TRIPLES, INDEXES, ids) | more),
        "next": _required_schema("next", _with_ids(_NEXT, _NEXT_INDEXES, ids) | more),
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
    used, per_event = _events_of(batches)
    has_runs, lengths = bool(batches[0].runs), np.concatenate([batch.lengths for batch in batches])

    def per_run(values: Codes) -> Codes:
        return np.repeat(values, lengths)

    def of_events(name: str) -> Codes:
        return np.concatenate([getattr(batch.events, name)[own] for batch, own in zip(batches, used, strict=True)])

    def of_rows(name: str) -> tuple[Codes, Spread]:
        if has_runs and name in batches[0].runs:
            return np.concatenate([batch.runs[name] for batch in batches]), per_run
        return np.concatenate([batch.values[name] for batch in batches]), _as_it_is

    def plain(name: str) -> pa.Array:
        values, spread = of_rows(name)
        # NaN is null. Looking for it is cheaper than what Arrow does for columns that might have some.
        return pa.array(spread(values), from_pandas=bool(np.isnan(values).any()))

    def item(name: str) -> pa.DictionaryArray:
        codes, spread = of_rows(name)
        return _dictionary_by_code(codes, ids_of["items"], spread)

    def event_ids() -> pa.DictionaryArray:
        ids = pa.concat_arrays(batch.events.ids.take(pa.array(own)) for batch, own in zip(batches, used, strict=True))
        return _indexed(per_event(np.arange(len(ids), dtype=np.int32)), ids)

    ids_of = vocabulary.arrow
    made: dict[str, Callable[[], pa.Array]] = {
        "user_id": lambda: _dictionary_by_code(of_events("users"), ids_of["users"], per_event),
        "timestamp": lambda: pa.array(per_event(of_events("timestamps"))),
        "event_id": event_ids,
        "trip_id": lambda: _dictionary_by_first_use(of_events("trips"), ids_of["trips"], per_event),
        "day_number": lambda: pa.array(per_event(of_events("days"))),
        "neg_source": lambda: _dictionary_by_code(of_rows("source")[0], pa.array(SOURCES)),
        "pos_in_candidates": lambda: plain("in_candidates"),
        "weight": lambda: pa.array(np.full(sum(map(len, batches)), weight, np.float32)),
        "user_idx": lambda: pa.array(per_event(of_events("users"))),
    }
    for name, values in _ITEMS.items():
        made[f"{name}_item"] = made[f"{name}_id"] = partial(item, values)
        made[f"{name}_idx"] = partial(plain, values)
    return pa.Table.from_arrays([made.get(name, partial(plain, name))() for name in schema.names], schema=schema)


_SPARSE = 16
"""How many ids there are for each that is looked up, beyond which sorting is faster than a table of all."""

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


def _events_of(batches: Sequence[EventRows]) -> tuple[list[Codes], Spread]:
    """The rows of the events that each batch names, and what gives each row of the batches the value of its event."""
    events = [batch.runs["event"] if batch.runs else batch.values["event"] for batch in batches]
    if "order" in batches[0].values:
        used, inverse = zip(*(np.unique(event, return_inverse=True) for event in events), strict=True)
        starts = np.cumsum([0, *map(len, used)])
        row = np.concatenate([each + start for each, start in zip(inverse, starts[:-1], strict=True)])
        return list(used), lambda values: values[row]
    # Unless shuffled, the rows of an event are adjacent.
    starts_ = [np.flatnonzero(np.diff(event, prepend=-1)) for event in events]
    counts = [
        np.add.reduceat(batch.lengths, start) if batch.runs else np.diff(start, append=len(batch))
        for batch, start in zip(batches, starts_, strict=True)
    ]
    per_event = np.concatenate(counts)
    used_ = [event[start] for event, start in zip(events, starts_, strict=True)]
    return used_, lambda values: np.repeat(values, per_event)


def _as_it_is(values: Codes) -> Codes:
    return values


def _dictionary_by_code(codes: Codes, vocabulary: pa.StringArray, spread: Spread = _as_it_is) -> pa.DictionaryArray:
    """Decode indexes, with a dictionary in index order. `spread` makes the rows of them."""
    positions: Codes
    if codes.min() == codes.max():
        used, positions = codes[:1], np.zeros(len(codes), np.int32)
    elif len(vocabulary) > _SPARSE * len(codes):
        used, positions = np.unique(codes, return_inverse=True)
    else:
        table, index = np.zeros(len(vocabulary), np.bool_), codes.astype(np.int64)
        table[index] = True
        used, positions = np.flatnonzero(table), (np.cumsum(table, dtype=np.int32) - 1).take(index)
    return _dictionary(spread(positions.astype(np.int32, copy=False)), used, vocabulary)


def _dictionary_by_first_use(
    codes: Codes, vocabulary: pa.StringArray, spread: Spread = _as_it_is
) -> pa.DictionaryArray:
    """Decode indexes as `_dictionary_by_code`, with a dictionary in the order of first occurrence."""
    if len(vocabulary) > len(codes):
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
    return _dictionary(spread(position[inverse]), distinct[order], vocabulary)


def _dictionary(positions: I32, codes: Codes, vocabulary: pa.StringArray) -> pa.DictionaryArray:
    return _indexed(positions, vocabulary.take(pa.array(codes)))


def _indexed(positions: I32, ids: pa.StringArray) -> pa.DictionaryArray:
    # Unless `safe`, the positions are not compared with the length, which would read them once more.
    return pa.DictionaryArray.from_arrays(pa.array(positions), ids, safe=False)


def _lists(lists: pl.Series, vocabulary: pa.StringArray) -> pa.ListArray:
    """Decode a column of lists of indexes."""
    held = ListColumn.of(lists)
    return pa.ListArray.from_arrays(
        pa.array(held.ends.astype(np.int32)), _dictionary_by_first_use(held.codes, vocabulary)
    )
