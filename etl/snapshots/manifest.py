"""The manifest of a snapshot: its shape, building one from what was staged, and parsing one from any source.

A manifest is checked once, where it is read: everything that uses it afterwards may rely on these types. Unknown keys are
kept unchecked. docs/contract.md describes each key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NotRequired, TypedDict, get_args

import msgspec

from etl.errors import DataError, escape_control_characters
from etl.settings.values import Task
from etl.triples.dataset import GONE, Dataset
from etl.triples.partitions import Kind, no_exclusions

FORMAT = 1

_MAX_COUNT = 2**53
"""Larger numbers are not plausible as counts, and their sums may overflow."""

NAME_BYTES = 255
"""The longest name that a file system allows."""

Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]
Counts = dict[str, Count]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Interval(TypedDict):
    """A mean over users, with its interval of 95%; null without any user."""

    mean: float | None
    low: float | None
    high: float | None


RANKER_TEXT = {
    "model": "BPR on these triples",
    "popularity": "popularity by events",
    "popularity_by_users": "popularity by users",
    "own_history": "own history, popularity by events",
    "own_history_by_users": "own history, popularity by users",
    "users_by_distance": "users \N{DIVISION SIGN} distance",
    "affinity": "affinity",
    "random": "chance",
}
"""Texts of the rankings of a probe, in the order in which they are shown."""


class ProbeLine(TypedDict):
    """What a probe found, in the manifest."""

    auc: Interval
    auc_of_popularity: Interval
    verdicts: NotRequired[list[str]]


class ProbeMetrics(TypedDict):
    """The figures of one ranking."""

    auc: Interval
    ndcg_at_10: Interval
    recall_at_10: Interval


class ProbeScopes(TypedDict):
    """The figures of one ranking over all held-out items, and over those new to the user."""

    all: ProbeMetrics
    new: ProbeMetrics


class ProbeVerdict(TypedDict):
    """Whether the data add value, in one or two sentences."""

    text: str


class ProbeNext(TypedDict):
    """What a probe found about the next item: figures by ranking."""

    users: Count
    choices: Count
    rankings: dict[str, ProbeMetrics]
    verdict: ProbeVerdict


class Probe(TypedDict):
    """`probe.json`, as far as the report shows it: figures by ranking.

    Earlier releases wrote neither verdicts nor the next item.
    """

    split: str
    users: Count
    rankings: dict[str, ProbeScopes]
    users_passed_over: NotRequired[Count]
    users_in_all: NotRequired[Count]
    verdict: NotRequired[dict[Literal["all", "new"], ProbeVerdict]]
    next: NotRequired[ProbeNext]


class Settings(TypedDict):
    """The settings that decided the data. An older manifest lacks those that a later release added."""

    negatives: list[str]
    split: str
    audience: str
    rows_per_file: Annotated[int, msgspec.Meta(ge=1, le=_MAX_COUNT)]
    schema: NotRequired[str | None]
    naming: NotRequired[str]
    shadow_prefix: NotRequired[str]
    shadow_domain: NotRequired[str | None]
    seed: NotRequired[int]
    reject: NotRequired[str]
    catalog_alpha: NotRequired[float | None]
    min_catalog: NotRequired[Count]
    small_catalog: NotRequired[str]
    city_weight: NotRequired[list[tuple[str, float]]]
    task: NotRequired[Annotated[list[Task], msgspec.Meta(min_length=1)]]
    shuffle: NotRequired[bool]
    history: NotRequired[bool]
    ids: NotRequired[str]
    vocab_from: NotRequired[str | None]


class Negatives(TypedDict):
    """What `--negatives` came to in a city."""

    negatives: list[str]
    catalog_alpha: NotRequired[float | None]


@dataclass(frozen=True)
class PartitionEntry:
    """One (split, city). `split` is None without a split; `positives` and `choices` count those that have a row.

    `interactions`, `choices` and `next` are 0 also where an earlier release counted none.
    """

    folder: str
    split: str | None
    city: str
    events: Count
    positives: Count
    triples: Count
    weight: Annotated[float, msgspec.Meta(ge=0)]
    interactions: Count = 0
    choices: Count = 0
    next: Count = 0


class Published(TypedDict):
    """The counts of what was published."""

    events: Counts
    interactions: NotRequired[Counts]
    triples: Counts
    next: NotRequired[Counts]
    choices: NotRequired[Count]
    choices_left_out: NotRequired[Counts]
    triples_by_neg_source: Counts
    positives: Count
    positives_left_out: Counts
    positives_in_another_city: NotRequired[Count]
    cities_left_out: dict[str, str]
    negatives: dict[str, Negatives]
    signs: dict[str, float | None]
    split: dict[str, str | None]
    partitions: list[PartitionEntry]
    users: Count
    items: Count
    users_with_whole_catalog_seen: Count
    items_gone: Count


@dataclass(frozen=True)
class FileEntry:
    """A published file: its path inside the snapshot, rows (0 for what is no Parquet file), bytes, SHA-256."""

    path: str
    rows: Count
    bytes: Count
    sha256: Hash


class Tool(TypedDict):
    """What wrote the manifest."""

    name: str
    version: str


class Step(TypedDict):
    """A step of the run; `rows` is null where it counts none."""

    step: str
    seconds: float
    rows: Count | None


class Profile(TypedDict):
    """How long the run took."""

    steps: list[Step]
    seconds: float
    peak_mib: float


class ForeignKind(TypedDict):
    """One kind of rows that a run does not make: a dimension, or a surface and a model."""

    model: str
    rows: Count
    dimension: NotRequired[str]
    surface: NotRequired[str]
    modelName: NotRequired[str]
    modelVersion: NotRequired[str]


class ForeignRows(TypedDict):
    """The rows that a run does not make, and whether they were kept."""

    kept: bool
    kinds: list[ForeignKind]


class ConfirmedPositives(TypedDict):
    """How many of the positives a slot confirms."""

    positives: Count
    confirmed: Count


class Manifest(TypedDict):
    """A manifest. What only `run` counts is not in that of an `export` or `expand`."""

    snapshot: str
    content_sha256: Hash
    inputs_sha256: NotRequired[Hash]
    linked_from: NotRequired[str]
    run_id: str
    started_at: Moment
    ended_at: Moment
    tool: Tool
    libraries: dict[str, str]
    settings: Settings
    profile: Profile
    warnings: list[str]
    published: Published
    cities: dict[str, str]
    files: list[FileEntry]
    source_rows: NotRequired[Counts]
    set_aside: NotRequired[dict[str, Counts]]
    filtered: NotRequired[Counts]
    shadow_users: NotRequired[Count]
    shadow_users_without_persona: NotRequired[Count]
    persona_rows: NotRequired[Count]
    persona_values_by_source: NotRequired[Counts]
    affinities_dropped: NotRequired[Counts]
    openness_dropped: NotRequired[Counts]
    ranking_events: NotRequired[Count]
    days_without_event: NotRequired[Counts]
    positives: NotRequired[Count]
    positives_outside_candidates: NotRequired[Count]
    days_in_several_cities: NotRequired[Count]
    events_left_out: NotRequired[Counts]
    foreign_rows: NotRequired[ForeignRows]
    surfaces: NotRequired[Counts]
    surfaces_excluded: NotRequired[Counts]
    confirmed_positives: NotRequired[ConfirmedPositives]
    signals_backfilled: NotRequired[Count]
    written: NotRequired[dict[str, Counts]]
    expanded_from: NotRequired[str]
    probe: NotRequired[ProbeLine]


@dataclass
class DataSummary:
    """What was staged: the data `files`, the `sidecars` about the data (report, probe), and the counts of the manifest.

    Events x selected = `positives` of the partitions + `positives_left_out`, by reason. `popularity_correlation` has each city
    with triples (`etl.triples.partitions.popularity_correlation`), `negatives` its resolved strategies. `name` is the
    snapshot's name: None until it has one, and if nothing is published. `inputs_sha256` is the hash of what the files were made
    from, `linked_from` the snapshot whose files they are; None if that is unknown, and if they were written.
    """

    files: list[FileEntry] = field(default_factory=list)
    sidecars: list[FileEntry] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    partitions: list[PartitionEntry] = field(default_factory=list)
    positives_left_out: dict[str, int] = field(default_factory=no_exclusions)
    positives_in_another_city: int = 0
    choices_left_out: dict[str, int] = field(default_factory=no_exclusions)
    exhausted_users: int = 0
    cities_left_out: dict[str, str] = field(default_factory=dict)
    neg_sources: dict[str, int] = field(default_factory=dict)
    negatives: dict[str, dict[str, Any]] = field(default_factory=dict)
    popularity_correlation: dict[str, float | None] = field(default_factory=dict)
    split: dict[str, str | None] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ("triples",)
    name: str | None = None
    inputs_sha256: str | None = None
    linked_from: str | None = None

    @property
    def content_sha256(self) -> str:
        """Hash of the paths and hashes of all data files: equal exactly if the data are equal byte by byte."""
        lines = sorted(f"{entry.path}\x00{entry.sha256}\n" for entry in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def counts(self, dataset: Dataset) -> dict[str, Any]:
        """The counts under `published` in the manifest."""
        return {
            "events": self._per_city("events"),
            "interactions": self._per_city("interactions"),
            "triples": self._per_kept_city("triples"),
            **(self._of_choices() if "next" in self.tasks else {}),
            "triples_by_neg_source": self.neg_sources,
            "positives": sum(entry.positives for entry in self.partitions),
            "positives_left_out": self.positives_left_out,
            "positives_in_another_city": self.positives_in_another_city,
            "users_with_whole_catalog_seen": self.exhausted_users,
            "cities_left_out": self.cities_left_out,
            "negatives": self.negatives,
            "signs": self.popularity_correlation,  # its name in the contract
            "split": self.split,
            "partitions": [asdict(entry) for entry in self.partitions],
            "users": dataset.users.height,
            "items": dataset.items.height,
            "items_gone": dataset.items.filter(status=GONE).height,
        }

    def rows_of(self, task: Task, parts: Sequence[str]) -> dict[str | None, int]:
        """The rows of a task in each part of the split, 0 included; without parts, all of them under None."""
        found: dict[str | None, int] = dict.fromkeys(parts or (None,), 0)
        for entry in self.partitions:
            found[entry.split] += getattr(entry, task)
        return found

    def _of_choices(self) -> dict[str, Any]:
        return {
            "next": self._per_kept_city("next"),
            "choices": sum(entry.choices for entry in self.partitions),
            "choices_left_out": self.choices_left_out,
        }

    def _per_kept_city(self, what: Task) -> dict[str, int]:
        """The rows of a task by city; none where it is not asked for."""
        rows = self._per_city(what) if what in self.tasks else {}
        return {city: n for city, n in rows.items() if city not in self.cities_left_out}

    def _per_city(self, what: str) -> dict[str, int]:
        cities = sorted({entry.city for entry in self.partitions}, key=str.encode)
        return {city: sum(getattr(entry, what) for entry in self.partitions if entry.city == city) for city in cities}


def build_manifest(name: str, facts: Mapping[str, Any], account: DataSummary) -> dict[str, Any]:
    """Build the manifest of a snapshot from its summary and the run's `facts`."""
    return {
        "format": FORMAT,
        "snapshot": name,
        "content_sha256": account.content_sha256,
        **({"inputs_sha256": account.inputs_sha256} if account.inputs_sha256 else {}),
        **({"linked_from": account.linked_from} if account.linked_from else {}),
        **facts,
        "cities": account.folders,
        "files": [asdict(entry) for entry in [*account.files, *account.sidecars]],
    }


