"""The command that plans: a feature of the database, or one that a file describes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import (
    Answer,
    act,
    changing,
    complete,
    existing_dsn,
    session,
    unless_led,
)
from pgcoord.commands.options import (
    HIGHEST_ID,
    AsJson,
    Config,
    Dsn,
    FeatureNumber,
    Surroundings,
    Yes,
    surroundings_of,
)
from pgcoord.commands.terminal import confirm, say, say_json
from pgcoord.errors import CannotStart, InvalidInput, Refused
from pgcoord.text import counted, read_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pgcoord.database._sql import Connection
    from pgcoord.plan.model import Plan, PlannedPhase
    from pgcoord.planner.analysis import Analysis
    from pgcoord.planner.planning import FeaturePlanner, Planned, Workflows
    from pgcoord.planner.structure import Feature

# The number of slots for the forecast of a file, where no database is read.
_USUAL_SLOTS = 3

_JSON = """--json prints {"id", "title", "phases": […], "planning": {…}}.

A phase: phase_number, title, prompt_content, depends_on_phases, and what else a plan may say of it.
planning: source, notes, waves, critical_path, critical_path_hours, hours, slots, hours_with_slots,
estimated_tokens (by phase; a token is taken as four characters), warnings. The id is null, and
nothing is stored, for a file."""


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command(epilog=_JSON)(plan)
    app.command()(execute)


def plan(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="FEATURE|FILE",
            help="The number of a feature; or a file with a description or a plan; - is standard"
            " input.",
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="PLAN", help="Store this plan with the feature."),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--again", help="Make a new plan, and replace the stored one.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Only show the stored plan; never make one.")
    ] = False,
    hours: Annotated[
        float | None,
        typer.Option(min=0, max=999_999, help="An estimate of the hours for a described feature."),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="The number of slots for the forecast; by default the present one.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Write the plan to this file, for run and submit."
        ),
    ] = None,
    execute: Annotated[
        bool, typer.Option("--execute", help="Queue the phases of the plan that is shown.")
    ] = False,
    yes: Yes = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object, described below.")
    ] = False,
    config: Config = None,
    dsn: Dsn = None,
) -> None:
    """Show a feature's plan; split a feature that has none into phases, and store them with it.

    A stored plan is replaced only by --again or --from, and a file by --output, after a question.
    Of a description in a file nothing is stored: --output writes a plan to edit and submit.
    """
    surroundings = surroundings_of(ctx)
    is_stored = what.isascii() and what.isdecimal()
    of_stored = {"--from": source, "--execute": execute, "--again": anew, "--show": show}
    _check_options(is_stored, [name for name, value in of_stored.items() if value], hours)
    planner = _planner(surroundings, config)
    if is_stored:
        named = _number(what)
        new_plan = None if show else _make(ctx, dsn, planner, named, source, anew, yes)
        choice = _stored(ctx, dsn, named, new_plan, execute)
    else:
        choice = _plan_file(planner, _path(surroundings, what), hours)
    number, feature, planned, usual = choice
    analysis = planner.analyse(planned.phases, slots or usual)
    if output is not None:
        _write(surroundings.folder / output, feature, planned, yes, stored=number is not None)
    if as_json:
        planning = {"source": planned.source, "notes": list(planned.notes), **analysis.as_json()}
        members = {
            "id": number,
            "title": feature.title,
            "phases": planned.phases,
            "planning": planning,
        }
        say_json(members)
        return
    from pgcoord.commands.progress import console

    name = f"feature {number}, {feature.title}" if number else feature.title
    console().print(_shown(name, planned, analysis))
    say(_next_step(number, output, planned.source == "queued"))


def _check_options(is_stored: bool, options: list[str], hours: float | None) -> None:
    """Raise `typer.BadParameter` for options that do not go together.

    *options*: those of --from, --execute, --again and --show that were given, in this order.
    """
    if not is_stored and options:
        raise typer.BadParameter(
            "expected with the number of a feature, not with a file.", param_hint=options[0]
        )
    ways = [name for name in options if name != "--execute"]
    if len(ways) > 1 or {"--show", "--execute"} <= set(options):
        raise typer.BadParameter(f"not together with {options[0]}.", param_hint=options[1])
    if is_stored and hours is not None:
        raise typer.BadParameter(
            "expected with a file: a feature has its own estimate.", param_hint="--hours"
        )


def show_check(path: Path, read: "Plan", as_json: bool) -> None:
    """Print the phases that submitting *read* would queue, in waves, with the lines they come from.

    *path* is only named in the output. No database is connected to.
    """
    from rich.console import Group
    from rich.text import Text

    from pgcoord.commands.progress import console
    from pgcoord.planner.analysis import analyse

    rows = [each.row() for each in read.phases]
    completed_numbers = {each.number for each in read.phases if each.is_completed}
    to_do = [
        row | {"depends_on_phases": sorted(set(each.depends_on) - completed_numbers)}
        for each, row in zip(read.phases, rows, strict=True)
        if not each.is_completed
    ]
    analysis = analyse(to_do, _USUAL_SLOTS)
    lines_by_phase = {each.number: dict(each.taken) for each in read.phases}
    if as_json:
        planning = {"source": "file", "notes": list(read.notes), **analysis.as_json()}
        lines = {
            each.number: {"heading": each.line, **lines_by_phase[each.number]}
            for each in read.phases
        }
        say_json(
            {"id": None, "title": read.title, "phases": rows, "planning": planning, "lines": lines}
        )
        return
    completed = f", besides {len(completed_numbers)} completed" if completed_numbers else ""
    head = Text.assemble(
        (read.title, "bold"), f": {counted(len(analysis.phases), 'phase')}{completed}"
    )
    sources = [line for each in read.phases for line in _sources(each)]
    warnings = [f"warning: {each}" for each in analysis.warnings]
    details = [*_summary(analysis), *warnings, "taken from:", *sources]
    console().print(Group(head, _table(analysis), *map(Text, details)))
    say(f"nothing is queued; 'pgcoord submit {path}' queues it")


def _sources(phase: "PlannedPhase") -> list[str]:
    """Return one line for *phase*: the lines of the plan that its heading and its keys stand on."""
    sources = [f"{key} of line {line}" for key, line in phase.taken]
    if "depends on" not in dict(phase.taken) and phase.depends_on:
        sources.append(
            f"after phase {phase.depends_on[0]}, the one before: this one names no prerequisite"
        )
    size = len(phase.prompt)
    prompt = f"a prompt of {size:,} characters" if size else "no prompt"
    state = ", completed" if phase.is_completed else ""
    return [f"  {phase.number}  line {phase.line}{state}: {'; '.join([prompt, *sources])}"]


def execute(
    ctx: typer.Context, feature: FeatureNumber, as_json: AsJson = False, dsn: Dsn = None
) -> None:
    """Queue the phases of a feature's stored plan; a second time changes nothing."""
    from pgcoord.database import actions

    async def change(conn: "Connection") -> Answer:
        queued = await actions.execute_feature(conn, feature)
        members = {"id": feature, "queued": queued}
        if not queued:
            return Answer(f"feature {feature}: its phases were queued before", members)
        waits = await unless_led(conn, "; no coordinator runs: 'pgcoord serve'")
        phases = counted(queued, "phase is", "phases are")
        return Answer(f"feature {feature}: {phases} queued{waits}", members)

    act(ctx, dsn, change, as_json=as_json)


