"""Cut a dataset into the partitions of its tables, expand them bucket by bucket, and count what comes out.

A partition is a (split, city). No information flows from a later part of the split to an earlier one: what a user has seen,
how popular an item is, and the counts in the vocabularies come from the same part and those before it (docs/contract.md,
"triples").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from etl.settings.model import OPTIONS, Reject, SmallCatalog
from etl.settings.values import RECOMMENDED_SAMPLES, SPLITS, NegativeSampling, NegativeStrategies, SplitSpec, Task
from etl.transform.arrays import I64
from etl.triples.dataset import ENCODED_EVENTS, BucketedEvents, Dataset, no_events
from etl.triples.generate import (
    NO_NEGATIVES,
    SOURCES,
    WHOLE_CATALOGUE_SEEN,
    Catalogue,
    EventArrays,
    EventRows,
    HashKeys,
    ListColumn,
    TripleBatch,
    generate_triples,
)
from etl.triples.interactions import interactions
from etl.triples.next_choices import Choices, Coordinates, TripOrder
from etl.triples.sampling import AliasTable, build_pools, integer_weights
from etl.triples.selections import Selections
from etl.triples.splits import assign

Key = tuple[str | None, str]
"""A split (None without one) and a city."""

Kind = Literal["events", "interactions", "triples", "next"]
"""A published table that is partitioned by split and city."""

SMALL_CATALOG = "small_catalog"
"""The reason in a manifest why the positives of a small city are excluded."""

MIN_CORRELATION = 0.85
"""Below this popularity correlation, a model trained on the triples nearly always lost at least 0.02 of AUC."""

_NO_NODES = pl.DataFrame(schema={"node": pl.UInt32})
_NO_REJECTIONS = (np.zeros(0, np.int64), np.zeros(0, np.int32), 1)


def no_exclusions() -> dict[str, int]:
    """The reasons why positives are excluded, each with the count 0."""
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
    task: tuple[Task, ...] = OPTIONS["task"].default
    history: bool = False
    seed: int = OPTIONS["seed"].default

    def __post_init__(self) -> None:
        """Accept texts and lists for parsed values, as a manifest has them."""
        object.__setattr__(self, "task", tuple(self.task))
        object.__setattr__(self, "negatives", NegativeStrategies(self.negatives))
        object.__setattr__(self, "split", SplitSpec(self.split))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The tables that are published."""
        return ("events", "interactions", *self.task)

    @property
    def per_choice(self) -> int:
        """How many negatives a choice of `next` has at most."""
        return self.negatives.samples or RECOMMENDED_SAMPLES

    def keeps(self, nodes: int) -> bool:
        """Whether a city with `nodes` eligible items has triples."""
        return nodes >= self.min_catalog or self.small_catalog != "exclude"

    def weight(self, city: str, nodes: int) -> float:
        """The weight of every triple of a city."""
        small = nodes < self.min_catalog and self.small_catalog == "weight"
        return (nodes / self.min_catalog if small else 1.0) * dict(self.city_weight).get(city, 1.0)


