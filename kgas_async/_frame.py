"""The state of one item, or of one element of an expansion, on its way through a pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ._call import Call
from ._errors import CallCancelled, CallSkipped, PipelineError, shown, text_of
from ._expand import Elements
from ._outcome import Outcome
from ._pipeline import Pipeline
from ._plan import Plan, PlannedPhase

__all__ = ["Expansion", "Frame", "follow", "inputs_for", "item_fields", "item_outcome", "key_of"]


class Frame:
    """An item or an element: its fields, what its phases gave, and what failed."""

    __slots__ = (
        "bad",
        "calls",
        "error",
        "expansion",
        "expansions",
        "failed",
        "failed_phase",
        "fields",
        "index",
        "key",
        "parent",
        "results",
        "status",
        "steps",
    )

    def __init__(
        self,
        parent: Frame | None,
        steps: list[PlannedPhase],
        index: int,
        key: str,
        fields: Mapping[str, Any],
        expansion: Expansion | None = None,
    ) -> None:
        self.parent = parent
        self.steps = steps
        self.index = index
        self.key = key
        self.fields = fields
        self.results: dict[str, Any] = {}
        self.calls: dict[str, Call[Any]] = {}
        self.expansions: list[Expansion] = []
        self.expansion = expansion
        self.bad: set[str] = set()  # phases that failed or were skipped
        self.failed: tuple[str, ...] = ()  # those of them that failed
        self.status = "succeeded"
        self.error: BaseException | None = None
        self.failed_phase: str | None = None

    def fail(self, phase: str, call: Call[Any]) -> None:
        """A phase's call did not succeed."""
        if call.status == "cancelled" and call.error is None:
            call.cancelled_error()
        self._failed(phase, call.status if call.ended_ns else "cancelled", call.error)

    def fail_with(self, phase: str, error: BaseException) -> None:
        """A phase failed outside of its tool."""
        self._failed(phase, "failed", error)

    def _failed(self, phase: str, status: str, error: BaseException | None) -> None:
        self.bad.add(phase)
        self.failed += (phase,)
        self._fail_first(phase, status, error)

    def _fail_first(self, phase: str, status: str, error: BaseException | None) -> None:
        if self.status == "succeeded":
            self.status, self.error, self.failed_phase = status, error, phase

    def cut_short(self, position: int = 0) -> None:
        """End it here: what it has not begun does not run."""
        left = [planned.phase.name for planned in self.steps[position:]]
        self.bad.update(left)
        if self.status == "succeeded" and left:
            self.status, self.failed_phase = "cancelled", left[0]
            self.error = CallCancelled(f"item {self.key!r} was cancelled before phase {left[0]!r}")

    def settle(self) -> None:
        """Once all phases have ended: what failed in elements, and no collect goes on without, is this frame's too."""
        for expansion in self.expansions:
            if lost := expansion.lost():
                self.take_failure(expansion, lost)

    def take_failure(self, expansion: Expansion, failed: list[Frame]) -> None:
        """Fail because of elements that failed: with their error, or a group of their errors."""
        errors = [frame.error for frame in failed if isinstance(frame.error, Exception)]
        phase = failed[0].failed_phase or expansion.planned.phase.name
        status = failed[0].status if len({frame.status for frame in failed}) == 1 else "failed"
        error = ExceptionGroup(f"{len(errors)} elements failed", errors) if len(errors) > 1 else failed[0].error
        # All that failed, since a collect may excuse one and not another; none of it is a phase of this frame's own.
        self.failed += tuple(dict.fromkeys(name for frame in failed for name in frame.failed or (phase,)))
        self._fail_first(phase, status, error)

    def is_blocked(self, needs: Iterable[str]) -> bool:
        """Whether a phase that is needed failed or was skipped, here or in what this is an element of."""
        frame: Frame | None = self
        while frame is not None:
            if any(name in frame.bad for name in needs):
                return True
            frame = frame.parent
        return False

    def all_calls(self) -> Iterator[Call[Any]]:
        """The calls of this frame and of its elements."""
        yield from self.calls.values()
        for expansion in self.expansions:
            for frame in expansion.frames:
                yield from frame.all_calls()

    def expansion_of(self, element: str) -> Expansion | None:
        """This frame's expansion into elements of that name."""
        for expansion in self.expansions:
            if expansion.planned.phase.expand == element:
                return expansion
        return None


