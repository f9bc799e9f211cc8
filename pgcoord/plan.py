"""Plans: Markdown files that describe a feature and its phases.

`# Title` and the text below it describe the feature; each `## Phase 1: Title` begins a phase, with
`Key: value` lines directly below it and the prompt after them. A Markdown parser decides which
lines are headings, and which only look like one, in a code block for example. Prompts are never
changed. All faults are collected and raised together. `write_plan` is the inverse.
"""

import io
import logging
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from graphlib import CycleError, TopologicalSorter
from itertools import islice, pairwise, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pgcoord.configuration import Configuration, Schedule, did_you_mean
from pgcoord.duration import parse_duration
from pgcoord.errors import InvalidConfiguration, InvalidInput, InvalidPlan
from pgcoord.text import read_text

logger = logging.getLogger(__name__)

MOST_PHASES = 200

# Plans of this size take the Markdown parser a second. Blocks: headings, list items, quotations.
MOST_LINES = 100_000
MOST_BLOCKS = 20_000

# Far below the maximum of the database's attempt counter, an integer.
_MOST_ATTEMPTS = 1_000_000

# The values of `When:`: in which state its prerequisites must have ended for a phase to run.
RUN_WHEN = ("completed", "failed", "always")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

# A comma that stands where a variable ends, outside of quotes, and what is before it.
_COMMA = re.compile(
    r"""((?:[^"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')*?),(?=\s|$|[A-Za-z_][A-Za-z0-9_]*=)""",
    re.ASCII | re.DOTALL,
)

# A parameter of a plan; in double braces it is plain text.
_PARAMETER = re.compile(r"\{\{param\.[\w-]+\}\}|\{param\.([\w-]+)\}", re.ASCII)

# What `write_plan` puts into braces once more; of {{param.x}} it is the inner part.
_INNER = re.compile(r"\{param\.[\w-]+\}", re.ASCII)

# The most cycles that are reported: a plan with more needs a rewrite, not a longer list.
_MOST_CYCLES = 20

