"""Parses a database URL as Prisma or libpq write it, and libpq's `key=value` words, into what each driver takes.

Pure: the environment is passed in. No message contains a password or a part of one: an address that can be read in two ways,
because a character in it should have been percent-encoded, is refused without being repeated.
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
from etl.postgres.password import PasswordCommand
from etl.runtime.cancellation import CancelToken
from etl.settings.model import Settings
from etl.settings.redaction import decode, parse_keyword_dsn, redact, secrets_of

_PRISMA = frozenset(
    {
        *("schema", "connection_limit", "pool_timeout", "socket_timeout", "pgbouncer", "statement_cache_size"),
        *("sslaccept", "sslidentity", "single_use_connections"),
        *("max_connection_lifetime", "max_idle_connection_lifetime", "supa", "workaround"),
    }
)

# node-postgres' parameters that matter to an application's pool alone.
_NODE = frozenset(
    {
        *(
            "uselibpqcompat",
            "encoding",
            "binary",
            "max",
            "min",
            "keepAlive",
            "keepAliveInitialDelayMillis",
            "query_timeout",
        ),
        *("connectionTimeoutMillis", "idleTimeoutMillis", "allowExitOnIdle", "maxUses", "maxLifetimeSeconds"),
        *("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"),
    }
)

# libpq's parameters that an environment variable can set if the URL does not (libpq, "Environment Variables").
_WITH_VARIABLE = (
    *("host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service", "options", "sslmode"),
    *("sslnegotiation", "sslcert", "sslkey", "sslcertmode", "sslrootcert", "sslcrl", "sslcrldir", "channel_binding"),
    *("require_auth", "requirepeer", "gssencmode", "target_session_attrs", "load_balance_hosts"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "sslsni", "sslkeylogfile", "krbsrvname", "gsslib"),
    *("gssdelegation", "min_protocol_version", "max_protocol_version"),
)
_VARIABLES = {name: f"PG{name.replace('_', '').upper()}" for name in _WITH_VARIABLE} | {"dbname": "PGDATABASE"}
_LIBPQ = frozenset(
    {
        *_VARIABLES,
        *("application_name", "fallback_application_name", "connect_timeout", "client_encoding", "replication"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("ssl", "sslcompression", "sslpassword", "scram_client_key", "scram_server_key"),
        *("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
    }
)
_SSL_WORDS = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
_UNVERIFIED = (None, "allow", "prefer", "require")
_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_AUTHORITY = ("user", "password", "host", "port", "dbname")
_NO_EFFECT_ON_CONNECTORX = frozenset({*_AUTHORITY, "sslmode", "application_name", "fallback_application_name"}) | {
    *("connect_timeout", "client_encoding")
}
_POOLER_PORT = "6543"
_ENCODE = "A password with / ? # @ : or % in it must be percent-encoded (%2F %3F %23 %40 %3A %25)."

_encode = partial(quote, safe="", errors="surrogateescape")


@dataclass(frozen=True)
class ConnectionTarget:
    """The database's address for each driver.

    `libpq` is the URL for ADBC. `connectorx` is the URL for connectorx, None if connectorx can't express the connection for
    `connectorx_unsupported_reason`. `schema` is Prisma's `?schema=`. `pooler_hint` says why a transaction pooler is suspected.
    `options` are libpq's, from the URL or the environment, None if a service file may set some. `parts` are user, host, port,
    dbname and sslmode as the URL or the environment set them. With a `password_command`, the URLs have no password.
    """

    libpq: str = field(repr=False)
    connectorx: str | None = field(repr=False)
    connectorx_unsupported_reason: str | None
    schema: str | None
    pooler_hint: str | None
    secrets: tuple[str, ...] = field(repr=False)
    options: str | None = field(repr=False)
    parts: Mapping[str, str] = field(repr=False)
    password_command: PasswordCommand | None = None

    def libpq_with(self, **parameters: str) -> str:
        """Return `libpq` with further parameters. They override those of the same name: libpq takes the last."""
        return _with_query(self.libpq, parameters)

    def redact(self, text: str) -> str:
        """Return the text without this address's passwords."""
        printed = self.password_command.printed if self.password_command else ()
        return redact(text, (*printed, *self.secrets))

    def new_password(self, stop: CancelToken) -> str | None:
        """Return the password for a new connection, None if it is in the URL or libpq's to find. See `PasswordCommand.run`."""
        return self.password_command.run(stop) if self.password_command else None

    def connectorx_url(self, *, tls: bool, name: str, options: str = "", password: str | None = None) -> str | None:
        """Return the URL for connectorx with an application_name and options for its sessions, None if it has no URL.

        `password` is that of the command, if there is one.

        connectorx does not negotiate TLS: `tls` says whether libpq found it in use. Without it, reading the machine's
        certificates, which costs 4 ms for each connection, is skipped.
        """
        if self.connectorx is None:
            return None
        asked = {"application_name": name, "options": options, "sslmode": "require" if tls else "disable"}
        url = self.connectorx if password is None else self.connectorx.replace("@", f":{_encode(password)}@", 1)
        return _with_query(url, {key: value for key, value in asked.items() if value})


