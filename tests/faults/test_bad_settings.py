"""Whatever is said to bpr-etl is understood or refused in plain words: URLs, options, settings files, names of cities.

Every case has a number, from which it is made again: `Random(number)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, time
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote, unquote

import pytest

from etl.errors import SettingsError
from etl.postgres.url import ConnectionTarget, parse_url
from etl.settings.model import OPTIONS as DECLARED
from etl.settings.model import Settings
from etl.settings.sources import load_settings
from etl.settings.values import NegativeStrategies, SplitSpec, parse_city_weights
from etl.snapshots.writer import city_folder
from tests.faults.bad_data import ODD_CHARACTERS, nasty_text

SECRET = "s3cr3t"  # noqa: S105 - it is looked for
OPTIONS = sorted(DECLARED)

WORDS = (
    *("", " ", "@", "=", "%", "\0", "\udcff", "-", "--", "1", "0", "-1", "1.5", "1e400", "1e-400", "nan", "inf"),
    *("-inf",),
    *("1" * 5_000, "\u0663", "\uff11", "0x10", "1_0", "true", "False", "yes", "1%", "%", "nan%", "101%", "1e999%"),
    *("747", "747\u00b15%", "747+-5%", "9" * 30 + "\u00b11%", "747\u00b1%", "both", "string", "index", "auto"),
    *("public",),
    *("ranking", "shown", "recommended", "catalog:", "catalog:0", "catalog:16", "catalog:016"),
    *("catalog:" + "1" * 5_000,),
    *("catalog:\u0663", "none", "last-trip", "time:", "time:2026-01-01", "time:2026-01-01,2026-02-01", "time:20260101"),
    *("time:0001-01-01T00:00:00+23:59", "time:9999-12-31T23:59:59-23:59", "time:2026-W01-1", "time:2026-01-01,"),
    *("New York=2", "=1", "a=nan", "a=inf", "a=1e999", "a=-0", "a=1,a=2", "a=1,b", "a=0x10", "shadow-", "x.test"),
    *("a@b",),
)
"""What an option may be followed by: what some option understands, and what only looks like it."""


def any_value(r: Random, depth: int = 2) -> Any:
    """A value as a command line or a settings file can have one."""
    kind = r.random()
    if kind < 0.5:
        return r.choice(WORDS)
    if kind < 0.6:
        return ",".join(r.choices(WORDS, k=r.randint(2, 3)))
    if kind < 0.65:
        return nasty_text(r)
    if kind < 0.85 or not depth:
        numbers = (0, 1, -1, 50, 4_096, 4_097, 2**63, 10**400, -(10**400), 0.5, 1e308, float("nan"), float("inf"))
        return r.choice((*numbers, True, False, date(2026, 1, 1), datetime(2026, 1, 1), time(1, 2)))  # noqa: DTZ001
    if kind < 0.95:
        return [any_value(r, depth - 1) for _ in range(r.randint(0, 3))]
    return {r.choice(WORDS): any_value(r, depth - 1) for _ in range(r.randint(0, 2))}


def understood_or_refused(understand: Callable[[], Any], number: int, said: Any) -> bool:
    """Whether it was understood. Anything but a SettingsError of one line is a failure, told with the case's number."""
    try:
        understand()
    except SettingsError as refused:
        said_of_it = str(refused)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        pytest.fail(f"case {number}: {str(said)[:200]!r} ended in {type(error).__name__}: {str(error)[:200]}")
    else:
        return True
    assert len(said_of_it.split("\n")) == 1, f"case {number} is refused in several lines: {said_of_it}"
    return False


def test_any_value_of_any_option_is_understood_or_refused(effort, tally):
    outcomes = {True: 0, False: 0}
    cases = effort(1_000, 50_000)
    for number in range(cases):
        r = Random(number)  # noqa: S311 - no secret
        name, value = r.choice(OPTIONS), any_value(r)
        said = {name: value}
        understood = understood_or_refused(lambda: load_settings(said, {}), number, {name: type(value)})  # noqa: B023
        assert understood_or_refused(lambda: Settings(**said), number, {name: type(value)}) is understood  # noqa: B023
        if understood:  # what a parser gave, it takes as it is
            assert Settings(**said) == replace(Settings(**said)) == load_settings(said, {}), number
        outcomes[understood] += 1
    assert min(outcomes.values()) > cases / 10
    tally("fuzzed settings", cases)


