"""Fallbacks: other tools that are called with the inputs of one that has failed, each in a call of its own."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel

from ._breaker_guard import was_cancelled
from ._call import Call
from ._errors import CallCancelled, InvalidInputs, ServiceError, add_note, text_of
from ._policy_checks import fallback_inputs
from ._records import call_fields
from ._tokens import DeadlinePassed, deadline_of

__all__ = ["fall_back", "may_fall_back"]


def may_fall_back(call: Call[Any], error: BaseException) -> bool:
    """Whether other tools are to be asked after this error."""
    return not (isinstance(error, (DeadlinePassed, InvalidInputs)) or was_cancelled(call))


async def fall_back(call: Call[Any], error: BaseException) -> BaseException | None:
    """Call the fallbacks in order, until one gives a value, which is the call's then.

    Returns:
        None for a value; the call's own error, on which the others' are noted; `DeadlinePassed`.

    Cancellation: Reaches the tool that runs; no further one is called.
    """
    bound = call.bound
    home = bound.home
    for other in bound.fallbacks:
        if anyio.current_time() >= deadline_of(call):
            return DeadlinePassed(error)
        try:
            home.check_services(other)
        except ServiceError as missing:
            add_note(error, f"its fallback {other.name!r} was not called: {text_of(missing)}")
            continue
        if home.log is not None:
            home.log.emit(**call_fields(call, "call.fell_back", error), fallback=other.name)
        inputs = fallback_inputs(bound.signature, other.signature, call.inputs)
        inner = home.new_call(other, inputs, call, call.item)
        call.waits()
        if other.isolated:
            await home.run_isolated(inner)
        else:
            await home.host_call(inner, owned=call.host_is_ours)
        if inner.ok:
            call.value = inner.value
            call.answered_by = inner.answered_by or other.name
            return None
        failed = inner.to_outcome().error
        if isinstance(failed, CallCancelled):
            await anyio.lowlevel.checkpoint_if_cancelled()  # we are, or somebody else did not want any
            add_note(error, f"its fallback {other.name!r} was cancelled")
            return error
        add_note(error, f"its fallback {other.name!r} failed too: {'' if failed is None else text_of(failed)}")
    return DeadlinePassed(error) if anyio.current_time() >= deadline_of(call) else error
