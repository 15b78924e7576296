"""Whether a policy can hold for a tool: told where they meet first, and not by the call that would need it.

Knows what tools say of themselves (signatures, how they run); nothing of calls.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterable, Iterator, Mapping
from typing import Any, Final

from ._digest import has_digest
from ._fit import cannot_fit, plain_class
from ._policy import DEFAULTS, Policy
from ._signature import Signature
from ._suggest import nearest

__all__ = ["check_policy", "fallback_inputs", "policy_of", "services_of"]

_ONCE: Final = (Iterator, AsyncIterable)  # what can be read but once


def policy_of(tool: Any, phase: Policy | None = None) -> Policy:
    """The policy of a tool's calls: the defaults, its own, that of a phase, that of ``using``, laid over each other."""
    return DEFAULTS.overlaid(tool.policy).overlaid(phase).overlaid(tool._using)


def services_of(tool: Any, phase: Policy | None = None) -> tuple[Any, ...]:
    """The services that a tool and its fallbacks require, each once."""
    found: list[Any] = []
    tools = [tool]
    for one in tools:
        found += [service for service in one.requires if not any(service is known for known in found)]
        policy = policy_of(one, phase if one is tool else None)
        tools += [other for other in policy.fallback or () if not any(other is known for known in tools)]
    return tuple(found)


def check_policy(tool: Any, policy: Policy) -> None:
    """Refuse a policy that this tool cannot have.

    Raises:
        TypeError: A fallback that cannot take the tool's inputs, a hedge for what must not run twice, a cache for
            inputs that make no key; with the mend.
        ValueError: Fallbacks that go round in a circle, by their names; a limit whose key is no input of the tool.
    """
    for limits in (policy.concurrency, policy.rate):
        for limit in limits if isinstance(limits, tuple) else ():
            _check_key(tool, limit)
    if policy.fallback is not None:
        _check_fallbacks(tool, policy)
    if policy.hedge_after is not None:
        _check_hedge(tool)
    if policy.cache is not None:
        _check_cache(tool, policy)


def _check_key(tool: Any, limit: Any) -> None:
    key = getattr(limit, "key", None)
    known = tool.signature.types if isinstance(key, str) else ()
    if isinstance(key, str) and key not in known:
        raise ValueError(
            f"the key {key!r} of {limit!r} is no input of tool {tool.name!r}, which takes "
            f"{', '.join(known) or 'none'}{nearest(key, known)}; or give a function of the inputs"
        )


# --- fallback


def _check_fallbacks(tool: Any, policy: Policy) -> None:
    _refuse_circle([tool], policy)
    own = tool.signature
    for other in policy.fallback:
        theirs = other.signature
        for name in sorted(theirs.required):
            if name not in own.required and name not in own.defaults:
                what = "may be left out of" if name in own.types else "is no input of"
                raise TypeError(
                    f"tool {other.name!r} cannot be the fallback of tool {tool.name!r}: it needs {name!r}, which "
                    f"{what} the other's inputs ({', '.join(own.types) or 'none'}); give it a default, or wrap the tool"
                )
        for name, kind in theirs.types.items():
            if name in own.types and cannot_fit(own.types[name], kind):
                raise TypeError(
                    f"tool {other.name!r} cannot be the fallback of tool {tool.name!r}: it takes {name!r} as {kind!r}, "
                    f"which {own.types[name]!r} cannot be"
                )
        if cannot_fit(theirs.returns, own.returns):
            raise TypeError(
                f"tool {other.name!r} cannot be the fallback of tool {tool.name!r}: it gives {theirs.returns!r}, which "
                f"cannot be the other's result, {own.returns!r}; map it: ToolAdapter(..., returns=...)"
            )


def _refuse_circle(path: list[Any], policy: Policy) -> None:
    for other in policy.fallback or ():
        if any(other is one for one in path):
            names = " -> ".join(repr(one.name) for one in (*path, other))
            raise ValueError(
                f"fallbacks go round in a circle: {names}; leave it out of the last one's policy: "
                f"tool.using(fallback=None)"
            )
        _refuse_circle([*path, other], policy_of(other))


def fallback_inputs(own: Signature, theirs: Signature, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a call for a tool that is called in its stead.

    Those of its names; what it needs and was not given is the first tool's default.
    """
    needed = {name: own.defaults[name] for name in theirs.required if name in own.defaults}
    return theirs.those_of_mine({**needed, **inputs})


# --- hedging


def _check_hedge(tool: Any) -> None:
    what = f"tool {tool.name!r} cannot have hedge_after"
    if not tool.idempotent:
        raise TypeError(
            f"{what}: it would run twice at once; if that does no harm, say so: idempotent=True on the tool"
        )
    execution = tool._execution()
    if execution.kind == "inline":
        raise TypeError(f"{what}: offload='inline' blocks the event loop, so that nothing could run beside it")
    if execution.serial is not None or execution.dedicated:
        raise TypeError(f"{what}: it has one instance, for one call at a time; use instances='per_thread' or 'shared'")
    if execution.kind == "thread" and not execution.abandon:
        raise TypeError(
            f"{what}: with on_cancel='wait' the slower of two threads would be waited for; use on_cancel='abandon', or "
            f"offload='process'"
        )
    if execution.kind == "process" and not execution.kill:
        raise TypeError(
            f"{what}: with on_cancel='wait' the slower of two processes would be waited for; use on_cancel='kill'"
        )


# --- cache


def _check_cache(tool: Any, policy: Policy) -> None:
    signature = tool.signature
    returns = typing.get_origin(signature.returns) or signature.returns
    if isinstance(returns, type) and issubclass(returns, _ONCE):
        raise TypeError(
            f"tool {tool.name!r} cannot have a cache: it returns {signature.returns!r}, which can be read but once; "
            f"return a list, or map it: ToolAdapter(..., returns=list)"
        )
    if getattr(policy.cache, "key", None) is not None:
        return
    for name, kind in signature.types.items():
        found = typing.get_origin(kind) or kind
        is_stream = isinstance(found, type) and issubclass(found, _ONCE)
        given = plain_class(kind)
        if is_stream or (given is not None and not has_digest(given)):
            raise TypeError(
                f"tool {tool.name!r} cannot have a cache: no key can be made of its input {name!r} ({kind!r}); say "
                f"what tells its calls apart: cache=Cache(ttl, key=...), a function of the inputs"
            )