_WORDS = (  # noqa: SIM905
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()

NUMBER = rf"[0-9]{{1,6}}|{'|'.join(_WORDS)}"

# A hyphen needs a space after it: "Phase 1-2: x" is not phase 1, titled "2: x".
_SEPARATOR = r"(?:[:–—]|-(?=\s))"  # noqa: RUF001

# The heading of a phase: its number, and its title.
PHASE = re.compile(rf"phase\s+({NUMBER})\s*{_SEPARATOR}\s*(.*\S)", re.IGNORECASE)

# A heading's text that its author must have meant as a phase, well-formed or not.
_PHASE_LIKE = re.compile(
    r"[*_]*phase"
    rf"(?:\s*(?:$|{_SEPARATOR}|[0-9])|\s+(?:{NUMBER})\b|\s+[^\s:–—]+\s*{_SEPARATOR})",  # noqa: RUF001
    re.IGNORECASE,
)

# Without indentation, the line is in no list or quotation, but maybe in a code or HTML block.
_HEADING_LIKE = re.compile(rf"##\s*{_PHASE_LIKE.pattern}", re.IGNORECASE)

# A phase's heading inside such a block, perhaps indented, with an emoji before the word.
_HIDDEN_PHASE = re.compile(
    rf"\s*#{{1,6}}\s+[^\w\s]*\s*phase\s+(?:{NUMBER})\s*(?:{_SEPARATOR}|$)", re.IGNORECASE
)

# Decoration before the word "phase" in a heading: an emoji, a checkbox.
_MARKS = re.compile(
    r"(?:\[[ xX]\]|\s|~~|[^\w\s\[\]()*~#<`\"'&|.,:;!?/\\-])*\s*(?=[*_]*phase\b)", re.IGNORECASE
)

# A mark in a heading that the phase is done, or struck out.
_DONE = re.compile(
    r"[^\w]*?(?:[✅☑✔🗹]|\[x\]|~~).*\bphase\b|.*(?:[✅☑✔🗹]\ufe0f?|[(\[](?:complete|completed|done)[)\]])[\s*_]*$",
    re.IGNORECASE,
)

_DONE_AT_END = re.compile(
    r"(?:[✅☑✔🗹]\ufe0f?|[(\[](?:complete|completed|done)[)\]]|~~|[\s*_])+$", re.IGNORECASE
)

# A heading that may be meant as a phase: with text before it, or another word for "phase".
_NAMES_PHASE = re.compile(rf"\bphase\s+(?:{NUMBER})\b", re.IGNORECASE)
_NAMES_STEP = re.compile(
    rf"[\W_]*(?:stage|step|task|part|milestone)\s+(?:{NUMBER})\b", re.IGNORECASE
)

# A line of prose, or the end of a title, that names the prerequisites of a phase.
_NEED = re.compile(
    r" {0,3}(?:>[ ]?)?(?:[-+*][ \t]+)?[*_]*"
    r"(?P<key>depends? on|dependenc(?:y|ies)|prerequisites?|blocked by)"
    r"[*_]*[ \t]*:[*_]*(?P<value>.*)",
    re.IGNORECASE,
)
NEED_OF_TITLE = re.compile(
    r"\s*[(\[]\s*depends? on:?\s*(?P<value>[^()\[\]]*)[)\]]\s*$", re.IGNORECASE
)

# Text that says of one phase that it comes after another.
_SAYS_NEED = re.compile(
    rf"\bphases?\s+(?:{NUMBER})\b.*\b(?:depends? on|after|blocked by|requires|needs)\b"
    rf".*\bphases?\s+(?:{NUMBER})\b",
    re.IGNORECASE,
)

# The headings of sections in prompts of the built-in planner (planner/prompt.md).
_OF_PROMPTS = {
    "what is to be done",
    "what it is about",
    "what is there already",
    "what builds on it",
    "what is done at the same time",
    "files",
    "when it is done",
    "how to report",
}

# A badge or another picture, which may stand above the title.
_PICTURE = re.compile(
    r"\[?!\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?|</?(?:img|p|a|div|br|h1|center|picture|source)\b[^>]*>"
)

# Below the title: the most that the feature may cost.
_BUDGET = re.compile(r"[*_]*budget[*_]*\s*:[*_]*\s*(?P<value>.*)", re.IGNORECASE)

# The line above a list of files, an element of that list, and the name of a file in an element.
_FILES = re.compile(r" {0,3}(?:[-+*][ \t]+)?[*_]*files[*_]*[ \t]*:[*_]*", re.IGNORECASE)
_ELEMENT = re.compile(r"\s*[-+*][ \t]+(?:\[[ xX]\][ \t]+)?(?P<text>.*\S)")
_LISTED_FILE = re.compile(
    r"`(?P<code>[^`\s,:]+)(?::[^`]*)?`|(?<!\S)(?P<bare>[\w./-]*[\w-][./][\w./-]*\w)(?!\w)"
)

_DEPENDENCY = re.compile(rf"(?:phases?\s+)?({NUMBER})", re.IGNORECASE)

_BLOCK = re.compile(r"\s*(?:#|[-+*>]|[0-9]{1,9}[.)])")

_KEY_LINE = re.compile(
    r" {0,3}(?P<markup>(?:[-+*][ \t]+)?\**)"
    r"(?P<key>[^\W\d_][\w'-]*(?:[ \t]+[\w'-]+){0,2})[ \t]*\**:(?P<value>.*)"
)

# Only blocks matter here: inline markup and link definitions would cost time for nothing.
# When lists nest deeper than the limit (20 by default), the parser drops what follows them.
_markdown = MarkdownIt("commonmark", {"maxNesting": 100}).disable(["inline", "reference"])

_Problem = tuple[int, str]
"""The number of a line, from 1, and a message about it."""


@dataclass(frozen=True)
class PlannedPhase:
    """A phase as its plan describes it; None and () stand for keys that the plan does not have.

    *line*: the number of its heading's line. *depends_on*: numbers of phases; without the key, the
    number of the phase before it. *prompt*: unchanged. *environment*: pairs of name and value.
    """

    number: int
    title: str
    prompt: str
    depends_on: tuple[int, ...]
    line: int
    workflow: str | None = None
    hours: float | None = None
    priority: int | None = None
    files: tuple[str, ...] = ()
    max_attempts: int | None = None
    timeout: timedelta | None = None
    gate: str | None = None
    check: str | None = None
    when: str | None = None
    lock: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    is_completed: bool = False
    taken: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    """Pairs of each key in the plan and the number of its line."""
    body: tuple[int, int] = field(default=(0, 0), compare=False)
    """The numbers of the first line below its heading, and of the one after its last."""

    @property
    def only_asks(self) -> bool:
        """Whether it is a gate that runs nothing (pgcoord_private.only_asks, of stored ones)."""
        return bool(self.gate) and not self.workflow and not self.prompt.strip(" \t\n\r\f\v")

    def row(self) -> dict[str, object]:
        """Return the phase as an object of `Plan.feature`'s "phases", without absent keys."""
        seconds = None if self.timeout is None else self.timeout.total_seconds()
        optional = {
            "workflow_type": self.workflow,
            "estimated_hours": self.hours,
            "priority": self.priority,
            "run_when": self.when,
            "lock": self.lock,
            "environment": dict(self.environment) or None,
            "files": list(self.files) or None,
            "gate": self.gate,
            "check": self.check,
            "status": "completed" if self.is_completed else None,
            "max_attempts": self.max_attempts,
            "timeout_seconds": int(seconds) if seconds and seconds.is_integer() else seconds,
        }
        return {
            "phase_number": self.number,
            "title": self.title,
            "prompt_content": self.prompt,
            "depends_on_phases": list(self.depends_on),
            **{key: value for key, value in optional.items() if value is not None},
        }


@dataclass(frozen=True)
class Plan:
    """A feature and its phases, in the order of their numbers."""

    title: str
    description: str
    phases: tuple[PlannedPhase, ...]
    notes: tuple[str, ...] = ()
    """Remarks as `file:line: text`: sections that belong to no phase, phases renumbered from 0."""
    max_cost_usd: float | None = None

    def feature(self) -> dict[str, object]:
        """Return the plan as the argument of pgcoord.submit_feature(jsonb); costs in US dollars."""
        hours = [phase.hours for phase in self.phases if phase.hours is not None]
        return {
            "title": self.title,
            "description": self.description,
            # Rounded, for 0.1 + 0.2 hours are 0.3 hours.
            "estimated_hours": round(sum(hours), 6) if hours else None,
            **({"max_cost_usd": self.max_cost_usd} if self.max_cost_usd is not None else {}),
            "phases": [phase.row() for phase in self.phases],
        }


@dataclass(frozen=True)
class _Section:
    """A phase's heading, keys and prompt as read; *keys*: {key: (line, value or None if faulty)}.

    The number of a faulty heading is 0, but -1 until `_renumbered`, when 0 may be a phase.
    """

    line: int
    number: int
    title: str
    keys: dict[str, tuple[int, Any]]
    prompt: str
    is_completed: bool = False
    body: tuple[int, int] = (0, 0)

    def value(self, key: str) -> Any:
        return self.keys.get(key, (0, None))[1]

    def line_of(self, key: str) -> int:
        return self.keys.get(key, (self.line, None))[0]

    @property
    def depends_on(self) -> tuple[int, ...]:
        if "depends on" in self.keys:
            return self.value("depends on") or ()
        return (self.number - 1,) if self.number > 1 else ()


def read_plan(
    path: Path,
    *,
    workflows: Collection[str] | None = None,
    has_default: bool = True,
    takes_done: bool = False,
    parameters: Mapping[str, str] | None = None,
) -> Plan:
    """Read the plan at *path*, a UTF-8 file; the other parameters are those of `parse_plan`.

    The path `-` is standard input. Raises `InvalidPlan`, also when the file cannot be read.
    """
    try:
        text = read_text(path)
    except InvalidInput as error:
        raise InvalidPlan([str(error)], hint=error.hint) from error
    return parse_plan(
        text,
        name=str(path),
        workflows=workflows,
        has_default=has_default,
        takes_done=takes_done,
        parameters=parameters,
    )


def check_environment(path: Path, plan: Plan, configuration: Configuration) -> None:
    """Raise `InvalidPlan` if phases of *plan*, read from *path*, set what their workflow forbids.

    What was not read from a plan is refused when it is started (`coordination.supervision`).
    """
    problems = []
    for phase in plan.phases:
        workflow = (
            configuration.workflows.get(phase.workflow)
            if phase.workflow
            else configuration.default_workflow
        )
        if workflow is None or phase.is_completed:
            continue
        line = dict(phase.taken).get("env", phase.line)
        problems += [
            f"{path}:{line}: Env: phases of workflow {workflow.name} may not set {name};"
            f" phase_environment of [workflow.{workflow.name}] lists what they may"
            for name, _ in phase.environment
            if not workflow.lets_phases_set(name)
        ]
    if problems:
        raise InvalidPlan(problems)


def read_schedules(configuration: Configuration) -> Configuration:
    """Return *configuration* with what the plans of its schedules say now; log their notes.

    Raises `InvalidConfiguration` with every fault of every plan, and whose it is.
    """
    problems: list[str] = []
    read: dict[str, Schedule] = {}
    for name, each in (configuration.schedules or {}).items():
        try:
            plan = read_plan(
                each.plan,
                workflows=configuration.workflows,
                has_default=configuration.default_workflow is not None,
                parameters=each.parameters,
            )
            check_environment(each.plan, plan, configuration)
        except InvalidPlan as error:
            where = f"{configuration.path}: schedule.{name}.plan"
            problems += [f"{where}: {problem}" for problem in error.problems]
        else:
            for note in plan.notes:
                logger.info("schedule %s: %s", name, note)
            read[name] = replace(each, feature=plan.feature())
    if problems:
        raise InvalidConfiguration("\n".join(problems))
    return replace(configuration, schedules=read)


def looks_like_plan(text: str) -> bool:
    """Whether *text* has the heading of a phase, well-formed or not; else it is a description."""
    return any(_HEADING_LIKE.match(line) for line in split_lines(text))


def parse_plan(
    text: str,
    *,
    name: str,
    title: str | None = None,
    workflows: Collection[str] | None = None,
    has_default: bool = True,
    takes_done: bool = False,
    parameters: Mapping[str, str] | None = None,
) -> Plan:
    """Parse the plan *text*; *name* is the name of its file in errors and notes.

    *title*: used if the text has none. *workflows*: the names that a phase may give (None: any);
    unless *has_default*, each phase must give one. *takes_done*: read a phase that is marked as
    done as completed; otherwise the mark is a fault. *parameters*: the values of `{param.NAME}`;
    each must occur in the plan, and each occurrence needs a value (None: leave them unchanged).
    Raises `InvalidPlan` with every fault, in the order of lines.
    """
    lines = _without_front_matter(split_lines(text))
    problems = [*_unusable_characters(lines), *_excess(lines)]
    notes: list[_Problem] = []
    if not problems:
        tokens = [token for token in _markdown.parse("".join(lines)) if token.level <= 1]
        headings = list(_headings(tokens))
        starts = [each for each in headings if each.tag == "h2" and _PHASE_LIKE.match(each.text)]
        problems += _lost_headings(tokens, lines, {each.start for each in headings})
        problems += _other_phases(headings, starts)
        found, description = _read_front(tokens, headings, starts, lines, problems, title)
        description, budget = _take_budget(description, lines, problems)
        sections = _read_sections(headings, starts, lines, problems, notes, takes_done)
        notes += _unread_dependencies(lines, starts)
        sections = _renumbered(sections, notes)
        problems += _faults_in_order(sections)
        problems += _faults_in_dependencies(sections)
        problems += _faults_in_workflows(sections, workflows, has_default)
        if parameters is not None:
            problems += _faults_in_parameters(lines, parameters)
            problems += _unfilled_names(sections)
    if problems:
        raise InvalidPlan(
            [f"{name}:{line}: {problem}" for line, problem in sorted(problems, key=itemgetter(0))]
        )
    phases = sorted((_phase(section) for section in sections), key=lambda phase: phase.number)
    if parameters is not None:
        found, description = _filled(found, parameters), _filled(description, parameters)
        phases = [_phase_filled(phase, parameters) for phase in phases]
    return Plan(
        title=found,
        description=description,
        phases=tuple(phases),
        notes=tuple(f"{name}:{line}: {note}" for line, note in sorted(notes)),
        max_cost_usd=budget,
    )


def write_plan(
    title: str,
    description: str | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    literal: bool = False,
) -> str:
    """Return the Markdown of a plan; *rows* are objects as in `Plan.feature`'s "phases".

    *literal*: the text is stored, so what looks like a parameter is none: it gets double braces.
    Nothing is validated. `parse_plan` reads the same phases back unless a value cannot be expressed
    in a plan; a caller that depends on that must compare.
    """
    parts = [f"# {' '.join(title.split())}\n"]
    if description and description.strip():
        parts.append(f"{description.strip()}\n")
    parts += [_written(row) for row in rows]
    text = "\n".join(parts)
    return _INNER.sub(r"{\g<0>}", text) if literal else text


def _written(row: Mapping[str, Any]) -> str:
    needs = ", ".join(map(str, row.get("depends_on_phases") or ())) or "none"
    seconds = row.get("timeout_seconds")
    environment = row.get("environment") or {}
    keys = {
        "Depends on": needs,
        "When": None if row.get("run_when") == "completed" else row.get("run_when"),
        "Lock": row.get("lock"),
        "Env": " ".join(_quoted(f"{name}={each}") for name, each in environment.items()) or None,
        "Workflow": row.get("workflow_type"),
        "Hours": _decimal(row.get("estimated_hours")),
        "Priority": row.get("priority"),
        "Files": ", ".join(row.get("files") or ()) or None,
        "Gate": row.get("gate"),
        "Check": row.get("check"),
        "Max attempts": row.get("max_attempts"),
        "Timeout": None if seconds is None else f"{_decimal(seconds)}s",
    }
    lines = [f"{key}: {value}" for key, value in keys.items() if value is not None]
    mark = "✅ " if row.get("status") == "completed" else ""
    heading = f"## {mark}Phase {row['phase_number']}: {row.get('title') or 'Untitled'}"
    return "\n".join([heading, *lines, "", row.get("prompt_content") or "", ""])


def _quoted(word: str) -> str:
    quoted = shlex.quote(word)
    return f"'{word}'" if quoted == word and "," in word else quoted


def _decimal(number: float | None) -> str | None:
    """Format a number for a plan: at most six decimals, no exponent, no trailing zeros."""
    return None if number is None else f"{number:.6f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class _Heading:
    """A heading outside of any list or quotation, on the lines *start* to *end* (excluded), from 0.

    *text* is without decoration before "phase"; *is_done*: a mark says so.
    """

    tag: str
    text: str
    start: int
    end: int
    is_done: bool = False


def split_lines(text: str) -> list[str]:
    """Split *text* at Markdown's line ends, which are kept (str.splitlines splits at more)."""
    return io.StringIO(text, newline="").readlines()


def _unusable_characters(lines: list[str]) -> Iterator[_Problem]:
    """Find characters that Postgres cannot store: NUL, and unpaired surrogates."""
    for number, line in enumerate(lines, 1):
        if match := re.search("[\0\ud800-\udfff]", line):
            yield number, f"unusable character U+{ord(match[0]):04X}: a plan is plain text"


def _excess(lines: list[str]) -> Iterator[_Problem]:
    """Find the first line and the first block beyond the limits for parsing."""
    if len(lines) > MOST_LINES:
        yield MOST_LINES + 1, f"too many lines: a plan has at most {MOST_LINES}"
    blocks = (number for number, line in enumerate(lines, 1) if _BLOCK.match(line))
    if excess := next(islice(blocks, MOST_BLOCKS, None), None):
        kinds = "headings, list items and quotations"
        yield excess, f"too many {kinds}: a plan has at most {MOST_BLOCKS}"


def _extent(token: Token) -> tuple[int, int]:
    start, end = token.map or (0, 0)
    return start, end


def _headings(tokens: list[Token]) -> Iterator[_Heading]:
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.level == 0:
            text = inline.content.strip()
            marks = _MARKS.match(text)
            plain = text[marks.end() :] if marks else text
            yield _Heading(opening.tag, plain, *_extent(opening), bool(_DONE.match(text)))


def _without_front_matter(lines: list[str]) -> list[str]:
    """Blank the YAML front matter between two `---`, so that all lines keep their numbers."""
    if not lines or lines[0].rstrip() != "---":
        return lines
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "...")), 0)
    return ["\n"] * (end + 1) + lines[end + 1 :] if end else lines


