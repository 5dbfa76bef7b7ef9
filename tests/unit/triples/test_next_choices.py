"""What may be known before a selection, in time and by trip, and distances: cases worked out by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from etl.triples.next_choices import Coordinates, Distances, TripOrder, TripsOfPart
from etl.triples.selections import Selections
from etl.triples.splits import SPLIT

NODES = 10


def bucket(*events: tuple[int, int, int, int, str, list[int]]) -> pl.DataFrame:
    """Events of (user, trip, day, timestamp, part, selected), in file order."""
    names = {
        "user_idx": pl.UInt32,
        "trip_idx": pl.UInt32,
        "day_number": pl.Int32,
        "timestamp": pl.Int64,
        "split": SPLIT,
    }
    return pl.DataFrame(events, schema={**names, "selected_idx": pl.List(pl.UInt32)}, orient="row")


def by_trip(events: pl.DataFrame, starts: list[int | None], part: int) -> TripsOfPart:
    return TripOrder(Selections.of(events, NODES), pl.Series(starts, dtype=pl.Int64)).of_part(part)


def items_by_trip(events: pl.DataFrame, starts: list[int | None], part: int = 0) -> list[list[int]]:
    """The items that a part knows, trip by trip, in their order."""
    trips = by_trip(events, starts, part)
    items = trips.past.selections.items[trips.past.order]
    return [each.tolist() for each in np.split(items, np.unique(trips.trip_starts)[1:])]


def test_trips_are_in_the_order_of_start_and_id_and_an_infinite_start_comes_first():
    events = bucket((0, 0, 1, 0, "train", [1]), (0, 1, 1, 0, "train", [2]), (0, 2, 1, 0, "train", [3]))
    assert items_by_trip(events, [5, None, 5]) == [[2], [1], [3]]
    assert items_by_trip(events, [5, -(2**62), None]) == [[3], [2], [1]]
    assert items_by_trip(events, [7, 7, 7]) == [[1], [2], [3]]


def test_a_trip_s_choices_are_in_the_order_of_day_and_position_over_all_its_events():
    """Days that come late in time come where they belong; two events of one day take turns, the earlier one first."""
    events = bucket(
        *((0, 0, 2, 10, "train", [1, 2]), (0, 0, -3, 20, "train", [3, 4])),
        *((0, 0, 2, 30, "train", [5, 6, 7]), (0, 0, 1, 40, "train", [8])),
    )
    assert items_by_trip(events, [0]) == [[3, 4, 8, 1, 5, 2, 6, 7]]


def test_another_user_s_events_on_a_trip_are_a_trip_of_their_own():
    events = bucket((0, 0, 1, 10, "train", [1, 2]), (4, 0, 1, 5, "train", [3, 4]))
    assert items_by_trip(events, [0]) == [[1, 2], [3, 4]]


def test_a_trip_of_one_place_has_no_choice_and_an_event_without_any_is_no_step():
    events = bucket((0, 0, 1, 10, "train", []), (0, 0, 2, 20, "train", [1]), (0, 1, 1, 30, "train", []))
    trips = by_trip(events, [0, 0], 0)
    assert trips.trip_starts.tolist() == [0]
    assert items_by_trip(bucket(), [0]) == [[]]


def test_a_cut_within_a_trip_hides_the_days_behind_it_also_where_they_are_earlier_days():
    events = bucket((0, 0, 2, 10, "train", [1, 2]), (0, 0, 1, 20, "test", [3, 2]), (0, 0, 3, 30, "test", [4]))
    assert items_by_trip(events, [0], 0) == [[1, 2]]
    assert items_by_trip(events, [0], 2) == [[3, 2, 1, 2, 4]]
    assert by_trip(events, [0], 0).past.new.tolist() == [True, True]
    assert by_trip(events, [0], 2).past.new.tolist() == [True, True, True, False, True]


def test_in_time_an_item_is_new_once_in_each_part_that_does_not_know_of_the_others():
    """The test trip begins while a train trip is going on: what it selects is no news to test, and none of train's business."""
    events = bucket((0, 0, 1, 10, "test", [1, 2]), (0, 1, 9, 20, "train", [1, 3]), (0, 0, 2, 30, "test", [1, 3]))
    assert Selections.of(events, NODES).new.tolist() == [True, True, True, True, False, False]
    again = bucket(*((*row[:4], "train", *row[5:]) for row in events.rows()))
    assert Selections.of(again, NODES).new.tolist() == [True, True, False, True, False, False]


