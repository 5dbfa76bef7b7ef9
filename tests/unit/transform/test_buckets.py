"""User buckets, shelves, parts: how work is cut, which decides nothing of what comes out."""

from __future__ import annotations

import hashlib
import threading
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.settings.values import NegativeStrategies
from etl.snapshots import parquet
from etl.snapshots.parquet import PartWriter, ThreadPart, writer_pool
from etl.transform.buckets import bucket_count, bucket_expr, open_spill, partition_by_bucket
from etl.triples import generate as triples
from etl.triples import shuffle
from etl.triples.generate import Catalogue, EventArrays, EventRows, HashKeys, generate_triples
from etl.triples.sampling import build_pools
from etl.triples.shuffle import ExternalShuffle

EMPTY = pl.DataFrame(schema={"user_id": pl.String, "n": pl.Int64})


@given(st.lists(st.text(max_size=5)), st.integers(1, 4096))
def test_buckets_are_ranges_of_the_hash(users, buckets):
    found = pl.DataFrame({"user_id": users}, schema={"user_id": pl.String}).select(
        bucket_expr(pl.col("user_id"), buckets)
    )
    hashes = [hashlib.sha256(user.encode()).hexdigest() for user in users]
    assert found.to_series().to_list() == [int(each[:8], 16) * buckets >> 32 for each in hashes]
    assert all(0 <= bucket < buckets for bucket in found.to_series())


def test_how_many():
    assert [bucket_count(n) for n in (0, 1, 50_000, 50_001, 5_000_000)] == [1, 1, 1, 2, 100]


@given(st.lists(st.lists(st.text(max_size=3), max_size=5), max_size=4), st.sampled_from((1, 2, 64)))
def test_a_shelf_gives_back_what_was_put_down(tmp_path_factory, batches, buckets):
    frames = [pl.DataFrame({"user_id": users, "n": range(len(users))}, schema=EMPTY.schema) for users in batches]
    with open_spill(tmp_path_factory.mktemp("shelf"), buckets, EMPTY) as held:
        for frame in frames:
            held.append(frame, frame.select(bucket_expr(pl.col("user_id"), buckets)).to_series())
        parts = partition_by_bucket(pl.concat([EMPTY, *frames]), buckets)
        for bucket in range(buckets):
            for _ in range(2):  # more than once
                assert held.read_bucket(bucket).equals(parts.get(bucket, EMPTY))


def test_a_shelf_leaves_nothing_behind(tmp_path):
    with open_spill(tmp_path, 4, EMPTY) as held:
        held.append_bucket(EMPTY.vstack(pl.DataFrame({"user_id": ["u"], "n": [1]})), 3)
        assert held.read_bucket(3).height == 1
        assert list(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


SCHEMA = pa.schema({"n": pa.int64()})


def encode(batches):
    return pa.table([pa.array([n for batch in batches for n in batch], pa.int64())], SCHEMA)


@given(st.lists(st.integers(0, 60), max_size=12), st.sampled_from((1, 7, 50, 1000)), st.integers(1, 3))
def test_pieces_and_threads_do_not_show_in_the_files(tmp_path_factory, sizes, rows_per_file, threads):
    """Row groups of 16 here: pieces that end within them, on their ends and behind them."""
    numbers = list(range(sum(sizes)))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP", 16)
        for pieces in (sizes, [len(numbers)]):
            folder = tmp_path_factory.mktemp("parts")
            with writer_pool(threads) as writers:
                parts = PartWriter(folder / "p", rows_per_file, partial(ThreadPart, encode=encode, pool=writers))
                start = 0
                for size in pieces:
                    parts.add(numbers[start : start + size], size)
                    start += size
                parts.end()
                found.append([(file.path.name, file.rows, file.sha256) for file in parts.written()])
            files = sorted((folder / "p").glob("*")) if numbers else []
            assert [n for file in files for n in pl.read_parquet(file)["n"]] == numbers
    assert found[0] == found[1]
    assert [rows for _, rows, _ in found[0]] == [
        min(rows_per_file, len(numbers) - start) for start in range(0, len(numbers), rows_per_file)
    ]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("which", [0, 7, 19])
def test_what_goes_wrong_in_a_writing_thread_is_raised(tmp_path, monkeypatch, threads, which):
    """Also with more row groups to come than may wait."""
    monkeypatch.setattr(parquet, "ROW_GROUP", 1)

    def broken(batches):
        if batches[0][0] == which:
            raise RuntimeError("no")
        return encode(batches)

    with writer_pool(threads) as writers:
        for name in ("p", "q"):  # the pool is as good as new for the next one
            parts = PartWriter(tmp_path / name, 100, partial(ThreadPart, encode=broken, pool=writers))
            parts.add(list(range(20)), 20)
            parts.end()
            with pytest.raises(RuntimeError, match="no"):
                parts.written()


def test_a_row_group_that_is_encoded_before_its_turn_is_written_in_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP", 1)
    encoded = {n: threading.Event() for n in range(4)}

    def in_pairs(batches):
        first = batches[0][0]
        if first % 2 == 0:
            assert encoded[first + 1].wait(10)
        encoded[first].set()
        return encode(batches)

    with writer_pool(2) as writers:
        parts = PartWriter(tmp_path / "p", 100, partial(ThreadPart, encode=in_pairs, pool=writers))
        parts.add(list(range(4)), 4)
        parts.end()
        (file,) = parts.written()
    assert pl.read_parquet(file.path)["n"].to_list() == [0, 1, 2, 3]


@st.composite
def coded(draw):
    """Events of five users over eight nodes, of which six can be offered."""
    lists = st.lists(st.integers(0, 7), unique=True, max_size=6)
    rows = draw(st.lists(st.tuples(lists, lists, lists), max_size=8))
    frame = pl.DataFrame(
        {
            "event_id": [f"e{n}" for n in range(len(rows))],
            "user_idx": sorted(draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))),
            "trip_idx": range(len(rows)),
            "timestamp": range(len(rows)),
            "day_number": [1] * len(rows),
            **{
                name: [row[place] for row in rows]
                for place, name in enumerate(("candidate_idx", "selected_idx", "shown_idx"))
            },
        },
        schema={
            "event_id": pl.String,
            "user_idx": pl.UInt32,
            "trip_idx": pl.UInt32,
            "timestamp": pl.Int64,
            "day_number": pl.Int32,
            **dict.fromkeys(("candidate_idx", "selected_idx", "shown_idx"), pl.List(pl.UInt32)),
        },
    )
    return EventArrays.of(frame), rows


