"""The tokens of an attempt: taken in the one order, concurrency before rate, and given back.

Bounded by the call's deadline; what a call's own chain already holds is refused instead of waited for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from time import perf_counter_ns
from typing import Any

import anyio

from ._admission import Limit
from ._call import Call
from ._errors import CallRejected
from ._keyed import FunctionFailed
from ._order import taken_against, waits_in_vain
from ._priority import priority_of
from ._rate import RateLimit, acquire_rates, acquire_rates_nowait

__all__ = [
    "DeadlinePassed",
    "chain_of",
    "deadline_of",
    "give_back",
    "pause_rates",
    "refund",
    "refuse_own_chain",
    "refused",
    "take_again",
    "take_concurrency",
    "take_now",
    "take_rates",
    "tell_news",
    "wanted_rates",
    "wants_what_is_held",
    "with_defaults",
]


class DeadlinePassed(Exception):
    """The call's deadline passed, before or while the tool ran."""

    def __init__(self, cause: BaseException | None = None) -> None:
        super().__init__("the deadline has passed")
        self.cause = cause


def refused(call: Call[Any], error: Exception) -> Exception:
    """An error of taking the call's tokens; by its id a rejection is told from what the tool itself raises."""
    if isinstance(error, CallRejected):
        error.call_id = call.id
    return error


def give_back(held: Sequence[Any]) -> None:
    for token in reversed(held):
        token.release()


def with_defaults(call: Call[Any]) -> dict[str, Any]:
    """What a user's function of the inputs is given: those that were left out, too."""
    return call.bound.signature.defaults | dict(call.inputs)


def _token_of(call: Call[Any], limit: Limit) -> Any:
    """What the call takes its token of: the limit, or one key of it.

    Raises:
        FunctionFailed: The key function raised, or gave what cannot be a key.
    """
    return limit.of(with_defaults(call)) if limit.is_keyed else limit


async def take_concurrency(call: Call[Any], held: list[Any]) -> None:
    """Take the tokens that follow those in ``held``, and add them to it.

    Raises:
        CallRejected: It would wait for itself, or the limit does not let it wait.
        DeadlinePassed: It waited for as long as it could.
        FunctionFailed: As of `_token_of`.
    """
    if call.parent is not None and call.bound.holds:
        _refuse_deadlock(call)
    for limit in call.bound.limits[len(held) :]:
        token = _token_of(call, limit)
        if limit.is_reentrant and _holds(call, limit):
            limit.join()
        elif not token.acquire_nowait():
            if deadline_of(call) == math.inf and waits_in_vain(call, limit, token):
                raise CallRejected(_by_this_code(call, limit))
            tell_news(call, limit)
            if call.parent is not None and call.bound.home.cache_waits:
                _send_off(call, limit)
            await _wait(call, token)
        held.append(token)
        if limit.news:
            tell_news(call, limit)


async def take_again(call: Call[Any], held: list[Any]) -> None:
    """Take the tokens of a call that has ended, for more of its tool's code; they are added to ``held``."""
    for limit in call.bound.limits:
        token = _token_of(call, limit)
        if limit.is_reentrant and _holds(call, limit):
            limit.join()
        else:
            await token.acquire(priority_of(call))
        held.append(token)


async def _wait(call: Call[Any], token: Any) -> None:
    mailbox = call.bound.home.mailbox
    began = perf_counter_ns()
    call.waits()
    try:
        if call.deadline_at is None:  # a scope costs more than the rest
            await token.wait_for_token(mailbox, priority_of(call))
            return
        with anyio.CancelScope(deadline=deadline_of(call)) as scope:
            await token.wait_for_token(mailbox, priority_of(call))
        if scope.cancelled_caught:
            raise DeadlinePassed
    finally:
        call.wait_concurrency_ns += perf_counter_ns() - began


def _send_off(call: Call[Any], limit: Limit) -> None:
    """Have calls that wait for a result which this one is a part of, while they hold a token of this limit, run by
    themselves: they would wait for each other.
    """
    behind = set(chain_of(call))
    waits = dict(call.bound.home.cache_waits)
    while found := [waiter for waiter, flight in waits.items() if flight.leader.serial in behind]:
        for waiter in found:
            flight = waits.pop(waiter)
            behind.update(chain_of(waiter))
            if not limit.is_reentrant and _holds(waiter, limit):
                flight.send_off(waiter)


def chain_of(call: Call[Any] | None) -> Iterator[int]:
    """The numbers of a call and of those that it is nested in; what is nested in one of two attempts has that above."""
    while call is not None:
        yield call.serial
        call = call.parent


def wants_what_is_held(wanting: Call[Any], holding: Call[Any]) -> bool:
    """Whether one waits, or may come to, for a token of a limit that another's chain of calls holds."""
    return any(
        limit not in wanting.holds and not limit.is_reentrant and _holds(holding, limit)
        for limit in wanting.bound.limits
    )


def tell_news(call: Call[Any], limit: Limit) -> None:
    """Record what the limit has to tell, in the evidence of the session that made it do so."""
    log = call.bound.home.log
    with suppress(IndexError):  # another session has told it
        while limit.news:
            event, fields = limit.news.popleft()
            if log is not None:
                log.emit(event, tool=call.tool_name, **fields)


def _holds(call: Call[Any], limit: Limit) -> bool:
    """Whether the chain of calls that this one is nested in holds a token, by policy or by ``async with``."""
    if limit in _entered(call):
        return True
    ancestor = call.parent
    while ancestor is not None:
        if limit in ancestor.holds or limit in _entered(ancestor):
            return True
        ancestor = ancestor.parent
    return False