_Choice = tuple[int | None, "Feature", "Planned", int]
"""The feature's number (None for a file), the feature, its plan, and the number of slots."""


def _number(text: str) -> int:
    if not 1 <= int(text[:20]) <= HIGHEST_ID:
        raise typer.BadParameter(f"there is no feature {text:.20}.", param_hint="FEATURE")
    return int(text)


def _planner(surroundings: Surroundings, config: Path | None) -> "FeaturePlanner":
    from pgcoord.configuration.model import Planner
    from pgcoord.configuration.reading import find_configuration, read_configuration
    from pgcoord.planner.planning import FeaturePlanner

    path = config or find_configuration(surroundings.folder, surroundings.environment)
    settings = read_configuration(path).planner if path else Planner()
    return FeaturePlanner(settings, surroundings.environment, surroundings.folder)


def _make(
    ctx: typer.Context,
    dsn: str | None,
    planner: "FeaturePlanner",
    feature_id: int,
    source: Path | None,
    anew: bool,
    yes: bool,
) -> "Planned | None":
    """Store a plan with a feature: read from *source* if given, else made by *planner*.

    An existing plan is kept, and None returned, unless *source* or *anew* is given; then ask for
    confirmation unless *yes*, and replace it. Return the stored plan. Raises `Refused` when the
    phases are queued already, or the question was answered with no.
    """
    from pgcoord.database import actions, plans
    from pgcoord.planner.planning import Planned, declared_workflows, plan_stored

    surroundings, existing = surroundings_of(ctx), existing_dsn(ctx, dsn)
    replaces = source is not None or anew

    async def look() -> tuple[bool, str | None, "Workflows"]:
        async with session(existing) as conn:
            stored, queued = await plans.plan_of(conn, feature_id)
            version = None
            if replaces or not queued:
                version = (await plans.feature_to_plan(conn, feature_id)).version
            return bool(stored), version, await declared_workflows(conn)

    is_planned, version, workflows = complete(existing, look())
    if is_planned and not replaces:
        return None
    rows = _read_rows(_path(surroundings, source), workflows) if source is not None else None
    if is_planned and not confirm(f"Replace the plan of feature {feature_id}?", yes=yes):
        raise Refused(f"the plan of feature {feature_id} stays as it is")

    async def store() -> Planned:
        if rows is None:
            return await plan_stored(planner, lambda: changing(surroundings, existing), feature_id)
        async with changing(surroundings, existing) as conn:
            await actions.change_feature(conn, feature_id, {"phases": rows}, version)
        return Planned(rows, "file")

    return complete(existing, store())


