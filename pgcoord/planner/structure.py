"""Read the structure of a description: the pieces of work it names, and the text around them.

Elements of lists and numbered sections are the pieces; if there are none, sentences and their
clauses. Text under "Background" or "Out of scope" is not work. `planner` makes phases of the
pieces; nothing here does.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pgcoord.errors import InvalidInput
from pgcoord.planner.layers import WORDS, layer_of
from pgcoord.planner.references import (
    graphs_in,
    is_parallel,
    key_of,
    keys_needed,
    todos_in,
    without_marks,
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
        r"|actual|environment|impact|about|description|open questions?|user stor",
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

_VERBS = frozenset(WORDS["verbs"].split())

# A string that may be a path; and names of files without an ending.
_PATH = re.compile(r"[\w@./+:-]+")
_UNENDING = frozenset({"Dockerfile", "Makefile", "Procfile", "Jenkinsfile"})

# Endings of file names; "e.g.", "Node.js" and "example.com" are not files.
_ENDINGS = frozenset(WORDS["endings"].split())
_PRODUCTS = frozenset(
    {"node.js", "next.js", "vue.js", "express.js", "d3.js", "three.js", "nuxt.js"}
)

# An estimate, in brackets or at the end; "expires after 24 hours" is not one.
_NUMBER_OF_HOURS = r"(?:about|approx\.?|ca\.?|~|≈)? ?(\d{1,3}(?:[.,]\d{1,2})?) ?(?:h|hrs?|hours?)"
_HOURS = re.compile(
    rf" ?[\[(] ?{_NUMBER_OF_HOURS} ?[\])]| ?(?:[:,–—]| -) ?{_NUMBER_OF_HOURS}$",  # noqa: RUF001
    re.IGNORECASE,
)

_PREFIX = re.compile(
    r"\s*(?:\*\*|__)?(phase|step|task|part|stage|milestone)\s+(\d{1,3})\s*(?:[:.)–—]|-(?=\s))\s*",  # noqa: RUF001
    re.IGNORECASE,
)

# Numbered work: "PR 1: Title", "Step Two - Title", "2. Title", "1.2 Title", "M3: Title".
_NUMBER_WORDS = "one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
_NUMBERED = re.compile(
    r"(?:\[[ xX]\]|[^\w\[])*"
    r"(?:(?P<kind>phase|step|task|part|stage|milestone|pr|pull request|commit|sprint|iteration"
    r"|story|ticket|chunk|slice|change|[a-z]{1,2}-?(?=\d))\s*#?"
    rf"(?P<named>\d{{1,3}}|(?:{'|'.join(_NUMBER_WORDS)})\b)(?P<minor>\.\d{{1,2}})?"
    r"\s*(?:[:.)–—]|-(?=\s)|$)"  # noqa: RUF001
    r"|(?P<bare>\d{1,3})(?:(?P<part>\.\d{1,2})\.?(?=\s)|[.)](?=\s)|\s+[-–—](?=\s)))"  # noqa: RUF001
    r"[\s*_]*(?P<title>.*)",
    re.IGNORECASE | re.DOTALL,
)

# A mark that a piece of work is done, or struck out.
_DONE = re.compile(
    r"[\W_]*?(?:[✅☑✔]|\[[xX]\]|~~)|.*(?:[✅☑✔]\ufe0f?|[(\[](?:complete|completed|done)[)\]]|~~)[\s*_]*$",
    re.IGNORECASE | re.DOTALL,
)

# The prerequisites that a piece of work names: "(depends on [1, 2])", "after step 3".
_KINDS = r"(?:(?:phase|step|task|part|item|stage|milestone|pr)s?\s+)"
_NUMBERS = (
    rf"\[?\s*#?\d{{1,3}}(?:\s*(?:,\s*and\b|,|\band\b|&|\+|-|–|to\b|through\b)\s*{_KINDS}?#?\d{{1,3}})*"  # noqa: RUF001
    r"(?!\d)\s*\]?"
)
_NEEDS = r"(?:depends? on|needs|requires|after|once|blocked by):?[*_]*"
_AFTER = re.compile(
    rf" ?[\[(](?:[^\])]{{0,40}}[,;])? ?{_NEEDS}\s+{_KINDS}?({_NUMBERS})[^\])]{{0,80}}[\])]"
    rf"|[*_]*\b{_NEEDS}\s+{_KINDS}({_NUMBERS})",
    re.IGNORECASE,
)
_NONE_NEEDED = re.compile(
    r" ?[\[(](?:blocking all|no dependenc(?:y|ies)|independent|depends on:? (?:nothing|none))"
    r"[\])]|(?<!\S)[*_]*depends on:[*_]* *(?:nothing|none|-)(?!\S)\.?",
    re.IGNORECASE,
)
_THEN = re.compile(
    r"(?:and\s+)?(?:then|afterwards|after (?:that|this)|once (?:that|this)"
    r"|when (?:that|this) is done|next)\b,?\s*",
    re.IGNORECASE,
)
_FINALLY = re.compile(r"(?:finally|at the end|last(?:ly)?|in the end)\b,?\s*", re.IGNORECASE)

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(\[*])")
_CLAUSE = re.compile(r"\s*[;:]\s+|,\s+(?:and\s+)?|\s+and\s+|\s+then\s+")

# "[-]" and "[~]": it is being done; "[ ]*": it may be left out.
_TASK_BOX = re.compile(r"\[([ xX/~-])\]\*?\s+")

# Characters of a title, and of a path.
_LONGEST_TITLE = 72
_LONGEST_PATH = 200

# The least words of a clause that can be a piece of work by itself.
_LEAST_WORDS = 3

# Characters from which a title is made: the rest is detail.
_TELLING = 2_000

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
class Item:
    """A piece of work.

    *number*: its number in the text, 0 without one. *after*: the numbers of its prerequisites, as
    stated (None: not stated). *then*: how many pieces directly before it are prerequisites; *last*:
    all before it are. *sequence*: identifies its numbered list, or its sentence; 0 for neither.
    *is_sure*: the text names the layer, rather than hints at it. *is_phase*: its author numbered it
    as a step of its own.
    """

    text: str
    title: str
    layer: str
    files: tuple[str, ...] = ()
    hours: float | None = None
    number: int = 0
    after: tuple[int, ...] | None = None
    then: int = 0
    last: bool = False
    sequence: int = 0
    section: str = ""
    is_sure: bool = False
    is_phase: bool = False


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


def described_by(text: str, hours: float | None = None) -> Feature:
    """Return the feature that a Markdown text describes.

    Its title is the first line, or the first `#` heading if something that is not text precedes it.
    *hours*: the estimate for it, if there is one.
    """
    lines = text.strip().split("\n")
    lines = _without_front_matter(lines)
    tokens = _markdown.parse("\n".join(lines)[:MOST_CHARACTERS])
    places = [i for i, each in enumerate(tokens) if each.level == 0 and each.map]
    heads = [i for i in places if tokens[i].tag == "h1"]
    text_first = bool(places) and tokens[places[0]].type in ("paragraph_open", "heading_open")
    if text_first or not heads:
        first, _, rest = "\n".join(lines).strip().partition("\n")
        underline = re.match(r"(?:=+|-+)[ \t]*(?:\n|$)", rest)
        return Feature(
            _plain(first.lstrip("#")), rest[underline.end() if underline else 0 :].strip(), hours
        )
    begin, end = tokens[heads[0]].map or (0, 0)
    title = _plain(tokens[heads[0] + 1].content)
    return Feature(title, "\n".join([*lines[:begin], *lines[end:]]).strip(), hours)


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
    for place, line in enumerate(rest):
        is_code ^= line.lstrip().startswith(("```", "~~~"))
        if not is_code and re.match(r"#{2,4}\s", line):
            rest[place] = f"#{line}"
    title = next((i + 1 for i, line in enumerate(rest) if re.match(r"#\s", line)), 0)
    return [*rest[:title], "", "## Tasks", "", todos, "", "## Context", "", *rest[title:]]


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
    text = "\n".join(_without_front_matter(text.split("\n")))
    reading = _Reading(text.split("\n"))
    tokens = _markdown.parse(text)
    reading.steps = _numbered_sections(tokens, reading.lines)
    reading.is_design = any(
        one.type == "heading_open" and one.tag != "h1" and _OF_WORK.match(_plain(other.content))
        for one, other in pairwise(tokens)
    )
    reading.read(tokens)
    work, notes = _referring([each for each in reading.pieces if each.is_work], text)
    details = [each.text for each in reading.pieces if not each.is_work]
    if work:
        items = tuple(_items(work))
        context = [*reading.prose, *details, *reading.context]
    else:
        items, surrounding = _read_prose("\n\n".join(reading.prose), feature)
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


class _Piece(NamedTuple):
    """An element of a list, a row of a table, or a section, as written; *lead*: its first line.

    *needs*: numbers of prerequisites from a table, separated by spaces, "none", or "" if unknown.
    *key*: what others call it, such as "T001"; "" for a number only. *is_parallel*: its heading, or
    what introduces it, says that it may run beside others.
    """

    text: str
    lead: str
    section: str = ""
    number: int = 0
    sequence: int = 0
    is_work: bool = True
    is_phase: bool = False
    then: int = 0
    needs: str = ""
    key: str = ""
    is_parallel: bool = False


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
    pieces: list[_Piece] = field(default_factory=list)
    prose: list[str] = field(default_factory=list)
    context: list[str] = field(default_factory=list)
    criteria: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    headings: list[_Heading] = field(default_factory=list)
    body: list[str] = field(default_factory=list)  # of the section of work, as long as no list came
    lead_in: str = ""
    sequences: int = 0
    steps: dict[int, _Step] = field(default_factory=dict)
    is_design: bool = False

    def read(self, tokens: list[Token]) -> None:
        inside = 0
        for place, token in enumerate(tokens):
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
                self._begin_section(int(token.tag[1]), tokens[place + 1].content)
            elif token.type in ("bullet_list_open", "ordered_list_open"):
                self._read_list(tokens, place)
            elif token.type != "hr":
                self._read_block(self._source(token), is_text=token.type == "paragraph_open")
        self._end_section()

    def _take_step(self, step: _Step) -> None:
        before = bool(self.pieces)
        text = "\n\n".join(filter(None, [step.title, step.body]))
        piece = _Piece(text, step.title, step.section, step.number, 0, is_phase=True)
        self.pieces.append(
            piece._replace(then=int(before), key=step.key, is_parallel=is_parallel(step.title))
        )

    def _read_table(self, text: str) -> bool:
        """Add the rows of a table as pieces if it is one of numbered work; return whether it is."""
        head, *rows = (_cells(line) for line in text.split("\n") if set(line.strip()) - set("|-: "))
        columns = [_plain(name).lower() for name in head]
        rows = [[*row, *[""] * (len(head) - len(row))] for row in rows]
        own = _column_of_numbers(rows)
        if self.steps or self._heading.kind != "work" or len(rows) < 2 or own is None:
            return False
        keys = [key_of(row[own]) for row in rows]
        plain = [re.fullmatch(_NUMBER_CELL, _plain(row[own])) for row in rows]
        needs = next((i for i, name in enumerate(columns) if _NEEDS_COLUMN.search(name)), None)
        hours = next((i for i, name in enumerate(columns) if _HOURS_COLUMN.match(name)), None)
        if hours is not None and not all(plain) and "h" not in columns[hours]:
            hours = None  # an estimate of a ticket is in points
        status = next((i for i, name in enumerate(columns) if name in ("status", "state")), None)
        called = next((i for i, name in enumerate(columns) if _TITLE_COLUMN.match(name)), None)
        self.prose += [] if self._heading.level > 1 else self.body
        self.body = []
        self.sequences += 1
        for row, number, key in zip(rows, plain, keys, strict=True):
            named = [row[called]] if called is not None and row[called] else []
            left = (own, needs, hours, status, called)
            named += [each for i, each in enumerate(row) if i not in left and each]
            title = _TASK_BOX.sub("", named[0]) if named else row[own]
            stated = f" ({row[hours]} h)" if hours and re.fullmatch(r"\d[\d.]*", row[hours]) else ""
            is_done = any(_DONE.match(each) for i, each in enumerate(row) if i != own)
            if is_done or (status is not None and _DONE_STATUS.fullmatch(row[status])):
                continue
            said = "" if needs is None else _needs_of_cell(row[needs], self.pieces)
            if not number:
                title = f"{key} {title}"
                named = [*named, f"Depends on: {row[needs]}"] if needs and row[needs] else named
                said = said if said == "none" else ""
            text = "\n\n".join([title + stated, *named[1:]])
            piece = _Piece(text, title + stated, sequence=self.sequences, is_phase=True, needs=said)
            piece = piece._replace(number=int(number[1]) if number else 0)
            self.pieces.append(piece._replace(key="" if number else key))
        return True

    @property
    def _heading(self) -> _Heading:
        return self.headings[-1] if self.headings else _Heading(0, "", "work")

    def _begin_section(self, level: int, title: str) -> None:
        title = _plain(title)
        self.headings = [each for each in self.headings if each.level < level]
        around = self._heading.kind
        own = next((kind for kind, words in _SECTIONS.items() if words.match(title)), "work")
        if self.is_design and own == "work" and _OF_DESIGN.match(title):
            own = "context"
        # A heading of the first level is the title of the whole text.
        kind = "work" if level == 1 else around if around != "work" else own
        self.headings.append(_Heading(level, title, kind))

    def _end_section(self) -> None:
        body, self.body, self.lead_in = "\n\n".join(self.body), [], ""
        if body and self.steps:
            self.context.append(body)
        elif body and self._heading.level > 1:
            title = self._heading.title
            self.pieces.append(_Piece(f"{title}\n\n{body}", title, key=key_of(title)))
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

    def _read_list(self, tokens: list[Token], place: int) -> None:
        ordered = tokens[place].type == "ordered_list_open"
        ordered = ordered or all(_NUMBER_IN_BOX.match(lead) for _, lead in _elements(tokens, place))
        self.sequences += ordered
        found: list[_Piece] = []
        beside = is_parallel(self.body[-1] if self.body else self._heading.title)
        for opening, lead in _elements(tokens, place):
            text = self._element(opening)
            box = _TASK_BOX.match(text)
            if (box and box[1] in "xX") or _DONE.match(lead):
                continue
            text, lead = (_TASK_BOX.sub("", each, count=1) for each in (text, lead))
            part = re.match(r"[*_]*(\d{1,3})\.\d{1,3}[\d.]*[.):]?\s+", lead)
            if part and found and found[-1].number == int(part[1]):  # of the element before
                found[-1] = found[-1]._replace(text=f"{found[-1].text}\n- {_indented(text)}")
                continue
            own_number = re.match(r"[*_]*(\d{1,3})[.)]\s+[*_]*", lead) if ordered else None
            if own_number:
                text, lead = text[own_number.end() :], lead[own_number.end() :]
            if not lead.strip():
                continue
            if self._heading.kind != "work":
                self._surround(text)
                continue
            is_work = self._is_work(lead, ordered=ordered)
            found.append(
                _Piece(
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
        if any(each.is_work for each in found):
            # The text above the list introduces it, or is about the whole feature.
            self.prose += [] if self._heading.level > 1 else self.body
            self.body = []
            self.pieces += found
        elif found:
            self.body.append("\n".join(f"- {each.text}" for each in found))
        self.lead_in = ""

    def _is_work(self, lead: str, *, ordered: bool) -> bool:
        """Whether the element of a list that begins with *lead* is work, not a detail or a remark.

        Its own first words decide, then those that introduce the list, then its layer or number.
        """
        if self.steps:
            return False
        if _PREFIX.match(lead) or key_of(lead):
            return True
        if _DETAILS.search(self.lead_in):
            return False
        if _begins_with_verb(lead) or _begins_with_verb(self.lead_in):
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
    for place, token in enumerate(tokens[:-1]):
        if token.level != 0 or token.nesting < 0 or not token.map:
            continue
        begin, end = token.map
        content = tokens[place + 1].content
        if token.type == "heading_open":
            yield _Block(begin, end, int(token.tag[1]), content)
        elif token.type == "paragraph_open" and (match := _NUMBERED.match(content)):
            is_bold = re.match(r"\s*(?:\*\*|__)", content)
            if is_bold or match["named"]:
                yield _Block(begin, end, _OF_PARAGRAPH, content)


def _candidates(tokens: list[Token], lines: list[str]) -> Iterator[_Step]:
    """Yield the sections of work whose heading, or first paragraph, begins with a number."""
    blocks = list(_blocks(tokens))
    around: list[_Heading] = []
    for place, block in enumerate(blocks):
        around = [each for each in around if each.level < block.level]
        kind = around[-1].kind if around else "work"
        plain = _plain(block.content)
        if kind == "work" and block.level > 1:
            kind = next((kind for kind, words in _SECTIONS.items() if words.match(plain)), "work")
        section = next((each.title for each in reversed(around) if each.level > 1), "")
        if block.level < _OF_PARAGRAPH:
            around.append(_Heading(block.level, plain, kind))
        match = _NUMBERED.match(block.content)
        if match and kind == "work" and block.level > 1:
            following = (each.start for each in blocks[place + 1 :] if each.level <= block.level)
            yield _step(block, match, next(following, len(lines)), lines, section)


def _step(block: _Block, match: re.Match[str], until: int, lines: list[str], section: str) -> _Step:
    """Return the step that *block* begins and that goes on to the line *until*."""
    body = "\n".join(lines[block.end : until]).strip().removesuffix("---").rstrip()
    title = match["title"].strip()
    if block.level == _OF_PARAGRAPH and not title.endswith(("**", "__")):
        body = f"{title}\n\n{body}".strip()
    word = (match["named"] or match["bare"]).lower()
    number = _NUMBER_WORDS.index(word) + 1 if word in _NUMBER_WORDS else int(word)
    is_part = bool(match["minor"] or match["part"])
    boxes = re.findall(r"^\s*[-+*] \[([ xX])\]", body, re.MULTILINE)
    return _Step(
        block.start,
        until,
        block.level,
        number=0 if is_part else number,
        title=re.sub(r"(?:[✅☑✔]\ufe0f?|~~|[\s*_])+$", "", title) or _plain(block.content),
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
    found = [*_candidates(tokens, lines)]
    levels: dict[tuple[int, str], list[_Step]] = {}
    for step in found:
        levels.setdefault((step.level, step.kind), []).append(step)
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
    if all(re.fullmatch(_NUMBER_CELL, _plain(row[0])) for row in rows):
        return 0
    for place in range(len(rows[0]) if rows else 0):
        keys = [key_of(row[place]) for row in rows]
        if all(keys) and len(set(keys)) == len(keys):
            return place
    return None


def _needs_of_cell(cell: str, before: list[_Piece]) -> str:
    """Return the numbers of prerequisites in the cell of a table: "none" if there are none."""
    if re.match(r"\W*all\b", cell, re.IGNORECASE):
        return " ".join(str(each.number) for each in before if each.number) or "none"
    return " ".join(map(str, _numbers(cell))) or "none"


_NEEDS_COLUMN = re.compile(r"depend|after|needs|blocked|prerequisite|requires")
_HOURS_COLUMN = re.compile(r"hours|h$|estimate")
# A line that begins an element of a list for its author, and for Markdown goes on with a paragraph.
_ENUMERATED = re.compile(r"\n\s*(?:\d{1,3}(?:\.\d{1,3})+[.)]?|[a-z]{1,3}[.)])\s")
_NUMBER_IN_BOX = re.compile(r"(?:\[[ xX/~-]\]\*?\s+)?[*_]*\d{1,3}(?:[.)]|(?:\.\d{1,3})+[.):]?)\s")
_REASONS = re.compile(
    r"\b(?:problems?|reasons?|issues?|questions?|complaints?|facts?)\b", re.IGNORECASE
)

# Words that introduce facts rather than work.
_DETAILS = re.compile(
    r"\b(?:happens|reproduce|for example|e\.g\.|such as|currently|today|affected|seen (?:on|in)"
    r"|because)\b",
    re.IGNORECASE,
)


def _elements(tokens: list[Token], place: int) -> Iterator[tuple[Token, str]]:
    """Yield the elements of the list at index *place*, each with its first paragraph."""
    for at in range(place + 1, len(tokens)):
        token = tokens[at]
        if token.level == 0:
            return
        if token.type == "list_item_open" and token.level == 1:
            paragraph = tokens[at + 1 : at + 3]
            is_text = len(paragraph) == 2 and paragraph[0].type == "paragraph_open"
            lead = _ENUMERATED.split(paragraph[1].content, maxsplit=1)[0] if is_text else ""
            yield token, " ".join(lead.split())


def _plain(text: str) -> str:
    """Return *text* in one line, without Markdown's markup."""
    text = re.sub(r"!?\[([^\[\]]{0,300})\]\([^()]{0,300}\)", r"\1", text)
    marks = r"[*`]+|(?<!\w)_+|_+(?!\w)|<[^<>]{0,300}>|^#+\s|\s#+$"
    return " ".join(re.sub(marks, "", " ".join(text.split())).split())


