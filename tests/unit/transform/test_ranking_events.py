"""Ranking events without a database: the oracle's rows over dense worlds, and the corners that no world has."""

from __future__ import annotations

import hashlib
from random import Random

import numpy as np
import polars as pl
import pytest

from etl.transform import candidates as candidates_
from etl.transform.candidates import TOP_K, _best, _needed_categories, _smallest_hashes, candidates
from etl.transform.hashing import mix64
from etl.transform.personas import affinity_model, read_affinities
from etl.transform.ranking_events import (
    SKIP_REASONS,
    RankingStats,
    add_shown,
    build_events,
    day_nodes,
    eligible,
    node_type,
    selected,
    sort_for_files,
    sort_slots,
)
from etl.transform.schemas import SELECTED_STATUSES, Affinities, Nodes, Slots
from tests.property import oracle
from tests.property.dense import dense_settings
from tests.property.in_memory import WORLDS, frame, nodes_of, personas_of, slots_of, trips_of, us
from tests.property.oracle_training import start_us

MODEL = affinity_model()
NODE_LISTS = ("candidate_ids", "ranked_ids", "selected_ids", "shown_ids")


def ranked(world: oracle.World, personas: list[oracle.PersonaRow], options: oracle.Settings):
    return build_events(
        trips_of(world, options),
        slots_of(world, options),
        nodes_of(world),
        pl.Series([row.user_id for row in personas], dtype=pl.String).unique(),
        read_affinities(personas_of(personas), world.categories),
        MODEL.default_affinity,
        options.seed,
    )


def as_ranked(world: oracle.World, row: oracle.EventRow) -> dict:
    """An event of the oracle's as `rank` gives it."""
    trip = next(trip for trip in world.trips if trip.id == row.trip_id)
    plain = ("user_id", "trip_id", "day_number", "surface", "model_name", "model_version", "latency_ms")
    return (
        {name: getattr(row, name) for name in plain}
        | {
            "event_id": row.id,
            "city": trip.city,
            "start_us": start_us(trip.start_date),
            "created_us": us(row.created_at),
        }
        | {name: list(getattr(row, name)) for name in NODE_LISTS if name != "shown_ids"}
        | {"shown_ids": list(oracle.shown_ids(world, row))}
    )


def file_order(row: oracle.EventRow):
    return _digest(row.user_id), row.created_at, oracle.by_bytes(row.trip_id), row.day_number


def _digest(user_id: str) -> str:
    return hashlib.sha256(oracle.by_bytes(user_id)).hexdigest()


@pytest.mark.parametrize(("make", "number"), WORLDS)
def test_events_are_the_oracle_s(make, number):
    world, options = make(number), dense_settings(number)
    personas, _ = oracle.personas(world, options, MODEL.raw)
    rows, counts = oracle.events(world, personas, options)
    found = ranked(world, personas, options)
    expected = [as_ranked(world, row) for row in sorted(rows, key=file_order)]
    assert found.events.drop("skipped").to_dicts() == expected
    assert found.stats == RankingStats(
        counts["events"],
        {reason: counts[reason] for reason in oracle.SKIP_REASONS},
        counts["positives"],
        counts["positives_outside_candidates"],
    )
    nodes = {found.events.schema[name] for name in NODE_LISTS}
    assert nodes == {pl.List(node_type(nodes_of(world)["node_id"], slots_of(world, options)["node_id"]))}
    assert found.events.schema["latency_ms"] == pl.Int32


def slots(*rows: tuple) -> pl.DataFrame:
    return frame(Slots, [dict(zip(Slots.column_names(), row, strict=True)) for row in rows])


def some_days() -> pl.DataFrame:
    """Two trips with three days, laid down in no order; the day of the second has a node twice and one that was skipped."""
    return slots(
        ("s3", "t2", "b", 1, 1, "completed"),
        ("s2", "t2", "a", 1, 1, "active"),
        ("s9", "t2", "c", 1, 0, "skipped"),
        ("s5", "t2", None, 1, 0, "confirmed"),
        ("s4", "t2", "b", 1, 0, "confirmed"),
        ("s7", "t2", "d", -1, 7, "proposed"),
        ("s6", "t1", "e", 2, 0, "confirmed"),
        ("s1", "t1", "f", 1, 9, "confirmed"),
    )


def test_slots_come_trip_by_trip_and_day_by_day_without_those_that_hold_nothing():
    assert sort_slots(some_days())["slot_id"].to_list() == ["s1", "s6", "s7", "s4", "s9", "s2", "s3"]


