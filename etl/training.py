"""A dataset cut into the partitions of its triples: which split and city, what its positives stand against, what they weigh.

Nothing of a later part of the split reaches an earlier one: what a user has seen, how popular a node is, and the counts
of the vocabularies are all taken from the same part and those before it (CONTRACT, section 3, Splits and Negatives).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from etl.choices import SPLITS, Negatives, negatives_for, parse_split
from etl.compact import Dataset
from etl.draws import I64, pools, whole_weights
from etl.splits import assign
from etl.triples import Catalogue, Expanded, expand

SmallCatalog = Literal["exclude", "weight", "keep"]
Reject = Literal["seen", "event"]

_NO_NODES = pl.DataFrame(schema={"node": pl.UInt32})
_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int32), 1)


@dataclass(frozen=True)
class TrainingOptions:
    """What decides the triples, besides the dataset (CONTRACT, section 3)."""

    min_catalog: int = 50
    small_catalog: SmallCatalog = "exclude"
    negatives: tuple[str, ...] = ("ranking",)
    reject: Reject = "seen"
    catalog_alpha: float | None = None
    split: str = "none"
    city_weight: tuple[tuple[str, float], ...] = ()
    shuffle: bool = False
    seed: int = 0

    def keeps(self, nodes: int) -> bool:
        """Whether a city of so many eligible nodes has triples."""
        return nodes >= self.min_catalog or self.small_catalog != "exclude"

    def weight(self, city: str, nodes: int) -> float:
        """What every triple of a city weighs."""
        small = nodes < self.min_catalog and self.small_catalog == "weight"
        return (nodes / self.min_catalog if small else 1.0) * dict(self.city_weight).get(city, 1.0)


@dataclass(frozen=True)
class Partition:
    """The events of one (split, city), in file order, and what their triples are made with.

    `split` is None where there is none. `nodes` counts the city's eligible nodes; `kept` is false for a city that is too
    small. `catalogue` holds what each event may draw.
    """

    split: str | None
    city: str
    events: pl.DataFrame
    nodes: int
    kept: bool
    weight: float
    negatives: Negatives
    catalogue: Catalogue

    @property
    def informs(self) -> bool:
        """Whether counts may be taken from it: it is train, or there is no split."""
        return self.split in {None, "train"}

    def expand(self, options: TrainingOptions) -> Expanded:
        """The partition's triples."""
        return expand(
            self.events,
            self.negatives,
            self.catalogue,
            weight=self.weight,
            seed=options.seed,
            shuffle=options.shuffle,
        )


@dataclass(frozen=True)
class Training:
    """A dataset with its split: `events` has the column `split`, in file order. `eligible` counts each city's nodes."""

    dataset: Dataset
    events: pl.DataFrame
    options: TrainingOptions
    eligible: Mapping[str, int]

    @property
    def train(self) -> pl.DataFrame:
        """The events that counts may be taken from."""
        return self.events.filter(pl.col("split") == "train")

    def partitions(self) -> Iterator[Partition]:
        """One per (split, city) that has events: train before valid before test, cities in the order of their bytes."""
        drawing = _Drawing.of(self)
        parts = self.events.partition_by("split", "city", as_dict=True, include_key=False, maintain_order=True)
        for split, city in sorted(parts, key=lambda key: (SPLITS.index(key[0]), key[1].encode())):
            yield self._partition(split, city, parts[split, city], drawing)

    def _partition(self, split: str, city: str, events: pl.DataFrame, drawing: _Drawing) -> Partition:
        nodes = self.eligible.get(city, 0)
        negatives = negatives_for(self.options.negatives, self.options.catalog_alpha, nodes)
        return Partition(
            split=None if self.options.split == "none" else split,
            city=city,
            events=events,
            nodes=nodes,
            kept=self.options.keeps(nodes),
            weight=self.options.weight(city, nodes),
            negatives=negatives,
            catalogue=drawing.catalogue(split, city, events, negatives),
        )


