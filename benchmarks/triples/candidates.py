"""Times the top 20 items of a city per user, at 100, 1,000 and 10,000 nodes per city, and compares with DuckDB.

Every user goes to two cities, whose nodes are of 15 categories of very different sizes; affinities are random. For some users
the result is compared node by node with an oracle in plain NumPy. DuckDB's hash differs, so for all users only the twenty
affinities are compared with it. DuckDB gets integer ids and precomputed hashes.

    python -m benchmarks.triples.candidates [--users 4000] [--rounds 3] [--save]
"""

from __future__ import annotations

import hashlib
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import dataframely as dy
import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.harness.command import command_parser, present
from benchmarks.harness.measure import call_in_process, interleave, median_ratio
from benchmarks.harness.results import (
    environment,
    table_row,
    target_entry,
    targets_table,
    variant_entry,
    variants_table,
)
from etl.transform import candidates as ours_
from etl.transform import ranking_events as rankings
from etl.transform.schemas import Affinities

SIZES = (100, 1_000, 10_000)
CITIES = ("Here", "There")
SHARES = np.array([30, 15, 11, 10, 9, 6, 5, 4, 3, 2, 2, 1, 1, 0.5, 0.5]) / 100
"""How a city's nodes divide into categories: about as in the synthetic world, with some that few nodes have."""
CHECKED_USERS, SEED, UNKNOWN = 200, 0, 0.5
MAX_GROWTH = 1.25

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class World:
    """Users, by number, and the nodes of both cities, ascending by id; `affinity` has a row per user."""

    users: list[str]
    nodes: list[str]
    city: Ints
    category: Ints
    affinity: Floats

    @classmethod
    def drawn(cls, users: int, nodes: int) -> World:
        """Return a random world with that many users, and that many nodes in each city."""
        rng = np.random.default_rng(SEED)
        categories, cities = len(SHARES), len(CITIES)
        sizes = np.maximum(1, np.floor(SHARES * nodes).astype(np.int64))
        sizes[0] += nodes - sizes.sum()
        ids = sorted(str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(cities * nodes))
        mixed = rng.permutation(cities * nodes)
        return cls(
            users=[str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(users)],
            nodes=ids,
            city=np.repeat(np.arange(cities), nodes)[mixed],
            category=np.tile(np.repeat(np.arange(categories), sizes), cities)[mixed],
            affinity=rng.random((users, categories)).round(2),
        )

    @cached_property
    def frames(self) -> tuple[pl.DataFrame, dy.DataFrame[Affinities], pl.DataFrame]:
        """Pairs, affinities and nodes as `etl.transform.candidates` takes them."""
        users, categories = pl.DataFrame({"user_id": self.users}), [f"c{each:02}" for each in range(len(SHARES))]
        ids = pl.Series(self.nodes)
        nodes = {
            "node_id": ids.cast(rankings.node_type(ids)),
            "city": pl.Series(CITIES).gather(self.city),
            "category": pl.Series(categories).gather(self.category),
        }
        wide = users.join(pl.DataFrame({"category": categories}), how="cross", maintain_order="left_right")
        liked = wide.with_columns(affinity=pl.Series(self.affinity.ravel()))
        pairs = users.join(pl.DataFrame({"city": CITIES}), how="cross", maintain_order="left_right")
        return pairs, Affinities.validate(liked), pl.DataFrame(nodes)

    def looked_at(self) -> int:
        """Return the pairs of user and node in the categories that reach a top 20: those that ours examines."""
        total = 0
        for city in range(len(CITIES)):
            sizes = np.bincount(self.category[self.city == city], minlength=len(SHARES))
            # A category is reached when fewer than 20 nodes are of one that the user likes better.
            better = (self.affinity[:, :, None] < self.affinity[:, None, :]) @ sizes
            total += int(((better < ours_.TOP_K) * sizes).sum())
        return total


def hashed(texts: Sequence[str]) -> U64:
    """Return the first eight bytes of SHA-256, computed by Python."""
    return np.array([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts], np.uint64)


def tie(user: np.uint64, nodes: U64) -> U64:
    """Return the tie hash of docs/internals.md."""
    z = nodes ^ user
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return cast("U64", z ^ (z >> np.uint64(31)))


