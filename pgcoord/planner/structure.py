"""Reads the structure of a description: which pieces of work it names, and what only surrounds them.

Lists and headings of work are its pieces; where there are none, sentences and their clauses are.
What stands under "Background" or "Out of scope" is no work. Nothing here is about phases.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from pgcoord.errors import InvalidInput
from pgcoord.planner.layers import layer_of

# Characters of a description that are read: ten times what anybody writes.
MOST_CHARACTERS = 200_000

_markdown = MarkdownIt("commonmark", {"maxNesting": 100}).disable(["inline", "reference"]).enable("table")

# What a section is about, by its heading; anything else is work.
_SECTIONS = {
    "criteria": re.compile(
        r"accept|success|definition of done|done when|expected|how (?:to|we) (?:test|verify)|verif",
        re.IGNORECASE,
    ),
    "excluded": re.compile(
        r"out of scope|non-?goals?|not (?:included|in scope|part)|later|future|won'?t", re.IGNORECASE
    ),
    "context": re.compile(
        r"background|context|motivation|why|overview|summary|introduction|goals?\b|problem|notes?\b"
        r"|references?|links|assumptions?|current|constraints?|risks?|steps to reproduce|reproduc"
        r"|actual|environment|impact|about|description|open questions?|user stor",
        re.IGNORECASE,
    ),
}

_VERBS = frozenset(
    """
    accept add adapt adjust allow analyse analyze archive assign automate batch build bump cache
    call capture catch change check clean collect compress compute configure connect convert copy
    count cover create cut declare decouple define delete deploy deprecate derive design detect
    disable display document download drop emit enable encrypt enforce ensure escape estimate
    evaluate expire explain expose extend extract fail fetch filter find fix flag forbid format
    generate group guard handle hash hide highlight implement import improve include index inject
    insert install instrument integrate introduce invalidate isolate keep label let limit link list
    load localise localize lock log make map mark measure merge migrate mock monitor move normalise
    normalize notify open optimise optimize order package paginate parse persist prepare prevent
    print process profile propagate protect prove provide provision publish put query read rebuild
    receive record redirect reduce refactor refuse register reject release reload remember remind
    remove rename render reorganise reorganize repair replace report reproduce request require
    reset resolve respect restore restrict retire retry return reuse revoke rewrite roll rotate
    route run save scan schedule scrape search secure seed select send serialise serialize serve set
    share ship show sign simplify skip sort speed split standardise standardize start stop store
    stream strip submit support switch sync synchronise synchronize tag take teach test throttle
    track train transform translate trim turn type unify update upgrade upload use validate verify
    version warn watch wire wrap write
    """.split()
)

_FILE = re.compile(
    r"(?<![\w/.:@-])(?:[\w@.-]+/)*[\w@-]*[\w@.-]*\.(?:[a-z][a-z0-9]{0,9})\b(?![\w/(])"
    r"|(?<![\w/.:-])(?:[\w.-]+/)*(?:Dockerfile|Makefile|Procfile|Jenkinsfile)\b"
)

# Endings of files; "e.g." and "Node.js" are no files, nor is "example.com".
_ENDINGS = frozenset(
    """
    py pyi js jsx ts tsx mjs cjs vue svelte html css scss less sql md rst adoc txt toml yaml yml json
    ini cfg conf env sh bash zsh ps1 rb go rs java kt swift c h cc cpp hpp cs php pl ex exs erl hs
    scala clj lua r jl m tf tfvars proto graphql prisma csv tsv xml lock ipynb nix gradle properties
    j2 tmpl service plist dart
    """.split()
)
_PRODUCTS = frozenset({"node.js", "next.js", "vue.js", "express.js", "d3.js", "three.js", "nuxt.js"})

# An estimate, which stands in brackets or at the end; "expires after 24 hours" is none.
_NUMBER_OF_HOURS = r"(?:about|approx\.?|ca\.?|~|≈)?\s*(\d{1,3}(?:[.,]\d{1,2})?)\s*(?:h|hrs?|hours?)"
_HOURS = re.compile(
    rf"\s*[\[(]\s*{_NUMBER_OF_HOURS}\s*[\])]|\s*(?:[:,–—]|\s-)\s*{_NUMBER_OF_HOURS}\s*$",  # noqa: RUF001
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
    rf"\s*[\[(]\s*{_NEEDS}\s+(?:(?:phase|step|task|part|item)s?\s+)?({_NUMBERS})[^\])]*[\])]"
    rf"|\b{_NEEDS}\s+(?:phase|step|task|part|item)s?\s+({_NUMBERS})",
    re.IGNORECASE,
)
_NONE_NEEDED = re.compile(
    r"[\[(]\s*(?:blocking all|no dependenc(?:y|ies)|independent|depends on:? (?:nothing|none))\s*[\])]",
    re.IGNORECASE,
)
_THEN = re.compile(
    r"(?:and\s+)?(?:then|afterwards|after (?:that|this)|once (?:that|this)|when (?:that|this) is done|next)\b,?\s*",
    re.IGNORECASE,
)
_FINALLY = re.compile(r"(?:finally|at the end|last(?:ly)?|in the end)\b,?\s*", re.IGNORECASE)

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(\[*])")
_CLAUSE = re.compile(r"\s*[;:]\s+|,\s+(?:and\s+)?|\s+and\s+|\s+then\s+")

_TASK_BOX = re.compile(r"\[([ xX])\]\s+")

# Of a title.
_LONGEST_TITLE = 72


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
    is_phase: bool = False


@dataclass(frozen=True)
class Structure:
    """What a description says: the work, and what surrounds it."""

    items: tuple[Item, ...]
    context: str = ""
    criteria: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    in_prose: bool = False


def read_structure(feature: Feature) -> Structure:
    """Read what a feature's description says. Raises `InvalidInput` when it is too long."""
    text = feature.description.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > MOST_CHARACTERS:
        raise InvalidInput(
            f"the description has {len(text):,} characters; at most {MOST_CHARACTERS:,} are planned",
            hint="Describe the work, and put the rest into files that it names.",
        )
    reading = _Reading(text.split("\n"))
    reading.read(_markdown.parse(text))
    work = [each for each in reading.pieces if each.is_work]
    details = [each.text for each in reading.pieces if not each.is_work]
    if work:
        items = tuple(map(_item, work))
        context = [*reading.prose, *details, *reading.context]
    else:
        items, surrounding = _read_prose("\n\n".join(reading.prose), feature)
        context = [surrounding, *details, *reading.context]
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
        self.lead_in = text if is_text else ""

    def _surround(self, text: str) -> None:
        lists = {"criteria": self.criteria, "excluded": self.excluded}
        lists.get(self._heading.kind, self.context).append(text)

    def _read_list(self, tokens: list[Token], place: int) -> None:
        ordered = tokens[place].type == "ordered_list_open"
        self.sequences += ordered
        works = _begins_with_verb(self.lead_in)
        shows = bool(_DETAILS.search(self.lead_in)) or self.lead_in.endswith(":") and not works
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
    r"\b(?:happens|reproduce|for example|e\.g\.|such as|currently|today|affected|seen (?:on|in)|because)\b",
    re.IGNORECASE,
)


