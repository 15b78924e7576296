"""Which call took the result of which: told from the plan of a run on record, and phase and item key of each call.

Knows the calls that it is given; `_lineage` chooses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ._errors import EvidenceError, shown
from ._reading import ENDS

__all__ = ["FAILED", "OK", "Edges", "Place", "Plan", "Source", "calls_of", "place_of"]

Place = tuple[str, str | None]  # a phase, and the key of an item or element; None for once per run
OK: Final = ("succeeded", "reused")
CALLS: Final = {"call.started", *ENDS}
FAILED: Final = "item.failed"


@dataclass(frozen=True, slots=True)
class Planned:
    """A phase of a plan on record.

    Attributes:
        level: The expansions that it is below; None: it runs once per run.
        inputs: As on record.
        needs: The phases that it comes after, for data or order.
    """

    name: str
    tool: str
    version: str
    level: tuple[str, ...] | None
    inputs: tuple[Mapping[str, Any], ...]
    needs: tuple[str, ...]
    expand: str | None
    collect: str | None

    @property
    def collects_fields(self) -> bool:
        """Whether it takes a field of all items at once."""
        return any(one.get("collected") and "field" in one for one in self.inputs)


class Plan:
    """A plan on record, by which keys are told apart.

    Raises:
        EvidenceError: It is none: it was damaged.
    """

    def __init__(self, fields: Iterable[Mapping[str, Any]]) -> None:
        try:
            self.phases = {one["phase"]: _planned(one) for one in fields}
            self.owners = {one.expand: one for one in self.phases.values() if one.expand is not None}
            for one in self.phases.values():
                self._check(one)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise EvidenceError(
                f"the plan of the run cannot be read ({shown(error)}): the record of its start was changed or damaged"
            ) from error

    def _check(self, planned: Planned) -> None:
        """That all it names is there."""
        for name in planned.needs:
            self.phases[name]
        for element in planned.level or ():
            self.owners[element]
        for one in planned.inputs:
            if "field" not in one:
                found = self.phases[one["result"]] if "result" in one else self.owners[one["element"]]
                own = planned.level if not one.get("collected") else None
                if own is not None and found.level is None:
                    raise ValueError(f"{planned.name!r} takes {found.name!r}, which runs later")
            if not isinstance(one["input"], str):
                raise TypeError("an input without a name")

    def root_of(self, phase: str, key: str) -> str:
        """The source item's key in that of an item or element in this phase."""
        return cut(key, len(self.phases[phase].level or ()))

    def roots_of(self, key: str) -> set[str]:
        """What the source item's key may be, where nobody says in which phase the key is to be found."""
        return {cut(key, len(one.level)) for one in self.phases.values() if one.level is not None}

    def upstream(self, phases: Iterable[str]) -> set[str]:
        """These phases and all that they need."""
        found: set[str] = set()
        waiting = list(phases)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                planned = self.phases[name]
                waiting += planned.needs
                waiting += [self.owners[element].name for element in planned.level or ()]
        return found


def _planned(fields: Mapping[str, Any]) -> Planned:
    level = fields["level"]
    return Planned(
        fields["phase"], fields["tool"], fields["version"], None if level == "run" else tuple(level.split("/")[1:]),
        tuple(fields["inputs"]), tuple(fields["needs"]), fields.get("expand"), fields.get("collect"),
    )  # fmt: skip


def cut(key: str, steps: int) -> str:
    """The key so many expansions further up."""
    return key.rsplit("/", steps)[0] if steps else key


@dataclass(frozen=True, slots=True)
class Source:
    """Where an input came from.

    Attributes:
        input: The input.
        call_id: The call whose result it is, or an element or part of it; None where it is a field.
        item: The key of the source item whose field it is; else None.
        field: The field.
    """

    input: str
    call_id: str | None = None
    item: str | None = None
    field: str | None = None


