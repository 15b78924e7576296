"""`KGASTool`, the base class of all tools: what a tool is, and how it wants to be run.

Knows signatures and policies. It knows no manager: its sync door reaches one through `_context.door`.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, ParamSpec, Protocol, Self, TypeVar, runtime_checkable

from ._context import door
from ._errors import UnknownTool, shown
from ._limits import ConcurrencyLimit, check_text
from ._policy import Policy
from ._policy_checks import check_policy
from ._service import Service
from ._signature import Signature
from ._suggest import nearest

__all__ = ["Execution", "KGASTool", "SupportsExecute", "Toolbox", "no_tool_error", "refuse_class"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


@runtime_checkable
class SupportsExecute(Protocol[P, R_co]):
    """What a call infers its inputs and result from."""

    @property
    def execute_async(self) -> Callable[P, Awaitable[R_co]]: ...


R = TypeVar("R")


class Travels(Protocol):
    """What runs in another process."""

    def check(self) -> None:
        """
        Raises:
            TypeError: It cannot go there.
        """


@dataclass(slots=True)
class Execution:
    """How a tool wants to be run.

    Attributes:
        kind: In the call's task, in a worker thread or process, or as a plain call on the event loop's thread.
        function: What is called with the inputs; it takes the instance first where there is a factory.
        factory: Builds the instance, where each thread has its own.
        dedicated: Built and called in one thread of its own.
        serial: One call at a time: the token of the one instance, which goes where it goes, under whatever name.
        abandon: Leave a thread behind at once when its call ends before it.
        kill: Kill a process at once when its call ends before it.
        remote: The function as it travels to processes.
    """

    kind: Literal["async", "thread", "process", "inline"]
    function: Callable[..., Any]
    factory: Callable[[], Any] | None = None
    dedicated: bool = False
    serial: ConcurrencyLimit | None = None
    abandon: bool = False
    kill: bool = False
    remote: Travels | None = None


class KGASTool:
    """The async tool base class: subclass it and write ``execute_async``.

    Class attributes, all optional: ``name`` (the class's), ``version``, ``description`` (the docstring's first line),
    ``policy``, ``idempotent`` (may be run twice), ``backend`` (for the sync door), ``requires`` (services; those among
    the attributes unless given). Constructors do no I/O.
    """

    name: str = "KGASTool"
    version: str = "0"
    description: str = ""
    policy: Policy = Policy()
    idempotent: bool = False
    backend: str = "asyncio"

    _names_inputs: ClassVar[bool] = True  # from execute_async's signature; adapters read theirs from elsewhere
    _constructed: tuple[tuple[Any, ...], dict[str, Any]]
    _using: Policy | None = None
    _signature_cache: Signature | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        if "description" not in cls.__dict__ and cls.__doc__:  # its own: inspect.getdoc would find this class's
            cls.description = inspect.cleandoc(cls.__doc__).partition("\n")[0]
        if not hasattr(cls.name, "__get__"):  # else each object makes its own
            check_text(f"{cls.__name__}.name", cls.name)
        if not isinstance(cls.policy, Policy):
            raise TypeError(f"{cls.__name__}.policy is a Policy(...), not {cls.policy!r}")
        if cls.backend not in ("asyncio", "trio"):
            raise TypeError(f"{cls.__name__}.backend is 'asyncio' or 'trio', not {cls.backend!r}")
        own = cls.__dict__.get("execute_async")
        if own is not None and cls._names_inputs and not getattr(own, "__isabstractmethod__", False):
            if not inspect.iscoroutinefunction(own):
                raise TypeError(f"{cls.__name__}.execute_async must be 'async def'; wrap sync code: ToolAdapter")
            parameters = list(inspect.signature(own).parameters.values())[1:]
            _refuse_unnamed(cls.__name__, parameters)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if getattr(cls.execute_async, "__isabstractmethod__", False):
            raise TypeError(f"{cls.__name__} has no execute_async; write 'async def execute_async(self, *, ...)'")
        if (args or kwargs) and cls.__init__ is object.__init__ and cls.__new__ is KGASTool.__new__:
            raise TypeError(f"{cls.__name__}() takes no arguments")  # as Python says it where there is no __new__
        self = super().__new__(cls)
        # A tool that is not started pickles by its constructor's arguments. Set so that a frozen dataclass can be one.
        self.__dict__["_constructed"] = (args, kwargs)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        args, kwargs = self._constructed
        return (_rebuilt, (type(self), args, kwargs, self._using, self.__dict__.get("name")))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>" if self.name != type(self).__name__ else f"<tool {self.name!r}>"

    @abstractmethod
    async def execute_async(self, /, *args: Any, **kwargs: Any) -> Any:
        """The tool itself, with named inputs. Awaiting it directly bypasses policy, limits and evidence.

        Args:
            kwargs: Subclasses name their inputs, keyword-only, and annotate them.

        Returns:
            The value of the call.

        Raises:
            BaseException: Whatever the tool raises; the call's error has it as its ``__cause__``.

        Cancellation: Reaches the tool at its next checkpoint.
        """
        raise TypeError(f"{type(self).__name__} has no execute_async")

    def execute(self: SupportsExecute[P, R], /, *args: P.args, **inputs: P.kwargs) -> R:
        """Run the tool from sync code and wait for its result.

        In a worker thread of a call it is a nested call of that call, under the same manager. With no event loop
        running it makes a temporary manager, with the tool's policy and its services.

        Returns:
            What ``execute_async`` returns.

        Raises:
            RuntimeError: On a running event loop (await ``manager.execute(tool, ...)`` there), or in a thread that
                belongs to no call while the tool's services run on a loop elsewhere.
            CallError: As ``manager.execute``.
        """
        tool: Any = self
        if door.sync is None:
            raise RuntimeError("import kgas_async before using a tool's sync door")
        result: R = door.sync(tool, tool.signature.named(args, inputs))
        return result

    @property
    def signature(self) -> Signature:
        """The named inputs and the result; built once."""
        signature = self._signature_cache
        if signature is None:
            signature = self.__dict__["_signature_cache"] = self._read_signature()
        return signature

    def _read_signature(self) -> Signature:
        return Signature.of_callable(self.name, self.execute_async)

    def _execution(self) -> Execution:
        return Execution("async", self.execute_async)

    def _checks_and_cleans_up(self) -> KGASTool:
        """Whose ``validate_inputs`` and ``cleanup_resources`` count."""
        return self

    def _origin(self) -> object:
        """What makes two tools of one name the same tool."""
        return type(self)

    def _given(self) -> tuple[object, ...]:
        """Functions that it was given beside its own code, by whose change its results may change."""
        return ()

    def _made_with(self) -> dict[str, object]:
        """The arguments of its constructor by name, by whose change its results may change."""
        args, kwargs = self._constructed
        try:
            bound = inspect.signature(type(self)).bind(*args, **kwargs)
        except (TypeError, ValueError):  # a constructor that cannot be read
            return {**{str(place): one for place, one in enumerate(args)}, **kwargs}
        bound.apply_defaults()
        return dict(bound.arguments)

    @property
    def requires(self) -> tuple[Any, ...]:
        """The services that must run before this tool: those among its attributes."""
        return tuple(value for value in vars(self).values() if isinstance(value, Service))

    async def validate_inputs(self, /, **inputs: Any) -> dict[str, Any]:
        """Check and coerce the inputs by the signature; what comes out is what runs. Override to add checks.

        Returns:
            The coerced inputs by name.

        Raises:
            InvalidInputs: With tool, field and value.

        Cancellation: Never waits, unless it is overridden.
        """
        return self.signature.validate(inputs)

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the inputs: an object, unknown ones forbidden, with the defaults.

        Raises:
            TypeError: An input that cannot be given as JSON, such as an object of any class; it names tool and input.
        """
        return self.signature.input_schema()

    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the result; an empty one where it is not annotated, or where JSON has no form for it."""
        return self.signature.output_schema()

    async def cleanup_resources(self, call: Any) -> None:
        """Called after a call of this tool has failed, timed out or was cancelled.

        An error here is noted on the call's error and does not replace it.

        Args:
            call: The `Call` that ended.

        Cancellation: Shielded from it, with the call's grace as its time limit.
        """

    def using(self, *, name: str | None = None, **policy_fields: Any) -> Self:
        """A copy with some policy fields laid over, and another name if one is given.

        A copy that keeps its name shares limits, breaker, cache, instances and statistics with the original.

        Args:
            name: The copy's; that of the original unless given.
            policy_fields: As of `Policy`.

        Raises:
            TypeError, ValueError: A policy that this tool cannot have, such as ``hedge_after`` where it is not
                idempotent.
        """
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        over = Policy(**policy_fields)
        own = copy.__dict__  # it may be a frozen dataclass
        own["_using"] = over if self._using is None else self._using.overlaid(over)
        if name is not None:
            own["name"] = check_text("using(name=...)", name)
            own["_signature_cache"] = None  # messages name the tool
        check_policy(copy, over)
        return copy


def _refuse_unnamed(tool: str, parameters: list[inspect.Parameter]) -> None:
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise TypeError(
                f"{tool}.execute_async({parameter}) has no named inputs, so nothing can be bound or checked; name "
                f"them: async def execute_async(self, *, text: str, ...)"
            )


def refuse_class(thing: object, what: str) -> None:
    """
    Raises:
        TypeError: It is a subclass of `KGASTool`, which needs no wrapping, and whose objects are the tools.
    """
    if isinstance(thing, type) and issubclass(thing, KGASTool):
        raise TypeError(f"{what}: this is the class; its objects are tools already: {thing.__name__}(...)")


def no_tool_error(said: str, thing: object) -> TypeError:
    """The error for what was given instead of a tool, and the mend.

    Args:
        said: Who takes what, as in ``"Every takes a tool"``.
        thing: What was given.
    """
    if isinstance(thing, type) and issubclass(thing, KGASTool):
        return TypeError(f"{said}, and this is the class; its objects are tools: {thing.__name__}(...)")
    is_wrappable = callable(thing) or callable(getattr(thing, "execute", None))
    mend = "; wrap it: tool(...) or ToolAdapter(...)" if is_wrappable else ""
    return TypeError(f"{said}, not {shown(thing)}{mend}")


def _rebuilt(
    cls: type[KGASTool], args: tuple[Any, ...], kwargs: dict[str, Any], using: Policy | None, name: str | None
) -> KGASTool:
    tool = cls(*args, **kwargs)
    tool.__dict__["_using"] = using
    if name is not None:
        tool.__dict__["name"] = name
        tool.__dict__["_signature_cache"] = None  # messages name the tool
    return tool


class Toolbox(Mapping[str, KGASTool]):
    """Tools by name, for programs that choose them at run time and have their arguments as JSON.

    ``await manager.execute(toolbox[name], **json_arguments)`` runs one: the values are coerced to the annotated types
    (paths, dates, enums, models, tuples), or refused as `InvalidInputs`. So every tool in it needs a JSON Schema; tools
    that take live objects are better kept in a dict.

    Args:
        tools: Any tools.

    Raises:
        ValueError: Two tools with one name; give one another: ``tool.using(name=...)``.
        TypeError: Something that is no tool, or takes what JSON cannot hold; the message names tool and parameter.
    """

    def __init__(self, *tools: KGASTool) -> None:
        self._tools: dict[str, KGASTool] = {}
        self._schemas: dict[str, dict[str, Any]] = {}
        for one in tools:
            if not isinstance(one, KGASTool):
                raise no_tool_error("a Toolbox takes tools", one)
            if one.name in self._tools:
                raise ValueError(f"two tools are named {one.name!r}; give one another name: tool.using(name=...)")
            self._tools[one.name] = one
            self._schemas[one.name] = one.input_schema()

    def schemas(self, *names: str) -> list[dict[str, Any]]:
        """What a model needs to know to call the tools.

        Args:
            names: Only these tools; all of them if none are given.

        Returns:
            One mapping per tool, with ``name``, ``description`` and ``parameters`` (JSON Schema of the inputs, with
            their defaults), free to be changed: the shape that function-calling interfaces take, some inside another
            mapping (``{"type": "function", "function": schema}``), some with ``parameters`` under another name.

        Raises:
            UnknownTool: No tool has that name.
        """
        return [
            {
                "name": name,
                "description": self[name].description,
                "parameters": deepcopy(self._schemas[name]),
            }
            for name in names or self._tools
        ]

    def __getitem__(self, name: str) -> KGASTool:
        try:
            return self._tools[name]
        except KeyError:
            known = ", ".join(sorted(self._tools)) or "none"
            raise UnknownTool(f"no tool is named {name!r}; there are: {known}{nearest(name, self._tools)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __repr__(self) -> str:
        return f"Toolbox({', '.join(self._tools)})"
