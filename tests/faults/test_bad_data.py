"""Bad data: each bad row is counted under a name or ends the run in plain words, and no row that is written is wrong.

What is written and published is compared with the oracle's, row by row: for a corpus of rows by name (`bad_rows`), and for a
fuzzer's by number (`bad_data`), whose failing cases are found and told one by one.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import polars as pl
import psycopg
import pytest

import etl
from etl.errors import DataError, SchemaError
from etl.pipeline import database
from etl.postgres.naming import Naming
from etl.postgres.schema.ddl import schema_sql
from etl.settings.sources import load_settings
from etl.snapshots.validation import validate_snapshot
from etl.transform.personas import read_affinities
from etl.transform.schemas import Personas
from tests.faults import bad_rows
from tests.faults.bad_data import (
    UNKNOWN_STATUS,
    Bad,
    LooseDatabases,
    fuzzed,
    fuzzed_settings,
    number_text,
    set_aside,
    smallest,
)
from tests.property import oracle
from tests.property.in_database import Databases, Raw, store, written
from tests.property.oracle import NO_SEED, Settings
from tests.property.test_night import MODEL, the_night_is_the_oracle_s
from tests.property.worlds import ELEVEN
from tests.states import data_files, database_state, folder_state

KEEP_ALL = Settings(min_catalog=1, small_catalog="keep", negatives=("ranking", "shown", "catalog:2"), split="last-trip")
EVERYBODY = replace(KEEP_ALL, audience="all")


@pytest.fixture(scope="module")
def databases(make_database) -> Databases:
    return LooseDatabases(make_database)


def named(counts: dict[str, Any]) -> Counter[str]:
    """What a run found, by the names that the corpus has for it."""
    found = {
        "shadow_users_without_persona": counts["shadow_users_without_persona"],
        "positives_outside_candidates": counts["positives_outside_candidates"],
    }
    for kind in ("affinities_dropped", "openness_dropped", "days_without_event"):
        found |= {f"{kind}: {reason}": number for reason, number in counts[kind].items()}
    for frame, rules in counts["set_aside"].items():
        found |= {f"set_aside: {frame} {rule}": number for rule, number in rules.items()}
    return Counter({name: number for name, number in found.items() if number})


# --------------------------------------------------------------------------------------------------------- the corpus


@dataclass(frozen=True)
class Night:
    """What a night left in a database: by user the persona values and sources, and the ranking events in day order."""

    says: dict[str, dict[str, str]]
    events: dict[str, list[oracle.EventRow]]

    @classmethod
    def left_in(cls, url: str) -> Night:
        """As it stands there now."""
        night = cls({}, {})
        personas, events, _, _ = written(url)
        for row in personas:
            own = night.says.setdefault(row.user_id, {})
            own |= {row.dimension: row.value, f"{row.dimension} source": row.source}
        for event in sorted(events, key=lambda event: event.day_number):
            night.events.setdefault(event.user_id, []).append(event)
        return night


def test_each_bad_row_comes_to_what_is_written_down_and_is_counted(databases, tally):
    """All rows of the corpus in one database; the oracle says that every row and every file is right."""
    stored, judged = bad_rows.worlds(list(bad_rows.CORPUS))
    bad = Bad(databases, stored, judged)
    report = the_night_is_the_oracle_s(bad, judged, KEEP_ALL, EVERYBODY)
    night = Night.left_in(bad.url)
    wrong = {name: difference for name in bad_rows.CORPUS if (difference := _difference(night, name))}
    assert wrong == {}
    assert named(report.counts) == bad_rows.findings(list(bad_rows.CORPUS))
    tally("bad rows of the corpus", len(bad_rows.CORPUS))


def _difference(night: Night, name: str) -> dict[str, Any]:
    """What a row came to and was not to, and the other way round: (found, expected) by what it is about."""
    row, user = bad_rows.CORPUS[name], bad_rows.user_of(name)
    says = night.says.get(user)
    events = [event for event in night.events.get(user, []) if event.model_name == "llm_ranker"]
    found: dict[str, Any] = {"values": says and len(says), "events": len(events)}
    expected: dict[str, Any] = {
        "values": row.says if row.says is None else 2 * len(oracle.DIMENSIONS),
        "events": row.events,
    }
    for key, value in (row.says or {}).items():
        found[key], expected[key] = (says or {}).get(key), value
    if row.selected is not None:
        found["selected"], expected["selected"] = events and events[0].selected_ids, tuple(row.selected)
    return {key: (found[key], expected[key]) for key in found if found[key] != expected[key]}


def test_the_oracle_finds_in_each_row_alone_what_is_written_down():
    """So that no row's finding is another's."""
    for name in bad_rows.CORPUS:
        _, world = bad_rows.worlds([name])
        personas, of_personas = oracle.personas(world, KEEP_ALL, MODEL)
        _, of_events = oracle.events(world, personas, KEEP_ALL)
        found = Counter(
            {
                bad_rows.NO_PERSONA: of_personas["users_without_persona"],
                bad_rows.UNKNOWN: of_personas["affinities_unknown_category"],
                bad_rows.NO_NUMBER: of_personas["affinities_not_a_number"],
                bad_rows.NO_OPENNESS: of_personas["openness_not_a_number"],
                bad_rows.DAY_WITHOUT_PERSONA: of_events["user_without_persona"],
                bad_rows.DAY_WITHOUT_NODES: of_events["city_without_nodes"],
                bad_rows.DAY_OUT_OF_RANGE: of_events["date_out_of_range"],
                bad_rows.OUTSIDE: of_events["positives_outside_candidates"],
            }
        )
        expected = bad_rows.findings([name])
        for finding in (bad_rows.NO_DATE, bad_rows.USER_GONE):  # not the oracle's to count
            del expected[finding]
        assert +found == expected, name


# --------------------------------------------------------------------------------------------- what ends a run, and says so

RANDOM_HEX = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(200))


def stored_with(trip: dict[str, Any], user_id: str = "u") -> oracle.World:
    """A plain row of the corpus whose trip is changed."""
    world, _ = bad_rows.worlds(["an empty seed"])
    user = replace(world.users[0], id=user_id)
    trips = [replace(each, user_id=user_id, **trip) for each in world.trips]
    return replace(world, users=(user,), trips=tuple(trips), personas=(), events=(), signals=())


TOO_LONG = {
    "a label that does not compress": stored_with({"persona_seed": Raw(f'{{"pace": "{RANDOM_HEX[:6_000]}"}}')}),
    "a label of 1 MB": stored_with({"persona_seed": Raw(f'{{"pace": "{"x" * 1_000_000}"}}')}),
    "an id that fits where it is and nowhere else": stored_with({"persona_seed": Raw("{}")}, RANDOM_HEX[:2_690]),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_value_beyond_an_index_s_limit_is_told_with_table_and_remedy(databases, tmp_path, tally, name):
    """A btree row holds 2,704 bytes, compressed. PersonaDimension's index on (dimension, value) is the first to be met."""
    world = TOO_LONG[name]
    url = databases.holding(world)
    rows = database_state(url)
    with pytest.raises(DataError) as refused:
        etl.run(load_settings({"database_url": url, "out": str(tmp_path / "out")}, {}))
    said = str(refused.value)
    assert "PersonaDimension" in said
    assert "Shorten" in said
    assert "Nothing was written" in said
    assert RANDOM_HEX[:20] not in said
    assert "xxxxx" not in said
    assert len(said.splitlines()) == 1
    assert database_state(url) == rows
    assert folder_state(tmp_path / "out") == {}
    tally("bad rows of the corpus", 1)


