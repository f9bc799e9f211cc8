"""Run the command of a phase and judge it: by exit status, by its output, then by a check.

    python3 judge.py SPEC COMMAND…

SPEC is the JSON of `Spec`. Command and check run one after the other as the process of the phase,
and their output is its log; an agent's JSON becomes lines that people can read. This file imports
only the standard library of Python 3.8, so that it can be copied to the machine of a job. The one
rule: the last line of the log says why the phase failed.

Exit status: 0 only if all went well; that of the command, or of the check, if it is not 0; 1 if the
output says that it failed; 124 if the check took too long; 75 if it should be tried again later.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import selectors
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # Python 3.8 cannot make these
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Event = Mapping[str, Any]
    Reader = Callable[[Event, "Findings"], Iterator[str]]

CHECK_TOOK_TOO_LONG = 124
TRY_LATER = 75
"""EX_TEMPFAIL of sysexits.h: the phase itself did not fail, and a later retry may succeed."""

_TERMINATED = 128 + signal.SIGTERM

# Bytes of the longest line that is read as JSON; a longer one is passed on in parts.
_LONGEST = 4_000_000

# Characters that are quoted of an answer, a command or an error.
_QUOTED = 300

# Characters of an answer that are kept as the summary.
_SUMMARY = 4000

# Bytes of a result, written with a space after each comma and colon, as the database counts: 64 kB
# by the command, and 1 kB for tokens and costs.
_MOST_RESULT = 65_536 + 1_024

# Seconds: without output after the command has ended, and in all, if another process holds its
# pipe; until an agent that only waits for the network is ended; from SIGTERM to SIGKILL.
_DRAIN = 0.2
_LONGEST_DRAIN = 2.0
_NETWORK_TIMEOUT = 120.0
_GRACE = 5.0

_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")

# Errors of agents whose model cannot be reached, or is overloaded. Only errors are searched: an
# answer may be about status 429.
_TEMPORARY = re.compile(
    r"\b(?:429|500|502|503|504|529)\b|overloaded|rate.?limit|too many requests|usage limit"
    r"|resource.?exhausted|unavailable|unable to connect|connection (?:error|refused|reset)"
    r"|ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|fetch failed|waiting for network"
    r"|stream disconnected|error sending request|timed out",
    re.IGNORECASE,
)
# A quota that only a person renews, by paying; and words that say when a quota renews itself.
_SPENT = re.compile(
    r"insufficient.?quota|credit balance is too low|check your plan and billing|out of credits"
    r"|insufficient (?:credits|balance|funds)|payment required|billing (?:hard )?limit",
    re.IGNORECASE,
)
_RENEWED = re.compile(r"\b(?:retry|try again|resets?)\b.{0,20}\b(?:in|at|after)\b", re.IGNORECASE)
_NO_NETWORK = re.compile(r"waiting for network", re.IGNORECASE)


class Spec(NamedTuple):
    """How to judge a command.

    *check*: the command to run after it; empty for none. *agent*: a key of `AGENTS`, or None.
    *fails_on*: each is a regular expression that no line of the output may match, or the path of a
    member, `$.error.code`, that must be absent, false, 0 or empty in each JSON object on a line.
    """

    check: Sequence[str] = ()
    check_seconds: float = 1800.0
    fails_on: Sequence[str] = ()
    agent: str | None = None


class Findings:
    """What was found in the output so far: how the agent's turn ended, failures, the result.

    *over*: whether the agent has ended its turn; None if it has written no event. *part*: text of
    an answer that comes in pieces. *waits_since*: monotonic time of the first "waiting for
    network".
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.failure: str | None = None
        self.last_error: str | None = None
        self.errors: list[str] = []
        self.over: bool | None = None
        self.part = ""
        self.waits_since: float | None = None
        self.result: dict[str, Any] = {}

    def fail(self, words: str) -> None:
        """Record that the command failed, whatever its exit status; the first *words* are kept."""
        self.failure = self.failure or words

    def error(self, words: object) -> str:
        """Record an error, after which the command may still succeed; the last ten are kept.

        Return *words* as they are quoted.
        """
        quoted = quote(words)
        self.errors = [*self.errors[-9:], quoted]
        return quoted

    def end(self, error: object = None) -> None:
        """Record that the agent has ended its turn, with *error* if there was one."""
        self.over = True
        if error is not None:
            self.last_error = quote(error)
            self.fail(f"the agent ended with an error: {self.last_error}")

    def answer(self, text: object) -> None:
        """Keep *text* as the summary, if there is any; the last one stays."""
        if str(text).strip():
            self.result["summary"] = _clean(str(text))[:_SUMMARY]

    def add_tokens(self, read: object, written: object) -> None:
        """Add *read* input and *written* output tokens to the result."""
        for name, count in (("tokens_in", read), ("tokens_out", written)):
            self.result[name] = self.result.get(name, 0) + int(_amount(count))

    @property
    def temporary(self) -> str | None:
        """The error for which the command failed, if a later retry may mend it; else None.

        That is the error with which the agent ended; only if there is none, nor another failure,
        one of the other errors, the latest first.
        """
        if self.last_error is not None:
            errors = [self.last_error]
        else:
            errors = [] if self.failure else self.errors
        # Of a quota that is spent, the agent's other errors (429) must not have it tried again.
        if any(_SPENT.search(words) and not _RENEWED.search(words) for words in errors):
            return None
        return next((words for words in reversed(errors) if _TEMPORARY.search(words)), None)


