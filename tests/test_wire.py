"""Messages between processes: whole whatever their size, without needless copies, and the next one after a bad one."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kgas_async._wire import HUGE, LARGE, Channel, Unreadable, pack


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = map(Channel, socket.socketpair())
    yield one, other
    one.close()
    other.close()


def sent(ends: tuple[Channel, Channel], *messages: Any) -> list[Any]:
    """What comes out of the other end."""
    sender = threading.Thread(target=lambda: [ends[0].send(pack(number, said)) for number, said in enumerate(messages)])
    sender.start()
    received = [ends[1].receive() for _ in messages]
    sender.join()
    assert [kind for kind, _ in received] == list(range(len(messages)))
    return [said for _, said in received]


class Array:
    """Something that pickles with a buffer of its own, as arrays do."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (Array, (pickle.PickleBuffer(self.data),))


SIZES = [0, 1, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE, HUGE - 1, HUGE + 1]


@pytest.mark.parametrize("size", SIZES)
def test_values_of_any_size_come_whole(ends: tuple[Channel, Channel], size: int) -> None:
    data = os.urandom(size)
    text = "é" * size
    said = sent(ends, data, [data, {"x": (text, bytearray(data))}], Array(bytearray(data)), "last")
    assert said[0] == data
    assert said[1] == [data, {"x": (text, bytearray(data))}]
    assert bytes(said[2].data) == data
    assert said[3] == "last"


def test_many_small_ones_in_one_go(ends: tuple[Channel, Channel]) -> None:
    messages = list(range(50))
    assert sent(ends, *messages) == messages


def test_more_parts_than_fit_one_system_call(ends: tuple[Channel, Channel]) -> None:
    many = [bytes([n % 256]) * LARGE for n in range(1300)]
    assert sent(ends, many) == [many]


def test_large_bytes_and_buffers_are_sent_from_where_they_are() -> None:
    data, buffer = b"x" * LARGE, bytearray(LARGE)
    parts = pack(0, [data, Array(buffer)])
    assert any(part is data for part in parts)
    assert any(isinstance(part, memoryview) and part.obj is buffer for part in parts)


def test_a_received_buffer_can_be_written_to(ends: tuple[Channel, Channel]) -> None:
    for size in (LARGE, HUGE):
        (array,) = sent(ends, Array(bytearray(size)))
        memoryview(array.data)[0] = 7
        assert memoryview(array.data)[0] == 7


class Bad:
    def __init__(self, size: int) -> None:
        self.padding = bytes(size)

    def __reduce__(self) -> Any:
        return (_raise, (self.padding,))


def _raise(padding: bytes) -> None:
    raise EOFError("from the user's own code")


@pytest.mark.parametrize("size", [0, 2 * LARGE])
def test_after_one_that_cannot_be_loaded_comes_the_next(ends: tuple[Channel, Channel], size: int) -> None:
    sender = threading.Thread(target=lambda: [ends[0].send(pack(5, [Bad(size), "x" * size])), ends[0].send(pack(6, 1))])
    sender.start()
    with pytest.raises(Unreadable) as unreadable:
        ends[1].receive()
    assert unreadable.value.kind == 5
    assert isinstance(unreadable.value.__cause__, EOFError)
    assert ends[1].receive() == (6, 1)
    sender.join()


def test_an_end_in_the_middle_of_a_message_is_an_end(ends: tuple[Channel, Channel]) -> None:
    parts = pack(0, bytes(3 * LARGE))
    ends[0].send([b"".join(parts)[: LARGE // 2]])
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].receive()


def test_a_death_ends_the_wait_though_somebody_else_holds_the_socket() -> None:
    ours, theirs = socket.socketpair()
    alive, dead = os.pipe()  # readable once the other end is closed, as a dead process is
    channel = Channel(ours, alive)
    theirs.sendall(b"".join(pack(1, "its last words")))
    os.close(dead)
    assert channel.receive() == (1, "its last words")
    with pytest.raises(EOFError, match="dead"):
        channel.receive()
    os.close(alive)
    channel.close()
    theirs.close()


def test_broken_off_from_another_thread(ends: tuple[Channel, Channel]) -> None:
    thread = threading.Timer(0.01, ends[1].break_off)
    thread.start()
    with pytest.raises(EOFError):
        ends[1].receive()
    thread.join()


def test_a_wait_that_is_given_up(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(EOFError, match="not waited for"):
        ends[1].receive(lambda: True)