_PREAMBLE = re.compile(
    r"(?:(?:please|also|first(?:ly)?|second(?:ly)?|third(?:ly)?|then|next|finally|now)\b,?\s+"
    r"|(?:we|i|you|it|this|users?|they)\s+(?:need|needs|want|wants|should|must|has|have|can)\s+(?:to\s+)?"
    r"|(?:should|must|to)\s+)*",
    re.IGNORECASE,
)


# "A table for …, an endpoint that …": things to make.
_NAMES_THINGS = re.compile(
    r"(?:an?|new|two|three|four|five)\s+(?!\S+\s+(?:is|are|was|were|has|have|can|uses?|fails?)\b)",
    re.IGNORECASE,
)

# "Support complains that …" states a fact, although "Support …" could begin a piece of work.
_TELLS = re.compile(
    r"\w+\s+(?:is|are|was|were|has|have|can|complains?|says?|reports?|wants?|asks?|fails?)\b"
)


def _begins_with_verb(text: str) -> bool:
    plain = _plain(re.sub(r"`[^`]*`", "X", text))  # the command `show` is not a verb
    begin = _PREFIX.match(plain)
    plain = plain[begin.end() :] if begin else plain
    preamble = _PREAMBLE.match(plain)
    rest = plain[preamble.end() :] if preamble else plain
    word = re.match(r"[A-Za-z]+", rest)
    return word is not None and word[0].lower() in _VERBS and not _TELLS.match(rest)


