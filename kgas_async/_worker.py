"""A worker process from the inside: takes calls from its manager one by one, runs them, and says how they ended.

`main` is what its interpreter runs. It has one thread; a tool that forks gets a copy that ends where the tool returns.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import io
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from threading import Lock
from typing import Any, Final, NamedTuple

from ._context import current_call, door
from ._errors import add_note, text_of
from ._evidence_sinks import bind_fields
from ._offload import LegacyFunction, refuse_coroutine
from ._travel import PackedError, pack_error, picklable
from ._wire import Channel, Unreadable, pack

__all__ = [
    "ABORT", "BOOT", "BUILDING", "BUILT", "CALL", "FAILED", "LOADED", "PROGRESS", "READY", "TOOL", "UNFIT", "VALUE",
    "Request", "main",
]  # fmt: skip

# What messages say. To the worker: how to begin, a tool, a call. From it: that it is ready, or why it cannot be; that
# it has the tool; then about the call.
BOOT, TOOL, CALL, READY, UNFIT, LOADED, BUILDING, BUILT, PROGRESS, VALUE, FAILED = range(11)
ABORT: Final = struct.Struct("!Q")  # on the other socket: the number of the call that nobody waits for any more

_PAGE: Final = resource.getpagesize()
FEW_FAULTS: Final = 256  # pages; a MiB
_PR_SET_PDEATHSIG: Final = 1
_GUARD: Final = "if __name__ == '__main__':"


class Request(NamedTuple):
    """A call as it comes to a worker.

    Attributes:
        number: Of the call, among those of this worker.
        tool: The number of the tool.
        about: What `call_context` says of the call, and its id.
        fields: What structlog's context variables held.
        max_memory: Bytes that it may allocate.
        inputs: By name.
    """

    number: int
    tool: int
    about: tuple[Any, ...]
    fields: dict[str, Any]
    max_memory: int | None
    inputs: dict[str, Any]


class _CallElsewhere:
    """The call that code in a worker process works for; the call itself is in the manager's process."""

    def __init__(self, worker: _Worker, number: int, about: tuple[Any, ...]) -> None:
        self._worker = worker
        self._number = number
        (
            self.id, self.session_id, self.run_id, self.pipeline, self.phase, self.item, self.tool_name, self.attempt,
            self.given_name,
        ) = about  # fmt: skip

    @property
    def placed(self) -> _CallElsewhere:
        """The call itself: what it says of its place was looked up where it was made."""
        return self

    @property
    def manager(self) -> Any:
        raise RuntimeError(
            f"current() was called in a worker process (tool {self.tool_name!r}, offload='process'); the manager is in "
            f"the process that started it: return what the next tool needs, or use offload='thread'"
        )

    @property
    def aborted(self) -> bool:
        return self._worker.is_aborted(self._number)

    def note_progress(self, done: float, total: float | None, message: str, data: Mapping[str, Any]) -> None:
        self._worker.tell(PROGRESS, (done, total, message, picklable(data)), of=self._number)

    def nested(self, tool: Any) -> Any:
        """What the sync door of a tool does here."""
        raise RuntimeError(
            f"tool {tool.name!r}: execute() was called in a worker process (tool {self.tool_name!r}, "
            f"offload='process'), which has no manager; call the plain function or object there, or make the outer "
            f"tool one with offload='thread'"
        )


