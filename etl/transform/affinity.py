"""The additive affinity model: from a persona's five labels to a vector over the categories, and its figures.

Source: `data/affinity-model.json` (base vector by primary interest, one delta per label of the four other axes, clamp).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import polars as pl

from etl.runtime.resources import resource

AXES = ("pace", "budget_tier", "social_mode", "time_orientation", "primary_interest")
"""The labels that the model knows, by their names in a seed."""

_DELTAS = {
    "pace": "delta_by_pace",
    "budget_tier": "delta_by_budget",
    "social_mode": "delta_by_social_mode",
    "time_orientation": "delta_by_time_orientation",
}


@dataclass(frozen=True)
class AffinityModel:
    """The figures of the additive model. `raw` is the JSON object as it stands in the file."""

    raw: dict[str, Any]

    @property
    def default_affinity(self) -> float:
        """The affinity of a node whose category the user has no value for."""
        return float(self.raw["unknown_category_affinity"])

    def default(self, axis: str) -> Any:
        """What counts for a label, or for `cuisine_openness`, that a seed does not have."""
        return self.raw["defaults"][axis]


@cache
def affinity_model() -> AffinityModel:
    """The model that ships with bpr-etl."""
    return AffinityModel(json.loads(resource("affinity-model.json").read_text(encoding="utf-8")))


def rebuild_affinities(seeds: pl.DataFrame, model: AffinityModel) -> pl.DataFrame:
    """Rebuild affinity vectors from labels: base vector plus deltas, then clamp (CONTRACT, section 2, PersonaDimension).

    Takes one row per user with the columns of AXES, null where a label is missing: it counts as the default. Synonyms
    are resolved first; an unknown label adds nothing, an unknown interest takes the default interest's vector.
    Gives one row per (user_id, category of the model) with `affinity` inside the clamp, ordered by neither.
    """
    known = model.raw["base_by_primary_interest"]
    labels = seeds.select("user_id", *(_canonical_label(axis, model) for axis in AXES)).with_columns(
        pl.when(pl.col("primary_interest").is_in(list(known)))
        .then("primary_interest")
        .otherwise(pl.lit(model.default("primary_interest")))
        .alias("primary_interest")
    )
    vectors = labels.join(_table(known, "primary_interest", "affinity"), on="primary_interest", how="left")
    for axis, table in _DELTAS.items():
        delta = _table(model.raw[table], axis, "delta")
        vectors = (
            vectors.join(delta, on=[axis, "category"], how="left")
            .with_columns(affinity=pl.col("affinity") + pl.col("delta").fill_null(0.0))
            .drop("delta")
        )
    low, high = model.raw["clamp"]
    return vectors.select("user_id", "category", pl.col("affinity").clip(low, high))


def _canonical_label(axis: str, model: AffinityModel) -> pl.Expr:
    label = pl.col(axis).fill_null(pl.lit(model.default(axis)))
    return label.replace(model.raw["label_synonyms"][axis]).alias(axis)


def _table(by_label: dict[str, dict[str, float]], label: str, value: str) -> pl.DataFrame:
    rows = [(name, category, number) for name, vector in by_label.items() for category, number in vector.items()]
    return pl.DataFrame(rows, schema={label: pl.String, "category": pl.String, value: pl.Float64}, orient="row")
