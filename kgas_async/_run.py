"""A pipeline in motion: a crew whose units are items and the elements of their expansions.

A worker walks an item's phases in order. At an expansion it lays the item aside, and whoever is free takes elements,
the newest expansion first; who ends the last element goes on with the item. So there is no task per item, phase or
element, and memory is O(in flight) but for what an open expansion keeps, which is O(its size).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping
from time import perf_counter_ns
from typing import Any

import anyio

from ._bound import Bound
from ._call import Host
from ._crew import Crew
from ._employer import Employer
from ._errors import CallSkipped, PipelineError, shown
from ._expand import Elements, close_all
from ._frame import Expansion, Frame, follow, inputs_for, item_fields, item_outcome, key_of
from ._mailbox import is_self_inflicted
from ._outcome import Outcome
from ._path import begin
from ._pipeline import Pipeline
from ._plan import PlannedPhase

__all__ = ["RunCrew"]


class RunCrew(Crew[Any]):
    """One run of a pipeline.

    Args:
        home: The manager.
        pipeline: What to run.
        bound: The bound tool of each phase, by the phase's name.
        run_id: As in the evidence.
        source: The items.
        options: As of `Crew`.
    """

    def __init__(
        self,
        home: Employer,
        pipeline: Pipeline,
        bound: Mapping[str, Bound],
        run_id: str,
        source: Iterable[Any] | AsyncIterable[Any],
        **options: Any,
    ) -> None:
        super().__init__(home, source, **options)
        self.pipeline = pipeline
        self.run_id = run_id
        self.results: dict[str, Any] = {}
        self.run_outcomes: dict[str, Outcome[Any]] = {}
        self.missing: dict[str, int] = {}
        self._bound = bound
        self._plan = pipeline.plan
        self._open_expansions: list[Expansion] = []
        self._unclosed: list[Elements] = []  # lazy ones that were left early
        self._interrupted: list[tuple[Frame, int]] = []  # whose worker was cancelled for a call of theirs
        self._keys: set[str] = set()
        self._verified = False
        self._finished = False
        # What run-level phases collect, by source name: values by item index.
        self._collected: dict[tuple[str, str], dict[int, Any]] = {
            (binding.kind, binding.name): {}
            for planned in self._plan.run
            for binding in planned.bindings
            if binding.collected
        }
        self._needed = [  # of each item, by run-level phases: their lists must be of one length
            binding.name
            for planned in self._plan.run
            for binding in planned.bindings
            if binding.kind == "field" and not binding.optional
        ]

    # --- units

    def take(self) -> Any:
        """A frame that was interrupted, an element of the newest open expansion, else an item."""
        if self._interrupted:
            return self._interrupted.pop()
        for expansion in reversed(self._open_expansions):
            unit = expansion.take()
            if unit is not None:
                return unit
        return self.next_item()

    async def process(self, host: Host, unit: Any) -> None:
        """Walk an item or an element as far as it goes."""
        work: tuple[Frame, int] | None
        if isinstance(unit, tuple):
            work = unit if isinstance(unit[0], Frame) else self._admitted(*unit)
        elif isinstance(unit, Frame):
            self.last_ended_ns = perf_counter_ns()  # as for an item: it may make no call
            work = (unit, 0)
        else:
            work = await self._refill(unit)
        while work is not None:
            frame, position = work
            work = await self._walk(host, frame, position)

    def _admitted(self, index: int, item: Any) -> tuple[Frame, int] | None:
        """The frame of a new item, or None where the item is at fault: then it has its outcome."""
        key = str(index)
        self.last_ended_ns = perf_counter_ns()  # an item at fault makes no call, and must let others run all the same
        try:
            fields = item_fields(self.pipeline, item)
            self._verify(fields)
            key = key_of(self.pipeline, item, fields, index)
            if key in self._keys:
                raise PipelineError(
                    f"pipeline {self.pipeline.name!r}: item {index} has the key {key!r} of another item in flight; "
                    f"keys must differ"
                )
            for name in self._needed:
                if name not in fields:
                    raise PipelineError(f"pipeline {self.pipeline.name!r}: the item {key!r} has no field {name!r}")
        except PipelineError as error:
            self.deliver(index, Outcome("failed", None, error, key, index))
            return None
        except Exception as error:  # noqa: BLE001  (the user's key function)
            failure = PipelineError(
                f"pipeline {self.pipeline.name!r}: the key of item {index} cannot be made: {shown(error)}"
            )
            failure.__cause__ = error
            self.deliver(index, Outcome("failed", None, failure, key, index))
            return None
        self._keys.add(key)
        return Frame(None, self._plan.item, index, key, fields), 0

    def _verify(self, fields: Mapping[str, Any]) -> None:
        """On the first item, before any tool runs: it has the fields that the pipeline takes for granted."""
        if self._verified:
            return
        self._verified = True
        wanted = self._plan.assumed if self.pipeline.fields is None else ()
        missing = [name for name in wanted if name not in fields]
        if missing:
            error = PipelineError(
                f"pipeline {self.pipeline.name!r}: the first item has no field {missing[0]!r}, which a phase takes as "
                f"an input; it has {', '.join(map(str, fields)) or 'none'}; bind the input to another name, or declare "
                f"item=[...]"
            )
            self.fail(error)
            raise error

    # --- walking

    async def _walk(self, host: Host, frame: Frame, position: int) -> tuple[Frame, int] | None:
        """Run a frame's phases from ``position``; what to go on with after it, if that falls to this worker."""
        steps = frame.steps
        while position < len(steps):
            if host.was_cancelled:  # for a call that has ended all the same: it must not hit the next one
                self._interrupted.append((frame, position))
                return None
            planned = steps[position]
            position += 1
            phase = planned.phase
            if (frame.bad or frame.parent is not None) and frame.is_blocked(planned.needs):
                frame.bad.add(phase.name)
                continue
            inputs = self._gathered(frame, planned)
            if inputs is None:
                continue
            call = await self._call(host, frame, planned, inputs, position)
            if call.status != "succeeded":
                frame.fail(phase.name, call)
            elif phase.expand is not None:
                expansion = self._expand(frame, planned, position, call)
                if expansion is not None:
                    is_left_to_others = expansion.elements.is_ready or host.was_cancelled
                    return None if is_left_to_others else await self._refill(expansion)
            else:
                frame.results[phase.name] = call.value
        return self._frame_done(frame)

    def _gathered(self, frame: Frame, planned: PlannedPhase) -> dict[str, Any] | None:
        """The inputs of a phase, or None where it is skipped or cannot have them."""
        phase = planned.phase
        try:
            if phase.collect is not None:
                expansion = frame.expansion_of(str(phase.collect))
                inputs, missing = expansion.collected(planned, frame) if expansion is not None else ({}, 0)
                if missing and phase.missing == "skip":
                    self._skip(frame, planned, expansion)
                    return None
                return inputs
            return inputs_for(planned, frame)
        except PipelineError as error:
            frame.fail_with(phase.name, error)
            return None
        except Exception as error:  # noqa: BLE001  (a mapping or a property of the user's)
            failure = PipelineError(f"phase {phase.name!r}: its inputs cannot be read: {shown(error)}")
            failure.__cause__ = error
            frame.fail_with(phase.name, failure)
            return None

    def _skip(self, frame: Frame, planned: PlannedPhase, expansion: Any) -> None:
        """Half a document is no document: the collect is skipped and its parent fails."""
        call = self.home.new_call(self._bound[planned.phase.name], {}, self.parent, frame.key)
        call.index = frame.index
        cause = expansion.first_error()
        error = CallSkipped(
            f"phase {planned.phase.name!r} was skipped: {len(expansion.failed())} of {len(expansion.frames)} "
            f"elements of {planned.phase.collect!r} failed",
            tool=call.name,
            call_id=call.id,
        )
        error.__cause__ = cause
        call.end("skipped", error)
        frame.calls[planned.phase.name] = call
        frame.bad.add(planned.phase.name)
        frame.take_failure(expansion, expansion.failed())

    async def _call(
        self, host: Host, frame: Frame, planned: PlannedPhase, inputs: dict[str, Any], following: int
    ) -> Any:
        bound = self._bound[planned.phase.name]
        call = self.home.new_call(bound, inputs, self.parent, frame.key)
        call.index = frame.index
        frame.calls[planned.phase.name] = call
        call._host = host
        host.call = call
        try:
            if bound.isolated:
                await self.home.run_isolated(call)
            else:
                rest = begin(call)
                if rest is not None:
                    await rest
        except BaseException:
            frame.fail(planned.phase.name, call)
            self._interrupted.append((frame, following))  # only this call was cancelled, unless we are all to stop
            raise
        finally:
            host.call = None
        self.last_ended_ns = call.ended_ns
        return call

    def end_open(self) -> None:
        """End what no worker holds any more as cancelled, so that each item that was pulled has its outcome."""
        work: tuple[Frame, int] | None
        while self._interrupted or self._open_expansions:
            if not self._interrupted:
                expansion = self._open_expansions.pop()
                expansion.cut_short()
                self._unclosed.append(expansion.elements)
                work = (expansion.frame, expansion.position)
            else:
                frame, position = self._interrupted.pop()
                frame.cut_short(position)
                work = self._frame_done(frame)
            if work is not None:
                self._interrupted.append(work)

    # --- expansions

    def _expand(self, frame: Frame, planned: PlannedPhase, position: int, call: Any) -> Expansion | None:
        phase = planned.phase
        try:
            elements = Elements.of(call.value, call, phase.name)
        except Exception as error:  # noqa: BLE001  (the user's __iter__)
            failure = PipelineError(str(error))
            failure.__cause__ = error
            frame.fail_with(phase.name, failure)
            return None
        call.value = None
        expansion = Expansion(frame, planned, position, elements)
        frame.expansions.append(expansion)
        self._open_expansions.append(expansion)
        return expansion

    async def _refill(self, expansion: Expansion) -> tuple[Frame, int] | None:
        """Pull elements where they are made; what to go on with if there are none."""
        expansion.elements.pulling = True
        self.wake_one()
        try:
            await expansion.elements.pull()
        except Exception as error:  # noqa: BLE001  (the user's iterator)
            expansion.elements.exhausted = True
            expansion.broken(error)
        except anyio.get_cancelled_exc_class() as error:
            if not is_self_inflicted(owned=True):
                raise
            expansion.elements.exhausted = True  # as with a source: it has not come to its end
            expansion.broken(error)
        finally:
            expansion.elements.pulling = False
        self.wake_one()
        return self._expansion_done(expansion)

    def _expansion_done(self, expansion: Expansion) -> tuple[Frame, int] | None:
        """Where to go on if nothing of the expansion is left."""
        if not expansion.is_done or expansion.closed:
            return None
        expansion.closed = True
        self._open_expansions.remove(expansion)
        return expansion.frame, expansion.position

    def _frame_done(self, frame: Frame) -> tuple[Frame, int] | None:
        parent = frame.parent
        if parent is None:
            self._item_done(frame)
            return None
        frame.settle()
        expansion = frame.expansion
        assert expansion is not None
        expansion.running -= 1
        return self._expansion_done(expansion)

    def _item_done(self, frame: Frame) -> None:
        self._keys.discard(frame.key)
        outcome = item_outcome(frame, self._plan)
        if outcome.status == "succeeded":
            for (kind, name), values in self._collected.items():
                source = frame.fields if kind == "field" else frame.results
                if name in source:
                    values[frame.index] = source[name]
        self.deliver(frame.index, outcome)

    # --- once per run

    async def close(self) -> None:
        """Stop and wait for the workers; generators that were left early are closed where they were made."""
        try:
            await super().close()
        finally:
            await close_all(self._unclosed)

    async def finished(self) -> None:
        """Run the run-level phases, once all items have ended."""
        if self._finished:
            return
        self._finished = True
        bad: set[str] = set()
        for planned in self._plan.run:
            if self.stopped or self.drained:  # maybe meanwhile
                return
            name = planned.phase.name
            if any(need in bad for need in planned.needs) or not self._may_collect(planned):
                bad.add(name)
                continue
            try:
                inputs = self._run_inputs(planned)
            except PipelineError as error:
                self.run_outcomes[name] = Outcome("failed", None, error, name, -1)
                bad.add(name)
                continue
            call = self.home.new_call(self._bound[name], inputs, self.parent)
            await self.home.host_call(call)
            self.run_outcomes[name] = call.to_outcome()
            if call.status == "succeeded":
                self.results[name] = call.value
            else:
                bad.add(name)

    def _may_collect(self, planned: PlannedPhase) -> bool:
        lost = self.done - self.succeeded
        if planned.phase.collect is True and lost:
            self.missing[planned.phase.name] = lost
            if self.home.log is not None:
                self.home.log.emit(
                    "phase.incomplete",
                    run_id=self.run_id,
                    pipeline=self.pipeline.name,
                    phase=planned.phase.name,
                    missing=lost,
                    status="skipped" if planned.phase.missing == "skip" else None,
                )
            return planned.phase.missing != "skip"
        return True

    @property
    def succeeded(self) -> int:
        """Items that succeeded so far."""
        return self.done - self.failed - self.skipped

    def _run_inputs(self, planned: PlannedPhase) -> dict[str, Any]:
        inputs = {}
        for binding in planned.bindings:
            value: Any
            if binding.collected:
                by_index = self._collected[binding.kind, binding.name]
                value = [follow(by_index[index], binding.path) for index in sorted(by_index)]
            else:
                value = follow(self.results[binding.name], binding.path)
            inputs[binding.parameter] = value
        return inputs
