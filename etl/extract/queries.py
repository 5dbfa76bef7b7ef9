"""The SQL that reads: one function per query, from a naming and a scope to a text.

Every identifier is quoted by `Naming` and every value by `quote_literal`, because connectorx can't bind parameters. Enums are
cast to text. Timestamps are read as int8 microseconds, because drivers misread infinity and years after 9999
(docs/pitfalls.md, 12). Texts are ordered with COLLATE "C", by their bytes.
"""

from __future__ import annotations

from typing import Literal

from etl.postgres.naming import LEGS, Naming, quote_identifier, quote_literal
from etl.postgres.scope import Scope
from etl.settings.model import Audience
from etl.transform.personas import SEED_LABELS

_SLOT_COLUMNS = (
    's."id" AS slot_id, s."tripId" AS trip_id, s."activityNodeId" AS node_id, s."dayNumber" AS day_number, '
    's."sortOrder" AS sort_order, s."status"::text AS status'
)


def shadow_domains(scope: Scope) -> str:
    """One row per domain of the shadow users' emails, the most frequent first: domain, users."""
    return (
        f'SELECT COALESCE(lower(substring(u."email" COLLATE "C" from \'@([^@]*)$\') COLLATE "C"), \'\') AS domain, count(*) '
        f"FROM {scope.naming.source('User')} u WHERE {scope.is_shadow('u')} GROUP BY 1 ORDER BY 2 DESC, 1"
    )


def user_count(scope: Scope) -> str:
    """The number of users, shadow or not."""
    return f"SELECT count(*) FROM {scope.naming.source('User')} u"


def filtered_count(scope: Scope, model: str) -> str:
    """The number of rows of a model that the settings' `where` leaves out."""
    relation = scope.naming.relation(model)
    return f"SELECT count(*) FROM {relation.sql} WHERE ({relation.where}\n) IS NOT TRUE"


def orphan_count(scope: Scope, model: Literal["Trip", "RankingEvent"]) -> str:
    """The number of rows whose user is missing. Whether it was a shadow user is unknown."""
    return (
        f"SELECT count(*) FROM {scope.naming.source(model)} x WHERE NOT EXISTS "
        f'(SELECT FROM {scope.naming.source("User")} u WHERE u."id" = x."userId")'
    )


def users(scope: Scope, audience: Audience) -> str:
    """One row per user of the audience."""
    return (
        f'SELECT u."id" AS user_id, {scope.is_shadow("u")} AS is_shadow '
        f"FROM {scope.naming.source('User')} u WHERE {scope.audience_sql('u', audience)}"
    )


def trips(scope: Scope, audience: Audience) -> str:
    """One row per trip of the audience's users."""
    start = _microseconds(scope.naming.trip_start("t"))
    return (
        f'SELECT t."id" AS trip_id, t."userId" AS user_id, t."city" AS city, {start} AS start_us '
        f"FROM {_trips_of(scope)} WHERE {scope.audience_sql('u', audience)}"
    )


def trip_count(scope: Scope) -> str:
    """The number of the shadow users' trips."""
    return f"SELECT count(*) FROM {_trips_of(scope)} WHERE {scope.is_shadow('u')}"


def event_surfaces(scope: Scope, audience: Audience) -> str:
    """One row per surface of an audience's ranking events, the most frequent first: surface, events, exported events."""
    return (
        f'SELECT r."surface"::text, count(*), count(*) FILTER (WHERE {scope.exports("u", "r", audience)}) '
        f'FROM {scope.naming.source("RankingEvent")} r JOIN {scope.naming.source("User")} u ON u."id" = r."userId" '
        f"WHERE {scope.audience_sql('u', audience)} GROUP BY 1 ORDER BY 2 DESC, 1"
    )


