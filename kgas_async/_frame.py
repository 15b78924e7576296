"""The state of one item, or of one element of an expansion, on its way through a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

from ._call import Call
from ._cancellation import failure_in
from ._errors import CallCancelled, CallTimeout, PipelineError, text_of
from ._expand import Elements
from ._plan import PlannedPhase, Steps

__all__ = ["Expansion", "Frame", "Lack"]


_NO_NAMES: Final[frozenset[str]] = frozenset()
_NO_PLACES: Final[Mapping[str, PlannedPhase]] = {}
_NO_FAILURES: Final[Mapping[str, tuple[str, BaseException | None]]] = {}


class Failure(NamedTuple):
    """What failed in a frame: the phase to name, and all phases behind it."""

    phase: str
    status: str
    error: BaseException | None
    phases: frozenset[str]


class Lack(NamedTuple):
    """A collect that was skipped, since elements lack a phase that it needs."""

    collect: PlannedPhase
    expansion: Expansion
    elements: list[Frame]
    needed: set[str]

    def first_error(self) -> BaseException | None:
        """Of the first element that failed in one of those."""
        relevant = self.expansion.upstream(self.needed)
        failures = (element.first_of(relevant) for element in self.elements)
        return next((failure.error for failure in failures if failure is not None), None)


class Frame:
    """An item or an element: its fields, what its phases gave, and what failed.

    Attributes:
        bad: Phases that have no result because they, or what they need, failed.
        skipped: Phases that have none because ``when`` said no, to them or to what they need.
        failures: What failed itself, by phase: status and error.
        below: What failed in elements, and is why this failed.
        lacks: Collects that were skipped for what their elements lack.
        branches: How many of its phases run, are about to, or are expanded.
        status, error, failed_phase: What came of it, once it is settled.
    """

    __slots__ = (
        "bad",
        "below",
        "branches",
        "calls",
        "error",
        "expansion",
        "expansions",
        "failed_phase",
        "failures",
        "fields",
        "index",
        "joins",
        "key",
        "lacks",
        "parent",
        "places",
        "results",
        "skipped",
        "status",
        "steps",
    )

    def __init__(
        self,
        parent: Frame | None,
        steps: Steps,
        index: int,
        key: str,
        fields: Mapping[str, Any],
        expansion: Expansion | None = None,
    ) -> None:
        self.parent = parent
        self.steps = steps
        self.index = index
        self.key = key
        self.fields = fields
        self.results: dict[str, Any] = {}
        self.calls: dict[str, Call[Any]] = {}
        # Most items need none of the following: nothing is made for them before it is wanted.
        self.expansions: tuple[Expansion, ...] = ()
        self.expansion = expansion
        self.bad: AbstractSet[str] = _NO_NAMES
        self.below: tuple[Failure, ...] = ()
        self.lacks: tuple[Lack, ...] = ()
        self.places: Mapping[str, PlannedPhase] = _NO_PLACES
        self.skipped: AbstractSet[str] = _NO_NAMES
        self.failures: Mapping[str, tuple[str, BaseException | None]] = _NO_FAILURES
        self.branches = len(steps.starts)
        self.joins: dict[str, int] | None = None  # of those that wait for several: how many have ended
        self.status = "succeeded"
        self.error: BaseException | None = None
        self.failed_phase: str | None = None

    def fail(self, phase: str, call: Call[Any]) -> None:
        """A phase's call did not succeed."""
        if call.status == "cancelled" and call.error is None:
            call.cancelled_error()
        self._failed(phase, call.status if call.ended_ns else "cancelled", call.error)

    def fail_with(self, phase: str, error: BaseException, status: str = "failed") -> None:
        """A phase failed outside of its tool."""
        self._failed(phase, status, error)

    def _failed(self, phase: str, status: str, error: BaseException | None) -> None:
        self.mark(phase, "bad")
        if phase not in self.failures:
            self.failures = {**self.failures, phase: (status, error)}

    def mark(self, phase: str, how: str) -> None:
        """A phase has no result, since it or what it needs failed (``bad``) or was ``skipped``."""
        if how == "bad":
            self.bad = self.bad | {phase}
        else:
            self.skipped = self.skipped | {phase}

    def cut(self, planned: PlannedPhase) -> None:
        """A phase is not begun any more."""
        name = planned.phase.name
        if self.blocked(planned.needs) is None:
            error = CallCancelled(f"item {self.key!r} was cancelled before phase {name!r}")
            self._failed(name, "cancelled", error)
        self.mark(name, "bad")

    def join(self, planned: PlannedPhase) -> bool:
        """One more of those that a phase waits for has ended: whether it was the last."""
        if planned.waits == 1:
            return True
        name = planned.phase.name
        if self.joins is None:
            self.joins = {}
        ended = self.joins[name] = self.joins.get(name, 0) + 1
        return ended == planned.waits

    def settle(self, places: Mapping[str, PlannedPhase]) -> None:
        """Once all phases have ended: what came of it. Of several failures the first as declared, on every loop.

        What failed in elements, and no collect goes on without, is this frame's too.
        """
        self.places = places
        if not (self.failures or self.expansions or self.lacks):
            return
        for lack in sorted(self.lacks, key=lambda lack: lack.collect.place):
            self._take(lack.elements, lack.expansion.upstream(lack.needed))
        for expansion in self.expansions:
            lost, relevant = expansion.lost()
            self._take(lost, relevant)
        if (first := self.first_of(None)) is not None:
            self.status, self.error, self.failed_phase = first.status, first.error, first.phase

    def _take(self, elements: list[Frame], relevant: set[str]) -> None:
        """Fail because of elements that lack these phases: with their error, or a group of their errors."""
        found = [failure for failure in (one.first_of(relevant) for one in elements) if failure is not None]
        if not found:  # what they lack failed above them, and is on record there
            return
        errors = [failure.error for failure in found if isinstance(failure.error, Exception)]
        status = found[0].status if len({failure.status for failure in found}) == 1 else "failed"
        error = ExceptionGroup(f"{len(errors)} elements failed", errors) if len(errors) > 1 else found[0].error
        names = frozenset().union(*(one.phases for one in found))
        self.below = (*self.below, Failure(found[0].phase, status, error, names))

    def first_of(self, relevant: set[str] | None) -> Failure | None:
        """Once it is settled: the first as declared of its failures, or of those in which one of these phases failed.

        Its ``phases`` are all of theirs.
        """
        if not self.failures and not self.below:
            return None
        own = [Failure(name, status, error, frozenset((name,))) for name, (status, error) in self.failures.items()]
        found = [one for one in (*own, *self.below) if relevant is None or not one.phases.isdisjoint(relevant)]
        if not found:
            return None
        first = min(found, key=lambda one: self.places[one.phase].place)
        return first._replace(phases=frozenset().union(*(one.phases for one in found)))

    def all_failed(self) -> set[str]:
        """The phases that failed, in it or in its elements."""
        return set(self.failures).union(*(one.phases for one in self.below))

    def blocked(self, needs: Iterable[str]) -> str | None:
        """Why a phase with these needs does not run: ``bad``, ``skipped``, or None where it does."""
        frame: Frame | None = self
        found: str | None = None
        while frame is not None:
            if frame.bad and not frame.bad.isdisjoint(needs):
                return "bad"
            if frame.skipped and not frame.skipped.isdisjoint(needs):
                found = "skipped"
            frame = frame.parent
        return found

    def all_calls(self) -> Iterator[Call[Any]]:
        """The calls of this frame and of its elements."""
        yield from self.calls.values()
        for expansion in self.expansions:
            for frame in expansion.frames:
                yield from frame.all_calls()

    def end_lost(self) -> None:
        """After a breakdown: no worker has its calls in hand any more; but those with a task of their own end there."""
        for name, call in self.calls.items():
            if not call.ended_ns and not call.bound.isolated:
                call.end("cancelled")
                self.fail(name, call)
        for expansion in self.expansions:
            for frame in expansion.frames:
                frame.end_lost()

    def given(self) -> list[Mapping[str, Any]]:
        """The fields of the item, and the elements, that it is of."""
        found: list[Mapping[str, Any]] = []
        frame: Frame | None = self
        while frame is not None:
            found.append(frame.fields)
            frame = frame.parent
        return found

    def expansion_of(self, element: str) -> Expansion | None:
        """This frame's expansion into elements of that name."""
        for expansion in self.expansions:
            if expansion.planned.phase.expand == element:
                return expansion
        return None

    def frames_at(self, level: tuple[str, ...]) -> list[Frame]:
        """The frames below this one on that level, in order."""
        frames: list[Frame] = [self]
        for element in level:
            frames = [inner for one in frames for inner in getattr(one.expansion_of(element), "frames", ())]
        return frames


