"""Cut a dataset into the partitions of its triples, expand them bucket by bucket, and count what comes out.

A partition is a (split, city). No information flows from a later part of the split to an earlier one: what a user has seen,
how popular an item is, and the counts in the vocabularies come from the same part and those before it (docs/contract.md,
"triples").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from etl.settings.model import OPTIONS, Reject, SmallCatalog
from etl.settings.values import SPLITS, NegativeSampling, NegativeStrategies, SplitSpec
from etl.transform.arrays import I64
from etl.triples.dataset import ENCODED_EVENTS, BucketedEvents, Dataset, no_events
from etl.triples.generate import (
    NO_NEGATIVES,
    SOURCES,
    WHOLE_CATALOGUE_SEEN,
    Catalogue,
    EventArrays,
    HashKeys,
    TripleBatch,
    generate_triples,
)
from etl.triples.sampling import build_pools, integer_weights
from etl.triples.splits import assign

Key = tuple[str | None, str]
"""A split (None without one) and a city."""

Kind = Literal["events", "triples"]

SMALL_CATALOG = "small_catalog"
"""The reason in a manifest why the positives of a small city are excluded."""

MIN_CORRELATION = 0.85
"""Below this popularity correlation, a model trained on the triples nearly always lost at least 0.02 of AUC."""

_NO_NODES = pl.DataFrame(schema={"node": pl.UInt32})
_NONE = (np.zeros(0, np.int64), np.zeros(0, np.int32), 1)


def no_exclusions() -> dict[str, int]:
    """The reasons for which positives are excluded, each with the count 0."""
    return {SMALL_CATALOG: 0, NO_NEGATIVES: 0, WHOLE_CATALOGUE_SEEN: 0}


@dataclass(frozen=True)
class TripleOptions:
    """The settings that decide the triples of a dataset (docs/contract.md, "What is published")."""

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
        """Whether a city with `nodes` eligible items has triples."""
        return nodes >= self.min_catalog or self.small_catalog != "exclude"

    def weight(self, city: str, nodes: int) -> float:
        """The weight of every triple of a city."""
        small = nodes < self.min_catalog and self.small_catalog == "weight"
        return (nodes / self.min_catalog if small else 1.0) * dict(self.city_weight).get(city, 1.0)


@dataclass(frozen=True)
class PartitionInfo:
    """What the partitions of one (split, city) have in common in all buckets.

    `split` is None without a split. `nodes` counts the eligible items of the city, `codes` are their indexes, ascending by
    id. `kept` is false for a city that is too small to have triples.
    """

    split: str | None
    city: str
    nodes: int
    kept: bool
    weight: float
    negatives: NegativeSampling
    codes: I64

    @property
    def key(self) -> Key:
        """The split and the city."""
        return self.split, self.city

    @property
    def is_train(self) -> bool:
        """Whether counts may be taken from it: it is train, or there is no split."""
        return self.split in {None, "train"}


@dataclass(frozen=True)
class Partition(PartitionInfo):
    """One bucket's events of one (split, city), in file order, and what their triples are generated with."""

    events: pl.DataFrame
    catalogue: Catalogue
    keys: HashKeys
    shuffle: bool

    @cached_property
    def coded(self) -> EventArrays:
        """The events as arrays; `TripleBatch.event` is a row of these."""
        return EventArrays.of(self.events)

    def expand(self) -> Iterator[TripleBatch]:
        """Generate the triples, batch by batch."""
        return generate_triples(self.coded, self.negatives, self.catalogue, self.keys, shuffle=self.shuffle)


