"""A password is in nothing that the program puts out or leaves behind, whatever goes wrong on the way."""

from __future__ import annotations

import html
import json
import subprocess
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from etl.errors import ConnectError, SettingsError, escape_control_characters
from etl.postgres.connection import connect
from etl.postgres.url import parse_url, target_of
from etl.settings.model import Settings, load_settings
from etl.settings.redaction import RedactingStream, find_secrets, redact, secrets_of
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
        words = parse_url(url, {}).libpq
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
        parse_url(url, {})
    search(PLAIN, [str(refused.value), repr(refused.value)])


def test_an_at_sign_in_a_password_ends_it_for_libpq_no_sooner_than_for_prisma():
    address = parse_url("postgresql://u:Zyx@xy8@h/d", {"HOME": "/nonexistent"})
    assert address.libpq == "postgresql://u:Zyx%40xy8@h/d"
    assert address.connectorx == "postgresql://u:Zyx%40xy8@h/d"
    assert address.redact("at Zyx@xy8 and Zyx%40xy8") == "at *** and ***"


def test_a_plus_in_a_parameter_is_a_plus():
    assert parse_url("postgresql://h/d?user=u&password=a+b", {}).libpq == "postgresql://h/d?user=u&password=a%2Bb"


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
            with pytest.raises(ConnectError) as error, connect(parse_url(url, env)):
                pass
        return [str(error.value), repr(error.value), "".join(traceback.format_exception(error.value))]

    return say


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("password", [PLAIN, ODD + "x", "Zyxxy8%"], ids=["plain", "odd", "percent"])
def test_a_wrong_password_is_not_repeated(small_world_template, search, refused, password):
    url = with_password(small_world_template, password)
    for texts in (refused(url), refused(with_password(small_world_template, None), PGPASSWORD=password)):
        assert "The database refuses the login" in texts[-1]
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


# --- every command ---------------------------------------------------------------------------------------------------

MALFORMED = {
    "a percent sign that encodes nothing": "postgresql://u:Top@{}%!@127.0.0.1/app",
    "a NUL": "postgresql://u:{}%00@127.0.0.1/app",
    "an address that does not end": "postgresql://u:{}@[::1/app",
    "a port that is too large": "postgresql://u:{}@h:65536/app",
    "a space in the host": "postgresql://u:{}@h h/app",
    "a limit that is no number": "postgresql://u:{}@127.0.0.1:1/app?connect_timeout=x",
    "a port like a password": "postgresql://u:12?port={}@127.0.0.1/app",
    "a user like a password": "postgresql://u:12?user={}@127.0.0.1/app",
    "two ports for a host": "postgresql://u:{}@/app?host=a&port=1,2",
    "a service that is none": "postgresql://u:{}@/app?service=none",
    "words": "host=127.0.0.1 port=x password={}",
}
AT_A_DATABASE = (
    *(["run"], ["export"], ["validate"], ["synth"], ["schema", "check"], ["schema", "apply"], ["doctor"]),
    ["run", "--json", "--log-format", "json", "--verbose"],
)


