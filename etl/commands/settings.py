"""`bpr-etl init`, which writes a settings file, and `bpr-etl config show`. Both are made from the options' declarations."""

from __future__ import annotations

import json
import os
from pathlib import Path
from textwrap import wrap
from typing import Any

from etl.commands.runner import CommandResult
from etl.errors import ConnectError, SettingsError, escape_control_characters
from etl.runtime.cancellation import CancelToken
from etl.settings.model import OPTIONS, Settings
from etl.settings.redaction import redact, secrets_of
from etl.settings.sources import DEFAULT_FILE, ENVIRONMENT_PREFIX, env_variable_for

_HEAD = """\
# Settings of bpr-etl, in TOML (https://toml.io).
#
# A line like `#name = value` is a setting with its default: remove the # and change the value.
# A line without # is a setting that differs from its default.
# A line like `#: name = value` is a setting without a default, with an example: remove the #: and change the value.
# The command line and the environment ({prefix}...) win over this file.
# `bpr-etl config show` says where each value came from.
#
# Passwords are better kept elsewhere: in DATABASE_URL, PGPASSWORD or .pgpass.
"""


def init(_settings: Settings, _stop: CancelToken, *, config: str | None) -> CommandResult:
    """Write a settings file with every default and the proposed negatives. An existing file is not overwritten."""
    path = config or DEFAULT_FILE
    write_template(Path(path))
    read = "it is read where no other is named" if path == DEFAULT_FILE else f"name it with --config {path}"
    line = (
        f"Wrote {escape_control_characters(path)}: every setting at its default, and the proposed "
        f"negatives = {_toml(OPTIONS['negatives'].proposed)} ({escape_control_characters(read)})."
    )
    return CommandResult({"path": path}, [line])


def config_show(settings: Settings, _stop: CancelToken) -> CommandResult:
    """Print every setting, its value, and where it came from: command line, environment, settings file or default."""
    from etl.commands.terminal.console import settings_table

    found = settings_with_origin(settings)
    file = settings.origins.get("config")
    return CommandResult(
        {"settings": found, "file": file},
        [settings_table(found), "", f"Settings file: {file or 'none'}"],
        primary=True,
    )


def template() -> str:
    """The text of the settings file."""
    parts = [_HEAD.format(prefix=ENVIRONMENT_PREFIX)]
    panel = None
    for name, option in OPTIONS.items():
        if option.panel != panel:
            panel = option.panel
            parts.append(f"\n# --- {panel} ---\n")
        key = name.replace("_", "-")
        line = f"#: {key} = {_toml(option.example)}" if option.default is None else f"#{key} = {_toml(option.default)}"
        if option.proposed is not None:
            line = f"# Proposed, since it trains better models (docs/negatives.md).\n{key} = {_toml(option.proposed)}"
        parts.append(f"\n{_comment(option.help)}{line}\n")
    return "".join(parts)


def write_template(path: Path) -> None:
    """Write the template to a new file, which only its owner can read: it may get a password.

    Raises SettingsError if the file exists, ConnectError if it can't be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SettingsError(
            f"{path} is there already, and is left as it is. Name another file with --config."
        ) from None
    except OSError as error:
        raise ConnectError(f"Cannot write {path}: {error.strerror}. Check the folder and its rights.") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(template())


def _comment(text: str) -> str:
    return "".join(f"{line}\n" for line in wrap(text, 112, initial_indent="# ", subsequent_indent="# "))


def _toml(value: Any) -> str:
    """A value in TOML, whose strings JSON's rules fit, too."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)


def settings_with_origin(settings: Settings) -> dict[str, dict[str, Any]]:
    """Every setting, by panel: its `value` without secrets, and where that came `from`."""
    found = {}
    secrets = secrets_of(settings.database_url or "", settings.environ)
    for name in OPTIONS:
        origin = settings.origins.get(name, "default")
        if origin == "the environment":
            origin = f"environment: {env_variable_for(name, settings.environ)}"
        found[name] = {"value": _redacted(getattr(settings, name), secrets), "from": origin}
    return found


def _redacted(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return redact(value, secrets)
    return [_redacted(each, secrets) for each in value] if isinstance(value, tuple) else value
