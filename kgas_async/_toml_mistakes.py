"""What is wrong with a TOML pipeline, collected, so that a user is told all of it at once. Knows paths, no tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from ._errors import LoadError
from ._toml_lines import KeyPath
from ._toml_words import Mistake

__all__ = ["Follows", "Mistakes"]


class Follows(LoadError):
    """What cannot be made since something in it, or something that it names, is wrong; that was told."""


class Mistakes:
    """The mistakes of a file under one profile.

    Args:
        whole: Those of the file under another profile, which are told together with these.

    Attributes:
        elsewhere: Names that stand in tables which the file may not have: who refers to them, refers to something.
    """

    def __init__(self, whole: Mistakes | None = None) -> None:
        self.elsewhere: set[str] = set()
        self._told: dict[str, LoadError] = {} if whole is None else whole._told
        self._at: set[KeyPath] = set()
        self._above: set[KeyPath] = set()

    def __bool__(self) -> bool:
        return bool(self._told)

    def tell(self, error: LoadError) -> None:
        """Add one; nothing that follows from others, and of one key only the first."""
        path = error.path if isinstance(error, Mistake) else None
        if isinstance(error, Follows) or (path and path in self._at):
            return
        self._told.setdefault(str(error), error)
        if path:
            self._at.add(path)
            self._above.update(path[:size] for size in range(1, len(path) + 1))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Add what is raised inside."""
        try:
            yield
        except LoadError as error:
            self.tell(error)

    def is_told(self, path: KeyPath) -> bool:
        """Whether the value at this path is wrong, or something in it."""
        return path in self._above

    def refuse(self, path: KeyPath) -> None:
        """
        Raises:
            Follows: Something at this path or in it is wrong.
        """
        if self.is_told(path):
            raise Follows("follows from another mistake")

    def raise_all(self) -> None:
        """
        Raises:
            LoadError: Each on a line of its own, in the order of the file, then what has no line in it.
        """
        if self._told:
            first = next(iter(self._told.values()))
            told = sorted(self._told.items(), key=lambda one: getattr(one[1], "line", 0) or math.inf)
            raise LoadError("\n".join(said for said, _ in told)) from first.__cause__
