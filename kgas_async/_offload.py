"""Where and on what a legacy tool's function is called: instances per thread, results that are errors.

Runs inside worker threads (or inline). Knows nothing of calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CoroutineType
from typing import Any

from ._errors import text_of
from ._threads import instances_here

__all__ = ["LegacyFunction", "ReturnedError", "gives_coroutine", "refuse_coroutine"]


class ReturnedError(Exception):
    """A legacy tool returned an error; ``error_when`` said so.

    Attributes:
        error: The error, as an exception.
        was_exception: Whether ``error_when`` gave an exception (else a message).
        result: What the tool returned.
    """

    def __init__(self, error: BaseException | str, result: object) -> None:
        super().__init__(error if isinstance(error, str) else text_of(error))
        self.was_exception = isinstance(error, BaseException)
        self.error = error if isinstance(error, BaseException) else RuntimeError(error)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return (ReturnedError, (self.error if self.was_exception else str(self), self.result))


def gives_coroutine(function: Any) -> bool:
    """Whether calling it gives a coroutine, as far as can be seen; also of an object with an async ``__call__``."""
    call = getattr(function, "__call__", None)  # noqa: B004  (the method itself is wanted)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def refuse_coroutine(raw: Any, function: object, mend: str = "declare it with 'async def'") -> Any:
    """What a sync function returned, unless it is a coroutine: then it was async in disguise.

    Raises:
        TypeError: With the mend.
    """
    if raw.__class__ is CoroutineType:
        raw.close()
        raise TypeError(f"{function!r} returned a coroutine, so it is async: {mend}")
    return raw


class LegacyFunction:
    """What runs in the thread: find or build the instance, call it with the inputs, judge and map the result.

    Args:
        function: Called with the inputs; None where there is a factory.
        factory: Builds an instance; each thread that calls gets one of its own, which never leaves it.
        method: The method of the instance.
        model: Where the legacy method takes one request object: what builds it from the inputs.
        error_when: Maps a result to an error, or None.
        returns: Maps the result.
        lists_iterators: Whether an iterator is run to its end at once: no later step would be in the same thread.
    """

    def __init__(
        self,
        function: Callable[..., Any] | None,
        *,
        factory: Callable[[], Any] | None = None,
        method: str | None = None,
        model: Callable[..., Any] | None = None,
        error_when: Callable[[Any], BaseException | str | None] | None = None,
        returns: Callable[[Any], Any] | None = None,
        lists_iterators: bool = False,
    ) -> None:
        self.lists_iterators = lists_iterators
        self.function = function
        self.factory = factory
        self.method = method
        self.model = model
        self.error_when = error_when
        self.returns = returns

    @property
    def is_bare(self) -> bool:
        """Whether nothing is done but calling the function."""
        return self.function is not None and self.model is self.error_when is self.returns is None

    def __call__(self, /, **inputs: Any) -> Any:
        function = self.function or self._bound_method()
        raw = function(**inputs) if self.model is None else function(self.model(**inputs))
        result = self.judge(refuse_coroutine(raw, function))
        return list(result) if self.lists_iterators and isinstance(result, Iterator) else result

    def judge(self, raw: Any) -> Any:
        """The result of what the tool returned.

        Raises:
            ReturnedError: It is an error.
        """
        if self.error_when is not None:
            error = self.error_when(raw)
            if error is not None:
                raise ReturnedError(error, raw)
        return raw if self.returns is None else self.returns(raw)

    def builds_here(self) -> bool:
        """Whether this thread has to build the instance first, its own or that of the tool that is wrapped."""
        if isinstance(self.function, LegacyFunction):
            return self.function.builds_here()
        return self.factory is not None and self.function is None and self not in instances_here()

    def build_here(self) -> None:
        """Build the instance of this thread, if there is none."""
        if isinstance(self.function, LegacyFunction):
            self.function.build_here()
        elif self.builds_here():
            assert self.factory is not None
            instances_here()[self] = self.factory()

    def _bound_method(self) -> Callable[..., Any]:
        assert self.factory is not None
        instances = instances_here()
        instance = instances.get(self)
        if instance is None:
            instance = instances[self] = self.factory()
        function: Callable[..., Any] = instance if self.method is None else getattr(instance, self.method)
        return function
