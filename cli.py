"""The command line: options to Settings, one call, an exit code. Nothing is decided here.

Libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.abc import MetaPathFinder
from typing import Annotated, Any

import typer

from etl.commands import help as commands
from etl.commands import options as opt
from etl.commands import publish as answers
from etl.commands import runner as terminal
from etl.commands import snapshots as looking
from etl.commands import streams
from etl.runtime import notices
from etl.runtime.resources import __version__
from etl.settings.model import DEFAULT_FILE, explicit_settings_file
from etl.settings.redaction import RedactingStream, find_secrets

NIGHTLY, LOOKING, TRYING, SETTING_UP = "Every night", "Looking at what there is", "Trying it out", "Setting it up"
app = commands.App(name="bpr-etl")
schema_app = commands.App(help="The database schema: print it, check it, create what is missing.")
config_app = commands.App(help="The settings: which there are, and where their values come from.")
db_app = commands.App(help="The embedded PostgreSQL: start it, stop it, print its URL.")


def _do(options: dict[str, Any], work: terminal.Command) -> None:
    """Do a command's work. `options` are its `locals()`, so that a parameter's name is its setting's."""
    terminal.run_command({**commands.common_options(), **options}, os.environ, work)


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


@app.command(
    rich_help_panel=NIGHTLY,
    epilog=opt.examples(
        "bpr-etl run --out /srv/bpr                    # the database is DATABASE_URL's",
        "bpr-etl run --out /srv/bpr --negatives recommended --split last-trip --probe",
        "bpr-etl run --dry-run --expect-users 747+-5%",
    ),
)
def run(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    shadow_prefix: opt.Prefix = None,
    shadow_domain: opt.Domain = None,
    out: opt.Out = None,
    audience: opt.AudienceOption = None,
    negatives: opt.Negatives = None,
    reject: opt.Reject = None,
    catalog_alpha: opt.CatalogAlpha = None,
    split: opt.Split = None,
    min_catalog: opt.MinCatalog = None,
    small_catalog: opt.SmallCatalog = None,
    city_weight: opt.CityWeight = None,
    shuffle: opt.Shuffle = None,
    ids: opt.Ids = None,
    vocab_from: opt.VocabFrom = None,
    rows_per_file: opt.RowsPerFile = None,
    buckets: opt.Buckets = None,
    engine: opt.Engine = None,
    profile: opt.Profile = None,
    metrics_file: opt.MetricsFile = None,
    skip_unchanged: opt.SkipUnchanged = None,
    keep: opt.Keep = None,
    expect_users: opt.ExpectUsers = None,
    max_shadow_share: opt.MaxShadowShare = None,
    max_bad: opt.MaxBad = None,
    max_change: opt.MaxChange = None,
    fail_on_change: opt.FailOnChange = None,
    allow_empty: opt.AllowEmpty = None,
    allow_side_effects: opt.AllowSideEffects = None,
    wait_lock: opt.WaitLock = None,
    max_wait: opt.MaxWait = None,
    probe: opt.Probe = None,
    fail_below: opt.FailBelow = None,
    seed: opt.Seed = None,
    dry_run: opt.DryRun = None,
) -> None:
    """The nightly job: personas, ranking events, backfill and triples, all of it or nothing."""
    _do(locals(), answers.run)


@app.command(
    rich_help_panel=NIGHTLY,
    epilog=opt.examples(
        "bpr-etl export --audience all --out /srv/bpr",
    ),
)
def export(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    shadow_prefix: opt.Prefix = None,
    shadow_domain: opt.Domain = None,
    out: opt.Out = None,
    audience: opt.AudienceOption = None,
    negatives: opt.Negatives = None,
    reject: opt.Reject = None,
    catalog_alpha: opt.CatalogAlpha = None,
    split: opt.Split = None,
    min_catalog: opt.MinCatalog = None,
    small_catalog: opt.SmallCatalog = None,
    city_weight: opt.CityWeight = None,
    shuffle: opt.Shuffle = None,
    ids: opt.Ids = None,
    vocab_from: opt.VocabFrom = None,
    rows_per_file: opt.RowsPerFile = None,
    buckets: opt.Buckets = None,
    engine: opt.Engine = None,
    profile: opt.Profile = None,
    metrics_file: opt.MetricsFile = None,
    skip_unchanged: opt.SkipUnchanged = None,
    keep: opt.Keep = None,
    expect_users: opt.ExpectUsers = None,
    max_shadow_share: opt.MaxShadowShare = None,
    max_bad: opt.MaxBad = None,
    max_change: opt.MaxChange = None,
    fail_on_change: opt.FailOnChange = None,
    allow_empty: opt.AllowEmpty = None,
    wait_lock: opt.WaitLock = None,
    max_wait: opt.MaxWait = None,
    probe: opt.Probe = None,
    fail_below: opt.FailBelow = None,
    seed: opt.Seed = None,
) -> None:
    """Publish triples of the ranking events that are there; writes nothing to the database."""
    _do(locals(), answers.export)


