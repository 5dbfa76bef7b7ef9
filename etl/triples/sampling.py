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
_UPPER, _LOWER = np.uint64(32), np.uint64(2**32 - 1)
_BLOCK = 1 << 14  # samples at a time: one column of them fits into the cache
_CELLS = 1 << 26  # the most (sample, item) cells of a block: one byte each
MATERIALIZE_RATIO = 16
"""The most positions of materialized pools per sampled item."""

_NUMBERS_PER_ITEM = 4  # two attempts each, before weighted sampling materializes the rest


@dataclass(frozen=True)
class SamplingPools:
    """The pools of all groups over one catalogue: positions 0..`items`-1, without what each group rejects.

    The positions that group g rejects are `rejected[offsets[g] : offsets[g + 1]]`, ascending.
    """

    items: int
    rejected: Positions
    offsets: I64

    @property
    def sizes(self) -> I64:
        """The number of items in each group's pool."""
        return self.items - np.diff(self.offsets)

    @cached_property
    def outside(self) -> Flags:
        """Whether a group rejects an item, of shape (groups, items)."""
        cells = np.zeros((len(self.sizes), self.items), np.bool_)
        cells[self._owners, self.rejected] = True
        return cells

    @cached_property
    def _owners(self) -> I64:
        """The group of each rejected position."""
        return np.repeat(np.arange(len(self.sizes)), np.diff(self.offsets))

    @cached_property
    def _boundaries(self) -> U64:
        """How many items of the pool are before each rejected position; the group in the upper 32 bits."""
        before = self.rejected - np.arange(len(self.rejected)) + self.offsets[self._owners]
        return ((self._owners << 32) | before).astype(np.uint64)

    def of(self, groups: I64) -> tuple[SamplingPools, I64]:
        """Return the pools of the range that these groups span, and the groups numbered from its start."""
        first, end = int(groups.min()), int(groups.max()) + 1
        low, high = self.offsets[first], self.offsets[end]
        return SamplingPools(self.items, self.rejected[low:high], self.offsets[first : end + 1] - low), groups - first

    def item_at(self, groups: I64, rank: Positions) -> Positions:
        """The item that has this many others of its group's pool before it."""
        wanted = (groups.astype(np.uint64) << np.uint64(32)) | rank.astype(np.uint64)
        skipped = np.searchsorted(self._boundaries, wanted, side="right") - self.offsets[groups]
        return (rank + skipped).astype(np.int32)


def build_pools(items: int, groups: I64, rejected: Positions, count: int) -> SamplingPools:
    """Build the pools of `count` groups. `rejected` are positions, ascending within each of the ascending `groups`."""
    return SamplingPools(items, rejected, np.searchsorted(groups, np.arange(count + 1)).astype(np.int64))


