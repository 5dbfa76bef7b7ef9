"""The job on Perth's real visits, in mapped naming, against a count in plain Python that shares no code with it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pyarrow.parquet as pq
import pytest

import etl
from benchmarks.run import realdata
from benchmarks.training_value import next_place
from etl.pipeline import database
from etl.settings.model import Settings

_BESIDE = Path(__file__).parents[4] / "shared" / "realdata"
DATA = realdata.locate() or (_BESIDE if _BESIDE.is_dir() else None)
needs_data = pytest.mark.skipif(
    DATA is None, reason="the real visits are not here: set BPR_ETL_REALDATA to their folder"
)

CULTURE = {"Museum", "Cultural", "Historical", "Education", "Religion", "Structure"}
NAMES = {"Park": "outdoors", "Beach": "outdoors", "Sport": "active", "Amusement": "entertainment"} | {
    "Entertainment": "entertainment",
    "Shopping": "shopping",
}


@dataclass
class Counted:
    """What one city's files say: users, their trips in order, and the places of each (trip, day) in order."""

    trips_of: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    days: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    likes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    visits: int = 0

    @property
    def loners(self) -> set[str]:
        return {user for user, trips in self.trips_of.items() if len(trips) == 1}


def count(folder: Path) -> Counted:
    def rows(name: str) -> list[dict[str, Any]]:
        return pq.read_table(folder / f"{name}.parquet").to_pylist()

    counted = Counted()
    trips = sorted(rows("trips"), key=lambda trip: (trip["start_date"], trip["trip_id"]))
    for trip in trips:
        counted.trips_of[trip["user_id"]].append(trip["trip_id"])
    kinds = {node["node_id"]: node["category"] for node in rows("nodes")}
    for visit in sorted(rows("visits"), key=lambda visit: visit["sort_order"]):
        counted.visits += 1
        day = counted.days.setdefault((visit["trip_id"], visit["day_number"]), [])
        if visit["node_id"] not in day:
            day.append(visit["node_id"])
        if visit["trip_id"] != counted.trips_of[visit["user_id"]][-1]:
            theirs = kinds[visit["node_id"]]
            ours = "culture" if theirs in CULTURE else NAMES.get(theirs, "experience")
            counted.likes[visit["user_id"]][ours] += 1
    return counted


@needs_data
def test_perth_comes_out_as_counted_by_hand(database_url: str, settings_for: Callable[..., Settings]) -> None:
    folder = DATA
    assert folder is not None
    counted = count(folder / "perth")
    rows = realdata.fill(database_url, "mapped", realdata.read_world([folder / "perth"]))
    assert rows["User"] == len(counted.trips_of)
    assert rows["Trip"] == sum(map(len, counted.trips_of.values()))
    assert rows["ItinerarySlot"] == rows["BehavioralSignal"] == counted.visits

    settings = settings_for(database_url, small_catalog="keep")
    report = etl.run(settings)
    owner = {trip: user for user, trips in counted.trips_of.items() for trip in trips}
    days = {day: nodes for day, nodes in counted.days.items() if owner[day[0]] not in counted.loners}
    assert report.counts["shadow_users_without_persona"] == len(counted.loners) > 0
    assert report.counts["days_without_event"]["user_without_persona"] == len(counted.days) - len(days)
    assert report.counts["positives"] == sum(map(len, days.values()))
    assert report.counts["signals_backfilled"] == counted.visits
    assert report.counts["set_aside"] == {}

    with psycopg.connect(database_url) as connection:
        events = connection.execute('SELECT "tripId", "dayNumber", "selectedIds" FROM ranking_events').fetchall()
        personas = connection.execute('SELECT DISTINCT "userId" FROM persona_dimensions').fetchall()
        seeds = connection.execute('SELECT "userId", "personaSeed" FROM trips').fetchall()
    assert len(events) == len(days)
    assert {(trip, day): nodes for trip, day, nodes in events} == days
    assert {user for (user,) in personas} == set(counted.trips_of) - counted.loners
    assert {user for user, seed in seeds if seed is None} == counted.loners
    assert database.validate_database(settings).broken == []


