"""The metrics against plain Python that tries every order of the ties."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from etl.evaluation.metrics import bootstrap, mean_per_user, ranking_metrics, select_variant

# Few different scores, so that ties are common; lists short enough for every order of their ties.
PLACE = st.tuples(st.sampled_from([-math.inf, -1.5, 0.0, 0.25, 3.0, math.inf]), st.booleans(), st.booleans())
GROUPS = st.integers(1, 6).flatmap(lambda width: st.lists(st.lists(PLACE, min_size=width, max_size=width), min_size=1))


def arrays(groups):
    scores, candidates, positives = (
        np.array([[place[part] for place in group] for group in groups]) for part in range(3)
    )
    return scores, candidates, positives


def naive(group, at):
    """AUC, NDCG and Recall of one group; means over every order that the scores allow."""
    listed = [(score, positive) for score, candidate, positive in group if candidate]
    up, down = [score for score, positive in listed if positive], [score for score, positive in listed if not positive]
    if not up or not down:
        return None
    auc = statistics.mean((high > low) + (high == low) / 2 for high in up for low in down)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(at, len(up))))
    ndcg, recall = [], []
    for order in itertools.permutations(listed):
        if all(first[0] >= second[0] for first, second in itertools.pairwise(order)):
            hits = [place for place, (_, positive) in enumerate(order[:at]) if positive]
            ndcg.append(sum(1 / math.log2(place + 2) for place in hits) / ideal)
            recall.append(len(hits) / len(up))
    return auc, statistics.mean(ndcg), statistics.mean(recall)


@given(GROUPS, st.integers(1, 7))
def test_every_figure_is_the_mean_over_all_orders_of_the_ties(groups, at):
    ranking = ranking_metrics(*arrays(groups), k=at)
    found = np.stack([ranking.auc, ranking.ndcg, ranking.recall], axis=1)
    expected = [naive(group, at) or (math.nan,) * 3 for group in groups]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@given(GROUPS)
def test_scores_that_are_the_answer_are_perfect_and_their_opposite_is_nought(groups):
    _, candidates, positives = arrays(groups)
    best, worst = (
        ranking_metrics(positives * 1.0, candidates, positives),
        ranking_metrics(positives * -1.0, candidates, positives),
    )
    judged = ~np.isnan(best.auc)
    assert (best.auc[judged] == 1).all()
    assert (worst.auc[judged] == 0).all()
    np.testing.assert_allclose(best.ndcg[judged], 1)
    np.testing.assert_allclose(best.recall[judged], 1)


@given(GROUPS, st.integers(1, 7))
def test_a_constant_is_worth_what_chance_is(groups, at):
    scores, candidates, positives = arrays(groups)
    ranking = ranking_metrics(np.zeros_like(scores), candidates, positives, k=at)
    judged = ~np.isnan(ranking.auc)
    assert (ranking.auc[judged] == 0.5).all()
    np.testing.assert_allclose(ranking.recall[judged], np.minimum(1, at / candidates.sum(axis=1)[judged]))


@given(GROUPS, st.randoms(use_true_random=False))
def test_neither_the_order_of_places_nor_what_is_no_candidate_matters(groups, random):
    scores, candidates, positives = arrays(groups)
    first = ranking_metrics(scores, candidates, positives)
    scores = np.where(candidates, scores, np.nan)
    positives = np.where(candidates, positives, [[random.random() < 0.5] for _ in groups])
    order = random.sample(range(scores.shape[1]), scores.shape[1])
    second = ranking_metrics(scores[:, order], candidates[:, order], positives[:, order])
    for one, other in ((first.auc, second.auc), (first.ndcg, second.ndcg), (first.recall, second.recall)):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_no_group_and_no_place_give_no_figure():
    assert ranking_metrics(np.zeros((0, 3)), np.zeros((0, 3), bool), np.zeros((0, 3), bool)).auc.shape == (0,)
    assert np.isnan(ranking_metrics(np.zeros((2, 0)), np.zeros((2, 0), bool), np.zeros((2, 0), bool)).ndcg).all()


def test_what_cannot_be_ranked_is_refused():
    everything = np.ones((1, 2), bool)
    with pytest.raises(ValueError, match="not a number"):
        ranking_metrics(np.array([[np.nan, 1.0]]), everything, everything)


def test_an_owner_of_several_groups_counts_once():
    values, owners = np.array([1.0, 0.0, np.nan, 0.25, np.nan]), np.array([0, 0, 0, 2, 3])
    np.testing.assert_array_equal(mean_per_user(values, owners, 5), [0.5, np.nan, 0.25, np.nan, np.nan])


VALUES = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1, 1) | st.just(math.nan))


@given(VALUES, st.integers(0, 2**32))
def test_the_bootstrap_is_seeded_and_skips_nan(values, seed):
    interval = bootstrap(values, seed)
    known = values[~np.isnan(values)]
    # Field by field: from Python 3.13 on, a dataclass with a NaN does not equal its like.
    np.testing.assert_equal(astuple(interval), astuple(bootstrap(known, seed)))
    assert interval.n == len(known)
    if len(known):
        assert interval.mean == known.mean()
        assert known.min() - 1e-12 <= interval.low <= interval.high <= known.max() + 1e-12
    else:
        assert math.isnan(interval.mean)


def test_the_bootstrap_s_interval_is_about_two_standard_errors_either_side():
    values = np.random.default_rng(1).normal(0.3, 1, 400)
    interval = bootstrap(values, 2)
    error = values.std(ddof=1) / 20
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert bootstrap(values, 3) != interval


def test_another_trial_is_chosen_only_when_chance_does_not_explain_it():
    noise = np.random.default_rng(0).normal(0, 0.1, 100)
    default = np.full(100, 0.6)
    clearly, barely, more = default + 0.05 + noise, default + 0.005 + noise, default + 0.06 + noise
    assert select_variant([default, barely]) == 0
    assert select_variant([default, barely, clearly]) == 2
    assert select_variant([default, clearly, more, more]) == 2
    assert select_variant([default, default]) == 0
    assert select_variant([default, default + 0.01]) == 1


def test_too_few_values_choose_the_default():
    one = np.array([0.1, np.nan, np.nan])
    assert select_variant([one, one + 0.5]) == 0
    assert select_variant([np.full(2, np.nan), np.ones(2)]) == 0
