"""`Bound`: a tool with everything looked up once for one manager, and what the uses of a tool's name share there.

Knows the manager only as the `Home` protocol: where calls are registered and threads live.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from ._adaptive import AdaptiveLimit
from ._admission import Limit
from ._breaker import CircuitBreaker
from ._cache import Cache
from ._evidence import EvidenceLog
from ._figures import CallFigures
from ._left import LeftBehind
from ._limits import ConcurrencyLimit
from ._mailbox import Mailbox, OpenScopes
from ._monitor import PerformanceMonitor
from ._policy import Policy
from ._policy_checks import check_policy
from ._rate import RateLimit
from ._report import ToolStatistics
from ._resilience import Retry
from ._service import may_restart, required_of
from ._threads import ThreadPool
from ._tool import Execution, KGASTool
from ._tracing import Tracing

__all__ = ["Bound", "Home", "ToolState"]


class Home(Protocol):
    """What a call needs of the session of the manager that owns it."""

    session: str
    manager: Any
    mailbox: Mailbox
    pool: ThreadPool
    grace: float
    max_abandoned: int
    log: EvidenceLog | None
    monitor: PerformanceMonitor | None
    left: LeftBehind
    calls_open: dict[int, Any]
    closing_at: float
    random: Callable[[], float]
    cache_waits: dict[Any, Any]
    tracing: Tracing | None
    on_crash: Literal["raise", "continue"]

    async def until_served(self, call: Any) -> Exception | None: ...
    def crash(self, error: BaseException) -> None: ...
    def pool_of(self, bound: Any) -> ThreadPool: ...
    def grace_until(self) -> float: ...
    def spawn(self, function: Callable[..., Any], *args: Any) -> None: ...
    def bind(self, tool: KGASTool) -> Bound: ...
    def check_services(self, bound: Bound) -> None: ...
    def new_call(self, bound: Bound, inputs: Mapping[str, Any], parent: Any = None, item: str | None = None) -> Any: ...
    async def host_call(self, call: Any, *, owned: bool = False) -> None: ...
    async def run_isolated(self, call: Any) -> None: ...
    async def close_leaked(self, scopes: OpenScopes, call: Any = None) -> None: ...


class ToolState:
    """What all uses of one tool name share in one manager: limits, instances, statistics."""

    def __init__(self, name: str, origin: object) -> None:
        self.name = name
        self.origin = origin
        self.limits: dict[int, ConcurrencyLimit] = {}  # by the number given
        self.rates: dict[float, RateLimit] = {}
        self.breakers: dict[int, CircuitBreaker] = {}
        self.caches: dict[float, Cache] = {}
        self.flights: dict[Any, Any] = {}  # calls that share one result, by what they have in common
        self.serial = ConcurrencyLimit(1)
        self.dedicated: ThreadPool | None = None
        self.begun = 0
        self.retried = 0
        self.thread_starts = 0
        self.run_ns = 0
        self.wait_ns = 0
        self.ended: dict[str, int] = dict.fromkeys(
            ("succeeded", "failed", "timed_out", "cancelled", "rejected", "skipped", "reused"), 0
        )

    def check_origin(self, origin: object) -> None:
        """
        Raises:
            ValueError: Another tool has the name.
        """
        if self.origin is not origin and self.origin != origin:
            raise ValueError(
                f"two different tools are named {self.name!r} in one manager; limits, statistics and evidence go by "
                f"name: give one another name, tool.using(name=...)"
            )

    def statistics(self, figures: CallFigures | None = None) -> ToolStatistics:
        """The counts as users see them, with what a monitor has to say."""
        return ToolStatistics(
            calls=sum(self.ended.values()),
            retried=self.retried,
            threads_used=self.thread_starts,
            run_s=self.run_ns / 1e9,
            figures=figures,
            **self.ended,
        )


class Bound:
    """A tool as one manager runs it in one place: policy resolved, limits found, evidence fields prepared."""

    __slots__ = (
        "adaptive",
        "breaker",
        "cache",
        "check",
        "cleans_up",
        "deadline",
        "execution",
        "fallbacks",
        "flat",
        "function",
        "gated",
        "grace",
        "hedge_after",
        "holds",
        "home",
        "hooks",
        "in_thread",
        "is_coroutine_function",
        "is_judged_by_time",
        "isolated",
        "limits",
        "lines_up",
        "lone_limit",
        "lone_rate",
        "name",
        "phase",
        "pipeline",
        "policy",
        "priority",
        "rates",
        "remote",
        "requires",
        "retry",
        "run_id",
        "signature",
        "state",
        "supervised",
        "template",
        "timeout",
        "tool",
        "validates",
        "version",
    )

    def __init__(
        self,
        home: Home,
        tool: KGASTool,
        policy: Policy,
        state: ToolState,
        *,
        pipeline: str | None = None,
        phase: str | None = None,
        run_id: str | None = None,
    ) -> None:
        self.home = home
        self.tool = tool
        self.name = tool.name
        self.version = str(tool.version)
        self.policy = policy
        self.state = state
        self.pipeline, self.phase, self.run_id = pipeline, phase, run_id
        self.signature = tool.signature
        self.check = self.signature.checker()  # a signature without a schema is misuse, said here
        if home.tracing is not None:
            self.check = home.tracing.around(self.check)
        self.hooks = tool._checks_and_cleans_up()
        self.validates = type(self.hooks).validate_inputs is not KGASTool.validate_inputs
        self.cleans_up = type(self.hooks).cleanup_resources is not KGASTool.cleanup_resources
        self.execution = _execution(tool)
        self.remote = self.execution.remote
        self.function = self.execution.function
        if home.monitor is not None:
            self.function = home.monitor._ledger.counted(
                self.function, self.execution.kind, self.name, pipeline=pipeline, phase=phase
            )
        self.is_coroutine_function = inspect.iscoroutinefunction(self.function)
        self._take_policy(policy)
        self.requires = services = required_of(tool)
        self.supervised = bool(services) and (home.on_crash == "continue" or may_restart(services))
        self.template: Any = None  # the evidence's, made by its writer
        self.in_thread = self.execution.kind in ("thread", "process")  # a process is talked with in a thread
        self.gated = bool(self.limits or self.rates or (self.retry and self.retry.budget))
        self.flat = self._is_flat()
        # Whether all that its calls ever wait for before they run is their turn in lines that everybody may join.
        self.lines_up = self.flat and not self.rates and not any(limit.refuses for limit in self.limits)
        # The one token that an async call needs, where it is that simple; two attributes, so that each use of one stays
        # of one type, which the interpreter runs faster.
        is_lone = self.flat and not self.in_thread and len(self.limits) + len(self.rates) == 1
        is_lone = is_lone and not (self.retry and self.retry.budget)
        self.lone_limit: Limit | None = self.limits[0] if is_lone and self.limits else None
        self.lone_rate: RateLimit | None = (
            self.rates[0] if is_lone and self.rates and self.rates[0].cost is None else None
        )

    def _is_flat(self) -> bool:
        """Whether nothing but plain tokens bounds an attempt, made in the caller's task: it is the whole call, or the
        first of several.

        What is supervised may have to wait for its services once more: after it has waited for tokens or a thread, and
        before it is tried again.
        """
        return (
            self.execution.kind != "inline"
            and not (self.validates or self.cleans_up or self.isolated)
            and all(type(limit) is ConcurrencyLimit and not limit.is_keyed for limit in self.limits)
            and not any(limit.is_keyed for limit in self.rates)
            and self.timeout is None
            and self.deadline is None
            and self.breaker is None
            and self.cache is None
            and self.hedge_after is None
            and not self.fallbacks
            and not (self.supervised and (self.gated or self.in_thread or self.retry))
        )

    def on_record(self) -> dict[str, Any]:
        """Where it runs and how many at once, as it stands in a run's plan in the evidence."""
        totals = [limit.total for limit in self.limits if type(limit) is ConcurrencyLimit]
        if self.execution.dedicated:
            totals.append(1)
        return {"offload": self.execution.kind, **({"concurrency": min(totals)} if totals else {})}

    def _take_policy(self, policy: Policy) -> None:
        """What the policy says, with the state behind it found or made."""
        check_policy(self.tool, policy)
        state = self.state
        self.timeout: float | None = policy.timeout
        self.deadline: float | None = policy.deadline
        self.grace: float | None = policy.grace
        self.retry: Retry | None = policy.retry
        self.isolated: bool = policy.isolated
        self.priority: int | None = policy.priority
        self.limits = _limits(policy, state, self.execution.serial)
        # What its calls hold: the limits, and the one thread of a dedicated instance, by the token that stands for it.
        self.holds = (*self.limits, state.serial) if self.execution.dedicated else self.limits
        self.adaptive = tuple(limit for limit in self.limits if isinstance(limit, AdaptiveLimit))
        self.rates = _rates(policy, state)
        self.breaker = _breaker(policy, state)
        self.is_judged_by_time = bool(self.adaptive) or (self.breaker is not None and self.breaker.slow is not None)
        self.cache = _cache(policy, state)
        self.hedge_after: float | None = policy.hedge_after
        self.fallbacks: tuple[Bound, ...] = tuple(self.home.bind(other) for other in policy.fallback or ())


