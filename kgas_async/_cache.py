"""Results that are kept for a while: the store protocol, the store in memory, and what a policy says of both.

Knows keys and seconds; how calls share one flight is `_reuse`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from ._digest import digest
from ._errors import text_of
from ._keyed import FunctionFailed
from ._limits import check_count, check_seconds
from ._mailbox import Mailbox
from ._matching import refuse_async
from ._suggest import suggests
from ._window import LoopTime

__all__ = ["Cache", "CacheStatistics", "CacheStore", "KeyFailed", "MemoryCore", "MemoryStore"]


class KeyFailed(FunctionFailed):
    """No key can be made of the inputs of a call that is to be cached: the tool was not run."""


@runtime_checkable
class CacheStore(Protocol):
    """Where a `Cache` keeps values. An error of either method costs the call nothing: it is on record.

    Methods are awaited on the manager's event loop, for five seconds at the most.
    """

    async def get(self, key: str, default: Any, /) -> Any:
        """The value under this key, or ``default`` where there is none (any more).

        Cancellation: Comes with the call's own, and when its deadline or the five seconds are up.
        """

    async def set(self, key: str, value: Any, ttl: float | None, /) -> None:
        """Keep a value under this key, for ``ttl`` seconds; None: for good.

        Cancellation: As in `get`; the value may be kept or not.
        """


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """A cache at one moment.

    Attributes:
        hits: Calls that took their value from the store.
        shared: Calls that waited for another with the same inputs and took what it gave.
        misses: Calls that ran their tool.
        errors: Reads and writes of the store that failed.
    """

    hits: int
    shared: int
    misses: int
    errors: int


class MemoryCore:
    """Values by key, each until its time; those that were not asked for longest leave first. On one clock."""

    __slots__ = ("_entries", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str, default: Any, now: float) -> Any:
        """The value, or ``default``."""
        entry = self._entries.get(key)
        if entry is None:
            return default
        if now >= entry[0]:
            del self._entries[key]
            return default
        self._entries.move_to_end(key)
        return entry[1]

    def set(self, key: str, value: Any, ttl: float | None, now: float) -> None:
        """Keep a value."""
        entries = self._entries
        entries[key] = (math.inf if ttl is None else now + ttl, value)
        entries.move_to_end(key)
        if len(entries) > self._most:
            entries.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()


class MemoryStore:
    """Keeps the values of a `Cache` in this process: the very objects, so that whoever changes one changes it for all.

    Shared wherever the object is passed; may be made at import and used in one event loop after another.

    Args:
        max_entries: How many at the most; those that were not asked for longest leave first.
    """

    @suggests
    def __init__(self, max_entries: int = 1000) -> None:
        self._most = check_count("MemoryStore(max_entries)", max_entries)
        self._core = MemoryCore(self._most)
        self._time = LoopTime()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"MemoryStore({self._most})"

    def __len__(self) -> int:
        return len(self._core)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self._most,))  # the values stay in this process

    async def get(self, key: str, default: Any, /) -> Any:
        """The value under this key, or ``default`` where there is none (any more).

        Cancellation: Never waits.
        """
        return self.get_nowait(key, default, Mailbox.here())

    async def set(self, key: str, value: Any, ttl: float | None, /) -> None:
        """Keep a value under this key, for ``ttl`` seconds; None: for good.

        Cancellation: Never waits.
        """
        self.set_nowait(key, value, ttl, Mailbox.here())

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._core.clear()

    def get_nowait(self, key: str, default: Any, mailbox: Mailbox) -> Any:
        """As `get`, on that mailbox's loop."""
        with self._lock:
            return self._core.get(key, default, self._time.now(mailbox))

    def set_nowait(self, key: str, value: Any, ttl: float | None, mailbox: Mailbox) -> None:
        """As `set`, on that mailbox's loop."""
        with self._lock:
            self._core.set(key, value, ttl, self._time.now(mailbox))


class Cache:
    """Results that are used again: ``Policy(cache=Cache(60.0))``, or a number of seconds for a cache per tool name.

    A call with the inputs of an earlier one ends as ``reused`` with its value, without any token, thread or attempt.
    Calls that come while one with the same inputs runs wait for it and take what it gives (single flight).

    A failure is not kept. Where the tool failed or timed out, those who waited fail with it: their attempts would have
    been the same; where their policies have others, they try by themselves. Where the call that ran was cancelled,
    rejected or came to its own deadline, one of those who waited runs in its place. The value of a fallback goes to
    those who waited, and is not kept.

    The key is made of the tool's name, its version and the validated inputs, or what ``key`` makes of those. Shared
    wherever the object is passed; its tools do not share values, since their names differ.

    Args:
        ttl: Seconds for which a value is used; None: for good; 0: only by those who wait for it.
        store: A `MemoryStore` (one of its own unless given), or any `CacheStore`.
        key: A function of the inputs (a mapping) that gives what tells calls apart: any value of Python's own types.
            For inputs of other classes, or of which some do not matter.

    Raises:
        TypeError: No store or no function.

    Units: seconds.
    """

    @suggests
    def __init__(
        self,
        ttl: float | None,
        *,
        store: CacheStore | None = None,
        key: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:
        self.ttl = None if ttl is None else check_seconds("Cache(ttl)", ttl)
        if store is not None and (isinstance(store, type) or not isinstance(store, CacheStore)):
            raise TypeError(
                f"Cache(store) has 'async def get(key, default)' and 'async def set(key, value, ttl)', as has "
                f"MemoryStore(), not {store!r}"
            )
        if key is not None and not callable(key):
            raise TypeError(f"Cache(key) is a function of the inputs, not {key!r}")
        refuse_async("Cache(key)", key)
        self.store: CacheStore = MemoryStore() if store is None else store
        self.key = key
        self._counts: dict[str, int] = dict.fromkeys(("hits", "shared", "misses", "errors"), 0)
        self._lock = Lock()

    def __repr__(self) -> str:
        key = "" if self.key is None else f", key={self.key!r}"
        return f"Cache({self.ttl!r}, store={self.store!r}{key})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_remade, (type(self), self.ttl, self.store, self.key))

    def statistics(self) -> CacheStatistics:
        """How it stands now."""
        with self._lock:
            return CacheStatistics(**self._counts)

    def count(self, what: str) -> None:
        """Count a hit, a shared flight, a miss or an error."""
        with self._lock:
            self._counts[what] += 1

    def key_of(self, tool: str, version: str, inputs: Mapping[str, Any]) -> str:
        """The key of a call.

        Raises:
            KeyFailed: No key can be made of its inputs.
        """
        prefix = f"{len(tool)}:{tool}{version}"
        try:
            told: object = dict(inputs) if self.key is None else self.key(inputs)
        except Exception as error:
            what = "the key function of its cache failed, and the tool was not run"
            raise KeyFailed(f"{what}: {type(error).__name__}: {text_of(error)}") from error
        try:
            return f"{tool}:{digest(told, prefix)}"
        except TypeError as error:
            where = "its inputs" if self.key is None else "what its cache's key function gives"
            mend = "Cache(ttl, key=...), a function of the inputs" if self.key is None else "plain values"
            raise KeyFailed(
                f"no cache key can be made of {where}, and the tool was not run: {error}; give {mend}"
            ) from None


def _remade(cls: Callable[..., Cache], ttl: float | None, store: CacheStore, key: Any) -> Cache:
    return cls(ttl, store=store, key=key)
