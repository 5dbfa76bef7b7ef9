"""The question of the next item: choices, distances and rankings against plain Python; what is planted, and nothing else, is found."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.evaluation import next_item, probe
from etl.evaluation.bpr import BprConfig
from etl.evaluation.next_item import Choices, ItemFeatures, draw_rows, evaluate, iter_choices, order_selections
from etl.evaluation.verdict import BY_DISTANCE, BY_USERS, MODEL, RANDOM
from etl.triples.next_choices import Coordinates

PARTS = ("train", "valid", "test")


def dataset_of(cities, coordinates=None):
    """Items i0, i1, ... in these cities, one archived per entry that ends with "!"; trips t0, t1, ..."""
    items = pl.DataFrame(
        {
            "item_id": [f"i{number}" for number in range(len(cities))],
            "item_idx": range(len(cities)),
            "city": [city.rstrip("!") for city in cities],
            "status": ["archived" if city.endswith("!") else "approved" for city in cities],
            "latitude": [0.0] * len(cities) if coordinates is None else [place[0] for place in coordinates],
            "longitude": [0.0] * len(cities) if coordinates is None else [place[1] for place in coordinates],
        },
        schema_overrides={"latitude": pl.Float64, "longitude": pl.Float64, "item_idx": pl.UInt32},
    )
    return SimpleNamespace(
        items=items,
        eligible_items=lambda: items.filter(pl.col("status") != "archived"),
    )


def features_of(dataset, people):
    return ItemFeatures(np.array(people), Coordinates.of(dataset.items))


def frames(trips):
    """Events and trips, from (user, start, city, part, [(day, [item, ...]), ...])."""
    events = [
        {
            "user_idx": user,
            "trip_idx": number,
            "day_number": day,
            "city": city,
            "split": part,
            "selected_idx": items,
        }
        for number, (user, _, city, part, days) in enumerate(trips)
        for day, items in days
    ]
    schema = {
        "user_idx": pl.UInt32,
        "trip_idx": pl.UInt32,
        "day_number": pl.Int32,
        "city": pl.String,
        "split": pl.String,
        "selected_idx": pl.List(pl.UInt32),
    }
    starts = pl.DataFrame({"start_us": [start for _, start, *_ in trips]}, schema={"start_us": pl.Int64})
    return pl.DataFrame(events, schema=schema), starts


def naive_choices(trips, cities, parts):
    """Each choice of a new item: (user, previous, chosen, same day, candidates), in plain Python from the contract."""
    found = []
    order = sorted(range(len(trips)), key=lambda n: (trips[n][1] is not None, trips[n][1] or 0, n))
    for number in order:
        user, _, city, part, days = trips[number]
        if part not in parts:
            continue
        seen = set()
        for earlier in order[: order.index(number)]:
            if trips[earlier][0] == user:
                seen |= {item for _, items in trips[earlier][4] for item in items}
        previous = None
        for day, items in sorted(days, key=lambda each: each[0]):
            for item in items:
                eligible = {n for n, where in enumerate(cities) if where == city}
                if previous is not None and item not in seen and item in eligible:
                    found.append((user, previous[0], item, previous[1] == day, frozenset(eligible - seen)))
                seen.add(item)
                previous = item, day
    return Counter(found)


def choices_of(dataset, trips, parts, **options):
    events, starts = frames(trips)
    selections = order_selections(events, starts)
    return list(iter_choices(dataset, selections, parts, 0, **options))


def listed(choices):
    return Counter(
        (
            int(each.users[row]),
            int(each.previous[row]),
            int(each.items[each.chosen[row]]),
            bool(each.same_day[row]),
            frozenset(each.items[each.candidates[row]].tolist()),
        )
        for each in choices
        for row in range(len(each.users))
    )


CITIES = ["A", "A", "A", "A!", "B", "B"]
DAYS = st.lists(st.lists(st.integers(0, 5), unique=True, min_size=1, max_size=4), min_size=1, max_size=3).map(
    lambda days: [(number + 1, items) for number, items in enumerate(days)]
)
TRIP = st.tuples(st.integers(0, 2), st.none() | st.integers(0, 2), st.sampled_from("AB"), st.sampled_from(PARTS), DAYS)
TRIPS = st.lists(TRIP, min_size=1, max_size=6)


@given(TRIPS, st.sets(st.sampled_from(PARTS), min_size=1))
def test_choices_are_those_of_the_contract(trips, parts):
    found = choices_of(dataset_of(CITIES), trips, parts)
    assert listed(found) == naive_choices(trips, CITIES, parts)
    assert all(each.city in "AB" and each.candidates[np.arange(len(each.users)), each.chosen].all() for each in found)


@given(TRIPS, st.integers(1, 40))
def test_of_too_many_choices_those_of_some_users_are_ranked(trips, most):
    dataset = dataset_of(CITIES)
    every, some = listed(choices_of(dataset, trips, PARTS)), listed(choices_of(dataset, trips, PARTS, max_cells=most))
    users = {choice[0] for choice in some}
    assert some == Counter({choice: number for choice, number in every.items() if choice[0] in users})
    assert bool(some) == bool(every)
    # A city has 3 or 2 items. One user is evaluated, however many choices that are.
    sizes = {user: sum((3 if c[2] < 4 else 2) * n for c, n in every.items() if c[0] == user) for user in users}
    assert len(users) <= 1 or sum(sizes.values()) <= most
    assert listed(choices_of(dataset, trips, PARTS, max_cells=most)) == some


@given(TRIPS)
def test_shuffling_keeps_each_day_s_items_and_the_order_of_days(trips):
    events, starts = frames(trips)
    plain, mixed = order_selections(events, starts), order_selections(events, starts, np.random.default_rng(3))
    key = ["user_idx", "trip_idx", "day_number"]
    assert mixed.select(*key, "seq").equals(plain.select(*key, "seq"))
    assert mixed.select(*key, "item").sort(*key, "item").equals(plain.select(*key, "item").sort(*key, "item"))


def naive_km(one, other):
    """The great-circle distance by the spherical law of cosines' stable form (Vincenty's for a sphere)."""
    (lat1, lon1), (lat2, lon2) = ([math.radians(value) for value in place] for place in (one, other))
    apart = lon2 - lon1
    up = math.hypot(
        math.cos(lat2) * math.sin(apart),
        math.cos(lat1) * math.sin(lat2) - math.sin(lat1) * math.cos(lat2) * math.cos(apart),
    )
    return 6371.0088 * math.atan2(
        up, math.sin(lat1) * math.sin(lat2) + math.cos(lat1) * math.cos(lat2) * math.cos(apart)
    )


PLACE = st.tuples(
    st.sampled_from([-90.0, 90.0, 0.0]) | st.floats(-90, 90), st.sampled_from([-180.0, 180.0]) | st.floats(-180, 180)
)


@given(PLACE, PLACE)
def test_distances_are_great_circles(one, other):
    features = features_of(dataset_of(["A", "A"], [one, other]), [1, 1])
    assert features.places.km(np.array([0]), np.array([1]))[0] == pytest.approx(
        naive_km(one, other), rel=1e-6, abs=1e-3
    )


@pytest.mark.parametrize(
    "place", [(None, 0.0), (0.0, None), (90.5, 0.0), (0.0, -181.0), (math.nan, 0.0), (math.inf, 0.0)]
)
def test_an_unknown_place_is_as_far_as_the_mean(place):
    """It is compared by popularity alone; where the previous item's place is unknown, all are."""
    dataset = dataset_of(["A"] * 4, [(0.0, 0.0), (0.0, 1.0), (0.0, 3.0), place])
    features = features_of(dataset, [1, 2, 3, 4])
    items, same = np.arange(4), np.array([True, False])
    candidates = np.array([[False, True, True, True]] * 2)
    found = features.of_choices(Choices("A", items, items[:2], np.array([0, 3]), np.array([1, 1]), same, candidates))
    assert np.isfinite(found).all()
    km = [naive_km((0, 0), (0, east)) for east in (1, 3)]
    logs = [math.log(0.1 + each) for each in km]
    assert found[0, 1:, 1] == pytest.approx([*logs, statistics.mean(logs)], rel=1e-6)
    assert found[0, :, 2] == pytest.approx(found[0, :, 1])
    assert (found[1, :, 1:] == 0).all()
    assert found[1, :, 0] == pytest.approx(np.log([1, 2, 3, 4]))


