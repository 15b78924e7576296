"""`Employer`: what a crew of workers needs of the session that owns it."""

from __future__ import annotations

from typing import Any, Protocol

from ._bound import Home
from ._call import Call

__all__ = ["Employer"]


class Employer(Home, Protocol):
    """What a crew needs of the manager beyond what a call needs."""

    def new_call(self, bound: Any, inputs: Any, parent: Any = None, item: str | None = None) -> Call[Any]: ...
    def start_call(self, call: Call[Any]) -> None: ...
    async def run_isolated(self, call: Call[Any]) -> None: ...
    def keep_crew(self, crew: Any) -> None: ...
    def drop_crew(self, crew: Any) -> None: ...
