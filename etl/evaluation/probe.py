"""Measure the training value of a snapshot: train small models on it, and evaluate their rankings of held-out items.

Two questions are asked, of all cities together and of each. *trip*: which items does the held-out trip hold? *next*: which
item that is new to the user comes next, given the trip so far? For *trip*, variants are trained on train and compared on valid
(without one, on each user's last trip in train); the best is trained again on everything before test, and evaluated once on
test. For *next* there is one model (`etl.evaluation.next_item`).

Models are compared with rankings that need no training. A model that is no better than popularity has learned nothing
about users. A model that is no better than a user's own history has learned nothing that a count does not show. A model
that is no better than users over distance has learned nothing that a map does not show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from etl.evaluation import bpr, metrics, next_item
from etl.evaluation.holdout import (
    ProbeTask,
    Ranker,
    affinity_ranker,
    evaluate,
    history_ranker,
    popularity_ranker,
    random_ranker,
)
from etl.evaluation.metrics import GroupMetrics, RankingMetrics
from etl.evaluation.verdict import (
    AFFINITY,
    BY_DISTANCE,
    BY_USERS,
    HISTORY_BY_USERS,
    METRICS,
    MODEL,
    NO_INTERVAL,
    OWN_HISTORY,
    POPULARITY,
    RANDOM,
    format_difference,
    intervals,
    judged,
    next_verdict,
    summarize,
    verdict,
)
from etl.runtime.run_record import Progress
from etl.settings.values import advice
from etl.snapshots.manifest import RANKER_TEXT
from etl.triples.next_choices import Coordinates

SCOPES = {"all": False, "new": True}
MAX_CITIES = 20
"""Maximum number of cities with figures of their own: those with the most evaluated users."""

RANDOM_PREVIOUS, SHUFFLED = "random_previous", "shuffled_order"


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe. `facts` is the content of `probe.json`.

    `figures` has the metrics of every ranking of the question *trip*, by (ranking, scope), one value per sampled user.
    """

    facts: dict[str, Any]
    options: bpr.BprConfig
    figures: Mapping[tuple[str, str], RankingMetrics]

    @property
    def auc(self) -> tuple[float, float]:
        """Mean AUC of (the model, popularity), as in the manifest; nan if no user could be evaluated."""
        entry = self.manifest_entry()
        ours, theirs = (entry[name]["mean"] for name in ("auc", "auc_of_popularity"))
        return math.nan if ours is None else ours, math.nan if theirs is None else theirs

    @property
    def advice(self) -> str:
        """What to try if the model is not good enough."""
        return advice(self.facts.get("negatives", []))

    @property
    def verdicts(self) -> list[str]:
        """What was found, one sentence for each question and scope."""
        found = self.facts["next"]
        return [*(each["text"] for each in self.facts["verdict"].values()), found["verdict"]["text"]]

    def manifest_entry(self) -> dict[str, Any]:
        """Return the manifest's entry: of the trip's items, or without triples of the next item."""
        rankings, users, popularity = self.facts["next"]["rankings"], self.facts["next"]["users"], BY_USERS
        if MODEL in self.facts["rankings"]:
            rankings = {name: found["all"] for name, found in self.facts["rankings"].items()}
            users, popularity = self.facts["users"], POPULARITY
        ours = rankings.get(MODEL, dict.fromkeys(METRICS, NO_INTERVAL))
        return {
            "split": self.facts["split"],
            "users": users,
            "auc": ours["auc"],
            "ndcg_at_10": ours["ndcg_at_10"],
            "auc_of_popularity": rankings[popularity]["auc"],
            "verdicts": self.verdicts,
        }

    def warnings(self) -> Iterator[str]:
        """Yield a warning if a model is not better than popularity, or worse than another simple ranking."""
        if MODEL in self.facts["rankings"]:
            ours, theirs = self.auc
            if not ours > theirs:
                yield self._no_value(ours, theirs)
            elif worse := self._worse_than_a_count():
                yield (
                    f"A model trained on these triples ranks held-out items worse than {worse}. {self.advice} "
                    "docs/negatives.md explains."
                )
        if self.facts["next"]["verdict"]["worse"]:
            yield f"next/ has no training value. {self.facts['next']['verdict']['text']}"

    def _no_value(self, ours: float, theirs: float) -> str:
        found = self.facts["model_against"][POPULARITY]["all"]["auc"]
        mean, low, high = (found[name] or 0.0 for name in ("mean", "low", "high"))
        figures = f"AUC {ours:.3f}, popularity {theirs:.3f}, difference {mean:+.3f} ({low:+.3f} to {high:+.3f})"
        what = "worse than chance" if ours < 0.5 else "no better than popularity"
        return (
            f"These triples have no training value: a model trained on them ranks held-out items {what} ({figures}). "
            f"{self.advice} docs/negatives.md explains."
        )

    def _worse_than_a_count(self) -> str | None:
        """Name the ranking by counts that the model is furthest below, if the whole interval is below 0; else None."""
        worst = None
        for name in (POPULARITY, BY_USERS, OWN_HISTORY, HISTORY_BY_USERS):
            for metric, text in METRICS.items():
                found = self.facts["model_against"].get(name, {}).get("all", {}).get(metric)
                if found and (found["high"] or 0.0) < min(0.0, worst[0] if worst else 0.0):
                    worst = found["high"], f"{RANKER_TEXT[name]}, without training ({text} {format_difference(found)})"
        return worst[1] if worst else None


