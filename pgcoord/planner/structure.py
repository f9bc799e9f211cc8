"""Reads the structure of a description: the pieces of work it names, and what surrounds them.

Lists and headings of work are its pieces; where there are none, sentences and their clauses are.
What stands under "Background" or "Out of scope" is no work. Nothing here is about phases.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pgcoord.errors import InvalidInput
from pgcoord.planner.layers import WORDS, layer_of

# Characters of a description that are read: ten times what anybody writes.
MOST_CHARACTERS = 200_000

_markdown = (
    MarkdownIt("commonmark", {"maxNesting": 100}).disable(["inline", "reference"]).enable("table")
)

# What a section is about, by its heading; anything else is work.
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

_VERBS = frozenset(WORDS["verbs"].split())

# What may be a path; and files without an ending.
_PATH = re.compile(r"[\w@./+:-]+")
_UNENDING = frozenset({"Dockerfile", "Makefile", "Procfile", "Jenkinsfile"})

# Endings of files; "e.g." and "Node.js" are no files, nor is "example.com".
_ENDINGS = frozenset(WORDS["endings"].split())
_PRODUCTS = frozenset(
    {"node.js", "next.js", "vue.js", "express.js", "d3.js", "three.js", "nuxt.js"}
)

# An estimate, which stands in brackets or at the end; "expires after 24 hours" is none.
_NUMBER_OF_HOURS = r"(?:about|approx\.?|ca\.?|~|≈)? ?(\d{1,3}(?:[.,]\d{1,2})?) ?(?:h|hrs?|hours?)"
_HOURS = re.compile(
    rf" ?[\[(] ?{_NUMBER_OF_HOURS} ?[\])]| ?(?:[:,–—]| -) ?{_NUMBER_OF_HOURS}$",  # noqa: RUF001
    re.IGNORECASE,
)

_PREFIX = re.compile(
    r"\s*(?:\*\*|__)?(phase|step|task|part|stage|milestone)\s+(\d{1,3})\s*(?:[:.)–—]|-(?=\s))\s*",  # noqa: RUF001
    re.IGNORECASE,
)

# What a piece of work says it needs: "(depends on [1, 2])", "after step 3".
_NUMBERS = r"\[?\s*#?\d{1,3}(?:\s*(?:,\s*and\b|,|\band\b|&|\+)\s*#?\d{1,3})*(?!\d)\s*\]?"
_NEEDS = r"(?:depends? on|needs|requires|after|once|blocked by):?"
_AFTER = re.compile(
    rf" ?[\[(] ?{_NEEDS}\s+(?:(?:phase|step|task|part|item)s?\s+)?({_NUMBERS})[^\])]{{0,80}}[\])]"
    rf"|\b{_NEEDS}\s+(?:phase|step|task|part|item)s?\s+({_NUMBERS})",
    re.IGNORECASE,
)
_NONE_NEEDED = re.compile(
    r" ?[\[(](?:blocking all|no dependenc(?:y|ies)|independent|depends on:? (?:nothing|none))"
    r"[\])]",
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

_TASK_BOX = re.compile(r"\[([ xX])\]\s+")

# Characters of a title, and of a path.
_LONGEST_TITLE = 72
_LONGEST_PATH = 200

# Words of a clause that can be a piece of work by itself.
_LEAST_WORDS = 3

# Characters of what a title is made from, or a layer known by: the rest is detail.
_TELLING = 2_000

# Pieces of work of one feature.
MOST_PIECES = 200


@dataclass(frozen=True)
class Feature:
    """What is to be planned: a feature as its row describes it."""

    title: str
    description: str = ""
    hours: float | None = None
    kind: str = "feature"


@dataclass(frozen=True)
class Item:
    """A piece of work.

    `number` is what it is called in the text, 0 if nothing; `after` are such numbers that it says
    it needs, None where it says nothing; `then` is how many of those just before it it needs, and
    `last` means all of them. `sequence` tells numbered lists apart, 0 is none.
    `is_sure` says that the layer is named rather than hinted at.
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
    """What a description says: the work, and what surrounds it."""

    items: tuple[Item, ...]
    context: str = ""
    criteria: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    in_prose: bool = False


