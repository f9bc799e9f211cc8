"""Layers: the kinds of work of a feature, how a text names them, and their dependencies.

The words and the files of a work item tell its layer (`words.toml`). Dependencies are those between
the layers that a feature has: all others depend on the first of `_FOUNDATIONS`, and so need not
wait for each other.
"""

import re
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

# Points for a word that names a layer, for one that only suggests it, and for a file.
_STRONG, _WEAK, _FILE = 3, 1, 4

# The first word ("Test …", "Document …") outweighs the words after it.
_OPENING = 8

# First characters of a text that tell its layer: the rest is detail.
_TELLING = 2_000


@dataclass(frozen=True)
class Layer:
    """A kind of work; `words.toml` explains the fields."""

    name: str
    title: str
    weight: int
    proof: str
    opening: re.Pattern[str]
    strong: re.Pattern[str]
    weak: re.Pattern[str]
    files: tuple[str, ...]

    def points(self, text: str, files: Iterable[str]) -> int:
        """Return how well *text* and the *files* that it names match this layer."""
        named = sum(any(fnmatchcase(file.lower(), each) for each in self.files) for file in files)
        return (
            _OPENING * bool(self.opening.match(text))
            + _STRONG * len({match[0].lower() for match in self.strong.finditer(text)})
            + _WEAK * len({match[0].lower() for match in self.weak.finditer(text)})
            + _FILE * min(named, 2)
        )


def _pattern(words: Collection[str]) -> re.Pattern[str]:
    """Return a pattern for whole words in any case; a final `+` matches any ending."""
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

# Layers by name, and their order in a plan.
_BY_NAME = {each.name: each for each in LAYERS}
_STAGE = {each.name: stage for stage, each in enumerate(LAYERS)}

# The other code and the documentation of a feature depend on the first of these that it has: phases
# after it need not wait for each other.
_FOUNDATIONS = ("database", "core", "backend", "cli", "frontend", "infrastructure")

# The outer layers depend on the inner ones, if a feature has those.
_INNER = ("database", "core")
_OUTER = ("backend", "cli")

_CODE = ("setup", "database", "core", "backend", "cli", "frontend")


def layer(name: str) -> Layer:
    """Return the layer with the name *name*."""
    return _BY_NAME[name]


def stage(name: str) -> int:
    """Return the order of a layer in a plan: it may depend on lower ones only."""
    return _STAGE[name]


def layer_of(text: str, files: Collection[str] = (), *, surely: bool = False) -> str | None:
    """Return the name of the layer of *text*, by its words and *files*; None if it names none.

    With *surely*, words that only suggest a layer do not count.
    """
    points = {each.name: each.points(text[:_TELLING], files) for each in LAYERS}
    best = max(points.values())
    if best < (_STRONG if surely else _WEAK):
        return None
    return next(name for name in points if points[name] == best)


def needs(name: str, other: str, present: Collection[str]) -> bool:
    """Whether layer *name* depends on *other* in a feature with the layers *present*."""
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
