"""Child programs for tests of what a whole process does: signals, kills, the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from textwrap import dedent
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent
LOOPS = ("asyncio", "uvloop", "trio")
PATIENCE_S = 40.0  # below pytest's faulthandler_timeout: a program that hangs is named

PREAMBLE = """
import faulthandler, functools, os, signal, sys, threading, time
from contextlib import asynccontextmanager
faulthandler.register(signal.SIGUSR1, all_threads=True)
import anyio
from kgas_async import *

LOOP = os.environ["KGAS_LOOP"]

def run(main, *args):
    options = {"use_uvloop": True} if LOOP == "uvloop" else {}
    return anyio.run(main, *args, backend="trio" if LOOP == "trio" else "asyncio", backend_options=options)

def say(*words):
    # One write, since several processes and threads say something at the same moment.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def raised(main, *args):
    '''Run it and say what came out, bare or in groups.'''
    try:
        run(main, *args)
    except BaseException as error:
        say("raised", repr(error))
    else:
        say("raised nothing")
"""

# Tools that behave in one way each.
TOOLS = """
@tool
async def forever() -> None:
    await anyio.sleep_forever()

@tool
def polite() -> None:
    while True:
        check_cancelled()
        time.sleep(0.01)

@tool
def deaf(seconds: float = 60) -> None:
    time.sleep(seconds)

@tool(on_cancel="abandon")
def left_behind(seconds: float = 60) -> None:
    time.sleep(seconds)

@tool
async def nap(x: int) -> int:
    await anyio.sleep(0.05)
    return x
"""


class Program:
    """A Python program in a process of its own; left, it is killed.

    Args:
        code: What it runs, after a preamble: `say`, `run`, `raised`, the package's names, some tools.
        loop: The event loop that its ``run`` takes.
        command: Instead of code: arguments of the interpreter.
        patience_s: After which it is killed.
    """

    def __init__(
        self, code: str = "", *args: str, loop: str = "asyncio", command: list[str] | None = None, cwd: Path = ROOT,
        patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "KGAS_LOOP": loop, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (a pipe could fill)
        self.process = subprocess.Popen(
            [sys.executable, *(command if command is not None else ["-c", PREAMBLE + TOOLS + dedent(code)]), *args],
            stdout=subprocess.PIPE, stderr=self._errors, text=True, cwd=cwd, env=environment, start_new_session=True,
        )  # fmt: skip
        self._watchdog = threading.Timer(patience_s, self._hangs)
        self._watchdog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.wait()
        if exc is not None:
            exc.add_note(f"the program's stderr:\n{self.errors()}")
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()

    def _hangs(self) -> None:
        self.process.send_signal(signal.SIGUSR1)  # it prints every thread's stack
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def errors(self) -> str:
        """What it has written to stderr so far."""
        self._errors.seek(0)
        return self._errors.read()

    def line(self) -> str:
        """Its next line; empty at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def until(self, line: str) -> None:
        """Read until it has said this line."""
        while (said := self.line()) != line:
            assert said or self.process.poll() is None, f"it ended with {self.process.wait()}: {self.errors()}"

    def kill(self, number: int = signal.SIGINT) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def rest(self) -> list[str]:
        """The lines that it says until its end."""
        assert self.process.stdout is not None
        return self.process.stdout.read().splitlines()

    def code(self) -> int:
        """Its exit code, once it has ended; minus the signal that ended it."""
        return self.process.wait(PATIENCE_S)
