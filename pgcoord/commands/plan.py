"""The command that plans: a feature of the database, or one that a file describes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import changing, complete, existing_dsn
from pgcoord.commands.options import HIGHEST_ID, Config, Dsn, Surroundings, surroundings_of
from pgcoord.commands.terminal import say, say_json
from pgcoord.errors import CannotStart, InvalidInput

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pgcoord.planner.analysis import Analysis
    from pgcoord.planner.planning import FeaturePlanner, Planned
    from pgcoord.planner.structure import Feature

# Slots that are reckoned with where no database says how many there are.
_USUAL_SLOTS = 3

_JSON = """--json prints {"id", "title", "phases": […], "planning": {…}}.

A phase: phase_number, title, prompt_content, depends_on_phases, and what else a plan may say of it.
planning: source, notes, waves, critical_path, critical_path_hours, hours, slots, hours_with_slots,
estimated_tokens (by phase; a token is taken as four characters), warnings. The id is null, and
nothing is stored, for a file."""


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(epilog=_JSON)(plan)


def plan(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="FEATURE|FILE", help="A feature's number; or a description, a plan."
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="PLAN", help="Take this plan for the feature."),
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(min=0, max=999_999, help="What a described feature may take, roughly."),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Reckon with so many; else with those there are."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write the plan there, for run and submit."),
    ] = None,
    execute: Annotated[
        bool, typer.Option("--execute", help="Queue the phases of the feature at once.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object, see below.")] = False,
    config: Config = None,
    dsn: Dsn = None,
) -> None:
    """Split a feature into phases, and show what they come to.

    The plan of a feature is stored with it, in place of the one it had, until its phases are
    queued. Of a file nothing is stored: --output writes a plan that can be edited and submitted.
    """
    surroundings = surroundings_of(ctx)
    is_stored = what.isascii() and what.isdecimal()
    if not is_stored and (source or execute):
        name = "--from" if source else "--execute"
        raise typer.BadParameter("it is for a feature, given by its number.", param_hint=name)
    if is_stored and hours is not None:
        raise typer.BadParameter("a feature has its own.", param_hint="--hours")
    planner = _planner(surroundings, config)
    if is_stored:
        found = _plan_stored(ctx, dsn, planner, _number(what), source, execute)
    else:
        found = _plan_file(surroundings, planner, surroundings.folder / what, hours)
    number, feature, planned, usual = found
    analysis = planner.analyse(planned.phases, slots or usual)
    if output is not None:
        _write(surroundings.folder / output, feature, planned)
    if as_json:
        planning = {"source": planned.source, "notes": list(planned.notes), **analysis.as_json()}
        told = {
            "id": number,
            "title": feature.title,
            "phases": planned.phases,
            "planning": planning,
        }
        say_json(told)
        return
    from pgcoord.commands.progress import console

    name = f"feature {number}, {feature.title}" if number else feature.title
    console().print(_shown(name, planned, analysis))
    say(_what_next(number, output, execute))


_Found = tuple[int | None, "Feature", "Planned", int]
"""The feature's number, what it is planned from, its plan, and how many slots there are."""


def _number(text: str) -> int:
    if not 1 <= int(text[:20]) <= HIGHEST_ID:
        raise typer.BadParameter(f"there is no feature {text:.20}.", param_hint="FEATURE")
    return int(text)


def _planner(surroundings: Surroundings, config: Path | None) -> "FeaturePlanner":
    from pgcoord.configuration import Planner, find_configuration, read_configuration
    from pgcoord.planner.planning import FeaturePlanner

    path = config or find_configuration(surroundings.folder, surroundings.environment)
    settings = read_configuration(path).planner if path else Planner()
    return FeaturePlanner(settings, surroundings.environment, surroundings.folder)


def _plan_stored(
    ctx: typer.Context,
    dsn: str | None,
    planner: "FeaturePlanner",
    feature_id: int,
    source: Path | None,
    execute: bool,
) -> _Found:
    from pgcoord.database import actions, reads
    from pgcoord.plan import read_plan
    from pgcoord.planner.planning import Planned, declared_workflows, plan_stored
    from pgcoord.planner.structure import Feature

    surroundings, found = surroundings_of(ctx), existing_dsn(ctx, dsn)

    async def take(path: Path) -> Planned:
        async with changing(surroundings, found) as conn:
            workflows = await declared_workflows(conn)
            read = read_plan(path, workflows=workflows.names, has_default=workflows.has_default)
            rows = [each.row() for each in read.phases]
            await actions.change_feature(conn, feature_id, {"phases": rows}, None)
        return Planned(rows, "file")

    async def work() -> _Found:
        if source is not None:
            planned = await take(surroundings.folder / source)
        else:
            connect = lambda: changing(surroundings, found)  # noqa: E731
            planned = await plan_stored(planner, connect, feature_id)
        async with changing(surroundings, found) as conn:
            row = await reads.feature_to_plan(conn, feature_id)
            slots = await reads.slot_count(conn)
            if execute:
                await actions.execute_feature(conn, feature_id)
        return feature_id, Feature(row.title, row.description or ""), planned, slots

    return complete(found, work())


