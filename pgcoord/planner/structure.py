"""Read the structure of a description: the pieces of work it names, and the text around them.

Elements of lists and numbered sections are the pieces; if there are none, sentences and their
clauses. Text under "Background" or "Out of scope" is not work. `planner` makes phases of the
pieces; nothing here does.
"""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pgcoord.errors import InvalidInput
from pgcoord.plan.headings import AROUND_NUMBER, HAN_NUMBERS, KINDS
from pgcoord.planner.items import (
    PREFIX,
    STATED,
    TASK_BOX,
    Item,
    Piece,
    begins_with_verb,
    items_of,
    numbers_in,
    read_prose,
    without_markup,
)
from pgcoord.planner.layers import layer_of
from pgcoord.planner.needs import find_needs
from pgcoord.planner.references import (
    NUMBERED,
    graphs_in,
    is_parallel,
    key_of,
    number_of,
    todos_in,
)

# The most characters of a description: ten times the longest that we have seen.
MOST_CHARACTERS = 200_000

_markdown = (
    MarkdownIt("commonmark", {"maxNesting": 100}).disable(["inline", "reference"]).enable("table")
)

# The kind of a section by its heading; any other heading is one of work.
_SECTIONS = {
    "criteria": re.compile(
        r"accept|success|definition of done|done when|expected|how (?:to|we) (?:test|verify)|verif",
        re.IGNORECASE,
    ),
    "excluded": re.compile(
        r"out of scope|non-?goals?|not (?:included|in scope|part)|later|future|won'?t",
        re.IGNORECASE,
    ),
    "context": re.compile(
        r"background|context|motivation|why|overview|summary|introduction|goals?\b|problem|notes?\b"
        r"|references?|links|assumptions?|current|constraints?|risks?|steps to reproduce|reproduc"
        r"|actual|environment|impact|about|description|open questions?|user stor|story\W*$"
        r"|(?:dev|developer|technical|additional) notes|change ?log\b|revision history"
        r"|dev agent record|qa results|completion notes|table of contents|glossary",
        re.IGNORECASE,
    ),
}

# Sections of a design document, which surround the work if another section is about that.
_OF_DESIGN = re.compile(
    r"(?:detailed|technical|proposed|high-level)? ?(?:design|architecture|approach|solution)\b"
    r"|alternatives|considered|decision|consequences|drawbacks|rationale|prior art|unresolved"
    r"|status|abstract|terminology|definitions|requirements|trade-?offs|metadata"
    r"|(?:critical |relevant )?files\b|current goal",
    re.IGNORECASE,
)
_OF_WORK = re.compile(
    r"implementation|work (?:plan|items)|(?:implementation |task )?(?:tasks?|steps|plan|list)\b"
    r"|(?:delivery|migration|rollout) plan|milestones|action items|to-?do",
    re.IGNORECASE,
)

# A mark that a piece of work is done, or struck out.
_DONE = re.compile(
    r"[\W_]*?(?:[✅☑✔]|\[[xX]\]|~~)|.*(?:[✅☑✔]\ufe0f?|[(\[](?:complete|completed|done)[)\]]|~~)[\s*_]*$",
    re.IGNORECASE | re.DOTALL,
)

# The most pieces of work of one feature.
MOST_PIECES = 200


@dataclass(frozen=True)
class Feature:
    """The feature to plan: title, description, estimated hours (None: unknown), and kind."""

    title: str
    description: str = ""
    hours: float | None = None
    kind: str = "feature"


@dataclass(frozen=True)
class Structure:
    """A description taken apart: pieces of work, context, acceptance criteria, exclusions.

    *in_prose*: the pieces are sentences and clauses, for lack of lists and sections.
    """

    items: tuple[Item, ...]
    context: str = ""
    criteria: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    in_prose: bool = False
    notes: tuple[str, ...] = ()
    """Remarks on what the text says of prerequisites and could not be used."""


