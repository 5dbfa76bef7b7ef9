"""The command line: each command's options, help and examples, and the function that does its work.

Libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.abc import MetaPathFinder
from typing import Annotated, Any

import typer

from etl.commands import database, publish, settings, snapshots, streams
from etl.commands import help as help_
from etl.commands.runner import run_command
from etl.runtime import notices
from etl.runtime.version import __version__
from etl.settings.model import OPTIONS
from etl.settings.redaction import RedactingStream, find_secrets
from etl.settings.sources import DEFAULT_FILE, explicit_settings_file

NIGHTLY, LOOKING, TRYING, SETTING_UP = "Every night", "Looking at what there is", "Trying it out", "Setting it up"

# Groups of options, by their settings' names (etl/settings/model.py).
CONNECTION = "database_url schema naming"
SHADOW_USERS = "shadow_prefix shadow_domain"
USER_LIMITS = "expect_users max_shadow_share"
LOCK = "wait_lock max_wait"
TRIPLES = "negatives reject catalog_alpha split min_catalog small_catalog city_weight shuffle ids rows_per_file seed"
PUBLISHING = (
    f"out {TRIPLES} {LOCK} buckets engine profile metrics_file skip_unchanged keep max_change fail_on_change allow_empty "
    "probe fail_below"
)
EXPORTING = f"{CONNECTION} {SHADOW_USERS} {USER_LIMITS} {PUBLISHING} audience vocab_from max_bad"

app = help_.App(name="bpr-etl")
config_app = help_.App(help="The settings: which there are, and where their values come from.")
schema_app = help_.App(help="The database schema: print it, check it, create what is missing.")
db_app = help_.App(help="The embedded PostgreSQL: start it, stop it, print its URL.")


def _version(asked: bool) -> None:  # noqa: FBT001 - Typer's form of a callback
    if asked:
        typer.echo(f"bpr-etl {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Every night, turn a trip planner's PostgreSQL into BPR training data."""


@app.register(
    f"{EXPORTING} allow_side_effects dry_run",
    "bpr-etl run --out /srv/bpr                    # the database is DATABASE_URL's",
    "bpr-etl run --out /srv/bpr --negatives recommended --split last-trip --probe",
    "bpr-etl run --dry-run --expect-users 747+-5%",
    panel=NIGHTLY,
)
def run(**options: Any) -> None:
    """The nightly job: personas, ranking events, backfill and triples, all of it or nothing."""
    run_command(options, os.environ, publish.run)


@app.register(EXPORTING, "bpr-etl export --audience all --out /srv/bpr", panel=NIGHTLY)
def export(**options: Any) -> None:
    """Publish triples of the ranking events that are there; writes nothing to the database."""
    run_command(options, os.environ, publish.export)


@app.register(
    f"SNAPSHOT {PUBLISHING}",
    "bpr-etl expand /srv/bpr --negatives catalog:16 --split last-trip --out /tmp/try",
    panel=NIGHTLY,
)
def expand(**options: Any) -> None:
    """Publish other triples of a snapshot's events, with other options; needs no database."""
    run_command(options, os.environ, publish.expand)


@app.register(
    "SNAPSHOT fail_below seed",
    "bpr-etl probe /srv/bpr",
    "bpr-etl probe /srv/bpr/snapshots/20260101T030012000000Z-0123456789ab --fail-below 0.6",
    panel=LOOKING,
)
def probe(**options: Any) -> None:
    """Train a small BPR model on a snapshot's triples, and measure whether it ranks better than popularity."""
    run_command(options, os.environ, publish.probe)


@app.register("SNAPSHOT", "bpr-etl report /srv/bpr", panel=LOOKING)
def report(**options: Any) -> None:
    """Rebuild a snapshot's report.html, with the earlier runs as they are now."""
    run_command(options, os.environ, publish.report)


@app.register(
    f"{CONNECTION} {SHADOW_USERS} snapshot",
    "bpr-etl validate",
    "bpr-etl validate --snapshot /srv/bpr",
    panel=LOOKING,
)
def validate(**options: Any) -> None:
    """Check a database against the job's rules, or a snapshot against its manifest; exit 5 when a check fails."""
    run_command(options, os.environ, database.validate)


@app.register("OUT", "bpr-etl list /srv/bpr", name="list", panel=LOOKING)
def list_(**options: Any) -> None:
    """List the snapshots of an --out folder: when, how much, and which is the newest."""
    run_command(options, os.environ, snapshots.list_)


@app.register(
    "SNAPSHOT",
    "bpr-etl inspect /srv/bpr",
    "bpr-etl inspect /srv/bpr/snapshots/20261126T030000000000Z-0123456789ab --json",
    panel=LOOKING,
)
def inspect(**options: Any) -> None:
    """Say what a snapshot is: its settings, counts, partitions, files and their columns."""
    run_command(options, os.environ, snapshots.inspect)


@app.register(
    "SNAPSHOT NEWER",
    "bpr-etl diff /srv/bpr                         # the newest against the one before",
    "bpr-etl diff /srv/bpr /tmp/try",
    panel=LOOKING,
)
def diff(newer: str | None, **options: Any) -> None:
    """Compare two snapshots: rows, users, items, cities, settings, and how far distributions have moved."""
    run_command(options, os.environ, partial(snapshots.diff, newer=newer))


