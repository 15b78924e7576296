"""Whether, and after how long, a service that crashed is started again: a pure decision, which takes the time.

Knows seconds; nothing of services and tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, get_args

from ._errors import counted
from ._limits import check_count, check_seconds
from ._resilience import exponential
from ._suggest import suggests

__all__ = ["RestartPolicy", "Restarts"]

Strategy = Literal["rest_for_one", "one_for_one"]


class RestartPolicy:
    """What a manager does when a service crashes: ``class Database(Service): restart = RestartPolicy()``.

    The same object is entered again. A start that fails is met alike, the first one included. May be shared by
    services; each has a count of its own.

    Args:
        restarts: How many restarts at the most within ``per`` seconds; the crash after those escalates: it is met as
            that of a service without a policy (``ServiceManager(on_crash=)``).
        per: Seconds.
        wait: Seconds before a restart: a number, `exponential(...)`, or a function of how many restarts there were
            within ``per`` seconds, this one included.
        strategy: ``"rest_for_one"``: the services that require it, directly or not, are stopped before it is started
            again, and started after it. ``"one_for_one"``: they go on running; for those that ask it anew each time.
        ill_after: So many failed health checks one after the other are a crash; None: none are.

    Source: the supervisors of Erlang/OTP, whose order of starts is ``requires`` here.
    """

    @suggests
    def __init__(
        self,
        restarts: int = 5,
        per: float = 60.0,
        *,
        wait: float | exponential | Callable[[int], float] | None = None,
        strategy: Strategy = "rest_for_one",
        ill_after: int | None = None,
    ) -> None:
        if wait is None:
            wait = exponential(0.1)
        elif isinstance(wait, (int, float)) or not callable(wait):
            wait = check_seconds("RestartPolicy(wait)", wait)
        if strategy not in get_args(Strategy):
            raise ValueError(f"RestartPolicy(strategy) is 'rest_for_one' or 'one_for_one', not {strategy!r}")
        self.restarts = check_count("RestartPolicy(restarts)", restarts)
        self.per = check_seconds("RestartPolicy(per)", per, zero=False)
        self.wait: Any = wait
        self.strategy: Strategy = strategy
        self.ill_after = None if ill_after is None else check_count("RestartPolicy(ill_after)", ill_after)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RestartPolicy) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.restarts, self.per, self.strategy, self.ill_after))

    def __repr__(self) -> str:
        ill = "" if self.ill_after is None else f", ill_after={self.ill_after}"
        return f"RestartPolicy({self.restarts}, per={self.per:g}, wait={self.wait!r}, strategy={self.strategy!r}{ill})"


class Restarts:
    """The restarts of one service so far, and whether there is another.

    Args:
        policy: None: there is none.
    """

    def __init__(self, policy: RestartPolicy | None) -> None:
        self.policy = policy
        self.total = 0
        self._at: deque[float] = deque()  # the times of those within the window

    def decide(self, now: float, draw: Callable[[], float]) -> float | None:
        """The decision about a crash at this moment; a restart is counted.

        Args:
            now: The time, on any clock that does not go back.
            draw: A source of random numbers in [0, 1).

        Returns:
            Seconds to wait before the restart, or None for none.
        """
        policy = self.policy
        if policy is None:
            return None
        at = self._at
        while at and at[0] <= now - policy.per:
            at.popleft()
        if len(at) >= policy.restarts:
            return None
        at.append(now)
        self.total += 1
        wait = policy.wait
        if isinstance(wait, exponential):
            return wait(len(at), draw)
        return check_seconds("the wait of a RestartPolicy", wait(len(at)) if callable(wait) else wait)

    def used_up(self) -> str:
        """Why there is no further restart, for messages; empty where there never was one."""
        if self.policy is None:
            return ""
        return f"{counted(self.policy.restarts, 'restart')} within {self.policy.per:g} s did not help"
