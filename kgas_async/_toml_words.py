"""What stands where in a TOML pipeline, for messages: places, keys and values as written; the mends of syntax."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from ._errors import LoadError
from ._toml_lines import KeyPath

__all__ = ["Mistake", "Place", "Places", "Reference", "Unset", "Variable", "as_toml", "dotted", "mend_of_syntax"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN: Final = 60  # characters of a value


class Reference(str):
    """A string ``$name``: a service or a limit."""

    __slots__ = ()

    @property
    def name(self) -> str:
        return self[1:]


class Variable(str):
    """A string that an environment variable was put into: a number too, where a number is wanted."""

    __slots__ = ()


class Unset(Variable):
    """Of which nobody knows what it is: its variable is not set, or it is wrong, which was told. Taken for right."""

    __slots__ = ()


class Mistake(LoadError):
    """What is wrong at one place of a file.

    Attributes:
        path: Of the value; empty where it has none in the file.
        line: In the file, 0 where it has none there.
    """

    def __init__(self, message: str, path: KeyPath, line: int) -> None:
        super().__init__(message)
        self.path = path
        self.line = line


class Place(NamedTuple):
    """Where a value is from, if not from its own place in the file.

    Attributes:
        where: File and line, or ``--set``.
        key: As it is written there.
    """

    where: str
    key: str


class Places:
    """Where each value of a file is from.

    Attributes:
        file: Its path.
        lines: Of its keys.
        laid_over: Of those that a profile or ``--set`` has given.
        variables: Of values that environment variables were put into: what they are now, and where that is from.
    """

    def __init__(self, file: str, lines: Mapping[KeyPath, int], raw: Mapping[str, Any], said: str = "") -> None:
        self.file = file
        self.lines = lines
        self.laid_over: dict[KeyPath, Place] = {}
        self.variables: dict[KeyPath, tuple[str, str]] = {}
        self._raw = raw
        self._said = said  # stands for file, line and key

    def copied(self) -> Places:
        """The same places, to lay another profile over."""
        return Places(self.file, self.lines, self._raw, self._said)

    def forget(self, path: KeyPath) -> None:
        """What was laid over this, or below it, counts no more."""
        for one in [one for one in self.laid_over if one[: len(path)] == path]:
            del self.laid_over[one]

    def line(self, path: KeyPath) -> int:
        """The line of the key, or of the nearest table above it."""
        return next((self.lines[path[:size]] for size in range(len(path), 0, -1) if path[:size] in self.lines), 1)

    def key(self, path: KeyPath) -> str:
        """The key as it is written; a phase by its name."""
        named = list(path)
        if len(path) > 1 and path[0] == "phase" and isinstance(path[1], int):
            phases = self._raw.get("phase")
            phase = phases[path[1]] if isinstance(phases, list) else None
            name = phase.get("name") if isinstance(phase, dict) else None
            named[1] = name if isinstance(name, str) and name.isidentifier() else path[1]
        return dotted(named)

    def place(self, path: KeyPath) -> Place:
        """Where the value at this path is from."""
        for size in range(len(path), 0, -1):
            over = self.laid_over.get(path[:size])
            if over is not None:
                rest = dotted(path[size:])
                return Place(over.where, over.key if not rest else dotted([over.key], rest))
            if path[:size] in self.lines:
                break
        return Place(f"{self.file}:{self.line(path)}", self.key(path))

    def error(self, path: KeyPath, message: str) -> Mistake:
        """The error of what stands there; where it shows what a variable holds, that is named."""
        message += self._origin(path, message)
        if self._said:
            return Mistake(f"{self._said}: {message}", (), 0)
        if not path:
            return Mistake(f"{self.file}: {message}", (), 0)
        line = self.place(path).where.rpartition(":")[2]
        return Mistake(f"{self.told(path)}: {message}", path, int(line) if line.isdigit() else 0)

    def _origin(self, path: KeyPath, message: str) -> str:
        for at, (text, origin) in self.variables.items():
            is_here = at == path or (at[:-1] == path and isinstance(at[-1], int))  # it, or in a list of such
            shown = as_toml(text).strip('."')
            if is_here and any(one in message for one in (shown, shown.partition(":")[0])):
                return f" (the value is from {origin})"
        return ""

    def told(self, path: KeyPath) -> str:
        """File, line and key, for messages."""
        if self._said:
            return self._said
        where, key = self.place(path)
        return f"{where}: {key}" if where != "--set" else f"--set {key}"


def dotted(path: Iterable[str | int], rest: str = "") -> str:
    """A path as a key: ``phase.embed.policy``, ``phase[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        is_plain = _BARE.fullmatch(part) or (not text and "." in part)
        text += f"{'.' if text else ''}{part if is_plain else json.dumps(part, ensure_ascii=False)}"
    return text + (rest if not rest or rest.startswith("[") else f".{rest}")


def as_toml(value: object) -> str:
    """A value as it stands in a file, cut short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"a table of {', '.join(value)}" if value else "an empty table"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    if isinstance(value, list):
        text = f"[{', '.join(map(as_toml, value))}]"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


_WORDS: Final = {"True": "true", "False": "false", "None": '"none"', "null": '"none"', "nil": '"none"'}
_KEY = re.compile(r"""\s*(?:\[{1,2}([^\]#]*)|([\w."' -]+?)\s*(?:[=:#]|$))""")
_MENDS: Final = (
    (r"Cannot overwrite|Duplicate inline|Cannot mutate", "is given twice; keep one of them"),
    (r"Cannot declare .* twice", "the table is begun twice; put its keys under one header"),
    (r"Cannot redefine|Cannot extend|Cannot define", "is a value already, or a closed table; write it in one place"),
    (r"Expected '='|Expected \"=\"", "a line is key = value; write = after the key"),
    (r"Expected newline", "ends too late: one key = value per line, and text in quotes"),
    (r"(?:Illegal|invalid) character '\\n'|Unterm|Expected \"'", "the text is not closed; add a quote at its end"),
    (r"Unescaped|Illegal character '\\\\", "a backslash begins an escape; write the text in 'single quotes'"),
    (r"Unclosed array", "the list is not closed; write ] after its last element"),
    (r"Unclosed inline|initial character for a key|Expected '\]", "the brackets are not closed, or hold no key"),
    (r"Invalid statement", "is no key = value and no [table]; text is written in quotes"),
)  # fmt: skip


def mend_of_syntax(message: str, text: str) -> str:
    """``LINE: KEY: what is wrong; the mend``, of what tomllib refuses."""
    place = re.search(r"\(at (?:line (\d+), column \d+|end of document)\)", message)
    lines = text.split("\n")
    number = int(place[1]) if place is not None and place[1] else max(len(text.rstrip().split("\n")), 1)
    said = message[: place.start()].strip() if place is not None else message
    line = lines[number - 1] if number <= len(lines) else ""
    found = _KEY.match(line)
    key = "the line" if found is None else (found[1] or found[2] or "").strip()
    value = line.partition("=")[2].strip()
    mend = next((mend for pattern, mend in _MENDS if re.search(pattern, said)), "")
    word = re.match(r"[A-Za-z_][\w:./-]*", value)
    if said == "Invalid value" and word is not None:
        meant = _WORDS.get(word[0], json.dumps(value.partition("#")[0].strip()))
        mend = f"this is not TOML; write {meant}"
    elif not mend:
        mend = "write text in quotes, lists as [a, b], tables as {key = value}"
    return f"{number}: {key}: {said}: {mend}"
