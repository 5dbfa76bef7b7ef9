"""The synthetic world has the design's size, behaves as it says, and is the same whenever it is made again."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import polars as pl
import pytest

from etl.runtime.resources import resource
from etl.synthetic.tables import SCHEMAS
from etl.synthetic.world import WorldChunk, generate

MODEL = json.loads(resource("affinity-model.json").read_text(encoding="utf-8"))
PROFILE = json.loads(resource("world.json").read_text(encoding="utf-8"))
REFERENCE = pl.lit(PROFILE["reference_date"]).str.to_datetime("%Y-%m-%d", time_unit="ms")
SELECTED = ["confirmed", "active", "completed"]
TABLES = list(SCHEMAS)


def whole(**settings) -> WorldChunk:
    chunks = list(generate(**settings))
    return {name: pl.concat([chunk[name] for chunk in chunks]) for name in TABLES}


@pytest.fixture(scope="module")
def world() -> WorldChunk:
    return whole(scale=1, seed=0)


@pytest.fixture(scope="module")
def shadow_trips(world) -> pl.DataFrame:
    shadow = world["User"].filter(pl.col("email").str.starts_with("shadow-"))
    return world["Trip"].join(shadow.select(userId="id"), on="userId", how="semi")


@pytest.fixture(scope="module")
def tame_trips(shadow_trips) -> pl.DataFrame:
    """Trips whose seed is an object with all labels, the seed parsed."""
    labels = pl.Struct(dict.fromkeys(PROFILE["persona"], pl.String) | {"cuisine_openness": pl.Float64})
    vector = pl.Struct(dict.fromkeys(MODEL["categories"], pl.Float64))
    seed = pl.col("personaSeed")
    objects = shadow_trips.filter(seed.str.starts_with("{"))
    parsed = objects.with_columns(
        seed.str.json_decode(labels).struct.unnest(),
        affinities=seed.str.json_path_match("$.category_affinities").str.json_decode(vector),
    )
    return parsed.filter(pl.all_horizontal(pl.col(*PROFILE["persona"], "cuisine_openness").is_not_null()))


@pytest.fixture(scope="module")
def tame_slots(world, tame_trips) -> pl.DataFrame:
    """Slots of those trips, each with its trip, its category and the user's affinity (null where the seed has none)."""
    vectors = tame_trips.select("userId", pl.col("affinities").struct.unnest()).unique("userId")
    liking = vectors.unpivot(index="userId", variable_name="category", value_name="affinity")
    nodes = world["ActivityNode"].select("category", activityNodeId="id")
    slots = world["ItinerarySlot"].join(tame_trips.rename({"id": "tripId"}), on="tripId")
    return slots.join(nodes, on="activityNodeId").join(liking, on=["userId", "category"], how="left")


def near(value: float, expected: float, tolerance: float = 0.03) -> bool:
    return math.isclose(value, expected, rel_tol=tolerance)


# Size


def test_there_are_747_shadow_users_with_an_ordinary_seed(tame_trips):
    assert tame_trips["userId"].n_unique() == 747


def test_trips_slots_signals_and_days_have_the_designs_counts(world, tame_trips, tame_slots, shadow_trips):
    signals = world["BehavioralSignal"].join(tame_trips.select(tripId="id"), on="tripId", how="semi")
    assert near(len(tame_trips), 2_744)
    assert near(len(tame_slots), 85_000)
    assert near(len(signals), 220_000)
    assert near(tame_slots.select("tripId", "dayNumber").n_unique(), 15_000)
    # With the users of wild seeds on top the counts still hold.
    assert near(len(shadow_trips), 2_744)
    assert near(len(world["ItinerarySlot"].join(shadow_trips, left_on="tripId", right_on="id", how="semi")), 85_000)
    assert near(world["BehavioralSignal"]["userId"].is_in(shadow_trips["userId"].unique().implode()).sum(), 220_000)


def test_three_to_four_of_five_to_six_slots_a_day_are_selected(tame_slots):
    days = tame_slots.select("tripId", "dayNumber").n_unique()
    assert near(len(tame_slots) / days, 5.6)
    assert 3.0 <= tame_slots["status"].is_in(SELECTED).sum() / days <= 4.0


