"""Our worker threads: daemons that run sync calls, and whatever else has to do with threads.

A `Work` is one sync call; a `ThreadPool` runs works first come, first served. The only module that starts threads. It
knows nothing of tools, limits or policies.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context
from time import perf_counter_ns
from typing import Any, Final

from ._mailbox import Gate, Mailbox, leave_loop

__all__ = [
    "JOIN_S",
    "Reply",
    "Signal",
    "ThreadPool",
    "Work",
    "current_ident",
    "instances_here",
    "is_main_thread",
    "start_daemon",
    "would_block_exit",
]

Signal: Final = threading.Event
NO_INPUTS: Final[Mapping[str, Any]] = {}
JOIN_S: Final = 1.0  # seconds for a thread that has ended to be gone; it needs but the GIL


def is_main_thread() -> bool:
    """Whether this is the thread that Python delivers signals to."""
    return threading.current_thread() is threading.main_thread()


def would_block_exit() -> bool:
    """Whether threads that are no daemons, which only tools can have started, would keep the process alive."""
    return any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate())


current_ident = threading.get_ident


def start_daemon(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a reserved daemon thread, one that runs no tools."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class Work:
    """One sync call: made on the loop, claimed once by a thread or by its canceller, ended once.

    Attributes:
        value: What the function returned.
        error: What it raised.
        submitted_ns: When it was handed over, where that is wanted (``perf_counter_ns``).
        started_ns: When a thread took it up (``perf_counter_ns``), 0 before.
        ended_ns: When the function ended, 0 before.
        started_at: When a thread took it up, in the loop's time.
        ended_at: When the function ended, in the loop's time.
        is_timed: Whether ``started_at`` and ``ended_at`` are wanted: somebody compares them with a timeout.
        aborted: Nobody waits for it any more; ``check_cancelled()`` looks here.
        done: Set on the loop after the end.
        ident: The identity of the thread that runs it.
    """

    __slots__ = (
        "_claim",
        "abandoned",
        "aborted",
        "context",
        "done",
        "ended_at",
        "ended_ns",
        "error",
        "function",
        "ident",
        "inputs",
        "is_timed",
        "mailbox",
        "on_begin",
        "on_done",
        "on_end",
        "pool",
        "started_at",
        "started_ns",
        "submitted_ns",
        "value",
        "withdrawn",
    )

    def __init__(
        self, function: Callable[..., Any], context: Context, mailbox: Mailbox, inputs: Mapping[str, Any] = NO_INPUTS
    ) -> None:
        self.function = function
        self.inputs = inputs
        self.context = context
        self.mailbox = mailbox
        self.value: Any = None
        self.error: BaseException | None = None
        self.submitted_ns = 0
        self.started_ns = 0
        self.ended_ns = 0
        self.started_at = 0.0
        self.ended_at = 0.0
        self.ident = 0
        self.abandoned = False
        self.aborted = False
        self.is_timed = False
        self.withdrawn = False
        self.done = mailbox.gate()
        self.on_begin: Callable[[], object] | None = None  # on the loop, once a thread has taken it up
        self.on_end: Callable[[], object] | None = None  # in the thread, at once: tokens go back without a living loop
        self.on_done: Callable[[], object] | None = None  # on the loop, after the end, before `done`
        self.pool: ThreadPool | None = None
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Whoever gets True owns the work: a thread, which runs it, or a canceller, so that it never starts."""
        return self._claim.acquire(blocking=False)

    def withdraw(self) -> bool:
        """Take it back unless a thread has it (on the loop). True: it never began, and never will."""
        if not self.claim():
            return False
        self.withdrawn = True
        del self.context  # as in `run`
        self.mailbox.add_busy(-1)
        return True

    def abort(self) -> None:
        """Nobody waits for it any more (on the loop): its next ``check_cancelled()`` raises."""
        self.aborted = True
        self.mailbox.add_busy(0)  # it has yet to hear of this: a virtual clock stands still for it anew

    prepares = False

    def prepare(self) -> None:
        """In the thread that is about to claim it, where it ``prepares``: get ready what it needs, while it can still
        be withdrawn.
        """

    def run(self) -> None:
        """Run the function, in the thread that has claimed it."""
        self.ident = threading.get_ident()
        if self.is_timed:
            self.started_at = self.mailbox.time() + self.mailbox.offset
        self.started_ns = perf_counter_ns()
        if self.on_begin is not None:
            self.mailbox.put(self.on_begin)
        try:
            self.value = self.context.run(self.function, **self.inputs)
        except BaseException as error:  # noqa: BLE001  (SystemExit too is this call's failure, not the thread's)
            self.error = error
        del self.context  # it refers to the work and its call: a cycle that only the collector would free
        if self.is_timed:
            self.ended_at = self.mailbox.time() + self.mailbox.offset
        self.ended_ns = perf_counter_ns()

    def give_back(self) -> None:
        """Give back what the work held, once it has ended or was withdrawn. From any thread."""
        if self.on_end is not None:
            self.on_end()

    def finish(self) -> None:
        """In the thread: give back what the work held; then tell the loop, if there still is one."""
        self.give_back()
        self.mailbox.put(self._finish)

    def _finish(self) -> None:
        self.mailbox.add_busy(-1)
        if self.on_done is not None:
            self.on_done()
        self.done.set()


_local = threading.local()


def instances_here() -> dict[Any, Any]:
    """What was built for this thread alone; emptied when a thread of a pool ends."""
    try:
        instances: dict[Any, Any] = _local.instances
    except AttributeError:
        instances = _local.instances = {}
    return instances


