"""Commands that change phases, features and slots; each prints the resulting state in one line.

Those on phases and features are generated from the table in `pgcoord.actions`.
"""

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgcoord.actions import ACTIONS, BY_NAME, COMMANDS, OPTIONS, Action
from pgcoord.commands.context import (
    Answer,
    act,
    changing,
    complete,
    existing_dsn,
    find_phase,
    print_answer,
    session,
    unless_led,
)
from pgcoord.commands.options import (
    AsJson,
    DryRun,
    Dsn,
    FeatureOrAll,
    Phase,
    Reason,
    Yes,
    feature_of,
    surroundings_of,
)
from pgcoord.commands.terminal import confirm_or_exit, say
from pgcoord.configuration.duration import parse_duration
from pgcoord.database.states import IN_SLOT
from pgcoord.errors import NotFound, Refused
from pgcoord.text import counted

if TYPE_CHECKING:
    from pgcoord.database._sql import Connection
    from pgcoord.database.rows import Feature, Pool, Slot


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    for verb, words in COMMANDS.items():
        app.command(verb, help=words)(_WRITTEN.get(verb) or _command(verb))
    app.command()(prune)


def _parse_age(text: str) -> timedelta:
    try:
        return parse_duration(text, zero=True)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


# The states of the phases that a verb selects when it is given a feature, for verbs without an SQL
# function that takes a feature.
_OF_FEATURE: Mapping[str, tuple[str, ...]] = {
    "retry": ("failed", "cancelled"),
    "skip": ("queued", "blocked", "failed", "cancelled"),
}

_Phases = Annotated[
    list[str],
    typer.Argument(
        metavar="PHASE...",
        help="One or more queue_ids, such as queue-104-2, or 104.2 for short.",
    ),
]

_PhasesOrFeature = Annotated[
    list[str],
    typer.Argument(
        metavar="PHASE...|FEATURE",
        help="Phases (queue-104-2 or 104.2), or a feature by its number alone (104).",
    ),
]

_Number = Annotated[
    int,
    typer.Argument(
        metavar="N", min=0, max=100, help="A number: 10 is urgent, 50 usual, 90 background work."
    ),
]


def _parse_amount(text: str) -> float:
    # Infinity stands for no limit: Typer would take None for a missing argument.
    try:
        return math.inf if text.lower() == "none" else float(text.removeprefix("$"))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r:.60} is not an amount, such as 5 or 2.50.") from error


_Amount = Annotated[
    float,
    typer.Argument(
        metavar="USD", parser=_parse_amount, help="An amount such as 5 or 2.50; none for no limit."
    ),
]


def _command(verb: str) -> Callable[..., None]:
    """Return the Typer command for all actions of *verb*, with the arguments that they take."""
    of_verb = [each for each in ACTIONS if each.verb == verb and each.scope != "schedule"]

    def command(
        ctx: typer.Context,
        target: list[str] | str | int | None,
        number: Any = None,
        reason: str | None = None,
        as_json: bool = False,
        dsn: str | None = None,
        **options: bool,
    ) -> None:
        option = next((name for name, value in options.items() if value), None)
        if isinstance(target, list) and (len(target) > 1 or _is_of_feature(verb, target[0])):
            return _act_on_several(ctx, of_verb, target, option, reason, dsn, as_json)
        if isinstance(target, list):
            [target] = target
        action, meant = _meant(of_verb, target, option)

        async def change(conn: "Connection") -> Answer:
            return await _perform(conn, action, meant, reason, number)

        return act(ctx, dsn, change, as_json=as_json)

    # Typer reads a command's parameters from its signature.
    parameters = _parameters(of_verb)
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _is_of_feature(verb: str, target: str) -> bool:
    return verb in _OF_FEATURE and feature_of(target) is not None


