"""Settings: frozen, resolved once, with option > environment > file > default. The only reader of environment and TOML."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from etl.address import Address, parse_address
from etl.choices import (
    MOST_ALPHA,
    parse_change,
    parse_city_weights,
    parse_expected,
    parse_negatives,
    parse_part,
    parse_split,
)
from etl.errors import SettingsError

ENVIRONMENT_PREFIX = "BPR_ETL_"
DEFAULT_FILE = "bpr-etl.toml"
"""The settings file that `bpr-etl init` writes, and that the command line reads where it lies in the working folder."""

_URL_VARIABLES = ("BPR_ETL_DATABASE_URL", "DIRECT_URL", "DATABASE_URL")
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise SettingsError("must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of the command line or the environment that are no text
        raise SettingsError("must be UTF-8") from None
    if "\0" in value:  # which a settings file can have
        raise SettingsError("must not have a NUL character in it")
    return value


def _whole(low: int, high: int | None = None) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or number < low or (high and number > high):
            raise SettingsError(f"must be a whole number from {low}" + (f" to {high}" if high else " up"))
        return number

    return parse


def _positive(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise SettingsError("must be a number above 0")
    return number


def _flag(value: Any) -> bool:
    word = str(value).lower()
    if word not in _TRUE | _FALSE:
        raise SettingsError("must be true or false")
    return word in _TRUE


@dataclass(frozen=True)
class _Choice:
    """A parser that knows what it takes, so that a shell can complete it."""

    choices: tuple[str, ...]

    def __call__(self, value: Any) -> str:
        if value not in self.choices:
            near = difflib.get_close_matches(str(value), self.choices, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"must be one of {', '.join(self.choices)}{hint}")
        return str(value)


def _choice(*choices: str) -> Callable[[Any], str]:
    return _Choice(choices)


def _share(low: float, high: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not low <= number <= high:
            raise SettingsError(f"must be a number from {low:g} to {high:g}")
        return number

    return parse


def _negatives(value: Any) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        raise SettingsError("must be a list of strategies")
    return parse_negatives(each for word in words for each in (word.split(",") if isinstance(word, str) else [word]))


def _split(value: Any) -> str:
    parse_split(value)
    return str(value)


def _city_weights(value: Any) -> tuple[tuple[str, float], ...]:
    if not isinstance(value, str | list | tuple | dict):
        raise SettingsError('must be weights of cities, like "New York=2"')
    return parse_city_weights(value)


def _prefix(value: Any) -> str:
    if not _text(value):
        raise SettingsError("must not be empty: every user would be a shadow user")
    return str(value)


def _domain(value: Any) -> str:
    domain = _text(value).removeprefix("@")
    if not domain or "@" in domain:
        raise SettingsError("must be the domain of an address, like example.test")
    return domain


def _engine(value: Any) -> str:
    word = _text(value)
    host, separator, port = word.removeprefix("ray://").rpartition(":")
    at = word.startswith("ray://") and separator and host and port.isdigit() and 0 < int(port) < 1 << 16
    if word not in {"local", "ray"} and not at:
        raise SettingsError("must be local, ray or ray://HOST:PORT")
    return word


def _expected(value: Any) -> str:
    word = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    parse_expected(word)
    return word


def _setting(parse: Callable[[Any], Any], default: Any) -> Any:
    return field(default=default, metadata={"parse": parse})


@dataclass(frozen=True)
class Settings:
    """All that can be said to bpr-etl. A field's parser checks and converts what comes from outside."""

    database_url: str | None = field(default=None, repr=False, metadata={"parse": _text})
    schema: str | None = _setting(_text, None)
    naming: Literal["auto", "model", "mapped"] = _setting(_choice("auto", "model", "mapped"), "auto")
    shadow_prefix: str = _setting(_prefix, "shadow-")
    shadow_domain: str | None = _setting(_domain, None)
    max_shadow_share: float | None = _setting(parse_part, None)
    expect_users: str | None = _setting(_expected, None)
    max_bad: float | None = _setting(parse_part, None)
    max_change: float | None = _setting(parse_change, 0.25)
    fail_on_change: bool = _setting(_flag, default=False)
    keep: int | None = _setting(_whole(1), None)
    wait_lock: bool = _setting(_flag, default=False)
    max_wait: float = _setting(_positive, 3600.0)
    seed: int = _setting(_whole(0), 0)
    out: str = _setting(_text, "out")
    audience: Literal["shadow", "real", "all"] = _setting(_choice("shadow", "real", "all"), "shadow")
    negatives: tuple[str, ...] = _setting(_negatives, ("ranking",))
    reject: Literal["seen", "event"] = _setting(_choice("seen", "event"), "seen")
    catalog_alpha: float | None = _setting(_share(0, MOST_ALPHA), None)
    split: str = _setting(_split, "none")
    city_weight: tuple[tuple[str, float], ...] = _setting(_city_weights, ())
    shuffle: bool = _setting(_flag, default=False)
    vocab_from: str | None = _setting(_text, None)
    probe: bool = _setting(_flag, default=False)
    fail_below: float | None = _setting(_share(0, 1), None)
    min_catalog: int = _setting(_whole(0), 50)
    small_catalog: Literal["exclude", "weight", "keep"] = _setting(_choice("exclude", "weight", "keep"), "exclude")
    ids: Literal["string", "index", "both"] = _setting(_choice("string", "index", "both"), "string")
    rows_per_file: int = _setting(_whole(1), 1_000_000)
    buckets: int | None = _setting(_whole(1, 4096), None)
    engine: str = _setting(_engine, "local")
    profile: bool = _setting(_flag, default=False)
    skip_unchanged: bool = _setting(_flag, default=False)
    dry_run: bool = _setting(_flag, default=False)
    scale: float = _setting(_positive, 1.0)
    data_dir: str | None = _setting(_text, None)
    snapshot: str | None = _setting(_text, None)
    format: Literal["sql", "prisma"] = _setting(_choice("sql", "prisma"), "sql")
    role: str | None = _setting(_text, None)
    json: bool = _setting(_flag, default=False)
    metrics_file: str | None = _setting(_text, None)
    log_format: Literal["console", "json"] = _setting(_choice("console", "json"), "console")
    quiet: bool = _setting(_flag, default=False)
    verbose: bool = _setting(_flag, default=False)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def address(self) -> Address:
        """The database's address. Raises SettingsError when nobody said one."""
        if not self.database_url:
            raise SettingsError(
                "No database was named: give --database-url, or set BPR_ETL_DATABASE_URL, DIRECT_URL or DATABASE_URL."
            )
        return parse_address(self.database_url, self.environ)

    def schema_in(self, address: Address) -> str:
        """The PostgreSQL schema: --schema, else the URL's `?schema=`, else public."""
        return self.schema or address.schema or "public"

    @property
    def patience(self) -> float:
        """For how many seconds another run's lock is waited for."""
        return self.max_wait if self.wait_lock else 0.0

    def public(self) -> dict[str, Any]:
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
    return bool(given.get("json")) or environ.get(f"{ENVIRONMENT_PREFIX}JSON", "").lower() in _TRUE


