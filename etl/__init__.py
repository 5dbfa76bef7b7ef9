"""bpr-etl: turns a trip planner's PostgreSQL into training data for Bayesian Personalized Ranking.

The names here are the public Python API, described in docs/api.md. Anything else may change with any release.
They are imported on first use, so that `--help` stays fast.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from etl.runtime.resources import __version__ as __version__

if TYPE_CHECKING:
    from etl.errors import EtlError as EtlError
    from etl.pipeline.context import RunResult as RunResult
    from etl.pipeline.expand import expand as expand
    from etl.pipeline.export import export as export
    from etl.pipeline.run import run as run
    from etl.settings.model import Settings as Settings
    from etl.settings.sources import load_settings as load_settings
    from etl.snapshots.reading.snapshot import Snapshot as Snapshot
    from etl.snapshots.stores.locations import open_snapshot as open_snapshot

# Read when pyarrow is imported. Its own allocator returns memory early and takes it again in huge pages, which the kernel has
# to clear: that costs a quarter of the time of the first files, and more memory (docs/pitfalls.md, 29).
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

_MODULES = {
    "EtlError": "etl.errors",
    "RunResult": "etl.pipeline.context",
    "Settings": "etl.settings.model",
    "Snapshot": "etl.snapshots.reading.snapshot",
    "expand": "etl.pipeline.expand",
    "export": "etl.pipeline.export",
    "load_settings": "etl.settings.sources",
    "open_snapshot": "etl.snapshots.stores.locations",
    "run": "etl.pipeline.run",
}
_OLD_NAMES = {"resolve": "load_settings"}
"""Former public names, which work for one more release."""


def __getattr__(name: str) -> Any:
    current = _OLD_NAMES.get(name, name)
    if current not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[current]), current)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