def _clean(text: str) -> str:
    """Return *text* with what cannot be stored replaced: NUL, and unpaired surrogates."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode()


def quote(text: object) -> str:
    """Return *text* on one line, cut to `_QUOTED` characters."""
    line = " ".join(_clean(str(text)).split())
    return line if len(line) <= _QUOTED else line[: _QUOTED - 1] + "…"


def put(data: bytes) -> None:
    """Write *data* to the log; a full disk must not end what runs."""
    log = sys.stdout.fileno()
    with contextlib.suppress(OSError):
        while data:
            try:
                data = data[os.write(log, data) :]
            except BlockingIOError:  # a child has made our pipe so
                select.select([], [log], [])


def put_line(text: str) -> None:
    """Write a line to the log."""
    put(f"{text}\n".encode("utf-8", "replace"))


def say(words: str) -> None:
    """Write a line to the log, marked as ours."""
    put_line(f"pgcoord: {words}")


# --- The output of agents: each reader takes one JSON object, yields the lines for people, and
# records failures, errors, tokens and costs in *found*.


def _objects(value: object) -> list[Event]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _amount(value: object) -> float:
    """Return *value* if it is a number that a result may have; else 0."""
    return value if isinstance(value, (int, float)) and 0 < value < 1e12 else 0


def _call(name: object, arguments: object) -> str:
    """Return a line on a call of a tool: its name, and its most telling argument."""
    words: object = arguments
    if isinstance(arguments, dict):
        keys = ("command", "file_path", "path", "pattern", "url", "description", "prompt")
        words = next((arguments[key] for key in keys if arguments.get(key)), json.dumps(arguments))
    return f"  → {name} {quote(words)}"


def read_claude(event: Event, findings: Findings) -> Iterator[str]:
    """Read an object of Claude Code or Qwen Code, `--output-format stream-json`."""
    kind = event.get("type")
    if event.get("subtype") == "api_retry":
        seconds = int(_amount(event.get("retry_delay_ms"))) // 1000
        words = f"{event.get('error_status') or event.get('error') or 'no answer'}"
        yield (
            f"  … the model gives no answer ({words}): try {event.get('attempt')} of"
            f" {event.get('max_retries')}, again in {seconds} s"
        )
    message = event.get("message")
    content = _objects(message.get("content")) if isinstance(message, dict) else []
    if kind == "assistant":
        for each in content:
            if each.get("type") == "text" and str(each.get("text", "")).strip():
                yield str(each["text"])
            elif each.get("type") == "tool_use":
                yield _call(each.get("name"), each.get("input"))
    elif kind == "user":
        for each in content:
            if each.get("type") == "tool_result" and each.get("is_error"):
                yield f"  ✗ {quote(each.get('content'))}"
    elif kind == "result":
        yield from _claude_result(event, findings)


def _claude_result(event: Event, findings: Findings) -> Iterator[str]:
    usage = event.get("usage")
    if isinstance(usage, dict):
        names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        tokens_read = sum(_amount(usage.get(name)) for name in names)
        findings.add_tokens(tokens_read, usage.get("output_tokens"))
    cost = _amount(event.get("total_cost_usd"))
    if cost:
        findings.result["cost_usd"] = cost
    answer = event.get("result")
    if str(answer).startswith("[API Error: "):  # Qwen Code takes that for an answer
        findings.end(answer)
        return
    if event.get("is_error") or str(event.get("subtype", "success")) != "success":
        words = answer or event.get("errors") or event.get("error") or event.get("subtype")
        findings.end(_message(words))
        return
    findings.end()
    findings.answer(answer or "")
    refused = [
        _call(each.get("tool_name"), each.get("tool_input"))[4:]
        for each in _objects(event.get("permission_denials"))
    ]
    if refused:
        findings.fail(f"the agent was not allowed to use {quote(', '.join(refused))}")
    if cost:
        yield f"  = {event.get('num_turns', '?')} turns, ${cost:.4f}"


def read_codex(event: Event, findings: Findings) -> Iterator[str]:
    """Read an object of Codex, `exec --json`."""
    kind, item = event.get("type"), event.get("item")
    if kind == "item.started" and isinstance(item, dict):
        if item.get("type") == "command_execution":
            yield _call("$", item.get("command"))
    elif kind == "item.completed" and isinstance(item, dict):
        yield from _codex_item(item, findings)
    elif kind == "turn.completed":
        usage = event.get("usage")
        if isinstance(usage, dict):
            findings.add_tokens(usage.get("input_tokens"), usage.get("output_tokens"))
        findings.errors = []  # it has got over them
        findings.end()
    elif kind == "turn.failed":
        findings.end(_message(event.get("error")))
    elif kind == "error":
        yield f"  ✗ {findings.error(event.get('message'))}"


def _codex_item(item: Event, findings: Findings) -> Iterator[str]:
    kind = item.get("type")
    if kind == "agent_message" and str(item.get("text", "")).strip():
        findings.answer(item["text"])
        yield str(item["text"])
    elif kind == "command_execution" and item.get("status") == "declined":
        findings.fail(f"the agent was not allowed to use $ {quote(item.get('command'))}")
        yield f"  ✗ declined: {quote(item.get('command'))}"
    elif kind == "command_execution" and item.get("exit_code"):
        yield f"  ✗ status {item['exit_code']}: {quote(item.get('aggregated_output'))}"
    elif kind == "file_change":
        for each in _objects(item.get("changes")):
            yield f"  → {each.get('kind')} {quote(each.get('path'))}"
    elif kind == "mcp_tool_call":
        yield _call(item.get("tool"), item.get("arguments"))
    elif kind == "error":
        yield f"  ✗ {findings.error(item.get('message'))}"


def read_gemini(event: Event, findings: Findings) -> Iterator[str]:
    """Read an object of Gemini CLI, `--output-format stream-json`."""
    kind = event.get("type")
    if kind == "message":
        if event.get("role") == "assistant":  # a piece of the answer, cut anywhere
            findings.part += str(event.get("content", ""))
        return
    yield from _whole_answer(findings)
    if kind == "tool_use":
        yield _call(event.get("tool_name"), event.get("parameters"))
    elif kind == "tool_result" and event.get("status") == "error":
        words = quote(_message(event.get("error")) or event.get("output"))
        # Its policy denied the tool without asking. A shell that it may not use is "not found".
        if "denied" in words or 'Tool "run_shell_command" not found' in words:
            findings.fail(f"the agent was not allowed to use a tool: {words}")
        yield f"  ✗ {words}"
    elif kind == "error":
        yield f"  ✗ {findings.error(event.get('message'))}"
    elif kind == "result":
        stats = event.get("stats")
        if isinstance(stats, dict):
            findings.add_tokens(stats.get("input_tokens"), stats.get("output_tokens"))
        findings.end(None if event.get("status") == "success" else _message(event.get("error")))


def _whole_answer(findings: Findings) -> Iterator[str]:
    """Yield the answer whose pieces have come, if there is one."""
    text, findings.part = findings.part.strip(), ""
    if text:
        findings.answer(text)
        yield text


def read_copilot(event: Event, findings: Findings) -> Iterator[str]:
    """Read an object of GitHub Copilot CLI, `--output-format json`."""
    kind, data = event.get("type"), event.get("data")
    data = data if isinstance(data, dict) else {}
    if kind == "assistant.message" and str(data.get("content", "")).strip():
        findings.answer(data["content"])
        yield str(data["content"])
    elif kind == "tool.execution_start":
        yield _call(data.get("toolName"), data.get("arguments"))
    elif kind == "tool.execution_complete" and not data.get("success"):
        error = data.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        if code in ("denied", "rejected"):
            findings.fail(f"the agent was not allowed to use a tool: {quote(_message(error))}")
        yield f"  ✗ {quote(_message(error))}"
    elif kind == "model.call_failure":
        yield f"  … the model gives no answer ({data.get('statusCode') or 'no connection'})"
    elif kind == "session.error":
        findings.end(data.get("message"))
    elif kind == "result":
        findings.end()


def read_opencode(event: Event, findings: Findings) -> Iterator[str]:
    """Read an object of OpenCode, `run --format json`."""
    kind, part = event.get("type"), event.get("part")
    part = part if isinstance(part, dict) else {}
    if kind == "text" and str(part.get("text", "")).strip():
        findings.answer(part["text"])
        yield str(part["text"])
    elif kind == "tool_use":
        state = part.get("state")
        state = state if isinstance(state, dict) else {}
        yield _call(part.get("tool"), state.get("input"))
        if state.get("status") == "error":
            words = quote(state.get("error"))
            if "rejected permission" in words or "prevents you from using" in words:
                findings.fail(f"the agent was not allowed to use {part.get('tool')}: {words}")
            yield f"  ✗ {words}"
        elif part.get("tool") == "invalid" and isinstance(state.get("input"), dict):
            # One of its tools that its configuration denies wholly is called unavailable.
            arguments = state["input"]
            if arguments.get("tool") in ("bash", "edit", "write", "webfetch"):
                findings.fail(f"the agent was not allowed to use {arguments['tool']}")
            yield f"  ✗ {quote(arguments.get('error'))}"
    elif kind == "step_finish":
        tokens = part.get("tokens")
        if isinstance(tokens, dict):
            findings.add_tokens(tokens.get("input"), tokens.get("output"))
        cost = _amount(part.get("cost"))
        findings.result["cost_usd"] = round(findings.result.get("cost_usd", 0) + cost, 6)
        findings.over = part.get("reason") != "tool-calls"
    elif kind == "error":
        findings.end(_message(event.get("error")))


def _message(error: object) -> object:
    """Return the message of an agent's error: the error itself, or its nested member."""
    if isinstance(error, dict):
        data = error.get("data")
        return error.get("message") or (_message(data) if data else error.get("name") or error)
    return error or "it does not say which"


