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
import numpy.typing as npt

from etl.stable import mix64_array

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

_GAMMA = 0x9E3779B97F4A7C15
_BLOCK = 1 << 14  # draws done at a time: what one column of them takes stays in the cache
_PATIENCE = 4  # attempts per wanted node, before a draw with weights looks at what is left only


@dataclass(frozen=True)
class Pools:
    """The pools of all groups over one catalogue: places 0..n-1 with whole weights, and what each group rejects.

    A pool's measure runs from 0 to `total[group]`: every node has a piece as long as its weight, in the catalogue's order.
    `ends` are the running sums of the weights, None where all are 1. `offsets[g]` to `offsets[g + 1]` are group g's
    rejected places in `rejected`, ascending; `cut` is where each would begin in the pool's measure, with the group in the
    upper half, so that all groups are searched at once; `gone` the rejected weight up to and including it.
    """

    weights: U64
    ends: U64 | None
    rejected: Places
    offsets: I64
    cut: U64
    gone: U64
    total: U64

    @property
    def sizes(self) -> I64:
        """How many nodes each group's pool has."""
        return len(self.weights) - np.diff(self.offsets)

    def place_at(self, groups: I64, measure: U64) -> Places:
        """The place whose piece of its group's pool holds this point of the measure."""
        last = np.searchsorted(self.cut, (groups.astype(np.uint64) << np.uint64(32)) | measure, side="right") - 1
        behind = last >= self.offsets[groups]
        point = measure + np.where(behind, self.gone[last], np.uint64(0)) if len(self.gone) else measure
        where = point if self.ends is None else np.searchsorted(self.ends, point, side="right")
        return where.astype(np.int32)


def pools(weights: U64, groups: I64, rejected: Places, count: int) -> Pools:
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
    return Pools(weights, None if (weights == 1).all() else ends, rejected, offsets, searched, gone, total)


def whole_weights(counts: Iterable[int], alpha: float) -> U64:
    """(count + 1) ** alpha per node, as whole numbers of at least 1 whose sum stays below 2**32.

    Python's own power and an exact sum: a vectorised power may differ in its last bit from machine to machine.
    """
    raised = [(count + 1) ** alpha for count in map(int, counts)]
    scale = (2**32 - 1 - len(raised)) / math.fsum(raised) if raised else 0.0
    return np.array([int(value * scale) + 1 for value in raised], dtype=np.uint64)


def draw(keys: U64, groups: I64, wanted: int, even: Pools, weighted: Pools | None = None) -> tuple[Places, Flags]:
    """Up to `wanted` distinct nodes per draw: (places, which of them count), both of shape (wanted, draws).

    A pool of at most `wanted` nodes comes whole, ascending. Otherwise evenly by Floyd's algorithm (Bentley and Floyd 1987,
    "A sample of brilliance"), or one after the other in proportion to the weights of `weighted`, the same pools.
    """
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(keys), _BLOCK)]

    def one(block: slice) -> tuple[Places, Flags]:
        return _draw(keys[block], groups[block], wanted, even, weighted)

    with ThreadPoolExecutor(_threads()) as threads:
        done = list(threads.map(one, blocks))
    if not done:
        return np.zeros((wanted, 0), np.int32), np.zeros((wanted, 0), np.bool_)
    return np.concatenate([places for places, _ in done], 1), np.concatenate([counts for _, counts in done], 1)


def _threads() -> int:
    return len(os.sched_getaffinity(0))


def _draw(keys: U64, groups: I64, wanted: int, even: Pools, weighted: Pools | None) -> tuple[Places, Flags]:
    sizes = even.sizes[groups]
    column = np.arange(wanted, dtype=np.int32)[:, None]
    taken = np.broadcast_to(column, (wanted, len(keys))).copy()
    counts = column < sizes
    many = np.flatnonzero(sizes > wanted)
    if weighted is None and len(many):
        taken[:, many] = _floyd(keys[many], sizes[many], wanted)
    few = many if weighted is not None else np.zeros(0, np.int64)
    measure = np.where(counts, taken, 0).astype(np.uint64)
    places = np.stack([even.place_at(groups, row) for row in measure]) if wanted else taken
    if len(few):
        places[:, few] = _in_proportion(keys[few], groups[few], wanted, weighted)  # type: ignore[arg-type]
    return places, counts


def _number(keys: U64, attempt: int) -> U64:
    """The attempt-th number of each key's splitmix64, its upper 32 bits."""
    step = np.uint64((attempt + 1) * _GAMMA % 2**64)
    return mix64_array(keys + step) >> np.uint64(32)


def _floyd(keys: U64, sizes: I64, wanted: int) -> Places:
    """Positions in the pool: every subset of `wanted` of `sizes` is equally likely. Needs sizes > wanted."""
    taken = np.empty((wanted, len(keys)), np.int32)
    for attempt in range(wanted):
        last = sizes - wanted + attempt
        drawn = (_number(keys, attempt) * (last + 1).astype(np.uint64) >> np.uint64(32)).astype(np.int32)
        there = np.zeros(len(keys), np.bool_)
        for earlier in taken[:attempt]:
            there |= earlier == drawn
        taken[attempt] = np.where(there, last, drawn)
    return taken


def _in_proportion(keys: U64, groups: I64, wanted: int, pool: Pools) -> Places:
    """Places one after the other, each in proportion to the weights of those not taken yet. Needs pools > wanted.

    An attempt that hits a taken node is made again, which is the same in distribution as drawing from the rest. Where a
    few nodes hold nearly all the weight that could go on for long: after some attempts the rest is laid out instead.
    """
    taken = np.full((wanted, len(keys)), -1, np.int32)
    have = np.zeros(len(keys), np.int64)
    open_ = np.arange(len(keys))
    for attempt in range(_PATIENCE * wanted):
        measure = _number(keys[open_], attempt) * pool.total[groups[open_]] >> np.uint64(32)
        place = pool.place_at(groups[open_], measure)
        fresh = ~(taken[:, open_] == place).any(axis=0)
        rows = open_[fresh]
        taken[have[rows], rows] = place[fresh]
        have[rows] += 1
        open_ = open_[have[open_] < wanted]
        if not len(open_):
            return taken
    at_a_time = max(1, (1 << 22) // len(pool.weights))
    for start in range(0, len(open_), at_a_time):
        rows = open_[start : start + at_a_time]
        taken[:, rows] = _from_the_rest(keys[rows], groups[rows], taken[:, rows], have[rows], pool)
    return taken


def _from_the_rest(keys: U64, groups: I64, taken: Places, have: I64, pool: Pools) -> Places:
    """The same draws' remaining nodes, over each pool laid out without the taken ones: every attempt takes one."""
    wanted = len(taken)
    rest = np.tile(pool.weights, (len(keys), 1))
    for row, group in enumerate(groups):
        rest[row, pool.rejected[pool.offsets[group] : pool.offsets[group + 1]]] = 0
        rest[row, taken[: have[row], row]] = 0
    attempt, open_ = _PATIENCE * wanted, np.arange(len(keys))
    while len(open_):
        ends = np.cumsum(rest[open_], axis=1, dtype=np.uint64)
        measure = _number(keys[open_], attempt) * ends[:, -1] >> np.uint64(32)
        place = (ends <= measure[:, None]).sum(axis=1)
        taken[have[open_], open_] = place
        rest[open_, place] = 0
        have[open_] += 1
        open_ = open_[have[open_] < wanted]
        attempt += 1
    return taken
