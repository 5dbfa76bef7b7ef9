"""Every option of bpr-etl, declared once: type, default, parser, help, and what it decides.

The command line (`etl.commands.options`), the settings file of `bpr-etl init`, the documentation's tables, the manifest's
settings and the comparison with earlier runs are made from these declarations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from etl.errors import SettingsError
from etl.settings.redaction import find_secrets, redact
from etl.settings.values import (
    MAX_ALPHA,
    RECOMMENDED,
    STRATEGY_EXAMPLES,
    TASKS,
    Choice,
    ExpectedCount,
    NegativeStrategies,
    SplitSpec,
    TableName,
    Task,
    format_option,
    parse_bool,
    parse_city_weights,
    parse_command,
    parse_domain,
    parse_engine,
    parse_filled,
    parse_float,
    parse_fraction,
    parse_int,
    parse_location,
    parse_map,
    parse_names,
    parse_positive,
    parse_prefix,
    parse_relative_change,
    parse_skip,
    parse_tables,
    parse_tasks,
    suggestion,
)

DATABASE, PUBLISHED, LIMITS, EXECUTION = "Database", "What is published", "Limits", "How it is done"
OTHER, OUTPUT = "Options", "Output and settings"
PANELS = ("Arguments", DATABASE, PUBLISHED, LIMITS, EXECUTION, OTHER, OUTPUT)
"""The headings of options, in the order of `--help` and of the settings file."""

THE_CALL = "the call"
"""The origin of a value that a Python program passes."""

Naming = Literal["auto", "model", "mapped"]
Audience = Literal["shadow", "real", "all"]
Reject = Literal["seen", "event"]
SmallCatalog = Literal["exclude", "weight", "keep"]
Ids = Literal["string", "index", "both"]
SchemaFormat = Literal["sql", "prisma"]
FileFormat = Literal["recbole"]
Write = Literal["changes", "replace"]
LogFormat = Literal["console", "json"]
Need = Literal["often", "sometimes", "rarely"]


@dataclass(frozen=True)
class Option:
    """The declaration of an option, without its field's name and type.

    `example` stands in the settings file where there is no default. `completion` holds the values that a shell offers; a flag's
    are the words that it takes after "=". `need` is how often the option is wanted: `--help` groups by it. `says` has other
    help texts for some commands, by their names. `proposed` is what the settings file of `bpr-etl init` sets. `decides` says
    what a change of the option changes: which rows are read, which triples are made of them, or anything else of the result.
    Options that decide something go into the manifest, so they must hold no secret.
    """

    panel: str
    help: str
    parse: Callable[[Any], Any]
    default: Any = None
    metavar: str | None = None
    example: Any = None
    completion: tuple[str, ...] = ()
    need: Need = "rarely"
    says: Mapping[str, str] = field(default_factory=dict)
    proposed: Any = None
    decides: Literal["rows", "triples", "result"] | None = None

    @property
    def kind(self) -> type:
        """The type of the option's values, from its default or its example."""
        return type(self.example if self.default is None else self.default)


def _option(
    panel: str, text: str, parse: Callable[[Any], Any], default: Any = None, *, secret: bool = False, **more: Any
) -> Any:
    option = Option(panel, text, parse, default, **more)
    return field(default=default, repr=not secret, metadata={"option": option})


def _choice(panel: str, text: str, words: Any, **more: Any) -> Any:
    """An option that takes one of a Literal's words; the first is the default."""
    choices = get_args(words)
    return _option(panel, text, Choice(choices), choices[0], metavar="|".join(choices), completion=choices, **more)


def _flag(panel: str, text: str, **more: Any) -> Any:
    return _option(panel, text, parse_bool, False, **more)


def _text(
    panel: str, text: str, metavar: str, example: str, parse: Callable[[Any], Any] = parse_filled, **more: Any
) -> Any:
    """An option that takes a text and has no default."""
    return _option(panel, text, parse, metavar=metavar, example=example, **more)


