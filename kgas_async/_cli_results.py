"""Results of run-level phases, shown to people as text and given to programs as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json
from rich.markup import escape
from rich.table import Table

from ._cli_text import ROWS_SHOWN, out, out_rich, printable
from ._errors import counted, text_of

__all__ = ["as_plain", "show_result"]

TEXT_MOST: Final = 2000  # characters of one value


def as_plain(value: Any) -> Any:
    """As JSON has it: models, dataclasses, dates and the like in their usual forms, what has none as text."""
    try:
        return json.loads(to_json(value, fallback=str, inf_nan_mode="null"))
    except (PydanticSerializationError, ValueError, RecursionError):
        return _text(value)


def show_result(phase: str, value: Any) -> None:
    """Print it: rows as a table, fields and lists in lines, anything else behind its phase's name."""
    if isinstance(value, (list, tuple)) and value and not hasattr(value, "_fields"):
        rows = [_fields(one) for one in value[:ROWS_SHOWN]]
        if all(row is not None for row in rows):
            _show_rows(phase, [row for row in rows if row is not None])
        else:
            out("\n".join([f"{printable(phase)}:", *(f"  {_indented(one)}" for one in value[:ROWS_SHOWN])]))
        if len(value) > ROWS_SHOWN:
            out(f"... and {counted(len(value) - ROWS_SHOWN, 'more row')}")
        return
    fields = _fields(value)
    if fields:
        kind = "" if isinstance(value, Mapping) else f" {type(value).__name__}"
        shown = list(fields.items())[:ROWS_SHOWN]
        lines = [f"  {printable(str(name))}: {_indented(one)}" for name, one in shown]
        out("\n".join([f"{printable(phase)}:{kind}", *lines]))
        if len(fields) > len(shown):
            out(f"... and {counted(len(fields) - len(shown), 'more field')}")
    else:
        out(f"{printable(phase)}: {_indented(value)}")


def _show_rows(phase: str, rows: Sequence[Mapping[Any, Any]]) -> None:
    table = Table(title=escape(printable(phase)), title_justify="left")
    for column, value in rows[0].items():
        table.add_column(escape(printable(str(column))), justify="right" if isinstance(value, (int, float)) else "left")
    for row in rows:
        table.add_row(*[_cell(row.get(column, "")) for column in rows[0]])
    out_rich(table)


def _fields(value: Any) -> Mapping[Any, Any] | None:
    """Of what has named fields; None of anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, BaseModel):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.repr}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()  # type: ignore[no-any-return]
    return None


def _cell(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else escape(_shown(value))  # no markup: it is the user's text


def _indented(value: Any) -> str:
    return _shown(value).replace("\n", "\n    ")


def _shown(value: Any) -> str:
    """As text that no terminal acts on."""
    return printable(_text(value).replace("\r\n", "\n"), keep="\n\t")


def _text(value: Any) -> str:
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001  (a method of the user's)
        text = f"<{type(value).__name__} that cannot be shown: {type(error).__name__}: {text_of(error)}>"
    return text if len(text) <= TEXT_MOST else f"{text[: TEXT_MOST - 3]}..."
