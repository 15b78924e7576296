"""The format of evidence in files: chained lines, segments, heads. docs/explanation-evidence-format.md is its contract.

Pure: knows bytes and names, opens nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

from pydantic_core import from_json

__all__ = [
    "GENESIS",
    "Head",
    "fields_of",
    "hash_of",
    "head_path",
    "is_recovery",
    "record_of",
    "segment_number",
    "segment_path",
]

GENESIS: Final = "0" * 64  # what stands before the first record of all
_STATES: Final = ("open", "continued", "sealed")


def hash_of(line: bytes) -> str:
    """The SHA-256 of a record's line without its newline."""
    return sha256(line).hexdigest()


def record_of(line: bytes) -> dict[str, Any] | None:
    """The record of a line without its newline; None if it is none."""
    fields = fields_of(line)
    return fields if fields is not None and isinstance(fields.get("previous_sha256"), str) else None


def fields_of(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is none."""
    try:
        found = from_json(line, cache_strings="keys")  # a third of what json.loads takes
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def is_recovery(record: Mapping[str, Any], piece: bytes) -> bool:
    """Whether the record says that exactly this piece before it was torn by a crash."""
    said = record.get("event"), record.get("torn_bytes"), record.get("torn_sha256")
    return said == ("evidence.recovered", len(piece), hash_of(piece))


def segment_path(path: Path, number: int) -> Path:
    """The file of a segment, from 1: the first has the log's own name."""
    return path if number == 1 else path.with_name(f"{path.name}.{number}")


def segment_number(path: Path, other: Path) -> int | None:
    """Which segment of the log that file is, if it is one."""
    text = other.name.removeprefix(path.name + ".")
    is_one = other.name != text and text.isascii() and text.isdigit() and not text.startswith("0") and text != "1"
    return int(text) if is_one else None


def head_path(segment: Path) -> Path:
    """The small file beside a segment that says how it ends."""
    return segment.with_name(segment.name + ".head")


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a segment says.

    Attributes:
        state: ``"open"``: a session writes, or was killed; ``"continued"``: closed, the next segment goes on;
            ``"sealed"``: closed by a session that has ended.
        segment: Its number, from 1.
        previous: The hash before its first record.
        records, size, last: How many there are, how many bytes the file has, the hash of the last one.
    """

    state: Literal["open", "continued", "sealed"]
    segment: int
    previous: str
    records: int
    size: int
    last: str

    def line(self) -> bytes:
        """Its file's content: canonical JSON and a newline."""
        fields = {
            "bytes": self.size,
            "last_sha256": self.last,
            "previous_sha256": self.previous,
            "records": self.records,
            "schema": 2,
            "segment": self.segment,
            "state": self.state,
        }
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of(cls, content: bytes) -> Head | None:
        """From a file's content; None if that is no head."""
        try:
            fields = json.loads(content)
            head = cls(
                state=fields["state"],
                segment=fields["segment"],
                previous=fields["previous_sha256"],
                records=fields["records"],
                size=fields["bytes"],
                last=fields["last_sha256"],
            )
        except (ValueError, RecursionError, KeyError, TypeError):
            return None
        numbers, texts = (head.segment, head.records, head.size), (head.previous, head.last)
        is_one = all(type(one) is int and one >= 0 for one in numbers) and all(isinstance(one, str) for one in texts)
        return head if is_one and head.segment and head.state in _STATES and head.line() == content else None
