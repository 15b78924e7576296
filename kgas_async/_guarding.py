"""`Guard`: the process beside our worker processes that outlives us, and kills them where we cannot (`_guard`)."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

__all__ = ["Guard"]

GUARD: Final = Path(__file__).with_name("_guard.py")


class Guard:
    """The process that kills what is left of workers when this process is gone; there while there are any."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watched: set[int] = set()

    @property
    def is_running(self) -> bool:
        """Whether it is there."""
        return self._process is not None

    def watch(self, pid: int, mark: str) -> None:
        """Have it know a worker."""
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(GUARD)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                    start_new_session=True, bufsize=0,
                )  # fmt: skip
            self._watched.add(pid)
            self._say(f"+ {pid} {mark}\n")

    def forget(self, pid: int) -> None:
        """A worker is buried."""
        with self._lock:
            self._watched.discard(pid)
            self._say(f"- {pid} -\n")

    def _say(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # somebody killed it; the kernel still kills the workers
                self._process.stdin.write(line.encode())

    def end_if_unused(self) -> None:
        """End it unless there are workers; called once no more are wanted, by each of those who had one."""
        with self._lock:
            if self._process is not None and not self._watched:
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process.wait()
                self._process = None
