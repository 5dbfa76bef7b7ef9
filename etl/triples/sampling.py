"""Sample items from a catalogue without replacement, many samples at a time (docs/contract.md, "triples").

A sample has a key of 64 bits and a pool: the catalogue of its city without the items that its group (a user, or an
event) rejects. Its random numbers are splitmix64 of that key (Steele, Lea, Flood 2014), so a sample does not depend on
other samples or on threads.

Only `catalog:N` and `recommended` sample; the negatives of `ranking` and `shown` are in `etl.triples.generate`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from etl.transform.arrays import I64, U64, Flags, Positions
from etl.transform.hashing import mix64

_GAMMA = 0x9E3779B97F4A7C15
_BLOCK = 1 << 14  # samples at a time: one column of them fits into the cache
_MATERIALIZE_RATIO = 4  # maximum number of positions of materialized pools per sampled item
_ATTEMPTS_PER_ITEM = 4  # attempts per item, before weighted sampling materializes the rest


@dataclass(frozen=True)
class SamplingPools:
    """The pools of all groups over one catalogue: positions 0..n-1 with integer weights, and what each group rejects.

    A pool is an interval from 0 to `total[group]`, in which every item has a segment as long as its weight, in catalogue order.
    `cumulative_weight` has the running sums of the weights, None if all are 1. The positions that group g rejects are
    `rejected[offsets[g] : offsets[g + 1]]`, ascending.
    """

    weights: U64
    cumulative_weight: U64 | None
    rejected: Positions
    offsets: I64

    @property
    def sizes(self) -> I64:
        """The number of items in each group's pool."""
        return len(self.weights) - np.diff(self.offsets)

    @cached_property
    def total(self) -> U64:
        """The weight of each group's pool."""
        if self.cumulative_weight is None:
            return self.sizes.astype(np.uint64)
        removed = self._removed[self.offsets[1:]] - self._removed[self.offsets[:-1]]
        return (self.cumulative_weight[-1:] if len(self.weights) else np.zeros(1, np.uint64)) - removed

    @cached_property
    def _removed(self) -> U64:
        """The rejected weight of all groups before each rejected position, and of all."""
        taken = self.weights[self.rejected] if len(self.rejected) else np.zeros(0, np.uint64)
        return np.concatenate([np.zeros(1, np.uint64), np.cumsum(taken, dtype=np.uint64)])

    @cached_property
    def _searched(self) -> tuple[U64, U64]:
        """By rejected position: where its segment would begin in the pool, and the rejected weight up to its end.

        The first has the group in the upper 32 bits, so that one search covers all groups. The second counts only the
        position's own group.
        """
        groups = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        gone = self._removed[1:] - self._removed[self.offsets[groups]]
        ends = self.cumulative_weight
        cut = ((self.rejected + 1).astype(np.uint64) if ends is None else ends[self.rejected]) - gone
        return (groups.astype(np.uint64) << np.uint64(32)) | cut, gone

    def of(self, groups: I64) -> tuple[SamplingPools, I64]:
        """Return the pools of the range that these groups span, and the groups numbered from its start."""
        first, end = int(groups.min()), int(groups.max()) + 1
        low, high = self.offsets[first], self.offsets[end]
        offsets = self.offsets[first : end + 1] - low
        return SamplingPools(self.weights, self.cumulative_weight, self.rejected[low:high], offsets), groups - first

    def item_at(self, groups: I64, measure: U64) -> Positions:
        """The position whose segment of its group's pool contains this point."""
        boundaries, removed = self._searched
        last = np.searchsorted(boundaries, (groups.astype(np.uint64) << np.uint64(32)) | measure, side="right") - 1
        behind = last >= self.offsets[groups]
        point = measure + np.where(behind, removed[last], np.uint64(0)) if len(removed) else measure
        where = (
            point if self.cumulative_weight is None else np.searchsorted(self.cumulative_weight, point, side="right")
        )
        return where.astype(np.int32)


