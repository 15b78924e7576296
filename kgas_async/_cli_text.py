"""What the commands say, and where: results to standard output, all else to standard error.

A reader that has gone (``| head``, a killed pager) is no error: the rest is dropped, and the exit code says what it
would have said.
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, Final, NoReturn

import typer

from ._leaving import hush

__all__ = [
    "AS_JSON",
    "FORCE",
    "ROWS_SHOWN",
    "TRACEBACK",
    "exists",
    "fail",
    "file_of",
    "is_open",
    "out",
    "out_json",
    "out_raw",
    "out_rich",
    "printable",
    "results",
    "results_alone",
    "say",
    "tell_traceback",
    "tells_tracebacks",
    "width_elsewhere",
]

ROWS_SHOWN: Final = 50
WIDTH_ELSEWHERE: Final = 120  # where there is no terminal
FORCE: Final = typer.Option(False, "--force", help="Write over a FILE that exists")
AS_JSON: Final = typer.Option(False, "--json", help="For programs: JSON on standard output")

TRACEBACK: Final = typer.Option(False, "--traceback", help="With an error, the traceback of where it came from")

_GONE: Final = (errno.EPIPE, errno.EIO, errno.ESHUTDOWN)  # EIO: of a terminal that was closed


class _Tracebacks:
    wanted = False


tells_tracebacks = _Tracebacks()  # set by --traceback


class _Results:
    stream: IO[str] | None = None


results = _Results()  # where `out` writes: standard output, unless that was given to others by `results_alone`


def results_alone() -> Callable[[], None]:
    """From here on standard output is for `out` alone: what others print, threads that were left behind and processes
    among them, goes to standard error.

    Returns:
        What ends that. At the end of a run it is not called: a thread that was left behind may still print.
    """
    before = sys.stdout
    kept: int | None = None
    stream = before
    if before is sys.__stdout__ and before is not None:
        with suppress(OSError, ValueError):
            before.flush()
            kept = os.dup(1)
            os.dup2(2, 1)
            stream = open(kept, "w", encoding=before.encoding, errors=before.errors)  # noqa: PTH123, SIM115
    results.stream = stream
    sys.stdout = sys.stderr

    def end() -> None:
        sys.stdout = before
        results.stream = None
        if kept is not None:
            sys.stderr.flush()
            os.dup2(kept, 1)
            stream.close()

    return end


def printable(text: str, keep: str = "") -> str:
    """The user's text without what a terminal would act on, line ends among that, but for what is to be kept."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else one.encode("unicode_escape").decode() for one in text)


def say(line: str) -> None:
    """A line for people, to standard error; where nobody reads that, it is dropped."""
    try:
        typer.echo(printable(line, keep="\n\t"), err=True)
    except OSError:
        hush(sys.stderr)
    except ValueError:  # a tool has closed it
        pass


def out(text: str) -> bool:
    """A line of the result, to standard output; whether somebody still reads it.

    Raises:
        typer.Exit: It cannot be written, which was said: a full disk.
    """
    stream = results.stream or sys.stdout
    why: str | None = "a tool has closed it"
    try:
        if is_open(stream):
            stream.write(text + "\n")
            if results.stream is not None:  # nobody else flushes it
                stream.flush()
            return True
    except OSError as error:
        hush(stream)
        if error.errno in _GONE:
            return False
        why = error.strerror
    say(f"error: standard output cannot be written: {why}")
    raise typer.Exit(1)


def is_open(stream: IO[str] | None) -> bool:
    """Whether one of the standard streams is still there: tools close them, or put None in their place."""
    return stream is not None and not stream.closed


def out_raw(text: str) -> bool:
    """As `out`, of text that has its own line end."""
    return out(text.removesuffix("\n"))


def out_json(document: Any, *, indent: int | None = 2) -> bool:
    """One JSON document; what JSON has no form for is given as text."""
    return out(json.dumps(document, indent=indent, default=str, allow_nan=False))


def width_elsewhere(usual: int = WIDTH_ELSEWHERE) -> int:
    """How wide results are where there is no terminal: as COLUMNS says, which few export without meaning it."""
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) else usual


def out_rich(renderable: Any, *, usual: int = WIDTH_ELSEWHERE) -> None:
    """Something of rich's, to standard output: in colours on a terminal, if NO_COLOR is not set.

    Args:
        renderable: That.
        usual: Its width in columns where there is no terminal, unless COLUMNS is set.
    """
    from rich.console import Console

    is_terminal = is_open(sys.stdout) and sys.stdout.isatty()
    console = Console(width=None if is_terminal else width_elsewhere(usual))
    target = console.file = io.StringIO()  # what is terminal and what is wide was found out on the real one
    console.print(renderable, highlight=False)
    out(target.getvalue().rstrip("\n"))


def fail(message: str, code: int = 2) -> NoReturn:
    """Say what was wrong, in one line, and end; with where it came from, if the author asks by --traceback.

    Raises:
        typer.Exit: Always.
    """
    tell_traceback()
    say(f"error: {message}")
    raise typer.Exit(code) from None


def file_of(output: str | None) -> str | None:
    """The file that --output names; None for standard output, where that is left out, or ``-``."""
    return None if output == "-" else output


def exists(output: object) -> str:
    """What is said of a file that would be written over."""
    return f"{output} exists; --force writes over it, or give another name"


def tell_traceback() -> None:
    """The traceback of the exception that is being handled, where --traceback asks for it."""
    if tells_tracebacks.wanted and sys.exc_info()[0] is not None:
        import traceback

        say(traceback.format_exc().rstrip())
