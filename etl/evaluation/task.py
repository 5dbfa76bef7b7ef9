"""What a probe is asked: a snapshot's triples as a trainer reads them, and what its split holds out.

A snapshot without a split is asked about a `last-trip` split made from its events: the triples of train and valid are then
drawn anew with the snapshot's own settings, since the published ones have seen the trips that are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.evaluation.holdout import HoldoutGroup, build_holdout
from etl.settings.values import SplitSpec
from etl.snapshots.encoding import INDEXES
from etl.snapshots.reader import Snapshot, damaged, read_dataset, read_file
from etl.transform.arrays import I64
from etl.triples.dataset import BucketedEvents, Dataset
from etl.triples.partitions import Partition, TrainingSet, TripleOptions, build_training_set, count_items, in_train

_COLUMNS = dict.fromkeys(INDEXES.values(), pl.UInt32) | {"weight": pl.Float32}


@dataclass(frozen=True)
class TripleArrays:
    """Triples as codes of the vocabularies, with their weights: four arrays of one length."""

    users: I64
    positives: I64
    negatives: I64
    weights: npt.NDArray[np.float32]

    @classmethod
    def of(cls, frames: Iterable[pl.DataFrame]) -> TripleArrays:
        """From frames with `user_idx`, `pos_idx`, `neg_idx` and `weight`."""
        every = pl.concat([pl.DataFrame(schema=_COLUMNS), *frames])
        users, positives, negatives = (every[name].cast(pl.Int64).to_numpy() for name in INDEXES.values())
        return cls(users, positives, negatives, every["weight"].to_numpy())

    def __add__(self, other: TripleArrays) -> TripleArrays:
        return TripleArrays(
            np.concatenate([self.users, other.users]),
            np.concatenate([self.positives, other.positives]),
            np.concatenate([self.negatives, other.negatives]),
            np.concatenate([self.weights, other.weights]),
        )


@dataclass(frozen=True)
class ProbeTask:
    """All that a probe looks at.

    `train` are the triples before test. Variants are trained on `trial` and judged by `tune`: train and what valid holds out
    or, without a valid, the same one step earlier, each user's last trip in train (`tuned_on` says which). `popularity`
    counts the events before test that selected each item, by code; `split` is in words; `unranked` counts the held-out
    places of test that their city's catalogue hasn't; `negatives` are the strategies that made the triples.
    """

    dataset: Dataset
    train: TripleArrays
    tuning_train: TripleArrays
    tuning_holdout: Sequence[HoldoutGroup]
    tuned_on: str
    test: Sequence[HoldoutGroup]
    popularity: I64
    split: str
    unranked: int
    negatives: tuple[str, ...]


def build_task(snapshot: Snapshot) -> ProbeTask:
    """What to ask of a snapshot, published or staged. Raises DataError where its files can't be read."""
    dataset, options = read_dataset(snapshot), training_options(snapshot)
    if options.split == "none":
        training = build_training_set(dataset, replace(options, split=SplitSpec("last-trip")))
        return build_task_from(training, lambda part: regenerate(training, part), "last-trip, made from its events")
    training = build_training_set(dataset, options)
    return build_task_from(training, lambda part: _published(snapshot, training, part), options.split)


def build_task_from(training: TrainingSet, triples: Callable[[str], TripleArrays], split: str) -> ProbeTask:
    """What to ask of a dataset with a split, given the triples of each part of it."""
    dataset = training.dataset
    events = _kept(training)
    train, valid = triples("train"), triples("valid")
    tune, _ = build_holdout(dataset, events, "valid", ["train"])
    trial, tuned_on = train, "valid"
    if not tune:
        trial, tune = _last_of_train(training)
        tuned_on = "each user's last trip in train"
    test, unranked = build_holdout(dataset, events, "test", ["train", "valid"])
    before = training.events.filter(pl.col("split") != "test")
    popularity = count_items(before, "selected_idx", dataset.items.height)
    return ProbeTask(
        dataset, train + valid, trial, tune, tuned_on, test, popularity, split, unranked, training.options.negatives
    )


