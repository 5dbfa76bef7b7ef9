"""The command line: each command's options, help and examples, and the function that does its work.

Libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Annotated

import typer

from etl.commands import database, publish, settings, snapshots
from etl.commands.terminal import streams
from etl.commands.terminal.help import App, run_app
from etl.runtime import notices
from etl.runtime.resources import __version__
from etl.settings.model import OPTIONS
from etl.settings.redaction import RedactingStream, find_secrets

NIGHTLY, LOOKING, TRYING, SETTING_UP = "Every night", "Looking at what there is", "Trying it out", "Setting it up"

# Groups of options, by their settings' names (etl/settings/model.py).
CONNECTION = "database_url password_command schema naming"
SHADOW_USERS = "shadow_prefix shadow_domain keep_foreign_rows"
USER_LIMITS = "expect_users max_shadow_share"
LOCK = "wait_lock max_wait"
TABLES = "task split shuffle history ids rows_per_file seed"
NEGATIVES = "negatives reject catalog_alpha min_catalog small_catalog city_weight"
PUBLISHING = (
    f"out {TABLES} {NEGATIVES} {LOCK} buckets engine profile metrics_file skip_unchanged keep max_change fail_on_change "
    "allow_empty probe fail_below"
)
EXPORTING = f"{CONNECTION} {SHADOW_USERS} {USER_LIMITS} {PUBLISHING} audience vocab_from max_bad"

app = App(os.environ, name="bpr-etl")


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


app.register(
    "run",
    publish.run,
    f"{EXPORTING} allow_side_effects write dry_run",
    "bpr-etl run --out /srv/bpr         # the database is DATABASE_URL's",
    "bpr-etl run --out /srv/bpr --negatives recommended --split last-trip --probe",
    "bpr-etl run --dry-run --expect-users 747+-5%",
    panel=NIGHTLY,
)
app.register(
    "export",
    publish.export,
    f"{EXPORTING} surface",
    "bpr-etl export --audience all --out /srv/bpr",
    "bpr-etl export --audience real --surface itinerary --out /srv/bpr",
    panel=NIGHTLY,
)
app.register(
    "expand",
    publish.expand,
    f"SNAPSHOT {PUBLISHING}",
    "bpr-etl expand /srv/bpr --negatives catalog:16 --out /tmp/try",
    panel=NIGHTLY,
)
app.register(
    "probe",
    publish.probe,
    "SNAPSHOT fail_below controls seed",
    "bpr-etl probe /srv/bpr",
    "bpr-etl probe /srv/bpr --controls",
    "bpr-etl probe /srv/bpr --fail-below 0.6",
    panel=LOOKING,
)
app.register("report", publish.report, "SNAPSHOT", "bpr-etl report /srv/bpr", panel=LOOKING)
app.register(
    "validate",
    database.validate,
    f"{CONNECTION} {SHADOW_USERS} snapshot",
    "bpr-etl validate",
    "bpr-etl validate --snapshot /srv/bpr",
    panel=LOOKING,
)
app.register("list", snapshots.list_, "OUT", "bpr-etl list /srv/bpr", panel=LOOKING)
app.register(
    "inspect",
    snapshots.inspect,
    "SNAPSHOT",
    "bpr-etl inspect /srv/bpr",
    "bpr-etl inspect /srv/bpr --json",
    panel=LOOKING,
)
app.register(
    "diff",
    snapshots.diff,
    "SNAPSHOT NEWER",
    "bpr-etl diff /srv/bpr      # the newest against the one before",
    "bpr-etl diff /srv/bpr /tmp/try",
    panel=LOOKING,
)
app.register(
    "convert",
    snapshots.convert,
    "SNAPSHOT FOLDER to",
    "bpr-etl convert /srv/bpr --to recbole          # writes to dataset/bpr",
    "bpr-etl convert /srv/bpr /srv/recbole/trips --to recbole",
    panel=LOOKING,
)
app.register(
    "prune",
    snapshots.prune,
    f"OUT keep dry_run {LOCK}",
    "bpr-etl prune /srv/bpr --keep 14",
    "bpr-etl prune /srv/bpr --keep 14 --dry-run",
    panel=NIGHTLY,
)
app.register(
    "doctor",
    database.doctor,
    f"{CONNECTION} {SHADOW_USERS} {USER_LIMITS} out",
    "bpr-etl doctor --out /srv/bpr   # the database is DATABASE_URL's",
    panel=SETTING_UP,
)
app.register(
    "synth",
    database.synth,
    f"{CONNECTION} scale seed into_existing",
    "bpr-etl synth --database-url postgresql://app@localhost/empty --scale 0.1",
    panel=TRYING,
)
app.register(
    "demo",
    publish.demo,
    "out data_dir scale seed remove",
    "bpr-etl demo --out demo-out",
    "bpr-etl demo --out demo-out --remove",
    panel=TRYING,
)
app.register(
    "init",
    settings.init,
    "",
    "bpr-etl init",
    "bpr-etl init --config /etc/bpr-etl.toml",
    panel=SETTING_UP,
    reads_file=False,
)

config_app = App(os.environ, help="The settings: which there are, and where their values come from.")
config_app.register(
    "show",
    settings.config_show,
    " ".join(OPTIONS),
    "bpr-etl config show",
    "bpr-etl config show --config /etc/bpr-etl.toml --seed 7 --json",
)
app.add_typer(config_app, name="config", rich_help_panel=SETTING_UP)

schema_app = App(os.environ, help="The database schema: print it, check it, create what is missing.")
schema_app.register(
    "print",
    database.schema_print,
    f"{CONNECTION} format all role",
    "bpr-etl schema print --format prisma   # named as DATABASE_URL's tables are",
    "bpr-etl schema print --role bpr_etl --naming mapped",
)
schema_app.register("check", database.schema_check, CONNECTION, "bpr-etl schema check --database-url URL")
schema_app.register("map", database.schema_map, "database_url schema", "bpr-etl schema map >> bpr-etl.toml")
schema_app.register("apply", database.schema_apply, CONNECTION, "bpr-etl schema apply --database-url URL")
app.add_typer(schema_app, name="schema", rich_help_panel=SETTING_UP)

db_app = App(os.environ, help="The embedded PostgreSQL: start it, stop it, print its URL.")
db_app.register("start", database.db_start, "data_dir", "bpr-etl db start")
db_app.register("stop", database.db_stop, "data_dir", "bpr-etl db stop")
db_app.register("url", database.db_url, "data_dir", 'psql "$(bpr-etl db url)"')
app.add_typer(db_app, name="db", rich_help_panel=TRYING)


_UNUSED = ("pandas", "pydantic", "pydantic_core")
"""What pyarrow and dataframely import if it is there, for 0.4 and 0.02 s: no frame here becomes a pandas frame or a model."""


class _Hiding:
    """Hides modules from the libraries; all others are left to the other finders."""

    @staticmethod
    def find_spec(fullname: str, *_: object) -> None:
        """Refuse the modules that nothing here uses."""
        if fullname in _UNUSED:
            raise ModuleNotFoundError(fullname)


def main() -> None:
    """Run the command line, in a process that is ours alone."""
    sys.meta_path.insert(0, _Hiding())
    # No output may hold a password, whatever writes it: a usage error, a library's log, a traceback.
    secrets = find_secrets(sys.argv[1:], os.environ)
    streams.open_closed()  # before any file or socket gets their numbers
    with notices.as_log_lines():
        out, err = streams.standard()
        sys.stdout, sys.stderr = RedactingStream(out, secrets), RedactingStream(err, secrets)
        code = run_app(app, sys.argv[1:], os.environ)
        gc.freeze()  # else the interpreter looks for cycles in all that the libraries hold, for 0.2 s, before it ends
        sys.exit(code)


if __name__ == "__main__":
    main()
