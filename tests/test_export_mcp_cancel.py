"""The MCP SDK's client cancels a call over stdio: the tool itself hears of it, and its evidence says so, once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp_types")

from mcp import Client, StdioServerParameters

from .process_tools import is_running, until
from .test_export_mcp import ERAS, ROOT, backend_name

pytestmark = [pytest.mark.real_time, pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")]

ASKED = "the MCP client cancelled it: caller cancelled"


def own_server(anyio_backend: Any, evidence: Path) -> StdioServerParameters:
    arguments = ["-m", "tests.mcp_programs", "serve", backend_name(anyio_backend), str(evidence)]
    return StdioServerParameters(command=sys.executable, args=arguments, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT)


def word_in(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def ends_in(evidence: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in evidence.read_text().splitlines()]
    assert records[-1]["event"] == "session.ended"
    assert records[-1].get("abandoned", []) == []
    return [one for one in records if "wait_us" in one]


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize("name", ["tells", "tells_in_thread", "tells_in_process", "passes_on"])
async def test_a_cancelled_request_ends_its_tool(anyio_backend: Any, tmp_path: Path, mode: str, name: str) -> None:
    evidence, words = tmp_path / "e.jsonl", tmp_path / "words"
    async with Client(own_server(anyio_backend, evidence), mode=mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, name, {"words": str(words)})
            await until(lambda: word_in(words))
            tasks.cancel_scope.cancel()
        if name == "tells_in_process":
            pid = int(word_in(words))
            await until(lambda: not is_running(pid))
        else:
            await until(lambda: word_in(words) == "cancelled")
        assert not (await client.call_tool("add", {"a": 1})).is_error  # it goes on serving
    ends = {one["tool"]: one for one in ends_in(evidence)}
    assert len(ends) == len(ends_in(evidence))
    assert ends.pop("add")["event"] == "call.succeeded"
    end = ends.pop(name)
    assert (end["event"], end["status"], end["reason"]) == ("call.cancelled", "cancelled", ASKED)
    assert end["run_us"] > 0
    assert "abandoned" not in end
    if name == "passes_on":
        inner = ends.pop("tells")
        assert (inner["event"], inner["parent_id"]) == ("call.cancelled", end["call_id"])
    assert ends == {}


@pytest.mark.parametrize("mode", ERAS)
async def test_one_of_two_requests_is_cancelled_and_the_other_goes_on(
    anyio_backend: Any, tmp_path: Path, mode: str
) -> None:
    evidence, words = tmp_path / "e.jsonl", tmp_path / "words"
    answers: list[Any] = []
    async with Client(own_server(anyio_backend, evidence), mode=mode) as client:

        async def other() -> None:
            answers.append(await client.call_tool("wait", {"seconds": 1.0}))

        async with anyio.create_task_group() as others:
            others.start_soon(other)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.call_tool, "tells", {"words": str(words)})
                await until(lambda: word_in(words))
                tasks.cancel_scope.cancel()
            await until(lambda: word_in(words) == "cancelled")
    assert answers[0].structured_content == {"result": "waited"}
    assert {one["tool"]: one["status"] for one in ends_in(evidence)} == {"tells": "cancelled", "wait": "succeeded"}
