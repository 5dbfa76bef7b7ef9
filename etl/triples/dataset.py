"""What a snapshot is made of: ranking events, trips, users and items. Triples are generated from these alone.

The columns of triples are in `etl.snapshots.encoding`.

Events refer to users, trips and items by index, and are read by user bucket (`etl.transform.buckets`). Everything else
is much smaller and held in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.runtime.files import FileInfo
from etl.transform.buckets import BucketSpill
from etl.transform.hashing import update_with_frame
from etl.transform.ranking_events import eligible
from etl.transform.schemas import ARCHIVED
from etl.triples.vocabulary import IdEncoder, Vocabulary, assign_indexes, remap_codes

_DIMENSIONS = (
    "pace_preference",
    "budget_sensitivity",
    "cuisine_openness",
    "social_mode",
    "time_orientation",
    "primary_interest",
    "trip_count",
    "category_affinities",
)
"""The order of their columns in `users.parquet`."""

LISTS = {name: name.replace("_ids", "_idx") for name in ("candidate_ids", "ranked_ids", "selected_ids", "shown_ids")}
"""The columns of lists of items, and their names when they hold indexes."""

ENCODED_EVENTS = pl.DataFrame(
    schema={
        "event_id": pl.String,
        "user_idx": pl.UInt32,
        "trip_idx": pl.UInt32,
        "day_number": pl.Int32,
        "timestamp": pl.Int64,
        "surface": pl.String,
        "model_name": pl.String,
        "model_version": pl.String,
        **dict.fromkeys(LISTS.values(), pl.List(pl.UInt32)),
        "city": pl.String,
    }
)
"""No events, with the columns of `Dataset.events`: ids are indexes."""

PRESENT, GONE = "present", "gone"
"""`status`: a user of the audience is PRESENT; a user or item that only an earlier vocabulary or an event has is GONE."""


@dataclass(frozen=True)
class ReusableEventFiles:
    """Files of events by city that a run without a split, with `rows_per_file`, would write again with the same bytes."""

    files: Mapping[str, Sequence[FileInfo]]
    rows_per_file: int


@dataclass(frozen=True)
class BucketedEvents:
    """The events of a dataset by user bucket. They may be iterated more than once.

    A bucket's frame has the columns of ENCODED_EVENTS and all events of the bucket's users, in file order. `cities` are
    the cities with events, in byte order; `height` is the number of events. `read` takes the columns that are needed
    and may leave the others empty. `published` has event files that can be copied; None if there are none. `sha256` is a
    hash of the events; None if it is not known.
    """

    buckets: int
    cities: tuple[str, ...]
    height: int
    read: Callable[[Collection[str]], Iterator[pl.DataFrame]]
    published: ReusableEventFiles | None = None
    sha256: str | None = None
    columns: tuple[str, ...] = tuple(ENCODED_EVENTS.columns)

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return self.read(self.columns)

    def select(self, columns: Collection[str]) -> BucketedEvents:
        """Return a copy that reads only `columns`."""
        return replace(self, columns=tuple(columns))

    @classmethod
    def of(cls, events: pl.DataFrame) -> BucketedEvents:
        """Wrap a frame as one bucket."""
        cities = tuple(events["city"].unique().sort())
        return cls(1, cities, events.height, lambda _: iter([events]))


def no_events(_: Collection[str]) -> Iterator[pl.DataFrame]:
    """A `BucketedEvents.read` of a dataset whose events are elsewhere."""
    return iter(())


@dataclass(frozen=True)
class Dataset:
    """What is published, before it is partitioned by split and city.

    `users`, `items` and `trips` have one row per id in index order. Users and items of an earlier vocabulary come
    first; the others follow, sorted by id. `trips` are those that have an event, sorted by id: `trip_id`, `city`,
    `start_us` (null if infinite). `users` always has `user_id`; its other columns may be missing. `user_features`
    yields all published columns.
    """

    events: BucketedEvents
    users: pl.DataFrame
    items: pl.DataFrame
    trips: pl.DataFrame
    read_user_features: Callable[[], Iterator[pl.DataFrame]] | None = None

    def user_features(self) -> Iterator[pl.DataFrame]:
        """Yield the users with all columns, in order, some at a time; at least one frame."""
        return self.read_user_features() if self.read_user_features is not None else iter([self.users])

    def eligible_items(self) -> pl.DataFrame:
        """The items that can be recommended, one row each."""
        return self.items.filter(~pl.col("status").is_in([ARCHIVED, GONE]))

    @property
    def eligible(self) -> dict[str, int]:
        """The number of eligible items of each city."""
        return dict(self.eligible_items().group_by("city").len().sort("city").iter_rows())

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids in index order."""
        return Vocabulary(self.users["user_id"], self.items["item_id"], self.trips["trip_id"])


