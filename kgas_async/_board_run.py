"""A run as its evidence shows it: its plan, how many of its items have ended, and how fast it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from ._picture import ItemsSeen
from ._report import Pace, Progress

__all__ = ["RunSeen"]

_NS: Final = 1e9


class RunSeen:
    """A run, its plan, and how fast it goes."""

    def __init__(self, fields: Mapping[str, Any], at_ns: int, clock: Callable[[], float]) -> None:
        self.run_id: str = fields["run_id"]
        self.pipeline: str = fields["pipeline"]
        self.began_ns = at_ns
        self.ended_ns = 0
        self.ended: Mapping[str, Any] | None = None
        self._is_told = False  # by itself, how many items are done
        self.at_fault = 0  # items that failed outside of any call
        self.total: int | None = fields.get("items")
        plan = fields.get("plan") or []
        self.phases = [(one["phase"], one["tool"], one["level"]) for one in plan]
        self._needs = {one["phase"]: one["needs"] for one in plan}
        self._pace = Pace(self.total, clock)
        self._paces = {name: Pace(self._total_of(level), clock) for name, _, level in self.phases}

    def _total_of(self, level: str) -> int | None:
        return 1 if level == "run" else self.total if level == "item" else None

    def note_fault(self, fields: Mapping[str, Any]) -> None:
        """Something has failed outside of any call: if it is an item of this run, and no element of one, it counts."""
        phase = fields.get("phase")
        level = next((level for name, _, level in self.phases if name == phase), "item")
        self.at_fault += fields.get("run_id") == self.run_id and level == "item"

    def keep_pace(self, board: Any) -> None:
        """Some calls have ended."""
        for name, _, _ in self.phases:
            self._paces[name].progress(board.ended_in(f"{self.pipeline}/{name}"), 0)
        counted = None if self._is_told else self._counted(board)
        if counted is not None:
            self._pace.progress(*counted)

    def pace_of(self, board: Any, phase: str, done: int, level: str) -> Progress:
        """How far a phase is; items that were lost before do not come to it."""
        at = self._paces[phase].progress(done, 0)
        if at.total is None or level != "item":
            return at
        lost = sum(self._lost_in(board, name) for name in self._before(phase)) + self.at_fault
        total = max(at.total - lost, done)
        eta_s = 0.0 if total == done else None if at.rate is None else (total - done) / at.rate
        return Progress(done, 0, total, at.elapsed_s, at.rate, eta_s)

    def items(self, board: Any, told: Progress | None) -> ItemsSeen:
        """How far its items are: as it tells itself, as its end says, or as the calls on record have it."""
        if self.ended is not None:
            done, failed = self.ended["items"], self.ended["failed"]
            elapsed_s = (self.ended_ns - self.began_ns) / _NS
            rate = done / elapsed_s if elapsed_s else None
            cancelled = self.ended.get("cancelled", 0)
            cancelled = cancelled if isinstance(cancelled, int) else 0  # of an older version, or damaged
            total = None if self.total is not None and done > self.total else self.total  # as of `Progress`
            return ItemsSeen(done, failed, self.ended["skipped"], total, rate, cancelled=cancelled)
        if told is not None:
            self._is_told = True
            at = self._pace.progress(told.done, told.failed)  # as of now, where its own is of its latest item
            return ItemsSeen(told.done, told.failed, 0, at.total, at.rate, at.eta_s, cancelled=told.cancelled)
        counted = self._counted(board)
        if counted is None:
            return ItemsSeen(total=self.total, is_exact=False)
        at = self._pace.progress(*counted)
        return ItemsSeen(at.done, at.failed, 0, at.total, at.rate, at.eta_s, False, at.cancelled)

    def _counted(self, board: Any) -> tuple[int, int, int] | None:
        """Items that have ended, failed, were cancelled, by the calls on record; None where calls do not tell it.

        An item has ended where its call in the last phase has, or one in a phase before that did not succeed.
        """
        level = {name: level for name, _, level in self.phases}
        per_item = [name for name, _, level in self.phases if level == "item"]
        needed = {need for name in level if level[name] != "run" for need in self._needs[name]}
        leaves = [name for name in per_item if name not in needed]
        if not leaves:
            return None
        lost = {name: self._lost_in(board, name) for name in per_item}
        cancelled = sum(self._lost_in(board, name, "cancelled") for name in per_item)
        ended = []
        for leaf in leaves:
            before = self._before(leaf) & set(per_item)
            ended.append(board.ended_in(f"{self.pipeline}/{leaf}") + sum(lost[name] for name in before))
        done = min(ended) + self.at_fault
        failed = min(sum(lost.values()) - cancelled + self.at_fault, done)
        return done, failed, min(cancelled, done - failed)

    def _before(self, phase: str) -> set[str]:
        found: set[str] = set()
        waiting = list(self._needs[phase])
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += self._needs.get(name, ())
        return found

    def _lost_in(self, board: Any, phase: str, *statuses: str) -> int:
        stats = board.phases.get(f"{self.pipeline}/{phase}")
        return 0 if stats is None else stats.ended(*(statuses or ("failed", "timed_out", "rejected", "cancelled")))
