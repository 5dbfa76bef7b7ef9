"""The command line: options to Settings, one call, an exit code. Nothing is decided here.

Libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from etl import __version__
from etl.address import Discreet, secrets_in, secrets_of
from etl.config import ENVIRONMENT_PREFIX, Settings, resolve, wants_json
from etl.errors import ConnectError, DataError, EtlError, NothingToDo, SchemaError, visible
from etl.stopping import Stop, StoppedError, interruptible

if TYPE_CHECKING:
    from rich.console import RenderableType

log = logging.getLogger("bpr-etl")

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


def _option(flag: str, text: str, panel: str = "Options", **more: Any) -> Any:
    variable = ENVIRONMENT_PREFIX + flag.split("/", maxsplit=1)[0].lstrip("-").upper().replace("-", "_")
    return typer.Option(flag, help=f"{text} [env: {variable}]", rich_help_panel=panel, show_default=False, **more)


_DB, _WHAT, _HOW, _LIMITS = "Database", "What is published", "How it is done", "Limits"
Url = Annotated[
    str | None,
    _option("--database-url", "PostgreSQL or Prisma URL; else DIRECT_URL, DATABASE_URL.", _DB, metavar="URL"),
]
Schema = Annotated[str | None, _option("--schema", "PostgreSQL schema; default: the URL's, else public.", _DB)]
NamingOption = Annotated[
    str | None, _option("--naming", "Table names: auto (default), model or mapped (snake case).", _DB)
]
Prefix = Annotated[str | None, _option("--shadow-prefix", "Start of a shadow user's email; default shadow-.", _DB)]
Domain = Annotated[
    str | None,
    _option("--shadow-domain", "Only addresses of this domain are shadow users'; default: any.", _DB, metavar="DOMAIN"),
]
WaitLock = Annotated[
    bool | None, _option("--wait-lock/--no-wait-lock", "Wait where another run is at work; default: exit 6.", _DB)
]
MaxWait = Annotated[float | None, _option("--max-wait", "For how many seconds --wait-lock waits; default 3600.", _DB)]
ExpectUsers = Annotated[
    str | None,
    _option(
        "--expect-users",
        "Exit 5 unless there are so many shadow users, like 747±5% (or 747+-5%).",
        _LIMITS,
        metavar="N±P%",
    ),
]
MaxShadowShare = Annotated[
    str | None,
    _option(
        "--max-shadow-share", "Exit 5 when a larger share of all users would be shadow users.", _LIMITS, metavar="SHARE"
    ),
]
MaxBad = Annotated[
    str | None,
    _option(
        "--max-bad", "Exit 5 when a larger share of some kind of row was set aside, like 1%.", _LIMITS, metavar="SHARE"
    ),
]
Role = Annotated[
    str | None,
    _option("--role", "Print the GRANTs that this database role needs, instead of the tables.", metavar="NAME"),
]
Seed = Annotated[int | None, _option("--seed", "Seed of ids, ties and latencies; default 0.")]
Out = Annotated[str | None, _option("--out", "Folder that snapshots are published to; default out.", _WHAT)]
AudienceOption = Annotated[str | None, _option("--audience", "Whose events: shadow (default), real or all.", _WHAT)]
Negatives = Annotated[
    list[str] | None,
    _option(
        "--negatives",
        "Where negatives come from: ranking (default), shown, catalog:N or recommended. May be repeated.",
        _WHAT,
    ),
]
Reject = Annotated[
    str | None,
    _option("--reject", "What catalog:N never draws: what the user has seen (default), or the event's own.", _WHAT),
]
CatalogAlpha = Annotated[
    float | None,
    _option("--catalog-alpha", "catalog:N draws in proportion to popularity to this power; default 0, evenly.", _WHAT),
]
Split = Annotated[
    str | None,
    _option("--split", "none (default), last-trip, time:DATE or time:DATE,DATE (train | valid | test).", _WHAT),
]
CityWeight = Annotated[
    list[str] | None,
    _option("--city-weight", 'Weight of a city\'s triples, like "New York=2". May be repeated.', _WHAT),
]
Shuffle = Annotated[
    bool | None, _option("--shuffle/--no-shuffle", "Triples of a partition in a seeded random order.", _WHAT)
]
VocabFrom = Annotated[
    str | None,
    _option(
        "--vocab-from", "Keep the indexes of this snapshot, or of this --out folder's newest.", _WHAT, metavar="FOLDER"
    ),
]
Probe = Annotated[
    bool | None, _option("--probe/--no-probe", "Train a small model on the triples before anything is published.")
]
FailBelow = Annotated[
    float | None, _option("--fail-below", "With the probe: exit 5 when its AUC is below this; nothing is published.")
]
Published = Annotated[
    str | None,
    typer.Argument(help="A snapshot, or an --out folder: its newest.", metavar="SNAPSHOT", show_default=False),
]
MinCatalog = Annotated[
    int | None, _option("--min-catalog", "Fewer eligible nodes make a small catalogue; default 50.", _WHAT)
]
SmallCatalog = Annotated[
    str | None,
    _option("--small-catalog", "A small catalogue's triples: exclude (default), weight or keep.", _WHAT),
]
Ids = Annotated[str | None, _option("--ids", "Ids in triples: string (default), index or both.", _WHAT)]
RowsPerFile = Annotated[int | None, _option("--rows-per-file", "Rows of a part; default 1000000.", _WHAT)]
Buckets = Annotated[
    int | None,
    _option("--buckets", "Cut the work into so many user buckets; default by size. Decides memory, never bytes.", _HOW),
]
Profile = Annotated[bool | None, _option("--profile/--no-profile", "Show rows a second and memory of each step.", _HOW)]
SkipUnchanged = Annotated[
    bool | None,
    _option("--skip-unchanged/--no-skip-unchanged", "Publish nothing, exit 99, when the data are unchanged.", _WHAT),
]
DryRun = Annotated[bool | None, _option("--dry-run/--no-dry-run", "Do it all, then roll back and publish nothing.")]
Json = Annotated[bool | None, _option("--json/--no-json", "One JSON object on stdout; logs go to stderr.")]
Config = Annotated[
    str | None, _option("--config", "Settings file (TOML); options and environment win over it.", metavar="FILE")
]
DataDir = Annotated[str | None, _option("--data-dir", "Data folder of the embedded PostgreSQL.", _DB, metavar="FOLDER")]
Snapshot = Annotated[
    str | None,
    _option("--snapshot", "Look at this snapshot, or the newest of this --out folder, instead.", metavar="FOLDER"),
]
Format = Annotated[str | None, _option("--format", "sql (default) or prisma.")]
Scale = Annotated[float | None, _option("--scale", "Size of the synthetic world; default 1, the design's size.")]


@dataclass(frozen=True)
class Answer:
    """What a command has to say: facts for `--json`, what a person is shown, and the exit code."""

    facts: dict[str, Any]
    shown: list[RenderableType | str]
    exit_code: int = 0


def _do(options: dict[str, Any], work: Callable[[Settings, Stop], Answer]) -> None:
    """Resolve the settings, do the work, show its answer, leave with its exit code.

    The work hears signals (`etl.stopping`). Who was stopped by one ends by it, as its caller expects of a program.

    `options` are a command's `locals()`, so that a parameter's name is its setting's.
    """
    given = {name.rstrip("_"): value for name, value in options.items()}
    as_json = wants_json(given, os.environ)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    # A library's own progress notes are not ours to print.
    logging.getLogger("r2d2").setLevel(logging.ERROR)
    try:
        settings = resolve(given, os.environ)
        as_json = settings.json
        _hide_password(settings, given)
        answer = interruptible(lambda stop: work(settings, stop))
    except EtlError as error:
        if as_json:
            _print_json(
                {"ok": False, "exit_code": error.exit_code, "error": type(error).__name__, "message": str(error)}
            )
        typer.echo(f"Error: {visible(str(error))}", err=True)
        if isinstance(error, StoppedError):
            _end_by(error.signal)
        raise typer.Exit(error.exit_code) from None
    if as_json:
        _print_json({"ok": answer.exit_code == 0, "exit_code": answer.exit_code, **answer.facts})
    else:
        _show(answer.shown)
    raise typer.Exit(answer.exit_code)


def _hide_password(settings: Settings, given: Mapping[str, Any]) -> None:
    """Know the password wherever it came from, and say so where everybody on the machine can see it."""
    if isinstance(sys.stderr, Discreet):
        sys.stderr.hide(secrets_of(settings.database_url or "", settings.environ))
    if secrets_of(given.get("database_url") or "", {}):
        log.warning(
            "The password on the command line can be read by everybody on this machine while this runs (ps): "
            "put the URL into DATABASE_URL, or the password into PGPASSWORD or .pgpass."
        )


def _end_by(number: int) -> None:
    """End as if the signal had not been caught: shells, make and systemd tell that from a failure."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _print_json(answer: dict[str, Any]) -> None:
    typer.echo(json.dumps(answer, ensure_ascii=False, default=str))


