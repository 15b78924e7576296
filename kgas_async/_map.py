"""`manager.map`: one tool over many inputs, by a crew of shared workers."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Iterable
from typing import Any

from ._bound import Bound
from ._call import Call
from ._crew import Crew
from ._employer import Employer
from ._flat import begin
from ._host import Host
from ._outcome import Outcome, lost_outcome

__all__ = ["MapCrew"]


class MapCrew(Crew[Any]):
    """Workers that make one call per item of the source."""

    def __init__(
        self, home: Employer, bound: Bound, source: Iterable[Any] | AsyncIterable[Any], arg: str | None, **options: Any
    ) -> None:
        super().__init__(home, source, **options)
        self._bound = bound
        self._arg = arg
        self._name = bound.name

    take = Crew.next_item

    def process(self, host: Host, unit: Any) -> Awaitable[None] | None:
        """One call; its outcome is delivered as it ends."""
        index, inputs = unit
        if self._arg is not None:
            inputs = {self._arg: inputs}
        call = self.home.new_call(self._bound, inputs, self.parent)
        if self.around:
            call.around = self.around
        call.index = index
        call.on_end = self._ended
        call._host = host
        host.call = call
        return self.home.run_isolated(call) if self._bound.isolated else begin(call)

    def lose(self, host: Host, unit: Any, error: BaseException) -> None:
        """Its call is left open, or was not even made."""
        outcome = lost_outcome(str(unit[0]), unit[0], error)
        if host.call is not None:
            host.call.end("failed", outcome.error)
        elif not self.is_delivered(unit[0]):
            self.deliver(unit[0], outcome)

    def _ended(self, call: Call[Any]) -> None:
        host = call._host
        if host is not None:
            host.call = None
        self.last_ended_ns = call.ended_ns
        if call.status == "succeeded" and not call.waited:
            self.deliver(
                call.index,
                Outcome("succeeded", call.value, None, None, call.index, self._name, call.attempt, 0, call.run_ns),
            )
        else:
            self.deliver(call.index, call.to_outcome())