def test_any_word_is_a_choice_or_refused(effort, tally):
    outcomes = {True: 0, False: 0}
    cases = effort(1_000, 50_000)
    parsers = (SplitSpec, lambda value: NegativeStrategies([value]), lambda value: parse_city_weights([value]))
    for number in range(cases):
        r = Random(number)  # noqa: S311
        parser, value = parsers[number % 3], any_value(r)
        outcomes[understood_or_refused(lambda: parser(value), number, type(value))] += 1  # noqa: B023
    assert min(outcomes.values()) > cases / 100
    tally("fuzzed settings", cases)


def file_bytes(r: Random) -> bytes:
    """A settings file: lines that are TOML, nearly so, or anything."""
    values = (
        "1",
        '"x"',
        "true",
        "[]",
        '["ranking"]',
        "1" * 5_000,
        "1" * 400,
        "1e999",
        "nan",
        "[" * 3_000,
        "2026-01-01",
    )
    values = (*values, '"\\u0000"', "'''", '"\\ud800"', "{a = 1}", "", '["ranking", ["shown"]]', "0x" + "f" * 5_000)
    names = (*OPTIONS, "dry-run", "", "nothing", '"a b"', "[table]", "\u00e9")
    lines = [f"{r.choice(names)} = {r.choice(values)}".encode() for _ in range(r.randint(0, 2))]
    lines += [r.randbytes(r.randint(0, 9)) for _ in range(r.choice((0, 0, 1)))]
    return b"\n".join(r.sample(lines, len(lines)))


def test_any_settings_file_is_understood_or_refused(effort, tally, tmp_path):
    outcomes = {True: 0, False: 0}
    cases = effort(300, 10_000)
    path = tmp_path / "own.toml"
    for number in range(cases):
        content = file_bytes(Random(number))  # noqa: S311
        path.write_bytes(content)
        outcomes[understood_or_refused(lambda: load_settings({"config": str(path)}, {}), number, content)] += 1
    assert min(outcomes.values()) > cases / 20
    tally("fuzzed settings", cases)


ONCE_TRACEBACKS = (
    *(("split", ["last-trip"]), ("split", {}), ("negatives", [["ranking"]]), ("negatives", [{"catalog": 16}])),
    *(("negatives", ["catalog:" + "1" * 5_000]), ("city_weight", {"New York": 10**400}), ("max_bad", 10**400)),
    *(("scale", 10**400), ("fail_below", 10**400), ("catalog_alpha", 16**5_000), ("seed", -(16**5_000))),
    *(("json", 16**5_000),),
)


# pytest would write the numbers out.
@pytest.mark.parametrize(("name", "value"), ONCE_TRACEBACKS, ids=map(str, range(len(ONCE_TRACEBACKS))))
def test_a_settings_file_s_value_of_the_wrong_kind_or_size_is_refused(name, value):
    """Each of these has ended in a traceback: lists are in no set, and Python has its own limits for whole numbers."""
    with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} must"):
        load_settings({name: value}, {})


@pytest.mark.parametrize("content", ["seed = " + "1" * 5_000, "negatives = " + "[" * 5_000])
def test_a_settings_file_that_python_can_t_read_is_refused(content, tmp_path):
    (tmp_path / "own.toml").write_text(content)
    with pytest.raises(SettingsError, match=r"own\.toml is not TOML"):
        load_settings({"config": str(tmp_path / "own.toml")}, {})


@pytest.mark.parametrize("text", ["a\0b", "a\udcff"])
@pytest.mark.parametrize("name", ["out", "schema", "shadow_prefix", "shadow_domain", "vocab_from", "city_weight"])
def test_a_text_that_no_file_and_no_database_can_hold_is_refused_before_anything_is_done(name, text):
    """A NUL, which a settings file can have, and bytes that are no UTF-8, which a command line can."""
    with pytest.raises(SettingsError, match=r"UTF-8|NUL"):
        load_settings({name: f"{text}=1" if name == "city_weight" else text}, {})


# ---------------------------------------------------------------------------------------------------------------- URLs

# None of a schema's name, which is repeated: it is no secret, whatever it holds.
PIECES = (
    *("postgresql://", "postgres://", "prisma://", "://", "//", "/", "@", ":", "?", "&", "=", "%", "%zz", "%40"),
    *("%00", "#"),
    *("[::1]", "[", "]", ",", "5432", "6543", "db", "u", "localhost", " ", "'", "\\", "+", "?sslmode=require"),
    *("sslmode=x",),
    *("pgbouncer=true", "host=/tmp", "dbname=app", "password=", "user=u", "options=-c%20x", "sslpassword="),
)


