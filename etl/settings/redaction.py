"""Redaction of passwords, keys and signatures in output, in any encoding of theirs."""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, TextIO
from urllib.parse import unquote

_SECRET = ("password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")
# A password may hold bytes that are no UTF-8: they come back as they were.
decode = partial(unquote, errors="surrogateescape")

# Also percent-encoded, once or several times.
_COLON, _AT, _EQUALS = r"(?::|%(?:25)*3A)", r"(?:@|%(?:25)*40)", r"(?:\s*=\s*|%(?:25)*3D)"
_IN_QUERY = r"(?:(?<=[?&;])|(?<=%26)|(?<=%3F)|(?<=%2526)|(?<=%253F))"
# Matches URLs that can't be parsed, too: from the first colon of the credentials to the last @ of the word. A URL that was
# taken for a path has one slash left of two.
_IN_URL = re.compile(rf"({_COLON}(?:\\*/|%(?:25)*2F){{1,3}}[^\s:/?#@]*?{_COLON})[^\s\"]*{_AT}", re.IGNORECASE)
# Names, or ends of names, of parameters, variables and fields that hold a secret: libpq's, cloud providers', and usual ones.
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


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without the given secrets, in any encoding, and without all that stands where a URL or a field has a secret.

    A secret that can't be distinguished from ordinary words (`_secret_pattern`) is redacted only in such positions.
    """
    known = _pattern(tuple(secrets))
    text = known.sub("***", text) if known else text
    return _IN_WORDS.sub(_masked, _IN_URL.sub(r"\1***@", text))


def _masked(found: re.Match[str]) -> str:
    """`name=***`; quotes stay, so that JSON stays JSON."""
    mark = found[3] or (found[2][0] if found[2][0] in "\"'" else "")
    return f"{found[1]}{mark}***{mark}"


class RedactingStream:
    """A text stream that redacts what is written to it: logs, tracebacks and messages of libraries, too."""

    def __init__(self, stream: TextIO, secrets: Iterable[str] = ()) -> None:
        self._stream, self._secrets = stream, tuple(secrets)

    def add_secrets(self, secrets: Iterable[str]) -> None:
        """Redact these secrets, too."""
        self._secrets = _longest_first({*self._secrets, *secrets})

    def write(self, text: str) -> int:
        """Write the text without secrets."""
        self._stream.write(redact(text, self._secrets))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines without secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def hide_secrets(secrets: Iterable[str]) -> None:
    """Redact secrets that became known only now in all that this process prints."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, RedactingStream):
            stream.add_secrets(secrets)


def find_secrets(words: Iterable[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """The secrets in a command line's words and an environment's values: of everything that may be a URL."""
    addresses = ["", *words, *(value for value in environ.values() if "://" in value)]
    return _longest_first({secret for each in addresses for secret in secrets_of(each, environ)})


def secrets_of(url: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Every secret of a URL and of the environment, as given and decoded, longest first. Never raises for a broken URL."""
    variables = [value for name, value in environ.items() if _SECRET_VARIABLE.fullmatch(name)]
    texts = [url, *(part for value in variables for part in value.split(";"))]  # Azure's connection string has several
    raw = [*variables, *(found[2].strip("'\"") for text in texts for found in _IN_WORDS.finditer(text))]
    _, after, rest = url.strip().partition("://")
    if after:  # a broken URL: its credentials may end at the last @ before the ? or at the last @ of all
        authority, _, query = rest.partition("?")
        raw += [each.rpartition("@")[0].partition(":")[2] for each in (authority, rest)]
        raw += [word.partition("=")[2] for word in query.split("&") if decode(word.partition("=")[0]) in _SECRET]
    raw += [value for name, value in parse_keyword_dsn(url) if name in _SECRET]
    return _longest_first({form for each in raw for form in (each, decode(each), decode(decode(each))) if form})


def _longest_first(secrets: set[str]) -> tuple[str, ...]:
    """Sort secrets so that one is redacted before another that it begins with."""
    return tuple(sorted(secrets, key=lambda secret: (-len(secret), secret)))


@lru_cache(maxsize=16)
def _pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """A pattern of the secrets in every encoding; None if there are none that can be distinguished from ordinary words."""
    found = [pattern for secret in secrets if (pattern := _secret_pattern(secret))]
    return re.compile("|".join(found), re.IGNORECASE) if found else None


def _secret_pattern(secret: str) -> str | None:
    """A pattern of a secret in any text; None for one that is like an ordinary word or number: it would redact too much.

    Minimum lengths: six for letters alone, eight for digits alone, else four. Fewer than twelve letters match as a whole word
    only, so that the password `postgres` does not redact postgresql.
    """
    letters, digits = secret.isascii() and secret.isalpha(), secret.isascii() and secret.isdigit()
    if len(secret) < (6 if letters else 8 if digits else 4):
        return None
    spelt = "".join(map(_encodings, secret))
    if letters and len(secret) < 12:
        return rf"(?:(?<!\w)|(?<=%[0-9A-Fa-f]{{2}})|(?<=\\[nrt])){spelt}(?!\w)"
    return spelt


def _encodings(character: str) -> str:
    """A pattern of every encoding of one character of a secret: percent-encoded (also repeatedly), quoted, escaped."""
    if character.isascii() and character.isalnum():
        return character
    encoded = "".join(rf"%(?:25)*{byte:02X}" for byte in character.encode(errors="surrogateescape"))
    escaped = {json.dumps(character)[1:-1], character.encode("unicode_escape").decode(), f"\\u{ord(character):04x}"}
    ways = [r"\\+" if character == "\\" else rf"\\*{re.escape(character)}", encoded]
    ways += [re.escape(each).replace(r"\\", r"\\+") for each in sorted(escaped) if len(each) > 2]
    ways += {"\n": [r"\\+n"], "\r": [r"\\+r"], "\t": [r"\\+t"], " ": [r"\+"]}.get(character, [])
    ways += [re.escape(html.escape(character))] if html.escape(character) != character else []
    ways += ["\ufffd+"] if "\ud800" <= character <= "\udfff" else []  # how bytes that are not UTF-8 are shown
    return f"(?:{'|'.join(ways)})"


_WORD = re.compile(
    r"\s*([^\s=]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?)(?=\s|\Z)", re.DOTALL
)


def parse_keyword_dsn(text: str) -> Iterator[tuple[str, str]]:
    """Names and values of libpq's `name=value name='quoted value'`, up to the first word that has no such form."""
    position = 0
    while match := _WORD.match(text, position):
        name, quoted, plain = match.groups()
        yield name, re.sub(r"\\(.)", r"\1", quoted if quoted is not None else plain or "", flags=re.DOTALL)
        position = match.end()
    if text[position:].strip():
        yield "", text[position:]