def _show(shown: list[RenderableType | str]) -> None:
    from rich.console import Console

    # A pipe or a cron mail has no width of its own: 100 columns, so that no law is cut in two.
    # No markup: what is shown holds names that anybody may have given a city.
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 100)
    for part in shown:
        if isinstance(part, str):
            console.print(part, soft_wrap=True)  # paths stay in one piece
        else:
            console.print(part)


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
    database_url: Url = None,
    schema: Schema = None,
    naming: NamingOption = None,
    shadow_prefix: Prefix = None,
    shadow_domain: Domain = None,
    out: Out = None,
    audience: AudienceOption = None,
    negatives: Negatives = None,
    reject: Reject = None,
    catalog_alpha: CatalogAlpha = None,
    split: Split = None,
    min_catalog: MinCatalog = None,
    small_catalog: SmallCatalog = None,
    city_weight: CityWeight = None,
    shuffle: Shuffle = None,
    ids: Ids = None,
    vocab_from: VocabFrom = None,
    rows_per_file: RowsPerFile = None,
    buckets: Buckets = None,
    profile: Profile = None,
    skip_unchanged: SkipUnchanged = None,
    expect_users: ExpectUsers = None,
    max_shadow_share: MaxShadowShare = None,
    max_bad: MaxBad = None,
    wait_lock: WaitLock = None,
    max_wait: MaxWait = None,
    probe: Probe = None,
    fail_below: FailBelow = None,
    seed: Seed = None,
    dry_run: DryRun = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """The nightly job: personas, ranking events, backfill and triples, all of it or nothing."""
    _do(locals(), _run)


