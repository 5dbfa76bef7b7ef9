"""A run without triples is no success, unless that is meant; and what it publishes then can be read by everything."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import cli
import etl
from etl.errors import DataError
from etl.pipeline import published
from etl.settings.sources import load_settings
from etl.snapshots.validation import validate_snapshot
from tests.states import database_state, folder_state

NO_CATALOGUE = {"min_catalog": 9_999, "split": "last-trip"}


def triples(snapshot: str) -> dict[str, int]:
    """The files of triples and their rows, as the manifest and as the footers have them."""
    manifest = json.loads((Path(snapshot) / "manifest.json").read_text())
    listed = {entry["path"]: entry["rows"] for entry in manifest["files"] if entry["path"].startswith("triples/")}
    assert {path: pq.read_metadata(Path(snapshot) / path).num_rows for path in listed} == listed
    assert {path.split("/")[-2] for path in listed} <= set(manifest["cities"])
    assert [finding for finding in validate_snapshot(snapshot) if finding.broken] == []
    return listed


def changed(url: str, sql: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(sql)


@pytest.mark.parametrize("options", [{}, {"dry_run": True}, {"skip_unchanged": True}])
def test_a_run_without_triples_ends_before_anything_is_committed(small_world, settings_for, tmp_path, options):
    before = database_state(small_world)
    said = r"There are no triples: [\d,]+ positives .* catalogue is too small\. Nothing was .* --min-catalog .* --allow-empty"
    with pytest.raises(DataError, match=said):
        etl.run(settings_for(small_world, **NO_CATALOGUE, **options))
    assert database_state(small_world) == before
    assert folder_state(tmp_path / "out") == {}


def test_export_and_expand_publish_nothing_either(small_world, settings_for, tmp_path):
    out = etl.run(settings_for(small_world)).snapshot
    there = folder_state(tmp_path / "out")
    with pytest.raises(DataError, match="There are no triples"):
        etl.export(settings_for(small_world, **NO_CATALOGUE))
    with pytest.raises(DataError, match="There are no triples"):
        etl.expand(load_settings({"snapshot": out, "out": str(tmp_path / "out"), **NO_CATALOGUE}, {}))
    assert folder_state(tmp_path / "out") == there


@pytest.mark.parametrize("ids", ["string", "index", "both"])
def test_where_that_is_meant_each_part_is_a_file_without_rows(small_world, settings_for, tmp_path, ids):
    settings = settings_for(small_world, **NO_CATALOGUE, ids=ids, shuffle=ids == "both", allow_empty=True)
    report = etl.run(settings)
    (said,) = [each for each in report.warnings if "no triples" in each]
    assert "That was allowed" in said
    place = "city=Mexico%20City/part-00000.parquet"
    assert triples(report.snapshot) == {f"triples/split={part}/{place}": 0 for part in ("train", "valid", "test")}
    names = pq.read_schema(Path(report.snapshot) / f"triples/split=train/{place}").names
    assert names[:3] == (["user_idx", "pos_idx", "neg_idx"] if ids == "index" else ["user_id", "pos_item", "neg_item"])
    given = {"snapshot": report.snapshot, "small_catalog": "keep", "ids": ids}
    kept = etl.expand(load_settings({**given, "out": str(tmp_path / "kept")}, {}))
    straight = etl.export(settings_for(small_world, small_catalog="keep", ids=ids))
    assert triples(kept.snapshot) == triples(straight.snapshot)
    assert sum(triples(kept.snapshot).values()) > 0


def test_without_any_event_all_that_looks_at_a_snapshot_still_does(small_world, settings_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where `convert` writes its files
    changed(small_world, 'TRUNCATE "Trip", "ItinerarySlot" CASCADE')
    with pytest.raises(DataError, match="there is no ranking event to make them of"):
        etl.run(settings_for(small_world))
    for _ in range(2):
        report = etl.run(settings_for(small_world, allow_empty=True))
        assert list(triples(report.snapshot).values()) == [0]
    out = str(tmp_path / "out")
    expanded = etl.expand(load_settings({"snapshot": out, "out": out, "split": "last-trip", "allow_empty": True}, {}))
    assert list(triples(expanded.snapshot).values()) == [0, 0, 0]
    for command, exit_code in {"list": 0, "inspect": 0, "diff": 0, "report": 0, "convert": 0, "probe": 5}.items():
        done = CliRunner().invoke(cli.app, [command, out])
        assert (done.exit_code, type(done.exception)) == (exit_code, SystemExit if exit_code else type(None)), command
    again = CliRunner().invoke(cli.app, ["expand", out, "--out", out])
    assert again.exit_code == 5


def test_a_train_part_without_triples_is_no_success_and_can_t_be_probed(small_world, settings_for, tmp_path):
    with pytest.raises(
        DataError, match=r"--split time:1990-01-01 has no triples \(train 0, test [\d,]+\)\. Nothing was"
    ):
        etl.run(settings_for(small_world, split="time:1990-01-01"))
    report = etl.run(settings_for(small_world, split="time:1990-01-01", allow_empty=True))
    rows = triples(report.snapshot)
    assert [number for path, number in rows.items() if "split=train" in path] == [0]
    with pytest.raises(DataError, match="there are no triples, so there is nothing to probe"):
        published.probe(load_settings({"snapshot": str(tmp_path / "out")}, {}))


def test_a_valid_or_test_part_without_triples_is_a_warning(small_world, settings_for):
    earlier = 'SELECT FROM "Trip" o WHERE o."userId" = t."userId" AND o.id < t.id'
    changed(small_world, f'DELETE FROM "Trip" t WHERE EXISTS ({earlier})')
    report = etl.run(settings_for(small_world, split="last-trip"))
    (said,) = [each for each in report.warnings if "no triples" in each]
    assert "valid 0, test 0" in said
    rows = triples(report.snapshot)
    assert {path: number for path, number in rows.items() if "split=train" not in path} == {
        f"triples/split={part}/city=Mexico%20City/part-00000.parquet": 0 for part in ("valid", "test")
    }


def test_a_run_without_shadow_users_is_a_slip_unless_it_is_said_to_be_meant(small_world, settings_for):
    nobody = {"shadow_prefix": "nobody-"}
    with pytest.raises(DataError, match=r"begins with 'nobody-'.* Nothing was committed .* --expect-users 0"):
        etl.run(settings_for(small_world, **nobody))
    for meant in ({"allow_empty": True}, {"expect_users": "0"}):
        report = etl.run(settings_for(small_world, **nobody, **meant))
        assert list(triples(report.snapshot).values()) == [0]
        assert any("nothing to learn from" in each for each in report.warnings)
    etl.run(settings_for(small_world))
    with pytest.raises(DataError, match=r"had \d+, and an empty one would follow.* --expect-users 0"):
        etl.run(settings_for(small_world, **nobody, allow_empty=True))