def test_a_day_s_nodes_are_distinct_each_where_it_is_first():
    found = day_nodes(sort_slots(some_days()))
    assert found["slot_id"].to_list() == ["s1", "s6", "s7", "s4", "s9", "s2"]


def test_what_was_taken_is_in_slot_order_and_a_day_without_any_has_no_row():
    found = {(trip, day): ids for trip, day, ids in selected(sort_slots(some_days())).iter_rows()}
    assert found == {("t1", 1): ["f"], ("t1", 2): ["e"], ("t2", 1): ["b", "a"]}


def test_lists_keep_the_slots_order_however_many_days_there_are():
    """Joins and groups of many rows run on several threads, and then keep an order only where they are told to."""
    r, days = Random(0), 6_000  # noqa: S311 - no secret
    statuses = [*SELECTED_STATUSES, "skipped", "proposed"]
    rows = [
        (f"{day:06}.{place}", f"t{day % 2_999}", f"n{r.randrange(500)}", day, r.randrange(4), r.choice(statuses))
        for day in range(days)
        for place in range(5)
    ]
    r.shuffle(rows)
    ordered = sort_slots(slots(*rows))
    events = selected(ordered).with_columns(event_id=pl.concat_str("trip_id", "day_number", separator="/"))
    events = events.sample(fraction=1.0, shuffle=True, seed=1)
    found = add_shown(events, ordered)
    assert found["event_id"].to_list() == events["event_id"].to_list()
    by_day: dict[str, list[tuple]] = {}
    for row in sorted(rows, key=lambda row: (row[4], row[0])):
        by_day.setdefault(f"{row[1]}/{row[3]}", []).append(row)
    for event, ids, shown in found.select("event_id", "selected_ids", "shown_ids").iter_rows():
        taken = oracle.distinct(tuple(row[2] for row in by_day[event] if row[5] in SELECTED_STATUSES))
        assert tuple(ids) == taken
        every = oracle.distinct(tuple(row[2] for row in by_day[event]))
        assert tuple(shown) == tuple(node for node in every if node not in taken)


def test_events_of_equal_keys_stay_in_order_in_files():
    r = Random(0)  # noqa: S311 - no secret
    keys = [(f"u{r.randrange(40)}", r.randrange(3)) for _ in range(5_000)]
    events = pl.DataFrame(keys, schema=["user_id", "created_us"], orient="row").with_row_index("place")
    found = sort_for_files(events, ["created_us"])
    expected = sorted(range(len(keys)), key=lambda place: (_digest(keys[place][0]), keys[place][1], place))
    assert found["place"].to_list() == expected
    assert found.columns == events.columns


def test_nodes_are_ordered_by_the_bytes_of_their_ids_whichever_column_they_come_from():
    found = node_type(
        pl.Series(["b", None, "Z", "\U0001f600"]), pl.Series(["b", "\uff5e", "a"]), pl.Series([None], dtype=pl.String)
    )
    assert found == pl.Enum(["Z", "a", "b", "\uff5e", "\U0001f600"])
    assert node_type() == pl.Enum([])


def test_tallies_add_up():
    one = RankingStats(5, dict(zip(SKIP_REASONS, (1, 2, 3), strict=True)), 7, 4)
    other = RankingStats(50, dict(zip(SKIP_REASONS, (10, 20, 30), strict=True)), 70, 40)
    assert one + other == RankingStats(55, dict(zip(SKIP_REASONS, (11, 22, 33), strict=True)), 77, 44)
    assert RankingStats() + one == one


# ------------------------------------------------------------------------------------------------------- candidates

AFFINITIES = (0.5, 0.5, 0.5, 0.9, 0.3, MODEL.default_affinity, None)
SIZES = (0, 1, 2, 18, 19, 20, 21, 25, 40)


def offer(r: Random) -> tuple[list[oracle.Node], dict[str, dict[str, float]]]:
    """Cities of a few categories, each of a size near the top's, and users who like some of these alike."""
    nodes = []
    for city in ("one", "two", "none")[: r.randint(1, 3)]:
        for category in r.sample("abcde", r.randint(1, 4)):
            made = [
                oracle.Node(f"{city}{category}{r.random()}", city, category, "approved", "", 0.0, 0.0)
                for _ in range(r.choice(SIZES))
            ]
            nodes += made
    liked = {f"u{number}": {category: r.choice(AFFINITIES) for category in "abcd"} for number in range(4)}
    return nodes, {user: {c: a for c, a in own.items() if a is not None} for user, own in liked.items()}


