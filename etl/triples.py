"""From events to BPR triples: one row per (event, positive, negative) (design, "BPR training pair construction"; CONTRACT, 3).

Rendle et al. 2009 (BPR: Bayesian Personalized Ranking from Implicit Feedback) learn from (user, i, j) where the user
took i and not j. Here i is a positive, j a negative that the same event offered.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Expanded:
    """The triples of some events, and the account of their positives: events x selected = positives + left out.

    `triples` is in the events' order, then the positives' in `selected_ids`, then the negatives' in `candidate_ids`;
    `positives` counts the positives that have a triple, `without_negatives` those that have none to stand against.
    """

    triples: pl.DataFrame
    positives: int
    without_negatives: int


def expand(events: pl.DataFrame, weight: float = 1.0) -> Expanded:
    """The triples of `events` with the design's negatives, `ranking`: what was offered and not taken.

    Columns as in CONTRACT, section 3, ids as in `events` (text or Enum). An event that has no positive, or no negative,
    gives no row. A negative is never a positive of the same event.
    """
    numbered = events.with_row_index("event")
    positives = (
        numbered.select("event", "candidate_ids", pos_item="selected_ids")
        .explode("pos_item", empty_as_null=False, keep_nulls=False)
        .select("event", "pos_item", pos_in_candidates=pl.col("pos_item").is_in(pl.col("candidate_ids")))
    )
    negatives = (
        numbered.select("event", neg_item="candidate_ids")
        .explode("neg_item", empty_as_null=False, keep_nulls=False)
        .join(
            positives, left_on=["event", "neg_item"], right_on=["event", "pos_item"], how="anti", maintain_order="left"
        )
        .group_by("event", maintain_order=True)
        .agg("neg_item")
    )
    paired = positives.join(negatives, on="event", maintain_order="left")
    triples = (
        paired.explode("neg_item")
        .join(
            numbered.select("event", "user_id", "timestamp", "event_id", "trip_id", "day_number"),
            on="event",
            maintain_order="left",
        )
        .select(
            "user_id",
            "pos_item",
            "neg_item",
            "timestamp",
            "event_id",
            "trip_id",
            "day_number",
            pl.lit("ranking").alias("neg_source"),
            "pos_in_candidates",
            pl.lit(weight, dtype=pl.Float32).alias("weight"),
        )
    )
    return Expanded(triples, paired.height, positives.height - paired.height)
