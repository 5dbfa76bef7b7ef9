"""Pure: what the report says first: did it work, is it the usual amount, what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from etl.reporting.history import MIN_RUNS, Metric
from etl.reporting.numbers import format_change, format_number, format_percent, format_range
from etl.reporting.wording import exclusions

Verdict = Literal["good", "odd", "plain"]
_NAMED = 3

KEY = ("triples", "ranking events", "positives", "users", "items", "cities")
"""The figures that stand at the top."""


@dataclass(frozen=True)
class Headline:
    """A question of the morning, its answer in a word or two, and what there is to say besides."""

    question: str
    verdict: Verdict
    short: str
    more: list[str]


def headlines(manifest: Mapping[str, Any], figures: Sequence[Metric]) -> list[Headline]:
    """The three questions of the morning."""
    return [_worked(manifest), _usual(figures), _left_out(manifest)]


def _worked(manifest: Mapping[str, Any]) -> Headline:
    triples = sum(manifest["published"]["triples"].values())
    files = sum(entry["path"].endswith(".parquet") for entry in manifest["files"])
    more = [f"{format_number(files)} files of data were written and checked; their SHA-256 stand in the manifest."]
    if found := manifest.get("probe"):
        ours, theirs = found["auc"]["mean"], found["auc_of_popularity"]["mean"]
        more.append(f"A model trained on them has AUC {format_number(ours)}, popularity {format_number(theirs)}.")
    else:
        more.append("Whether they teach was not measured.")
    if not triples:
        return Headline("Did it work?", "odd", "Yes, but there is no triple", more)
    if number := len(manifest.get("warnings", [])):
        return Headline(
            "Did it work?", "odd", f"Yes, with {'a warning' if number == 1 else f'{number} warnings'}", more
        )
    return Headline("Did it work?", "good", "Yes", more)


def _usual(figures: Sequence[Metric]) -> Headline:
    question = "Is it the usual amount?"
    nights = max((each.runs for each in figures), default=0)
    if not nights:
        return Headline(question, "plain", "There is no night before", ["The next one will be compared with this."])
    moved = sorted(
        (each for each in figures if each.change is not None and each.before != each.value),
        key=lambda each: -abs(each.change or 0),
    )
    since = [f"{_sentence(each.name)} {format_change(each.change)} since the last night." for each in moved[:_NAMED]]
    since = since or ["Every figure is the last night's."]
    odd = [each for each in figures if each.out_of_range]
    if odd:
        named = [_out_of_range(each) for each in odd[:_NAMED]]
        rest = [f"And {len(odd) - _NAMED} more: see the trend."] if len(odd) > _NAMED else []
        left = f"{len(odd)} of {len(figures)} figures left their usual range"
        if any(each.monitored for each in odd):
            return Headline(question, "odd", left, [*named, *rest])
        return Headline(question, "good", f"Yes, but {left}", [*named, *rest])
    if any(each.expected for each in figures):
        return Headline(question, "good", "Yes", [f"All figures are in their usual range ({nights} nights).", *since])
    few = f"From {MIN_RUNS} nights on there is a usual range; there {'is one' if nights == 1 else f'are {nights}'} before."
    return Headline(question, "plain", "Too early to say", [*since, few])


def _out_of_range(figure: Metric) -> str:
    usual = format_range(figure.expected, whole=figure.is_count)
    return f"{_sentence(figure.name)}: {format_number(figure.value)}, usually {usual}."


def _sentence(name: str) -> str:
    what, _, lost = name.partition(": ")
    name = f"{lost} {what}" if lost else name
    return name[:1].upper() + name[1:]


def _left_out(manifest: Mapping[str, Any]) -> Headline:
    question = "What was left out?"
    published = manifest["published"]
    named = [loss for loss in exclusions(manifest) if loss.rows and not loss.informational]
    gone = sum(published["positives_left_out"].values())
    if not named:
        return Headline(question, "good", "Nothing", [])
    short = f"{format_percent(gone, gone + published['positives'])} of the positives" if gone else "No positive"
    named.sort(key=lambda loss: -loss.rows)
    more = [f"{format_number(loss.rows)} {loss.what}: {loss.why}." for loss in named[:_NAMED]]
    if others := len(named) - _NAMED if len(named) > _NAMED else 0:
        more.append(f"And {'one more reason' if others == 1 else f'{others} more reasons'}, below.")
    if cities := list(published["cities_left_out"]):
        whose = cities[0] if len(cities) == 1 else f"{format_number(len(cities))} cities"
        more.append(f"No triple of {whose}, for the size of the catalogue.")
    return Headline(question, "plain", short, more)
