"""Reads source tables into typed frames under one snapshot. Rows that break a schema are rejected and counted by reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import dataframely as dy
import polars as pl

from etl.extract import queries
from etl.postgres.bulk_read import BackgroundReads, read_in_background
from etl.postgres.connection import Connection
from etl.postgres.naming import SOURCE_MODELS
from etl.postgres.scope import Scope
from etl.settings.model import Audience
from etl.transform.arrays import sum_counts
from etl.transform.buckets import BucketSpill, bucket_expr
from etl.transform.ranking_events import WITHOUT_CITY
from etl.transform.schemas import (
    DIMENSIONS,
    Events,
    LegSlots,
    LegTrips,
    Nodes,
    Personas,
    SeedAffinities,
    Seeds,
    Slots,
    Trips,
    Users,
)

S = TypeVar("S", bound=dy.Schema)

_FIRST_US, _END_US = -62_135_596_800_000_000, 253_402_300_800_000_000  # year 1 to 9999, in microseconds since 1970


@dataclass
class RejectedRows:
    """Counts of rejected rows by frame and rule: `counts` is {frame: {rule: rows}}.

    A row may break several rules. `shares` is {frame: (rejected rows, all rows)}.
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    shares: dict[str, tuple[int, int]] = field(default_factory=dict)

    def filter(self, schema: type[S], name: str, frame: pl.DataFrame) -> dy.DataFrame[S]:
        """Return the rows that match the schema, and count the others under `name`."""
        good, failures = schema.filter(frame, cast=True)
        for rule, rows in sorted(failures.counts().items()):
            self._count(name, rule.replace("|", " ").strip(), int(rows))
        self._share(name, frame.height - good.height, frame.height)
        return good

    def count_unread(self, name: str, rule: str, rows: int) -> None:
        """Count rows that belong to a frame and were not read, under the reason `rule`."""
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
    """What a run reads of the shadow users from the application's tables.

    `trips` and `slots` have the columns of `source_schemas`. `slots` are spilled by user bucket. `vectors` has the `categories`
    and `numbers` of each seed's `category_affinities` as lists, which `seed_affinities` explodes.
    """

    users: dy.DataFrame[Users]
    trips: pl.DataFrame
    nodes: dy.DataFrame[Nodes]
    seeds: dy.DataFrame[Seeds]
    vectors: pl.DataFrame
    categories: list[str]
    slots: BucketSpill
    rows_read: dict[str, int]

    def trips_of(self, bucket: int) -> pl.DataFrame:
        """Return the trips of a user bucket."""
        if self.slots.buckets == 1:
            return self.trips
        return self.trips.filter(bucket_expr(pl.col("user_id"), self.slots.buckets) == bucket)

    def slots_of(self, bucket: int) -> pl.DataFrame:
        """Return the slots of a user bucket's trips."""
        return self.slots.read_bucket(bucket)


def source_schemas(scope: Scope) -> tuple[type[Trips], type[Slots]]:
    """Return the schemas of trips and slots: of other ones where trips have legs with a city each."""
    return (LegTrips, LegSlots) if scope.naming.has_legs else (Trips, Slots)


def source_queries(scope: Scope) -> dict[str, str]:
    """Return the queries of a run whose rows `extract_source` takes from background reads."""
    return {
        "trips": queries.trips(scope, "shadow"),
        "users": queries.users(scope, "shadow"),
        "nodes": queries.nodes(scope),
        "seeds": queries.persona_seeds(scope),
    }


