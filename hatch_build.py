"""What the wheel has that a checkout has not: files in other places, and a README that renders where there is no repository.

An editable install finds the files where they stand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface


class BundleHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Adds to a standard wheel `bpr_etl` with its types, and what `etl.runtime.resources` looks for under `etl/_bundled/`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it builds; `version` is "standard" or "editable"."""
        if version == "standard":
            bundled = {name: f"etl/_bundled/{name}" for name in ("cli.py", "data", "constraints.txt")}
            public = {"bpr_etl.py": "bpr_etl.py", "bpr_etl.pyi": "bpr_etl-stubs/__init__.pyi"}
            build_data["force_include"].update(bundled | public)


class ReadmeHook(MetadataHookInterface):  # type: ignore[misc]
    """Gives the metadata the README, with the names of the repository's files in place of links to them."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling when it reads the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_links_to_files(text)}


def without_links_to_files(text: str) -> str:
    """Returns Markdown whose links and pictures lead to addresses, or are words: `docs/api.md` of the source distribution."""

    def named(link: re.Match[str]) -> str:
        words, file = link[1], link[2].partition("#")[0]
        return f"`{file}`" if words == file else f"{words} (`{file}`)"

    return re.sub(r"!?\[([^\]]*)\]\((?!\w+:|#)([^)\s]+)\)", named, text)
