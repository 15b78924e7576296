"""Helpers for testing tools, services and pipelines, on both event loops: virtual time, seeded orders, sweeps."""

from __future__ import annotations

from kgas_async.testing._check_service import check_service
from kgas_async.testing._check_tool import check_tool
from kgas_async.testing._clean import assert_clean
from kgas_async.testing._explore import explore
from kgas_async.testing._fake_service import FakeService
from kgas_async.testing._faults import faults
from kgas_async.testing._sweep import sweep
from kgas_async.testing._virtual import VirtualBackend, virtual_backend, virtual_backends

__all__ = [
    "FakeService",
    "VirtualBackend",
    "assert_clean",
    "check_service",
    "check_tool",
    "explore",
    "faults",
    "sweep",
    "virtual_backend",
    "virtual_backends",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
