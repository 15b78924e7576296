"""Workers of a crew: hired as others wait, parked without work, woken when there is some."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from ._employer import Employer
from ._limits import check_count
from ._mailbox import Gate, nested_context
from ._report import Progress
from ._tally import Tally

__all__ = ["Staff"]


class Staff(Tally):
    """How many workers there are, and which of them sleep.

    Args:
        home: The manager.
        in_flight: Workers at the most.
        options: As of `Tally`.
    """

    def __init__(
        self,
        home: Employer,
        in_flight: int,
        total: int | None,
        on_error: str | float,
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        super().__init__(total, on_error, on_progress)
        self.home = home
        self.in_flight = check_count("in_flight", in_flight)
        self._workers = 0
        self._parked: deque[Gate] = deque()
        self._coming = 0  # hired or woken, and not at work yet
        self._hiring = False
        self._context = nested_context(home.mailbox.backend)
        self.on_release: Callable[[Sequence[Any]], object] | None = None  # as of a `Host`

    @abstractmethod
    async def _work(self) -> None:
        """What a worker does, from its hiring to its end."""

    def _is_wanted(self) -> bool:
        """Whether one more worker would find something to do; True where that can only be seen by looking."""
        return True

    def wake_one(self) -> None:
        """A worker waits for something, or there is more to take: one more may work meanwhile."""
        if self._coming:  # who comes will take what there is, and call the next once it waits itself
            return
        if self._parked:
            if self._is_wanted():
                self._wake_parked()
        elif not self._hiring and self._workers < self.in_flight and not self.stopped and self._is_wanted():
            self._hire()

    def _hire(self) -> None:
        self._hiring = True
        self._workers += 1
        self._coming += 1
        # Who hires it may be anybody who gives a token back, or no task at all, but a callback of the loop.
        self._context.run(self.home.spawn, self._work)

    def _came(self) -> None:
        """To be called by a worker first of all."""
        self._hiring = False
        self._coming -= 1

    def _wake_parked(self) -> None:
        self._coming += 1
        self._parked.popleft().set()

    def _wake_all_parked(self) -> None:
        while self._parked:
            self._wake_parked()

    async def _park(self, until: float) -> None:
        self._parked.append(event := self.home.mailbox.gate())
        try:
            if until == float("inf"):
                await event.wait()
            else:
                with anyio.CancelScope(deadline=until):
                    await event.wait()
        finally:
            if event.is_set():
                self._coming -= 1
            else:
                self._parked.remove(event)
