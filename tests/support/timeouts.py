"""A pytest plugin: a time-out ends its test, never the session.

The alarm of pytest-timeout raises wherever Python is. While a failure is being put into words that
is outside of any test, and takes the worker of pytest-xdist down, or all of them.
"""

from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Stop the clock of a test that has failed, before its report is made."""
    if call.excinfo:
        item.config.hook.pytest_timeout_cancel_timer(item=item)
    return (yield)
