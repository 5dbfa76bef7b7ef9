"""BPR: its gradient against finite differences of what it says it minimises, and what it learns."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.evaluation import bpr
from etl.evaluation.bpr import VARIANTS, BprConfig, Parameters

N_USERS, N_ITEMS, N_FEATURES = 4, 5, 2
TRIPLES = st.lists(
    st.tuples(
        st.integers(0, N_USERS - 1),
        st.integers(0, N_ITEMS - 1),
        st.integers(0, N_ITEMS - 1),
        st.sampled_from([0, 0.5, 1, 3]),
    ),
    min_size=1,
    max_size=40,
)


def batch_of(rows, features):
    users, positives, negatives = (np.array([row[part] for row in rows], np.int32) for part in range(3))
    return bpr._Batch(users, positives, negatives, np.array([row[3] for row in rows], np.float32), features)


def train(users, positives, negatives, *options, weights=1.0, **more):
    frame = pl.DataFrame({"user_idx": users, "pos_idx": positives, "neg_idx": negatives})
    weights = np.broadcast_to(np.float32(weights), len(users))
    return bpr.train(frame.with_columns(weight=pl.Series(weights)), *options, **more)


def some_parameters(seed):
    rng = np.random.default_rng(seed)
    shapes = (N_USERS, 3), (N_ITEMS, 3), (N_ITEMS,), (N_FEATURES,)
    return Parameters(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def some_features(rows, seed):
    return np.random.default_rng(seed + 1).normal(size=(len(rows), N_FEATURES)).astype(np.float32)


def loss_of(parameters, rows, features):
    """The sum over triples, in float64 and plain Python."""
    users, items, biases, slopes = (part.astype(np.float64) for part in parameters)
    total = 0.0
    for (user, positive, negative, weight), own in zip(rows, features, strict=True):
        lead = users[user] @ (items[positive] - items[negative]) + biases[positive] - biases[negative] + own @ slopes
        total += weight * math.log1p(math.exp(-lead))
    return total


@given(TRIPLES, st.integers(0, 99))
def test_both_ways_to_the_gradient_give_the_same(rows, seed):
    batch, parameters = batch_of(rows, some_features(rows, seed)), some_parameters(seed)
    gradients = bpr._dense_gradient(parameters, batch), bpr._sparse_gradient(parameters, batch)
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == other.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=1e-4)


@given(TRIPLES, st.integers(0, 99), st.data())
def test_the_gradient_is_the_slope_of_the_loss(rows, seed, data):
    parameters = some_parameters(seed)
    features = some_features(rows, seed)
    gradient = bpr._sparse_gradient(parameters, batch_of(rows, features))
    part = data.draw(st.sampled_from(range(4)))
    cell = data.draw(st.sampled_from(range(parameters[part].size)))
    losses = []
    for by in (-1e-4, 1e-4):
        moved = [values.astype(np.float64) for values in parameters]
        moved[part].flat[cell] += by
        losses.append(loss_of(moved, rows, features))
    assert gradient[part].flat[cell] == pytest.approx((losses[1] - losses[0]) / 2e-4, abs=2e-3)


def world(n_users=30, n_items=12, seed=3):
    """Every user has taken two places of her own, over and over."""
    rng = np.random.default_rng(seed)
    own = np.stack([rng.choice(n_items, 2, replace=False) for _ in range(n_users)])
    users = np.repeat(np.arange(n_users), 60)
    positives = own[users, rng.integers(2, size=len(users))]
    negatives = rng.integers(n_items, size=len(users))
    kept = (negatives[:, None] != own[users]).all(axis=1)
    return own, users[kept], positives[kept], negatives[kept]


@pytest.mark.parametrize("pairs", [0, 1_000])
def test_it_learns_everybody_s_own_places_either_way(pairs, monkeypatch):
    monkeypatch.setattr(bpr, "_DENSE_PAIRS_PER_ROW", pairs)
    own, users, positives, negatives = world()
    codes = (column.astype(np.uint32) for column in (users, positives, negatives))  # as users.parquet has them
    model = train(*codes, BprConfig(smallest_batch=64))
    best = np.argsort(-model.scores(np.arange(30), np.arange(12)), axis=1)[:, :2]
    assert (np.sort(best) == np.sort(own)).all()


def test_the_same_seed_gives_the_same_model_and_another_another():
    _, users, positives, negatives = world()
    first, same, other = (
        train(users, positives, negatives, BprConfig(seed=seed, epochs=3)).parameters for seed in (1, 1, 2)
    )
    assert all((a == b).all() for a, b in zip(first, same, strict=True))
    assert (first.items != other.items).any()


def test_a_heavier_opinion_wins():
    there, back = np.zeros(100, int), np.ones(100, int)
    pairs = np.concatenate([there, back]), np.concatenate([back, there])
    model = train(np.zeros(200, int), *pairs, weights=np.repeat([0.0, 1.0], 100))
    less, more = model.scores(np.array([0]), np.arange(2))[0]
    assert more > less + 1


def test_a_slope_is_learned_where_the_feature_decides_and_is_zero_where_it_says_nothing():
    rng = np.random.default_rng(4)
    users, pairs = rng.integers(30, size=4_000), rng.permuted(np.tile(np.arange(12), (4_000, 1)), axis=1)[:, :2]
    apart = rng.normal(size=4_000)
    swapped = rng.random(4_000) < 1 / (1 + np.exp(2 * apart))  # the item that is ahead is chosen more often
    pairs[swapped] = pairs[swapped][:, ::-1]
    features = np.stack([np.where(swapped, -apart, apart), rng.normal(size=4_000)], axis=1).astype(np.float32)
    strong = BprConfig(factors=4, spread=0.1, user_penalty=300, item_penalty=300, bias_penalty=100)
    decides, says_nothing = train(users, *pairs.T, strong, features=features).parameters.slopes
    assert decides == pytest.approx(2, abs=0.25)
    assert abs(says_nothing) < 0.15


def test_users_of_any_index_are_known_or_have_what_everybody_likes():
    _, users, positives, negatives = world()
    own = np.sort(np.random.default_rng(0).choice(10_000, 30, replace=False))
    model = train(own[users], 7 * positives, 7 * negatives, BprConfig(epochs=2))
    whole = train(users, positives, negatives, BprConfig(epochs=2))
    items = np.array([3, 0, 11])
    np.testing.assert_allclose(model.scores(own, 7 * items), whole.scores(np.arange(30), items), atol=1e-5)
    strangers = np.setdiff1d(np.array([0, 5_000, 9_999, 20_000]), own)
    assert (model.scores(strangers, 7 * items) == whole.parameters.biases[items]).all()
    assert (model.scores(own, np.array([1, 78, 700])) == 0).all()


def test_after_every_epoch_the_caller_is_told_and_the_loss_falls():
    _, users, positives, negatives = world()
    rows = [(*row, 1) for row in zip(users, positives, negatives, strict=True)]
    told = []
    model = train(users, positives, negatives, BprConfig(epochs=5, smallest_batch=64), after_epoch=told.append)
    assert told == [1, 2, 3, 4, 5]
    assert loss_of(model.parameters, rows, np.zeros((len(rows), 0))) / len(rows) < math.log(2) / 2


@pytest.mark.parametrize("features", [None, np.zeros((0, 2), np.float32)])
def test_without_triples_nothing_is_known(features):
    none = np.zeros(0, np.int64)
    model = train(none, none, none, features=features, after_epoch=lambda _: pytest.fail("no epoch"))
    assert (model.scores(np.arange(2), np.arange(3)) == np.zeros((2, 3))).all()
    assert (model.parameters.slopes == np.zeros(0 if features is None else 2)).all()


def test_far_leads_neither_overflow_nor_vanish():
    factors = np.full((1, 1), 1e4, np.float32), np.array([[-1], [1]], np.float32)
    far = Parameters(*factors, np.zeros(2, np.float32), np.zeros(0, np.float32))
    batch = batch_of([(0, 0, 1, 1), (0, 1, 0, 1)], np.zeros((2, 0), np.float32))
    with np.errstate(all="raise", under="ignore"):
        assert (bpr._sparse_gradient(far, batch).biases == [-1, 1]).all()


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 20), st.integers(1, 30), st.integers(1, 6))
def test_no_row_comes_again_before_the_pass_is_over(n, steps, smallest, most, epochs):
    options = BprConfig(steps=steps, smallest_batch=smallest, triples_per_epoch=most, epochs=epochs)
    met = [np.concatenate(batches) for batches in bpr._epochs(np.random.default_rng(0), n, options)]
    assert len(met) == epochs
    per_epoch = min(n, most)
    assert {len(rows) for rows in met} == {per_epoch}
    for first in range(0, epochs, n // per_epoch):
        rows = np.concatenate(met[first : first + n // per_epoch])
        assert len(set(rows.tolist())) == len(rows)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 20))
def test_batches_are_large_enough_and_few_enough(n, steps, smallest):
    options = BprConfig(steps=steps, smallest_batch=smallest, epochs=1)
    (batches,) = bpr._epochs(np.random.default_rng(0), n, options)
    assert 1 <= len(batches) == bpr._steps(n, options) <= steps
    assert len(batches) == 1 or min(map(len, batches)) >= smallest


@given(st.integers(1, 12), st.integers(1, 6))
def test_what_items_begin_with_stands_at_right_angles(n, factors):
    vectors = bpr._random_orthogonal(np.random.default_rng(0), n, factors)
    assert vectors.shape == (n, factors)
    for first in range(0, n, factors):
        block = vectors[first : first + factors]
        np.testing.assert_allclose(block @ block.T, np.eye(len(block)), atol=1e-5)


def test_the_default_is_tried_first():
    assert VARIANTS[0] == BprConfig()
    assert len(set(VARIANTS)) == len(VARIANTS) <= 6
