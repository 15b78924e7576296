"""The critical path: the chain of calls without which a run would have ended earlier, and what its time went to.

It is walked back from the call that ended last. A call runs once it has what it waited for: a place or a thread, which
another call gave free by its end, or the time that a rate limit or a retry wanted. It was made once a call of its item
had ended that it comes after, or, as the first one of its item, once there was room for another item. The walk goes on
with the call whose end that was. So the pieces of the path lie one behind the other, and add up to the whole time.

Here the path of each call is made when it ends, from those of calls that ended before: sums by piece, and the latest
steps. Calls are kept for a while only, so that memory stays bounded; where the one that was waited for is forgotten, an
earlier one stands for it, and the time between as `HANDOVER` or `BETWEEN`. Times are microseconds since the begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ._report_series import Recent

__all__ = ["BETWEEN", "HANDOVER", "NOWHERE", "PIECES", "CriticalPath", "Ended", "Step"]

PIECES: Final = ("run", "concurrency", "thread", "rate", "retry", "service")
HANDOVER: Final = "handover"  # from a call to the next of its item: the loop had other things to do
BETWEEN: Final = "between"  # before the first call of an item: its source, or there was nothing to do
NOWHERE: Final = -1  # the row of what is between calls
WAITS_BACK: Final = ("thread", "rate", "concurrency", "service")  # a call waits for them in the other order
KEPT: Final = 1024  # calls, of each row and of all
KEPT_OF_ITEM: Final = 32
ITEMS: Final = 4096  # whose latest calls are known
STEPS: Final = 64  # at the end of the path that are always known

Sums = dict[tuple[int, str], int]


@dataclass(slots=True)
class Step:
    """A call on the path.

    Attributes:
        row: The number of the row that it is in.
        item: Its key, if it has one.
        from_us: From when on it is on the path: what it waited for before is another call's end.
        run_us: When it began to run.
        end_us: When it ended.
        before: The step before; None at the begin, and where earlier ones are forgotten.
        number: From 1.
    """

    row: int
    item: str | None
    from_us: int
    run_us: int
    end_us: int
    before: Step | None
    number: int


Known = tuple[int, Sums, Step]  # when a call has ended, and its path


@dataclass(slots=True)
class Ended:
    """A call that has ended.

    Attributes:
        row: The number of its row.
        item: Its key.
        root: That of its source item; None: it belongs to none, or to several.
        end_us: When.
        run_us: For how long it ran.
        waits: What it waited for, and for how long.
        in_thread: Whether its tool is known to run in threads or processes.
        of_many: Whether it is of several items, or of all.
    """

    row: int
    item: str | None
    root: str | None
    end_us: int
    run_us: int
    waits: Mapping[str, int]
    in_thread: bool
    of_many: bool


class CriticalPath:
    """Takes calls in the order of their ends."""

    def __init__(self) -> None:
        self._all: Recent[Known] = Recent(KEPT)
        self._in_threads: Recent[Known] = Recent(KEPT)
        self._rows: dict[int, Recent[Known]] = {}
        self._roots: dict[str, list[Known]] = {}
        self._last: Known | None = None

    def add(self, call: Ended) -> None:
        """A call has ended."""
        known = self._known(call)
        end_us = call.end_us
        self._all.add(end_us, known)
        row = self._rows.get(call.row)
        if row is None:
            row = self._rows[call.row] = Recent(KEPT)
        row.add(end_us, known)
        if call.in_thread:
            self._in_threads.add(end_us, known)
        if call.root is not None:
            self._of_root(call.root).append(known)
        if self._last is None or end_us >= self._last[0]:
            self._last = known

    def ended(self, until_us: int) -> tuple[Sums, Step | None]:
        """The path to the end: what it adds up to, and its last step."""
        if self._last is None:
            return {(NOWHERE, BETWEEN): until_us}, None
        end_us, sums, step = self._last
        whole = dict(sums)
        whole[NOWHERE, BETWEEN] = whole.get((NOWHERE, BETWEEN), 0) + until_us - end_us
        return whole, step

    def _of_root(self, root: str) -> list[Known]:
        """The latest calls of a source item."""
        found = self._roots.get(root)
        if found is None:
            if len(self._roots) >= ITEMS:
                del self._roots[next(iter(self._roots))]
            found = self._roots[root] = []
        elif len(found) >= KEPT_OF_ITEM:
            del found[1 : KEPT_OF_ITEM // 2 : 2]
        return found

    def _known(self, call: Ended) -> Known:
        """The path to the end of a call."""
        row, waits, at = call.row, call.waits, call.end_us - call.run_us
        own = [("run", call.run_us)] if call.run_us else []
        retry = waits.get("retry", 0)
        if retry:
            own.append(("retry", retry))
            at -= retry
        run_us = at
        before: Known | None = None
        between = ""
        for kind in WAITS_BACK if waits else ():
            waited = waits.get(kind, 0)
            if not waited:
                continue
            freed = self._who_freed(kind, row, at)
            if freed is not None and freed[0] > at - waited:
                own.append((kind, at - freed[0]))
                before, at = freed, freed[0]
                break
            own.append((kind, waited))
            at -= waited
        else:
            before, between = self._who_came_before(call, at)
        sums: Sums
        if before is None:
            sums, step, gap = {}, None, at
        else:
            sums, step, gap = before[1].copy(), before[2], at - before[0]
        if gap:
            sums[NOWHERE, between] = sums.get((NOWHERE, between), 0) + gap
        for kind, length in own:
            sums[row, kind] = sums.get((row, kind), 0) + length
        return call.end_us, sums, _step(call, at, run_us, step)

    def _who_freed(self, kind: str, row: int, at_us: int) -> Known | None:
        """The call by whose end another one that waited got what it wanted at this time, if it was that."""
        if kind == "thread":
            return self._in_threads.until(at_us)
        found = self._rows.get(row) if kind == "concurrency" else None
        return None if found is None else found.until(at_us)

    def _who_came_before(self, call: Ended, made_us: int) -> tuple[Known | None, str]:
        """The call by whose end this one could be made, and what the time between is."""
        best: Known | None = None
        for known in self._roots.get(call.root, ()) if call.root is not None else ():
            if known[0] <= made_us and (best is None or known[0] >= best[0]):
                best = known
        if best is not None:
            return best, HANDOVER
        return self._all.until(made_us), HANDOVER if call.of_many else BETWEEN


def _step(call: Ended, from_us: int, run_us: int, before: Step | None) -> Step:
    number = 1 if before is None else before.number + 1
    if number % STEPS == 0:
        one = before
        for _ in range(2 * STEPS):
            if one is None:
                break
            one = one.before
        if one is not None:
            one.before = None
    return Step(call.row, call.item, from_us, run_us, call.end_us, before, number)
