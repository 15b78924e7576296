"""One declared policy per call, laid over each other from several places; what each field means never depends on order.

Knows the limits and the retry; nothing of tools and calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Self, TypeAlias

from ._adaptive import AdaptiveLimit
from ._admission import Limit
from ._breaker import CircuitBreaker
from ._cache import Cache
from ._limits import ConcurrencyLimit, check_count, check_seconds
from ._memory_limit import MemoryLimit
from ._priority import check_priority
from ._rate import RateLimit
from ._resilience import Retry
from ._suggest import nearest

__all__ = ["DEFAULTS", "POLICY_FIELDS", "UNSET", "Policy"]


AnyLimit: TypeAlias = ConcurrencyLimit | AdaptiveLimit | MemoryLimit


class _Unset:
    def __repr__(self) -> str:
        return "unset"

    def __reduce__(self) -> str:
        return "UNSET"


UNSET: Final[Any] = _Unset()

POLICY_FIELDS: Final = (
    "timeout", "deadline", "retry", "breaker", "concurrency", "rate", "priority", "fallback", "hedge_after", "cache",
    "grace", "isolated",
)  # fmt: skip


class Policy:
    """How calls of a tool are bounded and repeated. Frozen; only the fields that are given count, and None is given.

    Policies are laid over each other: defaults < tool < Phase < ``using``.

    Args:
        timeout: Seconds per attempt, from when the tool begins (a sync tool: when a thread takes it up). A value
            that comes later is thrown away: `CallTimeout`.
        deadline: Seconds for the whole call, waits and retries included. A nested call inherits what is left.
        retry: `Retry`, or a number of attempts.
        breaker: Refuse calls at once while the tool keeps failing: a `CircuitBreaker` (shared wherever the object is
            passed), a number of failures in a row, or True for the defaults (these per tool name and manager).
        concurrency: Calls at once: a number (per tool name and manager), a `ConcurrencyLimit`, `AdaptiveLimit` or
            `MemoryLimit` (shared wherever the object is passed), or a list of limits.
        rate: Starts per second: a number (per tool name and manager), a `RateLimit` (shared), or a list of them.
        priority: Whose turn it is among calls that wait for a concurrency token: a `Priority`, or a whole number from
            0 to 9. None is that of the call that it is nested in, else `Priority.NORMAL`.
        fallback: A tool, or several in order, that is called with the same inputs, by name, when the last attempt has
            failed. Each is a call of its own within the same deadline.
        hedge_after: Seconds after which a second attempt is started beside one that still runs; the first value
            counts, the other attempt is cancelled. For idempotent tools.
        cache: Use results again: a `Cache`, or a number of seconds (per tool name and manager).
        grace: Seconds that a cancelled call's thread and clean-up have to end; None takes the manager's.
        isolated: Give each call a task of its own, for tools that need their task's identity.

    Raises:
        TypeError: An unknown field, or a value of a wrong type.
        ValueError: NaN, a negative or a zero where it makes no sense.
    """

    __slots__ = ("_given",)

    _given: dict[str, Any]

    def __new__(cls, *values: Any, **fields: Any) -> Self:
        # Here and not in __init__, whose signature is what type checkers see: the message names the nearest field.
        if values:
            raise TypeError(f"Policy takes its fields by name, as in Policy(timeout=5.0), not {values[0]!r} alone")
        for name in fields:
            if name not in POLICY_FIELDS:
                raise TypeError(
                    f"Policy has no field {name!r}; it has {', '.join(POLICY_FIELDS)}{nearest(name, POLICY_FIELDS)}"
                )
        return super().__new__(cls)

    def __init__(
        self,
        *,
        timeout: float | None = UNSET,
        deadline: float | None = UNSET,
        retry: Retry | int | None = UNSET,
        breaker: CircuitBreaker | int | None = UNSET,
        concurrency: int | AnyLimit | Sequence[AnyLimit] | None = UNSET,
        rate: float | RateLimit | Sequence[RateLimit] | None = UNSET,
        priority: int | None = UNSET,
        fallback: Any = UNSET,
        hedge_after: float | None = UNSET,
        cache: Cache | float | None = UNSET,
        grace: float | None = UNSET,
        isolated: bool = UNSET,
    ) -> None:
        given: dict[str, Any] = {}
        for name, value in (
            ("timeout", timeout),
            ("deadline", deadline),
            ("hedge_after", hedge_after),
            ("grace", grace),
        ):
            if value is not UNSET:
                given[name] = None if value is None else check_seconds(f"Policy({name})", value)
        if retry is not UNSET:
            given["retry"] = _checked_retry(retry)
        if breaker is not UNSET:
            given["breaker"] = _checked_breaker(breaker)
        if concurrency is not UNSET:
            given["concurrency"] = _checked_limits("concurrency", concurrency, Limit)
        if rate is not UNSET:
            given["rate"] = _checked_limits("rate", rate, RateLimit)
        if priority is not UNSET:
            given["priority"] = None if priority is None else check_priority("Policy(priority)", priority)
        if fallback is not UNSET:
            given["fallback"] = _checked_fallback(fallback)
        if cache is not UNSET:
            given["cache"] = _checked_cache(cache)
        if isolated is not UNSET:
            if not isinstance(isolated, bool):
                raise TypeError(f"Policy(isolated) must be True or False, not {isolated!r}")
            given["isolated"] = isolated
        object.__setattr__(self, "_given", given)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Policy is frozen; lay another one over it: policy.overlaid(Policy({name}=...))")

    def __getattr__(self, name: str) -> Any:
        if name not in POLICY_FIELDS:
            raise AttributeError(
                f"Policy has no field {name!r}; it has {', '.join(POLICY_FIELDS)}{nearest(name, POLICY_FIELDS)}"
            )
        return self._given.get(name, _FALLBACK.get(name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self._given == other._given

    def __hash__(self) -> int:
        return hash(frozenset(self._given.items()))

    def __repr__(self) -> str:
        return f"Policy({', '.join(f'{name}={value!r}' for name, value in self._given.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuilt, (self._given,))

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were given, with their values."""
        return dict(self._given)

    def overlaid(self, other: Policy | None) -> Policy:
        """This policy with ``other`` laid over it: where both give a field, the other's counts.

        Raises:
            TypeError: It is no `Policy`.
        """
        if other is not None and not isinstance(other, Policy):
            raise TypeError(f"what is laid over a policy is a Policy(...), not {other!r}")
        if other is None or not other._given:
            return self
        return _rebuilt({**self._given, **other._given})


