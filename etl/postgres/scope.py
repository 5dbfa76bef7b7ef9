"""Whose rows a command is about, in which tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from etl.postgres import catalog as schema
from etl.postgres.connection import Connection
from etl.postgres.naming import Naming, quote_literal
from etl.postgres.privileges import require_privileges
from etl.postgres.transaction import transaction
from etl.settings.model import Settings

Audience = Literal["shadow", "real", "all"]


@dataclass(frozen=True)
class Scope:
    """Whose rows: the naming of the tables, and what makes a user a shadow user: the start of the email, and its domain.

    No character is a wildcard, and none stands for another one, but for the ASCII letters of a domain, which have no case.
    """

    naming: Naming
    prefix: str
    domain: str | None = None

    def is_shadow(self, user: str) -> str:
        """SQL that is true for a shadow user's row, false for all others, a null email included."""
        # Every name is qualified: it stands in statements that write, too, which run under the role's own search_path.
        # COLLATE "C": a column whose collation is nondeterministic has no prefixes and no patterns for PostgreSQL.
        starts = f'pg_catalog.starts_with({user}."email" COLLATE pg_catalog."C", {quote_literal(self.prefix)})'
        if self.domain is None:
            return f"COALESCE({starts}, false)"
        # COLLATE "C": lower() of another locale makes an ASCII k of the Kelvin sign.
        end = f'pg_catalog.lower(pg_catalog."right"({user}."email", {len(self.domain) + 1}) COLLATE pg_catalog."C")'
        same = f"{end} OPERATOR(pg_catalog.=) {quote_literal('@' + _ascii_lower(self.domain))}"
        return f"COALESCE({starts} AND {same}, false)"

    def not_ours_sql(self, row: str) -> str:
        """SQL that is true for a row whose `userId` is no shadow user's. An anti-join: NOT IN would go through them all."""
        users = self.naming.table("User")
        return f'NOT EXISTS (SELECT FROM {users} u WHERE u."id" = {row}."userId" AND {self.is_shadow("u")})'

    def audience_sql(self, user: str, audience: Audience) -> str:
        """SQL that is true for the rows of an audience's users."""
        if audience == "all":
            return "true"
        return self.is_shadow(user) if audience == "shadow" else f"NOT {self.is_shadow(user)}"

    def owns(self, row: str) -> str:
        """SQL that is true for a row whose `userId` is a shadow user's, for statements that write."""
        return f'{row}."userId" OPERATOR(pg_catalog.=) ANY ({self.shadow_ids()})'

    def shadow_ids(self) -> str:
        """SQL of the shadow users' ids."""
        return f'SELECT u."id" FROM {self.naming.table("User")} u WHERE {self.is_shadow("u")}'


def resolve_scope(
    connection: Connection, settings: Settings, schema_name: str, *, writes: bool
) -> tuple[Scope, list[str]]:
    """Whose rows, in which tables; and what is missing but not needed, in sentences.

    Raises SchemaError where the schema does not fit, ConnectError where the role may not do what is needed.
    """
    with transaction(connection, read_only=True, commit=False):
        naming = schema.detect_naming(connection, schema_name, settings.naming)
        advice = [finding.detail for finding in schema.require(connection, naming, writes=writes)]
        require_privileges(connection, naming, writes=writes)
    return Scope(naming, settings.shadow_prefix, settings.shadow_domain), advice


def _ascii_lower(text: str) -> str:
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)
