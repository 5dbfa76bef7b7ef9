"""Where a setting comes from, and what is refused."""

from __future__ import annotations

import pytest

from etl.config import resolve
from etl.errors import SettingsError


def test_option_environment_file_default(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('seed = 1\nout = "file"\nmin-catalog = 7\nids = "both"\n')
    settings = resolve(
        {"seed": 3, "config": str(file), "out": None}, {"BPR_ETL_SEED": "2", "BPR_ETL_OUT": "environment"}
    )
    assert (settings.seed, settings.out, settings.min_catalog, settings.ids) == (3, "environment", 7, "both")
    assert settings.rows_per_file == 1_000_000


def test_the_file_may_be_named_by_the_environment(tmp_path):
    (tmp_path / "own.toml").write_text("seed = 4")
    assert resolve({}, {"BPR_ETL_CONFIG": str(tmp_path / "own.toml")}).seed == 4


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
    assert resolve({}, variables).database_url == expected
    assert resolve({"database_url": "option"}, variables).database_url == "option"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": -1}, "--seed must be a whole number"),
        ({"seed": "x"}, "--seed must be a whole number"),
        ({"ids": "Both"}, "did you mean 'both'"),
        ({"scale": 0}, "above 0"),
        ({"shadow_prefix": ""}, "must not be empty"),
        ({"negatives": ["catalogue:16"]}, "must be ranking, shown, catalog:N"),
        ({"negatives": ["catalog:0"]}, "catalog:N"),
        ({"negatives": ["catalog:4", "recommended"]}, "once"),
        ({"split": "last"}, "must be none, last-trip, time:"),
        ({"split": "last_trip"}, "did you mean 'last-trip'"),
        ({"split": "time:2026-02-01,2026-01-01"}, "the second is later"),
        ({"split": "time:yesterday"}, "dates like"),
        ({"catalog_alpha": -1}, "from 0 to 10"),
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
        resolve(given, {})
    assert said in str(refused.value)


@pytest.mark.parametrize("content", ["seed = ", "seed = true", "sede = 1", 'dry_run = "perhaps"'])
def test_a_wrong_file_is_refused_with_its_name(content, tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=r"own\.toml"):
        resolve({"config": str(file)}, {})


def test_a_flag_can_be_said_everywhere(tmp_path):
    (tmp_path / "own.toml").write_text("dry-run = true")
    given = {"config": str(tmp_path / "own.toml")}
    assert resolve(given, {}).dry_run
    assert not resolve(given, {"BPR_ETL_DRY_RUN": "off"}).dry_run
    assert resolve(given | {"dry_run": True}, {"BPR_ETL_DRY_RUN": "0"}).dry_run


def test_a_secret_is_in_no_repr_and_no_public_settings():
    settings = resolve({"database_url": "postgresql://u:s3cr3t@h/d"}, {"PGPASSWORD": "s3cr3t"})
    assert "s3cr3t" not in repr(settings)
    assert "s3cr3t" not in str(settings.public())