class Expansion:
    """The elements of one frame's expanded phase, on their way."""

    def __init__(self, frame: Frame, planned: PlannedPhase, position: int, elements: Elements) -> None:
        self.frame = frame
        self.planned = planned
        self.position = position  # where the frame goes on when all elements have ended
        self.elements = elements
        self.frames: list[Frame] = []
        self.running = 0
        self.closed = False
        self.error: BaseException | None = None  # the iterator itself failed
        assert planned.phase.expand is not None
        self._name = planned.phase.expand

    def take(self) -> Any:
        """A frame for the next element; this expansion itself where somebody must pull first; None for neither."""
        elements = self.elements
        if elements.is_ready:
            try:
                element = elements.next()
            except StopIteration:
                elements.exhausted = True
                return None if self.running or self.closed else self
            except Exception as error:  # noqa: BLE001  (the user's iterator)
                elements.exhausted = True
                self.broken(error)
                return None if self.running or self.closed else self
            index = len(self.frames)
            frame = Frame(
                self.frame, self.planned.children, index, f"{self.frame.key}/{index}", {self._name: element}, self
            )
            self.frames.append(frame)
            self.running += 1
            return frame
        return None if elements.pulling or elements.exhausted else self

    @property
    def is_done(self) -> bool:
        """Whether no element is left and none runs."""
        return self.elements.exhausted and not self.elements.buffer and self.running == 0

    def broken(self, error: BaseException) -> None:
        """The iterator raised: the parent fails when its elements have ended."""
        failure = PipelineError(
            f"the elements of {self._name!r} ended after {len(self.frames)}: phase {self.planned.phase.name!r} raised "
            f"{type(error).__name__}: {text_of(error)}"
        )
        failure.__cause__ = error
        self.error = failure
        self.frame.fail_with(self.planned.phase.name, failure)

    def cut_short(self) -> None:
        """End it here: what was not pulled or taken is no element."""
        self.closed = True
        self.error = CallCancelled(f"the elements of {self._name!r} were cancelled after {len(self.frames)}")
        self.frame.cut_short(self.position - 1)

    def failed(self) -> list[Frame]:
        """Elements that did not succeed."""
        return [frame for frame in self.frames if frame.status != "succeeded"]

    def lost(self) -> list[Frame]:
        """Those of them that failed in a phase without which no collect goes on (``missing="ignore"``)."""
        failed = self.failed()
        excused = self._excused() if failed else set()
        return [frame for frame in failed if not excused.issuperset(frame.failed or (None,))]

    def _excused(self) -> set[str]:
        """The phases below this expansion whose results a collect takes, and goes on without."""
        inner: dict[str, PlannedPhase] = {}
        queue = list(self.planned.children)
        while queue:
            planned = queue.pop()
            inner[planned.phase.name] = planned
            queue += planned.children
        excused: set[str] = set()
        taking = [p for p in self.frame.steps if p.phase.collect == self._name and p.phase.missing == "ignore"]
        names = [name for planned in taking for name in planned.needs]
        while names:
            name = names.pop()
            if name in inner and name not in excused:
                excused.add(name)
                names += inner[name].needs
        return excused

    def first_error(self) -> BaseException | None:
        """The first failed element's error."""
        return next((frame.error for frame in self.failed()), self.error)

    def collected(self, planned: PlannedPhase, frame: Frame) -> tuple[dict[str, Any], int]:
        """The inputs of a collect, lists over the elements in order; and how many elements are missing in them."""
        wanted = [binding for binding in planned.bindings if binding.collected]
        needed = {b.name for b in wanted if b.kind == "result"} | (set(planned.needs) & self._inner())
        whole = [one for one in self.frames if not any(name in one.bad for name in needed)]
        inputs = inputs_for(planned, frame)
        for binding in wanted:
            inputs[binding.parameter] = [
                follow(
                    one.results[binding.name] if binding.kind == "result" else one.fields[binding.name], binding.path
                )
                for one in whole
            ]
        return inputs, len(self.frames) - len(whole)

    def _inner(self) -> set[str]:
        return {planned.phase.name for planned in self.planned.children}


def follow(value: Any, path: tuple[str, ...]) -> Any:
    """The value below a path of attributes or keys.

    Raises:
        PipelineError: There is no such thing.
    """
    for part in path:
        try:
            value = value[part] if isinstance(value, Mapping) else getattr(value, part)
        except (KeyError, AttributeError):
            raise PipelineError(f"{type(value).__name__} has no {part!r} (of {'.'.join(path)!r})") from None
        except Exception as error:
            of = f"{type(value).__name__} (of {'.'.join(path)!r})"
            raise PipelineError(f"{part!r} of {of} cannot be read: {shown(error)}") from error
    return value


