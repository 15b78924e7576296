"""The hand-over from any thread to the event loop, and what else must know which event loop runs.

A `Mailbox` belongs to one event loop and takes callbacks from any thread without blocking it; a `Gate` is what one
task waits at. The only module of the core that imports asyncio and trio.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from itertools import count
from threading import get_ident
from time import monotonic
from types import FrameType
from typing import Any
from weakref import ref

import anyio
import sniffio
import trio
from anyio.lowlevel import RunVar, checkpoint

__all__ = [
    "Gate",
    "Mailbox",
    "NativeCancels",
    "OpenScopes",
    "absorb_own_cancel",
    "cancels_pending",
    "context_in",
    "is_on_loop",
    "is_self_inflicted",
    "leave_loop",
    "nested_context",
]

_library = sniffio.current_async_library_cvar
_serials = count(1)


def leave_loop(context: Context) -> None:
    """Make a context fit for a thread of ours, which is outside any event loop whatever it inherits."""
    context.run(_library.set, None)


class Gate(ABC):
    """Closed until it is opened, once; one task at a time waits at it. On the loop.

    For the hot paths, where an AnyIO event would cost several times as much. `Mailbox.gate()` makes the right kind for
    its loop. Waiting at an open gate is no checkpoint.
    """

    __slots__ = ("_is_open",)

    def __init__(self) -> None:
        self._is_open = False

    def is_set(self) -> bool:
        """Whether it is open."""
        return self._is_open

    @abstractmethod
    def set(self) -> None:
        """Open it."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait until it is open.

        Cancellation: Stops waiting.
        """


class _AsyncioGate(Gate):
    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_open = False
        self._loop = loop
        self._future: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_open = True
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    async def wait(self) -> None:
        if not self._is_open:
            self._future = self._loop.create_future()
            await self._future


class _TrioGate(Gate):
    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._is_open = False
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        self._is_open = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        if not self._is_open:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class Mailbox:
    """Takes callbacks from any thread and runs them on one event loop; never blocks the one who puts.

    One per event loop: `here()` gives that of the running loop. ``busy`` counts the works handed to our threads that
    have not ended, less those that wait in a nested call: virtual time stands still while it is above zero.
    """

    __slots__ = (
        "__weakref__",
        "_awake",
        "_home",
        "_post",
        "_queue",
        "_running",
        "backend",
        "busy",
        "closed",
        "gate",
        "ident",
        "now",
        "offset",
        "on_busy",
        "serial",
        "task",
        "time",
    )

    def __init__(self) -> None:
        self.backend = sniffio.current_async_library()
        self.ident = get_ident()
        self.serial = next(_serials)  # tells this loop's clock from others'
        self.busy = 0
        self.on_busy: Callable[[int], None] | None = None
        self.closed = False
        self._awake = False
        self._queue: deque[Callable[[], object]] = deque()
        self._post: Callable[[Callable[[], None]], object]
        self.gate: Callable[[], Gate]
        if self.backend == "trio":
            self._post = trio.lowlevel.current_trio_token().run_sync_soon
            home: object = trio.lowlevel.current_clock()
            self.gate = _TrioGate
            self.task: Callable[[], object] = trio.lowlevel.current_task  # by which code on the loop knows itself
            self.now: Callable[[], float] = trio.current_time  # on the loop: `anyio.current_time` without its look-up
            self._running: Callable[[], object] = _running_trio
            self._home: object = trio.lowlevel.current_trio_token()
        else:
            loop = asyncio.get_running_loop()
            context = copy_context()
            # A posted callback has no current task, by which sniffio knows asyncio; without this, start_soon() fails.
            context.run(_library.set, self.backend)
            self._post = lambda callback: loop.call_soon_threadsafe(callback, context=context)
            home = loop
            self.task = asyncio.current_task
            plain = type(loop).time is asyncio.BaseEventLoop.time
            self.now = monotonic if plain else loop.time  # which is the same, in Python
            self._running, self._home = asyncio._get_running_loop, loop
            self.gate = partial(_AsyncioGate, loop)
        # A clock that threads can read; virtual ones (kgas_async.testing) stand still while our threads work.
        self.time: Callable[[], float] = monotonic
        adopt = getattr(home, "adopt_mailbox", None)
        if adopt is not None:
            self.time = _clock_of(home)
            adopt(self)
        self.offset = self.now() - self.time()  # of the loop's time over that clock's

    @staticmethod
    def here() -> Mailbox:
        """The mailbox of the running event loop."""
        known = _mailbox.get(None)
        mailbox = None if known is None else known()
        if mailbox is None:
            mailbox = Mailbox()
            _mailbox.set(ref(mailbox))
        return mailbox

    @property
    def is_virtual(self) -> bool:
        """Whether the loop's time is none that passes in the world outside."""
        return self.time is not monotonic

    def is_running_here(self) -> bool:
        """Whether this code runs on its event loop; another may run in that loop's thread after it."""
        return self._running() is self._home

    def is_here(self) -> bool:
        """Whether this is the thread of its event loop."""
        return get_ident() == self.ident

    def check_here(self, what: str) -> None:
        """
        Raises:
            RuntimeError: This is another thread, with the mend; nothing was done.
        """
        if get_ident() != self.ident:
            raise RuntimeError(
                f"{what}: the manager's event loop runs in another thread; in a sync tool use 'tool.execute(...)', "
                f"in a program without a loop 'with ServiceManager(...).blocking() as manager:'"
            )

    def put(self, callback: Callable[[], object]) -> bool:
        """Have ``callback`` called on the loop, in order; it must not raise. False if the loop has ended."""
        if self.closed:
            return False
        self._queue.append(callback)
        if self._awake:
            return True  # one wake-up for many
        self._awake = True
        try:
            self._post(self._drain)
        except RuntimeError:  # trio.RunFinishedError is one: the loop has ended
            self.closed = True
            return False
        return True

    def _drain(self) -> None:
        self._awake = False  # before popping: a later append makes its own wake-up
        queue = self._queue
        while queue:
            queue.popleft()()

    def add_busy(self, change: int) -> None:
        """Count works handed over (1) or ended (-1), or say that one was told to end (0); on the loop only."""
        self.busy += change
        if self.on_busy is not None:
            self.on_busy(self.busy)


