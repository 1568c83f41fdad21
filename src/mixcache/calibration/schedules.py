"""Fixed schedules of granularities, for measuring."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mixcache.decision import Choice, Decision, Granularity
from mixcache.predictors import LINE, REUSE, Predictor, damped
from mixcache.trace import Trace, TraceEntry

COMPUTED, AFTER_COMPUTED = "computed", "step after a computed one"
Schedule = Sequence[Choice]


def trace_of(
    schedule: Schedule, damping: float = 1.0, *, corrects: bool = False, ends: Sequence[int] | None = None
) -> Trace:
    """A schedule that extrapolates with one damping, as a trace for policy `replay`, which corrects cached steps or
    not. `ends` are the steps at which each of two experts is done."""
    ends = ends or (len(schedule),)
    trace, num_cached = Trace(), 0
    for step, (granularity, predictor) in enumerate(schedule):
        is_computed = granularity is Granularity.COMPUTE
        trace.append(
            TraceEntry(
                generation=0,
                step=step,
                num_steps=next(end for end in ends if step < end),
                sigma=0.0,
                granularity=granularity,
                predictor=damped(predictor, damping),
                reason="",
                num_corrected=num_cached if corrects and is_computed else 0,
            )
        )
        num_cached = 0 if is_computed else num_cached + 1
    return trace


class FixedPlanner:
    """Gives policy `planned` one schedule and expects nothing, so that the guard stays off.

    Where two experts share the loop, `arrivals` are the noise levels at which each of them arrives, in order, with the
    step at which it is done.
    """

    band = math.inf

    def __init__(
        self, schedule: Schedule, damping: float = 1.0, arrivals: Sequence[tuple[float, int]] | None = None
    ) -> None:
        self.profile = self
        self._schedule, self._damping = schedule, damping
        self._arrivals = arrivals or ((0.0, len(schedule)),)

    def plan(self, sigmas: tuple[float, ...], guidance: float | None) -> tuple[FixedPlanner, FixedPlanner]:
        """The schedule of the expert that arrives there, as schedule and as expectation."""
        levels, ends = zip(*self._arrivals, strict=True)
        index = min(range(len(levels)), key=lambda k: abs(levels[k] - sigmas[-1]))
        own = FixedPlanner(self._schedule[(0, *ends)[index] : ends[index]], self._damping)
        return own, own

    def decision(self, index: int) -> Decision:
        """What the schedule says."""
        granularity, predictor = self._schedule[index]
        return Decision(granularity=granularity, predictor=damped(predictor, self._damping), reason="calibration")

    def relative_error(self, predictor: Predictor, sigma: float, nodes: Sequence[float]) -> float | None:
        """Nothing is expected."""
        return None


def timed_schedule(num_steps: int, granularities: Sequence[Granularity]) -> tuple[Schedule, list[str]]:
    """A schedule in which the granularities take turns, and the name under which each step is timed.

    The time of the first cached step after a computed one is kept apart.
    """
    pattern = [(Granularity.COMPUTE, COMPUTED), (Granularity.STEP, AFTER_COMPUTED), (Granularity.STEP, "step")]
    pattern += [
        (granularity, granularity.value) for granularity in granularities if granularity is not Granularity.STEP
    ]
    turns = [pattern[(step - 1) % len(pattern)] if step else pattern[0] for step in range(num_steps)]
    schedule = [(granularity, LINE if step > 2 else REUSE) for step, (granularity, _) in enumerate(turns)]
    return schedule, [name for _, name in turns]


def windows(num_steps: int, count: int) -> list[int]:
    """First steps of `count` windows, evenly spread over the steps that can be cached, closer at the end."""
    last = num_steps - 1
    shares = [k / max(1, count - 1) for k in range(count)]
    return sorted({max(1, round(1 + (last - 1) * share)) for share in shares})
