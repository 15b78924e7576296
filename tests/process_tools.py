"""Tools that run in worker processes, where each is imported by its name; the tests of processes use them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import structlog
from pydantic import BaseModel

from kgas_async import CallRejected, Policy, ToolAdapter, call_context, check_cancelled, current, progress, tool

process = tool(offload="process")
PATIENCE_S = 20.0


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another process does; nobody tells us."""
    with anyio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.002)


async def written(path: Path, words: int = 1) -> list[int]:
    """The numbers that a process writes to a file, once all are there."""
    await until(lambda: len(pids_in(path)) >= words)
    return pids_in(path)


def pids_in(path: Path) -> list[int]:
    """The numbers in a file, none where there is no file."""
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is not dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@process
def double(x: int) -> int:
    return 2 * x


@tool(offload="process", idempotent=True)
def turned_away(x: int) -> None:
    raise CallRejected("no room in here", retry_after=3.0)


@process
def works_on(path: Path) -> None:
    with path.open("a") as pids:
        pids.write(f"{os.getpid()} ")
    time.sleep(600)


@process
def pid() -> int:
    return os.getpid()


@process
def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@process
def spin(mark: str = "") -> None:
    """Never ends, and never looks."""
    if mark:
        Path(mark).write_text(str(os.getpid()))
    while True:
        pass


@process
def ignores_signals(mark: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Path(mark).write_text(str(os.getpid()))
    while True:
        time.sleep(60)


@tool(offload="process", on_cancel="wait")
def polite(mark: str) -> None:
    """Never ends, unless it is told to."""
    Path(mark).write_text(str(os.getpid()))
    while True:
        check_cancelled()
        time.sleep(0.002)


@tool(offload="process", on_cancel="wait")
def late(seconds: float) -> str:
    time.sleep(seconds)
    return "late"


@tool(offload="process", on_cancel="wait")
def deaf(mark: str) -> None:
    Path(mark).write_text(str(os.getpid()))
    while True:
        time.sleep(60)


@process
def forks(mark: str) -> None:
    """Starts a child, a grandchild in a session of its own, and a program, and never ends."""
    with Path(mark).open("a") as file:
        if os.fork() == 0 and os.fork() == 0:
            os.setsid()
        else:
            print(subprocess.Popen(["sleep", "1000"]).pid, file=file, flush=True)
        print(os.getpid(), file=file, flush=True)
        while True:
            time.sleep(60)


FORKS = 5  # processes that it makes of itself, with itself


@process
def holds_the_interpreter(mark: str) -> None:
    """Busy in C, which neither lets other threads run nor looks for signals."""
    Path(mark).write_text(str(os.getpid()))
    sum(range(10**15))


@process
def leaves_a_fork(mark: str) -> str:
    """Returns in both: the copy must not answer."""
    if (child := os.fork()) != 0:
        Path(mark).write_text(str(child))
        os.waitpid(child, 0)
    return "once"


@process
def leaves_a_child_behind() -> int:
    return subprocess.Popen(["sleep", "1000"]).pid


@process
def exits(code: int) -> None:
    os._exit(code)


@process
def sys_exits() -> None:
    sys.exit("enough")


@process
def interrupts() -> None:
    raise KeyboardInterrupt


@process
def segfaults() -> None:
    ctypes.string_at(0)


@process
def kills_itself(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


@process
def closes_everything() -> None:
    os.closerange(3, 1000)


class OddError(ConnectionError):
    """Pickles into nothing that can be loaded again."""

    def __init__(self, host: str, *, port: int) -> None:
        super().__init__(f"{host}:{port}")


class Unloadable:
    """Goes into a pickle and does not come out of it."""

    def __reduce__(self) -> Any:
        return (_refuse, ())


def _refuse() -> None:
    raise RuntimeError("not here")


@process
def fails(kind: str) -> None:
    if kind == "plain":
        error = LookupError("no such thing")
        error.add_note("the tool's own note")
        raise error
    if kind == "odd":
        raise OddError("here", port=80)
    if kind == "chained":
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first
    raise ExceptionGroup("several", [ValueError(1), TypeError(2)])


@process
def returns_a_lock() -> Any:
    return threading.Lock()


@process
def returns_unloadable() -> Any:
    return Unloadable()


@process
def takes(thing: Any) -> str:
    return type(thing).__name__


@process
def numbers(count: int) -> Iterator[int]:
    yield from range(count)


@process
def tells(n: int) -> int:
    for done in range(n):
        progress(done + 1, n, "working", lock=threading.Lock() if done == 0 else None)
    return n


@process
def where() -> str:
    try:
        current()
    except RuntimeError as error:
        return str(error)
    return "nothing raised"


@process
def through_the_door(x: int) -> int:
    return int(double.execute(x=x))


@process
def log_line(text: str) -> dict[str, Any]:
    """What structlog makes of a line in the tool."""
    line: dict[str, Any] = {}

    def keep(logger: Any, method: str, event: Any) -> Any:
        line.update(event)
        raise structlog.DropEvent

    processors: list[Any] = [structlog.contextvars.merge_contextvars, call_context, keep]
    structlog.wrap_logger(structlog.PrintLogger(), processors=processors).info(text)
    structlog.contextvars.bind_contextvars(left="behind")
    return line


@process
def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@tool(offload="process", max_memory=200 * 2**20)
def allocate(mib: int) -> int:
    return len(bytearray(mib * 2**20))


@process
def length(data: Any) -> int:
    return len(data)


@process
def repeat(data: bytes, times: int) -> bytes:
    return data * times


@process
def ignores_interrupts() -> tuple[bool, bool, str]:
    return (
        signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        os.getsid(0) == os.getpid(),
        os.readlink("/proc/self/fd/0"),  # noqa: PTH115
    )


class Counter:
    """Counts the instances of its process, and its calls."""

    built = 0

    def __init__(self) -> None:
        type(self).built += 1
        self.calls = 0

    def execute(self, **kwargs: Any) -> dict[str, int]:
        self.calls += 1
        return {"pid": os.getpid(), "built": self.built, "calls": self.calls, "x": kwargs["x"]}


class Stubborn:
    def __init__(self) -> None:
        raise OSError("no model here")

    def execute(self, x: int) -> int:
        return x


class Slow:
    def __init__(self) -> None:
        time.sleep(60)

    def execute(self, x: int) -> int:
        return x


class Request(BaseModel):
    text: str
    times: int = 2


class Service:
    def run(self, request: Request) -> dict[str, Any]:
        return {"status": "ok" if request.text else "error", "value": request.text * request.times}


def error_of(raw: dict[str, Any]) -> str | None:
    return "no text" if raw["status"] == "error" else None


def value_of(raw: dict[str, Any]) -> str:
    return f"{raw['value']} by {os.getpid()}"


def build_service() -> Service:
    return Service()


counter = ToolAdapter(factory=Counter, params=["x"], offload="process")
stubborn = ToolAdapter(factory=Stubborn, offload="process")
slow_to_build = ToolAdapter(factory=Slow, offload="process", policy=Policy(timeout=0.3))
service = ToolAdapter(
    factory=build_service, method="run", inputs=Request, error_when=error_of, returns=value_of, offload="process",
    name="service",
)  # fmt: skip


def plain(x: int) -> int:
    return x + os.getpid() * 0


made = tool(plain, offload="process", name="made")
NOT_A_TOOL = 3
