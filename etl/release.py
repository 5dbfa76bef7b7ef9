"""From a dataset to a published snapshot: staged, checked, probed if that is asked for, named, and made the newest.

What every command that publishes has in common; the database has no part in it but that its transaction ends between
`finish` and `switch`.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from etl.affinity import affinity_model
from etl.compact import Dataset
from etl.config import Settings
from etl.errors import ConnectError, DataError
from etl.journal import Progress, Report
from etl.publish import Store, open_store, write_manifest, write_probe
from etl.sign import DOUBTFUL
from etl.snapshot import Snapshot
from etl.stage import Staged, StageOptions, stage
from etl.stopping import Stop
from etl.training import TrainingOptions

if TYPE_CHECKING:
    from etl.probe import Probed

Clock = Callable[[], datetime]


def silently(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody watches."""


@contextmanager
def output(settings: Settings, stop: Stop | None = None) -> Iterator[Store]:
    """The output folder, held; for a dry run a folder of its own, which goes with the run."""
    if not settings.dry_run:
        with open_store(settings.out, settings.patience, stop) as store:
            yield store
        return
    with tempfile.TemporaryDirectory(prefix="bpr-etl-dry-run-") as folder, open_store(folder) as store:
        yield store


@dataclass(frozen=True)
class Release:
    """One snapshot on its way: what it is made with, where it is staged, and the account that is kept of it."""

    settings: Settings
    report: Report
    out: Store
    staged: Path
    scratch: Path
    clock: Clock
    progress: Progress

    def publish(self, dataset: Dataset) -> None:
        """All of it, where no database has to agree first."""
        self.switch(self.finish(self.stage(dataset)))

    def stage(self, dataset: Dataset) -> Staged:
        """Write and check the snapshot's data files, take over their account, and probe them if that is asked for.

        Raises DataError where they are not what was meant, or where the probe's AUC is below `fail_below`.
        """
        settings, report = self.settings, self.report
        options = StageOptions(training_options(settings), settings.ids, settings.rows_per_file)
        with report.step("stage files") as rows:
            account = stage(dataset, options, self.staged, self.scratch, self.progress)
            report.counts["published"] = account.counts(dataset)
            rows(sum(report.counts["published"]["triples"].values()))
        report.warnings += [*_unknown_cities(settings, account), *_doubts(account)]
        if settings.probe or settings.fail_below is not None:
            self._probe(account)
        return account

    def _probe(self, account: Staged) -> None:
        with self.report.step("probe"):
            files = [asdict(entry) for entry in account.files]
            manifest = {"settings": self.settings.public(), "cities": account.folders, "files": files}
            found = probed(Snapshot(self.staged, manifest), self.settings, self.progress)
        require_auc(found, self.settings, "Nothing was committed or published.")
        account.beside.append(write_probe(self.staged, found.facts))
        self.report.counts["probe"] = found.line()
        self.report.warnings += found.warnings()

    def finish(self, account: Staged) -> str | None:
        """Write the manifest, last; gives the snapshot's name, None where nothing has changed and that is not published."""
        latest = self.out.latest() if self.settings.skip_unchanged else None
        if latest and latest.get("content_sha256") == account.content_sha256:
            return None
        now = self.clock()
        return write_manifest(self.staged, self.report.facts(self.settings, now), account, now)

    def switch(self, name: str | None) -> None:
        """Make the staged snapshot the newest, now that the database has what it says. Nothing stops it from here on."""
        self.report.stop.shield()
        if self.settings.dry_run:
            self.report.notes.append("Dry run: all of it was done and rolled back; nothing was published.")
        elif name is None:
            self.report.notes.append("The data are those of the newest snapshot, byte by byte: nothing was published.")
        else:
            try:
                with self.report.step("switch"):
                    self.report.snapshot = str(self.out.publish(self.staged, name))
            except OSError as error:
                written = "The database has been written, and the next run publishes what it holds."
                raise ConnectError(
                    f"The snapshot could not be put in place in {self.settings.out}: {error.strerror or error}. "
                    f"{written if self.report.committed else 'Run again.'}"
                ) from error


def probed(snapshot: Snapshot, settings: Settings, progress: Progress) -> Probed:
    """What a probe of a snapshot finds. Raises DataError where its split holds nothing out."""
    from etl.probe import probe  # noqa: PLC0415 - a night without a probe need not wait for it
    from etl.question import question  # noqa: PLC0415

    asked = question(snapshot)
    if not asked.test:
        raise DataError(
            f"The split {asked.split} holds no place out: no user has a trip in it that can be ranked, so the triples "
            "can't be probed. Say another --split, or leave the probe out."
        )
    return probe(asked, affinity_model().unknown, settings.seed, progress)


def require_auc(found: Probed, settings: Settings, after: str) -> None:
    """Raise DataError where the model's AUC is below `fail_below`; `after` says what has become of the snapshot."""
    ours, popularity = found.auc
    if settings.fail_below is not None and not ours >= settings.fail_below:
        raise DataError(
            f"A model trained on these triples has AUC {ours:.3f}, and --fail-below asks for "
            f"{settings.fail_below:g} (popularity has {popularity:.3f}). {after} Try --negatives recommended."
        )


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
