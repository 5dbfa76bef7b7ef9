"""The oracle of splits, negatives and weights, on examples worked out by hand, and its laws on the worlds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.transform.personas import affinity_model
from tests.property import oracle, oracle_training
from tests.property.dense import dense_settings, dense_world
from tests.property.oracle import Exported, ExportedEvent, Node, Settings, Trip, World
from tests.property.oracle_training import SPLITS, Training
from tests.property.worlds import run_settings, worlds

MODEL = affinity_model().raw
DAY = datetime.fromisoformat("2024-05-01T09:30:00.500")
KEEP = Settings(small_catalog="keep")


def nodes(ids: str, city: str = "Tokyo", status: str = "approved") -> tuple[Node, ...]:
    """A node for each letter."""
    return tuple(Node(node_id, city, "dining", status, node_id, 1.0, 2.0) for node_id in ids)


def trip(trip_id: str, start: oracle.Moment = DAY, city: str = "Tokyo") -> Trip:
    return Trip(trip_id, "ann", city, start, DAY, None)


def event(event_id: str, selected: str = "", candidates: str = "", shown: str = "", **cells: Any) -> ExportedEvent:
    """An event of Ann's trip t; its nodes are letters."""
    lists = tuple(candidates), tuple(candidates), tuple(selected), tuple(shown)
    plain = ExportedEvent(event_id, "ann", "t", 1, oracle.timestamp(DAY), "itinerary", "bpr", "1", *lists, DAY)
    return replace(plain, **cells)


def exported(*events: ExportedEvent, **of_cities: tuple[ExportedEvent, ...]) -> Exported:
    """These events in Tokyo, and others in other cities."""
    cities = {"Tokyo": [*events], **{city: [*rows] for city, rows in of_cities.items()}}
    return Exported({city: rows for city, rows in cities.items() if rows})


def pairs(made: Training, split: str = "train", city: str = "Tokyo") -> list[tuple[str, str, str]]:
    """(positive, negative, source) of each triple of a partition."""
    return [(row.pos_item, row.neg_item, row.neg_source) for row in made.triples.get((split, city), [])]


# ------------------------------------------------------------------------------------------- catalogues and weights


def test_a_catalogue_is_what_can_be_offered_in_the_order_of_bytes():
    everything = (*nodes("b\uff5eZ"), *nodes("\U0001f600", status="flagged"), *nodes("x", status="archived"))
    world = World(nodes=(*everything, *nodes("k", city="Kyoto")))
    assert oracle_training.catalogue(world, "Tokyo") == ("Z", "b", "\uff5e", "\U0001f600")
    assert oracle_training.catalogue(world, "Nowhere") == ()


@pytest.mark.parametrize(
    ("small_catalog", "min_catalog", "weight"),
    [
        *(("exclude", 4, None), ("exclude", 3, 1.0), ("keep", 50, 1.0), ("weight", 4, 0.75), ("weight", 3, 1.0)),
        ("weight", 50, oracle_training.float32(0.06)),
    ],
)
def test_small_catalogues_and_weights_of_cities(small_catalog, min_catalog, weight):
    world = World(nodes=(*nodes("abc"), *nodes("x", status="archived")))
    options = Settings(small_catalog=small_catalog, min_catalog=min_catalog)
    assert oracle_training.city_weight(world, "Tokyo", options) == weight
    twice = replace(options, city_weight=(("Kyoto", 9.0), ("Tokyo", 2.0)))
    assert oracle_training.city_weight(world, "Tokyo", twice) == (None if weight is None else 2 * weight)


def test_a_weight_is_rounded_once():
    """0.3 * 0.7 as float32 is not float32(0.3) * float32(0.7)."""
    options = Settings(small_catalog="weight", min_catalog=10, city_weight=(("Tokyo", 0.7),))
    found = oracle_training.city_weight(World(nodes=nodes("abc")), "Tokyo", options)
    assert found == oracle_training.float32(0.3 * 0.7) == 0.20999999344348907


def test_an_empty_catalogue_that_is_kept_weighs_nothing():
    assert oracle_training.city_weight(World(), "Nowhere", Settings(small_catalog="weight")) == 0.0
    assert oracle_training.city_weight(World(), "Nowhere", Settings(min_catalog=0)) == 1.0


# ------------------------------------------------------------------------------------------------------------ splits


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (datetime.fromisoformat("1970-01-01T00:00:00.001"), 1_000),
        (datetime.fromisoformat("1969-12-31T23:59:59.999"), -1_000),
        ("infinity", None),
        ("-infinity", None),
        ("10000-01-01 00:00:00", 253_402_300_800_000_000),
        ("0001-12-31 23:59:59.999 BC", -62_135_596_800_001_000),
        ("293999-12-31 23:59:59.999", 9_215_576_668_799_999_000),
        ("294276-12-31 23:59:59.999", None),  # more than int64 holds
        ("4713-01-01 00:00:00 BC", -210_863_520_000_000_000),
    ],
)
def test_the_start_of_a_trip(start, expected):
    assert oracle_training.start_us(start) == expected


