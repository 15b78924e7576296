"""What of a call's values goes on record: nothing, their digests, or themselves; and nothing of what is redacted.

Digests are made when the values are known, on the loop, since the tool or the next one may change them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from ._digest import digest
from ._errors import shown

__all__ = ["Tracing", "tracing_of"]

REDACTED: Final = "[redacted]"
SHORTEST: Final = 4  # characters of a value that is looked for in messages: shorter ones are everywhere
LONGEST: Final = 2000


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

    def cleaned(self, call: Any, text: str) -> str:
        """A message without the values of redacted inputs."""
        if self.redact and isinstance(call.inputs, Mapping):
            found = {_plain_text(call.inputs[name]) for name in self.redact if name in call.inputs}
            for value in sorted(found, key=len, reverse=True):
                if len(value) >= SHORTEST:
                    text = text.replace(value, REDACTED)
        return text


def _plain_text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, (int, float)) else ""


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
