"""The values that settings take, and one parser per kind of value.

A parser accepts a text (command line, environment), what TOML has instead (number, list, table), or its own result, which it
returns unchanged. It raises SettingsError with a text that continues a sentence: the option's name comes before it.

A parsed value with parts (`SplitSpec`, `NegativeStrategies`, `ExpectedCount`, `TableName`) is a subclass of `str` or `tuple`:
it compares and prints as the user wrote it, also in manifests and `config show`.

Standard library alone: the command line checks its options with it before anything slow is imported.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self, get_args

from etl.errors import SettingsError

TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
MAX_INT = 2**63 - 1

SCHEMES = ("s3", "gs", "az")
"""The object stores that can hold snapshots."""

SPLITS = ("train", "valid", "test")
"""The parts of a split, earliest first: a later part informs none before it."""

Task = Literal["triples", "next"]
TASKS: tuple[Task, ...] = get_args(Task)
"""The tables of training examples, in the order in which they are published."""

RECOMMENDED = "recommended"
RECOMMENDED_SAMPLES = 16
LARGE_CATALOGUE = 2_000
"""From so many eligible nodes on, `recommended` draws popular nodes more often (docs/negatives.md, "Large catalogues")."""

LARGE_CATALOGUE_ALPHA = 0.5
MAX_SAMPLES = 1_000
MAX_ALPHA = 10.0

_STRATEGY_HELP = f"ranking, shown, catalog:N (N from 1 to {MAX_SAMPLES}) or {RECOMMENDED}"
STRATEGY_EXAMPLES = ("ranking", "shown", f"catalog:{RECOMMENDED_SAMPLES}", RECOMMENDED)


def format_option(name: str) -> str:
    """A setting's name as its option: `--min-catalog`."""
    return f"--{name.replace('_', '-')}"


