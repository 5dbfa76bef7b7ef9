"""What can be asked of a run, as words and as values: negatives, splits, weights of cities, names of tables.

Standard library alone: the command line checks its options with it before anything slow is imported.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from etl.errors import SettingsError

SPLITS = ("train", "valid", "test")
"""The parts of a split, earliest first: nothing of a later one informs an earlier one."""

RECOMMENDED = "recommended"
RECOMMENDED_SAMPLES = 16
LARGE_CATALOGUE = 2_000
"""From so many eligible nodes on, `recommended` draws popular nodes more often (docs/negatives.md, "Large catalogues")."""

LARGE_CATALOGUE_ALPHA = 0.5
_STRATEGIES = ("ranking", "shown", f"catalog:{RECOMMENDED_SAMPLES}", RECOMMENDED)
MAX_SAMPLES = 1_000
MAX_ALPHA = 10.0

SplitKind = Literal["none", "last-trip", "time"]


@dataclass(frozen=True)
class ExpectedCount:
    """How many of something there should be, give or take a share of it."""

    number: int
    tolerance: float = 0.0

    def __str__(self) -> str:
        return f"{self.number:,}±{self.tolerance * 100:g}%"

    def accepts(self, found: int) -> bool:
        """Whether a number is near enough."""
        return abs(found - self.number) <= self.number * self.tolerance


@dataclass(frozen=True)
class NegativeSampling:
    """Where the negatives of one city come from. `catalog` draws per positive, `alpha` their popularity's power."""

    ranking: bool = False
    shown: bool = False
    catalog: int = 0
    alpha: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The manifest's account of it: what was asked for, written out."""
        named = ["ranking"] * self.ranking + ["shown"] * self.shown + [f"catalog:{self.catalog}"] * bool(self.catalog)
        return {"negatives": named} | ({"catalog_alpha": self.alpha} if self.catalog else {})


