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

# Bytes of a result, written with a space after each comma and colon, as the database counts: 64 kB
# by the command, and 1 kB that judge.py may have added. And of a file that is read.
_RESULT_LIMIT = 65_536 + 1_024
_FILE_LIMIT = 3 * 69_632
# Keys of a result that must not count again for an attempt that only keeps the work.
_COSTS = ("cost_usd", "tokens_in", "tokens_out")
# Bytes reserved for the note that the work is done, in case the disk is full by then.
_RESERVE = 4 * 65_536
# Seconds that a push may take.
_PUSH_PATIENCE = 300

# Never committed: installations leave them behind, and a young repository seldom ignores them.
LEFTOVERS = (
    "node_modules",
    ".venv",
    "__pycache__",
    ".tox",
    ".mypy_cache",
    ".pytest_cache",
    ".aider.tags.cache.v*",
)

# With these, git would work elsewhere than in the folder that it is started in.
_GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")
# Options of commits and merges that must not fail because of a hook or a locked signing key.
_UNQUESTIONED = ("--no-verify", "--no-gpg-sign")
# The identity for commits of an account without one in git's configuration, such as a service's.
_NAME, _MAIL = "pgcoord", "pgcoord@localhost"


class Unfit(Exception):
    """The command cannot be run, or its work not kept; *status* is the exit status for that."""

    def __init__(self, message: str, status: int = NOT_RUN) -> None:
        super().__init__(message)
        self.status = status


