"""What a wrapped tool keeps, and what a pickled adapter says its name is."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from kgas_async import InvalidInputs, KGASTool, Policy, ServiceManager, ToolAdapter


class Careful(KGASTool):
    version = "7"
    idempotent = True
    backend = "trio"

    def __init__(self) -> None:
        self.log: list[str] = []

    async def validate_inputs(self, **inputs: Any) -> dict[str, Any]:
        self.log.append("validated")
        return await super().validate_inputs(**inputs)

    async def execute_async(self, *, x: int) -> int:
        raise LookupError

    async def cleanup_resources(self, call: Any) -> None:
        self.log.append(f"cleaned up after {call.name}")


class Echo:
    def execute(self, *, x: int) -> int:
        return x


@pytest.mark.parametrize("options", [{}, {"returns": str, "policy": Policy(timeout=30.0)}], ids=["bare", "mapped"])
async def test_a_wrapped_tool_still_checks_its_inputs_and_cleans_up(options: dict[str, Any]) -> None:
    careful = Careful()
    adapted = ToolAdapter(ToolAdapter(careful), name="adapted", **options)
    async with ServiceManager(log=None) as manager:
        assert (await manager.outcome(adapted, x=1)).status == "failed"
    assert careful.log == ["validated", "cleaned up after adapted"]


async def test_an_adapter_with_a_clean_up_of_its_own_does_that() -> None:
    class Own(ToolAdapter[Any, Any]):
        async def cleanup_resources(self, call: Any) -> None:
            careful.log.append("by the adapter")

    careful = Careful()
    async with ServiceManager(log=None) as manager:
        await manager.outcome(Own(careful), x=1)
    assert careful.log == ["by the adapter"]


def test_a_wrapped_tool_keeps_its_version_and_what_else_it_says_of_itself() -> None:
    adapted = ToolAdapter(Careful())
    assert (adapted.version, adapted.idempotent, adapted.backend) == ("7", True, "trio")
    other = ToolAdapter(Careful(), version="8", idempotent=False, backend="asyncio")
    assert (other.version, other.idempotent, other.backend) == ("8", False, "asyncio")


async def test_a_renamed_adapter_that_was_pickled_is_called_by_its_name_in_messages() -> None:
    renamed = pickle.loads(pickle.dumps(ToolAdapter(Echo(), name="echo").using(name="renamed")))
    with pytest.raises(InvalidInputs, match="'renamed'"):
        await renamed.validate_inputs(x="no number")
    assert renamed.input_schema()["title"] == "renamed"
