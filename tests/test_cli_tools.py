"""`kgas-async tools`: what installed packages offer, and those of it that are broken."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from typer.testing import CliRunner

from kgas_async._cli import app

MODULE = '''
from enum import Enum
from pathlib import Path
from kgas_async import ToolAdapter, Toolbox, tool

class Kind(Enum):
    a = "a"
    b = "b"

@tool(version="2")
def load(path: Path, top: int = 3, kinds: list[Kind] | None = None) -> str:
    """Read a document.

    The rest is not shown.
    """

@tool
async def judge(text: str) -> str:
    return text

@tool(description="\\x1b[2Jgone")
async def evil(text: str) -> str:
    return text

box = Toolbox(load, judge)
number = 5
'''


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs a package that offers these entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "offered.py").write_text(MODULE)
    (tmp_path / "exiting.py").write_text("raise SystemExit('no')")

    def install(points: str) -> None:
        info = tmp_path / "mine_tools-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-tools\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text("[kgas_async.tools]\n" + dedent(points))

    yield install
    for name in ("offered", "exiting"):
        sys.modules.pop(name, None)


def tools(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["tools", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_it_lists_name_inputs_description_and_where_it_is_from(offer: Any) -> None:
    offer("load = offered:load\njudge = offered:judge\n")
    said = tools().stdout
    assert "judge(text: string)\n    no description\n" in said
    assert "load(path: path, top?: integer, kinds?: array of Kind|null)\n    Read a document.\n" in said
    assert "    version 2, load = offered:load, mine-tools 1.5\n" in said


def test_what_a_terminal_would_act_on_is_escaped(offer: Any) -> None:
    offer("evil = offered:evil\n")
    said = tools().stdout
    assert "evil(text: string)\n" in said
    assert "\x1b" not in said
    assert "x1b[2Jgone" in said


def test_a_toolbox_offers_all_that_is_in_it(offer: Any) -> None:
    offer("mine = offered:box\n")
    found = json.loads(tools("--json").stdout)
    ours = [one for one in found["tools"] if one["package"] == "mine-tools 1.5"]
    assert [one["name"] for one in ours] == ["load", "judge"]
    assert ours[0]["inputs"]["required"] == ["path"]
    assert ours[0]["description"].startswith("Read a document.")


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("x = nowhere_to_be_found:x", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("x = offered:nothing", "AttributeError: module 'offered' has no attribute 'nothing'"),
        (
            "x = offered:number",
            "TypeError: it is no tool but int; name a tool object (@tool, ToolAdapter(...)) or a To",
        ),
        ("x = offered:Kind", "TypeError: it is no tool but the class Kind; name"),
        ("x = exiting:x", "SystemExit: no"),
    ],
)
def test_a_broken_entry_point_is_one_line_beside_the_others(offer: Any, point: str, said: str) -> None:
    offer(f"{point}\nload = offered:load\n")
    result = tools(code=1)
    assert "load(path: path" in result.stdout
    assert result.stderr.startswith(f"error: entry point {point} of mine-tools 1.5 is broken: {said}")
    assert result.stderr.count("\n") == 1
    broken = json.loads(tools("--json", code=1).stdout)["broken"]
    assert broken[0]["error"].startswith(said)


def test_without_any_it_says_how_they_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kgas_async._cli_tools.GROUP", "kgas_async.no_such_group")
    result = tools()
    assert result.stdout == ""
    assert "by entry points of the group kgas_async.no_such_group" in result.stderr
