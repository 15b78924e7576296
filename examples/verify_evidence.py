"""Checks evidence: ``python verify_evidence.py run.jsonl``. Needs Python and nothing else.

Written from docs/explanation-evidence-format.md, independent of the package. Exit codes: 0 intact and sealed, 1 not
intact, 2 it cannot be read, 3 intact but not sealed.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path


def is_record(line):
    try:
        fields = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and isinstance(fields.get("previous_sha256"), str) else None


def check_segment(segment, head, previous):
    """The hash of the last record; a ValueError says what is wrong."""
    records, torn, last, line = 0, b"", previous, b"\n"
    hashes = {0: previous}
    for number, line in enumerate(segment.read_bytes().splitlines(keepends=True), 1):
        record = is_record(line.removesuffix(b"\n"))
        if record is None:
            torn += line
            continue
        told = record.get("event"), record.get("torn_bytes"), record.get("torn_sha256")
        is_told = told == ("evidence.recovered", len(torn), sha256(torn).hexdigest())
        if (torn or told[1]) and not is_told:
            raise ValueError(f"{segment.name}, line {number}: the line before it is no record, or one is missing")
        if record["previous_sha256"] != last:
            raise ValueError(f"{segment.name}, line {number}: it does not follow the record before it")
        records, torn, last = records + 1, b"", sha256(line.removesuffix(b"\n")).hexdigest()
        hashes[records] = last
    if torn or not line.endswith(b"\n"):
        raise ValueError(f"{segment.name}: its end is torn")
    if head is not None:
        is_open = {"open": True, "continued": False, "sealed": False}[head["state"]]  # others are none
        if not is_open and (head["records"], head["bytes"]) != (records, segment.stat().st_size):
            raise ValueError(f"{segment.name}: its end is not the one in its head")
        if hashes.get(head["records"]) != head["last_sha256"]:
            raise ValueError(f"{segment.name}: the last record in its head is not there")
    return last


def check(path):
    """Whether the log is sealed; a ValueError says what is wrong."""
    previous, number, segment = "0" * 64, 0, Path(path)
    while segment.exists() or number == 0:
        number += 1
        beside = segment.with_name(segment.name + ".head")
        head = json.loads(beside.read_bytes()) if beside.exists() else None
        if head is not None and (head["schema"], head["segment"], head["previous_sha256"]) != (2, number, previous):
            raise ValueError(f"{beside.name} is of another segment or schema")
        previous = check_segment(segment, head, previous)
        segment = Path(f"{path}.{number + 1}")
    if head is not None and head["state"] == "continued":
        raise ValueError(f"{segment.name} is missing")
    return head is not None and head["state"] == "sealed"


if __name__ == "__main__":
    try:
        sealed = check(sys.argv[1])
    except OSError as wrong:
        print(f"cannot be read: {wrong}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, KeyError, TypeError) as wrong:
        sys.exit(f"not intact: {wrong}")
    print("intact and sealed" if sealed else "intact, but not sealed: records may be missing at its end")
    sys.exit(0 if sealed else 3)
