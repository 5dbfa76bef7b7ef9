"""A probe's verdict in words: when a person is warned, and when a night ends with it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from etl.errors import DataError
from etl.evaluation import bpr
from etl.evaluation.probe import MODEL, POPULARITY, ProbeResult, probe
from etl.pipeline.guards import check_auc
from etl.settings.sources import load_settings


def found(ours: float | None, theirs: float | None) -> ProbeResult:
    def interval(mean: float | None) -> dict:
        return {"mean": mean, "low": mean, "high": mean}

    rankings = {
        name: {"all": {"auc": interval(mean), "ndcg_at_10": interval(None)}}
        for name, mean in ((MODEL, ours), (POPULARITY, theirs))
    }
    difference = None if ours is None or theirs is None else ours - theirs
    against = {POPULARITY: {"all": {"auc": interval(difference)}}}
    follows = {"rankings": {}, "users": 0, "verdict": {"worse": False, "text": "Nothing."}}
    facts = {
        "split": "last-trip",
        "users": 1,
        "rankings": rankings,
        "model_against": against,
        "next": follows,
        "verdict": {},
    }
    return ProbeResult(facts, bpr.BprConfig(), {})


def test_a_model_that_is_better_than_popularity_is_no_warning():
    assert list(found(0.71, 0.7).warnings()) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (0.7, 0.7, "no training value: a model trained on them ranks held-out items no better than"),
        (0.6, 0.7, "ranks held-out items no better than popularity"),
        (0.4, 0.7, "no training value: a model trained on them ranks held-out items worse than chance"),
        (0.4, 0.3, None),
    ],
)
def test_a_model_that_is_no_better_is_one_and_says_how_bad_it_is(ours, theirs, said):
    warnings = list(found(ours, theirs).warnings())
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


@pytest.mark.parametrize(
    ("ours", "fail_below", "fails"),
    [(0.6, None, False), (0.6, 0.6, False), (0.59, 0.6, True), (None, 0.6, True), (None, None, False)],
)
def test_fail_below_ends_a_night_whose_model_is_worse_or_could_not_be_judged(ours, fail_below, fails):
    settings = replace(load_settings({"database_url": "postgresql://h/d"}, {}), fail_below=fail_below)
    if not fails:
        check_auc(found(ours, 0.5), settings, "After.")
        return
    with pytest.raises(DataError, match=r"--fail-below asks for 0.6 \(popularity has 0.500\). After. Try"):
        check_auc(found(ours, 0.5), settings, "After.")


def test_nothing_held_out_is_nothing_to_judge():
    with pytest.raises(ValueError, match=r"No item is held out."):
        probe(SimpleNamespace(test=[]), 0.3, 0, lambda *_: None)
