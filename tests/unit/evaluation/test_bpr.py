"""BPR: its gradient against finite differences of what it says it minimises, and what it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.evaluation import bpr
from etl.evaluation.bpr import VARIANTS, BprConfig, Model, Parameters, train

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


def columns(rows):
    users, positives, negatives = (np.array([row[part] for row in rows], np.int32) for part in range(3))
    return users, positives, negatives, np.array([row[3] for row in rows], np.float32)


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
    features = some_features(rows, seed)
    triples = bpr._Triples(*columns(rows), (N_USERS, N_ITEMS), features)
    batch, parameters = np.arange(len(rows)), some_parameters(seed)
    one, other = triples._dense_gradient(parameters, batch), triples._sparse_gradient(parameters, batch)
    for a, b in zip(one.gradient, other.gradient, strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=1e-4)
    expected = pytest.approx(loss_of(parameters, rows, features), abs=1e-3)
    assert one.loss == pytest.approx(other.loss, abs=1e-3) == expected
    assert one.weight == pytest.approx(sum(row[3] for row in rows))


@given(TRIPLES, st.integers(0, 99), st.data())
def test_the_gradient_is_the_slope_of_the_loss(rows, seed, data):
    parameters = some_parameters(seed)
    features = some_features(rows, seed)
    triples = bpr._Triples(*columns(rows), (N_USERS, N_ITEMS), features)
    gradient = triples._sparse_gradient(parameters, np.arange(len(rows))).gradient
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
    model = train(*codes, None, 30, 12, BprConfig(smallest_batch=64))
    best = np.argsort(-model.scores(np.arange(30)), axis=1)[:, :2]
    assert (np.sort(best) == np.sort(own)).all()


def test_the_same_seed_gives_the_same_model_and_another_another():
    _, users, positives, negatives = world()
    first, same, other = (
        train(users, positives, negatives, None, 30, 12, BprConfig(seed=seed, epochs=3)) for seed in (1, 1, 2)
    )
    assert all((a == b).all() for a, b in zip(first, same, strict=True))
    assert (first.items != other.items).any()


def test_weights_of_one_are_no_weights_and_a_heavier_opinion_wins():
    _, users, positives, negatives = world()
    plain = train(users, positives, negatives, None, 30, 12, BprConfig(epochs=2))
    ones = train(users, positives, negatives, np.ones(len(users)), 30, 12, BprConfig(epochs=2))
    assert all((a == b).all() for a, b in zip(plain, ones, strict=True))
    there, back = np.zeros(100, int), np.ones(100, int)
    pairs = np.concatenate([there, back]), np.concatenate([back, there])
    model = train(np.zeros(200, int), *pairs, np.repeat([0.0, 1.0], 100), 1, 2, BprConfig())
    assert model.scores(np.array([0]))[0, 1] > model.scores(np.array([0]))[0, 0] + 1


def test_a_slope_is_learned_where_the_feature_decides_and_is_zero_where_it_says_nothing():
    rng = np.random.default_rng(4)
    users, pairs = rng.integers(30, size=4_000), rng.permuted(np.tile(np.arange(12), (4_000, 1)), axis=1)[:, :2]
    apart = rng.normal(size=4_000)
    swapped = rng.random(4_000) < 1 / (1 + np.exp(2 * apart))  # the item that is ahead is chosen more often
    pairs[swapped] = pairs[swapped][:, ::-1]
    features = np.stack([np.where(swapped, -apart, apart), rng.normal(size=4_000)], axis=1).astype(np.float32)
    strong = BprConfig(factors=4, spread=0.1, user_penalty=300, item_penalty=300, bias_penalty=100)
    model = train(users, *pairs.T, None, 30, 12, strong, features=features)
    assert model.slopes[0] == pytest.approx(2, abs=0.25)
    assert abs(model.slopes[1]) < 0.15


def test_users_of_any_index_are_known_or_have_what_everybody_likes():
    _, users, positives, negatives = world()
    own = np.sort(np.random.default_rng(0).choice(10_000, 30, replace=False))
    model = bpr.train_indexed(own[users], 7 * positives, 7 * negatives, None, options=BprConfig(epochs=2))
    whole = train(users, positives, negatives, None, 30, 12, BprConfig(epochs=2))
    items = np.array([3, 0, 11])
    np.testing.assert_allclose(model.scores(own, 7 * items), whole.scores(np.arange(30), items), atol=1e-5)
    strangers = np.setdiff1d(np.array([0, 5_000, 9_999, 20_000]), own)
    assert (model.scores(strangers, 7 * items) == whole.biases[items]).all()
    assert (model.scores(own, np.array([1, 78, 700])) == 0).all()


def test_after_every_epoch_the_caller_is_told_and_the_loss_falls():
    _, users, positives, negatives = world()
    told = []
    train(
        users,
        positives,
        negatives,
        None,
        30,
        12,
        BprConfig(epochs=5, smallest_batch=64),
        after_epoch=lambda *epoch: told.append(epoch),
    )
    assert [number for number, _ in told] == [1, 2, 3, 4, 5]
    assert math.log(2) > told[0][1] > told[4][1]


def test_a_user_without_triples_has_what_everybody_likes():
    _, users, positives, negatives = world()
    model = train(users, positives, negatives, None, 31, 12)
    assert (model.scores(np.array([30, 30])) == model.biases).all()


def test_without_triples_nothing_is_known():
    none = np.zeros(0, np.int64)
    model = train(none, none, none, None, 2, 3, after_epoch=lambda *_: pytest.fail("no epoch"))
    assert isinstance(model, Model)
    assert (model.scores(np.arange(2)) == np.zeros((2, 3))).all()


def test_far_leads_neither_overflow_nor_vanish():
    factors = np.full((1, 1), 1e4, np.float32), np.array([[-1], [1]], np.float32)
    far = Parameters(*factors, np.zeros(2, np.float32), np.zeros(0, np.float32))
    triples = bpr._Triples(*columns([(0, 0, 1, 1), (0, 1, 0, 1)]), (1, 2))
    with np.errstate(all="raise", under="ignore"):
        met = triples._sparse_gradient(far, np.arange(2))
    assert met.loss == pytest.approx(2e4)
    assert (met.gradient.biases == [-1, 1]).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"users": np.array([0, 2])}, "user's code"),
        ({"positives": np.array([0, -1])}, "positive's code"),
        ({"negatives": np.array([3, 0])}, "negative's code"),
        ({"positives": np.array([0])}, "one length"),
        ({"weights": np.array([1.0, -1.0])}, "weight"),
        ({"weights": np.array([1.0, np.nan])}, "weight"),
        ({"weights": np.array([1.0])}, "one length"),
        ({"features": np.ones((1, 2), np.float32)}, "Features"),
        ({"features": np.array([[1.0], [np.inf]], np.float32)}, "Features"),
    ],
)
def test_triples_that_are_none_are_refused(change, match):
    good = {"users": np.array([0, 1]), "positives": np.array([0, 1]), "negatives": np.array([1, 2]), "weights": None}
    with pytest.raises(ValueError, match=match):
        train(**(good | change), n_users=2, n_items=3)


def test_a_user_that_the_model_does_not_have_is_refused():
    model = train(np.array([0]), np.array([0]), np.array([1]), None, 1, 2)
    with pytest.raises(IndexError):
        model.scores(np.array([1]))


@pytest.mark.parametrize("change", [{"factors": 0}, {"epochs": 0}, {"rate": -1.0}, {"spread": math.nan}, {"seed": -1}])
def test_options_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match="Counts"):
        BprConfig(**change)


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
