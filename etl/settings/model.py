"""Settings: frozen, resolved once, with option > environment > file > default. The only reader of environment and TOML."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from etl.errors import SettingsError
from etl.settings import parsers
from etl.settings.permissions import writable_by_others
from etl.settings.redaction import find_secrets, redact
from etl.settings.values import MAX_ALPHA, parse_expected, parse_fraction, parse_relative_change

ENVIRONMENT_PREFIX = "BPR_ETL_"
DEFAULT_FILE = "bpr-etl.toml"
"""The settings file that `bpr-etl init` writes, and that the command line reads where it lies in the working folder."""

_CALL = "the call"
"""Where a value comes from that a program of its own gives."""

_NOT_OPTIONS = frozenset(
    f"{ENVIRONMENT_PREFIX}{each}" for each in ("TEST_DATABASE_URL", "BENCH_DIR", "REALDATA", "ENV", "PAUSES")
)
"""What the tests, the benchmarks and the recipes read."""

_RESEMBLES = 0.75
"""From which likeness on (difflib's) an unknown variable is a mistyped option, and not, say, Kubernetes's BPR_ETL_PORT."""

_URL_VARIABLES = ("BPR_ETL_DATABASE_URL", "DIRECT_URL", "DATABASE_URL")


def _setting(parse: Callable[[Any], Any], default: Any) -> Any:
    return field(default=default, metadata={"parse": parse})


@dataclass(frozen=True)
class Settings:
    """All that can be said to bpr-etl. A field's parser checks and converts whatever it is given.

    Raises SettingsError where a value is wrong, or where two contradict each other.
    """

    database_url: str | None = field(default=None, repr=False, metadata={"parse": parsers.parse_filled})
    schema: str | None = _setting(parsers.parse_filled, None)
    naming: Literal["auto", "model", "mapped"] = _setting(parsers.choice("auto", "model", "mapped"), "auto")
    shadow_prefix: str = _setting(parsers.parse_prefix, "shadow-")
    shadow_domain: str | None = _setting(parsers.parse_domain, None)
    max_shadow_share: float | None = _setting(parse_fraction, None)
    expect_users: str | None = _setting(parsers.parse_expected, None)
    max_bad: float | None = _setting(parse_fraction, None)
    max_change: float | None = _setting(parse_relative_change, 0.25)
    allow_side_effects: tuple[str, ...] = _setting(parsers.parse_tables, ())
    fail_on_change: bool = _setting(parsers.parse_bool, default=False)
    allow_empty: bool = _setting(parsers.parse_bool, default=False)
    keep: int | None = _setting(parsers.parse_int(1), None)
    wait_lock: bool = _setting(parsers.parse_bool, default=False)
    max_wait: float = _setting(parsers.parse_positive, 3600.0)
    seed: int = _setting(parsers.parse_int(0), 0)
    out: str = _setting(parsers.parse_location, "out")
    audience: Literal["shadow", "real", "all"] = _setting(parsers.choice("shadow", "real", "all"), "shadow")
    negatives: tuple[str, ...] = _setting(parsers.parse_negatives, ("ranking",))
    reject: Literal["seen", "event"] = _setting(parsers.choice("seen", "event"), "seen")
    catalog_alpha: float | None = _setting(parsers.parse_float(0, MAX_ALPHA), None)
    split: str = _setting(parsers.parse_split, "none")
    city_weight: tuple[tuple[str, float], ...] = _setting(parsers.parse_city_weights, ())
    shuffle: bool = _setting(parsers.parse_bool, default=False)
    vocab_from: str | None = _setting(parsers.parse_location, None)
    probe: bool = _setting(parsers.parse_bool, default=False)
    fail_below: float | None = _setting(parsers.parse_float(0, 1), None)
    min_catalog: int = _setting(parsers.parse_int(0), 50)
    small_catalog: Literal["exclude", "weight", "keep"] = _setting(
        parsers.choice("exclude", "weight", "keep"), "exclude"
    )
    ids: Literal["string", "index", "both"] = _setting(parsers.choice("string", "index", "both"), "string")
    rows_per_file: int = _setting(parsers.parse_int(1), 1_000_000)
    buckets: int | None = _setting(parsers.parse_int(1, 4096), None)
    engine: str = _setting(parsers.parse_engine, "local")
    profile: bool = _setting(parsers.parse_bool, default=False)
    skip_unchanged: bool = _setting(parsers.parse_bool, default=False)
    dry_run: bool = _setting(parsers.parse_bool, default=False)
    scale: float = _setting(parsers.parse_positive, 1.0)
    into_existing: bool = _setting(parsers.parse_bool, default=False)
    data_dir: str | None = _setting(parsers.parse_filled, None)
    snapshot: str | None = _setting(parsers.parse_location, None)
    format: Literal["sql", "prisma"] = _setting(parsers.choice("sql", "prisma"), "sql")
    all: bool = _setting(parsers.parse_bool, default=False)
    role: str | None = _setting(parsers.parse_filled, None)
    json: bool = _setting(parsers.parse_bool, default=False)
    metrics_file: str | None = _setting(parsers.parse_filled, None)
    log_format: Literal["console", "json"] = _setting(parsers.choice("console", "json"), "console")
    quiet: bool = _setting(parsers.parse_bool, default=False)
    verbose: bool = _setting(parsers.parse_bool, default=False)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check and convert: what a parser gave, it takes as it is."""
        for name, option in _OPTIONS.items():
            value = getattr(self, name)
            if value is not option.default and (value is not None or "None" not in str(option.type)):
                object.__setattr__(self, name, _parsed(name, value, _CALL))
        if self.quiet and self.verbose:
            raise SettingsError("--quiet and --verbose contradict each other: give one of them.")
        if self.fail_on_change and self.max_change is None:
            raise SettingsError(
                "--fail-on-change has no limit to go by while --max-change is off: leave one of them out."
            )

    @property
    def may_be_empty(self) -> bool:
        """Whether a run without triples is meant: by --allow-empty, or since there are to be no shadow users."""
        nobody = self.expect_users is not None and parse_expected(self.expect_users).number == 0
        return self.allow_empty or (nobody and self.audience == "shadow")

    @property
    def lock_timeout(self) -> float:
        """For how many seconds another run's lock is waited for."""
        return self.max_wait if self.wait_lock else 0.0

    def manifest_settings(self) -> dict[str, Any]:
        """What decides the result and holds no secret: goes into the manifest."""
        names = [
            *(
                "schema",
                "naming",
                "shadow_prefix",
                "shadow_domain",
                "seed",
                "audience",
                "negatives",
                "reject",
                "catalog_alpha",
                "split",
            ),
            *("min_catalog", "small_catalog", "city_weight", "shuffle", "ids", "rows_per_file", "vocab_from"),
        ]
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}


