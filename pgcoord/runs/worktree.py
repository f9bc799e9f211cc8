"""Run the command of a phase in a git worktree of its own, and keep its work on a branch.

    python worktree.py [OPTIONS] -- COMMAND [ARGUMENT]…

Started in a repository, or a folder below its top, with the variables that pgcoord gives to a
phase. One file of standard-library Python 3.8, so that it can travel to a node.

Data flows one way: the branches of the prerequisites (PGCOORD_INPUT_FILE) are merged into a new
branch, a worktree is made of it, the command works there with the prompt as its standard input,
what it did is committed, and branch and commit go to PGCOORD_RESULT_FILE. The branch of the
feature, pgcoord/feature-<id>, is moved on to have the work, too. The one rule: whether the work is
kept decides the outcome, never the clean-up; and what can be checked before the command runs is
checked before, for the command may cost money.

Exit status: the command's own; 65 when its work cannot be kept; 69 when it was not run, because
the repository, the base or the merge of the prerequisites does not allow it.
"""

from __future__ import annotations  # Python 3.8 reads the annotations of today

import argparse
import fcntl
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

WORK_NOT_KEPT = 65
NOT_RUN = 69

# Bytes of a result, less what is added to it here.
_RESULT_LIMIT = 65_536 - 2_048
# Of a result: what is not to be counted again for an attempt that only keeps the work.
_COSTS = ("cost_usd", "tokens_in", "tokens_out")
# Bytes that are kept free for the note that the work is done, should the disk be full by then.
_RESERVE = 2 * 65_536
# Seconds that a push may take.
_PUSH_PATIENCE = 300

