"""What pgcoord writes on GitHub: titles, bodies and comments.

The one rule: a text of somebody else reads on GitHub as it was written, and does nothing there. It
pings nobody, links to nothing by a bare number, and starts no automation that looks for words.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from markdown_it import MarkdownIt

# What GitHub takes, with some room: it counts 65,536.
LIMIT = 65_000
_TITLE_LIMIT = 256

# How much of a title a line shows, and how many phases a list.
_SHORT = 80
_MOST_PHASES = 6

# Lines and characters of an error that a comment shows: the last ones.
_ERROR_LINES = 20
_ERROR_LENGTH = 2_000

# Nobody sees it, and what looks for "@name", "#12" or "adw_x_iso" does not see the word any more.
_BREAK = "\u200b"

# In code, too: whatever reads a body as text does not know of Markdown.
_TRIGGERS = re.compile(
    r"(?P<adw>\badw(?=_\w))"  # a receiver would start the workflow once more
    r"|(?P<comment><!-(?=-\s*pgcoord))"  # our own marker, of another issue perhaps
    r"|(?P<command>^[ \t]*(?=/[A-Za-z][\w-]*(?:\s|$)))",  # "/retest" at the beginning of a line
    re.IGNORECASE | re.MULTILINE,
)

# Only outside of code, which GitHub leaves alone.
_REFERENCES = re.compile(
    r"(?P<mention>(?<![A-Za-z0-9])@(?=[A-Za-z0-9]))"
    r"|(?P<number>#(?=[0-9]))"
    r"|(?P<gh>\bGH(?=-[0-9]))"
    r"|(?P<entity>&(?=#x0*(?:40|23);|commat;|num;))",  # "@" and "#" in other letters
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
    """The hidden words by which an issue or a comment of ours is found again."""
    return f"<!-- pgcoord {key} -->"


def inert(text: str) -> str:
    """The same to a reader, but it pings nobody, links to no number and triggers nothing."""
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
    """The text, with the code that its end leaves open ended."""
    fences = [token for token in MarkdownIt("commonmark").parse(text) if token.type == "fence"]
    if not fences or not fences[-1].map:
        return text
    lines = text.rstrip("\n").split("\n")
    first, last = fences[-1].map
    end = lines[min(last, len(lines)) - 1].strip(" >")
    ended = last - first > 1 and end.startswith(fences[-1].markup) and not end.strip(end[0])
    return text if last < len(lines) or ended else f"{text}\n{fences[-1].markup}"


def short(text: str, length: int = _SHORT) -> str:
    """A title on one line, inert, and cut where it is too long."""
    words = " ".join(text.split())
    if len(inert(words)) <= length:
        return inert(words)
    # What makes it inert takes room, too.
    while len(inert(words)) >= length:
        words = words[: -max(1, len(inert(words)) - length)]
    return f"{inert(words.rstrip())}…"


def issue_title(feature_id: int, phase_number: int, title: str) -> str:
    """What an issue is called."""
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
    """The body of an issue: the phase's own prompt, what it depends on, where it is followed."""
    whereabouts = page or f"phase {phase_number} of planned feature {feature_id} in the panel"
    total = facts["total_phases"]
    of = f" of {total}" if phase_number <= total else ""  # by SQL, numbers may be left out
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
    """The prompt, inert; one that is too long is cut at a paragraph, and says where it goes on."""
    text = _closed(inert(prompt.strip("\n")))
    if len(text) <= room:
        return text
    pointer = f"\n\n*The prompt is longer than an issue may be. All of it: {whereabouts}*"
    length = room - len(pointer) - 80  # the end of code that is cut open
    while True:
        cut = _closed(inert(_cut(prompt.strip("\n"), length))) + pointer
        if len(cut) <= room:
            return cut
        length -= len(cut) - room


def _cut(text: str, length: int) -> str:
    """The beginning of a text, up to the end of a paragraph, else of a line, where there is one."""
    beginning = text[:length]
    for end in ("\n\n", "\n"):
        at = beginning.rfind(end)
        if at > length // 2:
            return beginning[:at]
    return beginning


def comment_body(status: str, facts: Mapping[str, Any], key: UUID) -> str:
    """The one comment about the end of a phase: how it went, and what starts next."""
    parts = [f"{_SIGNS[status]} **{status.capitalize()}**{_how(facts)}"]
    if facts["pr_number"]:
        parts.append(f"Pull request: #{facts['pr_number']}")
    if facts["error"]:
        parts.append(_error(facts["error"]))
    elif facts["reason"] and not (status == "completed" and facts["attempt"]):
        parts.append(short(facts["reason"], 300))
    parts += _what_next(status, facts["dependents"])
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
    """The last lines of an error, as code; its fence is longer than any within it."""
    lines = error.strip().splitlines()[-_ERROR_LINES:]
    text = "\n".join(lines)[-_ERROR_LENGTH:]
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}text\n{_untriggered(text)}\n{fence}"


def _what_next(status: str, dependents: list[dict[str, Any]]) -> list[str]:
    if status == "completed":
        goes_on = [each for each in dependents if each["eligible"]]
        return [f"Next: {'; '.join(_names(goes_on))}"] if goes_on else []
    blocked = [each for each in dependents if each["status"] == "blocked"]
    return [f"Waiting for it: {'; '.join(_names(blocked))}"] if blocked else []


def _names(phases: list[dict[str, Any]]) -> Iterable[str]:
    yield from (_named(each) for each in phases[:_MOST_PHASES])
    if len(phases) > _MOST_PHASES:
        yield f"{len(phases) - _MOST_PHASES} more"