class DatasetBuilder:
    """Collects events, bucket by bucket, and builds a dataset of them.

    Ids are first numbered in the order in which they occur. When the vocabularies are complete, reading the events
    replaces these numbers by indexes.
    """

    def __init__(self, spill: BucketSpill) -> None:
        self._spill = spill
        self._users, self._trips, self._nodes = IdEncoder(), IdEncoder(), IdEncoder()
        self._named = np.zeros(0, np.bool_)
        self._of_trips: list[pl.DataFrame] = []
        self._cities: set[str] = set()
        self._height = 0
        self._digest = hashlib.sha256()

    def encode(self, nodes: pl.Series) -> pl.Series:
        """Encode a column of node ids, or of lists of them."""
        return self._nodes.encode(nodes)

    def add(self, bucket: int, events: pl.DataFrame) -> None:
        """Add all events of a bucket: `schemas.Events` with `shown_ids`, in file order.

        Nodes are strings, Enums, or what `encode` returned for them.
        """
        lists = {name: events[name] for name in LISTS}
        codes = {n: lst if lst.dtype == pl.List(pl.UInt32) else self.encode(lst) for n, lst in lists.items()}
        for each in codes.values():
            self._name(each.explode(empty_as_null=False).to_numpy())
        coded = events.with_columns(
            self._users.encode(events["user_id"]).alias("user_idx"),
            self._trips.encode(events["trip_id"]).alias("trip_idx"),
            *(codes[name].alias(index) for name, index in LISTS.items()),
            timestamp=pl.col("created_us").floordiv(1_000_000),
        )
        # The published trips are those that have events, rebuilt from these. Of several cities, the first event's is kept.
        of_trips = events.select("trip_id", "city", "start_us")
        self._of_trips.append(of_trips.unique("trip_id", keep="first", maintain_order=True))
        self._cities.update(events["city"].unique())
        self._height += events.height
        of_bucket = coded.select(ENCODED_EVENTS.columns)
        update_with_frame(self._digest, of_bucket)
        self._spill.append_bucket(of_bucket, bucket)

    def _name(self, codes: npt.NDArray[np.uint32]) -> None:
        """Record that an event names these nodes."""
        if len(self._named) < len(self._nodes):
            self._named = np.concatenate([self._named, np.zeros(len(self._nodes) - len(self._named), np.bool_)])
        self._named[codes] = True

    def dataset(self, users: pl.DataFrame, personas: pl.DataFrame, nodes: pl.DataFrame, earlier: Vocabulary) -> Dataset:
        """Build the dataset from an audience's users and personas, the catalogue, and the events that were added."""
        # Nodes of slots were encoded, too. Only those that an event names are published.
        self._name(np.zeros(0, np.uint32))
        named = self._nodes.ids.filter(pl.Series(self._named))
        items = _items(named, nodes, earlier.items)
        vocabulary = _users(users, personas, nodes["category"].unique().sort(), earlier.users)
        of_trips = [
            pl.DataFrame(schema={"trip_id": pl.String, "city": pl.String, "start_us": pl.Int64}),
            *self._of_trips,
        ]
        trips = pl.concat(of_trips).unique("trip_id", keep="first", maintain_order=True).sort("trip_id")
        indexes = {
            "user_idx": self._users.positions_in(vocabulary["user_id"]),
            "trip_idx": self._trips.positions_in(trips["trip_id"]),
            **dict.fromkeys(LISTS.values(), self._nodes.positions_in(items["item_id"])),
        }

        def read(_: Collection[str]) -> Iterator[pl.DataFrame]:
            for bucket in range(self._spill.buckets):
                yield remap_codes(self._spill.read_bucket(bucket), indexes)

        # What the numbers of the events stand for.
        for each in (self._users, self._trips, self._nodes):
            update_with_frame(self._digest, each.ids.to_frame("id"))
        cities, sha256 = tuple(sorted(self._cities, key=str.encode)), self._digest.hexdigest()
        events = BucketedEvents(self._spill.buckets, cities, self._height, read, sha256=sha256)
        return Dataset(events, vocabulary, items, trips)


