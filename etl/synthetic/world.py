"""The synthetic world: users, trips, slots, signals and a catalogue as database rows, seeded, at any scale.

Pure: no database, clock or environment, except for `copy_world`. The same arguments (and NumPy release) give the same rows.
`population` and `behaviour` draw numbers, `tables` makes frames of them, `generate` yields these in chunks for COPY.

At scale 1 it has the design's size: 747 shadow users whose seed is an object with all labels, about 2,744 trips, 85K
slots and 220K signals, in three cities of 20, 72 and 73 eligible nodes. In addition there are 20 shadow users whose seed is
null, a string, a list or half empty, and 60 real users, with persona and ranking rows that no run may touch.
The shares and counts are those of `data/world.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from etl.errors import SettingsError
from etl.load.copy import copy_rows
from etl.postgres.connection import Connection
from etl.postgres.naming import quote_identifier
from etl.postgres.scope import Scope
from etl.synthetic import tables
from etl.synthetic.behaviour import draw_signals, draw_slots
from etl.synthetic.population import Scene, draw_nodes, draw_people, draw_trips, load_profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from etl.synthetic.population import Ints, Nodes, Profile

# Users are drawn in blocks of this many, each with a generator of its own: what a block holds depends on the seed and
# the block's number alone, and so not on how blocks are put together into chunks.
USERS_PER_BLOCK = 1_000
_NODES, _REAL, _SHADOW = range(3)


@dataclass(frozen=True)
class WorldChunk:
    """One chunk of the world: frames with the database's columns, ready for COPY in this order (parents first).

    A row's parents are in the same chunk, except for the catalogue, which is in the first alone. `persona_dimensions`
    and `ranking_events` belong to real users only. Null means SQL NULL; `personaSeed` is JSON text.
    """

    users: pl.DataFrame
    trips: pl.DataFrame
    activity_nodes: pl.DataFrame
    itinerary_slots: pl.DataFrame
    behavioral_signals: pl.DataFrame
    persona_dimensions: pl.DataFrame
    ranking_events: pl.DataFrame

    def tables(self) -> list[tuple[str, pl.DataFrame]]:
        """Returns (model, frame) pairs, parents first."""
        return [(model, getattr(self, each.name)) for model, each in zip(_MODELS, fields(self), strict=True)]


_MODELS = ("User", "Trip", "ActivityNode", "ItinerarySlot", "BehavioralSignal", "PersonaDimension", "RankingEvent")

MAX_SCALE = 1_000
"""85 million slots: ten times the largest measured; far above it the plan alone fills the memory."""


def generate(*, scale: float = 1.0, seed: int = 0, users_per_chunk: int = 5_000) -> Iterator[WorldChunk]:
    """Yield the world in chunks: the catalogue with the first, then real users, then shadow users.

    `scale` multiplies the users, and with them all but the catalogue, which has the design's size at any scale; there
    is at least one user of every kind. `users_per_chunk` bounds the memory, not the outcome: a chunk is a whole number
    of blocks of 1,000 users, at least one. The concatenation of the chunks is the same for all values.
    """
    if not 0 < scale <= MAX_SCALE:
        raise SettingsError(
            f"The scale of the synthetic world is {scale:g}. Say a number above 0, such as 1 or 0.1, of at most {MAX_SCALE:,}."
        )
    if seed < 0:
        raise SettingsError(f"The seed of the synthetic world is {seed}. Say 0 or a positive integer.")
    if users_per_chunk < 1:
        raise SettingsError(f"The users per chunk of the synthetic world are {users_per_chunk}. Say 1 or more.")
    return _chunks(_Plan.make(scale, seed), max(1, users_per_chunk // USERS_PER_BLOCK))


@dataclass(frozen=True)
class _Plan:
    """What all blocks share: the profile, the seed, the catalogue and how many users of each kind there are."""

    profile: Profile
    seed: int
    nodes: Nodes
    node_frame: pl.DataFrame
    real: int
    ordinary: int
    irregular: int

    @classmethod
    def make(cls, scale: float, seed: int) -> _Plan:
        """Draw the catalogue and count the users."""
        profile = load_profile()
        counts = profile.world["users"]
        rng = np.random.default_rng(np.random.SeedSequence([seed, _NODES]))
        nodes = draw_nodes(rng, profile)
        return cls(
            profile=profile,
            seed=seed,
            nodes=nodes,
            node_frame=tables.activity_nodes(rng, profile, nodes),
            real=max(counts["fewest_real"], round(counts["real"] * scale)),
            ordinary=max(1, round(counts["ordinary"] * scale)),
            irregular=max(len(profile.world["wild_seeds"]), round(counts["wild"] * scale)),
        )


def _chunks(plan: _Plan, blocks_per_chunk: int) -> Iterator[WorldChunk]:
    """Draw block after block and put them together."""
    blocks = [
        (kind, first, min(first + USERS_PER_BLOCK, count))
        for kind, count in ((_REAL, plan.real), (_SHADOW, plan.ordinary + plan.irregular))
        for first in range(0, count, USERS_PER_BLOCK)
    ]
    catalogue = {"activity_nodes": plan.node_frame}
    for start in range(0, len(blocks), blocks_per_chunk):
        parts = [_block(plan, *block) for block in blocks[start : start + blocks_per_chunk]]
        frames = {name: pl.DataFrame(schema=schema) for name, schema in tables.SCHEMAS.items()}
        frames |= {name: pl.concat([part[name] for part in parts if name in part]) for name in parts[0]}
        yield WorldChunk(**(frames | catalogue))
        catalogue = {}


def _block(plan: _Plan, kind: int, first: int, end: int) -> dict[str, pl.DataFrame]:
    """Draw the users numbered first to end (exclusive) of a kind, and all that they did."""
    rng = np.random.default_rng(np.random.SeedSequence([plan.seed, kind, first // USERS_PER_BLOCK]))
    profile, index = plan.profile, np.arange(first, end)
    people = draw_people(rng, profile, len(index))
    scene = Scene(profile, plan.nodes, people, draw_trips(rng, profile, people))
    slots = draw_slots(rng, scene)
    block = tables.Block(
        rng=rng,
        scene=scene,
        node_ids=plan.node_frame["id"],
        seed_kind=np.zeros_like(index) if kind == _REAL else _seed_kinds(rng, plan, index),
        emails=tables.real_emails(profile, index) if kind == _REAL else tables.shadow_emails(index),
        slots=slots,
        signals=draw_signals(rng, scene, slots),
    )
    return _real(block) if kind == _REAL else _shadow(block)


def _seed_kinds(rng: np.random.Generator, plan: _Plan, index: Ints) -> Ints:
    """Returns the form of each shadow user's seed. The irregular ones are spread evenly, kind after kind."""
    total, rules = plan.ordinary + plan.irregular, plan.profile.world
    nth_irregular = index * plan.irregular // total
    irregular = (index + 1) * plan.irregular // total > nth_irregular
    without = rng.random(len(index)) < rules["without_affinities_share"]
    regular = np.where(without, tables.SEED_WITHOUT_AFFINITIES, tables.ORDINARY_SEED)
    return np.where(irregular, tables.FIRST_IRREGULAR_SEED + nth_irregular % len(rules["wild_seeds"]), regular)


