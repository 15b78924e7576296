"""What a TOML pipeline names, made: services in order, limits, policies, tools with their arguments.

Knows how a name is looked up and called; each error is told with the file, the line and the key that led to it.
"""

from __future__ import annotations

import builtins
import inspect
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

from . import _errors
from ._adaptive import AdaptiveLimit
from ._admission import Limit
from ._breaker import CircuitBreaker
from ._budget import RetryBudget
from ._cache import Cache, MemoryStore
from ._errors import KgasAsyncError, LoadError, shown, text_of
from ._limits import ConcurrencyLimit
from ._loading import load
from ._memory_limit import MemoryLimit
from ._policy import Policy
from ._priority import Priority
from ._rate import RateLimit
from ._resilience import Retry, exponential, linear
from ._service import Service
from ._suggest import nearest
from ._toml_arguments import LOAD, Arguments, references_in
from ._toml_lines import KeyPath
from ._toml_mistakes import Follows
from ._toml_tables import BudgetTable, FileTables, LimitTable, PolicyTable, RetryTable, Table, WaitTable
from ._toml_text import Document
from ._toml_words import Reference, Unset
from ._tool import KGASTool

__all__ = ["Objects"]

T = TypeVar("T")

_ERRORS: Final = {
    **{name: one for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, Exception)},
    **{name: getattr(_errors, name) for name in _errors.__all__ if name[0].isupper()},
}
_OF_ARGUMENT: Final = re.compile(r"\w+\((\w+)[)=]")
_AS_KEY: Final = {"total": "concurrency", "max_bytes": "memory"}
_KINDS: Final = {
    RateLimit: "a rate", ConcurrencyLimit: "a concurrency", AdaptiveLimit: "an adaptive limit",
    MemoryLimit: "a memory limit", CircuitBreaker: "a breaker", RetryBudget: "a budget",
}  # fmt: skip


