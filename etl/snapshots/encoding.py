"""From codes to the columns that are written: here ids become texts again, each row group with a dictionary of its own.

A dictionary holds the values that occur in its row group alone: users and items in the order of their codes, events and
trips in the order of the events. Nothing outside the row group decides its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from etl.transform.arrays import to_arrow
from etl.triples.dataset import LISTS, Dataset
from etl.triples.generate import I32, SOURCES, EventBatch, ListColumn, TripleBatch, TripleBlock

Ids = Literal["string", "index", "both"]
Codes = npt.NDArray[Any]

INDEXES = {"user_id": "user_idx", "pos_item": "pos_idx", "neg_item": "neg_idx"}
"""The columns of ids in triples, and what their indexes are called (CONTRACT, section 3, `--ids`)."""

_TEXT = pa.dictionary(pa.int32(), pa.string())
_REST = {
    "timestamp": pa.int64(),
    "event_id": _TEXT,
    "trip_id": _TEXT,
    "day_number": pa.int32(),
    "neg_source": _TEXT,
    "pos_in_candidates": pa.bool_(),
    "weight": pa.float32(),
}


@dataclass(frozen=True)
class IdTables:
    """The ids of the vocabularies, in the order of their codes."""

    users: pa.StringArray
    items: pa.StringArray
    trips: pa.StringArray

    @classmethod
    def of(cls, dataset: Dataset) -> IdTables:
        """A dataset's."""
        return cls(
            to_arrow(dataset.users["user_id"]), to_arrow(dataset.items["item_id"]), to_arrow(dataset.trips["trip_id"])
        )


def triple_schema(ids: Ids) -> pa.Schema:
    """The columns of `triples`: ids as they are asked for: texts, indexes or both."""
    texts = dict.fromkeys(INDEXES, _TEXT) if ids != "index" else {}
    indexes = dict.fromkeys(INDEXES.values(), pa.uint32()) if ids != "string" else {}
    return pa.schema(texts | _REST | indexes) if ids == "both" else pa.schema(texts | indexes | _REST)


def triple_columns(pieces: Sequence[TripleBatch], texts: IdTables, schema: pa.Schema, weight: float) -> list[pa.Array]:
    """A row group of triples."""
    used, local = zip(*(_events_of(piece.block) for piece in pieces), strict=True)
    starts = np.cumsum([0, *(len(each) for each in used)])
    row = np.concatenate([each + start for each, start in zip(local, starts[:-1], strict=True)])

    def of_events(name: str) -> Codes:
        return np.concatenate([getattr(piece.events, name)[own] for piece, own in zip(pieces, used, strict=True)])

    def of_rows(name: str) -> Codes:
        return np.concatenate([getattr(piece.block, name) for piece in pieces])

    users, positive, negative = of_events("users"), of_rows("positive"), of_rows("negative")
    event_ids = pa.concat_arrays(piece.events.ids.take(pa.array(own)) for piece, own in zip(pieces, used, strict=True))
    made = {
        "user_id": lambda: _dictionary_by_code(users, texts.users, row),
        "pos_item": lambda: _dictionary_by_code(positive, texts.items),
        "neg_item": lambda: _dictionary_by_code(negative, texts.items),
        "timestamp": lambda: pa.array(of_events("timestamps")[row]),
        "event_id": lambda: pa.DictionaryArray.from_arrays(pa.array(row.astype(np.int32)), event_ids),
        "trip_id": lambda: _dictionary_by_first_use(of_events("trips"), texts.trips, row),
        "day_number": lambda: pa.array(of_events("days")[row]),
        "neg_source": lambda: _dictionary_by_code(of_rows("source"), pa.array(SOURCES)),
        "pos_in_candidates": lambda: pa.array(of_rows("in_candidates")),
        "weight": lambda: pa.array(np.full(len(row), weight, np.float32)),
        "user_idx": lambda: pa.array(users[row]),
        "pos_idx": lambda: pa.array(positive),
        "neg_idx": lambda: pa.array(negative),
    }
    return [made[name]() for name in schema.names]


EVENT_SCHEMA = pa.schema(
    {
        "event_id": pa.string(),
        "user_id": _TEXT,
        "trip_id": pa.string(),
        "day_number": pa.int32(),
        "timestamp": pa.int64(),
        "surface": pa.string(),
        "model_name": pa.string(),
        "model_version": pa.string(),
        **dict.fromkeys(LISTS, pa.list_(_TEXT)),
    }
)
"""The columns of `events`."""


def event_columns(pieces: Sequence[EventBatch], texts: IdTables) -> list[pa.Array]:
    """A row group of events."""
    events = pl.concat([piece.events for piece in pieces])
    return [
        to_arrow(events["event_id"]),
        _dictionary_by_code(events["user_idx"].to_numpy(), texts.users),
        texts.trips.take(pa.array(events["trip_idx"].to_numpy())),
        *(to_arrow(events[name]) for name in ("day_number", "timestamp", "surface", "model_name", "model_version")),
        *(_lists(events[index], texts.items) for index in LISTS.values()),
    ]


def _events_of(block: TripleBlock) -> tuple[Codes, Codes]:
    """The rows of the events that a block names, ascending, and for each triple its place among them."""
    if block.order is not None:
        return np.unique(block.event, return_inverse=True)
    starts = np.flatnonzero(np.diff(block.event, prepend=-1))  # a block's events stand one after the other
    return block.event[starts], np.repeat(np.arange(len(starts)), np.diff(starts, append=len(block.event)))


def _dictionary_by_code(codes: Codes, texts: pa.StringArray, row: Codes | None = None) -> pa.DictionaryArray:
    """The texts of codes, dictionary in the order of the codes; `row` says which code each row has, if not its own."""
    used = np.zeros(len(texts), np.bool_)
    used[codes] = True
    places = (np.cumsum(used, dtype=np.int32) - 1)[codes]
    return _dictionary(places if row is None else places[row], np.flatnonzero(used), texts)


def _dictionary_by_first_use(codes: Codes, texts: pa.StringArray, row: Codes | None = None) -> pa.DictionaryArray:
    """The same, dictionary in the order of first occurrence."""
    if len(texts) > len(codes):  # a table of all codes would be larger than what is sorted
        distinct, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    else:
        every = np.full(len(texts), -1, np.int64)
        every[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # the last to write is the first of each
        distinct = np.flatnonzero(every >= 0)
        first, inverse = every[distinct], (np.cumsum(every >= 0) - 1)[codes]
    order = np.argsort(first)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    places = place[inverse]
    return _dictionary(places if row is None else places[row], distinct[order], texts)


def _dictionary(places: I32, codes: Codes, texts: pa.StringArray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), texts.take(pa.array(codes)))


def _lists(lists: pl.Series, texts: pa.StringArray) -> pa.ListArray:
    """A column of lists of codes as lists of texts."""
    held = ListColumn.of(lists)
    return pa.ListArray.from_arrays(pa.array(held.ends.astype(np.int32)), _dictionary_by_first_use(held.codes, texts))
