"""A tool that misbehaves at chosen calls, around a real one that is run otherwise."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable, Collection
from threading import Lock
from typing import Any, TypeVar

import anyio

from kgas_async._tool import Execution, KGASTool

__all__ = ["faults"]

T = TypeVar("T", bound=KGASTool)
At = int | Collection[int] | Callable[[int], bool]


class _Plan:
    """Counts calls from all threads, and says which of them go wrong."""

    def __init__(self, at: At, error: BaseException | type[BaseException] | None, delay: float) -> None:
        self._at = at
        self._error = error
        self.delay = delay
        self._calls = 0
        self._lock = Lock()

    def strikes(self) -> bool:
        """Whether this call, the next in number, goes wrong."""
        with self._lock:
            self._calls += 1
            number = self._calls
        if callable(self._at):
            return self._at(number)
        return number == self._at if isinstance(self._at, int) else number in self._at

    def fail(self) -> None:
        """Raise what is to be raised."""
        if self._error is not None:
            raise self._error() if isinstance(self._error, type) else self._error


def faults(tool: T, *, at: At, error: BaseException | type[BaseException] | None = None, delay: float = 0.0) -> T:
    """A copy of a tool that misbehaves at chosen calls, where the tool itself would run: in its thread, on the loop.

    Name, policy, signature and instances stay the tool's.

    Args:
        tool: The tool.
        at: Which calls of this copy: a number (from 1; retries count), numbers, or a function of the number.
        error: What they raise, instead of running; None to run after the delay.
        delay: Seconds that they sleep before: ``anyio.sleep`` in an async tool, ``time.sleep`` in a sync one.

    Returns:
        The misbehaving copy.

    Raises:
        TypeError: Neither ``error`` nor ``delay`` is given.
    """
    if error is None and not delay:
        raise TypeError("faults(tool, at=...) does nothing without error= or delay=")
    plan = _Plan(at, error, delay)
    inner = tool._execution()
    copy = tool.using()
    execution = dataclasses.replace(
        inner, function=_async_fault(inner, plan) if inner.kind == "async" else _sync_fault(inner, plan)
    )
    copy._execution = lambda: execution  # type: ignore[method-assign]
    return copy


def _async_fault(inner: Execution, plan: _Plan) -> Callable[..., Any]:
    async def run(**inputs: Any) -> Any:
        if plan.strikes():
            await anyio.sleep(plan.delay)
            plan.fail()
        result = inner.function(**inputs)
        return await result if inspect.isawaitable(result) else result

    return run


def _sync_fault(inner: Execution, plan: _Plan) -> Callable[..., Any]:
    def run(**inputs: Any) -> Any:
        if plan.strikes():
            time.sleep(plan.delay)
            plan.fail()
        return inner.function(**inputs)

    return run
