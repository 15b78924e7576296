"""Running a coroutine in a context of its own, inside a task that goes on to run others."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from typing import Any

__all__ = ["as_coroutine", "drive", "own_error", "resume"]


@types.coroutine
def drive(
    awaitable: Awaitable[Any], context: Context, on_wait: Callable[[], object] | None = None
) -> Generator[Any, Any, Any]:
    """Await ``awaitable`` so that each of its steps runs in ``context``. The task's identity stays the host's.

    ``on_wait`` is called when it suspends for the first time: then the host could do with company.
    """
    coroutine = as_coroutine(awaitable)
    try:
        step = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    except GeneratorExit as error:
        raise own_error(error) from error
    if on_wait is not None:
        on_wait()
    return (yield from _resumed(coroutine, context, step))


def _resumed(coroutine: Any, context: Context, step: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine whose first step was made in ``context`` and gave ``step``."""
    run, send, closing = context.run, coroutine.send, False
    try:
        while True:
            try:
                sent = yield step
            except GeneratorExit:
                closing = True
                run(coroutine.close)
                raise
            except BaseException as error:  # noqa: BLE001  (handed to the coroutine, which raises it again or not)
                step = run(coroutine.throw, error)
            else:
                try:
                    step = run(send, sent)
                finally:
                    sent = None  # on trio it may hold an error whose traceback holds this frame: a cycle
    except StopIteration as stop:
        return stop.value
    except GeneratorExit as error:
        if closing:
            raise
        raise own_error(error) from error


resume = types.coroutine(_resumed)


def own_error(error: BaseException) -> BaseException:
    """What a tool has raised by itself, as others may see it: `GeneratorExit` closes each coroutine that it leaves."""
    if not isinstance(error, GeneratorExit):
        return error
    told = RuntimeError("raised GeneratorExit, by which Python closes generators; raise another exception")
    told.__cause__ = error
    return told


def as_coroutine(awaitable: Any) -> Any:
    """The awaitable itself if it can be driven, else a coroutine that awaits it."""
    return awaitable if hasattr(awaitable, "send") else _awaited(awaitable)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
