"""The checks of `doctor` that ask the database. Nothing is written: every check is a transaction of its own, read-only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Any

from etl.commands.doctor_check import Check, catch_errors, failed, ok, warning
from etl.errors import ConnectError, DataError, LockedError, SchemaError, SettingsError
from etl.extract import queries
from etl.load.audit import require_counted
from etl.pipeline.guards import check_user_count, multiple_domains_warning
from etl.postgres import catalog as schema
from etl.postgres.connection import (
    OLDEST,
    Connection,
    connect,
    goes_through_transaction_pooler,
    lock_key,
    lock_predicate,
    no_writes,
    transaction,
)
from etl.postgres.ddl import MODELS, Naming, quote_identifier, quote_literal
from etl.postgres.privileges import require_privileges
from etl.postgres.scope import Scope
from etl.postgres.url import connection_parts, schema_of, target_of
from etl.reporting.numbers import counted
from etl.runtime.cancellation import CancelToken
from etl.settings.model import Settings

NEWEST = 18
"""The newest major release of PostgreSQL that the contract speaks of."""

SKEW, WILD_SKEW = 5.0, 60.0
"""Seconds by which two clocks may differ before it is said, and before it is wrong."""

# The rows of a table as pg_stat_user_tables counts them. A copy of a database, and a server that crashed, begin to count
# anew: then as the last VACUUM or ANALYZE saw them, and null where there was none, which is what reltuples = -1 says.
_ESTIMATE = (
    "CASE WHEN n_live_tup + n_dead_tup > 0 THEN n_live_tup WHEN pg_relation_size(relid) = 0 THEN 0 "
    "ELSE (SELECT NULLIF(c.reltuples, -1)::int8 FROM pg_class c WHERE c.oid = relid) END"
)

_LOCAL = ("localhost", "127.0.0.1", "::1")
_DEAD, _LONG = 10_000, 600.0
_SHORT = {
    "statement_timeout": 600.0,
    "idle_in_transaction_session_timeout": 600.0,
    "transaction_timeout": 600.0,
    "idle_session_timeout": 10.0,
    "lock_timeout": 1.0,
}
"""Seconds below which a limit of the server's may end a run."""
_CHECKS = (
    *("server", "TLS", "pooler", "time limits", "clock", "audit", "schema", "side effects", "rights", "shadow users"),
    *("tables", "other run"),
)

Clock = Callable[[], datetime]


def database_checks(settings: Settings, clock: Clock, stop: CancelToken) -> Iterator[Check]:
    """All of them; where no connection is to be had, the others are skipped."""
    address = target_of(settings)
    start = time.perf_counter()
    try:
        with connect(address, stop) as connection:
            seconds = time.perf_counter() - start
            with transaction(connection, read_only=True, commit=False):
                user, database = connection.fetch_rows("SELECT current_user::text, current_database()::text")[0]
            yield ok("connection", f"connected in {seconds:.2f} s, as {user} to the database {database}")
            look = partial(_looked, connection)
            yield from look("server", _server)
            yield from look("TLS", _tls, settings)
            yield from catch_errors("pooler", partial(_pooler, connection))
            yield from look("time limits", _time_limits)
            yield from look("clock", _clock, clock)
            yield from look("audit", _audit)
            yield from _schema_checks(connection, settings)
            yield from look("transactions", _transactions)
    except (ConnectError, SchemaError, SettingsError) as error:
        yield Check("connection", "failed", str(error), exit_code=error.exit_code)
        yield from (Check(name, "skipped", "there is no connection") for name in _CHECKS)


def _looked(
    connection: Connection, name: str, look: Callable[..., Iterator[Check]], *arguments: object
) -> Iterator[Check]:
    """What a look comes to, in a transaction of its own."""

    def within() -> Iterator[Check]:
        with transaction(connection, read_only=True, commit=False):
            found = list(look(connection, *arguments))
        yield from found

    return catch_errors(name, within)


