"""Draws against the oracle's, at sizes that worlds in a database don't reach: big catalogues, lopsided weights, many groups."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl.triples import sampling as draws
from etl.triples.sampling import build_pools, integer_weights, sample
from tests.property import oracle_training as oracle
from tests.property.oracle_training import even_draw, weighted_draw


@st.composite
def cases(draw_):
    """A catalogue, what each group rejects, how often each node was selected, keys with their groups, N and alpha."""
    n = draw_(st.integers(1, 60))
    rejected = draw_(st.lists(st.sets(st.integers(0, n - 1)), min_size=1, max_size=5))
    counts = draw_(st.lists(st.sampled_from((0, 0, 1, 2, 5, 1_000, 10**6)), min_size=n, max_size=n))
    keys = draw_(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))
    groups = [draw_(st.integers(0, len(rejected) - 1)) for _ in keys]
    return n, rejected, counts, keys, groups, draw_(st.integers(1, 20)), draw_(st.sampled_from((0.0, 0.5, 1.0, 3.0)))


def ours(case) -> list[list[int]]:
    n, rejected, counts, keys, groups, wanted, alpha = case
    rows = [(group, place) for group, places in enumerate(rejected) for place in sorted(places)]
    by_group = (np.array([g for g, _ in rows], np.int64), np.array([p for _, p in rows], np.int32), len(rejected))
    even = build_pools(np.ones(n, np.uint64), *by_group)
    weighted = build_pools(integer_weights(counts, alpha), *by_group) if alpha else None
    places, counted = sample(np.array(keys, np.uint64), np.array(groups, np.int64), wanted, even, weighted)
    return [places[counted[:, row], row].tolist() for row in range(len(keys))]


def theirs(case) -> list[list[int]]:
    n, rejected, counts, keys, groups, wanted, alpha = case
    names = [f"{place:03}" for place in range(n)]
    weights = oracle.integer_weights(dict(zip(names, counts, strict=True)), alpha)
    found = []
    for key, group in zip(keys, groups, strict=True):
        pool = tuple(name for place, name in enumerate(names) if place not in rejected[group])
        drawn = weighted_draw(pool, wanted, key, weights) if alpha else even_draw(pool, wanted, key)
        found.append([int(name) for name in drawn])
    return found


@settings(max_examples=300)
@given(cases())
def test_draws_are_the_oracle_s(case):
    assert ours(case) == theirs(case)


def test_what_is_left_is_laid_out_where_a_few_nodes_hold_all_the_weight():
    """Two nodes with nearly all the weight: attempts would hit them for ever, so the rest is drawn from what is left."""
    case = (50, [{3, 4}], [10**6, 10**6, *[0] * 48], list(range(0, 2**64, 2**58)), [0] * 64, 12, 3.0)
    found = ours(case)
    assert found == theirs(case)
    assert all(len(set(row)) == 12 for row in found)
    assert all({0, 1} <= set(row) and not {3, 4} & set(row) for row in found)


def test_blocks_and_threads_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    keys, groups = rng.integers(0, 2**64, 1_000, np.uint64), rng.integers(0, 3, 1_000)
    even = build_pools(np.ones(40, np.uint64), np.array([0, 1, 1]), np.array([5, 0, 39], np.int32), 3)
    whole = sample(keys, groups, 16, even)
    monkeypatch.setattr(draws, "_BLOCK", 7)
    for threads in (1, 3):
        monkeypatch.setattr(draws, "_threads", lambda threads=threads: threads)
        cut = sample(keys, groups, 16, even)
        assert all(np.array_equal(one, two) for one, two in zip(whole, cut, strict=True))


@pytest.mark.parametrize("laid_out", [0, 10**9])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_laid_out_or_searched_pools_give_the_same(monkeypatch, laid_out, case):
    monkeypatch.setattr(draws, "_MATERIALIZE_RATIO", laid_out)
    assert ours(case) == theirs(case)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_node_is_drawn_as_often_as_it_should_be(alpha):
    """One draw each of 100,000 keys: every node's share within five standard deviations of what its weight says."""
    counts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    keys = np.random.default_rng(2).integers(0, 2**64, 100_000, np.uint64)
    rejected = (np.zeros(2, np.int64), np.array([2, 7], np.int32), 1)
    even = build_pools(np.ones(10, np.uint64), *rejected)
    weighted = build_pools(integer_weights(counts, alpha), *rejected) if alpha else None
    places, _ = sample(keys, np.zeros(len(keys), np.int64), 1, even, weighted)
    found = Counter(places[0].tolist())
    shares = {place: (count + 1) ** alpha for place, count in enumerate(counts) if place not in {2, 7}}
    assert set(found) == set(shares)
    for place, share in shares.items():
        expected = share / sum(shares.values())
        assert abs(found[place] / len(keys) - expected) < 5 * (expected * (1 - expected) / len(keys)) ** 0.5
