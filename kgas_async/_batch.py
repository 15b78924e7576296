"""Items that wait to be run in one call: when a batch leaves, and what each of its items gets of it.

Knows the run only as what it is told: who has arrived, who will not come any more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import anyio

from ._bound import Bound, ToolState
from ._call import Call
from ._errors import CallError, CallFailed, InvalidInputs, PipelineError, shown, text_of
from ._frame import Expansion, Frame
from ._plan import Plan, PlannedPhase, Steps

__all__ = ["Batch", "Batches", "Seat"]


class Seat:
    """One item's place in a batch: its call, which can be cancelled alone as long as the batch has not left."""

    __slots__ = ("_leave", "call", "frame", "inputs", "owned", "planned")

    def __init__(
        self,
        frame: Frame,
        planned: PlannedPhase,
        call: Call[Any],
        inputs: dict[str, Any],
        leave: Callable[[Seat], None],
    ) -> None:
        self.frame = frame
        self.planned = planned
        self.call = call
        self.inputs = inputs
        self.owned = True
        self._leave = leave

    def cancel(self) -> None:
        """As of a `Host`: whose call it is was asked to stop."""
        self._leave(self)


class Batch:
    """The batches of one phase, one after another.

    Attributes:
        seats: Who waits for the next one to leave.
        due_at: When it leaves at the latest (loop time).
    """

    def __init__(self, planned: PlannedPhase, bound: Bound) -> None:
        assert planned.phase.batch is not None
        self.planned = planned
        self.bound = bound
        self.size = planned.phase.batch
        self.wait = planned.phase.batch_wait
        self.seats: list[Seat] = []
        self.due_at = math.inf
        # An item's call is on record as any other, but the tool was called once for all of them.
        self._for_items = copy.copy(bound)
        self._for_items.state = ToolState(bound.name, bound.state.origin)

    @property
    def for_items(self) -> Bound:
        """What the calls of single items are bound to."""
        return self._for_items

    def add(self, seat: Seat) -> None:
        """Somebody waits for it."""
        if not self.seats and self.wait is not None:
            self.due_at = anyio.current_time() + self.wait
        self.seats.append(seat)
        seat.call._host = seat  # type: ignore[assignment]

    def remove(self, seat: Seat) -> None:
        """Somebody waits no more. Nobody else: then it is not due, or who looks for work would look for ever."""
        self.seats.remove(seat)
        if not self.seats:
            self.due_at = math.inf

    def take_back(self, seats: Sequence[Seat]) -> None:
        """They have not gone after all: they do with the next one, which is due."""
        self.seats[:0] = seats
        self.due_at = anyio.current_time()
        for seat in seats:
            seat.call._host = seat  # type: ignore[assignment]
            seat.call.status = "waiting"

    def leave(self) -> list[Seat]:
        """Those whom the next call is for."""
        leaving, self.seats = self.seats[: self.size], self.seats[self.size :]
        self.due_at = math.inf if self.wait is None or not self.seats else anyio.current_time() + self.wait
        for seat in leaving:
            seat.call._host = None  # from now on it ends with the batch
        return leaving


class Batches:
    """All batches of a run, and who can still come to which.

    A batch leaves when nothing upstream can add to it: no item or element on its way there, none to be pulled.
    """

    def __init__(self, plan: Plan, bound: Mapping[str, Bound]) -> None:
        self.all = [Batch(planned, bound[planned.phase.name]) for planned in plan.batches]
        self.by_name = {batch.planned.phase.name: batch for batch in self.all}
        owners = {planned.phase.expand: planned for planned in plan.phases.values() if planned.phase.expand}
        # A batch below expansions has yet to expect elements as long as one of these is to come, or is open.
        self._above = {name: [owners[one] for one in self.by_name[name].planned.level] for name in self.by_name}
        expanding = {one.phase.name for above in self._above.values() for one in above}
        counted = {*self.by_name, *expanding}
        self._expected = dict.fromkeys(counted, 0)
        self._on_board = dict.fromkeys(expanding & self.by_name.keys(), 0)  # in a batch, their elements yet to come
        self._counted: dict[int, list[str]] = {}
        levels = [plan.item, *(planned.children for planned in owners.values())]
        for steps in levels:
            self._counted[id(steps)] = [one.phase.name for one in steps.phases if one.phase.name in counted]

    def expect(self, steps: Steps) -> None:
        """A frame begins that will come to these phases, or be past them."""
        for name in self._counted[id(steps)]:
            self._expected[name] += 1

    def passed(self, planned: PlannedPhase) -> None:
        """A frame has come to this phase, or never will."""
        if planned.phase.name in self._expected:
            self._expected[planned.phase.name] -= 1

    def boarded(self, planned: PlannedPhase) -> None:
        """A frame waits for a batch of this phase."""
        if planned.phase.name in self._on_board:
            self._on_board[planned.phase.name] += 1

    def unboarded(self, planned: PlannedPhase) -> None:
        """It has what it is given there: an expansion that is open by now, or nothing."""
        if planned.phase.name in self._on_board:
            self._on_board[planned.phase.name] -= 1

    def overdue(self) -> Batch | None:
        """A batch that has waited for long enough, whatever else there is to do."""
        for batch in self.all:
            if batch.due_at != math.inf and batch.seats and batch.due_at <= anyio.current_time():
                return batch
        return None

    def ready(self, expansions: Sequence[Expansion], *, pulling: bool) -> Batch | None:
        """A batch that nobody can add to any more, or that is due: that furthest upstream.

        To be asked only where there is no item and no element to be had now.
        """
        for batch in self.all:
            if batch.seats and (batch.due_at <= anyio.current_time() or not self._can_grow(batch, expansions, pulling)):
                return batch
        return None

    def _can_grow(self, batch: Batch, expansions: Sequence[Expansion], pulling: bool) -> bool:
        name = batch.planned.phase.name
        if pulling or self._expected[name]:
            return True
        above = self._above[name]
        names = [one.phase.name for one in above]
        return any(self._expected[name] or self._on_board.get(name) for name in names) or any(
            expansion.planned is one and expansion.has_more for one in above for expansion in expansions
        )

    def due_at(self) -> float:
        """When the next one is due (loop time)."""
        return min((batch.due_at for batch in self.all), default=math.inf)