class Objects:
    """The objects of one file.

    Attributes:
        services: By name.
        limits: By name: limits, breakers and budgets.
    """

    def __init__(self, document: Document, tables: FileTables) -> None:
        self.places = document.places
        self.mistakes = document.mistakes
        self.services: dict[str, Any] = {}
        self.limits: dict[str, Any] = {}
        self._tables = tables
        self._declared: Mapping[str, Any] = document.values.get("services", {})
        self._refused: set[str] = set()  # services that cannot be made
        for name, table in tables.limits.items():
            with self.mistakes.telling():
                if name in self._declared:
                    raise self.places.error(("limits", name), "is the name of a service too; rename one")
                self.limits[name] = self._limit(table, ("limits", name))
        for name in self._declared:
            with self.mistakes.telling():
                self._service(name)

    # --- names and calls

    def load(self, target: str, at: KeyPath) -> Any:
        """What ``module:attribute`` names."""
        if isinstance(target, Unset):
            raise Follows(target)
        return self.at(at, load, target)

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
        if name in self._declared:
            return self._service(name)
        if name in self._tables.limits or name in self.mistakes.elsewhere:
            raise Follows(name)
        known = [f"${one}" for one in (*self._declared, *self.limits)]
        there = f"; there are {', '.join(known)}" if known else ""
        close = nearest(reference, known)
        if name in os.environ:
            raise self.places.error(at, f'there is no service or limit {name!r}; the variable is written "${{{name}}}"')
        text = f'{" Or is it a text: write" if close else "; for the text itself write"} "${reference}"'
        raise self.places.error(at, f"there is no service or limit {name!r}{there}{close}{text}")

    def meant(self, text: object) -> str:
        """The mend where a text stands for an object."""
        if isinstance(text, str) and (text in self.limits or text in self._declared):
            return f'; did you mean "${text}"?'
        if isinstance(text, str) and re.fullmatch(r"[\w.]+:[\w.]+", text):
            return f'; the object of that name is {{ "{LOAD}" = "{text}" }}'
        return ""

    # --- services

    def _service(self, name: str) -> Any:
        if name in self.services:
            return self.services[name]
        if name in self._refused:
            raise Follows(name)
        self._refused.add(name)  # unless all goes well
        place: KeyPath = ("services", name)
        table = self._declared[name]
        self._refuse_circle(name, (), set())
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
        self._refused.remove(name)
        self.services[name] = service
        return service

    def _refuse_circle(self, name: str, above: tuple[str, ...], done: set[str]) -> None:
        if name in above:
            members = above[above.index(name) :]
            self._refused.update(members)
            circle = " -> ".join([*members, name])
            raise self.places.error(
                ("services", name), f"services need each other in a circle: {circle}; take one of the references out"
            )
        for reference in references_in(self._declared[name]):
            if reference in self._declared and reference not in done:
                self._refuse_circle(reference, (*above, name), done)
        done.add(name)

    # --- limits and policies

    def _limit(self, table: LimitTable, at: KeyPath) -> Any:
        given = table.given()
        for key in ("cost", "key"):
            if ":" in given.get(key, ""):
                with self.mistakes.telling():
                    given[key] = self.load(given[key], (*at, key))
        if "rate" in given:
            return self.at(at, RateLimit, **given)
        if "concurrency" in given:
            return self.at(at, ConcurrencyLimit, given.pop("concurrency"), **given)
        if "adaptive" in given:
            return self.at((*at, "adaptive"), AdaptiveLimit, **self._options(table.adaptive, (*at, "adaptive")))
        if "memory" in given:
            return self.at(at, MemoryLimit, given["memory"])
        if "budget" in given:
            return self._budget(table.budget, (*at, "budget"))
        return self._breaker(table.breaker, (*at, "breaker"))

    def _options(self, table: Table, at: KeyPath) -> dict[str, Any]:
        """The keys of a table as arguments, errors and functions looked up."""
        options = table.given()
        if "on" in options:
            place: KeyPath = (*at, "on")
            found = []
            for index, one in enumerate(options["on"]):
                inner: KeyPath = (*place, index)
                with self.mistakes.telling():
                    found.append(self._error(one, inner if inner in self.places.lines else place))
            options["on"] = found[0] if len(found) == 1 else tuple(found)
        return options

    def _error(self, name: str, at: KeyPath) -> Any:
        if ":" in name:
            return self.load(name, at)
        if name not in _ERRORS:
            raise self.places.error(
                at,
                f'{name!r} is no error of Python or this package{nearest(name, _ERRORS)}; others: "module:Class"',
            )
        return _ERRORS[name]

    def _breaker(self, value: Any, at: KeyPath) -> Any:
        if isinstance(value, Reference):
            return self._shared(value, at, CircuitBreaker)
        if not isinstance(value, Table):
            return self.at(at, CircuitBreaker, value)
        return self.at(at, CircuitBreaker, **self._options(value, at))

    def _budget(self, value: Any, at: KeyPath) -> RetryBudget:
        if isinstance(value, Reference):
            return self._shared(value, at, RetryBudget)
        assert isinstance(value, BudgetTable)
        return self.at(at, RetryBudget, **value.given())

    def _shared(self, reference: Reference, at: KeyPath, kind: type[T]) -> T:
        found = self.referred(reference, at)
        if isinstance(found, kind):
            return found
        is_what = next((words for one, words in _KINDS.items() if isinstance(found, one)), "a service")
        wanted = "a concurrency, an adaptive limit or a memory limit" if kind is Limit else _KINDS[kind]
        fitting = [f"${name}" for name, one in self.limits.items() if isinstance(one, kind)]
        mend = f"; there are {', '.join(fitting)}" if fitting else "; add one to [limits]"
        raise self.places.error(at, f"takes {wanted}, but {reference} is {is_what}{mend}")

    def policy(self, table: PolicyTable, at: KeyPath) -> Policy:
        """The policy of a table; each field is checked by itself, so that the error is at its key.

        Without those that are wrong, which is told.
        """
        given = {}
        for key, value in table.given().items():
            if isinstance(value, Unset):
                continue
            with self.mistakes.telling():
                made = self._policy_value(key, value, (*at, key))
                self.at((*at, key), Policy, **{key: made})
                given[key] = made
        return Policy(**given)

    def _policy_value(self, key: str, value: Any, at: KeyPath) -> Any:
        if value is None:
            return None
        if key in ("concurrency", "rate") and isinstance(value, list):
            kind: Any = RateLimit if key == "rate" else Limit
            return [self._shared(one, at, kind) for one in value]
        if key == "breaker" and isinstance(value, (Table, Reference)):
            return self._breaker(value, at)
        if key == "retry" and isinstance(value, Table):
            return self._retry(value, at)
        if key == "priority" and isinstance(value, str):
            return Priority[value.upper()]
        if key == "fallback":
            return [self.tool(one, {}, at, at) for one in value]
        if key == "cache" and isinstance(value, Table):
            return self._cache(value, at)
        return value

    def _retry(self, table: Table, at: KeyPath) -> Retry:
        assert isinstance(table, RetryTable)
        options = self._options(table, at)
        wait = options.get("wait")
        telling = self.mistakes.telling
        with telling():
            if isinstance(wait, str):
                options["wait"] = self.load(wait, (*at, "wait"))
            elif isinstance(wait, WaitTable):
                given = wait.given()
                kind: Any = linear if given.pop("kind", None) == "linear" else exponential
                options["wait"] = self.at((*at, "wait"), kind, **given)
        if "after" in options:
            with telling():
                options["after"] = self.load(options["after"], (*at, "after"))
        if "budget" in options:
            with telling():
                options["budget"] = self._budget(options["budget"], (*at, "budget"))
        return self.at(at, Retry, **options)

    def _cache(self, table: Table, at: KeyPath) -> Cache:
        options = table.given()
        if "max_entries" in options:
            options["store"] = self.at(at, MemoryStore, options.pop("max_entries"))
        if "key" in options:
            options["key"] = self.load(options["key"], (*at, "key"))
        return self.at(at, Cache, **options)

    # --- tools

    def tool(self, target: str, given: Mapping[str, Any], at: KeyPath, at_given: KeyPath) -> KGASTool:
        """A tool: an object, or a class with its arguments."""
        found = self.load_with(target, at, given, at_given)
        if isinstance(found, type) and issubclass(found, KGASTool):
            tool = self.made(target, found, given, at_given)
            assert isinstance(tool, KGASTool)
            return tool
        if isinstance(found, KGASTool):
            if given:
                raise self.places.error(
                    at_given, f"{target} is a tool already, which takes no arguments; name a class, or remove with"
                )
            return found
        is_function = inspect.isroutine(found)
        what = "a function" if is_function else f"a {type(found).__name__}"
        mend = "put @tool above it" if is_function else "wrap it in Python: tool(...) or ToolAdapter(...)"
        raise self.places.error(at, f"{target} is {what} and no tool; {mend}")
