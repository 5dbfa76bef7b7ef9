"""Over the network: who is let in, over what, and whom we believe; all of it as a user says it, through the command."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from etl.errors import ConnectError, EtlError, SettingsError
from etl.postgres import password
from etl.postgres.connection import connect
from etl.postgres.url import parse_url
from etl.runtime.cancellation import CancelToken
from tests.faults.calling import call, said
from tests.faults.tls_server import CERTIFIED, DATABASE, PASSWORD, ROLE, TlsServer, tls_world

WRONG = "wr0ng-word"
TRUSTED = {"sslmode": "verify-full", "sslrootcert": "ca.crt"}


@pytest.fixture(scope="module")
def server() -> Iterator[TlsServer]:
    """A server that takes TLS alone, with a small synthetic world in it."""
    with tls_world() as started:
        yield started


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with nothing in it that libpq reads."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


Enter = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def enter(home, tmp_path, effort, tally, monkeypatch) -> Enter:
    """Come in by an address: the whole job in a process of its own for a `night`, and for everything with --full.

    Else the job's first step alone, in this process, which libpq takes for any other: it looks at the same environment.
    """

    def go(url: str, *, night: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
        tally("TLS connections tried")
        if night or effort(0, 1):
            job = ["run", "--json", "--out", str(tmp_path / "out")]
            return call(*job, env={"HOME": str(home), "DATABASE_URL": url, **env})
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("PG")]:
                patch.delenv(name)
            for name, value in {"HOME": str(home), **env}.items():
                patch.setenv(name, value)
            return first_step(url)

    return go


def first_step(url: str) -> subprocess.CompletedProcess[str]:
    try:
        with connect(parse_url(url, os.environ)) as connection:
            assert connection.fetch_rows('SELECT count(*) > 0 FROM "User"') == [(True,)]
    except EtlError as error:
        answer = json.dumps({"exit_code": error.exit_code, "message": str(error)})
        return subprocess.CompletedProcess([], error.exit_code, answer, f"Error: {error}\n")
    return subprocess.CompletedProcess([], 0, "", "")


def parameters(server: TlsServer, words: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a URL, with names of files made paths."""
    return {name: server.file(value) if value.endswith((".crt", ".key")) else value for name, value in words.items()}


def authorized(server: TlsServer, since: int = 0) -> list[str]:
    """What the server's log says of each connection over the network that it let in, after so many."""
    log = (server.folder / "log").read_text(encoding="utf-8")
    return re.findall(rf"connection authorized: user=(?:{ROLE}|{CERTIFIED}) .*", log)[since:]


# --- a night --------------------------------------------------------------------------------------------------------


def test_a_night_over_verified_tls_reads_through_adbc_and_says_why(server, enter):
    before = len(authorized(server))
    done = enter(server.url(**parameters(server, TRUSTED)), night=True)
    assert done.returncode == 0, done.stderr
    assert "Reading through ADBC, since connectorx can't: the URL asks for sslmode=verify-full." in done.stderr
    lines = authorized(server, before)
    assert lines
    assert all("SSL enabled" in line for line in lines)


def test_a_night_over_tls_that_libpq_chose_is_over_tls_on_every_connection(server, enter):
    """`prefer`, libpq's own default: connectorx doesn't negotiate, and is told what libpq found."""
    before = len(authorized(server))
    done = enter(server.url(), night=True)
    assert done.returncode == 0, done.stderr
    assert "connectorx can't" not in done.stderr
    lines = authorized(server, before)
    assert len(lines) > 1
    assert all("SSL enabled" in line for line in lines)


# --- let in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca"])
def test_every_mode_that_allows_tls_gets_in(server, enter, mode):
    root = {"sslrootcert": server.file("ca.crt")} if mode == "verify-ca" else {}
    done = enter(server.url(sslmode=mode, **root))
    assert done.returncode == 0, done.stderr


def test_the_password_comes_from_the_environment(server, enter):
    done = enter(server.url(password=None, **parameters(server, TRUSTED)), PGPASSWORD=PASSWORD)
    assert done.returncode == 0, done.stderr


def test_the_password_comes_from_a_pgpass_file(server, enter, home):
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    (home / ".pgpass").write_text(f"localhost:{server.port}:{DATABASE}:{ROLE}:{escaped}\n")
    (home / ".pgpass").chmod(0o600)
    done = enter(server.url(password=None, **parameters(server, TRUSTED)))
    assert done.returncode == 0, done.stderr


