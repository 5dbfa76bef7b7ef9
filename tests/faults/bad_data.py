"""Bad rows by number: a fuzzer whose every case is told, and made again, by its world's number and its own.

A case is a user and all that is theirs: emails that nearly match, ids of any characters, persona seeds as raw JSON text,
dates and days at the ends of their types, slots and events that name what is gone. Cases don't depend on each other, so any
of them can be tried alone (`fuzzed(17, [203])`); the places of a world are the same for all of them.

A world comes twice: as it is stored, and as the oracle is to judge it, where a seed is what jsonb keeps of its text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, Self

import psycopg

from tests.property.dense import dense_settings
from tests.property.in_database import Databases, Raw
from tests.property.oracle import (
    NO_SEED,
    EventRow,
    Moment,
    Node,
    PersonaRow,
    Settings,
    Signal,
    Slot,
    Trip,
    User,
    World,
)
from tests.property.worlds import ELEVEN, TRAPS, WILD

# ----------------------------------------------------------------------------------------------------- what is stored


class NaN(float):
    """A float that is equal to any NaN: what stands in a row is compared as it is."""

    __slots__ = ()

    def __new__(cls) -> Self:
        return super().__new__(cls, math.nan)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and math.isnan(other)

    __hash__ = None  # type: ignore[assignment]


def as_jsonb_keeps_it(text: str) -> Any:
    """What jsonb keeps of a JSON text: of a key that comes twice the last value, and no negative zero."""
    return json.loads(text, parse_int=_number, parse_float=_number)


def _number(text: str) -> float:
    return float(text) + 0.0


CATEGORIES = (
    ELEVEN,
    (*ELEVEN, "caf\u00e9", "cafe\u0301", 'fine "dining"', "it's", "\\", "\n", "\x01\x7f", "\U0001f600", "Dining", " "),
    ("user_id", "category", "affinity", "vector", "value", "number", "known", "dining", "affinity_dining", "{a,b}"),
    ("x" * 63, "\u00e9" * 31, "NULL", "null", "%", "culture"),
)
"""Labels of ActivityCategory: the design's; nasty ones; ones that are names of columns somewhere; long ones."""


class LooseDatabases(Databases):
    """Databases without foreign keys, whose enums know a status more than the contract: what is gone may still be named."""

    def _fresh(self, categories: tuple[str, ...]) -> str:
        url = super()._fresh(categories)
        loosen(url)
        return url


def loosen(url: str) -> None:
    """Take away the foreign keys, and add a status to slots and to nodes that bpr-etl does not know."""
    with psycopg.connect(url, autocommit=True) as connection:
        for table, name in connection.execute(
            "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'f'"
        ).fetchall():
            connection.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')
        for kind in ("SlotStatus", "NodeStatus"):
            connection.execute(f"ALTER TYPE \"{kind}\" ADD VALUE IF NOT EXISTS '{UNKNOWN_STATUS}'")


UNKNOWN_STATUS = "who knows"


@dataclass
class Bad:
    """A world as it is stored, and as the oracle is to judge it. Goes where a test takes `databases`."""

    databases: Databases
    stored: World
    judged: World
    url: str | None = None

    def holding(self, _: World) -> str:
        """The URL of a database that holds the world as it is stored; it stays in `url`."""
        self.url = self.databases.holding(self.stored)
        return self.url


@dataclass
class Rows:
    """Rows on their way into a world; `judged` has the trips as the oracle sees them."""

    users: list[User] = field(default_factory=list)
    trips: list[Trip] = field(default_factory=list)
    judged: list[Trip] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    personas: list[PersonaRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)

    def worlds(self, nodes: Sequence[Node], categories: tuple[str, ...]) -> tuple[World, World]:
        """As stored, and as judged."""
        stored = World(
            *map(tuple, (self.users, self.trips, self.slots, nodes, self.signals)),
            categories,
            *map(tuple, (self.personas, self.events)),
        )
        return stored, replace(stored, trips=tuple(self.judged))


# --------------------------------------------------------------------------------------------------------- nasty atoms