def _other_phases(headings: list[_Heading], starts: list[_Heading]) -> Iterator[_Problem]:
    """Find headings that are probably meant as phases, but are not written as one.

    `### Step 1` below a phase is part of its prompt; `## Step 1`, at the level of phases, is a
    fault.
    """
    taken = {each.start for each in starts}
    expected = 'expected "## Phase 1: Title"'
    for each in headings:
        if each.start in taken or each.tag == "h1":
            continue
        begins = _PHASE_LIKE.match(each.text)
        named = _NAMES_PHASE.search(each.text) if each.tag == "h2" or not starts else begins
        named = named or (_NAMES_STEP.match(each.text) if each.tag == "h2" or not starts else None)
        if named and (each.tag == "h2" or begins or not starts):
            yield each.start + 1, f"this looks like a phase: {each.text!r:.60}; {expected}"


def _lost_headings(tokens: list[Token], lines: list[str], found: set[int]) -> Iterator[_Problem]:
    """Find lines that look like the heading of a phase, but are text or code in Markdown."""
    suspects = [
        i
        for i, line in enumerate(lines)
        if i not in found
        and (_HEADING_LIKE.match(line.rstrip()) or _HIDDEN_PHASE.match(line.rstrip()))
    ]
    blocks = [token for token in tokens if token.level == 0 and token.content] if suspects else []
    block_of = {i: token for token in blocks for i in range(*_extent(token))}
    for i in suspects:
        block = block_of.get(i)
        if block is None and not _HEADING_LIKE.match(lines[i].rstrip()):
            continue  # in a list or a quotation
        if block is None or block.type == "inline":
            expected = 'expected "## Phase 1: Title", with a space after ## and no deep list before'
            yield i + 1, f"Markdown does not take this for a heading: {expected}"
        elif _never_closed(block, lines):
            kind = "code block" if block.type == "fence" else "comment"
            start = _extent(block)[0] + 1
            yield i + 1, f"this phase is inside the {kind} of line {start}, which is never closed"
        elif block.type == "code_block":
            yield (
                i + 1,
                "this phase is indented, so Markdown takes it for code: begin the line with ##",
            )
        elif block.type == "html_block" and not block.content.lstrip().startswith("<!--"):
            start = _extent(block)[0] + 1
            yield (
                i + 1,
                f"this phase is inside the HTML of line {start}: put a blank line before it",
            )