def extract_source(
    connection: Connection,
    scope: Scope,
    reads: BackgroundReads,
    slots: BucketSpill,
    rejected: RejectedRows,
    on_rows: Callable[[int], object],
) -> SourceData:
    """Read what a run needs of the shadow users under the open transaction's snapshot.

    The slots, which are most of the rows, are read in batches through the connection itself, the rest meanwhile by `reads`,
    which has `source_queries`. `on_rows` is called with the number of rows of each batch.
    """
    categories = read_categories(connection, scope)
    trips_schema, slots_schema = source_schemas(scope)
    read = {"trips": reads.result("trips")} if slots.buckets > 1 else {}
    read_slots = 0
    for batch in connection.iter_frames(queries.slots(scope, "shadow")):
        read_slots += batch.height
        on_rows(batch.height)
        _spill_slots(slots, rejected.filter(slots_schema, "slots", batch), read.get("trips"))
    read |= {name: reads.result(name) for name in source_queries(scope) if name not in read}
    seeds = read["seeds"]
    on_rows(sum(read[name].height for name in ("users", "trips", "nodes")))
    rejected.count_unread("trips", "user_is_gone", connection.fetch_int(queries.orphan_count(scope, "Trip")))
    return SourceData(
        rejected.filter(Users, "users", read["users"]),
        rejected.filter(trips_schema, "trips", read["trips"]),
        rejected.filter(Nodes, "nodes", read["nodes"]),
        rejected.filter(Seeds, "seeds", seeds.drop("categories", "numbers")),
        seeds.select("user_id", "categories", "numbers").drop_nulls("categories"),
        categories,
        slots,
        {name: read[name].height for name in ("users", "trips")} | {"slots": read_slots, "nodes": read["nodes"].height},
    )


def _spill_slots(slots: BucketSpill, rows: pl.DataFrame, trips: pl.DataFrame | None) -> None:
    """Spill slots into the buckets of their trips' users. `trips` is None if there is only one bucket."""
    if trips is None:
        slots.append_bucket(rows, 0)
        return
    owned = rows.join(trips.select("trip_id", "user_id"), on="trip_id")
    slots.append(owned.drop("user_id"), owned.select(bucket_expr(pl.col("user_id"), slots.buckets)).to_series())


def seed_affinities(vectors: pl.DataFrame, rejected: RejectedRows) -> dy.DataFrame[SeedAffinities]:
    """Return one row per (seed, key of its `category_affinities`) from `SourceData.vectors`, null if it is no number."""
    long = vectors.explode("categories", "numbers", empty_as_null=False)
    number = pl.when(pl.col("numbers") != "").then(pl.col("numbers"))
    return rejected.filter(
        SeedAffinities, "seed_affinities", long.select("user_id", category="categories", number=number)
    )


@dataclass(frozen=True)
class LoggedEvents:
    """What an export reads: the existing ranking events, and the rows that they refer to.

    Events and the slots of their trips are spilled by user bucket, with nodes as indexes. `excluded` counts the events that
    are not exported, by reason.
    """

    users: dy.DataFrame[Users]
    nodes: dy.DataFrame[Nodes]
    personas: dy.DataFrame[Personas]
    events: BucketSpill
    slots: BucketSpill
    excluded: dict[str, int]
    rows_read: dict[str, int]


NodeEncoder = Callable[[pl.Series], pl.Series]
"""Encodes a column of node ids, or of lists of node ids, as indexes."""


def extract_logged(
    connection: Connection,
    scope: Scope,
    audience: Audience,
    rejected: RejectedRows,
    spills: tuple[BucketSpill, BucketSpill],
    encode: NodeEncoder,
    on_rows: Callable[[int], object],
) -> LoggedEvents:
    """Read the ranking events of an audience with users, personas, nodes and slots under the open transaction's snapshot.

    Events, slots and personas are read through the connection itself, and so include what the transaction wrote. `spills` are
    those of events (LOGGED_EVENTS) and slots (CODED_SLOTS). `on_rows` is called with the number of rows of each batch.
    """
    events, slots = spills
    excluded = dict.fromkeys(("trip_gone", "date_out_of_range"), 0)
    read_events = read_slots = 0
    owners = []
    with read_in_background(
        connection, {"users": queries.users(scope, audience), "nodes": queries.nodes(scope)}
    ) as others:
        for batch in connection.iter_frames(queries.events(scope, audience)):
            read_events += batch.height
            on_rows(batch.height)
            rows, without = clean_events(batch, rejected)
            excluded = sum_counts(excluded, without)
            bucket = rows.select(bucket_expr(pl.col("user_id"), events.buckets)).to_series()
            events.append(rows.with_columns(encode(rows[name]) for name in _NODE_LISTS), bucket)
            owners.append(rows.select("trip_id", bucket=bucket).unique())
        trips = pl.concat([pl.DataFrame(schema={"trip_id": pl.String, "bucket": pl.UInt32}), *owners]).unique()
        for batch in connection.iter_frames(queries.slots_of_events(scope, audience)):
            read_slots += batch.height
            on_rows(batch.height)
            good = rejected.filter(Slots, "slots", batch)
            nodes = good.with_columns(encode(good["node_id"]))
            # An event may refer to another user's trip: then its slots are in two buckets.
            named = nodes.join(trips, on="trip_id")
            slots.append(named.drop("bucket"), named["bucket"])
        personas = read_personas(connection, scope, audience, rejected)
        rejected.count_unread(
            "events", "user_is_gone", connection.fetch_int(queries.orphan_count(scope, "RankingEvent"))
        )
        read = {name: others.result(name) for name in ("users", "nodes")}
    counts = {"events": read_events, "users": read["users"].height, "slots": read_slots}
    on_rows(read["users"].height + read["nodes"].height + personas.height)
    return LoggedEvents(
        rejected.filter(Users, "users", read["users"]),
        rejected.filter(Nodes, "nodes", read["nodes"]),
        personas,
        events,
        slots,
        excluded,
        counts | {"nodes": read["nodes"].height, "personas": personas.height},
    )