def _shadow(block: tables.Block) -> dict[str, pl.DataFrame]:
    """Shadow users' frames: every slot and every signal has its node, no persona, no ranking event."""
    users = tables.users(block)
    trips = tables.trips(block, users["id"])
    missing_node = np.zeros(len(block.slots.trip), dtype=np.bool_)
    slots = tables.itinerary_slots(block, trips["id"], missing_node)
    signals = tables.behavioral_signals(block, trips, slots["id"], missing_node)
    return {"users": users, "trips": trips, "itinerary_slots": slots, "behavioral_signals": signals}


def _real(block: tables.Block) -> dict[str, pl.DataFrame]:
    """Real users' frames: with missing references as applications leave them, some with personas and events."""
    rng, rules = block.rng, block.scene.profile.world["real_users"]
    users = tables.users(block)
    trips = tables.trips(block, users["id"])
    missing_node = rng.random(len(block.slots.trip)) < rules["slot_without_node"]
    slots = tables.itinerary_slots(block, trips["id"], missing_node)
    signals = tables.real_signals(block, tables.behavioral_signals(block, trips, slots["id"], missing_node))
    known = rng.random(len(users)) < rules["with_persona"]
    known[0] = True  # even the smallest world has rows that are not the job's
    logged = known[block.scene.trips.user] & (rng.random(len(trips)) < rules["trip_with_events"])
    logged[0] = True
    return {
        "users": users,
        "trips": trips,
        "itinerary_slots": slots,
        "behavioral_signals": signals,
        "persona_dimensions": tables.persona_dimensions(block, trips, known),
        "ranking_events": tables.ranking_events(block, trips, slots, logged),
    }


def copy_world(
    connection: Connection,
    scope: Scope,
    worlds: Iterable[WorldChunk],
    on_rows: Callable[[int], object] = lambda _rows: None,
) -> dict[str, int]:
    """Copy chunks into the tables. Returns the rows by model; `on_rows` is called with the rows of each frame copied."""
    rows: dict[str, int] = {}
    for world in worlds:
        for model, frame in world.tables():
            if model == "Trip":
                _copy_trips(connection, scope, frame)
            else:
                copy_rows(connection, scope, model, frame)
            rows[model] = rows.get(model, 0) + frame.height
            on_rows(frame.height)
    return rows


def _copy_trips(connection: Connection, scope: Scope, trips: pl.DataFrame) -> None:
    """Copy trips through a temporary table, since COPY can't convert text to jsonb."""
    temporary = "bpr_etl_trips"
    connection.copy_temporary(temporary, trips.to_arrow(compat_level=pl.CompatLevel.oldest()))
    columns = ", ".join(scope.naming.column("Trip", name) for name in trips.columns)
    values = ", ".join(
        f"{quote_identifier(name)}::pg_catalog.jsonb" if name == "personaSeed" else quote_identifier(name)
        for name in trips.columns
    )
    connection.execute(f"INSERT INTO {scope.naming.table('Trip')} ({columns}) SELECT {values} FROM pg_temp.{temporary}")
    connection.execute(f"DROP TABLE pg_temp.{temporary}")
