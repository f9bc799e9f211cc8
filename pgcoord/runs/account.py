"""The account that a workflow runs as.

The one rule: only a coordinator that runs as root may use another account than its own.
"""

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgcoord.configuration.model import Workflow
from pgcoord.errors import CannotStart


@dataclass(frozen=True)
class Account:
    """An account of this machine: its numbers, its groups and its home."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    @property
    def identity(self) -> dict[str, Any]:
        """The arguments of `subprocess.Popen` that start a process as this account."""
        return {"user": self.uid, "group": self.gid, "extra_groups": list(self.groups)}

    @property
    def variables(self) -> Mapping[str, str]:
        """The variables of the environment that name this account."""
        return {"HOME": self.home, "USER": self.name}

    def share(self, folder: Path, names: Iterable[str]) -> None:
        """Let this account read the files *names* in the folder of a run, and add files there.

        The account does not own the folder, which is sticky, so it can neither replace nor remove
        our files. The two folders above get permission x, not r, for all. Raises `CannotStart` when
        the account still has no access.
        """
        for name in names:
            os.chown(folder / name, self.uid, self.gid)
        os.chown(folder, -1, self.gid)
        folder.chmod(0o1770)
        for above in (folder.parent, folder.parent.parent):
            above.chmod(above.stat().st_mode & 0o7777 | 0o011)
        for above in folder.parents:
            if not self._may_enter(above):
                raise CannotStart(
                    f"user {self.name} cannot reach {folder}: {above} is closed to it; name"
                    " another place: 'folder' of [log] in pgcoord.toml, such as /var/lib/pgcoord"
                )

    def _may_enter(self, folder: Path) -> bool:
        status = folder.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & 0o100)
        return bool(status.st_mode & (0o010 if status.st_gid in self.groups else 0o001))


def find_account(name: str) -> Account | None:
    """Return the account *name*; None if it is our own.

    Raises `CannotStart` when there is no such account, or when only root may use it.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise CannotStart(f"there is no user {name} on this machine") from error
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise CannotStart(
            f"processes cannot be started as user {name}: only root can do that",
            hint=f"Start pgcoord as root, or as {name}, or remove 'user' from the workflow.",
        )
    groups = os.getgrouplist(name, entry.pw_gid)
    return Account(name, entry.pw_uid, entry.pw_gid, tuple(groups), entry.pw_dir)


def check_accounts(workflows: Iterable[Workflow]) -> None:
    """Raise `CannotStart` if the account of a workflow does not exist or is not ours to use."""
    for workflow in workflows:
        if workflow.user is not None:
            try:
                find_account(workflow.user)
            except CannotStart as error:
                raise CannotStart(f"workflow {workflow.name}: {error}", hint=error.hint) from error