def to_json(facts: Mapping[str, Any]) -> bytes:
    """Encode a manifest, or another JSON file of a snapshot."""
    return (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()


def file_entries(manifest: Mapping[str, Any]) -> list[FileEntry]:
    """The files that a checked manifest lists."""
    return msgspec.convert(manifest["files"], list[FileEntry])


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Parse and check a manifest. `where` is its location in messages. Raises DataError if it is not valid."""
    manifest: dict[str, Any] = _parse(content, Manifest, where, "manifest")
    problem = _path_problem(entry["path"] for entry in manifest["files"]) or _city_problem(manifest)
    if problem:
        raise DataError(
            f"{escape_control_characters(where)} can't be read as a manifest: {escape_control_characters(problem)}."
        )
    return manifest


def parse_probe(content: bytes, where: str) -> dict[str, Any]:
    """Parse and check a `probe.json`. Keys that it need not have are there, empty. Raises DataError if it is not valid."""
    optional = {"users_passed_over": 0, "users_in_all": 0, "verdict": {}, "next": None}
    return optional | _parse(content, Probe, where, "probe's result")


def _parse(content: bytes, shape: Any, where: str, what: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = msgspec.json.decode(content)
        msgspec.convert(found, shape)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        why = (
            "it is nested too deeply"
            if isinstance(error, RecursionError)
            else escape_control_characters(str(error))[:300]
        )
        raise DataError(
            f"{escape_control_characters(where)} can't be read as a {what}: {why}. Publish again."
        ) from None
    return found


def _path_problem(paths: Iterable[str]) -> str | None:
    """Describe the first path that is not of a file inside the snapshot's folder; None if there is none."""
    seen: set[str] = set()
    for path in paths:
        parts = PurePosixPath(path).parts
        shown = repr(path[:80])
        if not parts or path.startswith("/") or ".." in parts or "\x00" in path or "/".join(parts) != path:
            return f"{shown} is outside of its folder"
        if any(len(part.encode()) > NAME_BYTES for part in parts):
            return f"{shown} is too long for a file system"
        if path in seen:
            return f"{shown} is listed twice"
        seen.add(path)
    return None


def _city_problem(manifest: dict[str, Any]) -> str | None:
    """Describe the first file of a partitioned table whose folder belongs to no city; None if there is none."""
    for entry in manifest["files"]:
        kind, *folders = entry["path"].split("/")[:-1] or [""]
        if kind in get_args(Kind) and (not folders or folders[-1] not in manifest["cities"]):
            return f"{entry['path'][:80]!r} is in the folder of no city"
    return None
