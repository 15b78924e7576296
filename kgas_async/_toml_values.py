"""The kinds of values in a TOML pipeline: how each is checked, and how an editor's schema shows it.

Knows values as a file has them; what they make is `_toml_build`'s. A message says what is wanted and what was found.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ._suggest import nearest
from ._toml_words import Reference, Unset, Variable, as_toml

__all__ = [
    "COUNT",
    "FLAG",
    "NONE",
    "NUMBER",
    "REFERENCE",
    "TAGS",
    "TARGET",
    "TEXT",
    "TableOr",
    "Value",
    "count",
    "either",
    "fields_or_target",
    "flag",
    "is_flag",
    "is_number",
    "is_text",
    "name_or_names",
    "number",
    "one_of",
    "or_none",
    "references",
    "several",
    "size",
    "target",
    "targets",
    "text",
    "words_or_targets",
    "wrong",
]  # fmt: skip

Check: TypeAlias = Callable[[Any], Any]
Json: TypeAlias = dict[str, Any]

NONE: Final = "none"  # TOML has no null
TAGS: Final = ("\0table", "\0other")  # what pydantic puts into the path of an error in one of two forms
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_UNITS: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]i?b)", re.IGNORECASE)

# For editors.
_FROM_VARIABLE: Final[Json] = {"type": "string", "pattern": r"\$\{"}
NUMBER: Final[Json] = {"anyOf": [{"type": "number"}, _FROM_VARIABLE]}
COUNT: Final[Json] = {"anyOf": [{"type": "integer"}, _FROM_VARIABLE]}
FLAG: Final[Json] = {"anyOf": [{"type": "boolean"}, _FROM_VARIABLE]}
TEXT: Final[Json] = {"type": "string", "minLength": 1}
TARGET: Final[Json] = {"type": "string", "pattern": r"^[^\s:/]+:[^\s:/]+$|\$\{"}
REFERENCE: Final[Json] = {"type": "string", "pattern": r"^\$[A-Za-z_][A-Za-z0-9_-]*$"}


def several(schema: Json) -> Json:
    """One, or a list of them."""
    return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1}]}


class Value:
    """What a field's value is checked by, as in ``Annotated[Any, Value(count, COUNT)]``."""

    def __init__(self, check: Check, schema: Json) -> None:
        self._check = check
        self.schema = schema

    def check(self, value: Any) -> Any:
        """
        Raises:
            ValueError: What is wanted, and what was found.
        """
        return value if isinstance(value, Unset) else self._check(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, made: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        return self.schema


class TableOr(Value):
    """What is a table of its own, or something short."""

    def __init__(self, table: type, check: Check, schema: Json) -> None:
        super().__init__(check, schema)
        self._table = table

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.tagged_union_schema(
            {
                TAGS[0]: handler.generate_schema(self._table),
                TAGS[1]: super().__get_pydantic_core_schema__(source, handler),
            },
            discriminator=lambda value: TAGS[0] if isinstance(value, dict) else TAGS[1],
        )

    def __get_pydantic_json_schema__(self, made: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        assert made["type"] == "tagged-union"
        return {"anyOf": [handler(made["choices"][TAGS[0]]), self.schema]}


def or_none(check: Check, schema: Json) -> Value:
    """A value that may be ``"none"``."""
    return Value(lambda value: None if value == NONE else check(value), {"anyOf": [schema, {"const": NONE}]})


# --- checks: each gives the value, or says what is wanted


def wrong(wanted: str, value: object, more: str = "") -> ValueError:
    return ValueError(f"is {wanted}, not {as_toml(value)}{more}")


def _plain(value: Any) -> Any:
    """What came from a variable, as the number or truth value that it spells."""
    if not isinstance(value, Variable):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"] if "\n" not in value else value
    except tomllib.TOMLDecodeError:
        return value


def number(wanted: str = "a number of seconds") -> Check:
    def check(value: Any) -> float:
        plain = _plain(value)
        if isinstance(plain, bool) or not isinstance(plain, (int, float)):
            raise wrong(f"{wanted}, such as 30", plain, _unquoted(plain))
        return plain

    return check


def count(value: Any) -> int:
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise wrong("a whole number, such as 4", plain, _unquoted(plain))
    return plain


def _unquoted(value: object) -> str:
    if not isinstance(value, str):
        return ""
    if re.fullmatch(r"\s*[-+]?\d[\d_.]*\s*", value):
        return f"; write it without quotes: {value.strip()}"
    digits = re.match(r"\s*(\d+(?:\.\d+)?)", value)
    return f"; write the number alone: {digits[1]}" if digits else ""


def flag(value: Any) -> bool:
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise wrong("true or false", plain, "; without quotes" if plain in ("true", "false") else "")
    return plain


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise wrong("a text in quotes", value)
    return str(value)


def target(value: Any) -> str:
    if isinstance(value, list):
        raise wrong(
            'one "module:attribute"', value, "; keep one of them" if len(value) > 1 else "; without the brackets"
        )
    if not isinstance(value, str):
        raise wrong('"module:attribute"', value)
    if not _TARGET.fullmatch(value):
        raise wrong('"module:attribute"', value, _mend_of_target(value))
    return str(value)


def _mend_of_target(value: str) -> str:
    if value.startswith("$"):
        return "; a reference belongs into with"
    dotted = re.sub(r"\.py(?=:|$)", "", value).strip("./").replace("/", ".")
    if ":" not in dotted and "." in dotted:
        dotted = ":".join(dotted.rsplit(".", 1))
    return f"; did you mean {as_toml(dotted)}?" if _TARGET.fullmatch(dotted) and dotted != value else ""


def targets(value: Any) -> list[str]:
    if isinstance(value, list) and value:
        return [target(one) for one in value]
    return [target(value)]


def word_or_target(value: Any) -> str:
    """The name of an error that Python or this package has, or where another is."""
    if isinstance(value, str) and value.isidentifier():
        return str(value)
    if not isinstance(value, str) or not _TARGET.fullmatch(value):
        raise wrong('the name of an error, such as "ConnectionError", or "module:Class"', value)
    return str(value)


def words_or_targets(value: Any) -> list[str]:
    if isinstance(value, list) and value:
        return [word_or_target(one) for one in value]
    return [word_or_target(value)]


def one_of(*words: str) -> Check:
    def check(value: Any) -> str:
        if value not in words:
            raise wrong(" or ".join(map(as_toml, words)), value, nearest(value, words))
        return str(value)

    return check


def reference(kinds: str) -> Check:
    def check(value: Any) -> Reference:
        if not isinstance(value, Reference):
            hint = ""
            if isinstance(value, str) and not isinstance(value, Variable):
                hint = f'; a limit is referred to with a dollar sign: "${value.lstrip("$")}"'
            raise wrong(f'{kinds}, or "$name" of one in [limits]', value, hint)
        return value

    return check


def references(kinds: str) -> Check:
    """``"$name"``, or a list of such."""
    one = reference(kinds)
    return lambda value: [one(each) for each in value] if isinstance(value, list) and value else [one(value)]


def either(first: Check, second: Check, goes_first: Callable[[Any], bool]) -> Check:
    """The first check for what it is meant for, else the second, whose message counts."""
    return lambda value: first(value) if goes_first(value) else second(value)


def names(value: Any) -> list[str]:
    if isinstance(value, list) and value and all(isinstance(one, str) and one for one in value):
        return list(map(str, value))
    raise wrong("a list of names", value, f"; write [{as_toml(value)}]" if isinstance(value, str) and value else "")


def name_or_names(value: Any) -> list[str]:
    if isinstance(value, str) and value:
        return [str(value)]
    if not isinstance(value, list):
        raise wrong("a name, or a list of names", value)
    return names(value)


def fields_or_target(value: Any) -> Any:
    if isinstance(value, str) and ":" in value:
        return target(value)
    try:
        return names(value)
    except ValueError:
        hint = f"; write [{as_toml(value)}]" if isinstance(value, str) and value else ""
        raise wrong('a list of field names, or "module:Class"', value, hint) from None


def size(value: Any) -> int:
    plain = _plain(value)
    if isinstance(plain, int) and not isinstance(plain, bool):
        return plain
    found = _SIZE.fullmatch(plain.strip()) if isinstance(plain, str) else None
    if found is None:
        raise wrong('a number of bytes, or a text such as "4 GiB"', plain)
    many = float(found[1]) * _UNITS[found[2].lower()]
    if many == float("inf"):
        raise wrong("a number of bytes that there can be", plain)
    return int(many)


def is_number(value: Any) -> bool:
    plain = _plain(value)
    return isinstance(plain, (int, float)) and not isinstance(plain, bool)


def is_flag(value: Any) -> bool:
    return isinstance(_plain(value), bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str)