def test_history_counts_what_was_selected_strictly_before_and_the_days_since_the_last_of_it():
    events = bucket(
        *((0, 0, 1, 0, "train", [1, 2]), (0, 0, 2, 86_400, "train", [2])),
        *((0, 0, 3, 216_000, "train", [2, 3]), (3, 0, 1, 300_000, "train", [2])),
    )
    selections = Selections.of(events, NODES)
    ranks = selections.lists.ends[np.array([0, 2, 2, 3])]
    found = selections.in_time(0).history(
        selections.users[np.array([0, 2, 2, 3])],
        ranks,
        events["timestamp"].to_numpy()[[0, 2, 2, 3]],
        np.array([2, 2, 3, 2], np.uint32),
        np.array([1, 1, 9, 9], np.uint32),
    )
    assert found["pos_n_before"].tolist() == [0, 2, 0, 0]
    assert found["neg_n_before"].tolist() == [0, 1, 0, 0]
    np.testing.assert_array_equal(found["pos_days_since"], np.array([np.nan, 1.5, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(found["neg_days_since"], np.array([np.nan, 2.5, np.nan, np.nan], np.float32))
    assert [column.dtype for column in found.values()] == [np.int32, np.int32, np.float32, np.float32]


def test_an_overlapping_trip_s_later_days_are_no_days_ago():
    """An earlier trip by its start may go on after the choice: it counts, and its days are not negative."""
    events = bucket((0, 1, 1, 100, "train", [1, 2]), (0, 0, 30, 90_000, "train", [2]))
    past = by_trip(events, [0, 50], 0).past
    rank = past.ranks[1:2]
    found = past.history(
        np.zeros(1, np.int64), rank, np.array([100]), np.array([2], np.uint32), np.array([1], np.uint32)
    )
    assert (found["pos_n_before"].tolist(), found["pos_days_since"].tolist()) == ([1], [0.0])


HALF = 20_015.114  # half of the way round


@pytest.mark.parametrize(
    ("here", "there", "km"),
    [
        ((48.1, 11.5), (48.1, 11.5), 0.0),
        ((0.0, 0.0), (0.0, 1.0), 111.19508),
        ((0.0, 180.0), (0.0, -180.0), 0.0),
        ((0.0, 179.5), (0.0, -179.5), 111.19508),
        ((90.0, 0.0), (90.0, 123.0), 0.0),
        ((90.0, 0.0), (-90.0, 50.0), HALF),
        ((0.0, 0.0), (0.0, 180.0), HALF),
        ((12.0, 34.0), (-12.0, -146.0), HALF),
        ((52.5200, 13.4050), (48.8566, 2.3522), 877.464),  # Berlin, Paris
        *(((0.0, 0.0), bad, None) for bad in ((None, 0.0), (0.0, None), (float("nan"), 0.0), (0.0, float("inf")))),
        *((bad, (0.0, 0.0), None) for bad in ((90.0001, 0.0), (-91.0, 0.0), (0.0, 180.0001), (0.0, -181.0))),
    ],
)
def test_distances(here, there, km):
    items = pl.DataFrame([here, there], schema={"latitude": pl.Float64, "longitude": pl.Float64}, orient="row")
    places = Coordinates.of(items)
    # Few pairs are worked out one by one, many are looked up in a table of all pairs.
    for times, has_table in ((1, False), (20, True)):
        distances = Distances.of(places, np.arange(2), times)
        assert (distances.table is not None) == has_table
        found = distances.km(np.zeros((times, 1), np.int64), np.ones((1, 1), np.int64)).ravel()
        assert found.dtype == np.float32
        if km is None:
            assert np.isnan(found).all()
        else:
            assert found == pytest.approx(np.full(len(found), km), rel=1e-6, abs=1e-6)
