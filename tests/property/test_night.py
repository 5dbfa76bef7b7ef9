"""The whole job against the oracle, on small nasty worlds in a real database: every row, every file, every count."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import etl
from etl.pipeline import database
from etl.settings.sources import load_settings
from etl.snapshots.encoding import EVENT_SCHEMA
from etl.snapshots.validation import validate_snapshot
from etl.snapshots.writer import city_folders
from etl.transform.personas import affinity_model
from tests.property import oracle, oracle_next, oracle_training
from tests.property.dense import both_settings, dense_settings, dense_world
from tests.property.in_database import Databases, written
from tests.property.legs import with_legs
from tests.property.rows import are_rows, has_history, table_columns
from tests.property.worlds import run_settings, worlds

MODEL = affinity_model().raw


CHOSEN = (
    *("seed", "min_catalog", "small_catalog", "audience", "shadow_prefix", "ids", "split", "reject", "shuffle"),
    *("task", "history"),
)


def as_given(options: oracle.Settings) -> dict:
    """The oracle's settings as a person gives them."""
    chosen = {name: getattr(options, name) for name in CHOSEN} | {"negatives": list(options.negatives)}
    chosen["allow_empty"] = True  # most worlds are small, and some have nobody
    if options.catalog_alpha is not None:
        chosen["catalog_alpha"] = options.catalog_alpha
    if options.city_weight:
        chosen["city_weight"] = [f"{city}={weight!r}" for city, weight in options.city_weight]
    return chosen


BUCKETS = (2, 1, 7, 16)
"""How the work is cut decides nothing: every world is worked on in one of these ways."""


WRITES = ("changes", "replace")
"""What is written decides nothing either: the worlds hold rows of earlier runs and of others."""


@pytest.fixture(scope="session")
def databases(make_database) -> Databases:
    return Databases(make_database)


def the_night_is_the_oracle_s(
    databases, world: oracle.World, options: oracle.Settings, *others: oracle.Settings
) -> etl.RunResult:
    """A run with these options, and exports of what it left with others; gives the run's report."""
    url = databases.holding(world)
    with tempfile.TemporaryDirectory() as folder:
        given_ = {"database_url": url, "out": f"{folder}/out", "write": WRITES[len(world.slots) % len(WRITES)]}
        settings_ = load_settings(given_ | as_given(options), {})
        report = etl.run(replace(settings_, buckets=BUCKETS[len(world.trips) % len(BUCKETS)]))
        after = oracle.after_run(world, options, MODEL)
        rows_are_the_oracle_s(url, after)
        snapshot_is_the_oracle_s(report, after, options)
        counts_are_the_oracle_s(report.counts, world, options)
        again = etl.export(settings_)
        assert content(again) == content(report)
        broken = {finding.law for finding in database.validate_database(settings_).broken}
        assert broken <= {"the design's validation query returns rows"}
        for other in others:
            given_ = as_given(other) | {"shadow_prefix": options.shadow_prefix}
            given_["buckets"] = BUCKETS[len(world.slots) % len(BUCKETS)]
            exported = etl.export(load_settings({"database_url": url, "out": f"{folder}/other", **given_}, {}))
            snapshot_is_the_oracle_s(exported, after, replace(other, shadow_prefix=options.shadow_prefix))
        return report


def snapshot_is_the_oracle_s(report: etl.RunResult, after: oracle.World, options, earlier=((), ())) -> None:
    """Every file and every count of what was published. `earlier` are the users and items of `--vocab-from`."""
    exported = oracle.exported(after, options)
    published = Published(
        Path(report.snapshot),
        options,
        after,
        exported,
        oracle_training.training(after, exported, options),
        oracle_next.interactions(after, exported, options),
        oracle_next.next_rows(after, exported, options) if "next" in options.task else oracle_next.Made(),
        oracle.users_rows(after, options, earlier[0]),
        oracle.items_rows(after, exported, earlier[1]),
    )
    files_are_the_oracle_s(published)
    users_are_the_oracle_s(published, {node.category for node in after.nodes})
    items = pl.read_parquet(published.snapshot / "items.parquet")
    assert items.columns == [column.name for column in (*fields(oracle.ItemOut), *fields(oracle_training.ItemCounts))]
    counts = (oracle_training.item_counts(published.made, row.item_id) for row in published.items)
    assert items.rows() == [(*astuple(row), *astuple(of)) for row, of in zip(published.items, counts, strict=True)]
    trips = pl.read_parquet(published.snapshot / "trips.parquet")
    assert trips.columns == ["trip_id", "city", "start_us"]
    assert trips.rows() == oracle_training.trips_rows(after, exported)
    account_is_the_oracle_s(published, report.counts["published"])
    manifest = json.loads((published.snapshot / "manifest.json").read_text())
    assert manifest["published"] == json.loads(json.dumps(report.counts["published"]))
    assert [finding for finding in validate_snapshot(published.snapshot) if finding.broken] == []


