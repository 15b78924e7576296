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

from pydantic import ValidationError

from . import _errors
from ._adaptive import AdaptiveLimit
from ._admission import Limit
from ._breaker import CircuitBreaker
from ._budget import RetryBudget
from ._cache import Cache, MemoryStore
from ._convert import converted
from ._errors import KgasAsyncError, shown, text_of
from ._limits import ConcurrencyLimit
from ._loading import load
from ._memory_limit import MemoryLimit
from ._policy import Policy
from ._priority import Priority
from ._rate import RateLimit
from ._resilience import Retry, exponential, linear
from ._service import Service
from ._signature import hints_of
from ._suggest import nearest
from ._toml_lines import KeyPath
from ._toml_tables import BudgetTable, FileTables, LimitTable, PolicyTable, RetryTable, Table, WaitTable
from ._toml_text import Document
from ._toml_words import Reference, as_toml
from ._tool import KGASTool

__all__ = ["Objects", "references_in"]

T = TypeVar("T")

LOAD: Final = "$load"  # {"$load" = "module:attribute"} among arguments: the object of that name
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
        self.services: dict[str, Any] = {}
        self.limits: dict[str, Any] = {}
        self._tables = tables
        self._declared: Mapping[str, Any] = document.values.get("services", {})
        for name, table in tables.limits.items():
            if name in self._declared:
                raise self.places.error(("limits", name), "is the name of a service too; rename one")
            self.limits[name] = self._limit(table, ("limits", name))
        for name in self._declared:
            self._service(name)

    # --- names and calls

    def load(self, target: str, at: KeyPath) -> Any:
        """What ``module:attribute`` names."""
        return self.at(at, load, target)

    def at(self, place: KeyPath, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Call what says itself what is wrong, and add where; at the key of the argument, if it names one."""
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
        arguments = {key: self._argument(value, (*at, key)) for key, value in given.items()}
        _Arguments(what, function).check(self, arguments, given, at, is_all=is_all)
        return arguments

    def _argument(self, value: Any, at: KeyPath) -> Any:
        if isinstance(value, Reference):
            return self.referred(value, at)
        if isinstance(value, str):
            return str(value)
        if isinstance(value, list):
            return [self._argument(one, (*at, index)) for index, one in enumerate(value)]
        if isinstance(value, dict):
            if set(value) == {LOAD} and isinstance(value[LOAD], str):
                return self.load(value[LOAD], at)
            return {key: self._argument(one, (*at, key)) for key, one in value.items()}
        return value

    def referred(self, reference: Reference, at: KeyPath) -> Any:
        """The service or limit of this name."""
        name = reference.name
        if name in self.limits:
            return self.limits[name]
        if name in self._declared:
            return self._service(name)
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
        place: KeyPath = ("services", name)
        table = self._declared[name]
        self._refuse_circle(name, (), set())
        target = str(table["use"])
        found = self.load(target, (*place, "use"))
        given = {key: value for key, value in table.items() if key != "use"}
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
        self.services[name] = service
        return service

    def _refuse_circle(self, name: str, above: tuple[str, ...], done: set[str]) -> None:
        if name in above:
            circle = " -> ".join([*above[above.index(name) :], name])
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
            found = [self._error(one, (*at, "on")) for one in options["on"]]
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
        """The policy of a table; each field is checked by itself, so that the error is at its key."""
        given = {}
        for key, value in table.given().items():
            given[key] = self._policy_value(key, value, (*at, key))
            self.at((*at, key), Policy, **{key: given[key]})
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
        if isinstance(wait, str):
            options["wait"] = self.load(wait, (*at, "wait"))
        elif isinstance(wait, WaitTable):
            given = wait.given()
            kind: Any = linear if given.pop("kind", None) == "linear" else exponential
            options["wait"] = self.at((*at, "wait"), kind, **given)
        if "after" in options:
            options["after"] = self.load(options["after"], (*at, "after"))
        if "budget" in options:
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
        found = self.load(target, at)
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


def references_in(value: Any) -> list[str]:
    """The names of all references in there."""
    if isinstance(value, Reference):
        return [value.name]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for part in parts for name in references_in(part)]


class _Arguments:
    """The arguments that something takes, by name."""

    def __init__(self, what: str, function: Any) -> None:
        self._what = what
        # Their __new__ takes anything.
        is_ours = isinstance(function, type) and issubclass(function, (KGASTool, Service))
        kind: Any = function
        called = kind.__init__ if is_ours else function
        try:
            parameters = list(inspect.signature(called).parameters.values())
        except (TypeError, ValueError):  # a builtin, say: it tells by itself
            self.known, self.required, self.takes_any = [], [], True
        else:
            own = parameters[1:] if called is not function else parameters
            named = [one for one in own if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
            self.known = [one.name for one in named]
            self.required = [one.name for one in named if one.default is one.empty]
            self.takes_any = called is not object.__init__ and any(one.kind is one.VAR_KEYWORD for one in own)
        self._hints = hints_of(function)

    def check(
        self, objects: Objects, arguments: dict[str, Any], given: Mapping[str, Any], at: KeyPath, *, is_all: bool
    ) -> None:
        """Refuse what it does not take, and make of texts and lists what it does."""
        for key in given:
            if key not in self.known and not self.takes_any:
                known = f"which takes {', '.join(self.known) or 'none'}"
                raise objects.places.error(
                    (*at, key), f"is no argument of {self._what}, {known}{nearest(key, self.known)}"
                )
        for key in self.required:
            if is_all and key not in given:
                raise objects.places.error(at, f"{self._what} needs {key}, which is missing; add {key} = ...")
        for key, value in given.items():
            if key in self._hints and not references_in(value) and not _has_load(value):
                try:
                    arguments[key] = converted(arguments[key], self._hints[key])
                except ValidationError as error:
                    first = error.errors(include_url=False)[0]
                    raise objects.places.error(
                        (*at, key), f"{self._what}: {first['msg']}, not {as_toml(first['input'])}{objects.meant(value)}"
                    ) from None


def _has_load(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, dict) and LOAD in value) or any(map(_has_load, parts))
