"""Hints of the database in the words of the command line.

The functions of the database name SQL in their hints, for psql and other clients; a reader at the
command line needs a command.
"""

import re

from pgcoord.actions import ACTIONS

# The command that shows what a query of a hint shows.
_QUERIES = {
    "select * from pgcoord.feature ": "'pgcoord status --all' ",
    "select queue_id from phase_queue ": "'pgcoord status' ",
    "select name from pgcoord.schedules ": "'pgcoord schedule list' ",
}

_COMMANDS = {
    "why": "why",
    "prune": "prune",
    "change_schedule": "schedule change",
} | {
    action.function: f"schedule {action.verb}" if action.scope == "schedule" else action.verb
    for action in ACTIONS
    if not action.option
}

# How the help of the commands names an argument of a function; the others are options.
_ARGUMENTS = {
    "queue_id": "PHASE",
    "feature_id": "FEATURE",
    "name": "NAME",
    "older_than": "AGE",
    "n": "N",
}

_CALL = re.compile(r"(?:select \* from )?pgcoord\.(\w+)\(([^()]*)\)")


def in_commands(hint: str) -> str:
    """Return *hint* with commands instead of queries and calls of SQL functions.

    A call that no command makes stays as it is.
    """
    for query, command in _QUERIES.items():
        hint = hint.replace(query, command)
    return _CALL.sub(_command, hint)


def _command(call: re.Match[str]) -> str:
    if call[1] not in _COMMANDS:
        return call[0]
    words = [_COMMANDS[call[1]]]
    for argument in call[2].split(", "):
        if argument.isdecimal() or argument.startswith("'"):
            words.append(argument.strip("'"))
        elif argument in _ARGUMENTS:
            words.append(_ARGUMENTS[argument])
    return f"'pgcoord {' '.join(words)}'"
