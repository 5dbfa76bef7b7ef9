"""The command line: options to Settings, one call, an exit code. Nothing is decided here.

Libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from typing import Annotated, Any

import typer

from etl import __version__, answers, terminal
from etl import options as opt
from etl.address import Discreet, secrets_in

app = typer.Typer(
    name="bpr-etl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
schema_app = typer.Typer(help="The database schema: print it, check it, create what is missing.", no_args_is_help=True)
db_app = typer.Typer(help="The embedded PostgreSQL: start it, stop it, print its URL.", no_args_is_help=True)
app.add_typer(schema_app, name="schema")
app.add_typer(db_app, name="db")


def _do(options: dict[str, Any], work: terminal.Work) -> None:
    """Do a command's work. `options` are its `locals()`, so that a parameter's name is its setting's."""
    terminal.answer(options, os.environ, work)


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


@app.command(epilog="Example: bpr-etl run --database-url postgresql://app@db.example/app --out /srv/bpr")
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
    profile: opt.Profile = None,
    skip_unchanged: opt.SkipUnchanged = None,
    expect_users: opt.ExpectUsers = None,
    max_shadow_share: opt.MaxShadowShare = None,
    max_bad: opt.MaxBad = None,
    wait_lock: opt.WaitLock = None,
    max_wait: opt.MaxWait = None,
    probe: opt.Probe = None,
    fail_below: opt.FailBelow = None,
    seed: opt.Seed = None,
    dry_run: opt.DryRun = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """The nightly job: personas, ranking events, backfill and triples, all of it or nothing."""
    _do(locals(), answers.run)


@app.command(epilog="Example: bpr-etl export --audience all --out /srv/bpr")
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
    profile: opt.Profile = None,
    skip_unchanged: opt.SkipUnchanged = None,
    expect_users: opt.ExpectUsers = None,
    max_shadow_share: opt.MaxShadowShare = None,
    max_bad: opt.MaxBad = None,
    wait_lock: opt.WaitLock = None,
    max_wait: opt.MaxWait = None,
    probe: opt.Probe = None,
    fail_below: opt.FailBelow = None,
    seed: opt.Seed = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """Publish triples of the ranking events that are there; writes nothing to the database."""
    _do(locals(), answers.export)


@app.command(epilog="Example: bpr-etl expand /srv/bpr --negatives catalog:16 --split last-trip --out /tmp/try")
def expand(
    snapshot: opt.Published = None,
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
    profile: opt.Profile = None,
    skip_unchanged: opt.SkipUnchanged = None,
    wait_lock: opt.WaitLock = None,
    max_wait: opt.MaxWait = None,
    probe: opt.Probe = None,
    fail_below: opt.FailBelow = None,
    seed: opt.Seed = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """Publish other triples of a snapshot's events, with other options; needs no database."""
    _do(locals(), answers.expand)


@app.command(epilog="Example: bpr-etl probe /srv/bpr --fail-below 0.6")
def probe(
    snapshot: opt.Published = None,
    fail_below: opt.FailBelow = None,
    seed: opt.Seed = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """Train a small BPR model on a snapshot's triples, and say whether they teach anything."""
    _do(locals(), answers.probe)


@app.command(epilog="Examples: bpr-etl validate --database-url URL; bpr-etl validate --snapshot out")
def validate(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    shadow_prefix: opt.Prefix = None,
    shadow_domain: opt.Domain = None,
    snapshot: opt.Snapshot = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """Check a database against the job's laws, or a snapshot against its manifest; exit 5 when one is broken."""
    _do(locals(), answers.validate)


@app.command(epilog="Example: bpr-etl synth --database-url URL --scale 0.1")
def synth(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    scale: opt.Scale = None,
    seed: opt.Seed = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """Fill an empty database with the synthetic world; creates the tables where there are none."""
    _do(locals(), answers.synth)


@app.command(epilog="Example: bpr-etl demo --out demo-out")
def demo(
    out: opt.Out = None,
    data_dir: opt.DataDir = None,
    scale: opt.Scale = None,
    seed: opt.Seed = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """Start the embedded PostgreSQL, fill it with the synthetic world, run, validate, say where to look."""
    _do(locals(), answers.demo)


@schema_app.command("print", epilog="Example: bpr-etl schema print --format prisma --naming mapped")
def schema_print(
    format_: opt.Format = None,
    role: opt.Role = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """Print the tables that are needed, as SQL or as Prisma models; with --role the GRANTs of a least-privilege role."""
    _do(locals(), answers.schema_print)


@schema_app.command("check", epilog="Example: bpr-etl schema check --database-url URL")
def schema_check(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """Say what is missing in a database; exit 4 when something is."""
    _do(locals(), answers.schema_check)


@schema_app.command("apply", epilog="Example: bpr-etl schema apply --database-url URL")
def schema_apply(
    database_url: opt.Url = None,
    schema: opt.Schema = None,
    naming: opt.NamingOption = None,
    config: opt.Config = None,
    json_: opt.Json = None,
) -> None:
    """Create what is missing; the application's own tables too, where there are none. Alters and drops nothing."""
    _do(locals(), answers.schema_apply)


@db_app.command("start", epilog="Example: bpr-etl db start")
def db_start(data_dir: opt.DataDir = None, config: opt.Config = None, json_: opt.Json = None) -> None:
    """Start the embedded PostgreSQL, on a unix socket that only you can enter, and print its URL."""
    _do(locals(), answers.db_start)


@db_app.command("stop", epilog="Example: bpr-etl db stop")
def db_stop(data_dir: opt.DataDir = None, config: opt.Config = None, json_: opt.Json = None) -> None:
    """Stop the embedded PostgreSQL; exit 99 when it was not running."""
    _do(locals(), answers.db_stop)


@db_app.command("url", epilog='Example: psql "$(bpr-etl db url)"')
def db_url(data_dir: opt.DataDir = None, config: opt.Config = None, json_: opt.Json = None) -> None:
    """Print the running embedded PostgreSQL's URL; exit 3 when it does not run."""
    _do(locals(), answers.db_url)


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
    sys.stdout, sys.stderr = Discreet(sys.stdout), Discreet(sys.stderr, secrets_in(sys.argv[1:], os.environ))
    app()


if __name__ == "__main__":
    main()
