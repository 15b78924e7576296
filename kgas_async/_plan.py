"""From declared phases to a plan: every name resolved, every check made that can be made before a pipeline runs."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ._fit import cannot_expand, cannot_fit, element_type, list_of
from ._phase import Phase
from ._suggest import nearest

__all__ = ["ITEM", "RUN", "Binding", "Plan", "PlannedPhase", "Planner"]

Level = tuple[str, ...]
RUN: Final[Level] = ("<run>",)  # once per run
ITEM: Final[Level] = ()  # once per source item


@dataclasses.dataclass(frozen=True, slots=True)
class Binding:
    """Where one input comes from.

    Attributes:
        parameter: The input.
        kind: ``field`` of the item, ``result`` of a phase, ``element`` of an expansion.
        name: Of the field, phase or expansion.
        path: Attributes or keys below it.
        level: Where it lives.
        optional: Left out where it is not there: the input has a default.
        collected: A list of it over the expansion that the phase collects.
    """

    parameter: str
    kind: str
    name: str
    path: tuple[str, ...]
    level: Level
    optional: bool = False
    collected: bool = False


@dataclasses.dataclass(slots=True)
class PlannedPhase:
    """A phase with all its names resolved.

    Attributes:
        level: Once per run, per item, or per element of which expansions.
        bindings: Its inputs.
        needs: Names of the phases that it comes after, for data or order.
        children: For an expansion: what runs per element, in order.
    """

    phase: Phase
    level: Level
    bindings: tuple[Binding, ...]
    needs: tuple[str, ...]
    children: list[PlannedPhase] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Plan:
    """What runs in which order.

    Attributes:
        item: Per item.
        run: Once, after all items.
        assumed: Item fields that are taken for granted, since ``item=`` is not declared.
        leaves: The per-item phases that nothing takes further.
        phases: All by name.
    """

    item: list[PlannedPhase]
    run: list[PlannedPhase]
    assumed: tuple[str, ...]
    leaves: tuple[str, ...]
    phases: dict[str, PlannedPhase]


class Planner:
    """Resolves names phase by phase and puts them in order."""

    def __init__(self, pipeline: str, fields: Mapping[str, Any] | None, phases: Sequence[Phase]) -> None:
        self.name = pipeline
        self.fields = fields
        self.declared = phases
        self.planned: dict[str, PlannedPhase] = {}
        self.expansions: dict[str, PlannedPhase] = {}  # by the element's name
        self.assumed: list[str] = []

    def plan(self) -> Plan:
        for phase in self.declared:
            self._check_name(phase.name, f"phase {phase.name!r}")
            planned = self._resolve(phase)
            self.planned[phase.name] = planned
            if phase.expand is not None:
                self._check_name(phase.expand, f"the element that phase {phase.name!r} expands into")
                if planned.level == RUN:
                    raise ValueError(self._at(phase, "runs once per run, so it cannot expand"))
                if cannot_expand(phase.tool.signature.returns):
                    raise TypeError(
                        self._at(phase, f"expands its result, which must be an iterable of elements, but tool "
                        f"{phase.tool.name!r} gives {_shown(phase.tool.signature.returns)}")
                    )  # fmt: skip
                self.expansions[phase.expand] = planned
        self._check_assumed()
        by_level: dict[Level, list[PlannedPhase]] = {ITEM: [], RUN: []}
        for planned in self.planned.values():
            by_level.setdefault(planned.level, []).append(planned)
        for element, planned in self.expansions.items():
            planned.children = by_level.get((*planned.level, element), [])
        for level, steps in by_level.items():
            if level != RUN:
                by_level[level][:] = self._ordered(steps)
        collected = {p.phase.collect for p in self.planned.values() if isinstance(p.phase.collect, str)}
        taken = {b.name for p in self.planned.values() if p.level != RUN for b in p.bindings if b.kind == "result"}
        taken |= {p.phase.name for p in self.planned.values() if p.children or p.phase.expand in collected}
        leaves = tuple(n for n, p in self.planned.items() if p.level != RUN and n not in taken)
        return Plan(by_level[ITEM], by_level[RUN], tuple(self.assumed), leaves, self.planned)

    def _at(self, phase: Phase, what: str) -> str:
        return f"pipeline {self.name!r}, phase {phase.name!r}: {what}"

    def _check_name(self, name: str, what: str) -> None:
        if name in self.planned or name in self.expansions:
            raise ValueError(f"pipeline {self.name!r}: {what} has a name that is taken: {name!r}")
        if self.fields is not None and name in self.fields:
            raise ValueError(f"pipeline {self.name!r}: {what} has the name of an item field: {name!r}")

    def _known(self) -> list[str]:
        return [*(self.fields or ()), *self.planned, *self.expansions]

    def _resolve(self, phase: Phase) -> PlannedPhase:
        later = {one.name for one in self.declared} | {one.expand for one in self.declared if one.expand}
        kinds = phase.tool.signature.types
        unknown = later - set(self._known())
        found = [self._bind(phase, parameter, unknown) for parameter in kinds]
        given = self._without_guesses(phase, [binding for binding in found if binding is not None])
        bindings = [self._collected(phase, binding, kinds[binding.parameter]) for binding in given]
        needs = []
        for name in phase.after:
            if name not in self.planned:
                hint = "; declare it before" if name in later else nearest(name, self.planned)
                raise ValueError(self._at(phase, f"after={name!r} is no phase before it{hint}"))
            needs.append(name)
        level = self._level(phase, bindings)
        if isinstance(phase.collect, str):
            needs.append(self.expansions[phase.collect].phase.name)  # also where it takes none of the elements
        needs += [b.name for b in bindings if b.kind == "result"]
        # What runs per element has its element, whatever becomes of the expansion after it.
        elements = [b.name for b in bindings if b.kind == "element" and b.name not in level]
        needs += [self.expansions[name].phase.name for name in elements]
        return PlannedPhase(phase, level, tuple(bindings), tuple(dict.fromkeys(needs)))

    def _without_guesses(self, phase: Phase, bindings: list[Binding]) -> list[Binding]:
        """Once per run no field of an item is taken for an input with a default, unless ``item=`` declares it."""
        is_per_run = phase.collect is True or any(binding.level == RUN for binding in bindings)
        is_per_run = is_per_run or any(self.planned[name].level == RUN for name in phase.after if name in self.planned)
        if self.fields is not None or not is_per_run:
            return bindings
        return [binding for binding in bindings if not binding.optional]

    def _bind(self, phase: Phase, parameter: str, later: set[str]) -> Binding | None:
        name, *path = phase.bind.get(parameter, parameter).split(".")
        optional = parameter not in phase.tool.signature.required and parameter not in phase.bind
        if name in self.expansions:
            level = (*self.expansions[name].level, name)
            return Binding(parameter, "element", name, tuple(path), level)
        if name in self.planned:
            source = self.planned[name]
            if source.phase.expand is not None:
                raise ValueError(
                    self._at(phase, f"input {parameter!r} binds {name!r}, which is expanded; bind its element "
                    f"{source.phase.expand!r}")
                )  # fmt: skip
            return Binding(parameter, "result", name, tuple(path), source.level)
        if name == phase.name and parameter not in phase.bind and self.fields is None:
            return self._assume(parameter, name, path, optional=optional)
        if name in later and name != phase.name:
            raise ValueError(
                self._at(phase, f"input {parameter!r} binds {name!r}, which is declared later; move it up")
            )
        if self.fields is None:
            return self._assume(parameter, name, path, optional=optional)
        if name in self.fields:
            return Binding(parameter, "field", name, tuple(path), ITEM, optional=optional)
        if optional:
            return None
        raise ValueError(
            self._at(phase, f"input {parameter!r} of tool {phase.tool.name!r} has no source {name!r}; there are "
            f"{', '.join(self._known())}{nearest(name, self._known())}; bind={{{parameter!r}: ...}} names another")
        )  # fmt: skip

    def _assume(self, parameter: str, name: str, path: list[str], *, optional: bool) -> Binding:
        if not optional and name not in self.assumed:
            self.assumed.append(name)
        return Binding(parameter, "field", name, tuple(path), ITEM, optional=optional)

    def _collected(self, phase: Phase, binding: Binding, kind: Any) -> Binding:
        """Say whether the input is a list over what is collected; check that its type can fit."""
        collected = False
        if phase.collect is True:
            collected = binding.level == ITEM
            if binding.level not in (ITEM, RUN):
                raise ValueError(
                    self._at(phase, f"collect=True takes values of items; {binding.name!r} is one of each "
                    f"{binding.level[-1]!r}: collect it per item before (collect={binding.level[-1]!r})")
                )  # fmt: skip
        elif isinstance(phase.collect, str):
            if phase.collect not in self.expansions:
                raise ValueError(
                    self._at(phase, f"collect={phase.collect!r} is no expansion before it"
                    f"{nearest(phase.collect, self.expansions)}")
                )  # fmt: skip
            inner = (*self.expansions[phase.collect].level, phase.collect)
            collected = binding.level == inner
            if not collected and binding.level[: len(inner)] == inner:
                raise ValueError(
                    self._at(phase, f"{binding.name!r} is one of each {binding.level[-1]!r}: collect that before "
                    f"{phase.collect!r}")
                )  # fmt: skip
        source = self._type_of(binding)
        if not binding.path and cannot_fit(list_of(source) if collected else source, kind):
            raise TypeError(
                self._at(phase, f"input {binding.parameter!r} is a {_shown(kind)}, but {binding.name!r} gives "
                f"{_shown(list_of(source) if collected else source)}")
            )  # fmt: skip
        return dataclasses.replace(binding, collected=collected)

    def _type_of(self, binding: Binding) -> Any:
        if binding.kind == "field":
            return (self.fields or {}).get(binding.name, Any)
        if binding.kind == "element":
            return element_type(self.expansions[binding.name].phase.tool.signature.returns)
        return self.planned[binding.name].phase.tool.signature.returns

    def _level(self, phase: Phase, bindings: list[Binding]) -> Level:
        levels = {binding.level for binding in bindings if not binding.collected}
        if phase.collect is True:
            if levels - {RUN}:  # not reached: such values are collected
                raise ValueError(self._at(phase, "a run-level phase takes lists of item values"))
            return RUN
        if isinstance(phase.collect, str):
            if phase.collect not in self.expansions:
                raise ValueError(
                    self._at(phase, f"collect={phase.collect!r} is no expansion before it"
                    f"{nearest(phase.collect, self.expansions)}")
                )  # fmt: skip
            if RUN in levels or any(self.planned[name].level == RUN for name in phase.after):
                raise ValueError(
                    self._at(phase, f"comes after collect=True, so it runs once per run and may not collect "
                    f"{phase.collect!r}")
                )  # fmt: skip
            outer = self.expansions[phase.collect].level
            deeper = [level for level in levels if level != outer[: len(level)]]
            if deeper:
                raise ValueError(self._at(phase, f"collects {phase.collect!r} but binds values of {deeper[0]}"))
            return outer
        if not levels and phase.after:
            levels = {self.planned[name].level for name in phase.after}
        if RUN in levels or any(self.planned[name].level == RUN for name in phase.after):
            if levels - {RUN} and any(not binding.collected for binding in bindings if binding.level != RUN):
                raise ValueError(
                    self._at(phase, "comes after collect=True, so it runs once per run and may not bind item values")
                )
            return RUN
        deepest = max(levels, key=len, default=ITEM)
        for level in levels:
            if level != deepest[: len(level)]:
                one, other = "/".join(level), "/".join(deepest)
                raise ValueError(self._at(phase, f"binds values of two expansions, {one!r} and {other!r}: collect one"))
        return deepest

    def _check_assumed(self) -> None:
        for name in self.assumed:
            if name in self.planned and not any(
                binding.name == name and planned.phase.name == name
                for planned in self.planned.values()
                for binding in planned.bindings
            ):
                raise ValueError(
                    f"pipeline {self.name!r}: {name!r} is both an item field and a phase; declare item=[...] or rename"
                )

    def _ordered(self, steps: list[PlannedPhase]) -> list[PlannedPhase]:
        """Declared order, but for an expansion, which waits for what its elements need from this level."""
        done: list[PlannedPhase] = []
        waiting = list(steps)
        names = {planned.phase.name for planned in steps}
        while waiting:
            for planned in waiting:
                missing = (self._subtree_needs(planned) & names) - {one.phase.name for one in done}
                if not missing:
                    done.append(planned)
                    waiting.remove(planned)
                    break
            else:
                phase = waiting[0].phase
                raise ValueError(
                    self._at(phase, f"what runs per {phase.expand!r} needs {sorted(self._subtree_needs(waiting[0]))}, "
                    f"of which one collects {phase.expand!r} itself: expand again after it")
                )  # fmt: skip
        return done

    def _subtree_needs(self, planned: PlannedPhase) -> set[str]:
        needs = set(planned.needs)
        inside = {planned.phase.name}
        queue = list(planned.children)
        while queue:
            child = queue.pop()
            inside.add(child.phase.name)
            needs |= set(child.needs)
            queue.extend(child.children)
        needs -= inside
        # Who collects this expansion comes after it by binding its inner phases: those stand for the expansion.
        for name in list(needs):
            level = self.planned[name].level
            if len(level) > len(planned.level):
                needs.discard(name)
                owner = self.expansions[level[len(planned.level)]]
                if owner is not planned:
                    needs.add(owner.phase.name)
        return needs


def _shown(kind: Any) -> str:
    return getattr(kind, "__name__", None) if isinstance(kind, type) and not typing.get_args(kind) else str(kind)  # type: ignore[return-value]