def described_by(text: str, hours: float | None = None, untitled: str = "Plan") -> Feature:
    """Return the feature that a Markdown text describes.

    Its title is the first line, or the first `#` heading if something that is not text precedes it;
    *untitled* where the text begins with the work itself, such as a list. *hours*: the estimate
    for it, if there is one.
    """
    lines = text.strip().split("\n")
    lines = _without_front_matter(lines)
    tokens = _markdown.parse("\n".join(lines)[:MOST_CHARACTERS])
    indexes = [i for i, each in enumerate(tokens) if each.level == 0 and each.map]
    heads = [i for i in indexes if tokens[i].tag == "h1"]
    if indexes and _begins_with_work(tokens, indexes[0], lines):
        return Feature(untitled, "\n".join(lines).strip(), hours)
    text_first = bool(indexes) and tokens[indexes[0]].type in ("paragraph_open", "heading_open")
    if text_first or not heads:
        first, _, rest = "\n".join(lines).strip().partition("\n")
        underline = re.match(r"(?:=+|-+)[ \t]*(?:\n|$)", rest)
        return Feature(
            without_markup(first.lstrip("#")),
            rest[underline.end() if underline else 0 :].strip(),
            hours,
        )
    begin, end = tokens[heads[0]].map or (0, 0)
    title = without_markup(tokens[heads[0] + 1].content)
    return Feature(title, "\n".join([*lines[:begin], *lines[end:]]).strip(), hours)


def _begins_with_work(tokens: list[Token], first: int, lines: list[str]) -> bool:
    """Whether a text has no title: its first block, at the index *first*, is a piece of work.

    That is a list or a table without any `#` heading, or one of several numbered headings or lines.
    """
    tag, kind = tokens[first].tag, tokens[first].type
    if kind == "heading_open":
        alike = [i for i, each in enumerate(tokens) if each.type == kind and each.tag == tag]
        numbered = [i for i in alike if NUMBERED.match(tokens[i + 1].content)]
        return first in numbered and len(numbered) > 1
    if kind == "paragraph_open":
        begin = (tokens[first].map or (0, 0))[0]
        is_table = _with_tables(lines[begin : begin + 2])[0] != lines[begin]
        return is_table or (_is_step(lines[begin]) and sum(map(_is_step, lines)) > 1)
    has_title = any(each.tag == "h1" for each in tokens)
    return kind in ("bullet_list_open", "ordered_list_open", "table_open") and not has_title


def _without_front_matter(lines: list[str]) -> list[str]:
    """Return *lines* without YAML above them.

    If that lists what is to be done, this list is the work, and the text below only surrounds it.
    """
    if not lines or lines[0].rstrip() != "---" or "---" not in map(str.rstrip, lines[1:]):
        return lines
    end = [line.rstrip() for line in lines].index("---", 1)
    rest = lines[end + 1 :]
    todos = todos_in(lines[1:end])
    if not todos:
        return rest
    is_code = False
    for index, line in enumerate(rest):
        is_code ^= line.lstrip().startswith(("```", "~~~"))
        if not is_code and re.match(r"#{2,4}\s", line):
            rest[index] = f"#{line}"
    title = next((i + 1 for i, line in enumerate(rest) if re.match(r"#\s", line)), 0)
    return [*rest[:title], "", "## Tasks", "", todos, "", "## Context", "", *rest[title:]]


# Columns by which a line is the head of comma-separated values.
_OF_EXPORTS = {"summary", "title", "issue key", "issue id"}


def _number_of_han(match: re.Match[str]) -> str:
    """Return what begins like "第二阶段" with the word before the number: "阶段 2:"."""
    number = match["korean"] or match["han"]
    if not number.isdecimal():
        tens, ten, ones = number.rpartition("十")
        digits = HAN_NUMBERS.index
        number = str(
            (digits(tens) + 1 if tens else 1) * 10 * bool(ten) + (digits(ones) + 1 if ones else 0)
        )
    word = (
        "단계"
        if match["korean"]
        else {"步": "步骤", "期": "阶段", "部分": "阶段"}.get(match["word"], match["word"])
    )
    return f"{match['before']}{word} {number}: "


