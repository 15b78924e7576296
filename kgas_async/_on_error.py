"""`OnError`: when the failure of items becomes the failure of the whole. A pure decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ._errors import CallError, PipelineError
from ._outcome import Outcome, place_of
from ._report import Progress

__all__ = ["OnError"]

SHARE_FROM: Final = 20  # finished items before a share of failed ones means anything


class OnError:
    """What ``on_error=`` says: ``"collect"``, ``"raise"``, or a share of failed items from 0.0 to 1.0.

    Raises:
        ValueError: It is something else.
    """

    def __init__(self, on_error: object) -> None:
        if on_error not in ("collect", "raise") and not (isinstance(on_error, float) and 0 <= on_error <= 1):
            raise ValueError(
                f"on_error is 'collect', 'raise' or a share of failed items from 0.0 to 1.0, not {on_error!r}"
            )
        self._on_error = on_error
        self._last: Outcome[Any] | None = None

    def verdict(self, outcome: Outcome[Any], done: int, failed: int) -> BaseException | None:
        """The error that ends the whole after this failed or cancelled item, None to go on."""
        if outcome.status != "cancelled":
            self._last = outcome
        if self._on_error == "raise":
            return outcome.error or CallError(f"item {outcome.key} was {outcome.status}")
        if isinstance(self._on_error, float) and done >= SHARE_FROM and failed / done > self._on_error:
            last = self._last or outcome
            return PipelineError(
                f"{failed} of {done} items have failed, more than on_error={self._on_error} allows; the last: "
                f"{place_of(last)}: {last.error}"
            )
        return None

    def is_early(self, done: int, failed: int) -> bool:
        """Whether this was the first failure, and comes before a share means anything: then `watched` is called for."""
        return failed == 1 and done < SHARE_FROM and isinstance(self._on_error, float)

    def watched(
        self, on_progress: Callable[[Progress], object] | None, is_stopped: Callable[[], bool]
    ) -> Callable[[Progress], object]:
        """What is to be called after each outcome, since it may be a success that makes the early failures a share."""

        def watch(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(progress)
            if progress.done == SHARE_FROM and self._last is not None and not is_stopped():
                error = self.verdict(self._last, progress.done, progress.failed)
                if error is not None:
                    raise error

        return watch
