"""docs/dependencies.md lists all dependencies with their licences; `--write-golden` rewrites its tables."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "dependencies.md"
OLDEST = {"python_version": "3.11", "python_full_version": "3.11.0", "extra": ""}
"""The environment with the most requirements: only the oldest Python needs backports."""


def closure(*extras: str) -> dict[str, tuple[Distribution | None, set[str]]]:
    """Every distribution that the program asks for, itself or through another: {name: (where it is installed, who asks)}.

    With what these extras of the program's ask for (bpr-etl[demo] asks for it), and with the extras that a requirement names.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, tuple[Distribution | None, set[str]]] = {}
    waiting = [("bpr-etl", "", each) for each in project["dependencies"]]
    waiting += [(f"bpr-etl[{extra}]", "", each) for extra in extras for each in project["optional-dependencies"][extra]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        asker, extra, text = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({**OLDEST, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found:
            try:
                there: Distribution | None = distribution(name)
            except PackageNotFoundError:  # asked for by an older Python alone
                there = None
            found[name] = (there, set())
        of = found[name][0]
        for wanted in {(name, each) for each in ("", *requirement.extras)} - seen:
            seen.add(wanted)
            waiting += [(*wanted, each) for each in (of.requires or [] if of else [])]
        found[name][1].add(asker)
    return dict(sorted(found.items()))


def licence(of: Distribution) -> str:
    """The licence that the distribution declares in its metadata; else the first line of its licence file."""
    if expression := of.metadata.get("License-Expression"):
        return str(expression)
    classifiers = [
        each.split(" :: ")[-1] for each in of.metadata.get_all("Classifier") or [] if each.startswith("License")
    ]
    if classifiers:
        return ", ".join(classifiers)
    declared = of.metadata.get("License") or ""
    if declared and "\n" not in declared:
        return str(declared)
    for file in of.files or []:
        if re.search(r"licen[cs]e", file.name, re.IGNORECASE) and file.parts[0].endswith(".dist-info"):
            return f"{file.read_text().strip().splitlines()[0].strip()} (its file)"
    return "none declared"


def bundled(of: Distribution) -> list[str]:
    """Third-party libraries in the wheel, by the names that they are loaded by."""
    names = {file.name for file in of.files or [] if file.parts[0].endswith(".libs")}
    return sorted({re.sub(r"-[0-9a-f]{8}", "", name).split(".so")[0] for name in names})


def tables() -> str:
    rows, libraries = [], []
    for name, (there, askers) in closure("demo").items():
        if there is None:
            rows += [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name} |")]
            continue
        asked = "bpr-etl" if "bpr-etl" in askers else ", ".join(sorted(askers))
        rows.append(f"| {name} | {there.version} | {licence(there)} | {asked} |")
        if names := bundled(there):
            libraries.append(f"| {name} | {', '.join(names)} |")
    first = ["| distribution | version | licence, as it declares it | asked for by |", "|---|---|---|---|", *rows]
    second = ["| wheel | libraries of others inside |", "|---|---|", *libraries]
    return "\n".join([*first, "", *second, ""])


def test_the_page_lists_what_is_installed_with_its_licence(request):
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition("<!-- dependencies -->\n")
    written, _, after = rest.partition("<!-- /dependencies -->")
    if request.config.getoption("--write-golden"):
        PAGE.write_text(f"{before}<!-- dependencies -->\n{tables()}<!-- /dependencies -->{after}", encoding="utf-8")
        pytest.skip("rewritten")
    assert written == tables()


def test_every_direct_dependency_says_why_it_is_there():
    """docs/dependencies.md has a line for each."""
    reasons = PAGE.read_text(encoding="utf-8").split("## Why each is there", 1)[1].split("## Versions", 1)[0]
    direct = [
        name for name, (_, askers) in closure("demo").items() if any(each.startswith("bpr-etl") for each in askers)
    ]
    assert len(direct) > 5
    assert [name for name in direct if not re.search(rf"^\|( `\w+` \|)?[^|]*\b{name}\b", reasons, re.MULTILINE)] == []


def test_licences_with_further_conditions_are_described():
    """Licences with further conditions (GPL, LGPL, AGPL, MPL and similar), and undeclared ones."""
    page = PAGE.read_text(encoding="utf-8")
    described = page.split("<!-- /dependencies -->", 1)[1]
    asking = re.compile(r"GPL|MPL|EPL|CDDL|SSPL|BUSL|General Public|none declared", re.IGNORECASE)
    names = [name for name, (there, _) in closure("demo").items() if there and asking.search(licence(there))]
    libraries = [name for there, _ in closure("demo").values() if there for name in bundled(there)]
    copyleft = [name for name in libraries if name in {"libreadline", "libgfortran", "libquadmath", "libkeyutils"}]
    assert copyleft  # they are there, so the list of names is not out of date
    for name in (*names, *copyleft):
        assert name in described


def pins() -> dict[str, str]:
    """The versions that `constraints.txt` names, by name; without what a build adds to its version, like +cpu."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(";")[0].partition("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name.strip()): version.strip().partition("+")[0] for name, _, version in pairs}


def test_everything_that_make_installs_is_pinned():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = closure(*extras)
    assert len(asked) > 60
    assert sorted(asked.keys() - pins().keys() - {"bpr-etl"}) == []


def test_every_pin_admits_the_oldest_python():
    """Debian 12's Python is 3.11.2: with one pin that needs a newer one, no target of the Makefile works there.

    Checks what is installed here, which is all of it after `make consumers ray-extra bench-setup`.
    """
    refused, looked_at = [], 0
    for name, pinned in pins().items():
        try:
            there = distribution(name)
        except PackageNotFoundError:
            continue
        looked_at += 1
        needs = there.metadata["Requires-Python"] or ""
        if there.version.partition("+")[0] == pinned and not SpecifierSet(needs).contains(
            OLDEST["python_full_version"]
        ):
            refused.append(f"{name} {pinned} needs Python {needs}")
    assert looked_at > 60
    assert refused == []
