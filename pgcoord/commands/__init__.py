"""The commands, one module a group; each has a `register` that adds its commands to the program.

The one rule: a command calls `pgcoord.database` and prints; it knows no SQL. What takes long to
import (psycopg, rich, asyncio, markdown_it) is imported when a command runs: help answers at once.
"""
