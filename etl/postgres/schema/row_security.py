"""Row security: which tables may hide rows from the role, by their policies."""

from __future__ import annotations

from etl.postgres.connection import Connection
from etl.postgres.naming import MODELS, Naming, quote_literal

_WRITTEN = {"PersonaDimension": "rda", "RankingEvent": "rda", "ModelRegistry": "ra", "BehavioralSignal": "rw"}
"""The commands of `run`, as pg_policy names them: SELECT, DELETE, INSERT, UPDATE. Of other models: SELECT."""


def hiding_tables(connection: Connection, naming: Naming, *, writes: bool) -> list[str]:
    """Return the tables, sorted, whose policies may hide rows, keep rows from being replaced, or refuse new rows.

    Policies show everything if at least one permissive policy of the command is `true`, and all restrictive ones are.
    What an expression other than `true` hides can't be known. For INSERT any permissive policy is enough: it hides
    nothing, and what it refuses is an error.
    """
    needed = ", ".join(
        f'({quote_literal(naming.table(model))}::regclass::oid, {quote_literal(command)}::"char")'
        for model in MODELS
        for command in (_WRITTEN.get(model, "r") if writes else "r")
    )
    rows = connection.fetch_rows(
        f"SELECT DISTINCT t.oid::regclass::text FROM (VALUES {needed}) t(oid, command) "
        "CROSS JOIN LATERAL (SELECT count(*) FILTER (WHERE p.polpermissive AND shows) AS showing, "
        "count(*) FILTER (WHERE NOT p.polpermissive AND NOT shows) AS narrowing FROM pg_policy p "
        "CROSS JOIN LATERAL (SELECT t.command = 'a' OR COALESCE(pg_get_expr(p.polqual, p.polrelid) = 'true', false)) e(shows) "
        "WHERE p.polrelid = t.oid AND p.polcmd IN ('*', t.command) AND EXISTS "
        "(SELECT FROM unnest(p.polroles) r(oid) WHERE r.oid = 0 OR pg_has_role(r.oid, 'USAGE'))) found "
        "WHERE row_security_active(t.oid) AND (showing = 0 OR narrowing > 0) ORDER BY 1"
    )
    return [name for (name,) in rows]
