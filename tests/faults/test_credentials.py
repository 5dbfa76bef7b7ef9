"""A password is in nothing that the program puts out or leaves behind, whatever goes wrong on the way."""

from __future__ import annotations

import re
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from etl.address import Discreet, parse_address, scrub, secrets_of
from etl.config import resolve
from etl.database import connect
from etl.errors import ConnectError, SettingsError
from tests.faults.calling import ROOT, call, environment

PLAIN = "Zyxxy8Qk3v"
ODD = "Zyxxy8/Qk@3v:%7E w#?'\\\"é+"
"""A word that stands nowhere else, and one with every character that an address needs encoded."""

ROLE, SCARCE = (f"bpr_test_{uuid.uuid4().hex[:12]}" for _ in range(2))


def forms(password: str) -> set[str]:
    """What must not be found: the password as it is, percent-encoded, and any part of it that would be missed."""
    encoded = {quote(password, safe=safe) for safe in ("", "/", "/:@")}
    return {password, "Zyxxy8", "yxxy8", *encoded, *(each.lower() for each in encoded)}


@pytest.fixture
def search(tally) -> Callable[..., None]:
    """Look for the password in texts and in every file below folders; says how many places were looked at."""

    def look(password: str, texts: Sequence[str], *folders: Path) -> None:
        places = {f"text {number}": text.encode() for number, text in enumerate(texts)}
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        places |= {str(path): path.read_bytes() for path in files}
        needles = [needle.encode() for needle in forms(password)]
        found = {where: text for where, text in places.items() for needle in needles if needle in text}
        assert not found
        tally("places searched for the password", len(places))

    return look


