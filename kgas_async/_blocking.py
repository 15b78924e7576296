"""The blocking door of a manager: an event loop in a thread of its own, for scripts and notebooks.

Requests go in through the loop's mailbox, answers come out through a `Reply`; not AnyIO's portal, which hangs with
trio inside trio. Knows the manager only as what it calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from contextvars import Context
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, Self

import anyio

from ._blocking_calls import BlockingCall, BlockingOpening, BlockingOptions
from ._drive import drive
from ._errors import CallCancelled, ManagerClosed
from ._health import HealthReport
from ._mailbox import Mailbox, nested_context
from ._outcome import Outcome
from ._pipeline import Pipeline
from ._report import ManagerStatistics, RunReport
from ._stream import LEFT
from ._suggest import extra_hint, nearest, suggests
from ._threads import Reply, current_ident, start_daemon

__all__ = ["BlockingCall", "BlockingManager", "BlockingOptions"]

TAKE_MANY = 64  # outcomes per hop between the threads


class _Async(Protocol):
    """The manager behind the door."""

    async def __aenter__(self) -> Any: ...
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None, /
    ) -> Any: ...


class BlockingManager(BlockingOptions):
    """What ``ServiceManager(...).blocking()`` gives: enter it with ``with``; each method waits for its result.

    Ctrl-C while waiting cancels what is waited for, and is raised when that has ended.
    """

    def __init__(self, manager: _Async, backend: str, backend_options: dict[str, Any] | None) -> None:
        super().__init__(self, manager)
        _check_backend(backend, backend_options or {})
        self._manager: Any = manager
        self._was_open = False
        self._backend = backend
        self._backend_options = backend_options or {}
        self._mailbox: Mailbox | None = None
        self._stop: anyio.Event | None = None
        self._task_group: Any = None
        self._ended = Reply()
        self._exc_info: Any = (None, None, None)
        self._thread: Any = None
        self._asked: set[_Request] = set()  # without an answer
        self._entering: Mailbox | None = None  # of the loop, also before the manager is open
        self._interrupted = False  # while entering

    def __enter__(self) -> Self:
        ready = Reply()
        self._ended = Reply()
        self._entering, self._interrupted = None, False

        def run() -> None:
            try:
                anyio.run(self._main, ready, backend=self._backend, backend_options=self._backend_options)
            except BaseException as error:  # noqa: BLE001  (raised in the thread that waits)
                self._ended.give(error=error)
                ready.give(error=error)
            else:
                self._ended.give()
            for request in list(self._asked):  # what the loop took and did not come to any more
                request.answer(error=ManagerClosed("the manager's event loop has ended"))

        self._thread = start_daemon(run, "kgas-blocking")
        try:
            ready.wait()
        except Exception:
            self._thread.join()
            raise
        except KeyboardInterrupt:
            self._interrupted = True
            if self._entering is not None:
                self._entering.put(self._abort)
            with suppress(Exception):  # the interrupt is what is raised
                self._ended.wait()
                self._thread.join()
            raise
        return self

    def _abort(self) -> None:
        if self._task_group is not None:
            self._task_group.cancel_scope.cancel()

    async def _main(self, ready: Reply) -> None:
        stop = self._stop = anyio.Event()
        error: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            self._task_group = tasks
            self._entering = Mailbox.here()
            if self._interrupted:
                self._abort()
            try:
                async with self._manager:
                    self._mailbox = Mailbox.here()
                    self._was_open = True
                    ready.give()
                    await stop.wait()
                    if self._exc_info[1] is not None:
                        await self._manager.cancel(reason="the with block was left by an error")
            except (Exception, KeyboardInterrupt, SystemExit) as caught:  # noqa: BLE001  (raised outside of the group)
                error = caught
            self._task_group = None
            tasks.cancel_scope.cancel()
        self._mailbox = None
        if error is not None:
            raise error

    if not TYPE_CHECKING:

        def _refuse_async(self, *arguments: object) -> NoReturn:
            raise TypeError(
                "write 'with ServiceManager(...).blocking() as manager:'; in async code "
                "'async with ServiceManager(...) as manager:', without blocking()"
            )

        __aenter__ = __aexit__ = _refuse_async

    def __exit__(self, *exc_info: object) -> None:
        self._exc_info = exc_info
        mailbox, stop = self._mailbox, self._stop
        if mailbox is not None and stop is not None:
            mailbox.put(stop.set)
        try:
            self._ended.wait()
        except KeyboardInterrupt:
            if mailbox is not None:
                self._post(mailbox, _Request(self._manager.cancel, (None, "interrupted"), Context()))
            with suppress(Exception):  # the interrupt is what is raised
                self._ended.wait()
            raise
        finally:
            self._mailbox = None
            if self._ended.given:
                self._thread.join()

    def _post(self, mailbox: Mailbox, request: _Request) -> bool:
        """Have a request run on the loop; its answer will come. False if the loop has ended."""

        def start() -> None:
            if self._task_group is not None:
                self._task_group.start_soon(request.run)
            else:
                request.answer(error=ManagerClosed("the manager was closed while it was asked"))

        self._asked.add(request)
        return mailbox.put(start)

    def _ask(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Run an async function on the loop, in a copy of this thread's context, and wait for it."""
        mailbox = self._mailbox
        if mailbox is None:
            was = "was closed" if self._was_open else "is not open"
            raise ManagerClosed(f"the manager {was}; use it inside 'with ServiceManager().blocking() as manager:'")
        if self._thread.ident == current_ident():
            raise RuntimeError(
                "this is the thread of the manager's own event loop, which would wait for itself; in a tool use "
                "'await current().execute(...)'"
            )
        request = _Request(function, args, nested_context(mailbox.backend))
        try:
            if not self._post(mailbox, request):
                raise ManagerClosed("the manager's event loop has ended")
            return request.reply.wait()
        except KeyboardInterrupt:
            mailbox.put(request.cancel)
            request.wait_for_end()
            raise
        finally:
            self._asked.discard(request)

    # --- the manager's names

    def options(self, **options: Any) -> BlockingOptions:
        """As ``ServiceManager.options``."""
        return BlockingOptions(self, self._manager.options(**options))

    @suggests
    def map(self, tool: Any, inputs: Any, **options: Any) -> BlockingOpening:
        """As ``ServiceManager.map``, over a plain iterator; the inputs are pulled in the loop's thread."""
        opening = self._manager.map(tool, inputs, **options)
        return BlockingOpening("manager.map", self._iterating(opening))

    @suggests
    def stream(self, pipeline: Pipeline, items: Any, **options: Any) -> BlockingOpening:
        """As ``ServiceManager.stream``, over a plain iterator; the items are pulled in the loop's thread."""
        opening = self._manager.stream(pipeline, items, **options)
        return BlockingOpening("manager.stream", self._iterating(opening))

    @contextmanager
    def _iterating(self, context: AbstractAsyncContextManager[Any]) -> Iterator[Iterator[Outcome[Any]]]:
        entered: list[AbstractAsyncContextManager[Any]] = []

        async def enter() -> Any:
            stream = await context.__aenter__()
            entered.append(context)
            return stream

        try:
            yield self._outcomes(self._ask(enter), entered)
        finally:
            if entered:  # also where Ctrl-C came while it was entered
                self._ask(entered.pop().__aexit__, None, None, None)

    def _outcomes(self, stream: Any, entered: list[Any]) -> Iterator[Outcome[Any]]:
        some: list[Outcome[Any]] = []
        while True:
            if not entered:
                raise RuntimeError(LEFT)
            if not some:
                some = self._ask(stream.take_some, TAKE_MANY)[::-1]
                if not some:
                    return
            yield some.pop()

    @suggests
    def run(self, pipeline: Pipeline, items: Any, **options: Any) -> RunReport:
        """As ``ServiceManager.run``; the items are pulled in the loop's thread."""
        report: RunReport = self._ask(lambda: self._manager.run(pipeline, items, **options))
        return report

    @suggests
    def gather(self, tools: Any, inputs: Any = None, on_error: str = "raise") -> dict[str, Any]:
        """As ``ServiceManager.gather``."""
        results: dict[str, Any] = self._ask(lambda: self._manager.gather(tools, inputs, on_error))
        return results

    @suggests
    def race(self, tools: Any, inputs: Any = None) -> Outcome[Any]:
        """As ``ServiceManager.race``."""
        outcome: Outcome[Any] = self._ask(lambda: self._manager.race(tools, inputs))
        return outcome

    def start(self, service: Any) -> None:
        """As ``ServiceManager.start``."""
        self._ask(self._manager.start, service)

    def health(self) -> HealthReport:
        """As ``ServiceManager.health``."""
        report: HealthReport = self._ask(self._manager.health)
        return report

    def drain(self) -> None:
        """As ``ServiceManager.drain``."""
        self._ask(self._manager.drain)

    def cancel(self, id: str | None = None, reason: str = "") -> bool:  # noqa: A002
        """As ``ServiceManager.cancel``."""
        return bool(self._ask(lambda: self._manager.cancel(id, reason)))

    def find(self, id: str) -> BlockingCall | None:  # noqa: A002
        """As ``ServiceManager.find``."""

        async def find() -> Any:
            return self._manager.find(id)

        call = self._ask(find)
        return None if call is None else BlockingCall(self, call)

    @property
    def calls(self) -> Mapping[str, BlockingCall]:
        """As ``ServiceManager.calls``."""

        async def calls() -> Mapping[str, Any]:
            found: Mapping[str, Any] = self._manager.calls
            return found

        return {id: BlockingCall(self, call) for id, call in self._ask(calls).items()}  # noqa: A001

    @property
    def session_id(self) -> str:
        """As of `ServiceManager`."""

        async def session_id() -> str:
            found: str = self._manager.session_id
            return found

        result: str = self._ask(session_id)
        return result

    def statistics(self) -> ManagerStatistics:
        """As ``ServiceManager.statistics``."""

        async def statistics() -> ManagerStatistics:
            found: ManagerStatistics = self._manager.statistics()
            return found

        result: ManagerStatistics = self._ask(statistics)
        return result