@dataclass(frozen=True)
class AliasTable:
    """Samples the items of a catalogue in proportion to integer weights, each by one number (Walker 1977, Vose 1991).

    Every item has a slot of equal size. The part of it below `thresholds`, in 64 bits, is the item's own, the rest its alias's.
    """

    weights: U64
    thresholds: U64
    aliases: Positions

    @classmethod
    def of(cls, weights: U64) -> AliasTable:
        """Build the table with integers alone, so that it is the same on any machine. The weights' sum is below 2**32."""
        shares, aliases = [weight * len(weights) for weight in weights.tolist()], list(range(len(weights)))
        slot = sum(weights.tolist())
        low = [item for item, share in enumerate(shares) if share < slot]
        high = [item for item, share in enumerate(shares) if share >= slot]
        while low:
            item, giver = low.pop(), high[-1]
            aliases[item] = giver
            shares[giver] -= slot - shares[item]
            if shares[giver] < slot:
                low.append(high.pop())
        # A slot that is all its item's has the item as its alias too.
        own = [min((share << 32) // slot, 2**32 - 1) << 32 for share in shares]
        return cls(weights, np.array(own, np.uint64), np.array(aliases, np.int32))

    def items_at(self, numbers: U64) -> Positions:
        """The item that each number below 2**32 stands for."""
        point = numbers * np.uint64(len(self.weights))
        slot = (point >> np.uint64(32)).astype(np.int64)
        point <<= np.uint64(32)
        return np.where(point < self.thresholds.take(slot), slot, self.aliases.take(slot)).astype(np.int32)


def integer_weights(counts: Iterable[int], alpha: float) -> U64:
    """Scale (count + 1) ** alpha of each item to integers of at least 1 with a sum below 2**32."""
    # Python's own power and an exact sum: a vectorised power may differ in its last bit between machines.
    raised = [(count + 1) ** alpha for count in map(int, counts)]
    scale = (2**32 - 1 - len(raised)) / math.fsum(raised) if raised else 0.0
    return np.array([int(value * scale) + 1 for value in raised], dtype=np.uint64)


def sample(
    keys: U64, groups: I64, wanted: int, pools: SamplingPools, table: AliasTable | None = None
) -> tuple[Positions, Flags]:
    """Sample up to `wanted` distinct items per key. Returns (positions, which of them count), both of shape (wanted, keys).

    A pool of at most `wanted` items is returned whole, ascending. Otherwise items are sampled uniformly by Floyd's algorithm
    (Bentley and Floyd 1987, "A sample of brilliance"), or, with a `table`, one after the other in proportion to its weights.
    """
    size = _BLOCK if table is None else max(1, min(_BLOCK, _CELLS // max(1, pools.items)))
    blocks = [slice(start, start + size) for start in range(0, len(keys), size)]

    def one(block: slice) -> tuple[Positions, Flags]:
        return _sample_block(keys[block], groups[block], wanted, pools, table)

    with ThreadPoolExecutor(_threads()) as threads:
        done = list(threads.map(one, blocks))
    if not done:
        return np.zeros((wanted, 0), np.int32), np.zeros((wanted, 0), np.bool_)
    return np.concatenate([places for places, _ in done], 1), np.concatenate([counts for _, counts in done], 1)


def _threads() -> int:
    """One per core, but no more than Polars has: POLARS_MAX_THREADS limits a process that is one of many on its machine."""
    return min(len(os.sched_getaffinity(0)), pl.thread_pool_size())


def _sample_block(
    keys: U64, groups: I64, wanted: int, pools: SamplingPools, table: AliasTable | None
) -> tuple[Positions, Flags]:
    """One block of `sample`."""
    pools, groups = pools.of(groups)
    sizes = pools.sizes[groups]
    if table is None:
        ranks, counts = sample_ranks(keys, sizes, wanted)
        return _items_at(pools, groups, ranks), counts
    column = np.arange(wanted, dtype=np.int32)[:, None]
    counts, many = column < sizes, sizes > wanted
    if many.all():  # the usual case, without a copy
        return _weighted(keys, groups, wanted, pools, table), counts
    places = _items_at(pools, groups, np.where(counts, column, 0))
    if many.any():
        places[:, many] = _weighted(keys[many], groups[many], wanted, pools, table)
    return places, counts


def sample_ranks(keys: U64, sizes: I64, wanted: int) -> tuple[Positions, Flags]:
    """Sample as `sample` does, evenly: ranks in pools of these sizes instead of their items."""
    column = np.arange(wanted, dtype=np.int32)[:, None]
    counts, many = column < sizes, sizes > wanted
    if many.all():  # the usual case, without a copy
        return _floyd(keys, sizes, wanted), counts
    ranks = np.where(counts, column, 0)
    ranks[:, many] = _floyd(keys[many], sizes[many], wanted)
    return ranks, counts


def _items_at(pools: SamplingPools, groups: I64, positions: Positions) -> Positions:
    """The items at these positions of their pools, which are materialized unless that is much more than is sampled."""
    if len(pools.sizes) * pools.items > MATERIALIZE_RATIO * positions.size:
        return np.stack([pools.item_at(groups, row) for row in positions])
    # An empty pool has no entry: what is read for it doesn't count.
    laid_out = np.append(np.flatnonzero(~pools.outside), 0)
    begins, first = (np.cumsum(pools.sizes) - pools.sizes)[groups], groups * pools.items
    return np.stack([(laid_out.take(begins + row) - first).astype(np.int32) for row in positions])


def _random_u64(keys: U64, number: int) -> U64:
    """The given number of splitmix64 of each key."""
    return mix64(keys + np.uint64((number + 1) * _GAMMA % 2**64))


def _floyd(keys: U64, sizes: I64, wanted: int) -> Positions:
    """Sample positions in pools: every subset of `wanted` of `sizes` is equally likely. Needs sizes > wanted."""
    taken = np.empty((wanted, len(keys)), np.int32)
    for attempt in range(wanted):
        last = sizes - wanted + attempt
        number = _random_u64(keys, attempt) >> _UPPER
        drawn = (number * (last + 1).astype(np.uint64) >> _UPPER).astype(np.int32)
        taken[attempt] = np.where(_contains(drawn, taken[:attempt]), last, drawn)
    return taken


def _weighted(keys: U64, groups: I64, wanted: int, pools: SamplingPools, table: AliasTable) -> Positions:
    """Sample one item after the other, each in proportion to the weights of those not taken yet. Needs pools > wanted."""
    # An attempt that hits a rejected or a taken item is repeated, which has the same distribution as sampling from the rest.
    # If these hold nearly all the weight, that could take long: after some attempts the rest is materialized instead.
    done = np.empty((wanted, len(keys)), np.int32)
    rows, first, have = np.arange(len(keys)), groups * pools.items, np.zeros(len(keys), np.int64)
    # What is drawn goes behind the items that a sample has, and counts among them if it is new. The last row is never read.
    taken = np.full((wanted + 1, len(keys)), -1, np.int32)
    for number in range(_NUMBERS_PER_ITEM * wanted):
        numbers, column = _random_u64(keys, number), np.arange(len(rows))
        for half in (numbers >> _UPPER, numbers & _LOWER):
            item = table.items_at(half)
            known = pools.outside.take(first + item)
            known |= _contains(item, taken[: min(wanted, 2 * number + 1)])
            taken.put(have * len(rows) + column, item)
            have += ~known & (have < wanted)
        full = have == wanted
        if 2 * np.count_nonzero(full) >= len(rows):  # continue with the incomplete samples
            done[:, rows[full]] = taken[:-1, full]
            rows, keys, groups, first, have = (each[~full] for each in (rows, keys, groups, first, have))
            taken = taken.compress(~full, axis=1)
        if not len(rows):
            return done
    at_a_time = max(1, (1 << 22) // pools.items)
    for start in range(0, len(rows), at_a_time):
        some = slice(start, start + at_a_time)
        done[:, rows[some]] = _complete(keys[some], pools.outside[groups[some]], taken[:-1, some], have[some], table)
    return done


def _contains(place: Positions, taken: Positions) -> Flags:
    """Whether each sample has drawn this position already; `taken` has one column per sample."""
    there = np.zeros(len(place), np.bool_)
    for earlier in taken:
        there |= earlier == place
    return there


def _complete(keys: U64, outside: Flags, taken: Positions, have: I64, table: AliasTable) -> Positions:
    """Complete samples from materialized pools without the taken items, so that every number takes one."""
    column, row = np.nonzero(np.arange(len(taken))[:, None] < have)
    outside[row, taken[column, row]] = True
    number, open_ = _NUMBERS_PER_ITEM * len(taken), np.flatnonzero(have < len(taken))
    while len(open_):
        ends = np.cumsum(np.where(outside[open_], np.uint64(0), table.weights), axis=1)
        measure = (_random_u64(keys[open_], number) >> _UPPER) * ends[:, -1] >> _UPPER
        place = (ends <= measure[:, None]).sum(axis=1)
        taken[have[open_], open_] = place
        outside[open_, place] = True
        have[open_] += 1
        open_ = open_[have[open_] < len(taken)]
        number += 1
    return taken
