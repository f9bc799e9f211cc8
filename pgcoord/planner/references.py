"""References between pieces of work: by key (T001, ENG-101, Story 3.1), by graph, by front matter.

Everything here reads text; `needs` decides what the references mean.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from pgcoord.plan.headings import KINDS

_KINDS = (
    r"(?:phase|task|step|story|part|item|stage|milestone|wave|ticket|issue|epic|feature|pr)"
    r"|stories"
)

# ENG-101; T001; 2.1; and after a word such as "Task" also a single letter.
_SHAPES = r"[A-Z][A-Z0-9]{1,9}-\d{1,6}|[A-Z]{1,4}\d{1,4}|\d{1,3}(?:\.\d{1,3})+"
_KEY = re.compile(
    rf"\s*(?:\[[ xX/~-]\]\*?\s+)?[*_`\[]*(?:(?:{_KINDS})\s+(?P<named>[A-Z]|{_SHAPES})"
    rf"|(?P<alone>{_SHAPES}|#\d{{1,6}}))(?![\w-]|\.\w)",
    re.IGNORECASE,
)

# Numbered work: "PR 1: Title", "Step Two - Title", "2. Title", "1.2 Title", "M3: Title".
NUMBER_WORDS = "one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
ROMAN = "i ii iii iv v vi vii viii ix x xi xii".split()  # noqa: SIM905
NUMBERED = re.compile(
    r"(?:\[[ xX]\]|[^\w\[])*"
    rf"(?:(?P<kind>{KINDS}|pull request|commit"
    r"|story|ticket|chunk|slice|change|[a-z]{1,2}-?(?=\d))\s*#?"
    rf"(?P<named>\d{{1,3}}|(?:{'|'.join(NUMBER_WORDS)})\b)(?P<minor>\.\d{{1,2}})?"
    r"(?:\s*(?:of|/)\s*\d{1,3})?(?P<remark>\s*\([^()\n]{1,80}\)(?=[*_]*\s*[:：–—-]))?"  # noqa: RUF001
    r"[*_]*\s*(?:[:：.)–—]|-(?=\s)|$)"  # noqa: RUF001
    rf"|(?P<roman>{'|'.join(ROMAN)})[.)](?=\s)"
    r"|(?P<bare>\d{1,3})(?:(?P<part>\.\d{1,2})\.?(?=\s)|[.)](?=\s)|\s+[-–—](?=\s)))"  # noqa: RUF001
    r"[\s*_]*(?P<title>.*)",
    re.IGNORECASE | re.DOTALL,
)

# Words that say that what follows comes first, and what may stand between its keys.
_CLAUSE = re.compile(
    r"\b(?:depend(?:s|ing)? on|dependenc(?:y|ies)|prerequisites?|needs|requires|after|once"
    r"|blocked by|waits? for)\b[*_]*:?[*_]*(?P<named>[^\n)]{0,400})",
    re.IGNORECASE,
)
_BETWEEN = re.compile(rf"(?:[\s,;&+*_`\[\](]|\band\b|(?:{_KINDS})s?\b)*", re.IGNORECASE)
_REFERENCE = re.compile(rf"(?:{_SHAPES}|[A-Z]|#\d{{1,6}})(?![\w-]*\w)")
_RANGE = re.compile(r"\s*(?:-|–|—|\.\.|\bto\b|\bthrough\b)\s*(?=[A-Z\d])")  # noqa: RUF001

# Marks of the form of tasks.md: may run beside the others, and of which story.
_MARKS = re.compile(r"\[(?:P|US\d{1,3})\]\s*")
_PARALLEL = re.compile(r"\[P\]|\((?:[^()]{0,40}\b)?(?:in )?parallel\b[^()]{0,40}\)", re.IGNORECASE)


def number_of(match: re.Match[str]) -> int:
    """Return the number of a match of `NUMBERED`."""
    word = (match["named"] or match["roman"] or match["bare"]).lower()
    names = NUMBER_WORDS if match["named"] else ROMAN
    return names.index(word) + 1 if word in names else int(word)


def key_of(lead: str) -> str:
    """Return the key with which a piece of work begins, in capitals; "" without one."""
    match = _KEY.match(lead)
    return (match["named"] or match["alone"]).upper() if match else ""


def without_marks(text: str) -> str:
    """Return *text* without the marks `[P]` and `[US1]`."""
    return _MARKS.sub("", text)


def is_parallel(text: str) -> bool:
    """Whether *text* says that the work may run beside other work: `[P]`, "(parallel)"."""
    return _PARALLEL.search(text) is not None


def keys_needed(text: str, keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the keys that *text* says come first, and those of them that are not in *keys*.

    *keys*: in their order, for ranges such as T001-T004.
    """
    keys_found: dict[str, None] = {}
    unknown: dict[str, None] = {}
    for clause in _CLAUSE.finditer(text):
        for key in _named(clause["named"], keys):
            # A single letter may be a word, and a number a version.
            is_key = key in keys or re.fullmatch(r"[A-Z]+-?\d+", key)
            if is_key:
                (keys_found if key in keys else unknown)[key] = None
    return list(keys_found), list(unknown)