class Git:
    """Runs git in *folder*, with *environment*, as `environment_for` returns it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment

    def at(self, folder: Path) -> Git:
        """Return a `Git` for another folder, with the same environment."""
        return Git(folder, self.environment)

    def attempt(
        self, *words: str, seconds: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `git words…`, and block until it ends; return it with output, whatever its status.

        Raises `subprocess.TimeoutExpired` after *seconds* (None: no limit).
        """
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
        """Run `git words…`, and block until it ends; return its stdout.

        Raises `Unfit` with git's error and *status* if it fails.
        """
        completed = self.attempt(*words)
        if completed.returncode:
            message = (
                completed.stderr or completed.stdout
            ).strip() or f"exit status {completed.returncode}"
            raise Unfit(f"git {' '.join(words[:2])}: {message}", status)
        return completed.stdout.rstrip("\n")

    def has(self, commit: str, other: str) -> bool:
        """Whether *other* is *commit* or one of its ancestors."""
        return self.attempt("merge-base", "--is-ancestor", other, commit).returncode == 0

    def commit_of(self, name: str) -> str | None:
        """Return the id of the commit that *name* resolves to; None if it resolves to none."""
        completed = self.attempt("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        return completed.stdout.strip() or None


class Phase:
    """The phase, as the environment of its process describes it, and its result file.

    *title*: the message of the commit. *work*: the digest of the work, if the caller has one.
    """

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
        """Return (branch, commit) of each prerequisite whose result has one, in order of phases."""
        if not self._inputs or not os.path.exists(self._inputs):
            return []
        with open(self._inputs, encoding="utf-8") as file:
            inputs: dict[str, dict[str, Any]] = json.load(file)
        of_ours = []
        for number in sorted(inputs, key=int):
            result = inputs[number] or {}
            branch, commit = result.get("branch"), result.get("commit")
            if branch or commit:
                of_ours.append((str(branch or commit), str(commit or branch)))
        return of_ours

    def result(self) -> dict[str, Any]:
        """Return the result that the command has written so far; {} if none.

        Raises `Unfit` when the file is not a JSON object, which the database would refuse as well.
        """
        try:
            return _read_object(self._result_file) if self._result_file else {}
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise Unfit(f"the result file {error}", WORK_NOT_KEPT) from None

    def put_result(self, result: dict[str, Any]) -> None:
        """Replace the result file, atomically; do nothing if the phase has none."""
        if not self._result_file:
            return
        beside = f"{self._result_file}.new"
        if os.path.lexists(beside):
            os.unlink(beside)
        with open(beside, "x", encoding="utf-8", errors="replace") as file:
            json.dump(result, file, ensure_ascii=False)  # escaped, it may be too large
        os.replace(beside, self._result_file)

    def put_fault(self, fault: str) -> None:
        """Write a failed result with *fault*, unless the command has written a result."""
        if self._result_file and not os.path.lexists(self._result_file):
            with suppress(OSError):
                self.put_result({"status": "failed", "error": fault[:8_000]})

    def report(self) -> dict[str, Any]:
        """Return the report that the command left in its folder, as a result; {} if none.

        `run` takes away the URL, so that no report is sent before the work is kept.
        """
        report = os.path.join(os.path.dirname(self.prompt or ""), "report.json")
        try:
            body = json.loads(_read_object(report, 1_000_000)["body"])
            if body["status"] in ("completed", "failed"):
                return {**(body.get("result") or {}), "status": body["status"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return {}

    def digest(self, command: Sequence[str]) -> str:
        """Return a digest that identifies the work: the given one, or of command and prompt."""
        if self._work:
            return self._work
        digest = hashlib.sha256("\0".join(command).encode("utf-8", "surrogateescape"))
        if self.prompt:
            with open(self.prompt, "rb") as file:
                digest.update(file.read())
        return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Replace the file at *path*, atomically."""
    beside = Path(f"{path}.new")
    beside.write_text(text, encoding="utf-8", errors="surrogateescape")
    beside.replace(path)


def say(words: str) -> None:
    """Write a line to stderr, which is the log of the phase."""
    sys.stderr.write(f"worktree: {words}\n")
    sys.stderr.flush()


def _read_object(path: str, most: int = _FILE_LIMIT) -> dict[str, Any]:
    """Read a JSON object of at most *most* bytes from a file that a command may have replaced.

    A symbolic link is not followed, and a FIFO does not block. Raises `FileNotFoundError`, or
    `ValueError` with what is wrong with the file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
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


def size_of(result: dict[str, Any]) -> int:
    """Return how many bytes of JSON the database makes of *result*."""
    return len(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace"))


def check_size(result: dict[str, Any]) -> dict[str, Any]:
    """Return *result*; raise `Unfit` when it is larger than what the database takes.

    It is counted as there, and refused before the work is kept and handed on: the phase fails.
    """
    size = size_of(result)
    if size > _RESULT_LIMIT:
        raise Unfit(
            f"the result has {size} bytes of JSON, with a space after each comma and colon:"
            " 64 kB at most",
            WORK_NOT_KEPT,
        )
    return result


class Repository:
    """The git repository of the current folder.

    Raises `Unfit` when there is none, it is bare or empty, or belongs to another user.
    """

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
        """Hold a lock shared by all worktrees of the repository; the kernel frees it at our death.

        *waits*: block until it is free; else raise `Unfit` when another process holds it.
        """
        folder = self.common / "pgcoord"
        folder.mkdir(exist_ok=True)
        with open(folder / f"{name}.lock", "w", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            except BlockingIOError:
                raise Unfit(f"another process works in the worktree of {name}") from None
            yield

    def find(self, prerequisites: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return (branch, commit to merge) of each prerequisite: the head of its branch.

        That may be later than its result's commit, when somebody resolved a conflict there. Raises
        `Unfit` when the result's commit is not in this repository.
        """
        worktrees = []
        for branch, name in prerequisites:
            # Resolved to an id: an agent wrote the name, and git could take it for an option.
            commit = self.git.commit_of(name)
            if commit is None:
                raise Unfit(f"commit {name} of branch {branch} is not in this repository")
            head = self.git.commit_of(f"refs/heads/{branch}")
            worktrees.append((branch, head if head and self.git.has(head, commit) else commit))
        return worktrees

    def branch_for(self, name: str, installation: str) -> str:
        """Return the branch pgcoord/*name*, or with -2, … if another installation has that one."""
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
        """Create a branch at *start*; note its installation first, in case of a kill between."""
        self.git("config", f"branch.{branch}.pgcoord-installation", installation)
        self.git("branch", "--no-track", branch, start)

    def note(self, name: str) -> Path:
        """Return the path for a note that must outlive the worktree."""
        return self.common / "pgcoord" / name

    def start_of(self, base: str | None) -> str:
        """Return the id of the commit to start from: that of *base*, else HEAD.

        Logs a warning if the repository has uncommitted changes. Raises `Unfit` for an unknown one.
        """
        commit = self.git.commit_of(base or "HEAD")
        if commit is None:
            raise Unfit(f"there is no branch or commit {base!r} to start from")
        if self.git("status", "--porcelain", "--untracked-files=no"):
            say(f"{self.top} has uncommitted changes: they are not part of this work")
        return commit


class Worktree:
    """The branch of a phase, and its folder, in *root* (None: in <top>.worktrees)."""

    def __init__(self, repository: Repository, phase: Phase, root: str | None) -> None:
        self.repository = repository
        self.phase = phase
        self.branch = repository.branch_for(phase.queue_id, phase.installation)
        name = self.branch[len("pgcoord/") :]
        parent = Path(root) if root else Path(f"{repository.top}.worktrees")
        self.folder = (repository.top / parent / name).resolve()
        self.git = repository.git.at(self.folder)
        # Notes that it is being made, and that its work is kept; both outlive the folder.
        self._making, self._kept = (repository.note(f"{name}.{each}") for each in ("new", "kept"))
        # The costs of resolving conflicts, by key of a result.
        self.resolved_for: dict[str, float] = {}

    def make(self, start: str) -> None:
        """Check out the branch, created at *start*, or reuse the worktree of the last attempt.

        Raises `Unfit` when the folder cannot be created, or something else is in its place.
        """
        git = self.repository.git
        if self._whole():
            self._making.unlink(missing_ok=True)
            self._unlock_index()
            return
        self._make_room()
        tip = git.commit_of(f"refs/heads/{self.branch}")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unfit(f"the worktree cannot be made: {error}") from None
        if tip is None:
            self.repository.make_branch(self.branch, start, self.phase.installation)
        self._making.write_text(str(self.folder), encoding="utf-8", errors="surrogateescape")
        words = ["worktree", "add", "--quiet", str(self.folder), self.branch]
        added = git.attempt(*words)
        if added.returncode:  # perhaps because of the hook post-checkout, the only one that runs
            self.remove()
            try:
                git("-c", f"core.hooksPath={os.devnull}", *words)
            except Unfit:
                self.remove()
                raise
            say(f"a hook refuses the checkout, which is made without: {added.stderr.strip()}")
        self._mark("ready", "")
        self._making.unlink()

    def _make_room(self) -> None:
        """Clear the place of the folder without losing work.

        Only a worktree that we were creating when killed is removed; one that git has forgotten is
        renamed; anything else raises `Unfit`.
        """
        # The note names the folder, since *root* may have changed.
        interrupted = self._making.exists() and self._making.read_text(
            encoding="utf-8", errors="surrogateescape"
        ) == str(self.folder)
        is_there = self.folder.is_dir() and any(self.folder.iterdir())
        if interrupted or not is_there:
            if is_there:
                say(f"{self.folder} is incomplete (its creation was interrupted): created again")
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

        On a conflict the shell command *resolve* is run. Raises `Unfit`, with files and branches,
        when there is none or it leaves conflicts; also when an earlier attempt has left a merge
        unfinished, which stays as it is.
        """
        for branch, commit in prerequisites:
            if self.git.has("HEAD", commit):
                continue
            if self.git.commit_of("MERGE_HEAD"):
                conflicts = ", ".join(self._conflicts()) or "nothing, and not committed"
                raise Unfit(
                    f"{branch} cannot be merged: another merge is left in {self.folder}, with"
                    f" conflicts in {conflicts}"
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
        """Run *resolve* on the conflicts; return the process that committed the merge.

        Its status is not 0 if conflicts are left. Raises `Unfit` when conflict markers are left, or
        the resolver asks to be retried later.
        """
        files = ", ".join(self._conflicts())
        say(f"{branch} conflicts in {files}: {resolve}")
        status, result = self._run_resolver(
            resolve,
            f"Merging {branch} into {self.branch} conflicts in {files}. Resolve the conflicts so"
            " that what both sides did is kept. Leave no conflict markers; do not commit.\n",
        )
        for name in _COSTS:
            if isinstance(result.get(name), (int, float)):
                self.resolved_for[name] = self.resolved_for.get(name, 0) + result[name]
        if result.get("status") == "later":  # its model does not answer
            self.git.attempt("merge", "--abort")
            fields = {name: value for name, value in result.items() if name not in _COSTS}
            self.phase.put_result(self.add_costs(fields))
            raise Unfit(str(result.get("error")))
        if status:
            return self.git.attempt("diff", "--quiet")  # not 0: the conflicts are left
        self.git("add", "--update")
        if "leftover conflict marker" in self.git.attempt("diff", "--cached", "--check").stdout:
            self.git.attempt("merge", "--abort")
            raise Unfit(f"{resolve} has left conflict markers in {files}")
        return self.git.attempt("commit", "--no-edit", "--quiet", *_UNQUESTIONED)

    def _run_resolver(self, resolve: str, task: str) -> tuple[int, dict[str, Any]]:
        """Run *resolve* with *task* as its prompt; return its exit status and its result or {}."""
        self._mark("task", task)
        task_file, result_file = (self._place() / f"pgcoord-{name}" for name in ("task", "cost"))
        with suppress(FileNotFoundError):
            result_file.unlink()
        environment = {
            **self.git.environment,
            "PGCOORD_PROMPT_FILE": str(task_file),
            "PGCOORD_RESULT_FILE": str(result_file),
        }
        environment.pop("PGCOORD_REPORT_URL", None)  # the resolver must not report for the phase
        environment.pop("PGCOORD_WEBHOOK_SECRET", None)
        with open(task_file, "rb") as source:
            status = subprocess.call(
                ["sh", "-c", resolve], cwd=self.folder, env=environment, stdin=source
            )
        result: dict[str, Any] = {}
        with suppress(Unfit):
            result = Phase(environment, "", None).result()
        return status, result

    def add_costs(self, result: dict[str, Any]) -> dict[str, Any]:
        """Add the costs of resolving conflicts to those in *result*, in place; return it."""
        for name, cost in self.resolved_for.items():
            so_far = result.get(name)
            result[name] = cost + (so_far if isinstance(so_far, (int, float)) else 0)
        return result

    def run(self, command: Sequence[str]) -> int:
        """Run the command in the worktree, in the caller's subfolder, and block until it ends.

        Its stdin is the prompt. Return its exit status, 128 + the signal that ended it. Raises
        `Unfit` when the branch does not have that subfolder.
        """
        place = self.folder / self.repository.prefix
        if not place.is_dir():
            raise Unfit(f"there is no folder {self.repository.prefix} on {self.branch}")
        environment = dict(self.git.environment)
        # So a report stays in the folder of the run, and becomes part of the result
        # (`Phase.report`).
        environment.pop("PGCOORD_REPORT_URL", None)
        with open(self.phase.prompt or os.devnull, "rb") as source:
            status = subprocess.call(list(command), cwd=place, stdin=source, env=environment)
        return 128 - status if status < 0 else status

    def note_start(self) -> None:
        """Note the commit at which the work starts, unless noted before; reserve disk space."""
        if self._marked("start") is None:
            self._mark("start", self.git("rev-parse", "HEAD"))
        self._mark("reserve", "-" * _RESERVE)

    def started_at(self) -> str | None:
        """Return the commit that `note_start` has noted; None if it was not called."""
        return self._marked("start")

    def did_work_before(self, digest: str) -> bool:
        """Whether an earlier attempt did the same work, but could not keep it."""
        return self._marked("done") == digest

    def remember(self, digest: str, result: dict[str, Any]) -> None:
        """Note that the work is done, with its result, so that a later attempt only keeps it."""
        self._place().joinpath("pgcoord-reserve").unlink(missing_ok=True)
        # The result of this attempt counts its costs.
        again = {name: value for name, value in result.items() if name not in _COSTS}
        self._mark("result", json.dumps(again))
        self._mark("done", digest)

    def remembered(self) -> dict[str, Any]:
        """Return the result of the attempt that did the work, without costs."""
        result = json.loads(self._marked("result") or "{}")
        return result if isinstance(result, dict) else {}

    def keep(self) -> str:
        """Commit all changes to the phase's branch, and return the id of the commit.

        If the command switched to another branch, that one's work is merged. Raises `Unfit` with
        `WORK_NOT_KEPT` when a merge is unresolved, or git refuses.
        """
        self._unlock_index()
        if self._conflicts():
            files = ", ".join(self._conflicts())
            raise Unfit(f"a merge is left unresolved in {files}", WORK_NOT_KEPT)
        self._add()
        staged = self.git.attempt("diff", "--cached", "--quiet").returncode
        merging = self.git.commit_of("MERGE_HEAD")
        if staged or merging:
            words = ["commit", "--quiet", "--message", self.phase.title]
            completed = self.git.attempt(*words)
            if completed.returncode:
                say(f"a hook refuses the commit, which is made without: {completed.stderr.strip()}")
                self.git(*words, *_UNQUESTIONED, status=WORK_NOT_KEPT)
        self._return_to_branch()
        self._check_submodules()
        return self.git("rev-parse", "HEAD", status=WORK_NOT_KEPT)

    def note_kept(self, digest: str, result: dict[str, Any]) -> None:
        """Note outside of the folder that the work is kept, so that the next attempt skips it."""
        again = {name: value for name, value in result.items() if name not in _COSTS}
        _write(self._kept, json.dumps({"digest": digest, "result": again}))

    def kept_before(self, digest: str) -> dict[str, Any] | None:
        """Return the result of an earlier attempt that kept this work, and was killed after that.

        None if there is none, or its branch does not have that commit any more.
        """
        try:
            note = json.loads(self._kept.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        head = self.repository.git.commit_of(f"refs/heads/{self.branch}")
        commit = note["result"]["commit"]
        if note["digest"] != digest or head is None:
            return None
        return note["result"] if self.repository.git.has(head, commit) else None

    def close(self) -> None:
        """Remove the folder, unless a repository in it has work that is nowhere else."""
        kept_here = [each for each in self._repositories_within() if self._holds_work(each)]
        if kept_here:
            say(f"{self.folder} stays: work in {', '.join(kept_here)} is on none of its branches")
        else:
            self.remove()
        with suppress(FileNotFoundError):
            self._kept.unlink()

    def remove(self) -> None:
        """Remove the folder, and log what cannot be removed; the branch stays."""
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
            say(f"{nested} is a repository of its own: it is not part of the commit")
        out = [f":(exclude,glob)**/{name}/**" for name in LEFTOVERS]
        out += [f":(exclude,literal){each}" for each in self._nested_repositories()]
        self.git("add", "--all", "--", ".", *out, status=WORK_NOT_KEPT)

    def _nested_repositories(self) -> list[str]:
        listed = self.git("ls-files", "--others", "--exclude-standard", "-z", status=WORK_NOT_KEPT)
        # git lists an untracked repository as its folder, with a slash, and not the files in it.
        return [each.rstrip("/") for each in listed.split("\0") if each.endswith("/")]

    def _repositories_within(self) -> list[str]:
        """Return the paths of submodules that are checked out, and of untracked repositories."""
        if not self._whole():
            return []
        staged = self.git("ls-files", "--stage", "-z").split("\0")
        submodules = [each.partition("\t")[2] for each in staged if each.startswith("160000 ")]
        repositories = [each for each in submodules if (self.folder / each / ".git").exists()]
        return repositories + self._nested_repositories()

    def _holds_work(self, path: str) -> bool:
        """Whether the repository at *path* within has commits or changes that are nowhere else."""
        git = self.git.at(self.folder / path)
        if git.commit_of("HEAD") is None:
            return bool(git.attempt("status", "--porcelain").stdout)
        changed = git.attempt("status", "--porcelain", "--untracked-files=no").stdout
        ahead = git.attempt("rev-list", "-n1", "HEAD", "--branches", "--not", "--remotes").stdout
        return bool(changed or (ahead and path in self._nested_repositories()))

    def _check_submodules(self) -> None:
        """Raise `Unfit` if a submodule is at a new commit that none of its remotes has."""
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
        """If the command switched to another branch, check out ours, and merge that one's work."""
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
        """Remove a stale lock of the index: we hold the worktree's lock, so its maker is dead."""
        lock = self._place() / "index.lock"
        if lock.exists():
            say("removed an index.lock that a killed git has left")
            lock.unlink()

    def _linked(self) -> Path | None:
        """Return the git directory that the folder's file .git names; None without such a file."""
        try:
            text = (self.folder / ".git").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
        link = re.match(r"gitdir: (.*)\n?$", text)
        return Path(self.folder, link.group(1)).resolve() if link else None

    def _place(self) -> Path:
        """Return the git directory of this worktree alone.

        Raises `Unfit` when the folder is not a worktree of this repository, but perhaps of another.
        """
        place = self._linked()
        if place is None or place.parent != self.repository.common / "worktrees":
            raise Unfit(f"{self.folder} is not a worktree of {self.repository.top}")
        return place

    def _mark(self, name: str, text: str) -> None:
        _write(self._place() / f"pgcoord-{name}", text)

    def _marked(self, name: str) -> str | None:
        try:
            return (self._place() / f"pgcoord-{name}").read_text(encoding="utf-8")
        except (OSError, Unfit):
            return None


def environment_for(inherited: dict[str, str], folder: Path) -> dict[str, str]:
    """Return the environment for git and the command, from *inherited*.

    Without git's own variables of place, and with an identity for commits if git, started in
    *folder*, has none.
    """
    environment = {name: value for name, value in inherited.items() if name not in _GIT_PLACES}
    git = Git(folder, environment)
    if git.attempt("-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT").returncode:
        for role in ("AUTHOR", "COMMITTER"):
            environment.setdefault(f"GIT_{role}_NAME", _NAME)
            environment.setdefault(f"GIT_{role}_EMAIL", _MAIL)
    return environment


def check_filters(worktree: Worktree) -> None:
    """Raise `Unfit` if the repository uses git-lfs, which is not installed.

    The command would find pointers in place of its files.
    """
    git = worktree.git
    uses = git.attempt("grep", "-q", "filter=lfs", "HEAD", "--", ":(glob)**/.gitattributes")
    if uses.returncode == 0 and git.attempt("lfs", "version").returncode:
        raise Unfit("the repository keeps files with git-lfs, which is not installed")


class FeatureBranch:
    """The branch pgcoord/feature-<id>, into which the work of all phases is merged."""

    def __init__(self, repository: Repository, phase: Phase) -> None:
        self.git = repository.git
        self._repository = repository
        self._installation = phase.installation
        self.name = repository.branch_for(f"feature-{phase.feature_id}", phase.installation)

    def add(self, branch: str, commit: str) -> str | None:
        """Merge *commit* of *branch* into it without a worktree; return why not, None on success.

        Work that conflicts stays on *branch*, until a phase that depends on both merges them.
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
        """Push it to *remote*; return why that failed, None on success.

        Blocks up to `_PUSH_PATIENCE` seconds.
        """
        try:
            pushed = self.git.attempt("push", remote, self.name, seconds=_PUSH_PATIENCE)
        except subprocess.TimeoutExpired:
            return f"{self.name} is not pushed to {remote}: no answer for {_PUSH_PATIENCE} s"
        message = pushed.stderr.strip()
        return f"{self.name} is not pushed to {remote}: {message}" if pushed.returncode else None


def hand_on(
    repository: Repository, phase: Phase, branch: str, commit: str, push: str | None
) -> dict[str, Any]:
    """Merge *commit* into the feature's branch, and push that to the remote *push*, if given.

    Return the keys to add to the result: `feature_branch`, or `feature_branch_fault` with the
    error, which does not fail the phase: the work is kept already. {} without a feature.
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
    """The command to run, and how to create its worktree.

    *base*: the branch to start from (None: HEAD). *root*: the folder for worktrees. *title*: the
    message of the commit. *resolve*: a shell command for conflicts. *work*: a digest that
    identifies the work, if the command differs between attempts. *push*: the remote to push the
    feature's branch to.
    """

    command: Sequence[str]
    base: str | None = None
    root: str | None = None
    title: str = ""
    resolve: str | None = None
    work: str | None = None
    push: str | None = None


def work(options: Options, phase: Phase, git: Git) -> int:
    """Create the worktree, run the command, keep its work, write the result; return the status.

    Blocks until the command has ended. Raises `Unfit` when it cannot be run, or its work not kept.
    """
    repository = Repository(git)
    program = options.command[0]
    if os.sep not in program and shutil.which(program, path=git.environment.get("PATH")) is None:
        raise Unfit(f"there is no command {program!r}")
    if options.push and git.attempt("remote", "get-url", options.push).returncode:
        raise Unfit(f"there is no remote {options.push!r} to push to")
    digest = phase.digest(options.command)
    # A phase of another installation may have the same name.
    name = "-".join(filter(None, (phase.queue_id, phase.installation)))
    with repository.locked(name, waits=False):
        # One at a time: concurrent `git worktree add` fails now and then.
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
                return status  # no line of ours: the last line of the log should be the command's
        else:
            say("an earlier attempt has kept its work: the command is not run again")
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
    """Merge the *prerequisites*, run the command, commit its work.

    Return its exit status, and the result, or None if it failed. If an earlier attempt did the work
    with the same *digest*, only keep it.
    """
    check_filters(worktree)
    worktree.merge(prerequisites, options.resolve)
    say(f"{worktree.folder}, branch {worktree.branch}; if the command fails, both stay")
    if worktree.did_work_before(digest):
        say("the command has succeeded in an earlier attempt: only its work is to be kept")
        result = worktree.remembered()
    else:
        worktree.note_start()
        status = worktree.run(options.command)
        result = {} if status else check_size({**phase.result(), **phase.report()})
        if status or result.get("status") in ("failed", "later"):
            if worktree.resolved_for:
                with suppress(Unfit):
                    phase.put_result(worktree.add_costs(phase.result()))
            return status, None
        phase.has_worked = True
        worktree.remember(digest, result)
    phase.has_worked = True
    commit = worktree.keep()
    if worktree.started_at() == commit:
        say("the command has succeeded, and changed nothing")
    worktree.add_costs(result)
    result.update(branch=worktree.branch, commit=commit)
    worktree.note_kept(digest, result)
    return 0, result


def run(options: Options) -> int:
    """Run `work` in the current folder; return the exit status.

    A fault is logged, and written to the result file.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the command gets it, too; print no traceback
    folder = Path.cwd()
    environment = dict(os.environ)
    phase = Phase(environment, options.title, options.work)
    try:
        if shutil.which("git") is None:
            raise Unfit("there is no git on PATH, which worktrees need")
        return work(options, phase, Git(folder, environment_for(environment, folder)))
    except Unfit as fault:
        say(str(fault))
        phase.put_fault(str(fault))
        return fault.status
    except OSError as error:
        say(str(error))
        phase.put_fault(str(error))
        return WORK_NOT_KEPT if phase.has_worked else NOT_RUN


def main() -> None:
    """Parse the command line, run, and exit with the status of `run`."""
    parser = argparse.ArgumentParser(
        prog="worktree", description="Run COMMAND in a git worktree of its own."
    )
    parser.add_argument("--base", metavar="BRANCH", help="start from it; else from HEAD")
    parser.add_argument("--root", metavar="FOLDER", help="where worktrees are made")
    parser.add_argument("--title", default="", help="message of the commit")
    parser.add_argument(
        "--resolve", metavar="COMMAND", help="shell command that tries to resolve conflicts"
    )
    parser.add_argument("--work", metavar="DIGEST", help="tells this work from another")
    parser.add_argument("--push", metavar="REMOTE", help="push the branch of the feature to it")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    sys.exit(run(Options(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
