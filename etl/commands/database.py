"""The commands about databases: `validate`, `synth`, `schema`, `db` and `doctor`.

A command's docstring is its help. Libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict

from etl.commands.runner import CommandResult, observe_step
from etl.commands.snapshots import validate_snapshot
from etl.errors import ConnectError, DataError, NothingToDo, SchemaError
from etl.runtime.cancellation import CancelToken
from etl.settings.model import Settings


def validate(settings: Settings, stop: CancelToken) -> CommandResult:
    """Check a database against the job's rules, or a snapshot against its manifest; exit 5 when a check fails."""
    return (validate_snapshot if settings.snapshot else validate_database)(settings, stop)


def validate_database(settings: Settings, stop: CancelToken) -> CommandResult:
    """Check a database."""
    from etl.commands.terminal.console import findings_lines, rows_table
    from etl.pipeline import database

    with observe_step(settings, stop, "checks") as (progress, _):
        found = database.validate_database(settings, stop, progress)
    return CommandResult(
        {"findings": [asdict(finding) for finding in found.findings], "rows": found.rows.to_dicts()},
        [
            findings_lines(found.findings),
            *([rows_table("\nThe design's validation query", found.rows)] if settings.verbose else []),
        ],
        DataError.exit_code if found.broken else 0,
    )


def synth(settings: Settings, stop: CancelToken) -> CommandResult:
    """Fill an empty database with the synthetic world; creates the tables where there are none."""
    from etl.pipeline import database

    with observe_step(settings, stop, "synthetic world") as (_, count):
        rows = database.synth(settings, stop, count)
    return CommandResult({"rows": rows}, [f"{name}: {number:,} rows" for name, number in rows.items()])


def doctor(settings: Settings, stop: CancelToken) -> CommandResult:
    """Check all that a run needs, and say what to do where it is not there: database, rights, schema, store, libraries."""
    from etl.commands.doctor import run_checks
    from etl.commands.doctor_checks import exit_code
    from etl.commands.terminal.tables import checks_table
    from etl.pipeline.context import utc_now

    checks = list(run_checks(settings, utc_now, stop))
    facts = {"checks": [asdict(check) for check in checks]}
    return CommandResult(facts, [checks_table(checks, verbose=settings.verbose)], exit_code(checks))


def schema_print(settings: Settings, stop: CancelToken) -> CommandResult:
    """Print what is to be added to the application's schema, as SQL or as Prisma models; with --role the GRANTs of a role."""
    from etl.pipeline import database
    from etl.postgres.schema import ddl, privileges

    try:
        naming, known = database.naming_to_print(settings, stop)
    except ConnectError as error:
        raise ConnectError(f"{error} With --naming model or --naming mapped, this command needs no database.") from None
    as_sql = settings.role is not None or settings.format == "sql"
    if settings.role is not None:
        text = privileges.grants(naming, settings.role)
    else:
        text = (ddl.schema_sql if as_sql else ddl.schema_prisma)(naming, added=not settings.all)
    if not known:
        hint = (
            'For tables named by model ("User"). For mapped ones ("users"), name the database, or say --naming mapped.'
        )
        text = f"{'--' if as_sql else '//'} {hint}\n{text}"
    return CommandResult({"format": settings.format, "text": text}, [text], primary=True)


def schema_check(settings: Settings, stop: CancelToken) -> CommandResult:
    """Report what is missing in a database, and which triggers a run would fire there; exit 4 if a run can't work."""
    from etl.pipeline import database

    findings = database.check_schema(settings, stop)
    blocking = any(each.severity == "blocking" for each in findings)
    return CommandResult(
        {"findings": [asdict(finding) for finding in findings]},
        [finding.detail for finding in findings] or ["Nothing is missing."],
        SchemaError.exit_code if blocking else 0,
    )


def schema_map(settings: Settings, stop: CancelToken) -> CommandResult:
    """Print a proposed mapping of this database for the settings file: what was found, and what needs a decision."""
    from etl.pipeline import database

    text = database.propose_map(settings, stop)
    return CommandResult({"text": text, "decisions": text.count("# DECIDE:")}, [text], primary=True)


def schema_apply(settings: Settings, stop: CancelToken) -> CommandResult:
    """Create what is missing; the application's own tables too, where there are none. Alters and drops nothing."""
    from etl.pipeline import database

    created = database.apply_schema(settings, stop)
    return CommandResult({"created": created}, [f"created {name}" for name in created] or ["Nothing was missing."])


def db_start(settings: Settings, stop: CancelToken) -> CommandResult:
    """Start the embedded PostgreSQL, on a unix socket that only you can enter, and print its URL."""
    from etl.postgres import embedded

    with observe_step(settings, stop, "PostgreSQL"):
        server = embedded.start(embedded.data_dir_of(settings))
    return CommandResult({"url": server.url(), "data_dir": str(server.data_dir)}, [server.url()], primary=True)


def db_stop(settings: Settings, _stop: CancelToken) -> CommandResult:
    """Stop the embedded PostgreSQL; exit 99 when it was not running."""
    from etl.postgres import embedded

    stopped = embedded.stop(embedded.data_dir_of(settings))
    line = "Stopped." if stopped else "It was not running."
    return CommandResult({"stopped": stopped}, [line], 0 if stopped else NothingToDo.exit_code)


def db_url(settings: Settings, _stop: CancelToken) -> CommandResult:
    """Print the running embedded PostgreSQL's URL; exit 3 when it does not run."""
    from etl.postgres import embedded

    server = embedded.find_running(embedded.data_dir_of(settings))
    if server is None:
        where = f" --data-dir {shlex.quote(settings.data_dir)}" if settings.data_dir else ""
        raise ConnectError(f"The embedded PostgreSQL does not run. Start it with `bpr-etl db start{where}`.")
    return CommandResult({"url": server.url()}, [server.url()], primary=True)