def test_the_start_of_a_trip_goes_on_where_python_s_years_end():
    last, first = (datetime.fromisoformat(text) for text in ("9999-12-31T23:59:59.999", "0001-01-01"))
    of = oracle_training.start_us
    assert of("10000-01-01 00:00:00") - of(last) == of(first) - of("0001-12-31 23:59:59.999 BC") == 1_000


def test_without_a_split_everything_is_train():
    events = exported(event("e"), Kyoto=(event("f"),))
    assert oracle_training.splits(World(), events, Settings()) == {"e": "train", "f": "train"}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("time:2024-05-01", ("train", "test", "test", "test")),
        ("time:2024-05-02", ("train", "train", "train", "test")),
        ("time:2024-05-01T09:30:00", ("train", "train", "test", "test")),
        ("time:2024-05-01T09:30:01", ("train", "train", "train", "test")),
        ("time:2024-05-01,2024-05-02", ("train", "valid", "valid", "test")),
        ("time:2024-05-01T00:00:01,2024-05-01T12:00:00", ("train", "train", "valid", "test")),
        ("time:1990-01-01,1991-01-01", ("test",) * 4),
        ("time:2090-01-01,2091-01-01", ("train",) * 4),
    ],
)
def test_a_time_cuts_with_its_start(split, expected):
    moments = ("2024-04-30T23:59:59.999", "2024-05-01", "2024-05-01T09:30:00.500", "2024-05-02T00:00:00")
    events = [event(str(place), created_at=datetime.fromisoformat(text)) for place, text in enumerate(moments)]
    found = oracle_training.splits(World(), exported(*events), Settings(split=split))
    assert tuple(found.values()) == expected


def last_trips(*trips: Trip, without: str = "", **settings_: Any) -> dict[str, str]:
    """The splits of Ann's trips, of which those in `without` have no events. Tokyo's catalogue has 2 nodes, Kyoto's 1."""
    world = World(trips=trips, nodes=(*nodes("ab"), *nodes("k", city="Kyoto")))
    cities: dict[str, list[ExportedEvent]] = {}
    for each in trips:
        if each.id not in without:
            cities.setdefault(each.city, []).append(event(f"e{each.id}", trip_id=each.id))
    options = Settings(split="last-trip", min_catalog=2, **settings_)
    return {each[1:]: split for each, split in oracle_training.splits(world, Exported(cities), options).items()}


MAY, JUNE, JULY, AUGUST = (datetime(2024, month, 1) for month in (5, 6, 7, 8))  # noqa: DTZ001 - as in the database


def test_the_last_of_a_user_s_trips_is_test():
    assert last_trips(trip("z", MAY)) == {"z": "train"}
    assert last_trips(trip("y", JUNE), trip("z", MAY)) == {"z": "train", "y": "test"}
    assert last_trips(trip("y", JUNE), trip("z", MAY), trip("a", JULY)) == {"z": "train", "y": "valid", "a": "test"}
    four = last_trips(trip("b", AUGUST), trip("y", JUNE), trip("z", MAY), trip("a", JULY))
    assert four == {"z": "train", "y": "train", "a": "valid", "b": "test"}


def test_trips_of_one_start_are_in_the_order_of_their_ids():
    assert last_trips(trip("b", MAY), trip("\u00e9", MAY), trip("B", MAY)) == {
        "B": "train",
        "b": "valid",
        "\u00e9": "test",
    }


def test_an_infinite_start_comes_first_and_a_wild_one_where_it_belongs():
    found = last_trips(trip("a", "infinity"), trip("b", "10000-01-01 00:00:00"), trip("c", "0001-01-01 00:00:00 BC"))
    assert found == {"a": "train", "c": "valid", "b": "test"}


def test_a_trip_without_events_does_not_count():
    found = last_trips(trip("a", MAY), trip("b", JUNE), trip("c", JULY), without="c")
    assert found == {"a": "train", "b": "test"}


