"""`kgas-async evidence`: exit codes, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kgas_async import JsonlSink, verify_evidence
from kgas_async._chain import head_path
from kgas_async._cli import app


@pytest.fixture
def log(tmp_path: Path) -> Path:
    sink = JsonlSink(tmp_path / "run.jsonl")
    sink.write([{"event": "session.started", "schema": 2, "seq": seq, "session_id": "s"} for seq in range(1, 6)])
    sink.close()
    return sink.path


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evidence", "verify", *map(str, arguments)])


def test_intact_evidence_is_0_and_its_last_hash_is_printed(log: Path) -> None:
    result = verify(log)
    assert result.exit_code == 0
    assert result.stdout.startswith("intact and sealed: 5 records of 5 sessions")
    assert verify_evidence(log).last_sha256 in result.stdout


def test_a_hash_noted_elsewhere_must_be_that_of_the_last_record(log: Path) -> None:
    noted = verify_evidence(log).last_sha256
    assert verify(log, "--last", noted.upper()).exit_code == 0
    result = verify(log, "--last", noted[::-1])
    assert result.exit_code == 1
    assert "--last says" in result.stdout


def test_a_bad_record_is_1_and_named(log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"seq":3', b'"seq":9'))
    result = verify(log)
    assert result.exit_code == 1
    assert result.stdout.startswith("edited: run.jsonl, line 3: ")
    assert "; 3 records of 3 sessions before it" not in result.stdout
    assert "2 records of 2 sessions before it are intact" in result.stdout


def test_what_cannot_be_read_is_2(tmp_path: Path) -> None:
    result = verify(tmp_path / "missing.jsonl")
    assert result.exit_code == 2
    assert "missing.jsonl' cannot be read: No such file or directory" in result.stderr


def test_what_may_miss_its_end_is_3(log: Path) -> None:
    head_path(log).unlink()
    result = verify(log)
    assert result.exit_code == 3
    assert "may be missing at the end" in result.stdout


def test_one_segment_alone_is_3_and_says_that_the_others_were_not_looked_at(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "run.jsonl", max_bytes=300)
    sink.write([{"event": "session.started", "schema": 2, "seq": seq, "session_id": "s"} for seq in range(1, 6)])
    sink.close()
    assert verify(sink.path).exit_code == 0
    result = verify(tmp_path / "run.jsonl.2")
    assert result.exit_code == 3
    assert result.stdout.startswith(
        "segment 2 alone is intact, the log goes on in another segment, which was not looked at"
    )
    found = json.loads(verify(tmp_path / "run.jsonl.2", "--json").stdout)
    assert (found["ok"], found["state"], found["segment"]) == (False, "continued", 2)


@pytest.mark.parametrize("is_bad", [False, True])
def test_json_has_all_that_was_found(log: Path, is_bad: bool) -> None:
    if is_bad:
        log.write_bytes(log.read_bytes()[:-5])
    result = verify(log, "--json")
    found = json.loads(result.stdout)
    assert (found["ok"], result.exit_code) == ((False, 1) if is_bad else (True, 0))
    assert (found["problem"], found["line"], found["records"]) == (("torn", 5, 4) if is_bad else (None, None, 5))
    assert len(found["last_sha256"]) == 64
