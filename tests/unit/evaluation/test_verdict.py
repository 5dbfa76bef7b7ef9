"""The verdict: value only above the best untrained ranking, by AUC or NDCG@10, and below it by neither."""

from __future__ import annotations

import numpy as np
import pytest

from etl.evaluation.metrics import RankingMetrics
from etl.evaluation.probe import ProbeResult
from etl.evaluation.verdict import (
    BY_DISTANCE,
    BY_USERS,
    HISTORY_BY_USERS,
    MODEL,
    OWN_HISTORY,
    POPULARITY,
    RANDOM,
    next_verdict,
    summarize,
    verdict,
)

ROUGH = np.tile([-0.1, 0.1], 100)
"""Differences between users: a mean of 200 has an interval of about 0.014 either side."""


def figures(auc, ndcg, seed=0):
    """One value per user around these means. The noise is the same for the same seed."""
    noise = np.random.default_rng(seed).permutation(ROUGH)
    return RankingMetrics(auc + noise, ndcg + noise, np.zeros(200))


def judge(model, what="it", **untrained):
    """The verdict on a model with these means (AUC, NDCG@10), beside untrained rankings with theirs."""
    every = {MODEL: figures(*model, seed=1), RANDOM: figures(0.5, 0.1)}
    every |= {name: figures(*means) for name, means in untrained.items()}
    return verdict(summarize(every, 0), what)


def test_better_by_one_metric_and_worse_by_neither_adds_value():
    found = judge((0.80, 0.30), **{BY_USERS: (0.70, 0.30), POPULARITY: (0.60, 0.20)})
    assert (found["adds_value"], found["worse"]) == (True, False)
    assert found["best_untrained"] == {"auc": BY_USERS, "ndcg_at_10": BY_USERS}
    assert found["text"].startswith(
        "For it, the data add value: a model trained on them ranks better than popularity by users, the best without "
        "training (AUC +0.100 (+0.0"
    )


def test_better_by_auc_and_worse_by_ndcg_adds_none():
    found = judge((0.80, 0.30), **{BY_USERS: (0.70, 0.29), OWN_HISTORY: (0.72, 0.40)})
    assert (found["adds_value"], found["worse"]) == (False, True)
    assert "the data add no value: own history, popularity by events, without training, ranks better" in found["text"]


def test_what_chance_explains_adds_none_and_the_rule_that_does_as_well_is_named():
    found = judge((0.703, 0.30), **{BY_DISTANCE: (0.70, 0.30), BY_USERS: (0.60, 0.20)})
    assert (found["adds_value"], found["worse"]) == (False, False)
    assert "no value that differs from chance: users ÷ distance, without training, ranks as well" in found["text"]


def test_the_best_may_be_another_for_each_metric():
    found = judge((0.80, 0.30), **{BY_USERS: (0.81, 0.20), OWN_HISTORY: (0.60, 0.31)})
    assert found["best_untrained"] == {"auc": BY_USERS, "ndcg_at_10": OWN_HISTORY}
    assert "popularity by users and own history, popularity by events, without training, rank as well" in found["text"]


def test_chance_is_no_ranking_to_compare_with_and_nobody_is_no_value():
    found = judge((0.45, 0.05), **{BY_USERS: (0.40, 0.04)})
    assert found["best_untrained"] == {"auc": BY_USERS, "ndcg_at_10": BY_USERS}
    none = RankingMetrics(*np.full((3, 200), np.nan))
    found = verdict(summarize({MODEL: none, BY_USERS: none}, 0), "it")
    assert (found["adds_value"], found["text"]) == (False, "For it, no user could be evaluated.")
    found = verdict(summarize({BY_USERS: figures(0.7, 0.2)}, 0), "it")
    assert found["text"] == "For it, no model was trained: the snapshot has no triples before the held-out part."


def test_a_model_that_is_no_better_is_called_better_as_rarely_as_the_intervals_say():
    """Two metrics, here independent, each too high by chance in one of 40. Of 400, 20 are expected; 36 are one in 1,000."""
    seen = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        one, other = (RankingMetrics(*rng.normal(0.7, 0.1, (3, 100))) for _ in range(2))
        seen += verdict(summarize({MODEL: one, BY_USERS: other}, seed), "it")["adds_value"]
    assert 4 <= seen <= 36


def facts(gain, **more):
    interval = {"mean": gain, "low": gain - 0.01, "high": gain + 0.01}
    figures = dict.fromkeys(("auc", "ndcg_at_10"), interval)
    return {"users": 9, "rankings": {}, "distance_against": {BY_USERS: figures}, **more}


@pytest.mark.parametrize(
    ("gain", "coordinates", "said"),
    [
        (0.05, True, "Distance from the previous item alone is worth AUC +0.050 (+0.040 to +0.060)"),
        (0.005, True, "There is nothing to learn from distance here: it adds AUC +0.005 (-0.005 to +0.015)"),
        (-0.05, True, "There is nothing to learn from distance here"),
        (0.0, False, "No item has usable coordinates"),
    ],
)
def test_it_is_said_whether_distance_is_worth_anything(gain, coordinates, said):
    for has_table, why in ((True, "next/ has no row"), (False, "--task next publishes")):
        found = next_verdict(facts(gain), has_table=has_table, has_coordinates=coordinates)
        assert said in found["text"]
        assert why in found["text"]
        assert not found["adds_value"]


def result(against, *, next_worse=False):
    """A probe's result whose model has AUC 0.7, popularity 0.6, and these differences: (ranking, metric) -> interval."""
    interval = dict(zip(("mean", "low", "high"), (0.1, 0.05, 0.15), strict=True))
    model_against = {
        name: {"all": dict.fromkeys(("auc", "ndcg_at_10"), interval)}
        for name in (POPULARITY, BY_USERS, OWN_HISTORY, HISTORY_BY_USERS)
    }
    for (name, metric), values in against.items():
        found = dict(zip(("mean", "low", "high"), values, strict=True))
        model_against[name]["all"] = {**model_against[name]["all"], metric: found}
    rankings = {
        name: {"all": {key: {"mean": mean, "low": mean, "high": mean} for key in ("auc", "ndcg_at_10")}}
        for name, mean in ((MODEL, 0.7), (POPULARITY, 0.6))
    }
    text = {"worse": next_worse, "text": "For the next item, it is worse."}
    follows = {"rankings": {}, "users": 0, "verdict": text}
    facts = {"split": "last-trip", "users": 1, "rankings": rankings, "model_against": model_against, "next": follows}
    return ProbeResult({**facts, "verdict": {}}, None, {})


def test_ndcg_below_a_count_is_a_warning_though_auc_is_not():
    (warning,) = result({(OWN_HISTORY, "ndcg_at_10"): (-0.1, -0.12, -0.08)}).warnings()
    assert warning.startswith(
        "A model trained on these triples ranks held-out items worse than own history, popularity by events, without "
        "training (NDCG@10 -0.100 (-0.120 to -0.080))."
    )
    assert list(result({(OWN_HISTORY, "ndcg_at_10"): (-0.1, -0.22, 0.02)}).warnings()) == []
    further = {(HISTORY_BY_USERS, "auc"): (-0.2, -0.3, -0.1), (OWN_HISTORY, "ndcg_at_10"): (-0.1, -0.12, -0.08)}
    (warning,) = result(further).warnings()
    assert "own history, popularity by users, without training (AUC -0.200" in warning


def test_a_next_table_that_is_worse_than_nothing_is_a_warning():
    (warning,) = result({}, next_worse=True).warnings()
    assert warning == "next/ has no training value. For the next item, it is worse."