def _referring(work: list[_Piece], text: str) -> tuple[list[_Piece], list[str]]:
    """Return *work* with the needs that it states by keys, or in a graph, as numbers; and notes.

    Where some of it does, or is marked as parallel, the rest follows in the order of the text: what
    is parallel beside what is, anything else after what is directly before it.
    """
    keys = [each.key for each in work]
    named = [key for key in keys if key]
    if len(named) < 2 or len(set(named)) < len(named) or 2 * len(named) < len(work):
        return _drawn(work, text), []
    stated: list[str] = []
    notes = []
    for piece in work:
        known, unknown = keys_needed(piece.text, keys)
        known = [each for each in known if each != piece.key]
        by_number = _prerequisites(piece, piece.text)
        old = [i for i, each in enumerate(work) if each.number and each.number in (by_number or ())]
        numbers = sorted({keys.index(each) + 1 for each in known} | {i + 1 for i in old})
        none = by_number is not None and not numbers and not unknown
        stated.append("none" if none else " ".join(map(str, numbers)))
        notes += [
            f"{piece.key or piece.lead:.60} comes after {each}, which is none of these: ignored"
            for each in unknown
        ]
    if any(stated) or any(each.is_parallel for each in work):
        stated = _in_order(work, stated)
    found = [
        each._replace(
            number=i,
            sequence=0 if stated[i - 1] else -1,
            is_phase=True,
            then=0,
            needs=stated[i - 1],
        )
        for i, each in enumerate(work, 1)
    ]
    return _drawn(found, text), notes


