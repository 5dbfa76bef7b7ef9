"""BPR matrix factorisation in NumPy, small and seeded: a stand-in for what a trainer learns from triples.

Rendle et al. 2009 (BPR: Bayesian Personalized Ranking from Implicit Feedback): a user's score of an item is the item's
bias plus the inner product of their factors, and training makes the positive's score exceed the negative's. Training
minimises BPR-Opt,

    sum over triples of weight * -ln sigmoid(score(user, positive) - score(user, negative))
      + (user_penalty * |users|^2 + item_penalty * |items - initial items|^2
         + bias_penalty * |biases|^2 + slope_penalty * |slopes|^2) / 2

It differs from the paper in two points. A penalty counts once per parameter, as a prior, not once per triple: users with
few triples stay near the general popularity. And items are pulled towards their random initial vectors instead of towards
zero: these are orthogonal (nearly, with more items than factors), so that a user can prefer single items without also
preferring others. With a small `spread` it is the usual model, whose items begin near zero and differ only where the
triples require it.

Triples may have features, columns of the positive minus those of the negative (for a next item: the distance from the
previous one). Each has one slope, shared by all users, whose product with the feature is added to the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float32]

# Adam (Kingma & Ba 2015). The second decay is faster than theirs: training has hundreds of steps, not hundreds of thousands.
_BETA1, _BETA2, _EPSILON = 0.9, 0.99, 1e-8

# Up to this many (user, item) pairs per row of a batch, the gradient through matrices of users x items is faster than the one
# through rows of factors. Measured on one core with 64 and with 4 factors: equal at 100 to 150. Neither can replace the other:
# with 64 factors, 13,000 rows and 767 x 165 pairs take 0.6 against 15 ms, 1,000 rows and 625 x 4,800 pairs 17 against 0.9 ms.
_DENSE_PAIRS_PER_ROW = 128


@dataclass(frozen=True)
class BprConfig:
    """How to train. The defaults suit a catalogue of tens to hundreds of items that users come back to.

    Penalties are in units of triples. An epoch passes over all triples once, or over the next `triples_per_epoch` of them
    where there are more, in at most `steps` batches. No batch (but an epoch's only one) is smaller than `smallest_batch`, so
    that the number of steps is bounded. `spread` is the length of the items' initial vectors. The learning rate falls
    linearly to zero. Raises ValueError for values out of range.
    """

    factors: int = 64
    rate: float = 0.1
    user_penalty: float = 3.0
    item_penalty: float = 100.0
    bias_penalty: float = 1.0
    slope_penalty: float = 1.0
    spread: float = 1.0
    epochs: int = 20
    steps: int = 50
    smallest_batch: int = 512
    triples_per_epoch: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        counts = self.factors, self.epochs, self.steps, self.smallest_batch, self.triples_per_epoch
        penalties = self.user_penalty, self.item_penalty, self.bias_penalty, self.slope_penalty
        numbers = self.rate, *penalties, self.spread
        if min(counts) < 1 or self.seed < 0 or not all(np.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"Counts begin at 1, other numbers are finite and not below 0: {self}.")


VARIANTS = (
    BprConfig(),
    BprConfig(factors=4, spread=0.1, user_penalty=50, item_penalty=100),
    BprConfig(factors=8, spread=0.1, user_penalty=50, item_penalty=100),
    BprConfig(factors=16, spread=0.1, user_penalty=50, item_penalty=50),
)
"""The variants that a probe tries. The first is the default; see `etl.evaluation.metrics.select_variant`.

The default learns each user's own items. The others learn a few tastes that many users share, and are better where users
seldom come back to an item.
"""


class Parameters(NamedTuple):
    """A model's parameters or their gradient.

    All are float32: `users` (n_users, factors), `items` (n_items, factors), `biases` (n_items), `slopes` (n_features).
    """

    users: Floats
    items: Floats
    biases: Floats
    slopes: Floats


class Model(Parameters):
    """A trained model."""

    __slots__ = ()

    def scores(self, user_codes: Ints, item_codes: Ints | slice = slice(None)) -> Floats:
        """Return the score of these items, by default all, for these users: (users, items), float32, higher is better.

        Without the features' part: the caller adds the features times `slopes`. Only differences within a row are
        meaningful. A user without triples has the biases as scores. Raises IndexError for an unknown code.
        """
        scores: Floats = self.users[user_codes] @ self.items[item_codes].T + self.biases[item_codes]
        return scores


def train(  # noqa: PLR0913 - the columns of triples, the numbers of codes, and how to train
    users: Ints,
    positives: Ints,
    negatives: Ints,
    weights: npt.NDArray[np.floating] | None,
    n_users: int,
    n_items: int,
    options: BprConfig = BprConfig(),
    *,
    features: Floats | None = None,
    after_epoch: Callable[[int, float], object] = lambda _number, _loss: None,
) -> Model:
    """Train a model on the triples (users[t], positives[t], negatives[t]) with weights[t] (None: all 1).

    `features` (triples, n_features) are those of the positive minus those of the negative; None: there are none. Codes are 0
    to n_users - 1 and 0 to n_items - 1. `after_epoch` is called after every epoch with its number, from 1, and its loss, the
    weighted mean of -ln sigmoid(score difference); ln 2 is chance. The same triples in the same order with the same options
    give the same model, on one machine with one number of BLAS threads. Without triples all scores are 0. Raises ValueError
    for columns of unequal length, codes out of range, weights that are negative or not finite, and features that are not
    finite.
    """
    steps = _steps(len(users), options)
    rows = min(len(users), options.triples_per_epoch) // steps
    triples = _Triples(users, positives, negatives, weights, (n_users, n_items), features, rows)
    if len(triples) == 0:
        zeros = np.zeros((n_users + n_items, options.factors), np.float32)
        slopes = np.zeros(triples.features.shape[1], np.float32)
        return Model(zeros[:n_users], zeros[n_users:], np.zeros(n_items, np.float32), slopes)
    rng = np.random.default_rng(options.seed)
    optimizer = _Adam(rng, n_users, n_items, triples.features.shape[1], options)
    done = 0
    for number, epoch in enumerate(_epochs(rng, len(triples), options), 1):
        loss = weight = 0.0
        for batch in epoch:
            found = triples.gradient(optimizer.parameters, batch)
            optimizer.step(found.gradient, len(triples) / len(batch), 1 - done / (options.epochs * steps))
            loss, weight, done = loss + found.loss, weight + found.weight, done + 1
        after_epoch(number, loss / weight if weight > 0 else 0.0)
    return Model(*optimizer.parameters)


class IndexedModel(NamedTuple):
    """A model of users and items with any indexes: `users` and `items` are those with triples, ascending.

    Its parameters have one more row each, of zeros, for all others.
    """

    users: Ints
    items: Ints
    model: Model

    def scores(self, users: Ints, items: Ints) -> Floats:
        """Return the score of these items for these users, as `Model.scores` does; of unknown items 0."""
        return self.model.scores(_places(self.users, users), _places(self.items, items))


def train_indexed(
    users: Ints, positives: Ints, negatives: Ints, weights: npt.NDArray[np.floating] | None, **options: Any
) -> IndexedModel:
    """Train a model that has parameters for the users and items of the triples alone, however many there are. See `train`."""
    user, users = np.unique(users, return_inverse=True)
    item, pairs = np.unique(np.concatenate([positives, negatives]), return_inverse=True)
    positives, negatives = np.split(pairs, 2)
    trained = train(users, positives, negatives, weights, len(user), len(item), **options)
    factors, items, biases = (
        np.concatenate([each, np.zeros((1, *each.shape[1:]), np.float32)]) for each in trained[:3]
    )
    return IndexedModel(user, item, Model(factors, items, biases, trained.slopes))


def _places(known: Ints, indexes: Ints) -> Ints:
    """Return where indexes are in the sorted `known`, and its length for those that are not."""
    place = np.searchsorted(known, indexes)
    return np.where(np.append(known, -1)[place] == indexes, place, len(known))


def _steps(n_triples: int, options: BprConfig) -> int:
    """Return the number of batches of an epoch."""
    per_epoch = min(n_triples, options.triples_per_epoch)
    return max(1, min(options.steps, per_epoch // options.smallest_batch))


def _epochs(rng: np.random.Generator, n_triples: int, options: BprConfig) -> Iterator[list[Ints]]:
    """Yield each epoch's batches of row numbers. Every pass over the triples is shuffled, and has no row twice."""
    per_epoch, steps = min(n_triples, options.triples_per_epoch), _steps(n_triples, options)
    order = np.arange(n_triples)
    start = n_triples
    for _ in range(options.epochs):
        if start + per_epoch > n_triples:  # what is left of the pass is less than an epoch: shuffle again
            rng.shuffle(order)
            start = 0
        yield np.array_split(order[start : start + per_epoch], steps)
        start += per_epoch


class BatchGradient(NamedTuple):
    """The gradient of a batch's loss, the loss, and the sum of the weights."""

    gradient: Parameters
    loss: float
    weight: float


class _Triples:
    """The validated columns of triples, and the gradient of a batch of them."""

    def __init__(
        self,
        users: Ints,
        positives: Ints,
        negatives: Ints,
        weights: npt.NDArray[np.floating] | None,
        shape: tuple[int, int],
        features: Floats | None = None,
        rows_per_batch: int = 0,
    ) -> None:
        columns = [users, positives, negatives, users if weights is None else weights]
        if any(column.shape != (len(users),) for column in columns):
            raise ValueError(f"Columns of triples have one length, not {[column.shape for column in columns]}.")
        _check_codes("user", users, shape[0])
        _check_codes("positive", positives, shape[1])
        _check_codes("negative", negatives, shape[1])
        if weights is not None and not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("A weight is below 0 or not finite.")
        self.features = np.zeros((len(users), 0), np.float32) if features is None else features
        if self.features.shape[:1] != users.shape or not np.isfinite(self.features).all():
            raise ValueError("Features have one row per triple, and are finite.")
        self.users, self.positives, self.negatives = (
            column.astype(np.int32, copy=False) for column in (users, positives, negatives)
        )
        self.shape = shape
        self.weights = None if weights is None else weights.astype(np.float32)
        dense = shape[0] * shape[1] <= _DENSE_PAIRS_PER_ROW * rows_per_batch
        self.gradient = self._dense_gradient if dense else self._sparse_gradient

    def __len__(self) -> int:
        return len(self.users)

    def _dense_gradient(self, parameters: Parameters, batch: Ints) -> BatchGradient:
        """Return the gradient through matrices of users x items: the scores, then the sums of the pulls."""
        users, items, biases, slopes = parameters
        scores = (users @ items.T + biases).ravel()
        row = self.users[batch].astype(np.int64) * self.shape[1]
        pairs = np.concatenate([row + self.positives[batch], row + self.negatives[batch]])
        positive, negative = np.split(scores[pairs], 2)
        features = self.features[batch]
        pull, loss, weight = self._loss_gradient(positive - negative + features @ slopes, batch)
        summed = np.bincount(pairs, np.concatenate([-pull, pull]), len(scores))
        pulls = summed.astype(np.float32).reshape(self.shape)
        gradient = Parameters(pulls @ items, pulls.T @ users, pulls.sum(axis=0), -pull @ features)
        return BatchGradient(gradient, loss, weight)

    def _sparse_gradient(self, parameters: Parameters, batch: Ints) -> BatchGradient:
        """Return the same through rows of factors, one per triple: for more pairs than fit into memory."""
        u, i, j = self.users[batch], self.positives[batch], self.negatives[batch]
        own, item_difference = parameters.users[u], parameters.items[i] - parameters.items[j]
        features = self.features[batch]
        score_difference = np.einsum("tf,tf->t", own, item_difference) + parameters.biases[i] - parameters.biases[j]
        score_difference += features @ parameters.slopes
        pull, loss, weight = self._loss_gradient(score_difference, batch)
        n_users, n_items = self.shape
        pulled = pull[:, None] * own
        gradient = Parameters(
            _scatter_add(u, -pull[:, None] * item_difference, n_users),
            _scatter_add(j, pulled, n_items) - _scatter_add(i, pulled, n_items),
            (np.bincount(j, pull, n_items) - np.bincount(i, pull, n_items)).astype(np.float32),
            -pull @ features,
        )
        return BatchGradient(gradient, loss, weight)

    def _loss_gradient(self, difference: Floats, batch: Ints) -> tuple[Floats, float, float]:
        """Return minus the derivative of each triple's loss by its score difference, and the sums of losses and weights."""
        half = np.float32(0.5)
        pull = half - half * np.tanh(half * difference)  # sigmoid(-difference), without overflow
        loss = np.maximum(-difference, 0) + np.log1p(np.exp(-np.abs(difference)))
        if self.weights is None:
            return pull, float(loss.sum()), float(len(batch))
        weights = self.weights[batch]
        return pull * weights, float(loss @ weights), float(weights.sum())


def _check_codes(name: str, codes: Ints, count: int) -> None:
    if len(codes) and not (codes.min() >= 0 and codes.max() < count):
        raise ValueError(f"A {name}'s code is not in 0 to {count - 1}: they are {codes.min()} to {codes.max()}.")


def _scatter_add(codes: Ints, rows: Floats, count: int) -> Floats:
    """Return the sum of the rows with code c as row c."""
    # Sorting first is several times faster than np.add.at.
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sums = np.zeros((count, rows.shape[1]), np.float32)
    sums[ordered[starts]] = np.add.reduceat(rows[order], starts, axis=0)
    return sums


class _Adam:
    """The parameters, and the Adam optimizer of the batches' loss and of the penalties."""

    def __init__(
        self, rng: np.random.Generator, n_users: int, n_items: int, n_features: int, options: BprConfig
    ) -> None:
        # Users begin at zero, so that their own items move them first.
        users = np.zeros((n_users, options.factors), np.float32)
        items = _random_orthogonal(rng, n_items, options.factors) * np.float32(options.spread)
        biases, slopes = np.zeros(n_items, np.float32), np.zeros(n_features, np.float32)
        self.parameters = Parameters(users, items, biases, slopes)
        self.origins = Parameters(*map(np.copy, self.parameters))
        self.penalties = options.user_penalty, options.item_penalty, options.bias_penalty, options.slope_penalty
        self.first = Parameters(*map(np.zeros_like, self.parameters))
        self.second = Parameters(*map(np.zeros_like, self.parameters))
        self.rate, self.steps = options.rate, 0

    def step(self, gradient: Parameters, scale: float, share_of_rate: float) -> None:
        """Take a step. The batch's gradient counts `scale` times, since the batch stands for all triples."""
        self.steps += 1
        rate = self.rate * share_of_rate * np.sqrt(1 - _BETA2**self.steps) / (1 - _BETA1**self.steps)
        for slope, penalty, parameter, origin, first, second in zip(
            gradient, self.penalties, self.parameters, self.origins, self.first, self.second, strict=True
        ):
            whole = slope * np.float32(scale) + np.float32(penalty) * (parameter - origin)
            np.add(first, np.float32(1 - _BETA1) * (whole - first), out=first)
            np.add(second, np.float32(1 - _BETA2) * (whole * whole - second), out=second)
            np.subtract(parameter, np.float32(rate) * first / (np.sqrt(second) + np.float32(_EPSILON)), out=parameter)


def _random_orthogonal(rng: np.random.Generator, n: int, factors: int) -> Floats:
    """Return random unit vectors (n, factors); of each `factors` consecutive ones, all are orthogonal."""
    squares = np.linalg.qr(rng.standard_normal((-(-n // factors), factors, factors))).Q
    vectors: Floats = squares.reshape(-1, factors)[:n].astype(np.float32)
    return vectors
