"""Helpers for testing tools, services and pipelines, on both event loops: virtual time, seeded orders, sweeps."""

from __future__ import annotations

from kgas_async.testing._virtual import virtual_backend, virtual_backends

__all__ = ["virtual_backend", "virtual_backends"]
