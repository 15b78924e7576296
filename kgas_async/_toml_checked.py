"""Whether a TOML pipeline is of the format, told in one message; and the format as a JSON schema, for editors."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ._toml_lines import KeyPath
from ._toml_table import AT_KEYS
from ._toml_tables import FileTables
from ._toml_text import Document
from ._toml_top import LIMIT_KINDS
from ._toml_values import TAGS
from ._toml_words import Unset, as_toml

__all__ = ["checked", "schema"]

_NEEDED: Final = ("name", "use", "tool", "min", "max", "ttl", *LIMIT_KINDS)  # keys without which there is no table

_LAID_OVER: Final = {
    "pipeline": "PipelineTable",
    "services": "ServiceTable",
    "limits": "LimitTable",
    "phase": "PhaseTable",
}


def checked(document: Document) -> FileTables:
    """The tables, each key known and each value of its kind.

    What is wrong in them, or in another profile, is told to the document's mistakes; the tables are without it.
    """
    tables = _of(document)
    for other in document.others:
        _of(other)
    return tables


def _of(document: Document) -> FileTables:
    """Take out what is wrong and look again, since one mistake in a table hides others, until nothing is."""
    while True:
        try:
            return FileTables.model_validate(document.values)
        except ValidationError as error:
            found = [_tell(document, one) for one in error.errors(include_url=False)]
        if not any(found):  # else there is no end
            raise AssertionError(document.values)


def _tell(document: Document, one: ErrorDetails) -> bool:
    """Whether something was taken out."""
    path: KeyPath = tuple(part for part in one["loc"] if part not in TAGS)
    context = one.get("ctx", {})
    if one["type"] == AT_KEYS:
        said = {(*path, key): what for key, what in context["said"].items()}
    elif one["type"] == "value_error":
        said = {path: str(context["error"])}
    else:  # dict_type, list_type
        kind = "a list" if one["type"] == "list_type" else "a table"
        said = {path: f"is {kind}, not {as_toml(one['input'])}; write {{key = value}}"}
    for at, what in said.items():
        if not document.mistakes.is_told(at):  # else it may follow from what was taken out there
            document.mistakes.tell(document.places.error(at, what))
    if path[:1] == ("limits",) and len(path) == 2:
        document.mistakes.elsewhere.add(str(path[1]))
    found = [_take_out(document.values, at) for at in said]
    return any(found)


def _take_out(values: dict[str, Any], path: KeyPath) -> bool:
    """Of what must be there, something takes the place of which nobody knows what it is."""
    table: Any = values
    try:
        for part in path[:-1]:
            table = table[part]
    except (KeyError, IndexError):  # with what it stood in
        return False
    if path[-1] in _NEEDED and not isinstance(table.get(path[-1]), Unset):
        table[path[-1]] = Unset()
        return True
    return table.pop(path[-1], table) is not table


def schema() -> dict[str, Any]:
    """The JSON schema of a pipeline's file, for editors."""
    made = FileTables.model_json_schema(by_alias=True)
    # The draft that editors of TOML know best; what pydantic writes of a later one is named the same there.
    made = {"$schema": "http://json-schema.org/draft-07/schema#", **_plain(made)}
    definitions = made["$defs"]
    definitions["LimitTable"]["oneOf"] = [{"required": [kind]} for kind in LIMIT_KINDS]
    over: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
    for key, name in _LAID_OVER.items():
        part = deepcopy(definitions[name])
        for key_of_whole in ("required", "oneOf"):
            part.pop(key_of_whole, None)
        if name == "PhaseTable":
            del part["properties"]["name"]
        by_name = {"type": "object", "additionalProperties": part}
        over["properties"][key] = part if key == "pipeline" else by_name
    over["description"] = "Laid over the file by --profile NAME."
    made["properties"]["profile"] = {"type": "object", "additionalProperties": over}
    return made


def _plain(value: Any) -> Any:
    """Without the titles and defaults that pydantic adds: one is the key again, the others stand for "not given"."""
    if isinstance(value, dict):
        # In `properties` the keys are ours.
        return {
            key: {name: _plain(one) for name, one in part.items()} if key == "properties" else _plain(part)
            for key, part in value.items()
            if key not in ("title", "default")
        }
    return [_plain(one) for one in value] if isinstance(value, list) else value