@dataclass(frozen=True)
class Published:
    """A snapshot's folder, and what the oracle says of it."""

    snapshot: Path
    options: oracle.Settings
    after: oracle.World
    exported: oracle.Exported
    made: oracle_training.Training
    interactions: dict[oracle_training.Partition, list[oracle_next.Interaction]]
    of_next: oracle_next.Made
    users: list[oracle.UserOut]
    items: list[oracle.ItemOut]

    @property
    def tables(self) -> dict[str, dict[oracle_training.Partition, list[Any]]]:
        """The rows of the tables beside `events`."""
        made = {"interactions": self.interactions, "triples": self.made.triples, "next": self.of_next.rows}
        return {kind: rows for kind, rows in made.items() if kind in {"interactions", *self.options.task}}

    def folder(self, partition: oracle_training.Partition) -> str:
        """`[split=train/]city=New%20York`."""
        split, city = partition
        place = city_folders({*self.exported.cities, city})[city]  # also of the city of a snapshot without any event
        return place if self.options.split == "none" else f"split={split}/{place}"


def content(report: etl.RunResult) -> str:
    return json.loads((Path(report.snapshot) / "manifest.json").read_text())["content_sha256"]


def rows_are_the_oracle_s(url: str, after: oracle.World) -> None:
    personas, events, registry, signals = written(url)
    assert personas == by_id(after.personas)
    assert events == by_id(after.events)
    assert [astuple(row)[:6] for row in registry] == [astuple(row)[:6] for row in by_id(after.registry)]
    assert signals == by_id(after.signals)


def by_id(rows) -> list:
    return sorted(rows, key=lambda row: row.id.encode())


def files_are_the_oracle_s(published: Published) -> None:
    for partition, expected in published.made.events.items():
        found = rows_in(published, "events", partition)
        assert found.columns == EVENT_SCHEMA.names
        wanted = [tuple(list(c) if isinstance(c, tuple) else c for c in astuple(event)[:-1]) for event in expected]
        assert found.rows() == wanted
    vocabularies = tuple(
        pl.Series(ids, dtype=pl.String)
        for ids in ([row.user_id for row in published.users], [row.item_id for row in published.items])
    )
    for kind, rows in published.tables.items():
        columns = table_columns(ROWS[kind], "both", history=False)
        if kind != "interactions":
            columns = table_columns(ROWS[kind], published.options.ids, history=published.options.history)
        for partition, expected in rows.items():
            found = rows_in(published, kind, partition)
            assert found.columns == columns
            are_rows(found, expected, vocabularies)
        without_rows = parts_without_rows(published, rows)
        for partition in without_rows:
            found = rows_in(published, kind, partition)
            assert (found.height, found.columns) == (0, columns)
        assert folders_of(published, kind) == set(map(published.folder, [*rows, *without_rows]))
    assert folders_of(published, "events") == set(map(published.folder, published.made.events))
    for task in {"triples", "next"} - {*published.options.task}:
        assert not (published.snapshot / task).exists()
    if published.options.history:
        for partition, history in published.of_next.history.items():
            has_history(rows_in(published, "next", partition), history)
        of_triples = oracle_next.history_of_triples(
            published.after, published.exported, published.options, published.made.triples
        )
        for partition, history in of_triples.items():
            has_history(rows_in(published, "triples", partition), history)


ROWS = {"interactions": oracle_next.Interaction, "triples": oracle.Triple, "next": oracle_next.NextRow}


def folders_of(published: Published, kind: str) -> set[str]:
    top = published.snapshot / kind
    return {str(path.parent.relative_to(top)) for path in top.rglob("*.parquet")}


def parts_without_rows(
    published: Published, rows: dict[oracle_training.Partition, Any]
) -> list[oracle_training.Partition]:
    """A part of the split without rows of a table has one file without rows, in the folder of the first city with an event."""
    rule, full = published.options.split, {split for split, _ in rows}
    if rule == "none":
        parts = [next(iter(full), "train")]
    else:
        parts = ["train", "test"] if rule.startswith("time:") and "," not in rule else ["train", "valid", "test"]
    city = min((city for _, city in published.made.events), key=str.encode, default="")
    return [(part, city) for part in parts if part not in full]


