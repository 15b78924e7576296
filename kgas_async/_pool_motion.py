"""A pool in motion: each resource in a task of its own, where it is made, checked and closed as was decided.

Each in its own, so that context managers are left where they were entered. What is to be done is `_pool_core`'s to say.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from threading import Lock
from typing import Any, Final

import anyio

from ._cancellation import exit_in, hook_failure
from ._errors import ServiceNotRunning, shown
from ._mailbox import nested_context
from ._pool_core import Entry, PoolCore, Waiter
from ._records import error_fields
from ._session import Session
from ._threads import ThreadPool
from ._tracing import secrets_aside

__all__ = ["NO_KEY", "Motion", "factory_name", "wants_key"]

NO_KEY: Final = object()


class _Kept:
    """What the pool needs of an entry beyond the decisions: its task, and who in which thread has it."""

    def __init__(self) -> None:
        self.news = anyio.Event()
        self.scope = anyio.CancelScope()
        self.thread: ThreadPool | None = None  # its own, with same_thread
        self.lock = Lock()
        self.in_threads = 0
        self.is_orphan = False  # the pool has ended, and a thread still uses it


class Motion:
    """A pool that runs. All on one event loop, but for what says otherwise."""

    tasks: Any

    def __init__(self, pool: Any, session: Session) -> None:
        self.session = session
        self.core = PoolCore(pool.bounds, pool.name)
        self._pool = pool
        # What resources do is no part of the call that has one made.
        self._context = nested_context(session.mailbox.backend)
        self._timer = anyio.Event()
        self._empty = anyio.Event()
        self._close_s = session.grace / 3
        self._sleeps_until = math.inf

    def stopped(self) -> ServiceNotRunning:
        """The error of those who come too late."""
        return ServiceNotRunning(f"service {self._pool.name!r} was stopped", service=self._pool.name)

    # --- those who want one

    def make_waiter(self, key: Hashable, on_settled: Callable[[], object]) -> Waiter:
        if self.core.is_over:
            raise self.stopped()
        if key is not NO_KEY:
            _check_key(key, self._pool.name)
        cost, most = self._pool.cost(key), self._pool.bounds.max_bytes
        if cost > most:
            raise ValueError(
                f"{self._pool.name}: the resource of {key!r} takes {cost} bytes, more than max_bytes={most} together"
            )
        now = anyio.current_time()
        until = math.inf if self._pool.timeout is None else now + self._pool.timeout
        return Waiter(key, now, until, on_settled, cost)

    def put_in_line(self, waiter: Waiter) -> None:
        self.core.ask(waiter)
        self._obey()

    def ask(self, key: Hashable, on_settled: Callable[[], object]) -> Waiter:
        waiter = self.make_waiter(key, on_settled)
        self.put_in_line(waiter)
        return waiter

    def withdraw(self, waiter: Waiter) -> None:
        self.core.withdraw(waiter, anyio.current_time())
        self._obey()

    def release(self, entry: Entry, *, broken: bool, doubtful: bool) -> None:
        self.core.release(entry, anyio.current_time(), broken=broken, doubtful=doubtful)
        self._obey()

    def drop(self, resource: object) -> None:
        for entry in self.core.entries:
            if entry.value is resource and entry.state in ("ready", "checking"):
                self.core.drop(entry)
        self._obey()

    def handed_to_thread(self, entry: Entry) -> None:
        kept: _Kept = entry.kept
        with kept.lock:
            kept.in_threads += 1

    def release_in_thread(self, entry: Entry, *, broken: bool, doubtful: bool) -> None:
        """From a thread, with the loop, or after it."""
        kept: _Kept = entry.kept
        with kept.lock:
            kept.in_threads -= 1
            is_ours = kept.is_orphan and not kept.in_threads
        try:
            if is_ours and self._pool.close is not None and not inspect.iscoroutinefunction(self._pool.close):
                self._pool.close(entry.value)
        finally:
            self.session.mailbox.put(functools.partial(self.release, entry, broken=broken, doubtful=doubtful))

    def _obey(self) -> None:
        """Do what was decided."""
        orders = self.core.orders
        while orders:
            order, entry = orders.popleft()
            if order == "make":
                kept = entry.kept = _Kept()
                self._context.run(self.tasks.start_soon, self._keep, entry, kept)
            else:
                entry.kept.news.set()
                if not entry.was_made:
                    entry.kept.scope.cancel()
        if self.core.next_due() < self._sleeps_until:
            self._timer.set()
        if self.core.is_over and not self.core.entries:
            self._empty.set()

    async def keep_time(self) -> None:
        """Do what is due, for as long as the pool runs."""
        while True:
            self._timer = anyio.Event()
            self._sleeps_until = self.core.next_due()
            with anyio.CancelScope(deadline=self._sleeps_until):
                await self._timer.wait()
            self.core.tick(anyio.current_time())
            self._obey()

    async def end(self) -> None:
        """Close all."""
        self.core.close(self.stopped)
        self._obey()
        with anyio.move_on_after(self._close_s):  # those in use: of tools that were left behind
            await self._empty.wait()
        for entry in self.core.entries:
            entry.kept.scope.cancel()
        with anyio.move_on_after(2 * self._close_s):
            await self._empty.wait()

    # --- one resource, in a task of its own

    async def _keep(self, entry: Entry, kept: _Kept) -> None:
        """The whole life of one resource."""
        error: BaseException | None = None
        timeout = self._pool.timeout
        kept.scope.deadline = math.inf if timeout is None else anyio.current_time() + timeout
        try:
            with kept.scope:
                async with self._opened(entry, kept) as value:
                    kept.scope.deadline = math.inf
                    self.core.made(entry, value, anyio.current_time())
                    self._obey()
                    await self._hold(entry, kept)
                    kept.scope.deadline = anyio.current_time() + self._close_s
        except BaseException as raised:  # whatever the user's functions raise
            if (error := exit_in(raised)) is not None:  # on the loop's own thread: meant for the whole session
                self.session.crash(error)
            elif (error := hook_failure(raised, "a function of the pool's")) is None:
                raise
        finally:
            self._over(entry, error, was_cut=kept.scope.cancelled_caught)
            if kept.thread is not None:
                await self.session.reserved.end(kept.thread)

    def _over(self, entry: Entry, error: BaseException | None, *, was_cut: bool) -> None:
        """It has ended, and its place is free."""
        now = anyio.current_time()
        if not entry.was_made:
            if error is None and self.core.is_over:
                error = self.stopped()
            else:
                error = error or TimeoutError(f"{self._pool.name}: nothing was made within {self._pool.timeout:g} s")
                self._say_failed("factory", error)
            self.core.failed(entry, error, now)
        else:
            if was_cut and error is None:
                is_used = "its user did not give it back in time" if entry.users else "did not end in time"
                error = TimeoutError(is_used)
            if error is not None:
                is_end = entry.state == "closing" or was_cut or self.core.is_over
                self._say_failed("close" if is_end else "resource", error)
            self.core.gone(entry, now)
        self._obey()

    async def _hold(self, entry: Entry, kept: _Kept) -> None:
        """Until it is to be closed; checks it whenever that is wanted."""
        while entry.state != "closing":
            if entry.state == "checking":
                is_ok = await self._is_ok(entry, kept)
                self.core.checked(entry, anyio.current_time(), ok=is_ok)
                self._obey()
                continue
            kept.news = anyio.Event()
            await kept.news.wait()

    async def _is_ok(self, entry: Entry, kept: _Kept) -> bool:
        check, pool = self._pool.check, self._pool
        assert check is not None
        error: BaseException | None = None
        timeout = pool.health_timeout if pool.timeout is None else pool.timeout
        with anyio.move_on_after(timeout) as scope:
            try:
                await self._call(check, entry.value, kept)
            except BaseException as raised:  # whatever it raises says that it is no good
                error = hook_failure(raised, "the check")
                if error is None:
                    raise
        if scope.cancelled_caught and error is None:
            error = TimeoutError(f"did not end within {timeout:g} s")
        if error is not None:
            self._say_failed("check", error)
        return error is None

    @asynccontextmanager
    async def _opened(self, entry: Entry, kept: _Kept) -> AsyncIterator[Any]:
        pool, arguments = self._pool, () if entry.key is NO_KEY else (entry.key,)
        make = functools.partial(pool.factory, *arguments)
        if pool.same_thread:
            kept.thread = self.session.reserved.single(pool.name)
        if _is_for_loop(pool.factory):
            made: Any = make()
        else:
            made = await self.session.reserved.run(make, pool.name, pool=kept.thread, on_late=self._close_late)
        if not isinstance(made, AbstractAsyncContextManager) and inspect.isawaitable(made):
            made = await made
        if pool.close is None and isinstance(made, AbstractAsyncContextManager):
            async with made as value:
                yield value
            return
        try:
            yield made
        finally:
            await self._closed(made, kept)

    async def _closed(self, value: Any, kept: _Kept) -> None:
        """Close it, whatever cancels us; but not under a thread that was left behind with it, which does so itself."""
        close = self._pool.close
        with kept.lock:
            kept.is_orphan = kept.in_threads > 0
        if kept.is_orphan and inspect.iscoroutinefunction(close):
            raise TimeoutError(
                "its user did not give it back in time: a thread that was left behind, which cannot await close="
            )
        if close is None or kept.is_orphan:
            return
        with anyio.CancelScope(deadline=anyio.current_time() + self._close_s, shield=True) as scope:
            await self._call(close, value, kept)
        if scope.cancelled_caught:
            raise TimeoutError(f"did not end within {self._close_s:g} s")

    async def _call(self, function: Callable[[Any], object], value: Any, kept: _Kept) -> None:
        if inspect.iscoroutinefunction(function):
            await function(value)
            return
        call = functools.partial(function, value)
        answer = await self.session.reserved.run(call, self._pool.name, pool=kept.thread)
        if inspect.isawaitable(answer):
            await answer

    def _close_late(self, value: Any) -> None:
        """In the factory's thread: what it made came when nobody waited for it any more."""
        close = self._pool.close
        if close is not None and not inspect.iscoroutinefunction(close):
            close(value)

    def _say_failed(self, what: str, error: BaseException) -> None:
        log = self.session.log
        if log is not None:
            factory = self._pool.factory
            made_of = (getattr(factory, "__self__", None), getattr(factory, "keywords", None))
            secrets = secrets_aside(self.session, error, self._pool, factory, *made_of)
            log.emit("pool.failed", service=self._pool.name, what=what, error=error_fields(error, secrets))


def _check_key(key: Any, pool: str) -> None:
    """
    Raises:
        TypeError: One that cannot be told from others; it would be in the way of all who wait.
    """
    try:
        is_itself = hash(key) == hash(key) and bool(key == key)
    except Exception as error:
        raise TypeError(
            f"{pool}: acquire() takes a key that can be hashed and compared (a string, a number, a tuple of such), not "
            f"{shown(key)}: {shown(error)}"
        ) from error
    if not is_itself:
        raise TypeError(f"{pool}: acquire() takes a key that equals itself, and {shown(key)} does not")


def factory_name(factory: Any) -> str:
    """For the name of its pool."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    return getattr(factory, "__name__", None) or type(factory).__name__


def wants_key(factory: Callable[..., Any]) -> bool:
    """Whether it cannot be called without a key, as far as can be told."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters
    )


def _is_for_loop(factory: Any) -> bool:
    """Whether it is async code, or gives an async context manager: such is called on the loop."""
    while isinstance(factory, functools.partial):
        factory = factory.func
    if isinstance(factory, type):
        return hasattr(factory, "__aenter__")
    call = factory if hasattr(factory, "__code__") or inspect.ismethod(factory) else type(factory).__call__
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(inspect.unwrap(call))
