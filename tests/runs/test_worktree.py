"""A phase in a git worktree of its own: real git, real commands, real kills."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import PATIENCE
from support.disk import small_disk

from pgcoord.configuration import results
from pgcoord.coordination.supervision import program_of

PROGRAM = Path(__file__).parents[2] / "pgcoord/runs/worktree.py"


@dataclass
class Done:
    """What a phase came to."""

    status: int
    log: str
    result: dict[str, object]


class Repository:
    """A repository with one commit on `main`, and phases that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.inputs = folder
        self.folder.mkdir()
        self.git("init", "--quiet", "--initial-branch", "main")
        self.commit("README", "what it is\n")

    def copy(self, folder: Path) -> "Repository":
        """Another one that is the same, in a folder."""
        other = copy(self)
        other.folder, other.inputs = folder / "project", folder
        shutil.copytree(self.folder, other.folder)
        return other

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.inputs),
            "GIT_CONFIG_NOSYSTEM": "1",
            "PGCOORD_INSTALLATION": "here",
        }

    def git(self, *words: str, folder: Path | None = None) -> str:
        result = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *words],
            cwd=folder or self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout.strip()

    def commit(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", f"Write {name}")
        return self.git("rev-parse", "HEAD")

    def worktree(self, queue_id: str) -> Path:
        return Path(f"{self.folder}.worktrees", queue_id)

    def command(self, script: str, *options: str) -> list[str]:
        return [sys.executable, str(PROGRAM), *options, "--", "sh", "-c", script]

    def phase(
        self,
        queue_id: str,
        script: str,
        *options: str,
        after: dict[str, dict[str, object]] | None = None,
        prompt: str = "do it",
        directory: str = ".",
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """Run `script` as the command of a phase; `after` is what its prerequisites handed on."""
        paths = {kind: self.inputs / f"{queue_id}.{kind}" for kind in ("input", "result", "prompt")}
        paths["input"].write_text(json.dumps(after or {}))
        paths["prompt"].write_text(prompt)
        paths["result"].unlink(missing_ok=True)
        result = subprocess.run(
            self.command(script, *options),
            cwd=self.folder / directory,
            env=self.environment
            | {"PGCOORD_QUEUE_ID": queue_id}
            | {f"PGCOORD_{kind.upper()}_FILE": str(path) for kind, path in paths.items()}
            | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        found = {}
        if paths["result"].is_file():  # a FIFO is not waited for
            with suppress(ValueError):
                found = json.loads(paths["result"].read_text())
        return Done(result.returncode, result.stdout + result.stderr, found)

    def files(self, branch: str) -> set[str]:
        return set(self.git("ls-tree", "-r", "--name-only", branch).splitlines())


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


def test_the_work_is_on_the_branch_and_the_folder_is_gone(repository: Repository) -> None:
    completed = repository.phase(
        "queue-1-1", "cat > prompt; echo new > file", "--title", "Write it"
    )
    assert completed.status == 0, completed.log
    assert repository.files("pgcoord/queue-1-1") == {"README", "file", "prompt"}
    assert repository.git("show", "pgcoord/queue-1-1:prompt") == "do it"
    assert repository.git("log", "-1", "--format=%s", "pgcoord/queue-1-1") == "Write it"
    commit = repository.git("rev-parse", "pgcoord/queue-1-1")
    assert completed.result == {"branch": "pgcoord/queue-1-1", "commit": commit}
    assert not repository.worktree("queue-1-1").exists()
    assert repository.files("main") == {"README"}


def test_a_join_sees_the_work_of_all_its_prerequisites(repository: Repository) -> None:
    first = repository.phase("queue-1-1", "echo 1 > one").result
    left = repository.phase("queue-1-2", "cat one; echo 2 > two", after={"1": first})
    right = repository.phase("queue-1-3", "cat one; echo 3 > three", after={"1": first})
    assert (left.status, right.status) == (0, 0), left.log + right.log
    join = repository.phase(
        "queue-1-4", "cat one two three", after={"2": left.result, "3": right.result}
    )
    assert join.status == 0, join.log
    assert repository.files("pgcoord/queue-1-4") == {"README", "one", "two", "three"}


@pytest.mark.scale
def test_a_conflict_is_reported_before_the_command_runs(repository: Repository) -> None:
    left = repository.phase("queue-1-1", "echo left > README").result
    right = repository.phase("queue-1-2", "echo right > README").result
    after = {"1": left, "2": right}
    join = repository.phase("queue-1-3", f"touch {repository.inputs}/ran", after=after)
    assert join.status == 69
    assert "pgcoord/queue-1-2 cannot be merged into pgcoord/queue-1-3: conflict in README" in (
        join.log
    )
    assert not (repository.inputs / "ran").exists()

    resolved = repository.phase(
        "queue-1-3", "cat README", "--resolve", "echo both > README", after=after
    )
    assert resolved.status == 0, resolved.log
    assert repository.git("show", "pgcoord/queue-1-3:README") == "both"


def test_the_commit_of_a_prerequisite_must_be_in_the_repository(repository: Repository) -> None:
    result = repository.phase("queue-1-2", "true", after={"1": {"branch": "b", "commit": "0" * 40}})
    assert result.status == 69
    assert "of branch b is not in this repository" in result.log


def test_a_prerequisite_without_a_branch_changes_nothing(repository: Repository) -> None:
    result = repository.phase("queue-1-2", "echo > file", after={"1": {"summary": "approved"}})
    assert result.status == 0, result.log


@pytest.mark.parametrize("setting", [pytest.param("false", marks=pytest.mark.scale), "always"])
def test_many_at_once_all_start(repository: Repository, setting: str) -> None:
    """Of bare `git worktree add`s some fail, and more where branches are set up to track."""
    repository.git("config", "branch.autoSetupMerge", setting)
    with ThreadPoolExecutor(6) as threads:
        phases = [f"queue-1-{number}" for number in range(1, 7)]
        done = list(threads.map(lambda name: repository.phase(name, f"echo > {name}"), phases))
    assert [each.status for each in done] == [0] * len(phases), "".join(each.log for each in done)


def test_a_retry_goes_on_where_the_failed_attempt_has_stopped(repository: Repository) -> None:
    assert repository.phase("queue-1-1", "echo > half; exit 3").status == 3
    assert repository.worktree("queue-1-1").exists()
    result = repository.phase("queue-1-1", "test -e half && echo > whole")
    assert result.status == 0, result.log
    assert repository.files("pgcoord/queue-1-1") == {"README", "half", "whole"}


def test_a_signal_that_ends_the_command_becomes_the_exit_status_of_shells(
    repository: Repository,
) -> None:
    assert repository.phase("queue-1-1", "kill -TERM $$").status == 128 + signal.SIGTERM


def leaves_a_conflict(repository: Repository) -> str:
    """Return a command that says in `runs` that it runs, and leaves a merge unresolved."""
    repository.git("checkout", "--quiet", "-b", "other")
    repository.commit("file", "another\n")
    repository.git("checkout", "--quiet", "main")
    return (
        f"echo >> {repository.inputs}/runs; echo mine > file; git add file;"
        " git -c user.name=x -c user.email=x commit -qm mine; git merge other; true"
    )


def test_a_retry_commits_the_work_of_the_failed_attempt_without_the_command(
    repository: Repository,
) -> None:
    script = leaves_a_conflict(repository)
    failed = repository.phase("queue-1-1", script)
    assert failed.status == 65
    assert "a merge is left unresolved in file" in failed.log
    folder = repository.worktree("queue-1-1")
    (folder / "file").write_text("both\n")
    repository.git("add", "file", folder=folder)
    result = repository.phase("queue-1-1", script)
    assert result.status == 0, result.log
    assert (repository.inputs / "runs").read_text() == "\n"
    assert repository.git("show", "pgcoord/queue-1-1:file") == "both"


def test_a_command_that_changes_nothing_is_noted_in_the_log(repository: Repository) -> None:
    words = "worktree: the command has succeeded, and changed nothing"
    assert words in repository.phase("queue-1-1", "true").log
    assert words not in repository.phase("queue-1-2", "echo x > y").log
    commits = "echo x > y; git add y; git commit --quiet --message y"
    assert words not in repository.phase("queue-1-3", commits).log


def test_a_new_prompt_runs_the_command_again(repository: Repository) -> None:
    script = leaves_a_conflict(repository)
    for prompt in ("one", "two"):
        repository.phase("queue-1-1", script, prompt=prompt)
    assert (repository.inputs / "runs").read_text() == "\n\n"


# Kills the program at its call number KILL_AT of git. Of a folder that is being made or removed,
# half is there then.
DEADLY_GIT = """#!/bin/sh
number=$(($(cat $CALLS 2>/dev/null) + 1)); echo $number > $CALLS
test $number = "$KILL_AT" || exec {git} "$@"
case "$*" in
    worktree\\ add*) {git} worktree add --quiet --no-checkout "$4" "$5"
        touch $({git} -C "$4" rev-parse --absolute-git-dir)/index.lock;;
    worktree\\ remove*) rm "$5"/README;;
esac
kill -KILL $PPID
"""


def killed(repository: Repository, at: int) -> dict[str, str]:
    """Return the environment in which the program is killed at a call of git."""
    shims = repository.inputs / "shims"
    shims.mkdir(exist_ok=True)
    (shims / "git").write_text(DEADLY_GIT.format(git=shutil.which("git")))
    (shims / "git").chmod(0o755)
    (shims / "calls").unlink(missing_ok=True)
    path = f"{shims}:{os.environ['PATH']}"
    return {"PATH": path, "KILL_AT": str(at), "CALLS": str(shims / "calls")}


@pytest.mark.scale
@pytest.mark.timeout(1800)
def test_a_kill_at_any_moment_loses_no_work_and_pays_nothing_twice(tmp_path: Path) -> None:
    """At each call of git: what it kills is one side of a join, which the feature has to have."""
    feature = {"PGCOORD_FEATURE_ID": "7"}
    before = Repository(tmp_path)
    one = before.phase("queue-7-1", "echo 1 > one").result
    two = before.phase("queue-7-2", "echo 2 > two").result
    for at in range(1, 200):
        place = tmp_path / str(at)
        place.mkdir()
        repository = before.copy(place)
        script = f"echo >> {place}/runs; rm one; echo 3 > three"
        after = {"1": one, "2": two}
        first = repository.phase(
            "queue-7-3", script, after=after, environment=feature | killed(repository, at)
        )
        if first.status == 0:
            break
        assert first.status == -signal.SIGKILL, first.log
        again = repository.phase("queue-7-3", script, after=after, environment=feature)
        assert again.status == 0, f"{at}: {first.log}{again.log}"
        assert (place / "runs").read_text() == "\n", f"{at}: {first.log}{again.log}"
        for branch in (again.result["branch"], "pgcoord/feature-7"):
            assert repository.files(str(branch)) == {"README", "two", "three"}, at
        assert not repository.worktree("queue-7-3").exists()
        # Of two branches of a feature, none would have all.
        assert repository.git("branch", "--list", "--format=%(refname:short)", "pgcoord/f*") == (
            "pgcoord/feature-7"
        )
    assert at > 20


def leave_calls(repository: Repository, name: str, environment: Mapping[str, str]) -> str:
    """Return how many calls of git a phase makes."""
    counted = killed(repository, 0)
    repository.phase(name, f"echo > {name}", environment={**environment, **counted})
    return Path(counted["CALLS"]).read_text()


@pytest.mark.scale
def test_a_worktree_whose_making_or_removal_was_killed_is_made_anew(repository: Repository) -> None:
    calls = int(leave_calls(repository, "queue-1-1", {}))
    script = f"echo >> {repository.inputs}/runs; test -e README && echo > file"
    said = ""
    for at in range(1, calls + 1):
        if (repository.inputs / "runs").exists() and said:
            break
        result = repository.phase("queue-1-2", script, environment=killed(repository, at))
        said += "is incomplete" * ("is incomplete" in result.log)
    assert said, "it was never killed there"
    removal = repository.phase("queue-1-3", script, environment=killed(repository, calls))
    assert removal.status == -signal.SIGKILL
    assert not (repository.worktree("queue-1-3") / "README").exists()
    again = repository.phase("queue-1-3", script)
    assert again.status == 0, again.log
    assert repository.files("pgcoord/queue-1-3") == {"README", "file"}
    assert (repository.inputs / "runs").read_text() == "\n\n"


def test_a_merge_that_a_retry_finds_unfinished_is_not_thrown_away(repository: Repository) -> None:
    """Unfinished work in it counts as work, too: of the agent, or of a person who repairs it."""
    first = repository.phase("queue-1-1", "echo 1 > one").result
    script = leaves_a_conflict(repository)
    failed = repository.phase("queue-1-2", script, after={"1": first})
    assert failed.status == 65, failed.log
    folder = repository.worktree("queue-1-2")
    (folder / "file").write_text("both\n")
    second = repository.phase("queue-1-3", "echo 2 > two").result
    other = repository.phase("queue-1-2", script, after={"1": first, "3": second})
    assert other.status == 69
    assert "another merge is left" in other.log
    assert (folder / "file").read_text() == "both\n"
    repository.git("add", "file", folder=folder)
    completed = repository.phase("queue-1-2", script, after={"1": first})
    assert completed.status == 0, completed.log
    assert repository.git("show", "pgcoord/queue-1-2:file") == "both"


def test_a_folder_of_somebody_else_is_never_taken_or_removed(repository: Repository) -> None:
    """Two repositories may share the folder of their worktrees, and people use it, too."""
    root = repository.inputs / "trees"
    options = ("--root", str(root))
    (repository.inputs / "b").mkdir()
    other = Repository(repository.inputs / "b")
    assert other.phase("queue-1-1", "echo theirs > theirs; exit 1", *options).status == 1
    result = repository.phase("queue-1-1", f"touch {repository.inputs}/ran", *options)
    assert result.status == 69
    assert "queue-1-1 is in the way" in result.log
    (root / "queue-1-2").mkdir()
    (root / "queue-1-2" / "notes").write_text("mine\n")
    # Even where a worktree of that name was being made in another place.
    (repository.folder / ".git/pgcoord/queue-1-2.new").write_text("/elsewhere/queue-1-2")
    assert "is in the way" in repository.phase("queue-1-2", "true", *options).log
    repository.git("worktree", "add", "--quiet", str(root / "queue-1-3"))
    (root / "queue-1-3" / "notes").write_text("mine\n")
    assert "is in the way" in repository.phase("queue-1-3", "true", *options).log
    assert (root / "queue-1-1" / "theirs").exists()
    assert (root / "queue-1-2" / "notes").exists()
    assert (root / "queue-1-3" / "notes").exists()
    assert not (repository.inputs / "ran").exists()


def test_work_in_a_worktree_that_git_has_forgotten_is_put_aside(repository: Repository) -> None:
    """Git forgets those whose file system was away when `git worktree prune` ran."""
    repository.phase("queue-1-1", "echo > half; exit 3")
    folder = repository.worktree("queue-1-1")
    folder.rename(f"{folder}.away")
    repository.git("worktree", "prune")
    Path(f"{folder}.away").rename(folder)
    result = repository.phase("queue-1-1", "echo > whole")
    assert result.status == 0, result.log
    assert "git has forgotten" in result.log
    assert Path(f"{folder}.left-1", "half").exists()


def test_two_databases_may_have_phases_of_one_name_at_once(
    repository: Repository, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "gate")
    environment = repository.environment | {"PGCOORD_QUEUE_ID": "queue-1-1"}
    first = subprocess.Popen(
        repository.command(f"echo > {tmp_path}/gate; cat {tmp_path}/gate"),
        cwd=repository.folder,
        env=environment | {"PGCOORD_INSTALLATION": "there"},
    )
    (tmp_path / "gate").read_text()  # it works
    second = repository.phase("queue-1-1", "true")
    (tmp_path / "gate").write_text("")
    assert first.wait(PATIENCE) == 0
    assert second.status == 0, second.log


def test_a_lock_that_a_killed_git_left_is_removed(repository: Repository) -> None:
    assert repository.phase("queue-1-1", "touch $(git rev-parse --git-dir)/index.lock; exit 1")
    result = repository.phase("queue-1-1", "echo > file")
    assert result.status == 0, result.log
    again = repository.phase(
        "queue-1-2", "echo > file; touch $(git rev-parse --git-dir)/index.lock"
    )
    assert again.status == 0, again.log


def test_a_folder_that_was_deleted_is_made_anew(repository: Repository) -> None:
    repository.phase("queue-1-1", "exit 1")
    subprocess.run(["rm", "-r", repository.worktree("queue-1-1")], check=True)
    result = repository.phase("queue-1-1", "echo > file")
    assert result.status == 0, result.log


def test_the_branch_of_an_earlier_database_is_left_unchanged(repository: Repository) -> None:
    repository.phase("queue-1-1", "echo old > old")
    completed = repository.phase(
        "queue-1-1", "echo new > new", environment={"PGCOORD_INSTALLATION": "another"}
    )
    assert completed.result["branch"] == "pgcoord/queue-1-1-2", completed.log
    assert repository.files("pgcoord/queue-1-1") == {"README", "old"}
    assert repository.files("pgcoord/queue-1-1-2") == {"README", "new"}


def test_the_work_is_kept_on_any_branch_that_the_command_leaves(repository: Repository) -> None:
    script = "git checkout -q -b feature/mine; echo > mine; git add mine; git commit -qm mine; {}"
    for number, more in enumerate(("true", "echo > rest", "git checkout -q --detach"), 1):
        name = f"queue-1-{number}"
        result = repository.phase(name, script.replace("mine;", f"mine{number};", 1).format(more))
        assert result.status == 0, result.log
        assert "mine" in repository.files(f"pgcoord/{name}")


def test_a_hook_that_refuses_does_not_lose_the_work(repository: Repository) -> None:
    hook = repository.folder / ".git/hooks/pre-commit"
    hook.write_text("#!/bin/sh\necho no such thing >&2\nexit 1\n")
    hook.chmod(0o755)
    result = repository.phase("queue-1-1", "echo > file")
    assert result.status == 0, result.log
    assert "a hook refuses the commit" in result.log
    assert "no such thing" in result.log
    assert "file" in repository.files("pgcoord/queue-1-1")


def test_neither_hooks_nor_keys_keep_worktrees_from_being_made_and_merged(
    repository: Repository,
) -> None:
    left = repository.phase("queue-1-1", "echo 1 > one").result
    right = repository.phase("queue-1-2", "echo 2 > two").result
    for name in ("post-checkout", "commit-msg", "pre-merge-commit"):
        hook = repository.folder / ".git/hooks" / name
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)
    repository.git("config", "commit.gpgSign", "true")
    repository.git("config", "gpg.program", "false")
    join = repository.phase("queue-1-3", "echo 3 > three", after={"1": left, "2": right})
    assert join.status == 0, join.log
    assert repository.files("pgcoord/queue-1-3") == {"README", "one", "two", "three"}
    assert "a hook refuses the checkout" in join.log


def test_the_work_is_kept_though_the_command_has_renamed_the_branch(repository: Repository) -> None:
    script = "git branch -m feature/mine; echo > file; git add file; git commit -qm mine; echo > x"
    result = repository.phase("queue-1-1", script)
    assert result.status == 0, result.log
    assert repository.files("pgcoord/queue-1-1") == {"README", "file", "x"}


def test_without_a_name_or_a_title_the_work_is_committed(repository: Repository) -> None:
    result = repository.phase("queue-1-1", "echo > file", "--title", " ")
    assert result.status == 0, result.log
    actual = repository.git("log", "-1", "--format=%an %s", "pgcoord/queue-1-1")
    assert actual == "pgcoord queue-1-1"


def test_leftovers_and_nested_repositories_are_no_part_of_the_work(repository: Repository) -> None:
    result = repository.phase(
        "queue-1-1",
        "mkdir -p node_modules/x a/node_modules; echo > node_modules/x/y; echo > a/node_modules/z;"
        " echo > a/kept; git init -q nested; echo > nested/file",
    )
    assert result.status == 0, result.log
    assert repository.files("pgcoord/queue-1-1") == {"README", "a/kept"}
    assert "nested is a repository of its own" in result.log


def test_an_initialised_submodule_hinders_nothing(repository: Repository) -> None:
    library = repository.inputs / "library"
    subprocess.run(["git", "clone", "-q", repository.folder, library], check=True)
    repository.git(
        "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "library"
    )
    repository.git("commit", "--quiet", "--message", "Add library")
    result = repository.phase(
        "queue-1-1", "git -c protocol.file.allow=always submodule -q update --init; echo > file"
    )
    assert result.status == 0, result.log
    assert not repository.worktree("queue-1-1").exists()
    # Nobody could continue work from a commit that is nowhere else.
    name = "-c user.name=a -c user.email=a"
    script = (
        "git -c protocol.file.allow=always submodule -q update --init; cd library;"
        f" git checkout -q -b more; git {name} commit -q --allow-empty -m more"
    )
    lost = repository.phase("queue-1-2", script)
    assert lost.status == 65
    assert "submodule library is at a commit that none of its remotes has" in lost.log
    within = repository.worktree("queue-1-2") / "library"
    repository.git("push", "--quiet", "origin", "more", folder=within)
    pushed = repository.phase("queue-1-2", script)
    assert pushed.status == 0, pushed.log


def test_a_repository_within_that_holds_work_keeps_the_folder(repository: Repository) -> None:
    read = f"git clone -q {repository.folder} read"
    result = repository.phase("queue-1-1", read)
    assert result.status == 0, result.log
    assert not repository.worktree("queue-1-1").exists()
    more = "git -C read -c user.name=a -c user.email=a commit -q --allow-empty -m more"
    result = repository.phase("queue-1-2", f"{read}; {more}; echo > file")
    assert result.status == 0, result.log
    assert "stays: work in read is on none of its branches" in result.log
    assert (repository.worktree("queue-1-2") / "read").exists()


def test_the_command_starts_in_the_folder_that_the_phase_was_given(repository: Repository) -> None:
    (repository.folder / "below").mkdir()
    repository.commit("below/file", "text\n")
    result = repository.phase("queue-1-1", "test -e file && echo > new", directory="below")
    assert result.status == 0, result.log
    assert "below/new" in repository.files("pgcoord/queue-1-1")


def test_work_starts_from_the_base_and_a_dirty_tree_is_reported(repository: Repository) -> None:
    repository.git("branch", "stable")
    repository.commit("later", "text\n")
    (repository.folder / "README").write_text("changed\n")
    result = repository.phase("queue-1-1", "echo > file", "--base", "stable")
    assert result.status == 0, result.log
    assert repository.files("pgcoord/queue-1-1") == {"README", "file"}
    assert "uncommitted changes" in result.log


@pytest.mark.scale
def test_a_result_of_the_command_is_kept_beside_the_branch(repository: Repository) -> None:
    completed = repository.phase(
        "queue-1-1", """echo '{"summary": "done"}' > $PGCOORD_RESULT_FILE"""
    )
    assert completed.result["summary"] == "done"
    assert completed.result["branch"] == "pgcoord/queue-1-1"
    # What nobody can use is left for pgcoord to name; nothing is taken as done.
    for number, script in enumerate(
        [
            "echo '{' > $RESULT",
            "mkfifo $RESULT",
            "ln -s /etc/passwd $RESULT",
            "head -c 10000000 /dev/zero > $RESULT",
        ],
        2,
    ):
        script = script.replace("$RESULT", "$PGCOORD_RESULT_FILE")
        broken = repository.phase(f"queue-1-{number}", f"echo x > file; {script}")
        assert broken.status == 65, broken.log
        assert "worktree: the result file " in broken.log
        assert repository.worktree(f"queue-1-{number}").exists()


@pytest.mark.parametrize("text", ["é" * 20_000, "x" * (65_536 - 16)])
def test_a_result_of_up_to_64_kB_may_be_written_in_a_worktree(
    repository: Repository, text: str
) -> None:
    (repository.inputs / "answer").write_text(json.dumps({"summary": text}, ensure_ascii=False))
    answer = shlex.quote(str(repository.inputs / "answer"))
    completed = repository.phase("queue-1-1", f"cp {answer} $PGCOORD_RESULT_FILE")
    assert completed.status == 0, completed.log
    assert completed.result["summary"] == text
    # The limit of what the coordinator reads, in spite of all that was added.
    assert (repository.inputs / "queue-1-1.result").stat().st_size <= results.FILE_LIMIT


def test_a_result_that_the_database_will_refuse_is_refused_before_the_work_is_handed_on(
    repository: Repository,
) -> None:
    """Its many small members have less than 64 kB, and more with the spaces of the database."""
    many = json.dumps({f"k{n}": n for n in range(5_211)}, separators=(",", ":"))
    (repository.inputs / "answer").write_text(many)
    answer = shlex.quote(str(repository.inputs / "answer"))
    result = repository.phase(
        "queue-7-1",
        f"echo x > file; cp {answer} $PGCOORD_RESULT_FILE",
        environment={"PGCOORD_FEATURE_ID": "7"},
    )
    assert result.status == 65, result.log
    assert "worktree: the result has 75945 bytes of JSON" in result.log
    assert repository.worktree("queue-7-1").exists()
    assert "feature" not in repository.git("branch")


def test_work_whose_result_is_a_failure_is_not_kept(repository: Repository) -> None:
    words = """echo x > file; echo '{"status": "failed", "error": "no"}' > $PGCOORD_RESULT_FILE"""
    completed = repository.phase("queue-1-1", words)
    assert completed.result == {"status": "failed", "error": "no"}
    assert repository.files("pgcoord/queue-1-1") == {"README"}


@pytest.mark.scale
def test_the_branch_of_the_feature_has_the_work_of_all_phases(repository: Repository) -> None:
    branch = "pgcoord/feature-7"
    origin = repository.inputs / "origin"
    repository.git("init", "--quiet", "--bare", str(origin))
    repository.git("remote", "add", "origin", str(origin))

    def phase(queue_id: str, script: str, **after: dict[str, object]) -> Done:
        needs = {name[1:]: result for name, result in after.items()}
        return repository.phase(
            queue_id,
            script,
            "--push",
            "origin",
            after=needs,
            environment={"PGCOORD_FEATURE_ID": "7"},
        )

    one = phase("queue-7-1", "echo 1 > one").result
    assert one["feature_branch"] == branch
    two = phase("queue-7-2", "echo 2 > two; echo 2 > same", p1=one).result
    three = phase("queue-7-3", "echo 3 > three", p1=one).result
    assert three["feature_branch"] == branch
    assert repository.files(branch) == {"README", "one", "two", "same", "three"}
    # A conflict is reported; the work is merged with the phase that resolves it.
    four = phase("queue-7-4", "echo 4 > same", p1=one)
    assert four.status == 0, four.log
    fault = f"pgcoord/queue-7-4 cannot be merged into {branch}: conflict in same"
    assert four.result["feature_branch_fault"] == fault
    resolve = ("--resolve", "cat > task; echo both > same")
    join = repository.phase(
        "queue-7-5",
        "cat same",
        *resolve,
        after={"2": two, "3": three, "4": four.result},
        environment={"PGCOORD_FEATURE_ID": "7"},
    )
    assert join.status == 0, join.log
    assert "both" in join.log
    assert repository.git("show", f"{branch}:same") == "both"
    last = phase("queue-7-6", "true", p5=join.result)
    assert last.result["feature_branch"] == branch
    pushed = repository.git("--git-dir", str(origin), "rev-parse", branch)
    assert pushed == repository.git("rev-parse", branch)
    # A failed push is reported, and the work is still kept.
    origin.rename(repository.inputs / "away")
    kept = phase("queue-7-7", "echo 7 > seven", p6=last.result)
    assert kept.status == 0
    assert "is not pushed to origin" in str(kept.result["feature_branch_fault"])
    assert "seven" in repository.files(branch)


def test_a_conflict_can_be_resolved_by_hand_on_a_branch(repository: Repository) -> None:
    left = repository.phase("queue-1-1", "echo left > README").result
    right = repository.phase("queue-1-2", "echo right > README").result
    after = {"1": left, "2": right}
    assert repository.phase("queue-1-3", "true", after=after).status == 69
    repository.git("checkout", "--quiet", "pgcoord/queue-1-2")
    repository.git("merge", "--quiet", "-X", "ours", "pgcoord/queue-1-1")
    repository.git("checkout", "--quiet", "main")
    join = repository.phase("queue-1-3", "cat README", after=after)
    assert join.status == 0, join.log
    assert repository.git("show", "pgcoord/queue-1-3:README") == "right"


def test_a_resolver_without_a_model_has_the_phase_wait(repository: Repository) -> None:
    left = repository.phase("queue-1-1", "echo left > README").result
    right = repository.phase("queue-1-2", "echo right > README").result
    words = """echo '{"status": "later", "error": "529", "cost_usd": 2}' > $PGCOORD_RESULT_FILE"""
    later = ("--resolve", f"{words}; exit 75")
    join = repository.phase("queue-1-3", "true", *later, after={"1": left, "2": right})
    assert join.status == 69
    assert join.result == {"status": "later", "error": "529", "cost_usd": 2}
    assert repository.phase("queue-1-4", words).result["status"] == "later"
    assert not repository.git("log", "main..pgcoord/queue-1-4")


def test_conflict_markers_are_no_resolution(repository: Repository) -> None:
    left = repository.phase("queue-1-1", "echo left > README").result
    right = repository.phase("queue-1-2", "echo right > README").result
    join = repository.phase("queue-1-3", "true", "--resolve", "true", after={"1": left, "2": right})
    assert join.status == 69
    assert join.result == {
        "status": "failed",
        "error": "true has left conflict markers in README",
    }


@pytest.mark.scale
def test_a_report_waits_until_the_work_is_kept(repository: Repository) -> None:
    """What was reported is part of the result, if the work is kept."""
    report = repository.inputs / "report.json"
    kept = json.dumps({"body": json.dumps({"status": "completed", "result": {"summary": "good"}})})
    seen = f"""test -z "$PGCOORD_REPORT_URL" && echo x > file && echo '{kept}' > {report}"""
    url = {"PGCOORD_REPORT_URL": "http://127.0.0.1:9"}
    completed = repository.phase("queue-1-1", f"{seen} && exit 0", environment=url)
    assert (completed.status, completed.result["status"], completed.result["summary"]) == (
        0,
        "completed",
        "good",
    )
    no = f"""echo '{kept.replace("completed", "failed")}' > {report}; echo x > file"""
    assert repository.phase("queue-1-3", no, environment=url).status == 0
    assert repository.files("pgcoord/queue-1-3") == {"README"}, (
        "it has failed: nothing is handed on"
    )
    unresolved = (
        "echo 1 > f; git add f; git commit -qm 1; git branch o; echo 2 > f; git commit -qam 2;"
        " git checkout -q o; echo 3 > f; git commit -qam 3; git merge -q pgcoord/queue-1-2; exit 0"
    )
    identity = {
        f"GIT_{role}_{what}": "a@b"
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    lost = repository.phase("queue-1-2", f"{seen}; {unresolved}", environment=url | identity)
    assert lost.status == 65, lost.log
    assert lost.result["status"] == "failed", "what it has reported is not so"
    folder = repository.worktree("queue-1-2")
    repository.git("checkout", "--quiet", "--theirs", "f", folder=folder)
    repository.git("add", "f", folder=folder)
    again = repository.phase("queue-1-2", f"{seen}; {unresolved}", environment=url | identity)
    assert again.status == 0, again.log
    assert again.result["status"] == "completed", "the earlier attempt has reported it"


def test_two_attempts_never_work_in_one_worktree(repository: Repository, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    script = f"echo > {tmp_path}/gate; cat {tmp_path}/gate"
    first = subprocess.Popen(
        repository.command(script),
        cwd=repository.folder,
        env=repository.environment | {"PGCOORD_QUEUE_ID": "queue-1-1"},
    )
    (tmp_path / "gate").read_text()  # it works
    second = repository.phase("queue-1-1", "true")
    (tmp_path / "gate").write_text("")
    assert first.wait(PATIENCE) == 0
    assert second.status == 69
    assert "another process works in the worktree of queue-1-1" in second.log


def test_a_shallow_clone_with_a_detached_head_will_do(repository: Repository) -> None:
    repository.commit("more", "1\n")
    clone = repository.inputs / "clone"
    repository.git("clone", "--quiet", "--depth", "1", f"file://{repository.folder}", str(clone))
    repository.folder = clone
    repository.git("checkout", "--quiet", "--detach")
    one = repository.phase("queue-1-1", "echo 1 > one", environment={"PGCOORD_FEATURE_ID": "1"})
    two = repository.phase("queue-1-2", "echo 2 > two", environment={"PGCOORD_FEATURE_ID": "1"})
    assert (one.status, two.status) == (0, 0), one.log + two.log
    assert repository.files("pgcoord/feature-1") == {"README", "more", "one", "two"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    with small_disk(tmp_path / "disk", "8m") as disk:
        yield disk


def test_a_full_disk_loses_no_work_and_pays_nothing_twice(disk: Path) -> None:
    repository = Repository(disk)
    repository.inputs = disk.parent
    ballast = disk / "ballast"
    full = f"head -c 8000000 /dev/zero > {ballast} 2>/dev/null"
    script = f"echo >> {repository.inputs}/runs; head -c 500000 /dev/urandom > work; {full}; exit 0"
    failed = repository.phase("queue-1-1", script)
    assert failed.status == 65, failed.log
    assert "No space left on device" in failed.log
    not_run = repository.phase("queue-1-2", "true")
    assert not_run.status == 69, not_run.log
    ballast.unlink()
    result = repository.phase("queue-1-1", script)
    assert result.status == 0, result.log
    assert (repository.inputs / "runs").read_text() == "\n"
    assert repository.files("pgcoord/queue-1-1") == {"README", "work"}
    assert repository.phase("queue-1-2", "true").status == 0


@pytest.mark.scale
@pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")
def test_files_of_lfs_are_whole_in_the_worktree_and_kept(repository: Repository) -> None:
    repository.git("lfs", "install", "--local")
    repository.git("lfs", "track", "*.bin")
    repository.commit("a.bin", "large\n")
    completed = repository.phase("queue-1-1", "grep -x large a.bin && echo larger > a.bin")
    assert completed.status == 0, completed.log
    assert "git-lfs" in repository.git("show", "pgcoord/queue-1-1:a.bin")
    after = {"1": completed.result}
    assert repository.phase("queue-1-2", "grep -x larger a.bin", after=after).status == 0


def of_lfs(repository: Repository) -> None:
    repository.commit(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")


def bare(repository: Repository) -> None:
    repository.git("config", "core.bare", "true")


def removed(repository: Repository) -> None:
    subprocess.run(["rm", "-r", repository.folder / ".git"], check=True)


def empty(repository: Repository) -> None:
    repository.git("checkout", "--quiet", "--orphan", "none")


def taken(repository: Repository) -> None:
    repository.git("branch", "pgcoord")


def elsewhere(repository: Repository) -> None:
    repository.phase("queue-1-1", "true")
    repository.git("checkout", "--quiet", "pgcoord/queue-1-1")


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (removed, [], "is in no git repository"),
        (bare, [], "is in a bare repository"),
        (empty, [], "has no commit yet"),
        (taken, [], "there is a branch 'pgcoord'"),
        (elsewhere, [], "is already"),
        (of_lfs, [], "keeps files with git-lfs, which is not installed"),
        (lambda _: None, ["--base", "nowhere"], "there is no branch or commit 'nowhere'"),
        (lambda _: None, ["--root", "README"], "the worktree cannot be made"),
        (lambda _: None, ["--push", "nowhere"], "there is no remote 'nowhere' to push to"),
    ],
)
def test_an_unfit_repository_is_refused_before_the_command_runs(
    repository: Repository,
    spoil: Callable[[Repository], None],
    options: list[str],
    words: str,
) -> None:
    spoil(repository)
    ran = f"touch {repository.inputs}/ran"
    path = path_of(repository.inputs / "bin", "git", "sh", "touch")  # without git-lfs
    result = repository.phase("queue-1-1", ran, *options, environment={"PATH": path})
    assert result.status == 69, result.log
    assert words in result.log
    assert not (repository.inputs / "ran").exists()


def path_of(folder: Path, *programs: str) -> str:
    """A PATH with these programs only."""
    folder.mkdir()
    for name in programs:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return str(folder)


def test_a_machine_without_git_is_named(repository: Repository) -> None:
    path = path_of(repository.inputs / "bin", "sh")
    result = repository.phase("queue-1-1", "true", environment={"PATH": path})
    assert result.status == 69
    assert "there is no git on PATH" in result.log
    assert "Traceback" not in result.log


def test_a_command_that_is_not_there_is_named_before_anything_is_made(
    repository: Repository,
) -> None:
    result = subprocess.run(
        [sys.executable, str(PROGRAM), "--", "no-such-agent"],
        cwd=repository.folder,
        env=repository.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        69,
        "worktree: there is no command 'no-such-agent'\n",
    )
    assert not Path(f"{repository.folder}.worktrees").exists()


def test_the_command_line_runs_a_command_in_a_worktree(repository: Repository) -> None:
    """As `pgcoord worktree`, by hand: no phase, no prompt, no result."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pgcoord",
            "worktree",
            "--title",
            "By hand",
            "--",
            "touch",
            "-f",
            "x",
        ],
        cwd=repository.folder,
        env=repository.environment | {"PYTHONPATH": str(PROGRAM.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert repository.git("log", "-1", "--format=%s", "pgcoord/by-hand") == "By hand"
    assert repository.files("pgcoord/by-hand") == {"README", "x"}


def test_the_worktree_program_runs_without_its_file(repository: Repository) -> None:
    """As the command of a job on a machine that has Python, and no pgcoord."""
    program = program_of(str(PROGRAM), travels=True)
    assert program[0] == "python3"
    result = subprocess.run(
        [*program, "--title", "x", "--", "sh", "-c", "echo 1 > file"],
        cwd=repository.folder,
        env=repository.environment | {"PGCOORD_QUEUE_ID": "queue-1-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert repository.files("pgcoord/queue-1-1") == {"README", "file"}
