"""Ports for programs that cannot be asked to choose one."""

import errno
import random
import socket

# Below those that the system gives to clients, and to servers that let it choose, so another
# test, which runs beside this one, gets none of these.
_FIRST, _LAST = 10_000, 32_000


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, and that was not returned before."""
    dice = random.SystemRandom()  # another process draws others, whatever its seed is
    while True:
        port = dice.randint(_FIRST, _LAST)
        if port in _returned:
            continue
        with socket.socket() as taken:
            try:
                taken.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        _returned.add(port)
        return port


_returned: set[int] = set()
