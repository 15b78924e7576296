"""One worker process, seen from its manager: started, given calls, killed, and confirmed dead.

It belongs to one thread, which starts it, talks with it and buries it. What is said, `_wire` and `_worker` know.
"""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from time import monotonic, sleep
from typing import IO, Any, Final, Protocol

from ._context import current_call
from ._errors import CallAborted, text_of
from ._evidence_sinks import bound_fields
from ._guarding import Guard
from ._system import kill_session, peak_rss_bytes
from ._travel import Travelling, main_module, picklable, unpack_error, why_not
from ._wire import Channel, Unreadable, pack
from ._worker import ABORT, BOOT, BUILDING, BUILT, CALL, FAILED, PROGRESS, READY, TOOL, UNFIT, Request

__all__ = ["NotBegunError", "Worker"]

END_S: Final = 1.0  # seconds for an idle worker to end by itself, its exit handlers run, before it is killed
PREPARE_S: Final = 10.0  # seconds of getting ready after which one that nobody waits for any more is given up
DYING_S: Final = 5.0  # seconds for a process that has closed its end to be dead, before it is killed


class Attempt(Protocol):
    """The work that a worker is at; see `ProcessWork`."""

    aborted: bool
    cpu_ns: int | None
    rss_peak: int | None
    is_building: bool

    @property
    def is_unwanted(self) -> bool: ...
    @property
    def is_killed(self) -> bool: ...


class NotBegunError(Exception):
    """The worker was dead before it had read what it was told to do."""


