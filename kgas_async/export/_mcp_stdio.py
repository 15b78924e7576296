"""MCP over stdin and stdout, so that it can be cancelled at any moment, on both event loops.

The SDK's own transport reads in a worker thread, which nothing interrupts: cancelled, it stays until the client sends
another line. Here a descriptor is waited for and then read or written without blocking. Knows descriptors and lines; it
knows no tools.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from threading import Lock
from typing import TypeAlias

import anyio
import anyio.lowlevel
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

__all__ = ["Streams", "wire_of_stdio"]

CHUNK = 65_536
WITHOUT_BLOCKING = select.PIPE_BUF  # bytes that fit into a pipe whenever it is said to be writable

_is_free = Lock()  # whoever holds it serves

Streams: TypeAlias = tuple[
    MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]
]


@contextmanager
def _claimed() -> Iterator[tuple[int, int]]:
    """The two ends of the wire on descriptors of their own.

    Meanwhile descriptor 0 is at its end and descriptor 1 is stderr, so that what tools and their children print, or try
    to read, does not get between the messages.

    Raises:
        RuntimeError: They are taken already.
    """
    if not _is_free.acquire(blocking=False):
        raise RuntimeError("stdin and stdout are served already in this process, and there is only one client on them")
    with ExitStack() as undo:  # in reverse
        undo.callback(_is_free.release)
        reader, writer = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor in (reader, writer, nothing):
            undo.callback(os.close, descriptor)
        sys.stdout.flush()
        undo.callback(os.dup2, writer, 1)
        undo.callback(os.dup2, reader, 0)
        undo.callback(sys.stdout.flush)  # what was printed meanwhile, while it still goes to stderr
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        yield reader, writer


async def _lines(descriptor: int) -> AsyncIterator[bytes]:
    begun: list[bytes] = []  # the pieces of a line that has not ended
    while True:
        try:
            await anyio.wait_readable(descriptor)
        except OSError:  # a regular file or /dev/null: those cannot be waited for, and never block
            await anyio.lowlevel.checkpoint()
        chunk = os.read(descriptor, CHUNK)
        if not chunk:
            return
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            yield b"".join((*begun, line))
            begun.clear()
        begun.append(rest)


async def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            await anyio.wait_writable(descriptor)
        except OSError:
            await anyio.lowlevel.checkpoint()
        view = view[os.write(descriptor, view[:WITHOUT_BLOCKING]) :]


async def _receive(descriptor: int, messages: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    async with messages:
        async for line in _lines(descriptor):
            if not line.strip():
                continue
            one: SessionMessage | Exception
            try:
                one = SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValueError as error:
                one = error
            try:
                await messages.send(one)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return  # nobody serves any more


async def _send(descriptor: int, messages: MemoryObjectReceiveStream[SessionMessage]) -> None:
    async with messages:
        async for one in messages:
            text = one.message.model_dump_json(by_alias=True, exclude_unset=True)
            await _write(descriptor, text.encode() + b"\n")


@asynccontextmanager
async def wire_of_stdio() -> AsyncIterator[Streams]:
    """What the client sends, until it closes stdin, and what it gets.

    A client that does not read any more ends the first of them too.
    """
    received, receive = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    send, sent = anyio.create_memory_object_stream[SessionMessage](0)

    async def send_until_broken(descriptor: int) -> None:
        try:
            await _send(descriptor, sent)
        except OSError:  # nobody reads: BrokenPipeError
            reading.cancel()

    with received, receive, send, sent, _claimed() as (reader, writer):
        async with anyio.create_task_group() as tasks:
            reading = anyio.CancelScope()

            async def receive_until_broken() -> None:
                with reading, suppress(OSError):  # of a terminal that was hung up
                    await _receive(reader, received)

            tasks.start_soon(receive_until_broken)
            tasks.start_soon(send_until_broken, writer)
            try:
                yield receive, send
            finally:
                tasks.cancel_scope.cancel()
