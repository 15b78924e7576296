"""Evidence as W3C provenance: what a run made, of what, by which tool, as PROV-JSON.

Source items and results of calls are entities, calls and the run are activities, tools with their versions are agents.

Source: W3C PROV-DM (2013), and the submission "The PROV-JSON Serialization" (2013).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

from kgas_async._derivation import FAILED, OK, Edges, Plan, Source, calls_of
from kgas_async._reading import EPOCH, Begins, Evidence, RunOnRecord, choose_run, lacks_of, read, runs_of

__all__ = ["prov_document"]

NAMESPACE: Final = "urn:kgas-async:"  # of our own attributes
SECTIONS: Final = (
    "entity", "activity", "agent", "used", "wasGeneratedBy", "wasDerivedFrom", "wasAssociatedWith", "wasStartedBy",
    "wasInformedBy",
)  # fmt: skip


def prov_document(evidence: Evidence, *, run_id: str | None = None) -> dict[str, Any]:
    """A run's provenance in PROV-JSON, to be written by ``json.dump``. It grows with the run's calls.

    Where the evidence is not whole, such as after a crash, the run has ``kgas:lacks`` with what is missing.

    Args:
        evidence: A path of JSON lines, or records such as those of a `MemorySink`.
        run_id: The run; unless given, the latest that no call has started.

    Returns:
        The document: one mapping for each kind of thing (``entity``, ``activity``, ...), by identifier.

    Raises:
        EvidenceError: It cannot be read, lacks a segment, has no such run, or no plan of it.
    """
    records = read(evidence)
    runs = runs_of(records)
    run = choose_run(runs, run_id)
    calls: dict[str, Mapping[str, Any]] = {}
    begins = Begins()
    began: dict[str, int] = {}
    failed: list[Mapping[str, Any]] = []
    for record in calls_of(records, run.run_id, FAILED):
        if record["event"] == FAILED:
            failed.append(record)
            continue
        if "status" in record:
            began[record["call_id"]] = begins.of(record)
        else:
            begins.announced(record)
        calls[record["call_id"]] = record
    return _Document(run, calls, began, failed, lacks_of(records)).made()


class _Document:
    """The sections of a document, as they fill."""

    def __init__(
        self, run: RunOnRecord, calls: Mapping[str, Mapping[str, Any]], began: Mapping[str, int],
        failed: list[Mapping[str, Any]], lacks: list[str],
    ) -> None:  # fmt: skip
        assert run.plan is not None
        self.run = run
        self.began = began
        self.failed = failed
        self.lacks = lacks
        self.calls = calls
        self.plan = Plan(run.plan)
        self.sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        self._relations = 0

    def made(self) -> dict[str, Any]:
        """The whole of it, without what is empty."""
        run = self.run
        attributes: dict[str, Any] = {
            "prov:type": _own("Run"), "kgas:pipeline": run.pipeline, "prov:startTime": run.started
        }  # fmt: skip
        if self.lacks:
            attributes["kgas:lacks"] = self.lacks
        if run.ended is not None:
            attributes["prov:endTime"] = run.ended["time"]
            attributes["kgas:items"] = run.ended["items"]
        self.sections["activity"][_id("run", run.run_id)] = attributes
        if run.parent_id is not None:  # it was started in a call, of which another document tells
            self._relate("wasStartedBy", activity=_id("run", run.run_id), starter=_id("call", run.parent_id))
        phases = [
            call for call in self.calls.values()
            if call.get("parent_id") == run.parent_id and call["phase"] in self.plan.phases
        ]  # fmt: skip
        edges = Edges(self.plan, phases, [one for one in self.failed if one.get("phase") in self.plan.phases])
        for call in self.calls.values():
            self._call(call)
        for call in phases:
            self._taken(call, list(edges.sources(call)))
        prefix = {"kgas": NAMESPACE, "xsd": "http://www.w3.org/2001/XMLSchema#"}
        return {"prefix": prefix, **{name: found for name, found in self.sections.items() if found}}

    def _call(self, call: Mapping[str, Any]) -> None:
        activity = _id("call", call["call_id"])
        status = call.get("status", "open")
        attributes: dict[str, Any] = {"prov:type": _own("Call"), "kgas:status": status, "kgas:tool": call["tool"]}
        if status == "open":
            attributes["prov:startTime"] = call["time"]
        else:
            began = EPOCH + timedelta(microseconds=self.began[call["call_id"]])
            attributes |= {"prov:startTime": began.isoformat(), "prov:endTime": call["time"]}
        named = ("phase", "item", "attempt", "batch_size", "answered_by", "inputs_sha256")
        attributes |= {f"kgas:{name}": call[name] for name in named if name in call}
        self.sections["activity"][activity] = attributes
        agent = _id("tool", call["tool"], call["version"])
        self.sections["agent"][agent] = {
            "prov:type": {"$": "prov:SoftwareAgent", "type": "prov:QUALIFIED_NAME"},
            "prov:label": f"{call['tool']} {call['version']}",
        }
        self._relate("wasAssociatedWith", activity=activity, agent=agent)
        outer = call.get("parent_id")
        starter = _id("run", self.run.run_id) if outer is None or outer not in self.calls else _id("call", outer)
        self._relate("wasStartedBy", activity=activity, starter=starter)
        batch = call.get("batch_id")
        if batch is not None and batch in self.calls:
            self._relate("wasInformedBy", informed=activity, informant=_id("call", batch))
        if status in OK and "batch_size" not in call:  # what a batch gives is its items'
            result = _id("result", call["call_id"])
            self.sections["entity"][result] = {
                "prov:type": _own("Result"),
                **{f"kgas:{name}": call[name] for name in ("phase", "item", "output_sha256") if name in call},
            }
            self._relate("wasGeneratedBy", entity=result, activity=activity)
            origin = call.get("reused_from")
            if origin is not None and self.calls.get(origin, {}).get("status") in OK:
                self._relate("wasDerivedFrom", generatedEntity=result, usedEntity=_id("result", origin))

    def _taken(self, call: Mapping[str, Any], sources: list[Source]) -> None:
        activity, result = _id("call", call["call_id"]), _id("result", call["call_id"])
        inputs: dict[str, list[str]] = {}
        for source in sources:
            if source.call_id is None:
                entity = _id("item", str(source.item))
                self.sections["entity"].setdefault(
                    entity, {"prov:type": _own("Item"), "kgas:item": str(source.item)}
                )  # fmt: skip
            elif self.calls[source.call_id].get("status") not in OK:
                self._relate("wasInformedBy", informed=activity, informant=_id("call", source.call_id))
                continue
            else:
                entity = _id("result", source.call_id)
            inputs.setdefault(entity, []).append(source.input)
        for entity, names in inputs.items():
            self._relate(
                "used", activity=activity, entity=entity, **{"kgas:input": names[0] if len(names) == 1 else names}
            )
            if result in self.sections["entity"]:
                self._relate("wasDerivedFrom", generatedEntity=result, usedEntity=entity, activity=activity)

    def _relate(self, relation: str, **fields: Any) -> None:
        self._relations += 1
        found = {name if ":" in name else f"prov:{name}": value for name, value in fields.items()}
        self.sections[relation][f"_:r{self._relations}"] = found


def _id(kind: str, *parts: str) -> str:
    """A qualified name of ours; what may not be in one is escaped, as in a URL."""
    *first, last = (quote(part, safe="") for part in parts)
    return f"kgas:{kind}-" + "-".join([*(part.replace("-", "%2D") for part in first), last])  # one way to take it apart


def _own(name: str) -> dict[str, str]:
    return {"$": f"kgas:{name}", "type": "prov:QUALIFIED_NAME"}
