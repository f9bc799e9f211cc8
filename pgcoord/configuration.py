"""pgcoord.toml: which workflows this coordinator may run, and how.

The command line reads it at the start, and on SIGHUP. An unknown key is an error that names it: a
misspelt `timeout` must not become a job without one.
"""

import difflib
import ipaddress
import os.path
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pgcoord import results
from pgcoord.duration import parse_duration
from pgcoord.errors import InvalidConfiguration
from pgcoord.judge import AGENTS, Agent
from pgcoord.ownership import remedy, trusted_owners, why_not_ours
from pgcoord.runs import listing

NAME = "pgcoord.toml"

PLACEHOLDERS = (
    "queue_id",
    "feature_id",
    "phase_number",
    "attempt",
    "adw_id",
    "issue_number",
    "workflow_type",
    "title",
    "prompt_file",
    "prompt",
)

# The words for a placeholder in errors, where they differ from its name.
_NOUNS = {"issue_number": "issue"}

# A doubled brace, a placeholder, or a brace that is neither.
_BRACES = re.compile(r"(\{\{|\}\})|\{([^{}]*)\}|[{}]")

# The placeholders of `retry_prompt`.
RETRY_PLACEHOLDERS = ("error", "prompt")

# Far below the maximum of the database's attempt counter, an integer.
_MOST_ATTEMPTS = 1_000_000

_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9}

# Keys that need `workspace = "worktree"`, in the order of Worktree's fields.
_OF_WORKTREES = ("base", "worktrees", "on_conflict", "push")

_Reader = Callable[[object], Any]


# The pool, and the launcher, of this machine.
LOCAL = "local"

# The same pattern as that of the constraint pool_has_name.
_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

_MOST_SLOTS = 1_000

