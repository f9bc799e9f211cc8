"""Keeps the secrets of this process from its neighbours of the same user, such as phases.

The environment of a process is in its memory, and Linux shows it to every process of the same user,
in /proc/PID/environ and /proc/PID/mem.
"""

import os
import sys
from collections.abc import Iterable

# Of prctl(2).
_PR_SET_DUMPABLE = 4


def close_memory() -> None:
    """On Linux, close this process's memory, environment and open files to all users but root.

    Its core is not dumped then, and no debugger of the same user can attach. Its child processes
    are not affected: `exec` opens them again.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def forget_variables(names: Iterable[str]) -> None:
    """Remove variables from this process's environment, and overwrite where they were.

    For variables that were read already, and that no library reads: so not PGPASSWORD.
    """
    import ctypes

    library = ctypes.CDLL(None)
    library.getenv.restype = ctypes.c_void_p
    for name in names:
        place = library.getenv(os.fsencode(name))
        if place:
            ctypes.memset(place, 0, len(ctypes.string_at(place)))
        os.environ.pop(name, None)