def _users(users: pl.DataFrame, personas: pl.DataFrame, categories: pl.Series, earlier: pl.Series) -> pl.DataFrame:
    """One row per user of the audience or of the earlier vocabulary, with the user's rows of PersonaDimension as columns.

    The columns are the eight dimensions, the confidence and the source of each, and the affinity for each category that a node
    has; null without such a row. `cuisine_openness` and the affinities are numbers.
    """
    by_user = personas.group_by("user_id").agg(
        pl.col(column).filter(pl.col("dimension") == dimension).first().alias(dimension + suffix)
        for column, suffix in (("value", ""), ("confidence", "_confidence"), ("source", "_source"))
        for dimension in _DIMENSIONS
    )
    wide = assign_indexes(earlier, users["user_id"], "user_idx").join(
        by_user, on="user_id", how="left", maintain_order="left"
    )
    here = pl.col("user_id").is_in(users["user_id"].implode())
    openness = pl.col("cuisine_openness").cast(pl.Float64, strict=False)
    return wide.with_columns(
        pl.when(openness.is_finite()).then(openness).alias("cuisine_openness"),
        *_affinities(wide["category_affinities"], categories),
        status=pl.when(here).then(pl.lit(PRESENT)).otherwise(pl.lit(GONE)),
    )


def _affinities(values: pl.Series, categories: pl.Series) -> list[pl.Series]:
    """The affinity for each category, one column each; null if it has none, or is no JSON."""
    # Parsed by Python's own reader: a category may have any name, and other producers may write anything.
    vectors = [_numbers(value) for value in values]
    return [
        pl.Series(f"affinity_{category}", [vector.get(category) for vector in vectors], dtype=pl.Float64)
        for category in categories
    ]


def _numbers(value: str | None) -> dict[str, float]:
    try:
        found = json.loads(value or "null")
    except (ValueError, RecursionError):
        return {}
    numbers = {}
    for category, number in found.items() if isinstance(found, dict) else ():
        if isinstance(number, int | float) and not isinstance(number, bool):
            with suppress(OverflowError):  # an integer beyond every float64
                numbers[category] = float(number)
    return {category: number for category, number in numbers.items() if math.isfinite(number)}


def _items(named: pl.Series, nodes: pl.DataFrame, earlier: pl.Series) -> pl.DataFrame:
    """One row per eligible node of any city, per node that an event names, and per node of the earlier vocabulary.

    A node that is no longer in the catalogue has the status `gone` and nulls.
    """
    ids = pl.concat([named.alias("item_id"), eligible(nodes)["node_id"].alias("item_id")])
    return (
        assign_indexes(earlier, ids, "item_idx")
        .join(nodes.rename({"node_id": "item_id"}), on="item_id", how="left", maintain_order="left")
        .with_columns(pl.col("status").fill_null(GONE))
        .select("item_id", "item_idx", "city", "category", "name", "latitude", "longitude", "status")
    )