def wants_json(given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether the answer is to be JSON, also where the settings as a whole can't be resolved."""
    return bool(given.get("json")) or environ.get(f"{ENVIRONMENT_PREFIX}JSON", "").lower() in parsers.TRUE


def wants_json_log(given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether log lines are to be JSON, also where the settings as a whole can't be resolved."""
    return (given.get("log_format") or environ.get(f"{ENVIRONMENT_PREFIX}LOG_FORMAT")) == "json"


_OPTIONS = {f.name: f for f in fields(Settings) if "parse" in f.metadata}


def load_settings(given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the options given on the command line (those that are not None), the environment and `--config`.

    Without an `environ` it is this process's; `{}` is none. Raises SettingsError, which names where a wrong value came from,
    and an option or a variable that is none; it never repeats a password.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for where, layer in sources(given, environ):
        for name, value in layer.items():
            values[name] = _parsed(name, value, where)
    return Settings(**values, environ=dict(environ))


def with_options(settings: Settings | None, options: Mapping[str, Any]) -> Settings:
    """The settings with other options; without settings, what the options, this process's environment and `config` say."""
    for name, value in options.items():
        if name == "config" and settings is None:
            continue
        if value is not None or name not in _OPTIONS:
            _parsed(name, value, _CALL)
    return load_settings(options) if settings is None else replace(settings, **options)


def sources(given: Mapping[str, Any], environ: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Where settings are said, and what is said there as it stands, the strongest last. Raises SettingsError."""
    path = explicit_settings_file(given, environ)
    return [
        (str(path), _read_file(Path(path)) if path else {}),
        ("the environment", _from_environment(environ)),
        ("the command line", {name: v for name, v in given.items() if v is not None and name != "config"}),
    ]


def explicit_settings_file(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """The settings file that was named. `--config ""` names none, whatever the environment says."""
    named = given.get("config")
    return (environ.get(f"{ENVIRONMENT_PREFIX}CONFIG") if named is None else named) or None


def default_settings_file(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """DEFAULT_FILE, where it lies in the working folder and nobody names another: the command line reads it.

    Raises SettingsError where somebody else may have written it: to go on without it would be another run than was meant, too.
    """
    named = given.get("config") is not None or environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    if named or not os.path.isfile(DEFAULT_FILE):  # noqa: PTH113 - Path's raises where we may not look
        return None
    file = Path(DEFAULT_FILE)
    target = file.resolve()
    for path in (file.parent, file, target.parent, target):
        if (why := writable_by_others(path)) is not None:
            what = "its folder: " if path in (file.parent, target.parent) else ""
            raise SettingsError(
                f"{DEFAULT_FILE} of this folder is not read: somebody else may have written it ({what}{why}). Take that right "
                f'away (chmod go-w), or name the file with --config {DEFAULT_FILE}; --config "" reads none.'
            )
    return DEFAULT_FILE


def env_variable_for(name: str, environ: Mapping[str, str]) -> str | None:
    """The environment variable that says a setting; None where none does.

    An empty one counts as unset, but for the one that says where to publish: that must not become the working folder's `out`.
    """
    names = _URL_VARIABLES if name == "database_url" else (ENVIRONMENT_PREFIX + name.upper(),)
    return next((each for each in names if environ.get(each) or (name == "out" and each in environ)), None)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The environment's BPR_ETL_ variables that nothing reads and that resemble no option: set by somebody else, perhaps."""
    known = {ENVIRONMENT_PREFIX + each.upper() for each in (*_OPTIONS, "config")} | _NOT_OPTIONS
    return sorted(each for each in environ if each.startswith(ENVIRONMENT_PREFIX) and each not in known)


def choices_for(name: str) -> tuple[str, ...]:
    """The words that a setting may be; none where it is no choice between words."""
    parse = _OPTIONS[name].metadata["parse"] if name in _OPTIONS else None
    return parse.choices if isinstance(parse, parsers.Choice) else ()


def _parsed(name: str, value: Any, where: str) -> Any:
    if name not in _OPTIONS:
        raise SettingsError(f"There is no setting {name!r}{_suggestion(name)}.")
    option = name if where == _CALL else f"--{name.replace('_', '-')}"
    try:
        return _OPTIONS[name].metadata["parse"](value)
    except SettingsError as error:
        # What is in an address, with its scheme or without, may be a secret, wherever it stands.
        url = name == "database_url" or re.search(r"://|:\S*@", _safe_repr(value)) is not None
        shown = f" (from {where})" if url else f" ({_safe_repr(value)} from {where})"
        secrets = find_secrets([value if isinstance(value, str) else _safe_repr(value)], {})
        raise SettingsError(redact(f"{option} {error}{shown}.", secrets)) from None
    except (ValueError, OverflowError):  # whole numbers that Python neither writes out nor makes a float of
        raise SettingsError(f"{option} must not be a number of that size (from {where}).") from None


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, _OPTIONS, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    for unknown in unknown_variables(environ):
        name = unknown.removeprefix(ENVIRONMENT_PREFIX).lower()
        if near := difflib.get_close_matches(name, [*_OPTIONS, "config"], 1, _RESEMBLES):
            raise SettingsError(
                f"The environment variable {unknown} says no setting; did you mean {ENVIRONMENT_PREFIX}{near[0].upper()}? "
                "Correct or unset it."
            )
    return {name: environ[variable] for name in _OPTIONS if (variable := env_variable_for(name, environ))}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"Cannot read the settings file {redact(str(path))}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # ValueError: also of a number of more digits than Python reads
        raise SettingsError(f"The settings file {path} is not TOML: {error}.") from None
    named = {key.replace("-", "_"): value for key, value in content.items()}
    for name in named:
        if name not in _OPTIONS:
            raise SettingsError(f"The settings file {path} has an unknown setting {name!r}{_suggestion(name)}.")
    return named