@needs_data
def test_perths_personas_are_those_of_all_trips_but_the_latest(
    database_url: str, settings_for: Callable[..., Settings]
) -> None:
    folder = DATA
    assert folder is not None
    likes = count(folder / "perth").likes
    realdata.fill(database_url, "mapped", realdata.read_world([folder / "perth"]))
    etl.run(settings_for(database_url, small_catalog="keep"))
    with psycopg.connect(database_url) as connection:
        vectors = connection.execute(
            "SELECT \"userId\", value FROM persona_dimensions WHERE dimension = 'category_affinities'"
        ).fetchall()
    categories = json.loads(vectors[0][1])
    assert len(categories) == 11
    assert {user: json.loads(vector) for user, vector in vectors} == {
        user: {c: pytest.approx(0.05 + 0.93 * (n[c] + 1) / (max(n.values()) + 1), abs=1e-6) for c in categories}
        for user, n in likes.items()
    }


@needs_data
def test_next_is_worth_on_real_visits_what_its_page_says(database_url: str, tmp_path: Path) -> None:
    folder = DATA
    assert folder is not None
    realdata.fill(database_url, "model", realdata.read_world([folder / city for city in realdata.CITIES]))
    found = next_place.measure(database_url, tmp_path)
    assert [f"{goal}: {measured}" for goal, measured, met in next_place.goals(found) if not met] == []
    assert all(facts["verdict"]["adds_value"] for facts in found.values())
    assert "| all | 289 | 828 |" in next_place.markdown(found)


NODES = pl.DataFrame(
    {
        "node_id": ["a:1", "a:2", "a:3"],
        "city": "A",
        "name": ["Same", "Same", "Nobody was here"],
        "category": ["Museum", "Vacant Land", "Never heard of"],
        "lat": [1.0, 2.0, 3.0],
        "lon": [4.0, 5.0, 6.0],
    }
)
TRIPS = pl.DataFrame(
    {
        "trip_id": ["t3", "t2", "t1", "u1"],
        "user_id": ["t", "t", "t", "u"],
        "city": "A",
        "start_date": [date(1864, 11, 30), date(4501, 1, 1), date(4501, 1, 1), date(2010, 5, 6)],
    }
)
VISITS = pl.DataFrame(
    {
        "trip_id": ["t3", "t1", "t2", "u1"],
        "day_number": [1, 2, 1, 1],
        "sort_order": [1, 1, 1, 1],
        "node_id": ["a:1", "a:1", "a:2", "a:1"],
    }
)


def test_the_latest_trip_is_not_in_the_persona_and_a_single_trip_gives_none() -> None:
    trips = {row["id"]: row for row in realdata.to_world(NODES, TRIPS, VISITS)["Trip"].to_dicts()}
    assert trips["u1"]["personaSeed"] is None
    vector = json.loads(trips["t1"]["personaSeed"])["category_affinities"]
    assert trips["t1"]["personaSeed"] == trips["t2"]["personaSeed"] == trips["t3"]["personaSeed"]
    # t2 starts when t1 does, and its id is the later one: its visit to a:2, outdoors, does not count.
    assert vector["culture"] == 0.98
    assert vector["outdoors"] == vector["wellness"] == 0.36  # one of three
    assert trips["t3"]["startDate"] == datetime(1864, 11, 30)  # noqa: DTZ001 - as in the database, without a zone
    assert trips["t1"]["startDate"] == datetime(4501, 1, 1)  # noqa: DTZ001


def test_every_place_is_loaded_under_the_applications_categories() -> None:
    nodes = realdata.to_world(NODES, TRIPS, VISITS)["ActivityNode"]
    assert nodes["category"].to_list() == ["culture", "outdoors", "experience"]
    assert nodes["status"].unique().to_list() == ["approved"]


def test_without_the_data_the_script_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BPR_ETL_REALDATA", str(tmp_path / "nowhere"))
    assert realdata.main([]) == 0
    assert "not here" in capsys.readouterr().out
