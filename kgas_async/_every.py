"""`Every`: a service that runs a tool again and again. Knows its manager only as what makes calls."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio

from ._context import current_manager
from ._errors import ManagerClosed
from ._limits import check_seconds
from ._outcome import Outcome
from ._policy_checks import services_of
from ._service import Service
from ._suggest import nearest, suggests
from ._tool import KGASTool, no_tool_error

__all__ = ["Every"]

OVERLAPPING: Final = 100  # runs at once; a tool that is slower than its ticks must not pile up without end
TOLERANCE: Final = 1e-6  # of a tick: whether one is due now or is over


class Every(Service):
    """Runs a tool every so many seconds, for as long as the session lasts: ``ServiceManager(Every(60, check))``.

    The first run begins ``seconds`` after the start, the others at multiples of it, on the loop's clock: they do not
    drift. Each is a call of the manager's, with its tool's policy; a failure is on record and does not end the rest.

    Args:
        seconds: From one begin to the next.
        tool: The tool.
        inputs: Its inputs, the same each time.
        overlap: Whether a run may begin while one still runs, up to 100 of them. Else what was missed meanwhile is
            skipped and counted.

    Attributes:
        runs: How many have ended.
        failed: Those of them that did not succeed; cancelled ones do not count.
        skipped: Ticks at which none began.
        last: The `Outcome` of the one that ended last, or None.

    Raises:
        TypeError, ValueError: Inputs that the tool does not take, or not all that it needs; no time between runs.
    """

    @suggests
    def __init__(
        self, seconds: float, tool: KGASTool, inputs: Mapping[str, Any] | None = None, *, overlap: bool = False
    ) -> None:
        self.seconds = check_seconds("seconds", seconds, zero=False)
        if not isinstance(tool, KGASTool):
            raise no_tool_error("Every takes a tool", tool)
        self.tool = tool
        self.inputs = dict(inputs or {})
        self.overlap = overlap
        self.name = f"Every({seconds:g}, {tool.name})"
        self.runs = self.failed = self.skipped = 0
        self.last: Outcome[Any] | None = None
        self._open = 0
        self._is_over = False
        _check_inputs(tool, self.inputs)

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def requires(self) -> tuple[Any, ...]:
        """The services of its tool."""
        return services_of(self.tool)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs the tool until it is left.

        Cancellation: As leaving it: what runs is cancelled and waited for.
        """
        self._is_over = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tick, tasks, current_manager())
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _tick(self, tasks: Any, manager: Any) -> None:
        began = anyio.current_time()
        number = 0
        while not self._is_over:
            number += 1
            due = math.ceil((anyio.current_time() - began) / self.seconds - TOLERANCE)
            if due > number:
                self.skipped += due - number
                number = due
            await anyio.sleep_until(began + number * self.seconds)
            if not self.overlap:
                await self._run(manager)
            elif self._open < OVERLAPPING:
                tasks.start_soon(self._run, manager)
            else:
                self.skipped += 1

    async def _run(self, manager: Any) -> None:
        self._open += 1
        try:
            outcome = await manager.outcome(self.tool, **self.inputs)
        finally:
            self._open -= 1
        if isinstance(outcome.error, ManagerClosed):
            self._is_over = True  # the session is draining
            return
        self.last = outcome
        self.runs += 1
        if not outcome.ok and outcome.status != "cancelled":
            self.failed += 1


def _check_inputs(tool: KGASTool, inputs: Mapping[str, Any]) -> None:
    signature = tool.signature
    known = signature.those_of_mine(inputs)
    for name in inputs:
        if name not in known:
            raise TypeError(
                f"{name!r} is no input of tool {tool.name!r}; it takes {', '.join(signature.types) or 'none'}"
                f"{nearest(name, signature.types)}"
            )
    missing = sorted(signature.required - inputs.keys())
    if missing:
        raise TypeError(f"tool {tool.name!r} needs {missing[0]!r} too: Every(..., inputs={{{missing[0]!r}: ...}})")
