"""The composition root: names the steps in order. No data logic lives here.

read ─► personas ─► COPY ─► read back ─► rankings ─► COPY ─► stage, check ─► backfill ─► COMMIT ─► switch LATEST
"""

from __future__ import annotations

import difflib
import logging
import platform
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl

from etl import __version__, load, schema
from etl.affinity import affinity_model
from etl.compact import Dataset, Vocabulary, compact
from etl.config import Settings
from etl.contracts import Events, Personas
from etl.database import Connection, connect, locked, require_lock, transaction, with_retries
from etl.errors import ConnectError, DataError
from etl.extract import SetAside, Source, extract_events, extract_logged, extract_source, read_personas
from etl.personas import Materialised, materialise, read_affinities
from etl.probe import MODEL, POPULARITY, Probed, Progress
from etl.probe import probe as ask
from etl.publish import Store, add_probe, open_store, write_manifest, write_probe, writing
from etl.queries import Scope
from etl.question import question
from etl.rankings import Ranked, rank
from etl.sign import DOUBTFUL
from etl.snapshot import LATEST, Snapshot, open_snapshot, read_dataset, read_vocabulary
from etl.stage import Staged, StageOptions, stage
from etl.synthetic import generate
from etl.training import TrainingOptions
from etl.validate import Validated, validate_database

log = logging.getLogger(__name__)

_OF_THE_EVENTS = ("schema", "naming", "shadow_prefix", "audience", "vocab_from")
LIBRARIES = ("polars", "pyarrow", "connectorx", "adbc-driver-postgresql", "dataframely", "polars-hash", "numpy")


@dataclass
class Report:
    """What a run did: seconds and rows per step, counts per step, and where the snapshot is. Becomes summary and JSON."""

    run_id: str
    started_at: datetime
    steps: list[tuple[str, float, int | None]] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    snapshot: str | None = None
    committed: bool = False
    retries: int = 0

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[int], None]]:
        """Time a step; what the block calls with a number becomes the step's rows."""
        rows: list[int] = []
        start = time.perf_counter()
        yield rows.append
        self.steps.append((name, time.perf_counter() - start, rows[-1] if rows else None))
        log.debug("%s: %.2f s", name, self.steps[-1][1])

    def facts_for_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "run_id": self.run_id,
            "snapshot": self.snapshot,
            "committed": self.committed,
            "retries": self.retries,
            "notes": self.notes,
            "warnings": self.warnings,
            "steps": [{"step": name, "seconds": round(seconds, 3), "rows": rows} for name, seconds, rows in self.steps],
            **self.counts,
        }

    def facts(self, settings: Settings, now: datetime) -> dict[str, Any]:
        """The manifest's account of the run: nothing in it is a secret."""
        return {
            "run_id": self.run_id,
            "started_at": self.started_at.isoformat(),
            "ended_at": now.isoformat(),
            "tool": {"name": "bpr-etl", "version": __version__},
            "libraries": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
            "settings": settings.public(),
            "warnings": self.warnings,
            **self.counts,
        }


def validate(settings: Settings) -> Validated:
    """Check a database against the laws of section 2, in one snapshot of it; nothing is written."""
    address = settings.address()
    with connect(address) as connection:
        scope, _ = _scope(connection, settings, settings.schema_in(address))
        with transaction(connection, read_only=True, keep=False):
            return validate_database(connection, scope)


def synth(settings: Settings) -> dict[str, int]:
    """Fill a database with the synthetic world, in one transaction; gives the rows per table. Makes missing tables."""
    address = settings.address()
    name = settings.schema_in(address)
    with connect(address) as connection, locked(connection, name), transaction(connection):
        naming = schema.naming_for_apply(connection, name, settings.naming)
        schema.apply(connection, naming)
        worlds = generate(scale=settings.scale, seed=settings.seed)
        return load.copy_world(connection, Scope(naming, settings.shadow_prefix), worlds)


def schema_check(settings: Settings) -> list[schema.Finding]:
    """What is missing in the database, or does not fit."""
    address = settings.address()
    with connect(address) as connection:
        naming = schema.detect_naming(connection, settings.schema_in(address), settings.naming)
        return schema.check(connection, naming)


def schema_apply(settings: Settings) -> list[str]:
    """Create what is missing, in one transaction; gives the names of what was created."""
    address = settings.address()
    name = settings.schema_in(address)
    with connect(address) as connection, locked(connection, name), transaction(connection):
        return schema.apply(connection, schema.naming_for_apply(connection, name, settings.naming))


