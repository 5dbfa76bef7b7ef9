"""The whole job against the oracle, on small nasty worlds in a real database: every row, every file, every count."""

from __future__ import annotations

import json
import tempfile
from dataclasses import astuple, fields
from pathlib import Path

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from etl import pipeline
from etl.affinity import affinity_model
from etl.compact import EVENT_COLUMNS
from etl.config import resolve
from etl.stage import city_folder
from etl.validate import validate_snapshot
from tests.property import oracle
from tests.property.dense import dense_world
from tests.property.in_database import Databases, written
from tests.property.worlds import run_settings, worlds

MODEL = affinity_model().raw


def dense_settings(number: int) -> oracle.Settings:
    """Settings for the dense world of a number: each value meets each other one before long."""
    return oracle.Settings(
        seed=(0, 7)[number % 2],
        min_catalog=(1, 20, 21, 50)[number // 2 % 4],
        small_catalog=("exclude", "weight", "keep")[number % 3],
        audience=("shadow", "all", "shadow", "real")[number // 3 % 4],
    )


@pytest.fixture(scope="session")
def databases(make_database) -> Databases:
    return Databases(make_database)


def the_night_is_the_oracle_s(databases, world: oracle.World, options: oracle.Settings) -> None:
    url = databases.holding(world)
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            name: getattr(options, name)
            for name in ("seed", "min_catalog", "small_catalog", "audience", "shadow_prefix")
        }
        settings_ = resolve({"database_url": url, "out": f"{folder}/out", **chosen}, {})
        report = pipeline.run(settings_)
        after = oracle.after_run(world, options, MODEL)
        rows_are_the_oracle_s(url, after)
        exported = oracle.exported(after, options)
        files_are_the_oracle_s(Path(report.snapshot), after, exported, options)
        counts_are_the_oracle_s(report.counts, world, options)
        again = pipeline.export(settings_)
        assert content(again) == content(report)
        broken = {finding.law for finding in pipeline.validate(settings_).broken}
        assert broken <= {"the design's validation query returns rows"}
        assert [finding for finding in validate_snapshot(Path(report.snapshot)) if finding.broken] == []


def content(report: pipeline.Report) -> str:
    return json.loads((Path(report.snapshot) / "manifest.json").read_text())["content_sha256"]


def rows_are_the_oracle_s(url: str, after: oracle.World) -> None:
    personas, events, registry, signals = written(url)
    assert personas == by_id(after.personas)
    assert events == by_id(after.events)
    assert [astuple(row)[:6] for row in registry] == [astuple(row)[:6] for row in by_id(after.registry)]
    assert signals == by_id(after.signals)


def by_id(rows) -> list:
    return sorted(rows, key=lambda row: row.id.encode())


def files_are_the_oracle_s(snapshot: Path, after, exported, options) -> None:
    for city, expected in exported.cities.items():
        found = pl.read_parquet(snapshot / "events" / city_folder(city) / "*.parquet", hive_partitioning=False)
        assert found.columns == list(EVENT_COLUMNS)
        wanted = [tuple(list(c) if isinstance(c, tuple) else c for c in astuple(event)[:-1]) for event in expected]
        assert found.rows() == wanted
    triples, _ = oracle.triples(after, exported, options)
    for city, expected in triples.items():
        found = pl.read_parquet(snapshot / "triples" / city_folder(city) / "*.parquet", hive_partitioning=False)
        assert found.columns == [column.name for column in fields(oracle.Triple)]
        assert found.rows() == [astuple(triple) for triple in expected]
    for kind, cities in (("events", exported.cities), ("triples", triples)):
        assert {path.name for path in (snapshot / kind).glob("city=*")} == {city_folder(city) for city in cities}
    vocabularies_are_the_oracle_s(snapshot, after, exported, options)


def vocabularies_are_the_oracle_s(snapshot: Path, after, exported, options) -> None:
    users = pl.read_parquet(snapshot / "users.parquet")
    for found, expected in zip(users.rows(named=True), oracle.users_rows(after, options), strict=True):
        assert (found["user_id"], found["user_idx"]) == (expected.user_id, expected.user_idx)
        for dimension, value in expected.dimensions.items():
            assert found[dimension] == (as_float(value) if dimension == "cuisine_openness" else value)
    items = pl.read_parquet(snapshot / "items.parquet")
    assert items.columns == [column.name for column in fields(oracle.ItemOut)]
    assert items.rows() == [astuple(item) for item in oracle.items_rows(after, exported)]


def as_float(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def counts_are_the_oracle_s(counts: dict, world, options) -> None:
    personas, persona_counts = oracle.personas(world, options, MODEL)
    _, event_counts = oracle.events(world, personas, options)
    sources = counts["persona_values_by_source"]
    assert counts["shadow_users"] == persona_counts["shadow_users"]
    assert counts["shadow_users_without_persona"] == persona_counts["users_without_persona"]
    for source in ("onboarding", "default", "reconstructed"):
        assert sources.get(source, 0) == persona_counts[f"source_{source}"]
    assert counts["affinities_dropped"] == {
        "unknown_category": persona_counts["affinities_unknown_category"],
        "not_a_finite_number": persona_counts["affinities_not_a_number"],
    }
    assert counts["ranking_events"] == event_counts["events"]
    assert counts["days_without_event"] == {reason: event_counts[reason] for reason in oracle.SKIP_REASONS}
    assert counts["positives"] == event_counts["positives"]
    assert counts["positives_outside_candidates"] == event_counts["positives_outside_candidates"]


# Not shrunk here, which takes minutes: `make test-slow` does.
@settings(max_examples=40, phases=[Phase.generate])
@given(world=worlds(), options=run_settings())
def test_small_nights_are_the_oracle_s(databases, world, options):
    the_night_is_the_oracle_s(databases, world, options)


@pytest.mark.parametrize("number", range(40))
def test_dense_nights_are_the_oracle_s(databases, number):
    the_night_is_the_oracle_s(databases, dense_world(number), dense_settings(number))


@pytest.mark.slow
@settings(max_examples=1_000, derandomize=False)
@given(world=worlds() | st.integers(1_000, 10**9).map(dense_world), options=run_settings())
def test_many_nights_are_the_oracle_s(databases, world, options):
    the_night_is_the_oracle_s(databases, world, options)