@dataclass(frozen=True)
class PartitionInfo:
    """What is the same for one (split, city) in all buckets.

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
        """Whether counts may use it: it is train, or there is no split."""
        return self.split in {None, "train"}


@dataclass(frozen=True)
class Partition(PartitionInfo):
    """One bucket's events of one (split, city), in file order, and what their triples are generated with."""

    events: pl.DataFrame
    build_catalogue: Callable[[], Catalogue]
    keys: HashKeys
    shuffle: bool

    @property
    def rows(self) -> I64:
        """The row numbers of its events among the bucket's events."""
        return self.events["row"].to_numpy().astype(np.int64)

    @property
    def part(self) -> int:
        """The number of its part of the split."""
        return SPLITS.index(self.split or "train")

    @cached_property
    def catalogue(self) -> Catalogue:
        """What its events sample from."""
        return self.build_catalogue()

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

    `popularity_counts` is the value of `popularity` if it was counted already.
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

    @cached_property
    def city_numbers(self) -> dict[str, int]:
        """A number for each city that has an item."""
        return {city: number for number, city in enumerate(self.dataset.items["city"].drop_nulls().unique())}

    @cached_property
    def item_cities(self) -> I64:
        """The number of each item's city, by index; -1 for an item that is gone."""
        numbers = self.dataset.items["city"].replace_strict(self.city_numbers, default=-1, return_dtype=pl.Int64)
        return numbers.fill_null(-1).to_numpy()

    @property
    def needs_popularity(self) -> bool:
        """Whether any city samples in proportion to popularity."""
        sizes = [self.eligible.get(city, 0) for city in self.kept]
        return any(self.options.negatives.for_city(size, self.options.catalog_alpha).alpha for size in sizes)

    def portable(self, popular: I64 | None = None) -> TrainingSet:
        """Return a small copy that can be pickled: without events, and with the columns that generating triples needs."""
        dataset = self.dataset
        by_start = self.options.split == "last-trip" or "next" in self.options.task
        trips = dataset.trips.select("start_us") if by_start else pl.DataFrame()
        events = BucketedEvents(0, dataset.events.cities, 0, no_events)
        own = Dataset(events, dataset.users.select("user_id"), dataset.items, trips)
        return TrainingSet(own, self.options, self.eligible, self.kept, popular)

    def partitions(self, events: pl.DataFrame) -> Iterator[Partition]:
        """Yield the partitions of a bucket: train, valid, test, and within each the cities in the order of their bytes."""
        context = _SamplingContext(events, lambda: self.popularity, self.options.reject)
        numbered = events.with_row_index("row")
        parts = numbered.partition_by("split", "city", as_dict=True, include_key=False, maintain_order=True)
        for split, city in sorted(parts, key=lambda key: (SPLITS.index(key[0]), key[1].encode())):
            yield self._partition(split, city, parts[split, city], context)

    @cached_property
    def places(self) -> Coordinates:
        """Where the items are."""
        return Coordinates.of(self.dataset.items)

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
        negatives = self.options.negatives.for_city(nodes, self.options.catalog_alpha)
        offered = self._offered.get((city,), _NO_NODES).with_row_index("position")
        return Partition(
            split=None if self.options.split == "none" else split,
            city=city,
            nodes=nodes,
            kept=city in self.kept,
            weight=self.options.weight(city, nodes),
            negatives=negatives,
            codes=offered["node"].cast(pl.Int64).to_numpy(),
            events=events,
            build_catalogue=lambda: context.catalogue(split, offered, events, negatives),
            keys=self._keys,
            shuffle=self.options.shuffle,
        )


def count_selected(training: TrainingSet, events: pl.DataFrame) -> I64:
    """An executor task: how many events of a bucket's train selected each item, by index."""
    train = in_train(training.with_split(events))
    return ListColumn.of(train["selected_idx"]).counts(training.dataset.items.height)


def in_train(events: pl.DataFrame) -> pl.DataFrame:
    """The events of train: only these may be counted."""
    return events.filter(pl.col("split") == "train")


def build_training_set(dataset: Dataset, options: TripleOptions) -> TrainingSet:
    """Combine a dataset with its options, and decide which cities have triples."""
    eligible = dataset.eligible
    kept = tuple(city for city in dataset.events.cities if options.keeps(eligible.get(city, 0)))
    return TrainingSet(dataset, options, eligible, kept)


