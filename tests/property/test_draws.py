"""Draws against the oracle's, at sizes that worlds in a database don't reach: big catalogues, lopsided weights, many groups."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl.triples import sampling as draws
from etl.triples.sampling import AliasTable, build_pools, integer_weights, sample
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
    table = AliasTable.of(integer_weights(counts, alpha)) if alpha else None
    pools = build_pools(n, *by_group)
    places, counted = sample(np.array(keys, np.uint64), np.array(groups, np.int64), wanted, pools, table)
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


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_blocks_and_threads_change_nothing(monkeypatch, alpha):
    rng = np.random.default_rng(1)
    keys, groups = rng.integers(0, 2**64, 1_000, np.uint64), rng.integers(0, 3, 1_000)
    pools = build_pools(40, np.array([0, 1, 1]), np.array([5, 0, 39], np.int32), 3)
    table = AliasTable.of(integer_weights(range(40), alpha)) if alpha else None
    whole = sample(keys, groups, 16, pools, table)
    monkeypatch.setattr(draws, "_BLOCK", 7)
    monkeypatch.setattr(draws, "_CELLS", 40 * 5)
    for threads in (1, 3):
        monkeypatch.setattr(draws, "_threads", lambda threads=threads: threads)
        cut = sample(keys, groups, 16, pools, table)
        assert all(np.array_equal(one, two) for one, two in zip(whole, cut, strict=True))


@pytest.mark.parametrize("laid_out", [0, 10**9])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_laid_out_or_searched_pools_give_the_same(monkeypatch, laid_out, case):
    monkeypatch.setattr(draws, "MATERIALIZE_RATIO", laid_out)
    assert ours(case) == theirs(case)


# ------------------------------------------------------------------------------------------------------ frequencies

KEYS = np.random.default_rng(2).integers(0, 2**64, 200_000, np.uint64)


def many(n: int, rejected: list[int], wanted: int, counts=None, alpha: float = 1.0) -> Counter:
    """How often each sample occurs, as a tuple in the order drawn."""
    pools = build_pools(n, np.zeros(len(rejected), np.int64), np.array(rejected, np.int32), 1)
    table = None if counts is None else AliasTable.of(integer_weights(counts, alpha))
    places, _ = sample(KEYS, np.zeros(len(KEYS), np.int64), wanted, pools, table)
    return Counter(map(tuple, places.T.tolist()))


def assert_shares(found: Counter, shares: dict) -> None:
    """Nothing else occurs, and the chi-square is within six standard deviations: of a million such tests, one is above."""
    assert set(found) <= set(shares)
    expected = {each: share * found.total() / sum(shares.values()) for each, share in shares.items()}
    assert min(expected.values()) > 5
    spread = sum((found[each] - wanted) ** 2 / wanted for each, wanted in expected.items())
    assert spread < len(shares) - 1 + 6 * (2 * (len(shares) - 1)) ** 0.5


def one_after_the_other(weights: dict[int, float], wanted: int) -> dict[tuple[int, ...], float]:
    """The probability of each sample in order: each item in proportion to the weights of those not taken yet."""
    found = {(): 1.0}
    for _ in range(wanted):
        found = {
            (*taken, item): chance * weight / sum(each for other, each in weights.items() if other not in taken)
            for taken, chance in found.items()
            for item, weight in weights.items()
            if item not in taken
        }
    return found


@pytest.mark.parametrize("numbers", [None, 1, 0])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_every_order_of_a_weighted_sample_is_as_frequent_as_it_should_be(monkeypatch, alpha, numbers):
    """Not only each item and each pair: all 120 samples of 3 of 6, drawn by the table, from what is left, or by both."""
    if numbers is not None:
        monkeypatch.setattr(draws, "_NUMBERS_PER_ITEM", numbers)
    counts = [3, 0, 50, 1, 8, 2, 30, 5]
    weights = {place: (count + 1) ** alpha for place, count in enumerate(counts) if place not in {2, 5}}
    assert_shares(many(8, [2, 5], 3, counts, alpha), one_after_the_other(weights, 3))


def test_every_item_and_every_pair_is_as_frequent_as_it_should_be_in_a_large_sample():
    """16 of 30 with 5 rejected: each item at each place among the first two, and no repeats in any of 200,000 samples."""
    counts = [(7 * place) % 30 for place in range(30)]
    found = many(30, [0, 4, 9, 17, 29], 16, counts)
    assert all(len({*each}) == 16 for each in found)
    pairs = Counter()
    for each, times in found.items():
        pairs[each[:2]] += times
    weights = {place: count + 1.0 for place, count in enumerate(counts) if place not in {0, 4, 9, 17, 29}}
    assert_shares(pairs, one_after_the_other(weights, 2))


@pytest.mark.parametrize(("n", "rejected", "wanted"), [(9, [2, 7], 3), (6, [], 5), (12, [0, 1, 11], 1)])
def test_every_set_of_an_even_sample_is_equally_frequent(n, rejected, wanted):
    pool = [place for place in range(n) if place not in rejected]
    sets = Counter()
    for each, times in many(n, rejected, wanted).items():
        sets[frozenset(each)] += times
    assert_shares(sets, dict.fromkeys(map(frozenset, combinations(pool, wanted)), 1.0))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 3.0])
def test_a_large_catalogue_is_drawn_in_proportion(alpha):
    """One item each of 2,000: an alias table has as many slots, and every one of them counts."""
    counts = [place % 7 for place in range(2_000)]
    found = many(2_000, [3], 1, counts, alpha)
    shares = {(place,): (count + 1) ** alpha for place, count in enumerate(counts) if place != 3}
    by_weight = Counter()
    for (place,), times in found.items():
        by_weight[counts[place]] += times
    assert_shares(by_weight, {each: sum(s for (p,), s in shares.items() if counts[p] == each) for each in range(7)})
    if alpha < 3:
        assert_shares(found, shares)