# What begins an element of a list, a heading or a step for people, though not in Markdown or for
# `NUMBERED`, with what does.
_BULLETS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(\s*)[•◦▪‣●∙]\s*"), r"\1- "),
    (re.compile(r"(\s*)[⬜☐◻◽□]\ufe0f?\s*"), r"\1- [ ] "),
    (re.compile(r"(\s*)[☑☒]\ufe0f?\s*"), r"\1- [x] "),
    (re.compile(r"((?:#+\s+)?)\((\d{1,3})\)\s+"), r"\1\2. "),
    (re.compile(r"((?:#+\s+)?)(\d)\ufe0f?\u20e3\s*"), r"\1\2. "),
    (
        re.compile(r"(?P<before>(?:#+\s+)?)(?P<digit>[①-⑳])\s*"),
        lambda match: f"{match['before']}{ord(match['digit']) - ord('①') + 1}. ",
    ),
    (
        re.compile(rf"((?:#+\s+)?[*_]*)\[((?:{KINDS})\s*#?\d{{1,3}})\]\s*:?\s*", re.IGNORECASE),
        r"\1\2: ",
    ),
    (
        re.compile(
            r"(?P<before>\s*(?:[-+*]\s+)?(?:\[[ xX]\]\s+)?(?:#+\s+)?[*_]*)"
            rf"{AROUND_NUMBER}(?:\s*[:：、.–—-]\s*|\s+|$)"  # noqa: RUF001
        ),
        _number_of_han,
    ),
    (
        re.compile(
            r"\s*<h(?P<level>[1-6])\b[^>]*>(?P<text>[^\n]+?)</h(?P=level)>\s*$", re.IGNORECASE
        ),
        lambda match: f"\n{'#' * int(match['level'])} {match['text']}\n",
    ),
)


def as_markdown(lines: list[str]) -> list[str]:
    """Return *lines*, changed so that Markdown sees what people do.

    Lists with bullets of other kinds are lists; lines such as "Step 2: …" are paragraphs; tables
    that an issue tracker exports are tables.
    """
    parts: list[str] = []
    fence = ""
    lines = _with_tables(lines)
    steps = {i for i, line in enumerate(lines) if _is_step(line)}
    for i, line in enumerate(lines):
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence:
            for pattern, replacement in _BULLETS:
                line = pattern.sub(replacement, line) if pattern.match(line) else line
            if i in steps and len(steps) > 1 and parts and parts[-1].strip():
                parts.append("")
        parts.append(line)
        if i in steps and len(steps) > 1 and line.rstrip().endswith(("**", "__")):
            parts.append("")
    return parts


def _with_tables(lines: list[str]) -> list[str]:
    """Return *lines* with each table of comma-separated values, by its columns, as one of pipes."""
    tables: list[str] = []
    width = 0
    for i, line in enumerate(lines):
        row = _values(line) if width or line.count(",") > 1 else []
        names = {name.strip().lower() for name in row}
        if not width and names & _OF_EXPORTS and i + 1 < len(lines):
            width = len(row) if len(_values(lines[i + 1])) == len(row) else 0
            rule = [f"|{'---|' * width}"]
        elif len(row) == width:
            rule = []
        else:
            width = 0
        if not width:
            tables.append(line)
            continue
        cells = (" ".join(cell.replace("|", "/").split()) for cell in row)
        tables += [f"| {' | '.join(cells)} |", *rule]
    return tables


