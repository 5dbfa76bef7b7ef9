"""The synthetic world's slots and signals, as numbers: what users are shown, what they do with it, what is logged.

Pure and vectorised, as `etl.synthetic.population`. The only loops are over cities and the days of a trip, never over users,
trips, slots or nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from etl.synthetic.population import Bools, Floats, Ints, Scene

STATUSES = ("proposed", "voted", "confirmed", "active", "completed", "skipped")
PROPOSED, VOTED, CONFIRMED, ACTIVE, COMPLETED, SKIPPED = range(len(STATUSES))
# In the order in which they happen; the second view is of the node that was swapped in.
SIGNALS = ("view", "skip", "view", "confirm", "complete", "dwell", "loved", "disliked")
_ABOUT_THE_OFFERED = 2  # the first so many are about the node that was offered first
# Larger than any key of the weighted draw (about 50 / sqrt(0.05)), so that a node used once comes after all the unused.
_NEXT_ROUND = 1e4


@dataclass(frozen=True)
class Slots:
    """Slots. Grain: a slot, ordered by (trip, day, order). `day` counts from 1, `order` from 0 within the day.

    `node` is what stands in the slot, `offered` what was first shown there: another one where the user swapped it.
    `affinity` is the user's for `node`; `finished` says whether the slot's trip is over at the reference date.
    """

    trip: Ints
    day: Ints
    order: Ints
    node: Ints
    offered: Ints
    status: Ints
    affinity: Floats
    finished: Bools


def draw_slots(rng: np.random.Generator, scene: Scene) -> Slots:
    """Show each user nodes day by day, and let them confirm, skip and swap."""
    trip, day, order, shown = _expose(rng, scene)
    count = len(trip)
    rules, user, category = scene.profile.world["behaviour"], scene.trips.user[trip], scene.nodes.category
    jitter = rng.normal(0.0, rules["confirm_jitter"], count)
    chance = np.clip(scene.people.affinity[user, category[shown]] + jitter, 0.0, 1.0)
    taken = rng.random(count) < chance * (1.0 - rules["loss_per_day"] * np.abs(day - rules["best_day"]))
    skipped = ~taken & (rng.random(count) < rules["skip"])
    node = _swap(rng, scene, (trip, day, shown), np.flatnonzero(skipped & (rng.random(count) < rules["swap"])))
    swapped = node != shown
    finished = (scene.trips.start + scene.trips.days <= 0)[trip]
    date = scene.trips.start[trip] + day - 1
    of_taken = np.select([date < 0, date == 0], [COMPLETED, ACTIVE], CONFIRMED)
    of_left = np.where(~finished & (rng.random(count) < rules["vote"]), VOTED, PROPOSED)
    status = np.select([taken | swapped, skipped], [of_taken, np.full(count, SKIPPED)], of_left)
    return Slots(
        trip=trip,
        day=day,
        order=order,
        node=node,
        offered=shown,
        status=status,
        affinity=scene.people.affinity[user, category[node]],
        finished=finished,
    )


def _expose(rng: np.random.Generator, scene: Scene) -> tuple[Ints, Ints, Ints, Ints]:
    """Draw how many slots each day has, by pace, and which nodes stand in them: trip, day, order and node, as in Slots."""
    trips = scene.trips
    low, high = scene.profile.bounds("slots_per_day_by_pace", scene.people.labels["pace"][trips.user])
    length = int(trips.days.max())
    sizes = rng.integers(low[:, None], high[:, None], (len(low), length), endpoint=True)
    sizes *= np.arange(length) < trips.days[:, None]
    parts = []
    for number, eligible in enumerate(scene.nodes.eligible):
        rows = np.flatnonzero(trips.city == number)
        weights = np.sqrt(scene.affinity(rows)[:, scene.nodes.category[eligible]])
        trip, day, order, node = _rounds(rng, weights, sizes[rows])
        parts.append(np.stack([rows[trip], day, order, eligible[node]]))
    trip, day, order, node = np.concatenate(parts, axis=1)
    # Packed into one number because one sort of integers is several times faster than a lexsort of three.
    where = np.argsort((trip * (length + 1) + day) * (int(sizes.max()) + 1) + order)
    return trip[where], day[where], order[where], node[where]


def _rounds(rng: np.random.Generator, weights: Floats, sizes: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Draw `sizes` (trips x days) nodes with these weights (trips x nodes): (trip, day, order, node).

    An exponential divided by its weight, smallest first, is a weighted draw without replacement (Efraimidis and
    Spirakis, 2006). Nodes shown before go behind all the others: when a trip runs out of nodes the next round begins
    by itself, and as one day is one draw, no node comes twice on a day. Exponentials have no memory, so a new draw
    each day is the same as one draw for the trip.
    """
    uses = np.zeros(weights.shape)
    widest = min(int(sizes.max(initial=0)), weights.shape[1])
    parts = [np.empty((4, 0), dtype=np.int64)]
    for day in range(sizes.shape[1]):
        rows = np.flatnonzero(sizes[:, day])
        keys = rng.standard_exponential((len(rows), weights.shape[1])) / weights[rows] + uses[rows] * _NEXT_ROUND
        first = np.argsort(keys, axis=1)[:, :widest]
        row, order = np.nonzero(np.arange(widest) < sizes[rows, day][:, None])
        trip, node = rows[row], first[row, order]
        uses[trip, node] += 1
        parts.append(np.stack([trip, np.full(len(trip), day + 1), order, node]))
    trip, days, order, node = np.concatenate(parts, axis=1)
    return trip, days, order, node


