"""SIGINT and SIGTERM in real processes, on every event loop."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from kgas_async._signals import SignalWatch

from .programs import LOOPS, Program
from .test_evidence import Records, check_whole, ends, named, only

on_every_loop = pytest.mark.parametrize("loop", LOOPS)


def evidence(folder: Path) -> Records:
    return [json.loads(line) for line in (folder / "evidence.jsonl").read_text().splitlines()]


# --- without signals=


CANCELLED = """
    async def main():
        try:
            async with ServiceManager(evidence="evidence.jsonl", log=None) as manager:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(manager.execute, forever)
                    tasks.start_soon(manager.execute, polite)
                    tasks.start_soon(manager.outcome, forever.using(timeout=50))
                    manager.submit(polite)
                    await anyio.sleep(0.2)
                    say("ready")
                    try:
                        await anyio.sleep_forever()
                    finally:
                        say("the body ended")
        finally:
            say("left", sorted(thread.name for thread in threading.enumerate()))

    raised(main)
    say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    time.sleep(0.05)
    say(threading.active_count())
"""


@on_every_loop
def test_ctrl_c_cancels_the_session_and_comes_out_bare_on_leaving(tmp_path: Path, loop: str) -> None:
    with Program(CANCELLED, loop=loop, cwd=tmp_path) as program:
        program.until("ready")
        program.kill()
        first, left, raised, restored, threads = program.rest()
    assert first == "the body ended"
    assert left == "left ['MainThread']"
    assert raised == "raised KeyboardInterrupt()"
    assert (restored, threads) == ("True", "1")
    records = evidence(tmp_path)
    check_whole(records)
    assert [record["status"] for record in ends(records)] == ["cancelled"] * 4
    assert only(named(records, "session.signal"))["signal"] == "SIGINT"
    assert only(named(records, "session.ended"))["status"] == "cancelled"


MOMENTS = {
    "while a service starts": """
        class Slow(Service):
            @asynccontextmanager
            async def running(self):
                say("ready")
                await anyio.sleep_forever()
                yield

        async def main():
            async with ServiceManager(Slow(), log=None):
                pass
    """,
    "while a service stops": """
        class Slow(Service):
            @asynccontextmanager
            async def running(self):
                yield
                say("ready")
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.3)

        async def main():
            async with ServiceManager(Slow(), log=None):
                pass
    """,
    "while leaving waits for a thread": """
        async def main():
            async with ServiceManager(log=None) as manager:
                manager.submit(deaf, seconds=0.3)
                say("ready")
    """,
    "while leaving after an error": """
        async def main():
            async with ServiceManager(log=None) as manager:
                manager.submit(deaf, seconds=0.3)
                await anyio.sleep(0.05)
                say("ready")
                raise LookupError
    """,
    "while leaving in a cancelled scope": """
        async def main():
            with anyio.CancelScope() as scope:
                async with ServiceManager(log=None) as manager:
                    manager.submit(deaf, seconds=0.3)
                    await anyio.sleep(0.05)
                    say("ready")
                    scope.cancel()
            say("not interrupted")
    """,
    "while the body runs without a call": """
        async def main():
            async with ServiceManager(log=None):
                say("ready")
                await anyio.sleep_forever()
    """,
    "inside a map": """
        async def main():
            async with ServiceManager(log=None) as manager:
                async with manager.map(nap, range(10**9), arg="x") as outcomes:
                    async for outcome in outcomes:
                        if outcome.index == 100:
                            say("ready")
    """,
    "inside a manager inside a manager": """
        async def main():
            async with ServiceManager(log=None):
                async with ServiceManager(log=None) as inner:
                    say("ready")
                    await inner.execute(forever)
    """,
    "after an inner manager was left": """
        async def main():
            async with ServiceManager(log=None) as outer:
                async with ServiceManager(log=None, signals=True) as inner:
                    await inner.execute(nap, x=1)
                say("ready")
                await outer.execute(forever)
    """,
    "after the manager was left": """
        async def main():
            async with ServiceManager(log=None) as manager:
                await manager.execute(nap, x=1)
            say("ready")
            await anyio.sleep(30)
    """,
}


@on_every_loop
def test_ctrl_c_comes_out_bare_whenever_it_comes(loop: str) -> None:
    code = "".join(dedent(moment) + "raised(main)\n" for moment in MOMENTS.values())
    with Program(code, loop=loop) as program:
        for moment in MOMENTS:
            program.until("ready")
            program.kill()
            assert program.line() == "raised KeyboardInterrupt()", moment
        assert program.code() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_ctrl_c_goes_before_a_native_cancellation_that_arrives_while_leaving(loop: str) -> None:
    code = """
    import asyncio

    begun = threading.Event()

    @tool
    def says_when() -> None:
        begun.set()
        time.sleep(1)

    async def inner():
        async with ServiceManager(log=None) as manager:
            await manager.execute(says_when)

    async def main():
        task = asyncio.ensure_future(inner())
        while not begun.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.05)
        say("ready")
        await task

    raised(main)
    """
    with Program(code, loop=loop) as program:
        program.until("ready")
        program.kill()
        assert program.rest() == ["raised KeyboardInterrupt()"]


@on_every_loop
def test_a_deaf_thread_is_abandoned_after_its_grace_and_named(tmp_path: Path, loop: str) -> None:
    code = """
    async def main():
        async with ServiceManager(evidence="evidence.jsonl", log=None, grace=0.2) as manager:
            manager.submit(deaf)
            await anyio.sleep(0.1)
            say("ready")
            await anyio.sleep_forever()

    raised(main)
    """
    with Program(code, loop=loop, cwd=tmp_path) as program:
        program.until("ready")
        began = time.monotonic()
        program.kill()
        assert program.rest() == ["raised KeyboardInterrupt()"]
        assert program.code() == 0
        assert time.monotonic() - began < 5
    records = evidence(tmp_path)
    end = only(ends(records))
    assert (end["status"], end["abandoned"]) == ("cancelled", True)
    assert only(named(records, "session.ended"))["abandoned"] == [end["call_id"]]


@on_every_loop
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_users_own_handler_is_left_alone(loop: str, number: signal.Signals) -> None:
    code = f"""
    number = signal.Signals({int(number)})
    mine = lambda number, frame: say("mine")
    signal.signal(number, mine)

    async def main():
        async with ServiceManager(log=None) as manager:
            say(signal.getsignal(number) is mine)
            say("ready")
            for x in range(10):
                await manager.execute(nap, x=x)

    raised(main)
    say(signal.getsignal(number) is mine)
    """
    with Program(code, loop=loop) as program:
        assert program.line() == "True"
        program.until("ready")
        program.kill(number)
        assert program.rest() == ["mine", "raised nothing", "True"]


@on_every_loop
def test_handlers_of_before_are_there_again_however_the_manager_is_left(loop: str) -> None:
    code = """
    mine = {number: (lambda number, frame: say("mine")) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in mine.items():
        signal.signal(number, handler)

    async def main(how):
        async with ServiceManager(log=None, signals=True) as manager:
            say([signal.getsignal(number) is handler for number, handler in mine.items()])
            if how == "error":
                raise LookupError
            if how == "signal":
                os.kill(os.getpid(), signal.SIGINT)
                await anyio.sleep(0.1)

    for how in ("plainly", "error", "signal"):
        raised(main, how)
        say([signal.getsignal(number) is handler for number, handler in mine.items()])
    """
    with Program(code, loop=loop) as program:
        assert program.rest() == [
            "[False, False]", "raised nothing", "[True, True]",
            "[False, False]", "raised LookupError()", "[True, True]",
            "[False, False]", "raised KeyboardInterrupt()", "[True, True]",
        ]  # fmt: skip


@on_every_loop
def test_outside_the_main_thread_signals_are_left_alone(loop: str) -> None:
    code = """
    release = threading.Event()

    async def main():
        async with ServiceManager(log=None, signals=True) as manager:
            say(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
            while not release.is_set():
                await manager.execute(nap, x=1)

    thread = threading.Thread(target=raised, args=[main])
    thread.start()
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        say("interrupted here")
    release.set()
    thread.join()
    """
    with Program(code, loop=loop) as program:
        program.until("True")
        program.kill()
        assert program.rest() == ["interrupted here", "raised nothing"]


# --- a signal that the loop does not come to any more


class DeadMailbox:
    """Takes callbacks and never makes them."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def put(self, callback: Any) -> bool:
        self.kept.append(callback)
        return True


def test_a_signal_that_came_too_late_is_told_on_closing_and_not_twice() -> None:
    mailbox, told = DeadMailbox(), []
    before = signal.getsignal(signal.SIGTERM)
    watch = SignalWatch(mailbox, lambda *args: told.append(args), all_signals=True)  # type: ignore[arg-type]
    watch.open()
    try:
        signal.raise_signal(signal.SIGTERM)
        mailbox.kept.pop(0)()
        assert told == [(signal.SIGTERM, 1)]
        signal.raise_signal(signal.SIGTERM)
    finally:
        late = watch.close()
    assert late == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    mailbox.kept.pop(0)()  # the loop comes to it after all
    assert told == [(signal.SIGTERM, 1)]
    assert watch.close() is None