@app.command(epilog="Example: bpr-etl export --audience all --out /srv/bpr")
def export(
    database_url: Url = None,
    schema: Schema = None,
    naming: NamingOption = None,
    shadow_prefix: Prefix = None,
    shadow_domain: Domain = None,
    out: Out = None,
    audience: AudienceOption = None,
    negatives: Negatives = None,
    reject: Reject = None,
    catalog_alpha: CatalogAlpha = None,
    split: Split = None,
    min_catalog: MinCatalog = None,
    small_catalog: SmallCatalog = None,
    city_weight: CityWeight = None,
    shuffle: Shuffle = None,
    ids: Ids = None,
    vocab_from: VocabFrom = None,
    rows_per_file: RowsPerFile = None,
    buckets: Buckets = None,
    profile: Profile = None,
    skip_unchanged: SkipUnchanged = None,
    expect_users: ExpectUsers = None,
    max_shadow_share: MaxShadowShare = None,
    max_bad: MaxBad = None,
    wait_lock: WaitLock = None,
    max_wait: MaxWait = None,
    probe: Probe = None,
    fail_below: FailBelow = None,
    seed: Seed = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """Publish triples of the ranking events that are there; writes nothing to the database."""
    _do(locals(), _export)


@app.command(epilog="Example: bpr-etl expand /srv/bpr --negatives catalog:16 --split last-trip --out /tmp/try")
def expand(
    snapshot: Published = None,
    out: Out = None,
    negatives: Negatives = None,
    reject: Reject = None,
    catalog_alpha: CatalogAlpha = None,
    split: Split = None,
    min_catalog: MinCatalog = None,
    small_catalog: SmallCatalog = None,
    city_weight: CityWeight = None,
    shuffle: Shuffle = None,
    ids: Ids = None,
    rows_per_file: RowsPerFile = None,
    buckets: Buckets = None,
    profile: Profile = None,
    skip_unchanged: SkipUnchanged = None,
    wait_lock: WaitLock = None,
    max_wait: MaxWait = None,
    probe: Probe = None,
    fail_below: FailBelow = None,
    seed: Seed = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """Publish other triples of a snapshot's events, with other options; needs no database."""
    _do(locals(), _expand)


@app.command(epilog="Example: bpr-etl probe /srv/bpr --fail-below 0.6")
def probe(
    snapshot: Published = None,
    fail_below: FailBelow = None,
    seed: Seed = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """Train a small BPR model on a snapshot's triples, and say whether they teach anything."""
    _do(locals(), _probe)


@app.command(epilog="Examples: bpr-etl validate --database-url URL; bpr-etl validate --snapshot out")
def validate(
    database_url: Url = None,
    schema: Schema = None,
    naming: NamingOption = None,
    shadow_prefix: Prefix = None,
    shadow_domain: Domain = None,
    snapshot: Snapshot = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """Check a database against the job's laws, or a snapshot against its manifest; exit 5 when one is broken."""
    _do(
        locals(),
        lambda settings, stop: (
            _validate_snapshot(settings.snapshot) if settings.snapshot else _validate_database(settings, stop)
        ),
    )


@app.command(epilog="Example: bpr-etl synth --database-url URL --scale 0.1")
def synth(
    database_url: Url = None,
    schema: Schema = None,
    naming: NamingOption = None,
    scale: Scale = None,
    seed: Seed = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """Fill an empty database with the synthetic world; creates the tables where there are none."""
    _do(locals(), _synth)


@app.command(epilog="Example: bpr-etl demo --out demo-out")
def demo(
    out: Out = None,
    data_dir: DataDir = None,
    scale: Scale = None,
    seed: Seed = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """Start the embedded PostgreSQL, fill it with the synthetic world, run, validate, say where to look."""
    _do(locals(), _demo)


@schema_app.command("print", epilog="Example: bpr-etl schema print --format prisma --naming mapped")
def schema_print(
    format_: Format = None,
    role: Role = None,
    schema: Schema = None,
    naming: NamingOption = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """Print the tables that are needed, as SQL or as Prisma models; with --role the GRANTs of a least-privilege role."""
    _do(locals(), _schema_print)


@schema_app.command("check", epilog="Example: bpr-etl schema check --database-url URL")
def schema_check(
    database_url: Url = None,
    schema: Schema = None,
    naming: NamingOption = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """Say what is missing in a database; exit 4 when something is."""
    _do(locals(), _schema_check)


@schema_app.command("apply", epilog="Example: bpr-etl schema apply --database-url URL")
def schema_apply(
    database_url: Url = None,
    schema: Schema = None,
    naming: NamingOption = None,
    config: Config = None,
    json_: Json = None,
) -> None:
    """Create what is missing; the application's own tables too, where there are none. Alters and drops nothing."""
    _do(locals(), _schema_apply)


@db_app.command("start", epilog="Example: bpr-etl db start")
def db_start(data_dir: DataDir = None, config: Config = None, json_: Json = None) -> None:
    """Start the embedded PostgreSQL, on a unix socket that only you can enter, and print its URL."""
    _do(locals(), _db_start)


@db_app.command("stop", epilog="Example: bpr-etl db stop")
def db_stop(data_dir: DataDir = None, config: Config = None, json_: Json = None) -> None:
    """Stop the embedded PostgreSQL; exit 99 when it was not running."""
    _do(locals(), _db_stop)


@db_app.command("url", epilog='Example: psql "$(bpr-etl db url)"')
def db_url(data_dir: DataDir = None, config: Config = None, json_: Json = None) -> None:
    """Print the running embedded PostgreSQL's URL; exit 3 when it does not run."""
    _do(locals(), _db_url)


def _run(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    return _publishing("bpr-etl run", pipeline.run, settings, stop)


def _export(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    return _publishing("bpr-etl export", pipeline.export, settings, stop)


def _expand(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    return _publishing("bpr-etl expand", pipeline.expand, settings, stop)


def _publishing(title: str, publish: Callable[..., Any], settings: Settings, stop: Stop) -> Answer:
    with _progress() as progress:
        report = publish(settings, progress=progress, stop=stop)
    from etl import summary  # what is shown at the end need not be waited for at the beginning

    shown: list[RenderableType | str] = [summary.run_summary(title, report, profile=settings.profile), ""]
    shown += [f"Warning: {visible(warning)}" for warning in report.warnings]
    shown += [f"Note: {visible(note)}" for note in report.notes]
    if report.snapshot:
        shown.append(f"Snapshot: {report.snapshot}")
    nothing = report.snapshot is None and not settings.dry_run
    return Answer(report.facts_for_json(), shown, NothingToDo.exit_code if nothing else 0)


def _probe(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline, summary

    with _progress() as progress:
        found = pipeline.probe(settings, progress, stop)
    warnings = list(found.warnings())
    shown: list[RenderableType | str] = [summary.probe_tables(found.facts), ""]
    return Answer({**found.facts, "warnings": warnings}, [*shown, *(f"Warning: {each}" for each in warnings)])


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A line on a terminal's stderr that says how far something long is; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda _what, _done, _of: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None, visible=False)

        def show(what: str, done: int, of: int) -> None:
            bars.update(task, description=what, completed=done, total=of, visible=of > 1)

        yield show


def _validate_database(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline, summary

    found = pipeline.validate(settings, stop)
    facts = {"findings": [asdict(finding) for finding in found.findings], "rows": found.rows.to_dicts()}
    shown: list[RenderableType | str] = [
        summary.rows_table("The design's validation query", found.rows),
        "",
        *_findings(summary, found.findings),
    ]
    return Answer(facts, shown, DataError.exit_code if found.broken else 0)


def _validate_snapshot(path: str) -> Answer:
    from etl import summary, validate

    findings = validate.validate_snapshot(Path(path))
    broken = any(finding.broken for finding in findings)
    facts = {"findings": [asdict(finding) for finding in findings]}
    return Answer(facts, _findings(summary, findings), DataError.exit_code if broken else 0)


def _findings(summary: Any, findings: list[Any]) -> list[RenderableType | str]:
    return [summary.findings_table("Laws", ((f.law, f.broken, f.detail) for f in findings))]


def _synth(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    rows = pipeline.synth(settings, stop)
    return Answer({"rows": rows}, [f"{name}: {number:,} rows" for name, number in rows.items()])


def _demo(settings: Settings, stop: Stop) -> Answer:
    from etl import demo as demonstration

    with demonstration.server(settings, stop) as prepared:
        log.info("PostgreSQL runs in %s, filled with the synthetic world.", prepared.data_dir)
        ran, validated = _run(prepared.settings, stop), _validate_database(prepared.settings, stop)
    return Answer(
        {"run": ran.facts, "validate": validated.facts, "database": prepared.url},
        [*ran.shown, "", *validated.shown, "", *prepared.where_to_look(_command())],
        ran.exit_code or validated.exit_code,
    )


def _command() -> str:
    """How this program was called, so that what is printed can be pasted."""
    called = Path(sys.argv[0])
    return called.name if shutil.which(called.name) else f"{'python ' if called.suffix == '.py' else ''}{sys.argv[0]}"


def _schema_print(settings: Settings, _stop: Stop) -> Answer:
    from etl import prisma, privileges

    naming = prisma.Naming("mapped" if settings.naming == "mapped" else "model", settings.schema or "public")
    if settings.role is not None:
        text = privileges.grants(naming, settings.role)
    else:
        text = prisma.schema_sql(naming) if settings.format == "sql" else prisma.schema_prisma(naming)
    return Answer({"format": settings.format, "text": text}, [text])


def _schema_check(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    findings = pipeline.schema_check(settings, stop)
    facts = {"findings": [asdict(finding) for finding in findings]}
    shown: list[RenderableType | str] = [finding.detail for finding in findings] or ["Nothing is missing."]
    return Answer(facts, shown, SchemaError.exit_code if findings else 0)


def _schema_apply(settings: Settings, stop: Stop) -> Answer:
    from etl import pipeline

    created = pipeline.schema_apply(settings, stop)
    return Answer({"created": created}, [f"created {name}" for name in created] or ["Nothing was missing."])


def _data_dir(settings: Settings) -> Path:
    from etl import embedded

    return Path(settings.data_dir) if settings.data_dir else embedded.default_data_dir(settings.environ)


def _db_start(settings: Settings, _stop: Stop) -> Answer:
    from etl import embedded

    server = embedded.start(_data_dir(settings))
    return Answer({"url": server.url(), "data_dir": str(server.data_dir)}, [server.url()])


def _db_stop(settings: Settings, _stop: Stop) -> Answer:
    from etl import embedded

    stopped = embedded.stop(_data_dir(settings))
    said = "Stopped." if stopped else "It was not running."
    return Answer({"stopped": stopped}, [said], 0 if stopped else NothingToDo.exit_code)


def _db_url(settings: Settings, _stop: Stop) -> Answer:
    from etl import embedded

    server = embedded.running(_data_dir(settings))
    if server is None:
        raise ConnectError("The embedded PostgreSQL does not run. Start it with `bpr-etl db start`.")
    return Answer({"url": server.url()}, [server.url()])


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