def _clock_of(home: Any) -> Callable[[], float]:
    """The clock of a virtual loop: `time` on asyncio, `current_time` on trio."""
    clock: Callable[[], float] = home.current_time if hasattr(home, "current_time") else home.time
    return clock


# Weakly: AnyIO keeps the values for as long as their loop lives, and a mailbox refers to its loop.
def _running_trio() -> object:
    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None


_mailbox: RunVar[ref[Mailbox]] = RunVar("kgas_async_mailbox")


def is_on_loop() -> bool:
    """Whether this thread runs an event loop now; not whether its context comes from one (``asyncio.to_thread``)."""
    if trio.lowlevel.in_trio_run():
        return True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def nested_context(backend: str) -> Context:
    """A copy of the context, be it a worker thread's, that is fit to begin a task on the loop in."""
    context = copy_context()
    context.run(_library.set, backend)
    return context


def context_in(frame: FrameType) -> Context | None:
    """The context of the task that an event loop runs in this frame; None if it is no loop's frame that does so.

    For other threads that look at what blocks the loop. Where what is read here is not there (uvloop has no frames, and
    names inside the loops may change), nothing is ever found.
    """
    name, module = frame.f_code.co_name, frame.f_globals.get("__name__")
    found: Any = None
    if (module, name) == ("asyncio.events", "_run"):
        found = getattr(frame.f_locals.get("self"), "_context", None)
    elif (module, name) == ("trio._core._run", "unrolled_run"):
        found = getattr(frame.f_locals.get("task"), "context", None)
    return found if isinstance(found, Context) else None


