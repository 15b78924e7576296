"""`LeftBehind`: abandoned threads, on record until they end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from ._errors import CallRejected
from ._threads import Work

__all__ = ["LeftBehind"]


class Owner(Protocol):
    """Whose they are."""

    log: Any
    is_closed: bool


class LeftBehind:
    """The works of abandoned threads that still run, and whose they are."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._calls: dict[Work, Any] = {}  # the call, or the name of a service

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Work]:
        return iter(self._calls)

    def refusal(self, most: int) -> CallRejected | None:
        """The error of a sync call where so many abandoned threads still run."""
        if len(self._calls) < most:
            return None
        return CallRejected(
            f"{most} abandoned threads still run (max_abandoned): no further sync call is admitted until some end; "
            f"make the tools that hang look at check_cancelled(), or raise max_abandoned"
        )

    def ids(self) -> list[str]:
        """The ids of their calls, the names of their services."""
        return [whose if isinstance(whose, str) else whose.id for whose in self._calls.values()]

    def by_name(self) -> dict[str, int]:
        """How many there are of each tool and service."""
        left = list(self._calls.values())  # one may end meanwhile
        return dict(Counter(f"service {one}" if isinstance(one, str) else one.tool_name for one in left))

    def holds(self, state: object) -> bool:
        """Whether one of that tool name is among them."""
        return any(not isinstance(call, str) and call.bound.state is state for call in self._calls.values())

    def add(self, call: Any, work: Work) -> None:
        """A thread was abandoned."""
        instance = "serial" if call.bound.execution.serial else None  # that blocks the tool's next calls
        self._add(call, work, instance=instance)

    def add_errand(self, service: str, work: Work) -> None:
        """A thread that ran no tool, but something for a service, was abandoned."""
        self._add(service, work)

    def _add(self, whose: Any, work: Work, **fields: Any) -> None:
        self._calls[work] = whose
        work.on_done = lambda: self._ended(whose, work)
        self._say("thread.abandoned", whose, **fields)

    def _ended(self, whose: Any, work: Work) -> None:
        self._calls.pop(work, None)
        self._say(
            "thread.ended",
            whose,
            run_us=(work.ended_ns - work.started_ns) // 1000,
            status="failed" if work.error is not None else "succeeded",
        )

    def _say(self, event: str, whose: Any, **fields: Any) -> None:
        if self._owner.log is None or self._owner.is_closed:  # its evidence has had its last record then
            return
        if isinstance(whose, str):
            self._owner.log.emit(event, service=whose, **fields)
        else:
            self._owner.log.emit(event, call_id=whose.id, tool=whose.tool_name, attempt=whose.attempt, **fields)
