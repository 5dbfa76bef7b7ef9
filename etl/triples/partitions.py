"""A dataset cut into the partitions of its triples: which split and city, what its positives stand against, what they weigh.

Nothing of a later part of the split reaches an earlier one: what a user has seen, how popular a node is, and the counts
of the vocabularies are all taken from the same part and those before it (CONTRACT, section 3, Splits and Negatives).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from etl.settings.model import OPTIONS, Reject, SmallCatalog
from etl.settings.values import SPLITS, NegativeSampling, NegativeStrategies, SplitSpec
from etl.transform.arrays import I64
from etl.triples.dataset import ENCODED_EVENTS, BucketedEvents, Dataset, no_events
from etl.triples.generate import Catalogue, EventArrays, HashKeys, TripleBlock, generate_triples
from etl.triples.sampling import build_pools, integer_weights
from etl.triples.splits import assign

_NO_NODES = pl.DataFrame(schema={"node": pl.UInt32})
_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int32), 1)


@dataclass(frozen=True)
class TripleOptions:
    """What decides the triples, besides the dataset (CONTRACT, section 3)."""

    min_catalog: int = OPTIONS["min_catalog"].default
    small_catalog: SmallCatalog = OPTIONS["small_catalog"].default
    negatives: NegativeStrategies = OPTIONS["negatives"].default
    reject: Reject = OPTIONS["reject"].default
    catalog_alpha: float | None = None
    split: SplitSpec = OPTIONS["split"].default
    city_weight: tuple[tuple[str, float], ...] = ()
    shuffle: bool = False
    seed: int = OPTIONS["seed"].default

    def __post_init__(self) -> None:
        """Accept texts for parsed values, as a manifest has them."""
        object.__setattr__(self, "negatives", NegativeStrategies(self.negatives))
        object.__setattr__(self, "split", SplitSpec(self.split))

    def keeps(self, nodes: int) -> bool:
        """Whether a city of so many eligible nodes has triples."""
        return nodes >= self.min_catalog or self.small_catalog != "exclude"

    def weight(self, city: str, nodes: int) -> float:
        """What every triple of a city weighs."""
        small = nodes < self.min_catalog and self.small_catalog == "weight"
        return (nodes / self.min_catalog if small else 1.0) * dict(self.city_weight).get(city, 1.0)


@dataclass(frozen=True)
class Partition:
    """One bucket's events of one (split, city), in file order, and what their triples are made with.

    `split` is None where there is none. `nodes` counts the city's eligible nodes; `kept` is false for a city that is too
    small. `catalogue` holds what each event may draw.
    """

    split: str | None
    city: str
    events: pl.DataFrame
    nodes: int
    kept: bool
    weight: float
    negatives: NegativeSampling
    catalogue: Catalogue
    keys: HashKeys
    shuffle: bool

    @property
    def is_train(self) -> bool:
        """Whether counts may be taken from it: it is train, or there is no split."""
        return self.split in {None, "train"}

    @cached_property
    def coded(self) -> EventArrays:
        """The events as arrays: what a block's `event` counts the rows of."""
        return EventArrays.of(self.events)

    def expand(self) -> Iterator[TripleBlock]:
        """The triples, block by block."""
        return generate_triples(self.coded, self.negatives, self.catalogue, self.keys, shuffle=self.shuffle)


@dataclass(frozen=True)
class TrainingSet:
    """A dataset with its split. `eligible` counts each city's nodes, `kept` are the cities that have triples.

    `popular` is the `popularity`, where somebody has counted it already.
    """

    dataset: Dataset
    options: TripleOptions
    eligible: Mapping[str, int]
    kept: tuple[str, ...]
    popularity_counts: I64 | None = None

    def buckets(self) -> Iterator[pl.DataFrame]:
        """The events with the column `split`, by user bucket, in file order."""
        for events in self.dataset.events:
            yield self.with_split(events)

    def with_split(self, events: pl.DataFrame) -> pl.DataFrame:
        """A bucket's events with the column `split`."""
        return assign(events, self.dataset.trips, self.options.split, self.kept)

    @property
    def events(self) -> pl.DataFrame:
        """All of them in one frame: for those who look at everything at once."""
        return pl.concat([self.with_split(ENCODED_EVENTS), *self.buckets()])

    @cached_property
    def popularity(self) -> I64:
        """The train events that selected each node, by code."""
        if self.popularity_counts is not None:
            return self.popularity_counts
        counts = np.zeros(self.dataset.items.height, np.int64)
        for events in self.dataset.events:
            counts += count_selected(self, events)
        return counts

    @property
    def needs_popularity(self) -> bool:
        """Whether draws of any city ask for the nodes' popularity."""
        sizes = [self.eligible.get(city, 0) for city in self.kept]
        return any(self.options.negatives.for_catalog(size, self.options.catalog_alpha).alpha for size in sizes)

    def portable(self, popular: I64 | None = None) -> TrainingSet:
        """The same for one who is given its events and knows nothing else of the dataset than triples need; it can travel."""
        dataset = self.dataset
        trips = dataset.trips.select("start_us") if self.options.split == "last-trip" else pl.DataFrame()
        events = BucketedEvents(0, dataset.events.cities, 0, no_events)
        own = Dataset(events, dataset.users.select("user_id"), dataset.items, trips)
        return TrainingSet(own, self.options, self.eligible, self.kept, popular)

    def partitions(self, events: pl.DataFrame) -> Iterator[Partition]:
        """One per (split, city) that a bucket has events of: train before valid before test, cities in their bytes' order."""
        drawing = _SamplingContext.of(self, events)
        parts = events.partition_by("split", "city", as_dict=True, include_key=False, maintain_order=True)
        for split, city in sorted(parts, key=lambda key: (SPLITS.index(key[0]), key[1].encode())):
            yield self._partition(split, city, parts[split, city], drawing)

    @cached_property
    def _keys(self) -> HashKeys:
        return HashKeys.of(self.dataset.users["user_id"], self.dataset.items["item_id"], self.options.seed)

    @cached_property
    def _offered(self) -> dict[tuple[object, ...], pl.DataFrame]:
        """By city one row per eligible node, ascending by id."""
        offered = self.dataset.eligible_items().sort("item_id").select("city", node="item_idx")
        return offered.partition_by("city", as_dict=True, include_key=False, maintain_order=True)

    def _partition(self, split: str, city: str, events: pl.DataFrame, drawing: _SamplingContext) -> Partition:
        nodes = self.eligible.get(city, 0)
        negatives = self.options.negatives.for_catalog(nodes, self.options.catalog_alpha)
        offered = self._offered.get((city,), _NO_NODES).with_row_index("place")
        return Partition(
            split=None if self.options.split == "none" else split,
            city=city,
            events=events,
            nodes=nodes,
            kept=city in self.kept,
            weight=self.options.weight(city, nodes),
            negatives=negatives,
            catalogue=drawing.catalogue(split, offered, events, negatives),
            keys=self._keys,
            shuffle=self.options.shuffle,
        )


