"""Programs of the MCP tests, and their tools: `python -m tests.mcp_programs serve trio evidence.jsonl`.

`serve BACKEND EVIDENCE` serves the toolbox over stdio; `call URL MODE SECONDS` is a client that calls one slow tool.
"""

from __future__ import annotations

import datetime as dt
import enum
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.lowlevel
from mcp import Client
from pydantic import BaseModel

from kgas_async import CallAborted, Policy, ServiceManager, Toolbox, check_cancelled, current, progress, tool
from kgas_async.export.mcp import serve_stdio


class Kind(enum.Enum):
    BOOK = "book"


class Author(BaseModel):
    name: str
    born: dt.date


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    The rest of the docstring is not for clients.
    """
    print("a line on stdout, where the messages go")
    return a + b


@tool
def types_of(path: Path, kind: Kind, author: Author, pair: tuple[int, dt.date]) -> dict[str, str | None]:
    values = {"path": path, "kind": kind, "author": author, "pair": pair[1]}
    return {"none": None, **{name: type(value).__name__ for name, value in values.items()}}


@tool
def author_of(name: str) -> Author:
    return Author(name=name, born=dt.date(1815, 12, 10))


@tool
def nothing() -> None: ...


@tool
def loose(text: str):  # type: ignore[no-untyped-def]
    return {"text": text}


@tool
def unsendable() -> Any:
    return object()


@tool
def boom(text: str) -> str:
    raise ValueError(f"boom: {text}")


@tool
async def wait(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "waited"


@tool(policy=Policy(grace=5.0))
def spin(seconds: float) -> str:
    """A sync tool that looks whether it should stop."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        check_cancelled()
        time.sleep(0.005)
    return "spun"


@tool
def count(to: int) -> int:
    """A sync tool that says how far it is, now and then of what no message can hold."""
    for number in range(1, to + 1):
        progress(number, to, f"step {number}", more="for readers here")
        progress(number - 1)  # no more than before
        progress(float("nan"))
        progress("much")  # type: ignore[arg-type]
    return to


@tool
async def count_async(to: int) -> int:
    for number in range(1, to + 1):
        progress(number)
        await anyio.lowlevel.checkpoint()
    return to


UNDECODABLE = "b\udcff"  # the name of a file, as Python gives it


@tool
async def undecodable(how: Literal["result", "error"]) -> list[str]:
    progress(1, 2, UNDECODABLE)
    await anyio.lowlevel.checkpoint()
    if how == "error":
        raise FileNotFoundError(f"no such file: {UNDECODABLE}")
    return ["a", UNDECODABLE]


@tool
async def die() -> None:
    os._exit(1)


@tool
async def tells(words: Path) -> None:
    """Waits, and writes down how it ended."""
    words.write_text("began")  # noqa: ASYNC240  (quick)
    try:
        await anyio.sleep(60)
    except anyio.get_cancelled_exc_class():
        words.write_text("cancelled")  # noqa: ASYNC240  (quick)
        raise


@tool(policy=Policy(grace=20.0))
def tells_in_thread(words: Path) -> None:
    words.write_text("began")
    try:
        spin(60)
    except CallAborted:
        words.write_text("cancelled")
        raise


@tool(offload="process")
def tells_in_process(words: Path) -> None:
    words.write_text(str(os.getpid()))
    time.sleep(60)


@tool
async def passes_on(words: Path) -> None:
    """Has another tool do it."""
    await current().execute(tells, words=words)


toolbox = Toolbox(
    add, types_of, author_of, nothing, loose, unsendable, boom, wait, spin, count, count_async, undecodable, die,
    tells, tells_in_thread, tells_in_process, passes_on,
)  # fmt: skip


async def serve(evidence: str) -> None:
    async with ServiceManager(evidence=evidence, log=None, signals=True) as manager:
        await serve_stdio(manager, toolbox, name="under test", version="1.2", instructions="Be quick.")


async def call(url: str, mode: str, name: str) -> None:
    async with Client(url, mode=mode) as client:
        await client.call_tool(name, {"seconds": 60.0})


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        anyio.run(partial(serve, sys.argv[3]), backend=sys.argv[2])
    else:
        anyio.run(partial(call, *sys.argv[2:5]))
