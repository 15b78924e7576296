"""What a TOML pipeline declares, made: limits, policies, tools with their arguments."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, TypeVar

from . import _errors
from ._adapter import ToolAdapter
from ._adaptive import AdaptiveLimit
from ._admission import Limit
from ._breaker import CircuitBreaker
from ._budget import RetryBudget
from ._cache import Cache, MemoryStore
from ._limits import ConcurrencyLimit
from ._memory_limit import MemoryLimit
from ._policy import Policy
from ._priority import Priority
from ._rate import RateLimit
from ._resilience import Retry, exponential, linear
from ._suggest import nearest
from ._toml_lines import KeyPath
from ._toml_named import Named
from ._toml_table import Table
from ._toml_tables import AdapterTable, BudgetTable, FileTables, LimitTable, PolicyTable, RetryTable, WaitTable
from ._toml_text import Document
from ._toml_words import Reference, Unset
from ._tool import KGASTool

__all__ = ["Objects"]

T = TypeVar("T")

_ERRORS: Final = {
    **{name: one for name, one in vars(builtins).items() if isinstance(one, type) and issubclass(one, Exception)},
    **{name: getattr(_errors, name) for name in _errors.__all__ if name[0].isupper()},
}
_KINDS: Final = {
    RateLimit: "a rate", ConcurrencyLimit: "a concurrency", AdaptiveLimit: "an adaptive limit",
    MemoryLimit: "a memory limit", CircuitBreaker: "a breaker", RetryBudget: "a budget",
}  # fmt: skip


class Objects(Named):
    """The objects of one file, all of them."""

    def __init__(self, document: Document, tables: FileTables) -> None:
        super().__init__(document, tables)
        for name, table in tables.limits.items():
            with self.mistakes.telling():
                if name in self.declared:
                    raise self.places.error(("limits", name), "is the name of a service too; rename one")
                self.limits[name] = self._limit(table, ("limits", name))
        for name in self.declared:
            with self.mistakes.telling():
                self.service(name)

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
            return [self.tool(one, {}, None, at[:-1], key) for one in value]
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
        for key, option in options.items():  # none says anything of another, so each is told by itself
            with telling():
                self.at((*at, key), Retry, **{key: option})
        return self.at(at, Retry, **options)

    def _cache(self, table: Table, at: KeyPath) -> Cache:
        options = table.given()
        if "max_entries" in options:
            options["store"] = self.at(at, MemoryStore, options.pop("max_entries"))
        if "key" in options:
            options["key"] = self.load(options["key"], (*at, "key"))
        return self.at(at, Cache, **options)

    # --- tools

    def tool(
        self, target: str, given: Mapping[str, Any], adapter: AdapterTable | None, at: KeyPath, key: str = "tool"
    ) -> KGASTool:
        """A tool: an object, a class with its arguments, or what is wrapped: a function, or what an adapter is for.

        Args:
            target: What it is.
            given: The arguments of a class.
            adapter: How it is called.
            at: The table in which it stands.
            key: And there its key.
        """
        place: KeyPath = (*at, key)
        at_given: KeyPath = (*at, "with")
        found = self.load_with(target, place, given, at_given)
        is_tool_class = isinstance(found, type) and issubclass(found, KGASTool)
        if given and not isinstance(found, type):
            is_tool = isinstance(found, KGASTool)
            what = "a tool already" if is_tool else "a function" if inspect.isroutine(found) else "an object"
            said = f"{target} is {what}, which takes no arguments; name a class, or remove with"
            self.mistakes.tell(self.places.error(at_given, said))
        if not is_tool_class and adapter is None and not isinstance(found, KGASTool) and not inspect.isroutine(found):
            what = "a class" if isinstance(found, type) else f"a {type(found).__name__}"
            raise self.places.error(
                place, f"{target} is {what} and no tool; for one with .execute add adapter = {{}}, for another method "
                f'adapter.method = "...", which wraps it as ToolAdapter does'
            )  # fmt: skip
        if is_tool_class:
            found = self.made(target, found, given, at_given)
        elif isinstance(found, type):
            arguments = self.checked_arguments(target, found, given, at_given)
            self.mistakes.refuse(at_given)
            return self._adapted(None, adapter, at, factory=partial(found, **arguments) if arguments else found)
        self.mistakes.refuse(at_given)
        return found if isinstance(found, KGASTool) and adapter is None else self._adapted(found, adapter, at)

    def _adapted(self, wrapped: Any, adapter: AdapterTable | None, at: KeyPath, **more: Any) -> KGASTool:
        place: KeyPath = (*at, "adapter")
        options = {} if adapter is None else adapter.given()
        for key in ("inputs", "returns", "error_when"):
            if key in options:
                with self.mistakes.telling():
                    options[key] = self.load(options[key], (*place, key))
        return self.at(place if adapter is not None else (*at, "tool"), ToolAdapter, wrapped, **more, **options)
