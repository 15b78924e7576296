"""Telling cancellation, exits and errors apart, also where a group holds several of them.

trio's nurseries give a group of all that came: of one child that raised as it was cancelled and others that were
merely cancelled, say. A scope takes only the cancellation out of it, and lets the rest out into whatever holds the
scope. Knows exceptions, and which loop runs.
"""

from __future__ import annotations

import anyio

from ._errors import CallAborted, add_note, shown
from ._mailbox import is_self_inflicted

__all__ = [
    "breakdown_between",
    "breakdown_of",
    "exit_in",
    "failure_in",
    "failure_of",
    "hook_failure",
    "is_failure",
    "parted",
]


def parted(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """The bare cancellation in an error, and what else is in it; None where there is none. On the loop.

    A coroutine that is closed is told to end as well.
    """
    if isinstance(error, GeneratorExit):
        return error, None
    kind = anyio.get_cancelled_exc_class()
    if isinstance(error, kind):
        return error, None
    if not isinstance(error, BaseExceptionGroup):
        return None, error
    cancelled, rest = error.split(kind)
    return (None if cancelled is None else _first(cancelled)), rest


def exit_in(error: BaseException) -> BaseException | None:
    """The `KeyboardInterrupt` or `SystemExit` that an error is, or that a group has among others."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return error
    if isinstance(error, BaseExceptionGroup):
        exits = error.subgroup((KeyboardInterrupt, SystemExit))
        return None if exits is None else _first(exits)
    return None


def is_failure(error: BaseException) -> bool:
    """Whether what a tool raised is a failure of its attempt: all but an exit, a cancellation, or the order to stop."""
    if isinstance(error, Exception):
        return True
    return not isinstance(error, CallAborted) and exit_in(error) is None and parted(error)[0] is None


def failure_of(error: BaseException) -> BaseException:
    """What a tool raised, if it is a failure; else it is raised again."""
    if is_failure(error):
        return error
    raise error


def failure_in(error: BaseException, *, owned: bool = True) -> BaseException | None:
    """What an iterator of the user's has raised, in a worker's task; None where it was cancelled from outside.

    None also for an exit, and for what else is no `Exception`: those are for the whole session.
    """
    if isinstance(error, Exception):
        return error
    if exit_in(error) is not None:
        return None
    cancellation, rest = parted(error)
    if cancellation is None:
        return None
    if rest is not None:
        return rest  # the cancellation beside it will come again
    return error if _is_nobodys(error, owned=owned) else None


def hook_failure(error: BaseException, what: str, *, owned: bool = True) -> BaseException | None:
    """As `failure_in`, of a function that a tool, service or pool has given us: its own cancellation told as an error.

    asyncio only: whoever awaits a task that was cancelled raises a cancellation that is nobody else's. Let out of a
    task of the session's, it ends the session, and nobody is told why. ``owned``: it ran in such a task.
    """
    failure = failure_in(error, owned=owned)
    if failure is None or parted(failure)[0] is None:
        return failure
    told = RuntimeError(f"{what} was cancelled by nobody but itself: {shown(failure)}")
    told.__cause__ = failure
    return told


def breakdown_of(error: BaseException) -> BaseException | None:
    """What a session is to be ended with, for what a task of its own met outside of any tool; None if cancelled."""
    if (leaving := exit_in(error)) is not None:
        return leaving
    cancellation, rest = parted(error)
    if cancellation is not None and rest is None:
        if not _is_nobodys(error):
            return None
        rest = RuntimeError(f"a cancellation that nobody asked for: {shown(error)}")
        rest.__cause__ = error
    assert rest is not None
    add_note(rest, "in a task of the manager's own, outside of any tool: the session was ended for it")
    return rest


def breakdown_between(error: BaseException) -> BaseException | None:
    """As `breakdown_of`, where none of the user's code ran that might have raised a cancellation by itself."""
    return None if parted(error)[0] is error else breakdown_of(error)


def _is_nobodys(cancellation: BaseException, *, owned: bool = True) -> bool:
    return not isinstance(cancellation, GeneratorExit) and is_self_inflicted(owned=owned)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
