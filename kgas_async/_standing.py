"""How a session stands: counts per tool name, and what is open now."""

from __future__ import annotations

from ._report import ManagerStatistics
from ._session import Session

__all__ = ["statistics_of"]


def statistics_of(session: Session) -> ManagerStatistics:
    """The counts of a session, as users see them."""
    of = session.monitor._figures_of if session.monitor is not None else lambda name: None
    tools = {name: state.statistics(of(name)) for name, state in list(session.states.items())}
    pools = session.pools()
    return ManagerStatistics(
        tools,
        len(session.calls_open),
        sum(pool.alive for pool in pools if pool is not session.processes),
        len(session.left),
        sum(pool.queued for pool in pools),
        session.hosting.names(),
        session.processes.processes,
    )
