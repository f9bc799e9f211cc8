"""The command that measures: bench."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgcoord.commands.context import existing_dsn
from pgcoord.commands.options import Dsn, surroundings_of
from pgcoord.commands.terminal import say, say_json
from pgcoord.errors import InvalidInput

if TYPE_CHECKING:
    from pgcoord.bench.figures import Figure
    from pgcoord.bench.report import Report


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(epilog=_JSON)(bench)


# Columns of a terminal that takes all columns of a comparison with their words whole; and the
# characters of the longest word in the first one.
_WIDE = 110
_LONGEST_WORD = 12

_JSON = """--json prints one object. "machine": what it was measured on. "figures": key, what, unit,
value (of many samples the median), p99 or null, samples, "goal" and "goal_p99" (limit, aim,
more_is_better) or null, "floor" and "ratio" (the bare floor in the same run, and the value divided
by it) or null, "before" (the value of that run, with --compare) or null, verdict or null. Later
releases may add keys."""


def bench(
    ctx: typer.Context,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Take few samples, within seconds, only to see that it works."
        ),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Take more samples, also beside a million finished phases; takes minutes.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with status 1 when a limit is missed.")
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="FILE",
            help="Also show the figures of an earlier run, from the output of --json.",
        ),
    ] = None,
    dsn: Dsn = None,
) -> None:
    """Measure how fast pgcoord is on this server, in databases of its own that it drops again.

    The user needs the right to create databases. Nothing else should run meanwhile.
    """
    import psycopg

    from pgcoord.bench.measure import FULL, QUICK, USUAL, measure
    from pgcoord.database.connect import unusable

    if quick and full:
        raise InvalidInput("--quick and --full exclude each other")
    before = _read(compare) if compare else {}
    extent = QUICK if quick else FULL if full else USUAL
    # A service manager's SIGTERM, too, has to leave no database behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = measure(
            existing_dsn(ctx, dsn), extent, surroundings_of(ctx).environment, _print_step
        )
    except psycopg.OperationalError as error:
        raise unusable(error) from error
    if as_json:
        shown = report.as_json()
        for each in shown["figures"]:
            each["before"] = before.get(each["key"])
        say_json(shown)
    else:
        print_report(report, before)
    if check and any(each.misses_limit for each in report.figures):
        raise typer.Exit(1)


def _print_step(doing: str) -> None:
    say(f"{doing} …", err=True)


def _read(path: Path) -> dict[str, float]:
    """Return {key of a figure: its value} of an earlier `bench --json`. Raises `InvalidInput`."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return {each["key"]: float(each["value"]) for each in figures}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidInput(
            f"{path} is not what 'pgcoord bench --json' prints: {error}",
            hint="Give the file with its output.",
        ) from error


def print_report(report: "Report", before: Mapping[str, float] | None = None) -> None:
    """Print the figures of *report* as a table, and the machine below it.

    *before*: values of an earlier run by key, shown beside them. "÷ floor" is a figure divided by
    the same measurement on a plain table, in the same run.
    """
    from rich.table import Table

    from pgcoord.commands.progress import console as terminal

    console = terminal()
    compared = ("before", "÷ before") if before else ()
    # On a narrow terminal the verdict replaces both, since words would be cut otherwise.
    goals = () if before and console.width < _WIDE else ("limit", "aim")
    table = Table(box=None, pad_edge=False)
    table.add_column("what", min_width=_LONGEST_WORD)
    for column in ("value or p50", "p99", "÷ floor", *compared, *goals):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", min_width=len("machine"))
    for figure in report.figures:
        table.add_row(*_cells(figure, before, with_goals=bool(goals)))
    console.print(table)
    console.print(f"\n{report.machine}", highlight=False, style="dim")
    if report.machine.busy:
        console.print("The machine was busy: on a quiet one the figures are better.")


def _cells(figure: "Figure", before: Mapping[str, float] | None, *, with_goals: bool) -> list[str]:
    goals = [goal for goal in (figure.goal, figure.goal_p99) if goal]
    bounds = (
        " / ".join(_number(goal.limit) for goal in goals if goal.limit is not None),
        " / ".join(_number(goal.aim) for goal in goals),
    )
    p99 = "" if figure.p99 is None else f"{_number(figure.p99)} {figure.unit}"
    return [
        figure.what,
        f"{_number(figure.value)} {figure.unit}",
        p99,
        "" if figure.ratio is None else f"{figure.ratio:.2f}",
        *(_compared(figure, before) if before else ()),
        *(bounds if with_goals else ()),
        figure.verdict or "",
    ]


def _compared(figure: "Figure", before: Mapping[str, float]) -> tuple[str, str]:
    then = before.get(figure.key)
    if then is None:
        return "", ""
    return f"{_number(then)} {figure.unit}", f"{figure.value / then:.2f}" if then else ""


def _number(value: float) -> str:
    """Format *value* for people, with at least three significant digits unless it is whole."""
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
