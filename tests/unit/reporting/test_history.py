"""Nights in figures: what a manifest comes to, what is usual, and what moved too far since the night before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from etl.reporting.history import (
    HISTORY_LENGTH,
    MONITORED,
    Compared,
    Metric,
    PreviousRun,
    compare,
    compare_with_history,
    expected_range,
    run_metrics,
)

Figures = dict[str, float]

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
    assert list(run_metrics(MANIFEST).items()) == [
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
    assert run_metrics({}) == {}
    assert run_metrics({"published": {"triples": {}}}) == {"triples": 0, "cities": 0}


NOW = datetime(2026, 11, 27, 3, tzinfo=UTC)  # a Friday


def days(values: Sequence[float], now: datetime = NOW) -> list[tuple[datetime, float]]:
    """A run each day before `now`."""
    return [(now - timedelta(days=len(values) - place), value) for place, value in enumerate(values)]


def test_fewer_than_five_runs_have_nothing_expected():
    assert expected_range(days([1, 2, 3, 4]), NOW) is None
    assert expected_range(days([1, 2, 3, 4, math.nan]), NOW) is None


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([10_000] * 5, 7_000, 10_000 / 0.7),  # weekdays are not known yet
        ([10_000] * 21, 9_500, 10_000 / 0.95),  # never a move: five percent
        ([*[10_000] * 20, 5_000], 9_500, 10_000 / 0.95),  # one odd run neither moves nor widens it
        ([293] * 21, 293 - 3 * math.sqrt(293), 293 + 3 * math.sqrt(293)),  # small counts move by chance
        ([0] * 5, -3, 3),
    ],
)
def test_the_expected_range_is_robust(values, low, high):
    assert expected_range(days(values), NOW) == pytest.approx((low, high), rel=0.01)


def test_the_more_the_runs_move_the_wider_it_is_up_to_thirty_percent():
    lows = [
        expected_range(days([10_000 + move, 10_000, 10_000 - move] * 9), NOW)[0] for move in (0, 50, 150, 500, 2_000)
    ]
    assert lows == sorted(lows, reverse=True)
    assert lows[0] == 9_500
    assert 8_000 < lows[2] < 9_500
    assert lows[-1] >= 8_000 * 0.7


def test_a_figure_that_is_no_count_has_no_deviation_of_counts():
    assert expected_range(days([0.7] * 21), NOW, counts=False) == pytest.approx((0.665, 0.7 / 0.95))


def test_a_weekday_is_compared_with_its_like_also_where_the_job_is_at_midnight():
    week = [10_000] * 5 + [8_000, 8_000]  # from Monday on
    saturday = NOW + timedelta(days=1)
    series = days([*week[5:], *week * 3, *week[:5]], saturday)
    shaken = [(moment + timedelta(minutes=(-1) ** place), value) for place, (moment, value) in enumerate(series)]
    for known in (series, shaken):
        assert expected_range(known, saturday) == pytest.approx((7_600, 8_000 / 0.95))
        low, _ = expected_range(known, NOW)
        assert low == pytest.approx(9_500)


def test_a_change_is_a_share_of_what_was_there():
    assert [Metric("a", after, before).change for before, after in ((4, 2), (0, 3), (None, 3))] == [-0.5, None, None]


SAME = {"audience": "shadow", "negatives": ["ranking"], "split": "none"}


def night(name: str, trips: float, triples: float, **settings: object) -> PreviousRun:
    return PreviousRun(name, SAME | settings, {"trips read": trips, "triples": triples})


def compared(nights: Sequence[PreviousRun], after: Mapping[str, float], allowed: float, **settings: object) -> Compared:
    own = SAME | settings
    return compare(nights, own, compare_with_history(nights, own, after, None), allowed)


def test_half_the_trips_gone_is_found_and_a_quarter_is_allowed():
    found = compared([night("one", 100, 1000)], {"trips read": 50, "triples": 750}, 0.25)
    assert found.moved == [Metric("trips read", 50, 100, "one", 1)]
    assert found.moved[0].change == -0.5
    assert found.changed_settings == []


def test_the_first_night_has_nothing_to_be_compared_with():
    found = compared([], {"trips read": 50}, 0.0)
    assert (found.moved, found.changed_settings) == ([], [])


def test_figures_are_compared_with_the_nights_of_the_same_settings():
    nights = [night("one", 100, 1000), night("two", 90, 9000, negatives=["catalog:16"])]
    found = compared(nights, {"trips read": 40, "triples": 400}, 0.25)
    assert [(each.since, each.name, each.before) for each in found.moved] == [
        ("two", "trips read", 90),  # what the triples' settings don't decide: with the last night
        ("one", "triples", 1000),
    ]


def test_where_no_night_has_the_same_settings_it_says_which_are_others():
    found = compared([night("one", 100, 1000)], {"trips read": 40, "triples": 4}, 0.25, split="last-trip")
    assert [each.name for each in found.moved] == ["trips read"]
    assert found.changed_settings == ["split"]
    other = compared([night("one", 100, 1000)], {"trips read": 40, "triples": 4}, 0.25, audience="all")
    assert (other.moved, other.changed_settings) == ([], ["audience"])


def test_what_comes_where_nothing_was_is_allowed():
    assert compared([night("one", 0, 0)], {"trips read": 40, "triples": 4}, 0.0).moved == []


def test_losses_are_not_watched():
    before = [PreviousRun("one", SAME, {"left out: positives": 1, "AUC": 0.8, "cities": 1})] * 6
    found = compare_with_history(before, SAME, {"left out: positives": 100, "AUC": 0.2, "cities": 9}, None)
    assert [each.out_of_range for each in found] == [True, True, True]
    assert compare(before, SAME, found, 0.1).moved == []


def test_from_five_runs_on_a_bad_one_is_found_and_the_restored_data_are_normal():
    nights = [night(f"good {day}", 10_000 + day, 100_000) for day in range(5)]
    (bad,) = compared(nights, {"trips read": 5_000, "triples": 100_000}, 0.25).moved
    assert (bad.before, bad.runs, bad.stays) == (10_004, 5, False)
    assert (round(bad.expected[0]), round(bad.expected[1])) == (7_001, 14_289)
    after = [*nights, night("bad", 5_000, 100_000)]
    assert compared(after, {"trips read": 10_006, "triples": 100_000}, 0.25).moved == []  # twice the last one's
    (still,) = compared(after, {"trips read": 5_010, "triples": 100_000}, 0.25).moved  # it is no yardstick
    assert still.stays  # but was published, by whoever decides that
    (worse,) = compared(after, {"trips read": 1_000, "triples": 100_000}, 0.25).moved
    assert not worse.stays
    settled = [*after, *(night(f"less {day}", 5_000, 100_000) for day in range(3))]
    assert (
        compared(settled, {"trips read": 5_010, "triples": 100_000}, 0.25).moved == []
    )  # four runs in a row are a level


BASES = (750, 4_000, 20_000, 1_000_000, 60_000, 750, 1_200)
"""What each of the watched figures comes to on the first night."""


def three_months(seed: int, rhythm: float, growth: float) -> Iterator[tuple[list[PreviousRun], Figures, datetime]]:
    """Ninety ordinary nights: noise of 5 %, weekends that are `rhythm` more, and growth; each with those before it."""
    random, nights = np.random.default_rng(seed), list[PreviousRun]()
    for day in range(90):
        now = NOW + timedelta(days=seed + day)
        level = (1 + growth) ** day * (1 + rhythm * (now.weekday() >= 5))
        found = {
            name: round(level * base * random.normal(1, 0.05)) for name, base in zip(MONITORED, BASES, strict=True)
        }
        yield nights, found, now
        nights = [*nights[-(HISTORY_LENGTH - 1) :], PreviousRun(f"{now:%Y%m%dT%H%M%S%f}Z-0", SAME, found)]


@pytest.mark.parametrize(
    ("rhythm", "growth"), [(0.0, 0.0015), (-0.2, 0.0015), (0.2, 0.0015), (-0.2, 0.003), (0.2, 0.003)]
)
def test_in_three_months_of_ordinary_nights_few_have_an_alarm_and_halving_any_count_is_found(rhythm, growth):
    alarms = nights_ = missed = 0
    for seed in range(7):  # the first night is of each weekday once
        for nights, found, now in three_months(seed, rhythm, growth):
            nights_ += 1
            alarms += bool(compare(nights, SAME, compare_with_history(nights, SAME, found, now), 0.25).moved)
            halves = compare_with_history(nights, SAME, {name: value // 2 for name, value in found.items()}, now)
            missed += bool(nights) and len(MONITORED) - len(compare(nights, SAME, halves, 0.25).moved)
    assert alarms <= 0.02 * nights_
    assert missed == 0
