"""Limits on a night: what they allow, to the last user and row, and what they say."""

from __future__ import annotations

import pytest

from etl.errors import DataError, SettingsError
from etl.pipeline.guards import check_rejected_share, check_user_count, multiple_domains_warning
from etl.settings.model import Settings
from etl.settings.sources import load_settings
from etl.settings.values import ExpectedCount, parse_fraction, parse_relative_change


@pytest.mark.parametrize(
    ("word", "number", "tolerance"),
    [("747", 747, 0), ("747±5%", 747, 0.05), ("747+-5%", 747, 0.05), (" 747 +/- 2.5 % ", 747, 0.025), ("0", 0, 0)],
)
def test_what_is_expected(word, number, tolerance):
    found = ExpectedCount(word)
    assert (found.number, found.tolerance) == (number, tolerance)


@pytest.mark.parametrize("word", ["", "many", "-1", "747±5", "747-5%", "±5%", "7.5", "747±-5%", "1" * 50])
def test_what_no_expectation_is(word):
    with pytest.raises(SettingsError, match="must be a number"):
        ExpectedCount(word)


@pytest.mark.parametrize(
    ("word", "part"), [("1%", 0.01), ("0.5 %", 0.005), ("0.01", 0.01), (0.2, 0.2), (1, 1.0), ("0", 0.0), ("100%", 1.0)]
)
def test_a_share(word, part):
    assert parse_fraction(word) == pytest.approx(part)


@pytest.mark.parametrize("word", ["", "%", "101%", "-1%", "2", "nan", "nan%", True, None, "1%%"])
def test_what_no_share_is(word):
    with pytest.raises(SettingsError, match="must be a share"):
        parse_fraction(word)


def test_settings_of_limits_come_from_anywhere():
    settings = load_settings({"expect_users": 747}, {"BPR_ETL_MAX_BAD": "1%", "BPR_ETL_MAX_SHADOW_SHARE": "0.99"})
    assert (settings.expect_users, settings.max_bad, settings.max_shadow_share) == ("747", 0.01, 0.99)
    with pytest.raises(SettingsError, match="--shadow-domain must be the domain"):
        load_settings({"shadow_domain": "a@b"}, {})


@pytest.mark.parametrize(("users", "holds"), [(711, True), (784, True), (709, False), (785, False), (0, False)])
def test_users_are_as_many_as_expected(users, holds):
    settings = Settings(expect_users="747±5%")
    if holds:
        check_user_count(settings, users, None)
    else:
        with pytest.raises(DataError, match=rf"{users:,} shadow users, and --expect-users says 747±5%"):
            check_user_count(settings, users, None)


def test_a_share_of_users_that_is_too_large():
    check_user_count(Settings(max_shadow_share=0.99), 99, 100)
    check_user_count(Settings(), 100, 100)
    with pytest.raises(DataError, match=r"100 of 100 users \(100.0%\)"):
        check_user_count(Settings(max_shadow_share=0.99), 100, 100)


def test_a_share_of_bad_rows_that_is_too_large():
    bad = {"rows of slots": (1, 100), "trip-days": (3, 200), "rows of nodes": (0, 0)}
    check_rejected_share(Settings(), bad)
    check_rejected_share(Settings(max_bad=0.015), bad)
    with pytest.raises(DataError, match=r"3 of 200 trip-days \(1.50%\), and --max-bad allows 1.00%") as refused:
        check_rejected_share(Settings(max_bad=0.01), bad)
    assert "slots" not in str(refused.value)
    with pytest.raises(DataError, match="rows of slots"):
        check_rejected_share(Settings(max_bad=0), bad)


def test_several_domains_are_said():
    assert multiple_domains_warning([]) is None
    assert multiple_domains_warning([("a.test", 5)]) is None
    said = multiple_domains_warning([(f"{letter}.test", 9) for letter in "abcdefg"] + [("", 1)])
    assert "8 domains (a.test 9, b.test 9" in said
    assert "and 3 more" in said
    assert "(none) 1" in multiple_domains_warning([("a.test", 5), ("", 1)])


@pytest.mark.parametrize(
    ("word", "share"), [("20%", 0.2), ("150%", 1.5), ("0", 0.0), (0.25, 0.25), ("1.5", 1.5), ("off", None)]
)
def test_how_far_a_figure_may_move(word, share):
    assert parse_relative_change(word) == (pytest.approx(share) if share is not None else None)


@pytest.mark.parametrize("word", ["", "%", "-1%", "nan", "inf", True, None, "of"])
def test_what_no_move_is(word):
    with pytest.raises(SettingsError, match="must be a share like 20%, or off"):
        parse_relative_change(word)
