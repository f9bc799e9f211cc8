"""Ownership of files that were found upward from the current folder, not named by the user; as in
git.

Another user's pgcoord.toml in a folder above would choose the commands that run as this user, and
another user's .pgcoord/ would be their database.
"""

import grp
import os
import pwd
import stat
from collections.abc import Collection, Mapping
from pathlib import Path


def trusted_owners(environment: Mapping[str, str]) -> frozenset[int]:
    """Return the ids of trusted users: this one, root, and the one behind sudo."""
    ours = os.geteuid()
    called_by = environment.get("SUDO_UID", "") if ours == 0 else ""
    return frozenset({ours, 0} | ({int(called_by)} if called_by.isdecimal() else set()))


def why_not_ours(path: Path, owners: Collection[int]) -> str | None:
    """Return why *path*, a file or folder that was found, must not be used; None if it may be.

    Looks at a link as well as at what it leads to. Raises OSError.
    """
    for status in (path.lstat(), path.stat()):
        if status.st_uid not in owners:
            return f"{path} belongs to {_name(status.st_uid)}"
        if stat.S_ISLNK(status.st_mode):
            continue
        if status.st_mode & stat.S_IWOTH:
            return f"{path} can be changed by every user of this machine"
        if status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid, status.st_uid):
            return f"{path} can be changed by other users: those of group {status.st_gid}"
    return None


def remedy(path: Path) -> str:
    """How to make *path* ours."""
    recursively = "-R " if path.is_dir() else ""
    return f"sudo chown {recursively}{_name(os.geteuid())} {path}; chmod {recursively}go-w {path}"


def _is_private(gid: int, owner: int) -> bool:
    """Whether a group is its owner's alone, as where umask is 002, or that of root."""
    if gid == 0:
        return True
    try:
        group, name = grp.getgrgid(gid), pwd.getpwuid(owner).pw_name
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
