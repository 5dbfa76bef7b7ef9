"""Times negative sampling with `catalog:16`: uniform and by popularity, in a city of our size and in a large one.

Each user has 30 seen items, which are rejected, and 60 positives with a sample each. The first samples are compared with the
algorithms of docs/internals.md in plain Python. All are checked: from the pool, without repeats.

    python -m benchmarks.triples.sampling [--draws 500000] [--rounds 5] [--save]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.command import command_parser, present
from benchmarks.harness.measure import call_in_process, interleave
from benchmarks.harness.results import (
    environment,
    table_row,
    target_entry,
    targets_table,
    variant_entry,
    variants_table,
)
from etl.transform.arrays import I64, U64, Flags, Positions
from etl.triples.sampling import AliasTable, SamplingPools, build_pools, integer_weights, sample

WANTED, SEEN, PER_USER = 16, 30, 60
CHECKED = 200
MIN_MILLIONS = 20.0
ALPHA = 0.5
CASES = {
    "72 items": (72, None),
    "5,000 items": (5_000, None),
    f"72 items, by popularity (alpha {ALPHA:g})": (72, ALPHA),
    f"5,000 items, by popularity (alpha {ALPHA:g})": (5_000, ALPHA),
}

_MASK = 2**64 - 1


@dataclass(frozen=True)
class Case:
    """Input of a case: a key and a group per sample; the pools, and a table of weights if popularity counts."""

    keys: U64
    groups: I64
    seen: Positions
    pools: SamplingPools
    table: AliasTable | None

    @classmethod
    def drawn(cls, draws: int, items: int, alpha: float | None) -> Case:
        """Inputs for that many samples from a catalogue of that many items."""
        rng = np.random.default_rng(0)
        users = -(-draws // PER_USER)
        seen = np.sort(rng.permuted(np.tile(np.arange(items, dtype=np.int32), (users, 1)), axis=1)[:, :SEEN], axis=1)
        # Popularity as Zipf has it, in no order.
        counts = (10_000 / (rng.permutation(items) + 10)).astype(np.int64)
        return cls(
            keys=rng.integers(0, 2**64, draws, dtype=np.uint64),
            groups=np.arange(draws) // PER_USER,
            seen=seen,
            pools=build_pools(items, np.arange(users).repeat(SEEN), seen.ravel(), users),
            table=None if alpha is None else AliasTable.of(integer_weights(counts, alpha)),
        )

    def run(self) -> tuple[Positions, Flags]:
        """Run all samples."""
        return sample(self.keys, self.groups, WANTED, self.pools, self.table)


def number(key: int, place: int) -> int:
    """Return the given number of splitmix64 of a key."""
    z = (key + (place + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def sample_uniform(key: int, pool: list[int]) -> list[int]:
    """Sample once by Floyd's algorithm."""
    taken: list[int] = []
    for attempt in range(WANTED):
        last = len(pool) - WANTED + attempt
        place = (number(key, attempt) >> 32) * (last + 1) >> 32
        taken.append(last if place in taken else place)
    return [pool[place] for place in taken]


def sample_weighted(key: int, pool: list[int], table: AliasTable) -> list[int]:
    """Sample once from an alias table: what is not in the pool, or taken, is sampled again. Only as many as attempts find."""
    taken: list[int] = []
    for attempt in range(8 * WANTED):
        drawn = number(key, attempt // 2)
        slot, within = divmod((drawn % 2**32 if attempt % 2 else drawn >> 32) * len(table.weights), 2**32)
        item = slot if within << 32 < int(table.thresholds[slot]) else int(table.aliases[slot])
        taken += [item] if item in pool and item not in taken and len(taken) < WANTED else []
    return taken


def check_samples(case: Case) -> None:
    """Raise RuntimeError if a sample is wrong."""
    positions, counts = case.run()
    every = np.arange(case.pools.items)
    for row in range(CHECKED):
        pool = np.setdiff1d(every, case.seen[case.groups[row]]).tolist()
        key = int(case.keys[row])
        wanted = sample_uniform(key, pool) if case.table is None else sample_weighted(key, pool, case.table)
        if positions[: len(wanted), row].tolist() != wanted:
            raise RuntimeError("A draw is not that of the algorithm in plain Python.")
    ordered = np.sort(positions, axis=0)
    seen = np.zeros((len(case.seen), len(every)), np.bool_)
    np.put_along_axis(seen, case.seen, values=True, axis=1)
    if not counts.all() or (ordered[1:] == ordered[:-1]).any() or seen[case.groups, positions].any():
        raise RuntimeError("A sample has an item twice, too few items, or one that its user has seen.")


def time_case(case: Case) -> float:
    """Return the seconds of all samples."""
    start = time.perf_counter()
    case.run()
    return time.perf_counter() - start


def measure_case(name: str, draws: int) -> dict[str, float]:
    """Run one case in this process, for `call_in_process`."""
    return {"seconds": time_case(Case.drawn(draws, *CASES[name]))}


def measure(draws: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of each case. Raises RuntimeError if a sample is wrong."""
    cases = {name: Case.drawn(draws, *how) for name, how in CASES.items()}
    for case in cases.values():
        check_samples(case)
    seconds = interleave({name: partial(time_case, case) for name, case in cases.items()}, rounds)
    peaks = {
        name: call_in_process("benchmarks.triples.sampling:measure_case", None, name=name, draws=draws).peak_mib
        for name in CASES
    }
    drawn = draws * WANTED
    millions = {name: drawn / statistics.median(each) / 1e6 for name, each in seconds.items()}
    return {
        "made_with": environment(None),
        "rows": {"draws": draws, "negatives": drawn},
        "variants": {name: variant_entry(each, peaks[name]) for name, each in seconds.items()},
        "millions_per_second": {name: round(each, 1) for name, each in millions.items()},
        "targets": [
            target_entry(f"catalog:{WANTED} of {name}: millions of negatives a second", each, at_least=MIN_MILLIONS)
            for name, each in millions.items()
        ],
    }


def markdown(results: Mapping[str, Any]) -> str:
    """Targets, variants, and the rate of each case."""
    lines = [table_row(("case", "million a second")), table_row(("---", "---:"))]
    lines += [table_row((name, f"{each:.1f}")) for name, each in results["millions_per_second"].items()]
    parts = [targets_table(results["targets"]), variants_table(results["variants"]), "\n".join(lines) + "\n"]
    return "\n".join([f"{results['rows']['negatives']:,} negatives in each case.\n", *parts])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    parser = command_parser("triples.sampling", "Time the draws of catalog:16.")
    parser.add_argument("--draws", type=int, default=500_000, help=f"how many positives get {WANTED} negatives")
    parser.add_argument("--rounds", type=int, default=5, help="how many turns each case takes")
    given = parser.parse_args(arguments)
    results = measure(given.draws, given.rounds)
    head = (
        f"# Negative sampling\n\n`python -m benchmarks sampling --save`: {given.draws:,} positives with {WANTED} "
        f"negatives each, {SEEN} items seen by each user, {PER_USER} positives a user; {given.rounds} rounds in turns, "
        "all cores."
    )
    return present("sampling", results, head, markdown(results), save=given.save)


if __name__ == "__main__":
    sys.exit(main())