def oracle(world: World, users: int) -> list[list[int]]:
    """Rank all nodes of each city for the first users: one list per (user, city)."""
    of_users, of_nodes = hashed([f"{SEED}\0{user}" for user in world.users[:users]]), hashed(world.nodes)
    found = []
    for user, key in enumerate(of_users):
        for city in range(len(CITIES)):
            here = np.flatnonzero(world.city == city)  # ascending by id, which decides last
            order = np.lexsort((here, tie(key, of_nodes[here]), -world.affinity[user, world.category[here]]))
            found.append(here[order[: ours_.TOP_K]].tolist())
    return found


def ours(world: World) -> Ints:
    """Return our ranking as node codes, one row per (user, city)."""
    pairs, affinities, nodes = world.frames
    found = ours_.candidates(pairs, affinities, nodes, UNKNOWN, SEED)
    ranked = pairs.join(found, on=["user_id", "city"], maintain_order="left")["ranked_ids"]
    return ranked.explode().to_physical().cast(pl.Int64).to_numpy().reshape(len(pairs), ours_.TOP_K)


class DuckDB:
    """The same world as DuckDB's tables, with two threads."""

    FROM = "FROM pairs JOIN liked USING (usr) JOIN nodes USING (city, category)"
    WAYS: Mapping[str, str] = {
        "DuckDB, max_by": (
            f"SELECT usr, city, max_by(node, row(affinity, hash(xor(u, v))), {ours_.TOP_K}) AS top {FROM} GROUP BY ALL"
        ),
        "DuckDB, row_number": (
            "SELECT usr, city, list(node) AS top FROM (SELECT usr, city, node, row_number() OVER "
            f"(PARTITION BY usr, city ORDER BY affinity DESC, hash(xor(u, v)), node) AS place {FROM} "
            f"QUALIFY place <= {ours_.TOP_K}) GROUP BY ALL"
        ),
    }

    def __init__(self, world: World) -> None:
        users, categories = world.affinity.shape
        user = np.arange(users, dtype=np.int32)
        keys = hashed([f"{SEED}\0{user}" for user in world.users])
        tables = {
            "pairs": {"usr": user.repeat(len(CITIES)), "city": np.tile(np.arange(len(CITIES)), users)},
            "liked": {
                "usr": user.repeat(categories),
                "u": keys.repeat(categories),
                "category": np.tile(np.arange(categories), users),
                "affinity": world.affinity.ravel(),
            },
            "nodes": {
                "node": np.arange(len(world.nodes), dtype=np.int32),
                "city": world.city,
                "category": world.category,
                "v": hashed(world.nodes),
            },
        }
        self.connection = duckdb.connect()
        self.connection.execute("SET threads = 2")
        for name, columns in tables.items():
            self.connection.register("given", pl.DataFrame(columns).to_arrow())
            self.connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")

    def top(self, way: str) -> Ints:
        """Return the codes of the top twenty, one row per (user, city), unordered within a row."""
        rows = self.connection.execute(f"SELECT top FROM ({self.WAYS[way]}) ORDER BY usr, city").fetchnumpy()["top"]
        return np.stack([np.asarray(row, np.int64) for row in rows])


def affinities(world: World, top: Ints) -> Floats:
    """The affinities of each row's nodes, highest first."""
    users = np.arange(len(top)) // len(CITIES)
    return -np.sort(-world.affinity[users[:, None], world.category[top]], axis=1)


def require_equal(world: World) -> None:
    """Raise RuntimeError if our ranking differs from the oracle's, node by node, or from DuckDB's, affinity by affinity."""
    found = ours(world)
    wanted = np.array(oracle(world, min(CHECKED_USERS, len(world.users))))
    if not np.array_equal(found[: len(wanted)], wanted):
        raise RuntimeError("Our candidates are not those of the oracle.")
    liked, other = affinities(world, found), DuckDB(world)
    for way in DuckDB.WAYS:
        if not np.array_equal(affinities(world, other.top(way)), liked):
            raise RuntimeError(f"{way}: other affinities than ours.")


