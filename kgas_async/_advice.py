"""Which tool belongs where, told from what was measured: `Advice`. It recommends; nothing moves by itself.

Pure: figures in, advice out. All thresholds are here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ._metrics import in_seconds

__all__ = ["Advice", "advise", "has_one_interpreter"]

ENOUGH: Final = 20  # runs from which a mean says something
STALLS_ENOUGH: Final = 3
WORTH_A_PROCESS_S: Final = 0.005  # of CPU a call; the way to a process and back takes tenths of a millisecond
NOT_WORTH_A_PROCESS_S: Final = 0.001
COMPUTES: Final = 0.5  # CPUs used while any of its calls ran
FULL: Final = 0.7  # CPUs used by all threads with tools, from which they are in each other's way
PART: Final = 0.2  # of what all of them computed
RELEASES: Final = 1.05  # CPUs; those who share one interpreter use one at the most, so that more is plain
WAITS: Final = 0.1  # of a run in a process was computing, at the most
HOLDS_LOOP_S: Final = 0.01  # a call
INLINE_MEAN_S: Final = 0.000_05  # of a run; to hand a call to a thread and back takes about as long
INLINE_MAX_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Advice:
    """Where a tool would be better off.

    Attributes:
        tool: Its name.
        offload: Where it runs: ``async``, ``inline``, ``thread``, ``process``.
        instead: What to give for ``offload=``; of an async tool once it is a plain function.
        why: What was measured, and what follows.
    """

    tool: str
    offload: str
    instead: str
    why: str

    def __str__(self) -> str:
        return f"{self.tool}: {self.why}: offload={self.instead!r}"


def has_one_interpreter() -> bool:
    """Whether threads compute one after another: they do but in builds of Python without that lock."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def advise(tools: Mapping[str, Any], together: float | None, *, one_interpreter: bool = True) -> tuple[Advice, ...]:
    """What there is to recommend.

    Args:
        tools: `CallFigures` by name of the tool.
        together: CPUs that all tools in threads used while any of them ran; None where none did.
        one_interpreter: Whether threads share one.
    """
    computed = sum(one.cpu_s.total for one in tools.values() if one.offload == "thread" and one.cpu_s is not None)
    found = []
    for name, one in tools.items():
        said: tuple[str, str] | None = None
        if one.offload == "async":
            said = _of_async(one)
        elif one.offload == "inline":
            said = _of_inline(one)
        elif one.offload == "thread":
            said = (_of_computing(one, together, computed) if one_interpreter else None) or _of_quick(one)
        elif one.offload == "process":
            said = _of_process(one)
        if said is not None:
            found.append(Advice(name, one.offload, *said))
    return tuple(found)


def _of_async(one: Any) -> tuple[str, str] | None:
    if one.stalls < STALLS_ENOUGH:
        return None
    held = in_seconds(one.stalled_s / one.stalls)
    why = f"blocked the event loop {one.stalls} times, for {held} on average; make what blocks a plain function"
    return "thread", why


def _of_inline(one: Any) -> tuple[str, str] | None:
    if one.run_s.count < ENOUGH or one.run_s.mean < HOLDS_LOOP_S:
        return None
    return "thread", f"holds the event loop for {in_seconds(one.run_s.mean)} a call"


def _of_computing(one: Any, together: float | None, computed: float) -> tuple[str, str] | None:
    cpu = one.cpu_s
    if cpu is None or cpu.runs < ENOUGH or cpu.mean < WORTH_A_PROCESS_S or one.cpus is None or one.cpus > RELEASES:
        return None
    why = f"computed for {in_seconds(cpu.mean)} a call, "
    if one.cpus >= COMPUTES:
        why += f"{min(one.cpus, 1.0):.0%} of the time that any of its calls ran"
    elif together is not None and FULL <= together <= RELEASES and cpu.total >= PART * computed:
        why += f"{cpu.total / computed:.0%} of all that threads computed, which were busy for {min(together, 1.0):.0%}"
    else:
        return None
    return "process", why + ", and threads share one interpreter (but where native code lets go of it)"


def _of_quick(one: Any) -> tuple[str, str] | None:
    run = one.run_s
    if run.count < ENOUGH or run.mean > INLINE_MEAN_S or run.max > INLINE_MAX_S:
        return None
    why = f"runs for {in_seconds(run.mean)} a call, {in_seconds(run.max)} at the most, less than the way to a thread"
    return "inline", why


def _of_process(one: Any) -> tuple[str, str] | None:
    cpu = one.cpu_s
    if cpu is None or cpu.runs < ENOUGH:
        return None
    mean = in_seconds(cpu.mean)
    unless = "unless it is there to be killed, or to crash alone"
    if cpu.mean < NOT_WORTH_A_PROCESS_S:
        return "thread", f"computes for {mean} a call, about what the way to a process takes; {unless}"
    if cpu.mean < WAITS * one.run_s.mean:
        return "thread", f"computes for {mean} of the {in_seconds(one.run_s.mean)} that a call runs; {unless}"
    return None
