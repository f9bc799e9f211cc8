"""The actions of people on phases, features and schedules: one row of `ACTIONS` each.

REST operations, the panel's forms and questions, and commands are made from the rows. All have one
permission: the role `pgcoord_client`, over HTTP the permission to change. Not in the table:
`prune`, which only the owner and coordinators may call, and plans and reports, which carry
documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

# Arguments that are numbers: whole ones, and an amount of US dollars.
NUMBERS = ("priority", "slots", "max_cost_usd")

Scope = Literal["phase", "feature", "all", "schedule"]


@dataclass(frozen=True)
class Other:
    """Another question that the user may have meant: the last part of its URL, and the text of its
    link."""

    words: str
    name: str
    link: str


@dataclass(frozen=True)
class Question:
    """The question of the panel before an action on `{}`."""

    question: str
    button: str
    preview: str | None = None
    """The name of the action for `pgcoord.preview`; without it, `words` describe the change."""
    words: str | None = None
    leave: str = "Leave it"
    other: Other | None = None


@dataclass(frozen=True)
class Action:
    """One action: its SQL function, and how REST, panel and command line offer it."""

    name: str
    scope: Scope
    function: str
    """The function in the schema pgcoord, which takes `arguments` in this order."""
    arguments: tuple[str, ...]
    verb: str
    """The command, and the last part of the addresses of REST and panel."""
    summary: str
    """The summary in the API's description."""
    message: str
    """The output of the command, with {target}, {result} and {number}."""
    returns: Literal["status", "count", "feature", "nothing"] = "status"
    """`feature`: the id of a feature that it has created."""
    option: str | None = None
    """The option of the command that means this action, and not that of the verb alone."""
    question: Question | None = None
    operation: str | None = None
    """Method and path of the REST operation where they do not follow from scope and verb."""
    refused: bool = True
    """Whether some state does not permit it."""
    several: bool = False
    """Whether it is offered for several phases at once: `pgcoord.act_on_phases` does it then."""

    @property
    def slug(self) -> str:
        """The last part of the action's URLs: its verb, with its option if it has one."""
        return f"{self.verb}-{self.option}" if self.option else self.verb

    @property
    def number(self) -> str | None:
        """The name of the argument that is a number to set; None if there is none."""
        return next((each for each in self.arguments if each in NUMBERS), None)

    def statement(self, *arguments: str) -> str:
        """Return a call of the action's SQL function; *arguments* are SQL expressions, unquoted."""
        return f"pgcoord.{self.function}({', '.join(arguments)})"


_PHASE = ("queue_id", "reason")
_FEATURE = ("feature_id", "reason")

