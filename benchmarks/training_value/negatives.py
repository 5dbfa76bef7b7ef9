"""Training value of every negative-sampling strategy, on five real cities and the synthetic world.

A run makes each world's events. For each strategy, triples are made from them with a `last-trip` split, as `expand` makes them.
The probe's variants are tuned on valid once per strategy; the best is trained on train and valid with several seeds. A user's
value is the mean over seeds. Intervals are 95%, bootstrapped over users; comparisons are paired by user. The real cities are
also pooled, user by user.

    python -m benchmarks.training_value.negatives [--database-url URL] [--seeds 5] [--save]

The real visits are not part of this repository (see `benchmarks/run/realdata.py`). Without them, only the synthetic world is
measured.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import etl
from benchmarks.harness.command import command_parser, with_exit_codes
from benchmarks.harness.database import fresh_database, server
from benchmarks.harness.results import RESULTS, describe_environment, environment, table_row
from benchmarks.run import realdata
from etl.evaluation.holdout import ProbeTask, build_task_from, join_triples, partitions, table
from etl.evaluation.metrics import Interval, RankingMetrics, bootstrap
from etl.evaluation.probe import probe
from etl.evaluation.verdict import AFFINITY, BY_USERS, HISTORY_BY_USERS, MODEL, OWN_HISTORY, POPULARITY, RANDOM
from etl.pipeline import database
from etl.settings.sources import load_settings
from etl.settings.values import SplitSpec
from etl.snapshots.reading.snapshot import open_snapshot, read_dataset
from etl.synthetic.world import generate
from etl.transform.personas import affinity_model
from etl.triples.dataset import Dataset
from etl.triples.partitions import Partition, TrainingSet, TripleOptions, build_training_set, popularity_correlation

SYNTHETIC, POOLED = "synthetic", "real, pooled"
FIGURES = ("auc", "ndcg", "recall")
FILTERED, WEIGHTED = "positives among candidates", "weighted by signals"

Change = Callable[[pl.DataFrame, Partition, Dataset], pl.DataFrame]


@dataclass(frozen=True)
class Strategy:
    """A way to make triples: the options, and a change that no option makes."""

    name: str
    options: Mapping[str, Any]
    change: str | None = None


def _strategy(*negatives: str, change: str | None = None, **options: Any) -> Strategy:
    said = [*negatives, *(f"{name.replace('_', '-')} {value}" for name, value in options.items())]
    return Strategy(", ".join([*said, change] if change else said), {"negatives": negatives, **options}, change)


STRATEGIES = (
    _strategy("ranking"),
    _strategy("ranking", change=FILTERED),
    _strategy("shown"),
    _strategy("ranking", "catalog:16"),
    _strategy("catalog:4"),
    _strategy("catalog:16"),
    _strategy("catalog:64"),
    _strategy("catalog:16", reject="event"),
    _strategy("catalog:16", catalog_alpha=0.5),
    _strategy("catalog:16", change=WEIGHTED),
    _strategy("recommended"),
)


@dataclass(frozen=True)
class World:
    """A world's snapshot, and a file with a weight factor per (trip, day, item), derived from its signals."""

    name: str
    snapshot: str
    factors: str
    real: bool


@dataclass(frozen=True)
class Row:
    """One strategy in one world: metrics of each ranking per user, by (ranking, scope); the tuned options."""

    world: str
    strategy: str
    figures: Mapping[tuple[str, str], RankingMetrics]
    triples: int
    seconds: float
    sign: Mapping[str, float | None]


# --- Worlds: a run on each ---


def worlds(url_of: Callable[[str], str], folder: Path) -> Iterator[World]:
    """The five cities, each in a database of its own, and the synthetic world."""
    data = realdata.locate()
    for city, kind in realdata.CITIES.items():
        if data is None:
            break
        with fresh_database(url_of, city) as url:
            realdata.fill(url, kind, realdata.read_world([data / city]))
            report = etl.run(realdata.settings_for(url, folder / city))
            _dwell_of_visits(data / city).write_parquet(folder / f"{city}.parquet")
            yield World(city.capitalize(), str(report.snapshot), str(folder / f"{city}.parquet"), real=True)
    with fresh_database(url_of, SYNTHETIC) as url:
        database.synth(load_settings({"database_url": url}, {}))
        report = etl.run(load_settings({"database_url": url, "out": str(folder / SYNTHETIC)}, {}))
        _weight_of_signals().write_parquet(folder / f"{SYNTHETIC}.parquet")
        yield World(SYNTHETIC, str(report.snapshot), str(folder / f"{SYNTHETIC}.parquet"), real=False)