def rows_in(published: Published, kind: str, partition: oracle_training.Partition) -> pl.DataFrame:
    parts = sorted((published.snapshot / kind / published.folder(partition)).glob("*.parquet"))
    return pl.concat([pl.read_parquet(part, hive_partitioning=False) for part in parts])


def users_are_the_oracle_s(published: Published, categories: set[str]) -> None:
    """user_id, user_idx, the eight dimensions; then their confidences, sources, an affinity for each category, and counts."""
    users = pl.read_parquet(published.snapshot / "users.parquet")
    dimensions = users.columns[2:10]
    assert set(dimensions) == set(oracle.DIMENSIONS)
    assert users.columns == [
        *("user_id", "user_idx", *dimensions),
        *(f"{dimension}_{what}" for what in ("confidence", "source") for dimension in dimensions),
        *(f"affinity_{category}" for category in sorted(categories, key=oracle.by_bytes)),
        *("status", *(column.name for column in fields(oracle_training.UserCounts))),
    ]
    for found, expected in zip(users.rows(named=True), published.users, strict=True):
        wanted = {"user_id": expected.user_id, "user_idx": expected.user_idx, "status": expected.status}
        wanted |= {dimension: expected.dimensions[dimension] for dimension in dimensions}
        wanted["cuisine_openness"] = as_float(expected.dimensions["cuisine_openness"])
        wanted |= {f"{dimension}_confidence": expected.confidences[dimension] for dimension in dimensions}
        wanted |= {f"{dimension}_source": expected.sources[dimension] for dimension in dimensions}
        wanted |= {f"affinity_{category}": expected.affinities.get(category) for category in categories}
        assert found == wanted | asdict(oracle_training.user_counts(published.made, expected.user_id))


def account_is_the_oracle_s(published: Published, found: dict) -> None:
    """The manifest accounts for every positive: events x selected = triples' positives + left out, by reason."""
    made = published.made
    of_kinds = {"events": made.events, "triples": {}, **published.tables}
    of_city: dict[str, Counter[str]] = {kind: Counter() for kind in of_kinds}
    for kind, partitions in of_kinds.items():
        for (_, city), rows in partitions.items():
            of_city[kind][city] += len(rows)
        assert {city: rows for city, rows in found[kind].items() if rows} == of_city[kind]
    assert {source: rows for source, rows in found["triples_by_neg_source"].items() if rows} == made.by_source
    assert found["positives"] == made.positives.total()
    assert found["positives_left_out"] == {reason: made.left_out[reason] for reason in oracle_training.REASONS}
    city_of = {row.item_id: row.city for row in published.items}
    selected = (
        (item, city) for (_, city), events in made.events.items() for each in events for item in each.selected_ids
    )
    assert found["positives_in_another_city"] == sum(city_of[item] not in (None, city) for item, city in selected)
    assert found["users_with_whole_catalog_seen"] == len(made.users_with_whole_catalog_seen)
    assert set(found["cities_left_out"]) == {city for city, weight in made.weights.items() if weight is None}
    assert (found["users"], found["items"]) == (len(published.users), len(published.items))
    assert ("next" in found) == ("choices" in found) == ("next" in published.options.task)
    if "next" in found:
        assert found["choices"] == published.of_next.choices.total()
        wanted = {reason: published.of_next.left_out[reason] for reason in oracle_training.REASONS}
        assert found["choices_left_out"] == wanted
    partitions = {each["folder"]: each for each in found["partitions"]}
    assert len(partitions) == len(found["partitions"])
    assert set(partitions) == {published.folder(partition) for partition in made.events}
    for partition, events in made.events.items():
        each = partitions[published.folder(partition)]
        assert each["city"] == partition[1]
        assert published.options.split == "none" or each["split"] == partition[0]
        counts = len(events), made.positives[partition], len(made.triples.get(partition, []))
        assert (each["events"], each["positives"], each["triples"]) == counts
        more = len(published.interactions.get(partition, [])), len(published.of_next.rows.get(partition, []))
        assert (each["interactions"], each["next"], each["choices"]) == (*more, published.of_next.choices[partition])
        weight = made.weights[partition[1]]
        assert weight is None or oracle_training.float32(each["weight"]) == weight
    # A city without triples in train has no sign; whether it is named is free.
    assert set(found["signs"]) <= set(made.signs)
    for city, sign in made.signs.items():
        assert found["signs"].get(city) == (None if sign is None else pytest.approx(sign, abs=1e-9))


def as_float(value: str | None) -> float | None:
    """The finite number that a text is."""
    try:
        number = None if value is None else float(value)
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) else None


