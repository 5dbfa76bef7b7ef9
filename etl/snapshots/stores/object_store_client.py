"""Connect to an object store with the credentials of its own tools, and translate its errors."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import from_url

from etl.errors import ConnectError, SettingsError, escape_control_characters
from etl.settings.redaction import redact
from etl.snapshots.stores.store import UnlistableError

_SERVERS = re.compile(r"(AWS|AZURE|GOOGLE)_\w*(ENDPOINT|BASE_URL|ACCOUNT_NAME|EMULATOR)\w*")
_RETRY = {
    "max_retries": 6,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}
_CLIENT = {"allow_http": True, "connect_timeout": "5s", "timeout": "120s"}
_OTHER_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
_NO_PLACE = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "MissingAccount", "Account must be specified")
_INVALID_KEY = re.compile(r'object with invalid path: (?:Error parsing )?Path "(.*?)"(?: contained|:)', re.DOTALL)
_REASONS = (r"<Message>([^<]*)", r'message: "([^"]+)"', r"(failed to lookup address information)", r" error: ([^\n]+)")
_REFUSED = ("403 ", "401 ", "SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied")


def open_object_store(url: str, environ: Mapping[str, str]) -> Any:
    """Return obstore's store for a URL. Nothing is requested yet."""
    options: dict[str, Any] = {"client_options": _CLIENT, "retry_config": _RETRY}
    with translate_errors(url):
        return from_url(url, **options, **_credentials(url, environ))


def servers() -> str:
    """The endpoints in the environment, without secrets: the same URL is another place at each.

    The environment is that of the process, where obstore looks.
    """
    found = sorted((name, value.rstrip("/")) for name, value in os.environ.items() if _SERVERS.fullmatch(name))
    return "".join(f"\0{name}={value}" for name, value in found)


@contextmanager
def translate_errors(location: str) -> Iterator[None]:
    """Raise errors of the store's library as ConnectError, in one sentence without XML or debug output."""
    try:
        yield
    except (BaseError, OSError) as error:
        if key := _INVALID_KEY.search(str(error)):
            raise UnlistableError(_unlistable_message(location, key[1])) from None
        raise ConnectError(_error_message(location, str(error))) from None


def _credentials(url: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The credentials of a profile (~/.aws, AWS_PROFILE, sign-on), which only boto3 reads; obstore finds all others."""
    if not url.startswith("s3://") or any(environ.get(name) for name in _OTHER_CREDENTIALS):
        return {}
    folder = Path(environ.get("HOME") or "/") / ".aws"
    files = (
        environ.get("AWS_SHARED_CREDENTIALS_FILE") or folder / "credentials",
        environ.get("AWS_CONFIG_FILE") or folder / "config",
    )
    if not environ.get("AWS_PROFILE") and not any(map(os.path.isfile, files)):
        return {}
    try:
        import boto3  # noqa: PLC0415 - half a second that only profiles need
        from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415
    except ImportError:
        raise SettingsError(
            "The credentials of an AWS profile need boto3: pip install 'bpr-etl[aws]'. Or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY."
        ) from None
    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    return {"credential_provider": Boto3CredentialProvider(session)}


def reraise_if_bucket_missing(error: FileNotFoundError) -> None:
    """Raise the error again if the bucket is missing, and not only the object."""
    if any(word in str(error) for word in _NO_PLACE):
        raise error


def _unlistable_message(location: str, key: str) -> str:
    """Name the object whose key has an empty segment, `.`, `..` or a control character, as only other programs write."""
    scheme, _, place = location.partition("://")
    named = escape_control_characters(f"{scheme}://{place.partition('/')[0]}/{key}")
    return (
        f"{location} can't be listed because of the object {named}: its key has an empty segment, a segment of dots, or a "
        "control character. Delete or rename it. Until then `list` and `prune` fail; runs go on."
    )


def _error_message(location: str, text: str) -> str:
    """Summarize an error of the store's library: what happened, the store's reason, what to do."""
    text = redact(text)  # the text may contain the signature of the request
    code = re.search(r"<Code>([^<]*)", text)
    found = next((match for match in (re.search(pattern, text) for pattern in _REASONS) if match), None)
    why = found[1] if found else text.partition("\n")[0] or "no reason given"
    why = escape_control_characters(why)[:200].rstrip(". ")
    if any(word in text for word in _NO_PLACE):
        return f"{location} cannot be used: there is no such bucket ({why}). Create it, or correct the location."
    if any(word in text for word in _NO_CREDENTIALS):
        return (
            f"{location} cannot be used: no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE (docs/recipes.md has those of other stores)."
        )
    if any(word in text for word in _REFUSED):
        named = f"{escape_control_characters(code[1])}: {why}" if code else why
        return f"{location} refused us ({named}). Check the credentials, and that they may list, read, write and delete there."
    return f"{location} cannot be reached ({why}). Check the URL, the endpoint and the network."
