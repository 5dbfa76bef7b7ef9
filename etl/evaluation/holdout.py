"""The task of a probe: a snapshot's triples as a trainer reads them, the items that its split holds out, and their evaluation.

There is one group per (user, city); its list is the city's catalogue. It is evaluated over all items and over items new
to the user: in most real cities, a model gains over popularity only because people come back (docs/negatives.md).

A snapshot without a split gets a `last-trip` split made from its events. The triples of train and valid are then generated
again with the snapshot's own settings, since the published ones contain the held-out trips.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.errors import SettingsError
from etl.evaluation import next_item
from etl.evaluation.metrics import GroupMetrics, ranking_metrics
from etl.evaluation.sample import Counts, count_selections, restrict, sample_users
from etl.settings.values import SplitSpec
from etl.snapshots.encoding import INDEXES
from etl.snapshots.reading.batches import numeric_columns
from etl.snapshots.reading.snapshot import Snapshot, damaged, read_dataset, read_file
from etl.transform.arrays import I64
from etl.triples.dataset import BucketedEvents, Dataset
from etl.triples.partitions import Partition, TrainingSet, TripleOptions, build_training_set, in_train

_COLUMNS = dict.fromkeys(INDEXES.values(), pl.Int64) | {"weight": pl.Float32}

Scores = npt.NDArray[np.floating]


# --- triples ---------------------------------------------------------------------------------------------------------


def join_triples(frames: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return the rows of all frames: `user_idx`, `pos_idx`, `neg_idx` (indexes of the vocabularies) and `weight`."""
    return pl.concat([pl.DataFrame(schema=_COLUMNS), *frames], how="vertical_relaxed")


def regenerate(training: TrainingSet, part: str, cities: Collection[str] | None = None) -> pl.DataFrame:
    """Generate the triples of a part of the split, by default of all cities that have any."""
    return join_triples(table(partition).select(*_COLUMNS) for partition in partitions(training, part, cities))


def partitions(training: TrainingSet, part: str, cities: Collection[str] | None = None) -> Iterator[Partition]:
    """Yield the partitions of a part of the split, by default all that have triples, in the order of the cities' bytes."""
    for partition in training.partitions(training.events):
        if partition.city in (training.kept if cities is None else cities) and partition.split == part:
            yield partition


def table(partition: Partition) -> pl.DataFrame:
    """Return a partition's triples: `user_idx`, `pos_idx`, `neg_idx`, `weight`, `event` (its row), `among` (candidates)."""
    rows = [pl.DataFrame(schema={**_COLUMNS, "event": pl.Int64, "among": pl.Boolean}).drop("weight")]
    for block in partition.expand():
        indexes = partition.coded.users[block.event], block.positive, block.negative
        columns = dict(zip(INDEXES.values(), indexes, strict=True))
        rows.append(pl.DataFrame({**columns, "event": block.event, "among": block.in_candidates}))
    weight = pl.lit(partition.weight, dtype=pl.Float32)
    return pl.concat(rows, how="vertical_relaxed").with_columns(weight=weight)


def published_rows(
    snapshot: Snapshot, dataset: Dataset, files: Iterable[Path], users: I64, more: Sequence[str] = ("weight",)
) -> Iterator[pl.DataFrame]:
    """Read some users' rows from files of `triples/` or `next/`, by index or by id: indexes and `more` columns."""
    ids = dataset.users["user_id"], dataset.items["item_id"]
    columns: list[pl.Expr] = []
    for path in files:
        rows = read_file(snapshot.folder, path.relative_to(snapshot.folder).as_posix())
        try:
            columns = columns or numeric_columns(rows.schema, [*INDEXES.values(), *more], *ids)
            rows = rows.select(columns)
        except (pl.exceptions.PolarsError, SettingsError) as error:  # an unknown id, a missing column
            raise damaged(path, error) from None
        if (rows["user_idx"] >= len(ids[0])).any() or any(
            (rows[name] >= len(ids[1])).any() for name in rows.columns[1:3]
        ):
            raise damaged(path, "an index is past the end of the users or items")
        yield rows.filter(pl.col("user_idx").is_in(users))


# --- held-out items --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HoldoutGroup:
    """The held-out items of one city: a group per user who selected any of them.

    `users` are the users' indexes, one per group, ascending; `items` the indexes of the city's catalogue, ascending by id.
    `relevant` and `history` are of shape (groups, items): whether the user selected the item in the held-out part, and how
    often in the parts before it.
    """

    city: str
    users: I64
    items: I64
    relevant: npt.NDArray[np.bool_]
    history: I64