def _kept(training: TrainingSet) -> pl.DataFrame:
    """The events of cities that have triples: the others teach nothing and are not asked about."""
    return training.events.filter(pl.col("city").is_in(training.kept))


def _last_of_train(training: TrainingSet) -> tuple[TripleArrays, list[HoldoutGroup]]:
    """Train without each user's last trip in it, and what that trip holds out."""
    train = in_train(training.events).drop("split")
    earlier = replace(training.dataset, events=BucketedEvents.of(train))
    inner = build_training_set(earlier, replace(training.options, split=SplitSpec("last-trip")))
    held, _ = build_holdout(earlier, _kept(inner), "test", ["train", "valid"])
    return regenerate(inner, "train") + regenerate(inner, "valid"), held


def regenerate(training: TrainingSet, part: str) -> TripleArrays:
    """The triples of a part of the split, made anew."""
    return TripleArrays.of(table(partition).select(*_COLUMNS) for partition in partitions(training, part))


def partitions(training: TrainingSet, part: str) -> Iterator[Partition]:
    """What a part of the split has of each city that is kept, in the order of its bytes: one after the other, whole."""
    for partition in training.partitions(training.events):
        if partition.kept and partition.split == part:
            yield partition


def table(partition: Partition) -> pl.DataFrame:
    """A partition's triples with `user_idx`, `pos_idx`, `neg_idx`, `weight`, and the `event` that each is of: its row."""
    blocks = list(partition.expand())

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([np.zeros(0, np.uint32), *(getattr(block, name) for block in blocks)]).astype(np.uint32)

    event = column("event")
    users = partition.coded.users[event]
    rows = {"user_idx": users, "pos_idx": column("positive"), "neg_idx": column("negative")}
    return pl.DataFrame(rows).with_columns(
        pl.lit(partition.weight, dtype=pl.Float32).alias("weight"),
        event=event,
        among=np.concatenate([np.zeros(0, np.bool_), *(block.in_candidates for block in blocks)]),
    )


def training_options(snapshot: Snapshot) -> TripleOptions:
    """What decided the snapshot's triples, as its manifest says; of release 0.1 some are not said, and have the defaults."""
    settings = snapshot.settings
    found = {f.name: settings[f.name] for f in fields(TripleOptions) if f.name in settings}
    if "city_weight" in found:
        found["city_weight"] = tuple((str(city), float(weight)) for city, weight in found["city_weight"])
    return TripleOptions(**found)


def _published(snapshot: Snapshot, training: TrainingSet, part: str) -> TripleArrays:
    """The triples of a part of the split as the files have them, by index or by text."""
    user, item = (pl.Enum(ids) for ids in (training.dataset.users["user_id"], training.dataset.items["item_id"]))
    enums = {"user_id": user, "pos_item": item, "neg_item": item}
    sizes = (training.dataset.users.height, training.dataset.items.height, training.dataset.items.height)
    frames = []
    for split, _, path in snapshot.data_files("triples"):
        if split == part:
            try:
                rows = _with_indexes(read_file(snapshot.folder, path.relative_to(snapshot.folder).as_posix()), enums)
            except (
                pl.exceptions.PolarsError
            ) as error:  # an id that the vocabularies don't have, a column that is not there
                raise damaged(path, error) from None
            past = [
                rows.filter(pl.col(name) >= size).height for name, size in zip(INDEXES.values(), sizes, strict=True)
            ]
            if any(past):
                raise damaged(path, "an index is past the end of the users or items")
            frames.append(rows)
    return TripleArrays.of(frames)


def _with_indexes(rows: pl.DataFrame, enums: Mapping[str, pl.Enum]) -> pl.DataFrame:
    """A file's triples as `user_idx`, `pos_idx`, `neg_idx` and `weight`."""
    if "user_idx" not in rows.columns:
        texts = rows.cast(enums)  # type: ignore[arg-type]
        rows = texts.with_columns(
            texts[text].to_physical().cast(pl.UInt32).alias(index) for text, index in INDEXES.items()
        )
    return rows.select(*_COLUMNS)
