"""`ToolAdapter`: legacy objects, functions and async tools as tools. It is told, it does not guess.

Knows signatures and how a function is called in a thread; nothing of calls and managers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from threading import Lock
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from pydantic import BaseModel

from ._bare import run_bare
from ._elsewhere import check_process, remote
from ._fingerprint import attributes_of
from ._legacy import describe, is_async, method_of, method_of_class, name_of, refuse_unbound
from ._limits import ConcurrencyLimit
from ._offload import LegacyFunction
from ._policy import POLICY_FIELDS, Policy
from ._policy_checks import check_policy
from ._signature import Signature, request_builder, result_type
from ._suggest import nearest
from ._tool import Execution, KGASTool, refuse_class

__all__ = ["ErrorWhen", "Offload", "OnCancel", "Preset", "ToolAdapter", "refuse_unknown"]

P = ParamSpec("P")
R = TypeVar("R")

Offload = Literal["thread", "process", "inline"]
OnCancel = Literal["wait", "abandon", "kill"]
Instances = Literal["shared", "serial", "per_thread", "dedicated"]
ErrorWhen = Callable[[Any], BaseException | str | None]

_ON_CANCEL = {"thread": ("wait", "abandon"), "process": ("kill", "wait"), "inline": ()}
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
        offload: ``"thread"`` (default); ``"process"``: in a worker process of the manager's, for CPU-bound Python and
            for what may crash or never end; or ``"inline"`` for what is known to take microseconds.
        on_cancel: For threads: ``"wait"`` (default) for one that must not be left alone: a timeout waits for it, a
            cancelled call for its grace; or ``"abandon"``: leave it behind at once. Its token comes back when it ends.
            For processes: ``"kill"`` (default): at once, with all that it has started; or ``"wait"``, as for threads,
            and killed after that.
        max_memory: For processes on Linux: bytes that a call may allocate beyond what its worker has when it begins;
            more is a ``MemoryError`` there.
        instances: ``"shared"`` (default): one object, called from many threads; ``"serial"``: one call at a time;
            ``"per_thread"``: one object per worker thread; ``"dedicated"``: built and called in one thread of its
            own. The last two take a ``factory``, and so does an object in processes: each worker builds one.
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
        on_cancel: OnCancel | None = None,
        max_memory: int | None = None,
        instances: Instances = "shared",
        name: str | None = None,
        version: str = "0",
        description: str | None = None,
        idempotent: bool = False,
        backend: str = "asyncio",
        policy: Policy | None = None,
    ) -> None: ...
    def __init__(self, legacy: object = None, /, **options: Any) -> None:
        refuse_unknown(type(self).__name__, options)
        get = options.get
        self._legacy = legacy
        self._inner = legacy if isinstance(legacy, KGASTool) else None
        self._method: str | None = get("method")
        self._params: Sequence[str] | None = get("params")
        self._model: type[BaseModel] | None = get("inputs")
        # A sync tool that is wrapped runs where and as it would by itself.
        wrapped = legacy if isinstance(legacy, ToolAdapter) else None
        self._sync = wrapped if wrapped is not None and not wrapped._is_async else None
        self.offload: str = get("offload", "thread" if self._sync is None else self._sync.offload)
        self.on_cancel: str = get("on_cancel") or _on_cancel_of(self)
        self.max_memory: int | None = get("max_memory", None if self._sync is None else self._sync.max_memory)
        self.instances: str = get("instances", "shared" if wrapped is None else wrapped.instances)
        self._serial: ConcurrencyLimit | None = None
        if self.instances == "serial":
            self._serial = (None if wrapped is None else wrapped._serial) or ConcurrencyLimit(1)
        self._attributes = attributes_of(legacy)  # as they are now: they may change as it works
        factory = get("factory")
        _check_target(self, legacy, factory)
        target = factory if legacy is None else legacy
        self._factory: Callable[[], Any] | None = factory if self._sync is None else self._sync._factory
        self._is_async: bool = self._sync is None if self._inner is not None else is_async(legacy, self._method)
        self.name = name_of(target, self._method) if get("name") is None else _checked_name(options["name"])
        self.version = get("version", "0" if self._inner is None else self._inner.version)
        self.description = get("description") or describe(target)
        self.idempotent = bool(get("idempotent", self._inner is not None and self._inner.idempotent))
        self.backend = get("backend", "asyncio" if self._inner is None else self._inner.backend)
        _check_options(self, options)
        inner_policy = Policy() if self._inner is None else self._inner.policy.overlaid(self._inner._using)
        self.policy = inner_policy.overlaid(get("policy"))
        self._function = self._make_function(get("returns"), get("error_when"))
        self._remote = remote(self.name, self._function, self.max_memory) if self.offload == "process" else None
        _ = self.signature  # names that cannot be found fail here, not at the first call
        check_policy(self, self.policy)

    def _make_function(self, returns: Any, error_when: Any) -> LegacyFunction:
        function: Any = None
        factory = self._factory
        if self._inner is not None:
            function = self._inner.execute_async if self._sync is None else self._sync._function
        elif self._legacy is not None:
            function = method_of(self._legacy, self._method)
        elif self.instances in ("shared", "serial"):
            factory = _Once(factory)
        method = None if function is not None else (self._method or "execute")
        return LegacyFunction(
            function,
            factory=factory,
            method=method,
            model=None if self._model is None else request_builder(self._model),
            error_when=error_when,
            returns=returns,
            lists_iterators=self.instances == "per_thread" or self.offload == "process",
        )

    @classmethod
    def preset(cls, **options: Any) -> Preset:
        """The same options for many: ``wrap = ToolAdapter.preset(method="run"); a, b = wrap(A()), wrap(B())``.

        Args:
            options: As of `ToolAdapter`; those that ``wrap`` is called with are laid over them.

        Returns:
            A function of a legacy object, or of nothing where there is a ``factory``, that gives a tool.

        Raises:
            TypeError: An unknown option.
        """
        refuse_unknown(cls.__name__, options)
        return Preset(cls, options)

    async def execute_async(self, /, *args: P.args, **inputs: P.kwargs) -> R:
        """The function itself, without policy, limits and evidence; a sync one in a thread of its own.

        Args:
            inputs: Its inputs, by name.

        Returns:
            The value, after ``returns`` and ``error_when``.

        Cancellation: Waits for the thread, for 10 seconds at the most; then leaves it behind.
        """
        named = self.signature.named(args, inputs)
        if self._model is not None:
            named = self.signature.validate(named)  # what builds the request object no longer checks it
        execution = self._execution()
        if execution.kind == "async":
            result: R = await execution.function(**named)
        elif execution.kind == "inline":
            result = execution.function(**named)
        else:
            result = await run_bare(functools.partial(execution.function, **named))
        return result

    def _read_signature(self) -> Signature:
        function = self._function.function
        if function is None:
            function = method_of_class(
                self.name, self._factory, self._method, named=self._params is not None or self._model is not None
            )
        result = function if self._function.returns is None else self._function.returns
        returns = Any if result is None else result_type(result)
        if self._model is not None:
            return Signature.of_model(self.name, self._model, returns=returns)
        if self._inner is not None and self._params is None:
            inner = self._inner.signature
            return inner.renamed(self.name) if self._function.returns is None else inner.renamed(self.name, returns)
        if self._params is not None:
            return Signature.of_names(self.name, self._params, function, returns=returns)
        assert function is not None
        return Signature.of_callable(self.name, function, returns=returns)

    def _execution(self) -> Execution:
        if self._is_async:
            mapped = self._function
            function: Any = mapped.function if mapped.is_bare else functools.partial(_awaited, mapped)
            return Execution("async", function, serial=self._serial)
        if self.offload == "inline":
            return Execution("inline", self._function)
        if self._remote is not None:
            kill = self.on_cancel == "kill"
            return Execution("process", self._remote, serial=self._serial, kill=kill, remote=self._remote)
        function = self._function.function if self._function.is_bare else self._function
        return Execution(
            "thread",
            function,
            factory=self._factory,
            dedicated=self.instances == "dedicated",
            serial=self._serial,
            abandon=self.on_cancel == "abandon",
        )

    def _checks_and_cleans_up(self) -> KGASTool:
        if self._inner is None or any(getattr(type(self), name) is not getattr(KGASTool, name) for name in _HOOKS):
            return self
        return self._inner._checks_and_cleans_up()

    def _origin(self) -> object:
        target: Any = self._legacy if self._legacy is not None else self._factory
        while isinstance(target, functools.partial):
            target = target.func
        if isinstance(target, KGASTool):
            return target._origin()
        return target if inspect.isroutine(target) or isinstance(target, type) else type(target)

    def _given(self) -> tuple[object, ...]:
        target = self._legacy if self._legacy is not None else self._factory
        inner = () if self._inner is None else self._inner._given()
        return (target, self._function.returns, self._function.error_when, *inner)

    def _made_with(self) -> dict[str, object]:
        own = {} if type(self).__init__ is ToolAdapter.__init__ else super()._made_with()
        return {**own, "tool": self._inner, "method": self._method, "attributes": self._attributes}

    @property
    def requires(self) -> tuple[Any, ...]:
        """The services of the tool that is wrapped."""
        if self._inner is not None:
            return self._inner.requires
        return super().requires


_HOOKS = ("validate_inputs", "cleanup_resources")
_OPTIONS = (
    "factory", "method", "params", "inputs", "returns", "error_when", "offload", "on_cancel", "max_memory", "instances",
    "name", "version", "description", "idempotent", "backend", "policy",
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

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Once, (self._factory,))  # a worker process builds its own

    def __call__(self) -> Any:
        with self._lock:
            if not self._made:
                self._made.append(self._factory())
            return self._made[0]


async def _awaited(mapped: LegacyFunction, /, **inputs: Any) -> Any:
    assert mapped.function is not None
    raw = await (mapped.function(**inputs) if mapped.model is None else mapped.function(mapped.model(**inputs)))
    return mapped.judge(raw)


def _on_cancel_of(tool: ToolAdapter[..., Any]) -> str:
    """What is not given: that of the tool that is wrapped, if it runs there too, else the default of the place."""
    if tool._sync is not None and tool._sync.offload == tool.offload:
        return tool._sync.on_cancel
    return _ON_CANCEL.get(tool.offload, ("wait", ""))[0] if tool.offload != "inline" else "wait"


def _check_target(tool: ToolAdapter[..., Any], legacy: object, factory: object) -> None:
    if (legacy is None) == (factory is None):
        raise TypeError("ToolAdapter takes either something to wrap or a factory=, and not both")
    refuse_class(legacy if factory is None else factory, "ToolAdapter")
    if factory is not None and not callable(factory):
        raise TypeError(f"ToolAdapter(factory) is a callable without arguments, not {factory!r}")
    if isinstance(legacy, type) and tool._method is None and hasattr(legacy, "execute"):
        raise TypeError(f"{legacy.__name__} is a class with .execute; pass an object, or factory={legacy.__name__}")
    if tool._method is not None and not isinstance(tool._method, str):
        raise TypeError(f"method= is a name, not {tool._method!r}")
    refuse_unbound(legacy, tool._method)
    if tool._inner is not None and tool._method is not None:
        raise TypeError("method= does not apply to a KGASTool")
    if tool._sync is not None and tool._model is not None:
        raise TypeError("inputs= does not apply to a sync tool, which names its inputs; give it to the tool itself")


def _check_options(tool: ToolAdapter[..., Any], options: dict[str, Any]) -> None:
    offload, on_cancel, instances = tool.offload, tool.on_cancel, tool.instances
    if not isinstance(options.get("policy"), (Policy, type(None))):
        raise TypeError(f"policy= is a Policy(...), not {options['policy']!r}")
    if tool.backend not in ("asyncio", "trio"):
        raise TypeError(f"backend= is 'asyncio' or 'trio', not {tool.backend!r}")
    if tool._is_async and ("offload" in options or options.get("on_cancel") is not None):
        raise TypeError(f"tool {tool.name!r} is async: offload= and on_cancel= do not apply to it")
    if offload not in _ON_CANCEL:
        known = ", ".join(map(repr, _ON_CANCEL))
        raise TypeError(f"offload={offload!r} is not known; use one of {known}{nearest(str(offload), _ON_CANCEL)}")
    if offload == "inline" and options.get("on_cancel") is not None:
        raise TypeError("offload='inline' takes no on_cancel: nothing can interrupt it")
    if offload != "inline" and on_cancel not in _ON_CANCEL[offload]:
        known = " or ".join(map(repr, _ON_CANCEL[offload]))
        raise TypeError(f"on_cancel={on_cancel!r} is not known for offload={offload!r}; use {known}")
    if instances not in _INSTANCES:
        raise TypeError(f"instances={instances!r} is not known; use one of {', '.join(_INSTANCES)}")
    if offload == "process":
        check_process(tool, options)
    elif tool.max_memory is not None:
        raise TypeError("max_memory= bounds worker processes; it needs offload='process'")
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


def refuse_unknown(what: str, options: Iterable[str], without: Collection[str] = ()) -> None:
    """
    Args:
        what: Who is given the options, in the message.
        options: Their names.
        without: Options of a `ToolAdapter` that it does not have.

    Raises:
        TypeError: One that there is not, with the nearest that there is.
    """
    known = [name for name in _OPTIONS if name not in without]
    for name in options:
        if name not in known:
            mend = nearest(name, known)
            if name in POLICY_FIELDS:
                mend = f"; it is a field of the policy: policy=Policy({name}=...)"
            raise TypeError(f"{what} has no option {name!r}; it has {', '.join(known)}{mend}")


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"name= is a non-empty string, not {name!r}")
    return name
