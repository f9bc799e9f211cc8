"""The headings of a plan: those of its phases, and those that only look like one.

A Markdown parser decides which lines are headings, and which stand in a code block for example.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markdown_it.token import Token

from pgcoord.plan.keys import NUMBER, number_of, plain_line
from pgcoord.plan.model import Problem

# A hyphen needs a space after it: "Phase 1-2: x" is not phase 1, titled "2: x".
_SEPARATOR = r"(?:[:–—]|-(?=\s))"  # noqa: RUF001

# The heading of a phase: its number, and its title.
PHASE = re.compile(rf"phase\s+({NUMBER})\s*{_SEPARATOR}\s*(.*\S)", re.IGNORECASE)

# A heading's text that its author must have meant as a phase, well-formed or not.
PHASE_LIKE = re.compile(
    r"[*_]*phase"
    rf"(?:\s*(?:$|{_SEPARATOR}|[0-9])|\s+(?:{NUMBER})\b|\s+[^\s:–—]+\s*{_SEPARATOR}"  # noqa: RUF001
    r"|s?\W*(?:(?:no|nr|number)\b\W*)?\d)",
    re.IGNORECASE,
)

# A line that is underlined, and so a heading of the second level.
_UNDERLINE = re.compile(r" {0,3}-+[ \t]*$")

# Without indentation, the line is in no list or quotation, but maybe in a code or HTML block.
_HEADING_LIKE = re.compile(rf"##\s*{PHASE_LIKE.pattern}", re.IGNORECASE)

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

DONE_AT_END = re.compile(
    r"(?:[✅☑✔🗹]\ufe0f?|[(\[](?:complete|completed|done)[)\]]|~~|[\s*_])+$", re.IGNORECASE
)

# A heading that may be meant as a phase: with text before it, or another word for "phase".
NAMES_PHASE = re.compile(rf"\bphase\s+(?:{NUMBER})\b", re.IGNORECASE)

# What numbered work is called, in some languages; "day" and the like where a plan goes by time.
KINDS = (
    "phase|step|task|part|stage|milestone|item|pr|wave|week|day|iteration|sprint|round|batch"
    "|schritt|aufgabe|teil|etappe|étape|tâche|partie|fase|paso|etapa|tarea|parte|passo|tarefa"
    "|tappa|stap|taak|krok|etap|faza|fáze|zadanie|úkol|fas|steg|trin|uppgift|oppgave|opgave"
    "|vaihe|tehtävä|aşama|görev|шаг|этап|фаза|задача|крок|етап|φάση|βήμα|giai đoạn|bước"
    "|tahap|langkah|ステップ|フェーズ|タスク|段階|手順|阶段|步骤|任务|階段|步驟|任務|단계"
)

# Such a number between two words, as in "第二阶段"; or before one, as in "2단계".
HAN_NUMBERS = "一二三四五六七八九"
AROUND_NUMBER = (
    rf"(?:第\s*(?P<han>\d{{1,3}}|[{HAN_NUMBERS}]?十[{HAN_NUMBERS}]?|[{HAN_NUMBERS}])\s*"
    r"(?P<word>阶段|階段|步骤|步驟|步|期|部分|フェーズ|ステップ|段階)"
    r"|(?P<korean>\d{1,3})\s*단계)"
)
_NAMES_STEP = re.compile(
    rf"[\W_]*(?:(?:stage|step|task|part|milestone)\s+(?:{NUMBER})\b"
    rf"|(?:{KINDS})\s*(?:{NUMBER})\s*(?:{_SEPARATOR}|：)|{AROUND_NUMBER})",  # noqa: RUF001
    re.IGNORECASE,
)

# A line that is not a heading in Markdown, but looks to people as if it began a phase.
_PHASE_OF_LINE = re.compile(
    r" {0,3}(?:(?:[-+*]|[0-9]{1,3}[.)])\s+)?(?:\[[ xX]\]\s+)?(?:<h[1-6]\b[^>]*>|#{1,6}\s+)?"
    rf"[^\w\s>|]*\s*phase\s+(?P<number>{NUMBER})\s*(?:{_SEPARATOR}|[*_]+\s*$|</h)",
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


def looks_like_plan(text: str) -> bool:
    """Whether *text* has the heading of a phase, well-formed or not; else it is a description."""
    return any(_begins_phase(*each) for each in pairwise([*split_lines(text), ""]))


def _begins_phase(line: str, below: str) -> bool:
    """Whether *line*, above the line *below*, is the heading of a phase, marks before it or not."""
    mark = re.match(r"##(?!#)\s*", line)
    if not mark and not (_UNDERLINE.match(below) and re.match(r" {0,3}\S", line)):
        return False
    text = line[mark.end() if mark else 0 :].strip()
    marks = _MARKS.match(text)
    return bool(PHASE_LIKE.match(text[marks.end() :] if marks else text))


@dataclass(frozen=True)
class Heading:
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


def extent_of(token: Token) -> tuple[int, int]:
    """Return the lines of a block, from 0: its first one, and the one after its last."""
    start, end = token.map or (0, 0)
    return start, end


def read_headings(tokens: list[Token]) -> Iterator[Heading]:
    """Yield the headings that stand in no other block, in the order of lines."""
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open" and opening.level == 0:
            text = inline.content.strip()
            marks = _MARKS.match(text)
            plain = text[marks.end() :] if marks else text
            yield Heading(opening.tag, plain, *extent_of(opening), bool(_DONE.match(text)))


def other_phases(headings: list[Heading], starts: list[Heading]) -> Iterator[Problem]:
    """Find headings that are probably meant as phases, but are not written as one.

    `### Step 1` below a phase is part of its prompt; `## Step 1`, at the level of phases, is a
    fault.
    """
    starting = {each.start for each in starts}
    titles = [each for each in headings if each.tag == "h1" and NAMES_PHASE.search(each.text)]
    expected = 'expected "## Phase 1: Title"'
    for each in headings:
        if each.start in starting:
            continue
        if each.tag == "h1":
            below = bool(starts) and each.start > starts[0].start
            if each in titles and (below or (not starts and len(titles) > 1)):
                yield each.start + 1, f"this looks like a phase: {each.text!r:.60}; {expected}"
            continue
        begins = PHASE_LIKE.match(each.text)
        named = NAMES_PHASE.search(each.text) if each.tag == "h2" or not starts else begins
        named = named or (_NAMES_STEP.match(each.text) if each.tag == "h2" or not starts else None)
        if named and (each.tag == "h2" or begins or not starts):
            yield each.start + 1, f"this looks like a phase: {each.text!r:.60}; {expected}"


def other_lines(lines: list[str], starts: list[Heading], numbers: set[int]) -> Iterator[Problem]:
    """Find lines that look as if they began another phase than *numbers*, but are not headings."""
    first = starts[0].start if starts else -1
    headings = {each.start for each in starts}
    for i, line in outside_of_code(lines):
        match = _PHASE_OF_LINE.match(line) if i > first and i not in headings else None
        if match and number_of(match["number"]) not in numbers:
            text = line.strip()
            yield (
                i + 1,
                f'{text!r:.60} is text: a phase begins with "## Phase {match["number"]}: Title"',
            )


def outside_of_code(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield each line that is in no fenced block of code: its index, and it as `plain_line`."""
    fence = ""
    for i, text in enumerate(lines):
        mark = re.match(r" {0,3}(```+|~~~+)", text)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence:
            yield i, plain_line(text)