# The same pattern as in pgcoord_private.guard_schedule.
_SCHEDULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Pool:
    """A named set of slots with one launcher, `[pool.NAME]`.

    *slots*: None, for `local` only, leaves the number in the database as it is. *settings*: the
    launcher's keys, as JSON values; they are stored in the database, so they hold no secrets.
    """

    name: str
    launcher: str = LOCAL
    slots: int | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A command that must exit with 0 after that of a phase, within *timeout*, `[check.NAME]`."""

    command: tuple[str, ...]
    timeout: timedelta = timedelta(minutes=30)


@dataclass(frozen=True)
class Worktree:
    """The git worktree of each phase of a workflow (worktree.py), `workspace = "worktree"`.

    *base*: the branch that phases without prerequisites start from (None: HEAD). *folder*: where
    worktrees are created. *on_conflict*: the name of the workflow that is run to resolve a merge
    conflict. *push*: the remote to which the feature's branch is pushed (None: not pushed).
    """

    base: str | None = None
    folder: Path | None = None
    on_conflict: str | None = None
    push: str | None = None


@dataclass(frozen=True)
class Workflow:
    """A named command, `[workflow.NAME]`, and how its attempts are run.

    *environment*: names of variables passed on from the coordinator. *variables*: {name: value}; a
    phase may override those that *phase_environment* names. *check* runs after the command.
    *fails_on*: patterns whose occurrence in the output fails the attempt (judge.py). *agent*: a key
    of `judge.AGENTS`, whose JSON output is understood. *retry_prompt*: the prompt of an attempt
    after a failed one, with {error} and {prompt}. *later_delay*: the first wait of an attempt that
    is to be tried later; *max_later*: how often in a row (None: always). *quiet*: after so long
    without output the attempt is reported as stuck and, with *quiet_ends*, ended. *max_cost_usd*:
    the most that the phases of this workflow may cost in one feature.
    """

    name: str
    command: tuple[str, ...]
    directory: Path
    environment: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    phase_environment: tuple[str, ...] = ()
    timeout: timedelta | None = None
    queue_timeout: timedelta | None = None
    linger: timedelta = timedelta(seconds=30)
    max_attempts: int = 1
    retry_delay: timedelta = timedelta(seconds=10)
    retry_lost: bool = False
    reports: bool = False
    needs_prompt: bool = False
    user: str | None = None
    pool: str = LOCAL
    default: bool = False
    check: Check | None = None
    fails_on: tuple[str, ...] = ()
    agent: str | None = None
    retry_prompt: str | None = None
    later_delay: timedelta = timedelta(seconds=30)
    max_later: int | None = None
    quiet: timedelta | None = None
    quiet_ends: bool = False
    max_cost_usd: float | None = None
    worktree: Worktree | None = None

    def lets_phases_set(self, variable: str) -> bool:
        """Whether the environment of a phase may set *variable*."""
        return variable in self.phase_environment and not variable.startswith("PGCOORD_")

    def prompt_after(self, error: str, prompt: str) -> str:
        """Return the prompt of the next attempt, after one at *prompt* failed with *error*."""
        values = {"error": error, "prompt": prompt}
        asked = self.retry_prompt or "{prompt}"
        return _BRACES.sub(lambda match: values[match[2]] if match[2] else match[0][0], asked)

    def arguments(self, values: Mapping[str, str | None]) -> list[str]:
        """Return `command` with its placeholders filled from *values*, {placeholder: value}.

        A value stays inside its argument, whatever it contains, and placeholders in it are not
        filled. Raises `InvalidConfiguration` when the value of a used placeholder is None.
        """

        def fill(match: re.Match[str]) -> str:
            name = match[2]
            if name is None:
                return match[0][0]
            value = values.get(name)
            if value is None and results.NAME.fullmatch(name):
                raise InvalidConfiguration(f"{{{name}}}: {results.missing(name)}")
            if value is None:
                noun = _NOUNS.get(name, name.replace("_", " "))
                raise InvalidConfiguration(f"{{{name}}}: the phase has no {noun}")
            return value

        return [_BRACES.sub(fill, argument) for argument in self.command]


NOTIFY_EVENTS = ("failed", "finished", "gate", "stuck")


@dataclass(frozen=True)
class Notify:
    """Where *events* are sent, `[notify.NAME]`: a POST to *url*, or a run of *command*.

    *events*: some of `NOTIFY_EVENTS`. *secret*: the name of the environment variable whose value
    signs the POST.
    """

    name: str
    events: tuple[str, ...]
    url: str | None = None
    secret: str | None = None
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """A plan that is queued at certain times, again and again, `[schedule.NAME]`.

    *cron*: when, as in a crontab. *timezone*: its zone (None: that of the database). *overlap*,
    *missed*: what happens while the last run goes on, and with times at which nothing ran.
    *parameters*: the values of the plan's `{param.NAME}`. *feature*: what the plan says
    (`plan.read_schedules`; None: not read yet).
    """

    name: str
    plan: Path
    cron: str
    timezone: str | None = None
    overlap: str = "skip"
    missed: str = "run"
    parameters: Mapping[str, str] = field(default_factory=dict)
    feature: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Server:
    """Where and how `pgcoord serve` is reached, `[server]`.

    *public_url*: the URL for processes and browsers on other machines. *webhook_secrets*: names of
    environment variables, each with a secret that may sign reports of any phase.
    *trusted_proxies*: addresses or networks whose X-Forwarded-… headers are believed. *tokens*:
    names of environment variables, each with the token of a program; the variable's name is the
    actor in the history.
    """

    host: str = "127.0.0.1"
    port: int = 8002
    public_url: str | None = None
    webhook_secrets: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planner:
    """How features are planned, `[planner]`.

    *directory*: the repository whose files are read (None: the current folder). *command*: the
    planner to run; empty: the built-in one. *max_answer*: the most bytes of the command's output.
    *template*: a file for the prompts of phases (None: the built-in one). *max_phases*: the most
    phases that a feature is split into. *max_prompt*: tokens of a prompt above which there is a
    warning.
    """

    directory: Path | None = None
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    timeout: timedelta = timedelta(minutes=10)
    max_answer: int = 1_000_000
    template: Path | None = None
    max_phases: int = 12
    max_prompt: int = 4_000


@dataclass(frozen=True)
class GitHub:
    """The repository in which each phase gets an issue, `[github]`.

    Without an app (*app_id*, *installation_id*, *private_key_file*), a token from the environment
    is used. Unless *required*, phases start without an issue after *wait*. *webhook_secret*: the
    name of an environment variable. *on_…*: the action on a phase for that event on GitHub.
    """

    repository: str
    api_url: str = "https://api.github.com"
    app_id: str | None = None
    installation_id: str | None = None
    private_key_file: Path | None = None
    required: bool = True
    wait: timedelta = timedelta(minutes=10)
    webhook_secret: str | None = None
    on_issue_closed: str = "nothing"
    on_issue_reopened: str = "nothing"
    on_pull_request_merged: str = "nothing"

    @property
    def page(self) -> str:
        """The URL of the repository's page."""
        site = self.api_url.removesuffix("/api/v3").replace("://api.github.com", "://github.com")
        return f"{site}/{self.repository}"


# Variables with secrets of the coordinator, independent of the configuration.
_SECRETS = ("PGCOORD_TOKEN", "PGCOORD_READ_TOKEN", "GITHUB_TOKEN", "GH_TOKEN", "DATABASE_URL")


@dataclass(frozen=True)
class Configuration:
    """The contents of pgcoord.toml; *path* is None if there is no such file.

    *log_max_size*: bytes of an attempt's log. *log_retention*: how long runs are kept (None: for
    ever). *workflows*, *checks*, *pools*, *schedules*: by name; without schedules (None), those of
    the database stay as they are.
    """

    path: Path | None
    workflows: Mapping[str, Workflow]
    log_folder: Path | None
    log_max_size: int = 100_000_000
    log_retention: timedelta | None = None
    server: Server = Server()
    planner: Planner = Planner()
    github: GitHub | None = None
    checks: Mapping[str, Check] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=lambda: {LOCAL: Pool(LOCAL)})
    notify: tuple[Notify, ...] = ()
    schedules: Mapping[str, Schedule] | None = field(default_factory=dict)

    @property
    def secret_variables(self) -> tuple[str, ...]:
        """The names of environment variables whose secrets only the coordinator needs."""
        of_github = (self.github.webhook_secret,) if self.github else ()
        of_notify = (each.secret for each in self.notify)
        more = filter(None, (*of_github, *of_notify))
        return (*_SECRETS, *self.server.webhook_secrets, *self.server.tokens, *more)

    @property
    def default_workflow(self) -> Workflow | None:
        """The workflow of phases that name none; None if there is no default."""
        return next((each for each in self.workflows.values() if each.default), None)


