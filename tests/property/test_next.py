"""Interactions, next and history against the oracle, from events to files, without a database; and that no later part is known."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.settings.values import SPLITS, SplitSpec
from etl.snapshots.writer import StageOptions, city_folder, write_data_files
from etl.transform.personas import affinity_model
from etl.triples import next_choices
from etl.triples.dataset import BucketedEvents, Dataset
from tests.property import oracle, oracle_next, oracle_training
from tests.property.dense import both_settings
from tests.property.in_memory import WORLDS, dataset_of, training_options
from tests.property.oracle import Exported, ExportedEvent, Node, Settings, Trip, User, World
from tests.property.rows import are_rows, has_history, table_columns

MODEL = affinity_model().raw
BOTH = ("triples", "next")
DAY = datetime.fromisoformat("2024-05-01")


@dataclass(frozen=True)
class Journeys:
    """What was exported of a world, without a run: events as others may have logged them, in any order of days and times."""

    world: World
    exported: Exported


# Poles, the date line, one point twice, antipodes, points next to each other; no coordinate, and none that there is.
POINTS = (
    *(
        (48.1, 11.5),
        (48.1001, 11.5),
        (0.0, 0.0),
        (0.0, 0.0),
        (90.0, 0.0),
        (-90.0, 100.0),
        (10.0, 180.0),
        (10.0, -180.0),
    ),
    *((0.0, 179.999), (0.0, -179.999), (12.0, 34.0), (-12.0, -146.0), (None, 1.0), (1.0, None), (math.nan, 1.0)),
    *((1.0, math.inf), (90.0001, 0.0), (-91.0, 0.0), (0.0, 180.0001), (-math.inf, -181.0), (-0.0, 0.0)),
)
STARTS = (DAY, DAY, DAY + timedelta(days=1), DAY + timedelta(days=9), "infinity", datetime.fromisoformat("0001-01-01"))
CITIES = ("Tokyo", "Kyoto", "Nowhere")


@st.composite
def journeys(draw: Any) -> Journeys:
    """One or two users, trips that start together and overlap, the same places again and again."""
    users = ("ann", "bob")[: draw(st.integers(1, 2))]
    nodes = tuple(
        Node(
            f"n{number}",
            draw(st.sampled_from(CITIES[:2])),
            "dining",
            status,
            f"n{number}",
            *draw(st.sampled_from(POINTS)),
        )
        for number, status in enumerate(
            draw(st.lists(st.sampled_from(("approved", "approved", "archived")), max_size=9))
        )
    )
    names = draw(st.lists(st.sampled_from(("a", "B", "é", "z", "Z", "\U0001f600", "\uff5a")), unique=True, max_size=5))
    trips = tuple(
        Trip(
            name, draw(st.sampled_from(users)), draw(st.sampled_from(CITIES)), draw(st.sampled_from(STARTS)), DAY, None
        )
        for name in names
    )
    ids = st.sampled_from([*(node.id for node in nodes), "gone"])
    lists = st.lists(ids, unique=True, max_size=4).map(tuple)
    cities: dict[str, list[ExportedEvent]] = {}
    for number in range(draw(st.integers(0, 9)) if trips else 0):
        trip = draw(st.sampled_from(trips))
        created = DAY + timedelta(hours=12 * draw(st.integers(-2, 6)))
        event = ExportedEvent(
            event_id=f"e{number * 7 % 10}",
            user_id=draw(st.sampled_from((trip.user_id, trip.user_id, trip.user_id, *users))),
            trip_id=trip.id,
            day_number=draw(st.sampled_from((1, 1, 2, 3, -(2**31), 2**31 - 1))),
            timestamp=oracle.timestamp(created),
            surface="itinerary",
            model_name="bpr",
            model_version="1",
            candidate_ids=draw(lists),
            ranked_ids=(),
            selected_ids=draw(lists),
            shown_ids=draw(lists),
            created_at=created,
        )
        # The days of a trip may be in several cities.
        cities.setdefault(draw(st.sampled_from((trip.city, trip.city, *CITIES))), []).append(event)
    for rows in cities.values():
        rows.sort(key=oracle.row_order)
    return Journeys(World(tuple(User(name, f"shadow-{name}") for name in users), trips, (), nodes), Exported(cities))


OPTIONS = st.builds(
    Settings,
    seed=st.sampled_from((0, 7)),
    min_catalog=st.integers(0, 4),
    small_catalog=st.sampled_from(("exclude", "weight", "keep")),
    ids=st.sampled_from(("string", "index", "both")),
    split=st.sampled_from(("none", "last-trip", "last-trip", "time:2024-05-02", "time:2024-05-01,2024-05-02T12:00:00")),
    negatives=st.sampled_from((("ranking",), ("catalog:2",), ("ranking", "shown", "catalog:1"))),
    reject=st.sampled_from(("seen", "seen", "event")),
    catalog_alpha=st.sampled_from((None, 0.5)),
    city_weight=st.sampled_from(((), (("Tokyo", 0.3),))),
    shuffle=st.booleans(),
    task=st.sampled_from((("triples",), ("next",), BOTH, BOTH)),
    history=st.booleans(),
)


def dataset_with_places(made: Journeys, options: Settings) -> Dataset:
    """The dataset; coordinates come in behind the check of the frames that are read from a database."""
    bare = replace(made.world, nodes=tuple(replace(each, latitude=None, longitude=None) for each in made.world.nodes))
    dataset = dataset_of(bare, made.exported, options)
    of = {node.id: (node.latitude, node.longitude) for node in made.world.nodes}
    points = [of.get(item, (None, None)) for item in dataset.items["item_id"]]
    columns = [
        pl.Series(name, [point[axis] for point in points], dtype=pl.Float64)
        for axis, name in enumerate(("latitude", "longitude"))
    ]
    return replace(dataset, items=dataset.items.with_columns(columns))


def in_buckets_of_one_user(dataset: Dataset) -> Dataset:
    """The same dataset, with a bucket for each user."""
    (events,) = dataset.events
    parts = events.partition_by("user_idx", maintain_order=True)
    own = BucketedEvents(len(parts), dataset.events.cities, events.height, lambda _: iter(parts))
    return replace(dataset, events=own)


class Files:
    """The data files of a dataset, read back."""

    def __init__(self, dataset: Dataset, options: Settings) -> None:
        self.options = options
        self.dataset = dataset
        with tempfile.TemporaryDirectory() as name:
            folder, scratch = Path(name) / "staged", Path(name) / "scratch"
            folder.mkdir()
            scratch.mkdir()
            stage = StageOptions(training_options(options), options.ids, 7)  # type: ignore[arg-type]
            self.summary = write_data_files(dataset, stage, folder, scratch, lambda *_: None)
            self.items = pl.read_parquet(folder / "items.parquet")
            self.tables = {
                kind: dict(self._partitions(folder / kind)) for kind in ("events", "interactions", *options.task)
            }
            self.kinds = {path.name for path in folder.iterdir() if path.is_dir()}

    def _partitions(self, top: Path) -> Iterator[tuple[str, pl.DataFrame]]:
        for folder in sorted({path.parent for path in top.rglob("*.parquet")}):
            parts = [pl.read_parquet(path, hive_partitioning=False) for path in sorted(folder.glob("*.parquet"))]
            yield str(folder.relative_to(top)), pl.concat(parts)

    def rows(self, kind: str, partition: oracle_training.Partition) -> pl.DataFrame:
        """The rows of a table in a partition."""
        split, city = partition
        place = city_folder(city) if self.options.split == "none" else f"split={split}/{city_folder(city)}"
        return self.tables[kind][place]


def files_are_the_oracle_s(made: Journeys, options: Settings, files: Files) -> None:
    """Every row and every count of the tables."""
    world, exported = made.world, made.exported
    assert files.kinds - {"events"} == {"interactions", *options.task}
    expected = oracle_next.interactions(world, exported, options)
    of_next = oracle_next.next_rows(world, exported, options) if "next" in options.task else oracle_next.Made()
    trained = oracle_training.training(world, exported, options)
    vocabularies = files.dataset.users["user_id"], files.dataset.items["item_id"]
    for kind, of_kind in (("interactions", expected), ("triples", trained.triples), ("next", of_next.rows)):
        for partition, rows in of_kind.items():
            found = files.rows(kind, partition)
            ids, more = ("both", False) if kind == "interactions" else (options.ids, options.history)
            assert found.columns == table_columns(type(rows[0]), ids, history=more)
            are_rows(found, rows, vocabularies)
        assert sum(map(len, of_kind.values())) == sum(each.height for each in files.tables.get(kind, {}).values())
    for item, users in files.items.select("item_id", "n_users").iter_rows():
        assert users == oracle_next.n_users(expected, item)
    if options.history:
        of_triples = oracle_next.history_of_triples(world, exported, options, trained.triples)
        for kind, of_kind in (("triples", of_triples), ("next", of_next.history)):
            for partition, rows in of_kind.items():
                has_history(files.rows(kind, partition), rows)
    counts_are_the_oracle_s(expected, of_next, trained, files)


def counts_are_the_oracle_s(
    interactions: dict[Any, Any], of_next: oracle_next.Made, trained: oracle_training.Training, files: Files
) -> None:
    entries = {(each.split or "train", each.city): each for each in files.summary.partitions}
    assert set(entries) == set(trained.events)
    for partition, entry in entries.items():
        counted = [len(rows.get(partition, [])) for rows in (interactions, of_next.rows, trained.triples)]
        assert [entry.interactions, entry.next, entry.triples] == counted
        assert entry.choices == of_next.choices[partition]
    assert +trained.left_out == {reason: n for reason, n in files.summary.positives_left_out.items() if n}
    assert +of_next.left_out == {reason: n for reason, n in files.summary.choices_left_out.items() if n}
    published = files.summary.counts(files.dataset)
    assert sum(published["interactions"].values()) == sum(map(len, interactions.values()))
    assert ("next" in published) == ("next" in files.options.task)
    for kind in ("interactions", *files.options.task):  # also those without rows, so that readers find the columns
        parts = {place.split("/")[0].removeprefix("split=") for place in files.tables[kind] if "/" in place}
        assert parts == set(SplitSpec(files.options.split).parts)
        assert files.tables[kind]


@settings(max_examples=150)
@given(journeys(), OPTIONS)
def test_interactions_next_and_history_are_the_oracle_s(made, options):
    dataset = dataset_with_places(made, options)
    files_are_the_oracle_s(made, options, Files(dataset, options))


@pytest.mark.parametrize("other", [0, 1])
@pytest.mark.parametrize(("make", "number"), WORLDS)
def test_of_dense_worlds_in_batches_and_buckets_of_any_size_too(monkeypatch, make, number, other):
    monkeypatch.setattr(next_choices, "_BATCH", (next_choices._BATCH, 40)[(number + other) % 2])
    # Pools that are laid out, and those that are too large for it.
    monkeypatch.setattr(next_choices, "MATERIALIZE_RATIO", (next_choices.MATERIALIZE_RATIO, 0)[number % 2])
    options = replace(both_settings(number)[other], task=BOTH, history=number % 2 == 0)
    after = oracle.after_run(make(number), options, MODEL)
    made = Journeys(after, oracle.exported(after, options))
    dataset = dataset_of(after, made.exported, options)
    whole = Files(dataset, options)
    files_are_the_oracle_s(made, options, whole)
    if made.exported.cities:
        cut = Files(in_buckets_of_one_user(dataset), options)
        assert cut.summary == whole.summary  # every path and every sha256


# ------------------------------------------------------------------------------------------------------------- leakage


def changed_later(made: Journeys, options: Settings, until: int) -> Journeys:
    """Everything that a later part of the split says is another thing: what was selected, offered and shown, and on which day."""
    split_of = oracle_training.splits(made.world, made.exported, options)
    ids = [node.id for node in made.world.nodes]

    def changed(event: ExportedEvent) -> ExportedEvent:
        if SPLITS.index(split_of[event.event_id]) <= until:
            return event
        others = tuple(each for each in ids if each not in event.selected_ids)[:6]
        return replace(
            event,
            selected_ids=others,
            candidate_ids=event.selected_ids,
            shown_ids=(),
            day_number=-event.day_number if event.day_number > -(2**31) else 5,
        )

    return replace(
        made, exported=Exported({city: [*map(changed, rows)] for city, rows in made.exported.cities.items()})
    )


def earlier_rows(files: Files, until: int) -> dict[tuple[str, str], list[Any]]:
    """The rows of the parts up to one, as texts: indexes may change with the vocabulary."""
    found = {}
    for kind, partitions in files.tables.items():
        for place, rows in partitions.items():
            split = place.split("/")[0].removeprefix("split=")
            if kind != "events" and SPLITS.index(split) <= until and rows.height:
                found[kind, place] = rows.drop(*(name for name in rows.columns if name.endswith("_idx"))).rows()
    return found


def no_later_part_is_known(made: Journeys, options: Settings) -> int:
    """Write with and without a change of later parts; returns the number of earlier rows that were compared."""
    before, compared = Files(dataset_with_places(made, options), options), 0
    for until in (0, 1):
        after = Files(dataset_with_places(changed_later(made, options, until), options), options)
        expected = earlier_rows(before, until)
        assert earlier_rows(after, until) == expected
        compared += sum(map(len, expected.values()))
    return compared


@settings(max_examples=60)
@given(journeys(), OPTIONS)
def test_changing_anything_in_a_later_part_changes_no_row_of_an_earlier_one(made, options):
    split = options.split if options.split != "none" else "last-trip"
    no_later_part_is_known(made, replace(options, split=split, ids="string", history=True, task=BOTH))


@pytest.mark.parametrize("split", ["last-trip", "time:2024-02-02", "time:2024-02-01,2024-02-03"])
def test_changing_anything_in_a_later_part_changes_no_row_of_an_earlier_one_of_dense_worlds(split):
    compared = 0
    for make, number in WORLDS[:8]:
        more = {"split": split, "ids": "string", "history": True, "task": BOTH, "small_catalog": "keep"}
        options = replace(both_settings(number)[0], **more)
        after = oracle.after_run(make(number), options, MODEL)
        compared += no_later_part_is_known(Journeys(after, oracle.exported(after, options)), options)
    assert compared > 1_000
