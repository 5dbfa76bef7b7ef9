"""What a snapshot is made of: events in their compact form, trips, users, items. With these, triples need no database.

Users, trips and nodes are carried as codes: rows of `users.parquet`, `trips.parquet` and `items.parquet`. Events come by user
bucket (`etl.transform.buckets`); everything else is small beside them and stands in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.runtime.files import FileInfo
from etl.transform.arrays import list_series
from etl.transform.buckets import BucketSpill
from etl.transform.ranking_events import eligible
from etl.transform.schemas import ARCHIVED

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
LISTS = {name: name.replace("_ids", "_idx") for name in ("candidate_ids", "ranked_ids", "selected_ids", "shown_ids")}
"""The columns of nodes, and what they are called where they hold codes."""

EVENT_COLUMNS = (
    "event_id",
    "user_id",
    "trip_id",
    "day_number",
    "timestamp",
    "surface",
    "model_name",
    "model_version",
    *LISTS,
)
"""The columns of `events/`, in their order (CONTRACT, section 3)."""

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
"""No events: the columns of `Dataset.events`, ids as codes."""

PRESENT, GONE = "present", "gone"
"""What `status` says of a user, and of a user or an item that only an earlier vocabulary, or an event, still names."""


@dataclass(frozen=True)
class Vocabulary:
    """The ids of an earlier night, in the order of their indexes: they keep them. Empty by default."""

    users: pl.Series = field(default_factory=lambda: pl.Series("user_id", dtype=pl.String))
    items: pl.Series = field(default_factory=lambda: pl.Series("item_id", dtype=pl.String))


@dataclass(frozen=True)
class ReusableEventFiles:
    """Events that a snapshot has already: their files by city, without a split, and how many rows a file has at the most."""

    files: Mapping[str, Sequence[FileInfo]]
    rows_per_file: int


@dataclass(frozen=True)
class BucketedEvents:
    """The events of a dataset by user bucket; they can be gone through more than once.

    A bucket's frame has the columns of CODED, in file order; a user's events are all in one bucket. `cities` are those that any
    event is in, in the order of their bytes; `height` counts the events. `read` may leave columns empty that are not asked for.
    `published` is None where no file of them is known that would be written with the same bytes again.
    """

    buckets: int
    cities: tuple[str, ...]
    height: int
    read: Callable[[Collection[str]], Iterator[pl.DataFrame]]
    published: ReusableEventFiles | None = None
    columns: tuple[str, ...] = tuple(ENCODED_EVENTS.columns)

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return self.read(self.columns)

    def select(self, columns: Collection[str]) -> BucketedEvents:
        """The same; of the columns that are not given nobody wants to know."""
        return replace(self, columns=tuple(columns))

    def collect(self) -> pl.DataFrame:
        """All events in one frame."""
        return pl.concat([ENCODED_EVENTS, *iter(self)])

    @classmethod
    def of(cls, events: pl.DataFrame) -> BucketedEvents:
        """One bucket that holds all of these."""
        cities = tuple(events["city"].unique().sort())
        return cls(1, cities, events.height, lambda _: iter([events]))


def no_events(_: Collection[str]) -> Iterator[pl.DataFrame]:
    """What `EventBuckets.read` is where the events are elsewhere."""
    return iter(())


@dataclass(frozen=True)
class Dataset:
    """What is published, before it is cut by split and city.

    `users`, `items` and `trips` are the vocabularies, one row per id in the order of the codes. Users and items: by id, behind
    those of an earlier vocabulary. `trips` has the trips that have an event, sorted by id: `trip_id`, `city`, `start_us`
    (null when infinite). Of users only `user_id` is sure to be there: `profiles` has all that is published of them.
    """

    events: BucketedEvents
    users: pl.DataFrame
    items: pl.DataFrame
    trips: pl.DataFrame
    read_user_features: Callable[[], Iterator[pl.DataFrame]] | None = None

    def user_features(self) -> Iterator[pl.DataFrame]:
        """The users with all columns, in their order, some at a time; one frame at least."""
        return self.read_user_features() if self.read_user_features is not None else iter([self.users])

    def eligible_items(self) -> pl.DataFrame:
        """The items that can be offered: eligible nodes, one row each."""
        return self.items.filter(~pl.col("status").is_in([ARCHIVED, GONE]))

    @property
    def eligible(self) -> dict[str, int]:
        """How many nodes each city can offer."""
        return dict(self.eligible_items().group_by("city").len().sort("city").iter_rows())


class IdEncoder:
    """Numbers for ids, in the order in which they were first met."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def encode(self, ids: Iterable[str]) -> pl.Series:
        """Each id's number (UInt32)."""
        numbers = self._numbers
        return pl.Series([numbers.setdefault(each, len(numbers)) for each in ids], dtype=pl.UInt32)

    def positions_in(self, vocabulary: pl.Series) -> pl.Series:
        """For each number, the row of its id in a vocabulary; null where that has no such id."""
        return _positions(self.ids, vocabulary)

    @property
    def ids(self) -> pl.Series:
        """The ids by number."""
        return pl.Series(list(self._numbers), dtype=pl.String)