ODD_CHARACTERS = (
    *"\x01\x02\x08\t\n\x0b\r\x1b\x1e\x1f\x7f\x80\x85\u00a0\u00ad\u0130\u0131\u00df\u017f\u0301\u0430\u0455\u05d0\u200b",
    *"\u200d\u200e\u202e\u2028\u2029\u2060\u3000\ufb01\ufdd0\ufe0f\ufeff\uff0d\uff53\ufffd\ufffe\uffff\U0001f600",
    *"\U0001d7d8\U000e0041\U0010ffff",
    *"""'"\\/%_$*?.,;:|&<>(){}[]#@!~`^=+- """,
    *"aAzZ019éß東",
)


def nasty_text(r: Random, most: int = 12) -> str:
    """A short text of characters that something may stumble over; no NUL, which PostgreSQL's text can't hold."""
    return "".join(r.choice(ODD_CHARACTERS) for _ in range(r.randint(0, most)))


def nasty_id(r: Random, kind: str, *numbers: int) -> str:
    """An id of its own that begins with anything: short, or rarely long."""
    start = r.choice((r.choice(TRAPS), r.choice(TRAPS), "", nasty_text(r)))
    if r.random() < 0.02:
        start += r.choice(("x" * 10_000, "\u6771" * 3_000, "".join(r.choices("0123456789abcdef", k=600))))
    return f"{start}{kind}{'.'.join(map(str, numbers))}"


SEED_LABELS = {
    "pace": ("slow", "leisurely", "moderate", "fast", "packed"),
    "budget_tier": ("low", "mid", "high", "flexible"),
    "social_mode": ("solo", "couple", "group", "solo_or_couple", "couple_or_group", "solo_or_small"),
    "time_orientation": ("early_bird", "night_owl"),
    "primary_interest": ("food", "culture", "nightlife", "outdoors", "wellness", "adventure"),
}
NUMBERS = (
    *("0", "-0", "0.0", "-0.0", "0e9", "-0e-9", "1", "1.0", "1e0", "10e-1", "1E+0", "0.1e1", "100e-2", "0.5", "0.30"),
    *("1e999", "-1e999", "1e-999", "-1e-999", "1e308", "1e309", "1.7976931348623157e308", "1.7976931348623159e308"),
    *("5e-324", "2e-324", "3e-324", "2.2250738585072011e-308", "2.2250738585072014e-308", "1e-7", "4.9e-7", "5e-7"),
    *("9007199254740993", "18446744073709551616", "123456789012345678901234567890", "1e16", "1e15", "1e22", "1e23"),
    *("0.1234565", "0.1234575", "0.12345650000000000000000000000000001", "0.1234564999999999999999999999999999999"),
    *("0.0000005", "0.0000015", "0.9999995", "0.99999949999999999", "1.0000000000000000000001", "1.5", "-0.2", "-5"),
    *("0.1000000000000000055511151231257827", "0.30000000000000004", "0.29999999999999998889776975"),
    *("9" * 400, "-" + "9" * 400, "0." + "0" * 400 + "1", "0." + "9" * 400, "1" + "0" * 308, "1" + "0" * 309),
    *("0." + "3" * 5_000, "7e-6000", "9e100000", "1" * 4_500),
)
"""Numbers as JSON text, exact in jsonb and mostly not in float64."""

JUNK = (
    *("null", "true", "false", '""', '"0.5"', '"NaN"', '"Infinity"', '"1e999"', "[]", "{}", "[0.5]", '{"value": 0.5}'),
    *('"\\u0001\\u001f"', '"\\ud83d\\ude00"', '"\\ufffe"', "[" * 40 + "]" * 40, '{"a":' * 40 + "1" + "}" * 40),
)


def number_text(r: Random) -> str:
    """A JSON number: a nasty one, a float64's own digits, or any."""
    kind = r.random()
    if kind < 0.5:
        return r.choice(NUMBERS)
    if kind < 0.7:
        return repr(r.choice((r.random(), r.random() * 3 - 1, r.random() * 10.0 ** r.randint(-30, 30))))
    digits = "".join(r.choices("0123456789", k=r.choice((1, 3, 6, 7, 17, 18, 40, 800))))
    whole = str(int(digits[: r.randint(0, 4)] or "0"))
    exponent = r.choice(("", "", "", f"e{r.randint(-330, 310)}", f"E+{r.randint(0, 9)}"))
    return r.choice(("", "", "", "-")) + whole + "." + digits + exponent


