"""What is to come of a declaration of `random_pipelines`: one call after another, each item and element for itself.

Written from the design and the docstrings of `Phase` and `Outcome`, not from the engine. It knows no order of calls,
no concurrency and no batches: what a phase gives depends on its inputs alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .random_pipelines import RUN, BrokenError, Declaration, Level, Step, applied, is_late, is_wanted, signed


@dataclass
class State:
    """What came of a phase in a frame: ``ok``, ``bad`` or ``skipped``; a status, as its outcome has it; a value."""

    kind: str
    status: str
    value: Any = None


@dataclass
class Failure:
    """Of a frame: the phase to name, its status, and all phases that failed."""

    phase: str
    status: str
    phases: set[str]
    collect: float = -1  # the place of the collect that failed for it


@dataclass
class Frame:
    """An item or an element."""

    level: Level
    parent: Frame | None
    fields: dict[str, Any]
    index: int = 0
    states: dict[str, State] = field(default_factory=dict)
    children: dict[str, list[Frame]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def home(self, level: Level) -> Frame:
        return self if self.level == level or self.parent is None else self.parent.home(level)

    def failed(self) -> set[str]:
        return {name for failure in self.failures for name in failure.phases}


@dataclass
class Wanted:
    """The outcome of an item."""

    status: str
    failed_phase: str | None = None
    value: Any = None
    phases: dict[str, Any] = field(default_factory=dict)


class Interpreter:
    """Runs a declaration over items: first `item` for each, then `once`.

    Attributes:
        calls: What tools are called with.
        results, errors, missing: As on the report of a run.
    """

    def __init__(self, declaration: Declaration) -> None:
        self.rarity = declaration.rarity
        self.declared = declaration.declared
        self.steps = declaration.by_name()
        self.place = {step.name: place for step, place in zip(declaration.steps, declaration.places, strict=True)}
        self.owners = {step.expand: step for step in declaration.steps if step.expand is not None}
        self.binds = {name: dict(step.binds) | self._taken(step) for name, step in self.steps.items()}
        self.needs = {name: self._needs_of(step) for name, step in self.steps.items()}
        self._on: dict[Level, list[Step]] = defaultdict(list)
        for step in declaration.steps:
            self._on[step.level].append(step)
        self.calls: Counter[Any] = Counter()
        self.results: dict[str, Any] = {}
        self.errors: set[str] = set()
        self.missing: dict[str, int] = {}
        self._items: list[tuple[Frame | None, Wanted]] = []

    # --- the declaration

    def _taken(self, step: Step) -> dict[str, str]:
        """What inputs with a default take: earlier phases, and the field `z`, where it can be meant."""
        guessed = not self.declared and (step.batch is not None or step.level == RUN)
        return {
            name: name
            for name in step.offers
            if (not guessed if name == "z" else self.place[name] < self.place[step.name])
        }

    def level_of(self, source: str) -> Level:
        if source in self.owners:
            return (*self.owners[source].level, source)
        return self.steps[source].level if source in self.steps else ()

    def _needs_of(self, step: Step) -> list[str]:
        needs = [] if not isinstance(step.collect, str) else [self.owners[step.collect].name]
        # An element has begun, so whatever it comes from is no more to wait for.
        needs += [name for name in step.after if self.steps[name].expand not in step.level or not step.level]
        for source in self.binds[step.name].values():
            if source in self.owners and source not in step.level:
                needs.append(self.owners[source].name)
            elif source in self.steps:
                needs.append(source)
        return needs

    def _inner(self, step: Step) -> Level:
        """The level of what it collects."""
        return () if step.collect is True else (*step.level, str(step.collect)) if step.collect else ("<none>",)

    def _needed(self, step: Step) -> list[str]:
        """Of the phases on the level that it collects, those of which an item or element must have all."""
        binds, inner = self.binds[step.name], self._inner(step)
        seen = {binds[one] for one in step.outcomes}
        valued = {source for one, source in binds.items() if one not in step.outcomes}
        return [
            one
            for one in self.needs[step.name]
            if self.steps[one].level == inner and (one in valued or one not in seen)
        ]

    # --- one phase in one frame

    def state(self, frame: Frame, name: str) -> State:
        if name not in frame.states:
            frame.states[name] = self._evaluated(frame, self.steps[name])
        return frame.states[name]

    def blocked(self, frame: Frame, needs: Iterable[str]) -> str | None:
        """Failed before skipped; what runs deeper or beside is order alone."""
        levels = ((name, self.steps[name].level) for name in needs)
        kinds = {self.state(frame.home(at), name).kind for name, at in levels if at == frame.level[: len(at)]}
        return "bad" if "bad" in kinds else "skipped" if "skipped" in kinds else None

    def _evaluated(self, frame: Frame, step: Step) -> State:
        blocked = self.blocked(frame, self.needs[step.name])
        if blocked is not None:
            return State(blocked, "skipped")
        inputs = self._collected(frame, step) if isinstance(step.collect, str) else {}
        if inputs is None:
            return State("bad", "skipped")
        for name, source in self.binds[step.name].items():
            if name not in inputs:
                home = frame.home(self.level_of(source))
                if source in self.steps:
                    inputs[name] = self.state(home, source).value
                elif source in home.fields:
                    inputs[name] = home.fields[source]
                elif step.batch is not None:  # every input is a list, of one length
                    return self._failed(frame, step, "failed")
        return self._called(frame, step, inputs)

    def _called(self, frame: Frame, step: Step, inputs: dict[str, Any]) -> State:
        try:
            if not is_wanted(step, inputs):
                return State("skipped", "skipped")
            is_valid = all(value != "no" for name, value in inputs.items() if step.binds.get(name) == "w")
            if not is_valid:
                return self._failed(frame, step, "failed")
            self.calls[signed(step.name, inputs)] += 1
            if step.breaks is not None:
                return self._failed(frame, step, "failed")
            if is_late(step, inputs, self.rarity):
                return self._failed(frame, step, "timed_out")
            value = applied(step, inputs, self.rarity)
        except BrokenError:
            return self._failed(frame, step, "failed")
        return State("ok", "succeeded", value) if step.expand is None else self._expanded(frame, step, value)

    def _expanded(self, frame: Frame, step: Step, elements: Iterable[Any]) -> State:
        assert step.expand is not None
        children = frame.children[step.expand] = []
        try:
            for index, element in enumerate(elements):
                children.append(Frame((*step.level, step.expand), frame, {step.expand: element}, index))
        except BrokenError:
            return self._failed(frame, step, "failed")
        return State("ok", "succeeded")

    def _failed(self, frame: Frame, step: Step, status: str) -> State:
        frame.failures.append(Failure(step.name, status, {step.name}))
        return State("bad", status)

    def _collected(self, frame: Frame, step: Step) -> dict[str, Any] | None:
        """The lists of a collect per parent; None where half a document is no document."""
        children = frame.children[str(step.collect)]
        for child in children:
            self.run_all(child)
        needed = self._needed(step)
        kinds = [self.blocked(child, needed) for child in children]
        lost = [child for child, kind in zip(children, kinds, strict=True) if kind == "bad"]
        if lost and step.missing != "ignore":
            relevant = self._upstream(needed, self._inner(step))
            self._take_failures(frame, lost, relevant, self.place[step.name])
            return None
        inputs: dict[str, Any] = {}
        for name, source in self.binds[step.name].items():
            if self.level_of(source) != self._inner(step):
                continue
            if name in step.outcomes:
                inputs[name] = [self._seen(child, source) for child in children]
            else:
                whole = [child for child, kind in zip(children, kinds, strict=True) if kind is None]
                inputs[name] = [self._value(child, source) for child in whole]
        return inputs

    def _seen(self, frame: Frame, name: str) -> tuple[str, Any]:
        state = self.state(frame, name)
        return state.status, state.value

    def _value(self, frame: Frame, source: str) -> Any:
        return self.state(frame, source).value if source in self.steps else frame.fields[source]

    # --- failures

    def _take_failures(self, frame: Frame, lost: list[Frame], relevant: set[str], collect: float = 1e9) -> None:
        """What failed elements are to their parent: one failure, named by the first of them."""
        found = [self.settled(child, relevant) for child in lost]
        failures = [failure for failure in found if failure is not None]
        if not failures:  # they lack what failed above them, where it is on record
            return
        statuses = {failure.status for failure in failures}
        status = statuses.pop() if len(statuses) == 1 else "failed"
        names = {name for failure in failures for name in failure.phases}
        frame.failures.append(Failure(failures[0].phase, status, names, collect))

    def settled(self, frame: Frame, relevant: set[str] | None = None) -> Failure | None:
        """Its first failure as declared, with all phases of them."""
        failures = [one for one in frame.failures if relevant is None or one.phases & relevant]
        if not failures:
            return None
        first = min(failures, key=lambda failure: (self.place[failure.phase], failure.collect))
        return Failure(first.phase, first.status, {name for failure in failures for name in failure.phases})

    def _upstream(self, names: Iterable[str], level: Level) -> set[str]:
        """These phases and what they need, as far as that runs per element of this expansion."""
        found: set[str] = set()
        queue = list(names)
        while queue:
            name = queue.pop()
            if name not in found and self.steps[name].level[: len(level)] == level:
                found.add(name)
                queue += self.needs[name]
        return found

    def _excused(self, frame: Frame, element: str) -> set[str]:
        """Phases below an expansion whose failures a collect sees, or goes on without."""
        excused: set[str] = set()
        for step in self._on[frame.level]:
            if step.collect == element:
                seen = {self.binds[step.name][one] for one in step.outcomes}
                names = [one for one in self.needs[step.name] if step.missing == "ignore" or one in seen]
                excused |= self._upstream(names, (*frame.level, element))
        return excused

    def run_all(self, frame: Frame) -> None:
        """All phases of a frame and below, and what failed there and nobody goes on without."""
        if frame.states.get("") is not None:
            return
        frame.states[""] = State("ok", "done")  # once
        for step in self._on[frame.level]:
            self.state(frame, step.name)
        for element, children in frame.children.items():
            for child in children:
                self.run_all(child)
            excused = self._excused(frame, element)
            lost = [child for child in children if not child.failed() <= excused]
            if lost:
                self._take_failures(frame, lost, {name for one in lost for name in one.failed()} - excused)

    # --- items

    def item(self, item: Any) -> Wanted:
        if not isinstance(item, dict):
            wanted = Wanted("failed")
            self._items.append((None, wanted))
            return wanted
        frame = Frame((), None, item)
        self.run_all(frame)
        wanted = Wanted("succeeded", phases=self._phases(frame))
        if failure := self.settled(frame):
            wanted.status, wanted.failed_phase = failure.status, failure.phase
        else:
            leaves = self._leaves()
            there = [step for step in leaves if not self._is_skipped(frame, step)]
            values = {step.name: self._leaf(frame, step) for step in there}
            wanted.value = next(iter(values.values())) if len(leaves) == 1 and values else values
            if leaves and not there:
                wanted.status, wanted.value = "skipped", None
        self._items.append((frame, wanted))
        return wanted

    def _leaves(self) -> list[Step]:
        """The phases of items that nothing per item takes further."""
        per_item = [step for step in self.steps.values() if step.level != RUN]
        taken = {source for step in per_item for source in self.binds[step.name].values()}
        taken |= {step.collect for step in per_item} | {step.level[-1] for step in per_item if step.level}
        return [
            step for step in per_item if step.name not in taken and (step.expand is None or step.expand not in taken)
        ]

    def _instances(self, frames: list[Frame], step: Step) -> tuple[list[Frame], bool]:
        """The frames in which it could run; whether some are not there since an expansion was skipped."""
        is_skipped = False
        for element in step.level:
            is_skipped |= any(frame.states[self.owners[element].name].kind == "skipped" for frame in frames)
            frames = [child for frame in frames for child in frame.children.get(element, ())]
        return frames, is_skipped

    def _is_skipped(self, frame: Frame, step: Step) -> bool:
        frames, is_skipped = self._instances([frame], step)
        kinds = {one.states[step.name].kind for one in frames}
        return kinds == {"skipped"} if kinds else is_skipped

    def _leaf(self, frame: Frame, step: Step) -> Any:
        frames, _ = self._instances([frame], step)
        if step.expand is not None:
            return [child.fields[step.expand] for one in frames for child in one.children.get(step.expand, ())]
        if not step.level:
            return frame.states[step.name].value
        return [one.states[step.name].value for one in frames if one.states[step.name].kind == "ok"]

    def _phases(self, frame: Frame) -> dict[str, Any]:
        """The statuses of its phases; below an expansion a list in order."""
        found: dict[str, Any] = {step.name: frame.states[step.name].status for step in self._on[frame.level]}
        for children in frame.children.values():
            for child in children:
                for name, status in self._phases(child).items():
                    found.setdefault(name, []).extend(status if isinstance(status, list) else [status])
        return found

    # --- once per run

    def once(self) -> None:
        """What runs after the last item, or while they come."""
        done: dict[str, str] = {}
        for step in self._on[RUN]:
            done[step.name] = self._once(step, done)

    def _once(self, step: Step, done: dict[str, str]) -> str:
        needs = [done[name] for name in self.needs[step.name] if name in done]
        if "bad" in needs or "skipped" in needs:
            return "bad" if "bad" in needs else "skipped"
        kinds = [self._kind(step, frame, wanted) for frame, wanted in self._items]
        if step.collect is True and (lost := kinds.count("bad")):
            self.missing[step.name] = lost
            if step.missing == "skip":
                return "bad"
        inputs: dict[str, Any] = {}
        for name, source in self.binds[step.name].items():
            if self.level_of(source) == RUN:
                inputs[name] = self.results[source]
            elif name in step.outcomes:
                inputs[name] = [self._seen(frame, source) if frame else ("failed", None) for frame, _ in self._items]
            else:
                frames = [frame for (frame, _), kind in zip(self._items, kinds, strict=True) if kind is None and frame]
                has_it = [frame for frame in frames if source in self.steps or source in frame.fields]
                inputs[name] = [self._value(frame, source) for frame in has_it]
        return self._called_once(step, inputs)

    def _kind(self, step: Step, frame: Frame | None, wanted: Wanted) -> str | None:
        """Why an item's values are not there, if they are not."""
        if frame is None:
            taken = [name for name, source in self.binds[step.name].items() if self.level_of(source) != RUN]
            return None if taken and step.outcomes.issuperset(taken) else "bad"
        is_late = any(self.steps[name].level not in ((), RUN) for name in step.after)
        if is_late and wanted.status not in ("succeeded", "skipped"):
            return "bad"
        return self.blocked(frame, self._needed(step))

    def _called_once(self, step: Step, inputs: dict[str, Any]) -> str:
        try:
            if not is_wanted(step, inputs):
                return "skipped"
            self.calls[signed(step.name, inputs)] += 1
            self.results[step.name] = applied(step, inputs, self.rarity)
        except BrokenError:
            self.errors.add(step.name)
            return "bad"
        return "ok"