def probe(
    task: ProbeTask,
    default_affinity: float,
    seed: int,
    progress: Progress,
    variants: Sequence[bpr.BprConfig] = bpr.VARIANTS,
    *,
    controls: bool = False,
) -> ProbeResult:
    """Run the probe. `default_affinity` is the affinity for a category that a user has none for.

    The first variant is kept unless another is better by more than chance. `controls` also trains on choices whose previous
    item is random, and on days in random order. The same task and seed give the same result on one machine. Raises
    ValueError if test holds nothing out.
    """
    if not task.test:
        raise ValueError("No item is held out.")
    # The matrices are small: more BLAS threads only wait for each other, and change the last bits.
    with threadpool_limits(1, "blas"):
        result = _probe_trip(
            task, default_affinity, seed, progress, [replace(config, seed=seed) for config in variants]
        )
        result.facts["next"] = _probe_next(task, seed, progress, controls=controls)
        return result


# --- which items does the trip hold? ---------------------------------------------------------------------------------


def _probe_trip(
    task: ProbeTask, default_affinity: float, seed: int, progress: Progress, variants: Sequence[bpr.BprConfig]
) -> ProbeResult:
    tried: list[RankingMetrics] = []
    if len(variants) > 1 and task.tuning_holdout and task.train.height and task.tuning_train.height:
        for number, config in enumerate(variants, 1):
            what = f"probe: variant {number} of {len(variants)}"
            ranker = _train(task.tuning_train, config, progress, what)
            tried.append(evaluate(task.tuning_holdout, ranker, new=False).per_user(task.sampled))
    best = variants[metrics.select_variant([each.auc for each in tried]) if tried else 0]
    model = _train(task.train, best, progress, "probe: final") if task.train.height else None
    ranked = _rank_test(task, model, default_affinity)
    figures = {key: found.per_user(task.sampled) for key, found in ranked.items()}
    facts = {
        "split": task.split,
        "negatives": list(task.negatives),
        "seed": seed,
        "triples": task.train.height,
        "tuned_on": task.tuned_on if tried else None,
        "variants": [
            {**asdict(config), "auc_when_tuned": intervals(found, seed)["auc"]}
            for config, found in zip(variants, tried, strict=False)
        ],
        "options": asdict(best),
        "unranked_places": task.unranked,
        "users_passed_over": task.counts.n_users - len(task.sampled),
        "users_sampled": len(task.sampled),
        "users_in_all": task.counts.n_users,
        "cities_sampled": len(task.counts.cities),
        **_trip_summary(figures, seed),
    }
    facts["verdict"] = {
        scope: verdict(_of_scope(facts, scope), what)
        for scope, what in (
            ("all", "the items of the next trip"),
            ("new", "the items of the next trip that are new to the user"),
        )
    }
    facts["cities"] = {
        city: _trip_summary({key: found.per_user(task.sampled, city) for key, found in ranked.items()}, seed)
        for city in _largest(ranked[RANDOM, "all"])
    }
    return ProbeResult(facts, best, figures)


def _train(triples: pl.DataFrame, config: bpr.BprConfig, progress: Progress, what: str) -> Ranker:
    model = bpr.train(triples, config, after_epoch=_follow(progress, what, config))
    return lambda group: model.scores(group.users, group.items)


def _follow(progress: Progress, what: str, config: bpr.BprConfig) -> Callable[[int], object]:
    return lambda number: progress(what, number, config.epochs)


def _rank_test(task: ProbeTask, model: Ranker | None, default_affinity: float) -> dict[tuple[str, str], GroupMetrics]:
    """Evaluate every ranking on test, over all items and over new ones."""
    rankers: dict[str, Ranker | None] = {
        MODEL: model,
        RANDOM: random_ranker,
        POPULARITY: popularity_ranker(task.counts.events),
        BY_USERS: popularity_ranker(task.counts.people),
        OWN_HISTORY: history_ranker(task.counts.events),
        HISTORY_BY_USERS: history_ranker(task.counts.people),
        AFFINITY: affinity_ranker(task.dataset, default_affinity),
    }
    return {
        (name, scope): evaluate(task.test, ranker, new=new)
        for name, ranker in rankers.items()
        if ranker is not None
        for scope, new in SCOPES.items()
    }


def _trip_summary(figures: Mapping[tuple[str, str], RankingMetrics], seed: int) -> dict[str, Any]:
    """Return the summary of each scope, by ranking and then by scope."""
    of_scope = {scope: {name: found for (name, at), found in figures.items() if at == scope} for scope in SCOPES}
    summaries = {scope: summarize(found, seed) for scope, found in of_scope.items()}
    turned = {
        part: {name: {scope: summaries[scope][part][name] for scope in SCOPES} for name in summaries["all"][part]}
        for part in ("rankings", "model_against")
    }
    return {"users": judged(of_scope["all"]), "users_with_new_places": judged(of_scope["new"]), **turned}


