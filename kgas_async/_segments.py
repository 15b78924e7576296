"""Which files a log of evidence consists of: told by their names and by the heads beside them. Reads no records."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ._chain import Head, head_path, segment_number, segment_path
from ._disk import begin_of
from ._mistaken import is_journal
from ._records import SCHEMA

__all__ = ["gap_after", "goes_on", "head_of", "in_the_way", "own_number", "segments_of"]

LARGEST_HEAD: Final = 4096


def head_of(segment: Path) -> tuple[Head | None, str | None]:
    """What a segment's head says, if there is one, and what is wrong with it."""
    path = head_path(segment)
    try:
        content = begin_of(path, LARGEST_HEAD) or b""
    except FileNotFoundError:
        return None, None
    head = Head.of(content)
    return head, f"{path.name} is no head of evidence of schema {SCHEMA}" if head is None else None


def goes_on(path: Path, number: int) -> bool:
    """Whether the log goes on behind that segment, in a file that is there.

    The name is not enough: somebody may have kept a copy as ``run.jsonl.2``. A segment has a head, which was there
    before it; where that was lost, the head before says that the log goes on, or was lost too.
    """
    following = segment_path(path, number + 1)
    if not following.exists() or is_journal(following):
        return False
    if head_path(following).exists():
        return True
    head, _ = head_of(segment_path(path, number))
    return head is None or head.state == "continued"


def segments_of(path: Path) -> Iterator[Path]:
    """The files of a log, in order, up to the first that is missing; the first is always among them.

    Each is looked for when the one before is done with, since a session may go on in it meanwhile.
    """
    if not path.name:  # ".", to which no ending can be given
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    number = 1
    yield path
    while goes_on(path, number):
        number += 1
        yield segment_path(path, number)


def gap_after(path: Path, number: int) -> str | None:
    """What to say if the log had more segments than so many, since the next one is missing."""
    last = segment_path(path, number)
    head, _ = head_of(last)
    following = segment_path(path, number + 1)
    later = [other for other in path.parent.iterdir() if _is_segment(path, other, above=number + 1)]
    if following.exists() and not is_journal(following):  # no segment, or one that a session has begun just now
        return None
    if head is not None and head.state == "continued":
        return f"{last.name} goes on in {following.name}, which is missing"
    if later:
        nearest = min(later, key=lambda one: segment_number(path, one) or 0)
        return f"{following.name} is missing, though there is {nearest.name}"
    return None


def _is_segment(path: Path, other: Path, *, above: int) -> bool:
    """Whether that is a segment of the log, further on than so: not if its head does not say so."""
    number = segment_number(path, other)
    if number is None or number <= above:
        return False
    head, _ = head_of(other)
    return head is not None and head.segment == number


def in_the_way(path: Path, number: int) -> Path | None:
    """A file that has the name of the segment after that one, and is none."""
    following = segment_path(path, number + 1)
    return following if following.exists() and not goes_on(path, number) else None


def own_number(path: Path, head: Head | None) -> int | None:
    """Which segment of a log the file is, if it is not the first and has its own name."""
    return head.segment if head is not None and head.segment > 1 and path.suffix == f".{head.segment}" else None
