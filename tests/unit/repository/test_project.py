"""The files that a repository has for people and for services: each agrees with the program and the Makefile."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from etl.runtime.resources import __version__

ROOT = Path(__file__).parents[3]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_s_links_lead_to_files_and_its_targets_exist(name):
    page = (ROOT / name).read_text(encoding="utf-8")
    links = [each for each in re.findall(r"\]\(([^)#]+)[^)]*\)", page) if "://" not in each]
    assert links
    assert [each for each in links if not (ROOT / each).exists()] == []
    targets = set(re.findall(r"(?:^    |`)make ([a-z-]+)", page, re.MULTILINE))
    assert [each for each in targets if not re.search(rf"^{each}:", MAKEFILE, re.MULTILINE)] == []


def test_the_citation_names_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["title"], citation["version"]) == (project["name"], __version__)
    assert citation["license"] == project["license"]
    assert {"cff-version", "message", "authors"} <= citation.keys()  # which its schema requires


def test_the_workflow_runs_what_must_pass_on_the_oldest_python_and_the_image_s():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = flow["jobs"]["checks"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    image = re.search(r"^FROM python:(\S+)-slim$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert job["strategy"]["matrix"]["python"] == ["3.11", image[1]]
    assert flow["permissions"] == {"contents": "read"}


def test_the_hooks_run_what_make_lint_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}  # nothing is fetched
    called = {" ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in hooks}
    lint = MAKEFILE.split("\nlint:", 1)[1].split("\n\n", 1)[0]
    in_lint = {" ".join(each.split()[:2]) for each in re.findall(r"\$\(BIN\)/([^\n]+)", lint)}
    assert called == {each.removesuffix(" .") for each in in_lint}
    assert all(hook.get("pass_filenames", True) == hook["entry"].startswith(".venv/bin/ruff") for hook in hooks)