def _server(connection: Connection) -> Iterator[Check]:
    version, number, encoding, synced = connection.fetch_rows(
        "SELECT current_setting('server_version'), current_setting('server_version_num')::int8, "
        "current_setting('server_encoding'), current_setting('fsync')::bool"
    )[0]
    said = f"PostgreSQL {version}, encoding {encoding}"
    if not synced:
        said += ", fsync off: a crash of its machine may lose what was committed"
    if number // 10_000 > NEWEST:
        yield warning("server", f"{said}; bpr-etl is tested with {OLDEST} to {NEWEST}", "Look for a newer bpr-etl.")
    else:
        yield ok("server", said)
    if obstacle := no_writes(connection):
        why, remedy = obstacle
        yield failed("server", ConnectError, why, f"{remedy} `export` needs no more than this.")


def _tls(connection: Connection, settings: Settings) -> Iterator[Check]:
    used, version, socket = connection.fetch_rows(
        "SELECT s.ssl, s.version, inet_server_addr() IS NULL FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid()"
    )[0]
    parts = connection_parts(settings.database_url or "", settings.environ)
    host, mode = parts.get("host", ""), parts.get("sslmode")
    said = f"sslmode={mode}" if mode else "no sslmode is said, which means prefer"
    if socket:
        yield ok("TLS", "not needed: a unix socket of this machine")
    elif not used and host in _LOCAL:
        yield ok("TLS", f"off, and the server is on this machine ({said})")
    elif not used:
        yield warning(
            "TLS",
            f"off ({said}): whoever is on the way can read and change all of it",
            "Add sslmode=verify-full to the URL, and sslrootcert=FILE (or sslrootcert=system).",
        )
    elif mode == "verify-full" or host in _LOCAL:
        yield ok("TLS", f"{version}, {said}")
    else:
        yield warning(
            "TLS",
            f"{version}, but nobody looks whether it is the right server ({said})",
            "Add sslmode=verify-full to the URL, and sslrootcert=FILE (or sslrootcert=system).",
        )


def _pooler(connection: Connection) -> Iterator[Check]:
    remedy = (
        "Give the direct URL (DIRECT_URL, or port 5432): a run needs one server process from its lock to its COMMIT."
    )
    if connection.direct:
        yield ok("pooler", "none")
    elif goes_through_transaction_pooler(connection):
        yield failed("pooler", ConnectError, "the connection goes through a transaction pooler", remedy)
    elif hint := connection.address.pooler_hint:
        yield warning("pooler", f"a transaction pooler is suspected: {hint}", remedy)
    else:
        yield ok("pooler", "there may be one, and it keeps a server process for a session: rows are read one by one")


def _time_limits(connection: Connection) -> Iterator[Check]:
    """Limits that may end a night: a night's statements and its transaction take as long as there are rows."""
    rows = connection.fetch_rows(
        f"SELECT name, setting::float8 / 1000 FROM pg_settings WHERE name IN ({', '.join(map(quote_literal, _SHORT))}) "
        f"AND setting::float8 > 0 ORDER BY name"
    )
    said = ", ".join(f"{name} {seconds:g} s" for name, seconds in rows)
    if any(seconds < _SHORT[name] for name, seconds in rows):
        remedy = "Lift them for this role: ALTER ROLE ... SET statement_timeout = 0 (and the others that are named)."
        yield warning("time limits", f"{said}: a long night would be cut off", remedy)
    else:
        yield ok("time limits", said or "none that would cut a night off")


def _clock(connection: Connection, clock: Clock) -> Iterator[Check]:
    before = clock()
    there, zone = connection.fetch_rows(
        "SELECT extract(epoch FROM clock_timestamp())::float8, reset_val FROM pg_settings WHERE name = 'TimeZone'"
    )[0]
    yield clock_skew("clock", before, clock(), there, "the server", f"; its time zone is {zone}, times are read as UTC")


def clock_skew(name: str, before: datetime, after: datetime, there: float, whose: str, more: str = "") -> Check:
    """How two clocks differ: ours before and after the other one was asked, which said `there` (seconds since 1970)."""
    off = max(before.timestamp() - there, there - after.timestamp(), 0.0)
    said = f"{whose}'s clock and this machine's differ by {off:.1f} s"
    remedy = "Set the clocks (NTP). Snapshots are named by this machine's."
    if off >= WILD_SKEW:
        return failed(name, SettingsError, said + more, remedy)
    return warning(name, said + more, remedy) if off >= SKEW else ok(name, said + more)


