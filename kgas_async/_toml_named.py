"""What a TOML pipeline names, looked up and called: objects of modules, references, services in order.

Each error is told with the file, the line and the key that led to it. What limits and tools are, `_toml_objects` knows.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

from ._errors import KgasAsyncError, LoadError, shown, text_of
from ._loading import NoModule, folder_of, load
from ._service import Service
from ._suggest import nearest
from ._toml_arguments import LOAD, Arguments, references_in
from ._toml_lines import KeyPath
from ._toml_mistakes import Follows
from ._toml_tables import FileTables
from ._toml_text import Document
from ._toml_words import Reference, Unset

__all__ = ["Named"]

T = TypeVar("T")

_OF_ARGUMENT: Final = re.compile(r"\w+\((\w+)[)=]")
_AS_KEY: Final = {"total": "concurrency", "max_bytes": "memory"}


class Named:
    """The objects that one file names.

    Attributes:
        services: By name.
        limits: By name: limits, breakers and budgets.
    """

    def __init__(self, document: Document, tables: FileTables) -> None:
        self.places = document.places
        self.mistakes = document.mistakes
        self.services: dict[str, Any] = {}
        self.limits: dict[str, Any] = {}
        self._limit_names = tables.limits.keys()
        self.declared: Mapping[str, Any] = document.values.get("services", {})
        self._refused: set[str] = set()  # services that cannot be made
        self._not_looked_in: set[Path] = set()  # folders in which modules lie; told once

    # --- names and calls

    def load(self, target: str, at: KeyPath) -> Any:
        """What ``module:attribute`` names."""
        if isinstance(target, Unset):
            raise Follows(target)
        try:
            return self.at(at, load, target)
        except LoadError as error:
            module = target.partition(":")[0]
            folder = folder_of(module, self.places.file) if isinstance(error.__cause__, NoModule) else None
            if folder is None:
                raise
            if folder in self._not_looked_in:
                raise Follows(target) from error
            self._not_looked_in.add(folder)
            where = shlex.quote(str(folder))
            said = (
                f"there is no module {module!r} in {Path.cwd()}: it lies in the folder {folder}, and modules are "
                f"looked up from the working directory, wherever the file is; cd {where} first, "
                f"or set PYTHONPATH={where}"
            )
            raise self.places.error(at, said) from error

    def load_with(self, target: str, at: KeyPath, given: Mapping[str, Any], at_given: KeyPath) -> Any:
        """The same of what has arguments; where it cannot be found, what they refer to is looked up all the same."""
        try:
            return self.load(target, at)
        except LoadError as error:
            self.mistakes.tell(error)
            self._arguments_in(dict(given), at_given)
            raise Follows(target) from None

    def at(self, place: KeyPath, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call what says itself what is wrong, and add where; at the key of the argument, if it names one.

        Raises:
            LoadError: What is wrong; `Follows`, where its arguments were.
        """
        self.mistakes.refuse(place)
        try:
            return function(*args, **kwargs)
        except (TypeError, ValueError, KgasAsyncError) as error:
            found = _OF_ARGUMENT.match(text_of(error))
            key = _AS_KEY.get(found[1], found[1]) if found is not None else ""
            is_there = (*place, key) in self.places.lines or (*place, key) in self.places.laid_over
            said = text_of(error).replace("; None is no limit", '; "none" is no limit')  # as the file says it
            raise self.places.error((*place, key) if is_there else place, said) from error

    def made(self, what: str, function: Any, given: Mapping[str, Any], at: KeyPath) -> Any:
        """Call a class or function of the user's with what the file gives."""
        arguments = self.checked_arguments(what, function, given, at)
        self.mistakes.refuse(at)
        if arguments.keys() != given.keys():
            raise Follows(what)
        try:
            return function(**arguments)
        except Exception as error:
            raise self.places.error(
                at, f"{what} could not be made: {type(error).__name__}: {text_of(error)}"
            ) from error

    def checked_arguments(
        self, what: str, function: Any, given: Mapping[str, Any], at: KeyPath, *, is_all: bool = True
    ) -> dict[str, Any]:
        """What the file gives, with references looked up, as the function takes it."""
        arguments: dict[str, Any] = {}
        for key, value in given.items():
            with self.mistakes.telling():
                arguments[key] = self._argument(value, (*at, key))
        Arguments(what, function).check(
            arguments, given, at, self.places, self.mistakes, self.meant, is_all=is_all
        )  # fmt: skip
        return arguments

    def _argument(self, value: Any, at: KeyPath) -> Any:
        if isinstance(value, Unset):
            raise Follows(value)
        if isinstance(value, Reference):
            return self.referred(value, at)
        if isinstance(value, str):
            return str(value)
        if isinstance(value, dict) and set(value) == {LOAD} and isinstance(value[LOAD], str):
            return self.load(value[LOAD], at)
        if isinstance(value, (dict, list)):
            return self._arguments_in(value, at)
        return value

    def _arguments_in(self, value: dict[str, Any] | list[Any], at: KeyPath) -> Any:
        """Each of them, so that all that is wrong is told."""
        parts: Any = value.items() if isinstance(value, dict) else enumerate(value)
        found: dict[Any, Any] = {}
        is_whole = True
        for key, part in parts:
            is_made = False
            with self.mistakes.telling():
                found[key] = self._argument(part, (*at, key))
                is_made = True
            is_whole = is_whole and is_made
        if not is_whole:
            raise Follows("a part of it is wrong")
        return found if isinstance(value, dict) else list(found.values())

    def referred(self, reference: Reference, at: KeyPath) -> Any:
        """The service or limit of this name."""
        name = reference.name
        if name in self.limits:
            return self.limits[name]
        if name in self.declared:
            return self.service(name)
        if name in self._limit_names or name in self.mistakes.elsewhere:
            raise Follows(name)
        known = [f"${one}" for one in (*self.declared, *self.limits)]
        there = f"; there are {', '.join(known)}" if known else ""
        close = nearest(reference, known)
        if name in os.environ:
            raise self.places.error(at, f'there is no service or limit {name!r}; the variable is written "${{{name}}}"')
        text = f'{" Or is it a text: write" if close else "; for the text itself write"} "${reference}"'
        raise self.places.error(at, f"there is no service or limit {name!r}{there}{close}{text}")

    def meant(self, text: object) -> str:
        """The mend where a text stands for an object."""
        if isinstance(text, str) and (text in self.limits or text in self.declared):
            return f'; did you mean "${text}"?'
        if isinstance(text, str) and re.fullmatch(r"[\w.]+:[\w.]+", text):
            return f'; the object of that name is {{ "{LOAD}" = "{text}" }}'
        return ""

    # --- services

    def service(self, name: str) -> Any:
        """The service of this name, made when it is first asked for."""
        if name in self.services:
            return self.services[name]
        if name in self._refused:
            raise Follows(name)
        circle = self._circle(name, (), set())
        if not self._refused.issuperset(circle):
            self._tell_circle(circle)
        if name in circle:
            raise Follows(name)
        self._refused.add(name)  # unless all goes well
        service = self._made_service(name)
        self._refused.remove(name)
        self.services[name] = service
        return service

    def _made_service(self, name: str) -> Any:
        place: KeyPath = ("services", name)
        table = self.declared[name]
        target = table["use"]
        given = {key: value for key, value in table.items() if key != "use"}
        found = self.load_with(target, (*place, "use"), given, place)
        if callable(found) and not isinstance(found, (Service, AbstractAsyncContextManager)):
            service = self.made(target, found, given, place)
        elif given:
            raise self.places.error(
                (*place, next(iter(given))), f"{target} is an object, which takes no arguments; name its class"
            )
        else:
            service = found
        if not isinstance(service, (Service, AbstractAsyncContextManager)):
            if inspect.iscoroutine(service):
                service.close()
            raise self.places.error(
                (*place, "use"), f"{target} gives {shown(service)}, which is no service (a Service, or an async "
                f"context manager)"
            )  # fmt: skip
        return service

    def _circle(self, name: str, above: tuple[str, ...], done: set[str]) -> tuple[str, ...]:
        """The services that need each other in a circle, at or below this one, if there are such."""
        if name in above:
            return above[above.index(name) :]
        for reference in references_in(self.declared[name]):
            if reference in self.declared and reference not in done:
                found = self._circle(reference, (*above, name), done)
                if found:
                    return found
        done.add(name)
        return ()

    def _tell_circle(self, members: tuple[str, ...]) -> None:
        circle = " -> ".join([*members, members[0]])
        said = f"services need each other in a circle: {circle}; take one of the references out"
        self.mistakes.tell(self.places.error(("services", members[0]), said))
        self._refused.update(members)
        for name in members:  # none can be made, but what else is wrong with them is told
            with self.mistakes.telling():
                self._made_service(name)