def test_everything_comes_from_a_service_file(server, enter, tmp_path):
    words = {"host": "localhost", "port": str(server.port), "user": ROLE, "password": PASSWORD, "dbname": DATABASE}
    lines = [f"{name}={value}\n" for name, value in {**words, **parameters(server, TRUSTED)}.items()]
    (tmp_path / "services").write_text("[planner]\n" + "".join(lines))
    done = enter("postgresql://", PGSERVICEFILE=str(tmp_path / "services"), PGSERVICE="planner")
    assert done.returncode == 0, done.stderr


def test_a_service_is_named_in_the_url(server, enter, tmp_path):
    lines = f"[planner]\nhost=localhost\nport={server.port}\nuser={ROLE}\npassword={PASSWORD}\n"
    (tmp_path / "services").write_text(lines)
    done = enter(
        f"postgresql:///{DATABASE}?service=planner".replace(" ", "%20"), PGSERVICEFILE=str(tmp_path / "services")
    )
    assert done.returncode == 0, done.stderr


def test_everything_comes_from_libpq_s_variables(server, enter):
    names = {"HOST": "localhost", "PORT": str(server.port), "USER": ROLE, "PASSWORD": PASSWORD, "DATABASE": DATABASE}
    env = {f"PG{name}": value for name, value in names.items()}
    done = enter("postgresql://", **env, PGSSLMODE="verify-full", PGSSLROOTCERT=server.file("ca.crt"))
    assert done.returncode == 0, done.stderr


def test_libpq_s_words_are_an_address(server, enter):
    quoted = PASSWORD.replace("\\", "\\\\").replace("'", "\\'")
    words = f"host=localhost port={server.port} user={ROLE} password='{quoted}' dbname='{DATABASE}'"
    done = enter(f"{words} sslmode=verify-full sslrootcert={server.file('ca.crt')}")
    assert done.returncode == 0, done.stderr


def test_a_certificate_takes_the_place_of_a_password(server, enter):
    own = {**TRUSTED, "sslcert": "client.crt", "sslkey": "client.key"}
    done = enter(server.url(role=CERTIFIED, password=None, **parameters(server, own)))
    assert done.returncode == 0, done.stderr


def test_certificates_of_the_home_folder_are_libpq_s_to_find(server, enter, home):
    """With a root.crt there, `require` verifies: a reader that doesn't know of it would be laxer than the rest."""
    folder = home / ".postgresql"
    folder.mkdir()
    (folder / "root.crt").write_bytes(Path(server.file("ca.crt")).read_bytes())
    done = enter(server.url(sslmode="require"))
    assert done.returncode == 0, done.stderr
    (folder / "root.crt").write_bytes(Path(server.file("other-ca.crt")).read_bytes())
    refused = enter(server.url(sslmode="require"))
    assert refused.returncode == 3
    assert "certificate verify failed" in refused.stderr


# --- as Prisma and node-postgres write it ---------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [{}, {"sslaccept": "strict"}], ids=["", "strict"])
def test_prisma_s_sslcert_is_the_server_s_authority(server, enter, strict):
    own = {"sslmode": "require", "sslcert": "ca.crt", **strict}
    assert enter(server.url(**parameters(server, own))).returncode == 0
    refused = enter(server.url(**parameters(server, own | {"sslcert": "other-ca.crt"})))
    assert_plainly_refused(refused, "certificate verify failed")
    by_address = enter(server.url("127.0.0.1", **parameters(server, own)))
    assert by_address.returncode == (3 if strict else 0), said(by_address)


@pytest.mark.parametrize(
    ("words", "env"),
    [
        ({"sslmode": "require", "sslcert": "certs/nowhere.pem"}, {}),
        ({"sslmode": "require", "sslrootcert": "/nowhere/nowhere.pem"}, {}),
        ({"sslmode": "require"}, {"PGSSLROOTCERT": "nowhere.pem"}),
        ({"sslmode": "require", "sslcert": "client.crt", "sslkey": "nowhere.pem"}, {}),
    ],
    ids=["Prisma's", "libpq's", "environment", "key"],
)
def test_a_certificate_that_is_not_there_is_missed_before_anything_is_connected(server, enter, words, env):
    """With `require` libpq would go on, and believe any server. The remedy: the file's absolute path."""
    done = enter(server.url(**parameters(server, words)), **env)
    assert done.returncode == 2, said(done)
    assert "nowhere.pem" in done.stderr
    assert "absolute path" in done.stderr
    here = {"nowhere.pem": "client.key" if "sslkey" in words else "ca.crt"}
    mended = {name: here.get(Path(value).name, value) for name, value in words.items()}
    done = enter(server.url(**parameters(server, mended)), **{name: server.file("ca.crt") for name in env})
    assert done.returncode == 0, said(done)


