"""Prisma's own schema engine, called through node: what it makes of a schema, and what it says of a database."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "prisma"
PACKAGES = HERE / "node_modules"


def installed() -> None:
    """Install the engine where it is not there yet; skips the calling test when that can't be had."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not there, so the real Prisma can't be asked")
    with (HERE / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test workers, one install
        if (PACKAGES / ".ready").exists():
            return
        command = [
            "npm",
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-package-lock",
            "--loglevel=error",
        ]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"Prisma's engine can't be installed: {done.stderr.strip()[:200]}")
        (PACKAGES / ".ready").touch()


def ask(**request: str) -> str:
    """One question to the engine; see engine.mjs."""
    installed()
    done = subprocess.run(
        ["node", "engine.mjs"],
        cwd=HERE,
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "error" not in answer, answer["error"]
    return answer["output"]


def script(prisma: str) -> str:
    """The SQL that Prisma makes of a schema, from nothing."""
    return ask(do="script", prisma=prisma)


def drift(url: str, prisma: str, schema: str = "public") -> str:
    """What `prisma db push` would change in a database, in words; empty when nothing."""
    return ask(do="drift", prisma=prisma, url=url, schema=schema)
