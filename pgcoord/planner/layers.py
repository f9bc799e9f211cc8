"""Layers: the kinds of work that a feature is made of, how a text names them, which needs which.

A layer is recognised by the words and the files of a piece of work (`words.toml`). What it needs
follows from the layers that are there at all: the first of `_FOUNDATIONS` is what the others are
built on, so that they need not wait for each other.
"""

import re
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

# Points for a word that says it by itself, for one that only hints at it, and for a file.
_STRONG, _WEAK, _FILE = 3, 1, 4

# What begins a piece of work ("Test …", "Document …") outweighs what it is done to.
_OPENING = 8

# Characters of a text by which its layer is known: the rest is detail.
_TELLING = 2_000


@dataclass(frozen=True)
class Layer:
    """A kind of work; `words.toml` says what its members mean."""

    name: str
    title: str
    weight: int
    proof: str
    opening: re.Pattern[str]
    strong: re.Pattern[str]
    weak: re.Pattern[str]
    files: tuple[str, ...]

    def points(self, text: str, files: Iterable[str]) -> int:
        """How much a text and the files that it names say that this is the layer."""
        named = sum(any(fnmatchcase(file.lower(), each) for each in self.files) for file in files)
        return (
            _OPENING * bool(self.opening.match(text))
            + _STRONG * len({match[0].lower() for match in self.strong.finditer(text)})
            + _WEAK * len({match[0].lower() for match in self.weak.finditer(text)})
            + _FILE * min(named, 2)
        )


def _pattern(words: Collection[str]) -> re.Pattern[str]:
    """Whole words, in any case; `+` at the end of one stands for any ending."""
    parts = (each[:-1] + r"\w*" if each.endswith("+") else each for each in words)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(parts) or '(?!)'})(?!\w)", re.IGNORECASE)


WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))

LAYERS = tuple(
    Layer(
        name=name,
        title=each["title"],
        weight=each["weight"],
        proof=each["proof"],
        opening=_pattern(each["opening"]),
        strong=_pattern(each["strong"]),
        weak=_pattern(each["weak"]),
        files=tuple(each["files"]),
    )
    for name, each in WORDS["layer"].items()
)

# What a thing is called in a rule; and where a layer stands in a plan.
_BY_NAME = {each.name: each for each in LAYERS}
_STAGE = {each.name: stage for stage, each in enumerate(LAYERS)}

# The first of these that a feature has is what its other code is built on, and what its documents
# can be written from: phases after it need not wait for each other.
_FOUNDATIONS = ("database", "core", "backend", "cli", "frontend", "infrastructure")

# Layers that are built on what stands above them in this list, where it is there.
_INNER = ("database", "core")
_OUTER = ("backend", "cli")

_CODE = ("setup", "database", "core", "backend", "cli", "frontend")


def layer(name: str) -> Layer:
    """The layer of a name."""
    return _BY_NAME[name]


def stage(name: str) -> int:
    """Where a layer stands in a plan: what it may need stands before it."""
    return _STAGE[name]


def layer_of(text: str, files: Collection[str] = (), *, surely: bool = False) -> str | None:
    """The layer that a text is about, by its words and the files it names; None if it says none.

    `surely` leaves out what only hints at one.
    """
    points = {each.name: each.points(text[:_TELLING], files) for each in LAYERS}
    best = max(points.values())
    if best < (_STRONG if surely else _WEAK):
        return None
    return next(name for name in points if points[name] == best)


def needs(name: str, other: str, present: Collection[str]) -> bool:
    """Whether work of one layer needs that of another, given all layers that there are."""
    if name == other or stage(other) > stage(name):
        return False
    foundation = next((each for each in _FOUNDATIONS if each in present), None)
    match name:
        case "setup":
            return False
        case "infrastructure":
            return other == "setup"
        case "tests":
            return other in _CODE or other == foundation
        case "rollout":
            return other != "documentation"
        case "documentation":
            return other in ("setup", foundation) or foundation is None
    if name in _INNER or name in _OUTER:
        return other in ("setup", *_INNER) or other == foundation
    return other in ("setup", foundation)
