"""Small nasty worlds: whatever a database may hold that a careless pipeline stumbles over, little of each.

Big things are drawn by their size and a pattern (a catalogue of 52 nodes is five draws), nasty things from short lists
whose first entry is the plainest: so worlds come fast and shrink to something that can be read.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from tests.property.oracle import (
    DIMENSIONS,
    NO_SEED,
    EventRow,
    Ids,
    Moment,
    Node,
    PersonaRow,
    RegistryRow,
    Settings,
    Signal,
    Slot,
    Trip,
    User,
    World,
)

Draw = Callable[..., Any]


def mostly(common: st.SearchStrategy[Any], rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Three times of four the common one: `one_of` gives each of its branches the same chance, however often named."""
    return st.sampled_from("ccrc").flatmap(lambda which: common if which == "c" else rare)


def few(most: int) -> st.SearchStrategy[int]:
    """A count from 0 to `most`, but not often 0 (which would leave most worlds empty in one table or another)."""
    some = range(1, most + 1)
    return st.sampled_from((*some, 0, *some))


# ------------------------------------------------------------------------------------------------------------ texts

# Traps of text[] literals, of COPY, of LIKE, of JSON, of sorting by locale or by UTF-16.
TRAPS = (
    *("", "{a,b}", "NULL", "null", "{}", '"', "it's", "a b", " ", "a,b", "\\", "\\N", "\\.", "100%", "_", "%s", "$1"),
    *(
        "Z",
        "z",
        "A",
        "a",
        "10",
        "9",
        "\u00e9",
        "e\u0301",
        "\u0130",
        "\ufb01",
        "\uff5e",
        "\U0001f600",
        "\t",
        "\n",
        "\r\n",
    ),
    *("\x01", "\x7f", "\u2028", "-- ", "/../", "shadow-"),
)
# No NUL, which PostgreSQL refuses, and no lone surrogates, which UTF-8 does.
CHARACTERS = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
SHORT_TEXTS = st.text(CHARACTERS, max_size=3)


def ids(count: int, plain: str) -> st.SearchStrategy[list[str]]:
    """So many different ids, plain ones (`plain` and a number) or traps or any short text."""
    each = st.sampled_from([f"{plain}{number}" for number in range(count)]) | st.sampled_from(TRAPS) | SHORT_TEXTS
    return st.lists(each, min_size=count, max_size=count, unique=True)


def numbered(trap: str, plain: str, count: int) -> list[str]:
    """So many different ids from one trap, whose order is not the order they are made in; none shorter than 4."""
    return [f"{trap}{plain}{number * 37 % 211:03}" for number in range(count)]


# ------------------------------------------------------------------------------------------------------------ users

PLAIN_EMAIL = "shadow-{}@example.com"
EMAILS = (
    *(PLAIN_EMAIL, "ana.{}@example.com", "shadow-", "shadow-\u00e9{}", "shadow-%{}", "shadow-'{}\\"),
    *("Shadow-{}", "shadow_{}", "xshadow-{}", " shadow-{}", "shadow", "shadowX{}", "shadow\u2010{}", "SHADOW-{}", ""),
    *("sh%{}", "shX{}", "s_{}", "sX{}", "\\{}", "\\\\{}"),
)
PREFIXES = ("shadow-", "sh%", "s_", "\\", "shadow-%")


@st.composite
def users(draw: Draw, *, null_emails: bool) -> tuple[User, ...]:
    """Up to four users, most of them shadow users, no two with the same email."""
    made: list[User] = []
    for number, user_id in enumerate(draw(ids(draw(few(4)), "u"))):
        odd = st.sampled_from((*EMAILS, None) if null_emails else EMAILS)
        template = draw(st.just(PLAIN_EMAIL) | odd)
        email = None if template is None else template.format(number)
        if email is None or email not in {user.email for user in made}:
            made.append(User(user_id, email))
    return tuple(made)


# ------------------------------------------------------------------------------------------------------- catalogues

ELEVEN = (
    *("dining", "drinks", "culture", "outdoors", "active", "entertainment", "shopping", "experience", "nightlife"),
    *("group_activity", "wellness"),
)
# Few sets: a test that keeps a database for each needs few databases.
CATEGORIES = (
    ELEVEN,
    ("dining", "culture", "wellness"),
    (*ELEVEN, "caf\u00e9 & bar", 'fine "dining"', "it's", "\U0001f600", "Dining"),
    ("gaming", "{a,b}"),
)
NODE_STATUSES = ("approved", "archived", "pending", "flagged")
CATALOG_SIZES = (1, 2, 3, 19, 0, 20, 21, 22, 49, 50, 52)
CITIES = (
    *("Tokyo", "New York", "tokyo", "Tokyo ", "", "007", "a/b", "..", "city=x", "100%", "100%25", "CON", "\\", "{a,b}"),
    *("S\u00e3o Paulo", "Sa\u0303o Paulo", "__HIVE_DEFAULT_PARTITION__", "\U0001f600", "l" * 300, "\u00e9" * 130),
)
NO_CATALOG = "Nowhere"


