"""Source tables to contract frames, all under one snapshot; bad rows are set aside with a reason and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import dataframely as dy
import polars as pl

from etl.extract import queries
from etl.postgres.bulk_read import read_in_background
from etl.postgres.connection import Connection
from etl.postgres.scope import Audience, Scope
from etl.transform.buckets import BucketSpill, bucket_expr
from etl.transform.schemas import DIMENSIONS, Events, Nodes, Personas, SeedAffinities, Seeds, Slots, Trips, Users

S = TypeVar("S", bound=dy.Schema)

_FIRST_US, _END_US = -62_135_596_800_000_000, 253_402_300_800_000_000  # year 1 to 9999, in microseconds since 1970


@dataclass
class RejectedRows:
    """How many rows of each frame broke which rule, and so were not used: `counts` is {frame: {rule: rows}}.

    A row may break several rules. `shares` has for each frame the rows that were set aside, and those that were looked at.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    shares: dict[str, tuple[int, int]] = field(default_factory=dict)

    def filter(self, schema: type[S], name: str, frame: pl.DataFrame) -> dy.DataFrame[S]:
        """The rows that keep the contract; the others are counted under `name`."""
        good, failures = schema.filter(frame, cast=True)
        for rule, rows in sorted(failures.counts().items()):
            self._count(name, rule.replace("|", " ").strip(), int(rows))
        self._share(name, frame.height - good.height, frame.height)
        return good

    def count_unread(self, name: str, rule: str, rows: int) -> None:
        """Count rows of a frame that were not read at all, and why."""
        if rows:
            self._count(name, rule, rows)
            self._share(name, rows, rows)

    def _count(self, name: str, rule: str, rows: int) -> None:
        counts = self.counts.setdefault(name, {})
        counts[rule] = counts.get(rule, 0) + rows

    def _share(self, name: str, bad: int, rows: int) -> None:
        before = self.shares.get(name, (0, 0))
        self.shares[name] = before[0] + bad, before[1] + rows


@dataclass(frozen=True)
class SourceData:
    """What the application's tables hold of the shadow users, as far as the job looks: frames as their contracts say.

    `slots` lie by user bucket. `vectors` has for each seed the `categories` and `numbers` of its `category_affinities`, as
    lists: see `seed_affinities`.
    """

    users: dy.DataFrame[Users]
    trips: dy.DataFrame[Trips]
    nodes: dy.DataFrame[Nodes]
    seeds: dy.DataFrame[Seeds]
    vectors: pl.DataFrame
    categories: list[str]
    slots: BucketSpill
    rows_read: dict[str, int]

    def trips_of(self, bucket: int) -> dy.DataFrame[Trips]:
        """The trips of a user bucket."""
        if self.slots.buckets == 1:
            return self.trips
        return Trips.cast(self.trips.filter(bucket_expr(pl.col("user_id"), self.slots.buckets) == bucket))

    def slots_of(self, bucket: int) -> dy.DataFrame[Slots]:
        """The slots of a user bucket's trips."""
        return Slots.cast(self.slots.read_bucket(bucket))


def extract_source(
    connection: Connection, scope: Scope, slots: BucketSpill, aside: RejectedRows, told: Callable[[int], object]
) -> SourceData:
    """Read what a run needs of the shadow users, under the open transaction's snapshot; its rows are `told` as they come.

    The slots, which are most of it, come through the connection itself, some at a time; the rest meanwhile through others.
    """
    queries_ = {
        "trips": queries.trips(scope, "shadow"),
        "users": queries.users(scope, "shadow"),
        "nodes": queries.nodes(scope),
        "seeds": queries.persona_seeds(scope),
    }
    categories = read_categories(connection, scope)
    with read_in_background(connection, queries_) as others:
        buckets = others.result()["trips"] if slots.buckets > 1 else None
        read_slots = 0
        for batch in connection.iter_frames(queries.slots(scope, "shadow")):
            read_slots += batch.height
            told(batch.height)
            _spill_slots(slots, aside.filter(Slots, "slots", batch), buckets)
        read = others.result()
    seeds = read["seeds"]
    told(sum(read[name].height for name in ("users", "trips", "nodes")))
    aside.count_unread("trips", "user_is_gone", connection.fetch_int(queries.orphan_count(scope, "Trip")))
    return SourceData(
        aside.filter(Users, "users", read["users"]),
        aside.filter(Trips, "trips", read["trips"]),
        aside.filter(Nodes, "nodes", read["nodes"]),
        aside.filter(Seeds, "seeds", seeds.drop("categories", "numbers")),
        seeds.select("user_id", "categories", "numbers").drop_nulls("categories"),
        categories,
        slots,
        {name: read[name].height for name in ("users", "trips")} | {"slots": read_slots, "nodes": read["nodes"].height},
    )


def _spill_slots(slots: BucketSpill, rows: pl.DataFrame, trips: pl.DataFrame | None) -> None:
    """Put slots into the buckets of their trips' users; `trips` is None where there is one bucket."""
    if trips is None:
        slots.append_bucket(rows, 0)
        return
    owned = rows.join(trips.select("trip_id", "user_id"), on="trip_id")
    slots.append(owned.drop("user_id"), owned.select(bucket_expr(pl.col("user_id"), slots.buckets)).to_series())


