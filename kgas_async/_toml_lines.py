"""On which line of a TOML text each key stands, which `tomllib` does not tell. Knows TOML's shape, no meaning of keys.

For texts that `tomllib` has accepted: what it refuses, it tells the line of itself.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import TypeAlias

__all__ = ["KeyPath", "lines_of"]

KeyPath: TypeAlias = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING = re.compile(
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}|\'\'\'(?:[^']|'{1,2}(?!'))*'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\'''',
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]+")


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of each table, key and element of an array; of what is mentioned twice, the first.

    An element of an array, and a table of an array of tables, has its index in the path.
    """
    return _Scanner(text).lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._breaks = [match.end() for match in re.finditer("\n", text)]
        self._arrays: dict[KeyPath, int] = {}  # tables so far, of each array of tables
        self.lines: dict[KeyPath, int] = {}
        here: KeyPath = ()
        while self._skip() < len(text):
            here = self._header() if text[self._at] == "[" else self._pair(here)

    def _skip(self) -> int:
        match = _BLANK.match(self._text, self._at)
        assert match is not None  # it matches nothing at all too
        self._at = match.end()
        return self._at

    def _note(self, path: KeyPath) -> KeyPath:
        self.lines.setdefault(path, bisect_right(self._breaks, self._at) + 1)
        return path

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        assert match is not None, f"no TOML at {self._at}: {self._text[self._at : self._at + 20]!r}"
        self._at = match.end()
        return match[0]

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip()
            part = self._take(_KEY_PART)
            parts.append(part if part[0] not in "\"'" else next(iter(tomllib.loads(f"{part} = 0"))))
            self._skip()
            if not self._text.startswith(".", self._at):
                return parts
            self._at += 1

    def _header(self) -> KeyPath:
        is_array = self._text.startswith("[[", self._at)
        self._at += 1 + is_array
        self._skip()
        began = self._at
        parts = self._key()
        ended = self._at + 1 + is_array
        self._at = began
        path: KeyPath = ()
        for number, part in enumerate(parts, 1):
            path = self._note((*path, part))
            if is_array and number == len(parts):
                self._arrays[path] = self._arrays.get(path, 0) + 1
            if path in self._arrays:
                path = self._note((*path, self._arrays[path] - 1))
        self._at = ended
        return path

    def _pair(self, table: KeyPath) -> KeyPath:
        """A key and its value; the table goes on after it."""
        began = self._at
        parts = self._key()
        ended, self._at = self._at + 1, began
        path = table
        for part in parts:
            path = self._note((*path, part))
        self._at = ended  # after the equals sign
        self._skip()
        self._value(path)
        return table

    def _value(self, path: KeyPath) -> None:
        opening = self._text[self._at]
        if opening in "\"'":
            self._take(_STRING)
        elif opening not in "[{":
            self._take(_SCALAR)
        else:
            self._at += 1
            closing, number = "]" if opening == "[" else "}", 0
            while self._text[self._skip()] != closing:
                if opening == "[":
                    self._value(self._note((*path, number)))
                else:
                    self._pair(path)
                number += 1
                if self._text[self._skip()] == ",":
                    self._at += 1
            self._at += 1
