"""Words that choose triples, and what they come to."""

from __future__ import annotations

import pytest

from etl.errors import SettingsError
from etl.settings.sources import load_settings
from etl.settings.values import (
    LARGE_CATALOGUE,
    NegativeSampling,
    NegativeStrategies,
    SplitSpec,
    TableName,
    parse_city_weights,
    parse_tables,
    parse_tasks,
)


@pytest.mark.parametrize(
    ("words", "alpha", "nodes", "found"),
    [
        (["ranking"], None, 72, NegativeSampling(ranking=True)),
        (["shown", "catalog:3"], None, 72, NegativeSampling(shown=True, catalog=3)),
        (["catalog:3"], 0.5, 10**6, NegativeSampling(catalog=3, alpha=0.5)),
        (["catalog:3"], None, 10**6, NegativeSampling(catalog=3)),
        (["recommended"], None, LARGE_CATALOGUE - 1, NegativeSampling(catalog=16)),
        (["recommended"], None, LARGE_CATALOGUE, NegativeSampling(catalog=16, alpha=0.5)),
        (["recommended"], 0.0, LARGE_CATALOGUE, NegativeSampling(catalog=16)),
        (["recommended", "ranking"], 1.0, 72, NegativeSampling(ranking=True, catalog=16, alpha=1.0)),
    ],
)
def test_what_strategies_come_to_in_a_city(words, alpha, nodes, found):
    assert NegativeStrategies(words).for_city(nodes, alpha) == found


@pytest.mark.parametrize(
    ("word", "schema", "table"),
    [
        ("audit", (), ("audit",)),
        ("RankingFeedback", (), ("RankingFeedback", "rankingfeedback")),
        ("App.audit_log", ("App", "app"), ("audit_log",)),
        ('app."Log.s, ""old"""', ("app",), ('Log.s, "old"',)),
        ('"App"."Audit"', ("App",), ("Audit",)),
        ("protokolle.änderungen$1", ("protokolle",), ("änderungen$1",)),
    ],
)
def test_a_table_as_people_name_it(word, schema, table):
    name = TableName(word)
    assert (name.schema, name.table) == (schema, table)
    assert parse_tables([f"{word} , x", "x"]) == (word, "x")


def test_a_strategy_is_written_out_as_it_would_be_given():
    assert NegativeSampling(ranking=True, catalog=4, alpha=0.5).as_dict() == {
        "negatives": ["ranking", "catalog:4"],
        "catalog_alpha": 0.5,
    }
    assert NegativeSampling(shown=True).as_dict() == {"negatives": ["shown"]}


@pytest.mark.parametrize(
    "word", ["catalog", "catalog:", "catalog:0", "catalog:1001", "catalog:-1", "catalog:1.5", "catalog:٣", "", 3, None]
)
def test_what_is_no_strategy_is_refused(word):
    with pytest.raises(SettingsError, match="catalog:N"):
        NegativeStrategies([word])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("none", ("none", ())),
        ("last-trip", ("last-trip", ())),
        ("time:1970-01-02", ("time", (86_400,))),
        ("time:1970-01-01,1970-01-01T00:00:01", ("time", (0, 1))),
        ("time:1970-01-01T02:00:00+02:00", ("time", (0,))),
        ("time:1969-12-31", ("time", (-86_400,))),
    ],
)
def test_splits_are_read(text, found):
    split = SplitSpec(text)
    assert (split.kind, split.cuts) == found
    assert split == text


@pytest.mark.parametrize("text", ["time:", "time", "time:2026-01-01T00:00:00.5", "time:1,2,3", "last_trip", None])
def test_what_is_no_split_is_refused(text):
    with pytest.raises(SettingsError, match="must"):
        SplitSpec(text)


def test_weights_of_cities_come_from_anywhere():
    """A comma parts only behind a weight, since names of cities have commas; a table in the file will do, too."""
    expected = (("New York", 2.0), ("Washington, DC", 0.5))
    assert parse_city_weights("Washington, DC=0.5, New York=2") == expected
    assert parse_city_weights(["New York=2", "Washington, DC=0.5"]) == expected
    assert parse_city_weights({"Washington, DC": 0.5, "New York": 2}) == expected
    assert parse_city_weights(["a=b=3"]) == (("a=b", 3.0),)
    environ = {"BPR_ETL_CITY_WEIGHT": "Washington, DC=0.5,New York=2", "BPR_ETL_NEGATIVES": "ranking,catalog:4"}
    settings = load_settings({}, environ)
    assert settings.city_weight == expected
    assert settings.negatives == ("ranking", "catalog:4")


def test_a_settings_file_says_them_too(tmp_path):
    file = tmp_path / "bpr-etl.toml"
    file.write_text(
        'negatives = ["shown", "recommended"]\nsplit = "time:2026-01-01"\nshuffle = true\ncatalog-alpha = 1\n'
        'fail-below = 0.6\n[city-weight]\n"New York" = 2\n'
    )
    settings = load_settings({"config": str(file)}, {})
    assert settings.negatives == ("shown", "recommended")
    assert (settings.split, settings.shuffle, settings.catalog_alpha) == ("time:2026-01-01", True, 1.0)
    assert (settings.fail_below, settings.city_weight) == (0.6, (("New York", 2.0),))
    assert settings.manifest_settings()["city_weight"] == [("New York", 2.0)]


@pytest.mark.parametrize(
    ("value", "tasks"),
    [
        ("triples", ("triples",)),
        (["next", "triples"], ("triples", "next")),
        ("next, triples", ("triples", "next")),
        (("next", "next"), ("next",)),
    ],
)
def test_tasks_are_named_once_in_the_order_of_their_tables(value, tasks):
    assert parse_tasks(value) == tasks
    assert load_settings({"task": value}, {}).task == tasks


@pytest.mark.parametrize("value", ["", [], "nxt", ["next", 3], None, 3])
def test_what_is_no_task_is_refused(value):
    with pytest.raises(SettingsError, match="triples, next"):
        parse_tasks(value)


@pytest.mark.parametrize("value", ["New York", "New York=x", "New York=inf", "New York=-1", [""]])
def test_what_is_no_weight_is_refused(value):
    with pytest.raises(SettingsError, match="New York=2"):
        parse_city_weights(value)