class Edges:
    """Which call took the result of which, among the calls of one run that are given.

    Args:
        plan: The run's.
        calls: Its calls, without those nested in them.
        failed: Its records of items that failed outside of any call.
    """

    def __init__(
        self, plan: Plan, calls: Iterable[Mapping[str, Any]], failed: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self.plan = plan
        self._at: dict[Place, list[Mapping[str, Any]]] = {}
        self._keys: dict[tuple[tuple[str, ...], str | None], dict[str, None]] = {}  # by level and parent: their keys
        for call in calls:
            phase, key = place = place_of(call)
            level = plan.phases[phase].level
            if key is None and level is not None:
                continue  # a batch: its items' calls have the keys
            self._at.setdefault(place, []).append(call)
            if key is not None and level is not None:
                parent = cut(key, 1) if level else None
                self._keys.setdefault((level, parent), {})[key] = None
        for record in failed:
            if record.get("phase") is not None and plan.phases[record["phase"]].level == ():
                self._keys.setdefault(((), None), {})[record["item"]] = None  # it may have no call, but it has fields

    def sources(self, call: Mapping[str, Any]) -> Iterator[Source]:
        """What a phase's call took."""
        planned = self.plan.phases[call["phase"]]
        key = call.get("item")
        if key is None and planned.level is not None:
            return  # a batch
        # A call that is open is on record since it began, before the ends of what it took were written.
        before = call["seq"] if "status" in call else math.inf
        whole: list[str] | None = None
        for one in planned.inputs:
            name = one["input"]
            if not one.get("collected"):
                yield from self._plain(planned, one, key, before)
            elif "element" in one:  # all elements: the iterable that was taken apart
                source = self._result(self.plan.owners[one["element"]].name, key, before)
                if source is not None:
                    yield Source(name, source["call_id"])
            else:
                seen = bool(one.get("outcomes"))
                if whole is None and not seen:
                    whole = self._whole(planned, key, before)
                yield from self._collected(planned, one, self._inner(planned, key) if seen else whole or (), before)

    def _collected(
        self, planned: Planned, one: Mapping[str, Any], keys: Iterable[str], before: float
    ) -> Iterator[Source]:
        for key in keys:
            if "field" in one:
                yield Source(one["input"], None, key, one["field"])
                continue
            found = self._results(one["result"], key, before, any_end=bool(one.get("outcomes")))
            # Once per run it takes all items, also those whose keys are those of earlier ones.
            for source in found if planned.level is None else found[-1:]:
                yield Source(one["input"], source["call_id"])

    def _plain(self, planned: Planned, one: Mapping[str, Any], key: str | None, before: float) -> Iterator[Source]:
        depth = len(planned.level or ())
        if "field" in one:
            if key is not None:
                yield Source(one["input"], None, cut(key, depth), one["field"])
            return
        owner = self.plan.phases[one["result"]] if "result" in one else self.plan.owners[one["element"]]
        at = None if key is None or owner.level is None else cut(key, depth - len(owner.level))
        source = self._result(owner.name, at, before)
        if source is not None:
            yield Source(one["input"], source["call_id"])

    def _result(self, phase: str, key: str | None, before: float) -> Mapping[str, Any] | None:
        """The call whose result that was: of those with this key the last that had ended by then."""
        found = self._results(phase, key, before)
        return found[-1] if found else None

    def _results(self, phase: str, key: str | None, before: float, *, any_end: bool = False) -> list[Mapping[str, Any]]:
        calls = self._at.get((phase, key), ())
        return [call for call in calls if call["seq"] < before and (any_end or call.get("status") in OK)]

    def _inner(self, planned: Planned, key: str | None) -> dict[str, None]:
        """The keys of all that a collect is about."""
        return self._keys.get((self._inner_level(planned), key), {})

    @staticmethod
    def _inner_level(planned: Planned) -> tuple[str, ...]:
        return () if planned.level is None else (*planned.level, str(planned.collect).removeprefix("each "))

    def _whole(self, planned: Planned, key: str | None, before: float) -> list[str]:
        """The keys of those that a collect takes: they have all that it needs."""
        inner = self._inner_level(planned)
        seen = {one.get("result") for one in planned.inputs if one.get("outcomes")}
        taken = {one.get("result") for one in planned.inputs if one.get("collected") and not one.get("outcomes")}
        needs = [name for name in planned.needs if self.plan.phases[name].level == inner]
        needs = [name for name in needs if name in taken or name not in seen]
        return [
            one for one in self._inner(planned, key)
            if all(self._result(name, one, before) is not None for name in needs)
        ]  # fmt: skip


def place_of(call: Mapping[str, Any]) -> Place:
    """The phase and the key of a call on record."""
    return call["phase"], call.get("item")


def calls_of(
    records: Iterable[Mapping[str, Any]], run_id: str | None, also: str | None = None
) -> Iterator[Mapping[str, Any]]:
    """The calls of a run, or all: as they began, where that is on record, and as they ended. And another event."""
    for record in records:
        if (record["event"] in CALLS or record["event"] == also) and (run_id is None or record.get("run_id") == run_id):
            yield record
