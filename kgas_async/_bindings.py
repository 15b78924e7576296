"""Tools as one session binds them: what the uses of a name share, and look-ups that are made once."""

from __future__ import annotations

from typing import Final

from ._bound import Bound, Home, ToolState
from ._errors import shown
from ._limits import check_text
from ._misuse import no_tool
from ._policy import Policy
from ._policy_checks import policy_of
from ._tool import KGASTool

__all__ = ["Bindings"]

KEPT: Final = 512  # tools whose look-ups are kept; programs may make one per request


class Bindings:
    """The tools of one session.

    Attributes:
        states: What the uses of one tool name share, by name.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self.states: dict[str, ToolState] = {}
        self._bounds: dict[int, Bound] = {}

    def state_of(self, tool: KGASTool) -> ToolState:
        """What all uses of the tool's name share here; `ValueError` where another tool has that name."""
        state = self.states.get(tool.name)
        if state is None:
            check_text(f"the name of the tool {shown(tool)}", tool.name)
            state = self.states[tool.name] = ToolState(tool.name, tool._origin())
        else:
            state.check_origin(tool._origin())
        return state

    def bind(
        self,
        tool: KGASTool,
        policy: Policy | None = None,
        *,
        pipeline: str | None = None,
        phase: str | None = None,
        run_id: str | None = None,
    ) -> Bound:
        """The tool with everything looked up: policies are laid over each other in their one order."""
        if phase is None:
            bound = self._bounds.get(id(tool))
            if bound is not None and bound.tool is tool:
                return bound
        if not isinstance(tool, KGASTool):
            raise no_tool(tool)
        resolved, state = policy_of(tool, policy), self.state_of(tool)
        bound = Bound(self._home, tool, resolved, state, pipeline=pipeline, phase=phase, run_id=run_id)
        if phase is None:
            if len(self._bounds) >= KEPT:
                del self._bounds[next(iter(self._bounds))]
            self._bounds[id(tool)] = bound
        return bound
