"""The users whose rows a command reads or writes, as SQL, and the naming of the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from etl.postgres.connection import Connection
from etl.postgres.naming import LEGS, Naming, quote_identifier, quote_literal
from etl.postgres.schema import check as schema_check
from etl.postgres.schema.mapping import find_relations
from etl.postgres.schema.privileges import require_privileges
from etl.postgres.transaction import transaction
from etl.settings.model import Audience, Settings

MadeRows = Mapping[str, Mapping[str, Sequence[str]]]
"""Which rows a run makes: {model: {column: the values that it writes there}}."""


@dataclass(frozen=True)
class Scope:
    """The naming of the tables, and the email prefix and domain of shadow users.

    No character of them is a wildcard. Only the ASCII letters of the domain are compared without case.

    A shadow user's row with other values than `made` says is a foreign row: the application's. A run replaces it like its own
    rows, unless `keep_foreign_rows`. `surfaces` are those whose ranking events are exported; empty: all.
    """

    naming: Naming
    prefix: str
    domain: str | None = None
    made: MadeRows = field(default_factory=dict)
    keep_foreign_rows: bool = False
    surfaces: tuple[str, ...] = ()

    @classmethod
    def of(cls, naming: Naming, settings: Settings, made: MadeRows) -> Scope:
        """Return the scope that settings ask for."""
        prefix, domain = settings.shadow_prefix, settings.shadow_domain
        return cls(naming, prefix, domain, made, settings.keep_foreign_rows, settings.surface)

    def is_shadow(self, user: str) -> str:
        """Return SQL that is true for a shadow user's row and false for all others, a null email included."""
        # Every name is qualified, because statements that write run under the role's own search_path.
        # COLLATE "C": PostgreSQL has no prefix search for columns with a nondeterministic collation.
        starts = f'pg_catalog.starts_with({user}."email" COLLATE pg_catalog."C", {quote_literal(self.prefix)})'
        if self.domain is None:
            return f"COALESCE({starts}, false)"
        # COLLATE "C": in other locales, lower() makes an ASCII k of the Kelvin sign.
        end = f'pg_catalog.lower(pg_catalog."right"({user}."email", {len(self.domain) + 1}) COLLATE pg_catalog."C")'
        same = f"{end} OPERATOR(pg_catalog.=) {quote_literal('@' + _ascii_lower(self.domain))}"
        return f"COALESCE({starts} AND {same}, false)"

    def audience_sql(self, user: str, audience: Audience) -> str:
        """Return SQL that is true for the rows of an audience's users."""
        if audience == "all":
            return "true"
        return self.is_shadow(user) if audience == "shadow" else f"NOT {self.is_shadow(user)}"

    def owns(self, model: str, row: str, *, source: bool = False) -> str:
        """Return SQL that is true for a row of the model's table whose user is a shadow user, for statements that write.

        Here and below, with `source` the row is one of `Naming.source`, whose columns have the contract's names.
        """
        return f"{self._column(model, 'userId', row, source)} OPERATOR(pg_catalog.=) ANY ({self.shadow_ids()})"

    def _column(self, model: str, name: str, row: str, source: bool) -> str:  # noqa: FBT001 - passed on
        return f"{row}.{quote_identifier(name)}" if source else self.naming.mapped_column(model, name).sql(row)

    def city_of_day(self, trip: str, day: str) -> tuple[str, str]:
        """Return SQL of the city of a (trip, day), and the join that it needs. The arguments are SQL of the id and the number.

        The city is that of the leg of the day's first slot, in slot order, that has one; without legs it is the trip's, `t`.
        """
        if not self.naming.has_legs:
            return 't."city"', ""
        first = (
            'SELECT DISTINCT ON (s."tripId", s."dayNumber") s."tripId" AS trip, s."dayNumber" AS day, l."city" AS city '
            f"FROM {self.naming.source('ItinerarySlot')} s JOIN {self.naming.source(LEGS)} l "
            'ON l."id" = s."tripLegId" WHERE l."city" IS NOT NULL '
            'ORDER BY s."tripId", s."dayNumber", s."sortOrder", s."id" COLLATE "C"'
        )
        return 'COALESCE(leg.city, t."city")', f" LEFT JOIN ({first}) leg ON leg.trip = {trip} AND leg.day = {day}"

    def is_made(self, model: str, row: str, *, source: bool = False) -> str:
        """Return SQL that is true for a row that has the values of `made`, for statements that write."""
        values = self.made.get(model, {}).items()
        made = (_one_of(self._column(model, column, row, source), each) for column, each in values)
        return f"({' AND '.join(made) or 'true'})"

    def replaces(self, model: str, row: str, *, source: bool = False) -> str:
        """Return SQL that is true for the rows that a run replaces, for statements that write.

        These are all rows of shadow users, or with `keep_foreign_rows` those that a run makes.
        """
        owns = self.owns(model, row, source=source)
        return f"{owns} AND {self.is_made(model, row, source=source)}" if self.keep_foreign_rows else owns

    def exports(self, user: str, event: str, audience: Audience) -> str:
        """Return SQL that is true for the ranking events of an audience's users that are exported."""
        wanted = [self.audience_sql(user, audience)]
        if self.surfaces:
            wanted.append(_one_of(f'{event}."surface"', self.surfaces))
        if self.keep_foreign_rows and audience != "real":
            wanted.append(f"({self.is_made('RankingEvent', event, source=True)} OR NOT {self.is_shadow(user)})")
        return " AND ".join(wanted)

    def shadow_ids(self) -> str:
        """Return a query of the shadow users' ids."""
        return f'SELECT u."id" FROM {self.naming.source("User")} u WHERE {self.is_shadow("u")}'


def resolve_scope(
    connection: Connection, settings: Settings, schema_name: str, *, writes: bool, made: MadeRows | None = None
) -> tuple[Scope, list[str]]:
    """Return the scope, and advice on the schema: sentences about what is missing but not required.

    Raises SchemaError if the schema does not fit, ConnectError if the role lacks a privilege.
    """
    with transaction(connection, read_only=True):
        naming, catalog = find_relations(connection, schema_name, settings.naming, settings.map)
        advice = [finding.detail for finding in schema_check.require(connection, naming, catalog, writes=writes)]
        require_privileges(connection, naming, writes=writes)
    return Scope.of(naming, settings, made or {}), advice


def _one_of(value: str, texts: Sequence[str]) -> str:
    """Return SQL that is true if a value's text is one of the texts, false for null."""
    text = f'{value}::pg_catalog.text COLLATE pg_catalog."C"'
    one_of = " OR ".join(f"{text} OPERATOR(pg_catalog.=) {quote_literal(each)}" for each in texts)
    return f"COALESCE({one_of}, false)"


def _ascii_lower(text: str) -> str:
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)