@st.composite
def catalogs(draw: Draw, cities: list[str], categories: tuple[str, ...]) -> tuple[Node, ...]:
    """A catalogue for each city: a size, the categories and the statuses that its nodes take in turn."""
    made: list[Node] = []
    for number, city in enumerate(cities):
        size = draw(st.sampled_from(CATALOG_SIZES))
        of_categories = draw(st.lists(st.sampled_from(categories), min_size=1, max_size=4))
        plain = st.just(["approved"])
        of_statuses = draw(plain | st.lists(st.sampled_from(NODE_STATUSES), min_size=2, max_size=5))
        trap = draw(st.sampled_from(TRAPS))
        for place, node_id in enumerate(numbered(trap, f"n{number}.", size)):
            category = of_categories[place % len(of_categories)]
            status = of_statuses[place % len(of_statuses)]
            made.append(Node(node_id, city, category, status, f"{trap}{place}", 35.5 - place, 0.1 * place))
    return tuple(_with_trap_ids(draw, made))


def _with_trap_ids(draw: Draw, nodes: list[Node]) -> list[Node]:
    """Gives a few of the nodes ids that are traps as they stand."""
    if not nodes:
        return nodes
    count = draw(st.integers(0, min(3, len(nodes))))
    places = draw(st.lists(st.integers(0, len(nodes) - 1), min_size=count, max_size=count, unique=True))
    renamed = dict(zip(places, draw(ids(count, "n")), strict=True))
    return [
        Node(renamed.get(place, n.id), n.city, n.category, n.status, n.name, n.latitude, n.longitude)
        for place, n in enumerate(nodes)
    ]


# ---------------------------------------------------------------------------------------------------- persona seeds

# Equal ones, out-of-range ones, ones at the edge of a rounding (1/128 and 3/128 lie exactly between two), some that are
# no float64, some that are no numbers.
AFFINITIES = (
    *(0.5, 0.3, 0, 1, 0.8, 0.30000001, 0.2999996, 0.1234565, 0.1234575, 0.0000005, 0.0000015, 0.9999995, 5e-324, 1e-7),
    *(
        0.0078125,
        0.0234375,
        1.5,
        -0.2,
        1e300,
        -1e300,
        10**400,
        -(10**400),
        2**53 + 1,
        True,
        False,
        "0.5",
        "",
        None,
        [0.5],
        {"value": 0.5},
    ),
)
# JSON in PostgreSQL has no negative zero.
FRACTIONS = st.floats(0, 1).filter(lambda number: str(number) != "-0.0")
LABELS = {
    "pace": ("slow", "leisurely", "moderate", "fast", "packed"),
    "budget_tier": ("low", "mid", "high", "flexible"),
    "social_mode": ("solo", "couple", "group", "solo_or_couple", "couple_or_group", "solo_or_small"),
    "time_orientation": ("early_bird", "night_owl"),
    "primary_interest": ("food", "culture", "nightlife", "outdoors", "wellness", "adventure"),
}
ODD_LABELS = ("unknown", "", "Slow", " low", "NULL", "\U0001f600", '"', "moderate", "group", 3, 0.5, True, None, [], {})
OPENNESS = (
    *(0.85, 1, 1.0, 0, 0.6, -3, 2.50, 0.1 + 0.2, 1e16, 1e22, 1e-7, 5e-324, 1e300, 2**53 + 1, 2**63, 123456789.125),
    *(10**400, "0.85", "", True, None, [0.85], {}),
)
NOT_OBJECTS = (NO_SEED, None, [], [{"pace": "slow"}], "", '{"pace": "slow"}', 0, 0.5, True)


