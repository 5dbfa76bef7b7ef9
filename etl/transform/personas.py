"""Personas: from the seeds of trips to PersonaDimension rows, and the affinity model (docs/design.md, docs/contract.md).

The affinity model rebuilds a vector over the categories from a persona's five labels: the base vector of the primary interest
plus one delta per other label, clamped. Its numbers are in `data/affinity-model.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import dataframely as dy
import polars as pl

from etl.runtime.resources import resource
from etl.transform.arrays import Counts
from etl.transform.hashing import format_float, format_millionths, round_to_millionths, stable_id
from etl.transform.schemas import CONFIDENCE, Affinities, PersonaRows, Personas, SeedAffinities, Seeds

SEED_LABELS = {
    "pace_preference": "pace",
    "budget_sensitivity": "budget_tier",
    "social_mode": "social_mode",
    "time_orientation": "time_orientation",
    "primary_interest": "primary_interest",
}
"""The dimensions that are a label, and its key in a seed."""

DELTA_TABLES = {
    "pace": "delta_by_pace",
    "budget_tier": "delta_by_budget",
    "social_mode": "delta_by_social_mode",
    "time_orientation": "delta_by_time_orientation",
}
"""The affinity model's table of deltas for each label but the primary interest, by the label's key in a seed."""

BASE_TABLE = "base_by_primary_interest"

_NO_NUMBER = "not_a_finite_number"
DROP_REASONS = ("unknown_category", _NO_NUMBER)
"""Why a value of a seed's `category_affinities` is not used."""


@dataclass(frozen=True)
class AffinityModel:
    """The numbers of the affinity model. `raw` is the JSON object in the file."""

    raw: dict[str, Any]

    @property
    def default_affinity(self) -> float:
        """Affinity of a node whose category the user has no value for."""
        return float(self.raw["unknown_category_affinity"])

    def default(self, axis: str) -> Any:
        """Returns the default of a label, or of `cuisine_openness`, that a seed does not have."""
        return self.raw["defaults"][axis]