def test_prisma_s_sslidentity_is_converted_as_the_message_says(server, enter, tmp_path):
    password = "pass:geheim"  # noqa: S105 - of a file of the test's own
    bundle = ["-inkey", server.file("client.key"), "-in", server.file("client.crt"), "-passout", password]
    openssl = ["openssl", "pkcs12"]
    subprocess.run([*openssl, "-export", "-out", tmp_path / "client.p12", *bundle], check=True, capture_output=True)
    words = {"sslidentity": str(tmp_path / "client.p12"), "sslpassword": "geheim", "sslcert": server.file("ca.crt")}
    done = enter(server.url(role=CERTIFIED, password=None, **words))
    assert done.returncode == 2
    assert "geheim" not in said(done)
    for command in re.findall(r"`(openssl [^`]+)`", done.stderr):
        told = [str(tmp_path / "client.p12") if word == "FILE" else word for word in command.split()]
        subprocess.run([*told, "-passin", password], check=True, capture_output=True, cwd=tmp_path)
    (tmp_path / "client.key").chmod(0o600)
    files = {"sslcert": str(tmp_path / "client.crt"), "sslkey": str(tmp_path / "client.key")}
    mended = server.url(
        role=CERTIFIED, password=None, **files, sslrootcert=server.file("ca.crt"), sslmode="verify-full"
    )
    assert enter(mended).returncode == 0


@pytest.mark.parametrize(
    "words", ["sslmode=no-verify", "ssl=true", "ssl=1", "sslmode=require&uselibpqcompat=true&max=5"]
)
def test_node_postgres_words_are_understood(server, enter, words):
    done = enter(f"{server.url()}{words}")
    assert done.returncode == 0, said(done)


def test_what_node_postgres_would_not_understand_is_refused(server, enter):
    refused = enter(f"{server.url()}ssl=perhaps")
    assert refused.returncode == 2
    assert "ssl must be true or false" in refused.stderr
    assert_plainly_refused(enter(f"{server.url()}ssl=false"), "no encryption")


# --- passwords from a command ---------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path) -> Callable[[str], str]:
    """Make a program of a shell's lines; each time that it is run is counted in a file."""

    def make(lines: str) -> str:
        program = tmp_path / "give it.sh"
        program.write_text(f"#!/bin/sh\necho run >> '{tmp_path}/runs'\n{lines}\n")
        program.chmod(0o700)
        return f"'{program}' --for planner"

    return make


def test_a_command_gives_the_password_of_every_connection(server, enter, command, tmp_path):
    """Also those in the background, which connectorx opens; no file and no line has the password."""
    (tmp_path / "secret").write_text(PASSWORD + "\n")
    line = command(f"echo 'a remark' >&2; cat '{tmp_path}/secret'")
    before = len(authorized(server))
    done = enter(server.url(password="stale"), night=True, BPR_ETL_PASSWORD_COMMAND=line)  # noqa: S106
    assert done.returncode == 0, said(done)
    assert "connectorx can't" not in done.stderr
    connections, runs = len(authorized(server, before)), (tmp_path / "runs").read_text().count("run")
    assert connections > runs >= 3
    assert "a remark" not in said(done)
    files = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(PASSWORD.encode() in each for each in [said(done).encode(), *files])


def test_a_settings_file_may_name_the_command(server, command, tmp_path, home):
    (tmp_path / "secret").write_text(PASSWORD)
    file = tmp_path / "own.toml"
    file.write_text(f"password-command = {json.dumps(command(f'cat {tmp_path}/secret'))}\n")
    env = {"HOME": str(home), "DATABASE_URL": server.url(password=None)}
    done = call("doctor", "--config", str(file), "--out", str(tmp_path / "out"), env=env)
    assert done.returncode == 0, said(done)
    shown = call("config", "show", "--json", "--config", str(file), env=env)
    assert "give it.sh" in shown.stdout
    assert PASSWORD not in said(shown)