# ----------------------------------------------------------------------------------------------- names and numbers


NAMES = (
    "user_id",
    "vector",
    "category",
    "affinity",
    "*",
    "^.*$",
    "",
    " ",
    '"',
    "\\",
    "\n\x01",
    "caf\u00e9",
    "cafe\u0301",
    "\U0001f600",
)


def test_a_category_may_have_the_name_of_a_column_or_read_as_a_pattern():
    vectors = {"a": {name: place / 100 for place, name in enumerate(NAMES)}, "b": {NAMES[0]: 1.0}, "c": {}}
    rows = pl.DataFrame(
        {
            "user_id": list(vectors),
            "dimension": "category_affinities",
            "value": [json.dumps(vector, ensure_ascii=False) for vector in vectors.values()],
            "confidence": 1.0,
            "source": "onboarding",
        }
    )
    found = read_affinities(Personas.cast(rows), NAMES)
    expected = {(user, name, number) for user, vector in vectors.items() for name, number in vector.items()}
    assert set(found.select("user_id", "category", "affinity").iter_rows()) == expected
    assert found.height == len(expected)


def test_every_affinity_that_can_be_written_is_read_back_as_it_was(effort):
    """Of the million and one that there are; their texts are Python's own, which the oracle writes, too."""
    millionths = range(0, 1_000_001, effort(37, 1))
    texts = [f'{{"dining": {number / 1e6!r}}}' for number in millionths]
    rows = pl.DataFrame(
        {"user_id": [str(n) for n in millionths], "dimension": "category_affinities", "value": texts, "confidence": 1.0}
    )
    found = read_affinities(Personas.cast(rows.with_columns(source=pl.lit("onboarding"))), ["dining"])
    assert found["affinity"].to_list() == [number / 1e6 for number in millionths]


