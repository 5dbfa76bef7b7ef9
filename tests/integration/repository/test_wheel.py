"""The wheel: what is in it, and that it finds there what a checkout has at its top."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from email import message_from_string
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from zipfile import ZipFile

import pytest
import trove_classifiers
import yaml
from markdown_it import MarkdownIt

import etl
from tests.faults.calling import ROOT, environment
from tests.unit.repository.test_dependencies import closure

commonmark = MarkdownIt("gfm-like", {"linkify": False}).parse


def build_wheel(source: Path, into: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", into]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """A wheel of this checkout, unpacked as an installer does it."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: `make test` adds it")
    folder = tmp_path_factory.mktemp("wheel")
    build_wheel(ROOT, folder)
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_the_image_builds_the_same_wheel(unpacked, tmp_path):
    """From the files that the Dockerfile copies, and no others."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    for name in [
        each for line in lines if line.startswith("COPY ") and "--" not in line for each in line.split()[1:-1]
    ]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build_wheel(tmp_path, tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    there = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert set(ZipFile(wheel).namelist()) == {each for each in there if "__pycache__" not in each}


def metadata(unpacked: Path) -> EmailMessage:
    (info,) = unpacked.glob("*.dist-info")
    return message_from_string((info / "METADATA").read_text(encoding="utf-8"), policy=default)


def test_the_readme_in_the_metadata_renders_without_the_repository(unpacked):
    """Every link leads to an address, and none was lost: the words and files stay."""
    assert metadata(unpacked)["Description-Content-Type"] == "text/markdown"
    text, source = metadata(unpacked).get_content(), (ROOT / "README.md").read_text(encoding="utf-8")
    tokens = [child for token in commonmark(text) for child in [token, *(token.children or [])]]
    addresses = [str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens]
    assert [each for each in addresses if each and "://" not in each] == []
    linked = [
        str(child.attrs.get("href") or child.attrs.get("src")).partition("#")[0]
        for token in commonmark(source)
        for child in token.children or []
        if child.type in {"link_open", "image"}
    ]
    assert len(linked) > 20
    assert [each for each in linked if "://" not in each and f"`{each}`" not in text] == []
    blocks = [[token.content for token in commonmark(each) if token.type == "code_block"] for each in (source, text)]
    assert blocks[0] == blocks[1] != []


def test_the_metadata_is_complete(unpacked):
    found = metadata(unpacked)
    assert {
        "Name",
        "Version",
        "Summary",
        "Author",
        "License-Expression",
        "License-File",
        "Keywords",
        "Requires-Python",
    } <= {*found.keys()}
    assert set(found.get_all("Classifier")) <= trove_classifiers.classifiers
    pythons = {each.rpartition(" ")[2] for each in found.get_all("Classifier") if "Python :: 3." in each}
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert pythons == set(flow["jobs"]["checks"]["strategy"]["matrix"]["python"])
    assert {"demo", "ray", "aws", "lineage"} <= set(found.get_all("Provides-Extra"))
    required = [each for each in found.get_all("Requires-Dist") if "extra ==" not in each]
    assert not any("pgserver" in each or "[" in each for each in required)


@pytest.fixture(scope="module")
def installed(unpacked, tmp_path_factory) -> Path:
    """An environment with the wheel, its command, and links to what the wheel depends on: no extra, no other library."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    shutil.copytree(unpacked, site, dirs_exist_ok=True)
    (info,) = unpacked.glob("*.dist-info")
    parser = configparser.ConfigParser(delimiters="=")
    parser.read(info / "entry_points.txt")
    module, _, function = parser["console_scripts"]["bpr-etl"].partition(":")
    command = folder / "bin" / "bpr-etl"
    # What pip makes of an entry point.
    command.write_text(f"#!{folder}/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    command.chmod(0o755)
    for of, _ in closure().values():
        for name in {file.parts[0] for file in of.files or []} - {"..", "__pycache__"} if of else ():
            if not (site / name).exists():
                (site / name).symlink_to(of.locate_file(name))
    return folder


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder with another project's package `etl`, which says so when it is imported."""
    (tmp_path / "etl").mkdir()
    (tmp_path / "etl" / "__init__.py").write_text("print('the other etl')\n")
    return tmp_path


def in_environment(installed: Path, cwd: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program of the environment's, called in a folder."""
    env = environment(**variables)
    if "PYTHONPATH" not in variables:
        env.pop("PYTHONPATH", None)
    program = [installed / "bin" / words[0], *words[1:]]
    return subprocess.run(program, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)


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


def test_nothing_but_the_package_and_the_module_is_at_its_top(unpacked):
    top = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}
    assert top == {"etl", "bpr_etl.py", "bpr_etl-stubs"}
    assert {path.name for path in (unpacked / "etl" / "_bundled").iterdir()} == {"cli.py", "data", "constraints.txt"}


API = """
import sys
before = list(sys.path)
import bpr_etl
assert sys.path == before
assert not {"polars", "pyarrow"} & sys.modules.keys()
import etl.errors
for name in ("run", "export", "expand", "Settings", "load_settings", "RunResult", "open_snapshot", "Snapshot", "EtlError"):
    assert getattr(bpr_etl, name) is getattr(etl, name), name
    assert name in dir(bpr_etl)
assert bpr_etl.errors.SettingsError is etl.errors.SettingsError
try:
    bpr_etl.rum
except AttributeError:
    print(bpr_etl.__file__, etl.__file__, bpr_etl.__version__)
"""


@pytest.mark.parametrize("on_path", [False, True], ids=["working folder", "PYTHONPATH"])
def test_our_package_is_imported_where_another_etl_comes_first(installed, foreign, tmp_path_factory, on_path):
    cwd = tmp_path_factory.mktemp("elsewhere") if on_path else foreign
    variables = {"PYTHONPATH": str(foreign)} if on_path else {}
    plain = in_environment(installed, cwd, "python", "-c", "import etl", **variables)
    assert plain.stdout == "the other etl\n"  # so it does come first

    done = in_environment(installed, cwd, "python", "-c", API, **variables)
    assert done.returncode == 0, done.stderr
    ours, package, version = done.stdout.split()
    assert (Path(ours).name, Path(package).parent) == ("bpr_etl.py", Path(ours).parent / "etl")
    assert Path(ours).is_relative_to(installed)
    for words in (["bpr-etl", "--version"], ["python", "-m", "bpr_etl", "--version"]):
        said = in_environment(installed, cwd, *words, **variables)
        assert (said.returncode, said.stdout, said.stderr) == (0, f"bpr-etl {version}\n", "")
    doctor = in_environment(installed, cwd, "bpr-etl", "doctor", "--json", **variables)
    assert json.loads(doctor.stdout)["exit_code"] == doctor.returncode == 2  # no database was named


def test_without_an_extra_a_run_works_and_the_demo_says_what_it_needs(installed, small_world, tmp_path):
    done = in_environment(
        installed, tmp_path, "bpr-etl", "run", "--probe", "--out", "out", "--database-url", small_world
    )
    assert done.returncode == 0, done.stderr
    for words in (
        ["report", "out"],
        ["validate", "--snapshot", "out"],
        ["doctor", "--out", "out"],
        ["db", "stop", "--data-dir", "pg"],
    ):
        done = in_environment(installed, tmp_path, "bpr-etl", *words, DATABASE_URL=small_world)
        assert done.returncode == (99 if words[0] == "db" else 0), (words, done.stdout, done.stderr)
    for words in (["demo"], ["db", "start"]):
        done = in_environment(installed, tmp_path, "bpr-etl", *words, "--data-dir", str(tmp_path / "pg"))
        assert (done.returncode, done.stdout) == (2, "")
        assert "is not installed: pip install 'bpr-etl[demo]'." in done.stderr.splitlines()[-1]
        assert not (tmp_path / "pg").exists()


def test_a_type_checker_knows_the_public_names(installed, tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed: `make lint` adds it")
    names = [f"bpr_etl.{name}" for name in [*etl._MODULES, "errors.SettingsError", "__version__", "main"]]
    (tmp_path / "use.py").write_text("\n".join(["import bpr_etl", *(f"reveal_type({each})" for each in names)]))
    check = [sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "bin" / "python", "use.py"]
    done = subprocess.run(
        check, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(names)
    assert (done.returncode, [line for line in revealed if '"Any"' in line]) == (0, []), done.stdout


def test_an_etl_that_is_imported_already_is_named(installed, foreign):
    done = in_environment(
        installed,
        foreign,
        "python",
        "-c",
        "import sys, etl\nbefore = list(sys.path)\n"
        "try:\n import bpr_etl\nexcept ImportError as error:\n print(error, sys.path == before)",
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[1]
    assert f"another etl is imported already, of {foreign / 'etl'}: import bpr_etl in a process of its own" in said
    assert said.endswith(" True")


def test_help_imports_no_library_of_the_work(installed, tmp_path):
    done = in_environment(installed, tmp_path, "python", "-X", "importtime", "-m", "bpr_etl", "--help")
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"bpr_etl", "etl.commands.terminal.help"} & imported
    assert not {"polars", "pyarrow", "numpy", "connectorx", "dataframely"} & imported


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
