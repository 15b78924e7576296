"""The reference: each public name with its docstring, under the heading that `reference.md` has it under.

``.. names:: Policies`` puts the names of that section there, ``.. module-names:: kgas_async.testing`` those of a
module's ``__all__``. Methods that a class has of a public base stand at the base alone.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import signature as sphinx_signature
from sphinx.util.inspect import stringify_signature
from sphinx.util.typing import stringify_annotation

import kgas_async

REFERENCE = Path(__file__).parent.parent / "reference.md"

# What modules of the package need of each other's objects, and nobody else: neither promised nor documented.
LIMIT = "is_drop is_keyed is_reentrant join line_up note_run of refuses step_out take_one_nowait tokens wait_for_token"
INTERNAL = {
    "AdaptiveLimit": LIMIT,
    "Cache": "count key_of",
    "Call": "aborted cancelled_error end grace_deadline host_is_ours manager note_progress ok phase pipeline placed "
    "run_id session_id to_outcome tool_name unwrap wait_ns waits",
    "CallEvents": "next_kept take wake",
    "CircuitBreaker": "counts refuses reject settle take",
    "ConcurrencyLimit": LIMIT,
    "JsonlSink": "is_open open write_entries",
    "KeyTokens": LIMIT,
    "MemoryLimit": LIMIT,
    "MemoryStore": "get_nowait set_nowait",
    "OutcomeStream": "take_some",
    "RateLimit": LIMIT,
    "Retry": "delay wants",
    "RetryBudget": "count_call take_retry",
    "RunReport": "add",
}

# What type checkers infer inputs and result from, as it is read.
INFERRED = {
    r"[~\w.]*SupportsExecute\[(?:[^\[\]]|\[[^\]]*\])*\]": "KGASTool",
    r"\*args: [~\w.]*~P(?:\.args)?, ": "",
    r"\*\*inputs: [~\w.]*~P(?:\.kwargs)?": "**inputs",
}

KEPT: dict[str, list[str]] = {}  # docstrings of properties, while napoleon has its turn

SECTIONS = "Cancellation|Units|Complexity|Source"


def groups() -> dict[str, list[str]]:
    """The names of the package by the heading of `reference.md` that they stand under."""
    found: dict[str, list[str]] = {}
    heading, is_names = "", False
    for line in REFERENCE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| name |"):
            is_names = True
        elif not line.startswith("|"):
            is_names = False
        elif is_names:
            names = re.findall(r"`(\w+)`", line.split("|")[1])
            found.setdefault(heading, []).extend(name for name in names if name in kgas_async.__all__)
    return found


def is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "kgas_async"


def is_public(cls: type) -> bool:
    return "._" not in cls.__module__ and not cls.__name__.startswith("_")


def members(cls: type) -> dict[str, Any]:
    """The methods and properties that are documented at this class, in the order of their definitions.

    Those that it has of bases that nobody knows come first: `ServiceManager` has ``execute`` and ``run`` of such.
    """
    left_out = attributes(cls) | set(INTERNAL.get(cls.__name__, "").split())
    bases = [base for base in cls.__mro__[1:] if is_ours(base) and not is_public(base)]
    names = [name for base in (*bases, cls) for name in vars(base)]
    found = {name: next(vars(base)[name] for base in (cls, *bases) if name in vars(base)) for name in names}
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("_") and name not in left_out and is_member(value)
    }


MEMBER = {property: "property", kgas_async.Priority: "attribute"}


def is_member(value: Any) -> bool:
    return isinstance(value, (property, staticmethod, classmethod, enum.Enum)) or inspect.isfunction(value)


def attributes(cls: type) -> set[str]:
    """The fields that the docstring of the class describes."""
    section = re.search(r"\n\s*Attributes:\n((?:\s{4,}.*\n?|\n)*)", inspect.cleandoc(cls.__doc__ or ""))
    found = re.findall(r"^    ([a-z]\w*(?:, \w+)*):", section[1] if section else "", re.MULTILINE)
    return {name for names in found for name in names.split(", ")}


def entry(module: str, name: str) -> Iterator[str]:
    """The directive for one name."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
        yield f".. auto{kind}:: {module}.{name}"
        if any(is_ours(base) and is_public(base) for base in value.__mro__[1:]):
            yield "   :show-inheritance:"
        for member, kind_of in members(value).items():
            yield f"\n   .. auto{MEMBER.get(type(kind_of), 'method')}:: {module}.{name}.{member}"
    elif inspect.isroutine(value):
        yield f".. autofunction:: {module}.{name}"
    else:
        yield f".. autodata:: {module}.{name}"
    yield ""