@pytest.fixture(scope="module")
def roles(server_url: str) -> Iterator[None]:
    """Two roles with a password each; one may have two connections at a time."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name, more in ((ROLE, sql.SQL("")), (SCARCE, sql.SQL("CONNECTION LIMIT 2"))):
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN {} PASSWORD {}").format(sql.Identifier(name), more, sql.Literal(ODD))
            )
            connection.execute(sql.SQL("GRANT pg_read_all_data, pg_write_all_data TO {}").format(sql.Identifier(name)))
    yield
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in (ROLE, SCARCE):
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def with_password(url: str, password: str | None = ODD, role: str = ROLE) -> str:
    """The URL with a role and its password."""
    parts = urlsplit(url)
    secret = "" if password is None else f":{quote(password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{role}{secret}@{parts.netloc.rpartition('@')[2]}"))


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [done.stdout, done.stderr]


# --- a night that goes well -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("where", ["url", "environment", "words"])
def test_a_night_leaves_no_password_in_its_logs_its_files_or_its_answer(small_world, tmp_path, search, effort, where):
    if not effort(0, 1):
        pytest.skip("tried by make test-faults")
    url = with_password(small_world)
    env = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    if where == "environment":
        url, env = with_password(small_world, None), env | {"PGPASSWORD": ODD}
    if where == "words":
        words = parse_address(url, {}).libpq
        parts, host = urlsplit(words), words.partition("host=")[2]
        quoted = ODD.replace("\\", "\\\\").replace("'", "\\'")
        url = f"dbname={parts.path[1:]} user={ROLE} password='{quoted}' host='{unquote(host) or parts.hostname}'"
    told_by = []
    for command in (["run", "--profile"], ["run", "--json", "--dry-run"], ["export"], ["validate"]):
        out = [] if command == ["validate"] else ["--out", str(tmp_path / "out")]
        done = call(*command, *out, env={**env, "DATABASE_URL": url}, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told_by += told(done)
    assert list((tmp_path / "out").rglob("manifest.json"))
    search(ODD, told_by, tmp_path)


LOUD = """
import logging, sys
quiet = logging.basicConfig
logging.basicConfig = lambda **words: quiet(**{{**words, "level": logging.DEBUG}})
sys.path.insert(0, {root!r})
{before}
import cli
cli.main()
"""


def call_loud(arguments: Sequence[str], before: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command with every logger at its loudest, after some statements that make it go wrong."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", LOUD.format(root=str(ROOT), before=before), *arguments],
        cwd=ROOT,
        env=environment(**env),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=120,
    )


@pytest.mark.usefixtures("roles")
def test_the_loudest_log_of_every_library_holds_none(small_world, tmp_path, search):
    url = with_password(small_world)
    done = call_loud(["run", "--out", str(tmp_path / "out"), "--database-url", url], "")
    assert done.returncode == 0, done.stderr
    search(ODD, told(done), tmp_path)


# --- what goes wrong ------------------------------------------------------------------------------------------------

AT_ONCE = ("an argument too many", "the value of another option", "a port that is none")
SETTINGS = {
    "an unknown parameter": ["run", "--database-url", "postgresql://u:{}@h/d?sslmod=require"],
    "another scheme": ["run", "--database-url", "mysql://u:{}@h/d"],
    "an argument too many": ["run", "postgresql://u:{}@h/d"],
    "the value of another option": ["run", "--naming", "postgresql://u:{}@h/d"],
    "a folder to publish to": ["run", "--out", "postgresql://u:{}@h/d", "--database-url", "x=y"],
    "a settings file": ["run", "--config", "postgresql://u:{}@h/d"],
    "a snapshot": ["expand", "postgresql://u:{}@h/d"],
    "words": ["run", "--naming", "host=h password='{}'"],
    "an unknown word": ["run", "--database-url", "host=h password='{}' sslmod=x"],
    "a word in pieces": ["run", "--json", "--database-url", "host=h password=a {} user=u"],
    "no scheme": ["run", "--database-url", "u:{}@h:5432/d"],
    "a port that is none": ["run", "--json", "--database-url", "postgresql://u:a/{}@h/d"],
}
IN_PIECES = {
    "an unencoded slash": "postgresql://u:a/Zyxxy8Qk3v@h/d",
    "an unencoded slash after digits": "postgresql://u:12/Zyxxy8Qk3v@h/d",
    "an unencoded question mark": "postgresql://u:a?Zyxxy8Qk3v@h/d",
    "a question mark after digits": "postgresql://u:12?Zyxxy8Qk3v=1@h/d",
    "a space": "host=h password=a Zyxxy8Qk3v",
    "a space and an equals sign": "host=h password=a Zyxxy8Qk3v=1",
    "a scheme within": "host=h password=Zyxxy8://Qk3v x=",
    "an open quote": "host=h password='Zyxxy8Qk3v",
    "something after the quote": "host=h password='a'Zyxxy8Qk3v",
    "no name": "postgresql://u:b@h/d?=Zyxxy8Qk3v",
    "an unknown name": "postgresql://u:b@h/d?Zyxxy8Qk3v%40",
}


@pytest.mark.parametrize("mistake", SETTINGS)
def test_a_wrong_setting_is_told_without_the_password(mistake, search, effort):
    if mistake not in AT_ONCE and not effort(0, 1):
        pytest.skip("tried by make test-faults")
    for password in (PLAIN, quote(ODD, safe=""))[: effort(1, 2)]:
        done = call(*(word.replace("{}", password) for word in SETTINGS[mistake]))
        assert done.returncode in {2, 3}
        assert "Error: " in done.stderr
        assert "Traceback" not in done.stderr
        search(ODD if password != PLAIN else PLAIN, told(done))


@pytest.mark.parametrize("url", IN_PIECES.values(), ids=IN_PIECES)
def test_an_address_that_takes_a_password_to_pieces_is_refused_without_a_piece_of_it(url, search):
    """To libpq half of it would be a host, a port or a parameter, to be repeated in its complaint."""
    with pytest.raises(SettingsError) as refused:
        parse_address(url, {})
    search(PLAIN, [str(refused.value), repr(refused.value)])


def test_an_at_sign_in_a_password_ends_it_for_libpq_no_sooner_than_for_prisma():
    address = parse_address("postgresql://u:Zyx@xy8@h/d", {"HOME": "/nonexistent"})
    assert address.libpq == "postgresql://u:Zyx%40xy8@h/d"
    assert address.connectorx == "postgresql://u:Zyx%40xy8@h/d"
    assert address.scrub("at Zyx@xy8 and Zyx%40xy8") == "at *** and ***"


def test_a_plus_in_a_parameter_is_a_plus():
    assert parse_address("postgresql://h/d?user=u&password=a+b", {}).libpq == "postgresql://h/d?user=u&password=a%2Bb"


def test_a_settings_file_with_the_address_and_a_mistake(tmp_path, search, effort):
    mistakes = ["naming = 'snake'", "namin = 'auto'", "seed = ", "seed = -1", "[database_url]\nx = 1", ""]
    for mistake in mistakes[: effort(2, len(mistakes))]:
        url = f"postgresql://u:{quote(ODD, safe='')}@127.0.0.1:1/d"
        (tmp_path / "own.toml").write_text(f'database_url = "{url}"\n{mistake}\n')
        done = call("run", "--config", "own.toml", "--json", cwd=tmp_path)
        assert done.returncode == (2 if mistake else 3), done.stderr
        search(ODD, told(done))


@pytest.fixture
def refused(effort, monkeypatch) -> Callable[..., list[str]]:
    """What is said by a connection that is refused: all that a command puts out with --full, else the error's message."""

    def say(url: str, **env: str) -> list[str]:
        if effort(0, 1):
            done = call("schema", "check", "--json", env={"DATABASE_URL": url, **env})
            assert done.returncode == 3, done.stderr
            return told(done)
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            with pytest.raises(ConnectError) as error, connect(parse_address(url, env)):
                pass
        return [str(error.value), repr(error.value), "".join(traceback.format_exception(error.value))]

    return say


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("password", [PLAIN, ODD + "x", "Zyxxy8%"], ids=["plain", "odd", "percent"])
def test_a_wrong_password_is_not_repeated(small_world_template, search, refused, password):
    url = with_password(small_world_template, password)
    if password.endswith("%"):  # no percent-encoding at all: libpq repeats what it can't decode
        url = url.replace("%25@", "%zz@")
    for texts in (refused(url), refused(with_password(small_world_template, None), PGPASSWORD=password)):
        # libpq does not even begin with a URL that it can't decode.
        assert re.search("The database refuses the login|Cannot reach the database: .*percent-encoded", texts[-1])
        search(PLAIN, texts)


