"""The command as a user calls it, in a process of its own, with nothing of this process's environment that decides."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**variables: str) -> dict[str, str]:
    """This environment without what names a database or sets an option, and with the variables given."""
    ours = ("BPR_ETL_", "PG")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {name: value for name, value in clean.items() if name not in {"DATABASE_URL", "DIRECT_URL"}} | variables


def call(
    *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """`bpr-etl ARGUMENTS`, until it ends. `env` are variables beside the clean environment's."""
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        cwd=cwd,
        env=environment(**env or {}),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=seconds,
    )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Everything that a call put out."""
    return done.stdout + done.stderr
