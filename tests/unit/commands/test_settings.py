"""The file that `init` writes is every setting at its default or as proposed, and `config show` says where each value comes from."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from etl.commands.settings import settings_with_origin, template, write_template
from etl.errors import ConnectError, SettingsError
from etl.settings.model import OPTIONS, Settings
from etl.settings.sources import DEFAULT_FILE, default_settings_file, explicit_settings_file, load_settings

NO_DEFAULT = {name for name, option in OPTIONS.items() if option.default is None}


PROPOSED = Settings(negatives=["recommended"])


def uncommented(marker: str) -> dict[str, object]:
    """What the file says when the marker is taken away from in front of the settings that have it."""
    return tomllib.loads(re.sub(rf"^{marker}(?=[a-z-]+ = )", "", template(), flags=re.MULTILINE))


def test_as_it_is_written_it_sets_nothing(tmp_path):
    write_template(tmp_path / "own.toml")
    assert tomllib.loads((tmp_path / "own.toml").read_text(encoding="utf-8")) == {"negatives": ["recommended"]}
    assert load_settings({"config": str(tmp_path / "own.toml")}, {}) == PROPOSED


def test_with_every_default_uncommented_it_gives_the_defaults(tmp_path):
    named = uncommented("#")
    assert {name.replace("-", "_") for name in named} == set(OPTIONS) - NO_DEFAULT
    text = re.sub(r"^#(?=[a-z-]+ = )", "", template(), flags=re.MULTILINE)
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    assert load_settings({"config": str(tmp_path / "own.toml")}, {}) == PROPOSED


def test_a_setting_without_a_default_has_an_example_that_is_understood():
    named = {name.replace("-", "_"): value for name, value in uncommented("#: ").items()}
    assert set(named) == {*NO_DEFAULT, "negatives"}
    for name, value in named.items():
        assert getattr(load_settings({name: value}, {}), name) is not None


def test_every_setting_has_its_words_above_it_and_lines_are_not_long():
    lines = template().splitlines()
    for name in OPTIONS:
        (at,) = [
            number for number, line in enumerate(lines) if re.match(rf"(?:#:? ?)?{name.replace('_', '-')} = ", line)
        ]
        assert re.match(r"# \S", lines[at - 1])
    assert max(map(len, lines)) <= 120
    assert not any("[env:" in line for line in lines)


def test_a_file_that_is_there_is_left_as_it_is(tmp_path):
    (tmp_path / "own.toml").write_text("seed = 7")
    with pytest.raises(SettingsError, match=r"own\.toml is there already, and is left as it is"):
        write_template(tmp_path / "own.toml")
    assert (tmp_path / "own.toml").read_text() == "seed = 7"
    with pytest.raises(ConnectError, match="No such file or directory"):
        write_template(tmp_path / "nowhere" / "own.toml")


def test_only_its_owner_may_read_it_since_some_put_a_password_into_it(tmp_path):
    write_template(tmp_path / "own.toml")
    assert (tmp_path / "own.toml").stat().st_mode & 0o777 == 0o600


def test_each_value_is_shown_with_where_it_came_from(tmp_path):
    (tmp_path / "own.toml").write_text('seed = 1\nids = "both"\nmin-catalog = 7\n')
    given = {"config": str(tmp_path / "own.toml"), "seed": 3}
    environ = {"BPR_ETL_IDS": "index", "DIRECT_URL": "postgresql://app:s3cr3t@h/d", "PGPASSWORD": "s3cr3t"}
    rows = settings_with_origin(load_settings(given, environ))
    assert set(rows) == set(OPTIONS)
    assert (rows["seed"]["value"], rows["seed"]["from"]) == (3, "the command line")
    assert (rows["ids"]["value"], rows["ids"]["from"]) == ("index", "environment: BPR_ETL_IDS")
    assert (rows["min_catalog"]["value"], rows["min_catalog"]["from"]) == (7, str(tmp_path / "own.toml"))
    assert (rows["out"]["value"], rows["out"]["from"]) == ("out", "default")
    assert rows["database_url"]["value"] == "postgresql://app:***@h/d"
    assert rows["database_url"]["from"] == "environment: DIRECT_URL"
    assert "s3cr3t" not in str(rows)


def test_a_password_is_masked_wherever_it_was_put():
    given = {"database_url": "host=h password='s3 cr3t' dbname=d", "out": "s3 cr3t", "negatives": ["ranking"]}
    rows = settings_with_origin(load_settings(given, {}))
    assert "s3 cr3t" not in str(rows)
    assert rows["negatives"]["value"] == ["ranking"]


@pytest.mark.parametrize(
    ("given", "environ", "named", "at_hand"),
    [
        ({}, {}, None, DEFAULT_FILE),
        ({"config": "a"}, {}, "a", None),
        ({"config": "a"}, {"BPR_ETL_CONFIG": "b"}, "a", None),
        ({}, {"BPR_ETL_CONFIG": "b"}, "b", None),
        ({"config": ""}, {}, None, None),
        ({"config": ""}, {"BPR_ETL_CONFIG": "b"}, None, None),
        ({}, {"BPR_ETL_CONFIG": ""}, None, DEFAULT_FILE),
    ],
)
def test_the_file_in_the_working_folder_is_read_where_nobody_names_another(
    tmp_path, monkeypatch, given, environ, named, at_hand
):
    monkeypatch.chdir(tmp_path)
    assert default_settings_file(given, environ) is None
    (tmp_path / DEFAULT_FILE).write_text("seed = 7")
    assert (explicit_settings_file(given, environ), default_settings_file(given, environ)) == (named, at_hand)
    if named is None:
        assert load_settings(given, environ).seed == 0  # a library's call reads no file that it wasn't told of


def in_folder(tmp_path, monkeypatch) -> Path:
    """A working folder with a settings file, both ours alone."""
    folder = tmp_path / "work"
    folder.mkdir(mode=0o755)
    (folder / DEFAULT_FILE).write_text("seed = 7")
    (folder / DEFAULT_FILE).chmod(0o644)
    monkeypatch.chdir(folder)
    return folder


def linked(folder: Path) -> Path:
    """The settings file as a link to one in another folder; gives that."""
    (folder.parent / "other").mkdir()
    (folder / DEFAULT_FILE).rename(folder.parent / "other" / "file")
    (folder / DEFAULT_FILE).symlink_to("../other/file")
    assert default_settings_file({}, {}) == DEFAULT_FILE
    return folder.parent / "other" / "file"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / DEFAULT_FILE).chmod(0o646), r"\(everybody may write to it\)"),
        (lambda folder: folder.chmod(0o777), r"\(its folder: everybody may write to it\)"),
        (lambda folder: folder.chmod(0o1777), r"\(its folder: everybody may write to it\)"),
        (lambda folder: os.chown(folder / DEFAULT_FILE, 65534, -1), r"\(it belongs to nobody\)"),
        (lambda folder: os.chown(folder, 4711, -1), r"\(its folder: it belongs to user 4711\)"),
        (lambda folder: linked(folder).chmod(0o602), r"\(everybody may write to it\)"),
        (lambda folder: linked(folder).parent.chmod(0o777), r"\(its folder: everybody may write to it\)"),
        (lambda folder: os.chown(linked(folder), 65534, -1), r"\(it belongs to nobody\)"),
        (lambda folder: linked(folder) and os.lchown(folder / DEFAULT_FILE, 65534, -1), r"\(it belongs to nobody\)"),
    ],
)
def test_a_file_that_somebody_else_may_have_written_is_not_read_unasked(tmp_path, monkeypatch, harm, said):
    folder = in_folder(tmp_path, monkeypatch)
    try:
        harm(folder)
    except PermissionError:
        pytest.skip("only root gives files away")
    with pytest.raises(SettingsError, match=rf"another user may have written it {said}.*--config {DEFAULT_FILE}"):
        default_settings_file({}, {})
    assert default_settings_file({"config": ""}, {}) is None
    assert load_settings({"config": DEFAULT_FILE}, {}).seed == 7  # who names it takes it as it is
    done = subprocess.run(
        [Path(sys.executable).parent / "bpr-etl", "config", "show"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("members", "users", "read"),
    [
        ([], [("me", True)], True),  # a group of one's own, as Debian, Ubuntu and Fedora give everybody
        (["me"], [("me", True)], True),
        (["me", "root"], [("me", False)], True),
        (["me", "you"], [("me", True), ("you", False)], False),
        ([], [("me", True), ("you", True)], False),
        (["of a directory server"], [("me", True)], False),
        ([], [], False),
    ],
)
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_group_is_nobody_else_where_one_is_alone_in_it(tmp_path, monkeypatch, members, users, read, what):
    folder = in_folder(tmp_path, monkeypatch)
    (folder if what == "folder" else folder / DEFAULT_FILE).chmod(0o775)
    group, me = folder.stat().st_gid, os.geteuid()
    numbers = {"me": me, "you": 4711}
    known = [SimpleNamespace(pw_name=name, pw_uid=numbers[name], pw_gid=group if of else 4711) for name, of in users]
    known.append(SimpleNamespace(pw_name="root", pw_uid=0, pw_gid=4712))
    monkeypatch.setattr("etl.settings.permissions.pwd.getpwall", lambda: known)
    monkeypatch.setattr("etl.settings.permissions.grp.getgrgid", lambda _: SimpleNamespace(gr_mem=members))
    if read:
        assert default_settings_file({}, {}) == DEFAULT_FILE
    else:
        with pytest.raises(SettingsError, match="its group may write to it"):
            default_settings_file({}, {})


def test_an_access_list_is_somebody_else(tmp_path, monkeypatch):
    folder = in_folder(tmp_path, monkeypatch)
    nobody, all_ = 65534, 2**32 - 1
    entries = ((1, 6, all_), (2, 6, nobody), (4, 4, all_), (0x10, 6, all_), (0x20, 4, all_))  # as acl(5) lists them
    rights = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(folder / DEFAULT_FILE, "system.posix_acl_access", rights)
    except OSError:
        pytest.skip("no access lists here")
    with pytest.raises(SettingsError, match="its group may write to it"):
        default_settings_file({}, {})
