"""Do the triples teach: said without training at every publish, measured by the probe, and a night stopped by it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import psycopg
import pytest

import etl
from etl.errors import ConnectError, DataError
from etl.evaluation import sample
from etl.evaluation.holdout import build_task
from etl.pipeline import published
from etl.pipeline.context import RunResult
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import file_sha256
from etl.settings.sources import load_settings
from etl.snapshots.reading.snapshot import open_snapshot
from etl.snapshots.validation import validate_snapshot
from etl.triples.partitions import MIN_CORRELATION
from tests.states import data_files, database_state, folder_state

ROOT = Path(__file__).parents[3]
RANKINGS = {
    *("model", "random", "popularity", "popularity_by_users", "own_history", "own_history_by_users", "affinity"),
}


@pytest.fixture(scope="module")
def night(make_database, small_world_template, tmp_path_factory):
    """A night with the design's negatives, and the database that it ran on."""
    url = make_database(small_world_template)
    out = tmp_path_factory.mktemp("teaching") / "out"
    return url, out, etl.run(load_settings({"database_url": url, "out": str(out)}, {}))


def manifest_of(report: RunResult) -> dict:
    return json.loads((Path(report.snapshot) / "manifest.json").read_text())


def test_the_design_s_negatives_are_doubted_without_any_training(night):
    _, _, report = night
    signs = report.counts["published"]["signs"]
    assert set(signs) == {"Mexico City", "New York"}
    assert max(signs.values()) < MIN_CORRELATION
    (warning,) = report.warnings
    assert "ranks popular items too low" in warning
    assert f"New York {signs['New York']:.2f}" in warning
    assert "--negatives recommended" in warning
    assert manifest_of(report)["warnings"] == [warning]


def test_recommended_negatives_are_not_doubted_and_are_written_out(night, tmp_path):
    url, _, _ = night
    given = {"database_url": url, "out": str(tmp_path / "out"), "negatives": ["recommended"]}
    report = etl.export(load_settings(given, {}))
    assert min(report.counts["published"]["signs"].values()) > MIN_CORRELATION
    assert report.warnings == []
    assert manifest_of(report)["settings"]["negatives"] == ["recommended"]
    written_out = {"negatives": ["catalog:16"], "catalog_alpha": 0.0}
    assert report.counts["published"]["negatives"] == {"Mexico City": written_out, "New York": written_out}


def test_the_probe_tells_the_design_s_negatives_from_recommended_ones(night, tmp_path):
    _, out, _ = night
    found = {}
    for name in ("ranking", "recommended"):
        given = {"snapshot": str(out), "negatives": [name], "split": "last-trip", "out": str(tmp_path / name)}
        expanded = etl.expand(load_settings(given, {}))
        found[name] = published.probe(load_settings({"snapshot": expanded.snapshot}, {}))
    ours = found["ranking"].auc[0]
    assert ours < 0.5 < found["recommended"].auc[0]
    (warning,) = found["ranking"].warnings()
    assert "worse than chance" in warning
    assert f"AUC {ours:.3f}" in warning
    assert set(found["ranking"].facts["rankings"]) == RANKINGS
    # What needs no training is the same, whatever the triples.
    for ranking in RANKINGS - {"model"}:
        assert found["ranking"].facts["rankings"][ranking] == found["recommended"].facts["rankings"][ranking]
    for scope in ("all", "new"):
        assert found["ranking"].facts["rankings"]["random"][scope]["auc"]["mean"] == 0.5


def test_a_published_snapshot_gets_probe_json_and_a_line_in_its_manifest(night):
    url, out, _ = night
    report = etl.export(load_settings({"database_url": url, "out": str(out / "published")}, {}))
    before, data = manifest_of(report), data_files(report.snapshot)
    first = published.probe(load_settings({"snapshot": report.snapshot}, {}))
    again = published.probe(load_settings({"snapshot": report.snapshot}, {}))
    assert first.facts == again.facts == json.loads((Path(report.snapshot) / "probe.json").read_text())
    after = manifest_of(report)
    assert after["probe"] == first.manifest_entry()
    assert after["content_sha256"] == before["content_sha256"]
    assert [entry["path"] for entry in after["files"]].count("probe.json") == 1
    assert data_files(report.snapshot) == data
    assert [finding for finding in validate_snapshot(Path(report.snapshot)) if finding.broken] == []