@app.command(
    rich_help_panel=NIGHTLY,
    epilog=opt.examples(
        "bpr-etl expand /srv/bpr --negatives catalog:16 --split last-trip --out /tmp/try",
    ),
)
def expand(
    snapshot: opt.SnapshotArgument = None,
    out: opt.Out = None,
    negatives: opt.Negatives = None,
    reject: opt.Reject = None,
    catalog_alpha: opt.CatalogAlpha = None,
    split: opt.Split = None,
    min_catalog: opt.MinCatalog = None,
    small_catalog: opt.SmallCatalog = None,
    city_weight: opt.CityWeight = None,
    shuffle: opt.Shuffle = None,
    ids: opt.Ids = None,
    rows_per_file: opt.RowsPerFile = None,
    buckets: opt.Buckets = None,
    engine: opt.Engine = None,
    profile: opt.Profile = None,
    metrics_file: opt.MetricsFile = None,
    skip_unchanged: opt.SkipUnchanged = None,
    keep: opt.Keep = None,
    max_change: opt.MaxChange = None,
    fail_on_change: opt.FailOnChange = None,
    allow_empty: opt.AllowEmpty = None,
    wait_lock: opt.WaitLock = None,
    max_wait: opt.MaxWait = None,
    probe: opt.Probe = None,
    fail_below: opt.FailBelow = None,
    seed: opt.Seed = None,
) -> None:
    """Publish other triples of a snapshot's events, with other options; needs no database."""
    _do(locals(), answers.expand)


@app.command(
    rich_help_panel=LOOKING,
    epilog=opt.examples(
        "bpr-etl probe /srv/bpr",
        "bpr-etl probe /srv/bpr/snapshots/20260101T030012000000Z-0123456789ab --fail-below 0.6",
    ),
)
def probe(
    snapshot: opt.SnapshotArgument = None,
    fail_below: opt.FailBelow = None,
    seed: opt.Seed = None,
) -> None:
    """Train a small BPR model on a snapshot's triples, and say whether they teach anything."""
    _do(locals(), answers.probe)


@app.command(rich_help_panel=LOOKING, epilog=opt.examples("bpr-etl report /srv/bpr"))
def report(snapshot: opt.SnapshotArgument = None) -> None:
    """Make a snapshot's report.html anew, with the nights before it as they are now."""
    _do(locals(), answers.report)


@app.command(
    rich_help_panel=LOOKING,
    epilog=opt.examples(
        "bpr-etl validate",
        "bpr-etl validate --snapshot /srv/bpr",
    ),
)
def validate(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    shadow_prefix: opt.Prefix = None,
    shadow_domain: opt.Domain = None,
    snapshot: opt.Snapshot = None,
) -> None:
    """Check a database against the job's laws, or a snapshot against its manifest; exit 5 when one is broken."""
    _do(locals(), answers.validate)


@app.command("list", rich_help_panel=LOOKING, epilog=opt.examples("bpr-etl list /srv/bpr"))
def list_(out: opt.OutArgument = None) -> None:
    """List the snapshots of an --out folder: when, how much, and which is the newest."""
    _do(locals(), looking.list_)


@app.command(
    rich_help_panel=LOOKING,
    epilog=opt.examples(
        "bpr-etl inspect /srv/bpr",
        "bpr-etl inspect /srv/bpr/snapshots/20261126T030000000000Z-0123456789ab --json",
    ),
)
def inspect(snapshot: opt.SnapshotArgument = None) -> None:
    """Say what a snapshot is: its settings, counts, partitions, files and their columns."""
    _do(locals(), looking.inspect)


@app.command(
    rich_help_panel=LOOKING,
    epilog=opt.examples(
        "bpr-etl diff /srv/bpr                         # the newest against the one before",
        "bpr-etl diff /srv/bpr /tmp/try",
    ),
)
def diff(snapshot: opt.SnapshotArgument = None, newer: opt.NewerArgument = None) -> None:
    """Compare two snapshots: rows, users, items, cities, settings, and how far distributions have moved."""
    _do({"snapshot": snapshot}, partial(looking.diff, newer=newer))


@app.command(
    rich_help_panel=NIGHTLY,
    epilog=opt.examples(
        "bpr-etl prune /srv/bpr --keep 14",
        "bpr-etl prune /srv/bpr --keep 14 --dry-run",
    ),
)
def prune(
    out: opt.OutArgument = None,
    keep: opt.Keep = None,
    dry_run: opt.DryRun = None,
    wait_lock: opt.WaitLock = None,
    max_wait: opt.MaxWait = None,
) -> None:
    """Remove the oldest snapshots, never the newest; exit 99 when there is nothing to remove."""
    _do(locals(), looking.prune)


@app.command(
    rich_help_panel=SETTING_UP,
    epilog=opt.examples(
        "bpr-etl doctor --out /srv/bpr                 # the database is DATABASE_URL's",
    ),
)
def doctor(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    shadow_prefix: opt.Prefix = None,
    shadow_domain: opt.Domain = None,
    expect_users: opt.ExpectUsers = None,
    max_shadow_share: opt.MaxShadowShare = None,
    out: opt.Out = None,
) -> None:
    """Check all that a night needs, and say what to do where it is not there: database, rights, schema, store, libraries."""
    _do(locals(), looking.doctor)