def build_holdout(
    dataset: Dataset, events: pl.DataFrame, part: str, earlier: Sequence[str]
) -> tuple[list[HoldoutGroup], int]:
    """Return the held-out items of a part of the split, by city in the order of its bytes, and how many can't be ranked.

    `events` has `split`. A (user, item) pair can't be ranked if the item is not in the catalogue of its trip's city.
    """
    long = (
        events.select("user_idx", "city", pl.col("split").cast(pl.String), item="selected_idx")
        .explode("item", empty_as_null=False)
        .with_columns(pl.col("user_idx", "item").cast(pl.Int64))
    )
    catalog = dataset.eligible_items().sort("item_id").select("city", item=pl.col("item_idx").cast(pl.Int64))
    of_part, past = long.filter(pl.col("split") == part), long.filter(pl.col("split").is_in(list(earlier)))
    held = of_part.join(catalog, on=["city", "item"], how="semi")
    groups = []
    for city in held["city"].unique().sort():
        items, here = catalog.filter(pl.col("city") == city)["item"], held.filter(pl.col("city") == city)
        users = here["user_idx"].unique().sort()
        relevant, history = (_counts(rows, users, items) for rows in (here, past))
        groups.append(HoldoutGroup(city, users.to_numpy(), items.to_numpy(), relevant > 0, history))
    pairs, ranked = (rows.select("user_idx", "city", "item").n_unique() for rows in (of_part, held))
    return groups, pairs - ranked


def _counts(rows: pl.DataFrame, users: pl.Series, items: pl.Series) -> I64:
    """Return how often each user (rows) selected each item (columns)."""
    counts = np.zeros((len(users), len(items)), np.int64)
    cells = (
        rows.join(users.to_frame("user_idx").with_row_index("row"), on="user_idx")
        .join(items.to_frame("item").with_row_index("column"), on="item")
        .group_by("row", "column")
        .len()
    )
    counts[cells["row"].to_numpy(), cells["column"].to_numpy()] = cells["len"].to_numpy()
    return counts


# --- the task --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeTask:
    """What a probe works on.

    `train` are the triples before test. Variants are trained on `tuning_train` and evaluated on `tuning_holdout`: train and
    the items that valid holds out or, without a valid part, the same one step earlier, each user's last trip in train
    (`tuned_on` says which). `counts` are those of all users, before test; everything else is of the users in `sampled`.
    `split` is a description. `unranked` counts the held-out items of test that can't be ranked. `negatives` are the strategies
    of the triples. `selections` are `next_item.order_selections` of the cities that have triples, `next_rows` the new rows of
    `next/` before test; None if the snapshot has none of this split. `has_next` says whether it has the table at all.
    """

    dataset: Dataset
    train: pl.DataFrame
    tuning_train: pl.DataFrame
    tuning_holdout: Sequence[HoldoutGroup]
    tuned_on: str
    test: Sequence[HoldoutGroup]
    counts: Counts
    sampled: I64
    split: str
    unranked: int
    negatives: tuple[str, ...]
    kept_events: pl.DataFrame
    selections: pl.DataFrame
    has_next: bool = False
    next_rows: pl.DataFrame | None = None


def build_task(snapshot: Snapshot, seed: int = 0) -> ProbeTask:
    """Return the task of a snapshot, published or staged. Raises DataError if its files can't be read."""
    options = training_options(snapshot)
    made = options.split == "none"
    if made:
        options = replace(options, split=SplitSpec("last-trip"))
    whole = build_training_set(read_dataset(snapshot), options)
    counts = count_selections(whole, seed)
    files = {
        kind: [(split, path) for split, city, path in snapshot.data_files(kind) if city in counts.cities]
        for kind in ("triples", "next")
    }
    rows = [
        sum(snapshot.files[path.relative_to(snapshot.folder).as_posix()].rows for _, path in each)
        for each in files.values()
    ]
    users, has_next = sample_users(counts, max(rows), seed), bool(snapshot.data_files("next"))
    training = restrict(whole, users)

    def published(kind: str, *columns: str, parts: Collection[str]) -> Iterator[pl.DataFrame]:
        paths = [path for split, path in files[kind] if split in parts]
        return published_rows(snapshot, whole.dataset, paths, users, columns)

    def triples(part: str) -> pl.DataFrame:
        if made and snapshot.data_files("triples"):
            return regenerate(training, part, counts.cities)
        return join_triples(published("triples", "weight", parts=[part]))

    task = build_task_from(training, triples, "last-trip, made from its events" if made else options.split, counts)
    if made or not has_next:
        return replace(task, has_next=has_next)
    columns = "weight", "pos_km", "neg_km", "same_day", "is_new"
    next_rows = next_item.new_rows(published("next", *columns, parts=["train", "valid"]))
    return replace(task, has_next=True, next_rows=next_rows)


