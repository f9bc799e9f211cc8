"""The permissions that the configuration and the environment define, read before the start.

A module apart from `security`, which applies them: that one takes the web framework, and a
coordinator starts before its web server does.
"""

import hmac
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pgcoord.configuration.model import GitHub, Server
from pgcoord.errors import CannotStart, InvalidConfiguration
from pgcoord.messages.signing import is_secret

# A token of fewer characters could be guessed.
_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """The permissions that the configuration and the environment define."""

    token: str | None
    read_token: str | None
    names: frozenset[str]  # host names of this server, besides addresses
    origin: str | None  # origin of the public URL
    public_url: str | None
    webhook_secrets: Mapping[str, str]
    unsigned_webhooks: bool = False
    github_secret: str | None = None
    trusted_proxies: tuple[str, ...] = ()  # their X-Forwarded-… are believed
    tokens: Mapping[str, str] = field(
        default_factory=dict
    )  # of programs, by the names of their variables

    def name_of(self, token: str) -> str | None:
        """Return the name of the variable that holds a token of a program; None for another."""
        token_bytes = token.encode()
        names = (
            n for n, each in self.tokens.items() if hmac.compare_digest(each.encode(), token_bytes)
        )
        return next(names, None)

    def risks(self) -> Iterator[str]:
        """Yield warnings for the person who starts the server."""
        if self.unsigned_webhooks:
            yield "unsigned reports are accepted: every client that connects can end any phase"
        if self.token is None and self.origin and not is_loopback(urlsplit(self.origin).hostname):
            yield (
                f"public_url is {self.origin}, and PGCOORD_TOKEN is not set: every client that"
                " reaches it can change everything"
            )


def read_access(
    server: Server,
    environment: Mapping[str, str],
    *,
    address: str,
    name: str,
    unsigned_webhooks: bool = False,
    github: GitHub | None = None,
) -> Access:
    """Return the permissions of a server on *address*, which the user gave as *name*.

    Raises `CannotStart` when every machine could connect without a token, `InvalidConfiguration`
    for secrets that are missing or too weak.
    """
    token, read_token = (
        _token(environment, each) for each in ("PGCOORD_TOKEN", "PGCOORD_READ_TOKEN")
    )
    if token is None and (read_token or not is_loopback(address)):
        why = "PGCOORD_READ_TOKEN alone" if read_token else f"{address} can be reached by others"
        raise CannotStart(
            f"{why}: PGCOORD_TOKEN, the secret that permits changes, has to be set",
            hint='For example: export PGCOORD_TOKEN="$(openssl rand -hex 32)"',
        )
    public = urlsplit(server.public_url) if server.public_url else None
    return Access(
        token=token,
        read_token=read_token,
        names=frozenset(
            {"localhost", name.lower()} | ({public.hostname or ""} if public else set())
        ),
        origin=f"{public.scheme}://{public.netloc}".lower() if public else None,
        public_url=server.public_url,
        tokens={each: token for each in server.tokens if (token := _token(environment, each))},
        webhook_secrets={each: _secret(environment, each) for each in server.webhook_secrets},
        unsigned_webhooks=unsigned_webhooks,
        github_secret=_github_secret(environment, github),
        trusted_proxies=server.trusted_proxies,
    )


def _github_secret(environment: Mapping[str, str], github: GitHub | None) -> str | None:
    """Return the secret with which GitHub signs its events: any text entered on GitHub."""
    if github is None or github.webhook_secret is None:
        return None
    secret = _token(environment, github.webhook_secret)
    if secret is None:
        raise InvalidConfiguration(
            f"github.webhook_secret: {github.webhook_secret} is not set",
            hint=f'For example: export {github.webhook_secret}="$(openssl rand -hex 32)"',
        )
    return secret


def _token(environment: Mapping[str, str], name: str) -> str | None:
    token = environment.get(name)
    if token and (len(token) < _SHORTEST_TOKEN or not token.isascii()):
        raise InvalidConfiguration(
            f"{name} is too short, or not ASCII: {_SHORTEST_TOKEN} characters at least",
            hint=f'For example: export {name}="$(openssl rand -hex 32)"',
        )
    return token or None


def _secret(environment: Mapping[str, str], name: str) -> str:
    secret = environment.get(name, "")
    if not is_secret(secret):
        raise InvalidConfiguration(
            f"server.webhook_secrets: {name} does not hold a secret: expected whsec_… of 24 bytes",
            hint=f'For example: export {name}="whsec_$(openssl rand -base64 32)"',
        )
    return secret


def is_loopback(host: str | None) -> bool:
    """Return whether *host*, a name or an address, is this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
