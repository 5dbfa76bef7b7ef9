"""Who may have written a file, where others may write too."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import suppress
from pathlib import Path


def writable_by_others(path: Path) -> str | None:
    """Who may have written a file or a folder besides this user and root, in words; None where nobody may.

    As OpenSSH looks at its own files: by the owner and by who has the right to write. A group that this user is alone in, as
    every user has one on many systems, is nobody else. A link is looked at and not followed.
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
    """Whether a group has this user, or root, and nobody else."""
    users = pwd.getpwall()
    known = {each.pw_name: each.pw_uid for each in users}
    members: list[int | None] = [each.pw_uid for each in users if each.pw_gid == group]
    with suppress(KeyError):
        members += [known.get(name) for name in grp.getgrgid(group).gr_mem]
    return bool(members) and set(members) <= {os.geteuid(), 0}


def _has_acl(path: Path) -> bool:
    """Whether an access list gives rights to others, which the group's bits only stand for then."""
    with suppress(OSError, AttributeError):  # no such lists there, or no way to ask
        return "system.posix_acl_access" in os.listxattr(path)
    return False


def _user(number: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return f"user {number}"
