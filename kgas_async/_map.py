"""`manager.map`: one tool over many inputs, by a crew of shared workers."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import Any

from ._call import Bound, Host
from ._crew import Crew, Employer
from ._path import perform

__all__ = ["MapCrew"]


class MapCrew(Crew[Any]):
    """Workers that make one call per item of the source."""

    def __init__(
        self, home: Employer, bound: Bound, source: Iterable[Any] | AsyncIterable[Any], arg: str | None, **options: Any
    ) -> None:
        super().__init__(home, source, **options)
        self._bound = bound
        self._arg = arg

    async def process(self, host: Host, unit: Any) -> int:
        """One call."""
        index, inputs = unit
        if self._arg is not None:
            inputs = {self._arg: inputs}
        call = self.home.new_call(self._bound, inputs, self.parent)
        call.index = index
        call._host = host
        host.call = call
        try:
            if self._bound.isolated:
                await self.home.run_isolated(call)
            else:
                await perform(call)
        finally:
            host.call = None
            outcome = call.to_outcome()
            outcome.key = str(index)
            self.deliver(index, outcome)
        return call.ended_ns
