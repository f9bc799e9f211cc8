"""Sends notices to the targets of `[notify.NAME]`: a signed POST, or a command that reads JSON.

Triggers insert a notice in the transaction of the event it describes (SQL: 58_notice.sql). The
leader delivers each at least once, and retries a failed delivery. A target that is down delays
no other target.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.error import HTTPError
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    Request,
    build_opener,
)

from pgcoord.configuration.model import PASSED_ON, Notify
from pgcoord.coordination.interface import Coordination
from pgcoord.coordination.retrying import Stopped, wait_at_most
from pgcoord.database import notices
from pgcoord.errors import InvalidConfiguration, message_of
from pgcoord.messages import signing

logger = logging.getLogger(__name__)

# Seconds that a receiver, or a command, may take.
_SEND_TIMEOUT = 10.0
_COMMAND_PATIENCE = 60.0

# Tries of one notice: the last ones an hour apart, so it is given up after a day and a half.
_MOST_TRIES = 45

# Seconds between two searches for stuck phases: no event reports them.
_STUCK_INTERVAL = 60.0

_RETRY_AFTER = 10.0


class Notices:
    """Delivers the notices of one coordinator to their targets, while it leads."""

    def __init__(
        self, coordinator: Coordination, targets: tuple[Notify, ...], environment: Mapping[str, str]
    ) -> None:
        """Raise `InvalidConfiguration` when *environment* lacks the secret of a target."""
        self._coordinator = coordinator
        self._targets = targets
        self._environment = environment
        self._woken = {each.name: asyncio.Event() for each in targets}
        # Threads of our own: a slow receiver must not take those that the launcher needs.
        self._threads = ThreadPoolExecutor(max(1, len(targets)), "notices")
        self._secrets = {each.name: _secret(each, environment) for each in targets if each.secret}

    def wake(self) -> None:
        """Wake the task of each target, so that it looks for due notices at once."""
        for each in self._woken.values():
            each.set()

    async def run(self) -> None:
        """Send due notices, with one task for each target, until the coordinator is stopped."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for target in self._targets:
                    tasks.create_task(self._deliver_to(target))
                if any("stuck" in each.events for each in self._targets):
                    tasks.create_task(self._look_for_stuck())
        finally:
            self._threads.shutdown(wait=False)

    async def _look_for_stuck(self) -> None:
        while not self._coordinator.is_stopping:
            if self._coordinator.leads.is_set():
                try:
                    await self._coordinator.execute_with_retry(notices.note_stuck)
                    self.wake()
                except Stopped:
                    return
                except Exception:
                    logger.exception(
                        "the search for stuck phases is repeated in %.0f s", _STUCK_INTERVAL
                    )
            await self._coordinator.unless_stopped(asyncio.sleep(_STUCK_INTERVAL))

    async def _deliver_to(self, target: Notify) -> None:
        woken = self._woken[target.name]
        while not self._coordinator.is_stopping:
            woken.clear()
            due_in: float | None = None
            if self._coordinator.leads.is_set():
                try:
                    due_in = await self._deliver_due(target)
                except Stopped:
                    return
                except Exception:
                    logger.exception(
                        "notices for %s are sent again in %.0f s", target.name, _RETRY_AFTER
                    )
                    due_in = _RETRY_AFTER
            await self._coordinator.unless_stopped(wait_at_most(woken, due_in))

    async def _deliver_due(self, target: Notify) -> float | None:
        """Send the due notices; return the seconds until the next is due, None if there is none."""
        while self._coordinator.leads.is_set() and not self._coordinator.is_stopping:
            notice = await self._coordinator.execute_with_retry(
                lambda conn: notices.begin_notice(conn, target.name)
            )
            if notice.id is None:
                return notice.due_in
            trouble = await self._coordinator.unless_stopped(self._send(target, notice))
            if trouble is None and self._coordinator.is_stopping:
                return None  # perhaps not sent: then it is sent again
            assert notice.tries is not None
            if trouble and notice.tries < _MOST_TRIES:
                logger.warning(
                    "a notice for %s was not delivered (try %d): %s",
                    target.name,
                    notice.tries,
                    trouble,
                )
                continue
            if trouble:
                logger.error("gave up delivering to %s: %s", target.name, notice.message)
            await self._coordinator.execute_with_retry(
                partial(notices.end_notice, notice_id=notice.id)
            )
        return None

    async def _send(self, target: Notify, notice: notices.Notice) -> str:
        """Send *notice* once; return why *target* did not take it, "" if it did."""
        assert notice.message is not None
        data = notice.message["data"]
        if data["queue_id"]:
            data["page"] = self._coordinator.page_of(data["queue_id"])
        body = json.dumps(notice.message).encode()
        if target.url:
            signed = signing.sign_body(self._secrets[target.name], body, f"msg_{notice.key}")
            headers = {"content-type": "application/json", **signed.headers}
            return await self._post(target.url, body, headers)
        return await _run(target, notice, body, self._environment)

    async def _post(self, url: str, body: bytes, headers: Mapping[str, str]) -> str:
        """Post in a thread, and cut its connection when that takes too long, or is cancelled.

        Otherwise a receiver that sends a byte now and then would block the thread, and the
        shutdown, for ever.
        """
        post = _Post(Request(url, body, dict(headers), method="POST"))
        try:
            async with asyncio.timeout(_SEND_TIMEOUT):
                return await asyncio.get_running_loop().run_in_executor(self._threads, post.send)
        except TimeoutError:
            return f"it does not answer within {_SEND_TIMEOUT:.0f} s"
        finally:
            post.cut()


