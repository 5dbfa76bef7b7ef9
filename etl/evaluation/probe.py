"""Measure the training value of triples: train a small BPR model on them, and evaluate its ranking of held-out items.

The variants are trained on train and compared on valid (without one, on each user's last trip in train). The best is trained
again on everything before test, and evaluated once on test. It is compared with rankings that need no training: a model that
is no better than popularity has learnt nothing about users, and one that is no better than a user's own history nothing that
a count does not know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from etl.evaluation import bpr, metrics
from etl.evaluation.holdout import (
    HoldoutGroup,
    ProbeTask,
    Ranker,
    TripleArrays,
    affinity_ranker,
    evaluate,
    history_ranker,
    popularity_ranker,
    random_ranker,
)
from etl.evaluation.metrics import RankingMetrics
from etl.runtime.run_record import Progress
from etl.settings.values import advice

MODEL, RANDOM, POPULARITY, OWN_HISTORY, AFFINITY = "model", "random", "popularity", "own_history", "affinity"
SCOPES = {"all": False, "new": True}


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe. `facts` is the content of `probe.json`.

    `figures` has the metrics of every ranking, by (ranking, scope) and user index.
    """

    facts: dict[str, Any]
    options: bpr.BprConfig
    figures: Mapping[tuple[str, str], RankingMetrics]

    def mean(self, ranking: str, scope: str = "all") -> float:
        """Return a ranking's mean AUC over users; nan where no user could be evaluated."""
        mean = self.facts["rankings"][ranking][scope]["auc"]["mean"]
        return math.nan if mean is None else float(mean)

    @property
    def auc(self) -> tuple[float, float]:
        """The model's mean AUC, and popularity's."""
        return self.mean(MODEL), self.mean(POPULARITY)

    @property
    def advice(self) -> str:
        """What to try where the model is not good enough."""
        return advice(self.facts.get("negatives", []))

    def manifest_entry(self) -> dict[str, Any]:
        """Return the manifest's entry."""
        ours = self.facts["rankings"][MODEL]["all"]
        return {
            "split": self.facts["split"],
            "users": self.facts["users"],
            "auc": ours["auc"],
            "ndcg_at_10": ours["ndcg_at_10"],
            "auc_of_popularity": self.facts["rankings"][POPULARITY]["all"]["auc"],
        }

    def warnings(self) -> Iterator[str]:
        """Yield a warning where the model is not better than popularity, with what to do."""
        ours, theirs = self.auc
        if ours > theirs:
            return
        found = self.facts["model_against"][POPULARITY]["all"]["auc"]
        mean, low, high = (found[name] or 0.0 for name in ("mean", "low", "high"))
        figures = f"AUC {ours:.3f}, popularity {theirs:.3f}, difference {mean:+.3f} ({low:+.3f} to {high:+.3f})"
        what = "worse than chance" if ours < 0.5 else "no better than popularity"
        yield (
            f"These triples have no training value: a model trained on them ranks held-out items {what} ({figures}). "
            f"{self.advice} docs/negatives.md explains."
        )


def probe(
    task: ProbeTask,
    default_affinity: float,
    seed: int,
    progress: Progress,
    variants: Sequence[bpr.BprConfig] = bpr.VARIANTS,
) -> ProbeResult:
    """Run the probe. `default_affinity` is the affinity for a category that a user has none for.

    The first variant is kept unless another is better by more than chance. The same task and seed give the same result on one
    machine. Raises ValueError where test holds nothing out.
    """
    if not task.test:
        raise ValueError("No item is held out.")
    # The matrices are small: more BLAS threads only wait for each other, and change the last bits.
    with threadpool_limits(1, "blas"):
        return _probe(task, default_affinity, seed, progress, [replace(config, seed=seed) for config in variants])