def described_by(text: str, hours: float | None = None) -> Feature:
    """A feature as a text describes it: its first line is the title, or its first heading."""
    first, _, rest = text.strip().partition("\n")
    return Feature(_plain(first.lstrip("#")), rest.strip(), hours)


def read_structure(feature: Feature) -> Structure:
    """Read what a feature's description says. Raises `InvalidInput` when it is too long."""
    text = feature.description.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > MOST_CHARACTERS:
        raise InvalidInput(
            f"the description has {len(text):,} characters;"
            f" {MOST_CHARACTERS:,} are planned at most",
            hint="Describe the work, and put the rest into files that it names.",
        )
    reading = _Reading(text.split("\n"))
    reading.read(_markdown.parse(text))
    work = [each for each in reading.pieces if each.is_work]
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
    )


class _Piece(NamedTuple):
    """An element of a list, or a section of prose, as it stands in the text."""

    text: str
    lead: str
    section: str = ""
    number: int = 0
    sequence: int = 0
    is_work: bool = True


class _Heading(NamedTuple):
    level: int
    title: str
    kind: str


@dataclass
class _Reading:
    """Goes through the blocks of a text, and collects what each is."""

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

    def read(self, tokens: list[Token]) -> None:
        for place, token in enumerate(tokens):
            if token.level or token.nesting < 0 or token.map is None:
                continue
            if token.type == "heading_open":
                self._end_section()
                self._begin_section(int(token.tag[1]), tokens[place + 1].content)
            elif token.type in ("bullet_list_open", "ordered_list_open"):
                self._read_list(tokens, place)
            elif token.type != "hr":
                self._read_block(self._source(token), is_text=token.type == "paragraph_open")
        self._end_section()

    @property
    def _heading(self) -> _Heading:
        return self.headings[-1] if self.headings else _Heading(0, "", "work")

    def _begin_section(self, level: int, title: str) -> None:
        title = _plain(title)
        self.headings = [each for each in self.headings if each.level < level]
        around = self._heading.kind
        own = next((kind for kind, words in _SECTIONS.items() if words.match(title)), "work")
        # A heading of the first level is the title of it all.
        kind = "work" if level == 1 else around if around != "work" else own
        self.headings.append(_Heading(level, title, kind))

    def _end_section(self) -> None:
        body, self.body, self.lead_in = "\n\n".join(self.body), [], ""
        if body and self._heading.level > 1:
            self.pieces.append(_Piece(f"{self._heading.title}\n\n{body}", self._heading.title))
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
        self.sequences += ordered
        works = _begins_with_verb(self.lead_in)
        shows = bool(_DETAILS.search(self.lead_in) or (self.lead_in and not works))
        found = []
        for opening, lead in _elements(tokens, place):
            text = self._element(opening)
            box = _TASK_BOX.match(text)
            if box and box[1] != " ":
                continue  # done already
            text, lead = (_TASK_BOX.sub("", each, count=1) for each in (text, lead))
            if not lead.strip():
                continue
            if self._heading.kind != "work":
                self._surround(text)
                continue
            named = layer_of(self._heading.title) or layer_of(lead)
            is_work = bool(_PREFIX.match(lead)) or (
                not _DETAILS.search(self.lead_in)
                and (_begins_with_verb(lead) or works or (not shows and bool(ordered or named)))
            )
            number = int(opening.info or 0) if ordered else 0
            found.append(
                _Piece(
                    text,
                    lead,
                    self._heading.title if self._heading.level > 1 else "",
                    number,
                    self.sequences if ordered else 0,
                    is_work,
                )
            )
        if any(each.is_work for each in found):
            # What led here is said by what follows, or is about all of it.
            self.prose += [] if self._heading.level > 1 else self.body
            self.body = []
            self.pieces += found
        elif found:
            self.body.append("\n".join(f"- {each.text}" for each in found))
        self.lead_in = ""

    def _element(self, token: Token) -> str:
        """The text of an element of a list, without its mark and what it is set in by."""
        begin, end = token.map or (0, 0)
        first, *others = self.lines[begin:end] or [""]
        mark = re.match(r"\s*(?:[-+*]|\d{1,9}[.)])\s*", first)
        width = len(mark[0]) if mark else 0
        rest = [line[len(line[:width]) - len(line[:width].lstrip()) :] for line in others]
        return "\n".join([first[width:], *rest]).strip()


