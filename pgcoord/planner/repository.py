"""Lists the tracked files of a repository, and finds the files that contain given words.

Reads through git only: no untracked file, no link, and no program of the repository.
"""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pgcoord.errors import PlannerFailed
from pgcoord.planner.survey import Repository

logger = logging.getLogger(__name__)

# Seconds for git: a hundred times its time for a repository of 50,000 files.
_GIT_TIMEOUT = 60

# Bytes of git's output that are read.
_MOST_FOUND = 16_000_000

# Options that keep git from running a configured program or changing its output format.
_GIT = ("git", "--no-pager", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false")


def list_files(folder: Path, environment: dict[str, str]) -> tuple[str, ...]:
    """Return the tracked files below *folder*; empty when it is in no repository."""
    output = _git(folder, environment, "ls-files", "-z", "--cached")
    return tuple(sorted(set(output.split("\0")[:-1]))) if output else ()


def search(
    folder: Path, environment: dict[str, str], files: Sequence[str], terms: Sequence[str]
) -> Repository:
    """Return *files* with, for each term, the files that contain it as a word in any case."""
    if not files or not terms:
        return Repository(tuple(files))
    patterns = [argument for term in terms for argument in ("-e", term)]
    output = _git(folder, environment, "grep", "-I", "-i", "-w", "-F", "-o", "-z", *patterns)
    by_lower = {term.lower(): term for term in terms}
    matches: dict[str, set[str]] = {term: set() for term in terms}
    for line in (output or "").split("\n"):
        file, _, word = line.partition("\0")
        if term := by_lower.get(word.lower()):
            matches[term].add(file)
    return Repository(tuple(files), {term: frozenset(each) for term, each in matches.items()})


def _git(folder: Path, environment: dict[str, str], *arguments: str) -> str | None:
    """Run git; return its output, or None when it fails or there is no repository."""
    settings = {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        completed = subprocess.run(
            [*_GIT, *arguments],
            cwd=folder,
            env=environment | settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT,
        )
    except FileNotFoundError:
        logger.info(
            "the files of %s are not read: git is not installed, or the folder does not exist",
            folder,
        )
        return None
    except subprocess.TimeoutExpired as error:
        raise PlannerFailed(
            f"git {arguments[0]} took more than {_GIT_TIMEOUT} s in {folder}"
        ) from error
    if completed.returncode > 1:
        message = completed.stderr.decode(errors="replace").strip().splitlines()[:1]
        logger.info("the files of %s are not read: %s", folder, *message or ["git failed"])
        return None
    return completed.stdout[:_MOST_FOUND].decode(errors="replace")