def test_a_trip_in_a_city_left_out_takes_the_split_of_the_kept_one_before_it():
    kyoto = [trip(name, start, "Kyoto") for name, start in (("a", MAY), ("c", JUNE), ("e", JULY), ("g", AUGUST))]
    tokyo = [trip(name, start) for name, start in (("b", MAY), ("d", JUNE), ("f", JULY))]  # by their ids between those
    found = last_trips(*kyoto, *tokyo)
    assert found == {
        **dict.fromkeys("abc", "train"),
        **dict.fromkeys("de", "valid"),
        **dict.fromkeys("fg", "test"),
    }
    alone = last_trips(*kyoto)
    assert alone == dict.fromkeys("aceg", "train")


def test_where_small_catalogues_are_kept_their_trips_count():
    trips = trip("a", MAY), trip("b", JUNE, "Kyoto")
    assert last_trips(*trips) == {"a": "train", "b": "train"}
    for small_catalog in ("keep", "weight"):
        assert last_trips(*trips, small_catalog=small_catalog) == {"a": "train", "b": "test"}


def test_another_user_s_events_on_the_same_trip_have_a_split_of_their_own():
    world = World(trips=(trip("a", MAY), trip("b", JUNE)), nodes=nodes("abc"))
    rows = [
        *(event("1", trip_id="a"), event("2", trip_id="b")),
        event("3", trip_id="b", user_id="bob"),
    ]
    found = oracle_training.splits(world, exported(*rows), Settings(split="last-trip", small_catalog="keep"))
    assert found == {"1": "train", "2": "test", "3": "train"}


# ------------------------------------------------------------------------------------------------------------- draws

POOL = tuple("abcdefghij")
KEYS = (8504988115077510676, 15518855558532819930)
TIMES = dict(zip(POOL, (0, 0, 5, 1, 0, 100, 0, 2, 0, 1000), strict=True))


def test_keys_and_numbers_are_as_another_language_computes_them():
    assert oracle_training.draw_key(0, "u", "e", "p") == KEYS[0]
    assert oracle_training.draw_key(7, "u\u00e9", "e 1", "") == KEYS[1]
    assert [oracle_training.u(KEYS[0], i) for i in (0, 1, 5)] == [980969882, 2210122073, 1213711362]
    assert [oracle_training.u(KEYS[1], i) for i in (0, 1, 5)] == [3024793970, 919910102, 1650777685]


@pytest.mark.parametrize(
    ("key", "drawn"),
    [
        (KEYS[0], {1: "c", 3: "bef", 9: "abcefghij", 10: "abcdefghij", 11: "abcdefghij"}),
        (KEYS[1], {1: "h", 3: "fbe", 9: "badefchij", 10: "abcdefghij", 1000: "abcdefghij"}),
    ],
)
def test_even_draws_are_as_another_language_computes_them(key, drawn):
    assert {count: "".join(oracle_training.even_draw(POOL, count, key)) for count in drawn} == drawn


@pytest.mark.parametrize(
    ("alpha", "weights"),
    [
        (
            0.5,
            [82146541, 82146541, 201217109, 116172752, 82146541, 825562515, 82146541, 142281982, 82146541, 2599000226],
        ),
        (1, [3841653, 3841653, 23049914, 7683305, 3841653, 388006884, 3841653, 11524957, 3841653, 3845493965]),
        (2.5, [136, 136, 11909, 764, 136, 13844408, 136, 2106, 136, 4281107426]),
    ],
)
def test_weights_are_as_another_language_computes_them(alpha, weights):
    assert [*oracle_training.integer_weights(TIMES, alpha).values()] == weights


@pytest.mark.parametrize(
    ("key", "alpha", "drawn"),
    [
        # Those with a star need more than their 8 attempts a node: the rest is drawn from what is left.
        (KEYS[0], 0.5, {1: "c", 3: "cjf", 7: "cjfhbig*", 10: "abcdefghij"}),
        (KEYS[1], 0.5, {1: "h", 3: "hjc", 7: "hjcfigd"}),
        (KEYS[0], 1, {1: "j", 3: "jfh", 7: "jfhcgde*"}),
        (KEYS[1], 1, {1: "j", 3: "jfh*", 7: "jfcdihb*"}),
        (KEYS[0], 2.5, {1: "j", 3: "jfc*", 7: "jfchdia*"}),
        (KEYS[1], 2.5, {1: "j", 3: "jfc*", 7: "jfcihde*"}),
    ],
)
def test_weighted_draws_are_as_another_language_computes_them(key, alpha, drawn):
    weights = oracle_training.integer_weights(TIMES, alpha)
    found = {count: "".join(oracle_training.weighted_draw(POOL, count, key, weights)) for count in drawn}
    assert found == {count: each.rstrip("*") for count, each in drawn.items()}