def _in_order(work: list[_Piece], stated: list[str]) -> list[str]:
    """Return what each piece needs: what it states, or what its place in the text says."""
    needs = []
    level: list[int] = []
    below: list[int] = []
    beside = True
    for number, (piece, said) in enumerate(zip(work, stated, strict=True), 1):
        if not (piece.is_parallel and beside and level):
            below, level = level, []
        level.append(number)
        beside = piece.is_parallel
        needs.append(said or " ".join(map(str, below)) or "none")
    return needs


def _drawn(work: list[_Piece], text: str) -> list[_Piece]:
    """Return *work* with the needs that a graph of Mermaid in *text* draws, if it names all of it.

    What a piece states itself stays.
    """
    for graph in graphs_in(text):
        place_of = {node: _place_of(label, node, work) for node, label in graph.labels.items()}
        drawn = {place for place in place_of.values() if place is not None}
        if len(drawn) < max(2, len(work)):
            continue
        needs: dict[int, set[int]] = {place: set() for place in drawn}
        for source, end in graph.edges:
            first, second = place_of[source], place_of[end]
            if first is not None and second is not None and first != second:
                needs[second].add(first + 1)
        return [
            each
            if each.needs or _prerequisites(each, each.text) is not None
            else each._replace(
                number=place + 1,
                then=0,
                is_phase=True,
                needs=" ".join(map(str, sorted(needs.get(place, ())))) or "none",
            )
            for place, each in enumerate(work)
        ]
    return work


