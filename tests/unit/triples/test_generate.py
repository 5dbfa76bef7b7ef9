"""Triples without a database: the oracle's rows over dense worlds, and the corners that no world has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from etl.settings.values import NegativeSampling
from etl.transform.personas import affinity_model
from etl.triples import generate as triples
from etl.triples.dataset import Dataset
from etl.triples.generate import (
    SOURCES,
    Catalogue,
    EventArrays,
    EventRows,
    FlatPairs,
    HashKeys,
    ListColumn,
    TripleBatch,
    generate_triples,
)
from etl.triples.partitions import Partition, build_training_set
from etl.triples.sampling import build_pools
from tests.property import oracle, oracle_training
from tests.property.dense import both_settings
from tests.property.in_memory import WORLDS, dataset_of, training_options

MODEL = affinity_model().raw


@dataclass
class Made:
    """What came of a dataset's partitions, in the oracle's words."""

    triples: dict[tuple[str, str], list[oracle.Triple]] = field(default_factory=dict)
    positives: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)
    through: set[str] = field(default_factory=set)


def made_of(dataset: Dataset, options: oracle.Settings) -> Made:
    training, made = build_training_set(dataset, training_options(options)), Made()
    users = dataset.users["user_id"]
    for partition in (each for events in training.buckets() for each in training.partitions(events)):
        key = partition.split or "train", partition.city
        if not partition.kept:
            made.left_out["small_catalog"] += int(partition.coded.selected.lengths.sum())
            continue
        for block in partition.expand():
            rows = list(rows_of(block, partition, dataset, options))
            made.triples.setdefault(key, []).extend(rows)
            made.positives[key] += block.positives
            made.left_out.update(block.left_out)
            made.through.update(users[int(user)] for user in block.exhausted_users)
            pairs = zip(block.pairs.event.tolist(), block.pairs.code.tolist(), block.per_pair.tolist(), strict=True)
            counted = Counter(zip(block.event.tolist(), block.positive.tolist(), strict=True))
            assert {(event, code): number for event, code, number in pairs if number} == counted
    return made


def rows_of(
    block: TripleBatch, partition: Partition, dataset: Dataset, options: oracle.Settings
) -> Iterator[oracle.Triple]:
    """A block's rows as triples; what they are to be shuffled by is compared on the way."""
    coded, items = partition.coded, dataset.items["item_id"]
    assert (block.order is not None) == options.shuffle
    for row, event in enumerate(block.event.tolist()):
        triple = oracle.Triple(
            user_id=dataset.users["user_id"][int(coded.users[event])],
            pos_item=items[int(block.positive[row])],
            neg_item=items[int(block.negative[row])],
            timestamp=int(coded.timestamps[event]),
            event_id=coded.ids[event].as_py(),
            trip_id=dataset.trips["trip_id"][int(coded.trips[event])],
            day_number=int(coded.days[event]),
            neg_source=SOURCES[block.source[row]],
            pos_in_candidates=bool(block.in_candidates[row]),
            weight=oracle_training.float32(partition.weight),
        )
        assert block.order is None or int(block.order[row]) == oracle_training.shuffle_key(options.seed, triple)
        yield triple


@pytest.mark.parametrize("other", [0, 1])
@pytest.mark.parametrize(("make", "number"), WORLDS)
def test_triples_are_the_oracle_s_in_blocks_of_any_size(monkeypatch, make, number, other):
    monkeypatch.setattr(triples, "BATCH", (triples.BATCH, 30)[(number + other) % 2])
    world, options = make(number), replace(both_settings(number)[other], task=("triples",))
    after = oracle.after_run(world, options, MODEL)
    exported = oracle.exported(after, options)
    expected = oracle_training.training(after, exported, options)
    made = made_of(dataset_of(after, exported, options), options)
    if options.shuffle:
        for rows in made.triples.values():
            rows.sort(key=lambda triple: oracle_training.shuffle_key(options.seed, triple))
    assert {key: rows for key, rows in made.triples.items() if rows} == expected.triples
    assert +made.positives == +expected.positives
    assert +made.left_out == +expected.left_out
    assert made.through == expected.users_with_whole_catalog_seen


# ------------------------------------------------------------------------------------------------- events by hand

NODES = 12
NO_REJECTED = np.zeros(0, np.int64), np.zeros(0, np.int32), 1


def keys() -> HashKeys:
    return HashKeys.of(pl.Series(["ann", "bob"]), pl.Series([f"n{number:02}" for number in range(NODES)]), 3)


