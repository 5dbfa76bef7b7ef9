"""What a URL means to the two drivers."""

from __future__ import annotations

import pytest

from etl.errors import SettingsError
from etl.postgres.url import parse_url

NO_HOME = {"HOME": "/nonexistent"}


def test_prisma_s_parameters_are_taken_out():
    url = "postgresql://u:p%40ss@db:5433/app?schema=tenant&connection_limit=5&pool_timeout=0&pgbouncer=true&sslmode=require"
    address = parse_url(url, NO_HOME)
    assert address.schema == "tenant"
    assert address.libpq == "postgresql://u:p%40ss@db:5433/app?sslmode=require"
    assert address.connectorx == "postgresql://u:p%40ss@db:5433/app"
    assert address.connectorx_url(tls=True, name="me") == (
        "postgresql://u:p%40ss@db:5433/app?application_name=me&sslmode=require"
    )
    assert "pgbouncer" in address.pooler_hint


def test_a_unix_socket_is_reached_by_both():
    address = parse_url("postgresql://u@localhost/app?host=/var/run/my%20pg", NO_HOME)
    assert address.connectorx == "postgresql://u@localhost/app?host=%2Fvar%2Frun%2Fmy%20pg"
    assert address.libpq == "postgresql://u@localhost/app?host=%2Fvar%2Frun%2Fmy%20pg"
    assert address.connectorx_url(tls=False, name="me") == f"{address.connectorx}&application_name=me&sslmode=disable"


@pytest.mark.parametrize(
    ("url", "environ", "obstacle"),
    [
        ("postgresql://u@a:1,b:2/app", {}, "several hosts"),
        ("postgresql://u@a/app?sslmode=verify-full", {}, "sslmode=verify-full"),
        ("postgresql://u@a/app?options=-csearch_path%3Dx", {}, "sets options"),
        ("postgresql://u@a/app?service=x", {}, "sets service"),
        ("postgresql://u@a/app", {"PGPASSWORD": "x"}, "PGPASSWORD"),
        ("postgresql://u@a/app", {"PGSSLMODE": "verify-ca"}, "PGSSLMODE"),
        ("postgresql://u@a/app", {"PGSSLMINPROTOCOLVERSION": "TLSv1.3"}, "PGSSLMINPROTOCOLVERSION"),
        ("postgresql://a/app", {}, "leaves the user"),
        ("postgresql:///app", {"PGHOST": "h"}, "PGHOST"),
        ("host=a dbname=app", {}, "leaves the user"),
    ],
)
def test_what_connectorx_can_t_express_goes_another_way(url, environ, obstacle):
    address = parse_url(url, NO_HOME | environ)
    assert address.connectorx is None
    assert obstacle in address.connectorx_unsupported_reason


def test_a_password_in_the_url_wins_over_the_environment():
    assert parse_url("postgresql://u:p@a/app", NO_HOME | {"PGPASSWORD": "x"}).connectorx_unsupported_reason is None


def test_a_pgpass_file_is_libpq_s_to_read(tmp_path):
    (tmp_path / ".pgpass").write_text("*:*:*:*:x")
    assert ".pgpass" in parse_url("postgresql://u@a/app", {"HOME": str(tmp_path)}).connectorx_unsupported_reason
    assert parse_url("postgresql://u:p@a/app", {"HOME": str(tmp_path)}).connectorx_unsupported_reason is None


@pytest.mark.parametrize(
    "place",
    [
        *(
            "h:0",
            "h:65536",
            "h:123456",
            "h:x",
            "[::1",
            "::1]",
            "[::1]x",
            "[]",
            "a b",
            "h:1:2",
            "a,b:x",
            "h%zz",
            "h%",
            "h%0",
            "h%00",
        ),
        *("h:1,h:x", "h/d%", "h/d%zz", "h/d%00", "h/d?options=%z", "h/d?%"),
    ],
)
def test_what_libpq_would_refuse_is_refused_before_without_repeating_it(place):
    with pytest.raises(SettingsError) as refused:
        parse_url(f"postgresql://u:p4ssw0rd@{place}", NO_HOME)
    assert "p4ssw0rd" not in str(refused.value)
    assert place not in str(refused.value)


@pytest.mark.parametrize("password", ["Top@Secret%!", "%", "100%", "%%41", "a%2", "%00", "a\0%"])
def test_a_percent_sign_that_encodes_nothing_is_refused(password):
    with pytest.raises(SettingsError, match="percent-encoded") as refused:
        parse_url(f"postgresql://u:Zyx{password}@127.0.0.1/app", NO_HOME)
    assert "Zyx" not in str(refused.value)


def test_what_libpq_is_given_it_can_read_whatever_the_url_has():
    libpq = parse_url("postgresql://u s:a b:c@d@h:05432,[::1]/my db?application_name=a b", NO_HOME).libpq
    assert libpq == (
        "postgresql://u%20s:a%20b%3Ac%40d@localhost/my%20db?host=h%2C%3A%3A1&port=05432%2C&application_name=a%20b"
    )


@pytest.mark.parametrize(
    "url", ["mysql://u:p@h/d", "prisma+postgres://x?api_key=k", "app", "postgresql://u@h/d?sslmod=x"]
)
def test_what_is_no_address_is_refused_without_repeating_it(url):
    with pytest.raises(SettingsError) as refused:
        parse_url(url, {})
    assert url not in str(refused.value)


def test_a_message_is_scrubbed_and_a_repr_holds_no_secret():
    address = parse_url("postgresql://u:p%40ss@db/app", NO_HOME)
    assert address.redact("login p@ss or p%40ss failed") == "login *** or *** failed"
    assert "p@ss" not in repr(address)
    assert "p%40ss" not in repr(address)


def test_several_hosts_keep_their_ports():
    assert parse_url("postgresql://u@a:1,b:2,c:3/d", NO_HOME).libpq.endswith("/d?host=a%2Cb%2Cc&port=1%2C2%2C3")
    assert parse_url("postgresql://u@a,b:2/d", NO_HOME).libpq.endswith("/d?host=a%2Cb&port=%2C2")
    assert parse_url("postgresql://u@a,b/d", NO_HOME).libpq.endswith("/d?host=a%2Cb")


def test_words_are_the_same_address_as_a_url():
    words = parse_url("host=db port=5433 dbname=app user='u s' password='it\\'s' sslmode=require", NO_HOME)
    url = parse_url("postgresql://u%20s:it's@db:5433/app?sslmode=require", NO_HOME)
    assert (words.libpq, words.connectorx, words.parts) == (url.libpq, url.connectorx, url.parts)
    assert words.connectorx == "postgresql://u%20s:it%27s@db:5433/app"


def test_ipv6_hosts_keep_their_brackets():
    assert parse_url("postgresql://u@[::1]:5432/app", NO_HOME).connectorx == "postgresql://u@[::1]:5432/app"


def test_a_second_question_mark_drops_nothing():
    """Behind it stood sslmode=verify-full, and Prisma's parameter before it was dropped with all of that."""
    with pytest.raises(SettingsError, match=r"a second \?: parameters are joined by &"):
        parse_url("postgresql://u@h/d?connection_limit=5?sslmode=verify-full", {})


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_that_an_env_file_kept_are_named(quote):
    with pytest.raises(SettingsError, match="in quotes"):
        parse_url(f"{quote}postgresql://u:secret-word@h/d?sslmode=require{quote}", {})