@dataclass(frozen=True)
class Settings:
    """The resolved options. A field's parser checks and converts what is passed, text or value.

    Raises SettingsError for a wrong value, and for two that contradict each other.
    """

    database_url: str | None = _text(
        DATABASE,
        "PostgreSQL or Prisma URL; else DIRECT_URL, DATABASE_URL.",
        "URL",
        "postgresql://app@db.example/app",
        secret=True,
        need="often",
    )
    schema: str | None = _text(
        DATABASE,
        "PostgreSQL schema; default: the URL's, else public.",
        "NAME",
        "public",
        decides="rows",
        need="sometimes",
    )
    password_command: str | None = _text(
        DATABASE,
        "Command that prints the database password, such as a cloud's token; run without a shell for each connection.",
        "COMMAND",
        "aws rds generate-db-auth-token --hostname db.example --port 5432 --username app",
        parse_command,
    )
    naming: Naming = _choice(
        DATABASE, "Table names: auto (default), model or mapped (snake case).", Naming, decides="result"
    )
    map: dict[str, dict[str, str]] | None = _option(
        DATABASE,
        "Names of relations and columns, or SQL for them, by model; `schema map` proposes them. In a settings file [map.Trip].",
        parse_map,
        metavar="JSON",
        example={"Trip": {"table": "planner.live_trips", "userId": "owner_id", "where": '"deletedAt" IS NULL'}},
        decides="rows",
    )
    shadow_prefix: str = _option(
        DATABASE,
        "Start of a shadow user's email; default shadow-.",
        parse_prefix,
        "shadow-",
        metavar="TEXT",
        decides="rows",
    )
    shadow_domain: str | None = _text(
        DATABASE,
        "Domain of shadow users' emails; default: any.",
        "DOMAIN",
        "example.test",
        parse_domain,
        decides="rows",
    )
    keep_foreign_rows: bool = _flag(
        DATABASE,
        "Leave shadow users' rows that a run does not make (another surface, dimension or model); default: they are deleted.",
        decides="rows",
    )
    wait_lock: bool = _flag(DATABASE, "Wait for another run to end; default: exit 6.", need="sometimes")
    max_wait: float = _option(DATABASE, "Seconds that --wait-lock waits; default 3600.", parse_positive(), 3600.0)
    data_dir: str | None = _text(
        DATABASE, "Data folder of the embedded PostgreSQL.", "FOLDER", "/var/lib/bpr-etl/pg", need="often"
    )
    into_existing: bool = _flag(
        DATABASE, "Add the synthetic world to tables that hold rows; default: exit 2.", need="often"
    )

    out: str = _option(
        PUBLISHED,
        "Where to publish; or s3://, gs://, az://; default out.",
        parse_location,
        "out",
        metavar="FOLDER",
        need="often",
        says={"doctor": "Where a run would publish to; default out."},
    )
    audience: Audience = _choice(
        PUBLISHED, "Whose events: shadow (default), real or all.", Audience, decides="rows", need="sometimes"
    )
    surface: tuple[str, ...] = _option(
        PUBLISHED,
        "Only ranking events of this surface; default: all. May be repeated.",
        parse_names("surfaces"),
        (),
        metavar="NAME",
        decides="rows",
        need="often",
    )
    task: tuple[Task, ...] = _option(
        PUBLISHED,
        "What to learn: triples (default) or next, or both.",
        parse_tasks,
        ("triples",),
        metavar="triples|next",
        completion=TASKS,
        decides="triples",
        need="sometimes",
    )
    negatives: NegativeStrategies = _option(
        PUBLISHED,
        "ranking (default), shown, catalog:N or recommended. May be repeated.",
        NegativeStrategies,
        NegativeStrategies("ranking"),
        metavar="STRATEGY",
        completion=STRATEGY_EXAMPLES,
        decides="triples",
        need="often",
        proposed=(RECOMMENDED,),
    )
    reject: Reject = _choice(
        PUBLISHED,
        "What catalog:N never samples: items that the user has seen (default), or those of the event.",
        Reject,
        decides="triples",
    )
    catalog_alpha: float | None = _option(
        PUBLISHED,
        "catalog:N samples in proportion to popularity to this power; default 0, evenly.",
        parse_float(MAX_ALPHA),
        example=0.5,
        decides="triples",
    )
    split: SplitSpec = _option(
        PUBLISHED,
        "none (default), last-trip, time:DATE or time:DATE,DATE.",
        SplitSpec,
        SplitSpec("none"),
        metavar="SPLIT",
        completion=("none", "last-trip", "time:"),
        decides="triples",
        need="often",
    )
    min_catalog: int = _option(
        PUBLISHED,
        "Nodes that a city needs for triples; default 50.",
        parse_int(0),
        50,
        decides="triples",
        need="sometimes",
    )
    small_catalog: SmallCatalog = _choice(
        PUBLISHED, "Triples of smaller cities: exclude (default), weight or keep.", SmallCatalog, decides="triples"
    )
    city_weight: tuple[tuple[str, float], ...] = _option(
        PUBLISHED,
        'Weight of a city\'s triples, like "New York=2". May be repeated.',
        parse_city_weights,
        (),
        metavar="CITY=W",
        decides="result",
    )
    shuffle: bool = _flag(
        PUBLISHED, "Rows of a partition of triples or next in a seeded random order.", decides="result"
    )
    history: bool = _flag(PUBLISHED, "Add how often and when the user chose the row's items.", decides="result")
    ids: Ids = _choice(PUBLISHED, "Ids: string (default), index or both.", Ids, decides="result")
    vocab_from: str | None = _text(
        PUBLISHED,
        "Keep the indexes of this snapshot, or of this --out folder's newest.",
        "FOLDER",
        "out",
        parse_location,
        decides="result",
    )
    rows_per_file: int = _option(
        PUBLISHED, "Rows of a part; default 1000000.", parse_int(1), 1_000_000, decides="result"
    )
    skip_unchanged: bool | Literal["ok"] = _option(
        PUBLISHED,
        "Publish nothing and exit 99 (=ok: 0) if unchanged.",
        parse_skip,
        False,
        completion=("ok",),
        need="sometimes",
    )
    keep: int | None = _option(
        PUBLISHED,
        "Remove older snapshots; N are kept.",
        parse_int(1),
        metavar="N",
        example=14,
        need="often",
        says={"prune": "How many of the newest snapshots stay."},
    )

    expect_users: ExpectedCount | None = _text(
        LIMITS,
        "Exit 5 unless shadow users are, say, 747+-5%.",
        "N±P%",
        "747±5%",
        ExpectedCount,
        need="sometimes",
        says={"doctor": "Fail unless there are so many shadow users, like 747+-5%."},
    )
    max_shadow_share: float | None = _option(
        LIMITS,
        "Exit 5 when a larger share of all users would be shadow users.",
        parse_fraction,
        metavar="SHARE",
        example=0.5,
        says={"doctor": "Fail when a larger share of all users would be shadow users."},
    )
    max_bad: float | None = _option(
        LIMITS,
        "Exit 5 if more rows of a kind are rejected: 1%.",
        parse_fraction,
        metavar="SHARE",
        example=0.01,
        need="sometimes",
    )
    max_change: float | None = _option(
        LIMITS,
        "Warn if a count changes by a larger share or, after five runs, leaves its expected range; default 25%, or off.",
        parse_relative_change,
        0.25,
        metavar="SHARE",
        completion=("off",),
        need="sometimes",
    )
    fail_on_change: bool = _flag(LIMITS, "Exit 5 instead of warning; nothing is published.")
    allow_empty: bool = _flag(LIMITS, "Publish also where there are no triples, or none in train; default: exit 5.")
    allow_side_effects: tuple[TableName, ...] = _option(
        LIMITS,
        "Table that foreign keys or triggers may write to in a run; by default such a write is exit 5. May be repeated.",
        parse_tables,
        (),
        metavar="TABLE",
    )
    probe: bool = _flag(LIMITS, "Train a small model on the result and measure it.", need="often")
    fail_below: float | None = _option(
        LIMITS,
        "With --probe: exit 5 if its AUC is lower, and publish nothing.",
        parse_float(1),
        example=0.6,
        need="sometimes",
        says={"probe": "Exit 5 if the AUC is lower; the result is written all the same."},
    )

    buckets: int | None = _option(
        EXECUTION,
        "User buckets: more need less memory; default by size.",
        parse_int(1, 4096),
        example=16,
    )
    engine: str = _option(
        EXECUTION,
        "Where the work runs: local (default), ray or ray://HOST:PORT; docs/scaling.md. Does not affect the output.",
        parse_engine,
        "local",
        metavar="local|ray|ray://HOST:PORT",
        completion=("local", "ray", "ray://"),
    )
    profile: bool = _flag(EXECUTION, "Show the steps: rows, seconds, memory.", need="sometimes")
    seed: int = _option(
        EXECUTION,
        "Seed of ids, ties and samples; default 0.",
        parse_int(0),
        0,
        decides="result",
        says={
            "probe": "Seed of sampled users, hold-out and training; default 0.",
            "synth": "Seed of the synthetic world; default 0.",
            "demo": "Seed of the synthetic world, and of the run; default 0.",
        },
        need="sometimes",
    )
    write: Write = _choice(
        EXECUTION,
        "What is written: changes (default; equal rows stay untouched) or replace (all rows).",
        Write,
    )
    dry_run: bool = _flag(
        EXECUTION,
        "Do everything, then roll back; publish nothing.",
        need="often",
        says={"prune": "Say what would be removed, and remove nothing."},
    )

    snapshot: str | None = _text(
        OTHER,
        "Check this snapshot, or the newest of this --out folder, instead of a database.",
        "FOLDER",
        "out",
        parse_location,
        need="often",
    )
    controls: bool = _flag(
        OTHER,
        "Also train with a random previous item, and with days in random order: their gain has another cause.",
        need="often",
    )
    format: SchemaFormat = _choice(OTHER, "sql (default) or prisma.", SchemaFormat, need="often")
    all: bool = _flag(
        OTHER, "Also print the application's own tables; default: only what is to be added to them.", need="often"
    )
    to: FileFormat = _choice(
        OTHER, "Whose files to write: recbole (default; its atomic files).", FileFormat, need="often"
    )
    role: str | None = _text(
        OTHER, "Print the GRANTs that this database role needs, instead of the tables.", "NAME", "bpr_etl", need="often"
    )
    scale: float = _option(
        OTHER,
        "Size of the synthetic world; default 1, the design's size.",
        parse_positive(1000),  # 85 million slots: far above it the trips alone fill the memory
        1.0,
        need="often",
    )

    remove: bool = _flag(OTHER, "Remove what earlier demos left: their snapshots and their database.", need="often")

    metrics_file: str | None = _text(
        OUTPUT,
        "Write the outcome for Prometheus, also of a failure.",
        "FILE",
        "/var/lib/prometheus/node-exporter/bpr-etl.prom",
        need="sometimes",
    )
    json: bool = _flag(OUTPUT, "Print one JSON object; logs go to stderr.", need="often")
    log_format: LogFormat = _choice(OUTPUT, "How log lines look on stderr; default console.", LogFormat)
    quiet: bool = _flag(
        OUTPUT,
        "Print nothing but warnings and errors.",
        need="sometimes",
        says={"start": "Print nothing but the URL, warnings and errors."},
    )
    verbose: bool = _flag(OUTPUT, "Print all details, and log each step.", need="sometimes")

    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Where each value that is no default came from, by option, and under `config` the settings file (`load_settings`)."""

    def __post_init__(self) -> None:
        """Check and convert; a parser's own result stays as it is."""
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if value is not option.default and not (value is None and name in _OPTIONAL):
                object.__setattr__(self, name, parse_option(name, value, THE_CALL))
        if self.quiet and self.verbose:
            raise SettingsError("--quiet and --verbose contradict each other: give one of them.")
        if self.fail_on_change and self.max_change is None:
            raise SettingsError(
                "--fail-on-change has no limit to go by while --max-change is off: leave one of them out."
            )

    @property
    def may_be_empty(self) -> bool:
        """Whether a run without triples is allowed: by --allow-empty, or because no shadow users are expected."""
        none_expected = self.expect_users is not None and self.expect_users.number == 0
        return self.allow_empty or (none_expected and self.audience == "shadow")

    @property
    def lock_timeout(self) -> float:
        """How many seconds to wait for another run's lock."""
        return self.max_wait if self.wait_lock else 0.0

    def manifest_settings(self) -> dict[str, Any]:
        """The settings that decide the result and hold no secret, as the manifest has them."""
        named = {name: getattr(self, name) for name, option in OPTIONS.items() if option.decides}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