def parse_url(url: str, environ: Mapping[str, str], password_command: str | None = None) -> ConnectionTarget:
    """Parse a database URL of Prisma, node-postgres or libpq, or libpq's `key=value` words.

    Raises SettingsError for another scheme, for parameters that none of them knows (a mistyped `sslmode` must not be ignored),
    and for files that are not there.
    """
    url = url.strip()
    scheme, separator, rest = url.partition("://")
    is_url = separator and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme)
    parameters = _read_url(scheme, rest) if is_url else _read_words(url)
    prisma = {name: value for name, value in parameters.items() if name in _PRISMA}
    libpq = _libpq_tls({name: value for name, value in parameters.items() if name not in _PRISMA | _NODE})
    if is_url:
        libpq = _prisma_tls(libpq, prisma, environ)
    command = PasswordCommand(password_command, environ) if password_command else None
    if command:
        libpq.pop("password", None)
    parts = {name: value for name, value in libpq.items() if value}
    if parts.get("sslmode", "prefer") not in _SSLMODES:  # libpq would repeat it, and it may be half a password
        raise SettingsError(f"The database URL's sslmode must be one of {', '.join(_SSLMODES)}. Correct it.")
    _require_files(parts, environ)
    known_password = {"password": ""} if command else {}
    limitation = next(_connectorx_limitations(parts | known_password, environ), None)
    names = ("user", "host", "port", "dbname", "sslmode")
    return ConnectionTarget(
        libpq=_to_url(libpq | _without_home(parts, environ)),
        connectorx=None if limitation else _to_url(_for_connectorx(parts)),
        connectorx_unsupported_reason=limitation,
        schema=prisma.get("schema") or None,
        pooler_hint=_pooler_hint(prisma, parts),
        secrets=secrets_of(url, environ),
        options=_options(libpq, environ),
        parts={name: found for name in names if (found := parts.get(name) or environ.get(_VARIABLES[name]))},
        password_command=command,
    )


def target_of(settings: Settings) -> ConnectionTarget:
    """Return the database's address. Raises SettingsError if none is set."""
    if not settings.database_url:
        raise SettingsError(
            "No database was named: give --database-url, or set BPR_ETL_DATABASE_URL, DIRECT_URL or DATABASE_URL."
        )
    return parse_url(settings.database_url, settings.environ, settings.password_command)


def schema_of(settings: Settings, address: ConnectionTarget) -> str:
    """Return the PostgreSQL schema: --schema, else the URL's `?schema=`, else public."""
    return settings.schema or address.schema or "public"


# --- reading --------------------------------------------------------------------------------------------------------


def _read_url(scheme: str, rest: str) -> dict[str, str]:
    """Return a URL's parameters by libpq's and Prisma's names, decoded."""
    if scheme not in {"postgresql", "postgres"}:
        raise SettingsError(
            f"The database URL's scheme is {scheme!r}; it must be postgresql. "
            "For Prisma Accelerate or a local Prisma server give the direct URL (DIRECT_URL)."
        )
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", rest):
        raise SettingsError(
            f"The database URL has a % that is not followed by two hexadecimal digits, or %00. {_ENCODE}"
        )
    authority, _, query = rest.partition("?")
    # In u:12?user=34@host the password may end at the ? or at the @.
    if "@" in query and ":" in authority and not {"@", "/"} & set(authority):
        raise SettingsError(f"The database URL can be read in two ways. {_ENCODE}")
    if "?" in query:  # what follows it would be dropped together with a parameter of Prisma's, an sslmode, perhaps
        raise SettingsError(
            "The database URL has a second ?: parameters are joined by &, and a ? in one is written %3F."
        )
    words = (word.partition("=") for word in query.split("&") if word)
    parameters = {decode(name): decode(value) for name, _, value in words}  # as libpq: a + is a plus, the last one wins
    _require_known(parameters, repeat="@" not in query)
    return _read_authority(authority) | parameters


