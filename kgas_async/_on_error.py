"""`OnError`: when the failure of items becomes the failure of the whole. A pure decision."""

from __future__ import annotations

from typing import Any, Final

from ._errors import CallError, PipelineError
from ._outcome import Outcome

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

    def verdict(self, outcome: Outcome[Any], done: int, failed: int) -> BaseException | None:
        """The error that ends the whole after this failed item, None to go on."""
        if self._on_error == "raise":
            return outcome.error or CallError(f"item {outcome.key} was {outcome.status}")
        if isinstance(self._on_error, float) and done >= SHARE_FROM and failed / done > self._on_error:
            return PipelineError(
                f"{failed} of {done} items have failed, more than on_error={self._on_error} allows; the last: "
                f"{outcome.error}"
            )
        return None