def _execution(tool: KGASTool) -> Execution:
    execution = tool._execution()
    if execution.remote is not None:
        execution.remote.check()
    return execution


def _limits(policy: Policy, state: ToolState, serial: ConcurrencyLimit | None) -> tuple[Limit, ...]:
    given = policy.concurrency
    limits: tuple[Limit, ...] = ()
    if isinstance(given, int):
        limits = (state.limits.setdefault(given, ConcurrencyLimit(given)),)
    elif given is not None:
        limits = given
    if serial is not None:
        limits = (*limits, state.serial, serial)
    return tuple(sorted(limits, key=lambda limit: limit.serial))  # in one order for all: who waits holds no later one


def _breaker(policy: Policy, state: ToolState) -> CircuitBreaker | None:
    given: CircuitBreaker | int | None = policy.breaker
    return state.breakers.setdefault(given, CircuitBreaker(given)) if isinstance(given, int) else given


def _cache(policy: Policy, state: ToolState) -> Cache | None:
    given: Cache | float | None = policy.cache
    if given is None or isinstance(given, Cache):
        return given
    return state.caches.setdefault(given, Cache(given))


def _rates(policy: Policy, state: ToolState) -> tuple[RateLimit, ...]:
    given = policy.rate
    if isinstance(given, float):
        return (state.rates.setdefault(given, RateLimit(given)),)
    return given or ()