def _entered(call: Call[Any]) -> list[Any]:
    """What the code that waits for the call has entered by ``async with``."""
    return [one.limit for one in call.around if one.is_live]


def refuse_own_chain(call: Call[Any]) -> CallRejected | None:
    """The error of a call that would wait for one that it is nested in, were it to wait for tokens of its limits."""
    if call.parent is None or not call.bound.holds:
        return None
    try:
        _refuse_deadlock(call)
    except CallRejected as refused:
        return refused
    return None


def _refuse_deadlock(call: Call[Any]) -> None:
    """Refuse what a call of its own chain holds, and what others have taken in the other order."""
    chain = [call]
    while (ancestor := chain[-1].parent) is not None:
        chain.append(ancestor)
    for inner, ancestor in reversed(list(pairwise(chain))):  # what was entered furthest out is around all within
        _refuse_held(call, ancestor, ancestor.holds)
        _refuse_held(call, ancestor, _entered(inner))


def _refuse_held(call: Call[Any], ancestor: Call[Any], holds: Sequence[Any]) -> None:
    for held in holds:
        for wanted in call.bound.holds:
            if wanted is held:
                if not held.is_reentrant:
                    raise CallRejected(_own_chain(call, ancestor, held), call_id=call.id)
            elif (others := taken_against(held, wanted, (ancestor.tool_name, call.tool_name))) is not None:
                raise CallRejected(_other_order(call, ancestor, held, wanted, others), call_id=call.id)


def _by_this_code(call: Call[Any], limit: Limit) -> str:
    return (
        f"tool {call.tool_name!r} wants a token of {limit!r}, all of which the code that waits for this call has "
        f"entered by 'async with': they would wait for each other; leave the block out, or use two limits"
    )


def _own_chain(call: Call[Any], ancestor: Call[Any], limit: Limit) -> str:
    if limit not in call.bound.limits:
        return (
            f"tool {call.tool_name!r} has one instance in one thread (instances='dedicated'), which waits for this "
            f"call: they would wait for each other; call the object itself in there"
        )
    if ancestor.tool_name == call.tool_name:
        mend = "take the limit from the inner call: tool.using(concurrency=None)"
        if limit not in call.bound.limits[:-1] and call.bound.execution.serial:
            mend = "instances='serial' is one call at a time: call the object itself"
        return (
            f"tool {call.tool_name!r} calls itself, wanting a token of {limit!r}, one of which it holds while "
            f"it waits; it would wait for itself; {mend}"
        )
    return (
        f"tool {call.tool_name!r} wants a token of {limit!r}, which tool {ancestor.tool_name!r} holds while it waits "
        f"for this call: they would wait for each other; give the two tools limits of their own"
    )


def _other_order(call: Call[Any], ancestor: Call[Any], held: Limit, wanted: Limit, others: tuple[str, str]) -> str:
    return (
        f"tool {call.tool_name!r} wants a token of {wanted!r} while tool {ancestor.tool_name!r}, which it is nested "
        f"in, holds one of {held!r}; tools {others[0]!r} and {others[1]!r} have taken them in the other order, so that "
        f"all could wait for each other: keep to one order, or give the tools limits of their own"
    )


def take_now(call: Call[Any]) -> tuple[list[Any], list[tuple[RateLimit, float]]] | None:
    """All tokens of an attempt, if they are there without waiting; None too where a user's function raises."""
    held: list[Any] = []
    try:
        for limit in call.bound.limits:
            token = _token_of(call, limit)
            if not token.acquire_nowait():
                break
            held.append(token)
        else:
            wanted = wanted_rates(call)
            if not wanted or acquire_rates_nowait(wanted, call.bound.home.mailbox):
                return held, wanted
    except (CallRejected, FunctionFailed):
        pass
    give_back(held)
    return None


def wanted_rates(call: Call[Any]) -> list[tuple[RateLimit, float]]:
    """What the call costs of each of its rate limits.

    Raises:
        CallRejected, FunctionFailed: As of `RateLimit.tokens` and `RateLimit.of`.
    """
    return [
        (_rate_of(call, limit), 1.0 if limit.cost is None else limit.tokens(with_defaults(call)))
        for limit in call.bound.rates
    ]


def _rate_of(call: Call[Any], limit: RateLimit) -> RateLimit:
    return limit.of(with_defaults(call)) if limit.is_keyed else limit


def pause_rates(call: Call[Any], seconds: float) -> None:
    """A server said when to come back: its rate limits give nothing until then, for the call's key where it has one."""
    for limit in call.bound.rates:
        with suppress(FunctionFailed):  # which gave a key before
            _rate_of(call, limit).pause(seconds)


async def take_rates(call: Call[Any], wanted: list[tuple[RateLimit, float]]) -> None:
    if wanted and not acquire_rates_nowait(wanted, call.bound.home.mailbox):
        began = perf_counter_ns()
        call.waits()
        try:
            with anyio.CancelScope(deadline=deadline_of(call)) as scope:
                await acquire_rates(wanted)
        finally:
            call.wait_rate_ns += perf_counter_ns() - began
        if scope.cancelled_caught:
            raise DeadlinePassed


def deadline_of(call: Call[Any]) -> float:
    return math.inf if call.deadline_at is None else call.deadline_at


def refund(rates: Sequence[tuple[RateLimit, float]]) -> None:
    for limit, tokens in rates:
        limit.refund(tokens)