def run(
    settings: Settings,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    progress: Progress = lambda *_: None,
) -> Report:
    """The nightly job: sections 2 and 3 of the contract. All of it, or nothing.

    Raises a kind of EtlError. With `skip_unchanged` and the newest snapshot's data, `snapshot` stays None.
    """
    earlier = _earlier_vocabulary(settings)
    address = settings.address()
    with connect(address) as connection, ExitStack() as stack:
        scope, advice = _scope(connection, settings, settings.schema_in(address))
        out = stack.enter_context(_output(settings))
        lock = stack.enter_context(locked(connection, scope.naming.schema))
        night = _Night(connection, scope, settings, earlier, out, clock, progress)

        def attempt() -> Report:
            report = Report(uuid.uuid4().hex, clock(), notes=list(advice))
            with writing(settings.out), out.staging(report.run_id) as staged:
                with transaction(connection, keep=not settings.dry_run):
                    require_lock(connection, lock)
                    name = _night(night, report, staged)
                report.committed = not settings.dry_run
                _switch(report, settings, out, staged, name)
            return report

        done, retries = with_retries(attempt)
    done.retries = retries
    return done


def export(settings: Settings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Report:
    """Publish the RankingEvent rows that are there: section 3 alone. Writes nothing to the database."""
    earlier = _earlier_vocabulary(settings)
    address = settings.address()
    report = Report(uuid.uuid4().hex, clock())
    with connect(address) as connection, _output(settings) as out, writing(settings.out):
        scope, _ = _scope(connection, settings, settings.schema_in(address))
        with out.staging(report.run_id) as staged:
            aside = SetAside()
            with transaction(connection, read_only=True, keep=False), report.step("read") as rows:
                logged = extract_logged(connection, scope, settings.audience, aside)
                rows(sum(logged.rows_read.values()))
            report.counts |= {
                "source_rows": logged.rows_read,
                "set_aside": aside.counts,
                "events_left_out": logged.left_out,
            }
            with report.step("compact"):
                dataset = compact(logged.events, logged.users, logged.slots, logged.nodes, logged.personas, earlier)
            _publish(report, dataset, settings, out, staged, clock)
    return report


def expand(settings: Settings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Report:
    """Publish other triples of an old snapshot's events, with other options: no database is needed.

    Raises SettingsError for options that its events can't follow, ConnectError or DataError where it can't be read.
    """
    report = Report(uuid.uuid4().hex, clock())
    old = open_snapshot(Path(settings.snapshot or settings.out))
    with report.step("read") as rows:
        dataset = read_dataset(old)
        rows(dataset.events.height)
    report.counts["expanded_from"] = old.manifest["snapshot"]
    # What decided the events stays what it was: only the triples' own options are ours.
    settings = replace(settings, **{name: old.settings[name] for name in _OF_THE_EVENTS if name in old.settings})
    with _output(settings) as out, writing(settings.out), out.staging(report.run_id) as staged:
        _publish(report, dataset, settings, out, staged, clock)
    return report


def probe(settings: Settings, progress: Progress = lambda *_: None) -> Probed:
    """Train a small model on a published snapshot's triples, and write what was found beside them.

    Raises ConnectError or DataError where the snapshot can't be read, DataError where nothing is held out, or where the AUC
    is below `fail_below`; then what was found is written all the same.
    """
    snapshot = open_snapshot(Path(settings.snapshot or settings.out))
    found = _probed(snapshot, settings, progress)
    add_probe(snapshot, found.facts, found.line())
    _require_auc(found, settings, "It was published all the same.")
    return found


def _probed(snapshot: Snapshot, settings: Settings, progress: Progress) -> Probed:
    asked = question(snapshot)
    if not asked.test:
        raise DataError(
            f"The split {asked.split} holds no place out: no user has a trip in it that can be ranked, so the triples "
            "can't be probed. Say another --split, or leave the probe out."
        )
    return ask(asked, affinity_model().unknown, settings.seed, progress)


def _require_auc(found: Probed, settings: Settings, after: str) -> None:
    if settings.fail_below is not None and not found.mean(MODEL) >= settings.fail_below:
        raise DataError(
            f"A model trained on these triples has AUC {found.mean(MODEL):.3f}, and --fail-below asks for "
            f"{settings.fail_below:g} (popularity has {found.mean(POPULARITY):.3f}). {after} Try --negatives recommended."
        )


@dataclass(frozen=True)
class _Night:
    """What every step of a run has at hand."""

    connection: Connection
    scope: Scope
    settings: Settings
    earlier: Vocabulary
    out: Store
    clock: Callable[[], datetime]
    progress: Progress


def _night(night: _Night, report: Report, staged: Path) -> str | None:
    """All that happens inside the transaction; gives the staged snapshot's name, None when it is the newest one's twin."""
    connection, scope, settings = night.connection, night.scope, night.settings
    aside = SetAside()
    with report.step("read") as rows:
        source = extract_source(connection, scope, settings.audience, aside)
        rows(sum(source.rows_read.values()))
    shadow = source if settings.audience == "shadow" else source.shadow()
    with report.step("registry") as rows:
        rows(load.register_models(connection, scope, settings.seed))
    made, personas = _write_personas(connection, scope, settings, report, shadow, aside)
    ranked = _write_events(connection, scope, settings, report, shadow, personas)
    report.counts |= _counts(source, shadow, made, ranked, personas, aside)
    with report.step("compact"):
        events, left_out = _audience_events(connection, scope, settings, ranked, aside)
        if settings.audience != "shadow":
            personas = read_personas(connection, scope, settings.audience, aside)
        users = source.users_of(settings.audience)
        report.counts["events_left_out"] = left_out
        dataset = compact(events, users, source.slots, source.nodes, personas, night.earlier)
    account = _stage(report, dataset, settings, staged)
    if settings.probe or settings.fail_below is not None:
        _probe_staged(report, account, settings, staged, night.progress)
    with report.step("backfill") as rows:
        report.counts["signals_backfilled"] = load.backfill(connection, scope)
        rows(report.counts["signals_backfilled"])
    return _finish(report, settings, night.out, staged, account, night.clock())


def _publish(
    report: Report, dataset: Dataset, settings: Settings, out: Store, staged: Path, clock: Callable[[], datetime]
) -> None:
    """Stage a dataset and make it the newest snapshot, where no database has to agree first."""
    account = _stage(report, dataset, settings, staged)
    _switch(report, settings, out, staged, _finish(report, settings, out, staged, account, clock()))


def _earlier_vocabulary(settings: Settings) -> Vocabulary:
    """The vocabulary whose indexes are kept. An --out folder's first night has none yet."""
    if settings.vocab_from is None:
        return Vocabulary()
    path = Path(settings.vocab_from)
    if path == Path(settings.out) and not (path / LATEST).exists():
        return Vocabulary()
    return read_vocabulary(path)


def _scope(connection: Connection, settings: Settings, schema_name: str) -> tuple[Scope, list[str]]:
    """Whose rows, in which tables; and what is missing but not needed, in sentences."""
    naming = schema.detect_naming(connection, schema_name, settings.naming)
    advice = [finding.detail for finding in schema.require(connection, naming)]
    return Scope(naming, settings.shadow_prefix), advice


@contextmanager
def _output(settings: Settings) -> Iterator[Store]:
    """The output folder, held; for a dry run a folder of its own, which goes with the run."""
    if not settings.dry_run:
        with open_store(settings.out) as store:
            yield store
        return
    with tempfile.TemporaryDirectory(prefix="bpr-etl-dry-run-") as folder, open_store(folder) as store:
        yield store


def _write_personas(
    connection: Connection, scope: Scope, settings: Settings, report: Report, shadow: Source, aside: SetAside
) -> tuple[Materialised, dy.DataFrame[Personas]]:
    """Personas: decide, write, and read back what the database now holds: the one look back of the design."""
    with report.step("personas") as rows:
        made = materialise(shadow.seeds, shadow.seed_affinities, shadow.categories, affinity_model(), settings.seed)
        rows(made.rows.height)
    with report.step("write personas") as rows:
        load.replace_shadow_rows(connection, scope, "PersonaDimension", load.persona_table(made.rows))
        rows(made.rows.height)
    with report.step("read back") as rows:
        personas = read_personas(connection, scope, "shadow", aside)
        rows(personas.height)
    return made, personas


def _write_events(
    connection: Connection,
    scope: Scope,
    settings: Settings,
    report: Report,
    shadow: Source,
    personas: dy.DataFrame[Personas],
) -> Ranked:
    """Ranking events: candidates by the affinities read back, and what each day's slots hold."""
    with report.step("rankings") as rows:
        ranked = rank(
            shadow.trips,
            shadow.slots,
            shadow.nodes,
            personas["user_id"].unique(),
            read_affinities(personas, shadow.categories),
            affinity_model().unknown,
            settings.seed,
        )
        rows(ranked.events.height)
    with report.step("write events") as rows:
        load.replace_shadow_rows(connection, scope, "RankingEvent", load.event_table(ranked.events))
        rows(ranked.events.height)
    return ranked


def _audience_events(
    connection: Connection, scope: Scope, settings: Settings, ranked: Ranked, aside: SetAside
) -> tuple[dy.DataFrame[Events], dict[str, int]]:
    """The events to publish: the shadow users' as they were just written, the others' as the database has them."""
    if settings.audience != "shadow":
        return extract_events(connection, scope, settings.audience, aside)
    return Events.validate(ranked.events.select(Events.column_names()), cast=True), {}


def _stage(report: Report, dataset: Dataset, settings: Settings, staged: Path) -> Staged:
    """Write and check the snapshot's data files, and take over their account."""
    options = StageOptions(training_options(settings), settings.ids, settings.rows_per_file)
    with report.step("stage files") as rows:
        account = stage(dataset, options, staged)
        report.counts["published"] = account.counts(dataset)
        rows(sum(report.counts["published"]["triples"].values()))
    report.warnings += [*_unknown_cities(settings, account), *_doubts(account)]
    return account


def _probe_staged(report: Report, account: Staged, settings: Settings, staged: Path, progress: Progress) -> None:
    """Probe what was staged, before anything is committed. Raises DataError where the AUC is below `fail_below`."""
    with report.step("probe"):
        files = [asdict(entry) for entry in account.files]
        snapshot = Snapshot(staged, {"settings": settings.public(), "cities": account.folders, "files": files})
        found = _probed(snapshot, settings, progress)
    _require_auc(found, settings, "Nothing was committed or published.")
    account.beside.append(write_probe(staged, found.facts))
    report.counts["probe"] = found.line()
    report.warnings += found.warnings()


def training_options(settings: Settings) -> TrainingOptions:
    """What decides the triples, of all the settings."""
    return TrainingOptions(**{f.name: getattr(settings, f.name) for f in fields(TrainingOptions)})


def _unknown_cities(settings: Settings, account: Staged) -> Iterator[str]:
    """A weight for a city without events does nothing: said, since it may be a slip of the pen."""
    cities = sorted(account.folders.values())
    for city, _ in settings.city_weight:
        if city not in cities:
            near = difflib.get_close_matches(city, cities, 1)
            yield f"--city-weight names {city!r}, where no event is" + (f"; did you mean {near[0]!r}?" if near else ".")


def _doubts(account: Staged) -> Iterator[str]:
    """The cities whose triples are likely to teach badly, by the sign that needs no training."""
    low = {city: value for city, value in account.signs.items() if value is not None and value < DOUBTFUL}
    if low:
        named = ", ".join(f"{city} {value:.2f}" for city, value in low.items())
        yield (
            f"These triples may teach the opposite of what people like: places that are chosen often are not oftener positives "
            f"than negatives (rank correlation {named}; it should be {DOUBTFUL} or more). Try --negatives recommended, and "
            "measure with `bpr-etl probe`; docs/negatives.md explains."
        )


def _finish(report: Report, settings: Settings, out: Store, staged: Path, account: Staged, now: datetime) -> str | None:
    """Write the manifest, last; gives the snapshot's name, None where it is not to be published: nothing has changed."""
    latest = out.latest() if settings.skip_unchanged else None
    if latest and latest.get("content_sha256") == account.content_sha256:
        return None
    return write_manifest(staged, report.facts(settings, now), account, now)


def _switch(report: Report, settings: Settings, out: Store, staged: Path, name: str | None) -> None:
    """Make the staged snapshot the newest, now that the database has what it says."""
    if settings.dry_run:
        report.notes.append("Dry run: all of it was done and rolled back; nothing was published.")
    elif name is None:
        report.notes.append("The data are those of the newest snapshot, byte by byte: nothing was published.")
    else:
        try:
            with report.step("switch"):
                report.snapshot = str(out.publish(staged, name))
        except OSError as error:
            raise ConnectError(
                f"The snapshot could not be put in place in {settings.out}: {error.strerror or error}. "
                "The database has been written, and the next run publishes what it holds."
            ) from error


def _counts(
    source: Source, shadow: Source, made: Materialised, ranked: Ranked, personas: pl.DataFrame, aside: SetAside
) -> dict[str, Any]:
    shadow_users = shadow.users.height
    with_persona = personas["user_id"].n_unique()
    return {
        "source_rows": source.rows_read,
        "set_aside": aside.counts,
        "shadow_users": shadow_users,
        "shadow_users_without_persona": shadow_users - with_persona,
        "persona_rows": made.rows.height,
        "persona_values_by_source": made.values_by_source,
        "affinities_dropped": made.affinities_dropped,
        "ranking_events": ranked.events.height,
        "days_without_event": ranked.skipped,
        "positives": ranked.positives,
        "positives_outside_candidates": ranked.positives_outside_candidates,
    }
