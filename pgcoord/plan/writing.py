"""Write a plan as Markdown; the inverse of `parsing`."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

# What `write_plan` puts into braces once more; of {{param.x}} it is the inner part.
_INNER = re.compile(r"\{param\.[\w-]+\}", re.ASCII)


def write_plan(
    title: str,
    description: str | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    literal: bool = False,
) -> str:
    """Return the Markdown of a plan; *rows* are objects as in `Plan.feature`'s "phases".

    *literal*: the text is stored text, in which `{param.x}` is no parameter: it gets double braces.
    Nothing is validated. `parse_plan` reads the same phases back unless a value cannot be expressed
    in a plan; a caller that depends on that must compare.
    """
    parts = [f"# {' '.join(title.split())}\n"]
    if description and description.strip():
        parts.append(f"{description.strip()}\n")
    parts += [_written(row) for row in rows]
    text = "\n".join(parts)
    return _INNER.sub(r"{\g<0>}", text) if literal else text


def _written(row: Mapping[str, Any]) -> str:
    needs = ", ".join(map(str, row.get("depends_on_phases") or ())) or "none"
    seconds = row.get("timeout_seconds")
    environment = row.get("environment") or {}
    keys = {
        "Depends on": needs,
        "When": None if row.get("run_when") == "completed" else row.get("run_when"),
        "Lock": row.get("lock"),
        "Env": " ".join(_quoted(f"{name}={each}") for name, each in environment.items()) or None,
        "Workflow": row.get("workflow_type"),
        "Hours": _decimal(row.get("estimated_hours")),
        "Priority": row.get("priority"),
        "Files": ", ".join(row.get("files") or ()) or None,
        "Gate": row.get("gate"),
        "Check": row.get("check"),
        "Max attempts": row.get("max_attempts"),
        "Timeout": None if seconds is None else f"{_decimal(seconds)}s",
    }
    lines = [f"{key}: {value}" for key, value in keys.items() if value is not None]
    mark = "✅ " if row.get("status") == "completed" else ""
    heading = f"## {mark}Phase {row['phase_number']}: {row.get('title') or 'Untitled'}"
    return "\n".join([heading, *lines, "", row.get("prompt_content") or "", ""])


def _quoted(word: str) -> str:
    quoted = shlex.quote(word)
    return f"'{word}'" if quoted == word and "," in word else quoted


def _decimal(number: float | None) -> str | None:
    """Format a number for a plan: at most six decimals, no exponent, no trailing zeros."""
    return None if number is None else f"{number:.6f}".rstrip("0").rstrip(".")
