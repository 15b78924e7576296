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


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        with open(f"{PROC}/{pid}/environ", "rb") as environment:  # noqa: PTH123  (pathlib would take longer to load)
            return mark in environment.read()
    except OSError:
        return False


def _of(session: int, mark: bytes) -> list[int]:
    """The processes that belong to a worker, but zombies."""
    found = []
    for name in os.listdir(PROC) if os.path.isdir(PROC) else ():  # noqa: PTH112, PTH208
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"{PROC}/{name}/stat", "rb") as stat:  # noqa: PTH123
                    state, _, _, of = stat.read().rpartition(b")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if state not in (b"Z", b"X") and (int(of) == session or _has_mark(int(name), mark)):
                found.append(int(name))
    return found


def _kill(session: int, mark: bytes) -> None:
    for _ in range(200):
        with suppress(OSError):
            os.killpg(session, signal.SIGKILL)
        found = _of(session, mark)
        if not found:
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
