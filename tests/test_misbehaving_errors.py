"""Exceptions and inputs that cannot be noted, printed or told: the failure of their own call and of no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from kgas_async import CallFailed, InvalidInputs, KGASTool, Policy, ServiceManager, tool


@dataclass(frozen=True)
class Frozen(Exception):
    """Takes no attributes, so no notes."""

    code: int


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def async_tool(policy: Policy) -> KGASTool:
    @tool(policy=policy)
    async def fail(x: int) -> int:
        raise Frozen(x)

    return fail


def sync_tool(policy: Policy) -> KGASTool:
    @tool(policy=policy)
    def fail(x: int) -> int:
        raise Frozen(x)

    return fail


def inline_tool(policy: Policy) -> KGASTool:
    @tool(policy=policy, offload="inline")
    def fail(x: int) -> int:
        raise Frozen(x)

    return fail


@pytest.mark.parametrize("policy", [Policy(), Policy(timeout=30.0)], ids=["plain", "bounded"])
@pytest.mark.parametrize("make", [async_tool, sync_tool, inline_tool])
async def test_an_exception_that_takes_no_notes_is_the_cause_as_any_other(
    make: Callable[[Policy], Any], policy: Policy
) -> None:
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed) as caught:
            await manager.execute(make(policy), x=3)
    assert caught.value.__cause__ == Frozen(3)


async def test_an_exception_that_takes_no_notes_fails_its_item_of_a_map_alone() -> None:
    @tool
    async def odd_fails(x: int) -> int:
        if x % 2:
            raise Frozen(x)
        return x

    async with ServiceManager(log=None) as manager, manager.map(odd_fails, range(4), arg="x") as outcomes:
        statuses = [outcome.status async for outcome in outcomes]
    assert statuses == ["succeeded", "failed", "succeeded", "failed"]


async def test_a_wrong_input_that_cannot_be_printed_fails_its_item_of_a_map_alone() -> None:
    @tool
    async def double(x: int) -> int:
        return 2 * x

    async with ServiceManager(log=None) as manager, manager.map(double, [1, Unprintable()], arg="x") as outcomes:
        fine, wrong = [outcome async for outcome in outcomes]
    assert fine.value == 2
    assert isinstance(wrong.error, InvalidInputs)
    assert "a Unprintable whose __repr__ raised RuntimeError" in str(wrong.error)


@tool
async def at_once(x: int) -> int:
    raise GeneratorExit


@tool
async def later(x: int) -> int:
    await anyio.sleep(0.001)
    raise GeneratorExit


@tool(offload="inline")
def inline(x: int) -> int:
    raise GeneratorExit


@tool
def in_a_thread(x: int) -> int:
    raise GeneratorExit


@pytest.mark.parametrize("policy", [{}, {"timeout": 30.0}], ids=["plain", "bounded"])
@pytest.mark.parametrize("raises", [at_once, later, inline, in_a_thread], ids=lambda one: one.name)
async def test_a_generator_exit_that_a_tool_raises_is_its_failure_and_ends_nothing_else(
    raises: KGASTool, policy: dict[str, Any]
) -> None:
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed, match="GeneratorExit"):
            await manager.execute(raises.using(**policy), x=1)
        async with manager.map(raises.using(**policy), range(3), arg="x") as outcomes:
            assert [outcome.status async for outcome in outcomes] == ["failed"] * 3
