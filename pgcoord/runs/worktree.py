"""Run the command of a phase in a git worktree of its own, and keep its work on a branch.

    python worktree.py [OPTIONS] -- COMMAND [ARGUMENT]…

Started in a repository, or a folder below its top, with the variables that pgcoord gives to a
phase. One file of standard-library Python 3.8, so that it can travel to a node.

Data flows one way: the branches of the prerequisites (PGCOORD_INPUT_FILE) are merged into a new
branch, a worktree is made of it, the command works there with the prompt as its standard input,
what it did is committed, and branch and commit go to PGCOORD_RESULT_FILE. The one rule: whether
the work is kept decides the outcome, never the clean-up; and what can be checked before the
command runs is checked before, for the command may cost money.

Exit status: the command's own; 65 when its work cannot be kept; 69 when it was not run, because
the repository, the base or the merge of the prerequisites does not allow it.
"""

from __future__ import annotations  # Python 3.8 reads the annotations of today

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

WORK_NOT_KEPT = 65
NOT_RUN = 69

# Left behind by installations, and seldom ignored by a young repository: never committed.
LEFTOVERS = ("node_modules", ".venv", "__pycache__", ".tox", ".mypy_cache", ".pytest_cache")
# Git reads these instead of the folder that it is started in.
_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")
# Of somebody who has told git no name: a service's account.
_NAME, _MAIL = "pgcoord", "pgcoord@localhost"


class Unfit(Exception):
    """Why the command is not run, or its work cannot be kept."""

    def __init__(self, message: str, status: int = NOT_RUN) -> None:
        super().__init__(message)
        self.status = status


