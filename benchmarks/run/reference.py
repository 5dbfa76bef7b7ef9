"""Persona rows, candidates and ranking events in plain Python, one user at a time.

The part of `benchmarks.run.row_by_row` that needs no database. An independent implementation: from `etl` it takes only the
affinity model's numbers and the names.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from benchmarks.harness.database import SEED
from etl.transform.candidates import TOP_K
from etl.transform.personas import affinity_model
from etl.transform.ranking_events import MODEL_NAME, MODEL_VERSION, SURFACE

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "bpr-etl")
_64_BITS = 2**64 - 1
_TAKEN = ("confirmed", "active", "completed")
_DIMENSION_OF = {
    "pace": "pace_preference",
    "budget_tier": "budget_sensitivity",
    "social_mode": "social_mode",
    "time_orientation": "time_orientation",
    "primary_interest": "primary_interest",
}
_CONFIDENCE = {"onboarding": 1.0, "default": 0.0, "reconstructed": 0.95}


def row_id(kind: str, *key: str) -> str:
    """Return the id of a row, as in docs/internals.md."""
    return str(uuid.uuid5(_NAMESPACE, "\x00".join([kind, str(SEED), *key])))


def hash64(text: str) -> int:
    """The first eight bytes of SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def mix64(z: int) -> int:
    """The finalizer of splitmix64."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _64_BITS
    return z ^ z >> 31


def personas(user: str, trips: Sequence[Any], known: set[str]) -> list[tuple[Any, ...]]:
    """Return the eight rows of a user; none if no trip has a seed that is an object."""
    seeds = ((created, json.loads(seed)) for _, _, _, created, seed in trips if seed is not None)
    first = next(((created, seed) for created, seed in seeds if isinstance(seed, dict)), None)
    if first is None:
        return []
    created, seed = first
    model = affinity_model().raw
    labels, found = {}, {}
    for axis, dimension in _DIMENSION_OF.items():
        there = isinstance(seed.get(axis), str)
        labels[axis] = seed[axis] if there else model["defaults"][axis]
        found[dimension] = (labels[axis], "onboarding" if there else "default")
    openness = _number(seed.get("cuisine_openness"))
    number = float(model["defaults"]["cuisine_openness"]) if openness is None else openness
    found["cuisine_openness"] = (repr(number).removesuffix(".0"), "default" if openness is None else "onboarding")
    often = "first_trip" if len(trips) == 1 else "returning" if len(trips) <= 3 else "frequent"
    found["trip_count"] = (often, "onboarding")
    found["category_affinities"] = _affinities(seed, labels, known)
    return [
        (
            row_id("persona_dimension", user, dimension),
            user,
            dimension,
            value,
            _CONFIDENCE[source],
            source,
            created,
            created,
        )
        for dimension, (value, source) in found.items()
    ]


def top_candidates(user: str, affinities: Mapping[str, float], nodes: Iterable[tuple[str, str, int]]) -> list[str]:
    """Return the top 20 of (node, category, hash of the node), by affinity, then by tie hash."""
    unknown, hashed = affinity_model().default_affinity, hash64(f"{SEED}\x00{user}")
    order = sorted((-affinities.get(category, unknown), mix64(hashed ^ h), node) for node, category, h in nodes)
    return [node for _, _, node in order[:TOP_K]]


def events(user: str, trip: tuple[str, datetime], slots: Sequence[Any], top: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a trip (id, start), one per day, from its slots (node, day, status) in order and the candidates."""
    trip_id, start = trip
    days: dict[int, list[str]] = {}
    for node, day, status in slots:
        taken = days.setdefault(day, [])
        if node is not None and status in _TAKEN and node not in taken:
            taken.append(node)
    for day, taken in days.items():
        ordinal = start.toordinal() + day - 1
        if top and date.min.toordinal() <= ordinal <= date.max.toordinal():
            event = row_id("ranking_event", trip_id, str(day))
            moment = datetime.combine(date.fromordinal(ordinal), start.time())
            latency = 200 + int(event[-8:], 16) % 601
            names = (event, user, trip_id, day, MODEL_NAME, MODEL_VERSION)
            yield (*names, sorted(top), top, taken, SURFACE, latency, moment)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _affinities(seed: dict[str, Any], labels: dict[str, str], known: set[str]) -> tuple[str, str]:
    """Return the vector as JSON and its source: the seed, or rebuilt from the labels."""
    raw = seed.get("category_affinities")
    numbers = {name: _number(value) for name, value in (raw if isinstance(raw, dict) else {}).items() if name in known}
    usable = {name: min(max(number, 0.0), 1.0) for name, number in numbers.items() if number is not None}
    vector, source = (usable, "onboarding") if usable else (_rebuilt(labels, known), "reconstructed")
    return json.dumps({name: round(vector[name], 6) + 0.0 for name in sorted(vector)}, ensure_ascii=False), source


def _rebuilt(labels: dict[str, str], known: set[str]) -> dict[str, float]:
    """The additive model: base vector of the interest, deltas of the other labels, clamp."""
    model = affinity_model().raw
    plain = {axis: model["label_synonyms"][axis].get(label, label) for axis, label in labels.items()}
    bases = model["base_by_primary_interest"]
    vector = dict(bases.get(plain["primary_interest"], bases[model["defaults"]["primary_interest"]]))
    axes = {
        "pace": "pace",
        "budget": "budget_tier",
        "social_mode": "social_mode",
        "time_orientation": "time_orientation",
    }
    for table, axis in axes.items():
        for category, delta in model[f"delta_by_{table}"].get(plain[axis], {}).items():
            vector[category] += delta
    low, high = model["clamp"]
    return {category: min(max(value, low), high) for category, value in vector.items() if category in known}
