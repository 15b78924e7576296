"""The process of the command line: its first moments, its streams, its end. What it does, `_cli` says.

Imports next to nothing itself, so that Ctrl-C finds somebody to meet it while the rest is imported.
"""

from __future__ import annotations

import signal

from ._leaving import hush, leave_at_once

# As the module is imported, which only the command line does, and before it imports more: a Ctrl-C in the first moments
# is to say nothing. What comes before (Python's own start, finding this package) nobody here can do anything about.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have had it ignored
    signal.signal(signal.SIGINT, leave_at_once)

import atexit
import errno
import io
import os
import sys
from typing import IO, NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """The entry point: ends the process even where a legacy tool has left threads that would keep it."""
    # The first is the last to be called: then the interpreter would put the signal's default in the place of a handler.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    _prepare_streams()
    code = _code_of_app()
    is_interruptible = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    if is_interruptible:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and said; what is left takes a moment
    for stream in (sys.stdout, sys.stderr):
        code = _flushed(stream, code)
    if is_interruptible:
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))  # what libraries do at exit may hang
    threads = sys.modules.get("kgas_async._threads")  # else nothing has run that could have left any
    if threads is not None and threads.would_block_exit():
        os._exit(code)
    sys.exit(code)


def _code_of_app() -> int:
    try:
        from ._cli import app

        app()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except BaseException:  # noqa: BLE001  (a fault of ours: told, and the process ends all the same)
        import traceback

        traceback.print_exc()
        return 1
    return 0


def _prepare_streams() -> None:
    for number in range(3):
        _occupy(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before we began
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to fail


def _occupy(number: int) -> None:
    """Have something at this file descriptor: a process that we start would take whatever comes to be there for its
    standard stream.
    """
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        os.set_inheritable(number, True)


def _flushed(stream: IO[str] | None, code: int) -> int:
    if stream is None or stream.closed:  # by a tool; whoever had something to say there has met that
        return code
    try:
        stream.flush()
    except OSError as error:
        hush(stream)
        if stream is sys.stderr or error.errno in (errno.EPIPE, errno.EIO):  # nobody reads it any more
            return code
        from ._cli_text import say

        say(f"error: standard output cannot be written: {error.strerror}")
        return code or 1
    return code
