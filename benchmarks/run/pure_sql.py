"""The work of a run as INSERT ... SELECT inside the server, in one transaction. Timed by `benchmarks.run.run`.

It reads nothing out and publishes nothing. It decides what `run` decides, except for hashes: ids and the order of equal
affinities come from hashes that PostgreSQL has. Two more simplifications, both in its favour, make no difference in the
synthetic world: numbers are rounded from their decimals instead of from the float64, and dates outside the years 1 to 9999
and infinite dates are not looked for.
"""

from __future__ import annotations

import json

import psycopg

from benchmarks.harness.database import PREFIX, SEED, SHADOW
from benchmarks.run.row_by_row import BACKFILL, Rows
from etl.load.copy import REGISTRY
from etl.postgres.naming import quote_literal
from etl.transform.candidates import TOP_K
from etl.transform.personas import affinity_model
from etl.transform.ranking_events import MODEL_NAME, MODEL_VERSION, SURFACE

_MODEL = quote_literal(json.dumps(affinity_model().raw)) + "::jsonb"
_AXES = {
    "pace": "pace_preference",
    "budget_tier": "budget_sensitivity",
    "social_mode": "social_mode",
    "time_orientation": "time_orientation",
    "primary_interest": "primary_interest",
}
_DELTAS = ("pace", "budget", "social_mode", "time_orientation")
_AXIS_OF = dict(zip(_DELTAS, _AXES, strict=False))


def _default(axis: str) -> str:
    return quote_literal(str(affinity_model().default(axis)))


def _plain(axis: str) -> str:
    """Return a seed's label with synonyms resolved, as SQL."""
    label = f"CASE jsonb_typeof(seed->'{axis}') WHEN 'string' THEN seed->>'{axis}' ELSE {_default(axis)} END"
    return f"COALESCE(m.j->'label_synonyms'->'{axis}'->>({label}), {label})"


# Texts are ordered as bytes, as the contract says, which is faster than a locale's order too.
TRIPS = f"""
CREATE TEMP TABLE shadow_trip ON COMMIT DROP AS
SELECT t."id", t."userId", t."city", t."startDate", t."createdAt", t."personaSeed"
FROM "Trip" t JOIN "User" u ON u."id" = t."userId" WHERE starts_with(u."email", '{PREFIX}')
"""
SEEDS = """
CREATE TEMP TABLE first_seed ON COMMIT DROP AS
SELECT f.*, c.trips FROM (
  SELECT DISTINCT ON (t."userId") t."userId", t."createdAt", t."personaSeed" AS seed FROM shadow_trip t
  WHERE jsonb_typeof(t."personaSeed") = 'object' ORDER BY t."userId", t."createdAt", t."id" COLLATE "C"
) f JOIN (SELECT "userId", count(*) AS trips FROM shadow_trip GROUP BY 1) c USING ("userId")
"""

