"""Where the files are that are read, not run: one place that knows the checkout and the wheel.

In a checkout `cli.py`, `data/` and `constraints.txt` stand at the top of the repository; in the wheel they ride inside the
package, under `etl/_bundled/`, so that nothing but `etl` is installed at top level.
"""

from __future__ import annotations

from pathlib import Path


def resource(name: str) -> Path:
    """The file `data/<name>`."""
    return _root() / "data" / name


def bundled_cli() -> Path:
    """The file `cli.py`, which holds the Typer app."""
    return _root() / "cli.py"


def tested_versions() -> dict[str, str]:
    """The exact versions of libraries that were tested, by name, from `constraints.txt`."""
    lines = (_root() / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(";")[0].partition("==") for line in lines if not line.startswith("#"))
    return {name.strip(): version.strip() for name, _, version in pairs if version}


def _root() -> Path:
    package = Path(__file__).resolve().parents[1]
    bundled = package / "_bundled"
    return bundled if bundled.is_dir() else package.parent
