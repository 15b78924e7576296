"""The event loops that tests run on, as KGAS_TEST_BACKENDS and KGAS_TEST_SEED choose them; see conftest.py."""

from __future__ import annotations

import os
from typing import Any

import pytest

from kgas_async.testing import VirtualBackend, virtual_backends

BACKENDS: dict[str, str | tuple[str, dict[str, Any]]] = {
    "asyncio": "asyncio",
    "trio": "trio",
    "uvloop": ("asyncio", {"use_uvloop": True}),
}
SEED = int(os.environ["KGAS_TEST_SEED"]) if "KGAS_TEST_SEED" in os.environ else None


def chosen() -> list[str]:
    names = [name.strip() for name in os.environ.get("KGAS_TEST_BACKENDS", "asyncio,trio").split(",")]
    if unknown := [name for name in names if name not in BACKENDS]:
        raise pytest.UsageError(f"KGAS_TEST_BACKENDS: {unknown[0]!r} is none of {', '.join(BACKENDS)}")
    return names


def virtual() -> list[VirtualBackend]:
    """For a fixture of a module in virtual time: on the chosen loops that have it, in the seed's order if one is."""
    return virtual_backends([name for name in chosen() if name != "uvloop"], SEED)