def test_nobody_who_listens_is_told_of_without_the_password(search, refused):
    for url in (f"postgresql://u:{PLAIN}@127.0.0.1:1/d", f"host=127.0.0.1 port=1 user=u password={PLAIN}"):
        texts = refused(url)
        assert "Connection refused" in texts[-1]
        search(PLAIN, texts)


@pytest.mark.usefixtures("roles")
def test_a_reader_that_is_let_in_no_more_says_no_password(small_world, tmp_path, search, effort):
    """The pool of connectorx writes its complaints past Python, to the process's own stderr."""
    if not effort(0, 1):
        pytest.skip("tried by make test-faults")
    with occupied(small_world, 1):
        url = with_password(small_world, role=SCARCE)
        done = call_loud(["run", "--out", str(tmp_path / "out"), "--database-url", url], "")
    assert "too many connections" in done.stderr
    search(ODD, told(done), tmp_path)


@contextmanager
def occupied(url: str, number: int) -> Iterator[None]:
    """So many of the scarce role's connections taken."""
    held = [psycopg.connect(with_password(url, role=SCARCE)) for _ in range(number)]
    try:
        yield
    finally:
        for each in held:
            each.close()


# --- a bug ----------------------------------------------------------------------------------------------------------

BUGS = {
    "a driver's": "raise RuntimeError(f'could not connect to {settings.database_url}')",
    "in words": "raise RuntimeError('dsn: ' + settings.address().libpq)",
    "the word alone": "raise KeyError(PASSWORD)",
    "a cause": "try:\n        raise OSError(settings.database_url)\n    except OSError as error:\n        raise ValueError from error",
    "in a thread": (
        "import threading\n    def work():\n        raise RuntimeError(settings.database_url)\n"
        "    thread = threading.Thread(target=work)\n    thread.start()\n    thread.join()\n    raise SystemExit(1)"
    ),
    "a note": "error = RuntimeError('x')\n    error.add_note(settings.database_url)\n    raise error",
    "logged": "import logging\n    logging.getLogger('r2d2').error('%s', settings.database_url)\n    raise SystemExit(1)",
}
BROKEN = """
import os
import re
from etl import pipeline
PASSWORD = os.environ['SECRET_OF_THE_TEST']
def run(settings, *_, **__):
    {bug}
pipeline.run = run
"""


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_traceback_holds_no_password(bug, search, tmp_path, effort):
    if bug != BUGS["a driver's"] and not effort(0, 1):
        pytest.skip("tried by make test-faults")
    url = f"postgresql://u:{quote(ODD, safe='')}@h/d"
    (tmp_path / "own.toml").write_text(f'database_url = "{url}"\n')
    before = BROKEN.format(bug=bug)
    ways: list[tuple[list[str], dict[str, str]]] = [
        (["run", "--config", str(tmp_path / "own.toml")], {}),
        (["run", "--database-url", url], {}),
        (["run"], {"DATABASE_URL": url}),
    ]
    for arguments, env in ways[: effort(1, 3)]:
        done = call_loud(arguments, before, SECRET_OF_THE_TEST=ODD, **env)
        assert done.returncode == 1, done.stderr
        assert "***" in done.stderr  # it was there, that is
        search(ODD, told(done))


