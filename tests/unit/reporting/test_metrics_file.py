"""The metrics file: what a good night says, what a failed one keeps, and that an alert finds what it asks for."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from etl.errors import SettingsError
from etl.reporting.metrics_file import MAX_CITIES, METRICS, Outcome, require_writable, write

ALERTS = Path(__file__).parents[3] / "docs" / "alerts" / "bpr-etl.rules.yml"
NIGHT = datetime(2026, 1, 1, 3, tzinfo=UTC)
FACTS = {
    "steps": [{"step": "stage files", "seconds": 1.5, "rows": 7}],
    "shadow_users": 155,
    "shadow_users_without_persona": 4,
    "source_rows": {"trips": 606},
    "days_without_event": {"city_without_nodes": 2},
    "set_aside": {"slots": {"day_number nullability": 3}},
    "probe": {"auc": {"mean": 0.7}, "auc_of_popularity": {"mean": 0.6}},
    "published": {
        "events": {"Rome": 40, "Village": 30},
        "triples": {'R"o\nme\\': 9},
        "positives": 12,
        "users": 151,
        "items": 20,
        "cities_left_out": {"Village": "small"},
        "positives_left_out": {"no_negatives": 1},
    },
    "written": {"RankingEvent": {"inserted": 2, "deleted": 1, "unchanged": 68}},
    "warnings": ["Half of them are gone.", "There is no index."],
}
GOOD = Outcome(NIGHT, 61.5, 0, 2.0**28, FACTS)


def samples(path: Path) -> dict[tuple[str, ...], float]:
    """Every sample of a textfile, as Prometheus reads it: its name and its labels' values."""
    families = text_string_to_metric_families(path.read_text(encoding="utf-8"))
    return {
        (each.name, *(each.labels[label] for label in METRICS[each.name][1])): each.value
        for family in families
        for each in family.samples
    }


def test_a_good_night_says_when_how_long_and_how_much(tmp_path):
    write(tmp_path / "a.prom", GOOD)
    assert samples(tmp_path / "a.prom") == {
        ("bpr_etl_last_run_timestamp_seconds",): NIGHT.timestamp(),
        ("bpr_etl_last_success_timestamp_seconds",): NIGHT.timestamp(),
        ("bpr_etl_exit_code",): 0,
        ("bpr_etl_run_seconds",): 61.5,
        ("bpr_etl_peak_memory_bytes",): 2**28,
        ("bpr_etl_step_seconds", "stage files"): 1.5,
        ("bpr_etl_rows", "shadow_users"): 155,
        ("bpr_etl_rows", "trips_read"): 606,
        ("bpr_etl_rows", "ranking_events"): 70,
        ("bpr_etl_rows", "triples"): 9,
        ("bpr_etl_rows", "positives"): 12,
        ("bpr_etl_rows", "users"): 151,
        ("bpr_etl_rows", "items"): 20,
        ("bpr_etl_rows", "cities"): 1,
        ("bpr_etl_rows", "set_aside_rows"): 3,
        ("bpr_etl_written_rows", "RankingEvent", "inserted"): 2,
        ("bpr_etl_written_rows", "RankingEvent", "deleted"): 1,
        ("bpr_etl_written_rows", "RankingEvent", "unchanged"): 68,
        ("bpr_etl_left_out_rows", "shadow_users", "without_persona"): 4,
        ("bpr_etl_left_out_rows", "trip_days", "city_without_nodes"): 2,
        ("bpr_etl_left_out_rows", "rows_of_slots", "day_number nullability"): 3,
        ("bpr_etl_left_out_rows", "events", "small_catalog"): 30,
        ("bpr_etl_left_out_rows", "positives", "no_negatives"): 1,
        ("bpr_etl_triples", 'R"o\nme\\'): 9,
        ("bpr_etl_warnings",): 2,
        ("bpr_etl_auc", "model"): 0.7,
        ("bpr_etl_auc", "popularity"): 0.6,
    }


def test_every_metric_has_help_and_is_a_gauge(tmp_path):
    write(tmp_path / "a.prom", GOOD)
    text = (tmp_path / "a.prom").read_text()
    for name in METRICS:
        assert re.search(rf"^# HELP {name} \S.*\.$", text, re.MULTILINE)
        assert f"# TYPE {name} gauge\n" in text


def test_a_failed_night_keeps_the_last_good_one_s_time_and_figures(tmp_path):
    path = tmp_path / "a.prom"
    write(path, GOOD)
    good = samples(path)
    for days in (1, 2):
        write(path, Outcome(NIGHT + timedelta(days=days), 2.0, 5, 2.0**20, {}))
        assert samples(path) == good | {
            ("bpr_etl_last_run_timestamp_seconds",): NIGHT.timestamp() + days * 86_400,
            ("bpr_etl_exit_code",): 5,
            ("bpr_etl_run_seconds",): 2,
            ("bpr_etl_peak_memory_bytes",): 2**20,
        }


