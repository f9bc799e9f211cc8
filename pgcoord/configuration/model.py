"""What a configuration says: workflows, checks, pools, and the settings of each part."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from pgcoord.configuration import results
from pgcoord.errors import InvalidConfiguration

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
BRACES = re.compile(r"(\{\{|\}\})|\{([^{}]*)\}|[{}]")

# The placeholders of `retry_prompt`.
RETRY_PLACEHOLDERS = ("error", "prompt")

# The pool, and the launcher, of this machine.
LOCAL = "local"

# Far below the maximum of the database's attempt counter, an integer.
MOST_ATTEMPTS = 1_000_000

# The variables of our environment that every process of ours gets.
PASSED_ON = ("PATH", "HOME", "USER", "LANG", "TMPDIR")


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

    def asks_again(self, attempt: int) -> bool:
        """Whether `retry_prompt` makes the prompt of the phase's *attempt*, after a failed one."""
        return self.retry_prompt is not None and attempt > 1

    def prompt_after(self, error: str, prompt: str) -> str:
        """Return the prompt of the next attempt, after one at *prompt* failed with *error*."""
        values = {"error": error, "prompt": prompt}
        template = self.retry_prompt or "{prompt}"
        return BRACES.sub(lambda match: values[match[2]] if match[2] else match[0][0], template)

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

        return [BRACES.sub(fill, argument) for argument in self.command]


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
    *parameters*: the values of the plan's `{param.NAME}`. *feature*: the feature that the
    plan describes (`plan.read_schedules`; None: not read yet).
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