def test_the_catalogue_has_20_72_and_73_eligible_nodes_and_some_archived(world):
    nodes = world["ActivityNode"]
    live = nodes.filter(pl.col("status") != "archived")
    assert dict(live["city"].value_counts().iter_rows()) == {"Tokyo": 20, "New York": 72, "Mexico City": 73}
    assert dict(nodes.filter(pl.col("status") == "archived")["city"].value_counts().iter_rows()) == {
        "Tokyo": 2,
        "New York": 3,
        "Mexico City": 3,
    }
    assert live.group_by("city").agg(pl.col("category").n_unique())["category"].to_list() == [11, 11, 11]
    assert set(nodes["status"]) == {"approved", "pending", "flagged", "archived"}
    assert live["status"].value_counts(normalize=True).filter(status="approved")["proportion"].item() > 0.9
    assert nodes.select("city", "name").n_unique() == len(nodes)


def test_trips_and_days_follow_the_pace(tame_trips, tame_slots):
    synonyms = MODEL["label_synonyms"]["pace"]
    pace = pl.col("pace").replace_strict(synonyms)
    per_user = tame_trips.group_by("userId", pace).len()
    per_day = tame_slots.group_by("tripId", "dayNumber", pace).len()
    for counts, what in ((per_user, "trips_per_user_by_pace"), (per_day, "slots_per_day_by_pace")):
        for label, bounds in MODEL["world"][what].items():
            found = counts.filter(pace=label)["len"]
            assert [found.min(), found.max()] == bounds


def test_every_user_travels_to_several_cities(shadow_trips):
    assert shadow_trips.group_by("userId").agg(pl.col("city").n_unique())["city"].min() >= 2


# Shape


def test_columns_and_types_are_those_that_copy_needs(world):
    text, time = pl.String, pl.Datetime("ms")
    assert world["User"].schema == {"id": text, "email": text}
    assert world["Trip"].schema["startDate"] == world["Trip"].schema["createdAt"] == time
    assert world["Trip"].schema["personaSeed"] == text
    assert world["ItinerarySlot"].schema["dayNumber"] == world["ItinerarySlot"].schema["sortOrder"] == pl.Int32
    assert world["ActivityNode"].schema["latitude"] == world["ActivityNode"].schema["longitude"] == pl.Float64
    assert world["BehavioralSignal"].schema == dict.fromkeys(
        ["id", "userId", "tripId", "slotId", "activityNodeId", "signalType", "modelVersion"], text
    )
    assert world["PersonaDimension"].schema["confidence"] == pl.Float64
    events = world["RankingEvent"].schema
    assert all(
        events[name] == pl.List(text) for name in ("candidateIds", "rankedIds", "selectedIds", "shadowRankedIds")
    )
    assert events["latencyMs"] == events["dayNumber"] == pl.Int32