def _values(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # a value beyond its limit
        return []


def _is_step(line: str) -> bool:
    """Whether *line* begins with "Step 2:" or the like, perhaps bold, and no mark of Markdown."""
    match = None if re.match(r"[\s#>+|-]|\*\s", line) else NUMBERED.match(line)
    return bool(match and match["named"])


def read_structure(feature: Feature) -> Structure:
    """Read the structure of a feature's description.

    Raises `InvalidInput` for more than `MOST_CHARACTERS`, or more than `MOST_PIECES`.
    """
    text = feature.description.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > MOST_CHARACTERS:
        raise InvalidInput(
            f"the description has {len(text):,} characters;"
            f" {MOST_CHARACTERS:,} are planned at most",
            hint="Describe the work, and put the rest into files that it names.",
        )
    text = text.translate({0xA0: " ", 0x202F: " "})  # a blank that does not break is one
    text = "\n".join(as_markdown(_without_front_matter(text.split("\n"))))
    reading = _read(text)
    work, notes = find_needs([each for each in reading.pieces if each.is_work], text)
    details = [each.text for each in reading.pieces if not each.is_work]
    if work:
        items = tuple(items_of(work))
        context = [*reading.prose, *details, *reading.context]
    else:
        items, surrounding = read_prose("\n\n".join(reading.prose), feature.title)
        context = [surrounding, *details, *reading.context]
    if len(items) > MOST_PIECES:
        raise InvalidInput(
            f"the description names {len(items):,} pieces of work;"
            f" {MOST_PIECES} are planned at most",
            hint="Make it several features.",
        )
    return Structure(
        items,
        "\n\n".join(filter(None, context)),
        tuple(reading.criteria),
        tuple(reading.excluded),
        in_prose=not work,
        notes=tuple(notes),
    )


def _read(text: str) -> "_Reading":
    """Read the Markdown *text*, block by block."""
    reading = _Reading(text.split("\n"))
    tokens = _markdown.parse(text)
    reading.steps = _numbered_sections(tokens, reading.lines)
    reading.drawn = frozenset(
        without_markup(each).casefold()
        for graph in graphs_in(text)
        for each in graph.labels.values()
    )
    reading.is_design = any(
        one.type == "heading_open"
        and one.tag != "h1"
        and _OF_WORK.match(without_markup(other.content))
        for one, other in pairwise(tokens)
    )
    reading.read(tokens)
    return reading


class _Step(NamedTuple):
    """A section that its author has numbered; lines *start* to *until* (excluded), from 0.

    *number*: 0 for a part such as "2.1". *body*: the text below its heading.
    """

    start: int
    until: int
    level: int
    number: int
    title: str
    body: str
    kind: str
    section: str
    is_done: bool
    has_minor: bool
    key: str


class _Heading(NamedTuple):
    level: int
    title: str
    kind: str


@dataclass
class _Reading:
    """Goes through the blocks of a text, and sorts each into pieces, prose, context and so on."""

    lines: list[str]
    pieces: list[Piece] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    context: list[str] = field(default_factory=list)
    criteria: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    headings: list[_Heading] = field(default_factory=list)
    body: list[str] = field(default_factory=list)  # of the section of work, as long as no list came
    has_list: bool = False  # the section has given pieces
    drawn: frozenset[str] = frozenset()  # the labels of a graph
    lead_in: str = ""
    sequences: int = 0
    steps: dict[int, _Step] = field(default_factory=dict)
    is_design: bool = False

    def read(self, tokens: list[Token]) -> None:
        inside = 0
        for index, token in enumerate(tokens):
            if token.level or token.nesting < 0 or token.map is None or token.map[0] < inside:
                continue
            if step := self.steps.get(token.map[0]):
                self._end_section()
                inside = step.until
                if not step.is_done:
                    self._take_step(step)
                continue
            if token.type == "table_open" and self._read_table(self._source(token)):
                continue
            if token.type == "heading_open":
                self._end_section()
                self._begin_section(int(token.tag[1]), tokens[index + 1].content)
            elif token.type in ("bullet_list_open", "ordered_list_open"):
                self._read_list(tokens, index)
            elif token.type != "hr":
                self._read_block(self._source(token), is_text=token.type == "paragraph_open")
        self._end_section()

    def _take_step(self, step: _Step) -> None:
        before = bool(self.pieces)
        text = "\n\n".join(filter(None, [step.title, step.body]))
        piece = Piece(text, step.title, step.section, step.number, 0, is_phase=True)
        self.pieces.append(
            piece._replace(then=int(before), key=step.key, is_parallel=is_parallel(step.title))
        )

    def _read_table(self, text: str) -> bool:
        """Add the rows of a table as pieces if it is one of numbered work; return whether it is."""
        head, *rows = (_cells(line) for line in text.split("\n") if set(line.strip()) - set("|-: "))
        columns = [without_markup(name).lower() for name in head]
        rows = [[*row, *[""] * (len(head) - len(row))] for row in rows]
        own = _column_of_numbers(rows)
        if self.steps or self._heading.kind != "work" or len(rows) < 2 or own is None:
            return False
        keys = [key_of(row[own]) for row in rows]
        plain = [re.fullmatch(_NUMBER_CELL, without_markup(row[own])) for row in rows]
        needs = next((i for i, name in enumerate(columns) if _NEEDS_COLUMN.search(name)), None)
        hours = next((i for i, name in enumerate(columns) if _HOURS_COLUMN.match(name)), None)
        if hours is not None and not all(plain) and "h" not in columns[hours]:
            hours = None  # an estimate of a ticket is in points
        status = next((i for i, name in enumerate(columns) if name in ("status", "state")), None)
        called = next((i for i, name in enumerate(columns) if _TITLE_COLUMN.match(name)), None)
        self._end_introduction()
        self.sequences += 1
        for row, number, key in zip(rows, plain, keys, strict=True):
            named = [row[called]] if called is not None and row[called] else []
            columns_read = (own, needs, hours, status, called)
            named += [each for i, each in enumerate(row) if i not in columns_read and each]
            title = TASK_BOX.sub("", named[0]) if named else row[own]
            stated = f" ({row[hours]} h)" if hours and re.fullmatch(r"\d[\d.]*", row[hours]) else ""
            is_done = any(_DONE.match(each) for i, each in enumerate(row) if i != own)
            if is_done or (status is not None and _DONE_STATUS.fullmatch(row[status])):
                continue
            stated_needs = "" if needs is None else _needs_of_cell(row[needs], self.pieces)
            if not number:
                title = f"{key} {title}"
                named = [*named, f"Depends on: {row[needs]}"] if needs and row[needs] else named
                stated_needs = stated_needs if stated_needs == "none" else ""
            text = "\n\n".join([title + stated, *named[1:]])
            piece = Piece(
                text, title + stated, sequence=self.sequences, is_phase=True, needs=stated_needs
            )
            piece = piece._replace(number=int(number[1]) if number else 0)
            self.pieces.append(piece._replace(key="" if number else key))
        return True

    @property
    def _heading(self) -> _Heading:
        return self.headings[-1] if self.headings else _Heading(0, "", "work")

    def _begin_section(self, level: int, title: str) -> None:
        title = without_markup(title)
        self.headings = [each for each in self.headings if each.level < level]
        around = self._heading.kind
        own = next((kind for kind, words in _SECTIONS.items() if words.match(title)), "work")
        if self.is_design and own == "work" and _OF_DESIGN.match(title):
            own = "context"
        # A heading of the first level is the title of the whole text.
        kind = "work" if level == 1 else around if around != "work" else own
        self.headings.append(_Heading(level, title, kind))

    def _end_introduction(self) -> None:
        """Keep the text above a list of work, unless it only introduces that."""
        for each in self.body:
            if self._heading.level <= 1 or not each.rstrip("*_ ").endswith((":", "：")):  # noqa: RUF001
                self.prose.append(each)
        self.body = []
        self.has_list = True

    def _end_section(self) -> None:
        body, self.body, self.lead_in = "\n\n".join(self.body), [], ""
        had_list, self.has_list = self.has_list, False
        if body and (self.steps or (had_list and not begins_with_verb(body))):
            self.context.append(body)
        elif body and self._heading.level > 1:
            title = self._heading.title
            self.pieces.append(Piece(f"{title}\n\n{body}", title, key=key_of(title)))
        elif body:
            self.prose.append(body)

    def _source(self, token: Token) -> str:
        begin, end = token.map or (0, 0)
        return "\n".join(self.lines[begin:end]).rstrip()

    def _read_block(self, text: str, *, is_text: bool) -> None:
        if self._heading.kind != "work":
            self._surround(text)
            return
        self.body.append(text)
        self.lead_in = text if is_text and text.endswith(":") else ""

    def _surround(self, text: str) -> None:
        lists = {"criteria": self.criteria, "excluded": self.excluded}
        lists.get(self._heading.kind, self.context).append(text)

    def _read_list(self, tokens: list[Token], index: int) -> None:
        ordered = tokens[index].type == "ordered_list_open"
        leads = [TASK_BOX.sub("", lead) for _, lead in _elements(tokens, index)]
        ordered = ordered or all(_OWN_NUMBER.match(each) or PREFIX.match(each) for each in leads)
        self.sequences += ordered
        of_list: list[Piece] = []
        beside = is_parallel(self.body[-1] if self.body else self._heading.title)
        for opening, lead in _elements(tokens, index):
            text = self._element(opening)
            box = TASK_BOX.match(text)
            if (box and box[1] in "xX") or _DONE.match(lead):
                continue
            text, lead = (TASK_BOX.sub("", each, count=1) for each in (text, lead))
            part = re.match(r"[*_]*(\d{1,3})\.\d{1,3}[\d.]*[.):]?\s+", lead)
            if part and of_list and of_list[-1].number == int(part[1]):  # of the element before
                of_list[-1] = of_list[-1]._replace(text=f"{of_list[-1].text}\n- {_indented(text)}")
                continue
            own_number = re.match(r"[*_]*(\d{1,3})[.)]\s+[*_]*", lead) if ordered else None
            if own_number:
                text, lead = text[own_number.end() :], lead[own_number.end() :]
            if not lead.strip():
                continue
            if self._heading.kind != "work":
                self._surround(text)
                continue
            is_work = self._is_work(lead, ordered=ordered, is_task=bool(box))
            of_list.append(
                Piece(
                    text,
                    lead,
                    section=self._heading.title if self._heading.level > 1 else "",
                    number=int(own_number[1] if own_number else opening.info or 0)
                    if ordered
                    else 0,
                    sequence=self.sequences if ordered else 0,
                    is_work=is_work,
                    is_phase=ordered and is_work,
                    key=key_of(lead),
                    is_parallel=beside or is_parallel(lead),
                )
            )
        if any(each.is_work for each in of_list):
            self._end_introduction()
            self.pieces += of_list
        elif of_list:
            self.body.append("\n".join(f"- {each.text}" for each in of_list))
        self.lead_in = ""

    def _is_work(self, lead: str, *, ordered: bool, is_task: bool) -> bool:
        """Whether the element of a list that begins with *lead* is work, not a detail or a remark.

        Its box or first words decide, then those that introduce the list, then its layer or number.
        """
        if self.steps or (not ordered and not is_task and _METADATA.match(lead)):
            return False
        if PREFIX.match(lead) or key_of(lead) or without_markup(lead).casefold() in self.drawn:
            return True
        if _DETAILS.search(self.lead_in):
            return False
        if is_task or begins_with_verb(lead) or begins_with_verb(self.lead_in):
            return True
        if _REASONS.search(self.lead_in) or (self.lead_in and not ordered):
            return False
        return ordered or bool(layer_of(self._heading.title) or layer_of(lead))

    def _element(self, token: Token) -> str:
        """Return the text of a list's element, without its marker and indentation."""
        begin, end = token.map or (0, 0)
        first, *others = self.lines[begin:end] or [""]
        mark = re.match(r"\s*(?:[-+*]|\d{1,9}[.)])\s*", first)
        width = len(mark[0]) if mark else 0
        rest = [line[len(line[:width]) - len(line[:width].lstrip()) :] for line in others]
        return "\n".join([first[width:], *rest]).strip()


def _indented(text: str) -> str:
    """Return *text* as an element of a list: what follows the first line is indented."""
    return text.replace("\n", "\n  ")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


# The level of a paragraph that begins like a heading: below all of Markdown's.
_OF_PARAGRAPH = 7


class _Block(NamedTuple):
    """A heading, or a paragraph that begins like one; lines *start* to *end* (excluded), from 0."""

    start: int
    end: int
    level: int
    content: str


def _blocks(tokens: list[Token]) -> Iterator[_Block]:
    for index, token in enumerate(tokens[:-1]):
        if token.level != 0 or token.nesting < 0 or not token.map:
            continue
        begin, end = token.map
        content = tokens[index + 1].content
        if token.type == "heading_open":
            yield _Block(begin, end, int(token.tag[1]), content)
        elif token.type == "paragraph_open" and (match := NUMBERED.match(content)):
            is_bold = re.match(r"\s*(?:\*\*|__)", content)
            if is_bold or match["named"]:
                yield _Block(begin, end, _OF_PARAGRAPH, content)


def _candidates(tokens: list[Token], lines: list[str]) -> Iterator[_Step]:
    """Yield the sections of work whose heading, or first paragraph, begins with a number."""
    blocks = list(_blocks(tokens))
    around: list[_Heading] = []
    for index, block in enumerate(blocks):
        around = [each for each in around if each.level < block.level]
        kind = around[-1].kind if around else "work"
        plain = without_markup(block.content)
        if kind == "work" and block.level > 1:
            kind = next((kind for kind, words in _SECTIONS.items() if words.match(plain)), "work")
        section = next((each.title for each in reversed(around) if each.level > 1), "")
        if block.level < _OF_PARAGRAPH:
            around.append(_Heading(block.level, plain, kind))
        match = NUMBERED.match(block.content)
        if match and kind == "work":
            following = (each.start for each in blocks[index + 1 :] if each.level <= block.level)
            yield _step(block, match, next(following, len(lines)), lines, section)


def _step(block: _Block, match: re.Match[str], until: int, lines: list[str], section: str) -> _Step:
    """Return the step that *block* begins and that goes on to the line *until*."""
    body = "\n".join(lines[block.end : until]).strip().removesuffix("---").rstrip()
    title = match["title"].strip()
    if match["remark"]:  # "Step 2 (3 h): …", "Step 2 (after step 1): …"
        title = re.sub(r"(?=[*_]*$)", f" {match['remark'].strip()}", title, count=1)
    if block.level == _OF_PARAGRAPH and not title.endswith(("**", "__")):
        body = f"{title}\n\n{body}".strip()
        title = re.split(r"\n(?=\W*\w[\w ]{0,20}[:：])", title, maxsplit=1)[0].rstrip()  # noqa: RUF001
    number = number_of(match)
    is_part = bool(match["minor"] or match["part"])
    boxes = re.findall(r"^\s*[-+*] \[([ xX])\]", body, re.MULTILINE)
    return _Step(
        block.start,
        until,
        block.level,
        number=0 if is_part else number,
        title=re.sub(r"(?:[✅☑✔]\ufe0f?|~~|[\s*_])+$", "", title) or without_markup(block.content),
        body=body,
        kind=(match["kind"] or "").lower(),
        section=section,
        is_done=bool(_DONE.match(block.content)) or (bool(boxes) and " " not in boxes),
        has_minor=is_part,
        key=key_of(block.content) if is_part or len(match["kind"] or "phase") < 3 else "",
    )


def _is_counted(steps: list[_Step]) -> bool:
    """Whether the numbers of *steps* rise; parts such as "2.1" are ignored."""
    numbers = [step.number for step in steps if step.number]
    return all(before < after for before, after in pairwise(numbers))


def _numbered_sections(tokens: list[Token], lines: list[str]) -> dict[int, _Step]:
    """Return {first line: step} for the sections of work that their author has numbered.

    They are at least two headings of one level, or paragraphs that begin like a heading. If each of
    them has numbered sections such as "2.1", those are returned instead.
    """
    sections = [*_candidates(tokens, lines)]
    levels: dict[tuple[int, str], list[_Step]] = {}
    for step in sections:
        of = (step.level, step.kind)
        for other, steps in levels.items():
            # "Stage 3" after "Step 2" goes on counting.
            counts_on = other[0] == step.level and steps[-1].number + 1 == step.number
            if counts_on and step.kind and other[1] and (step.level, step.kind) not in levels:
                of = other
        levels.setdefault(of, []).append(step)
    good = [steps for _, steps in sorted(levels.items()) if len(steps) > 1 and _is_counted(steps)]
    if not good:
        return {}
    chosen = good[0]
    for inner in good[1:]:
        within = [sum(o.start < i.start < o.until for i in inner) for o in chosen]
        if all(count > 1 for count in within) and all(i.has_minor for i in inner):
            chosen = inner
    return {step.start: step for step in chosen}


_NUMBER_CELL = re.compile(r"[A-Za-z]{0,10}\s?#?(\d{1,3})\.?")
_TITLE_COLUMN = re.compile(r"(?:title|summary|name)$")
_DONE_STATUS = re.compile(
    r"\W*(?:done|closed|completed?|resolved|cancell?ed|duplicate|won'?t do)\W*", re.IGNORECASE
)


def _column_of_numbers(rows: list[list[str]]) -> int | None:
    """Return the column that numbers the rows of a table: the first, or one of keys (ENG-101)."""
    if all(re.fullmatch(_NUMBER_CELL, without_markup(row[0])) for row in rows):
        return 0
    for index in range(len(rows[0]) if rows else 0):
        keys = [key_of(row[index]) for row in rows]
        if all(keys) and len(set(keys)) == len(keys):
            return index
    return None


def _needs_of_cell(cell: str, before: list[Piece]) -> str:
    """Return the numbers of prerequisites in the cell of a table: "none" if there are none."""
    if re.match(r"\W*all\b", cell, re.IGNORECASE):
        return " ".join(str(each.number) for each in before if each.number) or "none"
    return " ".join(map(str, numbers_in(cell))) or "none"


_NEEDS_COLUMN = re.compile(
    r"depend|after|needs|blocked|prerequisite|requires|abhängig|vorgänger|dépend|依存|前提"
)
_HOURS_COLUMN = re.compile(r"hours|h$|estimate")
# A line that begins something of its own for its author, and for Markdown goes on with a paragraph.
_ENUMERATED = re.compile(
    rf"\n\s*(?:(?:\d{{1,3}}(?:\.\d{{1,3}})+[.)]?|[a-z]{{1,3}}[.)])\s|[*_]*(?i:{STATED})[*_]*[:：])"  # noqa: RUF001
)
_OWN_NUMBER = re.compile(r"[*_]*\d{1,3}(?:[.)]|(?:\.\d{1,3})+[.):]?)\s")
_REASONS = re.compile(
    r"\b(?:problems?|reasons?|issues?|questions?|complaints?|facts?)\b", re.IGNORECASE
)

# What a list says of the document rather than of the work.
_METADATA = re.compile(
    r"[*_]*(?:feature name|start date|end date|due date|target date|authors?|status|rfc pr|owners?"
    r"|reviewers?|approvers?|created|(?:last )?updated|date|version|tracking issue|assignees?"
    r"|labels?|priority|epic|stakeholders?)[*_]*\s*:",
    re.IGNORECASE,
)

# Words that introduce facts rather than work.
_DETAILS = re.compile(
    r"\b(?:happens|reproduce|for example|e\.g\.|such as|currently|today|affected|seen (?:on|in)"
    r"|because)\b",
    re.IGNORECASE,
)


def _elements(tokens: list[Token], index: int) -> Iterator[tuple[Token, str]]:
    """Yield the elements of the list at index *index*, each with its first paragraph."""
    for at in range(index + 1, len(tokens)):
        token = tokens[at]
        if token.level == 0:
            return
        if token.type == "list_item_open" and token.level == 1:
            paragraph = tokens[at + 1 : at + 3]
            is_text = len(paragraph) == 2 and paragraph[0].type == "paragraph_open"
            lead = _ENUMERATED.split(paragraph[1].content, maxsplit=1)[0] if is_text else ""
            yield token, " ".join(lead.split())
