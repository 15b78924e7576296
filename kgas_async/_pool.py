"""`Pool`: resources that are made when they are needed, used by one or by many, checked, and closed in time.

What the user of a pool sees; who gets which resource is `_pool_core`'s decision, their lives are `_pool_motion`'s.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Generic, TypedDict, TypeVar, Unpack, overload

import anyio
import anyio.lowlevel

from ._context import current_call, current_manager, current_work
from ._errors import CallAborted, shown
from ._limits import check_count, check_seconds, check_text
from ._mailbox import is_on_loop
from ._pool_core import Entry, PoolBounds, PoolCore, PoolStatistics, Waiter
from ._pool_motion import NO_KEY, Motion, factory_name, wants_key
from ._service import Service
from ._suggest import suggests
from ._threads import Reply, current_ident

__all__ = ["Lease", "Pool"]

T = TypeVar("T")
Errors = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]


class PoolOptions(TypedDict, Generic[T], total=False):
    """What `Pool` takes beyond its factory and its size."""

    users: int | None
    timeout: float | None
    close: Callable[[T], object] | None
    check: Callable[[T], object] | None
    drop_on: Errors | None
    max_age: float | None
    max_uses: int | None
    max_idle: float | None
    max_bytes: int | None
    cost: Callable[[Any], int] | int | None
    same_thread: bool
    name: str | None


class Pool(Service, Generic[T]):
    """Resources that tools use, made when they are needed: ``async with pool.acquire() as connection``.

    A service: give it to a manager, or to the tools that use it. In a sync tool, in its worker thread, it is ``with
    pool.acquire() as connection``. Who waits is served in order.

    Args:
        factory: Makes a resource: a plain function (called in a reserved thread), an async function, or what gives an
            async context manager, which is entered and, in the same task, left. What is awaitable is awaited. If
            `acquire` is given a key, so is the factory.
        size: How many there are at the most, with those that are being made or closed.
        users: How many may use one at once: 1; None: any number, for what can be shared, such as a model.
        timeout: Seconds to wait for one, and that the factory has; None is no limit.
        close: Called with a resource at its end; plain or async, as the factory. With it, an async context manager is
            not entered. It has a third of the manager's grace.
        check: Called with a resource that lay idle, before it is handed out; raises where it is no good, and another
            takes its place. Plain or async.
        drop_on: Errors that leave the ``with`` block after which the resource is closed: types, or a function of the
            error. Unless given: all, where it has one user at a time; none, where it is shared. What is kept is
            checked before its next use.
        max_age: Seconds after which it is closed, when nobody uses it.
        max_uses: Uses after which it is closed.
        max_idle: Seconds without use after which it is closed.
        max_bytes: What all together may take, by ``cost``; idle ones are closed for it, the longest unused first.
        cost: The bytes of one resource: a number, or a function of the key.
        same_thread: Whether each has a thread of its own, in which it is made, checked and closed.
        name: As in messages and evidence.

    Raises:
        TypeError, ValueError: Options that do not go together.
    """

    @overload
    def __init__(
        self,
        factory: Callable[..., AbstractAsyncContextManager[T, Any]],
        size: int = 10,
        **options: Unpack[PoolOptions[T]],
    ) -> None: ...
    @overload
    def __init__(
        self, factory: Callable[..., Awaitable[T]], size: int = 10, **options: Unpack[PoolOptions[T]]
    ) -> None: ...
    @overload
    def __init__(self, factory: Callable[..., T], size: int = 10, **options: Unpack[PoolOptions[T]]) -> None: ...

    @suggests
    def __init__(
        self,
        factory: Callable[..., Any],
        size: int = 10,
        *,
        users: int | None = 1,
        timeout: float | None = 30.0,
        close: Callable[[Any], object] | None = None,
        check: Callable[[Any], object] | None = None,
        drop_on: Errors | None = None,
        max_age: float | None = None,
        max_uses: int | None = None,
        max_idle: float | None = None,
        max_bytes: int | None = None,
        cost: Callable[[Any], int] | int | None = None,
        same_thread: bool = False,
        name: str | None = None,
    ) -> None:
        for what, function in (("factory", factory), ("close", close), ("check", check)):
            if not callable(function) and (what == "factory" or function is not None):
                raise TypeError(f"Pool({what}) is a function, not {shown(function)}")
        _check_drop_on(drop_on)
        if (max_bytes is None) is not (cost is None):
            raise TypeError("Pool(max_bytes) bounds what Pool(cost) says that a resource takes: give both, or neither")
        self.factory = factory
        self.timeout = None if timeout is None else check_seconds("Pool(timeout)", timeout, zero=False)
        self.close = close
        self.check = check
        self.drop_on = drop_on
        self.same_thread = same_thread
        self.name = check_text("Pool(name)", name) if name else f"Pool({factory_name(factory)})"
        self.bounds = PoolBounds(
            check_count("Pool(size)", size),
            None if users is None else check_count("Pool(users)", users),
            math.inf if max_age is None else check_seconds("Pool(max_age)", max_age, zero=False),
            math.inf if max_uses is None else check_count("Pool(max_uses)", max_uses),
            math.inf if max_idle is None else check_seconds("Pool(max_idle)", max_idle),
            math.inf if max_bytes is None else check_count("Pool(max_bytes)", max_bytes),
            check is not None,
        )
        self.cost = _cost(cost)
        self._motion: Motion | None = None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def requires(self) -> tuple[Any, ...]:
        """The service that the factory is a method of, if it is one; and those among its attributes."""
        owner = getattr(self.factory, "__self__", None)
        return (*super().requires, *([owner] if isinstance(owner, Service) else []))

    def acquire(self, key: Hashable = NO_KEY) -> Lease[T]:
        """A resource, for as long as the ``with`` block lasts: ``async with`` in async code, ``with`` in sync tools.

        Args:
            key: Given to the factory; who asks for the same key can get the same resource.

        Returns:
            A context manager that gives the resource.

        Raises:
            TimeoutError: On entering: there was none in time.
            Exception: On entering: what the factory raised.
            ServiceNotRunning: On entering.
            ValueError: On entering: the cost of this key is more than ``max_bytes``.

        Cancellation: While waiting it leaves the line; what it was given at that moment goes to the next.
        """
        return Lease(self, key)

    def drop(self, resource: T) -> None:
        """Have a resource that is in use be closed when it is given back: it is broken. On the manager's event loop."""
        motion = self._moving()
        motion.session.mailbox.check_here("pool.drop")
        motion.drop(resource)

    def statistics(self) -> PoolStatistics:
        """How it stands. From any thread."""
        return (PoolCore(self.bounds) if self._motion is None else self._motion.core).statistics()

    async def health(self) -> None:
        """Raises where no resource can be had: none is open, and one that is made now fails.

        Cancellation: Stops waiting for one.
        """
        motion = self._moving()
        if not motion.core.entries and not wants_key(self.factory):
            async with self.acquire():
                pass

    def _moving(self) -> Motion:
        self.ensure_running()
        assert self._motion is not None
        return self._motion

    def _drops(self, error: BaseException) -> bool:
        """Whether this error says that the resource is not to be used again."""
        if self.drop_on is None:
            return self.bounds.users == 1
        if isinstance(self.drop_on, (type, tuple)):
            return isinstance(error, self.drop_on)
        return bool(self.drop_on(error))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves until it is left; then closes all: what is in use when it is given back, or after a while.

        Cancellation: As leaving it; closing is shielded.
        """
        motion = Motion(self, current_manager()._opened())
        async with anyio.create_task_group() as motion.tasks:
            motion.tasks.start_soon(motion.keep_time)
            self._motion = motion
            try:
                yield
            finally:
                self._motion = None
                with anyio.CancelScope(shield=True):
                    await motion.end()
                motion.tasks.cancel_scope.cancel()


class Lease(Generic[T]):
    """A resource of a pool for the length of a ``with`` block; from `Pool.acquire`."""

    def __init__(self, pool: Pool[T], key: Hashable) -> None:
        self._pool = pool
        self._key = key
        self._motion: Motion | None = None
        self._entry: Entry | None = None

    def _check_unused(self) -> Motion:
        if self._motion is not None:
            raise RuntimeError("a lease is for one 'with' block; call acquire() for each")
        self._motion = self._pool._moving()
        return self._motion

    async def __aenter__(self) -> T:
        await anyio.lowlevel.checkpoint_if_cancelled()
        motion = self._check_unused()
        mailbox = motion.session.mailbox
        mailbox.check_here("pool.acquire")
        gate = mailbox.gate()
        waiter = motion.ask(self._key, gate.set)
        try:
            await gate.wait()
        except BaseException:
            motion.withdraw(waiter)
            raise
        return self._taken(waiter)

    def _taken(self, waiter: Waiter) -> T:
        if waiter.error is not None:
            raise waiter.error
        self._entry = waiter.entry
        assert waiter.entry is not None
        value: T = waiter.entry.value
        return value

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._motion is not None
        assert self._entry is not None
        is_broken = True
        try:
            is_broken = exc is not None and self._pool._drops(exc)
        finally:
            self._motion.release(self._entry, broken=is_broken, doubtful=exc is not None)

    def __enter__(self) -> T:
        if is_on_loop():
            raise RuntimeError(
                f"{self._pool.name}: 'with' blocks, and this thread runs an event loop; write 'async with "
                f"pool.acquire()' here"
            )
        asked = _AskedInThread(self._check_unused(), self._key)
        return self._taken(asked.wait())

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._motion is not None
        assert self._entry is not None
        is_broken = True
        try:
            is_broken = exc is not None and self._pool._drops(exc)
        finally:
            self._motion.release_in_thread(self._entry, broken=is_broken, doubtful=exc is not None)


class _AskedInThread:
    """Somebody in a thread who waits for a resource, by way of the loop; the thread lends its slot meanwhile."""

    def __init__(self, motion: Motion, key: Hashable) -> None:
        self._motion = motion
        self._key = key
        self._reply = Reply()
        self._waiter: Waiter | None = None
        call: Any = current_call.get()
        self._call = call if call is not None and call.bound.home is motion.session else None
        work = current_work.get()
        # A thread that the tool itself has started has no slot to lend.
        self._work = work if work is not None and work.ident == current_ident() else None

    def wait(self) -> Waiter:
        """Wait for it; in the thread."""
        motion, work = self._motion, self._work
        if not motion.session.mailbox.put(self._begin):
            raise motion.stopped()
        pool = work.pool if work is not None and work.pool is motion.session.pool else None
        if pool is not None:
            pool.lend(1)
        try:
            waiter: Waiter = self._reply.wait()
        except BaseException:
            if self._reply.error is None:  # Ctrl-C, in the main thread of a program with a manager of its own
                motion.session.mailbox.put(self._left)
            raise
        finally:
            if pool is not None:
                pool.lend(-1)
        return waiter

    # --- on the loop

    def _begin(self) -> None:
        if self._work is not None:
            self._motion.session.mailbox.add_busy(-1)
        call = self._call
        if self._work.aborted if self._work is not None else call is not None and call.aborted:
            self._answer(error=self._aborted())
            return
        if call is not None and not call.has_ended:  # it ends our wait when it is cancelled, as that of a nested call
            if call.children is None:
                call.children = set()
            call.children.add(self)
        try:
            waiter = self._motion.make_waiter(self._key, self._settled)
        except Exception as error:  # noqa: BLE001  (raised in the thread)
            self._answer(error=error)
            return
        self._waiter = waiter
        self._motion.put_in_line(waiter)

    def _settled(self) -> None:
        waiter = self._waiter
        assert waiter is not None
        if waiter.entry is not None:
            self._motion.handed_to_thread(waiter.entry)
        self._answer(waiter)

    def cancel(self, reason: str) -> None:
        """As of a nested call: whoever it belongs to is told to stop."""
        if not self._reply.given and self._waiter is not None:
            self._motion.withdraw(self._waiter)
            self._answer(error=self._aborted())

    def _left(self) -> None:
        waiter = self._waiter
        if waiter is not None and waiter.entry is not None:
            self._motion.release_in_thread(waiter.entry, broken=False, doubtful=False)
        else:
            self.cancel("interrupted")

    def _answer(self, waiter: Waiter | None = None, error: BaseException | None = None) -> None:
        if self._call is not None and self._call.children is not None:
            self._call.children.discard(self)
        if self._work is not None:
            self._motion.session.mailbox.add_busy(1)
        self._reply.give(waiter, error)

    def _aborted(self) -> CallAborted:
        return CallAborted("the call that this thread works for was cancelled or has timed out")


def _check_drop_on(drop_on: Any) -> None:
    kinds = drop_on if isinstance(drop_on, tuple) else (drop_on,)
    are_kinds = all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)
    is_function = callable(drop_on) and not isinstance(drop_on, type)
    if drop_on is not None and not are_kinds and not is_function:
        raise TypeError(
            f"Pool(drop_on) is an exception type, a tuple of such, or a function of the error, not {shown(drop_on)}"
        )


def _cost(cost: Callable[[Any], int] | int | None) -> Callable[[Hashable], int]:
    if callable(cost):
        return lambda key: check_count("the cost of a resource", cost(key), 0)
    fixed = 0 if cost is None else check_count("Pool(cost)", cost, 0)
    return lambda key: fixed
