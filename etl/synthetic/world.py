"""The synthetic world: users, trips, slots, signals and a catalogue as database rows, seeded, at any scale.

Pure: no database, clock or environment, except for `copy_world`. The same arguments (and NumPy release) give the same rows.
`population` and `behaviour` draw numbers, `tables` makes frames of them, `generate` yields these for COPY.

At scale 1 it has the design's size: 747 shadow users whose seed is an object with all labels, about 2,744 trips, 85K
slots and 220K signals, in three cities of 20, 72 and 73 eligible nodes. In addition there are 20 shadow users whose seed is
null, a string, a list or half empty, and 60 real users, with persona and ranking rows that no run may touch.
The shares and counts are those of `data/world.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from etl.load.copy import copy_rows, insert_through_temporary
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
# the block's number alone.
USERS_PER_BLOCK = 1_000
_NODES, _REAL, _SHADOW = range(3)


WorldChunk = dict[str, pl.DataFrame]
"""Some users' part of the world, by model: frames with the database's columns, ready for COPY in this order (parents first).

A row's parents are in the same chunk, except for the catalogue, which is in the first alone. PersonaDimension and
RankingEvent have rows of real users only. Null means SQL NULL; `personaSeed` is JSON text.
"""


def generate(*, scale: float = 1.0, seed: int = 0) -> Iterator[WorldChunk]:
    """Yield the world in chunks of up to 1,000 users: first real users, with the catalogue, then shadow users.

    `scale` multiplies the users, and with them all but the catalogue, which has the design's size at any scale; there
    is at least one user of every kind.
    """
    plan = _Plan.make(scale, seed)
    catalogue = {"ActivityNode": plan.node_frame}
    for kind, count in ((_REAL, plan.real), (_SHADOW, plan.ordinary + plan.irregular)):
        for first in range(0, count, USERS_PER_BLOCK):
            frames = catalogue | _block(plan, kind, first, min(first + USERS_PER_BLOCK, count))
            yield {model: frames.get(model, pl.DataFrame(schema=schema)) for model, schema in tables.SCHEMAS.items()}
            catalogue = {}


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
    return _frames(block, real=kind == _REAL)


def _seed_kinds(rng: np.random.Generator, plan: _Plan, index: Ints) -> Ints:
    """Returns the form of each shadow user's seed. The irregular ones are spread evenly, kind after kind."""
    total, rules = plan.ordinary + plan.irregular, plan.profile.world
    nth_irregular = index * plan.irregular // total
    irregular = (index + 1) * plan.irregular // total > nth_irregular
    without = rng.random(len(index)) < rules["without_affinities_share"]
    regular = np.where(without, tables.SEED_WITHOUT_AFFINITIES, tables.ORDINARY_SEED)
    return np.where(irregular, tables.FIRST_IRREGULAR_SEED + nth_irregular % len(rules["wild_seeds"]), regular)


def _frames(block: tables.Block, *, real: bool) -> dict[str, pl.DataFrame]:
    """The users' frames. Shadow users' slots and signals have their nodes, and they have no persona and no ranking event.

    Real users' references are missing as applications leave them, and some have personas and events.
    """
    rng, rules, count = block.rng, block.scene.profile.world["real_users"], len(block.slots.trip)
    users = tables.users(block)
    trips = tables.trips(block, users["id"])
    missing_node = rng.random(count) < rules["slot_without_node"] if real else np.zeros(count, dtype=np.bool_)
    slots = tables.itinerary_slots(block, trips["id"], missing_node)
    signals = tables.behavioral_signals(block, trips, slots["id"], missing_node)
    frames = {"User": users, "Trip": trips, "ItinerarySlot": slots, "BehavioralSignal": signals}
    if not real:
        return frames
    frames["BehavioralSignal"] = tables.real_signals(block, signals)
    known = rng.random(len(users)) < rules["with_persona"]
    known[0] = True  # even the smallest world has rows that are not the job's
    logged = known[block.scene.trips.user] & (rng.random(len(trips)) < rules["trip_with_events"])
    logged[0] = True
    return frames | {
        "PersonaDimension": tables.persona_dimensions(block, trips, known),
        "RankingEvent": tables.ranking_events(block, trips, slots, logged),
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
        for model, frame in world.items():
            if model == "Trip":  # COPY can't convert text to jsonb
                own = {name: scope.naming.column(model, name) for name in frame.columns}
                names = {name: (column, quote_identifier(name)) for name, column in own.items()}
                names["personaSeed"] = (own["personaSeed"], '"personaSeed"::pg_catalog.jsonb')
                insert_through_temporary(connection, scope.naming.table(model), frame, names)
            else:
                copy_rows(connection, scope, model, frame)
            rows[model] = rows.get(model, 0) + frame.height
            on_rows(frame.height)
    return rows
