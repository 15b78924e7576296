"""Every async test runs on each event loop that KGAS_TEST_BACKENDS names, and fails rather than hangs.

KGAS_TEST_BACKENDS is a comma list of asyncio, trio, uvloop; the default is "asyncio,trio". With KGAS_TEST_SEED=7 the
tests run in virtual time and in an order of tasks that the seed chooses; leave those out that need real seconds:
`KGAS_TEST_SEED=7 python -m pytest -m "anyio and not slow and not real_time"`.
"""

from __future__ import annotations

import functools
import gc
import signal
from collections.abc import Awaitable, Callable, Generator, Iterator
from inspect import iscoroutinefunction
from typing import Any

import anyio
import hypothesis  # noqa: F401  (before `gc.freeze`: at its import it looks for who refers to Trio's random numbers)
import pytest

from kgas_async.testing import virtual_backends

from . import one_end
from .loops import BACKENDS, SEED, chosen

GUARD_SECONDS = 60.0
SLOW_GUARD_SECONDS = 600.0

if SEED is None:
    # Session scope, so that async fixtures of any scope can request it. They must: AnyIO reuses one that does not on
    # the next backend, silently.
    @pytest.fixture(scope="session", params=[pytest.param(BACKENDS[name], id=name) for name in chosen()])
    def anyio_backend(request: pytest.FixtureRequest) -> Any:
        return request.param

else:

    @pytest.fixture(params=virtual_backends(chosen(), SEED))
    def anyio_backend(request: pytest.FixtureRequest) -> Any:
        return request.param()  # a clock of its own for each test


@pytest.fixture(autouse=True)
def one_end_each(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every call of every session of a test has its one end in the evidence, whatever the test is about."""
    with one_end.checked(on=request.node.get_closest_marker("unwatched") is None):
        yield


def pytest_configure() -> None:
    one_end.watch()
    # A shell without job control starts what runs in the background with SIGINT ignored, and nohup with SIGHUP, which
    # would go on to the children that the tests send real signals to.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _is_loopless(item: pytest.Item) -> bool:
    """Whether it is one of a module in virtual time, and only loops without it were chosen."""
    return any("set for (anyio_backend)" in str(mark.kwargs.get("reason")) for mark in item.iter_markers("skip"))


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if loopless := [item for item in items if _is_loopless(item)]:
        config.hook.pytest_deselected(items=loopless)
        items[:] = [item for item in items if not _is_loopless(item)]
    # AnyIO's auto mode runs async tests without marking them; with the mark, `-m anyio` is what differs between loops.
    for item in items:
        if "anyio_backend" in getattr(item, "fixturenames", ()):
            item.add_marker("anyio")


def pytest_collection_finish() -> None:
    # The collector has no business with what collecting has made, hundreds of thousands of objects that stay: it took a
    # fifth of the time of the tests.
    gc.collect()
    gc.freeze()


# A fixture that holds fail_after would be entered and left in different tasks, so the test function itself is wrapped;
# here and not at collection, because only here the backend of this very run is known.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    backend = pyfuncitem.funcargs.get("anyio_backend")
    if backend is None or not iscoroutinefunction(pyfuncitem.obj) or _has_virtual_clock(backend):
        return (yield)
    seconds = SLOW_GUARD_SECONDS if pyfuncitem.get_closest_marker("slow") else GUARD_SECONDS
    unguarded = pyfuncitem.obj
    pyfuncitem.obj = _guarded(unguarded, seconds)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = unguarded


def _has_virtual_clock(backend: object) -> bool:
    # There 60 seconds pass in no time, when the test sleeps. What watches these tests is pytest's faulthandler_timeout.
    options = backend[1] if isinstance(backend, tuple) else {}
    return "clock" in options or "loop_factory" in options


def _guarded(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def guarded(**arguments: Any) -> None:
        with anyio.move_on_after(seconds) as scope:
            await test(**arguments)
        if scope.cancelled_caught:  # not fail_after: a TimeoutError of the test's own must stay apart from this
            pytest.fail(f"still running after {seconds:g} s", pytrace=False)

    return guarded
