"""Removes the folders of runs that ended long ago; their attempts stay in the database.

The one rule: what is removed is named as a run, holds one, is untouched for long, belongs to no
attempt that the database counts as alive, and has no living process.
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

# As pgcoord_private.claim_phases names them: the attempt's number, and a random end.
_NAME = re.compile("[0-9]+-[0-9a-f]{8}")


def remove_old_runs(folder: Path, retention: timedelta, *, spared: Collection[Path]) -> int:
    """Remove the runs in `folder` that ended longer ago; return how many. Blocks.

    `spared` are the folders of runs that may still be asked about.
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
    """Whether it is a run in which nothing has happened since `before`, and nothing will."""
    if not _NAME.fullmatch(folder.name) or not folder.is_dir():
        return False
    run = Run(folder)
    touched = [each.lstat().st_mtime for each in (folder, *folder.iterdir())]
    return run.prompt_file.exists() and max(touched) < before and run.state() is not JobState.ALIVE