def times_named(events: pl.DataFrame, column: str, items: int) -> I64:
    """How many of the events name each node in a column of lists, by code."""
    codes = events.select(pl.col(column).explode(empty_as_null=False, keep_nulls=False)).to_series().to_physical()
    return np.bincount(codes.to_numpy(), minlength=items)


def prepare(dataset: Dataset, options: TrainingOptions) -> Training:
    """Split a dataset's events."""
    eligible = dataset.eligible
    kept = [city for city in dataset.events["city"].unique() if options.keeps(eligible.get(city, 0))]
    events = assign(dataset.events, dataset.trips, parse_split(options.split), kept)
    return Training(dataset, events, options, eligible)


@dataclass(frozen=True)
class _Drawing:
    """What draws need to know of the whole dataset.

    `seen` has one row per (user, node) ever selected, with the first split it was; `catalogues` by city one row
    per eligible node, ascending by id; `popular` the train events that selected each node, by code.
    """

    seen: pl.DataFrame
    catalogues: Mapping[tuple[object, ...], pl.DataFrame]
    popular: I64
    reject: Reject

    @classmethod
    def of(cls, training: Training) -> _Drawing:
        taken = (
            training.events.select("user_id", "split", node="selected_ids")
            .explode("node", empty_as_null=False, keep_nulls=False)
            .with_columns(pl.col("node").to_physical().cast(pl.UInt32))
        )
        offered = training.dataset.offered().sort("item_id").select("city", node="item_idx")
        return cls(
            seen=taken.group_by("user_id", "node").agg(pl.col("split").to_physical().min().alias("since")),
            catalogues=offered.partition_by("city", as_dict=True, include_key=False, maintain_order=True),
            popular=times_named(training.train, "selected_ids", training.dataset.items.height),
            reject=training.options.reject,
        )

    def catalogue(self, split: str, city: str, events: pl.DataFrame, negatives: Negatives) -> Catalogue:
        """The city's catalogue with the pool that each event of the partition draws from."""
        offered = self.catalogues.get((city,), _NO_NODES).with_row_index("place")
        codes = offered["node"].cast(pl.Int64).to_numpy()
        if not negatives.catalog:
            return Catalogue(codes, np.zeros(events.height, np.int64), pools(np.ones(len(codes), np.uint64), *_NONE))
        groups, rejected = self._seen(split, events) if self.reject == "seen" else self._selected(events)
        places = rejected.join(offered, on="node").sort("group", "place")
        by_group = (
            places["group"].to_numpy(),
            places["place"].cast(pl.Int32).to_numpy(),
            int(groups.max(initial=-1)) + 1,
        )
        even = pools(np.ones(len(codes), np.uint64), *by_group)
        if not negatives.alpha:
            return Catalogue(codes, groups, even)
        return Catalogue(codes, groups, even, pools(whole_weights(self.popular[codes], negatives.alpha), *by_group))

    def _seen(self, split: str, events: pl.DataFrame) -> tuple[I64, pl.DataFrame]:
        """A pool per user, without all that the user has selected in this part of the split or before it."""
        users = events.select("user_id").unique(maintain_order=True).with_columns(group=pl.int_range(pl.len()))
        groups = events.select("user_id").join(users, on="user_id", how="left", maintain_order="left")["group"]
        seen = self.seen.filter(pl.col("since") <= SPLITS.index(split)).join(users, on="user_id")
        return groups.to_numpy(), seen.select("group", "node")

    @staticmethod
    def _selected(events: pl.DataFrame) -> tuple[I64, pl.DataFrame]:
        """A pool per event, without what the event itself selected."""
        rows = events.select(node="selected_ids").with_row_index("group").explode("node", empty_as_null=False)
        return np.arange(events.height), rows.drop_nulls().with_columns(
            pl.col("group").cast(pl.Int64), pl.col("node").to_physical().cast(pl.UInt32)
        )
