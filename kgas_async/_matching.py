"""Which errors a policy means: types, or a function of the error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeAlias

from ._errors import CallTimeout

__all__ = ["ErrorMatch", "checked_match", "matches", "refuse_async"]

ErrorMatch: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[BaseException], bool]


def refuse_async(what: str, function: object) -> None:
    """Refuse a function that would have to be awaited, where the answer is needed at once.

    Raises:
        TypeError: It is one; what it gave would be a coroutine, which is true, and like no other.
    """
    call = getattr(function, "__call__", None)  # noqa: B004  (that of an object)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
        raise TypeError(f"{what} is a plain function, asked without waiting, not an async one: {function!r}; use 'def'")


def checked_match(what: str, on: ErrorMatch) -> ErrorMatch:
    """
    Raises:
        TypeError: It is neither types of Exception nor a function.
    """
    types = on if isinstance(on, tuple) else (on,)
    is_function = callable(on) and not isinstance(on, type)
    if not is_function and not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in types):
        ends = [kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseException)]
        why = "; what ends a program or a task is no failure of a tool" if len(ends) == len(types) else ""
        raise TypeError(f"{what} is a type of Exception, a tuple of them, or a function of the error, not {on!r}{why}")
    refuse_async(what, on)
    return on


def matches(on: ErrorMatch, error: BaseException) -> bool:
    """Whether they mean this error.

    `CallTimeout` is an ``OSError``, since Python's ``TimeoutError`` is one; but who names ``OSError`` means files and
    sockets, and not our timeouts: those are meant by ``CallTimeout``, ``TimeoutError`` and what is above both.
    """
    if not isinstance(on, (type, tuple)):
        return bool(on(error))
    if isinstance(error, CallTimeout):
        kinds = on if isinstance(on, tuple) else (on,)
        return any(kind is not OSError and isinstance(error, kind) for kind in kinds)
    return isinstance(error, on)