@dataclass(frozen=True)
class SplitSpec:
    """How events are split. `cuts` of a time split: seconds since 1970, UTC, where valid and test (or test) begin."""

    kind: SplitKind
    cuts: tuple[int, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that there are, earliest first; none without a split."""
        if self.kind == "none":
            return ()
        return ("train", "test") if len(self.cuts) == 1 else SPLITS

    @property
    def leakage_note(self) -> str | None:
        """What an evaluation on this split has seen that a real morning has not, in words; None for nothing."""
        if self.kind == "last-trip":
            return "the future of other users: one user's train may be later than another user's test"
        return None


def parse_negatives(words: Iterable[Any]) -> tuple[str, ...]:
    """The strategies asked for, each once, in the order they came. Raises SettingsError for what is none."""
    found: list[str] = []
    for each in words:
        word = each.strip() if isinstance(each, str) else each
        if not isinstance(word, str) or (word not in {"ranking", "shown", RECOMMENDED} and not _sample_size(word)):
            near = difflib.get_close_matches(str(word), _STRATEGIES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(
                f"must be ranking, shown, catalog:N (N from 1 to {MAX_SAMPLES}) or {RECOMMENDED}, not {word!r}{hint}"
            )
        found.append(word)
    if sum(word == RECOMMENDED or word.startswith("catalog") for word in set(found)) > 1:
        raise SettingsError("must draw from the catalogue once: give one of catalog:N and recommended")
    if not found:
        raise SettingsError("must name at least one strategy")
    return tuple(dict.fromkeys(found))


def advice(negatives: Iterable[str]) -> str:
    """What to try where triples teach badly: other negatives, unless they are the recommended ones already."""
    if RECOMMENDED not in negatives:
        return f"Try --negatives {RECOMMENDED}."
    return f"The negatives are the {RECOMMENDED} ones: see whether there are enough users, trips and selected places."


def resolve_for_catalog(words: Iterable[str], alpha: float | None, nodes: int) -> NegativeSampling:
    """What the strategies come to in a city of so many eligible nodes; `recommended` is written out."""
    words = set(words)
    if RECOMMENDED in words:
        draws = RECOMMENDED_SAMPLES
        alpha = alpha if alpha is not None else LARGE_CATALOGUE_ALPHA if nodes >= LARGE_CATALOGUE else 0.0
    else:
        draws = next(filter(None, map(_sample_size, words)), 0)
    return NegativeSampling("ranking" in words, "shown" in words, draws, alpha or 0.0)


def _sample_size(word: Any) -> int:
    """N of `catalog:N`; 0 for anything else."""
    name, _, number = word.partition(":") if isinstance(word, str) else ("", "", "")
    if name != "catalog" or not (number.isascii() and number.isdigit()):
        return 0
    number = number.lstrip("0")[
        : len(str(MAX_SAMPLES)) + 1
    ]  # more digits are too many, and Python reads 4,300 at the most
    return int(number) if number and int(number) <= MAX_SAMPLES else 0


def parse_split(text: Any) -> SplitSpec:
    """`none`, `last-trip`, `time:<ISO date>` or `time:<ISO date>,<ISO date>`. Raises SettingsError for anything else."""
    if text in ("none", "last-trip"):  # a tuple: a settings file may say a list, and that is in no set
        return SplitSpec(text)
    kind, _, dates = text.partition(":") if isinstance(text, str) else ("", "", "")
    if kind != "time" or not dates:
        near = difflib.get_close_matches(str(text)[:20], ("none", "last-trip"), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SettingsError(f"must be none, last-trip, time:<ISO date> or time:<ISO date>,<ISO date>{hint}")
    cuts = tuple(_seconds(word.strip()) for word in dates.split(","))
    if len(cuts) > 2 or sorted(set(cuts)) != list(cuts):
        raise SettingsError("must have one date, or two of which the second is later")
    return SplitSpec("time", cuts)


def _seconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"must have dates like 2026-11-01, not {text!r}") from None
    if moment.microsecond:
        raise SettingsError(f"must have whole seconds, not {text!r}")
    # The database's timestamps have no zone and are UTC.
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - datetime.combine(date(1970, 1, 1), datetime.min.time(), UTC)) // timedelta(seconds=1)


def parse_city_weights(value: Any) -> tuple[tuple[str, float], ...]:
    """Weights of cities, `New York=2` each, sorted by city; a text may hold several, parted by commas.

    Raises SettingsError for a weight that is no finite number above 0, and for a city that comes twice.
    """
    if isinstance(value, Mapping):
        pairs = [(str(city), weight) for city, weight in value.items()]
    else:
        words = _split_weights(value) if isinstance(value, str) else list(value)
        split = (word if isinstance(word, tuple) else str(word).rpartition("=")[::2] for word in words)
        pairs = [(str(city), weight) for city, weight in split]
    for city, _ in pairs:
        if "\0" in city or any("\ud800" <= character <= "\udfff" for character in city):
            raise SettingsError("must name cities that a database can hold: in UTF-8, without a NUL character")
    weights = dict(sorted(((city, _weight(city, weight)) for city, weight in pairs), key=lambda pair: pair[0].encode()))
    if len(weights) != len(pairs):
        raise SettingsError("must name each city once")
    return tuple(weights.items())


def _split_weights(text: str) -> list[str]:
    """`Washington, DC=2,New York=3` has two: a comma parts only behind a weight."""
    words: list[str] = []
    for piece in text.split(","):
        if words and "=" not in words[-1]:
            words[-1] += f",{piece}"
        else:
            words.append(piece)
    return [word.strip() for word in words]


def _weight(city: str, value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 1e-30 <= weight <= 1e30:  # what a float32 holds, times the weight of a small catalogue
        raise SettingsError(f'must be a city and a number above 0, like "New York=2", not {f"{city}={value}"!r}')
    return weight


_EXPECTED = re.compile(r"\s*(\d+)\s*(?:(?:±|\+-|\+/-)\s*(\d+(?:\.\d+)?)\s*%)?\s*")


def parse_expected(word: str) -> ExpectedCount:
    """`747`, `747±5%`, or `747+-5%` where the keyboard has no ±. Raises SettingsError."""
    found = _EXPECTED.fullmatch(word, 0)
    if not found or len(word) > 40:
        raise SettingsError("must be a number like 747, or one with a tolerance like 747±5% (or 747+-5%)")
    return ExpectedCount(int(found[1]), float(found[2] or 0) / 100)


def parse_relative_change(word: Any) -> float | None:
    """How far a figure may move, as a share of what it was: `20%`, `1.5`; None for `off`. Raises SettingsError."""
    if word == "off":
        return None
    try:
        number = float(word[:-1]) / 100 if isinstance(word, str) and word.rstrip().endswith("%") else float(word)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(word, bool) or not 0 <= number < math.inf:
        raise SettingsError("must be a share like 20%, or off")
    return number


def parse_fraction(word: Any) -> float:
    """A share of a whole: `1%`, or a number from 0 to 1. Raises SettingsError."""
    try:
        number = float(word[:-1]) / 100 if isinstance(word, str) and word.rstrip().endswith("%") else float(word)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(word, bool) or not 0 <= number <= 1:
        raise SettingsError("must be a share like 1%, or a number from 0 to 1")
    return number


_NAME = r'"(?:[^"]|"")+"|[^\s".,]+'
_TABLE = re.compile(rf"(?:(?P<schema>{_NAME})\.)?(?P<table>{_NAME})")
_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')  # one that is not within double quotes


@dataclass(frozen=True)
class TableName:
    """A table as a person names it. What is not quoted stands for itself, else for its lower case: the likelier one first."""

    schema: tuple[str, ...]
    table: tuple[str, ...]


def parse_table(word: str) -> TableName:
    """A table's name: `table` or `schema.table`, each part quoted or not. Raises SettingsError for what is none."""
    found = _TABLE.fullmatch(word)
    if found is None:
        raise SettingsError(
            "must be the names of tables: table or schema.table, in double quotes where it has a dot or a space"
        )
    return TableName(_spellings(found["schema"]), _spellings(found["table"]))


def parse_tables(words: Iterable[str]) -> tuple[str, ...]:
    """Names of tables, each once. A word may hold several, parted by commas. Raises SettingsError for what is no name."""
    names = [name.strip() for word in words for name in _COMMA.split(word)]
    for name in names:
        parse_table(name)
    return tuple(dict.fromkeys(names))


def _spellings(part: str | None) -> tuple[str, ...]:
    if part is None:
        return ()
    if part.startswith('"'):
        return (part[1:-1].replace('""', '"'),)
    return tuple(dict.fromkeys((part, part.lower())))
