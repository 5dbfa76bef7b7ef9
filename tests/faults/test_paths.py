"""Where files go: into the folder that was named, whatever a city is called; and one writer there at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote

import duckdb
import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.dataset as pads
import pytest

import etl
from etl.errors import ConnectError, DataError
from etl.snapshots.validation import validate_snapshot
from etl.snapshots.writer import city_folder
from tests.faults.calling import ROOT, call, environment, said
from tests.faults.cities import NAMES, add_trips
from tests.states import data_files, folder_state


@dataclass(frozen=True)
class Published:
    """A snapshot of a world with all these cities, and what it was made from."""

    url: str
    out: Path
    snapshot: Path
    manifest: dict
    told: str


@pytest.fixture(scope="module")
def published(make_database, small_world_template, tmp_path_factory) -> Published:
    """A whole run over a database with such cities, in a folder whose name has a space in it."""
    url = make_database(small_world_template)
    add_trips(url, NAMES)
    out = tmp_path_factory.mktemp("a folder") / "out"
    done = call("run", "--out", str(out), "--min-catalog", "1", "--split", "last-trip", "--database-url", url)
    snapshot = out / "snapshots" / (out / "LATEST").read_text()
    return Published(url, out, snapshot, json.loads((snapshot / "manifest.json").read_text()), said(done))


def written(folder: Path) -> list[Path]:
    """Every file below a folder; and none of what lies there is a link, or anything but a file or a folder."""
    found = sorted(folder.rglob("*"))
    assert all(path.is_file() or path.is_dir() for path in found)
    assert not [path for path in found if path.is_symlink()]
    return [path for path in found if path.is_file()]


def test_every_file_is_inside_whatever_a_city_is_called(published, tally):
    for path in written(published.out):
        assert path.resolve().is_relative_to(published.out.resolve())
        assert all(len(os.fsencode(part)) <= 255 for part in path.parts)
    assert sorted(path.name for path in published.out.iterdir()) == ["LATEST", "snapshots"]
    assert sorted(path.name for path in published.out.parent.iterdir()) == ["out"]
    kinds = {path.relative_to(published.snapshot).parts[0] for path in written(published.snapshot)}
    assert kinds == {
        "events",
        "triples",
        "interactions",
        "users.parquet",
        "items.parquet",
        "trips.parquet",
        "report.html",
        "README.md",
        "croissant.json",
        "manifest.json",
    }
    listed = {entry["path"] for entry in published.manifest["files"]} | {"manifest.json"}
    assert {path.relative_to(published.snapshot).as_posix() for path in written(published.snapshot)} == listed
    tally("city names tried as paths", len(NAMES))


def test_every_city_survives_the_way_through_the_manifest(published):
    cities = published.manifest["cities"]
    with psycopg.connect(published.url) as connection:
        days = connection.execute(
            """SELECT t."city", count(*) FROM "RankingEvent" e JOIN "Trip" t ON t."id" = e."tripId"
            JOIN "User" u ON u."id" = e."userId" WHERE starts_with(u."email", 'shadow-') GROUP BY 1"""
        ).fetchall()
    assert set(NAMES) <= {city for city, _ in days}
    assert published.manifest["published"]["events"] == dict(days)
    rows: dict[str, int] = {}
    for entry in published.manifest["files"]:
        if entry["path"].startswith("events/"):
            city = cities[entry["path"].split("/")[-2]]
            rows[city] = (
                rows.get(city, 0)
                + pl.scan_parquet(published.snapshot / entry["path"]).select(pl.len()).collect().item()
            )
    assert rows == dict(days)
    items = pl.read_parquet(published.snapshot / "items.parquet")
    assert set(NAMES) <= set(items["city"])
    triples = published.manifest["published"]["triples"]
    assert [city for city in NAMES if not triples[city]] == []


def test_other_readers_of_hive_folders_find_every_city(published):
    """By its own name or, where that was too long, reserved or another's but for case, by the folder's in the manifest."""
    events = published.snapshot / "events"
    days = published.manifest["published"]["events"]
    expected = {
        unquote(folder.removeprefix("city=")): days[city] for folder, city in published.manifest["cities"].items()
    }
    plain = {name: f"city={quote(name, safe='')}" for name in NAMES if name not in {"", "__HIVE_DEFAULT_PARTITION__"}}
    first: dict[str, str] = {}
    for name in sorted(plain, key=str.encode):
        if len(plain[name]) <= 255:
            first.setdefault(plain[name].lower().rstrip("."), name)
    own = set(first.values())
    assert set(expected) & set(NAMES) == own
    assert len({folder.lower().rstrip(".") for folder in published.manifest["cities"]}) == len(expected)
    flavour = pads.partitioning(pa.schema([("split", pa.string()), ("city", pa.string())]), flavor="hive")
    arrow = pads.dataset(events, partitioning=flavour).to_table(columns=["city"])["city"].to_pylist()
    polars = pl.scan_parquet(f"{events}/**/*.parquet", hive_schema={"split": pl.String, "city": pl.String})
    query = "SELECT city FROM read_parquet(?, hive_partitioning=true, hive_types_autocast=false)"
    duck = [city for (city,) in duckdb.execute(query, [f"{events}/**/*.parquet"]).fetchall()]
    for found in (arrow, polars.select("city").collect()["city"].to_list(), duck):
        assert {city: found.count(city) for city in set(found)} == expected


@pytest.mark.parametrize("character", ["x", "é", "東", "🏙", "%", "_"])
def test_a_folder_s_name_is_text_wherever_it_is_cut(character, tally):
    """Readers decode it, and pyarrow refuses a whole dataset for one name that is no UTF-8 then."""
    cities = [before * "x" + character * 300 for before in range(12)]
    folders = {city_folder(city) for city in cities}
    for folder in folders:
        assert len(folder) <= 255
        assert unquote(folder.removeprefix("city="), errors="strict").isprintable()
    assert len(folders) == len(cities)
    tally("city names tried as paths", len(cities))


def test_a_snapshot_with_such_cities_is_checked_and_expanded(published, settings_for, tmp_path):
    assert [finding for finding in validate_snapshot(published.snapshot) if finding.broken] == []
    options = {"snapshot": str(published.out), "min_catalog": 1, "split": "last-trip"}
    again = etl.expand(settings_for(published.url, **options))
    assert data_files(again.snapshot) == data_files(published.snapshot)
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in written(tmp_path / "out"))


def test_a_terminal_is_told_of_such_cities_and_obeys_none(published, small_world, tmp_path, effort):
    """A name can hold a terminal's commands, line ends that forge a log's lines, and rich's own markup."""
    add_trips(small_world, ["[bold]x", "\x1b[31mred"])  # few enough to be told of one by one
    told = [said(call("run", "--out", str(tmp_path / "few"), "--database-url", small_world)), published.told]
    for command in (["validate"], ["export", "--negatives", "recommended"])[: effort(0, 2)]:
        out = [] if command == ["validate"] else ["--out", str(tmp_path / "out"), "--min-catalog", "1"]
        told.append(said(call(*command, *out, "--database-url", published.url)))
    for each in told:
        assert "Traceback" not in each
        assert {character for character in each if not character.isprintable()} == {"\n"}
    assert "[bold]x" in told[0]
    assert "\\x1b[31mred" in told[0]


