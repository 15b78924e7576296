"""The source of items: opened once, and closed where it is left early."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sized
from types import GeneratorType
from typing import Any

import anyio

__all__ = ["close_source", "closed_for_open_scope", "length_of", "open_source"]


def open_source(source: object) -> tuple[Iterator[Any] | None, AsyncIterator[Any] | None]:
    """The iterator of a source, or its async iterator.

    Raises:
        TypeError: It is neither iterable nor async iterable.
    """
    if isinstance(source, AsyncIterable):
        return None, aiter(source)
    if isinstance(source, Iterable):
        return iter(source), None
    raise TypeError(f"items is an iterable or an async iterable, not {source!r}")


def length_of(source: object) -> int | None:
    """How many items it has, None where it does not say, or where Python cannot: a range may be too long for `len`."""
    try:
        return len(source) if isinstance(source, Sized) else None
    except Exception:  # noqa: BLE001  (some have the method only to raise)
        return None


async def close_source(iterator: Iterator[Any] | None, asynchronous: AsyncIterator[Any] | None, grace: float) -> None:
    """Have a generator run its ``finally`` now; other iterators, such as open files, are their owner's to close.

    Cancellation: Waited out, ``grace`` seconds at the most.
    """
    if isinstance(iterator, GeneratorType) and not iterator.gi_running:
        iterator.close()
    closing = getattr(asynchronous, "aclose", None)
    if closing is not None:
        with anyio.CancelScope(deadline=anyio.current_time() + grace, shield=True):
            await closing()


async def closed_for_open_scope(asynchronous: AsyncIterator[Any]) -> RuntimeError:
    """A source that gave an item inside a scope of its own, which no other task can leave: it is left here, and told.

    Returns:
        The error that says what to do instead.
    """
    closing = getattr(asynchronous, "aclose", None)
    if closing is not None:
        try:
            await closing()
        except BaseExceptionGroup as group:  # a task group wraps also what merely closes the generator
            if (rest := group.split(GeneratorExit)[1]) is not None:
                raise rest from None
    return RuntimeError(
        "it yields inside a task group or a cancel scope, which would have to be left in another task than it was "
        "entered in: give the scope to a task of its own, and pass items on through a memory object stream"
    )
