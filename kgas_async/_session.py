"""One lifetime of a manager: its task group, threads, registers and evidence; the ownership of every call.

What calls, crews and services see as their home. The public methods are `_manager`'s.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Literal

import anyio

from ._bindings import Bindings
from ._bound import Bound
from ._call import Call
from ._cancellation import breakdown_between
from ._context import current_call
from ._errors import ManagerClosed, shown
from ._evidence import EvidenceLog
from ._flat import perform
from ._host import Host
from ._hosting import Hosting
from ._left import LeftBehind
from ._mailbox import Mailbox, OpenScopes
from ._monitor import PerformanceMonitor
from ._order import held_here
from ._processes import ProcessPool
from ._recording import Recording
from ._reserved import Reserved
from ._threads import ThreadPool
from ._tool import KGASTool
from ._tracing import Tracing
from ._waiting import wait_until

__all__ = ["Session"]


class Session:
    """See the module. Made on the loop; the manager enters and leaves the task group.

    Attributes:
        session: Its id, the prefix of all call ids.
        calls_open: The register: every call that has not ended, by number.
        states: What the uses of one tool name share.
        closing_at: No grace lasts longer than this (loop time).
        pending: What is to be raised on leaving.
    """

    def __init__(
        self,
        manager: Any,
        *,
        threads: int,
        processes: int,
        grace: float,
        max_abandoned: int,
        abandoned: Literal["leave", "join"],
        seed: int | None,
        on_sink_error: Literal["stop", "continue"],
        on_crash: Literal["raise", "continue"],
        monitor: PerformanceMonitor | None,
        tracing: Tracing | None,
    ) -> None:
        self.manager = manager
        self.session = secrets.token_hex(6)
        self.mailbox = Mailbox.here()
        self.pool = ThreadPool(threads, f"kgas-{self.session}")
        self.processes = ProcessPool(processes, f"kgas-{self.session}-process")
        self.grace = grace
        self.max_abandoned = max_abandoned
        self.abandoned = abandoned
        self.on_sink_error = on_sink_error
        self.on_crash: Literal["raise", "continue"] = on_crash
        self.services_down = False  # some that ran do not run now
        self.random: Callable[[], float] = random.Random(seed).random
        self.log: EvidenceLog | None = None
        self.tracing = tracing
        self.monitor = monitor
        self.calls_open: dict[int, Call[Any]] = {}
        self.cache_waits: dict[Call[Any], Any] = {}  # calls that wait for another's result, and what they share with it
        bindings = Bindings(self)
        self.states, self.bind = bindings.states, bindings.bind
        self.crews: set[Any] = set()
        self.left = LeftBehind(self)
        self.reserved = Reserved(self)
        self.hosting = Hosting(self)
        self.recording = Recording(self)
        self.closing_at = float("inf")
        self.pending: BaseException | None = None
        self.task_group = anyio.create_task_group()
        self.closed = anyio.Event()
        self.is_draining = self.is_cancelled = self.is_closed = False
        self._serial = self._runs = 0
        self.starting: set[Call[Any]] = set()  # their tasks have not begun; asyncio may cancel them before they do

    @property
    def calls_made(self) -> int:
        """How many calls were registered."""
        return self._serial

    # --- binding and owning

    def parent(self) -> Call[Any] | None:
        """The call of this session that the code runs in."""
        call: Any = current_call.get()
        if call is not None and call.bound.home is self and not call.ended_ns:
            return call  # type: ignore[no-any-return]
        return None

    def check_open(self, parent: Call[Any] | None) -> None:
        """Refuse new roots once draining; nested calls are admitted until the end.

        Raises:
            ManagerClosed: There is no admission any more.
        """
        if self.is_closed:
            raise ManagerClosed("the manager is closed; calls are made inside 'async with ServiceManager(...)'")
        if parent is None and (self.is_draining or self.is_cancelled):
            raise ManagerClosed("the manager is draining; no new calls are admitted")

    def check_services(self, bound: Bound) -> None:
        """
        Raises:
            ServiceNotRunning: A service of the tool does not run here.
        """
        if bound.requires:
            self.hosting.check_running(bound.requires, bound.name)

    def new_call(
        self, bound: Bound, inputs: Mapping[str, Any], parent: Call[Any] | None = None, item: str | None = None
    ) -> Call[Any]:
        """Register a call: from here on it is owned, and ends exactly once."""
        self._serial = serial = self._serial + 1
        call: Call[Any] = Call(bound, serial, inputs)
        if item is not None:
            call.item = item
        if parent is not None:
            call.parent = parent
            call.deadline_at = parent.deadline_at
        if self.services_down and bound.supervised and call.deadline_at is None:
            call.deadline_at = math.inf  # no limit, but no short path either: it does not wait
        self.calls_open[serial] = call  # complete: the evidence's thread may announce it at once
        log = self.log
        if log is not None and log.announces and not log.armed:
            log.arm()
        return call

    def admit(
        self, tool: KGASTool, args: tuple[Any, ...], inputs: dict[str, Any], parent: Call[Any] | None = None
    ) -> Call[Any]:
        """Register a call made by name, nested in ``parent`` or in the call that the code runs in.

        Raises:
            ManagerClosed: No admission any more.
            ServiceNotRunning: A service of the tool does not run here.
        """
        parent = parent or self.parent()
        self.check_open(parent)
        bound = self.bind(tool)
        if bound.requires:
            self.check_services(bound)
        if args:
            inputs = bound.signature.named(args, inputs)
        return self.new_call(bound, inputs, parent)

    async def until_served(self, call: Call[Any]) -> Exception | None:
        """Wait until the services that a call uses run; the error if they will not."""
        return await self.hosting.until_served(call)

    def spawn(self, function: Callable[..., Any], *args: Any) -> None:
        """A task of the session's own. What it raises ends the session."""
        self.task_group.start_soon(self._guarded, function, args, name=f"{function.__module__}.{function.__qualname__}")

    async def _guarded(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            await function(*args)
        except BaseException as error:
            if (broken := breakdown_between(error)) is None:
                raise
            self.crash(broken)

    async def host_call(self, call: Call[Any], *, owned: bool = False) -> None:
        """Run a call in this task, under a scope of its own.

        Cancellation: Reaches the tool; passed on when the call has ended.
        """
        if call.bound.isolated and not owned:
            return await self.run_isolated(call)
        if not owned and (around := held_here()):
            call.around = around
        host = Host(owned=owned)
        host.call = call
        call._host = host
        try:
            with anyio.CancelScope() as scope:
                host.enter(scope)
                try:
                    if owned and not call.cancel_requested:
                        if self.log is not None and self.log.behind:
                            await self.log.caught_up()  # whoever made it could not wait for it
                        call.status = "running"
                    await perform(call)
                finally:
                    if host.scopes.has_more():
                        await self.close_leaked(host.scopes, call)
        finally:
            host.call = None
            if not call.ended_ns:  # the task was cancelled before its first step
                call.end("cancelled")

    async def close_leaked(self, scopes: OpenScopes, call: Call[Any] | None = None) -> None:
        """A tool has left cancel scopes or task groups open: end what runs in them, and say so.

        Cancellation: Waited out, for a grace at the most.
        """
        if self.log is not None:
            tool, call_id = (None, None) if call is None else (call.tool_name, call.id)
            self.log.emit("scope.leaked", tool=tool, call_id=call_id)
        await scopes.close_others(self.grace)

    def _spawn_host(self, call: Call[Any]) -> None:
        self.starting.add(call)
        self.spawn(self._host_owned, call)

    async def _host_owned(self, call: Call[Any]) -> None:
        self.starting.discard(call)
        if not call.ended_ns:
            await self.host_call(call, owned=True)

    def start_call(self, call: Call[Any]) -> None:
        """Run a call in a task of its own."""
        self.adopt(call)
        call.status = "waiting"
        self._spawn_host(call)

    def adopt(self, call: Call[Any]) -> None:
        """Have a call that runs in a task of its own end with the call that it is nested in."""
        parent = call.parent
        if parent is not None:
            if parent.children is None:
                parent.children = set()
            parent.children.add(call)

    async def run_isolated(self, call: Call[Any]) -> None:
        """Run a call in a task of its own and wait for it; our cancellation is its."""
        call.waits()
        call.around = call.around or held_here()
        self._spawn_host(call)
        try:
            await call.wait()
        except BaseException:
            call.cancel("the one who waited for it was cancelled")
            if call._done is not None:
                await wait_until(call._done, call.grace_deadline() + 1)
            raise

    # --- threads

    def pool_of(self, bound: Bound) -> ThreadPool:
        """The threads that this tool's sync code runs in, or that have the processes which it runs in."""
        if bound.execution.kind == "process":
            return self.processes
        if not bound.execution.dedicated:
            return self.pool
        state = bound.state
        if state.dedicated is None:
            state.dedicated = ThreadPool(1, f"kgas-{self.session}-{bound.name}")
        return state.dedicated

    def pools(self) -> list[ThreadPool]:
        """All thread pools of the session."""
        return [
            self.pool,
            self.processes,
            *self.reserved.pools,
            *(state.dedicated for state in self.states.values() if state.dedicated is not None),
        ]

    def next_run_id(self) -> str:
        """The id of a new run."""
        self._runs += 1
        return f"{self.session}-run{self._runs}"

    def keep_crew(self, crew: Any) -> None:
        """Own a map or a run: it is drained and cancelled with the session."""
        self.crews.add(crew)

    def drop_crew(self, crew: Any) -> None:
        """A map or a run has ended."""
        self.crews.discard(crew)

    # --- ending

    def crash(self, error: BaseException) -> None:
        """End the session: cancel everything, and raise ``error`` on leaving. The first one counts."""
        if self.pending is None or isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.pending = error
        self.cancel("the session was ended by " + shown(error))

    def cancel(self, reason: str) -> None:
        """Cancel every call, every crew and the body of the ``async with``."""
        self.is_cancelled = True
        self.closing_at = min(self.closing_at, self.grace_until())
        self.cancel_calls(reason)
        self.task_group.cancel_scope.cancel()

    def cancel_calls(self, reason: str) -> None:
        """Cancel every call and crew."""
        for crew in list(self.crews):
            crew.cut(reason)
        for call in list(self.calls_open.values()):
            call.cancel(reason)
        while self.starting:
            self.starting.pop().end("cancelled")

    def grace_until(self) -> float:
        """The end of a grace that begins now."""
        return min(anyio.current_time() + self.grace, self.closing_at)

    def begin_drain(self) -> None:
        """Refuse new roots; sources are pulled no more, but for those of calls in flight, which are to end whole."""
        self.is_draining = True
        for crew in list(self.crews):
            if crew.parent is None:
                crew.drain()

    async def drain(self) -> None:
        """Let calls end for the grace, then cancel what is left and wait for it."""
        self.begin_drain()
        own = self.own_chain()
        until = anyio.current_time() + self.grace
        with anyio.move_on_at(until) as scope:
            await self._until_idle(own)
            for crew in self.busy_crews():
                await crew.left.wait()  # between the calls of an item none may be open
        if scope.cancelled_caught:
            self.closing_at = self.grace_until()
            self.cancel_calls("the manager's grace for draining is over")
            await self._until_idle(self.own_chain())

    def own_chain(self) -> set[int]:
        """The calls that this code itself runs in: nobody can wait for those."""
        chain = set()
        call = self.parent()
        while call is not None:
            chain.add(call.serial)
            call = call.parent
        return chain

    def busy_crews(self) -> list[Any]:
        """The maps and runs whose workers have not all gone, but for those inside of calls, which wait for them.

        None for code in a call of such a worker, which can be told by its place: nobody can wait for that.
        """
        root = self.parent()
        while root is not None and root.parent is not None:
            root = root.parent
        if root is not None and (root.index >= 0 or root.phase is not None):
            return []
        return [crew for crew in self.crews if crew.parent is None and not crew.left.is_set()]

    async def _until_idle(self, but: set[int]) -> None:
        while (waited := self._in_motion(but)) is not None:
            await waited.wait()

    def _in_motion(self, but: set[int]) -> Any:
        """What has not ended and can be waited for: a call; a map or a run, which may be between two calls."""
        waited = next((call for serial, call in self.calls_open.items() if serial not in but), None)
        if waited is not None or but:  # who asks inside of a call may be a part of any of the crews
            return waited
        return next((crew.left for crew in self.crews if not crew.left.is_set()), None)

    async def close(self, error: BaseException | None) -> None:
        """End everything, in order: calls (at once where an error left the body), threads, services, evidence.

        The shield has no limit of its own, since the waits in it have theirs: cancelled calls their grace, services
        their stop. Not bounded are calls that a body left to end, and, asked for, threads by ``abandoned="join"``.
        """
        try:
            with anyio.CancelScope(shield=True):
                if error is None:
                    await self.drain()
                self.is_draining = True
                self.closing_at = self.grace_until()
                self.cancel_calls("the manager is closing")
                await self._until_idle(set())
                while self.left and self.abandoned == "join":
                    await next(iter(self.left)).done.wait()
                await self.hosting.stop_all()
                self.is_closed = True
                await self.recording.close(error)
                for pool in self.pools():
                    await pool.close(self.mailbox).wait()
        finally:
            self.is_closed = True
            self.closed.set()
