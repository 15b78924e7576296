"""Whether a manager has left anything behind: calls, tokens, threads, processes, services, unclosed evidence.

Looks inside managers; it is what the package's own tests assert after every cancellation.
"""

from __future__ import annotations

from time import monotonic, sleep
from typing import Any

from kgas_async._admission import Limit
from kgas_async._manager import ServiceManager
from kgas_async._rate import RateLimit

__all__ = ["assert_clean"]

THREADS_END_S = 2.0  # a thread that was told to end needs a moment to be gone


def assert_clean(*subjects: ServiceManager | Limit | RateLimit, abandoned: int = 0) -> None:
    """Assert that nothing is left of managers that were left, and that no token of a limit is out.

    Args:
        subjects: Managers (after their ``async with``) and limits.
        abandoned: Threads that are known to be abandoned and still running.

    Raises:
        AssertionError: Says everything that was found.
    """
    found: list[str] = []
    for subject in subjects:
        if isinstance(subject, ServiceManager):
            found += _left_by(subject, abandoned)
        else:
            found += _out_of(repr(subject), subject)
    assert not found, "not clean: " + "; ".join(found)


def _out_of(what: str, limit: Limit | RateLimit) -> list[str]:
    statistics: Any = limit.statistics()
    out = getattr(statistics, "borrowed", 0)
    found = [f"{what} has {out} tokens out"] if out else []
    return [*found, f"{what} has {statistics.waiting} waiters"] if statistics.waiting else found


def _left_by(manager: ServiceManager, abandoned: int) -> list[str]:
    if manager._session is not None:
        return ["the manager is still open"]
    session = manager._last_session
    if session is None:
        return []
    found = [f"call {call!r} has not ended" for call in session.calls_open.values()]
    found += [f"{crew!r} still runs" for crew in session.crews]
    found += [f"service {name!r} still runs" for name in session.hosting.names()]
    if len(session.left) > abandoned:
        found.append(f"{len(session.left)} abandoned threads run, {abandoned} were expected")
    for name, state in session.states.items():
        limits: list[Limit | RateLimit] = [*state.limits.values(), state.serial, *state.rates.values()]
        for limit in limits:
            if not session.left:
                found += _out_of(f"{limit!r} of tool {name!r}", limit)
    until = monotonic() + THREADS_END_S
    while (alive := sum(pool.alive for pool in session.pools())) > abandoned and monotonic() < until:
        sleep(0.001)
    if session.processes.processes or session.processes.guard.is_running:
        found.append(f"{session.processes.processes} worker processes are left, or their guard")
    if alive > abandoned:
        found.append(f"{alive} worker threads run, {abandoned} were expected")
    if session.monitor is not None and any(one.log is session.log for one in session.monitor._attached):
        found.append("its monitor still watches")
    if session.log is not None and session.log.buffer:
        found.append(f"{len(session.log.buffer)} evidence records were not written")
    if session.mailbox.busy > abandoned:
        found.append(f"{session.mailbox.busy} works count as busy")
    return found