def counts_are_the_oracle_s(counts: dict, world, options) -> None:
    personas, persona_counts = oracle.personas(world, options, MODEL)
    _, event_counts = oracle.events(world, personas, options)
    sources = counts["persona_values_by_source"]
    assert counts["shadow_users"] == persona_counts["shadow_users"]
    assert counts["shadow_users_without_persona"] == persona_counts["users_without_persona"]
    for source in ("onboarding", "default", "reconstructed"):
        assert sources.get(source, 0) == persona_counts[f"source_{source}"]
    assert counts["affinities_dropped"] == {
        "unknown_category": persona_counts["affinities_unknown_category"],
        "not_a_finite_number": persona_counts["affinities_not_a_number"],
    }
    assert counts["openness_dropped"] == {"not_a_finite_number": persona_counts["openness_not_a_number"]}
    assert counts["ranking_events"] == event_counts["events"]
    skipped = {reason: event_counts[reason] for reason in oracle.SKIP_REASONS}
    if event_counts[oracle.WITHOUT_CITY]:
        skipped[oracle.WITHOUT_CITY] = event_counts[oracle.WITHOUT_CITY]
    assert counts["days_without_event"] == skipped
    assert counts["days_in_several_cities"] == event_counts["days_in_several_cities"]
    assert counts["positives"] == event_counts["positives"]
    assert counts["positives_outside_candidates"] == event_counts["positives_outside_candidates"]


def what_expand_makes_is_what_export_makes(
    databases, world: oracle.World, options: oracle.Settings, *, and_back: bool = False
) -> None:
    """`expand SNAPSHOT`: a new snapshot's triples from the `events/` of an old one, with other options; needs no database.

    `and_back`: the events of any split make again what the night itself was. That takes a world in which no two events of a
    user lie in the same second but not at the same moment: their order is nowhere in the files of different splits.
    """
    url = databases.holding(world)
    with tempfile.TemporaryDirectory() as folder:

        def chosen(name: str, **more: Any):
            return load_settings({"database_url": url, "out": f"{folder}/{name}", **as_given(options), **more}, {})

        night = etl.run(chosen("night", split="none", negatives=["ranking"]))
        if not any((Path(night.snapshot) / "events").rglob("*.parquet")):
            return  # nothing to expand
        buckets = BUCKETS[len(world.trips) % len(BUCKETS)]
        from_files = chosen("expanded", snapshot=night.snapshot, buckets=buckets)
        expanded = etl.expand(replace(from_files, database_url=None))
        assert content(expanded) == content(etl.export(chosen("exported")))
        snapshot_is_the_oracle_s(expanded, oracle.after_run(world, options, MODEL), options)
        if and_back:
            back = chosen("back", snapshot=expanded.snapshot, split="none", negatives=["ranking"])
            assert content(etl.expand(back)) == content(night)


def a_vocabulary_is_kept(databases, world: oracle.World, options: oracle.Settings, *, by_folder: bool) -> None:
    """`--vocab-from SNAPSHOT`: an id keeps its index from one night to the next, new ids are appended."""
    with tempfile.TemporaryDirectory() as folder:

        def chosen(name: str, **more: Any):
            return load_settings({"database_url": url, "out": f"{folder}/{name}", **as_given(options), **more}, {})

        url = databases.holding(world)
        first = etl.run(chosen("first"))
        after = oracle.after_run(world, options, MODEL)
        earlier = ids_of(after, options)
        later = changed(after)
        url = databases.holding(later)
        source = f"{folder}/first" if by_folder else first.snapshot
        second = etl.run(chosen("second", vocab_from=source))
        after = oracle.after_run(later, options, MODEL)
        snapshot_is_the_oracle_s(second, after, options, earlier)
        third = etl.export(chosen("third", vocab_from=second.snapshot))
        assert files_but_settings(third) == files_but_settings(second)
        if not any((Path(second.snapshot) / "events").rglob("*.parquet")):
            return  # nothing to expand
        expanded = etl.expand(chosen("expanded", snapshot=second.snapshot, split="last-trip", negatives=["catalog:3"]))
        tried = replace(options, split="last-trip", negatives=("catalog:3",))
        snapshot_is_the_oracle_s(expanded, after, tried, earlier)