def _probe(
    task: ProbeTask, default_affinity: float, seed: int, progress: Progress, variants: Sequence[bpr.BprConfig]
) -> ProbeResult:
    tried: list[RankingMetrics] = []
    if len(variants) > 1 and task.tuning_holdout and len(task.tuning_train.users):
        for number, config in enumerate(variants, 1):
            what = f"probe: variant {number} of {len(variants)}"
            ranker = _train(task, task.tuning_train, config, progress, what)
            tried.append(_evaluate(task, task.tuning_holdout, ranker, new=False))
    best = variants[metrics.select_variant([each.auc for each in tried]) if tried else 0]
    figures = _rank_test(task, _train(task, task.train, best, progress, "probe: final"), default_affinity)
    facts = {
        "split": task.split,
        "negatives": list(task.negatives),
        "seed": seed,
        "triples": len(task.train.users),
        "tuned_on": task.tuned_on if tried else None,
        "variants": [
            {**asdict(config), "auc_when_tuned": _intervals(found, seed)["auc"]}
            for config, found in zip(variants, tried, strict=False)
        ],
        "options": asdict(best),
        "unranked_places": task.unranked,
        "users_passed_over": sum(group.skipped_users for group in task.test),
        **_summary(figures, seed),
    }
    return ProbeResult(facts, best, figures)


def _train(task: ProbeTask, triples: TripleArrays, config: bpr.BprConfig, progress: Progress, what: str) -> Ranker:
    model = bpr.train(
        triples.users,
        triples.positives,
        triples.negatives,
        triples.weights,
        n_users=task.dataset.users.height,
        n_items=task.dataset.items.height,
        options=config,
        after_epoch=lambda number, _loss: progress(what, number, config.epochs),
    )
    return lambda group: model.scores(group.users)[:, group.items]


def _evaluate(task: ProbeTask, held: Sequence[HoldoutGroup], ranker: Ranker, *, new: bool) -> RankingMetrics:
    return evaluate(held, ranker, task.dataset.users.height, new=new)


def _rank_test(task: ProbeTask, model: Ranker, default_affinity: float) -> dict[tuple[str, str], RankingMetrics]:
    """Evaluate every ranking on test, over all items and over new ones."""
    rankers: dict[str, Ranker | None] = {
        MODEL: model,
        RANDOM: random_ranker,
        POPULARITY: popularity_ranker(task.popularity),
        OWN_HISTORY: history_ranker(task.popularity),
        AFFINITY: affinity_ranker(task.dataset, default_affinity),
    }
    return {
        (name, scope): _evaluate(task, task.test, ranker, new=new)
        for name, ranker in rankers.items()
        if ranker is not None
        for scope, new in SCOPES.items()
    }


def _summary(figures: Mapping[tuple[str, str], RankingMetrics], seed: int) -> dict[str, Any]:
    """Return means with intervals over users: of every ranking, and of the model's differences to each, user by user."""
    rankings: dict[str, dict[str, Any]] = {}
    against: dict[str, dict[str, Any]] = {}
    for (name, scope), found in figures.items():
        rankings.setdefault(name, {})[scope] = _intervals(found, seed)
        if name not in {MODEL, RANDOM}:
            against.setdefault(name, {})[scope] = _intervals(figures[MODEL, scope] - found, seed)
    return {
        "users": int((~np.isnan(figures[MODEL, "all"].auc)).sum()),
        "users_with_new_places": int((~np.isnan(figures[MODEL, "new"].auc)).sum()),
        "rankings": rankings,
        "model_against": against,
    }


def _intervals(figures: RankingMetrics, seed: int) -> dict[str, dict[str, float | None]]:
    """Return the mean of each metric over users, with its 95% bootstrap interval; null without users."""
    columns = {"auc": figures.auc, "ndcg_at_10": figures.ndcg, "recall_at_10": figures.recall}
    return {name: _interval(metrics.bootstrap(values, seed)) for name, values in columns.items()}


def _interval(found: metrics.Interval) -> dict[str, float | None]:
    values = {"mean": found.mean, "low": found.low, "high": found.high}
    return {name: None if math.isnan(value) else round(value, 6) for name, value in values.items()}
