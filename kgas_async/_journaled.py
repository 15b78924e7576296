"""A run with a journal: what is recorded is not run again, and what ran is committed before its item leaves.

The hooks of `RunCrew` that it overrides are where an item comes in, where a phase has its inputs and where it has its
result; a run without a journal knows nothing of any of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from ._bound import Bound
from ._call import Call
from ._digest import digest
from ._employer import Employer
from ._errors import JournalError, PipelineError
from ._frame import Expansion, Frame
from ._host import Host
from ._item_outcome import item_outcome
from ._journal import Journal
from ._journal_file import Recorded
from ._journaled_items import (
    OpenItem,
    end_reused,
    ended_as,
    kept_failure,
    kept_outcome,
    place_of,
    root_of,
    rows_after,
)  # fmt: skip
from ._journaled_level import JournaledLevel
from ._outcome import Outcome
from ._pipeline import Pipeline
from ._plan import PlannedPhase
from ._run import RunCrew
from ._run_journal import NOTHING, Kept, RunJournal
from ._source import length_of
from ._walk import Step

__all__ = ["JournaledCrew"]

STOPPING_S: Final = 5.0  # seconds that a run which is stopped waits, on the loop, for what it has to commit


class JournaledCrew(RunCrew):
    """See the module.

    Args:
        journal: The journal, which `open_journal` opens.
        retry: What runs: ``"all"``, ``"failed"`` or ``"none"``.
        options: As of `RunCrew`.
    """

    level_class = JournaledLevel
    level: JournaledLevel

    def __init__(
        self,
        home: Employer,
        pipeline: Pipeline,
        bound: Mapping[str, Bound],
        run_id: str,
        source: Iterable[Any] | AsyncIterable[Any],
        *,
        journal: Journal,
        retry: str,
        **options: Any,
    ) -> None:
        super().__init__(home, pipeline, bound, run_id, source, **options)
        self.journal = RunJournal(home, journal, pipeline, bound, run_id, self._wake_all_parked, self.journal_failed)
        self._keyed = True
        self._retry = retry
        self._items: dict[int, OpenItem] = {}
        self._asked: dict[int, Frame] = {}  # items of which the journal was asked and has not answered
        self._finishing: dict[int, tuple[Frame, Outcome[Any]]] = {}  # whose records are not committed yet
        self.level.journal = self.journal
        self._is_sealed = self._is_whole = False

    async def open_journal(self) -> None:
        """Open the journal.

        Raises:
            JournalError: It cannot be used; it is as it was.
        """
        try:
            await self.journal.open()
        except BaseException:
            await self.journal.writer.close("failed")
            raise

    def journal_failed(self, error: JournalError) -> None:
        """Nothing more can be recorded, so nothing more is run."""
        if not isinstance(self.error, JournalError) and not self.over:
            self.fail(error)

    # --- items come in

    def next_item(self) -> Any:
        """As of `RunCrew`, as far as the journal keeps up."""
        if not self._laid_aside and (self.journal.writer.is_behind or len(self._asked) >= self.in_flight):
            return None
        return super().next_item()

    def _key_of(self, item: Any, fields: Mapping[str, Any], index: int) -> str:
        if self.pipeline.key is not None:
            return super()._key_of(item, fields, index)
        try:
            return digest(dict(fields))[:24]
        except TypeError as error:
            failure = self.journal.error(
                f"item {index} has no digest, which would be its key in the journal: {error}; name items by "
                f"Pipeline(..., key=...), a field or a function"
            )
            self.fail(failure)
            raise failure from None

    def _entered(self, frame: Frame) -> Step | None:
        """As of `RunCrew` for an element; for an item, once the journal has said what it has of it."""
        if frame.parent is not None:
            return super()._entered(frame)
        self._asked[frame.index] = frame
        self.journal.look_up(frame.key, partial(self._found, frame), numbers=self.pipeline.key is None)
        return None

    def _found(self, frame: Frame, recorded: Recorded, error: BaseException | None) -> None:
        """The journal has answered; on the loop, in nobody's task."""
        try:
            if error is None and self._asked.pop(frame.index, None) is not None:
                self._begin_item(frame, recorded)
        except BaseException as broken:  # noqa: BLE001  (the user's on_progress, or an error of ours)
            self.break_down(broken)

    def _begin_item(self, frame: Frame, recorded: Recorded) -> None:
        if recorded.times:
            del self._frames[frame.index]
            self._keys.discard(frame.key)
            error = PipelineError(
                f"pipeline {self.pipeline.name!r}: item {frame.index} has the key {frame.key!r} of another item of "
                f"this run; with a journal, keys must differ over the whole run"
            )
            self._at_fault(frame.index, frame.key, error, frame.fields)
            self._wake_all_parked()
            return
        frame.key = recorded.item
        kept = kept_outcome(frame, recorded.ended, self._retry)
        if kept is not None and kept.status == "skipped":
            del self._frames[frame.index]
            self._keys.discard(frame.key)
            self.journal.note_seen(frame.key, recorded.ended)
            self.level.take_failed(frame.index, kept)
            self.deliver(frame.index, kept)
            self._wake_all_parked()
            return
        self._items[frame.index] = OpenItem(recorded, kept)
        step = super()._entered(frame)
        if step is not None:
            self._branches.append(step)
        self.wake_one()

    # --- phases

    def _gathered(self, frame: Frame, planned: PlannedPhase) -> dict[str, Any] | None:
        """As of `RunCrew`; an item that keeps its outcome has only what is recorded, and what is left out and taken."""
        inputs = super()._gathered(frame, planned)
        item = self._items[root_of(frame).index]
        if inputs is None or item.kept is None:
            return inputs
        name = planned.phase.name
        kept = self.journal.kept.get(name)
        if kept is None:
            is_there = name in self.journal.taken and name != item.kept.failed_phase
        else:
            try:
                is_there = item.value_of(self.journal, kept, frame, kept.digest(inputs)) is not NOTHING
            except TypeError:  # it is said where the phase is to run
                is_there = True
        if is_there:
            return inputs
        frame.fail_with(name, *kept_failure(item.kept, name))
        return None

    def _recalled(self, frame: Frame, planned: PlannedPhase, kept: Kept, inputs: dict[str, Any]) -> Any:
        """The value that is recorded for these inputs, or `NOTHING`; their digest is kept then.

        Raises:
            JournalError: They have no digest.
        """
        try:
            of_inputs = kept.digest(inputs)
        except TypeError as error:
            raise self.journal.error(str(error)) from error
        item = self._items[root_of(frame).index]
        value = item.value_of(self.journal, kept, frame, of_inputs)
        if value is NOTHING:
            item.digests[frame, kept.name] = of_inputs
            self._runs_anew(frame, planned)
        return value

    def _runs_anew(self, frame: Frame, planned: PlannedPhase) -> None:
        """What comes after it and takes nothing is of before it, and of no use also if this run never comes to that."""
        name = planned.phase.name
        self.level.runs_anew(name)
        rows = self._items[root_of(frame).index].rows
        followers = self.journal.followers.get(name) if rows else None
        for key in rows_after(rows, followers, planned, place_of(frame)) if followers else ():
            self.journal.forget(rows.pop(key))

    def _registered(self, frame: Frame, planned: PlannedPhase, bound: Bound, inputs: dict[str, Any]) -> Call[Any]:
        call = super()._registered(frame, planned, bound, inputs)
        kept = self.journal.kept.get(planned.phase.name)
        if kept is None:
            self._runs_anew(frame, planned)
        if kept is None or planned.phase.batch is not None:
            return call
        try:
            value = self._recalled(frame, planned, kept, inputs)
        except JournalError as error:
            call.end("failed", error)
            self.fail(error)
            return call
        if value is not NOTHING:
            end_reused(call, value)
        return call

    def _seat(
        self, host: Host, frame: Frame, planned: PlannedPhase, inputs: dict[str, Any]
    ) -> Awaitable[Step | None] | None:
        """Have an item wait for a batch, unless the journal has what that would give it."""
        kept = self.journal.kept.get(planned.phase.name)
        if kept is None:
            return super()._seat(host, frame, planned, inputs)
        assert self._batches is not None
        error: JournalError | None = None
        value = NOTHING
        try:
            value = self._recalled(frame, planned, kept, inputs)
        except JournalError as raised:
            error = raised
        if error is None and value is NOTHING:
            return super()._seat(host, frame, planned, inputs)
        call = self._registered(frame, planned, self._batches.by_name[kept.name].for_items, inputs)
        if error is not None:
            call.end("failed", error)
            self.fail(error)
        else:
            end_reused(call, value)
        self.last_ended_ns = call.ended_ns
        expansion = self._take_result(frame, planned, call)
        self._passed(planned)
        if expansion is None:
            self._ended.append((frame, planned))
        self.wake_one()
        return None

    def _take_result(self, frame: Frame, planned: PlannedPhase, call: Call[Any]) -> Expansion | None:
        kept = self.journal.kept.get(planned.phase.name)
        item = self._items[root_of(frame).index]
        of_inputs = None if kept is None else item.digests.pop((frame, kept.name), None)
        if kept is None or of_inputs is None or not call.ok:
            return super()._take_result(frame, planned, call)
        if planned.phase.expand is None:
            call.value = self._recorded(frame, kept, of_inputs, call.value)
            return None if call.value is NOTHING else super()._take_result(frame, planned, call)
        size = length_of(call.value)
        expansion = super()._take_result(frame, planned, call)
        if expansion is not None:
            item.expanding[expansion] = of_inputs
            if size == 0:
                self._note_whole(expansion)
        return expansion

    def _recorded(self, frame: Frame, kept: Kept, of_inputs: bytes, value: Any) -> Any:
        """Have a value written, and give it as it comes back; `NOTHING` where it cannot be, which ends the run."""
        try:
            data, value = kept.encoded(value)
        except TypeError as error:
            failure = self.journal.error(str(error))
            frame.fail_with(kept.name, failure)
            self.fail(failure)
            return NOTHING
        self.journal.put(kept, root_of(frame).key, place_of(frame), of_inputs, data)
        return value

    # --- expansions

    def take(self) -> Any:
        """As of `RunCrew`; nothing new is begun where the journal does not keep up."""
        if self.journal.writer.is_behind and not (self._let_in or self._ended or self._branches):
            return None
        unit = super().take()
        if unit.__class__ is Frame and unit.expansion is not None:
            self._note_element(unit, unit.expansion)
        return unit

    def park_until(self) -> float:
        """As of `RunCrew`; where the journal does not keep up, until it does."""
        return float("inf") if self.journal.writer.is_behind else super().park_until()

    def _note_element(self, frame: Frame, expansion: Expansion) -> None:
        of_inputs = self._items[root_of(frame).index].expanding.get(expansion)
        if of_inputs is None:
            return
        phase = expansion.planned.phase
        name = str(phase.expand)
        element = self._recorded(frame, self.journal.kept[phase.name], of_inputs, frame.fields[name])
        frame.fields = {name: element}
        if element is not NOTHING and not expansion.has_more:
            self._note_whole(expansion)

    def _note_whole(self, expansion: Expansion) -> None:
        """All elements of an expansion have been taken: then what gave them has nothing left to do."""
        owner = expansion.frame
        root = root_of(owner)
        of_inputs = self._items[root.index].expanding.pop(expansion, None)
        if of_inputs is not None and expansion.error is None:
            kept = self.journal.kept[expansion.planned.phase.name]
            count = b"%d" % len(expansion.frames)
            self.journal.put(kept, root.key, place_of(owner), of_inputs, count)

    def _is_over(self, expansion: Expansion) -> bool:
        is_over = super()._is_over(expansion)
        if is_over:
            self._note_whole(expansion)
        return is_over

    # --- items go out

    def _item_done(self, frame: Frame) -> None:
        outcome = item_outcome(frame, self._plan)
        calls = list(frame.all_calls())
        ran = {str(call.bound.phase) for call in calls if not (call.recorded or call.status == "skipped")}
        self.level.anew |= ran
        item = self._items.pop(frame.index)
        if item.kept is not None and outcome.status != "cancelled":
            outcome = self.level.take_kept(frame, outcome, item.kept)
        else:
            self.level.take_item(frame)
        self.reused += outcome.ok and not ran and any(call.recorded for call in calls)
        recorded = item.recorded
        if recorded is not None and (item.kept is not None or outcome.status == "cancelled"):
            self.journal.note_seen(frame.key, recorded.ended)
        elif outcome.status != "cancelled":
            self.journal.writer.put_item(frame.key, ended_as(outcome))
        self._finishing[frame.index] = frame, outcome
        self.journal.writer.mark(partial(self._committed, frame.index))

    def _committed(self, index: int, error: BaseException | None) -> None:
        """What there is of an item is committed, so that it may leave; or will never be."""
        try:
            finishing = self._finishing.pop(index, None)
            if finishing is not None:  # also once an error was raised: what had ended keeps its outcome
                self._leave(*finishing, error)
        except BaseException as broken:  # noqa: BLE001  (the user's on_progress, or an error of ours)
            self.break_down(broken)

    def _leave(self, frame: Frame, outcome: Outcome[Any], error: BaseException | None) -> None:
        if error is not None and outcome.status in ("succeeded", "skipped"):
            outcome = Outcome("failed", None, error, frame.key, frame.index)
        self._keys.discard(frame.key)
        del self._frames[frame.index]
        self.deliver(frame.index, outcome)
        if self.exhausted and not self.open:
            self._wake_all_parked()
        else:
            self.wake_one()

    def _cut_open(self) -> None:
        """As of `RunCrew`; what had ended, and only has to be committed, keeps the outcome that it has."""
        for frame in self._asked.values():
            self._items[frame.index] = OpenItem(None)
            step = super()._entered(frame)
            if step is not None:
                self._branches.append(step)
        self._asked.clear()
        super()._cut_open()
        if self._finishing:
            self.journal.writer.wait_here(STOPPING_S)
        for index in list(self._finishing):
            self._committed(index, self.journal.error("its records could not be committed in time"))

    async def finished(self) -> None:
        """As of `RunCrew`; what came of the run-level phases is committed."""
        await super().finished()
        if not self._is_sealed:
            self._is_sealed = True
            self._is_whole = not (self.stopped or self.drained or self.last_error)
            error = self.level.error or await self.journal.writer.settled()
            if error is not None:
                self.level.not_committed(error)
                raise error

    async def close(self) -> None:
        """As of `RunCrew`; the journal is closed."""
        try:
            await super().close()
        finally:
            await self.journal.writer.close("ended" if self._is_whole else "cut off")
