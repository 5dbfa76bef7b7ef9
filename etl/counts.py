"""Counts by name, added up: what several buckets say of themselves, as one."""

from __future__ import annotations

from collections.abc import Mapping


def added(some: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """The sums by name, names in the order in which they are met first."""
    return {name: some.get(name, 0) + more.get(name, 0) for name in {**some, **more}}
