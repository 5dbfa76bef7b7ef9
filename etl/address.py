"""A database's address: from what a Prisma project or libpq calls a URL to what the two drivers take.

Pure: the environment is passed in. Nothing here ever puts a password into a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

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
}
_LIBPQ_ONLY_URL = frozenset(
    {
        *("application_name", "fallback_application_name", "connect_timeout", "client_encoding", "replication"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("sslcompression", "sslsni", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version"),
        *("krbsrvname", "gsslib", "gssdelegation"),
    }
)
_CONNECTORX_UNDERSTANDS = frozenset({"host", "port", "dbname", "user", "password", "sslmode"})
_HARMLESS = frozenset({"application_name", "fallback_application_name", "connect_timeout", "client_encoding"})
_POOLER_PORT = "6543"


@dataclass(frozen=True)
class Address:
    """Where the database is, in the words of each driver.

    `libpq` is what ADBC takes. `connectorx` is the same for connectorx, or None where it can't express the connection:
    then `obstacle` says why. `schema` is Prisma's `?schema=`, and `pooler` says why a transaction pooler is suspected.
    """

    libpq: str = field(repr=False)
    connectorx: str | None = field(repr=False)
    obstacle: str | None
    schema: str | None
    pooler: str | None
    secrets: tuple[str, ...] = field(repr=False, default=())

    def scrub(self, text: str) -> str:
        """The text without this address's passwords."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text

    def connectorx_url(self, *, tls: bool) -> str | None:
        """The URL for connectorx, which does not negotiate: it is told to use TLS where libpq found it in use."""
        if self.connectorx is None or not tls:
            return self.connectorx
        return f"{self.connectorx}{'&' if '?' in self.connectorx else '?'}sslmode=require"


def parse_address(url: str, environ: Mapping[str, str]) -> Address:
    """Understand a database URL: Prisma's, libpq's, or libpq's `key=value` words.

    Raises SettingsError for another scheme and for parameters that neither Prisma nor libpq know: a mistyped
    `sslmode` must not be dropped in silence.
    """
    url = url.strip()
    if "://" not in url:
        if "=" not in url:
            raise SettingsError("The database URL must look like postgresql://user:password@host:5432/database.")
        return Address(url, None, "its address is a list of libpq's key=value words", None, None)
    scheme, _, rest = url.partition("://")
    if scheme not in {"postgresql", "postgres"}:
        raise SettingsError(
            f"The database URL's scheme is {scheme!r}; it must be postgresql. "
            "For Prisma Accelerate or a local Prisma server give the direct URL (DIRECT_URL)."
        )
    authority, question, query = rest.partition("?")
    parameters = parse_qsl(query, keep_blank_values=True) if question else []
    _refuse_unknown([name for name, _ in parameters])
    prisma = {name: value for name, value in parameters if name in _PRISMA}
    libpq = {name: value for name, value in parameters if name not in _PRISMA}
    parts = _split(authority) | {k: v for k, v in libpq.items() if v}
    obstacle = _obstacle(parts, environ)
    return Address(
        libpq=f"postgresql://{authority}" + (f"?{urlencode(libpq, quote_via=quote)}" if libpq else ""),
        connectorx=None if obstacle else _connectorx(parts),
        obstacle=obstacle,
        schema=prisma.get("schema") or None,
        pooler=_pooler(prisma, parts),
        secrets=tuple({s for s in (parts.get("password"), quote(parts.get("password", ""))) if s}),
    )


def _refuse_unknown(names: list[str]) -> None:
    unknown = [n for n in names if n not in _PRISMA and n not in _LIBPQ and n not in _LIBPQ_ONLY_URL]
    if unknown:
        raise SettingsError(
            f"The database URL has a parameter that neither Prisma nor libpq knows: {', '.join(sorted(unknown))}. "
            "Correct or remove it."
        )


def _split(authority: str) -> dict[str, str]:
    """User, password, host, port and database of `user:password@host:port/database`, as far as they are there."""
    address, _, database = authority.partition("/")
    credentials, at, hosts = address.rpartition("@")
    user, _, password = credentials.partition(":") if at else ("", "", "")
    if hosts.startswith("["):  # an IPv6 address
        host, _, port = hosts[1:].partition("]")
        port = port.lstrip(":")
    else:
        host, _, port = hosts.partition(":")
    if "," in hosts:
        host, port = hosts, ""
    found = {"user": user, "password": password, "host": host, "port": port, "dbname": database}
    return {name: unquote(value) for name, value in found.items() if value}


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
    home = Path(environ.get("HOME") or "~").expanduser()
    if "password" not in parts and (home / ".pgpass").exists():
        yield "the password may come from .pgpass"
    if (home / ".postgresql").is_dir():
        yield "libpq finds certificates in ~/.postgresql"


def _connectorx(parts: Mapping[str, str]) -> str:
    """The URL in the form that connectorx takes; a socket's folder is given as `?host=`."""
    socket = parts["host"].startswith("/")
    host = "localhost" if socket else parts["host"]
    host = f"[{host}]" if ":" in host else host
    credentials = quote(parts["user"], safe="") + (
        f":{quote(parts['password'], safe='')}" if "password" in parts else ""
    )
    port = f":{parts['port']}" if "port" in parts else ""
    query = urlencode({"host": parts["host"]}, quote_via=quote) if socket else ""
    if parts.get("sslmode") == "disable":
        query += ("&" if query else "") + "sslmode=disable"
    return f"postgresql://{credentials}@{host}{port}/{quote(parts['dbname'], safe='')}" + (f"?{query}" if query else "")


def _pooler(prisma: Mapping[str, str], parts: Mapping[str, str]) -> str | None:
    if prisma.get("pgbouncer", "").lower() == "true":
        return "the URL says pgbouncer=true"
    if parts.get("port") == _POOLER_PORT:
        return f"port {_POOLER_PORT} is usually one"
    return None
