"""The states of a phase. The one rule: this is Python's only list of them.

The database decides (sql/functions/11_states.sql; docs/design.md, section 4), and
tests/sql/test_states.py compares the two.
"""

STATES = ("queued", "ready", "running", "completed", "failed", "blocked", "cancelled")

# The states of a phase that has ended: only a person makes it go on.
ENDED = ("completed", "failed", "cancelled")

# The states of a phase that holds a slot.
IN_SLOT = ("ready", "running")

# The states of a phase that goes on by itself, now or later.
UNFINISHED = ("queued", *IN_SLOT)