def _read_authority(authority: str) -> dict[str, str]:
    """Return user, password, host, port and dbname of `user:password@host:port,host:port/dbname`, without missing ones.

    The last @ ends the password, as for Prisma; libpq takes the first. Several hosts and their ports are joined by commas.
    """
    credentials, at, location = authority.rpartition("@")
    hosts, _, database = location.partition("/")
    user, _, password = credentials.partition(":") if at else ("", "", "")
    # A name, an address or a socket's folder, encoded; or an IPv6 address in brackets.
    pattern = r"(?:([^:\[\]\s]*)|\[([^\[\]\s]+)\])(?::([0-9]{0,5}))?"
    found = [re.fullmatch(pattern, each) for each in hosts.split(",")]
    if "/" in credentials or not all(each and int(each[3] or 1) in range(1, 1 << 16) for each in found):
        raise SettingsError(
            f"The database URL has an invalid host, or a port that is not a number up to 65535. {_ENCODE}"
        )
    host = ",".join(each[1] or each[2] or "" for each in found if each)
    port = ",".join(each[3] or "" for each in found if each)  # an empty one is the default
    port = port if port.strip(",") else ""
    parts = {"user": user, "password": password, "host": host, "port": port, "dbname": database}
    return {name: decode(value) for name, value in parts.items() if value}


def _read_words(text: str) -> dict[str, str]:
    """Return the parameters of libpq's `name=value` words. Unknown names are not repeated: they may be half a password."""
    if text[:1] in {'"', "'"} and text[-1:] == text[:1]:
        raise SettingsError("The database URL is in quotes, which `docker --env-file` keeps: remove them.")
    if "=" not in text:
        raise SettingsError("The database URL must look like postgresql://user:password@host:5432/database.")
    words = dict(parse_keyword_dsn(text))
    if "" in words:
        raise SettingsError(
            "The database address's name=value words can't be told apart: a value with a space in it stands in single "
            "quotes, and ' and \\ in it have a \\ before them."
        )
    _require_known(words, repeat=False, known=_LIBPQ)
    return words


def _require_known(names: Iterable[str], *, repeat: bool, known: frozenset[str] = _LIBPQ | _PRISMA | _NODE) -> None:
    """Raise SettingsError for unknown parameters. They are named only if `repeat`, else they may be pieces of a password."""
    unknown = sorted(set(names) - known)
    if not unknown:
        return
    words = [name for name in unknown if re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)]
    shown = f": {', '.join(words)}" if repeat and words else ""
    near = {match for name in words for match in difflib.get_close_matches(name, known, 1)}
    hint = f" (did you mean {' or '.join(sorted(near))}?)" if near else ""
    raise SettingsError(
        f"The database URL has a parameter that neither Prisma nor libpq knows{shown}{hint}. Correct or remove it."
        + ("" if repeat else f" {_ENCODE}")
    )


# --- TLS ------------------------------------------------------------------------------------------------------------


