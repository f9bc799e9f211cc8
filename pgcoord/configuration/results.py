"""Results of phases as placeholders: `{result.N.key}` in commands and prompts.

N is the number of a phase that this one needs, directly or not; the key is one of its result.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pgcoord.errors import CannotStart

# Bytes of a file that may have a result: the database decides whether a result is too large
# (pgcoord_private.check_result), which counts the JSON as it stores it. That is 68 kB at most, and
# three times as much where a file writes all characters as ASCII.
FILE_LIMIT = 3 * 69_632

# The name of a placeholder, without its braces.
NAME = re.compile(r"result\.(\d{1,9})\.([A-Za-z_][\w-]*)", re.ASCII)

# In a prompt, other braces are text; doubled braces escape a placeholder.
_IN_PROMPT = re.compile(r"\{\{(" + NAME.pattern + r")\}\}|\{(" + NAME.pattern + r")\}", re.ASCII)


def placeholders(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the placeholders that *inputs* (results by phase number) fill, with their values.

    A text is filled in as it is, any other value as JSON.
    """
    return {
        f"result.{number}.{key}": value if isinstance(value, str) else json.dumps(value)
        for number, result in inputs.items()
        for key, value in result.items()
        if value is not None
    }


def fill_prompt(prompt: str, values: Mapping[str, str]) -> str:
    """Fill the placeholders of results in *prompt* from *values*.

    Raises `CannotStart` when a phase has no such result.
    """

    def fill(match: re.Match[str]) -> str:
        if match[1]:
            return "{" + match[1] + "}"
        name = match[4]
        if name not in values:
            raise CannotStart(f"{{{name}}} in the prompt: {missing(name)}")
        return values[name]

    return _IN_PROMPT.sub(fill, prompt)


def missing(name: str) -> str:
    """Return the error for a placeholder *name* without a result."""
    match = NAME.fullmatch(name)
    assert match is not None
    return f"phase {match[1]} has no result {match[2]!r}, or this phase does not depend on it"
