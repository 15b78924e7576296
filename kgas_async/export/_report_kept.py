"""What a report shows singly, and of what there may be any number: the slowest calls, failures, stalls, moments.

Each kind is kept up to a limit, and the rest is counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from heapq import heappush, heapreplace
from typing import Any, Final

from kgas_async._metrics import Thinned

from ._report_figures import Failure, FailureGroup, Moment, Slow, StallSeen

__all__ = ["Failures", "Moments", "Slowest", "Stalls", "error_of"]

SLOWEST: Final = 20
FAILURES: Final = 200
GROUPS: Final = 100
ITEMS_OF_GROUP: Final = 5
MOMENTS: Final = 200
STALLS: Final = 20
OTHERS: Final = "(others)"


def error_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """Type and message of a record's error; of a cancelled call, why."""
    error = record.get("error")
    if not isinstance(error, Mapping):
        return "", str(record.get("reason", ""))
    message = error.get("message")
    if message is None and isinstance(error.get("errors"), list):
        wrong = [one for one in error["errors"] if isinstance(one, Mapping)]
        message = ", ".join(f"{one.get('field')}: {one.get('type')}" for one in wrong)
    return str(error.get("type", "")), "" if message is None else str(message)


class Slowest:
    """The calls that ran longest."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, int, Slow]] = []
        self.from_us = 0  # from which a call is worth a look
        self._count = 0

    def add(self, row: int, record: Mapping[str, Any], end_us: int, run_us: int, waited_us: int) -> None:
        """One that ran as long as ``from_us`` at least."""
        self._count += 1
        slow = Slow(
            row, record["call_id"], record.get("item"), record["status"], record["attempt"], end_us / 1e6, run_us / 1e6,
            waited_us / 1e6,
        )  # fmt: skip
        place = heappush if len(self._kept) < SLOWEST else heapreplace
        place(self._kept, (run_us, -self._count, slow))
        if len(self._kept) == SLOWEST:
            self.from_us = self._kept[0][0] + 1

    def found(self) -> tuple[Slow, ...]:
        """The slowest first."""
        return tuple(slow for _, _, slow in sorted(self._kept, key=lambda one: (-one[0], -one[1])))


class Failures:
    """The first failures, and all of them by where and type."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[Failure] = []
        self._groups: dict[tuple[str, str, str], list[Any]] = {}

    def add(self, row: int | None, where: str, record: Mapping[str, Any], end_us: int) -> None:
        """A call has failed, or an item outside of any."""
        self.count += 1
        error, message = error_of(record)
        status = record.get("status", "failed")
        item, attempt = record.get("item"), record.get("attempt", 0)
        if len(self._first) < FAILURES:
            self._first.append(
                Failure(row, where, item, record.get("call_id"), status, attempt, end_us / 1e6, error, message)
            )
        group = self._groups.get((where, status, error))
        if group is None:
            if len(self._groups) >= GROUPS:
                where, status, error, message = OTHERS, "", "", ""
            group = self._groups.setdefault((where, status, error), [0, message, []])
        group[0] += 1
        if item is not None and len(group[2]) < ITEMS_OF_GROUP:
            group[2].append(item)

    def found(self) -> tuple[tuple[FailureGroup, ...], tuple[Failure, ...]]:
        """Groups, the largest first, and the first failures."""
        groups = [
            FailureGroup(where, status, error, count, message, tuple(items))
            for (where, status, error), (count, message, items) in self._groups.items()
        ]
        return tuple(sorted(groups, key=lambda one: -one.count)), tuple(self._first)


class Stalls:
    """The longest times in which the event loop did not tick."""

    def __init__(self) -> None:
        self.count = 0
        self.total_us = 0
        self._open: list[tuple[int, int, Mapping[str, Any]]] = []
        self._longest: list[tuple[int, int, StallSeen]] = []

    def begin(self, record: Mapping[str, Any], at_us: int) -> None:
        """It was noticed, so long after it began."""
        self.count += 1
        so_far = _number(record.get("stalled_us"))
        self._open.append((max(at_us - so_far, 0), so_far, record))
        if len(self._open) > STALLS:
            self._keep(*self._open.pop(0), is_over=False)

    def end(self, record: Mapping[str, Any]) -> int:
        """The loop goes on; gives for how many microseconds it did not."""
        lasted = _number(record.get("stalled_us"))
        self.total_us += lasted
        if self._open:
            at, _, begun = self._open.pop()
            self._keep(at, lasted, begun, is_over=True)
        return lasted

    def _keep(self, at_us: int, lasted_us: int, record: Mapping[str, Any], *, is_over: bool) -> None:
        stack = record.get("stack")
        lines = tuple(map(str, stack)) if isinstance(stack, list) else ()
        seen = StallSeen(at_us / 1e6, lasted_us / 1e6, is_over, record.get("tool"), lines)
        entry = (lasted_us, self.count, seen)
        if len(self._longest) < STALLS:
            heappush(self._longest, entry)
        elif entry > self._longest[0]:
            heapreplace(self._longest, entry)

    def found(self) -> tuple[StallSeen, ...]:
        """In the order of time."""
        while self._open:
            at, so_far, record = self._open.pop()
            self.total_us += so_far
            self._keep(at, so_far, record, is_over=False)
        return tuple(sorted((seen for _, _, seen in self._longest), key=lambda one: one.at_s))


class Moments:
    """What happened to services, limits, breakers and the session: the first and the last, others thinned."""

    def __init__(self) -> None:
        self._first: list[Moment] = []
        self._between: Thinned[Moment] = Thinned(MOMENTS)
        self._last: deque[Moment] = deque(maxlen=MOMENTS // 4)

    def add(self, record: Mapping[str, Any], at_us: int) -> None:
        """It happened."""
        moment = Moment(at_us / 1e6, record["event"], _told(record))
        if len(self._first) < MOMENTS // 4:
            self._first.append(moment)
            return
        if len(self._last) == self._last.maxlen:
            self._between.add(self._last[0])
        self._last.append(moment)

    def found(self) -> tuple[Moment, ...]:
        """In the order of time."""
        return (*self._first, *self._between.entries(), *self._last)


_FRAME: Final = (
    *("schema", "session_id", "seq", "event", "time", "previous_sha256", "plan", "stack", "run_id", "version"),
    *("inputs", "output", "inputs_sha256", "output_sha256", "wait_us", "pipeline"),
)


def _told(record: Mapping[str, Any]) -> str:
    parts = []
    for name, value in record.items():
        if name not in _FRAME:
            parts.append(f"{name} {': '.join(filter(None, error_of(record))) if name == 'error' else value}")
    text = ", ".join(parts)
    return text if len(text) <= 300 else text[:297] + "..."


def _number(value: Any) -> int:
    return value if isinstance(value, int) and value >= 0 else 0
