"""Rows pinned in a file: ids, ties, latencies and texts stay what they were, on any later release of the libraries.

`python -m pytest tests/golden --write-golden` writes the file anew, which is a breaking change: say why in CHANGELOG.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

import etl
from etl.settings.sources import load_settings
from etl.transform.personas import affinity_model
from tests.property import oracle
from tests.property.in_database import Databases, written

GOLDEN = Path(__file__).parent / "night.json"
GOLDEN_DRAWN = Path(__file__).parent / "drawn.json"
GOLDEN_NEXT = Path(__file__).parent / "next.json"
CATEGORIES = tuple(affinity_model().raw["categories"])
STATUSES = ("completed", "skipped", "confirmed", "proposed", "active")


def world() -> oracle.World:
    """Three shadow users and a real one, a city of 25 nodes and one of 3: written down, not drawn."""
    nodes = [
        oracle.Node(
            f"n-{number:02}", "Größstadt", CATEGORIES[number % 5], "approved", f"Place {number}", 1.5, number / 4
        )
        for number in range(25)
    ] + [oracle.Node(f"m'{number}", "Dorf", "wellness", "pending", f"Ort {number}", -1.0, 0.25) for number in range(3)]
    seeds = {
        "u1": {
            "pace": "leisurely",
            "budget_tier": "flexible",
            "social_mode": "solo_or_couple",
            "time_orientation": "night_owl",
            "primary_interest": "food",
            "cuisine_openness": 0.85,
            "category_affinities": {
                "dining": 0.9,
                "culture": 0.1234565,
                "drinks": 2,
                "flying": 0.4,
                "active": "0.3",
                "wellness": 2.5e-05,
            },
        },
        "u2": {"pace": "fast", "primary_interest": "adventure", "cuisine_openness": 1.0, "category_affinities": {}},
        "u3": "no object",
        "u4": {"pace": "slow", "category_affinities": {"dining": 0.5}},
    }
    users = [oracle.User(name, f"{'real' if name == 'u4' else 'shadow'}-{name}@example.test") for name in seeds]
    start = datetime.fromisoformat("2024-02-28 09:30:00.123")
    trips = [
        oracle.Trip(f"t-{name}-{number}", name, city, start + timedelta(days=number), start, seed)
        for name, seed in seeds.items()
        for number, city in enumerate(["Größstadt", "Dorf"] * (2 if name == "u2" else 1))
    ]
    slots = [
        oracle.Slot(
            f"s-{trip.id}-{day}-{place}",
            trip.id,
            None if place == 4 else nodes[(7 * day + 3 * place) % 25].id,
            day,
            place % 3,
            STATUSES[(day + place) % 5],
        )
        for trip in trips
        for day in (1, 3)
        for place in range(5)
    ]
    return oracle.World(tuple(users), tuple(trips), tuple(slots), tuple(nodes), (), CATEGORIES)


@pytest.mark.parametrize("seed", [0, 42])
def test_the_rows_are_those_of_the_file(make_database, tmp_path, seed, request):
    source = world()
    url = Databases(make_database).holding(source)
    options = {"database_url": url, "out": str(tmp_path / "out"), "small_catalog": "weight", "seed": seed}
    report = etl.run(load_settings(options, {}))
    personas, events, registry, _ = written(url)
    triples = pl.read_parquet(Path(report.snapshot) / "triples" / "**" / "*.parquet", hive_partitioning=False)
    found = {
        "personas": [asdict(row) for row in personas],
        "events": [asdict(row) for row in events],
        "registry": [row.id for row in registry],
        "triples": triples.height,
        "first_triples": triples.head(5).rows(),
    }
    found = json.loads(json.dumps(found, default=str))
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--write-golden"):
        golden[str(seed)] = found
        GOLDEN.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    assert found == golden[str(seed)]
    assert personas == sorted(
        oracle.personas(source, oracle.Settings(seed=seed), affinity_model().raw)[0], key=lambda row: row.id
    )


DRAWN = {
    "even": {"negatives": ["catalog:2"]},
    "by popularity, rejecting the event's own": {
        "negatives": ["catalog:3"],
        "catalog_alpha": 0.5,
        "reject": "event",
    },
    "of all sources, split and shuffled": {
        "negatives": ["ranking", "shown", "catalog:2"],
        "split": "last-trip",
        "shuffle": True,
        "city_weight": ["Größstadt=3"],
    },
}


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_and_shuffled_triples_are_those_of_the_file(make_database, tmp_path, name, request):
    url = Databases(make_database).holding(world())
    options = {"database_url": url, "out": str(tmp_path / "out"), "small_catalog": "weight", "seed": 7, **DRAWN[name]}
    report = etl.run(load_settings(options, {}))
    triples = {
        path.relative_to(report.snapshot).parent.as_posix(): pl.read_parquet(path, hive_partitioning=False)
        .select("event_id", "pos_item", "neg_item", "neg_source", "weight")
        .head(8)
        .rows()
        for path in sorted((Path(report.snapshot) / "triples").rglob("*.parquet"))
    }
    found = json.loads(json.dumps(triples))
    golden = json.loads(GOLDEN_DRAWN.read_text()) if GOLDEN_DRAWN.exists() else {}
    if request.config.getoption("--write-golden"):
        golden[name] = found
        GOLDEN_DRAWN.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    assert found == golden[name]


NEXT = {
    "of the last trips, with history": {"split": "last-trip", "history": True},
    "few, seen before": {"negatives": ["catalog:2"], "reject": "event", "shuffle": True},
}


@pytest.mark.parametrize("name", NEXT)
def test_interactions_and_choices_are_those_of_the_file(make_database, tmp_path, name, request):
    url = Databases(make_database).holding(world())
    given = {"database_url": url, "out": str(tmp_path / "out"), "small_catalog": "weight", "seed": 7, "task": ["next"]}
    report = etl.run(load_settings(given | NEXT[name], {}))
    found = {
        path.relative_to(report.snapshot).parent.as_posix(): pl.read_parquet(path, hive_partitioning=False).rows()[:20]
        for kind in ("interactions", "next")
        for path in sorted((Path(report.snapshot) / kind).rglob("*.parquet"))
    }
    found = json.loads(json.dumps(found))
    golden = json.loads(GOLDEN_NEXT.read_text()) if GOLDEN_NEXT.exists() else {}
    if request.config.getoption("--write-golden"):
        golden[name] = found
        GOLDEN_NEXT.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
    assert found == golden[name]