def build_pools(weights: U64, groups: I64, rejected: Positions, count: int) -> SamplingPools:
    """Build the pools of `count` groups. `rejected` are positions, ascending within each of the ascending `groups`.

    The weights' sum must be below 2**32.
    """
    offsets = np.searchsorted(groups, np.arange(count + 1)).astype(np.int64)
    ends = None if (weights == 1).all() else np.cumsum(weights, dtype=np.uint64)
    return SamplingPools(weights, ends, rejected, offsets)


def integer_weights(counts: Iterable[int], alpha: float) -> U64:
    """Scale (count + 1) ** alpha of each item to integers of at least 1 with a sum below 2**32."""
    # Python's own power and an exact sum: a vectorised power may differ in its last bit between machines.
    raised = [(count + 1) ** alpha for count in map(int, counts)]
    scale = (2**32 - 1 - len(raised)) / math.fsum(raised) if raised else 0.0
    return np.array([int(value * scale) + 1 for value in raised], dtype=np.uint64)


def sample(
    keys: U64, groups: I64, wanted: int, even: SamplingPools, weighted: SamplingPools | None = None
) -> tuple[Positions, Flags]:
    """Sample up to `wanted` distinct items per key. Returns (positions, which of them count), both of shape (wanted, keys).

    A pool of at most `wanted` items is returned whole, ascending. Otherwise items are sampled uniformly by Floyd's algorithm
    (Bentley and Floyd 1987, "A sample of brilliance"), or, with `weighted`, the same pools, one after the other in proportion
    to the weights.
    """
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(keys), _BLOCK)]

    def one(block: slice) -> tuple[Positions, Flags]:
        return _sample_block(keys[block], groups[block], wanted, even, weighted)

    with ThreadPoolExecutor(_threads()) as threads:
        done = list(threads.map(one, blocks))
    if not done:
        return np.zeros((wanted, 0), np.int32), np.zeros((wanted, 0), np.bool_)
    return np.concatenate([places for places, _ in done], 1), np.concatenate([counts for _, counts in done], 1)


def _threads() -> int:
    """One per core, but no more than Polars has: POLARS_MAX_THREADS limits a process that is one of many on its machine."""
    return min(len(os.sched_getaffinity(0)), pl.thread_pool_size())


def _sample_block(
    keys: U64, groups: I64, wanted: int, even: SamplingPools, weighted: SamplingPools | None
) -> tuple[Positions, Flags]:
    """One block of `sample`."""
    even, near = even.of(groups)
    sizes = even.sizes[near]
    column = np.arange(wanted, dtype=np.int32)[:, None]
    counts = column < sizes
    many = np.flatnonzero(sizes > wanted)
    if weighted is None and len(many) == len(keys):  # the usual case, without a copy
        return _items_at(even, near, _floyd(keys, sizes, wanted)), counts
    taken = np.where(counts, column, 0)
    if weighted is None and len(many):
        taken[:, many] = _floyd(keys[many], sizes[many], wanted)
    places = _items_at(even, near, taken)
    if weighted is not None and len(many):
        places[:, many] = _weighted(keys[many], groups[many], wanted, weighted)
    return places, counts


def _items_at(even: SamplingPools, groups: I64, positions: Positions) -> Positions:
    """The items at these positions of their pools. Pools are materialized unless they are much larger than the samples."""
    if len(even.sizes) * len(even.weights) > _MATERIALIZE_RATIO * positions.size:
        return np.stack([even.item_at(groups, row.astype(np.uint64)) for row in positions])
    inside = np.ones((len(even.sizes), len(even.weights)), np.bool_)
    inside[np.repeat(np.arange(len(even.sizes)), np.diff(even.offsets)), even.rejected] = False
    # An empty pool has no entry: the value read for it is not used.
    laid_out = np.append(np.flatnonzero(inside), 0)
    begins, first = (np.cumsum(even.sizes) - even.sizes)[groups], groups * len(even.weights)
    return np.stack([(laid_out.take(begins + row) - first).astype(np.int32) for row in positions])


