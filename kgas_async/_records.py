"""How a record looks: fields of calls and events, and their canonical JSON.

Frequent records are rendered by templates; their lines are canonical JSON (RFC 8785), which tests check against the
``rfc8785`` package: keys sorted, integers only, no white space, UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from json.encoder import encode_basestring  # escapes just what RFC 8785 wants escaped
from time import gmtime, strftime
from typing import Any, Final

from pydantic import ValidationError

from ._errors import InvalidInputs, text_of
from ._tracing import secrets_in, without

__all__ = ["SCHEMA", "Record", "call_fields", "line_of", "render_call", "render_fields", "valid_unicode"]

SCHEMA: Final = 2  # 1 was before the records of a file were chained
_EVENTS: Final = {
    status: f"call.{status}"
    for status in ("succeeded", "failed", "timed_out", "cancelled", "rejected", "skipped", "reused")
}
_second = (-1, "", b"")


def rfc3339(unix_ns: int) -> str:
    """The time in UTC with microseconds."""
    seconds, rest = divmod(unix_ns, 1_000_000_000)
    return f"{_formatted(seconds)[1]}.{rest // 1000:06d}Z"


def _formatted(seconds: int) -> tuple[int, str, bytes]:
    global _second
    second = _second  # read once: each session has a writer's thread of its own, and they share this
    if second[0] != seconds:  # one formatting a second
        text = strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds))
        second = _second = (seconds, text, text.encode())
    return second


def quoted(text: str) -> str:
    """A JSON string; what is no valid Unicode (undecodable file names) is shown escaped."""
    result: str = encode_basestring(text)
    if not result.isascii():
        try:
            result.encode()
        except UnicodeEncodeError:
            return quoted(text.encode("utf-8", "backslashreplace").decode())
    return result


def _wait_us(call: Any) -> dict[str, int]:
    waits = {
        "concurrency": call.wait_concurrency_ns // 1000,
        "rate": call.wait_rate_ns // 1000,
        "retry": call.wait_retry_ns // 1000,
        "thread": call.wait_thread_ns // 1000,
    }
    if call.wait_service_ns:
        waits["service"] = call.wait_service_ns // 1000
    return waits


def error_fields(error: BaseException, secrets: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """Type and message, without redacted inputs; of invalid inputs type and place, not the value."""
    shown = error.__cause__ if error.__cause__ is not None and hasattr(error, "call_id") else error
    fields: dict[str, Any] = {"type": type(shown).__name__}
    errors = _validation_errors(shown)
    if errors is None:
        fields["message"] = _bounded(without(text_of(shown), secrets | secrets_in(error)))
    else:
        fields["errors"] = errors
    return fields


def _validation_errors(error: BaseException | None) -> list[dict[str, str]] | None:
    """Of a validation error, or of an error that one is behind of and whose message may repeat it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, InvalidInputs):
            return [{"field": str(one["field"]), "type": str(one["type"])} for one in error.errors]
        if isinstance(error, ValidationError):
            found = error.errors(include_url=False, include_context=False, include_input=False)
            return [{"field": ".".join(map(str, one["loc"])), "type": one["type"]} for one in found]
        seen.add(id(error))
        error = error.__cause__
    return None


def _bounded(text: str) -> str:
    return text if len(text) <= 2000 else text[:1997] + "..."


def call_fields(call: Any, event: str, error: BaseException | None) -> dict[str, Any]:
    """The fields of a record about a call, but for number, session and time."""
    bound = call.bound
    fields: dict[str, Any] = {
        "event": event,
        "call_id": call.id,
        "tool": bound.name,
        "version": str(bound.tool.version),
        "attempt": call.attempt,
    }
    placed = call.placed
    where = placed.bound
    if where.pipeline is not None:
        fields.update(pipeline=where.pipeline, phase=where.phase)
    if where.run_id is not None:
        fields["run_id"] = where.run_id
    if placed.item is not None:
        fields["item"] = placed.item
    if call.parent is not None:
        fields["parent_id"] = call.parent.id
    if call.batch_id is not None:
        fields["batch_id"] = call.batch_id
    if call.batch_size:
        fields["batch_size"] = call.batch_size
    if call.given_name is not None:
        fields["call_name"] = call.given_name
    if error is not None:
        tracing = bound.home.tracing
        fields["error"] = error_fields(error, frozenset() if tracing is None else tracing.secrets(call))
        if tracing is not None:
            tracing.cut(fields["error"].get("errors", ()))
    return fields


