"""A conformance check for services: what a manager relies on, tried on one service."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from inspect import isawaitable
from typing import Any, Final

import anyio
import anyio.lowlevel

from kgas_async._context import running_manager
from kgas_async._errors import KgasAsyncError, ServiceError, ServiceNotRunning, counted, shown
from kgas_async._evidence_sinks import MemorySink
from kgas_async._health import check_of
from kgas_async._manager import ServiceManager
from kgas_async._service import Service, lifetime, service_name

from ._clean import assert_clean
from ._sweep import sweep

__all__ = ["check_service"]

_IO: Final = ("open", "socket.", "subprocess.", "sqlite3.connect", "os.system", "os.exec", "os.posix_spawn", "_thread.")
_CODE: Final = (".py", ".pyc", ".so", ".pyd")  # opened by imports
_seen: ContextVar[list[str] | None] = ContextVar("kgas_async_io", default=None)
_hooked: list[bool] = []


async def check_service(
    service: Service,
    /,
    *,
    use: Callable[[Any], object] | None = None,
    pickles: bool = True,
    sweeps: bool = True,
    timeout_s: float = 10.0,
) -> None:
    """Try a service out: made without I/O, started, used, asked, stopped, all of it again, and cancelled as it starts.

    Starts and stops it many times (once per suspension point that its start has), with the services that it requires,
    so give it a server that does not mind.

    Args:
        service: The service; not running. It is made again from its constructor's arguments, too.
        use: Uses it, sync or async: must raise `ServiceNotRunning` unless it runs. None: not tried.
        pickles: Whether it must survive pickling while it is not started.
        sweeps: Whether to cancel its start at every suspension point.
        timeout_s: What each start, use and stop may take, in the loop's time.

    Raises:
        TypeError: It is no `Service`.
        AssertionError: With everything that was wrong.

    Cancellation: Stops what runs.
    """
    if not isinstance(service, Service):
        raise TypeError(f"check_service takes an object of a Service, not {service!r}")
    check = _Check(service, use, timeout_s)
    check.made_without_io()
    if pickles:
        check.pickles()
    await check.refuses_use("before its first start")
    for lifetime_of in ("its first lifetime", "its second lifetime"):
        await check.lives(lifetime_of)
        await check.refuses_use(f"after {lifetime_of}")
    if sweeps and not check.problems:  # what is wrong undisturbed would be found again at each point
        await check.cancelled_in_start()
    if check.problems:
        name = f"check_service: {service_name(service)!r} ({type(service).__qualname__}) has"
        lines = "".join(f"\n- {problem}" for problem in check.problems)
        raise AssertionError(f"{name} {counted(len(check.problems), 'problem')}:{lines}")


class _Check:
    def __init__(self, service: Service, use: Callable[[Any], object] | None, timeout_s: float) -> None:
        self.service = service
        self.use = use
        self.timeout_s = timeout_s
        self.problems: list[str] = []

    def made_without_io(self) -> None:
        args, kwargs = self.service._constructed
        seen: list[str] = []
        _hook()
        token = _seen.set(seen)
        try:
            type(self.service)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  (the user's code)
            self.problems.append(
                f"it cannot be made again from its constructor's arguments, which it may not consume: {shown(error)}"
            )
        finally:
            _seen.reset(token)
        if seen:
            self.problems.append(
                f"its constructor does I/O ({', '.join(dict.fromkeys(seen))}); do it in running(), before the yield"
            )

    def pickles(self) -> None:
        try:
            copy = pickle.loads(pickle.dumps(self.service))  # our own bytes
        except Exception as error:  # noqa: BLE001  (the user's code)
            self.problems.append(
                f"it does not survive pickling while it is not started ({shown(error)}); a service pickles by its "
                f"constructor's arguments; or check_service(..., pickles=False)"
            )
        else:
            if type(copy) is not type(self.service):
                self.problems.append(f"it comes out of pickle as a {type(copy).__qualname__}")

    async def refuses_use(self, when: str) -> None:
        if self.use is None:
            return
        try:
            with anyio.fail_after(self.timeout_s):
                await _awaited(self.use(self.service))
        except ServiceNotRunning:
            return
        except Exception as error:  # noqa: BLE001
            what = f"raises {shown(error)}"
        else:
            what = "works"
        self.problems.append(
            f"used {when} it {what}, instead of raising ServiceNotRunning; call self.ensure_running() in its methods"
        )

    async def lives(self, lifetime_of: str) -> None:
        """Start, use, ask, stop; by a manager."""
        sink = MemorySink()
        manager = ServiceManager(self.service, evidence=sink, log=None, grace=self.timeout_s)
        before = {task.id for task in anyio.get_running_tasks()}
        try:
            with anyio.fail_after(3 * self.timeout_s):
                async with manager:
                    await self._while_running(manager, lifetime_of)
        except TimeoutError:
            self.problems.append(f"in {lifetime_of} it does not start, or does not end, within {self.timeout_s:g} s")
        except ServiceError as error:
            self.problems.append(f"in {lifetime_of}: {error}")
        for record in sink.records:
            if record["event"] == "service.failed" and any(one["event"] == "service.started" for one in sink.records):
                error_of = record.get("error", {})
                self.problems.append(
                    f"in {lifetime_of} service {record['service']!r} fails to stop: {error_of.get('type')}: "
                    f"{error_of.get('message')}"
                )
        self._left_nothing(manager, before, lifetime_of)

    async def _while_running(self, manager: ServiceManager, lifetime_of: str) -> None:
        if self.use is not None:
            try:
                await _awaited(self.use(self.service))
            except Exception as error:  # noqa: BLE001
                self.problems.append(f"in {lifetime_of} it runs, and cannot be used: {shown(error)}")
        if check_of(self.service) is not None:
            health = (await manager.health())[service_name(self.service)]
            if health.status != "healthy":
                self.problems.append(f"in {lifetime_of} it runs, and is {health.status}: {shown(health.error)}")

    def _left_nothing(self, manager: ServiceManager, before: set[int], when: str) -> None:
        try:
            assert_clean(manager)
        except AssertionError as error:
            self.problems.append(f"after {when}: {error}")
        left = [task for task in anyio.get_running_tasks() if task.id not in before]
        if left:
            names = ", ".join(task.name or str(task.id) for task in left)
            self.problems.append(
                f"after {when} tasks of it still run: {names}; start them in a task group of running()"
            )

    # --- cancelled in its start

    async def cancelled_in_start(self) -> None:
        requires = self.service.requires
        try:
            async with ServiceManager(*requires, log=None, grace=self.timeout_s) as manager:
                token = running_manager.set(manager)
                try:
                    for point in range(await self._points_of_start()):
                        if not await self._cancelled_at(point):
                            return
                finally:
                    running_manager.reset(token)
        except KgasAsyncError as error:
            self.problems.append(f"as its start is cancelled: {error}")

    async def _points_of_start(self) -> int:
        """How often its start is suspended."""
        started: list[bool] = []
        count = 0

        async def live() -> None:
            async with lifetime(self.service):
                started.append(True)

        @types.coroutine
        def counting(coroutine: Any) -> Generator[Any, Any, None]:
            nonlocal count
            resume, argument = coroutine.send, None
            while True:
                try:
                    step = resume(argument)
                except StopIteration:
                    return
                count += not started
                try:
                    argument = yield step
                    resume = coroutine.send
                except BaseException as error:  # noqa: BLE001  (handed on)
                    resume, argument = coroutine.throw, error

        await counting(live())
        return count

    async def _cancelled_at(self, point: int) -> bool:
        """Cancel the start there, and start it again. Whether it was as it should be."""
        before = {task.id for task in anyio.get_running_tasks()}

        async def live() -> None:
            async with lifetime(self.service):
                pass

        async def check(_point: int) -> None:
            await anyio.lowlevel.checkpoint()
            left = [task for task in anyio.get_running_tasks() if task.id not in before]
            assert not left, "tasks of it still run: " + ", ".join(task.name or str(task.id) for task in left)
            with anyio.fail_after(self.timeout_s):
                await live()

        try:
            await sweep(live, check=check, only=point, timeout_s=self.timeout_s)
        except Exception as error:  # noqa: BLE001
            notes = "; ".join(getattr(error, "__notes__", ()))
            self.problems.append(f"its start was cancelled, and it {_what(error)} ({notes or error})")
            return False
        return True


def _what(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "does not start again in time"
    if isinstance(error, AssertionError):
        return f"did not take it: {error}"
    return f"raises {shown(error)}, then or when it is started again"


async def _awaited(value: object) -> None:
    if isawaitable(value):
        awaitable: Awaitable[object] = value
        await awaitable


def _hook() -> None:
    """Have Python's audit events seen; there is no way to take a hook back, but it does nothing outside of a check."""
    if _hooked:
        return
    _hooked.append(True)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        seen = _seen.get()
        if seen is None or not event.startswith(_IO):
            return
        what = str(args[0]) if args else ""
        if event == "open" and what.endswith(_CODE):
            return
        seen.append(f"{event} {what}" if event in ("open", "sqlite3.connect") else event)

    sys.addaudithook(hook)
