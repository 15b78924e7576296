"""What the blocking manager gives out: calls, views with options, outcomes to iterate over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from ._call import Call
from ._errors import ManagerClosed
from ._events import CallEvents, CallProgress, CallState
from ._outcome import Outcome
from ._stream import Unentered
from ._tool import KGASTool

__all__ = ["BlockingCall", "BlockingOpening", "BlockingOptions", "Door"]


class Door(Protocol):
    """The way to the manager's loop, in its thread."""

    def _ask(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any: ...


class BlockingCall:
    """A call of a `BlockingManager`, made by ``submit``. It keeps its result when the manager was left."""

    def __init__(self, door: Door, call: Call[Any]) -> None:
        self._door = door
        self._call = call

    def __repr__(self) -> str:
        return f"<Blocking{repr(self._call)[1:]}"

    @property
    def id(self) -> str:
        """As in the evidence."""
        return self._call.id

    @property
    def name(self) -> str:
        """As of `Call`."""
        return self._call.name

    @property
    def tool(self) -> KGASTool:
        """As of `Call`."""
        return self._call.tool

    @property
    def inputs(self) -> Mapping[str, Any]:
        """As of `Call`."""
        return self._call.inputs

    @property
    def status(self) -> str:
        """As of `Call`."""
        return self._call.status

    @property
    def attempt(self) -> int:
        """As of `Call`."""
        return self._call.attempt

    @property
    def reason(self) -> str:
        """As of `Call`."""
        return self._call.reason

    @property
    def started(self) -> float | None:
        """As of `Call`."""
        return self._call.started

    @property
    def duration(self) -> float:
        """As of `Call`."""
        return self._call.duration

    @property
    def has_ended(self) -> bool:
        """As of `Call`."""
        return self._call.has_ended

    @property
    def progress(self) -> CallProgress | None:
        """As of `Call`."""
        return self._call.progress

    def events(self) -> Iterator[CallProgress | CallState]:
        """As of `Call`, as a plain iterator."""

        async def read() -> CallEvents:
            return self._call.events()

        events: CallEvents = self._asked(read, self._call.events)
        while (event := self._asked(events.__anext__, events.next_kept)) is not None:
            yield event

    def result(self) -> Any:
        """Wait for the value."""
        return self._asked(self._call.result, self._call.unwrap)

    def outcome(self) -> Outcome[Any]:
        """Wait for the outcome."""
        outcome: Outcome[Any] = self._asked(self._call.outcome, self._call.to_outcome)
        return outcome

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; never ends it.

        Args:
            timeout: Seconds to wait at the most.

        Returns:
            Whether it has ended.
        """
        return bool(self._asked(lambda: self._call.wait(timeout), lambda: True))

    def cancel(self, reason: str = "") -> bool:
        """As `Call.cancel`, with this ``reason``: whether there was something to cancel."""

        async def cancel() -> bool:
            return self._call.cancel(reason)

        return bool(self._asked(cancel, lambda: False))

    def _asked(self, function: Callable[[], Awaitable[Any]], ended: Callable[[], Any]) -> Any:
        """What the loop's thread says, or what is to be said of a call that has ended with its manager."""
        try:
            return self._door._ask(function)
        except ManagerClosed:
            if not self._call.has_ended:
                raise
        return ended()


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
