"""`Phase`: one step of a pipeline, as it is declared. Knows its tool and names, not what they resolve to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from ._policy import Policy
from ._suggest import nearest
from ._tool import KGASTool

__all__ = ["Phase"]

_MISSING = ("skip", "ignore")


class Phase:
    """One step of a pipeline: a tool, and where its inputs come from.

    Args:
        name: Its name; other phases bind its result by it.
        tool: A tool.
        bind: For inputs whose source has another name: ``{"text": "chunk", "vectors": "embed.embeddings"}``. The
            source is an item field, an upstream phase, an expansion's element; after a dot follow attributes or keys.
        after: Phases that must have ended before, without data.
        expand: The name of one element of the result, which is an iterable: what binds it runs once per element.
        collect: The name of an expansion: runs once per parent, with lists in order; or True: once per run.
        missing: What a collect does about failed inputs: ``"skip"`` (it is skipped and the parent fails; the default
            per parent) or ``"ignore"`` (it goes on without them; the default per run).
        policy: Laid over the tool's own.
    """

    def __init__(
        self,
        name: str,
        tool: KGASTool,
        *,
        bind: Mapping[str, str] | None = None,
        after: str | Iterable[str] | None = None,
        expand: str | None = None,
        collect: str | Literal[True] | None = None,
        missing: Literal["skip", "ignore"] | None = None,
        policy: Policy | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"the name of a phase is an identifier, since inputs are bound by it, not {name!r}")
        if not isinstance(tool, KGASTool):
            raise TypeError(f"phase {name!r} takes a tool, not {tool!r}; wrap it: tool(...) or ToolAdapter(...)")
        if bind is not None and not (isinstance(bind, Mapping) and all(isinstance(one, str) for one in bind.values())):
            raise TypeError(f"phase {name!r}: bind= is a mapping of inputs to names of sources, not {bind!r}")
        self.name = name
        self.tool = tool
        self.bind = dict(bind or {})
        if after is not None and not isinstance(after, Iterable):
            raise TypeError(f"phase {name!r}: after= is the name of a phase or several, not {after!r}")
        self.after: tuple[str, ...] = (after,) if isinstance(after, str) else tuple(after or ())
        if not all(isinstance(one, str) for one in self.after):
            raise TypeError(f"phase {name!r}: after= is the name of a phase or several, not {self.after!r}")
        self.expand = expand
        self.collect = collect
        self.policy = policy
        if expand is not None and (not isinstance(expand, str) or not expand.isidentifier()):
            raise ValueError(f"phase {name!r}: expand= names one element of the result, not {expand!r}")
        if collect is not None and collect is not True and not isinstance(collect, str):
            raise TypeError(f"phase {name!r}: collect= is the name of an expansion or True, not {collect!r}")
        if policy is not None and not isinstance(policy, Policy):
            raise TypeError(f"phase {name!r}: policy= is a Policy(...), not {policy!r}")
        if missing is not None and collect is None:
            raise TypeError(f"phase {name!r}: missing= belongs to a collect")
        if missing is not None and missing not in _MISSING:
            raise ValueError(f"phase {name!r}: missing={missing!r} is not known; use 'skip' or 'ignore'")
        self.missing: str = missing or ("ignore" if collect is True else "skip")
        for parameter in self.bind:
            if parameter not in tool.signature.types:
                raise TypeError(
                    f"phase {name!r} binds {parameter!r}, which is no input of tool {tool.name!r}; it takes "
                    f"{', '.join(tool.signature.types) or 'none'}{nearest(parameter, tool.signature.types)}"
                )

    def __repr__(self) -> str:
        return f"Phase({self.name!r}, {self.tool.name!r})"
