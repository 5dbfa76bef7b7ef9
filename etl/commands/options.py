"""The options of the command line: each is said once, with its help, its panel and its environment variable."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from etl.settings.model import DEFAULT_FILE, ENVIRONMENT_PREFIX, Settings, choices_for

_COMPLETIONS = {
    "engine": ("local", "ray", "ray://"),
    "negatives": ("ranking", "shown", "catalog:16", "recommended"),
    "split": ("none", "last-trip", "time:"),
    "max_change": ("off",),
}
"""What a shell offers for settings that are more than a choice between words."""


def _setting(flag: str) -> str:
    return flag.split("/", maxsplit=1)[0].lstrip("-").replace("-", "_")


def _option(flag: str, text: str, panel: str = "Options", **more: Any) -> Any:
    setting = _setting(flag)
    choices = choices_for(setting)
    if choices:
        more.setdefault("metavar", "|".join(choices))
    if words := choices or _COMPLETIONS.get(setting):
        more["autocompletion"] = lambda: list(words)
    help_ = f"{text} [env: {ENVIRONMENT_PREFIX}{setting.upper()}]"
    return typer.Option(flag, help=help_, rich_help_panel=panel, show_default=False, **more)


def examples(*lines: str) -> str:
    """The end of a command's help: examples, each on a line of its own, however narrow the terminal is."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


_DB, _WHAT, _HOW, _LIMITS = "Database", "What is published", "How it is done", "Limits"
_OUTPUT = "Output and settings"
PANELS = ("Arguments", _DB, _WHAT, _LIMITS, _HOW, "Options", _OUTPUT)
"""In which order a command's help, and the settings file, has them."""