def naive_metrics(scores, chosen):
    """AUC and NDCG@10 of one choice, over every rank that the ties allow; None without another candidate."""
    others = [score for item, score in scores.items() if item != chosen]
    if not others:
        return None
    ahead, level = (sum(test(score, scores[chosen]) for score in others) for test in (float.__gt__, float.__eq__))
    ranks = range(ahead + 1, ahead + level + 2)
    auc = statistics.mean(1 - (rank - 1) / len(others) for rank in ranks)
    return auc, statistics.mean(1 / math.log2(rank + 1) if rank <= 10 else 0.0 for rank in ranks)


@given(TRIPS, st.lists(st.integers(0, 4), min_size=6, max_size=6), st.lists(PLACE, min_size=6, max_size=6))
def test_untrained_rankings_are_those_of_plain_python(trips, people, places):
    """With ties, with choices that have no other candidate, and users without a new item."""
    dataset = dataset_of(CITIES, places)
    features = features_of(dataset, people)
    choices = choices_of(dataset, trips, ["test"])
    scorers = {BY_USERS: next_item.by_people, BY_DISTANCE: next_item.by_people_and_distance}
    found = evaluate(choices, features, scorers)
    log_people = {item: math.log(max(number, 0.5)) for item, number in enumerate(people)}

    def near(previous, item):
        return math.log(0.1 + naive_km(places[previous], places[item]))

    for name, weight in ((BY_USERS, 0.0), (BY_DISTANCE, 1.0)):
        expected: dict[int, list] = {}
        for (user, previous, chosen, _, candidates), number in naive_choices(trips, CITIES, ["test"]).items():
            # Rounded, so that what is equal but for the last bits is a tie; scores that differ by less are tested elsewhere.
            scores = {item: float(np.float32(log_people[item] - weight * near(previous, item))) for item in candidates}
            if weight and any(0 < abs(a - b) < 1e-4 for a in scores.values() for b in scores.values()):
                return
            figures = naive_metrics(scores, chosen)
            expected.setdefault(user, []).extend([figures] * number if figures else [])
        per_user = found[name].per_user(np.arange(3))
        for user in range(3):
            known = expected.get(user)
            wanted = np.mean(known, axis=0) if known else (math.nan, math.nan)
            np.testing.assert_allclose([per_user.auc[user], per_user.ndcg[user]], wanted, atol=1e-9)


