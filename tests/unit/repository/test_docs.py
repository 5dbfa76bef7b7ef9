"""The documentation agrees with the program: messages, options, exit codes and generated pages."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

import etl
from etl import errors

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
MESSAGES = re.findall(r"^> (.+)$", (DOCS / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
CODES = {
    0: "done",
    1: "a bug",
    **{
        each.exit_code: name
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.EtlError) and each is not errors.EtlError
    },
}


def program_texts() -> set[str]:
    """All string constants of the program except docstrings, with {} for interpolated values."""
    texts = set()
    for path in (ROOT / "etl").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in prose:
                continue
            if isinstance(node, ast.JoinedStr):
                texts.add("".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    return texts


@pytest.fixture(scope="module")
def made():
    spec = importlib.util.spec_from_file_location("made", DOCS / "made.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference(made) -> str:
    return made.commands()


def test_the_faq_quotes_messages_of_the_program():
    texts = program_texts()
    assert len(MESSAGES) > 15
    assert [each for each in MESSAGES if not any(each in text for text in texts)] == []


def test_the_reference_has_every_command_with_its_options_and_an_example(reference):
    for command in ("run", "export", "expand", "schema print", "db url"):
        section = reference.split(f"## {command}\n", 1)[1].split("\n## ", 1)[0]
        assert f"bpr-etl {command}" in section
        assert "```sh\nbpr-etl" in section or "```sh\npsql" in section
    assert "| `--negatives STRATEGY` |" in reference
    assert "`BPR_ETL_MIN_CATALOG`" in reference


def options_named(text: str) -> set[str]:
    """Long options in calls of bpr-etl and in inline code."""
    calls = re.findall(r"bpr-etl[^\n`]*", text) + re.findall(r"`(--[^`]+)`", text)
    return {option for call in calls for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", call)}


FOREIGN = {
    "--help",
    "--rm",
    "--collector",
    "--local",
    "--user",
    "--system",
    "--home-dir",
    "--now",
    "--write-golden",
    "--full",
    "--save",
}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_a_page_names_only_existing_options(page, reference):
    if page.name in {"negatives.md", "dependencies.md"}:
        pytest.skip("names options that were tried and not included, and options of other programs")
    known = set(re.findall(r"--[a-z][a-z-]+", reference)) | FOREIGN
    assert options_named(page.read_text(encoding="utf-8")) - known == set()


@pytest.mark.parametrize("name", ["contract.md", "recipes.md"])
def test_a_table_of_exit_codes_has_them_all(name):
    rows = re.findall(r"^\| ([\d, ]+) \| ", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code) for row in rows for code in row.split(",")} == set(CODES)


def test_every_page_is_in_the_site():
    listed = set(re.findall(r"^([a-z-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {page.stem for page in PAGES} - {"index"} <= listed


def test_every_included_file_exists():
    for page in PAGES:
        for path in re.findall(r"\{(?:literalinclude|image)\} (\S+)", page.read_text(encoding="utf-8")):
            assert (DOCS / path).is_file(), f"{page.name}: {path}"


def test_every_number_on_the_performance_page_was_measured():
    """Numbers in tables must be in the results; sentences may have counts and limits of their own."""
    results = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    page = (DOCS / "performance.md").read_text(encoding="utf-8").split("## Targets", 1)[0]
    numbers = {
        number for row in re.findall(r"^\|.*\|$", page, re.MULTILINE) for number in re.findall(r"\d[\d.,]*\d|\d", row)
    }
    assert len(numbers) > 12
    assert [number for number in numbers if number not in results] == []


@pytest.mark.parametrize("name", sorted(etl._MODULES))
def test_a_public_name_exists_and_is_documented(name):
    assert getattr(etl, name).__doc__
    assert f":: bpr_etl.{name}" in (DOCS / "api.md").read_text(encoding="utf-8") or name == "EtlError"
    assert name in dir(etl)


def test_there_is_no_other_public_name():
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        etl.rum  # noqa: B018
