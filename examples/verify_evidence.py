"""Checks evidence: ``python verify_evidence.py run.jsonl``. Needs Python and nothing else.

Written from docs/explanation-evidence-format.md, independent of the package. Exit codes: 0 intact and sealed, 1 not
intact, 2 it cannot be read, 3 intact but not sealed.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path


def record_of(line):
    try:
        fields = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and isinstance(fields.get("previous_sha256"), str) else None


def head_of(segment):
    beside = segment.with_name(segment.name + ".head")
    return json.loads(beside.read_bytes()) if beside.exists() else None


def check_segment(segment, head, previous):
    """The hash of the last record; a ValueError says what is wrong."""
    torn, hashes = b"", [previous]
    *lines, end = segment.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        record = record_of(line)
        if record is None:
            torn += line + b"\n"
            continue
        told = record.get("event"), record.get("torn_bytes"), record.get("torn_sha256")
        if (torn or told[1]) and told != ("evidence.recovered", len(torn), sha256(torn).hexdigest()):
            raise ValueError(f"{segment.name}, line {number}: the line before it is no record, or one is missing")
        if record["previous_sha256"] != hashes[-1]:
            raise ValueError(f"{segment.name}, line {number}: it does not follow the record before it")
        torn = b""
        hashes.append(sha256(line).hexdigest())
    if torn or end:
        raise ValueError(f"{segment.name}: its end is torn")
    if head is not None:
        if head["state"] != "open" and (head["records"], head["bytes"]) != (len(hashes) - 1, segment.stat().st_size):
            raise ValueError(f"{segment.name}: its end is not the one in its head")
        if dict(enumerate(hashes)).get(head["records"]) != head["last_sha256"]:
            raise ValueError(f"{segment.name}: the last record in its head is not there")
    return hashes[-1]


def check(path):
    """Whether the log is sealed; a ValueError says what is wrong."""
    previous, segment, states = "0" * 64, Path(path), []
    while not states or (segment.exists() and (head_of(segment) or states[-1] in ("continued", "missing"))):
        head, number = head_of(segment), len(states) + 1
        if head and (head["schema"], head["segment"], head["previous_sha256"]) != (2, number, previous):
            raise ValueError(f"the head of {segment.name} is of another segment or schema")
        states.append(head["state"] if head else "missing")
        previous = check_segment(segment, head, previous)
        segment = Path(f"{path}.{number + 1}")
    *before, last = states[:-1] if states[-2:] == ["open", "open"] else states  # it was killed between the two
    if not {*before} <= {"continued", "missing"} or last not in ("open", "sealed", "missing"):
        raise ValueError(f"a head does not say that the log goes on where it does, or {segment.name} is missing")
    for other in segment.parent.iterdir():
        number = other.name.removeprefix(f"{Path(path).name}.")
        if number.isdigit() and int(number) > len(states) + 1 and (head_of(other) or {}).get("segment") == int(number):
            raise ValueError(f"{segment.name} is missing, since there is {other.name}")
    return last == "sealed"


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