def _parameters(of_verb: list[Action]) -> list[inspect.Parameter]:
    scopes = {each.scope for each in of_verb}
    target: Any = Phase
    if any(each.several and not each.number for each in of_verb):
        of_feature = scopes != {"phase"} or of_verb[0].verb in _OF_FEATURE
        target = _PhasesOrFeature if of_feature else _Phases
    parameters: list[tuple[str, Any, Any]] = [
        ("ctx", typer.Context, inspect.Parameter.empty),
        ("target", FeatureOrAll, None)
        if "all" in scopes
        else ("target", target, inspect.Parameter.empty),
    ]
    if any(each.number for each in of_verb):
        kind = _Amount if of_verb[0].number == "max_cost_usd" else _Number
        parameters.append(("number", kind, inspect.Parameter.empty))
    for option in (each.option for each in of_verb if each.option):
        flag = typer.Option(f"--{option}", help=OPTIONS[option])
        parameters.append((option, Annotated[bool, flag], False))
    if any("reason" in each.arguments for each in of_verb):
        parameters.append(("reason", Reason, None))
    parameters.append(("as_json", AsJson, False))
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, kind, default in (*parameters, ("dsn", Dsn, None))
    ]


def _meant(
    of_verb: list[Action], target: str | int | None, option: str | None
) -> tuple[Action, str | int | None]:
    """Choose the action of a verb by scope and option; return it with its target.

    The target is a name of a phase, the number of a feature, or None for everything. Raises
    `typer.BadParameter` when the option does not exist for a feature.
    """
    scope = "all" if target is None else "phase"
    of_feature = any(each.scope == "feature" for each in of_verb)
    if of_feature and (number := feature_of(str(target))):
        scope, target = "feature", number
    for action in of_verb:
        if (action.scope, action.option) == (scope, option):
            return action, target
    raise typer.BadParameter(
        f"{target} is a feature; name one of its phases, such as {target}.1.",
        param_hint=f"--{option}",
    )


def _act_on_several(
    ctx: typer.Context,
    of_verb: list[Action],
    targets: list[str],
    option: str | None,
    reason: str | None,
    dsn: str | None,
    as_json: bool,
) -> None:
    """Perform an action on several phases, or on those of a feature in the states of `_OF_FEATURE`.

    Print a line for each with its state, or why it was refused. Exit with status 3 if one was.
    """
    action = next((each for each in of_verb if each.several and each.option == option), None)
    if action is None:
        raise typer.BadParameter("Give one phase only.", param_hint=f"--{option}")
    feature = feature_of(targets[0]) if len(targets) == 1 else None
    for each in targets:
        if each.isdecimal() and not feature:
            raise typer.BadParameter(
                f"{each} is a feature; name phases only, or that feature alone.",
                param_hint="PHASE...|FEATURE",
            )
    refused = 0

    async def change(conn: "Connection") -> Answer:
        from pgcoord.database import actions

        nonlocal refused
        if feature:
            names = await _phases_meant(conn, action.verb, feature)
        else:
            names = [await find_phase(conn, each) for each in targets]
        results = await actions.perform_on_several(conn, action, names, reason=reason)
        refused = sum(bool(each.refused) for each in results)
        words = "\n".join(
            f"{each.queue_id}: refused: {each.refused}"
            if each.refused
            else f"{each.queue_id} is {each.status}"
            for each in results
        )
        return Answer(words, [{"action": action.slug, **asdict(each)} for each in results])

    act(ctx, dsn, change, as_json=as_json)
    if refused:
        raise typer.Exit(3)


async def _perform(
    conn: "Connection",
    action: Action,
    target: str | int | None,
    reason: str | None,
    number: float | None,
) -> Answer:
    """Perform *action* in the transaction of *conn*; return the resulting state as an answer.

    *target*: the name of a phase, the number of a feature, or None. *number*: infinity stands for
    no limit.
    """
    from pgcoord.database import actions

    if action.scope == "phase":
        target = await find_phase(conn, str(target))
    amount = None if number == math.inf else number
    result = await actions.perform(conn, action, target, reason=reason, number=amount)
    names = {"phase": str(target), "feature": f"feature {target}", "all": "everything"}
    outcome = counted(int(result or 0), "phase") if action.returns == "count" else result
    line = action.message.format(
        target=names[action.scope], result=outcome, number=_in_words(action, number)
    )
    further = _FURTHER.get(action.name)
    if further:
        line = await further(conn, target, result, line)
    members = {"action": action.slug, action.scope: target, "result": result, "said": line}
    return Answer(line, members)


