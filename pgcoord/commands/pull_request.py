"""`pull-request`: the command of a phase that opens the pull request of its feature.

The phases before it have pushed the branch (`push` of their workflows). The one rule: the command
is idempotent; run again, it finds the open pull request instead of opening a second one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcoord.commands.options import surroundings_of
from pgcoord.commands.terminal import say
from pgcoord.errors import CannotStart, InvalidConfiguration, InvalidInput, NotNow
from pgcoord.text import read_text

if TYPE_CHECKING:
    from pgcoord.github.client import PullRequest

# The exit status of pgcoord/judge.py for a failure that a later retry may mend.
_TRY_LATER = 75


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("pull-request")(pull_request)


def pull_request(
    ctx: typer.Context,
    title: Annotated[str | None, typer.Option(help="The title; 'Feature N' by default.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BRANCH", help="The target branch; by default that of the repository."
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="The branch to merge; by default that of the feature."),
    ] = None,
    draft: Annotated[bool, typer.Option("--draft", help="Open it as a draft.")] = False,
) -> None:
    """Open the pull request of a feature, as the command of its last phase.

    The repository is that of [github]. The text of the pull request is made of the results of the
    phases before this one, whose own result has `pr_number` and `url`. If one is open already, the
    command uses it. Exit status 75: GitHub does not answer now, and pgcoord tries again later.
    """
    import asyncio

    from pgcoord.configuration.reading import find_configuration, read_configuration
    from pgcoord.github.client import Repository, read_credentials

    surroundings = surroundings_of(ctx)
    environment = surroundings.environment
    path = find_configuration(surroundings.folder, environment)
    settings = read_configuration(path).github if path else None
    if settings is None:
        raise InvalidConfiguration(
            "there is no [github]", hint='Name the repository there, such as "octo/work".'
        )
    credentials = read_credentials(settings, environment)
    result_file = environment.get("PGCOORD_RESULT_FILE")
    results = _read_inputs(environment.get("PGCOORD_INPUT_FILE"))
    branch = head or _branch_of(results)
    words = title or f"Feature {environment.get('PGCOORD_FEATURE_ID', branch)}"

    async def open_or_find() -> "PullRequest":
        async with Repository(settings, credentials) as repository:
            target = base or str((await repository.about())["default_branch"])
            existing = await repository.find_pull_request(branch, target)
            return existing or await repository.open_pull_request(
                words, branch, target, _text_of(results), draft=draft
            )

    try:
        opened = asyncio.run(open_or_find())
    except NotNow as error:
        _put_result(result_file, {"status": "later", "error": str(error)})
        say(f"pgcoord: {error}", err=True)
        raise typer.Exit(_TRY_LATER) from error
    result = {"pr_number": opened.number, "url": opened.url, "summary": f"opened {opened.url}"}
    _put_result(result_file, result)
    say(opened.url)


def _read_inputs(path: str | None) -> dict[int, Mapping[str, Any]]:
    """Return the results of the phases before this one, as {phase number: result}, in order.

    *path*: the JSON file of PGCOORD_INPUT_FILE; None gives {}. Raises `InvalidInput`.
    """
    if not path:
        return {}
    try:
        content = json.loads(read_text(Path(path)))
    except ValueError as error:
        raise InvalidInput(f"PGCOORD_INPUT_FILE, {path}: not JSON: {error}") from error
    return {int(number): content[number] for number in sorted(content, key=int)}


def _branch_of(results: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the feature's branch from *results*, by phase number; the last phase's one wins.

    Raises `InvalidInput` when no phase has one, or it lacks the work of a phase.
    """
    work = [each for each in results.values() if each.get("branch")]
    for each in work:
        fault = each.get("feature_branch_fault")
        if fault and (each is work[-1] or not _brought_by(work, each)):
            raise InvalidInput(f"the branch of the feature does not have all work: {fault}")
    branches = [
        str(each["feature_branch"]) for each in results.values() if "feature_branch" in each
    ]
    if not branches:
        raise InvalidInput(
            "no phase before this one has a branch of the feature",
            hint='It comes from workflows with workspace = "worktree"; or name one by --head.',
        )
    return branches[-1]


def _brought_by(work: Sequence[Mapping[str, Any]], lacking: Mapping[str, Any]) -> bool:
    """Whether a feature branch in *work* contains the commit of *lacking*, by `git merge-base`.

    A later phase may have merged what that branch could not take at the time.
    """
    import subprocess

    commit = str(lacking.get("commit"))
    return any(
        subprocess.run(
            ["git", "merge-base", "--is-ancestor", commit, str(each["feature_branch"])],
            check=False,
            capture_output=True,
        ).returncode
        == 0
        for each in work
        if each.get("feature_branch")
    )


def _text_of(results: Mapping[int, Mapping[str, Any]]) -> str:
    summaries = {number: str(each.get("summary") or "").strip() for number, each in results.items()}
    return "\n\n".join(
        f"**Phase {number}**: {words}" for number, words in summaries.items() if words
    )


def _put_result(path: str | None, result: Mapping[str, object]) -> None:
    """Write the result of the phase to *path*; None: nowhere. Raises `CannotStart`."""
    if not path:
        return
    try:
        Path(path).write_text(json.dumps(result), encoding="utf-8")
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CannotStart(f"PGCOORD_RESULT_FILE, {path}: {why}") from error
