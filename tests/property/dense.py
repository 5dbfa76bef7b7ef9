"""Dense worlds from a number: every feature in nearly every world, where Hypothesis's own are small and mostly empty.

Hypothesis draws the number; a world that breaks a law is told by it. The strategies of `worlds` find the small cases.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

from tests.property import oracle_training
from tests.property.oracle import NO_SEED, EventRow, Node, PersonaRow, Settings, Signal, Slot, Trip, User, World
from tests.property.worlds import ALPHAS, CATEGORIES, NEGATIVES, TRAPS

STATUSES = ("proposed", "voted", "confirmed", "active", "completed", "completed", "skipped")
NODE_STATUSES = ("approved", "approved", "approved", "pending", "flagged", "archived")
EMAILS = ("Shadow-x@a.test", "shadow_x@a.test", "xshadow-1@a.test", "shadow", "shadow.-@a.test", "", "real@a.test")
CITIES = ("New York", "東京", "a/b", "007", "Nowhere")
EPOCH = datetime.fromisoformat("2024-01-31 23:59:59.999")
STARTS = ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999", "1969-12-31 23:59:59.5", "2024-02-28 12:00:00.001")
# Of the catalogues: a large city and a small one, that the same people go to, and two of any size.
SIZES = ((19, 24, 25, 26, 60), (1, 2, 3, 18, 19), *[(0, 1, 2, 3, 5, 17, 18, 20, 21, 30, 52)] * 2)
# Moments of the worlds' days: midnights, of which some are a day's createdAt to the millisecond, and others.
SPLITS = (
    *("none", "last-trip", "last-trip", "last-trip", "time:2024-02-02", "time:2024-02-01,2024-02-03"),
    *("time:1960-01-01,2024-02-02", "time:2024-01-31T23:59:59,2024-02-01T12:00:00"),
)

# Few values, so that ties are everywhere; some that round, clip, overflow or are no numbers at all.
NUMBERS = (0.3, 0.3, 0.5, 0.5, 0.85, 1, 0, -0.5, 2, 0.1234565, 2.5e-05, 1e-7, 0.30000049999999997, 10**400, 1e300)
JUNK = (None, True, "0.5", "", [], {}, [0.5])
LABELS = {
    "pace": ("leisurely", "slow", "moderate", "fast", "packed", "hectic", ""),
    "budget_tier": ("low", "mid", "high", "flexible", "é'\"\\"),
    "social_mode": ("solo", "couple", "group", "solo_or_couple", "couple_or_group"),
    "time_orientation": ("early_bird", "night_owl", "NIGHT_OWL"),
    "primary_interest": ("food", "culture", "nightlife", "outdoors", "wellness", "adventure", "chess"),
}


def dense_world(number: int) -> World:
    """The world of a number. Foreign keys hold and ids are unique; everything else may be odd."""
    r = Random(number)  # noqa: S311 - no secret
    categories = r.choice(CATEGORIES)
    nodes = _nodes(r, categories)
    users = [User(_id(r, "u", n), _email(r, n)) for n in range(r.randint(3, 6))]
    trips = [
        Trip(_id(r, "t", 10 * n + m), user.id, city, _start(r), _created(r), _seed(r, categories))
        for n, user in enumerate(users)
        for m, city in enumerate(_journeys(r, traveller=n == 0))
    ]
    slots = _slots(r, trips, nodes)
    signals = [
        Signal(_id(r, "g", n), r.choice(users).id, None, None, None, "view", r.choice((None, "x:1"))) for n in range(9)
    ]
    personas = [
        PersonaRow(_id(r, "p", 10 * n + m), user.id, dimension, value, 0.5, "elsewhere", EPOCH, EPOCH)
        for n, user in enumerate(users[::2])
        for m, (dimension, value) in enumerate((("pace_preference", "odd"), ("cuisine_openness", "none"), ("own", "x")))
    ]
    return World(
        *map(tuple, (users, trips, slots, nodes, signals)),
        categories,
        tuple(personas),
        tuple(_events(r, users, trips, nodes)),
    )


def dense_settings(number: int) -> Settings:
    """Settings for the dense world of a number: each value meets each other one before long."""
    r = Random(f"settings of {number}")  # noqa: S311 - no secret
    with_catalog = tuple(each for each in NEGATIVES if oracle_training.catalog_size(each))
    return Settings(
        seed=(0, 7)[number % 2],
        min_catalog=(1, 20, 21, 50)[number // 2 % 4],
        small_catalog=("exclude", "weight", "exclude", "keep", "exclude")[number % 5],
        audience=("shadow", "all", "shadow", "real")[number // 3 % 4],
        ids=r.choice(("string", "string", "index", "both")),
        split=r.choice(SPLITS),
        negatives=r.choice((*NEGATIVES, *with_catalog)),
        reject=r.choice(("seen", "seen", "event")),
        catalog_alpha=r.choice(ALPHAS),
        city_weight=r.choice(((), (("New York", 2.0),), (("a/b", 0.3), ("007", 1e-3), ("Atlantis", 5.0)))),
        shuffle=r.random() < 0.3,
        task=r.choice((*[("triples",)] * 3, *[("triples", "next")] * 5, ("next",))),
        history=r.random() < 0.3,
    )


def both_settings(number: int) -> tuple[Settings, Settings]:
    """The settings that the world of a number is run with, and others that it is exported with after that.

    These have what seldom meets by chance: a user's trips to cities that are kept and to ones that are not, or draws of nearly
    all that there is.
    """
    other = dense_settings(number + 1_009)
    rare = (
        replace(other, split="last-trip", small_catalog="exclude", min_catalog=20, audience="all"),
        replace(other, negatives=(("catalog:16",), ("ranking", "catalog:16"))[number // 2 % 2], small_catalog="keep"),
    )
    return dense_settings(number), rare[number % 2]


def _id(r: Random, kind: str, number: int) -> str:
    """An id of its own, nasty, and in no order."""
    return f"{r.choice(TRAPS)}{kind}{r.randint(0, 99)}.{number}"


def _email(r: Random, number: int) -> str:
    return f"shadow-{r.choice(TRAPS)}{number}" if r.random() < 0.75 else f"{r.choice(EMAILS)}{number}"


def _nodes(r: Random, categories: tuple[str, ...]) -> list[Node]:
    nodes: list[Node] = []
    for city, sizes in zip(CITIES, SIZES, strict=False):
        stride, statuses = (
            r.randint(1, 3),
            r.choice((NODE_STATUSES, ("approved",), ("approved",), ("approved",), ("archived",))),
        )
        nodes += [
            Node(
                _id(r, "n", len(nodes) + place),
                city,
                categories[place // stride % len(categories)],
                statuses[place % len(statuses)],
                r.choice(TRAPS),
                place / 8 - 3,
                -place / 4,
            )
            for place in range(r.choice(sizes))
        ]
    return nodes


def _journeys(r: Random, *, traveller: bool) -> list[str]:
    """The cities that a user's trips go to: two of them again and again, so that there is something to be seen again."""
    large, small = CITIES[0], r.choice(CITIES[1:4])
    if traveller:
        return r.sample((large, large, large, CITIES[1], CITIES[1]), r.randint(4, 5))
    return [r.choice((large, small, large, small, r.choice(CITIES))) for _ in range(r.choice((0, 1, 2, 3, 4, 5)))]