def test_a_night_with_nothing_to_do_is_a_good_one(tmp_path):
    write(tmp_path / "a.prom", replace(GOOD, exit_code=99))
    found = samples(tmp_path / "a.prom")
    assert found["bpr_etl_last_success_timestamp_seconds",] == NIGHT.timestamp()
    assert found["bpr_etl_exit_code",] == 99


def test_a_first_night_that_failed_has_no_success(tmp_path):
    write(tmp_path / "a.prom", Outcome(NIGHT, 2.0, 3, 1.0, {}))
    assert ("bpr_etl_last_success_timestamp_seconds",) not in samples(tmp_path / "a.prom")


@pytest.mark.parametrize(
    "before", [b"", b"bpr_etl_rows{figure=", b'bpr_etl_rows{other="1"} 2\n', b"# HELP bpr_etl_rows \xff\xfe"]
)
def test_whatever_lay_there_before_is_no_obstacle(tmp_path, before):
    path = tmp_path / "a.prom"
    path.write_bytes(before)
    write(path, Outcome(NIGHT, 2.0, 3, 1.0, {}))
    assert samples(path)["bpr_etl_exit_code",] == 3


@pytest.mark.parametrize(
    "before", [b"\xff\xfe", b"a b c\n", b"20261128T190000000000Z-0123456789ab", b"# HELP go_gc x\n"]
)
def test_a_file_of_something_else_is_not_replaced(tmp_path, before):
    path = tmp_path / "a.prom"
    path.write_bytes(before)
    with pytest.raises(SettingsError, match="something else"):
        require_writable(path, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="something else"):
        write(path, Outcome(NIGHT, 2.0, 3, 1.0, {}))
    assert path.read_bytes() == before


def test_the_number_of_series_does_not_grow_with_the_cities(tmp_path):
    for number, told in ((MAX_CITIES, MAX_CITIES), (MAX_CITIES + 1, 0)):
        cities = {f"city {each}": 1 for each in range(number)}
        published = FACTS["published"] | {
            "events": cities,
            "triples": cities,
            "cities_left_out": dict.fromkeys(cities, ""),
        }
        write(tmp_path / "a.prom", replace(GOOD, facts=FACTS | {"published": published}))
        found = samples(tmp_path / "a.prom")
        assert sum(name == "bpr_etl_triples" for name, *_ in found) == told
        assert found["bpr_etl_rows", "triples"] == number
        assert found["bpr_etl_left_out_rows", "events", "small_catalog"] == number


def test_the_file_is_whole_readable_for_all_and_alone(tmp_path):
    before = os.umask(0o077)
    try:
        write(tmp_path / "a.prom", GOOD)
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["a.prom"]
    assert (tmp_path / "a.prom").stat().st_mode & 0o777 == 0o644


def test_a_link_of_the_passing_name_is_not_followed(tmp_path, monkeypatch):
    """In a folder that others may write to, nobody guesses it; who did all the same would have no file overwritten."""
    (tmp_path / "precious").write_text("precious")
    monkeypatch.setattr("etl.runtime.files.secrets.token_hex", lambda _: "guessed")
    for name in (f".a.prom.{os.getpid()}.tmp", ".a.prom-guessed"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        write(tmp_path / "a.prom", GOOD)
    monkeypatch.undo()
    write(tmp_path / "a.prom", GOOD)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_that_can_t_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "a.prom").mkdir()
    with pytest.raises(ValueError, match="not a file"):
        write(tmp_path / "a.prom", GOOD)
    assert [path.name for path in tmp_path.iterdir()] == ["a.prom"]


def test_a_place_that_can_t_be_written_is_found_before_the_night(tmp_path):
    require_writable(tmp_path / "a.prom", "out")
    for path in (tmp_path, tmp_path / "nowhere" / "a.prom", Path("/dev/null/a.prom")):
        with pytest.raises(SettingsError, match=r"--metrics-file .* can't be written"):
            require_writable(path, "out")


def test_every_alert_asks_for_metrics_and_labels_that_are_written():
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {"BprEtlRunMissing", "BprEtlRunFailed", "BprEtlRunSmall"} <= {rule["alert"] for rule in rules}
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"].keys() == {"summary", "description"}
        named = re.findall(r"(bpr_etl_\w+)(?:\{([^}]*)\})?", rule["expr"])
        assert named
        for name, labels in named:
            assert name in METRICS
            assert set(re.findall(r"(\w+)=", labels)) <= set(METRICS[name][1])
        told = " ".join(rule["annotations"].values())
        assert set(re.findall(r"bpr_etl_\w+", told)) <= set(METRICS)


def test_the_figures_that_the_alert_for_small_nights_names_are_written(tmp_path):
    (figures,) = set(re.findall(r'figure=~"([^"]+)"', ALERTS.read_text(encoding="utf-8")))
    write(tmp_path / "a.prom", GOOD)
    assert {("bpr_etl_rows", figure) for figure in figures.split("|")} <= set(samples(tmp_path / "a.prom"))


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_is_not_a_file_is_not_put_in_a_file_s_place(tmp_path, kind):
    path = Path("/dev/null") if kind == "device" else tmp_path / "pipe"
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(SettingsError, match="it is not a file"):
        require_writable(path, "out")