def string_text(r: Random, text: str) -> str:
    """A JSON string of this text, some of its characters written as escapes."""
    written = []
    for character in text:
        if character in '"\\' or character < " ":
            written.append(json.dumps(character)[1:-1] if r.random() < 0.5 else f"\\u{ord(character):04x}")
        elif r.random() < 0.15:
            units = character.encode("utf-16-be").hex(" ", 2).split()
            written.append("".join(f"\\u{unit.upper() if r.random() < 0.5 else unit}" for unit in units))
        else:
            written.append("\\/" if character == "/" and r.random() < 0.5 else character)
    return f'"{"".join(written)}"'


def object_text(r: Random, members: Sequence[tuple[str, str]]) -> str:
    """A JSON object of these keys and values, whose values are JSON text; a key may come twice."""
    space = r.choice(("", " ", "\n\t", "\r"))
    pairs = [f"{space}{string_text(r, key)}{space}:{space}{value}{space}" for key, value in members]
    return f"{space}{{{','.join(pairs) or space}}}{space}"


def any_text(r: Random, depth: int = 3) -> str:
    """Any JSON."""
    kind = r.randint(0, 6) if depth else r.randint(0, 3)
    if kind == 0:
        return number_text(r)
    if kind == 1:
        return r.choice(JUNK)
    if kind <= 3:
        return string_text(r, nasty_text(r))
    if kind <= 5:
        keys = [nasty_text(r, 3) for _ in range(r.randint(0, 4))]
        return object_text(r, [(key, any_text(r, depth - 1)) for key in keys])
    return "[" + ",".join(any_text(r, depth - 1) for _ in range(r.randint(0, 4))) + "]"


def seed_text(r: Random, categories: tuple[str, ...]) -> str:
    """A persona seed as JSON text: mostly an object that has mostly what one has, in any form and any order."""
    if r.random() < 0.1:
        return any_text(r)
    members = [(name, _label_text(r, known)) for name, known in SEED_LABELS.items() if r.random() < 0.8]
    if r.random() < 0.8:
        members.append(("cuisine_openness", number_text(r) if r.random() < 0.8 else r.choice(JUNK)))
    if r.random() < 0.85:
        members.append(("category_affinities", _affinities_text(r, categories)))
    members += [(nasty_text(r, 4), any_text(r)) for _ in range(r.choice((0, 0, 1, 3)))]
    if members and r.random() < 0.2:
        name, _ = r.choice(members)
        members.append((name, r.choice((r.choice(JUNK), number_text(r), any_text(r)))))
    r.shuffle(members)
    return object_text(r, members)


def _label_text(r: Random, known: tuple[str, ...]) -> str:
    kind = r.random()
    if kind < 0.6:
        return string_text(r, r.choice(known))
    if kind < 0.8:
        near = r.choice((str.upper, str.title, lambda text: f" {text}", lambda text: f"{text}\u200b"))
        return string_text(r, near(r.choice(known)))
    if kind < 0.9:
        return string_text(r, r.choice((nasty_text(r), nasty_text(r, 400), "y" * 20_000)))
    return r.choice((*JUNK, number_text(r)))


def _affinities_text(r: Random, categories: tuple[str, ...]) -> str:
    kind = r.random()
    if kind < 0.1:
        return any_text(r)
    strangers = ("gaming", "", "Culture", "dining ", "user_id", nasty_text(r, 3))
    keys = [r.choice((*categories, *categories, *strangers)) for _ in range(r.randint(0, len(categories) + 4))]
    if kind < 0.3:  # many ties
        members = [(key, r.choice(("0.5", "0.50", "5e-1", "0.3"))) for key in keys]
    else:
        members = [(key, number_text(r) if r.random() < (0.8 if kind > 0.4 else 0) else r.choice(JUNK)) for key in keys]
    return object_text(r, members)


