"""Goes through evidence once and gives the figures of a report: of the latest session, or of one run.

Of a session before only its begin, its end and its runs are kept. Memory is bounded by what is shown, and does not grow
with the records.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from kgas_async._errors import EvidenceError
from kgas_async._reading import Evidence, EvidenceFile, read
from kgas_async._suggest import nearest
from kgas_async._verify import verify_evidence

from ._report_figures import Figures, SessionFigures
from ._report_findings import findings
from ._report_scope import Scope, Session

__all__ = ["report_figures"]

SESSIONS: Final = 50  # that are listed
SCOPES: Final = 3  # of the latest sessions, whose records may come in turns


def report_figures(evidence: Evidence, *, run_id: str | None = None) -> Figures:
    """The figures of a report: of the latest session, or of one run.

    Args:
        evidence: A path of JSON lines, or records such as those of a `MemorySink`.
        run_id: The run.

    Raises:
        EvidenceError: It cannot be read, is no evidence, or has no such run.
    """
    records = read(evidence)
    gathering = _Gathering(run_id)
    for record in records:
        gathering.take(record)
    is_file = isinstance(records, EvidenceFile)
    source = os.fspath(records.path) if isinstance(records, EvidenceFile) else "records in memory"
    scope = gathering.chosen(source)
    verified = verify_evidence(records.path) if isinstance(records, EvidenceFile) else None
    unreadable = records.unreadable if is_file and isinstance(records, EvidenceFile) else 0
    found = scope.figures(gathering.count, source, unreadable, verified)
    others, left_out = gathering.others(scope)
    found = replace(found, others=others, others_left_out=left_out)
    return replace(found, findings=findings(found))


class _Gathering:
    """Hands records to the scopes of their sessions."""

    def __init__(self, run_id: str | None) -> None:
        self.count = 0
        self._run_id = run_id
        self._scopes: dict[str, Scope] = {}  # of the latest sessions
        self._sessions: dict[str, Session] = {}
        self._left_out = 0
        self._latest: Scope | None = None

    def take(self, record: Mapping[str, Any]) -> None:
        """Take a record."""
        self.count += 1
        scope = self._latest
        if scope is None or scope.session.session_id != record["session_id"]:
            scope = self._latest = self._scope_of(record)
        scope.take(record)

    def _scope_of(self, record: Mapping[str, Any]) -> Scope:
        session_id = record["session_id"]
        scope = self._scopes.get(session_id)
        if scope is None:
            known = self._sessions.get(session_id)  # but what it did is forgotten
            session = self._sessions[session_id] = known or Session(session_id, record["time"])
            scope = self._scopes[session_id] = Scope(session, self._run_id)
            for forgotten in list(self._scopes)[:-SCOPES]:
                if not self._scopes[forgotten].is_chosen:
                    del self._scopes[forgotten]
            if len(self._sessions) > SESSIONS:
                del self._sessions[next(iter(self._sessions))]
                self._left_out += 1
        return scope

    def chosen(self, source: str) -> Scope:
        """The scope that the report is about.

        Raises:
            EvidenceError: There is none.
        """
        if not self._scopes:
            raise EvidenceError(
                f"{source!r} has no record of evidence in it: give a file that evidence= (or --evidence) named"
            )
        if self._run_id is None:
            return list(self._scopes.values())[-1]
        for scope in self._scopes.values():
            if scope.is_chosen:
                return scope
        runs = [run_id for session in self._sessions.values() for run_id in session.runs]
        raise EvidenceError(
            f"no run {self._run_id!r} is on record in {source!r}; there are {', '.join(runs[-20:]) or 'none'}"
            f"{nearest(self._run_id, runs)}"
        )

    def others(self, scope: Scope) -> tuple[tuple[SessionFigures, ...], int]:
        """The other sessions, and how many more there were."""
        found = [one.figures() for one in self._sessions.values() if one is not scope.session]
        return tuple(found), self._left_out
