"""Draws without repeats from the catalogue, many at a time, each a function of its own key (CONTRACT, section 3, Negatives).

A draw has a key of 64 bits and sees a pool: its city's catalogue but for what its group (a user, or an event) rejects. Its
numbers are splitmix64's from that key (Steele, Lea, Flood 2014), so it comes out the same in any company, on any thread.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl

from etl.transform.arrays import I64, U64, Flags, Positions
from etl.transform.hashing import mix64

_GAMMA = 0x9E3779B97F4A7C15
_BLOCK = 1 << 14  # draws done at a time: what one column of them takes stays in the cache
_MATERIALIZE_RATIO = 4  # places of pools laid out at the most, for each that is drawn
_ATTEMPTS_PER_ITEM = 4  # attempts per wanted node, before a draw with weights looks at what is left only


@dataclass(frozen=True)
class SamplingPools:
    """The pools of all groups over one catalogue: places 0..n-1 with whole weights, and what each group rejects.

    A pool's measure runs from 0 to `total[group]`: every node has a piece as long as its weight, in the catalogue's order.
    `ends` are the running sums of the weights, None where all are 1. `offsets[g]` to `offsets[g + 1]` are group g's
    rejected places in `rejected`, ascending; `cut` is where each would begin in the pool's measure, with the group in the
    upper half, so that all groups are searched at once; `gone` the rejected weight up to and including it.
    """

    weights: U64
    cumulative_weight: U64 | None
    rejected: Positions
    offsets: I64
    boundaries: U64
    removed_weight: U64
    total: U64

    @property
    def sizes(self) -> I64:
        """How many nodes each group's pool has."""
        return len(self.weights) - np.diff(self.offsets)

    def of(self, groups: I64) -> tuple[SamplingPools, I64]:
        """The pools of the range that these groups span, and the groups counted from its start: less to search in."""
        first, end = int(groups.min()), int(groups.max()) + 1
        low, high = self.offsets[first], self.offsets[end]
        own = SamplingPools(
            self.weights,
            self.cumulative_weight,
            self.rejected[low:high],
            self.offsets[first : end + 1] - low,
            self.boundaries[low:high] - (np.uint64(first) << np.uint64(32)),
            self.removed_weight[low:high],
            self.total[first:end],
        )
        return own, groups - first

    def item_at(self, groups: I64, measure: U64) -> Positions:
        """The place whose piece of its group's pool holds this point of the measure."""
        last = np.searchsorted(self.boundaries, (groups.astype(np.uint64) << np.uint64(32)) | measure, side="right") - 1
        behind = last >= self.offsets[groups]
        point = (
            measure + np.where(behind, self.removed_weight[last], np.uint64(0)) if len(self.removed_weight) else measure
        )
        where = (
            point if self.cumulative_weight is None else np.searchsorted(self.cumulative_weight, point, side="right")
        )
        return where.astype(np.int32)


def build_pools(weights: U64, groups: I64, rejected: Positions, count: int) -> SamplingPools:
    """Pools of `count` groups; `rejected` are places, ascending within each of the ascending `groups`.

    The weights' sum must be below 2**32.
    """
    offsets = np.searchsorted(groups, np.arange(count + 1)).astype(np.int64)
    taken = weights[rejected] if len(rejected) else np.zeros(0, np.uint64)
    before = np.concatenate([np.zeros(1, np.uint64), np.cumsum(taken, dtype=np.uint64)])
    gone = before[1:] - before[offsets[groups]]  # within the group
    ends = np.cumsum(weights, dtype=np.uint64)
    cut = ends[rejected] - gone
    total = (ends[-1:] if len(ends) else np.zeros(1, np.uint64)) - (before[offsets[1:]] - before[offsets[:-1]])
    searched = (groups.astype(np.uint64) << np.uint64(32)) | cut
    return SamplingPools(weights, None if (weights == 1).all() else ends, rejected, offsets, searched, gone, total)