def affinity_vectors(categories: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Values of `category_affinities`: partial, all alike, empty, of strange keys or values, or no object at all."""
    key = mostly(st.sampled_from(categories), st.sampled_from(("gaming", "", "Culture", "it's", "dining")))
    value = mostly(st.sampled_from(AFFINITIES), FRACTIONS)
    alike = st.sampled_from(AFFINITIES).map(lambda number: dict.fromkeys((*categories, "Culture"), number))
    partial = st.dictionaries(key, value, min_size=2, max_size=6)
    two_values = st.lists(st.sampled_from((0.5, 0.3, 0.8)), min_size=2, max_size=2).map(
        lambda pair: {category: pair[place % 2] for place, category in enumerate(categories)}
    )
    return mostly(partial | alike | two_values, st.sampled_from((None, [], "", 0.5, {}, '{"dining": 0.5}')))


def seed_objects(categories: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Persona seeds that are JSON objects: with some of the keys, or with all of them."""
    values: dict[str, st.SearchStrategy[Any]] = {
        name: st.sampled_from(known) | st.sampled_from(ODD_LABELS) for name, known in LABELS.items()
    }
    values["cuisine_openness"] = st.sampled_from(OPENNESS) | FRACTIONS
    values["category_affinities"] = affinity_vectors(categories)
    values["exploration_radius"] = st.just("district")
    return st.fixed_dictionaries({}, optional=values) | st.fixed_dictionaries(values)


def persona_seeds(categories: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Mostly objects; also everything else that jsonb can hold, and NULL."""
    return mostly(seed_objects(categories), st.sampled_from(NOT_OBJECTS))


# ---------------------------------------------------------------------------------------------------- trips and days

# Near the first and the last day, before and at the epoch, in hours that some time zones skip.
STARTS = tuple(
    map(
        datetime.fromisoformat,
        (
            *("2024-05-01T00:00:00", "2024-03-10T02:30:00", "1969-12-31T23:59:59.999", "1970-01-01T00:00:00"),
            *("0001-01-01T00:00:00", "0001-01-01T00:00:00.001", "0001-01-03T12:00:00"),
            *("9999-12-31T23:59:59.999", "9999-12-31T00:00:00", "9999-12-30T06:00:00"),
        ),
    )
)
CREATED = tuple(map(datetime.fromisoformat, ("2024-01-01", "2024-01-01T00:00:00.001", "2023-07-01", "1900-01-01")))
# Moments that Python doesn't have, as PostgreSQL writes them.
WILD = ("infinity", "-infinity", "10000-01-01 00:00:00", "0001-12-31 23:59:59.999 BC", "294276-12-31 23:59:59.999")
DAYS = (1, 2, 3, 4, 7, 0, -1, -400, 2**31 - 1, -(2**31))
SORT_ORDERS = (0, 1, 2, -1, 2**31 - 1)
# The three that make a positive weigh as much as the three that don't.
SLOT_STATUSES = ("confirmed", "proposed", "active", "voted", "completed", "skipped")


def _milliseconds(moment: datetime) -> datetime:
    return moment - timedelta(microseconds=moment.microsecond % 1000)


def starts(*, wild_dates: bool) -> st.SearchStrategy[Moment]:
    """Start dates with the precision of timestamp(3)."""
    tame = st.sampled_from(STARTS) | st.datetimes().map(_milliseconds)
    return tame | st.sampled_from(WILD) if wild_dates else tame


@st.composite
def trips(
    draw: Draw, of_users: tuple[User, ...], cities: list[str], categories: tuple[str, ...], *, wild_dates: bool
) -> tuple[Trip, ...]:
    """Up to five trips of these users, some of them to a city without catalogue."""
    count = draw(few(5)) if of_users else 0
    user_ids = [user.id for user in of_users]
    return tuple(
        Trip(
            id=trip_id,
            user_id=draw(st.sampled_from(user_ids)),
            city=draw(st.sampled_from([*cities, NO_CATALOG, *cities])),
            start_date=draw(starts(wild_dates=wild_dates)),
            created_at=draw(st.sampled_from(CREATED)),
            persona_seed=draw(persona_seeds(categories)),
        )
        for trip_id in draw(ids(count, "t"))
    )


@st.composite
def slots(draw: Draw, of_trips: tuple[Trip, ...], nodes: tuple[Node, ...]) -> tuple[Slot, ...]:
    """Up to three days of each trip, up to five slots a day: nodes of the city, of other cities, again, or none."""
    cells: list[tuple[Any, ...]] = []
    for trip in of_trips:
        min_days = draw(st.sampled_from((1, 0, 1)))
        near = st.sampled_from([node.id for node in nodes if node.city == trip.city] or [None])
        node_ids = mostly(near, st.sampled_from([None, *(node.id for node in nodes)]))
        for day in draw(st.lists(st.sampled_from(DAYS), min_size=min_days, max_size=3, unique=True)):
            of_day = draw(st.lists(node_ids, min_size=1, max_size=4))
            slot = st.tuples(st.sampled_from(of_day), st.sampled_from(SORT_ORDERS), st.sampled_from(SLOT_STATUSES))
            cells += [(trip.id, node_id, day, *rest) for node_id, *rest in draw(st.lists(slot, min_size=1, max_size=5))]
    trap = draw(st.sampled_from(TRAPS)) if cells else ""
    return tuple(Slot(slot_id, *cell) for slot_id, cell in zip(numbered(trap, "s", len(cells)), cells, strict=True))


SIGNAL_TYPES = ("view", "confirm", "skip")
MODEL_VERSIONS = (None, "llm_ranker:0.1.0", "", "bpr:0.0.0")


@st.composite
def signals(draw: Draw, world: World) -> tuple[Signal, ...]:
    """Up to five signals of these users, with and without a model version."""
    count = draw(st.integers(0, 5)) if world.users else 0
    trap = draw(st.sampled_from(TRAPS)) if count else ""
    return tuple(
        Signal(
            id=signal_id,
            user_id=draw(st.sampled_from(world.users)).id,
            trip_id=draw(_id_or_none(world.trips)),
            slot_id=draw(_id_or_none(world.slots)),
            node_id=draw(_id_or_none(world.nodes)),
            signal_type=draw(st.sampled_from(SIGNAL_TYPES)),
            model_version=draw(st.sampled_from(MODEL_VERSIONS)),
        )
        for signal_id in numbered(trap, "b", count)
    )


def _id_or_none(rows: tuple[Any, ...]) -> st.SearchStrategy[str | None]:
    return st.sampled_from([None, *(row.id for row in rows)])


# --------------------------------------------------------------------------------- rows of earlier nights, of others

GONE_USER = "a user who is gone"
GONE_TRIP = "a trip that is gone"
GONE_NODES = ("a node that is gone", "gone {node}")
PERSONA_VALUES = ("slow", "", "{a,b}", "NULL", '{"dining": 0.5}', "not a number", "\U0001f600")
SOURCES = ("onboarding", "default", "hand")


@st.composite
def old_personas(draw: Draw, of_users: tuple[User, ...]) -> tuple[PersonaRow, ...]:
    """Rows of PersonaDimension from before, of shadow users, of real ones and of one who is gone."""
    user_ids = [*(user.id for user in of_users), GONE_USER]
    dimension = st.sampled_from((*DIMENSIONS, "exploration_radius"))
    keys = draw(st.lists(st.tuples(st.sampled_from(user_ids), dimension), max_size=5, unique=True))
    trap = draw(st.sampled_from(TRAPS)) if keys else ""
    return tuple(
        PersonaRow(
            id=row_id,
            user_id=user_id,
            dimension=name,
            value=draw(st.sampled_from(("0.25", "1") if name == "cuisine_openness" else PERSONA_VALUES)),
            confidence=draw(st.sampled_from((1.0, 0.5, 0.0))),
            source=draw(st.sampled_from(SOURCES)),
            created_at=draw(st.sampled_from(CREATED)),
            updated_at=draw(st.sampled_from(CREATED)),
        )
        for row_id, (user_id, name) in zip(numbered(trap, "p", len(keys)), keys, strict=True)
    )


def arrays(node_ids: list[str]) -> st.SearchStrategy[Ids]:
    """A text[]: NULL, empty, with NULLs, with the same node twice, with nodes that are gone."""
    known = st.sampled_from(node_ids or list(GONE_NODES))
    element = mostly(known, st.sampled_from((None, *GONE_NODES, "NULL", "")))
    return st.none() | st.lists(element, max_size=6).map(tuple) | st.lists(known, min_size=2, max_size=8).map(tuple)


@st.composite
def old_events(draw: Draw, world: World, *, wild_dates: bool) -> tuple[EventRow, ...]:
    """Rows of RankingEvent from before, of any model; only those of a living trip have wild dates."""
    count = draw(st.integers(0, 5))
    array = arrays([node.id for node in world.nodes])
    made = []
    for event_id in draw(ids(count, "e")):
        trip_id = draw(st.sampled_from([*(trip.id for trip in world.trips), GONE_TRIP]))
        made.append(
            EventRow(
                id=event_id,
                user_id=draw(st.sampled_from([*(user.id for user in world.users), GONE_USER])),
                trip_id=trip_id,
                day_number=draw(st.sampled_from(DAYS)),
                model_name=draw(st.sampled_from(("llm_ranker", "bpr", "two_tower"))),
                model_version=draw(st.sampled_from(("0.1.0", "1", ""))),
                candidate_ids=draw(array),
                ranked_ids=draw(array),
                selected_ids=draw(array),
                surface=draw(st.sampled_from(("itinerary", "discovery", "pivot"))),
                latency_ms=draw(st.sampled_from((None, 0, 450))),
                created_at=draw(starts(wild_dates=wild_dates and trip_id != GONE_TRIP)),
                session_id=draw(st.sampled_from((None, "", "session"))),
                shadow_model_name=draw(st.sampled_from((None, "bpr"))),
                shadow_model_version=draw(st.sampled_from((None, "0.0.0"))),
                shadow_ranked_ids=draw(array),
            )
        )
    return tuple(made)


OLD_REGISTRY = (
    RegistryRow("r1", "llm_ranker", "0.1.0", "archived", "by hand", None, CREATED[0], CREATED[1]),
    RegistryRow("r2", "bpr", "0.0.0", "production", "by hand", "trained", CREATED[0], CREATED[1]),
    RegistryRow("r3", "bpr", "0.1.0", "staging", "by hand", None, CREATED[0], CREATED[1]),
)


# ------------------------------------------------------------------------------------------------------------ worlds


@st.composite
def worlds(draw: Draw, *, null_emails: bool = False, wild_dates: bool = False, with_registry: bool = False) -> World:
    """A small nasty world. Foreign keys hold, ids are unique per table, texts are what PostgreSQL can store.

    `null_emails`: users without email, where the schema allows it. `wild_dates`: start dates and events' dates outside
    the years 1 to 9999. `with_registry`: rows in ModelRegistry from before.
    """
    categories = draw(st.sampled_from(CATEGORIES))
    cities = draw(st.lists(st.sampled_from(CITIES), min_size=1, max_size=3, unique=True))
    people = draw(users(null_emails=null_emails))
    nodes = draw(catalogs(cities, categories))
    journeys = draw(trips(people, cities, categories, wild_dates=wild_dates))
    days = draw(slots(journeys, nodes))
    world = World(people, journeys, days, nodes, categories=categories)
    return World(
        users=people,
        trips=journeys,
        slots=days,
        nodes=nodes,
        signals=draw(signals(world)),
        categories=categories,
        personas=draw(old_personas(people)),
        events=draw(old_events(world, wild_dates=wild_dates)),
        registry=draw(st.lists(st.sampled_from(OLD_REGISTRY), unique=True).map(tuple)) if with_registry else (),
    )


NEGATIVES = (
    *(("ranking",), ("shown",), ("catalog:1",), ("catalog:3",), ("catalog:16",), ("ranking", "shown")),
    *(
        ("ranking", "catalog:4"),
        ("catalog:3", "shown"),
        ("ranking", "shown", "catalog:2"),
        ("shown", "ranking", "catalog:16"),
    ),
)
ALPHAS = (None, 0.0, 0.5, 1.0, 2.5)
# Some of the worlds' starts to the millisecond, and moments between them.
SPLITS = (
    *("none", "last-trip", "time:2024-05-01", "time:1970-01-01,2024-05-01", "time:2024-03-10T02:30:00"),
    *("time:2024-05-02T00:00:00,2024-05-03", "time:0001-01-01,9999-12-31"),
)


def city_weights() -> st.SearchStrategy[tuple[tuple[str, float], ...]]:
    """None mostly; else one or two of the worlds' cities, of which one has `=` in its name."""
    weights = st.sampled_from((2.0, 0.5, 0.3, 1e-3, 7.0))
    some = st.lists(st.tuples(st.sampled_from(CITIES), weights), min_size=1, max_size=2, unique_by=lambda pair: pair[0])
    return st.just(()) | some.map(tuple)


def run_settings() -> st.SearchStrategy[Settings]:
    """Settings of a run, plain ones first; prefixes with the characters that LIKE takes for its own."""
    return st.builds(
        Settings,
        shadow_prefix=st.sampled_from(("shadow-", "shadow-", "shadow-", *PREFIXES)),
        seed=st.sampled_from((0, 1, 7, 2**31)),
        min_catalog=st.sampled_from((50, 1, 2, 20, 21)),
        small_catalog=st.sampled_from(("exclude", "weight", "keep")),
        audience=st.sampled_from(("shadow", "all", "real")),
        ids=st.just("string"),
        split=st.sampled_from(SPLITS),
        negatives=st.sampled_from(NEGATIVES),
        reject=st.sampled_from(("seen", "event")),
        catalog_alpha=st.sampled_from(ALPHAS),
        city_weight=city_weights(),
        shuffle=st.booleans(),
    )
