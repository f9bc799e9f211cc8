"""Read plans from files, also those of schedules, beside the configuration that runs them."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from pgcoord.configuration.model import Configuration, Schedule
from pgcoord.errors import InvalidConfiguration, InvalidInput, InvalidPlan
from pgcoord.plan.model import Plan
from pgcoord.plan.parsing import parse_plan
from pgcoord.text import read_text

logger = logging.getLogger(__name__)


def read_plan(
    path: Path,
    *,
    workflows: Collection[str] | None = None,
    has_default: bool = True,
    takes_done: bool = False,
    parameters: Mapping[str, str] | None = None,
) -> Plan:
    """Read the plan at *path*, a UTF-8 file; the other parameters are those of `parse_plan`.

    The path `-` is standard input. Raises `InvalidPlan`, also when the file cannot be read.
    """
    try:
        text = read_text(path)
    except InvalidInput as error:
        raise InvalidPlan([str(error)], hint=error.hint) from error
    return parse_plan(
        text,
        name=str(path),
        workflows=workflows,
        has_default=has_default,
        takes_done=takes_done,
        parameters=parameters,
    )


def check_environment(path: Path, plan: Plan, configuration: Configuration) -> None:
    """Raise `InvalidPlan` if phases of *plan*, read from *path*, set what their workflow forbids.

    What was not read from a plan is refused when it is started (`coordination.supervision`).
    """
    problems = []
    for phase in plan.phases:
        workflow = (
            configuration.workflows.get(phase.workflow)
            if phase.workflow
            else configuration.default_workflow
        )
        if workflow is None or phase.is_completed:
            continue
        line = dict(phase.taken).get("env", phase.line)
        problems += [
            f"{path}:{line}: Env: phases of workflow {workflow.name} may not set {name};"
            f" phase_environment of [workflow.{workflow.name}] lists what they may"
            for name, _ in phase.environment
            if not workflow.lets_phases_set(name)
        ]
    if problems:
        raise InvalidPlan(problems)


def read_schedules(configuration: Configuration) -> Configuration:
    """Return *configuration* with the features of its schedules, read from their plans; log notes.

    Raises `InvalidConfiguration` with every fault of every plan, each with its schedule.
    """
    problems: list[str] = []
    read: dict[str, Schedule] = {}
    for name, each in (configuration.schedules or {}).items():
        try:
            plan = read_plan(
                each.plan,
                workflows=configuration.workflows,
                has_default=configuration.default_workflow is not None,
                parameters=each.parameters,
            )
            check_environment(each.plan, plan, configuration)
        except InvalidPlan as error:
            where = f"{configuration.path}: schedule.{name}.plan"
            problems += [f"{where}: {problem}" for problem in error.problems]
        else:
            for note in plan.notes:
                logger.info("schedule %s: %s", name, note)
            read[name] = replace(each, feature=plan.feature())
    if problems:
        raise InvalidConfiguration("\n".join(problems))
    return replace(configuration, schedules=read)