_FALLBACK: Final[dict[str, Any]] = {"isolated": False}


def _rebuilt(given: dict[str, Any]) -> Policy:
    policy = Policy()
    object.__setattr__(policy, "_given", given)
    return policy


def _checked_retry(retry: object) -> Retry | None:
    if retry is None or isinstance(retry, Retry):
        return retry
    if isinstance(retry, int):
        return Retry(check_count("Policy(retry)", retry))
    raise TypeError(f"Policy(retry) is a Retry, a number of attempts or None, not {retry!r}")


def _checked_breaker(breaker: object) -> CircuitBreaker | int | None:
    if breaker is None or isinstance(breaker, CircuitBreaker):
        return breaker
    if breaker is True:
        return 5
    if isinstance(breaker, int) and breaker is not False:
        return check_count("Policy(breaker)", breaker)
    raise TypeError(
        f"Policy(breaker) is a CircuitBreaker, a number of failures in a row, True for the defaults, or None, not "
        f"{breaker!r}"
    )


def _checked_fallback(fallback: object) -> tuple[Any, ...] | None:
    """None, or a tuple of tools: what a tool is, the layer above knows."""
    if fallback is None:
        return None
    tools = tuple(fallback) if isinstance(fallback, (list, tuple)) else (fallback,)
    for one in tools:
        if isinstance(one, type) and hasattr(one, "execute_async"):
            raise TypeError(
                f"Policy(fallback) takes tools, and this is the class; its objects are tools: {one.__name__}(...)"
            )
        if isinstance(one, type) or not (hasattr(one, "execute_async") and hasattr(one, "signature")):
            raise TypeError(f"Policy(fallback) is a tool or a list of tools, not {one!r}; wrap it: tool(...)")
    if not tools:
        raise TypeError("Policy(fallback) is an empty list; None is no fallback")
    return tools


def _checked_cache(cache: object) -> Cache | float | None:
    if cache is None or isinstance(cache, Cache):
        return cache
    if isinstance(cache, bool) or not isinstance(cache, (int, float)):
        raise TypeError(f"Policy(cache) is a Cache, a number of seconds or None, not {cache!r}")
    return check_seconds("Policy(cache)", cache)


_NAMES: Final = {"concurrency": "ConcurrencyLimit, AdaptiveLimit or MemoryLimit", "rate": "RateLimit"}


def _checked_limits(field: str, value: object, kind: type) -> Any:
    """None, a checked number, or a tuple of limits."""
    if value is None:
        return None
    if isinstance(value, kind):
        return (value,)
    if isinstance(value, (list, tuple)):
        for one in value:
            if not isinstance(one, kind):
                raise TypeError(f"Policy({field}) as a list takes {_NAMES[field]} objects, not {one!r}")
        if len({id(one) for one in value}) < len(value):  # a call would wait for the token that it holds itself
            raise ValueError(f"Policy({field}) names a limit twice; give each {_NAMES[field]} once")
        return tuple(value)
    if kind is Limit:
        return check_count(f"Policy({field})", value)
    return check_seconds(f"Policy({field})", value, zero=False)


DEFAULTS: Final = Policy(
    timeout=None,
    deadline=None,
    retry=None,
    breaker=None,
    concurrency=None,
    rate=None,
    priority=None,
    fallback=None,
    hedge_after=None,
    cache=None,
    grace=None,
    isolated=False,
)
