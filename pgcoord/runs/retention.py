"""Removes the folders of runs that ended long ago; their attempts stay in the database.

The one rule: remove a folder only if it is named like a run, contains one or nothing, has not
changed for the retention period, belongs to no attempt that is alive in the database, and has no
living process.
"""

import logging
import re
import shutil
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path

from pgcoord.coordination.launching import JobState
from pgcoord.runs.run import Run

logger = logging.getLogger(__name__)

# The names that pgcoord_private.claim_phases gives: the attempt's number, a random text, and
# (unless it is older) the place of the database.
_NAME = re.compile("[0-9]+-[0-9a-f]{8}(?:[0-9a-f]{4})?")


def remove_old_runs(folder: Path, retention: timedelta, *, spared: Collection[Path]) -> int:
    """Remove the runs in *folder* that ended more than *retention* ago; return how many. Blocks.

    *spared*: the folders of runs whose process may be alive.
    """
    before = (datetime.now() - retention).timestamp()
    removed = 0
    for each in folder.iterdir() if folder.is_dir() else ():
        try:
            if each not in spared and _is_old_run(each, before):
                shutil.rmtree(each)
                removed += 1
        except OSError as error:
            logger.warning("the run in %s cannot be removed: %s", each, error.strerror)
    return removed


def _is_old_run(folder: Path, before: float) -> bool:
    """Return whether *folder* is a run that has ended, and has not changed since *before*."""
    if not _NAME.fullmatch(folder.name) or not folder.is_dir():
        return False
    run, files = Run(folder), list(folder.iterdir())
    state = run.state()
    # A job whose node shares no folder has its log here at most, or the mark that it was given up.
    is_run = (
        not files or run.prompt_file.exists() or run.log.path.exists() or state is JobState.GIVEN_UP
    )
    touched = [each.lstat().st_mtime for each in (folder, *files)]
    return is_run and max(touched) < before and state is not JobState.ALIVE