# --------------------------------------------------------------------------------------------------------------- cases

PREFIXES = (
    *("s_", "sh%", "shadow-", "shadow-", "\\", "'", "\u0455hadow-", "\uff53hadow-", "\u00e9-", "e\u0301-"),
    *("sh\u200badow-",),
    *("S", "\U0001f600", " ", "\n"),
)
"""Prefixes with wildcards of LIKE, look-alikes, both normal forms, and characters that can't be seen."""

CITIES = ("New York", "\u6771\u4eac", "a/b", "007", "", "..", "\U0001f600" * 80, "Nowhere")
SIZES = (60, 25, 20, 21, 1, 3, 2, 0)
"""Of the catalogues. One size more or less than a ranking's twenty; a city whose last node is archived."""

EPOCH = datetime.fromisoformat("2024-01-31 23:59:59.999")
STARTS = ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999", "1969-12-31 23:59:59.5", "2024-02-29 12:00:00.001")
DAYS = (*(1, 2, 3, 4, 5, 6, 7), 0, -1, 2**31 - 1, -(2**31), 3_652_059, 2_000_000)
SORT_ORDERS = (0, 0, 1, 2, -1, 2**31 - 1, -(2**31))
SLOT_STATUSES = ("proposed", "voted", "confirmed", "confirmed", "active", "completed", "skipped", UNKNOWN_STATUS)
NODE_STATUSES = ("approved", "approved", "approved", "pending", "flagged", "archived", UNKNOWN_STATUS)
CREATED_WILD = (
    "4713-11-24 00:00:00 BC",
    "10000-01-01 00:00:00",
    "293999-12-31 23:59:59.999",
    "0001-12-31 23:59:59.999 BC",
)
INFINITE = ("infinity", "-infinity")
PLACES = (0.0, -0.0, 90.0, 1e300, 5e-324, math.inf, -math.inf, NaN())


def fuzzed(databases: Databases, number: int, cases: Collection[int]) -> Bad:
    """The world of a number with these cases in it."""
    r = Random(number)  # noqa: S311 - no secret
    categories = CATEGORIES[number % len(CATEGORIES)]
    prefix = fuzzed_settings(number).shadow_prefix
    nodes = _nodes(r, number, categories)
    rows = Rows()
    for case in cases:
        _case(Random(f"{number}.{case}"), case, rows, nodes, categories, prefix)  # noqa: S311
    return Bad(databases, *rows.worlds(nodes, categories))


def fuzzed_settings(number: int) -> Settings:
    """The settings that the world of a number is run with."""
    return replace(dense_settings(number), shadow_prefix=PREFIXES[number % len(PREFIXES)])


def _nodes(r: Random, number: int, categories: tuple[str, ...]) -> list[Node]:
    return [
        Node(
            nasty_id(r, "n", number, place, city_number),
            city,
            r.choice(categories),
            "approved" if place == 0 else r.choice(NODE_STATUSES),
            nasty_text(r),
            r.choice(PLACES),
            r.choice(PLACES),
        )
        for city_number, (city, size) in enumerate(zip(CITIES, SIZES, strict=True))
        for place in range(size)
    ]