def _elements(tokens: list[Token], place: int) -> Iterator[tuple[Token, str]]:
    """The elements of the list that begins at `place`, each with its first paragraph."""
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
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(re.sub(r"[*`]+|(?<!\w)_+|_+(?!\w)|<[^>]*>|^#+\s|\s#+$", "", text).split())


_PREAMBLE = re.compile(
    r"(?:(?:please|also|first(?:ly)?|second(?:ly)?|third(?:ly)?|then|next|finally|now)\b,?\s+"
    r"|(?:we|i|you|it|this|users?|they)\s+(?:need|needs|want|wants|should|must|has|have|can)\s+(?:to\s+)?"
    r"|(?:should|must|to)\s+)*",
    re.IGNORECASE,
)


# "Support complains that …" tells something, although "Support …" could ask for it.
_TELLS = re.compile(r"\w+\s+(?:is|are|was|were|has|have|can|complains?|says?|reports?|wants?|asks?|fails?)\b")


def _begins_with_verb(text: str) -> bool:
    plain = _plain(text)
    begin = _PREFIX.match(plain)
    plain = plain[begin.end() :] if begin else plain
    preamble = _PREAMBLE.match(plain)
    rest = plain[preamble.end() :] if preamble else plain
    word = re.match(r"[A-Za-z]+", rest)
    return word is not None and word[0].lower() in _VERBS and not _TELLS.match(rest)


def _item(piece: _Piece) -> Item:
    """A piece of work from an element of a list, or from a section."""
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
    text = _tidy(_NONE_NEEDED.sub("", re.sub(_AFTER, "", text) if named else text))
    hours = _HOURS.search(lead)
    files = files_in(text)
    layer = layer_of(piece.section) or layer_of(lead, files) or layer_of(text, files) or "core"
    if piece.section and layer != layer_of(lead, files) in ("tests", "documentation"):
        layer = layer_of(lead, files) or layer
    return Item(
        text=text,
        title=title_of(lead),
        layer=layer,
        files=files,
        hours=_hours(hours),
        number=int(prefix[2]) if prefix else piece.number,
        after=after,
        then=int(bool(_THEN.match(lead))),
        last=bool(_FINALLY.match(lead)),
        sequence=piece.sequence,
        is_phase=bool(prefix) and (prefix[1] if prefix else "").lower() == "phase",
    )