def coded(*events: tuple[list[int], list[int], list[int]]) -> EventArrays:
    """Events of (candidates, selected, shown), of two users by turns."""
    lists = {
        name: pl.Series(values=[list(event[place]) for event in events], dtype=pl.List(pl.UInt32))
        for place, name in enumerate(("candidate_idx", "selected_idx", "shown_idx"))
    }
    numbers = range(len(events))
    plain = {"event_id": [f"e{number}" for number in numbers], "user_idx": [number % 2 for number in numbers]}
    plain |= {"trip_idx": list(numbers), "timestamp": list(numbers), "day_number": list(numbers)}
    types = {"event_id": pl.String, "user_idx": pl.UInt32, "trip_idx": pl.UInt32, "timestamp": pl.Int64}
    return EventArrays.of(pl.DataFrame({**plain, **lists}, schema_overrides={**types, "day_number": pl.Int32}))


def catalogue(events: EventArrays, rejected: dict[int, list[int]]) -> Catalogue:
    """All nodes for all, but for what each event rejects."""
    pairs = [(event, place) for event, places in sorted(rejected.items()) for place in sorted(places)]
    by_group = np.array([e for e, _ in pairs], np.int64), np.array([p for _, p in pairs], np.int32)
    pools = build_pools(NODES, *by_group, len(events))
    return Catalogue(np.arange(NODES), np.arange(len(events)), pools)


TYPES = {
    "event": np.int32,
    "positive": np.uint32,
    "negative": np.uint32,
    "source": np.int8,
    "in_candidates": np.bool_,
    "order": np.uint64,
    "exhausted_users": np.uint32,
}
"""What is written takes these as they are: an array of another width is another column, or twice the memory."""


@pytest.mark.parametrize(
    "negatives",
    [
        NegativeSampling(ranking=True),
        NegativeSampling(shown=True),
        NegativeSampling(catalog=3),
        NegativeSampling(ranking=True, shown=True),
        NegativeSampling(ranking=True, shown=True, catalog=3),
    ],
)
def test_arrays_have_their_types_whatever_the_negatives_come_from(negatives):
    events = coded(([1, 2], [2, 3], [4, 1]), ([5], [], [6]), ([7, 8], [9], []))
    (block,) = generate_triples(events, negatives, catalogue(events, {0: [2, 3], 2: [9]}), keys(), shuffle=True)
    assert len(block) > 0
    assert {name: getattr(block, name).dtype for name in TYPES} == TYPES
    assert (block.pairs.event.dtype, block.pairs.code.dtype) == (np.int32, np.uint32)


def test_rows_have_no_order_unless_a_shuffle_is_asked_for():
    events = coded(([1, 2], [2], []))
    (block,) = generate_triples(events, NegativeSampling(ranking=True), catalogue(events, {}), keys())
    assert block.order is None
    assert "order" not in block.rows.values


def test_a_positive_is_no_negative_even_where_it_was_shown_too():
    """Our own events never show what was selected; others' may."""
    events = coded(([1, 2, 3], [2, 5], [2, 3, 4, 5]))
    for negatives, expected in (
        (NegativeSampling(ranking=True, shown=True), [(1, 0), (3, 0), (4, 1)]),
        (NegativeSampling(shown=True), [(3, 1), (4, 1)]),
    ):
        (block,) = generate_triples(events, negatives, catalogue(events, {}), keys())
        found = list(zip(block.negative.tolist(), block.source.tolist(), strict=True))
        assert found == expected * 2
        assert block.positive.tolist() == [2] * len(expected) + [5] * len(expected)


def test_an_event_s_candidates_come_before_what_it_showed_however_many_events_there_are():
    rng = np.random.default_rng(5)
    rows = [[rng.permutation(NODES)[: rng.integers(0, 5)].tolist() for _ in range(3)] for _ in range(500)]
    events = coded(*rows)
    (block,) = generate_triples(events, NegativeSampling(ranking=True, shown=True), catalogue(events, {}), keys())
    expected = [
        (event, positive, negative, source)
        for event, (candidates, selected, shown) in enumerate(rows)
        for positive in selected
        for source, named in enumerate((candidates, shown))
        for negative in named
        if negative not in selected and not (source and negative in candidates)
    ]
    columns = (block.event, block.positive, block.negative, block.source)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


@pytest.mark.parametrize("shuffle", [False, True])
def test_some_rows_of_a_block_are_those_rows(shuffle):
    """Cut within a run, on its ends and across events without rows; then put together again."""
    events = coded(([1, 2, 3], [2, 4], [5]), ([1], [1], []), ([6, 7], [6], []), ([8], [8], []))
    (block,) = generate_triples(
        events, NegativeSampling(ranking=True, shown=True), catalogue(events, {}), keys(), shuffle=shuffle
    )
    rows, total = block.rows, len(block)
    names = {"event", "positive", "negative", "source", "in_candidates"} | ({"order"} if shuffle else set())
    assert (len(rows), total, set(rows.columns)) == (7, 7, names)
    assert (rows.lengths.tolist(), bool(rows.runs)) == (([], False) if shuffle else ([3, 3, 1], True))
    for first in range(total):
        for end in range(first + 1, total + 1):
            some = rows[first:end]
            assert len(some) == end - first
            assert (some.lengths > 0).all()
            for name in names:
                assert some.columns[name].tolist() == getattr(block, name)[first:end].tolist()
            both = EventRows.concat([rows[:end], rows[first:]]).columns
            assert {name: column.tolist() for name, column in both.items()} == {
                name: [*getattr(block, name)[:end].tolist(), *getattr(block, name)[first:].tolist()] for name in names
            }


