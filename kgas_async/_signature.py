"""What a tool takes and gives, read once from a signature or a pydantic model, and its validation.

Knows callables and pydantic; nothing of tools and calls.
"""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ._errors import InvalidInputs, shown
from ._schema import NO_SCHEMA, ResultSchema, inputs_adapter, no_check, no_json_schema, with_defaults
from ._suggest import nearest

__all__ = ["Signature", "hints_of", "request_builder", "result_type"]

_NO_MAPPING = ("dict_type", "mapping_type", "model_type", "model_attributes_type")
_EMPTY = inspect.Parameter.empty
_VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


class Signature:
    """The named inputs of a tool, with their types and defaults, and its result type.

    Attributes:
        tool: The tool's name, for messages.
        types: The annotation of each input by name, `Any` where there is none.
        required: The names that have no default.
        returns: The annotation of the result.
        defaults: The default of each input that has one; it goes into the schema.
    """

    def __init__(
        self,
        tool: str,
        types: Mapping[str, Any],
        required: Iterable[str],
        returns: Any = Any,
        *,
        model: Any = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.tool = tool
        self.types = dict(types)
        self.required = frozenset(required)
        self.returns = returns
        self.defaults = dict(defaults or {})
        self.model: type[BaseModel] | None = model

    @classmethod
    def of_callable(cls, tool: str, function: Callable[..., Any], *, returns: Any = _EMPTY) -> Signature:
        """Read from a function or bound method.

        Raises:
            TypeError: It takes ``*args`` or ``**kwargs`` or positional-only parameters, so its inputs have no names.
        """
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"tool {tool!r}: the signature of {function!r} cannot be read ({error}); name its inputs: params=[...]"
            ) from None
        hints = hints_of(function)
        types: dict[str, Any] = {}
        required = []
        defaults = {}
        for name, parameter in signature.parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                raise TypeError(
                    f"tool {tool!r}: {_kind(parameter)} has no named inputs, so nothing can be bound or checked; name "
                    f"the inputs in the signature, or wrap it: ToolAdapter(..., params=['text', ...]) or inputs=Model"
                )
            types[name] = hints.get(name, Any)
            if any(isinstance(one, FieldInfo) and one.validation_alias for one in _metadata(types[name])):
                raise TypeError(
                    f"tool {tool!r}: input {name!r} has an alias, but calls name a function's inputs as the function "
                    f"does; rename it, or wrap what takes a model: ToolAdapter(..., inputs=Model)"
                )
            if parameter.default is _EMPTY:
                required.append(name)
            else:
                defaults[name] = parameter.default
        returns = hints.get("return", Any) if returns is _EMPTY else returns
        return cls(tool, types, required, returns, defaults=defaults)

    @classmethod
    def of_names(
        cls, tool: str, names: Sequence[str], function: Callable[..., Any] | None = None, *, returns: Any = Any
    ) -> Signature:
        """Inputs of any type, all required; those that ``function`` takes, if it is known.

        Raises:
            TypeError: No names, or names that the function does not take.
            ValueError: A name twice.
        """
        if isinstance(names, str) or not all(isinstance(name, str) and name.isidentifier() for name in names):
            raise TypeError(f"tool {tool!r}: params is a list of names, not {names!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"tool {tool!r}: params names an input twice: {list(names)}")
        if function is not None:
            _check_names(tool, names, function)
        return cls(tool, dict.fromkeys(names, Any), names, returns)

    @classmethod
    def of_model(cls, tool: str, model: type[BaseModel], *, returns: Any = Any) -> Signature:
        """The fields of the request object that a legacy tool takes."""
        fields = [(_asked_as(name, field), field) for name, field in model.model_fields.items()]
        types = {asked_as: field.annotation for asked_as, field in fields}
        required = [asked_as for asked_as, field in fields if field.is_required()]
        return cls(tool, types, required, returns, model=model)

    def renamed(self, tool: str, returns: Any = _EMPTY) -> Self:
        """The same inputs for a tool of another name, and another result if one is given."""
        other = copy.copy(self)
        for made in ("_adapter", "_check", "_result"):
            other.__dict__.pop(made, None)
        other.tool = tool
        if returns is not _EMPTY:
            other.returns = returns
        return other

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        if self.model is not None:
            return TypeAdapter(self.model)
        return inputs_adapter(self.tool, self.types, self.required)

    @cached_property
    def _check(self) -> Callable[[Any], Any]:
        try:
            return self._adapter.validator.validate_python
        except NO_SCHEMA as error:
            raise no_check(self.tool, self.types, error) from error

    def checker(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """What checks and coerces inputs; raises pydantic's ``ValidationError``, see `invalid`.

        Raises:
            TypeError: No schema can be made of an annotation.
        """
        check = self._check
        if self.model is None:
            return check
        model = self.model
        names = [(_asked_as(name, field), name) for name, field in model.model_fields.items()]
        # Pydantic's default is to drop what it does not know.
        # Of the rest the request object takes its defaults itself, and so knows what was given and what was not.
        always = bool(model.model_config.get("validate_default"))
        validated = {name for name, field in model.model_fields.items() if field.validate_default or always}
        known = None if model.model_config.get("extra") == "allow" else {name for pair in names for name in pair}

        def check_model(inputs: Mapping[str, Any]) -> dict[str, Any]:
            try:
                fits = known is None or known.issuperset(inputs)
            except TypeError:
                fits = False
            if not fits:
                if not isinstance(inputs, Mapping):
                    raise self.no_mapping(inputs)
                assert known is not None
                raise self.unknown([name for name in inputs if name not in known], inputs)
            checked = check(inputs)
            kept = checked.model_fields_set | validated
            given = {asked_as: getattr(checked, name) for asked_as, name in names if name in kept}
            return given | (checked.model_extra or {})

        return check_model

    def validate(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs, coerced to the annotated types.

        Raises:
            InvalidInputs: With tool, field and value.
        """
        try:
            return self.checker()(inputs)
        except ValidationError as error:
            raise self.invalid(error) from None

    def invalid(self, error: ValidationError) -> InvalidInputs:
        """What pydantic found, with the tool's name, each field and the nearest known one."""
        errors = []
        lines = []
        for found in error.errors(include_url=False, include_context=False):
            if not found["loc"] and found["type"] in _NO_MAPPING:
                return self.no_mapping(found["input"])
            field = ".".join(str(part) for part in found["loc"])
            entry = {"field": field, "type": found["type"], "message": found["msg"], "value": found["input"]}
            if found["type"] == "extra_forbidden":
                entry["message"] = self._no_such_input(field)
                lines.append(f"{field}: {entry['message']}")
            elif found["type"] == "missing":
                entry["message"] = "missing"
                lines.append(f"{field}: missing")
            else:
                lines.append(f"{field}: {found['msg']}, not {_short(found['input'])}")
            errors.append(entry)
        return InvalidInputs(
            f"invalid inputs for tool {self.tool!r}: " + "; ".join(lines), tool=self.tool, errors=errors
        )

    def no_mapping(self, value: object) -> InvalidInputs:
        """The error of bare values where inputs by name are wanted."""
        name = next(iter(self.types), "text")
        message = f"inputs are mappings of input names, as {{{name!r}: ...}}, not {_short(value)}"
        return InvalidInputs(
            f"invalid inputs for tool {self.tool!r}: {message}; for bare values give arg={name!r}",
            tool=self.tool,
            errors=[{"field": "", "type": "mapping_type", "message": message, "value": value}],
        )

    def unknown(self, names: Sequence[str], inputs: Mapping[str, Any]) -> InvalidInputs:
        """The error of inputs that the tool does not have."""
        errors = [
            {"field": name, "type": "extra_forbidden", "message": self._no_such_input(name), "value": inputs[name]}
            for name in names
        ]
        lines = "; ".join(f"{one['field']}: {one['message']}" for one in errors)
        return InvalidInputs(f"invalid inputs for tool {self.tool!r}: {lines}", tool=self.tool, errors=errors)

    def _no_such_input(self, name: str) -> str:
        return f"no such input; it takes {', '.join(self.types) or 'none'}{nearest(name, self.types)}"

    def named(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Positional arguments given their names."""
        names = list(self.types)
        if len(args) > len(names):
            raise InvalidInputs(
                f"invalid inputs for tool {self.tool!r}: {len(args)} positional inputs, it takes {len(names)}",
                tool=self.tool,
            )
        named = dict(zip(names, args, strict=False))
        for name in named:
            if name in inputs:
                raise InvalidInputs(f"invalid inputs for tool {self.tool!r}: {name} is given twice", tool=self.tool)
        return {**named, **inputs}

    def those_of_mine(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the inputs that the tool takes."""
        if self.model is None:
            return {name: value for name, value in inputs.items() if name in self.types}
        if self.model.model_config.get("extra") == "allow":
            return dict(inputs)
        known = {*self.types, *self.model.model_fields}
        return {name: value for name, value in inputs.items() if name in known}

    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the inputs: an object, unknown ones forbidden, with the defaults that JSON can hold.

        Raises:
            TypeError: An input that cannot be given as JSON, such as an object of any class; it names tool and input.
        """
        self.checker()
        try:
            schema = self._adapter.json_schema()
        except NO_SCHEMA as error:
            raise no_json_schema(self.tool, self.types, error) from error
        schema["title"] = self.tool
        return with_defaults(schema, self.defaults)

    @cached_property
    def _result(self) -> ResultSchema:
        return ResultSchema(self.tool, self.returns)

    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the result; an empty one where it is not annotated, or where JSON has no form for it."""
        try:
            return self._result.schema()
        except TypeError:
            return {}

    def check_result_has_json(self) -> None:
        """Refuse a result for which JSON has no form, before there is one.

        Raises:
            TypeError: By its annotation; it names the tool.
        """
        self._result.schema()

    def result_as_json(self, value: Any) -> Any:
        """A result as JSON can hold it, by its annotation.

        Raises:
            TypeError: It cannot be held.
        """
        return self._result.as_json(value)


def result_type(function: Callable[..., Any]) -> Any:
    """The annotation of what a callable returns, `Any` where there is none."""
    return hints_of(function).get("return", Any)


def request_builder(model: type[BaseModel]) -> Callable[..., BaseModel]:
    """What makes a request object of inputs that a `Signature.of_model` has checked, without checking them again."""
    return partial(_built, model, {_asked_as(name, field): name for name, field in model.model_fields.items()})


def _built(model: type[BaseModel], names: dict[str, str], /, **inputs: Any) -> BaseModel:
    return model.model_construct(**{names.get(asked_as, asked_as): value for asked_as, value in inputs.items()})


def _asked_as(name: str, field: FieldInfo) -> str:
    """The name of the input for a model's field: its alias if it has one, as in its JSON schema."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        alias = next((choice for choice in alias.choices if isinstance(choice, str)), None)
    return alias if isinstance(alias, str) else name


def _check_names(tool: str, names: Sequence[str], function: Callable[..., Any]) -> None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return  # a builtin, say: nobody knows
    required = [one.name for one in parameters if one.default is _EMPTY and one.kind not in _VARIABLE]
    fixed = [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY and one.name in required]
    if fixed:
        raise TypeError(f"tool {tool!r}: {function!r} takes {fixed[0]!r} by position only; wrap it in a function")
    taken = [one.name for one in parameters if one.kind not in _VARIABLE]
    unknown = [name for name in names if name not in taken]
    if unknown and not any(one.kind is one.VAR_KEYWORD for one in parameters):
        raise TypeError(
            f"tool {tool!r}: params={list(names)}, but {function!r} does not take {unknown[0]!r}"
            f"{nearest(unknown[0], taken)}"
        )
    if missing := [name for name in required if name not in names]:
        raise TypeError(f"tool {tool!r}: params={list(names)}, but {function!r} needs {missing[0]!r} too")


def _kind(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.POSITIONAL_ONLY:
        return f"the positional-only parameter {parameter.name!r}"
    return str(parameter).split(":")[0]


def _metadata(kind: Any) -> tuple[Any, ...]:
    return kind.__metadata__ if typing.get_origin(kind) is Annotated else ()


def _short(value: object) -> str:
    text = shown(value)
    return text if len(text) <= 80 else text[:77] + "..."


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The resolved annotations; one that cannot be resolved (a local class behind a string) is left out: `Any`."""
    target: Any = inspect.unwrap(function)
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    if isinstance(target, type):  # what its constructor takes; a model's or a dataclass's are the class's own
        constructor: Any = inspect.getattr_static(target, "__init__")
        if not inspect.isfunction(constructor):
            return {**_resolved(target), "return": target}
        own = hints_of(constructor)
        for parameter in inspect.signature(constructor).parameters.values():
            if parameter.kind in _VARIABLE:  # a model's **data is no field of it
                own.pop(parameter.name, None)
        return {**_resolved(target), **own, "return": target}
    if not inspect.isroutine(target) and callable(target):
        target = target.__call__
    return _resolved(getattr(target, "__func__", target))


def _resolved(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception:  # noqa: BLE001  (whatever evaluating a foreign annotation raises)
        pass
    scope = {**getattr(target, "__globals__", {}), **_closure(target)}
    hints = {}
    for name, annotation in getattr(target, "__annotations__", {}).items():
        try:
            hints[name] = eval(annotation, scope) if isinstance(annotation, str) else annotation
        except Exception:  # noqa: BLE001
            continue
    return hints


def _closure(target: Any) -> dict[str, Any]:
    code, cells = getattr(target, "__code__", None), getattr(target, "__closure__", None)
    if code is None or not cells:
        return {}
    found = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    return found