def _tidy(text: str) -> str:
    return re.sub(r"[ \t]+(?=\n|$)", "", text).strip()


def _hours(match: re.Match[str] | None) -> float | None:
    if match is None:
        return None
    hours = float((match[1] or match[2]).replace(",", "."))
    return hours or None


def title_of(lead: str) -> str:
    """What a piece of work is called: the beginning of what is said about it."""
    text = _NONE_NEEDED.sub("", _HOURS.sub("", _AFTER.sub("", lead)))
    for begin in (_TASK_BOX, _THEN, _FINALLY, _PREAMBLE):
        match = begin.match(text)
        text = text[match.end() :] if match else text
    text = _plain(_SENTENCE.split(text.strip(), maxsplit=1)[0]).rstrip(" .;:,!-–—")  # noqa: RUF001
    name, separator, _ = re.sub(r"\s[-–—]\s", ": ", text, count=1).partition(": ")  # noqa: RUF001
    if separator and len(name.split()) <= 6 and (len(name.split()) > 1 or layer_of(name)):
        text = name
    if len(text) > _LONGEST_TITLE:
        text = _shortened(text)
    return text[:1].upper() + text[1:]


def _shortened(text: str) -> str:
    """The first clauses that fit, else the first words."""
    for end in sorted({match.start() for match in _CLAUSE.finditer(text)}, reverse=True):
        if 16 <= end <= _LONGEST_TITLE:
            return text[:end]
    return text[: _LONGEST_TITLE - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"


def files_in(text: str) -> tuple[str, ...]:
    """The files that a text names, each once."""
    found = (match[0].removeprefix("./").strip("-") for match in _FILE.finditer(text))
    return tuple(dict.fromkeys(each for each in found if _is_file(each)))


def _is_file(name: str) -> bool:
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    if not dot:
        return True
    known = ending.lower() in _ENDINGS and name.lower() not in _PRODUCTS
    return known and bool(stem.strip(".") or "/" in name) and ".." not in name.split("/")


def _read_prose(text: str, feature: Feature) -> tuple[tuple[Item, ...], str]:
    """The work that sentences name, and the sentences that name none."""
    sentences = [_tidy(each) for each in _SENTENCE.split(text) if each.strip()]
    work = [each for each in sentences if _begins_with_verb(each)]
    if not work:
        work = [each for each in sentences if layer_of(each, files_in(each), surely=True)]
    if not work:
        return tuple(_clauses(" ".join(feature.title.split()))), " ".join(sentences)
    rest = [each for each in sentences if each not in work]
    items: list[Item] = []
    before = 0
    for sentence in work:
        found = _clauses(sentence, before)
        before = len(found)
        items += found
    return tuple(items), " ".join(rest)


def _clauses(sentence: str, before: int = 0) -> list[Item]:
    """A sentence as the pieces of work of different layers that its clauses name, else as one."""
    parts, layers = _split_by_layer(sentence)
    begins_later = bool(_THEN.match(sentence)) and bool(before)
    ends_all = bool(_FINALLY.match(sentence))
    items = []
    for part, layer in zip(parts, layers, strict=True):
        items.append(
            Item(
                text=part[:1].upper() + part[1:],
                title=title_of(part),
                layer=layer or "core",
                files=files_in(part),
                hours=_hours(_HOURS.search(part)),
                then=before + len(items) if begins_later else 0,
                last=ends_all,
            )
        )
    return items


def _split_by_layer(sentence: str) -> tuple[list[str], list[str | None]]:
    """The clauses of a sentence, those that are about one layer together."""
    ends = [match.span() for match in _CLAUSE.finditer(sentence)]
    starts = [0, *(end for _, end in ends)]
    stops = [*(begin for begin, _ in ends), len(sentence)]
    parts: list[tuple[int, int, str | None]] = []
    for start, stop in zip(starts, stops, strict=True):
        clause = sentence[start:stop]
        layer = layer_of(clause, files_in(clause))
        if parts and (layer is None or layer == parts[-1][2] or not _can_stand(clause)):
            parts[-1] = (parts[-1][0], stop, parts[-1][2] or layer)
        elif parts and parts[-1][2] is None:
            parts[-1] = (parts[-1][0], stop, layer)
        else:
            parts.append((start, stop, layer))
    if len({layer for _, _, layer in parts}) < 2:
        whole = sentence.strip()
        return [whole], [layer_of(whole, files_in(whole), surely=True)]
    return [sentence[start:stop].strip() for start, stop, _ in parts], [each for _, _, each in parts]


def _can_stand(clause: str) -> bool:
    """Whether a clause says what to do, or names a thing to make, rather than how."""
    return _begins_with_verb(clause) or bool(
        re.match(r"(?:an?|the|new|with an?|its)\b", clause.strip(), re.IGNORECASE)
    )
