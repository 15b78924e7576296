"""A run-level collect that reads while the run goes on: values in source order, as far as they are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Self

from ._mailbox import Mailbox

__all__ = ["NOTHING", "LiveFeed"]

NOTHING: Final = object()  # stands for an item that has no value for the feed


class LiveFeed:
    """An async iterator over one value per item, in source order; one task reads it.

    Values that nobody has read hold the source up, see `position`.
    """

    def __init__(self, mailbox: Mailbox, read: Callable[[Any], Any], on_read: Callable[[], object]) -> None:
        self._mailbox = mailbox
        self._read = read
        self._on_read = on_read
        self._values: dict[int, Any] = {}
        self._position = 0
        self._gate: Any = None
        self._ended = False
        self.closed = False

    @property
    def position(self) -> float:
        """The index of the item that comes next; beyond all items once nobody reads any more."""
        return float("inf") if self.closed else self._position

    def put(self, index: int, value: Any) -> None:
        """An item has ended, with a value or with `NOTHING`."""
        if self.closed:
            return
        self._values[index] = value
        if index == self._position:
            self._wake()

    def end(self) -> None:
        """There are no more items."""
        self._ended = True
        self._wake()

    def close(self) -> None:
        """Nobody reads it any more."""
        self.closed = True
        self._values.clear()
        self._on_read()

    def _wake(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next value; waits for it.

        Raises:
            PipelineError: It cannot be read.

        Cancellation: Takes nothing.
        """
        while True:
            while self._position in self._values:
                value = self._values.pop(self._position)
                self._position += 1
                self._on_read()
                if value is not NOTHING:
                    return self._read(value)
            if self._ended:
                raise StopAsyncIteration
            if self._gate is not None:
                raise RuntimeError("the live stream is read by one task at a time")
            gate = self._gate = self._mailbox.gate()
            try:
                await gate.wait()
            finally:
                if self._gate is gate:
                    self._gate = None