def find_configuration(start: Path, environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the nearest pgcoord.toml, in *start* or a folder above it; None if there is none.

    Raises `InvalidConfiguration` when another user owns it or can change it. *environment*: names
    the user behind sudo, who is trusted too.
    """
    start = start.resolve()
    candidates = (folder / NAME for folder in (start, *start.parents))
    found = next((path for path in candidates if os.path.isfile(path)), None)
    if found and (reason := why_not_ours(found, trusted_owners(environment or {}))):
        raise InvalidConfiguration(
            f"{reason}, so it is not used",
            hint=f"To use it all the same, name it: --config {found}. To make it yours:"
            f" {remedy(found)}",
        )
    return found


def read_configuration(path: Path) -> Configuration:
    """Read the pgcoord.toml at *path*.

    Relative folders in it are relative to its folder. Raises `InvalidConfiguration` with every
    fault, one line each: `file: key: what is expected`.
    """
    path = path.absolute()
    return _read(_parse(path), path, [])


class _Keys(list[str]):
    """A list of problems, to be ignored, on which `_read_table` also records each table's keys."""

    def __init__(self) -> None:
        self.known: dict[str, Mapping[str, _Reader]] = {}


def known_keys() -> Mapping[str, Mapping[str, Callable[[object], Any]]]:
    """Return {table: {key: its reader}} for all of pgcoord.toml.

    A table is named as `log`, `workflow.NAME` or, for the keys of a launcher, `pool.slurm`; the top
    level is "". A reader takes the TOML value, and raises `ValueError` with what it expects.
    """
    found = _Keys()
    path = Path("/", NAME)
    pools = {launcher: {"launcher": launcher} for launcher in _launchers(lambda value: path)}
    with suppress(InvalidConfiguration):
        _read({}, path, found)
    for section in found.known[""]:
        tables = pools if section == "pool" else {"NAME": {}}
        with suppress(InvalidConfiguration):
            _read({section: tables}, path, found)
    return found.known


_SECTIONS = (
    *("workflow", "check", "pool", "notify", "schedule"),
    *("server", "github", "planner", "log"),
)


def _read(document: dict[str, Any], path: Path, problems: list[str]) -> Configuration:
    folder = partial(_folder, path.parent)
    sections = _read_table(document, dict.fromkeys(_SECTIONS, _table), key="", problems=problems)
    checks = _read_checks(sections.get("check", {}), problems)
    workflows = _read_workflows(sections.get("workflow", {}), folder, checks, problems)
    problems += _conflict_problems(workflows)
    pools = _read_pools(sections.get("pool", {}), folder, problems)
    problems += [
        f"workflow.{_bare(name)}.pool: there is no [pool.{_bare(each.pool)}]"
        + did_you_mean(each.pool, pools)
        for name, each in workflows.items()
        if each.pool not in pools
    ]
    problems += _launcher_problems(workflows, pools)
    notify = _read_notify(sections.get("notify", {}), problems)
    schedules = _read_schedules(sections.get("schedule", {}), folder, problems)
    server = _read_server(sections.get("server", {}), problems)
    planner = _read_planner(sections.get("planner", {}), folder, problems)
    github = _read_github(sections.get("github"), folder, problems)
    readers: dict[str, _Reader] = {"folder": folder, "max_size": _size, "retention": parse_duration}
    log = _read_table(sections.get("log", {}), readers, key="log", problems=problems)
    if problems:
        raise InvalidConfiguration("\n".join(f"{path}: {problem}" for problem in problems))
    limits = {f"log_{key}": log[key] for key in ("max_size", "retention") if key in log}
    return Configuration(
        path,
        workflows,
        log.get("folder"),
        server=server,
        github=github,
        planner=planner,
        checks=checks,
        pools=pools,
        notify=notify,
        schedules=schedules,
        **limits,
    )


def differences(before: Configuration, after: Configuration) -> Iterator[tuple[str, str]]:
    """Yield a pair for each difference: the name of the `Configuration` field, and a phrase.

    Of workflows, checks, pools and schedules there is a pair for each one added, changed or
    removed.
    """
    for each in fields(Configuration):
        was, now = getattr(before, each.name), getattr(after, each.name)
        if was == now or each.name == "path":
            continue
        if not (isinstance(was, Mapping) and isinstance(now, Mapping)):
            yield each.name, f"{each.name.replace('_', ' ')} changed"
            continue
        noun = each.name.removesuffix("s")
        for name in dict.fromkeys((*was, *now)):
            if was.get(name) != now.get(name):
                how = "added" if name not in was else "changed" if name in now else "removed"
                yield each.name, f"{noun} {name} {how}"


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return the end of an error about an unknown *word*.

    It names the nearest of *known*, or else all of them; "" if there are none.
    """
    spellings = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), spellings, n=1)
    if near:
        return f"; did you mean {spellings[near[0]]}?"
    return f"; expected one of {', '.join(known)}" if known else ""


def _parse(path: Path) -> dict[str, Any]:
    try:
        # Windows editors begin a file with a byte order mark, which TOML does not know.
        text = path.read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise InvalidConfiguration(f"{path}: {problem}") from error
    except OSError as error:
        raise InvalidConfiguration(f"{path}: {(error.strerror or str(error)).lower()}") from error
    try:
        return tomllib.loads(text)
    except ValueError as error:  # a number of thousands of digits is not a TOMLDecodeError
        line = _line_of(str(error), text)
        raise InvalidConfiguration(f"{path}:{line}: not TOML: {error}") from error


def _line_of(message: str, text: str) -> int:
    """Return the line of a TOML error; before Python 3.14, only its message has it."""
    match = re.search(r"at line (\d+)", message)
    return int(match[1]) if match else max(1, len(text.splitlines()))


def _read_checks(tables: Mapping[str, object], problems: list[str]) -> dict[str, Check]:
    """Read every `[check.NAME]`."""
    checks: dict[str, Check] = {}
    for name, table in tables.items():
        key = f"check.{_bare(name)}"
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table [check.NAME], not {table!r:.60}")
            continue
        if "command" not in table:
            problems.append(f'{key}.command: missing; expected a list such as ["make", "test"]')
        readers: dict[str, _Reader] = {"command": _program, "timeout": parse_duration}
        values = _read_table(table, readers, key=key, problems=problems)
        checks[name] = Check(**{"command": (), **values})
    return checks


def _read_workflows(
    tables: Mapping[str, object],
    folder: _Reader,
    checks: Mapping[str, Check],
    problems: list[str],
) -> dict[str, Workflow]:
    """Read every `[workflow.NAME]`; the result is valid only if no problem was added."""
    workflows: dict[str, Workflow] = {}
    first = None
    for name, table in tables.items():
        key = f"workflow.{_bare(name)}"
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table [workflow.NAME], not {table!r:.60}")
            continue
        if not name or name != name.strip() or not name.isprintable():
            problems.append(f"{key}: expected a name of visible characters, no space around it")
        workflow = _read_workflow(
            name, table, key=key, folder=folder, checks=checks, problems=problems
        )
        if workflow.default and first is not None:
            problems.append(f"{key}.default: {first} is the default already")
        elif workflow.default:
            first = key
        workflows[name] = workflow
    if len(workflows) == 1:  # the only one is the default, unless it sets `default` itself
        [(name, only)] = workflows.items()
        table = tables[name]
        says = isinstance(table, dict) and "default" in table
        workflows[name] = only if says else replace(only, default=True)
    return workflows


def _workflow_readers(folder: _Reader, checks: Mapping[str, Check]) -> dict[str, _Reader]:
    return {
        "command": _command,
        "directory": folder,
        "environment": _variables,
        "phase_environment": _environment,
        "timeout": parse_duration,
        "queue_timeout": parse_duration,
        "linger": partial(parse_duration, zero=True),
        "max_attempts": _whole(1, _MOST_ATTEMPTS),
        "retry_delay": partial(parse_duration, zero=True),
        "retry_lost": _boolean,
        "reports": _boolean,
        "needs_prompt": _boolean,
        "user": _user,
        "pool": _pool_name,
        "default": _boolean,
        "agent": partial(_choice, tuple(AGENTS)),
        "arguments": _arguments,
        "check": partial(_check, checks),
        "check_timeout": parse_duration,
        "fails_on": _failures,
        "retry_prompt": _retry_prompt,
        "later_delay": parse_duration,
        "max_later": _whole(0, _MOST_ATTEMPTS),
        "quiet": parse_duration,
        "quiet_ends": _boolean,
        "max_cost_usd": _amount,
        "workspace": partial(_choice, ("worktree",)),
        "base": _git_name,
        "worktrees": folder,
        "on_conflict": _workflow_name,
        "push": _git_name,
    }


def _read_workflow(
    name: str,
    table: Mapping[str, object],
    *,
    key: str,
    folder: _Reader,
    checks: Mapping[str, Check],
    problems: list[str],
) -> Workflow:
    problems += _workflow_problems(table, key)
    values = _read_table(table, _workflow_readers(folder, checks), key=key, problems=problems)
    further, limit = values.pop("arguments", ()), values.pop("check_timeout", None)
    if limit and values.get("check"):
        values["check"] = replace(values["check"], timeout=limit)
    values["environment"], values["variables"] = values.pop("environment", ((), {}))
    if agent := AGENTS.get(values.get("agent", "")):
        values["environment"] = (*agent.environment, *values["environment"])
        values.setdefault("command", _command_of(agent, further))
        values.setdefault("later_delay", timedelta(seconds=agent.later_seconds))
    settings = [values.pop(each, None) for each in _OF_WORKTREES]
    if values.pop("workspace", None):
        values["worktree"] = Worktree(*settings)
    return Workflow(name=name, **{"command": (), "directory": folder("."), **values})


def _workflow_problems(table: Mapping[str, object], key: str) -> Iterator[str]:
    """Yield faults of keys that need or exclude another key of the same workflow."""
    if "command" not in table and "agent" not in table:
        yield f'{key}.command: missing; expected a list such as ["make", "build"]'
    if "quiet_ends" in table and "quiet" not in table:
        yield f"{key}.quiet_ends: expected quiet, too: after what time"
    if "check_timeout" in table and "check" not in table:
        yield f"{key}.check_timeout: there is no check"
    if "arguments" in table and ("agent" not in table or "command" in table):
        yield f"{key}.arguments: they follow the command of an agent, if it is not given"
    if "workspace" not in table:
        for each in _OF_WORKTREES:
            if each in table:
                yield f'{key}.{each}: there is no workspace = "worktree"'


def _command_of(agent: Agent, arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the command of *agent* with further *arguments*."""
    # A last word "-" stands for standard input: arguments go before it.
    *head, last = agent.command
    return (*head, *arguments, last) if last == "-" else (*head, last, *arguments)


def _launcher_problems(
    workflows: Mapping[str, Workflow], pools: Mapping[str, Pool]
) -> Iterator[str]:
    """Yield faults of workflows whose keys the launcher of their pool does not support."""
    for name, each in workflows.items():
        pool = pools.get(each.pool)
        key = f"workflow.{_bare(name)}"
        if pool and pool.launcher == LOCAL and each.queue_timeout:
            yield f"{key}.queue_timeout: expected a pool of an engine, where jobs wait"
        if pool and pool.launcher != LOCAL and each.user:
            yield f"{key}.user: jobs of {pool.launcher} run as its user, not as {each.user}"


def _conflict_problems(workflows: Mapping[str, Workflow]) -> Iterator[str]:
    """Yield faults of the workflows that `on_conflict` names."""
    for name, workflow in workflows.items():
        wanted = workflow.worktree.on_conflict if workflow.worktree else None
        key = f"workflow.{_bare(name)}.on_conflict"
        if wanted is None:
            continue
        if wanted not in workflows:
            yield f"{key}: there is no [workflow.{_bare(wanted)}]{did_you_mean(wanted, workflows)}"
        elif any("{prompt" in each for each in workflows[wanted].command):
            yield (
                f"{key}: the command of {wanted} may not use {{prompt}} or {{prompt_file}}, which"
                " are of the phase: what to resolve is its standard input"
            )


def _read_notify(tables: Mapping[str, object], problems: list[str]) -> tuple[Notify, ...]:
    """Read every `[notify.NAME]`."""
    found: list[Notify] = []
    for name, table in tables.items():
        key = f"notify.{_bare(name)}"
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table [notify.NAME], not {table!r:.60}")
            continue
        if "events" not in table:
            problems.append(f"{key}.events: missing; expected some of {', '.join(NOTIFY_EVENTS)}")
        if ("url" in table) == ("command" in table):
            problems.append(f"{key}: expected either url or command")
        if ("url" in table) != ("secret" in table):
            problems.append(f"{key}: expected url and secret, the variable that signs, together")
        readers: dict[str, _Reader] = {
            "events": _notify_events,
            "url": _url,
            "secret": _variable,
            "command": _program,
        }
        values = _read_table(table, readers, key=key, problems=problems)
        found.append(Notify(name, **{"events": (), **values}))
    return tuple(found)


def _read_schedules(
    tables: Mapping[str, object], folder: _Reader, problems: list[str]
) -> dict[str, Schedule]:
    """Read every `[schedule.NAME]`, but not its plan."""
    found: dict[str, Schedule] = {}
    readers: dict[str, _Reader] = {
        "plan": partial(_plan_file, folder),
        "cron": _cron,
        "timezone": _timezone,
        "overlap": partial(_choice, ("skip", "queue", "start")),
        "missed": partial(_choice, ("run", "skip")),
        "parameters": _parameters,
    }
    for name, table in tables.items():
        key = f"schedule.{_bare(name)}"
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table [schedule.NAME], not {table!r:.60}")
            continue
        if not _SCHEDULE_NAME.fullmatch(name):
            problems.append(f"{key}: expected a name of letters, digits, and . _ - between them")
        if "plan" not in table:
            problems.append(f'{key}.plan: missing; expected a file such as "nightly.md"')
        if "cron" not in table:
            problems.append(f'{key}.cron: missing; expected times such as "0 3 * * *"')
        values = _read_table(table, readers, key=key, problems=problems)
        found[name] = Schedule(name, **{"plan": Path(), "cron": "", **values})
    return found


def _plan_file(folder: _Reader, value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f'expected a file such as "nightly.md", not {value!r:.60}')
    path: Path = folder(value)
    return path


def _cron(value: object) -> str:
    from pgcoord.cron import NeverDue, due_times

    if not isinstance(value, str):
        raise ValueError(f'expected times such as "0 3 * * *", not {value!r:.60}')
    try:
        next(due_times(value, "UTC", datetime.now(UTC)))
    except NeverDue as error:
        raise ValueError(f'expected times such as "0 3 * * *": {error}') from error
    return value


def _timezone(value: object) -> str:
    expected = 'expected a time zone such as "Europe/Berlin"'
    if not isinstance(value, str) or not value:
        raise ValueError(f"{expected}, not {value!r:.60}")
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"{expected}, not {value!r:.60}: this machine does not know it") from error
    return value