def cancels_pending() -> Callable[[], int] | None:
    """How to ask for asyncio's own cancellations of this task that nobody has taken back; None on trio."""
    if sniffio.current_async_library() == "trio":
        return None
    task = asyncio.current_task()
    return None if task is None else task.cancelling


class NativeCancels:
    """Whether asyncio's own ``task.cancel()`` came since this was made. On trio there is no such thing."""

    def __init__(self) -> None:
        self._count = cancels_pending()
        self._before = self._count() if self._count is not None else 0

    def swallowed(self) -> BaseException | None:
        """The cancellation to raise, where one came that is no scope's (those are raised again by themselves)."""
        if self._count is None or self._count() <= self._before or anyio.current_effective_deadline() == -math.inf:
            return None
        return anyio.get_cancelled_exc_class()()


def is_self_inflicted(*, owned: bool) -> bool:
    """Whether a cancellation exception was raised by nobody but the tool that it came out of.

    asyncio only: awaiting a task that was cancelled raises ``CancelledError`` though nobody cancelled us, and a tool
    may cancel its own task. In a task of ours (``owned``) the second can be told too, and is taken back.
    """
    if sniffio.current_async_library() == "trio" or anyio.current_effective_deadline() == -math.inf:
        return False
    task = asyncio.current_task()
    if task is None:
        return False
    if owned:
        while task.cancelling():
            task.uncancel()
    return not task.cancelling()


class OpenScopes:
    """The cancel scopes that this task is in, as of now: whether code that it ran has left others open behind it.

    No event loop and no AnyIO tells in public; where what is read here is not there any more, nothing is ever found.
    """

    __slots__ = ("_attribute", "_holder", "_nurseries", "_top")

    def __init__(self) -> None:
        self._nurseries = 0
        if sniffio.current_async_library() == "trio":
            self._holder: Any = trio.lowlevel.current_task()
            self._attribute = "_cancel_status"
            self._nurseries = len(self._holder.child_nurseries)
        else:
            self._holder = _asyncio_task_states().get(asyncio.current_task())
            self._attribute = "cancel_scope"
        self._top = getattr(self._holder, self._attribute, None)

    def has_more(self) -> bool:
        """Whether there are scopes now that were not there then."""
        return getattr(self._holder, self._attribute, None) is not self._top

    async def close_others(self, seconds: float) -> None:
        """Cancel what runs in the scopes that were left open, wait for it, ``seconds`` at the most, and close them."""
        holder, attribute = self._holder, self._attribute
        if attribute == "cancel_scope":
            while (scope := getattr(holder, attribute)) is not self._top:
                scope.cancel()
                with anyio.CancelScope(shield=True, deadline=anyio.current_time() + seconds):
                    while len(scope._tasks) + len(scope._child_scopes) > 1:  # noqa: ASYNC110  (nobody tells us)
                        await anyio.sleep(0.001)
                scope.__exit__(None, None, None)
            return
        while len(holder.child_nurseries) > self._nurseries:
            nursery = holder.child_nurseries[-1]
            nursery.cancel_scope.cancel()
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + seconds):
                while nursery.child_tasks:  # noqa: ASYNC110
                    await anyio.sleep(0.001)
            await nursery._nested_child_finished(None)
        while (status := getattr(holder, attribute)) is not self._top:
            status._scope.__exit__(None, None, None)


def _asyncio_task_states() -> Any:
    from anyio._backends import _asyncio  # noqa: PLC0415  (private: only where asyncio runs)

    return getattr(_asyncio, "_task_states", {})


async def absorb_own_cancel() -> None:
    """A tool cancelled this task, its own, and ended before that came through: it must not hit the next one."""
    try:
        await checkpoint()
    except BaseException:
        if not is_self_inflicted(owned=True):
            raise
    else:  # the tool itself has caught it
        is_self_inflicted(owned=True)
