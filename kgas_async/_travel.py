"""What goes between a manager and its worker processes, as something that can: tools by their names, errors as data.

A tool's function, factory and mappings travel as the globals of their modules that they are. What cannot is refused
with the mend, as early as it can be known.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from types import FunctionType
from typing import Any, Final, NamedTuple

from ._errors import add_note, shown, text_of
from ._offload import LegacyFunction, ReturnedError

__all__ = [
    "PackedError",
    "Travelling",
    "main_module",
    "pack_error",
    "picklable",
    "refuse_local",
    "unpack_error",
    "why_not",
]

_OURS: Final = ("kgas_async._worker", "kgas_async._offload")  # frames that say nothing of a tool
_MEND: Final = "put it at the top level of a module, under its own name"


# --- tools


def refuse_local(tool: str, what: str, thing: Any) -> None:
    """
    Raises:
        TypeError: A function or class that no other process can find by its name.
    """
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = getattr(thing, "__qualname__", "")
    if isinstance(name, str) and ("<locals>" in name or "<lambda>" in name):
        raise TypeError(
            f"tool {tool!r}: {what} {name} cannot travel to a worker process, which finds functions and classes by "
            f"module and name; {_MEND}, or use offload='thread'"
        )
    if name and getattr(thing, "__module__", "") == "__main__" and main_module() is None:
        raise TypeError(f"tool {tool!r}: {what} {_nowhere(name)}, or use offload='thread'")


def _nowhere(name: str) -> str:
    return (
        f"{name} is defined in a program that no other process can import (a notebook, the interactive interpreter, "
        f"'python -c'); put it into a module of its own"
    )


class Travelling:
    """A tool's function on its way to worker processes.

    Args:
        tool: The tool's name, for messages.
        function: What is called there.

    Attributes:
        serial: Tells it from others of this process.
    """

    _serial = 0
    _lock = Lock()

    def __init__(self, tool: str, function: LegacyFunction) -> None:
        self.tool = tool
        self.function = function
        self._pickled: bytes | None = None
        with self._lock:
            Travelling._serial += 1
            self.serial = Travelling._serial

    def pickled(self) -> bytes:
        """As it travels; made once.

        Raises:
            TypeError: It cannot, with the mend.
        """
        if self._pickled is None:
            buffer = io.BytesIO()
            try:
                _ToolPickler(buffer, 5).dump(self.function)
            except Exception as error:
                raise TypeError(
                    f"tool {self.tool!r} cannot travel to a worker process: {text_of(error)}; the function, the "
                    f"factory and what maps inputs and results travel by name: {_MEND}, or use offload='thread'"
                ) from error
            self._pickled = buffer.getvalue()
        return self._pickled


class _ToolPickler(pickle.Pickler):
    """Finds the plain function behind a ``@tool``, which has taken its place in the module."""

    def reducer_override(self, thing: object) -> Any:
        if not isinstance(thing, (FunctionType, type)):
            return NotImplemented
        if thing.__module__ == "__main__" and main_module() is None:
            raise pickle.PicklingError(_nowhere(thing.__qualname__))
        module, name = thing.__module__, thing.__qualname__
        if isinstance(thing, FunctionType) and getattr(_global(module, name), "_plain", None) is thing:
            return (_plain_function, (module, name))
        return NotImplemented


def _global(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _plain_function(module: str, qualname: str) -> Callable[..., Any]:
    found: Any = __import__(module, fromlist=["_"])
    for part in qualname.split("."):
        found = getattr(found, part)
    return getattr(found, "_plain", found)  # type: ignore[no-any-return]


def main_module() -> tuple[str, str] | None:
    """How another process can import the program's main module: by ``"name"`` or ``"path"``; None: it cannot."""
    main = sys.modules["__main__"]
    name = getattr(main.__spec__, "name", None)
    if name is not None:
        # The __main__ of a package or folder is its command line, not to be run again.
        return None if name == "__main__" or name.endswith(".__main__") else ("name", name)
    path = getattr(main, "__file__", None)
    return ("path", str(Path(path).absolute())) if path is not None and Path(path).is_file() else None


# --- values


def picklable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, those that cannot be pickled as text."""
    return {name: value if why_not(value) is None else shown(value) for name, value in values.items()}


def why_not(value: object) -> BaseException | None:
    """Why it cannot be pickled, None if it can."""
    try:
        pickle.dumps(value, 5)
    except BaseException as error:  # noqa: BLE001  (whatever a __reduce__ raises)
        return error
    return None


# --- errors


class PackedError(NamedTuple):
    """An exception on its way, with what is needed where it cannot be made again."""

    pickled: bytes | None
    base: str
    text: str
    notes: tuple[str, ...]
    traceback: str
    why: str


def pack_error(error: BaseException) -> PackedError:
    """An exception as it travels: itself if it can, and what stands in for it otherwise."""
    notes = _notes_of(error)
    with suppress(Exception):
        del error.__notes__  # they travel beside it, so that they come with exceptions that pickle in their own way
    pickled, why = _pickled_error(error)
    if pickled is None and isinstance(error, ReturnedError):  # what the tool returned cannot travel
        pickled, _ = _pickled_error(
            ReturnedError(error.error if error.was_exception else str(error), shown(error.result))
        )
    text = text_of(error)
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return PackedError(pickled, _builtin_base(error, text), text, notes, _told(error), why)


def _notes_of(error: BaseException) -> tuple[str, ...]:
    try:
        return tuple(str(note) for note in getattr(error, "__notes__", ()))
    except Exception:  # noqa: BLE001  (they were not made by add_note)
        return ()


def _pickled_error(error: BaseException) -> tuple[bytes | None, str]:
    try:
        pickled = pickle.dumps(error, 5)
        again = pickle.loads(pickled)
    except BaseException as broken:  # noqa: BLE001  (the user's code, in whatever way)
        return None, f"{type(broken).__name__}: {text_of(broken)}"
    return (pickled, "") if type(again) is type(error) else (None, f"it pickles as a {type(again).__name__}")


def _builtin_base(error: BaseException, text: str) -> str:
    """The nearest built-in kind of it that can be made of a message: what is retried by kind still is."""
    for base in type(error).__mro__:
        if base.__module__ == "builtins" and issubclass(base, BaseException):
            with suppress(Exception):
                base(text)
                return base.__name__
    return "RuntimeError"


def _told(error: BaseException) -> str:
    try:
        from_tool = error.__traceback__
        while from_tool is not None and from_tool.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
            from_tool = from_tool.tb_next
        told = "".join(traceback.format_exception(type(error), error, from_tool)).rstrip()
    except Exception as broken:  # noqa: BLE001  (a __str__ that raises)
        told = f"(its traceback cannot be shown: {type(broken).__name__})"
    return told


def unpack_error(packed: PackedError, where: str) -> BaseException:
    """The exception again, with its notes and its traceback as a further one."""
    error: BaseException | None = None
    why = packed.why
    if packed.pickled is not None:
        try:
            error = pickle.loads(packed.pickled)
        except BaseException as broken:  # noqa: BLE001  (the user's code)
            why = f"{type(broken).__name__}: {text_of(broken)}"
    if not isinstance(error, BaseException):
        error = getattr(__import__("builtins"), packed.base)(packed.text)
        assert isinstance(error, BaseException)
        add_note(error, f"stands in for the exception itself, which could not travel from its process ({why})")
    for note in packed.notes:
        add_note(error, note)
    add_note(error, f"in {where}:\n{packed.traceback}")
    return error
