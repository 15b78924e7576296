"""`Host`: whatever a call runs in, seen by the call and by who cancels it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio

from ._mailbox import OpenScopes

__all__ = ["Host"]


class Host:
    """Whatever a call runs in: a cancel scope, which a shared worker replaces after use, and whose turn it is.

    Attributes:
        owned: Whether the task is the manager's own, and not that of the caller.
        on_wait: Called when a call begins to wait for something: others could work meanwhile.
        on_release: Gives back the tokens of a call that has ended, where somebody wants to know that it was so.
        has_waited: Whether that happened since somebody last looked: then others had their turn.
        was_cancelled: Whether its scope was cancelled, by us; the scope itself takes long to say.
        scopes: The scopes that it is in by rights.
    """

    __slots__ = ("call", "has_waited", "on_release", "on_wait", "owned", "scope", "scopes", "was_cancelled")

    def __init__(
        self,
        *,
        owned: bool,
        on_wait: Callable[[], object] | None = None,
        on_release: Callable[[Sequence[Any]], object] | None = None,
    ) -> None:
        self.on_wait = on_wait
        self.on_release = on_release
        self.has_waited = False
        self.scope: anyio.CancelScope | None = None
        self.call: Any = None
        self.owned = owned
        self.was_cancelled = False

    def enter(self, scope: anyio.CancelScope) -> None:
        """Its task has just entered this scope."""
        self.scope = scope
        self.was_cancelled = False
        self.scopes = OpenScopes()

    def cancel(self) -> None:
        """Cancel what runs in it."""
        if self.scope is not None:
            self.was_cancelled = True
            self.scope.cancel()

    def waits(self) -> None:
        """The call begins to wait."""
        self.has_waited = True
        if self.on_wait is not None:
            self.on_wait()