def test_every_number_text_is_read_as_python_reads_it(effort):
    """Which is the nearest float64: numbers of jsonb come as their digits, written out, however many these are."""
    r = Random(0)  # noqa: S311 - no secret
    digits = [format(Decimal(number_text(r)), "f") for _ in range(effort(2_000, 50_000))]
    found = pl.Series(digits).cast(pl.Float64, strict=False).to_list()
    assert found == [float(text) for text in digits]


# --------------------------------------------------------------------------------------------------------- the fuzzer


WORLDS = 2, 44
"""How many worlds are fuzzed, quickly and in full."""

CASES = 150, 250
"""How many cases there are in each."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(WORLDS[metafunc.config.getoption("--full")]))


def the_fuzzed_night_is_the_oracle_s(databases: Databases, number: int, cases: Sequence[int]) -> None:
    options = fuzzed_settings(number)
    bad = fuzzed(databases, number, cases)
    report = the_night_is_the_oracle_s(bad, bad.judged, options)
    assert report.counts["set_aside"] == set_aside(bad, options)


def test_a_fuzzed_night_is_the_oracle_s(databases, number, effort, tally):
    """A failure is told by the fewest cases that fail, which this test finds again: the number is in its name."""
    cases = range(effort(*CASES))

    def failure(some: Sequence[int]) -> Exception | None:
        try:
            the_fuzzed_night_is_the_oracle_s(databases, number, some)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - whatever it is
            return error
        return None

    found = failure(cases)
    if found is not None:
        few = smallest(cases, lambda some: failure(some) is not None)
        rows = fuzzed(databases, number, few).stored
        pytest.fail(f"World {number}, cases {[*few]}: {type(found).__name__}: {found}\n{replace(rows, nodes=())}")
    tally("fuzzed persona seeds", len(cases))


def test_fuzzed_cases_do_not_depend_on_each_other(databases):
    """Else the cases that a failure is told by would not be the ones that failed."""
    together = fuzzed(databases, 3, range(40)).judged
    apart = [fuzzed(databases, 3, [case]).judged for case in range(40)]
    for table in ("users", "trips", "slots", "signals", "personas", "events"):
        assert getattr(together, table) == tuple(row for world in apart for row in getattr(world, table))
    assert all(world.nodes == together.nodes for world in apart)


def test_the_cases_that_fail_are_found():
    assert list(smallest(range(250), lambda some: 203 in some)) == [203]
    assert list(smallest(range(250), lambda some: {3, 203} <= {*some})) == [*range(250)]


def test_the_fuzzer_tries_what_it_is_to_try(databases):
    """A law that never meets its case proves nothing: each of these comes at least three times in the quick part."""
    seen: Counter[str] = Counter()
    for number in range(WORLDS[0]):
        seen.update(features(fuzzed(databases, number, range(CASES[0])), fuzzed_settings(number)))
    wanted = {
        *("a user who is gone", "a user who is nearly a shadow user", "a long id", "a slot whose node is gone"),
        *("a slot whose trip is gone", "an event whose trip is gone", "a trip made at no date", "a start out of range"),
        *("no seed", "no object", "a key twice", "an escaped key", "a number beyond float64", "a long number"),
        *("a persona row of somebody else", "an array with a null", "a null array", "an unknown status"),
        *("users_without_persona", "source_onboarding", "source_default", "source_reconstructed"),
        *("affinities_unknown_category", "affinities_not_a_number", "events", "user_without_persona"),
        *("city_without_nodes", "date_out_of_range", "positives", "positives_outside_candidates"),
    }
    assert {name for name in wanted if seen[name] < 3} == set()


def features(bad: Bad, options: Settings) -> Counter[str]:
    """How often a fuzzed world has what."""
    world, seen = bad.stored, Counter()
    users, trips = {user.id for user in world.users}, {trip.id for trip in world.trips}
    nodes, shadow = {node.id for node in world.nodes}, oracle.shadow_users(world, options)
    seen["a user who is gone"] += len({trip.user_id for trip in world.trips} - users)
    seen["a user who is nearly a shadow user"] += len(users - shadow)
    seen["a long id"] += sum(len(row.id) > 500 for row in (*world.users, *world.trips, *world.slots, *world.nodes))
    for slot in world.slots:
        seen["a slot whose node is gone"] += slot.node_id is not None and slot.node_id not in nodes
        seen["a slot whose trip is gone"] += slot.trip_id not in trips
        seen["an unknown status"] += slot.status == UNKNOWN_STATUS
    for event in world.events:
        seen["an event whose trip is gone"] += event.trip_id not in trips
        seen["a null array"] += event.selected_ids is None
        seen["an array with a null"] += None in (event.selected_ids or ())
    for trip, judged in zip(world.trips, bad.judged.trips, strict=True):
        text = trip.persona_seed.text if isinstance(trip.persona_seed, Raw) else ""
        seen["a trip made at no date"] += trip.created_at in {"infinity", "-infinity"}
        seen["a start out of range"] += isinstance(trip.start_date, str)
        seen["no seed"] += trip.persona_seed is NO_SEED
        seen["no object"] += bool(text) and not isinstance(judged.persona_seed, dict)
        seen["a key twice"] += bool(text) and not json.loads(text, object_pairs_hook=_each_once, parse_int=float)
        seen["an escaped key"] += "cuisine_openness" in str(judged.persona_seed) and '"cuisine_openness"' not in text
        seen["a number beyond float64"] += "e999" in text or "9" * 400 in text
        seen["a long number"] += "3" * 5_000 in text
    seen["a persona row of somebody else"] += sum(row.user_id in users - shadow for row in world.personas)
    personas, of_personas = oracle.personas(bad.judged, options, MODEL)
    _, of_events = oracle.events(bad.judged, personas, options)
    return seen + Counter(of_personas) + Counter(of_events)


def _each_once(pairs: list[tuple[str, Any]]) -> bool:
    """Whether a JSON object's keys are different ones, and those of the objects in it."""
    return len(dict(pairs)) == len(pairs) and all(value is not False for _, value in pairs)


