"""Assign events to the parts of a split: train, valid, test (docs/contract.md, "triples").

No row of a later part informs an earlier one. `time` guarantees that for all users. `last-trip` guarantees it within each user,
but train contains events of other users that are later than a test trip, as in most published evaluations (Meng et al. 2020,
"Exploring Data Splitting Strategies for the Evaluation of Recommendation Models").
"""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

from etl.settings.values import SPLITS, SplitSpec

SPLIT = pl.Enum(SPLITS)


def assign(events: pl.DataFrame, trips: pl.DataFrame, split: SplitSpec, kept: Collection[str]) -> pl.DataFrame:
    """Add the column `split` (Enum of train, valid, test) to events; their order stays.

    `events` has `user_idx`, `trip_idx`, `city` and `timestamp`, all events of each of its users; `trips` one row per trip,
    sorted by id, with its `start_us`. `kept` are the cities that have triples. Without a split everything is train.
    """
    if split.kind == "none":
        return events.with_columns(split=pl.lit("train", dtype=SPLIT))
    if split.kind == "time":
        # The cuts are whole seconds, so a timestamp and its floor are on the same side of them.
        passed = pl.sum_horizontal((pl.col("timestamp") >= cut).cast(pl.Int8) for cut in split.cuts)
        return events.with_columns(split=passed.replace_strict(dict(enumerate(split.parts)), return_dtype=SPLIT))
    parts = _last_trips(events, trips, kept)
    return events.join(parts, on=["user_idx", "trip_idx"], how="left", maintain_order="left")


def _last_trips(events: pl.DataFrame, trips: pl.DataFrame, kept: Collection[str]) -> pl.DataFrame:
    """One row per (user, trip): the user's last trip to a kept city is test, with three or more the one before valid.

    A trip to an excluded city takes the part of the user's last kept trip before it, train without one. So in the order of a
    user's trips, no later part comes before an earlier one.
    """
    own = (
        events.select("user_idx", "trip_idx", kept=pl.col("city").is_in(list(kept)).cast(pl.Int32))
        .group_by("user_idx", "trip_idx")
        .max()  # a trip with legs may have events in several cities
        .pipe(lambda own: own.with_columns(start_us=trips["start_us"].gather(own["trip_idx"])))
        .sort("user_idx", "start_us", "trip_idx", nulls_last=False)
        .with_columns(number=pl.col("kept").cum_sum().over("user_idx"), of=pl.col("kept").sum().over("user_idx"))
    )
    is_test = (pl.col("of") >= 2) & (pl.col("number") == pl.col("of"))
    is_valid = (pl.col("of") >= 3) & (pl.col("number") == pl.col("of") - 1)
    part = pl.when(is_test).then(pl.lit("test")).when(is_valid).then(pl.lit("valid")).otherwise(pl.lit("train"))
    return own.select("user_idx", "trip_idx", split=part.cast(SPLIT))
