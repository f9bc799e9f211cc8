"""Read a piece of work: its title, layer, files, hours, and what it says it comes after.

`structure` finds the pieces in a text, and `needs` what they need of each other.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from pgcoord.plan.headings import KINDS
from pgcoord.planner.layers import WORDS, layer_of
from pgcoord.planner.references import key_of, without_marks

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

_EFFORT = re.compile(
    rf"^\W*(?:effort|estimated?|hours)\b[^\n:]{{0,20}}:[*_]*\s*{_NUMBER_OF_HOURS}\b",
    re.IGNORECASE | re.MULTILINE,
)

PREFIX = re.compile(
    rf"\s*(?:\*\*|__)?({KINDS})\s*(\d{{1,3}})[*_]*\s*(?:[:：.)–—]|-(?=\s)|(?=\())\s*",  # noqa: RUF001
    re.IGNORECASE,
)

# The prerequisites that a piece of work names: "(depends on [1, 2])", "after step 3".
_KINDS = rf"(?:(?:{KINDS})s?\s*(?=[\d#]))"
_NUMBERS = (
    rf"\[?\s*#?\d{{1,3}}(?:\s*(?:,\s*and\b|,|\band\b|&|\+|-|–|to\b|through\b)\s*{_KINDS}?#?\d{{1,3}})*"  # noqa: RUF001
    r"(?!\d)\s*\]?"
)
STATED = (
    r"depends? on|blocked by|dependenc(?:y|ies)|prerequisites?|stacked on|builds on"
    r"|abhängig von|hängt ab von|dépend de|depende de|dipende da|afhankelijk van|beror på"
    r"|avhenger av|afhænger af|zależy od|závisí na|зависит от|залежить від|依存|前提|依赖|依賴|의존"
)
_NEEDS = (
    rf"(?:{STATED}|needs|requires|after|once|nach|benötigt|après|después de)[*_]*(?: ?[:：])?[*_]*"  # noqa: RUF001
)
_AFTER = re.compile(
    rf" ?[\[(](?:[^\])]{{0,40}}[,;])? ?{_NEEDS}\s*{_KINDS}?({_NUMBERS})[^\])]{{0,80}}[\])]"
    rf"|[*_]*(?<![^\W_]){_NEEDS}\s*{_KINDS}({_NUMBERS})"
    # On a line of its own, numbers alone will do.
    rf"|^[ \t]*(?:[-*+>][ \t]+)?[*_]*(?:{STATED})[*_]*[:：][*_]*[ \t]*({_NUMBERS})[ \t*_.]*$",  # noqa: RUF001
    re.IGNORECASE | re.MULTILINE,
)
_NONE_NEEDED = re.compile(
    r" ?[\[(](?:blocking all|no dependenc(?:y|ies)|independent|depends on:? (?:nothing|none))"
    rf"[\])]|(?<!\S)[*_]*(?:{STATED})[*_]* ?[:：][*_]* *(?:nothing|none|n/a|[-–—])(?!\S)\.?",  # noqa: RUF001
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
TASK_BOX = re.compile(r"\[([ xX/~-])\]\*?\s+")

# Characters of a title, and of a path.
_LONGEST_TITLE = 72
_LONGEST_PATH = 200

# The least words of a clause that can be a piece of work by itself.
_LEAST_WORDS = 3

# The title of a piece of work that has no words for it.
UNTITLED = "Work"

# Characters from which a title is made: the rest is detail.
_TELLING = 2_000


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


class Piece(NamedTuple):
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


def without_markup(text: str) -> str:
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


def begins_with_verb(text: str) -> bool:
    """Whether *text* begins as an instruction, perhaps after "please" or "we need to"."""
    plain = without_markup(re.sub(r"`[^`]*`", "X", text))  # the command `show` is not a verb
    begin = PREFIX.match(plain)
    plain = plain[begin.end() :] if begin else plain
    preamble = _PREAMBLE.match(plain)
    rest = plain[preamble.end() :] if preamble else plain
    word = re.match(r"[A-Za-z]+", rest)
    return word is not None and word[0].lower() in _VERBS and not _TELLS.match(rest)


def items_of(pieces: list[Piece]) -> Iterator[Item]:
    """Yield the items of *pieces*; a step without a layer takes that of the step before it."""
    before: Item | None = None
    for piece in pieces:
        item, is_named = _item(piece)
        if before and not is_named and item.sequence and item.sequence == before.sequence:
            item = replace(item, layer=before.layer)
        before = item
        yield item


def _item(piece: Piece) -> tuple[Item, bool]:
    """Return the item of a piece, and whether its text has a layer."""
    prefix = PREFIX.match(piece.lead)
    lead = piece.lead[prefix.end() :] if prefix else piece.lead
    begin = PREFIX.match(piece.text)
    text = piece.text[begin.end() :] if begin else piece.text
    hours = _HOURS.search(lead)
    after = prerequisites(piece, text)
    names_others = _AFTER.search(text)
    if hours:
        text = _HOURS.sub("", text, count=1)
    if names_others:
        text = _AFTER.sub("", text)
    text = _tidy(_NONE_NEEDED.sub("", text))
    lead = _HOURS.sub("", _NONE_NEEDED.sub("", _AFTER.sub("", lead)))
    files = files_in(text)
    layer = _layer(piece, lead, text, files)
    title = title_of(lead)
    if title == UNTITLED and prefix:  # "Task 2 (see below)"
        title = title_of(f"{prefix[1]} {prefix[2]}")
    item = Item(
        text=text,
        title=title,
        layer=layer or "core",
        section=piece.section,
        files=files,
        hours=_hours(hours or _EFFORT.search(text)),
        number=int(prefix[2]) if prefix else piece.number,
        after=after,
        then=max(piece.then, int(bool(_THEN.match(lead)))),
        last=bool(_FINALLY.match(lead)),
        sequence=piece.sequence,
        is_sure=layer in (layer_of(piece.section), layer_of(text, files, surely=True)),
        is_phase=piece.is_phase or (prefix is not None and prefix[1].lower() == "phase"),
    )
    return item, layer is not None


def prerequisites(piece: Piece, text: str) -> tuple[int, ...] | None:
    """Return the numbers of the items that a piece comes after; None if it says nothing of that."""
    if piece.needs:
        return tuple(int(each) for each in piece.needs.split() if each != "none")
    if named := list(_AFTER.finditer(text)):
        return numbers_in(" ".join(each[1] or each[2] or each[3] for each in named))
    return () if _NONE_NEEDED.search(text) else None


def numbers_in(text: str) -> tuple[int, ...]:
    """Return the numbers in *text*, each once, those of ranges such as 2-4 as well."""
    numbers: set[int] = set()
    for match in re.finditer(r"(\d{1,3})(?:\s*(?:-|–|to|through)\s*(\d{1,3}))?", text):  # noqa: RUF001
        first, last = int(match[1]), int(match[2] or match[1])
        numbers |= {first, last, *range(first, last)}
    return tuple(sorted(numbers))


def _layer(piece: Piece, lead: str, text: str, files: tuple[str, ...]) -> str | None:
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

    Markup, "then" and "we need to" are dropped. `UNTITLED` if nothing is left.
    """
    text = lead[:_TELLING]
    text = without_marks(text)
    for begin in (TASK_BOX, _THEN, _FINALLY, _PREAMBLE):
        match = begin.match(text)
        text = text[match.end() :] if match else text
    text = re.sub(r"^\s*\([^()]{0,80}\)\s*[:：–—-]\s*", "", text)  # noqa: RUF001
    text = re.sub(r" ?\([^()]{0,200}\)$", "", _SENTENCE.split(text.strip(), maxsplit=1)[0])
    text = without_markup(text).rstrip(" .;:,!-–—")  # noqa: RUF001
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
    return text[:1].upper() + text[1:] or UNTITLED


