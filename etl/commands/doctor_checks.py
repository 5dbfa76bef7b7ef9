"""The checks of `doctor` that ask the database: what a run itself verifies, and what may end one.

Nothing is written. Each check is a read-only transaction of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from etl.errors import ConnectError, EtlError, LockedError, SchemaError, SettingsError, unreadable
from etl.extract import queries
from etl.load.audit import require_counted
from etl.pipeline.context import Clock, RunResult
from etl.pipeline.guards import KEEP_FOREIGN_ROWS, check_scope, describe_kinds, foreign_rows, multiple_domains_warning
from etl.postgres.connection import OLDEST, Connection, connect
from etl.postgres.naming import MODELS, Naming, quote_identifier, quote_literal
from etl.postgres.schema import check as schema_check
from etl.postgres.schema.catalog import read_catalog
from etl.postgres.schema.mapping import find_relations
from etl.postgres.schema.privileges import require_privileges
from etl.postgres.schema.side_effects import SIDE_EFFECTS, Finding
from etl.postgres.scope import Scope
from etl.postgres.transaction import (
    goes_through_transaction_pooler,
    lock_key,
    lock_predicate,
    read_only_reason,
    transaction,
)
from etl.postgres.url import schema_of, target_of
from etl.reporting.wording import format_count
from etl.runtime.cancellation import CancelledError, CancelToken
from etl.settings.model import Settings
from etl.snapshots.stores.locations import open_store
from etl.transform.ranking_events import MADE_ROWS

NEWEST = 18
"""The newest supported major version of PostgreSQL."""

WARN_SKEW_SECONDS, MAX_SKEW_SECONDS = 5.0, 60.0
"""By how much two clocks may differ before that is a warning, and before it is a failure."""

# The rows of a table as pg_stat_user_tables counts them. A copied database and a server that crashed start counting from
# zero: then the estimate of the last VACUUM or ANALYZE, null if there was none (reltuples = -1).
_ESTIMATED_ROWS = (
    "CASE WHEN n_live_tup + n_dead_tup > 0 THEN n_live_tup WHEN pg_relation_size(relid) = 0 THEN 0 "
    "ELSE (SELECT NULLIF(c.reltuples, -1)::int8 FROM pg_class c WHERE c.oid = relid) END"
)
_LOCALHOST = ("localhost", "127.0.0.1", "::1")
_MANY_DEAD_ROWS = 10_000
_LONG_MINUTES = 10
_MIN_TIMEOUTS = {
    "statement_timeout": 600.0,
    "idle_in_transaction_session_timeout": 600.0,
    "transaction_timeout": 600.0,
    "idle_session_timeout": 10.0,
    "lock_timeout": 1.0,
}
"""Seconds below which a limit of the server may end a run."""
_ADD_VERIFICATION = "Add sslmode=verify-full to the URL, and sslrootcert=FILE (or sslrootcert=system)."

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One check: its name, its state, what was found, and what to do.

    `exit_code` is that of the kind of error that a run would end with, 0 unless the check failed.
    """

    name: str
    state: State
    found: str
    remedy: str = ""
    exit_code: int = 0


