"""What the table `next/` is worth on real visits: `run --task next`, then the probe with its controls.

The five cities of `benchmarks.run.realdata` in one database, once with a `last-trip` split and once with a split in time. The
table compares the model trained on `next/` with popularity by users and with users over distance, which need no training: new
items, each user's held-out trip, AUC / NDCG@10, differences user by user with their 95% interval.

    python -m benchmarks.training_value.next_place [--database-url URL] [--save]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import etl
from benchmarks.harness.command import command_parser, with_exit_codes
from benchmarks.harness.database import fresh_database, server
from benchmarks.harness.results import RESULTS, environment, save_results, table_row
from benchmarks.run import realdata
from etl.evaluation.probe import RANDOM_PREVIOUS, SHUFFLED, ProbeResult
from etl.evaluation.verdict import BY_DISTANCE, BY_USERS, METRICS, MODEL, format_difference
from etl.pipeline import published
from etl.settings.sources import load_settings

SPLITS = ("last-trip", "time:2012-01-01")
RANKINGS = {BY_USERS: "popularity by users", BY_DISTANCE: "users \N{DIVISION SIGN} distance", MODEL: "BPR on next/"}
Facts = Mapping[str, Any]


def measure(url: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the facts about the next item for each split, and the seconds that the probe took."""
    found = {}
    for number, split in enumerate(SPLITS):
        given = {"task": ["next"], "split": split, "small_catalog": "keep", "out": str(folder / str(number))}
        snapshot = etl.run(load_settings({"database_url": url, "schema": "public", **given}, {})).snapshot
        start = time.perf_counter()
        result: ProbeResult = published.probe(load_settings({"snapshot": snapshot, "controls": True}, {}))
        found[split] = {**result.facts["next"], "seconds": round(time.perf_counter() - start, 1)}
    return found


def goals(found: Mapping[str, Facts]) -> list[tuple[str, str, bool]]:
    """Return goal, measurement and whether it is met, for each goal of the table."""
    last, timed = (found[split] for split in SPLITS)
    above, apart = last["model_against"][BY_USERS], last["model_against"][BY_DISTANCE]
    gains = {"auc": 0.045, "ndcg_at_10": 0.09}
    rows = [
        (
            f"{SPLITS[0]}: trained minus popularity by users at least {least} {METRICS[metric]}, interval above 0",
            format_difference(above[metric]),
            above[metric]["mean"] >= least and above[metric]["low"] > 0,
        )
        for metric, least in gains.items()
    ]
    cities = [city["model_against"][BY_USERS]["ndcg_at_10"]["mean"] > 0 for city in last["cities"].values()]
    rows.append(
        ("NDCG@10 above popularity by users in at least four of five cities", str(sum(cities)), sum(cities) >= 4)
    )
    rows += [
        (
            f"trained minus users \N{DIVISION SIGN} distance not below 0, {text}",
            format_difference(apart[m]),
            apart[m]["mean"] >= 0,
        )
        for m, text in METRICS.items()
    ]
    rows += [
        (f"{SPLITS[1]}: above popularity by users, {text}", format_difference(each), each["low"] > 0)
        for m, text in METRICS.items()
        for each in (timed["model_against"][BY_USERS][m],)
    ]
    for split in SPLITS:
        for metric, text in METRICS.items():
            taken = 1 - _gain(found[split]["controls"][RANDOM_PREVIOUS], metric) / _gain(found[split], metric)
            what = f"{split}: a random previous item takes at least nine tenths of the gain, {text}"
            rows.append((what, f"{taken:.2f}", taken >= 0.9))
    return rows


def _gain(facts: Facts, metric: str) -> float:
    return float(facts["model_against"][BY_USERS][metric]["mean"])


def markdown(found: Mapping[str, Facts]) -> str:
    """Return a table per split, the controls, and the goals."""
    return "\n".join([*(_of_split(split, facts) for split, facts in found.items()), _goals_table(found)])


