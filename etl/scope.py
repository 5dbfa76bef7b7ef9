"""Whose rows a command is about, in which tables, and whether that is allowed: looked at before anything is read."""

from __future__ import annotations

from etl import queries, schema
from etl.config import Settings
from etl.database import Connection, transaction
from etl.errors import DataError
from etl.journal import RunResult
from etl.limits import Limits, several_domains
from etl.privileges import require_privileges
from etl.queries import Scope


def find_scope(
    connection: Connection, settings: Settings, schema_name: str, *, writes: bool
) -> tuple[Scope, list[str]]:
    """Whose rows, in which tables; and what is missing but not needed, in sentences.

    Raises SchemaError where the schema does not fit, ConnectError where the role may not do what is needed.
    """
    with transaction(connection, read_only=True, keep=False):
        naming = schema.detect_naming(connection, schema_name, settings.naming)
        advice = [finding.detail for finding in schema.require(connection, naming)]
        require_privileges(connection, naming, writes=writes)
    return Scope(naming, settings.shadow_prefix, settings.shadow_domain), advice


def limits(settings: Settings) -> Limits:
    """The limits that a person has set."""
    return Limits(settings.expect_users, settings.max_shadow_share, settings.max_bad)


def require_scope(connection: Connection, scope: Scope, settings: Settings, report: RunResult) -> None:
    """Raise DataError where the open snapshot has more shadow users than allowed, not those expected, or none of its users.

    Adds a warning where there are some of several domains, or nobody at all.
    """
    domains = [(str(domain), int(users)) for domain, users in connection.rows(queries.shadow_domains(scope))]
    shadow = sum(users for _, users in domains)
    users = connection.number(queries.user_count(scope)) if settings.max_shadow_share is not None else None
    limits(settings).require_users(shadow, users)
    if warning := several_domains(domains):
        report.warnings.append(warning)
    if not shadow:
        _nobody(connection.number(queries.user_count(scope)), scope, settings, report)


def _nobody(users: int, scope: Scope, settings: Settings, report: RunResult) -> None:
    """Warn of a run without shadow users, where that is meant; else a word or a name is wrong: raise DataError.

    After a run that had some, --allow-empty is not enough: an empty snapshot would follow one that is not.
    """
    where = f" and ends with @{scope.domain}" if scope.domain else ""
    said = (
        f"No user's email begins with {scope.prefix!r}{where}, of {users:,} users, so there is nothing to learn from. "
        "See --shadow-prefix, --shadow-domain and the database's name"
    )
    before = next((night for night in reversed(report.nights) if night.figures.get("shadow users")), None)
    if settings.expect_users is None and settings.audience == "shadow":
        if before is not None:
            raise DataError(
                f"{said}; snapshot {before.name} was of {before.figures['shadow users']:,.0f}, and an empty one would follow. "
                "Where that is meant, say --expect-users 0."
            )
        if not settings.allow_empty:
            raise DataError(f"{said}. Nothing was committed or published. Where that is meant, say --expect-users 0.")
    report.warnings.append(f"{said}.")