@pytest.mark.parametrize("url", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_address_is_exit_2_and_is_not_repeated_by_any_command(url, search, effort, tmp_path):
    url = url.replace("{}", PLAIN)
    metrics = str(tmp_path / "bpr.prom")
    for number, command in enumerate(AT_A_DATABASE[:: effort(7, 1)]):
        more = ["--metrics-file", metrics] if command[0] in {"run", "export"} else []
        given, env = (["--database-url", url], {}) if number % 2 else ([], {"DATABASE_URL": url})
        done = call(*command, *more, *given, cwd=tmp_path, env=env)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        search(PLAIN, told(done), tmp_path)
    shown = call("config", "show", "--json", env={"DATABASE_URL": url})
    assert shown.returncode == 0
    search(PLAIN, told(shown))


OUTS = {
    "a signature": "az://c/p?sv=2022-11-02&sig={}%3D",
    "a signature by itself": "az://c/p?{}",
    "an encoded signature": "az://c/p?sig%3D{}",
    "a signed URL": "https://a.blob.core.windows.net/c?sig={}",
    "a key in front": "s3://AKIA:{}@bucket/p",
    "a key with a slash in it": "s3://AKIA:a/{}@bucket/p",
    "a fragment": "gs://bucket/p#{}",
    "no such scheme": "u:{}@x://bucket",
    "a database": "postgresql://u:{}@h/d",
}
AT_A_PLACE = (
    *(["list", "{}"], ["run", "--out", "{}"], ["inspect", "{}"], ["export", "--vocab-from", "{}"], ["diff", "a", "{}"]),
    *(["doctor", "--out", "{}"], ["expand", "{}"], ["prune", "{}", "--keep", "1"], ["validate", "--snapshot", "{}"]),
    *(["probe", "{}"], ["report", "{}"], ["demo", "--out", "{}"], ["config", "show", "--out", "{}"], ["run", "{}"]),
)


@pytest.mark.parametrize("out", OUTS.values(), ids=OUTS)
def test_a_place_with_a_secret_in_it_is_refused_and_not_repeated_by_any_command(out, search, effort, tmp_path):
    """The store would not see it, so it is nothing that anybody needs."""
    out = out.replace("{}", PLAIN)
    for number, command in enumerate(AT_A_PLACE[:: effort(4, 1)]):
        words = [word.replace("{}", out) for word in command]
        done = call(*words, *(["--json"] if number % 2 else []), env={"DATABASE_URL": "x=y"}, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        search(PLAIN, told(done), tmp_path)
    (tmp_path / "own.toml").write_text(f"out = {json.dumps(out)}\n")
    for words, env in ((["list", "--config", "own.toml"], {}), (["list"], {"BPR_ETL_OUT": out}))[: effort(1, 2)]:
        done = call(*words, env=env, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        search(PLAIN, told(done))
    with pytest.raises(SettingsError) as refused:
        Settings(out=out)
    search(PLAIN, [str(refused.value), repr(refused.value)])


def test_a_store_that_can_t_be_reached_says_no_credential(search, effort):
    if not effort(0, 1):
        pytest.skip("tried by make test-faults")
    azure = {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:1"}
    amazon = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_REGION": "x", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    for out, env in (
        ("az://c/p", {**azure, "AZURE_STORAGE_SAS_KEY": f"sv=2022-11-02&sig={PLAIN}%2B"}),
        ("az://c/p", {**azure, "AZURE_STORAGE_ACCOUNT_KEY": f"{PLAIN}Zg=="}),
        ("s3://b/p", {**amazon, "AWS_SECRET_ACCESS_KEY": PLAIN, "AWS_SESSION_TOKEN": PLAIN}),
    ):
        for command in (["list", out], ["doctor", "--out", out, "--json"]):
            done = call_loud(command, "", **env)
            assert done.returncode == 3 or command[0] == "doctor", done.stderr
            search(PLAIN, told(done))


def test_the_rest_of_a_password_with_a_space_in_it_is_not_repeated_as_a_word_too_many(search):
    for words in (["run", "postgresql://u:my", f"{PLAIN}@h/d"], ["run", "--database-url", "postgresql://u:my", PLAIN]):
        done = call(*words)
        assert done.returncode == 2
        search(PLAIN, told(done))
    assert "(elsewhere)" in call("run", "elsewhere").stderr  # which is what it is repeated for


# --- a bug ----------------------------------------------------------------------------------------------------------

BUGS = {
    "a driver's": "raise RuntimeError(f'could not connect to {settings.database_url}')",
    "in words": "raise RuntimeError('dsn: ' + address_of(settings).libpq)",
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
from etl.pipeline import run as pipeline
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
    settings = load_settings({}, environ)
    address = target_of(settings)
    search(ODD, [repr(settings), str(settings), repr(address), str(address), str(settings.manifest_settings())])


STRANGE = ODD + "\n\U0001f600"
SPELT = {
    "as it is": STRANGE,
    "percent-encoded": quote(STRANGE, safe=""),
    "percent-encoded but for slashes": quote(STRANGE),
    "in small letters": quote(STRANGE, safe="").lower(),
    "twice": quote(quote(STRANGE, safe=""), safe=""),
    "as a form": quote_plus(STRANGE),
    "JSON": json.dumps(STRANGE)[1:-1],
    "JSON with its own letters": json.dumps(STRANGE, ensure_ascii=False)[1:-1],
    "JSON in JSON": json.dumps(json.dumps(STRANGE)[1:-1])[1:-1],
    "Python": repr(STRANGE)[1:-1],
    "libpq's words": STRANGE.replace("\\", "\\\\").replace("'", "\\'"),
    "as a terminal is shown it": escape_control_characters(STRANGE),
    "a form in JSON": json.dumps(quote_plus(STRANGE))[1:-1],
    "HTML": html.escape(STRANGE),
}


@pytest.mark.parametrize("spelt", SPELT.values(), ids=SPELT)
@pytest.mark.parametrize(
    "given", [quote(STRANGE, safe=""), quote(quote(STRANGE, safe=""), safe="")], ids=["once", "twice"]
)
def test_a_secret_is_taken_out_however_it_is_spelt(spelt, given):
    secrets = secrets_of(f"postgresql://u:{given}@h/d", {})
    assert redact(f"before {spelt} after", secrets) == "before *** after"
    assert json.loads(redact(json.dumps({"a": f"before {spelt}", "b": 1}), secrets)) == {"a": "before ***", "b": 1}


def test_a_plain_word_that_is_a_password_leaves_texts_readable():
    text = 'A run of 1234 rows, "ok": true, as app; postgresql, postgres, see a.postgres%3Apostgres'
    secrets = find_secrets(["postgresql://u:postgres@h/d"], {"PGPASSWORD": "a", "AWS_SECRET_ACCESS_KEY": "1234"})
    assert redact(text, secrets) == 'A run of 1234 rows, "ok": true, as app; postgresql, ***, see a.***%3A***'
    for password in ("a", "true", "run", "1234", "postgres"):
        assert redact(f"at postgresql://u:{password}@h/d", find_secrets([password], {})) == "at postgresql://u:***@h/d"


VARIABLES = {
    **dict.fromkeys(("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY"), PLAIN),
    "AZURE_CLIENT_SECRET": PLAIN,
    "AZURE_STORAGE_SAS_KEY": f"?sv=2022-11-02&sig={PLAIN}&se=2027",
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountName=a;AccountKey={PLAIN};EndpointSuffix=x",
    "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps({"type": "x", "private_key": PLAIN}),
    "SOMEBODY_S_URL": f"https://u:{PLAIN}@h/",
}


@pytest.mark.parametrize(("name", "value"), VARIABLES.items())
def test_a_secret_of_the_environment_is_taken_out(name, value, search):
    search(PLAIN, [redact(f"it is {PLAIN}, of {value}", find_secrets([], {name: value}))])


def test_what_an_environment_has_beside_secrets_is_no_secret():
    environ = {"AWS_ACCESS_KEY_ID": PLAIN, "AWS_WEB_IDENTITY_TOKEN_FILE": PLAIN, "PGSSLKEY": PLAIN, "HOME": PLAIN}
    assert find_secrets(["run", "--out", "/srv/bpr", "--city-weight", "Kansas=2"], environ) == ()


def test_the_environment_s_password_is_an_address_s_secret(search):
    for url in ("postgresql://u@h/d", "host=h user=u", "postgresql:///?service=x"):
        search(ODD, [parse_url(url, {"PGPASSWORD": ODD}).redact(f"no {ODD} here")])


def test_whatever_looks_like_an_address_is_scrubbed_though_nobody_knew_it(search):
    texts = [
        f"a=1 postgresql://u:{PLAIN}@h:5432/d?x=y, and more",
        f"('postgresql://u:a/{PLAIN}@h/d',)",
        f"postgresql:/u:{PLAIN}@h/d: no such file",
        f"password={PLAIN} host=h",
        f"password = 'a \\' {PLAIN}' host=h",
        f"postgresql://h/d?user=u&password={PLAIN}&x=y",
        f"sslpassword={PLAIN}",
        f"az://c/p?sv=2022-11-02&sig={PLAIN}%2Bx%3D&se=2027",
        f"https://b.s3.amazonaws.com/k?X-Amz-Credential={PLAIN}%2F2&X-Amz-Security-Token={PLAIN}&X-Amz-Signature={PLAIN}",
        f"https://b/k?AWSAccessKeyId={PLAIN}&Signature={PLAIN}&key={PLAIN}",
        f"https://h/?access_token={PLAIN} token={PLAIN} api_key={PLAIN} client_secret={PLAIN}",
        f"AccountName=a;AccountKey={PLAIN}==;EndpointSuffix=x SharedAccessSignature={PLAIN}",
        quote(f"https://u:{PLAIN}@h/?sig={PLAIN}", safe=""),
        quote(quote(f"https://u:{PLAIN}@h/?sig={PLAIN}", safe=""), safe=""),
        json.dumps(json.dumps({"url": f"az://c?sig={PLAIN}", "password": PLAIN})),
        repr({"access_token": PLAIN, "url": f"s3://k:{PLAIN}@b"}),
        f"postgresql:\\/\\/u:{PLAIN}@h",
    ]
    search(PLAIN, [redact(text, ()) for text in texts])
    harmless = (
        "https://h/a:b, INFO at 12:30:01, x@y.example, postgresql://u@h/d, /a/b:c, libpq's key=value words, Kansas=2, "
        "Key West=3, design=4, sslkey=/a, passfile=/b, az://c@a.dfs.core.windows.net/p, the password is wrong: look"
    )
    assert redact(harmless, ()) == harmless
    answer = json.dumps({"a": f"password={PLAIN}", "b": [f"x?sig={PLAIN}"], "token": PLAIN, "c": 1})
    assert json.loads(redact(answer, ())) == {"a": "password=***", "b": ["x?sig=***"], "token": "***", "c": 1}


def test_a_discreet_stream_is_a_stream(tmp_path):
    with (tmp_path / "told").open("w", encoding="utf-8") as file:
        stream = RedactingStream(file, secrets_of(f"postgresql://u:{PLAIN}@h/d", {}))
        assert stream.write(f"one {PLAIN}\n") == len(f"one {PLAIN}\n")
        stream.writelines(["two\n", f"{PLAIN}\n"])
        stream.add_secrets(["thirteen"])
        print("thirteen", file=stream)
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
    with_one = [line for line in lines if "database-url" in line and redact(line, ()) != line]
    assert with_one == []


def test_a_password_on_the_command_line_is_warned_of(effort):
    done = call("schema", "check", "--database-url", f"postgresql://u:{PLAIN}@127.0.0.1:1/d")
    assert "PGPASSWORD" in done.stderr
    for env in ({"DATABASE_URL": f"postgresql://u:{PLAIN}@127.0.0.1:1/d"}, {"PGPASSWORD": PLAIN})[: effort(0, 2)]:
        words = [] if "DATABASE_URL" in env else ["--database-url", "postgresql://u@127.0.0.1:1/d"]
        quiet = call("schema", "check", *words, env=env)
        assert quiet.returncode == 3
        assert "PGPASSWORD" not in quiet.stderr