@cache
def affinity_model() -> AffinityModel:
    """Returns the model that ships with bpr-etl."""
    return AffinityModel(json.loads(resource("affinity-model.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class PersonaStats(Counts):
    """Counts of persona rows: all, by source of the value, and the unusable values by reason. Named as in the manifest.

    `affinities_dropped` counts the keys of `category_affinities`, `openness_dropped` the numbers of `cuisine_openness`.
    """

    persona_rows: int = 0
    persona_values_by_source: dict[str, int] = field(default_factory=dict)
    affinities_dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DROP_REASONS, 0))
    openness_dropped: dict[str, int] = field(default_factory=lambda: {_NO_NUMBER: 0})


@dataclass(frozen=True)
class PersonaResult:
    """Persona rows and their counts. `clipped` of the `affinities` used were not from 0 to 1."""

    rows: dy.DataFrame[PersonaRows]
    stats: PersonaStats
    affinities: int
    clipped: int


def build_personas(
    seeds: dy.DataFrame[Seeds],
    seed_affinities: dy.DataFrame[SeedAffinities],
    categories: Sequence[str],
    model: AffinityModel,
    seed: int,
) -> PersonaResult:
    """Returns eight persona rows for each seed, ordered by (user_id, dimension).

    `categories` are the values of the database's ActivityCategory. No value is null: what a seed lacks is the model's
    default, with source `default` and confidence 0.
    """
    usable, dropped, clipped = usable_affinities(seed_affinities, categories)
    openness = pl.when(_usable(_OPENNESS)).then(_OPENNESS).otherwise(pl.lit(float(model.default("cuisine_openness"))))
    values = pl.concat(
        [
            *(
                _dimension(
                    seeds, dimension, pl.col(key).fill_null(pl.lit(model.default(key))), pl.col(key).is_not_null()
                )
                for dimension, key in SEED_LABELS.items()
            ),
            _dimension(seeds, "cuisine_openness", format_float(openness), _usable(_OPENNESS)),
            _dimension(seeds, "trip_count", _trip_count(pl.col("trips")), pl.lit(value=True)),
            _category_affinities(seeds, usable, categories, model),
        ]
    )
    rows = (
        values.join(seeds.select("user_id", "created_us"), on="user_id")
        .with_columns(confidence=pl.col("source").replace_strict(CONFIDENCE, return_dtype=pl.Float64))
        .with_columns(id=stable_id("persona_dimension", seed, "user_id", "dimension"))
        .sort("user_id", "dimension")
    )
    by_source = dict(rows.group_by("source").len().sort("source").iter_rows())
    checked = PersonaRows.validate(rows.select(PersonaRows.column_names()), cast=True)
    too_large = seeds.filter(pl.col("cuisine_openness").is_not_null() & ~_usable(_OPENNESS)).height
    stats = PersonaStats(checked.height, by_source, dropped, {_NO_NUMBER: too_large})
    return PersonaResult(checked, stats, usable.height, clipped)


def usable_affinities(affinities: pl.DataFrame, categories: Sequence[str]) -> tuple[pl.DataFrame, dict[str, int], int]:
    """Returns the usable numbers of the seeds' vectors, the counts of those dropped, by reason, and how many were clipped.

    One row per (user_id, category), with `millionths`: the number clipped to [0, 1], as an integer. Dropped are keys that the
    enum does not have, and values that are not finite JSON numbers.
    """
    judged = affinities.with_columns(
        number=pl.col("number").cast(pl.Float64, strict=False), known=pl.col("category").is_in(list(categories))
    ).with_columns(finite=_usable(pl.col("number")))
    kept = judged.filter("known", "finite")
    clipped = kept.filter(~pl.col("number").is_between(0.0, 1.0)).height
    usable = kept.select("user_id", "category", millionths=round_to_millionths(pl.col("number").clip(0.0, 1.0)))
    unknown = judged.filter(~pl.col("known")).height
    no_number = judged.filter(pl.col("known") & ~pl.col("finite")).height
    return usable, dict(zip(DROP_REASONS, (unknown, no_number), strict=True)), clipped


def read_affinities(personas: dy.DataFrame[Personas], categories: Sequence[str]) -> dy.DataFrame[Affinities]:
    """Returns the affinities that PersonaDimension rows hold, one row per (user, category).

    A category that a user has no value for has no row. The rows' values must be JSON objects of finite numbers.
    """
    fields = pl.Struct(dict.fromkeys(categories, pl.Float64))
    vectors = personas.filter(dimension="category_affinities").select(
        "user_id", vector=pl.col("value").str.json_decode(fields)
    )
    if not categories:  # an enum without values has no vectors
        return Affinities.create_empty()
    # By position, not by name: a category may be called "user_id" or "*", or look like a regular expression.
    columns = vectors["vector"].struct.unnest().get_columns()
    long = pl.concat(
        vectors.select("user_id", category=pl.lit(category), affinity=column)
        for category, column in zip(categories, columns, strict=True)
    ).drop_nulls("affinity")
    return Affinities.validate(long.select(Affinities.column_names()), cast=True)


def _dimension(seeds: pl.DataFrame, dimension: str, value: pl.Expr, found: pl.Expr) -> pl.DataFrame:
    """Returns one row per seed; `found` says whether the value is the seed's own, or the default."""
    source = pl.when(found).then(pl.lit("onboarding")).otherwise(pl.lit("default"))
    return seeds.select("user_id", dimension=pl.lit(dimension), value=value, source=source)


_OPENNESS = pl.col("cuisine_openness").cast(pl.Float64, strict=False)


def _usable(number: pl.Expr) -> pl.Expr:
    """Whether a number is finite. One too large for a float64 counts as missing."""
    return number.is_finite().fill_null(value=False)


def _trip_count(trips: pl.Expr) -> pl.Expr:
    several = pl.when(trips <= 3).then(pl.lit("returning")).otherwise(pl.lit("frequent"))
    return pl.when(trips == 1).then(pl.lit("first_trip")).otherwise(several)


def _category_affinities(
    seeds: pl.DataFrame, usable: pl.DataFrame, categories: Sequence[str], model: AffinityModel
) -> pl.DataFrame:
    unseeded = seeds.join(usable, on="user_id", how="anti")
    rebuilt = (
        rebuild_affinities(unseeded, model)
        .filter(pl.col("category").is_in(list(categories)))
        .select("user_id", "category", millionths=round_to_millionths(pl.col("affinity")))
    )
    vectors = pl.concat(
        [usable.with_columns(source=pl.lit("onboarding")), rebuilt.with_columns(source=pl.lit("reconstructed"))]
    )
    objects = _json_objects(vectors, categories)
    # With an enum that has none of the model's categories, a rebuilt vector is an empty object, not a missing row.
    return seeds.join(objects, on="user_id", how="left").select(
        "user_id",
        dimension=pl.lit("category_affinities"),
        value=pl.col("value").fill_null("{}"),
        source=pl.col("source").fill_null("reconstructed"),
    )


def _json_objects(vectors: pl.DataFrame, categories: Sequence[str]) -> pl.DataFrame:
    """Returns one JSON object per user: keys in the order of their bytes, one space after each colon and comma."""
    keys = {category: json.dumps(category, ensure_ascii=False) for category in categories}
    key = pl.col("category").replace_strict(keys, return_dtype=pl.String)
    return (
        vectors.sort("user_id", "category")
        .with_columns(pair=pl.concat_str([key, format_millionths(pl.col("millionths"))], separator=": "))
        .group_by("user_id", maintain_order=True)
        .agg("pair", pl.col("source").first())
        .select("user_id", "source", value="{" + pl.col("pair").list.join(", ") + "}")
    )


def rebuild_affinities(seeds: pl.DataFrame, model: AffinityModel) -> pl.DataFrame:
    """Returns affinities rebuilt from labels: base vector plus deltas, clamped. One row per (user_id, category), unordered.

    `seeds` has one row per user with the labels of SEED_LABELS. A null label counts as the default, synonyms are resolved
    first, an unknown label adds nothing, and an unknown interest has the default interest's vector.
    """
    known = model.raw[BASE_TABLE]
    labels = seeds.select("user_id", *(_canonical_label(axis, model) for axis in SEED_LABELS.values())).with_columns(
        pl.when(pl.col("primary_interest").is_in(list(known)))
        .then("primary_interest")
        .otherwise(pl.lit(model.default("primary_interest")))
        .alias("primary_interest")
    )
    vectors = labels.join(_table(known, "primary_interest", "affinity"), on="primary_interest", how="left")
    for axis, table in DELTA_TABLES.items():
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
