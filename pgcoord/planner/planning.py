"""Plans a feature: by the plan in its description, the planner command, or the built-in planner."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import jinja2

from pgcoord.configuration.model import PASSED_ON, Planner
from pgcoord.database import actions, panel, plans, reads
from pgcoord.database._sql import Connection
from pgcoord.errors import InvalidPlan, Refused
from pgcoord.plan.headings import looks_like_plan
from pgcoord.plan.model import Plan
from pgcoord.plan.parsing import parse_plan
from pgcoord.plan.writing import write_plan
from pgcoord.planner import command, repository
from pgcoord.planner.analysis import Analysis, analyse
from pgcoord.planner.phases import phases_by_hours, split, titles
from pgcoord.planner.prompts import hours_in_words, load_template, write_prompts
from pgcoord.planner.structure import Feature, read_structure
from pgcoord.planner.survey import Repository, resolve, survey, terms


@dataclass(frozen=True)
class Workflows:
    """The workflows that a plan may name; *names* None: any."""

    names: Collection[str] | None = None
    has_default: bool = True


@dataclass(frozen=True)
class Planned:
    """A plan: the phases as in planned_features.plan, its source, and notes for people."""

    phases: list[dict[str, object]]
    source: str
    notes: tuple[str, ...] = ()


class FeaturePlanner:
    """Plans features as `[planner]` configures; the same feature and files give the same plan."""

    def __init__(self, settings: Planner, environment: Mapping[str, str], folder: Path) -> None:
        self.settings = settings
        self._folder = settings.directory or folder
        names = (*PASSED_ON, *settings.environment)
        self._environment = {name: environment[name] for name in names if name in environment}

    def analyse(self, plan: object, slots: int) -> Analysis:
        """Analyse a stored plan."""
        return analyse(plan, slots, self.settings.max_prompt)

    async def plan(self, feature: Feature, workflows: Workflows = Workflows()) -> Planned:
        """Return a plan of *feature*; store nothing.

        May take as long as the time-out of the planner command. Raises `InvalidPlan` with the
        errors by line, `PlannerFailed`, or `InvalidConfiguration` for the template.
        """
        if looks_like_plan(feature.description):
            plan = await asyncio.to_thread(
                _read, feature.description, "description", feature, workflows, {}
            )
            return Planned([each.row() for each in plan.phases], "description")
        if self.settings.command:
            return await self._ask(feature, workflows)
        return await asyncio.to_thread(self._plan, feature)

    async def _ask(self, feature: Feature, workflows: Workflows) -> Planned:
        files = await asyncio.to_thread(repository.list_files, self._folder, self._environment)
        text = command.request(feature, files, self.settings.max_phases)
        answer = await command.ask(self.settings, self._folder, self._environment, text)
        plan = await asyncio.to_thread(_read, answer, "planner's answer", feature, workflows)
        return Planned([each.row() for each in plan.phases], "command")

    def _plan(self, feature: Feature) -> Planned:
        template = load_template(self.settings.template)
        structure = read_structure(feature)
        files = repository.list_files(self._folder, self._environment)
        repository_found = repository.search(
            self._folder, self._environment, files, terms(feature, structure)
        )
        return build(feature, repository_found, template, self.settings.max_phases)


async def declared_workflows(conn: Connection) -> Workflows:
    """Return the workflows of the leading coordinator; any workflow when none leads."""
    names, has_default = await panel.workflows(conn)
    return Workflows(names, has_default) if names else Workflows()


Connect = Callable[[], AbstractAsyncContextManager[Connection]]


async def plan_stored(planner: FeaturePlanner, connect: Connect, feature_id: int) -> Planned:
    """Plan the feature *feature_id*, and replace its stored plan.

    Holds no connection while planning. An error leaves the old plan in place. Raises what
    `FeaturePlanner.plan` raises, `NotFound`, `Refused` once its phases are queued, and
    `ChangedMeanwhile` when the feature was changed meanwhile.
    """
    async with connect() as conn:
        stored = await plans.feature_to_plan(conn, feature_id)
        workflows = await declared_workflows(conn)
    feature = Feature(
        stored.title, stored.description or "", stored.estimated_hours, stored.item_type
    )
    planned = await planner.plan(feature, workflows)
    async with connect() as conn:
        changes = {"phases": planned.phases}
        await actions.change_feature(conn, feature_id, changes, stored.version)
    return planned


async def plan_unless_planned(
    planner: FeaturePlanner, connect: Connect, feature_id: int
) -> Planned | None:
    """Plan a feature that has neither a plan nor phases; return None if it has either."""

    async def has_phases() -> bool:
        async with connect() as conn:
            return bool((await reads.feature_object(conn, feature_id))["phases"])

    if await has_phases():
        return None
    try:
        return await plan_stored(planner, connect, feature_id)
    except Refused:  # another request was faster: a second click
        if await has_phases():
            return None
        raise


def _read(
    text: str,
    name: str,
    feature: Feature,
    workflows: Workflows,
    parameters: Mapping[str, str] | None = None,
) -> Plan:
    return parse_plan(
        text.replace("\r\n", "\n"),
        name=name,
        title=feature.title,
        workflows=workflows.names,
        has_default=workflows.has_default,
        parameters=parameters,
    )


def build(
    feature: Feature,
    files: Repository = Repository(),  # noqa: B008
    template: jinja2.Template | None = None,
    most_phases: int = 12,
) -> Planned:
    """Return the plan of the built-in planner."""
    structure = resolve(read_structure(feature), files)
    drafts = split(feature, structure, most_phases)
    called = titles(feature, drafts)
    prompts = write_prompts(
        template or load_template(None),
        feature,
        structure,
        drafts,
        called,
        survey(feature, drafts, files),
    )
    rows: list[dict[str, object]] = [
        {
            "phase_number": number,
            "title": title,
            "prompt_content": prompt,
            "depends_on_phases": sorted(draft.needs),
            **({"estimated_hours": draft.hours} if draft.hours else {}),
            **({"files": list(draft.files)} if draft.files else {}),
        }
        for number, (draft, title, prompt) in enumerate(
            zip(drafts, called, prompts, strict=True), 1
        )
    ]
    notes = (*structure.notes, *_notes(feature, len(rows), most_phases))
    return Planned(_as_read(rows), "built-in", notes)


def _as_read(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return *rows*, changed so that a plan written from them is parsed as the same rows."""
    rows = [_contained(row) for row in rows]
    plan = parse_plan(write_plan("A plan", None, rows), name="plan")
    assert [phase.row() for phase in plan.phases] == rows
    return rows