async def _phases_meant(conn: "Connection", verb: str, feature_id: int) -> list[str]:
    """Return the queue_ids of a feature's phases in the states that *verb* selects.

    Raises `Refused` when there is none, `NotFound` for an unknown feature.
    """
    from pgcoord.database import reads

    await reads.feature(conn, feature_id)
    meant = _OF_FEATURE[verb]
    board = await reads.board(conn, feature_id)
    queue_ids = [each.queue_id for each in board if each.status in meant]
    if not queue_ids:
        states = f"{', '.join(meant[:-1])} or {meant[-1]}"
        raise Refused(f"feature {feature_id} has no phase to {verb}: none is {states}")
    return queue_ids


def _in_words(action: Action, number: float | None) -> str:
    if action.number == "max_cost_usd" and number is not None:
        return "as much as it takes" if number == math.inf else f"${number:.2f}"
    return str(number)


async def _after_retry(conn: "Connection", queue_id: Any, status: Any, line: str) -> str:
    from pgcoord.database import reads

    waits = await reads.why(conn, queue_id) if status in ("queued", "blocked") else []
    return line + "".join(f": {each.words}" for each in waits[:1])


async def _after_cancel_phase(conn: "Connection", queue_id: Any, status: Any, line: str) -> str:
    if status not in IN_SLOT:
        return line
    line = f"{queue_id} is being cancelled: its process is ended first"
    return line + await unless_led(conn, ", once a coordinator runs ('pgcoord serve')")


async def _after_cancel_feature(conn: "Connection", feature: Any, count: Any, line: str) -> str:
    from pgcoord.database import reads

    running = (await reads.feature(conn, feature)).phases_running
    if not running:
        return line
    line += f", of which {counted(running, 'process', 'processes')} must be ended first"
    return line + await unless_led(conn, ", once a coordinator runs ('pgcoord serve')")


async def _after_resume(conn: "Connection", feature: Any, result: Any, line: str) -> str:
    from pgcoord.database import reads

    if feature is not None and await reads.paused(conn):
        return f"feature {feature} is resumed, but everything is paused: 'pgcoord resume'"
    return line + await unless_led(conn, "; no coordinator runs: 'pgcoord serve' starts one")


# Extends the printed line after an action: takes its target, its result, and the line so far.
_FURTHER: Mapping[str, Callable[["Connection", Any, Any, str], Awaitable[str]]] = {
    "retry_phase": _after_retry,
    "cancel_phase": _after_cancel_phase,
    "cancel_feature": _after_cancel_feature,
    "resume_feature": _after_resume,
    "resume": _after_resume,
}


