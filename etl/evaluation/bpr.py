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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.snapshots.encoding import INDEXES

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
    linearly to zero.
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


class Model(NamedTuple):
    """A trained model. `users` and `items` are the indexes that have triples, ascending.

    Users and items have one more row of parameters, of zeros, for all others.
    """

    users: Ints
    items: Ints
    parameters: Parameters

    def scores(self, users: Ints, items: Ints) -> Floats:
        """Return the score of these items for these users: (users, items), float32, higher is better.

        Without the features' part: the caller adds the features times the slopes. Only differences within a row are
        meaningful. An unknown user has the biases as scores, an unknown item 0.
        """
        own, others, biases, _ = self.parameters
        item = _places(self.items, items)
        scores: Floats = own[_places(self.users, users)] @ others[item].T + biases[item]
        return scores


def _places(known: Ints, indexes: Ints) -> Ints:
    """Return where indexes are in the sorted `known`, and its length for those that are not."""
    place = np.searchsorted(known, indexes)
    return np.where(np.append(known, -1)[place] == indexes, place, len(known))


def train(
    triples: pl.DataFrame,
    options: BprConfig = BprConfig(),
    *,
    features: Floats | None = None,
    after_epoch: Callable[[int], object] = lambda _number: None,
) -> Model:
    """Train a model on triples: `user_idx`, `pos_idx`, `neg_idx`, `weight`. It has parameters for their users and items alone.

    `features` (triples, n_features) are those of the positive minus those of the negative; None: there are none.
    `after_epoch` is called after every epoch with its number, from 1. The same triples in the same order with the same options
    give the same model, on one machine with one number of BLAS threads. Without triples all scores are 0.
    """
    columns = (triples[name].to_numpy() for name in INDEXES.values())
    user, users = np.unique(next(columns), return_inverse=True)
    item, pairs = np.unique(np.concatenate(list(columns)), return_inverse=True)
    positives, negatives = np.split(pairs.astype(np.int32), 2)
    features = np.zeros((len(users), 0), np.float32) if features is None else features
    every = _Batch(
        users.astype(np.int32), positives, negatives, triples["weight"].cast(pl.Float32).to_numpy(), features
    )
    steps = _steps(len(users), options)
    rows = min(len(users), options.triples_per_epoch) // steps
    gradient = _dense_gradient if len(user) * len(item) <= _DENSE_PAIRS_PER_ROW * rows else _sparse_gradient
    rng = np.random.default_rng(options.seed)
    optimizer = _Adam(rng, len(user), len(item), features.shape[1], options)
    done = 0
    for number, epoch in enumerate(_epochs(rng, len(users), options), 1):
        for batch in epoch:
            found = gradient(optimizer.parameters, _Batch._make(column[batch] for column in every))
            optimizer.step(found, len(users) / len(batch), 1 - done / (options.epochs * steps))
            done += 1
        after_epoch(number)
    *known, slopes = optimizer.parameters
    padded = (np.concatenate([each, np.zeros((1, *each.shape[1:]), np.float32)]) for each in known)
    return Model(user, item, Parameters._make([*padded, slopes]))


def _steps(n_triples: int, options: BprConfig) -> int:
    """Return the number of batches of an epoch."""
    per_epoch = min(n_triples, options.triples_per_epoch)
    return max(1, min(options.steps, per_epoch // options.smallest_batch))


def _epochs(rng: np.random.Generator, n_triples: int, options: BprConfig) -> Iterator[list[Ints]]:
    """Yield each epoch's batches of row numbers. Every pass over the triples is shuffled, and has no row twice."""
    per_epoch, steps = min(n_triples, options.triples_per_epoch), _steps(n_triples, options)
    order = np.arange(n_triples)
    start = n_triples
    for _ in range(options.epochs if n_triples else 0):
        if start + per_epoch > n_triples:  # what is left of the pass is less than an epoch: shuffle again
            rng.shuffle(order)
            start = 0
        yield np.array_split(order[start : start + per_epoch], steps)
        start += per_epoch


class _Batch(NamedTuple):
    """Columns of triples of one length. Users and items are rows of the parameters."""

    users: Ints
    positives: Ints
    negatives: Ints
    weights: Floats
    features: Floats

    def pull(self, difference: Floats) -> Floats:
        """Return minus the derivative of each triple's loss by its score difference."""
        half = np.float32(0.5)
        chance: Floats = half - half * np.tanh(half * difference)  # sigmoid(-difference), without overflow
        return chance * self.weights


def _dense_gradient(parameters: Parameters, batch: _Batch) -> Parameters:
    """Return the gradient through matrices of users x items: the scores, then the sums of the pulls."""
    users, items, biases, slopes = parameters
    scores = (users @ items.T + biases).ravel()
    row = batch.users.astype(np.int64) * len(items)
    pairs = np.concatenate([row + batch.positives, row + batch.negatives])
    positive, negative = np.split(scores[pairs], 2)
    pull = batch.pull(positive - negative + batch.features @ slopes)
    summed = np.bincount(pairs, np.concatenate([-pull, pull]), len(scores))
    pulls = summed.astype(np.float32).reshape(len(users), len(items))
    return Parameters(pulls @ items, pulls.T @ users, pulls.sum(axis=0), -pull @ batch.features)


def _sparse_gradient(parameters: Parameters, batch: _Batch) -> Parameters:
    """Return the same through rows of factors, one per triple: for more pairs than fit into memory."""
    users, items, biases, slopes = parameters
    u, i, j, _, features = batch
    own, item_difference = users[u], items[i] - items[j]
    pull = batch.pull(np.einsum("tf,tf->t", own, item_difference) + biases[i] - biases[j] + features @ slopes)
    pulled = pull[:, None] * own
    return Parameters(
        _scatter_add(u, -pull[:, None] * item_difference, len(users)),
        _scatter_add(j, pulled, len(items)) - _scatter_add(i, pulled, len(items)),
        (np.bincount(j, pull, len(items)) - np.bincount(i, pull, len(items))).astype(np.float32),
        -pull @ features,
    )


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
