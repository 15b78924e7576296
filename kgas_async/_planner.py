"""From declared phases to a plan: their order, what waits for what, and the checks of the whole.

Names are resolved one phase at a time by `_resolve`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from ._phase import Phase
from ._plan import ITEM, RUN, Level, Plan, PlannedPhase, Steps
from ._resolve import Resolver

__all__ = ["Planner"]


class Planner:
    """Puts phases in order, has their names resolved, and finds who waits for whom."""

    def __init__(self, pipeline: str, fields: Mapping[str, Any] | None, phases: Sequence[Phase]) -> None:
        self.name = pipeline
        self.declared = phases
        self.resolver = Resolver(pipeline, fields, phases)

    def plan(self) -> Plan:
        """The plan.

        Raises:
            ValueError, TypeError: What does not fit.
        """
        resolver = self.resolver
        for error in self._taken_names():
            raise error
        for phase in self._in_order(self._refuse_round):
            resolver.add(phase)
        resolver.check_assumed()
        phases = {phase.name: resolver.planned[phase.name] for phase in self.declared}
        by_level: dict[Level, Steps] = {ITEM: Steps([]), RUN: Steps([])}
        for planned in phases.values():
            by_level.setdefault(planned.level, Steps([])).phases.append(planned)
        for element, planned in resolver.expansions.items():
            planned.children = by_level.get((*planned.level, element), Steps([]))
        for steps in by_level.values():
            self._connect(steps)
        batches = [one for one in resolver.planned.values() if one.phase.batch is not None]
        taken: dict[str, bool] = {}
        for binding in (one for planned in by_level[RUN].phases for one in planned.bindings if one.kind == "field"):
            taken[binding.name] = taken.get(binding.name, True) and binding.optional
        return Plan(
            by_level[ITEM], by_level[RUN], tuple(resolver.assumed), self._leaves(phases), phases, tuple(batches), taken
        )

    def mistakes(self, unknown: Container[str]) -> Iterator[Exception]:
        """What does not fit, as far as it can be told at once: nothing of what needs a phase that does not fit itself.

        Args:
            unknown: Phases of which only the names are known; their tools stand for others.
        """
        yield from self._taken_names()
        rounds: list[Exception] = []
        in_a_round: set[str] = set()

        def note(names: list[str]) -> None:
            in_a_round.update(names)
            try:
                self._refuse_round(names)
            except ValueError as error:
                rounds.append(error)

        order = self._in_order(note)
        yield from rounds
        for name in in_a_round:
            self.resolver.leave_out(next(phase for phase in self.declared if phase.name == name))
        for phase in order:
            if phase.name not in in_a_round:
                yield from self.resolver.mistakes_of(phase, is_known=phase.name not in unknown)

    def _at(self, phase: Phase, what: str) -> str:
        return f"pipeline {self.name!r}, phase {phase.name!r}: {what}"

    def _taken_names(self) -> Iterator[ValueError]:
        fields = self.resolver.fields
        taken: set[str] = set()
        for phase in self.declared:
            names = [(phase.name, f"phase {phase.name!r}")]
            if phase.expand is not None:
                names.append((phase.expand, f"the element that phase {phase.name!r} expands into"))
            for name, what in names:
                if name in taken:
                    yield ValueError(f"pipeline {self.name!r}: {what} has a name that is taken: {name!r}")
                elif fields is not None and name in fields:
                    yield ValueError(f"pipeline {self.name!r}: {what} has the name of an item field: {name!r}")
                taken.add(name)

    def _refuse_round(self, names: list[str]) -> None:
        circle = " -> ".join([*names, names[0]])
        raise ValueError(f"pipeline {self.name!r}: phases need each other in a circle: {circle}")

    def _in_order(self, refuse: Callable[[list[str]], None]) -> list[Phase]:
        """As declared, but for phases that name later ones; ``refuse`` is told those that go round in a circle."""
        owner = {phase.name: phase for phase in self.declared}
        owner |= {phase.expand: phase for phase in self.declared if phase.expand is not None}
        done: dict[str, Phase] = {}
        on_the_way: list[str] = []

        def visit(phase: Phase) -> None:
            if phase.name in done:
                return
            if phase.name in on_the_way:
                refuse(on_the_way[on_the_way.index(phase.name) :])
                return
            on_the_way.append(phase.name)
            for name in self.resolver.names_of(phase):
                if name in owner and owner[name] is not phase:
                    visit(owner[name])
            on_the_way.pop()
            done[phase.name] = phase

        for phase in self.declared:
            visit(phase)
        return list(done.values())

    def _leaves(self, phases: Mapping[str, PlannedPhase]) -> tuple[str, ...]:
        collected = {p.phase.collect for p in phases.values() if isinstance(p.phase.collect, str)}
        taken = {b.name for p in phases.values() if p.level != RUN for b in p.bindings if b.kind == "result"}
        taken |= {p.phase.name for p in phases.values() if p.children.phases or p.phase.expand in collected}
        return tuple(name for name, p in phases.items() if p.level != RUN and name not in taken)

    # --- who waits for whom

    def _connect(self, steps: Steps) -> None:
        """Order the phases of one level, and say for each of them what it waits for and what waits for it."""
        names = {planned.phase.name: planned for planned in steps.phases}
        waits = {name: self._subtree_needs(planned) & names.keys() for name, planned in names.items()}
        done: dict[str, PlannedPhase] = {}
        above: dict[str, set[str]] = {}  # all that is upstream, however far
        while len(done) < len(names):
            ready = next((name for name in names if name not in done and waits[name] <= done.keys()), None)
            if ready is None:
                self._refuse_circle(waits, [name for name in names if name not in done])
            assert ready is not None
            done[ready] = names[ready]
            above[ready] = waits[ready].union(*(above[name] for name in waits[ready]))
        for name, planned in names.items():
            # Who is upstream of another that we wait for need not be waited for: a line stays a line.
            direct = waits[name] - set().union(*(above[other] for other in waits[name]))
            planned.waits = len(direct)
            for other in direct:
                names[other].then += (planned,)
        steps.phases[:] = done.values()
        steps.starts = tuple(planned for planned in steps.phases if not planned.waits)

    def _refuse_circle(self, waits: Mapping[str, set[str]], stuck: list[str]) -> None:
        """Phases of one level wait for each other, since an expansion has all that runs per element in it."""
        circle = [stuck[0]]
        while (following := next(name for name in waits[circle[-1]] if name in stuck)) not in circle:
            circle.append(following)
        circle = circle[circle.index(following) :]
        phases = [self.resolver.planned[name] for name in circle]
        collected = [planned.phase.collect for planned in phases]
        for planned in phases:
            if planned.phase.expand is not None and planned.phase.expand in collected:
                raise ValueError(
                    self._at(
                        planned.phase,
                        f"what runs per {planned.phase.expand!r} needs {sorted(self._subtree_needs(planned))}, of "
                        f"which one collects {planned.phase.expand!r} itself: expand again after it",
                    )
                )
        round_ = " -> ".join([*circle, circle[0]])
        raise ValueError(
            f"pipeline {self.name!r}: phases need each other in a circle: {round_}; a phase that is expanded has ended "
            f"when all that runs per element has"
        )

    def _subtree_needs(self, planned: PlannedPhase) -> set[str]:
        """What a phase, and for an expansion all that runs per element, needs from outside."""
        needs = set(planned.needs)
        inside = {planned.phase.name}
        queue = list(planned.children.phases)
        while queue:
            child = queue.pop()
            inside.add(child.phase.name)
            needs |= set(child.needs)
            queue.extend(child.children.phases)
        needs -= inside
        # Who collects this expansion comes after it by binding its inner phases: those stand for the expansion.
        for name in list(needs):
            level = self.resolver.planned[name].level
            if len(level) > len(planned.level):
                needs.discard(name)
                owner = self.resolver.expansions[level[len(planned.level)]]
                if owner is not planned:
                    needs.add(owner.phase.name)
        return needs
