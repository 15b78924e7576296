"""What the machine gives us: CPUs and memory, by psutil, affinity and cgroup.

The one door to psutil. Knows nothing of tools.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Final

import psutil

LOOKS: Final = 10  # at what may be in the middle of an exec, which takes less than a millisecond
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def cpus() -> int:
    """CPUs that this process may use: the affinity, bounded by the cgroup's quota; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    return max(1, min(affinity, _cgroup_cpus(affinity)))


def _cgroup_cpus(default: int) -> int:
    """The least quota (cgroup v2) of our own group and of those that it is in; the default where there is none."""
    try:
        own = next(line[3:] for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        own = "/"
    group = _CGROUPS / own.strip("/")
    allowed = [default]
    for folder in (group, *group.parents):
        if not folder.is_relative_to(_CGROUPS):
            break
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            allowed.append(default if quota == "max" else math.ceil(int(quota) / int(period)))
    return min(allowed)


def default_threads() -> int:
    """How many worker threads a manager has unless told: ``min(32, cpus + 4)``."""
    return min(32, cpus() + 4)


def rss_bytes() -> int:
    """The resident set size of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def process_usage() -> tuple[float, int, int]:
    """CPU seconds that this process has used, its resident set size in bytes, and how many threads it has."""
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        return times.user + times.system, int(process.memory_info().rss), int(process.num_threads())


def tree_rss_bytes() -> int:
    """The resident set sizes of this process and of all that it started, in bytes; shared pages count for each."""
    this = psutil.Process()
    total = int(this.memory_info().rss)
    for child in this.children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            total += int(child.memory_info().rss)
    return total


def memory_bytes() -> int:
    """The memory that this process may use, in bytes: the machine's, bounded by its cgroups' limits."""
    limits = [int(psutil.virtual_memory().total)]
    for path in _cgroup_memory_files():
        with suppress(OSError, ValueError):  # no such file; "max"
            limits.append(int(path.read_text()))
    return min(limits)


def _cgroup_memory_files() -> Iterator[Path]:
    """Where the limits of our cgroup and of those that it is in may stand, in both versions of cgroups."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (_CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (_CGROUPS, "memory.max")
        place = root / own.lstrip("/")
        while True:
            yield place / name
            if place == root or root not in place.parents:
                break
            place = place.parent


def peak_rss_bytes(pid: int) -> int | None:
    """The largest resident set size that a process has had since it was last reset; None where nobody tells."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def kill_session(session: int, mark: str) -> int:
    """Kill what a process has started, which leads a session and has ``mark`` as a variable of its environment.

    The session's processes, also of other groups, and those that have left it but inherited the environment. Not the
    leader itself. Blocks until they are dead.

    Returns:
        How many there were.
    """
    known: dict[int, psutil.Process] = {}
    while True:
        is_all = True
        unsure: list[int] = []
        for pid in psutil.pids():
            if pid in (session, os.getpid()):
                continue
            with suppress(OSError, psutil.Error):
                # One that dies has no environment any more before it is dead: it is known by then.
                is_marked = pid in known or os.getsid(pid) == session or _has_mark(pid, mark)
                if is_marked is None:
                    unsure.append(pid)
                elif is_marked:
                    process = known.setdefault(pid, psutil.Process(pid))
                    if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # a zombie is dead
                        is_all = False
                        process.send_signal(signal.SIGKILL)
        if is_all and not _turns_out_marked(unsure, mark):
            return len(known)
        sleep(0.001)


def _has_mark(pid: int, mark: str) -> bool | None:
    """Whether it is in the environment; None: there is none, as for a moment in the middle of an exec."""
    proc = Path(f"/proc/{pid}")
    try:
        environment = (proc / "environ").read_bytes()
        if not environment:
            (proc / "exe").readlink()  # the kernel's own threads have none, and what is dead
            return None
    except OSError:
        return False
    return mark.encode() in environment


def _turns_out_marked(unsure: Sequence[int], mark: str) -> bool:
    """Look again at processes that may have been in the middle of an exec; others have no environment for good."""
    for _ in range(LOOKS) if unsure else ():
        sleep(0.001)
        looks = {pid: _has_mark(pid, mark) for pid in unsure}
        if any(looks.values()):
            return True
        unsure = [pid for pid, is_marked in looks.items() if is_marked is None]
        if not unsure:
            break
    return False