def suggestion(word: object, known: Iterable[str]) -> str:
    """The end of a sentence that asks for the closest known word; empty where none is close."""
    near = difflib.get_close_matches(str(word)[:100], list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def parse_text(value: Any) -> str:
    """A text that a file and a database can hold: UTF-8, without a NUL character."""
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
    """A text that is not blank. `--schema "$EMPTY"` is an error: it must not mean the default."""
    text = parse_text(os.fspath(value) if isinstance(value, os.PathLike) else value)
    if not text.strip():
        raise SettingsError("must not be empty")
    return text


def parse_command(value: Any) -> str:
    """A command line whose words are separated as a shell does it."""
    text = parse_filled(value)
    try:
        shlex.split(text)
    except ValueError:
        raise SettingsError("must be a command whose quotes are closed") from None
    return text


def parse_location(value: Any) -> str:
    """Where snapshots are: a local folder or an object store's URL.

    A URL with credentials is refused: it is kept in manifests and logs. They come from the environment.
    """
    text = parse_filled(value)
    scheme, after, rest = text.partition("://")
    if not after:
        if re.match(r"~|(s3|gs|az|https?|file)(:|//)", text, re.IGNORECASE):
            raise SettingsError(
                "must be a folder, written out where it begins with ~, or a URL with :// in it; a folder of such a name is "
                "written ./~ or ./s3:"
            )
        return text
    if scheme not in SCHEMES or not rest.strip("/"):
        raise SettingsError(
            f"must be a local folder, or one of {', '.join(f'{each}://bucket/path' for each in SCHEMES)}"
        )
    if "?" in rest or "#" in rest or ":" in rest.partition("/")[0]:
        raise SettingsError(
            "must have no ?query, no #fragment and no password in its URL; credentials go into the environment, like "
            "AWS_SECRET_ACCESS_KEY or AZURE_STORAGE_SAS_KEY"
        )
    return text


def parse_int(low: int, high: int | None = None) -> Callable[[Any], int]:
    """A parser of whole numbers from `low` up, or to `high`."""

    def parse(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= (high or MAX_INT):
            raise SettingsError(f"must be a whole number from {low}" + (f" to {high}" if high else " up"))
        return number

    return parse


def _number(value: Any) -> float:
    """The value as a number; NaN for what is none, or is too large for a float."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def parse_float(high: float) -> Callable[[Any], float]:
    """A parser of numbers from 0 to `high`."""

    def parse(value: Any) -> float:
        if not 0 <= (number := _number(value)) <= high:
            raise SettingsError(f"must be a number from 0 to {high:g}")
        return number

    return parse


def parse_positive(high: float = math.inf) -> Callable[[Any], float]:
    """A parser of finite numbers above 0, and up to `high`."""

    def parse(value: Any) -> float:
        if not (0 < (number := _number(value)) <= high and number < math.inf):
            raise SettingsError("must be a number above 0" + (f", at most {high:g}" if high < math.inf else ""))
        return number

    return parse


def _share(value: Any) -> float:
    """`1%` or 0.01 as a number; NaN for anything else."""
    if isinstance(value, str) and (text := value.rstrip()).endswith("%"):
        return _number(text[:-1]) / 100
    return math.nan if isinstance(value, bool) else _number(value)


def parse_fraction(value: Any) -> float:
    """A share of a whole: `1%`, or a number from 0 to 1."""
    if not 0 <= (share := _share(value)) <= 1:
        raise SettingsError("must be a share like 1%, or a number from 0 to 1")
    return share


def parse_relative_change(value: Any) -> float | None:
    """The largest allowed change, relative to the earlier value: `20%`, `1.5`; None for `off`."""
    if value == "off":
        return None
    if not 0 <= (share := _share(value)) < math.inf:
        raise SettingsError("must be a share like 20%, or off")
    return share


def parse_bool(value: Any) -> bool:
    """True or false, in the words of `TRUE` and `FALSE`."""
    word = str(value).lower()
    if word not in TRUE | FALSE:
        raise SettingsError("must be true or false")
    return word in TRUE


def parse_skip(value: Any) -> bool | Literal["ok"]:
    """True, false, or ok: true, and not worth an exit code of its own."""
    if value == "ok":
        return "ok"
    try:
        return parse_bool(value)
    except SettingsError:
        raise SettingsError("must be true, false or ok") from None


@dataclass(frozen=True)
class Choice:
    """A parser of one of several words; it keeps them for `--help` and shell completion."""

    choices: tuple[str, ...]

    def __call__(self, value: Any) -> str:
        """Return the word. Raises SettingsError if it is none of them."""
        if value not in self.choices:
            raise SettingsError(f"must be one of {', '.join(self.choices)}{suggestion(value, self.choices)}")
        return str(value)


def parse_engine(value: Any) -> str:
    """The executor's name: local, ray or ray://HOST:PORT."""
    text = parse_text(value)
    host, _, port = text.removeprefix("ray://").rpartition(":")
    at = text.startswith("ray://") and host and port.isdecimal() and 0 < int(port) < 1 << 16
    if text not in {"local", "ray"} and not at:
        raise SettingsError("must be local, ray or ray://HOST:PORT")
    return text


def parse_prefix(value: Any) -> str:
    """The start of a shadow user's email address: never empty."""
    if not parse_text(value):
        raise SettingsError("must not be empty: every user would be a shadow user")
    return str(value)


def parse_domain(value: Any) -> str:
    """The domain of an email address, with or without its @."""
    domain = parse_text(value).removeprefix("@")
    if not domain or "@" in domain:
        raise SettingsError("must be the domain of an address, like example.test")
    return domain


class ExpectedCount(str):
    """An expected number of rows, perhaps with a tolerance: `747`, `747±5%`, or `747+-5%`."""

    __slots__ = ("number", "tolerance")
    number: int
    tolerance: float
    _FORM = re.compile(r"\s*(\d+)\s*(?:(?:±|\+-|\+/-)\s*(\d+(?:\.\d+)?)\s*%)?\s*")

    def __new__(cls, value: Any) -> Self:
        """Parse a value. Raises SettingsError."""
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else parse_text(value)
        found = cls._FORM.fullmatch(text)
        if not found or len(text) > 40:
            raise SettingsError("must be a number like 747, or one with a tolerance like 747±5% (or 747+-5%)")
        self = super().__new__(cls, text)
        self.number, self.tolerance = int(found[1]), float(found[2] or 0) / 100
        return self

    @property
    def label(self) -> str:
        """The number and its tolerance for a message."""
        return f"{self.number:,}±{self.tolerance * 100:g}%"

    def accepts(self, found: int) -> bool:
        """Whether a number is within the tolerance."""
        return abs(found - self.number) <= self.number * self.tolerance


SplitKind = Literal["none", "last-trip", "time"]


class SplitSpec(str):
    """How events are split: `none`, `last-trip`, `time:<ISO date>` or `time:<ISO date>,<ISO date>`.

    `cuts` of a time split: seconds since 1970, UTC, at which valid and test (or test alone) begin.
    """

    __slots__ = ("cuts", "kind")
    kind: SplitKind
    cuts: tuple[int, ...]

    def __new__(cls, value: Any) -> Self:
        """Parse a value. Raises SettingsError."""
        if isinstance(value, cls):
            return value
        kind, _, dates = value.partition(":") if isinstance(value, str) else ("", "", "")
        if value not in ("none", "last-trip") and not (kind == "time" and dates):  # a tuple: TOML's lists have no hash
            raise SettingsError(
                "must be none, last-trip, time:<ISO date> or time:<ISO date>,<ISO date>"
                + suggestion(str(value)[:20], ("none", "last-trip"))
            )
        cuts = tuple(_seconds(date.strip()) for date in dates.split(",")) if dates else ()
        if len(cuts) > 2 or sorted(set(cuts)) != list(cuts):
            raise SettingsError("must have one date, or two of which the second is later")
        self = super().__new__(cls, value)
        self.kind, self.cuts = kind, cuts  # type: ignore[assignment]
        return self

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the split, earliest first; empty without a split."""
        if self.kind == "none":
            return ()
        return ("train", "test") if len(self.cuts) == 1 else SPLITS

    @property
    def leakage_note(self) -> str | None:
        """Information in train that a production model would not have; None where there is none."""
        if self.kind == "last-trip":
            return "the future of other users: one user's train may be later than another user's test"
        return None


def _seconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"must have dates like 2026-11-01, not {text!r}") from None
    if moment.microsecond:
        raise SettingsError(f"must have whole seconds, not {text!r}")
    # The database's timestamps have no zone and are UTC. timestamp() would raise for some dates of the years 1 and 9999.
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)


@dataclass(frozen=True)
class NegativeSampling:
    """Where the negatives of one city come from.

    `catalog` is the number sampled from the catalogue for each positive: in proportion to popularity to the power `alpha`, so
    evenly where that is 0.
    """

    ranking: bool = False
    shown: bool = False
    catalog: int = 0
    alpha: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The strategies as a user would name them, for the manifest."""
        named = ["ranking"] * self.ranking + ["shown"] * self.shown + [f"catalog:{self.catalog}"] * bool(self.catalog)
        return {"negatives": named} | ({"catalog_alpha": self.alpha} if self.catalog else {})


class NegativeStrategies(tuple[str, ...]):  # noqa: SLOT001 - a tuple can't have slots of its own
    """The strategies of `--negatives`, each once, in the order given: a list, or a text that separates them by commas.

    `samples` is N of `catalog:N` (`recommended` has its own), 0 where the catalogue is not drawn from.
    """

    samples: int

    def __new__(cls, value: Any) -> Self:
        """Parse a value. Raises SettingsError."""
        if isinstance(value, cls):
            return value
        words = _split_words(value, _STRATEGY_HELP)
        samples = [size for word in dict.fromkeys(map(_parse_strategy, words)) if (size := _sample_size(word))]
        if len(samples) > 1:
            raise SettingsError("must draw from the catalogue once: give one of catalog:N and recommended")
        if not words:
            raise SettingsError("must name at least one strategy")
        self = super().__new__(cls, dict.fromkeys(words))
        self.samples = samples[0] if samples else 0
        return self

    def for_city(self, nodes: int, alpha: float | None) -> NegativeSampling:
        """What the strategies are in a city of so many eligible nodes; `alpha` is `--catalog-alpha`."""
        if alpha is None and RECOMMENDED in self and nodes >= LARGE_CATALOGUE:
            alpha = LARGE_CATALOGUE_ALPHA
        return NegativeSampling("ranking" in self, "shown" in self, self.samples, alpha or 0.0)


def _texts(value: Any, what: str) -> list[str]:
    """A text, or those of a list. Raises SettingsError for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise SettingsError(f"must be {what}")
    return list(texts)


def _split_words(value: Any, what: str) -> list[str]:
    """The words of a list, or of a text that separates them by commas. Raises SettingsError for others."""
    return [word.strip() for text in _texts(value, what) for word in text.split(",")]


def _parse_strategy(word: str) -> str:
    if word in {"ranking", "shown"} or _sample_size(word):
        return word
    raise SettingsError(f"must be {_STRATEGY_HELP}, not {word!r}{suggestion(word, STRATEGY_EXAMPLES)}")


def _sample_size(word: str) -> int:
    """N of `catalog:N`, and what `recommended` draws; 0 for anything else."""
    if word == RECOMMENDED:
        return RECOMMENDED_SAMPLES
    name, _, digits = word.partition(":")
    digits = digits.lstrip("0")
    # int() raises for more than 4,300 digits.
    if name != "catalog" or not (digits.isascii() and digits.isdigit()) or len(digits) > len(str(MAX_SAMPLES)):
        return 0
    return int(digits) if int(digits) <= MAX_SAMPLES else 0


def advice(negatives: Iterable[str]) -> str:
    """What to try where triples have little training value: other negatives, or more data."""
    if RECOMMENDED not in negatives:
        return f"Try --negatives {RECOMMENDED}."
    return f"The negatives are the {RECOMMENDED} ones: see whether there are enough users, trips and selected items."


def parse_tasks(value: Any) -> tuple[Task, ...]:
    """Names of TASKS, each once, in their order: a list of them, or a text that separates them by commas."""
    wanted = f"one or more of {', '.join(TASKS)}"
    names = set(map(Choice(TASKS), _split_words(value, wanted)))
    if not names:
        raise SettingsError(f"must be {wanted}")
    return tuple(task for task in TASKS if task in names)


def parse_city_weights(value: Any) -> tuple[tuple[str, float], ...]:
    """Weights of cities by name, sorted by the name's UTF-8 bytes.

    Given as `New York=2`, several in a list or separated by commas, as pairs, or as a table.
    """
    if not isinstance(value, str | list | tuple | dict):
        raise SettingsError('must be weights of cities, like "New York=2"')
    words = _split_weights(value) if isinstance(value, str) else value
    split = (word if isinstance(word, tuple) else str(word).rpartition("=")[::2] for word in words)
    pairs = [(parse_text(str(city)), weight) for city, weight in (value.items() if isinstance(value, dict) else split)]
    weights = dict(sorted(((city, _weight(city, weight)) for city, weight in pairs), key=lambda pair: pair[0].encode()))
    if len(weights) != len(pairs):
        raise SettingsError("must name each city once")
    return tuple(weights.items())


def _split_weights(text: str) -> list[str]:
    """Cut `Washington, DC=2,New York=3` in two: a comma separates only after a weight."""
    words: list[str] = []
    for piece in text.split(","):
        if words and "=" not in words[-1]:
            words[-1] += f",{piece}"
        else:
            words.append(piece)
    return [word.strip() for word in words]


def _weight(city: str, value: Any) -> float:
    weight = _number(value)
    if not 1e-30 <= weight <= 1e30:  # what a float32 holds, times the weight of a small catalogue
        raise SettingsError(f'must be a city and a number above 0, like "New York=2", not {f"{city}={value}"!r}')
    return weight


class TableName(str):
    """A table's name as a person writes it: `table` or `schema.table`, each part quoted or not.

    `table` and `schema` are the spellings to look for, the likelier one first: a part without quotes may stand for itself or
    for its lower case. `schema` is empty where none is named.
    """

    __slots__ = ("schema", "table")
    schema: tuple[str, ...]
    table: tuple[str, ...]
    _PART = r'"(?:[^"]|"")+"|[^\s".,]+'
    _FORM = re.compile(rf"(?:(?P<schema>{_PART})\.)?(?P<table>{_PART})")

    def __new__(cls, value: str) -> Self:
        """Parse a value. Raises SettingsError."""
        found = cls._FORM.fullmatch(parse_text(value))
        if found is None:
            raise SettingsError(
                "must be the names of tables: table or schema.table, in double quotes where it has a dot or a space"
            )
        self = super().__new__(cls, value)
        self.schema, self.table = _spellings(found["schema"]), _spellings(found["table"])
        return self


def _spellings(part: str | None) -> tuple[str, ...]:
    if part is None:
        return ()
    if part.startswith('"'):
        return (part[1:-1].replace('""', '"'),)
    return tuple(dict.fromkeys((part, part.lower())))


_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')  # one that is not within double quotes


def parse_names(what: str) -> Callable[[Any], tuple[str, ...]]:
    """A parser of texts that are not blank, each once: a list of them, or one text."""

    def parse(value: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(parse_filled, _texts(value, f"the names of {what}"))))

    return parse


def parse_tables(value: Any) -> tuple[TableName, ...]:
    """Names of tables, each once: a list of them, or a text that separates them by commas."""
    names = (TableName(name.strip()) for word in _texts(value, "the names of tables") for name in _COMMA.split(word))
    return tuple(dict.fromkeys(names))


def parse_map(value: Any) -> dict[str, dict[str, str]]:
    """What `[map.Model]` tables say: by model, the names of its relation and columns, and SQL. A text is read as JSON.

    `table` is a `TableName`; `where` is SQL. Whether a model and its columns exist is checked with the schema.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise SettingsError('must be JSON, like {"Trip": {"city": "town"}}') from None
    if not isinstance(value, Mapping) or not all(isinstance(model, Mapping) for model in value.values()):
        raise SettingsError("must be tables, one [map.Model] for each model")
    parsed: dict[str, dict[str, str]] = {}
    for model, entries in value.items():
        for key, text in entries.items():
            if not isinstance(text, str) or not parse_text(text).strip():
                raise SettingsError(f"must have a text for {key} of [map.{model}]: a name or SQL")
        parsed[model] = {
            key: TableName(text.strip()) if key == "table" else text.strip() for key, text in entries.items()
        }
    return parsed