def _plan_file(
    surroundings: Surroundings, planner: "FeaturePlanner", path: Path, hours: float | None
) -> _Found:
    import asyncio

    from pgcoord.plan import looks_like_plan, read_plan
    from pgcoord.planner.planning import Planned
    from pgcoord.planner.structure import Feature, described_by

    text = _read(path)
    if looks_like_plan(text):
        read = read_plan(path)
        rows = [each.row() for each in read.phases]
        return None, Feature(read.title, read.description), Planned(rows, "file"), _USUAL_SLOTS
    feature = described_by(text, hours)
    if not feature.title:
        raise InvalidInput(f"{path}: it is empty: expected a title, and below it what it is about")
    return None, feature, asyncio.run(planner.plan(feature)), _USUAL_SLOTS


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise InvalidInput(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if "\0" in text:
        raise InvalidInput(f"{path}: it has a NUL in it: expected plain text")
    return text


def _write(path: Path, feature: "Feature", planned: "Planned") -> None:
    from pgcoord.planner.planning import as_markdown

    try:
        path.write_text(as_markdown(feature, planned.phases), encoding="utf-8")
    except OSError as error:
        raise CannotStart(f"{path}: {(error.strerror or str(error)).lower()}") from error


_PLANNERS = {
    "built-in": "planned",
    "command": "planned by the planner command",
    "description": "a plan in its description",
    "file": "a plan of your own",
}


def _shown(name: str, planned: "Planned", analysis: "Analysis") -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    lines = [*_summary(analysis), *_remarks(planned, analysis)]
    head = Text.assemble((name, "bold"), f": {_PLANNERS[planned.source]}, {_count(analysis)}")
    return Group(head, _table(analysis), *map(Text, lines))


def _count(analysis: "Analysis") -> str:
    count = len(analysis.phases)
    return "1 phase" if count == 1 else f"{count} phases"


def _table(analysis: "Analysis") -> "RenderableType":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", justify="right")
    table.add_column("phase", ratio=1, overflow="fold")
    table.add_column("after")
    table.add_column("hours", justify="right")
    table.add_column("tokens", justify="right")
    for each in analysis.phases:
        table.add_row(
            str(each.number),
            each.title,
            ", ".join(map(str, sorted(each.needs))),
            "" if each.hours is None else f"{each.hours:g}",
            str(each.tokens),
        )
    return table


def _summary(analysis: "Analysis") -> list[str]:
    from pgcoord.planner.prompts import hours_in_words

    lines = []
    if len(analysis.phases) > 1:
        waves = ", then ".join(_and(wave) for wave in analysis.waves)
        lines.append(f"runs as {waves}")
    if analysis.hours is not None and analysis.hours_with_slots is not None:
        path = " → ".join(map(str, analysis.critical_path))
        slots = "1 slot" if analysis.slots == 1 else f"{analysis.slots} slots"
        lines.append(
            f"{hours_in_words(analysis.hours)} of work, {hours_in_words(analysis.hours_with_slots)}"
            f" with {slots}; the longest path, {path}, takes"
            f" {hours_in_words(analysis.critical_hours or 0)}"
        )
    lines.append("tokens are estimated: four characters each")
    return lines


def _and(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def _remarks(planned: "Planned", analysis: "Analysis") -> list[str]:
    return [
        *(f"warning: {each}" for each in analysis.warnings),
        *(f"note: {each}" for each in planned.notes),
    ]


def _what_next(number: int | None, output: Path | None, execute: bool) -> str:
    if execute:
        return f"queued; 'pgcoord status {number}' shows it"
    wrote = f"wrote {output}; " if output else ""
    if number:
        # Not --execute, which would plan it anew first.
        queues = f"the panel queues it, or 'select pgcoord.execute_feature({number})'"
        return f"{wrote}stored with feature {number}; {queues}"
    if output:
        return f"{wrote}'pgcoord submit {output}' queues it"
    return "nothing is stored; --output FILE writes it as a plan"
