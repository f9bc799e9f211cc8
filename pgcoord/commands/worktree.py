"""`worktree`: run a command in a git worktree of its own, by hand as a phase would."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("worktree")(worktree)


def worktree(
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND…", help="The command, after --.")
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="The branch to start from; HEAD by default."),
    ] = None,
    root: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The folder for worktrees.")
    ] = None,
    title: Annotated[str, typer.Option(help="The message of the commit.")] = "",
    resolve: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="The shell command that resolves merge conflicts."),
    ] = None,
) -> None:
    """Run COMMAND in a git worktree of its own, and keep its work on a branch.

    The branch is pgcoord/<queue_id> (PGCOORD_QUEUE_ID, else by-hand). It starts from the merge of
    the branches that PGCOORD_INPUT_FILE names, else from --base. Exit status: that of COMMAND; 65
    when its work cannot be kept, 69 when it was not run.
    """
    from pgcoord.runs.worktree import Options, run

    raise typer.Exit(run(Options(command, base, root, title, resolve)))
