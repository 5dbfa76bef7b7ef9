"""What `make release-check` finds, and its bill of materials. That it builds, is tested with the wheel."""

from __future__ import annotations

import importlib.util
import re
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.repository.test_dependencies import closure, pins

ROOT = Path(__file__).parents[3]
spec = importlib.util.spec_from_file_location("release_check", ROOT / ".ci" / "release_check.py")
release_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release_check)


def distribution(version: str, terms: str) -> SimpleNamespace:
    """What the check reads of an installed distribution."""
    metadata = Message()
    metadata["License-Expression"] = terms
    return SimpleNamespace(version=version, metadata=metadata, files=[])


@pytest.mark.parametrize(
    ("terms", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0", True),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("MIT AND GPL-3.0-only", False),
        ("LGPL-3.0-only", False),
        ("GNU Affero General Public License v3", False),
        ("none declared", False),
    ],
)
def test_each_part_of_a_licence_must_be_permissive(terms, permissive):
    assert release_check.is_permissive(terms) is permissive


def test_what_is_wrong_with_a_dependency_is_named():
    needed = {
        "good": (distribution("1.0", "MIT"), {"bpr-etl"}),
        "other": (distribution("1.1", "MIT"), {"bpr-etl"}),
        "loose": (distribution("1.0", "MIT"), {"bpr-etl"}),
        "free": (distribution("1.0", "GPL-3.0-only"), {"good"}),
        "known": (distribution("1.0", "none declared"), {"good"}),
        "backport": (None, {"good"}),
    }
    pinned = {"good": "1.0", "other": "1.0", "free": "1.0", "known": "1.0"}
    assert list(release_check.findings(needed, pinned, "- **known** declares none.")) == [
        "other: 1.1 is installed, constraints.txt has 1.0.",
        "loose: 1.0 is installed, constraints.txt has no version.",
        "free: its licence (GPL-3.0-only) is not permissive, and docs/dependencies.md says nothing about it.",
    ]


def test_a_constraint_names_one_version():
    lines = "# a note\na==1.0\nb==1.0+cpu ; sys_platform == 'linux'\nc>=1\nd\ne==1.*\nf @ https://example.test/f.whl"
    assert len(list(release_check.unpinned(lines))) == 4
    assert list(release_check.unpinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))) == []


def test_the_sizes_on_the_page_are_those_of_what_is_installed():
    """Within a tenth: another processor or Python has wheels of other sizes."""
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    stated = [int(each) for each in re.search(r"take (\d+) MB .*?adds (\d+) MB", page, re.DOTALL).groups()]
    plain, with_demo = (
        sum(release_check.megabytes(of) for of, _ in closure(*extras).values() if of) for extras in ([], ["demo"])
    )
    assert [plain, with_demo - plain] == pytest.approx(stated, rel=0.1)


def test_the_bill_has_all_that_a_run_needs_and_who_asks_for_it():
    needed = closure()
    bill = release_check.bill_of_materials(needed)
    there = [name for name, (of, _) in needed.items() if of]
    assert [each["name"] for each in bill["components"]] == there
    assert len(there) > 20
    assert not any("pgserver" in each for each in there)  # an extra's
    refs = {each["bom-ref"] for each in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
    assert {each["ref"] for each in bill["dependencies"]} == refs
    asked = {name for each in bill["dependencies"] for name in each["dependsOn"]}
    assert asked == {each["purl"] for each in bill["components"]}  # each by somebody
    (polars,) = [each for each in bill["components"] if each["name"] == "polars"]
    assert polars["purl"] == f"pkg:pypi/polars@{pins()['polars']}"
