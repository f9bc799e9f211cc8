"""The command that finds faults of an installation: doctor."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import complete, existing_dsn, would_be_runs_folder
from pgcoord.commands.options import Config, Dsn, Surroundings, surroundings_of
from pgcoord.commands.terminal import say_json
from pgcoord.errors import InvalidConfiguration

if TYPE_CHECKING:
    from pgcoord.database.rows import Finding
    from pgcoord.doctor import Machine

EXIT_STATUSES = {"ok": 0, "warn": 8, "fail": 9}
_LOOKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}

_EPILOG = """Exit status: 0 when all is ok, 8 when there is a warning, 9 when work
cannot proceed or a rule is disabled; others as for every command.

--json prints {"level", "findings": [{"kind", "level", "words", "remedy"}]}; level is ok, warn or
fail, remedy null where it is ok. Later releases may add keys and kinds."""


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(epilog=_EPILOG)(doctor)


def doctor(
    ctx: typer.Context,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object, described below.")
    ] = False,
    probes: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Submit a test job to each pool of an engine; the job reports what it finds on"
            " its node.",
        ),
    ] = False,
    config: Config = None,
    dsn: Dsn = None,
) -> None:
    """Check the installation: print each fault with its remedy.

    SQL does most of the checks: select * from pgcoord.checkup().
    """
    from pgcoord.doctor import examine

    surroundings, existing = surroundings_of(ctx), existing_dsn(ctx, dsn)
    findings = complete(existing, examine(existing, _machine(surroundings, config), probes=probes))
    worst = max((each.level for each in findings), key=list(EXIT_STATUSES).index)
    if as_json:
        shown = {"level": worst, "findings": [asdict(each) for each in findings]}
        say_json(shown)
    else:
        _print(findings)
    raise typer.Exit(EXIT_STATUSES[worst])


def _machine(surroundings: Surroundings, config: Path | None) -> "Machine":
    from pgcoord.configuration.reading import find_configuration, read_configuration
    from pgcoord.doctor import Machine
    from pgcoord.plan.files import read_schedules

    read, faults = None, None
    try:
        path = config or find_configuration(surroundings.folder, surroundings.environment)
        read = read_schedules(read_configuration(path)) if path else None
    except InvalidConfiguration as error:
        faults = error
    return Machine(read, faults, would_be_runs_folder(surroundings, read), surroundings.environment)


def _print(findings: "list[Finding]") -> None:
    from rich.text import Text

    from pgcoord.commands.progress import clean, console

    paper = console()
    for each in findings:
        sign, style = _LOOKS[each.level]
        line = Text.assemble((f"{sign} {each.level:<4}", style), f"  {each.kind:<13}  ")
        paper.print(line.append(clean(each.words)), soft_wrap=True)
        if each.remedy:
            paper.print(Text(f"{'':<8}{'':<13}  → {clean(each.remedy)}"), soft_wrap=True)
