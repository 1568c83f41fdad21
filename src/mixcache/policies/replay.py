"""replay: the decisions of a recorded trace, step by step.

Source: ours, so that a run can be repeated and looked into.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import Any, ClassVar

from mixcache.decision import CACHED, Decision, Granularity, Step
from mixcache.policies.base import Needs, Policy
from mixcache.predictors import predictors_of
from mixcache.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Replay(Policy):
    """Repeats one generation of `trace`; a step it does not hold, or whose history is missing, is computed."""

    name: ClassVar[str] = "replay"
    # a trace was bounded when it was recorded
    default_bounds: ClassVar[dict[str, int]] = {
        "num_warmup_steps": 1,
        "num_cooldown_steps": 0,
        "max_age": 10**9,
        "max_cached_run": 10**9,
    }

    trace: Trace = field(default_factory=Trace)
    """Recorded entries, or the path of a saved trace; of several generations the first is repeated."""

    def __post_init__(self) -> None:
        if isinstance(self.trace, (str, PathLike)):
            object.__setattr__(self, "trace", _trace_of(self.trace))
        if not isinstance(self.trace, Trace):
            raise ValueError(f"trace={self.trace!r} is no Trace and no path of one, such as 'trace.jsonl'")
        if not len(self.trace):
            raise ValueError("trace= is empty; give a Trace, such as Trace.load('trace.jsonl') or handle.trace")

    def _choices(self) -> dict[tuple[int, int], Decision]:
        first = self.trace.generation(0)
        return {
            (e.step, e.num_steps): Decision(granularity=e.granularity, predictor=e.predictor, reason="replay")
            for e in first
        }

    @property
    def needs(self) -> Needs:
        used = {entry.granularity for entry in self.trace}
        corrected = [entry for entry in self.trace.generation(0) if entry.num_corrected]
        return Needs(
            granularities=tuple(granularity for granularity in CACHED if granularity in used),
            predictors=predictors_of([entry.predictor for entry in self.trace]),
            correction=bool(corrected),
            correction_degree=corrected[0].correction_degree if corrected else None,
        )

    def init(self) -> dict[tuple[int, int], Decision]:
        return self._choices()

    def decide(self, step: Step, state: Any) -> Decision:
        recorded: Decision | None = state.get((step.offset + step.index, step.offset + step.num_steps))
        if recorded is None:
            return Decision(granularity=Granularity.COMPUTE, reason="not in the trace")
        if recorded.granularity is Granularity.COMPUTE or recorded.granularity in step.ages:
            return recorded
        return Decision(granularity=Granularity.COMPUTE, reason="no history")


def _trace_of(path: str | PathLike[str]) -> Trace:
    try:
        return Trace.load(path)
    except OSError as error:
        raise ValueError(f"the trace {path} cannot be read: {error.strerror}") from error
