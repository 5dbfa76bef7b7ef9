"""`interactions`, `next` and `--history` as a run publishes them, as `expand` makes them again, and as `validate` reads them."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import psycopg
import pytest

import etl
from etl.errors import DataError
from etl.runtime.files import file_sha256
from etl.settings.sources import load_settings
from etl.snapshots.validation import validate_snapshot
from tests.states import data_files

OPTIONS = {"split": "last-trip", "small_catalog": "keep", "history": True, "task": ["triples", "next"], "ids": "both"}


@pytest.fixture(scope="module")
def world(make_database, small_world_template) -> str:
    return make_database(small_world_template)


@pytest.fixture(scope="module")
def published(world, tmp_path_factory) -> etl.RunResult:
    return run(world, tmp_path_factory.mktemp("tables") / "out")


def run(url: str, out: Path, **options: object) -> etl.RunResult:
    return etl.run(load_settings({"database_url": url, "out": str(out), **OPTIONS, **options}, {}))


def table(report: etl.RunResult, kind: str) -> pl.DataFrame:
    """A table's rows in file order, with split and city."""
    paths = f"{report.snapshot}/{kind}/**/*.parquet"
    return pl.read_parquet(paths, hive_partitioning=True, hive_schema={"split": pl.String, "city": pl.String})


def test_selected_and_shown_ids_are_in_visiting_order(world, published):
    """Slot order: (sortOrder, id). `interactions` counts the selected ones through, `next` goes from each to the one after it."""
    with psycopg.connect(world) as connection:
        slots = connection.execute(
            'SELECT "tripId", "dayNumber", "activityNodeId", "status"::text FROM "ItinerarySlot" '
            'WHERE "activityNodeId" IS NOT NULL ORDER BY "sortOrder", "id" COLLATE "C"'
        ).fetchall()
    days: dict[tuple[str, int], dict[bool, dict[str, None]]] = {}
    taken = {"confirmed", "active", "completed"}
    for trip, day, node, status in slots:
        days.setdefault((trip, day), {True: {}, False: {}})[status in taken].setdefault(node)
    events = table(published, "events")
    for trip, day, selected, shown in events.select("trip_id", "day_number", "selected_ids", "shown_ids").iter_rows():
        of_day = days[trip, day]
        assert selected == [*of_day[True]]
        assert shown == [node for node in of_day[False] if node not in of_day[True]]
    interactions = table(published, "interactions")
    flat = events.explode("selected_ids", empty_as_null=False)
    assert interactions.select("event_id", "item_id").rows() == flat.select("event_id", "selected_ids").rows()
    starts = interactions.with_columns(expected=pl.int_range(1, pl.len() + 1).over("event_id"))
    assert (starts["position"] == starts["expected"]).all()
    before = dict(zip(interactions.select("event_id", "position").rows(), interactions["item_id"], strict=True))
    place = dict(zip(interactions.select("event_id", "item_id").rows(), interactions["position"], strict=True))
    choices = table(published, "next")
    within = choices.filter("same_day").select("event_id", "prev_item", "pos_item").unique().rows()
    assert len(within) > 100
    assert all(before[event, place[event, positive] - 1] == previous for event, previous, positive in within)


def test_every_table_is_listed_counted_and_valid(published):
    manifest = json.loads((Path(published.snapshot) / "manifest.json").read_text())
    counts = manifest["published"]
    for kind in ("events", "interactions", "triples", "next"):
        rows = table(published, kind).height
        listed = sum(entry["rows"] for entry in manifest["files"] if entry["path"].startswith(f"{kind}/"))
        assert rows == listed == sum(counts[kind].values()) == sum(entry[kind] for entry in counts["partitions"])
        assert rows > 0
    choices = table(published, "next").select("event_id", "pos_item").n_unique()
    assert choices == counts["choices"] == sum(entry["choices"] for entry in counts["partitions"])
    assert manifest["settings"]["task"] == ["triples", "next"]
    assert [finding for finding in validate_snapshot(published.snapshot) if finding.broken] == []
    checks = {finding.law for finding in validate_snapshot(published.snapshot)}
    assert {"no (choice, negative) stands twice in next", "every choice of the manifest is in next"} <= checks


def test_expand_makes_the_same_tables_without_the_database(published, tmp_path):
    again = etl.expand(snapshot=published.snapshot, out=str(tmp_path / "out"), **OPTIONS)
    assert data_files(Path(again.snapshot)) == data_files(Path(published.snapshot))


