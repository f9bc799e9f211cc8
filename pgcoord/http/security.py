"""Who may enter: names of hosts, origins, tokens, and what browsers are told to refuse."""

from dataclasses import dataclass

from starlette.requests import HTTPConnection


@dataclass(frozen=True)
class Access:
    """Who may do what."""

    token: str | None = None
    read_token: str | None = None
    hosts: frozenset[str] = frozenset()


def actor_of(request: HTTPConnection) -> str:
    """Who sent a request, as the history shall name them."""
    client = request.client.host if request.client else "somewhere"
    return f"http ({client})"
