"""The synthetic world's catalogue, users and trips, as numbers.

Pure and vectorised: NumPy arrays drawn from a profile (`data/world.json`, `data/affinity-model.json`) and a generator.
Rows refer to each other by row number; `etl.synthetic.behaviour` draws what then happens, and `etl.synthetic.tables` makes
database columns of it all. The only loops are over persona axes and cities.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from etl.runtime.resources import resource
from etl.transform.personas import BASE_TABLE, DELTA_TABLES, affinity_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]
    Bools = npt.NDArray[np.bool_]

# The persona axes, each with the affinity model's table of what its labels do to a user's affinities.
AXES = DELTA_TABLES | {"primary_interest": BASE_TABLE}
NODE_STATUSES = ("approved", "pending", "flagged", "archived")
_ARCHIVED = NODE_STATUSES.index("archived")
_AFFINITY_DECIMALS = 4
MS_PER_DAY = 86_400_000


@dataclass(frozen=True)
class Axis:
    """One persona axis: its labels, what they mean, how often users have them, and what they do to affinities.

    `plain` has the label that each stands for (`leisurely` is `slow`), `ordinary` and `legacy` the shares among users
    with today's and with yesterday's labels, `effect` is labels x categories.
    """

    labels: tuple[str, ...]
    plain: tuple[str, ...]
    ordinary: Floats
    legacy: Floats
    effect: Floats


@dataclass(frozen=True)
class Profile:
    """The two data files as read, and the axes made from them."""

    world: dict[str, Any]
    model: dict[str, Any]
    axes: dict[str, Axis]

    @property
    def cities(self) -> dict[str, Any]:
        """City name -> share of trips, centre, node counts and name parts; the order numbers the cities."""
        return dict(self.world["cities"])

    def bounds(self, what: str, pace: Ints) -> tuple[Ints, Ints]:
        """Lowest and highest count, both inclusive, of what the model's "world" gives by pace."""
        low, high = np.array([self.model["world"][what][label] for label in self.axes["pace"].plain])[pace].T
        return low, high


@cache
def load_profile() -> Profile:
    """Read `data/world.json` and `data/affinity-model.json`."""
    world = json.loads(resource("world.json").read_text(encoding="utf-8"))
    model = affinity_model().raw
    return Profile(world, model, {axis: _axis(axis, world["persona"][axis], model) for axis in AXES})


def _axis(name: str, shares: dict[str, dict[str, float]], model: dict[str, Any]) -> Axis:
    """Look up what each label of an axis does, synonyms resolved."""
    labels = tuple(dict.fromkeys([*shares["ordinary"], *shares["legacy"]]))
    plain = tuple(model["label_synonyms"][name][label] for label in labels)
    table = model[AXES[name]]
    effect = np.array([[table[label].get(category, 0.0) for category in model["categories"]] for label in plain])
    return Axis(
        labels=labels,
        plain=plain,
        ordinary=normalised(shares["ordinary"].get(label, 0.0) for label in labels),
        legacy=normalised(shares["legacy"].get(label, 0.0) for label in labels),
        effect=effect,
    )


def normalised(weights: Iterable[float]) -> Floats:
    """Returns the weights as shares that sum to 1."""
    array: Floats = np.array(list(weights), dtype=np.float64)
    array /= array.sum()
    return array


def pick(rng: np.random.Generator, shares: Floats, count: int) -> Ints:
    """Draw `count` numbers with these shares: one row of shares for all, or one row for each."""
    steps = np.cumsum(np.broadcast_to(shares, (count, shares.shape[-1])), axis=1)[:, :-1]
    drawn: Ints = (rng.random(count)[:, None] >= steps).sum(axis=1)
    return drawn


@dataclass(frozen=True)
class Nodes:
    """The catalogue. Grain: a node, ordered by (city, category). City, category and status are numbers.

    `place` counts within (city, category). `eligible` has for each city the rows that may be shown, the not archived.
    """

    city: Ints
    category: Ints
    status: Ints
    place: Ints
    eligible: tuple[Ints, ...]


