"""Where a setting comes from, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import fields, replace
from pathlib import Path

import pytest

from etl.errors import SettingsError
from etl.settings.model import ROW_SETTINGS, TRIPLE_SETTINGS, Settings
from etl.settings.sources import load_settings, unknown_variables, with_options


def test_option_environment_file_default(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('seed = 1\nout = "file"\nmin-catalog = 7\nids = "both"\n')
    settings = load_settings(
        {"seed": 3, "config": str(file), "out": None}, {"BPR_ETL_SEED": "2", "BPR_ETL_OUT": "environment"}
    )
    assert (settings.seed, settings.out, settings.min_catalog, settings.ids) == (3, "environment", 7, "both")
    assert settings.rows_per_file == 1_000_000


@pytest.mark.parametrize(
    ("line", "variable", "expected"),
    [("true", "1", True), ("false", "no", False), ('"ok"', "ok", "ok")],
)
def test_a_flag_with_a_word_is_still_a_flag_everywhere(tmp_path, line, variable, expected):
    file = tmp_path / "own.toml"
    file.write_text(f"skip-unchanged = {line}")
    for settings in (
        load_settings({"config": str(file)}, {}),
        load_settings({}, {"BPR_ETL_SKIP_UNCHANGED": variable}),
        Settings(skip_unchanged=expected),
        replace(Settings(), skip_unchanged=expected),
    ):
        assert settings.skip_unchanged is expected or settings.skip_unchanged == expected == "ok"


def test_the_file_may_be_named_by_the_environment(tmp_path):
    (tmp_path / "own.toml").write_text("seed = 4")
    assert load_settings({}, {"BPR_ETL_CONFIG": str(tmp_path / "own.toml")}).seed == 4


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DATABASE_URL": "c"}, "c"),
        ({"DATABASE_URL": "c", "DIRECT_URL": "b"}, "b"),
        ({"DATABASE_URL": "c", "DIRECT_URL": "b", "BPR_ETL_DATABASE_URL": "a"}, "a"),
        ({"DATABASE_URL": "c", "DIRECT_URL": ""}, "c"),
    ],
)
def test_the_url_s_variables_in_their_order(variables, expected):
    assert load_settings({}, variables).database_url == expected
    assert load_settings({"database_url": "option"}, variables).database_url == "option"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": -1}, "--seed must be a whole number"),
        ({"seed": "x"}, "--seed must be a whole number"),
        ({"ids": "Both"}, "did you mean 'both'"),
        *(({"scale": scale}, "above 0, at most 1000") for scale in (0, -1, math.inf, math.nan, 1_001)),
        ({"shadow_prefix": ""}, "must not be empty"),
        ({"negatives": ["catalogue:16"]}, "must be ranking, shown, catalog:N"),
        ({"negatives": ["catalog:0"]}, "catalog:N"),
        ({"negatives": ["catalog:4", "recommended"]}, "once"),
        ({"split": "last"}, "must be none, last-trip, time:"),
        ({"split": "last_trip"}, "did you mean 'last-trip'"),
        ({"split": "time:2026-02-01,2026-01-01"}, "the second is later"),
        ({"split": "time:yesterday"}, "dates like"),
        ({"catalog_alpha": -1}, "from 0 to 10"),
        ({"password_command": "cat 'x"}, "must be a command whose quotes are closed"),
        ({"surface": ["a", ""]}, "must not be empty"),
        ({"skip_unchanged": "fine"}, "must be true, false or ok"),
        ({"surface": 7}, "must be the names of surfaces"),
        ({"city_weight": ["New York"]}, "New York=2"),
        ({"city_weight": ["New York=0"]}, "above 0"),
        ({"city_weight": ["a=1", "a=2"]}, "each city once"),
        ({"fail_below": 1.5}, "from 0 to 1"),
        *(
            ({"allow_side_effects": names}, "must be the names of tables")
            for names in ("", "a,", "a.b.c", 'a"b', '"a', "a b", '""', '"a,b', 7, [7.5])
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(given, said):
    with pytest.raises(SettingsError, match="from the command line") as refused:
        load_settings(given, {})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"min_catalog": "fifty"}, "--min-catalog must be a whole number from 0 up ('fifty' from the command line)."),
        (
            {"ids": "Both"},
            "--ids must be one of string, index, both ('Both' from the command line); did you mean 'both'?",
        ),
        (
            {"negatives": ["x"]},
            "--negatives must be ranking, shown, catalog:N (N from 1 to 1000) or recommended, not 'x' (from the command line).",
        ),
        (
            {"allow_side_effects": ["a", "a.b.c"]},
            (
                "--allow-side-effects must be the names of tables: table or schema.table, in double quotes where it has a dot or "
                "a space ('a', 'a.b.c' from the command line)."
            ),
        ),
        ({"outt": "x"}, "There is no setting 'outt'; did you mean 'out'?"),
        ({"xyzzy": "x"}, "There is no setting 'xyzzy'."),
    ],
)
def test_an_error_is_one_sentence_with_one_mark_at_its_end(given, said):
    with pytest.raises(SettingsError) as refused:
        load_settings(given, {})
    assert str(refused.value) == said


def test_values_are_parsed_once_and_spelt_as_they_were_given():
    said = {
        "negatives": "shown,catalog:4",
        "split": "time:2026-01-01",
        "expect_users": "747+-5%",
        "allow_side_effects": "A.b",
    }
    settings = load_settings(said, {})
    assert (settings.negatives.samples, settings.split.cuts) == (4, (1_767_225_600,))
    assert (settings.expect_users.tolerance, settings.allow_side_effects[0].schema) == (0.05, ("A", "a"))
    assert (settings.split, settings.expect_users) == ("time:2026-01-01", "747+-5%")
    for again in (replace(settings, seed=1), pickle.loads(pickle.dumps(settings)), Settings(**said)):  # noqa: S301
        assert (again.negatives.samples, again.split.kind) == (4, "time")
        assert again.expect_users.number == 747
    manifest = settings.manifest_settings()
    assert json.loads(json.dumps(manifest)) == manifest | {"city_weight": []}
    assert (manifest["negatives"], manifest["split"]) == (["shown", "catalog:4"], "time:2026-01-01")


def test_each_setting_of_the_manifest_is_marked_where_it_is_declared():
    names = "schema naming map shadow_prefix shadow_domain keep_foreign_rows audience surface task negatives reject catalog_alpha"
    names += " split min_catalog small_catalog city_weight shuffle history ids vocab_from rows_per_file seed"
    assert list(Settings().manifest_settings()) == names.split()
    rows = "schema map shadow_prefix shadow_domain keep_foreign_rows audience surface"
    assert list(ROW_SETTINGS) == rows.split()
    assert TRIPLE_SETTINGS[len(ROW_SETTINGS) :] == (
        *("task", "negatives", "reject", "catalog_alpha", "split", "min_catalog", "small_catalog"),
    )


@pytest.mark.parametrize("content", ["seed = ", "seed = true", "sede = 1", 'dry_run = "perhaps"'])
def test_a_wrong_file_is_refused_with_its_name(content, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=r"own\.toml"):
        load_settings({"config": str(file)}, {})


def test_a_flag_can_be_said_everywhere(tmp_path):
    (tmp_path / "own.toml").write_text("dry-run = true")
    given = {"config": str(tmp_path / "own.toml")}
    assert load_settings(given, {}).dry_run
    assert not load_settings(given, {"BPR_ETL_DRY_RUN": "off"}).dry_run
    assert load_settings(given | {"dry_run": True}, {"BPR_ETL_DRY_RUN": "0"}).dry_run


WRONG = [
    ({"negatives": "nonsense"}, "must be ranking, shown, catalog:N"),
    ({"negatives": "rankin"}, "did you mean 'ranking'"),
    ({"audience": "bar"}, "audience must be one of shadow, real, all ('bar' from the call)"),
    ({"audience": None}, "audience must be one of"),
    ({"audience": "shadwo"}, "did you mean 'shadow'"),
    ({"ids": "Both"}, "did you mean 'both'"),
    ({"seed": "x"}, "whole number"),
    ({"seed": True}, "whole number"),
    ({"keep": 0}, "whole number from 1"),
    ({"min_catalog": -1}, "whole number"),
    ({"shuffle": "perhaps"}, "true or false"),
    ({"out": ""}, "out must not be empty"),
    ({"out": " \t"}, "out must not be empty"),
    ({"out": 7}, "out must be a text"),
    ({"schema": ""}, "schema must not be empty"),
    ({"snapshot": ""}, "snapshot must not be empty"),
    ({"vocab_from": "s4://bucket/x"}, "must be a local folder, or one of s3://bucket/path"),
    ({"split": "last_trip"}, "did you mean 'last-trip'"),
    ({"city_weight": [("Rome", 0)]}, "above 0"),
    ({"engine": "spark"}, "must be local, ray"),
    ({"quiet": True, "verbose": True}, "contradict"),
    ({"fail_on_change": True, "max_change": "off"}, "no limit to go by"),
]


@pytest.mark.parametrize(("values", "said"), WRONG, ids=map(str, range(len(WRONG))))
def test_settings_are_checked_where_they_are_made(values, said):
    for make in (lambda: Settings(**values), lambda: replace(Settings(), **values)):
        with pytest.raises(SettingsError) as refused:
            make()
        assert said in str(refused.value)


def test_settings_that_were_checked_are_taken_as_they_are():
    said = {
        "negatives": "ranking,catalog:4",
        "split": "time:2026-01-01",
        "city_weight": "Rome=2,Washington, DC=0.5",
        "max_change": "20%",
        "max_bad": "1%",
        "expect_users": 747,
        "shadow_domain": "@x.test",
        "seed": "7",
        "shuffle": "on",
        "out": Path("somewhere"),
        "keep": "3",
        "max_wait": "5",
        "fail_below": "0.5",
    }
    made, resolved = Settings(**said), load_settings(said, {})
    assert (
        made == resolved == replace(made) == Settings(**{each.name: getattr(made, each.name) for each in fields(made)})
    )
    assert (made.city_weight, made.max_change, made.out) == ((("Rome", 2.0), ("Washington, DC", 0.5)), 0.2, "somewhere")
    assert Settings(max_change="off").max_change is Settings(max_change=None).max_change is None


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("BPR_ETL_OUTT", "BPR_ETL_OUT"),
        ("BPR_ETL_NEGATIVE", "BPR_ETL_NEGATIVES"),
        ("BPR_ETL_Seed", "BPR_ETL_SEED"),
        ("bpr_etl_out", "BPR_ETL_OUT"),
        ("Bpr_Etl_Negativs", "BPR_ETL_NEGATIVES"),
        ("BPR_ETL_DATABASE", "BPR_ETL_DATABASE_URL"),
        ("BPR_ETL_CONFG", "BPR_ETL_CONFIG"),
        ("BPR_ETL_SHADOW-PREFIX", "BPR_ETL_SHADOW_PREFIX"),
        ("BPR_ETL_FAIL_ON_CHANGES", "BPR_ETL_FAIL_ON_CHANGE"),
    ],
)
def test_a_mistyped_variable_is_named_and_what_was_meant(variable, meant):
    with pytest.raises(SettingsError, match=rf"{variable} .*did you mean {meant}\?"):
        load_settings({}, {variable: "x"})


def test_a_variable_that_resembles_no_option_is_somebody_else_s_and_is_warned_of():
    """Kubernetes gives every pod some for a service that is called bpr-etl."""
    of_kubernetes = ["BPR_ETL_PORT", "BPR_ETL_PORT_80_TCP", "BPR_ETL_PORT_80_TCP_ADDR", "BPR_ETL_SERVICE_HOST"]
    ours = ["BPR_ETL_TEST_DATABASE_URL", "BPR_ETL_BENCH_DIR", "BPR_ETL_CONFIG", "_BPR_ETL_COMPLETE", "BPR_ETL_SEED"]
    environ = dict.fromkeys(of_kubernetes, "") | dict.fromkeys(ours, "0") | {"BPR_ETL_CONFIG": ""}
    assert load_settings({}, environ) == Settings()
    assert unknown_variables(environ) == of_kubernetes


def test_an_option_that_is_none_is_named_and_what_was_meant():
    with pytest.raises(SettingsError, match=r"There is no setting .negative.; did you mean .negatives.\?$"):
        load_settings({"negative": "shown"}, {})


def test_where_to_publish_is_never_empty(tmp_path):
    (tmp_path / "own.toml").write_text('out = ""')
    for given, environ in (({"out": ""}, {}), ({}, {"BPR_ETL_OUT": " "})):
        with pytest.raises(SettingsError, match="--out must not be empty"):
            load_settings(given, environ)
    with pytest.raises(SettingsError, match="--out must not be empty"):
        load_settings({"config": str(tmp_path / "own.toml")}, {})


def test_an_empty_variable_is_refused():
    """A script's undefined variable must not switch a limit off; other programs' variables may be empty."""
    for name in ("OUT", "SCHEMA", "MAX_BAD", "DRY_RUN", "DATABASE_URL"):
        with pytest.raises(SettingsError, match=f"BPR_ETL_{name} is empty"):
            load_settings({}, {f"BPR_ETL_{name}": ""})
    assert load_settings({}, {"DATABASE_URL": "", "DIRECT_URL": "", "BPR_ETL_CONFIG": ""}) == Settings()


def test_without_an_environment_it_is_this_process_s(monkeypatch):
    monkeypatch.setenv("BPR_ETL_SEED", "7")
    assert load_settings({}).seed == 7
    assert load_settings({}, {}).seed == 0
    assert (with_options(None, {"out": "x"}).seed, with_options(None, {"seed": 1}).seed) == (7, 1)
    assert with_options(Settings(out="x"), {"seed": 1}) == Settings(out="x", seed=1)


@pytest.mark.parametrize("settings", [None, Settings()])
def test_an_option_of_a_call_is_checked_as_such(settings):
    with pytest.raises(SettingsError, match=r"^negatives must be .* \(from the call\); did you mean 'shown'\?$"):
        with_options(settings, {"negatives": "show"})
    with pytest.raises(SettingsError, match="did you mean 'out'"):
        with_options(settings, {"outt": "x"})


def test_a_secret_is_in_no_repr_and_no_public_settings():
    settings = load_settings({"database_url": "postgresql://u:s3cr3t@h/d"}, {"PGPASSWORD": "s3cr3t"})
    assert "s3cr3t" not in repr(settings)
    assert "s3cr3t" not in str(settings.manifest_settings())


@pytest.mark.parametrize("out", ["s3:/bucket/x", "s3//bucket/x", "S3:bucket", "~/bpr", "~", "file:/srv/bpr"])
def test_what_is_almost_a_url_or_a_home_is_no_folder(out):
    with pytest.raises(
        SettingsError, match="--out must be a folder, written out where it begins with ~, or a URL with ://"
    ):
        load_settings({"out": out}, {})
    assert load_settings({"out": f"./{out}"}, {}).out == f"./{out}"


@pytest.mark.parametrize("options", [{"foo": None}, {"foo": 1}, {"config": "x"}])
def test_a_call_with_an_option_that_does_not_exist(options):
    with pytest.raises(SettingsError, match="There is no setting"):
        with_options(Settings(), options)


@pytest.mark.parametrize("value", [None, 1])
def test_a_call_without_settings_and_with_an_option_that_does_not_exist(value):
    with pytest.raises(SettingsError, match="There is no setting 'foo'"):
        with_options(None, {"foo": value})


@pytest.mark.parametrize(
    "given", [{"keep": 10**5000}, {"city_weight": {"Rome": 1e308}}, {"city_weight": {"Rome": 1e-60}}]
)
def test_numbers_beyond_what_can_be_used(given):
    with pytest.raises(SettingsError, match=r"--keep|--city-weight"):
        load_settings(given, {})


def test_an_address_without_its_scheme_is_not_repeated():
    with pytest.raises(SettingsError) as raised:
        load_settings({"split": "u:S3cret@host/db"}, {})
    assert "S3cret" not in str(raised.value)
