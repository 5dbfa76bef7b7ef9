"""What ships with the package: its version, the files under `data/`, `cli.py`, the tested versions of libraries.

In a checkout `cli.py`, `data/` and `constraints.txt` lie at the top of the repository; in the wheel, under `etl/_bundled/`, so
that nothing but `etl` and `bpr_etl.py` is installed at top level.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

__version__ = "0.1.0"


@cache
def installed_version(name: str) -> str:
    """Returns a library's version. Reading it takes a millisecond, and a run needs some of them three times."""
    from importlib.metadata import version  # noqa: PLC0415 - `--help` does without

    return version(name)


def resource(name: str) -> Path:
    """Returns the path of `data/<name>`."""
    return _root() / "data" / name


def bundled_cli() -> Path:
    """Returns the path of `cli.py`, which holds the Typer app."""
    return _root() / "cli.py"


def tested_versions() -> dict[str, str]:
    """Returns the exact versions of libraries that were tested, by name, from `constraints.txt`."""
    lines = (_root() / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(";")[0].partition("==") for line in lines if not line.startswith("#"))
    return {name.strip(): version.strip() for name, _, version in pairs if version}


def _root() -> Path:
    package = Path(__file__).resolve().parents[1]
    bundled = package / "_bundled"
    return bundled if bundled.is_dir() else package.parent
