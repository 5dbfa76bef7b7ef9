"""Which other users may have written a file."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path


def writable_by_others(path: Path) -> str | None:
    """Why another user than this one and root may have written a file or a folder; None where none may.

    Checks the owner and the write permissions, as OpenSSH does for its own files. The private group that many systems give
    each user does not count as another user. A link itself is checked, not its target.
    """
    found = path.lstat()
    if found.st_uid not in (os.geteuid(), 0):
        return f"it belongs to {_user(found.st_uid)}"
    if stat.S_ISLNK(found.st_mode) or not found.st_mode & 0o022:
        return None
    if found.st_mode & 0o002:
        return "everybody may write to it"
    return None if _is_private_group(found.st_gid) and not _has_acl(path) else "its group may write to it"


def _is_private_group(group: int) -> bool:
    """Whether this user and root are the only members of a group."""
    users = pwd.getpwall()
    known = {each.pw_name: each.pw_uid for each in users}
    members: list[int | None] = [each.pw_uid for each in users if each.pw_gid == group]
    with suppress(KeyError):
        members += [known.get(name) for name in grp.getgrgid(group).gr_mem]
    return bool(members) and set(members) <= {os.geteuid(), 0}


def _has_acl(path: Path) -> bool:
    """Whether there is an access control list: the group's permission bits then stand for the list's."""
    with suppress(OSError, AttributeError):  # the file system or the platform has none
        return "system.posix_acl_access" in os.listxattr(path)
    return False


def _user(number: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return f"user {number}"
