"""Lineage: what an output came from, and what an input has reached, told from evidence.

The record of a run's start has the plan: which phase takes what of which. That, and the phase and item key of each
call's record, say which call took the result of which; nothing is written for it per call. Read in two or three passes;
in memory is what the answer needs: the calls of one item and those that run once per run, or, where the question is
about a phase that runs once per run, the calls that it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ._derivation import FAILED, Edges, Plan, Source, calls_of, place_of
from ._errors import EvidenceError, counted
from ._reading import Evidence, Read, RunOnRecord, choose_run, lacks_of, read, runs_of
from ._suggest import KEYS_KEPT, nearest, nearest_key

__all__ = ["Lineage", "Traced", "lineage"]


@dataclass(frozen=True, slots=True)
class Traced:
    """A call in a lineage.

    Attributes:
        call_id, phase, item, tool, version: Of the call; ``item`` is None in phases that run once per run.
        status: How it ended; ``"open"`` where its end is not on record.
        sources: What it took, as far as it is in this lineage.
        parent_id: The call that it is nested in, if it is.
        batch_id: The call that ran it together with others.
        reused_from: The call whose value it has.
        inputs_sha256, output_sha256: Digests of what it was given and gave, where they are on record.
    """

    call_id: str
    phase: str
    item: str | None
    tool: str
    version: str
    status: str
    sources: tuple[Source, ...] = ()
    parent_id: str | None = None
    batch_id: str | None = None
    reused_from: str | None = None
    inputs_sha256: str | None = None
    output_sha256: str | None = None


@dataclass(slots=True)
class Lineage:
    """What an output came from, or what an input has reached.

    Attributes:
        run_id, pipeline: Of which run.
        direction: ``"upstream"`` or ``"downstream"``.
        phase, item: What was asked for.
        calls: In the order in which they ended, nested ones and batches among them.
        items: The source items, and which of their fields were taken; of inputs with a default: if the item had them.
        runs: The ids of other runs that calls in it have started.
        lacks: What the evidence lacks, as sentences, such as lines that a crash has torn: there may be more than is
            told here.
    """

    run_id: str
    pipeline: str
    direction: Literal["upstream", "downstream"]
    phase: str | None
    item: str | None
    calls: list[Traced] = field(default_factory=list)
    items: dict[str, list[str]] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)


def lineage(
    evidence: Evidence,
    *,
    item: str | None = None,
    phase: str | None = None,
    run_id: str | None = None,
    direction: Literal["upstream", "downstream"] = "upstream",
) -> Lineage:
    """What an output came from (``"upstream"``), or what an input has reached (``"downstream"``).

    Args:
        evidence: A path of JSON lines, or records such as those of a `MemorySink`.
        item: The key of an item, or of an element (``parent/index``).
        phase: The phase whose output it is. Without one: all phases of that item or element. Alone: a phase that runs
            once per run, or all outputs of a phase.
        run_id: The run; unless given, the latest that no call has started.
        direction: Which way to look.

    Returns:
        The calls on the way and the source items at its end, in a `Lineage`.

    Raises:
        EvidenceError: It cannot be read, lacks a segment, or knows of no such run, phase or item.
        ValueError: Neither ``item`` nor ``phase`` is given, or another direction.
    """
    if direction not in ("upstream", "downstream"):
        raise ValueError(f"direction={direction!r} is not known; use 'upstream' or 'downstream'")
    if item is None and phase is None:
        raise ValueError("say whose lineage: item=, phase= or both")
    records = read(evidence)
    runs = runs_of(records)
    return _Tracing(records, runs, choose_run(runs, run_id), item, phase, direction).found()


class _Tracing:
    """One question, asked of one run."""

    def __init__(
        self, records: Read, runs: Mapping[str, RunOnRecord], run: RunOnRecord, item: str | None, phase: str | None,
        direction: Literal["upstream", "downstream"],
    ) -> None:  # fmt: skip
        assert run.plan is not None
        self.records = records
        self.runs = runs
        self.run = run
        self.plan = Plan(run.plan)
        self.lineage = Lineage(run.run_id, run.pipeline, direction, phase, item)
        if phase is not None and phase not in self.plan.phases:
            known = self.plan.phases
            raise EvidenceError(
                f"pipeline {run.pipeline!r} has no phase {phase!r}; it has {', '.join(known)}{nearest(phase, known)}"
            )
        if phase is not None and item is not None and self.plan.phases[phase].level is None:
            raise EvidenceError(f"phase {phase!r} runs once per run, so it has no item {item!r}; leave the item out")

    def found(self) -> Lineage:
        """The answer."""
        own, nested = self._calls_near()
        edges = Edges(self.plan, own.values(), self._failed)
        sources = {call_id: tuple(edges.sources(call)) for call_id, call in own.items()}
        targets = [call for call_id, call in own.items() if self._is_target(call, sources[call_id])]
        if not targets:
            raise self._unknown()
        kept = self._reached(targets, sources)
        for call in sorted(self._with_others(kept, own, nested), key=lambda call: call["seq"]):
            given = sources.get(call["call_id"], ()) if call["call_id"] in kept else ()
            self._keep(call, tuple(one for one in given if one.call_id is None or one.call_id in kept))
        known = {call.call_id for call in self.lineage.calls}
        self.lineage.runs = [run.run_id for run in self.runs.values() if run.parent_id in known]
        self.lineage.lacks = lacks_of(self.records)
        return self.lineage

    def _calls_near(self) -> tuple[dict[str, Mapping[str, Any]], list[Mapping[str, Any]]]:
        """The calls that may belong to it, by id, and those nested in calls of the same places."""
        wanted = self._filter()
        self._failed: list[Mapping[str, Any]] = []
        own: dict[str, Mapping[str, Any]] = {}
        nested: dict[str, Mapping[str, Any]] = {}
        for record in calls_of(self.records, self.run.run_id, FAILED):
            if record["event"] == FAILED:
                if record.get("phase") is not None and wanted(*place_of(record)):
                    self._failed.append(record)
            elif wanted(*place_of(record)):
                into = own if record.get("parent_id") == self.run.parent_id else nested
                into[record["call_id"]] = record
        return own, list(nested.values())

    def _filter(self) -> Callable[[str, str | None], bool]:
        """Whether a call at a place may belong to it: what is kept in memory."""
        plan, asked = self.plan, self.lineage
        every = plan.phases.keys()
        ends: Iterable[str] = every if asked.phase is None else [asked.phase]
        if asked.direction == "downstream" and asked.phase is not None:
            ends = [one for one in every if asked.phase in plan.upstream([one])]
        phases = plan.upstream(ends)  # downstream too: what else a collect needs says whether it took this one
        if any(plan.phases[one].collects_fields for one in phases):
            phases |= {one for one in every if plan.phases[one].level == ()}  # which items there were, their calls say
        if asked.item is None:
            return lambda phase, key: phase in phases
        roots = plan.roots_of(asked.item) if asked.phase is None else {plan.root_of(asked.phase, asked.item)}
        return lambda phase, key: (
            phase in phases and (plan.phases[phase].level is None if key is None else plan.root_of(phase, key) in roots)
        )

    def _is_target(self, call: Mapping[str, Any], taken: tuple[Source, ...]) -> bool:
        phase, key = place_of(call)
        asked = self.lineage
        if asked.phase is not None:
            return phase == asked.phase and (asked.item is None or key == asked.item)
        takes_it = asked.direction == "downstream" and any(source.item == asked.item for source in taken)
        return key == asked.item or takes_it

    def _reached(self, targets: list[Mapping[str, Any]], sources: Mapping[str, tuple[Source, ...]]) -> dict[str, None]:
        """The targets and all calls up or down from them."""
        follow: dict[str, list[str]] = {}
        for call_id, taken in sources.items():
            for source in taken:
                if source.call_id is None:
                    continue
                if self.lineage.direction == "upstream":
                    follow.setdefault(call_id, []).append(source.call_id)
                else:
                    follow.setdefault(source.call_id, []).append(call_id)
        found: dict[str, None] = {}
        waiting = [call["call_id"] for call in targets]
        while waiting:
            call_id = waiting.pop()
            if call_id not in found:
                found[call_id] = None
                waiting += follow.get(call_id, ())
        return found

    def _with_others(
        self, kept: Iterable[str], own: Mapping[str, Mapping[str, Any]], nested: list[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """Those calls; what is nested in them; what ran them together with others, and whose value they have.

        The latter may be of other items and runs, and have not been read yet: they, and then what is nested in them,
        take a pass each.
        """
        inside: dict[str, list[Mapping[str, Any]]] = {}
        for call in nested:
            inside.setdefault(call["parent_id"], []).append(call)
        found = {call_id: own[call_id] for call_id in kept}
        new = list(found.values())
        parents: set[str] = set()  # of which nobody knows yet what is nested in them
        while new:
            for call in new:  # it grows meanwhile
                new += inside.pop(call["call_id"], ())
            found |= {call["call_id"]: call for call in new}
            named = {call[name] for call in new for name in ("batch_id", "reused_from") if name in call}
            read: dict[str, Mapping[str, Any]] = {}
            for record in calls_of(self.records, None) if parents or named - found.keys() else ():
                if record["call_id"] not in found and (
                    record["call_id"] in named or record.get("parent_id") in parents
                ):  # fmt: skip
                    read[record["call_id"]] = record
            parents, new = set(read), list(read.values())
        return list(found.values())

    def _keep(self, call: Mapping[str, Any], sources: tuple[Source, ...]) -> None:
        self.lineage.calls.append(
            Traced(
                call["call_id"], call.get("phase", ""), call.get("item"), call["tool"], call["version"],
                call.get("status", "open"), sources, call.get("parent_id"), call.get("batch_id"),
                call.get("reused_from"),
                call.get("inputs_sha256"),
                call.get("output_sha256"),
            )
        )  # fmt: skip
        for source in sources:
            if source.item is not None and source.field is not None:
                fields = self.lineage.items.setdefault(source.item, [])
                if source.field not in fields:
                    fields.append(source.field)

    def _unknown(self) -> EvidenceError:
        """Nothing is on record of what was asked for; name what is near."""
        asked = self.lineage
        keys: dict[str, None] = {}
        for record in calls_of(self.records, self.run.run_id):
            phase, key = place_of(record)
            if key is not None and (asked.phase is None or phase == asked.phase) and len(keys) < KEYS_KEPT:
                keys[key] = None
        where = f"run {self.run.run_id!r} of pipeline {self.run.pipeline!r}"
        what = f"phase {asked.phase!r}" if asked.item is None else f"item {asked.item!r}"
        if asked.item is not None and asked.phase is not None:
            what += f" in phase {asked.phase!r}"
        hint = "" if asked.item is None else nearest_key(asked.item, keys)
        there = f"; there are {counted(len(self.runs), 'run')} on record, another may have it" * (len(self.runs) > 1)
        return EvidenceError(f"{where} has no call on record of {what}{hint}{there}")