def test_two_cities_that_would_share_a_folder_stop_the_night_or_share_none(small_world, settings_for):
    """One is called as the other's folder, which has a hash in its name."""
    other = city_folder("").removeprefix("city=")
    add_trips(small_world, ("", other))
    try:
        report = etl.run(settings_for(small_world, min_catalog=1))
    except DataError as error:
        pytest.fail(f"anybody who names a trip's city can stop every night: {error}")
    events = json.loads((Path(report.snapshot) / "manifest.json").read_text())["published"]["events"]
    assert events[""] > 0
    assert events[other] > 0


def test_a_manifest_from_elsewhere_leads_to_no_file_outside_its_snapshot(published, settings_for, tmp_path):
    """What `expand` copies and reads is what the snapshot has."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", published.snapshot, copy], check=True)
    entry = next(each for each in published.manifest["files"] if each["path"].startswith("events/"))
    secret = tmp_path / "secret.parquet"
    secret.write_bytes((published.snapshot / entry["path"]).read_bytes())
    for path in ("events/split=train/city=x/../../../../secret.parquet", str(secret), "events/../../secret.parquet"):
        files = [{**each, "path": path} if each == entry else each for each in published.manifest["files"]]
        (copy / "manifest.json").write_text(json.dumps({**published.manifest, "files": files}))
        with pytest.raises(DataError, match="manifest"):
            etl.expand(settings_for(published.url, snapshot=str(copy), min_catalog=1, split="last-trip"))
    assert not (tmp_path / "out" / "LATEST").exists()


# --- what --out is --------------------------------------------------------------------------------------------------


def test_out_may_be_a_link_and_have_one_inside(small_world, settings_for, tmp_path):
    (tmp_path / "real" / "elsewhere").mkdir(parents=True)
    (tmp_path / "real" / "snapshots").symlink_to(tmp_path / "real" / "elsewhere")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    first = etl.run(settings_for(small_world, seed=1))
    second = etl.run(settings_for(small_world))
    assert {path.name for path in (tmp_path / "real" / "elsewhere").iterdir()} == {
        Path(first.snapshot).name,
        Path(second.snapshot).name,
    }
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "LATEST").read_text() == Path(second.snapshot).name
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["LATEST", "elsewhere", "snapshots"]


def test_a_link_that_leads_nowhere_is_said_in_plain_words(small_world, settings_for, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere" / "at all")
    with pytest.raises(ConnectError, match="Cannot write to"):
        etl.run(settings_for(small_world))


@pytest.mark.parametrize(
    "name",
    ["./s3:x[1]", "out[1]", "data:x", "./file:x", "a*b", "a b/c d", "-x", "'q\"", "été/東京", "new\nline"],
    ids=repr,
)
def test_out_is_any_folder_that_the_system_can_name(small_world, tmp_path, name, effort):
    """No pattern, no address, no option; relative to where we are."""
    if name != "./s3:x[1]" and not effort(0, 1):
        pytest.skip("tried by make test-faults")
    done = call("run", "--json", f"--out={name}", "--database-url", small_world, cwd=tmp_path)
    assert done.returncode == 0, said(done)
    assert (tmp_path / name / "LATEST").is_file()
    for command in (["validate", f"--snapshot={name}"], ["expand", "--out=again", "--", name])[: effort(1, 2)]:
        done = call(*command, cwd=tmp_path)
        assert done.returncode == 0, said(done)


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    done = call("run", "--out", os.fsdecode(b"caf\xe9"), "--database-url", "postgresql://u@127.0.0.1:1/d", cwd=tmp_path)
    assert done.returncode == 2, said(done)
    assert "UTF-8" in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- one writer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nights() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Commands in processes of their own; those left at the end go."""
    there: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        there.append(
            subprocess.Popen(
                [sys.executable, str(ROOT / "cli.py"), *arguments],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return there[-1]

    yield start
    for each in there:
        each.kill()
        each.communicate()


def wait_until_waiting(url: str, what: str) -> None:
    """Until somebody in the database waits for a lock with such a statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(60_000):
            waits = connection.execute(
                """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                AND query ILIKE %s""",
                [f"%{what}%"],
            ).fetchone()
            if waits != (0,):
                return
            connection.execute("SELECT pg_sleep(0.01)")
    pytest.fail("nobody came to wait")


@pytest.mark.parametrize("second", ["run on another database", "export", "expand"])
def test_a_second_writer_is_turned_away_and_latest_stays_the_first_one_s(
    second, small_world, make_database, small_world_template, settings_for, tmp_path, nights, effort, tally
):
    if second != "run on another database" and not effort(0, 1):
        pytest.skip("tried by make test-faults")
    out = tmp_path / "out"
    earlier = etl.run(settings_for(small_world, seed=1))
    before = folder_state(out)
    with psycopg.connect(small_world) as holder:
        # the first night comes as far as the backfill, its files staged, and waits there for the application's lock
        holder.execute('UPDATE "BehavioralSignal" SET "modelVersion" = NULL')
        holder.commit()
        holder.execute('SELECT count(*) FROM (SELECT FROM "BehavioralSignal" FOR UPDATE) held')
        first = nights("run", "--json", "--out", str(out), "--database-url", small_world)
        wait_until_waiting(small_world, "UPDATE")
        commands = {
            "run on another database": ["run", "--database-url", make_database(small_world_template)],
            "export": ["export", "--database-url", small_world],
            "expand": ["expand", str(out)],
        }
        turned_away = call(*commands[second], "--out", str(out))
        assert turned_away.returncode == 6, said(turned_away)
        assert "Another run is publishing to" in turned_away.stderr
        now = {path: digest for path, digest in folder_state(out).items() if not path.startswith(".staging")}
        assert now == before
        assert (out / "LATEST").read_text() == Path(earlier.snapshot).name
    answer, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    newest = Path(json.loads(answer)["snapshot"]).name
    assert (out / "LATEST").read_text() == newest
    if effort(0, 1):
        later = call(*commands[second], "--json", "--out", str(out))
        assert later.returncode == 0, said(later)
        assert (out / "LATEST").read_text() == Path(json.loads(later.stdout)["snapshot"]).name > newest
    tally("writers of one folder at once", 2)


def test_writers_that_race_publish_in_the_order_of_their_names(
    small_world, settings_for, nights, tmp_path, effort, tally
):
    """Whoever is not turned away is newer than what LATEST named before it."""
    etl.run(settings_for(small_world))
    writers = effort(2, 8)
    started = [
        nights("export", "--json", "--seed", str(number), "--out", str(tmp_path / "out"), "--database-url", small_world)
        for number in range(writers)
    ]
    seen = []
    while any(each.poll() is None for each in started):
        seen.append((tmp_path / "out" / "LATEST").read_text())
        time.sleep(0.001)  # they need the processor more than we do
    assert {each.returncode for each in started} <= {0, 6}
    assert seen == sorted(seen)
    assert all((tmp_path / "out" / "snapshots" / name / "manifest.json").is_file() for name in set(seen))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["LATEST", "snapshots"]
    tally("writers of one folder at once", writers)


def test_a_clock_that_was_set_back_does_not_move_latest_back(small_world, settings_for, tmp_path):
    """A snapshot's name begins with the time; what LATEST names is what was published last, whatever the clock says."""
    first = etl.run(settings_for(small_world), clock=lambda: datetime(2030, 1, 1, tzinfo=UTC))
    second = etl.run(settings_for(small_world, seed=1), clock=lambda: datetime(2029, 1, 1, tzinfo=UTC))
    assert first.snapshot != second.snapshot
    assert (tmp_path / "out" / "LATEST").read_text() == Path(second.snapshot).name
