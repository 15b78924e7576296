"""A run of a pipeline in motion: items come in and are walked, batches leave, outcomes go out.

How an item gets from phase to phase is `_walk`'s; what runs once per run is `_run_level`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping
from time import perf_counter_ns
from typing import Any, Final

from ._batch import Batch, Batches, Seat, give_out
from ._bound import Bound
from ._employer import Employer
from ._errors import PipelineError, shown
from ._expand import Elements, close_all
from ._frame import Frame
from ._host import Host
from ._inputs import item_fields, key_of
from ._item_outcome import item_outcome
from ._outcome import Outcome
from ._pipeline import Pipeline
from ._plan import PlannedPhase
from ._records import error_fields
from ._run_level import RunLevel
from ._walk import Step, WalkCrew

__all__ = ["RunCrew"]

_RESUME: Final = object()


class RunCrew(WalkCrew):
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
        super().__init__(home, pipeline.plan, bound, source, **options)
        self.pipeline = pipeline
        self.run_id = run_id
        self.level = RunLevel(home, pipeline, bound, run_id, self.parent)
        self._batches = Batches(pipeline.plan, bound) if pipeline.plan.batches else None
        self._unclosed: list[Elements] = []  # lazy ones that were left early
        self._keys: set[str] = set()
        self._verified = False
        self._finished = False
        self._feeds: list[Any] = []
        self._needed = [  # of each item, by run-level phases: their lists must be of one length
            binding.name
            for planned in self._plan.run.phases
            for binding in planned.bindings
            if binding.kind == "field" and not binding.optional
        ]
        for batch in self._batches.all if self._batches is not None else ():
            if batch.size > self.in_flight:
                raise ValueError(
                    f"pipeline {pipeline.name!r}, phase {batch.planned.phase.name!r}: batch={batch.size} is more than "
                    f"in_flight={self.in_flight}, so it could never be full; raise in_flight"
                )

    def start(self) -> None:
        """Begin with the phases that read live, and hire the first worker."""
        super().start()
        self._feeds = self.level.start_live(self.wake_one)

    # --- units

    def take(self) -> Any:
        """Who goes on, a branch, an element of the newest open expansion, an item, a batch."""
        if self._ended:
            return (_RESUME, self._ended.pop())
        if self._branches:
            return self._branches.popleft()
        for expansion in reversed(self._open_expansions):
            unit = expansion.take()
            if unit is not None:
                return unit
        unit = self.next_item()
        if unit is None and self._batches is not None and not self.stopped:
            return self._batches.ready(self._open_expansions, pulling=self._puller is not None)
        return unit

    def next_item(self) -> Any:
        """The next ``(index, item)``, as far as items may be open and live readers keep up."""
        if self._batches is not None and self.open >= self.in_flight:
            return None
        for feed in self._feeds:
            if self.pulled - feed.position >= self.window:
                return None
        return super().next_item()

    def park_until(self) -> float:
        """When a worker without work is to look again: a batch is due then."""
        return float("inf") if self._batches is None else self._batches.due_at()

    def process(self, host: Host, unit: Any) -> Awaitable[None] | None:
        """Walk an item, a branch or an element as far as it goes without waiting; the rest of it."""
        work: Step | None
        if isinstance(unit, tuple):
            first, second = unit
            if first.__class__ is int:
                work = self._admitted(first, second)
            else:
                work = self._after(*second) if first is _RESUME else unit
        elif isinstance(unit, Frame):
            self.last_ended_ns = perf_counter_ns()  # as for an item: it may make no call
            work = self._entered(unit)
        else:
            rest = self._run_batch(host, unit) if isinstance(unit, Batch) else self._refill(unit)
            return self._go_on(host, (None, None, rest))
        pending = self._advance(host, work)
        return None if pending is None else self._go_on(host, pending)

    def _admitted(self, index: int, item: Any) -> Step | None:
        """The first step of a new item, or None where the item is at fault: then it has its outcome."""
        key = str(index)
        self.last_ended_ns = perf_counter_ns()  # an item at fault makes no call, and must let others run all the same
        try:
            fields = item if item.__class__ is dict else item_fields(self.pipeline, item)
            if not self._verified:
                self._verify(fields)
            if self.pipeline.key is not None:
                key = key_of(self.pipeline.key, item, fields, index, self.pipeline.name)
                if key in self._keys:
                    raise PipelineError(
                        f"pipeline {self.pipeline.name!r}: item {index} has the key {key!r} of another item in "
                        f"flight; keys must differ"
                    )
            for name in self._needed:
                if name not in fields:
                    raise PipelineError(f"pipeline {self.pipeline.name!r}: the item {key!r} has no field {name!r}")
        except PipelineError as error:
            self._at_fault(index, key, error)
            return None
        except Exception as error:  # noqa: BLE001  (the user's key function)
            failure = PipelineError(
                f"pipeline {self.pipeline.name!r}: the key of item {index} cannot be made: {shown(error)}"
            )
            failure.__cause__ = error
            self._at_fault(index, key, failure)
            return None
        if self.pipeline.key is not None:
            self._keys.add(key)
        return self._entered(Frame(None, self._plan.item, index, key, fields))

    def _at_fault(self, index: int, key: str, error: PipelineError) -> None:
        self._say_failed(key, None, error)
        outcome: Outcome[Any] = Outcome("failed", None, error, key, index)
        self.level.take_failed(index, outcome)
        self.deliver(index, outcome)

    def _verify(self, fields: Mapping[str, Any]) -> None:
        """On the first item, before any tool runs: it has the fields that the pipeline takes for granted."""
        self._verified = True
        wanted = list(self._plan.assumed) if self.pipeline.fields is None else []
        missing = [name for name in wanted if name not in fields]
        key = self.pipeline.key
        if isinstance(key, str) and key not in fields:
            error = PipelineError(
                f"pipeline {self.pipeline.name!r}: the first item has no field {key!r}, which is to be its key; it has "
                f"{', '.join(map(str, fields)) or 'none'}"
            )
            self.fail(error)
            raise error
        if missing:
            error = PipelineError(
                f"pipeline {self.pipeline.name!r}: the first item has no field {missing[0]!r}, which a phase takes as "
                f"an input; it has {', '.join(map(str, fields)) or 'none'}; bind the input to another name, or declare "
                f"item=[...]"
            )
            self.fail(error)
            raise error

    def end_open(self) -> None:
        """End what no worker holds any more as cancelled, so that each item that was pulled has its outcome."""
        work: Step | None
        while True:
            seats = [seat for batch in self._batches.all for seat in batch.seats] if self._batches is not None else []
            if self._ended:
                work = self._after(*self._ended.pop())
            elif self._branches:
                work = self._branches.popleft()
            elif seats:
                self._unseat(seats[0])
                continue
            elif self._open_expansions:
                expansion = self._open_expansions.pop()
                expansion.cut_short()
                self._unclosed.append(expansion.elements)
                work = self._after(expansion.frame, expansion.planned)
            else:
                return
            while work is not None:
                frame, planned = work
                frame.cut(planned)
                work = self._after(frame, planned)

    # --- batches

    def _seat(
        self, host: Host, frame: Frame, planned: PlannedPhase, inputs: dict[str, Any]
    ) -> Awaitable[Step | None] | None:
        """Have an item wait for a batch; who fills it runs it."""
        assert self._batches is not None
        batch = self._batches.by_name[planned.phase.name]
        call = self._registered(frame, planned, batch.for_items, inputs)
        call.status = "waiting"
        self.last_ended_ns = perf_counter_ns()  # as for an item: it makes no call
        is_first = not batch.seats
        batch.add(Seat(frame, planned, call, inputs, self._unseat))
        self._passed(planned)
        if len(batch.seats) >= batch.size:
            return self._run_batch(host, batch)
        if is_first and batch.wait is not None:
            self.wake_one()  # who sleeps without a limit has to look when it is due
        return None

    def _unseat(self, seat: Seat) -> None:
        """The call of one that waits for a batch was cancelled."""
        assert self._batches is not None
        self._batches.by_name[seat.planned.phase.name].remove(seat)
        seat.call._host = None
        seat.call.end("cancelled")
        seat.frame.fail(seat.planned.phase.name, seat.call)
        self._ended.append((seat.frame, seat.planned))
        self.wake_one()

    async def _run_batch(self, host: Host, batch: Batch) -> Step | None:
        """Run a batch, and have its items go on."""
        seats = batch.leave()
        while seats:
            inputs = {name: [seat.inputs[name] for seat in seats] for name in seats[0].inputs}
            call = self.home.new_call(batch.bound, inputs, self.parent)
            call.batch_size = len(seats)
            for seat in seats:
                seat.call.batch_id = call.id
                seat.call.status = "running"
            try:
                rest = self._begin(host, call)
                if rest is not None:
                    await rest
            finally:
                host.call = None
                self.last_ended_ns = call.ended_ns
                if not call.ended_ns:
                    call.end("cancelled")
                again = give_out(call, seats)
                for seat in seats:
                    if seat not in again:
                        self._unboard(seat)
            seats = again
        for _ in range(len(self._ended) - 1):
            self.wake_one()
        return self._after(*self._ended.pop()) if self._ended else None

    def _unboard(self, seat: Seat) -> None:
        expansion = self._take_result(seat.frame, seat.planned, seat.call)
        if expansion is None:
            self._ended.append((seat.frame, seat.planned))

    def _begun(self, frame: Frame) -> None:
        if self._batches is not None:
            self._batches.expect(frame.steps)

    def _passed(self, planned: PlannedPhase) -> None:
        if self._batches is not None:
            self._batches.passed(planned)

    # --- outcomes

    def _say_failed(self, key: str, phase: str | None, error: PipelineError) -> None:
        """Put on record that an item failed outside of any call."""
        if self.home.log is not None:
            self.home.log.emit(
                "item.failed",
                run_id=self.run_id,
                pipeline=self.pipeline.name,
                phase=phase,
                item=key,
                error=error_fields(error),
                status="failed",
            )

    def _item_done(self, frame: Frame) -> None:
        self._keys.discard(frame.key)
        outcome = item_outcome(frame, self._plan)
        self.level.take_item(frame)
        self.deliver(frame.index, outcome)

    # --- once per run

    def stop(self) -> None:
        """Cancel what is in flight."""
        super().stop()
        self.level.cancel("the run has ended")

    async def close(self) -> None:
        """Stop and wait for the workers; generators that were left early are closed where they were made."""
        try:
            await super().close()
        finally:
            try:
                await self.level.closed()
            finally:
                await close_all(self._unclosed)

    async def finished(self) -> None:
        """Run the run-level phases, once all items have ended."""
        if self._finished:
            return
        self._finished = True
        self.level.end_live()
        await self.level.finish(lambda: not (self.stopped or self.drained))
