"""Run-level phases of a run with a journal: taken from it where everything upstream was, too."""

from __future__ import annotations

from typing import Any

from ._call import Call
from ._digest import digest
from ._errors import JournalError
from ._frame import Frame
from ._journal_file import RUN_PLACE
from ._journaled_items import end_reused
from ._outcome import Outcome
from ._plan import RUN, PlannedPhase
from ._run_journal import NOTHING, Kept, RunJournal, upstream_of
from ._run_level import RunLevel

__all__ = ["JournaledLevel"]


class JournaledLevel(RunLevel):
    """See the module.

    Attributes:
        journal: The run's; its crew sets it.
        anew: The phases of which something has run, or failed, in this run.
        error: Why a result could not be kept.
    """

    journal: RunJournal
    error: JournalError | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.anew: set[str] = set()
        self._begun: set[str] = set()
        self._items = 0  # the sum of the digests of their keys: the same in whatever order they end
        self._digests: dict[str, bytes] = {}
        self._recorded: list[PlannedPhase] = []

    def take_item(self, frame: Frame) -> None:
        """As of `RunLevel`; which items there are counts too."""
        self.count_item(frame.key)
        super().take_item(frame)

    def take_kept(self, frame: Frame, outcome: Outcome[Any], kept: Outcome[Any]) -> Outcome[Any]:
        """As `take_item`, of an item of which only what is recorded was taken; it has the outcome that it keeps."""
        kept._phases = outcome._phases
        if outcome.status in ("succeeded", "skipped"):  # the phase that failed is no part of the pipeline any more
            self.count_item(frame.key)
            self.take_failed(frame.index, kept)
        else:
            self.take_item(frame)
        return kept

    def count_item(self, key: str) -> None:
        """An item of this run."""
        self._items += int(digest(key), 16)

    def _digest(self, planned: PlannedPhase, kept: Kept, inputs: dict[str, Any]) -> bytes:
        """Of its inputs; and of which items there are, where it comes after phases of theirs and takes nothing of them.

        Raises:
            TypeError: An input has none; it names it.
        """
        taken = {binding.name for binding in planned.bindings if binding.kind == "result"}
        after = [name for name in planned.needs if name not in taken and self._plan.phases[name].level != RUN]
        return kept.digest({**inputs, "": f"{self._items:x}"} if after else inputs)

    def _start(self, planned: PlannedPhase, inputs: dict[str, Any]) -> None:
        kept = self.journal.kept.get(planned.phase.name)
        if kept is None:
            self.runs_anew(planned.phase.name)
            super()._start(planned, inputs)
            return
        try:
            of_inputs = self._digest(planned, kept, inputs)
        except TypeError as error:
            self._fail(planned, self.journal.error(str(error)))
            return
        row = self.journal.run_rows.get(kept.name)
        if row is not None and self._upstream(planned).isdisjoint(self.anew):
            value = self.journal.value_of(kept, {(RUN_PLACE, kept.name): row}, RUN_PLACE, of_inputs)
            if value is not NOTHING:
                self._reuse(planned, inputs, value)
                return
        self._digests[kept.name] = of_inputs
        self.runs_anew(kept.name)
        super()._start(planned, inputs)

    def runs_anew(self, name: str) -> None:
        """A phase is about to run: what is recorded of those after it is of before, also for another run."""
        if name in self._begun:
            return
        self._begun.add(name)
        rows = self.journal.run_rows
        for other in list(rows):
            planned = self._plan.phases.get(other)
            if planned is None or name in self._upstream(planned):
                self.journal.forget(rows.pop(other))

    def not_committed(self, error: JournalError) -> None:
        """What was to be recorded is not in the journal, so it has not succeeded."""
        for planned in self._recorded:
            self._fail(planned, error)

    def _reuse(self, planned: PlannedPhase, inputs: dict[str, Any], value: Any) -> None:
        name = planned.phase.name
        call = self.home.new_call(self._bound[name], inputs, self._parent)
        self._open[name] = call
        end_reused(call, value)
        self._ended(planned, call)

    def _upstream(self, planned: PlannedPhase) -> set[str]:
        return upstream_of(planned, self._plan.phases)

    def _ended(self, planned: PlannedPhase, call: Call[Any]) -> None:
        kept = self.journal.kept.get(planned.phase.name)
        super()._ended(planned, call)
        if not call.recorded:
            self.anew.add(planned.phase.name)
        of_inputs = None if kept is None else self._digests.pop(kept.name, None)
        if kept is None or of_inputs is None or not call.ok:
            return
        try:
            data, value = kept.encoded(call.value)
        except TypeError as error:
            self._fail(planned, self.journal.error(str(error)))
            return
        self.results[kept.name] = self.outcomes[kept.name].value = value
        self.journal.put(kept, "", RUN_PLACE, of_inputs, data)
        self._recorded.append(planned)

    def _fail(self, planned: PlannedPhase, error: JournalError) -> None:
        name = planned.phase.name
        self.error = self.error or error
        self.results.pop(name, None)
        self.anew.add(name)
        self.outcomes[name] = Outcome("failed", None, error, name, -1)
