"""The process of the command line: its first moments, its streams, its end. What it does, `_cli` says.

Imports next to nothing itself, so that Ctrl-C finds somebody to meet it while the rest is imported.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import IO, NoReturn

from ._leaving import hush, leave_at_once

__all__ = ["main"]

# As the module is imported, which only the command line does: a Ctrl-C in the first moments is to say nothing.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have had it ignored
    signal.signal(signal.SIGINT, leave_at_once)


def main() -> NoReturn:
    """The entry point: ends the process even where a legacy tool has left threads that would keep it."""
    _prepare_streams()
    code = _code_of_app()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done and said; what is left takes a moment
    for stream in (sys.stdout, sys.stderr):
        code = _flushed(stream, code)
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
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before we began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to fail


def _flushed(stream: IO[str] | None, code: int) -> int:
    if stream is None or stream.closed:  # by a tool, which has nothing to be told of it
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