def _never_closed(block: Token, lines: list[str]) -> bool:
    if block.type != "fence":
        return block.content.lstrip().startswith("<!--") and "-->" not in block.content
    last = lines[_extent(block)[1] - 1].strip()
    return not last.startswith(block.markup) or bool(last.strip(block.markup))


def _read_front(
    tokens: list[Token],
    headings: list[_Heading],
    starts: list[_Heading],
    lines: list[str],
    problems: list[_Problem],
    else_titled: str | None,
) -> tuple[str, str]:
    """Return title and description, from the lines before the first phase."""
    end = starts[0].start if starts else len(lines)
    titles = [each for each in headings if each.tag == "h1" and each.start < end]
    if not starts:
        expected = 'expected a heading such as "## Phase 1: Title"'
        problems.append((1, f"no phase: {expected}; 'pgcoord plan FILE' makes phases of a list"))
    if not titles and else_titled:
        return else_titled, _text(lines[:end])
    if not titles or not titles[0].text:
        line = titles[0].start + 1 if titles else 1
        problems.append((line, 'no title: expected "# Title" before the first phase'))
        return "", ""
    title, *others = titles
    for other in others:
        problem = f"a second title: the first is on line {title.start + 1}"
        problems.append((other.start + 1, problem))
    # A comment may come first: a licence, or a directive for a linter.
    above = next(
        token
        for token in tokens
        if token.level == 0 and token.map and not _is_ornament(token, lines)
    )
    if _extent(above)[0] < title.start:
        line = _extent(above)[0] + 1
        problems.append((line, "text above the title: expected it below, as the description"))
    return " ".join(title.text.split("\n")), _text(lines[title.end : end])


