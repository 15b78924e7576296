"""A pool of worker processes, and the works that run in them.

Each process belongs to one thread of the pool, which takes a work up once its worker is ready. Knows nothing of limits
and policies.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ._context import current_work
from ._guarding import Guard
from ._mailbox import Gate, Mailbox
from ._process import NotBegunError, Worker
from ._threads import ThreadPool, Work, instances_here
from ._travel import Travelling

__all__ = ["ProcessPool", "ProcessWork", "Remote"]


class Remote:
    """A tool's function that runs in a worker process, called in the thread that has one; elsewhere here and now.

    Args:
        travelling: What is called there.
        max_memory: Bytes that a call may allocate there; None: as many as there are.
    """

    def __init__(self, travelling: Travelling, max_memory: int | None) -> None:
        self.travelling = travelling
        self.max_memory = max_memory

    def check(self) -> None:
        """
        Raises:
            TypeError: It cannot travel, with the mend.
        """
        self.travelling.pickled()

    def __call__(self, /, **inputs: Any) -> Any:
        work = current_work.get()
        if not isinstance(work, ProcessWork):
            return self.travelling.function(**inputs)  # the raw function, outside any manager
        return work.call(self, inputs)


class ProcessWork(Work):
    """One call in a worker process: run by the thread that has the worker.

    Attributes:
        cpu_ns: CPU time that the call has taken; None where nobody knows.
        rss_peak: The largest resident set size of its process meanwhile, in bytes; None where nobody knows.
        travelling: The tool.
        is_building: Whether its worker builds the tool's instance.
    """

    __slots__ = ("_is_killed", "_unfit", "_worker", "cpu_ns", "is_building", "rss_peak", "travelling")

    def __init__(self, function: Callable[[], Any], context: Any, mailbox: Mailbox, travelling: Travelling) -> None:
        super().__init__(function, context, mailbox)
        self.travelling = travelling
        self.cpu_ns: int | None = None
        self.rss_peak: int | None = None
        self.is_building = False
        self._worker: Worker | None = None
        self._unfit: BaseException | None = None
        self._is_killed = False

    @property
    def is_unwanted(self) -> bool:
        """Whether it is not to begin any more."""
        return self._is_killed or self.aborted

    @property
    def is_killed(self) -> bool:
        """Whether its worker was killed for it, or would have been."""
        return self._is_killed

    prepares = True

    def prepare(self) -> None:
        """Have a worker that has loaded the tool, which takes a while at first; nothing of the call has begun."""
        if self.withdrawn:
            return
        try:
            self._get_worker()
        except BaseException as error:  # noqa: BLE001  (said when the call is taken up)
            self._unfit = error

    def _get_worker(self) -> Worker:
        assert isinstance(self.pool, ProcessPool)
        for last in (False, True):
            self._worker = worker = self.pool.worker_here(self._is_withdrawn)
            try:
                worker.load(self.travelling, self._is_withdrawn)
            except NotBegunError as error:
                if last:
                    raise _gone_twice() from error
            else:
                return worker
        raise AssertionError("it was loaded, or raised")

    def _is_withdrawn(self) -> bool:
        return self.withdrawn

    def call(self, remote: Remote, inputs: dict[str, Any]) -> Any:
        """Have the worker make the call, in its thread."""
        if self._unfit is not None:
            raise self._unfit
        assert self._worker is not None
        try:
            return self._worker.call(self, remote.travelling, remote.max_memory, inputs)
        except NotBegunError:  # it was dead already, for a reason that is not this call's
            worker = self._get_worker()
        try:
            return worker.call(self, remote.travelling, remote.max_memory, inputs)
        except NotBegunError as error:
            raise _gone_twice() from error

    def abort(self) -> None:
        """Nobody waits for it any more: its next ``check_cancelled()`` raises, over there."""
        super().abort()
        worker = self._worker
        if worker is not None:
            worker.abort(self)

    def kill(self) -> None:
        """Kill the worker that runs it; the end is told as of any work, once it is confirmed dead. Does not block."""
        self._is_killed = True
        worker = self._worker
        if worker is not None:
            worker.kill(self)


def _gone_twice() -> ChildProcessError:
    return ChildProcessError(
        "two worker processes, one after the other, ended before they had read what they were to do: somebody kills "
        "them, or what the program imports ends its process"
    )


class ProcessPool(ThreadPool):
    """Worker processes that run works first come, first served; started as needed, up to ``slots`` at a time.

    One is started when there is work and no other is idle, and kept until the pool is closed.
    """

    def __init__(self, slots: int, name: str) -> None:
        super().__init__(slots, name)
        self.guard = Guard()
        self._workers: set[Worker] = set()

    @property
    def processes(self) -> int:
        """Worker processes that exist."""
        return len(self._workers)

    def worker_here(self, unless: Callable[[], bool]) -> Worker:
        """The worker of this thread, started if need be, unless that takes long and nobody wants it.

        Raises:
            ChildProcessError: There is none, and none can be started.
        """
        worker: Worker | None = instances_here().get(self)
        if worker is not None and worker.is_alive:
            return worker
        if worker is not None:
            worker.end()
        sys.modules.setdefault("__mp_main__", sys.modules["__main__"])  # what its classes are pickled by over there
        try:
            worker = Worker(self.guard, self.buried)
        except OSError as error:
            raise ChildProcessError(f"a worker process could not start: {error}") from error
        with self._lock:
            self._workers.add(worker)
            is_closed = self._closed
        if is_closed:
            worker.kill()
        worker.boot(unless)
        instances_here()[self] = worker
        return worker

    def buried(self, worker: Worker) -> None:
        """A worker is no more."""
        with self._lock:
            self._workers.discard(worker)
        instances_here().pop(self, None)

    def close(self, mailbox: Mailbox) -> Gate:
        """End the workers, at once those that are just starting; the gate opens when none is left."""
        ended = super().close(mailbox)
        with self._lock:
            starting = [worker for worker in self._workers if not worker.is_ready]
        for worker in starting:
            worker.kill()
        return ended

    def _park(self, parked: Any) -> None:
        if self in instances_here():
            self._idle.append(parked)
        else:
            self._idle.insert(0, parked)  # its worker is gone: others are woken first

    def _retire(self) -> None:
        worker: Worker | None = instances_here().get(self)
        if worker is not None:
            worker.end()
        super()._retire()
        self.guard.end_if_unused()
