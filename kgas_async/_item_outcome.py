"""What came of an item: the outcome of the whole, and of each of its phases."""

from __future__ import annotations

from types import MethodType
from typing import Any

from ._call import Call
from ._errors import CallSkipped
from ._frame import Frame
from ._outcome import Outcome
from ._plan import Plan, PlannedPhase

__all__ = ["item_outcome", "outcome_as_input", "phase_outcome"]


def item_outcome(frame: Frame, plan: Plan) -> Outcome[Any]:
    """What came of a source item whose phases have all ended."""
    frame.settle(plan.phases)
    value: Any = None
    error = frame.error
    status = frame.status
    if status == "succeeded" and plan.leaves and not (frame.skipped or frame.expansions):
        leaves = plan.leaves
        value = frame.results[leaves[0]] if len(leaves) == 1 else {name: frame.results[name] for name in leaves}
    elif status == "succeeded":
        leaves = tuple(name for name in plan.leaves if not _is_skipped(frame, plan.phases[name]))
        values = {name: _leaf(frame, plan.phases[name]) for name in leaves}
        value = next(iter(values.values())) if len(plan.leaves) == 1 and values else values
        if plan.leaves and not leaves:
            status, value = "skipped", None
            error = CallSkipped(f"item {frame.key!r}: all its leaves were skipped")
    attempts = wait_ns = run_ns = 0
    tool = ""
    for call in frame.all_calls() if frame.expansions else frame.calls.values():
        attempts += call.attempt
        run_ns += call.run_ns
        if call.waited:
            wait_ns += call.wait_ns
    for call in frame.calls.values():
        tool = call.bound.name
    return Outcome(
        status, value, error, frame.key, frame.index, tool, attempts, wait_ns, run_ns, frame.failed_phase,
        MethodType(phase_outcomes, frame),  # one object, where a closure would be three
    )  # fmt: skip


def _is_skipped(frame: Frame, planned: PlannedPhase) -> bool:
    """Whether a leaf has no value because ``when`` said no, below an expansion for all elements that there are."""
    name = planned.phase.name
    frames = frame.frames_at(planned.level)
    if frames:
        return all(name in one.skipped for one in frames)
    return any(  # the expansion that it is below, or one above that, was skipped, and is not just empty
        owner.phase.expand == element and owner.phase.name in one.skipped
        for depth, element in enumerate(planned.level)
        for one in frame.frames_at(planned.level[:depth])
        for owner in one.steps.phases
    )


def _leaf(frame: Frame, planned: PlannedPhase) -> Any:
    """A leaf's value; of one below an expansion a list in order, of those elements that have it."""
    name = planned.phase.name
    frames = frame.frames_at(planned.level)
    own = planned.phase.expand
    if own is not None:  # nothing takes its elements: they are the value
        return [inner.fields[own] for one in frames for inner in getattr(one.expansion_of(own), "frames", ())]
    if not planned.level:
        return frame.results.get(name)
    return [one.results[name] for one in frames if name in one.results]


def phase_outcomes(frame: Frame) -> dict[str, Any]:
    """The outcomes of an item's phases by name; below an expansion a list in order."""
    found: dict[str, Any] = {}
    for planned in frame.steps.phases:
        name = planned.phase.name
        if name in frame.calls or name in frame.bad or name in frame.skipped:
            found[name] = phase_outcome(frame, planned)
    for expansion in frame.expansions:
        for inner in expansion.frames:
            for name, outcome in phase_outcomes(inner).items():
                rows = found.setdefault(name, [])
                rows.extend(outcome) if isinstance(outcome, list) else rows.append(outcome)
    return found


def outcome_as_input(frame: Frame, planned: PlannedPhase) -> Outcome[Any]:
    """What came of a phase, for a tool that takes outcomes: the same whether a journal had it or it has just run."""
    outcome = phase_outcome(frame, planned)
    if outcome.status == "reused" and frame.calls[planned.phase.name].recorded:
        outcome.status = "succeeded"
    return outcome


def phase_outcome(frame: Frame, planned: PlannedPhase) -> Outcome[Any]:
    """What came of one phase in one frame."""
    name = planned.phase.name
    call: Call[Any] | None = frame.calls.get(name)
    failed_after = call is not None and call.ok and name in frame.failures  # its elements ended
    if call is not None and not failed_after:
        outcome: Outcome[Any] = call.to_outcome()
        outcome.value = frame.results.get(name)
        if outcome.ok and name in frame.failures:  # the elements of its lazy result came to no good end
            outcome.status, outcome.error = frame.failures[name]
        return outcome
    tool = planned.phase.tool.name
    if name in frame.failures:
        status, error = frame.failures[name]
        return Outcome(status, None, error, frame.key, frame.index, tool, failed_phase=name)
    why = "failed" if name in frame.bad else "was skipped"
    skipped = CallSkipped(f"phase {name!r} was not run: what it needs {why}", tool=tool)
    return Outcome("skipped", None, skipped, frame.key, frame.index, tool)