class Names(SphinxDirective):
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(REFERENCE))
        listed = groups().get(self.arguments[0])
        if not listed:
            raise self.error(f"{REFERENCE.name} has no names under {self.arguments[0]!r}")
        lines = [".. currentmodule:: kgas_async", ""]
        for name in listed:
            lines += entry("kgas_async", name)
        return self.parse_text_to_nodes("\n".join(lines))


class ModuleNames(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        lines = [f".. automodule:: {module}", "   :no-members:", ""]
        for name in importlib.import_module(module).__all__:
            lines += entry(module, name)
        return self.parse_text_to_nodes("\n".join(lines))


def before_napoleon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """``Cancellation: ...`` and its like become fields, as ``Raises`` is one."""
    if what == "property":  # napoleon would take what stands before a colon in its first line for its type
        lines[:] = GoogleDocstring(lines, app.config, app, "method", name, obj, options).lines()
        KEPT[name] = list(lines)
    changed: list[str] = []
    inside = False
    for line in one_line_returns(lines):
        began = re.match(rf"({SECTIONS}|returns): ", line)
        inside = bool(began) or (inside and bool(line.strip()))
        if began:
            changed += ["", f":{line}"]
        else:
            changed.append(f"    {line.strip()}" if inside else line)
    lines[:] = changed


def one_line_returns(lines: list[str]) -> Iterator[str]:
    """``Returns:`` and its text as one field: napoleon would take what stands before a colon in it for a type."""
    begins = False
    for line in lines:
        if line == "Returns:":
            begins = True
        else:
            yield f"returns: {line.strip()}" if begins else line
            begins = False


def after_napoleon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """``mean, min, max: Exact.`` under ``Attributes`` is three attributes of one description; all get their types."""
    if what == "property":
        lines[:] = KEPT.pop(name)
    if what not in ("class", "exception"):
        return
    types = {field: stringify_annotation(hint, "smart") for field, hint in hints(obj).items()}
    changed: list[str] = []
    for line in lines:
        head, directive, names = line.partition(".. attribute:: ")
        if directive:
            first, *others = names.split(", ")
            changed += [head + directive + first, *(" " * len(head + directive) + other for other in others)]
            changed.append(f"{head}   :no-contents-entry:")
            if first in types:
                changed.append(f"{head}   :type: {types[first]}")
        elif not line.lstrip().startswith(":type:"):  # napoleon's: the annotation as it is written
            changed.append(line)
    lines[:] = changed


def hints(cls: type) -> dict[str, Any]:
    """What the fields are annotated with, aliases resolved; looked up where the class was written."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        functions = [value for value in vars(base).values() if inspect.isfunction(value)]
        names = {**vars(typing), **(functions[0].__globals__ if functions else vars(sys.modules[base.__module__]))}
        for field, hint in inspect.get_annotations(base).items():
            with contextlib.suppress(NameError):  # imported for type checkers only
                found[field] = eval(hint, names) if isinstance(hint, str) else hint
    return found


def signature_of(value: Any) -> inspect.Signature:
    """What it is called with: of a class as its ``__init__`` has it, of overloads the one with the most parameters."""
    function = value.__init__ if inspect.isclass(value) else value
    signatures = [
        sphinx_signature(one, bound_method=inspect.isclass(value)) for one in overloads(function) or [function]
    ]
    return max(signatures, key=lambda one: len(one.parameters))


def overloads(function: Any) -> Sequence[Any]:
    """Of a public function too, which says that it is of another module than the one that it was written in."""
    if not inspect.isfunction(function):
        return []
    home = SimpleNamespace(__module__=function.__globals__["__name__"], __qualname__=function.__qualname__)
    return typing.get_overloads(typing.cast("Any", home))


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, arguments: str | None, result: str | None
) -> tuple[str | None, str | None] | None:
    """A class whose docstring has no ``Args`` is not made by those who read it."""
    is_class = what in ("class", "exception")
    if arguments is None:  # a property, a module; and what Python cannot tell a signature of
        return None
    if is_class and "Args:" not in (obj.__doc__ or ""):
        return "", None
    if is_class or overloads(obj):
        arguments = stringify_signature(signature_of(obj), unqualified_typehints=True, show_return_annotation=False)
    for pattern, readable in INFERRED.items():
        arguments = re.sub(pattern, readable, arguments)
    return arguments, result


def bases(app: Sphinx, name: str, obj: Any, options: Any, shown: list[Any]) -> None:
    shown[:] = [base for base in shown if not isinstance(base, type) or not is_ours(base) or is_public(base)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("names", Names)
    app.add_directive("module-names", ModuleNames)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-bases", bases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