def _take_budget(
    description: str, lines: list[str], problems: list[_Problem]
) -> tuple[str, float | None]:
    """Split off a `Budget:` in the first line of *description*.

    Return the rest of it, and the amount in US dollars; None if there is none.
    """
    first, _, rest = description.partition("\n")
    match = _BUDGET.fullmatch(first.strip())
    if not match:
        return description, None
    amount = re.fullmatch(r"\$?\s*([0-9]{1,9}(?:\.[0-9]{1,4})?)\s*(?:USD)?", match["value"])
    if not amount or float(amount[1]) < 0.01:
        expected = 'expected US dollars such as "Budget: $5"'
        line = next(number for number, each in enumerate(lines, 1) if each.strip() == first.strip())
        problems.append((line, f"Budget: {expected}, not {match['value']!r:.60}"))
        return description, None
    return rest.strip(), float(amount[1])


def _ends(headings: list[_Heading], starts: list[_Heading]) -> list[_Heading]:
    """Return the headings that end a phase: the next phase's, or that of an unrelated section.

    A `##` section that occurs in several phases, or in prompts of the built-in planner, is part of
    its phase.
    """
    taken = {each.start for each in starts}
    phases_with: dict[str, set[int]] = {}
    phase = -1
    for each in headings:
        if each.start in taken:
            phase = each.start
        elif each.tag == "h2" and phase >= 0:
            phases_with.setdefault(each.text.casefold(), set()).add(phase)
    parts = {text for text, phases in phases_with.items() if len(phases) > 1} | _OF_PROMPTS
    return [
        each
        for each in headings
        if each.start in taken
        or each.tag == "h1"
        or (each.tag == "h2" and each.text.casefold() not in parts)
    ]


def _unread_dependencies(lines: list[str], starts: list[_Heading]) -> Iterator[_Problem]:
    """Find what names dependencies of phases, and is read by nobody: graphs, and text above them.

    A note for each graph, and one for all of the text.
    """
    below = "say it by 'Depends on: …' below the heading of each phase"
    graph, drawn = -1, set[str]()
    front = starts[0].start if starts else 0
    is_said = False
    for i, line in enumerate(lines):
        if re.match(r"\s*(?:```+|~~~+)\s*mermaid\b", line):
            graph, drawn = i, set()
        elif graph >= 0 and re.match(r"\s*(?:```|~~~)", line):
            if len(drawn) > 1:
                yield graph + 1, f"the dependencies that this graph draws are not read: {below}"
            graph = -1
        elif graph >= 0:
            drawn |= {each[0].lower() for each in re.finditer(_NAMES_PHASE, line)}
        elif i < front and not is_said and _SAYS_NEED.search(line):
            is_said = True
            yield i + 1, f"dependencies that are named above the phases are not read: {below}"


def _is_ornament(token: Token, lines: list[str]) -> bool:
    """Whether a block is HTML, such as a comment, a rule, or only pictures."""
    if token.type in ("html_block", "hr"):
        return True
    text = "".join(lines[slice(*_extent(token))])
    return token.type == "paragraph_open" and not _PICTURE.sub("", text).strip()


def _read_sections(
    headings: list[_Heading],
    starts: list[_Heading],
    lines: list[str],
    problems: list[_Problem],
    notes: list[_Problem],
    takes_done: bool,
) -> list[_Section]:
    """Read each phase, up to the next heading of `_ends`."""
    taken = {each.start for each in starts}
    ends = _ends(headings, starts)
    sections = []
    for heading in starts:
        following = next((each for each in ends if each.start > heading.start), None)
        end = following.start if following else len(lines)
        body = lines[heading.end : end]
        sections.append(_read_section(heading, body, problems, takes_done))
        if following and following.start not in taken:
            note = f"{following.text!r:.60} is no part of phase {sections[-1].number}, nor of any"
            notes.append((following.start + 1, note))
    if len(sections) > MOST_PHASES:
        line = sections[MOST_PHASES].line
        problems.append((line, f"too many phases: a plan has at most {MOST_PHASES}"))
    return sections


