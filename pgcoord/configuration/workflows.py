"""Read the workflows and checks of pgcoord.toml, and find keys that contradict each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from pgcoord.configuration import expect
from pgcoord.configuration.duration import parse_duration
from pgcoord.configuration.model import LOCAL, MOST_ATTEMPTS, Check, Pool, Workflow, Worktree
from pgcoord.configuration.tables import Reader, bare, read_table
from pgcoord.errors import did_you_mean
from pgcoord.judge import AGENTS, Agent

# Keys that need `workspace = "worktree"`, in the order of Worktree's fields.
_OF_WORKTREES = ("base", "worktrees", "on_conflict", "push")


def read_checks(tables: Mapping[str, object], problems: list[str]) -> dict[str, Check]:
    """Read every `[check.NAME]`."""
    checks: dict[str, Check] = {}
    for name, table in tables.items():
        key = f"check.{bare(name)}"
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table [check.NAME], not {table!r:.60}")
            continue
        if "command" not in table:
            problems.append(f'{key}.command: missing; expected a list such as ["make", "test"]')
        readers: dict[str, Reader] = {"command": expect.program, "timeout": parse_duration}
        values = read_table(table, readers, key=key, problems=problems)
        checks[name] = Check(**{"command": (), **values})
    return checks


def read_workflows(
    tables: Mapping[str, object],
    folder: Reader,
    checks: Mapping[str, Check],
    problems: list[str],
) -> dict[str, Workflow]:
    """Read every `[workflow.NAME]`; the result is valid only if no problem was added."""
    workflows: dict[str, Workflow] = {}
    first = None
    for name, table in tables.items():
        key = f"workflow.{bare(name)}"
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


def _workflow_readers(folder: Reader, checks: Mapping[str, Check]) -> dict[str, Reader]:
    return {
        "command": expect.command,
        "directory": folder,
        "environment": expect.variables,
        "phase_environment": expect.environment,
        "timeout": parse_duration,
        "queue_timeout": parse_duration,
        "linger": partial(parse_duration, zero=True),
        "max_attempts": expect.whole(1, MOST_ATTEMPTS),
        "retry_delay": partial(parse_duration, zero=True),
        "retry_lost": expect.boolean,
        "reports": expect.boolean,
        "needs_prompt": expect.boolean,
        "user": expect.user,
        "pool": expect.pool_name,
        "default": expect.boolean,
        "agent": partial(expect.choice, tuple(AGENTS)),
        "arguments": expect.arguments,
        "check": partial(expect.check_of, checks),
        "check_timeout": parse_duration,
        "fails_on": expect.failures,
        "retry_prompt": expect.retry_prompt,
        "later_delay": parse_duration,
        "max_later": expect.whole(0, MOST_ATTEMPTS),
        "quiet": parse_duration,
        "quiet_ends": expect.boolean,
        "max_cost_usd": expect.amount,
        "workspace": partial(expect.choice, ("worktree",)),
        "base": expect.git_name,
        "worktrees": folder,
        "on_conflict": expect.workflow_name,
        "push": expect.git_name,
    }


def _read_workflow(
    name: str,
    table: Mapping[str, object],
    *,
    key: str,
    folder: Reader,
    checks: Mapping[str, Check],
    problems: list[str],
) -> Workflow:
    problems += _workflow_problems(table, key)
    values = read_table(table, _workflow_readers(folder, checks), key=key, problems=problems)
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
        yield f"{key}.quiet_ends: needs quiet, the time without output after which it ends"
    if "check_timeout" in table and "check" not in table:
        yield f"{key}.check_timeout: there is no check"
    if "arguments" in table and ("agent" not in table or "command" in table):
        yield f"{key}.arguments: only for a workflow with an agent and without a command"
    if "workspace" not in table:
        for each in _OF_WORKTREES:
            if each in table:
                yield f'{key}.{each}: there is no workspace = "worktree"'


def _command_of(agent: Agent, arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the command of *agent* with further *arguments*."""
    # A last word "-" stands for standard input: arguments go before it.
    *head, last = agent.command
    return (*head, *arguments, last) if last == "-" else (*head, last, *arguments)


def launcher_problems(
    workflows: Mapping[str, Workflow], pools: Mapping[str, Pool]
) -> Iterator[str]:
    """Yield faults of workflows whose keys the launcher of their pool does not support."""
    for name, each in workflows.items():
        pool = pools.get(each.pool)
        key = f"workflow.{bare(name)}"
        if pool and pool.launcher == LOCAL and each.queue_timeout:
            yield f"{key}.queue_timeout: expected a pool of an engine, where jobs wait"
        if pool and pool.launcher != LOCAL and each.user:
            yield f"{key}.user: jobs of {pool.launcher} run as its user, not as {each.user}"


def conflict_problems(workflows: Mapping[str, Workflow]) -> Iterator[str]:
    """Yield faults of the workflows that `on_conflict` names."""
    for name, workflow in workflows.items():
        resolver = workflow.worktree.on_conflict if workflow.worktree else None
        key = f"workflow.{bare(name)}.on_conflict"
        if resolver is None:
            continue
        if resolver not in workflows:
            hint = did_you_mean(resolver, workflows)
            yield f"{key}: there is no [workflow.{bare(resolver)}]{hint}"
        elif any("{prompt" in each for each in workflows[resolver].command):
            yield (
                f"{key}: the command of {resolver} may not use {{prompt}} or {{prompt_file}}, which"
                " are of the phase: what to resolve is its standard input"
            )
