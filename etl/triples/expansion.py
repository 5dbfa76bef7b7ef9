"""Pure: one bucket's events → its triples, partition by partition, and the account of them, which the buckets' add up to.

Where the pieces go is the caller's: into files as they come (`stage`), or together into what an engine keeps (`apart`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import polars as pl

from etl.transform.arrays import I64
from etl.triples.generate import NO_NEGATIVES, SOURCES, WHOLE_CATALOGUE_SEEN, TripleBatch
from etl.triples.partitions import Partition, TrainingSet, count_items, in_train

Key = tuple[str | None, str]
"""A split (None where there is none) and a city."""

SMALL_CATALOG = "small_catalog"
"""Why the positives of a small city are left out, in a manifest."""


class TripleSink(Protocol):
    """Where a bucket's pieces go."""

    def start_partition(self, partition: Partition) -> None:
        """A partition's events, all that the bucket has; then come its pieces."""

    def write(self, partition: Partition, piece: TripleBatch) -> None:
        """Some of the partition's triples, in file order."""


@dataclass
class PartitionStats:
    """What the events of one (split, city) come to. `positive` and `negative` count the triples by place in `codes`."""

    key: Key
    kept: bool
    nodes: int
    weight: float
    is_train: bool
    negatives_spec: dict[str, object]
    codes: I64
    events: int
    positives: int = 0
    triples: int = 0
    positive: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    negative: I64 = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, partition: Partition) -> PartitionStats:
        """Its events; no triples yet."""
        codes = partition.catalogue.codes
        return cls(
            (partition.split, partition.city),
            partition.kept,
            partition.nodes,
            partition.weight,
            partition.is_train,
            partition.negatives.as_dict(),
            codes,
            partition.events.height,
            positive=np.zeros(len(codes), np.int64),
            negative=np.zeros(len(codes), np.int64),
        )

    def zeroed(self) -> PartitionStats:
        """The same partition's account before anything is counted."""
        none = np.zeros(len(self.codes), np.int64)
        return replace(self, events=0, positives=0, triples=0, positive=none, negative=none.copy())

    def add(self, other: PartitionStats) -> None:
        """Count another bucket's, too."""
        self.events += other.events
        self.positives += other.positives
        self.triples += other.triples
        self.positive += other.positive
        self.negative += other.negative


@dataclass
class BucketStats:
    """What a bucket comes to. Of train alone, or of all where there is no split: `users`, `items` and `per_user`.

    `users` has a row per user with `trips`, `events` and `selections`; `items` counts by code in which events a node is
    `candidate` and `selected`, in which triples `positive` and `negative`; `per_user` has the users' triples, in pieces.
    """

    users: pl.DataFrame
    items: dict[str, I64]
    partitions: list[PartitionStats] = field(default_factory=list)
    per_user: list[pl.DataFrame] = field(default_factory=list)
    left_out: dict[str, int] = field(
        default_factory=lambda: {SMALL_CATALOG: 0, NO_NEGATIVES: 0, WHOLE_CATALOGUE_SEEN: 0}
    )
    exhausted_users: set[int] = field(default_factory=set)
    sources: I64 = field(default_factory=lambda: np.zeros(len(SOURCES), np.int64))

    @classmethod
    def of(cls, train: pl.DataFrame, items: int) -> BucketStats:
        """A bucket's train events; no triples yet."""
        users = train.group_by("user_idx").agg(
            trips=pl.col("trip_idx").n_unique(), events=pl.len(), selections=pl.col("selected_idx").list.len().sum()
        )
        named = {name: count_items(train, f"{name}_idx", items) for name in ("candidate", "selected")}
        none = {name: np.zeros(items, np.int64) for name in ("positive", "negative")}
        return cls(users.with_columns(pl.exclude("user_idx").cast(pl.Int64)), named | none)


def expand_bucket(training: TrainingSet, events: pl.DataFrame, sink: TripleSink) -> BucketStats:
    """Make a bucket's triples and count them. `events` has the column `split` (`Training.with_split`)."""
    tally = BucketStats.of(in_train(events), training.dataset.items.height)
    for partition in training.partitions(events):
        own = PartitionStats.of(partition)
        tally.partitions.append(own)
        sink.start_partition(partition)
        if partition.kept:
            _expand(partition, own, tally, sink)
        else:
            tally.left_out[SMALL_CATALOG] += int(partition.events["selected_idx"].list.len().sum())
    return tally


def _expand(partition: Partition, own: PartitionStats, tally: BucketStats, sink: TripleSink) -> None:
    """Make a partition's triples, count them, and send them on their way."""
    events, items = partition.coded, len(tally.items["positive"])
    positive, negative = (np.zeros(items, np.int64) for _ in range(2))
    per_event = np.zeros(len(events), np.int64)
    for block in partition.expand():
        own.positives += block.positives
        own.triples += len(block)
        for reason, positives in block.left_out.items():
            tally.left_out[reason] += positives
        tally.exhausted_users.update(block.exhausted_users.tolist())
        tally.sources += [np.count_nonzero(block.source == place) for place in range(len(SOURCES))]
        if own.is_train:
            positive += np.bincount(block.pairs.code, block.per_pair, items).astype(np.int64)
            negative += np.bincount(block.negative, minlength=items)
            per_event += np.bincount(block.pairs.event, block.per_pair, len(events)).astype(np.int64)
        sink.write(partition, TripleBatch(events, block))
    if own.is_train:
        own.positive, own.negative = positive[own.codes], negative[own.codes]
        tally.items["positive"] += positive
        tally.items["negative"] += negative
        rows = pl.DataFrame({"user_idx": events.users, "triples": per_event})
        tally.per_user.append(rows.group_by("user_idx").sum())


class VocabularyCounts:
    """How often each user and each node stands in train, by code: the buckets added up."""

    def __init__(self, users: int, items: int) -> None:
        self.users = {name: np.zeros(users, np.int64) for name in ("trips", "events", "selections", "triples")}
        self.items = {name: np.zeros(items, np.int64) for name in ("candidate", "selected", "positive", "negative")}

    def add(self, tally: BucketStats) -> None:
        """Count a bucket's, too."""
        self._add_users(tally.users, ("trips", "events", "selections"))
        for rows in tally.per_user:
            self._add_users(rows, ("triples",))
        for name, counts in tally.items.items():
            self.items[name] += counts

    def _add_users(self, rows: pl.DataFrame, names: Iterable[str]) -> None:
        users = rows["user_idx"].to_numpy()  # each once
        for name in names:
            self.users[name][users] += rows[name].to_numpy()
