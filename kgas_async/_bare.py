"""A function run in a thread made for it, outside any manager: what awaiting a tool's raw function does."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import anyio

from ._mailbox import Mailbox, leave_loop
from ._threads import Work, start_daemon
from ._waiting import wait_until

__all__ = ["run_bare"]


async def run_bare(function: Callable[[], Any], grace: float = 10.0) -> Any:
    """Run a function in a daemon thread made for it, outside any manager.

    Cancellation: Waits for the thread, ``grace`` seconds at the most, then leaves it.
    """
    work = Work(function, copy_context(), Mailbox.here())
    leave_loop(work.context)
    work.claim()
    work.mailbox.add_busy(1)

    def run() -> None:
        work.run()
        work.finish()

    start_daemon(run, "kgas-bare")
    try:
        await work.done.wait()
    except BaseException:
        work.abort()
        await wait_until(work.done, anyio.current_time() + grace)
        raise
    if work.error is not None:
        raise work.error
    return work.value
