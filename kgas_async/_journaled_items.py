"""What a run with a journal knows of each open item, and what it takes of the journal instead of running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ._call import Call
from ._errors import CallError, CallFailed, CallRejected, CallSkipped, CallTimeout, text_of
from ._frame import Expansion, Frame
from ._journal_file import Ended, Recorded, Row
from ._outcome import Outcome
from ._plan import PlannedPhase
from ._run_journal import NOTHING, Kept, RunJournal, below

__all__ = [
    "OpenItem",
    "end_reused",
    "ended_as",
    "kept_failure",
    "kept_outcome",
    "place_of",
    "root_of",
    "rows_after",
    "was_reused",
]

_FAILURES: Final[Mapping[str, type[CallError]]] = {
    "failed": CallFailed, "timed_out": CallTimeout, "rejected": CallRejected,
}  # fmt: skip


class OpenItem:
    """What the journal has of an open item, and what is about to go into it.

    Attributes:
        kept: The outcome that it keeps, since it failed before and is not to run; None for all others.
        recorded: What it has said; None for an item that is ended before it did.
        digests: Of the inputs of phases that run, by frame and phase.
        expanding: The expansions whose elements are recorded, with the digest of their inputs.
    """

    __slots__ = ("digests", "expanding", "kept", "recorded", "rows")

    def __init__(self, recorded: Recorded | None, kept: Outcome[Any] | None = None) -> None:
        self.rows: dict[tuple[str, str], Row] = {} if recorded is None else recorded.rows
        self.recorded = recorded
        self.kept = kept
        self.digests: dict[tuple[Frame, str], bytes] = {}
        self.expanding: dict[Expansion, bytes] = {}

    def value_of(self, journal: RunJournal, kept: Kept, frame: Frame, of_inputs: bytes) -> Any:
        """The value that is recorded for these inputs, or `NOTHING`."""
        planned = kept.planned
        if self.rows and (planned.bindings or all(was_reused(frame, name) for name in planned.needs)):
            return journal.value_of(kept, self.rows, place_of(frame), of_inputs)
        return NOTHING


def root_of(frame: Frame) -> Frame:
    """The frame of the source item."""
    while frame.parent is not None:
        frame = frame.parent
    return frame


def place_of(frame: Frame) -> str:
    """Where an element is below its item; empty for the item itself."""
    return "" if frame.parent is None else below(place_of(frame.parent), frame.index)


def ended_as(outcome: Outcome[Any]) -> Ended:
    """How an item ended, as it is recorded."""
    return Ended(outcome.status, outcome.failed_phase, None if outcome.error is None else text_of(outcome.error))


def kept_outcome(frame: Frame, ended: Ended | None, retry: str) -> Outcome[Any] | None:
    """The outcome of an item that is not to run, as ``retry`` says."""
    key, index = frame.key, frame.index
    if retry == "failed" and ended is None:
        skipped = CallSkipped(f"item {key!r} is new, and retry='failed' runs only what failed before")
        return Outcome("skipped", None, skipped, key, index)
    if retry != "none" or ended is None or ended.status not in _FAILURES:
        return None
    error = _FAILURES[ended.status](ended.error or "")
    error.add_note("as it is recorded in the journal; retry='none' does not try it again")
    return Outcome(ended.status, None, error, key, index, failed_phase=ended.phase)


def kept_failure(kept: Outcome[Any], phase: str) -> tuple[BaseException, str]:
    """Why a phase of an item that keeps its outcome gives nothing, with its status, as far as it is on record."""
    if phase == kept.failed_phase and kept.error is not None:
        return kept.error, kept.status
    return CallFailed(f"phase {phase!r} has nothing on record, and retry='none' does not run it"), "failed"


def end_reused(call: Call[Any], value: Any) -> None:
    """End a call that was not made, with the value that is recorded."""
    call.value, call.reused, call.recorded = value, True, True
    call.end("reused")


def was_reused(frame: Frame, name: str) -> bool:
    """Whether a phase that one of this frame needs was taken from the journal, there or above or below."""
    above: Frame | None = frame
    while above is not None:
        if name in above.calls:
            return _did_not_run(above.calls[name])
        above = above.parent
    inner = [call for call in frame.all_calls() if call.bound.phase == name]
    return all(_did_not_run(call) for call in inner)


def _did_not_run(call: Call[Any]) -> bool:
    return call.recorded or call.status == "skipped"


def rows_after(
    rows: Mapping[tuple[str, str], Row], followers: Sequence[PlannedPhase], planned: PlannedPhase, place: str
) -> list[tuple[str, str]]:
    """Which rows are of phases that come after this one at this place: there, above it, and below it or that."""
    found = []
    parts = place.split("/") if place else []
    for follower in followers:
        name, level = follower.phase.name, follower.level
        shared = 0
        while shared < min(len(level), len(planned.level)) and level[shared] == planned.level[shared]:
            shared += 1
        top = "/".join(parts[:shared])
        if len(level) > shared:
            under = f"{top}/" if top else ""
            found += [key for key in rows if key[1] == name and key[0] and key[0].startswith(under)]
        elif (top, name) in rows:
            found.append((top, name))
    return found
