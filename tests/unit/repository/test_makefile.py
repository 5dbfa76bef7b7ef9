"""What each target of the Makefile installs, and what it says where it can't."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make(tmp_path):
    """Call make in a folder that has of a fresh clone what make looks at, without uv."""
    if shutil.which("make", path="/usr/bin:/bin") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *arguments],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return call


@pytest.mark.parametrize(
    ("target", "extras"),
    [
        ("demo", ["demo"]),
        ("wheel", []),
        ("test", ["test"]),
        ("release-check", ["test"]),
        ("docs", ["docs"]),
        ("lint", ["test", "docs", "lint"]),
        ("consumers", ["consumers"]),
        ("ray-extra", ["ray"]),
        ("bench", ["bench"]),
    ],
)
def test_a_target_installs_its_own_part(make, target, extras):
    planned = make("--dry-run", f"PYTHON={sys.executable}", target)
    assert planned.returncode == 0, planned.stderr
    of_pip = re.findall(r"python -m pip install .*--editable '?\.(?:\[(\w+)\])?", planned.stdout)
    assert of_pip == ["", *extras]
    assert " -q" not in planned.stdout  # a minute without a word looks like a program that hangs


def test_one_sentence_where_python_makes_no_virtual_environments(make, tmp_path):
    """Debian's python3 without python3-venv."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = make(f"PYTHON={python}", "demo")
    assert done.returncode == 2
    (said,) = done.stdout.splitlines()
    assert said == (
        f"{python} can't make virtual environments: install its venv module (Debian and Ubuntu: apt install python3-venv)."
    )
    assert not (tmp_path / ".venv").exists()


def test_one_sentence_where_python_is_too_old(make, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = make(f"PYTHON={python}", "test")
    assert done.returncode == 2
    (said,) = done.stdout.splitlines()
    assert said == "bpr-etl needs Python 3.11 or newer; say which with: make PYTHON=python3.12 test"
