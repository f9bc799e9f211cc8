"""The reference: every key, variable and status, from the tables of the code that reads them.

`pgcoord help TOPIC` prints it, `make reference` writes docs/reference.md. The names come from the
code, so a new key is listed by itself; their meanings are in reference.toml.
"""

import dataclasses
import re
import shutil
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from pgcoord import assets
from pgcoord.commands.terminal import say
from pgcoord.errors import NotFound

_PACKAGE = Path(__file__).resolve().parents[1]

_VARIABLE = re.compile(r"\bPGCOORD_[A-Z]+(?:_[A-Z]+)*\b")

_HEADER = """# Reference

Every key, placeholder, variable and status. This page is generated from the code (`make
reference`), and `pgcoord help TOPIC` prints its parts where there is no checkout. It is
complete; the other documents explain the use.
"""


@dataclass(frozen=True)
class Table:
    """One table of a topic. The first cell of a row is the name, the last one its meaning."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    text: str = ""


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("help")(show)


def show(
    topic: Annotated[
        str | None,
        typer.Argument(metavar="TOPIC", help="The topic; by default, print the list of topics."),
    ] = None,
) -> None:
    """Print a topic of the reference: toml, plan, placeholders, environment, exit, sqlstate, json,
    http.

    The reference has every key of pgcoord.toml and of plans, every variable and every exit status.
    'pgcoord COMMAND --help' describes a command.
    """
    from pgcoord.errors import did_you_mean

    if topic is None:
        width = max(map(len, TOPICS))
        for name, (title, _) in TOPICS.items():
            say(f"pgcoord help {name:<{width}}  {title}")
        return
    if topic not in TOPICS:
        raise NotFound(f"there is no topic {topic}{did_you_mean(topic, list(TOPICS))}")
    title, tables = TOPICS[topic]
    say(f"{title}\n")
    say("\n".join(_as_text(table) for table in tables()))


def markdown() -> str:
    """Return the page docs/reference.md."""
    parts = [_HEADER]
    for title, tables in TOPICS.values():
        parts.append(f"## {title}\n")
        parts += map(_as_markdown, tables())
    return "\n".join(parts)


@cache
def words() -> Mapping[str, Any]:
    """Return reference.toml: {kind: {name: meaning}}; of "toml" and "environment" a level more."""
    return tomllib.loads((_PACKAGE / "reference.toml").read_text(encoding="utf-8"))


def variables() -> set[str]:
    """Return the names of all PGCOORD_… variables that occur in the package's sources."""
    sources = (path.read_text(encoding="utf-8") for path in _PACKAGE.rglob("*.py"))
    return {name for source in sources for name in _VARIABLE.findall(source)} - {"PGCOORD_TEST"}


def _toml() -> Iterator[Table]:
    from pgcoord.configuration.reading import known_keys

    for name, readers in known_keys().items():
        kind = name.partition(".")[0]
        descriptions = words()["toml"].get(kind, {})
        rows = []
        for key, reader in readers.items():
            takes = _expected(reader)
            rows.append((key, takes, _default(kind, key, takes), descriptions.get(key, "")))
        yield Table(f"[{name}]" if name else "Tables", ("key", "takes", "default", ""), rows)


def _expected(reader: Callable[[Any], Any], *wrong: object) -> str:
    """Return what *reader* accepts, from the error that it raises for a wrong value."""
    for value in wrong or (object(),):
        try:
            reader(value)
        except ValueError as error:
            text = re.split(r"(?:, with nothing but text in it)?, not ", str(error))[0]
            return text.removeprefix("expected ")
    return "a text"


def _default(table: str, key: str, takes: str) -> str:
    from pgcoord.configuration import model

    if table in ("", "pool"):
        return ""
    classes = {
        name.lower(): each for name, each in vars(model).items() if dataclasses.is_dataclass(each)
    }
    fields = dataclasses.fields(classes.get(table, model.Configuration))
    names = (key, f"{table}_{key}")
    named_field = next((each for each in fields if each.name in names), None)
    return "" if named_field is None else _as_default(named_field.default, is_size="size" in takes)


def _as_default(value: object, *, is_size: bool) -> str:
    if value is None or value == () or value is dataclasses.MISSING:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        minutes, seconds = divmod(int(value.total_seconds()), 60)
        return f"{seconds}s" if seconds or not minutes else f"{minutes}m"
    if is_size and isinstance(value, int):
        return f"{value // 10**6}MB"
    return str(value)


def _plan() -> Iterator[Table]:
    from pgcoord.plan.keys import KEYS

    rows = [
        (key.capitalize(), _expected(reader, "\0", "", ","), words()["plan"].get(key, ""))
        for key, reader in KEYS.items()
    ]
    text = (
        "`# Title` begins a plan, `## Phase 1: Title` each phase; a phase's keys stand directly"
        " below its heading, one `Key: value` a line, and the rest is its prompt. `Budget: $5`"
        " in the first line below the title is the budget of the feature."
    )
    yield Table("Keys of a phase", ("key", "takes", ""), rows, text)