def test_ids_are_unique_uuids(world):
    for name in TABLES:
        ids = world[name]["id"]
        assert ids.n_unique() == len(ids) > 0
        assert ids.str.contains(r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$").all()


def test_every_reference_has_its_row(world):
    parents = {"userId": "User", "tripId": "Trip", "slotId": "ItinerarySlot", "activityNodeId": "ActivityNode"}
    for name, (column, parent) in itertools.product(TABLES, parents.items()):
        frame = world[name]
        if column in frame.columns:
            assert frame[column].drop_nulls().is_in(world[parent]["id"].implode()).all(), (name, column)
    whose = world["BehavioralSignal"].join(world["Trip"], left_on="tripId", right_on="id")
    assert (whose["userId"] == whose["userId_right"]).all()
    where = world["BehavioralSignal"].join(world["ItinerarySlot"], left_on="slotId", right_on="id")
    assert (where["tripId"] == where["tripId_right"]).all()


def test_nodes_are_of_the_trips_city_and_not_archived(world):
    slots = world["ItinerarySlot"].join(world["ActivityNode"], left_on="activityNodeId", right_on="id")
    slots = slots.join(world["Trip"], left_on="tripId", right_on="id", suffix="_trip")
    assert (slots["city"] == slots["city_trip"]).all()
    assert (slots["status_right"] != "archived").all()


def test_only_words_of_the_enums_occur(world):
    assert set(world["ItinerarySlot"]["status"]) == {"proposed", "voted", "confirmed", "active", "completed", "skipped"}
    assert set(world["ActivityNode"]["category"]) == set(MODEL["categories"])
    assert set(world["BehavioralSignal"]["signalType"]) == {
        "view",
        "confirm",
        "complete",
        "dwell",
        "skip",
        "loved",
        "disliked",
    }


def test_days_and_places_within_a_day_are_counted_without_gaps(world):
    places = world["ItinerarySlot"].group_by("tripId", "dayNumber").agg(pl.len(), pl.col("sortOrder"))
    assert (places["sortOrder"].list.sort() == places.select(pl.int_ranges("len", dtype=pl.Int32)).to_series()).all()
    days = world["ItinerarySlot"].group_by("tripId").agg(pl.col("dayNumber").unique().sort())
    assert (days["dayNumber"].list.first() == 1).all()
    assert (days["dayNumber"].list.last() == days["dayNumber"].list.len()).all()


# Behaviour


def test_no_node_comes_twice_on_a_day(world):
    slots = world["ItinerarySlot"].drop_nulls("activityNodeId")
    assert not slots.select("tripId", "dayNumber", "activityNodeId").is_duplicated().any()


def test_no_node_comes_twice_in_a_trip_while_the_city_has_nodes_left(tame_slots):
    nodes = pl.col("city").replace_strict({"Tokyo": 20, "New York": 72, "Mexico City": 73})
    trips = tame_slots.group_by("tripId", "city").agg(pl.len(), distinct=pl.col("activityNodeId").n_unique())
    assert (trips["len"] > trips.select(nodes).to_series()).any()
    short = trips.filter(pl.col("len") < nodes)
    assert (short["len"] == short["distinct"]).all()
    # A long trip shows the whole city; a swap may then take one or the other node out again.
    assert (trips.filter(pl.col("len") > nodes).select(nodes - pl.col("distinct")).to_series() <= 4).all()


def test_what_is_liked_is_shown_and_confirmed_more_often(tame_slots):
    known = tame_slots.drop_nulls("affinity").filter(pl.col("status").is_in(["completed", "skipped", "proposed"]))
    means = dict(known.group_by("status").agg(pl.col("affinity").mean()).iter_rows())
    assert means["completed"] > means["proposed"] + 0.1
    assert means["completed"] > means["skipped"] + 0.1
    ranks = known.select(pl.corr("affinity", pl.col("status") == "completed", method="spearman"))
    assert ranks.item() > 0.3
    rates = known.group_by((pl.col("affinity") * 5).floor()).agg(pl.col("status").eq("completed").mean())
    assert rates.sort("affinity")["status"].is_sorted()


def test_slots_are_confirmed_with_the_probability_that_the_rules_say(tame_slots):
    slots = tame_slots.drop_nulls("affinity").with_columns(taken=pl.col("status").is_in(SELECTED))
    expected = pl.col("affinity") * (1 - 0.05 * (pl.col("dayNumber") - 3).abs())
    # Swaps are always taken, and about one slot in 150 is one.
    assert slots.select(pl.col("taken").mean() - expected.mean()).item() == pytest.approx(0.003, abs=0.006)
    by_day = slots.group_by("dayNumber").agg(pl.col("taken").sum() / pl.col("affinity").sum()).sort("dayNumber")
    assert by_day["taken"][:7].to_list() == pytest.approx([0.9, 0.95, 1, 0.95, 0.9, 0.85, 0.8], abs=0.03)
    left = slots.filter(~pl.col("taken"))
    assert left["status"].eq("skipped").mean() == pytest.approx(0.15 * 0.9, abs=0.01)


def test_affinities_are_the_additive_models_with_a_jitter_of_005(tame_trips):
    users = tame_trips.unique("userId").drop_nulls("affinities")
    off = []
    for row in users.iter_rows(named=True):
        label = {axis: MODEL["label_synonyms"][axis][row[axis]] for axis in PROFILE["persona"]}
        for category, value in row["affinities"].items():
            plain = MODEL["base_by_primary_interest"][label["primary_interest"]][category]
            plain += MODEL["delta_by_pace"][label["pace"]].get(category, 0)
            plain += MODEL["delta_by_budget"][label["budget_tier"]].get(category, 0)
            plain += MODEL["delta_by_social_mode"][label["social_mode"]].get(category, 0)
            plain += MODEL["delta_by_time_orientation"][label["time_orientation"]].get(category, 0)
            low, high = MODEL["clamp"]
            assert low <= value <= high
            if low + 0.2 < plain < high - 0.2:
                off.append(value - plain)
    assert np.mean(off) == pytest.approx(0, abs=0.003)
    assert np.std(off) == pytest.approx(0.05, abs=0.003)


def test_signals_follow_from_the_status(world):
    real = world["User"].filter(~pl.col("email").str.starts_with("shadow-")).select(userId="id")
    signals = world["BehavioralSignal"].join(real, on="userId", how="anti")
    kinds = signals.join(world["ItinerarySlot"].select("status", "activityNodeId", slotId="id"), on="slotId")
    same = pl.col("activityNodeId") == pl.col("activityNodeId_right")
    kinds = kinds.group_by("slotId", "status").agg(
        pl.col("signalType").filter(same).alias("here"), pl.col("signalType").filter(~same).alias("swapped")
    )
    assert kinds["here"].list.contains("view").all()
    assert set(kinds["swapped"].list.sort().list.join(" ")) == {"", "skip view"}
    swapped = kinds.filter(pl.col("swapped").list.len() > 0)
    assert swapped["status"].is_in(SELECTED).all()
    skips = (kinds["status"] == "skipped").sum()
    assert len(swapped) / (skips + len(swapped)) == pytest.approx(0.1, abs=0.02)
    for signal, statuses in {"skip": ["skipped"], "confirm": SELECTED, "complete": ["completed"]}.items():
        assert (kinds["here"].list.contains(signal) == kinds["status"].is_in(statuses)).all(), signal
    for signal in ("dwell", "loved", "disliked"):
        assert kinds.filter(pl.col("here").list.contains(signal))["status"].unique().to_list() == ["completed"]


def test_a_swap_brings_a_category_that_the_user_likes_more(world, tame_slots):
    skipped = (
        world["BehavioralSignal"]
        .filter(signalType="skip")
        .join(tame_slots.select("affinity", "userId", slotId="id", chosen="activityNodeId"), on=["slotId", "userId"])
    )
    swaps = skipped.filter(pl.col("chosen") != pl.col("activityNodeId")).drop_nulls("affinity")
    nodes = world["ActivityNode"].select("category", activityNodeId="id")
    before = tame_slots.unique(["userId", "category"]).select("userId", "category", before="affinity")
    swaps = swaps.join(nodes, on="activityNodeId").join(before, on=["userId", "category"])
    assert len(swaps) > 300
    assert (swaps["affinity"] > swaps["before"]).all()


def test_the_reference_date_decides_what_is_over(world):
    date = pl.col("startDate") + pl.duration(days=pl.col("dayNumber") - 1)
    last = world["ItinerarySlot"].group_by("tripId").agg(end=pl.col("dayNumber").max())
    trips = world["Trip"].rename({"id": "tripId"}).join(last, on="tripId")
    slots = world["ItinerarySlot"].join(trips, on="tripId").with_columns(date=date)
    assert slots.filter(status="completed").select((pl.col("date") < REFERENCE).all()).item()
    assert slots.filter(status="active").select((pl.col("date") == REFERENCE).all()).item()
    assert slots.filter(status="confirmed").select((pl.col("date") > REFERENCE).all()).item()
    over = pl.col("startDate") + pl.duration(days=pl.col("end")) <= REFERENCE
    assert 0.85 < trips.select(over.mean()).item() < 0.97
    felt = world["BehavioralSignal"].filter(pl.col("signalType").is_in(["loved", "disliked"])).join(trips, on="tripId")
    assert felt.select(over.all()).item()
    assert slots.filter(status="voted").select((~over).all()).item()


def test_trips_lie_in_two_years_one_after_the_other_and_are_planned_ahead(world):
    trips = world["Trip"]
    assert trips.select((pl.col("createdAt") < pl.min_horizontal("startDate", REFERENCE)).all()).item()
    assert trips.select((pl.col("startDate") >= REFERENCE - pl.duration(days=730)).all()).item()
    assert trips.select((pl.col("startDate") <= REFERENCE + pl.duration(days=45)).all()).item()
    gaps = trips.sort("userId", "startDate").select(pl.col("startDate").diff().over("userId")).to_series().drop_nulls()
    assert gaps.dt.total_days().min() > 9


# As found in the wild


def test_seeds_are_found_in_every_wild_kind(shadow_trips, tame_trips):
    seeds = shadow_trips.group_by("userId").agg(pl.col("personaSeed").unique())
    assert (seeds["personaSeed"].list.len() == 1).all()
    wild = seeds.join(tame_trips, on="userId", how="anti")["personaSeed"].list.first()
    assert len(wild) == 20
    assert wild.null_count() == 4
    parsed = [json.loads(seed) for seed in wild.drop_nulls()]
    assert {type(seed) for seed in parsed} == {type(None), str, list, dict}
    assert {frozenset(seed) for seed in parsed if isinstance(seed, dict)} == {
        frozenset({"pace", "social_mode"}),
        frozenset({"primary_interest", "cuisine_openness", "category_affinities"}),
    }


def test_some_ordinary_seeds_lack_affinities_and_some_have_legacy_labels(tame_trips):
    users = tame_trips.unique("userId")
    assert 0.02 < users["affinities"].is_null().mean() < 0.1
    for column, label in {"pace": "leisurely", "budget_tier": "flexible", "social_mode": "solo_or_couple"}.items():
        assert 0.005 < (users[column] == label).mean() < 0.1, label


def test_real_emails_almost_match_the_prefix(world):
    real = world["User"].filter(~pl.col("email").str.starts_with("shadow-"))["email"]
    assert len(real) == 60
    for almost in ("Shadow-", "shadow_", "xshadow-", "shadow.", "shadow\u2010"):
        assert real.str.starts_with(almost).any(), almost
    assert world["User"]["email"].n_unique() == len(world["User"])
    assert world["User"]["email"].null_count() == 0


def test_real_users_alone_have_persona_and_ranking_rows_and_model_versions(world):
    shadow = world["User"].filter(pl.col("email").str.starts_with("shadow-"))["id"].implode()
    for frame in (world["PersonaDimension"], world["RankingEvent"]):
        assert len(frame) > 0
        assert not frame["userId"].is_in(shadow).any()
    mine = world["BehavioralSignal"]["userId"].is_in(shadow)
    assert world["BehavioralSignal"].filter(mine)["modelVersion"].is_null().all()
    assert world["BehavioralSignal"].filter(mine).select(pl.col("tripId", "slotId", "activityNodeId").null_count()).row(
        0
    ) == (0, 0, 0)
    theirs = world["BehavioralSignal"].filter(~mine)
    assert theirs["modelVersion"].is_null().mean() == pytest.approx(0.5, abs=0.05)
    assert theirs["slotId"].null_count() > 0
    assert theirs["activityNodeId"].null_count() > 0


def test_real_persona_rows_are_whole(world):
    rows = world["PersonaDimension"]
    assert not rows.select("userId", "dimension").is_duplicated().any()
    assert (rows.group_by("userId").len()["len"] == 8).all()
    assert rows.null_count().sum_horizontal().item() == 0
    for text in rows.filter(dimension="category_affinities")["value"]:
        assert set(json.loads(text)) == set(MODEL["categories"])


def test_real_events_rank_twenty_candidates_and_say_what_was_taken(world):
    events = world["RankingEvent"]
    assert (events["candidateIds"].list.n_unique() == 20).all()
    assert (events["rankedIds"].list.sort() == events["candidateIds"]).all()
    assert set(events["surface"]) == {"itinerary", "discovery", "pivot"}
    assert 0 < events["shadowRankedIds"].null_count() < len(events)
    assert (events["shadowRankedIds"].is_null() == events["shadowModelName"].is_null()).all()
    taken = world["ItinerarySlot"].filter(pl.col("status").is_in(SELECTED)).drop_nulls("activityNodeId")
    taken = taken.group_by("tripId", "dayNumber").agg(pl.col("activityNodeId").sort_by("sortOrder"))
    both = events.join(taken, on=["tripId", "dayNumber"], how="left")
    assert (both["selectedIds"] == both["activityNodeId"].fill_null([])).all()
    assert not events.select("tripId", "dayNumber").is_duplicated().any()


# Seeds, scales, chunks


def test_the_same_seed_gives_the_same_world_and_another_another():
    first, again, other = (whole(scale=0.05, seed=seed) for seed in (3, 3, 4))
    for name in TABLES:
        assert first[name].equals(again[name]), name
        assert not first[name]["id"].is_in(other[name]["id"].implode()).any(), name


def test_a_chunk_has_at_most_a_thousand_users_and_the_first_the_catalogue():
    chunks = list(generate(scale=2.5))
    assert [len(chunk["ActivityNode"]) for chunk in chunks] == [173, 0, 0]  # the real users, two blocks of shadow users
    assert max(len(chunk["User"]) for chunk in chunks) == 1_000
    trips = [chunk["Trip"]["userId"].is_in(chunk["User"]["id"].implode()).all() for chunk in chunks]
    assert trips == [True, True, True]


def test_a_small_world_has_a_user_of_every_kind():
    world = whole(scale=0.001)
    assert len(world["User"]) == 1 + len(PROFILE["wild_seeds"]) + PROFILE["users"]["fewest_real"]
    assert all(len(world[name]) > 0 for name in TABLES)
    assert len(world["ActivityNode"]) == 173