def foreign_rows(scope: Scope, model: Literal["PersonaDimension", "RankingEvent"]) -> str:
    """One row per kind of the shadow users' rows that a run does not make, the most frequent first: its values, rows."""
    columns = ", ".join(f"x.{quote_identifier(column)}::text" for column in scope.made[model])
    return (
        f"SELECT {columns}, count(*) FROM {scope.naming.source(model)} x WHERE {scope.owns(model, 'x', source=True)} "
        f"AND NOT {scope.is_made(model, 'x', source=True)} GROUP BY {columns} ORDER BY count(*) DESC, {columns}"
    )


def slots(scope: Scope, audience: Audience) -> str:
    """One row per slot of the audience's trips, with the city of its leg if trips have legs."""
    city, leg = "", ""
    if scope.naming.has_legs:
        city = ', l."city" AS leg_city'
        leg = f' LEFT JOIN {scope.naming.source(LEGS)} l ON l."id" = s."tripLegId"'
    return (
        f"SELECT {_SLOT_COLUMNS}{city} FROM {_trips_of(scope)} JOIN {scope.naming.source('ItinerarySlot')} s "
        f'ON s."tripId" = t."id"{leg} WHERE {scope.audience_sql("u", audience)}'
    )


def slots_of_events(scope: Scope, audience: Audience) -> str:
    """One row per slot of the trips that the audience's ranking events refer to. These may be other users' trips."""
    named = (
        f'SELECT r."tripId" FROM {scope.naming.source("RankingEvent")} r '
        f'JOIN {scope.naming.source("User")} u ON u."id" = r."userId" WHERE {scope.exports("u", "r", audience)}'
    )
    return f'SELECT {_SLOT_COLUMNS} FROM {scope.naming.source("ItinerarySlot")} s WHERE s."tripId" IN ({named})'


def nodes(scope: Scope) -> str:
    """One row per node of every city and status. A coordinate that is NaN or infinite is null."""
    return (
        'SELECT n."id" AS node_id, n."city" AS city, n."category"::text AS category, n."status"::text AS status, '
        f'n."name" AS name, {_finite("n", "latitude")} AS latitude, {_finite("n", "longitude")} AS longitude '
        f"FROM {scope.naming.source('ActivityNode')} n"
    )


def persona_seeds(scope: Scope) -> str:
    """One row per shadow user with a usable seed, that of the first trip by (createdAt, id) that has one.

    A label is null unless it is a JSON string. `categories` and `numbers` are the keys and values of `category_affinities`,
    null unless that is a JSON object with keys. A value that is no JSON number is an empty text, because connectorx can't read
    null in an array.
    """
    labels = ", ".join(f"{_typed('string', label)} AS {label}" for label in SEED_LABELS.values())
    counts = f'SELECT t."userId" AS user_id, count(*) AS trips FROM {_trips_of(scope)} WHERE {scope.is_shadow("u")} GROUP BY 1'
    return (
        f"SELECT f.user_id, f.created_us, c.trips, {labels}, "
        f"CASE jsonb_typeof(f.seed->'cuisine_openness') WHEN 'number' THEN f.seed->>'cuisine_openness' END "
        f"AS cuisine_openness, a.categories, a.numbers FROM ({_first_seeds(scope)}) f JOIN ({counts}) c USING (user_id) "
        "LEFT JOIN LATERAL (SELECT array_agg(e.key) AS categories, array_agg("
        "CASE jsonb_typeof(e.value) WHEN 'number' THEN e.value #>> '{}' ELSE '' END) AS numbers FROM jsonb_each("
        "CASE jsonb_typeof(f.seed->'category_affinities') WHEN 'object' THEN f.seed->'category_affinities' END) e) a ON true"
    )


def categories(naming: Naming) -> str:
    """The values of the enum of categories in their order there; none where the column has another type."""
    return (
        "SELECT e.enumlabel FROM pg_enum e JOIN pg_attribute a ON a.atttypid = e.enumtypid "
        f"WHERE a.attrelid = {quote_literal(naming.table('ActivityNode'))}::regclass "
        f"AND a.attname = {quote_literal(naming.mapped_column('ActivityNode', 'category').name or '')} "
        "ORDER BY e.enumsortorder"
    )


