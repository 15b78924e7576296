"""A program: writes evidence in children that are killed at each call of the system in turn, and checks what is left.

``python -m tests.evidence_crashes FOLDER``; prints how many were killed.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import count
from pathlib import Path

from kgas_async import JsonlSink, _disk, verify_evidence
from kgas_async._errors import EvidenceError

from .faulty_disk import WATCHED, FaultyOs, kills


def write(path: Path, session: str) -> None:
    """A session: some batches, each acknowledged on standard output's stand-in, a file of one byte each."""
    sink = JsonlSink(path, max_bytes=2500, fsync=True)
    for batch in range(4):
        sink.write(
            [
                {"event": "x", "schema": 2, "session_id": session, "seq": 5 * batch + number, "text": "t" * 100}
                for number in range(1, 6)
            ]
        )
        with (path.parent / f"acknowledged-{session}").open("ab") as file:
            file.write(b"x" * 5)
    sink.close()


def killed(path: Path, session: str, at: int, when: str) -> bool:
    """Whether the child was killed before it had written all."""
    child = os.fork()
    if child == 0:
        _disk.os = FaultyOs(WATCHED, at, kills(when))  # type: ignore[assignment]
        try:
            write(path, session)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] != 0


def records(path: Path) -> list[tuple[str, int]]:
    found = []
    for segment in [
        path,
        *sorted(path.parent.glob(f"{path.name}.[0-9]*"), key=lambda one: int(one.name.split(".")[2])),
    ]:
        if segment.suffix == ".head":
            continue
        for line in segment.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["event"] == "x":
                found.append((record["session_id"], record["seq"]))
    return found


def main(folder: Path) -> int:
    kills_seen = 0
    for when in ("before", "middle", "after"):
        for at in count(1):
            path = folder / f"{when}-{at}" / "run.jsonl"
            path.parent.mkdir()
            write(path, "first")
            was_killed = killed(path, "second", at, when)
            kills_seen += was_killed
            left = verify_evidence(path) if path.exists() else None
            assert left is None or left.problem in (None, "torn"), left
            assert was_killed or (left is not None and left.ok), left
            is_whole = left is not None and left.ok  # it was killed when all was done, or nothing
            again = killed(path, "third", at, when)  # in the middle of the recovery, too
            kills_seen += again
            write(path, "fourth")
            report = verify_evidence(path)
            assert report.ok, (when, at, report)
            found = records(path)
            for session in ("first", "second", "third", "fourth"):
                ours = [seq for name, seq in found if name == session]
                file = path.parent / f"acknowledged-{session}"
                acknowledged = file.stat().st_size if file.exists() else 0
                assert ours == list(range(1, len(ours) + 1)), (when, at, session, ours)
                assert len(ours) >= acknowledged, (when, at, session, len(ours), acknowledged)
            if not was_killed and not again:
                assert is_whole
                break
    return kills_seen


if __name__ == "__main__":
    try:
        print(main(Path(sys.argv[1])))
    except EvidenceError as error:
        sys.exit(f"refused: {error}")
