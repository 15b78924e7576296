"""What the blocking manager gives out: calls, views with options, outcomes to iterate over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from ._events import CallEvents, CallProgress, CallState
from ._outcome import Outcome
from ._stream import Unentered

__all__ = ["BlockingCall", "BlockingOpening", "BlockingOptions", "Door"]


class Door(Protocol):
    """The way to the manager's loop, in its thread."""

    def _ask(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any: ...


class BlockingCall:
    """A call of a `BlockingManager`, made by ``submit``."""

    def __init__(self, door: Door, call: Any) -> None:
        self._door = door
        self._call = call

    @property
    def id(self) -> str:
        """As in the evidence."""
        return str(self._call.id)

    @property
    def name(self) -> str:
        """As of `Call`."""
        return str(self._call.name)

    @property
    def status(self) -> str:
        """As of `Call`."""
        return str(self._call.status)

    @property
    def progress(self) -> CallProgress | None:
        """As of `Call`."""
        latest: CallProgress | None = self._call.progress
        return latest

    def events(self) -> Iterator[CallProgress | CallState]:
        """As of `Call`, as a plain iterator."""

        async def read() -> CallEvents:
            events: CallEvents = self._call.events()
            return events

        events: CallEvents = self._door._ask(read)
        while (event := self._door._ask(events.__anext__)) is not None:
            yield event

    def result(self) -> Any:
        """Wait for the value."""
        return self._door._ask(self._call.result)

    def outcome(self) -> Outcome[Any]:
        """Wait for the outcome."""
        outcome: Outcome[Any] = self._door._ask(self._call.outcome)
        return outcome

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, ``timeout`` seconds at the most; whether it has ended."""
        return bool(self._door._ask(self._call.wait, timeout))

    def cancel(self, reason: str = "") -> bool:
        """Cancel it."""

        async def cancel() -> bool:
            return bool(self._call.cancel(reason))

        return bool(self._door._ask(cancel))


class BlockingOptions:
    """How one call is made; from ``BlockingManager.options``. As of `CallOptions`."""

    def __init__(self, door: Door, view: Any) -> None:
        self._door = door
        self._view = view

    def execute(self, tool: Any, /, *args: Any, **inputs: Any) -> Any:
        """As ``ServiceManager.execute``."""
        return self._door._ask(lambda: self._view.execute(tool, *args, **inputs))

    def outcome(self, tool: Any, /, *args: Any, **inputs: Any) -> Outcome[Any]:
        """As ``ServiceManager.outcome``."""
        outcome: Outcome[Any] = self._door._ask(lambda: self._view.outcome(tool, *args, **inputs))
        return outcome

    def submit(self, tool: Any, /, *args: Any, **inputs: Any) -> BlockingCall:
        """As ``ServiceManager.submit``."""

        async def submit() -> Any:
            return self._view.submit(tool, *args, **inputs)

        return BlockingCall(self._door, self._door._ask(submit))


class BlockingOpening(Unentered):
    """What `map` and `stream` give here: a context manager over outcomes, for one use."""

    def __init__(self, what: str, context: AbstractContextManager[Iterator[Outcome[Any]]]) -> None:
        super().__init__(f"write 'with {what}(...) as outcomes:', and in it 'for outcome in outcomes:'")
        self._context = context

    def __enter__(self) -> Iterator[Outcome[Any]]:
        return self._context.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._context.__exit__(exc_type, exc, tb)

    if not TYPE_CHECKING:
        __aenter__ = __aexit__ = Unentered._refuse