class Reply:
    """One answer, given by one thread and waited for by another."""

    __slots__ = ("_event", "error", "value")

    def __init__(self) -> None:
        self._event = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def give(self, value: Any = None, error: BaseException | None = None) -> None:
        """Answer."""
        self.value, self.error = value, error
        self._event.set()

    @property
    def given(self) -> bool:
        """Whether there is an answer."""
        return self._event.is_set()

    def wait(self) -> Any:
        """Wait for the answer: the value, or the error raised. Ctrl-C in the main thread interrupts it."""
        self._event.wait()
        if self.error is not None:
            raise self.error
        return self.value


class ThreadPool:
    """Daemon threads that run works first come, first served; started as needed, up to ``slots`` at a time.

    A thread that was abandoned leaves the count, so that another may start, and comes back when its work ends. A
    thread that waits in a nested call lends its slot for as long.
    """

    def __init__(self, slots: int, name: str = "kgas") -> None:
        self.slots = slots
        self.name = name
        self._lock = threading.Lock()
        self._queue: deque[Work] = deque()
        self._idle: list[threading.Lock] = []  # held; whoever wakes a thread takes its lock out and releases it
        self._threads = 0  # those that count against slots
        self._lent = 0  # slots of threads that wait in nested calls
        self._abandoned: set[Work] = set()
        self._alive = 0
        self._serial = 0
        self._closed = False
        self._leaving: list[threading.Thread] = []  # that have nothing left to do but to end
        self._on_ended: Callable[[], object] | None = None

    @property
    def alive(self) -> int:
        """Threads that exist, abandoned ones among them."""
        return self._alive

    @property
    def abandoned(self) -> int:
        """Abandoned works that still run."""
        return len(self._abandoned)

    @property
    def queued(self) -> int:
        """Works that wait for a thread."""
        return len(self._queue)

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more works."""
        return self._closed

    def submit(self, work: Work) -> None:
        """Hand a work over; on its loop. Never blocks.

        Raises:
            RuntimeError: The pool is closed, or no thread can be started and none would come to the work.
        """
        if self._closed:
            raise RuntimeError(f"thread pool {self.name!r} is closed")
        # Its thread is outside any event loop, whatever the context that it inherits says.
        leave_loop(work.context)
        work.pool = self
        work.mailbox.add_busy(1)
        with self._lock:
            self._queue.append(work)
            refused = self._engage()
            if refused is None or self._threads > self._lent:  # those that wait in nested calls may wait for this work
                return
            self._queue.pop()
        work.mailbox.add_busy(-1)
        raise refused

    def _engage(self) -> RuntimeError | None:
        """Wake or start one thread, if there is work and a slot for it; why none can be started. Under the lock."""
        if not self._queue:
            return None
        if self._idle:
            self._idle.pop().release()
        elif self._threads < self.slots:
            self._serial += 1
            try:
                start_daemon(self._loop, f"{self.name}-{self._serial}")
            except RuntimeError as error:  # the system gives us no more
                return error
            self._threads += 1
            self._alive += 1
        return None

    def _loop(self) -> None:
        parked = threading.Lock()
        parked.acquire()
        while True:
            work = None
            with self._lock:
                if self._threads > self.slots or (self._closed and not self._queue):
                    self._threads -= 1
                    self._engage()  # the wake-up that this thread took may have been for work
                    break
                if self._queue:
                    work = self._queue.popleft()
                else:
                    self._park(parked)
            if work is None:
                parked.acquire()
                continue
            if work.prepares:
                work.prepare()
            if work.claim():
                work.run()
                is_replaced = self._leave(work)
                work.finish()
                if is_replaced:
                    break

        self._retire()  # what lives in this thread ends in it, before anybody is told that it has ended
        with self._lock:
            self._alive -= 1
            if self._closed:
                self._leaving.append(threading.current_thread())
            self._tell_if_ended()

    def _park(self, parked: threading.Lock) -> None:
        """Under the lock: this thread waits for work; the last that came to wait is the first to be woken."""
        self._idle.append(parked)

    def _retire(self) -> None:
        instances_here().clear()

    def _tell_if_ended(self) -> None:
        """Under the lock."""
        if self._on_ended is not None and self._alive <= len(self._abandoned):
            self._on_ended()
            self._on_ended = None

    def _leave(self, work: Work) -> bool:
        """The thread comes back from its work; whether it was abandoned there and others have its place."""
        # Before finish(): who is told of the end must find the pool's counts as they are after it.
        with self._lock:
            if not work.abandoned:
                return False
            self._abandoned.discard(work)
            if self._threads >= self.slots:
                return True
            self._threads += 1
            return False

    def abandon(self, work: Work) -> bool:
        """Stop waiting for a running work: its thread leaves the count. False if it has just ended."""
        with self._lock:
            if work.ended_ns:
                return False
            work.abandoned = True
            self._abandoned.add(work)
            self._threads -= 1
            self._engage()
            self._tell_if_ended()  # a closing pool may be waiting for just this thread
        return True

    def lend(self, change: int) -> None:
        """Lend (1) the slot of a thread that waits in a nested call, or take it back (-1)."""
        with self._lock:
            self.slots += change
            self._lent += change
            if change > 0:
                self._engage()

    def close(self, mailbox: Mailbox) -> Gate:
        """Let the threads end; the gate opens when none is left but abandoned ones, which end after their work."""
        ended = mailbox.gate()
        mailbox.add_busy(1)

        def tell() -> None:
            for thread in self._leaving:
                thread.join(JOIN_S)  # they need microseconds, and until then they are seen as running
            mailbox.add_busy(-1)
            ended.set()

        with self._lock:
            self._closed = True
            self._on_ended = lambda: mailbox.put(tell)
            while self._idle:
                self._idle.pop().release()
            self._tell_if_ended()
        return ended
