"""Ranking metrics: AUC, NDCG and Recall per group, and the confidence interval of their mean.

A group is a list to be ranked: in a probe, the items of a city for a user. Groups are rows and items are columns. Masks say
which items are in a group's list (`candidates`) and which of those are relevant (`positives`). Ties are never broken by the
order of the columns: every metric is the mean over all orders of the tied items (McSherry & Najork 2008, "Computing
Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores"), so that a constant score is as good
as chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


class RankingMetrics(NamedTuple):
    """One value per group or user, in their order; nan without a positive or without a negative."""

    auc: Floats
    ndcg: Floats
    recall: Floats

    def __sub__(self, other: RankingMetrics) -> RankingMetrics:
        """Return the differences, nan where either side has no value."""
        return RankingMetrics(*map(np.subtract, self, other))


class GroupMetrics(NamedTuple):
    """The metrics of groups, with the user and the city of each."""

    users: npt.NDArray[np.integer]
    cities: npt.NDArray[np.str_]
    figures: RankingMetrics

    @classmethod
    def of(cls, users: npt.NDArray[np.integer], city: str, figures: RankingMetrics) -> GroupMetrics:
        """Return the metrics of one city's groups."""
        return cls(users, np.full(len(users), city), figures)

    @classmethod
    def concat(cls, parts: Iterable[GroupMetrics]) -> GroupMetrics:
        """Join the groups of several metrics."""
        none = cls(np.zeros(0, np.int64), np.zeros(0, np.str_), RankingMetrics(*np.zeros((3, 0))))
        users, cities, figures = zip(none, *parts, strict=True)
        return cls(
            np.concatenate(users),
            np.concatenate(cities),
            RankingMetrics(*map(np.concatenate, zip(*figures, strict=True))),
        )

    def per_user(self, users: npt.NDArray[np.integer], city: str | None = None) -> RankingMetrics:
        """Return the mean of each user's groups, in all cities or in one; nan for users without a value.

        `users` are the users to return, ascending; all that have groups are among them.
        """
        known = np.ones(len(self.users), np.bool_) if city is None else self.cities == city
        owners = np.searchsorted(users, self.users[known])
        return RankingMetrics(*(mean_per_user(column[known], owners, len(users)) for column in self.figures))


def ranking_metrics(
    scores: npt.NDArray[np.floating], candidates: Bools, positives: Bools, k: int = 10
) -> RankingMetrics:
    """Return AUC, NDCG and Recall of groups. All arrays are of shape (groups, items); items that are no candidates are ignored.

    - auc: the share of (positive, negative) pairs in the right order; a tie counts half.
    - ndcg: gains of 1 / log2(rank + 1) of the positives among the first `k`, over the highest possible sum (Järvelin &
      Kekäläinen 2002, "Cumulated Gain-Based Evaluation of IR Techniques", with binary relevance).
    - recall: the positives among the first `k`, over all positives; with more than `k` positives it is below 1.

    Scores may be infinite. Raises ValueError for a candidate whose score is nan.
    """
    if np.isnan(scores, where=candidates, out=np.zeros(scores.shape, np.bool_)).any():
        raise ValueError("A candidate's score is not a number.")
    relevant = positives & candidates
    n_items, n_positives = candidates.sum(axis=1), relevant.sum(axis=1)
    n_negatives = n_items - n_positives
    judged = (n_positives > 0) & (n_negatives > 0)
    start, end, hit = _ties(scores, candidates, relevant)
    discounts = np.zeros(scores.shape[1])
    discounts[:k] = 1 / np.log2(np.arange(2, len(discounts[:k]) + 2))
    gained, ideal = _prefix_sums(discounts), _prefix_sums(discounts)[n_positives]
    counted = _prefix_sums((discounts > 0).astype(np.float64))
    size = end - start
    # Of a positive: the items behind its ties, and half of those that it is tied with.
    behind = n_items[:, None] - end + (size - 1) / 2
    pairs = np.where(hit, behind, 0).sum(axis=1) - n_positives * (n_positives - 1) / 2
    return RankingMetrics(
        _ratio(pairs, n_positives * n_negatives, judged),
        _ratio(np.where(hit, (gained[end] - gained[start]) / size, 0).sum(axis=1), ideal, judged),
        _ratio(np.where(hit, (counted[end] - counted[start]) / size, 0).sum(axis=1), n_positives, judged),
    )