def integer_weights(counts: Iterable[int], alpha: float) -> U64:
    """(count + 1) ** alpha per node, as whole numbers of at least 1 whose sum stays below 2**32.

    Python's own power and an exact sum: a vectorised power may differ in its last bit from machine to machine.
    """
    raised = [(count + 1) ** alpha for count in map(int, counts)]
    scale = (2**32 - 1 - len(raised)) / math.fsum(raised) if raised else 0.0
    return np.array([int(value * scale) + 1 for value in raised], dtype=np.uint64)


def sample(
    keys: U64, groups: I64, wanted: int, even: SamplingPools, weighted: SamplingPools | None = None
) -> tuple[Positions, Flags]:
    """Up to `wanted` distinct nodes per draw: (places, which of them count), both of shape (wanted, draws).

    A pool of at most `wanted` nodes comes whole, ascending. Otherwise evenly by Floyd's algorithm (Bentley and Floyd 1987,
    "A sample of brilliance"), or one after the other in proportion to the weights of `weighted`, the same pools.
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
    """One for each core, and no more than Polars may have: a process that is one of many on its machine is told so."""
    return min(len(os.sched_getaffinity(0)), pl.thread_pool_size())


def _sample_block(
    keys: U64, groups: I64, wanted: int, even: SamplingPools, weighted: SamplingPools | None
) -> tuple[Positions, Flags]:
    """One block of `draw`."""
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
    """The places at these positions of the draws' pools: read off the pools laid out, unless that is more than is drawn."""
    if len(even.total) * len(even.weights) > _MATERIALIZE_RATIO * positions.size:
        return np.stack([even.item_at(groups, row.astype(np.uint64)) for row in positions])
    inside = np.ones((len(even.total), len(even.weights)), np.bool_)
    inside[np.repeat(np.arange(len(even.total)), np.diff(even.offsets)), even.rejected] = False
    # Every pool has its own stretch; what an empty one reads is not counted.
    laid_out = np.append(np.nonzero(inside)[1].astype(np.int32), np.int32(0))
    begins = (np.cumsum(even.sizes) - even.sizes)[groups]
    return np.stack([laid_out.take(begins + row) for row in positions])


def _random_u32(keys: U64, attempt: int) -> U64:
    """The attempt-th number of each key's splitmix64, its upper 32 bits."""
    step = np.uint64((attempt + 1) * _GAMMA % 2**64)
    return mix64(keys + step) >> np.uint64(32)


def _floyd(keys: U64, sizes: I64, wanted: int) -> Positions:
    """Positions in the pool: every subset of `wanted` of `sizes` is equally likely. Needs sizes > wanted."""
    taken = np.empty((wanted, len(keys)), np.int32)
    for attempt in range(wanted):
        last = sizes - wanted + attempt
        drawn = (_random_u32(keys, attempt) * (last + 1).astype(np.uint64) >> np.uint64(32)).astype(np.int32)
        taken[attempt] = np.where(_contains(drawn, taken[:attempt]), last, drawn)
    return taken


def _weighted(keys: U64, groups: I64, wanted: int, pool: SamplingPools) -> Positions:
    """Places one after the other, each in proportion to the weights of those not taken yet. Needs pools > wanted.

    An attempt that hits a taken node is made again, which is the same in distribution as drawing from the rest. Where a
    few nodes hold nearly all the weight that could go on for long: after some attempts the rest is laid out instead.
    """
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
        if left < len(rows) / 2:  # go on with those that still want some
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
    """Whether each draw's place is among those that it has taken: a column per draw."""
    there = np.zeros(len(place), np.bool_)
    for earlier in taken:
        there |= earlier == place
    return there


def _weighted_remaining(keys: U64, groups: I64, taken: Positions, have: I64, pool: SamplingPools) -> Positions:
    """The same draws' remaining nodes, over each pool laid out without the taken ones: every attempt takes one."""
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
