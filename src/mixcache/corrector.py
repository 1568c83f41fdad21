"""Puts cached steps right as soon as the next computed one shows what they should have been.

A cached step takes an extrapolated output, and the latents go a little astray. The next computed output lies on the
other side of it: with that as one more value, the polynomial interpolates, and errs far less. So before the scheduler
takes the computed step, it goes back to where the cached ones began, takes them again with interpolated outputs, for
which nothing is run, and arrives at better latents:

    step       computed   cached   cached   computed
    predicted    v_0        v_1      v_2                 through v_0 and those before it
    corrected    v_0        v_1'     v_2'      v_3       through v_3 as well

The computed output stays what the model gave for the latents it was called with. A step of which a branch or some
blocks ran knows more than an interpolation, and keeps its output.

Source: ours. Multistep solvers correct their last step so, UniPC (arXiv 2302.04867) among them. What it
brings is in docs/experiments/2026-11-corrector.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from mixcache.calls import CallInfo
from mixcache.decision import Granularity
from mixcache.histories import StepRecord
from mixcache.history import History
from mixcache.seen import Seen
from mixcache.velocity import v_from_velocity, velocity_from_v


class Solver(Protocol):
    """A scheduler that can go back to where it was."""

    def state(self) -> Any:
        """What `restore` wants, once."""

    def restore(self, state: Any) -> None: ...

    def advance(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        """The sample after a step."""


@dataclass(frozen=True, slots=True)
class CachedStep:
    """What it takes to take it again."""

    info: CallInfo
    order: int
    timestep: Any
    output: torch.Tensor | None
    """None where nothing of it was computed."""


@dataclass(slots=True)
class CachedRun:
    """The cached steps since the last computed one."""

    state: Any
    """Of the solver, before the first of them."""
    sample: torch.Tensor
    """Latents that the first of them began with."""
    steps: list[CachedStep] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return self.sample.nbytes + sum(step.output.nbytes for step in self.steps if step.output is not None)


class Corrector:
    """Watches the scheduler's steps in one trajectory."""

    def __init__(self, max_order: int) -> None:
        self._history = History(max_order + 2)
        """Of computed outputs, as the scheduler is given them: after guidance."""
        self._branches: frozenset[str] = frozenset()
        """That these were guided from."""
        self._run: CachedRun | None = None
        self._record: StepRecord | None = None
        """Of the last step that was seen."""
        self._arrived: Seen | None = None
        """The latents after it."""
        self._is_disturbed = False
        """True if the last step did not begin where the one before it had arrived."""

    @property
    def num_bytes(self) -> int:
        """Bytes of what is held here; the solver's own state is left out."""
        return self._history.num_bytes + (self._run.num_bytes if self._run is not None else 0)

    def is_at_work(self, step: int) -> bool:
        """True if a cached step, this one, is likely to be taken again: the solver's last step was seen here, and
        nobody had changed the latents before it."""
        return self._record is not None and self._record.info.step == step - 1 and not self._is_disturbed

    def before(
        self, record: StepRecord, solver: Solver, output: torch.Tensor, timestep: Any, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and sample that the pipeline's next step of the solver is to be taken with, in place of these."""
        if record is self._record:  # a solver with several stages in a step
            self.clear()
            self._record = record
            return output, sample
        self._record = record
        self._is_disturbed = self._arrived is not None and not is_same(sample, self._arrived)
        if self._is_disturbed:
            self._run = None
        if record.decision.granularity is not Granularity.COMPUTE:
            self._remember(record, solver, output, timestep, sample)
            return output, sample
        branches = frozenset(call.branch for call in record.calls)
        if branches != self._branches:  # guidance has begun or ended: the outputs before are of another kind
            self._run = None
            self._history.clear()
            self._branches = branches
        kept = velocity_from_v(output, sample, record.info.mix)
        # the pipeline may write to its output, and graphs that were captured do
        self._history.push(record.info.step, record.info.sigma, kept.detach().clone() if kept is output else kept)
        run, self._run = self._run, None
        if run is None or all(step.output is not None for step in run.steps):
            return output, sample
        record.num_corrected = len(run.steps)
        sample = self._taken_again(run, solver, output.dtype).to(sample.dtype)
        return v_from_velocity(kept, sample, record.info.mix).to(output.dtype), sample

    def after(self, sample: torch.Tensor) -> None:
        """Told where the step arrived."""
        if self._record is None or self._record.info.is_last:
            self.clear()
        else:
            # what is written to a tensor of inference mode leaves no mark but the values
            self._arrived = Seen.of(sample.clone() if sample.is_inference() else sample)

    def _remember(
        self, record: StepRecord, solver: Solver, output: torch.Tensor, timestep: Any, sample: torch.Tensor
    ) -> None:
        if not len(self._history):
            return
        if self._run is None:
            self._run = CachedRun(solver.state(), sample)
        known = None if record.decision.granularity is Granularity.STEP else output.detach().clone()
        self._run.steps.append(CachedStep(record.info, record.decision.order, timestep, known))

    def _taken_again(self, run: CachedRun, solver: Solver, dtype: torch.dtype) -> torch.Tensor:
        """The sample behind the run, with what is known of its outputs by now."""
        solver.restore(run.state)
        sample = run.sample
        for step in run.steps:
            output = step.output
            if output is None:
                kept = self._history.predict(step.info.sigma, step.order + 1)
                output = v_from_velocity(kept, sample, step.info.mix).to(dtype)
            sample = solver.advance(output, step.timestep, sample)
        return sample

    def clear(self) -> None:
        """Ends the trajectory."""
        self._run = self._record = self._arrived = None
        self._is_disturbed = False
        self._history.clear()


def is_same(sample: torch.Tensor, arrived: Seen) -> bool:
    """True if a step begins where the one before it arrived, but for the rounding of a pipeline that keeps its latents
    in low precision."""
    if arrived.is_same(sample):
        return True
    value = arrived.value
    if value.shape != sample.shape or value.device != sample.device or not arrived.is_same(value):
        return False
    roundings = {sample.dtype, torch.bfloat16, torch.float16} - {value.dtype}
    return any(torch.equal(value.to(dtype).to(sample.dtype), sample) for dtype in roundings)