@given(TRIPS)
def test_rows_are_drawn_from_the_candidates_evenly_often(trips):
    dataset = dataset_of(CITIES)
    features = features_of(dataset, [1] * 6)
    rows = draw_rows(choices_of(dataset, trips, ["train"]), features, np.random.default_rng(0))
    expected = Counter(
        (user, chosen, other)
        for (user, _, chosen, _, candidates), number in naive_choices(trips, CITIES, ["train"]).items()
        for other in candidates - {chosen}
        for _ in range(number)
    )  # no city has more than NEGATIVES items: all of them are drawn
    assert Counter(rows.select("user_idx", "pos_idx", "neg_idx").iter_rows()) == expected


# --- what a model finds ----------------------------------------------------------------------------------------------

SIDE = 9
GRID = [(0.02 * north, 0.02 * east) for north in range(SIDE) for east in range(SIDE)]


def planted_world(seed, *, near, n_users=60, trips=4, length=5):
    """Walks over a grid of items: the next is drawn by popularity and, if `near`, by the inverse of the squared distance."""
    rng = np.random.default_rng(seed)
    liked = rng.gamma(1.0, size=len(GRID)) + 0.2
    km = np.array([[naive_km(one, other) for other in GRID] for one in GRID])
    found = []
    for user in range(n_users):
        for trip in range(trips):
            walk = [int(rng.choice(len(GRID), p=liked / liked.sum()))]
            while len(walk) < length:
                chance = liked / (0.1 + km[walk[-1]]) ** 2 if near else liked.copy()
                chance[walk] = 0
                walk.append(int(rng.choice(len(GRID), p=chance / chance.sum())))
            found.append((user, trip, "A", "test" if trip == trips - 1 else "train", [(1, walk)]))
    return found


def probe_next(trips, seed=0, *, controls=False, coordinates=GRID, has_next=True):
    """The facts of the question *next*, for trips to one city."""
    events, starts = frames(trips)
    dataset = dataset_of(["A"] * len(GRID), coordinates)
    dataset.trips = starts
    before = (
        events.filter(pl.col("split") != "test").explode("selected_idx").select("user_idx", "selected_idx").unique()
    )
    people = np.bincount(before["selected_idx"].to_numpy(), minlength=len(GRID))
    task = SimpleNamespace(
        dataset=dataset,
        counts=SimpleNamespace(people=people),
        sampled=np.unique(events["user_idx"].to_numpy()),
        selections=order_selections(events, starts),
        kept_events=events,
        has_next=has_next,
        next_rows=None,
    )
    return probe._probe_next(task, seed, lambda *_: None, controls=controls)


