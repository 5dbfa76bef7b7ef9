"""Effects of a run's writes: what publications forbid, and what foreign keys, triggers and rules do.

Reads PostgreSQL's catalogs. The audit before COMMIT (`load/audit.py`) verifies what really happened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from etl.postgres.connection import Connection
from etl.postgres.naming import Naming, quote_identifier, quote_literal
from etl.postgres.schema.catalog import relations_sql

SIDE_EFFECTS = ("foreign_key", "trigger", "rule")
"""The kinds of findings about further effects of a run's writes."""

_FIRED_BY = {"PersonaDimension": 4 | 8, "RankingEvent": 4 | 8, "ModelRegistry": 4, "BehavioralSignal": 16}
"""What a run does to a table, as bits of `pg_trigger.tgtype`: INSERT 4, DELETE 8, UPDATE 16."""

_REWRITTEN = {"PersonaDimension": "4", "RankingEvent": "4", "ModelRegistry": "23", "BehavioralSignal": "2"}
"""The `pg_rewrite.ev_type` of rules that apply to a run: UPDATE 2, INSERT 3, DELETE 4. No rule applies to COPY."""

_ALLOWING = "unless --allow-side-effects names that table"
_ON_DELETE = {
    "c": ("CASCADE", "deletes these rows, too, and ends with exit 5 " + _ALLOWING),
    "n": ("SET NULL", "sets these to NULL, and ends with exit 5 " + _ALLOWING),
    "d": ("SET DEFAULT", "sets these to their default, and ends with exit 5 " + _ALLOWING),
    "r": ("RESTRICT", "is refused by the server and ends with exit 5"),
    "a": ("NO ACTION", "is refused by the server and ends with exit 5"),
}
"""By `pg_constraint.confdeltype`: the action, and its effect if a run deletes rows that other rows refer to."""

_CHANGED: dict[str, Literal["delete", "update"]] = {
    "PersonaDimension": "delete",
    "RankingEvent": "delete",
    "BehavioralSignal": "update",
}
"""What a run does to existing rows, which a publication may forbid."""


@dataclass(frozen=True)
class Finding:
    """Something in the schema that is missing, does not fit, or has side effects.

    `detail` is a sentence. A `blocking` finding keeps a run from starting, an `advice` becomes a note.
    """

    kind: Literal[
        "table",
        "column",
        "type",
        "not_null",
        "unique",
        "enum_value",
        "index",
        "deleted_rows",
        "publication",
        "foreign_key",
        "trigger",
        "rule",
    ]
    model: str
    detail: str
    severity: Literal["blocking", "advice"] = "blocking"


def publication_findings(connection: Connection, naming: Naming) -> Iterator[Finding]:
    """Yield tables whose rows PostgreSQL does not let a run change, because a publication can't identify the row."""
    reported = set()
    for model, schema, name, key, columns, publication, updates, deletes, sent, condition in _published(
        connection, naming
    ):
        verb, table = _CHANGED[model], f"{quote_identifier(schema)}.{quote_identifier(name)}"
        sends = updates if verb == "update" else deletes
        if not sends or table in reported:
            continue
        if why := _unidentified(table, key, columns, json.loads(sent or "null"), condition):
            reported.add(table)
            yield Finding(
                "publication",
                model,
                f"The publication {quote_identifier(publication)} sends {verb}s of {table}, {why[0]}: "
                f"PostgreSQL refuses every {verb.upper()} of it. {why[1]}.",
            )


def _unidentified(
    table: str, key: Sequence[str], columns: Sequence[str], sent: Sequence[str] | None, condition: str
) -> tuple[str, str] | None:
    """Return why a publication can't identify a changed row and what to do, None if it can.

    `key` are the columns of the replica identity: all for a full one, none if there is none. `sent` are the columns that the
    publication sends, None for all. `condition` is its row filter.
    """
    full = f"ALTER TABLE {table} REPLICA IDENTITY FULL"
    if not key:
        return "which has no replica identity", f"{full}, or give it a primary key"
    if sent is not None and not set(key) <= set(sent):
        return (
            "but not all columns of its replica identity",
            "Drop the column list from the publication, or extend it",
        )
    named = _names_in(condition) - set(key)
    if more := [quote_identifier(name) for name in columns if name in named]:
        return f"filtered by {', '.join(more)}, which its replica identity does not have", full
    return None


def _names_in(expression: str) -> set[str]:
    """Return the names in an expression as PostgreSQL prints it, including functions, without the content of literals."""
    bare = re.sub(r"'(?:[^']|'')*'", "", expression)
    quoted = {name.replace('""', '"') for name in re.findall(r'"((?:[^"]|"")*)"', bare)}
    return quoted | set(re.findall(r"\w+", re.sub(r'"(?:[^"]|"")*"', " ", bare)))