@dataclass(frozen=True)
class TrainingSet:
    """A dataset with its split. `eligible` counts the eligible items of each city, `kept` are the cities that have triples.

    `popularity_counts` is the `popularity`, if it was counted already.
    """

    dataset: Dataset
    options: TripleOptions
    eligible: Mapping[str, int]
    kept: tuple[str, ...]
    popularity_counts: I64 | None = None

    def buckets(self) -> Iterator[pl.DataFrame]:
        """Yield the events with the column `split`, by user bucket, in file order."""
        for events in self.dataset.events:
            yield self.with_split(events)

    def with_split(self, events: pl.DataFrame) -> pl.DataFrame:
        """Add the column `split` to a bucket's events."""
        return assign(events, self.dataset.trips, self.options.split, self.kept)

    @property
    def events(self) -> pl.DataFrame:
        """All events with the column `split`, in one frame."""
        return pl.concat([self.with_split(ENCODED_EVENTS), *self.buckets()])

    @cached_property
    def popularity(self) -> I64:
        """How many events of train selected each item, by index."""
        if self.popularity_counts is not None:
            return self.popularity_counts
        counts = np.zeros(self.dataset.items.height, np.int64)
        for events in self.dataset.events:
            counts += count_selected(self, events)
        return counts

    @property
    def needs_popularity(self) -> bool:
        """Whether any city samples in proportion to popularity."""
        sizes = [self.eligible.get(city, 0) for city in self.kept]
        return any(self.options.negatives.for_catalog(size, self.options.catalog_alpha).alpha for size in sizes)

    def portable(self, popular: I64 | None = None) -> TrainingSet:
        """Return a small copy that can be pickled: without events, and with the columns that generating triples needs."""
        dataset = self.dataset
        trips = dataset.trips.select("start_us") if self.options.split == "last-trip" else pl.DataFrame()
        events = BucketedEvents(0, dataset.events.cities, 0, no_events)
        own = Dataset(events, dataset.users.select("user_id"), dataset.items, trips)
        return TrainingSet(own, self.options, self.eligible, self.kept, popular)

    def partitions(self, events: pl.DataFrame) -> Iterator[Partition]:
        """Yield the partitions of a bucket: train, valid, test, and within each the cities in the order of their bytes."""
        context = _SamplingContext.of(self, events)
        parts = events.partition_by("split", "city", as_dict=True, include_key=False, maintain_order=True)
        for split, city in sorted(parts, key=lambda key: (SPLITS.index(key[0]), key[1].encode())):
            yield self._partition(split, city, parts[split, city], context)

    @cached_property
    def _keys(self) -> HashKeys:
        return HashKeys.of(self.dataset.users["user_id"], self.dataset.items["item_id"], self.options.seed)

    @cached_property
    def _offered(self) -> dict[tuple[object, ...], pl.DataFrame]:
        """By city, one row per eligible item, ascending by id."""
        offered = self.dataset.eligible_items().sort("item_id").select("city", node="item_idx")
        return offered.partition_by("city", as_dict=True, include_key=False, maintain_order=True)

    def _partition(self, split: str, city: str, events: pl.DataFrame, context: _SamplingContext) -> Partition:
        nodes = self.eligible.get(city, 0)
        negatives = self.options.negatives.for_catalog(nodes, self.options.catalog_alpha)
        offered = self._offered.get((city,), _NO_NODES).with_row_index("position")
        catalogue = context.catalogue(split, offered, events, negatives)
        return Partition(
            split=None if self.options.split == "none" else split,
            city=city,
            nodes=nodes,
            kept=city in self.kept,
            weight=self.options.weight(city, nodes),
            negatives=negatives,
            codes=catalogue.codes,
            events=events,
            catalogue=catalogue,
            keys=self._keys,
            shuffle=self.options.shuffle,
        )


def count_selected(training: TrainingSet, events: pl.DataFrame) -> I64:
    """An executor task: how many events of a bucket's train selected each item, by index."""
    return count_items(in_train(training.with_split(events)), "selected_idx", training.dataset.items.height)


def in_train(events: pl.DataFrame) -> pl.DataFrame:
    """The events that counts may be taken from."""
    return events.filter(pl.col("split") == "train")


def count_items(events: pl.DataFrame, column: str, items: int) -> I64:
    """How many of the events name each item in a column of lists, by index."""
    return np.bincount(events[column].explode(empty_as_null=False).to_numpy(), minlength=items)


def build_training_set(dataset: Dataset, options: TripleOptions) -> TrainingSet:
    """Combine a dataset with its options, and decide which cities have triples."""
    eligible = dataset.eligible
    kept = tuple(city for city in dataset.events.cities if options.keeps(eligible.get(city, 0)))
    return TrainingSet(dataset, options, eligible, kept)


