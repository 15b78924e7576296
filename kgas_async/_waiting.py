"""Waiting for what has to end, whatever cancels us meanwhile."""

from __future__ import annotations

import math
from typing import Protocol

import anyio

__all__ = ["wait_until"]


class Waitable(Protocol):
    """An event or a gate."""

    def is_set(self) -> bool: ...
    async def wait(self) -> None: ...


async def wait_until(event: Waitable, deadline: float = math.inf) -> BaseException | None:
    """Wait for ``event`` until ``deadline`` (loop time), whatever cancels us meanwhile.

    A shield keeps AnyIO's cancellation off, but not asyncio's own ``task.cancel()``: what arrives is remembered and
    the first of it is returned, to be raised again by a caller that has cleaned up.
    """
    remembered: BaseException | None = None
    while not event.is_set() and anyio.current_time() < deadline:
        try:
            with anyio.CancelScope(deadline=deadline, shield=True):
                await event.wait()
        except GeneratorExit:
            raise  # the coroutine is being closed: it may not await any more
        except BaseException as error:  # noqa: BLE001  (raised again by the caller)
            remembered = remembered or error
    return remembered
