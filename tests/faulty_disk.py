"""A file layer that fails where it is told to: stands in for the module `os` in `kgas_async._disk`."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Any

WATCHED = ("open", "write", "fsync", "replace", "close")


class FaultyOs:
    """`os`, but the n-th watched call of a name is given to somebody else.

    Args:
        names: Of the calls that count.
        at: Which of them, from 1.
        fault: What happens there instead; called with the real function and its arguments.
        lasting: Whether it happens at all later ones, too.
    """

    def __init__(self, names: tuple[str, ...], at: int, fault: Callable[..., Any], *, lasting: bool = False) -> None:
        self.names, self.at, self.fault, self.lasting = names, at, fault, lasting
        self.count = 0

    @property
    def struck(self) -> bool:
        return self.count >= self.at

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.names:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.at or (self.lasting and self.count > self.at):
                return self.fault(real, *arguments, **options)
            return real(*arguments, **options)

        return call


def fails(code: int) -> Callable[..., Any]:
    """The call has no effect but its error."""

    def fault(real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if real is os.close:
            real(*arguments)  # the number is free again, whatever close says
        raise OSError(code, os.strerror(code))

    return fault


class FillsUp:
    """The disk has room for a third of a write, and for nothing more."""

    def __init__(self) -> None:
        self.is_full = False

    def __call__(self, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.is_full = True
        return real(arguments[0], arguments[1][: max(1, len(arguments[1]) // 3)])


def is_short(real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """A write takes a third, as it may."""
    return real(arguments[0], arguments[1][: max(1, len(arguments[1]) // 3)])


def kills(when: str) -> Callable[..., Any]:
    """The process is killed before the call, in the middle of a write, or after it."""

    def fault(real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if when == "middle" and real is os.write:
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        elif when == "after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    return fault