@dataclass(frozen=True)
class _SamplingContext:
    """What sampling needs to know of a whole bucket.

    `popular` returns how many events of train selected each item in the whole dataset, by index.
    """

    events: pl.DataFrame
    popular: Callable[[], I64]
    reject: Reject

    @cached_property
    def seen(self) -> pl.DataFrame:
        """One row per (user, item) that was ever selected, with the first such part of the split (`since`)."""
        taken = self.events.select("user_idx", "split", node="selected_idx").explode("node", empty_as_null=False)
        return taken.group_by("user_idx", "node").agg(pl.col("split").to_physical().min().alias("since"))

    def catalogue(
        self, split: str, offered: pl.DataFrame, events: pl.DataFrame, negatives: NegativeSampling
    ) -> Catalogue:
        """Build the city's catalogue with the pool that each event of the partition samples from."""
        codes = offered["node"].cast(pl.Int64).to_numpy()
        if not negatives.catalog:
            return Catalogue(codes, np.zeros(events.height, np.int64), build_pools(len(codes), *_NO_REJECTIONS))
        groups, rejected = self._seen(split, events) if self.reject == "seen" else self._selected(events)
        positions = rejected.join(offered, on="node").sort("group", "position")
        pools = build_pools(
            len(codes),
            positions["group"].to_numpy(),
            positions["position"].cast(pl.Int32).to_numpy(),
            int(groups.max(initial=-1)) + 1,
        )
        weights = integer_weights(self.popular()[codes], negatives.alpha) if negatives.alpha else None
        return Catalogue(codes, groups, pools, None if weights is None else AliasTable.of(weights))

    def _seen(self, split: str, events: pl.DataFrame) -> tuple[I64, pl.DataFrame]:
        """One pool per user, without what the user selected in this part of the split or an earlier one."""
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
    """Counts of one (split, city). `positive` and `negative` count the triples of each item in `info.codes`.

    `events`, `interactions`, `triples` and `next` count the rows of these tables, `positives` and `choices` those with a row.
    `in_another_city` counts the selected items whose city is not the event's.
    """

    info: PartitionInfo
    positive: I64
    negative: I64
    events: int = 0
    interactions: int = 0
    positives: int = 0
    triples: int = 0
    choices: int = 0
    next: int = 0
    in_another_city: int = 0

    @classmethod
    def of(cls, partition: PartitionInfo) -> PartitionStats:
        """Start with all counts at 0."""
        info = PartitionInfo(**{each.name: getattr(partition, each.name) for each in fields(PartitionInfo)})
        return cls(info, _zeros(len(info.codes)), _zeros(len(info.codes)))

    def add(self, other: PartitionStats) -> None:
        """Add the counts of another bucket."""
        for name in ("events", "interactions", "positives", "triples", "choices", "next", "in_another_city"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.positive += other.positive
        self.negative += other.negative


@dataclass
class BucketStats:
    """Counts of a bucket. `users`, `items` and `per_user` count train alone, or everything without a split.

    `users` has one row per user with `trips`, `events` and `selections`. `items` counts, by index, the events in which an
    item is `candidate` and `selected`, the triples in which it is `positive` and `negative`, and the `users` who selected it.
    `per_user` has the number of triples by user, one frame per partition.
    """

    users: pl.DataFrame
    items: dict[str, I64]
    partitions: list[PartitionStats] = field(default_factory=list)
    per_user: list[pl.DataFrame] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=no_exclusions)
    choices_left_out: dict[str, int] = field(default_factory=no_exclusions)
    exhausted_users: set[int] = field(default_factory=set)
    sources: I64 = field(default_factory=lambda: _zeros(len(SOURCES)))

    @classmethod
    def of(cls, train: pl.DataFrame, items: int) -> BucketStats:
        """Count the train events of a bucket by user; no items and triples yet."""
        users = train.group_by("user_idx").agg(
            trips=pl.col("trip_idx").n_unique(), events=pl.len(), selections=pl.col("selected_idx").list.len().sum()
        )
        none = {name: _zeros(items) for name in ("candidate", "selected", "positive", "negative", "users")}
        return cls(users.with_columns(pl.exclude("user_idx").cast(pl.Int64)), none)


