"""`Toolbox`: tools by name, for programs that choose them at run time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from kgas_async import KGASTool, ServiceManager, Toolbox, UnknownTool, tool


class Plain(KGASTool):
    async def execute_async(self, *, x: int = 1) -> int:
        await checkpoint()
        return 2 * x


@tool
def at_top(x: int) -> int:
    return x


def test_what_is_no_tool_and_a_name_given_twice_are_refused_with_the_mend() -> None:
    with pytest.raises(TypeError, match=r"a Toolbox takes tools, not .*wrap it: tool\(...\)"):
        Toolbox(print)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"two tools are named 'Plain'.*tool.using\(name=...\)"):
        Toolbox(Plain(), Plain())


def test_a_toolbox_is_a_mapping_by_name() -> None:
    plain = Plain()
    box = Toolbox(plain, at_top)
    assert (list(box), len(box), box["Plain"], "at_top" in box, "no" in box) == (
        ["Plain", "at_top"],
        2,
        plain,
        True,
        False,
    )
    assert dict(box) == {"Plain": plain, "at_top": at_top}
    assert repr(box) == "Toolbox(Plain, at_top)"
    assert Toolbox(plain, plain.using(name="b")).keys() == {"Plain", "b"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("at_tpo", "no tool is named 'at_tpo'; there are: Plain, at_top; did you mean 'at_top'?"),
        ("zzz", "no tool is named 'zzz'; there are: Plain, at_top"),
        (None, "no tool is named None; there are: Plain, at_top"),
        (3, "no tool is named 3; there are: Plain, at_top"),
    ],
)
def test_an_unknown_tool_is_told_what_there_is(name: Any, said: str) -> None:
    box = Toolbox(at_top, Plain())
    with pytest.raises(UnknownTool) as caught:
        box[name]
    assert str(caught.value) == said
    assert isinstance(caught.value, KeyError)
    assert box.get(name) is None


def test_an_empty_toolbox_says_that_there_is_none() -> None:
    with pytest.raises(UnknownTool, match=r"there are: none$"):
        Toolbox()["a"]


async def test_a_tool_chosen_at_run_time_takes_json() -> None:
    box = Toolbox(Plain(), at_top)
    async with ServiceManager(log=None) as manager:
        arguments = json.loads('{"x": "4"}')
        assert await manager.execute(box["Plain"], **arguments) == 8