_LABELS = ",\n  ".join(
    f"('{dimension}', CASE jsonb_typeof(f.seed->'{axis}') WHEN 'string' THEN f.seed->>'{axis}' END, {_default(axis)})"
    for axis, dimension in _AXES.items()
)
_REBUILT = " + ".join(
    [
        "b.value::float8",
        *(
            f"COALESCE((m.j->'delta_by_{table}'->({_plain(axis)})->>b.key)::float8, 0)"
            for table, axis in _AXIS_OF.items()
        ),
    ]
)
_LOW, _HIGH = affinity_model().raw["clamp"]
_BASES = "m.j->'base_by_primary_interest'"
PERSONAS = f"""
INSERT INTO "PersonaDimension" ("id", "userId", "dimension", "value", "confidence", "source", "createdAt", "updatedAt")
WITH known AS MATERIALIZED (SELECT unnest(enum_range(NULL::"ActivityCategory"))::text AS category),
usable AS MATERIALIZED (
  SELECT f."userId", e.key AS category, LEAST(GREATEST(round((e.value #>> '{{}}')::numeric, 6), 0), 1) AS number
  FROM first_seed f CROSS JOIN LATERAL jsonb_each(
    CASE jsonb_typeof(f.seed->'category_affinities') WHEN 'object' THEN f.seed->'category_affinities' END) e
  WHERE jsonb_typeof(e.value) = 'number' AND e.key IN (SELECT category FROM known)
),
rebuilt AS (
  SELECT f."userId", b.key AS category, round(LEAST(GREATEST({_REBUILT}, {_LOW}), {_HIGH})::numeric, 6) AS number
  FROM first_seed f CROSS JOIN (SELECT {_MODEL} AS j) m CROSS JOIN LATERAL jsonb_each_text(
    COALESCE({_BASES}->({_plain("primary_interest")}), {_BASES}->{_default("primary_interest")})) b
  WHERE b.key IN (SELECT category FROM known)
    AND NOT EXISTS (SELECT FROM usable u WHERE u."userId" = f."userId")
),
vector AS (
  SELECT "userId", '{{' || string_agg(to_json(category) || ': ' || CASE WHEN number IN (0, 1)
    THEN number::int || '.0' ELSE number::float8::text END, ', ' ORDER BY category COLLATE "C") || '}}' AS value, source
  FROM (SELECT *, 'onboarding' AS source FROM usable UNION ALL SELECT *, 'reconstructed' FROM rebuilt) v
  GROUP BY "userId", source
),
found AS (
  SELECT f."userId", f."createdAt", v.dimension, COALESCE(v.value, v.instead) AS value,
    CASE WHEN v.value IS NULL THEN 'default' ELSE 'onboarding' END AS source
  FROM first_seed f CROSS JOIN LATERAL (VALUES
  {_LABELS},
  ('cuisine_openness', CASE jsonb_typeof(f.seed->'cuisine_openness') WHEN 'number'
    THEN (f.seed->>'cuisine_openness')::float8::text END, {_default("cuisine_openness")}),
  ('trip_count', CASE WHEN f.trips = 1 THEN 'first_trip' WHEN f.trips <= 3 THEN 'returning' ELSE 'frequent' END, NULL)
  ) AS v (dimension, value, instead)
  UNION ALL
  SELECT f."userId", f."createdAt", 'category_affinities', COALESCE(v.value, '{{}}'), COALESCE(v.source, 'reconstructed')
  FROM first_seed f LEFT JOIN vector v USING ("userId")
)
SELECT md5(concat_ws(chr(1), 'persona_dimension', {SEED}, "userId", dimension))::uuid::text, "userId", dimension, value,
  CASE source WHEN 'onboarding' THEN 1.0 WHEN 'reconstructed' THEN 0.95 ELSE 0.0 END, source, "createdAt", "createdAt"
FROM found
"""

# Once per (user, city) and not per day; the hash of a text once per user and per node, and mixed per pair.
CANDIDATES = f"""
CREATE TEMP TABLE candidate ON COMMIT DROP AS
WITH vector AS MATERIALIZED (
  SELECT p."userId", hashtextextended(p."userId", {SEED}) AS h, p."value"::jsonb AS affinities FROM "PersonaDimension" p
  WHERE p."dimension" = 'category_affinities' AND p."userId" IN (SELECT "userId" FROM first_seed)
),
pair AS MATERIALIZED (SELECT DISTINCT "userId", "city" FROM shadow_trip)
SELECT p."userId", p."city", t.candidates, t.ranked
FROM pair p JOIN vector v USING ("userId") CROSS JOIN LATERAL (
  SELECT array_agg(id ORDER BY id) AS candidates, array_agg(id ORDER BY affinity DESC, tie, id) AS ranked FROM (
    SELECT n.id, COALESCE((v.affinities->>n."category"::text)::float8, {affinity_model().default_affinity}) AS affinity,
      hashint8extended(v.h # n.h, 0) AS tie
    FROM node n WHERE n."city" = p."city" ORDER BY affinity DESC, tie, n.id LIMIT {TOP_K}
  ) top
) t WHERE t.ranked IS NOT NULL
"""
NODES = f"""
CREATE TEMP TABLE node ON COMMIT DROP AS
SELECT "id" COLLATE "C" AS id, "city", "category", hashtextextended("id", {SEED}) AS h
FROM "ActivityNode" WHERE "status" <> 'archived'
"""
# Repetitions within a day are rare: the array is made again only where counting finds one.
EVENTS = f"""
INSERT INTO "RankingEvent" ("id", "userId", "tripId", "dayNumber", "modelName", "modelVersion", "candidateIds", "rankedIds",
  "selectedIds", "surface", "latencyMs", "createdAt")
WITH taken AS (
  SELECT s."tripId", s."dayNumber",
    COALESCE(array_agg(s."activityNodeId" ORDER BY s."sortOrder", s."id" COLLATE "C") FILTER (WHERE s.ok), '{{}}') AS nodes,
    count(*) FILTER (WHERE s.ok) AS every, count(DISTINCT s."activityNodeId") FILTER (WHERE s.ok) AS different
  FROM (
    SELECT *, "status" IN ('confirmed', 'active', 'completed') AND "activityNodeId" IS NOT NULL AS ok FROM "ItinerarySlot"
  ) s JOIN shadow_trip t ON t."id" = s."tripId" GROUP BY 1, 2
),
event AS (
  SELECT md5(concat_ws(chr(1), 'ranking_event', {SEED}, d."tripId", d."dayNumber"))::uuid::text AS id, t."userId", d."tripId",
    d."dayNumber", c.candidates, c.ranked, CASE WHEN d.every = d.different THEN d.nodes
    ELSE ARRAY(SELECT n FROM unnest(d.nodes) WITH ORDINALITY AS o (n, place) GROUP BY n ORDER BY min(place)) END AS selected,
    t."startDate" + (d."dayNumber" - 1) * interval '1 day' AS moment
  FROM taken d JOIN shadow_trip t ON t."id" = d."tripId" JOIN candidate c USING ("userId", "city")
)
SELECT id, "userId", "tripId", "dayNumber", '{MODEL_NAME}', '{MODEL_VERSION}', candidates, ranked, selected, '{SURFACE}',
  200 + ('x' || right(id, 8))::bit(32)::int8 % 601, moment
FROM event
"""