class Expansion:
    """The elements of one frame's expanded phase, on their way."""

    def __init__(self, frame: Frame, planned: PlannedPhase, elements: Elements) -> None:
        self.frame = frame
        self.planned = planned
        self.elements = elements
        self.frames: list[Frame] = []
        self.running = 0
        self.closed = False
        self.error: BaseException | None = None  # the iterator itself failed
        assert planned.phase.expand is not None
        self._name = planned.phase.expand

    def take(self) -> Any:
        """A frame for the next element; this expansion itself where somebody must pull first; None for neither."""
        elements = self.elements
        if elements.is_ready:
            try:
                element = elements.next()
            except StopIteration:
                elements.exhausted = True
                return None if self.running or self.closed else self
            except BaseException as error:
                failure = failure_in(error)
                if failure is None:
                    raise
                elements.exhausted = True
                self.broken(failure)
                return None if self.running or self.closed else self
            index = len(self.frames)
            frame = Frame(
                self.frame, self.planned.children, index, f"{self.frame.key}/{index}", {self._name: element}, self
            )
            self.frames.append(frame)
            self.running += 1
            return frame
        return None if elements.pulling or elements.exhausted else self

    @property
    def is_done(self) -> bool:
        """Whether no element is left and none runs."""
        return not self.has_more and self.running == 0

    @property
    def has_more(self) -> bool:
        """Whether there are elements, or may be, that nobody has taken."""
        return not self.elements.exhausted or bool(self.elements.buffer)

    def broken(self, error: BaseException) -> None:
        """The iterator raised: the parent fails when its elements have ended."""
        failure = PipelineError(
            f"the elements of {self._name!r} ended after {len(self.frames)}: phase {self.planned.phase.name!r} raised "
            f"{type(error).__name__}: {text_of(error)}"
        )
        failure.__cause__ = error
        self.error = failure
        status = "timed_out" if isinstance(error, CallTimeout) else "failed"
        self.frame.fail_with(self.planned.phase.name, failure, status)

    def cut_short(self) -> None:
        """End it here: what was not pulled or taken is no element."""
        self.closed = True
        self.error = CallCancelled(f"the elements of {self._name!r} were cancelled after {len(self.frames)}")
        self.frame.fail_with(self.planned.phase.name, self.error, "cancelled")

    def failed(self) -> list[Frame]:
        """Elements that did not succeed."""
        return [frame for frame in self.frames if frame.status != "succeeded"]

    def lost(self) -> tuple[list[Frame], set[str]]:
        """Elements that failed in a phase without which no collect goes on (``missing="ignore"``); those phases."""
        failed = self.failed()
        if not failed:
            return [], set()
        relevant = set().union(*(frame.all_failed() for frame in failed)) - self._excused()
        return [frame for frame in failed if not relevant.isdisjoint(frame.all_failed())], relevant

    def upstream(self, names: Iterable[str]) -> set[str]:
        """Those of these phases that are below this expansion, and what they need of it."""
        inner: dict[str, PlannedPhase] = {}
        queue = list(self.planned.children.phases)
        while queue:
            planned = queue.pop()
            inner[planned.phase.name] = planned
            queue += planned.children.phases
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in inner and name not in found:
                found.add(name)
                waiting += inner[name].needs
        return found

    def _excused(self) -> set[str]:
        """The phases below this expansion whose failures a collect sees, or goes on without."""
        names: list[str] = []
        for planned in self.frame.steps.phases:
            if planned.phase.collect == self._name:
                seen = {binding.name for binding in planned.bindings if binding.outcomes}
                names += [name for name in planned.needs if planned.phase.missing == "ignore" or name in seen]
        return self.upstream(names)