@dataclass(frozen=True)
class _SamplingContext:
    """What sampling needs to know of a whole bucket.

    `seen` has one row per (user, item) ever selected, with the first part of the split in which it was. `popular` returns
    how many events of train selected each item in the whole dataset, by index.
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
        """Build the city's catalogue with the pool that each event of the partition samples from."""
        codes = offered["node"].cast(pl.Int64).to_numpy()
        if not negatives.catalog:
            return Catalogue(
                codes, np.zeros(events.height, np.int64), build_pools(np.ones(len(codes), np.uint64), *_NONE)
            )
        groups, rejected = self._seen(split, events) if self.reject == "seen" else self._selected(events)
        positions = rejected.join(offered, on="node").sort("group", "position")
        by_group = (
            positions["group"].to_numpy(),
            positions["position"].cast(pl.Int32).to_numpy(),
            int(groups.max(initial=-1)) + 1,
        )
        even = build_pools(np.ones(len(codes), np.uint64), *by_group)
        if not negatives.alpha:
            return Catalogue(codes, groups, even)
        return Catalogue(
            codes, groups, even, build_pools(integer_weights(self.popular()[codes], negatives.alpha), *by_group)
        )

    def _seen(self, split: str, events: pl.DataFrame) -> tuple[I64, pl.DataFrame]:
        """One pool per user, without all that the user has selected in this part of the split or before it."""
        users = events.select("user_idx").unique(maintain_order=True).with_columns(group=pl.int_range(pl.len()))
        groups = events.select("user_idx").join(users, on="user_idx", how="left", maintain_order="left")["group"]
        seen = self.seen.filter(pl.col("since") <= SPLITS.index(split)).join(users, on="user_idx")
        return groups.to_numpy(), seen.select("group", "node")

    @staticmethod
    def _selected(events: pl.DataFrame) -> tuple[I64, pl.DataFrame]:
        """One pool per event, without what the event itself selected."""
        rows = events.select(node="selected_idx").with_row_index("group").explode("node", empty_as_null=False)
        return np.arange(events.height), rows.with_columns(pl.col("group").cast(pl.Int64))


def popularity_correlation(positive: I64, negative: I64, popularity: I64) -> float | None:
    """Spearman's correlation over items between the odds of being a positive and popularity, ties at their average rank.

    `positive` and `negative` count the triples of each item on either side, `popularity` the events that selected it. A model
    raises items that are positives more often than negatives: if these are not the popular ones, it learns a bad ranking
    (docs/negatives.md). None for fewer than three items, or if one side is constant.
    """
    # The odds instead of their logarithm: the same order, and equal ones tie exactly, since both counts are integers.
    ratio = (positive + 1) / (negative + 1)
    if len(ratio) < 3 or len(np.unique(ratio)) == 1 or len(np.unique(popularity)) == 1:
        return None
    ranks = pl.DataFrame({"ratio": ratio, "popularity": popularity}).select(pl.all().rank("average"))
    return float(ranks.select(pl.corr("ratio", "popularity")).item())


def _zeros(size: int) -> I64:
    return np.zeros(size, np.int64)


@dataclass
class PartitionStats:
    """Counts of one (split, city). `positive` and `negative` count the triples of each item in `info.codes`."""

    info: PartitionInfo
    positive: I64
    negative: I64
    events: int = 0
    positives: int = 0
    triples: int = 0

    @classmethod
    def of(cls, partition: PartitionInfo) -> PartitionStats:
        """Nothing is counted yet."""
        info = PartitionInfo(**{each.name: getattr(partition, each.name) for each in fields(PartitionInfo)})
        return cls(info, _zeros(len(info.codes)), _zeros(len(info.codes)))

    def add(self, other: PartitionStats) -> None:
        """Add the counts of another bucket."""
        self.events += other.events
        self.positives += other.positives
        self.triples += other.triples
        self.positive += other.positive
        self.negative += other.negative