# Left behind by installations, and seldom ignored by a young repository: never committed.
LEFTOVERS = ("node_modules", ".venv", "__pycache__", ".tox", ".mypy_cache", ".pytest_cache")
# Git reads these instead of the folder that it is started in.
_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")
# Of commits and merges that have to succeed: neither a hook nor a key that is locked is asked.
_UNQUESTIONED = ("--no-verify", "--no-gpg-sign")
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

    def attempt(
        self, *words: str, seconds: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of git, whatever comes of it; TimeoutExpired after *seconds*."""
        return subprocess.run(
            ["git", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            timeout=seconds,
        )

    def __call__(self, *words: str, status: int = NOT_RUN) -> str:
        """Run a command of git; return its output. Raise `Unfit` with its words when it fails."""
        done = self.attempt(*words)
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            raise Unfit(f"git {' '.join(words[:2])}: {said}", status)
        return done.stdout.rstrip("\n")

    def has(self, commit: str, other: str) -> bool:
        """Whether *other* is *commit* or one of its ancestors."""
        return self.attempt("merge-base", "--is-ancestor", other, commit).returncode == 0

    def commit_of(self, name: str) -> str | None:
        """The commit that *name* means; None if there is none."""
        found = self.attempt("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        return found.stdout.strip() or None


class Phase:
    """What pgcoord says of the phase, by the environment of its process."""

    def __init__(self, environment: dict[str, str], title: str, work: str | None) -> None:
        self.queue_id = environment.get("PGCOORD_QUEUE_ID") or "by-hand"
        self.feature_id = environment.get("PGCOORD_FEATURE_ID")
        self.installation = environment.get("PGCOORD_INSTALLATION", "")
        self.title = title.strip() or self.queue_id
        self.prompt = environment.get("PGCOORD_PROMPT_FILE")
        self._result_file = environment.get("PGCOORD_RESULT_FILE")
        self._inputs = environment.get("PGCOORD_INPUT_FILE")
        self._work = work
        # Whether the command has done its work, in this attempt or before.
        self.has_worked = False

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

    def result(self) -> dict[str, Any]:
        """What the command has written as its result so far.

        Raises `Unfit` where whoever reads the file could not use it, either.
        """
        try:
            return _read_object(self._result_file) if self._result_file else {}
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise Unfit(f"the result file {error}", WORK_NOT_KEPT) from None

    def put_result(self, result: dict[str, Any]) -> None:
        """Write the result, in place of what is there."""
        if not self._result_file:
            return
        beside = f"{self._result_file}.new"
        if os.path.lexists(beside):
            os.unlink(beside)
        with open(beside, "x", encoding="utf-8") as file:
            json.dump(result, file)
        os.replace(beside, self._result_file)

    def put_fault(self, fault: str) -> None:
        """Say in the result why the phase has failed, unless the command has said something."""
        if self._result_file and not os.path.lexists(self._result_file):
            with suppress(OSError):
                self.put_result({"status": "failed", "error": fault[:8_000]})

    def report(self) -> dict[str, Any]:
        """What the command has reported, as a result; empty if it has not.

        It could not send that: its work was not kept yet.
        """
        report = os.path.join(os.path.dirname(self.prompt or ""), "report.json")
        try:
            said = json.loads(_read_object(report, 1_000_000)["body"])
            if said["status"] in ("completed", "failed"):
                return {**(said.get("result") or {}), "status": said["status"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return {}

    def digest(self, command: Sequence[str]) -> str:
        """What tells this work from another: as was given, else the command, and the prompt."""
        if self._work:
            return self._work
        digest = hashlib.sha256("\0".join(command).encode("utf-8", "surrogateescape"))
        if self.prompt:
            with open(self.prompt, "rb") as file:
                digest.update(file.read())
        return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Write a file that is whole whenever it is there."""
    beside = Path(f"{path}.new")
    beside.write_text(text, encoding="utf-8", errors="surrogateescape")
    beside.replace(path)


def say(words: str) -> None:
    """Write a line into the log of the phase, beside what the command writes."""
    sys.stderr.write(f"worktree: {words}\n")
    sys.stderr.flush()


def _read_object(path: str, most: int = _RESULT_LIMIT) -> dict[str, Any]:
    """Read a JSON object of *most* bytes, whatever a command has left in its place.

    A link is not followed, a FIFO not waited for. Raises FileNotFoundError, or ValueError that says
    what the file is instead.
    """
    try:
        found = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    with os.fdopen(found, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a plain file")
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"has more than {most} bytes")
    try:
        read = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(read, dict):
        raise ValueError("holds no JSON object")
    return read


class Repository:
    """The repository that a phase works on, as the current folder shows it."""

    def __init__(self, git: Git) -> None:
        self.git = git
        inside = git.attempt("rev-parse", "--is-inside-work-tree")
        if "dubious ownership" in inside.stderr:
            user = pwd.getpwuid(os.geteuid()).pw_name
            raise Unfit(
                f"{git.folder} belongs to another user than {user}: run its phases as its owner"
            )
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

    def find(self, prerequisites: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the branch of each prerequisite, and the commit to merge: where it is now.

        A person may have gone on on the branch, to resolve a conflict. Raises `Unfit` where the
        commit that was handed on is not here, or not any more.
        """
        found = []
        for branch, name in prerequisites:
            # Resolved: an agent wrote it, and git might take it for an option.
            commit = self.git.commit_of(name)
            if commit is None:
                raise Unfit(f"commit {name} of branch {branch} is not in this repository")
            head = self.git.commit_of(f"refs/heads/{branch}")
            found.append((branch, head if head and self.git.has(head, commit) else commit))
        return found

    def branch_for(self, name: str, installation: str) -> str:
        """The branch pgcoord/*name*; one of the same name of another database is left as it is."""
        git = self.git
        if git.commit_of("refs/heads/pgcoord"):
            raise Unfit("there is a branch 'pgcoord', so none can be called pgcoord/…: rename it")
        number, branch = 1, f"pgcoord/{name}"
        while git.commit_of(f"refs/heads/{branch}"):
            owner = git.attempt("config", "--get", f"branch.{branch}.pgcoord-installation")
            if owner.returncode == 0 and owner.stdout.strip() == installation:
                break
            number += 1
            branch = f"pgcoord/{name}-{number}"
        return branch

    def make_branch(self, branch: str, start: str, installation: str) -> None:
        """Make a branch, and note whose it is: before, as a kill may come in between."""
        self.git("config", f"branch.{branch}.pgcoord-installation", installation)
        self.git("branch", "--no-track", branch, start)

    def note(self, name: str) -> Path:
        """The file of a note that outlives a worktree."""
        return self.common / "pgcoord" / name

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
        self.branch = repository.branch_for(phase.queue_id, phase.installation)
        name = self.branch[len("pgcoord/") :]
        parent = Path(root) if root else Path(f"{repository.top}.worktrees")
        self.folder = (repository.top / parent / name).resolve()
        self.git = repository.git.at(self.folder)
        # That it is being made, and that its work is kept: true whatever the folder holds.
        self._making, self._kept = (repository.note(f"{name}.{each}") for each in ("new", "kept"))
        # What resolving conflicts has cost.
        self.resolved_for: dict[str, float] = {}

    def make(self, start: str) -> None:
        """Check the branch out, new from *start*, or as the last attempt has left it."""
        git = self.repository.git
        if self._whole():
            self._making.unlink(missing_ok=True)
            self._unlock_index()
            return
        self._make_room()
        known = git.commit_of(f"refs/heads/{self.branch}")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unfit(f"the worktree cannot be made: {error}") from None
        if known is None:
            self.repository.make_branch(self.branch, start, self.phase.installation)
        self._making.write_text(str(self.folder), encoding="utf-8", errors="surrogateescape")
        words = ["worktree", "add", "--quiet", str(self.folder), self.branch]
        made = git.attempt(*words)
        if made.returncode:  # of all hooks, post-checkout alone has a say in this
            self.remove()
            try:
                git("-c", f"core.hooksPath={os.devnull}", *words)
            except Unfit:
                self.remove()
                raise
            say(f"a hook refuses the checkout, which is made without: {made.stderr.strip()}")
        self._mark("ready", "")
        self._making.unlink()

    def _make_room(self) -> None:
        """Have nothing in the place of the folder, and lose nothing that somebody has worked on.

        Removed is only what this program was making when it was killed.
        """
        # Of another folder, should `root` be another one now.
        interrupted = self._making.exists() and self._making.read_text(
            encoding="utf-8", errors="surrogateescape"
        ) == str(self.folder)
        is_there = self.folder.is_dir() and any(self.folder.iterdir())
        if interrupted or not is_there:
            if is_there:
                say(f"{self.folder} is not whole (its making was interrupted): made anew")
            self.remove()  # git may know it though it is gone
            return
        place = self._linked()
        if place is None or place.exists() or place.parent != self.repository.common / "worktrees":
            raise Unfit(
                f"{self.folder} is in the way, and no worktree of {self.branch}: move or remove it"
            )
        number = 1
        while os.path.lexists(f"{self.folder}.left-{number}"):
            number += 1
        self.folder.rename(f"{self.folder}.left-{number}")
        say(f"git has forgotten the worktree {self.folder}: moved to {self.folder}.left-{number}")

    def merge(self, prerequisites: Sequence[tuple[str, str]], resolve: str | None) -> None:
        """Merge the commits of the prerequisites that are not in the branch yet.

        On a conflict the shell command *resolve* has a try; without it, or when conflicts are left,
        raise `Unfit` with the files and the branches. So it does where an earlier attempt has left
        a merge of its own, which is not touched.
        """
        for branch, commit in prerequisites:
            if self.git.has("HEAD", commit):
                continue
            if self.git.commit_of("MERGE_HEAD"):
                left = ", ".join(self._conflicts()) or "nothing, and not committed"
                raise Unfit(
                    f"{branch} cannot be merged: another merge is left in {self.folder}, with"
                    f" conflicts in {left}"
                )
            words = ["merge", *_UNQUESTIONED, "--no-edit", "--quiet", "-m", f"Merge {branch}"]
            words.append(commit)
            merged = self.git.attempt(*words)
            if merged.returncode and resolve and self._conflicts():
                merged = self._resolve(branch, resolve)
            if merged.returncode:
                files = ", ".join(self._conflicts())
                self.git.attempt("merge", "--abort")
                fault = f"conflict in {files}" if files else merged.stderr.strip()
                raise Unfit(f"{branch} cannot be merged into {self.branch}: {fault}")

    def _resolve(self, branch: str, resolve: str) -> subprocess.CompletedProcess[str]:
        """Have *resolve* resolve the conflicts; return how the commit of the merge went."""
        files = ", ".join(self._conflicts())
        say(f"{branch} conflicts in {files}: {resolve}")
        task = (
            f"Merging {branch} into {self.branch} conflicts in {files}. Resolve the conflicts so"
            " that what both sides did is kept. Leave no conflict markers; do not commit.\n"
        )
        self._mark("task", task)
        task_file, result_file = (self._place() / f"pgcoord-{name}" for name in ("task", "cost"))
        with suppress(FileNotFoundError):
            result_file.unlink()
        environment = {
            **self.git.environment,
            "PGCOORD_PROMPT_FILE": str(task_file),
            "PGCOORD_RESULT_FILE": str(result_file),
        }
        environment.pop("PGCOORD_REPORT_URL", None)  # how it went is no report of the phase
        environment.pop("PGCOORD_WEBHOOK_SECRET", None)
        with open(task_file, "rb") as source:
            status = subprocess.call(
                ["sh", "-c", resolve], cwd=self.folder, env=environment, stdin=source
            )
        result: dict[str, Any] = {}
        with suppress(Unfit):
            result = Phase(environment, "", None).result()
        for name in _COSTS:
            if isinstance(result.get(name), (int, float)):
                self.resolved_for[name] = self.resolved_for.get(name, 0) + result[name]
        if result.get("status") == "later":  # its model gives no answer
            self.git.attempt("merge", "--abort")
            said = {name: value for name, value in result.items() if name not in _COSTS}
            self.phase.put_result(self.add_costs(said))
            raise Unfit(str(result.get("error")))
        if status == 0:
            self.git("add", "--update")
            if "leftover conflict marker" in self.git.attempt("diff", "--cached", "--check").stdout:
                self.git.attempt("merge", "--abort")
                raise Unfit(f"{resolve} has left conflict markers in {files}")
            return self.git.attempt("commit", "--no-edit", "--quiet", *_UNQUESTIONED)
        return self.git.attempt("diff", "--quiet")  # what is left of it

    def add_costs(self, result: dict[str, Any]) -> dict[str, Any]:
        """Add to *result* what resolving conflicts has cost; return it."""
        for name, cost in self.resolved_for.items():
            so_far = result.get(name)
            result[name] = cost + (so_far if isinstance(so_far, (int, float)) else 0)
        return result

    def run(self, command: Sequence[str]) -> int:
        """Run the command where the caller stands in the repository; return its exit status.

        An earlier attempt's success whose work could not be kept is taken as this one's.
        """
        place = self.folder / self.repository.prefix
        if not place.is_dir():
            raise Unfit(f"there is no folder {self.repository.prefix} on {self.branch}")
        environment = dict(self.git.environment)
        # It is left in the folder of the run, and becomes part of the result (`Phase.report`).
        environment.pop("PGCOORD_REPORT_URL", None)
        with open(self.phase.prompt or os.devnull, "rb") as source:
            status = subprocess.call(list(command), cwd=place, stdin=source, env=environment)
        return 128 - status if status < 0 else status

    def note_start(self) -> None:
        """Note from where the work starts, unless an earlier attempt has."""
        if self._marked("start") is None:
            self._mark("start", self.git("rev-parse", "HEAD"))
        self._mark("reserve", "-" * _RESERVE)

    def done_before(self, digest: str) -> bool:
        """Whether an earlier attempt has done this very work, which could not be kept."""
        return self._marked("done") == digest

    def remember(self, digest: str, result: dict[str, Any]) -> None:
        """Note that the work is done: another attempt has only to keep it."""
        self._place().joinpath("pgcoord-reserve").unlink(missing_ok=True)
        # What it cost is in the result of this attempt.
        again = {name: value for name, value in result.items() if name not in _COSTS}
        self._mark("result", json.dumps(again))
        self._mark("done", digest)

    def remembered(self) -> dict[str, Any]:
        """The result of the attempt that did the work."""
        found = json.loads(self._marked("result") or "{}")
        return found if isinstance(found, dict) else {}

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
                self.git(*words, *_UNQUESTIONED, status=WORK_NOT_KEPT)
        self._return_to_branch()
        self._check_submodules()
        return self.git("rev-parse", "HEAD", status=WORK_NOT_KEPT)

    def note_kept(self, digest: str, result: dict[str, Any]) -> None:
        """Note, apart from the folder, that the work is kept: what follows may be repeated."""
        again = {name: value for name, value in result.items() if name not in _COSTS}
        _write(self._kept, json.dumps({"digest": digest, "result": again}))

    def kept_before(self, digest: str) -> dict[str, Any] | None:
        """The result of an earlier attempt whose work is kept, and which was killed after that."""
        try:
            kept = json.loads(self._kept.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        head = self.repository.git.commit_of(f"refs/heads/{self.branch}")
        commit = kept["result"]["commit"]
        if kept["digest"] != digest or head is None:
            return None
        return kept["result"] if self.repository.git.has(head, commit) else None

    def close(self) -> None:
        """Remove the folder, unless it holds the only copy of something."""
        kept_here = [each for each in self._repositories_within() if self._holds_work(each)]
        if kept_here:
            say(f"{self.folder} stays: work in {', '.join(kept_here)} is on no branch of it")
        else:
            self.remove()
        with suppress(FileNotFoundError):
            self._kept.unlink()

    def remove(self) -> None:
        """Remove the folder, as far as that can be; the branch stays."""
        git = self.repository.git
        place = self._linked()
        removed = git.attempt("worktree", "remove", "--force", "--force", str(self.folder))
        if self.folder.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            if place and place.parent == self.repository.common / "worktrees":
                shutil.rmtree(place, ignore_errors=True)
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

    def _repositories_within(self) -> list[str]:
        """The submodules that are checked out, and repositories that are no part of this one."""
        if not self._whole():
            return []
        staged = self.git("ls-files", "--stage", "-z").split("\0")
        submodules = [each.partition("\t")[2] for each in staged if each.startswith("160000 ")]
        found = [each for each in submodules if (self.folder / each / ".git").exists()]
        return found + self._nested_repositories()

    def _holds_work(self, path: str) -> bool:
        """Whether a repository within has commits or changes that are nowhere else."""
        git = self.git.at(self.folder / path)
        if git.commit_of("HEAD") is None:
            return bool(git.attempt("status", "--porcelain").stdout)
        changed = git.attempt("status", "--porcelain", "--untracked-files=no").stdout
        ahead = git.attempt("rev-list", "-n1", "HEAD", "--branches", "--not", "--remotes").stdout
        return bool(changed or (ahead and path in self._nested_repositories()))

    def _check_submodules(self) -> None:
        """Refuse a commit of a submodule that nobody else could check out."""
        start = self._marked("start") or "HEAD"
        for path in self._repositories_within():
            now = self.git.attempt("rev-parse", f"HEAD:./{path}").stdout
            if not now or now == self.git.attempt("rev-parse", f"{start}:./{path}").stdout:
                continue
            sub = self.git.at(self.folder / path)
            if sub.attempt("rev-list", "-n1", now.strip(), "--not", "--remotes").stdout:
                raise Unfit(
                    f"submodule {path} is at a commit that none of its remotes has: push it from"
                    f" {self.folder / path}",
                    WORK_NOT_KEPT,
                )

    def _return_to_branch(self) -> None:
        """Have the branch hold the work, where the command has switched to another one."""
        here = self.git.attempt("symbolic-ref", "--quiet", "HEAD").stdout.strip()
        if here == f"refs/heads/{self.branch}":
            return
        work = self.git("rev-parse", "HEAD", status=WORK_NOT_KEPT)
        say(f"the command has left {here or 'a detached HEAD'}: its work goes to {self.branch}")
        if self.git.commit_of(f"refs/heads/{self.branch}") is None:  # renamed, or deleted
            self.repository.make_branch(self.branch, work, self.phase.installation)
        self.git("checkout", "--quiet", self.branch, status=WORK_NOT_KEPT)
        self.git("merge", *_UNQUESTIONED, "--quiet", "--no-edit", work, status=WORK_NOT_KEPT)

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

    def _linked(self) -> Path | None:
        """Where the folder says that git keeps what belongs to it; None if it says nothing."""
        try:
            text = (self.folder / ".git").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
        found = re.match(r"gitdir: (.*)\n?$", text)
        return Path(self.folder, found.group(1)).resolve() if found else None

    def _place(self) -> Path:
        """Where git keeps what belongs to this worktree alone. Raise `Unfit` if that is not so.

        The folder may be a worktree of another repository, which keeps its own in the same place.
        """
        place = self._linked()
        if place is None or place.parent != self.repository.common / "worktrees":
            raise Unfit(f"{self.folder} is no worktree of {self.repository.top}")
        return place

    def _mark(self, name: str, text: str) -> None:
        _write(self._place() / f"pgcoord-{name}", text)

    def _marked(self, name: str) -> str | None:
        try:
            return (self._place() / f"pgcoord-{name}").read_text(encoding="utf-8")
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


class FeatureBranch:
    """The branch that has the work of all phases of a feature."""

    def __init__(self, repository: Repository, phase: Phase) -> None:
        self.git = repository.git
        self._repository = repository
        self._installation = phase.installation
        self.name = repository.branch_for(f"feature-{phase.feature_id}", phase.installation)

    def add(self, branch: str, commit: str) -> str | None:
        """Have it contain *commit*; return why it cannot, None once it does.

        No folder is touched. Work that conflicts with it stays on its own branch: a phase after
        both, which merges them, brings it.
        """
        head = self.git.commit_of(f"refs/heads/{self.name}")
        if head is None:
            self._repository.make_branch(self.name, commit, self._installation)
            return None
        if self.git.has(head, commit):
            return None
        if f"branch refs/heads/{self.name}\n" in self.git("worktree", "list", "--porcelain") + "\n":
            return f"{self.name} is checked out, and not moved: merge {branch} there"
        if not self.git.has(commit, head):
            merged = self.git.attempt("merge-tree", "--write-tree", "--name-only", head, commit)
            tree, _, rest = merged.stdout.partition("\n")
            if merged.returncode:
                files = ", ".join(rest.partition("\n\n")[0].split("\n"))
                reason = f"conflict in {files}" if merged.returncode == 1 else merged.stderr.strip()
                return f"{branch} cannot be merged into {self.name}: {reason}"
            words = ["-p", head, "-p", commit, "-m", f"Merge {branch}"]
            commit = self.git("commit-tree", *words, tree)
        self.git("update-ref", "-m", f"pgcoord: {branch}", f"refs/heads/{self.name}", commit, head)
        return None

    def push(self, remote: str) -> str | None:
        """Push it; return why that failed, None when it did not."""
        try:
            pushed = self.git.attempt("push", remote, self.name, seconds=_PUSH_PATIENCE)
        except subprocess.TimeoutExpired:
            return f"{self.name} is not pushed to {remote}: no answer for {_PUSH_PATIENCE} s"
        said = pushed.stderr.strip()
        return f"{self.name} is not pushed to {remote}: {said}" if pushed.returncode else None


def hand_on(
    repository: Repository, phase: Phase, branch: str, commit: str, push: str | None
) -> dict[str, Any]:
    """Add the work to the branch of its feature; return what the result says of that.

    The work is kept already: nothing that fails here fails the phase.
    """
    if not phase.feature_id:
        return {}
    try:
        with repository.locked("worktrees", waits=True):
            feature = FeatureBranch(repository, phase)
            fault = feature.add(branch, commit)
        if fault is None and push:
            with repository.locked("push", waits=True):
                fault = feature.push(push)
    except (Unfit, OSError) as error:
        fault = str(error)
    if fault:
        say(fault)
        return {"feature_branch_fault": fault[:1_000]}
    return {"feature_branch": feature.name}


class Options(NamedTuple):
    """What is to be run, and how its worktree is made.

    `work` tells this work from another, where the command is not the same in each attempt; `push`
    is the remote that the branch of the feature is pushed to.
    """

    command: Sequence[str]
    base: str | None = None
    root: str | None = None
    title: str = ""
    resolve: str | None = None
    work: str | None = None
    push: str | None = None


def work(options: Options, phase: Phase, git: Git) -> int:
    """Do all of it in the current folder; return the exit status."""
    repository = Repository(git)
    program = options.command[0]
    if os.sep not in program and shutil.which(program, path=git.environment.get("PATH")) is None:
        raise Unfit(f"there is no command {program!r}")
    if options.push and git.attempt("remote", "get-url", options.push).returncode:
        raise Unfit(f"there is no remote {options.push!r} to push to")
    digest = phase.digest(options.command)
    # Another database may have a phase of the same name here.
    name = "-".join(filter(None, (phase.queue_id, phase.installation)))
    with repository.locked(name, waits=False):
        # Worktrees are made one at a time: git itself fails now and then when they are not.
        with repository.locked("worktrees", waits=True):
            worktree = Worktree(repository, phase, options.root)
            result = worktree.kept_before(digest)
            if result is None:
                prerequisites = repository.find(phase.prerequisites())
                start = prerequisites[0][1] if prerequisites else repository.start_of(options.base)
                worktree.make(start)
        if result is None:
            status, result = do(options, phase, worktree, prerequisites, digest)
            if result is None:
                return status  # nothing more is said: its last line tells why
        else:
            say("an earlier attempt has kept its work: only the rest is to be done")
            phase.has_worked = True
        branch, commit = str(result["branch"]), str(result["commit"])
        result.update(hand_on(repository, phase, branch, commit, options.push))
        phase.put_result(result)
        say(f"{branch} is at {commit}")
        with repository.locked("worktrees", waits=True):
            worktree.close()
    return 0


def do(
    options: Options,
    phase: Phase,
    worktree: Worktree,
    prerequisites: Sequence[tuple[str, str]],
    digest: str,
) -> tuple[int, dict[str, Any] | None]:
    """Run the command and keep its work; return its exit status, and the result if it succeeded."""
    check_filters(worktree)
    worktree.merge(prerequisites, options.resolve)
    say(f"{worktree.folder}, branch {worktree.branch}; if the command fails, both stay")
    if worktree.done_before(digest):
        say("the command has succeeded in an earlier attempt: only its work is to be kept")
        result = worktree.remembered()
    else:
        worktree.note_start()
        status = worktree.run(options.command)
        result = {} if status else {**phase.result(), **phase.report()}
        if status or result.get("status") in ("failed", "later"):
            if worktree.resolved_for:
                with suppress(Unfit):
                    phase.put_result(worktree.add_costs(phase.result()))
            return status, None
        phase.has_worked = True
        worktree.remember(digest, result)
    phase.has_worked = True
    commit = worktree.keep()
    worktree.add_costs(result)
    result.update(branch=worktree.branch, commit=commit)
    worktree.note_kept(digest, result)
    return 0, result


def run(options: Options) -> int:
    """Do all of it in the current folder; say what hinders it, and return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the command is told, too: no traceback
    folder = Path.cwd()
    git = Git(folder, environment_for(dict(os.environ), folder))
    phase = Phase(git.environment, options.title, options.work)
    try:
        return work(options, phase, git)
    except Unfit as fault:
        say(str(fault))
        phase.put_fault(str(fault))
        return fault.status
    except OSError as error:
        say(str(error))
        phase.put_fault(str(error))
        return WORK_NOT_KEPT if phase.has_worked else NOT_RUN


def main() -> None:
    """Read the command line, and exit as the command does."""
    parser = argparse.ArgumentParser(
        prog="worktree", description="Run COMMAND in a git worktree of its own."
    )
    parser.add_argument("--base", metavar="BRANCH", help="start from it; else from HEAD")
    parser.add_argument("--root", metavar="FOLDER", help="where worktrees are made")
    parser.add_argument("--title", default="", help="message of the commit")
    parser.add_argument("--resolve", metavar="COMMAND", help="has a try at conflicts, by sh")
    parser.add_argument("--work", metavar="DIGEST", help="tells this work from another")
    parser.add_argument("--push", metavar="REMOTE", help="push the branch of the feature to it")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    sys.exit(run(Options(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
