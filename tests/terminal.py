"""A real pseudo-terminal with a program in it, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte

from .programs import PATIENCE_S, ROOT

ROWS = 50


class Terminal:
    """``with Terminal(["-m", "kgas_async", ...], cwd=folder) as terminal:``; its output is read as it comes."""

    def __init__(self, command: list[str], *, cwd: Path, columns: int = 80, **environment: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        before = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        self.modes = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**before, "TERM": "xterm-256color", "PYTHONPATH": paths, **environment},
        )  # fmt: skip
        self._ours, self._theirs = ours, theirs
        self._columns = columns
        self.shown = b""
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._theirs)
        self._reader.join(5)
        os.close(self._ours)
        if exc is not None:
            exc.add_note("the screen:\n" + "\n".join(self.screen()))

    def _read(self) -> None:
        while True:
            try:
                some = os.read(self._ours, 65536)
            except OSError:  # nobody has the other side any more
                some = b""
            with self._more:
                self.shown += some
                self._more.notify_all()
            if not some:
                return

    def until(self, text: str) -> None:
        """Wait until it has shown this."""
        with self._more:
            assert self._more.wait_for(lambda: text.encode() in self.shown, PATIENCE_S), f"never shown: {text}"

    def kill(self, number: int = signal.SIGINT) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def code(self) -> int:
        """Its exit code, once it has ended and all that it wrote was read."""
        code = self.process.wait(PATIENCE_S)
        self.until_quiet()
        return code

    def until_quiet(self) -> None:
        """Wait until what was written is read."""
        os.write(self._theirs, b"\x1b[999;1H")  # what we write ourselves comes last
        self.until("\x1b[999;1H")

    def screen(self, shown: bytes | None = None) -> list[str]:
        """The lines that are on it, without those that are empty."""
        screen = pyte.Screen(self._columns, ROWS)
        pyte.ByteStream(screen).feed(self.shown if shown is None else shown)
        return [line.rstrip() for line in screen.display if line.strip()]

    def frames(self) -> list[list[str]]:
        """The screen as it was each time before the view was painted anew."""
        parts = self.shown.split(b"\r\x1b[2K")
        ends = [sum(len(part) + 5 for part in parts[: at + 1]) - 5 for at in range(len(parts))]
        return [self.screen(self.shown[:end]) for end in ends if end]
