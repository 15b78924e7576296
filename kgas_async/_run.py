"""A run of a pipeline in motion: items come in and are walked, batches leave, outcomes go out.

How an item gets from phase to phase is `_walk`'s; what runs once per run is `_run_level`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping, Sequence
from time import perf_counter_ns
from typing import Any, Final

from ._batch import Batch, Batches, Seat, give_out
from ._bound import Bound
from ._employer import Employer
from ._errors import CallCancelled, PipelineError
from ._expand import Elements, close_all
from ._frame import Frame
from ._host import Host
from ._in_line import Place
from ._inputs import as_pipeline_error, item_fields, key_of, with_fields_read
from ._item_outcome import item_outcome
from ._outcome import Outcome, lost_outcome
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

    Attributes:
        reused: How many items were in a journal as a whole.
    """

    level_class: type[RunLevel] = RunLevel
    reused = 0

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
        self.level = self.level_class(home, pipeline, bound, run_id, self.parent)
        self.level.check_limits()
        self._batches = Batches(pipeline.plan, bound) if pipeline.plan.batches else None
        self._unclosed: list[Elements] = []  # lazy ones that were left early
        self._keys: set[str] = set()
        self._frames: dict[int, Frame] = {}  # of the items that are open
        self._keyed = pipeline.key is not None
        self._verified = False
        self._finished = False
        self._feeds: list[Any] = []
        for batch in self._batches.all if self._batches is not None else ():
            if batch.size > self.in_flight:
                raise ValueError(
                    f"pipeline {pipeline.name!r}, phase {batch.planned.phase.name!r}: batch={batch.size} is more than "
                    f"in_flight={self.in_flight}, so it could never be full; raise in_flight"
                )

    def start(self) -> None:
        """Begin with the phases that read live, and hire the first worker."""
        self._feeds = self.level.start_live(self.wake_one)
        super().start()

    # --- units

    def take(self) -> Any:
        """Who was let in, a late batch, who goes on, a branch, an element of the newest expansion, an item, a batch."""
        if self._let_in:
            return self._let_in.popleft()
        if self._places and self._is_crowded():
            return None
        if self._batches is not None and not self.stopped and (batch := self._batches.overdue()) is not None:
            return batch
        if self._ended:
            return (_RESUME, self._ended.pop())
        if self._branches:
            return self._branches.popleft()
        giving = self._giving
        for place in range(len(giving) - 1, -1, -1):
            unit = giving[place].take()
            if unit is not None:
                return unit
            if not giving[place].has_more:
                del giving[place]
        unit = self.next_item()
        if unit is not None:
            return unit
        if self._batches is not None and not self.stopped:
            return self._batches.ready(self._giving, pulling=self._puller is not None)
        return None

    def next_item(self) -> Any:
        """The next ``(index, item)``, as far as items may be open and live readers keep up."""
        if not self._laid_aside:  # else there is one that counts as open and pulled already
            if self._batches is not None and self.open >= self.in_flight:
                return None
            for feed in self._feeds:
                if self.pulled - feed.position >= self.window:
                    return None
        return super().next_item()

    def park_until(self) -> float:
        """When a worker without work is to look again: a batch is due then."""
        return float("inf") if self._batches is None or self._is_crowded() else self._batches.due_at()

    def process(self, host: Host, unit: Any) -> Awaitable[None] | None:
        """Walk an item, a branch or an element as far as it goes without waiting; the rest of it."""
        work: Step | None
        if isinstance(unit, tuple):
            first, second = unit
            if first.__class__ is int:
                work = self._admitted(first, second)
            else:
                work = self._after(*second) if first is _RESUME else unit
        elif isinstance(unit, Place):
            pending = self._begin_admitted(host, unit)
            return None if pending is None else self._go_on(host, pending)
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
            if self._keyed:
                key = self._key_of(item, fields, index)
            if self._plan.taken_per_run:
                fields = with_fields_read(self.pipeline, self._plan.taken_per_run, fields, key)
        except Exception as error:  # noqa: BLE001  (a mapping or a property of the user's, if not ours)
            self._at_fault(index, key, as_pipeline_error(f"pipeline {self.pipeline.name!r}: item {index}", error), item)
            return None
        if self.pipeline.key is not None:
            self._keys.add(key)
        frame = self._frames[index] = Frame(None, self._plan.item, index, key, fields)
        return self._entered(frame)

    def _key_of(self, item: Any, fields: Mapping[str, Any], index: int) -> str:
        """The key of an item.

        Raises:
            PipelineError: It has none, or that of another one in flight.
        """
        key = key_of(self.pipeline.key, item, fields, index, self.pipeline.name)
        if key in self._keys:
            raise PipelineError(
                f"pipeline {self.pipeline.name!r}: item {index} has the key {key!r} of another item in flight; keys "
                f"must differ"
            )
        return key

    def _at_fault(self, index: int, key: str, error: PipelineError, item: Any) -> None:
        self._say_failed(key, None, error, item)
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

    def lose(self, host: Host, unit: Any, error: BaseException) -> None:
        """What is left of it, `end_open` ends; but an item that was not admitted yet nobody would know of."""
        index = unit[0] if isinstance(unit, tuple) else None
        if isinstance(index, int) and index not in self._frames and not self.is_delivered(index):
            self._lost(str(index), index, error)

    def _lost(self, key: str, index: int, error: BaseException) -> None:
        outcome = lost_outcome(key, index, error)
        try:
            self.level.take_failed(index, outcome)
        finally:
            self.deliver(index, outcome)

    def end_open(self) -> None:
        """End what no worker holds any more as cancelled, so that each item that was pulled has its outcome."""
        try:
            self.call_all_off()
            for batch in self._batches.all if self._batches is not None else ():
                while batch.seats:
                    self._unseat(batch.seats[0])
            if self.breakdown is not None:
                for frame in self._frames.values():
                    frame.end_lost()
            self._cut_open()
        finally:
            # What was in the hands of a worker that broke down, wherever it stood.
            for index, frame in list(self._frames.items()):
                if not self.is_delivered(index):
                    self._lost(frame.key, index, self.breakdown or CallCancelled("its worker was cancelled"))

    def _cut_open(self) -> None:
        work: Step | None
        while True:
            if self._ended:
                work = self._after(*self._ended.pop())
            elif self._branches:
                work = self._branches.popleft()
            elif self._open_expansions:
                expansion, _ = self._open_expansions.popitem()
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
        self._batches.boarded(planned)
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
        self._batches.unboarded(seat.planned)
        self._ended.append((seat.frame, seat.planned))
        self.wake_one()

    async def _run_batch(self, host: Host, batch: Batch) -> Step | None:
        """Run a batch, and have its items go on."""
        seats = batch.leave()
        while seats:
            if host.was_cancelled:  # for the call before, which has ended all the same: it must not hit the next one
                batch.take_back(seats)
                break
            inputs = {name: [seat.inputs[name] for seat in seats] for name in seats[0].inputs}
            call = self.home.new_call(batch.bound, inputs, self.parent)
            call.around = self.around
            call.batch_size = len(seats)
            for seat in seats:
                seat.call.batch_id = call.id
                seat.call.status = "running"
            try:
                rest = self._begin(host, call)
                if rest is not None:
                    await rest
            except BaseException as error:
                self._broke(call, error)
                if not call.ended_ns:
                    call.end("cancelled")
                self._unboard(seats, give_out(call, seats, is_last=True))
                raise
            finally:
                host.call = None
                self.last_ended_ns = call.ended_ns
            again = give_out(call, seats)
            self._unboard(seats, again)
            seats = again
        for _ in range(len(self._ended) - 1):
            self.wake_one()
        return self._after(*self._ended.pop()) if self._ended else None

    def _unboard(self, seats: Sequence[Seat], staying: Sequence[Seat]) -> None:
        """A batch's call has ended: who was in it has its result, but for those who go again."""
        assert self._batches is not None
        left = set(staying)
        for seat in seats:
            if seat in left:
                continue
            expansion = self._take_result(seat.frame, seat.planned, seat.call)
            self._batches.unboarded(seat.planned)
            if expansion is None:
                self._ended.append((seat.frame, seat.planned))

    def _begun(self, frame: Frame) -> None:
        if self._batches is not None:
            self._batches.expect(frame.steps)

    def _passed(self, planned: PlannedPhase) -> None:
        if self._batches is not None:
            self._batches.passed(planned)

    # --- outcomes

    def _say_failed(self, key: str, phase: str | None, error: PipelineError, *given: Any) -> None:
        """Put on record that an item failed outside of any call."""
        if self.home.log is not None:
            tracing = self.home.tracing
            secrets = frozenset() if tracing is None else tracing.secrets_of(given) | tracing.secrets(self.parent)
            self.home.log.emit(
                "item.failed",
                run_id=self.run_id,
                pipeline=self.pipeline.name,
                phase=phase,
                item=key,
                error=error_fields(error, secrets),
                status="failed",
            )

    def _item_done(self, frame: Frame) -> None:
        self._keys.discard(frame.key)
        outcome = item_outcome(frame, self._plan)
        self.level.take_item(frame)
        self.deliver(frame.index, outcome)
        del self._frames[frame.index]

    # --- once per run

    def stop(self) -> None:
        """Cancel what is in flight."""
        super().stop()
        self.call_all_off()
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
        """Run the run-level phases, once all items have ended; if there are all, and the source has not broken off."""
        if self._finished:
            return
        self._finished = True
        self.level.end_live()
        await self.level.finish(lambda: not (self.stopped or self.draining or self.last_error))