def _swap(rng: np.random.Generator, scene: Scene, exposed: tuple[Ints, Ints, Ints], slots: Ints) -> Ints:
    """Return each slot's node after the `slots` given were swapped for a node of a category that the user likes more.

    The new node is new to the trip, or, where the trip has shown the whole city, to the day. Where there is none, or
    where two swaps of a trip hit on the same node, the slot (the later one) keeps its own.
    """
    nodes, (trip, day, shown) = scene.nodes, exposed
    new_date: Bools = (np.diff(trip, prepend=-1) != 0) | (np.diff(day, prepend=-1) != 0)
    date, node = np.cumsum(new_date) - 1, shown.copy()
    in_trip, on_day = _matrix(trip, shown, len(nodes.city)), _matrix(date, shown, len(nodes.city))
    for number, eligible in enumerate(nodes.eligible):
        mine = slots[scene.trips.city[trip[slots]] == number]
        affinity = scene.affinity(trip[mine])
        own = np.take_along_axis(affinity, nodes.category[shown[mine]][:, None], axis=1)
        there = affinity[:, nodes.category[eligible]]
        unseen = ~in_trip[trip[mine]][:, eligible]
        free = np.where(unseen.any(axis=1, keepdims=True), unseen, ~on_day[date[mine]][:, eligible]) & (there > own)
        keys = np.where(free, rng.standard_exponential(free.shape) / np.sqrt(there), np.inf)
        found = free.any(axis=1)
        mine, new = mine[found], eligible[keys.argmin(axis=1)[found]]
        _, once = np.unique(trip[mine] * len(nodes.city) + new, return_index=True)
        node[mine[once]] = new[once]
    return node


def _matrix(rows: Ints, columns: Ints, width: int) -> Bools:
    """Say which (row, column) occur."""
    occurs = np.zeros((int(rows.max()) + 1, width), dtype=np.bool_)
    occurs[rows, columns] = True
    return occurs


@dataclass(frozen=True)
class Signals:
    """Signals. Grain: a signal, ordered by (slot, kind). `kind` is a row of SIGNALS, `node` the node it is about."""

    slot: Ints
    node: Ints
    kind: Ints


def draw_signals(rng: np.random.Generator, scene: Scene, slots: Slots) -> Signals:
    """Draw what follows from each slot's status. A swap leaves a view and a skip of the node that was offered first."""
    rules = scene.profile.world["behaviour"]
    chance = rng.random((3, len(slots.trip)))
    swapped = slots.node != slots.offered
    completed = slots.status == COMPLETED
    over = completed & slots.finished
    loved = over & (chance[1] < rules["love"] * slots.affinity)
    masks = [
        np.ones(len(swapped), dtype=np.bool_),
        swapped | (slots.status == SKIPPED),
        swapped,
        completed | (slots.status == CONFIRMED) | (slots.status == ACTIVE),
        completed,
        completed & (chance[0] < rules["dwell"]),
        loved,
        over & ~loved & (chance[2] < rules["dislike"] * (1.0 - slots.affinity)),
    ]
    slot, kind = np.nonzero(np.stack(masks, axis=1))
    return Signals(slot, np.where(kind < _ABOUT_THE_OFFERED, slots.offered[slot], slots.node[slot]), kind)