def _start(r: Random) -> datetime:
    """Days of one week: the last millisecond of one, or the midnight after it."""
    tame = EPOCH + timedelta(days=r.randint(0, 3), milliseconds=r.randint(0, 1))
    return datetime.fromisoformat(r.choice(STARTS)) if r.random() < 0.2 else tame


def _created(r: Random) -> datetime:
    return EPOCH + timedelta(seconds=r.randint(0, 1))


def _seed(r: Random, categories: tuple[str, ...]) -> Any:
    if r.random() < 0.25:
        return r.choice((NO_SEED, None, "text", 3, [{}], True))
    seed: dict[str, Any] = {
        name: r.choice((*values, *values, *JUNK)) for name, values in LABELS.items() if r.random() < 0.8
    }
    if r.random() < 0.8:
        seed["cuisine_openness"] = r.choice((*NUMBERS, *JUNK))
    if r.random() < 0.8:
        keys = r.sample((*categories, "unknown", ""), r.randint(0, len(categories) + 2))
        vector = {key: r.choice((*NUMBERS, *NUMBERS, *JUNK)) for key in keys}
        seed["category_affinities"] = vector if r.random() < 0.9 else r.choice(JUNK)
    return seed


def _slots(r: Random, trips: list[Trip], nodes: list[Node]) -> list[Slot]:
    slots: list[Slot] = []
    for trip in trips:
        own = [node.id for node in nodes if node.city == trip.city] or [None]
        anywhere = [None, *(node.id for node in r.sample(nodes, min(3, len(nodes))))]
        days = r.sample((1, 2, 3, 4, 0, -1, 2**31 - 1, -(2**31)), r.randint(0, 4))
        for day in days or [1] * (trip.city in CITIES[:2]):
            for _ in range(r.randint(1, 8)):
                node = r.choice(r.choice((own[:4], own, own, anywhere)))
                slots.append(Slot(_id(r, "s", len(slots)), trip.id, node, day, r.randint(0, 2), r.choice(STATUSES)))
        # Some see all that a small city has.
        for node in own if len(own) <= 3 and r.random() < 0.5 else ():
            slots.append(Slot(_id(r, "s", len(slots)), trip.id, node, 1, 1, "confirmed"))
    return slots


def _events(r: Random, users: list[User], trips: list[Trip], nodes: list[Node]) -> list[EventRow]:
    """Ranking events that are there already: of shadow users, to be replaced, and of others, to be left alone."""
    ids = [*(node.id for node in nodes[:25]), "gone", None]
    rows = []
    for number in range(6):
        trip = r.choice([trip.id for trip in trips] + ["no trip"])
        cells = [tuple(r.choice(ids) for _ in range(r.randint(0, 6))) if r.random() < 0.85 else None for _ in range(3)]
        moment = EPOCH + timedelta(days=r.randint(-30_000, 3))
        user, day = r.choice(users).id, r.randint(-1, 4)
        rows.append(
            EventRow(_id(r, "e", number), user, trip, day, "two_tower", "9", *cells, "discovery", None, moment, "s")
        )
    return rows