def _read_section(
    heading: _Heading, body: list[str], problems: list[_Problem], takes_done: bool
) -> _Section:
    line = heading.start + 1
    text = _DONE_AT_END.sub("", heading.text) if heading.is_done else heading.text
    match = None if "\n" in text else PHASE.fullmatch(text)
    number = number_of(match[1]) if match else -1
    if number < 0:
        expected = 'expected "## Phase 1: Title", numbered from 1 (or One to Twenty)'
        problems.append((line, f"not a phase: {heading.text!r:.60}; {expected}"))
    if heading.is_done and not takes_done:
        mended = "'pgcoord submit --done completed' takes it so; else take out the mark"
        problems.append((line, f"this phase is marked as done: {mended}"))
    start, block = _key_lines(body)
    keys = _read_keys(block, heading.end + start + 1, problems)
    below = start + len(block)
    if listed := _listed_files(body, below):
        # The list stays in the prompt: it may say what to do with each file.
        keys.setdefault("files", (heading.end + listed[0] + 1, listed[1]))
    title = match[2] if match else ""
    if "depends on" not in keys:
        title = _read_needs(title, line, body[below:], heading.end + below + 1, keys, problems)
    prompt = _text(body[below:])
    if not prompt.strip() and "gate" not in keys and not heading.is_done:
        empty = "this phase is empty" if number < 0 else f"phase {number} is empty"
        problems.append((line, f"{empty}: expected its prompt below the heading and keys"))
    extent = (heading.end + 1, heading.end + 1 + len(body))
    return _Section(line, number, title, keys, prompt, heading.is_done, extent)


def _renumbered(sections: list[_Section], notes: list[_Problem]) -> list[_Section]:
    """Renumber a plan with a phase 0, so that it begins with 1, and add that to *notes*.

    Faulty headings get number 0.
    """
    zero = next((section.line for section in sections if section.number == 0), None)
    if zero is not None:
        notes.append((zero, "phases are numbered from 1, so each has the number after its own"))
    shift = int(zero is not None)
    return [
        replace(
            section,
            number=max(section.number + shift, 0) if section.number >= 0 else 0,
            keys={
                key: (line, tuple(each + shift for each in value))
                if key == "depends on" and value
                else (line, value)
                for key, (line, value) in section.keys.items()
            },
        )
        for section in sections
    ]


def _listed_files(body: list[str], start: int) -> tuple[int, tuple[str, ...]] | None:
    """Find `**Files:**` with a list below it; return its index in *body*, and the files named.

    The name in an element is the text in backticks, or the first word that looks like a path.
    """
    for i in range(start, len(body)):
        if not _FILES.fullmatch(body[i].rstrip()):
            continue
        below = next((j for j in range(i + 1, len(body)) if not _is_blank(body[j])), len(body))
        items = list(takewhile(bool, (_ELEMENT.match(line.rstrip()) for line in body[below:])))
        found = [_LISTED_FILE.search(item["text"]) for item in items if item]
        names = tuple(dict.fromkeys(name["code"] or name["bare"] for name in found if name))
        if names:
            return i, names
    return None


def _read_needs(
    title: str,
    line: int,
    body: list[str],
    first_line: int,
    keys: dict[str, tuple[int, Any]],
    problems: list[_Problem],
) -> str:
    """Read the prerequisites of a phase without that key from its title or its prose into *keys*.

    Return the title without them. Prose that names no phase ("Dependencies: numpy") is ignored.
    """
    found = NEED_OF_TITLE.search(title)
    needs = [(line, found["value"])] if found and _names_phases(found["value"], True) else []
    needs += [(first_line + i, match["value"]) for i, match in needs_of_prose(body)]
    for number, text in needs:
        value = text.strip().strip("*_").rstrip(".").strip()
        try:
            read = _dependencies(value)
        except ValueError as error:
            problems.append((number, f"Depends on: {error}"))
            continue
        if "depends on" not in keys:
            keys["depends on"] = (number, read)
        elif keys["depends on"][1] != read:
            problems.append(
                (number, f"Depends on: line {keys['depends on'][0]} says something else")
            )
    return title[: found.start()] if found else title


def _names_phases(text: str, is_certain: bool) -> bool:
    """Whether the value of "Depends on" in prose names phases, or none of them."""
    value = text.strip().strip("*_").rstrip(".").strip()
    names = re.search(r"\bphases?\b|^[0-9 ,]+$", value, re.IGNORECASE)
    return bool(names or value.lower() == "none" or (is_certain and re.search("[0-9]", value)))


