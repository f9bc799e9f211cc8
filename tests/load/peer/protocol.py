"""What the peers' programs have in common: marks of what has started, commands on standard input.

A mark is a line of the FIFO: the number of the job, and the time at which its first instruction
ran, in nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator


class Marks:
    """The FIFO into which a worker says what it has started."""

    def __init__(self, fifo: str) -> None:
        self._fifo = os.open(fifo, os.O_WRONLY)

    def put(self, number: str) -> None:
        """Say that job `number` runs now."""
        os.write(self._fifo, f"{number} {time.monotonic_ns()}\n".encode())


async def commands() -> AsyncIterator[tuple[str, str]]:
    """The commands that come, as verb and argument: `one NUMBER` or `many COUNT`."""
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, argument = line.split()
        yield verb, argument