class Agent(NamedTuple):
    """An agent program, run without a person; its stdin is the prompt.

    *environment*: names of the coordinator's variables to pass on, if they are set. *read*: the
    reader of its output. *later_seconds*: the first wait when its model gives no answer; more for
    those that give up within a minute themselves. *refusal*: a regular expression that a line of
    its stderr matches after a refused tool, if its stdout does not show one; group 1 is the tool.
    """

    command: Sequence[str]
    environment: Sequence[str]
    read: Reader
    later_seconds: float = 30
    refusal: str | None = None


AGENTS: dict[str, Agent] = {
    "claude": Agent(
        # It may edit files without a question; other permissions are refused, as nobody can answer.
        "claude --print --output-format stream-json --verbose"
        " --permission-mode acceptEdits".split(),
        "ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN ANTHROPIC_BASE_URL CLAUDE_CODE_OAUTH_TOKEN"
        " CLAUDE_CONFIG_DIR".split(),
        read_claude,
        later_seconds=60,
    ),
    "codex": Agent(
        # It may write only below its current folder, so it cannot commit in a worktree.
        "codex exec --json --sandbox workspace-write -".split(),
        "CODEX_API_KEY OPENAI_API_KEY CODEX_HOME".split(),
        read_codex,
        later_seconds=60,
        # Of a command that its rules forbid there is no event.
        refusal=r"""codex_core::tools::router: error=.*Rejected\(\\?"(.*?)\\?"\)""",
    ),
    "gemini": Agent(
        "gemini --output-format stream-json --approval-mode auto_edit --skip-trust".split(),
        "GEMINI_API_KEY GOOGLE_API_KEY GOOGLE_GEMINI_BASE_URL GOOGLE_CLOUD_PROJECT"
        " GOOGLE_GENAI_USE_VERTEXAI GEMINI_DEFAULT_AUTH_TYPE".split(),
        read_gemini,
    ),
    "copilot": Agent(
        # Without a person it runs with all tools allowed, or not at all. Its token alone: GH_TOKEN
        # may be that of the coordinator.
        "copilot --output-format json --allow-all-tools --no-auto-update".split(),
        "COPILOT_GITHUB_TOKEN COPILOT_MODEL COPILOT_OFFLINE COPILOT_PROVIDER_BASE_URL"
        " COPILOT_PROVIDER_TYPE COPILOT_PROVIDER_API_KEY".split(),
        read_copilot,
        later_seconds=60,
    ),
    "opencode": Agent(
        "opencode run --format json".split(),
        "ANTHROPIC_API_KEY ANTHROPIC_BASE_URL OPENAI_API_KEY OPENROUTER_API_KEY"
        " OPENCODE_CONFIG".split(),
        read_opencode,
    ),
    "qwen": Agent(
        "qwen --output-format stream-json --approval-mode auto-edit".split(),
        "OPENAI_API_KEY OPENAI_BASE_URL OPENAI_MODEL DASHSCOPE_API_KEY".split(),
        read_claude,
    ),
}