@pytest.mark.parametrize(
    ("lines", "code", "reason"),
    [
        ("echo S3cretWord1; exit 4", 3, "failed (exit code 4)"),
        ("echo S3cretWord1; kill -9 $$", 3, "failed (signal 9)"),
        ("true", 2, "must print the password alone"),
        ("echo S3cretWord1; echo S3cretWord2", 2, "must print the password alone"),
        ("printf '\\377\\376'", 2, "must print the password alone"),
        ("echo S3cretWord1", 3, "password authentication failed"),
    ],
)
def test_a_command_that_gives_no_password_has_its_sentence(server, home, command, lines, code, reason):
    env = {"HOME": str(home), "DATABASE_URL": server.url(password=None), "BPR_ETL_PASSWORD_COMMAND": command(lines)}
    done = call("run", "--dry-run", env=env)
    assert done.returncode == code, said(done)
    assert reason in done.stderr
    assert "S3cretWord" not in said(done)
    assert "Traceback" not in said(done)


def test_a_command_that_is_not_there_or_does_not_end_has_its_sentence(server, tmp_path, monkeypatch):
    def connected(line: str) -> None:
        with connect(parse_url(server.url(), {"PATH": "/bin:/usr/bin"}, line)):
            pass

    with pytest.raises(SettingsError, match="can't be run: No such file"):
        connected("no-such-program --token x")
    with pytest.raises(SettingsError, match="can't be run: Permission denied"):
        connected(str(tmp_path))
    monkeypatch.setattr(password, "TIMEOUT", 0.5)
    child = tmp_path / "child"
    with pytest.raises(ConnectError, match=r"has not ended after 0\.5 s"):
        connected(f"sh -c 'sleep 300 & echo $! > {child}; wait'")
    assert CancelToken().poll(partial(has_ended, int(child.read_text())), 60)


def has_ended(pid: int) -> bool:
    """Whether a process is gone or waits only to be reaped: a killed one may still run for a moment."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# --- kept out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "words", "reason"),
    [
        ("127.0.0.1", TRUSTED, 'does not match host name "127.0.0.1"'),
        ("localhost", {**TRUSTED, "sslrootcert": "other-ca.crt"}, "certificate verify failed"),
    ],
    ids=["host", "authority"],
)
def test_whom_libpq_does_not_believe_is_not_believed(server, enter, host, words, reason):
    assert_plainly_refused(enter(server.url(host, **parameters(server, words))), reason)


@pytest.mark.parametrize(
    ("host", "words", "env", "reason"),
    [
        ("localhost", {"sslmode": "verify-full"}, {}, "root.crt"),
        ("localhost", {"sslmode": "disable"}, {}, "no encryption"),
        ("127.0.0.1", {}, {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "ca.crt"}, "does not match host name"),
        ("localhost", {"sslmode": "require"}, {"PGSSLROOTCERT": "other-ca.crt"}, "certificate verify failed"),
    ],
    ids=["no authority", "plain text", "host by environment", "authority by environment"],
)
def test_nor_is_anybody_when_it_is_said_in_other_ways(server, enter, host, words, env, reason):
    assert_plainly_refused(enter(server.url(host, **parameters(server, words)), **parameters(server, env)), reason)


def test_a_wrong_password_is_refused_in_plain_words(server, enter):
    done = enter(server.url(password=WRONG))
    assert_plainly_refused(done, "password authentication failed")
    assert WRONG not in said(done)


def test_a_certificate_for_somebody_else_is_refused(server, enter):
    own = {**TRUSTED, "sslcert": "client.crt", "sslkey": "client.key"}
    done = enter(server.url(role=CERTIFIED, password=None, **parameters(server, {**own, "sslcert": "other-ca.crt"})))
    assert_plainly_refused(done, "key values mismatch")


def test_of_several_hosts_the_one_that_answers_says_why(server, enter):
    """A name may stand for several addresses; where nobody listens on the first, its silence is not the reason."""
    two = server.url(password=WRONG).replace(f"localhost:{server.port}", f"localhost:1,localhost:{server.port}")
    assert_plainly_refused(enter(two), "password authentication failed")


def assert_plainly_refused(done: subprocess.CompletedProcess[str], reason: str) -> None:
    """Exit 3, and one or two sentences that name the reason."""
    assert done.returncode == 3, said(done)
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith("INFO")]) == 1
    assert json.loads(done.stdout)["exit_code"] == 3
    assert PASSWORD not in said(done)
