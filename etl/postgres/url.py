"""A database's address: from what a Prisma project or libpq calls a URL to what the two drivers take.

Pure: the environment is passed in. Nothing here ever puts a password into a message, or a part of one: an address that can
be read in two ways, since a character in it should have been percent-encoded, is refused without being repeated.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

from etl.errors import SettingsError
from etl.settings.model import Settings
from etl.settings.redaction import decode, parse_keyword_dsn, redact, secrets_of

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
_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_CONNECTORX_UNDERSTANDS = frozenset({"host", "port", "dbname", "user", "password", "sslmode"})
_HARMLESS = frozenset({"application_name", "fallback_application_name", "connect_timeout", "client_encoding"})
_POOLER_PORT = "6543"
_ENCODE = "A password with / ? # @ : or % in it must be percent-encoded (%2F %3F %23 %40 %3A %25)."

_encode = partial(quote, safe="", errors="surrogateescape")


@dataclass(frozen=True)
class ConnectionTarget:
    """Where the database is, in the words of each driver.

    `libpq` is what ADBC takes. `connectorx` is the same for connectorx, or None where it can't express the connection:
    then `obstacle` says why. `schema` is Prisma's `?schema=`, and `pooler` says why a transaction pooler is suspected.
    `options` are libpq's, from the URL or the environment; None where a service file may have some that nobody here reads.
    """

    libpq: str = field(repr=False)
    connectorx: str | None = field(repr=False)
    connectorx_unsupported_reason: str | None
    schema: str | None
    pooler_hint: str | None
    secrets: tuple[str, ...] = field(repr=False, default=())
    options: str | None = field(repr=False, default="")

    def libpq_with(self, **parameters: str) -> str:
        """`libpq` with further parameters, which win over those of the same name: libpq takes the last."""
        if self.libpq.startswith("postgresql://"):
            return f"{self.libpq}{'&' if '?' in self.libpq else '?'}{_query(parameters)}"
        words = (f"{name}={_quoted(value)}" for name, value in parameters.items())
        return " ".join([self.libpq, *words])

    def redact(self, text: str) -> str:
        """The text without this address's passwords."""
        return redact(text, self.secrets)

    def connectorx_url(self, *, tls: bool, name: str, options: str = "") -> str | None:
        """The URL for connectorx, with a name and options for its sessions; None where it can't express the connection.

        It does not negotiate: it is told to use TLS where libpq found it in use.
        """
        if self.connectorx is None:
            return None
        asked = {"application_name": name, "options": options, "sslmode": "require" if tls else ""}
        more = _query({key: value for key, value in asked.items() if value})
        return f"{self.connectorx}{'&' if '?' in self.connectorx else '?'}{more}"


def parse_url(url: str, environ: Mapping[str, str]) -> ConnectionTarget:
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
        words = _validate_keyword_dsn(url)
        reason = "its address is a list of libpq's key=value words"
        url += "".join(f" {name}={value}" for name, value in _without_home(words, environ).items())
        return ConnectionTarget(url, None, reason, None, _pooler({}, words), secrets, _options(words, environ))
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
    obstacle = _connectorx_limitation(parts, environ)
    libpq |= _without_home(parts, environ)
    return ConnectionTarget(
        libpq=f"postgresql://{_for_libpq(authority)}" + (f"?{_query(libpq)}" if libpq else ""),
        connectorx=None if obstacle else _connectorx(parts),
        connectorx_unsupported_reason=obstacle,
        schema=prisma.get("schema") or None,
        pooler_hint=_pooler(prisma, parts),
        secrets=secrets,
        options=_options(libpq, environ),
    )


def target_of(settings: Settings) -> ConnectionTarget:
    """The database's address. Raises SettingsError when nobody said one."""
    if not settings.database_url:
        raise SettingsError(
            "No database was named: give --database-url, or set BPR_ETL_DATABASE_URL, DIRECT_URL or DATABASE_URL."
        )
    return parse_url(settings.database_url, settings.environ)


def schema_of(settings: Settings, address: ConnectionTarget) -> str:
    """The PostgreSQL schema: --schema, else the URL's `?schema=`, else public."""
    return settings.schema or address.schema or "public"


def connection_parts(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """User, host, port, database and sslmode as the URL says them, else libpq's environment; no secret among them.

    For an address that `parse_url` has understood. What a service file or a default says is not looked for.
    """
    url = url.strip()
    _, after, rest = url.partition("://")
    authority, _, query = rest.partition("?")
    said = _split(authority) | {k: v for k, v in _parameters(query) if v} if after else dict(parse_keyword_dsn(url))
    names = ("user", "host", "port", "dbname", "sslmode")
    return {name: value for name in names if (value := said.get(name) or environ.get(_LIBPQ[name]))}


def _parameters(query: str) -> list[tuple[str, str]]:
    """Names and values of a URL's query, as libpq reads them: a `+` is a plus."""
    words = (word.partition("=") for word in query.split("&") if word)
    return [(decode(name), decode(value)) for name, _, value in words]


def _query(parameters: Mapping[str, str]) -> str:
    return "&".join(f"{_encode(name)}={_encode(value)}" for name, value in parameters.items())


def _for_libpq(authority: str) -> str:
    """The same with user, password and database encoded anew.

    Libpq takes the first `@` for the end of a password, Prisma and we the last; and it refuses spaces.
    """
    credentials, at, place = authority.rpartition("@")
    hosts, slash, database = place.partition("/")
    user, colon, password = credentials.partition(":")
    encoded = [_encode(decode(each)) for each in (user, password, database)]
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
    return {name: decode(value) for name, value in found.items() if value}


def _quoted(value: str) -> str:
    """A value as libpq's words have it."""
    return "'" + re.sub(r"([\\'])", r"\\\1", value) + "'"


def _validate_keyword_dsn(text: str) -> dict[str, str]:
    """The words by name. Raises SettingsError for what libpq would repeat in its complaint: it may be half a password."""
    words = dict(parse_keyword_dsn(text))
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


def _connectorx_limitation(parts: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """Why connectorx can't express this connection; None when it can."""
    return next(_connectorx_limitations(parts, environ), None)


def _connectorx_limitations(parts: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[str]:
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