def test_a_snapshot_without_a_split_is_probed_as_its_expansion_with_one(night, tmp_path):
    """The split made from its events is the one that would have been published."""
    _, out, report = night
    unsplit = published.probe(load_settings({"snapshot": report.snapshot}, {}))
    given = {"snapshot": str(out), "split": "last-trip", "out": str(tmp_path / "out"), "ids": "index"}
    expanded = etl.expand(load_settings(given, {}))
    split = published.probe(load_settings({"snapshot": expanded.snapshot}, {}))
    assert unsplit.facts["split"] == "last-trip, made from its events"
    assert split.facts["split"] == "last-trip"
    assert "other users" in manifest_of(expanded)["published"]["split"]["lets_in"]
    assert {k: v for k, v in unsplit.facts.items() if k != "split"} == {
        k: v for k, v in split.facts.items() if k != "split"
    }


def test_run_with_a_probe_warns_with_figures_and_keeps_them(small_world, settings_for):
    report = etl.run(settings_for(small_world, probe=True))
    auc = report.counts["probe"]["auc"]["mean"]
    assert auc < 0.5
    assert any(f"AUC {auc:.3f}" in warning for warning in report.warnings)
    manifest = manifest_of(report)
    assert manifest["probe"] == report.counts["probe"]
    assert (Path(report.snapshot) / "probe.json").is_file()
    assert [finding for finding in validate_snapshot(Path(report.snapshot)) if finding.broken] == []
    # The probe is about the data, not part of them: the same night without one is the same snapshot.
    again = etl.run(settings_for(small_world, skip_unchanged=True))
    assert again.snapshot is None


def test_a_night_that_teaches_too_little_leaves_all_as_it_was(small_world, tmp_path):
    out = tmp_path / "out"
    before = database_state(small_world)
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "run", "--fail-below", "0.6", "--out", str(out), "--json"],
        env={"PATH": "", "HOME": str(tmp_path), "BPR_ETL_DATABASE_URL": small_world},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == 5
    assert "--fail-below asks for 0.6" in answer["message"]
    assert "Nothing was committed or published" in answer["message"]
    assert database_state(small_world) == before
    assert folder_state(out) == {}


def test_a_split_that_holds_nothing_out_can_t_be_probed(small_world, settings_for):
    """With a limit nothing is committed. Without, the run's work is done when the probe begins: it is a warning."""
    before = database_state(small_world)
    with pytest.raises(DataError, match="holds no item out"):
        etl.run(settings_for(small_world, fail_below=0.1, split="time:2999-01-01"))
    assert database_state(small_world) == before
    report = etl.run(settings_for(small_world, probe=True, split="time:2999-01-01"))
    assert database_state(small_world) != before
    assert "probe" not in manifest_of(report)
    assert [
        warning
        for warning in report.warnings
        if warning.startswith("The probe was not made: The split time:2999-01-01")
    ]


def test_the_probe_holds_no_transaction_open_unless_it_has_a_limit(small_world, settings_for):
    """While models are trained, the database is idle and LATEST is switched; with --fail-below, neither."""

    def look(seen):
        def progress(what, _done, _of):
            if what.startswith("probe"):
                with psycopg.connect(small_world) as connection:
                    (open_,) = connection.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL "
                        "AND pid <> pg_backend_pid()"
                    ).fetchone()
                seen.append((open_, (Path(settings.out) / "LATEST").exists()))

        return progress

    settings = settings_for(small_world, probe=True)
    after, before = [], []
    dry = etl.run(replace(settings, dry_run=True), progress=look(after))
    assert "probe" in dry.counts
    assert set(after) == {(0, False)}
    after.clear()
    etl.run(settings, progress=look(after))
    assert set(after) == {(0, True)}
    other = settings_for(small_world, fail_below=0.1, out=str(Path(settings.out) / "other"))
    settings = other
    etl.run(other, progress=look(before))
    assert {open_ > 0 for open_, _ in before} == {True}
    assert {switched for _, switched in before} == {False}