def as_markdown(
    feature: Feature, rows: Sequence[Mapping[str, object]], *, literal: bool = False
) -> str:
    """Return the plan in Markdown, with the description unless it would change how it is parsed.

    *literal*: as in `write_plan`.
    """
    text = write_plan(feature.title, feature.description, rows, literal=literal)
    try:
        read = parse_plan(text, name="plan", parameters={} if literal else None)
        whole = [each.row() for each in read.phases] == rows
    except InvalidPlan:
        whole = False
    return text if whole else write_plan(feature.title, None, rows, literal=literal)


def _contained(row: dict[str, object]) -> dict[str, object]:
    """Return a phase; quote its prompt when it would not stay within the phase in Markdown.

    For example, a code block is not closed, or a line looks like the heading of a phase.
    """
    if _stands_alone(row):
        return row
    quoted = "\n".join(f"> {line}".rstrip() for line in str(row["prompt_content"]).split("\n"))
    return {**row, "prompt_content": quoted}


def _stands_alone(row: dict[str, object]) -> bool:
    alone = {**row, "phase_number": 1, "depends_on_phases": []}
    after: dict[str, object] = {
        "phase_number": 2,
        "title": "After it",
        "prompt_content": "x",
        "depends_on_phases": [],
    }
    try:
        plan = parse_plan(write_plan("Alone", None, [alone, after]), name="plan")
    except InvalidPlan:
        return False
    return [phase.row() for phase in plan.phases] == [alone, after]


def _notes(feature: Feature, phases: int, most: int) -> list[str]:
    """Return notes on how a better description would give a better plan."""
    by_hours = min(phases_by_hours(feature.hours), most) if feature.hours else 0
    if phases >= by_hours:
        return []
    return [
        f"{hours_in_words(feature.hours or 0)} would make {by_hours} phases, but the description"
        f" names work for {phases}: a list of what is to be done is planned more finely"
    ]
