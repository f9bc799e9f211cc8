"""Find and read pgcoord.toml, the whole file with every fault at once."""

import os.path
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from pgcoord.configuration import expect
from pgcoord.configuration.duration import parse_duration
from pgcoord.configuration.model import (
    NAME,
    NOTIFY_EVENTS,
    Configuration,
    GitHub,
    Notify,
    Planner,
    Schedule,
    Server,
)
from pgcoord.configuration.ownership import remedy, trusted_owners, why_not_ours
from pgcoord.configuration.pools import launchers, read_pools
from pgcoord.configuration.tables import Keys, Reader, bare, read_table
from pgcoord.configuration.workflows import (
    conflict_problems,
    launcher_problems,
    read_checks,
    read_workflows,
)
from pgcoord.errors import InvalidConfiguration, did_you_mean

# The same pattern as in pgcoord_private.guard_schedule.
_SCHEDULE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def find_configuration(start: Path, environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the nearest pgcoord.toml, in *start* or a folder above it; None if there is none.

    Raises `InvalidConfiguration` when another user owns it or can change it. *environment*: names
    the user behind sudo, who is trusted too.
    """
    start = start.resolve()
    candidates = (folder / NAME for folder in (start, *start.parents))
    path_found = next((path for path in candidates if os.path.isfile(path)), None)
    if path_found and (reason := why_not_ours(path_found, trusted_owners(environment or {}))):
        raise InvalidConfiguration(
            f"{reason}, so it is not used",
            hint=f"To use it all the same, name it: --config {path_found}. To make it yours:"
            f" {remedy(path_found)}",
        )
    return path_found


def read_configuration(path: Path) -> Configuration:
    """Read the pgcoord.toml at *path*.

    Relative folders in it are relative to its folder. Raises `InvalidConfiguration` with every
    fault, one line each: `file: key: what is expected`.
    """
    path = path.absolute()
    return _read(_parse(path), path, [])


def known_keys() -> Mapping[str, Mapping[str, Callable[[object], Any]]]:
    """Return {table: {key: its reader}} for all of pgcoord.toml.

    A table is named as `log`, `workflow.NAME` or, for the keys of a launcher, `pool.slurm`; the top
    level is "". A reader takes the TOML value, and raises `ValueError` with what it expects.
    """
    keys = Keys()
    path = Path("/", NAME)
    pools = {launcher: {"launcher": launcher} for launcher in launchers(lambda value: path)}
    with suppress(InvalidConfiguration):
        _read({}, path, keys)
    for section in keys.known[""]:
        tables = pools if section == "pool" else {"NAME": {}}
        with suppress(InvalidConfiguration):
            _read({section: tables}, path, keys)
    return keys.known


_SECTIONS = (
    *("workflow", "check", "pool", "notify", "schedule"),
    *("server", "github", "planner", "log"),
)


def _read(document: dict[str, Any], path: Path, problems: list[str]) -> Configuration:
    folder = partial(expect.folder, path.parent)
    sections = read_table(
        document, dict.fromkeys(_SECTIONS, expect.table), key="", problems=problems
    )
    checks = read_checks(sections.get("check", {}), problems)
    workflows = read_workflows(sections.get("workflow", {}), folder, checks, problems)
    problems += conflict_problems(workflows)
    pools = read_pools(sections.get("pool", {}), folder, problems)
    problems += [
        f"workflow.{bare(name)}.pool: there is no [pool.{bare(each.pool)}]"
        + did_you_mean(each.pool, pools)
        for name, each in workflows.items()
        if each.pool not in pools
    ]
    problems += launcher_problems(workflows, pools)
    notify = _read_notify(sections.get("notify", {}), problems)
    schedules = _read_schedules(sections.get("schedule", {}), folder, problems)
    server = _read_server(sections.get("server", {}), problems)
    planner = _read_planner(sections.get("planner", {}), folder, problems)
    github = _read_github(sections.get("github"), folder, problems)
    readers: dict[str, Reader] = {
        "folder": folder,
        "max_size": expect.size,
        "retention": parse_duration,
    }
    log = read_table(sections.get("log", {}), readers, key="log", problems=problems)
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


def _read_notify(tables: Mapping[str, object], problems: list[str]) -> tuple[Notify, ...]:
    """Read every `[notify.NAME]`."""
    targets: list[Notify] = []
    for name, table in tables.items():
        key = f"notify.{bare(name)}"
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table [notify.NAME], not {table!r:.60}")
            continue
        if "events" not in table:
            problems.append(f"{key}.events: missing; expected some of {', '.join(NOTIFY_EVENTS)}")
        if ("url" in table) == ("command" in table):
            problems.append(f"{key}: expected either url or command")
        if ("url" in table) != ("secret" in table):
            problems.append(f"{key}: expected url and secret, the variable that signs, together")
        readers: dict[str, Reader] = {
            "events": expect.notify_events,
            "url": expect.url,
            "secret": expect.variable_name,
            "command": expect.program,
        }
        values = read_table(table, readers, key=key, problems=problems)
        targets.append(Notify(name, **{"events": (), **values}))
    return tuple(targets)


def _read_schedules(
    tables: Mapping[str, object], folder: Reader, problems: list[str]
) -> dict[str, Schedule]:
    """Read every `[schedule.NAME]`, but not its plan."""
    schedules: dict[str, Schedule] = {}
    readers: dict[str, Reader] = {
        "plan": partial(expect.file, folder, "nightly.md"),
        "cron": expect.cron,
        "timezone": expect.timezone,
        "overlap": partial(expect.choice, ("skip", "queue", "start")),
        "missed": partial(expect.choice, ("run", "skip")),
        "parameters": expect.parameters,
    }
    for name, table in tables.items():
        key = f"schedule.{bare(name)}"
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table [schedule.NAME], not {table!r:.60}")
            continue
        if not _SCHEDULE_NAME.fullmatch(name):
            problems.append(f"{key}: expected a name of letters, digits, and . _ - between them")
        if "plan" not in table:
            problems.append(f'{key}.plan: missing; expected a file such as "nightly.md"')
        if "cron" not in table:
            problems.append(f'{key}.cron: missing; expected times such as "0 3 * * *"')
        values = read_table(table, readers, key=key, problems=problems)
        schedules[name] = Schedule(name, **{"plan": Path(), "cron": "", **values})
    return schedules


def _read_server(table: Mapping[str, object], problems: list[str]) -> Server:
    readers: dict[str, Reader] = {
        "host": expect.host,
        "port": expect.port,
        "public_url": expect.url,
        "webhook_secrets": expect.environment,
        "trusted_proxies": expect.networks,
        "tokens": expect.environment,
    }
    return Server(**read_table(table, readers, key="server", problems=problems))


def _read_planner(table: Mapping[str, object], folder: Reader, problems: list[str]) -> Planner:
    readers: dict[str, Reader] = {
        "directory": folder,
        "command": expect.program,
        "environment": expect.environment,
        "timeout": parse_duration,
        "max_answer": expect.size,
        "template": partial(expect.file, folder, "prompt.md"),
        "max_phases": expect.whole(1, 200),
        "max_prompt": expect.whole(1, 1_000_000),
    }
    values = read_table(table, readers, key="planner", problems=problems)
    return Planner(**{"directory": folder("."), **values})


def _read_github(
    table: Mapping[str, object] | None, folder: Reader, problems: list[str]
) -> GitHub | None:
    if table is None:
        return None
    readers: dict[str, Reader] = {
        "repository": expect.repository,
        "api_url": expect.url,
        "app_id": expect.identifier,
        "installation_id": expect.identifier,
        "private_key_file": partial(expect.file, folder, "app.pem"),
        "required": expect.boolean,
        "wait": partial(parse_duration, zero=True),
        "webhook_secret": expect.variable_name,
        "on_issue_closed": partial(expect.choice, ("nothing", "cancel", "complete")),
        "on_issue_reopened": partial(expect.choice, ("nothing", "retry")),
        "on_pull_request_merged": partial(expect.choice, ("nothing", "complete")),
    }
    if "repository" not in table:
        problems.append('github.repository: missing; expected "owner/name"')
    of_app = [key for key in ("app_id", "installation_id", "private_key_file") if key in table]
    if 0 < len(of_app) < 3:
        problems.append("github: app_id, installation_id and private_key_file come together")
    values = read_table(table, readers, key="github", problems=problems)
    return GitHub(**{"repository": "", **values})
