"""Commands that change or remove queued work: edit, delete."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcoord.commands.context import (
    Answer,
    act,
    changing,
    complete,
    existing_dsn,
    find_phase,
    print_answer,
    session,
)
from pgcoord.commands.options import (
    AsJson,
    DryRun,
    Dsn,
    Phase,
    PhaseOrFeature,
    Yes,
    feature_of,
    surroundings_of,
)
from pgcoord.commands.terminal import confirm_or_exit, say
from pgcoord.configuration.duration import parse_duration
from pgcoord.errors import InvalidInput
from pgcoord.text import counted, read_text

if TYPE_CHECKING:
    from pgcoord.database._sql import Connection


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(edit)
    app.command()(delete)


def edit(
    ctx: typer.Context,
    phase: Phase,
    prompt: Annotated[
        Path | None,
        typer.Option("--prompt", metavar="FILE", help="The new prompt; - is standard input."),
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="The new title.")] = None,
    workflow: Annotated[
        str | None, typer.Option(metavar="NAME", help="The workflow that runs it.")
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="NUMBERS", help='The phases it depends on, such as "1,2", or none.'),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="TIME", help='The time after which it is ended, such as "2h".'),
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The most attempts.")
    ] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Change a phase that does not run: its prompt, title, workflow, prerequisites or limits.

    A failed one is retried with the changes. 'pgcoord priority' changes its priority.
    """
    changes: dict[str, Any] = {
        "title": title,
        "workflow_type": workflow,
        "prompt_content": None if prompt is None else _read(surroundings_of(ctx).folder, prompt),
        "timeout_seconds": None if timeout is None else _seconds(timeout),
        "max_attempts": max_attempts,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if title is not None and not title.strip():
        raise typer.BadParameter("a phase needs one.", param_hint="--title")
    numbers = None if after is None else _numbers(after)
    if not changes and numbers is None:
        raise typer.BadParameter("say what to change.", param_hint="--prompt")

    async def change(conn: "Connection") -> Answer:
        from pgcoord.database import actions, reads

        queue_id = await find_phase(conn, phase)
        await actions.edit_phase(conn, queue_id, changes, numbers)
        reasons = await reads.why(conn, queue_id)
        because = f": {reasons[0].words}" if reasons else ""
        return Answer(f"{queue_id} is changed{because}", await reads.phase_object(conn, queue_id))

    act(ctx, dsn, change, as_json=as_json)


def delete(
    ctx: typer.Context,
    target: PhaseOrFeature,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Remove a phase or a feature with its history; no phase of it may run.

    It is shown first. Dependents of a removed phase wait until 'pgcoord edit … --after' names
    other prerequisites. 'pgcoord prune' removes finished features.
    """
    from pgcoord.database import actions, reads

    surroundings, existing = surroundings_of(ctx), existing_dsn(ctx, dsn)
    feature = feature_of(target)

    async def look() -> str | int:
        async with session(existing) as conn:
            if feature is None:
                queue_id = await find_phase(conn, target)
                say(await _phase_in_words(conn, queue_id), err=as_json)
                return queue_id
            shown = await reads.feature(conn, feature)
            phases, status = counted(shown.total_phases, "phase"), shown.status.replace("_", " ")
            say(f"feature {feature}  {shown.title}: {phases}, {status}", err=as_json)
            return feature

    async def remove(what: str | int) -> None:
        async with changing(surroundings, existing) as conn:
            await actions.delete(conn, what)

    what = complete(existing, look())
    name = f"feature {what}" if feature else str(what)
    if dry_run:
        words = f"{name} would be removed, with its history"
        print_answer(Answer(words, {"removed": None}), as_json=as_json)
        return
    question = f"Remove {name} with its history permanently?"
    confirm_or_exit(question, yes=yes, otherwise="nothing is removed", err=as_json)
    complete(existing, remove(what))
    print_answer(Answer(f"{name} is removed", {"removed": what}), as_json=as_json)


async def _phase_in_words(conn: "Connection", queue_id: str) -> str:
    """Return a line on a phase that is to be deleted, with what would wait for it then."""
    from pgcoord.commands.progress import shown_status
    from pgcoord.database import reads

    phases = await reads.board(conn, (await reads.phase_object(conn, queue_id))["feature_id"])
    [shown] = [each for each in phases if each.queue_id == queue_id]
    waiting = [
        str(each.phase_number)
        for each in phases
        if shown.phase_number in each.depends_on_phases and each.status in ("queued", "blocked")
    ]
    words = f"{queue_id}  {shown.title}: {shown_status(shown)}"
    return f"{words}; its dependents then wait: {', '.join(waiting)}" if waiting else words


def _read(folder: Path, path: Path) -> str:
    text = read_text(path if str(path) == "-" else folder / path).replace("\r\n", "\n")
    if "\0" in text:
        raise InvalidInput(f"{path}: it contains a NUL character: expected plain text")
    return text


def _seconds(text: str) -> float:
    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from error


def _numbers(text: str) -> list[int]:
    words = [] if text.strip().lower() == "none" else text.split(",")
    if not all(word.strip().isascii() and word.strip().isdecimal() for word in words):
        raise typer.BadParameter(f"expected numbers, not {text!r}.", param_hint="--after")
    return [int(word) for word in words]
