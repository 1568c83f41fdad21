"""Fixed schedules as traces, for policy `replay`."""

from __future__ import annotations

from collections.abc import Sequence

from mixcache.decision import Choice, Granularity
from mixcache.trace import Trace, TraceEntry


def trace_of(schedule: Sequence[Choice], *, corrects: bool = False) -> Trace:
    """A schedule, a granularity and a predictor for each step, as a trace of a run that corrects, or does not."""
    trace, num_cached = Trace(), 0
    for step, (granularity, predictor) in enumerate(schedule):
        is_computed = granularity is Granularity.COMPUTE
        trace.append(
            TraceEntry(
                generation=0,
                step=step,
                num_steps=len(schedule),
                sigma=0.0,
                granularity=granularity,
                predictor=predictor,
                reason="",
                num_corrected=num_cached if corrects and is_computed else 0,
            )
        )
        num_cached = 0 if is_computed else num_cached + 1
    return trace