def again(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="FEATURE", help="The number of a feature; a phase such as 104.2 is --from 2."
        ),
    ],
    phase: Annotated[
        int | None,
        typer.Option(
            "--from",
            metavar="N",
            min=1,
            help="Copy completed phases with their results, except phase N and its dependents.",
        ),
    ] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Queue a copy of a feature, with the same phases; the original does not change."""
    feature = feature_of(target)
    if phase is not None and feature is None:
        raise typer.BadParameter(
            f"expected with the number of a feature, not with {target}.", param_hint="--from"
        )

    async def change(conn: "Connection") -> Answer:
        if phase is None and feature is not None:
            return await _perform(conn, BY_NAME["again"], feature, None, None)
        name = target if phase is None else f"{target}.{phase}"
        return await _perform(conn, BY_NAME["again_from"], name, None, None)

    act(ctx, dsn, change, as_json=as_json)


def slots(
    ctx: typer.Context,
    number: Annotated[
        int | None,
        typer.Argument(
            metavar="N", min=0, max=1000, help="The number of phases that may run at once."
        ),
    ] = None,
    pool: Annotated[
        str | None, typer.Option(metavar="NAME", help="The pool; local by default.")
    ] = None,
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Show or set how many phases of a pool run at once."""
    from pgcoord.database import actions, reads

    async def change(conn: "Connection") -> Answer:
        if number is not None:
            await actions.perform(conn, BY_NAME["set_slots"], None, number=number, pool=pool)
        pools = await reads.pools(conn)
        wanted_pools = [
            each
            for each in pools
            if each.pool == (pool or ("local" if number is not None else each.pool))
        ]
        if not wanted_pools:
            raise NotFound(f"there is no pool {pool}", hint=_pools_in_words(pools))
        current = await reads.slots(conn)
        words = "\n".join(_slots_in_words(each, current, len(pools) > 1) for each in wanted_pools)
        return Answer(words, [asdict(each) for each in wanted_pools])

    act(ctx, dsn, change, as_json=as_json)


# Commands written by hand, since their arguments do not follow from the table of actions.
_WRITTEN: Mapping[str, Callable[..., None]] = {"slots": slots, "again": again}


def _pools_in_words(pools: list["Pool"]) -> str:
    return f"There is {', '.join(each.pool for each in pools)}; others are declared in pgcoord.toml"


def _slots_in_words(pool: "Pool", slots: list["Slot"], named: bool) -> str:
    """Return a line on the slots of one pool; *named*: begin with its name and launcher."""
    draining = [each.queue_id or "" for each in slots if each.draining and each.pool == pool.pool]
    line = f"{counted(pool.slots, 'slot')}, {pool.held - len(draining)} held"
    if named:
        undeclared = "" if pool.declared else ", taken out of the configuration"
        line = f"{pool.pool} ({pool.launcher}{undeclared}): {line}"
    if not draining:
        return line
    run = "runs to its end" if len(draining) == 1 else "run to their end"
    return f"{line}; {', '.join(draining)} {run} beyond them"


def prune(
    ctx: typer.Context,
    older_than: Annotated[
        timedelta,
        typer.Argument(
            metavar="AGE",
            parser=_parse_age,
            help='Only features that finished longer ago than this: "30d", "12h", 0 for all.',
        ),
    ],
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
    dsn: Dsn = None,
) -> None:
    """Remove finished (completed or cancelled) features with all their history.

    The command shows them and asks before it removes them. A feature with a failed phase is not
    finished until it is cancelled.
    """
    from pgcoord.database import actions, reads

    surroundings, existing = surroundings_of(ctx), existing_dsn(ctx, dsn)

    async def look() -> "tuple[Sequence[Feature], datetime]":
        async with session(existing) as conn, conn.transaction():
            return await reads.prunable(conn, older_than), await reads.now(conn)

    async def remove(looked_at: datetime) -> int:
        async with changing(surroundings, existing) as conn:
            return await actions.prune(conn, older_than, looked_at)

    features, looked_at = complete(existing, look())
    members: dict[str, object] = {"features": [asdict(each) for each in features], "removed": 0}
    for each in features:
        line = f"feature {each.id}  {each.title}: {counted(each.total_phases, 'phase')}"
        say(f"{line}, {each.status}", err=as_json)
    if dry_run:
        whose = "its" if len(features) == 1 else "their"
        words = f"{counted(len(features), 'feature')} would be removed, with {whose} history"
        print_answer(Answer(words, members), as_json=as_json)
        return
    if features:
        question = f"Remove {counted(len(features), 'feature')} with their history permanently?"
        confirm_or_exit(question, yes=yes, otherwise="nothing is removed", err=as_json)
    removed = complete(existing, remove(looked_at))
    members["removed"] = removed
    print_answer(Answer(f"{counted(removed, 'feature')} removed", members), as_json=as_json)
