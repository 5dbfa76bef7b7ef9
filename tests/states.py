"""What a database and an output folder hold, as digests that two moments can be compared by."""

from __future__ import annotations

import hashlib
from pathlib import Path

import psycopg

TABLES = (
    "User",
    "Trip",
    "ItinerarySlot",
    "ActivityNode",
    "BehavioralSignal",
    "PersonaDimension",
    "RankingEvent",
    "ModelRegistry",
)

OWNER = {
    "User": 'x."id"',
    "Trip": 'x."userId"',
    "ItinerarySlot": '(SELECT t."userId" FROM "Trip" t WHERE t."id" = x."tripId")',
    "BehavioralSignal": 'x."userId"',
    "PersonaDimension": 'x."userId"',
    "RankingEvent": 'x."userId"',
}
REAL = """NOT EXISTS (SELECT FROM "User" u WHERE u."id" = {owner} AND starts_with(u."email", 'shadow-'))"""


def database_state(url: str) -> dict[str, str]:
    """A digest of every row of every table."""
    return _digests(url, dict.fromkeys(TABLES, "true"))


def real_state(url: str) -> dict[str, str]:
    """A digest of the rows that belong to nobody or to a user who is no shadow user."""
    return _digests(url, {table: REAL.format(owner=owner) for table, owner in OWNER.items()})


def _digests(url: str, scopes: dict[str, str]) -> dict[str, str]:
    with psycopg.connect(url) as connection:
        return {
            table: connection.execute(
                f"""SELECT count(*)::text || ':' || coalesce(md5(string_agg(x::text, E'\\n' ORDER BY x::text COLLATE "C")), '')
                FROM "{table}" x WHERE {scope}"""
            ).fetchone()[0]
            for table, scope in scopes.items()
        }


def folder_state(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder, and of no folder that has none."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def data_files(snapshot: str | Path) -> dict[str, str]:
    """A digest of every Parquet file of a snapshot."""
    return {path: digest for path, digest in folder_state(Path(snapshot)).items() if path.endswith(".parquet")}