def _place_of(label: str, node: str, work: list[_Piece]) -> int | None:
    """Return the place of the piece of work that a node of a graph stands for."""
    match = _NUMBERED.match(_plain(label))
    title = match["title"] if match and match["title"] else label
    wanted = " ".join(_plain(title).casefold().split())
    key = key_of(label)
    for place, each in enumerate(work):
        if key and each.key == key:
            return place
        if wanted and wanted == " ".join(_plain(each.lead).casefold().split()):
            return place
    number = re.fullmatch(r"(?:phase|step|task|stage|p|s|t)?[ _-]?(\d{1,3})", label.lower())
    if match and match["named"] and match["named"].isdecimal() and not match["minor"]:
        number = re.fullmatch(r"(\d+)", match["named"])
    if not number:
        return None
    found = [place for place, each in enumerate(work) if each.number == int(number[1])]
    return found[0] if len(found) == 1 else None


def _items(pieces: list[_Piece]) -> Iterator[Item]:
    """Yield the items of *pieces*; a step without a layer takes that of the step before it."""
    before: Item | None = None
    for piece in pieces:
        item, is_named = _item(piece)
        if before and not is_named and item.sequence and item.sequence == before.sequence:
            item = replace(item, layer=before.layer)
        before = item
        yield item


def _item(piece: _Piece) -> tuple[Item, bool]:
    """Return the item of a piece, and whether its text has a layer."""
    prefix = _PREFIX.match(piece.lead)
    lead = piece.lead[prefix.end() :] if prefix else piece.lead
    begin = _PREFIX.match(piece.text)
    text = piece.text[begin.end() :] if begin else piece.text
    hours = _HOURS.search(lead)
    after = _prerequisites(piece, text)
    names_others = _AFTER.search(text)
    if hours:
        text = _HOURS.sub("", text, count=1)
    if names_others:
        text = _AFTER.sub("", text)
    text = _tidy(_NONE_NEEDED.sub("", text))
    lead = _HOURS.sub("", _NONE_NEEDED.sub("", _AFTER.sub("", lead)))
    files = files_in(text)
    layer = _layer(piece, lead, text, files)
    item = Item(
        text=text,
        title=title_of(lead),
        layer=layer or "core",
        section=piece.section,
        files=files,
        hours=_hours(hours),
        number=int(prefix[2]) if prefix else piece.number,
        after=after,
        then=max(piece.then, int(bool(_THEN.match(lead)))),
        last=bool(_FINALLY.match(lead)),
        sequence=piece.sequence,
        is_sure=layer in (layer_of(piece.section), layer_of(text, files, surely=True)),
        is_phase=piece.is_phase or (prefix is not None and prefix[1].lower() == "phase"),
    )
    return item, layer is not None


