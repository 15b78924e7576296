"""Tools for worker processes whose results, errors and threads misbehave; `test_processes_bad_input` uses them."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from typing import Any

from kgas_async import progress, tool

process = tool(offload="process")


@process
def leaves_a_thread_that_tells() -> int:
    """Returns, and goes on telling of its progress in a thread, in this call's context."""

    def tell() -> None:
        while True:
            progress(-1, message="from a call before")
            time.sleep(0.001)

    threading.Thread(target=contextvars.copy_context().run, args=(tell,), daemon=True).start()
    return os.getpid()


@process
def tells_slowly() -> int:
    for done in range(5):
        progress(done)
        time.sleep(0.02)
    return os.getpid()


@process
def negative(x: int) -> int:
    return -x


@process
def forks_while_a_thread_tells() -> str:
    """The copy has no such thread, which may have held a lock just then."""
    leaves_a_thread_that_tells()
    for _ in range(20):
        if (child := os.fork()) == 0:
            progress(1)
            os._exit(0)
        os.waitpid(child, 0)
    return "done"


class ExitsWhenPickled:
    def __reduce__(self) -> Any:
        raise SystemExit("not this one")


class ExitsElsewhere:
    """Exits where it is loaded again, unless that is its own process, which tries."""

    def __reduce__(self) -> Any:
        return (_exit_elsewhere, (os.getpid(),))


def _exit_elsewhere(home: int) -> ExitsElsewhere:
    if os.getpid() != home:
        raise SystemExit("not here")
    return ExitsElsewhere()


class SilentError(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


class FailsElsewhere:
    def __reduce__(self) -> Any:
        return (_fail, ())


def _fail() -> None:
    raise SilentError


@process
def returns_what_exits() -> Any:
    return ExitsWhenPickled()


@process
def returns_what_exits_elsewhere(size: int) -> Any:
    return [ExitsElsewhere(), "x" * size]


@process
def returns_what_fails_silently() -> Any:
    return FailsElsewhere()


class Mute:
    def __str__(self) -> str:
        raise LookupError("no words")


@process
def raises_with_odd_notes(kind: str) -> None:
    error = ValueError("its own")
    error.__notes__ = {"none": None, "number": 3, "mute": [Mute()]}[kind]  # type: ignore[assignment]
    raise error


@process
def takes(thing: Any) -> str:
    return type(thing).__name__