def _published(connection: Connection, naming: Naming) -> list[tuple[Any, ...]]:
    """Return the tables with rows of the models, each with a publication of it, its schema, its partitioned table, or all.

    A row has the model, schema and name of the table, the columns of its replica identity, all its columns, the publication's
    name, whether it sends updates and deletes, the columns that it sends (JSON, null for all), and its row filter.
    """
    identity = (  # as for the server, an index that is invalid or deferrable is no replica identity
        "SELECT i.indkey::int2[] FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate "
        "AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END"
    )
    columns = (
        "SELECT a.attname::text FROM pg_catalog.pg_attribute a "
        "WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''"
    )
    return connection.fetch_rows(
        "WITH RECURSIVE part(model, oid) AS ("
        f"SELECT ours.model, ours.oid FROM {relations_sql(naming, _CHANGED)} UNION "
        "SELECT part.model, i.inhrelid FROM part JOIN pg_catalog.pg_inherits i ON i.inhparent = part.oid), "
        "up(oid, above) AS (SELECT oid, oid FROM part UNION "
        "SELECT up.oid, i.inhparent FROM up JOIN pg_catalog.pg_class c ON c.oid = up.above AND c.relispartition "
        "JOIN pg_catalog.pg_inherits i ON i.inhrelid = up.above) "
        "SELECT part.model, n.nspname::text, c.relname::text, "
        f"ARRAY({columns} AND (c.relreplident = 'f' OR a.attnum = ANY (({identity})::int2[])) ORDER BY a.attnum), "
        f"ARRAY({columns} ORDER BY a.attnum), p.pubname::text, "
        # The columns and the row filter exist since PostgreSQL 15.
        "p.pubupdate, p.pubdelete, (to_jsonb(t)->'attnames')::text, COALESCE(to_jsonb(t)->>'rowfilter', '') "
        "FROM part JOIN pg_catalog.pg_class c ON c.oid = part.oid AND c.relkind = 'r' "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN up ON up.oid = c.oid "
        "JOIN pg_catalog.pg_class o ON o.oid = up.above JOIN pg_catalog.pg_namespace s ON s.oid = o.relnamespace "
        "JOIN pg_catalog.pg_publication_tables t ON t.schemaname = s.nspname AND t.tablename = o.relname "
        "JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname ORDER BY 1, 2, 3, 6"
    )


def side_effects(connection: Connection, naming: Naming) -> Iterator[Finding]:
    """Yield foreign keys to the tables that a run writes, and triggers and rules on them; those of partitions once."""
    ours = relations_sql(naming, _FIRED_BY)
    yield from _foreign_keys(connection, naming, ours)
    yield from _triggers(connection, naming, ours)
    yield from _rules(connection, naming, ours)


def _foreign_keys(connection: Connection, naming: Naming, ours: str) -> Iterator[Finding]:
    rows = connection.fetch_rows(
        "SELECT ours.model, f.conname::text, format('%I.%I', n.nspname, c.relname), f.confdeltype::text, f.condeferrable, "
        f"f.condeferred FROM {ours} JOIN pg_catalog.pg_constraint f ON COALESCE(pg_partition_root(f.confrelid), f.confrelid) "
        "= ours.oid JOIN pg_catalog.pg_class c ON c.oid = f.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE f.contype = 'f' AND f.conparentid = 0 AND ours.model <> 'BehavioralSignal' ORDER BY 1, 3, 2"
    )
    for model, name, table, deletion, deferrable, deferred in rows:
        action, then = _ON_DELETE[deletion]
        when = " DEFERRABLE INITIALLY DEFERRED" if deferred else " DEFERRABLE" if deferrable else ""
        if model == "ModelRegistry":
            what = "a run deletes nothing there"
        elif deferred and deletion == "a":
            what = f"a run that leaves such a row out {then}, before COMMIT"
        else:
            what = f"a run that deletes such a row {then}"
        yield Finding(
            "foreign_key",
            model,
            f"Rows of {table} refer to {naming.table(model)} by {quote_identifier(name)} (ON DELETE {action}{when}): {what}.",
            "advice",
        )


def _triggers(connection: Connection, naming: Naming, ours: str) -> Iterator[Finding]:
    version = naming.mapped_column("BehavioralSignal", "modelVersion").name or ""
    fired = " ".join(f"WHEN {quote_literal(model)} THEN {bits}" for model, bits in _FIRED_BY.items())
    rows = connection.fetch_rows(
        "SELECT ours.model, t.tgname::text, format('%I.%I', n.nspname, c.relname), p.oid::regprocedure::text "
        f"FROM {ours} JOIN pg_catalog.pg_trigger t ON COALESCE(pg_partition_root(t.tgrelid), t.tgrelid) = ours.oid "
        "JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid "
        "WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled IN ('O', 'A') "
        f"AND t.tgtype & CASE ours.model {fired} END <> 0 AND (ours.model <> 'BehavioralSignal' OR t.tgattr::text = '' "
        "OR EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = t.tgrelid "
        f"AND a.attname = {quote_literal(version)} AND a.attnum = ANY (t.tgattr::int2[]))) ORDER BY 1, 3, 2"
    )
    for model, name, table, function in rows:
        yield Finding(
            "trigger",
            model,
            f"Trigger {quote_identifier(name)} on {table} ({function}) fires when a run writes there: a run ends with exit 5 "
            f"where it writes to another table, {_ALLOWING}, and where it changes what the run writes.",
            "advice",
        )


def _rules(connection: Connection, naming: Naming, ours: str) -> Iterator[Finding]:
    met = " ".join(f"WHEN {quote_literal(model)} THEN {quote_literal(types)}" for model, types in _REWRITTEN.items())
    rows = connection.fetch_rows(
        f"SELECT ours.model, r.rulename::text FROM {ours} JOIN pg_catalog.pg_rewrite r ON r.ev_class = ours.oid "
        f"WHERE r.ev_enabled IN ('O', 'A') AND strpos(CASE ours.model {met} END, r.ev_type::text) > 0 ORDER BY 1, 2"
    )
    for model, name in rows:
        rule = f"Rule {quote_identifier(name)} on {naming.table(model)}"
        if model == "ModelRegistry":
            yield Finding(
                "rule", model, f"{rule} keeps INSERT ... ON CONFLICT, which a run needs, from working: drop it."
            )
        else:
            yield Finding(
                "rule",
                model,
                f"{rule} rewrites what a run does there: a run ends with exit 5 where that writes to another table, "
                f"{_ALLOWING}, and where it changes what the run writes.",
                "advice",
            )