Url = Annotated[
    str | None,
    _option("--database-url", "PostgreSQL or Prisma URL; else DIRECT_URL, DATABASE_URL.", _DB, metavar="URL"),
]
Schema = Annotated[
    str | None, _option("--schema", "PostgreSQL schema; default: the URL's, else public.", _DB, metavar="NAME")
]
NamingOption = Annotated[
    str | None, _option("--naming", "Table names: auto (default), model or mapped (snake case).", _DB)
]
Prefix = Annotated[
    str | None, _option("--shadow-prefix", "Start of a shadow user's email; default shadow-.", _DB, metavar="TEXT")
]
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
MaxChange = Annotated[
    str | None,
    _option(
        "--max-change",
        "Warn when rows, users, items or triples moved further since the last run, or, from five runs of the same settings "
        "on, left the range that these lead one to expect; default 25%, off for never.",
        _LIMITS,
        metavar="SHARE",
    ),
]
FailOnChange = Annotated[
    bool | None,
    _option("--fail-on-change/--no-fail-on-change", "Exit 5 instead of that warning; nothing is published.", _LIMITS),
]
AllowEmpty = Annotated[
    bool | None,
    _option(
        "--allow-empty/--no-allow-empty",
        "Publish also where there are no triples, or none in train; default: exit 5.",
        _LIMITS,
    ),
]
AllowSideEffects = Annotated[
    list[str] | None,
    _option(
        "--allow-side-effects",
        "A table that foreign keys or triggers may write to in a run, which else ends with exit 5. May be repeated.",
        _LIMITS,
        metavar="TABLE",
    ),
]
Keep = Annotated[
    int | None,
    _option("--keep", "Then remove all but so many of the newest snapshots; default: keep all.", _WHAT, metavar="N"),
]
Role = Annotated[
    str | None,
    _option("--role", "Print the GRANTs that this database role needs, instead of the tables.", metavar="NAME"),
]
Seed = Annotated[int | None, _option("--seed", "Seed of ids, ties and latencies; default 0.", _HOW)]
Out = Annotated[
    str | None,
    _option("--out", "Folder, or s3://, gs:// or az:// URL, that snapshots are published to; default out.", _WHAT),
]
AudienceOption = Annotated[str | None, _option("--audience", "Whose events: shadow (default), real or all.", _WHAT)]
Negatives = Annotated[
    list[str] | None,
    _option(
        "--negatives",
        "Where negatives come from: ranking (default), shown, catalog:N or recommended. May be repeated.",
        _WHAT,
        metavar="STRATEGY",
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
    _option(
        "--split",
        "none (default), last-trip, time:DATE or time:DATE,DATE (train | valid | test).",
        _WHAT,
        metavar="SPLIT",
    ),
]
CityWeight = Annotated[
    list[str] | None,
    _option(
        "--city-weight", 'Weight of a city\'s triples, like "New York=2". May be repeated.', _WHAT, metavar="CITY=W"
    ),
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
    bool | None,
    _option("--probe/--no-probe", "Train a small model on the triples before anything is published.", _LIMITS),
]
FailBelow = Annotated[
    float | None,
    _option("--fail-below", "With the probe: exit 5 when its AUC is below this; nothing is published.", _LIMITS),
]
SnapshotArgument = Annotated[
    str | None,
    typer.Argument(help="A snapshot, or an --out folder: its newest.", metavar="SNAPSHOT", show_default=False),
]
NewerArgument = Annotated[
    str | None,
    typer.Argument(
        help="A newer one; default: SNAPSHOT is an --out folder, its newest and the one before.",
        metavar="NEWER",
        show_default=False,
    ),
]
OutArgument = Annotated[
    str | None, typer.Argument(help="The --out folder; default out.", metavar="OUT", show_default=False)
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
Engine = Annotated[
    str | None,
    _option(
        "--engine",
        "Who works through the buckets: local (default), ray or ray://HOST:PORT; docs/scaling.md. Never in the bytes.",
        _HOW,
        metavar="local|ray|ray://HOST:PORT",
    ),
]
Profile = Annotated[bool | None, _option("--profile/--no-profile", "Show rows a second and memory of each step.", _HOW)]
SkipUnchanged = Annotated[
    bool | None,
    _option("--skip-unchanged/--no-skip-unchanged", "Publish nothing, exit 99, when the data are unchanged.", _WHAT),
]
DryRun = Annotated[
    bool | None, _option("--dry-run/--no-dry-run", "Do it all, then roll back and publish nothing.", _HOW)
]
MetricsFile = Annotated[
    str | None,
    _option(
        "--metrics-file",
        "Write what came of it for Prometheus (node_exporter's textfile collector), also when it fails; not with --dry-run.",
        _OUTPUT,
        metavar="FILE",
    ),
]
Config = Annotated[
    str | None,
    _option(
        "--config",
        f"Settings file (TOML); options and environment win over it. Default: {DEFAULT_FILE} where it lies in the working "
        'folder; "" for none.',
        _OUTPUT,
        metavar="FILE",
    ),
]
Json = Annotated[bool | None, _option("--json/--no-json", "One JSON object on stdout; logs go to stderr.", _OUTPUT)]
LogFormat = Annotated[str | None, _option("--log-format", "How log lines look on stderr; default console.", _OUTPUT)]
Quiet = Annotated[bool | None, _option("--quiet/--no-quiet", "Say nothing but warnings, errors and --json.", _OUTPUT)]
Verbose = Annotated[
    bool | None, _option("--verbose/--no-verbose", "Also log each step as it begins and ends.", _OUTPUT)
]
COMMON = {"config": Config, "json": Json, "log_format": LogFormat, "quiet": Quiet, "verbose": Verbose}
"""What every command takes, by its parameter's name."""

DataDir = Annotated[str | None, _option("--data-dir", "Data folder of the embedded PostgreSQL.", _DB, metavar="FOLDER")]
Snapshot = Annotated[
    str | None,
    _option("--snapshot", "Look at this snapshot, or the newest of this --out folder, instead.", metavar="FOLDER"),
]
Format = Annotated[str | None, _option("--format", "sql (default) or prisma.")]
All = Annotated[
    bool | None,
    _option("--all/--no-all", "Print the application's own tables, too; default: what is to be added to them."),
]
IntoExisting = Annotated[
    bool | None,
    _option(
        "--into-existing/--no-into-existing", "Add the synthetic world to tables that hold rows; default: exit 2.", _DB
    ),
]
Scale = Annotated[float | None, _option("--scale", "Size of the synthetic world; default 1, the design's size.")]


def _by_setting() -> dict[str, tuple[Any, Any]]:
    """By setting: the annotation of a parameter, and the option in it."""
    known = {each.name for each in fields(Settings)}
    found = {
        _setting(str(option.default)): (annotation, option)
        for annotation in list(globals().values())
        for option in getattr(annotation, "__metadata__", ())
        if isinstance(option, typer.models.OptionInfo)
    }
    return {name: pair for name, pair in found.items() if name in known}


def panels() -> dict[str, dict[str, str]]:
    """What each setting is for, by the panel that it is in."""
    found: dict[str, dict[str, str]] = {panel: {} for panel in PANELS}
    for name, (_, option) in _by_setting().items():
        found[option.rich_help_panel][name] = option.help
    return {panel: settings for panel, settings in found.items() if settings}


def with_all_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes anything every option that there is."""
    annotations = {name: annotation for name, (annotation, _) in _by_setting().items()}
    kind = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, default=None, annotation=each) for name, each in annotations.items()]
    )
    command.__annotations__ = annotations
    return command