def tops(nodes: list[oracle.Node], liked: dict[str, dict[str, float]], seed: int) -> dict[tuple[str, str], tuple]:
    """The candidates that `candidates` finds for every user in every city."""
    pairs = pl.DataFrame(
        [(user, city) for user in liked for city in ("one", "two", "nowhere")], schema=["user_id", "city"], orient="row"
    )
    affinities = frame(
        Affinities,
        [{"user_id": user, "category": c, "affinity": a} for user, own in liked.items() for c, a in own.items()],
    )
    rows = frame(Nodes, [{"node_id": n.id, "city": n.city, "category": n.category, "status": n.status} for n in nodes])
    offered = eligible(rows).with_columns(pl.col("node_id").cast(node_type(rows["node_id"])))
    found = candidates(pairs, affinities, offered, MODEL.default_affinity, seed)
    for row in found.to_dicts():
        assert row["candidate_ids"] == sorted(row["ranked_ids"], key=oracle.by_bytes)
    return {
        (user, city): tuple(ranked) for user, city, ranked in found.select("user_id", "city", "ranked_ids").iter_rows()
    }


def expected_tops(
    nodes: list[oracle.Node], liked: dict[str, dict[str, float]], seed: int
) -> dict[tuple[str, str], tuple]:
    found = {}
    for user, own in liked.items():
        for city in ("one", "two"):
            if of_city := [node for node in nodes if node.city == city]:
                found[user, city] = oracle.ranked_ids(of_city, own, user, seed)
    return found


@pytest.mark.parametrize("number", range(40))
def test_candidates_are_the_oracle_s_where_categories_are_as_large_as_the_top(number):
    nodes, liked = offer(Random(number))  # noqa: S311 - no secret
    assert tops(nodes, liked, number) == expected_tops(nodes, liked, number)


@pytest.mark.parametrize(
    ("name", "value"), [("_CELLS", 1), ("_CELLS", 100), ("_MARGIN_SIGMAS", -2.0), ("_MARGIN_SIGMAS", 1e9)]
)
def test_how_many_nodes_are_looked_at_decides_nothing(monkeypatch, name, value):
    monkeypatch.setattr(candidates_, name, value)
    for number in range(8):
        nodes, liked = offer(Random(number))  # noqa: S311 - no secret
        assert tops(nodes, liked, number) == expected_tops(nodes, liked, number)


def test_of_a_large_category_few_nodes_are_looked_at_and_seldom_all():
    """How many is a bound on the hash: too high, and the work is that of all nodes; too low, and it is done over again."""
    rng = np.random.default_rng(0)
    users, nodes = rng.integers(0, 2**64, 100, np.uint64), rng.integers(0, 2**64, 20_000, np.uint64)
    found = list(_smallest_hashes(users, np.arange(100), nodes, np.arange(20_000)))
    looked_at = np.bincount(np.concatenate([user for user, _, _ in found]), minlength=100)
    assert looked_at.min() >= TOP_K
    assert looked_at.max() < 5 * TOP_K
    for user, node, tie in found:
        assert (tie == mix64(users[user] ^ nodes[node])).all()


def test_categories_are_reached_that_have_fewer_than_the_top_s_nodes_before_them():
    liked = np.array([[0.9, 0.5, 0.5, 0.1], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]])
    enough = _needed_categories(liked, np.array([TOP_K, 3, 3, 3]))
    assert enough.tolist() == [[True, False, False, False], [True, True, True, True], [True, True, True, True]]
    nearly = _needed_categories(liked, np.array([TOP_K - 1, 3, TOP_K, 3]))
    assert nearly.tolist() == [[True, True, True, False], [False, False, True, True], [True, True, True, True]]
    assert nearly.dtype == np.bool_


def test_of_a_large_category_the_smallest_hashes_are_found():
    nodes = [oracle.Node(f"n{number}", "one", "a", "approved", "", 0.0, 0.0) for number in range(2_000)]
    liked = {f"u{number}": {"a": 0.5} for number in range(5)}
    assert tops(nodes, liked, 7) == expected_tops(nodes, liked, 7)


def test_ties_are_compared_to_their_last_bit_and_a_user_without_nodes_has_none():
    """As floats these two would be equal, and the smaller node would win."""
    ties = np.array([2**63 + 1, 2**63], np.uint64)
    places, lengths = _best(2, np.zeros(2, np.int64), np.array([3, 5]), ties, np.array([0.5, 0.5]))
    assert (places.tolist(), lengths.tolist()) == ([5, 3], [2, 0])
    assert places.dtype == lengths.dtype == np.int64


def test_nobody_asking_and_nothing_offered_give_no_candidates():
    assert tops([], {"u": {}}, 0) == {}
    node = oracle.Node("n", "elsewhere", "a", "approved", "", 0.0, 0.0)
    assert tops([node], {"u": {"a": 0.5}}, 0) == {}
