"""What a tool does after a failed or cancelled call: its `cleanup_resources`, shielded and bounded."""

from __future__ import annotations

from typing import Any

import anyio

from ._attempt import contained
from ._call import Call
from ._cancellation import hook_failure
from ._errors import add_note, shown
from ._mailbox import cancels_pending
from ._waiting import wait_until

__all__ = ["clean_up"]


async def clean_up(call: Call[Any], error: BaseException) -> BaseException | None:
    """Let the tool clean up.

    Returns:
        A native cancellation that came meanwhile, to be raised again: it goes through shields, so that in a task which
        is not ours the clean-up is given one that is.
    """
    if not call.bound.cleans_up or not call.begun_ns or call.is_cleaned_up:
        return None
    if call.host_is_ours or cancels_pending() is None:
        await _cleaned_up(call, error, owned=call.host_is_ours)
        return None
    ended = anyio.Event()
    exits: list[BaseException] = []

    async def clean() -> None:
        try:
            await _cleaned_up(call, error, owned=True)
        except (KeyboardInterrupt, SystemExit) as caught:
            exits.append(caught)
        finally:
            ended.set()

    call.bound.home.spawn(clean)
    native = await wait_until(ended)
    if exits:
        raise exits[0]
    return native


async def _cleaned_up(call: Call[Any], error: BaseException, *, owned: bool) -> None:
    context = call.context
    assert context is not None
    scope = anyio.CancelScope(deadline=call.grace_deadline(), shield=True)
    broken: BaseException | None = None
    with scope:
        try:
            await contained(call, call.bound.hooks.cleanup_resources(call), context)
        except BaseException as raised:
            broken = hook_failure(raised, "it", owned=owned)  # under the shield: the call may be cancelled
            if broken is None:
                raise
    if broken is not None:  # it must not replace the call's own error
        add_note(error, f"cleanup_resources of tool {call.tool_name!r} failed too: {shown(broken)}")
    if scope.cancelled_caught:
        add_note(error, f"cleanup_resources of tool {call.tool_name!r} did not end within its grace and was cancelled")