def categories_in_use(naming: Naming) -> str:
    """The categories that nodes have, for a column that is no enum."""
    return f'SELECT DISTINCT n."category"::text COLLATE "C" FROM {naming.source("ActivityNode")} n ORDER BY 1'


def personas(scope: Scope, audience: Audience) -> str:
    """One row per PersonaDimension row of the audience's users. A confidence that is NaN or infinite is null."""
    return (
        'SELECT p."userId" AS user_id, p."dimension" AS dimension, p."value" AS value, '
        f'{_finite("p", "confidence")} AS confidence, p."source" AS source '
        f'FROM {scope.naming.source("PersonaDimension")} p JOIN {scope.naming.source("User")} u ON u."id" = p."userId" '
        f"WHERE {scope.audience_sql('u', audience)}"
    )


def events(scope: Scope, audience: Audience) -> str:
    """One row per RankingEvent row of the audience's users. `city` is null if the trip is missing."""
    city, leg = scope.city_of_day('r."tripId"', 'r."dayNumber"')
    has_trip = ', t."id" IS NOT NULL AS has_trip' if scope.naming.has_legs else ""
    created = _microseconds('r."createdAt"')
    arrays = ", ".join(
        f"r.{quote_identifier(camel)} AS {snake}"
        for camel, snake in (
            ("candidateIds", "candidate_ids"),
            ("rankedIds", "ranked_ids"),
            ("selectedIds", "selected_ids"),
        )
    )
    return (
        'SELECT r."id" AS event_id, r."userId" AS user_id, r."tripId" AS trip_id, '
        f"{city} AS city{has_trip}, {_microseconds(scope.naming.trip_start('t'))} AS start_us, "
        f'r."dayNumber" AS day_number, {created} AS created_us, r."surface" AS surface, '
        f'r."modelName" AS model_name, r."modelVersion" AS model_version, {arrays} '
        f'FROM {scope.naming.source("RankingEvent")} r JOIN {scope.naming.source("User")} u ON u."id" = r."userId" '
        f'LEFT JOIN {scope.naming.source("Trip")} t ON t."id" = r."tripId"{leg} WHERE {scope.exports("u", "r", audience)}'
    )


def _trips_of(scope: Scope) -> str:
    return f'{scope.naming.source("Trip")} t JOIN {scope.naming.source("User")} u ON u."id" = t."userId"'


def _first_seeds(scope: Scope) -> str:
    """One row per user: the seed of the first trip by (createdAt, id) whose seed is a JSON object.

    Trips whose createdAt is infinite or too late come last. If there is no other, `created_us` is null, and the seed is
    rejected and counted.
    """
    targets = [("PersonaDimension", "createdAt"), ("PersonaDimension", "updatedAt")]
    created = _microseconds(scope.naming.rounded("Trip", "createdAt", "t", targets))
    return (
        f'SELECT DISTINCT ON (t."userId") t."userId" AS user_id, {created} AS created_us, '
        f't."personaSeed" AS seed FROM {_trips_of(scope)} WHERE {scope.is_shadow("u")} '
        "AND jsonb_typeof(t.\"personaSeed\") = 'object' "
        f'ORDER BY t."userId", {created} IS NULL, t."createdAt", t."id" COLLATE "C"'
    )


def _typed(json_type: str, label: str) -> str:
    key = quote_literal(label)
    return f"CASE jsonb_typeof(f.seed->{key}) WHEN '{json_type}' THEN f.seed->>{key} END"


def _microseconds(value: str) -> str:
    """A timestamp as int8 microseconds since 1970, null if it is infinite or after the year 294000."""
    holds = f"isfinite({value}) AND {value} < timestamp '294000-01-01'"
    return f"CASE WHEN {holds} THEN (extract(epoch FROM {value}) * 1000000)::int8 END"


def _finite(table: str, column: str) -> str:
    """A float8, null if it is NaN or infinite: the frame's schema would reject the whole row for that."""
    name = f"{table}.{quote_identifier(column)}"
    return f"CASE WHEN abs({name}) < 'Infinity' THEN {name} END"
