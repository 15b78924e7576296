"""What a file is that was given in the place of another: a journal for evidence, say. Told from its first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ._chain import Head, record_of
from ._disk import begin_of

__all__ = ["APPLICATION", "HEADER", "header_of", "instead_of_evidence", "instead_of_journal", "is_journal"]

APPLICATION: Final = 0x4B474153  # "KGAS", in the header of each journal
_SQLITE: Final = b"SQLite format 3\0"
HEADER: Final = 100  # bytes that an SQLite database begins with
_LOOKED_AT: Final = 1 << 16  # bytes; a head is shorter, and so is the first record of a log, but for a very long plan


def instead_of_evidence(path: Path) -> str | None:
    """What is there that is no evidence, and the mend; None where it may be evidence, or nothing is known of it."""
    begin = _begin_of(path)
    if begin is None or _is_journal(begin):
        return "it is a journal, which 'kgas-async journal show' reads; give the file that --evidence named"
    if Head.of(begin) is not None:
        log = repr(str(path.with_suffix(""))) if path.suffix == ".head" else "the file that --evidence named"
        return f"it is the head of a log, which says how that ends; give the log itself, {log}"
    return None


def instead_of_journal(path: Path) -> str | None:
    """What is there that is no journal, and the mend; None where it may be a damaged one."""
    begin = _begin_of(path) or b""
    if Head.of(begin) is not None:
        return "it is the head of a log of evidence; give the file that --journal named"
    if record_of(begin.partition(b"\n")[0]) is not None:
        return "it is evidence, which 'kgas-async evidence show' reads; give the file that --journal named"
    if begin and not begin.startswith(_SQLITE):
        return "it is no journal, or its beginning is damaged; give the file that --journal named, or restore a copy"
    return None


def is_journal(path: Path) -> bool:
    """Whether there is a journal; one that this process has open is not touched to find out."""
    begin = _begin_of(path)
    return begin is None or _is_journal(begin)


def _is_journal(begin: bytes) -> bool:
    return begin.startswith(_SQLITE) and begin[68:72] == APPLICATION.to_bytes(4, "big")


def header_of(path: str) -> bytes:
    """The header of an SQLite database: less than `HEADER` bytes of what is none, no byte of an empty file.

    Raises:
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        header = file.read(HEADER)
    return header if header.startswith(_SQLITE) else header[:1]


def _begin_of(path: Path) -> bytes | None:
    """None of a journal that this process has open."""
    try:
        return begin_of(path, _LOOKED_AT)
    except (OSError, ValueError):  # said by who opens it
        return b""
