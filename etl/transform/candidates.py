"""Candidates: the top 20 of a city's nodes for a user (docs/design.md, "Seeding approach"; docs/contract.md).

Affinity is per category, so whole categories rank together, and only nodes of categories that reach the top 20 are examined:
cost grows with pairs x (20 + nodes of the last category), not with pairs x nodes. Nodes of equal affinity are ordered by a hash
that is spread evenly, so that of a large category only the nodes with small hashes are sorted.
"""

from __future__ import annotations

from collections.abc import Iterator

import dataframely as dy
import numpy as np
import numpy.typing as npt
import polars as pl

from etl.transform.arrays import I64, U64, Flags, list_series
from etl.transform.hashing import SEPARATOR, hash64, mix64
from etl.transform.schemas import Affinities

TOP_K = 20
"""The largest number of candidates of an event."""

_CELLS = 1 << 18  # (user, node) cells that are examined at a time: they fit in the cache
_MARGIN_SIGMAS = 6.0  # standard deviations above the mean number of small hashes: fewer than TOP_K are very rare


def candidates(
    pairs: pl.DataFrame, affinities: dy.DataFrame[Affinities], nodes: pl.DataFrame, unknown: float, seed: int
) -> pl.DataFrame:
    """Returns the top 20 of a city's nodes for each user: one row per (`user_id`, `city`) of `pairs`.

    `nodes` are the eligible ones, `node_id` as an Enum in the order of the ids' bytes. `candidate_ids` are ascending by id,
    `ranked_ids` the same by affinity, highest first. A city without nodes has no row. Equal affinities are ordered by
    mix64(hash64(seed, user) XOR hash64(node)), so that no node is favoured for its id.
    """
    users, categories = pairs["user_id"].unique().sort(), nodes["category"].unique().sort()
    table = _affinity_matrix(users, categories, affinities, unknown)
    of_users = _hashes(pl.concat_str([pl.lit(str(seed)), pl.col("key")], separator=SEPARATOR), users)
    rows = pairs.join(_with_row_number(users, "user_id"), on="user_id")
    catalogue = nodes.join(_with_row_number(categories, "category"), on="category", maintain_order="left")
    tops = []
    for (city,), own in catalogue.sort("node_id").partition_by("city", as_dict=True).items():
        asking = rows.filter(pl.col("city") == city)
        who = asking["row"].to_numpy()
        offered = own["node_id"]
        place, lengths = top_k(table[who], of_users[who], own["row"].to_numpy(), _hashes(pl.col("key"), offered))
        ranked = list_series(lengths, offered.gather(place))
        tops.append(asking.select("user_id", "city").with_columns(ranked.alias("ranked_ids")))
    empty = pairs.clear().with_columns(pl.lit([], dtype=pl.List(nodes.schema["node_id"])).alias("ranked_ids"))
    return pl.concat([empty.select("user_id", "city", "ranked_ids"), *tops]).with_columns(
        candidate_ids=pl.col("ranked_ids").list.sort()
    )


def top_k(affinity: npt.NDArray[np.float64], users: U64, category: I64, nodes: U64) -> tuple[I64, I64]:
    """Returns the rows of each user's best TOP_K nodes, best first, one user after the other, and how many each user has.

    `affinity` has the shape (users, categories); `users` and `nodes` are hashes, which the tie is mixed from; `category` is
    each node's. Equal ties are ordered by the node's row.
    """
    reached = _needed_categories(affinity, np.bincount(category, minlength=affinity.shape[1]))
    found = [_NO_PAIRS]
    for number in np.unique(category):
        who, which = np.flatnonzero(reached[:, number]), np.flatnonzero(category == number)
        for user, node, tie in _smallest_hashes(users, who, nodes, which):
            found.append((user, node, tie, affinity[user, number]))
    return _best(len(users), *(np.concatenate(column) for column in zip(*found, strict=True)))


def _needed_categories(affinity: npt.NDArray[np.float64], sizes: I64) -> Flags:
    """Returns (users, categories): whether fewer than TOP_K nodes are in categories with a higher affinity."""
    order = np.argsort(-affinity, axis=1, kind="stable")
    ordered = np.take_along_axis(affinity, order, 1)
    before = np.cumsum(sizes[order], axis=1) - sizes[order]
    # Equal affinities compete with each other: what counts is the number of nodes before the first of them.
    begins = np.ones(ordered.shape, np.bool_)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(begins, np.arange(ordered.shape[1]), 0), axis=1)
    reached = np.empty(ordered.shape, np.bool_)
    np.put_along_axis(reached, order, np.take_along_axis(before, first, 1) < TOP_K, 1)
    return reached


def _smallest_hashes(users: U64, who: I64, nodes: U64, which: I64) -> Iterator[tuple[I64, I64, U64]]:
    """Yields (user, node, tie) of a category's nodes: at least the TOP_K smallest ties of each user, and few more."""
    # Ties are spread evenly over 64 bits, so that the smallest TOP_K of n nearly always lie below a bound near TOP_K / n of
    # the range. Where they don't, all are yielded.
    size = len(which)
    wanted = TOP_K + _MARGIN_SIGMAS * TOP_K**0.5 + _MARGIN_SIGMAS
    bound = np.uint64(min(2**64 - 1, int(wanted / size * 2**64)))
    at_a_time = max(1, _CELLS // size)
    for start in range(0, len(who), at_a_time):
        some = who[start : start + at_a_time]
        tie = mix64(users[some][:, None] ^ nodes[which])
        near = tie <= bound
        near[near.sum(axis=1) < min(TOP_K, size)] = True
        user, node = np.nonzero(near)
        yield some[user], which[node], tie[near]


_NO_PAIRS = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0)


def _best(users: int, user: I64, node: I64, tie: U64, affinity: npt.NDArray[np.float64]) -> tuple[I64, I64]:
    """Returns the best TOP_K nodes of each user, by affinity, tie and node, and how many each user has; from pairs."""
    order = np.lexsort((node, tie, -affinity, user))
    per_user = np.bincount(user, minlength=users)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(per_user) - per_user, per_user)
    return node[order[rank < TOP_K]], np.minimum(per_user, TOP_K)


def _affinity_matrix(
    users: pl.Series, categories: pl.Series, affinities: pl.DataFrame, unknown: float
) -> npt.NDArray[np.float64]:
    """Returns the affinity of each user (row) for each category (column), `unknown` where there is none."""
    table = np.full((len(users), len(categories)), unknown)
    cells = affinities.join(_with_row_number(users, "user_id"), on="user_id").join(
        _with_row_number(categories, "category").rename({"row": "column"}), on="category"
    )
    table[cells["row"].to_numpy(), cells["column"].to_numpy()] = cells["affinity"].to_numpy()
    return table


def _with_row_number(values: pl.Series, name: str) -> pl.DataFrame:
    return values.alias(name).to_frame().with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))


def _hashes(key: pl.Expr, values: pl.Series) -> U64:
    return values.cast(pl.String).alias("key").to_frame().select(hash64(key)).to_series().to_numpy()
