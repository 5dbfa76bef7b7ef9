"""The laws of a database, looked at: which one, and where it is broken."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from etl.load.constraints import constraints, validation_query
from etl.postgres.connection import Connection
from etl.postgres.scope import Scope
from etl.runtime.run_record import Progress
from etl.transform.personas import affinity_model


@dataclass(frozen=True)
class Finding:
    """A law, and how many rows (or files) break it: 0 means that it holds."""

    law: str
    broken: int
    detail: str = ""


@dataclass(frozen=True)
class ValidationReport:
    """All findings, and the rows of the design's validation query."""

    findings: list[Finding]
    rows: pl.DataFrame

    @property
    def broken(self) -> list[Finding]:
        """The findings that are not nought."""
        return [finding for finding in self.findings if finding.broken]


def validate_database(connection: Connection, scope: Scope, progress: Progress) -> ValidationReport:
    """Look at every law of section 2, and run the design's validation query, inside the open transaction."""
    rows = connection.fetch_frame(validation_query(scope))
    to_look_at = list(constraints(scope, affinity_model().default_affinity))
    findings: list[Finding] = []
    for law in to_look_at:
        progress("laws", len(findings), len(to_look_at))
        findings.append(Finding(law.name, int(connection.fetch_rows(law.sql)[0][0])))
    asked = Finding("the design's validation query returns rows", int(rows.height == 0))
    return ValidationReport([asked, *findings], rows)