def count_selected(training: TrainingSet, events: pl.DataFrame) -> I64:
    """A step for an engine: the train events of a bucket that selected each node, by code."""
    return count_items(in_train(training.with_split(events)), "selected_idx", training.dataset.items.height)


def in_train(events: pl.DataFrame) -> pl.DataFrame:
    """The events that counts may be taken from."""
    return events.filter(pl.col("split") == "train")


def count_items(events: pl.DataFrame, column: str, items: int) -> I64:
    """How many of the events name each node in a column of lists, by code."""
    return np.bincount(events[column].explode(empty_as_null=False).to_numpy(), minlength=items)


def build_training_set(dataset: Dataset, options: TripleOptions) -> TrainingSet:
    """A dataset with its split and its options: which cities have triples."""
    eligible = dataset.eligible
    kept = tuple(city for city in dataset.events.cities if options.keeps(eligible.get(city, 0)))
    return TrainingSet(dataset, options, eligible, kept)


@dataclass(frozen=True)
class _SamplingContext:
    """What draws need to know of a bucket beyond one partition.

    `seen` has one row per (user, node) ever selected, with the first split it was; `popular` says the train events that
    selected each node, by code, of the whole dataset.
    """

    seen: pl.DataFrame
    popular: Callable[[], I64]
    reject: Reject

    @classmethod
    def of(cls, training: TrainingSet, events: pl.DataFrame) -> _SamplingContext:
        taken = events.select("user_idx", "split", node="selected_idx").explode("node", empty_as_null=False)
        seen = taken.group_by("user_idx", "node").agg(pl.col("split").to_physical().min().alias("since"))
        return cls(seen, lambda: training.popularity, training.options.reject)

    def catalogue(
        self, split: str, offered: pl.DataFrame, events: pl.DataFrame, negatives: NegativeSampling
    ) -> Catalogue:
        """The city's catalogue with the pool that each event of the partition draws from."""
        codes = offered["node"].cast(pl.Int64).to_numpy()
        if not negatives.catalog:
            return Catalogue(
                codes, np.zeros(events.height, np.int64), build_pools(np.ones(len(codes), np.uint64), *_NONE)
            )
        groups, rejected = self._seen(split, events) if self.reject == "seen" else self._selected(events)
        places = rejected.join(offered, on="node").sort("group", "place")
        by_group = (
            places["group"].to_numpy(),
            places["place"].cast(pl.Int32).to_numpy(),
            int(groups.max(initial=-1)) + 1,
        )
        even = build_pools(np.ones(len(codes), np.uint64), *by_group)
        if not negatives.alpha:
            return Catalogue(codes, groups, even)
        return Catalogue(
            codes, groups, even, build_pools(integer_weights(self.popular()[codes], negatives.alpha), *by_group)
        )

    def _seen(self, split: str, events: pl.DataFrame) -> tuple[I64, pl.DataFrame]:
        """A pool per user, without all that the user has selected in this part of the split or before it."""
        users = events.select("user_idx").unique(maintain_order=True).with_columns(group=pl.int_range(pl.len()))
        groups = events.select("user_idx").join(users, on="user_idx", how="left", maintain_order="left")["group"]
        seen = self.seen.filter(pl.col("since") <= SPLITS.index(split)).join(users, on="user_idx")
        return groups.to_numpy(), seen.select("group", "node")

    @staticmethod
    def _selected(events: pl.DataFrame) -> tuple[I64, pl.DataFrame]:
        """A pool per event, without what the event itself selected."""
        rows = events.select(node="selected_idx").with_row_index("group").explode("node", empty_as_null=False)
        return np.arange(events.height), rows.with_columns(pl.col("group").cast(pl.Int64))
