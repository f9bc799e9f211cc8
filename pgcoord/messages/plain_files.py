"""Opens files in the folder of a run, where the phase's own process may have put anything.

The one rule: open only a plain file with one name. Follow no symbolic link, not even one in place
of the folder; refuse a file with a second name (a hard link), which may be a file elsewhere; and
never block, as opening a FIFO would. The caller limits how much of a file it reads.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The errors of open(2) for a link, for a socket or a FIFO without a reader, and for a directory.
_NOT_PLAIN = (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EMLINK)


class NotPlain(OSError):
    """The path is not a plain file, or the file has a second name."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "it is not a plain file of its run", str(path))


def open_plain(folder: Path, name: str, flags: int) -> int:
    """Return a descriptor of the plain file *name* in *folder*, opened with *flags*.

    Never blocks. A file that *flags* create has mode 0600. Raises `NotPlain`, or another `OSError`.
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
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise NotPlain(folder / name)
    os.set_blocking(descriptor, True)  # a command inherits this descriptor of its log
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
    """Return a descriptor of *folder*. Raises `NotPlain` for a link, or another `OSError`."""
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError as error:  # on Linux, also for a link
        raise NotPlain(folder) from error
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            raise NotPlain(folder) from error
        raise


def read_plain(folder: Path, name: str, most: int) -> bytes:
    """Return at most the first *most* bytes of a plain file. Raises `NotPlain`, `OSError`."""
    with opened(folder, name) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read(most)


def write_plain(folder: Path, name: str, content: bytes) -> None:
    """Replace a plain file by one with *content* and mode 0600, atomically.

    Raises `NotPlain`, `OSError`.
    """
    new, rest = f"{name}.new", memoryview(content)
    with opened(folder, new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        while rest:  # not by a file object, which makes five system calls more
            rest = rest[os.write(descriptor, rest) :]
    os.replace(folder / new, folder / name)


def make_private(folder: Path) -> None:
    """Create *folder* and its missing parents with mode 0700 (Path.mkdir: only the last one)."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