def _secret(target: Notify, environment: Mapping[str, str]) -> str:
    assert target.secret is not None
    secret = environment.get(target.secret, "")
    if not signing.is_secret(secret):
        raise InvalidConfiguration(
            f"notify.{target.name}.secret: {target.secret} is not a secret: expected whsec_…",
            hint=f'For example: export {target.secret}="whsec_$(openssl rand -base64 32)"',
        )
    return secret


class _NoRedirects(HTTPRedirectHandler):
    """Treats a redirect as a refusal: a notice signed for one receiver must not reach another."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _Post:
    """One request, which another thread can cut."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._connections: list[HTTPConnection] = []
        self._is_cut = False

    def send(self) -> str:
        """Send the request; return why the receiver did not take it, "" if it did. Blocks."""
        try:
            opener = build_opener(_NoRedirects, _Plain(self), _Secure(self))
            with opener.open(self._request, timeout=_SEND_TIMEOUT):
                return ""
        except HTTPError as error:
            error.close()
            return f"it answers {error.code}"
        except (OSError, ValueError, HTTPException) as error:
            return message_of(error)

    def cut(self) -> None:
        """End the request, if it is in progress."""
        self._is_cut = True
        for each in self._connections:
            with contextlib.suppress(OSError, AttributeError):  # not connected, or over
                each.sock.shutdown(socket.SHUT_RDWR)

    def connection(self, kind: type[HTTPConnection], *args: Any, **kwargs: Any) -> HTTPConnection:
        """Return a new connection of the request."""
        opened = kind(*args, **kwargs)
        connect = opened.connect

        def connect_unless_cut() -> None:
            connect()
            if self._is_cut:  # before there was a socket to shut down
                opened.close()
                raise TimeoutError("it took too long")

        opened.connect = connect_unless_cut  # type: ignore[method-assign]
        self._connections.append(opened)
        return opened


class _Plain(HTTPHandler):
    def __init__(self, post: _Post) -> None:
        super().__init__()
        self._post = post

    def http_open(self, request: Request) -> Any:
        return self.do_open(partial(self._post.connection, HTTPConnection), request)


class _Secure(HTTPSHandler):
    def __init__(self, post: _Post) -> None:
        super().__init__()
        self._post = post

    def https_open(self, request: Request) -> Any:
        return self.do_open(
            partial(self._post.connection, HTTPSConnection),
            request,
            context=ssl.create_default_context(),
        )


async def _run(
    target: Notify, notice: notices.Notice, body: bytes, environment: Mapping[str, str]
) -> str:
    """Run the command of *target* once; return why it failed, "" if it did not."""
    assert notice.message is not None
    data = notice.message["data"]
    passed_on = {name: environment[name] for name in PASSED_ON if name in environment}
    variables = {
        f"PGCOORD_{name.upper()}": str(value) for name, value in data.items() if value is not None
    }
    try:
        process = await asyncio.create_subprocess_exec(
            *target.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**passed_on, **variables, "PGCOORD_NOTICE": str(notice.key)},
            start_new_session=True,
        )
    except OSError as error:
        return message_of(error)
    try:
        async with asyncio.timeout(_COMMAND_PATIENCE):
            await process.communicate(body)
    except TimeoutError:
        return f"its command took longer than {_COMMAND_PATIENCE:.0f} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()
    return f"its command exited with status {process.returncode}" if process.returncode else ""
