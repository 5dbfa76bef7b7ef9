"""How far a distribution has moved: nothing, by chance, or much; and what moved most."""

from __future__ import annotations

import math

import numpy as np
import pytest

from etl.reporting.compare import MOVED, MOVED_MUCH, OTHERS, STEADY, drift


def test_the_index_is_what_the_formula_says():
    found = drift("pace", {"fast": 600, "slow": 400}, {"fast": 400, "slow": 600})
    assert found.psi == pytest.approx(2 * 0.2 * math.log(1.5))
    assert (found.groups, found.verdict) == (2, MOVED)


def test_a_distribution_that_is_the_same_at_another_size_has_not_moved():
    found = drift("pace", {"fast": 600, "slow": 400}, {"fast": 60, "slow": 40})
    assert found.psi == pytest.approx(0, abs=1e-12)
    assert (found.verdict, found.mover) == (STEADY, None)


def test_what_moved_most_is_named_with_its_shares():
    found = drift("pace", {"fast": 500, "slow": 500, "gone": 1000}, {"fast": 1000, "slow": 1000})
    assert found.verdict == MOVED_MUCH
    assert found.mover == {"group": "gone", "before": 0.5, "after": 0.0}


def test_nothing_on_a_side_is_no_drift():
    assert drift("pace", {}, {"fast": 1}) is None
    assert drift("pace", {"fast": 1}, {"fast": 0}) is None


def test_rare_groups_are_one():
    rare = {f"item {number}": 1.0 for number in range(100)}
    found = drift("items", rare | {"common": 100}, rare | {"common": 300})
    assert found.groups == 2
    assert found.mover["group"] in {OTHERS, "common"}


@pytest.mark.parametrize("groups", [2, 10, 500])
@pytest.mark.parametrize("rows", [60, 2_000, 50_000])
def test_two_samples_of_one_distribution_are_steady_however_few_and_in_however_many_groups(groups, rows):
    random = np.random.default_rng(1)
    shares = random.dirichlet(np.ones(groups))
    for _ in range(20):
        one, other = (dict(zip(map(str, range(groups)), random.multinomial(rows, shares), strict=True)) for _ in "ab")
        assert drift("items", one, other).verdict == STEADY
