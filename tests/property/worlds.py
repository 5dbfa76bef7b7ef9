"""Small nasty worlds: ties everywhere, wild seeds, odd ids, catalogues of 0, 1, 19, 20, 21 and 52 nodes, days without end."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from etl.affinity import affinity_model
from tests.property.oracle import NO_SEED, EventRow, Node, PersonaRow, Signal, Slot, Trip, User, World

CATEGORIES = tuple(affinity_model().raw["categories"])
CATEGORY_SETS = [CATEGORIES, (*CATEGORIES, "space travel", 'it\'s "new"'), ("dining", "culture")]
STATUSES = ("proposed", "voted", "confirmed", "active", "completed", "skipped")
NODE_STATUSES = ("approved", "approved", "approved", "pending", "flagged", "archived")

# What text[] literals, SQL, JSON, hashes and sorting by bytes could trip over.
NASTY = (
    "",
    " ",
    "NULL",
    "null",
    "{a,b}",
    "it's",
    'a"b',
    "a\\b",
    "50%_",
    "é",
    "e\u0301",
    "🗼",
    "\uffff",
    "a,b",
    "\t\n",
    "Z",
    "z",
    "\x1f\x1e\x02",
)
EMAILS = ("Shadow-x@a.test", "shadow_x@a.test", "xshadow-1@a.test", "shadow", "shadow.-@a.test", "", "ѕhadow-1@a.test")  # noqa: RUF001
CITIES = ("New York", "東京", "a/b", "007")
EPOCH = datetime.fromisoformat("2024-01-31 23:59:59.999")
STARTS = ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999", "1969-12-31 23:59:59.5", "2024-02-28 12:00:00.001")

NUMBERS = st.sampled_from(
    [0.3, 0.3, 0.5, 0.85, 1, 0, -0.5, 2, 0.1234565, 2.5e-05, 1e-7, 0.30000049999999997, 10**400, 1e300]
)
JUNK = st.sampled_from([None, True, "0.5", "", [], {}, [0.5]])
LABELS = {
    "pace": ("leisurely", "slow", "moderate", "fast", "packed", "hectic", ""),
    "budget_tier": ("low", "mid", "high", "flexible", "é'\"\\"),
    "social_mode": ("solo", "couple", "group", "solo_or_couple", "couple_or_group"),
    "time_orientation": ("early_bird", "night_owl", "NIGHT_OWL"),
    "primary_interest": ("food", "culture", "nightlife", "outdoors", "wellness", "adventure", "chess"),
}


def vectors(categories: tuple[str, ...]) -> st.SearchStrategy[Any]:
    keys = st.sampled_from([*categories, "unknown", ""])
    return st.dictionaries(keys, NUMBERS | NUMBERS | NUMBERS | JUNK, max_size=13) | JUNK


def seeds(categories: tuple[str, ...]) -> st.SearchStrategy[Any]:
    labels = {name: st.sampled_from(values) | st.sampled_from(values) | JUNK for name, values in LABELS.items()}
    rest = {"cuisine_openness": NUMBERS | JUNK, "category_affinities": vectors(categories), "other": JUNK}
    objects = st.fixed_dictionaries({}, optional=labels | rest)
    return objects | objects | objects | st.sampled_from([NO_SEED, None, "text", 3, [{}], True])


def named(kind: str, number: int) -> str:
    """An id of its own, nasty, and in no order."""
    return f"{NASTY[(7 * number + len(kind)) % len(NASTY)]}{kind}{(5 * number) % 13}.{number}"


@st.composite
def catalogues(draw: st.DrawFn, categories: tuple[str, ...]) -> list[Node]:
    nodes: list[Node] = []
    for city in CITIES[: draw(st.integers(1, 4))]:
        size = draw(st.sampled_from([0, 1, 2, 3, 19, 20, 21, 52]))
        stride = draw(st.integers(1, 3))
        statuses = draw(st.sampled_from([NODE_STATUSES, ("approved",), ("approved",), ("archived",)]))
        nodes += [
            Node(
                named("n", len(nodes) + place),
                city,
                categories[(place // stride) % len(categories)],
                statuses[place % len(statuses)],
                NASTY[place % len(NASTY)],
                place / 8 - 3,
                -place / 4,
            )
            for place in range(size)
        ]
    return nodes


@st.composite
def people(draw: st.DrawFn, categories: tuple[str, ...]) -> tuple[list[User], list[Trip]]:
    users, trips = [], []
    for number in range(draw(st.integers(0, 5))):
        shadow = draw(st.sampled_from([True, True, True, False]))
        email = f"shadow-{NASTY[number]}{number}" if shadow else f"{EMAILS[number]}" if number else "shadow--"[:7]
        user = User(named("u", number), email)
        users.append(user)
        for _ in range(draw(st.integers(0, 4))):
            start = draw(
                st.integers(0, 3).map(lambda days: EPOCH + timedelta(days=days))
                | st.sampled_from(STARTS).map(datetime.fromisoformat)
            )
            created = EPOCH + timedelta(seconds=draw(st.integers(0, 2)))
            trips.append(
                Trip(
                    named("t", len(trips)),
                    user.id,
                    draw(st.sampled_from(CITIES)),
                    start,
                    created,
                    draw(seeds(categories)),
                )
            )
    return users, trips


@st.composite
def itineraries(draw: st.DrawFn, trips: list[Trip], nodes: list[Node]) -> list[Slot]:
    slots: list[Slot] = []
    days = st.integers(-1, 4) | st.integers(1, 3) | st.sampled_from([2**31 - 1, -(2**31), 0])
    for trip in trips:
        own = [node.id for node in nodes if node.city == trip.city] or [None]
        anywhere = [None, *(node.id for node in nodes[:3])]
        for day in draw(st.lists(days, max_size=3)):
            for _ in range(draw(st.integers(1, 6))):
                node = draw(st.sampled_from(own[:4]) | st.sampled_from(own) | st.sampled_from(anywhere))
                place, status = draw(st.integers(0, 2)), draw(st.sampled_from(STATUSES))
                slots.append(Slot(named("s", len(slots)), trip.id, node, day, place, status))
    return slots


@st.composite
def logged(draw: st.DrawFn, users: list[User], trips: list[Trip], nodes: list[Node]) -> list[EventRow]:
    """Ranking events that are there already: some of shadow users, to be replaced, some of others, to be left alone."""
    ids = [*(node.id for node in nodes[:25]), "gone", None]
    lists = st.none() | st.lists(st.sampled_from(ids), max_size=6).map(tuple)
    rows = []
    for number in range(draw(st.integers(0, 4)) if users else 0):
        trip = draw(st.sampled_from([trip.id for trip in trips] + ["no trip"]))
        moment = EPOCH + timedelta(days=draw(st.integers(-30_000, 3)))
        user, day = draw(st.sampled_from(users)).id, draw(st.integers(-1, 4))
        cells = (draw(lists), draw(lists), draw(lists))
        rows.append(
            EventRow(
                named("e", number), user, trip, day, "two_tower", "9", *cells, "discovery", None, moment, "session"
            )
        )
    return rows


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A world whose foreign keys hold and whose ids are unique; everything else may be odd."""
    categories = draw(st.sampled_from(CATEGORY_SETS))
    nodes = draw(catalogues(categories))
    users, trips = draw(people(categories))
    slots = draw(itineraries(trips, nodes))
    events = draw(logged(users, trips, nodes))
    personas = [
        PersonaRow(named("p", number), user.id, dimension, value, 0.5, "elsewhere", EPOCH, EPOCH)
        for number, (user, (dimension, value)) in enumerate(
            (user, row)
            for user in users[1::2]
            for row in (("pace_preference", "odd"), ("cuisine_openness", "no number"), ("own", "x"))
        )
    ]
    signals = [
        Signal(named("g", number), user.id, None, None, None, "view", (None, "other:1", None)[number % 3])
        for number, user in enumerate(users * 2)
    ]
    return World(*map(tuple, (users, trips, slots, nodes, signals)), categories, tuple(personas), tuple(events))