def end_fields(call: Any) -> dict[str, Any]:
    """The fields of a call's one end."""
    # A cancelled call gets an error only if somebody asks for its result, at whatever time; its reason is recorded.
    fields = call_fields(call, _EVENTS[call.status], None if call.status == "cancelled" else call.error)
    fields.update(status=call.status, run_us=call.run_ns // 1000, wait_us=_wait_us(call), at_ns=call.ended_ns)
    if call.cpu_ns is not None:  # it had a process of its own
        fields.update(cpu_us=call.cpu_ns // 1000, rss_peak_bytes=call.rss_peak)
    if call.abandoned:
        fields["abandoned"] = True
    if call.answered_by is not None:
        fields["answered_by"] = call.answered_by
    if call.reused_from is not None:
        fields["reused_from"] = call.reused_from
    if call.winner:
        fields["winner"] = call.winner
    if call.reason:
        tracing = call.bound.home.tracing
        fields["reason"] = _bounded(call.reason if tracing is None else tracing.cleaned(call, call.reason))
    if call.noted:
        fields.update(call.noted)
    return fields


def finished(fields: dict[str, Any], seq: int, session: str, anchor_ns: int) -> dict[str, Any]:
    """A whole record: the fields with schema, number, session and time."""
    whole = {name: value for name, value in fields.items() if value is not None and name != "at_ns"}
    whole.update(schema=SCHEMA, seq=seq, session_id=session, time=rfc3339(fields["at_ns"] + anchor_ns))
    return whole


def render_fields(fields: dict[str, Any], seq: int, session: str, anchor_ns: int, previous: bytes) -> bytes:
    """A line of canonical JSON, without its newline; the fields are strings, integers, booleans, lists and mappings."""
    return line_of(finished(fields, seq, session, anchor_ns), previous.decode())


def _encoded(whole: Any) -> bytes:
    text = json.dumps(whole, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    if not text.isascii():
        text = json.dumps(_in_order(whole), ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _encoded(valid_unicode(whole))


def _in_order(value: Any) -> Any:
    """With keys in the order of RFC 8785, which is that of UTF-16: another one than Python's beyond U+FFFF."""
    if isinstance(value, Mapping):
        names = sorted(value, key=lambda name: str(name).encode("utf-16-be", "surrogatepass"))
        return {name: _in_order(value[name]) for name in names}
    return [_in_order(one) for one in value] if isinstance(value, (list, tuple)) else value


def valid_unicode(value: Any) -> Any:
    """The value with what is no valid Unicode in its strings (undecodable file names) shown escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {valid_unicode(name): valid_unicode(one) for name, one in value.items()}
    return [valid_unicode(one) for one in value] if isinstance(value, (list, tuple)) else value


def _template_of(bound: Any) -> tuple[bytes, bytes, bytes, bytes]:
    """The constant parts of a success: what stands between the fields that differ from call to call; its place, run."""
    if bound.template is None:
        bound.template = _made_template(bound)
    return bound.template  # type: ignore[no-any-return]


def _made_template(bound: Any) -> tuple[bytes, bytes, bytes, bytes]:
    place = run = ""
    if bound.pipeline is not None:
        place = f',"phase":{quoted(bound.phase)},"pipeline":{quoted(bound.pipeline)}'
    if bound.run_id is not None:
        run = f',"run_id":{quoted(bound.run_id)}'
    session = bound.home.session
    first = f'{{"attempt":%d,"call_id":"{session}-%d","event":"call.succeeded"%s' + place.replace("%", "%%")
    middle = f'%s{run.replace("%", "%%")},"run_us":%d,"schema":{SCHEMA},"seq":%d,"session_id":{quoted(session)},'
    last = f'"tool":{quoted(bound.name)},"version":{quoted(str(bound.tool.version))},'.replace("%", "%%")
    plain = first + ',"previous_sha256":"%s"' + middle + '"status":"succeeded","time":"%s.%06dZ",' + last
    none = '"wait_us":{"concurrency":0,"rate":0,"retry":0,"thread":0}}'
    some = '"wait_us":{"concurrency":%d,"rate":%d,"retry":%d,"thread":%d}}'
    # Bytes are formatted in a third of the time that text takes with its encoding.
    return (plain + none).encode(), (plain + some).encode(), place.encode(), run.encode()


def render_call(call: Any, seq: int, anchor_ns: int, previous: bytes) -> bytes:
    """The line of a call's end, without its newline."""
    if (
        call.status != "succeeded"
        or call.reason
        or call.abandoned
        or call.batch_id
        or call.batch_size
        or call.given_name
        or call.answered_by
        or call.winner
        or call.cpu_ns is not None
        or call.noted
        or (call.waited and call.wait_service_ns)
    ):
        return render_fields(end_fields(call), seq, call.bound.home.session, anchor_ns, previous)
    bound = call.bound
    template = bound.template or _template_of(bound)
    who = run = b""
    if call.parent is None:
        if call.item is not None:
            who = b',"item":' + quoted(call.item).encode()
    else:
        placed = call.placed
        if placed.item is not None:
            who = b',"item":' + quoted(placed.item).encode()
        who += b',"parent_id":' + quoted(call.parent.id).encode()
        if placed.bound is not bound:  # its template says nothing of the phase that it is a part of
            _, _, place, run = _template_of(placed.bound)
            who += place
    seconds, rest = divmod(call.ended_ns + anchor_ns, 1_000_000_000)
    second = _second
    if second[0] != seconds:
        second = _formatted(seconds)
    values = (call.attempt, call.serial, who, previous, run, call.run_ns // 1000, seq, second[2], rest // 1000)
    if call.waited:
        return template[1] % (
            *values,
            call.wait_concurrency_ns // 1000,
            call.wait_rate_ns // 1000,
            call.wait_retry_ns // 1000,
            call.wait_thread_ns // 1000,
        )
    return template[0] % values


class Record(Mapping[str, Any]):
    """One record as sinks see it: a mapping of its fields, with the context of the call it is about.

    Attributes:
        call: The call that ended, where the record is about one; for sinks that want more than the fields.
    """

    __slots__ = ("_fields", "call")

    def __init__(self, fields: dict[str, Any], call: Any = None) -> None:
        self._fields = fields
        self.call = call

    @classmethod
    def of(cls, entry: Any, seq: int, session: str, anchor_ns: int) -> Record:
        """From what was appended."""
        if entry.__class__ is dict:
            return cls(finished(entry, seq, session, anchor_ns))
        return cls(finished(end_fields(entry), seq, session, anchor_ns), entry)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Record({self._fields})"


def line_of(record: Mapping[str, Any], previous: str) -> bytes:
    """A whole record's line of canonical JSON, without its newline; ``previous`` is the hash of the line before."""
    return _encoded({**record, "previous_sha256": previous})
