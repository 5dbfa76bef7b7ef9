"""bpr-etl: every night, a trip planner's PostgreSQL becomes training data for Bayesian Personalized Ranking.

What a program of your own may use is named here, and documented in docs/api.md; everything else may change with any release.
It is imported when it is asked for, so that the command line's `--help` need not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etl.config import Settings as Settings
    from etl.config import resolve as resolve
    from etl.errors import EtlError as EtlError
    from etl.journal import RunResult as RunResult
    from etl.pipeline import expand as expand
    from etl.pipeline import export as export
    from etl.pipeline import run as run
    from etl.snapshot import Snapshot as Snapshot
    from etl.snapshot import open_snapshot as open_snapshot

__version__ = "0.1.0"

_HOMES = {
    "EtlError": "etl.errors",
    "RunResult": "etl.journal",
    "Settings": "etl.config",
    "Snapshot": "etl.snapshot",
    "expand": "etl.pipeline",
    "export": "etl.pipeline",
    "open_snapshot": "etl.snapshot",
    "resolve": "etl.config",
    "run": "etl.pipeline",
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