def _ties(
    scores: npt.NDArray[np.floating], candidates: Bools, relevant: Bools
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Bools]:
    """Sort the items of each group from the best to the worst, non-candidates last.

    Returns for each: the number of items before its ties, the same including its ties, and whether it is a positive.
    """
    shown = np.where(candidates, scores, -np.inf)
    order = np.lexsort((-shown, ~candidates), axis=-1)
    ordered, inside = np.take_along_axis(shown, order, 1), np.take_along_axis(candidates, order, 1)
    position = np.arange(scores.shape[1])
    first = np.ones(scores.shape, np.bool_)
    first[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]) | (inside[:, 1:] != inside[:, :-1])
    last = np.ones(scores.shape, np.bool_)
    last[:, :-1] = first[:, 1:]
    start = np.maximum.accumulate(np.where(first, position, 0), axis=1)
    end = np.minimum.accumulate(np.where(last, position + 1, scores.shape[1])[:, ::-1], axis=1)[:, ::-1]
    return start, end, np.take_along_axis(relevant, order, 1)


def _prefix_sums(values: npt.NDArray[np.floating]) -> Floats:
    """Return the sum of the first r values as element r."""
    return np.concatenate([np.zeros(1), np.cumsum(values, dtype=np.float64)])


def _ratio(parts: npt.NDArray[np.number], wholes: npt.NDArray[np.number], judged: Bools) -> Floats:
    ratios: Floats = np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=judged)
    return ratios


def mean_per_user(values: Floats, owners: npt.NDArray[np.integer], n_owners: int) -> Floats:
    """Return the mean of each owner's groups, of shape (n_owners,); nan for owners without a value.

    `owners` has each group's owner, 0 to n_owners - 1: a user with test trips to two cities counts once.
    """
    known = ~np.isnan(values)
    count = np.bincount(owners[known], minlength=n_owners)
    total = np.bincount(owners[known], values[known], minlength=n_owners)
    return _ratio(total, count, count > 0)


@dataclass(frozen=True)
class Interval:
    """A mean of `n` values with its bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(values: Floats, seed: int) -> Interval:
    """Return the mean of the values that aren't nan, with the interval of 95% of 1,000 resamples (Efron 1979, percentiles).

    There is one value per user: users are resampled, with replacement. For a paired comparison pass the differences. The same
    values and seed give the same interval. Without values all is nan.
    """
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    means = _resamples(len(known), seed) @ known / len(known)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(known.mean()), float(low), float(high), len(known))


@lru_cache(maxsize=2)
def _resamples(size: int, seed: int) -> Floats:
    """Return how often each of `size` values is in each of 1,000 resamples: one row per resample."""
    # Kept for the next call: a probe asks for a hundred intervals over the same users.
    rng = np.random.default_rng(seed)
    drawn = (np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(1000))
    return np.array(list(drawn), np.float64)


def select_variant(trials: Sequence[Floats]) -> int:
    """Return the number of the best trial: 0, unless another is better by more than chance explains.

    Every trial has one value per user, in the same order, higher is better, nan if a user has none. Another trial is
    better when the mean of its differences to number 0 exceeds two standard errors of that mean; of these the one with
    the highest mean is returned, the first of equals.
    """
    # On a small validation part the highest mean alone would be a lottery. Breiman et al. 1984, "Classification and Regression
    # Trees", have a rule of one standard error; they fall back on the simplest tree, we on the default.
    best, highest = 0, 0.0
    for number, trial in enumerate(trials):
        gain = trial - trials[0]
        gain = gain[~np.isnan(gain)]
        if len(gain) < 2:
            continue
        mean = float(gain.mean())
        if mean > max(highest, 2 * float(gain.std(ddof=1)) / np.sqrt(len(gain))):
            best, highest = number, mean
    return best
