"""BPR matrix factorisation, small and seeded, in NumPy alone: what a trainer would learn from triples.

Rendle et al. 2009 (BPR: Bayesian Personalized Ranking from Implicit Feedback): a user's score of an item is the item's
bias plus the inner product of their factors, and training makes the positive's score exceed the negative's. What is
minimised is BPR-Opt,

    sum over triples of weight * -ln sigmoid(score(user, positive) - score(user, negative))
      + (user_penalty * |users|^2 + item_penalty * |items - where they began|^2 + bias_penalty * |biases|^2) / 2

Two things are ours. A penalty counts once, as the prior's that it is, not once per triple that names the user: who has
few triples stays near what everybody likes. And items are drawn to the random vectors they began with instead of to
nought: such vectors stand at right angles (or nearly, when there are more items than factors), so a user can know her
own places by heart without liking others for it. With a small `spread` that is the usual model again, whose items begin
near nought and differ only where users' choices bear it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float32]

# Adam (Kingma & Ba 2015), whose second decay is faster here: training has hundreds of steps, not hundreds of thousands.
_FIRST, _SECOND, _TINY = 0.9, 0.99, 1e-8

# With at most this many (user, item) pairs, matrices of users x items are the fast way. Measured on one core with 64
# factors: six times as fast at 750 x 165, as fast at some 3 million pairs.
_MOST_PAIRS = 3_000_000


@dataclass(frozen=True)
class BprConfig:
    """How to train. The defaults suit a catalogue of tens to hundreds of items that users come back to.

    A penalty is in units of triples. An epoch passes over all triples once, or over the next `triples_per_epoch` of them
    where there are more, in at most `steps` batches, none (but an epoch's only one) smaller than `smallest_batch`: the
    number of steps is bounded whatever the number of triples. `spread` is the length of the vectors that items begin
    with. The rate falls in a straight line to nought. Raises ValueError for what makes no sense.
    """

    factors: int = 64
    rate: float = 0.1
    user_penalty: float = 3.0
    item_penalty: float = 100.0
    bias_penalty: float = 1.0
    spread: float = 1.0
    epochs: int = 20
    steps: int = 50
    smallest_batch: int = 512
    triples_per_epoch: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        counts = self.factors, self.epochs, self.steps, self.smallest_batch, self.triples_per_epoch
        numbers = self.rate, self.user_penalty, self.item_penalty, self.bias_penalty, self.spread
        if min(counts) < 1 or self.seed < 0 or not all(np.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError(f"Counts begin at 1, other numbers are finite and not below 0: {self}.")


VARIANTS = (
    BprConfig(),
    BprConfig(factors=4, spread=0.1, user_penalty=50, item_penalty=100),
    BprConfig(factors=8, spread=0.1, user_penalty=50, item_penalty=100),
    BprConfig(factors=16, spread=0.1, user_penalty=50, item_penalty=50),
)
"""What to try on a validation part. The first is the default; `etl.evaluation.metrics.choose` leaves it for good reasons only.

It learns each user's own places by heart. The others learn a few tastes that many share, and forget who was where: they
are better where users seldom come back to a place.
"""


class Parameters(NamedTuple):
    """`users` (n_users, factors), `items` (n_items, factors), `biases` (n_items), all float32: a model's or a gradient's."""

    users: Floats
    items: Floats
    biases: Floats


class Model(Parameters):
    """What was learnt."""

    __slots__ = ()

    def scores(self, user_codes: Ints) -> Floats:
        """Every item's score for these users, in their order: (len(user_codes), n_items), float32, a higher one is better.

        Only differences within a row mean something. A user without triples has the biases alone. Raises IndexError for
        a code that the model does not have.
        """
        scores: Floats = self.users[user_codes] @ self.items.T + self.biases
        return scores


@dataclass(frozen=True)
class Epoch:
    """How far training is: `number` (from 1) of `epochs` are done, and the model is this now.

    `loss` is the weighted mean of -ln sigmoid(lead) over the epoch's triples, each as it was met: ln 2 is chance.
    """

    number: int
    epochs: int
    loss: float
    model: Model


def train(  # noqa: PLR0913 - a triple's columns, how many codes there are, and how to train
    users: Ints,
    positives: Ints,
    negatives: Ints,
    weights: npt.NDArray[np.floating] | None,
    n_users: int,
    n_items: int,
    options: BprConfig = BprConfig(),
    *,
    after_epoch: Callable[[Epoch], object] | None = None,
) -> Model:
    """A model of the triples (users[t], positives[t], negatives[t]), which weigh weights[t] each (None: all weigh 1).

    Codes are 0 to n_users - 1 and 0 to n_items - 1. `after_epoch` is told of every epoch. The same triples in the same
    order and the same options give the same model on one machine, with one number of BLAS threads. Without triples all
    scores are nought. Raises ValueError for columns of unequal length, codes out of range, and weights that are negative
    or not finite.
    """
    triples = _Triples(users, positives, negatives, weights, (n_users, n_items))
    if len(triples) == 0:
        nothing = np.zeros((n_users + n_items, options.factors), np.float32)
        return Model(nothing[:n_users], nothing[n_users:], np.zeros(n_items, np.float32))
    rng = np.random.default_rng(options.seed)
    descent = _Adam(rng, n_users, n_items, options)
    steps, done = _steps(len(triples), options), 0
    for number, epoch in enumerate(_epochs(rng, len(triples), options), 1):
        loss = weight = 0.0
        for batch in epoch:
            met = triples.meet(descent.parameters, batch)
            descent.step(met.gradient, len(triples) / len(batch), 1 - done / (options.epochs * steps))
            loss, weight, done = loss + met.loss, weight + met.weight, done + 1
        if after_epoch is not None:
            mean = loss / weight if weight > 0 else 0.0
            after_epoch(Epoch(number, options.epochs, mean, descent.model()))
    return descent.model()


def _steps(n_triples: int, options: BprConfig) -> int:
    """How many batches an epoch has."""
    met = min(n_triples, options.triples_per_epoch)
    return max(1, min(options.steps, met // options.smallest_batch))


def _epochs(rng: np.random.Generator, n_triples: int, options: BprConfig) -> Iterator[list[Ints]]:
    """For each epoch its batches of row numbers. No row comes again within a pass, and a pass is shuffled anew."""
    met, steps = min(n_triples, options.triples_per_epoch), _steps(n_triples, options)
    order = np.arange(n_triples)
    start = n_triples
    for _ in range(options.epochs):
        if start + met > n_triples:  # the rest of a pass, less than an epoch, waits for the next shuffle
            rng.shuffle(order)
            start = 0
        yield np.array_split(order[start : start + met], steps)
        start += met


class BatchGradient(NamedTuple):
    """What a batch says: the gradient of its loss, the loss, and the sum of its weights."""

    gradient: Parameters
    loss: float
    weight: float


class _Triples:
    """The triples' columns, checked, and the gradient of a batch of them."""

    def __init__(
        self,
        users: Ints,
        positives: Ints,
        negatives: Ints,
        weights: npt.NDArray[np.floating] | None,
        shape: tuple[int, int],
    ) -> None:
        columns = [users, positives, negatives, users if weights is None else weights]
        if any(column.shape != (len(users),) for column in columns):
            raise ValueError(f"Columns of triples have one length, not {[column.shape for column in columns]}.")
        _check_codes("user", users, shape[0])
        _check_codes("positive", positives, shape[1])
        _check_codes("negative", negatives, shape[1])
        if weights is not None and not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("A weight is below 0 or not finite.")
        self.users, self.positives, self.negatives = (
            column.astype(np.int32, copy=False) for column in (users, positives, negatives)
        )
        self.shape = shape
        self.weights = None if weights is None else weights.astype(np.float32)
        self.meet = self._dense_gradient if shape[0] * shape[1] <= _MOST_PAIRS else self._sparse_gradient

    def __len__(self) -> int:
        return len(self.users)

    def _dense_gradient(self, parameters: Parameters, batch: Ints) -> BatchGradient:
        """Through matrices of users x items: the scores before, the sum of pulls after; no factors per triple."""
        users, items, biases = parameters
        scores = (users @ items.T + biases).ravel()
        row = self.users[batch].astype(np.int64) * self.shape[1]
        pairs = np.concatenate([row + self.positives[batch], row + self.negatives[batch]])
        positive, negative = np.split(scores[pairs], 2)
        pull, loss, weight = self._loss_gradient(positive - negative, batch)
        summed = np.bincount(pairs, np.concatenate([-pull, pull]), len(scores))
        pulls = summed.astype(np.float32).reshape(self.shape)
        return BatchGradient(Parameters(pulls @ items, pulls.T @ users, pulls.sum(axis=0)), loss, weight)

    def _sparse_gradient(self, parameters: Parameters, batch: Ints) -> BatchGradient:
        """The same through rows of factors, one per triple: for when there are too many pairs to hold."""
        u, i, j = self.users[batch], self.positives[batch], self.negatives[batch]
        own, apart = parameters.users[u], parameters.items[i] - parameters.items[j]
        lead = np.einsum("tf,tf->t", own, apart) + parameters.biases[i] - parameters.biases[j]
        pull, loss, weight = self._loss_gradient(lead, batch)
        n_users, n_items = self.shape
        pulled = pull[:, None] * own
        gradient = Parameters(
            _scatter_add(u, -pull[:, None] * apart, n_users),
            _scatter_add(j, pulled, n_items) - _scatter_add(i, pulled, n_items),
            (np.bincount(j, pull, n_items) - np.bincount(i, pull, n_items)).astype(np.float32),
        )
        return BatchGradient(gradient, loss, weight)

    def _loss_gradient(self, lead: Floats, batch: Ints) -> tuple[Floats, float, float]:
        """How hard each triple pulls, which is minus the slope of its loss in its lead; their loss and weight."""
        pull = np.float32(0.5) - np.float32(0.5) * np.tanh(np.float32(0.5) * lead)  # sigmoid(-lead), never overflowing
        loss = np.maximum(-lead, 0) + np.log1p(np.exp(-np.abs(lead)))
        if self.weights is None:
            return pull, float(loss.sum()), float(len(batch))
        weights = self.weights[batch]
        return pull * weights, float(loss @ weights), float(weights.sum())


def _check_codes(name: str, codes: Ints, count: int) -> None:
    if len(codes) and not (codes.min() >= 0 and codes.max() < count):
        raise ValueError(f"A {name}'s code is not in 0 to {count - 1}: they are {codes.min()} to {codes.max()}.")


def _scatter_add(codes: Ints, rows: Floats, count: int) -> Floats:
    """Row c of the outcome: the sum of the rows with code c. Sorted first: `np.add.at` is several times slower."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sums = np.zeros((count, rows.shape[1]), np.float32)
    sums[ordered[starts]] = np.add.reduceat(rows[order], starts, axis=0)
    return sums


class _Adam:
    """Where the model is and how it moves: Adam on the batches' gradients and the penalties'."""

    def __init__(self, rng: np.random.Generator, n_users: int, n_items: int, options: BprConfig) -> None:
        # Users at nought: the first that moves one are their own places.
        users = np.zeros((n_users, options.factors), np.float32)
        items = _random_orthogonal(rng, n_items, options.factors) * np.float32(options.spread)
        self.parameters = Parameters(users, items, np.zeros(n_items, np.float32))
        self.origins = Parameters(np.zeros_like(users), items.copy(), np.zeros(n_items, np.float32))
        self.penalties = options.user_penalty, options.item_penalty, options.bias_penalty
        self.first = Parameters(*map(np.zeros_like, self.parameters))
        self.second = Parameters(*map(np.zeros_like, self.parameters))
        self.rate, self.steps = options.rate, 0

    def step(self, gradient: Parameters, scale: float, share_of_rate: float) -> None:
        """One step down the gradient, which stands for `scale` times what it has seen."""
        self.steps += 1
        rate = self.rate * share_of_rate * np.sqrt(1 - _SECOND**self.steps) / (1 - _FIRST**self.steps)
        for slope, penalty, parameter, origin, first, second in zip(
            gradient, self.penalties, self.parameters, self.origins, self.first, self.second, strict=True
        ):
            whole = slope * np.float32(scale) + np.float32(penalty) * (parameter - origin)
            np.add(first, np.float32(1 - _FIRST) * (whole - first), out=first)
            np.add(second, np.float32(1 - _SECOND) * (whole * whole - second), out=second)
            np.subtract(parameter, np.float32(rate) * first / (np.sqrt(second) + np.float32(_TINY)), out=parameter)

    def model(self) -> Model:
        """The model as it is now; later steps don't change it."""
        return Model(*(parameter.copy() for parameter in self.parameters))


def _random_orthogonal(rng: np.random.Generator, n: int, factors: int) -> Floats:
    """Unit vectors (n, factors) in random directions; of every `factors` in a row, each is orthogonal to the others."""
    squares = np.linalg.qr(rng.standard_normal((-(-n // factors), factors, factors))).Q
    vectors: Floats = squares.reshape(-1, factors)[:n].astype(np.float32)
    return vectors
