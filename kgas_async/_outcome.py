"""What came of a call, or of an item of a pipeline: `Outcome`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from ._errors import CallCancelled, PipelineError, shown

__all__ = ["SUCCESSES", "Outcome", "lost_outcome", "place_of"]

R = TypeVar("R")

SUCCESSES: Final = ("succeeded", "reused")  # the statuses of those that have a value


class Outcome(Generic[R]):
    """What came of one call, or of one source item of a pipeline.

    Attributes:
        status: ``succeeded``, ``reused`` (the value of another call, or of a journal), ``failed``, ``timed_out``,
            ``cancelled``, ``rejected``, ``skipped``.
        value: The result, None unless there is one. For an item: that of the only leaf among its phases, else a dict by
            leaf.
        error: The error, None if succeeded.
        key: The item's key; for a call of a map its index as a string.
        index: The place in the source, from 0; -1 for a single call.
        tool: The tool that gave the value: a fallback, where that was used.
        attempts: Attempts begun, hedges among them.
        wait_s: Seconds spent waiting for limits, retries and a thread.
        run_s: Seconds spent running.
        phases: For items: the outcomes of its phases by name; of an expanded phase a list in order.
        failed_phase: For items: the phase that failed, or None.
    """

    # Made once per item of large maps: few fields, and nothing that keeps the call alive.
    __slots__ = (
        "_key",
        "_phases",
        "_run_ns",
        "_wait_ns",
        "attempts",
        "error",
        "failed_phase",
        "index",
        "status",
        "tool",
        "value",
    )

    def __init__(
        self,
        status: str,
        value: R | None,
        error: BaseException | None,
        key: str | None,
        index: int,
        tool: str = "",
        attempts: int = 0,
        wait_ns: int = 0,
        run_ns: int = 0,
        failed_phase: str | None = None,
        phases: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self.status = status
        self.value = value
        self.error = error
        self._key = key
        self.index = index
        self.tool = tool
        self.attempts = attempts
        self._wait_ns = wait_ns
        self._run_ns = run_ns
        self.failed_phase = failed_phase
        self._phases: Any = phases

    @property
    def key(self) -> str:
        """The item's key; its index where it has none; nothing for a single call."""
        if self._key is not None:
            return self._key
        return str(self.index) if self.index >= 0 else ""

    @property
    def wait_s(self) -> float:
        """Seconds spent waiting for limits, retries and a thread."""
        return self._wait_ns / 1e9

    @property
    def run_s(self) -> float:
        """Seconds spent running."""
        return self._run_ns / 1e9

    @property
    def ok(self) -> bool:
        """Whether it has a value."""
        return self.status in SUCCESSES

    @property
    def phases(self) -> dict[str, Any]:
        """For items: the outcomes of its phases by name; of a phase below an expansion a list, in order."""
        if callable(self._phases):
            self._phases = self._phases()
        return self._phases or {}

    def unwrap(self) -> R:
        """The value, or the error raised.

        Raises:
            BaseException: The error of the outcome; `CallCancelled` where it has none.
        """
        if self.status in SUCCESSES:
            return self.value  # type: ignore[return-value]
        raise self.error or CallCancelled(f"{self.tool or 'item'} {self.key}: {self.status}")

    def __repr__(self) -> str:
        what = f"value={shown(self.value)}" if self.ok else f"error={shown(self.error)}"
        if len(what) > 120:
            what = what[:117] + "..."
        where = f" {self.key!r}" if self.key else ""
        return f"<Outcome{where} {self.status} {what}>"


def place_of(outcome: Outcome[Any]) -> str:
    """``"item 'a.txt' in phase 'text'"``."""
    phase = "" if outcome.failed_phase is None else f" in phase {outcome.failed_phase!r}"
    return f"item {outcome.key!r}{phase}"


def lost_outcome(key: str, index: int, error: BaseException) -> Outcome[Any]:
    """What came of an item that was lost to what ended the session outside of its tools: an exit, or an error."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return Outcome("cancelled", None, CallCancelled(f"item {key!r} was cut off by {shown(error)}"), key, index)
    lost = PipelineError(f"item {key!r} was lost to an error outside of its tools: {shown(error)}")
    lost.__cause__ = error
    return Outcome("failed", None, lost, key, index)
