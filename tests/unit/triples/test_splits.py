"""Splits without a database: the oracle's parts over dense worlds, and the corners that no world has."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from etl.settings.values import SPLITS, SplitSpec
from etl.transform.personas import affinity_model
from etl.triples.partitions import build_training_set
from etl.triples.splits import SPLIT, assign
from tests.property import dense, oracle, oracle_training
from tests.property.dense import both_settings
from tests.property.in_memory import WORLDS, dataset_of, training_options

MODEL = affinity_model().raw


@pytest.mark.parametrize("split", sorted(set(dense.SPLITS)))
@pytest.mark.parametrize(("make", "number"), WORLDS[5:11])
def test_splits_are_the_oracle_s(make, number, split):
    world, options = make(number), replace(both_settings(number)[number % 2], split=split)
    after = oracle.after_run(world, options, MODEL)
    exported = oracle.exported(after, options)
    training = build_training_set(dataset_of(after, exported, options), training_options(options))
    events = training.events
    found = dict(events.select("event_id", "split").iter_rows())
    assert found == oracle_training.splits(after, exported, options)
    assert events["event_id"].to_list() == pl.concat(list(training.dataset.events))["event_id"].to_list()
    assert events.schema["split"] == SPLIT == pl.Enum(SPLITS)


def parts(split: SplitSpec, trips: list[tuple], kept: tuple[str, ...] = ("kept",)) -> list[str]:
    """The part of each trip of one user: (city, start_us) each, one event a trip, in the order given."""
    events = pl.DataFrame(
        {
            "user_idx": [0] * len(trips),
            "trip_idx": range(len(trips)),
            "city": [city for city, _ in trips],
            "timestamp": [(start or 0) // 1_000_000 for _, start in trips],
        },
        schema_overrides={"user_idx": pl.UInt32, "trip_idx": pl.UInt32},
    )
    starts = pl.DataFrame({"start_us": [start for _, start in trips]}, schema={"start_us": pl.Int64})
    return assign(events, starts, split, kept)["split"].to_list()


LAST = SplitSpec("last-trip")


def test_a_trip_whose_start_is_infinite_comes_first():
    assert parts(LAST, [("kept", 5), ("kept", None), ("kept", -5)]) == ["test", "train", "valid"]
    assert parts(LAST, [("kept", None), ("kept", -(2**62))]) == ["train", "test"]


@pytest.mark.parametrize(
    ("trips", "expected"),
    [
        ([], []),
        (["kept"], ["train"]),
        (["kept", "kept"], ["train", "test"]),
        (["kept", "kept", "kept"], ["train", "valid", "test"]),
        (["kept", "kept", "kept", "kept"], ["train", "train", "valid", "test"]),
        (["other", "kept", "other"], ["train", "train", "train"]),
        (["other", "kept", "other", "kept", "other"], ["train", "train", "train", "test", "test"]),
        (["kept", "other", "kept", "other", "kept"], ["train", "train", "valid", "valid", "test"]),
        (["other", "other"], ["train", "train"]),
    ],
)
def test_a_trip_elsewhere_takes_the_part_of_the_kept_trip_before_it(trips, expected):
    assert parts(LAST, [(city, place) for place, city in enumerate(trips)]) == expected


def test_trips_that_start_together_are_in_the_order_of_their_ids():
    assert parts(LAST, [("kept", 7)] * 3) == ["train", "valid", "test"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("none", ["train"] * 4),
        ("time:1970-01-01T00:00:02", ["train", "train", "test", "test"]),
        ("time:1970-01-01T00:00:02,1970-01-01T00:00:03", ["train", "train", "valid", "test"]),
        ("time:1970-01-01T00:00:09", ["train"] * 4),
        ("time:1970-01-01,1970-01-01T00:00:01", ["valid", "test", "test", "test"]),
    ],
)
def test_a_cut_belongs_to_the_part_that_it_begins(split, expected):
    assert parts(SplitSpec(split), [("kept", second * 1_000_000) for second in range(4)]) == expected
