"""The checks of `validate` on a database: what the contract says of the written rows (docs/contract.md), as SQL.

They are written in another language than the code that makes the rows, so that they do not share its mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from etl.load.copy import REGISTRY
from etl.postgres.connection import Connection
from etl.postgres.naming import quote_literal
from etl.postgres.scope import Scope
from etl.runtime.run_record import Progress
from etl.transform.candidates import TOP_K
from etl.transform.personas import affinity_model
from etl.transform.ranking_events import MODEL_NAME, MODEL_VERSION, SURFACE
from etl.transform.schemas import DIMENSIONS, SELECTED_STATUSES


@dataclass(frozen=True)
class Constraint:
    """A statement that holds for every row of a model's table, and a query that counts the rows for which it does not."""

    name: str
    model: str
    sql: str


@dataclass(frozen=True)
class Finding:
    """The result of a check: what must hold (`law` in the JSON output), how many break it, and of what (`unit`, a plural)."""

    law: str
    broken: int
    detail: str = ""
    unit: str = "files"


@dataclass(frozen=True)
class ValidationReport:
    """The results of all checks, and the rows of the design's validation query."""

    findings: list[Finding]
    rows: pl.DataFrame

    @property
    def broken(self) -> list[Finding]:
        """The checks that failed."""
        return [finding for finding in self.findings if finding.broken]


def validate_database(connection: Connection, scope: Scope, progress: Progress) -> ValidationReport:
    """Run every check and the design's validation query in the open transaction."""
    rows = connection.fetch_frame(validation_query(scope))
    findings = [Finding("the design's validation query returns rows", int(rows.height == 0), unit="queries")]
    checks = list(constraints(scope, affinity_model().default_affinity))
    for number, each in enumerate(checks):
        progress("checks", number, len(checks))
        unit = f"rows of {scope.naming.table_name(each.model)}"
        findings.append(Finding(each.name, connection.fetch_int(each.sql), unit=unit))
    return ValidationReport(findings, rows)


def constraints(scope: Scope, default_affinity: float) -> Iterator[Constraint]:
    """Yield the constraints on the shadow users' rows. A category without a value has the `default_affinity`."""
    yield from _registry_and_signals(scope)
    yield from _personas(scope)
    yield from _days(scope)
    yield from _candidates(scope, default_affinity)


def validation_query(scope: Scope) -> str:
    """Return the design's validation query (docs/design.md, "Validation") in the naming in use."""
    table = scope.naming.source
    return f"""
SELECT bs."signalType"::text AS "signalType", bs."modelVersion", pd_pace."value" AS pace, pd_budget."value" AS budget,
  re."modelName" AS ranking_model, array_length(re."candidateIds", 1) AS candidates_shown
FROM {table("BehavioralSignal")} bs
JOIN {table("ItinerarySlot")} isl ON isl."id" = bs."slotId"
JOIN {table("PersonaDimension")} pd_pace ON pd_pace."userId" = bs."userId" AND pd_pace."dimension" = 'pace_preference'
JOIN {table("PersonaDimension")} pd_budget
  ON pd_budget."userId" = bs."userId" AND pd_budget."dimension" = 'budget_sensitivity'
LEFT JOIN {table("RankingEvent")} re
  ON re."tripId" = bs."tripId" AND re."userId" = bs."userId" AND re."dayNumber" = isl."dayNumber"
WHERE bs."userId" IN ({scope.shadow_ids()}) AND bs."slotId" IS NOT NULL
LIMIT 10"""


def _registry_and_signals(scope: Scope) -> Iterator[Constraint]:
    table = scope.naming.source
    models = ", ".join(f"({quote_literal(name)}, {quote_literal(model)})" for name, model, *_ in REGISTRY)
    yield Constraint(
        "both models of the design are registered",
        "ModelRegistry",
        f"SELECT {len(REGISTRY)} - count(*) FROM {table('ModelRegistry')} m "
        f'WHERE ("modelName", "modelVersion") IN ({models})',
    )
    yield Constraint(
        "every shadow signal has a model version",
        "BehavioralSignal",
        f'SELECT count(*) FROM {table("BehavioralSignal")} b WHERE "modelVersion" IS NULL '
        f'AND "userId" IN ({scope.shadow_ids()})',
    )


