"""Do these triples teach anything? A small BPR model trained on them, and how it ranks what was held out (CONTRACT, section 4).

Trained as a trainer would: variants on train are judged by valid (without one, by each user's last trip in train), the best
is trained again on all before test, and test is looked at once. Beside it stand rankings that need no training: a model that
is no better than popularity has learnt nothing of people, and one that is only as good as a user's own history has learnt
nothing that a count doesn't know.
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
    Figures,
    HoldoutGroup,
    Ranker,
    affinity_ranker,
    evaluate,
    history_ranker,
    popularity_ranker,
    random_ranker,
)
from etl.evaluation.task import ProbeTask, TripleArrays
from etl.runtime.run_record import Progress
from etl.settings.values import advice

MODEL, RANDOM, POPULARITY, OWN_HISTORY, AFFINITY = "model", "random", "popularity", "own_history", "affinity"
SCOPES = {"all": False, "new": True}


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found: `facts` is what `probe.json` holds.

    `figures` has every ranking's, user by user, by (ranking, scope).
    """

    facts: dict[str, Any]
    options: bpr.BprConfig
    figures: Mapping[tuple[str, str], Figures]

    def mean(self, ranking: str, figure: str = "auc", scope: str = "all") -> float:
        """A ranking's figure, mean over users; nan where no user could be judged."""
        mean = self.facts["rankings"][ranking][scope][figure]["mean"]
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
        """The manifest's line."""
        ours = self.facts["rankings"][MODEL]["all"]
        return {
            "split": self.facts["split"],
            "users": self.facts["users"],
            "auc": ours["auc"],
            "ndcg_at_10": ours["ndcg_at_10"],
            "auc_of_popularity": self.facts["rankings"][POPULARITY]["all"]["auc"],
        }

    def warnings(self) -> Iterator[str]:
        """What a person should know, and do, in sentences."""
        ours, theirs = self.mean(MODEL), self.mean(POPULARITY)
        against = self.facts["model_against"][POPULARITY]["all"]["auc"]
        if ours > theirs:
            return
        figures = f"AUC {ours:.3f}, popularity {theirs:.3f}, difference {_format_interval(against)}"
        how = "teach the opposite of what people like" if ours < 0.5 else "teach nothing about people"
        what = "below chance" if ours < 0.5 else "no better than popularity"
        yield (
            f"These triples {how}: a model trained on them ranks the held-out places {what} ({figures}). "
            f"{self.advice} docs/negatives.md explains."
        )


def probe(
    question: ProbeTask, unknown: float, seed: int, progress: Progress, variants: Sequence[bpr.BprConfig] = bpr.VARIANTS
) -> ProbeResult:
    """Tune before test, train on all before test, judge on test. `unknown` is the affinity of a category without one.

    The first variant is kept unless another is better by more than chance.
    The same question and seed give the same figures on one machine. Raises ValueError where test holds nothing out.
    """
    if not question.test:
        raise ValueError("No place is held out.")
    with threadpool_limits(
        1, "blas"
    ):  # the matrices are small: more threads only wait for each other, and change last bits
        return _probed(question, unknown, seed, progress, [replace(options, seed=seed) for options in variants])


def _probed(
    question: ProbeTask, unknown: float, seed: int, progress: Progress, seeded: Sequence[bpr.BprConfig]
) -> ProbeResult:
    tried: list[Figures] = []
    if len(seeded) > 1 and question.tuning_holdout and len(question.tuning_train.users):
        for number, options in enumerate(seeded, 1):
            model = _trained(
                question, question.tuning_train, options, progress, f"probe: variant {number} of {len(seeded)}"
            )
            tried.append(_judge(question, question.tuning_holdout, _by(model), new=False))
    best = seeded[metrics.select_variant([figures.auc for figures in tried]) if tried else 0]
    model = _trained(question, question.train, best, progress, "probe: final")
    figures = _figures(question, model, unknown)
    facts = {
        "split": question.split,
        "negatives": list(question.negatives),
        "seed": seed,
        "triples": len(question.train.users),
        "tuned_on": question.tuned_on if tried else None,
        "variants": [
            {**asdict(options), "auc_when_tuned": _intervals(found, seed)["auc"]}
            for options, found in zip(seeded, tried, strict=False)
        ],
        "options": asdict(best),
        "unranked_places": question.unranked,
        "users_passed_over": sum(held.skipped_users for held in question.test),
        **_intervals_of(figures, seed),
    }
    return ProbeResult(facts, best, figures)


