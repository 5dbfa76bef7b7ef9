"""Which rows a run replaces, keeps and exports, against a plain count of rows of any surface, model and dimension."""

from __future__ import annotations

import tempfile
from collections import Counter

import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st

import etl
from etl.settings.sources import load_settings

# Written from docs/contract.md, not from the code.
MADE_EVENT = ("itinerary", "llm_ranker", "0.1.0")
MADE_DIMENSIONS = {
    *("pace_preference", "budget_sensitivity", "social_mode", "time_orientation", "primary_interest"),
    *("cuisine_openness", "trip_count", "category_affinities"),
}

EVENTS = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from(["itinerary", "Itinerary", "discovery", "itinerary ", "it'in%"]),
        st.sampled_from(["llm_ranker", "llm\\_ranker", "scorer"]),
        st.sampled_from(["0.1.0", "0.1", "0.1.0-beta"]),
    ),
    max_size=12,
)
DIMENSIONS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["mood", "trip_count ", "Trip_count", "food_priority", "trip_counts"])),
    max_size=6,
    unique=True,
)


def users(connection: psycopg.Connection, *, shadow: bool) -> str:
    sign = "" if shadow else "NOT "
    found = connection.execute(
        f"""SELECT t."userId", t."id" FROM "Trip" t JOIN "User" u ON u."id" = t."userId"
        WHERE {sign}starts_with(u."email", 'shadow-') ORDER BY t."id" LIMIT 1"""
    ).fetchone()
    assert found is not None
    return found


@settings(max_examples=10)
@given(EVENTS, DIMENSIONS, st.booleans())
def test_rows_are_replaced_kept_and_exported_by_what_they_are(
    make_database, small_world_template, events, dimensions, keep
):
    url = make_database(small_world_template)
    with psycopg.connect(url, autocommit=True) as connection:
        # Real users' logged rows of the template are not what is counted here.
        connection.execute('DELETE FROM "RankingEvent"')
        owners = {shadow: users(connection, shadow=shadow) for shadow in (True, False)}
        for number, (shadow, surface, name, version) in enumerate(events):
            connection.execute(
                """INSERT INTO "RankingEvent" ("id", "userId", "tripId", "dayNumber", "modelName", "modelVersion", "candidateIds",
                "rankedIds", "selectedIds", "surface") VALUES (%s, %s, %s, 1, %s, %s, '{}', '{}', '{}', %s)""",
                (f"x{number}", *owners[shadow], name, version, surface),
            )
        for number, (shadow, dimension) in enumerate(dimensions):
            connection.execute(
                """INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "confidence", "source", "updatedAt")
                VALUES (%s, %s, %s, 'x', 1, 'inferred', now())""",
                (f"y{number}", owners[shadow][0], dimension),
            )
    foreign = Counter(tuple(event) for shadow, *event in events if shadow and tuple(event) != MADE_EVENT)
    other = Counter(dimension for shadow, dimension in dimensions if shadow and dimension not in MADE_DIMENSIONS)
    with tempfile.TemporaryDirectory() as out:
        given_ = {"database_url": url, "out": out, "keep_foreign_rows": keep}
        ran = etl.run(load_settings(given_, {}))
        exported = etl.export(load_settings({**given_, "audience": "all"}, {}))
    kinds = ran.counts["foreign_rows"]["kinds"]
    assert (
        Counter({(k["surface"], k["modelName"], k["modelVersion"]): k["rows"] for k in kinds if "surface" in k})
        == foreign
    )
    assert Counter({k["dimension"]: k["rows"] for k in kinds if "dimension" in k}) == other
    stays = lambda shadow, made: not shadow or (keep and not made)  # noqa: E731
    with psycopg.connect(url) as connection:
        rows = {id_ for (id_,) in connection.execute("""SELECT "id" FROM "RankingEvent" WHERE "id" LIKE 'x%'""")}
        rows |= {id_ for (id_,) in connection.execute("""SELECT "id" FROM "PersonaDimension" WHERE "id" LIKE 'y%'""")}
    expected = {f"x{n}" for n, (shadow, *event) in enumerate(events) if stays(shadow, tuple(event) == MADE_EVENT)}
    expected |= {f"y{n}" for n, (shadow, name) in enumerate(dimensions) if stays(shadow, name in MADE_DIMENSIONS)}
    assert rows == expected
    surfaces = Counter({"itinerary": ran.counts["ranking_events"]}) + Counter(e[1] for e in events if not e[0])
    assert exported.counts["surfaces"] == dict(surfaces)