# ------------------------------------------------------------------------------------------------ what others wrote


OTHER_ARRAYS = {
    "'{{n1,n2},{n3,n1}}'": ["n1", "n2", "n3"],
    "'{{{n1}},{{n3}}}'": ["n1", "n3"],
    "'[0:2]={n1,n2,n2}'": ["n1", "n2"],
    "ARRAY[NULL, NULL]::text[]": [],
    "'{NULL,\"NULL\"}'": ["NULL"],
    "'{\"\"}'": [""],
    "NULL": [],
}


def test_arrays_of_any_shape_are_read_element_by_element(databases, tmp_path):
    """text[] has no fixed number of dimensions, and need not begin at 1."""
    names = ["the email '' of somebody else"]
    world, _ = bad_rows.worlds(names)
    url = databases.holding(replace(world, events=()))
    user, trip = world.users[0].id, world.trips[0].id
    with psycopg.connect(url) as connection:
        for day, array in enumerate(OTHER_ARRAYS):
            connection.execute(
                f"""INSERT INTO "RankingEvent" ("id", "userId", "tripId", "dayNumber", "modelName", "modelVersion", "surface",
                "candidateIds", "rankedIds", "selectedIds") VALUES (%s, %s, %s, %s, 'm', '1', 's', {array}, {array}, {array})""",
                (f"e{day}", user, trip, day),
            )
    report = etl.export(
        load_settings({"database_url": url, "out": str(tmp_path), "audience": "real", "allow_empty": True}, {})
    )
    events = pl.read_parquet(Path(report.snapshot) / "events" / "**" / "*.parquet", hive_partitioning=False)
    for name in ("candidate_ids", "ranked_ids", "selected_ids"):
        assert events.sort("day_number")[name].to_list() == list(OTHER_ARRAYS.values())


