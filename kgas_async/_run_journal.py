"""A journal as one run uses it: which phases are kept and how, whether a recorded value is good, what is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from ._bound import Bound
from ._digest import digest
from ._employer import Employer
from ._errors import JournalError, text_of
from ._fingerprint import difference, fingerprint
from ._journal import Journal
from ._journal_codec import JournalCodec, codec_for, elements_of, read_back
from ._journal_file import NEW, RUN_PLACE, Ended, JournalFile, Row, Source
from ._journal_writer import JournalWriter
from ._outcome import Outcome
from ._pipeline import Pipeline
from ._plan import RUN, PlannedPhase

__all__ = ["NOTHING", "Kept", "RunJournal", "below", "upstream_of"]

NOTHING: Final[Any] = object()
Rows = Mapping[tuple[str, str], Row]


class Kept:
    """A phase whose values are kept.

    Attributes:
        source: Who gives them, as in the file, and its number there.
        changes: By number of those whose values may be used again: what has changed since, its code or its arguments.
    """

    def __init__(self, planned: PlannedPhase, bound: Bound, journal: Journal, given: JournalCodec | None) -> None:
        self.planned = planned
        self.name = planned.phase.name
        self.what = f"phase {self.name!r}, tool {bound.name!r}"
        self.codec = given or journal.codec or self._json(bound.signature.returns)
        self.source = Source(self.name, bound.name, bound.version, self.codec.name, fingerprint(bound.tool))
        self.number = 0
        self.changes: dict[int, str] = {}
        self.has_told = False

    def _json(self, annotation: Any) -> JournalCodec:
        phase = self.planned.phase
        if phase.batch is not None:
            annotation = elements_of(annotation)
        if phase.expand is not None:
            annotation = elements_of(annotation)
        try:
            return codec_for(annotation)
        except TypeError as error:
            raise TypeError(f"{self.what}: its result cannot be kept in the journal: {error}; {MEND}") from error

    def digest(self, inputs: Mapping[str, Any]) -> bytes:
        """The digest of its inputs.

        Raises:
            TypeError: An input has none; it names it.
        """
        try:
            # A number of elements, which is what there is of an expansion, is not to be taken for a value.
            prefix = "" if self.planned.phase.expand is None else "elements"
            return bytes.fromhex(digest({name: _seen(value) for name, value in inputs.items()}, prefix))[:16]
        except TypeError:
            for name, value in inputs.items():
                try:
                    digest(_seen(value))
                except TypeError as error:
                    raise TypeError(
                        f"{self.what}: by its input {name!r} nobody can tell whether it has run before: {error}; give "
                        f"it plain values, models or dataclasses, or leave the phase out: Phase(..., journal=False)"
                    ) from None
            raise

    def encoded(self, value: Any) -> tuple[bytes, Any]:
        """A value as it is kept, and as it comes back.

        Raises:
            TypeError: It cannot be, with the mend.
        """
        try:
            return read_back(self.codec, value)
        except TypeError as error:
            raise TypeError(f"{self.what}: its result cannot be kept in the journal: {error}; {MEND}") from error


MEND: Final = (
    "annotate what the tool returns (a model, a dataclass, tuple[...]), or keep the values otherwise: "
    "Phase(..., journal='pickle') or a codec of your own, or leave the phase out: Phase(..., journal=False)"
)


def _seen(value: Any) -> Any:
    """What of an input counts: of outcomes, which a collect may take, whose and what they are, not how long it took."""
    if isinstance(value, list):
        return [_seen(one) for one in value] if any(isinstance(one, Outcome) for one in value) else value
    if isinstance(value, Outcome):
        said = "" if value.error is None else text_of(value.error)  # all that there is of a recorded one
        return (value.key, value.index, value.ok, None if value.ok else value.status, value.value, said)
    return value


class RunJournal:
    """See the module.

    Args:
        home: The manager.
        journal: What the user gave.
        on_room, on_error: As of `JournalWriter`.

    Attributes:
        followers: By phase, those below the level of the run that come after it and take nothing: their inputs do not
            tell that it has run again.
        taken: The phases that another one needs.
    """

    def __init__(
        self,
        home: Employer,
        journal: Journal,
        pipeline: Pipeline,
        bound: Mapping[str, Bound],
        run_id: str,
        on_room: Callable[[], object],
        on_error: Callable[[JournalError], object],
    ) -> None:
        self.journal = journal
        self.path = journal.path
        self.file = JournalFile(journal.path, durable=journal.durable)
        self.writer = JournalWriter(self.file, home.mailbox, on_room, on_error)
        self.run_rows: dict[str, Row] = {}
        self._home = home
        self._pipeline = pipeline
        self._run_id = run_id
        self.kept = {
            name: Kept(planned, bound[name], journal, planned.phase.codec)
            for name, planned in pipeline.plan.phases.items()
            if planned.phase.is_journaled and planned.live is None
        }
        self.taken = {name for planned in pipeline.plan.phases.values() for name in planned.needs}
        self.followers: dict[str, list[PlannedPhase]] = {}
        for kept in self.kept.values():
            if not kept.planned.bindings and kept.planned.level != RUN:
                for name in upstream_of(kept.planned, pipeline.plan.phases):
                    self.followers.setdefault(name, []).append(kept.planned)

    async def open(self) -> None:
        """Open the file.

        Raises:
            JournalError: It cannot be used; it is as it was.
        """
        await self.writer.start(self._open)

    def _open(self) -> None:
        """In the journal's thread."""
        file = self.file
        file.open(self._pipeline.name, self._run_id, self._begin)
        self.run_rows = {row.phase: row for row in file.rows("") if row.place == RUN_PLACE and row.source}

    def _begin(self) -> None:
        """What is known of who gave values, and who gives them now."""
        file = self.file
        known = file.sources(with_values=self.journal.on_change == "refuse")
        for kept in self.kept.values():
            self._judge(kept, known)
        for kept in self.kept.values():
            kept.number = file.number_of(kept.source)
            kept.changes[kept.number] = ""

    def _judge(self, kept: Kept, known: Mapping[int, Source]) -> None:
        """Say of each who gave values to this phase before whether they may be used."""
        own = kept.source
        kept.changes = {number: difference(one.code, own.code) for number, one in known.items() if one[:4] == own[:4]}
        change = next(filter(None, kept.changes.values()), "")
        if self.journal.on_change == "refuse" and change:
            changed = "its function has" if change == "code" else "the arguments that it is made with have"
            raise JournalError(
                f"journal {self.path!r}: {kept.what}: {changed} changed since it gave what is recorded, and its "
                f"version {own.version!r} has not; give the tool another version, or "
                f"Journal(..., on_change='run'), to run it again, or on_change='reuse' to use what is there",
                path=self.path,
            )

    def value_of(self, kept: Kept, rows: Rows, place: str, inputs: bytes) -> Any:
        """The value that is recorded for these inputs; `NOTHING` where there is none that may be used."""
        row = self._good(kept, rows.get((place, kept.name)), inputs)
        if row is None:
            return NOTHING
        try:
            if kept.planned.phase.expand is None:
                return kept.codec.decode(row.value)
            elements = [
                self._good(kept, rows.get((below(place, index), kept.name)), inputs)
                for index in range(json.loads(row.value))
            ]
            return [kept.codec.decode(one.value) for one in elements if one is not None] if all(elements) else NOTHING
        except Exception:  # noqa: BLE001  (the annotated type has changed: it is run again)
            return NOTHING

    def _good(self, kept: Kept, row: Row | None, inputs: bytes) -> Row | None:
        if row is None or row.inputs != inputs or (change := kept.changes.get(row.source)) is None:
            return None
        reuses = not change or self.journal.on_change != "run"
        if change and not kept.has_told:
            kept.has_told = True
            self._tell_change(kept, change, reuses=reuses)
        return row if reuses else None

    def _tell_change(self, kept: Kept, change: str, *, reuses: bool) -> None:
        if self._home.log is not None:
            self._home.log.emit(
                "journal.code_changed",
                run_id=self._run_id,
                pipeline=self._pipeline.name,
                phase=kept.name,
                tool=kept.source.tool,
                version=kept.source.version,
                changed=change,
                reused=reuses,
            )

    def put(self, kept: Kept, item: str, place: str, inputs: bytes, value: bytes) -> None:
        """Have a value written."""
        self.writer.put(Row(item, place, kept.name, kept.number, inputs, value))

    def forget(self, row: Row) -> None:
        """Have it written that this value is not to be used: it is committed with what is put next, or before."""
        self.writer.put(Row(row.item, row.place, row.phase, 0, b"", b""))

    def note_seen(self, item: str, ended: Ended | None) -> None:
        """Have it written that an item has come in this run; how it ended stays as it was."""
        self.writer.put_item(item, ended or Ended(NEW, None, None))

    def error(self, message: str) -> JournalError:
        """An error of this journal."""
        return JournalError(f"pipeline {self._pipeline.name!r}: {message}", path=self.path)

    def look_up(self, key: str, told: Callable[[Any, BaseException | None], object], *, numbers: bool) -> None:
        """Ask what there is of an item; ``told`` is given it on the loop."""
        self.writer.ask(partial(self.file.recorded, key, numbers=numbers), told)


def below(place: str, index: int) -> str:
    """The place of an element of what is at a place."""
    return f"{place}/{index}" if place else str(index)


def upstream_of(planned: PlannedPhase, phases: Mapping[str, PlannedPhase]) -> set[str]:
    """All phases that one comes after, however far, with those that made the elements they are of and it is not."""
    owners = {one.phase.expand: name for name, one in phases.items() if one.phase.expand is not None}
    found: set[str] = set()
    waiting = list(planned.needs)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        one = phases[name]
        waiting += one.needs
        if one.level != RUN:
            waiting += [owners[element] for element in one.level if element not in planned.level]
    return found