def draw_nodes(rng: np.random.Generator, profile: Profile) -> Nodes:
    """Draw the catalogue: the profile's node counts are the eligible ones, the archived come on top."""
    categories = profile.model["categories"]
    parts = []
    for number, city in enumerate(profile.cities.values()):
        live = np.repeat(np.arange(len(categories)), [city["nodes"].get(name, 0) for name in categories])
        flagged, pending = city["flagged"], city["pending"]
        status = np.repeat([0, 1, 2], [len(live) - flagged - pending, pending, flagged])
        # The archived nodes are spread over the categories as the live ones are.
        gone = rng.choice(live, size=city["archived"], replace=False)
        category = np.concatenate([live, gone])
        status = np.concatenate([rng.permutation(status), np.full(len(gone), _ARCHIVED)])
        order = np.argsort(category, kind="stable")
        category, status = category[order], status[order]
        place = np.arange(len(category)) - np.searchsorted(category, category)
        parts.append(np.stack([np.full(len(category), number), category, status, place]))
    city_of, category, status, place = np.concatenate(parts, axis=1).astype(np.int64)
    live_rows = status != _ARCHIVED
    eligible = tuple(np.flatnonzero(live_rows & (city_of == number)) for number in range(len(parts)))
    return Nodes(city_of, category, status, place, eligible)


@dataclass(frozen=True)
class People:
    """Users. Grain: a user. `labels` has each axis's label number, `affinity` is users x categories, in [0, 1]."""

    labels: dict[str, Ints]
    openness: Floats
    affinity: Floats


def draw_people(rng: np.random.Generator, profile: Profile, count: int) -> People:
    """Draw users: five labels each, and the additive model's affinities with each user's own jitter."""
    legacy = rng.random(count) < profile.world["legacy_share"]
    labels = {}
    total = rng.normal(0.0, profile.model["user_jitter"], (count, len(profile.model["categories"])))
    for name, axis in profile.axes.items():
        labels[name] = pick(rng, np.where(legacy[:, None], axis.legacy, axis.ordinary), count)
        total += axis.effect[labels[name]]
    openness = rng.beta(profile.world["cuisine_openness"]["alpha"], profile.world["cuisine_openness"]["beta"], count)
    # Rounded before use: users act on the affinities that their seed holds.
    affinity = np.round(np.clip(total, *profile.model["clamp"]), _AFFINITY_DECIMALS)
    return People(labels, np.round(openness, 2), affinity)


@dataclass(frozen=True)
class Trips:
    """Trips. Grain: a trip, ordered by (user, start).

    `start` is in days and `created` in milliseconds from the reference date, `days` is the trip's length: a trip with
    start + days <= 0 is finished.
    """

    user: Ints
    city: Ints
    start: Ints
    created: Ints
    days: Ints


def draw_trips(rng: np.random.Generator, profile: Profile, people: People) -> Trips:
    """Draw each user's trips, by pace: over several cities, and one after the other in time."""
    low, high = profile.bounds("trips_per_user_by_pace", people.labels["pace"])
    count = rng.integers(low, high, endpoint=True)
    user = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    # Each trip has its own part of the span, and starts in the last 85% of it: with six trips in 775 days the other
    # 15% are 19 days, longer than any trip, so no user is in two cities at once.
    past, span = profile.world["history_days"], profile.world["history_days"] + profile.world["upcoming_days"]
    start = np.floor(span * (nth + 0.15 + 0.85 * rng.random(len(user))) / count[user]).astype(np.int64) - past
    lead = rng.uniform(2.0, 120.0, len(user))
    created = np.minimum(start - lead, -7.0 * rng.random(len(user)))
    lengths = profile.world["trip_days"]
    days = np.array([int(length) for length in lengths])[pick(rng, normalised(lengths.values()), len(user))]
    city = _cities(rng, profile, user, nth)
    return Trips(user, city, start, np.floor(created * MS_PER_DAY).astype(np.int64), days)


def _cities(rng: np.random.Generator, profile: Profile, user: Ints, nth: Ints) -> Ints:
    """Draw each trip's city by the cities' shares; a user's first two trips never go to the same one."""
    shares = normalised(city["share"] for city in profile.cities.values())
    people = int(user[-1]) + 1
    distinct = np.argsort(rng.standard_exponential((people, len(shares))) / shares, axis=1)
    return np.where(nth < 2, distinct[user, np.minimum(nth, 1)], pick(rng, shares, len(user)))


@dataclass(frozen=True)
class Scene:
    """The state before any slot is drawn: the rules, the catalogue, the users, their trips."""

    profile: Profile
    nodes: Nodes
    people: People
    trips: Trips

    def affinity(self, trip: Ints) -> Floats:
        """Returns the affinity of each trip's user for each category: trips x categories."""
        return self.people.affinity[self.trips.user[trip]]