class Git:
    """Git in one folder, with nothing that the caller's environment says of another."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def at(self, folder: Path) -> Git:
        """The same in another folder."""
        return Git(folder, self.environment)

    def attempt(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of git, whatever comes of it."""
        return subprocess.run(
            ["git", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )

    def __call__(self, *words: str, status: int = NOT_RUN) -> str:
        """Run a command of git; return its output. Raise `Unfit` with its words when it fails."""
        done = self.attempt(*words)
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            raise Unfit(f"git {' '.join(words[:2])}: {said}", status)
        return done.stdout.rstrip("\n")

    def commit_of(self, name: str) -> str | None:
        """The commit that *name* means; None if there is none."""
        found = self.attempt("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        return found.stdout.strip() or None


class Phase:
    """What pgcoord says of the phase, by the environment of its process."""

    def __init__(self, environment: dict[str, str], title: str) -> None:
        self.queue_id = environment.get("PGCOORD_QUEUE_ID") or "by-hand"
        self.installation = environment.get("PGCOORD_INSTALLATION", "")
        self.title = title.strip() or self.queue_id
        self.prompt = environment.get("PGCOORD_PROMPT_FILE")
        self.result = environment.get("PGCOORD_RESULT_FILE")
        self._inputs = environment.get("PGCOORD_INPUT_FILE")

    def prerequisites(self) -> list[tuple[str, str]]:
        """The branch and the commit of each prerequisite that has one."""
        if not self._inputs or not os.path.exists(self._inputs):
            return []
        with open(self._inputs, encoding="utf-8") as file:
            given: dict[str, dict[str, Any]] = json.load(file)
        found = []
        for number in sorted(given, key=int):
            result = given[number] or {}
            branch, commit = result.get("branch"), result.get("commit")
            if branch or commit:
                found.append((str(branch or commit), str(commit or branch)))
        return found

    def put_result(self, branch: str, commit: str) -> None:
        """Add branch and commit to what the command itself has written as its result."""
        if not self.result:
            return
        result: dict[str, Any] = {}
        try:
            with open(self.result, encoding="utf-8") as file:
                found = json.load(file)
            if isinstance(found, dict):
                result = found
            else:
                say("the result file holds no JSON object: it is replaced")
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            say(f"the result file cannot be read, and is replaced: {error}")
        result.update(branch=branch, commit=commit)
        beside = f"{self.result}.new"
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(result, file)
        os.replace(beside, self.result)

    def digest(self, command: Sequence[str]) -> str:
        """What tells this work from another: the command, and the prompt."""
        digest = hashlib.sha256("\0".join(command).encode("utf-8", "surrogateescape"))
        if self.prompt:
            with open(self.prompt, "rb") as file:
                digest.update(file.read())
        return digest.hexdigest()


def say(words: str) -> None:
    """Write a line into the log of the phase, beside what the command writes."""
    sys.stderr.write(f"worktree: {words}\n")
    sys.stderr.flush()


class Repository:
    """The repository that a phase works on, as the current folder shows it."""

    def __init__(self, git: Git) -> None:
        self.git = git
        inside = git.attempt("rev-parse", "--is-inside-work-tree")
        if inside.returncode:
            raise Unfit(f"{git.folder} is in no git repository: {inside.stderr.strip()}")
        if inside.stdout.strip() != "true":
            raise Unfit(f"{git.folder} is in a bare repository: name a work tree of it")
        self.top = Path(git("rev-parse", "--show-toplevel"))
        self.prefix = git("rev-parse", "--show-prefix")
        self.common = Path(git.folder, git("rev-parse", "--git-common-dir")).resolve()
        if git.commit_of("HEAD") is None:
            raise Unfit(f"{self.top} has no commit yet: make one, the worktree starts from it")

    @contextmanager
    def locked(self, name: str, *, waits: bool) -> Iterator[None]:
        """Hold a lock among all worktrees of the repository; one that dies lets go of it."""
        folder = self.common / "pgcoord"
        folder.mkdir(exist_ok=True)
        with open(folder / f"{name}.lock", "w", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError:
                raise Unfit(f"another process works in the worktree of {name}") from None
            yield

    def check_has(self, prerequisites: Sequence[tuple[str, str]]) -> None:
        """Raise `Unfit` where the commit of a prerequisite is not here, or not any more."""
        for branch, commit in prerequisites:
            if self.git.commit_of(commit) is None:
                raise Unfit(f"commit {commit} of branch {branch} is not in this repository")

    def start_of(self, base: str | None) -> str:
        """The commit to start from: of *base*, else of what is checked out."""
        commit = self.git.commit_of(base or "HEAD")
        if commit is None:
            raise Unfit(f"there is no branch or commit {base!r} to start from")
        if self.git("status", "--porcelain", "--untracked-files=no"):
            say(f"{self.top} has uncommitted changes: they are no part of this work")
        return commit


class Worktree:
    """The branch of a phase and the folder in which it is checked out."""

    def __init__(self, repository: Repository, phase: Phase, root: str | None) -> None:
        self.repository = repository
        self.phase = phase
        self.branch = self._own_branch()
        name = self.branch[len("pgcoord/") :]
        parent = Path(root) if root else Path(f"{repository.top}.worktrees")
        self.folder = (repository.top / parent / name).resolve()
        self.git = repository.git.at(self.folder)

    def _own_branch(self) -> str:
        """The branch of this phase. One of the same name of another database is left as it is."""
        git = self.repository.git
        if git.commit_of("refs/heads/pgcoord"):
            raise Unfit("there is a branch 'pgcoord', so none can be called pgcoord/…: rename it")
        number, name = 1, f"pgcoord/{self.phase.queue_id}"
        while git.commit_of(f"refs/heads/{name}"):
            owner = git.attempt("config", "--get", f"branch.{name}.pgcoord-installation")
            if owner.returncode == 0 and owner.stdout.strip() == self.phase.installation:
                break
            number += 1
            name = f"pgcoord/{self.phase.queue_id}-{number}"
        return name

    def make(self, start: str) -> None:
        """Check the branch out, new from *start*, or as the last attempt has left it."""
        git = self.repository.git
        git("worktree", "prune")
        if self.folder.exists() and not self._whole():
            say(f"{self.folder} is not whole (its making was interrupted): made anew")
            self.remove()
        if self._whole():
            self._unlock_index()
            return
        known = git.commit_of(f"refs/heads/{self.branch}")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unfit(f"the worktree cannot be made: {error}") from None
        if known is None:
            git("branch", "--no-track", self.branch, start)
            git("config", f"branch.{self.branch}.pgcoord-installation", self.phase.installation)
        git("worktree", "add", "--quiet", str(self.folder), self.branch)
        self._mark("ready", "")

    def merge(self, prerequisites: Sequence[tuple[str, str]], resolve: str | None) -> None:
        """Merge the commits of the prerequisites that are not in the branch yet.

        On a conflict the shell command *resolve* has a try; without it, or when conflicts are left,
        raise `Unfit` with the files and the branches.
        """
        for branch, commit in prerequisites:
            words = ["merge", "--no-edit", "--quiet", "-m", f"Merge {branch}", commit]
            merged = self.git.attempt(*words)
            if merged.returncode and resolve and self._conflicts():
                say(f"{branch} conflicts in {', '.join(self._conflicts())}: {resolve}")
                status = subprocess.call(
                    ["sh", "-c", resolve], cwd=self.folder, env=self.git.environment
                )
                if status == 0:
                    self.git("add", "--update")
                    merged = self.git.attempt("commit", "--no-edit", "--quiet", "--no-verify")
            if merged.returncode:
                files = ", ".join(self._conflicts())
                self.git.attempt("merge", "--abort")
                fault = f"conflict in {files}" if files else merged.stderr.strip()
                raise Unfit(f"{branch} cannot be merged into {self.branch}: {fault}")

    def run(self, command: Sequence[str]) -> int:
        """Run the command where the caller stands in the repository; return its exit status.

        An earlier attempt's success whose work could not be kept is taken as this one's.
        """
        digest = self.phase.digest(command)
        if self._marked("done") == digest:
            say("the command has succeeded in an earlier attempt: only its work is to be kept")
            return 0
        place = self.folder / self.repository.prefix
        if not place.is_dir():
            raise Unfit(f"there is no folder {self.repository.prefix} on {self.branch}")
        with open(self.phase.prompt or os.devnull, "rb") as source:
            status = subprocess.call(
                list(command), cwd=place, stdin=source, env=self.git.environment
            )
        if status == 0:
            self._mark("done", digest)
        return 128 - status if status < 0 else status

    def keep(self) -> str:
        """Commit what was done on the branch, whichever is checked out; return the commit."""
        self._unlock_index()
        if self._conflicts():
            files = ", ".join(self._conflicts())
            raise Unfit(f"a merge is left unresolved in {files}", WORK_NOT_KEPT)
        self._add()
        staged = self.git.attempt("diff", "--cached", "--quiet").returncode
        merging = self.git.commit_of("MERGE_HEAD")
        if staged or merging:
            words = ["commit", "--quiet", "--message", self.phase.title]
            done = self.git.attempt(*words)
            if done.returncode:
                say(f"a hook refuses the commit, which is made without: {done.stderr.strip()}")
                self.git(*words, "--no-verify", status=WORK_NOT_KEPT)
        self._return_to_branch()
        return self.git("rev-parse", "HEAD", status=WORK_NOT_KEPT)

    def remove(self) -> None:
        """Remove the folder, as far as that can be; the branch stays."""
        git = self.repository.git
        removed = git.attempt("worktree", "remove", "--force", "--force", str(self.folder))
        if self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            git.attempt("worktree", "prune")
        if self.folder.exists():
            say(f"{self.folder} cannot be removed: {removed.stderr.strip()}")

    def _add(self) -> None:
        self.git("add", "--update", status=WORK_NOT_KEPT)
        for nested in self._nested_repositories():
            say(f"{nested} is a repository of its own: it is no part of the commit")
        out = [f":(exclude,glob)**/{name}/**" for name in LEFTOVERS]
        out += [f":(exclude,literal){each}" for each in self._nested_repositories()]
        self.git("add", "--all", "--", ".", *out, status=WORK_NOT_KEPT)

    def _nested_repositories(self) -> list[str]:
        listed = self.git("ls-files", "--others", "--exclude-standard", "-z", status=WORK_NOT_KEPT)
        # Git lists an untracked repository as its folder, with a slash, and looks no further.
        return [each.rstrip("/") for each in listed.split("\0") if each.endswith("/")]

    def _return_to_branch(self) -> None:
        """Have the branch hold the work, where the command has switched to another one."""
        here = self.git.attempt("symbolic-ref", "--quiet", "HEAD").stdout.strip()
        if here == f"refs/heads/{self.branch}":
            return
        work = self.git("rev-parse", "HEAD", status=WORK_NOT_KEPT)
        say(f"the command has left {here or 'a detached HEAD'}: its work goes to {self.branch}")
        self.git("checkout", "--quiet", self.branch, status=WORK_NOT_KEPT)
        self.git("merge", "--quiet", "--no-edit", work, status=WORK_NOT_KEPT)

    def _conflicts(self) -> list[str]:
        listed = self.git.attempt("diff", "--name-only", "--diff-filter=U", "-z").stdout
        return sorted({each for each in listed.split("\0") if each})

    def _whole(self) -> bool:
        return self._marked("ready") is not None

    def _unlock_index(self) -> None:
        """Remove a lock of the index: this process holds the worktree, so its maker is dead."""
        lock = self._place() / "index.lock"
        if lock.exists():
            say("removed an index.lock that a killed git has left")
            lock.unlink()

    def _place(self) -> Path:
        """Where git keeps what belongs to this worktree alone. Raise `Unfit` if that is not so."""
        link = self.folder / ".git"
        try:
            found = re.match(r"gitdir: (.*)\n?$", link.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            found = None
        if not found:
            raise Unfit(f"{self.folder} is no worktree of {self.repository.top}")
        return Path(self.folder, found.group(1))

    def _mark(self, name: str, text: str) -> None:
        (self._place() / f"pgcoord-{name}").write_text(text, encoding="ascii")

    def _marked(self, name: str) -> str | None:
        try:
            return (self._place() / f"pgcoord-{name}").read_text(encoding="ascii")
        except (OSError, Unfit):
            return None


def environment_for(given: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment of git and of the command: *given*, and a name where git knows none."""
    environment = {name: value for name, value in given.items() if name not in _GIT_PLACES}
    git = Git(folder, environment)
    if git.attempt("-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT").returncode:
        for role in ("AUTHOR", "COMMITTER"):
            environment.setdefault(f"GIT_{role}_NAME", _NAME)
            environment.setdefault(f"GIT_{role}_EMAIL", _MAIL)
    return environment


def check_filters(worktree: Worktree) -> None:
    """Refuse a repository whose files need git-lfs where there is none: pointers are no files."""
    git = worktree.git
    uses = git.attempt("grep", "-q", "filter=lfs", "HEAD", "--", ":(glob)**/.gitattributes")
    if uses.returncode == 0 and git.attempt("lfs", "version").returncode:
        raise Unfit("the repository keeps files with git-lfs, which is not installed")


class Options(NamedTuple):
    """What is to be run, and how its worktree is made."""

    command: Sequence[str]
    base: str | None = None
    root: str | None = None
    title: str = ""
    resolve: str | None = None


def work(options: Options, given: dict[str, str]) -> int:
    """Do all of it in the current folder; return the exit status."""
    folder = Path.cwd()
    git = Git(folder, environment_for(given, folder))
    phase = Phase(git.environment, options.title)
    repository = Repository(git)
    program = options.command[0]
    if os.sep not in program and shutil.which(program, path=given.get("PATH")) is None:
        raise Unfit(f"there is no command {program!r}")
    with repository.locked(phase.queue_id, waits=False):
        prerequisites = phase.prerequisites()
        repository.check_has(prerequisites)
        # Worktrees are made one at a time: git itself fails now and then when they are not.
        with repository.locked("worktrees", waits=True):
            start = prerequisites[0][1] if prerequisites else repository.start_of(options.base)
            worktree = Worktree(repository, phase, options.root)
            worktree.make(start)
        check_filters(worktree)
        worktree.merge(prerequisites, options.resolve)
        say(f"{worktree.folder}, branch {worktree.branch}")
        status = worktree.run(options.command)
        if status:
            say(f"the command has failed: {worktree.folder} stays as it is, to be looked at")
            return status
        commit = worktree.keep()
        phase.put_result(worktree.branch, commit)
        say(f"{worktree.branch} is at {commit}")
        with repository.locked("worktrees", waits=True):
            worktree.remove()
    return 0


def run(options: Options) -> int:
    """Do all of it in the current folder; say what hinders it, and return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the command is told, too: no traceback
    try:
        return work(options, dict(os.environ))
    except Unfit as fault:
        say(str(fault))
        return fault.status
    except OSError as error:
        say(str(error))
        return WORK_NOT_KEPT


def main() -> None:
    """Read the command line, and exit as the command does."""
    parser = argparse.ArgumentParser(
        prog="worktree", description="Run COMMAND in a git worktree of its own."
    )
    parser.add_argument("--base", metavar="BRANCH", help="start from it; else from HEAD")
    parser.add_argument("--root", metavar="FOLDER", help="where worktrees are made")
    parser.add_argument("--title", default="", help="message of the commit")
    parser.add_argument("--resolve", metavar="COMMAND", help="has a try at conflicts, by sh")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    sys.exit(run(Options(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
