"""A pytest plugin: a time-out ends its test, never the session.

The alarm of pytest-timeout raises wherever Python is. While a failure is being put into words that
is outside of any test, and takes the worker of pytest-xdist down, or all of them. While an event
loop waits it is outside of what the loop runs, which stays there: the fixtures of the test, and all
tests after it, would wait for it without end.
"""

import asyncio
import functools
import inspect
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

import pytest

# The share of the time that is left which what runs in an event loop may take: the rest is for the
# fixtures to end in.
_SHARE = 0.9

_GRACE = 30.0  # seconds that a test which has failed has at least for its fixtures to end in


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Stop the clock of a test that has failed while its report is made."""
    if not call.excinfo or signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        return (yield)
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    report = yield
    if call.when != "teardown":
        signal.setitimer(signal.ITIMER_REAL, max(left, _GRACE))
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Time a coroutine out from within its event loop, before the alarm."""
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _timed(pyfuncitem.obj)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """Time what an asynchronous fixture does out from within its event loop, as its test."""
    function: Callable[..., Any] = fixturedef.func
    if inspect.iscoroutinefunction(function):
        timed: Callable[..., Any] = _timed(function)
    elif inspect.isasyncgenfunction(function):
        timed = _timed_by_steps(function)
    else:
        return (yield)
    fixturedef.func = timed  # type: ignore[misc]
    try:
        return (yield)
    finally:
        fixturedef.func = function  # type: ignore[misc]


def _timed(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def timed(*arguments: Any, **named: Any) -> Any:
        async with _limit():
            return await function(*arguments, **named)

    return timed


def _timed_by_steps(
    function: Callable[..., AsyncGenerator[Any, None]],
) -> Callable[..., AsyncGenerator[Any, None]]:
    @functools.wraps(function)
    async def timed(*arguments: Any, **named: Any) -> AsyncGenerator[Any, None]:
        steps = function(*arguments, **named)
        try:
            while True:
                async with _limit():
                    value = await anext(steps, steps)
                if value is steps:
                    return
                yield value
        finally:
            await steps.aclose()

    return timed


def _limit() -> asyncio.Timeout:
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    return asyncio.timeout(left * _SHARE if left else None)