@dataclass
class BucketStats:
    """Counts of a bucket. `users`, `items` and `per_user` count train alone, or everything without a split.

    `users` has one row per user with `trips`, `events` and `selections`. `items` counts, by index, the events in which an
    item is `candidate` and `selected`, and the triples in which it is `positive` and `negative`. `per_user` has the number of
    triples by user, one frame per partition.
    """

    users: pl.DataFrame
    items: dict[str, I64]
    partitions: list[PartitionStats] = field(default_factory=list)
    per_user: list[pl.DataFrame] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=no_exclusions)
    exhausted_users: set[int] = field(default_factory=set)
    sources: I64 = field(default_factory=lambda: _zeros(len(SOURCES)))

    @classmethod
    def of(cls, train: pl.DataFrame, items: int) -> BucketStats:
        """Count the train events of a bucket; no triples yet."""
        users = train.group_by("user_idx").agg(
            trips=pl.col("trip_idx").n_unique(), events=pl.len(), selections=pl.col("selected_idx").list.len().sum()
        )
        named = {name: count_items(train, f"{name}_idx", items) for name in ("candidate", "selected")}
        none = {name: _zeros(items) for name in ("positive", "negative")}
        return cls(users.with_columns(pl.exclude("user_idx").cast(pl.Int64)), named | none)


class BucketExpansion:
    """The triples of one bucket. `stats` is complete when all batches were taken."""

    def __init__(self, training: TrainingSet, events: pl.DataFrame) -> None:
        self._training, self._events = training, training.with_split(events)
        self.stats = BucketStats.of(in_train(self._events), training.dataset.items.height)

    def __iter__(self) -> Iterator[tuple[PartitionStats, Kind, pl.DataFrame | TripleBatch]]:
        """Yield what belongs into files: of each partition its events in one frame, then its triples in batches."""
        for partition in self._training.partitions(self._events):
            own = PartitionStats.of(partition)
            own.events = partition.events.height
            self.stats.partitions.append(own)
            yield own, "events", partition.events.clone()  # a frame object must not be shared by threads
            if partition.kept:
                for batch in self._expand(partition, own):
                    yield own, "triples", batch
            else:
                self.stats.left_out[SMALL_CATALOG] += int(partition.events["selected_idx"].list.len().sum())

    def _expand(self, partition: Partition, own: PartitionStats) -> Iterator[TripleBatch]:
        """Generate the triples of a partition, and count them."""
        stats, events, items = self.stats, partition.coded, len(self.stats.items["positive"])
        positive, negative, per_event = _zeros(items), _zeros(items), _zeros(len(events))
        for batch in partition.expand():
            own.positives += batch.positives
            own.triples += len(batch)
            for reason, positives in batch.left_out.items():
                stats.left_out[reason] += positives
            stats.exhausted_users.update(batch.exhausted_users.tolist())
            stats.sources += [np.count_nonzero(batch.source == source) for source in range(len(SOURCES))]
            if own.info.is_train:
                positive += np.bincount(batch.pairs.code, batch.per_pair, items).astype(np.int64)
                negative += np.bincount(batch.negative, minlength=items)
                per_event += np.bincount(batch.pairs.event, batch.per_pair, len(events)).astype(np.int64)
            yield batch
        if own.info.is_train:
            own.positive, own.negative = positive[own.info.codes], negative[own.info.codes]
            stats.items["positive"] += positive
            stats.items["negative"] += negative
            rows = pl.DataFrame({"user_idx": events.users, "triples": per_event})
            stats.per_user.append(rows.group_by("user_idx").sum())


class VocabularyCounts:
    """How often each user and each item occurs in train, by index: the sum over buckets."""

    def __init__(self, users: int, items: int) -> None:
        self.users = {name: _zeros(users) for name in ("trips", "events", "selections", "triples")}
        self.items = {name: _zeros(items) for name in ("candidate", "selected", "positive", "negative")}

    def add(self, stats: BucketStats) -> None:
        """Add the counts of a bucket."""
        self._add_users(stats.users, ("trips", "events", "selections"))
        for rows in stats.per_user:
            self._add_users(rows, ("triples",))
        for name, counts in stats.items.items():
            self.items[name] += counts

    def _add_users(self, rows: pl.DataFrame, names: Iterable[str]) -> None:
        users = rows["user_idx"].to_numpy()  # each once
        for name in names:
            self.users[name][users] += rows[name].to_numpy()
