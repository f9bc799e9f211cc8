"""What people do to the work: one row of `ACTIONS` each. SQL does it, three doors offer it.

REST operations, the panel's forms and questions, and commands are made from the rows. All have one
right: the role `pgcoord_client`, over HTTP the permission to change. What is none of these:
`prune`, of the owner and coordinators, is not offered over HTTP; plans and reports bring documents.
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
    """The question that may be meant instead: the last part of its address, and a link to it."""

    words: str
    name: str
    link: str


@dataclass(frozen=True)
class Question:
    """What the panel asks before an action on `{}`."""

    question: str
    button: str
    preview: str | None = None
    """What `pgcoord.preview` calls the action; without it, `words` say what would change."""
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
    """What the description of the API says."""
    said: str
    """The answer of the command, of {target}, {result} and {number}."""
    returns: Literal["status", "count", "feature", "nothing"] = "status"
    """`feature`: the id of one that it has made."""
    option: str | None = None
    """The option of the command that means this action, and not that of the verb alone."""
    question: Question | None = None
    operation: str | None = None
    """Method and path of the REST operation where they do not follow from scope and verb."""
    refused: bool = True
    """Whether there is a state that does not allow it."""
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
        "Take a phase as completed without running it",
        "{target} is {result}: what depends on it goes on",
        question=Question("Skip {}?", "Skip", preview="skip"),
        several=True,
    ),
    Action(
        "cancel_phase",
        "phase",
        "cancel_phase",
        _PHASE,
        "cancel",
        "Give a phase up; the process of a running one is ended first",
        "{target} is {result}",
        question=Question(
            "Cancel {}?",
            "Cancel phase",
            preview="cancel",
            other=Other(
                "What depends on it is blocked until it is retried or skipped.",
                "cancel-branch",
                "Cancel that, too",
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
        "Give up a phase and all that depends on it; processes of running ones are ended first",
        "{target} and what depends on it: {result} given up, what runs is ended first",
        returns="count",
        option="branch",
        question=Question(
            "Cancel {} and what depends on it?",
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
        "Let a phase go on that asks for approval; one that runs nothing is completed",
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
        "Say no to a phase that asks for approval; what depends on it is blocked",
        "{target} is rejected: {result}, what depends on it is blocked",
        question=Question("Reject {}?", "Reject", preview="reject", leave="Not yet"),
        several=True,
    ),
    Action(
        "cancel_feature",
        "feature",
        "cancel_feature",
        _FEATURE,
        "cancel",
        "Give a feature up",
        "{target} is cancelled: {result} given up",
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
        "Queue a copy of its feature; what is completed, but this phase and what depends on it,"
        " is taken over with its results",
        "{target} and what depends on it are queued again, as feature {result}",
        returns="feature",
        question=Question(
            "Run again from {}?",
            "Run again from here",
            words="A copy of its feature is queued. What is completed, but this phase and what"
            " depends on it, is taken over with its results. This feature stays as it is.",
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
        "Start none of its phases any more",
        "{target} is paused: nothing new starts, what runs goes on",
        returns="nothing",
        question=Question(
            "Pause {}?",
            "Pause",
            words="Nothing new of it starts until it is resumed; what runs goes on.",
        ),
    ),
    Action(
        "pause",
        "all",
        "pause",
        _FEATURE,
        "pause",
        "Start nothing any more",
        "{target} is paused: nothing new starts, what runs goes on",
        returns="nothing",
        question=Question(
            "Pause everything?",
            "Pause all",
            words="Nothing new starts until it is resumed; what runs goes on.",
            leave="Go on",
        ),
        refused=False,
    ),
    Action(
        "resume_feature",
        "feature",
        "resume",
        ("feature_id",),
        "resume",
        "Start its phases again",
        "{target} is resumed",
        returns="nothing",
    ),
    Action(
        "resume",
        "all",
        "resume",
        ("feature_id",),
        "resume",
        "Start phases again",
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
        "Say what it may cost; once that is spent it is paused, with more it is resumed",
        "{target} may cost {number}",
        returns="nothing",
    ),
    Action(
        "set_slots",
        "all",
        "set_slots",
        ("slots", "pool"),
        "slots",
        "Let so many of a pool run at once; fewer ends nothing",
        said="",  # the command shows the slots, set or not
        returns="nothing",
        operation="PUT /slots",
    ),
    Action(
        "set_priority",
        "phase",
        "set_priority",
        ("queue_id", "priority"),
        "priority",
        "Change its place in line: lower runs earlier",
        "{target} has priority {number}",
        several=True,
    ),
    Action(
        "pause_schedule",
        "schedule",
        "pause_schedule",
        ("schedule", "reason"),
        "pause",
        "Have a schedule start nothing until it is resumed",
        "{target} is paused: it starts nothing, what it has started goes on",
        returns="nothing",
        question=Question(
            "Pause {}?",
            "Pause",
            words="It starts nothing until it is resumed; what it has started goes on.",
        ),
        refused=False,
    ),
    Action(
        "resume_schedule",
        "schedule",
        "resume_schedule",
        ("schedule",),
        "resume",
        "Have a schedule start its feature again, from its next due time on",
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
        "Queue the feature of a schedule now, whether or not its last run goes on",
        "{target} is run now, as feature {result}",
        returns="feature",
        question=Question(
            "Run {} now?",
            "Run now",
            words="Its feature is queued now, whether or not its last run goes on. Its due times"
            " stay as they are.",
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
            words="With its record of due times, for good. The features that it has queued stay.",
        ),
        refused=False,
    ),
)

BY_NAME: Mapping[str, Action] = MappingProxyType({each.name: each for each in ACTIONS})

# The help of each command, in the order in which they are listed.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "retry": "Queue a failed or cancelled phase again, with all its attempts.",
        "skip": "Take a phase as completed without running it.",
        "cancel": "Give up a phase, or a whole feature; what runs is ended.",
        "approve": "Let a phase go on that waits for somebody's approval.",
        "reject": "Say no to a phase that waits for approval; what depends on it is blocked.",
        "again": "Queue a copy of a feature, with the same phases; it stays as it is.",
        "pause": "Start nothing new, of one feature or of all; what runs goes on.",
        "resume": "Start again what was paused.\n\n"
        "Features that were paused by themselves stay so until they are named.",
        "budget": "Say what a feature may cost, in US dollars.\n\n"
        "Once that is spent it is paused; with more it is resumed.",
        "slots": "Show, or set, how many phases run at once, of a pool.\n\n"
        "Setting fewer ends none: those beyond the limit run to their end.",
        "priority": "Change the place in line of a phase: lower runs earlier.",
    }
)

# The help of each option that means another action.
OPTIONS: Mapping[str, str] = MappingProxyType(
    {"branch": "Give up as well all that depends on the phase, directly or not."}
)


# What can be done to several phases at once.
SEVERAL = tuple(each for each in ACTIONS if each.several)


def of_scope(scope: Scope) -> tuple[Action, ...]:
    """Return the actions on one phase, on one feature, on all, or on a schedule."""
    return tuple(each for each in ACTIONS if each.scope == scope)
