"""Where settings come from: option > environment > settings file > default. The only reader of the environment and of TOML."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from etl.errors import SettingsError
from etl.settings.model import OPTIONS, THE_CALL, Settings, parse_option, unknown_option
from etl.settings.permissions import writable_by_others
from etl.settings.redaction import redact
from etl.settings.values import TRUE

ENVIRONMENT_PREFIX = "BPR_ETL_"
DEFAULT_FILE = "bpr-etl.toml"
"""The settings file that `bpr-etl init` writes, and that the command line reads if it is in the working folder."""

_OTHER_VARIABLES = frozenset(
    f"{ENVIRONMENT_PREFIX}{each}" for each in ("TEST_DATABASE_URL", "BENCH_DIR", "REALDATA", "ENV", "PAUSES")
)
"""Variables of the tests, the benchmarks and the recipes."""

_MISTYPED = 0.75
"""The likeness (difflib's) from which an unknown variable is a mistyped option, and not, say, Kubernetes's BPR_ETL_PORT."""

_URL_VARIABLES = ("BPR_ETL_DATABASE_URL", "DIRECT_URL", "DATABASE_URL")


def process_environment() -> Mapping[str, str]:
    """The environment of the process, for calls from Python that are given none."""
    return os.environ


def load_settings(
    given: Mapping[str, Any], environ: Mapping[str, str] | None = None, origin: str = "the command line"
) -> Settings:
    """Resolve the settings from options (those that are not None), the environment and the settings file `config`.

    `environ` is this process's environment by default; `{}` stands for an empty one. `origin` is that of `given` in messages.
    Raises SettingsError for a wrong value, with its origin, and for an option or a variable that does not exist; the message
    never repeats a password.
    """
    environ = process_environment() if environ is None else environ
    path = explicit_settings_file(given, environ)
    in_file = _read_file(Path(path)) if path else {}
    _refuse_mistyped_variables(environ)
    _refuse_empty_variables(environ)
    variables = {name: environ[variable] for name in OPTIONS if (variable := env_variable_for(name, environ))}
    options = {name: value for name, value in given.items() if value is not None and name != "config"}
    values: dict[str, Any] = {}
    origins = {"config": path} if path else {}
    # The strongest origin last. A weaker one's value is checked as well.
    for layer, where in ((in_file, path or ""), (variables, "the environment"), (options, origin)):
        values |= {name: parse_option(name, value, where) for name, value in layer.items()}
        origins |= dict.fromkeys(layer, where)
    return Settings(**values, environ=dict(environ), origins=origins)


def with_options(settings: Settings | None, options: Mapping[str, Any]) -> Settings:
    """The settings with some options changed; without settings, those of the options, the environment and `config`."""
    for name in options:
        if name not in OPTIONS and not (name == "config" and settings is None):
            raise unknown_option(f"There is no setting {name!r}", name)
    return load_settings(options, origin=THE_CALL) if settings is None else replace(settings, **options)


def explicit_settings_file(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """The settings file that was named. `--config ""` means none, whatever the environment names."""
    named = given.get("config")
    return (environ.get(f"{ENVIRONMENT_PREFIX}CONFIG") if named is None else named) or None


def default_settings_file(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """DEFAULT_FILE, if it is in the working folder and no file is named: the command line reads it.

    Raises SettingsError if another user may have written it. To run without it would not be the run that was meant, either.
    """
    named = given.get("config") is not None or environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    if named or not os.path.isfile(DEFAULT_FILE):  # noqa: PTH113 - Path's raises in a folder that is not readable
        return None
    file = Path(DEFAULT_FILE)
    target = file.resolve()
    for path in (file.parent, file, target.parent, target):
        if (why := writable_by_others(path)) is not None:
            what = "its folder: " if path in (file.parent, target.parent) else ""
            raise SettingsError(
                f"{DEFAULT_FILE} of this folder is not read: another user may have written it ({what}{why}). Take that right "
                f'away (chmod go-w), or name the file with --config {DEFAULT_FILE}; --config "" reads none.'
            )
    return DEFAULT_FILE


def env_variable_for(name: str, environ: Mapping[str, str]) -> str | None:
    """The environment variable that sets an option; None where none does. An empty variable of others counts as unset."""
    names = _URL_VARIABLES if name == "database_url" else (ENVIRONMENT_PREFIX + name.upper(),)
    return next((each for each in names if environ.get(each)), None)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The environment's BPR_ETL_ variables, in any case, that nothing reads."""
    known = {ENVIRONMENT_PREFIX + each.upper() for each in (*OPTIONS, "config")} | _OTHER_VARIABLES
    return sorted(each for each in environ if each.upper().startswith(ENVIRONMENT_PREFIX) and each not in known)


def _refuse_mistyped_variables(environ: Mapping[str, str]) -> None:
    for unknown in unknown_variables(environ):
        name = unknown[len(ENVIRONMENT_PREFIX) :].lower()
        if near := difflib.get_close_matches(name, [*OPTIONS, "config"], 1, _MISTYPED):
            raise SettingsError(
                f"The environment variable {unknown} is not a setting; did you mean {ENVIRONMENT_PREFIX}{near[0].upper()}? "
                "Correct or unset it."
            )


def _refuse_empty_variables(environ: Mapping[str, str]) -> None:
    """An undefined variable of a script makes an empty one of ours. To ignore it would switch a limit off in silence."""
    for name in OPTIONS:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if environ.get(variable) == "":
            raise SettingsError(f"The environment variable {variable} is empty: unset it, or give it a value.")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"Cannot read the settings file {redact(str(path))}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # ValueError: also of a number of more digits than Python reads
        raise SettingsError(f"The settings file {path} is not TOML: {error}.") from None
    named = {key.replace("-", "_"): value for key, value in content.items()}
    for name in named:
        if name not in OPTIONS:
            raise unknown_option(f"The settings file {path} has an unknown setting {name!r}", name)
    return named


def wants_json(given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether the result is wanted as JSON, also where the settings as a whole can't be resolved."""
    return bool(given.get("json")) or environ.get(f"{ENVIRONMENT_PREFIX}JSON", "").lower() in TRUE


def wants_json_log(given: Mapping[str, Any], environ: Mapping[str, str]) -> bool:
    """Whether log lines are wanted as JSON, also where the settings as a whole can't be resolved."""
    return (given.get("log_format") or environ.get(f"{ENVIRONMENT_PREFIX}LOG_FORMAT")) == "json"
