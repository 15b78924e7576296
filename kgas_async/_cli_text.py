"""What the commands say, and where: results to standard output, all else to standard error.

A reader that has gone (``| head``, a killed pager) is no error: the rest is dropped, and the exit code says what it
would have said.
"""

from __future__ import annotations

import errno
import io
import json
import sys
from typing import Any, Final, NoReturn

import typer

from ._leaving import hush

__all__ = [
    "AS_JSON",
    "ROWS_SHOWN",
    "WIDTH_ELSEWHERE",
    "fail",
    "out",
    "out_json",
    "out_raw",
    "out_rich",
    "printable",
    "say",
    "tell_traceback",
    "tells_tracebacks",
]

ROWS_SHOWN: Final = 50
WIDTH_ELSEWHERE: Final = 120  # where there is no terminal
AS_JSON: Final = typer.Option(False, "--json", help="For programs: JSON on standard output")

_GONE: Final = (errno.EPIPE, errno.EIO, errno.ESHUTDOWN)  # EIO: of a terminal that was closed


class _Tracebacks:
    wanted = False


tells_tracebacks = _Tracebacks()  # set by --traceback


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
        if sys.stderr is not None and not sys.stderr.closed:
            raise


def out(text: str) -> bool:
    """A line of the result, to standard output; whether somebody still reads it.

    Raises:
        typer.Exit: It cannot be written, which was said: a full disk.
    """
    if sys.stdout is None or sys.stdout.closed:  # by a tool
        return False
    try:
        sys.stdout.write(text + "\n")
        return True
    except OSError as error:
        hush(sys.stdout)
        if error.errno in _GONE:
            return False
        say(f"error: standard output cannot be written: {error.strerror}")
        raise typer.Exit(1) from None


def out_raw(text: str) -> bool:
    """As `out`, of text that has its own line end."""
    return out(text.removesuffix("\n"))


def out_json(document: Any, *, indent: int | None = 2) -> bool:
    """One JSON document; what JSON has no form for is given as text."""
    return out(json.dumps(document, indent=indent, default=str, allow_nan=False))


def out_rich(renderable: Any, *, width: int | None = None) -> None:
    """Something of rich's, to standard output: in colours on a terminal, if NO_COLOR is not set."""
    from rich.console import Console

    shown = sys.stdout
    if shown is None or shown.closed:  # by a tool
        return
    console = Console(width=width or (None if shown.isatty() else WIDTH_ELSEWHERE))
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


def tell_traceback() -> None:
    """The traceback of the exception that is being handled, where --traceback asks for it."""
    if tells_tracebacks.wanted and sys.exc_info()[0] is not None:
        import traceback

        say(traceback.format_exc().rstrip())
