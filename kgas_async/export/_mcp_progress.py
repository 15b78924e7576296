"""The progress of a call: ours passed on to whoever waits for it elsewhere, and theirs made ours.

Knows `Call.events()` and `progress`. It knows no transport. In MCP each progress must be more than the last, so what is
not, such as the beginning of another attempt, stays here.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from contextvars import copy_context
from typing import Any, Protocol

from mcp.shared.dispatcher import ProgressFnT

from kgas_async._call import Call
from kgas_async._context import progress as tell
from kgas_async._errors import shown
from kgas_async._events import CallProgress
from kgas_async._records import valid_unicode

__all__ = ["Report", "progress_here", "relay_progress"]


class Report(Protocol):
    """Sends one progress notification."""

    def __call__(self, progress: float, total: float | None = None, message: str | None = None) -> Awaitable[None]: ...


async def relay_progress(call: Call[Any], report: Report) -> None:
    """Report the progress of the call until it has ended.

    Cancellation: Leaves the call running.
    """
    last = -math.inf
    async for event in call.events():
        if isinstance(event, CallProgress):
            done, total = _number(event.done), _number(event.total)
            if done is not None and done > last:
                last = done
                await report(done, total, _text(event.message) or None)


def _number(given: Any) -> float | None:
    """What can be sent of what a tool gave."""
    try:
        number = float(given)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(given: Any) -> str:
    """What can be sent of a message, which may be anything: nobody has checked it."""
    text: str = valid_unicode(given if isinstance(given, str) else shown(given))
    return text


def progress_here() -> ProgressFnT:
    """What takes the progress notifications of a request that this call has sent.

    They arrive in tasks of the client's session, where nothing is known of the call, and at times one before the other.
    """
    here = copy_context()
    last = -math.inf

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        nonlocal last
        if progress > last:
            last = progress
            here.copy().run(tell, progress, total, message or "")

    return on_progress
