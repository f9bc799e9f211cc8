#!/usr/bin/env python3
"""The wrapper that a job of an engine runs: ask to begin, run the command, report its end.

It is sent with the job: this one file needs Python 3.8 or newer and nothing of pgcoord. The order,
a JSON object, is in the file that the first argument names, or packed in the variable
PGCOORD_ORDER. Its members: attempt, secret, url (of the coordinator, or null), folder (shared with
the coordinator, or null), scratch (a folder to create on this node, if none is shared), command,
directory, environment, log_max (bytes), grace (seconds from SIGTERM to SIGKILL), patience (seconds
to retry a request). With the member probe, a string, no command runs: it only describes the node.

The one rule: without the coordinator's permission to begin, a copy runs nothing and exits with 75.
An engine may start a job twice; the copy that asks second is refused.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
import uuid
import zlib

# The exit status of a copy that ran nothing (EX_TEMPFAIL).
REFUSED = 75

# The exit status of a job whose wrapper could not do its work (EX_SOFTWARE).
_BROKEN = 70

# Variables with the engine's id of the job; the first one that is set counts.
_JOB_NAMES = (
    "PGCOORD_JOB",
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "LSB_JOBID",
    "NOMAD_ALLOC_ID",
    "RAY_JOB_SUBMISSION_ID",
)

# Stands for the prompt's path in the command of a job whose folder is not shared.
PROMPT_MARK = "@pgcoord-prompt-file@"

_LEFT_OUT = b"\n-- pgcoord: %d bytes were left out here --\n"

# Bytes of the log's end to keep in memory, and the most characters to send with the exit status.
_TAIL = 16_000
_TAIL_CHARACTERS = 4_000

# The most bytes to read of a result file; the database decides whether a result is too large.
_MOST_RESULT = 3 * 69_632

# Seconds that one request may take.
_TRY = 15.0

# Seconds to retry sending the exit status if the shared folder has it as well.
_SPOOLED_TIMEOUT = 30.0

# Bytes reserved for the exit status on a shared disk, which may be full by then.
_ROOM = 2_048


class Refused(Exception):
    """The coordinator refused the request, for good: this copy must run nothing."""


class _NotHeard(Exception):
    """No answer, or one that a retry may change."""


class Order:
    """The order of this job, with defaults; its members are described above."""

    def __init__(self, order: dict) -> None:  # type: ignore[type-arg]
        self.attempt: int = order["attempt"]
        self.secret: str = order["secret"]
        self.url: str | None = order.get("url")
        self.folder: str | None = order.get("folder")
        self.scratch: str | None = order.get("scratch")
        self.command: list[str] = order["command"]
        self.directory: str = order["directory"]
        self.environment: dict[str, str] = order["environment"]
        self.log_max: int = order.get("log_max", 100_000_000)
        self.grace: float = order.get("grace", 5.0)
        self.patience: float = order.get("patience", 600.0)


def read_order(arguments: list[str], environment: dict[str, str]) -> dict:  # type: ignore[type-arg]
    """Read the order from the file that *arguments* name, else from PGCOORD_ORDER.

    Removes that variable from *environment*. Raises `OSError`, `ValueError` or `KeyError`.
    """
    if arguments:
        with open(arguments[0], encoding="utf-8") as file:
            return dict(json.load(file))
    packed = environment.pop("PGCOORD_ORDER")
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def pack(order: dict) -> str:  # type: ignore[type-arg]
    """Return *order* as text for PGCOORD_ORDER: JSON, compressed, in Base64."""
    return base64.b64encode(zlib.compress(json.dumps(order).encode(), 9)).decode()


def probe(order: dict) -> int:  # type: ignore[type-arg]
    """Print a JSON object on this node, and write it to answer.json in a shared folder; return 0.

    Its members: probe, node, python, directory (whether it exists), url (why a job could not report
    there; "" if it could), time (seconds since 1970).
    """
    answer = {
        "probe": order["probe"],
        "node": platform.node()[:200],
        "python": platform.python_version(),
        "directory": os.path.isdir(order["directory"]),
        "url": order.get("url") and _trouble_at(order["url"]),
        "time": time.time(),
    }
    text = json.dumps(answer)
    print(text, flush=True)  # noqa: T201
    if order.get("folder"):
        _write(os.path.join(order["folder"], "answer.json"), text.encode())
    return 0


def _trouble_at(url: str) -> str:
    """Return why a job could not report to *url*; "" if it could. Blocks up to `_TRY` seconds."""
    address = f"{url}/attempts/0/begin"  # which there never is
    request = urllib.request.Request(address, b"{}", {"content-type": "application/json"})
    try:
        with _opener.open(request, timeout=_TRY):
            return f"another program answers at {address}"
    except urllib.error.HTTPError as error:
        # pgcoord refuses the request, with a body that no other server sends.
        is_refusal = error.code in (401, 404) and "reason" in _json_of(error)
        return "" if is_refusal else f"{address} answered {error.code}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or repr(error)


class Job:
    """One copy of the job of one attempt."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.copy = uuid.uuid4().hex
        self._clock_ahead = 0.0  # seconds by which the coordinator's clock is ahead of ours
        self._asked_to_end = False
        self._folder = order.folder or order.scratch or f"/tmp/pgcoord-{self.copy}"

    def run(self) -> int:
        """Ask to begin, run the command, report its end; return the exit status.

        `REFUSED` if this copy may not begin. Blocks until the end is reported or kept.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note_signal)
        try:
            answer = self._begin()
        except Refused as error:
            _say(f"pgcoord: this copy of the job runs nothing: {error}")
            return REFUSED
        log = Log(self.order)
        try:
            status, left_behind = self._run(log, answer)
        except Exception:  # this copy has begun, so it must report an end, whatever failed
            log.write(traceback.format_exc().encode())
            status, left_behind = _BROKEN, ""
        log.close()
        self._exit(status, log.tail(), left_behind)
        return status

    def _note_signal(self, number: int, frame: object) -> None:
        self._asked_to_end = True

    # --- Begin

    def _begin(self) -> dict:  # type: ignore[type-arg]
        """Ask to begin, by HTTP and in the shared folder, until an answer permits it; return that.

        Raises `Refused` when it is refused, none comes within the patience, or we get a signal.
        """
        names = (os.environ[name] for name in _JOB_NAMES if os.environ.get(name))
        body = {
            "act": "begin",
            "attempt": self.order.attempt,
            "copy": self.copy,
            "job": next(names, None),
            "node": platform.node()[:200],
            "prompt": self.order.folder is None,
        }
        deadline, wait = time.monotonic() + self.order.patience, 0.5
        trouble = "nobody answers"
        spooled = False
        try:
            while True:
                spooled = spooled or self._spool(f"begin-{self.copy}.json", body)
                if spooled:
                    answer = self._spooled_answer()
                    if answer is not None:
                        return answer
                if self.order.url:
                    try:
                        return self._post("begin", body)
                    except _NotHeard as error:
                        trouble = str(error)
                if self._asked_to_end:
                    raise Refused("it was asked to end before it began")
                if time.monotonic() > deadline:
                    raise Refused(f"no answer for {self.order.patience:.0f} s: {trouble}")
                time.sleep(wait)
                wait = 0.5 if spooled else min(2 * wait, 15.0)
        finally:
            if spooled:
                self._remove(f"begin-{self.copy}.json")

    def _spooled_answer(self) -> dict | None:  # type: ignore[type-arg]
        assert self.order.folder is not None
        name = os.path.join(self.order.folder, f"begun-{self.copy}.json")
        try:
            with open(name, encoding="utf-8") as file:
                answer: dict = json.load(file)  # type: ignore[type-arg]
        except (OSError, ValueError):
            return None
        if answer.get("refused") is not None:
            raise Refused(str(answer["refused"]))
        return answer

    # --- The command

    def _run(self, log: Log, answer: dict) -> tuple[int, str]:  # type: ignore[type-arg]
        """Run the command to its end; return its exit status, and the processes it left, in words.

        The status is 127 or 126 if it cannot be started, 128 + the signal if one ended it.
        """
        order = self.order
        try:
            self._make_scratch(answer)
            process = subprocess.Popen(
                [word.replace(PROMPT_MARK, self._path("prompt.md")) for word in order.command],
                cwd=order.directory,
                env={**os.environ, **order.environment, **self._files()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            where = f"on {platform.node()}"
            log.write((f"cannot start {order.command[0]} {where}: {error}\n").encode())
            return (126 if isinstance(error, PermissionError) else 127), ""
        self._follow(process, log)
        left_behind = self._end_session(process.pid)
        status = process.returncode
        return (status if status >= 0 else 128 - status), ", ".join(left_behind)

    def _path(self, name: str) -> str:
        """Return the path of a file of the run, on this node."""
        return os.path.join(self._folder, name)

    def _files(self) -> dict[str, str]:
        return {
            "PGCOORD_PROMPT_FILE": self._path("prompt.md"),
            "PGCOORD_INPUT_FILE": self._path("inputs.json"),
            "PGCOORD_RESULT_FILE": self._path("result.json"),
        }

    def _make_scratch(self, answer: dict) -> None:  # type: ignore[type-arg]
        """Create the folder of the run on this node, with prompt and inputs, if none is shared."""
        if self.order.folder is None:
            os.mkdir(self._folder, 0o700)  # fails if it exists: another user may own it
            with open(self._path("prompt.md"), "w", encoding="utf-8") as file:
                file.write(answer.get("prompt") or "")
            with open(self._path("inputs.json"), "w", encoding="utf-8") as file:
                json.dump(answer.get("inputs") or {}, file)

    def _result(self) -> dict[str, str]:
        """Return {"result": text}, or {"result_fault": why not}; {} without a result file."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with os.fdopen(os.open(self._path("result.json"), flags), "rb") as file:
                content = file.read(_MOST_RESULT + 1)
            text = content.decode()
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            return {"result_fault": f"it cannot be read: {error}"}
        if len(content) > _MOST_RESULT:
            return {"result_fault": "it has more than 204 kB"}
        return {"result": text}

    def _follow(self, process: subprocess.Popen, log: Log) -> None:  # type: ignore[type-arg]
        """Copy the output to the log until the command ends; end it when we got a signal."""
        assert process.stdout is not None
        output, kill_at, is_open = process.stdout.fileno(), None, True
        os.set_blocking(output, False)
        while process.poll() is None:
            if self._asked_to_end and kill_at is None:
                kill_at = time.monotonic() + self.order.grace
                _signal_group(process.pid, signal.SIGTERM)
            elif kill_at is not None and time.monotonic() > kill_at:
                _signal_group(process.pid, signal.SIGKILL)
            if not is_open:
                time.sleep(0.1)
            elif select.select([output], [], [], 0.1)[0]:
                is_open = log.copy_from(output)
        if is_open:
            log.copy_from(output)

    def _end_session(self, session: int) -> list[str]:
        """End the processes that the command left in its session; return them in words."""
        processes = _processes_of(session)
        if processes:
            _signal_all(processes, signal.SIGTERM)
            deadline = time.monotonic() + self.order.grace
            while _processes_of(session) and time.monotonic() < deadline:
                time.sleep(0.05)
            _signal_all(_processes_of(session), signal.SIGKILL)
        return [f"{name} (pid {pid})" for pid, name in processes.items()]

    def _remove_scratch(self) -> None:
        if self.order.folder is None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # --- Exit

    def _exit(self, status: int, tail: str, left_behind: str) -> None:
        """Keep the end in the shared folder, and POST it until that succeeds or patience ends."""
        body = {
            "act": "exit",
            "attempt": self.order.attempt,
            "copy": self.copy,
            "exit_code": status,
            "log_tail": tail,
            "left_behind": left_behind,
        }
        full = dict(body, **self._result())
        is_spooled = self._spool("exit.json", full)
        is_spooled = is_spooled or self._spool("exit.json", dict(body, log_tail=""), in_place=True)
        body = full
        self._remove_scratch()
        # The coordinator finds a kept end in the folder, so the node need not be held for long.
        patience = min(self.order.patience, _SPOOLED_TIMEOUT) if is_spooled else self.order.patience
        deadline, wait = time.monotonic() + patience, 0.5
        while self.order.url:
            try:
                self._post("exit", body)
            except Refused as error:
                _say(f"pgcoord: the exit status is not taken: {error}")
            except _NotHeard as error:
                if time.monotonic() > deadline or (is_spooled and self._asked_to_end):
                    _say(f"pgcoord: the exit status has not arrived: {error}")
                    return
                time.sleep(wait)
                wait = min(2 * wait, 15.0)
                continue
            return

    # --- Requests

    def _signed(self, body: dict) -> tuple[bytes, dict[str, str]]:  # type: ignore[type-arg]
        """Return *body* as bytes and the headers that sign it, as Standard Webhooks prescribes."""
        content = json.dumps(body).encode()
        message = f"msg_{uuid.uuid4().hex}"
        now = str(int(time.time() + self._clock_ahead))
        key = base64.b64decode(self.order.secret[len("whsec_") :])
        signed = b".".join((message.encode(), now.encode(), content))
        signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return content, {
            "webhook-id": message,
            "webhook-timestamp": now,
            "webhook-signature": f"v1,{signature}",
        }

    def _post(self, act: str, body: dict) -> dict:  # type: ignore[type-arg]
        """POST *body*, and return the answer; if it says that our clock is wrong, retry once.

        Raises `Refused` for a refusal by pgcoord that a retry would not change, `_NotHeard` for
        every other failure.
        """
        for is_last in (False, True):
            content, headers = self._signed(body)
            headers["content-type"] = "application/json"
            url = f"{self.order.url}/attempts/{self.order.attempt}/{act}"
            try:
                request = urllib.request.Request(url, content, headers)
                with _opener.open(request, timeout=_TRY) as response:
                    answer: dict = json.loads(response.read(50_000_000))  # type: ignore[type-arg]
                    if answer.get("attempt") == self.order.attempt:
                        return answer
                    raise _NotHeard(f"another program answers at {url}")
            except urllib.error.HTTPError as error:
                refusal = _json_of(error)
                if error.code == 401 and not is_last and self._set_clock(refusal.get("now")):
                    continue
                if error.code in (400, 401, 404, 409, 413, 422) and "error" in refusal:
                    raise Refused(str(refusal.get("reason"))) from error
                raise _NotHeard(f"{url} answered {error.code}") from error
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise _NotHeard(f"{url}: {error!r}") from error
        raise AssertionError

    def _set_clock(self, now: object) -> bool:
        """Adopt the coordinator's time, *now*; return whether ours was off by over a minute."""
        if not isinstance(now, (int, float)):
            return False
        before, self._clock_ahead = self._clock_ahead, now - time.time()
        return abs(self._clock_ahead - before) > 60

    def _spool(self, name: str, body: dict, in_place: bool = False) -> bool:  # type: ignore[type-arg]
        """Write a signed message to the shared folder; return whether that succeeded.

        *in_place*: overwrite the bytes reserved for the end, which works on a full disk.
        """
        if self.order.folder is None:
            return False
        content, headers = self._signed(body)
        message = json.dumps({"headers": headers, "body": content.decode()}).encode()
        path = os.path.join(self.order.folder, name)
        try:
            if in_place:  # the bytes that the begin reserved, so this works on a full disk
                descriptor = os.open(path, os.O_WRONLY)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(message.ljust(_ROOM))
                return True
            _write(path, message)
            if name.startswith("begin"):
                # Exclusive: another copy may have begun and ended, and its end must stay.
                end = os.path.join(self.order.folder, "exit.json")
                with contextlib.suppress(FileExistsError), open(end, "xb") as file:
                    os.fchmod(file.fileno(), 0o600)
                    file.write(b" " * _ROOM)
        except OSError as error:
            _say(f"pgcoord: {path} is not written: {error.strerror}")
            return False
        return True

    def _remove(self, name: str) -> None:
        assert self.order.folder is not None
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.order.folder, name))