class Worker:
    """One worker process; used by one thread, killed from any.

    Args:
        guard: Kills it if we cannot.
        on_buried: Called when it is no more.

    Raises:
        ChildProcessError: It did not start, or is not fit for work.
    """

    def __init__(self, guard: Guard, on_buried: Callable[[Worker], object]) -> None:
        self._guard = guard
        self._on_buried = on_buried
        self._lock = Lock()
        self._work: Attempt | None = None
        self._number = 0
        self._tools: set[int] = set()
        self.is_ready = False
        self._is_dead = self._was_killed = False
        self._cpu_ns = self._last_cpu_ns = 0
        self._mark = f"KGAS_ASYNC_WORKER_{secrets.token_hex(8)}"
        ours, theirs = socket.socketpair()
        self._control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._control.setblocking(False)
        self._crash = _new_file()
        try:
            handles = [theirs.fileno(), their_control.fileno(), self._crash.fileno()]
            self._process = subprocess.Popen(
                _command(handles), stdin=subprocess.DEVNULL, pass_fds=handles, start_new_session=True,
                env={**os.environ, self._mark: "1"},
            )  # fmt: skip
        except BaseException:
            ours.close()
            self._control.close()
            self._crash.close()
            raise
        finally:
            theirs.close()
            their_control.close()
        self.pid = self._process.pid
        self._death: int | None = None
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):  # a sandbox may not have it
                self._death = os.pidfd_open(self.pid)
        self._channel = Channel(ours, self._death)

    def boot(self, unless: Callable[[], bool]) -> None:
        """Wait until it is ready, unless that takes long and nobody wants it.

        Raises:
            ChildProcessError: It ended instead, or is not fit; it is buried.
        """
        try:
            self._guard.watch(self.pid, self._mark)
        except OSError as error:
            self.kill()
            self.bury()
            raise ChildProcessError(f"the guard of the worker processes could not start: {error}") from error
        try:
            self._channel.send(pack(BOOT, (main_module(), list(sys.argv))))
            kind, said = self._channel.receive(self._patience(unless))
        except (EOFError, OSError) as error:
            how = self.bury()
            raise ChildProcessError(
                f"a worker process could not start: it {how}; what it wrote to stderr says why"
            ) from error
        if kind == UNFIT:
            self.bury()
            unfit = ChildProcessError(f"a worker process could not start: {said[0]}")
            unfit.add_note(f"in the worker process:\n{said[1]}")
            raise unfit
        assert kind == READY
        self._cpu_ns = said
        self.is_ready = True

    def load(self, travelling: Travelling, unless: Callable[[], bool]) -> None:
        """Have it import what the tool needs, if it has not.

        Raises:
            NotBegunError: It was dead.
            BaseException: What importing it raised, or `ChildProcessError`: the process ended meanwhile.
        """
        if travelling.serial in self._tools:
            return
        self.is_ready = False
        try:
            self._channel.send(pack(TOOL, (travelling.serial, travelling.pickled())))
            _, said = self._channel.receive(self._patience(unless))
        except OSError as error:
            self.bury()
            raise NotBegunError from error
        except EOFError:
            how, _, stack = self.bury().partition("\n")
            died = ChildProcessError(f"the worker process {how} while it loaded the tool {travelling.tool!r}")
            if stack:
                died.add_note(stack)
            raise died from None
        self.is_ready = True
        if said is not None:
            raise unpack_error(said[1], f"worker process {self.pid}")
        self._tools.add(travelling.serial)

    def _patience(self, unless: Callable[[], bool]) -> Callable[[], bool]:
        until = monotonic() + PREPARE_S

        def is_hopeless() -> bool:
            if monotonic() < until or not unless():
                return False
            self.kill()
            return True

        return is_hopeless

    # --- calls

    def call(self, work: Attempt, travelling: Travelling, max_memory: int | None, inputs: dict[str, Any]) -> Any:
        """Have it make a call of a tool that it has loaded.

        Raises:
            NotBegunError: It was dead.
            BaseException: What the tool raised, or `ChildProcessError`: the process ended meanwhile.
        """
        with self._lock:
            if work.is_unwanted:
                raise CallAborted("the call was cancelled or has timed out before it began")
            self._number += 1
            self._work = work
        try:
            parts = self._packed(travelling, max_memory, inputs)
            try:
                self._channel.send(parts)
                return self._answer(work)
            except (BrokenPipeError, ConnectionResetError) as error:  # it had not even read it
                how = self._how_ended(work)
                raise how if isinstance(how, CallAborted) else NotBegunError from error
        finally:
            with self._lock:
                self._work = None
            if self._was_killed and not self._is_dead:  # just as it answered
                self.bury()

    def _packed(self, travelling: Travelling, max_memory: int | None, inputs: dict[str, Any]) -> list[Any]:
        call: Any = current_call.get()
        about = (
            call.id, call.session_id, call.run_id, call.pipeline, call.phase, call.item, call.tool_name, call.attempt,
            call.given_name,
        )  # fmt: skip
        fields = bound_fields()
        request = Request(self._number, travelling.serial, about, fields, max_memory, inputs)
        try:
            return pack(CALL, tuple(request))
        except BaseException:  # an exit in a __reduce__ too
            for name, value in inputs.items():
                if (why := why_not(value)) is not None:
                    raise TypeError(
                        f"input {name!r} ({type(value).__name__}) cannot travel to a worker process: {text_of(why)}; "
                        f"give what it is made of (a path, an address, plain data), or use offload='thread'"
                    ) from why
            if why_not(fields) is None:
                raise
            return pack(CALL, tuple(request._replace(fields=picklable(fields))))

    def _answer(self, work: Attempt) -> Any:
        while True:
            try:
                kind, said = self._channel.receive()
            except EOFError:
                raise self._how_ended(work) from None
            except Unreadable as unreadable:
                if unreadable.kind == PROGRESS:
                    continue
                cause = unreadable.__cause__ or unreadable
                raise TypeError(
                    f"what the tool returned came from its worker process and could not be loaded here: "
                    f"{type(cause).__name__}: {text_of(cause)}; return plain data"
                ) from cause
            if kind == PROGRESS:
                if not work.aborted:
                    call: Any = current_call.get()
                    call.note_progress(*said)
            elif kind in (BUILDING, BUILT):
                work.is_building = kind == BUILDING
            else:
                work.is_building = False
                (cpu_ns, rss_peak), outcome = said
                self._note_usage(work, cpu_ns, rss_peak)
                if kind != FAILED:
                    return outcome
                error = unpack_error(outcome, f"worker process {self.pid}")
                if isinstance(error, MemoryError):
                    self.end()  # what its memory is like now, nobody knows
                raise error

    def _note_usage(self, work: Attempt, cpu_ns: int, rss_peak: int | None) -> None:
        work.cpu_ns = cpu_ns - self._cpu_ns
        work.rss_peak = rss_peak if rss_peak is not None else work.rss_peak
        self._cpu_ns = cpu_ns

    def abort(self, work: Attempt) -> None:
        """Tell it that nobody waits for this work, if it is at that."""
        with self._lock:
            if self._work is work and not self._is_dead:
                with suppress(OSError):  # full: it was told often enough; or it is dying
                    self._control.send(ABORT.pack(self._number))

    # --- the end

    def kill(self, work: Attempt | None = None) -> None:
        """Kill it, if it is at this work (at any: None). Does not block."""
        with self._lock:
            if self._is_dead or self._was_killed or (work is not None and self._work is not work):
                return
            if work is not None:
                work.rss_peak = peak_rss_bytes(self.pid)
            self._was_killed = True
            self._strike()

    def _strike(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(OSError):
            self._channel.break_off()  # a fork may hold the other end

    @property
    def is_alive(self) -> bool:
        """Whether it can be given a call."""
        return not (self._is_dead or self._was_killed) and not self._is_gone(0)

    def end(self) -> None:
        """Have an idle one end by itself, or kill it, and bury it."""
        if self._is_dead:
            return
        with suppress(OSError):
            self._channel.end_sending()
        self._is_gone(END_S)
        self.bury(patience_s=0)

    def bury(self, patience_s: float = DYING_S) -> str:
        """See it dead, with all that it has started, and close what is ours of it; how it ended."""
        if not self._is_gone(patience_s):
            self.kill()
            self._is_gone(None)
        self._channel.close()
        self._control.close()
        # It is a zombie now, so that its number, which is that of the session, is nobody else's.
        kill_session(self.pid, self._mark)
        with self._lock:
            self._is_dead = True
            how, self._last_cpu_ns = self._reap()
        if self._death is not None:
            os.close(self._death)
        self._crash.close()
        self._on_buried(self)
        self._guard.forget(self.pid)
        return how

    def _reap(self) -> tuple[str, int]:
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:  # somebody else has waited for it
            self._process.returncode = 0
            return "ended", self._cpu_ns
        code = self._process.returncode = os.waitstatus_to_exitcode(status)
        return _said(code, self._stack()), int((usage.ru_utime + usage.ru_stime) * 1e9)

    def _stack(self) -> str:
        self._crash.seek(0)
        return self._crash.read().decode(errors="replace").strip()

    def _how_ended(self, work: Attempt) -> BaseException:
        """The error of a work whose process is gone."""
        how = self.bury()
        self._note_usage(work, max(self._last_cpu_ns, self._cpu_ns), None)
        if work.is_killed:
            return CallAborted("its worker process was killed, since nobody waits for it any more")
        how, _, stack = how.partition("\n")
        error = ChildProcessError(f"the worker process {how}; it was replaced, and other calls are not affected")
        if stack:
            error.add_note(stack)
        return error

    def _is_gone(self, timeout_s: float | None) -> bool:
        """Whether the process is dead, in so many seconds at the most."""
        if self._death is not None:
            poll = select.poll()
            poll.register(self._death, select.POLLIN)
            return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
        until = None if timeout_s is None else monotonic() + timeout_s
        while True:
            try:
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                    return True
            except ChildProcessError:
                return True
            if until is not None and monotonic() >= until:
                return False
            sleep(0.001)


def _new_file() -> IO[bytes]:
    """A file without a name, in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):
            return os.fdopen(os.memfd_create("kgas-async-crash"), "w+b")
    return tempfile.TemporaryFile()


def _command(handles: list[int]) -> list[str]:
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    path = [entry for entry in sys.path if isinstance(entry, str)]
    code = f"import sys; sys.path[:] = {path!r}; from kgas_async._worker import main; main(*{handles!r})"
    return [sys.executable, *flags, "-c", code]


def _said(code: int, stack: str) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ""
    if -code == signal.SIGKILL:
        hint = ", by whoever; the kernel does so where memory runs out"
    return f"was killed by {name}{hint}" + (f"\n{stack}" if stack else "")