def _random_u32(keys: U64, attempt: int) -> U64:
    """The upper 32 bits of the attempt-th number of splitmix64 of each key."""
    step = np.uint64((attempt + 1) * _GAMMA % 2**64)
    return mix64(keys + step) >> np.uint64(32)


def _floyd(keys: U64, sizes: I64, wanted: int) -> Positions:
    """Sample positions in pools: every subset of `wanted` of `sizes` is equally likely. Needs sizes > wanted."""
    taken = np.empty((wanted, len(keys)), np.int32)
    for attempt in range(wanted):
        last = sizes - wanted + attempt
        drawn = (_random_u32(keys, attempt) * (last + 1).astype(np.uint64) >> np.uint64(32)).astype(np.int32)
        taken[attempt] = np.where(_contains(drawn, taken[:attempt]), last, drawn)
    return taken


def _weighted(keys: U64, groups: I64, wanted: int, pool: SamplingPools) -> Positions:
    """Sample one item after the other, each in proportion to the weights of the rest. Needs pools of more than `wanted`."""
    # An attempt that hits a taken item is repeated, which has the same distribution as sampling from the rest. If a few items
    # hold nearly all the weight, that could take long: after some attempts the rest is materialized instead.
    pool, groups = pool.of(groups)
    done = np.empty((wanted, len(keys)), np.int32)
    rows, taken = np.arange(len(keys)), np.full((wanted, len(keys)), -1, np.int32)
    have, open_ = np.zeros(len(keys), np.int64), np.ones(len(keys), np.bool_)
    for attempt in range(_ATTEMPTS_PER_ITEM * wanted):
        measure = _random_u32(keys, attempt) * pool.total[groups] >> np.uint64(32)
        place = pool.item_at(groups, measure)
        fresh = np.flatnonzero(open_ & ~_contains(place, taken[:attempt]))
        taken[have[fresh], fresh] = place[fresh]
        have[fresh] += 1
        open_ = have < wanted
        left = int(open_.sum())
        if left < len(rows) / 2:  # continue with the incomplete samples
            done[:, rows[~open_]] = taken[:, ~open_]
            rows, keys, groups, taken, have = rows[open_], keys[open_], groups[open_], taken[:, open_], have[open_]
            open_ = np.ones(left, np.bool_)
        if not left:
            return done
    at_a_time = max(1, (1 << 22) // len(pool.weights))
    behind = np.flatnonzero(open_)
    for start in range(0, len(behind), at_a_time):
        some = behind[start : start + at_a_time]
        taken[:, some] = _weighted_remaining(keys[some], groups[some], taken[:, some], have[some], pool)
    done[:, rows] = taken
    return done


def _contains(place: Positions, taken: Positions) -> Flags:
    """Whether each sample has taken this position already; `taken` has one column per sample."""
    there = np.zeros(len(place), np.bool_)
    for earlier in taken:
        there |= earlier == place
    return there


def _weighted_remaining(keys: U64, groups: I64, taken: Positions, have: I64, pool: SamplingPools) -> Positions:
    """Complete samples from materialized pools without the taken items, so that every attempt takes one."""
    wanted = len(taken)
    rest = np.tile(pool.weights, (len(keys), 1))
    for row, group in enumerate(groups):
        rest[row, pool.rejected[pool.offsets[group] : pool.offsets[group + 1]]] = 0
        rest[row, taken[: have[row], row]] = 0
    attempt, open_ = _ATTEMPTS_PER_ITEM * wanted, np.arange(len(keys))
    while len(open_):
        ends = np.cumsum(rest[open_], axis=1, dtype=np.uint64)
        measure = _random_u32(keys[open_], attempt) * ends[:, -1] >> np.uint64(32)
        place = (ends <= measure[:, None]).sum(axis=1)
        taken[have[open_], open_] = place
        rest[open_, place] = 0
        have[open_] += 1
        open_ = open_[have[open_] < wanted]
        attempt += 1
    return taken
