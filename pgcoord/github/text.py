"""Titles, bodies and comments that pgcoord writes on GitHub.

A text from a phase appears on GitHub as it was written and has no effect there: it mentions nobody,
links to nothing by a bare number, and triggers no automation.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from markdown_it import MarkdownIt

# Characters of a body; GitHub's limit is 65,536.
LIMIT = 65_000
_TITLE_LIMIT = 256

# Characters of a title within a line, and phases in a list.
_SHORT = 80
_MOST_PHASES = 6

# Last lines and characters of an error that a comment shows.
_ERROR_LINES = 20
_ERROR_LENGTH = 2_000

# An invisible character that breaks "@name", "#12" and "adw_x_iso".
_BREAK = "\u200b"

# Within code as well: programs that read a body as text know no Markdown.
_TRIGGERS = re.compile(
    r"(?P<adw>\badw(?=_\w))"  # a receiver would start the workflow again
    r"|(?P<comment><!-(?=-\s*pgcoord))"  # a marker of pgcoord, perhaps of another issue
    r"|(?P<command>^[ \t]*(?=/[A-Za-z][\w-]*(?:\s|$)))",  # "/retest" at the beginning of a line
    re.IGNORECASE | re.MULTILINE,
)

# Only outside code, where GitHub links nothing.
_REFERENCES = re.compile(
    r"(?P<mention>(?<![A-Za-z0-9])@(?=[A-Za-z0-9]))"
    r"|(?P<number>#(?=[0-9]))"
    r"|(?P<gh>\bGH(?=-[0-9]))"
    r"|(?P<entity>&(?=#x0*(?:40|23);|commat;|num;))",  # "@" and "#" as entities
    re.IGNORECASE,
)

_SIGNS = {
    "completed": "✅",
    "running": "⏳",
    "ready": "⏳",
    "queued": "⏸",
    "failed": "❌",
    "blocked": "⛔",
    "cancelled": "🚫",
}


def marker(key: UUID) -> str:
    """Return the hidden marker by which pgcoord finds its issue or comment again."""
    return f"<!-- pgcoord {key} -->"


def inert(text: str) -> str:
    """Return *text* so that it reads the same, but mentions, links and triggers nothing."""
    text = _untriggered(text.replace("\r\n", "\n"))
    lines = text.split("\n")
    code = _code_lines(text)
    return "\n".join(
        line if number in code else _REFERENCES.sub(rf"\g<0>{_BREAK}", line)
        for number, line in enumerate(lines)
    )


def _untriggered(text: str) -> str:
    return _TRIGGERS.sub(rf"\g<0>{_BREAK}", text)


def _code_lines(text: str) -> set[int]:
    tokens = MarkdownIt("commonmark").parse(text)
    blocks = [token.map for token in tokens if token.type in ("fence", "code_block") and token.map]
    return {line for first, last in blocks for line in range(first, last)}


def _closed(text: str) -> str:
    """Return *text* with an open code block closed."""
    fences = [token for token in MarkdownIt("commonmark").parse(text) if token.type == "fence"]
    if not fences or not fences[-1].map:
        return text
    lines = text.rstrip("\n").split("\n")
    first, last = fences[-1].map
    end = lines[min(last, len(lines)) - 1].strip(" >")
    ended = last - first > 1 and end.startswith(fences[-1].markup) and not end.strip(end[0])
    return text if last < len(lines) or ended else f"{text}\n{fences[-1].markup}"


def short(text: str, length: int = _SHORT) -> str:
    """Return *text* on one line, inert, at most *length* characters."""
    words = " ".join(text.split())
    if len(inert(words)) <= length:
        return inert(words)
    # The invisible characters count as well.
    while len(inert(words)) >= length:
        words = words[: -max(1, len(inert(words)) - length)]
    return f"{inert(words.rstrip())}…"


def issue_title(feature_id: int, phase_number: int, title: str) -> str:
    """Return the title of the issue of a phase."""
    head = f"Feature #{feature_id} - Phase {phase_number}: "
    return head + short(title, _TITLE_LIMIT - len(head))


def issue_body(
    *,
    title: str,
    feature_id: int,
    phase_number: int,
    prompt: str,
    facts: Mapping[str, Any],
    key: UUID,
    page: str | None,
) -> str:
    """Return the body of an issue: prompt, dependencies, and the page of the phase."""
    whereabouts = page or f"phase {phase_number} of planned feature {feature_id} in the panel"
    total = facts["total_phases"]
    of = f" of {total}" if phase_number <= total else ""  # numbers inserted by SQL may have gaps
    head = (
        f"# {short(title)}\n\n"
        f"**Feature**: {short(facts['feature'])} (planned feature {feature_id})\n"
        f"**Phase**: {phase_number}{of}\n\n"
    )
    foot = (
        f"\n\n{_dependencies(facts['prerequisites'])}---\n**Tracking**: {whereabouts}\n"
        f"**Labels**: feature-{feature_id}, phase-{phase_number}\n{marker(key)}"
    )
    return head + _fitting(prompt, LIMIT - len(head) - len(foot), whereabouts) + foot


def _dependencies(prerequisites: list[dict[str, Any]]) -> str:
    if not prerequisites:
        return ""
    lines = "\n".join(f"- {line}" for line in _phase_lines(prerequisites))
    return f"## Dependencies\n\nThis phase depends on:\n{lines}\n\n"


def _phase_lines(phases: list[dict[str, Any]]) -> Iterable[str]:
    for each in phases[:_MOST_PHASES]:
        yield f"{_SIGNS[each['status']]} {_named(each)} - {each['status']}"
    if len(phases) > _MOST_PHASES:
        yield f"and {len(phases) - _MOST_PHASES} more"


def _named(phase: Mapping[str, Any]) -> str:
    issue = f" (Issue #{phase['issue_number']})" if phase["issue_number"] else ""
    return f"Phase {phase['phase_number']}: {short(phase['title'])}{issue}"


def _fitting(prompt: str, room: int, whereabouts: str) -> str:
    """Return *prompt*, inert and at most *room* characters, with a note when it was cut."""
    text = _closed(inert(prompt.strip("\n")))
    if len(text) <= room:
        return text
    pointer = f"\n\n*The prompt is longer than an issue may be. All of it: {whereabouts}*"
    length = room - len(pointer) - 80  # room to close a code block
    while True:
        cut = _closed(inert(_cut(prompt.strip("\n"), length))) + pointer
        if len(cut) <= room:
            return cut
        length -= len(cut) - room


def _cut(text: str, length: int) -> str:
    """Return the beginning of *text*, to the end of a paragraph or line if possible."""
    beginning = text[:length]
    for end in ("\n\n", "\n"):
        at = beginning.rfind(end)
        if at > length // 2:
            return beginning[:at]
    return beginning


def comment_body(status: str, facts: Mapping[str, Any], key: UUID) -> str:
    """Return the comment on the end of a phase: its outcome, and what starts next."""
    parts = [f"{_SIGNS[status]} **{status.capitalize()}**{_how(facts)}"]
    if facts["pr_number"]:
        parts.append(f"Pull request: #{facts['pr_number']}")
    if facts["error"]:
        parts.append(_error(facts["error"]))
    elif facts["reason"] and not (status == "completed" and facts["attempt"]):
        parts.append(short(facts["reason"], 300))
    parts += _next_step(status, facts["dependents"])
    return "\n\n".join(parts) + f"\n{marker(key)}"


def _how(facts: Mapping[str, Any]) -> str:
    if facts["attempt"] is None:
        return " without being run"
    after = f" after {_lasting(facts['ran_seconds'])}" if facts["ran_seconds"] is not None else ""
    outcome = facts["outcome"] if facts["outcome"] in ("timed_out", "lost") else None
    how = f", {outcome.replace('_', ' ')}" if outcome else ""
    return f"{after} (attempt {facts['attempt']}, {inert(facts['adw_id'])}{how})"


def _lasting(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"


def _error(error: str) -> str:
    """Return the last lines of an error as a code block, whose fence none of them can close."""
    lines = error.strip().splitlines()[-_ERROR_LINES:]
    text = "\n".join(lines)[-_ERROR_LENGTH:]
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}text\n{_untriggered(text)}\n{fence}"


def _next_step(status: str, dependents: list[dict[str, Any]]) -> list[str]:
    if status == "completed":
        goes_on = [each for each in dependents if each["eligible"]]
        return [f"Next: {'; '.join(_names(goes_on))}"] if goes_on else []
    blocked = [each for each in dependents if each["status"] == "blocked"]
    return [f"Waiting for it: {'; '.join(_names(blocked))}"] if blocked else []


def _names(phases: list[dict[str, Any]]) -> Iterable[str]:
    yield from (_named(each) for each in phases[:_MOST_PHASES])
    if len(phases) > _MOST_PHASES:
        yield f"{len(phases) - _MOST_PHASES} more"