class Log:
    """The log of the command: a file in the shared folder, else our stdout, which the engine keeps.

    At most about `log_max` bytes: the first half, and the end. On a full disk, output is dropped.
    """

    def __init__(self, order: Order) -> None:
        self._half = max(order.log_max // 2, 1)
        self._end_bytes = min(order.log_max // 4, 1_000_000)
        self._size = 0
        self._end = b""  # the end of the output that does not fit
        self._left_out = 0
        self._tail = b""
        self._file = sys.stdout.buffer
        if order.folder is not None:
            path = os.path.join(order.folder, "log")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            with contextlib.suppress(OSError):
                self._file = os.fdopen(os.open(path, flags, 0o600), "wb")

    def copy_from(self, descriptor: int) -> bool:
        """Write all that can be read without blocking; return False at the end of the output."""
        while True:
            try:
                data = os.read(descriptor, 65_536)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.write(data)

    def write(self, data: bytes) -> None:
        """Write *data*; once the log is half full, keep only the end of the rest, for `close`."""
        self._tail = (self._tail + data)[-_TAIL:]
        room = max(0, self._half - self._size)
        self._put(data[:room])
        rest = data[room:]
        if rest:
            self._end += rest
            if len(self._end) > 2 * self._end_bytes:
                self._left_out += len(self._end) - self._end_bytes
                self._end = self._end[-self._end_bytes :]

    def close(self) -> None:
        """Write the kept end, after a line with the number of bytes left out before it."""
        more = max(0, len(self._end) - self._end_bytes)
        self._left_out += more
        if self._left_out:
            self._put(_LEFT_OUT % self._left_out)
        self._put(self._end[more:])

    def tail(self) -> str:
        """Return the last lines: at most 20, and `_TAIL_CHARACTERS` characters."""
        text = self._tail.decode(errors="replace").replace("\0", "\ufffd").rstrip("\n")
        return "\n".join(text[-_TAIL_CHARACTERS:].split("\n")[-20:])

    def _put(self, data: bytes) -> None:
        self._size += len(data)
        with contextlib.suppress(OSError):
            self._file.write(data)
            self._file.flush()


def _write(path: str, content: bytes) -> None:
    """Replace the file at *path*, atomically, with mode 0600. Raises `OSError`."""
    new = f"{path}.{uuid.uuid4().hex[:8]}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def _json_of(error: urllib.error.HTTPError) -> dict:  # type: ignore[type-arg]
    try:
        answer = json.loads(error.read(1_000_000))
    except (OSError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(group, number)


def _signal_all(processes: dict[int, str], number: int) -> None:
    for pid in processes:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def _processes_of(session: int) -> dict[int, str]:
    """Return {pid: name} of the living processes of a session (Linux; elsewhere {})."""
    processes = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat") as file:
                    before, _, after = file.read().rpartition(")")
                    state, _, _, of = after.split()[:4]
                    if int(of) == session and state not in "ZX":
                        processes[int(name)] = before.partition("(")[2]
    return processes


def _say(words: str) -> None:
    """Write a line to the engine's log, which may be on a disk that is full."""
    with contextlib.suppress(OSError):  # unbuffered: what stays in a buffer fails again at exit
        os.write(2, (words + "\n").encode(errors="replace"))


# No proxy: a node's proxy is for the outside, and the coordinator is inside.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    """Run the job; return its exit status."""
    if sys.version_info < (3, 8):  # noqa: UP036
        _say(f"pgcoord: jobs need Python 3.8 or newer, this is {platform.python_version()}")
        return REFUSED
    try:
        content = read_order(sys.argv[1:], os.environ)  # type: ignore[arg-type]
        if "probe" in content:
            return probe(content)
        order = Order(content)
    except (OSError, ValueError, KeyError) as error:
        _say(f"pgcoord: this job has no order, and runs nothing: {error!r}")
        return REFUSED
    return Job(order).run()


if __name__ == "__main__":
    sys.exit(main())
