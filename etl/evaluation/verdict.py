"""The result of a probe: means with intervals over users, and in plain words whether the data add value.

Data add value if the model trained on them ranks better than the best ranking that needs no training: the interval of
the difference, user by user, is above 0 for AUC or NDCG@10, and below 0 for neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from etl.evaluation.metrics import RankingMetrics, bootstrap
from etl.snapshots.manifest import RANKER_TEXT

MODEL, RANDOM, POPULARITY, OWN_HISTORY, AFFINITY = "model", "random", "popularity", "own_history", "affinity"
BY_USERS, HISTORY_BY_USERS, BY_DISTANCE = "popularity_by_users", "own_history_by_users", "users_by_distance"

METRICS = {"auc": "AUC", "ndcg_at_10": "NDCG@10"}
"""The metrics that decide."""


NO_INTERVAL = {"mean": None, "low": None, "high": None}


def summarize(figures: Mapping[str, RankingMetrics], seed: int) -> dict[str, dict[str, Any]]:
    """Return means with intervals over users, of every ranking and of the model's differences from each, user by user.

    Without a model there are no differences.
    """
    rankings = {name: intervals(found, seed) for name, found in figures.items()}
    against = {
        name: intervals(figures[MODEL] - found, seed)
        for name, found in figures.items()
        if MODEL in figures and name not in {MODEL, RANDOM}
    }
    return {"rankings": rankings, "model_against": against}


def judged(figures: Mapping[str, RankingMetrics]) -> int:
    """Return how many users have a value."""
    return int((~np.isnan(next(iter(figures.values())).auc)).sum())


def intervals(figures: RankingMetrics, seed: int) -> dict[str, dict[str, float | None]]:
    """Return the mean of each metric over users, with its 95% bootstrap interval; null without users."""
    found = {}
    for name, values in zip(("auc", "ndcg_at_10", "recall_at_10"), figures, strict=True):
        each = bootstrap(values, seed)
        ends = zip(("mean", "low", "high"), (each.mean, each.low, each.high), strict=True)
        found[name] = {end: None if math.isnan(value) else round(value, 6) for end, value in ends}
    return found


def best_untrained(summary: Mapping[str, Any], metric: str) -> str:
    """Return the ranking with the highest mean among those that the model is compared with; the first of equals."""
    means: dict[str, float | None] = {
        name: summary["rankings"][name][metric]["mean"] for name in summary["model_against"]
    }
    return max(means, key=lambda name: float(means[name] or 0.0))


def is_better(apart: Mapping[str, Mapping[str, float | None]]) -> bool:
    """Return whether differences are above 0 for AUC or NDCG@10, with the whole interval, and below 0 for neither."""
    above = any((apart[metric]["low"] or 0.0) > 0 for metric in METRICS)
    return above and not any((apart[metric]["high"] or 0.0) < 0 for metric in METRICS)


def verdict(summary: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return whether the data add value for `what`, and a sentence with the figures that say so.

    The model is compared with the best untrained ranking of each metric, so with different ones if they differ. It is
    `worse` if it is below that ranking for a metric, with the whole interval.
    """
    if MODEL not in summary["rankings"]:
        return none(what, "no model was trained: the snapshot has no triples before the held-out part")
    best = {metric: best_untrained(summary, metric) for metric in METRICS}
    apart = {metric: summary["model_against"][name][metric] for metric, name in best.items()}
    if any(found["mean"] is None for found in apart.values()):
        return none(what, "no user could be evaluated")
    worse = any(found["high"] < 0 for found in apart.values())
    rules = " and ".join(dict.fromkeys(RANKER_TEXT[name] for name in best.values()))
    ranks = "ranks" if len(set(best.values())) == 1 else "rank"
    better = is_better(apart)
    if better:
        said = f"the data add value: a model trained on them ranks better than {rules}, the best without training"
    elif worse:
        said = f"the data add no value: {rules}, without training, {ranks} better"
    else:
        said = f"the data add no value that differs from chance: {rules}, without training, {ranks} as well"
    text = f"For {what}, {said} ({format_gain(apart)})."
    return {"adds_value": better, "worse": worse, "best_untrained": best, "text": text}


def none(what: str, why: str) -> dict[str, Any]:
    """Return the verdict if there is nothing to compare."""
    return {"adds_value": False, "worse": False, "best_untrained": None, "text": f"For {what}, {why}."}


def next_verdict(facts: Mapping[str, Any], *, has_table: bool, has_coordinates: bool) -> dict[str, Any]:
    """Return the verdict on the next item, or why there is none, and whether the previous item says anything about it."""
    what, gain = "the next item, where it is new to the user", facts["distance_against"][BY_USERS]
    if not facts["users"]:
        return none(what, "there is nothing to learn: no held-out trip has a second item that is new to its user")
    if MODEL in facts["rankings"]:
        found = verdict(facts, what)
    elif has_table:
        found = none(
            what, "no model was trained: next/ has no row before the held-out part whose item is new to its user"
        )
    else:
        found = none(what, "no model was trained: the snapshot has no table next/, which --task next publishes")
    if not has_coordinates:
        more = "No item has usable coordinates, so there are no distances to learn from."
    elif is_better(gain):
        more = f"Distance from the previous item alone is worth {format_gain(gain)} over popularity by users."
    else:
        more = f"There is nothing to learn from distance here: it adds {format_gain(gain)} to popularity by users."
    return found | {"text": f"{found['text']} {more}"}


def format_gain(apart: Mapping[str, Mapping[str, float | None]]) -> str:
    """Format the differences of the metrics that decide."""
    return ", ".join(f"{text} {format_difference(apart[metric])}" for metric, text in METRICS.items())


def format_difference(found: Mapping[str, float | None]) -> str:
    """Format a difference with its interval: `+0.012 (-0.003 to +0.027)`."""
    return f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
