"""Who holds which limits: what would be a deadlock is refused at once, with the names of both tools.

A call holds the limits of its policy (``holds``); a task holds those that it has entered by ``async with``. To want
what one's own chain holds, or to take limits in an order against one that was seen before, is refused. Knows limits
only as objects.
"""

from __future__ import annotations

from contextvars import ContextVar
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from ._context import current_call
from ._mailbox import Mailbox

__all__ = [
    "Hold",
    "call_here",
    "held_by",
    "held_here",
    "hold",
    "is_reentry",
    "let_go",
    "taken_against",
    "waits_in_vain",
]


class Hold:
    """A token that a task has taken by ``async with``, and when (in the time of its mailbox).

    Attributes:
        door: What it was taken of: the limit, or one key of it.
    """

    __slots__ = ("began", "door", "is_live", "limit", "task")

    def __init__(self, limit: Any, door: Any, task: object, began: float) -> None:
        self.limit = limit
        self.door = door
        self.task = task
        self.began = began
        self.is_live = True


# In the context, so that code that runs for this task finds them; tasks that were started meanwhile inherit the
# variable, but they are other tasks, which may well outlast the block.
_holds: ContextVar[tuple[Hold, ...]] = ContextVar("kgas_async_holds", default=())


def call_here() -> Any:
    """The call that this code runs in, if it is one of this process, whose limits these are; else None."""
    call: Any = current_call.get()
    return call if hasattr(call, "holds") else None


def hold(limit: Any, door: Any, task: object, began: float) -> None:
    """This task has a token now."""
    _holds.set((*held_by(task), Hold(limit, door, task, began)))


def let_go(limit: Any, task: object) -> Hold | None:
    """This task gives a token back. None where it was taken in another context.

    Its own, else one that a task has taken which this one was started in: a stack of exits may be left to another.
    """
    found = [one for one in reversed(_holds.get()) if one.limit is limit and one.is_live]
    found.sort(key=lambda one: one.task is not task)
    if not found:
        return None
    found[0].is_live = False
    found[0].task = None
    _holds.set(held_by(task))
    return found[0]


def held_by(task: object) -> tuple[Hold, ...]:
    """What this task has entered and not left."""
    holds = _holds.get()
    return tuple(one for one in holds if one.is_live and one.task is task) if holds else ()


def held_here() -> tuple[Hold, ...]:
    """What code around this has entered and not left, if its task waits for what comes now; mostly nothing."""
    return held_by(Mailbox.here().task()) if _holds.get() else ()


def waits_in_vain(call: Any, limit: Any, door: Any, here: tuple[Hold, ...] = ()) -> bool:
    """Whether all tokens that could be had here are entered by code that waits for the call.

    Or for one that it is nested in, in whatever task or thread; code outside of all calls included.

    Args:
        call: That wants one.
        limit: The limit.
        door: The same, or one key of it.
        here: What this code has entered, where that is to wait.
    """
    found = {one for one in here if one.limit is limit}
    while call is not None:
        found.update(one for one in call.around if one.is_live and one.limit is limit)
        call = None if call.is_submitted else call.parent  # nobody need wait for that one
    if not found or len(found) >= limit.total:
        return bool(found)
    return door is not limit and sum(one.door is not limit and one.door.key == door.key for one in found) >= door.most


def is_reentry(limit: Any, task: object) -> bool:
    """Whether this task, about to enter a limit, holds it already, and the limit does not mind.

    Raises:
        RuntimeError: It would wait for itself, or, inside a call, take limits in an order that others have not kept.
    """
    call = call_here()
    mine = "this code" if call is None else f"tool {call.tool_name!r}"
    found = False
    for one in held_by(task):
        if one.limit is limit:
            if not limit.is_reentrant:
                raise RuntimeError(
                    f"{mine} enters {limit!r}, which the same task has entered already: it would wait for itself; take "
                    f"one token around both, or use two limits"
                )
            found = True
        elif call is not None:
            _refuse_other_order(one.limit, limit, mine, (call.tool_name, call.tool_name))
    while call is not None:
        for held in call.holds:
            if held is limit:
                if not limit.is_reentrant:
                    raise RuntimeError(
                        f"{mine} enters {limit!r}, a token of which tool {call.tool_name!r} holds by its policy for as "
                        f"long as it runs: it would wait for itself; leave out one of the two"
                    )
                found = True
            else:
                _refuse_other_order(held, limit, mine, (call.tool_name, call.tool_name))
        call = call.parent
    return found


def _refuse_other_order(held: Any, wanted: Any, mine: str, tools: tuple[str, str]) -> None:
    others = taken_against(held, wanted, tools)
    if others is not None:
        raise RuntimeError(
            f"{mine} enters {wanted!r} while {held!r} is held; tools {others[0]!r} and {others[1]!r} have taken them "
            f"in the other order, so that all could wait for each other: keep to one order"
        )


# Which limits were wanted while another was held, and by which tools; of all managers, as the limits are.
_wanted_after: WeakKeyDictionary[Any, WeakKeyDictionary[Any, tuple[str, str]]] = WeakKeyDictionary()
_lock = Lock()


def taken_against(held: Any, wanted: Any, tools: tuple[str, str]) -> tuple[str, str] | None:
    """The tools that took ``held`` while they held ``wanted``, at once or in steps; else this order is remembered."""
    with _lock:
        after = _wanted_after.setdefault(held, WeakKeyDictionary())
        if wanted in after:
            return None
        reached, left = {wanted}, [wanted]
        while left:
            for limit, others in _wanted_after.get(left.pop(), {}).items():
                if limit is held:
                    return others
                if limit not in reached:
                    reached.add(limit)
                    left.append(limit)
        after[wanted] = tools
        return None
