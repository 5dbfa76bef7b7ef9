"""The wheel: what is in it, and that it finds there what a checkout has at its top."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.faults.calling import ROOT, environment


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A wheel of this checkout, unpacked as an installer does it."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: `make test` adds it")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def from_wheel(unpacked: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`bpr-etl ARGUMENTS` of the wheel, elsewhere than in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "etl", *arguments],
        cwd=cwd,
        env=environment(PYTHONPATH=os.fspath(unpacked)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_nothing_but_the_package_is_at_its_top(unpacked):
    top = {path.name.partition("-")[0] for path in unpacked.iterdir()}
    assert top == {"etl", "bpr_etl"}
    assert {path.name for path in (unpacked / "etl" / "_bundled").iterdir()} == {"cli.py", "data", "constraints.txt"}


def test_doctor_compares_the_libraries_with_those_that_were_tested(unpacked, tmp_path):
    pins = unpacked / "etl" / "_bundled" / "constraints.txt"
    tested = pins.read_text(encoding="utf-8")
    lines = [
        f"{line.partition('==')[0]}==0.0.1"
        if line.startswith(("polars==", "Jinja2==", "prometheus_client=="))
        else line
        for line in tested.splitlines()
    ]
    pins.write_text("\n".join(lines), encoding="utf-8")
    try:
        done = from_wheel(unpacked, tmp_path, "doctor", "--json")
    finally:
        pins.write_text(tested, encoding="utf-8")
    assert done.returncode == 2, done.stderr  # no database was named
    checks = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    assert checks["libraries"]["state"] == "ok"
    found = checks["libraries"]["found"]
    # Whatever case and separator a name is written with.
    for name in ("polars", "jinja2", "prometheus-client"):
        assert f"{name} " in found
    assert found.count("(tested: 0.0.1)") == 3
