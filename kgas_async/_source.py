"""The source of items: opened once, and closed where it is left early."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from types import GeneratorType
from typing import Any

import anyio

__all__ = ["close_source", "open_source"]


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