class _Memory:
    """The largest resident set size during a call, and a bound on what a call may allocate."""

    def __init__(self) -> None:
        self._files: tuple[int, int, int] | None = None
        self._faults = 0
        with suppress(OSError):  # Linux only
            self._files = (
                os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC),
                os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC),
                os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC),
            )

    def begin(self) -> None:
        """Count from now."""
        if self._files is not None:
            os.write(self._files[0], b"5")
            self._faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def peak(self, usage: Any) -> int | None:
        """Bytes, since the beginning; None where the kernel does not tell.

        Exact to a MiB where hardly any page was new: the kernel takes long to say more.
        """
        if self._files is None:
            return None
        _, status, statm = self._files
        if usage.ru_minflt - self._faults < FEW_FAULTS:
            return int(os.pread(statm, 100, 0).split()[1]) * _PAGE
        _, found, rest = os.pread(status, 4096, 0).partition(b"VmHWM:")
        return int(rest.split(None, 1)[0]) * 1024 if found else None

    def limit(self, size: int) -> None:
        """Have no more than so many bytes of address space beyond what is in use now."""
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123
            used = int(statm.read().split()[0]) * _PAGE
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = used + size
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))

    def unlimit(self) -> None:
        """End that."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def cpu_ns(own: Any) -> int:
    """CPU time that this process has used, with the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime) * 1e9)


class _Worker:
    def __init__(self, connection: socket.socket, control: socket.socket) -> None:
        self._channel = Channel(connection)
        self._control = control
        self._lock = Lock()  # a tool may tell of its progress from several threads
        self._aborted = 0
        self._at = 0  # the number of the call that is under way
        self._tools: dict[int, LegacyFunction] = {}
        self._memory = _Memory()
        self._pid = os.getpid()
        self._sockets = (connection, control)
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a fork of the tool's: the sockets are not its, and the lock may be held by a thread that it has not."""
        self._lock = Lock()
        for one in self._sockets:
            with suppress(OSError):
                os.close(one.detach())

    def tell(self, kind: int, message: object, *, of: int | None = None) -> None:
        """Send a message; one ``of`` a call only while that is under way. From any thread.

        What a thread tells that has outlived its call would be taken for a word of the next one, or for its answer.
        """
        parts = pack(kind, message)
        with self._lock:
            if os.getpid() == self._pid and of in (None, self._at):
                self._channel.send(parts)

    def _tell_last(self, parts: list[Any]) -> None:
        """Send the answer to what was asked."""
        with self._lock:
            self._at = 0
            self._channel.send(parts)

    def is_aborted(self, number: int) -> bool:
        """Whether nobody waits for this call any more."""
        while os.getpid() == self._pid:
            try:
                (self._aborted,) = ABORT.unpack(self._control.recv(ABORT.size, socket.MSG_DONTWAIT))
            except (OSError, struct.error):  # nothing there, or nobody
                break
        return self._aborted == number

    def serve(self) -> None:
        """Take calls until there are no more."""
        while True:
            try:
                kind, said = self._channel.receive()
            except EOFError:
                return
            except Unreadable as unreadable:
                cause = unreadable.__cause__ or unreadable
                self._fail(
                    TypeError(
                        f"the inputs came to the worker process and could not be loaded there: "
                        f"{type(cause).__name__}: {text_of(cause)}"
                    )
                )
                continue
            if kind == TOOL:
                self._load(*said)
            else:
                self._answer(*self._run(Request(*said)))

    def _run(self, request: Request) -> tuple[bool, Any]:
        """Whether it gave a value, and that, or its error."""
        self._memory.begin()
        self._at = request.number
        function = self._tools[request.tool]
        try:
            if function.builds_here():
                self.tell(BUILDING, None)
                function.build_here()
                self.tell(BUILT, None)
            context = copy_context()
            context.run(self._enter, request)
            try:
                if request.max_memory is not None:
                    self._memory.limit(request.max_memory)
                value = self._called(context, function, request)
            finally:
                if request.max_memory is not None:
                    self._memory.unlimit()
        except BaseException as error:  # noqa: BLE001  (SystemExit too is the call's failure, not the worker's)
            if os.getpid() != self._pid:
                os._exit(1)
            if isinstance(error, MemoryError) and request.max_memory is not None:
                add_note(error, f"a call of this tool may allocate {request.max_memory} bytes (max_memory)")
            return False, error
        if os.getpid() != self._pid:
            os._exit(0)  # a fork of the tool's that has returned from it: it has nobody to return to
        return True, value

    def _called(self, context: Context, function: LegacyFunction, request: Request) -> Any:
        return refuse_coroutine(context.run(partial(function, **request.inputs)), function)

    def _enter(self, request: Request) -> None:
        current_call.set(_CallElsewhere(self, request.number, request.about))
        if request.fields:
            bind_fields(request.fields)

    def _load(self, number: int, pickled: bytes) -> None:
        try:
            self._tools[number] = pickle.loads(pickled)
        except BaseException as error:  # noqa: BLE001  (what importing its module raises)
            unloadable = ImportError(
                f"the tool could not be loaded in a worker process: {type(error).__name__}: {text_of(error)}"
            )
            unloadable.__cause__ = error
            self._fail(unloadable)
        else:
            self.tell(LOADED, None)

    def _answer(self, ok: bool, outcome: Any) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed by the tool, say
                stream.flush()
        if not ok:
            self._fail(outcome)
            return
        usage = self._usage()
        try:
            parts = pack(VALUE, (usage, outcome))
        except BaseException as error:  # noqa: BLE001  (whatever a __reduce__ raises)
            unsendable = TypeError(
                f"the tool returned a {type(outcome).__name__}, which cannot travel from its worker process: "
                f"{text_of(error)}; return plain data, or map it there with returns="
            )
            unsendable.__cause__ = error
            self._fail(unsendable)
            return
        self._tell_last(parts)

    def _fail(self, error: BaseException) -> None:
        packed: PackedError = pack_error(error)
        self._tell_last(pack(FAILED, (self._usage(), packed)))

    def _usage(self) -> tuple[int, int | None]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cpu_ns(usage), self._memory.peak(usage)