def _case(r: Random, case: int, rows: Rows, nodes: Sequence[Node], categories: tuple[str, ...], prefix: str) -> None:
    """All that is one user's, and at times a friend's: nothing of any other case."""
    user = User(nasty_id(r, "u", case), f"{_email(r, prefix)}{nasty_text(r, 3)}{case}")
    trips = list(_trips(r, case, user, categories))
    ids = [stored.id for stored, _ in trips]
    if r.random() >= 0.05:  # else the user is gone
        rows.users.append(user)
    rows.trips += [stored for stored, _ in trips]
    rows.judged += [judged for _, judged in trips]
    for stored, _ in trips:
        rows.slots += _slots(r, case, stored, nodes)
    if r.random() < 0.1:
        trip = Trip(f"gone {case}", user.id, r.choice(CITIES), EPOCH, EPOCH, NO_SEED)
        rows.slots += _slots(r, case, trip, nodes)
        ids.append(trip.id)
    if r.random() < 0.1:
        friend = User(nasty_id(r, "f", case), f"a friend of {case}")
        trip = Trip(nasty_id(r, "ft", case), friend.id, r.choice(CITIES), _start(r), EPOCH, NO_SEED)
        rows.users.append(friend)
        rows.trips.append(trip)
        rows.judged.append(trip)
        rows.slots += _slots(r, case, trip, nodes)
        ids.append(trip.id)
    ids.append(f"never {case}")
    rows.signals += _signals(r, case, user, ids)
    if r.random() < 0.3:
        rows.personas += _personas(r, case, user)
    if r.random() < 0.3:
        rows.events.append(_event(r, case, user, ids, nodes, {trip.id for trip in rows.trips}))


def _email(r: Random, prefix: str) -> str:
    """Mostly one that begins with the prefix; else one that only seems to."""
    if r.random() < 0.8:
        return prefix
    look_alike = str.maketrans({"s": "\u0455", "a": "\u0430", "o": "\u043e", "-": "\u2010", "%": "x", "_": "x"})
    near = (
        *(prefix.upper(), prefix.title(), prefix.translate(look_alike), prefix[:-1], f" {prefix}", f"x{prefix}"),
        *(f"\u200b{prefix}", prefix[:1] + "\u200b" + prefix[1:], "", "\u00e9-", "e\u0301-", "shadow-", "sXy"),
    )
    return r.choice(near)


def _trips(r: Random, case: int, user: User, categories: tuple[str, ...]) -> Iterator[tuple[Trip, Trip]]:
    """A user's trips, as stored and as judged. A creation date that Python lacks is a lone trip's, or gives no seed."""
    count = r.choice((0, 1, 1, 1, 2, 3, 5))
    for number in range(count):
        created: Moment = EPOCH + timedelta(days=r.randint(-1, 1), milliseconds=r.choice((0, 0, 1)))
        if count == 1 and r.random() < 0.1:
            created = r.choice(CREATED_WILD)
        if r.random() < 0.05:
            created = r.choice(INFINITE)
        text = seed_text(r, categories) if r.random() < 0.85 else None
        stored = Trip(
            nasty_id(r, "t", case, number),
            user.id,
            r.choice((*CITIES[:3], *CITIES)),
            _start(r),
            created,  # type: ignore[arg-type]
            NO_SEED if text is None else Raw(text),
        )
        usable = text is not None and created not in INFINITE
        yield stored, replace(stored, persona_seed=as_jsonb_keeps_it(text) if usable else NO_SEED)


def _start(r: Random) -> Moment:
    if r.random() < 0.15:
        return r.choice((*WILD, *map(datetime.fromisoformat, STARTS)))
    return EPOCH + timedelta(days=r.randint(0, 3), milliseconds=r.randint(0, 1))


def _slots(r: Random, case: int, trip: Trip, nodes: Sequence[Node]) -> Iterator[Slot]:
    near = [node.id for node in nodes if node.city == trip.city] or [None]
    for day in r.sample(DAYS, r.choice((0, 1, 1, 2))):
        for _ in range(r.randint(1, 4)):
            node = r.choice(near) if r.random() < 0.8 else r.choice((None, r.choice(nodes).id, "gone", nasty_text(r)))
            number = r.randint(0, 10**9)
            yield Slot(
                nasty_id(r, "s", case, number), trip.id, node, day, r.choice(SORT_ORDERS), r.choice(SLOT_STATUSES)
            )


def _signals(r: Random, case: int, user: User, trip_ids: Sequence[str]) -> Iterator[Signal]:
    for number in range(r.randint(0, 2)):
        version = r.choice((None, None, "", "llm_ranker:0.1.0", nasty_text(r)))
        trip = r.choice((None, *trip_ids))
        yield Signal(nasty_id(r, "g", case, number), user.id, trip, "gone", None, "view", version)


