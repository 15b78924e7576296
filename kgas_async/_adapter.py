"""`ToolAdapter`: legacy objects, functions and async tools as tools. It is told, it does not guess.

Knows signatures and how a function is called in a thread; nothing of calls and managers.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Sequence
from threading import Lock
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from pydantic import BaseModel

from ._offload import LegacyFunction
from ._policy import Policy
from ._signature import Signature
from ._suggest import nearest
from ._threads import run_bare
from ._tool import Execution, KGASTool

__all__ = ["ErrorWhen", "Offload", "OnCancel", "Preset", "ToolAdapter"]

P = ParamSpec("P")
R = TypeVar("R")

Offload = Literal["thread", "inline"]
OnCancel = Literal["wait", "abandon"]
Instances = Literal["shared", "serial", "per_thread", "dedicated"]
ErrorWhen = Callable[[Any], BaseException | str | None]

_INSTANCES = ("shared", "serial", "per_thread", "dedicated")


class ToolAdapter(KGASTool, Generic[P, R]):
    """A legacy object, a sync callable, or an async tool, as a tool.

    Args:
        legacy: An object with ``.execute`` (or ``method``), a callable, or a `KGASTool`. None with ``factory``.
        factory: Builds the object, without arguments; where and how often, ``instances`` says.
        method: The method to call, ``"execute"`` unless given.
        params: The names of the inputs, for a callable that takes ``**kwargs``.
        inputs: A pydantic model: its fields are the inputs, and the legacy method gets one object of it.
        returns: A function of the result that gives the value of the call.
        error_when: A function of the result that gives an error (an exception or a message) or None: for tools that
            return their errors. `CallFailed.result` keeps what was returned.
        offload: ``"thread"`` (default), or ``"inline"`` for what is known to take microseconds.
        on_cancel: For threads: ``"wait"`` (default) for one that must not be left alone: a timeout waits for it, a
            cancelled call for its grace; or ``"abandon"``: leave it behind at once. Its token comes back when it ends.
        instances: ``"shared"`` (default): one object, called from many threads; ``"serial"``: one call at a time;
            ``"per_thread"``: one object per worker thread; ``"dedicated"``: built and called in one thread of its
            own. The last two take a ``factory``.
        name, version, description, idempotent, backend, policy: As on `KGASTool`.

    Raises:
        TypeError: Options that contradict each other or the object, with the mend.
    """

    _names_inputs = False
    name = "ToolAdapter"

    @overload
    def __init__(self: ToolAdapter[P, R], legacy: Callable[P, Coroutine[Any, Any, R]], /, **options: Any) -> None: ...
    @overload
    def __init__(self: ToolAdapter[P, R], legacy: Callable[P, R], /, **options: Any) -> None: ...
    @overload
    def __init__(
        self: ToolAdapter[..., Any],
        legacy: object = None,
        /,
        *,
        factory: Callable[[], Any] | None = None,
        method: str | None = None,
        params: Sequence[str] | None = None,
        inputs: type[BaseModel] | None = None,
        returns: Callable[[Any], Any] | None = None,
        error_when: ErrorWhen | None = None,
        offload: Offload = "thread",
        on_cancel: OnCancel = "wait",
        instances: Instances = "shared",
        name: str | None = None,
        version: str = "0",
        description: str | None = None,
        idempotent: bool = False,
        backend: str = "asyncio",
        policy: Policy | None = None,
    ) -> None: ...
    def __init__(self, legacy: object = None, /, **options: Any) -> None:
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} has no option {unknown[0]!r}; it has {', '.join(_OPTIONS)}"
                f"{nearest(unknown[0], _OPTIONS)}"
            )
        get = options.get
        self._legacy = legacy
        self._inner = legacy if isinstance(legacy, KGASTool) else None
        self._method: str | None = get("method")
        self._params: Sequence[str] | None = get("params")
        self._model: type[BaseModel] | None = get("inputs")
        self.offload: str = get("offload", "thread")
        self.on_cancel: str = get("on_cancel", "wait")
        self.instances: str = get("instances", "shared")
        factory = get("factory")
        _check_target(self, legacy, factory)
        target = factory if legacy is None else legacy
        self._factory: Callable[[], Any] | None = factory
        self._is_async = self._inner is not None or _is_async(legacy, self._method)
        self.name = get("name") or _name_of(target, self._method)
        self.version = get("version", "0")
        self.description = get("description") or _describe(target)
        self.idempotent = bool(get("idempotent", False))
        self.backend = get("backend", "asyncio")
        inner_policy = self._inner.policy if self._inner is not None else Policy()
        self.policy = inner_policy.overlaid(get("policy"))
        _check_options(self, options)
        self._function = self._make_function(get("returns"), get("error_when"))
        _ = self.signature  # names that cannot be found fail here, not at the first call

    def _make_function(self, returns: Any, error_when: Any) -> LegacyFunction:
        function: Any = None
        factory = self._factory
        if self._inner is not None:
            function = self._inner.execute_async
        elif self._legacy is not None:
            function = _method_of(self._legacy, self._method)
        elif self.instances in ("shared", "serial"):
            factory = _Once(factory)
        method = None if function is not None else (self._method or "execute")
        return LegacyFunction(
            function,
            factory=factory,
            method=method,
            model=self._model,
            error_when=error_when,
            returns=returns,
            lists_iterators=self.instances == "per_thread",
        )

    @classmethod
    def preset(cls, **options: Any) -> Preset:
        """The same options for many: ``wrap = ToolAdapter.preset(method="run"); a, b = wrap(A()), wrap(B())``."""
        return Preset(cls, options)

    async def execute_async(self, *args: P.args, **inputs: P.kwargs) -> R:
        """The function itself in a worker thread, without policy, limits and evidence."""
        named = self.signature.named(args, inputs)
        execution = self._execution()
        if execution.kind == "async":
            result: R = await execution.function(**named)
        elif execution.kind == "inline":
            result = execution.function(**named)
        else:
            result = await run_bare(functools.partial(execution.function, **named))
        return result

    def _read_signature(self) -> Signature:
        if self._model is not None:
            return Signature.of_model(self.name, self._model)
        if self._params is not None:
            return Signature.of_names(self.name, self._params)
        if self._inner is not None:
            return self._inner.signature
        if self._function.function is not None:
            return Signature.of_callable(self.name, self._function.function)
        return Signature.of_callable(self.name, _method_of_class(self._factory, self._method or "execute", self.name))

    def _execution(self) -> Execution:
        if self._is_async:
            mapped = self._function
            if mapped.error_when is None and mapped.returns is None and mapped.model is None:
                assert mapped.function is not None
                return Execution("async", mapped.function)
            return Execution("async", functools.partial(_awaited, mapped))
        if self.offload == "inline":
            return Execution("inline", self._function)
        function = self._function
        return Execution(
            "thread",
            function.function if function.is_bare else function,  # type: ignore[arg-type]
            factory=self._factory,
            dedicated=self.instances == "dedicated",
            serial=self.instances == "serial",
            abandon=self.on_cancel == "abandon",
        )

    def _origin(self) -> object:
        target: Any = self._legacy if self._legacy is not None else self._factory
        if isinstance(target, KGASTool):
            return target._origin()
        return target if inspect.isroutine(target) or isinstance(target, type) else type(target)

    @property
    def requires(self) -> tuple[Any, ...]:
        """The services of the tool that is wrapped."""
        if self._inner is not None:
            return self._inner.requires
        return super().requires


_OPTIONS = (
    "factory", "method", "params", "inputs", "returns", "error_when", "offload", "on_cancel", "instances", "name",
    "version", "description", "idempotent", "backend", "policy",
)  # fmt: skip


class Preset:
    """Options of a `ToolAdapter` that wait for what to wrap."""

    def __init__(self, cls: type[ToolAdapter[..., Any]], options: dict[str, Any]) -> None:
        self._cls = cls
        self._options = options

    @overload
    def __call__(self, legacy: Callable[P, R], /, **options: Any) -> ToolAdapter[P, R]: ...
    @overload
    def __call__(self, legacy: object = None, /, **options: Any) -> ToolAdapter[..., Any]: ...
    def __call__(self, legacy: object = None, /, **options: Any) -> ToolAdapter[..., Any]:
        """Wrap one, with further options laid over the preset."""
        return self._cls(legacy, **{**self._options, **options})


class _Once:
    """A factory that builds once, whichever thread comes first."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory
        self._lock = Lock()
        self._made: list[Any] = []

    def __call__(self) -> Any:
        with self._lock:
            if not self._made:
                self._made.append(self._factory())
            return self._made[0]