def _placeholders() -> Iterator[Table]:
    from pgcoord.configuration.model import PLACEHOLDERS, RETRY_PLACEHOLDERS

    names = dict.fromkeys((*PLACEHOLDERS, "result.N.key", "param.NAME", *RETRY_PLACEHOLDERS))
    rows = [(f"{{{name}}}", words()["placeholder"].get(name, "")) for name in names]
    text = (
        "In `command` and `arguments` of a workflow; a value stays inside its argument,"
        " whatever it contains. A brace itself is doubled: `{{`."
    )
    yield Table("Placeholders", ("placeholder", ""), rows, text)


def _environment() -> Iterator[Table]:
    from pgcoord.configuration.model import PASSED_ON

    titles = {
        "phase": "Of the process of a phase",
        "pgcoord": "Of pgcoord itself",
        "notify": "Of the command of a [notify.NAME]",
        "inner": "Between pgcoord's own parts",
    }
    texts = {
        "phase": f"""A process inherits nothing of the coordinator's environment but
            {", ".join(PASSED_ON)}, the variables that its workflow names in `environment` (and
            those that its `agent` needs), and the variables below. It starts in `directory` of its
            workflow, else in the folder of pgcoord.toml, or in its worktree; without a terminal,
            in a session of its own. Its prompt is in a file, `{{prompt_file}}`; its standard input
            is empty, but for an `agent`, which gets the prompt there. What it writes to stdout and
            stderr is its log. Exit status 0 completes its phase, any other fails it.""",
    }
    names_by_kind = words()["environment"]
    described = {name for names in names_by_kind.values() for name in names}
    more = {"inner": dict.fromkeys(sorted(variables() - described), "")}
    for kind, title in titles.items():
        rows = sorted(({**names_by_kind[kind], **more.get(kind, {})}).items())
        text = " ".join(texts.get(kind, "").split())
        yield Table(title, ("variable", ""), rows, text)


def _exit() -> Iterator[Table]:
    yield Table("Exit statuses", ("status", ""), list(words()["exit"].items()))


def _sqlstate() -> Iterator[Table]:
    from pgcoord.database._sql import ERRORS

    files = (path.read_text(encoding="utf-8") for path in assets.SQL.rglob("*.sql"))
    ours = sorted({code for text in files for code in re.findall(r"'(PC\d{3})'", text)})
    rows = []
    for code in dict.fromkeys((*ours, *ERRORS)):
        status = str(ERRORS[code].exit_status) if code in ERRORS else ""
        rows.append((code, status, words()["sqlstate"].get(code, "")))
    yield Table("SQLSTATEs", ("code", "exit status", ""), rows)


def _json() -> Iterator[Table]:
    yield Table(
        "Of each command",
        ("command", "prints", ""),
        [(name, shape, meaning) for name, (shape, meaning) in words()["json"].items()],
        "`--json` prints one object, or in brackets a list of objects, on stdout; refusals are"
        " printed on stderr as always. `result` prints JSON by itself. Times are ISO 8601 with"
        " their"
        " offset. Later releases may add keys.",
    )


def _http() -> Iterator[Table]:
    from pgcoord.http.openapi import REASONS, document

    yield Table(
        "Statuses",
        ("status", ""),
        [(str(status), reason) for status, reason in REASONS.items()],
        "A refusal is a JSON object with `error`, a word, `reason` for people, and `hint`.",
    )
    rows = [
        (f"{method.upper()} {path}", " ".join(described["responses"]), described["summary"])
        for path, methods in document()["paths"].items()
        for method, described in methods.items()
    ]
    yield Table("Operations", ("operation", "statuses", ""), rows, "In full: `/openapi.json`.")


TOPICS: Mapping[str, tuple[str, Callable[[], Iterator[Table]]]] = MappingProxyType(
    {
        "toml": ("pgcoord.toml", _toml),
        "plan": ("Plans", _plan),
        "placeholders": ("Placeholders in commands", _placeholders),
        "environment": ("Environment variables", _environment),
        "exit": ("Exit statuses of pgcoord", _exit),
        "sqlstate": ("SQLSTATEs that refuse", _sqlstate),
        "json": ("What --json prints", _json),
        "http": ("HTTP", _http),
    }
)


def _as_markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(each.replace('|', chr(92) + '|') for each in cells)} |"

    lines = [
        line(table.head),
        line(["---"] * len(table.head)),
        *(line((f"`{first}`", *rest)) for first, *rest in table.rows),
    ]
    text = f"{textwrap.fill(table.text, 110)}\n\n" if table.text else ""
    return f"### {table.title}\n\n{text}" + "\n".join(lines) + "\n"


def _as_text(table: Table) -> str:
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    lines = [table.title, ""]
    if table.text:
        lines += [textwrap.fill(table.text.replace("`", ""), width), ""]
    for first, *others, meaning in table.rows:
        heads = table.head[1:-1]
        also = "; ".join(
            f"{head}: {cell}" for head, cell in zip(heads, others, strict=True) if cell
        )
        lines.append(f"  {first}")
        lines += [
            textwrap.fill(each, width, initial_indent="      ", subsequent_indent="      ")
            for each in (meaning, also)
            if each
        ]
    return "\n".join(lines) + "\n"
