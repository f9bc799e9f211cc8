"""The command that measures: bench."""

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import existing_dsn
from pgcoord.commands.options import Dsn, surroundings_of
from pgcoord.commands.terminal import say, say_json
from pgcoord.errors import InvalidInput

if TYPE_CHECKING:
    from pgcoord.bench.measure import Figure, Report


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command(epilog=_JSON)(bench)


_JSON = """--json prints one object. "machine": what it was measured on. "figures": key, what, unit,
value (of many samples the median), p99 or null, samples, "goal" and "goal_p99" (limit, aim,
more_is_better) or null, verdict or null. Later releases may add keys."""


def bench(
    ctx: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few samples, in seconds: does it work at all?")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="More samples, and a million finished phases: minutes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with status 1 when a limit is missed.")
    ] = False,
    dsn: Dsn = None,
) -> None:
    """Measure how fast pgcoord is on this server, in databases of its own that it drops again.

    The user needs the right to create databases. Nothing else should run meanwhile.
    """
    import psycopg

    from pgcoord.bench.measure import FULL, QUICK, USUAL, measure
    from pgcoord.database import connect as database

    if quick and full:
        raise InvalidInput("--quick and --full exclude each other")
    extent = QUICK if quick else FULL if full else USUAL
    # A service manager's SIGTERM, too, has to leave no database behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = measure(existing_dsn(ctx, dsn), extent, surroundings_of(ctx).environment, _tell)
    except psycopg.OperationalError as error:
        raise database.unusable(error) from error
    if as_json:
        say_json(report.as_json())
    else:
        print_report(report)
    if check and any(each.misses_limit for each in report.figures):
        raise typer.Exit(1)


def _tell(doing: str) -> None:
    say(f"{doing} …", err=True)


def print_report(report: "Report") -> None:
    """Print the figures as a table, and what they were measured on."""
    from rich.console import Console
    from rich.table import Table

    table = Table("what", box=None, pad_edge=False)
    for column in ("value or p50", "p99", "limit", "aim"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for figure in report.figures:
        table.add_row(*_cells(figure))
    console = Console()
    console.print(table)
    console.print(f"\n{report.machine}", highlight=False, style="dim")
    if report.machine.busy:
        console.print("The machine was busy: on a quiet one the figures are better.")


def _cells(figure: "Figure") -> list[str]:
    goals = [goal for goal in (figure.goal, figure.goal_p99) if goal]
    p99 = "" if figure.p99 is None else f"{_number(figure.p99)} {figure.unit}"
    return [
        figure.what,
        f"{_number(figure.value)} {figure.unit}",
        p99,
        " / ".join(_number(goal.limit) for goal in goals if goal.limit is not None),
        " / ".join(_number(goal.aim) for goal in goals),
        figure.verdict or "",
    ]


def _number(value: float) -> str:
    """Three digits that count, at least."""
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
