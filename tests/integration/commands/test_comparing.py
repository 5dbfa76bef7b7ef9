"""Nights beside each other: half the trips gone since yesterday, two snapshots compared, old ones taken away."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

import cli
import etl
from etl.errors import DataError, SettingsError
from etl.pipeline.context import RunResult
from etl.reporting.compare import MOVED_MUCH, compare_snapshots
from etl.settings.sources import load_settings
from etl.snapshots.publish import locked_store
from etl.snapshots.reading.snapshot import Snapshot, open_snapshot
from tests.states import database_state, folder_state


@pytest.fixture(scope="module")
def world(make_database, small_world_template):
    """URL of a small world that the tests of this module share; `halved` has half of its trips."""
    return make_database(small_world_template)


@pytest.fixture(scope="module")
def halved(make_database, small_world_template):
    url = make_database(small_world_template)
    with psycopg.connect(url) as connection:
        gone = "hashtext(id) % 2 = 0"
        connection.execute(f'DELETE FROM "ItinerarySlot" WHERE "tripId" IN (SELECT id FROM "Trip" WHERE {gone})')
        connection.execute(f'DELETE FROM "Trip" WHERE {gone}')
        connection.execute("UPDATE \"ActivityNode\" SET status = 'archived' WHERE hashtext(id) % 20 = 0")
    return url


def night(url: str, out: Path, **options: object) -> RunResult:
    return etl.run(load_settings({"database_url": url, "out": str(out), **options}, {}))


def moves(result: RunResult) -> list[str]:
    return [each for each in result.warnings if "--max-change" in each]


@pytest.fixture(scope="module")
def two_nights(world, halved, tmp_path_factory) -> tuple[Path, RunResult, RunResult]:
    out = tmp_path_factory.mktemp("nights") / "out"
    return out, night(world, out), night(halved, out)


def test_half_the_trips_gone_is_one_sentence_that_says_what_to_do(two_nights):
    _, first, second = two_nights
    assert moves(first) == []
    (said,) = moves(second)
    assert Path(first.snapshot).name in said
    trips = first.counts["source_rows"]["trips"], second.counts["source_rows"]["trips"]
    assert f"trips read went from {trips[0]:,} to {trips[1]:,} (-" in said
    assert "triples went from" in said
    assert "Check whether the source lost or gained rows" in said
    manifest = json.loads((Path(second.snapshot) / "manifest.json").read_text())
    assert said in manifest["warnings"]
    assert [(each.before, each.value) for each in second.metrics if each.name == "trips read"] == [trips]


def test_it_can_stop_the_night_before_anything_is_committed(two_nights, world, halved):
    out, *_ = two_nights
    before = database_state(world), folder_state(out)
    with pytest.raises(DataError, match=r"trips read went from .* Nothing was committed .* --no-fail-on-change"):
        night(world, out, fail_on_change=True)  # twice as many as the last
    assert (database_state(world), folder_state(out)) == before
    unmoved = night(halved, out, fail_on_change=True, dry_run=True)  # a dry run looks at the real nights
    assert (moves(unmoved), len(unmoved.previous_runs)) == ([], 2)


def test_how_far_is_too_far_can_be_said(two_nights, world):
    out, *_ = two_nights
    assert moves(night(world, out, max_change="900%", dry_run=True)) == []
    assert load_settings({"max_change": "off"}, {}).max_change is None
    with pytest.raises(SettingsError, match="--fail-on-change has no limit to go by"):
        load_settings({"max_change": "off", "fail_on_change": True}, {})


def test_other_settings_are_said_and_what_they_decide_is_not_compared(two_nights, world):
    out, *_ = two_nights
    other = night(world, out, negatives="catalog:2", dry_run=True)
    (said,) = moves(other)
    assert "trips read" in said
    assert "triples went" not in said
    assert any("none of them has the same --negatives" in note for note in other.notes)


def test_two_snapshots_side_by_side(two_nights):
    _, first, second = two_nights
    one, two = (open_snapshot(Path(each.snapshot)) for each in (first, second))
    found = compare_snapshots(one, two)
    assert not found.same_data
    assert found.settings == {}
    assert {each.name: (each.before, each.value) for each in found.figures}["trips read"] == (
        first.counts["source_rows"]["trips"],
        second.counts["source_rows"]["trips"],
    )
    assert {city.city for city in found.cities} == set(first.counts["published"]["events"])
    assert sum(each["items"] for each in found.statuses) > 0
    assert {each["after"] for each in found.statuses} == {"archived"}
    drifts = {each.name: each for each in found.drifts}
    assert drifts["users' trip_count"].verdict == MOVED_MUCH  # whose trips were halved
    assert drifts["positives over categories"].verdict == "steady"
    json.dumps(found.facts(), allow_nan=False)


def test_a_snapshot_and_itself_are_the_same_byte_by_byte(two_nights):
    one = open_snapshot(Path(two_nights[1].snapshot))
    found = compare_snapshots(one, Snapshot(one.folder, one.manifest))
    assert found.same_data
    assert all(each.psi == 0 for each in found.drifts)
    assert (found.users.added, found.users.gone, found.items.added, found.items.gone) == (0, 0, 0, 0)


def test_a_snapshot_with_a_file_missing_is_no_bug(two_nights, tmp_path):
    one = open_snapshot(Path(two_nights[1].snapshot))
    with pytest.raises(DataError, match="can't be compared"):
        compare_snapshots(one, Snapshot(tmp_path, one.manifest))


def called(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, list(words))
    return done.exit_code, done.output


def test_the_commands_that_look(two_nights):
    out, first, second = two_nights
    code, said = called("list", str(out))
    assert code == 0
    assert Path(first.snapshot).name in said
    assert "LATEST" in said
    code, said = called("diff", str(out))
    assert code == 0
    assert f"{Path(first.snapshot).name} → {Path(second.snapshot).name}" in said
    code, said = called("diff", first.snapshot, first.snapshot)
    assert code == 0
    assert "The same data, byte by byte." in said
    code, said = called("inspect", str(out), "--json")
    facts = json.loads(said)
    assert code == 0
    assert facts["columns"]["triples"]["user_id"] == "string"
    code, said = called("inspect", first.snapshot)
    assert code == 0
    assert "Mexico City" in said
    assert called("diff", first.snapshot)[0] == 2
    assert called("list", str(out / "nowhere"))[0] == 3


def test_a_night_can_keep_the_last_few_and_fails_by_no_prune(world, tmp_path, monkeypatch):
    out = tmp_path / "out"
    names = [Path(night(world, out, keep=1, seed=seed).snapshot).name for seed in range(2)]
    assert [path.name for path in (out / "snapshots").iterdir()] == names[1:]

    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("etl.reporting.history.LocalStore.remove", lambda _store, name: refused(Path(name)))
        last = night(world, out, keep=1)
    assert last.committed
    assert any("could not be removed" in each for each in last.warnings)
    assert (out / "LATEST").read_text() == Path(last.snapshot).name
    assert called("prune", str(out))[0] == 2  # how many?
    with locked_store(str(out)):
        assert called("prune", str(out), "--keep", "1")[0] == 6
    assert called("prune", str(out), "--keep", "1", "--dry-run")[0] == 0
    assert len(list((out / "snapshots").iterdir())) == 2
    assert called("prune", str(out), "--keep", "1")[0] == 0
    assert called("prune", str(out), "--keep", "1")[0] == 99


def nightly(url: str, out: Path, day: str, **options: object) -> RunResult:
    """A run at three o'clock of a day."""
    settings = load_settings({"database_url": url, "out": str(out), **options}, {})
    return etl.run(settings, clock=lambda: datetime.fromisoformat(f"{day}T03:00:00+00:00"))


