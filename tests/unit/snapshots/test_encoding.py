"""Row groups as Arrow tables: runs are written as their rows are, and only what may be unknown may be null."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.snapshots import encoding
from etl.snapshots.encoding import encoder_of, table_schemas
from etl.transform.arrays import to_arrow
from etl.triples.generate import NO_LISTS, SOURCES, EventArrays, EventRows
from etl.triples.vocabulary import Vocabulary

VOCABULARY = Vocabulary(*(pl.Series([f"{kind}{number}" for number in range(9)]) for kind in "uit"))


@st.composite
def row_groups(draw):
    """Slices of batches in runs, of two buckets' events."""
    slices = []
    for bucket in range(2):
        size = draw(st.integers(1, 6))
        numbers = [np.array(draw(st.lists(st.integers(0, 8), min_size=size, max_size=size))) for _ in range(4)]
        users, trips, timestamps, days = numbers
        events = EventArrays(
            ids=to_arrow(pl.Series([f"{bucket}e{number}" for number in range(size)])),
            users=users.astype(np.uint32),
            trips=trips.astype(np.uint32),
            timestamps=timestamps.astype(np.int64),
            days=days.astype(np.int32),
            candidates=NO_LISTS,
            selected=NO_LISTS,
            shown=NO_LISTS,
        )
        event = np.array(sorted(draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))), np.int32)
        lengths = np.array([draw(st.integers(1, 4)) for _ in event])
        rows = int(lengths.sum())

        def some(highest: int, count: int, draw=draw) -> np.ndarray:
            return np.array(draw(st.lists(st.integers(0, highest), min_size=count, max_size=count)))

        runs = {"event": event, "positive": some(8, len(event)).astype(np.uint32)}
        runs["in_candidates"] = some(1, len(event)).astype(bool)
        values = {"negative": some(8, rows).astype(np.uint32), "source": some(2, rows).astype(np.int8)}
        first = draw(st.integers(0, rows - 1))
        slices.append(EventRows(events, values, runs, lengths)[first : draw(st.integers(first + 1, rows))])
    return slices


def plainly(batches: list[EventRows]) -> list[dict]:
    """The triples of the batches, row by row."""
    return [
        {
            "user_id": f"u{batch.events.users[event]}",
            "pos_item": f"i{positive}",
            "neg_item": f"i{negative}",
            "timestamp": batch.events.timestamps[event],
            "event_id": batch.events.ids[int(event)].as_py(),
            "trip_id": f"t{batch.events.trips[event]}",
            "day_number": batch.events.days[event],
            "neg_source": SOURCES[source],
            "pos_in_candidates": known,
            "weight": 0.5,
        }
        for batch in batches
        for event, positive, known, negative, source in zip(
            *(batch.columns[name] for name in ("event", "positive", "in_candidates", "negative", "source")), strict=True
        )
    ]


@given(row_groups(), st.sampled_from((0, 16)))
def test_runs_are_encoded_as_their_rows_are(batches, sparse):
    """In runs, row by row, and shuffled; with tables of all ids, and by sorting."""
    schema = table_schemas("string", history=False)["triples"]
    encode = encoder_of("triples", VOCABULARY, schema, 0.5)
    flat = [EventRows(batch.events, batch.columns) for batch in batches]
    shuffled = [EventRows(each.events, each.values | {"order": np.zeros(len(each), np.uint64)}) for each in flat]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_SPARSE", sparse)
        tables = [encode(each) for each in (batches, flat, shuffled)]
    assert tables[0].to_pylist() == plainly(batches)
    assert all(table.equals(tables[0]) for table in tables)
    for name in ("user_id", "event_id", "trip_id", "pos_item", "neg_item", "neg_source"):
        held = tables[0][name].chunk(0)
        assert held.validate(full=True) is None
        assert sorted(held.dictionary.to_pylist()) == sorted(set(tables[0][name].to_pylist()))


@pytest.mark.parametrize(("ids", "previous"), [("string", "prev_item"), ("both", "prev_item"), ("index", "prev_idx")])
def test_descriptions_name_the_previous_item_s_column_as_it_is(ids, previous):
    schema = table_schemas(ids, history=False)["next"]
    assert previous in schema.names
    for name in ("same_day", "pos_km", "neg_km"):
        assert f"`{previous}`" in schema.field(name).metadata[b"description"].decode()


def test_columns_are_required_unless_they_may_be_unknown():
    schemas = table_schemas("both", history=True)
    history = {"pos_days_since", "neg_days_since"}
    assert {column.name for column in schemas["triples"] if column.nullable} == history
    assert not any(column.nullable for column in schemas["interactions"])
    assert {column.name for column in schemas["next"] if column.nullable} == history | {"pos_km", "neg_km"}
