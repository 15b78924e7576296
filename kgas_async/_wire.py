"""Messages between a manager and its worker processes: pickles with their large parts beside them, over a socket.

What is large is neither joined before it is sent nor cut out after it has come: bytes and buffers (pickle protocol 5)
go from where they are into the socket, and from the socket into where they will be. Knows nothing of what is said.
"""

from __future__ import annotations

import pickle
import select
import socket
import struct
from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Any, Final

__all__ = ["Channel", "Unreadable", "pack"]

_HEAD: Final = struct.Struct("!BIQ")  # kind, how many buffers, length of the pickle; the buffers' lengths follow
LARGE: Final = 64 * 1024  # bytes from which copying costs more than a system call
HUGE: Final = 4 * 1024 * 1024  # bytes from which memory is taken from the system as it is
IOV_MAX: Final = 512  # parts per system call; the kernel takes 1024


class Unreadable(Exception):
    """A whole message has come, and what is in it could not be loaded; the next one can be read.

    Attributes:
        kind: The message's.
    """

    def __init__(self, kind: int) -> None:
        super().__init__(f"a message of kind {kind} could not be loaded")
        self.kind = kind


class _Packing:
    """What a pickler writes to: bytes of some size come as they are, without a copy; and its large buffers."""

    __slots__ = ("buffers", "parts", "write")

    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.write = self.parts.append
        self.buffers: list[memoryview] = []

    def in_band(self, buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < LARGE:
            return True
        self.buffers.append(view)
        return False


def pack(kind: int, message: object) -> list[Any]:
    """The parts of a message, in order.

    Raises:
        Exception: Whatever pickling raises.
    """
    packing = _Packing()
    pickle.Pickler(packing, 5, buffer_callback=packing.in_band).dump(message)
    parts, buffers = packing.parts, packing.buffers
    if len(parts) == 1 and not buffers:
        return [_HEAD.pack(kind, 0, len(parts[0])) + parts[0]]
    lengths = [buffer.nbytes for buffer in buffers]
    head = _HEAD.pack(kind, len(buffers), sum([memoryview(part).nbytes for part in parts]))
    return [head + struct.pack(f"!{len(lengths)}Q", *lengths), *buffers, *parts]


class Channel:
    """One end of the connection; one thread at a time sends, one receives.

    Args:
        connection: A stream socket, blocking.
        death: A file descriptor that is readable once the other end's process is dead: whoever else may hold its end of
            the socket, it is not waited for any longer.
    """

    def __init__(self, connection: socket.socket, death: int | None = None) -> None:
        self._socket = connection
        self._rest = b""
        self._unless: Callable[[], bool] | None = None
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        if death is not None:
            self._poll.register(death, select.POLLIN)

    def send(self, parts: Sequence[Any]) -> None:
        """Send what `pack` gave; blocks until the other end has taken most of it."""
        if len(parts) == 1:
            self._socket.sendall(parts[0])
            return
        views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        if sum(view.nbytes for view in views) <= LARGE:
            self._socket.sendall(b"".join(views))
            return
        at = 0
        while at < len(views):
            sent = self._socket.sendmsg(views[at : at + IOV_MAX])
            while sent and sent >= views[at].nbytes:
                sent -= views[at].nbytes
                at += 1
            if sent:
                views[at] = views[at][sent:]

    def receive(self, unless: Callable[[], bool] | None = None) -> tuple[int, Any]:
        """Wait for a message: its kind, and what it says.

        Args:
            unless: Asked once a second: whether it is not worth waiting any longer.

        Raises:
            EOFError: The other end is closed, or its process is dead, or ``unless``.
            ConnectionResetError: The same, and it had not read all that was sent to it.
            Unreadable: It could not be loaded; its cause says why.
        """
        self._unless = unless
        kind, count, length = _HEAD.unpack(self._read(_HEAD.size))
        lengths = struct.unpack(f"!{count}Q", self._read(8 * count)) if count else ()
        try:
            buffers = [_space(one) for one in lengths]
        except Exception as error:  # there is no memory for it
            self._skip(sum(lengths) + length)
            raise Unreadable(kind) from error
        for buffer in buffers:
            self._read_into(memoryview(buffer))
        if length <= LARGE:
            pickled = self._read(length)
            try:
                return kind, pickle.loads(pickled, buffers=buffers)
            except BaseException as error:
                raise Unreadable(kind) from error
        body = _Body(length, self._read, self._read_into)
        try:
            return kind, pickle.Unpickler(body, buffers=buffers).load()
        except BaseException as error:  # whatever it is, the next message begins where this one ends
            if body.is_cut:
                raise EOFError("the other end is gone") from error
            self._skip(body.left)
            raise Unreadable(kind) from error

    def end_sending(self) -> None:
        """Tell the other end that no more will come."""
        self._socket.shutdown(socket.SHUT_WR)

    def break_off(self) -> None:
        """Have whoever waits at this end stop waiting. From any thread."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def _read(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._await_more()
            more = self._socket.recv(LARGE)
            if not more:
                raise EOFError("the other end is gone")
            self._rest = self._rest + more if self._rest else more
        read, self._rest = self._rest[:count], self._rest[count:]
        return read

    def _read_into(self, view: memoryview) -> None:
        known = min(len(self._rest), view.nbytes)
        view[:known] = self._rest[:known]
        self._rest = self._rest[known:]
        while known < view.nbytes:
            self._await_more()
            got = self._socket.recv_into(view[known:])
            if not got:
                raise EOFError("the other end is gone")
            known += got

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._read(min(count, LARGE)))

    def _await_more(self) -> None:
        unless = self._unless
        while not (ready := self._poll.poll(None if unless is None else 1000)):
            if unless is not None and unless():
                raise EOFError("it is not waited for any longer")
        if all(one != self._socket.fileno() for one, _ in ready):
            raise EOFError("the process at the other end is dead")


def _space(size: int) -> Any:
    """Writable memory; a bytearray is filled with zeros first, which costs as much as the copy into it."""
    return bytearray(size) if size < HUGE else mmap(-1, size)


class _Body:
    """The pickle of one message, as a file for an unpickler.

    Attributes:
        left: Bytes of it that are still to come.
        is_cut: They will not come.
    """

    def __init__(self, length: int, read: Callable[[int], bytes], read_into: Callable[[memoryview], None]) -> None:
        self.left = length
        self._read = read
        self._read_into = read_into
        self.is_cut = False

    def read(self, count: int) -> bytes:
        read: bytes = self._taken(min(count, self.left), self._read)
        return read

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: self.left]
        self._taken(view.nbytes, lambda _: self._read_into(view))
        return view.nbytes

    def readline(self) -> bytes:
        line = b""
        while self.left and not line.endswith(b"\n"):
            line += self.read(1)
        return line

    def _taken(self, count: int, take: Callable[[Any], Any]) -> Any:
        self.left -= count
        try:
            return take(count)
        except BaseException:
            self.is_cut = True
            raise