def ids_of(after: oracle.World, options: oracle.Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The users and items of a night, in their order."""
    users = oracle.users_rows(after, options)
    items = oracle.items_rows(after, oracle.exported(after, options))
    return tuple(row.user_id for row in users), tuple(row.item_id for row in items)


def files_but_settings(report: etl.RunResult) -> dict[str, str]:
    """Each data file's sha256."""
    files = json.loads((Path(report.snapshot) / "manifest.json").read_text())["files"]
    return {each["path"]: each["sha256"] for each in files if each["path"].endswith(".parquet")}


def changed(world: oracle.World) -> oracle.World:
    """The next day: one user is gone with all that was theirs, some nodes too, others are archived, and there are new ones."""
    gone = {user.id for user in world.users[1:2]}
    trips = [trip for trip in world.trips if trip.user_id not in gone]
    ids = {trip.id for trip in trips}
    closed = {node.id for node in world.nodes[::5]}
    nodes = [
        replace(node, status="archived" if place % 7 == 0 else node.status)
        for place, node in enumerate(world.nodes)
        if node.id not in closed
    ]
    new_nodes = [replace(node, id=f"!new {node.id}", name="new") for node in nodes[:3]]
    new_users = [oracle.User(f"!new {place}", f"shadow-new {place}") for place in range(2)]
    new_trips = [replace(trip, id=f"!new {trip.id}", user_id=new_users[0].id) for trip in trips[:2]]
    slots = [
        replace(slot, node_id=None if slot.node_id in closed else slot.node_id)
        for slot in world.slots
        if slot.trip_id in ids
    ]
    of_new = {trip.id.removeprefix("!new "): trip.id for trip in new_trips}
    new_slots = [
        replace(slot, id=f"!new {slot.id}", trip_id=of_new[slot.trip_id]) for slot in slots if slot.trip_id in of_new
    ]
    return replace(
        world,
        users=(*(user for user in world.users if user.id not in gone), *new_users),
        trips=(*trips, *new_trips),
        slots=(*slots, *new_slots),
        nodes=(*nodes, *new_nodes),
        signals=(),
        personas=tuple(row for row in world.personas if row.user_id not in gone),
        events=tuple(row for row in world.events if row.user_id not in gone),
        registry=(),
    )


# Not shrunk here, which takes minutes: `make test-slow` does.
@settings(max_examples=40, phases=[Phase.generate])
@given(world=worlds(), options=run_settings())
def test_small_nights_are_the_oracle_s(databases, world, options):
    the_night_is_the_oracle_s(databases, world, options)


# Not shrunk here, which takes minutes: `make test-slow` does.
@settings(max_examples=20, phases=[Phase.generate])
@given(world=worlds(), options=run_settings())
def test_small_nights_are_expanded_as_they_are_exported(databases, world, options):
    what_expand_makes_is_what_export_makes(databases, world, options)


@pytest.mark.parametrize("number", range(40))
def test_dense_nights_are_the_oracle_s(databases, number):
    the_night_is_the_oracle_s(databases, dense_world(number), *both_settings(number))


@pytest.mark.parametrize("number", range(12))
def test_nights_with_legs_are_the_oracle_s(databases, number):
    """The city of a day is that of the leg of its first slot in slot order."""
    world = with_legs(dense_world(number), number)
    the_night_is_the_oracle_s(databases, world, *both_settings(number))
    options = both_settings(number)[number % 4 // 2]
    what_expand_makes_is_what_export_makes(databases, world, options, and_back=True)


@settings(max_examples=15, phases=[Phase.generate])
@given(world=worlds(), options=run_settings(), number=st.integers(0, 10**9))
def test_small_nights_with_legs_are_the_oracle_s(databases, world, options, number):
    the_night_is_the_oracle_s(databases, with_legs(world, number), options)


@pytest.mark.parametrize("number", range(40))
def test_expanded_events_are_exported_ones(databases, number):
    options = both_settings(number)[number % 4 // 2]
    what_expand_makes_is_what_export_makes(databases, dense_world(number), options, and_back=True)


@pytest.mark.parametrize("number", range(16))
def test_indexes_are_kept_from_one_night_to_the_next(databases, number):
    options = replace(dense_settings(number), ids=("index", "both")[number % 2])
    a_vocabulary_is_kept(databases, dense_world(number), options, by_folder=number % 3 == 0)


@pytest.mark.slow
@settings(max_examples=1_000, derandomize=False)
@given(world=worlds() | st.integers(1_000, 10**9).map(dense_world), options=run_settings())
def test_many_nights_are_the_oracle_s(databases, world, options):
    the_night_is_the_oracle_s(databases, world, options)


@pytest.mark.slow
@settings(max_examples=300, derandomize=False)
@given(world=worlds() | st.integers(1_000, 10**9).map(dense_world), options=run_settings(), by_folder=st.booleans())
def test_many_nights_are_expanded_and_followed(databases, world, options, by_folder):
    what_expand_makes_is_what_export_makes(databases, world, options)
    a_vocabulary_is_kept(databases, world, options, by_folder=by_folder)