ACTIONS = (
    Action(
        "retry_phase",
        "phase",
        "retry_phase",
        _PHASE,
        "retry",
        "Queue a failed or cancelled phase again",
        "{target} is {result}",
        question=Question("Retry {}?", "Retry", preview="retry"),
        several=True,
    ),
    Action(
        "skip_phase",
        "phase",
        "skip_phase",
        _PHASE,
        "skip",
        "Mark a phase as completed without running it",
        "{target} is {result}: phases that depend on it can run",
        question=Question("Skip {}?", "Skip", preview="skip"),
        several=True,
    ),
    Action(
        "cancel_phase",
        "phase",
        "cancel_phase",
        _PHASE,
        "cancel",
        "Cancel a phase; if it runs, its process is ended first",
        "{target} is {result}",
        question=Question(
            "Cancel {}?",
            "Cancel phase",
            preview="cancel",
            other=Other(
                "Phases that depend on it are blocked until it is retried or skipped.",
                "cancel-branch",
                "Cancel those, too",
            ),
        ),
        several=True,
    ),
    Action(
        "cancel_branch",
        "phase",
        "cancel_branch",
        _PHASE,
        "cancel",
        "Cancel a phase and all phases that depend on it; running processes are ended first",
        "{target} and its dependents: {result} cancelled; running processes are ended first",
        returns="count",
        option="branch",
        question=Question(
            "Cancel {} and all phases that depend on it?",
            "Cancel them all",
            preview="cancel_branch",
            leave="Leave them",
            other=Other("", "cancel", "Cancel this phase only"),
        ),
    ),
    Action(
        "approve",
        "phase",
        "approve",
        _PHASE,
        "approve",
        "Approve a phase that waits for approval; one that runs nothing is completed",
        "{target} is approved: {result}",
        question=Question("Approve {}?", "Approve", preview="approve", leave="Not yet"),
        several=True,
    ),
    Action(
        "reject",
        "phase",
        "reject",
        _PHASE,
        "reject",
        "Reject a phase that waits for approval; phases that depend on it are blocked",
        "{target} is rejected: {result}; phases that depend on it are blocked",
        question=Question("Reject {}?", "Reject", preview="reject", leave="Not yet"),
        several=True,
    ),
    Action(
        "cancel_feature",
        "feature",
        "cancel_feature",
        _FEATURE,
        "cancel",
        "Cancel a feature",
        "{target} is cancelled: {result} cancelled",
        returns="count",
        question=Question("Cancel {}?", "Cancel feature", preview="cancel_feature"),
    ),
    Action(
        "again",
        "feature",
        "again",
        ("feature_id",),
        "again",
        "Queue a copy of a feature, linked to it",
        "{target} is queued again, as feature {result}",
        returns="feature",
        question=Question(
            "Run {} again?",
            "Run again",
            words="A copy of it is queued, with the same phases. This one stays as it is.",
            leave="No",
        ),
    ),
    Action(
        "again_from",
        "phase",
        "again_from",
        ("queue_id",),
        "again",
        "Queue a copy of its feature; completed phases are copied with their results, except this"
        " phase and those that depend on it",
        "{target} and its dependents are queued again, as feature {result}",
        returns="feature",
        question=Question(
            "Run again from {}?",
            "Run again from here",
            words="A copy of its feature is queued. Completed phases are copied with their results,"
            " except this phase and those that depend on it. This feature stays as it is.",
            leave="No",
        ),
        refused=False,
    ),
    Action(
        "pause_feature",
        "feature",
        "pause",
        _FEATURE,
        "pause",
        "Pause a feature: no further phase of it starts",
        "{target} is paused: no further phase starts; running phases continue",
        returns="nothing",
        question=Question(
            "Pause {}?",
            "Pause",
            words="No further phase of it starts until it is resumed; running phases continue.",
        ),
    ),
    Action(
        "pause",
        "all",
        "pause",
        _FEATURE,
        "pause",
        "Pause everything: no further phase starts",
        "{target} is paused: no further phase starts; running phases continue",
        returns="nothing",
        question=Question(
            "Pause everything?",
            "Pause all",
            words="No further phase starts until it is resumed; running phases continue.",
            leave="Keep running",
        ),
        refused=False,
    ),
    Action(
        "resume_feature",
        "feature",
        "resume",
        ("feature_id",),
        "resume",
        "Resume a feature",
        "{target} is resumed",
        returns="nothing",
    ),
    Action(
        "resume",
        "all",
        "resume",
        ("feature_id",),
        "resume",
        "Resume everything that was paused as a whole",
        "{target} is resumed",
        returns="nothing",
        refused=False,
    ),
    Action(
        "set_budget",
        "feature",
        "set_budget",
        ("feature_id", "max_cost_usd"),
        "budget",
        "Set the budget of a feature; once it is spent the feature is paused, with more resumed",
        "{target} may cost {number}",
        returns="nothing",
    ),
    Action(
        "set_slots",
        "all",
        "set_slots",
        ("slots", "pool"),
        "slots",
        "Set how many phases of a pool run at once; a lower number ends none",
        message="",  # the command shows the slots, set or not
        returns="nothing",
        operation="PUT /slots",
    ),
    Action(
        "set_priority",
        "phase",
        "set_priority",
        ("queue_id", "priority"),
        "priority",
        "Change the priority of a phase: lower numbers run earlier",
        "{target} has priority {number}",
        several=True,
    ),
    Action(
        "pause_schedule",
        "schedule",
        "pause_schedule",
        ("schedule", "reason"),
        "pause",
        "Pause a schedule: it starts nothing until it is resumed",
        "{target} is paused: it starts nothing; features that it has queued continue",
        returns="nothing",
        question=Question(
            "Pause {}?",
            "Pause",
            words="It starts nothing until it is resumed; features that it has queued continue.",
        ),
        refused=False,
    ),
    Action(
        "resume_schedule",
        "schedule",
        "resume_schedule",
        ("schedule",),
        "resume",
        "Resume a schedule, from its next due time on",
        "{target} is resumed",
        returns="nothing",
        refused=False,
    ),
    Action(
        "run_schedule",
        "schedule",
        "run_schedule",
        ("schedule",),
        "run",
        "Queue the feature of a schedule now, even if its last run has not ended",
        "{target} is run now, as feature {result}",
        returns="feature",
        question=Question(
            "Run {} now?",
            "Run now",
            words="Its feature is queued now, even if its last run has not ended. Its due times"
            " do not change.",
            leave="No",
        ),
    ),
    Action(
        "delete_schedule",
        "schedule",
        "delete_schedule",
        ("schedule",),
        "delete",
        "Delete a schedule; the features that it has queued stay",
        "{target} is deleted",
        returns="nothing",
        question=Question(
            "Delete {}?",
            "Delete",
            words="Its record of due times is deleted, too. The features that it has queued stay.",
        ),
        refused=False,
    ),
)

BY_NAME: Mapping[str, Action] = MappingProxyType({each.name: each for each in ACTIONS})

# The help of each command, in the order in which they are listed.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "retry": "Queue a failed or cancelled phase again, with all its attempts.",
        "skip": "Mark a phase as completed without running it.",
        "cancel": "Cancel a phase, or a whole feature; running processes are ended.",
        "approve": "Approve a phase that waits for approval.",
        "reject": "Reject a phase that waits for approval; phases that depend on it are blocked.",
        "again": "Queue a copy of a feature, with the same phases; the original does not change.",
        "pause": "Pause one feature, or everything: no further phase starts, running ones"
        " continue.",
        "resume": "Resume one feature, or everything that was paused as a whole.\n\n"
        "A feature that was paused by its number stays paused until it is resumed by its number.",
        "budget": "Set the budget of a feature, in US dollars.\n\n"
        "Once it is spent the feature is paused; with a higher budget it is resumed.",
        "slots": "Show or set how many phases of a pool run at once.\n\n"
        "A lower number ends none: phases beyond the limit run to their end.",
        "priority": "Change the priority of a phase: lower numbers run earlier.",
    }
)

# The help of each option that means another action.
OPTIONS: Mapping[str, str] = MappingProxyType(
    {"branch": "Also cancel all phases that depend on it, directly or indirectly."}
)


# What can be done to several phases at once.
SEVERAL = tuple(each for each in ACTIONS if each.several)


def of_scope(scope: Scope) -> tuple[Action, ...]:
    """Return the actions on one phase, on one feature, on all, or on a schedule."""
    return tuple(each for each in ACTIONS if each.scope == scope)