def test_what_others_wrote_of_a_persona_is_published_as_far_as_it_is_one(make_database, tmp_path):
    """A number that is not finite is null. A dimension that stands there twice is neither, and counted."""
    names = ["the email '' of somebody else", "the email 'shadow' of somebody else"]
    world, _ = bad_rows.worlds(names)
    twice, odd = (user.id for user in world.users)
    rows = (
        (twice, "pace_preference", "slow", 1.0),
        (twice, "pace_preference", "fast", 1.0),
        (twice, "social_mode", "solo", 0.5),
        (odd, "cuisine_openness", "Infinity", float("nan")),
        (odd, "category_affinities", '{"dining": 5, "drinks": NaN, "culture": 1e999, "active": "0.5"}', float("-inf")),
    )
    url = LooseDatabases(make_database).holding(replace(world, personas=()))
    with psycopg.connect(url) as connection:
        connection.execute('DROP INDEX "PersonaDimension_userId_dimension_key"')
        for number, row in enumerate(rows):
            connection.execute(
                """INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "confidence", "source", "updatedAt")
                VALUES (%s, %s, %s, %s, %s, 'hand', now())""",
                (f"p{number}", *row),
            )
    report = etl.export(
        load_settings({"database_url": url, "out": str(tmp_path), "audience": "real", "allow_empty": True}, {})
    )
    assert report.counts["set_aside"]["personas"] == {"primary_key": 2}
    users = {row["user_id"]: row for row in pl.read_parquet(Path(report.snapshot) / "users.parquet").to_dicts()}
    assert (users[twice]["pace_preference"], users[twice]["social_mode"]) == (None, "solo")
    assert (users[odd]["cuisine_openness"], users[odd]["cuisine_openness_confidence"]) == (None, None)
    affinities = {name: users[odd][f"affinity_{name}"] for name in ("dining", "drinks", "culture", "active")}
    assert affinities == {"dining": 5.0, "drinks": None, "culture": None, "active": None}


# ----------------------------------------------------------------------------------------------------------- encodings


def accented() -> oracle.World:
    """A plain row of the corpus with letters that every encoding of Latin writes in another way than UTF-8."""
    world, _ = bad_rows.worlds(["an empty seed"])
    user, trip = replace(world.users[0], id="\u00fc", email="shadow-\u00e9"), world.trips[0]
    trip = replace(trip, user_id=user.id, city="K\u00f6ln", persona_seed=Raw('{"pace": "langs\u00e4m"}'))
    nodes = tuple(replace(world.nodes[0], id=f"\u00df{n}", city="K\u00f6ln", category="culture") for n in range(25))
    slots = tuple(replace(slot, node_id=nodes[3].id) for slot in world.slots)
    return oracle.World((user,), (trip,), slots, nodes, categories=ELEVEN)


def encoded_database(server_url: str, encoding: str) -> str:
    """The URL of a database in an encoding, with tables and nothing in them."""
    name = f"bpr_test_{encoding.lower()}_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        libc = "LOCALE_PROVIDER libc" if connection.info.server_version >= 150_000 else ""
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' {libc} LOCALE 'C'")
        connection.execute(f"ALTER DATABASE {name} SET client_encoding = 'UTF8'")
    url = urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    with psycopg.connect(url) as connection:
        connection.execute(schema_sql(Naming("model", "public")))
    return url


def test_what_others_say_of_the_client_s_encoding_changes_nothing(databases, tmp_path):
    """A role, a database, PGCLIENTENCODING and the URL can ask for another than UTF-8; the driver takes bytes for UTF-8."""
    url = databases.holding(accented())
    name = urlsplit(url).path[1:]
    plain = etl.run(
        load_settings({"database_url": url, "out": str(tmp_path / "a"), "min_catalog": 1, "allow_empty": True}, {})
    )
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE \"{name}\" SET client_encoding = 'LATIN1'")
    try:
        url += ("&" if "?" in url else "?") + "client_encoding=LATIN1"
        options = {"database_url": url, "out": str(tmp_path / "b"), "min_catalog": 1, "allow_empty": True}
        ran = etl.run(load_settings(options, {"PGOPTIONS": "-c client_encoding=LATIN1"}))
        exported = etl.export(load_settings(options, {}))
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" RESET client_encoding')
    assert data_files(ran.snapshot) == data_files(exported.snapshot) == data_files(plain.snapshot)
    users = pl.read_parquet(Path(ran.snapshot) / "users.parquet")
    assert users.select("user_id", "pace_preference").rows() == [("\u00fc", "langs\u00e4m")]


