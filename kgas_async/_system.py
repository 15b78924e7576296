"""What the machine gives us: CPUs and memory, by psutil, affinity and cgroup.

The one door to psutil. Knows nothing of tools.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

_CGROUP_V2_CPU = Path("/sys/fs/cgroup/cpu.max")


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
