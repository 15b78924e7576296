"""Virtual time on asyncio and trio, with seeded scheduling: a day of sleep costs nothing, an order can be replayed.

When every task waits, the clock jumps to the next deadline; but not while a thread of ours works, for then a timeout
would fire that never happened. It knows our threads by the busy count of their `Mailbox`. It does not know other
threads (AnyIO's among them), child processes and sockets: over those it jumps. With no deadline to jump to it waits
really.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import trio
import trio.testing

__all__ = ["VirtualBackend", "VirtualClock", "VirtualLoop", "virtual_backend", "virtual_backends"]

HOLD_S: Final = 0.3  # real seconds; a thread that is stuck for longer holds the clock no more
# What counts towards them between two looks at the clock, at the most. While the machine has no time for us it has none
# for our threads either, and they are not stuck.
LOOK_S: Final = 0.01


class BusyCount(Protocol):
    """What a virtual clock wants of a mailbox: how many of our threads work, and word of each change."""

    busy: int
    on_busy: Callable[[int], None] | None


class _Hold:
    """How long busy threads still hold the clock."""

    def __init__(self) -> None:
        self._mailboxes: list[BusyCount] = []
        self._has_changed = False
        self._left_s = 0.0
        self._looked_at = -math.inf

    def adopt(self, mailbox: BusyCount) -> None:
        self._mailboxes.append(mailbox)
        mailbox.on_busy = self._note_change
        if mailbox.busy:
            self._note_change(mailbox.busy)

    def _note_change(self, _busy: int) -> None:
        self._has_changed = True  # and no more: it may come from any thread

    def left_s(self) -> float:
        """Real seconds for which an idle loop must stand still before it asks again; 0 if nobody holds the clock."""
        if not any(mailbox.busy > 0 for mailbox in self._mailboxes):
            return 0.0
        now = perf_counter()
        if self._has_changed:
            self._has_changed = False
            self._left_s = HOLD_S
        else:
            self._left_s -= min(now - self._looked_at, LOOK_S)
        self._looked_at = now
        return max(0.0, min(self._left_s, LOOK_S))


def _need(owner: object, *names: str) -> None:
    """Fail with the reason if a private name that the seeds or the clock rest on is gone."""
    for name in names:
        if not hasattr(owner, name):
            label = getattr(owner, "__name__", repr(owner))
            raise RuntimeError(
                f"kgas_async.testing rests on the private name {label}.{name}, which this version does not have"
                f" (trio {trio.__version__}): it was renamed or removed. Use a version that has it"
            )


class _VirtualSelector(selectors.DefaultSelector):
    """Polls instead of waiting, and lets its loop's clock jump when there is nothing to do before a deadline."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and (timeout is None or timeout > 0):
            held_s = self.loop.hold.left_s()
            if timeout is None:
                events = super().select(None)  # no deadline to jump to: what comes next comes from outside
            elif held_s:
                events = super().select(held_s)
            else:
                self.loop.jump(timeout)
        self.loop.shuffle()
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop whose time starts at 0 and jumps; with a seed it shuffles the tasks that are ready.

    Attributes:
        on_jump: Called with the time to which the clock is about to jump.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._now = 0.0
        self._random = None if seed is None else random.Random(seed)
        self._births: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        self._birth = count()
        self.hold = _Hold()
        self.on_jump: Callable[[float], None] | None = None
        selector = _VirtualSelector()
        selector.loop = self
        super().__init__(selector)
        _need(self, "_ready", "_clock_resolution")
        _need(asyncio.Handle, "_callback")
        self._ready: deque[asyncio.Handle]

    def time(self) -> float:
        return self._now

    def adopt_mailbox(self, mailbox: BusyCount) -> None:
        """Stand still while the threads of ``mailbox`` work."""
        self.hold.adopt(mailbox)

    def jump(self, seconds: float) -> None:
        """Move the clock on."""
        if self.on_jump is not None:
            self.on_jump(self._now + seconds)
        self._now += seconds
        # A step that the clock's own digits can hold, else a timer far off would never be due.
        self._clock_resolution = max(1e-9, 2 * math.ulp(self._now))

    def create_task(self, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task = super().create_task(coro, **options)
        self._births[task] = next(self._birth)
        return task

    def shuffle(self) -> None:
        """Put those ready handles that are a task's into the seed's order; all others keep their places."""
        if self._random is None:
            return
        ready = self._ready
        # By index: a foreign thread may append meanwhile, but nobody else removes.
        places = [place for place in range(len(ready)) if _task_of(ready[place]) is not None]
        if len(places) < 2:
            return
        # By age first: AnyIO cancels tasks in the order of a set, which differs from run to run.
        handles = sorted((ready[place] for place in places), key=self._birth_of)
        self._random.shuffle(handles)
        for place, handle in zip(places, handles, strict=True):
            ready[place] = handle

    def _birth_of(self, handle: asyncio.Handle) -> int:
        task = _task_of(handle)
        assert task is not None
        if task not in self._births:
            self._births[task] = next(self._birth)
        return self._births[task]


def _task_of(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return owner if isinstance(owner, asyncio.Task) else None


class _Open:
    """Stops MockClock's refusal to be subclassed: the loop wants a MockClock, and it has to ask our threads first."""

    def __init_subclass__(cls) -> None:
        pass


class VirtualClock(_Open, trio.testing.MockClock):  # type: ignore[misc]  # final
    """A trio clock whose time starts at 0 and jumps.

    Attributes:
        on_jump: Called with the time to which the clock is about to jump.
    """

    def __init__(self) -> None:
        _need(trio.testing.MockClock, "_autojump")
        super().__init__(autojump_threshold=0.0)
        self.hold = _Hold()
        self.on_jump: Callable[[float], None] | None = None

    def adopt_mailbox(self, mailbox: BusyCount) -> None:
        """Stand still while the threads of ``mailbox`` work."""
        self.hold.adopt(mailbox)

    def deadline_to_sleep_time(self, deadline: float) -> float:
        # trio asks this just before an idle loop waits, and looks at the threshold next.
        threshold = math.inf if deadline == math.inf else self.hold.left_s()  # inf: nothing to jump to
        if threshold != self.autojump_threshold:
            self.autojump_threshold = threshold
        sleep_s: float = super().deadline_to_sleep_time(deadline)
        return sleep_s

    def _autojump(self) -> None:
        if self.hold.left_s():
            return  # a thread took up work while the loop waited for another
        seconds = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if self.on_jump is not None and 0 < seconds < math.inf:
            self.on_jump(self.current_time() + seconds)
        super()._autojump()


class _SeededOrder(trio.abc.Instrument):
    """Makes trio's scheduling follow a seed for the time of one run, and gives back what was there before."""

    def __init__(self, seed: int) -> None:
        self._module: Any = trio._core._run
        _need(self._module, "_r", "_ALLOW_DETERMINISTIC_SCHEDULING")
        self._seed = seed
        self._before: tuple[bool, object] | None = None

    def before_run(self) -> None:
        self._before = (self._module._ALLOW_DETERMINISTIC_SCHEDULING, self._module._r.getstate())
        self._module._ALLOW_DETERMINISTIC_SCHEDULING = True
        self._module._r.seed(self._seed)

    def after_run(self) -> None:
        if self._before is not None:
            self._module._ALLOW_DETERMINISTIC_SCHEDULING, state = self._before
            self._module._r.setstate(state)
            self._before = None


def virtual_backend(name: str, seed: int | None = None) -> tuple[str, dict[str, Any]]:
    """Make the backend and options of one run in virtual time, for ``anyio.run`` or AnyIO's pytest plugin.

    ::

        backend, options = virtual_backend("trio", seed=7)
        anyio.run(main, backend=backend, backend_options=options)

    The clock starts at 0 and jumps to the next deadline when every task waits. It stands still while threads of a
    `ServiceManager` work, but a thread that is busy for more than 0.3 real seconds, counted anew when it is told to
    end, holds it no longer, so that a timeout on a stuck thread fires. Seconds in which the machine had no time for
    the process do not count. It jumps over what it does not know: other threads, child processes, sockets.
    On asyncio ``wait_all_tasks_blocked()`` may itself take steps of 0.1 virtual seconds.

    Args:
        name: ``"asyncio"`` or ``"trio"``. There is no virtual time on uvloop: its timers are out of reach.
        seed: The order in which tasks that are ready at the same time run. None is the loop's own: first come, first
            served on asyncio, at random on trio. Threads come in when they come in, whatever the seed. One seeded run
            of trio at a time in a process, for its random numbers are the process's.

    Returns:
        A backend name and its options, with a clock of their own: make new ones for each run.

    Raises:
        ValueError: No virtual time on this backend.
        RuntimeError: This version of trio or Python renamed a private name that virtual time or seeds rest on.
    """
    if name == "asyncio":
        return name, {"loop_factory": partial(VirtualLoop, seed)}
    if name == "trio":
        return name, {"clock": VirtualClock(), "instruments": [] if seed is None else [_SeededOrder(seed)]}
    raise ValueError(f'no virtual time on {name!r}: use "asyncio" or "trio" (uvloop\'s timers are real)')


@dataclass(frozen=True)
class VirtualBackend:
    """One parameter of an ``anyio_backend`` fixture: called, it gives a backend with a fresh clock.

    Attributes:
        backend: ``"asyncio"`` or ``"trio"``.
        seed: As for `virtual_backend`.
    """

    backend: str
    seed: int | None = None

    @property
    def __name__(self) -> str:  # what pytest shows as the parameter's id
        return f"{self.backend}-virtual" + ("" if self.seed is None else f"-seed{self.seed}")

    def __call__(self) -> tuple[str, dict[str, Any]]:
        """A fresh backend and options, see `virtual_backend`."""
        return virtual_backend(self.backend, self.seed)


def virtual_backends(backends: Iterable[str] = ("asyncio", "trio"), seed: int | None = None) -> list[VirtualBackend]:
    """Make the parameters of an ``anyio_backend`` fixture under which each test runs in virtual time.

    ::

        @pytest.fixture(params=virtual_backends())
        def anyio_backend(request):
            return request.param()

    Mind the call in the last line: it makes the clock, a new one for each test. The fixture must have function scope
    (the default), for a wider one would share one clock between tests. Tests show as ``test_x[asyncio-virtual]``.

    Args:
        backends: ``"asyncio"``, ``"trio"`` or both.
        seed: As for `virtual_backend`.

    Returns:
        One parameter per backend.

    Raises:
        ValueError: No virtual time on one of the backends.
    """
    made = [VirtualBackend(backend, seed) for backend in backends]
    for backend in made:
        backend()  # raises here, at collection, what it would raise in each test
    return made
