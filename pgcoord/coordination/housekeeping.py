"""Housekeeping: removes the folders of runs that ended longer ago than the retention period.

The one rule: never remove the folder of a run whose process the database does not know to be gone.
"""

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import psycopg

from pgcoord.coordination.retrying import Retrying
from pgcoord.database import claims
from pgcoord.database.connect import connect
from pgcoord.errors import CoordError, message_of
from pgcoord.runs.retention import remove_old_runs

logger = logging.getLogger(__name__)

# Seconds between two removals.
_DAY = 24 * 60 * 60


async def keep_house(
    dsn: str, runs_folder: Path, retention: timedelta | None, retrying: Retrying
) -> None:
    """Remove old runs below *runs_folder*, and in the folders of pools, now and once a day.

    Until the coordinator is stopped.

    *retention*: how long the folder of a run is kept after its end; None keeps all of them.
    """
    while retention and not retrying.is_stopping:
        try:
            await retrying.unless_stopped(_remove_old_runs(dsn, runs_folder, retention))
        except (psycopg.Error, CoordError, OSError) as error:
            logger.info("old runs stay for another day: %s", message_of(error))
        except Exception:
            logger.exception("old runs stay for another day")
        await retrying.unless_stopped(asyncio.sleep(_DAY))


async def _remove_old_runs(dsn: str, runs_folder: Path, retention: timedelta) -> None:
    async with await connect(dsn) as conn:
        shared = [each.settings.get("folder") for each in await claims.pools(conn)]
        folders = {runs_folder, *(Path(str(folder)) for folder in shared if folder)}
        installation = await claims.installation(conn)
        spared = {Path(name) for name in await claims.open_folders(conn)}
    removed = 0
    for folder in sorted(folders):
        removed += await asyncio.to_thread(
            remove_old_runs, folder / installation, retention, spared=spared
        )
    if removed:
        logger.info("runs removed that ended longer ago than %s: %d", retention, removed)
