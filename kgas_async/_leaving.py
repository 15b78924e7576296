"""How the process of the command line is left while there is nothing to clean up, and when nobody listens any more."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # as `typing` has it, which `_entry` does not wait for
if TYPE_CHECKING:
    from types import FrameType
    from typing import IO

__all__ = ["hush", "leave_at_once", "user_code_begins"]


def leave_at_once(number: int, frame: FrameType | None) -> None:
    """What a signal does as long as nothing but our own modules is at work."""
    os._exit(128 + number)


def user_code_begins() -> None:
    """From here on Ctrl-C is Python's usual one, so that the user's ``finally`` runs; until then there was nothing to
    clean up, and an import that is broken off half way may say anything.
    """
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def hush(stream: IO[str] | None) -> None:
    """Nobody reads this stream any more: what is still written to it goes nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno() if stream is not None else 1)
        os.close(nowhere)
    except (OSError, ValueError):  # it has no file
        pass