# Introduces what is the case rather than what is to be done.
_DETAILS = re.compile(
    r"\b(?:happens|reproduce|for example|e\.g\.|such as|currently|today|affected|seen (?:on|in)"
    r"|because)\b",
    re.IGNORECASE,
)


def _elements(tokens: list[Token], place: int) -> Iterator[tuple[Token, str]]:
    """The elements of the list that begins at *place*, each with its first paragraph."""
    for at in range(place + 1, len(tokens)):
        token = tokens[at]
        if token.level == 0:
            return
        if token.type == "list_item_open" and token.level == 1:
            paragraph = tokens[at + 1 : at + 3]
            is_text = len(paragraph) == 2 and paragraph[0].type == "paragraph_open"
            yield token, " ".join(paragraph[1].content.split()) if is_text else ""


def _plain(text: str) -> str:
    """A text without the marks of Markdown, in one line."""
    text = re.sub(r"!?\[([^\[\]]{0,300})\]\([^()]{0,300}\)", r"\1", text)
    marks = r"[*`]+|(?<!\w)_+|_+(?!\w)|<[^<>]{0,300}>|^#+\s|\s#+$"
    return " ".join(re.sub(marks, "", " ".join(text.split())).split())


_PREAMBLE = re.compile(
    r"(?:(?:please|also|first(?:ly)?|second(?:ly)?|third(?:ly)?|then|next|finally|now)\b,?\s+"
    r"|(?:we|i|you|it|this|users?|they)\s+(?:need|needs|want|wants|should|must|has|have|can)\s+(?:to\s+)?"
    r"|(?:should|must|to)\s+)*",
    re.IGNORECASE,
)


# "A table for …, an endpoint that …": things that are to be made.
_NAMES_THINGS = re.compile(
    r"(?:an?|new|two|three|four|five)\s+(?!\S+\s+(?:is|are|was|were|has|have|can|uses?|fails?)\b)",
    re.IGNORECASE,
)

# "Support complains that …" tells something, although "Support …" could ask for it.
_TELLS = re.compile(
    r"\w+\s+(?:is|are|was|were|has|have|can|complains?|says?|reports?|wants?|asks?|fails?)\b"
)


def _begins_with_verb(text: str) -> bool:
    plain = _plain(re.sub(r"`[^`]*`", "X", text))  # a command called `show` is no verb
    begin = _PREFIX.match(plain)
    plain = plain[begin.end() :] if begin else plain
    preamble = _PREAMBLE.match(plain)
    rest = plain[preamble.end() :] if preamble else plain
    word = re.match(r"[A-Za-z]+", rest)
    return word is not None and word[0].lower() in _VERBS and not _TELLS.match(rest)


def _items(pieces: list[_Piece]) -> Iterator[Item]:
    """The pieces of work; a step that names no layer is of the layer of the step before it."""
    before: Item | None = None
    for piece in pieces:
        item, is_named = _item(piece)
        if before and not is_named and item.sequence and item.sequence == before.sequence:
            item = replace(item, layer=before.layer)
        before = item
        yield item


