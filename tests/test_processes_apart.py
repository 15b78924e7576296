"""Whole programs with worker processes: their main module again, their end by kill -9 and by Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

from .process_tools import PATIENCE_S, is_running
from .programs import LOOPS, PREAMBLE, Program

on_every_loop = pytest.mark.parametrize("loop", LOOPS)

TOOLS = """
@tool(offload="process")
def square(x: int) -> int:
    return x * x

@tool(offload="process")
def busy_in_c() -> None:
    say("worker", os.getpid())
    sum(range(10**15))

@tool(offload="process")
def forks() -> None:
    if os.fork() == 0:
        os.setsid()
    say("worker", os.getpid())
    while True:
        time.sleep(60)
"""


def program(folder: Path, code: str, loop: str) -> Program:
    path = folder / "program.py"
    path.write_text(PREAMBLE + TOOLS + dedent(code))
    return Program(loop=loop, command=[str(path)], cwd=folder)


def gone(pids: list[int]) -> bool:
    until = time.monotonic() + PATIENCE_S
    while any(is_running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.005)
    return not any(is_running(pid) for pid in pids)


GUARDED = """
    class Point:
        def __init__(self, x):
            self.x = x

    @tool(offload="process")
    def moved(point: Point) -> Point:
        return Point(point.x + 1)

    say("imported as", __name__)

    async def main():
        async with ServiceManager(log=None, processes=1) as manager:
            say(await manager.execute(square, x=7))
            point = await manager.execute(moved, point=Point(1))
            say(type(point) is Point, point.x)

    if __name__ == "__main__":
        raised(main)
"""


@on_every_loop
def test_tools_and_classes_of_the_main_module_travel(tmp_path: Path, loop: str) -> None:
    with program(tmp_path, GUARDED, loop) as running:
        said = ["imported as __main__", "imported as __mp_main__", "49", "True 2", "raised nothing"]
        assert running.rest() == said
        assert running.code() == 0
        assert running.errors() == ""


def test_a_main_module_run_by_its_name(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "program.py").write_text(PREAMBLE + TOOLS + dedent(GUARDED))
    with Program(loop="asyncio", command=["-m", "package.program"], cwd=tmp_path) as running:
        assert running.rest()[-3:] == ["49", "True 2", "raised nothing"]
        assert running.errors() == ""


def test_a_program_without_its_guard_is_told_so_and_runs_once(tmp_path: Path) -> None:
    code = """
        say("begins")

        async def main():
            async with ServiceManager(log=None, processes=1) as manager:
                say((await manager.outcome(square, x=7)).error.__cause__)

        run(main)
    """
    with program(tmp_path, code, "asyncio") as running:
        said = running.rest()
        assert said[:2] == ["begins", "begins"]  # the second as far as the manager, by the worker
        assert "importing the program's main module again raised RuntimeError" in said[2]
        assert said[2].count("if __name__ == '__main__':") == 1
        assert len(said) == 3


def test_a_main_module_that_raises_when_it_is_imported(tmp_path: Path) -> None:
    code = """
        async def main():
            async with ServiceManager(log=None, processes=1) as manager:
                say((await manager.outcome(square, x=7)).error.__cause__)

        if __name__ == "__main__":
            run(main)
        else:
            sys.exit("not again")
    """
    with program(tmp_path, code, "asyncio") as running:
        (said,) = running.rest()
        assert "raised SystemExit: not again" in said


def test_what_no_process_can_import_is_refused_where_it_is_declared() -> None:
    code = """
        def here(x: int) -> int:
            return x

        class Legacy:
            def execute(self, x: int) -> int:
                return x

        for make in (
            lambda: tool(offload="process")(here),
            lambda: ToolAdapter(factory=Legacy, offload="process"),
            lambda: ToolAdapter(os.path.basename, offload="process", returns=here),
        ):
            try:
                say(make())
            except TypeError as error:
                say(error)
    """
    with Program(code) as running:  # python -c
        said = running.rest()
        words = ("the function here", "the factory Legacy", "returns= here")
        assert all(what in one for what, one in zip(words, said, strict=True))
        assert all("is defined in a program that no other process can import" in one for one in said)
        assert all("put it into a module of its own, or use offload='thread'" in one for one in said)


KILLED = """
    async def main():
        async with ServiceManager(log=None, processes=3) as manager:
            manager.submit(square, x=1)
            manager.submit(busy_in_c)
            manager.submit(forks)
            await anyio.sleep_forever()

    if __name__ == "__main__":
        run(main)
"""


@on_every_loop
def test_kill_9_of_the_program_leaves_no_worker_and_nothing_that_it_forked(tmp_path: Path, loop: str) -> None:
    with program(tmp_path, KILLED, loop) as running:
        pids = [int(running.line().removeprefix("worker ")) for _ in range(3)]
        family = {child.pid for child in psutil.Process(running.process.pid).children(recursive=True)}
        assert set(pids) <= family
        assert len(family) == 5  # an idle worker and the guard too
        running.kill(signal.SIGKILL)
        running.code()
        assert gone(list(family))


@on_every_loop
def test_ctrl_c_at_the_whole_group_kills_by_way_of_the_manager(tmp_path: Path, loop: str) -> None:
    code = """
        async def main():
            async with ServiceManager(evidence="evidence.jsonl", log=None, processes=2) as manager:
                manager.submit(forks)
                manager.submit(busy_in_c)
                await anyio.sleep_forever()

        if __name__ == "__main__":
            raised(main)
    """
    with program(tmp_path, code, loop) as running:
        pids = [int(running.line().removeprefix("worker ")) for _ in range(3)]
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.rest() == ["raised KeyboardInterrupt()"]
        assert not any(is_running(pid) for pid in pids)
        assert running.code() == 0
        assert running.errors() == ""  # no worker has seen it
    record = (tmp_path / "evidence.jsonl").read_text()
    assert record.count('"event":"call.cancelled"') == 2


def test_a_first_signal_lets_calls_in_processes_end(tmp_path: Path) -> None:
    code = """
        @tool(offload="process")
        def nap(x: int) -> int:
            say("began")
            time.sleep(0.5)
            return x

        async def main():
            async with ServiceManager(log=None, processes=1, signals=True) as manager:
                call = manager.submit(nap, x=7)
                try:
                    say(await call.result())
                finally:
                    say("ended")

        if __name__ == "__main__":
            raised(main)
    """
    with program(tmp_path, code, "asyncio") as running:
        running.until("began")
        running.kill()
        assert running.rest() == ["7", "ended", "raised KeyboardInterrupt()"]


def test_exit_handlers_run_in_a_worker_that_ends_idle(tmp_path: Path) -> None:
    code = """
        import atexit

        @tool(offload="process")
        def registers() -> None:
            atexit.register(say, "bye")

        async def main():
            async with ServiceManager(log=None, processes=1) as manager:
                await manager.execute(registers)
                say("leaving")
            say("left")

        if __name__ == "__main__":
            raised(main)
    """
    with program(tmp_path, code, "trio") as running:
        assert running.rest() == ["leaving", "bye", "left", "raised nothing"]