def _dwell_of_visits(folder: Path) -> pl.DataFrame:
    """Return log2(2 + minutes) of each visit, from first to last photo, over its mean: one row per (trip, day, item)."""
    minutes = (pl.col("timestamp_end") - pl.col("timestamp")).dt.total_seconds().clip(0, 12 * 3600) / 60
    return _over_mean(
        pl.read_parquet(folder / "visits.parquet")
        .group_by("trip_id", "day_number", pos_item="node_id")
        .agg(factor=(minutes.sum() + 2).log(2))
    )


def _weight_of_signals() -> pl.DataFrame:
    """Return weight factors: 2 for loved, 0.5 for disliked, 1.5 for dwelt on."""
    frames = []
    for chunk in generate(scale=1.0, seed=0):
        slots = chunk["ItinerarySlot"].select("tripId", "dayNumber", "activityNodeId", slotId="id")
        marks = (
            chunk["BehavioralSignal"]
            .group_by("slotId")
            .agg(*((pl.col("signalType") == mark).any().alias(mark) for mark in ("loved", "disliked", "dwell")))
        )
        factor = pl.when("loved").then(2.0).when("disliked").then(0.5).otherwise(1.0) * pl.when("dwell").then(
            1.5
        ).otherwise(1.0)
        frames.append(
            slots.join(marks, on="slotId")
            .group_by(trip_id="tripId", day_number="dayNumber", pos_item="activityNodeId")
            .agg(factor=factor.max())
        )
    return _over_mean(pl.concat(frames))


def _over_mean(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("factor") / pl.col("factor").mean(), pl.col("day_number").cast(pl.Int32))


# --- A strategy in a world ---


def measure(world: World, strategy: Strategy, seeds: int) -> Row | None:
    """Tune once, then train with each seed; None if the strategy gives no training triples."""
    start = time.perf_counter()
    dataset = read_dataset(open_snapshot(Path(world.snapshot)))
    options = TripleOptions(split=SplitSpec("last-trip"), small_catalog="keep" if world.real else "exclude")
    training = build_training_set(dataset, replace(options, **strategy.options))
    change = _change(strategy.change, world)
    signs: dict[str, float | None] = {}
    asked = build_task_from(training, lambda part: _triples(training, part, change, signs), "last-trip")
    if not asked.train.height:
        return None
    figures = train(asked, seeds)
    triples = asked.train.height
    return Row(world.name, strategy.name, figures, triples, round(time.perf_counter() - start, 1), signs)


def train(asked: ProbeTask, seeds: int) -> dict[tuple[str, str], RankingMetrics]:
    """Return each ranking's metrics per user; the model's are means over the seeds."""
    unknown = affinity_model().default_affinity
    found = probe(asked, unknown, 0, _no_progress)
    further = [probe(asked, unknown, seed, _no_progress, (found.options,)) for seed in range(1, seeds)]
    return {key: _mean([each.figures[key] for each in (found, *further)]) for key in found.figures}


def _no_progress(_what: str, _done: int, _of: int) -> None:
    """Ignore progress."""


def _triples(training: TrainingSet, part: str, change: Change, signs: dict[str, float | None]) -> pl.DataFrame:
    """Return the part's triples; for train also each city's popularity correlation (`etl.triples.partitions`)."""
    nodes, frames = training.dataset.items.height, []
    for partition in partitions(training, part):
        triples = change(table(partition), partition, training.dataset)
        frames.append(triples.select("user_idx", "pos_idx", "neg_idx", "weight"))
        if part == "train":
            codes = partition.catalogue.codes
            positive, negative = (np.bincount(triples[n], minlength=nodes)[codes] for n in ("pos_idx", "neg_idx"))
            signs[partition.city] = popularity_correlation(positive, negative, training.popularity[codes])
    return join_triples(frames)


def _change(name: str | None, world: World) -> Change:
    if name == FILTERED:
        return lambda triples, *_: triples.filter("among")
    if name != WEIGHTED:
        return lambda triples, *_: triples
    factors = pl.read_parquet(world.factors)
    key = ["trip_id", "day_number", "pos_item"]

    def weighed(triples: pl.DataFrame, partition: Partition, dataset: Dataset) -> pl.DataFrame:
        events = partition.events.select("trip_idx", "day_number")[triples["event"].to_numpy()]
        texts = events.with_columns(
            dataset.trips["trip_id"].gather(events["trip_idx"]),
            dataset.items["item_id"].gather(triples["pos_idx"]).alias(key[2]),
        ).select(key)
        factor = texts.join(factors, on=key, how="left", maintain_order="left")["factor"].fill_null(1.0)
        return triples.with_columns((pl.col("weight") * factor).cast(pl.Float32).alias("weight"))

    return weighed