def _prerequisites(piece: _Piece, text: str) -> tuple[int, ...] | None:
    """Return the numbers of the items that a piece comes after; None if it says nothing of that."""
    if named := list(_AFTER.finditer(text)):
        return _numbers(" ".join(each[1] or each[2] for each in named))
    if piece.needs:
        return tuple(int(each) for each in piece.needs.split() if each != "none")
    return () if _NONE_NEEDED.search(text) else None


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers in *text*, each once, those of ranges such as 2-4 as well."""
    found: set[int] = set()
    for match in re.finditer(r"(\d{1,3})(?:\s*(?:-|–|to|through)\s*(\d{1,3}))?", text):  # noqa: RUF001
        first, last = int(match[1]), int(match[2] or match[1])
        found |= {first, last, *range(first, last)}
    return tuple(sorted(found))


def _layer(piece: _Piece, lead: str, text: str, files: tuple[str, ...]) -> str | None:
    """Return the layer of a piece, by its section, else by its words and files; None: unknown."""
    own = layer_of(lead, files)
    layer = layer_of(piece.section)
    # Tests and documentation are layers of their own, whatever their section.
    if layer is None or own in ("tests", "documentation"):
        return own or layer_of(text, files)
    return layer


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _hours(match: re.Match[str] | None) -> float | None:
    if match is None:
        return None
    hours = float((match[1] or match[2]).replace(",", "."))
    return hours or None


def title_of(lead: str) -> str:
    """Return a title for a piece of work from its first words, `_LONGEST_TITLE` at most.

    Markup, "then" and "we need to" are dropped. "Work" if nothing is left.
    """
    text = lead[:_TELLING]
    text = without_marks(text)
    for begin in (_TASK_BOX, _THEN, _FINALLY, _PREAMBLE):
        match = begin.match(text)
        text = text[match.end() :] if match else text
    text = re.sub(r" ?\([^()]{0,200}\)$", "", _SENTENCE.split(text.strip(), maxsplit=1)[0])
    text = _plain(text).rstrip(" .;:,!-–—")  # noqa: RUF001
    name, separator, _ = re.sub(r"\s[-–—]\s", ": ", text, count=1).partition(": ")  # noqa: RUF001
    if (
        separator
        and not key_of(name)
        and len(name.split()) <= 6
        and (len(name.split()) > 1 or layer_of(name))
    ):
        text = name
    if len(text) > _LONGEST_TITLE:
        text = _shortened(text)
    # A heading that ends in marks of its own loses them: "C#" stays, "C #" does not.
    text = re.sub(r"(?:(?:^|\s)#+)+$", "", text.strip())
    return text[:1].upper() + text[1:] or "Work"


def _shortened(text: str) -> str:
    """Return the first clauses of *text* that fit a title, else its first words with "…"."""
    for end in sorted({match.start() for match in _CLAUSE.finditer(text)}, reverse=True):
        if 16 <= end <= _LONGEST_TITLE:
            return text[:end]
    return text[: _LONGEST_TITLE - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"


def files_in(text: str) -> tuple[str, ...]:
    """Return the relative paths of files that *text* names, in order, each once."""
    found = (match[0].rstrip(".:").removeprefix("./") for match in _PATH.finditer(text))
    return tuple(dict.fromkeys(each for each in found if _is_file(each)))


def _is_file(path: str) -> bool:
    if len(path) > _LONGEST_PATH or ":" in path or path.startswith("/") or "//" in path:
        return False
    folders, _, name = path.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    if not dot:
        return name in _UNENDING
    known = ending.lower() in _ENDINGS and name.lower() not in _PRODUCTS
    return known and bool(stem or folders) and ".." not in folders.split("/")


def _read_prose(text: str, feature: Feature) -> tuple[tuple[Item, ...], str]:
    """Return the pieces of work in prose, and the sentences that name none.

    If no sentence names work, the title does: its clauses, or the whole feature as one piece.
    """
    paragraphs = (" ".join(each.split()) for each in text.split("\n\n"))
    sentences = [each for paragraph in paragraphs for each in _SENTENCE.split(paragraph) if each]
    work = [each for each in sentences if _begins_with_verb(each)]
    if not work:
        work = [each for each in sentences if _NAMES_THINGS.match(each)]
    if not work:
        title = " ".join(feature.title.split())
        items = _clauses(title)
        if len(items) > 1:
            return tuple(items), " ".join(sentences)
        whole = f"{title}\n\n{text}".strip()
        files = files_in(whole)
        named = layer_of(title, surely=True) or layer_of(whole, files, surely=True)
        item = replace(items[0], text=whole, files=files, layer=named or "core", is_sure=False)
        return (item,), ""
    rest = [each for each in sentences if each not in work]
    found: list[Item] = []
    before = 0
    for sequence, sentence in enumerate(work, 1):
        clauses = _clauses(sentence, before, sequence)
        before = len(clauses)
        found += clauses
    return tuple(found), " ".join(rest)


def _clauses(sentence: str, before: int = 0, sequence: int = 0) -> list[Item]:
    """Return the pieces of work in a sentence, one for each clause that can stand alone.

    *before*: the number of pieces in the sentence before, prerequisites if this begins with "then".
    """
    begins_later = bool(_THEN.match(sentence)) and bool(before)
    ends_all = bool(_FINALLY.match(sentence))
    items: list[Item] = []
    for part, layer in _split(sentence):
        items.append(
            Item(
                text=part[:1].upper() + part[1:],
                title=title_of(part),
                layer=layer,
                files=files_in(part),
                hours=_hours(_HOURS.search(part)),
                then=before + len(items) if begins_later else 0,
                last=ends_all,
                sequence=sequence,
                is_sure=layer == layer_of(part, files_in(part), surely=True),
            )
        )
    return items


def _split(sentence: str) -> list[tuple[str, str]]:
    """Split a sentence into clauses that are work of their own; return (clause, its layer)."""
    ends = [match.span() for match in _CLAUSE.finditer(sentence)]
    starts = [0, *(end for _, end in ends)]
    stops = [*(begin for begin, _ in ends), len(sentence)]
    parts: list[tuple[int, int]] = []
    for start, stop in zip(starts, stops, strict=True):
        if parts and not _stands_alone(sentence[slice(*parts[-1])], sentence[start:stop]):
            parts[-1] = parts[-1][0], stop
        else:
            parts.append((start, stop))
    found: list[tuple[str, str]] = []
    for start, stop in parts:
        part = sentence[start:stop].strip()
        files = files_in(part)
        layer = layer_of(part, files, surely=True) or (found[-1][1] if found else None)
        found.append((part, layer or layer_of(part, files) or "core"))
    return found


def _stands_alone(before: str, clause: str) -> bool:
    """Whether *clause* is other work than *before*, rather than says how to do that."""
    if len(clause.split()) < _LEAST_WORDS or len(before.split()) < _LEAST_WORDS:
        return False
    if _begins_with_verb(clause):
        return True
    layer = layer_of(clause, files_in(clause), surely=True)
    is_other = layer not in (None, layer_of(before, files_in(before), surely=True))
    return is_other and bool(_NAMES_THINGS.match(clause))