def _personas(scope: Scope) -> Iterator[Constraint]:
    table = scope.naming.source
    dimensions = ", ".join(quote_literal(name) for name in DIMENSIONS)
    yield Constraint(
        "a shadow user with a usable seed has the eight dimensions, any other has none",
        "User",
        f"""
SELECT count(*) FROM ({scope.shadow_ids()}) s
CROSS JOIN LATERAL (SELECT count(*) FROM {table("PersonaDimension")} p
  WHERE p."userId" = s."id" AND {scope.replaces("PersonaDimension", "p", source=True)}) has(n)
CROSS JOIN LATERAL (SELECT count(DISTINCT p."dimension") FROM {table("PersonaDimension")} p
  WHERE p."userId" = s."id" AND p."dimension" IN ({dimensions})) eight(n)
CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM {table("Trip")} t WHERE t."userId" = s."id"
  AND jsonb_typeof(t."personaSeed") = 'object' AND isfinite(t."createdAt")
  AND t."createdAt" < timestamp '294000-01-01')) seed(usable)
WHERE has.n <> CASE WHEN seed.usable THEN {len(DIMENSIONS)} ELSE 0 END OR has.n <> eight.n""",
    )
    yield Constraint(
        "a persona's confidence says its source",
        "PersonaDimension",
        f"SELECT count(*) FROM {table('PersonaDimension')} p WHERE {scope.replaces('PersonaDimension', 'p', source=True)} "
        "AND (\"source\", \"confidence\") NOT IN (('onboarding', 1.0), ('default', 0.0), ('reconstructed', 0.95))",
    )


def _days(scope: Scope) -> Iterator[Constraint]:
    table = scope.naming.source
    taken = ", ".join(quote_literal(status) for status in SELECTED_STATUSES)
    city, leg = scope.city_of_day('s."tripId"', 's."dayNumber"')
    ours = scope.replaces("RankingEvent", "r", source=True)
    constants = (
        f'r."modelName" = {quote_literal(MODEL_NAME)} AND r."modelVersion" = {quote_literal(MODEL_VERSION)} '
        f'AND r."surface" = {quote_literal(SURFACE)} AND r."sessionId" IS NULL AND r."shadowModelName" IS NULL '
        'AND r."shadowModelVersion" IS NULL AND r."shadowRankedIds" IS NULL AND r."latencyMs" BETWEEN 200 AND 800'
    )
    yield Constraint(
        "every trip-day with a slot has one ranking event, and no other day has one",
        "RankingEvent",  # those that are missing, and those that are too many
        f"""
WITH days AS (
  SELECT DISTINCT t."id" AS trip, s."dayNumber" AS day FROM {table("ItinerarySlot")} s
  JOIN {table("Trip")} t ON t."id" = s."tripId"{leg}
  WHERE t."userId" IN ({scope.shadow_ids()})
  AND EXISTS (SELECT FROM {table("PersonaDimension")} p
    WHERE p."userId" = t."userId" AND {scope.is_made("PersonaDimension", "p", source=True)})
  AND EXISTS (SELECT FROM {table("ActivityNode")} n WHERE n."city" = {city} AND n."status"::text <> 'archived')
  AND CASE WHEN isfinite(t."startDate") THEN t."startDate"::date - date '1970-01-01' BETWEEN -719162 AND 2932896
    AND (t."startDate"::date - date '1970-01-01')::int8 + s."dayNumber"::int8 - 1 BETWEEN -719162 AND 2932896 ELSE false END
), events AS (SELECT r."tripId" AS trip, r."dayNumber" AS day, count(*) AS n FROM {table("RankingEvent")} r
  WHERE {ours} GROUP BY 1, 2)
SELECT COALESCE(sum(abs(COALESCE(e.n, 0) - (d.trip IS NOT NULL)::int)), 0)::int8
FROM days d FULL JOIN events e USING (trip, day)""",
    )
    yield Constraint(
        "an event carries the bootstrap model's name, and a date that is its trip's day",
        "RankingEvent",
        f"""
SELECT count(*) FROM {table("RankingEvent")} r LEFT JOIN {table("Trip")} t ON t."id" = r."tripId"
WHERE {ours} AND NOT COALESCE({constants} AND t."userId" = r."userId"
  AND extract(epoch FROM r."createdAt")
    = extract(epoch FROM {scope.naming.trip_start("t")}) + (r."dayNumber"::numeric - 1) * 86400, false)""",
    )
    yield Constraint(
        "the selected nodes are the day's confirmed, active and completed ones, in slot order",
        "RankingEvent",
        f"""
WITH firsts AS (
  SELECT DISTINCT ON (s."tripId", s."dayNumber", s."activityNodeId"::text)
    s."tripId" AS trip, s."dayNumber" AS day, s."activityNodeId"::text AS node, s."sortOrder" AS place, s."id" AS slot
  FROM {table("ItinerarySlot")} s WHERE s."activityNodeId" IS NOT NULL AND s."status"::text IN ({taken})
  ORDER BY 1, 2, 3, 4, s."id" COLLATE "C"
), taken AS (SELECT trip, day, array_agg(node ORDER BY place, slot COLLATE "C") AS nodes FROM firsts GROUP BY trip, day)
SELECT count(*) FROM {table("RankingEvent")} r LEFT JOIN taken k ON k.trip = r."tripId" AND k.day = r."dayNumber"
WHERE {ours} AND r."selectedIds" IS DISTINCT FROM COALESCE(k.nodes, '{{}}')""",
    )