def test_a_database_in_another_encoding_is_refused_before_anything_is_read(server_url, tmp_path):
    """Orders and checksums are of UTF-8 bytes, and a database in LATIN1 has others."""
    url = encoded_database(server_url, "LATIN1")
    try:
        with psycopg.connect(url) as connection:
            store(connection, accented())
        rows = database_state(url)
        with pytest.raises(SchemaError, match=r"LATIN1.*UTF8"):
            etl.run(load_settings({"database_url": url, "out": str(tmp_path / "out")}, {}))
        assert database_state(url) == rows
        assert not (tmp_path / "out").exists()
    finally:
        dropped(server_url, url)


def test_a_database_without_encoding_is_read_as_far_as_it_holds_utf_8(server_url, tmp_path):
    url = encoded_database(server_url, "SQL_ASCII")
    options = {"database_url": url, "out": str(tmp_path / "out"), "min_catalog": 1, "allow_empty": True}
    try:
        with psycopg.connect(url) as connection:
            store(connection, accented())
        report = etl.run(load_settings(options, {}))
        users = pl.read_parquet(Path(report.snapshot) / "users.parquet")
        assert users.select("user_id", "pace_preference").rows() == [("\u00fc", "langs\u00e4m")]
        with psycopg.connect(url) as connection:
            connection.execute("""UPDATE "Trip" SET "city" = convert_from('\\xf6', 'SQL_ASCII')""")
            connection.commit()
            connection.execute("SET client_encoding = 'SQL_ASCII'")
            before = connection.execute("SELECT md5(string_agg(p::text, '')) FROM \"PersonaDimension\" p").fetchone()
        with pytest.raises(DataError, match="UTF8"):
            etl.run(load_settings(options, {}))
        with psycopg.connect(url) as connection:
            connection.execute("SET client_encoding = 'SQL_ASCII'")
            after = connection.execute("SELECT md5(string_agg(p::text, '')) FROM \"PersonaDimension\" p").fetchone()
        assert after == before
        assert (tmp_path / "out" / "LATEST").read_text() == Path(report.snapshot).name
    finally:
        dropped(server_url, url)


def dropped(server_url: str, url: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{urlsplit(url).path[1:]}" WITH (FORCE)')


# --------------------------------------------------------------------------------------------------- very many of them


def test_a_user_with_very_many_slots(databases, tmp_path, effort):
    """One day is as full as another user's whole year; SQL and the laws of `validate` judge, the oracle would take hours."""
    slots, full_day = effort(3_000, 100_000), effort(1_000, 5_000)
    world, _ = bad_rows.worlds(["an empty seed"])
    url = databases.holding(replace(world, slots=(), personas=(), events=(), signals=()))
    with psycopg.connect(url) as connection:
        connection.execute(
            """INSERT INTO "ItinerarySlot" SELECT 's' || n, (SELECT "id" FROM "Trip"), 'n' || n %% 17,
            CASE WHEN n <= %(day)s THEN 1 ELSE 2 + n %% 400 END, n * 7919 %% 100003,
            (ARRAY['confirmed', 'skipped', 'active', 'proposed'])[1 + n / 17 %% 4]::"SlotStatus"
            FROM generate_series(1, %(slots)s) n""",
            {"day": full_day, "slots": slots},
        )
    settings = load_settings(
        {"database_url": url, "out": str(tmp_path / "out"), "buckets": 7, "min_catalog": 1, "allow_empty": True}, {}
    )
    report = etl.run(settings)
    assert report.counts["source_rows"]["slots"] == slots
    assert report.counts["ranking_events"] == 401
    broken = {finding.law for finding in database.validate_database(settings).broken}
    assert broken == {"the design's validation query returns rows"}
    assert [finding for finding in validate_snapshot(Path(report.snapshot)) if finding.broken] == []
    with psycopg.connect(url) as connection:
        wrong = connection.execute(
            """SELECT count(*) FROM "RankingEvent" r WHERE "selectedIds" IS DISTINCT FROM (SELECT array_agg(node ORDER BY place)
            FROM (SELECT "activityNodeId" AS node, min(("sortOrder", "id" COLLATE "C")) AS place FROM "ItinerarySlot" s
            WHERE s."dayNumber" = r."dayNumber" AND "status" IN ('confirmed', 'active', 'completed') GROUP BY 1) d)"""
        ).fetchone()
    assert wrong == (0,)
