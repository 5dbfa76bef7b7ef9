"""Nights in figures: what a manifest comes to, what is usual, and what moved too far since the night before."""

from __future__ import annotations

import math

import pytest

from etl.nights import Change, Night, alike, changes, compare, figures, usual

MANIFEST = {
    "shadow_users": 155,
    "source_rows": {"users": 155, "trips": 606},
    "set_aside": {"slots": {"a": 2, "b": 3}, "nodes": {"c": 1}},
    "days_without_event": {"user_without_persona": 73, "city_without_nodes": 1},
    "events_left_out": {},
    "published": {
        "events": {"Rome": 10, "Village": 5},
        "triples": {"Rome": 200, "Nowhere": 0},
        "positives": 30,
        "positives_left_out": {"small_catalog": 4, "no_negatives": 1},
        "users": 150,
        "items": 99,
    },
    "probe": {"auc": {"mean": 0.7, "low": 0.6, "high": 0.8}, "auc_of_popularity": {"mean": None}},
}


def test_a_night_in_figures_has_them_in_the_order_a_person_asks():
    assert list(figures(MANIFEST).items()) == [
        ("shadow users", 155),
        ("trips read", 606),
        ("ranking events", 15),
        ("triples", 200),
        ("positives", 30),
        ("users", 150),
        ("items", 99),
        ("cities", 1),
        ("left out: positives", 5),
        ("left out: trip-days", 74),
        ("left out: events", 0),
        ("set aside rows", 6),
        ("AUC", 0.7),
    ]


def test_what_a_manifest_does_not_have_is_no_figure():
    assert figures({}) == {}
    assert figures({"published": {"triples": {}}}) == {"triples": 0, "cities": 0}


def test_fewer_than_four_nights_have_nothing_usual():
    assert usual([1, 2, 3]) is None
    assert usual([1, 2, 3, math.nan]) is None


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([1000, 1000, 1000, 1000], 990, 1010),  # never a move: one percent
        ([1000, 1000, 1000, 1000, 500], 990, 1010),  # one odd night does not widen it
        ([0, 0, 0, 0], 0, 0),
        ([100, 110, 120, 130], 115 - 5 * 1.4826 * 10, 115 + 5 * 1.4826 * 10),
    ],
)
def test_the_usual_range_is_robust(values, low, high):
    assert usual(values) == pytest.approx((low, high))


def test_a_change_is_a_share_of_what_was_there():
    assert changes({"a": 4, "b": 0, "gone": 1}, {"b": 3, "a": 2, "new": 1}) == [
        Change("b", 0, 3, None),
        Change("a", 4, 2, -0.5),
    ]


SAME = {"audience": "shadow", "negatives": ["ranking"], "split": "none"}


def night(name: str, trips: float, triples: float, **settings: object) -> Night:
    return Night(name, SAME | settings, {"trips read": trips, "triples": triples})


def test_half_the_trips_gone_is_found_and_a_quarter_is_allowed():
    found = compare([night("one", 100, 1000)], SAME, {"trips read": 50, "triples": 750}, 0.25)
    assert found.moved == [("one", Change("trips read", 100, 50, -0.5))]
    assert found.differs == []


def test_the_first_night_has_nothing_to_be_compared_with():
    found = compare([], SAME, {"trips read": 50}, 0.0)
    assert (found.moved, found.differs) == ([], [])


def test_figures_are_compared_with_the_last_night_of_the_same_settings():
    nights = [night("one", 100, 1000), night("two", 90, 9000, negatives=["catalog:16"])]
    found = compare(nights, SAME, {"trips read": 40, "triples": 400}, 0.25)
    assert [(name, each.name, each.before) for name, each in found.moved] == [
        ("two", "trips read", 90),  # what the triples' settings don't decide: with the last night
        ("one", "triples", 1000),
    ]


def test_where_no_night_has_the_same_settings_it_says_which_are_others():
    found = compare([night("one", 100, 1000)], SAME | {"split": "last-trip"}, {"trips read": 40, "triples": 4}, 0.25)
    assert [each.name for _, each in found.moved] == ["trips read"]
    assert found.differs == ["split"]
    other = compare([night("one", 100, 1000)], SAME | {"audience": "all"}, {"trips read": 40, "triples": 4}, 0.25)
    assert (other.moved, other.differs) == ([], ["audience"])


def test_what_comes_where_nothing_was_is_allowed():
    assert compare([night("one", 0, 0)], SAME, {"trips read": 40, "triples": 4}, 0.0).moved == []


def test_losses_are_not_watched():
    before = Night("one", SAME, {"left out: positives": 1, "AUC": 0.8, "cities": 1})
    assert compare([before], SAME, {"left out: positives": 100, "AUC": 0.2, "cities": 9}, 0.1).moved == []


def test_only_nights_of_the_same_settings_are_alike():
    settings = {"audience": "shadow", "negatives": ["ranking"], "seed": 1}
    nights = [Night("a", settings, {}), Night("b", {**settings, "negatives": ["shown"]}, {}), Night("c", settings, {})]
    assert [night.name for night in alike(nights, {**settings, "seed": 2})] == ["a", "c"]
    assert alike(nights, {**settings, "audience": "all"}) == []
