"""Files that must not lie: whole writes, one writer at a time, small files replaced at once.

All that can fail at the disk is called through this module's ``os``, so that a test can have any of it fail.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

__all__ = [
    "begin_of", "close", "drop", "is_locked", "is_plain", "is_same", "lock", "name_new", "open_file", "replace",
    "size_of", "sync", "take", "unlock", "write",
]  # fmt: skip

# What systems say of a place that has no hard links, such as a memory card, or some that are elsewhere.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV,
             errno.EINVAL}  # fmt: skip

_taken: WeakValueDictionary[tuple[int, int], object] = WeakValueDictionary()
_taking = Lock()
os.register_at_fork(before=_taking.acquire, after_in_parent=_taking.release, after_in_child=_taking.release)


def open_file(path: Path, *, new: bool = False) -> int:
    """Open for reading and appending, made if it is not there; ``new``: it must not be there."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    return os.open(path, flags | os.O_EXCL if new else flags, 0o644)


def close(file: int) -> None:
    """Close it."""
    os.close(file)


def lock(file: int) -> bool:
    """Have it for this writer alone, until it is closed or the process ends, however it ends.

    Returns:
        False: another writer has it, in this process or another.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a writer has it now. To find out it is locked for a moment, beside other readers."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EAGAIN)
    finally:
        os.close(file)
    return False


def unlock(file: int) -> None:
    """Give it free at once, also where a process that was forked still has it open."""
    fcntl.flock(file, fcntl.LOCK_UN)


def take(path: str, owner: object) -> bool:
    """Have a file for one owner alone in this process, until that drops it or is gone.

    The locks of SQLite belong to the process, and it gives back all of a file's when it closes that file: one that is
    open as a database here must not be opened by other means.

    Returns:
        False: another one has it.
    """
    found = os.stat(path)
    with _taking:
        return _taken.setdefault((found.st_dev, found.st_ino), owner) is owner


def drop(owner: object) -> None:
    """It has none any more."""
    with _taking:
        for file in [file for file, one in _taken.items() if one is owner]:
            del _taken[file]


def begin_of(path: Path, size: int) -> bytes | None:
    """Its first bytes; none of what is no file, since a pipe can be read but once.

    Returns:
        None: an owner has it, and to open and close it would give back the locks of that.
    """
    with _taking:  # nobody takes it meanwhile
        found = os.stat(path)
        if (found.st_dev, found.st_ino) in _taken:
            return None
        if not stat.S_ISREG(found.st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(size)


def is_same(file: int, path: Path) -> bool:
    """Whether the open file is still the one that has this name."""
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    ours = os.fstat(file)
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def is_plain(file: int) -> bool:
    """Whether it is a file that keeps what is written, and no pipe, terminal or device."""
    return stat.S_ISREG(os.fstat(file).st_mode)


def size_of(file: int) -> int:
    """Its bytes."""
    return os.fstat(file).st_size


def write(file: int, data: bytes) -> None:
    """Write all of it."""
    left = memoryview(data)
    while left:
        written = os.write(file, left)
        if written == 0:
            raise OSError(errno.ENOSPC, "nothing could be written")
        left = left[written:]


def sync(file: int) -> None:
    """Have it on the disk itself."""
    os.fsync(file)


def replace(path: Path, data: bytes, *, synced: bool) -> None:
    """Give a small file new content, all of it or nothing; ``synced``: it is on the disk itself afterwards."""
    beside = path.with_name(path.name + ".new")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write(file, data)
        if synced:
            os.fsync(file)
    except BaseException:
        with suppress(OSError):
            os.unlink(beside)
        raise
    finally:
        os.close(file)
    os.replace(beside, path)
    if synced:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def name_new(made: Path, path: Path) -> None:
    """Give a file that is whole a second name, or a new one where there are no hard links; never that of another file.

    Raises:
        FileExistsError: Something has that name.
    """
    try:
        os.link(made, path)
        return
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno not in _NO_LINKS:
            raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # renaming replaces, so only one at a time may look and rename
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.rename(made, path)
    finally:
        os.close(folder)