def test_the_alias_table_is_as_another_language_computes_it():
    table = oracle_training.alias_table(oracle_training.integer_weights(TIMES, 0.5))
    parts = [*(821465411, 821465411, 2012171093, 1161727521, 821465411, 4294967296, 821465411), 1422819822]
    assert [part for _, part, _ in table] == [*parts, 821465411, 3807811313]
    assert "".join(alias for _, _, alias in table) == "fjjjjfjjjf"


@given(
    st.dictionaries(st.text(max_size=3), st.integers(0, 10**6), min_size=1, max_size=60), st.sampled_from((0.5, 1, 3))
)
def test_the_slots_of_an_alias_table_hold_the_weights(times, alpha):
    """Own parts and what aliases give, over all slots, are each node's share; each slot rounds down once, by 2**-32 of it."""
    weights = oracle_training.integer_weights(times, alpha)
    held = Counter()
    for own, part, alias in oracle_training.alias_table(weights):
        held[own] += part
        held[alias] += 2**32 - part
    for node_id, weight in weights.items():
        assert abs(held[node_id] - weight * len(weights) * 2**32 / sum(weights.values())) <= len(weights)


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 2**64 - 1), st.none() | st.floats(0.01, 10), st.data())
def test_a_draw_has_no_repeats_and_all_where_there_are_fewer(size, count, key, alpha, data):
    pool = tuple(f"n{place}" for place in range(size))
    if alpha is None:
        drawn = oracle_training.even_draw(pool, count, key)
    else:
        times = {node_id: data.draw(st.integers(0, 1000)) for node_id in pool}
        # At least one place beside the pool: the weights are the whole catalogue's.
        weights = oracle_training.integer_weights({**times, "beside": 3}, alpha)
        assert min(weights.values()) >= 1
        assert sum(weights.values()) < 2**32
        drawn = oracle_training.weighted_draw(pool, count, key, weights)
    assert len(drawn) == len({*drawn}) == min(size, count)
    assert {*drawn} <= {*pool}
    assert drawn == pool or size > count


MANY = 4_000


def many_keys() -> list[int]:
    return [oracle_training.draw_key(0, f"user {number % 40}", f"event {number}", "p") for number in range(MANY)]


def chi_square(found: Counter[Any], expected: dict[Any, float]) -> float:
    return sum((found[each] - wanted) ** 2 / wanted for each, wanted in expected.items())


@pytest.mark.parametrize(("size", "count"), [(2, 1), (10, 3), (30, 4), (52, 16), (17, 16)])
def test_even_draws_are_even(size, count):
    """Each node about equally often; 1 in 10,000 of such sums is above freedom + 6 * sqrt(2 * freedom) at these sizes."""
    pool = tuple(f"n{place:02}" for place in range(size))
    found = Counter(each for key in many_keys() for each in oracle_training.even_draw(pool, count, key))
    # Of a draw without repeats a node's share varies less than of one with, by the factor 1 - share.
    spread = chi_square(found, dict.fromkeys(pool, MANY * count / size)) / (1 - count / size) * (size - 1) / size
    assert spread < size - 1 + 6 * math.sqrt(2 * (size - 1))


def test_pairs_of_an_even_draw_are_even():
    """Not only each node: each set of two of five."""
    found = Counter(frozenset(oracle_training.even_draw(tuple("abcde"), 2, key)) for key in many_keys())
    assert len(found) == 10
    assert chi_square(found, dict.fromkeys(found, MANY / 10)) < 9 + 6 * math.sqrt(18)


@pytest.mark.parametrize("alpha", [0.5, 1, 2.5])
def test_a_weighted_draw_of_one_is_in_proportion(alpha):
    times = dict(zip("abcde", (0, 1, 3, 9, 20), strict=True))
    weights = oracle_training.integer_weights(times, alpha)
    found = Counter(oracle_training.weighted_draw((*times,), 1, key, weights)[0] for key in many_keys())
    total = sum((count + 1) ** alpha for count in times.values())
    expected = {each: MANY * (count + 1) ** alpha / total for each, count in times.items()}
    assert chi_square(found, expected) < 4 + 6 * math.sqrt(8)


def test_a_weighted_draw_of_two_is_one_after_the_other():
    """The first in proportion to the weights, the second to those of what the first left."""
    shares = {"a": 1 / 6, "b": 2 / 6, "c": 3 / 6}
    weights = oracle_training.integer_weights({"a": 0, "b": 1, "c": 2}, 1)
    found = Counter("".join(oracle_training.weighted_draw(("a", "b", "c"), 2, key, weights)) for key in many_keys())
    expected = {
        f"{one}{two}": MANY * shares[one] * shares[two] / (1 - shares[one])
        for one in shares
        for two in shares
        if one != two
    }
    assert chi_square(found, expected) < 5 + 6 * math.sqrt(10)