def _read_rows(path: Path, workflows: "Workflows") -> list[dict[str, object]]:
    """Read a plan for a stored feature, print its notes; return its phases as they are stored."""
    from pgcoord.plan.files import read_plan

    read = read_plan(
        path, workflows=workflows.names, has_default=workflows.has_default, parameters={}
    )
    for note in read.notes:
        say(f"pgcoord: {note}", err=True)
    return [each.row() for each in read.phases]


def _stored(
    ctx: typer.Context, dsn: str | None, feature_id: int, new_plan: "Planned | None", execute: bool
) -> _Choice:
    """Read the stored plan of a feature, or take *new_plan*, the one that was stored just now.

    With *execute* its phases are queued in the same transaction. Raises `Refused` if the feature
    has no plan.
    """
    from pgcoord.database import actions, plans, reads
    from pgcoord.planner.planning import Planned
    from pgcoord.planner.structure import Feature

    surroundings, existing = surroundings_of(ctx), existing_dsn(ctx, dsn)

    async def work() -> _Choice:
        async with changing(surroundings, existing) as conn:
            feature = await reads.feature_object(conn, feature_id)
            if execute:
                await actions.execute_feature(conn, feature_id)
            rows, queued = await plans.plan_of(conn, feature_id)
            slots = await reads.slot_count(conn)
        if not rows:
            raise Refused(
                f"feature {feature_id} has no plan", hint=f"'pgcoord plan {feature_id}' makes one."
            )
        described = Feature(feature["title"], feature["description"] or "")
        planned = (
            new_plan if new_plan and not queued else Planned(rows, "queued" if queued else "stored")
        )
        return feature_id, described, planned, slots

    return complete(existing, work())


def _path(surroundings: Surroundings, name: str | Path) -> Path:
    """Return the path of an argument; `-`, standard input, stays as it is."""
    return Path("-") if str(name) == "-" else surroundings.folder / name


def _plan_file(planner: "FeaturePlanner", path: Path, hours: float | None) -> _Choice:
    import asyncio

    from pgcoord.plan.headings import looks_like_plan
    from pgcoord.plan.parsing import parse_plan
    from pgcoord.planner.planning import Planned
    from pgcoord.planner.structure import Feature, described_by

    text = _read(path)
    if looks_like_plan(text):
        read = parse_plan(text, name=str(path))
        for note in read.notes:
            say(f"pgcoord: {note}", err=True)
        rows = [each.row() for each in read.phases]
        return None, Feature(read.title, read.description), Planned(rows, "file"), _USUAL_SLOTS
    feature = described_by(text, hours, _called(path))
    if not feature.title:
        raise InvalidInput(f"{path}: it is empty: expected a title, and a description below it")
    return None, feature, asyncio.run(planner.plan(feature)), _USUAL_SLOTS


def _called(path: Path) -> str:
    """Return a title for a file that has none: its name, or its folder's where that says less."""
    telling = [
        each
        for each in (path.stem, path.resolve().parent.name)
        if each and each.lower() not in ("-", "plan", "plans", "task", "tasks", "todo", "readme")
    ]
    words = re.sub(r"[-_\s]+", " ", telling[0] if telling and str(path) != "-" else "").strip()
    return words[:1].upper() + words[1:] or "Plan"


def _read(path: Path) -> str:
    text = read_text(path)
    if "\0" in text:
        raise InvalidInput(f"{path}: it contains a NUL character: expected plain text")
    return text


def _write(path: Path, feature: "Feature", planned: "Planned", yes: bool, *, stored: bool) -> None:
    from pgcoord.planner.planning import as_markdown

    if path.exists() and not confirm(f"Overwrite {path}?", yes=yes):
        raise Refused(f"{path} stays as it is")
    try:
        text = as_markdown(feature, planned.phases, literal=stored)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CannotStart(f"{path}: {(error.strerror or str(error)).lower()}") from error


_PLANNERS = {
    "built-in": "planned",
    "command": "planned by the planner command",
    "description": "a plan in its description",
    "file": "a plan of your own",
    "queued": "queued",
    "stored": "planned",
}


def _shown(name: str, planned: "Planned", analysis: "Analysis") -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    lines = [*_summary(analysis), *_remarks(planned, analysis)]
    head = Text.assemble(
        (name, "bold"), f": {_PLANNERS[planned.source]}, {counted(len(analysis.phases), 'phase')}"
    )
    return Group(head, _table(analysis), *map(Text, lines))


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
        slots = counted(analysis.slots, "slot")
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


def _next_step(number: int | None, output: Path | None, is_queued: bool) -> str:
    wrote = f"wrote {output}; " if output else ""
    if is_queued:
        return f"{wrote}queued; 'pgcoord status {number}' shows it"
    if number:
        return f"{wrote}stored with feature {number}; 'pgcoord execute {number}' queues it"
    if output:
        return f"{wrote}'pgcoord submit {output}' queues it"
    return "nothing is stored; --output FILE writes it as a plan"