def any_url(r: Random) -> tuple[str, str | None]:
    """An address with a secret in it that nothing may repeat, whole or broken; and the password, where it is whole."""
    password = SECRET + "".join(r.choice((*ODD_CHARACTERS, "\udcff")) for _ in range(r.randint(0, 3)))
    form = r.random()
    if form < 0.3:
        encoded = quote(password, safe="", errors="surrogateescape")
        return f"postgresql://u:{encoded}@db{r.choice((':5433', ''))}/app{r.choice(('', '?sslmode=require'))}", password
    if form < 0.4:
        quoted = password.replace("\\", "\\\\").replace("'", "\\'")
        return f"host=db user=u password='{quoted}' dbname=app", password
    if form < 0.6:
        return f"postgresql://u:{password}@db:5433/app{r.choice(('', '?schema=app', '?sslmode=verify-full'))}", None
    if form < 0.7:
        return f"host=db user=u password={r.choice(('', '='))}{password} dbname=app", None
    before, after = ("".join(r.choices(PIECES, k=r.randint(0, 5))) for _ in range(2))
    return f"{before}u:{password}@{after}", None


def test_any_url_is_an_address_or_refused_and_its_password_is_never_repeated(effort, tally):
    outcomes = {True: 0, False: 0}
    cases = effort(1_000, 50_000)
    for number in range(cases):
        r = Random(number)  # noqa: S311
        url, password = any_url(r)
        environ = {"HOME": "/nowhere"} | ({"PGPASSWORD": SECRET} if r.random() < 0.1 else {})
        said: list[str] = []

        def understand(
            url: str = url, password: str | None = password, environ: dict[str, str] = environ, said: list[str] = said
        ) -> None:
            try:
                address = parse_url(url, environ)
            except SettingsError as refused:
                said.append(str(refused))
                raise
            said += [
                repr(address),
                str(address.connectorx_unsupported_reason),
                str(address.pooler_hint),
                str(address.schema),
            ]
            if url.startswith(("postgresql://u:", "postgres://u:")) or password is not None:
                said.append(address.redact(f"cannot connect to {url}"))

        understood = understood_or_refused(understand, number, "a URL")
        outcomes[understood] += 1
        if password is not None:
            assert understood, number
            said.append(parse_url(url, environ).redact(f"{password} is wrong"))
        for text in said:
            assert SECRET not in text, f"case {number}: {url!r} is repeated: {text}"
    assert min(outcomes.values()) > cases / 10
    tally("fuzzed URLs", cases)


def test_a_good_url_means_the_same_to_both_drivers_whatever_the_password(effort, tally):
    cases = effort(300, 5_000)
    for number in range(cases):
        r = Random(number)  # noqa: S311
        password = nasty_text(r) or "x"
        encoded = quote(password, safe="")
        address = parse_url(f"postgresql://u:{encoded}@db:5433/app?schema=a&connection_limit=5", {"HOME": "/nowhere"})
        assert isinstance(address, ConnectionTarget)
        for url in (address.libpq, address.connectorx):
            assert url is not None, number
            assert unquote(url.partition("://u:")[2].rpartition("@")[0]) == password, number
    tally("fuzzed URLs", cases)


# -------------------------------------------------------------------------------------------------------------- cities


def any_city(r: Random) -> str:
    """A city's name, as PostgreSQL could hold it: short, long, or like a path, a folder, a part of Hive's."""
    atoms = (*ODD_CHARACTERS, "..", "../", "city=", "~", "CON", "__HIVE_DEFAULT_PARTITION__", "%2F", "\u6771", "a" * 60)
    return "".join(r.choice(atoms) for _ in range(r.choice((0, 1, 2, 3, 12, 60))))


def test_a_folder_never_leaves_its_own_and_names_one_city(effort, tally, tmp_path):
    cases = effort(2_000, 100_000)
    of_folder: dict[str, str] = {}
    for number in range(cases):
        city = any_city(Random(number))  # noqa: S311
        folder = city_folder(city)
        assert Path(tmp_path / folder).resolve().parent == tmp_path.resolve(), number
        assert len(folder.encode()) <= 255, number
        assert "/" not in folder, number
        assert folder.isascii(), number
        assert folder.startswith("city="), number
        assert of_folder.setdefault(folder, city) == city, f"cases {number} and another share {folder}"
        if "~" not in city and "~" not in folder:
            assert unquote(folder.removeprefix("city=")) == city, number
    assert sum("~" in folder for folder in of_folder) > cases / 100
    tally("fuzzed city names", cases)