def _schema_checks(connection: Connection, settings: Settings) -> Iterator[Check]:
    """The schema, and what can't be asked where it is not there."""
    name = schema_of(settings, connection.address)
    try:
        with transaction(connection, read_only=True, commit=False):
            naming = schema.detect_naming(connection, name, settings.naming)
            findings = schema.check(connection, naming)
    except SchemaError as error:
        yield Check("schema", "failed", str(error), exit_code=error.exit_code)
        without = ("side effects", "rights", "shadow users", "tables")
        yield from (Check(each, "skipped", "the schema is not there") for each in without)
        yield from _looked(connection, "other run", _other_run, name)
        return
    yield from _check_schema(naming, findings)
    yield from _looked(connection, "rights", _check_privileges, naming)
    scope = Scope(naming, settings.shadow_prefix, settings.shadow_domain)
    missing = {each.model for each in findings if each.severity == "blocking" and each.kind in {"table", "column"}}
    if "User" in missing:
        yield Check("shadow users", "skipped", "the table of users does not fit")
    else:
        yield from _looked(connection, "shadow users", _shadow_users, scope, settings)
    yield from _looked(connection, "tables", _tables, naming)
    yield from _looked(connection, "other run", _other_run, name)


def _check_schema(naming: Naming, findings: list[schema.Finding]) -> Iterator[Check]:
    said = (
        f"schema {quote_identifier(naming.schema)}, {naming.kind} names ({', '.join(map(naming.table_name, MODELS))})"
    )
    blocking = [each for each in findings if each.severity == "blocking"]
    if blocking:
        remedy = (
            "`bpr-etl schema apply` creates missing tables; for the rest migrate to what `bpr-etl schema print --all` "
            "shows."
        )
        if all(each.kind == "publication" for each in blocking):
            remedy = "The tables' owner can do that."
        yield failed("schema", SchemaError, f"{said}: {' '.join(each.detail for each in blocking)}", remedy)
    else:
        yield ok("schema", f"{said}: nothing is missing")
    for each in findings:
        if each.severity == "advice" and each.kind not in schema.SIDE_EFFECTS:
            name, remedy = ("index", "") if each.kind == "index" else ("schema", "A run goes on without it.")
            yield warning(name, each.detail, remedy)
    if not any(each.kind in {"index", "table"} for each in findings):
        yield ok("index", "the design's indexes are there")
    yield from _side_effects(findings)


def _side_effects(findings: list[schema.Finding]) -> Iterator[Check]:
    """What else happens when a run writes, as far as it is no reason for a run not to begin."""
    found = [each for each in findings if each.kind in schema.SIDE_EFFECTS and each.severity == "advice"]
    for each in found:
        if each.model == "ModelRegistry" and each.kind == "foreign_key":
            yield ok("side effects", each.detail)
        else:
            yield warning(
                "side effects", each.detail, "`bpr-etl run --dry-run` says what it comes to, and keeps nothing."
            )
    if not found:
        yield ok(
            "side effects", "no foreign key points at the tables that a run writes, and no trigger or rule is on them"
        )


def _audit(connection: Connection) -> Iterator[Check]:
    require_counted(connection)
    yield ok("audit", "the server counts the rows that a run writes, by which a run sees what triggers write")


def _check_privileges(connection: Connection, naming: Naming) -> Iterator[Check]:
    try:
        require_privileges(connection, naming, writes=True)
    except ConnectError as error:
        reads = True
        try:
            require_privileges(connection, naming, writes=False)
        except ConnectError:
            reads = False
        more = "For `export` alone they are enough." if reads else ""
        yield failed("rights", ConnectError, str(error), more)
    else:
        yield ok("rights", "the role may do all that `run` needs")


