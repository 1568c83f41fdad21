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

Source: ours. Multistep solvers correct their last step so, UniPC (arXiv 2302.04867) among them. docs/method.md says
what it brings.
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
    arrived: Seen | None = None
    """Latents after the last of them."""

    @property
    def num_bytes(self) -> int:
        return self.sample.nbytes + sum(step.output.nbytes for step in self.steps if step.output is not None)


class Corrector:
    """Watches the scheduler's steps in one trajectory."""

    def __init__(self, max_order: int) -> None:
        self._history = History(max_order + 2)
        """Of computed outputs, as the scheduler is given them: after guidance."""
        self._run: CachedRun | None = None
        self._record: StepRecord | None = None
        self._is_disturbed = False
        """True from a run that could not be taken again to the next one that could."""

    @property
    def num_bytes(self) -> int:
        """Bytes of what is held here; the solver's own state is left out."""
        return self._history.num_bytes + (self._run.num_bytes if self._run is not None else 0)

    def is_at_work(self, step: int) -> bool:
        """True if a run of cached steps that begins at this one is likely to be taken again: the solver's last step was
        seen here, and nobody has changed the latents in the last run."""
        return self._record is not None and self._record.info.step == step - 1 and not self._is_disturbed

    def before(
        self, record: StepRecord, solver: Solver, output: torch.Tensor, timestep: Any, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and sample that the pipeline's next step of the solver is to be taken with, in place of these."""
        if record is self._record:  # a solver with several stages in a step
            self.clear()
            return output, sample
        self._record = record
        run, info = self._run, record.info
        if run is not None and not (run.arrived is not None and run.arrived.is_same(sample)):
            run = self._run = None  # somebody changed the latents meanwhile
            self._is_disturbed = True
        if record.decision.granularity is not Granularity.COMPUTE:
            if len(self._history):
                run = self._run = run or CachedRun(solver.state(), sample)
                known = None if record.decision.granularity is Granularity.STEP else output
                run.steps.append(CachedStep(info, record.decision.order, timestep, known))
            return output, sample
        kept = velocity_from_v(output, sample, info.mix)
        self._history.push(info.step, info.sigma, kept)
        self._run = None
        if run is None or all(step.output is not None for step in run.steps):
            return output, sample
        record.num_corrected, self._is_disturbed = len(run.steps), False
        sample = self._taken_again(run, solver, output.dtype)
        return v_from_velocity(kept, sample, info.mix).to(output.dtype), sample

    def after(self, sample: torch.Tensor) -> None:
        """Told where the step arrived."""
        if self._run is not None:
            self._run.arrived = Seen.of(sample)

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
        self._run = self._record = None
        self._history.clear()