def _item(piece: _Piece) -> tuple[Item, bool]:
    """A piece of work from an element of a list or a section, and whether it says its layer."""
    prefix = _PREFIX.match(piece.lead)
    lead = piece.lead[prefix.end() :] if prefix else piece.lead
    text = piece.text
    begin = _PREFIX.match(text)
    text = text[begin.end() :] if begin else text
    named = list(_AFTER.finditer(text))
    after = None
    if named:
        numbers = re.findall(r"\d+", " ".join(each[1] or each[2] for each in named))
        after = tuple(sorted({int(each) for each in numbers}))
    elif _NONE_NEEDED.search(text):
        after = ()
    text = _HOURS.sub("", text, count=1) if _HOURS.search(lead) else text
    text = _tidy(_NONE_NEEDED.sub("", re.sub(_AFTER, "", text) if named else text))
    hours = _HOURS.search(lead)
    lead = _HOURS.sub("", _NONE_NEEDED.sub("", _AFTER.sub("", lead)))
    files = files_in(text)
    own = layer_of(lead, files)
    layer = layer_of(piece.section)
    # Tests and documents of a part are no part of it.
    if layer is None or own in ("tests", "documentation"):
        layer = own or layer_of(text, files)
    item = Item(
        text=text,
        title=title_of(lead),
        layer=layer or "core",
        section=piece.section,
        files=files,
        hours=_hours(hours),
        number=int(prefix[2]) if prefix else piece.number,
        after=after,
        then=int(bool(_THEN.match(lead))),
        last=bool(_FINALLY.match(lead)),
        sequence=piece.sequence,
        is_sure=layer in (layer_of(piece.section), layer_of(text, files, surely=True)),
        is_phase=prefix is not None and prefix[1].lower() == "phase",
    )
    return item, layer is not None


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def _hours(match: re.Match[str] | None) -> float | None:
    if match is None:
        return None
    hours = float((match[1] or match[2]).replace(",", "."))
    return hours or None


def title_of(lead: str) -> str:
    """What a piece of work is called: the beginning of what is said about it."""
    text = lead[:_TELLING]
    for begin in (_TASK_BOX, _THEN, _FINALLY, _PREAMBLE):
        match = begin.match(text)
        text = text[match.end() :] if match else text
    text = re.sub(r" ?\([^()]{0,200}\)$", "", _SENTENCE.split(text.strip(), maxsplit=1)[0])
    text = _plain(text).rstrip(" .;:,!-–—")  # noqa: RUF001
    name, separator, _ = re.sub(r"\s[-–—]\s", ": ", text, count=1).partition(": ")  # noqa: RUF001
    if separator and len(name.split()) <= 6 and (len(name.split()) > 1 or layer_of(name)):
        text = name
    if len(text) > _LONGEST_TITLE:
        text = _shortened(text)
    # A heading that ends in marks of its own loses them: "C#" stays, "C #" does not.
    text = re.sub(r"(?:(?:^|\s)#+)+$", "", text.strip())
    return text[:1].upper() + text[1:] or "Work"


def _shortened(text: str) -> str:
    """The first clauses that fit, else the first words."""
    for end in sorted({match.start() for match in _CLAUSE.finditer(text)}, reverse=True):
        if 16 <= end <= _LONGEST_TITLE:
            return text[:end]
    return text[: _LONGEST_TITLE - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"


def files_in(text: str) -> tuple[str, ...]:
    """The files that a text names, each once."""
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
    """The work that sentences name, and the sentences that name none."""
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
    """A sentence as the pieces of work that its clauses name; *before* are those just before it."""
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
    """Split a sentence before each clause that says what else to do; with the layer of each."""
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
    """Whether a clause says what else to do, or names another kind of thing, rather than how."""
    if len(clause.split()) < _LEAST_WORDS or len(before.split()) < _LEAST_WORDS:
        return False
    if _begins_with_verb(clause):
        return True
    layer = layer_of(clause, files_in(clause), surely=True)
    is_other = layer not in (None, layer_of(before, files_in(before), surely=True))
    return is_other and bool(_NAMES_THINGS.match(clause))
