"""Who is next where tokens are for keys: keys take turns, so that a busy one does not starve the others.

Pure bookkeeping as `_priority`: whoever calls holds a lock. A line here is of one key and one priority.

Complexity: O(log n) in the number of lines. Memory is bounded by the keys that hold tokens or wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Final

from ._errors import text_of
from ._matching import refuse_async
from ._priority import AGEING

__all__ = ["NO_KEY", "FunctionFailed", "KeyedLine", "check_key", "key_of"]

NO_KEY: Final = object()  # of tokens that are taken for no key; they are not counted here


class FunctionFailed(Exception):
    """A function that a limit was given (key, cost) raised (the ``__cause__``) or gave nonsense: nothing was run."""


def check_key(what: str, key: object) -> None:
    """
    Raises:
        TypeError: It is neither a field name nor a function.
    """
    if not (callable(key) or (isinstance(key, str) and key)):
        raise TypeError(f"{what} must be the name of an input or a function of the inputs, not {key!r}")
    refuse_async(what, key)


def key_of(limit: object, key: str | Callable[[Mapping[str, Any]], Hashable], inputs: Mapping[str, Any]) -> Hashable:
    """The key of a call with these inputs; an optional input that was left out is the key None.

    Raises:
        FunctionFailed: The function raised, or gave what cannot be a key.
    """
    try:
        found = inputs.get(key) if isinstance(key, str) else key(inputs)
        hash(found)
    except Exception as error:
        what = f"the key of its {limit!r} could not be had, and the tool was not run"
        raise FunctionFailed(f"{what}: {type(error).__name__}: {text_of(error)}") from error
    return found


class _Line:
    """Those who wait for one key at one priority, and when (in grants) one of them was last served."""

    __slots__ = ("is_listed", "key", "priority", "since", "waiters")

    def __init__(self, key: _Key, priority: int, since: int) -> None:
        self.key = key
        self.priority = priority
        self.since = since
        self.waiters: OrderedDict[Any, None] = OrderedDict()
        self.is_listed = False  # in the heap, maybe with an older `since`


class _Key:
    """One key: its tokens that are out, and its lines by priority."""

    __slots__ = ("lines", "name", "used")

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.used = 0
        self.lines: dict[int, _Line] = {}


class KeyedLine:
    """Waiters, each with a ``priority`` and a ``key``; counts the tokens of each key.

    The highest priority goes first; among its keys they take turns; first come, first served inside a key. A line whose
    key has a token free is passed over at most `AGEING` times for each other line that waits.

    Args:
        per_key: Tokens of one key.
    """

    __slots__ = ("_count", "_grants", "_keys", "_oldest", "_serial", "_turns", "per_key", "size")

    def __init__(self, per_key: int) -> None:
        self.per_key = per_key
        self._keys: dict[Hashable, _Key] = {}
        self._turns: dict[int, OrderedDict[_Line, None]] = {}  # by priority: lines whose key has room, in turn
        self._oldest: list[tuple[int, int, _Line]] = []  # a heap by `since`; what is outdated is mended at the top
        self._serial = 0
        self._grants = 0
        self._count = 0  # lines
        self.size = 0

    @property
    def keys(self) -> int:
        """How many keys hold tokens or wait."""
        return len(self._keys)

    def has_room(self, name: Hashable) -> bool:
        """Whether a token of this key is free."""
        key = self._keys.get(name)
        return key is None or not self._is_full(key)

    def has_given(self, name: Hashable) -> bool:
        """Whether a token of this key is out."""
        key = self._keys.get(name)
        return key is not None and key.used > 0

    def _is_full(self, key: _Key) -> bool:
        return key.used >= self.per_key  # never that of NO_KEY, which is not counted

    def take(self, name: Hashable) -> None:
        """A token of this key was taken without waiting; not for NO_KEY."""
        key = self._keys.get(name)
        if key is None:
            key = self._keys[name] = _Key(name)
        self._use(key)

    def _use(self, key: _Key) -> None:
        if key.name is NO_KEY:
            self._forget(key)
            return
        key.used += 1
        if key.lines and self._is_full(key):
            for line in key.lines.values():
                self._rest(line)

    def give(self, name: Hashable) -> None:
        """A token of this key is back."""
        key = self._keys[name]
        was_full = self._is_full(key)
        key.used -= 1
        if was_full:
            for line in key.lines.values():
                self._turn(line)
        self._forget(key)

    def _forget(self, key: _Key) -> None:
        if not key.used and not key.lines:
            del self._keys[key.name]

    def _turn(self, line: _Line) -> None:
        """Its key has room: it is in the rotation, last."""
        turns = self._turns.get(line.priority)
        if turns is None:
            turns = self._turns[line.priority] = OrderedDict()
        turns[line] = None
        self._list(line)

    def _list(self, line: _Line) -> None:
        if line.is_listed:
            return
        if len(self._oldest) > 2 * self._count + 16:  # of lines that were left by all, unserved
            self._oldest = [entry for entry in self._oldest if entry[2].waiters]
            heapify(self._oldest)
        line.is_listed = True
        self._serial += 1
        heappush(self._oldest, (line.since, self._serial, line))

    def _rest(self, line: _Line) -> None:
        """Its key is full, or nobody is in it: it is out of the rotation."""
        turns = self._turns.get(line.priority)
        if turns is not None and turns.pop(line, turns) is None and not turns:
            del self._turns[line.priority]

    def push(self, waiter: Any) -> None:
        """Join the line."""
        key = self._keys.get(waiter.key)
        if key is None:
            key = self._keys[waiter.key] = _Key(waiter.key)
        line = key.lines.get(waiter.priority)
        if line is None:
            line = key.lines[waiter.priority] = _Line(key, waiter.priority, self._grants)
            self._count += 1
            if not self._is_full(key):
                self._turn(line)
        line.waiters[waiter] = None
        self.size += 1

    def pop(self) -> Any:
        """Whose turn it is, or None where none of their keys has room. They leave the line, with a token of the key."""
        if not self._turns:
            return None
        line = self._passed_over() or next(iter(self._turns[max(self._turns)]))
        waiter, _ = line.waiters.popitem(last=False)
        self.size -= 1
        self._grants = line.since = self._grants + 1
        if line.waiters:
            self._turns[line.priority].move_to_end(line)
        else:
            self._drop(line)
        self._use(line.key)
        return waiter

    def _drop(self, line: _Line) -> None:
        self._rest(line)
        del line.key.lines[line.priority]
        self._count -= 1

    def _passed_over(self) -> _Line | None:
        """The line in the rotation that was served longest ago, if that is too long."""
        heap = self._oldest
        while heap:
            since, _, line = heap[0]
            if line not in self._turns.get(line.priority, ()):
                heappop(heap)
                line.is_listed = False
            elif line.since != since:
                self._serial += 1
                heapreplace(heap, (line.since, self._serial, line))
            else:
                return line if self._grants - since >= AGEING * (self._count - 1) else None
        return None

    def remove(self, waiter: Any) -> None:
        """Leave the line, if still in it."""
        key = self._keys.get(waiter.key)
        line = None if key is None else key.lines.get(waiter.priority)
        if key is None or line is None or waiter not in line.waiters:
            return
        del line.waiters[waiter]
        self.size -= 1
        if not line.waiters:
            self._drop(line)
            self._forget(key)

    def ahead_of(self, waiter: Any) -> int:
        """How many of its key would be served before this newcomer, whoever joins later and ageing apart."""
        key = self._keys.get(waiter.key)
        lines = {} if key is None else key.lines
        return sum(len(line.waiters) for priority, line in lines.items() if priority >= waiter.priority)

    def crowd(self, waiter: Any) -> int:
        """How many wait in the queue that ``max_queue`` bounds for this newcomer: here those of its key."""
        key = self._keys.get(waiter.key)
        return 0 if key is None else sum(len(line.waiters) for line in key.lines.values())