def test_a_signal_during_the_probe_leaves_what_was_published(small_world, settings_for):
    stop = CancelToken()
    report = etl.run(
        settings_for(small_world, probe=True),
        stop=stop,
        progress=lambda what, *_: what == "probe: final" and stop.cancel(),
    )
    assert report.snapshot is not None
    assert report.warnings[-1] == "The probe was not made: Stopped."
    assert "probe" not in manifest_of(report)
    assert [finding for finding in validate_snapshot(Path(report.snapshot)) if finding.broken] == []


def test_a_city_s_weight_is_on_its_triples_and_a_slip_of_the_pen_is_said(night, tmp_path):
    _, out, _ = night
    given = {"snapshot": str(out), "out": str(tmp_path / "out"), "city_weight": ["New York=2.5", "Mexico Cty=3"]}
    report = etl.expand(load_settings(given, {}))
    triples = pl.read_parquet(f"{report.snapshot}/triples/**/*.parquet", hive_partitioning=True)
    assert dict(triples.group_by("city").agg(pl.col("weight").unique().first()).iter_rows()) == {
        "New York": 2.5,
        "Mexico City": 1.0,
    }
    assert any("did you mean 'Mexico City'" in warning for warning in report.warnings)


def copied(snapshot: str, folder: Path) -> Path:
    shutil.copytree(snapshot, folder)
    return folder


