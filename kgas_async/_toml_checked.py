"""Whether a TOML pipeline is of the format, told in one message; and the format as a JSON schema, for editors."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final

from pydantic import ValidationError

from ._errors import LoadError
from ._toml_lines import KeyPath
from ._toml_tables import AT_KEY, LIMIT_KINDS, FileTables
from ._toml_text import Document
from ._toml_values import TAGS
from ._toml_words import as_toml

__all__ = ["checked", "schema"]

_LAID_OVER: Final = {
    "pipeline": "PipelineTable",
    "services": "ServiceTable",
    "limits": "LimitTable",
    "phase": "PhaseTable",
}


def checked(document: Document) -> FileTables:
    """The tables, each key known and each value of its kind.

    Raises:
        LoadError: Each mistake on a line of its own, with file, line, key and mend.
    """
    tables = _of(document)
    for other in document.others:
        _of(other)
    return tables


def _of(document: Document) -> FileTables:
    try:
        return FileTables.model_validate(document.values)
    except ValidationError as error:
        raise _told(document, error) from None


def _told(document: Document, error: ValidationError) -> LoadError:
    lines: dict[str, None] = {}
    for one in error.errors(include_url=False):
        path: KeyPath = tuple(part for part in one["loc"] if part not in TAGS)
        context = one.get("ctx", {})
        if one["type"] == AT_KEY:
            path, said = (*path, context["key"]), context["said"]
        elif one["type"] == "value_error":
            said = str(context["error"])
        else:  # dict_type, list_type
            kind = "a list" if one["type"] == "list_type" else "a table"
            said = f"is {kind}, not {as_toml(one['input'])}; write {{key = value}}"
        lines.setdefault(str(document.places.error(path, said)))
    return LoadError("\n".join(lines))


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