def _candidates(scope: Scope, default_affinity: float) -> Iterator[Constraint]:
    table = scope.naming.source
    city, leg = scope.city_of_day('r."tripId"', 'r."dayNumber"')
    # Grain: one row per distinct (user, city, ranking), since all days of a user in a city share it.
    rankings = f"""
WITH shared AS MATERIALIZED (
  SELECT r."userId" AS usr, {city} AS city, r."candidateIds" AS candidates, r."rankedIds" AS ranked, count(*) AS events
  FROM {table("RankingEvent")} r JOIN {table("Trip")} t ON t."id" = r."tripId"{leg}
  WHERE {scope.replaces("RankingEvent", "r", source=True)} GROUP BY 1, 2, 3, 4
), vectors AS MATERIALIZED (
  SELECT p."userId" AS usr, e.key AS category, e.value::float8 AS affinity FROM {table("PersonaDimension")} p
  CROSS JOIN LATERAL jsonb_each_text(p."value"::jsonb) e
  WHERE p."dimension" = 'category_affinities' AND p."userId" IN ({scope.shadow_ids()})
), offer AS MATERIALIZED (
  SELECT n."id"::text AS node, n."city" AS city, n."category"::text AS category FROM {table("ActivityNode")} n
  WHERE n."status"::text <> 'archived'
), places AS MATERIALIZED (
  SELECT s.usr, s.city, s.candidates, s.ranked, s.events, o.node, array_position(s.ranked, o.node) AS place,
    COALESCE(v.affinity, {default_affinity}) AS affinity
  FROM shared s JOIN offer o USING (city) LEFT JOIN vectors v ON v.usr = s.usr AND v.category = o.category
)"""
    yield Constraint(
        f"the candidates are {TOP_K} distinct eligible nodes of the day's city, or all, in id order",
        "RankingEvent",
        f"""{rankings}
SELECT COALESCE(sum(s.events), 0)::int8 FROM shared s
WHERE s.candidates IS DISTINCT FROM ARRAY(
  SELECT DISTINCT o.node COLLATE "C" FROM offer o WHERE o.city = s.city AND o.node = ANY (s.candidates) ORDER BY 1)
OR cardinality(s.candidates) <> LEAST({TOP_K}, (SELECT count(*) FROM offer o WHERE o.city = s.city))""",
    )
    yield Constraint(
        "the ranking holds the candidates and nothing else",
        "RankingEvent",
        f"""{rankings}
SELECT COALESCE(sum(s.events), 0)::int8 FROM shared s
WHERE s.candidates IS DISTINCT FROM ARRAY(SELECT x COLLATE "C" FROM unnest(s.ranked) x ORDER BY 1)""",
    )
    yield Constraint(
        "the ranking falls with affinity, and no node left out is liked better than one inside",
        "RankingEvent",
        f"""{rankings}
, judged AS (
  SELECT usr, city, candidates, ranked, events, place IS NOT NULL
      AND affinity > lag(affinity) OVER (PARTITION BY usr, city, candidates, ranked ORDER BY place) AS rises,
    place IS NULL AND affinity > min(affinity) FILTER (WHERE place IS NOT NULL)
      OVER (PARTITION BY usr, city, candidates, ranked) AS better
  FROM places)
SELECT COALESCE(sum(events), 0)::int8 FROM (
  SELECT DISTINCT usr, city, candidates, ranked, events FROM judged WHERE rises OR better) wrong""",
    )
    yield Constraint(
        "a user has one ranking per city",
        "RankingEvent",  # those with another ranking than most of the user's in that city
        f"""{rankings}
SELECT COALESCE(sum(others), 0)::int8 FROM (SELECT sum(events) - max(events) AS others FROM shared GROUP BY usr, city) c""",
    )