def _named(text: str, keys: Sequence[str]) -> Iterator[str]:
    """Yield the keys with which *text* begins."""
    at = 0
    before = ""
    while True:
        to = _RANGE.match(text, at) if before else None
        between = to or _BETWEEN.match(text, at)
        match = _REFERENCE.match(text, between.end() if between else at)
        if not match:
            return
        key = match[0].upper()
        if to and before in keys and key in keys:
            yield from keys[keys.index(before) + 1 : keys.index(key)]
        yield key
        before, at = key, match.end()


# --- Graphs in Mermaid

_GRAPH = re.compile(
    r"^[ \t]*(?:```+|~~~+)[ \t]*mermaid[^\n]*\n(?P<text>.*?)^[ \t]*(?:```|~~~)",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
_NODE = (
    r"(?P<id>[A-Za-z_][\w-]*?)(?![\w])"
    r"(?:[\[({>]+[\"/]*(?P<label>[^\n]*?)[\"/]*[\])}]+)?(?::::\w+)?"
)
_NODES = re.compile(rf"\s*{_NODE}\s*")
_ARROW = re.compile(r"\s*(?:--[^->|\n]+--?>|-\.[^.\n]*\.->|[-=.]{2,}>|-->)\s*(?:\|[^|\n]*\|)?\s*")


class Graph(NamedTuple):
    """A graph: the label of each node, and pairs of nodes, the first of which comes first."""

    labels: Mapping[str, str]
    edges: Collection[tuple[str, str]]


def graphs_in(text: str) -> Iterator[Graph]:
    """Yield the flow charts of Mermaid in *text* that have an edge."""
    for block in _GRAPH.finditer(text):
        labels: dict[str, str] = {}
        edges: dict[tuple[str, str], None] = {}
        first, *lines = block["text"].split("\n")
        if not re.match(r"\s*(?:graph|flowchart)\b", first):
            continue
        for line in lines:
            for statement in line.split(";"):
                groups = list(_groups(statement, labels))
                for sources, ends in pairwise(groups):
                    edges.update({(one, other): None for one in sources for other in ends})
        if edges:
            yield Graph(labels, edges.keys())


def _groups(statement: str, labels: dict[str, str]) -> Iterator[list[str]]:
    """Yield the nodes of `A & B --> C --> D`, group by group, and note their labels."""
    at = 0
    while True:
        group: list[str] = []
        while match := _NODES.match(statement, at):
            group.append(match["id"])
            at = match.end()
            if match["label"]:
                labels[match["id"]] = re.sub(r"<br */?>|\\n", " ", match["label"]).strip()
            else:
                labels.setdefault(match["id"], match["id"])
            if statement[at : at + 1] != "&":
                break
            at += 1
        if not group:
            return
        yield group
        arrow = _ARROW.match(statement, at)
        if not arrow:
            return
        at = arrow.end()


# --- The front matter of plans by editors: `todos` with `id`, `content` and `dependencies`


def todos_in(lines: Sequence[str]) -> str:
    """Return the `todos` of YAML front matter as a numbered list; "" if it has none.

    A completed or cancelled item has a ticked box. A dependency is "(depends on 1, 2)".
    """
    todos: list[dict[str, list[str]]] = []
    inside, column, key = False, 0, ""
    for line in lines:
        if re.match(r"todos:\s*$", line):
            inside = True
            continue
        if not inside or not line.strip():
            continue
        if re.match(r"[A-Za-z]", line):
            break
        item = re.match(r"(\s*)-\s+", line)
        if item and (not todos or len(item[1]) <= column):
            todos.append({})
            column = len(item[1])
            line = " " * len(item[0]) + line[item.end() :]
        elif item and todos:
            todos[-1].setdefault(key, []).append(_scalar(line[item.end() :]))
            continue
        member = re.match(r"\s*([A-Za-z_]+):(?:\s+(.*))?$", line)
        if member and todos:
            key, value = member[1], (member[2] or "").strip()
            listed = re.fullmatch(r"\[(.*)\]", value)
            values = listed[1].split(",") if listed else [value] if value not in ("", ">-") else []
            todos[-1][key] = [_scalar(each) for each in values if each.strip()]
        elif todos and key:
            todos[-1].setdefault(key, []).append(line.strip())
    numbers = {each["id"][0]: number for number, each in enumerate(todos, 1) if each.get("id")}
    items = []
    for number, todo in enumerate(todos, 1):
        content = " ".join(todo.get("content") or todo.get("id") or [])
        status = " ".join(todo.get("status") or [])
        needed = [each for each in todo.get("dependencies") or [] if each in numbers]
        needs = f" (depends on {', '.join(str(numbers[each]) for each in needed)})"
        box = "[x]" if status in ("completed", "cancelled", "done") else "[ ]"
        items.append(f"{number}. {box} {content}{needs if needed else ''}")
    return "\n".join(items)


def _scalar(text: str) -> str:
    text = text.strip()
    quoted = re.fullmatch(r"\"(.*)\"|'(.*)'", text)
    return (quoted[1] or quoted[2] or "") if quoted else text
