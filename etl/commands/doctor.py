"""`doctor`: is everything there that a night needs, and what is to be done where it is not. Nothing is written that stays."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from etl.commands.doctor_check import Check, catch_errors, failed, ok, warning
from etl.commands.doctor_database import database_checks
from etl.commands.doctor_store import store_checks
from etl.errors import SettingsError
from etl.postgres.url import connection_parts, schema_of, target_of
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import temporary_folder
from etl.runtime.resources import tested_versions
from etl.settings.model import Settings, env_variable_for
from etl.snapshots.locations import is_url

_NAME = "bpr-etl"

Clock = Callable[[], datetime]


def run_checks(settings: Settings, clock: Clock, stop: CancelToken | None = None) -> Iterator[Check]:
    """Every check in order, each as soon as it is known. Those that need what an earlier one missed are skipped."""
    yield from machine_checks()
    address = list(catch_errors("address", lambda: _address(settings)))
    yield from address
    if all(check.state == "ok" for check in address):
        yield from database_checks(settings, clock, stop or CancelToken())
    else:
        yield Check("connection", "skipped", "there is no address")
    yield from store_checks(settings, clock)
    yield _temporary(settings)


def _address(settings: Settings) -> Iterator[Check]:
    address = target_of(settings)
    parts = connection_parts(settings.database_url or "", settings.environ)
    variable = env_variable_for("database_url", settings.environ)
    said = variable is not None and settings.environ[variable] == settings.database_url
    where = f"from {variable}" if said else "from --database-url or the settings file"
    user = f"{parts['user']}@" if "user" in parts else ""
    port = f":{parts['port']}" if "port" in parts else ""
    host = parts.get("host", "(libpq's default host)")
    place = f"{user}{host}{port}, database {parts.get('dbname', '(the role' + chr(39) + 's name)')}"
    yield ok("address", f"{place}, schema {schema_of(settings, address)}; {where}")


def _temporary(settings: Settings) -> Check:
    """Whether there is a folder for temporary files, which a run with a local --out can do without."""
    try:
        return ok("temporary files", f"{temporary_folder()} can be written to")
    except SettingsError as error:
        if is_url(settings.out) or settings.engine != "local":
            return failed("temporary files", SettingsError, str(error))
        return warning("temporary files", str(error), "A run works without; --dry-run, object stores and Ray do not.")


def machine_checks() -> Iterator[Check]:
    """Python and the libraries, against what bpr-etl says that it needs."""
    python = platform.python_version()
    needed = str(metadata(_NAME)["Requires-Python"] or "")
    if SpecifierSet(needed).contains(python, prereleases=True):
        yield ok("Python", python)
    else:
        yield failed("Python", SettingsError, f"{python}, needed is {needed}", "Install bpr-etl with another Python.")
    yield _libraries(requires(_NAME) or [])


def _libraries(needed: list[str]) -> Check:
    wrong, others, count = [], [], 0
    tested = {canonicalize_name(name): pinned for name, pinned in tested_versions().items()}
    for requirement in map(Requirement, needed):
        if requirement.marker is not None:  # an extra's: nothing that a night needs
            continue
        name, bounds = requirement.name, str(requirement.specifier)
        count += 1
        try:
            have = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is not installed (needed: {bounds})")
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{name} is {have} (needed: {bounds})")
        elif (pinned := tested.get(canonicalize_name(name), have)) != have:
            others.append(f"{name} {have} (tested: {pinned})")
    if wrong:
        return failed("libraries", SettingsError, "; ".join(wrong), f"Install again: pip install --upgrade {_NAME}.")
    more = f"; others than those tested: {', '.join(others)}" if others else ""
    return ok("libraries", f"{_NAME} {version(_NAME)}, all {count} libraries are of releases that it allows{more}")
