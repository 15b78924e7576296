"""What the machine gives us: CPUs and memory, by psutil, affinity and cgroup.

The one door to psutil. Knows nothing of tools.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_V2_CPU = _CGROUP / "cpu.max"
_OWN_CGROUPS = Path("/proc/self/cgroup")


def cpus() -> int:
    """CPUs that this process may use: the affinity, bounded by the cgroup's quota; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    return max(1, min(affinity, _cgroup_cpus(affinity)))


def _cgroup_cpus(default: int) -> int:
    try:
        quota, period = _CGROUP_V2_CPU.read_text().split()
    except (OSError, ValueError):
        return default
    return default if quota == "max" else math.ceil(int(quota) / int(period))


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
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (_CGROUP / "memory", "memory.limit_in_bytes") if controllers else (_CGROUP, "memory.max")
        place = root / own.lstrip("/")
        while True:
            yield place / name
            if place == root or root not in place.parents:
                break
            place = place.parent
