"""What the tables of a TOML pipeline have in common: known keys, and fields that several have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from ._suggest import nearest
from ._toml_values import (
    COUNT,
    FLAG,
    NUMBER,
    TARGET,
    TEXT,
    Value,
    count,
    either,
    flag,
    is_text,
    number,
    several,
    target,
    text,
    words_or_targets,
)  # fmt: skip
from ._toml_words import as_toml

__all__ = [
    "AMOUNT", "AT_KEYS", "COUNT_FIELD", "ERRORS", "FLAG_FIELD", "KEY", "NOT_GIVEN", "SECONDS", "TARGET_FIELD",
    "TEXT_FIELD", "Table", "at_key",
]  # fmt: skip

NOT_GIVEN: Final[Any] = None
AT_KEYS: Final = "at_keys"  # an error of a table that is about some of its keys

# What several tables have.
TEXT_FIELD: TypeAlias = Annotated[Any, Value(text, TEXT)]
SECONDS: TypeAlias = Annotated[Any, Value(number(), NUMBER)]
AMOUNT: TypeAlias = Annotated[Any, Value(number("a number"), NUMBER)]
COUNT_FIELD: TypeAlias = Annotated[Any, Value(count, COUNT)]
FLAG_FIELD: TypeAlias = Annotated[Any, Value(flag, FLAG)]
TARGET_FIELD: TypeAlias = Annotated[Any, Value(target, TARGET)]
ERRORS: TypeAlias = Annotated[Any, Value(words_or_targets, several(TEXT))]  # by name or module:Class
KEY: TypeAlias = Annotated[
    Any, Value(either(target, text, lambda value: is_text(value) and ":" in value), TEXT)
]  # an input, or a function


def at_key(key: str, said: str) -> PydanticCustomError:
    """An error of a table that is about one of its keys."""
    return _at_keys({key: said})


def _at_keys(said: Mapping[str, str]) -> PydanticCustomError:
    return PydanticCustomError(AT_KEYS, "{said}", {"said": said})


class Table(BaseModel):
    """A table whose keys are known."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=False)
    what: ClassVar[str] = "table"
    elsewhere: ClassVar[Mapping[str, str]] = {}  # keys that are looked for here, and where they are
    hint: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"is a table of keys, not {as_toml(value)}")
        known = [one.alias or name for name, one in cls.model_fields.items()]
        a = "an" if cls.what[0] in "aeiou" else "a"
        said: dict[str, str] = {}
        if cls.model_config.get("extra") == "forbid":
            for key in value:
                if key not in known:
                    meant = f"; did you mean {cls.elsewhere[key]!r}?" if key in cls.elsewhere else nearest(key, known)
                    said[key] = f"is no key of {a} {cls.what}, which has {', '.join(known)}{meant}{cls.hint}"
        for name, one in cls.model_fields.items():
            key = one.alias or name
            if one.is_required() and key not in value:
                said[key] = f"is missing: {one.description}"
        if said:
            raise _at_keys(said)
        return value

    def given(self) -> dict[str, Any]:
        """The keys that were given, as they are written."""
        fields = type(self).model_fields
        return {fields[name].alias or name: getattr(self, name) for name in fields if name in self.model_fields_set}