_NODE_LISTS = ("candidate_ids", "ranked_ids", "selected_ids")
LOGGED_EVENTS = Events.create_empty().with_columns(pl.col(_NODE_LISTS).cast(pl.List(pl.UInt32)))
CODED_SLOTS = Slots.create_empty().with_columns(pl.col("node_id").cast(pl.UInt32))
"""Empty frames with the columns that `extract_logged` spills."""


def read_personas(
    connection: Connection, scope: Scope, audience: Audience, rejected: RejectedRows
) -> dy.DataFrame[Personas]:
    """Read an audience's PersonaDimension rows through the connection that wrote them: others can't see them yet."""
    rows = connection.fetch_frame(queries.personas(scope, audience)).filter(pl.col("dimension").is_in(DIMENSIONS))
    return rejected.filter(Personas, "personas", rows)


def count_filtered(connection: Connection, scope: Scope) -> dict[str, dict[str, int]]:
    """Count the rows that `where` of `[map.Model]` leaves out: {"filtered": {model: rows}}, nothing without a condition."""
    models = [model for model in SOURCE_MODELS if scope.naming.relation(model).where]
    rows = {model: connection.fetch_int(queries.filtered_count(scope, model)) for model in models}
    return {"filtered": rows} if rows else {}


def read_categories(connection: Connection, scope: Scope) -> list[str]:
    """Read the values of the enum of categories; where they are texts, the categories that nodes have."""
    rows = connection.fetch_rows(queries.categories(scope.naming))
    rows = rows or connection.fetch_rows(queries.categories_in_use(scope.naming))
    return [str(label) for (label,) in rows if label is not None]


def clean_events(rows: pl.DataFrame, rejected: RejectedRows) -> tuple[dy.DataFrame[Events], dict[str, int]]:
    """Return the events that can be exported, and the numbers of others by reason.

    The reasons: trip missing, year outside 1 to 9999, and in a schema with legs no city.

    A null array counts as empty. Null elements and repetitions are dropped.
    """
    lists = [
        pl.col(name).fill_null(pl.lit([], dtype=pl.List(pl.String))).list.drop_nulls().list.unique(maintain_order=True)
        for name in ("candidate_ids", "ranked_ids", "selected_ids")
    ]
    dated = pl.col("created_us").is_between(_FIRST_US, _END_US, closed="left").fill_null(value=False)
    gone = pl.col("city").is_null()
    excluded = {
        "trip_gone": rows.filter(gone).height,
        "date_out_of_range": rows.filter(~gone, ~dated).height,
    }
    if "has_trip" in rows.columns and (without := rows.filter(gone, "has_trip").height):
        excluded |= {"trip_gone": excluded["trip_gone"] - without, WITHOUT_CITY: without}
    good = rows.filter(~gone, dated).with_columns(lists)
    return rejected.filter(Events, "events", good), excluded