def inputs_for(planned: PlannedPhase, frame: Frame) -> dict[str, Any]:
    """The inputs of a phase in this frame, but for what it collects.

    Raises:
        PipelineError: The item has no such field.
    """
    inputs: dict[str, Any] = {}
    depth = len(planned.level)
    for binding in planned.bindings:
        if binding.collected:
            continue
        home = frame
        for _ in range(depth - len(binding.level)):
            assert home.parent is not None
            home = home.parent
        source = home.results if binding.kind == "result" else home.fields
        try:
            value = source[binding.name]
        except KeyError:
            if binding.optional:
                continue
            raise PipelineError(
                f"phase {planned.phase.name!r}: the item {home.key!r} has no {binding.kind} {binding.name!r}"
            ) from None
        inputs[binding.parameter] = follow(value, binding.path) if binding.path else value
    return inputs


def item_fields(pipeline: Pipeline, item: Any) -> Mapping[str, Any]:
    """The fields of an item.

    Raises:
        PipelineError: It is no mapping, model or dataclass, or lacks a declared field.
    """
    fields: Mapping[str, Any]
    if isinstance(item, Mapping):
        fields = item
    elif isinstance(item, BaseModel):
        fields = {name: getattr(item, name) for name in type(item).model_fields}
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    else:
        raise PipelineError(
            f"pipeline {pipeline.name!r}: an item is a mapping of fields (or a model, or a dataclass), not "
            f"{type(item).__name__}: give {{'name': value}}"
        )
    return fields


def key_of(pipeline: Pipeline, item: Any, fields: Mapping[str, Any], index: int) -> str:
    """The item's key.

    Raises:
        PipelineError: The key field is missing, or the key is None.
    """
    key = pipeline.key
    if key is None:
        return str(index)
    value = fields.get(key) if isinstance(key, str) else key(item)
    if value is None:
        raise PipelineError(f"pipeline {pipeline.name!r}: item {index} has no key ({key!r} gives None)")
    return str(value)


def item_outcome(frame: Frame, plan: Plan) -> Outcome[Any]:
    """What came of a source item."""
    frame.settle()
    value: Any = None
    if frame.status == "succeeded":
        leaves = [name for name in plan.leaves if name not in frame.bad]
        values = {name: _leaf(frame, plan, name) for name in leaves}
        value = next(iter(values.values())) if len(plan.leaves) == 1 and values else values
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
        frame.status, value, frame.error, frame.key, frame.index, tool, attempts, wait_ns, run_ns, frame.failed_phase,
        lambda: phase_outcomes(frame),
    )  # fmt: skip


def _leaf(frame: Frame, plan: Plan, name: str) -> Any:
    """A leaf's value; of one below an expansion a list in order, of those elements that have it."""
    planned = plan.phases[name]
    frames = [frame]
    for element in planned.level:
        frames = [inner for one in frames for inner in getattr(one.expansion_of(element), "frames", ())]
    own = planned.phase.expand
    if own is not None:  # nothing takes its elements: they are the value
        return [inner.fields[own] for one in frames for inner in getattr(one.expansion_of(own), "frames", ())]
    if not planned.level:
        return frame.results.get(name)
    return [one.results[name] for one in frames if name in one.results]


def phase_outcomes(frame: Frame) -> dict[str, Any]:
    """The outcomes of an item's phases by name; below an expansion a list in order."""
    found: dict[str, Any] = {name: _call_outcome(frame, name, call) for name, call in frame.calls.items()}
    for planned in frame.steps:
        name = planned.phase.name
        if name in frame.bad and name not in found:
            error = CallSkipped(f"phase {name!r} was not run: what it needs failed", tool=planned.phase.tool.name)
            found[name] = Outcome("skipped", None, error, frame.key, frame.index, planned.phase.tool.name)
    for expansion in frame.expansions:
        for inner in expansion.frames:
            for name, outcome in phase_outcomes(inner).items():
                rows = found.setdefault(name, [])
                rows.extend(outcome) if isinstance(outcome, list) else rows.append(outcome)
    return found


def _call_outcome(frame: Frame, name: str, call: Call[Any]) -> Outcome[Any]:
    outcome = call.to_outcome()
    outcome.value = frame.results.get(name)
    return outcome