def test_equal_counts_make_equal_weights():
    assert {*oracle_training.integer_weights(dict.fromkeys("abcd", 3), 2.5).values()} == {(2**32 - 5) // 4 + 1}


# --------------------------------------------------------------------------------------------------------- negatives

SMALL = World(trips=(trip("t"), trip("later", JUNE), trip("k", MAY, "Kyoto")), nodes=nodes("abcdef"))


def test_what_is_rejected_is_what_was_selected_until_then():
    one, two = event("1", selected="ab"), event("2", selected="c")
    other, abroad = event("3", selected="d", user_id="bob"), event("4", selected="e")
    split_of = {"1": "train", "2": "valid", "3": "train", "4": "test"}
    events = exported(one, two, other, Kyoto=(abroad,))

    def rejected(each: ExportedEvent, reject: str = "seen") -> str:
        return "".join(sorted(oracle_training.rejected(each, events, split_of, Settings(reject=reject))))

    assert [rejected(each) for each in (one, two, other, abroad)] == ["ab", "abc", "d", "abce"]
    assert [rejected(each, "event") for each in (one, two, other, abroad)] == ["ab", "c", "d", "e"]


def test_popularity_is_of_train_alone_and_of_every_city():
    events = exported(event("1", "ab"), event("2", "a"), event("3", "a"), Kyoto=(event("4", "ac"),))
    split_of = {"1": "train", "2": "train", "3": "valid", "4": "train"}
    assert oracle_training.times_selected(events, split_of) == {"a": 3, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("negatives", "expected"),
    [
        (("ranking",), "d:ranking c:ranking"),
        (("shown",), "e:shown d:shown"),
        (("catalog:9",), "c:catalog f:catalog"),
        (("shown", "ranking"), "d:ranking c:ranking e:shown"),
        (("catalog:9", "ranking"), "d:ranking c:ranking f:catalog"),
        (("shown", "catalog:9"), "e:shown d:shown c:catalog f:catalog"),
        (("ranking", "shown", "catalog:9"), "d:ranking c:ranking e:shown f:catalog"),
    ],
)
def test_a_negative_of_several_sources_is_the_first_s(negatives, expected):
    found = oracle_training.negatives_of(
        event("e", selected="ab", candidates="dac", shown="edb"), negatives, drawn=("c", "f")
    )
    assert " ".join(f"{node_id}:{source}" for node_id, source in found.items()) == expected


def test_each_positive_meets_each_negative():
    made = oracle_training.training(SMALL, exported(event("e", "bx", "dab")), KEEP)
    assert pairs(made) == [
        *(("b", "d", "ranking"), ("b", "a", "ranking")),
        *(("x", "d", "ranking"), ("x", "a", "ranking")),
    ]
    assert [row.pos_in_candidates for row in made.triples["train", "Tokyo"]] == [True, True, False, False]
    assert (made.positives, made.left_out, made.by_source) == ({("train", "Tokyo"): 2}, {}, {"ranking": 4})


def test_catalogue_negatives_are_drawn_for_each_positive():
    """The whole of a pool that is no larger comes in ascending order."""
    options = replace(KEEP, negatives=("catalog:3",))
    made = oracle_training.training(SMALL, exported(event("e", "bax")), options)
    pool = ("c", "d", "e", "f")
    expected = [
        (positive, negative, "catalog")
        for positive in "bax"
        for negative in oracle_training.even_draw(pool, 3, oracle_training.draw_key(0, "ann", "e", positive))
    ]
    assert pairs(made) == expected
    assert len(expected) == 9
    all_of_them = oracle_training.training(
        SMALL, exported(event("e", "bax")), replace(options, negatives=("catalog:4",))
    )
    assert [negative for _, negative, _ in pairs(all_of_them)] == [*pool, *pool, *pool]


def test_what_other_sources_gave_is_drawn_all_the_same_and_not_repeated():
    """The draw is of three of four; one of them may be a candidate, and is no row of the catalogue's then."""
    options = replace(KEEP, negatives=("ranking", "catalog:3"))
    made = oracle_training.training(SMALL, exported(event("e", "ab", "ac")), options)
    for positive in "ab":
        drawn = oracle_training.even_draw(("c", "d", "e", "f"), 3, oracle_training.draw_key(0, "ann", "e", positive))
        of_catalog = [(positive, node_id, "catalog") for node_id in drawn if node_id != "c"]
        assert [each for each in pairs(made) if each[0] == positive] == [(positive, "c", "ranking"), *of_catalog]


def test_popular_nodes_are_drawn_more_often_only_by_what_is_train_s():
    """In test b is selected a thousand times, in train f: of the pool in train, b, d, e and f, it is f that comes."""
    options = replace(KEEP, negatives=("catalog:1",), catalog_alpha=10.0, split="time:2024-06-01")
    fans = [event(f"f{number}", "f", user_id=f"fan {number}") for number in range(30)]
    later = [event(f"l{number}", "b", user_id="later", created_at=JULY) for number in range(30)]
    made = oracle_training.training(SMALL, exported(event("e", "ac"), *fans, *later), options)
    assert [each for each in pairs(made) if each[0] in "ac"] == [("a", "f", "catalog"), ("c", "f", "catalog")]
    assert {negative for _, negative, _ in pairs(made, "test")} == {"f"}
    by_event = Counter(row.event_id for row in made.triples["test", "Tokyo"])
    assert by_event == dict.fromkeys((f"l{number}" for number in range(30)), 1)


def test_a_user_who_has_selected_the_whole_catalogue_is_told_apart():
    events = exported(
        *(event("1", "abc", "abd"), event("2", "defx"), event("3", "a", "a", user_id="bob")),
        Nowhere=(event("4", "z", user_id="bob"),),
    )
    catalog = oracle_training.training(SMALL, events, replace(KEEP, negatives=("catalog:2",)))
    assert catalog.left_out == {"whole_catalog_seen": 7, "no_negatives": 1}  # Nowhere has no catalogue to be seen
    assert catalog.users_with_whole_catalog_seen == {"ann"}
    assert catalog.positives == {("train", "Tokyo"): 1, ("train", "Nowhere"): 0}
    ranking = oracle_training.training(SMALL, events, KEEP)
    assert (ranking.left_out, ranking.users_with_whole_catalog_seen) == ({"no_negatives": 6}, set())
    assert ranking.positives["train", "Tokyo"] == 3
    event_alone = oracle_training.training(SMALL, events, replace(KEEP, negatives=("catalog:2",), reject="event"))
    assert event_alone.left_out == {"no_negatives": 1}


def test_a_seen_catalogue_with_other_negatives_leaves_nothing_out():
    """What the first day selected is a candidate of the second: a negative of ranking's, though not of the catalogue's."""
    events = exported(event("1", "abc"), event("2", "def", "c"))
    made = oracle_training.training(SMALL, events, replace(KEEP, negatives=("ranking", "catalog:2")))
    assert made.left_out == {"whole_catalog_seen": 3}
    assert pairs(made) == [("d", "c", "ranking"), ("e", "c", "ranking"), ("f", "c", "ranking")]


def test_a_city_left_out_has_its_events_and_no_triples():
    kyoto = (event("2", "xy", "k", trip_id="k"),)
    options = Settings(min_catalog=2, negatives=("ranking", "catalog:1"))
    made = oracle_training.training(SMALL, exported(event("1", "a", "ab"), Kyoto=kyoto), options)
    assert made.weights == {"Tokyo": 1.0, "Kyoto": None}
    assert {*made.triples} == {("train", "Tokyo")}
    assert {*made.events} == {("train", "Tokyo"), ("train", "Kyoto")}
    assert (made.positives["train", "Kyoto"], made.left_out) == (0, {"small_catalog": 2})
    assert {*made.signs} == {"Tokyo"}


def test_partitions_are_of_a_split_and_a_city():
    events = exported(
        *(event("1", "a", "abc"), event("2", "b", "bc", trip_id="later")),
        Kyoto=(event("3", "a", "ac", trip_id="k"),),
    )
    made = oracle_training.training(SMALL, events, replace(KEEP, split="last-trip"))
    assert made.split_of == {"3": "train", "1": "valid", "2": "test"}  # Kyoto in May's first hour, then Tokyo
    assert {place: len(rows) for place, rows in made.triples.items()} == {
        ("valid", "Tokyo"): 2,
        ("test", "Tokyo"): 1,
        ("train", "Kyoto"): 1,
    }


def test_a_shuffle_is_as_another_language_computes_it():
    made = oracle_training.training(SMALL, exported(event("e", "p", "n")), KEEP)
    (row,) = made.triples["train", "Tokyo"]
    assert oracle_training.shuffle_key(0, row) == 5941650265741368802
    other = replace(row, pos_item="\u00e9", neg_item="")
    assert oracle_training.shuffle_key(7, other) == 17900556177744679377


def test_a_shuffle_moves_rows_and_changes_none():
    events = exported(*(event(f"e{number}", "ab", "acdef") for number in range(9)))
    plain, shuffled = (
        oracle_training.training(SMALL, events, replace(KEEP, shuffle=shuffle)).triples["train", "Tokyo"]
        for shuffle in (False, True)
    )
    assert plain != shuffled
    assert Counter(plain) == Counter(shuffled)
    keys = [oracle_training.shuffle_key(0, row) for row in shuffled]
    assert keys == sorted(keys)


# ----------------------------------------------------------------------------------- the sign that needs no training


def numbers(text: str) -> list[Fraction]:
    return [Fraction(each) for each in text.split()]


def test_equal_values_share_the_mean_of_their_places():
    assert oracle_training.average_ranks(numbers("5 1 5 7 1 5")) == [4, 1.5, 4, 6, 1.5, 4]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("1 2 3", "10 20 1000", 1.0),
        ("1 2 3", "9 3 1", -1.0),
        ("1 2 3 4", "1 3 2 4", 0.8),  # 1 - 6 * 2 / (4 * 15)
        ("1 1 2", "1 2 3", math.sqrt(3) / 2),
        ("1 2", "1 2", None),
        ("", "", None),
        ("4 4 4", "1 2 3", None),
        ("1 2 3", "4 4 4", None),
    ],
)
def test_spearman(one, other, expected):
    found = oracle_training.spearman(numbers(one), numbers(other))
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_the_sign_is_of_train_over_the_catalogue():
    """a: 2 times positive (with c, and with d and e), b, z never named, c, d, e once negative each; popular is a alone."""
    world = World(nodes=nodes("abcde"))
    events = exported(
        *(event("1", "a", "ac"), event("2", "ax", "de")),
        event("3", "bbb", "bcde", created_at=JULY),
    )
    made = oracle_training.training(world, events, replace(KEEP, split="time:2024-06-01"))
    # ratios a (2 + 1 + 1) / 1, b 1 / 1, c 1 / 2, d and e 1 / 3 (x is a positive too); popularity 2, 0, 0, 0, 0
    expected = oracle_training.spearman(numbers("4 1 1/2 1/3 1/3"), numbers("2 0 0 0 0"))
    assert made.signs == {"Tokyo": pytest.approx(expected)}
    assert expected == pytest.approx(math.sqrt(0.5) * 1.02597835, rel=1e-6)


