"""Helpers for testing tools, services and pipelines, on both event loops: virtual time, seeded orders, sweeps."""

from __future__ import annotations

from kgas_async.testing._explore import explore
from kgas_async.testing._sweep import sweep
from kgas_async.testing._virtual import VirtualBackend, virtual_backend, virtual_backends

__all__ = ["VirtualBackend", "explore", "sweep", "virtual_backend", "virtual_backends"]

for _name in __all__:
    globals()[_name].__module__ = __name__