def _of_scope(facts: Mapping[str, Any], scope: str) -> dict[str, Any]:
    return {part: {name: found[scope] for name, found in facts[part].items()} for part in ("rankings", "model_against")}


def _largest(groups: GroupMetrics) -> list[str]:
    """Return the cities with the most evaluated groups, in the order of their bytes."""
    cities, sizes = np.unique(groups.cities[~np.isnan(groups.figures.auc)], return_counts=True)
    return sorted(cities[np.argsort(-sizes, kind="stable")[:MAX_CITIES]].tolist(), key=str.encode)


# --- which new item comes next? --------------------------------------------------------------------------------------


def _probe_next(task: ProbeTask, seed: int, progress: Progress, *, controls: bool) -> dict[str, Any]:
    """Return the facts about the next item. Without a table `next/`, those of the rankings that need no training."""
    features = next_item.ItemFeatures(task.counts.people, Coordinates.of(task.dataset.items))
    config = replace(next_item.CONFIG, seed=seed)
    rows = task.next_rows
    if rows is None and task.has_next:  # the published rows contain the held-out trips
        rows = next_item.draw_rows(_known_choices(task, task.selections, seed), features, np.random.default_rng(seed))
    model = None
    if rows is not None and rows.height:
        model = next_item.train(
            rows, features, _before(task.selections), config, _follow(progress, "probe: next item", config)
        )
    ranked = _rank_next(next_item.iter_choices(task.dataset, task.selections, ["test"], seed), features, model)
    facts = {
        "rows": 0 if rows is None else rows.height,
        "options": asdict(config),
        "slopes": None
        if model is None
        else dict(zip(next_item.FEATURES, map(float, model.parameters.slopes), strict=True)),
        **_next_summary(task, ranked, seed),
        "cities": {city: _next_summary(task, ranked, seed, city) for city in _largest(ranked[BY_USERS])},
    }
    known = not np.isnan(features.places.latitude + features.places.longitude).all()
    facts["verdict"] = next_verdict(facts, has_table=task.has_next, has_coordinates=known)
    if controls and model is not None:
        facts["controls"] = {
            name: _control(task, name, features, config, progress) for name in (RANDOM_PREVIOUS, SHUFFLED)
        }
    return facts


def _before(selections: pl.DataFrame) -> pl.DataFrame:
    return selections.filter(pl.col("split") != "test")


def _known_choices(task: ProbeTask, selections: pl.DataFrame, seed: int) -> Iterator[next_item.Choices]:
    """Yield the choices before test. Those of train know nothing of valid."""
    for parts in (["train"], ["train", "valid"]):
        known = selections.filter(pl.col("split").is_in(parts))
        yield from next_item.iter_choices(task.dataset, known, parts[-1:], seed)


def _rank_next(
    held: Iterable[next_item.Choices], features: next_item.ItemFeatures, model: bpr.Model | None
) -> dict[str, GroupMetrics]:
    scorers: dict[str, next_item.Scorer] = {
        BY_USERS: next_item.by_people,
        BY_DISTANCE: next_item.by_people_and_distance,
    }
    if model is not None:
        scorers[MODEL] = next_item.by_model(model)
    return next_item.evaluate(held, features, scorers)


def _next_summary(
    task: ProbeTask, ranked: Mapping[str, GroupMetrics], seed: int, city: str | None = None
) -> dict[str, Any]:
    figures = {name: found.per_user(task.sampled, city) for name, found in ranked.items()}
    groups = ranked[BY_USERS]
    here = ~np.isnan(groups.figures.auc) & ((groups.cities == city) if city is not None else True)
    summary = summarize(figures, seed)
    return {
        "users": judged(figures),
        "choices": int(here.sum()),
        **summary,
        "distance_against": {BY_USERS: intervals(figures[BY_DISTANCE] - figures[BY_USERS], seed)},
    }


def _control(
    task: ProbeTask, name: str, features: next_item.ItemFeatures, config: bpr.BprConfig, progress: Progress
) -> dict[str, Any]:
    """Train and evaluate a control: choices with a random previous item, or with days in random order."""
    rng, seed = np.random.default_rng(config.seed), config.seed
    selections = task.selections
    if name == SHUFFLED:
        selections = next_item.order_selections(task.kept_events, task.dataset.trips, rng)

    def alter(choices: Iterable[next_item.Choices]) -> Iterable[next_item.Choices]:
        return next_item.with_random_previous(choices, rng) if name == RANDOM_PREVIOUS else choices

    rows = next_item.draw_rows(alter(_known_choices(task, selections, seed)), features, rng)
    follow = _follow(progress, f"probe: control {name.replace('_', ' ')}", config)
    model = next_item.train(rows, features, _before(selections), config, follow)
    held = next_item.iter_choices(task.dataset, selections, ["test"], seed)
    return {"rows": rows.height, **_next_summary(task, _rank_next(alter(held), features, model), seed)}