def main(connection: int, control: int, crash: int) -> None:
    """Run a worker process.

    Args:
        connection: The file descriptor of the socket for calls.
        control: Of the socket that says which call to abort.
        crash: Of the file that tells where it crashed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    faulthandler.enable(crash, all_threads=False)
    for descriptor in (connection, control, crash):
        os.set_inheritable(descriptor, False)
    worker = _Worker(socket.socket(fileno=connection), socket.socket(fileno=control))
    try:
        _, (main_module, argv) = worker._channel.receive()
    except EOFError:
        return
    sys.argv[:] = argv
    try:
        import_main(main_module)
    except BaseException as error:  # noqa: BLE001  (the user's program, in whatever way)
        worker.tell(UNFIT, (_why_unfit(error), pack_error(error).traceback))
        return
    worker.tell(READY, cpu_ns(resource.getrusage(resource.RUSAGE_SELF)))
    worker.serve()


def _why_unfit(error: BaseException) -> str:
    said = f"importing the program's main module again raised {type(error).__name__}: {text_of(error)}"
    if _GUARD in said:  # a manager that was opened there says it too
        return said
    return f"{said}; what is to run only once stands under {_GUARD!r}"


def _die_with_parent() -> None:
    """Have the kernel kill us when the thread that started us is gone, with its whole process or alone."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def import_main(main_module: tuple[str, str] | None) -> None:
    """Import the program's main module again, under the name ``__mp_main__``, as multiprocessing does."""
    if main_module is None:
        return
    kind, value = main_module
    module = types.ModuleType("__mp_main__")
    if kind == "name":
        spec = importlib.util.find_spec(value)
        if spec is None or spec.loader is None:
            raise ImportError(f"no module named {value!r}")
        module.__file__, module.__package__, module.__spec__ = spec.origin, spec.parent, spec
        code = spec.loader.get_code(value)  # type: ignore[attr-defined]
    else:
        module.__file__ = value
        with io.open_code(value) as source:
            code = compile(source.read(), value, "exec")
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    door.imports_main = True
    try:
        exec(code, module.__dict__)
    finally:
        door.imports_main = False
