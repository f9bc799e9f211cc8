"""The command that migrates a database of version 1, or undoes that."""

import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import connected_to, existing_dsn
from pgcoord.commands.options import Dsn, surroundings_of
from pgcoord.commands.terminal import say

if TYPE_CHECKING:
    from pgcoord.v1 import Decision, Report

WIDTH = 80


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("migrate-v1")(migrate_v1)


def migrate_v1(
    ctx: typer.Context,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="The SQLite database of version 1, which is only read.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only show what would be done, with every decision."),
    ] = False,
    undo: Annotated[
        bool,
        typer.Option("--undo", help="Go back to version 1, as long as no phase has run."),
    ] = False,
    time_zone: Annotated[
        str | None,
        typer.Option(
            "--time-zone",
            metavar="ZONE",
            help="The zone of times without one; by default that of the server, or UTC for SQLite.",
        ),
    ] = None,
    adopt_running: Annotated[
        bool,
        typer.Option(
            "--adopt-running",
            help="A running phase keeps a slot, if one is free, and waits for a report;"
            " otherwise it fails as lost in migration.",
        ),
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Migrate a database of version 1 without loss.

    Its tables are moved to the schema pgcoord_v1. --undo moves them back.
    """
    from pgcoord import v1

    if undo and (source or time_zone or adopt_running):
        raise typer.BadParameter("--undo can be combined with --dry-run and --dsn only.")
    with connected_to(existing_dsn(ctx, dsn)) as conn:
        name = f"database {conn.info.dbname!r}"
        if undo:
            _show_undone(name, v1.undo(conn, dry_run=dry_run), dry_run=dry_run)
            return
        report = v1.migrate(
            conn,
            actor=f"{surroundings_of(ctx).user} (migrate-v1)",
            source=source,
            time_zone=time_zone,
            adopt=adopt_running,
            dry_run=dry_run,
        )
    if report is None:
        say(f"{name} was migrated already: nothing to do")
    else:
        _show(name, report, stated=time_zone is not None, dry_run=dry_run)


def _show(name: str, report: "Report", *, stated: bool, dry_run: bool) -> None:
    _say(f"{name} {'would be' if dry_run else 'is'} migrated from version 1")
    zone, *counts = report.lines
    _say(zone if stated else f"{zone} (--time-zone names another)", "  ")
    for line in counts:
        _say(line, "  ")
    if dry_run:
        _say("decisions:" if report.decisions else "no decision was needed")
        for decision in report.decisions:
            _say(_worded(decision), "  ")
        _say("Nothing was changed. Without --dry-run it is done.")
        return
    _say("decisions, in pgcoord_v1.decision:")
    for kind, number in Counter(decision.kind for decision in report.decisions).items():
        _say(f"{kind}: {number}", "  ")
    _say(
        "The old tables are in the schema pgcoord_v1. 'pgcoord migrate-v1 --undo' goes back,"
        " as long as no phase has run."
    )


def _show_undone(name: str, changed_since: list[str] | None, *, dry_run: bool) -> None:
    if changed_since is None:
        say(f"{name} is as version 1 has left it: nothing to undo")
        return
    _say(f"{name} {'would be' if dry_run else 'is'} as it was before the migration")
    if changed_since:
        _say(f"{'would be' if dry_run else 'are'} gone, since they came after it:")
    for line in changed_since:
        _say(line, "  ")


def _worded(decision: "Decision") -> str:
    about = f"{decision.kind}, {decision.name}" if decision.name else decision.kind
    return f"{about}: {decision.words}"


def _say(text: str, indent: str = "") -> None:
    """Print *text* wrapped to 80 columns between words; further lines are indented by 4 more."""
    lead = indent + " " * (len(text) - len(text.lstrip()))
    for line in textwrap.wrap(
        text.strip(),
        WIDTH,
        initial_indent=lead,
        subsequent_indent=lead + "    ",
        break_on_hyphens=False,
    ):
        say(line)