def lost_headings(tokens: list[Token], lines: list[str], starting: set[int]) -> Iterator[Problem]:
    """Find lines that look like the heading of a phase, but are text or code in Markdown."""
    suspects = [
        i
        for i, line in enumerate(lines)
        if i not in starting
        and (_HEADING_LIKE.match(line.rstrip()) or _HIDDEN_PHASE.match(line.rstrip()))
    ]
    blocks = [token for token in tokens if token.level == 0 and token.content] if suspects else []
    block_of = {i: token for token in blocks for i in range(*extent_of(token))}
    for i in suspects:
        block = block_of.get(i)
        if block is None and not _HEADING_LIKE.match(lines[i].rstrip()):
            continue  # in a list or a quotation
        if block is None or block.type == "inline":
            expected = 'expected "## Phase 1: Title", with a space after ## and no deep list before'
            yield i + 1, f"Markdown does not take this for a heading: {expected}"
        elif _never_closed(block, lines):
            kind = "code block" if block.type == "fence" else "comment"
            start = extent_of(block)[0] + 1
            yield i + 1, f"this phase is inside the {kind} of line {start}, which is never closed"
        elif block.type == "code_block":
            yield (
                i + 1,
                "this phase is indented, so Markdown takes it for code: begin the line with ##",
            )
        elif block.type == "html_block" and not block.content.lstrip().startswith("<!--"):
            start = extent_of(block)[0] + 1
            yield (
                i + 1,
                f"this phase is inside the HTML of line {start}: put a blank line before it",
            )


def _never_closed(block: Token, lines: list[str]) -> bool:
    if block.type != "fence":
        return block.content.lstrip().startswith("<!--") and "-->" not in block.content
    last = lines[extent_of(block)[1] - 1].strip()
    return not last.startswith(block.markup) or bool(last.strip(block.markup))


def ends_of(headings: list[Heading], starts: list[Heading]) -> list[Heading]:
    """Return the headings that end a phase: the next phase's, or that of an unrelated section.

    A `##` section that occurs in several phases, or in prompts of the built-in planner, is part of
    its phase.
    """
    starting = {each.start for each in starts}
    phases_with: dict[str, set[int]] = {}
    phase = -1
    for each in headings:
        if each.start in starting:
            phase = each.start
        elif each.tag == "h2" and phase >= 0:
            phases_with.setdefault(each.text.casefold(), set()).add(phase)
    parts = {text for text, phases in phases_with.items() if len(phases) > 1} | _OF_PROMPTS
    return [
        each
        for each in headings
        if each.start in starting
        or each.tag == "h1"
        or (each.tag == "h2" and each.text.casefold() not in parts)
    ]