def test_the_next_task_alone_publishes_no_triples_and_leaves_the_other_tables_as_they_are(world, published, tmp_path):
    alone = run(world, tmp_path / "out", task="next")
    assert {path.name for path in Path(alone.snapshot).iterdir() if path.is_dir()} == {"events", "interactions", "next"}
    assert (Path(alone.snapshot) / "report.html").exists()
    assert alone.warnings == []
    assert [finding for finding in validate_snapshot(alone.snapshot) if finding.broken] == []
    assert alone.counts["published"]["triples"] == {}
    for kind in ("events", "interactions", "next"):
        assert data_files(Path(alone.snapshot) / kind) == data_files(Path(published.snapshot) / kind)
    # In the same folder: runs of other tasks are not compared.
    without = run(world, tmp_path / "out", task="triples", history=False)
    assert [each for each in without.warnings if "popular items too low" not in each] == []
    assert "next" not in without.counts["published"]


def test_history_adds_columns_and_changes_no_other(world, published, tmp_path):
    without = run(world, tmp_path / "out", history=False)
    for kind in ("triples", "next"):
        rows, more = table(without, kind), table(published, kind)
        assert more.select(rows.columns).equals(rows)
        added = [name for name in more.columns if name not in rows.columns]
        assert added == ["pos_n_before", "neg_n_before", "pos_days_since", "neg_days_since"]
    assert data_files(Path(without.snapshot) / "interactions") == data_files(Path(published.snapshot) / "interactions")
    choices = table(published, "next")
    assert ((choices["pos_n_before"] == 0) == choices["is_new"]).all()
    assert (choices["pos_days_since"].is_null() == choices["is_new"]).all()
    assert (choices["neg_n_before"] == 0).all()
    seen_too = table(
        etl.expand(snapshot=published.snapshot, out=str(tmp_path / "e"), **OPTIONS, reject="event"), "next"
    )
    assert (seen_too["neg_n_before"] > 0).any()


def test_a_database_whose_trips_have_one_place_each_says_why_next_has_no_rows(
    make_database, small_world_template, tmp_path
):
    url = make_database(small_world_template)
    with psycopg.connect(url) as connection:
        connection.execute(
            """UPDATE "ItinerarySlot" s SET "status" = 'skipped' WHERE EXISTS (SELECT FROM "ItinerarySlot" o
            WHERE o."tripId" = s."tripId" AND (o."dayNumber", o."sortOrder", o."id") < (s."dayNumber", s."sortOrder", s."id"))"""
        )
    with pytest.raises(DataError, match=r"no choice of a next place.*no trip has a second selected item"):
        run(url, tmp_path / "out", task="next", split="none")


def forged(snapshot: Path, kind: str, change) -> list[str]:
    """The checks that fail once a part of a table is rewritten, and its manifest with it."""
    manifest = json.loads((snapshot / "manifest.json").read_text())
    entry = next(each for each in manifest["files"] if each["path"].startswith(f"{kind}/split=train"))
    path = snapshot / entry["path"]
    rows = change(pl.read_parquet(path, hive_partitioning=False))
    rows.write_parquet(path)
    entry |= {"rows": rows.height, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (snapshot / "manifest.json").write_text(json.dumps(manifest))
    return [finding.law for finding in validate_snapshot(snapshot) if finding.broken]


@pytest.mark.parametrize(
    ("kind", "change", "broken"),
    [
        ("interactions", lambda rows: rows[:-1], "interactions has every selected item"),
        ("interactions", lambda rows: pl.concat([rows, rows[:1]]), "interactions has every selected item"),
        (
            "interactions",
            lambda rows: rows.with_columns(pl.col("position") + 1),
            "interactions has every selected item",
        ),
        ("next", lambda rows: rows.with_columns(neg_item="pos_item"), "every choice of next is an item"),
        ("next", lambda rows: rows.with_columns(pl.col("pos_item").reverse()), "every choice of next is an item"),
        ("next", lambda rows: pl.concat([rows, rows[:1]]), "no (choice, negative) stands twice in next"),
        ("next", lambda rows: rows.filter(pl.col("event_id") != rows["event_id"][0]), "every choice of the manifest"),
    ],
)
def test_validate_finds_tables_that_break_a_check(published, tmp_path, kind, change, broken):
    given = OPTIONS | {"ids": "string"}
    snapshot = Path(etl.expand(snapshot=published.snapshot, out=str(tmp_path / "out"), **given).snapshot)
    assert any(law.startswith(broken) for law in forged(snapshot, kind, change))