def seed_affinities(vectors: pl.DataFrame, aside: RejectedRows) -> dy.DataFrame[SeedAffinities]:
    """One row per (seed, key of its `category_affinities`), from `Source.vectors`; null for what is no JSON number."""
    long = vectors.explode("categories", "numbers", empty_as_null=False)
    number = pl.when(pl.col("numbers") != "").then(pl.col("numbers"))
    return aside.filter(SeedAffinities, "seed_affinities", long.select("user_id", category="categories", number=number))


@dataclass(frozen=True)
class LoggedEvents:
    """What an export needs from the application's tables: the ranking events that are there, and what explains them.

    Events and the slots of their trips lie by user bucket, nodes as codes. `left_out` counts events by why they are not
    exported.
    """

    users: dy.DataFrame[Users]
    nodes: dy.DataFrame[Nodes]
    personas: dy.DataFrame[Personas]
    events: BucketSpill
    slots: BucketSpill
    excluded: dict[str, int]
    rows_read: dict[str, int]


NodeEncoder = Callable[[pl.Series], pl.Series]
"""From a column of nodes, or of lists of nodes, to the same as codes."""


def extract_logged(
    connection: Connection,
    scope: Scope,
    audience: Audience,
    aside: RejectedRows,
    shelves: tuple[BucketSpill, BucketSpill],
    coded: NodeEncoder,
    told: Callable[[int], object],
) -> LoggedEvents:
    """Read the ranking events of an audience, with users, personas, nodes and slots, under the open snapshot.

    Rows are `told` as they come.

    Events, slots and personas come through the transaction's own connection: what it wrote itself is there, too. `shelves`
    are for events (LOGGED_EVENTS) and slots (CODED_SLOTS).
    """
    events, slots = shelves
    left_out = dict.fromkeys(("trip_gone", "date_out_of_range"), 0)
    read_events = read_slots = 0
    owners = []
    with read_in_background(
        connection, {"users": queries.users(scope, audience), "nodes": queries.nodes(scope)}
    ) as others:
        for batch in connection.iter_frames(queries.events(scope, audience)):
            read_events += batch.height
            told(batch.height)
            rows, without = clean_events(batch, aside)
            left_out = {reason: count + without[reason] for reason, count in left_out.items()}
            bucket = rows.select(bucket_expr(pl.col("user_id"), events.buckets)).to_series()
            events.append(rows.with_columns(coded(rows[name]) for name in _NODE_LISTS), bucket)
            owners.append(rows.select("trip_id", bucket=bucket).unique())
        trips = pl.concat([pl.DataFrame(schema={"trip_id": pl.String, "bucket": pl.UInt32}), *owners]).unique()
        for batch in connection.iter_frames(queries.slots_of_events(scope, audience)):
            read_slots += batch.height
            told(batch.height)
            good = aside.filter(Slots, "slots", batch)
            nodes = good.with_columns(coded(good["node_id"]))
            named = nodes.join(trips, on="trip_id")  # an event may name another user's trip: then its slots lie twice
            slots.append(named.drop("bucket"), named["bucket"])
        personas = read_personas(connection, scope, audience, aside)
        aside.count_unread("events", "user_is_gone", connection.fetch_int(queries.orphan_count(scope, "RankingEvent")))
        read = others.result()
    counts = {"events": read_events, "users": read["users"].height, "slots": read_slots}
    told(read["users"].height + read["nodes"].height + personas.height)
    return LoggedEvents(
        aside.filter(Users, "users", read["users"]),
        aside.filter(Nodes, "nodes", read["nodes"]),
        personas,
        events,
        slots,
        left_out,
        counts | {"nodes": read["nodes"].height, "personas": personas.height},
    )


_NODE_LISTS = ("candidate_ids", "ranked_ids", "selected_ids")
LOGGED_EVENTS = Events.create_empty().with_columns(pl.col(_NODE_LISTS).cast(pl.List(pl.UInt32)))
CODED_SLOTS = Slots.create_empty().with_columns(pl.col("node_id").cast(pl.UInt32))
"""No rows: what the shelves of `extract_logged` hold."""


def read_personas(
    connection: Connection, scope: Scope, audience: Audience, aside: RejectedRows
) -> dy.DataFrame[Personas]:
    """The PersonaDimension rows of an audience, on the transaction's own connection: nobody else can see them yet."""
    rows = connection.fetch_frame(queries.personas(scope, audience)).filter(pl.col("dimension").is_in(DIMENSIONS))
    return aside.filter(Personas, "personas", rows)


def read_categories(connection: Connection, scope: Scope) -> list[str]:
    """The values of the database's ActivityCategory enum."""
    return [str(label) for (label,) in connection.fetch_rows(queries.categories(scope.naming))]


def clean_events(rows: pl.DataFrame, aside: RejectedRows) -> tuple[dy.DataFrame[Events], dict[str, int]]:
    """Events that can be exported, and how many can't, by reason: the trip is gone, the date leaves the years 1 to 9999.

    Arrays come as the application left them: null counts as empty, null elements and repetitions are dropped.
    """
    lists = [
        pl.col(name).fill_null(pl.lit([], dtype=pl.List(pl.String))).list.drop_nulls().list.unique(maintain_order=True)
        for name in ("candidate_ids", "ranked_ids", "selected_ids")
    ]
    dated = pl.col("created_us").is_between(_FIRST_US, _END_US, closed="left").fill_null(value=False)
    gone = pl.col("city").is_null()
    left_out = {
        "trip_gone": rows.filter(gone).height,
        "date_out_of_range": rows.filter(~gone, ~dated).height,
    }
    good = rows.filter(~gone, dated).with_columns(lists)
    return aside.filter(Events, "events", good), left_out
