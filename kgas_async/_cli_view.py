"""What is to be seen of a run while it goes on: a view that is painted anew on a terminal, lines elsewhere.

A thread of its own looks at the manager now and then, so that a loop that hangs is seen to hang. It paints as often as
it can for a hundredth of a CPU at the most. Nothing of the terminal is changed that would have to be put right again:
whoever kills the process finds it as it was.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from time import perf_counter, perf_counter_ns, thread_time
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ._board import Board, OpenCall, Present
from ._cli_picture import SteadyConsole, flight_text, items_text, lines_of
from ._cli_text import printable, say
from ._errors import ManagerClosed
from ._manager import ServiceManager
from ._monitor import PerformanceMonitor
from ._picture import LimitSeen, Picture
from ._report import Progress
from ._threads import JOIN_S, Signal, start_daemon

__all__ = ["View"]

LEAST_S: Final = 0.25  # between two paintings
MOST_S: Final = 2.0
SHARE: Final = 0.005  # of a CPU that painting may take
LOOK_S: Final = 0.1  # elsewhere: between two looks
LINE_S: Final = 5.0  # between two lines


class View:
    """What is shown of one run, on standard error.

    Args:
        name: The pipeline's.
        grace: What is in flight has so many seconds to end.
        console: Where to; standard error unless given.

    Attributes:
        monitor: To be given to the manager; what it learns is what is shown.
        cpu_s: Seconds of CPU that painting has taken.
    """

    def __init__(self, name: str, grace: float, console: Console | None = None) -> None:
        self._name = name
        self._grace = grace
        self.board = Board()
        self.monitor = PerformanceMonitor()
        self.monitor._ledger = self.board
        is_ours = console is None
        self._console = SteadyConsole(stderr=True) if console is None else console
        # FORCE_COLOR makes rich take a file for a terminal: in colours it may be, but not painted anew.
        is_terminal = sys.stderr.isatty() if is_ours else self._console.is_terminal
        self.is_painted = is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._manager: ServiceManager | None = None
        self._progress: Progress | None = None
        self._stop = Signal()
        self._thread: Any = None
        self.cpu_s = 0.0
        self._said_at = 0.0
        self._said_ending = ""

    def on_progress(self, progress: Progress) -> None:
        """An item has ended. Called on the loop, for each."""
        self._progress = progress

    def open(self, manager: ServiceManager) -> None:
        """The session is open: look at it from now on."""
        self._manager = manager
        self.board.session_id = manager.session_id
        self._said_at = perf_counter()
        if self.is_painted:
            # What tools print comes above it; but not what goes into a file.
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True,
                redirect_stdout=sys.stdout.isatty(), redirect_stderr=True,
            )  # fmt: skip
            with suppress(OSError):
                self._live.start()
        self._thread = start_daemon(self._look_on, "kgas-view")

    def close(self) -> None:
        """The run is over: take the view away, and leave its last picture behind on a terminal."""
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(JOIN_S)
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            with suppress(OSError):
                for line in lines_of(self.picture(), self._console.width - 1):
                    self._console.print(line, highlight=False, soft_wrap=True)

    def picture(self) -> Picture:
        """How it stands now."""
        self.monitor._take_in()
        present = None if self._manager is None else _present_of(self._manager, self.board, self._progress)
        return self.board.picture(perf_counter_ns(), present=present)

    def _look_on(self) -> None:
        wait_s = LEAST_S if self.is_painted else LOOK_S
        while not self._stop.wait(wait_s):
            began = thread_time()
            try:
                if self._live is None:
                    self._look()
                    continue
                self._paint(self._live)
            except OSError:  # the terminal is gone
                return
            except RuntimeError:  # something was changed while it was looked at: the next look is not far
                continue
            self.cpu_s += (took_s := thread_time() - began)
            wait_s = min(max(LEAST_S, took_s / SHARE), MOST_S)

    def _paint(self, live: Live) -> None:
        picture = self.picture()
        lines = lines_of(picture, self._console.width - 1)
        if (ending := self._ending(picture)) is not None:
            lines.insert(0, Text(ending, style="yellow"))
            lines[0].truncate(self._console.width - 1, overflow="ellipsis")
        live.update(Text("\n", no_wrap=True, overflow="ellipsis").join(lines), refresh=True)

    def _look(self) -> None:
        """Where nothing is painted: say what it waits for as it ends, and now and then how far it is."""
        now = perf_counter()
        is_due = now - self._said_at >= LINE_S
        session = None if self._manager is None else self._manager._session
        is_ending = session is not None and (session.is_draining or session.is_cancelled)
        if not (is_due or is_ending):
            return
        picture = self.picture()
        ending = self._ending(picture)
        if ending is not None and (is_due or ending != self._said_ending):
            self._said_ending = ending
            say(f"{ending}; {flight_text(picture.in_flight)}")
        elif is_due:
            say(f"{printable(self._name)}: {items_text(picture.items, picture.elapsed_s)}")
        else:
            return
        self._said_at = now

    def _ending(self, picture: Picture) -> str | None:
        """What it waits for, where it was told to end."""
        session = None if self._manager is None else self._manager._session
        if session is None or picture.signal is None or not picture.in_flight:
            return None
        if session.is_cancelled:
            return f"cancelling, up to {self._grace:g} s (once more ends the process)"
        return f"draining after {picture.signal}, up to {self._grace:g} s (once more cancels)"


def _present_of(manager: ServiceManager, board: Board, progress: Progress | None) -> Present | None:
    try:
        session = manager._opened()
    except ManagerClosed:
        return None if progress is None else Present((), progress, (), 0)
    calls = list(session.calls_open.values())
    open_calls = [OpenCall(one.bound.name, one.bound.pipeline, one.bound.phase, one.created_ns) for one in calls]
    bounds = list(dict.fromkeys([*board.bounds, *(one.bound for one in calls)]))
    queued = sum(pool.queued for pool in session.pools())
    return Present(open_calls, progress, _limits_of(bounds), queued)


def _limits_of(bounds: list[Any]) -> list[LimitSeen]:
    """The limits that these take their tokens of, each once, named after the tools that share it."""
    names: dict[Any, dict[str, None]] = {}
    for bound in bounds:
        for limit in (*bound.limits, *bound.rates):
            names.setdefault(limit, {})[bound.name] = None
    return [_limit_seen(limit, "+".join(tools)) for limit, tools in names.items()]


def _limit_seen(limit: Any, name: str) -> LimitSeen:
    stands = limit.statistics()
    if hasattr(stands, "rate"):
        return LimitSeen(name, "rate", None, stands.rate / stands.per, stands.waiting)
    if hasattr(stands, "max_bytes"):
        note = "paused" if stands.is_paused else ""
        return LimitSeen(name, "memory", stands.used_bytes, stands.max_bytes, stands.waiting, note)
    return LimitSeen(name, "concurrency", stands.borrowed, stands.total, stands.waiting)
