"""A call whose tool runs in a worker process, where that differs from one in a thread: it can be killed.

Everything else is as in a thread (`_in_thread`), since a thread of the manager's has the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

import anyio

from ._call import Call
from ._processes import ProcessWork
from ._threads import Work
from ._waiting import wait_until

__all__ = ["killed", "note_usage", "told_of_building", "work_for"]

KILL_S: Final = 10.0  # seconds for a killed process to be dead; longer takes only one that the kernel holds on to


def work_for(call: Call[Any], function: Callable[[], object], context: Context) -> Work:
    """What is handed to a thread for this call, which runs in a worker process."""
    remote: Any = call.bound.remote
    return ProcessWork(function, context, call.bound.home.mailbox, remote.travelling)


async def killed(work: Work) -> BaseException | None:
    """Kill the worker of a work, if it has one, and wait until it is dead.

    Returns:
        A native cancellation that came meanwhile.
    """
    if not isinstance(work, ProcessWork) or work.done.is_set():
        return None
    work.kill()
    return await wait_until(work.done, anyio.current_time() + KILL_S)


def note_usage(call: Call[Any], work: Work) -> None:
    """Keep what the attempt took of CPU and memory."""
    if not isinstance(work, ProcessWork):
        return
    if work.cpu_ns is not None:
        call.cpu_ns = (call.cpu_ns or 0) + work.cpu_ns
    if work.rss_peak is not None:
        call.rss_peak = max(call.rss_peak or 0, work.rss_peak)


def told_of_building(work: Work | None) -> str:
    """What a timeout adds where the tool itself had not yet begun."""
    if isinstance(work, ProcessWork) and work.is_building:
        return "; its factory had not ended: each new worker process runs it once, within the timeout of that call"
    return ""
