"""What of a call's values goes on record: nothing, their digests, or themselves; and nothing of what is redacted.

Digests are made when the values are known, on the loop, since the tool or the next one may change them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel, SecretBytes, SecretStr

from ._digest import digest
from ._errors import shown

__all__ = ["Tracing", "secrets_aside", "secrets_in", "tracing_of", "without"]

REDACTED: Final = "[redacted]"
SHORTEST: Final = 4  # characters of a value that is looked for in messages: shorter ones are everywhere
LONGEST: Final = 2000
MOST: Final = 10_000  # texts that are looked for in a message
DEEPEST: Final = 50  # containers in each other that are looked into for them
SHOWN: Final = (date, datetime, time, Decimal, PurePath, UUID)
MARK: Final = "_redacted"  # what the error of a call has them by, for the calls that it goes through


class Seen(dict[str, Any]):
    """Checked inputs, as they were before the tool had them."""

    noted: dict[str, Any]

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # a worker process gets plain ones


class Tracing:
    """What a session puts on record of inputs and results.

    Args:
        lineage: Their digests.
        values: Themselves, as text.
        redact: Names of inputs of which neither is on record.
    """

    def __init__(self, *, lineage: bool, values: bool, redact: frozenset[str]) -> None:
        self.lineage = lineage
        self.values = values
        self.redact = redact

    def around(self, check: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        """A tool's check of inputs that remembers what it gave."""
        if not (self.lineage or self.values):
            return check

        def checked(inputs: Any) -> dict[str, Any]:
            seen: dict[str, Any] = self.seen(check(inputs))
            return seen

        return checked

    def seen(self, inputs: Any) -> Any:
        """The inputs, with what is noted of them."""
        if not (self.lineage or self.values) or not isinstance(inputs, Mapping) or isinstance(inputs, Seen):
            return inputs
        seen = Seen(inputs)
        allowed = {name: REDACTED if name in self.redact else value for name, value in inputs.items()}
        seen.noted = self._noted("inputs", allowed)
        if self.values:
            seen.noted["inputs"] = {name: text_of_value(value) for name, value in allowed.items()}
        return seen

    def of_end(self, call: Any) -> dict[str, Any]:
        """What is noted of an ended call."""
        noted = dict(call.inputs.noted) if isinstance(call.inputs, Seen) else {}
        if call.error is not None:
            self.mark(call.error, call)
        if call.status in ("succeeded", "reused"):
            noted.update(self._noted("output", call.value))
            if self.values:
                noted["output"] = text_of_value(call.value)
        return noted

    def _noted(self, name: str, value: Any) -> dict[str, Any]:
        if self.lineage:
            with suppress(Exception):  # it has no digest, or its own methods raise: then there is none on record
                return {f"{name}_sha256": digest(value)}
        return {}

    def secrets(self, call: Any) -> set[str]:
        """The texts in redacted inputs of a call, and of those that it is nested in."""
        found: set[str] = set()
        while self.redact and call is not None:
            if isinstance(call.inputs, Mapping):
                for name in self.redact & call.inputs.keys():
                    _gather(call.inputs[name], found)
            call = call.parent
        return found

    def mark(self, error: BaseException, call: Any) -> None:
        """Have an error know what is redacted in a call, wherever it is put on record."""
        if self.redact:
            _mark(error, self.secrets(call))

    def secrets_of(self, given: Iterable[Any]) -> set[str]:
        """The texts in redacted fields of items and elements, in inputs, or in attributes of a service."""
        found: set[str] = set()
        for one in given:
            for name in self.redact:
                for alias in (name, f"_{name}"):
                    with suppress(Exception):  # a property of the user's
                        _gather(one.get(alias) if isinstance(one, Mapping) else getattr(one, alias, None), found)
        return found

    def cleaned(self, call: Any, text: str) -> str:
        """A text without the values of redacted inputs."""
        return without(text, self.secrets(call))

    def cut(self, places: Iterable[dict[str, str]]) -> None:
        """Places in redacted inputs become these inputs: further in there may be a key of theirs."""
        for place in places:
            name = place["field"].partition(".")[0]
            if name in self.redact:
                place["field"] = name


def secrets_aside(session: Any, error: BaseException | None, *owners: Any) -> AbstractSet[str]:
    """The texts to be taken out of what is said of a service or a pool, which is no part of any call.

    Those in redacted inputs of the calls that are open, since they may use it, and those that it has itself under such
    a name. The error knows them from then on, for the calls that end by it.

    Args:
        session: Its tracing, and its open calls. On the loop.
        error: What is to be said.
        owners: The service; a factory, and what that has been given.
    """
    tracing: Tracing | None = session.tracing
    if tracing is None or not tracing.redact:
        return frozenset()
    found = tracing.secrets_of(owners)
    for call in list(session.calls_open.values()):
        found |= tracing.secrets(call)
    if error is not None:
        _mark(error, found)
    return found


def _mark(error: BaseException, secrets: AbstractSet[str]) -> None:
    with suppress(Exception):
        before = error.__dict__.get(MARK, frozenset())  # an item of a batch has a copy of the batch's
        setattr(error, MARK, before | secrets)


def secrets_in(error: BaseException | None) -> AbstractSet[str]:
    """The texts in redacted inputs of the calls that an error came from, nested ones and those of a group too."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            found |= one.__dict__.get(MARK, frozenset())
            waiting += [one.__cause__, one.__context__]
            if isinstance(one, BaseExceptionGroup):
                waiting += one.exceptions
    return found


def without(text: str, secrets: AbstractSet[str]) -> str:
    """A text without these, also as Python and JSON would quote them."""
    if len(secrets) > MOST:
        return REDACTED
    forms = {form for one in secrets for form in (one, repr(one)[1:-1], json.dumps(one)[1:-1])}
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= SHORTEST:
            text = text.replace(form, REDACTED)
    return text


def _gather(value: Any, into: set[str], depth: int = 0) -> None:
    """The texts in a value; where they are too many, or too deep, so many that a whole message is taken out."""
    if depth > DEEPEST:
        into.update(map(str, range(MOST + 1)))
    if len(into) > MOST:
        return
    if isinstance(value, str):
        into.add(str.__str__(value))
    elif isinstance(value, (bytes, bytearray)):
        into.update((bytes(value).decode(errors="replace"), repr(bytes(value))[2:-1]))
    elif isinstance(value, (SecretStr, SecretBytes)):
        _gather(value.get_secret_value(), into)
    elif isinstance(value, (int, float, *SHOWN)):
        into.add(str(value))
    else:
        for one in _inside(value):
            _gather(one, into, depth + 1)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, BaseModel):
        return (value.__dict__ | (value.__pydantic_extra__ or {})).values()
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if isinstance(value, Enum):
        return (value.value,)
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    return value if isinstance(value, (list, tuple, AbstractSet)) else ()


def text_of_value(value: Any) -> str:
    """A value as text: a string as it is, others as Python shows them, not longer than so."""
    text = value if isinstance(value, str) else shown(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def tracing_of(lineage: Any, record_values: Any, redact: Any) -> Tracing | None:
    """From the manager's arguments; None if they ask for nothing.

    Raises:
        TypeError: One is something else than it may be.
    """
    for name, flag in (("lineage", lineage), ("record_values", record_values)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}= is True or False, not {flag!r}")
    if isinstance(redact, str) or not isinstance(redact, Collection) or not all(isinstance(one, str) for one in redact):
        raise TypeError(f"redact= is a list of names of inputs, such as ['password'], not {redact!r}")
    asked = lineage or record_values or redact
    return Tracing(lineage=lineage, values=record_values, redact=frozenset(redact)) if asked else None
