"""bpr-etl: every night, turn a trip planner's PostgreSQL into training data for Bayesian Personalized Ranking.

The public Python API is what this module names; docs/api.md describes it. Anything else may change with any release.
Names are imported on first use, so that the command line's `--help` does not wait for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from etl.runtime.version import __version__ as __version__

if TYPE_CHECKING:
    from etl.errors import EtlError as EtlError
    from etl.pipeline.run import expand as expand
    from etl.pipeline.run import export as export
    from etl.pipeline.run import run as run
    from etl.runtime.run_record import RunResult as RunResult
    from etl.settings.model import Settings as Settings
    from etl.settings.sources import load_settings as load_settings
    from etl.snapshots.reader import Snapshot as Snapshot
    from etl.snapshots.reader import open_snapshot as open_snapshot

    resolve = load_settings

_MODULES = {
    "EtlError": "etl.errors",
    "RunResult": "etl.runtime.run_record",
    "Settings": "etl.settings.model",
    "Snapshot": "etl.snapshots.reader",
    "expand": "etl.pipeline.run",
    "export": "etl.pipeline.run",
    "load_settings": "etl.settings.sources",
    "open_snapshot": "etl.snapshots.reader",
    "run": "etl.pipeline.run",
}
_OLD_NAMES = {"resolve": "load_settings"}
"""Names of 0.1, which work for one more release."""


def __getattr__(name: str) -> Any:
    current = _OLD_NAMES.get(name, name)
    if current not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[current]), current)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
