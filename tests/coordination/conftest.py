"""A connection that watches what a coordinator does."""

from collections.abc import AsyncIterator

import pytest
from support.coordination import Watch, watching


@pytest.fixture
async def watch(dsn: str) -> AsyncIterator[Watch]:
    async with watching(dsn) as watch:
        yield watch
