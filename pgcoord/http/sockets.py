"""Bound sockets: from the bind on, a client waits for its answer instead of being refused."""

import errno
import socket

from pgcoord.errors import CannotStart


def bind(host: str, port: int) -> socket.socket:
    """Bind *host* and *port*; port 0 binds any free port. Raises `CannotStart`."""
    name = f"[{host}]" if ":" in host else host
    # For a str, Python imports the tables of IDNA, which take 1 MB.
    plain = host.encode() if host.isascii() else host
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            plain, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        # From here on, a client that connects waits for an answer instead of being refused.
        listening.listen(2048)
    except OSError as error:
        raise CannotStart(
            f"cannot serve on {name}:{port}: {(error.strerror or str(error)).lower()}",
            hint="Stop what uses it (another 'pgcoord serve'?), or choose another: --port."
            if error.errno == errno.EADDRINUSE
            else "Choose another address: --host, --port, or [server] in pgcoord.toml.",
        ) from error
    return listening


def bind_free(host: str, port: int) -> socket.socket:
    """Bind *host* and *port*, or a free port if *port* is in use. Raises `CannotStart`."""
    try:
        return bind(host, port)
    except CannotStart:
        return bind(host, 0)


def url_of(listening: socket.socket) -> str:
    """Return the URL of a server on the socket *listening*, for a browser on this machine."""
    host, port = listening.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{local}:{port}"
