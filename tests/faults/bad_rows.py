"""The corpus: bad rows by name, each a user of their own in one database, and what is to become of each.

What a row comes to is written down here by hand: what PersonaDimension says then, how many ranking events there are, and the
findings that count it, by the names that a run's report has for them. One night is run for all of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from tests.faults.bad_data import UNKNOWN_STATUS, NaN, as_jsonb_keeps_it
from tests.property.in_database import Raw
from tests.property.oracle import NO_SEED, EventRow, Moment, Node, PersonaRow, Signal, Slot, Trip, User, World
from tests.property.worlds import ELEVEN, TRAPS

CATEGORIES = (*ELEVEN, "unknown to the model", "user_id", "*", "^.*$", 'fine "dining"', "\n\x01", "\U0001f600", " ")
"""The enum has categories that the model does not know, some of them with a name that something may stumble over."""

START = datetime.fromisoformat("2024-05-01 10:00:00")
CREATED = datetime.fromisoformat("2024-01-01 00:00:00.001")
ROME = "Rome"

NO_PERSONA = "shadow_users_without_persona"
UNKNOWN = "affinities_dropped: unknown_category"
NO_NUMBER = "affinities_dropped: not_a_finite_number"
NO_OPENNESS = "openness_dropped: not_a_finite_number"
DAY_WITHOUT_PERSONA = "days_without_event: user_without_persona"
DAY_WITHOUT_NODES = "days_without_event: city_without_nodes"
DAY_OUT_OF_RANGE = "days_without_event: date_out_of_range"
OUTSIDE = "positives_outside_candidates"
NO_DATE = "set_aside: seeds created_us nullability"
USER_GONE = "set_aside: trips user_is_gone"


@dataclass(frozen=True)
class Row:
    """A user with one trip of one day with one slot; whatever differs from the plain is what is bad.

    `says` is what PersonaDimension is to say of some dimensions, None where it is to say nothing at all; `events` counts the
    ranking events; `finds` has the findings by name. `selected` are the nodes of the first event, in their order.
    """

    seed: str | None = "{}"
    email: str | None = None
    city: str = ROME
    start: Moment = START
    created: Moment = CREATED
    days: Sequence[int] = (1,)
    slots: Sequence[tuple[str | None, int, str]] = (("n1", 0, "confirmed"),)
    second: tuple[Moment, str] | None = None
    user_id: str | None = None
    user_gone: bool = False
    trip_gone: bool = False
    says: Mapping[str, str] | None = field(default_factory=dict)
    events: int = 1
    selected: Sequence[str] | None = None
    finds: Mapping[str, int] = field(default_factory=dict)


def _no_object(seed: str | None) -> Row:
    return Row(seed, says=None, events=0, finds={NO_PERSONA: 1, DAY_WITHOUT_PERSONA: 1})


def _pace(seed: str, value: str, source: str = "onboarding") -> Row:
    return Row(seed, says={"pace_preference": value, "pace_preference source": source})


def _openness(number: str, value: str | None) -> Row:
    """`value` None: it counts as missing."""
    says = {"cuisine_openness": value or "0.6", "cuisine_openness source": "onboarding" if value else "default"}
    beyond = value is None and number[-1].isdigit()
    return Row(f'{{"cuisine_openness": {number}}}', says=says, finds={NO_OPENNESS: 1} if beyond else {})


def _affinities(text: str, value: str | None, unknown: int = 0, no_number: int = 0) -> Row:
    """`value` None: the vector is rebuilt."""
    says = {"category_affinities source": "onboarding" if value else "reconstructed"}
    if value:
        says["category_affinities"] = value
    return Row(f'{{"category_affinities": {text}}}', says=says, finds={UNKNOWN: unknown, NO_NUMBER: no_number})


def _stranger(email: str) -> Row:
    """An email that only seems to begin with the prefix: nothing is to become of it."""
    return Row(email=email, says=None, events=0)


def _out_of_range(start: Moment, days: Sequence[int] = (1,), events: int = 0) -> Row:
    return Row(start=start, days=days, events=events, finds={DAY_OUT_OF_RANGE: len(days) - events})


NOT_OBJECTS = {
    "no seed": None,
    "a seed that is JSON's null": "null",
    "a seed that is true": "true",
    "a seed that is a number": "-1e3",
    "a seed that is a text": '"slow"',
    "a seed that is an object in a text": '"{\\"pace\\": \\"slow\\"}"',
    "a seed that is an empty list": "[]",
    "a seed that is a list of objects": '[{"pace": "slow"}]',
    "a seed that is 6,000 lists deep": "[" * 6_000 + "]" * 6_000,
}

LABELS = {
    "an empty seed": _pace("{}", "moderate", "default"),
    "a label that is empty": _pace('{"pace": ""}', ""),
    "a label with spaces around": _pace('{"pace": " slow "}', " slow "),
    "a label in capitals": _pace('{"pace": "SLOW"}', "SLOW"),
    "a label that is NULL in letters": _pace('{"pace": "NULL"}', "NULL"),
    "a label that looks like an array": _pace('{"pace": "{a,\\"b\\"}"}', '{a,"b"}'),
    "a label of control characters": _pace('{"pace": "\\u0001\\u001f\\u001e\\u0002\\u007f"}', "\x01\x1f\x1e\x02\x7f"),
    "a label with a surrogate pair": _pace('{"pace": "\\ud83d\\ude00"}', "\U0001f600"),
    "a label in composed form": _pace('{"pace": "\u00e9"}', "\u00e9"),
    "a label in decomposed form": _pace('{"pace": "e\\u0301"}', "e\u0301"),
    "a label of noncharacters": _pace('{"pace": "\\ufffe\\uffff"}', "\ufffe\uffff"),
    "a label of escapes": _pace('{"pace": "\\/\\\\\\"\\b\\f\\n\\r\\t"}', '/\\"\b\f\n\r\t'),
    "a label of 100,000 equal characters": _pace('{"pace": "' + "x" * 100_000 + '"}', "x" * 100_000),
    "a label that is a number": _pace('{"pace": 1}', "moderate", "default"),
    "a label that is true": _pace('{"pace": true}', "moderate", "default"),
    "a label that is null": _pace('{"pace": null}', "moderate", "default"),
    "a label that is a list": _pace('{"pace": ["slow"]}', "moderate", "default"),
    "a label that is an object": _pace('{"pace": {"pace": "slow"}}', "moderate", "default"),
    "a label that comes twice": _pace('{"pace": "slow", "pace": "fast"}', "fast"),
    "a label that comes again as null": _pace('{"pace": "slow", "pace": null}', "moderate", "default"),
    "a label whose key is escaped": _pace('{"p\\u0061ce": "slow"}', "slow"),
    "a label whose key is in capitals": _pace('{"PACE": "slow"}', "moderate", "default"),
    "a label beside a blob of 1 MB": _pace('{"blob": "' + "0123456789" * 100_000 + '", "pace": "slow"}', "slow"),
    "a label beside 6,000 lists in each other": _pace(
        '{"a": ' + "[" * 6_000 + "]" * 6_000 + ', "pace": "slow"}', "slow"
    ),
    "a label beside 20,000 others": _pace(
        "{" + "".join(f'"k{n}": {n}, ' for n in range(20_000)) + '"pace": "slow"}', "slow"
    ),
}

NUMBERS = {
    "1e999": None,
    "-1e999": None,
    "9" * 400: None,
    "-" + "9" * 5_000: None,
    "1.7976931348623159e308": None,
    "1.7976931348623157e308": "1.7976931348623157e+308",
    "1e-999": "0",
    "-1e-999": "0",
    "-0": "0",
    "-0.0": "0",
    "2e-324": "0",
    "3e-324": "5e-324",
    "0." + "9" * 400: "1",
    "0." + "0" * 400 + "1": "0",
    "0." + "3" * 16_000: "0.3333333333333333",
    "9007199254740993": "9007199254740992",
    "1E+2": "100",
    "2.50": "2.5",
    "-3": "-3",
    "1e16": "1e+16",
    "0.00001": "1e-05",
    "0.30000000000000004": "0.30000000000000004",
    '"0.85"': None,
    '"NaN"': None,
    "true": None,
    "null": None,
    "[0.85]": None,
}
"""What `cuisine_openness` becomes, by what the seed has; None: it counts as missing."""

VECTORS = {
    "no category that there is": _affinities('{"gaming": 0.5, "Dining": 1, "": 0}', None, unknown=3),
    "a category that the model does not know": _affinities(
        '{"unknown to the model": 0.25, "user_id": 0.5}', '{"unknown to the model": 0.25, "user_id": 0.5}'
    ),
    "categories with nasty names": _affinities(
        '{"^.*$": 1, "*": 0, "\\n\\u0001": 0.5}', '{"\\n\\u0001": 0.5, "*": 0.0, "^.*$": 1.0}'
    ),
    "affinities below 0 and above 1": _affinities(
        '{"dining": -0.2, "drinks": 1.5, "culture": 1e300, "active": -1e300}',
        '{"active": 0.0, "culture": 1.0, "dining": 0.0, "drinks": 1.0}',
    ),
    "affinities beyond float64": _affinities(
        '{"dining": 1e999, "drinks": -1e999, "culture": 0.5}', '{"culture": 0.5}', 0, 2
    ),
    "an affinity of 400 digits": _affinities(
        '{"dining": 0.' + "5" * 400 + ', "drinks": ' + "9" * 400 + "}", '{"dining": 0.555556}', 0, 1
    ),
    "affinities near a rounding": _affinities(
        '{"dining": 0.1234565, "drinks": 0.0000005, "culture": 0.0000015, "active": 0.9999995}',
        '{"active": 1.0, "culture": 2e-06, "dining": 0.123456, "drinks": 0.0}',
    ),
    "affinities that are no numbers": _affinities(
        '{"dining": "0.5", "drinks": true, "culture": null, "active": [1], "wellness": {"a": 1}, "outdoors": "NaN"}',
        None,
        no_number=6,
    ),
    "an affinity that comes twice": _affinities('{"dining": 0.1, "dining": 0.9}', '{"dining": 0.9}'),
    "an affinity that comes again as a text": _affinities('{"dining": 0.1, "dining": "x"}', None, no_number=1),
    "affinities that are a list": _affinities("[0.5]", None),
    "affinities that are a text": _affinities('"{\\"dining\\": 0.5}"', None),
    "affinities that are empty": _affinities("{}", None),
    "20,000 affinities for nothing": _affinities(
        "{" + ", ".join(f'"k{n}": {n}' for n in range(20_000)) + ', "dining": 1}', '{"dining": 1.0}', unknown=20_000
    ),
    "an affinity 5,000 objects deep": _affinities(
        '{"dining": ' + '{"a":' * 5_000 + "1" + "}" * 5_000 + "}", None, no_number=1
    ),
}

DATES = {
    "a trip that starts at infinity": _out_of_range("infinity"),
    "a trip that starts at -infinity": _out_of_range("-infinity"),
    "a trip that starts before all years": _out_of_range("4713-11-24 00:00:00 BC"),
    "a trip that starts after all years": _out_of_range("294276-12-31 23:59:59.999"),
    "a trip that starts in the year 10000": _out_of_range("10000-01-01 00:00:00"),
    "a trip that starts in the year 10000, and has a day before": _out_of_range("10000-01-01 00:00:00", (0,)),
    "a trip that leaves the year 9999": _out_of_range(datetime.fromisoformat("9999-12-30 23:59:59.999"), (1, 2, 3), 2),
    "a trip that reaches before the year 1": _out_of_range(datetime.fromisoformat("0001-01-01 00:00:00"), (1, 0), 1),
    "a day 0": Row(days=(0,)),
    "a day before the first": Row(days=(-400,)),
    "the last day that there is": _out_of_range(START, (2**31 - 1,)),
    "the first day that there is": _out_of_range(START, (-(2**31),)),
    "a trip made at infinity": Row(
        created="infinity", says=None, events=0, finds={NO_DATE: 1, NO_PERSONA: 1, DAY_WITHOUT_PERSONA: 1}
    ),
    "a trip made at -infinity": Row(
        created="-infinity", says=None, events=0, finds={NO_DATE: 1, NO_PERSONA: 1, DAY_WITHOUT_PERSONA: 1}
    ),
    "a trip made too late for any clock": Row(
        created="294276-12-31 23:59:59.999",
        says=None,
        events=0,
        finds={NO_DATE: 1, NO_PERSONA: 1, DAY_WITHOUT_PERSONA: 1},
    ),
    "a trip made at -infinity before another": Row(
        '{"pace": "slow"}',
        created="-infinity",
        second=(CREATED, '{"pace": "fast"}'),
        says={"pace_preference": "fast", "trip_count": "returning"},
    ),
    "a trip made before all years": Row(created="4713-11-24 00:00:00 BC"),
    "a trip made in the year 293999": Row(created="293999-12-31 23:59:59.999"),
}

SLOTS = {
    "places in the order of the ends of their type": Row(
        slots=[("n2", 2**31 - 1, "active"), ("n3", -(2**31), "confirmed"), ("n1", 0, "completed")],
        selected=["n3", "n1", "n2"],
    ),
    "a slot with a status that nobody knows": Row(slots=[("n1", 0, UNKNOWN_STATUS)], selected=[]),
    "a slot without a node": Row(slots=[(None, 0, "confirmed")], selected=[]),
    "a node twice on a day": Row(
        slots=[("n1", 1, "confirmed"), ("n2", 0, "active"), ("n1", 2, "active")], selected=["n2", "n1"]
    ),
    "a slot whose node is gone": Row(slots=[("gone", 0, "confirmed")], selected=["gone"], finds={OUTSIDE: 1}),
    "a slot whose node is archived": Row(
        slots=[("archived", 0, "confirmed")], selected=["archived"], finds={OUTSIDE: 1}
    ),
    "a slot whose node is in another city": Row(
        slots=[("twenty.0", 0, "confirmed")], selected=["twenty.0"], finds={OUTSIDE: 1}
    ),
    "a trip without slots": Row(days=(), events=0),
    "a slot whose trip is gone": Row(trip_gone=True, says=None, events=0, finds={NO_PERSONA: 1}),
    "a trip whose user is gone": Row(user_gone=True, says=None, events=0, finds={USER_GONE: 1}),
}

CITY_NAMES = (
    "",
    " ",
    ".",
    "..",
    "../x",
    "a/b",
    "\\",
    "CON",
    "007",
    "%2F",
    "city=x",
    "\n",
    "\U0001f600",
    "x" * 300,
    "{a,b}",
    "NULL",
)
SIZED = {"none": 0, "one": 1, "twenty": 20, "twenty-one": 21}

CITIES = {
    **{f"a city called {name[:20]!r}": Row(city=name, slots=[(f"in {name}", 0, "confirmed")]) for name in CITY_NAMES},
    "a city without places": Row(city="none", events=0, finds={DAY_WITHOUT_NODES: 1}),
    "a city of one place": Row(city="one", slots=[("one.0", 0, "confirmed")]),
    "a city of twenty places": Row(city="twenty", slots=[("twenty.19", 0, "confirmed")]),
    "a city of twenty-one places": Row(city="twenty-one", slots=[("twenty-one.0", 0, "skipped")], selected=[]),
    "a city whose places are all archived": Row(city="Pompeii", slots=(), days=(), events=0),
    "a city of places that are nowhere": Row(city="nowhere", slots=[("nowhere.0", 0, "confirmed")]),
}

SHADOWS = (
    "shadow-%",
    "shadow-_",
    "shadow-\\",
    "shadow-'",
    "shadow-\u00e9",
    "shadow-e\u0301",
    "shadow-\u202e",
    "shadow-\n",
    "shadow-",
)
STRANGERS = (
    *("Shadow-x", "SHADOW-x", "shadow_x", "shadowxx", "shado%", "shadow", "", " shadow-x", "xshadow-x", "%shadow-x"),
    *("\u0455hadow-x", "sh\u0430dow-x", "\uff53hadow-x", "shadow\u2010x", "shadow\u2212x", "sha\u200bdow-x"),
    *("\u200bshadow-x",),
    *("s\u0127adow-x", "\ufeffshadow-x", "\u017fhadow-x", "SHADOW-\u0130"),
)

EMAILS = {
    **{f"the email {email!r} of a shadow user": Row(email=email) for email in SHADOWS},
    **{f"the email {email!r} of somebody else": _stranger(email) for email in STRANGERS},
}

LONG = ("x" * 10_000, "\u6771" * 5_000, "".join(f"{n * n % 997:03}" for n in range(200)))

IDS = {
    **{f"an id that begins with {trap!r}": Row(user_id=trap) for trap in TRAPS if trap},
    **{f"an id of {len(start.encode()):,} bytes": Row(user_id=start) for start in LONG},
}

CORPUS: dict[str, Row] = {
    **{name: _no_object(seed) for name, seed in NOT_OBJECTS.items()},
    **LABELS,
    **{f"an openness of {number[:30]} ({len(number)})": _openness(number, value) for number, value in NUMBERS.items()},
    **VECTORS,
    **DATES,
    **SLOTS,
    **CITIES,
    **EMAILS,
    **IDS,
}


def catalogue() -> tuple[Node, ...]:
    """The places of the corpus: Rome's, those of the cities with a size or a name, and some that are odd themselves."""
    plain = Node("", ROME, "culture", "approved", "", 41.9, 12.5)
    odd = (math.nan, math.inf, -math.inf, 1e300)
    return (
        *(replace(plain, id=f"n{n}", category=CATEGORIES[n % len(CATEGORIES)]) for n in range(16)),
        replace(plain, id="n16", status=UNKNOWN_STATUS),
        replace(plain, id="archived", status="archived"),
        replace(plain, id="buried", city="Pompeii", status="archived"),
        *(replace(plain, id=f"{city}.{n}", city=city) for city, size in SIZED.items() for n in range(size)),
        *(replace(plain, id=f"in {name}", city=name, name=name) for name in CITY_NAMES),
        *(replace(plain, id=f"nowhere.{n}", city="nowhere", latitude=at, longitude=-at) for n, at in enumerate(odd)),
    )


