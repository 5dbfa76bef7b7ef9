"""Puts `bpr_etl.py` at the top of the wheel, and `cli.py`, `data/` and `constraints.txt` inside the package `etl`.

An editable install finds them where they stand.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BundleHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Adds to a standard wheel the module, and what `etl.runtime.resources` looks for under `etl/_bundled/`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; `version` is "standard" or "editable"."""
        if version == "standard":
            bundled = {name: f"etl/_bundled/{name}" for name in ("cli.py", "data", "constraints.txt")}
            build_data["force_include"].update(bundled, **{"bpr_etl.py": "bpr_etl.py"})