def _mean(every: Sequence[RankingMetrics]) -> RankingMetrics:
    return RankingMetrics(*(np.mean([getattr(each, name) for each in every], axis=0) for name in FIGURES))


def measure_all(every: Sequence[World], seeds: int) -> list[Row]:
    """Measure every strategy in every world, as many at a time as there are cores, with one thread each."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ[name] = "1"
    jobs = [(world, strategy) for world in reversed(every) for strategy in STRATEGIES]
    context = multiprocessing.get_context("spawn")  # Polars' threads don't survive a fork
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        waiting = [pool.submit(measure, world, strategy, seeds) for world, strategy in jobs]
        rows = []
        for (world, strategy), future in zip(jobs, waiting, strict=True):
            row = future.result()
            said_ = "no training triples" if row is None else f"{np.nanmean(row.figures[MODEL, 'all'].auc):.3f}"
            print(f"{world.name}: {strategy.name}: {said_}", file=sys.stderr, flush=True)
            rows += [row] if row else []
    return rows


# --- What it comes to ---


def pooled(rows: Sequence[Row]) -> list[Row]:
    """Pool the real cities, user by user, for the strategies that all of them have."""
    real = [row for row in rows if row.world != SYNTHETIC]
    cities = {row.world for row in real}
    found = []
    for strategy in STRATEGIES:
        same = [row for row in real if row.strategy == strategy.name]
        if cities and {row.world for row in same} == cities:
            keys = [key for key in same[0].figures if key[0] != AFFINITY]
            figures = {key: _joined([row.figures[key] for row in same]) for key in keys}
            triples, seconds = sum(row.triples for row in same), sum(row.seconds for row in same)
            found.append(Row(POOLED, strategy.name, figures, triples, seconds, {}))
    return found


def _joined(every: Sequence[RankingMetrics]) -> RankingMetrics:
    return RankingMetrics(*(np.concatenate([getattr(each, name) for each in every]) for name in FIGURES))


def interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    """Return the mean over users and its 95% interval."""
    found: Interval = bootstrap(values, seed=0)
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4), "users": found.n}


def row_entry(row: Row) -> dict[str, Any]:
    """Return a row for the results file: each ranking's metrics, and the model's differences from each, with intervals."""
    rankings: dict[str, Any] = {}
    against: dict[str, Any] = {}
    for (name, scope), figures in row.figures.items():
        rankings.setdefault(name, {})[scope] = {each: interval(getattr(figures, each)) for each in FIGURES}
        if name not in {MODEL, RANDOM}:
            apart = row.figures[MODEL, scope] - figures
            against.setdefault(name, {})[scope] = {each: interval(getattr(apart, each)) for each in FIGURES}
    return {
        "world": row.world,
        "strategy": row.strategy,
        "triples": row.triples,
        "seconds": row.seconds,
        "signs": row.sign,
        "rankings": rankings,
        "model_against": against,
    }


def verdicts(accounts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, bool]]:
    """Return target, measurement and whether it is met, for each target of `recommended`."""
    found = []
    for each in accounts:
        if each["strategy"] != "recommended":
            continue
        world, against = each["world"], each["model_against"]
        popularity, history = against[BY_USERS], against[HISTORY_BY_USERS]["all"]["auc"]
        if world == SYNTHETIC:
            auc = each["rankings"][MODEL]["all"]["auc"]
            affinity = each["rankings"][AFFINITY]["all"]["auc"]["mean"]
            goal = min(0.69, 0.5 + 0.8 * (affinity - 0.5))
            found.append((f"{world}: AUC at least {goal:.3f}", format_interval(auc), auc["mean"] >= goal))
            continue
        gain, new = popularity["all"]["auc"], popularity["new"]["auc"]
        if world == POOLED:
            found.append(
                (
                    f"{world}: 0.04 above popularity by users",
                    format_interval(gain),
                    gain["mean"] >= 0.04 and gain["low"] > 0,
                )
            )
        else:
            found.append((f"{world}: not below popularity by users", format_interval(gain), gain["mean"] >= 0))
            found.append(
                (
                    f"{world}: within 0.01 of own history, popularity by users",
                    format_interval(history),
                    history["mean"] >= -0.01,
                )
            )
        found.append(
            (f"{world}: new items within 0.01 of popularity by users", format_interval(new), new["mean"] >= -0.01)
        )
    return found


def format_interval(found: Mapping[str, float]) -> str:
    """Format a mean and its interval."""
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def markdown(accounts: Sequence[Mapping[str, Any]]) -> str:
    """Tables: AUC and NDCG@10 by strategy and world, for all and new items; popularity correlations; `recommended`."""
    parts = ["## All items: AUC / NDCG@10\n", _table(accounts, "all"), "\n## Items new to the user: AUC / NDCG@10\n"]
    parts += [_table(accounts, "new"), "\n## The sign that needs no training (the lowest of the world's cities)\n"]
    parts += [
        _popularity_correlations(accounts),
        "\n## What `recommended` reaches: differences of AUC, user by user, interval of 95%\n",
    ]
    rows = [table_row((what, reached, "yes" if good else "**no**")) for what, reached, good in verdicts(accounts)]
    return "\n".join([*parts, table_row(("asked for", "reached", "")), table_row(("---", "---", "---")), *rows]) + "\n"


def _worlds(accounts: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(each["world"] for each in accounts))


def _table(accounts: Sequence[Mapping[str, Any]], scope: str) -> str:
    names = _worlds(accounts)
    lines = [table_row(("ranking", *names)), table_row(("---", *("---:" for _ in names)))]
    first = {each["world"]: each for each in reversed(accounts)}
    for ranking, shown in (
        (POPULARITY, "popularity by events"),
        (BY_USERS, "popularity by users"),
        (OWN_HISTORY, "own history, popularity by events"),
        (HISTORY_BY_USERS, "own history, popularity by users"),
        (AFFINITY, "affinity"),
    ):
        lines.append(table_row((f"*{shown}*", *(_cell(first[name]["rankings"].get(ranking), scope) for name in names))))
    for strategy in STRATEGIES:
        of = {each["world"]: each["rankings"][MODEL] for each in accounts if each["strategy"] == strategy.name}
        lines.append(table_row((f"`{strategy.name}`", *(_cell(of.get(name), scope) for name in names))))
    return "\n".join(lines) + "\n"


def _cell(found: Mapping[str, Any] | None, scope: str) -> str:
    if found is None:
        return ""
    return f"{found[scope]['auc']['mean']:.3f} / {found[scope]['ndcg']['mean']:.3f}"


def _popularity_correlations(accounts: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in _worlds(accounts) if name != POOLED]
    lines = [table_row(("triples", *names)), table_row(("---", *("---:" for _ in names)))]
    for strategy in STRATEGIES:
        of = {each["world"]: each["signs"].values() for each in accounts if each["strategy"] == strategy.name}
        lowest = [min((v for v in of.get(name, ()) if v is not None), default=None) for name in names]
        lines.append(table_row((f"`{strategy.name}`", *("" if v is None else f"{v:.2f}" for v in lowest))))
    return "\n".join(lines) + "\n"


def save(accounts: Sequence[Mapping[str, Any]], made_with: Mapping[str, Any], seeds: int) -> None:
    """Write `results/negatives.json`, `.md` and `.svg`."""
    from benchmarks.harness.plots import dots  # noqa: PLC0415 - matplotlib is an extra, needed to save alone

    RESULTS.mkdir(exist_ok=True)
    document = {"made_with": made_with, "seeds": seeds, "rows": accounts}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
    (RESULTS / "negatives.json").write_text(text, encoding="utf-8")
    head = (
        f"# Training value of negatives\n\n`python -m benchmarks negatives --save`: a `last-trip` split, {seeds} seeds, "
        "means over users. Real cities: Flickr User-POI Visits (Lim et al., IJCAI 2015; Melbourne: Wang et al., CIKM 2016); "
        f"the synthetic world at the design's size.\n\n{describe_environment(made_with)}\n\n"
    )
    (RESULTS / "negatives.md").write_text(head + markdown(accounts), encoding="utf-8")
    dots(accounts, [strategy.name for strategy in STRATEGIES], RESULTS / "negatives.svg")


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables. Returns 1 if `recommended` misses a target, else 0."""
    parser = command_parser(
        "training_value.negatives",
        "Measure the training value of negatives.",
        database=True,
        saves=".json, .md and .svg",
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many times a model is trained")
    given = parser.parse_args(arguments)
    with server(given.database_url) as url_of, tempfile.TemporaryDirectory(prefix="bpr-negatives-") as folder:
        every = list(worlds(url_of, Path(folder)))
        made_with = environment(url_of(""))
        rows = measure_all(every, given.seeds)
    order = {world.name: place for place, world in enumerate(every)}
    rows.sort(key=lambda row: order[row.world])
    real = [row for row in rows if row.world != SYNTHETIC]
    accounts = [row_entry(row) for row in (*real, *pooled(rows), *(row for row in rows if row.world == SYNTHETIC))]
    print(markdown(accounts), end="")
    if given.save:
        save(accounts, made_with, given.seeds)
    return 0 if all(good for _, _, good in verdicts(accounts)) else 1


if __name__ == "__main__":
    sys.exit(main())