def _shadow_users(connection: Connection, scope: Scope, settings: Settings) -> Iterator[Check]:
    domains = [(str(domain), int(users)) for domain, users in connection.fetch_rows(queries.shadow_domains(scope))]
    shadow, users = sum(number for _, number in domains), connection.fetch_int(queries.user_count(scope))
    if not shadow and not settings.may_be_empty:
        at = f" and ends with @{scope.domain}" if scope.domain else ""
        yield failed(
            "shadow users",
            DataError,
            f"of {counted(users, 'user')} none has an email that begins with {scope.prefix!r}{at}: nothing can be learned",
            "See --shadow-prefix, --shadow-domain, and whether this is the right database.",
        )
        return
    shown = ", ".join(f"{domain or '(none)'} {number:,}" for domain, number in domains[:5])
    said = f"{shadow:,} of {counted(users, 'user')} ({shadow / max(users, 1):.1%}); domains: {shown or 'none'}"
    check_user_count(settings, shadow, users)
    if multiple_domains_warning(domains):
        yield warning("shadow users", said, "If some are real people's, say --shadow-domain.")
    else:
        yield ok("shadow users", said)


def _tables(connection: Connection, naming: Naming) -> Iterator[Check]:
    """Dead rows of the tables that a night writes: DELETE + COPY leaves as many as there are, until somebody vacuums."""
    written = ("PersonaDimension", "RankingEvent", "BehavioralSignal")
    names = ", ".join(quote_literal(naming.table_name(model)) for model in written)
    rows = connection.fetch_rows(
        f"SELECT relname::text, {_ESTIMATE}, n_dead_tup, pg_size_pretty(pg_total_relation_size(relid)), "
        "to_char(greatest(last_vacuum, last_autovacuum) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), "
        "(SELECT 'autovacuum_enabled=false' = ANY (c.reloptions) FROM pg_class c WHERE c.oid = relid) "
        f"FROM pg_stat_user_tables WHERE schemaname = {quote_literal(naming.schema)} AND relname IN ({names}) ORDER BY 1"
    )
    for table, live, dead, size, vacuumed, off in rows:
        rows_said = "rows not counted yet (ANALYZE does)" if live is None else counted(live, "row")
        said = (
            f"{table}: {rows_said}, {dead:,} dead, {size}, last vacuum {vacuumed + ' UTC' if vacuumed else 'unknown'}"
        )
        if off or (dead > _DEAD and dead > (live or 0)):
            remedy = f"Run VACUUM (ANALYZE) {naming.qualified(table)}, and see that autovacuum is on and keeps up with a night."
            yield warning("tables", said + (", autovacuum is off" if off else ""), remedy)
        else:
            yield ok("tables", said)


def _other_run(connection: Connection, name: str) -> Iterator[Check]:
    key = lock_key(name)
    holders: list[tuple[Any, ...]] = connection.fetch_rows(
        "SELECT l.pid, to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM pg_locks l "
        f"LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.granted AND {lock_predicate(key)} "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    if holders:
        pid, since = holders[0]
        yield failed(
            "other run",
            LockedError,
            f"a bpr-etl run is at work on schema {name!r} (server process {pid}, since {since or 'a time that is hidden'} UTC)",
            "Wait for it (--wait-lock). If it is dead, the server ends it within minutes; `SELECT pg_terminate_backend"
            f"({pid})` does at once.",
        )
    else:
        yield ok("other run", f"none is at work on schema {name!r}")


def _transactions(connection: Connection) -> Iterator[Check]:
    count, seconds, pid = connection.fetch_rows(
        "SELECT count(*), COALESCE(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8, "
        "(array_agg(pid ORDER BY xact_start))[1] FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        f"AND datname = current_database() AND backend_type = 'client backend' "
        f"AND xact_start < clock_timestamp() - interval '{_LONG:g} s'"
    )[0]
    if count:
        yield warning(
            "transactions",
            f"{count:,} open for more than {_LONG / 60:g} minutes, the longest for {seconds / 60:,.0f} (server process {pid})",
            "They keep dead rows from being cleaned, and may hold rows that the backfill waits for: see what they are.",
        )
    else:
        yield ok("transactions", f"none open for more than {_LONG / 60:g} minutes, as far as this role can see")