OPTIONS: dict[str, Option] = {each.name: each.metadata["option"] for each in fields(Settings) if each.metadata}
"""The declaration of each option, by its field's name, in the order of `--help`."""

_OPTIONAL = {each.name for each in fields(Settings) if "None" in str(each.type)}
"""The options that accept None."""

ROW_SETTINGS = tuple(name for name, option in OPTIONS.items() if option.decides == "rows")
"""Options that decide which rows are read."""

TRIPLE_SETTINGS = (*ROW_SETTINGS, *(name for name, option in OPTIONS.items() if option.decides == "triples"))
"""Options that decide which triples there are."""


def parse_option(name: str, value: Any, origin: str) -> Any:
    """A value of an option, parsed. Raises SettingsError, which names the option and the value's origin, but no secret."""
    if name not in OPTIONS:
        raise unknown_option(f"There is no setting {name!r}", name)
    option = name if origin == THE_CALL else format_option(name)
    try:
        return OPTIONS[name].parse(value)
    except SettingsError as error:
        reason, ask, near = str(error).partition("; did you mean ")
        shown = _shown(value)
        # A value that looks like an address may hold a password, whichever option it was given to.
        if name == "database_url" or re.search(r"://|:\S*@", shown) or shown in reason:
            shown = ""
        secrets = find_secrets([value if isinstance(value, str) else _shown(value)], {})
        said = f"{option} {reason} ({shown} from {origin})" if shown else f"{option} {reason} (from {origin})"
        raise SettingsError(redact(f"{said}{ask}{near or '.'}", secrets)) from None
    except (ValueError, OverflowError):  # whole numbers that Python neither writes out nor makes a float of
        raise SettingsError(f"{option} must not be a number of that size (from {origin}).") from None


def unknown_option(what: str, name: str) -> SettingsError:
    """The error of a name that is no option, with the one that may be meant."""
    return SettingsError(f"{what}{suggestion(name, OPTIONS) or '.'}")


def _shown(value: Any) -> str:
    """A value in a message; an option that may be repeated arrives as a list."""
    try:
        return ", ".join(map(repr, value)) if isinstance(value, list) else repr(value)
    except ValueError:
        return "a number of thousands of digits"
