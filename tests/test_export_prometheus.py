"""Figures as Prometheus text, read back by Prometheus's own client library."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kgas_async import PerformanceMonitor, Phase, Pipeline, Policy, Retry, ServiceManager, tool
from kgas_async.export.prometheus import CONTENT_TYPE, prometheus_text


@tool(policy=Policy(retry=Retry(attempts=2, on=OSError)))
async def picky(x: int) -> int:
    if x == 3:
        raise OSError("three")
    return x


async def measured(monitor: PerformanceMonitor | None) -> Any:
    async with ServiceManager(log=None, monitor=monitor) as manager:
        await manager.run(Pipeline("p", Phase("first", picky), item=["x"]), [{"x": number} for number in range(10)])
        return manager.statistics()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, "a sample that is there twice"
            found[key] = sample.value
    return found


def of(found: dict[Any, float], metric: str, /, **labels: str) -> float:
    return found[metric, frozenset(labels.items())]


async def test_statistics_of_a_manager() -> None:
    statistics = await measured(None)
    found = samples(prometheus_text(statistics))
    assert of(found, "kgas_calls_total", tool="picky", status="succeeded") == 9
    assert of(found, "kgas_calls_total", tool="picky", status="failed") == 1
    assert of(found, "kgas_retries_total", tool="picky") == 1
    assert of(found, "kgas_run_seconds_sum", tool="picky") == statistics.tools["picky"].run_s
    assert of(found, "kgas_run_seconds_count", tool="picky") == 10
    assert of(found, "kgas_calls_open") == 0


async def test_figures_of_a_monitor() -> None:
    monitor = PerformanceMonitor()
    statistics = await measured(monitor)
    monitor.counter("pages").add(3)
    monitor.gauge("queue").set(-2.5)
    monitor.histogram("bytes").record(4096)
    async with monitor.track("block"):
        pass
    report = monitor.report()
    found = samples(prometheus_text(report))
    spread = report.tools["picky"].run_s
    assert of(found, "kgas_run_seconds", tool="picky", quantile="0.95") == spread.p95
    assert of(found, "kgas_run_seconds_count", tool="picky") == spread.count
    assert math.isclose(of(found, "kgas_run_seconds_sum", tool="picky"), spread.mean * spread.count)
    assert of(found, "kgas_errors_total", tool="picky", type="OSError") == 1
    (phase,) = report.phases
    assert of(found, "kgas_phase_calls_total", phase=phase, status="succeeded") == 9
    assert of(found, "kgas_counter_total", name="pages") == 3
    assert of(found, "kgas_gauge", name="queue") == -2.5
    assert of(found, "kgas_histogram_sum", name="bytes") == 4096
    with_details = samples(prometheus_text(statistics))
    assert of(with_details, "kgas_run_seconds_count", tool="picky") == 10


async def test_each_metric_says_once_what_it_is() -> None:
    monitor = PerformanceMonitor()
    await measured(monitor)
    for text in (prometheus_text(monitor.report()), prometheus_text(await measured(monitor))):
        families = list(text_string_to_metric_families(text))
        assert len({family.name for family in families}) == len(families)
        assert all(family.type in ("counter", "gauge", "summary") and family.documentation for family in families)
        told = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(told) == len(set(told))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "ä {x}", "a\\nb"])
def test_any_name_survives(name: str) -> None:
    monitor = PerformanceMonitor()
    monitor.counter(name).add()
    assert of(samples(prometheus_text(monitor.report())), "kgas_counter_total", name=name) == 1


def test_a_name_that_is_no_unicode_is_shown_escaped() -> None:
    monitor = PerformanceMonitor()
    monitor.counter("a\udc80").add()
    text = prometheus_text(monitor.report())
    assert text.encode()
    assert "charset=utf-8" in CONTENT_TYPE
    assert (
        r'name="a\\udc80"' in text
    )  # with its backslash escaped: Prometheus refuses all of a text with another escape
    assert of(samples(text), "kgas_counter_total", name=r"a\udc80") == 1


def test_nothing_measured_is_no_number() -> None:
    monitor = PerformanceMonitor()
    monitor.histogram("bytes")
    found = samples(prometheus_text(monitor.report()))
    assert math.isnan(of(found, "kgas_histogram", name="bytes", quantile="0.5"))
    assert of(found, "kgas_histogram_count", name="bytes") == 0


def test_what_are_no_figures_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes manager.statistics\(\) or monitor.report\(\), not PerformanceMonitor"):
        prometheus_text(PerformanceMonitor())  # type: ignore[arg-type]
