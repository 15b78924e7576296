"""How a session stands, as plain frozen data: what the live view and `kgas-async status` show. `_board` makes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = [
    "BreakerSeen",
    "FailureSeen",
    "InFlight",
    "ItemsSeen",
    "LeftThread",
    "LimitSeen",
    "PhaseSeen",
    "Picture",
    "ProcessSeen",
    "StallsSeen",
    "State",
]

State = Literal["running", "draining", "ended", "killed"]


@dataclass(frozen=True, slots=True)
class ItemsSeen:
    """The source items of a run.

    Attributes:
        done, failed, cancelled, skipped: How many have ended, and of those how.
        total: How many there are; None where nobody knows.
        rate: Items per second, lately.
        eta_s: Seconds that the rest will take at that rate.
        is_exact: Told by the run itself; else counted from calls on record, which is off where branches fail.
    """

    done: int = 0
    failed: int = 0
    skipped: int = 0
    total: int | None = None
    rate: float | None = None
    eta_s: float | None = None
    is_exact: bool = True
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class PhaseSeen:
    """The calls of one phase, or those of a tool outside of phases.

    Attributes:
        name: The phase's, else the tool's.
        tool: The tool's.
        level: ``item``, ``item/chunk`` and so on, ``run``; None of a tool outside of phases.
        done, failed: Ended calls; those that failed, timed out or were rejected.
        cancelled, skipped, reused: As their calls ended.
        total: How many calls there will be; None where nobody knows.
        in_flight: Calls that have not ended.
        running: Of those, how many run; None where that is not known.
        rate: Ended calls per second, lately.
        eta_s: Seconds that the rest will take at that rate.
        p50_s, p95_s: Percentiles of the seconds that they ran.
        waits: Seconds waited, all calls together, by what for.
        run_s: Seconds run, all calls together.
        retries: Attempts that were followed by another.
    """

    name: str
    tool: str
    level: str | None
    done: int
    failed: int
    cancelled: int
    skipped: int
    reused: int
    total: int | None
    in_flight: int
    running: int | None
    rate: float | None
    eta_s: float | None
    p50_s: float
    p95_s: float
    waits: dict[str, float]
    run_s: float
    retries: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """Calls of one tool that have not ended: how many, and the age of the oldest in seconds."""

    tool: str
    count: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class LimitSeen:
    """A limit: whose it is, its ``kind`` (``concurrency``, ``rate``, ``memory``), how much is used, how many wait.

    ``note`` says what numbers do not: that it is paused, why an adaptive one has moved.
    """

    name: str
    kind: str
    used: float | None
    total: float
    waiting: int | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class BreakerSeen:
    """A circuit breaker that is not closed, or has been open: its ``state``, why, and since when in seconds."""

    name: str
    state: str
    why: str
    since_s: float


@dataclass(frozen=True, slots=True)
class StallsSeen:
    """Stalls of the event loop: how many, the longest in seconds, the tool of the latest, whether it goes on."""

    count: int = 0
    longest_s: float = 0.0
    latest: str | None = None
    is_stalled: bool = False


@dataclass(frozen=True, slots=True)
class LeftThread:
    """A thread that was abandoned and still runs: whose, and for how many seconds."""

    whose: str
    call_id: str | None
    age_s: float


@dataclass(frozen=True, slots=True)
class FailureSeen:
    """Failures of one kind at one place: how many, and the latest."""

    where: str
    type: str
    count: int
    message: str
    item: str | None
    ago_s: float


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """The process at its latest sample: CPUs used, bytes resident, threads."""

    cpu: float
    rss_bytes: int
    threads: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A session at one moment.

    Attributes:
        state: ``draining`` after the first signal; ``killed`` where the evidence breaks off and nobody writes to it.
        elapsed_s: Seconds of the run, or of the session.
        signal: The last one that came.
        queued: Sync calls that wait for a thread or a process; None where that is not known.
        services: Those that do not run as they should, and how they stand.
        failures: Kinds of failure, the latest first.
    """

    state: State
    session_id: str | None
    run_id: str | None
    pipeline: str | None
    elapsed_s: float
    items: ItemsSeen
    phases: tuple[PhaseSeen, ...] = ()
    in_flight: tuple[InFlight, ...] = ()
    signal: str | None = None
    limits: tuple[LimitSeen, ...] = ()
    breakers: tuple[BreakerSeen, ...] = ()
    queued: int | None = None
    retries: int = 0
    stalls: StallsSeen = StallsSeen()
    abandoned: tuple[LeftThread, ...] = ()
    failures: tuple[FailureSeen, ...] = ()
    services: tuple[tuple[str, str], ...] = ()
    process: ProcessSeen | None = None
    calls: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)
