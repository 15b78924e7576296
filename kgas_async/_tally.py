"""How many items have ended, and how: who is told of it, and whether so many failures end the whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from ._cancellation import breakdown_of
from ._offload import refuse_coroutine
from ._on_error import OnError
from ._outcome import Outcome
from ._report import Pace, Progress

__all__ = ["Tally"]


class Tally(ABC):
    """What a crew counts.

    Args:
        total: How many items there are, None where nobody knows.
        on_error: As of `OnError`.
        on_progress: Told after each item.
    """

    def __init__(
        self, total: int | None, on_error: str | float, on_progress: Callable[[Progress], object] | None
    ) -> None:
        self._on_error = OnError(on_error)
        self._on_progress = on_progress
        self.total = total
        self._pace = Pace(total)
        self.done = self.failed = self.cancelled = self.skipped = 0
        self.stopped = False  # told to stop
        self.gave_up = False  # on_error= has ended it
        self.has_cancelled = False  # an outcome is that of a cancelled call

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """End the whole; the error is raised where outcomes are taken."""

    @abstractmethod
    def break_down(self, error: BaseException) -> None:
        """End the session."""

    def count_failure(self, outcome: Outcome[Any]) -> None:
        """An item that is among ``done`` has not succeeded."""
        if outcome.status in ("reused", "skipped"):
            self.skipped += outcome.status == "skipped"
            return
        is_cancelled = outcome.status == "cancelled"
        self.cancelled += is_cancelled
        self.failed += not is_cancelled
        if self.stopped:
            return
        if is_cancelled:
            self.has_cancelled = True
        error = self._on_error.verdict(outcome, self.done, self.failed)
        if error is not None:
            self.gave_up = True
            self.fail(error)
        elif not is_cancelled and self._on_error.is_early(self.done, self.failed):
            self._on_progress = self._on_error.watched(self._on_progress, lambda: self.stopped)

    def tell_progress(self) -> None:
        """An item has ended."""
        assert self._on_progress is not None
        try:
            said = self._on_progress(self._pace.progress(self.done, self.failed, self.cancelled))
            refuse_coroutine(said, self._on_progress, "use a plain function")
        except Exception as error:  # noqa: BLE001
            self.fail(error)
        except BaseException as error:  # noqa: BLE001
            self._on_progress = None  # what is cut off is not told of any more
            self.break_down(breakdown_of(error) or error)
