"""Personas without a database: the oracle's rows over dense worlds, and the corners that no world has."""

from __future__ import annotations

from dataclasses import astuple

import polars as pl
import pytest

from etl.transform.personas import (
    DROP_REASONS,
    PersonaStats,
    affinity_model,
    build_personas,
    read_affinities,
    usable_affinities,
)
from etl.transform.schemas import Affinities, Personas, SeedAffinities, Seeds
from tests.property import oracle
from tests.property.dense import dense_settings
from tests.property.in_memory import WORLDS, frame, personas_of, seeds_of, us

MODEL = affinity_model()


@pytest.mark.parametrize(("make", "number"), WORLDS)
def test_personas_are_the_oracle_s(make, number):
    world, options = make(number), dense_settings(number)
    made = build_personas(*seeds_of(world, options), world.categories, MODEL, options.seed)
    rows, counts = oracle.personas(world, options, MODEL.raw)
    assert made.rows.rows() == [(*astuple(row)[:6], us(row.created_at)) for row in rows]
    assert made.stats == PersonaStats(
        len(rows),
        {source: counts[f"source_{source}"] for source in sorted(oracle.CONFIDENCE) if counts[f"source_{source}"]},
        {
            "unknown_category": counts["affinities_unknown_category"],
            "not_a_finite_number": counts["affinities_not_a_number"],
        },
        {"not_a_finite_number": counts["openness_not_a_number"]},
    )


@pytest.mark.parametrize(("make", "number"), WORLDS)
def test_the_vectors_read_back_are_the_ones_written(make, number):
    world, options = make(number), dense_settings(number)
    rows, _ = oracle.personas(world, options, MODEL.raw)
    found = read_affinities(personas_of(rows), world.categories)
    expected = {
        (row.user_id, category): value
        for row in rows
        if row.dimension == "category_affinities"
        for category, value in oracle.numbers_in(row.value).items()
    }
    assert {(user, category): value for user, category, value in found.iter_rows()} == expected
    assert found.schema == Affinities.create_empty().schema


def test_no_seeds_give_no_rows():
    made = build_personas(Seeds.create_empty(), SeedAffinities.create_empty(), ["dining"], MODEL, 0)
    assert made.rows.height == 0
    assert made.stats == PersonaStats()


def test_a_number_that_no_float_holds_is_dropped_and_counted_and_stops_nothing():
    texts = ["0.5", "1" + "0" * 400, "-1" + "0" * 400, "NaN", "Infinity", "one half", "", None]
    rows = [{"user_id": f"u{place}", "category": "dining", "number": text} for place, text in enumerate(texts)]
    usable, dropped, clipped = usable_affinities(frame(SeedAffinities, rows), ["dining"])
    assert usable.rows() == [("u0", "dining", 500_000)]
    assert dropped == {"unknown_category": 0, "not_a_finite_number": 7}
    assert tuple(dropped) == DROP_REASONS
    assert clipped == 0


def test_numbers_outside_of_0_to_1_are_clipped_and_counted():
    rows = [
        {"user_id": f"u{place}", "category": "dining", "number": text}
        for place, text in enumerate(["1.5", "-0.1", "0", "1"])
    ]
    usable, _, clipped = usable_affinities(frame(SeedAffinities, rows), ["dining"])
    assert usable["millionths"].to_list() == [1_000_000, 0, 0, 1_000_000]
    assert clipped == 2


def test_an_openness_that_is_no_number_counts_as_missing():
    seed = dict.fromkeys(Seeds.column_names()) | {"created_us": 0, "trips": 1}
    rows = [
        {**seed, "user_id": f"u{place}", "cuisine_openness": text}
        for place, text in enumerate(("0.85", "1" + "0" * 5_000, "a lot", None))
    ]
    made = build_personas(frame(Seeds, rows), SeedAffinities.create_empty(), ["dining"], MODEL, 0)
    found = made.rows.filter(pl.col("dimension") == "cuisine_openness").select("value", "source", "confidence").rows()
    default = oracle.shortest(MODEL.default("cuisine_openness"))
    assert found == [("0.85", "onboarding", 1.0), *[(default, "default", 0.0)] * 3]
    assert made.stats.openness_dropped == {"not_a_finite_number": 2}  # what is not there is dropped by nobody


def test_an_enum_without_the_model_s_categories_rebuilds_to_an_empty_object():
    seed = dict.fromkeys(Seeds.column_names()) | {"user_id": "u", "created_us": 0, "trips": 4}
    for categories in ([], ["chess"]):
        made = build_personas(frame(Seeds, [seed]), SeedAffinities.create_empty(), categories, MODEL, 0)
        of_vector = made.rows.filter(pl.col("dimension") == "category_affinities")
        assert of_vector.select("value", "source", "confidence").rows() == [("{}", "reconstructed", 0.95)]
        personas = made.rows.select(pl.col(Personas.column_names()).cast(pl.String)).cast({"confidence": pl.Float64})
        assert read_affinities(Personas.validate(personas), categories).rows() == []


def test_tallies_add_up():
    one = PersonaStats(8, {"onboarding": 5, "default": 3}, {"unknown_category": 1, "not_a_finite_number": 2})
    other = PersonaStats(16, {"onboarding": 7, "reconstructed": 9}, {"unknown_category": 10, "not_a_finite_number": 20})
    assert one + other == PersonaStats(
        24, {"onboarding": 12, "default": 3, "reconstructed": 9}, {"unknown_category": 11, "not_a_finite_number": 22}
    )
    assert one + PersonaStats() == one
