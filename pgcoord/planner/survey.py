"""Finds the files of a repository for each phase: those that it names, and others worth reading.

A file is worth reading when its path has words of the phase, or its content names in code that the
phase names, and few other files do.
"""

import heapq
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache

from pgcoord.planner.items import Item
from pgcoord.planner.layers import WORDS, layer
from pgcoord.planner.phases import Draft
from pgcoord.planner.prompts import File, Surveyed
from pgcoord.planner.structure import Feature, Structure

# Names that are looked for in the content of files.
MOST_TERMS = 16

# Files that a prompt lists as worth reading.
_MOST_FOUND = 6

# The best by their points, of which those of the layer are preferred.
_MOST_COMPARED = 200

# A word in more than this share of all files does not distinguish one of them.
_COMMON = 0.2

# The first characters of a piece of work, whose words are searched for.
_TELLING = 2_000

# The share of the best file's points that another file needs to be listed.
_LEAST_SHARE = 0.45

_CODE = re.compile(r"`([A-Za-z_][\w.-]{2,60})(?:\(\))?`")
_IDENTIFIER = re.compile(
    r"\b(?:[a-z]+(?:_[a-z0-9]+)+|[A-Z][a-z0-9]+(?:[A-Z][a-z0-9]+)+|[a-z]+[A-Z]\w+)\b"
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")

_IDLE = frozenset(WORDS["idle"].split())


@dataclass(frozen=True)
class Repository:
    """The files of a repository, and those in which each term was found."""

    files: tuple[str, ...] = ()
    matches: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def _by_word(self) -> dict[str, list[tuple[str, int]]]:
        """The files with each word in their path, with 2 for the file name and 1 for a folder."""
        by_word: dict[str, list[tuple[str, int]]] = {}
        for file in self.files:
            folders, _, name = file.rpartition("/")
            named = _words_of(name)
            for word in named:
                by_word.setdefault(word, []).append((file, 2))
            for word in _words_of_folders(folders) - named:
                by_word.setdefault(word, []).append((file, 1))
        return by_word

    def _worth(self, count: int) -> float:
        """Return the weight of a word that *count* files contain."""
        if not count or count > max(3, _COMMON * len(self.files)):
            return 0
        return math.log(1 + len(self.files) / count)

    def rank(self, words: Iterable[str], terms: Iterable[str]) -> dict[str, float]:
        """Return the points of the files with these words in the path, or terms in the content."""
        points: dict[str, float] = defaultdict(float)
        for word in sorted(words):
            files = self._by_word.get(word, [])
            for file, times in files:
                points[file] += times * self._worth(len(files))
        for term in terms:
            matches = self.matches.get(term, frozenset())
            for file in matches:
                points[file] += 1.5 * self._worth(len(matches))
        return points


def _words_of(text: str) -> frozenset[str]:
    """The words of a text or a path, in lower case and in the singular."""
    return frozenset(map(_singular, _WORD.findall(text))) - {""}


@lru_cache(maxsize=10_000)
def _words_of_folders(folders: str) -> frozenset[str]:
    return _words_of(folders)


@lru_cache(maxsize=100_000)
def _singular(word: str) -> str:
    """Return a word in lower case and singular; empty for one that is too short."""
    word = word.lower()
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        return word[:-1]
    return word if len(word) > 2 else ""


def terms_of(text: str) -> list[str]:
    """Return the names of code in *text*, to be searched in files; words are in too many files."""
    words = [match[1] for match in _CODE.finditer(text)]
    words += [match[0] for match in _IDENTIFIER.finditer(text)]
    return list(dict.fromkeys(words))


def terms(feature: Feature, structure: Structure) -> list[str]:
    """Return the terms to search in files for a whole feature."""
    words = [terms_of(feature.title), *(terms_of(item.text) for item in structure.items)]
    # One of each piece of work in turn, so that none is left out.
    longest = max(map(len, words), default=0)
    in_turn = [each[index] for index in range(longest) for each in words if index < len(each)]
    return list(dict.fromkeys(in_turn))[:MOST_TERMS]


def resolve(structure: Structure, repository: Repository) -> Structure:
    """Replace the file names in work items by the paths in the repository."""
    all_files = set(repository.files)
    by_end: dict[str, list[str]] = {}
    for file in repository.files:
        by_end.setdefault(file.rpartition("/")[2], []).append(file)

    def full(name: str) -> str:
        if name in all_files:
            return name
        ends = by_end.get(name.rpartition("/")[2], [])
        matching = [file for file in ends if file.endswith(f"/{name}")]
        return matching[0] if len(matching) == 1 else name

    def resolved(item: Item) -> Item:
        return replace(item, files=tuple(dict.fromkeys(map(full, item.files))))

    return replace(structure, items=tuple(map(resolved, structure.items)))


def survey(feature: Feature, drafts: Sequence[Draft], repository: Repository) -> list[Surveyed]:
    """Return the files of the repository for each phase."""
    all_files = set(repository.files)
    # The title of the whole feature does not distinguish its parts.
    title = feature.title if len(drafts) == 1 else ""
    return [
        Surveyed(
            tuple(File(name, bool(all_files) and name not in all_files) for name in draft.files),
            _worth_reading(title, draft, repository),
        )
        for draft in drafts
    ]


def _worth_reading(title: str, draft: Draft, repository: Repository) -> tuple[str, ...]:
    text = "\n".join([title, *(item.text[:_TELLING] for item in draft.items)])
    points = repository.rank(_words_of(text) - _IDLE, terms_of(text))
    patterns = [pattern for name in draft.layers for pattern in layer(name).files]
    best = heapq.nsmallest(_MOST_COMPARED, ((-score, file) for file, score in points.items()))
    ranked = sorted(
        (score * (2 if any(fnmatchcase(file.lower(), each) for each in patterns) else 1), file)
        for score, file in best
        if score < 0 and file not in draft.files
    )
    least = ranked[0][0] * _LEAST_SHARE if ranked else 0
    return tuple(file for score, file in ranked[:_MOST_FOUND] if score <= least)