def test_a_bad_run_is_found_and_is_no_yardstick(world, halved, tmp_path):
    out = tmp_path / "out"
    for day in range(1, 6):
        nightly(world, out, f"2026-11-0{day}")
    with pytest.raises(DataError, match=r"expected range of 5 earlier runs .*trips read went from .*, expected"):
        nightly(halved, out, "2026-11-06", fail_on_change=True)
    bad = nightly(halved, out, "2026-11-06")
    assert "5 earlier runs" in moves(bad)[0]
    odd = [each for each in bad.metrics if each.monitored and each.out_of_range]
    assert all(each.name in moves(bad)[0] for each in odd)  # the summary and the warning name the same
    again = nightly(halved, out, "2026-11-07", fail_on_change=True)  # let through once: it stops no more, and is said
    assert moves(again)
    restored = nightly(world, out, "2026-11-08", fail_on_change=True)
    assert (moves(restored), [each.name for each in restored.metrics if each.out_of_range]) == ([], [])
    assert next(each.change for each in restored.metrics if each.name == "trips read") > 0.5


def test_a_snapshot_of_the_future_is_the_last_one_as_long_as_latest_names_it(world, halved, tmp_path):
    out = tmp_path / "out"
    nightly(world, out, "2026-11-25")
    future = Path(nightly(halved, out, "2036-01-01").snapshot).name
    first = nightly(halved, out, "2026-11-26", fail_on_change=True)  # it is what the last run published
    assert any(f"dated after now (2026-11-26 03:00 UTC): {future}" in each for each in first.warnings)
    assert {each.since for each in first.metrics} == {future}
    with pytest.raises(DataError, match=Path(first.snapshot).name):
        nightly(world, out, "2026-11-27", fail_on_change=True)
    second = nightly(world, out, "2026-11-27", keep=3)
    assert [night.name for night in second.previous_runs][-1] == Path(first.snapshot).name
    assert future not in {path.name for path in (out / "snapshots").iterdir()}
    assert len(list((out / "snapshots").iterdir())) == 3
    third = nightly(world, out, "2026-11-28", fail_on_change=True)
    assert [each for each in third.warnings if "dated after" in each] == []


def test_a_run_is_compared_with_what_somebody_made_the_newest_again(world, halved, tmp_path):
    out = tmp_path / "out"
    good = nightly(world, out, "2026-11-25")
    nightly(halved, out, "2026-11-26")
    (out / "LATEST").write_text(Path(good.snapshot).name)
    assert moves(nightly(world, out, "2026-11-27", fail_on_change=True)) == []
