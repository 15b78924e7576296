"""A pipeline's plan as data: what ``kgas-async check`` prints. Knows declarations, and where a file says them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ._errors import shown
from ._pipeline import Pipeline
from ._plan import RUN, Binding, PlannedPhase
from ._policy_checks import services_of
from ._service import required_of, service_name

__all__ = ["plan_view"]


def plan_view(
    pipeline: Pipeline,
    *,
    services: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    places: Mapping[tuple[str, str], Any] | None = None,
    users: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """What runs in which order, and by what it is bound; plain data.

    Args:
        pipeline: What it is about.
        services: By the names that a file gives them.
        limits: So too.
        places: Where a field of a phase's policy is from, by phase and field: pairs of place and key.
        users: Who refers to a service or limit in a file, by its name there.
    """
    named = {id(one): name for name, one in (limits or {}).items()}
    names = {id(one): name for name, one in (services or {}).items()}
    plan = pipeline.plan
    phases = [
        _phase(plan.phases[name], named, names, places or {}) for name in _in_order(plan.phases)
    ]  # fmt: skip
    used = _used(pipeline, named)
    users = users or {}
    return {
        "pipeline": pipeline.name,
        "item": None if pipeline.fields is None else {name: _type(kind) for name, kind in pipeline.fields.items()},
        "assumed": list(plan.assumed),
        "key": pipeline.key if pipeline.key is None or isinstance(pipeline.key, str) else _name(pipeline.key),
        "source": None if pipeline.source is None else _name(pipeline.source),
        "phases": phases,
        "limits": [
            {"limit": name, "is": shown(one), "used_by": _merged(used.get(id(one), []), users.get(name, []))}
            for name, one in (limits or {}).items()
        ],
        "services": [
            {
                "service": _service(one, names),
                "class": type(one).__qualname__,
                "requires": [_service(other, names) for other in required_of(one)],
                "used_by": _merged(_users_of(one, pipeline), users.get(names.get(id(one), ""), [])),
            }
            for one in _with_required(pipeline.services)
        ],
    }


def _merged(*names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for some in names for name in some))


def _users_of(service: Any, pipeline: Pipeline) -> list[str]:
    return [
        phase.name
        for phase in pipeline.phases
        if any(service is other for other in services_of(phase.tool, phase.policy))
    ]


def _in_order(phases: Mapping[str, PlannedPhase]) -> list[str]:
    """Upstream first; else as declared."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in done:
            for needed in phases[name].needs:
                visit(needed)
            for binding in phases[name].bindings:  # an element's expansion is above it
                if binding.kind == "element":
                    visit(next(one for one, planned in phases.items() if planned.phase.expand == binding.name))
            done[name] = None

    for name in phases:
        visit(name)
    return list(done)


def _phase(
    planned: PlannedPhase, limits: Mapping[int, str], services: Mapping[int, str], places: Mapping[tuple[str, str], Any]
) -> dict[str, Any]:  # fmt: skip
    phase, tool = planned.phase, planned.phase.tool
    fields: dict[str, Any] = {
        "phase": phase.name,
        "tool": tool.name,
        "version": str(tool.version),
        "runs": tool._execution().kind,
        "once": f"per {_once(planned)}",
        "inputs": [_input(binding) for binding in planned.bindings],
        "after": list(phase.after),
        "requires": [_service(one, services) for one in services_of(tool, phase.policy)],
        "policy": _policy(planned, limits, places),
    }
    if phase.expand is not None:
        fields["expands_into"] = phase.expand
    if phase.collect is not None:
        fields["collects"] = "all items" if phase.collect is True else phase.collect
        fields["missing"] = phase.missing
    if phase.batch is not None:
        fields["batch"] = phase.batch
    if phase.when is not None:
        fields["when"] = _name(phase.when)
    if not phase.is_journaled:
        fields["journal"] = False
    return fields


def _once(planned: PlannedPhase) -> str:
    if planned.level == RUN:
        return "run"
    return planned.level[-1] if planned.level else "item"


def _input(binding: Binding) -> dict[str, Any]:
    fields: dict[str, Any] = {"input": binding.parameter, "from": binding.kind, "name": binding.name}
    if binding.path:
        fields["path"] = ".".join(binding.path)
    shape = "stream" if binding.live else "list" if binding.collected else None
    if shape is not None:
        fields["as"] = f"{shape} of outcomes" if binding.outcomes else shape
    if binding.optional:
        fields["optional"] = True
    return fields


def _policy(
    planned: PlannedPhase, limits: Mapping[int, str], places: Mapping[tuple[str, str], Any]
) -> list[dict[str, Any]]:  # fmt: skip
    """Each field that somebody gave: what counts, who says so, and what lies below it."""
    phase = planned.phase
    layers = [("tool", phase.tool.policy), ("phase", phase.policy), ("using", phase.tool._using)]
    fields: dict[str, list[dict[str, Any]]] = {}
    for layer, policy in layers:
        for name, value in ({} if policy is None else policy.given).items():
            entry: dict[str, Any] = {"value": _value(value, limits), "from": layer}
            place = places.get((phase.name, name)) if layer == "phase" else None
            if place is not None:
                entry["place"] = f"--set {place.key}" if place.where == "--set" else f"{place.where}: {place.key}"
            fields.setdefault(name, []).insert(0, entry)
    return [{"field": name, **entries[0], "over": entries[1:]} for name, entries in fields.items()]


def _value(value: Any, limits: Mapping[int, str]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        made = [_value(one, limits) for one in value]
        return made[0] if len(made) == 1 else made
    if id(value) in limits:
        return f"${limits[id(value)]}"
    return value.name if hasattr(value, "execute_async") else shown(value)


def _used(pipeline: Pipeline, limits: Mapping[int, str]) -> dict[int, list[str]]:
    """The phases by the limits that they use."""
    found: dict[int, list[str]] = {}
    for phase in pipeline.phases:
        policies = [one for one in (phase.tool.policy, phase.policy, phase.tool._using) if one is not None]
        for value in {name: one for policy in policies for name, one in policy.given.items()}.values():
            parts = [*(value if isinstance(value, tuple) else (value,)), getattr(value, "budget", None)]
            for part in parts:
                if id(part) in limits and phase.name not in found.setdefault(id(part), []):
                    found[id(part)].append(phase.name)
    return found


def _with_required(services: Iterable[Any]) -> list[Any]:
    """In an order in which they could start: what others require before those."""
    found: list[Any] = []

    def visit(service: Any, above: tuple[Any, ...]) -> None:
        if any(service is one for one in (*found, *above)):
            return
        for other in required_of(service):
            visit(other, (*above, service))
        found.append(service)

    for service in services:
        visit(service, ())
    return found


def _service(service: Any, names: Mapping[int, str]) -> str:
    return names.get(id(service)) or service_name(service)


def _name(function: Any) -> str:
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", None)
    return shown(function) if name is None else f"{module}:{name}".lstrip(":")


def _type(kind: Any) -> str:
    return "Any" if kind is Any else getattr(kind, "__name__", None) or str(kind)