@app.command(
    rich_help_panel=TRYING,
    epilog=opt.examples(
        "bpr-etl synth --database-url postgresql://app@localhost/empty --scale 0.1",
    ),
)
def synth(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    scale: opt.Scale = None,
    seed: opt.Seed = None,
    into_existing: opt.IntoExisting = None,
) -> None:
    """Fill an empty database with the synthetic world; creates the tables where there are none."""
    _do(locals(), answers.synth)


@app.command(
    rich_help_panel=TRYING,
    epilog=opt.examples(
        "bpr-etl demo --out demo-out",
    ),
)
def demo(
    out: opt.Out = None,
    data_dir: opt.DataDir = None,
    scale: opt.Scale = None,
    seed: opt.Seed = None,
) -> None:
    """Start the embedded PostgreSQL, fill it with the synthetic world, run, validate, say where to look."""
    _do(locals(), answers.demo)


@schema_app.command(
    "print",
    epilog=opt.examples(
        "bpr-etl schema print --format prisma          # named as DATABASE_URL's tables are",
        "bpr-etl schema print --role bpr_etl --naming mapped",
    ),
)
def schema_print(
    database_url: opt.Url = None,
    format_: opt.Format = None,
    all_: opt.All = None,
    role: opt.Role = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
) -> None:
    """Print what is to be added to the application's schema, as SQL or as Prisma models; with --role the GRANTs of a role."""
    _do(locals(), answers.schema_print)


@schema_app.command("check", epilog=opt.examples("bpr-etl schema check --database-url URL"))
def schema_check(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
) -> None:
    """Say what is missing in a database, and what a run would set off there; exit 4 where a run can't work."""
    _do(locals(), answers.schema_check)


@schema_app.command("apply", epilog=opt.examples("bpr-etl schema apply --database-url URL"))
def schema_apply(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
) -> None:
    """Create what is missing; the application's own tables too, where there are none. Alters and drops nothing."""
    _do(locals(), answers.schema_apply)


@app.command(
    rich_help_panel=SETTING_UP,
    epilog=opt.examples("bpr-etl init", "bpr-etl init --config /etc/bpr-etl.toml"),
)
def init(config: opt.Config = None) -> None:
    """Write a settings file with every setting and what it is for, at its default; never over one that is there."""
    path = explicit_settings_file({"config": config}, os.environ) or DEFAULT_FILE
    _do({"config": ""}, partial(answers.init, path=path))


@config_app.command(
    "show", epilog=opt.examples("bpr-etl config show", "bpr-etl config show --config /etc/bpr-etl.toml --seed 7 --json")
)
@opt.with_all_options
def config_show(**options: Any) -> None:
    """Print every setting, its value, and where it came from: command line, environment, settings file or default."""
    _do(options, partial(answers.config_show, given={**commands.common_options(), **options}))


@db_app.command("start", epilog=opt.examples("bpr-etl db start"))
def db_start(data_dir: opt.DataDir = None) -> None:
    """Start the embedded PostgreSQL, on a unix socket that only you can enter, and print its URL."""
    _do(locals(), answers.db_start)


@db_app.command("stop", epilog=opt.examples("bpr-etl db stop"))
def db_stop(data_dir: opt.DataDir = None) -> None:
    """Stop the embedded PostgreSQL; exit 99 when it was not running."""
    _do(locals(), answers.db_stop)


@db_app.command("url", epilog=opt.examples('psql "$(bpr-etl db url)"'))
def db_url(data_dir: opt.DataDir = None) -> None:
    """Print the running embedded PostgreSQL's URL; exit 3 when it does not run."""
    _do(locals(), answers.db_url)


app.add_typer(config_app, name="config", rich_help_panel=SETTING_UP)
app.add_typer(schema_app, name="schema", rich_help_panel=SETTING_UP)
app.add_typer(db_app, name="db", rich_help_panel=TRYING)


class _WithoutPandas(MetaPathFinder):
    """pyarrow imports pandas wherever that is installed, which takes 0.4 s, and nothing here is ever made a pandas frame."""

    def find_spec(self, fullname: str, *_: object) -> None:
        """Refuse pandas; leave everything else to the other finders."""
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def main() -> None:
    """Run the command line, in a process that is ours alone."""
    sys.meta_path.insert(0, _WithoutPandas())
    # What a person is told holds no password, whoever tells it: a usage error, a library's log, a traceback.
    secrets = find_secrets(sys.argv[1:], os.environ)
    streams.open_closed()  # before anything else takes their numbers
    with notices.as_log_lines():
        out, err = streams.standard()
        sys.stdout, sys.stderr = RedactingStream(out, secrets), RedactingStream(err, secrets)
        sys.exit(commands.main(app, sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
