"""`LeftBehind`: abandoned threads, on record until they end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from ._threads import Work

__all__ = ["LeftBehind"]


class Owner(Protocol):
    """Whose they are."""

    log: Any
    is_closed: bool


class LeftBehind:
    """The works of abandoned threads that still run, with their calls."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._calls: dict[Work, Any] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Work]:
        return iter(self._calls)

    def ids(self) -> list[str]:
        """The ids of their calls."""
        return [call.id for call in self._calls.values()]

    def holds(self, state: object) -> bool:
        """Whether one of that tool name is among them."""
        return any(call.bound.state is state for call in self._calls.values())

    def add(self, call: Any, work: Work) -> None:
        """A thread was abandoned."""
        self._calls[work] = call
        work.on_done = lambda: self._ended(call, work)
        instance = "serial" if call.bound.execution.serial else None  # that blocks the tool's next calls
        self._say("thread.abandoned", call, instance=instance)

    def _ended(self, call: Any, work: Work) -> None:
        self._calls.pop(work, None)
        self._say(
            "thread.ended",
            call,
            run_us=(work.ended_ns - work.started_ns) // 1000,
            status="failed" if work.error is not None else "succeeded",
        )

    def _say(self, event: str, call: Any, **fields: Any) -> None:
        if self._owner.log is not None and not self._owner.is_closed:  # its evidence has had its last record then
            self._owner.log.emit(event, call_id=call.id, tool=call.tool_name, attempt=call.attempt, **fields)