def ok(name: str, found: str) -> Check:
    """Return a check that passed."""
    return Check(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Check:
    """Return a check that a run would pass, with something to look at."""
    return Check(name, "warning", found, remedy)


def failed(name: str, kind: type[EtlError], found: str, remedy: str = "") -> Check:
    """Return a check that would end a run with this kind of error."""
    return Check(name, "failed", found, remedy, kind.exit_code)


def skipped(name: str, reason: str) -> Check:
    """Return a check, or all of them about something, that could not be done."""
    return Check(name, "skipped", reason)


def catch_errors(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Yield the checks of `look`. An error that it raises becomes a failed check with the error's message."""
    try:
        yield from look()
    except CancelledError:
        raise
    except EtlError as error:
        yield failed(name, type(error), str(error))
    except OSError as error:  # missing rights, or a working folder that was deleted
        yield failed(name, ConnectError, unreadable(error))


def exit_code(checks: list[Check]) -> int:
    """Return the exit code of the first failed check, which is the one to mend first; 0 if none failed."""
    return next((check.exit_code for check in checks if check.state == "failed"), 0)


def clock_skew(name: str, before: datetime, after: datetime, there: float, whose: str, more: str = "") -> Check:
    """Compare two clocks: ours before and after the other one answered, and its answer `there` (seconds since 1970)."""
    off = max(before.timestamp() - there, there - after.timestamp(), 0.0)
    said = f"{whose}'s clock and this machine's differ by {off:.1f} s{more}"
    remedy = "Set the clocks (NTP). Snapshots are named by this machine's."
    if off >= MAX_SKEW_SECONDS:
        return failed(name, SettingsError, said, remedy)
    return warning(name, said, remedy) if off >= WARN_SKEW_SECONDS else ok(name, said)


def database_checks(settings: Settings, clock: Clock, stop: CancelToken) -> Iterator[Check]:
    """Yield all checks of the database. They are skipped if no connection can be opened."""
    start = time.perf_counter()
    try:
        with connect(target_of(settings), stop) as connection:
            seconds = time.perf_counter() - start
            with transaction(connection, read_only=True):
                user, database = connection.fetch_rows("SELECT current_user::text, current_database()::text")[0]
            yield ok("connection", f"connected in {seconds:.2f} s, as {user} to the database {database}")
            yield from _in_transaction(connection, "server", _server)
            yield from _in_transaction(connection, "TLS", _tls)
            yield from catch_errors("pooler", partial(_pooler, connection))
            yield from _in_transaction(connection, "time limits", _time_limits, settings)
            yield from _in_transaction(connection, "clock", _clock, clock)
            yield from _in_transaction(connection, "audit", _audit)
            yield from _schema_checks(connection, settings)
            yield from _in_transaction(connection, "transactions", _transactions)
    except (ConnectError, SchemaError, SettingsError) as error:
        yield failed("connection", type(error), str(error))
        yield skipped("database", "there is no connection")


def _in_transaction(
    connection: Connection, name: str, look: Callable[..., Iterator[Check]], *arguments: object
) -> Iterator[Check]:
    """Do a check in a transaction of its own."""

    def within() -> Iterator[Check]:
        with transaction(connection, read_only=True):
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
    if obstacle := read_only_reason(connection):
        why, remedy = obstacle
        yield failed("server", ConnectError, why, f"{remedy} `export` needs no more than this.")


def _tls(connection: Connection) -> Iterator[Check]:
    used, version, socket = connection.fetch_rows(
        "SELECT s.ssl, s.version, inet_server_addr() IS NULL FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid()"
    )[0]
    parts = connection.address.parts
    host, mode = parts.get("host", ""), parts.get("sslmode")
    said = f"sslmode={mode}" if mode else "no sslmode is given, which means prefer"
    if socket:
        yield ok("TLS", "not needed: a unix socket of this machine")
    elif not used and host in _LOCALHOST:
        yield ok("TLS", f"off, and the server is on this machine ({said})")
    elif not used:
        yield warning(
            "TLS",
            f"off ({said}): the network in between can read and change all of it",
            _ADD_VERIFICATION,
        )
    elif mode == "verify-full" or host in _LOCALHOST:
        yield ok("TLS", f"{version}, {said}")
    else:
        what = "name" if mode == "verify-ca" else "identity"
        yield warning(
            "TLS",
            f"{version}, but the server's {what} is not verified ({said})",
            _ADD_VERIFICATION,
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
        yield ok("pooler", "there may be one in session mode: all rows are read through this connection")


def _time_limits(connection: Connection, settings: Settings) -> Iterator[Check]:
    """Report limits of the server that may end a run, whose statements take longer the more rows there are.

    They are compared with the newest snapshot's steps: what took longer than a limit may be cut off the next time.
    """
    rows = connection.fetch_rows(
        "SELECT name, setting::float8 / 1000, source = 'client', quote_ident(current_user), quote_ident(current_database()) "
        f"FROM pg_settings WHERE name IN ({', '.join(map(quote_literal, _MIN_TIMEOUTS))}) AND setting::float8 > 0 ORDER BY name"
    )
    last, total, longest = _last_run(settings)
    took = dict.fromkeys(_MIN_TIMEOUTS, longest) | {"transaction_timeout": total, "lock_timeout": 0.0}
    short = [row for row in rows if row[1] < max(took[row[0]], _MIN_TIMEOUTS[row[0]])]
    said = ", ".join(f"{name} {seconds:g} s" for name, seconds, *_ in rows)
    if not short:
        yield ok("time limits", said or "none that would cut a run off")
        return
    lift = "; ".join(
        f"take {name} out of the URL's options or PGOPTIONS"
        if by_client
        else f"ALTER ROLE {role} IN DATABASE {database} SET {name} = 0"
        for name, _, by_client, role, database in short
    )
    exceeded = any(seconds < took[name] for name, seconds, *_ in short)
    why = f"the last run would be cut off ({last})" if exceeded else "a long run would be cut off"
    yield warning("time limits", f"{said}: {why}", f"Lift them for this job: {lift}.")


def _last_run(settings: Settings) -> tuple[str, float, float]:
    """Return how long the newest snapshot's run took: in words, its seconds, and those of its longest step. 0 if unknown."""
    with suppress(EtlError, OSError, KeyError, TypeError, ValueError):
        profile = (open_store(settings.out, settings.environ).latest() or {})["profile"]
        step = max(profile["steps"], key=lambda each: float(each["seconds"]))
        total, longest = float(profile["seconds"]), float(step["seconds"])
        return f"{total:.1f} s, of them {longest:.1f} s in the step {step['step']}", total, longest
    return "", 0.0, 0.0


def _clock(connection: Connection, clock: Clock) -> Iterator[Check]:
    before = clock()
    there, zone = connection.fetch_rows(
        "SELECT extract(epoch FROM clock_timestamp())::float8, reset_val FROM pg_settings WHERE name = 'TimeZone'"
    )[0]
    yield clock_skew("clock", before, clock(), there, "the server", f"; its time zone is {zone}, times are read as UTC")


def _schema_checks(connection: Connection, settings: Settings) -> Iterator[Check]:
    """Check the schema and what is in it, as a run does before it reads."""
    name = schema_of(settings, connection.address)
    try:
        with transaction(connection, read_only=True):
            naming, _ = find_relations(connection, name, settings.naming, settings.map)
            findings = schema_check.check(connection, naming)
    except SchemaError as error:
        yield failed("schema", SchemaError, str(error))
        yield skipped("rights and rows", "the schema is not there")
    else:
        yield from _in_transaction(connection, "schema", _schema, naming)
        yield from _advice(findings)
        yield from _in_transaction(connection, "rights", _privileges, naming)
        scope = Scope.of(naming, settings, MADE_ROWS)
        if any(each.model == "User" and each.kind in {"table", "column"} for each in findings):
            yield skipped("shadow users", "the table of users does not fit")
        else:
            yield from _in_transaction(connection, "shadow users", _shadow_users, scope, settings)
        if any(each.severity == "blocking" for each in findings):
            yield skipped("foreign rows", "the schema does not fit")
        else:
            yield from _in_transaction(connection, "foreign rows", _foreign_rows, scope)
        yield from _in_transaction(connection, "tables", _tables, naming)
    yield from _in_transaction(connection, "other run", _other_run, name)


def _schema(connection: Connection, naming: Naming) -> Iterator[Check]:
    schema_check.require(connection, naming, read_catalog(connection, naming), writes=True)
    names = ", ".join(map(naming.table_name, MODELS))
    yield ok("schema", f"schema {quote_identifier(naming.schema)}, {naming.kind} names ({names}): nothing is missing")


def _advice(findings: list[Finding]) -> Iterator[Check]:
    """Report what does not keep a run from starting: missing indexes, and what else happens when a run writes."""
    advice = [each for each in findings if each.severity == "advice"]
    for each in advice:
        if each.kind not in SIDE_EFFECTS:
            name, remedy = ("index", "") if each.kind == "index" else ("schema", "A run goes on without it.")
            yield warning(name, each.detail, remedy)
        elif each.model == "ModelRegistry" and each.kind == "foreign_key":
            yield ok("side effects", each.detail)
        else:
            remedy = "`bpr-etl run --dry-run` reports the rows concerned, and rolls back."
            yield warning("side effects", each.detail, remedy)
    if not any(each.kind in {"index", "table"} for each in findings):
        yield ok("index", "the design's indexes are there")
    if not any(each.kind in SIDE_EFFECTS for each in advice):
        nothing = "no foreign key points at the tables that a run writes, and no trigger or rule is on them"
        yield ok("side effects", nothing)


def _audit(connection: Connection) -> Iterator[Check]:
    require_counted(connection)
    yield ok("audit", "the server counts written rows, so a run can detect what triggers write")


def _privileges(connection: Connection, naming: Naming) -> Iterator[Check]:
    try:
        require_privileges(connection, naming, writes=True)
    except SchemaError as error:
        yield failed("rights", SchemaError, str(error))
    except ConnectError as error:
        require_privileges(connection, naming, writes=False)  # an error without the hint, if these are missing, too
        yield failed("rights", ConnectError, str(error), "For `export` alone they are enough.")
    else:
        yield ok("rights", "the role may do all that `run` needs")


def _shadow_users(connection: Connection, scope: Scope, settings: Settings) -> Iterator[Check]:
    check_scope(connection, scope, settings, RunResult("doctor", datetime.min.replace(tzinfo=UTC)))
    domains = [(str(domain), int(users)) for domain, users in connection.fetch_rows(queries.shadow_domains(scope))]
    shadow, users = sum(number for _, number in domains), connection.fetch_int(queries.user_count(scope))
    shown = ", ".join(f"{domain or '(none)'} {number:,}" for domain, number in domains[:5])
    said = f"{shadow:,} of {format_count(users, 'user')} ({shadow / max(users, 1):.1%}); domains: {shown or 'none'}"
    if multiple_domains_warning(domains):
        yield warning("shadow users", said, "If some are real people's, say --shadow-domain.")
    else:
        yield ok("shadow users", said)


def _foreign_rows(connection: Connection, scope: Scope) -> Iterator[Check]:
    """Report shadow users' rows that a run does not make, and deletes by default."""
    kinds = foreign_rows(connection, scope)
    if kinds and not scope.keep_foreign_rows:
        said = f"shadow users' rows that a run does not make, and will delete: {describe_kinds(kinds)}"
        yield warning("foreign rows", said, KEEP_FOREIGN_ROWS)
    else:
        yield ok("foreign rows", f"left as they are: {describe_kinds(kinds)}" if kinds else "none")


def _tables(connection: Connection, naming: Naming) -> Iterator[Check]:
    """Report dead rows of the tables that a run writes. DELETE + COPY leaves one per row until VACUUM."""
    written = ("PersonaDimension", "RankingEvent", "BehavioralSignal")
    relations = map(naming.relation, written)
    names = ", ".join(f"({quote_literal(each.schema)}, {quote_literal(each.name)})" for each in relations)
    rows = connection.fetch_rows(
        f"SELECT relname::text, {_ESTIMATED_ROWS}, n_dead_tup, pg_size_pretty(pg_total_relation_size(relid)), "
        "to_char(greatest(last_vacuum, last_autovacuum) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), "
        "(SELECT 'autovacuum_enabled=false' = ANY (c.reloptions) FROM pg_class c WHERE c.oid = relid) "
        f"FROM pg_stat_user_tables WHERE (schemaname, relname) IN ({names}) ORDER BY 1"
    )
    for table, live, dead, size, vacuumed, off in rows:
        rows_said = "rows not counted yet (ANALYZE does)" if live is None else format_count(live, "row")
        said = (
            f"{table}: {rows_said}, {dead:,} dead, {size}, last vacuum {vacuumed + ' UTC' if vacuumed else 'unknown'}"
        )
        if off or (dead > _MANY_DEAD_ROWS and dead > (live or 0)):
            remedy = f"Run VACUUM (ANALYZE) {table}, and see that autovacuum is on and keeps up."
            yield warning("tables", said + (", autovacuum is off" if off else ""), remedy)
        else:
            yield ok("tables", said)


def _other_run(connection: Connection, name: str) -> Iterator[Check]:
    key = lock_key(name)
    holders = connection.fetch_rows(
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
        f"AND xact_start < clock_timestamp() - interval '{_LONG_MINUTES} minutes'"
    )[0]
    if count:
        yield warning(
            "transactions",
            f"{count:,} open for more than {_LONG_MINUTES} minutes, the longest for {seconds / 60:,.0f} (server process {pid})",
            "They keep dead rows from being cleaned, and may hold rows that the backfill waits for: see what they are.",
        )
    else:
        yield ok(
            "transactions",
            f"none open for more than {_LONG_MINUTES} minutes, as far as this role can see",
        )
