"""bpr-etl: every night, a trip planner's PostgreSQL becomes training data for Bayesian Personalized Ranking.

What a program of your own may use is named here, and documented in docs/api.md; everything else may change with any release.
It is imported when it is asked for, so that the command line's `--help` need not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etl.errors import EtlError as EtlError
    from etl.pipeline.run import expand as expand
    from etl.pipeline.run import export as export
    from etl.pipeline.run import run as run
    from etl.runtime.run_record import RunResult as RunResult
    from etl.settings.model import Settings as Settings
    from etl.settings.model import resolve as resolve
    from etl.snapshots.reader import Snapshot as Snapshot
    from etl.snapshots.reader import open_snapshot as open_snapshot

from etl.runtime.version import __version__ as __version__

_HOMES = {
    "EtlError": "etl.errors",
    "RunResult": "etl.runtime.run_record",
    "Settings": "etl.settings.model",
    "Snapshot": "etl.snapshots.reader",
    "expand": "etl.pipeline.run",
    "export": "etl.pipeline.run",
    "open_snapshot": "etl.snapshots.reader",
    "resolve": "etl.settings.model",
    "run": "etl.pipeline.run",
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