def _parameters(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError(f'expected a table such as {{ mode = "full" }}, not {value!r:.60}')
    return value


def _notify_events(value: object) -> tuple[str, ...]:
    known = ", ".join(NOTIFY_EVENTS)
    events = _texts(value, f"expected a list of {known}")
    for each in events:
        if each not in NOTIFY_EVENTS:
            raise ValueError(f"expected some of {known}, not {each!r:.60}")
    if not events:
        raise ValueError(f"expected some of {known}, not an empty list")
    return events


def _read_pools(
    tables: Mapping[str, object], folder: _Reader, problems: list[str]
) -> dict[str, Pool]:
    """Read every `[pool.NAME]`; the result always has `local`."""
    pools = {LOCAL: Pool(LOCAL)}
    for name, table in tables.items():
        key = f"pool.{_bare(name)}"
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table [pool.NAME], not {table!r:.60}")
        elif not _POOL_NAME.fullmatch(name):
            problems.append(f"{key}: expected a name of letters, digits, - and _, 63 at most")
        else:
            pools[name] = _read_pool(name, table, folder, problems)
    return pools


def _read_pool(
    name: str, table: Mapping[str, object], folder: _Reader, problems: list[str]
) -> Pool:
    key = f"pool.{name}"
    of_launcher = _launchers(folder)
    launcher = table.get("launcher", LOCAL if name == LOCAL else None)
    if launcher is None:
        problems.append(f"{key}.launcher: missing; expected one of {', '.join(of_launcher)}")
    elif launcher not in of_launcher:
        problem = f"expected a launcher, not {launcher!r:.60}"
        problems.append(f"{key}.launcher: {problem}{did_you_mean(str(launcher), of_launcher)}")
    elif name == LOCAL and launcher != LOCAL:
        problems.append(f"{key}.launcher: the pool {LOCAL} is of this machine; name another one")
    if name != LOCAL and "slots" not in table:
        problems.append(f"{key}.slots: missing; expected how many may run at once, such as 40")
    if launcher == "command":
        problems += [f"{key}.{problem}" for problem in listing.problems_of(table)]
    if launcher == "kubernetes" and "template" not in table:
        problems.append(f"{key}.template: missing; expected a file with the manifest of a Job")
    if launcher == "slurm" and "folder" not in table:
        problems.append(f"{key}.folder: missing; expected a folder that all nodes share")
    readers: dict[str, _Reader] = {
        "launcher": str,
        "slots": _whole(1, _MOST_SLOTS),
        **of_launcher.get(str(launcher), {}),
    }
    if launcher not in of_launcher:  # already a fault: its other keys are unknown
        table = {name: value for name, value in table.items() if name in readers}
    values = _read_table(table, readers, key=key, problems=problems)
    launcher, slots = str(values.pop("launcher", LOCAL)), values.pop("slots", None)
    return Pool(name, launcher, slots, values)


def _launchers(folder: _Reader) -> Mapping[str, Mapping[str, _Reader]]:
    """Return {launcher: {key: its reader}}; these readers return JSON values."""

    def shared(value: object) -> str:
        return str(folder(value))

    engine: dict[str, _Reader] = {"folder": shared, "report_url": _url}
    return {
        LOCAL: {},
        "slurm": {**engine, "options": _options},
        "kubernetes": {
            "report_url": _url,
            "directory": _word,
            "template": shared,
            "kubeconfig": shared,
            "namespace": _word,
            "context": _word,
        },
        "ray": {
            "report_url": _url,
            "directory": _word,
            "address": _url,
            "resources": _resources,
        },
        "command": {
            **engine,
            **dict.fromkeys(("submit", "list", "cancel", "kill"), _command_words),
            **dict.fromkeys(("id", "jobs", "refused", "empty"), _word),
            **dict.fromkeys(("waiting", "running"), _states),
            "fields": _fields,
            "environment": _environment_list,
        },
    }


def _resources(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or not all(
        isinstance(each, int | float) and each > 0 for each in value.values()
    ):
        raise ValueError(f"expected a table such as {{ pgcoord = 1 }}, not {value!r:.60}")
    return value


def _command_words(value: object) -> list[str]:
    words = list(_texts(value, 'expected a command such as ["qdel", "{id}"]'))
    if not words:
        raise ValueError('expected a command such as ["qdel", "{id}"], not an empty list')
    return words


def _word(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a text, not {value!r:.60}")
    return value


def _states(value: object) -> list[str]:
    return list(_texts(value, 'expected a list of states such as ["PENDING"]'))


def _environment_list(value: object) -> list[str]:
    return list(_environment(value))


def _fields(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise ValueError(f'expected a table such as {{ id = "JobId" }}, not {value!r:.60}')
    return value


def _options(value: object) -> list[str]:
    return list(_texts(value, 'expected a list of options such as ["--partition=gpu"]'))


def _workflow_name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected the name of a [workflow.NAME], not {value!r:.60}")
    return value


def _git_name(value: object) -> str:
    # git would take a name with a leading "-" for an option, and ":" for a refspec.
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./@+-]*", value):
        raise ValueError(f'expected a name in git such as "main" or "origin", not {value!r:.60}')
    return value


def _pool_name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected the name of a [pool.NAME], not {value!r:.60}")
    return value


def _read_server(table: Mapping[str, object], problems: list[str]) -> Server:
    readers: dict[str, _Reader] = {
        "host": _host,
        "port": _port,
        "public_url": _url,
        "webhook_secrets": _environment,
        "trusted_proxies": _networks,
        "tokens": _environment,
    }
    return Server(**_read_table(table, readers, key="server", problems=problems))


def _read_planner(table: Mapping[str, object], folder: _Reader, problems: list[str]) -> Planner:
    readers: dict[str, _Reader] = {
        "directory": folder,
        "command": _program,
        "environment": _environment,
        "timeout": parse_duration,
        "max_answer": _size,
        "template": folder,
        "max_phases": _whole(1, 200),
        "max_prompt": _whole(1, 1_000_000),
    }
    values = _read_table(table, readers, key="planner", problems=problems)
    return Planner(**{"directory": folder("."), **values})


def _read_github(
    table: Mapping[str, object] | None, folder: _Reader, problems: list[str]
) -> GitHub | None:
    if table is None:
        return None
    readers: dict[str, _Reader] = {
        "repository": _repository,
        "api_url": _url,
        "app_id": _identifier,
        "installation_id": _identifier,
        "private_key_file": folder,
        "required": _boolean,
        "wait": partial(parse_duration, zero=True),
        "webhook_secret": _variable,
        "on_issue_closed": partial(_choice, ("nothing", "cancel", "complete")),
        "on_issue_reopened": partial(_choice, ("nothing", "retry")),
        "on_pull_request_merged": partial(_choice, ("nothing", "complete")),
    }
    if "repository" not in table:
        problems.append('github.repository: missing; expected "owner/name"')
    of_app = [key for key in ("app_id", "installation_id", "private_key_file") if key in table]
    if 0 < len(of_app) < 3:
        problems.append("github: app_id, installation_id and private_key_file come together")
    values = _read_table(table, readers, key="github", problems=problems)
    return GitHub(**{"repository": "", **values})


def _read_table(
    table: Mapping[str, object], readers: Mapping[str, _Reader], *, key: str, problems: list[str]
) -> dict[str, Any]:
    """Return {key: value} of *table*, read by *readers*; add faults to *problems*.

    *key*: the name of the table in errors.
    """
    if isinstance(problems, _Keys):
        problems.known[key] = readers
    values = {}
    for name, value in table.items():
        where = f"{key}.{_bare(name)}".removeprefix(".")
        if name not in readers:
            problems.append(f"{where}: unknown key{did_you_mean(name, readers)}")
            continue
        try:
            values[name] = readers[name](value)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    return values


def _bare(key: str) -> str:
    """Write a key as TOML does: in quotes unless it is a bare key."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a table, not {value!r:.60}")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {value!r:.60}")
    return value


def _whole(least: int, most: int) -> _Reader:
    def read(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"expected a whole number from {least} to {most}, not {value!r:.60}")
        return value

    return read


def _host(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9.:_-]+", value):
        raise ValueError(f'expected an address such as "127.0.0.1", not {value!r:.60}')
    return value


def _port(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 65535:
        raise ValueError(f"expected a port from 0 (any) to 65535, not {value!r:.60}")
    return value


def _url(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^/\s?#@]+(/[^\s?#]*)?", value):
        raise ValueError(f'expected a URL such as "https://build.example", not {value!r:.60}')
    return value.rstrip("/")


def _repository(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", value):
        raise ValueError(f'expected "owner/name", not {value!r:.60}')
    return value


def _identifier(value: object) -> str:
    if type(value) not in (int, str) or not re.fullmatch(r"[A-Za-z0-9._-]+", str(value)):
        raise ValueError(f"expected an id such as 123456, not {value!r:.60}")
    return str(value)


def _user(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*[$]?", value):
        raise ValueError(f'expected the name of a user such as "builder", not {value!r:.60}')
    return value


def _variable(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'expected the name of a variable such as "API_KEY", not {value!r:.60}')
    return _environment([value])[0]


def _networks(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f'expected a list such as ["127.0.0.1"], not {value!r:.60}')
    for each in value:
        try:
            ipaddress.ip_network(each)
        except ValueError as error:
            expected = 'expected addresses or networks such as "127.0.0.1" or "10.0.0.0/8"'
            raise ValueError(f"{expected}, not {each!r:.60}") from error
    return tuple(value)


def _choice(words: tuple[str, ...], value: object) -> str:
    if value not in words:
        raise ValueError(f"expected {' or '.join(words)}, not {value!r:.60}")
    return str(value)


def _folder(base: Path, value: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f'expected a folder such as "jobs", not {value!r:.60}')
    return base / os.path.expanduser(value)


def _size(value: object) -> int:
    match = re.fullmatch(r"([0-9]{1,6}) ?(kB|MB|GB)", value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError(f'expected a size such as "500kB", "100MB" or "1GB", not {value!r:.60}')
    return int(match[1]) * _UNITS[match[2]]


def _variables(value: object) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names of variables to pass on, and {name: value} of those to set.

    A list has names to pass on; so has a table, with the value true.
    """
    if not isinstance(value, dict):
        return _environment(value), {}
    for name, each in value.items():
        if each is not True and not isinstance(each, str):
            raise ValueError(
                f"{name}: expected a text, or true to let it through, not {each!r:.60}"
            )
        if isinstance(each, str) and "\0" in each:
            raise ValueError(f"{name}: expected a text without NUL")
    _environment(list(value))
    if ours := next((name for name in value if name.startswith("PGCOORD_")), None):
        raise ValueError(f"{ours}: that is set by pgcoord itself")
    passed = tuple(name for name, each in value.items() if each is True)
    return passed, {name: each for name, each in value.items() if isinstance(each, str)}


def _environment(value: object) -> tuple[str, ...]:
    names = _texts(value, 'expected a list of variable names such as ["API_KEY"]')
    for name in names:
        if not name or "=" in name:
            raise ValueError(f'expected names of variables such as "API_KEY", not {name!r:.60}')
    return names


def _program(value: object) -> tuple[str, ...]:
    arguments = _texts(value, 'expected a list of arguments such as ["make", "build"]')
    if not arguments or not arguments[0].strip():
        raise ValueError('expected a program and its arguments such as ["make", "build"]')
    return arguments


def _command(value: object) -> tuple[str, ...]:
    arguments = _program(value)
    problems = [problem for argument in arguments for problem in _brace_problems(argument)]
    if problems:
        raise ValueError("; ".join(problems))
    return arguments


def _arguments(value: object) -> tuple[str, ...]:
    arguments = _texts(value, 'expected a list of arguments such as ["--model", "opus"]')
    problems = [problem for argument in arguments for problem in _brace_problems(argument)]
    if problems:
        raise ValueError("; ".join(problems))
    return arguments


def _check(checks: Mapping[str, Check], value: object) -> Check:
    if isinstance(value, str):
        if value not in checks:
            raise ValueError(f"there is no [check.{_bare(value)}]{did_you_mean(value, checks)}")
        return checks[value]
    return Check(_program(value))


def _failures(value: object) -> tuple[str, ...]:
    failures = _texts(value, 'expected a list such as ["$.permission_denials", "^FATAL"]')
    for each in failures:
        try:
            re.compile(each)
        except re.error as error:
            raise ValueError(f"{each!r:.60} is not a regular expression: {error}") from error
        if not each or (each.startswith("$.") and not all(each[2:].split("."))):
            raise ValueError(f'expected a member such as "$.error.code", not {each!r:.60}')
    return failures


def _amount(value: object) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e9:  # type: ignore[operator]
        raise ValueError(f"expected US dollars such as 2.50, not {value!r:.60}")
    return float(value)  # type: ignore[arg-type]


def _retry_prompt(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'expected a text such as "It failed: {{error}}", not {value!r:.60}')
    if problems := [*_brace_problems(value, RETRY_PLACEHOLDERS)]:
        raise ValueError("; ".join(problems))
    return value


def _texts(value: object, expected: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{expected}, not {value!r:.60}")
    for text in value:
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"{expected}, with nothing but text in it, not {text!r:.60}")
    return tuple(value)


def _brace_problems(argument: str, known: Sequence[str] = PLACEHOLDERS) -> Iterator[str]:
    for match in _BRACES.finditer(argument):
        name = match[2]
        if name is None and match[1] is None:
            yield f"unbalanced {match[0]} in {argument!r:.60}; a brace itself is {match[0] * 2}"
        elif name is not None and name not in known and not results.NAME.fullmatch(name):
            yield f"unknown placeholder {{{name}}}{did_you_mean(name, known)}"