async def _awaited(mapped: LegacyFunction, **inputs: Any) -> Any:
    assert mapped.function is not None
    raw = await (mapped.function(**inputs) if mapped.model is None else mapped.function(mapped.model(**inputs)))
    return mapped.judge(raw)


def _is_async(legacy: object, method: str | None) -> bool:
    if legacy is None:
        return False
    function = _method_of(legacy, method)
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  (the method itself is wanted: it may be async)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _method_of(legacy: object, method: str | None) -> Callable[..., Any]:
    if method is None and callable(legacy) and not hasattr(legacy, "execute"):
        return legacy
    if method is None and inspect.isroutine(legacy):
        return legacy
    name = method or "execute"
    found = getattr(legacy, name, None)
    if not callable(found):
        known = [one for one in dir(legacy) if not one.startswith("_") and callable(getattr(legacy, one, None))]
        raise TypeError(
            f"{type(legacy).__name__} object has no method {name!r}{nearest(name, known)}; say which: "
            f"ToolAdapter(obj, method=...); it has {', '.join(known) or 'none'}"
        )
    return found  # type: ignore[no-any-return]


def _method_of_class(factory: Any, method: str, tool: str) -> Callable[..., Any]:
    """The unbound method that the factory's objects will have, as a bound one: for its signature only."""
    cls = factory if isinstance(factory, type) else getattr(factory, "__annotations__", {}).get("return")
    if isinstance(cls, str):
        cls = getattr(sys.modules.get(getattr(factory, "__module__", "")), cls, None)
    if not isinstance(cls, type):
        raise TypeError(
            f"tool {tool!r}: what {factory!r} builds is not known before it runs; name its inputs: params=[...], or "
            f"annotate the factory's return type"
        )
    function = getattr(cls, method, None)
    if not callable(function):
        raise TypeError(f"tool {tool!r}: {cls.__name__} has no method {method!r}; say which: ToolAdapter(method=...)")
    static = inspect.getattr_static(cls, method)
    return function if isinstance(static, (staticmethod, classmethod)) else functools.partial(function, None)