def others() -> tuple[tuple[PersonaRow, ...], tuple[EventRow, ...], tuple[Signal, ...]]:
    """Rows of users who are gone, which are nobody's to touch, and of trips that are."""
    moment = datetime.fromisoformat("2024-06-01")
    gone = ("gone {user}", "gone {trip}")
    events = (
        EventRow("e1", "u: no seed", gone[1], 1, "other", "1", ("n1",), None, (None, "n1"), "itinerary", None, moment),
        EventRow("e2", gone[0], gone[1], 1, "other", "1", ("n1",), ("n1",), ("n1",), "itinerary", None, "infinity"),
        EventRow(
            "e3", "u: the email '' of somebody else", gone[1], 1, "other", "1", None, None, None, "", None, moment
        ),
    )
    personas = (PersonaRow("p1", gone[0], "pace_preference", "slow", NaN(), "hand", moment, moment),)
    signals = (
        Signal("g1", gone[0], None, None, None, "view", None),
        Signal("g2", "u: no seed", gone[1], "gone", "gone", "skip", None),
    )
    return personas, events, signals


def user_of(name: str) -> str:
    """The id of a row's user."""
    row = CORPUS[name]
    return f"{row.user_id or ''}u: {name}"


def worlds(names: Sequence[str]) -> tuple[World, World]:
    """The world of these rows, as stored and as the oracle is to judge it."""
    users, trips, judged, slots = [], [], [], []
    for name in names:
        row, user = CORPUS[name], user_of(name)
        if not row.user_gone:
            users.append(User(user, f"shadow-{name}" if row.email is None else row.email))
        trip = Trip(f"{row.user_id or ''}t: {name}", user, row.city, row.start, row.created, NO_SEED)  # type: ignore[arg-type]
        own = [] if row.trip_gone else [(trip, row.seed)]
        if row.second is not None:
            own.append((replace(trip, id=f"second {trip.id}", created_at=row.second[0]), row.second[1]))
        for each, seed in own:
            trips.append(replace(each, persona_seed=NO_SEED if seed is None else Raw(seed)))
            judged.append(replace(each, persona_seed=_kept(each.created_at, seed)))
        slots += [
            Slot(f"{row.user_id or ''}s{place}.{day}: {name}", trip.id, node, day, order, status)
            for day in row.days
            for place, (node, order, status) in enumerate(row.slots)
        ]
    personas, events, signals = others()
    stored = World(tuple(users), tuple(trips), tuple(slots), catalogue(), signals, CATEGORIES, personas, events)
    return stored, replace(stored, trips=tuple(judged))


NO_DATES = ("infinity", "-infinity", "294276-12-31 23:59:59.999")


def _kept(created: Moment, seed: str | None) -> object:
    """The seed as jsonb keeps it; none where the trip has no date that a persona row can carry."""
    if seed is None or created in NO_DATES:
        return NO_SEED
    if "[" * 1_000 in seed or '{"a":' * 1_000 in seed:  # deeper than Python reads
        seed = seed.replace("[" * 6_000 + "]" * 6_000, "[]").replace('{"a":' * 5_000 + "1" + "}" * 5_000, "[]")
    return as_jsonb_keeps_it(seed)


def findings(names: Sequence[str]) -> Counter[str]:
    """All findings of these rows together."""
    total: Counter[str] = Counter()
    for name in names:
        total.update({finding: number for finding, number in CORPUS[name].finds.items() if number})
    return total
