"""Parse the text of a plan: its title, its description and its phases, or every fault by line.

`# Title` and the text below it describe the feature; each `## Phase 1: Title` begins a phase, with
`Key: value` lines directly below it and the prompt after them. Prompts are never changed. All
faults are collected and raised together.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from operator import itemgetter

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pgcoord.errors import InvalidPlan
from pgcoord.plan.faults import faults_in_dependencies, faults_in_order, faults_in_workflows
from pgcoord.plan.headings import (
    DONE_AT_END,
    NAMES_PHASE,
    PHASE,
    PHASE_LIKE,
    Heading,
    ends_of,
    extent_of,
    lost_headings,
    other_lines,
    other_phases,
    read_headings,
    split_lines,
)
from pgcoord.plan.keys import is_blank, key_lines, listed_files, number_of, read_keys
from pgcoord.plan.model import Plan, PlannedPhase, Problem, Section
from pgcoord.plan.needs import read_needs, unread_dependencies, unread_needs
from pgcoord.plan.parameters import faults_in_parameters, fill, fill_phase, unfilled_names

MOST_PHASES = 200

# Plans of this size take the Markdown parser a second. Blocks: headings, list items, quotations.
MOST_LINES = 100_000

MOST_BLOCKS = 20_000

# A badge or another picture, which may stand above the title.
_PICTURE = re.compile(
    r"\[?!\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?|</?(?:img|p|a|div|br|h1|center|picture|source)\b[^>]*>"
)

# Below the title: the most that the feature may cost.
_BUDGET = re.compile(r"[*_]*budget[*_]*\s*:[*_]*\s*(?P<value>.*)", re.IGNORECASE)

_AMOUNT = re.compile(r"\$?\s*([0-9]{1,9}(?:\.[0-9]{1,4})?)\s*(?:USD)?")

# A key of the YAML above the title, at its outermost level.
_YAML_KEY = re.compile(r"(?P<key>[^\W\d_][\w -]*?)\s*:(?:\s|$)")

_BLOCK = re.compile(r"\s*(?:#|[-+*>]|[0-9]{1,9}[.)])")

# Only blocks matter here: inline markup and link definitions would cost time for nothing.
# When lists nest deeper than the limit (20 by default), the parser drops what follows them.
_markdown = MarkdownIt("commonmark", {"maxNesting": 100}).disable(["inline", "reference"])


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
    given = split_lines(text)
    lines = _without_front_matter(given)
    problems = [*_unusable_characters(lines), *_excess(lines)]
    notes: list[Problem] = []
    front_matter = [each for each, kept in zip(given, lines, strict=True) if each is not kept]
    _name_unread_keys(front_matter, problems, notes)
    if not problems:
        tokens = [token for token in _markdown.parse("".join(lines)) if token.level <= 1]
        headings = list(read_headings(tokens))
        starts = [each for each in headings if each.tag == "h2" and PHASE_LIKE.match(each.text)]
        problems += lost_headings(tokens, lines, {each.start for each in headings})
        problems += other_phases(headings, starts)
        full_title, description = _read_front(tokens, headings, starts, lines, problems, title)
        description, budget = _take_budget(description, lines, problems, notes)
        sections = _read_sections(headings, starts, lines, problems, notes, takes_done)
        notes += unread_dependencies(lines, starts, sections)
        for each in sections:
            notes += unread_needs(each, lines[each.line - 1 : each.body[1] - 1])
        others = other_lines(lines, starts, {each.number for each in sections})
        if starts:
            notes += others
        else:  # they are what the author took for phases
            told = {each.start + 1 for each in headings}
            problems += [each for each in others if each[0] not in told]
        sections = _renumbered(sections, notes)
        problems += faults_in_order(sections)
        problems += faults_in_dependencies(sections)
        problems += faults_in_workflows(sections, workflows, has_default)
        if parameters is not None:
            problems += faults_in_parameters(lines, parameters)
            problems += unfilled_names(sections)
    if problems:
        raise InvalidPlan(
            [f"{name}:{line}: {problem}" for line, problem in sorted(problems, key=itemgetter(0))]
        )
    phases = sorted((_phase(section) for section in sections), key=lambda phase: phase.number)
    if parameters is not None:
        full_title, description = fill(full_title, parameters), fill(description, parameters)
        phases = [fill_phase(phase, parameters) for phase in phases]
    return Plan(
        title=full_title,
        description=description,
        phases=tuple(phases),
        notes=tuple(f"{name}:{line}: {note}" for line, note in sorted(notes)),
        max_cost_usd=budget,
    )


def _unusable_characters(lines: list[str]) -> Iterator[Problem]:
    """Find characters that Postgres cannot store: NUL, and unpaired surrogates."""
    for number, line in enumerate(lines, 1):
        if match := re.search("[\0\ud800-\udfff]", line):
            yield number, f"unusable character U+{ord(match[0]):04X}: a plan is plain text"


def _excess(lines: list[str]) -> Iterator[Problem]:
    """Find the first line and the first block beyond the limits for parsing."""
    if len(lines) > MOST_LINES:
        yield MOST_LINES + 1, f"too many lines: a plan has at most {MOST_LINES}"
    blocks = (number for number, line in enumerate(lines, 1) if _BLOCK.match(line))
    if excess := next(islice(blocks, MOST_BLOCKS, None), None):
        kinds = "headings, list items and quotations"
        yield excess, f"too many {kinds}: a plan has at most {MOST_BLOCKS}"


def _without_front_matter(lines: list[str]) -> list[str]:
    """Blank the YAML front matter between two `---`, so that all lines keep their numbers."""
    if not lines or lines[0].rstrip() != "---":
        return lines
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "...")), 0)
    return ["\n"] * (end + 1) + lines[end + 1 :] if end else lines


def _name_unread_keys(
    front_matter: list[str], problems: list[Problem], notes: list[Problem]
) -> None:
    """Add a note that names the keys of the front matter, and a fault for a budget there."""
    keys = []
    for number, line in enumerate(front_matter, 1):
        if match := _YAML_KEY.match(line):
            keys.append(match["key"])
            if match["key"].lower() == "budget":
                expected = 'expected "Budget: $5" in the first line below the title'
                problems.append((number, f"{match['key']}: not read in front matter; {expected}"))
    if keys:
        notes.append((1, f"the front matter is not read: {', '.join(keys)[:200]}"))


def _read_front(
    tokens: list[Token],
    headings: list[Heading],
    starts: list[Heading],
    lines: list[str],
    problems: list[Problem],
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
        if not starts and NAMES_PHASE.search(other.text):
            continue  # `other_phases` names it
        problem = f"a second title: the first is on line {title.start + 1}"
        problems.append((other.start + 1, problem))
    # A comment may come first: a licence, or a directive for a linter.
    above = next(
        token
        for token in tokens
        if token.level == 0 and token.map and not _is_ornament(token, lines)
    )
    if extent_of(above)[0] < title.start:
        line = extent_of(above)[0] + 1
        problems.append((line, "text above the title: expected it below, as the description"))
    return " ".join(title.text.split("\n")), _text(lines[title.end : end])


def _take_budget(
    description: str, lines: list[str], problems: list[Problem], notes: list[Problem]
) -> tuple[str, float | None]:
    """Split off a `Budget:` in the first line of *description*; name one in another line.

    Return the rest of it, and the amount in US dollars; None if there is none.
    """
    first, _, rest = description.partition("\n")
    match = _BUDGET.fullmatch(first.strip())
    if not match:
        for other in rest.split("\n"):
            found = _BUDGET.fullmatch(other.strip())
            if found and _AMOUNT.fullmatch(found["value"]):
                line = next(i for i, each in enumerate(lines, 1) if each.strip() == other.strip())
                expected = "as a budget it is the first line below the title"
                notes.append((line, f"{other.strip()!r:.60} is text: {expected}"))
        return description, None
    amount = _AMOUNT.fullmatch(match["value"])
    if not amount or float(amount[1]) < 0.01:
        expected = 'expected US dollars such as "Budget: $5"'
        line = next(number for number, each in enumerate(lines, 1) if each.strip() == first.strip())
        problems.append((line, f"Budget: {expected}, not {match['value']!r:.60}"))
        return description, None
    return rest.strip(), float(amount[1])


def _is_ornament(token: Token, lines: list[str]) -> bool:
    """Whether a block is HTML, such as a comment, a rule, or only pictures."""
    if token.type in ("html_block", "hr"):
        return True
    text = "".join(lines[slice(*extent_of(token))])
    return token.type == "paragraph_open" and not _PICTURE.sub("", text).strip()


def _read_sections(
    headings: list[Heading],
    starts: list[Heading],
    lines: list[str],
    problems: list[Problem],
    notes: list[Problem],
    takes_done: bool,
) -> list[Section]:
    """Read each phase, up to the next heading of `ends_of`."""
    starting = {each.start for each in starts}
    ends = ends_of(headings, starts)
    sections = []
    for heading in starts:
        following = next((each for each in ends if each.start > heading.start), None)
        end = following.start if following else len(lines)
        body = lines[heading.end : end]
        sections.append(_read_section(heading, body, problems, takes_done))
        if following and following.start not in starting:
            note = f"{following.text!r:.60} is not part of phase {sections[-1].number}, nor of any"
            notes.append((following.start + 1, note))
    if len(sections) > MOST_PHASES:
        line = sections[MOST_PHASES].line
        problems.append((line, f"too many phases: a plan has at most {MOST_PHASES}"))
    return sections


def _read_section(
    heading: Heading, body: list[str], problems: list[Problem], takes_done: bool
) -> Section:
    line = heading.start + 1
    text = DONE_AT_END.sub("", heading.text) if heading.is_done else heading.text
    match = None if "\n" in text else PHASE.fullmatch(text)
    number = number_of(match[1]) if match else -1
    if number < 0:
        expected = 'expected "## Phase 1: Title", numbered from 1 (or One to Twenty)'
        problems.append((line, f"not a phase: {heading.text!r:.60}; {expected}"))
    if heading.is_done and not takes_done:
        mended = "'pgcoord submit --done completed' takes it so; else take out the mark"
        problems.append((line, f"this phase is marked as done: {mended}"))
    start, block = key_lines(body)
    keys = read_keys(block, heading.end + start + 1, problems)
    below = start + len(block)
    if listed := listed_files(body, below):
        # The list stays in the prompt: it may say what to do with each file.
        keys.setdefault("files", (heading.end + listed[0] + 1, listed[1]))
    title = match[2] if match else ""
    if "depends on" not in keys:
        title = read_needs(title, line, body[below:], heading.end + below + 1, keys, problems)
    prompt = _text(body[below:])
    if not prompt.strip() and "gate" not in keys and not heading.is_done:
        empty = "this phase is empty" if number < 0 else f"phase {number} is empty"
        problems.append((line, f"{empty}: expected its prompt below the heading and keys"))
    extent = (heading.end + 1, heading.end + 1 + len(body))
    return Section(line, number, title, keys, prompt, heading.is_done, extent)


def _renumbered(sections: list[Section], notes: list[Problem]) -> list[Section]:
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


def _text(lines: list[str]) -> str:
    """Join *lines* unchanged, without blank lines around them and without the last line end."""
    filled = [i for i, line in enumerate(lines) if not is_blank(line)]
    if not filled:
        return ""
    return "".join(lines[filled[0] : filled[-1] + 1]).rstrip("\r\n")


def _phase(section: Section) -> PlannedPhase:
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