PERSONA_VALUES = {
    "cuisine_openness": ("0.25", "1", "1e999", "", "high", "-3", "1e-7"),
    "category_affinities": (
        *("", "{", "null", "[0.5]", '{"dining": 0.5}', '{"dining": "0.5"}', '{"dining": 1e999, "culture": -7}'),
        *('{"dining": 0.5, "dining": 0.25}', '{"dining": NaN}', "[" * 2_000, '{"\\ud800": 1}'),
        *('{"dining": 1' + "0" * 400 + "}",),
    ),
    "pace_preference": ("", "slow", "\U0001f600", "NULL"),
    "own": ("", "whatever"),
}


def _personas(r: Random, case: int, user: User) -> Iterator[PersonaRow]:
    """Persona rows that others wrote: of a shadow user they are replaced, of anybody else they stay as they are."""
    for number, dimension in enumerate(r.sample([*PERSONA_VALUES], r.randint(1, 4))):
        value = r.choice((*PERSONA_VALUES[dimension], any_text(r) if dimension == "category_affinities" else "x"))
        confidence = r.choice((0.5, 1.0, -0.0, 1e300, math.inf, NaN()))
        source = r.choice(("onboarding", "", nasty_text(r)))
        yield PersonaRow(
            nasty_id(r, "p", case, number),
            user.id,
            dimension,
            value,
            confidence,
            source,
            EPOCH,
            _wild(r),  # type: ignore[arg-type]
        )


def _wild(r: Random) -> Moment:
    return r.choice((EPOCH, EPOCH, *WILD, *CREATED_WILD))


def _event(
    r: Random, case: int, user: User, trip_ids: Sequence[str], nodes: Sequence[Node], there: Collection[str]
) -> EventRow:
    """A ranking event that others wrote: of a trip that may be gone or a friend's, arrays of anything."""
    ids = [*(node.id for node in r.sample(nodes, min(8, len(nodes)))), "gone", "", None, nasty_text(r)]
    cells = [tuple(r.choices(ids, k=r.randint(0, 6))) if r.random() < 0.85 else None for _ in range(4)]
    trip = r.choice(trip_ids)
    return EventRow(
        *(nasty_id(r, "e", case), user.id, trip, r.choice(DAYS), nasty_text(r), nasty_text(r), *cells[:3]),
        surface=nasty_text(r),
        latency_ms=r.choice((None, 0, -(2**31))),
        # One whose trip is gone is counted as that, unless its date is wild: this one's is not.
        created_at=_wild(r) if trip in there else EPOCH,
        session_id=r.choice((None, "", nasty_text(r))),
        shadow_ranked_ids=cells[3],
    )


# ------------------------------------------------------------------------------------------ what is found, and by whom


def set_aside(bad: Bad, options: Settings) -> dict[str, dict[str, int]]:
    """What a run is to reject: users whose every seed is of a trip without a date, and trips whose user is gone.

    So too events whose user is gone, where events are read back from the database: with those of other users.
    """
    known = {user.id for user in bad.stored.users}
    shadow = {
        user.id for user in bad.stored.users if user.email is not None and user.email.startswith(options.shadow_prefix)
    }
    dated, undated = set(), set()
    for trip in bad.stored.trips:
        if isinstance(trip.persona_seed, Raw) and isinstance(as_jsonb_keeps_it(trip.persona_seed.text), dict):
            (undated if trip.created_at in INFINITE else dated).add(trip.user_id)
    lonely = len((undated - dated) & shadow)
    trips, events = (sum(row.user_id not in known for row in rows) for rows in (bad.stored.trips, bad.stored.events))
    found = {
        "seeds": {"created_us nullability": lonely},
        "trips": {"user_is_gone": trips},
        "events": {"user_is_gone": events * (options.audience != "shadow")},
    }
    return {frame: rules for frame, rules in found.items() if any(rules.values())}


def smallest(cases: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> Sequence[int]:
    """Cases that fail together, halved for as long as a half fails alone."""
    while len(cases) > 1:
        half = len(cases) // 2
        failing = next((part for part in (cases[:half], cases[half:]) if fails(part)), None)
        if failing is None:
            break
        cases = failing
    return cases
