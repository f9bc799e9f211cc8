"""The blocks of docs/sql.md: what is run, and what it shows."""

import re
from dataclasses import dataclass

# What differs from one time to the next, in letters of the same width.
VARIES = [
    (re.compile(r"\d{4}-\d\d-\d\d"), "YYYY-MM-DD"),
    (re.compile(r"\d\d:\d\d:\d\d"), "HH:MM:SS"),
    (re.compile(r"\d\d:\d\d"), "HH:MM"),
    (re.compile(r"adw-[0-9a-f]{8}"), "adw-xxxxxxxx"),
    (re.compile(r"process with PID \d+"), "process with PID 1"),
]
# What psql says of a statement that shows nothing.
TAG = re.compile(r"(INSERT 0|UPDATE|DELETE) \d+|SET|LISTEN|UNLISTEN|BEGIN|ROLLBACK")


@dataclass(frozen=True)
class Step:
    """A block of the page, with the stage directions above it and what it shows below."""

    directions: list[str]
    statements: str
    shows: str


def steps(page: str) -> list[Step]:
    found = re.findall(
        r"((?:^<!-- [^\n]* -->\n)*)^```sql\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?",
        page,
        re.MULTILINE | re.DOTALL,
    )
    return [
        Step(re.findall(r"<!-- (.*) -->", directions), statements, shows)
        for directions, statements, shows in found
    ]


def plain(output: str) -> list[str]:
    for pattern, letters in VARIES:
        output = pattern.sub(letters, output)
    return [line.rstrip() for line in output.rstrip().splitlines()]