def _check_target(tool: ToolAdapter[..., Any], legacy: object, factory: object) -> None:
    if (legacy is None) == (factory is None):
        raise TypeError("ToolAdapter takes either something to wrap or a factory=, and not both")
    if factory is not None and not callable(factory):
        raise TypeError(f"ToolAdapter(factory) is a callable without arguments, not {factory!r}")
    if isinstance(legacy, type) and tool._method is None and hasattr(legacy, "execute"):
        raise TypeError(f"{legacy.__name__} is a class with .execute; pass an object, or factory={legacy.__name__}")
    if tool._inner is not None and tool._method is not None:
        raise TypeError("method= does not apply to a KGASTool")


def _check_options(tool: ToolAdapter[..., Any], options: dict[str, Any]) -> None:
    offload, on_cancel, instances = tool.offload, tool.on_cancel, tool.instances
    if tool.policy is None or not isinstance(tool.policy, Policy):
        raise TypeError(f"policy= is a Policy(...), not {tool.policy!r}")
    if tool._is_async and ("offload" in options or "on_cancel" in options):
        raise TypeError(f"tool {tool.name!r} is async: offload= and on_cancel= do not apply to it")
    if offload not in ("thread", "inline"):
        raise TypeError(
            f"offload={offload!r} is not known; use 'thread' or 'inline'{nearest(str(offload), ('thread', 'inline'))}"
        )
    if offload == "inline" and "on_cancel" in options:
        raise TypeError("offload='inline' takes no on_cancel: nothing can interrupt it")
    if on_cancel not in ("wait", "abandon"):
        raise TypeError(f"on_cancel={on_cancel!r} is not known for offload='thread'; use 'wait' or 'abandon'")
    if instances not in _INSTANCES:
        raise TypeError(f"instances={instances!r} is not known; use one of {', '.join(_INSTANCES)}")
    if instances in ("per_thread", "dedicated") and tool._factory is None:
        raise TypeError(
            f"instances={instances!r} builds its objects in their threads: give factory= instead of an object"
        )
    if instances in ("per_thread", "dedicated") and offload == "inline":
        raise TypeError(f"instances={instances!r} needs offload='thread'")
    if tool._params is not None and tool._model is not None:
        raise TypeError("params= and inputs= both name the inputs; give one of them")
    if tool._model is not None and not (isinstance(tool._model, type) and issubclass(tool._model, BaseModel)):
        raise TypeError(f"inputs= is a pydantic model class, not {tool._model!r}")
    for name in ("returns", "error_when"):
        if options.get(name) is not None and not callable(options[name]):
            raise TypeError(f"{name}= is a function of the result, not {options[name]!r}")


def _name_of(target: object, method: str | None) -> str:
    while isinstance(target, functools.partial):
        target = target.func
    if isinstance(target, KGASTool):
        return target.name
    name = getattr(target, "__name__", None) or type(target).__name__
    if name == "<lambda>":
        raise TypeError("a lambda has no name to be known by in limits and evidence: give name='...'")
    return str(name) if method is None or inspect.isroutine(target) else f"{name}.{method}"


def _describe(target: object) -> str:
    if isinstance(target, KGASTool):
        return target.description
    return (inspect.getdoc(target) or "").partition("\n")[0]
