"""Real visits in five cities as the application's tables, and the main job run on them.

The data are the Flickr User-POI Visits (Lim et al., IJCAI 2015; Melbourne: Wang et al., CIKM 2016), one folder of
Parquet files per city: `nodes`, `trips`, `visits`. They are not part of this repository: BPR_ETL_REALDATA names their
folder. Without it the script prints a note and exits 0.

Every city gets a database of its own, Perth one with Prisma's mapped (snake-case) names, and then all five go into one,
where a user of several cities is one user. On each: `run`, `validate`, `export`. All checks must pass, and the export must
publish the same bytes as the run. The databases are made for this, under new names, and dropped at the end.

Real data have no signals, and the design's validation query asks for some, so each visit gives one `complete` signal
without a model version, which gives the backfill something to do as well.

    python -m benchmarks.run.realdata [--database-url URL] [--out FOLDER] [--save]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import polars as pl

import etl
from benchmarks.harness.command import command_parser, with_exit_codes
from benchmarks.harness.database import fresh_database, server
from benchmarks.harness.results import RESULTS, describe_environment, environment, table_row
from etl.pipeline import database
from etl.pipeline.context import RunResult
from etl.postgres.connection import connect
from etl.postgres.schema import check as schema
from etl.postgres.scope import Scope
from etl.postgres.transaction import transaction
from etl.postgres.url import parse_url
from etl.settings.model import Settings
from etl.settings.sources import load_settings
from etl.snapshots.reading.snapshot import MANIFEST
from etl.synthetic.tables import SCHEMAS
from etl.synthetic.world import WorldChunk, copy_world
from etl.transform.personas import affinity_model

Kind = Literal["model", "mapped"]

CITIES: Mapping[str, Kind] = MappingProxyType(
    {"toronto": "model", "melbourne": "model", "budapest": "model", "glasgow": "model", "perth": "mapped"}
)
"""The folder of each city, and how the tables of its database are named."""

PREFIX = "shadow-"
LOWEST, HIGHEST = 0.05, 0.98

_OURS = {
    "culture": (
        "Museum",
        "Cultural",
        "Historical",
        "Education",
        "Education Centre",
        "Religion",
        "Place of Worship",
        "Structure",
    ),
    "outdoors": ("Park", "Beach", "Vacant Land"),
    "active": ("Sport", "Leisure/Recreation"),
    "entertainment": ("Amusement", "Entertainment", "Place Of Assembly"),
    "shopping": ("Shopping", "Retail", "Warehouse/Store"),
    "wellness": ("Health Services",),
}
ANY_OTHER = "experience"
CATEGORY_OF: Mapping[str, str] = MappingProxyType({theirs: ours for ours, names in _OURS.items() for theirs in names})
"""ActivityCategory by the category of the source; all others are ANY_OTHER."""


def locate() -> Path | None:
    """Return the folder that BPR_ETL_REALDATA names, with one folder per city; None if there is none."""
    name = os.environ.get("BPR_ETL_REALDATA")
    return Path(name) if name and Path(name).is_dir() else None


# --- From the files to the application's tables: pure functions from frame to frame ---


def read_world(folders: Iterable[Path]) -> WorldChunk:
    """The tables for the cities in these folders, together: a user of several cities is one user."""
    parts = [
        [pl.read_parquet(folder / f"{name}.parquet") for name in ("nodes", "trips", "visits")] for folder in folders
    ]
    nodes, trips, visits = (pl.concat(frames) for frames in zip(*parts, strict=True))
    return to_world(nodes, trips, visits)


def to_world(nodes: pl.DataFrame, trips: pl.DataFrame, visits: pl.DataFrame) -> WorldChunk:
    """The source's nodes, trips and visits as the database's rows.

    Ids are the source's own. Nothing is corrected or excluded: camera dates from 1864 to 4501, nodes without a visit
    and names that come twice are what this is for.
    """
    activity_nodes, journeys = node_table(nodes), trip_table(trips)
    slots = slot_table(visits)
    seeds = persona_seeds(journeys, slots, activity_nodes)
    return {
        "User": user_table(trips),
        "Trip": _columns("Trip", journeys.drop("personaSeed").join(seeds, on="userId", how="left").sort("id")),
        "ActivityNode": activity_nodes,
        "ItinerarySlot": slots,
        "BehavioralSignal": signal_table(slots, journeys),
    }


def user_table(trips: pl.DataFrame) -> pl.DataFrame:
    """The columns of User. Grain: a user, sorted by id; the email `shadow-<user id>@example.test`."""
    users = trips.select(id="user_id").unique().sort("id")
    return _columns("User", users.with_columns(email=pl.format(f"{PREFIX}{{}}@example.test", "id")))


def trip_table(trips: pl.DataFrame) -> pl.DataFrame:
    """The columns of Trip, without a persona yet. Grain: a trip, sorted by id.

    `startDate` and `createdAt` are midnight of the first day (the source doesn't know when a trip was planned);
    `personaSeed` is null.
    """
    start = pl.col("start_date").cast(pl.Datetime("ms"))
    named = trips.select(
        "city",
        id="trip_id",
        userId="user_id",
        startDate=start,
        createdAt=start,
        personaSeed=pl.lit(None, dtype=pl.String),
    )
    return _columns("Trip", named.sort("id"))


def node_table(nodes: pl.DataFrame) -> pl.DataFrame:
    """The columns of ActivityNode. Grain: a node, sorted by id; all approved, coordinates in degrees."""
    named = nodes.select(
        "city",
        "name",
        id="node_id",
        category=pl.col("category").replace_strict(CATEGORY_OF, default=ANY_OTHER, return_dtype=pl.String),
        status=pl.lit("approved"),
        latitude="lat",
        longitude="lon",
    )
    return _columns("ActivityNode", named.sort("id"))


def slot_table(visits: pl.DataFrame) -> pl.DataFrame:
    """The columns of ItinerarySlot. Grain: a visit, by (trip, day, order); all completed, because every visit happened."""
    named = visits.sort("trip_id", "day_number", "sort_order").select(
        id=pl.format("{}/{}/{}", "trip_id", "day_number", "sort_order"),
        tripId="trip_id",
        activityNodeId="node_id",
        dayNumber="day_number",
        sortOrder="sort_order",
        status=pl.lit("completed"),
    )
    return _columns("ItinerarySlot", named)


def signal_table(slots: pl.DataFrame, trips: pl.DataFrame) -> pl.DataFrame:
    """The columns of BehavioralSignal. Grain: one `complete` per slot, in the slots' order; no model version (null)."""
    owners = trips.select("userId", tripId="id")
    signals = slots.join(owners, on="tripId", how="left", maintain_order="left").select(
        "userId",
        "tripId",
        "activityNodeId",
        id=pl.col("id") + "/complete",
        slotId="id",
        signalType=pl.lit("complete"),
        modelVersion=pl.lit(None, dtype=pl.String),
    )
    return _columns("BehavioralSignal", signals)


def persona_seeds(trips: pl.DataFrame, slots: pl.DataFrame, nodes: pl.DataFrame) -> pl.DataFrame:
    """What each user liked before the latest trip. Grain: a user with a visit before it, by id; `userId`, `personaSeed`.

    `personaSeed` is the JSON text of {"category_affinities": {category: affinity}}, with every category of the affinity
    model. Where the user made n visits in all trips but the latest by (startDate, trip id), n_c of them to nodes of
    category c:

        share_c    = (n_c + 1) / (n + number of categories)                Laplace: as if every category was visited once
        affinity_c = 0.05 + (0.98 - 0.05) * share_c / max(share)           rounded to 6 decimals

    So the favourite has 0.98, and the more visits speak for it, the lower the others fall: one visit leaves them at
    0.515, ten at 0.135. The latest trip has no part in it, so a split that tests on it has no leak.
    """
    latest = trips.sort("startDate", "id").unique("userId", keep="last", maintain_order=True)
    earlier = trips.join(latest, on="id", how="anti").select("userId", tripId="id")
    visited = slots.join(earlier, on="tripId").join(nodes.select("category", activityNodeId="id"), on="activityNodeId")
    categories: list[str] = affinity_model().raw["categories"]
    share = pl.col("visits").fill_null(0) + 1  # divided by the same number for all of a user: it falls out below
    affinities = (
        visited.select("userId")
        .unique()
        .join(pl.DataFrame({"category": categories}), how="cross")
        .join(visited.group_by("userId", "category").len("visits"), on=["userId", "category"], how="left")
        .with_columns(affinity=(LOWEST + (HIGHEST - LOWEST) * share / share.max().over("userId")).round(6))
    )
    wide = affinities.pivot("category", on_columns=categories, index="userId", values="affinity")
    seed = pl.struct(category_affinities=pl.struct(categories))
    return wide.select("userId", personaSeed=seed.struct.json_encode()).sort("userId")


def _columns(model: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The model's columns in their order, with the types that COPY needs."""
    return frame.select(pl.col(name).cast(dtype) for name, dtype in SCHEMAS[model].items())


# --- The job on them ---


@dataclass(frozen=True)
class Outcome:
    """Result of one database's run. Counts are rows; `left_out` counts by reason; `seconds` are those of `run`.

    `broken` names the failed checks, with the number of rows that break each; expected to be empty.
    """

    city: str
    naming: str
    users: int
    trips: int
    slots: int
    users_without_persona: int
    events: int
    positives: int
    positives_outside_candidates: int
    triples: int
    left_out: dict[str, int]
    seconds: float
    content_sha256: str
    broken: dict[str, int]


def fill(url: str, kind: Kind, world: WorldChunk) -> dict[str, int]:
    """Create the tables of an empty database with the given naming and COPY the world into them. Returns the rows per table."""
    with connect(parse_url(url, {})) as connection, transaction(connection):
        naming = schema.naming_for_apply(connection, "public", kind)
        schema.apply(connection, naming)
        return copy_world(connection, Scope(naming, PREFIX), [world])


def settings_for(url: str, out: Path) -> Settings:
    """Return the job's defaults, except that small catalogues are kept: all but Melbourne's are small.

    Of the environment only what libpq reads: a BPR_ETL_ variable must not change what is measured.
    """
    environ = {name: value for name, value in os.environ.items() if name.startswith("PG") or name == "HOME"}
    # Without `naming`: the job has to find it out.
    given = {"database_url": url, "schema": "public", "out": str(out), "small_catalog": "keep", "shadow_prefix": PREFIX}
    return load_settings(given, environ)


def measure(city: str, kind: Kind, url: str, world: WorldChunk, out: Path) -> Outcome:
    """Fill the database, then run, validate and export."""
    rows = fill(url, kind, world)
    settings = settings_for(url, out)
    start = time.perf_counter()
    report = etl.run(settings)
    seconds = time.perf_counter() - start
    broken = {finding.law: finding.broken for finding in database.validate_database(settings).broken}
    content = _content(report)
    if _content(etl.export(settings)) != content:
        broken["export publishes the bytes that run published"] = 1
    counts = report.counts
    return Outcome(
        city=city,
        naming=kind,
        users=rows["User"],
        trips=rows["Trip"],
        slots=rows["ItinerarySlot"],
        users_without_persona=counts["shadow_users_without_persona"],
        events=counts["ranking_events"],
        positives=counts["selected_places"],
        positives_outside_candidates=counts["positives_outside_candidates"],
        triples=sum(counts["published"]["triples"].values()),
        left_out=_left_out(counts),
        seconds=round(seconds, 2),
        content_sha256=content,
        broken=broken,
    )


def _content(report: RunResult) -> str:
    """Return the content hash in the manifest of the published snapshot."""
    if report.snapshot is None:
        raise AssertionError(report.notes)  # only --dry-run and --skip-unchanged publish nothing
    manifest: dict[str, Any] = json.loads((Path(report.snapshot) / MANIFEST).read_text(encoding="utf-8"))
    return str(manifest["content_sha256"])


def _left_out(counts: Mapping[str, Any]) -> dict[str, int]:
    """What the job read and did not use, by kind and reason; zero counts are omitted."""
    published = counts["published"]
    found = {f"days: {reason}": n for reason, n in counts["days_without_event"].items()}
    found |= {f"positives: {reason}": n for reason, n in published["positives_left_out"].items()}
    found |= {f"events: {reason}": n for reason, n in counts["events_left_out"].items()}
    found |= {f"{frame}: {rule}": n for frame, rules in counts["set_aside"].items() for rule, n in rules.items()}
    found |= {f"city {city}: {why}": 1 for city, why in published["cities_left_out"].items()}
    return {what: n for what, n in found.items() if n}


# --- Each city, then all ---


def measure_all(data: Path, url_of: Callable[[str], str], out: Path) -> Iterator[Outcome]:
    """Measure each city in a database of its own, then all in one."""
    worlds = [(city, kind, [data / city]) for city, kind in CITIES.items()]
    for label, kind, folders in [*worlds, ("all", "model", [data / city for city in CITIES])]:
        world = read_world(folders)
        city = ", ".join(world["Trip"]["city"].unique().sort()) if len(folders) == 1 else "all in one database"
        with fresh_database(url_of, label) as url:
            yield measure(city, kind, url, world, out / label)


# --- What is shown and saved ---

_HEADINGS = (
    "city",
    "naming",
    "users",
    "trips",
    "slots",
    "users without persona",
    "events",
    "positives",
    "positives outside candidates",
    "triples",
    "excluded and why",
    "seconds",
)


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table, a row each."""
    rule = ["---" if name in {"city", "naming", "excluded and why"} else "---:" for name in _HEADINGS]
    lines = [table_row(_HEADINGS), table_row(rule), *(table_row(_cells(outcome)) for outcome in outcomes)]
    return "\n".join(lines) + "\n"


def _cells(outcome: Outcome) -> list[str]:
    shown = asdict(outcome) | {"left_out": "; ".join(f"{what} {n:,}" for what, n in outcome.left_out.items())}
    names = [name for name in shown if name not in {"content_sha256", "broken"}]
    return [f"{shown[name]:,}" if isinstance(shown[name], int | float) else shown[name] for name in names]


def save(outcomes: Sequence[Outcome], made_with: Mapping[str, Any]) -> None:
    """Write `results/realdata.json` and `results/realdata.md`."""
    RESULTS.mkdir(exist_ok=True)
    document = {"made_with": made_with, "outcomes": [asdict(outcome) for outcome in outcomes]}
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (RESULTS / "realdata.json").write_text(text, encoding="utf-8")
    head = (
        "# The job on real visits\n\n"
        "`python -m benchmarks realdata --save`: five cities of the Flickr User-POI Visits (Lim et al., IJCAI 2015; "
        "Melbourne: Wang et al., CIKM 2016). `seconds` is the whole of `run`, inside the process.\n\n"
        f"{describe_environment(made_with)}\n\n"
    )
    (RESULTS / "realdata.md").write_text(head + markdown(outcomes), encoding="utf-8")


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table. Returns 1 if a check failed, else 0."""
    parser = command_parser("run.realdata", "Run the job on real visits.", database=True)
    parser.add_argument("--out", type=Path, help="keep the snapshots in this folder (default: a temporary one)")
    given = parser.parse_args(arguments)
    data = locate()
    if data is None:
        print("The real visits are not here: BPR_ETL_REALDATA names no folder.")
        return 0
    with server(given.database_url) as url_of, tempfile.TemporaryDirectory(prefix="bpr-realdata-") as folder:
        outcomes = list(measure_all(data, url_of, given.out or Path(folder)))
        made_with = environment(url_of(""))
    print(markdown(outcomes), end="")
    if given.save:
        save(outcomes, made_with)
    broken = [f"{o.city}: {n} rows fail the check: {check}" for o in outcomes for check, n in o.broken.items()]
    print("\n".join(broken) if broken else "\nAll checks pass, and every export published the same bytes as its run.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
