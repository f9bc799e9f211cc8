"""Read the pools of pgcoord.toml, each with the keys of its launcher."""

import re
from collections.abc import Mapping

from pgcoord.configuration import expect, listing
from pgcoord.configuration.model import LOCAL, Pool
from pgcoord.configuration.tables import Reader, bare, read_table
from pgcoord.errors import did_you_mean

# The same pattern as that of the constraint pool_has_name.
_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")

_MOST_SLOTS = 1_000


def read_pools(
    tables: Mapping[str, object], folder: Reader, problems: list[str]
) -> dict[str, Pool]:
    """Read every `[pool.NAME]`; the result always has `local`."""
    pools = {LOCAL: Pool(LOCAL)}
    for name, table in tables.items():
        key = f"pool.{bare(name)}"
        if not isinstance(table, dict):
            problems.append(f"{key}: expected a table [pool.NAME], not {table!r:.60}")
        elif not _POOL_NAME.fullmatch(name):
            problems.append(f"{key}: expected a name of letters, digits, - and _, 63 at most")
        else:
            pools[name] = _read_pool(name, table, folder, problems)
    return pools


def _read_pool(name: str, table: Mapping[str, object], folder: Reader, problems: list[str]) -> Pool:
    key = f"pool.{name}"
    of_launcher = launchers(folder)
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
    readers: dict[str, Reader] = {
        "launcher": str,
        "slots": expect.whole(1, _MOST_SLOTS),
        **of_launcher.get(str(launcher), {}),
    }
    if launcher not in of_launcher:  # already a fault: its other keys are unknown
        table = {name: value for name, value in table.items() if name in readers}
    values = read_table(table, readers, key=key, problems=problems)
    launcher, slots = str(values.pop("launcher", LOCAL)), values.pop("slots", None)
    return Pool(name, launcher, slots, values)


def launchers(folder: Reader) -> Mapping[str, Mapping[str, Reader]]:
    """Return {launcher: {key: its reader}}; these readers return JSON values."""

    def shared(value: object) -> str:
        return str(folder(value))

    def file(example: str) -> Reader:
        return lambda value: str(expect.file(folder, example, value))

    engine: dict[str, Reader] = {"folder": shared, "report_url": expect.url}
    return {
        LOCAL: {},
        "slurm": {**engine, "options": expect.options},
        "kubernetes": {
            "report_url": expect.url,
            "directory": expect.word,
            "template": file("job.yaml"),
            "kubeconfig": file("kubeconfig.yaml"),
            "namespace": expect.word,
            "context": expect.word,
        },
        "ray": {
            "report_url": expect.url,
            "directory": expect.word,
            "address": expect.url,
            "resources": expect.resources,
        },
        "command": {
            **engine,
            **dict.fromkeys(("submit", "list", "cancel", "kill"), expect.command_words),
            **dict.fromkeys(("id", "jobs", "refused", "empty"), expect.word),
            **dict.fromkeys(("waiting", "running"), expect.states),
            "fields": expect.fields,
            "environment": expect.environment_list,
        },
    }