@app.register(
    f"OUT keep dry_run {LOCK}",
    "bpr-etl prune /srv/bpr --keep 14",
    "bpr-etl prune /srv/bpr --keep 14 --dry-run",
    panel=NIGHTLY,
)
def prune(**options: Any) -> None:
    """Remove the oldest snapshots, never the newest; exit 99 when there is nothing to remove."""
    run_command(options, os.environ, snapshots.prune)


@app.register(
    f"{CONNECTION} {SHADOW_USERS} {USER_LIMITS} out",
    "bpr-etl doctor --out /srv/bpr                 # the database is DATABASE_URL's",
    panel=SETTING_UP,
)
def doctor(**options: Any) -> None:
    """Check all that a run needs, and say what to do where it is not there: database, rights, schema, store, libraries."""
    run_command(options, os.environ, database.doctor)


@app.register(
    f"{CONNECTION} scale seed into_existing",
    "bpr-etl synth --database-url postgresql://app@localhost/empty --scale 0.1",
    panel=TRYING,
)
def synth(**options: Any) -> None:
    """Fill an empty database with the synthetic world; creates the tables where there are none."""
    run_command(options, os.environ, database.synth)


@app.register("out data_dir scale seed", "bpr-etl demo --out demo-out", panel=TRYING)
def demo(**options: Any) -> None:
    """Start the embedded PostgreSQL, fill it with the synthetic world, run, validate, say where to look."""
    run_command(options, os.environ, publish.demo)


@app.register("", "bpr-etl init", "bpr-etl init --config /etc/bpr-etl.toml", panel=SETTING_UP)
def init(**options: Any) -> None:
    """Write a settings file with every setting and what it is for, at its default; never over one that is there."""
    path = explicit_settings_file(options, os.environ) or DEFAULT_FILE
    run_command({**options, "config": ""}, os.environ, partial(settings.init, path=path))


@config_app.register(
    " ".join(OPTIONS),
    "bpr-etl config show",
    "bpr-etl config show --config /etc/bpr-etl.toml --seed 7 --json",
    name="show",
)
def config_show(**options: Any) -> None:
    """Print every setting, its value, and where it came from: command line, environment, settings file or default."""
    run_command(options, os.environ, settings.config_show)


@schema_app.register(
    f"{CONNECTION} format all role",
    "bpr-etl schema print --format prisma          # named as DATABASE_URL's tables are",
    "bpr-etl schema print --role bpr_etl --naming mapped",
    name="print",
)
def schema_print(**options: Any) -> None:
    """Print what is to be added to the application's schema, as SQL or as Prisma models; with --role the GRANTs of a role."""
    run_command(options, os.environ, database.schema_print)


@schema_app.register(CONNECTION, "bpr-etl schema check --database-url URL", name="check")
def schema_check(**options: Any) -> None:
    """Say what is missing in a database, and what a run would set off there; exit 4 where a run can't work."""
    run_command(options, os.environ, database.schema_check)


@schema_app.register(CONNECTION, "bpr-etl schema apply --database-url URL", name="apply")
def schema_apply(**options: Any) -> None:
    """Create what is missing; the application's own tables too, where there are none. Alters and drops nothing."""
    run_command(options, os.environ, database.schema_apply)


@db_app.register("data_dir", "bpr-etl db start", name="start")
def db_start(**options: Any) -> None:
    """Start the embedded PostgreSQL, on a unix socket that only you can enter, and print its URL."""
    run_command(options, os.environ, database.db_start)


@db_app.register("data_dir", "bpr-etl db stop", name="stop")
def db_stop(**options: Any) -> None:
    """Stop the embedded PostgreSQL; exit 99 when it was not running."""
    run_command(options, os.environ, database.db_stop)


@db_app.register("data_dir", 'psql "$(bpr-etl db url)"', name="url")
def db_url(**options: Any) -> None:
    """Print the running embedded PostgreSQL's URL; exit 3 when it does not run."""
    run_command(options, os.environ, database.db_url)


app.add_typer(config_app, name="config", rich_help_panel=SETTING_UP)
app.add_typer(schema_app, name="schema", rich_help_panel=SETTING_UP)
app.add_typer(db_app, name="db", rich_help_panel=TRYING)


class _WithoutPandas(MetaPathFinder):
    """Hides pandas from pyarrow, which would import it for 0.4 s; no frame here ever becomes a pandas frame."""

    def find_spec(self, fullname: str, *_: object) -> None:
        """Refuse pandas; leave everything else to the other finders."""
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def main() -> None:
    """Run the command line, in a process that is ours alone."""
    sys.meta_path.insert(0, _WithoutPandas())
    # No output may hold a password, whatever writes it: a usage error, a library's log, a traceback.
    secrets = find_secrets(sys.argv[1:], os.environ)
    streams.open_closed()  # before any file or socket gets their numbers
    with notices.as_log_lines():
        out, err = streams.standard()
        sys.stdout, sys.stderr = RedactingStream(out, secrets), RedactingStream(err, secrets)
        sys.exit(help_.main(app, sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
