"""`Phase`: one step of a pipeline, as it is declared. Knows its tool and names, not what they resolve to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from ._journal_codec import JournalCodec, named_codec
from ._limits import check_count, check_seconds
from ._offload import gives_coroutine
from ._policy import Policy
from ._policy_checks import check_policy
from ._suggest import nearest, suggests
from ._tool import KGASTool, no_tool_error

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
        when: Whether it runs, a sync function of any of its inputs, by name; if not, it and what needs it is skipped.
        batch: Runs up to so many items in one call: every input is a list, the result a list of that length; an
            exception as an element fails its item alone. A batch leaves when it is full, after ``batch_wait``, or
            when nothing upstream can add to it. At most ``in_flight``.
        batch_wait: Seconds that a batch waits for more after its first item; unless given, as long as more can come.
        missing: What a collect does about failed inputs: ``"skip"`` (it is skipped and the parent fails; the default
            per parent) or ``"ignore"`` (it goes on without them; the default per run).
        policy: Laid over the tool's own.
        journal: In a run with a journal: False leaves the phase out, so that it runs each time; ``"pickle"`` or a codec
            keeps its values otherwise than the journal's other ones.
    """

    @suggests
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
        when: Callable[..., object] | None = None,
        batch: int | None = None,
        batch_wait: float | None = None,
        policy: Policy | None = None,
        journal: bool | Literal["json", "pickle"] | JournalCodec = True,
    ) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"the name of a phase is an identifier, since inputs are bound by it, not {name!r}")
        if not isinstance(tool, KGASTool):
            raise no_tool_error(f"phase {name!r} takes a tool", tool)
        self.name = name
        self.tool = tool
        self.bind = _checked_bind(name, bind)
        self.after = _checked_after(name, after)
        self.expand = expand
        self.collect = collect
        self.policy = policy
        self.when = when
        self.batch = None if batch is None else check_count(f"phase {name!r}: batch", batch)
        self.batch_wait = None if batch_wait is None else check_seconds(f"phase {name!r}: batch_wait", batch_wait)
        self.is_journaled = journal is not False
        self.codec = _codec(name, journal)
        self._check_when_batch_expand()
        if collect is not None and collect is not True and not isinstance(collect, str):
            raise TypeError(f"phase {name!r}: collect= is the name of an expansion or True, not {collect!r}")
        if policy is not None:
            if not isinstance(policy, Policy):
                raise TypeError(f"phase {name!r}: policy= is a Policy(...), not {policy!r}")
            check_policy(tool, policy)
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

    def _check_when_batch_expand(self) -> None:
        if self.expand is not None and (not isinstance(self.expand, str) or not self.expand.isidentifier()):
            raise ValueError(f"phase {self.name!r}: expand= names one element of the result, not {self.expand!r}")
        if self.batch is None and self.batch_wait is not None:
            raise TypeError(f"phase {self.name!r}: batch_wait= belongs to a batch: say how many, batch=...")
        if self.batch is not None and self.collect is True:
            raise TypeError(f"phase {self.name!r}: runs once per run (collect=True), so it has nothing to batch")
        if self.when is not None and (not callable(self.when) or gives_coroutine(self.when)):
            raise TypeError(f"phase {self.name!r}: when= is a sync function of the phase's inputs, not {self.when!r}")

    def __repr__(self) -> str:
        return f"Phase({self.name!r}, {self.tool.name!r})"


def _codec(phase: str, journal: object) -> JournalCodec | None:
    """What the phase asks its values to be kept by, if anything."""
    return None if isinstance(journal, bool) else named_codec(f"phase {phase!r}: journal", journal)


def _checked_after(phase: str, after: object) -> tuple[str, ...]:
    if isinstance(after, str):
        return (after,)
    names = tuple(after) if isinstance(after, Iterable) else ()
    if (after is not None and not isinstance(after, Iterable)) or not all(isinstance(one, str) for one in names):
        raise TypeError(f"phase {phase!r}: after= is the name of a phase or several, not {after!r}")
    return names


def _checked_bind(phase: str, bind: object) -> dict[str, str]:
    if bind is None:
        return {}
    if not isinstance(bind, Mapping):
        raise TypeError(f"phase {phase!r}: bind= is a mapping of inputs to names of sources, not {bind!r}")
    for parameter, source in bind.items():
        if not isinstance(source, str):
            raise TypeError(
                f"phase {phase!r}: bind={{{parameter!r}: ...}} names a source (a field, a phase, an element), "
                f"not {source!r}"
            )
        if not all(source.split(".")):
            raise ValueError(
                f"phase {phase!r}: bind={{{parameter!r}: {source!r}}} names a source, and after each dot an attribute "
                f"or a key below it; one of them is empty"
            )
    return dict(bind)