def test_a_user_who_has_selected_the_whole_catalogue_is_named_and_others_without_negatives_are_not():
    events = coded(([1], [1], []), ([2], [2, 3], []), ([4], [4], []))
    offered = catalogue(events, {0: list(range(NODES)), 1: list(range(NODES)), 2: [4]})
    (block,) = generate_triples(events, NegativeSampling(catalog=2), offered, keys())
    assert block.left_out == {"no_negatives": 0, "whole_catalog_seen": 3}
    assert (block.exhausted_users.tolist(), block.positives, block.per_pair.tolist()) == ([0, 1], 1, [0, 0, 0, 2])
    (block,) = generate_triples(events, NegativeSampling(shown=True), offered, keys())
    assert block.left_out == {"no_negatives": 4, "whole_catalog_seen": 0}
    assert (block.exhausted_users.tolist(), block.positives, len(block)) == ([], 0, 0)


def test_nothing_to_draw_from_is_not_a_catalogue_seen():
    events = coded(([1], [1], []))
    none = Catalogue(np.zeros(0, np.int64), np.zeros(1, np.int64), build_pools(0, *NO_REJECTED))
    (block,) = generate_triples(events, NegativeSampling(catalog=2), none, keys())
    assert block.left_out == {"no_negatives": 1, "whole_catalog_seen": 0}


def test_no_events_give_no_blocks():
    events = coded()
    assert (
        list(
            generate_triples(
                events, NegativeSampling(ranking=True, catalog=2), catalogue(events, {}), keys(), shuffle=True
            )
        )
        == []
    )


def test_rows_of_a_column_of_lists_are_counted_from_the_first_of_them():
    lists = ListColumn.of(pl.Series(values=[[5], [], [6, 7], [8]], dtype=pl.List(pl.UInt32)))
    assert lists.lengths.tolist() == [1, 0, 2, 1]
    long = lists.long(1, 3)
    assert (long.event.tolist(), long.code.tolist()) == ([1, 1], [6, 7])
    assert (long.event.dtype, long.code.dtype) == (np.int32, np.uint32)
    assert long.keys(100).tolist() == [106, 107]


def test_an_event_and_a_node_are_one_number_however_many_there_are():
    """In 32 bits the product would wrap: a million events of a partition by a catalogue of 10,000."""
    long = FlatPairs(np.array([1_000_000], np.int32), np.array([9_999], np.uint32))
    assert long.keys(10_000).tolist() == [10_000_009_999]


@pytest.mark.parametrize("seed", range(20))
def test_blocks_are_as_large_as_they_may_be_and_no_larger(monkeypatch, seed):
    """About BATCH rows: as many whole events as fit, one at least; and no more of them than there are marks for."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(triples, "BATCH", int(rng.integers(1, 60)))
    monkeypatch.setattr(triples, "MARKS", NODES * int(rng.integers(1, 12)) + 5)
    events = coded(*([rng.permutation(NODES)[: rng.integers(0, 6)] for _ in range(3)] for _ in range(40)))
    negatives = NegativeSampling(ranking=seed % 2 == 0, shown=seed % 3 == 0, catalog=(0, 4)[seed % 5 > 1])
    rows = [
        len(selected) * (negatives.ranking * len(candidates) + negatives.shown * len(shown) + negatives.catalog)
        for candidates, selected, shown in zip(
            *(np.split(each.codes, each.ends[1:-1]) for each in (events.candidates, events.selected, events.shown)),
            strict=True,
        )
    ]
    most = triples.MARKS // NODES
    bounds = triples._bounds(events, negatives, NODES)
    assert (bounds[0], bounds[-1]) == (0, len(events))
    for first, end in pairwise(bounds):
        assert 0 < end - first <= most
        assert end - first == 1 or sum(rows[first:end]) <= triples.BATCH
        full = end == len(events) or end - first == most or sum(rows[first : end + 1]) > triples.BATCH
        assert full


def test_a_block_has_one_event_where_there_are_more_nodes_than_marks(monkeypatch):
    monkeypatch.setattr(triples, "MARKS", NODES - 1)
    events = coded(([1], [2], []), ([1], [2], []))
    assert triples._bounds(events, NegativeSampling(ranking=True), NODES) == [0, 1, 2]
    assert triples._bounds(events, NegativeSampling(ranking=True), 0) == [0, 2]
    monkeypatch.setattr(triples, "MARKS", 2)
    assert triples._bounds(events, NegativeSampling(ranking=True), 1) == [0, 2]
