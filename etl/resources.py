"""Where the files are that are read, not run: one place that knows the checkout and the wheel.

In a checkout `cli.py` and `data/` stand at the top of the repository; in the wheel they ride inside the package, under
`etl/_bundled/`, so that nothing but `etl` is installed at top level.
"""

from __future__ import annotations

from pathlib import Path


def resource(name: str) -> Path:
    """The file `data/<name>`."""
    return _root() / "data" / name


def bundled_cli() -> Path:
    """The file `cli.py`, which holds the Typer app."""
    return _root() / "cli.py"


def _root() -> Path:
    package = Path(__file__).resolve().parent
    bundled = package / "_bundled"
    return bundled if bundled.is_dir() else package.parent