KEYS = HashKeys.of(pl.Series([f"u{n}" for n in range(5)]), pl.Series([f"n{n}" for n in range(8)]), 0)
EMPTY_POOL = (np.zeros(0, np.int64), np.zeros(0, np.int32), 1)


def rows_of(blocks):
    blocks = list(blocks)
    return [
        row
        for block in blocks
        for row in zip(
            *(getattr(block, name).tolist() for name in ("event", "positive", "negative", "source", "in_candidates")),
            strict=True,
        )
    ]


@given(coded(), st.sampled_from((("ranking",), ("shown",), ("ranking", "shown"), ("shown", "catalog:2"))))
def test_blocks_do_not_show_in_the_triples(events, words):
    coded_, rows = events
    negatives = NegativeStrategies(words).for_city(6, None)
    catalogue = Catalogue(np.arange(6), np.zeros(len(coded_), np.int64), build_pools(6, *EMPTY_POOL))
    whole = rows_of(generate_triples(coded_, negatives, catalogue, KEYS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triples, "BATCH", 1)
        patch.setattr(triples, "MARKS", 1)
        blocks = list(generate_triples(coded_, negatives, catalogue, KEYS))
    assert rows_of(blocks) == whole
    assert len(blocks) == len(rows)
    assert sum(block.positives + sum(block.left_out.values()) for block in blocks) == sum(len(row[1]) for row in rows)
    if not negatives.catalog:
        assert whole == plainly(rows, words)


def plainly(rows, words):
    """Candidates, then shown ones that are no candidates, where these are asked for; never a positive."""
    found = []
    for event, (candidates, selected, shown) in enumerate(rows):
        named = [(n, 0) for n in candidates if "ranking" in words]
        named += [(n, 1) for n in shown if "shown" in words and not ("ranking" in words and n in candidates)]
        for positive in selected:
            found += [(event, positive, n, s, positive in candidates) for n, s in named if n not in selected]
    return found


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 10))
def test_a_shuffle_laid_down_is_the_shuffle_in_memory(tmp_path_factory, order, held):
    """Equal keys, which hashes hardly have, keep the order of the file."""
    order = [*order, *order[:3]]
    events = EventArrays.of(
        pl.DataFrame(
            {"event_id": ["a"], "user_idx": [0], "trip_idx": [0], "timestamp": [0], "day_number": [1]},
            schema_overrides={"user_idx": pl.UInt32, "trip_idx": pl.UInt32, "day_number": pl.Int32},
        ).with_columns(
            pl.lit([], dtype=pl.List(pl.UInt32)).alias(name) for name in ("candidate_idx", "selected_idx", "shown_idx")
        )
    )
    place = np.arange(len(order), dtype=np.uint32)
    found = []
    for most in (held, 10**6):
        folder = tmp_path_factory.mktemp("shuffle")
        shuffled = ExternalShuffle(folder, most)
        for start in range(0, len(order), 7):
            part = slice(start, start + 7)
            zeros = np.zeros(len(place[part]), np.int32)
            keys = np.array(order[part], np.uint64)
            values = {"event": zeros, "positive": place[part], "order": keys}
            shuffled.add(EventRows(events, values))
        found.append([n for piece in shuffled.batches() for n in piece.values["positive"].tolist()])
        assert list(folder.iterdir()) == []
    assert found[0] == found[1] == [n for _, n in sorted((key, n) for n, key in enumerate(order))]
    assert shuffle.MAX_ROWS_IN_MEMORY >= 1_000_000