def _trained(
    question: ProbeTask, triples: TripleArrays, options: bpr.BprConfig, progress: Progress, what: str
) -> bpr.Model:
    return bpr.train(
        triples.users,
        triples.positives,
        triples.negatives,
        triples.weights,
        n_users=question.dataset.users.height,
        n_items=question.dataset.items.height,
        options=options,
        after_epoch=lambda epoch: progress(what, epoch.number, epoch.epochs),
    )


def _by(model: bpr.Model) -> Ranker:
    return lambda held: model.scores(held.users)[:, held.items]


def _judge(question: ProbeTask, held: Sequence[HoldoutGroup], ranker: Ranker, *, new: bool) -> Figures:
    return evaluate(held, ranker, question.dataset.users.height, new=new)


def _figures(question: ProbeTask, model: bpr.Model, unknown: float) -> dict[tuple[str, str], Figures]:
    """Every ranking's figures, over all places and over new ones."""
    affinity = affinity_ranker(question.dataset, unknown)
    rankers: dict[str, Ranker] = {
        MODEL: _by(model),
        RANDOM: random_ranker,
        POPULARITY: popularity_ranker(question.popularity),
        OWN_HISTORY: history_ranker(question.popularity),
    } | ({} if affinity is None else {AFFINITY: affinity})
    return {
        (name, scope): _judge(question, question.test, ranker, new=new)
        for name, ranker in rankers.items()
        for scope, new in SCOPES.items()
    }


def _intervals_of(figures: Mapping[tuple[str, str], Figures], seed: int) -> dict[str, Any]:
    """Means with intervals over users: of every ranking, and of the model's differences from each, user by user."""
    rankings: dict[str, dict[str, Any]] = {}
    against: dict[str, dict[str, Any]] = {}
    for (name, scope), found in figures.items():
        rankings.setdefault(name, {})[scope] = _intervals(found, seed)
        if name not in {MODEL, RANDOM}:
            against.setdefault(name, {})[scope] = _intervals(difference(figures[MODEL, scope], found), seed)
    return {
        "users": int((~np.isnan(figures[MODEL, "all"].auc)).sum()),
        "users_with_new_places": int((~np.isnan(figures[MODEL, "new"].auc)).sum()),
        "rankings": rankings,
        "model_against": against,
    }


def difference(ours: Figures, theirs: Figures) -> Figures:
    """User by user, nan where either has none."""
    return Figures(ours.auc - theirs.auc, ours.ndcg - theirs.ndcg, ours.recall - theirs.recall)


def _intervals(figures: Figures, seed: int) -> dict[str, dict[str, float | None]]:
    """The mean over users of each figure, with its interval of 95% by the bootstrap over users; null without any user."""
    columns = {"auc": figures.auc, "ndcg_at_10": figures.ndcg, "recall_at_10": figures.recall}
    return {name: _interval(metrics.bootstrap(values, seed)) for name, values in columns.items()}


def _interval(found: metrics.Interval) -> dict[str, float | None]:
    values: Mapping[str, float] = {"mean": found.mean, "low": found.low, "high": found.high}
    return {name: None if math.isnan(value) else round(value, 6) for name, value in values.items()}


def _format_interval(interval: Mapping[str, float | None]) -> str:
    mean, low, high = (interval[name] or 0.0 for name in ("mean", "low", "high"))
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