def time_variant(way: str, world: World, tables: DuckDB) -> float:
    """Return the seconds of one way to all candidates."""
    start = time.perf_counter()
    tables.top(way) if way in DuckDB.WAYS else ours(world)
    return time.perf_counter() - start


def measure_variant(way: str, users: int, nodes: int) -> dict[str, float]:
    """Run one way in this process, for `call_in_process`."""
    world = World.drawn(users, nodes)
    if way in DuckDB.WAYS:
        return {"seconds": time_variant(way, world, DuckDB(world))}
    _ = world.frames
    start = time.perf_counter()
    ours(world)
    return {"seconds": time.perf_counter() - start}


def measure(users: int, rounds: int) -> dict[str, Any]:
    """Return seconds of each way at each size. Raises RuntimeError if the results differ."""
    seconds: dict[str, list[float]] = {}
    looked_at = {}
    for nodes in SIZES:
        world = World.drawn(users, nodes)
        require_equal(world)
        looked_at[nodes] = world.looked_at()
        tables = DuckDB(world)
        turns = {_name(way, nodes): partial(time_variant, way, world, tables) for way in ("ours", *DuckDB.WAYS)}
        seconds |= interleave(turns, rounds)
    most = SIZES[-1]
    peaks = {
        _name(way, most): call_in_process(
            "benchmarks.triples.candidates:measure_variant", None, way=way, users=users, nodes=most
        ).peak_mib
        for way in ("ours", *DuckDB.WAYS)
    }
    return {
        "made_with": environment(None),
        "rows": {"users": users, "pairs of user and city": users * len(CITIES)},
        "looked_at": looked_at,
        "variants": {name: variant_entry(each, peaks.get(name)) for name, each in seconds.items()},
        "targets": _targets(seconds, looked_at),
    }


def _targets(seconds: Mapping[str, list[float]], looked_at: Mapping[int, int]) -> list[dict[str, Any]]:
    few, most = SIZES[-2:]
    mine = seconds[_name("ours", most)]
    best = min((median_ratio(seconds[_name(way, most)], mine) for way in DuckDB.WAYS), default=0.0)
    growth = median_ratio(mine, seconds[_name("ours", few)]) / (looked_at[most] / looked_at[few])
    return [
        target_entry(f"candidates at {most:,} nodes: times faster than DuckDB", best, at_least=10),
        target_entry(
            f"candidates, {few:,} to {most:,} nodes: growth of time, of that of users x (20 + boundary category)",
            growth,
            at_most=MAX_GROWTH,
        ),
    ]


def _name(way: str, nodes: int) -> str:
    return f"{way}, {nodes:,} nodes"


def markdown(results: Mapping[str, Any]) -> str:
    """Format targets, variants, and the growth of the pairs that ours examines."""
    pairs = results["rows"]["pairs of user and city"]
    lines = [table_row(("nodes per city", "all pairs", "looked at", "share", "ours, s")), table_row(("---:",) * 5)]
    for nodes, looked in results["looked_at"].items():
        every = int(nodes) * pairs
        median = results["variants"][_name("ours", int(nodes))]["median"]
        lines.append(
            table_row((f"{int(nodes):,}", f"{every:,}", f"{looked:,}", f"{looked / every:.1%}", f"{median:.3f}"))
        )
    parts = [targets_table(results["targets"]), variants_table(results["variants"]), "\n".join(lines) + "\n"]
    return "\n".join([f"{results['rows']['users']:,} users in two cities.\n", *parts])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    parser = command_parser("triples.candidates", "Time the top 20 per user.")
    parser.add_argument("--users", type=int, default=4_000, help="how many users go to both cities")
    parser.add_argument("--rounds", type=int, default=3, help="how many turns each way takes")
    given = parser.parse_args(arguments)
    results = measure(given.users, given.rounds)
    head = (
        f"# Candidates\n\n`python -m benchmarks candidates --save`: the top 20 of two cities for {given.users:,} users, "
        f"{given.rounds} rounds in turns; DuckDB has whole numbers for ids and ready-made hashes."
    )
    return present("candidates", results, head, markdown(results), save=given.save)


if __name__ == "__main__":
    sys.exit(main())
