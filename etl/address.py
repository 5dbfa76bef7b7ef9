"""A database's address: from what a Prisma project or libpq calls a URL to what the two drivers take.

Pure: the environment is passed in. Nothing here ever puts a password into a message, or a part of one: an address that can
be read in two ways, since a character in it should have been percent-encoded, is refused without being repeated.
"""

from __future__ import annotations

import difflib
import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, unquote

from etl.errors import SettingsError

_PRISMA = frozenset(
    {
        *("schema", "connection_limit", "pool_timeout", "socket_timeout", "pgbouncer", "statement_cache_size"),
        *("sslaccept", "sslidentity", "single_use_connections"),
        *("max_connection_lifetime", "max_idle_connection_lifetime", "supa", "workaround"),
    }
)

# libpq's parameters, each with the variable that stands in where the URL is silent (libpq, "Environment Variables").
_LIBPQ = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "service": "PGSERVICE",
    "options": "PGOPTIONS",
    "sslmode": "PGSSLMODE",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcertmode": "PGSSLCERTMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "channel_binding": "PGCHANNELBINDING",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "gssencmode": "PGGSSENCMODE",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "load_balance_hosts": "PGLOADBALANCEHOSTS",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "sslsni": "PGSSLSNI",
    "sslkeylogfile": "PGSSLKEYLOGFILE",
    "krbsrvname": "PGKRBSRVNAME",
    "gsslib": "PGGSSLIB",
    "gssdelegation": "PGGSSDELEGATION",
    "min_protocol_version": "PGMINPROTOCOLVERSION",
    "max_protocol_version": "PGMAXPROTOCOLVERSION",
}
_LIBPQ_ONLY_URL = frozenset(
    {
        *("application_name", "fallback_application_name", "connect_timeout", "client_encoding", "replication"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("sslcompression", "sslpassword", "scram_client_key", "scram_server_key"),
        *("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
    }
)
_SECRET = ("password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")
_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_CONNECTORX_UNDERSTANDS = frozenset({"host", "port", "dbname", "user", "password", "sslmode"})
_HARMLESS = frozenset({"application_name", "fallback_application_name", "connect_timeout", "client_encoding"})
_POOLER_PORT = "6543"
_ENCODE = "A password with / ? # @ : or % in it must be percent-encoded (%2F %3F %23 %40 %3A %25)."

# A password may hold bytes that are no UTF-8: they come back as they were.
_decode = partial(unquote, errors="surrogateescape")
_encode = partial(quote, safe="", errors="surrogateescape")


@dataclass(frozen=True)
class Address:
    """Where the database is, in the words of each driver.

    `libpq` is what ADBC takes. `connectorx` is the same for connectorx, or None where it can't express the connection:
    then `obstacle` says why. `schema` is Prisma's `?schema=`, and `pooler` says why a transaction pooler is suspected.
    `options` are libpq's, from the URL or the environment; None where a service file may have some that nobody here reads.
    """

    libpq: str = field(repr=False)
    connectorx: str | None = field(repr=False)
    obstacle: str | None
    schema: str | None
    pooler: str | None
    secrets: tuple[str, ...] = field(repr=False, default=())
    options: str | None = field(repr=False, default="")

    def libpq_with(self, **parameters: str) -> str:
        """`libpq` with further parameters, which win over those of the same name: libpq takes the last."""
        if self.libpq.startswith("postgresql://"):
            return f"{self.libpq}{'&' if '?' in self.libpq else '?'}{_query(parameters)}"
        words = (f"{name}={_quoted(value)}" for name, value in parameters.items())
        return " ".join([self.libpq, *words])

    def scrub(self, text: str) -> str:
        """The text without this address's passwords."""
        return scrub(text, self.secrets)

    def connectorx_url(self, *, tls: bool, name: str, options: str = "") -> str | None:
        """The URL for connectorx, with a name and options for its sessions; None where it can't express the connection.

        It does not negotiate: it is told to use TLS where libpq found it in use.
        """
        if self.connectorx is None:
            return None
        asked = {"application_name": name, "options": options, "sslmode": "require" if tls else ""}
        more = _query({key: value for key, value in asked.items() if value})
        return f"{self.connectorx}{'&' if '?' in self.connectorx else '?'}{more}"


def parse_address(url: str, environ: Mapping[str, str]) -> Address:
    """Understand a database URL: Prisma's, libpq's, or libpq's `key=value` words.

    Raises SettingsError for another scheme and for parameters that neither Prisma nor libpq know: a mistyped
    `sslmode` must not be dropped in silence.
    """
    url = url.strip()
    secrets = secrets_of(url, environ)
    scheme, after, rest = url.partition("://")
    if not after or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        if "=" not in url:
            raise SettingsError("The database URL must look like postgresql://user:password@host:5432/database.")
        words = _require_words(url)
        reason = "its address is a list of libpq's key=value words"
        url += "".join(f" {name}={value}" for name, value in _without_home(words, environ).items())
        return Address(url, None, reason, None, _pooler({}, words), secrets, _options(words, environ))
    if scheme not in {"postgresql", "postgres"}:
        raise SettingsError(
            f"The database URL's scheme is {scheme!r}; it must be postgresql. "
            "For Prisma Accelerate or a local Prisma server give the direct URL (DIRECT_URL)."
        )
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", rest):
        raise SettingsError(
            f"The database URL has a % that is not followed by two hexadecimal digits, or %00. {_ENCODE}"
        )
    authority, question, query = rest.partition("?")
    if (
        "@" in query and ":" in authority and not {"@", "/"} & set(authority)
    ):  # u:12?user=34@host: whose password ends where?
        raise SettingsError(f"The database URL can be read in two ways. {_ENCODE}")
    if "?" in query:  # what follows it would be dropped with a parameter of Prisma's, an sslmode, perhaps
        raise SettingsError(
            "The database URL has a second ?: parameters are joined by &, and a ? in one is written %3F."
        )
    parameters = _parameters(query) if question else []
    _refuse_unknown([name for name, _ in parameters], repeat="@" not in query)
    prisma = {name: value for name, value in parameters if name in _PRISMA}
    libpq = {name: value for name, value in parameters if name not in _PRISMA}
    parts = _split(authority) | {k: v for k, v in libpq.items() if v}
    if parts.get("sslmode", "prefer") not in _SSLMODES:  # libpq would repeat it, and it may be half a password
        raise SettingsError(f"The database URL's sslmode must be one of {', '.join(_SSLMODES)}. Correct it.")
    obstacle = _obstacle(parts, environ)
    libpq |= _without_home(parts, environ)
    return Address(
        libpq=f"postgresql://{_for_libpq(authority)}" + (f"?{_query(libpq)}" if libpq else ""),
        connectorx=None if obstacle else _connectorx(parts),
        obstacle=obstacle,
        schema=prisma.get("schema") or None,
        pooler=_pooler(prisma, parts),
        secrets=secrets,
        options=_options(libpq, environ),
    )


def parts_of(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """User, host, port, database and sslmode as the URL says them, else libpq's environment; no secret among them.

    For an address that `parse_address` has understood. What a service file or a default says is not looked for.
    """
    url = url.strip()
    _, after, rest = url.partition("://")
    authority, _, query = rest.partition("?")
    said = _split(authority) | {k: v for k, v in _parameters(query) if v} if after else dict(_words(url))
    names = ("user", "host", "port", "dbname", "sslmode")
    return {name: value for name in names if (value := said.get(name) or environ.get(_LIBPQ[name]))}


def _parameters(query: str) -> list[tuple[str, str]]:
    """Names and values of a URL's query, as libpq reads them: a `+` is a plus."""
    words = (word.partition("=") for word in query.split("&") if word)
    return [(_decode(name), _decode(value)) for name, _, value in words]


def _query(parameters: Mapping[str, str]) -> str:
    return "&".join(f"{_encode(name)}={_encode(value)}" for name, value in parameters.items())


def _for_libpq(authority: str) -> str:
    """The same with user, password and database encoded anew.

    Libpq takes the first `@` for the end of a password, Prisma and we the last; and it refuses spaces.
    """
    credentials, at, place = authority.rpartition("@")
    hosts, slash, database = place.partition("/")
    user, colon, password = credentials.partition(":")
    encoded = [_encode(_decode(each)) for each in (user, password, database)]
    return f"{encoded[0]}{colon}{encoded[1]}{at}{hosts}{slash}{encoded[2]}"


def _refuse_unknown(names: Iterable[str], *, repeat: bool) -> None:
    """Raise SettingsError for names that nobody knows. Not `repeat`ed where they may be pieces of a password."""
    known = {*_LIBPQ, *_LIBPQ_ONLY_URL}
    unknown = sorted({name for name in names if name not in known | _PRISMA})
    if not unknown:
        return
    words = [name for name in unknown if re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)]
    shown = f": {', '.join(words)}" if repeat and words else ""
    near = {match for name in words for match in difflib.get_close_matches(name, known | _PRISMA, 1)}
    hint = f" (did you mean {' or '.join(sorted(near))}?)" if near and repeat else ""
    raise SettingsError(
        f"The database URL has a parameter that neither Prisma nor libpq knows{shown}{hint}. Correct or remove it."
        + ("" if repeat else f" {_ENCODE}")
    )


def _is_host(text: str) -> bool:
    """Whether it is a name, an address or a socket's folder, encoded, an IPv6 address in brackets; with a port, perhaps."""
    found = re.fullmatch(r"(?:[^:\[\]\s]*|\[[^\[\]\s]+\])(?::([0-9]{0,5}))?", text)
    return found is not None and int(found[1] or 1) in range(1, 1 << 16)


def _split(authority: str) -> dict[str, str]:
    """User, password, host, port and database of `user:password@host:port/database`, as far as they are there."""
    credentials, at, place = authority.rpartition("@")
    hosts, _, database = place.partition("/")
    user, _, password = credentials.partition(":") if at else ("", "", "")
    if "/" in credentials or not all(map(_is_host, hosts.split(","))):
        raise SettingsError(
            f"The database URL has a host that is none, or a port that is no number up to 65535. {_ENCODE}"
        )
    if hosts.startswith("["):  # an IPv6 address
        host, _, port = hosts[1:].partition("]")
        port = port.lstrip(":")
    else:
        host, _, port = hosts.partition(":")
    if "," in hosts:
        host, port = hosts, ""
    found = {"user": user, "password": password, "host": host, "port": port, "dbname": database}
    return {name: _decode(value) for name, value in found.items() if value}


_WORD = re.compile(
    r"\s*([^\s=]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?)(?=\s|\Z)", re.DOTALL
)


def _words(text: str) -> Iterator[tuple[str, str]]:
    """Names and values of libpq's `name=value name='quoted value'`, as far as they can be told apart."""
    place = 0
    while match := _WORD.match(text, place):
        name, quoted, plain = match.groups()
        yield name, re.sub(r"\\(.)", r"\1", quoted if quoted is not None else plain or "", flags=re.DOTALL)
        place = match.end()
    if text[place:].strip():
        yield "", text[place:]


def _quoted(value: str) -> str:
    """A value as libpq's words have it."""
    return "'" + re.sub(r"([\\'])", r"\\\1", value) + "'"


def _require_words(text: str) -> dict[str, str]:
    """The words by name. Raises SettingsError for what libpq would repeat in its complaint: it may be half a password."""
    words = dict(_words(text))
    if "" in words:
        raise SettingsError(
            "The database address's name=value words can't be told apart: a value with a space in it stands in single "
            "quotes, and ' and \\ in it have a \\ before them."
        )
    unknown = [name for name in words if name not in _LIBPQ and name not in _LIBPQ_ONLY_URL]
    if unknown:
        near = {match for name in unknown for match in difflib.get_close_matches(name, _LIBPQ, 1)}
        hint = f" (did you mean {' or '.join(sorted(near))}?)" if near else ""
        raise SettingsError(
            f"The database address has a name=value word that libpq does not know{hint}. Correct or remove it."
        )
    return words


def _obstacle(parts: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """Why connectorx can't express this connection; None when it can."""
    return next(_obstacles(parts, environ), None)


def _obstacles(parts: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[str]:
    if "," in parts.get("host", ""):
        yield "the URL names several hosts"
    mode = parts.get("sslmode", "prefer")
    if mode not in {"disable", "prefer", "require"}:
        yield f"the URL asks for sslmode={mode}"
    yield from (f"the URL sets {name}" for name in sorted(set(parts) - _CONNECTORX_UNDERSTANDS - _HARMLESS))
    yield from (f"{v} is set in the environment" for name, v in _LIBPQ.items() if environ.get(v) and name not in parts)
    yield from (f"the URL leaves the {name} to libpq" for name in ("user", "host", "dbname") if name not in parts)
    home = _home(environ)
    if "password" not in parts and home and os.access(home / ".pgpass", os.F_OK):
        yield "the password may come from .pgpass"
    if home and os.access(home / ".postgresql", os.F_OK):
        yield "libpq finds certificates in ~/.postgresql"


def _home(environ: Mapping[str, str]) -> Path | None:
    """The home folder, as libpq finds it; None in a container that has neither HOME nor an entry in /etc/passwd."""
    with suppress(RuntimeError):
        return Path(environ.get("HOME") or "~").expanduser()
    return None


def _without_home(parts: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What libpq must be told where it may not look into the home folder: that there is no client certificate.

    Else it fails with TLS instead of going on without, as it does where there is no such folder.
    """
    home = _home(environ)
    if home is None or any(name in parts or environ.get(_LIBPQ[name]) for name in ("sslcert", "sslcertmode")):
        return {}
    try:
        (home / ".postgresql" / "postgresql.crt").stat()
    except PermissionError:
        return {"sslcertmode": "disable"}
    except OSError:
        pass
    return {}


def _connectorx(parts: Mapping[str, str]) -> str:
    """The URL in the form that connectorx takes; a socket's folder is given as `?host=`."""
    socket = parts["host"].startswith("/")
    host = "localhost" if socket else parts["host"]
    host = f"[{host}]" if ":" in host else host
    credentials = _encode(parts["user"]) + (f":{_encode(parts['password'])}" if "password" in parts else "")
    port = f":{parts['port']}" if "port" in parts else ""
    query = _query({"host": parts["host"]}) if socket else ""
    if parts.get("sslmode") == "disable":
        query += ("&" if query else "") + "sslmode=disable"
    return f"postgresql://{credentials}@{host}{port}/{_encode(parts['dbname'])}" + (f"?{query}" if query else "")


def _options(said: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """The server settings that libpq sends when it connects (its `options`); None where a service file may say some."""
    if "options" in said:
        return said["options"]
    return None if said.get("service") or environ.get("PGSERVICE") else environ.get("PGOPTIONS", "")


def _pooler(prisma: Mapping[str, str], parts: Mapping[str, str]) -> str | None:
    if prisma.get("pgbouncer", "").lower() == "true":
        return "the URL says pgbouncer=true"
    if parts.get("port") == _POOLER_PORT:
        return f"port {_POOLER_PORT} is usually one"
    return None


# --- what is not said -----------------------------------------------------------------------------------------------


# Also as they stand in a text that was percent-encoded, perhaps twice.
_COLON, _AT, _EQUALS = r"(?::|%(?:25)*3A)", r"(?:@|%(?:25)*40)", r"(?:\s*=\s*|%(?:25)*3D)"
_IN_QUERY = r"(?:(?<=[?&;])|(?<=%26)|(?<=%3F)|(?<=%2526)|(?<=%253F))"
# Also of an address that nobody could parse: from the first colon of the credentials to the last @ of the word. One slash is
# left of two where an address was taken for a path.
_IN_URL = re.compile(rf"({_COLON}(?:\\*/|%(?:25)*2F){{1,3}}[^\s:/?#@]*?{_COLON})[^\s\"]*{_AT}", re.IGNORECASE)
# How a parameter, a variable or a field is called, or ends to be called, that holds a secret: libpq's, the clouds', anybody's.
_SECRET_NAME = (
    r"(?:passw(?:or)?d|pwd|secret|token|signature|credential|sas_key)[\w-]*"
    rf"|(?:api|account|access|private|client|server)[_-]?key\w*|(?:\b|{_IN_QUERY})sig|{_IN_QUERY}key"
)
_IN_WORDS = re.compile(
    rf"""((?:{_SECRET_NAME})(?:{_EQUALS}|\\*["']\s*:\s*(?=\\*["'])))"""
    r"""((\\+["']).*?\3|'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?:\\+[^\s"'\\]|[^\s&'"\\])+)""",
    re.IGNORECASE | re.DOTALL,
)
_NAMES_ONLY = r"(?!\w*_(?:ID|FILE|PATH)$)"
_SECRET_VARIABLE = re.compile(
    rf"PGPASSWORD|(?:AWS|AZURE|GOOGLE)_\w*(?:PASSWORD|SECRET|TOKEN|KEY|SAS|CONNECTION_STRING){_NAMES_ONLY}\w*"
)


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the secrets, however they are written, and without whatever else stands where an address has one.

    A secret that is too short or too plain to be told from other words (`_telling`) is hidden in addresses alone.
    """
    known = _pattern(tuple(secrets))
    text = known.sub("***", text) if known else text
    return _IN_WORDS.sub(_emptied, _IN_URL.sub(r"\1***@", text))


def _emptied(found: re.Match[str]) -> str:
    """`name=***`; quotes stay, so that JSON stays JSON."""
    mark = found[3] or (found[2][0] if found[2][0] in "\"'" else "")
    return f"{found[1]}{mark}***{mark}"


class Discreet:
    """A text stream that puts out no password, whoever writes to it: a log, a traceback, a library with a complaint."""

    def __init__(self, stream: TextIO, secrets: Iterable[str] = ()) -> None:
        self._stream, self._secrets = stream, tuple(secrets)

    def hide(self, secrets: Iterable[str]) -> None:
        """Put out these no longer, either."""
        self._secrets = _longest_first({*self._secrets, *secrets})

    def write(self, text: str) -> int:
        """Write the text without secrets."""
        self._stream.write(scrub(text, self._secrets))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines without secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def secrets_in(words: Iterable[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """The secrets of whatever may be an address among the words of a command line and the values of an environment."""
    addresses = ["", *words, *(value for value in environ.values() if "://" in value)]
    return _longest_first({secret for each in addresses for secret in secrets_of(each, environ)})


def secrets_of(url: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Every secret of an address and of the environment, as it was given and decoded, the longest first. Raises nothing."""
    variables = [value for name, value in environ.items() if _SECRET_VARIABLE.fullmatch(name)]
    texts = [url, *(part for value in variables for part in value.split(";"))]  # Azure's connection string has several
    raw = [*variables, *(found[2].strip("'\"") for text in texts for found in _IN_WORDS.finditer(text))]
    _, after, rest = url.strip().partition("://")
    if after:  # where its credentials end can be read in two ways: both
        authority, _, query = rest.partition("?")
        raw += [each.rpartition("@")[0].partition(":")[2] for each in (authority, rest)]
        raw += [word.partition("=")[2] for word in query.split("&") if _decode(word.partition("=")[0]) in _SECRET]
    raw += [value for name, value in _words(url) if name in _SECRET]
    return _longest_first({form for each in raw for form in (each, _decode(each), _decode(_decode(each))) if form})


def _longest_first(secrets: set[str]) -> tuple[str, ...]:
    """So that none is cut in two by another that it begins with."""
    return tuple(sorted(secrets, key=lambda secret: (-len(secret), secret)))


@lru_cache(maxsize=16)
def _pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """What finds the secrets, in every spelling; None where there are none that can be told from other words."""
    found = [pattern for secret in secrets if (pattern := _telling(secret))]
    return re.compile("|".join(found), re.IGNORECASE) if found else None


def _telling(secret: str) -> str | None:
    """What finds a secret in any text; None for what is also an ordinary word or number: all texts would be full of ***.

    Letters alone must be six, digits alone eight, anything else four. Fewer than twelve letters are found as a whole word,
    so that the password `postgres` leaves postgresql as it is.
    """
    letters, digits = secret.isascii() and secret.isalpha(), secret.isascii() and secret.isdigit()
    if len(secret) < (6 if letters else 8 if digits else 4):
        return None
    spelt = "".join(map(_spelt, secret))
    if letters and len(secret) < 12:
        return rf"(?:(?<!\w)|(?<=%[0-9A-Fa-f]{{2}})|(?<=\\[nrt])){spelt}(?!\w)"
    return spelt


def _spelt(character: str) -> str:
    """A pattern of all that one character of a secret may have become: percent-encoded, once or twice, quoted, escaped."""
    if character.isascii() and character.isalnum():
        return character
    encoded = "".join(rf"%(?:25)*{byte:02X}" for byte in character.encode(errors="surrogateescape"))
    escaped = {json.dumps(character)[1:-1], character.encode("unicode_escape").decode(), f"\\u{ord(character):04x}"}
    ways = [r"\\+" if character == "\\" else rf"\\*{re.escape(character)}", encoded]
    ways += [re.escape(each).replace(r"\\", r"\\+") for each in sorted(escaped) if len(each) > 2]
    ways += {"\n": [r"\\+n"], "\r": [r"\\+r"], "\t": [r"\\+t"], " ": [r"\+"]}.get(character, [])
    ways += [re.escape(html.escape(character))] if html.escape(character) != character else []
    ways += ["\ufffd+"] if "\ud800" <= character <= "\udfff" else []  # how bytes are shown that are no text
    return f"(?:{'|'.join(ways)})"