class DatasetBuilder:
    """Events on their way into a dataset, bucket by bucket.

    What they name gets its code when it is first met; the vocabularies are known only at the end, and the codes become rows of
    them when the events are taken up again.
    """

    def __init__(self, shelf: BucketSpill) -> None:
        self._shelf = shelf
        self._users, self._trips, self._nodes = IdEncoder(), IdEncoder(), IdEncoder()
        self._named = np.zeros(0, np.bool_)
        self._of_trips: list[pl.DataFrame] = []
        self._cities: set[str] = set()
        self._height = 0

    def encode(self, nodes: pl.Series) -> pl.Series:
        """A column of node ids, or of lists of them, as codes."""
        found = _coded_lists(nodes, self._nodes) if isinstance(nodes.dtype, pl.List) else _coded(nodes, self._nodes)
        return found.alias(nodes.name)

    def add(self, bucket: int, events: pl.DataFrame) -> None:
        """Take in a bucket's events, all of them: `contracts.Events` with `shown_ids`, in file order.

        Nodes as text or Enum, or as the codes of `coded`.
        """
        lists = {name: events[name] for name in LISTS}
        codes = {n: lst if lst.dtype == pl.List(pl.UInt32) else self.encode(lst) for n, lst in lists.items()}
        for each in codes.values():
            self._name(each.explode(empty_as_null=False).to_numpy())
        coded = events.with_columns(
            _coded(events["user_id"], self._users).alias("user_idx"),
            _coded(events["trip_id"], self._trips).alias("trip_idx"),
            *(codes[name].alias(index) for name, index in LISTS.items()),
            timestamp=pl.col("created_us").floordiv(1_000_000),
        )
        self._of_trips.append(events.select("trip_id", "city", "start_us").unique("trip_id"))
        self._cities.update(events["city"].unique())
        self._height += events.height
        self._shelf.append_bucket(coded.select(ENCODED_EVENTS.columns), bucket)

    def _name(self, codes: npt.NDArray[np.uint32]) -> None:
        """Remember that an event names these nodes."""
        if len(self._named) < len(self._nodes):
            self._named = np.concatenate([self._named, np.zeros(len(self._nodes) - len(self._named), np.bool_)])
        self._named[codes] = True

    def dataset(self, users: pl.DataFrame, personas: pl.DataFrame, nodes: pl.DataFrame, earlier: Vocabulary) -> Dataset:
        """What is published: an audience's users and personas, the catalogue, and the events that were taken in."""
        # Codes were given to every node of the slots, too; only those that an event names are published.
        self._name(np.zeros(0, np.uint32))
        named = self._nodes.ids.filter(pl.Series(self._named))
        items = _items(named, nodes, earlier.items)
        vocabulary = _users(users, personas, nodes["category"].unique().sort(), earlier.users)
        of_trips = [
            pl.DataFrame(schema={"trip_id": pl.String, "city": pl.String, "start_us": pl.Int64}),
            *self._of_trips,
        ]
        trips = pl.concat(of_trips).unique("trip_id").sort("trip_id")
        places = {
            "user_idx": self._users.positions_in(vocabulary["user_id"]),
            "trip_idx": self._trips.positions_in(trips["trip_id"]),
            **dict.fromkeys(LISTS.values(), self._nodes.positions_in(items["item_id"])),
        }

        def read(_: Collection[str]) -> Iterator[pl.DataFrame]:
            for bucket in range(self._shelf.buckets):
                yield remap_codes(self._shelf.read_bucket(bucket), places)

        cities = tuple(sorted(self._cities, key=str.encode))
        return Dataset(BucketedEvents(self._shelf.buckets, cities, self._height, read), vocabulary, items, trips)


def remap_codes(events: pl.DataFrame, places: dict[str, pl.Series]) -> pl.DataFrame:
    """Coded events with other codes: `places` has, by column, the new code of each old one."""
    columns = []
    for name, new in places.items():
        old = events[name]
        columns.append(_map_list_codes(old, new) if isinstance(old.dtype, pl.List) else new.gather(old).alias(name))
    return events.with_columns(columns)