def give_out(call: Call[Any], seats: Sequence[Seat], *, is_last: bool = False) -> list[Seat]:
    """End the calls of the seats with what the batch's call gave; those that have to go again, without the others.

    That is where some inputs were invalid: the others' are not to blame. Unless this was the last that there will be.
    """
    if call.ok:
        results = _results(call, len(seats))
        for number, seat in enumerate(seats):
            _end(seat, call, results if isinstance(results, PipelineError) else results[number])
        return []
    guilty = _guilty(call.error, len(seats)) if isinstance(call.error, InvalidInputs) and not is_last else None
    again: list[Seat] = []
    for number, seat in enumerate(seats):
        if guilty is not None and number not in guilty:
            again.append(seat)
        else:
            _end(seat, call, None)
    return again


def _results(call: Call[Any], wanted: int) -> Sequence[Any] | PipelineError:
    """One for each seat, or what is wrong with them: they may be of any class, and of a user's own."""
    value = call.value
    who = f"batch {call.id}: tool {call.tool_name!r} returned"
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sized) or not hasattr(value, "__getitem__"):
        return PipelineError(f"{who} {type(value).__name__}, not a list of {wanted} results")
    try:
        count = len(value)
        # In order, whatever its keys are; one that never ends is not waited for.
        results = value if isinstance(value, (list, tuple)) else list(islice(iter(value), wanted + 1))  # type: ignore[call-overload]
    except Exception as error:  # noqa: BLE001
        broken = PipelineError(f"{who} {type(value).__name__}, which cannot be read as a list: {shown(error)}")
        broken.__cause__ = error
        return broken
    if count != wanted or len(results) != wanted:
        return PipelineError(f"{who} {len(results) if count == wanted else count} results for {wanted} items")
    return results


def _guilty(error: InvalidInputs, seats: int) -> set[int] | None:
    """The numbers of the seats whose inputs were invalid; None where that is not to be told."""
    numbers: set[int] = set()
    for one in error.errors:
        parts = str(one["field"]).split(".")
        if len(parts) < 2 or not parts[1].isdigit() or int(parts[1]) >= seats:
            return None
        numbers.add(int(parts[1]))
    return numbers if len(numbers) < seats else None


def _end(seat: Seat, batch: Call[Any], value: Any) -> None:
    call = seat.call
    call.attempt, call.begun_ns, call.run_ns = batch.attempt, batch.begun_ns, batch.run_ns
    call.answered_by = batch.answered_by
    if call.cancel_requested or batch.status == "cancelled":
        call.end("cancelled")
    elif not batch.ok:
        error = copy.copy(batch.error)
        if isinstance(error, CallError):
            error.call_id = call.id
            error.__cause__ = None if batch.error is None else batch.error.__cause__
        call.end(batch.status, error)
    elif isinstance(value, BaseException):
        what = f"{type(value).__name__}: {text_of(value)}"
        failed = CallFailed(
            f"tool {call.tool_name!r} failed: {what}", tool=call.tool_name, call_id=call.id, attempts=call.attempt
        )
        failed.__cause__ = value
        if call.bound.home.tracing is not None:
            call.bound.home.tracing.mark(failed, batch)  # it may be about others' inputs
        call.end("failed", failed)
    else:
        call.value = value
        call.end(batch.status)