# --- in memory ------------------------------------------------------------------------------------------------------


def test_neither_settings_nor_address_show_it(search):
    url = f"postgresql://u:{quote(ODD, safe='')}@h/d"
    environ = {"DATABASE_URL": url, "PGPASSWORD": ODD, "HOME": "/nonexistent"}
    settings = resolve({}, environ)
    address = settings.address()
    search(ODD, [repr(settings), str(settings), repr(address), str(address), str(settings.public())])


@pytest.mark.parametrize("form", sorted(secrets_of(f"postgresql://u:{quote(ODD, safe='')}@h/d", {})))
def test_every_form_of_a_password_is_taken_out(form, search):
    address = parse_address(f"postgresql://u:{quote(ODD, safe='')}@h/d", {})
    search(ODD, [address.scrub(f"before {form} after")])
    assert address.scrub(f"before {form} after") == "before *** after"


def test_the_environment_s_password_is_an_address_s_secret(search):
    for url in ("postgresql://u@h/d", "host=h user=u", "postgresql:///?service=x"):
        search(ODD, [parse_address(url, {"PGPASSWORD": ODD}).scrub(f"no {ODD} here")])


def test_whatever_looks_like_an_address_is_scrubbed_though_nobody_knew_it(search):
    texts = [
        f"a=1 postgresql://u:{PLAIN}@h:5432/d?x=y, and more",
        f"('postgresql://u:a/{PLAIN}@h/d',)",
        f"postgresql:/u:{PLAIN}@h/d: no such file",
        f"password={PLAIN} host=h",
        f"password = 'a \\' {PLAIN}' host=h",
        f"postgresql://h/d?user=u&password={PLAIN}&x=y",
        f"sslpassword={PLAIN}",
    ]
    search(PLAIN, [scrub(text, ()) for text in texts])
    harmless = "https://h/a:b, INFO at 12:30:01, x@y.example, postgresql://u@h/d, /a/b:c"
    assert scrub(harmless, ()) == harmless


def test_a_discreet_stream_is_a_stream(tmp_path):
    with (tmp_path / "told").open("w", encoding="utf-8") as file:
        stream = Discreet(file, secrets_of(f"postgresql://u:{PLAIN}@h/d", {}))
        assert stream.write(f"one {PLAIN}\n") == len(f"one {PLAIN}\n")
        stream.writelines(["two\n", f"{PLAIN}\n"])
        stream.hide(["three"])
        print("three", file=stream)
        assert stream.encoding == "utf-8"
        assert not stream.isatty()
        stream.flush()
    assert (tmp_path / "told").read_text() == "one ***\ntwo\n***\n***\n"


# --- on paper -------------------------------------------------------------------------------------------------------


def test_no_page_shows_a_password_on_a_command_line():
    """What is on a command line, everybody on the machine can read while it runs."""
    pages = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "cli.py"]
    assert len(pages) > 3
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    with_one = [line for line in lines if "database-url" in line and scrub(line, ()) != line]
    assert with_one == []


def test_a_password_on_the_command_line_is_warned_of(effort):
    done = call("schema", "check", "--database-url", f"postgresql://u:{PLAIN}@127.0.0.1:1/d")
    assert "PGPASSWORD" in done.stderr
    for env in ({"DATABASE_URL": f"postgresql://u:{PLAIN}@127.0.0.1:1/d"}, {"PGPASSWORD": PLAIN})[: effort(0, 2)]:
        words = [] if "DATABASE_URL" in env else ["--database-url", "postgresql://u@127.0.0.1:1/d"]
        quiet = call("schema", "check", *words, env=env)
        assert quiet.returncode == 3
        assert "PGPASSWORD" not in quiet.stderr
