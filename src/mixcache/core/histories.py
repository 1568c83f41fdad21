"""Everything that is kept of one trajectory, and what it predicts; and the step under way, which feeds it.

A granularity stands on one kind of history: `step` on the outputs of each branch, `cfg` on the difference between the
unconditional and the conditional one, `block` on the residuals of the span, by call and stream.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch

from mixcache.core.calls import CONDITIONAL, UNCONDITIONAL, CallInfo
from mixcache.core.history import History
from mixcache.decision import Decision, Granularity
from mixcache.predictors import Predictor
from mixcache.trace import Call

StreamKey = tuple[str, int]
"""Name of a call within its step, and index of a stream."""


@dataclass(slots=True)
class StepRecord:
    """The step under way."""

    info: CallInfo
    decision: Decision
    calls: list[Call] = field(default_factory=list)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    """Outputs computed in full, by branch, as they are kept (`mixcache.core.velocity`)."""
    difference: torch.Tensor | None = None
    """Unconditional less conditional output, where both were computed and a history of it is kept."""
    guidance: float | None = None
    """Scale that the pipeline guided with, once the step's calls are done: some set it between the calls and their
    use."""
    residuals: dict[StreamKey, torch.Tensor] = field(default_factory=dict)
    """Span residuals computed, by call and stream."""
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    """Sum of every output that the transformer gave, by call, still on the device: to see whether it is finite."""
    misfit: torch.Tensor | None = None
    """How far what the solver was given is from a combination of the outputs, still on the device
    (`mixcache.core.corrector`)."""
    num_corrected: int = 0
    """Cached steps before this one that were taken again."""

    def tensors(self) -> Iterator[torch.Tensor]:
        """What is set aside until the step is finished."""
        yield from self.outputs.values()
        yield from self.residuals.values()
        if self.difference is not None:
            yield self.difference

    def has(self, branches: Collection[str]) -> bool:
        return any(call.branch in branches for call in self.calls)


class Histories:
    """The last `length` computed values of every quantity, for the granularities in `kept`; it may lose one later."""

    def __init__(self, length: int, kept: set[Granularity]) -> None:
        self.kept = kept
        self._length = length
        self._outputs: dict[str, History] = {}
        self._residuals: dict[StreamKey, History] = {}
        self.difference = History(length)

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that is held."""
        for history in (*self._outputs.values(), *self._residuals.values(), self.difference):
            yield from history.values()

    def num_outputs(self, branches: Collection[str]) -> int:
        """Length of the shortest history of these branches' outputs; 0 for no branches."""
        return min((len(self._outputs.get(branch, ())) for branch in branches), default=0)

    def num_residuals(self, keys: Collection[StreamKey]) -> int:
        """Length of the shortest history of these residuals; 0 for none."""
        return min((len(self._residuals.get(key, ())) for key in keys), default=0)

    def usable(self, step: int) -> tuple[dict[Granularity, int], dict[Granularity, int]]:
        """Ages and lengths of the histories behind each granularity; a granularity with an empty one is left out."""
        histories = {
            Granularity.STEP: list(self._outputs.values()),
            Granularity.CFG: [self.difference],
            Granularity.BLOCK: list(self._residuals.values()),
        }
        ages, lengths = {}, {}
        for granularity, behind in histories.items():
            if granularity in self.kept and behind and all(len(history) for history in behind):
                ages[granularity] = max(history.age(step) for history in behind)
                lengths[granularity] = min(len(history) for history in behind)
        return ages, lengths

    def is_last_output(self, branch: str, value: torch.Tensor) -> bool:
        """True if the value is the very tensor that was kept last, which nobody is to write to."""
        history = self._outputs.get(branch)
        return history is not None and value is history.last

    def output(self, branch: str, sigma: float, predictor: Predictor) -> torch.Tensor:
        """The output that a branch's history predicts, not to be written to.

        After a `cfg` step cond is younger than uncond. Guidance would multiply the mismatch of the two, so uncond is
        then predicted as cond plus the predicted difference, as it was in the `cfg` step.
        """
        history, conditional = self._outputs[branch], self._outputs.get(CONDITIONAL)
        is_behind = branch == UNCONDITIONAL and conditional is not None and conditional.is_younger_than(history)
        if is_behind and conditional is not None and len(self.difference):
            return conditional.predict(sigma, predictor) + self.difference.predict(sigma, predictor)
        return history.predict(sigma, predictor)

    def residuals(self, call: str, sigma: float, predictor: Predictor) -> tuple[torch.Tensor, ...]:
        """The residuals of the span that are predicted for a call, by stream, not to be written to."""
        num_streams = sum(name == call for name, _ in self._residuals)
        return tuple(self.residual((call, index), sigma, predictor) for index in range(num_streams))

    def residual(self, key: StreamKey, sigma: float, predictor: Predictor) -> torch.Tensor:
        """The residual of the span that its history predicts, not to be written to."""
        return self._residuals[key].predict(sigma, predictor)

    def refresh(self, record: StepRecord, *, keeps_outputs: bool) -> None:
        """Takes in what a step computed; all of it is finite. A branch that a full step did not call is forgotten."""
        step, sigma = record.info.step, record.info.sigma
        if record.decision.granularity is Granularity.COMPUTE:
            called = {call.branch for call in record.calls}
            self._outputs = {branch: history for branch, history in self._outputs.items() if branch in called}
            self._residuals = {key: h for key, h in self._residuals.items() if key in record.residuals}
            if UNCONDITIONAL not in called:
                self.difference.clear()
        if keeps_outputs:
            for branch, output in record.outputs.items():
                self._outputs.setdefault(branch, History(self._length)).push(step, sigma, output)
        for key, residual in record.residuals.items():
            self._residuals.setdefault(key, History(self._length)).push(step, sigma, residual)
        if record.difference is not None:
            self.difference.push(step, sigma, record.difference)

    def make_room(self, call: str) -> None:
        """Drops the residuals that the next ones of this call would push out."""
        for (name, _), history in self._residuals.items():
            if name == call:
                history.make_room()

    def forget_residuals(self) -> None:
        self._residuals.clear()

    def clear(self) -> None:
        self._outputs.clear()
        self._residuals.clear()
        self.difference.clear()