def _of_split(split: str, facts: Facts) -> str:
    against = [f"BPR minus {RANKINGS[name]}: {text}" for name in (BY_USERS, BY_DISTANCE) for text in METRICS.values()]
    head = ("", "users", "choices", *RANKINGS.values(), *against)
    lines = [table_row(head), table_row(("---", *("---:" for _ in head[1:])))]
    lines += [table_row(cells) for cells in _rows(facts)]
    slopes = ", ".join(f"{name} {value:.2f}" for name, value in facts["slopes"].items())
    about = f"{facts['rows']:,} rows of `next/` were trained on; slopes: {slopes}. The probe took {facts['seconds']} s."
    return f"## --split {split}\n\n" + "\n".join(lines) + f"\n\n{about}\n"


def _rows(facts: Facts) -> Iterator[list[str]]:
    controls = {f"control: {name.replace('_', ' ')}": facts["controls"][name] for name in (RANDOM_PREVIOUS, SHUFFLED)}
    for name, each in {**facts["cities"], "all": facts, **controls}.items():
        yield [
            name,
            f"{each['users']:,}",
            f"{each['choices']:,}",
            *(" / ".join(f"{each['rankings'][ranking][m]['mean']:.3f}" for m in METRICS) for ranking in RANKINGS),
            *(
                format_difference(each["model_against"][ranking][m])
                for ranking in (BY_USERS, BY_DISTANCE)
                for m in METRICS
            ),
        ]


def draw(facts: Facts, path: Path) -> None:
    """Draw what is gained over popularity by users, by city, pooled, and by the model with each control."""
    from benchmarks.harness.plots import gains  # noqa: PLC0415 - needs matplotlib, which only saving has to have

    rows: dict[str, dict[str, Any]] = {
        name: {
            RANKINGS[MODEL]: each["model_against"][BY_USERS],
            RANKINGS[BY_DISTANCE]: each["distance_against"][BY_USERS],
        }
        for name, each in {**facts["cities"], "all": facts}.items()
    }
    rows |= {
        f"all, {name.replace('_', ' ')}": {RANKINGS[MODEL]: facts["controls"][name]["model_against"][BY_USERS]}
        for name in (RANDOM_PREVIOUS, SHUFFLED)
    }
    gains(rows, METRICS, path)


def _goals_table(found: Mapping[str, Facts]) -> str:
    lines = [table_row(("goal", "measured", "met")), table_row(("---", "---", "---"))]
    lines += [table_row((what, measured, "yes" if met else "**no**")) for what, measured, met in goals(found)]
    return "## Goals\n\n" + "\n".join(lines) + "\n"


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables. Returns 1 if a goal is missed, else 0."""
    parser = command_parser(
        "training_value.next_place",
        "Measure what next/ is worth on real visits.",
        database=True,
        saves=".json, .md and .svg",
    )
    given = parser.parse_args(arguments)
    data = realdata.locate()
    if data is None:
        print("The real visits are not here: BPR_ETL_REALDATA names no folder.")
        return 0
    with (
        server(given.database_url) as url_of,
        fresh_database(url_of, "next_place") as url,
        tempfile.TemporaryDirectory(prefix="bpr-next-") as folder,
    ):
        realdata.fill(url, "model", realdata.read_world([data / city for city in realdata.CITIES]))
        found, made_with = measure(url, Path(folder)), environment(url)
    print(markdown(found), end="")
    if given.save:
        head = (
            "# The next item, where it is new to the user\n\n`python -m benchmarks.next_place --save`: five "
            "cities of the Flickr User-POI Visits (Lim et al., IJCAI 2015; Melbourne: Wang et al., CIKM 2016) in one database, "
            "`run --task next --small-catalog keep`, then `probe --controls`. AUC / NDCG@10, means over users; differences "
            "user by user with their 95% interval."
        )
        save_results("next_place", {"made_with": made_with, "splits": found}, head, markdown(found))
        draw(found[SPLITS[0]], RESULTS / "next_place.svg")
    return 0 if all(met for _, _, met in goals(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