def test_a_city_without_triples_in_train_has_no_sign():
    made = oracle_training.training(SMALL, exported(event("1", "a")), KEEP)
    assert made.signs == {"Tokyo": None}


# ------------------------------------------------------------------------------------------- features beside the ids


def test_counts_are_of_train_alone():
    rows = [
        *(event("1", "ab", "abcd", trip_id="k"), event("2", "a", "ac"), event("3", "a", "ac", user_id="bob")),
        event("4", "abc", "abcdef", created_at=JULY),
    ]
    made = oracle_training.training(SMALL, exported(*rows), replace(KEEP, split="time:2024-06-01"))
    assert oracle_training.item_counts(made, "a") == oracle_training.ItemCounts(3, 3, 4, 0, 2)
    assert oracle_training.item_counts(made, "c") == oracle_training.ItemCounts(3, 0, 0, 4, 0)
    assert oracle_training.item_counts(made, "f") == oracle_training.ItemCounts(0, 0, 0, 0, 0)
    assert oracle_training.user_counts(made, "ann") == oracle_training.UserCounts(2, 2, 3, 5)
    assert oracle_training.user_counts(made, "bob") == oracle_training.UserCounts(1, 1, 1, 1)
    assert oracle_training.user_counts(made, "eve") == oracle_training.UserCounts(0, 0, 0, 0)