def _shortened(text: str) -> str:
    """Return the first clauses of *text* that fit a title, else its first words with "…"."""
    for end in sorted({match.start() for match in _CLAUSE.finditer(text)}, reverse=True):
        if 16 <= end <= _LONGEST_TITLE:
            return text[:end]
    return text[: _LONGEST_TITLE - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"


def files_in(text: str) -> tuple[str, ...]:
    """Return the relative paths of files that *text* names, in order, each once."""
    paths = (match[0].rstrip(".:").removeprefix("./") for match in _PATH.finditer(text))
    return tuple(dict.fromkeys(each for each in paths if _is_file(each)))


def _is_file(path: str) -> bool:
    if len(path) > _LONGEST_PATH or ":" in path or path.startswith("/") or "//" in path:
        return False
    folders, _, name = path.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    if not dot:
        return name in _UNENDING
    is_known = ending.lower() in _ENDINGS and name.lower() not in _PRODUCTS
    return is_known and bool(stem or folders) and ".." not in folders.split("/")


def read_prose(text: str, title: str) -> tuple[tuple[Item, ...], str]:
    """Return the pieces of work in prose, and the sentences that name none.

    If no sentence names work, the title does: its clauses, or the whole feature as one piece.
    """
    paragraphs = (" ".join(each.split()) for each in text.split("\n\n"))
    sentences = [each for paragraph in paragraphs for each in _SENTENCE.split(paragraph) if each]
    work = [each for each in sentences if begins_with_verb(each)]
    if not work:
        work = [each for each in sentences if _NAMES_THINGS.match(each)]
    if not work:
        title = " ".join(title.split())
        items = _clauses(title)
        if len(items) > 1:
            return tuple(items), " ".join(sentences)
        whole = f"{title}\n\n{text}".strip()
        files = files_in(whole)
        named = layer_of(title, surely=True) or layer_of(whole, files, surely=True)
        item = replace(items[0], text=whole, files=files, layer=named or "core", is_sure=False)
        return (item,), ""
    rest = [each for each in sentences if each not in work]
    all_items: list[Item] = []
    before = 0
    for sequence, sentence in enumerate(work, 1):
        clauses = _clauses(sentence, before, sequence)
        before = len(clauses)
        all_items += clauses
    return tuple(all_items), " ".join(rest)


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
    pieces: list[tuple[str, str]] = []
    for start, stop in parts:
        part = sentence[start:stop].strip()
        files = files_in(part)
        layer = layer_of(part, files, surely=True) or (pieces[-1][1] if pieces else None)
        pieces.append((part, layer or layer_of(part, files) or "core"))
    return pieces


def _stands_alone(before: str, clause: str) -> bool:
    """Whether *clause* is other work than *before*, rather than says how to do that."""
    if len(clause.split()) < _LEAST_WORDS or len(before.split()) < _LEAST_WORDS:
        return False
    if begins_with_verb(clause):
        return True
    layer = layer_of(clause, files_in(clause), surely=True)
    is_other = layer not in (None, layer_of(before, files_in(before), surely=True))
    return is_other and bool(_NAMES_THINGS.match(clause))