def needs_of_prose(body: Sequence[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield each line of *body* that names prerequisites: its index, and a match with `value`."""
    fence = ""
    for i, text in enumerate(body):
        mark = re.match(r" {0,3}(```+|~~~+)", text)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence and (match := _NEED.match(text.rstrip("\r\n"))):
            is_certain = match["key"].lower().startswith("depend") and "on" in match["key"].lower()
            if _names_phases(match["value"], is_certain):
                yield i, match


def number_of(text: str) -> int:
    """Return the number that *text* is, in digits or a word of `NUMBER`."""
    word = text.casefold()
    return _WORDS.index(word) + 1 if word in _WORDS else int(word)


def _is_blank(line: str) -> bool:
    """Whether a line is blank in Markdown (str.strip removes more kinds of spaces)."""
    return not line.strip(" \t\r\n")


def _text(lines: list[str]) -> str:
    """Join *lines* unchanged, without blank lines around them and without the last line end."""
    filled = [i for i, line in enumerate(lines) if not _is_blank(line)]
    if not filled:
        return ""
    return "".join(lines[filled[0] : filled[-1] + 1]).rstrip("\r\n")


def _key_lines(body: list[str]) -> tuple[int, list[re.Match[str]]]:
    """Return the index at which the lines of keys at the head of *body* begin, and their matches.

    They end at the first other line. After a blank line, they are keys only if one of them is
    known; otherwise they are prose, which may begin with `Note: `.
    """
    start = next((i for i, line in enumerate(body) if not _is_blank(line)), 0)
    matches = (
        None if _begins_list(body, i) else _KEY_LINE.match(body[i].rstrip("\r\n"))
        for i in range(start, len(body))
    )
    block = [match for match in takewhile(_is_key_line, matches) if match]
    if start and not any(_key(match) in KEYS for match in block):
        return start, []
    return start, block


def _begins_list(body: list[str], i: int) -> bool:
    below = next((line for line in body[i + 1 :] if not _is_blank(line)), "")
    return bool(_FILES.fullmatch(body[i].rstrip()) and _ELEMENT.match(below.rstrip()))


def _is_key_line(match: re.Match[str] | None) -> bool:
    if not match:
        return False
    # "http://…" and "Steps:" are text.
    return _key(match) in KEYS or bool(
        not match["markup"] and re.match(r"[ \t]+\S", match["value"])
    )


def _key(match: re.Match[str]) -> str:
    return " ".join(match["key"].lower().split())


def _read_keys(
    block: list[re.Match[str]], first_line: int, problems: list[_Problem]
) -> dict[str, tuple[int, Any]]:
    """Return {key: (line, value)}; the value of a faulty key is None, its fault in *problems*."""
    keys: dict[str, tuple[int, Any]] = {}
    for line, match in enumerate(block, first_line):
        key = _key(match)
        if key in keys:
            problems.append((line, f"{match['key']}: repeated; first on line {keys[key][0]}"))
            continue
        keys[key] = (line, None)
        try:
            keys[key] = (line, _read_value(key, match))
        except ValueError as error:
            problems.append((line, f"{match['key']}: {error}"))
    return keys


def _read_value(key: str, match: re.Match[str]) -> Any:
    if key not in KEYS:
        hint = did_you_mean(key, [known.capitalize() for known in KEYS])
        raise ValueError(f"unknown key{hint}; if it is text, put a blank line before it")
    value = match["value"].strip()
    if match["markup"]:
        raise ValueError(f'expected it without markup: "{key.capitalize()}: value"')
    return KEYS[key](value)


def _dependencies(value: str) -> tuple[int, ...]:
    if value.lower() == "none":
        return ()
    numbers = []
    for item in re.split(r",\s*and\b|,|\band\b", value):
        match = _DEPENDENCY.fullmatch(item.strip())
        number = number_of(match[1]) if match else -1
        if number < 0:
            raise ValueError(f'expected phases such as "1, 2" or "none", not {value!r:.60}')
        numbers.append(number)
    return tuple(numbers)


def _workflow(value: str) -> str:
    if not value:
        raise ValueError("expected the name of a workflow, not nothing")
    return value


def _gate(value: str) -> str:
    if not value:
        raise ValueError('expected what is asked, such as "Gate: may this be merged?"')
    return value


def _check(value: str) -> str:
    if not value:
        raise ValueError("expected the name of a check, which pgcoord.toml declares, not nothing")
    return value


def _when(value: str) -> str:
    if value not in RUN_WHEN:
        raise ValueError(
            f"expected {', '.join(RUN_WHEN[:-1])} or {RUN_WHEN[-1]}, not {value!r:.60}"
        )
    return value


def _lock(value: str) -> str:
    if not value or len(value) > 200:
        raise ValueError(f'expected a name such as "staging", not {value!r:.60}')
    return value


def _variables(value: str) -> tuple[tuple[str, str], ...]:
    expected = 'expected NAME=value, with quotes where there are spaces: MODE=prod TITLE="a b"'
    # Taken as a part of the value, it would be found only by the process that gets it.
    if comma := _COMMA.match(value):
        raise ValueError(
            f"a comma after {comma[1]!r:.60}: variables are separated by spaces;"
            " a value that ends with a comma, or has one before NAME=, has quotes"
        )
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise ValueError(f"{expected}; {error}") from error
    pairs = [word.partition("=") for word in words]
    if not pairs or not all(equals and _VARIABLE.fullmatch(name) for name, equals, _ in pairs):
        raise ValueError(f"{expected}, not {value!r:.60}")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"a variable is given twice in {value!r:.60}")
    return tuple((name, each) for name, _, each in pairs)


def _hours(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) or not float(value):
        raise ValueError(f"expected a number above 0, not {value!r:.60}")
    return float(value)


def _integer(least: int, most: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not least <= int(value) <= most:
            raise ValueError(f"expected a whole number from {least} to {most}, not {value!r:.60}")
        return int(value)

    return read


def _files(value: str) -> tuple[str, ...]:
    names = tuple(name.strip().strip("`") for name in value.split(","))
    if not all(names):
        raise ValueError(f"expected names separated by commas, not {value!r:.60}")
    return names


KEYS: dict[str, Callable[[str], Any]] = {
    "depends on": _dependencies,
    "when": _when,
    "lock": _lock,
    "env": _variables,
    "workflow": _workflow,
    "hours": _hours,
    "priority": _integer(0, 100),
    "files": _files,
    "gate": _gate,
    "check": _check,
    "max attempts": _integer(1, _MOST_ATTEMPTS),
    "timeout": parse_duration,
}


def _faults_in_order(sections: list[_Section]) -> Iterator[_Problem]:
    """Find numbers of phases that occur twice, or are missing."""
    lines: dict[int, int] = {}
    for section in sections:
        if section.number in lines:
            first = f"the first one is on line {lines[section.number]}"
            yield section.line, f"phase {section.number} is here a second time: {first}"
        elif section.number:
            lines[section.number] = section.line
    # A missing number is most likely that of a faulty heading.
    if all(section.number for section in sections):
        for before, number in pairwise([0, *sorted(lines)]):
            if number - before == 2:
                yield lines[number], f"phase {number} is here, but no phase {before + 1}"
            elif number - before > 2:
                missing = f"no phases {before + 1} to {number - 1}"
                yield lines[number], f"phase {number} is here, but {missing}"


def _faults_in_dependencies(sections: list[_Section]) -> Iterator[_Problem]:
    numbers = {section.number for section in sections}
    for section in sections:
        line = section.line_of("depends on")
        named = section.value("depends on") or ()
        for number in sorted(number for number, count in Counter(named).items() if count > 1):
            yield line, f"Depends on: phase {number} is named more than once"
        if section.value("when") == "failed" and not section.depends_on:
            problem = "When: failed: expected phases that it depends on"
            yield section.line_of("when"), problem
        if section.number in named:
            yield line, f"Depends on: phase {section.number} cannot depend on itself"
        # An unknown phase may be the one with the faulty heading.
        for number in sorted(set(named) - numbers) if 0 not in numbers else ():
            yield line, f"Depends on: there is no phase {number}"
    yield from _cycles(sections)


def _cycles(sections: list[_Section]) -> Iterator[_Problem]:
    """Find cycles of dependencies, at most `_MOST_CYCLES`, none of which share a dependency."""
    of_number = {section.number: section for section in sections if section.number}
    graph = {
        number: {each for each in section.depends_on if each in of_number and each != number}
        for number, section in of_number.items()
    }
    for path in islice(_paths_of_cycles(graph), _MOST_CYCLES):
        cycle = f"Depends on: cycle {' → '.join(map(str, path))}"
        if any("depends on" not in of_number[number].keys for number in path):
            cycle += ' (without "Depends on:", a phase depends on the one before it)'
        yield of_number[path[0]].line_of("depends on"), cycle


def _paths_of_cycles(graph: dict[int, set[int]]) -> Iterator[list[int]]:
    """Yield cycles, each from its lowest number back to it, and remove their edges from *graph*.

    *graph*: {phase: its prerequisites}.
    """
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # Its path goes from prerequisite to dependent, and ends where it began.
            ring = error.args[1][:0:-1]
        else:
            return
        lowest = ring.index(min(ring))
        path = [*ring[lowest:], *ring[: lowest + 1]]
        for dependent, prerequisite in pairwise(path):
            graph[dependent].remove(prerequisite)
        yield path


def _faults_in_workflows(
    sections: list[_Section], workflows: Collection[str] | None, has_default: bool
) -> Iterator[_Problem]:
    if workflows is None:
        return
    for section in sections:
        name = section.value("workflow")
        if name is not None and name not in workflows:
            hint = did_you_mean(name, sorted(workflows))
            yield section.line_of("workflow"), f"Workflow: {name!r:.60} is not declared{hint}"
        elif (
            "workflow" not in section.keys
            and section.prompt.strip()
            and not has_default
            and not section.is_completed
        ):
            problem = "no workflow: expected a line `Workflow: name`, for none is the default"
            yield section.line, problem


def _phase(section: _Section) -> PlannedPhase:
    return PlannedPhase(
        number=section.number,
        title=section.title,
        prompt=section.prompt,
        depends_on=section.depends_on,
        line=section.line,
        workflow=section.value("workflow"),
        hours=section.value("hours"),
        priority=section.value("priority"),
        files=section.value("files") or (),
        max_attempts=section.value("max attempts"),
        timeout=section.value("timeout"),
        gate=section.value("gate"),
        check=section.value("check"),
        when=section.value("when"),
        lock=section.value("lock"),
        environment=section.value("env") or (),
        is_completed=section.is_completed,
        taken=tuple((key, line) for key, (line, _) in section.keys.items()),
        body=section.body,
    )


def _faults_in_parameters(lines: list[str], given: Mapping[str, str]) -> Iterator[_Problem]:
    """Find parameters without a value in *given*, and values that no parameter uses."""
    used = set()
    for number, line in enumerate(lines, 1):
        for match in _PARAMETER.finditer(line):
            name = match[1]
            if name is not None and name not in given:
                yield (
                    number,
                    f"{match[0]} has no value: 'run', 'submit' and 'schedule' take one by"
                    f" --set {name}=VALUE; {{{match[0]}}} is this text itself",
                )
            used.add(name)
    for name in given:
        if name not in used:
            hint = did_you_mean(name, sorted(each for each in used if each))
            yield 1, f"--set {name}: there is no {{param.{name}}} in the plan{hint}"


def _unfilled_names(sections: list[_Section]) -> Iterator[_Problem]:
    """Find parameters in names of pgcoord.toml, which are looked up before anything is filled."""
    for section in sections:
        for key in ("workflow", "check"):
            if match := _PARAMETER.search(section.value(key) or ""):
                yield (
                    section.line_of(key),
                    f"{key.capitalize()} is a name of pgcoord.toml: {match[0]} is not filled there",
                )


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Fill the parameters of *text*, once: braces in a value are not filled again."""
    return _PARAMETER.sub(lambda match: values[match[1]] if match[1] else match[0][1:-1], text)


def _phase_filled(phase: PlannedPhase, values: Mapping[str, str]) -> PlannedPhase:
    def line(text: str) -> str:
        return " ".join(_filled(text, values).split())

    return replace(
        phase,
        title=line(phase.title),
        prompt=_filled(phase.prompt, values),
        gate=line(phase.gate) if phase.gate else None,
        lock=line(phase.lock) if phase.lock else None,
        files=tuple(line(each) for each in phase.files),
        environment=tuple((name, _filled(each, values)) for name, each in phase.environment),
    )
