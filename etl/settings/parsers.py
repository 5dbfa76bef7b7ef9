"""From what a command line, the environment or a settings file says to a setting's value. Each raises SettingsError.

What it says continues a sentence that begins with the option's name.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etl.errors import SettingsError
from etl.settings import values

TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def parse_text(value: Any) -> str:
    """A text that a file and a database can hold: in UTF-8, without a NUL character."""
    if not isinstance(value, str):
        raise SettingsError("must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of the command line or the environment that are no text
        raise SettingsError("must be UTF-8") from None
    if "\0" in value:  # which a settings file can have
        raise SettingsError("must not have a NUL character in it")
    return value


def parse_filled(value: Any) -> str:
    """A text that says something: an option of which a shell's variable was empty is not one that was not given."""
    word = parse_text(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if not word.strip():
        raise SettingsError("must not be empty")
    return word


SCHEMES = ("s3", "gs", "az")
"""The object stores that snapshots may lie in."""


def parse_location(value: Any) -> str:
    """Where snapshots lie: a local folder, or an object store's URL, with nothing in it that the store would not see.

    Its credentials come from the environment: a key or a signature in the URL would be kept wherever the URL is.
    """
    word = parse_filled(value)
    scheme, after, rest = word.partition("://")
    if not after:
        if re.match(r"~|(s3|gs|az|https?|file)(:|//)", word, re.IGNORECASE):
            raise SettingsError(
                "must be a folder, written out where it begins with ~, or a URL with :// in it; a folder of such a name is "
                "written ./~ or ./s3:"
            )
        return word
    if scheme not in SCHEMES or not rest.strip("/"):
        raise SettingsError(
            f"must be a local folder, or one of {', '.join(f'{each}://bucket/path' for each in SCHEMES)}"
        )
    if "?" in rest or "#" in rest or ":" in rest.partition("/")[0]:
        raise SettingsError(
            "must have no ?query, no #fragment and no password in its URL; credentials go into the environment, like "
            "AWS_SECRET_ACCESS_KEY or AZURE_STORAGE_SAS_KEY"
        )
    return word


_MOST = 2**63 - 1


def parse_int(low: int, high: int | None = None) -> Callable[[Any], int]:
    """A whole number from `low` up, or to `high`."""

    def parse(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= (high or _MOST):
            raise SettingsError(f"must be a whole number from {low}" + (f" to {high}" if high else " up"))
        return number

    return parse


def parse_positive(value: Any) -> float:
    """A finite number above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise SettingsError("must be a number above 0")
    return number


def parse_bool(value: Any) -> bool:
    """True or false, in the words that people use for it."""
    word = str(value).lower()
    if word not in TRUE | FALSE:
        raise SettingsError("must be true or false")
    return word in TRUE


@dataclass(frozen=True)
class Choice:
    """A parser that knows what it takes, so that a shell can complete it."""

    choices: tuple[str, ...]

    def __call__(self, value: Any) -> str:
        """The word, where it is one of them."""
        if value not in self.choices:
            near = difflib.get_close_matches(str(value), self.choices, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"must be one of {', '.join(self.choices)}{hint}")
        return str(value)


def choice(*choices: str) -> Callable[[Any], str]:
    """One of the words."""
    return Choice(choices)


def parse_float(low: float, high: float) -> Callable[[Any], float]:
    """A number from `low` to `high`."""

    def parse(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if not low <= number <= high:
            raise SettingsError(f"must be a number from {low:g} to {high:g}")
        return number

    return parse


def parse_negatives(value: Any) -> tuple[str, ...]:
    """Strategies for negatives: a list of them, or a text that parts them by commas."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        raise SettingsError("must be a list of strategies")
    return values.parse_negatives(
        each for word in words for each in (word.split(",") if isinstance(word, str) else [word])
    )


def parse_tables(value: Any) -> tuple[str, ...]:
    """Names of tables: a list of them, or a text that parts them by commas; see `values.parse_tables`."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise SettingsError("must be the names of tables")
    return values.parse_tables(map(parse_text, words))


def parse_split(value: Any) -> str:
    """How events are split; see `values.parse_split`."""
    values.parse_split(value)
    return str(value)


def parse_city_weights(value: Any) -> tuple[tuple[str, float], ...]:
    """Weights of cities; see `values.parse_city_weights`."""
    if not isinstance(value, str | list | tuple | dict):
        raise SettingsError('must be weights of cities, like "New York=2"')
    return values.parse_city_weights(value)


def parse_prefix(value: Any) -> str:
    """The start of a shadow user's address: never empty."""
    if not parse_text(value):
        raise SettingsError("must not be empty: every user would be a shadow user")
    return str(value)


def parse_domain(value: Any) -> str:
    """The domain of an address."""
    domain = parse_text(value).removeprefix("@")
    if not domain or "@" in domain:
        raise SettingsError("must be the domain of an address, like example.test")
    return domain


def parse_expected(value: Any) -> str:
    """A number, perhaps with a tolerance; see `values.parse_expected`."""
    word = str(value) if isinstance(value, int) and not isinstance(value, bool) else parse_text(value)
    values.parse_expected(word)
    return word


def parse_engine(value: Any) -> str:
    """Who works through the buckets; see `engine.opened`."""
    word = parse_text(value)
    host, _, port = word.removeprefix("ray://").rpartition(":")
    at = word.startswith("ray://") and host and port.isdecimal() and 0 < int(port) < 1 << 16
    if word not in {"local", "ray"} and not at:
        raise SettingsError("must be local, ray or ray://HOST:PORT")
    return word