@pytest.mark.parametrize("buckets", [None, 5])
def test_events_are_copied_where_they_would_be_written_the_same(night, tmp_path, buckets):
    """Also from a snapshot of other libraries, whose files are written anew; and every bucket gives the same bytes."""
    url, _, _ = night
    first = Path(etl.export(load_settings({"database_url": url, "out": str(tmp_path / "first")}, {})).snapshot)
    other = copied(first, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["libraries"]["pyarrow"] = "0.1"
    (other / "manifest.json").write_text(json.dumps(manifest))
    for snapshot in (first, other):
        out = str(tmp_path / f"out-{snapshot.name}")
        again = etl.expand(load_settings({"snapshot": str(snapshot), "out": out, "buckets": buckets}, {}))
        assert data_files(again.snapshot) == data_files(str(first))


def test_a_file_of_events_that_was_changed_is_not_passed_on(night, tmp_path):
    url, _, _ = night
    first = Path(etl.export(load_settings({"database_url": url, "out": str(tmp_path / "first")}, {})).snapshot)
    part = next((first / "events").rglob("*.parquet"))
    events = pl.read_parquet(part, hive_partitioning=False)
    events.write_parquet(part)  # the same rows, and other bytes
    with pytest.raises(DataError, match="not what its manifest says"):
        etl.expand(load_settings({"snapshot": str(first), "out": str(tmp_path / "out")}, {}))
    assert not (tmp_path / "out" / "LATEST").exists()


def test_events_out_of_order_are_refused(night, tmp_path):
    """Buckets rely on the order that files have: what another tool has sorted anew can't be read."""
    url, _, _ = night
    first = Path(etl.export(load_settings({"database_url": url, "out": str(tmp_path / "first")}, {})).snapshot)
    for part in (first / "events").rglob("*.parquet"):
        pl.read_parquet(part, hive_partitioning=False).reverse().write_parquet(part)
    given = {"snapshot": str(first), "out": str(tmp_path / "out"), "split": "last-trip", "buckets": 8}
    with pytest.raises(DataError, match="not in the order"):
        etl.expand(load_settings(given, {}))


def test_an_id_that_no_vocabulary_has_is_refused(night, tmp_path):
    url, _, _ = night
    first = Path(etl.export(load_settings({"database_url": url, "out": str(tmp_path / "first")}, {})).snapshot)
    items = pl.read_parquet(first / "items.parquet")
    items[:-5].write_parquet(first / "items.parquet")
    with pytest.raises(DataError, match="names an id"):
        etl.expand(load_settings({"snapshot": str(first), "out": str(tmp_path / "out")}, {}))


def test_expand_needs_a_snapshot(tmp_path):
    with pytest.raises(ConnectError, match="no snapshot"):
        etl.expand(load_settings({"snapshot": str(tmp_path), "out": str(tmp_path / "out")}, {}))


def test_expanding_a_snapshot_that_another_tool_made_needs_no_counts_and_no_affinities(night, tmp_path):
    """Only the columns that triples are made from, and the settings that a manifest must have: the bytes are the same."""
    url, _, _ = night
    first = Path(etl.export(load_settings({"database_url": url, "out": str(tmp_path / "first")}, {})).snapshot)
    for name, columns in (("users", 10), ("items", 8)):
        frame = pl.read_parquet(first / f"{name}.parquet")
        frame[:, :columns].write_parquet(first / f"{name}.parquet")
    manifest = json.loads((first / "manifest.json").read_text())
    for name in ("reject", "catalog_alpha", "city_weight", "shuffle", "vocab_from"):
        del manifest["settings"][name]
    (first / "manifest.json").write_text(json.dumps(manifest))
    options = {"negatives": ["catalog:4"], "split": "last-trip", "seed": 3}
    expanded = etl.expand(load_settings({"snapshot": str(first), "out": str(tmp_path / "a"), **options}, {}))
    direct = etl.export(load_settings({"database_url": url, "out": str(tmp_path / "b"), **options}, {}))
    ours, theirs = (
        {k: v for k, v in data_files(report.snapshot).items() if k.startswith("triples/")}
        for report in (expanded, direct)
    )
    assert len(ours) == 6
    assert ours == theirs
    assert "affinity" not in published.probe(load_settings({"snapshot": str(first)}, {})).facts["rankings"]


def test_indexes_stay_from_night_to_night(small_world, settings_for, tmp_path):
    """Ids keep their rows; a user and a place that are gone keep theirs, too; new ones follow in id order."""
    out = str(tmp_path / "out")
    first = Path(etl.run(settings_for(small_world, vocab_from=out)).snapshot)  # the first night: nothing to keep
    users, items = (pl.read_parquet(first / f"{name}.parquet") for name in ("users", "items"))
    gone = users["user_id"][2]
    with psycopg.connect(small_world) as connection:
        connection.execute("""UPDATE "User" SET "email" = 'real@x.test' WHERE "id" = %s""", (gone,))
        connection.execute("""INSERT INTO "User" ("id", "email") VALUES ('0', 'shadow-new@x.test')""")
        connection.execute(
            """INSERT INTO "ActivityNode" ("id", "city", "category", "status", "name", "latitude", "longitude")
            VALUES ('!', 'New York', 'dining', 'approved', 'new', 0, 0), ('"', 'New York', 'dining', 'approved', 'n', 0, 0)"""
        )
    second = Path(etl.run(settings_for(small_world, vocab_from=out, ids="both", negatives=["recommended"])).snapshot)
    users2, items2 = (pl.read_parquet(second / f"{name}.parquet") for name in ("users", "items"))
    assert users2["user_id"].to_list() == [*users["user_id"], "0"]
    assert items2["item_id"].to_list() == [*items["item_id"], "!", '"']
    assert users2["user_idx"].to_list() == list(range(users2.height))
    assert users2.filter(status="gone")["user_id"].to_list() == [gone]
    assert users2.filter(user_id=gone)["pace_preference"].to_list() == [None]
    triples = pl.read_parquet(f"{second}/triples/**/*.parquet", hive_partitioning=False)
    assert users2["user_id"].gather(triples["user_idx"]).equals(triples["user_id"], check_names=False)
    assert items2["item_id"].gather(triples["neg_idx"]).equals(triples["neg_item"], check_names=False)
    # What is drawn depends on ids alone, not on their indexes.
    fresh = Path(etl.export(settings_for(small_world, ids="both", negatives=["recommended"])).snapshot)
    other = pl.read_parquet(f"{fresh}/triples/**/*.parquet", hive_partitioning=False)
    texts = ["user_id", "pos_item", "neg_item", "event_id", "weight"]
    assert other.select(texts).equals(triples.select(texts))
    assert [finding for finding in validate_snapshot(second) if finding.broken] == []


def forged(snapshot: Path, change) -> list[str]:
    """The laws that a snapshot breaks once its triples of one part are rewritten, and its manifest with them."""
    manifest = json.loads((snapshot / "manifest.json").read_text())
    entry = next(each for each in manifest["files"] if each["path"].startswith("triples/split=train"))
    path = snapshot / entry["path"]
    change(pl.read_parquet(path, hive_partitioning=False)).write_parquet(path)
    rows = pl.read_parquet(path, hive_partitioning=False).height
    entry |= {"rows": rows, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (snapshot / "manifest.json").write_text(json.dumps(manifest))
    return [finding.law for finding in validate_snapshot(snapshot) if finding.broken]


@pytest.mark.parametrize("ids", ["string", "index"])
@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda t, p, _: t.with_columns(pl.col(p).reverse()), "every triple's positive is one that its event selected"),
        (lambda t, p, n: t.with_columns(pl.col(p).alias(n)), "no negative is a positive of its event"),
        (lambda t, *_: pl.concat([t, t.head(1)]), "no (event, positive, negative) stands twice"),
        (lambda t, *_: t.filter(pl.col("event_id") != t["event_id"][0]), "every positive is in the triples or counted"),
    ],
)
def test_validate_finds_triples_that_break_a_law(night, tmp_path, ids, change, broken):
    _, out, _ = night
    given = {
        "snapshot": str(out),
        "split": "last-trip",
        "ids": ids,
        "out": str(tmp_path / "out"),
        "negatives": ["shown"],
    }
    snapshot = Path(etl.expand(load_settings(given, {})).snapshot)
    assert [finding for finding in validate_snapshot(snapshot) if finding.broken] == []
    names = ("pos_item", "neg_item") if ids == "string" else ("pos_idx", "neg_idx")
    assert any(law.startswith(broken) for law in forged(snapshot, lambda triples: change(triples, *names)))