def test_trips_are_those_with_events():
    world = World(trips=(trip("b", "infinity"), trip("a", MAY, "Kyoto"), trip("c")))
    events = exported(event("1", trip_id="b"), event("2", trip_id="b"), Kyoto=(event("3", trip_id="a"),))
    assert oracle_training.trips_rows(world, events) == [
        ("a", "Kyoto", 1_714_521_600_000_000),
        ("b", "Tokyo", None),
    ]


# -------------------------------------------------------------------------------------------------------------- laws

ANY_WORLD = worlds(null_emails=True, wild_dates=True) | st.integers(0, 10**6).map(dense_world)
ANY_SETTINGS = run_settings() | st.integers(0, 10**6).map(dense_settings)


def trained(world: World, options: Settings) -> tuple[World, Exported, Training]:
    after = oracle.after_run(world, options, MODEL)
    events = oracle.exported(after, options)
    return after, events, oracle_training.training(after, events, options)


@settings(max_examples=60)
@given(ANY_WORLD, ANY_SETTINGS)
def test_every_event_has_one_split_and_none_is_lost(world, options):
    _, events, made = trained(world, options)
    ids = [row.event_id for rows in made.events.values() for row in rows]
    assert len({*ids}) == len(ids)
    assert {*ids} == {row.event_id for rows in events.cities.values() for row in rows}
    for city, rows in events.cities.items():
        assert Counter(rows) == Counter(
            each for (_, name), of_split in made.events.items() if name == city for each in of_split
        )
    if options.split == "none":
        assert {split for split, _ in made.events} <= {"train"}


