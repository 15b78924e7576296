"""`Journal`: where a run keeps what its phases gave, so that another run of the pipeline takes it from there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from ._journal_codec import JournalCodec, named_codec
from ._suggest import suggests

__all__ = ["RETRIES", "Journal", "as_journal"]

RETRIES: Final = ("all", "failed", "none")
_ON_CHANGE: Final = ("reuse", "run", "refuse")


class Journal:
    """A file that a run keeps its finished phases in: ``manager.run(pipeline, items, journal=Journal("papers.db"))``.

    An SQLite database of one pipeline. One run at a time has it open.

    Args:
        path: The file; made if it is not there, its folder is not. Relative to the working directory of now.
        durable: Each commit survives a power loss; else a killed process, which is faster.
        codec: How values are kept: ``"json"`` (by the tools' annotations), ``"pickle"`` (any object, but whoever can
            write the file can run code in the process that resumes), or a `JournalCodec`.
        on_change: What is done with values that a tool gave before its code, or the arguments that it is made with,
            changed, while its ``version`` did not: ``"reuse"``, ``"run"`` it again, ``"refuse"`` to begin. Whichever,
            the evidence says so.

    Raises:
        TypeError, ValueError: What does not fit, with the mend.
    """

    @suggests
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durable: bool = False,
        codec: JournalCodec | Literal["json", "pickle"] = "json",
        on_change: Literal["reuse", "run", "refuse"] = "reuse",
    ) -> None:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path) or isinstance(os.fspath(path), bytes):
            raise TypeError(f"Journal(path) is the path of a file, not {path!r}")
        if "\0" in os.fspath(path):
            raise ValueError(f"Journal(path): no file can be named {path!r}")
        if not isinstance(durable, bool):
            raise TypeError(f"Journal(durable) is True or False, not {durable!r}")
        if on_change not in _ON_CHANGE:
            raise ValueError(f"Journal(on_change={on_change!r}) is not known; use 'reuse', 'run' or 'refuse'")
        self.path = str(Path(path).absolute())
        self.durable = durable
        self.codec = named_codec("Journal(codec)", codec)
        self.on_change = on_change

    def __repr__(self) -> str:
        return f"Journal({self.path!r})"


def as_journal(given: object, retry: object) -> Journal | None:
    """What ``journal=`` and ``retry=`` of a run say.

    Raises:
        TypeError, ValueError: They do not fit.
    """
    if retry not in RETRIES:
        raise ValueError(f"retry={retry!r} is not known; use 'all', 'failed' or 'none'")
    if given is None:
        if retry != "all":
            raise ValueError(f"retry={retry!r} needs a journal=, which says what failed before")
        return None
    if isinstance(given, Journal):
        return given
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"journal= is the path of a file or a Journal(...), not {given!r}")
    return Journal(given)
