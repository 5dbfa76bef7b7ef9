"""What a probe is judged on: the places held out, and how well a ranking finds them, user by user.

One group per (user, city); a group's list is the city's catalogue. Judged twice: over all places, and over those new to
the user, since in most real cities all that a model gains over popularity is that people come back (docs/negatives.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.evaluation import metrics
from etl.transform.arrays import I64
from etl.triples.dataset import Dataset

K = 10
MAX_CELLS = 5_000_000
"""Users x places of a city that are ranked at the most; with more, every second user is judged, or every third, ..."""

Scores = npt.NDArray[np.floating]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HoldoutGroup:
    """The held-out places of one city: a group per user who selected any of them.

    `users` are codes, one per group, ascending; `items` the codes of the city's catalogue, ascending by id. Of shape
    (groups, items): `taken` says what the user selected in the held-out part, `before` how often in the parts before it.
    `passed_over` counts the users that are not judged, since there are too many to rank everything for everybody.
    """

    city: str
    users: I64
    items: I64
    relevant: npt.NDArray[np.bool_]
    history: I64
    skipped_users: int = 0


Ranker = Callable[[HoldoutGroup], Scores]
"""Scores of shape (groups, items), higher is better; equal ones are ties."""


def build_holdout(
    dataset: Dataset, events: pl.DataFrame, part: str, earlier: Sequence[str]
) -> tuple[list[HoldoutGroup], int]:
    """The held-out places of a part of the split, by city in the order of its bytes; and how many can't be ranked.

    `events` has `split`. What is counted in the second: (user, place) pairs whose place is not in its trip's city's catalogue.
    """
    long = (
        events.select("user_idx", "city", pl.col("split").cast(pl.String), node="selected_idx")
        .explode("node", empty_as_null=False)
        .with_columns(pl.col("user_idx", "node").cast(pl.Int64))
    )
    offered = dataset.eligible_items().sort("item_id").select("city", node=pl.col("item_idx").cast(pl.Int64))
    held = long.filter(pl.col("split") == part).join(offered, on=["city", "node"], how="semi")
    past = long.filter(pl.col("split").is_in(list(earlier)))
    groups = []
    for city in held["city"].unique().sort():
        items, here = offered.filter(pl.col("city") == city)["node"], held.filter(pl.col("city") == city)
        every = here["user_idx"].unique().sort()
        users = every.gather_every(max(1, -(-len(every) * len(items) // MAX_CELLS)))
        taken, before = (_table(rows, users, items) for rows in (here, past))
        passed_over = len(every) - len(users)
        groups.append(HoldoutGroup(city, users.to_numpy(), items.to_numpy(), taken > 0, before, passed_over))
    pairs = long.filter(pl.col("split") == part).select("user_idx", "city", "node").unique().height
    return groups, pairs - held.select("user_idx", "city", "node").unique().height


def _table(rows: pl.DataFrame, users: pl.Series, items: pl.Series) -> I64:
    """How often each user (rows) selected each item (columns)."""
    table = np.zeros((len(users), len(items)), np.int64)
    cells = (
        rows.join(users.to_frame("user_idx").with_row_index("row"), on="user_idx")
        .join(items.to_frame("node").with_row_index("column"), on="node")
        .group_by("row", "column")
        .len()
    )
    table[cells["row"].to_numpy(), cells["column"].to_numpy()] = cells["len"].to_numpy()
    return table


@dataclass(frozen=True)
class Figures:
    """How well a ranking did: one number per user code, nan for a user without a place to find, or to find it among."""

    auc: Floats
    ndcg: Floats
    recall: Floats


def evaluate(held: Sequence[HoldoutGroup], ranker: Ranker, users: int, *, new: bool) -> Figures:
    """AUC, NDCG@10 and Recall@10 of a ranking, per user: the mean of the user's groups.

    `new` leaves out what the user had selected before, on either side.
    """
    found = []
    for group in held:
        candidates = group.history == 0 if new else np.ones(group.relevant.shape, np.bool_)
        found.append(metrics.ranking_metrics(ranker(group), candidates, group.relevant & candidates, K))
    owners = np.concatenate([group.users for group in held]) if held else np.zeros(0, np.int64)
    columns = (
        np.concatenate([getattr(each, name) for each in found]) if found else np.zeros(0)
        for name in ("auc", "ndcg", "recall")
    )
    return Figures(*(metrics.mean_per_user(column, owners, users) for column in columns))


def random_ranker(held: HoldoutGroup) -> Scores:
    """All equal: ties count what chance would give them."""
    return np.zeros(held.relevant.shape)


def popularity_ranker(popularity: I64) -> Ranker:
    """By how many events selected each item, by code."""
    return lambda held: np.broadcast_to(popularity[held.items].astype(np.float64), held.relevant.shape)


def history_ranker(popularity: I64) -> Ranker:
    """What the user selected before comes first, the more often the higher; then by popularity."""
    scale = float(popularity.max(initial=0) + 1)
    return lambda held: held.history + popularity[held.items] / scale


def affinity_ranker(dataset: Dataset, unknown: float) -> Ranker | None:
    """By the user's affinity for the item's category, `unknown` where the user has none; None where nobody has any."""
    known = pl.concat(rows.select(pl.col(r"^affinity_.*$")) for rows in dataset.user_features())
    columns = known.columns
    if not columns or known.select(pl.all_horizontal(pl.all().is_null().all())).item():
        return None
    table = np.column_stack([known.fill_null(unknown).to_numpy(), np.full(known.height, unknown)])
    place = {name.removeprefix("affinity_"): number for number, name in enumerate(columns)}
    category = np.array([place.get(name, len(columns)) for name in dataset.items["category"]], np.int64)
    return lambda held: table[held.users][:, category[held.items]]
