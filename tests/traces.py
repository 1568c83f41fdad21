"""Schedules that tests read off traces."""

from __future__ import annotations

from mixcache.trace import Trace


def letters(trace: Trace) -> str:
    """`.` computed, `s` step, `c` cfg, `b` block."""
    return "".join("." if e.granularity.value == "compute" else e.granularity.value[0] for e in trace)