def test_a_planted_distance_is_found_and_the_controls_take_it_away():
    facts = probe_next(planted_world(1, near=True, n_users=150, trips=3, length=6), controls=True)
    gain = facts["model_against"][BY_USERS]
    assert facts["choices"] > 200
    assert gain["auc"]["low"] > 0.05
    assert facts["distance_against"][BY_USERS]["auc"]["low"] > 0.05
    assert facts["slopes"]["log_km"] + facts["slopes"]["log_km_same_day"] == pytest.approx(-2, abs=0.4)
    taken = facts["controls"]["random_previous"]["model_against"][BY_USERS]["auc"]
    assert abs(taken["mean"]) < gain["auc"]["mean"] / 10
    shuffled = facts["controls"]["shuffled_order"]["model_against"][BY_USERS]["auc"]
    assert taken["mean"] < shuffled["mean"] < gain["auc"]["mean"]
    assert "Distance from the previous item alone is worth AUC +0." in facts["verdict"]["text"]
    assert set(facts["rankings"]) == {MODEL, BY_USERS, BY_DISTANCE}
    assert set(facts["model_against"]) == {BY_USERS, BY_DISTANCE}
    assert RANDOM not in facts["rankings"]


def test_where_the_weights_differ_from_the_untrained_rule_s_the_model_adds_value():
    """Half as much of popularity, twice as much of distance: no untrained rule knows that."""
    trips, rng = [], np.random.default_rng(5)
    km = np.array([[naive_km(one, other) for other in GRID] for one in GRID])
    for user in range(120):
        for trip in range(4):
            walk = [int(rng.integers(len(GRID)))]
            while len(walk) < 5:
                chance = 1 / (0.1 + km[walk[-1]]) ** 4
                chance[walk] = 0
                walk.append(int(rng.choice(len(GRID), p=chance / chance.sum())))
            trips.append((user, trip, "A", "test" if trip == 3 else "train", [(1, walk)]))
    found = probe_next(trips)["verdict"]
    assert found["adds_value"]
    assert found["best_untrained"] == {"auc": BY_DISTANCE, "ndcg_at_10": BY_DISTANCE}
    assert "the data add value: a model trained on them ranks better than users ÷ distance" in found["text"]


def test_where_nothing_is_planted_value_is_seen_as_rarely_as_the_interval_says(monkeypatch):
    """Two metrics, each too high by chance in one of 40: in 200 worlds 10 at most are expected, and 20 are one in a thousand."""
    monkeypatch.setattr(next_item, "CONFIG", BprConfig(**{**vars(next_item.CONFIG), "epochs": 3}))
    seen = 0
    for seed in range(200):
        trips = planted_world(seed, near=False, n_users=24, trips=3, length=4)
        found = probe_next(trips, seed)["verdict"]
        seen += found["adds_value"]
        assert found["adds_value"] == ("the data add value" in found["text"])
    assert seen <= 20


def test_without_a_second_new_item_there_is_nothing_to_learn():
    trips = [
        (user, trip, "A", "test" if trip else "train", [(1, [user % 3])]) for user in range(9) for trip in range(2)
    ]
    facts = probe_next(trips)
    assert (facts["users"], facts["choices"]) == (0, 0)
    assert facts["slopes"] is None
    assert facts["verdict"]["text"] == (
        "For the next item, where it is new to the user, there is nothing to learn: no held-out trip has a second item that "
        "is new to its user."
    )


def test_without_coordinates_or_without_a_table_the_verdict_says_so():
    trips = planted_world(2, near=True, n_users=20)
    nowhere = probe_next(trips, coordinates=[(None, None)] * len(GRID))["verdict"]
    assert "No item has usable coordinates, so there are no distances to learn from." in nowhere["text"]
    assert not nowhere["adds_value"]
    without = probe_next(trips, has_next=False)
    assert MODEL not in without["rankings"]
    assert "the snapshot has no table next/, which --task next publishes" in without["verdict"]["text"]
    assert without["model_against"] == {}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99))
def test_the_same_task_and_seed_give_the_same_facts(seed):
    trips = planted_world(3, near=True, n_users=12, trips=3)
    assert probe_next(trips, seed, controls=True) == probe_next(trips, seed, controls=True)
