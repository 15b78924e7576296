"""Walking an item, or an element of an expansion, through the phases of its level.

A worker goes from phase to phase, and where several may begin at once leaves all but one to whoever is free. At an
expansion it lays the item aside, and whoever is free takes elements, the newest expansion first; who ends the last
element goes on with the item. So there is no task per item, phase or element, and memory is O(in flight) but for what
an open expansion keeps, which is O(its size). Which items there are, and what is done with them, `_run` says.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from ._bound import Bound
from ._call import Call
from ._cancellation import breakdown_of, failure_in
from ._employer import Employer
from ._errors import CallSkipped, CallTimeout, PipelineError, shown
from ._expand import Elements
from ._flat import LINES_UP, begin, begin_admitted
from ._frame import Expansion, Frame, Lack
from ._host import Host
from ._in_line import LineCrew, Place
from ._inputs import collected_inputs, inputs_for, origins_of
from ._outcome import SUCCESSES
from ._plan import Plan, PlannedPhase

__all__ = ["Pending", "Step", "WalkCrew"]

_NOT_YET: Final[dict[str, Any]] = {}  # inputs that nobody has

Step = tuple[Frame, PlannedPhase]  # a phase that is to run in a frame
Pending = tuple[Step | None, Call[Any] | None, Awaitable[Any]]  # a step's call that waits; or what gives the next step


class WalkCrew(LineCrew):
    """Workers that walk frames.

    Args:
        home: The manager.
        plan: The phases.
        bound: The bound tool of each phase, by the phase's name.
        source: The items.
        options: As of `Crew`.
    """

    def __init__(
        self,
        home: Employer,
        plan: Plan,
        bound: Mapping[str, Bound],
        source: Iterable[Any] | AsyncIterable[Any],
        **options: Any,
    ) -> None:
        super().__init__(home, source, **options)
        self._plan = plan
        self._bound = bound
        self._open_expansions: dict[Expansion, None] = {}
        self._giving: list[Expansion] = []  # those that may have more elements
        self._branches: deque[Step] = deque()  # that nobody has begun
        self._ended: list[Step] = []  # phases after which somebody has to go on

    @abstractmethod
    def _seat(
        self, host: Host, frame: Frame, planned: PlannedPhase, inputs: dict[str, Any]
    ) -> Awaitable[Step | None] | None:
        """Have an item wait for a batch; what runs that, where it is full now."""

    @abstractmethod
    def _passed(self, planned: PlannedPhase) -> None:
        """A frame has come to this phase, or never will: batches want to know."""

    @abstractmethod
    def _begun(self, frame: Frame) -> None:
        """A frame begins."""

    @abstractmethod
    def _say_failed(self, key: str, phase: str | None, error: PipelineError, *given: Any) -> None:
        """Put on record that an item failed outside of any call; what was given is not to be in it where redacted."""

    @abstractmethod
    def _item_done(self, frame: Frame) -> None:
        """All phases of an item have ended."""

    def _entered(self, frame: Frame) -> Step | None:
        """A new frame's first step; further ones are anybody's."""
        self._begun(frame)
        starts = frame.steps.starts
        if not starts:
            return self._frame_done(frame)
        for planned in starts[1:]:
            self._branches.append((frame, planned))
            self.wake_one()
        return frame, starts[0]

    def _advance(self, host: Host, work: Step | None, call: Call[Any] | None = None) -> Pending | None:
        """Walk on as far as it goes without waiting; what to wait for, or None where this worker is done.

        Args:
            work: The step to make.
            call: Its call, where that has ended already.
        """
        while work is not None:
            frame, planned = work
            if call is None:
                if host.was_cancelled:  # for a call that has ended all the same: it must not hit the next one
                    self._branches.appendleft(work)
                    return None
                if self._let_in:  # their tokens must not lie idle, while this step has all the time there is
                    self._branches.append(work)
                    return None
                inputs = self._gathered(frame, planned)
                if inputs is not None:
                    if planned.phase.batch is not None:
                        rest = self._seat(host, frame, planned, inputs)
                        return None if rest is None else (None, None, rest)
                    call = self._registered(frame, planned, self._bound[planned.phase.name], inputs)
                    call._host = host
                    host.call = call
                    try:
                        ending: Any = None
                        if not call.ended_ns:  # else a journal has its value
                            isolated = call.bound.isolated
                            ending = self.home.run_isolated(call) if isolated else begin(call, 0, LINES_UP)
                    except BaseException as error:
                        self._cut_off(work, call, error)
                        raise
                    if ending is not None:
                        if not isinstance(ending, list):
                            return work, call, ending
                        self.line_up(host, work, call, ending)
                        return None
            expansion = None
            if call is not None:
                host.call = None
                self.last_ended_ns = call.ended_ns
                expansion = self._take_result(frame, planned, call)
                call = None
            if self._plan.batches:
                self._passed(planned)
            if expansion is not None:
                is_left_to_others = expansion.elements.is_ready or host.was_cancelled
                return None if is_left_to_others else (None, None, self._refill(expansion))
            work = self._after(frame, planned)
        return None

    async def _go_on(self, host: Host, pending: Pending | None) -> None:
        """Wait for what was begun, and walk on."""
        while pending is not None:
            work, call, rest = pending
            if work is None or call is None:
                pending = self._advance(host, await rest)
                continue
            try:
                await rest
            except BaseException as error:
                self._cut_off(work, call, error)
                raise
            finally:
                host.call = None
            pending = self._advance(host, work, call)

    def _cut_off(self, work: Step, call: Call[Any], error: BaseException) -> None:
        """A cancellation came out of a step's call: it was for this call only, unless we are all to stop."""
        self._broke(call, error)
        frame, planned = work
        expansion = self._take_result(frame, planned, call)  # one with a task of its own may have succeeded meanwhile
        self._passed(planned)
        if expansion is None:
            self._ended.append(work)

    def _after(self, frame: Frame, planned: PlannedPhase) -> Step | None:
        """A phase, and if it was expanded all its elements, has ended: what this worker goes on with."""
        while True:
            following = None
            for one in planned.then:
                if not frame.join(one):
                    continue
                if following is None:
                    following = one
                else:
                    frame.branches += 1
                    self._branches.append((frame, one))
                    self.wake_one()
            if following is not None:
                return frame, following
            frame.branches -= 1
            if frame.branches:
                return None
            expansion = self._settled(frame)
            if expansion is None:
                return None
            frame, planned = expansion.frame, expansion.planned

    def _frame_done(self, frame: Frame) -> Step | None:
        """A frame without any phase has ended."""
        expansion = self._settled(frame)
        return None if expansion is None else self._after(expansion.frame, expansion.planned)

    def _settled(self, frame: Frame) -> Expansion | None:
        """All phases of a frame have ended; the expansion that has ended with it, if it was the last element."""
        expansion = frame.expansion
        if expansion is None:
            self._item_done(frame)
            return None
        frame.settle(self._plan.phases)
        expansion.running -= 1
        return expansion if self._is_over(expansion) else None

    def _is_over(self, expansion: Expansion) -> bool:
        """Whether nothing of the expansion is left, asked once."""
        if not expansion.is_done or expansion.closed:
            return False
        expansion.closed = True
        del self._open_expansions[expansion]
        if isinstance(expansion.error, PipelineError):  # its call has ended long ago, and well
            frame = expansion.frame
            given = (expansion.elements.inputs, *frame.given())
            self._say_failed(frame.key, expansion.planned.phase.name, expansion.error, *given)
        return True

    def _gathered(self, frame: Frame, planned: PlannedPhase) -> dict[str, Any] | None:
        """The inputs of a phase, or None where it is skipped or cannot have them."""
        if frame.bad or frame.skipped or frame.parent is not None:
            blocked = frame.blocked(planned.needs)
            if blocked is not None:
                frame.mark(planned.phase.name, blocked)
                return None
        phase = planned.phase
        inputs = _NOT_YET
        try:
            if phase.collect is not None:
                expansion = frame.expansion_of(str(phase.collect))
                assert expansion is not None  # else its phase has failed, which this one needs
                inputs, lack = collected_inputs(planned, frame, expansion)
                if lack.elements and phase.missing == "skip":
                    self._skip_collect(frame, lack)
                    return None
            else:
                inputs = inputs_for(planned, frame)
            if planned.when is None or planned.when(inputs):
                return inputs
            self._skip(frame, planned)
        except PipelineError as error:
            self._fail(frame, planned, error, inputs)
        except Exception as error:  # noqa: BLE001  (a mapping, a property or a function of the user's)
            failure = PipelineError(f"phase {phase.name!r}: its inputs or its when= cannot be read: {shown(error)}")
            failure.__cause__ = error
            self._fail(frame, planned, failure, inputs)
        return None

    def _fail(self, frame: Frame, planned: PlannedPhase, error: PipelineError, inputs: Mapping[str, Any]) -> None:
        phase = planned.phase.name
        frame.fail_with(phase, error)
        origins = {} if self.home.tracing is None else origins_of(planned, frame)
        self._say_failed(frame.key, phase, error, inputs, origins, *frame.given())

    def _skip(self, frame: Frame, planned: PlannedPhase) -> None:
        """``when`` said no."""
        name = planned.phase.name
        call = self.home.new_call(self._bound[name], {}, self.parent, frame.key)
        call.index = frame.index
        call.end(
            "skipped", CallSkipped(f"phase {name!r} was skipped: when= said no", tool=call.tool_name, call_id=call.id)
        )
        self.last_ended_ns = call.ended_ns
        frame.calls[name] = call
        frame.mark(name, "skipped")

    def _skip_collect(self, frame: Frame, lack: Lack) -> None:
        """Half a document is no document: the collect is skipped and its parent fails."""
        phase = lack.collect.phase
        call = self.home.new_call(self._bound[phase.name], {}, self.parent, frame.key)
        error = CallSkipped(
            f"phase {phase.name!r} was skipped: {len(lack.elements)} of {len(lack.expansion.frames)} "
            f"elements of {phase.collect!r} failed",
            tool=call.tool_name,
            call_id=call.id,
        )
        error.__cause__ = lack.first_error()
        call.index = frame.index
        call.end("skipped", error)
        self.last_ended_ns = call.ended_ns
        frame.calls[phase.name] = call
        frame.mark(phase.name, "bad")
        frame.lacks = (*frame.lacks, lack)

    def _take_result(self, frame: Frame, planned: PlannedPhase, call: Call[Any]) -> Expansion | None:
        """What came of a phase's call; the expansion that it opens, if it does."""
        name = planned.phase.name
        if call.status not in SUCCESSES:
            frame.fail(name, call)
        elif planned.phase.expand is not None:
            return self._expand(frame, planned, call)
        else:
            frame.results[name] = call.value
        return None

    def _registered(self, frame: Frame, planned: PlannedPhase, bound: Bound, inputs: dict[str, Any]) -> Call[Any]:
        call = self.home.new_call(bound, inputs, self.parent, frame.key)
        if self.around:
            call.around = self.around
        call.index = frame.index
        frame.calls[planned.phase.name] = call
        return call

    def _begin(self, host: Host, call: Call[Any]) -> Awaitable[None] | None:
        """Run a call as far as it goes without waiting; what is left of it. Whoever awaits that frees the host."""
        call._host = host
        host.call = call
        rest: Awaitable[None] | None = self.home.run_isolated(call) if call.bound.isolated else begin(call)
        return rest

    def _broke(self, call: Call[Any], error: BaseException) -> None:
        """Something came out of a call: where nobody foresaw it, the call ends by it."""
        if not call.ended_ns and (broken := breakdown_of(error)) is not None:
            call.end("failed", broken)

    # --- lines

    def _begin_admitted(self, host: Host, place: Place) -> Pending | None:
        """Run a call that has its tokens now, and walk on as of `_advance`."""
        work, call = place.work, place.call
        self.leave_line(host, place)
        try:
            ending = begin_admitted(call)
        except BaseException as error:
            self._cut_off(work, call, error)
            raise
        return self._advance(host, work, call) if ending is None else (work, call, ending)

    def called_off(self, place: Place) -> None:
        """A call has ended in line."""
        frame, planned = place.work
        frame.fail(planned.phase.name, place.call)
        self._passed(planned)
        self._ended.append(place.work)
        self.wake_one()

    def _is_wanted(self) -> bool:
        if not self._places:
            return super()._is_wanted()
        waiting = len(self._let_in) + len(self._branches) + len(self._ended)
        return waiting > self._coming or self.room() > 0

    # --- expansions

    def _expand(self, frame: Frame, planned: PlannedPhase, call: Any) -> Expansion | None:
        phase = planned.phase
        try:
            elements = Elements.of(call.value, call, phase.name)
        except Exception as error:  # noqa: BLE001  (the user's __iter__)
            failure = PipelineError(str(error))
            failure.__cause__ = error
            self._fail(frame, planned, failure, call.inputs)
            return None
        call.value = None
        expansion = Expansion(frame, planned, elements)
        frame.expansions = (*frame.expansions, expansion)
        self._open_expansions[expansion] = None
        self._giving.append(expansion)
        return expansion

    async def _refill(self, expansion: Expansion) -> Step | None:
        """Pull elements where they are made; what to go on with if there are none."""
        expansion.elements.pulling = True
        self.wake_one()
        try:
            await expansion.elements.pull()
        except BaseException as error:
            failure = failure_in(error)
            if failure is None:
                raise
            expansion.broken(failure)
            if isinstance(failure, CallTimeout):  # others have ended by what they raised
                with suppress(Exception):
                    await expansion.elements.close()
            expansion.elements.exhausted = True
        finally:
            expansion.elements.pulling = False
        self.wake_one()
        return self._after(expansion.frame, expansion.planned) if self._is_over(expansion) else None