def wants_json_log(given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether log lines are to be JSON, also where the settings as a whole can't be resolved."""
    return (given.get("log_format") or environ.get(f"{ENVIRONMENT_PREFIX}LOG_FORMAT")) == "json"


_OPTIONS = {f.name: f for f in fields(Settings) if "parse" in f.metadata}


def resolve(given: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Settings from the options given on the command line (those that are not None), the environment and `--config`.

    Raises SettingsError, which names where a wrong value came from, and never repeats a URL.
    """
    values: dict[str, Any] = {}
    for where, layer in layers(given, environ):
        for name, value in layer.items():
            values[name] = _parsed(name, value, where)
    if values.get("quiet") and values.get("verbose"):
        raise SettingsError("--quiet and --verbose contradict each other: give one of them.")
    if values.get("fail_on_change") and values.get("max_change", 0) is None:
        raise SettingsError("--fail-on-change has no limit to go by while --max-change is off: leave one of them out.")
    return Settings(**values, environ=dict(environ))


def layers(given: Mapping[str, Any], environ: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Where settings are said, and what is said there as it stands, the strongest last. Raises SettingsError."""
    path = file_named(given, environ)
    return [
        (str(path), _read_file(Path(path)) if path else {}),
        ("the environment", _from_environment(environ)),
        ("the command line", {name: v for name, v in given.items() if v is not None and name != "config"}),
    ]


def file_named(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """The settings file that was named. `--config ""` names none, whatever the environment says."""
    named = given.get("config")
    return (environ.get(f"{ENVIRONMENT_PREFIX}CONFIG") if named is None else named) or None


def file_at_hand(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """DEFAULT_FILE, where it lies in the working folder and nobody names another: the command line reads it."""
    named = given.get("config") is not None or environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    return DEFAULT_FILE if not named and Path(DEFAULT_FILE).is_file() else None


def variable_of(name: str, environ: Mapping[str, str]) -> str | None:
    """The environment variable that says a setting; None where none does. An empty one counts as unset."""
    names = _URL_VARIABLES if name == "database_url" else (ENVIRONMENT_PREFIX + name.upper(),)
    return next((variable for variable in names if environ.get(variable)), None)


def choices_of(name: str) -> tuple[str, ...]:
    """The words that a setting may be; none where it is no choice between words."""
    parse = _OPTIONS[name].metadata["parse"] if name in _OPTIONS else None
    return parse.choices if isinstance(parse, _Choice) else ()


def _parsed(name: str, value: Any, where: str) -> Any:
    option = f"--{name.replace('_', '-')}"
    try:
        return _OPTIONS[name].metadata["parse"](value)
    except SettingsError as error:
        shown = "" if name == "database_url" else f" ({_shown(value)} from {where})"
        raise SettingsError(f"{option} {error}{shown}.") from None
    except (ValueError, OverflowError):  # whole numbers that Python neither writes out nor makes a float of
        raise SettingsError(f"{option} must not be a number of that size (from {where}).") from None


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    return {name: environ[variable] for name in _OPTIONS if (variable := variable_of(name, environ))}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"Cannot read the settings file {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # ValueError: also of a number of more digits than Python reads
        raise SettingsError(f"The settings file {path} is not TOML: {error}.") from None
    named = {key.replace("-", "_"): value for key, value in content.items()}
    for name in named:
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"The settings file {path} has an unknown setting {name!r}{hint}.")
    return named