def _map_list_codes(lists: pl.Series, new: pl.Series) -> pl.Series:
    """A column of lists, each element replaced by its place in `new`."""
    flat = lists.explode(empty_as_null=False)
    codes = new.gather(flat.cast(pl.UInt32))
    return list_series(lists.list.len().to_numpy(), codes).alias(lists.name)


def _coded(ids: pl.Series, codes: IdEncoder) -> pl.Series:
    """A column of texts as numbers: each distinct one is looked up once. Null stays null."""
    distinct = pl.Enum(ids.drop_nulls().unique())
    return codes.encode(distinct.categories).gather(ids.cast(distinct).to_physical())


def _coded_lists(lists: pl.Series, codes: IdEncoder) -> pl.Series:
    """A column of lists of texts, or of Enums, as lists of numbers."""
    flat = lists.explode(empty_as_null=False)
    if not isinstance(flat.dtype, pl.Enum):
        return list_series(lists.list.len().to_numpy(), _coded(flat, codes))
    # Not every value of the Enum need be named by an event: only those that are get a number.
    categories, physical = flat.dtype.categories, flat.to_physical()
    used = physical.unique()
    numbers = np.zeros(len(categories), np.uint32)
    numbers[used.to_numpy()] = codes.encode(categories.gather(used)).to_numpy()
    return list_series(lists.list.len().to_numpy(), pl.Series(numbers[physical.to_numpy()]))


def _positions(ids: pl.Series, vocabulary: pl.Series) -> pl.Series:
    """The row of each id in a vocabulary (UInt32); null where it isn't there."""
    rows = vocabulary.alias("id").to_frame().with_row_index("row")
    return ids.alias("id").to_frame().join(rows, on="id", how="left", maintain_order="left")["row"]


def _assign_indexes(earlier: pl.Series, ids: pl.Series, index: str) -> pl.DataFrame:
    """The ids with their indexes: earlier ones keep theirs, new ones follow in the order of their bytes."""
    new = ids.unique().sort()
    new = new.filter(~new.is_in(earlier.implode()))
    return pl.concat([earlier.alias(ids.name), new]).to_frame().with_row_index(index).select(ids.name, index)


def _users(users: pl.DataFrame, personas: pl.DataFrame, categories: pl.Series, earlier: pl.Series) -> pl.DataFrame:
    """One row per user of the audience, or of the earlier vocabulary: what PersonaDimension says of each.

    The eight dimensions, then the confidence and the source of each, then the affinity for each category that a node has;
    null where there is no such row. `cuisine_openness` is a number, and so are the affinities that `category_affinities`
    holds as JSON.
    """
    wide = _assign_indexes(earlier, users["user_id"], "user_idx")
    for column in ("value", "confidence", "source"):
        suffix = "" if column == "value" else f"_{column}"
        for dimension in _DIMENSIONS:
            rows = personas.filter(pl.col("dimension") == dimension)
            values = rows.select("user_id", pl.col(column).alias(dimension + suffix))
            wide = wide.join(values, on="user_id", how="left", maintain_order="left")
    here = pl.col("user_id").is_in(users["user_id"].implode())
    openness = pl.col("cuisine_openness").cast(pl.Float64, strict=False)
    return wide.with_columns(
        pl.when(openness.is_finite()).then(openness).alias("cuisine_openness"),
        *_affinities(wide["category_affinities"], categories),
        status=pl.when(here).then(pl.lit(PRESENT)).otherwise(pl.lit(GONE)),
    )


def _affinities(values: pl.Series, categories: pl.Series) -> list[pl.Series]:
    """The number that each `category_affinities` has for each category; null where there is none, or no JSON at all.

    By Python's own reader: a category may be called anything, and other producers may write anything.
    """
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
            with suppress(OverflowError):  # a whole number that no float64 holds
                numbers[category] = float(number)
    return {category: number for category, number in numbers.items() if math.isfinite(number)}


def _items(named: pl.Series, nodes: pl.DataFrame, earlier: pl.Series) -> pl.DataFrame:
    """One row per eligible node of any city, per node that an event names, and per node of the earlier vocabulary.

    A node that the catalogue no longer has: status `gone`, the rest null.
    """
    ids = pl.concat([named.alias("item_id"), eligible(nodes)["node_id"].alias("item_id")])
    return (
        _assign_indexes(earlier, ids, "item_idx")
        .join(nodes.rename({"node_id": "item_id"}), on="item_id", how="left", maintain_order="left")
        .with_columns(pl.col("status").fill_null(GONE))
        .select("item_id", "item_idx", "city", "category", "name", "latitude", "longitude", "status")
    )
