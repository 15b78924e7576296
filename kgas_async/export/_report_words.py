"""Words of a report: durations and numbers as people say them."""

from __future__ import annotations

from kgas_async._metrics import in_seconds

__all__ = ["counted", "lasting"]


def lasting(seconds: float) -> str:
    """With a unit that fits, from microseconds to hours."""
    if seconds < 600:
        return in_seconds(seconds).replace("us", "µs")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, what: str) -> str:
    """``1 call``, ``1,234 calls``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