def _check_backend(backend: object, options: dict[str, Any]) -> None:
    if backend == "uvloop":
        raise ValueError("uvloop is an option of asyncio: blocking(backend_options={'use_uvloop': True})")
    if backend not in ("asyncio", "trio"):
        raise ValueError(f"backend= is 'asyncio' or 'trio', not {backend!r}{nearest(backend, ('asyncio', 'trio'))}")
    if options.get("use_uvloop") and find_spec("uvloop") is None:
        raise ModuleNotFoundError(f"uvloop is not installed; {extra_hint('uvloop')}", name="uvloop")


class _Request:
    """One question to the loop's thread."""

    def __init__(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], context: Context) -> None:
        self._function = function
        self._args = args
        self._context = context
        self.reply = Reply()
        self._scope: anyio.CancelScope | None = None
        self._is_cancelled = False

    def cancel(self) -> None:
        """On the loop. Also before it has begun."""
        self._is_cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    def answer(self, value: Any = None, error: BaseException | None = None) -> None:
        """Answer, unless it has an answer."""
        if not self.reply.given:
            self.reply.give(value, error)

    async def run(self) -> None:
        value: Any = None
        failed: BaseException | None = None
        try:
            with anyio.CancelScope() as self._scope:
                if self._is_cancelled:
                    self._scope.cancel()
                try:
                    value = await drive(self._function(*self._args), self._context)
                except StopAsyncIteration:
                    value = None
                except Exception as error:  # noqa: BLE001  (raised in the thread that waits)
                    failed = error
            if self._scope.cancelled_caught:
                failed = CallCancelled("interrupted")
        except BaseException as error:
            failed = ManagerClosed("the manager was closed while it was waited for")
            failed.__cause__ = error
            raise
        finally:
            self.answer(value, failed)

    def wait_for_end(self) -> None:
        """Wait for the answer, whatever it is."""
        with suppress(Exception):  # the interrupt is what is raised
            self.reply.wait()