class BucketExpansion:
    """The rows of one bucket in all tables. `stats` is complete after the last batch."""

    def __init__(self, training: TrainingSet, events: pl.DataFrame) -> None:
        self._training, self._options, self._events = training, training.options, training.with_split(events)
        items = training.dataset.items.height
        self._selections = Selections.of(self._events, items)
        self.stats = BucketStats.of(in_train(self._events), items)
        new_in_train = self._selections.new & (self._selections.parts == SPLITS.index("train"))
        self.stats.items["users"] = np.bincount(self._selections.items[new_in_train], minlength=items)

    def __iter__(self) -> Iterator[tuple[PartitionStats, Kind, pl.DataFrame | EventRows]]:
        """Yield the rows to write as (counts, table, batch), by partition, then by table; events as one frame."""
        makers: dict[Kind, Callable[[Partition, PartitionStats], Iterator[pl.DataFrame | EventRows]]] = {
            "events": self._of_events,
            "interactions": self._interactions,
            "triples": self._triples,
            "next": self._next,
        }
        for partition in self._training.partitions(self._events):
            own = PartitionStats.of(partition)
            self.stats.partitions.append(own)
            for kind in self._options.kinds:
                for batch in makers[kind](partition, own):
                    yield own, kind, batch

    def _of_events(self, partition: Partition, own: PartitionStats) -> Iterator[pl.DataFrame]:
        cities, number = self._training.item_cities, self._training.city_numbers.get(partition.city, -1)
        of_selected = cities[partition.coded.selected.codes]
        own.events = partition.events.height
        if own.info.is_train:
            items = self.stats.items
            items["candidate"] += partition.coded.candidates.counts(len(items["candidate"]))
            items["selected"] += partition.coded.selected.counts(len(items["selected"]))
        own.in_another_city = int(np.count_nonzero((of_selected >= 0) & (of_selected != number)))
        yield partition.events.drop("row")  # a frame object must not be shared by threads

    def _interactions(self, partition: Partition, own: PartitionStats) -> Iterator[EventRows]:
        made = interactions(self._selections, partition.rows, partition.coded)
        own.interactions = len(made)
        yield made

    @cached_property
    def _trips(self) -> TripOrder:
        return TripOrder(self._selections, self._training.dataset.trips["start_us"])

    def _next(self, partition: Partition, own: PartitionStats) -> Iterator[EventRows]:
        """Generate the choices of a partition, and count them."""
        options = self._options
        choices = Choices(
            self._selections,
            self._trips.of_part(partition.part),
            partition.rows,
            partition.coded,
            partition.codes,
            options.per_choice,
            options.reject,
            options.history,
        )
        if not partition.kept:
            self.stats.choices_left_out[SMALL_CATALOG] += len(choices.elements)
            return
        for batch in choices.generate(partition.keys, self._training.places, shuffle=options.shuffle):
            own.choices += batch.choices
            own.next += len(batch.rows)
            for reason, number in batch.left_out.items():
                self.stats.choices_left_out[reason] += number
            yield batch.rows

    def _triples(self, partition: Partition, own: PartitionStats) -> Iterator[EventRows]:
        """Generate the triples of a partition, and count them."""
        if not partition.kept:
            self.stats.left_out[SMALL_CATALOG] += int(partition.coded.selected.lengths.sum())
            return
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
            yield self._with_history(partition, batch) if self._options.history else batch.rows
        if own.info.is_train:
            own.positive, own.negative = positive[own.info.codes], negative[own.info.codes]
            stats.items["positive"] += positive
            stats.items["negative"] += negative
            rows = pl.DataFrame({"user_idx": events.users, "triples": per_event})
            stats.per_user.append(rows.group_by("user_idx").sum())

    def _with_history(self, partition: Partition, batch: TripleBatch) -> EventRows:
        """The triples of a batch with the columns of `--history`."""
        selections, rows = self._selections, partition.rows[batch.event]
        past = selections.in_time(partition.part)
        before = past.ranks[selections.lists.ends[rows]]  # the event's first selection
        stamps = partition.coded.timestamps[batch.event]
        history = past.history(selections.users[rows], before, stamps, batch.positive, batch.negative)
        return replace(batch.rows, values={**batch.rows.values, **history})


class VocabularyCounts:
    """How often each user and each item occurs in train, by index: the sum over buckets."""

    def __init__(self, users: int, items: int) -> None:
        self.users = {name: _zeros(users) for name in ("trips", "events", "selections", "triples")}
        self.items = {name: _zeros(items) for name in ("candidate", "selected", "positive", "negative", "users")}

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
