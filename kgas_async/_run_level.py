"""What runs once per run: what it collects of the items, when it begins, what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ._bound import Bound
from ._call import Call, wait_for_end
from ._employer import Employer
from ._errors import CallSkipped, PipelineError, shown
from ._frame import Frame
from ._inputs import taken
from ._item_outcome import outcome_as_input
from ._limits import ConcurrencyLimit
from ._live import NOTHING, LiveFeed
from ._order import held_here
from ._outcome import Outcome
from ._pipeline import Pipeline
from ._plan import ITEM, RUN, Binding, PlannedPhase
from ._report import RunReport

__all__ = ["RunLevel"]


class _Collect:
    """What one run-level phase takes of the items."""

    def __init__(self, planned: PlannedPhase, phases: Mapping[str, PlannedPhase]) -> None:
        self.planned = planned
        self.values: dict[str, dict[int, Any]] = {b.parameter: {} for b in planned.bindings if b.collected}
        self.lost = 0
        self.feed: LiveFeed | None = None
        seen = {b.name for b in planned.bindings if b.outcomes}
        values = {b.name for b in planned.bindings if b.kind == "result" and b.collected and not b.outcomes}
        levels = {name: phases[name].level for name in planned.needs}
        self.needs = [name for name in levels if levels[name] == ITEM and (name in values or name not in seen)]
        taken = [b for b in planned.bindings if b.collected]
        self.sees_all = bool(taken) and all(b.outcomes for b in taken)
        self.is_late = any(level not in (ITEM, RUN) for level in levels.values())  # comes after what runs per element


class RunLevel:
    """The run-level phases of one run.

    Attributes:
        results: What they returned, by phase.
        outcomes: What came of them, by phase.
        missing: How many items they went on without, by phase.
    """

    def __init__(
        self, home: Employer, pipeline: Pipeline, bound: Mapping[str, Bound], run_id: str, parent: Call[Any] | None
    ) -> None:
        self.home = home
        self.results: dict[str, Any] = {}
        self.outcomes: dict[str, Outcome[Any]] = {}
        self.missing: dict[str, int] = {}
        self._pipeline = pipeline
        self._phases = pipeline.plan.run.phases
        self._plan = pipeline.plan
        self._bound = bound
        self._run_id = run_id
        self._parent = parent
        self._around = held_here()
        self._collects = [
            _Collect(planned, self._plan.phases) for planned in self._phases if planned.phase.collect is True
        ]
        self._by_name = {collect.planned.phase.name: collect for collect in self._collects}
        self._open: dict[str, Call[Any]] = {}
        self._skipped: set[str] = set()
        self._gate: Any = None

    def tell(self, report: RunReport) -> None:
        """Put on the report what came of them."""
        report.results, report.missing = self.results, self.missing
        begun = {*self.outcomes, *self._open}
        report.not_begun = [one.phase.name for one in self._phases if one.phase.name not in begun]
        for found in (self.results, self.missing, self.outcomes):
            self._put_in_order(found)
        for name, outcome in self.outcomes.items():
            if outcome.error is not None and outcome.status != "skipped":
                report.errors[name] = outcome.error

    def _put_in_order(self, found: dict[str, Any]) -> None:
        """As declared, whichever has ended first, on whichever loop."""
        for name in self._plan.phases:
            if name in found:
                found[name] = found.pop(name)

    # --- live ones

    def check_limits(self) -> None:
        """
        Raises:
            ValueError: A live reader holds its tokens to the end of the run, so that what it reads would never get one.
        """
        held: dict[ConcurrencyLimit, list[str]] = {}
        for planned in self._plan.phases.values():
            if planned.live is not None:
                limits = self._bound[planned.phase.name].limits
                for limit in (one for one in limits if isinstance(one, ConcurrencyLimit)):
                    held.setdefault(limit, []).append(planned.phase.name)
        for limit, readers in held.items():
            others = (name for name, one in self._plan.phases.items() if one.level != RUN)
            wanting = [name for name in others if limit in self._bound[name].limits]
            if len(readers) > limit.total or (wanting and len(readers) == limit.total):
                raise ValueError(
                    f"pipeline {self._pipeline.name!r}: phase {readers[0]!r} reads live, and so holds a token of "
                    f"{limit!r} until the run ends, for which phase {(wanting or readers[1:])[0]!r} would wait: give "
                    f"one of them another limit"
                )

    def start_live(self, on_read: Any) -> list[LiveFeed]:
        """Begin the phases that read while the run goes on; ``on_read`` is called when one of them did."""
        feeds = []
        for collect in self._collects:
            live = collect.planned.live
            if live is None:
                continue
            feed = LiveFeed(self.home.mailbox, self._reader(live), on_read)
            collect.feed = feed
            feeds.append(feed)
            self._start(collect.planned, {live.parameter: feed})
        return feeds

    def _reader(self, binding: Binding) -> Any:
        return lambda value: taken(binding, value)

    def end_live(self) -> None:
        """There are no more items."""
        for collect in self._collects:
            if collect.feed is not None:
                collect.feed.end()

    # --- items

    def take_item(self, frame: Frame) -> None:
        """An item has ended: its values, where it has them."""
        for collect in self._collects:
            needs = collect.needs
            blocked = frame.blocked(needs) if frame.bad or frame.skipped else None
            if collect.is_late and frame.status != "succeeded":
                blocked = "bad"
            if blocked == "bad":
                collect.lost += 1
            for binding in collect.planned.bindings:
                if not binding.collected:
                    continue
                value = NOTHING
                if binding.outcomes:
                    value = outcome_as_input(frame, self._plan.phases[binding.name])
                elif blocked is None:
                    value = (frame.fields if binding.kind == "field" else frame.results).get(binding.name, NOTHING)
                self._keep(collect, binding, frame.index, value)

    def take_failed(self, index: int, outcome: Outcome[Any]) -> None:
        """An item was at fault before any of its phases."""
        for collect in self._collects:
            collect.lost += outcome.status != "skipped" and not collect.sees_all
            for binding in collect.planned.bindings:
                if binding.collected:
                    self._keep(collect, binding, index, outcome if binding.outcomes else NOTHING)

    def _keep(self, collect: _Collect, binding: Binding, index: int, value: Any) -> None:
        if collect.feed is not None:
            collect.feed.put(index, value)
        elif value is not NOTHING:
            collect.values[binding.parameter][index] = value

    # --- their calls

    def _start(self, planned: PlannedPhase, inputs: dict[str, Any]) -> None:
        name = planned.phase.name
        call = self.home.new_call(self._bound[name], inputs, self._parent)
        call.around = self._around
        call.on_end = lambda ended: self._ended(planned, ended)
        self._open[name] = call
        self.home.start_call(call)

    def _ended(self, planned: PlannedPhase, call: Call[Any]) -> None:
        name = planned.phase.name
        del self._open[name]
        self.outcomes[name] = call.to_outcome()
        if call.ok:
            self.results[name] = call.value
        collect = self._by_name.get(name)
        if collect is not None and collect.feed is not None:
            collect.feed.close()
        if self._gate is not None:
            self._gate.set()

    def cancel(self, reason: str) -> None:
        """Cancel what runs."""
        for call in list(self._open.values()):
            call.cancel(reason)

    async def closed(self) -> None:
        """Wait for what was cancelled; each call ends within its grace.

        Cancellation: Waited out; asyncio's own is raised again.
        """
        native: BaseException | None = None
        for call in list(self._open.values()):
            native = await wait_for_end(call, float("inf")) or native
        if native is not None:
            raise native

    async def finish(self, may_start: Callable[[], bool]) -> None:
        """Wait for the live ones, and as long as they ``may_start`` run the others, those side by side that may."""
        waiting = [one for one in self._phases if one.live is None]
        while True:
            if not may_start():
                waiting.clear()
            for planned in list(waiting):
                if all(name in self.outcomes for name in self._needs_of(planned)):
                    waiting.remove(planned)
                    self._begin(planned)
            for name, collect in self._by_name.items():
                if collect.feed is not None and name in self.outcomes and collect.lost and name not in self.missing:
                    self._say_missing(collect)
            if not self._open:
                if not waiting:
                    return
                continue
            self._gate = self.home.mailbox.gate()
            await self._gate.wait()

    def _needs_of(self, planned: PlannedPhase) -> list[str]:
        return [name for name in planned.needs if self._plan.phases[name] in self._phases]

    def _begin(self, planned: PlannedPhase) -> None:
        name = planned.phase.name
        needs = self._needs_of(planned)
        collect = self._by_name.get(name)
        tool = planned.phase.tool.name
        failed = [need for need in needs if need not in self.results and need not in self._skipped]
        if not failed and any(need in self._skipped for need in needs):
            self._skip(planned, "what it needs was skipped")
        elif failed:
            error = CallSkipped(f"phase {name!r} was not run: what it needs failed", tool=tool)
            self.outcomes[name] = Outcome("skipped", None, error, name, -1)
        elif collect is not None and collect.lost and self._say_missing(collect):
            error = CallSkipped(
                f"phase {name!r} was skipped: {collect.lost} items failed", tool=planned.phase.tool.name
            )
            self.outcomes[name] = Outcome("skipped", None, error, name, -1)
        else:
            try:
                inputs = self._inputs(planned, collect)
                wanted = planned.when is None or planned.when(inputs)
            except Exception as error:  # noqa: BLE001  (a property or a function of the user's)
                self._fault(planned, collect, error)
                return
            if wanted:
                self._start(planned, inputs)
            else:
                self._skip(planned, "when= said no")

    def _fault(self, planned: PlannedPhase, collect: _Collect | None, error: Exception) -> None:
        """Its inputs or its ``when`` cannot be read: it has failed, and there is no item to say so of, but its call."""
        name = planned.phase.name
        failure = error if isinstance(error, PipelineError) else PipelineError(f"phase {name!r}: {shown(error)}")
        if failure is not error:
            failure.__cause__ = error
        values = {} if collect is None else collect.values
        given = {one.parameter: values.get(one.parameter, self.results.get(one.name)) for one in planned.bindings}
        self.home.new_call(self._bound[name], given, self._parent).end("failed", failure)  # which knows what to redact
        self.outcomes[name] = Outcome("failed", None, failure, name, -1)

    def _skip(self, planned: PlannedPhase, why: str) -> None:
        name = planned.phase.name
        self._skipped.add(name)
        call = self.home.new_call(self._bound[name], {}, self._parent)
        error = CallSkipped(f"phase {name!r} was skipped: {why}", tool=call.tool_name, call_id=call.id)
        call.end("skipped", error)
        self.outcomes[name] = Outcome("skipped", None, None, name, -1)

    def _say_missing(self, collect: _Collect) -> bool:
        """Say how many items it is without; whether it is not to run therefore."""
        phase = collect.planned.phase
        self.missing[phase.name] = collect.lost
        skips = phase.missing == "skip"
        if self.home.log is not None:
            self.home.log.emit(
                "phase.incomplete",
                run_id=self._run_id,
                pipeline=self._pipeline.name,
                phase=phase.name,
                missing=collect.lost,
                status="skipped" if skips else None,
            )
        return skips

    def _inputs(self, planned: PlannedPhase, collect: _Collect | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for binding in planned.bindings:
            if binding.collected:
                assert collect is not None
                by_index = collect.values[binding.parameter]
                inputs[binding.parameter] = [taken(binding, by_index[index]) for index in sorted(by_index)]
            else:
                inputs[binding.parameter] = taken(binding, self.results[binding.name])
        return inputs