@pytest.mark.parametrize("limit", ["MAX_USERS", "MAX_CELLS", "MAX_ROWS"])
def test_of_too_many_users_some_are_sampled_and_popularity_counts_all(night, monkeypatch, tmp_path, limit):
    _, out, _ = night
    given = {"snapshot": str(out), "split": "last-trip", "out": str(tmp_path / "out")}
    snapshot = open_snapshot(Path(etl.expand(load_settings(given, {})).snapshot))
    whole = build_task(snapshot)
    users = whole.sampled
    rows = whole.train.height + whole.tuning_train.height
    assert users.tolist() == whole.counts.users.tolist()
    monkeypatch.setattr(
        sample, limit, {"MAX_USERS": 10, "MAX_CELLS": whole.counts.cells // 4, "MAX_ROWS": rows // 8}[limit]
    )
    part, same, other = (build_task(snapshot, seed) for seed in (0, 0, 1))
    assert part.sampled.tolist() == same.sampled.tolist() != other.sampled.tolist()
    assert set(part.sampled) < set(users)
    assert 0 < len(part.sampled) <= len(users) // 2
    if limit == "MAX_USERS":
        assert len(part.sampled) == 10
    assert set(part.train["user_idx"]) | {user for group in part.test for user in group.users} <= set(part.sampled)
    of_whole = np.isin(whole.train["user_idx"], part.sampled)
    assert part.train.height == of_whole.sum() > 0
    seen, people = Counter(), Counter()
    for path in Path(snapshot.folder).glob("events/split=*/**/*.parquet"):
        if "split=test" not in str(path):
            for user, items in pl.read_parquet(path, hive_partitioning=False)["user_id", "selected_ids"].iter_rows():
                seen.update((user, item) for item in items)
    people.update(item for _, item in seen)
    events = Counter({item: sum(n for (_, each), n in seen.items() if each == item) for item in people})
    for item, by_event, by_user in zip(
        whole.dataset.items["item_id"], whole.counts.events, whole.counts.people, strict=True
    ):
        assert (events[item], people[item]) == (by_event, by_user)
    assert (part.counts.events == whole.counts.events).all()
    assert (part.counts.people == whole.counts.people).all()
    for every, some in zip(whole.test, part.test, strict=True):
        kept = np.isin(every.users, part.sampled)
        assert np.array_equal(every.users[kept], some.users)
        assert np.array_equal(every.relevant[kept], some.relevant)
        assert np.array_equal(every.history[kept], some.history)
    found = published.probe(load_settings({"snapshot": str(snapshot.folder)}, {}))
    assert found.facts["users_in_all"] == len(users)
    assert found.facts["users_sampled"] + found.facts["users_passed_over"] == len(users)


@pytest.mark.parametrize("split", ["none", "last-trip", "time:2024-10-01"])
def test_of_too_many_items_some_cities_are_sampled(night, monkeypatch, tmp_path, split):
    """The split is that of all cities, and of the chosen ones nothing is left out."""
    _, out, _ = night
    given = {"snapshot": str(out), "split": split, "task": ["triples", "next"], "out": str(tmp_path / "out")}
    snapshot = open_snapshot(Path(etl.expand(load_settings({**given, "negatives": ["catalog:4"]}, {})).snapshot))
    whole = build_task(snapshot)
    city_of = whole.dataset.items["city"]
    monkeypatch.setattr(sample, "MAX_ITEMS", 1)
    chosen = set()
    for seed in range(8):
        part = build_task(snapshot, seed)
        (group,) = part.test
        chosen.add(group.city)
        (every,) = [each for each in whole.test if each.city == group.city]
        assert all((getattr(group, name) == getattr(every, name)).all() for name in ("users", "relevant", "history"))
        for ours, theirs in ((part.train, whole.train), (part.next_rows, whole.next_rows)):
            if theirs is not None:
                assert ours.equals(theirs.filter(city_of.gather(theirs["pos_idx"]) == group.city))
        assert part.counts.n_users == len(whole.sampled)
    assert chosen == {"New York", "Mexico City"}


def test_a_copy_of_a_snapshot_can_be_probed_where_it_lies(night, tmp_path):
    _, _, report = night
    shutil.copytree(report.snapshot, tmp_path / "copy")
    found = published.probe(load_settings({"snapshot": str(tmp_path / "copy")}, {}))
    assert json.loads((tmp_path / "copy" / "manifest.json").read_text())["probe"] == found.manifest_entry()
    assert [finding for finding in validate_snapshot(tmp_path / "copy") if finding.broken] == []


@pytest.mark.parametrize(("split", "tuned_on"), [("last-trip", "valid"), ("time", "each user's last trip in train")])
def test_variants_are_tuned_before_what_is_held_out(night, tmp_path, split, tuned_on):
    """Without a valid part one step earlier, inside train; never on test."""
    _, out, report = night
    dated = pl.read_parquet(f"{report.snapshot}/events/**/*.parquet", hive_partitioning=False)["timestamp"]
    cut = datetime.fromtimestamp(int(dated.quantile(0.6)), UTC).date()
    given = {"snapshot": str(out), "out": str(tmp_path / "out"), "negatives": ["recommended"]}
    expanded = etl.expand(load_settings({**given, "split": f"time:{cut}" if split == "time" else split}, {}))
    asked = build_task(open_snapshot(Path(expanded.snapshot)))
    assert asked.tuned_on == tuned_on
    assert asked.tuning_holdout
    partitions = manifest_of(expanded)["published"]["partitions"]
    assert asked.train.height == sum(part["triples"] for part in partitions if part["split"] != "test")
    assert 0 < asked.tuning_train.height < asked.train.height
    found = published.probe(load_settings({"snapshot": expanded.snapshot}, {}))
    assert found.facts["tuned_on"] == tuned_on
    assert len(found.facts["variants"]) == 4


@pytest.mark.parametrize("ids", ["string", "index"])
def test_the_next_item_is_learned_from_the_published_rows_before_test(night, tmp_path, ids):
    _, out, _ = night
    given = {
        "snapshot": str(out),
        "split": "last-trip",
        "task": ["triples", "next"],
        "negatives": ["catalog:4"],
        "ids": ids,
    }
    expanded = etl.expand(load_settings({**given, "out": str(tmp_path / "out"), "probe": True}, {}))
    folder = Path(expanded.snapshot)
    rows = pl.concat(
        [pl.read_parquet(path, hive_partitioning=False) for path in folder.glob("next/split=*/**/*.parquet")]
    )
    learned = pl.concat(
        pl.read_parquet(path, hive_partitioning=False)
        for part in ("train", "valid")
        for path in folder.glob(f"next/split={part}/**/*.parquet")
    ).filter("is_new")
    task = build_task(open_snapshot(folder))
    assert task.next_rows.height == learned.height < rows.height
    users, items = (pl.read_parquet(folder / f"{name}s.parquet")[f"{name}_id"] for name in ("user", "item"))
    if ids == "string":
        got = {
            (users[u], items[p], items[n], same): (one, two)
            for u, p, n, _, one, two, same in task.next_rows.iter_rows()
        }
        names = "user_id", "pos_item", "neg_item", "same_day", "pos_km", "neg_km"
        assert got == {tuple(row[:4]): tuple(row[4:]) for row in learned.select(names).iter_rows()}
    facts = json.loads((folder / "probe.json").read_text())
    assert facts["next"]["rows"] == learned.height
    assert facts["next"]["users"] > 0
    # The synthetic world's days have no geography.
    assert not facts["next"]["verdict"]["adds_value"]
    assert "There is nothing to learn from distance here" in facts["next"]["verdict"]["text"]
    assert facts["next"]["verdict"]["text"] in expanded.counts["probe"]["verdicts"]
    said = (folder / "report.html").read_text()
    assert "There is nothing to learn from distance here" in said
    assert "The next item, where it is new to the user" in said


def test_controls_are_trained_where_they_are_asked_for(night, tmp_path):
    _, out, _ = night
    given = {"snapshot": str(out), "task": ["next"], "out": str(tmp_path / "out"), "negatives": ["catalog:4"]}
    folder = etl.expand(load_settings(given, {})).snapshot  # without a split: it is made, and rows are drawn
    plain = published.probe(load_settings({"snapshot": folder}, {}))
    assert "controls" not in plain.facts["next"]
    assert plain.facts["next"]["rows"] > 0
    controlled = published.probe(load_settings({"snapshot": folder, "controls": True}, {}))
    controls = controlled.facts["next"].pop("controls")
    assert controlled.facts == plain.facts
    assert set(controls) == {"random_previous", "shuffled_order"}
    assert all({"model", "popularity_by_users"} <= set(each["rankings"]) for each in controls.values())
    by_users = controls["random_previous"]["rankings"]["popularity_by_users"]
    assert by_users == plain.facts["next"]["rankings"]["popularity_by_users"]  # the previous item says nothing of it
    assert by_users != controls["shuffled_order"]["rankings"]["popularity_by_users"]


def test_a_damaged_next_table_is_named(night, tmp_path):
    _, out, _ = night
    given = {"snapshot": str(out), "split": "last-trip", "task": ["triples", "next"], "out": str(tmp_path / "out")}
    folder = Path(etl.expand(load_settings({**given, "negatives": ["catalog:4"]}, {})).snapshot)
    path = next(folder.glob("next/split=train/**/*.parquet"))
    pl.read_parquet(path, hive_partitioning=False).drop("pos_km").write_parquet(path)
    with pytest.raises(DataError, match=r"next/split=train/.* can't be read"):
        published.probe(load_settings({"snapshot": str(folder)}, {}))


def test_next_alone_is_probed_without_training_on_triples(night, tmp_path):
    _, out, _ = night
    given = {"snapshot": str(out), "split": "time:2024-10-01", "task": ["next"], "negatives": ["catalog:4"]}
    expanded = etl.expand(load_settings({**given, "out": str(tmp_path / "out")}, {}))
    trained = set()
    found = published.probe(load_settings({"snapshot": expanded.snapshot}, {}), lambda what, *_: trained.add(what))
    assert {what for what in trained if what.startswith("probe")} == {"probe: next item"}
    assert "model" not in found.facts["rankings"]
    assert found.facts["model_against"] == {}
    assert found.verdicts[0] == (
        "For the items of the next trip, no model was trained: the snapshot has no triples before the held-out part."
    )
    entry = manifest_of(expanded)["probe"]
    assert entry["auc"] == found.facts["next"]["rankings"]["model"]["auc"]
    assert entry["auc_of_popularity"] == found.facts["next"]["rankings"]["popularity_by_users"]["auc"]
    assert "The next item, where it is new to the user" in (Path(expanded.snapshot) / "report.html").read_text()
    with pytest.raises(DataError, match=r"AUC 0\.\d+, and --fail-below asks for 0.99"):
        published.probe(load_settings({"snapshot": expanded.snapshot, "fail_below": 0.99}, {}))
