"""Opens files in the folder of a run, where the phase's own process may have put anything.

The one rule: what is opened is a plain file with this one name. No symbolic link is followed, not
even one in place of the folder; a second name (a hard link) is refused, because it may be that of
a file elsewhere; and opening never waits, as it would for the other side of a FIFO. How much of a
file is read is for its reader to bound.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What open(2) says of a link, a socket or FIFO without a reader, and a directory.
_NOT_PLAIN = (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EMLINK)


class NotPlain(OSError):
    """Something else than a plain file, or one that has another name, lies where a file should."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "it is not a plain file of its run", str(path))


def open_plain(folder: Path, name: str, flags: int) -> int:
    """Return a descriptor of the plain file *name* in *folder*, opened with *flags*; never waits.

    A file that *flags* create is for its owner only. Raises `NotPlain`, or another `OSError`.
    """
    place = open_folder(folder)
    try:
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=place)
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise NotPlain(folder / name) from error
        raise
    finally:
        os.close(place)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise NotPlain(folder / name)
    os.set_blocking(descriptor, True)  # a command inherits its log, and some look at this flag
    return descriptor


@contextmanager
def opened(folder: Path, name: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open as `open_plain` does, and close at the end of the block."""
    descriptor = open_plain(folder, name, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_folder(folder: Path) -> int:
    """Return a descriptor of *folder* itself, never of what a link in its place leads to.

    Raises `NotPlain` or another `OSError`.
    """
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError as error:  # what Linux says of a link, too
        raise NotPlain(folder) from error
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise NotPlain(folder) from error
        raise


def read_plain(folder: Path, name: str, most: int) -> bytes:
    """Return the first *most* bytes of a plain file at most. Raises `NotPlain`, `OSError`."""
    with opened(folder, name) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read(most)


def write_plain(folder: Path, name: str, content: bytes) -> None:
    """Write a plain file anew, for its owner only; a process that is killed leaves no half of it.

    Raises `NotPlain`, `OSError`.
    """
    new = f"{name}.new"
    with (
        opened(folder, new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor,
        os.fdopen(os.dup(descriptor), "wb") as file,
    ):
        file.write(content)
    os.replace(folder / new, folder / name)
