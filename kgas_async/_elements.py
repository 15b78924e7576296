"""Tools that take lists, seen from one element: its signature, and whether as many results came back.

Knows signatures; nothing of calls.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from typing import Annotated, Any, Union

from ._offload import refuse_coroutine
from ._signature import Signature
from ._suggest import nearest
from ._tool import KGASTool

__all__ = ["as_list", "element_signature"]

_LISTS = (list, tuple, Sequence, MutableSequence)
_NONE: Any = object()


def element_signature(name: str, tool: KGASTool, fixed: Mapping[str, Any]) -> Signature:
    """What one element of the lists that a tool takes is, and what comes of it.

    Args:
        name: For messages.
        tool: The tool.
        fixed: Inputs that are no lists of elements, or are not to be taken apart.

    Raises:
        TypeError: No list among its inputs, or an input that is none, has no default and is not fixed.
    """
    signature = tool.signature
    for one in fixed:
        if one not in signature.types:
            raise TypeError(
                f"inputs= names {one!r}, which is no input of tool {tool.name!r}; it takes "
                f"{', '.join(signature.types) or 'none'}{nearest(one, signature.types)}"
            )
    elements: dict[str, Any] = {}
    for parameter, kind in signature.types.items():
        if parameter in fixed:
            continue
        element = _element_of(kind)
        if element is not _NONE:
            elements[parameter] = element
        elif parameter in signature.required:
            raise TypeError(
                f"tool {tool.name!r} takes {parameter!r}, which is no list (it is {kind!r}) and would be the same for "
                f"a whole batch: give it, inputs={{{parameter!r}: ...}}"
            )
    if not elements:
        raise TypeError(f"tool {tool.name!r} takes no list of elements: {', '.join(signature.types) or 'no inputs'}")
    returns = _element_of(signature.returns)
    return Signature(name, elements, elements, Any if returns is _NONE else _without_errors(returns))


def _element_of(kind: Any) -> Any:
    """The type of an element of lists of this type; `_NONE` where it is no list."""
    if kind is Any:
        return Any
    if typing.get_origin(kind) is Annotated:
        return _element_of(typing.get_args(kind)[0])
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin not in _LISTS:
        return _NONE
    if origin is tuple and arguments and arguments[1:] != (Ellipsis,):
        return _NONE  # of fixed length
    return arguments[0] if arguments else Any


def _without_errors(kind: Any) -> Any:
    """A result's type without the exceptions that stand for failed elements."""
    if typing.get_origin(kind) not in (Union, types.UnionType):
        return kind
    rest = [one for one in typing.get_args(kind) if not (isinstance(one, type) and issubclass(one, BaseException))]
    return Union[tuple(rest)] if rest else Any  # noqa: UP007  (made of types that only run time knows)


def as_list(results: Any, count: int, tool: str, function: Callable[..., Any]) -> list[Any]:
    """The results of a batch, one for each of its elements.

    Raises:
        TypeError: It is no list.
        ValueError: They are too few or too many.
    """
    refuse_coroutine(results, function)
    if isinstance(results, (str, bytes, Mapping, set, frozenset)) or not hasattr(results, "__len__"):
        raise TypeError(
            f"tool {tool!r} was given a batch and returns a list with one result for each element, in order, not "
            f"{type(results).__name__}"
        )
    if len(results) != count:
        raise ValueError(
            f"tool {tool!r} was given a batch of {count} and returned {len(results)} results: nobody knows which is "
            f"whose; it returns one for each element, in order (an exception for one that failed)"
        )
    return list(results)
