"""What is looked at before a release: `make release-check`. Builds into dist/, exits 1 if anything is wrong.

Writes a bill of materials (CycloneDX 1.6) of what a run needs, as it is installed here: `dist/sbom.cdx.json`. Needs no network.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from etl.runtime.resources import __version__
from tests.unit.repository.test_dependencies import PAGE, bundled, closure, licence, pins

ROOT = Path(__file__).parents[1]
PERMISSIVE = re.compile(r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|Zlib|CC0)\b", re.IGNORECASE)
Closure = Mapping[str, tuple[Distribution | None, set[str]]]


def is_permissive(text: str) -> bool:
    """Whether a licence, or each part that an expression joins with AND, leaves a permissive choice."""
    return all(any(map(PERMISSIVE.search, part.split(" OR "))) for part in re.split(r" AND |, ", text))


def findings(needed: Closure, pinned: Mapping[str, str], described: str) -> Iterator[str]:
    """What is wrong with the dependencies. `described` is the text on licences that people have looked at."""
    for name, (there, _) in needed.items():
        if there is None:  # asked for by an older Python alone
            continue
        if there.version.partition("+")[0] != pinned.get(name):
            yield f"{name}: {there.version} is installed, constraints.txt has {pinned.get(name, 'no version')}."
        if not is_permissive(licence(there)) and f"**{name}**" not in described:
            yield f"{name}: its licence ({licence(there)}) is not permissive, and docs/dependencies.md says nothing about it."


def unpinned(constraints: str) -> Iterator[str]:
    """Lines of constraints.txt that name no exact version."""
    for line in constraints.splitlines():
        if line and not re.match(r"#|[A-Za-z0-9._-]+==[A-Za-z0-9.+]+( ;|$)", line):
            yield f"constraints.txt: {line!r} names no exact version."


def bill_of_materials(needed: Closure) -> dict[str, Any]:
    """The distributions, the libraries inside their wheels, and who asks for whom. The same for the same environment."""
    there = {name: (of, askers) for name, (of, askers) in needed.items() if of}
    addresses = {name: f"pkg:pypi/{name}@{of.version}" for name, (of, _) in there.items()}
    addresses["bpr-etl"] = f"pkg:pypi/bpr-etl@{__version__}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": _component("bpr-etl", __version__, addresses["bpr-etl"], "MIT", "application")},
        "components": [
            _component(name, of.version, addresses[name], licence(of))
            | {"components": [{"type": "library", "name": each} for each in bundled(of)]}
            for name, (of, _) in there.items()
        ],
        "dependencies": [
            {
                "ref": address,
                "dependsOn": [addresses[name] for name, (_, askers) in there.items() if asker in askers],
            }
            for asker, address in addresses.items()
        ],
    }


def _component(name: str, version: str, address: str, terms: str, kind: str = "library") -> dict[str, Any]:
    licences = [{"license": {"name": terms}}]
    return {
        "type": kind,
        "bom-ref": address,
        "name": name,
        "version": version,
        "purl": address,
        "licenses": licences,
    }


def megabytes(of: Distribution) -> float:
    """The size of the distribution's files as they are installed, without what Python compiles."""
    return sum(file.size or 0 for file in of.files or [] if file.suffix != ".pyc") / 1e6


def build(folder: Path) -> tuple[Path, Path]:
    """Build the wheel and the source distribution; returns their paths."""
    for old in folder.glob("bpr_etl-*"):
        old.unlink()
    subprocess.run([sys.executable, "-m", "hatchling", "build", "--directory", folder], cwd=ROOT, check=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def untracked(wheel: Path, source: Path) -> Iterator[str]:
    """Files in either that git does not know: a settings file with a password, a snapshot."""
    tracked = {*subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0"), "PKG-INFO"}
    with tarfile.open(source) as archive:
        packed = {each.partition("/")[2] for each in archive.getnames()} - {""}
    packed |= {
        each.replace("etl/_bundled/", "").replace("bpr_etl-stubs/__init__", "bpr_etl")
        for each in ZipFile(wheel).namelist()
        if not re.match(r"[^/]+\.dist-info/", each)
    }
    yield from (f"{each} is in what was built, but not in git." for each in sorted(packed - tracked))


def main() -> int:
    """Build, look, print; returns the exit code."""
    folder = ROOT / "dist"
    wheel, source = build(folder)
    needed = closure()
    (folder / "sbom.cdx.json").write_text(json.dumps(bill_of_materials(needed), indent=1) + "\n", encoding="utf-8")
    print(f"{'distribution':26}{'version':12}{'MB':>6}  licence")
    for name, (of, _) in needed.items():
        if of:
            print(f"{name:26}{of.version:12}{megabytes(of):>6.1f}  {licence(of)}")
    print(f"{'together':38}{sum(megabytes(of) for of, _ in needed.values() if of):>6.1f}")
    for path in (wheel, source, folder / "sbom.cdx.json"):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(ROOT)}")
    described = PAGE.read_text(encoding="utf-8").split("<!-- /dependencies -->", 1)[1]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    wrong = [*findings(needed, pins(), described), *unpinned(constraints), *untracked(wheel, source)]
    print("".join(f"{each}\n" for each in wrong), end="")
    print("Not looked at: known vulnerabilities, which need the network (docs/dependencies.md says how).")
    print(f"{len(wrong)} findings." if wrong else "No findings.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
