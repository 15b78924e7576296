"""One declared phase after another: where each input comes from, on which level it runs, whether the types can fit."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ._fit import bare, cannot_expand, cannot_fit, element_type, is_made_whole, list_of, outcome_type, stream_type
from ._offload import refuse_coroutine
from ._phase import Phase
from ._plan import ITEM, RUN, Binding, Level, PlannedPhase
from ._suggest import nearest

__all__ = ["Resolver"]


class Resolver:
    """What is known of a pipeline's names so far; phases are added upstream first.

    Attributes:
        planned: The phases that were added, by name.
        expansions: Those of them that expand, by the element's name.
        assumed: Item fields that are taken for granted.
    """

    def __init__(self, pipeline: str, fields: Mapping[str, Any] | None, phases: Sequence[Phase]) -> None:
        self.name = pipeline
        self.fields = fields
        self.places = {phase.name: place for place, phase in enumerate(phases)}
        elements = {phase.expand: place for place, phase in enumerate(phases) if phase.expand is not None}
        self._declared = elements | self.places
        self.planned: dict[str, PlannedPhase] = {}
        self.expansions: dict[str, PlannedPhase] = {}
        self.assumed: list[str] = []
        self._left_out: set[str] = set()  # phases and elements that are there but do not fit

    def names_of(self, phase: Phase) -> list[str]:
        """The names by which a phase may mean others."""
        names = [
            phase.bind.get(one, one).split(".")[0]
            for one in phase.tool.signature.types
            if not self._is_left_alone(phase, one)
        ]
        return [*names, *phase.after, *([phase.collect] if isinstance(phase.collect, str) else ())]

    def _is_left_alone(self, phase: Phase, parameter: str) -> bool:
        """Whether an input keeps its default: nobody bound it, and the phase or element of its name comes later."""
        if parameter in phase.bind or parameter in phase.tool.signature.required:
            return False
        return self._declared.get(parameter, -1) >= self.places[phase.name]

    def add(self, phase: Phase) -> None:
        """Resolve a phase whose sources were all added.

        Raises:
            ValueError, TypeError: What does not fit, with the nearest known name.
        """
        planned = self._resolve(phase)
        self.planned[phase.name] = planned
        if phase.expand is not None:
            if planned.level == RUN:
                raise ValueError(self._at(phase, "runs once per run, so it cannot expand"))
            if cannot_expand(self._result_type(planned)):
                raise TypeError(
                    self._at(phase, f"expands its result, which must be an iterable of elements, but tool "
                    f"{phase.tool.name!r} gives {_shown(self._result_type(planned))}")
                )  # fmt: skip
            self.expansions[phase.expand] = planned

    def leave_out(self, phase: Phase) -> None:
        """Take its names for known, whatever they mean."""
        self._left_out.update(name for name in (phase.name, phase.expand) if name is not None)

    def mistakes_of(self, phase: Phase, *, is_known: bool) -> list[Exception]:
        """What does not fit of a phase whose sources were all added or left out; it is added, or left out.

        Args:
            phase: The phase.
            is_known: False where only its names count.
        """
        steps: list[Callable[[], object]] = [partial(self._check_after, phase, name) for name in phase.after]
        steps.append(partial(self._check_collect, phase))
        inputs = [*phase.tool.signature.types] if is_known else [*phase.bind]
        left_out = [one for one in inputs if phase.bind.get(one, one).split(".")[0] in self._left_out]
        steps += [partial(self._bind, phase, one) for one in inputs if one not in left_out]
        found = _raised_by(steps)
        if not found and is_known and self._left_out.isdisjoint(self.names_of(phase)):
            found = _raised_by([partial(self.add, phase)])
        if phase.name not in self.planned or (phase.expand is not None and phase.expand not in self.expansions):
            self.leave_out(phase)
        return found

    def check_assumed(self) -> None:
        """No name may be both a field that is taken for granted and a phase."""
        for name in self.assumed:
            if name in self.planned and not any(
                binding.name == name and planned.phase.name == name
                for planned in self.planned.values()
                for binding in planned.bindings
            ):
                raise ValueError(
                    f"pipeline {self.name!r}: {name!r} is both an item field and a phase; declare item=[...] or rename"
                )

    def _at(self, phase: Phase, what: str) -> str:
        return f"pipeline {self.name!r}, phase {phase.name!r}: {what}"

    def _known(self) -> list[str]:
        return [*(self.fields or ()), *self.planned, *self.expansions, *self._left_out]

    def _resolve(self, phase: Phase) -> PlannedPhase:
        self._check_collect(phase)
        kinds = phase.tool.signature.types
        found = [self._bind(phase, parameter) for parameter in kinds]
        given = self._without_guesses(phase, [binding for binding in found if binding is not None])
        bindings = [self._collected(phase, binding, kinds[binding.parameter]) for binding in given]
        needs = []
        for name in phase.after:
            self._check_after(phase, name)
        level = self._level(phase, bindings)
        # What runs per element is after its expansion already: how that ends, nobody knows as it begins.
        needs += [name for name in phase.after if self.planned[name].phase.expand not in level]
        if isinstance(phase.collect, str):
            needs.append(self.expansions[phase.collect].phase.name)  # also where it takes none of the elements
        needs += [b.name for b in bindings if b.kind == "result"]
        # What runs per element has its element, whatever becomes of the expansion after it.
        elements = [b.name for b in bindings if b.kind == "element" and b.name not in level]
        needs += [self.expansions[name].phase.name for name in elements]
        planned = PlannedPhase(
            phase, level, tuple(bindings), tuple(dict.fromkeys(needs)), self.places[phase.name],
            when=self._condition(phase, bindings),
        )  # fmt: skip
        if phase.batch is not None and level == RUN:
            raise ValueError(self._at(phase, "runs once per run, so it has nothing to batch"))
        planned.live = self._live(phase, planned)
        return planned

    # --- inputs

    def _without_guesses(self, phase: Phase, bindings: list[Binding]) -> list[Binding]:
        """Once per run no field of an item is taken for an input with a default, unless ``item=`` declares it."""
        is_per_run = phase.collect is True or any(binding.level == RUN for binding in bindings)
        is_per_run = is_per_run or any(self.planned[name].level == RUN for name in phase.after if name in self.planned)
        if self.fields is not None or not is_per_run:
            return bindings
        return [binding for binding in bindings if not (binding.optional and binding.kind == "field")]

    def _bind(self, phase: Phase, parameter: str) -> Binding | None:
        name, *path = phase.bind.get(parameter, parameter).split(".")
        optional = parameter not in phase.tool.signature.required and parameter not in phase.bind
        if self._is_left_alone(phase, parameter) and parameter not in (self.fields or ()):
            return None
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
        if self.fields is None and (name != phase.name or parameter not in phase.bind):
            if optional and phase.batch is not None:
                return None  # a list of it would lack those of the items that have none
            if not optional and name not in self.assumed:
                self.assumed.append(name)
            return Binding(parameter, "field", name, tuple(path), ITEM, optional=optional)
        if self.fields is not None and name in self.fields:
            is_list = phase.batch is not None  # of one length for all inputs: who has no such field, fails alone
            return Binding(parameter, "field", name, tuple(path), ITEM, optional=optional and not is_list)
        if optional:
            return None
        if name in (phase.name, phase.expand):
            raise ValueError(self._at(phase, f"input {parameter!r} binds {name!r}, which is of this phase itself"))
        raise ValueError(
            self._at(phase, f"input {parameter!r} of tool {phase.tool.name!r} has no source {name!r}; there are "
            f"{', '.join(self._known()) or 'none'}{nearest(name, self._known())}; bind={{{parameter!r}: ...}} names "
            f"another")
        )  # fmt: skip

    def _check_after(self, phase: Phase, name: str) -> None:
        if name not in self.planned and name not in self._left_out:
            known = f"{', '.join(self.places)}{nearest(name, self.places)}"
            raise ValueError(self._at(phase, f"after={name!r} is no other phase; there are {known}"))

    def _check_collect(self, phase: Phase) -> None:
        known = (*self.expansions, *self._left_out)
        if isinstance(phase.collect, str) and phase.collect not in known:
            raise ValueError(
                self._at(phase, f"collect={phase.collect!r} is no expansion of another phase; there are "
                f"{', '.join(self.expansions) or 'none'}{nearest(phase.collect, self.expansions)}")
            )  # fmt: skip

    def _collected(self, phase: Phase, binding: Binding, kind: Any) -> Binding:
        """Say whether the input is a list over what is collected; check that its type can fit."""
        if phase.collect is True:
            if binding.level not in (ITEM, RUN):
                raise ValueError(
                    self._at(phase, f"collect=True takes values of items; {binding.name!r} is one of each "
                    f"{binding.level[-1]!r}: collect it per item before (collect={binding.level[-1]!r})")
                )  # fmt: skip
            binding = replace(binding, collected=binding.level == ITEM)
        elif isinstance(phase.collect, str):
            inner = (*self.expansions[phase.collect].level, phase.collect)
            binding = replace(binding, collected=binding.level == inner)
            if not binding.collected and binding.level[: len(inner)] == inner:
                raise ValueError(
                    self._at(phase, f"{binding.name!r} is one of each {binding.level[-1]!r}: collect that before "
                    f"{phase.collect!r}")
                )  # fmt: skip
        given = self._type_of(binding)
        declared = kind
        own = kind if phase.batch is None else element_type(bare(kind))  # of one item: a batch has a list of them
        if binding.collected:
            own = bare(own)
            binding = self._shape(phase, binding, own)
            part = stream_type(own) if binding.live else element_type(own)
            if binding.live or binding.outcomes:
                own = kind = outcome_type(part) if binding.outcomes else part
            else:
                given = list_of(given)
        is_list = binding.collected and not (binding.live or binding.outcomes)
        if binding.kind != "field":  # what an item has, its source made on the loop anyway
            binding = replace(binding, whole=is_made_whole(element_type(own) if is_list else own))
        misfit = cannot_fit(given, own)
        if phase.batch is not None and not binding.outcomes:
            given = list_of(given)
            misfit = misfit or cannot_fit(given, kind)
        if misfit and not binding.path:
            raise TypeError(
                self._at(phase, f"input {binding.parameter!r} is a {_shown(declared)}, but {binding.name!r} gives "
                f"{_shown(given)}{self._mend_of_shape(phase, binding, given, kind)}")
            )  # fmt: skip
        return binding

    def _mend_of_shape(self, phase: Phase, binding: Binding, given: Any, kind: Any) -> str:
        """What may have been forgotten where one is a list of the other."""
        if binding.live or binding.outcomes:
            return ""
        if not cannot_fit(list_of(given), kind) and not binding.collected and phase.batch is None:
            if binding.level not in (ITEM, RUN):
                return f"; a list of all: collect={binding.level[-1]!r}, of all items: collect=True"
            return "; a list of those of all items: collect=True" if binding.level == ITEM else ""
        if not cannot_fit(element_type(given), kind):
            if binding.collected or phase.batch is not None:
                return ", a list of what there is of each" + (" item" if binding.level == ITEM else "")
            return f"; one at a time: Phase({binding.name!r}, ..., expand=...)" if binding.kind == "result" else ""
        return ""

    def _shape(self, phase: Phase, binding: Binding, kind: Any) -> Binding:
        """Whether what is collected comes as values or as outcomes, as a list or live."""
        live = stream_type(kind) is not None
        outcomes = outcome_type(stream_type(kind) if live else element_type(kind)) is not None
        if live and phase.collect is not True:
            raise TypeError(
                self._at(phase, f"input {binding.parameter!r} is a stream, but only collect=True can be live; take a "
                f"list")
            )  # fmt: skip
        if outcomes and (binding.kind != "result" or binding.path):
            raise TypeError(
                self._at(phase, f"input {binding.parameter!r} takes outcomes, which phases have; "
                f"{'.'.join((binding.name, *binding.path))!r} is {'a part of one' if binding.path else 'none'}")
            )  # fmt: skip
        return replace(binding, live=live, outcomes=outcomes)

    def _type_of(self, binding: Binding) -> Any:
        if binding.kind == "field":
            return (self.fields or {}).get(binding.name, Any)
        if binding.kind == "element":
            return element_type(self._result_type(self.expansions[binding.name]))
        return self._result_type(self.planned[binding.name])

    def _result_type(self, planned: PlannedPhase) -> Any:
        """Of one item: a batch returns a list of them."""
        returns = planned.phase.tool.signature.returns
        return returns if planned.phase.batch is None else element_type(returns)

    # --- when it runs

    def _level(self, phase: Phase, bindings: list[Binding]) -> Level:
        levels = {binding.level for binding in bindings if not binding.collected}
        if phase.collect is True:
            return RUN
        if isinstance(phase.collect, str):
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
            if levels - {RUN}:
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

    def _live(self, phase: Phase, planned: PlannedPhase) -> Binding | None:
        """The live input of a phase, which begins with the run, so that nothing else may hold it up."""
        live = [binding for binding in planned.bindings if binding.live]
        if not live:
            return None
        others = [binding.parameter for binding in planned.bindings if binding is not live[0]]
        late = [name for name in planned.needs if self.planned[name].level == RUN]
        name = live[0].parameter
        if others or late:
            raise TypeError(
                self._at(phase, f"input {name!r} is a live stream, so the phase begins with the run: it cannot wait "
                f"for {(others or late)[0]!r} too; take a list, or both in one stream")
            )  # fmt: skip
        if phase.tool._execution().kind != "async":
            raise TypeError(self._at(phase, f"input {name!r} is a live stream, which only an async tool can read"))
        if phase.when is not None:
            raise TypeError(self._at(phase, f"when= cannot be asked: input {name!r} is a live stream, not yet read"))
        if phase.missing == "skip":
            raise ValueError(
                self._at(phase, f"missing='skip' cannot be: input {name!r} is a live stream, read before all is known")
            )
        retry = phase.tool.policy.overlaid(phase.policy).overlaid(phase.tool._using).retry
        if retry:
            raise TypeError(self._at(phase, f"cannot be retried: its live stream {name!r} is read only once"))
        return live[0]

    def _condition(self, phase: Phase, bindings: Sequence[Binding]) -> Callable[[Mapping[str, Any]], bool] | None:
        """What asks ``when``, given all inputs of the phase."""
        when = phase.when
        if when is None:
            return None
        try:
            parameters = inspect.signature(when).parameters.values()
        except (TypeError, ValueError) as error:
            raise TypeError(self._at(phase, f"the signature of when={when!r} cannot be read: {error}")) from None
        if any(one.kind is one.VAR_KEYWORD for one in parameters):
            return lambda inputs: _said(when, inputs)
        names = [one.name for one in parameters]
        bound = [binding.parameter for binding in bindings]
        for one in parameters:
            if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                raise TypeError(self._at(phase, f"when={when!r} takes inputs of the phase by name, not {one}"))
            if one.name not in bound and one.default is one.empty:
                raise TypeError(
                    self._at(phase, f"when= takes {one.name!r}, which is no bound input of the phase; there are "
                    f"{', '.join(bound) or 'none'}{nearest(one.name, bound)}")
                )  # fmt: skip
        return lambda inputs: _said(when, {name: inputs[name] for name in names if name in inputs})


def _raised_by(steps: Sequence[Callable[[], object]]) -> list[Exception]:
    found: list[Exception] = []
    for step in steps:
        try:
            step()
        except (TypeError, ValueError) as error:
            found.append(error)
    return found


def _said(when: Callable[..., object], inputs: Mapping[str, Any]) -> bool:
    """What ``when`` says; a coroutine would be true whatever it is to say."""
    return bool(refuse_coroutine(when(**inputs), when, "when= is a plain function, use a phase for what must wait"))


def _shown(kind: Any) -> str:
    return getattr(kind, "__name__", None) if isinstance(kind, type) and not typing.get_args(kind) else str(kind)  # type: ignore[return-value]
