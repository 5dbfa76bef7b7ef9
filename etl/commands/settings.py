"""The settings file that `bpr-etl init` writes, and the account of settings that `bpr-etl config show` gives.

Both are made from Settings and the options' own help, so that neither can go stale.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from etl.commands.options import panels
from etl.errors import ConnectError, SettingsError
from etl.settings.model import ENVIRONMENT_PREFIX, Settings, env_variable_for, sources
from etl.settings.redaction import redact, secrets_of

_HEAD = """\
# Settings of bpr-etl: https://toml.io, all of them with their defaults.
#
# A line that begins with # and a name is a setting's default: take the # away and change the value. A line that begins
# with #: and a name is a setting that has no default, with an example: take the #: away.
# What is said on the command line or in the environment ({prefix}...) wins over this file. `bpr-etl config show` says
# where each value came from.
#
# Passwords are better kept elsewhere: in DATABASE_URL, PGPASSWORD or .pgpass.
"""

EXAMPLES: dict[str, Any] = {
    "database_url": "postgresql://app@db.example/app",
    "schema": "public",
    "shadow_domain": "example.test",
    "max_shadow_share": 0.5,
    "expect_users": "747±5%",
    "max_bad": 0.01,
    "keep": 14,
    "catalog_alpha": 0.5,
    "vocab_from": "out",
    "fail_below": 0.6,
    "buckets": 16,
    "data_dir": "/var/lib/bpr-etl/pg",
    "snapshot": "out",
    "role": "bpr_etl",
    "metrics_file": "/var/lib/prometheus/node-exporter/bpr-etl.prom",
}
"""What a setting that has no default may look like. TOML has no word for nothing."""


def template() -> str:
    """The text of a settings file in which every setting stands, and none is set."""
    parts = [_HEAD.format(prefix=ENVIRONMENT_PREFIX)]
    defaults = _defaults()
    for panel, settings in panels().items():
        parts.append(f"\n# --- {panel} ---\n")
        for name, text in settings.items():
            key, default = name.replace("_", "-"), defaults[name]
            line = f"#: {key} = {_toml(EXAMPLES[name])}" if default is None else f"#{key} = {_toml(default)}"
            parts.append(f"\n{_comment(text)}{line}\n")
    return "".join(parts)


def write_template(path: Path) -> None:
    """Write the template where no file is. Readable for its owner alone: some will put a password into it.

    Raises SettingsError where there is a file, ConnectError where there can't be one.
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


def _defaults() -> dict[str, Any]:
    return {each.name: each.default for each in fields(Settings) if "parse" in each.metadata}


def _comment(text: str) -> str:
    """The help of an option as lines of a comment; its environment variable is said once, at the top."""
    words, lines, line = text.partition(" [env:")[0].split(), [], "#"
    for word in words:
        if len(line) + len(word) > 110:
            lines.append(line)
            line = "#"
        line += f" {word}"
    return "".join(f"{each}\n" for each in [*lines, line])


def _toml(value: Any) -> str:
    """A value as TOML has it; its texts are JSON's."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class SettingValue:
    """A setting: the panel that it is in, its value with no secret in it, and where that came from."""

    panel: str
    name: str
    value: Any
    origin: str


def settings_with_origin(
    settings: Settings, given: Mapping[str, Any], environ: Mapping[str, str]
) -> Iterator[SettingValue]:
    """Every setting, by panel. Raises SettingsError."""
    origins = {name: where for where, layer in sources(given, environ) for name in layer}
    secrets = secrets_of(settings.database_url or "", environ)
    for panel, names in panels().items():
        for name in names:
            origin = origins.get(name, "default")
            if origin == "the environment":
                origin = f"environment: {env_variable_for(name, environ)}"
            yield SettingValue(panel, name, _redacted(getattr(settings, name), secrets), origin)


def _redacted(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return redact(value, secrets)
    return [_redacted(each, secrets) for each in value] if isinstance(value, tuple) else value
