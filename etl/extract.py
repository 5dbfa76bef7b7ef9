"""Source tables to contract frames, all under one snapshot; bad rows are set aside with a reason and counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import dataframely as dy
import polars as pl

from etl import queries
from etl.contracts import DIMENSIONS, Events, Nodes, Personas, SeedAffinities, Seeds, Slots, Trips, Users
from etl.database import Connection, read_snapshot
from etl.queries import Audience, Scope

S = TypeVar("S", bound=dy.Schema)

_FIRST_US, _END_US = -62_135_596_800_000_000, 253_402_300_800_000_000  # year 1 to 9999, in microseconds since 1970


@dataclass
class SetAside:
    """How many rows of each frame broke which rule, and so were not used: {frame: {rule: rows}}."""

    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def filter(self, schema: type[S], name: str, frame: pl.DataFrame) -> dy.DataFrame[S]:
        """The rows that keep the contract; the others are counted under `name`."""
        good, failures = schema.filter(frame, cast=True)
        if broken := failures.counts():
            self.counts[name] = {rule.replace("|", " ").strip(): int(rows) for rule, rows in sorted(broken.items())}
        return good


@dataclass(frozen=True)
class Source:
    """What the application's tables hold, as far as the job looks: frames as their contracts say.

    `seeds` and `seed_affinities` are the shadow users' alone, whatever the audience.
    """

    users: dy.DataFrame[Users]
    trips: dy.DataFrame[Trips]
    slots: dy.DataFrame[Slots]
    nodes: dy.DataFrame[Nodes]
    seeds: dy.DataFrame[Seeds]
    seed_affinities: dy.DataFrame[SeedAffinities]
    categories: list[str]
    rows_read: dict[str, int]

    def users_of(self, audience: Audience) -> dy.DataFrame[Users]:
        """The users of an audience."""
        wanted = {"shadow": pl.col("is_shadow"), "real": ~pl.col("is_shadow"), "all": pl.lit(value=True)}[audience]
        return Users.cast(self.users.filter(wanted))

    def shadow(self) -> Source:
        """The same with the shadow users' rows alone."""
        users = self.users_of("shadow")
        trips = self.trips.join(users, on="user_id", how="semi")
        return Source(
            users,
            Trips.cast(trips),
            Slots.cast(self.slots.join(trips, on="trip_id", how="semi")),
            self.nodes,
            self.seeds,
            self.seed_affinities,
            self.categories,
            self.rows_read,
        )


def extract_source(connection: Connection, scope: Scope, audience: Audience, aside: SetAside) -> Source:
    """Read what a run needs, under the open transaction's snapshot.

    For the audience `shadow` only the shadow users' rows are read; for the others every user's, since the shadow users'
    rows are written in any case.
    """
    whose: Audience = "shadow" if audience == "shadow" else "all"
    read = read_snapshot(
        connection,
        {
            "slots": queries.slots(scope, whose),
            "trips": queries.trips(scope, whose),
            "users": queries.users(scope, whose),
            "nodes": queries.nodes(scope),
            "seeds": queries.seeds(scope),
            "seed_affinities": queries.seed_affinities(scope),
        },
    )
    return Source(
        aside.filter(Users, "users", read["users"]),
        aside.filter(Trips, "trips", read["trips"]),
        aside.filter(Slots, "slots", read["slots"]),
        aside.filter(Nodes, "nodes", read["nodes"]),
        aside.filter(Seeds, "seeds", read["seeds"]),
        aside.filter(SeedAffinities, "seed_affinities", read["seed_affinities"]),
        read_categories(connection, scope),
        {name: read[name].height for name in ("users", "trips", "slots", "nodes")},
    )


@dataclass(frozen=True)
class Logged:
    """What an export needs from the application's tables: the ranking events that are there, and what explains them.

    `left_out` counts events by why they are not exported.
    """

    users: dy.DataFrame[Users]
    slots: dy.DataFrame[Slots]
    nodes: dy.DataFrame[Nodes]
    personas: dy.DataFrame[Personas]
    events: dy.DataFrame[Events]
    left_out: dict[str, int]
    rows_read: dict[str, int]


def extract_logged(connection: Connection, scope: Scope, audience: Audience, aside: SetAside) -> Logged:
    """Read the ranking events of an audience, with users, personas, nodes and slots, under the open snapshot."""
    read = read_snapshot(
        connection,
        {
            "slots": queries.slots_of_events(scope, audience),
            "events": queries.events(scope, audience),
            "users": queries.users(scope, audience),
            "nodes": queries.nodes(scope),
            "personas": queries.personas(scope, audience),
        },
    )
    events, left_out = tidy_events(read["events"], aside)
    return Logged(
        aside.filter(Users, "users", read["users"]),
        aside.filter(Slots, "slots", read["slots"]),
        aside.filter(Nodes, "nodes", read["nodes"]),
        aside.filter(Personas, "personas", read["personas"].filter(pl.col("dimension").is_in(DIMENSIONS))),
        events,
        left_out,
        {name: read[name].height for name in ("events", "users", "slots", "nodes", "personas")},
    )


def extract_events(
    connection: Connection, scope: Scope, audience: Audience, aside: SetAside
) -> tuple[dy.DataFrame[Events], dict[str, int]]:
    """The ranking events of an audience, on the transaction's own connection: what it wrote itself is there, too."""
    return tidy_events(connection.frame(queries.events(scope, audience)), aside)


def read_personas(connection: Connection, scope: Scope, audience: Audience, aside: SetAside) -> dy.DataFrame[Personas]:
    """The PersonaDimension rows of an audience, on the transaction's own connection: nobody else can see them yet."""
    rows = connection.frame(queries.personas(scope, audience)).filter(pl.col("dimension").is_in(DIMENSIONS))
    return aside.filter(Personas, "personas", rows)


def read_categories(connection: Connection, scope: Scope) -> list[str]:
    """The values of the database's ActivityCategory enum."""
    return [str(label) for (label,) in connection.rows(queries.categories(scope.naming))]


def tidy_events(rows: pl.DataFrame, aside: SetAside) -> tuple[dy.DataFrame[Events], dict[str, int]]:
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