def _register() -> str:
    since = "COALESCE((SELECT min(\"createdAt\") FROM shadow_trip), timestamp '1970-01-01')"
    values = ", ".join(
        f"(md5(concat_ws(chr(1), 'model_registry', {SEED}, {key}))::uuid::text, {texts}, {since}, {since})"
        for key, texts in (
            (", ".join(map(quote_literal, row[:2])), ", ".join(map(quote_literal, row))) for row in REGISTRY
        )
    )
    return (
        'INSERT INTO "ModelRegistry" ("id", "modelName", "modelVersion", "stage", "modelType", "description", "createdAt", '
        f'"updatedAt") VALUES {values} ON CONFLICT ("modelName", "modelVersion") DO NOTHING'
    )


STATEMENTS = (
    TRIPS,
    SEEDS,
    NODES,
    # A temporary table has no statistics before ANALYZE.
    "ANALYZE shadow_trip, first_seed, node",
    _register(),
    f'DELETE FROM "PersonaDimension" WHERE "userId" IN ({SHADOW})',
    PERSONAS,
    CANDIDATES,
    "ANALYZE candidate",
    f'DELETE FROM "RankingEvent" WHERE "userId" IN ({SHADOW})',
    EVENTS,
    BACKFILL,
)


def run(url: str) -> None:
    """Do all of it in one transaction."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for statement in STATEMENTS:
            connection.execute(statement.encode())


# What can be compared: all but what is hashed. A candidate is looked at through its affinity.
_PERSONAS_ASKED = f"""
SELECT "userId", "dimension", "value", "confidence", "source", "createdAt", "updatedAt" FROM "PersonaDimension"
WHERE "userId" IN ({SHADOW}) ORDER BY "userId" COLLATE "C", "dimension" COLLATE "C"
"""
_EVENTS_ASKED = f"""
WITH vector AS MATERIALIZED (
  SELECT "userId", "value"::jsonb AS affinities FROM "PersonaDimension" WHERE "dimension" = 'category_affinities'
)
SELECT r."userId", r."tripId", r."dayNumber", r."modelName", r."modelVersion", r."surface", r."selectedIds", r."createdAt",
  r."latencyMs" BETWEEN 200 AND 800, r."sessionId", r."shadowModelName", r."shadowModelVersion", r."shadowRankedIds",
  ARRAY(SELECT COALESCE((v.affinities->>n."category"::text)::float8, {affinity_model().default_affinity})
    FROM unnest(r."rankedIds") WITH ORDINALITY AS o (id, place) JOIN "ActivityNode" n USING (id) ORDER BY place),
  r."candidateIds" = ARRAY(SELECT id COLLATE "C" FROM unnest(r."rankedIds") AS o (id) ORDER BY 1),
  (SELECT count(DISTINCT n."id") FROM unnest(r."rankedIds") AS o (id) JOIN "ActivityNode" n USING (id)
    WHERE n."city" = t."city" AND n."status" <> 'archived')
FROM "RankingEvent" r JOIN vector v USING ("userId") JOIN "Trip" t ON t."id" = r."tripId" WHERE r."userId" IN ({SHADOW})
ORDER BY r."tripId" COLLATE "C", r."dayNumber"
"""


def comparable(url: str) -> tuple[Rows, Rows]:
    """The shadow users' rows as far as two implementations with different hashes must agree.

    Of an event's candidates that is the affinities in their order, how many different eligible nodes of the trip's city they
    are, and that `candidateIds` are the same ids by id. Which of equal affinities stand there, and in what order, is hashed.
    """
    with psycopg.connect(url) as connection:
        return connection.execute(_PERSONAS_ASKED).fetchall(), connection.execute(_EVENTS_ASKED).fetchall()
