"""Findings about a database and about a published snapshot: which law was looked at, and where it is broken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from etl.affinity import affinity_model
from etl.database import Connection
from etl.laws import laws, validation_query
from etl.queries import Scope
from etl.snapshot import MANIFEST, file_sha256, open_snapshot


@dataclass(frozen=True)
class Finding:
    """A law, and how many rows (or files) break it: 0 means that it holds."""

    law: str
    broken: int
    detail: str = ""


@dataclass(frozen=True)
class Validated:
    """All findings, and the rows of the design's validation query."""

    findings: list[Finding]
    rows: pl.DataFrame

    @property
    def broken(self) -> list[Finding]:
        """The findings that are not nought."""
        return [finding for finding in self.findings if finding.broken]


def validate_database(connection: Connection, scope: Scope) -> Validated:
    """Look at every law of section 2, and run the design's validation query, inside the open transaction."""
    rows = connection.frame(validation_query(scope))
    findings = [Finding(law.name, int(connection.rows(law.sql)[0][0])) for law in laws(scope, affinity_model().unknown)]
    asked = Finding("the design's validation query returns rows", int(rows.height == 0))
    return Validated([asked, *findings], rows)


def validate_snapshot(path: Path) -> list[Finding]:
    """Check a published snapshot against its manifest: every file's rows, bytes and SHA-256, and that no file is unlisted.

    Also the laws of triples: no negative is a positive of its event, and no row stands twice. Raises DataError when the
    manifest can't be read.
    """
    opened = open_snapshot(path)
    snapshot = opened.folder
    listed = {entry["path"]: entry for entry in opened.manifest["files"]}
    there = {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()} - {MANIFEST}
    missing, unlisted = sorted(set(listed) - there), sorted(there - set(listed))
    changed = [name for name in sorted(there & set(listed)) if not _as_listed(snapshot / name, listed[name])]
    findings = [
        Finding("every file of the manifest is there", len(missing), ", ".join(missing[:3])),
        Finding("every file is in the manifest", len(unlisted), ", ".join(unlisted[:3])),
        Finding("every file has the rows, bytes and SHA-256 of the manifest", len(changed), ", ".join(changed[:3])),
    ]
    if any(finding.broken for finding in findings):
        return findings
    return [*findings, *_triples(snapshot)]


def _as_listed(path: Path, entry: dict[str, Any]) -> bool:
    if path.stat().st_size != entry["bytes"]:
        return False
    if file_sha256(path) != entry["sha256"]:
        return False
    return path.suffix != ".parquet" or pq.read_metadata(path).num_rows == entry["rows"]


def _triples(snapshot: Path) -> list[Finding]:
    """The laws of triples, a partition at a time."""
    same = twice = foreign = 0
    for folder in sorted(p for p in (snapshot / "triples").glob("**/city=*") if p.is_dir()):
        triples = pl.read_parquet(sorted(folder.glob("*.parquet")), hive_partitioning=False)
        positive, negative = ("pos_item", "neg_item") if "pos_item" in triples.columns else ("pos_idx", "neg_idx")
        key = ["event_id", positive, negative]
        twice += triples.height - triples.select(key).n_unique()
        taken = triples.select("event_id", pl.col(positive).alias(negative)).unique()
        same += triples.join(taken, on=["event_id", negative], how="semi").height
        events = snapshot / "events" / folder.relative_to(snapshot / "triples")
        known = pl.read_parquet(sorted(events.glob("*.parquet")), columns=["event_id"], hive_partitioning=False)
        foreign += triples.join(known, on="event_id", how="anti").height
    return [
        Finding("no negative is a positive of its event", same),
        Finding("no (event, positive, negative) stands twice", twice),
        Finding("every triple's event is in events/", foreign),
    ]