@settings(max_examples=60)
@given(ANY_WORLD, ANY_SETTINGS)
def test_no_later_split_precedes_an_earlier_one_of_the_same_user(world, options):
    _, events, made = trained(world, options)
    start = {each.id: oracle_training.start_us(each.start_date) for each in world.trips}
    of_user: dict[str, list[tuple[Any, int]]] = {}
    for row in (each for rows in events.cities.values() for each in rows):
        moment = start[row.trip_id]
        by_trip = moment is not None, moment or 0, row.trip_id.encode()
        when = row.created_at if options.split.startswith("time:") else by_trip
        of_user.setdefault(row.user_id, []).append((when, SPLITS.index(made.split_of[row.event_id])))
    for rows in of_user.values():
        assert all(earlier[1] <= later[1] for earlier, later in pairwise(sorted(rows)))


@settings(max_examples=60)
@given(ANY_WORLD, ANY_SETTINGS)
def test_the_laws_of_triples(world, options):
    after, events, made = trained(world, options)
    of = {row.event_id: row for rows in events.cities.values() for row in rows}
    users = oracle.users_rows(after, options)
    items = oracle.items_rows(after, events)
    for (split, city), rows in made.triples.items():
        assert made.weights[city] is not None
        assert len({(row.event_id, row.pos_item, row.neg_item) for row in rows}) == len(rows)
        assert {made.split_of[row.event_id] for row in rows} == {split}
        assert all(row.pos_item in of[row.event_id].selected_ids for row in rows)
        assert not any(row.neg_item in of[row.event_id].selected_ids for row in rows)
        assert len(oracle.indexes(rows, users, items)) == len(rows)
        of_catalog = Counter((row.event_id, row.pos_item) for row in rows if row.neg_source == "catalog")
        assert all(times <= (oracle_training.catalog_size(options.negatives) or 0) for times in of_catalog.values())
        offered = {*oracle_training.catalogue(after, city)}
        assert all(row.neg_item in offered for row in rows if row.neg_source == "catalog")
    assert {*made.by_source} <= {name.split(":")[0] for name in options.negatives}


@settings(max_examples=60)
@given(ANY_WORLD, ANY_SETTINGS)
def test_the_account_adds_up(world, options):
    _, events, made = trained(world, options)
    selected = sum(len(row.selected_ids) for rows in events.cities.values() for row in rows)
    assert made.positives.total() + made.left_out.total() == (selected if "triples" in options.task else 0)
    in_triples = {(row.event_id, row.pos_item) for rows in made.triples.values() for row in rows}
    assert made.positives.total() == len(in_triples)
    assert made.by_source.total() == sum(map(len, made.triples.values()))
    assert bool(made.left_out["whole_catalog_seen"]) == bool(made.users_with_whole_catalog_seen)
    assert {*made.left_out} <= {*oracle_training.REASONS}
    ids = {row.item_id for row in oracle.items_rows(world, events)}
    counts = {item_id: oracle_training.item_counts(made, item_id) for item_id in ids}
    train = [row for (split, _), rows in made.triples.items() if split == "train" for row in rows]
    assert sum(each.n_positive for each in counts.values()) == len(train)
    assert sum(each.n_negative for each in counts.values()) == len(train)
    users = {row.user_id for rows in events.cities.values() for row in rows}
    assert sum(oracle_training.user_counts(made, user_id).n_triples for user_id in users) == len(train)


@settings(max_examples=60)
@given(ANY_WORLD, ANY_SETTINGS)
def test_no_row_of_a_later_split_informs_an_earlier_one(world, options):
    """Without the events of later splits, the same options make the same earlier triples, of the same splits."""
    after, events, made = trained(world, options)
    for last in ("train", "valid"):
        until = SPLITS.index(last)
        early = {
            city: [row for row in rows if SPLITS.index(made.split_of[row.event_id]) <= until]
            for city, rows in events.cities.items()
        }
        only = Exported({city: rows for city, rows in early.items() if rows})
        # The splits stay what they were: a user's last trip is another one where the last is gone.
        again = _with_splits(made.split_of, after, only, options)
        for partition, rows in made.triples.items():
            if SPLITS.index(partition[0]) <= until:
                assert again.triples[partition] == rows


def _with_splits(split_of: dict[str, str], world: World, events: Exported, options: Settings) -> Training:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oracle_training, "splits", lambda *_: split_of)
        return oracle_training.training(world, events, options)