def build_task_from(
    training: TrainingSet, triples: Callable[[str], pl.DataFrame], split: str, counts: Counts | None = None
) -> ProbeTask:
    """Return the task of a dataset with a split, given a function that returns the triples of a part of it.

    `counts` are those of all users, even if the dataset holds only some of them.
    """
    counts = count_selections(training) if counts is None else counts
    dataset, events = training.dataset, _events_of(training, counts.cities)
    train, valid = triples("train"), triples("valid")
    tuning_holdout, _ = build_holdout(dataset, events, "valid", ["train"])
    tuning_train, tuned_on = train, "valid"
    if not tuning_holdout and train.height:
        tuning_train, tuning_holdout = _last_of_train(training, counts.cities)
        tuned_on = "each user's last trip in train"
    test, unranked = build_holdout(dataset, events, "test", ["train", "valid"])
    return ProbeTask(
        dataset,
        pl.concat([train, valid]),
        tuning_train,
        tuning_holdout,
        tuned_on,
        test,
        counts,
        events["user_idx"].unique().sort().to_numpy(),
        split,
        unranked,
        training.options.negatives,
        events,
        next_item.order_selections(events, dataset.trips),
    )


def training_options(snapshot: Snapshot) -> TripleOptions:
    """Return the options of the snapshot's triples. Those that an older manifest lacks have their defaults."""
    settings = snapshot.settings
    found = {f.name: settings[f.name] for f in fields(TripleOptions) if f.name in settings}
    if "city_weight" in found:
        found["city_weight"] = tuple((str(city), float(weight)) for city, weight in found["city_weight"])
    return TripleOptions(**found)


def _events_of(training: TrainingSet, cities: Collection[str]) -> pl.DataFrame:
    return training.events.filter(pl.col("city").is_in(list(cities)))


def _last_of_train(training: TrainingSet, cities: Collection[str]) -> tuple[pl.DataFrame, list[HoldoutGroup]]:
    """Return the triples of train without each user's last trip in it, and the items of that trip as held out."""
    train = in_train(training.events).drop("split")
    earlier = replace(training.dataset, events=BucketedEvents.of(train))
    inner = build_training_set(earlier, replace(training.options, split=SplitSpec("last-trip")))
    held, _ = build_holdout(earlier, _events_of(inner, cities), "test", ["train", "valid"])
    return pl.concat([regenerate(inner, part, cities) for part in ("train", "valid")]), held


# --- rankers ---------------------------------------------------------------------------------------------------------

Ranker = Callable[[HoldoutGroup], Scores]
"""Returns scores of shape (groups, items), higher is better. Equal ones are ties."""


def evaluate(held: Sequence[HoldoutGroup], ranker: Ranker, *, new: bool) -> GroupMetrics:
    """Return AUC, NDCG@10 and Recall@10 of a ranker, one value per group.

    `new` ignores the items that the user had selected before.
    """
    found = []
    for group in held:
        candidates = group.history == 0 if new else np.ones(group.relevant.shape, np.bool_)
        figures = ranking_metrics(ranker(group), candidates, group.relevant & candidates)
        found.append(GroupMetrics.of(group.users, group.city, figures))
    return GroupMetrics.concat(found)


def random_ranker(held: HoldoutGroup) -> Scores:
    """Score all items equally: ties are evaluated as chance would order them."""
    return np.zeros(held.relevant.shape)


def popularity_ranker(popularity: I64) -> Ranker:
    """Score by the number of events that selected each item, by index."""
    return lambda held: np.broadcast_to(popularity[held.items].astype(np.float64), held.relevant.shape)


def history_ranker(popularity: I64) -> Ranker:
    """Score by how often the user selected the item before, then by popularity."""
    scale = float(popularity.max(initial=0) + 1)
    return lambda held: held.history + popularity[held.items] / scale


def affinity_ranker(dataset: Dataset, default_affinity: float) -> Ranker | None:
    """Score by the user's affinity for the item's category, by default `default_affinity`; None without any affinity."""
    known = pl.concat(rows.select(pl.col(r"^affinity_.*$")) for rows in dataset.user_features())
    columns = known.columns
    if not columns or known.select(pl.all_horizontal(pl.all().is_null().all())).item():
        return None
    matrix = np.column_stack([known.fill_null(default_affinity).to_numpy(), np.full(known.height, default_affinity)])
    number = {name.removeprefix("affinity_"): number for number, name in enumerate(columns)}
    category = np.array([number.get(name, len(columns)) for name in dataset.items["category"]], np.int64)
    return lambda held: matrix[held.users][:, category[held.items]]