def _libpq_tls(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters with libpq's sslmode in place of what node-postgres and JDBC say: `ssl=true`, `no-verify`."""
    found = dict(parameters)
    if (word := found.pop("ssl", None)) is not None:
        if word.lower() not in _SSL_WORDS:
            raise SettingsError("The database URL's ssl must be true or false. Correct it, or say sslmode.")
        found.setdefault("sslmode", _SSL_WORDS[word.lower()])
    if found.get("sslmode") == "no-verify":
        found["sslmode"] = "require"
    return found


def _prisma_tls(libpq: Mapping[str, str], prisma: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return libpq's parameters with what Prisma means by a `sslcert` that has no `sslkey`: the server's CA, to be verified.

    With `sslaccept=strict` the server's name is verified, too. Raises SettingsError for `sslidentity`.
    """
    if prisma.get("sslidentity"):
        raise SettingsError(
            "The database URL's sslidentity (a PKCS #12 file, Prisma's) can't be used. Convert it: `openssl pkcs12 -in FILE "
            "-clcerts -nokeys -out client.crt` and `openssl pkcs12 -in FILE -nodes -nocerts -out client.key`, and say "
            "sslcert=client.crt&sslkey=client.key; the server's CA is then sslrootcert=FILE."
        )
    home = _home(environ)
    own_key = home is not None and os.access(home / ".postgresql" / "postgresql.key", os.F_OK)
    others = any(libpq.get(name) or environ.get(_VARIABLES[name]) for name in ("sslkey", "sslrootcert"))
    if not libpq.get("sslcert") or others or own_key:
        return dict(libpq)
    found = {"sslrootcert" if name == "sslcert" else name: value for name, value in libpq.items()}
    if (found.get("sslmode") or environ.get("PGSSLMODE") or None) in _UNVERIFIED:
        found["sslmode"] = "verify-full" if prisma.get("sslaccept") == "strict" else "verify-ca"
    return found


def _require_files(parts: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """Raise SettingsError if a certificate or key is not there: libpq would go on without it, and not verify the server."""
    for name in ("sslrootcert", "sslcert", "sslkey"):
        path = parts.get(name) or environ.get(_VARIABLES[name])
        # `system` stands for the system's CAs; a colon separates an engine from its key.
        if not path or path == "system" or (name == "sslkey" and ":" in path):
            continue
        try:
            Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            where = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
            raise SettingsError(
                f"The file {Path(path).name}, which the database URL or the environment names as {name}, is not there{where}. "
                "Give its absolute path."
            ) from None
        except OSError:  # it is there, and libpq says what is wrong with it
            pass


# --- writing --------------------------------------------------------------------------------------------------------


def _to_url(parameters: Mapping[str, str]) -> str:
    """Write parameters as a URL that libpq and connectorx read.

    What is no plain host (a socket's folder, several hosts) is a parameter. It wins over the `localhost` in its usual place,
    which connectorx needs.
    """
    parts = {name: parameters.get(name, "") for name in _AUTHORITY}
    if parts["host"] and not re.fullmatch(r"[\w.:-]+", parts["host"], re.ASCII):
        parts |= {"host": "localhost", "port": "" if "," in parts["port"] else parts["port"]}
    host = f"[{parts['host']}]" if ":" in parts["host"] else parts["host"]
    user = _encode(parts["user"]) + (f":{_encode(parts['password'])}" if parts["password"] else "")
    port = f":{_encode(parts['port'])}" if parts["port"] else ""
    database = f"/{_encode(parts['dbname'])}" if parts["dbname"] else ""
    rest = {name: value for name, value in parameters.items() if not value or value != parts.get(name)}
    return _with_query(f"postgresql://{user}{'@' if user else ''}{host}{port}{database}", rest)


def _with_query(url: str, parameters: Mapping[str, str]) -> str:
    query = "&".join(f"{_encode(name)}={_encode(value)}" for name, value in parameters.items())
    return f"{url}{'&' if '?' in url else '?'}{query}" if query else url


def _for_connectorx(parts: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters for connectorx. Other sslmodes than `disable` depend on what libpq negotiates."""
    kept = {name: value for name, value in parts.items() if name in _AUTHORITY}
    return kept | ({"sslmode": "disable"} if parts.get("sslmode") == "disable" else {})


def _connectorx_limitations(parts: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the reasons why connectorx can't express this connection."""
    if "," in parts.get("host", ""):
        yield "the URL names several hosts"
    mode = parts.get("sslmode", "prefer")
    if mode not in {"disable", "prefer", "require"}:
        yield f"the URL asks for sslmode={mode}"
    yield from (f"the URL sets {name}" for name in sorted(set(parts) - _NO_EFFECT_ON_CONNECTORX))
    set_there = (variable for name, variable in _VARIABLES.items() if name not in parts and environ.get(variable))
    yield from (f"{variable} is set in the environment" for variable in set_there)
    yield from (f"the URL leaves the {name} to libpq" for name in ("user", "host", "dbname") if name not in parts)
    home = _home(environ)
    if "password" not in parts and home and os.access(home / ".pgpass", os.F_OK):
        yield "the password may come from .pgpass"
    if home and os.access(home / ".postgresql", os.F_OK):
        yield "libpq finds certificates in ~/.postgresql"


# --- the surroundings -----------------------------------------------------------------------------------------------


def _home(environ: Mapping[str, str]) -> Path | None:
    """Return the home folder as libpq finds it, None in a container with neither HOME nor an entry in /etc/passwd."""
    with suppress(RuntimeError):
        return Path(environ.get("HOME") or "~").expanduser()
    return None


def _without_home(parts: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the parameter that keeps libpq from looking for a client certificate in a home folder that it may not enter.

    Without it libpq would fail with TLS, instead of going on without a certificate as it does if there is no such folder.
    """
    home = _home(environ)
    if home is None or any(name in parts or environ.get(_VARIABLES[name]) for name in ("sslcert", "sslcertmode")):
        return {}
    try:
        (home / ".postgresql" / "postgresql.crt").stat()
    except PermissionError:
        return {"sslcertmode": "disable"}
    except OSError:
        pass
    return {}


def _options(libpq: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """Return the server settings that libpq sends when it connects (`options`), None if a service file may set some."""
    if "options" in libpq:
        return libpq["options"]
    return None if libpq.get("service") or environ.get("PGSERVICE") else environ.get("PGOPTIONS", "")


def _pooler_hint(prisma: Mapping[str, str], parts: Mapping[str, str]) -> str | None:
    if prisma.get("pgbouncer", "").lower() == "true":
        return "the URL says pgbouncer=true"
    if parts.get("port") == _POOLER_PORT:
        return f"port {_POOLER_PORT} is usually one"
    return None
