"""A program of its own, run beside a manager's worker processes: when the manager's process is gone, however, it kills
what is left of them, with all that they have forked.

The kernel kills the workers themselves; nobody but this is left to know what they had started. It reads lines, ``+``
or ``-``, the session id of a worker, and the mark in its environment. Run by its path, with an interpreter that loads
next to nothing; it imports nothing of the package.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

PROC = "/proc"
LOOKS = 10  # at processes without an environment: some never have one, others are in the middle of an exec


def _has_mark(pid: int, mark: bytes) -> bool | None:
    """Whether it is in the environment; None: there is none, as for a moment in the middle of an exec."""
    try:
        with open(f"{PROC}/{pid}/environ", "rb") as file:  # noqa: PTH123  (pathlib would take longer to load)
            environment = file.read()
        if not environment:
            os.readlink(f"{PROC}/{pid}/exe")  # noqa: PTH115  (the kernel's own threads have none)
            return None
    except OSError:
        return False
    return mark in environment


def _of(session: int, mark: bytes) -> tuple[list[int], bool]:
    """The processes that belong to a worker, but zombies; and whether there are others that may."""
    found, is_sure = [], True
    for name in os.listdir(PROC) if os.path.isdir(PROC) else ():  # noqa: PTH112, PTH208
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"{PROC}/{name}/stat", "rb") as stat:  # noqa: PTH123
                    state, _, _, of = stat.read().rpartition(b")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if state in (b"Z", b"X"):
                continue
            is_marked = int(of) == session or _has_mark(int(name), mark)
            if is_marked:
                found.append(int(name))
            is_sure = is_sure and is_marked is not None
    return found, is_sure


def _kill(session: int, mark: bytes) -> None:
    looks = 0
    for _ in range(200):
        with suppress(OSError):
            os.killpg(session, signal.SIGKILL)
        found, is_sure = _of(session, mark)
        looks = 0 if found else looks + 1
        if not found and (is_sure or looks >= LOOKS):
            return
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    known: dict[int, bytes] = {}
    for line in sys.stdin.buffer:
        sign, session, mark = line.split()
        if sign == b"+":
            known[int(session)] = mark
        else:
            known.pop(int(session), None)
    for session, mark in known.items():
        _kill(session, mark)


if __name__ == "__main__":
    _main()
