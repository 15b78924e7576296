"""A plan: phases with every name resolved, and what each of them waits for. `_planner` makes it; `_run` follows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

from ._phase import Phase

__all__ = ["ITEM", "RUN", "Binding", "Level", "Plan", "PlannedPhase"]

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
        collected: A list of it over the expansion that the phase collects, or over the items.
        outcomes: The list is of outcomes, those of what failed among them.
        live: Not a list but a stream of what there is so far, in source order.
        whole: Checking a value runs through all of it, so that it may not be a lazy one.
    """

    parameter: str
    kind: str
    name: str
    path: tuple[str, ...]
    level: Level
    optional: bool = False
    collected: bool = False
    outcomes: bool = False
    live: bool = False
    whole: bool = False


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class PlannedPhase:
    """A phase with all its names resolved.

    Attributes:
        level: Once per run, per item, or per element of which expansions.
        bindings: Its inputs.
        needs: Names of the phases that it comes after, for data or order.
        children: For an expansion: what runs per element, in order.
        place: Where it stands among all phases as declared.
        then: What of its level may begin when it has ended, if nothing else holds it up.
        waits: How many of its level it waits for.
        live: The input that is a live stream, if any.
        when: Whether it runs, given its inputs.
        direct: ``(parameter, whether it is a result, name)`` of each input, where all are plain values of the very
            frame that it runs in, always wanted; else None.
    """

    phase: Phase
    level: Level
    bindings: tuple[Binding, ...]
    needs: tuple[str, ...]
    place: int
    children: Steps = dataclasses.field(default_factory=lambda: Steps([]))
    then: tuple[PlannedPhase, ...] = ()
    waits: int = 0
    live: Binding | None = None
    when: Callable[[Mapping[str, Any]], bool] | None = None
    direct: tuple[tuple[str, bool, str], ...] | None = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        plain = [one for one in self.bindings if not (one.path or one.optional or one.collected or one.whole)]
        if len(plain) == len(self.bindings) and all(one.level == self.level for one in plain):
            self.direct = tuple((one.parameter, one.kind == "result", one.name) for one in plain)

    def __repr__(self) -> str:  # not what follows it: that would be each way through the graph, of which there are many
        return f"<PlannedPhase {self.phase.name!r}>"


@dataclasses.dataclass(slots=True)
class Steps:
    """The phases of one level.

    Attributes:
        phases: In an order in which they could run one after another.
        starts: Those that wait for none of the others.
    """

    phases: list[PlannedPhase]
    starts: tuple[PlannedPhase, ...] = ()


@dataclasses.dataclass(slots=True)
class Plan:
    """What runs in which order.

    Attributes:
        item: Per item.
        run: Once: after all items, but for live collects.
        assumed: Item fields that are taken for granted, since ``item=`` is not declared.
        leaves: The per-item phases that nothing takes further.
        phases: All by name, as declared.
        batches: Those that run many items in one call, upstream first.
        taken_per_run: The item fields that run-level phases take, and whether an item may lack them.
    """

    item: Steps
    run: Steps
    assumed: tuple[str, ...]
    leaves: tuple[str, ...]
    phases: dict[str, PlannedPhase]
    batches: tuple[PlannedPhase, ...]
    taken_per_run: Mapping[str, bool]

    def on_record(self) -> list[dict[str, Any]]:
        """The phases as they stand in ``run.started``: whoever reads the evidence finds by it what came from what.

        Once per run, so that the records of calls need no list of what they took: phase and item key say it.
        """
        return [_on_record(planned) for planned in self.phases.values()]


def _on_record(planned: PlannedPhase) -> dict[str, Any]:
    phase = planned.phase
    fields: dict[str, Any] = {
        "phase": phase.name,
        "tool": phase.tool.name,
        "version": str(phase.tool.version),
        "level": "run" if planned.level == RUN else "/".join(("item", *planned.level)),
        "inputs": [_input_on_record(binding) for binding in planned.bindings],
        "needs": list(planned.needs),
    }
    if phase.expand is not None:
        fields["expand"] = phase.expand
    if phase.collect is not None:
        fields["collect"] = "run" if phase.collect is True else f"each {phase.collect}"
    if phase.batch is not None:
        fields["batch"] = phase.batch
    return fields


def _input_on_record(binding: Binding) -> dict[str, Any]:
    fields: dict[str, Any] = {"input": binding.parameter, binding.kind: binding.name}
    if binding.path:
        fields["path"] = ".".join(binding.path)
    fields |= {name: True for name in ("collected", "optional", "outcomes") if getattr(binding, name)}
    return fields
