"""Running a coroutine in a context of its own, inside a task that goes on to run others."""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from typing import Any

__all__ = ["drive"]


@types.coroutine
def drive(
    awaitable: Awaitable[Any], context: Context, on_wait: Callable[[], object] | None = None
) -> Generator[Any, Any, Any]:
    """Await ``awaitable`` so that each of its steps runs in ``context``. The task's identity stays the host's.

    ``on_wait`` is called when it suspends for the first time: then the host could do with company.
    """
    coroutine: Any = awaitable
    run = context.run
    try:
        send = coroutine.send
    except AttributeError:
        coroutine = _as_coroutine(awaitable)
        send = coroutine.send
    try:
        step = run(send, None)
        if on_wait is not None:
            on_wait()
        while True:
            try:
                sent = yield step
            except GeneratorExit:
                run(coroutine.close)
                raise
            except BaseException as error:  # noqa: BLE001  (handed to the coroutine, which raises it again or not)
                step = run(coroutine.throw, error)
            else:
                step = run(send, sent)
    except StopIteration as stop:
        return stop.value


async def _as_coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
