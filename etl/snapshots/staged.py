"""The account of a snapshot's data files: what the manifest and the summary say of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from etl.triples.dataset import GONE, Dataset
from etl.triples.expansion import SMALL_CATALOG
from etl.triples.generate import NO_NEGATIVES, WHOLE_CATALOGUE_SEEN


@dataclass(frozen=True)
class FileEntry:
    """One published file, as the manifest lists it: path inside the snapshot, rows, bytes, SHA-256."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PartitionEntry:
    """What a partition holds. `positives` are those that have a triple; `split` is None where there is none."""

    folder: str
    split: str | None
    city: str
    events: int
    positives: int
    triples: int
    weight: float


@dataclass
class DataSummary:
    """The account of what was staged: the data `files`, and those `beside` them that are about the data.

    Events x selected = `positives` in the triples + `positives_left_out`, by reason. `signs` says for each city that
    is kept whether they teach what people like (`etl.triples.bias`); `negatives` what the strategies came to. `name` is the
    snapshot's; None as long as it has none, and where it is not to be published.
    """

    files: list[FileEntry] = field(default_factory=list)
    sidecars: list[FileEntry] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    partitions: list[PartitionEntry] = field(default_factory=list)
    positives_left_out: dict[str, int] = field(
        default_factory=lambda: {SMALL_CATALOG: 0, NO_NEGATIVES: 0, WHOLE_CATALOGUE_SEEN: 0}
    )
    exhausted_users: int = 0
    cities_left_out: dict[str, str] = field(default_factory=dict)
    neg_sources: dict[str, int] = field(default_factory=dict)
    negatives: dict[str, dict[str, Any]] = field(default_factory=dict)
    popularity_correlation: dict[str, float | None] = field(default_factory=dict)
    split: dict[str, str | None] = field(default_factory=dict)
    name: str | None = None

    @property
    def content_sha256(self) -> str:
        """What the data files hold: equal for two snapshots whose data are equal, byte by byte."""
        lines = sorted(f"{entry.path}\x00{entry.sha256}\n" for entry in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def counts(self, dataset: Dataset) -> dict[str, Any]:
        """What the manifest and the summary say of it."""
        return {
            "events": self._per_city("events"),
            "triples": {city: n for city, n in self._per_city("triples").items() if city not in self.cities_left_out},
            "triples_by_neg_source": self.neg_sources,
            "positives": sum(entry.positives for entry in self.partitions),
            "positives_left_out": self.positives_left_out,
            "users_with_whole_catalog_seen": self.exhausted_users,
            "cities_left_out": self.cities_left_out,
            "negatives": self.negatives,
            "signs": self.popularity_correlation,
            "split": self.split,
            "partitions": [asdict(entry) for entry in self.partitions],
            "users": dataset.users.height,
            "items": dataset.items.height,
            "items_gone": dataset.items.filter(status=GONE).height,
        }

    def triples_of(self, parts: Sequence[str]) -> dict[str | None, int]:
        """The triples of each part of the split, those without any among them; of all under None where there are no parts."""
        found: dict[str | None, int] = dict.fromkeys(parts or (None,), 0)
        for entry in self.partitions:
            found[entry.split] += entry.triples
        return found

    def _per_city(self, what: str) -> dict[str, int]:
        cities = sorted({entry.city for entry in self.partitions}, key=str.encode)
        return {city: sum(getattr(entry, what) for entry in self.partitions if entry.city == city) for city in cities}