# --- Running and judging


class _Lines:
    """A pipe of the command, read line by line."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.pipe = pipe
        self._kept = b""
        os.set_blocking(pipe.fileno(), False)

    def read(self) -> list[bytes] | None:
        """Return the complete lines available now, without blocking; None at the end."""
        try:
            data = os.read(self.pipe.fileno(), 65536)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self._kept = (self._kept + data).split(b"\n")
        if len(self._kept) > _LONGEST:
            lines, self._kept = [*lines, self._kept], b""
        return lines

    def rest(self) -> list[bytes]:
        """Return the incomplete last line, if there is one."""
        unfinished, self._kept = self._kept, b""
        return [unfinished] if unfinished else []


class Judge:
    """Runs and judges the command of one phase."""

    def __init__(self, spec: Spec) -> None:
        """Judge by *spec*."""
        self.spec = spec
        self.findings = Findings()
        self._has_output = False
        self._is_ending = False
        self._check: subprocess.Popen[bytes] | None = None
        self._read = AGENTS[spec.agent].read if spec.agent else None
        fails_on = [each for each in spec.fails_on if not each.startswith("$.")]
        self._patterns = [re.compile(each) for each in fails_on]
        self._members = [each[2:].split(".") for each in spec.fails_on if each.startswith("$.")]

    def run(self, command: list[str]) -> int:
        """Run the command, then the check; return the exit status, and log why it is not 0.

        Blocks until both have ended. Adds tokens, costs and summary to the result file.
        """
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(each, self._end)
        status = self._run_command(command)
        if self.spec.agent and not status and not self.findings.over:
            self._doubt()
        failure = self.findings.failure = self.findings.failure or self._reported_failure()
        fails = bool(status or failure) and not self._is_ending
        temporary = self.findings.temporary if self.spec.agent and fails else None
        self._keep_result(f"try again later: {temporary}" if temporary else None)
        if self._is_ending:
            return status or _TERMINATED
        if temporary:
            say(f"try again later: {temporary}")
            return TRY_LATER
        if fails:
            if failure:
                say(failure)
            return status or 1
        if (_result() or {}).get("status") == "later":
            return TRY_LATER
        return self._run_check() if self.spec.check else 0

    def _doubt(self) -> None:
        """Fail an agent whose exit status says success, and whose output does not."""
        if self.findings.over is False:
            self.findings.fail("the agent has exited in the middle of its turn")
        elif not self._has_output:
            self.findings.fail("the agent has exited without a word")

    def _run_command(self, command: list[str]) -> int:
        listens = bool(self._read or self._patterns or self._members)
        with contextlib.ExitStack() as files:
            # Any other command has our standard input, as it has without a judge.
            prompt = None
            if self.spec.agent:
                path = os.environ.get("PGCOORD_PROMPT_FILE") or os.devnull
                prompt = files.enter_context(open(path, "rb"))
            try:
                process = subprocess.Popen(
                    command,
                    stdin=prompt,
                    stdout=subprocess.PIPE if listens else None,
                    stderr=subprocess.PIPE if listens else None,
                )
            except OSError as error:
                say(f"cannot start {command[0]}: {error.strerror or error}")
                return 127
        if self._is_ending:  # the signal came while it was being started
            process.terminate()
        if listens:
            self._listen(process)
        status = process.wait()
        return 128 - status if status < 0 else status

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Read the output until the command ends, even if other processes hold its pipes open."""
        assert process.stdout
        assert process.stderr
        ended, end = os.pipe()

        def close_at_end() -> None:
            process.wait()
            os.close(end)

        threading.Thread(target=close_at_end, daemon=True).start()
        is_error = {_Lines(process.stdout): False, _Lines(process.stderr): True}
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for lines in is_error:
                selector.register(lines.pipe, selectors.EVENT_READ, lines)
            over: float | None = None
            while selector.get_map():
                ready = selector.select(5.0 if over is None else _DRAIN)
                # The pipe has all output of the command by its end; others may write for ever.
                if over is not None and (not ready or time.monotonic() > over):
                    break
                for key, _ in ready:
                    lines = key.data
                    new = lines.read() if lines else None
                    for line in new or ():
                        self._take(line, is_error[lines])
                    if new is None:
                        selector.unregister(key.fileobj)
                    if lines is None:
                        over = time.monotonic() + _LONGEST_DRAIN
                self._end_waiting_agent(process)
        for lines, error in is_error.items():
            for line in lines.rest():
                self._take(line, error)
        for each in _whole_answer(self.findings):
            put_line(each)

    def _end_waiting_agent(self, process: subprocess.Popen[bytes]) -> None:
        since = self.findings.waits_since
        if since is not None and time.monotonic() - since > _NETWORK_TIMEOUT:
            self.findings.end("waiting for network, and does not give up")
            process.terminate()
            self.findings.waits_since = None

    def _take(self, line: bytes, is_error: bool) -> None:
        """Judge a line of the output, and write it into the log."""
        text = _ESCAPE.sub("", line.decode("utf-8", "replace"))
        event = _object(text)
        self._has_output = self._has_output or bool(text.strip())
        if is_error and self.spec.agent and text.strip():
            self.findings.error(quote(text))
            refusal = AGENTS[self.spec.agent].refusal
            if refusal and (refused := re.search(refusal, text)):
                self.findings.fail(f"the agent was not allowed to use a tool: {quote(refused[1])}")
        if self.spec.agent and text.strip():
            waits = _NO_NETWORK.search(text) is not None
            since = self.findings.waits_since
            self.findings.waits_since = (since or time.monotonic()) if waits else None
        if event is not None and self._read and not is_error:
            self.findings.over = self.findings.over or False
            for each in self._read(event, self.findings):
                put_line(each)
        else:
            put(line + b"\n")
        for pattern in self._patterns:
            if pattern.search(text):
                self.findings.fail(f"its output matches {pattern.pattern}: {quote(text)}")
        for path in self._members if event is not None else ():
            value: object = event
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value:
                self.findings.fail(f"its output has $.{'.'.join(path)}: {quote(json.dumps(value))}")

    def _run_check(self) -> int:
        check, seconds = self.spec.check, self.spec.check_seconds
        say(f"check: {' '.join(check)}")
        try:
            # A group of its own, so that all of it can be ended. (Python 3.8 has no process_group.)
            self._check = subprocess.Popen(
                check,
                stdin=subprocess.DEVNULL,
                preexec_fn=lambda: os.setpgid(0, 0),
            )
        except OSError as error:
            say(f"cannot start the check {check[0]}: {error.strerror or error}")
            return 127
        if self._is_ending:  # the signal came while it was being started
            self._signal_check(signal.SIGTERM)
        try:
            status = self._check.wait(seconds)
        except subprocess.TimeoutExpired:
            self._signal_check(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._check.wait(_GRACE)
            self._signal_check(signal.SIGKILL)
            self._check.wait()
            say(f"the check did not end within {seconds:g} s")
            return CHECK_TOOK_TOO_LONG
        if status:
            status = 128 - status if status < 0 else status
            say(f"the check failed with status {status}")
        return status

    def _signal_check(self, number: int) -> None:
        if self._check:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._check.pid, number)

    def _end(self, number: int, frame: object) -> None:
        """Handle a signal to end. Its sender signals the command as well, but not the check."""
        self._is_ending = True
        self._signal_check(signal.SIGTERM)

    def _reported_failure(self) -> str | None:
        """Return why the command failed, if its result file has the status "failed"."""
        result = _result()
        if result and result.get("status") == "failed":
            reason = result.get("error") or result.get("error_message") or "no reason"
            return f"it reports that it failed: {quote(reason)}"
        return None

    def _keep_result(self, later: str | None) -> None:
        """Add the findings to the result file; members that the command wrote take precedence.

        *later*: why the phase is to be tried later, whatever the command wrote; None: it is not.
        The file is replaced as a whole, so that a kill, or another writer, leaves no half of it.
        """
        path, result = os.environ.get("PGCOORD_RESULT_FILE"), _result()
        if not path or not (self.findings.result or later) or (result is None and not later):
            return
        outcome = {"status": "later", "error": later} if later else {}
        costs = {name: value for name, value in self.findings.result.items() if name != "summary"}
        for each in (
            {**self.findings.result, **(result or {}), **outcome},
            {**costs, **(result or {}), **outcome},
            {**costs, **outcome} if later else None,  # else that of the command stays as it is
        ):
            data = json.dumps(each, ensure_ascii=False).encode("utf-8", "replace")
            if each is None or len(data) <= _MOST_RESULT:
                break
        if each is None:
            return
        beside = f"{path}.{os.getpid()}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(beside, flags, 0o600), "wb") as file:
                file.write(data)
            os.replace(beside, path)
        except OSError as error:
            say(f"the result cannot be written: {error.strerror or error}")
            with contextlib.suppress(OSError):
                os.unlink(beside)


def _result() -> dict[str, Any] | None:
    """Return the result file's object, {} if there is none; None if it cannot be read as one."""
    path = os.environ.get("PGCOORD_RESULT_FILE")
    try:
        if not path or not os.path.lexists(path):
            return {}
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = json.loads(file.read(1_000_000) or b"{}")
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _object(text: str) -> Event | None:
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def main() -> None:
    """Parse the command line, run, and exit with the status of the phase."""
    sys.exit(Judge(Spec(**json.loads(sys.argv[1]))).run(sys.argv[2:]))


if __name__ == "__main__":
    main()
